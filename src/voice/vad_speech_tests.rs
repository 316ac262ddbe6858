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
        // A sound that begins may be anything; it has half a second, with which it interrupts
        // nobody.
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

/// The sounds of `tones-and-music`, made as its script makes them, and those of exchanges.
fn tones() -> Vec<(&'static str, Vec<i16>)> {
    const CHORDS: [[f64; 3]; 4] = [
        [262.0, 330.0, 392.0],
        [220.0, 262.0, 330.0],
        [175.0, 220.0, 262.0],
        [196.0, 247.0, 294.0],
    ];
    const ROWS_HZ: [f64; 4] = [697.0, 770.0, 852.0, 941.0];
    const COLUMNS_HZ: [f64; 3] = [1_209.0, 1_336.0, 1_477.0];
    let sine = |hz: f64, t: f64| (TAU * hz * t).sin();
    let make = |level: f64, wave: &dyn Fn(f64) -> f64| -> Vec<i16> {
        let wave: Vec<f64> = (0..8 * 16_000)
            .map(|n| wave(f64::from(n) / 16_000.0))
            .collect();
        let highest = wave
            .iter()
            .fold(0.0, |highest: f64, value| highest.max(value.abs()));
        wave.iter()
            .map(|value| (value / highest * level) as i16)
            .collect()
    };
    let chord = |t: f64, phase: &dyn Fn(f64) -> f64| -> f64 {
        let notes = CHORDS[t as usize % 4].iter();
        notes
            .flat_map(|hz| [1.0, 2.0, 3.0].map(|harmonic| (hz, harmonic)))
            .map(|(hz, harmonic)| (TAU * hz * harmonic * phase(t)).sin() / harmonic)
            .sum()
    };
    let beeps = |t: f64| if t % 2.0 < 0.5 { sine(440.0, t) } else { 0.0 };
    let keys = |t: f64| {
        let key = (t / 0.35) as usize;
        let is_pressed = key < 20 && t - key as f64 * 0.35 < 0.2;
        let pair = sine(ROWS_HZ[key % 4], t) + sine(COLUMNS_HZ[key % 3], t);
        if is_pressed { pair } else { 0.0 }
    };
    let busy = |t: f64| {
        if t % 1.0 < 0.5 {
            sine(480.0, t) + sine(620.0, t)
        } else {
            0.0
        }
    };
    let ringing = |t: f64| {
        let level = if t % 3.0 < 1.0 {
            1.0 + 0.8 * sine(25.0, t)
        } else {
            0.0
        };
        level * sine(400.0, t)
    };
    let unobtainable = |t: f64| match t % 2.0 {
        at if at < 0.33 => sine(950.0, t),
        at if at < 0.66 => sine(1_400.0, t),
        at if at < 1.0 => sine(1_800.0, t),
        _ => 0.0,
    };
    vec![
        ("beeps", make(12_000.0, &beeps)),
        ("keys", make(14_000.0, &keys)),
        ("chords", make(12_000.0, &|t| chord(t, &|t| t))),
        (
            "wavering chords",
            make(12_000.0, &|t| {
                chord(t, &|t| t * (1.0 + 0.002 * sine(5.0, t)))
            }),
        ),
        ("a busy line", make(12_000.0, &busy)),
        ("ringing", make(12_000.0, &ringing)),
        (
            "the tones before \u{201c}not in service\u{201d}",
            make(12_000.0, &unobtainable),
        ),
    ]
}

fn mixed(sound: &[i16], other: &[i16]) -> Vec<i16> {
    let pairs = sound.iter().zip(other);
    pairs.map(|(a, b)| a.saturating_add(*b)).collect()
}

/// There and back through G.711 with \u{b5}-law (ITU-T G.711, table 2a): noise that is as loud as
/// the sound is.
fn by_telephone(sound: &[i16]) -> Vec<i16> {
    let companded = |sample: &i16| {
        let size = i32::from(*sample).abs().min(32_635) + 132;
        let exponent = (size.ilog2() as i32 - 7).max(0);
        let step = (size >> (exponent + 3)) & 15;
        let size = (((step << 3) + 132) << exponent) - 132;
        (size * i32::from(*sample).signum()) as i16
    };
    sound.iter().map(companded).collect()
}

