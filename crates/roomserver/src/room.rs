//! One room: who is in it, what they publish, who hears whom.
//!
//! The state lies behind one mutex that is held for one short method at a time. Nothing here
//! touches a socket: effects are messages in the bounded inboxes of the participants' tasks
//! ([`crate::peer`]).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use livekit_protocol as proto;
use parking_lot::Mutex;
use prost::Message as _;
use proto::data_packet::{Kind as DataKind, Value as DataValue};
use proto::participant_info::{Kind, State};
use proto::signal_response::Message as Signal;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;

use crate::data_tracks::DataTracks;
use crate::ids;
use crate::rooms::{
    DEFAULT_DEPARTURE_TIMEOUT_S, DEFAULT_EMPTY_TIMEOUT_S, ParticipantChange, RoomError, RoomEvent,
    RoomOptions, TappedPacket,
};
use crate::speakers::LevelWindow;
use crate::transport::Lane;

/// Control messages that a participant's task may leave unread. It reads them all before it does
/// anything else, so a full inbox means that the task hangs.
pub(crate) const INBOX_CAPACITY: usize = 4096;
/// Media packets that a participant's task may leave unread: a second and a half of three speakers.
pub(crate) const MEDIA_CAPACITY: usize = 256;
/// Limits of the real server (`limit` section of its configuration, `config.go`).
pub(crate) const MAX_METADATA_BYTES: usize = 512 * 1024;
pub(crate) const MAX_ATTRIBUTES_BYTES: usize = 64 * 1024;
pub(crate) const MAX_NAME_BYTES: usize = 256;
/// Reliable packets are kept this long for participants whose data channel is being set up again.
const DATA_CACHE_AGE: Duration = Duration::from_secs(2);
const DATA_CACHE_BYTES: usize = 1_000_000;

/// A message of a room to a participant's task.
#[derive(Debug)]
pub(crate) enum ToPeer {
    /// Send this to the client.
    Signal(Box<Signal>),
    /// Send this track's media to the client.
    Subscribe(Subscription),
    /// Stop sending this track's media.
    Unsubscribe { track_sid: Arc<str> },
    /// The participant may no longer publish this track.
    RevokeTrack { track_sid: String },
    /// Send this packet on the data channel of its kind.
    Data { lane: Lane, packet: Bytes },
    /// The participant's metadata, name, attributes or permission changed; its token should say the
    /// same.
    ClaimsChanged,
    /// Tell the client to leave, and end.
    Close { reason: proto::DisconnectReason },
    /// A client has come back with a new signalling connection.
    Resume(Box<crate::signal::Resumed>),
}

/// A track that a participant is to receive.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    pub track_sid: Arc<str>,
    pub publisher_sid: String,
}

/// One RTP packet between a publisher and a subscriber.
#[derive(Debug, Clone)]
pub(crate) struct MediaPacket {
    pub track_sid: Arc<str>,
    /// Extended sequence number of the publisher.
    pub sequence: u64,
    pub timestamp: u32,
    pub marker: bool,
    /// RFC 6464: 0 is loudest, -127 is silence.
    pub level: Option<i8>,
    pub voice: Option<bool>,
    /// Opus, for subscribers that have not negotiated redundant audio; `None` if a copy has brought
    /// it already.
    pub payload: Option<Arc<[u8]>>,
    pub redundancy: Redundancy,
}

/// What participants may publish.
pub(crate) fn enabled_codecs() -> Vec<proto::Codec> {
    ["audio/opus", "audio/red"]
        .map(|mime| proto::Codec {
            mime: mime.into(),
            fmtp_line: String::new(),
        })
        .to_vec()
}

/// How a packet is related to redundant audio (RFC 2198).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Redundancy {
    /// Not at all.
    None,
    /// This is the payload that the publisher sent, with copies of earlier packets in it.
    Wrapped(Arc<[u8]>),
    /// The packet was lost and comes from a copy. Subscribers that get redundant audio have that
    /// copy too.
    Recovered,
}

/// The two inboxes of a participant's task.
#[derive(Debug, Clone)]
pub(crate) struct Inbox {
    pub control: mpsc::Sender<ToPeer>,
    pub media: mpsc::Sender<MediaPacket>,
}

impl Inbox {
    fn send(&self, message: ToPeer) {
        if let Err(mpsc::error::TrySendError::Full(message)) = self.control.try_send(message) {
            tracing::error!("a participant's task does not read its inbox; dropped {message:?}");
        }
    }

    /// Sends data. Lossy data is dropped before it could take the place of reliable data.
    fn data(&self, lane: Lane, packet: Bytes) {
        if lane != Lane::Packets(DataKind::Reliable) && self.control.capacity() < INBOX_CAPACITY / 2
        {
            return;
        }
        self.send(ToPeer::Data { lane, packet });
    }

    fn signal(&self, message: Signal) {
        self.send(ToPeer::Signal(Box::new(message)));
    }
}

/// A participant that wants to join.
#[derive(Debug)]
pub(crate) struct JoinSpec {
    pub identity: String,
    pub name: String,
    pub kind: Kind,
    pub metadata: String,
    pub attributes: HashMap<String, String>,
    pub permission: proto::ParticipantPermission,
    pub auto_subscribe: bool,
    pub client_protocol: i32,
    pub capabilities: Vec<i32>,
    pub inbox: Inbox,
}

/// The state of the room that a new participant gets.
#[derive(Debug)]
pub(crate) struct Joined {
    pub room: proto::Room,
    pub participant: proto::ParticipantInfo,
    pub others: Vec<proto::ParticipantInfo>,
}

/// What is to be done with a room after a sweep.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sweep {
    Keep,
    CloseIdle,
}

pub(crate) struct Room {
    name: String,
    events: broadcast::Sender<RoomEvent>,
    options: Arc<RoomOptions>,
    state: Mutex<RoomState>,
}

