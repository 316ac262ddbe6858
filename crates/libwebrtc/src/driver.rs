//! The task that owns the sockets of one peer connection.
//!
//! It feeds packets and time into the core, sends what the core wants to send, and calls the application's
//! callbacks in order and without a lock. It ends when the connection is closed, and the sockets with it.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::Poll,
};

use str0m::net::{Protocol, Transmit};
use tokio::{net::UdpSocket, time::sleep_until};

use crate::{
    RtcError,
    connection::Connection,
    core::{Core, Event},
    data_channel::DataChannel,
    engine,
    ice_candidate::IceCandidate,
    ice_tcp::TcpConnections,
    peer_connection::{IceCandidateError, TrackEvent},
    rtp_transceiver::RtpTransceiver,
};

/// Packets read from one socket before everything else gets its turn again.
const READ_AT_ONCE: usize = 32;
/// A socket that fails so often in a row belongs to an interface that is gone.
const MAX_FAILURES: u32 = 16;
/// More than any packet of WebRTC: they are made to fit into 1,500 bytes.
const MAX_PACKET_BYTES: usize = 2048;
/// The port that stands for "none" in candidates of a side that only opens connections (RFC 6544, section 4.5).
const ACTIVE_TCP_PORT: u16 = 9;

struct Socket {
    address: SocketAddr,
    udp: UdpSocket,
    failures: u32,
}

/// The UDP sockets of a connection, one for each address of this machine.
pub(crate) struct Sockets {
    sockets: Vec<Socket>,
}

impl Sockets {
    /// Binds a socket to every usable address. The loopback address is among them, as servers for development
    /// listen there.
    pub fn open() -> Result<Self, RtcError> {
        let interfaces = if_addrs::get_if_addrs().map_err(|error| {
            RtcError::internal(format!("the network interfaces cannot be listed: {error}"))
        })?;
        // Sockets belong to the runtime that is entered when they are made.
        let _runtime = engine::handle().enter();
        let mut sockets: Vec<Socket> = Vec::new();
        for interface in interfaces {
            let ip = interface.ip();
            if !is_usable(ip) || sockets.iter().any(|socket| socket.address.ip() == ip) {
                continue;
            }
            match bind(ip) {
                Ok((address, udp)) => sockets.push(Socket {
                    address,
                    udp,
                    failures: 0,
                }),
                Err(error) => log::debug!("no socket can be bound to {ip}: {error}"),
            }
        }
        if sockets.is_empty() {
            return Err(RtcError::internal(
                "no network interface has an address that can be used",
            ));
        }
        Ok(Self { sockets })
    }

    /// Tells the core what can be sent from.
    pub fn add_candidates(&self, core: &mut Core) {
        for socket in &self.sockets {
            core.add_udp_candidate(socket.address);
            let tcp = SocketAddr::new(socket.address.ip(), ACTIVE_TCP_PORT);
            core.add_active_tcp_candidate(tcp);
        }
    }

    /// Waits until a packet can be read. Can be dropped without losing one.
    async fn readable(&self) {
        poll_fn(|context| {
            let mut ready = Poll::Pending;
            for socket in &self.sockets {
                if socket.udp.poll_recv_ready(context).is_ready() {
                    ready = Poll::Ready(());
                }
            }
            ready
        })
        .await
    }

    /// Reads what has come.
    fn receive(&mut self, connection: &Connection, buffer: &mut [u8]) {
        for socket in &mut self.sockets {
            for _ in 0..READ_AT_ONCE {
                match socket.udp.try_recv_from(buffer) {
                    Ok((length, source)) => {
                        socket.failures = 0;
                        let (destination, packet) = (socket.address, &buffer[..length]);
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
        self.sockets.retain(|socket| socket.failures < MAX_FAILURES);
    }

    fn send(&self, transmit: &Transmit) {
        let socket = self
            .sockets
            .iter()
            .find(|socket| socket.address == transmit.source);
        let Some(socket) = socket else { return };
        if let Err(error) = socket
            .udp
            .try_send_to(&transmit.contents, transmit.destination)
        {
            // Lost like on any other hop; the protocols above know how to deal with it.
            log::trace!(
                "{} cannot send to {}: {error}",
                transmit.source,
                transmit.destination
            );
        }
    }
}

fn is_usable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_link_local(),
        // Link-local addresses need a zone, which candidates cannot carry; ::1 would only double 127.0.0.1.
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
    let mut buffer = vec![0; MAX_PACKET_BYTES];
    loop {
        let (transmits, events, next, closed) = connection.with_core(|core, now| {
            core.settle(now);
            let transmits = std::mem::take(&mut core.transmits);
            let events = std::mem::take(&mut core.events);
            (transmits, events, core.next_timeout, core.is_closed())
        });
        for transmit in transmits {
            match transmit.proto {
                Protocol::Udp => sockets.send(&transmit),
                Protocol::Tcp => {
                    tcp.send(
                        transmit.source,
                        transmit.destination,
                        transmit.contents.into(),
                    );
                }
                other => log::debug!("a packet for {other:?} cannot be sent"),
            }
        }
        for event in events {
            tell(&connection, event);
        }
        if closed {
            return;
        }
        tokio::select! {
            () = sockets.readable() => sockets.receive(&connection, &mut buffer),
            packet = tcp.receive() => connection.with_core(|core, now| {
                core.receive(now, Protocol::Tcp, packet.source, packet.destination, &packet.data);
            }),
            () = connection.wake.notified() => {}
            () = sleep_until(next.into()) => {}
        }
    }
}

/// Calls the application.
fn tell(connection: &Connection, event: Event) {
    let callbacks = &connection.callbacks;
    match event {
        Event::IceCandidate { mid, candidate } => {
            let candidate = IceCandidate::new(&mid, 0, &candidate);
            callbacks.ice_candidate.call(|callback| callback(candidate));
        }
        Event::ServerNotUsed { url } => {
            let error = IceCandidateError {
                address: String::new(),
                port: 0,
                url,
                // The code for a server that could not be reached (W3C WebRTC, RTCPeerConnectionIceErrorEvent).
                error_code: 701,
                error_text: "this media engine does not use STUN and TURN servers".to_owned(),
            };
            callbacks
                .ice_candidate_error
                .call(|callback| callback(error));
        }
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
