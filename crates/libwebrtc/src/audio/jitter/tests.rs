//! Speech-like sound through the encoder, an emulated link and the jitter buffer, in virtual time.

use std::f64::consts::TAU;

use super::*;
use crate::audio::{
    encoder::{EncodedAudio, OpusSendConfig, PacketEncoder, RtpClock},
    red::RedWrapper,
    testing::second_of_voice,
    track::Pcm,
};

/// A random number generator of which every test has its own, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, limit: f64) -> f64 {
        self.roll() * limit
    }
}

/// What the link does to a packet: `None` loses it, else milliseconds until it arrives.
type Fate<'a> = dyn FnMut(usize, &mut Dice) -> Option<f64> + 'a;

const STEADY: f64 = 30.0;

struct Call {
    config: OpusSendConfig,
    loss_percent: u8,
    seconds: f64,
    seed: u64,
    frequency_hz: f64,
    /// Speech instead of a tone: a buzz of 120 Hz with syllables, which Opus takes for speech.
    voice: bool,
    /// From and to which second the speaker is silent.
    pause: Option<(f64, f64)>,
}

impl Default for Call {
    fn default() -> Self {
        Self {
            config: OpusSendConfig::default(),
            loss_percent: 0,
            seconds: 20.0,
            seed: 7,
            frequency_hz: 440.0,
            voice: false,
            pause: None,
        }
    }
}

struct Heard {
    pcm: Vec<i16>,
    channels: usize,
    stats: AudioReceiverStats,
    /// Playout delay in milliseconds at every pull that had one.
    delays_ms: Vec<(f64, f64)>,
}

impl Call {
    fn packets(&self) -> Vec<(f64, RtpAudioPacket)> {
        let mut encoder =
            PacketEncoder::new(self.config, RtpClock::starting_at(1000)).expect("an encoder");
        encoder.set_packet_loss_percent(self.loss_percent);
        let start = Instant::now();
        let mut packets = Vec::new();
        for tick in 0..(self.seconds * 100.0) as u64 {
            let at = tick as f64 / 100.0;
            let silent = self.pause.is_some_and(|(from, to)| at >= from && at < to);
            let samples: Vec<i16> = (0..480u64)
                .map(|index| {
                    let time = (tick * 480 + index) as f64 / 48_000.0;
                    if silent {
                        0
                    } else if self.voice {
                        second_of_voice()[(tick * 480 + index) as usize % 48_000]
                    } else {
                        ((time * self.frequency_hz * TAU).sin() * 10_000.0) as i16
                    }
                })
                .collect();
            let pcm = Pcm {
                samples: &samples,
                sample_rate_hz: 48_000,
                channels: 1,
            };
            encoder.push(start + Duration::from_millis(tick * 10), pcm);
            while let Some(packet) = encoder.next_packet() {
                let packet = RtpAudioPacket {
                    ssrc: 1,
                    extended_seq: 70_000 + packets.len() as u64,
                    rtp_timestamp: u64::from(packet.rtp_timestamp),
                    payload: packet.payload.into(),
                };
                packets.push((at * 1000.0, packet));
            }
        }
        packets
    }

    fn over(&self, fate: &mut Fate<'_>) -> Heard {
        let mut dice = Dice(self.seed * 7919 + 1);
        let mut arrivals: Vec<(f64, RtpAudioPacket)> = self
            .packets()
            .into_iter()
            .enumerate()
            .filter_map(|(index, (sent, packet))| {
                fate(index, &mut dice).map(|delay| (sent + delay, packet))
            })
            .collect();
        arrivals.sort_by(|one, other| one.0.total_cmp(&other.0));
        hear(arrivals, self.seconds)
    }
}

fn hear(arrivals: Vec<(f64, RtpAudioPacket)>, seconds: f64) -> Heard {
    let start = Instant::now();
    let mut jitter = JitterBuffer::new().expect("a decoder");
    let mut heard = Heard {
        pcm: Vec::new(),
        channels: 1,
        stats: AudioReceiverStats::default(),
        delays_ms: Vec::new(),
    };
    let mut arrivals = arrivals.into_iter().peekable();
    let mut frame = Vec::new();
    for tick in 0..(seconds * 100.0) as u64 {
        let now_ms = tick as f64 * 10.0 + 3.0;
        while let Some((arrival, packet)) = arrivals.next_if(|(arrival, _)| *arrival <= now_ms) {
            jitter.push(start + Duration::from_secs_f64(arrival / 1000.0), packet);
        }
        let now = start + Duration::from_secs_f64(now_ms / 1000.0);
        if let Some(delay) = jitter.playout_delay_us(now) {
            heard.delays_ms.push((now_ms, delay as f64 / 1000.0));
        }
        heard.channels = jitter.pull(now, &mut frame);
        assert_eq!(
            frame.len(),
            480 * heard.channels,
            "every pull gives exactly 10 ms"
        );
        heard.pcm.extend(&frame);
    }
    heard.stats = jitter.stats();
    heard
}