struct RoomState {
    info: proto::Room,
    members: Vec<Member>,
    taps: Vec<mpsc::Sender<TappedPacket>>,
    created: Instant,
    /// When the last participant left that holds the room open.
    last_left: Option<Instant>,
    /// Whether a participant that holds the room open has ever been in it.
    was_joined: bool,
    closed: bool,
    data_cache: VecDeque<CachedData>,
    data_cache_bytes: usize,
    recent_nonces: VecDeque<Vec<u8>>,
    speakers: HashMap<String, f32>,
    quality_changed: bool,
    data_tracks: DataTracks,
}

struct CachedData {
    added: Instant,
    sender_sid: String,
    sequence: u32,
    destinations: Vec<String>,
    packet: Bytes,
}

struct Member {
    info: proto::ParticipantInfo,
    inbox: Inbox,
    tracks: Vec<Track>,
    auto_subscribe: bool,
    /// Choices of the participant that differ from `auto_subscribe`, by track.
    wanted: HashMap<String, bool>,
    /// Who may subscribe to this participant's tracks; `None` means everybody.
    subscription_permission: Option<proto::SubscriptionPermission>,
    last_reliable_sequence: u32,
    quality: proto::ConnectionQuality,
}

struct Track {
    info: proto::TrackInfo,
    sid: Arc<str>,
    subscribers: Vec<Subscriber>,
    level: LevelWindow,
    /// Somebody receives the track, and the publisher has been told so.
    heard: bool,
}

struct Subscriber {
    sid: String,
    media: mpsc::Sender<MediaPacket>,
}

impl Member {
    fn holds_room_open(&self) -> bool {
        !is_dependent(&self.info)
    }

    fn is_hidden(&self) -> bool {
        self.info
            .permission
            .as_ref()
            .is_some_and(|permission| permission.hidden)
    }

    fn is_active(&self) -> bool {
        self.info.state() == State::Active
    }

    fn can_subscribe(&self) -> bool {
        self.info
            .permission
            .as_ref()
            .is_some_and(|permission| permission.can_subscribe)
    }

    fn wants(&self, track_sid: &str) -> bool {
        self.wanted
            .get(track_sid)
            .copied()
            .unwrap_or(self.auto_subscribe)
    }

    fn allows(&self, track_sid: &str, subscriber: &proto::ParticipantInfo) -> bool {
        let Some(permission) = &self.subscription_permission else {
            return true;
        };
        permission.all_participants
            || permission.track_permissions.iter().any(|allowed| {
                (allowed.participant_identity == subscriber.identity
                    || (!allowed.participant_sid.is_empty()
                        && allowed.participant_sid == subscriber.sid))
                    && (allowed.all_tracks || allowed.track_sids.iter().any(|sid| sid == track_sid))
            })
    }

    fn bump(&mut self) {
        self.info.version += 1;
        self.info.tracks = self.tracks.iter().map(|track| track.info.clone()).collect();
        self.info.is_publisher = !self.tracks.is_empty() || !self.info.data_tracks.is_empty();
    }
}

/// Agents and recorders are in a room because of the others and do not hold it open.
fn is_dependent(info: &proto::ParticipantInfo) -> bool {
    #[expect(deprecated, reason = "a recorder is known by this flag of its token")]
    let flagged = info
        .permission
        .as_ref()
        .is_some_and(|permission| permission.recorder || permission.agent);
    flagged || matches!(info.kind(), Kind::Agent | Kind::Egress)
}

impl RoomState {
    fn member(&self, identity: &str) -> Option<&Member> {
        self.members
            .iter()
            .find(|member| member.info.identity == identity)
    }

    fn member_mut(&mut self, identity: &str) -> Option<&mut Member> {
        self.members
            .iter_mut()
            .find(|member| member.info.identity == identity)
    }

    fn session_mut(&mut self, sid: &str) -> Option<&mut Member> {
        self.members
            .iter_mut()
            .find(|member| member.info.sid == sid)
    }

    /// Agents and recorders are not counted, hidden participants are (`room.go`, `updateProto`).
    fn count(&mut self) {
        let counted = self
            .members
            .iter()
            .filter(|member| member.holds_room_open());
        self.info.num_participants = counted.count() as u32;
        self.info.num_publishers = self
            .members
            .iter()
            .filter(|member| member.info.is_publisher)
            .count() as u32;
    }

    /// Tells everybody about a participant. Hidden ones are known only to themselves.
    fn broadcast(&self, info: &proto::ParticipantInfo, to_self: bool) {
        let hidden = info
            .permission
            .as_ref()
            .is_some_and(|permission| permission.hidden);
        for member in &self.members {
            let is_self = member.info.sid == info.sid;
            if (is_self && to_self) || (!is_self && !hidden) {
                member
                    .inbox
                    .signal(Signal::Update(proto::ParticipantUpdate {
                        participants: vec![info.clone()],
                    }));
            }
        }
    }

    fn broadcast_room(&self) {
        for member in &self.members {
            member.inbox.signal(Signal::RoomUpdate(proto::RoomUpdate {
                room: Some(self.info.clone()),
            }));
        }
    }

