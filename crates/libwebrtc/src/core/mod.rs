//! One peer connection without sockets and clocks.
//!
//! [`Core`] owns the str0m instance, which does ICE, DTLS, SRTP and SCTP, and the [`Negotiation`],
//! which decides what is offered and agreed on. Time comes in as an argument. What is to be sent
//! lies in `transmits`, what the application is to be told in `events`, both in order;
//! `next_timeout` says when to call again without input.
//!
//! str0m never writes offers or answers here: it is always told of the other side by an offer that
//! contains exactly what both sides have agreed on ([`Agreement`]).
//!
//! [`paths`] has candidates and the path in use, [`state`] the states, [`media`] the RTP streams,
//! [`data`] the data channels and [`report`] the statistics; this file has the exchange of
//! descriptions and puts the parts together.

pub(crate) mod channel;
mod data;
#[cfg(test)]
mod data_tests;
mod media;
#[cfg(test)]
mod media_tests;
#[cfg(test)]
mod order_tests;
mod paths;
pub(crate) mod report;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use str0m::{
    Candidate, Event as RtcEvent, IceConnectionState as EngineIceState, IceCreds, Input, Output,
    Rtc,
    change::SdpOffer,
    error::IceError,
    media::Mid,
    net::{Protocol, Receive, TcpType, Transmit},
    rtp::{Extension, ExtensionMap, Ssrc},
};

use self::{
    channel::Channel,
    data::DataChannels,
    media::Media,
    paths::{Path, Paths},
    report::Counters,
    state::States,
};
use crate::{
    MediaType, RtcError,
    audio::encoder::OpusSendConfig,
    connection::Connection,
    data_channel::DataChannelState,
    ice::gather::ServerFailure,
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
    /// A STUN or TURN server of the configuration has given no address.
    ServerFailed(ServerFailure),
    /// For the driver: ask these servers for addresses.
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
    /// So many bytes have left the channel's buffer.
    ChannelDrained(Arc<Channel>, u64),
    /// A channel has a callback for messages now: deliver those that came before.
    FlushEarlyMessages,
}