impl Heard {
    fn concealed_share(&self) -> f64 {
        self.stats.concealed_samples as f64 / self.stats.total_samples_received as f64
    }

    fn after_second(&self, second: f64) -> &[i16] {
        &self.pcm[(second * 48_000.0) as usize..]
    }

    /// Longest run of sound softer than a hundredth of full scale, in milliseconds, from a second
    /// on.
    fn longest_gap_ms(&self, second: f64) -> f64 {
        let mut longest = 0;
        let mut run = 0;
        for sample in self.after_second(second) {
            run = if sample.unsigned_abs() < 328 {
                run + 1
            } else {
                0
            };
            longest = longest.max(run);
        }
        longest as f64 / 48.0
    }

    /// The mean playout delay between two seconds, in milliseconds.
    fn delay_ms(&self, from: f64, to: f64) -> f64 {
        let of: Vec<f64> = self
            .delays_ms
            .iter()
            .filter(|(at, _)| (from * 1000.0..to * 1000.0).contains(at))
            .map(|(_, delay)| *delay)
            .collect();
        of.iter().sum::<f64>() / of.len() as f64
    }
}

/// The amplitude of one frequency in the sound (Goertzel's algorithm, on windows short enough that
/// phase jumps do not cancel out).
fn amplitude(pcm: &[i16], frequency_hz: f64) -> f64 {
    const WINDOW: usize = 4800;
    let windows = pcm.chunks_exact(WINDOW);
    let count = windows.len() as f64;
    let coefficient = 2.0 * (TAU * frequency_hz / 48_000.0).cos();
    windows
        .map(|window| {
            let (mut one, mut two) = (0.0, 0.0);
            for sample in window {
                let this = f64::from(*sample) + coefficient * one - two;
                two = one;
                one = this;
            }
            let power = one * one + two * two - coefficient * one * two;
            2.0 * power.max(0.0).sqrt() / WINDOW as f64
        })
        .sum::<f64>()
        / count
}

#[test]
fn tone_over_a_good_link_keeps_its_frequency_and_level() {
    let heard = Call::default().over(&mut |_, _| Some(STEADY));
    let tone = amplitude(heard.after_second(1.0), 440.0);
    assert!((9_000.0..11_000.0).contains(&tone), "amplitude {tone}");
    assert!(amplitude(heard.after_second(1.0), 600.0) < 300.0);
    assert_eq!(heard.stats.concealed_samples, 0);
    assert_eq!(heard.stats.packets_discarded, 0);
    assert!(heard.longest_gap_ms(1.0) < 1.0);
    assert_eq!(heard.stats.target_delay_ms, 20.0);
    assert!((15.0..40.0).contains(&heard.delay_ms(10.0, 20.0)));
}

#[test]
fn jitter_is_absorbed_with_little_concealment_and_no_more_delay_than_it_needs() {
    // Milliseconds of jitter, then bounds for the concealed share and the delay.
    for (jitter_ms, share, delay_ms) in
        [(10.0, 0.005, 40.0), (30.0, 0.02, 70.0), (80.0, 0.03, 130.0)]
    {
        for seed in 1..6 {
            let call = Call {
                seed,
                ..Call::default()
            };
            let heard = call.over(&mut |_, dice| Some(STEADY + dice.below(jitter_ms)));
            assert!(
                heard.concealed_share() < share,
                "{jitter_ms} ms, seed {seed}: {}",
                heard.concealed_share()
            );
            let delay = heard.delay_ms(5.0, 20.0);
            assert!(delay < delay_ms, "{jitter_ms} ms, seed {seed}: {delay}");
            let tone = amplitude(heard.after_second(2.0), 440.0);
            assert!(
                tone > 8_500.0,
                "{jitter_ms} ms, seed {seed}: amplitude {tone}"
            );
        }
    }
}

#[test]
fn lost_packets_are_concealed_without_silence() {
    for (loss, share) in [(0.05, 0.07), (0.2, 0.24)] {
        let call = Call {
            config: OpusSendConfig {
                fec: false,
                ..OpusSendConfig::default()
            },
            ..Call::default()
        };
        let heard = call.over(&mut |_, dice| (dice.roll() >= loss).then_some(STEADY));
        assert!(
            heard.concealed_share() < share,
            "{loss}: {}",
            heard.concealed_share()
        );
        assert_eq!(heard.stats.fec_packets_received, 0);
        assert!(
            heard.longest_gap_ms(1.0) < 60.0,
            "{loss}: {}",
            heard.longest_gap_ms(1.0)
        );
        // A loss adds no delay: concealed sound is exactly as long as what is missing.
        assert!(
            heard.delay_ms(15.0, 20.0) < 40.0,
            "{loss}: {}",
            heard.delay_ms(15.0, 20.0)
        );
        let tone = amplitude(heard.after_second(1.0), 440.0);
        assert!(tone > 8_000.0, "{loss}: amplitude {tone}");
    }
}