#[test]
fn tones_and_music_start_no_speech() {
    for (what, sound) in tones() {
        let quieter: Vec<i16> = sound.iter().map(|sample| sample / 4).collect();
        for (how, sound) in [
            ("alone", sound.clone()),
            ("on a line with noise", mixed(&sound, &noise(8.0, 100.0))),
            ("by telephone", by_telephone(&sound)),
            ("softly by telephone", by_telephone(&quieter)),
        ] {
            let sound = [sound, vec![0; 8_000]].concat();
            assert_eq!(events(&sound), [], "{what} {how}");
        }
    }
}

#[test]
fn speech_after_a_tone_is_heard_from_its_beginning() {
    for line in ["hello.wav", "lead.wav", "goodbye.wav"] {
        let speech = fixture(line);
        let beep = tone(1_000.0, 1.0);
        let pause = noise(0.4, 20.0);
        let sound = [&beep[..], &pause, &speech, &noise(0.5, 20.0)].concat();
        let begins = 1.4;
        for sound in [sound.clone(), by_telephone(&sound)] {
            let started: Vec<f64> = events(&sound)
                .iter()
                .filter_map(|event| match event {
                    VadEvent::Started { onset } => Some(*onset as f64 / 16_000.0),
                    _ => None,
                })
                .collect();
            assert!(
                started.len() == 1 && (started[0] - begins).abs() < 0.06,
                "{line} begins at {started:?} instead of {begins}"
            );
        }
    }
}

/// Whether a sound is music, and whether it may be.
fn music(sound: &[i16]) -> (bool, bool) {
    let mut vad = Vad::new(VadConfig::default(), 100);
    vad.push(sound, &mut Vec::new());
    assert!(vad.in_speech(), "nothing was heard");
    (vad.is_music(), vad.may_be_music())
}

/// The stretches of a sound that are sent to recognition, from and to, s.
fn sent(sound: &[i16]) -> Vec<(f64, f64)> {
    let mut vad = Vad::new(VadConfig::default(), 100);
    let seconds = |position: u64| position as f64 / 16_000.0;
    let (mut from, mut sent) = (0.0, Vec::new());
    for frame in sound.chunks(160) {
        let mut events = Vec::new();
        vad.push(frame, &mut events);
        for event in events {
            match event {
                VadEvent::Ended { end } if !vad.is_music() => sent.push((from, seconds(end))),
                VadEvent::Started { onset } => from = seconds(onset),
                _ => {}
            }
        }
    }
    sent
}

/// How much of the time between `from` and `to` is sent, s.
fn sent_between(sound: &[i16], from: f64, to: f64) -> f64 {
    let within = sent(sound).into_iter();
    within
        .map(|(a, b)| (b.min(to) - a.max(from)).max(0.0))
        .sum()
}

fn louder(sound: &[i16], factor: f64) -> Vec<i16> {
    let amplified = |sample: &i16| (f64::from(*sample) * factor) as i16;
    sound.iter().map(amplified).collect()
}

/// Music in which no note stays: a voice-like tone whose pitch slides, in strokes.
fn slides(seconds: f64) -> Vec<i16> {
    let mut phase = 0.0;
    (0..(seconds * 16_000.0) as usize)
        .map(|n| {
            let t = n as f64 / 16_000.0;
            phase += (180.0 + 40.0 * (TAU * 1.3 * t).sin()) / 16_000.0;
            let wave: f64 = (1..18)
                .map(|harmonic| (TAU * f64::from(harmonic) * phase).sin() / f64::from(harmonic))
                .sum();
            let stroke = 0.4 + 0.6 * (TAU * 3.0 * t).sin().abs();
            (wave * stroke * 4_000.0) as i16
        })
        .collect()
}

