//! The receive side of one audio m-line: packets in, PCM to the listeners of a remote track out.
//!
//! The peer connection pushes packets; the clock pulls sound every 10 ms. Nothing is decoded while
//! nobody listens.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use parking_lot::Mutex;

pub(crate) use super::jitter::{AudioReceiverStats, RtpAudioPacket};
use super::{
    OPUS_RATE_HZ, TICK_SAMPLES,
    clock::{self, Clock, Tick, TickResult},
    jitter::JitterBuffer,
    track::{AudioTrack, Feed, Pcm},
};
use crate::native::frame_cryptor::Cryptor;

/// Jitter buffer and decoder of one remote track.
pub(crate) struct AudioReceiver {
    track: AudioTrack,
    state: Mutex<State>,
    /// Decrypts what arrives, if the application encrypts end to end.
    cryptor: Mutex<Option<Arc<Cryptor>>>,
    clock: Arc<Clock>,
    this: Weak<AudioReceiver>,
}

#[derive(Default)]
struct State {
    active: bool,
    /// Whether the clock ticks for this receiver.
    ticking: bool,
    /// Made with the first packet: most m-lines that are prepared for a track never get one.
    jitter: Option<JitterBuffer>,
    /// The 10 ms that are delivered to the listeners; kept to be filled again.
    frame: Vec<i16>,
}

impl AudioReceiver {
    /// Makes the receiver that feeds `track`. It does nothing until
    /// [`set_active`](Self::set_active).
    pub fn new(track: &AudioTrack) -> Arc<Self> {
        Self::with_clock(track, clock::media_clock().clone())
    }

    fn with_clock(track: &AudioTrack, clock: Arc<Clock>) -> Arc<Self> {
        let receiver = Arc::new_cyclic(|this| Self {
            track: track.clone(),
            state: Mutex::default(),
            cryptor: Mutex::default(),
            clock,
            this: this.clone(),
        });
        let feed: Weak<AudioReceiver> = receiver.this.clone();
        track.set_feed(feed);
        receiver
    }

    /// Lets `cryptor` decrypt what arrives from now on.
    pub fn set_cryptor(&self, cryptor: Arc<Cryptor>) {
        *self.cryptor.lock() = Some(cryptor);
    }

    /// Takes a packet that arrived at `now`. While the receiver is not active, packets are ignored.
    pub fn push(&self, now: Instant, packet: RtpAudioPacket) {
        self.take(now, packet, None);
    }

    /// Takes a packet with redundant payload (RFC 2198), whose blocks are Opus if they have that
    /// payload type.
    pub fn push_red(&self, now: Instant, packet: RtpAudioPacket, opus_payload_type: u8) {
        self.take(now, packet, Some(opus_payload_type));
    }

