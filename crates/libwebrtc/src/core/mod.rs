//! One peer connection without sockets and clocks.
//!
//! [`Core`] owns the str0m instance, which does ICE, DTLS, SRTP and SCTP, and the [`Negotiation`],
//! which decides what is offered and agreed on. Time comes in as an argument. What is to be sent
//! lies in `transmits`, what the application is to be told in `events`, both in order;
//! `next_timeout` says when to call again without input.
//!
//! str0m never writes offers or answers here: it is always told of the other side by an offer that
//! contains exactly what both sides have agreed on ([`Agreement`]).

pub(crate) mod channel;
#[cfg(test)]
mod data_tests;
#[cfg(test)]
mod media_tests;
#[cfg(test)]
mod order_tests;
pub(crate) mod report;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use str0m::{
    Candidate, CandidateKind, Event as RtcEvent, IceConnectionState as EngineIceState, IceCreds,
    Input, Output, Rtc,
    change::SdpOffer,
    channel::ChannelId,
    error::{IceError, ProtoError, RtcError as EngineError, SctpError},
    media::Mid,
    net::{Protocol, Receive, TcpType, Transmit},
    rtp::{Extension, ExtensionMap, ExtensionValues, RtpPacket, RtpWrite, Ssrc},
};

use self::{
    channel::Channel,
    report::{Counters, ReceivedStream, SentStream},
};
use crate::{
    MediaType, RtcError,
    audio::{
        encoder::{EncodedAudio, OpusSendConfig},
        receiver::{AudioReceiver, RtpAudioPacket},
    },
    connection::Connection,
    data_channel::{DataChannelError, DataChannelInit, DataChannelState},
    ice::{gather::ServerFailure, stun},
    jsep::{
        negotiation::{
            Agreement, LocalTransport, Negotiation, Redundancy, Transceiver as Negotiated,
        },
        sdp::{Codec, Direction, Kind},
    },
    media_stream_track::MediaStreamTrack,
    native::create_random_uuid,
    peer_connection::{IceConnectionState, IceGatheringState, PeerConnectionState, SignalingState},
    peer_connection_factory::{IceServer, IceTransportsType},
    rtp::{SendStream, Transceiver, TransceiverView},
    rtp_transceiver::{RtpTransceiverDirection, RtpTransceiverInit},
    session_description::{SdpType, SessionDescription},
};

/// A connection on which nothing arrives for so long is disconnected. Connectivity checks are
/// answered every second even when nothing else is sent; Google's engine shows a lost path after
/// about the same time.
const DISCONNECTED_AFTER_SILENCE: Duration = Duration::from_secs(5);
/// How long a connection may be disconnected before it counts as failed. Google's engine takes 15 s
/// or more from the last packet; livekit then looks for another way.
const FAILED_AFTER_DISCONNECT: Duration = Duration::from_secs(12);
/// How long the first connectivity checks may take.
const FAILED_AFTER_CHECKING: Duration = Duration::from_secs(30);
/// A connection none of whose checks has been answered for so long is disconnected, even when
/// packets arrive: the other side may not want them any more (RFC 7675 allows 30 s).
const DISCONNECTED_WITHOUT_CONSENT: Duration = Duration::from_secs(5);
/// How often ICE may take a step (an answer, or a check) while it looks for a path. RFC 8445,
/// section 14.2, wants 5 ms or more; left alone, the engine takes one each 50 ms, and most of the
/// time to connect nearby would be waiting.
const HURRIED_PACE: Duration = Duration::from_millis(5);
/// How long it hurries after it has learned of new ways.
const HURRIED_FOR: Duration = Duration::from_millis(500);
/// A path on which nothing arrives for so long is left for another one that works, if there is one.
/// Google's receiving time-out.
const SWITCH_AFTER_SILENCE: Duration = Duration::from_millis(2500);
/// A candidate to which something came less than this ago works. Less than
/// [`SWITCH_AFTER_SILENCE`]: its last packet may have come just before the path in use went silent,
/// by what took both away.
const FRESH_PROOF: Duration = Duration::from_millis(1250);
/// Relays are asked for when no direct path has come up in this time: longer than a connection to
/// the other side of the world takes. A relay that is not needed costs the server an allocation and
/// this side a check each second.
const RELAYS_AFTER_START: Duration = Duration::from_millis(400);
/// Relays are asked for when the path has been silent for so long; checks are answered every
/// second.
const RELAYS_AFTER_SILENCE: Duration = Duration::from_millis(1500);

/// How often the other side is told what of its sound was lost, so that it can protect the rest.
const RECEPTION_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes that SCTP keeps for all channels of a connection; more is refused. Google's limit of one
/// channel.
const MAX_BUFFERED_BYTES: usize = 16 * 1024 * 1024;

/// What the application is to be told.
pub(crate) enum Event {
    IceCandidate {
        mid: String,
        candidate: String,
    },
    /// A STUN or TURN server of the configuration has given nothing.
    ServerFailed(ServerFailure),
    /// For the driver: ask the servers.
    Gather(Vec<IceServer>),
    ConnectionState(PeerConnectionState),
    IceState(IceConnectionState),
    Signaling(SignalingState),
    Gathering(IceGatheringState),
    NegotiationNeeded,
    Track(Arc<Transceiver>),
    Channel(Arc<Channel>),
    ChannelState(Arc<Channel>, DataChannelState),
    ChannelMessage {
        channel: Arc<Channel>,
        data: Vec<u8>,
        binary: bool,
    },
    ChannelDrained(Arc<Channel>, u64),
    /// The application reads this channel now.
    FlushEarlyMessages,
}

/// A candidate of this side.
struct LocalCandidate {
    candidate: Candidate,
    /// As in SDP; `None` for one that the other side cannot do anything with.
    text: Option<String>,
    /// When the last packet came to it.
    received: Option<Instant>,
}

impl LocalCandidate {
    /// Whether a path begins here.
    fn is_at(&self, path: Path) -> bool {
        self.candidate.addr() == path.local && self.candidate.proto() == path.protocol
    }

    /// Whether it has just shown that it works.
    fn lives(&self, now: Instant) -> bool {
        self.received.is_some_and(|at| now < at + FRESH_PROOF)
    }
}

/// Where packets for the other side go.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Path {
    protocol: Protocol,
    local: SocketAddr,
    remote: SocketAddr,
}

impl Path {
    fn of(transmit: &Transmit) -> Self {
        Self {
            protocol: transmit.proto,
            local: transmit.source,
            remote: transmit.destination,
        }
    }
}

struct Incoming {
    mid: Mid,
    /// Number of the transceiver.
    index: Option<usize>,
    audio: Option<Arc<AudioReceiver>>,
    stream: ReceivedStream,
}

