//! Speech over an emulated link, in virtual time: what the encoder sends, what the link does to it,
//! what the jitter buffer makes of it, and how that sounds. Every run has a seed, so that it can be
//! repeated; links with random loss or jitter are run several times, and the mean is compared.
//!
//! `cargo test -p libwebrtc audio::link -- --nocapture` prints the figures. With
//! `LINK_SOUND=FOLDER` the recordings are kept for `tests/interop/sound`, which scores them with
//! PESQ and STOI; `LINK_SEEDS=N` sets the number of seeds.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    OPUS_RATE_HZ, TICK_SAMPLES,
    encoder::{EncodedAudio, OpusSendConfig, PacketEncoder, RtpClock},
    jitter::{AudioReceiverStats, JitterBuffer, RtpAudioPacket},
    quality::{self, compare},
    red::RedWrapper,
    testing::second_of_voice,
    track::Pcm,
};

const SECONDS: usize = 14;

/// How many runs of a random link are averaged.
const SEEDS: u64 = 3;

const OPUS_PAYLOAD_TYPE: u8 = 111;

/// One-way delay of the network without jitter, in milliseconds.
const STEADY_MS: f64 = 30.0;

/// Pulls after the last packet was sent.
const TAIL_TICKS: usize = 50;

/// A random number generator of which every run has its own (xorshift64).
pub(crate) struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// From 0 to 1.
    pub fn roll(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Impairments of a link.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Link {
    /// Share of packets that get lost, each by itself.
    pub loss: f64,
    /// Packets take up to so many milliseconds longer, evenly spread. Their order is kept, as
    /// queues keep it.
    pub jitter_ms: f64,
    /// Share of packets that take 45 ms longer and are overtaken by the next two.
    pub overtaken: f64,
    /// Share of packets that come twice, the second time 10 ms later.
    pub doubled: f64,
    /// From and to which millisecond nothing gets through.
    pub outage_ms: Option<(f64, f64)>,
    /// What was sent during the outage comes all at once after it, instead of never.
    pub outage_held: bool,
}

impl Link {
    /// When copies of a packet arrive that is sent at `sent_ms`.
    pub fn carry(&self, sent_ms: f64, last_ms: &mut f64, dice: &mut Dice) -> Vec<f64> {
        let (lost, late, overtaken, doubled) = (
            dice.roll() < self.loss,
            dice.roll() * self.jitter_ms,
            dice.roll() < self.overtaken,
            dice.roll() < self.doubled,
        );
        let mut arrival = sent_ms + STEADY_MS + late;
        if let Some((from, to)) = self.outage_ms
            && (from..to).contains(&sent_ms)
        {
            if !self.outage_held {
                return vec![];
            }
            arrival = arrival.max(to + STEADY_MS);
        }
        if lost {
            return vec![];
        }
        if overtaken {
            return vec![arrival + 45.0];
        }
        arrival = arrival.max(*last_ms);
        *last_ms = arrival;
        match doubled {
            true => vec![arrival, arrival + 10.0],
            false => vec![arrival],
        }
    }
}

/// How packets are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    /// Opus, with its own error correction.
    Plain,
    /// The same, and each packet once more with the next one (RFC 2198).
    Redundant,
}

/// Speech as packets, each with the millisecond in which it is sent.
fn packets(said: &[i16], config: OpusSendConfig, loss_percent: u8) -> Vec<(f64, EncodedAudio)> {
    let mut encoder = PacketEncoder::new(config, RtpClock::starting_at(4_711)).expect("an encoder");
    encoder.set_packet_loss_percent(loss_percent);
    let start = Instant::now();
    let mut packets = Vec::new();
    for (tick, samples) in said.chunks_exact(TICK_SAMPLES).enumerate() {
        let pcm = Pcm {
            samples,
            sample_rate_hz: 48_000,
            channels: 1,
        };
        encoder.push(start + Duration::from_millis(tick as u64 * 10), pcm);
        while let Some(packet) = encoder.next_packet() {
            packets.push((tick as f64 * 10.0 + 10.0, packet));
        }
    }
    packets
}

struct Heard {
    pcm: Vec<i16>,
    stats: AudioReceiverStats,
    /// From the end of a packet's recording to the beginning of its playout, without the link's
    /// steady part: the mean, in milliseconds.
    delay_ms: f64,
}