    /// Makes subscriptions match wishes and permissions.
    fn reconcile(&mut self) {
        struct Viewer {
            info: proto::ParticipantInfo,
            media: mpsc::Sender<MediaPacket>,
            inbox: Inbox,
            eligible: bool,
            auto_subscribe: bool,
            wanted: HashMap<String, bool>,
        }
        let viewers: Vec<Viewer> = self
            .members
            .iter()
            .map(|member| Viewer {
                info: proto::ParticipantInfo {
                    sid: member.info.sid.clone(),
                    identity: member.info.identity.clone(),
                    ..Default::default()
                },
                media: member.inbox.media.clone(),
                inbox: member.inbox.clone(),
                eligible: member.info.state() != State::Joining && member.can_subscribe(),
                auto_subscribe: member.auto_subscribe,
                wanted: member.wanted.clone(),
            })
            .collect();
        for publisher in &mut self.members {
            let hidden = publisher.is_hidden();
            let mut tracks = std::mem::take(&mut publisher.tracks);
            for track in &mut tracks {
                track.subscribers.retain(|subscriber| {
                    viewers
                        .iter()
                        .any(|viewer| viewer.info.sid == subscriber.sid)
                });
                for viewer in &viewers {
                    if viewer.info.sid == publisher.info.sid {
                        continue;
                    }
                    let wants = viewer
                        .wanted
                        .get(&*track.sid)
                        .copied()
                        .unwrap_or(viewer.auto_subscribe);
                    let should = viewer.eligible
                        && wants
                        && !hidden
                        && publisher.allows(&track.sid, &viewer.info);
                    let position = track
                        .subscribers
                        .iter()
                        .position(|one| one.sid == viewer.info.sid);
                    match (should, position) {
                        (true, None) => {
                            track.subscribers.push(Subscriber {
                                sid: viewer.info.sid.clone(),
                                media: viewer.media.clone(),
                            });
                            viewer.inbox.send(ToPeer::Subscribe(Subscription {
                                track_sid: Arc::clone(&track.sid),
                                publisher_sid: publisher.info.sid.clone(),
                            }));
                        }
                        (false, Some(position)) => {
                            track.subscribers.swap_remove(position);
                            viewer.inbox.send(ToPeer::Unsubscribe {
                                track_sid: Arc::clone(&track.sid),
                            });
                        }
                        (true, Some(_)) | (false, None) => {}
                    }
                }
            }
            publisher.tracks = tracks;
        }
    }

    /// Removes a track from the room, and its media from its subscribers.
    fn drop_track(&self, track: &Track) {
        for subscriber in &track.subscribers {
            if let Some(member) = self
                .members
                .iter()
                .find(|member| member.info.sid == subscriber.sid)
            {
                member.inbox.send(ToPeer::Unsubscribe {
                    track_sid: Arc::clone(&track.sid),
                });
            }
        }
    }

    /// Removes a participant from the room; its task has been told already or is the caller.
    fn take_out(
        &mut self,
        position: usize,
        reason: proto::DisconnectReason,
    ) -> (proto::ParticipantInfo, Vec<Track>) {
        let mut member = self.members.remove(position);
        let tracks = std::mem::take(&mut member.tracks);
        for track in &tracks {
            self.drop_track(track);
        }
        if member.holds_room_open() {
            self.last_left = Some(Instant::now());
        }
        member.info.set_state(State::Disconnected);
        member.info.set_disconnect_reason(reason);
        member.bump();
        self.speakers.remove(&member.info.sid);
        self.data_tracks.forget(&member.info.sid);
        member.info.data_tracks.clear();
        for other in &mut self.members {
            for track in &mut other.tracks {
                track
                    .subscribers
                    .retain(|subscriber| subscriber.sid != member.info.sid);
            }
        }
        self.count();
        self.broadcast(&member.info, false);
        (member.info, tracks)
    }
}

impl Room {
    pub fn new(name: &str, options: RoomOptions, events: broadcast::Sender<RoomEvent>) -> Self {
        let now_ms = chrono::Utc::now().timestamp_millis();
        let or_default = |value: u32, default| if value == 0 { default } else { value };
        let info = proto::Room {
            sid: ids::new_id(ids::ROOM),
            name: name.to_owned(),
            empty_timeout: or_default(options.empty_timeout_s, DEFAULT_EMPTY_TIMEOUT_S),
            departure_timeout: or_default(options.departure_timeout_s, DEFAULT_DEPARTURE_TIMEOUT_S),
            max_participants: options.max_participants,
            creation_time: now_ms / 1000,
            creation_time_ms: now_ms,
            enabled_codecs: enabled_codecs(),
            metadata: options.metadata.clone(),
            ..Default::default()
        };
        let state = RoomState {
            info,
            members: Vec::new(),
            taps: Vec::new(),
            created: Instant::now(),
            last_left: None,
            was_joined: false,
            closed: false,
            data_cache: VecDeque::new(),
            data_cache_bytes: 0,
            recent_nonces: VecDeque::new(),
            speakers: HashMap::new(),
            quality_changed: false,
            data_tracks: DataTracks::default(),
        };
        Self {
            name: name.to_owned(),
            events,
            options: Arc::new(options),
            state: Mutex::new(state),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn snapshot(&self) -> proto::Room {
        self.state.lock().info.clone()
    }

    pub fn participants(&self) -> Vec<proto::ParticipantInfo> {
        self.state
            .lock()
            .members
            .iter()
            .map(|member| member.info.clone())
            .collect()
    }

    pub fn participant(&self, identity: &str) -> Result<proto::ParticipantInfo, RoomError> {
        let state = self.state.lock();
        state
            .member(identity)
            .map(|member| member.info.clone())
            .ok_or_else(|| self.no_participant(identity))
    }

    fn no_participant(&self, identity: &str) -> RoomError {
        RoomError::NoSuchParticipant {
            room: self.name.clone(),
            identity: identity.to_owned(),
        }
    }

    fn tell(&self, event: RoomEvent) {
        // An error means that nobody listens, which is allowed.
        let _ = self.events.send(event);
    }

    pub fn announce(&self) {
        let room = Box::new(self.snapshot());
        self.tell(RoomEvent::Started {
            room,
            options: Arc::clone(&self.options),
        });
    }

    /// Lets a participant in. A participant with the same identity is removed first.
    pub fn join(&self, spec: JoinSpec) -> Result<Joined, RoomError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(RoomError::NoSuchRoom(self.name.clone()));
        }
        let mut left = None;
        if let Some(position) = state
            .members
            .iter()
            .position(|member| member.info.identity == spec.identity)
        {
            let reason = proto::DisconnectReason::DuplicateIdentity;
            state.members[position].inbox.send(ToPeer::Close { reason });
            left = Some(state.take_out(position, reason));
        }
        let now_ms = chrono::Utc::now().timestamp_millis();
        let mut info = proto::ParticipantInfo {
            sid: ids::new_id(ids::PARTICIPANT),
            identity: spec.identity,
            name: spec.name,
            metadata: spec.metadata,
            attributes: spec.attributes,
            joined_at: now_ms / 1000,
            joined_at_ms: now_ms,
            version: 1,
            permission: Some(spec.permission),
            client_protocol: spec.client_protocol,
            capabilities: spec.capabilities,
            ..Default::default()
        };
        info.set_kind(spec.kind);
        info.set_state(State::Joined);
        let holds = !is_dependent(&info);
        let holding = state
            .members
            .iter()
            .filter(|member| member.holds_room_open())
            .count();
        let limit = state.info.max_participants as usize;
        if holds && limit > 0 && holding >= limit {
            return Err(RoomError::Full(self.name.clone()));
        }
        let others = state
            .members
            .iter()
            .filter(|member| !member.is_hidden())
            .map(|member| member.info.clone())
            .collect();
        state.was_joined |= holds;
        state.members.push(Member {
            info: info.clone(),
            inbox: spec.inbox,
            tracks: Vec::new(),
            auto_subscribe: spec.auto_subscribe,
            wanted: HashMap::new(),
            subscription_permission: None,
            last_reliable_sequence: 0,
            quality: proto::ConnectionQuality::Excellent,
        });
        state.count();
        state.broadcast(&info, false);
        state.reconcile();
        let room = state.info.clone();
        drop(state);
        if let Some((gone, tracks)) = left {
            self.tell_left(gone, tracks);
        }
        let mut participant = info.clone();
        // The participant itself is told before it counts as joined.
        participant.set_state(State::Joining);
        self.tell(RoomEvent::ParticipantJoined {
            room: self.name.clone(),
            participant: Box::new(info.clone()),
        });
        Ok(Joined {
            room,
            participant,
            others,
        })
    }

