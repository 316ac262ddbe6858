//! Records a call in its own process: the agent on the left channel, the caller on the right, as
//! LiveKit's dual-channel egress does.
//!
//! One task takes the received samples of both streams several times a second, aligns them in time
//! and encodes them. The file grows by a page a second, so a process that is killed loses at most
//! the last second.

use std::fs::File;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use livekit::webrtc::audio_frame::AudioFrame as RtcAudioFrame;
use livekit::webrtc::audio_stream::native::NativeAudioStream;
use oggopus::{DualChannelWriter, Side, SourceId, TimelineOptions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, MissedTickBehavior, interval};

/// Rate of the streams and the file.
pub const SAMPLE_RATE_HZ: u32 = oggopus::SAMPLE_RATE_HZ;
/// How often samples are taken from the streams and encoded. Must be less than what the streams
/// buffer (half a second) and than the delay that the writer allows for late sound; each time costs
/// a wake-up.
const WRITE_EVERY: Duration = Duration::from_millis(100);
/// Queue for new streams of the caller: a replaced track brings a new one.
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

    /// Adds the caller's audio stream, which replaces an earlier one.
    pub fn add_caller(&self, stream: NativeAudioStream) {
        if self.callers.try_send(stream).is_err() {
            tracing::warn!("the caller's sound cannot be recorded any more");
        }
    }

    /// Writes the remaining samples and the end of the file.
    pub async fn finish(self) -> Result<(), LocalRecordingError> {
        drop(self.callers);
        match self.task.await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// A stream that is being recorded.
struct Recorded {
    stream: NativeAudioStream,
    source: SourceId,
}

impl Recorded {
    /// Writes the samples received by `now` at their position. Returns whether the stream is still
    /// open.
    fn take_over(&mut self, writer: &mut DualChannelWriter<File>, now: u64) -> bool {
        let mut sound = Vec::new();
        let open = take_ready(&mut self.stream, &mut sound);
        // The last frame ends now; the earlier ones directly precede it.
        let begin = now.saturating_sub(sound.len() as u64);
        if !sound.is_empty() {
            writer.push(self.source, begin, &sound);
        }
        open
    }
}

/// Appends all buffered samples. Returns false when the stream has ended. Registers no waker for
/// the next frame: with two streams, that would wake the process for each of a hundred frames a
/// second.
fn take_ready<'a>(
    stream: &mut (impl Stream<Item = RtcAudioFrame<'a>> + Unpin),
    sound: &mut Vec<i16>,
) -> bool {
    loop {
        match Pin::new(&mut *stream).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(frame)) => sound.extend_from_slice(&frame.data),
            Poll::Ready(None) => return false,
            Poll::Pending => return true,
        }
    }
}

async fn record(
    mut writer: DualChannelWriter<File>,
    agent: NativeAudioStream,
    mut streams: mpsc::Receiver<NativeAudioStream>,
) -> Result<(), oggopus::Error> {
    let start = Instant::now();
    let now = || (start.elapsed().as_secs_f64() * f64::from(SAMPLE_RATE_HZ)) as u64;
    let mut agent = Recorded {
        stream: agent,
        source: writer.add_source(Side::Left),
    };
    let mut caller: Option<Recorded> = None;
    let mut ticks = interval(WRITE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let happened = tokio::select! {
            stream = streams.recv() => Some(stream),
            _ = ticks.tick() => None,
        };
        agent.take_over(&mut writer, now());
        if let Some(recorded) = &mut caller
            && !recorded.take_over(&mut writer, now())
        {
            caller = None;
        }
        match happened {
            Some(Some(stream)) => {
                let source = writer.add_source(Side::Right);
                caller = Some(Recorded { stream, source });
            }
            Some(None) => break,
            None => writer.advance(now())?,
        }
    }
    let end = now();
    writer.finish(end)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream with buffered frames that records whether a waker was registered.
    struct Ready {
        frames: Vec<i16>,
        ended: bool,
        wanted: bool,
    }

    impl Stream for Ready {
        type Item = RtcAudioFrame<'static>;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            if let Some(value) = self.frames.pop() {
                return Poll::Ready(Some(RtcAudioFrame {
                    data: vec![value; 480].into(),
                    sample_rate: SAMPLE_RATE_HZ,
                    num_channels: 1,
                    samples_per_channel: 480,
                }));
            }
            self.wanted |= !cx.waker().will_wake(Waker::noop());
            match self.ended {
                true => Poll::Ready(None),
                false => Poll::Pending,
            }
        }
    }

    #[test]
    fn buffered_frames_are_taken_at_once_and_no_frame_wakes_the_recorder() {
        let mut stream = Ready {
            frames: vec![3, 2, 1],
            ended: false,
            wanted: false,
        };
        let mut sound = Vec::new();
        assert!(take_ready(&mut stream, &mut sound));
        assert_eq!(sound, [[1; 480], [2; 480], [3; 480]].concat());
        assert!(take_ready(&mut stream, &mut sound) && !stream.wanted);
        stream.frames.push(4);
        stream.ended = true;
        assert!(!take_ready(&mut stream, &mut sound));
        assert_eq!(sound.len(), 4 * 480);
    }
}