/// Full chords of a band with drums: harmonics up to 6 kHz, a stroke each third of a second.
fn band() -> Vec<i16> {
    let strokes = noise(4.0, 6_000.0);
    let played = |n: usize| -> f64 {
        let t = n as f64 / 16_000.0;
        let root = [196.0, 220.0, 262.0, 175.0][t as usize % 4];
        let notes = [1.0, 1.25, 1.5, 2.0].map(|interval| root * interval);
        let harmonics = |hz: f64| -> f64 {
            (1..24)
                .take_while(|harmonic| hz * f64::from(*harmonic) < 6_000.0)
                .map(|harmonic| (TAU * hz * f64::from(harmonic) * t).sin() / f64::from(harmonic))
                .sum()
        };
        notes.iter().map(|hz| harmonics(*hz)).sum::<f64>() * 2_000.0
    };
    let fading = |n: usize| (-((n % 5_333) as f64) / 800.0).exp();
    (0..4 * 16_000)
        .map(|n| (played(n) + f64::from(strokes[n]) * (0.03 + fading(n))) as i16)
        .collect()
}

#[test]
fn music_is_not_taken_for_words_and_speech_before_music_is() {
    let band = band();
    assert_eq!(music(&band), (true, true));
    let speech = fixture("lead.wav");
    assert_eq!(music(&speech[..48_000]), (false, false));
    let behind: Vec<i16> = band.iter().map(|sample| sample / 6).collect();
    assert!(!music(&mixed(&speech[..48_000], &behind)).0);
    let tone = tone(600.0, 0.2);
    let alternating: Vec<i16> = speech[..32_000]
        .chunks(3_200)
        .flat_map(|piece| [piece, &tone].concat())
        .collect();
    assert_eq!(music(&alternating), (false, true));
}

#[test]
fn music_without_notes_is_more_of_the_music_before_it() {
    let slides = slides(3.0);
    let said = [&slides[..], &vec![0; 8_000]].concat();
    let alone = sent_between(&said, 0.0, 3.0);
    assert!(alone > 2.0, "it is taken for speech: {alone} s");
    let band = [band(), band()].concat();
    let after_music = [&band[..], &slides, &band, &vec![0; 8_000]].concat();
    assert_eq!(sent_between(&after_music, 1.0, 20.0), 0.0);
}

#[test]
fn hold_music_without_end_is_not_sent_piece_by_piece() {
    let minute = band().repeat(16);
    let sent = sent(&minute);
    assert!(
        sent.iter().all(|(_, to)| *to < 4.0),
        "only its beginning may be anything: {sent:?}"
    );
}

#[test]
fn whoever_speaks_over_music_is_heard() {
    let speech = fixture("lead.wav");
    let seconds = speech.len() as f64 / 16_000.0;
    let music = louder(&band().repeat(6), 0.2);
    let mut sound = music;
    let from = 8 * 16_000;
    let voice = louder(&speech, 2.0);
    for (sample, said) in sound[from..].iter_mut().zip(&voice) {
        *sample = sample.saturating_add(*said);
    }
    let heard = sent_between(&sound, 8.0, 8.0 + seconds);
    assert!(heard > 0.9 * seconds, "{heard} of {seconds} s");
}

#[test]
fn whoever_speaks_when_the_music_is_over_is_heard_however_softly() {
    for line in ["hello.wav", "goodbye.wav"] {
        let speech = louder(&fixture(line), 0.3);
        let seconds = speech.len() as f64 / 16_000.0;
        for pause in [0.3, 1.0, 4.0] {
            let quiet = noise(pause, 20.0);
            let band = louder(&band().repeat(3), 1.5);
            let sound = [&band[..], &quiet, &speech, &noise(0.5, 20.0)].concat();
            let begins = 12.0 + pause;
            let heard = sent_between(&sound, begins, begins + seconds);
            assert!(
                heard > 0.8 * seconds,
                "{line} {pause} s after the music: {heard} of {seconds} s"
            );
        }
    }
}

#[test]
fn a_beep_is_no_music_that_speech_has_to_be_louder_than() {
    let speech = louder(&fixture("hello.wav"), 0.3);
    let seconds = speech.len() as f64 / 16_000.0;
    let beep = louder(&tone(1_000.0, 0.8), 2.0);
    let sound = [&beep[..], &noise(0.1, 20.0), &speech, &noise(0.5, 20.0)].concat();
    let heard = sent_between(&sound, 0.9, 0.9 + seconds);
    assert!(heard > 0.8 * seconds, "{heard} of {seconds} s");
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