/// Runs arrivals, in order, through a jitter buffer that is pulled every 10 ms. What is still in it
/// after `milliseconds` is played too, but not counted.
fn hear(arrivals: Vec<(f64, RtpAudioPacket)>, sending: Sending, milliseconds: usize) -> Heard {
    let start = Instant::now();
    let at = |ms: f64| start + Duration::from_secs_f64(ms / 1000.0);
    let mut jitter = JitterBuffer::new().expect("a decoder");
    let (mut pcm, mut frame) = (Vec::new(), Vec::new());
    let (mut delays, mut count) = (0.0, 0);
    let mut arrivals = arrivals.into_iter().peekable();
    let mut stats = AudioReceiverStats::default();
    for tick in 0..milliseconds / 10 + TAIL_TICKS {
        // The receiver's clock is not aligned with the sender's.
        let now_ms = tick as f64 * 10.0 + 3.0;
        while let Some((arrival, packet)) = arrivals.next_if(|(arrival, _)| *arrival <= now_ms) {
            match sending {
                Sending::Plain => jitter.push(at(arrival), packet),
                Sending::Redundant => jitter.push_red(at(arrival), packet, OPUS_PAYLOAD_TYPE),
            }
        }
        if tick == milliseconds / 10 {
            stats = jitter.stats();
        }
        if let Some(delay) = jitter.playout_delay_us(at(now_ms)) {
            delays += delay as f64 / 1000.0;
            count += 1;
        }
        let channels = jitter.pull(at(now_ms), &mut frame);
        pcm.extend(frame.iter().step_by(channels));
    }
    Heard {
        pcm,
        stats,
        delay_ms: delays / f64::from(count.max(1)),
    }
}

/// One run, or the mean of several.
#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    concealed_percent: f64,
    delay_ms: f64,
    target_ms: f64,
    gaps_ms: f64,
    longest_gap_ms: f64,
    distance_db: f64,
    recovered: f64,
    inserted_ms: f64,
    removed_ms: f64,
}

impl Outcome {
    fn mean(runs: &[Self]) -> Self {
        let mean =
            |field: fn(&Self) -> f64| runs.iter().map(field).sum::<f64>() / runs.len() as f64;
        Self {
            concealed_percent: mean(|run| run.concealed_percent),
            delay_ms: mean(|run| run.delay_ms),
            target_ms: mean(|run| run.target_ms),
            gaps_ms: mean(|run| run.gaps_ms),
            longest_gap_ms: mean(|run| run.longest_gap_ms),
            distance_db: mean(|run| run.distance_db),
            recovered: mean(|run| run.recovered),
            inserted_ms: mean(|run| run.inserted_ms),
            removed_ms: mean(|run| run.removed_ms),
        }
    }
}

/// The spoken input, and its packets for each loss that the encoder may expect: the same in all
/// runs.
struct Speech {
    said: Vec<i16>,
    packets: HashMap<u8, Vec<(f64, EncodedAudio)>>,
}

impl Speech {
    fn new() -> Self {
        Self {
            said: quality::speech(SECONDS),
            packets: HashMap::new(),
        }
    }

    fn run(&mut self, name: &str, link: Link, sending: Sending, seed: u64) -> Outcome {
        let loss_percent = (link.loss * 100.0).round() as u8;
        let sent = self
            .packets
            .entry(loss_percent)
            .or_insert_with(|| packets(&self.said, OpusSendConfig::default(), loss_percent));
        let mut dice = Dice::new(seed);
        let mut last_ms = 0.0;
        let mut wrapper = RedWrapper::new(OPUS_PAYLOAD_TYPE);
        let mut arrivals: Vec<(f64, RtpAudioPacket)> = Vec::new();
        for (seq, (sent_ms, packet)) in sent.iter().enumerate() {
            let payload = match sending {
                Sending::Plain => packet.payload.clone(),
                Sending::Redundant => wrapper.wrap(packet).expect("speech is short"),
            };
            let packet = RtpAudioPacket {
                ssrc: 1,
                extended_seq: 30_000 + seq as u64,
                rtp_timestamp: u64::from(packet.rtp_timestamp),
                payload: payload.into(),
            };
            for arrival in link.carry(*sent_ms, &mut last_ms, &mut dice) {
                arrivals.push((arrival, packet.clone()));
            }
        }
        arrivals.sort_by(|one, other| one.0.total_cmp(&other.0));
        let heard = hear(arrivals, sending, SECONDS * 1000);
        // The packet's own 20 ms, the network and the buffer; and Opus's look-ahead of 6.5 ms. What
        // is held back during an outage is heard later by as much.
        let slack_ms = match link.outage_ms {
            Some((from, to)) if link.outage_held => 250 + (to - from) as usize,
            _ => 250,
        };
        let delay_ms = 20.0 + STEADY_MS + heard.delay_ms + 6.5;
        let quality = compare(&self.said, &heard.pcm, delay_ms as usize, slack_ms);
        if let Some(folder) = std::env::var_os("LINK_SOUND") {
            let folder = std::path::PathBuf::from(folder);
            let run = format!("{}.{seed}", name.replace([' ', '%', ','], "_"));
            for (name, sound) in [("said", &self.said), (run.as_str(), &heard.pcm)] {
                let file = folder.join(format!("{name}.wav"));
                std::fs::write(&file, quality::wav_file(sound)).expect("the folder can be written");
            }
        }
        let stats = &heard.stats;
        let of_samples = |count: u64| count as f64 / 48.0;
        Outcome {
            concealed_percent: 100.0 * stats.concealed_samples as f64
                / stats.total_samples_received as f64,
            delay_ms: heard.delay_ms,
            target_ms: stats.jitter_buffer_target_delay_s * 1000.0
                / stats.jitter_buffer_emitted_count as f64,
            gaps_ms: quality.gaps_ms as f64,
            longest_gap_ms: quality.longest_gap_ms as f64,
            distance_db: quality.distance_db,
            recovered: stats.fec_packets_received as f64,
            inserted_ms: of_samples(stats.inserted_samples_for_deceleration),
            removed_ms: of_samples(stats.removed_samples_for_acceleration),
        }
    }

