//! A caller who follows a script: joins the room as a person would, listens, and speaks recorded
//! lines when the agent is silent.
//!
//! It uses the official client over real WebRTC and times everything by what arrives.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use livekit::options::TrackPublishOptions;
use livekit::participant::ParticipantKind;
use livekit::prelude::*;
use livekit::webrtc::audio_frame::AudioFrame;
use livekit::webrtc::audio_source::native::NativeAudioSource;
use livekit::webrtc::audio_source::{AudioSourceOptions, RtcAudioSource};
use livekit::webrtc::audio_stream::native::NativeAudioStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// Rate of the recorded lines and of what is received.
pub const SAMPLE_RATE_HZ: u32 = oggopus::SAMPLE_RATE_HZ;
/// Samples of 10 ms.
const FRAME: usize = SAMPLE_RATE_HZ as usize / 100;
/// What counts as sound, of a full scale of 32,768: well above a codec's noise in silence.
pub const LOUD: i16 = 600;
/// How much the microphone holds ahead, ms.
const MICROPHONE_QUEUE_MS: u32 = 40;
/// A pause this long means that the agent has finished.
const FINISHED: Duration = Duration::from_millis(900);

/// What the caller hears of the agent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Heard {
    /// When the latest stretch of sound began: sound after a pause of at least 300 ms.
    pub onset: Option<Instant>,
    /// When sound was last heard.
    pub last: Option<Instant>,
}

/// What the caller sees of the room.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// When the agent came into the room.
    pub agent_joined: Option<Instant>,
    /// When the call was over for us.
    pub ended: Option<Instant>,
}

struct Line {
    samples: Arc<[i16]>,
    spoken: oneshot::Sender<(Instant, Instant)>,
}

/// A caller in a room.
pub struct ScriptedCaller {
    room: Arc<Room>,
    microphone: mpsc::Sender<Line>,
    heard: watch::Receiver<Heard>,
    seen: watch::Receiver<Seen>,
    tasks: Vec<JoinHandle<()>>,
}

impl ScriptedCaller {
    /// Joins and switches the microphone on.
    pub async fn join(url: &str, token: &str) -> Result<Self, RoomError> {
        let mut options = RoomOptions::default();
        options.auto_subscribe = true;
        let (room, events) = Room::connect(url, token, options).await?;
        let room = Arc::new(room);
        let source = NativeAudioSource::new(
            AudioSourceOptions::default(),
            SAMPLE_RATE_HZ,
            1,
            MICROPHONE_QUEUE_MS,
        );
        let track = LocalAudioTrack::create_audio_track(
            "microphone",
            RtcAudioSource::Native(source.clone()),
        );
        let publish = TrackPublishOptions {
            source: TrackSource::Microphone,
            dtx: false,
            red: false,
            ..Default::default()
        };
        room.local_participant()
            .publish_track(LocalTrack::Audio(track), publish)
            .await?;

        let (microphone, lines) = mpsc::channel(1);
        let (hear, heard) = watch::channel(Heard::default());
        let (see, seen) = watch::channel(Seen::default());
        let tasks = vec![
            tokio::spawn(speak(source, lines)),
            tokio::spawn(watch_room(events, see, hear)),
        ];
        Ok(Self {
            room,
            microphone,
            heard,
            seen,
            tasks,
        })
    }

    /// Waits for the agent to come.
    pub async fn agent_joined(&mut self, limit: Duration) -> Option<Instant> {
        let seen = timeout(
            limit,
            self.seen.wait_for(|seen| seen.agent_joined.is_some()),
        )
        .await
        .ok()?
        .ok()?;
        seen.agent_joined
    }

    /// Waits for the first sound of the agent after `moment`.
    pub async fn hears_after(&mut self, moment: Instant, limit: Duration) -> Option<Instant> {
        let after = |heard: &Heard| heard.onset.is_some_and(|onset| onset > moment);
        let heard = timeout(limit, self.heard.wait_for(after))
            .await
            .ok()?
            .ok()?;
        heard.onset
    }

    /// Waits until the agent has said what it had to say. Gives back when it stopped.
    pub async fn agent_finished(&mut self, limit: Duration) -> Option<Instant> {
        let quiet = |heard: &Heard| heard.last.is_some_and(|last| last.elapsed() >= FINISHED);
        let heard = timeout(limit, self.heard.wait_for(quiet))
            .await
            .ok()?
            .ok()?;
        heard.last
    }

