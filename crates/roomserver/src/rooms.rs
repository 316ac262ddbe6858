//! The registry of rooms, shared by signalling, API calls, agents and recorders.
//!
//! [`Rooms`] is a cheap handle. Its methods lock, change, and return; none of them waits. What has
//! to reach a participant is put into the bounded inbox of that participant's own task.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use livekit_protocol as proto;
use parking_lot::Mutex;
use tokio::sync::{broadcast, mpsc};

use crate::room::{Room, Sweep};

/// How long a room waits for its first participant unless it was created with another value.
pub const DEFAULT_EMPTY_TIMEOUT_S: u32 = 300;
/// How long a room waits for somebody to come back after the last one left.
pub const DEFAULT_DEPARTURE_TIMEOUT_S: u32 = 20;
/// How often speakers are compared and idle rooms are closed. The real server's interval for active
/// speakers is 400 ms.
const SWEEP_INTERVAL: Duration = Duration::from_millis(400);
/// How many room events a slow listener may fall behind before it misses the oldest ones.
const EVENT_BACKLOG: usize = 4096;
/// Packets that a slow recorder may leave unread, about twenty seconds of one speaker.
const TAP_BACKLOG: usize = 1024;

/// What a room is created with. Zero and empty mean "the default".
#[derive(Debug, Clone, Default)]
pub struct RoomOptions {
    /// Seconds without a first participant after which the room is closed; 0 means 300.
    pub empty_timeout_s: u32,
    /// Seconds after the last participant left; 0 means 20.
    pub departure_timeout_s: u32,
    /// How many participants may be in the room, agents and recorders not counted; 0 means no
    /// limit.
    pub max_participants: u32,
    /// The application's metadata of the room.
    pub metadata: String,
    /// The agents to dispatch when the room starts.
    pub agents: Vec<proto::RoomAgentDispatch>,
    /// The recording to start when the room starts.
    pub egress: Option<proto::RoomEgress>,
}

impl From<proto::RoomConfiguration> for RoomOptions {
    fn from(config: proto::RoomConfiguration) -> Self {
        Self {
            empty_timeout_s: config.empty_timeout,
            departure_timeout_s: config.departure_timeout,
            max_participants: config.max_participants,
            metadata: config.metadata,
            agents: config.agents,
            egress: config.egress,
        }
    }
}

/// What happened in a room. The snapshots show the state right after it.
#[derive(Debug, Clone)]
pub enum RoomEvent {
    /// The room was created; `options` is what it was created with.
    Started {
        /// The room.
        room: Box<proto::Room>,
        /// What it was created with.
        options: Arc<RoomOptions>,
    },
    /// The room is closed and everybody has been sent away.
    Finished {
        /// The room as it was at its end.
        room: Box<proto::Room>,
    },
    /// A participant joined; its media is not connected yet.
    ParticipantJoined {
        /// Name of the room.
        room: String,
        /// The participant.
        participant: Box<proto::ParticipantInfo>,
    },
    /// A participant's media is connected.
    ParticipantActive {
        /// Name of the room.
        room: String,
        /// The participant.
        participant: Box<proto::ParticipantInfo>,
    },
    /// A participant's metadata, name, attributes or permission changed.
    ParticipantChanged {
        /// Name of the room.
        room: String,
        /// The participant.
        participant: Box<proto::ParticipantInfo>,
    },
    /// A participant has left; `disconnect_reason` says why.
    ParticipantLeft {
        /// Name of the room.
        room: String,
        /// The participant.
        participant: Box<proto::ParticipantInfo>,
    },
    /// A participant has published a track.
    TrackPublished {
        /// Name of the room.
        room: String,
        /// The participant.
        participant: Box<proto::ParticipantInfo>,
        /// The track.
        track: Box<proto::TrackInfo>,
    },
    /// A participant has ended a track.
    TrackUnpublished {
        /// Name of the room.
        room: String,
        /// The participant.
        participant: Box<proto::ParticipantInfo>,
        /// The track.
        track: Box<proto::TrackInfo>,
    },
}

/// One Opus packet as a participant sent it.
#[derive(Debug, Clone)]
pub struct TappedPacket {
    /// The sender's identity.
    pub identity: String,
    /// The sender's kind.
    pub kind: proto::participant_info::Kind,
    /// Id of the track.
    pub track_sid: Arc<str>,
    /// The sender's RTP timestamp, in units of 1/48000 s.
    pub timestamp: u32,
    /// The sender's RTP sequence number, counted on beyond 16 bits.
    pub sequence: u64,
    /// When the packet came to the server.
    pub arrival: Instant,
    /// The Opus packet.
    pub payload: Arc<[u8]>,
}

