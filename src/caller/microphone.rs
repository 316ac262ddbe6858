//! A microphone that never stops: recorded lines, and a background or silence between them.

use std::sync::Arc;
use std::time::Duration;

use livekit::options::TrackPublishOptions;
use livekit::prelude::*;
use livekit::webrtc::RtcError;
use livekit::webrtc::audio_frame::AudioFrame;
use livekit::webrtc::audio_source::native::NativeAudioSource;
use livekit::webrtc::audio_source::{AudioSourceOptions, RtcAudioSource};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How a microphone sounds and is published.
#[derive(Debug, Clone)]
pub struct MicrophoneOptions {
    /// Name of the track.
    pub name: &'static str,
    /// Rate of everything that is played, Hz.
    pub sample_rate_hz: u32,
    /// How much is held ahead, ms.
    pub queue_ms: u32,
    /// Whether the track is published with redundancy (RED).
    pub red: bool,
    /// Played over and over while no line is said, mono; empty: silence.
    pub background: Arc<[i16]>,
}

impl Default for MicrophoneOptions {
    fn default() -> Self {
        Self {
            name: "microphone",
            sample_rate_hz: 16_000,
            queue_ms: 40,
            red: false,
            background: Arc::default(),
        }
    }
}

/// Publishes a microphone on which nothing is played yet.
///
/// # Errors
/// When the server does not take the track.
pub async fn publish(
    room: &Room,
    options: &MicrophoneOptions,
) -> Result<(NativeAudioSource, LocalTrackPublication), RoomError> {
    let source = NativeAudioSource::new(
        AudioSourceOptions::default(),
        options.sample_rate_hz,
        1,
        options.queue_ms,
    );
    let track =
        LocalAudioTrack::create_audio_track(options.name, RtcAudioSource::Native(source.clone()));
    let publish = TrackPublishOptions {
        source: TrackSource::Microphone,
        dtx: false,
        red: options.red,
        ..TrackPublishOptions::default()
    };
    let participant = room.local_participant();
    let publication = participant
        .publish_track(LocalTrack::Audio(track), publish)
        .await?;
    Ok((source, publication))
}

struct Line {
    samples: Arc<[i16]>,
    begun: oneshot::Sender<(Instant, Instant)>,
    done: oneshot::Sender<()>,
}

/// A line that is being said.
#[derive(Debug)]
pub struct BegunLine {
    /// When its first sample leaves the microphone.
    pub first: Instant,
    /// When its last sample will have left.
    pub last: Instant,
    done: oneshot::Receiver<()>,
}

impl BegunLine {
    /// Waits until all of it is on its way. `None`: the microphone broke before.
    pub async fn said(self) -> Option<()> {
        self.done.await.ok()
    }
}

/// A microphone in a room. It is switched off when it is dropped.
#[derive(Debug)]
pub struct Microphone {
    /// The server's id of its track.
    pub track: String,
    lines: mpsc::Sender<Line>,
    player: JoinHandle<()>,
}

impl Microphone {
    /// Publishes a microphone and plays the background on it.
    ///
    /// # Errors
    /// When the server does not take the track.
    pub async fn switch_on(room: &Room, options: MicrophoneOptions) -> Result<Self, RoomError> {
        let (source, publication) = publish(room, &options).await?;
        // One line waits while another is said; whoever says a third one waits.
        let (lines, inbox) = mpsc::channel(1);
        Ok(Self {
            track: publication.sid().to_string(),
            lines,
            player: tokio::spawn(play(source, options, inbox)),
        })
    }

    /// Says a line as soon as those before it are said; returns when it begins. `None`: the
    /// microphone is off.
    pub async fn begin(&self, samples: Arc<[i16]>) -> Option<BegunLine> {
        let (begun, begins) = oneshot::channel();
        let (done, is_done) = oneshot::channel();
        let line = Line {
            samples,
            begun,
            done,
        };
        self.lines.send(line).await.ok()?;
        let (first, last) = begins.await.ok()?;
        Some(BegunLine {
            first,
            last,
            done: is_done,
        })
    }
}

impl Drop for Microphone {
    fn drop(&mut self) {
        self.player.abort();
    }
}

async fn play(
    source: NativeAudioSource,
    options: MicrophoneOptions,
    mut lines: mpsc::Receiver<Line>,
) {
    let rate = options.sample_rate_hz;
    let frame = rate as usize / 100;
    let queued = Duration::from_millis(options.queue_ms.into());
    let silence = vec![0; frame];
    let mut background = options.background.chunks_exact(frame).cycle();
    loop {
        match lines.try_recv() {
            Ok(line) => {
                let first = Instant::now() + queued;
                let length = line.samples.len() as f64 / f64::from(rate);
                // Whoever asked may have given up on it.
                let _ = line
                    .begun
                    .send((first, first + Duration::from_secs_f64(length)));
                for piece in line.samples.chunks(frame) {
                    let mut padded = silence.clone();
                    padded[..piece.len()].copy_from_slice(piece);
                    if capture(&source, rate, &padded).await.is_err() {
                        return;
                    }
                }
                let _ = line.done.send(());
            }
            Err(mpsc::error::TryRecvError::Empty) => {
                let sound = background.next().unwrap_or(&silence);
                if capture(&source, rate, sound).await.is_err() {
                    return;
                }
            }
            Err(mpsc::error::TryRecvError::Disconnected) => return,
        }
    }
}

async fn capture(source: &NativeAudioSource, rate: u32, samples: &[i16]) -> Result<(), RtcError> {
    let frame = AudioFrame {
        data: samples.into(),
        sample_rate: rate,
        num_channels: 1,
        samples_per_channel: samples.len() as u32,
    };
    source.capture_frame(&frame).await
}
