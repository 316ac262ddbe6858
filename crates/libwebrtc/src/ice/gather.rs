//! Asks STUN and TURN servers for candidates, and carries packets through relays.
//!
//! Knows nothing about sockets: what must be resolved, opened and sent comes out as [`Demand`] and
//! [`Outgoing`], what was found as [`Finding`].

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use super::{
    server::{Server, ServerTransport, Service, servers},
    stun::{Class, Due, Message, Method, Transaction, TransactionId, Writer, attribute},
    turn::{Allocation, Refusal, TurnEvent, UNREACHABLE},
};
use crate::peer_connection_factory::IceServer;

/// How often a server may redirect its client to another one.
const MOST_REDIRECTS: u8 = 2;

/// A server's address, and the address of this machine that leads there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub server: SocketAddr,
    pub local: IpAddr,
}

/// What the owner of the sockets is to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Resolve a host; the result goes to [`Gatherer::resolved`].
    Resolve { query: u32, host: String, port: u16 },
    /// Open a TCP connection, with TLS if there is a name to check the certificate against.
    Connect {
        link: u32,
        server: SocketAddr,
        tls_name: Option<String>,
    },
    /// Close a connection when everything is sent.
    Disconnect { link: u32 },
}

/// A packet for a server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outgoing {
    Udp {
        local: SocketAddr,
        server: SocketAddr,
        data: Vec<u8>,
    },
    Link {
        link: u32,
        data: Vec<u8>,
    },
}

/// Why a server of the configuration has given no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerFailure {
    pub url: String,
    /// The address of this machine from which it was asked, if it was asked.
    pub local: Option<SocketAddr>,
    /// The code of the server's answer, or 701 when there was none.
    pub code: u16,
    pub reason: String,
}

/// A result of gathering.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Reflexive {
        address: SocketAddr,
        base: SocketAddr,
    },
    Relayed {
        address: SocketAddr,
        local: SocketAddr,
    },
    RelayLost {
        address: SocketAddr,
    },
    Failed(ServerFailure),
    /// Each server has answered or failed.
    Complete,
}

/// Whether a packet of a UDP socket came from a STUN or TURN server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken<'a> {
    /// It came from none.
    No,
    Yes,
    /// Data that a peer has sent to a relay address.
    FromPeer {
        relayed: SocketAddr,
        peer: SocketAddr,
        data: &'a [u8],
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Udp {
        local: SocketAddr,
        server: SocketAddr,
    },
    Link {
        link: u32,
        /// Known once the connection is open.
        local: Option<SocketAddr>,
    },
}

struct Binding {
    url: String,
    local: SocketAddr,
    server: SocketAddr,
    transaction: Transaction,
}

struct Relay {
    server: Server,
    wire: Wire,
    /// `None` until the connection is open.
    allocation: Option<Allocation>,
    /// The address that was reported as found.
    announced: Option<SocketAddr>,
    redirects: u8,
}

/// The gathering of one peer connection. See the module's documentation.
#[derive(Default)]
pub(crate) struct Gatherer {
    /// UDP sockets of the connection.
    locals: Vec<SocketAddr>,
    queries: Vec<(u32, Server)>,
    bindings: Vec<Binding>,
    relays: Vec<Relay>,
    /// TURN servers that are asked only when relays are needed.
    in_reserve: Vec<Server>,
    next_number: u32,
    running: bool,
    pub demands: VecDeque<Demand>,
    pub outgoing: VecDeque<Outgoing>,
    pub findings: VecDeque<Finding>,
}

impl Gatherer {
    /// Sets the UDP sockets. What was reached through one that is gone is gone too.
    pub fn set_locals(&mut self, locals: Vec<SocketAddr>) {
        self.locals = locals;
        let locals = &self.locals;
        self.bindings
            .retain(|binding| locals.contains(&binding.local));
        for relay in &mut self.relays {
            let is_there = match relay.wire {
                Wire::Udp { local, .. } => locals.contains(&local),
                Wire::Link { local, .. } => {
                    local.is_none_or(|local| locals.iter().any(|it| it.ip() == local.ip()))
                }
            };
            if let (false, Some(allocation)) = (is_there, &mut relay.allocation) {
                allocation.connection_lost("the network interface is gone".to_owned());
            }
        }
        self.collect();
    }

    /// Asks the STUN servers, and keeps the TURN servers until [`Self::ask_relays`]. Relays that
    /// exist stay.
    pub fn start(&mut self, now: Instant, configured: &[IceServer]) {
        self.running = true;
        self.queries.clear();
        self.bindings.clear();
        self.in_reserve.clear();
        for server in servers(configured) {
            match server {
                Ok(server) if server.service == Service::Stun => self.resolve(server),
                Ok(server) => {
                    if !self.relays.iter().any(|relay| relay.server == server) {
                        self.in_reserve.push(server);
                    }
                }
                Err((url, reason)) => {
                    log::warn!("the STUN or TURN server {url} is not used: {reason}");
                    self.findings.push_back(Finding::Failed(ServerFailure {
                        url,
                        local: None,
                        code: UNREACHABLE,
                        reason,
                    }));
                }
            }
        }
        self.handle_timeout(now);
    }