/// One peer connection as a state machine. See the module's documentation.
pub(crate) struct Core {
    rtc: Rtc,
    negotiation: Negotiation,
    connection: Weak<Connection>,
    /// Beside `negotiation.transceivers`, with the same numbers.
    transceivers: Vec<Arc<Transceiver>>,
    paths: Paths,
    /// Candidates of the other side that came before its description was in effect.
    early_candidates: Vec<Candidate>,
    /// The next offer restarts ICE.
    restart_requested: bool,
    state: States,
    media: Media,
    data: DataChannels,
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
            paths: Paths::new(now),
            early_candidates: vec![],
            restart_requested: false,
            state: States::new(),
            media: Media::new(),
            data: DataChannels::default(),
            counters: Counters::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            next_timeout: now,
        }
    }

    // ---- transport ----

    /// Decides which candidates may be used.
    pub fn set_policy(&mut self, policy: IceTransportsType) {
        let added = self.paths.set_policy(&mut self.rtc, policy);
        self.announce(added);
    }

    /// Adds a UDP socket of this side.
    pub fn add_udp_candidate(&mut self, address: SocketAddr) {
        self.add_socket(Candidate::host(address, Protocol::Udp), address);
    }

    /// Lets connections be opened from an address to TCP candidates of the other side (RFC 6544,
    /// section 4.1).
    pub fn add_active_tcp_candidate(&mut self, address: SocketAddr) {
        let builder = Candidate::builder().tcp().host(address);
        self.add_socket(builder.tcptype(TcpType::Active).build(), address);
    }

    fn add_socket(&mut self, candidate: Result<Candidate, IceError>, address: SocketAddr) {
        match candidate {
            Ok(_) if self.state.closed => {}
            Ok(candidate) => {
                let added = self.paths.add_socket(&mut self.rtc, candidate);
                self.announce(added);
            }
            Err(error) => log::debug!("{address} is no candidate: {error}"),
        }
    }

    /// Adds the address under which a socket is seen from outside.
    pub fn add_reflexive_candidate(&mut self, now: Instant, address: SocketAddr, base: SocketAddr) {
        let candidate = Candidate::server_reflexive(address, base, Protocol::Udp);
        self.add_candidate(now, candidate, address);
    }

    /// Adds an address on a TURN server, which is reached from `local`.
    pub fn add_relayed_candidate(&mut self, now: Instant, address: SocketAddr, local: SocketAddr) {
        let candidate = Candidate::relayed(address, local, Protocol::Udp);
        self.add_candidate(now, candidate, address);
    }

    fn add_candidate(
        &mut self,
        now: Instant,
        candidate: Result<Candidate, IceError>,
        address: SocketAddr,
    ) {
        match candidate {
            Ok(_) if self.state.closed => {}
            Ok(candidate) => {
                let added = self.paths.add_candidate(&mut self.rtc, candidate);
                self.announce(added);
            }
            Err(error) => log::debug!("{address} is no candidate: {error}"),
        }
        self.poll(now);
    }

    /// Tells the application of candidates of this side.
    fn announce(&mut self, candidates: impl IntoIterator<Item = String>) {
        for candidate in candidates {
            let mid = self.negotiation.first_mid();
            self.events
                .push_back(Event::IceCandidate { mid, candidate });
        }
    }

    /// Removes a relay whose server is gone. If packets went over it, there is nothing to wait for:
    /// without another path the connection has failed, as in Google's engine when its connection to
    /// a TURN server breaks.
    pub fn relay_lost(&mut self, now: Instant, address: SocketAddr) {
        self.paths.relay_lost(&mut self.rtc, now, address);
        self.remove_local(now, address);
    }

    /// Removes everything that was sent from an address: a socket whose interface is gone, or a
    /// relay.
    pub fn remove_local(&mut self, now: Instant, address: SocketAddr) {
        self.paths.remove_local(&mut self.rtc, address);
        self.poll(now);
    }

    /// Notes that a STUN or TURN server has given no address.
    pub fn server_failed(&mut self, failure: ServerFailure) {
        self.events.push_back(Event::ServerFailed(failure));
    }

    /// Notes that each server has answered or was given up.
    pub fn gathering_complete(&mut self) {
        if self.paths.end_gathering() {
            self.events
                .push_back(Event::Gathering(IceGatheringState::Complete));
        }
    }

    /// When relays are to be allocated, unless a path is found or a packet comes before.
    pub fn relays_wanted_at(&self) -> Option<Instant> {
        match self.state.closed {
            true => None,
            false => self.paths.relays_wanted_at(),
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
        if self.state.closed {
            return;
        }
        self.counters.packet_received(packet.len());
        match Receive::new(protocol, source, destination, packet) {
            Ok(receive) => {
                let path = Path {
                    protocol,
                    local: destination,
                    remote: source,
                };
                self.paths.received(now, path);
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
        if self.state.closed {
            return;
        }
        if now >= self.next_timeout {
            self.drain(now);
        }
        self.account_for_channels();
        self.update_states(now);
    }

    /// Lets str0m act on a change.
    fn poll(&mut self, now: Instant) {
        if !self.state.closed {
            self.drain(now);
            self.account_for_channels();
            self.update_states(now);
        }
    }

    /// Takes everything that str0m has to send and to tell, until it only waits for time to pass.
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
                    self.paths.note_nomination(&transmit);
                    // All but connectivity checks takes the path that ICE has chosen (RFC 7983).
                    if transmit.contents.first().is_some_and(|first| *first > 3) {
                        // Nobody answers there any more, so nothing may be sent (RFC 7675, section
                        // 5.1).
                        if self.state.failed {
                            continue;
                        }
                        self.paths.note_sent(now, &transmit);
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

    fn handle(&mut self, now: Instant, event: RtcEvent) {
        match event {
            RtcEvent::Connected => self.state.dtls_connected = true,
            RtcEvent::IceConnectionStateChange(state) => {
                log::debug!("ICE is {state:?}");
                self.state.ice = state;
                self.paths
                    .note_all_failed(state == EngineIceState::Disconnected);
            }
            RtcEvent::ChannelOpen(id, label) => self.channel_opened(id, &label),
            RtcEvent::ChannelData(message) => self.channel_message(message),
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
                self.state.dtls_connected = false;
                self.state.ended_by_peer = true;
            }
            _ => {}
        }
    }

    // ---- states ----

    fn update_states(&mut self, now: Instant) {
        // str0m reports that it checks while it only waits for the other side. Before the first
        // exchange of descriptions nothing is late.
        let ice = match self.negotiation.current_remote() {
            Some(_) => self.state.ice,
            None => EngineIceState::New,
        };
        let confirmed = matches!(ice, EngineIceState::Connected | EngineIceState::Completed);
        self.paths.note_confirmed(now, confirmed);
        for path in self.paths.take_superseded() {
            self.paths.withdraw_nomination(&mut self.rtc, path);
            self.drain(now);
        }
        self.check_other_paths(now);
        if self.state.ice == EngineIceState::Checking {
            self.call_again(self.paths.next_fast_step(now));
        }
        let ended = self.state.ended_by_peer || !self.rtc.is_alive();
        let next = self
            .state
            .update(now, ice, &self.paths, ended, &mut self.events);
        self.call_again(next);
    }

    /// Makes `next_timeout` earlier if it has to be.
    fn call_again(&mut self, at: Option<Instant>) {
        if let Some(at) = at {
            self.next_timeout = self.next_timeout.min(at);
        }
    }

    /// Leaves a path that is silent for another one that works; when all have failed, checks all
    /// again.
    fn check_other_paths(&mut self, now: Instant) {
        let failed = self.state.failed;
        if self.paths.recheck_all_failed(&mut self.rtc, failed) {
            self.drain(now);
        }
        // The controlled side cannot choose, and a choice of the other side must not be forgotten.
        if !self.negotiation.is_controlling() || self.state.failed {
            return;
        }
        match self.paths.doubted_at() {
            None => {}
            Some(at) if now < at => self.call_again(Some(at)),
            Some(_) => {
                self.paths.leave_current(&mut self.rtc, now);
                self.drain(now);
            }
        }
    }

    pub fn connection_state(&self) -> PeerConnectionState {
        self.state.published()
    }

    pub fn ice_state(&self) -> IceConnectionState {
        self.state.published_ice()
    }

    pub fn gathering_state(&self) -> IceGatheringState {
        self.paths.gathering()
    }

    pub fn signaling_state(&self) -> SignalingState {
        if self.state.closed {
            SignalingState::Closed
        } else {
            self.negotiation.state()
        }
    }

    pub fn is_closed(&self) -> bool {
        self.state.closed
    }

    /// # Errors
    ///
    /// When the connection is closed.
    pub fn check_open(&self) -> Result<(), RtcError> {
        self.state.check_open()
    }

    /// Ends everything. What must still be sent lies in `transmits` afterwards.
    pub fn close(&mut self, now: Instant) {
        if self.state.closed {
            return;
        }
        if let Err(error) = self.rtc.close() {
            log::debug!("closing: {error}");
        }
        self.drain(now);
        self.account_for_channels();
        for channel in std::mem::take(&mut self.data.live) {
            self.channel_closed(&channel);
        }
        self.state.closed = true;
        self.state.publish(
            IceConnectionState::Closed,
            PeerConnectionState::Closed,
            &mut self.events,
        );
        self.events
            .push_back(Event::Signaling(SignalingState::Closed));
        self.media.incoming.clear();
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
            candidates: self.paths.candidate_texts().cloned().collect(),
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
                    self.media.cname.clone(),
                    self.media.stream_id.clone(),
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
            let begins_anew = self.state.restarted();
            self.paths.restarted(begins_anew);
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
        self.paths.hurry(now);
        self.poll(now);
        Ok(())
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
        let Some(is_first) = self.paths.begin_gathering(now, ufrag) else {
            return;
        };
        self.events
            .push_back(Event::Gathering(IceGatheringState::Gathering));
        if is_first {
            let candidates: Vec<String> = self.paths.candidate_texts().cloned().collect();
            self.announce(candidates);
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
            self.paths.hurry(now);
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
        let cname = &self.media.cname;
        let mut entry = negotiated(sdp_kind, direction, cname, (stream_id, track_id));
        entry.may_be_taken = from_add_track;
        self.negotiation.transceivers.push(entry);
        self.transceivers.push(transceiver.clone());
        self.events.push_back(Event::NegotiationNeeded);
        Ok(transceiver)
    }

    /// Stops sending in the transceiver of a sender. Returns `false` if it is none of this
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
