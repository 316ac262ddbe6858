//! The LiveKit room as one call sees it: joined, our track published, the caller found, sound both
//! directions, words going out.
//!
//! The only place of `call/` that knows LiveKit's types. Connecting and closing are not safe to
//! cancel (rust-sdks#1334, #1340), so both run as tasks of their own and only the wait for them is
//! bounded.
//!
//! A connection that is lost is the SDK's to mend for as long as it tries, which is ten attempts at
//! random moments, 3 to 35 s together (livekit `rtc_engine/reconnect_strategy.rs`). After that,
//! [`CallRoom::come_back`] connects anew.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use livekit::options::TrackPublishOptions;
use livekit::participant::ParticipantKind;
use livekit::prelude::*;
use livekit::webrtc::audio_frame::AudioFrame as RtcAudioFrame;
use livekit::webrtc::audio_source::native::NativeAudioSource;
use livekit::webrtc::audio_source::{AudioSourceOptions, RtcAudioSource};
use livekit::webrtc::audio_stream::native::NativeAudioStream;
use livekit::webrtc::stats::RtcStats;
use livekit::{SendTextOptions, StreamTextOptions, StreamWriter as _, TextStreamWriter};
use livekit_api::access_token::{AccessToken, Claims};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{Instrument as _, debug, warn};

use super::hangup::DisconnectReason;
use super::media::Packets;
use crate::rooms::is_machine;
use crate::rooms::party::{Party, Role};
use crate::session::CallParticipant;
use crate::settings::LiveKitSettings;
use crate::voice::{AudioOutput, OutputClosed};

/// Rate of the track in the room. SIP bridges and browsers use 48 kHz whatever the telephone
/// carries.
pub const ROOM_SAMPLE_RATE_HZ: u32 = 48_000;
/// Rate of the sound that turn taking and speech recognition get.
pub const LISTEN_SAMPLE_RATE_HZ: u32 = 16_000;
/// How much sound may wait in the source, ms. Long enough for an even stream under load; `clear`
/// empties it at once.
const SOURCE_QUEUE_MS: u32 = 200;
/// Frames of 10 ms of the caller's sound that may wait for a reader; older ones are dropped.
const LISTEN_QUEUE_FRAMES: usize = 50;
/// Name of the agent's track, as LiveKit Agents call theirs.
const TRACK_NAME: &str = "roomio_audio";
/// Topic of transcriptions (LiveKit Agents' `types.py`).
const TRANSCRIPTION_TOPIC: &str = "lk.transcription";
/// Topic of chat messages to the agent.
const CHAT_TOPIC: &str = "lk.chat";
/// Attribute with what the agent is doing.
const AGENT_STATE: &str = "lk.agent.state";
/// Attribute of the agent with what has come of a call that it has placed: JSON.
pub const CALL_OUTCOME: &str = "voicebot.outcome";
/// The keys of a telephone by the numbers of their events (RFC 4733, section 3.2).
const KEYS: [char; 16] = [
    '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '*', '#', 'A', 'B', 'C', 'D',
];
/// From one key to the next, as LiveKit Agents have it (`send_dtmf.py`).
const KEY_PAUSE: Duration = Duration::from_millis(300);
/// A pause among keys, as long as LiveKit's `w` is.
const LONG_PAUSE: Duration = Duration::from_millis(500);
/// How long the engine may take to count packets. It answers at once, or is hung.
const STATS_WAIT: Duration = Duration::from_millis(500);
/// The pause between two attempts to come back into a room: the server that was restarted has all
/// its participants at its door.
const COME_BACK_PAUSE: Duration = Duration::from_millis(500);
/// How long a token that is made for coming back may be used.
const COME_BACK_TOKEN: Duration = Duration::from_secs(10 * 60);
/// The largest chat message that is taken, bytes.
const MAX_CHAT_BYTES: usize = 16 * 1024;

