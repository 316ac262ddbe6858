//! Somebody in a room: what they see of the agent, and when they hear it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use livekit::StreamReader as _;
use livekit::participant::ParticipantKind;
use livekit::prelude::*;
use livekit::webrtc::audio_stream::native::NativeAudioStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};

use super::microphone::{BegunLine, Microphone, MicrophoneOptions};

/// What counts as sound, of a full scale of 32,768: well above a codec's noise in silence.
pub const LOUD: i16 = 600;
/// Sound after a pause this long is a new onset.
const PAUSE: Duration = Duration::from_millis(300);
/// A gap within sound that is longer than this is a stutter.
const STUTTER: Duration = Duration::from_millis(60);

/// What a caller has of its own.
#[derive(Debug, Clone)]
pub struct CallerOptions {
    /// The microphone; `None`: an observer, who has none.
    pub microphone: Option<MicrophoneOptions>,
    /// Rate at which the agent is listened to, Hz.
    pub hearing_rate_hz: u32,
}

impl Default for CallerOptions {
    fn default() -> Self {
        Self {
            microphone: Some(MicrophoneOptions::default()),
            hearing_rate_hz: 16_000,
        }
    }
}

/// What was heard of the agent so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    /// When the latest stretch of sound began.
    pub onset: Option<Instant>,
    /// When sound was last heard.
    pub last: Option<Instant>,
    /// Short gaps within sound.
    pub stutters: u32,
}

impl Heard {
    /// Takes in one frame that arrived at `now`.
    fn hear(&mut self, loud: bool, now: Instant) {
        if !loud {
            return;
        }
        match self.last {
            Some(last) if now - last <= PAUSE => self.stutters += u32::from(now - last > STUTTER),
            _ => self.onset = Some(now),
        }
        self.last = Some(now);
    }
}

/// One transcription stream, as far as it has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transcript {
    /// Identity of the stream's sender.
    pub speaker: String,
    /// `lk.segment_id`.
    pub segment: String,
    /// `lk.transcribed_track_id`.
    pub track: String,
    /// `lk.transcription_final` when the stream was opened.
    pub final_at_start: bool,
    /// What it said.
    pub text: String,
    /// Nothing more comes.
    pub ended: bool,
}

/// What a caller has seen of the call so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The agent's identity, once it was in the room.
    pub agent: Option<String>,
    /// When the agent came.
    pub agent_joined: Option<Instant>,
    /// The sid of the agent's track.
    pub agent_track: Option<String>,
    /// Somebody in the room has our sound.
    pub is_heard: bool,
    /// The agent has left the room.
    pub agent_gone: bool,
    /// How often our own connection was lost.
    pub lost: usize,
    /// We are out of the room; why, in LiveKit's word.
    pub ended: Option<&'static str>,
    /// When the call was over for us: the agent had left, or we were out of the room.
    pub over_at: Option<Instant>,
    /// Every value that `lk.agent.state` had, in order.
    pub states: Vec<String>,
    /// The agent's sound.
    pub heard: Heard,
    /// Frames of 10 ms of it that were loud.
    pub loud_frames: usize,
    /// All `lk.transcription` streams.
    pub transcripts: Vec<Transcript>,
}

impl Seen {
    /// How often the agent has finished speaking.
    pub fn replies(&self) -> usize {
        self.states
            .windows(2)
            .filter(|pair| pair[0] == "speaking" && pair[1] != "speaking")
            .count()
    }

    /// What the agent says that it does.
    pub fn state(&self) -> &str {
        self.states.last().map_or("", String::as_str)
    }

    /// Whether the call is over for us.
    pub fn is_over(&self) -> bool {
        self.agent_gone || self.ended.is_some()
    }

    fn over(&mut self) {
        self.over_at.get_or_insert_with(Instant::now);
    }
}

/// Somebody in a room. Stops listening when dropped; [`Caller::leave`] hangs up.
pub struct Caller {
    room: Room,
    microphone: Option<Microphone>,
    seen: watch::Receiver<Seen>,
    watcher: JoinHandle<()>,
}

