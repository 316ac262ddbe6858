//! The receive side of one audio m-line: packets in, PCM to the listeners of a remote track out.
//!
//! Whoever reads the network pushes packets; the clock pulls sound every 10 ms. Nothing is decoded while nobody listens.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use parking_lot::Mutex;

use super::{
    clock::{self, Tick, TickResult},
    track::{AudioTrack, Feed},
};

/// One RTP packet of Opus as the jitter buffer needs it.
#[derive(Debug, Clone)]
pub(crate) struct RtpAudioPacket {
    pub ssrc: u32,
    /// Sequence number without wrap-around.
    pub extended_seq: u64,
    /// RTP timestamp at 48 kHz without wrap-around.
    pub rtp_timestamp: u64,
    /// The Opus packet, without padding and RED.
    pub payload: Arc<[u8]>,
}

/// The numbers of the inbound-rtp statistics that only the jitter buffer knows, with the meaning that the W3C's "Identifiers for WebRTC's
/// Statistics API" gives to the fields of the same name. Samples are counted for each channel at 48 kHz.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct AudioReceiverStats {
    /// Seconds that the emitted samples spent in the buffer, summed over all of them.
    pub jitter_buffer_delay_s: f64,
    /// The same sum of the delay that the buffer aimed at.
    pub jitter_buffer_target_delay_s: f64,
    /// The same sum of the least delay that the network's jitter alone would have needed.
    pub jitter_buffer_minimum_delay_s: f64,
    pub jitter_buffer_emitted_count: u64,
    pub total_samples_received: u64,
    pub concealed_samples: u64,
    pub silent_concealed_samples: u64,
    pub concealment_events: u64,
    pub inserted_samples_for_deceleration: u64,
    pub removed_samples_for_acceleration: u64,
    /// Packets that a following packet's in-band error correction replaced.
    pub fec_packets_received: u64,
    /// Packets that came too late, twice, or when the buffer was full.
    pub packets_discarded: u64,
    /// Packets that came.
    pub packets_received: u64,
    /// Loudness of the last sound, linear, from 0 to 1.
    pub audio_level: f64,
    /// Sum over all sound of squared loudness times seconds.
    pub total_audio_energy: f64,
    /// How much sound was delivered, in seconds.
    pub total_samples_duration_s: f64,
    /// The present target delay in milliseconds.
    pub target_delay_ms: f64,
}

/// Jitter buffer and decoder of one remote track.
pub(crate) struct AudioReceiver {
    track: AudioTrack,
    state: Mutex<State>,
    this: Weak<AudioReceiver>,
}

struct State {
    active: bool,
    ticking: bool,
    stats: AudioReceiverStats,
}

impl AudioReceiver {
    /// Makes the receiver that feeds `track`. It does nothing until [`set_active`](Self::set_active).
    pub fn new(track: &AudioTrack) -> Arc<Self> {
        let receiver = Arc::new_cyclic(|this| Self {
            track: track.clone(),
            state: Mutex::new(State {
                active: false,
                ticking: false,
                stats: AudioReceiverStats::default(),
            }),
            this: this.clone(),
        });
        let this = receiver.this.clone();
        track.set_feed(this);
        receiver
    }

    /// Takes a packet that arrived at `now`.
    pub fn push(&self, _now: Instant, _packet: RtpAudioPacket) {
        self.state.lock().stats.packets_received += 1;
    }

    /// Starts or stops to play what arrives, as the direction of the m-line says.
    pub fn set_active(&self, active: bool) {
        self.state.lock().active = active;
        self.listeners_changed();
    }

    /// What was done so far.
    pub fn stats(&self) -> AudioReceiverStats {
        self.state.lock().stats
    }
}

impl Feed for AudioReceiver {
    fn listeners_changed(&self) {
        {
            let mut state = self.state.lock();
            if state.ticking || !state.active || !self.track.has_sinks() {
                return;
            }
            state.ticking = true;
        }
        let this = self.this.clone();
        clock::media_clock().add(this);
    }
}

impl Tick for AudioReceiver {
    fn tick(&self, _now: Instant) -> TickResult {
        let mut state = self.state.lock();
        if !state.active || !self.track.has_sinks() {
            state.ticking = false;
            return TickResult::Stop;
        }
        TickResult::Continue
    }
}
