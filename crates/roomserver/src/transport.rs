//! One peer connection: negotiation, incoming and outgoing tracks, data channels.
//!
//! There is no I/O in here except that datagrams to be sent go straight to the participant's
//! sockets. What the connection reports is returned as [`Event`]s; time is an argument.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use livekit_protocol as proto;
use proto::data_packet::Kind as DataKind;
use str0m::change::{SdpAnswer, SdpOffer, SdpPendingOffer};
use str0m::channel::{ChannelConfig, ChannelId, Reliability};
use str0m::format::{Codec, PayloadParams};
use str0m::media::{Direction as MediaDirection, MediaKind, Mid};
use str0m::net::Receive;
use str0m::rtp::{ExtensionValues, RtpWrite, Ssrc};
use str0m::{Candidate, IceConnectionState, Input, Output, Rtc, RtcConfig, RtcError};

use crate::forward::Renumbering;
use crate::network::{Datagram, Network};
use crate::red::Unwrapper;
use crate::room::{MediaPacket, Redundancy, Subscription};
use crate::sdp::{Description, Direction, Medium};

/// Labels of the channels, as every LiveKit client names them.
const RELIABLE: &str = "_reliable";
const LOSSY: &str = "_lossy";
const DATA_TRACK: &str = "_data_track";
/// Bytes that SCTP may hold for a client before packets wait here.
const SCTP_BUFFER_BYTES: usize = 2 * 1024 * 1024;
/// The largest message either side may send; a text stream's chunk is 15 kB, a user packet at most
/// 64 kB.
const MAX_MESSAGE_BYTES: u32 = 256 * 1024;
/// Bytes of reliable packets that wait for the channel or for SCTP. A client that is further behind
/// than this loses the oldest.
const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;

/// Which of a participant's connections this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The client sends, and offers.
    Publisher,
    /// The server sends, and offers.
    Subscriber,
    /// Both send; the client offers.
    Both,
}

/// A data channel's purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    Packets(DataKind),
    DataTrack,
}

impl Lane {
    fn of_label(label: &str) -> Option<Self> {
        match label {
            RELIABLE => Some(Self::Packets(DataKind::Reliable)),
            LOSSY => Some(Self::Packets(DataKind::Lossy)),
            DATA_TRACK => Some(Self::DataTrack),
            _ => None,
        }
    }

    fn waits(self) -> bool {
        self == Self::Packets(DataKind::Reliable)
    }
}

/// An event of a peer connection.
#[derive(Debug)]
pub(crate) enum Event {
    Connected,
    /// The client cannot be reached now; it may come back.
    Lost,
    /// The connection works again.
    Found,
    /// The client has closed the connection.
    Closed,
    /// A packet of the track that the client sends in the section.
    Media {
        mid: Mid,
        packet: MediaPacket,
    },
    Data {
        lane: Lane,
        contents: Vec<u8>,
    },
    /// Share of the packets to the client that it did not get, 0 to 1.
    Loss(f32),
}

/// What a client sends in a section of its offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OfferedTrack {
    pub mid: String,
    /// The client's id of the track, when the offer names one.
    pub track_id: Option<String>,
    pub audio: bool,
    /// Whether it can be sent as redundant audio (RFC 2198).
    pub red: bool,
}

/// Codec settings that the answer asks the client for, by section.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OpusWish {
    pub stereo: bool,
    pub dtx: bool,
    /// Redundant audio (RFC 2198).
    pub red: bool,
}

/// An offer or answer of the server, ready to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub sdp: String,
    pub mid_to_track_id: HashMap<String, String>,
    /// Tracks that the client receives as of this description.
    pub started: Vec<Subscription>,
}

struct Sending {
    mid: Mid,
    /// Whether the client receives on the section at all.
    available: bool,
    /// Whether it accepts redundant audio there.
    red: bool,
    subscription: Option<Subscription>,
    numbering: Renumbering,
}

struct Receiving {
    mid: Mid,
    unwrapper: Unwrapper,
}

struct Waiting {
    lane: Lane,
    contents: Bytes,
}

pub(crate) struct Transport {
    rtc: Rtc,
    role: Role,
    deadline: Instant,
    pending: Option<PendingOffer>,
    channels_offered: bool,
    channels: HashMap<Lane, ChannelId>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    receiving: HashMap<Ssrc, Receiving>,
    /// Sections on which the client receives, in the order in which they were negotiated.
    sending: Vec<Sending>,
    wanted: Vec<Subscription>,
    /// Something changed that the client has not been offered yet.
    stale: bool,
}