/// Why the room could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RoomLinkError {
    /// The server did not let us in.
    #[error("could not join room {room} at {url} (LIVEKIT_URL): {source}")]
    Join {
        /// The room.
        room: String,
        /// The server.
        url: String,
        /// LiveKit's reason.
        source: Box<RoomError>,
    },
    /// The server did not answer in time.
    #[error("could not join room {room} at {url} (LIVEKIT_URL): no answer within {seconds} s")]
    JoinTimeout {
        /// The room.
        room: String,
        /// The server.
        url: String,
        /// How long we waited, s.
        seconds: u64,
    },
    /// Our track was not accepted.
    #[error("could not publish the agent's track in room {room}: {source}")]
    Publish {
        /// The room.
        room: String,
        /// LiveKit's reason.
        source: Box<RoomError>,
    },
}

/// We are not in the room.
#[derive(Debug)]
pub struct JoinFailure {
    /// Why.
    pub error: RoomLinkError,
    /// What still leaves the room properly, if it came to that.
    pub leaving: Option<JoinHandle<()>>,
}

impl JoinFailure {
    fn of(error: RoomLinkError) -> Self {
        Self {
            error,
            leaving: None,
        }
    }
}

/// What a participant is to us, with what is known of it now.
fn party(participant: &RemoteParticipant) -> Party {
    let machine = participant
        .permission()
        .is_some_and(|permission| is_machine(&permission));
    Party {
        identity: participant.identity().to_string(),
        role: match participant.kind() {
            ParticipantKind::Agent => Role::Agent,
            ParticipantKind::Egress | ParticipantKind::Ingress => Role::Machine,
            _ if machine => Role::Machine,
            // Connectors bring calls of telephone and messenger networks.
            ParticipantKind::Sip | ParticipantKind::Connector => Role::Telephone,
            ParticipantKind::Standard | ParticipantKind::Bridge => Role::Person,
        },
        attributes: participant.attributes(),
        microphone: participant
            .track_publications()
            .values()
            .any(|publication| {
                publication.kind() == TrackKind::Audio
                    && publication.source() != TrackSource::ScreenshareAudio
                    && !publication.is_muted()
            }),
        joined_at_ms: participant.joined_at(),
    }
}

/// What happens in the room, as far as a call cares.
#[derive(Debug)]
pub enum CallEvent {
    /// Somebody has come, or has other attributes or tracks than before: look at everybody again.
    Changed,
    /// Somebody in the room has taken our track: an inbound telephone is answered by that.
    AgentHeard,
    /// A participant has gone.
    Left {
        /// Who, as they were last.
        party: Party,
        /// Why.
        reason: DisconnectReason,
    },
    /// The caller's sound can be heard from now on.
    Audible {
        /// Whose.
        identity: String,
        /// The sound.
        track: CallerTrack,
    },
    /// That track has ended.
    Inaudible {
        /// Its sid.
        sid: String,
    },
    /// A chat message to the agent.
    Chat {
        /// From whom.
        identity: String,
        /// The words.
        text: String,
    },
    /// Somebody pressed a key of the telephone.
    Key {
        /// Who, where the packet says so.
        identity: Option<String>,
        /// Which: a digit, `*`, `#`, or `A` to `D`.
        key: char,
    },
    /// Our own connection is lost. The SDK goes on trying; until it is back, nobody who seems to
    /// leave has hung up.
    LinkLost,
    /// The connection was lost and is back.
    Reconnected,
    /// We are out of the room for good.
    Gone {
        /// Why.
        reason: DisconnectReason,
    },
}

/// The caller's subscribed track.
#[derive(Debug, Clone)]
pub struct CallerTrack {
    track: RemoteAudioTrack,
}

impl CallerTrack {
    /// The caller's sound, mono, in frames of 10 ms at the given rate. It ends with the track.
    pub fn listen(&self, sample_rate_hz: u32) -> NativeAudioStream {
        listen(self.track.rtc_track(), sample_rate_hz)
    }

