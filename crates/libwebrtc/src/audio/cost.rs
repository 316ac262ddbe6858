//! What the audio path costs. Not run by default, since only an optimised build on a quiet machine tells anything:
//! `cargo test --release -p libwebrtc audio::cost -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use super::{
    encoder::{EncodedAudio, OpusSendConfig, PacketEncoder, RtpClock},
    jitter::{JitterBuffer, RtpAudioPacket},
    resample::AudioResampler,
    testing::second_of_voice,
    track::Pcm,
};

const SECONDS: u32 = 20;

/// Of a core, for each direction of a call. About 0.9 % to send and 0.15 % to receive were measured on a busy machine.
const MOST: f64 = 0.015;

/// Runs a work that takes `SECONDS` of sound some times and answers the quickest, as a share of real time.
fn share_of_a_core(what: &str, mut work: impl FnMut()) -> f64 {
    let quickest = (0..5)
        .map(|_| {
            let before = thread_cpu_time();
            work();
            thread_cpu_time() - before
        })
        .min()
        .unwrap_or_default();
    let share = quickest.as_secs_f64() / f64::from(SECONDS);
    println!("{what}: {:.3} % of a core", share * 100.0);
    share
}

/// The time that this thread was on a core, as Linux counts it in nanoseconds; elsewhere the time of day.
fn thread_cpu_time() -> Duration {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .map_or_else(
            || std::time::UNIX_EPOCH.elapsed().unwrap_or_default(),
            Duration::from_nanos,
        )
}

fn encode(config: OpusSendConfig, loss_percent: u8, rate_hz: u32) -> Vec<EncodedAudio> {
    let mut encoder = PacketEncoder::new(config, RtpClock::starting_at(0)).expect("an encoder");
    encoder.set_packet_loss_percent(loss_percent);
    let start = Instant::now();
    let mut packets = Vec::new();
    for second in 0..SECONDS {
        for (tick, samples) in second_of_voice().chunks(480).enumerate() {
            // At other rates the same samples count as lower sound, for 10 ms all the same.
            let samples = &samples[..rate_hz as usize / 100];
            let now = start + Duration::from_millis(u64::from(second) * 1000 + 10 * tick as u64);
            let pcm = Pcm {
                samples,
                sample_rate_hz: rate_hz,
                channels: 1,
            };
            encoder.push(now, pcm);
            packets.extend(std::iter::from_fn(|| encoder.next_packet()));
        }
    }
    packets
}

/// Receives packets of which every tenth gets lost if `lossy`.
fn receive(packets: &[EncodedAudio], jitter_ms: u64, lossy: bool, resample_to_hz: Option<u32>) {
    let mut jitter = JitterBuffer::new().expect("a decoder");
    let mut resampler = AudioResampler::default();
    let start = Instant::now();
    let mut frame = Vec::new();
    let mut arrivals: Vec<(u64, usize)> = (0..packets.len())
        .filter(|index| !lossy || index % 10 != 3)
        .map(|index| {
            let late = (index as u64 * 7919) % (jitter_ms + 1);
            (index as u64 * 20 + late, index)
        })
        .collect();
    arrivals.sort_unstable();
    let mut arrivals = arrivals.into_iter().peekable();
    for tick in 0..u64::from(SECONDS) * 100 {
        let now_ms = tick * 10;
        while let Some((at, index)) = arrivals.next_if(|(at, _)| *at <= now_ms) {
            let packet = RtpAudioPacket {
                ssrc: 1,
                extended_seq: index as u64,
                rtp_timestamp: u64::from(packets[index].rtp_timestamp),
                payload: packets[index].payload.as_slice().into(),
            };
            jitter.push(start + Duration::from_millis(at), packet);
        }
        let channels = jitter.pull(start + Duration::from_millis(now_ms), &mut frame);
        if let Some(rate_hz) = resample_to_hz {
            let pcm = Pcm {
                samples: &frame,
                sample_rate_hz: 48_000,
                channels,
            };
            std::hint::black_box(resampler.convert(pcm, 1, rate_hz));
        }
    }
}

#[test]
#[ignore = "only an optimised build on a quiet machine tells anything"]
fn each_direction_takes_about_a_hundredth_of_a_core_at_most() {
    second_of_voice();
    let plain = OpusSendConfig::default();
    let mut shares = vec![
        share_of_a_core("encode 48 kHz", || drop(encode(plain, 0, 48_000))),
        share_of_a_core("encode 48 kHz, 10 % loss", || {
            drop(encode(plain, 10, 48_000))
        }),
        share_of_a_core("resample 24 kHz and encode", || {
            drop(encode(plain, 0, 24_000))
        }),
    ];
    let packets = encode(plain, 0, 48_000);
    for jitter_ms in [0, 60] {
        shares.push(share_of_a_core(
            &format!("receive, {jitter_ms} ms of jitter"),
            || {
                receive(&packets, jitter_ms, false, None);
            },
        ));
    }
    let protected = encode(plain, 10, 48_000);
    shares.push(share_of_a_core("receive, 10 % loss", || {
        receive(&protected, 0, true, None);
    }));
    shares.push(share_of_a_core("receive and resample to 16 kHz", || {
        receive(&packets, 0, false, Some(16_000));
    }));
    assert!(shares.iter().all(|share| *share < MOST), "{shares:?}");
}
