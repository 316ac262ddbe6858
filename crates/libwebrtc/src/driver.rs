//! The task that owns the sockets of one peer connection.
//!
//! It feeds packets and time into the core, sends what the core wants to send, and calls the
//! application's callbacks in order and without a lock. It ends when the connection is closed, and
//! the sockets with it.

mod servers;

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use str0m::net::{Protocol, Transmit};
use tokio::{net::UdpSocket, time::sleep_until};

use self::servers::{LinkInput, ServerLinks};
use crate::{
    RtcError,
    connection::Connection,
    core::{Core, Event},
    data_channel::DataChannel,
    engine,
    ice::gather::{Finding, Gatherer, Outgoing, Taken},
    ice_candidate::IceCandidate,
    ice_tcp::TcpConnections,
    peer_connection::{IceCandidateError, TrackEvent},
    rtp_transceiver::RtpTransceiver,
};

/// Packets read from one socket before everything else is served again.
const READ_AT_ONCE: usize = 32;
/// A socket that fails so often in a row belongs to an interface that is gone.
const MAX_FAILURES: u32 = 16;
/// More than any packet of WebRTC, which fits into 1,500 bytes.
const MAX_PACKET_BYTES: usize = 2048;
/// The port that stands for "none" in candidates of a side that only opens connections (RFC 6544,
/// section 4.5).
const ACTIVE_TCP_PORT: u16 = 9;
/// How often the network interfaces are listed; as often as in Google's engine.
const INTERFACE_INTERVAL: Duration = Duration::from_secs(2);

struct Socket {
    address: SocketAddr,
    udp: UdpSocket,
    failures: u32,
}

impl Socket {
    /// Sockets that have failed are replaced at the next listing of the interfaces.
    fn works(&self) -> bool {
        self.failures < MAX_FAILURES
    }
}

/// The UDP sockets of a connection, one for each address of this machine.
pub(crate) struct Sockets {
    sockets: Vec<Socket>,
}

impl Sockets {
    /// Binds a socket to every usable address. Loopback is among them, as servers for development
    /// listen there.
    ///
    /// # Errors
    ///
    /// If no address is usable or no socket can be bound.
    pub fn open() -> Result<Self, RtcError> {
        let mut sockets = Self { sockets: vec![] };
        sockets.bind_new(&usable_addresses()?);
        if sockets.sockets.is_empty() {
            return Err(RtcError::internal(
                "no network interface has an address that can be used",
            ));
        }
        Ok(sockets)
    }

    /// Binds a socket to every address that has none, and returns the new ones.
    fn bind_new(&mut self, addresses: &[IpAddr]) -> Vec<SocketAddr> {
        // Sockets belong to the runtime that is entered when they are made.
        let _runtime = engine::handle().enter();
        let mut new = Vec::new();
        for ip in addresses {
            if self.sockets.iter().any(|it| it.address.ip() == *ip) {
                continue;
            }
            match bind(*ip) {
                Ok((address, udp)) => {
                    new.push(address);
                    self.sockets.push(Socket {
                        address,
                        udp,
                        failures: 0,
                    });
                }
                Err(error) => log::debug!("no socket can be bound to {ip}: {error}"),
            }
        }
        new
    }

    /// Closes the sockets whose address is gone and those that have failed, and returns their
    /// addresses.
    fn close_old(&mut self, addresses: &[IpAddr]) -> Vec<SocketAddr> {
        let mut old = Vec::new();
        self.sockets.retain(|socket| {
            let stays = addresses.contains(&socket.address.ip()) && socket.works();
            if !stays {
                old.push(socket.address);
            }
            stays
        });
        old
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|socket| socket.address).collect()
    }

    /// Gives the core a candidate for each socket.
    pub fn add_candidates(&self, core: &mut Core) {
        for socket in &self.sockets {
            add_candidates(core, socket.address);
        }
    }

    /// Waits until a packet can be read. Can be dropped without losing one.
    async fn readable(&self) {
        poll_fn(|context| {
            let mut ready = Poll::Pending;
            for socket in self.sockets.iter().filter(|socket| socket.works()) {
                if socket.udp.poll_recv_ready(context).is_ready() {
                    ready = Poll::Ready(());
                }
            }
            ready
        })
        .await
    }

    /// Reads packets that have arrived.
    fn receive(&mut self, connection: &Connection, gatherer: &mut Gatherer, buffer: &mut [u8]) {
        for socket in self.sockets.iter_mut().filter(|socket| socket.works()) {
            for _ in 0..READ_AT_ONCE {
                match socket.udp.try_recv_from(buffer) {
                    Ok((length, source)) => {
                        socket.failures = 0;
                        let (destination, packet) = (socket.address, &buffer[..length]);
                        let now = Instant::now();
                        let taken = gatherer.handle_udp(now, destination, source, packet);
                        let (source, destination, packet) = match taken {
                            Taken::No => (source, destination, packet),
                            Taken::FromPeer {
                                relayed,
                                peer,
                                data,
                            } => (peer, relayed, data),
                            Taken::Yes => continue,
                        };
                        connection.with_core(|core, now| {
                            core.receive(now, Protocol::Udp, source, destination, packet);
                        });
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        socket.failures += 1;
                        log::debug!("reading from {}: {error}", socket.address);
                        break;
                    }
                }
            }
        }
    }

    fn send(&self, source: SocketAddr, destination: SocketAddr, packet: &[u8]) {
        let socket = self.sockets.iter().find(|it| it.address == source);
        let Some(socket) = socket else { return };
        if let Err(error) = socket.udp.try_send_to(packet, destination) {
            // Lost as on any other hop; the protocols above recover from that.
            log::trace!("{source} cannot send to {destination}: {error}");
        }
    }
}