    /// How many packets have come so far.
    pub async fn packets(&self) -> Packets {
        if self.track.is_muted() {
            return Packets::Excused;
        }
        let stats = tokio::time::timeout(STATS_WAIT, self.track.get_stats()).await;
        let Ok(Ok(stats)) = stats else {
            return Packets::Excused;
        };
        // Before the first packet, there is no entry.
        let received = stats.iter().filter_map(|entry| match entry {
            RtcStats::InboundRtp(inbound) => Some(inbound.received.packets_received),
            _ => None,
        });
        Packets::Came(received.sum())
    }

    /// The sid that transcriptions of this track carry.
    pub fn sid(&self) -> String {
        self.track.sid().to_string()
    }
}

fn listen(
    track: livekit::webrtc::audio_track::RtcAudioTrack,
    sample_rate_hz: u32,
) -> NativeAudioStream {
    let options = livekit::webrtc::audio_stream::native::NativeAudioStreamOptions {
        queue_size_frames: Some(LISTEN_QUEUE_FRAMES),
    };
    NativeAudioStream::with_options(track, sample_rate_hz as i32, 1, options)
}

/// What is needed to join a room.
#[derive(Debug, Clone)]
pub struct Door {
    /// The server.
    pub url: String,
    /// What lets us in.
    pub token: String,
    /// The room's name.
    pub room_name: String,
}

impl Door {
    async fn connect(&self) -> Result<(Room, RoomEvents), RoomLinkError> {
        let mut options = RoomOptions::default();
        options.auto_subscribe = true;
        options.single_peer_connection = true;
        // A retry with the same identity makes the server take the replaced participant for an
        // agent that left and fail the job (livekit#4887).
        options.join_retries = 0;
        let connected = Room::connect(&self.url, &self.token, options).await;
        connected.map_err(|source| RoomLinkError::Join {
            room: self.room_name.clone(),
            url: self.url.clone(),
            source: Box::new(source),
        })
    }

    async fn publish(&self, room: &Room, track: &LocalAudioTrack) -> Result<(), RoomLinkError> {
        let options = TrackPublishOptions {
            source: TrackSource::Microphone,
            dtx: false,
            red: false,
            ..Default::default()
        };
        let published = room
            .local_participant()
            .publish_track(LocalTrack::Audio(track.clone()), options)
            .await;
        published
            .map(drop)
            .map_err(|source| RoomLinkError::Publish {
                room: self.room_name.clone(),
                source: Box::new(source),
            })
    }
}

/// The token `job_token` made out anew: for the same participant, valid from now on. Without the
/// server's keys, or when the token cannot be read, it is the old one, which the server made for an
/// hour.
pub fn fresh_token(job_token: &str, livekit: Option<&LiveKitSettings>) -> String {
    let made = livekit.and_then(|livekit| {
        let claims = Claims::from_unverified(job_token).ok()?;
        AccessToken::with_api_key(&livekit.api_key, livekit.api_secret.expose())
            .with_identity(&claims.sub)
            .with_name(&claims.name)
            .with_kind(&claims.kind)
            .with_metadata(&claims.metadata)
            .with_attributes(&claims.attributes)
            .with_grants(claims.video)
            .with_ttl(COME_BACK_TOKEN)
            .to_jwt()
            .ok()
    });
    made.unwrap_or_else(|| job_token.to_owned())
}

/// Everything that happens in a room.
pub type RoomEvents = mpsc::UnboundedReceiver<RoomEvent>;

/// The agent's track: what is given to `source` leaves by it.
fn agent_track(source: &NativeAudioSource) -> LocalAudioTrack {
    LocalAudioTrack::create_audio_track(TRACK_NAME, RtcAudioSource::Native(source.clone()))
}

/// A joined room with the agent's track in it.
pub struct CallRoom {
    link: Link,
    /// The track of the first connection: a recording listens to it, whichever connection it leaves
    /// by.
    first_track: LocalAudioTrack,
    speaker: Arc<Speaker>,
    coming_back: Option<ComingBack>,
}

/// One connection to the room.
struct Link {
    room: Arc<Room>,
    track: LocalAudioTrack,
}