#[test]
fn lost_speech_is_recovered_by_error_correction() {
    // Two losses in a row cannot be recovered both, so what is left is about the square of the
    // loss.
    for (loss, share) in [(0.05, 0.015), (0.1, 0.03), (0.2, 0.08)] {
        let call = Call {
            voice: true,
            loss_percent: (loss * 100.0) as u8,
            ..Call::default()
        };
        let heard = call.over(&mut |_, dice| (dice.roll() >= loss).then_some(STEADY));
        assert!(
            heard.concealed_share() < share,
            "{loss}: {}",
            heard.concealed_share()
        );
        let recovered = heard.stats.fec_packets_received as f64 * 960.0;
        let missing = recovered + heard.stats.concealed_samples as f64;
        assert!(
            recovered > 0.6 * missing,
            "{loss}: {recovered} of {missing}"
        );
        assert!(
            heard.delay_ms(15.0, 20.0) < 60.0,
            "{loss}: {}",
            heard.delay_ms(15.0, 20.0)
        );
    }
}

/// The packets of a call, each with a copy of the one before.
fn with_redundancy(packets: Vec<(f64, RtpAudioPacket)>) -> Vec<(f64, RtpAudioPacket)> {
    let mut wrapper = RedWrapper::new(111);
    let wrap = |(at, packet): (f64, RtpAudioPacket)| {
        let encoded = EncodedAudio {
            payload: packet.payload.to_vec(),
            rtp_timestamp: packet.rtp_timestamp as u32,
            marker: false,
            audio_level_dbov: 0,
            voice_activity: true,
            narrow: false,
        };
        let payload = wrapper.wrap(&encoded).expect("short enough").into();
        (at, RtpAudioPacket { payload, ..packet })
    };
    packets.into_iter().map(wrap).collect()
}

#[test]
fn lost_speech_is_played_from_the_copy_in_the_next_packet() {
    let call = Call {
        voice: true,
        seconds: 19.0,
        ..Call::default()
    };
    let plain = call.packets();
    let mut lost = 0;
    let mut arrivals = with_redundancy(plain.clone());
    arrivals.retain(|(_, packet)| {
        let keep = packet.extended_seq % 7 != 3;
        lost += u64::from(!keep);
        keep
    });
    // Afterwards nothing is lost, so that the two are at the same place when they are compared.
    let whole = hear(plain, 19.0);
    let mut jitter = JitterBuffer::new().expect("a decoder");
    let (start, mut frame, mut pcm) = (Instant::now(), Vec::new(), Vec::new());
    let mut arrivals = arrivals.into_iter().peekable();
    for tick in 0..1_900u64 {
        let now = start + Duration::from_millis(tick * 10 + 3);
        while let Some((_, packet)) = arrivals.next_if(|(at, _)| *at <= tick as f64 * 10.0) {
            jitter.push_red(now, packet, 111);
        }
        jitter.pull(now, &mut frame);
        pcm.extend_from_slice(&frame);
    }
    let stats = jitter.stats();
    // The first loss comes before the buffer knows that waiting helps.
    assert!(stats.concealed_samples <= 960, "{stats:?}");
    assert!(
        stats.fec_packets_received + 2 >= lost,
        "{stats:?} of {lost}"
    );
    assert_eq!(stats.packets_discarded, 0);
    let energy = |pcm: &[i16]| level::energy(&pcm[48_000..]);
    assert!((energy(&pcm) / energy(&whole.pcm) - 1.0).abs() < 0.02);
}