fn add_candidates(core: &mut Core, address: SocketAddr) {
    core.add_udp_candidate(address);
    core.add_active_tcp_candidate(SocketAddr::new(address.ip(), ACTIVE_TCP_PORT));
}

fn usable_addresses() -> Result<Vec<IpAddr>, RtcError> {
    let interfaces = if_addrs::get_if_addrs().map_err(|error| {
        RtcError::internal(format!("the network interfaces cannot be listed: {error}"))
    })?;
    let addresses = interfaces.iter().map(|interface| interface.ip());
    Ok(addresses.filter(|ip| is_usable(*ip)).collect())
}

fn is_usable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_link_local(),
        // Link-local addresses need a zone, which candidates cannot carry; ::1 would only duplicate
        // 127.0.0.1.
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}

fn bind(ip: IpAddr) -> io::Result<(SocketAddr, UdpSocket)> {
    let socket = std::net::UdpSocket::bind((ip, 0))?;
    socket.set_nonblocking(true)?;
    Ok((socket.local_addr()?, UdpSocket::from_std(socket)?))
}

/// Runs the driver on the media thread.
pub(crate) fn start(connection: Arc<Connection>, sockets: Sockets) {
    engine::handle().spawn(run(connection, sockets));
}

async fn run(connection: Arc<Connection>, mut sockets: Sockets) {
    let mut tcp = TcpConnections::new();
    let mut gatherer = Gatherer::default();
    gatherer.set_locals(sockets.addresses());
    let mut links = ServerLinks::new();
    let mut buffer = vec![0; MAX_PACKET_BYTES];
    let mut look_at_interfaces = Instant::now() + INTERFACE_INTERVAL;
    loop {
        let (transmits, events, next, relays_at, closed) = connection.with_core(|core, now| {
            core.settle(now);
            let transmits = std::mem::take(&mut core.transmits);
            let events = std::mem::take(&mut core.events);
            let relays_at = core.relays_wanted_at();
            (
                transmits,
                events,
                core.next_timeout,
                relays_at,
                core.is_closed(),
            )
        });
        for transmit in transmits {
            send(transmit, &sockets, &mut tcp, &mut gatherer);
        }
        for event in events {
            match event {
                Event::Gather(servers) => gatherer.start(Instant::now(), &servers),
                event => tell(&connection, event),
            }
        }
        if closed {
            gatherer.close();
        }
        let now = Instant::now();
        let mut next = next.min(look_at_interfaces);
        if let Some(at) = relays_at.filter(|_| gatherer.has_reserve()) {
            if now >= at {
                gatherer.ask_relays();
            } else {
                next = next.min(at);
            }
        }
        let found_something = serve_gatherer(&connection, &mut gatherer, &sockets, &mut links);
        if closed {
            return;
        }
        if found_something {
            // The core has something to send or to tell.
            continue;
        }
        let next = gatherer.next_timeout().map_or(next, |at| at.min(next));
        tokio::select! {
            () = sockets.readable() => sockets.receive(&connection, &mut gatherer, &mut buffer),
            packet = tcp.receive() => connection.with_core(|core, now| {
                core.receive(now, Protocol::Tcp, packet.source, packet.destination, &packet.data);
            }),
            input = links.next() => take_link_input(&connection, &mut gatherer, input),
            () = connection.wake.notified() => {}
            () = sleep_until(next.into()) => {
                let now = Instant::now();
                gatherer.handle_timeout(now);
                if now >= look_at_interfaces {
                    look_at_interfaces = now + INTERFACE_INTERVAL;
                    follow_interfaces(&connection, &mut sockets, &mut gatherer);
                }
            }
        }
    }
}

fn send(transmit: Transmit, sockets: &Sockets, tcp: &mut TcpConnections, gatherer: &mut Gatherer) {
    let (source, destination) = (transmit.source, transmit.destination);
    match transmit.proto {
        Protocol::Udp if gatherer.is_relay(source) => {
            gatherer.send(Instant::now(), source, destination, &transmit.contents);
        }
        Protocol::Udp => sockets.send(source, destination, &transmit.contents),
        Protocol::Tcp => tcp.send(source, destination, transmit.contents.into()),
        other => log::debug!("a packet for {other:?} cannot be sent"),
    }
}