/// A connection that is being made in place of a lost one.
struct ComingBack {
    made: oneshot::Receiver<(Link, RoomEvents)>,
    /// Ends when the connection is handed over, or is left again because nobody wants it any more.
    task: JoinHandle<()>,
}

impl CallRoom {
    /// Joins and publishes the agent's track at once: an inbound telephone call rings until it is
    /// subscribed.
    ///
    /// The second value is everything that happens in the room from the start, including who was
    /// there before us.
    pub async fn join(door: &Door, timeout: Duration) -> Result<(Self, RoomEvents), JoinFailure> {
        let connect = {
            let door = door.clone();
            async move { door.connect().await }
        };
        let joined = bounded(connect, timeout, |connected| async move {
            // It came too late: leave properly, or the server keeps an agent in the room that is
            // not there.
            if let Ok((room, _)) = connected {
                close(&room).await;
            }
        });
        let (room, events) = match joined.await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => return Err(JoinFailure::of(error)),
            Err(leaving) => {
                return Err(JoinFailure {
                    error: RoomLinkError::JoinTimeout {
                        room: door.room_name.clone(),
                        url: door.url.clone(),
                        seconds: timeout.as_secs(),
                    },
                    leaving: Some(leaving),
                });
            }
        };
        let source = NativeAudioSource::new(
            AudioSourceOptions::default(),
            ROOM_SAMPLE_RATE_HZ,
            1,
            SOURCE_QUEUE_MS,
        );
        let track = agent_track(&source);
        let published = door.publish(&room, &track).await;
        let room = Arc::new(room);
        if let Err(error) = published {
            return Err(JoinFailure {
                error,
                leaving: Some(tokio::spawn(async move { close(&room).await })),
            });
        }
        let joined = Self {
            first_track: track.clone(),
            link: Link { room, track },
            speaker: Arc::new(Speaker::new(source)),
            coming_back: None,
        };
        Ok((joined, events))
    }

    /// Begins to connect anew, in place of a connection that the SDK has given up, until it has
    /// come to something or `until` has passed. One attempt at a time: a second participant of our
    /// identity would drive out the first.
    pub fn come_back(&mut self, door: Door, until: Instant) {
        if self.coming_back.is_some() {
            return;
        }
        let (hand_over, made) = oneshot::channel();
        let source = self.speaker.source.clone();
        let task = tokio::spawn(connect_anew(door, source, until, hand_over).in_current_span());
        self.coming_back = Some(ComingBack { made, task });
    }

    /// Whether [`Self::come_back`] is at work.
    pub fn is_coming_back(&self) -> bool {
        self.coming_back.is_some()
    }

    /// Waits until we are back in the room, and gives everything that happens there from then on;
    /// `None`: it came to nothing. Never ends where nothing was begun. May be dropped at any time.
    pub async fn is_back(&mut self) -> Option<RoomEvents> {
        let Some(coming_back) = &mut self.coming_back else {
            return std::future::pending().await;
        };
        let made = (&mut coming_back.made).await;
        self.coming_back = None;
        let (link, events) = made.ok()?;
        self.link = link;
        Some(events)
    }

    /// The server's id of the room, once known.
    pub fn sid(&self) -> Option<String> {
        self.link.room.maybe_sid().map(|sid| sid.to_string())
    }

    /// Everybody else who is here now.
    pub fn parties(&self) -> Vec<Party> {
        self.link
            .room
            .remote_participants()
            .values()
            .map(party)
            .collect()
    }

    /// We, as the others see us.
    pub fn us(&self) -> Party {
        let us = self.link.room.local_participant();
        Party {
            identity: us.identity().to_string(),
            role: Role::Agent,
            attributes: us.attributes(),
            microphone: true,
            joined_at_ms: us.joined_at(),
        }
    }

    /// The agent's audio output.
    pub fn speaker(&self) -> Arc<Speaker> {
        self.speaker.clone()
    }

    /// What the agent's track carries, evenly, as it leaves; for the recording.
    pub fn listen_to_agent(&self) -> NativeAudioStream {
        listen(self.first_track.rtc_track(), ROOM_SAMPLE_RATE_HZ)
    }

    /// The agent's voice in the room's side channels.
    pub fn voice(&self) -> RoomVoice {
        RoomVoice {
            participant: self.link.room.local_participant(),
            agent_track_sid: self.link.track.sid().to_string(),
        }
    }

    /// What a participant has said about itself, while it is here.
    pub fn about(&self, identity: &str) -> Option<CallParticipant> {
        let everybody = self.link.room.remote_participants();
        let participant = everybody.get(&ParticipantIdentity::from(identity.to_owned()))?;
        Some(CallParticipant::new(
            identity,
            &participant.name(),
            &participant.metadata(),
            &participant.attributes(),
        ))
    }

    /// Leaves in the order that leaks nothing (rust-sdks#1443, #1378): unpublish, then close.
    /// Bounded by `timeout`.
    pub async fn leave(self, timeout: Duration) {
        let Self {
            link: Link { room, track },
            coming_back,
            ..
        } = self;
        let leave = async move {
            if let Some(ComingBack { made, task }) = coming_back {
                // What comes now is left again.
                drop(made);
                let _ = task.await;
            }
            if let Err(error) = room.local_participant().unpublish_track(&track.sid()).await {
                debug!(%error, "the agent's track could not be unpublished");
            }
            close(&room).await;
        };
        if bounded(leave, timeout, |()| async {}).await.is_err() {
            warn!(
                seconds = timeout.as_secs_f32(),
                "leaving the room took too long"
            );
        }
    }
}