    /// The inbox of a participant that is still here, for a client that reconnects.
    pub fn inbox_of(&self, identity: &str, sid: &str) -> Option<mpsc::Sender<ToPeer>> {
        let state = self.state.lock();
        let member = state.member(identity)?;
        (member.info.sid == sid).then(|| member.inbox.control.clone())
    }

    /// The state that a client needs that reconnects, itself included.
    pub fn resume_snapshot(
        &self,
        sid: &str,
    ) -> Option<(proto::Room, Vec<proto::ParticipantInfo>, u32)> {
        let state = self.state.lock();
        let last = state
            .members
            .iter()
            .find(|member| member.info.sid == sid)?
            .last_reliable_sequence;
        let known = state
            .members
            .iter()
            .filter(|member| !member.is_hidden() || member.info.sid == sid)
            .map(|member| member.info.clone())
            .collect();
        Some((state.info.clone(), known, last))
    }

    /// A participant's media is connected.
    pub fn set_active(&self, sid: &str) {
        let mut state = self.state.lock();
        let Some(member) = state.session_mut(sid) else {
            return;
        };
        if member.is_active() {
            return;
        }
        member.info.set_state(State::Active);
        member.bump();
        let info = member.info.clone();
        state.quality_changed = true;
        state.broadcast(&info, false);
        state.reconcile();
        drop(state);
        self.tell(RoomEvent::ParticipantActive {
            room: self.name.clone(),
            participant: Box::new(info),
        });
    }

    /// A participant has left, or its connection was lost.
    pub fn leave(&self, sid: &str, reason: proto::DisconnectReason) {
        let mut state = self.state.lock();
        let Some(position) = state
            .members
            .iter()
            .position(|member| member.info.sid == sid)
        else {
            return;
        };
        let (info, tracks) = state.take_out(position, reason);
        drop(state);
        self.tell_left(info, tracks);
    }

    /// Removes a participant.
    pub fn remove(&self, identity: &str, reason: proto::DisconnectReason) -> Result<(), RoomError> {
        let mut state = self.state.lock();
        let position = state
            .members
            .iter()
            .position(|member| member.info.identity == identity)
            .ok_or_else(|| self.no_participant(identity))?;
        state.members[position].inbox.send(ToPeer::Close { reason });
        let (info, tracks) = state.take_out(position, reason);
        drop(state);
        self.tell_left(info, tracks);
        Ok(())
    }

    fn tell_left(&self, info: proto::ParticipantInfo, tracks: Vec<Track>) {
        for track in tracks {
            self.tell(RoomEvent::TrackUnpublished {
                room: self.name.clone(),
                participant: Box::new(info.clone()),
                track: Box::new(track.info),
            });
        }
        self.tell(RoomEvent::ParticipantLeft {
            room: self.name.clone(),
            participant: Box::new(info),
        });
    }