/// Changes for [`Rooms::update_participant`]; `None` and an empty map change nothing.
#[derive(Debug, Clone, Default)]
pub struct ParticipantChange {
    /// New metadata.
    pub metadata: Option<String>,
    /// New name.
    pub name: Option<String>,
    /// Attributes to set; an empty value deletes the attribute.
    pub attributes: HashMap<String, String>,
    /// New permissions.
    pub permission: Option<proto::ParticipantPermission>,
}

/// Why a request about a room failed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RoomError {
    /// There is no room with this name.
    #[error("requested room does not exist: {0:?}")]
    NoSuchRoom(String),
    /// The room has no participant with this identity.
    #[error("participant {identity:?} does not exist in room {room:?}")]
    NoSuchParticipant {
        /// Name of the room.
        room: String,
        /// The identity that was asked for.
        identity: String,
    },
    /// The room with this name has reached `max_participants`.
    #[error("room {0:?} is full")]
    Full(String),
    /// A value is larger than the server allows.
    #[error("{what} of participant {identity:?} is longer than {limit} bytes")]
    TooLong {
        /// The participant's identity.
        identity: String,
        /// Which value.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// The server does not unmute tracks on behalf of participants.
    #[error("unmuting a participant's track from the server is not allowed")]
    RemoteUnmute,
}

/// The rooms of a server.
#[derive(Clone)]
pub struct Rooms {
    registry: Arc<Registry>,
}

struct Registry {
    rooms: Mutex<HashMap<String, Arc<Room>>>,
    events: broadcast::Sender<RoomEvent>,
}

impl Default for Rooms {
    fn default() -> Self {
        Self::new()
    }
}

impl Rooms {
    /// An empty registry. [`Rooms::sweep_forever`] must run beside it for idle rooms to be closed.
    pub fn new() -> Self {
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        Self {
            registry: Arc::new(Registry {
                rooms: Mutex::new(HashMap::new()),
                events,
            }),
        }
    }

    /// Creates the room, or returns the one that exists already; the options then have no effect.
    pub fn create(&self, name: &str, options: RoomOptions) -> proto::Room {
        self.open(name, options).snapshot()
    }

    /// The room as it is now.
    pub fn get(&self, name: &str) -> Option<proto::Room> {
        self.find(name).map(|room| room.snapshot())
    }

    /// The named rooms, or all of them when `names` is empty.
    pub fn list(&self, names: &[String]) -> Vec<proto::Room> {
        let rooms: Vec<_> = self.registry.rooms.lock().values().cloned().collect();
        let mut listed: Vec<_> = rooms
            .iter()
            .filter(|room| names.is_empty() || names.iter().any(|name| name == room.name()))
            .map(|room| room.snapshot())
            .collect();
        listed.sort_by(|left, right| left.name.cmp(&right.name));
        listed
    }

    /// Removes everybody with `ROOM_DELETED` and closes the room.
    ///
    /// # Errors
    ///
    /// `NoSuchRoom` if there is no such room.
    pub fn delete(&self, name: &str) -> Result<proto::Room, RoomError> {
        let room = self.require(name)?;
        self.close(&room, proto::DisconnectReason::RoomDeleted);
        Ok(room.snapshot())
    }

    /// Everybody in the room.
    ///
    /// # Errors
    ///
    /// `NoSuchRoom` if there is no such room.
    pub fn participants(&self, room: &str) -> Result<Vec<proto::ParticipantInfo>, RoomError> {
        Ok(self.require(room)?.participants())
    }

    /// One participant.
    ///
    /// # Errors
    ///
    /// If there is no such room, or no such participant in it.
    pub fn participant(
        &self,
        room: &str,
        identity: &str,
    ) -> Result<proto::ParticipantInfo, RoomError> {
        self.require(room)?.participant(identity)
    }

    /// Removes a participant with `PARTICIPANT_REMOVED`.
    ///
    /// # Errors
    ///
    /// If there is no such room, or no such participant in it.
    pub fn remove_participant(&self, room: &str, identity: &str) -> Result<(), RoomError> {
        self.require(room)?
            .remove(identity, proto::DisconnectReason::ParticipantRemoved)
    }

    /// Removes a participant for another reason, as the real server does when a telephone call
    /// could not be placed.
    ///
    /// # Errors
    ///
    /// If there is no such room, or no such participant in it.
    pub fn disconnect_participant(
        &self,
        room: &str,
        identity: &str,
        reason: proto::DisconnectReason,
    ) -> Result<(), RoomError> {
        self.require(room)?.remove(identity, reason)
    }

    /// Changes metadata, name, attributes or permission, and tells the room.
    ///
    /// # Errors
    ///
    /// If there is no such room, or no such participant in it, or a value is larger than the server
    /// allows.
    pub fn update_participant(
        &self,
        room: &str,
        identity: &str,
        change: ParticipantChange,
    ) -> Result<proto::ParticipantInfo, RoomError> {
        self.require(room)?.update(identity, change)
    }

