//! One allocation on a TURN server (RFC 8656): a relay address, through which peers are reached.
//!
//! Knows nothing about sockets: packets of the server go into [`Allocation::handle`], packets for
//! it lie in `transmits`, and changes of the allocation in `events`.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::stun::{
    Class, Due, Message, Method, Transaction, TransactionId, Writer, attribute, long_term_key,
};

/// A permission lasts 5 minutes (RFC 8656, section 9). It is renewed while there is time to try
/// again.
const RENEW_PERMISSION: Duration = Duration::from_secs(4 * 60);
/// A channel lasts 10 minutes (RFC 8656, section 12).
const RENEW_CHANNEL: Duration = Duration::from_secs(8 * 60);
/// A peer to which nothing was sent for so long is removed.
const PEER_IDLE: Duration = Duration::from_secs(5 * 60);
/// An allocation is renewed this long before it ends.
const RENEW_BEFORE_END: Duration = Duration::from_secs(60);
/// The lifetime to assume for a server that does not say how long an allocation lasts (RFC 8656,
/// section 3.2).
const DEFAULT_LIFETIME_S: u32 = 600;
/// Peers of one allocation: each is an address that the other side has offered. More are not
/// reached through it.
const MOST_PEERS: usize = 64;
/// Packets that wait for the permission of their peer. When there are more, the oldest is dropped:
/// checks are repeated anyway.
const MOST_WAITING: usize = 8;
/// How often in a row a request is sent again with another nonce.
const MOST_NONCES: u8 = 3;
/// Channels have the numbers 0x4000 to 0x4fff (RFC 8656, section 12).
const FIRST_CHANNEL: u16 = 0x4000;
const LAST_CHANNEL: u16 = 0x4fff;
/// Number of UDP among the protocols of IP, for REQUESTED-TRANSPORT.
const UDP: u8 = 17;

const UNAUTHORIZED: u16 = 401;
const TRY_ALTERNATE: u16 = 300;
const STALE_NONCE: u16 = 438;
const FAMILY_NOT_SUPPORTED: u16 = 440;
/// Code for a server that does not answer, which is no STUN code (W3C WebRTC,
/// RTCPeerConnectionIceErrorEvent).
pub(crate) const UNREACHABLE: u16 = 701;

/// Why a server refuses a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The code of the error response, or [`UNREACHABLE`].
    pub code: u16,
    pub reason: String,
}

/// A change of the allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TurnEvent {
    Allocated {
        relayed: SocketAddr,
        /// The reflexive address of this side.
        mapped: Option<SocketAddr>,
    },
    /// The allocation was refused: there will be no relay.
    Refused(Refusal),
    /// The server redirects to another one (ALTERNATE-SERVER).
    Redirected(SocketAddr),
    /// The relay is gone.
    Lost(Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asking,
    Ready { relayed: SocketAddr, ends: Instant },
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Allocate,
    Refresh,
    Permission(SocketAddr),
    Channel(SocketAddr),
}

struct Request {
    purpose: Purpose,
    transaction: Transaction,
    nonces: u8,
}

/// State of a peer's permission or channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right {
    Asked,
    Granted { renew: Instant },
    Refused,
}

struct Peer {
    address: SocketAddr,
    channel: u16,
    permission: Right,
    binding: Right,
    waiting: VecDeque<Vec<u8>>,
    last_used: Instant,
}

/// A client of one TURN server. See the module's documentation.
pub(crate) struct Allocation {
    username: String,
    password: String,
    over_stream: bool,
    /// Whether to ask for a relay address of IPv6.
    ipv6: bool,
    stage: Stage,
    realm: Vec<u8>,
    nonce: Vec<u8>,
    /// Known once the server has sent its realm.
    key: Option<[u8; 16]>,
    renew: Option<Instant>,
    requests: Vec<Request>,
    peers: Vec<Peer>,
    next_channel: u16,
    pub transmits: VecDeque<Vec<u8>>,
    pub events: VecDeque<TurnEvent>,
}