    /// Removes everybody and ends the taps.
    pub fn close(&self, reason: proto::DisconnectReason) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.closed = true;
        state.taps.clear();
        let mut gone = Vec::new();
        while let Some(position) = state.members.len().checked_sub(1) {
            state.members[position].inbox.send(ToPeer::Close { reason });
            gone.push(state.take_out(position, reason));
        }
        let room = Box::new(state.info.clone());
        drop(state);
        for (info, tracks) in gone {
            self.tell_left(info, tracks);
        }
        self.tell(RoomEvent::Finished { room });
    }

    /// Changes a participant and tells the room.
    pub fn update(
        &self,
        identity: &str,
        change: ParticipantChange,
    ) -> Result<proto::ParticipantInfo, RoomError> {
        let mut state = self.state.lock();
        let member = state
            .member_mut(identity)
            .ok_or_else(|| self.no_participant(identity))?;
        check_lengths(identity, &member.info, &change)?;
        if let Some(name) = change.name {
            member.info.name = name;
        }
        if let Some(metadata) = change.metadata {
            member.info.metadata = metadata;
        }
        for (key, value) in change.attributes {
            if value.is_empty() {
                member.info.attributes.remove(&key);
            } else {
                member.info.attributes.insert(key, value);
            }
        }
        let mut revoked = Vec::new();
        if let Some(permission) = change.permission {
            if !permission.can_publish {
                revoked = std::mem::take(&mut member.tracks);
                for track in &revoked {
                    member.inbox.send(ToPeer::RevokeTrack {
                        track_sid: track.sid.to_string(),
                    });
                }
            }
            member.info.permission = Some(permission);
        }
        member.bump();
        let info = member.info.clone();
        for track in &revoked {
            state.drop_track(track);
        }
        if let Some(member) = state.member(identity) {
            member.inbox.send(ToPeer::ClaimsChanged);
        }
        state.count();
        state.broadcast(&info, true);
        state.reconcile();
        drop(state);
        for track in revoked {
            self.tell(RoomEvent::TrackUnpublished {
                room: self.name.clone(),
                participant: Box::new(info.clone()),
                track: Box::new(track.info),
            });
        }
        self.tell(RoomEvent::ParticipantChanged {
            room: self.name.clone(),
            participant: Box::new(info.clone()),
        });
        Ok(info)
    }

    /// A participant publishes a track.
    pub fn publish(&self, sid: &str, track: proto::TrackInfo) {
        let mut state = self.state.lock();
        let Some(member) = state.session_mut(sid) else {
            return;
        };
        if member
            .tracks
            .iter()
            .any(|known| known.info.sid == track.sid)
        {
            return;
        }
        member.tracks.push(Track {
            sid: Arc::from(track.sid.as_str()),
            info: track.clone(),
            subscribers: Vec::new(),
            level: LevelWindow::default(),
            heard: false,
        });
        member.bump();
        let info = member.info.clone();
        state.count();
        // Clients must know a track before its media arrives, and the control inbox keeps that
        // order.
        state.broadcast(&info, true);
        state.reconcile();
        drop(state);
        self.tell(RoomEvent::TrackPublished {
            room: self.name.clone(),
            participant: Box::new(info),
            track: Box::new(track),
        });
    }

    /// A participant stops publishing a track.
    pub fn unpublish(&self, sid: &str, track_sid: &str) {
        let mut state = self.state.lock();
        let Some(member) = state.session_mut(sid) else {
            return;
        };
        let Some(position) = member
            .tracks
            .iter()
            .position(|track| track.info.sid == track_sid)
        else {
            return;
        };
        let track = member.tracks.remove(position);
        member.bump();
        let info = member.info.clone();
        state.drop_track(&track);
        state.count();
        state.broadcast(&info, true);
        drop(state);
        self.tell(RoomEvent::TrackUnpublished {
            room: self.name.clone(),
            participant: Box::new(info),
            track: Box::new(track.info),
        });
    }

    /// Changes a published track's description, for example its features, and tells the room.
    pub fn change_track(
        &self,
        sid: &str,
        track_sid: &str,
        change: impl FnOnce(&mut proto::TrackInfo),
    ) {
        let mut state = self.state.lock();
        let Some(member) = state.session_mut(sid) else {
            return;
        };
        let Some(track) = member
            .tracks
            .iter_mut()
            .find(|track| track.info.sid == track_sid)
        else {
            return;
        };
        change(&mut track.info);
        member.bump();
        let info = member.info.clone();
        state.broadcast(&info, true);
    }

    /// A participant mutes or unmutes its own track.
    pub fn mute(&self, sid: &str, track_sid: &str, muted: bool) {
        self.change_track(sid, track_sid, |track| track.muted = muted);
    }

    /// The server mutes a participant's track; the client is told to stop sending. An unknown track
    /// is not an error.
    pub fn mute_from_server(
        &self,
        identity: &str,
        track_sid: &str,
        muted: bool,
    ) -> Result<Option<proto::TrackInfo>, RoomError> {
        let mut state = self.state.lock();
        let member = state
            .member_mut(identity)
            .ok_or_else(|| self.no_participant(identity))?;
        if !muted {
            return Err(RoomError::RemoteUnmute);
        }
        let Some(track) = member
            .tracks
            .iter_mut()
            .find(|track| track.info.sid == track_sid)
        else {
            return Ok(None);
        };
        if track.info.muted {
            return Ok(Some(track.info.clone()));
        }
        track.info.muted = true;
        let changed = track.info.clone();
        member.bump();
        member.inbox.signal(Signal::Mute(proto::MuteTrackRequest {
            sid: track_sid.to_owned(),
            muted,
        }));
        let info = member.info.clone();
        state.broadcast(&info, true);
        Ok(Some(changed))
    }

    /// A participant, or the server on its behalf, chooses tracks to receive or not.
    pub fn update_subscriptions(&self, identity: &str, track_sids: &[String], subscribe: bool) {
        let mut state = self.state.lock();
        let Some(member) = state.member_mut(identity) else {
            return;
        };
        for sid in track_sids {
            member.wanted.insert(sid.clone(), subscribe);
        }
        state.reconcile();
    }

    /// A participant chooses who may subscribe to its tracks. Participants that want a track and
    /// may not have it are told so.
    pub fn set_subscription_permission(
        &self,
        sid: &str,
        permission: proto::SubscriptionPermission,
    ) {
        let mut state = self.state.lock();
        let Some(position) = state
            .members
            .iter()
            .position(|member| member.info.sid == sid)
        else {
            return;
        };
        let before: HashSet<(String, String)> = denied(&state.members, position);
        state.members[position].subscription_permission = Some(permission);
        let after = denied(&state.members, position);
        for (subscriber, track_sid, allowed) in after
            .difference(&before)
            .map(|(subscriber, track)| (subscriber, track, false))
            .chain(
                before
                    .difference(&after)
                    .map(|(subscriber, track)| (subscriber, track, true)),
            )
        {
            if let Some(member) = state
                .members
                .iter()
                .find(|member| &member.info.sid == subscriber)
            {
                member.inbox.signal(Signal::SubscriptionPermissionUpdate(
                    proto::SubscriptionPermissionUpdate {
                        participant_sid: sid.to_owned(),
                        track_sid: track_sid.clone(),
                        allowed,
                    },
                ));
            }
        }
        state.reconcile();
    }

    /// A participant announces a data track.
    pub fn publish_data_track(
        &self,
        sid: &str,
        request: &proto::PublishDataTrackRequest,
    ) -> Result<proto::DataTrackInfo, proto::request_response::Reason> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let member = state
            .members
            .iter_mut()
            .find(|member| member.info.sid == sid);
        let member = member.ok_or(proto::request_response::Reason::NotAllowed)?;
        let info = state.data_tracks.publish(&member.info, request)?;
        member.info.data_tracks = state.data_tracks.of(sid);
        member.bump();
        let participant = member.info.clone();
        state.broadcast(&participant, false);
        Ok(info)
    }

    /// A participant ends a data track.
    pub fn unpublish_data_track(&self, sid: &str, handle: u32) -> Option<proto::DataTrackInfo> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let (info, subscribers) = state.data_tracks.unpublish(sid, handle)?;
        let member = state
            .members
            .iter_mut()
            .find(|member| member.info.sid == sid)?;
        member.info.data_tracks = state.data_tracks.of(sid);
        member.bump();
        let participant = member.info.clone();
        state.broadcast(&participant, false);
        for subscriber in &subscribers {
            state.tell_data_handles(subscriber);
        }
        Some(info)
    }

    /// A participant begins or ends to receive a data track, and is told the handles under which it
    /// receives.
    pub fn update_data_subscription(&self, sid: &str, track_sid: &str, subscribe: bool) {
        let mut state = self.state.lock();
        if state.data_tracks.subscribe(sid, track_sid, subscribe) {
            state.tell_data_handles(sid);
        }
    }

    /// Forwards a packet of a data track.
    pub fn relay_data_track(&self, sid: &str, packet: &[u8]) {
        let state = self.state.lock();
        for (subscriber, packet) in state.data_tracks.relay(sid, packet) {
            if let Some(member) = state
                .members
                .iter()
                .find(|member| member.info.sid == subscriber)
            {
                member.inbox.data(Lane::DataTrack, packet);
            }
        }
    }

    /// Whether a track of the room was announced as stereo.
    pub fn is_stereo(&self, track_sid: &str) -> bool {
        let state = self.state.lock();
        let mut tracks = state.members.iter().flat_map(|member| &member.tracks);
        let track = tracks.find(|track| &*track.sid == track_sid);
        #[expect(
            deprecated,
            reason = "the flag says the same as the feature and is always set with it"
        )]
        track.is_some_and(|track| track.info.stereo)
    }

    /// Notes that a track has a subscriber that receives it. The publisher is told at the first
    /// one.
    pub fn note_heard(&self, publisher_sid: &str, track_sid: &str) {
        let mut state = self.state.lock();
        let Some(member) = state.session_mut(publisher_sid) else {
            return;
        };
        let Some(track) = member
            .tracks
            .iter_mut()
            .find(|track| &*track.sid == track_sid)
        else {
            return;
        };
        if !std::mem::replace(&mut track.heard, true) {
            member
                .inbox
                .signal(Signal::TrackSubscribed(proto::TrackSubscribed {
                    track_sid: track_sid.to_owned(),
                }));
        }
    }

    /// Sets the quality of a participant's connection; the next sweep tells the room.
    pub fn set_quality(&self, sid: &str, quality: proto::ConnectionQuality) {
        let mut state = self.state.lock();
        let Some(member) = state.session_mut(sid) else {
            return;
        };
        if std::mem::replace(&mut member.quality, quality) != quality {
            state.quality_changed = true;
        }
    }

    /// Shows a participant as speaking, for a client's developer who wants to see that.
    pub fn pretend_speaking(&self, sid: &str) {
        let speaker = proto::SpeakerInfo {
            sid: sid.to_owned(),
            level: 0.9,
            active: true,
        };
        let mut state = self.state.lock();
        // The next sweep finds that nobody speaks and tells so.
        state.speakers.insert(sid.to_owned(), 0.9);
        for member in &state.members {
            member
                .inbox
                .signal(Signal::SpeakersChanged(proto::SpeakersChanged {
                    speakers: vec![speaker.clone()],
                }));
        }
    }

    pub fn set_metadata(&self, metadata: &str) {
        let mut state = self.state.lock();
        metadata.clone_into(&mut state.info.metadata);
        state.broadcast_room();
    }

    pub fn set_recording(&self, recording: bool) {
        let mut state = self.state.lock();
        if state.info.active_recording != recording {
            state.info.active_recording = recording;
            state.broadcast_room();
        }
    }

    pub fn add_tap(&self, tap: mpsc::Sender<TappedPacket>) {
        let mut state = self.state.lock();
        if !state.closed {
            state.taps.push(tap);
        }
    }

    /// Sends a packet to every subscriber of the track. It is dropped for those whose inbox is
    /// full.
    pub fn forward(&self, publisher_sid: &str, packet: &MediaPacket) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(member) = state
            .members
            .iter_mut()
            .find(|member| member.info.sid == publisher_sid)
        else {
            return;
        };
        let (identity, kind) = (&member.info.identity, member.info.kind());
        let Some(track) = member
            .tracks
            .iter_mut()
            .find(|track| track.sid == packet.track_sid)
        else {
            return;
        };
        if track.info.muted {
            // What is sent on a muted track is not forwarded.
            return;
        }
        if let Some(level) = packet.level {
            track.level.observe(level);
        }
        for subscriber in &track.subscribers {
            if subscriber.media.try_send(packet.clone()).is_err() {
                tracing::debug!(participant.sid = %subscriber.sid, "a subscriber does not keep up with the media");
            }
        }
        if let Some(payload) = &packet.payload
            && !state.taps.is_empty()
            && track.info.r#type() == proto::TrackType::Audio
        {
            let tapped = TappedPacket {
                identity: identity.clone(),
                kind,
                track_sid: Arc::clone(&packet.track_sid),
                timestamp: packet.timestamp,
                sequence: packet.sequence,
                arrival: std::time::Instant::now(),
                payload: Arc::clone(payload),
            };
            state.taps.retain(|tap| match tap.try_send(tapped.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    tracing::warn!(room.name = %self.name, "a recorder does not keep up; a packet is lost to it");
                    true
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            });
        }
    }

    /// Forwards a data packet of a participant, with its true sender filled in.
    pub fn relay_data(&self, sender_sid: &str, kind: DataKind, mut packet: proto::DataPacket) {
        let mut state = self.state.lock();
        let Some(member) = state.session_mut(sender_sid) else {
            return;
        };
        if !member
            .info
            .permission
            .as_ref()
            .is_some_and(|permission| permission.can_publish_data)
        {
            return;
        }
        if kind == DataKind::Reliable && packet.sequence > 0 {
            if packet.sequence <= member.last_reliable_sequence {
                // Before a resume the client cannot know what has arrived, and sends it again.
                return;
            }
            member.last_reliable_sequence = packet.sequence;
        }
        let info = member.info.clone();
        let hidden = member.is_hidden();
        if assert_sender(&mut packet, &info, hidden) {
            self.send_data(&mut state, Some(sender_sid), kind, packet);
        }
    }

    /// Sends a data packet in the server's own name.
    pub fn send_server_data(&self, packet: proto::DataPacket) {
        let kind = packet.kind();
        self.send_data(&mut self.state.lock(), None, kind, packet);
    }

    fn send_data(
        &self,
        state: &mut RoomState,
        sender_sid: Option<&str>,
        kind: DataKind,
        mut packet: proto::DataPacket,
    ) {
        #[expect(
            deprecated,
            reason = "clients of older protocols still read the kind and the user packet's fields"
        )]
        let destination_sids = {
            packet.set_kind(kind);
            match &mut packet.value {
                Some(DataValue::User(user)) => {
                    if !user.nonce.is_empty() && state.is_repeated(&user.nonce) {
                        return;
                    }
                    if packet.destination_identities.is_empty() {
                        packet
                            .destination_identities
                            .clone_from(&user.destination_identities);
                    } else {
                        user.destination_identities
                            .clone_from(&packet.destination_identities);
                    }
                    user.destination_sids.clone()
                }
                _ => Vec::new(),
            }
        };
        let encoded = Bytes::from(packet.encode_to_vec());
        let destinations = &packet.destination_identities;
        if let Some(sender_sid) = sender_sid
            && kind == DataKind::Reliable
            && packet.sequence > 0
        {
            state.cache_data(CachedData {
                added: Instant::now(),
                sender_sid: sender_sid.to_owned(),
                sequence: packet.sequence,
                destinations: destinations.clone(),
                packet: encoded.clone(),
            });
        }
        for member in &state.members {
            let is_sender = Some(member.info.sid.as_str()) == sender_sid;
            let to_all = destinations.is_empty() && destination_sids.is_empty();
            let named = destinations.contains(&member.info.identity)
                || destination_sids.contains(&member.info.sid);
            if !is_sender && (to_all || named) {
                member.inbox.data(Lane::Packets(kind), encoded.clone());
            }
        }
    }

    /// Reliable packets that a reconnecting client has missed, after the last ones that it says it
    /// has received.
    pub fn missed_data(
        &self,
        sid: &str,
        received: &[proto::DataChannelReceiveState],
    ) -> Vec<Bytes> {
        let state = self.state.lock();
        let Some(member) = state.members.iter().find(|member| member.info.sid == sid) else {
            return Vec::new();
        };
        state
            .data_cache
            .iter()
            .filter(|cached| {
                cached.sender_sid != sid
                    && (cached.destinations.is_empty()
                        || cached.destinations.contains(&member.info.identity))
                    && received.iter().any(|state| {
                        state.publisher_sid == cached.sender_sid && cached.sequence > state.last_seq
                    })
            })
            .map(|cached| cached.packet.clone())
            .collect()
    }

    /// Publishes who speaks now, and returns whether the room has been idle for too long.
    pub fn sweep(&self, now: Instant) -> Sweep {
        let mut state = self.state.lock();
        state.forget_old_data(now);
        state.compare_speakers();
        state.tell_quality();
        if state.closed || state.members.iter().any(Member::holds_room_open) {
            return Sweep::Keep;
        }
        let (since, limit_s) = match state.last_left {
            Some(left) if state.was_joined => (left, state.info.departure_timeout),
            _ => (state.created, state.info.empty_timeout),
        };
        if now.duration_since(since) >= Duration::from_secs(u64::from(limit_s)) {
            Sweep::CloseIdle
        } else {
            Sweep::Keep
        }
    }
}

