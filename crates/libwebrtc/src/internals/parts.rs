//! The processing steps of a call in the engine, each to be measured alone.
//!
//! Everything that an event needs beforehand is prepared outside of what is measured: a [`Part`] is
//! made for a number of events and then run.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    task::{Context, Waker},
    time::{Duration, Instant},
};

use str0m::net::Transmit;

use super::pair::Pair;
use crate::{
    audio::{
        TICK_SAMPLES,
        clock::{Clock, Tick},
        encoder::{EncodedAudio, OpusSendConfig, PacketEncoder, RtpClock},
        jitter::{JitterBuffer, RtpAudioPacket},
        receiver::AudioReceiver,
        resample::AudioResampler,
        source::SourceCore,
        stream::FrameQueue,
        testing::second_of_voice,
        track::{AudioTrack, Pcm},
    },
    audio_source::AudioSourceOptions,
    audio_track::RtcAudioTrack,
    media_stream_track::MediaStreamTrack,
};

/// One kind of event, with everything that many of them need.
pub trait Part {
    /// Does what each event needs beforehand, for `events` of them.
    fn prepare(&mut self, events: usize);
    /// Processes the events that were prepared.
    fn run(&mut self);
}

fn voice_at(rate_hz: u32, tick: usize) -> Pcm<'static> {
    let ticks = second_of_voice().len() / TICK_SAMPLES;
    let begin = tick % ticks * TICK_SAMPLES;
    Pcm {
        // At other rates the same samples are lower-pitched sound, but still 10 ms.
        samples: &second_of_voice()[begin..begin + rate_hz as usize / 100],
        sample_rate_hz: rate_hz,
        channels: 1,
    }
}

/// 10 ms of the application's sound into the encoder: resampled if necessary, and every second time
/// a packet of 20 ms.
pub struct FrameIn {
    encoder: PacketEncoder,
    rate_hz: u32,
    tick: usize,
    events: usize,
    start: Instant,
}

impl FrameIn {
    /// With sound of this rate, and the loss that the other side reports.
    #[must_use]
    pub fn new(rate_hz: u32, loss_percent: u8) -> Self {
        let config = OpusSendConfig {
            fec: true,
            ..OpusSendConfig::default()
        };
        let mut encoder = PacketEncoder::new(config, RtpClock::starting_at(0)).expect("an encoder");
        encoder.set_packet_loss_percent(loss_percent);
        second_of_voice();
        Self {
            encoder,
            rate_hz,
            tick: 0,
            events: 0,
            start: Instant::now(),
        }
    }

    fn next(&mut self) -> Option<EncodedAudio> {
        let at = self.start + Duration::from_millis(10 * self.tick as u64);
        self.encoder.push(at, voice_at(self.rate_hz, self.tick));
        self.tick += 1;
        self.encoder.next_packet()
    }
}

impl Part for FrameIn {
    fn prepare(&mut self, events: usize) {
        self.events = events;
    }

    fn run(&mut self) {
        for _ in 0..self.events {
            std::hint::black_box(self.next());
        }
    }
}

fn packets(count: usize, loss_percent: u8) -> Vec<EncodedAudio> {
    let mut voice = FrameIn::new(48_000, loss_percent);
    let mut packets = Vec::with_capacity(count);
    while packets.len() < count {
        packets.extend(voice.next());
    }
    packets
}

/// 10 ms out of the jitter buffer: decoded, every second time from a new packet.
pub struct Pull {
    jitter: JitterBuffer,
    packets: Vec<EncodedAudio>,
    lossy: bool,
    /// Of the next packet.
    seq: usize,
    waiting: VecDeque<(Instant, RtpAudioPacket)>,
    now: Instant,
    events: usize,
    frame: Vec<i16>,
}