#[test]
fn copies_that_come_too_late_make_the_next_ones_come_in_time() {
    let call = Call {
        voice: true,
        ..Call::default()
    };
    let mut lost = 0;
    let mut arrivals = with_redundancy(call.packets());
    // By then the buffer knows that the link has no jitter, and nothing waits longer than needed.
    arrivals.retain(|(at, packet)| {
        let keep = *at < 8_000.0 || packet.extended_seq % 7 != 3;
        lost += u64::from(!keep);
        keep
    });
    // Where the receiver's clock stands between two packets decides how close to its turn a packet
    // comes.
    for offset_ms in 0..10 {
        let mut jitter = JitterBuffer::new().expect("a decoder");
        let (start, mut frame) = (Instant::now(), Vec::new());
        let mut arrivals = arrivals.iter().peekable();
        for tick in 0..2_000u64 {
            let now_ms = tick * 10 + offset_ms;
            while let Some((at, packet)) = arrivals.next_if(|(at, _)| *at <= now_ms as f64) {
                let arrival = start + Duration::from_millis(*at as u64);
                jitter.push_red(arrival, packet.clone(), 111);
            }
            jitter.pull(start + Duration::from_millis(now_ms), &mut frame);
        }
        let stats = jitter.stats();
        assert!(
            stats.fec_packets_received + 8 >= lost,
            "{offset_ms}: {stats:?} of {lost}"
        );
        assert!(
            stats.concealed_samples < 8 * 960,
            "{offset_ms}: {stats:?} of {lost}"
        );
    }
}

/// What waits, as pairs of number and timestamp.
fn waiting(jitter: &JitterBuffer) -> Vec<(u64, u64)> {
    let pairs = jitter.waiting.iter();
    pairs.map(|packet| (packet.seq, packet.timestamp)).collect()
}

/// A redundant payload of packets of 20 ms of silence, with copies at the given offsets.
fn redundant(offsets: &[u32]) -> Arc<[u8]> {
    const SILENCE: [u8; 3] = [0xf8, 0xff, 0xfe];
    let copies: Vec<_> = offsets
        .iter()
        .map(|offset| str0m::rtp::RedundantBlock {
            pt: 111,
            timestamp_offset: *offset,
            payload: SILENCE.to_vec(),
        })
        .collect();
    str0m::rtp::RedEncoder::encode(111, &SILENCE, &copies).into()
}