impl RoomState {
    fn is_repeated(&mut self, nonce: &[u8]) -> bool {
        const REMEMBERED: usize = 256;
        if self.recent_nonces.iter().any(|known| known == nonce) {
            return true;
        }
        if self.recent_nonces.len() == REMEMBERED {
            self.recent_nonces.pop_front();
        }
        self.recent_nonces.push_back(nonce.to_vec());
        false
    }

    fn cache_data(&mut self, data: CachedData) {
        self.data_cache_bytes += data.packet.len();
        self.data_cache.push_back(data);
        while self.data_cache_bytes > DATA_CACHE_BYTES {
            self.drop_oldest_data();
        }
    }

    fn drop_oldest_data(&mut self) {
        if let Some(oldest) = self.data_cache.pop_front() {
            self.data_cache_bytes -= oldest.packet.len();
        }
    }

    fn forget_old_data(&mut self, now: Instant) {
        while self
            .data_cache
            .front()
            .is_some_and(|oldest| now.duration_since(oldest.added) > DATA_CACHE_AGE)
        {
            self.drop_oldest_data();
        }
    }

    fn tell_data_handles(&self, sid: &str) {
        if let Some(member) = self.members.iter().find(|member| member.info.sid == sid) {
            member.inbox.signal(Signal::DataTrackSubscriberHandles(
                self.data_tracks.handles(sid),
            ));
        }
    }