/// Does what the gatherer asks for. Returns whether the core has received anything.
fn serve_gatherer(
    connection: &Connection,
    gatherer: &mut Gatherer,
    sockets: &Sockets,
    links: &mut ServerLinks,
) -> bool {
    for outgoing in gatherer.outgoing.drain(..) {
        match outgoing {
            Outgoing::Udp {
                local,
                server,
                data,
            } => sockets.send(local, server, &data),
            Outgoing::Link { link, data } => links.send(link, data),
        }
    }
    // Disconnected last, because a connection ends only when everything is sent.
    for demand in gatherer.demands.drain(..) {
        links.serve(demand);
    }
    let found_something = !gatherer.findings.is_empty();
    for finding in gatherer.findings.drain(..) {
        connection.with_core(|core, now| match finding {
            Finding::Reflexive { address, base } => {
                core.add_reflexive_candidate(now, address, base);
            }
            Finding::Relayed { address, local } => core.add_relayed_candidate(now, address, local),
            Finding::RelayLost { address } => core.relay_lost(now, address),
            Finding::Failed(failure) => core.server_failed(failure),
            Finding::Complete => core.gathering_complete(),
        });
    }
    found_something
}

fn take_link_input(connection: &Connection, gatherer: &mut Gatherer, input: LinkInput) {
    let now = Instant::now();
    match input {
        LinkInput::Resolved { query, routes } => gatherer.resolved(now, query, routes),
        LinkInput::Opened { link, local } => gatherer.link_opened(now, link, local),
        LinkInput::Message { link, data } => {
            if let Taken::FromPeer {
                relayed,
                peer,
                data,
            } = gatherer.link_message(now, link, &data)
            {
                connection.with_core(|core, now| {
                    core.receive(now, Protocol::Udp, peer, relayed, data);
                });
            }
        }
        LinkInput::Closed { link, reason } => gatherer.link_closed(link, reason),
    }
}

/// Opens sockets for addresses that are new and closes those of addresses that are gone.
fn follow_interfaces(connection: &Connection, sockets: &mut Sockets, gatherer: &mut Gatherer) {
    let addresses = match usable_addresses() {
        Ok(addresses) => addresses,
        Err(error) => {
            log::debug!("{}", error.message);
            return;
        }
    };
    let old = sockets.close_old(&addresses);
    let new = match connection.gathers_continually() {
        true => sockets.bind_new(&addresses),
        false => vec![],
    };
    if old.is_empty() && new.is_empty() {
        return;
    }
    log::debug!("the network has changed: {old:?} gone, {new:?} new");
    gatherer.set_locals(sockets.addresses());
    connection.with_core(|core, now| {
        for address in old {
            core.remove_local(now, address);
            core.remove_local(now, SocketAddr::new(address.ip(), ACTIVE_TCP_PORT));
        }
        for address in &new {
            add_candidates(core, *address);
        }
    });
    if !new.is_empty() {
        gatherer.start(Instant::now(), &connection.ice_servers());
    }
}

/// Calls the application's callback for an event.
fn tell(connection: &Connection, event: Event) {
    let callbacks = &connection.callbacks;
    match event {
        Event::IceCandidate { mid, candidate } => {
            let candidate = IceCandidate::new(&mid, 0, &candidate);
            callbacks.ice_candidate.call(|callback| callback(candidate));
        }
        Event::ServerFailed(failure) => {
            let local = failure.local;
            let error = IceCandidateError {
                address: local
                    .map(|local| local.ip().to_string())
                    .unwrap_or_default(),
                port: local.map_or(0, |local| local.port().into()),
                url: failure.url,
                error_code: failure.code.into(),
                error_text: failure.reason,
            };
            callbacks
                .ice_candidate_error
                .call(|callback| callback(error));
        }
        // Handled by the driver's loop.
        Event::Gather(_) => {}
        Event::ConnectionState(state) => {
            callbacks.connection_change.call(|callback| callback(state));
        }
        Event::IceState(state) => {
            callbacks
                .ice_connection_change
                .call(|callback| callback(state));
        }
        Event::Signaling(state) => {
            callbacks.signaling_change.call(|callback| callback(state));
        }
        Event::Gathering(state) => {
            callbacks
                .ice_gathering_change
                .call(|callback| callback(state));
        }
        Event::NegotiationNeeded => {
            callbacks.negotiation_needed.call(|callback| callback(0));
        }
        Event::Track(transceiver) => {
            let transceiver = RtpTransceiver { transceiver };
            let receiver = transceiver.receiver();
            let event = TrackEvent {
                streams: receiver.streams(),
                track: receiver.receiver.track.clone(),
                receiver,
                transceiver,
            };
            callbacks.track.call(|callback| callback(event));
        }
        Event::Channel(channel) => {
            callbacks
                .data_channel
                .call(|callback| callback(DataChannel { channel }));
        }
        Event::ChannelState(channel, state) => {
            channel.on_state.call(|callback| callback(state));
        }
        Event::ChannelMessage {
            channel,
            data,
            binary,
        } => channel.deliver(data, binary),
        Event::ChannelDrained(channel, bytes) => {
            channel.on_buffered_amount.call(|callback| callback(bytes));
        }
        Event::FlushEarlyMessages => {
            let channels = connection.with_core(|core, _| core.channels().to_vec());
            for channel in channels {
                channel.flush_early();
            }
        }
    }
}