impl Caller {
    /// Joins a room, and switches the microphone on if there is one.
    ///
    /// # Errors
    /// When the server does not let us in, or does not take the microphone's track.
    pub async fn join(url: &str, token: &str, options: CallerOptions) -> Result<Self, RoomError> {
        let mut joining = RoomOptions::default();
        joining.auto_subscribe = true;
        let (room, events) = Room::connect(url, token, joining).await?;
        let (see, seen) = watch::channel(Seen::default());
        let watcher = tokio::spawn(watch_room(events, options.hearing_rate_hz, Arc::new(see)));
        let mut caller = Self {
            room,
            microphone: None,
            seen,
            watcher,
        };
        if let Some(microphone) = options.microphone {
            caller.microphone = Some(Microphone::switch_on(&caller.room, microphone).await?);
        }
        Ok(caller)
    }

    /// The room.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// The microphone, if there is one.
    pub fn microphone(&self) -> Option<&Microphone> {
        self.microphone.as_ref()
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until `wanted` finds what it looks for. `None`: it did not come in time.
    pub async fn until<T>(
        &mut self,
        limit: Duration,
        mut wanted: impl FnMut(&Seen) -> Option<T>,
    ) -> Option<T> {
        let mut found = None;
        let waiting = self.seen.wait_for(|seen| {
            found = wanted(seen);
            found.is_some()
        });
        let came = matches!(timeout(limit, waiting).await, Ok(Ok(_)));
        found.filter(|_| came)
    }

    /// Waits for the agent. Gives back when it came.
    pub async fn agent_joined(&mut self, limit: Duration) -> Option<Instant> {
        self.until(limit, |seen| seen.agent_joined).await
    }

    /// Waits for the first sound of the agent after `moment`. Gives back when it was.
    pub async fn hears_after(&mut self, moment: Instant, limit: Duration) -> Option<Instant> {
        let after = |seen: &Seen| seen.heard.onset.filter(|onset| *onset > moment);
        self.until(limit, after).await
    }

    /// Waits until the agent has been silent for `pause`, counted from `since` at the earliest.
    /// Gives back when its last sound was.
    pub async fn quiet(
        &mut self,
        since: Instant,
        pause: Duration,
        limit: Duration,
    ) -> Option<Instant> {
        let quiet = |seen: &Seen| {
            let last = seen.heard.last.filter(|last| last.elapsed() >= pause);
            last.filter(|_| since.elapsed() >= pause)
        };
        self.until(limit, quiet).await
    }

    /// Waits until the call is over for us. Gives back when it was.
    pub async fn ended(&mut self, limit: Duration) -> Option<Instant> {
        self.until(limit, |seen| seen.over_at).await
    }

    /// Says a line; returns when it begins. `None`: there is no microphone, or it is off.
    pub async fn begin(&self, samples: Arc<[i16]>) -> Option<BegunLine> {
        self.microphone.as_ref()?.begin(samples).await
    }

    /// Says a whole line. Gives back when its first and its last sample left the microphone.
    pub async fn say(&self, samples: Arc<[i16]>) -> Option<(Instant, Instant)> {
        let line = self.begin(samples).await?;
        let times = (line.first, line.last);
        line.said().await?;
        Some(times)
    }

    /// Hangs up, if that has not happened yet.
    pub async fn leave(self) {
        self.watcher.abort();
        // An error means that the room is gone already.
        let _ = self.room.close().await;
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

type See = Arc<watch::Sender<Seen>>;

fn is_agent(participant: &RemoteParticipant) -> bool {
    participant.kind() == ParticipantKind::Agent
}

async fn watch_room(mut events: mpsc::UnboundedReceiver<RoomEvent>, rate_hz: u32, see: See) {
    // They end with this task.
    let mut listeners = JoinSet::new();
    while let Some(event) = events.recv().await {
        match event {
            RoomEvent::ParticipantConnected(participant) if is_agent(&participant) => {
                agent_here(&participant, &see);
            }
            RoomEvent::ParticipantAttributesChanged {
                participant: Participant::Remote(participant),
                ..
            } if is_agent(&participant) => agent_here(&participant, &see),
            RoomEvent::TrackSubscribed {
                track: RemoteTrack::Audio(track),
                participant,
                ..
            } if is_agent(&participant) => {
                agent_here(&participant, &see);
                see.send_modify(|seen| seen.agent_track = Some(track.sid().to_string()));
                let stream = NativeAudioStream::new(track.rtc_track(), rate_hz as i32, 1);
                listeners.spawn(listen(stream, see.clone()));
            }
            RoomEvent::Reconnecting => see.send_modify(|seen| {
                seen.lost += 1;
                seen.is_heard = false;
                seen.agent_track = None;
            }),
            RoomEvent::LocalTrackSubscribed { .. } => see.send_modify(|seen| seen.is_heard = true),
            RoomEvent::ParticipantDisconnected(participant) if is_agent(&participant) => {
                see.send_modify(|seen| {
                    seen.agent_gone = true;
                    seen.over();
                });
            }
            RoomEvent::TextStreamOpened {
                reader,
                topic,
                participant_identity,
            } if topic == "lk.transcription" => {
                if let Some(reader) = reader.take() {
                    let speaker = participant_identity.to_string();
                    listeners.spawn(read_transcript(reader, speaker, see.clone()));
                }
            }
            RoomEvent::Disconnected { reason } => {
                see.send_modify(|seen| {
                    seen.ended = Some(reason.as_str_name());
                    seen.over();
                });
                return;
            }
            _ => {}
        }
    }
}

fn agent_here(participant: &RemoteParticipant, see: &See) {
    let state = participant.attributes().get("lk.agent.state").cloned();
    see.send_modify(|seen| {
        seen.agent = Some(participant.identity().to_string());
        seen.agent_joined.get_or_insert_with(Instant::now);
        if let Some(state) = state
            && seen.states.last() != Some(&state)
        {
            seen.states.push(state);
        }
    });
}

async fn listen(mut stream: NativeAudioStream, see: See) {
    let mut frames = 0_u32;
    while let Some(frame) = stream.next().await {
        let is_loud = |sample: &i16| sample.saturating_abs() > LOUD;
        let (loud, now) = (frame.data.iter().any(is_loud), Instant::now());
        frames = frames.wrapping_add(1);
        see.send_if_modified(|seen| {
            seen.heard.hear(loud, now);
            seen.loud_frames += usize::from(loud);
            // Who waits for silence has to be woken too; every second frame is enough for that.
            loud || frames.is_multiple_of(2)
        });
    }
}

async fn read_transcript(mut reader: livekit::TextStreamReader, speaker: String, see: See) {
    let attribute = |name: &str| {
        let attributes = reader.info().attributes();
        attributes.get(name).cloned().unwrap_or_default()
    };
    let transcript = Transcript {
        speaker,
        segment: attribute("lk.segment_id"),
        track: attribute("lk.transcribed_track_id"),
        final_at_start: attribute("lk.transcription_final") == "true",
        ..Transcript::default()
    };
    let mut at = 0;
    see.send_modify(|seen| {
        at = seen.transcripts.len();
        seen.transcripts.push(transcript);
    });
    while let Some(Ok(text)) = reader.next().await {
        see.send_modify(|seen| seen.transcripts[at].text.push_str(&text));
    }
    see.send_modify(|seen| seen.transcripts[at].ended = true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sound_after_a_pause_is_a_new_onset_and_a_short_gap_a_stutter() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut heard = Heard::default();
        for (ms, loud, onset, stutters) in [
            (0, false, None, 0),
            (10, true, Some(10), 0),
            (70, true, Some(10), 0),
            (140, true, Some(10), 1),
            (300, false, Some(10), 1),
            (440, true, Some(10), 2),
            (741, true, Some(741), 2),
        ] {
            heard.hear(loud, at(ms));
            assert_eq!(heard.onset, onset.map(at), "{ms} ms");
            assert_eq!(heard.stutters, stutters, "{ms} ms");
        }
        assert_eq!(heard.last, Some(at(741)));
    }
}
