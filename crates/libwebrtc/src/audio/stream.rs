//! The reader's end of a track: converts the sound to the reader's format and queues a few frames
//! until they are read.

use std::{
    collections::VecDeque,
    task::{Context, Poll, Waker},
    time::Instant,
};

use parking_lot::Mutex;

use super::{
    resample::AudioResampler,
    track::{Pcm, PcmSink},
};
use crate::audio_frame::AudioFrame;

/// Frames that wait for the reader of one `NativeAudioStream`.
pub(crate) struct FrameQueue {
    sample_rate_hz: u32,
    channels: usize,
    /// `None`: unbounded.
    limit: Option<usize>,
    state: Mutex<State>,
}

struct State {
    resampler: AudioResampler,
    frames: VecDeque<AudioFrame<'static>>,
    ended: bool,
    dropped: u64,
    waker: Option<Waker>,
}

impl FrameQueue {
    pub fn new(sample_rate_hz: u32, channels: usize, limit: Option<usize>) -> Self {
        Self {
            sample_rate_hz,
            channels,
            limit,
            state: Mutex::new(State {
                resampler: AudioResampler::default(),
                frames: VecDeque::with_capacity(limit.unwrap_or(0).min(64)),
                ended: false,
                dropped: 0,
                waker: None,
            }),
        }
    }