/// What the agent tells the room beside its sound: its state, and both sides' words.
#[derive(Clone)]
pub struct RoomVoice {
    participant: LocalParticipant,
    agent_track_sid: String,
}

impl RoomVoice {
    /// Tells everybody what the agent is doing.
    pub async fn agent_state(&self, state: &str) {
        let attributes = HashMap::from([(AGENT_STATE.to_owned(), state.to_owned())]);
        if let Err(error) = self.participant.set_attributes(attributes).await {
            debug!(%error, state, "agent state could not be published");
        }
    }

    /// Presses keys of the telephone at the other end, as its bridge takes them: one after the
    /// other. `W` is a pause.
    ///
    /// # Errors
    /// The rest of a sentence, when the connection is lost.
    pub async fn press(&self, keys: &str) -> Result<(), String> {
        for key in keys.chars() {
            if let Some(code) = KEYS.iter().position(|known| *known == key) {
                let packet = SipDTMF {
                    code: code as u32,
                    digit: key.to_string(),
                    ..Default::default()
                };
                let sent = self.participant.publish_dtmf(packet).await;
                sent.map_err(|error| format!("the connection to the room failed: {error}"))?;
                tokio::time::sleep(KEY_PAUSE).await;
            } else {
                tokio::time::sleep(LONG_PAUSE).await;
            }
        }
        Ok(())
    }

    /// Tells everybody what has come of a call that was placed from here.
    pub async fn call_outcome(&self, outcome: &Value) {
        let attributes = HashMap::from([(CALL_OUTCOME.to_owned(), outcome.to_string())]);
        if let Err(error) = self.participant.set_attributes(attributes).await {
            debug!(%error, "the outcome of the call could not be published");
        }
    }

    /// The caller's words so far: a stream of its own for each state of the segment, as LiveKit's
    /// clients expect.
    pub async fn caller_words(
        &self,
        caller: &str,
        track_sid: &str,
        segment_id: &str,
        text: &str,
        is_final: bool,
    ) {
        let mut options = SendTextOptions::new_with_topic(TRANSCRIPTION_TOPIC);
        options.attributes = transcription_attributes(track_sid, segment_id, is_final);
        options.sender_identity = Some(caller.to_owned().into());
        if let Err(error) = self.participant.send_text(text, options).await {
            debug!(%error, "caller's transcription could not be published");
        }
    }

