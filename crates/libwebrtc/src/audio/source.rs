//! The application's end of a local track: a queue that the clock plays out, and the callers that wait for space in it.
//!
//! The clock runs for a source while sound lies ready or somebody listens to one of its tracks. With a listener and no sound it delivers
//! silence, so that a published but idle track goes on sending.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    clock::{self, Tick, TickResult},
    source_queue::SourceQueue,
    track::{Feed, Pcm, TrackShared},
};
use crate::{RtcError, audio_frame::AudioFrame, audio_source::AudioSourceOptions};

/// What all clones of a `NativeAudioSource` and the tracks made from it share.
pub(crate) struct SourceCore {
    sample_rate_hz: u32,
    channels: u32,
    /// `None`: frames are delivered at once, without queue and clock.
    queue: Option<Queue>,
    options: Mutex<AudioSourceOptions>,
    tracks: Mutex<Vec<Weak<TrackShared>>>,
    this: Weak<SourceCore>,
}

struct Queue {
    state: Mutex<QueueState>,
    /// The queue got shorter.
    drained: Notify,
    /// A caller is inside `capture_frame`.
    capturing: AtomicBool,
}

struct QueueState {
    queue: SourceQueue,
    /// Counts calls of `clear_buffer`, so that a frame that is only half in the queue is dropped as a whole.
    cleared: u64,
    /// The clock knows this source.
    ticking: bool,
    /// The 10 ms on their way to the listeners; kept to be filled again.
    frame: Vec<i16>,
}

/// Frees the place of the one capturing caller, also when its future is dropped half-way.
struct CaptureTurn<'a>(&'a AtomicBool);

impl Drop for CaptureTurn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl SourceCore {
    pub fn new(
        options: AudioSourceOptions,
        sample_rate_hz: u32,
        channels: u32,
        queue_size_ms: u32,
    ) -> Arc<Self> {
        assert!(
            queue_size_ms.is_multiple_of(10),
            "queue_size_ms must be a multiple of 10"
        );
        assert!(sample_rate_hz > 0, "sample_rate must not be zero");
        assert!(channels > 0, "num_channels must not be zero");
        let queue = (queue_size_ms > 0).then(|| Queue {
            state: Mutex::new(QueueState {
                queue: SourceQueue::new(sample_rate_hz, channels as usize, queue_size_ms),
                cleared: 0,
                ticking: false,
                frame: Vec::new(),
            }),
            drained: Notify::new(),
            capturing: AtomicBool::new(false),
        });
        Arc::new_cyclic(|this| Self {
            sample_rate_hz,
            channels,
            queue,
            options: Mutex::new(options),
            tracks: Mutex::new(Vec::new()),
            this: this.clone(),
        })
    }

    pub fn sample_rate_hz(&self) -> u32 {
        self.sample_rate_hz
    }

    pub fn channels(&self) -> u32 {
        self.channels
    }

    pub fn set_audio_options(&self, options: AudioSourceOptions) {
        *self.options.lock() = options;
    }

    pub fn audio_options(&self) -> AudioSourceOptions {
        let options = self.options.lock();
        AudioSourceOptions {
            echo_cancellation: options.echo_cancellation,
            noise_suppression: options.noise_suppression,
            auto_gain_control: options.auto_gain_control,
        }
    }

    pub(super) fn add_track(&self, track: &Arc<TrackShared>) {
        let mut tracks = self.tracks.lock();
        tracks.retain(|known| known.strong_count() > 0);
        tracks.push(Arc::downgrade(track));
    }

    pub fn clear_buffer(&self) {
        if let Some(queue) = &self.queue {
            {
                let mut state = queue.state.lock();
                state.queue.clear();
                state.cleared += 1;
            }
            queue.drained.notify_waiters();
        }
    }