    /// The mean of as many runs as a random link needs.
    fn run_all(&mut self, name: &str, link: Link, sending: Sending) -> Outcome {
        let chance = link.loss + link.jitter_ms + link.overtaken + link.doubled > 0.0;
        let wanted = std::env::var("LINK_SEEDS").ok();
        let seeds = match (chance, wanted.and_then(|seeds| seeds.parse().ok())) {
            (false, _) => 1,
            (true, seeds) => seeds.unwrap_or(SEEDS),
        };
        let runs: Vec<_> = (1..=seeds)
            .map(|seed| self.run(name, link, sending, seed))
            .collect();
        let mean = Outcome::mean(&runs);
        println!(
            "{name:24} concealed {:5.2} %  delay {:5.1} ms  target {:5.1} ms  gaps {:4.0} ms (longest {:4.0})  distance {:4.2} dB  \
             recovered {:3.0}  stretched +{:.0}/-{:.0} ms",
            mean.concealed_percent,
            mean.delay_ms,
            mean.target_ms,
            mean.gaps_ms,
            mean.longest_gap_ms,
            mean.distance_db,
            mean.recovered,
            mean.inserted_ms,
            mean.removed_ms,
        );
        mean
    }
}

/// Limits of what a link does to speech: concealed percent, added delay and longest gap in
/// milliseconds, distance in dB.
type Bounds = (f64, f64, f64, f64);