impl Pull {
    /// From a clean link, or one that loses every tenth packet and delays the others by up to 60
    /// ms.
    #[must_use]
    pub fn new(lossy: bool) -> Self {
        Self {
            jitter: JitterBuffer::new().expect("a decoder"),
            packets: packets(500, if lossy { 10 } else { 0 }),
            lossy,
            seq: 0,
            waiting: VecDeque::new(),
            now: Instant::now(),
            events: 0,
            frame: Vec::new(),
        }
    }
}

impl Part for Pull {
    fn prepare(&mut self, events: usize) {
        self.events = events;
        for tick in 0..events as u64 {
            if tick % 2 == 1 {
                continue;
            }
            self.seq += 1;
            if self.lossy && self.seq.is_multiple_of(10) {
                continue;
            }
            let late = if self.lossy {
                self.seq as u64 * 7919 % 61
            } else {
                0
            };
            let at = self.now + Duration::from_millis(10 * tick + late);
            let packet = RtpAudioPacket {
                ssrc: 1,
                extended_seq: self.seq as u64,
                rtp_timestamp: self.seq as u64 * 960,
                payload: self.packets[self.seq % self.packets.len()]
                    .payload
                    .as_slice()
                    .into(),
            };
            self.waiting.push_back((at, packet));
        }
        self.waiting
            .make_contiguous()
            .sort_by_key(|(arrival, _)| *arrival);
    }

    fn run(&mut self) {
        for _ in 0..self.events {
            while let Some((at, _)) = self.waiting.front()
                && *at <= self.now
            {
                let (at, packet) = self.waiting.pop_front().expect("it was just seen");
                self.jitter.push(at, packet);
            }
            std::hint::black_box(self.jitter.pull(self.now, &mut self.frame));
            self.now += Duration::from_millis(10);
        }
    }
}

/// 10 ms of decoded sound to the rate that the application listens at.
pub struct Resample {
    resampler: AudioResampler,
    rate_hz: u32,
    events: usize,
}

impl Resample {
    #[must_use]
    pub fn new(rate_hz: u32) -> Self {
        Self {
            resampler: AudioResampler::default(),
            rate_hz,
            events: 0,
        }
    }
}

impl Part for Resample {
    fn prepare(&mut self, events: usize) {
        self.events = events;
    }

    fn run(&mut self) {
        for tick in 0..self.events {
            let pcm = voice_at(48_000, tick);
            std::hint::black_box(self.resampler.convert(pcm, 1, self.rate_hz));
        }
    }
}

/// One packet of sound out: header, encryption, and what the connection does with it.
pub struct PacketOut {
    pair: Pair,
    packets: Vec<EncodedAudio>,
    next: usize,
    /// Encrypted, for [`PacketIn`].
    sent: VecDeque<Transmit>,
    events: usize,
}

impl Default for PacketOut {
    fn default() -> Self {
        let track = RtcAudioTrack {
            handle: AudioTrack::local_without_source("voice"),
        };
        let pair = Pair::connected(Some(MediaStreamTrack::Audio(track)));
        for core in &pair.cores {
            for transceiver in core.transceivers() {
                transceiver.sync();
            }
        }
        Self {
            pair,
            packets: packets(500, 0),
            next: 0,
            sent: VecDeque::new(),
            events: 0,
        }
    }
}

impl Part for PacketOut {
    fn prepare(&mut self, events: usize) {
        // RTCP and acknowledgements of both sides are no part of this.
        while let Some(sent) = self.sent.pop_front() {
            self.pair.give(1, &sent, &sent.contents);
        }
        self.pair.step(Duration::from_millis(1));
        self.events = events;
    }

    fn run(&mut self) {
        let mid = self.pair.mid();
        for _ in 0..self.events {
            let like = &self.packets[self.next % self.packets.len()];
            let packet = EncodedAudio {
                payload: like.payload.clone(),
                rtp_timestamp: self.next as u32 * 960,
                ..*like
            };
            self.next += 1;
            self.pair.now += Duration::from_millis(20);
            let now = self.pair.now;
            let core = &mut self.pair.cores[0];
            core.send_audio(now, mid, 111, packet);
            core.settle(now);
            core.events.clear();
            self.sent.extend(core.transmits.drain(..));
        }
    }
}