#[test]
fn copies_take_the_places_of_what_is_missing() {
    // Numbers and timestamps in packets; offsets of the copies likewise; then what waits in the end
    // besides the packets themselves.
    type Packet = (u64, u64, &'static [u32]);
    type Case = (&'static str, &'static [Packet], &'static [(u64, u64)]);
    let cases: &[Case] = &[
        ("nothing is missing", &[(0, 0, &[]), (1, 1, &[1])], &[]),
        (
            "nobody misses what was before the first",
            &[(5, 5, &[2, 1])],
            &[],
        ),
        ("one is missing", &[(0, 0, &[]), (2, 2, &[1])], &[(1, 1)]),
        (
            "two are",
            &[(0, 0, &[]), (3, 3, &[2, 1])],
            &[(1, 1), (2, 2)],
        ),
        (
            "a copy of a copy",
            &[(0, 0, &[]), (3, 3, &[2, 1]), (2, 2, &[1])],
            &[(1, 1)],
        ),
        (
            "the server has lost the nearest",
            &[(0, 0, &[]), (3, 3, &[2])],
            &[(1, 1)],
        ),
        (
            "a pause before the bearer",
            &[(0, 0, &[]), (2, 12, &[11])],
            &[(1, 1)],
        ),
        (
            "much is missing, and a pause",
            &[(0, 0, &[]), (20, 30, &[11])],
            &[(19, 19)],
        ),
        (
            "a pause before the copy",
            &[(0, 0, &[]), (3, 13, &[12, 1])],
            &[(1, 1), (2, 12)],
        ),
        (
            "overtaken by the next",
            &[(0, 0, &[]), (2, 2, &[1]), (1, 1, &[1])],
            &[],
        ),
        (
            "an offset that fits nowhere",
            &[(0, 0, &[]), (1, 1, &[9])],
            &[],
        ),
    ];
    for (name, packets, expected) in cases {
        let mut jitter = JitterBuffer::new().expect("a decoder");
        let now = Instant::now();
        let at = |packets: u64| 48_000 + packets * 960;
        for (seq, timestamp, copies) in *packets {
            let offsets: Vec<u32> = copies.iter().map(|packets| packets * 960).collect();
            let packet = RtpAudioPacket {
                ssrc: 1,
                extended_seq: 100 + seq,
                rtp_timestamp: at(*timestamp),
                payload: redundant(&offsets),
            };
            jitter.push_red(now, packet, 111);
        }
        let own: Vec<u64> = packets.iter().map(|(seq, ..)| 100 + seq).collect();
        let mut copies = waiting(&jitter);
        copies.retain(|(seq, _)| !own.contains(seq));
        let expected: Vec<_> = expected
            .iter()
            .map(|(seq, timestamp)| (100 + seq, at(*timestamp)))
            .collect();
        assert_eq!(copies, expected, "{name}");
        assert_eq!(jitter.stats().packets_discarded, 0, "{name}");
    }
}

#[test]
fn malformed_redundancy_is_counted_and_changes_nothing() {
    let mut jitter = JitterBuffer::new().expect("a decoder");
    let now = Instant::now();
    let packet = |seq: u64, payload: Arc<[u8]>| RtpAudioPacket {
        ssrc: 1,
        extended_seq: seq,
        rtp_timestamp: seq * 960,
        payload,
    };
    jitter.push_red(now, packet(10, redundant(&[])), 111);
    let telephone_event: Arc<[u8]> = [126, 1, 10, 0, 160].into();
    let truncated = redundant(&[960])[..6].into();
    for (seq, payload) in [(11, telephone_event), (12, truncated)] {
        jitter.push_red(now, packet(seq, payload), 111);
    }
    jitter.push_red(now, packet(13, redundant(&[])), 96);
    let stats = jitter.stats();
    assert_eq!((stats.packets_received, stats.packets_discarded), (4, 3));
    assert_eq!(waiting(&jitter), [(10, 9_600)]);
}

#[test]
fn reordered_and_doubled_packets_are_put_right() {
    let heard = Call::default()
        .over(&mut |index, _| Some(STEADY + if index % 10 == 3 { 25.0 } else { 0.0 }));
    assert!(
        heard.concealed_share() < 0.005,
        "{}",
        heard.concealed_share()
    );

    let mut packets: Vec<_> = Call::default()
        .packets()
        .into_iter()
        .flat_map(|(at, packet)| [(at + STEADY, packet.clone()), (at + STEADY + 5.0, packet)])
        .collect();
    packets.sort_by(|one, other| one.0.total_cmp(&other.0));
    let heard = hear(packets, 18.0);
    assert_eq!(
        heard.stats.packets_discarded,
        heard.stats.packets_received / 2
    );
    assert_eq!(heard.stats.concealed_samples, 0);
}

#[test]
fn packets_that_are_sent_again_much_later_change_nothing() {
    let mut packets: Vec<_> = Call::default()
        .packets()
        .into_iter()
        .enumerate()
        .flat_map(|(index, (at, packet))| {
            let copy = (index % 10 == 0).then(|| (at + 1_500.0, packet.clone()));
            [Some((at + STEADY, packet)), copy]
        })
        .flatten()
        .collect();
    packets.sort_by(|one, other| one.0.total_cmp(&other.0));
    let heard = hear(packets, 18.0);
    assert_eq!(heard.stats.concealed_samples, 0);
    assert_eq!(heard.stats.inserted_samples_for_deceleration, 0);
    assert_eq!(heard.stats.target_delay_ms, 20.0);
}

#[test]
fn outage_with_everything_late_loses_no_speech_and_the_delay_comes_back() {
    // From second 5 on nothing arrives for 200 ms; then it all comes at once.
    let heard = Call::default().over(&mut |index, _| {
        let sent = index as f64 * 20.0;
        let hole = 5_000.0..5_200.0;
        Some(if hole.contains(&sent) {
            5_200.0 - sent + STEADY
        } else {
            STEADY
        })
    });
    let late = heard.stats.removed_samples_for_acceleration as f64 / 48.0;
    assert!(late > 100.0, "{late} ms were caught up by time stretch");
    assert_eq!(heard.stats.packets_discarded, 0);
    let concealed_ms = heard.stats.concealed_samples as f64 / 48.0;
    assert!(concealed_ms < 230.0, "{concealed_ms}");
    assert!(heard.delay_ms(5.3, 5.5) > 100.0);
    assert!(
        heard.delay_ms(15.0, 20.0) < 45.0,
        "{}",
        heard.delay_ms(15.0, 20.0)
    );
    assert_eq!(heard.stats.target_delay_ms, 20.0);
}

#[test]
fn outage_with_everything_lost_adds_no_delay() {
    let heard =
        Call::default().over(&mut |index, _| (!(250..260).contains(&index)).then_some(STEADY));
    let concealed_ms = heard.stats.concealed_samples as f64 / 48.0;
    assert!((180.0..=220.0).contains(&concealed_ms), "{concealed_ms}");
    assert_eq!(heard.stats.concealment_events, 1);
    assert!(heard.stats.silent_concealed_samples as f64 / 48.0 <= 100.0);
    assert!(
        heard.delay_ms(6.0, 20.0) < 40.0,
        "{}",
        heard.delay_ms(6.0, 20.0)
    );
}

#[test]
fn background_noise_goes_on_through_a_long_hole() {
    // Somebody speaks in a noisy room: a second of voice, half a second of the room, and so on.
    let room_db = -58.0f64;
    let amplitude = 32_768.0 * 10f64.powf(room_db / 20.0) * 3f64.sqrt();
    for with_noise in [true, false] {
        let mut dice = Dice(99);
        let mut encoder = PacketEncoder::new(OpusSendConfig::default(), RtpClock::starting_at(0))
            .expect("an encoder");
        let mut jitter = JitterBuffer::new().expect("a decoder");
        let start = Instant::now();
        let (mut seq, mut frame, mut heard) = (0, Vec::new(), Vec::new());
        for tick in 0..700usize {
            let now = start + Duration::from_millis(tick as u64 * 10);
            let speaks = tick % 150 < 100;
            let samples: Vec<i16> = (0..480)
                .map(|index| {
                    let noise = (dice.roll() * 2.0 - 1.0) * amplitude;
                    let voice = second_of_voice()[(tick * 480 + index) % 48_000];
                    let noise = if with_noise { noise as i16 } else { 0 };
                    if speaks {
                        voice.saturating_add(noise)
                    } else {
                        noise
                    }
                })
                .collect();
            let pcm = Pcm {
                samples: &samples,
                sample_rate_hz: 48_000,
                channels: 1,
            };
            encoder.push(now, pcm);
            while let Some(packet) = encoder.next_packet() {
                // A pause of the speaker begins at 5.5 s. Nothing comes from 5.54 to 5.94 s.
                if !(554..594).contains(&tick) {
                    let packet = RtpAudioPacket {
                        ssrc: 1,
                        extended_seq: seq,
                        rtp_timestamp: u64::from(packet.rtp_timestamp),
                        payload: packet.payload.into(),
                    };
                    jitter.push(now, packet);
                }
                seq += 1;
            }
            jitter.pull(now + Duration::from_millis(3), &mut frame);
            heard.extend_from_slice(&frame);
        }
        // 400 ms less 120 ms of concealment by the decoder.
        let silent_ms = jitter.stats().silent_concealed_samples / 48;
        assert!((260..=320).contains(&silent_ms), "{silent_ms} ms");
        let concealed_ms = jitter.stats().concealed_samples / 48;
        assert!((380..=440).contains(&concealed_ms), "{concealed_ms} ms");
        let level_db = |from_ms: usize| {
            10.0 * level::energy(&heard[from_ms * 48..(from_ms + 20) * 48]).log10()
        };
        let hole: Vec<f64> = (5_720..5_960).step_by(20).map(level_db).collect();
        if !with_noise {
            assert!(hole.iter().all(|level| *level < -90.0), "{hole:?}");
            continue;
        }
        let mean = |levels: &[f64]| levels.iter().sum::<f64>() / levels.len() as f64;
        assert!((mean(&hole) - room_db).abs() < 3.0, "{hole:?}");
        assert!(
            hole.iter().all(|level| (level - room_db).abs() < 5.0),
            "{hole:?}"
        );
        // No difference between two samples is larger than in the noise itself.
        let largest = |from_ms: usize, to_ms: usize| {
            let steps = heard[from_ms * 48..to_ms * 48].windows(2);
            steps
                .map(|two| (i32::from(two[1]) - i32::from(two[0])).abs())
                .max()
        };
        assert!(largest(5_560, 6_000) <= largest(4_060, 4_490).map(|step| step * 3 / 2));
    }
}

#[test]
fn pauses_of_the_sender_are_no_losses() {
    let call = Call {
        config: OpusSendConfig {
            dtx: true,
            ..OpusSendConfig::default()
        },
        pause: Some((6.0, 12.0)),
        ..Call::default()
    };
    let packets = call.packets();
    let sent_in_pause = packets
        .iter()
        .filter(|(at, _)| (7_000.0..11_900.0).contains(at))
        .count();
    assert!(
        sent_in_pause < 40,
        "{sent_in_pause} packets were sent during the pause"
    );
    let heard = call.over(&mut |_, _| Some(STEADY));
    assert_eq!(heard.stats.concealed_samples, 0);
    assert!(
        heard.delay_ms(13.0, 20.0) < 45.0,
        "{}",
        heard.delay_ms(13.0, 20.0)
    );
    let again = &heard.after_second(12.2)[..48_000];
    assert!(amplitude(again, 440.0) > 9_000.0);
    assert!(heard.longest_gap_ms(12.2) < 1.0);
}

#[test]
fn sender_that_falls_silent_without_a_word_is_heard_at_once_when_it_comes_back() {
    let heard =
        Call::default().over(&mut |index, _| (!(300..600).contains(&index)).then_some(STEADY));
    assert!(heard.stats.silent_concealed_samples > 5 * 48_000);
    let again = &heard.after_second(12.15)[..48_000];
    assert!(
        amplitude(again, 440.0) > 9_000.0,
        "{}",
        amplitude(again, 440.0)
    );
}

#[test]
fn timestamps_that_stood_still_while_muted_cost_no_delay() {
    // As servers rewrite them: numbers and timestamps go on without a gap after a mute of 5 s.
    let mut packets = Call::default().packets();
    packets.truncate(600);
    for (index, (at, _)) in packets.iter_mut().enumerate() {
        *at += STEADY + if index >= 250 { 5_000.0 } else { 0.0 };
    }
    let heard = hear(packets, 17.0);
    assert!(
        heard.delay_ms(12.0, 16.0) < 45.0,
        "{}",
        heard.delay_ms(12.0, 16.0)
    );
    assert!(amplitude(&heard.after_second(10.3)[..48_000], 440.0) > 9_000.0);
}

#[test]
fn new_stream_on_the_same_line_is_played() {
    let mut packets = Call {
        seconds: 5.0,
        ..Call::default()
    }
    .packets();
    let second = Call {
        seconds: 5.0,
        frequency_hz: 800.0,
        ..Call::default()
    }
    .packets();
    packets.extend(second.into_iter().map(|(at, mut packet)| {
        packet.ssrc = 2;
        packet.extended_seq -= 69_000;
        packet.rtp_timestamp += 1 << 33;
        (at + 5_000.0, packet)
    }));
    for (at, _) in &mut packets {
        *at += STEADY;
    }
    let heard = hear(packets, 10.0);
    assert!(amplitude(heard.after_second(5.5), 800.0) > 9_000.0);
    assert!(amplitude(heard.after_second(5.5), 440.0) < 300.0);
}

#[test]
fn stereo_packets_make_the_sound_stereo() {
    let mono = Call {
        seconds: 3.0,
        ..Call::default()
    }
    .packets();
    let stereo = Call {
        seconds: 3.0,
        config: OpusSendConfig {
            stereo: true,
            ..OpusSendConfig::default()
        },
        ..Call::default()
    };
    let last = mono.len() as u64;
    let mut packets = mono;
    packets.extend(stereo.packets().into_iter().map(|(at, mut packet)| {
        packet.extended_seq += last;
        packet.rtp_timestamp += last * 960;
        (at + 3_000.0, packet)
    }));
    for (at, _) in &mut packets {
        *at += STEADY;
    }
    let start = Instant::now();
    let mut jitter = JitterBuffer::new().expect("a decoder");
    let (mut left, mut frame) = (Vec::new(), Vec::new());
    let mut packets = packets.into_iter().peekable();
    let mut channels = Vec::new();
    for tick in 0..600u64 {
        while let Some((at, packet)) = packets.next_if(|(at, _)| *at <= tick as f64 * 10.0) {
            jitter.push(start + Duration::from_secs_f64(at / 1000.0), packet);
        }
        let count = jitter.pull(start + Duration::from_millis(tick * 10), &mut frame);
        channels.push(count);
        left.extend(frame.iter().step_by(count));
    }
    assert_eq!((channels[100], channels[599]), (1, 2));
    assert!(amplitude(&left[4 * 48_000..], 440.0) > 8_500.0);
}

#[test]
fn clocks_that_drift_apart_do_not_add_up() {
    // The sender is 300 ppm fast: 30 ms in 100 s, as much as the whole delay.
    let packets = Call {
        seconds: 100.0,
        ..Call::default()
    }
    .packets();
    let arrivals = packets
        .into_iter()
        .map(|(at, packet)| (at * 0.9997 + STEADY, packet))
        .collect();
    let heard = hear(arrivals, 99.0);
    assert!(
        heard.delay_ms(75.0, 99.0) < 50.0,
        "{}",
        heard.delay_ms(75.0, 99.0)
    );
    assert!(heard.concealed_share() < 0.001);
    assert!(heard.stats.packets_discarded == 0);
}

#[test]
fn what_is_no_opus_is_discarded() {
    let mut jitter = JitterBuffer::new().expect("a decoder");
    let now = Instant::now();
    let packet = |seq: u64, payload: &[u8]| RtpAudioPacket {
        ssrc: 1,
        extended_seq: seq,
        rtp_timestamp: seq * 960,
        payload: payload.into(),
    };
    // Code 3 with no frame count, code 2 with a length beyond the end, code 1 with an odd rest.
    for (seq, payload) in [
        &[0x03][..],
        &[0xfa, 0xff, 0xff, 1],
        &[0xf9, 1, 2, 3, 4, 5, 6][..6],
    ]
    .into_iter()
    .enumerate()
    {
        jitter.push(now, packet(seq as u64, payload));
    }
    let mut frame = Vec::new();
    for tick in 0..20 {
        jitter.pull(now + Duration::from_millis(tick * 10), &mut frame);
        assert_eq!(frame.len(), 480);
    }
    assert!(jitter.stats().packets_discarded >= 1);
}

proptest::proptest! {
    /// Whatever arrives in whatever order, every pull gives exactly 10 ms and memory stays bounded.
    #[test]
    fn arbitrary_packets_never_break_the_cadence(
        packets in proptest::collection::vec(
            (0u64..2000, 0u64..100_000, proptest::collection::vec(0u8.., 0..80), 0u64..60, 1u32..3, 0u32..3), 0..200)
    ) {
        let mut jitter = JitterBuffer::new().expect("a decoder");
        let mut now = Instant::now();
        let mut frame = Vec::new();
        for (extended_seq, rtp_timestamp, payload, wait_ms, ssrc, redundancy) in packets {
            let packet = RtpAudioPacket { ssrc, extended_seq, rtp_timestamp, payload: payload.into() };
            match redundancy {
                0 => jitter.push(now, packet),
                1 => jitter.push_red(now, packet, 111),
                _ => jitter.push_red(now, RtpAudioPacket { payload: redundant(&[1920, 960]), ..packet }, 111),
            }
            now += Duration::from_millis(wait_ms);
            for _ in 0..wait_ms / 10 {
                let channels = jitter.pull(now, &mut frame);
                proptest::prop_assert_eq!(frame.len(), 480 * channels);
            }
            proptest::prop_assert!(jitter.waiting.len() <= MAX_PACKETS);
            proptest::prop_assert!(jitter.pcm.len() <= 48_000);
        }
    }

    /// However many packets get lost and overtake each other, a copy never takes the place of
    /// another packet.
    #[test]
    fn copies_get_the_numbers_that_their_packets_had(
        packets in proptest::collection::vec((0u64..4, 0u64..30, 0u64..3, 1usize..3), 2..80)
    ) {
        // Each packet: whether it is lost, whether a pause of the sender precedes it, by how many
        // it is overtaken, how many copies it has.
        let mut timestamp = 0;
        let mut sent: Vec<(u64, u64)> = Vec::new();
        let mut arrivals = Vec::new();
        for (index, (fate, pause, late, copies)) in packets.iter().enumerate() {
            timestamp += 960 * if *pause == 0 { 12 } else { 1 };
            let seq = 500 + index as u64;
            let offsets: Vec<u32> = sent
                .iter()
                .rev()
                .take(*copies)
                .map(|(_, earlier)| (timestamp - earlier) as u32)
                .take_while(|offset| *offset < 1 << 14)
                .collect();
            let offsets: Vec<u32> = offsets.into_iter().rev().collect();
            sent.push((seq, timestamp));
            if *fate != 0 {
                arrivals.push((seq + late, seq, timestamp, redundant(&offsets)));
            }
        }
        arrivals.sort_by_key(|(arrival, ..)| *arrival);
        let mut jitter = JitterBuffer::new().expect("a decoder");
        let now = Instant::now();
        for (_, extended_seq, rtp_timestamp, payload) in arrivals {
            let packet = RtpAudioPacket { ssrc: 1, extended_seq, rtp_timestamp, payload };
            jitter.push_red(now, packet, 111);
        }
        for pair in waiting(&jitter) {
            proptest::prop_assert!(sent.contains(&pair), "{:?} is none of {:?}", pair, sent);
        }
        proptest::prop_assert!(jitter.waiting.iter().is_sorted_by(|a, b| a.seq < b.seq));
        proptest::prop_assert_eq!(jitter.stats().packets_discarded, 0);
    }
}

#[test]
fn an_empty_packet_with_the_number_of_one_that_waits_takes_nothing_away() {
    let call = Call {
        seconds: 1.0,
        ..Call::default()
    };
    let packets = call.packets();
    let mut jitter = JitterBuffer::new().expect("a decoder");
    let start = Instant::now();
    for (_, packet) in &packets[..10] {
        jitter.push(start, packet.clone());
    }
    let mut frame = Vec::new();
    // Until the first packet is played; the second is the next.
    for tick in 0.. {
        jitter.pull(start + Duration::from_millis(10 * tick), &mut frame);
        if jitter.position.is_some() {
            break;
        }
    }
    let next = jitter.position.expect("it plays").seq;
    assert_eq!(jitter.waiting.front().map(|first| first.seq), Some(next));
    let empty = RtpAudioPacket {
        payload: Arc::from([]),
        extended_seq: next,
        ..packets[0].1.clone()
    };
    jitter.push(start, empty);
    for tick in 20..60 {
        jitter.pull(start + Duration::from_millis(10 * tick), &mut frame);
    }
    let stats = jitter.stats();
    assert_eq!(stats.packets_discarded, 0);
    assert!(stats.jitter_buffer_emitted_count >= 10 * 960, "{stats:?}");
}