    fn tell_quality(&mut self) {
        if !std::mem::take(&mut self.quality_changed) {
            return;
        }
        let active = || self.members.iter().filter(|member| member.is_active());
        let updates = active()
            .map(|member| {
                let score = match member.quality {
                    proto::ConnectionQuality::Excellent => 5.0,
                    proto::ConnectionQuality::Good => 4.0,
                    proto::ConnectionQuality::Poor => 2.0,
                    proto::ConnectionQuality::Lost => 0.0,
                };
                let mut info = proto::ConnectionQualityInfo {
                    participant_sid: member.info.sid.clone(),
                    score,
                    ..Default::default()
                };
                info.set_quality(member.quality);
                info
            })
            .collect();
        let update = Signal::ConnectionQuality(proto::ConnectionQualityUpdate { updates });
        for member in active() {
            member.inbox.signal(update.clone());
        }
    }

    /// Tells everybody about participants that began or stopped speaking, or whose loudness
    /// changed.
    fn compare_speakers(&mut self) {
        let mut now = HashMap::new();
        for member in &mut self.members {
            let loudest = member
                .tracks
                .iter_mut()
                .filter_map(|track| track.level.take())
                .reduce(f32::max);
            if let (Some(level), false) = (loudest, member.is_hidden()) {
                now.insert(member.info.sid.clone(), level);
            }
        }
        let mut speakers = Vec::new();
        for (sid, &level) in &now {
            if self.speakers.get(sid) != Some(&level) {
                speakers.push(proto::SpeakerInfo {
                    sid: sid.clone(),
                    level,
                    active: true,
                });
            }
        }
        for sid in self.speakers.keys().filter(|sid| !now.contains_key(*sid)) {
            speakers.push(proto::SpeakerInfo {
                sid: sid.clone(),
                level: 0.0,
                active: false,
            });
        }
        self.speakers = now;
        if speakers.is_empty() {
            return;
        }
        for member in &self.members {
            member
                .inbox
                .signal(Signal::SpeakersChanged(proto::SpeakersChanged {
                    speakers: speakers.clone(),
                }));
        }
    }
}

