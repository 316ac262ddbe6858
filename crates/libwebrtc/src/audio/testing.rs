//! Sounds and measures that several tests need.

use std::{f64::consts::TAU, sync::OnceLock, time::Instant};

use parking_lot::Mutex;

use super::track::{Pcm, PcmSink};

/// A pure tone, the same on all channels.
pub(crate) fn tone(
    frequency_hz: f64,
    rate_hz: u32,
    channels: usize,
    frames: usize,
    amplitude: f64,
) -> Vec<i16> {
    (0..frames)
        .flat_map(|frame| {
            let phase = frame as f64 * frequency_hz * TAU / f64::from(rate_hz);
            std::iter::repeat_n((phase.sin() * amplitude).round() as i16, channels)
        })
        .collect()
}

/// A vowel at 48 kHz, at a pitch that moves a little, four syllables a second. All of it repeats
/// itself after a second.
pub(crate) fn second_of_voice() -> &'static [i16] {
    static SECOND: OnceLock<Vec<i16>> = OnceLock::new();
    SECOND.get_or_init(|| {
        let formants = [
            (600.0, 250.0, 1.0),
            (1200.0, 300.0, 0.6),
            (2500.0, 400.0, 0.3),
        ];
        let harmonics: Vec<(f64, f64)> = (1..=25)
            .map(|harmonic| {
                let frequency = 120.0 * f64::from(harmonic);
                let strength = formants
                    .iter()
                    .map(|(centre, width, gain)| {
                        gain * (-((frequency - centre) / width).powi(2)).exp()
                    })
                    .sum();
                (f64::from(harmonic), strength)
            })
            .collect();
        (0..48_000)
            .map(|index| {
                let time = f64::from(index) / 48_000.0;
                let phase = time * 120.0 + (time * 3.0 * TAU).sin() * 0.8;
                let buzz: f64 = harmonics
                    .iter()
                    .map(|(harmonic, strength)| strength * (phase * harmonic * TAU).sin())
                    .sum();
                let syllable = 0.55 + 0.45 * (time * 4.0 * TAU).sin();
                (buzz * syllable * 5_000.0) as i16
            })
            .collect()
    })
}

/// The amplitude of a frequency in mono sound, and how much stronger that is than everything else
/// together, in dB.
pub(crate) fn fit_tone(pcm: &[i16], frequency_hz: f64, rate_hz: u32) -> (f64, f64) {
    // Least squares on sine and cosine. They are not quite orthogonal over a piece that is no whole
    // number of periods.
    let (mut ss, mut sc, mut cc, mut xs, mut xc) = (0.0, 0.0, 0.0, 0.0, 0.0);
    let wave = |index: usize| (index as f64 * frequency_hz * TAU / f64::from(rate_hz)).sin_cos();
    for (index, sample) in pcm.iter().enumerate() {
        let (sine, cosine) = wave(index);
        let sample = f64::from(*sample);
        ss += sine * sine;
        sc += sine * cosine;
        cc += cosine * cosine;
        xs += sample * sine;
        xc += sample * cosine;
    }
    let determinant = ss * cc - sc * sc;
    let a = (xs * cc - xc * sc) / determinant;
    let b = (xc * ss - xs * sc) / determinant;
    let (mut signal, mut noise) = (0.0, 0.0);
    for (index, sample) in pcm.iter().enumerate() {
        let (sine, cosine) = wave(index);
        let fitted = a * sine + b * cosine;
        signal += fitted * fitted;
        noise += (f64::from(*sample) - fitted).powi(2);
    }
    (a.hypot(b), 10.0 * (signal / noise.max(1e-9)).log10())
}

/// One channel of interleaved sound.
pub(crate) fn channel(pcm: &[i16], channels: usize, index: usize) -> Vec<i16> {
    pcm.iter().skip(index).step_by(channels).copied().collect()
}

/// A listener that records the sound it gets and when.
#[derive(Default)]
pub(crate) struct Recorder {
    pub frames: Mutex<Vec<(tokio::time::Instant, Vec<i16>)>>,
    pub ended: Mutex<bool>,
}

impl Recorder {
    pub fn samples(&self) -> Vec<i16> {
        let frames = self.frames.lock();
        frames
            .iter()
            .flat_map(|(_, frame)| frame)
            .copied()
            .collect()
    }

    pub fn count(&self) -> usize {
        self.frames.lock().len()
    }
}

impl PcmSink for Recorder {
    fn on_pcm(&self, _at: Instant, pcm: Pcm<'_>) {
        self.frames
            .lock()
            .push((tokio::time::Instant::now(), pcm.samples.to_vec()));
    }

    fn on_ended(&self) {
        *self.ended.lock() = true;
    }
}