    /// Whether there are TURN servers that were not asked yet.
    pub fn has_reserve(&self) -> bool {
        !self.in_reserve.is_empty()
    }

    /// Asks the TURN servers that were not asked yet.
    pub fn ask_relays(&mut self) {
        for server in std::mem::take(&mut self.in_reserve) {
            self.resolve(server);
        }
    }

    fn resolve(&mut self, server: Server) {
        let query = self.number();
        let (host, port) = (server.host.clone(), server.port);
        self.queries.push((query, server));
        self.demands
            .push_back(Demand::Resolve { query, host, port });
    }

    fn number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number
    }

    /// Takes the result of [`Demand::Resolve`]: every address that can be reached.
    pub fn resolved(&mut self, now: Instant, query: u32, routes: Result<Vec<Route>, String>) {
        let Some(index) = self.queries.iter().position(|(it, _)| *it == query) else {
            return;
        };
        let (_, server) = self.queries.swap_remove(index);
        let routes = routes.and_then(|routes| match routes.is_empty() {
            true => Err(format!("no way leads to {}", server.host)),
            false => Ok(routes),
        });
        let is_stun = server.service == Service::Stun;
        match routes {
            Err(reason) => self.fail(&server.url, None, UNREACHABLE, reason),
            Ok(routes) if is_stun => self.ask_binding(now, &server.url, &routes),
            Ok(routes) => self.open_relay(now, server, routes[0], 0),
        }
        self.handle_timeout(now);
    }

    /// Sends a Binding request from every socket whose address family the server has, to one
    /// address of each family.
    fn ask_binding(&mut self, now: Instant, url: &str, routes: &[Route]) {
        for is_ipv4 in [true, false] {
            let Some(route) = routes.iter().find(|it| it.server.is_ipv4() == is_ipv4) else {
                continue;
            };
            let server = route.server;
            for local in self.locals.clone() {
                let same_world = local.ip().is_loopback() == server.ip().is_loopback();
                if local.is_ipv4() != is_ipv4 || !same_world {
                    continue;
                }
                let id = TransactionId::random();
                let request = Writer::new(Method::Binding, Class::Request, id).finish();
                self.bindings.push(Binding {
                    url: url.to_owned(),
                    local,
                    server,
                    transaction: Transaction::new(now, id, request, false),
                });
            }
        }
    }

    fn open_relay(&mut self, now: Instant, server: Server, route: Route, redirects: u8) {
        let wire = match server.transport {
            ServerTransport::Udp => {
                let local = self.locals.iter().find(|it| it.ip() == route.local);
                let Some(local) = local.copied() else {
                    let reason = format!("no socket leads to {}", server.host);
                    self.fail(&server.url, None, UNREACHABLE, reason);
                    return;
                };
                Wire::Udp {
                    local,
                    server: route.server,
                }
            }
            ServerTransport::Tcp | ServerTransport::Tls => {
                let link = self.number();
                let is_tls = server.transport == ServerTransport::Tls;
                self.demands.push_back(Demand::Connect {
                    link,
                    server: route.server,
                    tls_name: is_tls.then(|| server.host.clone()),
                });
                Wire::Link { link, local: None }
            }
        };
        let allocation = match wire {
            Wire::Udp { .. } => allocate(now, &server, wire, route.server.is_ipv6()),
            Wire::Link { .. } => None,
        };
        self.relays.push(Relay {
            server,
            wire,
            allocation,
            announced: None,
            redirects,
        });
    }

    fn fail(&mut self, url: &str, local: Option<SocketAddr>, code: u16, reason: String) {
        log::debug!("the STUN or TURN server {url} gives no address: {code} {reason}");
        self.findings.push_back(Finding::Failed(ServerFailure {
            url: url.to_owned(),
            local,
            code,
            reason,
        }));
    }

    /// Takes a packet that has come to a UDP socket.
    pub fn handle_udp<'a>(
        &mut self,
        now: Instant,
        local: SocketAddr,
        source: SocketAddr,
        packet: &'a [u8],
    ) -> Taken<'a> {
        let mut asked = self.bindings.iter();
        if asked.any(|it| it.server == source && it.local == local)
            && let Ok(message) = Message::parse(packet)
        {
            let index = self
                .bindings
                .iter()
                .position(|it| it.transaction.id == message.id && it.local == local);
            if let Some(index) = index {
                let binding = self.bindings.swap_remove(index);
                self.bound(binding, &message);
                self.collect();
                return Taken::Yes;
            }
        }
        let wire = Wire::Udp {
            local,
            server: source,
        };
        match self.relays.iter().position(|relay| relay.wire == wire) {
            Some(index) if is_for_relay(packet) => self.serve_relay(now, index, packet),
            _ => Taken::No,
        }
    }

    fn bound(&mut self, binding: Binding, message: &Message) {
        let mapped = message.address(attribute::XOR_MAPPED_ADDRESS);
        match (message.class, mapped) {
            (Class::Success, Some(address)) => {
                if address != binding.local {
                    self.findings.push_back(Finding::Reflexive {
                        address,
                        base: binding.local,
                    });
                }
            }
            _ => {
                let error = message.error();
                let (code, reason) = error.unwrap_or((
                    UNREACHABLE,
                    "the STUN server has answered without an address".to_owned(),
                ));
                self.fail(&binding.url, Some(binding.local), code, reason);
            }
        }
    }

    fn serve_relay<'a>(&mut self, now: Instant, index: usize, packet: &'a [u8]) -> Taken<'a> {
        let Some(allocation) = &mut self.relays[index].allocation else {
            return Taken::Yes;
        };
        let data = allocation.handle(now, packet);
        let taken = match (data, allocation.relayed()) {
            (Some((peer, data)), Some(relayed)) => Taken::FromPeer {
                relayed,
                peer,
                data,
            },
            _ => Taken::Yes,
        };
        if taken == Taken::Yes {
            self.redirect(now);
            self.collect();
        }
        taken
    }

    /// Notes that a connection is open.
    pub fn link_opened(&mut self, now: Instant, link: u32, local: SocketAddr) {
        let Some(relay) = self.relays.iter_mut().find(|relay| relay.has_link(link)) else {
            self.demands.push_back(Demand::Disconnect { link });
            return;
        };
        let local = Some(local);
        relay.wire = Wire::Link { link, local };
        let ipv6 = local.is_some_and(|local| local.is_ipv6());
        relay.allocation = allocate(now, &relay.server, relay.wire, ipv6);
        self.collect();
    }

    /// Takes a whole message that has come over a connection.
    pub fn link_message<'a>(&mut self, now: Instant, link: u32, packet: &'a [u8]) -> Taken<'a> {
        match self.relays.iter().position(|relay| relay.has_link(link)) {
            Some(index) => self.serve_relay(now, index, packet),
            None => Taken::Yes,
        }
    }

    /// Notes that a connection could not be opened or has ended.
    pub fn link_closed(&mut self, link: u32, reason: String) {
        let Some(index) = self.relays.iter().position(|relay| relay.has_link(link)) else {
            return;
        };
        match &mut self.relays[index].allocation {
            Some(allocation) => allocation.connection_lost(reason),
            None => {
                let relay = self.relays.swap_remove(index);
                self.fail(&relay.server.url, None, UNREACHABLE, reason);
            }
        }
        self.collect();
    }

    /// Whether packets from this address go through a relay.
    pub fn is_relay(&self, address: SocketAddr) -> bool {
        self.relays
            .iter()
            .any(|relay| relay.relayed() == Some(address))
    }

    /// Sends to a peer from a relay address.
    pub fn send(&mut self, now: Instant, relayed: SocketAddr, peer: SocketAddr, data: &[u8]) {
        let relay = self
            .relays
            .iter_mut()
            .find(|relay| relay.relayed() == Some(relayed));
        if let Some(allocation) = relay.and_then(|relay| relay.allocation.as_mut()) {
            allocation.send(now, peer, data);
            self.collect();
        }
    }

    /// Does everything that is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut given_up = Vec::new();
        for (index, binding) in self.bindings.iter_mut().enumerate() {
            let (local, server) = (binding.local, binding.server);
            match binding.transaction.due(now) {
                Due::Nothing => {}
                Due::Send(data) => self.outgoing.push_back(Outgoing::Udp {
                    local,
                    server,
                    data: data.to_vec(),
                }),
                Due::GiveUp => given_up.push(index),
            }
        }
        for index in given_up.into_iter().rev() {
            let binding = self.bindings.remove(index);
            let reason = "the STUN server does not answer".to_owned();
            self.fail(&binding.url, Some(binding.local), UNREACHABLE, reason);
        }
        for relay in &mut self.relays {
            if let Some(allocation) = &mut relay.allocation {
                allocation.handle_timeout(now);
            }
        }
        self.redirect(now);
        self.collect();
    }

    fn redirect(&mut self, now: Instant) {
        let mut redirected = Vec::new();
        self.relays.retain_mut(|relay| {
            let Some(allocation) = &mut relay.allocation else {
                return true;
            };
            let Some(TurnEvent::Redirected(other)) = allocation.events.front() else {
                return true;
            };
            redirected.push((
                relay.server.clone(),
                *other,
                relay.redirects + 1,
                relay.wire,
            ));
            false
        });
        for (server, other, redirects, wire) in redirected {
            let local = wire.local();
            if let Wire::Link { link, .. } = wire {
                self.demands.push_back(Demand::Disconnect { link });
            }
            let (Some(local), true) = (local, redirects <= MOST_REDIRECTS) else {
                let reason = "the TURN servers send their client from one to another".to_owned();
                self.fail(&server.url, local, UNREACHABLE, reason);
                continue;
            };
            let route = Route {
                server: other,
                local: local.ip(),
            };
            self.open_relay(now, server, route, redirects);
        }
    }

    /// Takes outgoing packets and events from the allocations.
    fn collect(&mut self) {
        let mut failures = Vec::new();
        let (outgoing, findings, demands) =
            (&mut self.outgoing, &mut self.findings, &mut self.demands);
        self.relays.retain_mut(|relay| {
            let Some(allocation) = &mut relay.allocation else {
                return true;
            };
            for data in allocation.transmits.drain(..) {
                outgoing.push_back(match relay.wire {
                    Wire::Udp { local, server } => Outgoing::Udp {
                        local,
                        server,
                        data,
                    },
                    Wire::Link { link, .. } => Outgoing::Link { link, data },
                });
            }
            if matches!(allocation.events.front(), Some(TurnEvent::Redirected(_))) {
                return true;
            }
            let local = relay.wire.local();
            for event in allocation.events.drain(..) {
                match event {
                    TurnEvent::Allocated { relayed, mapped } => {
                        let Some(local) = local else { continue };
                        relay.announced = Some(relayed);
                        findings.push_back(Finding::Relayed {
                            address: relayed,
                            local,
                        });
                        // A TURN server also tells the reflexive address of this side.
                        if let (Some(address), Wire::Udp { .. }) = (mapped, relay.wire)
                            && address != local
                        {
                            findings.push_back(Finding::Reflexive {
                                address,
                                base: local,
                            });
                        }
                    }
                    TurnEvent::Refused(refusal) | TurnEvent::Lost(refusal) => {
                        failures.push((relay.server.url.clone(), local, refusal));
                    }
                    TurnEvent::Redirected(_) => {}
                }
            }
            if allocation.is_over() {
                if let Some(address) = relay.announced {
                    findings.push_back(Finding::RelayLost { address });
                }
                if let Wire::Link { link, .. } = relay.wire {
                    demands.push_back(Demand::Disconnect { link });
                }
                return false;
            }
            true
        });
        for (url, local, Refusal { code, reason }) in failures {
            self.fail(&url, local, code, reason);
        }
        let asking = self.relays.iter().any(|relay| relay.relayed().is_none());
        if self.running && self.queries.is_empty() && self.bindings.is_empty() && !asking {
            self.running = false;
            self.findings.push_back(Finding::Complete);
        }
    }

    /// When [`Self::handle_timeout`] is to be called.
    pub fn next_timeout(&self) -> Option<Instant> {
        let bindings = self
            .bindings
            .iter()
            .map(|binding| binding.transaction.next_timeout());
        let relays = self
            .relays
            .iter()
            .filter_map(|relay| relay.allocation.as_ref()?.next_timeout());
        bindings.chain(relays).min()
    }

    /// Releases all relays. What is still to be sent lies in `outgoing` afterwards.
    pub fn close(&mut self) {
        for relay in &mut self.relays {
            if let Some(allocation) = &mut relay.allocation {
                allocation.close();
            }
        }
        (self.queries, self.bindings, self.in_reserve) = (vec![], vec![], vec![]);
        self.collect();
    }
}

impl Relay {
    fn relayed(&self) -> Option<SocketAddr> {
        self.allocation.as_ref()?.relayed()
    }

    fn has_link(&self, wanted: u32) -> bool {
        matches!(self.wire, Wire::Link { link, .. } if link == wanted)
    }
}

impl Wire {
    fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Udp { local, .. } => Some(*local),
            Self::Link { local, .. } => *local,
        }
    }
}

fn allocate(now: Instant, server: &Server, wire: Wire, ipv6: bool) -> Option<Allocation> {
    let Service::Turn { username, password } = &server.service else {
        return None;
    };
    let over_stream = matches!(wire, Wire::Link { .. });
    Some(Allocation::new(now, username, password, over_stream, ipv6))
}

/// Whether a packet from a TURN server is a TURN message or data in a channel (RFC 7983), and not
/// media of a peer at the same address.
fn is_for_relay(packet: &[u8]) -> bool {
    match packet.first() {
        Some(0x40..=0x4f) => true,
        Some(0..=3) => Message::parse(packet).is_ok_and(|it| it.method != Method::Binding),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