struct PendingOffer {
    change: SdpPendingOffer,
    offered: Vec<(Mid, Subscription)>,
}

impl Transport {
    pub fn new(role: Role, candidates: &[Candidate], now: Instant) -> Self {
        let mut rtc = RtcConfig::new()
            .clear_codecs()
            .enable_opus(true, true)
            // Video is not forwarded, but clients that only ask for it must get an answer.
            .enable_vp8(true)
            .set_rtp_mode(true)
            .set_stats_interval(Some(std::time::Duration::from_secs(2)))
            .set_sctp_max_buffered_amount(SCTP_BUFFER_BYTES)
            .set_sctp_max_message_size(MAX_MESSAGE_BYTES)
            .build(now);
        for candidate in candidates {
            rtc.add_local_candidate(candidate.clone());
        }
        Self {
            rtc,
            role,
            deadline: now,
            pending: None,
            channels_offered: false,
            channels: HashMap::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            receiving: HashMap::new(),
            sending: Vec::new(),
            wanted: Vec::new(),
            stale: role == Role::Subscriber,
        }
    }

    /// When [`Transport::poll`] has to be called again at the latest.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    pub fn is_connected(&self) -> bool {
        self.rtc.is_connected()
    }

    pub fn add_remote_candidate(&mut self, candidate: Candidate) {
        self.rtc.add_remote_candidate(candidate);
    }

    /// Tells the client that the connection ends; the next polls send it.
    pub fn close(&mut self) {
        if self.rtc.is_alive()
            && let Err(error) = self.rtc.close()
        {
            tracing::debug!("a peer connection did not close: {error}");
        }
    }

    /// Takes a datagram if it belongs to this connection.
    pub fn receive(&mut self, datagram: &Datagram, now: Instant) -> bool {
        let parsed = Receive::new(
            datagram.protocol,
            datagram.source,
            datagram.destination,
            &datagram.contents,
        );
        let Ok(receive) = parsed else { return false };
        let input = Input::Receive(now, receive);
        if !self.rtc.accepts(&input) {
            return false;
        }
        if let Err(error) = self.rtc.handle_input(input) {
            tracing::debug!("a datagram was not accepted: {error}");
        }
        true
    }

    /// Lets time pass, sends what is to be sent and collects what has happened.
    pub fn poll(&mut self, now: Instant, network: &Network, events: &mut Vec<Event>) {
        if now >= self.deadline
            && let Err(error) = self.rtc.handle_input(Input::Timeout(now))
        {
            tracing::debug!("a peer connection failed: {error}");
        }
        loop {
            self.flush_waiting();
            let end = self.poll_once(network, events);
            if let Some(deadline) = end {
                self.deadline = deadline;
                return;
            }
        }
    }

    fn poll_once(&mut self, network: &Network, events: &mut Vec<Event>) -> Option<Instant> {
        const DEAD: std::time::Duration = std::time::Duration::from_secs(3600);
        match self.rtc.poll_output() {
            Ok(Output::Timeout(deadline)) => return Some(deadline),
            Ok(Output::Transmit(transmit)) => {
                network.send(transmit.proto, transmit.destination, &transmit.contents);
            }
            Ok(Output::Event(event)) => self.handle(event, events),
            Err(error) => {
                tracing::debug!("a peer connection failed: {error}");
                events.push(Event::Closed);
                return Some(Instant::now() + DEAD);
            }
        }
        None
    }

    fn handle(&mut self, event: str0m::Event, events: &mut Vec<Event>) {
        match event {
            str0m::Event::Connected => events.push(Event::Connected),
            str0m::Event::Closed => events.push(Event::Closed),
            str0m::Event::IceConnectionStateChange(IceConnectionState::Disconnected) => {
                events.push(Event::Lost)
            }
            str0m::Event::IceConnectionStateChange(
                IceConnectionState::Connected | IceConnectionState::Completed,
            ) => {
                events.push(Event::Found);
            }
            str0m::Event::ChannelOpen(id, label) => {
                if let Some(lane) = Lane::of_label(&label) {
                    self.channels.insert(lane, id);
                }
            }
            str0m::Event::ChannelClose(id) => self.channels.retain(|_, known| *known != id),
            str0m::Event::ChannelData(data) => {
                let lane = self
                    .channels
                    .iter()
                    .find(|(_, id)| **id == data.id)
                    .map(|(lane, _)| *lane);
                if let Some(lane) = lane {
                    events.push(Event::Data {
                        lane,
                        contents: data.data,
                    });
                }
            }
            str0m::Event::RtpPacket(packet) => {
                let ssrc = packet.header.ssrc;
                if !self.receiving.contains_key(&ssrc) {
                    let mid = self
                        .rtc
                        .direct_api()
                        .stream_rx(&ssrc)
                        .map(|stream| stream.mid());
                    let Some(mid) = mid else { return };
                    let unwrapper = Unwrapper::default();
                    self.receiving.insert(ssrc, Receiving { mid, unwrapper });
                }
                if packet.payload.is_empty() {
                    return;
                }
                let number = packet.header.payload_type;
                let is_red = opus_params(&self.rtc).any(|opus| opus.red() == Some(number));
                let Some(Receiving { mid, unwrapper }) = self.receiving.get_mut(&ssrc) else {
                    return;
                };
                let plain = MediaPacket {
                    track_sid: Arc::default(),
                    sequence: *packet.seq_no,
                    timestamp: packet.header.timestamp,
                    marker: packet.header.marker,
                    level: packet.header.ext_vals.audio_level,
                    voice: packet.header.ext_vals.voice_activity,
                    payload: None,
                    redundancy: Redundancy::None,
                };
                let mid = *mid;
                let mut tell = |packet| events.push(Event::Media { mid, packet });
                if !is_red {
                    unwrapper.note(plain.sequence);
                    let payload = Some(packet.payload);
                    tell(MediaPacket { payload, ..plain });
                    return;
                }
                let unwrapped = unwrapper
                    .take(plain.sequence, &packet.payload)
                    .unwrap_or_default();
                for (distance, offset, payload) in unwrapped.recovered {
                    tell(MediaPacket {
                        sequence: plain.sequence - distance,
                        timestamp: plain.timestamp.wrapping_sub(offset),
                        marker: false,
                        payload: Some(payload),
                        redundancy: Redundancy::Recovered,
                        ..plain.clone()
                    });
                }
                tell(MediaPacket {
                    payload: unwrapped.primary,
                    redundancy: Redundancy::Wrapped(packet.payload),
                    ..plain
                });
            }
            str0m::Event::MediaEgressStats(stats) => {
                if let Some(loss) = stats.loss {
                    events.push(Event::Loss(loss));
                }
            }
            _ => {}
        }
    }

    /// Sends on a data channel. Reliable packets wait for a channel that is not open or full,
    /// others are dropped.
    pub fn send_data(&mut self, lane: Lane, contents: Bytes) {
        let queue_is_empty = !self.waiting.iter().any(|waiting| waiting.lane == lane);
        if queue_is_empty && self.write(lane, &contents) {
            return;
        }
        if !lane.waits() {
            return;
        }
        self.waiting_bytes += contents.len();
        self.waiting.push_back(Waiting { lane, contents });
        while self.waiting_bytes > MAX_WAITING_BYTES {
            let Some(oldest) = self.waiting.pop_front() else {
                break;
            };
            self.waiting_bytes -= oldest.contents.len();
            tracing::warn!("a client does not take its data; a reliable packet is lost to it");
        }
    }

    fn flush_waiting(&mut self) {
        while let Some(first) = self.waiting.front() {
            let (lane, contents) = (first.lane, first.contents.clone());
            if !self.write(lane, &contents) {
                return;
            }
            self.waiting_bytes -= contents.len();
            self.waiting.pop_front();
        }
    }

    fn write(&mut self, lane: Lane, contents: &[u8]) -> bool {
        let Some(id) = self.channels.get(&lane) else {
            return false;
        };
        let Some(mut channel) = self.rtc.channel(*id) else {
            return false;
        };
        channel.write(true, contents).unwrap_or_else(|error| {
            tracing::debug!("a data channel did not take a packet: {error}");
            false
        })
    }

    /// Sends a packet of a track that the client is subscribed to.
    pub fn send_media(&mut self, packet: &MediaPacket, now: Instant) {
        let carries = |sending: &&mut Sending| {
            let carried = sending.subscription.as_ref();
            carried.is_some_and(|subscription| subscription.track_sid == packet.track_sid)
        };
        let Some(sending) = self.sending.iter_mut().find(carries) else {
            return;
        };
        let (payload, wrapped) = match (&packet.redundancy, sending.red) {
            (Redundancy::Wrapped(payload), true) => (payload, true),
            (Redundancy::Recovered, true) => return,
            _ => match &packet.payload {
                Some(payload) => (payload, false),
                None => return,
            },
        };
        let mid = sending.mid;
        let clock = tokio::time::Instant::from_std(now);
        let Some(numbers) =
            sending
                .numbering
                .next(&packet.track_sid, packet.sequence, packet.timestamp, clock)
        else {
            return;
        };
        let Some(media) = self.rtc.media(mid) else {
            return;
        };
        let opus = opus_params(&self.rtc).find(|opus| media.remote_pts().contains(&opus.pt()));
        let payload_type = opus.and_then(|opus| match wrapped {
            true => opus.red(),
            false => Some(opus.pt()),
        });
        let Some(payload_type) = payload_type else {
            return;
        };
        let mut api = self.rtc.direct_api();
        let Some(stream) = api.stream_tx_by_mid(mid, None) else {
            return;
        };
        let extensions = ExtensionValues {
            audio_level: packet.level,
            voice_activity: packet.voice,
            ..Default::default()
        };
        let write = RtpWrite::new(
            payload_type,
            numbers.sequence.into(),
            numbers.timestamp,
            now,
            Arc::clone(payload),
        );
        stream.write_rtp(write.marker(packet.marker).ext_vals(extensions));
    }

    /// Notes that the client is to receive a track.
    pub fn subscribe(&mut self, subscription: Subscription) {
        self.wanted.push(subscription);
        self.stale = true;
    }

    /// Notes that the client is no longer to receive a track.
    pub fn unsubscribe(&mut self, track_sid: &str) {
        self.wanted.retain(|wanted| &*wanted.track_sid != track_sid);
        let carries = |sending: &Sending| {
            let carried = sending.subscription.as_ref();
            carried.is_some_and(|subscription| &*subscription.track_sid == track_sid)
        };
        if let Some(mid) = self
            .sending
            .iter()
            .find(|sending| carries(sending))
            .map(|sending| sending.mid)
        {
            self.free(mid);
            self.stale = true;
        }
        if let Some(pending) = &mut self.pending {
            let before = pending.offered.len();
            pending
                .offered
                .retain(|(_, offered)| &*offered.track_sid != track_sid);
            self.stale |= pending.offered.len() != before;
        }
    }

    /// How many sections the client has to add for its new subscriptions; `None` if nothing has to
    /// be negotiated. Asked once for every change.
    pub fn missing_sections(&mut self) -> Option<u32> {
        if !std::mem::take(&mut self.stale) {
            return None;
        }
        let free = self.free_sections().len();
        Some(self.wanted.len().saturating_sub(free) as u32)
    }

    /// Sections that the client only receives on and that carry nothing.
    fn free_sections(&self) -> Vec<Mid> {
        let free = self
            .sending
            .iter()
            .filter(|sending| sending.available && sending.subscription.is_none());
        free.map(|sending| sending.mid).collect()
    }

    fn sending_mut(&mut self, mid: Mid) -> &mut Sending {
        let position = self
            .sending
            .iter()
            .position(|sending| sending.mid == mid)
            .unwrap_or_else(|| {
                self.sending.push(Sending {
                    mid,
                    available: true,
                    red: false,
                    subscription: None,
                    numbering: Renumbering::default(),
                });
                self.sending.len() - 1
            });
        &mut self.sending[position]
    }

    /// Notes that the client does not receive on a section any more. What it received there needs
    /// another one.
    fn withdraw(&mut self, mid: Mid) {
        if let Some(sending) = self.sending.iter_mut().find(|sending| sending.mid == mid) {
            sending.available = false;
            let carried = self.free(mid);
            self.wanted.extend(carried);
        }
    }

    /// Removes the track from a section. The next track there is a new stream, with another SSRC:
    /// clients do not play a stream again that has ended.
    fn free(&mut self, mid: Mid) -> Option<Subscription> {
        let sending = self.sending_mut(mid);
        let carried = sending.subscription.take()?;
        sending.numbering = Renumbering::default();
        let mut api = self.rtc.direct_api();
        let ssrc = api.new_ssrc();
        api.reset_stream_tx(mid, None, ssrc, None);
        Some(carried)
    }

    /// An offer to the client, if there is something new to offer. Only for a subscriber
    /// connection.
    pub fn create_offer(
        &mut self,
        ice_restart: bool,
        stereo: impl Fn(&str) -> bool,
    ) -> Option<Outgoing> {
        if self.pending.is_some() && !ice_restart {
            return None;
        }
        if !self.stale && !ice_restart {
            return None;
        }
        if let Some(lost) = self.pending.take() {
            // The client never saw the offer. What it offered has to be offered again.
            self.wanted.extend(
                lost.offered
                    .into_iter()
                    .map(|(_, subscription)| subscription),
            );
        }
        self.stale = false;
        let free = self.free_sections();
        let mut offered = Vec::new();
        let mut changes = self.rtc.sdp_api();
        if !self.channels_offered {
            self.channels_offered = true;
            for config in channel_configs() {
                changes.add_channel_with_config(config);
            }
        }
        let mut reusable = free.iter().copied();
        for subscription in self.wanted.drain(..) {
            let mid = match reusable.next() {
                Some(mid) => {
                    changes.set_direction(mid, MediaDirection::SendOnly);
                    mid
                }
                None => {
                    let stream = stream_id(&subscription);
                    let track = subscription.track_sid.to_string();
                    changes.add_media(
                        MediaKind::Audio,
                        MediaDirection::SendOnly,
                        Some(stream),
                        Some(track),
                        None,
                    )
                }
            };
            offered.push((mid, subscription));
        }
        for mid in reusable {
            changes.set_direction(mid, MediaDirection::Inactive);
        }
        if ice_restart {
            changes.ice_restart(true);
        }
        let (offer, change) = changes.apply()?;
        let mut text = Description::parse(&offer.to_sdp_string());
        text.clear_stream_list();
        let mut mid_to_track_id = HashMap::new();
        for section in &mut text.sections {
            if section.medium() == Medium::Data {
                continue;
            }
            let Some(mid) = section.mid().map(Mid::from) else {
                continue;
            };
            let carried = offered
                .iter()
                .find(|(offered_mid, _)| *offered_mid == mid)
                .map(|(_, subscription)| subscription)
                .or_else(|| {
                    self.sending
                        .iter()
                        .find(|sending| sending.mid == mid)?
                        .subscription
                        .as_ref()
                });
            match carried {
                Some(subscription) => {
                    section.set_msid(&stream_id(subscription), &subscription.track_sid);
                    section.set_direction(Direction::SendOnly);
                    if stereo(&subscription.track_sid) {
                        section.add_opus_parameters(&["sprop-stereo=1"]);
                    }
                    mid_to_track_id.insert(mid.to_string(), subscription.track_sid.to_string());
                }
                None => {
                    section.set_direction(Direction::Inactive);
                    section.clear_msid();
                    section.clear_ssrcs();
                }
            }
        }
        self.pending = Some(PendingOffer { change, offered });
        Some(Outgoing {
            sdp: text.to_string(),
            mid_to_track_id,
            started: Vec::new(),
        })
    }

    /// Takes the client's answer to the last offer. Returns what the client receives from now on.
    pub fn accept_answer(&mut self, sdp: &str) -> Result<Vec<Subscription>, RtcError> {
        let answer = SdpAnswer::from_sdp_string(sdp)?;
        let Some(pending) = self.pending.take() else {
            // An answer to an offer that an ICE restart has replaced.
            return Ok(Vec::new());
        };
        self.rtc.sdp_api().accept_answer(pending.change, answer)?;
        let mut started = Vec::new();
        for (mid, subscription) in pending.offered {
            started.push(subscription.clone());
            self.sending_mut(mid).subscription = Some(subscription);
        }
        // Sections whose track was removed before the answer came must be known for the next one.
        let text = Description::parse(sdp);
        for section in text
            .sections
            .iter()
            .filter(|section| section.medium() == Medium::Audio)
        {
            if let Some(mid) = section.mid().map(Mid::from)
                && self.rtc.media(mid).is_some()
            {
                self.sending_mut(mid).red = section.has_red();
            }
        }
        Ok(started)
    }

    /// Answers a client's offer. `opus` has the settings that each sending section is asked for, by
    /// its mid.
    pub fn accept_offer(
        &mut self,
        sdp: &str,
        opus: impl Fn(&str) -> OpusWish,
        stereo: impl Fn(&str) -> bool,
    ) -> Result<Outgoing, RtcError> {
        let offer = Description::parse(sdp);
        let answer = self
            .rtc
            .sdp_api()
            .accept_offer(SdpOffer::from_sdp_string(sdp)?)?;
        let mut text = Description::parse(&answer.to_sdp_string());
        text.clear_stream_list();
        let mut started = Vec::new();
        let mut mid_to_track_id = HashMap::new();
        for offered in &offer.sections {
            let Some(mid) = offered.mid() else { continue };
            let key = Mid::from(mid);
            let Some(section) = text.section_mut(mid) else {
                continue;
            };
            let (medium, direction) = (offered.medium(), offered.direction());
            if medium == Medium::Data {
                continue;
            }
            if !offered.has_red() {
                section.remove_red();
            }
            if medium == Medium::Audio && direction.sends() {
                section.set_direction(Direction::RecvOnly);
                section.clear_msid();
                section.clear_ssrcs();
                let wish = opus(mid);
                let mut parameters = Vec::new();
                if wish.stereo {
                    parameters.push("stereo=1");
                }
                if wish.dtx {
                    parameters.push("usedtx=1");
                }
                section.add_opus_parameters(&parameters);
                if !wish.red {
                    section.prefer_opus();
                }
                self.withdraw(key);
                continue;
            }
            let may_carry = self.role == Role::Both
                && medium == Medium::Audio
                && direction == Direction::RecvOnly;
            if may_carry {
                let is_free = self.sending_mut(key).subscription.is_none();
                let next = (is_free && !self.wanted.is_empty()).then(|| self.wanted.remove(0));
                let sending = self.sending_mut(key);
                sending.available = true;
                sending.red = offered.has_red();
                if let Some(subscription) = next {
                    started.push(subscription.clone());
                    sending.subscription = Some(subscription);
                }
                if let Some(subscription) = &sending.subscription {
                    section.set_direction(Direction::SendOnly);
                    section.set_msid(&stream_id(subscription), &subscription.track_sid);
                    if stereo(&subscription.track_sid) {
                        section.add_opus_parameters(&["sprop-stereo=1"]);
                    }
                    mid_to_track_id.insert(mid.to_owned(), subscription.track_sid.to_string());
                    continue;
                }
            } else {
                self.withdraw(key);
            }
            section.set_direction(Direction::Inactive);
            section.clear_msid();
            section.clear_ssrcs();
        }
        // The client has to be told only if sections are missing.
        self.stale = self.role == Role::Both && !self.wanted.is_empty();
        Ok(Outgoing {
            sdp: text.to_string(),
            mid_to_track_id,
            started,
        })
    }
}

