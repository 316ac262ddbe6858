//! The application's end of a local track: a queue that the clock plays out, and the callers that
//! wait for space in it.
//!
//! The clock runs for a source while sound lies ready or somebody listens to one of its tracks.
//! With a listener and no sound it delivers silence, so that a published but idle track goes on
//! sending.

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
    clock::{self, Clock, Tick, TickResult},
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
    clock: Arc<Clock>,
    this: Weak<SourceCore>,
}

struct Queue {
    state: Mutex<QueueState>,
    /// Notified when the queue gets shorter.
    drained: Notify,
    /// Whether a caller is inside `capture_frame`.
    capturing: AtomicBool,
}

struct QueueState {
    queue: SourceQueue,
    /// Counts calls of `clear_buffer`, so that a frame that is only half in the queue is dropped as
    /// a whole.
    cleared: u64,
    /// Whether the clock ticks for this source.
    ticking: bool,
    /// The 10 ms that are delivered to the listeners; kept to be filled again.
    frame: Vec<i16>,
}

/// Allows the next caller to capture, also when the future of this one is dropped before it is
/// done.
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
        let clock = clock::media_clock().clone();
        Self::with_clock(options, sample_rate_hz, channels, queue_size_ms, clock)
    }

    pub(crate) fn with_clock(
        options: AudioSourceOptions,
        sample_rate_hz: u32,
        channels: u32,
        queue_size_ms: u32,
        clock: Arc<Clock>,
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
            clock,
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
        self.deliver(Instant::now(), samples);
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
            // The first wait ends at once, unless a caller before was dropped while it waited and
            // left the queue full.
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

    fn deliver(&self, at: Instant, samples: &[i16]) {
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
            track.deliver(at, pcm);
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
    /// Waits until `done` is true of the state; returns false if the queue was cleared meanwhile.
    async fn wait(
        &self,
        cleared_before: u64,
        mut done: impl FnMut(&mut QueueState) -> bool,
    ) -> bool {
        loop {
            // Made before the check, so that a change in between is not missed.
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
        let this: Weak<SourceCore> = self.this.clone();
        self.clock.add(this);
    }
}

impl Tick for SourceCore {
    fn tick(&self, now: Instant) -> TickResult {
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
        self.deliver(now, &frame);
        queue.state.lock().frame = frame;
        TickResult::Continue
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{
            encoder::{AudioSender, OpusSendConfig, RtpClock},
            testing::Recorder,
            track::AudioTrack,
        },
        *,
    };

    const RATE: u32 = 16_000;
    const TICK_LEN: usize = 160;

    fn source(queue_size_ms: u32) -> (Arc<SourceCore>, Arc<Clock>) {
        let clock = Arc::new(Clock::default());
        let running = clock.clone();
        tokio::spawn(async move { running.run().await });
        let options = AudioSourceOptions::default();
        let source = SourceCore::with_clock(options, RATE, 1, queue_size_ms, clock.clone());
        (source, clock)
    }

    fn published(source: &Arc<SourceCore>) -> (AudioTrack, Arc<Recorder>) {
        let track = AudioTrack::local("track", source);
        let recorder = Arc::new(Recorder::default());
        track.add_sink(recorder.clone());
        (track, recorder)
    }

    fn frame(ms: usize, value: i16) -> AudioFrame<'static> {
        AudioFrame {
            data: vec![value; ms * TICK_LEN / 10].into(),
            sample_rate: RATE,
            num_channels: 1,
            samples_per_channel: (ms * TICK_LEN / 10) as u32,
        }
    }

    async fn elapsed(work: impl Future<Output = Result<(), RtcError>>) -> Duration {
        let start = tokio::time::Instant::now();
        work.await.expect("the frame is taken");
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn capture_returns_when_no_more_than_the_queue_is_left() {
        let (source, _clock) = source(100);
        assert_eq!(
            elapsed(source.capture_frame(&frame(100, 1))).await,
            Duration::ZERO
        );
        // The first tick comes with the first sound, so 10 of the 100 ms are gone already when time
        // starts to run.
        let waited = elapsed(source.capture_frame(&frame(50, 2))).await;
        assert!((30..=50).contains(&waited.as_millis()), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn long_frame_passes_through_a_short_queue_whole_and_evenly() {
        let (source, _clock) = source(20);
        let (_track, recorder) = published(&source);
        let sound: Vec<i16> = (1..=RATE as i16).collect();
        let long = AudioFrame {
            data: sound.as_slice().into(),
            ..frame(1000, 0)
        };
        let waited = elapsed(source.capture_frame(&long)).await;
        assert!((960..=1000).contains(&waited.as_millis()), "{waited:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let heard: Vec<i16> = recorder.samples().into_iter().filter(|s| *s != 0).collect();
        assert_eq!(heard, sound);
        let times: Vec<_> = recorder.frames.lock().iter().map(|(at, _)| *at).collect();
        assert!(times.windows(2).all(|two| two[1] - two[0] == clock::TICK));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_published_track_goes_on_sending_silence() {
        let (source, clock) = source(50);
        let (track, recorder) = published(&source);
        tokio::time::sleep(Duration::from_millis(995)).await;
        assert_eq!(recorder.count(), 100);
        assert_eq!(recorder.samples(), vec![0; 100 * TICK_LEN]);
        let sink: Arc<dyn super::super::track::PcmSink> = recorder.clone();
        track.remove_sink(&sink);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(clock.members(), 0, "nobody listens, so the clock rests");
    }

    #[tokio::test(start_paused = true)]
    async fn clearing_silences_at_once_and_lets_the_waiting_caller_go() {
        let (source, _clock) = source(200);
        let (_track, recorder) = published(&source);
        let waiting = tokio::spawn({
            let source = source.clone();
            async move { source.capture_frame(&frame(1000, 5)).await }
        });
        tokio::time::sleep(Duration::from_millis(105)).await;
        let before = recorder.count();
        source.clear_buffer();
        let answered = tokio::time::timeout(Duration::from_millis(1), waiting).await;
        assert!(matches!(answered, Ok(Ok(Ok(())))));
        tokio::time::sleep(Duration::from_millis(300)).await;
        let frames = recorder.frames.lock();
        assert!(frames[before - 1].1.iter().all(|sample| *sample == 5));
        assert!(
            frames[before..]
                .iter()
                .all(|(_, frame)| frame.iter().all(|sample| *sample == 0))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn second_caller_is_refused_and_a_dropped_one_forgotten() {
        let (source, _clock) = source(50);
        let (_track, recorder) = published(&source);
        let long = frame(500, 5);
        let mut first = Box::pin(source.capture_frame(&long));
        assert!(futures_now_or_never(&mut first).is_none());
        let error = source
            .capture_frame(&frame(10, 1))
            .await
            .expect_err("one at a time");
        assert!(error.message.contains("still waiting"), "{error}");
        drop(first);
        // The queue is full of what the dropped caller left; the next one waits for space instead
        // of failing.
        source
            .capture_frame(&frame(100, 7))
            .await
            .expect("the place is free again");
        tokio::time::sleep(Duration::from_millis(300)).await;
        let sevens = recorder
            .samples()
            .iter()
            .filter(|sample| **sample == 7)
            .count();
        assert_eq!(sevens, 10 * TICK_LEN);
    }

    /// Polls once.
    fn futures_now_or_never<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn capture_returns_without_a_track_and_after_its_end() {
        let (source, _clock) = source(50);
        assert!(elapsed(source.capture_frame(&frame(300, 1))).await < Duration::from_millis(310));
        let (track, recorder) = published(&source);
        track.end();
        assert!(*recorder.ended.lock());
        assert!(elapsed(source.capture_frame(&frame(300, 1))).await < Duration::from_millis(310));
        drop(track);
        assert!(elapsed(source.capture_frame(&frame(300, 1))).await < Duration::from_millis(310));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_queue_frames_are_delivered_before_capture_returns() {
        let (source, clock) = source(0);
        let (_track, recorder) = published(&source);
        assert_eq!(
            elapsed(source.capture_frame(&frame(10, 3))).await,
            Duration::ZERO
        );
        assert_eq!(recorder.samples(), vec![3; TICK_LEN]);
        let error = source
            .capture_frame(&frame(20, 3))
            .await
            .expect_err("not 10 ms");
        assert!(error.message.contains("frames of 10 ms"), "{error}");
        assert_eq!(clock.members(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn frame_of_another_format_is_refused() {
        let (source, _clock) = source(50);
        let wrong_rate = AudioFrame {
            sample_rate: 8_000,
            ..frame(10, 1)
        };
        let wrong_channels = AudioFrame {
            num_channels: 2,
            ..frame(10, 1)
        };
        for wrong in [wrong_rate, wrong_channels] {
            let error = source
                .capture_frame(&wrong)
                .await
                .expect_err("another format");
            assert_eq!(error.error_type, crate::RtcErrorType::InvalidState);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn disabled_track_sends_silence_in_the_same_cadence() {
        let (source, _clock) = source(100);
        let (track, recorder) = published(&source);
        assert!(track.set_enabled(false));
        assert!(!track.set_enabled(false));
        source
            .capture_frame(&frame(100, 9))
            .await
            .expect("the frame is taken");
        tokio::time::sleep(Duration::from_millis(95)).await;
        assert!(recorder.count() >= 10);
        assert!(recorder.samples().iter().all(|sample| *sample == 0));
    }

    /// Loudness of the packets that a listening encoder made, each with the time at which it was
    /// sent.
    type SentPackets = Arc<Mutex<Vec<(tokio::time::Instant, i8)>>>;

    fn sent_by(track: &AudioTrack) -> SentPackets {
        let sent = SentPackets::default();
        let written = sent.clone();
        let clock = RtpClock::starting_at(0);
        let sender = AudioSender::new(OpusSendConfig::default(), clock, move |packet| {
            let now = tokio::time::Instant::now();
            written.lock().push((now, packet.audio_level_dbov));
        });
        track.add_sink(Arc::new(sender.expect("an encoder")));
        sent
    }

    /// At the rate of the encoder, since converting the rate takes 5 ms more.
    fn fast_source() -> Arc<SourceCore> {
        let clock = Arc::new(Clock::default());
        let running = clock.clone();
        tokio::spawn(async move { running.run().await });
        SourceCore::with_clock(AudioSourceOptions::default(), 48_000, 1, 200, clock)
    }

    fn sound(ms: usize) -> AudioFrame<'static> {
        AudioFrame {
            data: vec![9_000; ms * 48].into(),
            sample_rate: 48_000,
            num_channels: 1,
            samples_per_channel: ms as u32 * 48,
        }
    }

    /// Loud enough to be told from silence.
    const LOUD_DBOV: i8 = -60;

    fn last_loud(sent: &SentPackets) -> Option<tokio::time::Instant> {
        let sent = sent.lock();
        let loud = sent.iter().rfind(|(_, level)| *level > LOUD_DBOV);
        loud.map(|(at, _)| *at)
    }

    #[tokio::test(start_paused = true)]
    async fn frame_is_on_the_wire_at_most_10_ms_after_it_could_have_been() {
        // Whatever the frame's offset from ticks and packets is.
        for offset_ms in 0..20 {
            let source = fast_source();
            let track = AudioTrack::local("track", &source);
            let sent = sent_by(&track);
            tokio::time::sleep(Duration::from_millis(200 + offset_ms)).await;
            let start = tokio::time::Instant::now();
            let captured = source.capture_frame(&sound(20)).await;
            captured.expect("the frame is taken");
            tokio::time::sleep(Duration::from_millis(200)).await;
            let took = last_loud(&sent).expect("it was sent") - start;
            assert!(
                took <= Duration::from_millis(20 + 10),
                "{offset_ms} ms: {took:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clearing_makes_the_wire_silent_within_20_ms() {
        for offset_ms in 0..20 {
            let source = fast_source();
            let track = AudioTrack::local("track", &source);
            let sent = sent_by(&track);
            let captured = source.capture_frame(&sound(200)).await;
            captured.expect("the frame is taken");
            tokio::time::sleep(Duration::from_millis(60 + offset_ms)).await;
            let start = tokio::time::Instant::now();
            assert!(last_loud(&sent).is_some(), "it is being heard");
            source.clear_buffer();
            tokio::time::sleep(Duration::from_millis(200)).await;
            let took = last_loud(&sent).map(|at| at.saturating_duration_since(start));
            assert!(
                took <= Some(Duration::from_millis(20)),
                "{offset_ms} ms: {took:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn packets_leave_every_20_ms_whatever_the_application_does() {
        let source = fast_source();
        let track = AudioTrack::local("track", &source);
        let sent = sent_by(&track);
        // A second of nothing, a second in one piece, and one in pieces of odd lengths.
        tokio::time::sleep(Duration::from_secs(1)).await;
        source.capture_frame(&sound(1_000)).await.expect("taken");
        for _ in 0..27 {
            let captured = source.capture_frame(&sound(37)).await;
            captured.expect("the frame is taken");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let sent = sent.lock();
        let even = sent
            .windows(2)
            .all(|two| two[1].0 - two[0].0 == Duration::from_millis(20));
        assert!(even && sent.len() >= 185, "{}", sent.len());
    }
}