    fn take(&self, now: Instant, mut packet: RtpAudioPacket, opus_in_red: Option<u8>) {
        if !self.state.lock().active {
            return;
        }
        // Without any lock, because decrypting may call the application. A redundant payload is
        // encrypted as a whole, as in Google's engine, where redundancy belongs to the encoder and
        // encryption comes after it.
        let cryptor = self.cryptor.lock().clone();
        if let Some(cryptor) = cryptor {
            match cryptor.decrypt(&packet.payload) {
                Some(payload) => packet.payload = payload.into(),
                None => return,
            }
        }
        let mut state = self.state.lock();
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
            match opus_in_red {
                Some(opus) => jitter.push_red(now, packet, opus),
                None => jitter.push(now, packet),
            }
            if !ticking {
                jitter.drop_overdue(now);
            }
        }
    }

    /// Starts or stops playing what arrives, according to the direction of the m-line.
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

    /// Totals so far.
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
        self.clock.add(this);
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
        // Before the first packet there is silence too: a listener gets a frame every 10 ms from
        // the beginning.
        let channels = match &mut state.jitter {
            Some(jitter) => jitter.pull(now, &mut frame),
            None => {
                frame.clear();
                frame.resize(TICK_SAMPLES, 0);
                1
            }
        };
        drop(state);
        let pcm = Pcm {
            samples: &frame,
            sample_rate_hz: OPUS_RATE_HZ,
            channels,
        };
        self.track.deliver(now, pcm);
        self.state.lock().frame = frame;
        TickResult::Continue
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{
            encoder::{OpusSendConfig, PacketEncoder, RtpClock},
            testing::{Recorder, fit_tone, tone},
            track::PcmSink,
        },
        *,
    };

    struct Line {
        track: AudioTrack,
        receiver: Arc<AudioReceiver>,
        clock: Arc<Clock>,
        encoder: PacketEncoder,
        sent: u64,
    }

    impl Line {
        fn new() -> Self {
            let clock = Arc::new(Clock::default());
            let running = clock.clone();
            tokio::spawn(async move { running.run().await });
            let track = AudioTrack::remote("remote");
            let receiver = AudioReceiver::with_clock(&track, clock.clone());
            let encoder = PacketEncoder::new(OpusSendConfig::default(), RtpClock::starting_at(0))
                .expect("an encoder");
            Self {
                track,
                receiver,
                clock,
                encoder,
                sent: 0,
            }
        }

        /// Packets arrive evenly for that long.
        async fn receive(&mut self, seconds: u64) {
            // Nine whole periods, so that the pieces fit together.
            let sound = tone(450.0, 48_000, 1, 960, 10_000.0);
            for _ in 0..seconds * 50 {
                let now = tokio::time::Instant::now().into_std();
                let pcm = Pcm {
                    samples: &sound,
                    sample_rate_hz: OPUS_RATE_HZ,
                    channels: 1,
                };
                self.encoder.push(now, pcm);
                while let Some(packet) = self.encoder.next_packet() {
                    let packet = RtpAudioPacket {
                        ssrc: 1,
                        extended_seq: self.sent,
                        rtp_timestamp: u64::from(packet.rtp_timestamp),
                        payload: packet.payload.into(),
                    };
                    self.sent += 1;
                    self.receiver.push(now, packet);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn listener_hears_what_arrives_and_silence_before() {
        let mut line = Line::new();
        let recorder = Arc::new(Recorder::default());
        line.receiver.set_active(true);
        line.track.add_sink(recorder.clone());
        tokio::time::sleep(Duration::from_millis(95)).await;
        assert_eq!(
            recorder.samples(),
            vec![0; 10 * TICK_SAMPLES],
            "a frame every 10 ms"
        );
        line.receive(2).await;
        let heard = recorder.samples();
        let steady = &heard[heard.len() - 48_000..];
        let (amplitude, snr) = fit_tone(steady, 450.0, 48_000);
        assert!(
            (9_000.0..11_000.0).contains(&amplitude) && snr > 10.0,
            "{amplitude}, {snr} dB"
        );
        let stats = line.receiver.stats();
        assert_eq!((stats.packets_received, stats.concealed_samples), (100, 0));
        assert!(stats.audio_level > 0.1 && stats.total_audio_energy > 0.05);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_decoded_while_nobody_listens() {
        let mut line = Line::new();
        line.receiver.set_active(true);
        line.receive(5).await;
        assert_eq!(line.clock.members(), 0);
        let stats = line.receiver.stats();
        assert_eq!(
            (stats.packets_received, stats.jitter_buffer_emitted_count),
            (250, 0)
        );

        // A listener that comes now hears current sound, not the five seconds before.
        let recorder = Arc::new(Recorder::default());
        line.track.add_sink(recorder.clone());
        line.receive(1).await;
        let emitted_ms = line.receiver.stats().jitter_buffer_emitted_count / 48;
        assert!((940..=1_040).contains(&emitted_ms), "{emitted_ms}");

        let sink: Arc<dyn PcmSink> = recorder;
        line.track.remove_sink(&sink);
        line.receive(1).await;
        assert_eq!(line.clock.members(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn inactive_or_ended_line_plays_nothing() {
        let mut line = Line::new();
        let recorder = Arc::new(Recorder::default());
        line.track.add_sink(recorder.clone());
        line.receive(1).await;
        assert_eq!(
            (line.receiver.stats().packets_received, recorder.count()),
            (0, 0)
        );
        line.receiver.set_active(true);
        line.receive(1).await;
        line.receiver.set_active(false);
        tokio::time::sleep(Duration::from_millis(30)).await;
        let heard = recorder.count();
        assert!(heard >= 100);
        line.receive(1).await;
        assert_eq!((recorder.count(), line.clock.members()), (heard, 0));
        line.receiver.set_active(true);
        line.track.end();
        line.receive(1).await;
        assert_eq!((recorder.count(), line.clock.members()), (heard, 0));
        assert!(*recorder.ended.lock());
    }
}