/// See the module.
pub(crate) struct Core {
    rtc: Rtc,
    negotiation: Negotiation,
    connection: Weak<Connection>,
    /// Beside `negotiation.transceivers`, with the same numbers.
    transceivers: Vec<Arc<Transceiver>>,
    channels: Vec<Arc<Channel>>,
    channels_opened: u32,
    channels_closed: u32,
    cname: String,
    stream_id: String,
    policy: IceTransportsType,
    /// Sockets of this side, whether the policy lets them be candidates or not.
    sockets: Vec<Candidate>,
    candidates: Vec<LocalCandidate>,
    gathering: IceGatheringState,
    /// User name of ICE for which candidates were gathered last, and when.
    gathered_for: Option<(String, Instant)>,
    path: Option<Path>,
    /// What the last check has nominated that nominates something.
    nominated: Option<Path>,
    /// Paths that were nominated before, and still are for the engine below.
    superseded: Vec<Path>,
    /// When the last packet came on `path`.
    path_received: Instant,
    /// Whether the silence since then has led to a look at other paths.
    path_doubted: bool,
    /// The path went through a relay that is gone.
    relay_gone: bool,
    /// Whether there was a path since the beginning or the last failure.
    had_path: bool,
    /// Since when no pair of candidates is confirmed, although there was one.
    unconfirmed_since: Option<Instant>,
    /// All pairs of candidates have failed: they are to be tried afresh.
    recheck: bool,
    /// Candidates of the other side that came before its description was in effect.
    early_candidates: Vec<Candidate>,
    restart_requested: bool,
    /// ICE takes its steps faster until then.
    hurries_until: Instant,
    ice: EngineIceState,
    dtls_connected: bool,
    /// The other side has closed its end, which cannot be undone.
    ended_by_peer: bool,
    failed: bool,
    closed: bool,
    published_state: PeerConnectionState,
    published_ice: IceConnectionState,
    /// When the last packet came.
    last_received: Instant,
    /// Since when there has been no connection although there should be one.
    without_connection_since: Option<Instant>,
    sent: HashMap<Mid, SentStream>,
    incoming: HashMap<Ssrc, Incoming>,
    counters: Counters,
    pub transmits: VecDeque<Transmit>,
    pub events: VecDeque<Event>,
    pub next_timeout: Instant,
}

impl Core {
    pub fn new(now: Instant, connection: Weak<Connection>) -> Self {
        let mut extensions = ExtensionMap::empty();
        extensions.set(1, Extension::AudioLevel);
        extensions.set(2, Extension::AbsoluteSendTime);
        extensions.set(3, Extension::TransportSequenceNumber);
        extensions.set(4, Extension::RtpMid);
        let mut config = Rtc::builder()
            .set_rtp_mode(true)
            .clear_codecs()
            .enable_opus(true, true)
            .enable_vp8(true)
            .set_extension_map(extensions)
            .set_sctp_max_buffered_amount(MAX_BUFFERED_BYTES)
            .set_rtcp_report_interval_audio(RECEPTION_REPORT_INTERVAL)
            .set_stats_interval(Some(Duration::from_secs(1)));
        // A check every second, so that a lost path shows soon.
        config.set_max_stun_retransmits(6);
        config.set_max_stun_rto(Duration::from_secs(1));
        Self {
            rtc: config.build(now),
            // The session id must fit into 63 bits (RFC 8829, section 5.2.1).
            negotiation: Negotiation::new(rand::random::<u64>() >> 2),
            connection,
            transceivers: vec![],
            channels: vec![],
            channels_opened: 0,
            channels_closed: 0,
            cname: create_random_uuid(),
            stream_id: create_random_uuid(),
            policy: IceTransportsType::All,
            sockets: vec![],
            candidates: vec![],
            gathering: IceGatheringState::New,
            gathered_for: None,
            path: None,
            nominated: None,
            superseded: Vec::new(),
            path_received: now,
            path_doubted: false,
            relay_gone: false,
            had_path: false,
            unconfirmed_since: None,
            recheck: false,
            early_candidates: vec![],
            restart_requested: false,
            hurries_until: now,
            ice: EngineIceState::New,
            dtls_connected: false,
            ended_by_peer: false,
            failed: false,
            closed: false,
            published_state: PeerConnectionState::New,
            published_ice: IceConnectionState::New,
            last_received: now,
            without_connection_since: None,
            sent: HashMap::new(),
            incoming: HashMap::new(),
            counters: Counters::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            next_timeout: now,
        }
    }

    // ---- transport ----

    /// Decides which candidates may be used.
    pub fn set_policy(&mut self, policy: IceTransportsType) {
        if self.policy == policy {
            return;
        }
        self.policy = policy;
        for candidate in std::mem::take(&mut self.candidates) {
            match self.is_allowed(candidate.candidate.kind()) {
                true => self.candidates.push(candidate),
                false => {
                    let mut direct = self.rtc.direct_api();
                    direct.invalidate_candidate(&candidate.candidate);
                }
            }
        }
        for socket in self.sockets.clone() {
            self.add_candidate(socket);
        }
    }

    fn is_allowed(&self, kind: CandidateKind) -> bool {
        match self.policy {
            IceTransportsType::All => true,
            IceTransportsType::NoHost => kind != CandidateKind::Host,
            IceTransportsType::Relay => kind == CandidateKind::Relayed,
        }
    }

    /// Adds a UDP socket of this side.
    pub fn add_udp_candidate(&mut self, address: SocketAddr) {
        self.add_socket(Candidate::host(address, Protocol::Udp), address);
    }

    /// Lets connections be opened to TCP candidates of the other side. They are not announced: the
    /// other side cannot do anything with the address of a side that only opens connections (RFC
    /// 6544, section 4.1).
    pub fn add_active_tcp_candidate(&mut self, address: SocketAddr) {
        let builder = Candidate::builder().tcp().host(address);
        self.add_socket(builder.tcptype(TcpType::Active).build(), address);
    }

    fn add_socket(&mut self, candidate: Result<Candidate, IceError>, address: SocketAddr) {
        match candidate {
            Ok(candidate) => {
                self.sockets.push(candidate.clone());
                self.add_candidate(candidate);
            }
            Err(error) => log::debug!("{address} is no candidate: {error}"),
        }
    }

    /// Adds the address under which a socket is seen from outside.
    pub fn add_reflexive_candidate(&mut self, now: Instant, address: SocketAddr, base: SocketAddr) {
        match Candidate::server_reflexive(address, base, Protocol::Udp) {
            Ok(candidate) => self.add_candidate(candidate),
            Err(error) => log::debug!("{address} is no candidate: {error}"),
        }
        self.poll(now);
    }

    /// Adds an address on a TURN server, which is reached from `local`.
    pub fn add_relayed_candidate(&mut self, now: Instant, address: SocketAddr, local: SocketAddr) {
        match Candidate::relayed(address, local, Protocol::Udp) {
            Ok(candidate) => self.add_candidate(candidate),
            Err(error) => log::debug!("{address} is no candidate: {error}"),
        }
        self.poll(now);
    }

