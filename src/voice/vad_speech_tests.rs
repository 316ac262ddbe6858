//! The detector on sound: speech is speech, everything else is not.

use std::f64::consts::TAU;
use std::path::Path;

use super::*;

fn fixture(name: &str) -> Vec<i16> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/audio")
        .join(name);
    let file = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let data = file
        .windows(4)
        .position(|window| window == b"data")
        .expect("a WAV file has data")
        + 8;
    file[data..]
        .chunks_exact(2)
        .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
        .collect()
}

/// Noise with a fixed seed, `level` at most.
fn noise(seconds: f64, level: f64) -> Vec<i16> {
    let mut state = 0x2545_f491_u32;
    (0..(seconds * 16_000.0) as usize)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (f64::from(state as i32) / f64::from(i32::MAX) * level) as i16
        })
        .collect()
}

fn tone(hz: f64, seconds: f64) -> Vec<i16> {
    (0..(seconds * 16_000.0) as usize)
        .map(|n| (8_000.0 * (TAU * hz * n as f64 / 16_000.0).sin()) as i16)
        .collect()
}

fn events(sound: &[i16]) -> Vec<VadEvent> {
    let mut vad = Vad::new(VadConfig::default(), 100);
    let mut events = Vec::new();
    for frame in sound.chunks(160) {
        vad.push(frame, &mut events);
    }
    events
}

#[test]
fn each_line_of_the_caller_is_one_stretch_of_speech() {
    for line in ["hello.wav", "lead.wav", "goodbye.wav"] {
        let speech = fixture(line);
        let quiet = noise(1.0, 20.0);
        let heard = events(&[quiet.clone(), speech.clone(), quiet].concat());
        let started = heard.iter().filter_map(|event| match event {
            VadEvent::Started { onset } => Some(*onset as f64 / 16_000.0),
            _ => None,
        });
        let ended = heard.iter().filter_map(|event| match event {
            VadEvent::Ended { end } => Some(*end as f64 / 16_000.0),
            _ => None,
        });
        let (started, ended): (Vec<f64>, Vec<f64>) = (started.collect(), ended.collect());
        let said = 1.0 + speech.len() as f64 / 16_000.0;
        assert!(
            started.len() == 1 && (0.95..1.04).contains(&started[0]),
            "{line}: begins at {started:?}"
        );
        assert!(
            ended.len() == 1 && (ended[0] - said).abs() < 0.05,
            "{line}: ends at {ended:?} instead of {said}"
        );
    }
}

#[test]
fn silence_noise_and_tones_are_not_speech() {
    let loud_line = noise(5.0, 2_000.0);
    let humming: Vec<i16> = tone(440.0, 5.0)
        .iter()
        .zip(noise(5.0, 800.0))
        .map(|(a, b)| a.saturating_add(b))
        .collect();
    for (what, sound) in [
        ("silence", vec![0; 80_000]),
        ("a quiet line", noise(5.0, 30.0)),
        ("a noisy line", loud_line),
        ("a dial tone", tone(350.0, 5.0)),
        ("a tone in noise", humming),
    ] {
        // A sound that begins may be anything; it has half a second, with which it interrupts nobody.
        let events = events(&sound);
        let quiet_from = match events.as_slice() {
            [] => 0,
            [VadEvent::Started { .. }, .., VadEvent::Ended { end }] if events.len() <= 4 => *end,
            other => panic!("{what} counts as speech: {other:?}"),
        };
        assert!(
            quiet_from < 8_000,
            "{what} counts as speech for {quiet_from} samples"
        );
    }
}

#[test]
#[ignore = "measures; run it with --release -- --ignored --nocapture"]
fn cost_of_one_call() {
    let sound = [fixture("lead.wav"), noise(2.0, 30.0)].concat();
    let began = std::time::Instant::now();
    let rounds = 20;
    for _ in 0..rounds {
        std::hint::black_box(events(&sound));
    }
    let share = began.elapsed().as_secs_f64() / (f64::from(rounds) * sound.len() as f64 / 16_000.0);
    println!(
        "voice activity detection takes {:.3} % of a core",
        share * 100.0
    );
    assert!(share < 0.005);
}
