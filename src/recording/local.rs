//! Records a call in its own process: the agent on the left channel, the caller on the right, as LiveKit's dual-channel egress does.
//!
//! One task takes both streams, puts every frame where it belongs in time and encodes. The file grows by a page a second, so a
//! process that is killed loses at most the last second.

use std::fs::File;
use std::path::Path;

use futures_util::StreamExt as _;
use livekit::webrtc::audio_stream::native::NativeAudioStream;
use oggopus::{DualChannelWriter, Side, SourceId, TimelineOptions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, MissedTickBehavior, interval};

/// Rate of the streams and the file.
pub const SAMPLE_RATE_HZ: u32 = oggopus::SAMPLE_RATE_HZ;
/// How often what is complete is encoded. Often enough to keep little in memory.
const WRITE_EVERY: Duration = Duration::from_millis(200);
/// Streams of callers that may wait to be taken over: a caller whose track was replaced brings a new one.
const STREAM_QUEUE: usize = 4;

/// Why there is no recording, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum LocalRecordingError {
    /// The file cannot be made or written.
    #[error("the recording {path} cannot be written: {why}")]
    File {
        /// Path as in the record.
        path: String,
        /// The reason.
        why: String,
    },
}

/// A recording in progress.
pub struct LocalRecording {
    callers: mpsc::Sender<NativeAudioStream>,
    task: JoinHandle<Result<(), LocalRecordingError>>,
}

impl LocalRecording {
    /// Starts recording the agent into `file`; `path` is how the record names it.
    pub fn start(
        file: &Path,
        path: &str,
        agent: NativeAudioStream,
    ) -> Result<Self, LocalRecordingError> {
        let failed = |why: String| LocalRecordingError::File {
            path: path.to_owned(),
            why,
        };
        let out = File::options()
            .write(true)
            .create_new(true)
            .open(file)
            .map_err(|error| failed(error.to_string()))?;
        let writer = DualChannelWriter::new(out, TimelineOptions::default())
            .map_err(|error| failed(error.to_string()))?;
        let (callers, streams) = mpsc::channel(STREAM_QUEUE);
        let path = path.to_owned();
        let task = tokio::spawn(async move {
            record(writer, agent, streams)
                .await
                .map_err(|error| LocalRecordingError::File {
                    path,
                    why: error.to_string(),
                })
        });
        Ok(Self { callers, task })
    }

    /// Adds the caller's sound, which takes the place of an earlier one.
    pub fn add_caller(&self, stream: NativeAudioStream) {
        if self.callers.try_send(stream).is_err() {
            tracing::warn!("the caller's sound cannot be recorded any more");
        }
    }

    /// Writes what is left and the end of the file.
    pub async fn finish(self) -> Result<(), LocalRecordingError> {
        drop(self.callers);
        match self.task.await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

async fn record(
    mut writer: DualChannelWriter<File>,
    mut agent: NativeAudioStream,
    mut streams: mpsc::Receiver<NativeAudioStream>,
) -> Result<(), oggopus::Error> {
    let start = Instant::now();
    let now = || (start.elapsed().as_secs_f64() * f64::from(SAMPLE_RATE_HZ)) as u64;
    let agent_side = writer.add_source(Side::Left);
    let mut caller: Option<(NativeAudioStream, SourceId)> = None;
    let mut ticks = interval(WRITE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            stream = streams.recv() => match stream {
                Some(stream) => caller = Some((stream, writer.add_source(Side::Right))),
                None => break,
            },
            frame = agent.next() => if let Some(frame) = frame {
                let begin = now().saturating_sub(frame.samples_per_channel.into());
                writer.push(agent_side, begin, &frame.data);
            },
            frame = async { match &mut caller { Some((stream, _)) => stream.next().await, None => std::future::pending().await } } => {
                match (frame, &caller) {
                    (Some(frame), Some((_, side))) => {
                        let begin = now().saturating_sub(frame.samples_per_channel.into());
                        writer.push(*side, begin, &frame.data);
                    }
                    _ => caller = None,
                }
            }
            _ = ticks.tick() => writer.advance(now())?,
        }
    }
    let end = now();
    writer.finish(end)?.sync_all()?;
    Ok(())
}