    /// Says a line. Gives back when its first and its last sample left the microphone.
    pub async fn say(&self, samples: Arc<[i16]>) -> Option<(Instant, Instant)> {
        let (spoken, done) = oneshot::channel();
        self.microphone.send(Line { samples, spoken }).await.ok()?;
        done.await.ok()
    }

    /// Waits until the agent has ended the call.
    pub async fn ended(&mut self, limit: Duration) -> Option<Instant> {
        let seen = timeout(limit, self.seen.wait_for(|seen| seen.ended.is_some()))
            .await
            .ok()?
            .ok()?;
        seen.ended
    }

    /// Hangs up, if that has not happened yet.
    pub async fn leave(self) {
        for task in &self.tasks {
            task.abort();
        }
        // An error means that the room is gone already.
        let _ = self.room.close().await;
    }
}

/// The microphone: never stops, sends silence between lines.
async fn speak(source: NativeAudioSource, mut lines: mpsc::Receiver<Line>) {
    let queued = Duration::from_millis(u64::from(MICROPHONE_QUEUE_MS));
    let silence = [0i16; FRAME];
    loop {
        match lines.try_recv() {
            Ok(line) => {
                let first = Instant::now() + queued;
                let length =
                    Duration::from_secs_f64(line.samples.len() as f64 / f64::from(SAMPLE_RATE_HZ));
                for piece in line.samples.chunks(FRAME) {
                    let mut frame = silence;
                    frame[..piece.len()].copy_from_slice(piece);
                    if capture(&source, &frame).await.is_err() {
                        return;
                    }
                }
                // The caller may have given up on it.
                let _ = line.spoken.send((first, first + length));
            }
            Err(mpsc::error::TryRecvError::Empty) => {
                if capture(&source, &silence).await.is_err() {
                    return;
                }
            }
            Err(mpsc::error::TryRecvError::Disconnected) => return,
        }
    }
}

async fn capture(
    source: &NativeAudioSource,
    samples: &[i16],
) -> Result<(), livekit::webrtc::RtcError> {
    let frame = AudioFrame {
        data: samples.into(),
        sample_rate: SAMPLE_RATE_HZ,
        num_channels: 1,
        samples_per_channel: samples.len() as u32,
    };
    source.capture_frame(&frame).await
}

async fn watch_room(
    mut events: mpsc::UnboundedReceiver<RoomEvent>,
    see: watch::Sender<Seen>,
    hear: watch::Sender<Heard>,
) {
    let mut listener: Option<JoinHandle<()>> = None;
    while let Some(event) = events.recv().await {
        let is_agent =
            |participant: &RemoteParticipant| participant.kind() == ParticipantKind::Agent;
        match event {
            RoomEvent::ParticipantConnected(participant) if is_agent(&participant) => {
                see.send_modify(|seen| {
                    seen.agent_joined = seen.agent_joined.or(Some(Instant::now()))
                });
            }
            RoomEvent::TrackSubscribed {
                track: RemoteTrack::Audio(track),
                participant,
                ..
            } if is_agent(&participant) => {
                see.send_modify(|seen| {
                    seen.agent_joined = seen.agent_joined.or(Some(Instant::now()))
                });
                let stream = NativeAudioStream::new(track.rtc_track(), SAMPLE_RATE_HZ as i32, 1);
                listener = Some(tokio::spawn(listen(stream, hear.clone())));
            }
            RoomEvent::ParticipantDisconnected(participant) if is_agent(&participant) => {
                see.send_modify(|seen| seen.ended = seen.ended.or(Some(Instant::now())));
            }
            RoomEvent::Disconnected { .. } => {
                see.send_modify(|seen| seen.ended = seen.ended.or(Some(Instant::now())));
                break;
            }
            _ => {}
        }
    }
    if let Some(listener) = listener {
        listener.abort();
    }
}

async fn listen(mut stream: NativeAudioStream, hear: watch::Sender<Heard>) {
    const PAUSE: Duration = Duration::from_millis(300);
    while let Some(frame) = stream.next().await {
        let now = Instant::now();
        let loud = frame
            .data
            .iter()
            .any(|sample| sample.saturating_abs() > LOUD);
        // Readers wait for silence as well, so every frame wakes them.
        hear.send_modify(|heard| {
            if loud {
                if heard.last.is_none_or(|last| now - last > PAUSE) {
                    heard.onset = Some(now);
                }
                heard.last = Some(now);
            }
        });
    }
}