    /// Lets go of a relay whose server is gone. If packets went over it, there is nothing to wait
    /// for: without any other way the connection has failed, as in Google's engine when its
    /// connection to a TURN server breaks.
    pub fn relay_lost(&mut self, now: Instant, address: SocketAddr) {
        if self.path.is_some_and(|path| path.local == address) {
            self.relay_gone = true;
            self.try_afresh(|it| it.candidate.addr() != address && !it.lives(now));
        }
        self.remove_local(now, address);
    }

    /// Lets go of everything that was sent from an address: a socket whose interface is gone, or a
    /// relay.
    pub fn remove_local(&mut self, now: Instant, address: SocketAddr) {
        self.sockets.retain(|socket| socket.addr() != address);
        let (gone, kept) = std::mem::take(&mut self.candidates)
            .into_iter()
            .partition(|it| it.candidate.addr() == address || it.candidate.local() == address);
        self.candidates = kept;
        for LocalCandidate { candidate, .. } in gone {
            self.rtc.direct_api().invalidate_candidate(&candidate);
        }
        self.poll(now);
    }

    fn add_candidate(&mut self, candidate: Candidate) {
        let known = self.candidates.iter().any(|it| it.candidate == candidate);
        if self.closed || known || !self.is_allowed(candidate.kind()) {
            return;
        }
        // A candidate that adds nothing to those before is not taken.
        let Some(added) = self.rtc.add_local_candidate(candidate.clone()) else {
            return;
        };
        let text = (candidate.proto() == Protocol::Udp).then(|| {
            let text = added.to_sdp_string();
            // The credentials change with every restart of ICE, the candidates do not.
            text.split(" ufrag ").next().unwrap_or(&text).to_owned()
        });
        if let (Some(text), Some(_)) = (&text, &self.gathered_for) {
            let (mid, candidate) = (self.negotiation.first_mid(), text.clone());
            self.events
                .push_back(Event::IceCandidate { mid, candidate });
        }
        self.candidates.push(LocalCandidate {
            candidate,
            text,
            received: None,
        });
    }

    /// A STUN or TURN server has given nothing.
    pub fn server_failed(&mut self, failure: ServerFailure) {
        self.events.push_back(Event::ServerFailed(failure));
    }

    /// The servers have all answered or were given up.
    pub fn gathering_complete(&mut self) {
        if self.gathering != IceGatheringState::Complete {
            self.gathering = IceGatheringState::Complete;
            self.events
                .push_back(Event::Gathering(IceGatheringState::Complete));
        }
    }

    /// When relays are to be asked for, unless things change.
    pub fn relays_wanted_at(&self) -> Option<Instant> {
        let (_, gathering_since) = self.gathered_for.as_ref()?;
        if self.closed {
            return None;
        }
        Some(match self.policy {
            IceTransportsType::Relay | IceTransportsType::NoHost => *gathering_since,
            IceTransportsType::All => match self.had_path {
                false => *gathering_since + RELAYS_AFTER_START,
                true => self.path_received + RELAYS_AFTER_SILENCE,
            },
        })
    }

    /// How an address of this side came about, for statistics.
    pub(crate) fn kind_of_local(&self, address: SocketAddr) -> Option<CandidateKind> {
        self.candidates
            .iter()
            .find(|it| it.candidate.addr() == address)
            .map(|it| it.candidate.kind())
    }

    /// Tries the pairs of some candidates afresh; meanwhile others that work take over.
    fn try_afresh(&mut self, which: impl Fn(&LocalCandidate) -> bool) {
        let candidates: Vec<Candidate> = self
            .candidates
            .iter()
            .filter(|it| which(it))
            .map(|it| it.candidate.clone())
            .collect();
        for candidate in candidates {
            if self.rtc.direct_api().invalidate_candidate(&candidate) {
                self.rtc.add_local_candidate(candidate);
            }
        }
    }

    /// Takes a packet from the network.
    pub fn receive(
        &mut self,
        now: Instant,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        packet: &[u8],
    ) {
        if self.closed {
            return;
        }
        self.counters.packet_received(packet.len());
        match Receive::new(protocol, source, destination, packet) {
            Ok(receive) => {
                self.last_received = now;
                let path = Path {
                    protocol,
                    local: destination,
                    remote: source,
                };
                if self.path == Some(path) {
                    self.path_received = now;
                    self.path_doubted = false;
                }
                let received = self.candidates.iter_mut().find(|it| it.is_at(path));
                if let Some(candidate) = received {
                    candidate.received = Some(now);
                }
                if let Err(error) = self.rtc.handle_input(Input::Receive(now, receive)) {
                    log::warn!("a packet from {source} led to an error: {error}");
                }
                self.drain(now);
            }
            Err(error) => log::debug!("a packet from {source} is of no known kind: {error}"),
        }
    }

    /// Does what is due and finds out what has changed. For the driver, after input and after time
    /// has passed.
    pub fn settle(&mut self, now: Instant) {
        if self.closed {
            return;
        }
        if now >= self.next_timeout {
            self.drain(now);
        }
        self.account_for_channels();
        self.update_states(now);
    }

    /// Lets the engine act on a change.
    fn poll(&mut self, now: Instant) {
        if !self.closed {
            self.drain(now);
            self.account_for_channels();
            self.update_states(now);
        }
    }

    fn drain(&mut self, now: Instant) {
        if let Err(error) = self.rtc.handle_input(Input::Timeout(now)) {
            log::warn!("the connection's engine reports: {error}");
        }
        loop {
            match self.rtc.poll_output() {
                Ok(Output::Timeout(at)) => {
                    self.next_timeout = at;
                    return;
                }
                Ok(Output::Transmit(transmit)) => {
                    self.note_nomination(&transmit);
                    // All but connectivity checks goes the way that ICE has chosen (RFC 7983).
                    if transmit.contents.first().is_some_and(|first| *first > 3) {
                        // Nobody answers there any more, so nothing may be sent (RFC 7675, section
                        // 5.1).
                        if self.failed {
                            continue;
                        }
                        self.take_path(now, &transmit);
                    }
                    self.counters.packet_sent(transmit.contents.len());
                    self.transmits.push_back(transmit);
                }
                Ok(Output::Event(event)) => self.handle(now, event),
                Err(error) => {
                    log::warn!("the connection's engine reports: {error}");
                    self.next_timeout = now + Duration::from_millis(100);
                    return;
                }
            }
        }
    }

    /// Sees which path a check nominates. The engine below goes on nominating those before it with
    /// every check, and a server that speaks ICE lite sends its packets each second over another
    /// one for a while.
    fn note_nomination(&mut self, transmit: &Transmit) {
        if !stun::nominates(&transmit.contents) {
            return;
        }
        let path = Path::of(transmit);
        if let Some(before) = self.nominated.replace(path)
            && before.local != path.local
        {
            self.superseded.push(before);
        }
    }