/// Pairs of subscriber and track that are wanted but not allowed.
fn denied(members: &[Member], publisher: usize) -> HashSet<(String, String)> {
    let publisher = &members[publisher];
    members
        .iter()
        .filter(|member| member.info.sid != publisher.info.sid)
        .flat_map(|member| {
            publisher
                .tracks
                .iter()
                .filter(|track| {
                    member.wants(&track.sid) && !publisher.allows(&track.sid, &member.info)
                })
                .map(|track| (member.info.sid.clone(), track.sid.to_string()))
        })
        .collect()
}

/// Puts the true sender into a packet and returns whether it may pass. The rules are those of the
/// real server's `handleReceivedDataMessage`: an agent may speak for others in text streams and
/// chat, only agents send transcriptions, and metrics go to nobody.
fn assert_sender(
    packet: &mut proto::DataPacket,
    sender: &proto::ParticipantInfo,
    hidden: bool,
) -> bool {
    let identity = if hidden {
        String::new()
    } else {
        sender.identity.clone()
    };
    let is_agent = sender.kind() == Kind::Agent;
    let speaks_for_another = is_agent
        && !packet.participant_identity.is_empty()
        && packet.participant_identity != sender.identity;
    let mut keeps_identity = false;
    packet.participant_sid.clone_from(&sender.sid);
    match &mut packet.value {
        Some(DataValue::User(user)) => {
            #[expect(deprecated, reason = "clients of older protocols read the sender here")]
            {
                user.participant_sid = if hidden {
                    String::new()
                } else {
                    sender.sid.clone()
                };
                user.participant_identity.clone_from(&identity);
            }
        }
        Some(DataValue::Transcription(_)) if !is_agent => return false,
        Some(DataValue::Metrics(_)) => return false,
        Some(DataValue::ChatMessage(chat)) if speaks_for_another => {
            chat.generated = true;
            keeps_identity = true;
        }
        Some(DataValue::StreamHeader(header)) if speaks_for_another => {
            if let Some(proto::data_stream::header::ContentHeader::TextHeader(text)) =
                &mut header.content_header
            {
                text.generated = true;
                keeps_identity = true;
            }
        }
        None => return false,
        Some(_) => {}
    }
    if !keeps_identity {
        packet.participant_identity = identity;
    }
    true
}

/// The size of attributes that counts against their limit (`config.go`, `CheckAttributesSize`).
pub(crate) fn attributes_bytes<'a>(
    attributes: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> usize {
    attributes
        .into_iter()
        .map(|(key, value)| key.len() + value.len())
        .sum()
}

fn check_lengths(
    identity: &str,
    info: &proto::ParticipantInfo,
    change: &ParticipantChange,
) -> Result<(), RoomError> {
    let too_long = |what, limit| {
        Err(RoomError::TooLong {
            identity: identity.to_owned(),
            what,
            limit,
        })
    };
    if change
        .name
        .as_ref()
        .is_some_and(|name| name.len() > MAX_NAME_BYTES)
    {
        return too_long("name", MAX_NAME_BYTES);
    }
    if change
        .metadata
        .as_ref()
        .is_some_and(|metadata| metadata.len() > MAX_METADATA_BYTES)
    {
        return too_long("metadata", MAX_METADATA_BYTES);
    }
    let kept = info
        .attributes
        .iter()
        .filter(|(key, _)| !change.attributes.contains_key(*key));
    if attributes_bytes(kept.chain(change.attributes.iter())) > MAX_ATTRIBUTES_BYTES {
        return too_long("attributes", MAX_ATTRIBUTES_BYTES);
    }
    Ok(())
}