    /// A stream for one segment of the agent's speech.
    pub async fn open_agent_words(&self, segment_id: &str) -> Option<AgentWords> {
        let mut options = StreamTextOptions::new_with_topic(TRANSCRIPTION_TOPIC);
        options.attributes = transcription_attributes(&self.agent_track_sid, segment_id, false);
        match self.participant.stream_text(options).await {
            Ok(writer) => Some(AgentWords { writer }),
            Err(error) => {
                debug!(%error, "agent's transcription could not be published");
                None
            }
        }
    }
}

async fn close(room: &Room) {
    if let Err(error) = room.close().await {
        debug!(%error, "the room was closed already");
    }
}

/// Runs a future that must not be cancelled as a task; waits for it only for so long. `late` gets
/// what comes afterwards, in the task that is given back then.
async fn bounded<T: Send + 'static, Late: Future<Output = ()> + Send>(
    future: impl Future<Output = T> + Send + 'static,
    timeout: Duration,
    late: impl FnOnce(T) -> Late + Send + 'static,
) -> Result<T, JoinHandle<()>> {
    let mut task = tokio::spawn(future);
    match tokio::time::timeout(timeout, &mut task).await {
        Ok(joined) => Ok(joined.expect("the future under a bounded wait does not panic")),
        Err(_) => Err(tokio::spawn(async move {
            if let Ok(value) = task.await {
                late(value).await;
            }
        })),
    }
}

/// Connects until it has come to something; then hands the connection over, or leaves again if
/// nobody takes it.
async fn connect_anew(
    door: Door,
    source: NativeAudioSource,
    until: Instant,
    hand_over: oneshot::Sender<(Link, RoomEvents)>,
) {
    while !hand_over.is_closed() {
        let failed = match door.connect().await {
            Ok((room, events)) => {
                let track = agent_track(&source);
                match door.publish(&room, &track).await {
                    Ok(()) => {
                        let room = Arc::new(room);
                        let link = Link { room, track };
                        if let Err((link, _)) = hand_over.send((link, events)) {
                            close(&link.room).await;
                        }
                        return;
                    }
                    Err(error) => {
                        close(&room).await;
                        error
                    }
                }
            }
            Err(error) => error,
        };
        debug!(error = %failed, "not back in the room yet");
        if Instant::now() + COME_BACK_PAUSE >= until {
            return;
        }
        tokio::time::sleep(COME_BACK_PAUSE).await;
    }
}

fn transcription_attributes(
    track_sid: &str,
    segment_id: &str,
    is_final: bool,
) -> HashMap<String, String> {
    HashMap::from([
        ("lk.transcription_final".into(), is_final.to_string()),
        ("lk.transcribed_track_id".into(), track_sid.to_owned()),
        ("lk.segment_id".into(), segment_id.to_owned()),
    ])
}

/// An open stream of the agent's words.
pub struct AgentWords {
    writer: TextStreamWriter,
}

impl AgentWords {
    /// Adds words.
    pub async fn write(&self, words: &str) {
        if let Err(error) = self.writer.write(words).await {
            debug!(%error, "agent's words could not be published");
        }
    }

    /// Ends the segment.
    pub async fn finish(self) {
        let attributes = HashMap::from([("lk.transcription_final".to_owned(), "true".to_owned())]);
        if let Err(error) = self.writer.close_with_options(None, Some(attributes)).await {
            debug!(%error, "agent's transcription could not be ended");
        }
    }
}