/// One packet of sound in: decryption, what the connection does with it, and its place in the
/// jitter buffer.
#[derive(Default)]
pub struct PacketIn {
    out: PacketOut,
    /// Packets that came before the measured ones.
    came: u64,
}

impl Part for PacketIn {
    fn prepare(&mut self, events: usize) {
        // Packets of the preparation are pulled, so that the jitter buffer never overflows.
        let receiver = self.receiver();
        for _ in 0..2 * self.out.events {
            receiver.tick(self.out.pair.now);
        }
        self.out.prepare(events);
        self.out.run();
        assert!(self.out.sent.len() >= events, "each packet went out");
        self.came = receiver.stats().packets_received;
    }

    fn run(&mut self) {
        let pair = &mut self.out.pair;
        // What the second core sends is carried with the next preparation.
        while let Some(sent) = self.out.sent.pop_front() {
            pair.give(1, &sent, &sent.contents);
            let now = pair.now;
            pair.cores[1].settle(now);
            pair.cores[1].events.clear();
        }
        let came = self.receiver().stats().packets_received - self.came;
        assert_eq!(came, self.out.events as u64, "each packet came");
    }
}

impl PacketIn {
    fn receiver(&self) -> Arc<AudioReceiver> {
        let mut transceivers = self.out.pair.cores[1].transceivers();
        let receiver = transceivers.find_map(|transceiver| transceiver.receiver.audio.clone());
        receiver.expect("sound is received")
    }
}

/// Data messages, from being handed over until the other side has acknowledged them: the work of
/// both sides together.
pub struct DataMessage {
    pair: Pair,
    message: Vec<u8>,
    events: usize,
}

impl DataMessage {
    /// With messages of this length.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self {
            pair: Pair::connected(None),
            message: vec![7; bytes],
            events: 0,
        }
    }
}

impl Part for DataMessage {
    fn prepare(&mut self, events: usize) {
        self.events = events;
    }

    fn run(&mut self) {
        let channel = self.pair.cores[0].channels()[0].clone();
        for _ in 0..self.events {
            let now = self.pair.now;
            let taken = self.pair.cores[0]
                .send_data(now, &channel, &self.message, true)
                .is_ok();
            assert!(taken, "the buffer is never full here");
        }
        // The last one is acknowledged after 200 ms, if nothing follows it.
        for _ in 0..10_000 {
            self.pair.step(Duration::from_millis(1));
            if channel.buffered_amount() == 0 {
                return;
            }
        }
        panic!("{} bytes have not arrived", channel.buffered_amount());
    }
}

/// A tick of the clock with a published track without sound, whose only listener is idle.
pub struct IdleTick {
    clock: Arc<Clock>,
    source: Arc<SourceCore>,
    queue: Arc<FrameQueue>,
    _track: AudioTrack,
    present: Vec<Arc<dyn Tick>>,
    now: Instant,
    events: usize,
}

impl Default for IdleTick {
    fn default() -> Self {
        let clock = Arc::new(Clock::default());
        let options = AudioSourceOptions::default();
        let source = SourceCore::with_clock(options, 48_000, 1, 200, clock.clone());
        let track = AudioTrack::local("voice", &source);
        let queue = Arc::new(FrameQueue::new(48_000, 1, Some(50)));
        track.add_sink(queue.clone());
        let member: Weak<SourceCore> = Arc::downgrade(&source);
        clock.add(member);
        Self {
            clock,
            source,
            queue,
            _track: track,
            present: vec![],
            now: Instant::now(),
            events: 0,
        }
    }
}

impl Part for IdleTick {
    fn prepare(&mut self, events: usize) {
        self.events = events;
        assert!(self.source.sample_rate_hz() == 48_000);
    }

    fn run(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..self.events {
            self.clock.tick(self.now, &mut self.present);
            self.now += Duration::from_millis(10);
            let _ = std::hint::black_box(self.queue.poll_next(&mut context));
        }
    }
}