fn check(sending: Sending, cases: &[(&str, Link, Bounds)]) {
    let mut speech = Speech::new();
    let mut failures = Vec::new();
    for (name, link, (concealed, delay_ms, gap_ms, distance_db)) in cases {
        let outcome = speech.run_all(name, *link, sending);
        // Sound that is pulled every 10 ms can be off by as much. Over an outage the mean says
        // nothing. With loss and jitter together, there is not always a place for an inaudible cut.
        let slack_ms = match link.loss > 0.0 && link.jitter_ms > 0.0 {
            true => 20.0,
            false => 10.0,
        };
        let near_target =
            link.outage_ms.is_some() || outcome.delay_ms <= outcome.target_ms + slack_ms;
        let good = near_target
            && outcome.concealed_percent <= *concealed
            && outcome.delay_ms <= *delay_ms
            && outcome.longest_gap_ms <= *gap_ms
            && outcome.distance_db <= *distance_db;
        if !good {
            failures.push(format!("{name}: {outcome:?}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn speech_survives_loss() {
    let loss = |loss| Link {
        loss,
        ..Link::default()
    };
    // Error correction repairs single losses, so that about the square of the loss is left to be
    // concealed.
    check(
        Sending::Plain,
        &[
            ("no loss", loss(0.0), (0.0, 30.0, 0.0, 1.2)),
            ("loss 2 %", loss(0.02), (0.8, 45.0, 20.0, 1.5)),
            ("loss 5 %", loss(0.05), (2.0, 50.0, 20.0, 1.6)),
            ("loss 10 %", loss(0.1), (4.0, 55.0, 40.0, 1.7)),
            ("loss 20 %", loss(0.2), (8.0, 55.0, 60.0, 2.0)),
        ],
    );
}

#[test]
fn redundancy_leaves_little_of_the_loss() {
    let loss = |loss| Link {
        loss,
        ..Link::default()
    };
    // What is left needs three losses in a row: a copy of a packet has error correction for the one
    // before it.
    check(
        Sending::Redundant,
        &[
            ("RED, no loss", loss(0.0), (0.0, 30.0, 0.0, 1.2)),
            ("RED, loss 2 %", loss(0.02), (0.8, 45.0, 20.0, 1.5)),
            ("RED, loss 5 %", loss(0.05), (2.0, 50.0, 20.0, 1.6)),
            ("RED, loss 10 %", loss(0.1), (4.0, 55.0, 40.0, 1.7)),
            ("RED, loss 20 %", loss(0.2), (8.0, 55.0, 60.0, 2.0)),
        ],
    );
}

#[test]
fn speech_survives_jitter_reordering_and_doubles() {
    let jitter = |jitter_ms| Link {
        jitter_ms,
        ..Link::default()
    };
    let overtaken = Link {
        overtaken: 0.05,
        ..Link::default()
    };
    let doubled = Link {
        doubled: 0.2,
        ..Link::default()
    };
    let everything = Link {
        loss: 0.05,
        jitter_ms: 60.0,
        overtaken: 0.05,
        doubled: 0.05,
        ..Link::default()
    };
    check(
        Sending::Plain,
        &[
            ("jitter 30 ms", jitter(30.0), (0.3, 50.0, 20.0, 1.2)),
            ("jitter 80 ms", jitter(80.0), (1.5, 105.0, 40.0, 1.4)),
            ("overtaken 5 %", overtaken, (1.5, 75.0, 20.0, 1.3)),
            ("doubled 20 %", doubled, (0.0, 40.0, 0.0, 1.3)),
            ("everything at once", everything, (4.0, 110.0, 60.0, 1.6)),
        ],
    );
}

#[test]
fn speech_survives_outages() {
    let outage = |length_ms: f64, outage_held| Link {
        outage_ms: Some((6_000.0, 6_000.0 + length_ms)),
        outage_held,
        ..Link::default()
    };
    // What is lost is missing, and nothing else; what comes late is heard late, and the delay is
    // reduced again.
    check(
        Sending::Plain,
        &[
            (
                "outage 200 ms lost",
                outage(200.0, false),
                (2.0, 30.0, 160.0, 1.4),
            ),
            (
                "outage 200 ms held",
                outage(200.0, true),
                (2.0, 90.0, 60.0, 1.7),
            ),
            (
                "outage 2 s lost",
                outage(2_000.0, false),
                (15.5, 30.0, 400.0, 4.0),
            ),
            (
                "outage 2 s held",
                outage(2_000.0, true),
                (15.5, 250.0, 80.0, 2.0),
            ),
        ],
    );
}

/// The sender's clock runs `ppm` millionths faster than ours, for an hour: 720 ms at 200.
fn delay_stays_flat_with_a_clock_that_is_off_by(ppm: f64) {
    const HOUR: u64 = 3_600;
    let second = packets(second_of_voice(), OpusSendConfig::default(), 0);
    let packets_a_second = second.len() as u64;
    let start = Instant::now();
    let mut jitter = JitterBuffer::new().expect("a decoder");
    let (mut frame, mut next) = (Vec::new(), 0u64);
    let mut worst_ms = 0.0f64;
    for tick in 0..HOUR * 100 {
        let now = start + Duration::from_millis(tick * 10);
        // When the next packet arrives, by our clock.
        let arrival = |next: u64| {
            let seconds = next as f64 / packets_a_second as f64;
            start + Duration::from_secs_f64(seconds / (1.0 + ppm / 1e6) + STEADY_MS / 1000.0)
        };
        while arrival(next) <= now {
            let packet = RtpAudioPacket {
                ssrc: 1,
                extended_seq: next,
                rtp_timestamp: next * u64::from(OPUS_RATE_HZ) / packets_a_second,
                payload: second[(next % packets_a_second) as usize]
                    .1
                    .payload
                    .as_slice()
                    .into(),
            };
            jitter.push(arrival(next), packet);
            next += 1;
        }
        if tick > 500
            && let Some(delay) = jitter.playout_delay_us(now)
        {
            worst_ms = worst_ms.max(delay as f64 / 1000.0);
        }
        jitter.pull(now, &mut frame);
    }
    let stats = jitter.stats();
    assert!(worst_ms < 45.0, "{worst_ms} ms");
    assert_eq!(stats.packets_discarded, 0);
    let concealed_ms = stats.concealed_samples / 48;
    // Less than one packet in a thousand.
    assert!(concealed_ms < 3_600, "{concealed_ms} ms in an hour");
}

#[test]
fn an_hour_with_a_sender_whose_clock_is_fast_adds_no_delay() {
    delay_stays_flat_with_a_clock_that_is_off_by(200.0);
}

#[test]
fn an_hour_with_a_sender_whose_clock_is_slow_leaves_no_holes() {
    delay_stays_flat_with_a_clock_that_is_off_by(-200.0);
}