/// Turns LiveKit's events into what a call cares about; the rest is dropped.
pub fn call_event(event: RoomEvent) -> Option<CallEvent> {
    match event {
        RoomEvent::ParticipantConnected(_)
        | RoomEvent::ParticipantAttributesChanged {
            participant: Participant::Remote(_),
            ..
        }
        | RoomEvent::ParticipantPermissionChanged {
            participant: Participant::Remote(_),
            ..
        }
        | RoomEvent::TrackPublished { .. }
        | RoomEvent::TrackUnpublished { .. }
        | RoomEvent::TrackMuted {
            participant: Participant::Remote(_),
            ..
        }
        | RoomEvent::TrackUnmuted {
            participant: Participant::Remote(_),
            ..
        } => Some(CallEvent::Changed),
        RoomEvent::LocalTrackSubscribed { .. } => Some(CallEvent::AgentHeard),
        RoomEvent::ParticipantDisconnected(participant) => Some(CallEvent::Left {
            party: party(&participant),
            reason: reason(participant.disconnect_reason()),
        }),
        RoomEvent::TrackSubscribed {
            track: RemoteTrack::Audio(track),
            participant,
            ..
        } => {
            let party = party(&participant);
            party.may_be_caller().then(|| CallEvent::Audible {
                identity: party.identity,
                track: CallerTrack { track },
            })
        }
        RoomEvent::SipDTMFReceived {
            code,
            digit,
            participant,
        } => Some(CallEvent::Key {
            identity: participant.map(|participant| participant.identity().to_string()),
            key: key(code, digit.as_deref())?,
        }),
        RoomEvent::TrackUnsubscribed { publication, .. } => Some(CallEvent::Inaudible {
            sid: publication.sid().to_string(),
        }),
        RoomEvent::Reconnecting => Some(CallEvent::LinkLost),
        RoomEvent::Reconnected => Some(CallEvent::Reconnected),
        RoomEvent::Disconnected { reason: theirs } => Some(CallEvent::Gone {
            reason: reason(theirs.into()),
        }),
        _ => None,
    }
}

/// The key of a `SipDTMF` packet: its text, or the number of its event (RFC 4733, section 3.2).
fn key(code: u32, text: Option<&str>) -> Option<char> {
    let named = text.unwrap_or_default().trim().to_ascii_uppercase();
    let mut chars = named.chars();
    match (chars.next(), chars.next()) {
        (Some(key), None) if KEYS.contains(&key) => Some(key),
        _ => KEYS.get(code as usize).copied(),
    }
}

/// Reads a chat message to the agent in the background; it arrives as a [`CallEvent::Chat`].
pub fn read_chat(event: &RoomEvent, to: mpsc::Sender<CallEvent>) {
    let RoomEvent::TextStreamOpened {
        reader,
        topic,
        participant_identity,
    } = event
    else {
        return;
    };
    if topic != CHAT_TOPIC {
        return;
    }
    let Some(mut reader) = reader.take() else {
        return;
    };
    let identity = participant_identity.to_string();
    tokio::spawn(async move {
        let mut text = String::new();
        while let Some(Ok(chunk)) = reader.next().await {
            text.push_str(&chunk);
            if text.len() > MAX_CHAT_BYTES {
                warn!("a chat message longer than {MAX_CHAT_BYTES} bytes was ignored");
                return;
            }
        }
        if !text.trim().is_empty() {
            // The call has ended when nobody takes it any more.
            let _ = to.send(CallEvent::Chat { identity, text }).await;
        }
    });
}

fn reason(reason: livekit::prelude::DisconnectReason) -> DisconnectReason {
    use livekit::prelude::DisconnectReason as Theirs;
    match reason {
        Theirs::UnknownReason => DisconnectReason::Unknown,
        Theirs::ClientInitiated => DisconnectReason::ClientInitiated,
        Theirs::DuplicateIdentity => DisconnectReason::DuplicateIdentity,
        Theirs::ServerShutdown => DisconnectReason::ServerShutdown,
        Theirs::ParticipantRemoved => DisconnectReason::ParticipantRemoved,
        Theirs::RoomDeleted => DisconnectReason::RoomDeleted,
        Theirs::StateMismatch => DisconnectReason::StateMismatch,
        Theirs::JoinFailure => DisconnectReason::JoinFailure,
        Theirs::Migration => DisconnectReason::Migration,
        Theirs::SignalClose => DisconnectReason::SignalClose,
        Theirs::RoomClosed => DisconnectReason::RoomClosed,
        Theirs::UserUnavailable => DisconnectReason::UserUnavailable,
        Theirs::UserRejected => DisconnectReason::UserRejected,
        Theirs::SipTrunkFailure => DisconnectReason::SipTrunkFailure,
        Theirs::ConnectionTimeout => DisconnectReason::ConnectionTimeout,
        Theirs::MediaFailure => DisconnectReason::MediaFailure,
        Theirs::AgentError => DisconnectReason::AgentError,
    }
}

