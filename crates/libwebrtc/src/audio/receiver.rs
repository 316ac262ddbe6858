//! The receive side of one audio m-line: packets in, PCM to the listeners of a remote track out.
//!
//! Whoever reads the network pushes packets; the clock pulls sound every 10 ms. Nothing is decoded while nobody listens.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use parking_lot::Mutex;

pub(crate) use super::jitter::{AudioReceiverStats, RtpAudioPacket};
use super::{
    OPUS_RATE_HZ,
    clock::{self, Tick, TickResult},
    jitter::JitterBuffer,
    track::{AudioTrack, Feed, Pcm},
};

/// Jitter buffer and decoder of one remote track.
pub(crate) struct AudioReceiver {
    track: AudioTrack,
    state: Mutex<State>,
    this: Weak<AudioReceiver>,
}

#[derive(Default)]
struct State {
    active: bool,
    /// The clock knows this receiver.
    ticking: bool,
    /// Made with the first packet: most m-lines that are prepared for a track never get one.
    jitter: Option<JitterBuffer>,
    /// The 10 ms on their way to the listeners; kept to be filled again.
    frame: Vec<i16>,
}

impl AudioReceiver {
    /// Makes the receiver that feeds `track`. It does nothing until [`set_active`](Self::set_active).
    pub fn new(track: &AudioTrack) -> Arc<Self> {
        let receiver = Arc::new_cyclic(|this| Self {
            track: track.clone(),
            state: Mutex::default(),
            this: this.clone(),
        });
        let feed: Weak<AudioReceiver> = receiver.this.clone();
        track.set_feed(feed);
        receiver
    }

    /// Takes a packet that arrived at `now`. While the receiver is not active, packets are ignored.
    pub fn push(&self, now: Instant, packet: RtpAudioPacket) {
        let mut state = self.state.lock();
        if !state.active {
            return;
        }
        if state.jitter.is_none() {
            match JitterBuffer::new() {
                Ok(jitter) => state.jitter = Some(jitter),
                Err(error) => {
                    log::error!("the Opus decoder could not be made: {error}");
                    return;
                }
            }
        }
        let ticking = state.ticking;
        if let Some(jitter) = &mut state.jitter {
            jitter.push(now, packet);
            if !ticking {
                jitter.drop_overdue(now);
            }
        }
    }

    /// Starts or stops to play what arrives, as the direction of the m-line says.
    pub fn set_active(&self, active: bool) {
        {
            let mut state = self.state.lock();
            state.active = active;
            if !active && let Some(jitter) = &mut state.jitter {
                jitter.clear();
            }
        }
        self.listeners_changed();
    }

    /// What was done so far.
    pub fn stats(&self) -> AudioReceiverStats {
        let state = self.state.lock();
        state
            .jitter
            .as_ref()
            .map(JitterBuffer::stats)
            .unwrap_or_default()
    }
}

impl Feed for AudioReceiver {
    /// Starts the clock for this receiver if there is something to do. The clock stops by itself.
    fn listeners_changed(&self) {
        {
            let mut state = self.state.lock();
            if state.ticking || !state.active || !self.track.has_sinks() {
                return;
            }
            state.ticking = true;
        }
        let this: Weak<AudioReceiver> = self.this.clone();
        clock::media_clock().add(this);
    }
}

impl Tick for AudioReceiver {
    fn tick(&self, now: Instant) -> TickResult {
        let mut state = self.state.lock();
        if !state.active || !self.track.has_sinks() {
            state.ticking = false;
            return TickResult::Stop;
        }
        let mut frame = std::mem::take(&mut state.frame);
        // Before the first packet there is silence too: a listener gets a frame every 10 ms from the beginning.
        let channels = match &mut state.jitter {
            Some(jitter) => jitter.pull(now, &mut frame),
            None => {
                frame.clear();
                frame.resize(super::TICK_SAMPLES, 0);
                1
            }
        };
        drop(state);
        self.track.deliver(Pcm {
            samples: &frame,
            sample_rate_hz: OPUS_RATE_HZ,
            channels,
        });
        self.state.lock().frame = frame;
        TickResult::Continue
    }
}