    /// Drops what waits and ends the stream.
    pub fn close(&self) {
        self.state.lock().frames.clear();
        self.on_ended();
    }

    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<AudioFrame<'static>>> {
        let mut state = self.state.lock();
        if let Some(frame) = state.frames.pop_front() {
            return Poll::Ready(Some(frame));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl PcmSink for FrameQueue {
    fn on_pcm(&self, _at: Instant, pcm: Pcm<'_>) {
        let mut state = self.state.lock();
        if state.ended {
            return;
        }
        let samples = state
            .resampler
            .convert(pcm, self.channels, self.sample_rate_hz);
        if samples.is_empty() {
            return;
        }
        let frame = AudioFrame {
            samples_per_channel: (samples.len() / self.channels) as u32,
            data: samples.to_vec().into(),
            sample_rate: self.sample_rate_hz,
            num_channels: self.channels as u32,
        };
        if self.limit.is_some_and(|limit| state.frames.len() >= limit) {
            state.frames.pop_front();
            state.dropped += 1;
            // Logged the first time and then once per 10 s of lost sound: a reader that does not
            // keep up would fill the log.
            if state.dropped % 1000 == 1 {
                log::warn!(
                    "the reader of an audio stream does not keep up: {} frames of 10 ms dropped so far",
                    state.dropped
                );
            }
        }
        state.frames.push_back(frame);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn on_ended(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.ended = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use tokio_stream::Stream;

    use super::{
        super::{
            testing::{fit_tone, tone},
            track::AudioTrack,
        },
        *,
    };
    use crate::{
        audio_stream::native::{NativeAudioStream, NativeAudioStreamOptions},
        audio_track::RtcAudioTrack,
    };

    fn track() -> RtcAudioTrack {
        RtcAudioTrack {
            handle: AudioTrack::remote("remote"),
        }
    }

    fn deliver(track: &RtcAudioTrack, samples: &[i16], channels: usize) {
        let pcm = Pcm {
            samples,
            sample_rate_hz: 48_000,
            channels,
        };
        track.handle.deliver(Instant::now(), pcm);
    }

    fn poll(stream: &mut NativeAudioStream) -> Poll<Option<AudioFrame<'static>>> {
        pin!(stream).poll_next(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn slow_reader_loses_the_oldest_frames() {
        let track = track();
        let options = NativeAudioStreamOptions {
            queue_size_frames: Some(3),
        };
        let mut stream = NativeAudioStream::with_options(track.clone(), 48_000, 1, options);
        for value in 1..=5 {
            deliver(&track, &[value; 480], 1);
        }
        for value in 3..=5 {
            let Poll::Ready(Some(frame)) = poll(&mut stream) else {
                panic!("a frame with {value} is there");
            };
            assert_eq!(frame.data[0], value);
        }
        assert!(poll(&mut stream).is_pending());
    }

    #[test]
    fn zero_means_unbounded_and_the_default_is_ten() {
        let track = track();
        let options = NativeAudioStreamOptions {
            queue_size_frames: Some(0),
        };
        let mut unbounded = NativeAudioStream::with_options(track.clone(), 48_000, 1, options);
        let mut usual = NativeAudioStream::new(track.clone(), 48_000, 1);
        for _ in 0..500 {
            deliver(&track, &[1; 480], 1);
        }
        let count = |stream: &mut NativeAudioStream| {
            std::iter::from_fn(|| match poll(stream) {
                Poll::Ready(frame) => frame,
                Poll::Pending => None,
            })
            .count()
        };
        assert_eq!((count(&mut unbounded), count(&mut usual)), (500, 10));
    }

    #[test]
    fn frames_come_in_the_format_that_was_asked_for() {
        for (rate, channels) in [
            (48_000, 1),
            (48_000, 2),
            (24_000, 2),
            (16_000, 1),
            (8_000, 1),
            (44_100, 1),
        ] {
            for given in [1, 2] {
                let track = track();
                let options = NativeAudioStreamOptions {
                    queue_size_frames: Some(0),
                };
                let mut stream =
                    NativeAudioStream::with_options(track.clone(), rate, channels, options);
                for piece in tone(440.0, 48_000, given, 48_000, 10_000.0).chunks(480 * given) {
                    deliver(&track, piece, given);
                }
                let (mut left, mut frames) = (Vec::new(), 0);
                while let Poll::Ready(Some(frame)) = poll(&mut stream) {
                    assert_eq!(
                        (frame.sample_rate, frame.num_channels),
                        (rate as u32, channels as u32)
                    );
                    assert_eq!(frame.samples_per_channel, rate as u32 / 100);
                    assert_eq!(frame.data.len() as i32, rate / 100 * channels);
                    left.extend(frame.data.iter().step_by(channels as usize));
                    frames += 1;
                }
                assert_eq!(frames, 100);
                let (amplitude, snr) = fit_tone(&left[left.len() / 4..], 440.0, rate as u32);
                assert!(
                    (9_900.0..10_100.0).contains(&amplitude),
                    "{rate} Hz: {amplitude}"
                );
                assert!(snr > 60.0, "{rate} Hz: {snr} dB");
            }
        }
    }

    #[test]
    fn stream_ends_with_its_track_after_what_was_heard() {
        let track = track();
        let mut stream = NativeAudioStream::new(track.clone(), 48_000, 1);
        deliver(&track, &[1; 480], 1);
        track.handle.end();
        assert!(matches!(poll(&mut stream), Poll::Ready(Some(_))));
        assert!(matches!(poll(&mut stream), Poll::Ready(None)));
        let mut late = NativeAudioStream::new(track, 48_000, 1);
        assert!(matches!(poll(&mut late), Poll::Ready(None)));
    }

    #[test]
    fn closed_or_dropped_stream_does_not_listen_any_more() {
        let track = track();
        let mut stream = NativeAudioStream::new(track.clone(), 48_000, 1);
        assert!(track.handle.has_sinks());
        stream.close();
        assert!(!track.handle.has_sinks());
        assert!(matches!(poll(&mut stream), Poll::Ready(None)));
        drop(NativeAudioStream::new(track.clone(), 48_000, 1));
        assert!(!track.handle.has_sinks());
    }

    #[tokio::test]
    async fn waiting_reader_is_woken_by_a_frame_and_by_the_end() {
        use tokio_stream::StreamExt;
        let track = track();
        let mut stream = NativeAudioStream::new(track.clone(), 48_000, 1);
        let reader = tokio::spawn(async move {
            let mut frames = 0;
            while stream.next().await.is_some() {
                frames += 1;
            }
            frames
        });
        tokio::task::yield_now().await;
        deliver(&track, &[1; 480], 1);
        tokio::task::yield_now().await;
        track.handle.end();
        assert_eq!(reader.await.expect("the reader ends"), 1);
    }
}