    /// Pairs of superseded paths begin anew, not nominated. Where both begin at one socket, the
    /// nomination stays.
    fn withdraw_nominations(&mut self, now: Instant) {
        for path in std::mem::take(&mut self.superseded) {
            self.try_afresh(|it| it.is_at(path));
            self.drain(now);
        }
    }

    fn take_path(&mut self, now: Instant, transmit: &Transmit) {
        let path = Path::of(transmit);
        if self.path != Some(path) {
            log::debug!(
                "packets go from {} to {} ({})",
                path.local,
                path.remote,
                path.protocol
            );
            self.path = Some(path);
            self.path_received = now;
            self.path_doubted = false;
        }
    }

    fn handle(&mut self, now: Instant, event: RtcEvent) {
        match event {
            RtcEvent::Connected => self.dtls_connected = true,
            RtcEvent::IceConnectionStateChange(state) => {
                log::debug!("ICE is {state:?}");
                self.ice = state;
                self.recheck = state == EngineIceState::Disconnected && !self.relay_gone;
            }
            RtcEvent::ChannelOpen(id, label) => self.channel_opened(id, &label),
            RtcEvent::ChannelData(message) => {
                if let Some(channel) = self.channel_by_id(message.id) {
                    {
                        let mut account = channel.account.lock();
                        account.messages_received += 1;
                        account.bytes_received += message.data.len() as u64;
                    }
                    let (data, binary) = (message.data, message.binary);
                    self.events.push_back(Event::ChannelMessage {
                        channel,
                        data,
                        binary,
                    });
                }
            }
            RtcEvent::ChannelClose(id) => {
                if let Some(channel) = self.channel_by_id(id) {
                    self.channel_closed(&channel);
                }
            }
            RtcEvent::RtpPacket(packet) => self.handle_rtp(now, packet),
            RtcEvent::PeerStats(stats) => self.counters.peer = Some(stats),
            RtcEvent::MediaEgressStats(stats) => {
                let mid = stats.mid;
                let advice = self.counters.take_egress(now, stats);
                if let (Some(advice), Some(index)) = (advice, self.index_of_mid(mid)) {
                    self.transceivers[index].sender.follow(advice);
                }
            }
            RtcEvent::MediaIngressStats(stats) => {
                self.counters.ingress.insert(stats.mid, stats);
            }
            RtcEvent::Closed => {
                log::debug!("the other side has closed the connection");
                self.dtls_connected = false;
                self.ended_by_peer = true;
            }
            _ => {}
        }
    }

    // ---- states ----

    fn update_states(&mut self, now: Instant) {
        // The engine below waits for the other side as if it looked for it. There is no hurry
        // before the first exchange.
        let ice = match self.negotiation.current_remote() {
            Some(_) => self.ice,
            None => EngineIceState::New,
        };
        let up = matches!(ice, EngineIceState::Connected | EngineIceState::Completed);
        if up {
            if !std::mem::replace(&mut self.had_path, true) {
                (self.last_received, self.path_received) = (now, now);
            }
            self.unconfirmed_since = None;
            self.relay_gone = false;
        } else if self.had_path {
            self.unconfirmed_since.get_or_insert(now);
        }
        self.withdraw_nominations(now);
        self.look_for_other_paths(now);
        if self.ice == EngineIceState::Checking && now < self.hurries_until {
            self.next_timeout = self.next_timeout.min(now + HURRIED_PACE);
        }
        let ended = self.ended_by_peer || !self.rtc.is_alive();
        let lost_at = self.had_path.then(|| {
            let silent_from = self.last_received + DISCONNECTED_AFTER_SILENCE;
            let unconfirmed_from = self
                .unconfirmed_since
                .map(|since| since + DISCONNECTED_WITHOUT_CONSENT);
            unconfirmed_from.map_or(silent_from, |at| at.min(silent_from))
        });
        let ice_lost = self.relay_gone || lost_at.is_some_and(|at| now >= at);
        let lost = ended || ice_lost;
        if let (Some(at), false) = (lost_at, ice_lost) {
            self.next_timeout = self.next_timeout.min(at);
        }
        let connected = self.had_path && self.dtls_connected && !lost;
        if connected {
            self.without_connection_since = None;
            self.failed = false;
        } else if lost || ice != EngineIceState::New {
            let since = *self.without_connection_since.get_or_insert(now);
            let patience = match lost {
                true => FAILED_AFTER_DISCONNECT,
                false => FAILED_AFTER_CHECKING,
            };
            let no_way_left = self.relay_gone && self.ice == EngineIceState::Disconnected;
            if no_way_left || now >= since + patience {
                self.failed = true;
            } else {
                self.next_timeout = self.next_timeout.min(since + patience);
            }
        }
        let published_ice = match ice {
            _ if self.failed => IceConnectionState::Failed,
            _ if ice_lost => IceConnectionState::Disconnected,
            EngineIceState::Completed => IceConnectionState::Completed,
            EngineIceState::Connected => IceConnectionState::Connected,
            // While ICE restarts or looks for a better path, the old one carries on.
            _ if self.had_path => match self.published_ice {
                IceConnectionState::Completed => IceConnectionState::Completed,
                _ => IceConnectionState::Connected,
            },
            EngineIceState::New => IceConnectionState::New,
            EngineIceState::Checking | EngineIceState::Disconnected => IceConnectionState::Checking,
        };
        let state = if self.failed {
            PeerConnectionState::Failed
        } else if lost {
            PeerConnectionState::Disconnected
        } else if connected {
            PeerConnectionState::Connected
        } else if ice == EngineIceState::New {
            PeerConnectionState::New
        } else {
            PeerConnectionState::Connecting
        };
        self.publish_states(published_ice, state);
    }

    /// A path that is silent is left for another one that works; when all have failed, all are
    /// tried again.
    fn look_for_other_paths(&mut self, now: Instant) {
        if std::mem::take(&mut self.recheck) && self.had_path && !self.failed {
            self.try_afresh(|_| true);
            self.drain(now);
        }
        // The controlled side cannot choose, and a choice of the other side must not be forgotten.
        let may_choose = self.negotiation.is_controlling() && !self.path_doubted && !self.failed;
        let Some(path) = self.path.filter(|_| may_choose) else {
            return;
        };
        let doubtful_from = self.path_received + SWITCH_AFTER_SILENCE;
        if now < doubtful_from {
            self.next_timeout = self.next_timeout.min(doubtful_from);
            return;
        }
        log::debug!("nothing has come from {} for a while", path.remote);
        self.path_doubted = true;
        // What took this path from us may have taken others too, and they would be tried one after
        // another, each for as long as this one. So those that have not just shown that they work
        // have to do so.
        self.try_afresh(|it| it.is_at(path) || !it.lives(now));
        self.drain(now);
    }