    pub async fn capture_frame(&self, frame: &AudioFrame<'_>) -> Result<(), RtcError> {
        if frame.sample_rate != self.sample_rate_hz || frame.num_channels != self.channels {
            return Err(RtcError::state(format!(
                "the frame has {} Hz and {} channels, the source {} Hz and {}",
                frame.sample_rate, frame.num_channels, self.sample_rate_hz, self.channels
            )));
        }
        if !frame.data.len().is_multiple_of(self.channels as usize) {
            return Err(RtcError::state(format!(
                "a frame of {} samples cannot have {} channels",
                frame.data.len(),
                self.channels
            )));
        }
        match &self.queue {
            None => self.deliver_at_once(&frame.data),
            Some(queue) => self.enqueue(queue, &frame.data).await,
        }
    }

    fn deliver_at_once(&self, samples: &[i16]) -> Result<(), RtcError> {
        let expected = (self.sample_rate_hz / 100) as usize;
        let given = samples.len() / self.channels as usize;
        if given != expected {
            return Err(RtcError::state(format!(
                "a source without a queue takes frames of 10 ms: {expected} samples of each channel, not {given}"
            )));
        }
        self.deliver(samples);
        Ok(())
    }

    /// Cut into pieces of the queue size, so that a frame of any length passes through the queue.
    async fn enqueue(&self, queue: &Queue, samples: &[i16]) -> Result<(), RtcError> {
        if queue.capturing.swap(true, Ordering::Acquire) {
            return Err(RtcError::state(
                "another capture_frame of this source is still waiting",
            ));
        }
        let _turn = CaptureTurn(&queue.capturing);
        let cleared_before = queue.state.lock().cleared;
        let piece_len = queue.state.lock().queue.size();
        for piece in samples.chunks(piece_len) {
            // The first wait ends at once, unless a caller before was dropped while it waited and left the queue full.
            let pushed = queue
                .wait(cleared_before, |state| state.queue.push(piece))
                .await;
            self.listeners_changed();
            let drained = pushed
                && queue
                    .wait(cleared_before, |state| state.queue.is_ready_for_more())
                    .await;
            if !drained {
                return Ok(());
            }
        }
        Ok(())
    }

    fn deliver(&self, samples: &[i16]) {
        let pcm = Pcm {
            samples,
            sample_rate_hz: self.sample_rate_hz,
            channels: self.channels as usize,
        };
        // Nearly always one track; collected because no lock may be held while the listeners run.
        let tracks: Vec<_> = self
            .tracks
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for track in tracks {
            track.deliver(pcm);
        }
    }

    fn has_listener(&self) -> bool {
        self.tracks
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .any(|track| track.has_sinks())
    }
}

impl Queue {
    /// Waits until `done` is true of the state; answers false if the queue was cleared meanwhile.
    async fn wait(
        &self,
        cleared_before: u64,
        mut done: impl FnMut(&mut QueueState) -> bool,
    ) -> bool {
        loop {
            // Made before looking, so that a change in between is not missed.
            let drained = self.drained.notified();
            {
                let mut state = self.state.lock();
                if state.cleared != cleared_before {
                    return false;
                }
                if done(&mut state) {
                    return true;
                }
            }
            drained.await;
        }
    }
}

impl Feed for SourceCore {
    /// Starts the clock for this source if there is something to do. The clock stops by itself.
    fn listeners_changed(&self) {
        let Some(queue) = &self.queue else { return };
        {
            let mut state = queue.state.lock();
            if state.ticking || (state.queue.is_empty() && !self.has_listener()) {
                return;
            }
            state.ticking = true;
        }
        clock::media_clock().add(self.this.clone());
    }
}

impl Tick for SourceCore {
    fn tick(&self, _now: Instant) -> TickResult {
        let Some(queue) = &self.queue else {
            return TickResult::Stop;
        };
        let frame = {
            let mut state = queue.state.lock();
            if state.queue.is_empty() && !self.has_listener() {
                state.ticking = false;
                return TickResult::Stop;
            }
            let mut frame = std::mem::take(&mut state.frame);
            state.queue.pull(&mut frame);
            if state.queue.is_ready_for_more() {
                queue.drained.notify_waiters();
            }
            frame
        };
        self.deliver(&frame);
        queue.state.lock().frame = frame;
        TickResult::Continue
    }
}