impl Allocation {
    /// Asks for an allocation. `over_stream`: the server is reached through TCP or TLS.
    pub fn new(
        now: Instant,
        username: &str,
        password: &str,
        over_stream: bool,
        ipv6: bool,
    ) -> Self {
        let mut allocation = Self {
            username: username.to_owned(),
            password: password.to_owned(),
            over_stream,
            ipv6,
            stage: Stage::Asking,
            realm: vec![],
            nonce: vec![],
            key: None,
            renew: None,
            requests: vec![],
            peers: vec![],
            next_channel: FIRST_CHANNEL,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        };
        allocation.ask(now, Purpose::Allocate, 0);
        allocation.handle_timeout(now);
        allocation
    }

    pub fn relayed(&self) -> Option<SocketAddr> {
        match self.stage {
            Stage::Ready { relayed, .. } => Some(relayed),
            _ => None,
        }
    }

    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    fn ask(&mut self, now: Instant, purpose: Purpose, nonces: u8) {
        let id = TransactionId::random();
        let writer = match purpose {
            Purpose::Allocate => {
                let writer = Writer::new(Method::Allocate, Class::Request, id)
                    .attribute(attribute::REQUESTED_TRANSPORT, &[UDP, 0, 0, 0]);
                match self.ipv6 {
                    true => writer.attribute(attribute::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]),
                    false => writer,
                }
            }
            Purpose::Refresh => Writer::new(Method::Refresh, Class::Request, id),
            Purpose::Permission(peer) => Writer::new(Method::CreatePermission, Class::Request, id)
                .address(attribute::XOR_PEER_ADDRESS, peer),
            Purpose::Channel(address) => {
                let channel = self.peers.iter().find(|peer| peer.address == address);
                let Some(channel) = channel.map(|peer| peer.channel.to_be_bytes()) else {
                    return;
                };
                Writer::new(Method::ChannelBind, Class::Request, id)
                    .attribute(attribute::CHANNEL_NUMBER, &[channel[0], channel[1], 0, 0])
                    .address(attribute::XOR_PEER_ADDRESS, address)
            }
        };
        let transaction = Transaction::new(now, id, self.sign(writer), self.over_stream);
        self.requests.push(Request {
            purpose,
            transaction,
            nonces,
        });
    }

    fn sign(&self, writer: Writer) -> Vec<u8> {
        match &self.key {
            None => writer.finish(),
            Some(key) => writer
                .attribute(attribute::USERNAME, self.username.as_bytes())
                .attribute(attribute::REALM, &self.realm)
                .attribute(attribute::NONCE, &self.nonce)
                .integrity(key)
                .finish(),
        }
    }

    /// Sends to a peer through the relay; data waits until the peer has a permission.
    pub fn send(&mut self, now: Instant, address: SocketAddr, data: &[u8]) {
        if self.relayed().is_none() {
            return;
        }
        let known = self.peers.iter().position(|peer| peer.address == address);
        let index = match known {
            Some(index) => index,
            None => match self.add_peer(now, address) {
                Some(index) => index,
                None => return,
            },
        };
        if now >= self.peers[index].last_used + PEER_IDLE {
            // Its permission has expired.
            let peer = &mut self.peers[index];
            (peer.permission, peer.binding) = (Right::Asked, Right::Asked);
            self.ask(now, Purpose::Permission(address), 0);
            self.ask(now, Purpose::Channel(address), 0);
        }
        let peer = &mut self.peers[index];
        peer.last_used = now;
        match (peer.binding, peer.permission) {
            (Right::Granted { .. }, _) => {
                let packet = channel_data(peer.channel, data, self.over_stream);
                self.transmits.extend(packet);
            }
            (_, Right::Granted { .. }) => self.transmits.push_back(send_indication(address, data)),
            (Right::Asked, _) | (_, Right::Asked) => {
                if peer.waiting.len() == MOST_WAITING {
                    peer.waiting.pop_front();
                }
                peer.waiting.push_back(data.to_vec());
            }
            (Right::Refused, Right::Refused) => {}
        }
        // A new permission is requested at once.
        self.handle_timeout(now);
    }

    fn add_peer(&mut self, now: Instant, address: SocketAddr) -> Option<usize> {
        if self.peers.len() == MOST_PEERS || self.next_channel > LAST_CHANNEL {
            log::debug!("no more peers can be reached through this relay: {address} is left out");
            return None;
        }
        self.peers.push(Peer {
            address,
            channel: self.next_channel,
            permission: Right::Asked,
            binding: Right::Asked,
            waiting: VecDeque::new(),
            last_used: now,
        });
        self.next_channel += 1;
        self.ask(now, Purpose::Permission(address), 0);
        self.ask(now, Purpose::Channel(address), 0);
        Some(self.peers.len() - 1)
    }

    /// Takes a packet of the server, which over TCP must be one whole message. Returns data that a
    /// peer has sent through the relay.
    pub fn handle<'a>(&mut self, now: Instant, packet: &'a [u8]) -> Option<(SocketAddr, &'a [u8])> {
        if let Some((channel, data)) = read_channel_data(packet) {
            let peer = self.peers.iter().find(|peer| peer.channel == channel)?;
            return Some((peer.address, data));
        }
        let message = Message::parse(packet).ok()?;
        match (message.class, message.method) {
            (Class::Indication, Method::Data) => {
                let peer = message.address(attribute::XOR_PEER_ADDRESS)?;
                Some((peer, message.attribute(attribute::DATA)?))
            }
            (Class::Success | Class::Error, _) => {
                self.answered(now, &message);
                self.handle_timeout(now);
                None
            }
            _ => None,
        }
    }

    fn answered(&mut self, now: Instant, message: &Message) {
        let index = self
            .requests
            .iter()
            .position(|request| request.transaction.id == message.id);
        let Some(index) = index else { return };
        if message.class == Class::Success {
            // An attacker who guesses a transaction id must not be able to answer it.
            let proven = self.key.is_some_and(|key| message.is_from_holder_of(&key));
            if !proven {
                log::debug!("an answer of a TURN server is not signed with the password: ignored");
                return;
            }
            let request = self.requests.swap_remove(index);
            self.granted(now, request.purpose, message);
            return;
        }
        let Some((code, reason)) = message.error() else {
            return;
        };
        let request = self.requests.swap_remove(index);
        if code == STALE_NONCE || (code == UNAUTHORIZED && self.key.is_none()) {
            let nonce = message.attribute(attribute::NONCE);
            let realm = message.attribute(attribute::REALM);
            if let (Some(nonce), Some(realm)) = (nonce, realm.or(self.key.map(|_| &*self.realm))) {
                let (nonce, realm) = (nonce.to_vec(), realm.to_vec());
                self.key = Some(long_term_key(&self.username, &realm, &self.password));
                (self.nonce, self.realm) = (nonce, realm);
                if request.nonces < MOST_NONCES {
                    self.ask(now, request.purpose, request.nonces + 1);
                    return;
                }
            }
        }
        if code == FAMILY_NOT_SUPPORTED && self.ipv6 && request.purpose == Purpose::Allocate {
            self.ipv6 = false;
            self.ask(now, Purpose::Allocate, request.nonces);
            return;
        }
        if code == TRY_ALTERNATE
            && request.purpose == Purpose::Allocate
            && let Some(other) = message.plain_address(attribute::ALTERNATE_SERVER)
        {
            self.end(TurnEvent::Redirected(other));
            return;
        }
        self.refused(request.purpose, Refusal { code, reason });
    }

    fn granted(&mut self, now: Instant, purpose: Purpose, message: &Message) {
        match purpose {
            Purpose::Allocate | Purpose::Refresh => {
                let lifetime = message.number(attribute::LIFETIME);
                let lifetime = Duration::from_secs(lifetime.unwrap_or(DEFAULT_LIFETIME_S).into());
                let relayed = match self.stage {
                    Stage::Ready { relayed, .. } => Some(relayed),
                    _ => message.address(attribute::XOR_RELAYED_ADDRESS),
                };
                let Some(relayed) = relayed else {
                    let reason = "the TURN server has answered without a relay address".to_owned();
                    self.refused(
                        purpose,
                        Refusal {
                            code: UNREACHABLE,
                            reason,
                        },
                    );
                    return;
                };
                let ends = now + lifetime;
                self.stage = Stage::Ready { relayed, ends };
                self.renew =
                    Some(now + (lifetime / 2).max(lifetime.saturating_sub(RENEW_BEFORE_END)));
                if purpose == Purpose::Allocate {
                    let mapped = message.address(attribute::XOR_MAPPED_ADDRESS);
                    self.events
                        .push_back(TurnEvent::Allocated { relayed, mapped });
                }
            }
            Purpose::Permission(address) => {
                let Some(peer) = self.peers.iter_mut().find(|it| it.address == address) else {
                    return;
                };
                let renew = now + RENEW_PERMISSION;
                peer.permission = Right::Granted { renew };
                for data in peer.waiting.drain(..) {
                    self.transmits.push_back(send_indication(address, &data));
                }
            }
            Purpose::Channel(address) => {
                let Some(peer) = self.peers.iter_mut().find(|it| it.address == address) else {
                    return;
                };
                let renew = now + RENEW_CHANNEL;
                peer.binding = Right::Granted { renew };
                for data in peer.waiting.drain(..) {
                    let packet = channel_data(peer.channel, &data, self.over_stream);
                    self.transmits.extend(packet);
                }
            }
        }
    }

    fn refused(&mut self, purpose: Purpose, refusal: Refusal) {
        match purpose {
            Purpose::Allocate => self.end(TurnEvent::Refused(refusal)),
            Purpose::Refresh => self.end(TurnEvent::Lost(refusal)),
            Purpose::Permission(address) | Purpose::Channel(address) => {
                log::debug!(
                    "the TURN server refuses {address}: {} {}",
                    refusal.code,
                    refusal.reason
                );
                if let Some(peer) = self.peers.iter_mut().find(|it| it.address == address) {
                    match purpose {
                        Purpose::Permission(_) => peer.permission = Right::Refused,
                        _ => peer.binding = Right::Refused,
                    }
                    if peer.permission == Right::Refused && peer.binding == Right::Refused {
                        peer.waiting.clear();
                    }
                }
            }
        }
    }

    fn end(&mut self, event: TurnEvent) {
        self.stage = Stage::Over;
        self.renew = None;
        self.requests.clear();
        self.peers.clear();
        self.events.push_back(event);
    }

    /// Does everything that is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.is_over() {
            return;
        }
        self.renew_rights(now);
        let mut given_up = Vec::new();
        for request in &mut self.requests {
            match request.transaction.due(now) {
                Due::Nothing => {}
                Due::Send(bytes) => self.transmits.push_back(bytes.to_vec()),
                Due::GiveUp => given_up.push(request.transaction.id),
            }
        }
        for id in given_up {
            let index = self.requests.iter().position(|it| it.transaction.id == id);
            if let Some(index) = index {
                let purpose = self.requests.swap_remove(index).purpose;
                self.unanswered(now, purpose);
            }
        }
    }

    fn renew_rights(&mut self, now: Instant) {
        if self.renew.is_some_and(|at| now >= at) {
            self.renew = None;
            self.ask(now, Purpose::Refresh, 0);
        }
        let mut wanted = Vec::new();
        for peer in &mut self.peers {
            let idle = now >= peer.last_used + PEER_IDLE;
            for (right, purpose) in [
                (&mut peer.permission, Purpose::Permission(peer.address)),
                (&mut peer.binding, Purpose::Channel(peer.address)),
            ] {
                if let Right::Granted { renew } = right
                    && now >= *renew
                {
                    // The response sets the next renewal; an idle peer gets a new channel when it
                    // is used again.
                    *renew = now + RENEW_CHANNEL;
                    if !idle {
                        wanted.push(purpose);
                    }
                }
            }
        }
        for purpose in wanted {
            self.ask(now, purpose, 0);
        }
        // A channel number is never used again, so late data cannot be assigned to another peer.
        self.peers
            .retain(|peer| now < peer.last_used + PEER_IDLE + RENEW_CHANNEL);
    }

    fn unanswered(&mut self, now: Instant, purpose: Purpose) {
        let reason = || Refusal {
            code: UNREACHABLE,
            reason: "the TURN server does not answer".to_owned(),
        };
        match (purpose, self.stage) {
            // The allocation lasts as long as it was granted for, and until then the refresh is
            // tried again.
            (Purpose::Refresh, Stage::Ready { ends, .. }) if now < ends => {
                self.ask(now, Purpose::Refresh, 0);
                self.handle_timeout(now);
            }
            // A network failure for a while must not cost the peer.
            (Purpose::Permission(address) | Purpose::Channel(address), _) => {
                let peer = self.peers.iter().find(|peer| peer.address == address);
                if peer.is_some_and(|peer| now < peer.last_used + PEER_IDLE) {
                    self.ask(now, purpose, 0);
                    self.handle_timeout(now);
                }
            }
            _ => self.refused(purpose, reason()),
        }
    }

    /// When [`Self::handle_timeout`] is to be called next.
    pub fn next_timeout(&self) -> Option<Instant> {
        let requests = self
            .requests
            .iter()
            .map(|request| request.transaction.next_timeout());
        let rights = self.peers.iter().flat_map(|peer| {
            let idle_at = peer.last_used + PEER_IDLE;
            [peer.permission, peer.binding]
                .into_iter()
                .filter_map(move |right| match right {
                    Right::Granted { renew } if renew < idle_at => Some(renew),
                    _ => None,
                })
        });
        requests.chain(rights).chain(self.renew).min()
    }

    /// Notes that the connection to the server has broken.
    pub fn connection_lost(&mut self, reason: String) {
        let refusal = Refusal {
            code: UNREACHABLE,
            reason,
        };
        match self.stage {
            Stage::Asking => self.end(TurnEvent::Refused(refusal)),
            Stage::Ready { .. } => self.end(TurnEvent::Lost(refusal)),
            Stage::Over => {}
        }
    }

    /// Releases the allocation. The last message lies in `transmits`; its answer is not waited for.
    pub fn close(&mut self) {
        if self.relayed().is_some() {
            let writer = Writer::new(Method::Refresh, Class::Request, TransactionId::random())
                .attribute(attribute::LIFETIME, &0u32.to_be_bytes());
            let bytes = self.sign(writer);
            self.transmits.push_back(bytes);
        }
        self.stage = Stage::Over;
        self.renew = None;
        self.requests.clear();
        self.peers.clear();
    }
}