/// The negotiated payload types of Opus.
fn opus_params(rtc: &Rtc) -> impl Iterator<Item = &PayloadParams> {
    let all = rtc.codec_config().params().iter();
    all.filter(|params| params.spec().codec == Codec::Opus)
}

/// What the client sends according to its offer.
pub(crate) fn offered_tracks(sdp: &str) -> Vec<OfferedTrack> {
    Description::parse(sdp)
        .sections
        .iter()
        .filter(|section| section.medium() != Medium::Data && section.direction().sends())
        .filter_map(|section| {
            Some(OfferedTrack {
                mid: section.mid()?.to_owned(),
                track_id: section.track_id().map(str::to_owned),
                audio: section.medium() == Medium::Audio,
                red: section.has_red(),
            })
        })
        .collect()
}

/// The name of a stream in LiveKit's format, from which clients take publisher and track.
fn stream_id(subscription: &Subscription) -> String {
    format!("{}|{}", subscription.publisher_sid, subscription.track_sid)
}

fn channel_configs() -> [ChannelConfig; 3] {
    let unreliable = Reliability::MaxRetransmits { retransmits: 0 };
    [
        ChannelConfig {
            label: RELIABLE.into(),
            ..Default::default()
        },
        ChannelConfig {
            label: LOSSY.into(),
            ordered: false,
            reliability: unreliable,
            ..Default::default()
        },
        ChannelConfig {
            label: DATA_TRACK.into(),
            ordered: false,
            reliability: unreliable,
            ..Default::default()
        },
    ]
}