/// The agent's audio output: sound given to it leaves in an even stream of frames.
pub struct Speaker {
    source: NativeAudioSource,
    /// When the sound given so far will have been played. The source plays in real time without a
    /// break, so this is exact to a frame.
    ends_at: Mutex<Instant>,
}

impl Speaker {
    fn new(source: NativeAudioSource) -> Self {
        Self {
            source,
            ends_at: Mutex::new(Instant::now()),
        }
    }
}

#[async_trait::async_trait]
impl AudioOutput for Speaker {
    fn sample_rate_hz(&self) -> u32 {
        ROOM_SAMPLE_RATE_HZ
    }

    async fn capture(&self, frame: &[i16]) -> Result<(), OutputClosed> {
        let samples = frame.len() as u32;
        {
            let mut ends_at = self
                .ends_at
                .lock()
                .expect("the speaker's clock is never held over a panic");
            *ends_at = (*ends_at).max(Instant::now())
                + Duration::from_secs_f64(f64::from(samples) / f64::from(ROOM_SAMPLE_RATE_HZ));
        }
        let frame = RtcAudioFrame {
            data: frame.into(),
            sample_rate: ROOM_SAMPLE_RATE_HZ,
            num_channels: 1,
            samples_per_channel: samples,
        };
        self.source
            .capture_frame(&frame)
            .await
            .map_err(|_| OutputClosed)
    }

    fn clear(&self) {
        self.source.clear_buffer();
        *self
            .ends_at
            .lock()
            .expect("the speaker's clock is never held over a panic") = Instant::now();
    }

    fn queued(&self) -> Duration {
        self.ends_at
            .lock()
            .expect("the speaker's clock is never held over a panic")
            .saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use livekit_api::access_token::{TokenVerifier, VideoGrants};

    use super::*;
    use crate::settings::Secret;

    #[test]
    fn every_reason_has_the_name_that_livekit_gives_it() {
        let known =
            (0..100).filter_map(|code| livekit_protocol::DisconnectReason::try_from(code).ok());
        let mut seen = 0;
        for theirs in known {
            assert_eq!(reason(theirs.into()).name(), theirs.as_str_name());
            seen += 1;
        }
        assert_eq!(seen, 17);
    }

    #[test]
    fn a_fresh_token_is_for_the_same_participant_and_valid_from_now_on() {
        let grants = VideoGrants {
            room_join: true,
            room: "room".into(),
            agent: true,
            can_publish: Some(true),
            ..Default::default()
        };
        let an_hour_old = AccessToken::with_api_key("key", "secret")
            .with_identity("agent-AJ_1")
            .with_kind("agent")
            .with_attributes([("lk.agent_name", "sales")])
            .with_grants(grants)
            .with_ttl(Duration::ZERO)
            .to_jwt()
            .unwrap();
        let livekit = LiveKitSettings {
            url: String::new(),
            api_key: "key".into(),
            api_secret: Secret::new("secret"),
        };
        let before = Claims::from_unverified(&an_hour_old).unwrap();
        let fresh = fresh_token(&an_hour_old, Some(&livekit));
        let now = TokenVerifier::with_api_key("key", "secret")
            .verify(&fresh)
            .unwrap();
        assert!(now.exp > before.exp + 60);
        let times = (now.exp, now.nbf);
        let as_before = Claims {
            exp: times.0,
            nbf: times.1,
            ..before
        };
        assert_eq!(now, as_before);
        assert_eq!(fresh_token(&an_hour_old, None), an_hour_old);
        assert_eq!(fresh_token("no token", Some(&livekit)), "no token");
    }
}