    /// Mutes a track; `None` if there is no such track. Unmuting from the server is refused, as the
    /// real server does by default.
    ///
    /// # Errors
    ///
    /// If there is no such room, or no such participant in it, or `muted` is false.
    pub fn mute_track(
        &self,
        room: &str,
        identity: &str,
        track_sid: &str,
        muted: bool,
    ) -> Result<Option<proto::TrackInfo>, RoomError> {
        self.require(room)?
            .mute_from_server(identity, track_sid, muted)
    }

    /// Subscribes a participant to tracks, or ends the subscription.
    ///
    /// # Errors
    ///
    /// If there is no such room, or no such participant in it.
    pub fn update_subscriptions(
        &self,
        room: &str,
        identity: &str,
        track_sids: &[String],
        subscribe: bool,
    ) -> Result<(), RoomError> {
        let room = self.require(room)?;
        room.participant(identity)?;
        room.update_subscriptions(identity, track_sids, subscribe);
        Ok(())
    }

    /// Sends a data packet to the room, or to the packet's `destination_identities`.
    ///
    /// # Errors
    ///
    /// `NoSuchRoom` if there is no such room.
    pub fn send_data(&self, room: &str, packet: proto::DataPacket) -> Result<(), RoomError> {
        self.require(room)?.send_server_data(packet);
        Ok(())
    }

    /// Replaces the room's metadata and tells everybody.
    ///
    /// # Errors
    ///
    /// If there is no such room, or the metadata is larger than the server allows.
    pub fn update_metadata(&self, room: &str, metadata: &str) -> Result<proto::Room, RoomError> {
        let room = self.require(room)?;
        room.set_metadata(metadata);
        Ok(room.snapshot())
    }

    /// Marks the room as being recorded or not, which the SDKs show as `active_recording`.
    ///
    /// # Errors
    ///
    /// `NoSuchRoom` if there is no such room.
    pub fn set_recording(&self, room: &str, recording: bool) -> Result<(), RoomError> {
        self.require(room)?.set_recording(recording);
        Ok(())
    }

    /// All events from now on, of all rooms. A listener that falls far behind misses the oldest.
    pub fn subscribe(&self) -> broadcast::Receiver<RoomEvent> {
        self.registry.events.subscribe()
    }

    /// Every Opus packet that any participant of the room publishes from now on. The stream ends
    /// with the room. Packets that the reader does not take in time are dropped.
    ///
    /// # Errors
    ///
    /// `NoSuchRoom` if there is no such room.
    pub fn tap(&self, room: &str) -> Result<mpsc::Receiver<TappedPacket>, RoomError> {
        let (sender, receiver) = mpsc::channel(TAP_BACKLOG);
        self.require(room)?.add_tap(sender);
        Ok(receiver)
    }

    /// The room, created with the options when it does not exist.
    pub(crate) fn open(&self, name: &str, options: RoomOptions) -> Arc<Room> {
        let mut rooms = self.registry.rooms.lock();
        if let Some(room) = rooms.get(name) {
            return Arc::clone(room);
        }
        let room = Arc::new(Room::new(name, options, self.registry.events.clone()));
        rooms.insert(name.to_owned(), Arc::clone(&room));
        drop(rooms);
        room.announce();
        room
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Room>> {
        self.registry.rooms.lock().get(name).cloned()
    }

    fn require(&self, name: &str) -> Result<Arc<Room>, RoomError> {
        self.find(name)
            .ok_or_else(|| RoomError::NoSuchRoom(name.to_owned()))
    }

    fn close(&self, room: &Arc<Room>, reason: proto::DisconnectReason) {
        let mut rooms = self.registry.rooms.lock();
        // A room with the same name may have replaced it in the meantime.
        if rooms
            .get(room.name())
            .is_some_and(|current| Arc::ptr_eq(current, room))
        {
            rooms.remove(room.name());
        }
        drop(rooms);
        room.close(reason);
    }

    pub(crate) fn close_all(&self, reason: proto::DisconnectReason) {
        let rooms: Vec<_> = self.registry.rooms.lock().values().cloned().collect();
        for room in rooms {
            self.close(&room, reason);
        }
    }

    /// Compares speakers and closes idle rooms until the last handle is gone.
    pub(crate) fn sweep_forever(&self) -> impl Future<Output = ()> + Send + 'static {
        let registry: Weak<Registry> = Arc::downgrade(&self.registry);
        async move {
            let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            loop {
                ticks.tick().await;
                let Some(registry) = registry.upgrade() else {
                    return;
                };
                let rooms = Self { registry };
                let all: Vec<_> = rooms.registry.rooms.lock().values().cloned().collect();
                for room in all {
                    if room.sweep(tokio::time::Instant::now()) == Sweep::CloseIdle {
                        rooms.close(&room, proto::DisconnectReason::RoomClosed);
                    }
                }
            }
        }
    }
}