    fn publish_states(&mut self, ice: IceConnectionState, state: PeerConnectionState) {
        if ice != self.published_ice {
            self.published_ice = ice;
            self.events.push_back(Event::IceState(ice));
        }
        if state != self.published_state {
            log::debug!("the connection is {state:?}");
            self.published_state = state;
            self.events.push_back(Event::ConnectionState(state));
        }
    }

    pub fn connection_state(&self) -> PeerConnectionState {
        self.published_state
    }

    pub fn ice_state(&self) -> IceConnectionState {
        self.published_ice
    }

    pub fn gathering_state(&self) -> IceGatheringState {
        self.gathering
    }

    pub fn signaling_state(&self) -> SignalingState {
        if self.closed {
            SignalingState::Closed
        } else {
            self.negotiation.state()
        }
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn check_open(&self) -> Result<(), RtcError> {
        if self.closed {
            Err(RtcError::state("the peer connection is closed"))
        } else {
            Ok(())
        }
    }

    /// Ends everything. What must still be sent lies in `transmits` afterwards.
    pub fn close(&mut self, now: Instant) {
        if self.closed {
            return;
        }
        if let Err(error) = self.rtc.close() {
            log::debug!("closing: {error}");
        }
        self.drain(now);
        self.account_for_channels();
        for channel in std::mem::take(&mut self.channels) {
            self.channel_closed(&channel);
        }
        self.closed = true;
        self.publish_states(IceConnectionState::Closed, PeerConnectionState::Closed);
        self.events
            .push_back(Event::Signaling(SignalingState::Closed));
        self.incoming.clear();
        // No callback shall hear of states after `close` but those of the data channels; the
        // application knows.
        self.events
            .retain(|event| matches!(event, Event::ChannelState(..)));
    }

    // ---- negotiation ----

    fn local_transport(&mut self, new_credentials: bool) -> LocalTransport {
        let direct = self.rtc.direct_api();
        let credentials = if new_credentials {
            IceCreds::new()
        } else {
            direct.local_ice_credentials()
        };
        LocalTransport {
            ufrag: credentials.ufrag,
            password: credentials.pass,
            fingerprint: direct.local_dtls_fingerprint().to_string(),
            candidates: self
                .candidates
                .iter()
                .filter_map(|it| it.text.clone())
                .collect(),
        }
    }

    pub fn request_ice_restart(&mut self) {
        self.restart_requested = true;
        self.events.push_back(Event::NegotiationNeeded);
    }

    pub fn create_offer(&mut self, ice_restart: bool) -> Result<SessionDescription, RtcError> {
        self.check_open()?;
        // Before the first exchange there is nothing to restart.
        let restart =
            (ice_restart || self.restart_requested) && self.negotiation.current_remote().is_some();
        let local = self.local_transport(restart);
        Ok(self.negotiation.create_offer(&local))
    }

    pub fn create_answer(&mut self) -> Result<SessionDescription, RtcError> {
        self.check_open()?;
        let restart = self.negotiation.remote_offer_restarts_ice();
        let local = self.local_transport(restart);
        self.negotiation.create_answer(&local)
    }

    pub fn set_local_description(
        &mut self,
        now: Instant,
        description: SessionDescription,
        servers: &[IceServer],
    ) -> Result<(), RtcError> {
        self.check_open()?;
        let ufrag = self.negotiation.ufrag_of(&description);
        match description.sdp_type() {
            SdpType::Offer => {
                self.negotiation.set_local_offer(description)?;
                self.publish_transceivers();
            }
            SdpType::Answer => {
                let agreement = self.negotiation.set_local_answer(description)?;
                self.apply(now, agreement)?;
            }
            SdpType::Rollback => {
                self.negotiation.roll_back_as_asked()?;
                self.publish_transceivers();
            }
            SdpType::PrAnswer => {
                self.negotiation
                    .set_local_provisional_answer(&description)?;
            }
        }
        self.events
            .push_back(Event::Signaling(self.negotiation.state()));
        self.gather(now, ufrag, servers);
        Ok(())
    }

    pub fn set_remote_description(
        &mut self,
        now: Instant,
        description: SessionDescription,
    ) -> Result<(), RtcError> {
        self.check_open()?;
        match description.sdp_type() {
            SdpType::Offer => {
                let (connection, cname, stream_id) = (
                    self.connection.clone(),
                    self.cname.clone(),
                    self.stream_id.clone(),
                );
                let mut made = Vec::new();
                self.negotiation
                    .set_remote_offer(description, &mut |kind, track_id| {
                        let transceiver = Transceiver::new(
                            connection.clone(),
                            media_type(&kind),
                            RtpTransceiverDirection::RecvOnly,
                            None,
                            vec![],
                            track_id,
                        );
                        made.push(Arc::new(transceiver));
                        negotiated(
                            kind,
                            Direction::RECV_ONLY,
                            &cname,
                            (stream_id.clone(), None),
                        )
                    })?;
                self.transceivers.extend(made);
                self.publish_transceivers();
            }
            SdpType::Answer => match self.negotiation.set_remote_answer(description)? {
                Some(agreement) => self.apply(now, agreement)?,
                None => self.publish_transceivers(),
            },
            SdpType::Rollback => {
                self.negotiation.roll_back_as_asked()?;
                self.publish_transceivers();
            }
            SdpType::PrAnswer => {
                self.negotiation
                    .set_remote_provisional_answer(&description)?;
            }
        }
        self.events
            .push_back(Event::Signaling(self.negotiation.state()));
        Ok(())
    }

    /// Puts the outcome of an exchange into effect.
    fn apply(&mut self, now: Instant, agreement: Agreement) -> Result<(), RtcError> {
        let offer = SdpOffer::from_sdp_string(&agreement.remote)
            .map_err(|error| RtcError::sdp(error.to_string()))?;
        self.rtc.sdp_api().accept_offer(offer).map_err(|error| {
            log::debug!("refused by the engine: {error}\n{}", agreement.remote);
            RtcError::sdp(error.to_string())
        })?;
        let (ufrag, pass) = agreement.credentials;
        let credentials = IceCreds { ufrag, pass };
        let mut direct = self.rtc.direct_api();
        if direct.local_ice_credentials() != credentials {
            direct.set_local_ice_credentials(credentials);
            self.restart_requested = false;
            self.unconfirmed_since = None;
            if self.published_state != PeerConnectionState::Connected {
                // A restart is a new chance, also for a connection that was given up. One that
                // works goes on.
                self.without_connection_since = None;
                self.failed = false;
                self.had_path = false;
                self.relay_gone = false;
            }
        }
        for transceiver in &self.negotiation.transceivers {
            let (Some(mid), true) = (&transceiver.mid, transceiver.send_codec.is_some()) else {
                continue;
            };
            let mid = Mid::from(mid.as_str());
            let ssrc = Ssrc::from(transceiver.ssrc.0);
            let other = direct
                .stream_tx_by_mid(mid, None)
                .map(|stream| stream.ssrc());
            if other != Some(ssrc) {
                if let Some(other) = other {
                    direct.remove_stream_tx(other);
                }
                direct.declare_stream_tx(ssrc, None, mid, None);
            }
        }
        self.forget_old_streams();
        self.publish_transceivers();
        for index in agreement.started_receiving {
            self.events
                .push_back(Event::Track(self.transceivers[index].clone()));
        }
        for candidate in std::mem::take(&mut self.early_candidates) {
            self.rtc.add_remote_candidate(candidate);
        }
        self.open_channels();
        self.hurries_until = now + HURRIED_FOR;
        self.poll(now);
        Ok(())
    }

    /// Sections are used again for other tracks; what was announced before must not be taken for
    /// the new track.
    fn forget_old_streams(&mut self) {
        let transceivers = &self.negotiation.transceivers;
        let rtc = &mut self.rtc;
        self.incoming.retain(|ssrc, incoming| {
            let owner = transceivers.iter().find(|it| {
                it.mid
                    .as_deref()
                    .is_some_and(|mid| Mid::from(mid) == incoming.mid)
            });
            let Some(owner) = owner else { return false };
            let receives = owner
                .current_direction
                .is_some_and(|direction| direction.receive);
            let announced = &owner.remote_ssrcs;
            let keep = receives && (announced.is_empty() || announced.contains(ssrc));
            if !keep {
                rtc.direct_api().remove_stream_rx(*ssrc);
            }
            keep
        });
    }

    /// Copies what was negotiated to where the application sees it.
    fn publish_transceivers(&self) {
        for (negotiated, transceiver) in
            self.negotiation.transceivers.iter().zip(&self.transceivers)
        {
            let direction = match negotiated.stopped {
                true => RtpTransceiverDirection::Stopped,
                false => negotiated.direction.into(),
            };
            let audio = transceiver.kind == MediaType::Audio;
            let mid = negotiated.mid.as_deref().map(Mid::from);
            let sending = match (&negotiated.send_codec, mid) {
                (Some(codec), Some(mid)) if audio && !negotiated.stopped => Some(SendStream {
                    mid,
                    payload_type: codec.payload_type,
                    red_payload_type: negotiated
                        .red
                        .filter(|red| red.preferred)
                        .map(|red| red.payload_type),
                    config: opus_config(codec, transceiver.sender.max_bitrate()),
                }),
                _ => None,
            };
            let view = TransceiverView {
                mid: negotiated.mid.clone(),
                direction,
                current_direction: negotiated.current_direction.map(Into::into),
                sending,
                receiving: negotiated.current_direction.is_some_and(|it| it.receive),
            };
            transceiver.publish(view, negotiated.remote_streams.clone());
        }
    }

    /// Begins to gather with the first description of this side, and again with every restart of
    /// ICE.
    fn gather(&mut self, now: Instant, ufrag: Option<String>, servers: &[IceServer]) {
        let before = self.gathered_for.as_ref().map(|(ufrag, _)| ufrag);
        let Some(ufrag) = ufrag.filter(|ufrag| before != Some(ufrag)) else {
            return;
        };
        let is_first = self.gathered_for.is_none();
        self.gathered_for = Some((ufrag, now));
        self.gathering = IceGatheringState::Gathering;
        self.events
            .push_back(Event::Gathering(IceGatheringState::Gathering));
        let mid = self.negotiation.first_mid();
        for text in self.candidates.iter().filter_map(|it| it.text.as_ref()) {
            let (mid, candidate) = (mid.clone(), text.clone());
            if is_first {
                self.events
                    .push_back(Event::IceCandidate { mid, candidate });
            }
        }
        if servers.is_empty() {
            self.gathering_complete();
        } else {
            self.events.push_back(Event::Gather(servers.to_vec()));
        }
    }

    pub fn add_remote_candidate(&mut self, now: Instant, text: &str) -> Result<(), RtcError> {
        self.check_open()?;
        if text.is_empty() || text == "candidate:" {
            return Ok(());
        }
        let candidate = Candidate::from_sdp_string(text).map_err(|error| {
            RtcError::internal(format!(
                "{text} is no candidate this engine can use: {error}"
            ))
        })?;
        // Without credentials of the other side nothing could be sent to it, and those of a pending
        // offer are not in effect yet.
        let waits = self.negotiation.current_remote().is_none()
            || self.negotiation.state() == SignalingState::HaveRemoteOffer;
        if waits {
            self.early_candidates.push(candidate);
        } else {
            self.rtc.add_remote_candidate(candidate);
            self.hurries_until = now + HURRIED_FOR;
            self.poll(now);
        }
        Ok(())
    }

    pub fn current_local_description(&self) -> Option<SessionDescription> {
        self.negotiation.current_local().cloned()
    }

    pub fn current_remote_description(&self) -> Option<SessionDescription> {
        self.negotiation.current_remote().cloned()
    }

    // ---- transceivers ----

    pub fn add_transceiver(
        &mut self,
        kind: MediaType,
        track: Option<MediaStreamTrack>,
        init: RtpTransceiverInit,
        from_add_track: bool,
    ) -> Result<Arc<Transceiver>, RtcError> {
        self.check_open()?;
        let stream_id = init
            .stream_ids
            .first()
            .cloned()
            .unwrap_or_else(|| "-".to_owned());
        let track_id = track.as_ref().map(MediaStreamTrack::id);
        let transceiver = Arc::new(Transceiver::new(
            self.connection.clone(),
            kind,
            init.direction,
            track,
            init.send_encodings,
            None,
        ));
        let sdp_kind = if kind == MediaType::Audio {
            Kind::Audio
        } else {
            Kind::Video
        };
        let direction = Direction::from(init.direction);
        let mut entry = negotiated(sdp_kind, direction, &self.cname, (stream_id, track_id));
        entry.may_be_taken = from_add_track;
        self.negotiation.transceivers.push(entry);
        self.transceivers.push(transceiver.clone());
        self.events.push_back(Event::NegotiationNeeded);
        Ok(transceiver)
    }

    /// Stops sending in the transceiver of a sender. Answers `false` if it is none of this
    /// connection.
    pub fn remove_sender(&mut self, sender: &Arc<crate::rtp::Sender>) -> Result<bool, RtcError> {
        self.check_open()?;
        let index = self
            .transceivers
            .iter()
            .position(|it| Arc::ptr_eq(&it.sender, sender));
        let Some(index) = index else { return Ok(false) };
        self.negotiation.transceivers[index].direction.send = false;
        self.publish_transceivers();
        self.events.push_back(Event::NegotiationNeeded);
        Ok(true)
    }

    /// Decides whether the transceiver's next offer or answer has redundant audio.
    pub fn set_redundancy(&mut self, transceiver: &Transceiver, redundancy: Redundancy) {
        let index = self
            .transceivers
            .iter()
            .position(|it| std::ptr::eq(Arc::as_ptr(it), transceiver));
        if let Some(index) = index {
            self.negotiation.transceivers[index].redundancy = redundancy;
        }
    }

    pub fn stop_transceiver(&mut self, transceiver: &Transceiver) -> Result<(), RtcError> {
        self.check_open()?;
        let index = self
            .transceivers
            .iter()
            .position(|it| std::ptr::eq(Arc::as_ptr(it), transceiver));
        if let Some(index) = index {
            self.negotiation.transceivers[index].stopped = true;
            self.publish_transceivers();
            self.events.push_back(Event::NegotiationNeeded);
        }
        Ok(())
    }

    /// All transceivers but those that were stopped and have no section any more.
    pub fn transceivers(&self) -> impl Iterator<Item = &Arc<Transceiver>> {
        let entries = self.negotiation.transceivers.iter().zip(&self.transceivers);
        entries
            .filter(|(negotiated, _)| !(negotiated.stopped && negotiated.mid.is_none()))
            .map(|(_, transceiver)| transceiver)
    }

    fn index_of_mid(&self, mid: Mid) -> Option<usize> {
        self.negotiation.transceivers.iter().position(|it| {
            it.mid
                .as_deref()
                .is_some_and(|known| Mid::from(known) == mid)
        })
    }

    // ---- media ----

    /// Sends a packet of Opus. Before the connection is up it is dropped, as sound that is late is
    /// of no use.
    pub fn send_audio(&mut self, now: Instant, mid: Mid, payload_type: u8, packet: EncodedAudio) {
        if self.closed || !self.dtls_connected || !self.had_path || self.failed {
            return;
        }
        let mut direct = self.rtc.direct_api();
        let Some(stream) = direct.stream_tx_by_mid(mid, None) else {
            return;
        };
        let sent = self.sent.entry(mid).or_default();
        let sequence = sent.next(packet.payload.len(), stream.ssrc());
        let extensions = ExtensionValues {
            audio_level: Some(packet.audio_level_dbov),
            voice_activity: Some(packet.voice_activity),
            ..ExtensionValues::default()
        };
        let write = RtpWrite::new(
            payload_type.into(),
            sequence.into(),
            packet.rtp_timestamp,
            now,
            packet.payload,
        );
        stream.write_rtp(write.marker(packet.marker).ext_vals(extensions));
        self.poll(now);
    }

    fn handle_rtp(&mut self, now: Instant, packet: RtpPacket) {
        let ssrc = packet.header.ssrc;
        if !self.incoming.contains_key(&ssrc) {
            let mid = self
                .rtc
                .direct_api()
                .stream_rx(&ssrc)
                .map(|stream| stream.mid());
            let Some(mid) = mid else { return };
            let index = self.index_of_mid(mid);
            let audio = index.and_then(|index| self.transceivers[index].receiver.audio.clone());
            log::debug!("a new stream {ssrc} in section {mid}");
            let stream = ReceivedStream::new(*ssrc);
            let incoming = Incoming {
                mid,
                index,
                audio,
                stream,
            };
            self.incoming.insert(ssrc, incoming);
        }
        let Some(incoming) = self.incoming.get_mut(&ssrc) else {
            return;
        };
        let (sequence, time) = (*packet.seq_no, packet.time.numer());
        let payload_type = *packet.header.payload_type;
        incoming.stream.take(
            now,
            sequence,
            time,
            packet.payload.len(),
            packet.header.header_len,
            payload_type,
        );
        // A packet without payload is padding, sent to probe the line.
        if let Some(audio) = incoming
            .audio
            .as_ref()
            .filter(|_| !packet.payload.is_empty())
        {
            let packet = RtpAudioPacket {
                ssrc: *ssrc,
                extended_seq: sequence,
                rtp_timestamp: time,
                payload: packet.payload,
            };
            let red = incoming
                .index
                .and_then(|index| self.negotiation.transceivers.get(index)?.red)
                .filter(|red| red.payload_type == payload_type);
            match red {
                Some(red) => audio.push_red(now, packet, red.opus_payload_type),
                None => audio.push(now, packet),
            }
        }
    }

    // ---- data channels ----

    pub fn create_channel(
        &mut self,
        now: Instant,
        label: &str,
        init: DataChannelInit,
    ) -> Result<Arc<Channel>, RtcError> {
        self.check_open()?;
        if init.max_retransmits.is_some() && init.max_retransmit_time.is_some() {
            return Err(RtcError::internal(
                "max_retransmits and max_retransmit_time cannot be set both",
            ));
        }
        if init.negotiated && !(0..65_535).contains(&init.id) {
            return Err(RtcError::internal(format!(
                "a negotiated data channel needs an id from 0 to 65534, not {}",
                init.id
            )));
        }
        let channel = Arc::new(Channel::new(self.connection.clone(), label, init));
        if let Some(id) = channel.negotiated_id()
            && self
                .channels
                .iter()
                .any(|other| other.stream_id() == i32::from(id))
        {
            return Err(RtcError::internal(format!(
                "the data channel id {id} is in use"
            )));
        }
        self.channels.push(channel.clone());
        if self.negotiation.has_application() {
            self.open_channels();
            self.poll(now);
        } else {
            self.negotiation.want_application();
            self.events.push_back(Event::NegotiationNeeded);
        }
        Ok(channel)
    }

    /// Tells SCTP of channels that have waited for the exchange.
    fn open_channels(&mut self) {
        if !self.negotiation.has_application() {
            return;
        }
        for channel in &self.channels {
            let mut account = channel.account.lock();
            if account.id.is_none() && account.state == DataChannelState::Connecting {
                account.id = Some(self.rtc.direct_api().create_data_channel(channel.config()));
            }
        }
    }

    fn channel_by_id(&self, id: ChannelId) -> Option<Arc<Channel>> {
        self.channels
            .iter()
            .find(|channel| channel.account.lock().id == Some(id))
            .cloned()
    }

    fn channel_opened(&mut self, id: ChannelId, label: &str) {
        let stream_id = self.rtc.direct_api().sctp_stream_id_by_channel_id(id);
        let stream_id = stream_id.map_or(-1, i32::from);
        let known = self.channel_by_id(id);
        let is_new = known.is_none();
        let channel = known.unwrap_or_else(|| {
            let config = self
                .rtc
                .channel(id)
                .and_then(|channel| channel.config().cloned());
            let init = channel_init(config, stream_id);
            let channel = Arc::new(Channel::new(self.connection.clone(), label, init));
            channel.account.lock().id = Some(id);
            self.channels.push(channel.clone());
            channel
        });
        {
            let mut account = channel.account.lock();
            account.stream_id = stream_id;
            if account.state != DataChannelState::Connecting {
                // Closed by the application while it was being opened.
                drop(account);
                self.rtc.direct_api().close_data_channel(id);
                return;
            }
            account.state = DataChannelState::Open;
        }
        self.channels_opened += 1;
        if is_new {
            self.events.push_back(Event::Channel(channel.clone()));
        }
        self.events
            .push_back(Event::ChannelState(channel, DataChannelState::Open));
    }

    fn channel_closed(&mut self, channel: &Arc<Channel>) {
        self.channels.retain(|other| !Arc::ptr_eq(other, channel));
        {
            let mut account = channel.account.lock();
            account.id = None;
            account.buffered = 0;
            if account.state == DataChannelState::Closed {
                return;
            }
            account.state = DataChannelState::Closed;
        }
        self.channels_closed += 1;
        self.events.push_back(Event::ChannelState(
            channel.clone(),
            DataChannelState::Closed,
        ));
    }

    /// Hands a message to SCTP.
    ///
    /// # Errors
    ///
    /// When the channel is not open, its buffer is full, or the message is not of a size that can
    /// be sent.
    pub fn send_data(
        &mut self,
        now: Instant,
        channel: &Channel,
        data: &[u8],
        binary: bool,
    ) -> Result<(), DataChannelError> {
        // SCTP has no empty messages (RFC 8831, section 6.6), and the engine below does not send
        // the byte that stands for one: it only counts the message, for which the other side then
        // waits for ever.
        if data.is_empty() {
            return Err(DataChannelError::Empty);
        }
        if self.closed {
            return Err(DataChannelError::Send);
        }
        {
            let mut account = channel.account.lock();
            let (DataChannelState::Open, Some(id)) = (account.state, account.id) else {
                return Err(DataChannelError::Send);
            };
            let written = self
                .rtc
                .channel(id)
                .map(|mut engine| engine.write(binary, data));
            match written {
                Some(Ok(true)) => {}
                Some(Ok(false)) | None => return Err(DataChannelError::Send),
                Some(Err(EngineError::Sctp(SctpError::Proto(
                    ProtoError::ErrOutboundPacketTooLarge,
                )))) => {
                    return Err(DataChannelError::TooLarge {
                        bytes: data.len() as u64,
                        limit: self.negotiation.max_remote_message_size(),
                    });
                }
                Some(Err(error)) => {
                    log::warn!("data channel {}: {error}", channel.label());
                    return Err(DataChannelError::Send);
                }
            }
            account.buffered += data.len() as u64;
            account.messages_sent += 1;
            account.bytes_sent += data.len() as u64;
        }
        self.poll(now);
        Ok(())
    }

    pub fn close_channel(&mut self, now: Instant, channel: &Channel) {
        let Some(shared) = self
            .channels
            .iter()
            .find(|it| std::ptr::eq(Arc::as_ptr(it), channel))
            .cloned()
        else {
            return;
        };
        let id = {
            let mut account = channel.account.lock();
            match (account.state, account.id) {
                (DataChannelState::Open, Some(id)) => {
                    account.state = DataChannelState::Closing;
                    Some(id)
                }
                (DataChannelState::Connecting, Some(_)) => {
                    // It is closed as soon as it is open.
                    account.state = DataChannelState::Closing;
                    return;
                }
                (DataChannelState::Connecting, None) => None,
                _ => return,
            }
        };
        match id {
            Some(id) => {
                self.rtc.direct_api().close_data_channel(id);
                let state = DataChannelState::Closing;
                self.events.push_back(Event::ChannelState(shared, state));
                self.poll(now);
            }
            None => self.channel_closed(&shared),
        }
    }

    /// Finds out which bytes have left the buffers of SCTP. Every byte accepted is reported exactly
    /// once.
    fn account_for_channels(&mut self) {
        for channel in &self.channels {
            let mut account = channel.account.lock();
            let (Some(id), true) = (account.id, account.buffered > 0) else {
                continue;
            };
            let Some(mut engine) = self.rtc.channel(id) else {
                continue;
            };
            let left = (engine.buffered_amount() as u64).min(account.buffered);
            let gone = account.buffered - left;
            account.buffered = left;
            if gone > 0 {
                self.events
                    .push_back(Event::ChannelDrained(channel.clone(), gone));
            }
        }
    }

    pub fn flush_early_messages(&mut self) {
        self.events.push_back(Event::FlushEarlyMessages);
    }

    pub fn channels(&self) -> &[Arc<Channel>] {
        &self.channels
    }
}

fn media_type(kind: &Kind) -> MediaType {
    match kind {
        Kind::Audio => MediaType::Audio,
        Kind::Video => MediaType::Video,
        Kind::Application => MediaType::Data,
        Kind::Other(_) => MediaType::Unsupported,
    }
}

/// A transceiver that nothing was agreed on yet.
fn negotiated(
    kind: Kind,
    direction: Direction,
    cname: &str,
    (stream_id, track_id): (String, Option<String>),
) -> Negotiated {
    Negotiated {
        kind,
        direction,
        stopped: false,
        mid: None,
        current_direction: None,
        may_be_taken: false,
        msid: (stream_id, track_id.unwrap_or_else(create_random_uuid)),
        // Zero is not used as an SSRC, because some receivers take it for none.
        ssrc: (rand::random_range(1..=u32::MAX), cname.to_owned()),
        redundancy: Redundancy::default(),
        send_codec: None,
        red: None,
        remote_streams: vec![],
        remote_track_id: None,
        remote_ssrcs: vec![],
    }
}

/// What the other side wants of the encoder (RFC 7587, section 6.1).
fn opus_config(codec: &Codec, encoding_limit: Option<u64>) -> OpusSendConfig {
    let is_on = |name| codec.parameter(name) == Some("1");
    let average = codec
        .parameter("maxaveragebitrate")
        .and_then(|value| value.parse().ok());
    OpusSendConfig {
        stereo: is_on("stereo"),
        dtx: is_on("usedtx"),
        fec: is_on("useinbandfec"),
        max_bitrate_bps: match (average, encoding_limit) {
            (Some(average), Some(limit)) => Some(limit.min(average)),
            (average, limit) => average.or(limit),
        },
    }
}

fn channel_init(config: Option<str0m::channel::ChannelConfig>, stream_id: i32) -> DataChannelInit {
    use str0m::channel::Reliability;
    let mut init = DataChannelInit {
        id: stream_id,
        ..DataChannelInit::default()
    };
    if let Some(config) = config {
        init.ordered = config.ordered;
        init.protocol = config.protocol;
        match config.reliability {
            Reliability::Reliable => {}
            Reliability::MaxPacketLifetime { lifetime } => {
                init.max_retransmit_time = Some(i32::from(lifetime));
            }
            Reliability::MaxRetransmits { retransmits } => {
                init.max_retransmits = Some(i32::from(retransmits));
            }
        }
    }
    init
}