fn send_indication(peer: SocketAddr, data: &[u8]) -> Vec<u8> {
    Writer::new(Method::Send, Class::Indication, TransactionId::random())
        .address(attribute::XOR_PEER_ADDRESS, peer)
        .attribute(attribute::DATA, data)
        .finish()
}

/// A ChannelData message. Over TCP and TLS it is padded to a multiple of four bytes (RFC 8656,
/// section 12.5).
fn channel_data(channel: u16, data: &[u8], over_stream: bool) -> Option<Vec<u8>> {
    let length = u16::try_from(data.len()).ok()?;
    let mut packet = Vec::with_capacity(data.len() + 8);
    packet.extend_from_slice(&channel.to_be_bytes());
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(data);
    if over_stream {
        packet.resize(packet.len().next_multiple_of(4), 0);
    }
    Some(packet)
}

fn read_channel_data(packet: &[u8]) -> Option<(u16, &[u8])> {
    let header = packet.get(..4)?;
    let channel = u16::from_be_bytes([header[0], header[1]]);
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if !(FIRST_CHANNEL..=LAST_CHANNEL).contains(&channel) {
        return None;
    }
    Some((channel, packet.get(4..4 + length)?))
}

/// Takes the next whole message from what has come over TCP or TLS; `None` while it is incomplete.
///
/// # Errors
///
/// When the bytes cannot be TURN.
pub(crate) fn take_message(buffer: &mut Vec<u8>) -> Result<Option<Vec<u8>>, NotTurn> {
    let Some(header) = buffer.get(..4) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let whole = match header[0] >> 6 {
        0 => 20 + length,
        1 => (4 + length).next_multiple_of(4),
        _ => return Err(NotTurn),
    };
    if buffer.len() < whole {
        return Ok(None);
    }
    let rest = buffer.split_off(whole);
    Ok(Some(std::mem::replace(buffer, rest)))
}

/// What comes over a connection to a TURN server is not TURN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server sends what is not TURN")]
pub(crate) struct NotTurn;

#[cfg(test)]
pub(super) mod tests;
