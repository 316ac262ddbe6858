//! The reader's end of a track: converts the sound to the reader's format and holds a few frames until they are read.

use std::{
    collections::VecDeque,
    task::{Context, Poll, Waker},
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
    fn on_pcm(&self, pcm: Pcm<'_>) {
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
            // Said the first time and then once per 10 s of lost sound: a reader that does not keep up would fill the log.
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
