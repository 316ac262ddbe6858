//! Distinguishes tones and music from voices. Pure.
//!
//! The speech detector takes both for a voice, because they are periodic, too. Two properties
//! distinguish them, measured on 26 minutes of prompts by five speakers, on espeak's voices, and on
//! hold music:
//!
//! - *A tone is thin.* A voice fills the band of the telephone: its formants and its breath lie
//!   between its harmonics, 45 dB below them at most. A beep, a key or a chord is a few lines with
//!   nothing in between. Noise fills the band, so that a tone under noise is not found.
//! - *Notes stay.* The pitch of a voice always moves, so that its harmonics above 800 Hz do not
//!   stay in place for a quarter of a second. Those of a note do: there is such a line in 66 % of
//!   the windows of hold music and in 0.2 % of those of speech. Lines that are faint beside the
//!   rest do not count, so that somebody who speaks before a radio is heard.

use std::collections::VecDeque;
use std::f32::consts::TAU;
use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

use super::INPUT_SAMPLE_RATE_HZ;

/// For tones: 32 ms at 16 kHz, lines 31 Hz apart.
const TONE_SPAN: usize = 512;

/// For notes: 64 ms, lines 16 Hz apart.
const NOTE_SPAN: usize = 1_024;

/// The band that every telephone passes, in Hz.
const BAND_HZ: (u32, u32) = (250, 3_750);

/// A line this far below the strongest one counts as absent. G.711 adds noise 38 dB below the
/// sound, spread over all lines: 62 dB below.
const RANGE_DB: f32 = 45.0;

/// Three tones with three harmonics each fill 0.4 of the band, a vowel 0.6 and more.
const FILLED: f32 = 0.45;

/// A strongest line below this is too soft to be classified, in dB over an amplitude of one.
const TOO_SOFT_DB: f32 = 45.0;

/// The band in which notes are detected, in Hz: below it, the harmonics of a voice do not move far
/// enough.
const NOTES_HZ: (u32, u32) = (800, 3_500);

/// A line is a peak when it is this far above the mean of its neighbours …
const STANDS_OUT_DB: f32 = 6.0;

/// … which are this many lines to either side …
const SURROUNDINGS: usize = 8;

/// … and at most this far below the strongest.
const FAINT_DB: f32 = 10.0;

/// A line that is a peak in this many of the last [`NOTE_WINDOWS`] windows is a note.
const NOTE_STAYS: u8 = 12;

/// 256 ms.
const NOTE_WINDOWS: usize = 16;

/// The classification of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Texture {
    /// A few lines with nothing between them.
    pub(super) is_tone: bool,
    /// Peaks that have stayed in place for a while.
    pub(super) is_note: bool,
}

/// Classifies an audio stream, window by window.
pub(super) struct ToneDetector {
    /// The last [`NOTE_SPAN`] samples.
    sound: Vec<i16>,
    tones: Spectrum,
    notes: Spectrum,
    /// Which lines were peaks in each of the last windows, and how often each was one.
    standing_out: VecDeque<Vec<bool>>,
    counts: Vec<u8>,
}

impl ToneDetector {
    pub(super) fn new() -> Self {
        let (from, to) = lines(NOTES_HZ, NOTE_SPAN);
        Self {
            sound: vec![0; NOTE_SPAN],
            tones: Spectrum::new(TONE_SPAN),
            notes: Spectrum::new(NOTE_SPAN),
            standing_out: VecDeque::with_capacity(NOTE_WINDOWS),
            counts: vec![0; to - from],
        }
    }

    /// Classifies the next window, which is not longer than a span.
    pub(super) fn hear(&mut self, window: &[i16]) -> Texture {
        self.sound.drain(..window.len());
        self.sound.extend_from_slice(window);
        Texture {
            is_tone: self.is_tone(),
            is_note: self.is_note(),
        }
    }

    /// Resets all state.
    pub(super) fn reset(&mut self) {
        self.sound.fill(0);
        self.standing_out.clear();
        self.counts.fill(0);
    }

    fn is_tone(&mut self) -> bool {
        let levels = self.tones.levels(&self.sound[NOTE_SPAN - TONE_SPAN..]);
        let (from, to) = lines(BAND_HZ, TONE_SPAN);
        let band = &levels[from..to];
        let strongest = band.iter().copied().fold(f32::MIN, f32::max);
        let filled = band.iter().filter(|level| **level > strongest - RANGE_DB);
        strongest >= TOO_SOFT_DB && (filled.count() as f32) < FILLED * band.len() as f32
    }

    fn is_note(&mut self) -> bool {
        let levels = self.notes.levels(&self.sound);
        let (from, to) = lines(NOTES_HZ, NOTE_SPAN);
        let strongest = levels[from..to].iter().copied().fold(f32::MIN, f32::max);
        let least = (strongest - FAINT_DB).max(TOO_SOFT_DB - FAINT_DB);
        let stands_out: Vec<bool> = (from..to)
            .map(|at| {
                let around = &levels[at - SURROUNDINGS..=at + SURROUNDINGS];
                let mean = around.iter().sum::<f32>() / around.len() as f32;
                let level = levels[at];
                level > least
                    && level > mean + STANDS_OUT_DB
                    && level >= levels[at - 1]
                    && level >= levels[at + 1]
            })
            .collect();
        for (count, stands_out) in self.counts.iter_mut().zip(&stands_out) {
            *count += u8::from(*stands_out);
        }
        self.standing_out.push_back(stands_out);
        if self.standing_out.len() > NOTE_WINDOWS
            && let Some(oldest) = self.standing_out.pop_front()
        {
            for (count, stood_out) in self.counts.iter_mut().zip(oldest) {
                *count -= u8::from(stood_out);
            }
        }
        self.counts.iter().any(|count| *count >= NOTE_STAYS)
    }
}

/// The lines of a spectrum in a band, from the first to the one after the last.
fn lines(band_hz: (u32, u32), span: usize) -> (usize, usize) {
    let line = |hz: u32| hz as usize * span / INPUT_SAMPLE_RATE_HZ as usize;
    (line(band_hz.0), line(band_hz.1))
}

/// Computes the levels of spectral lines.
pub(super) struct Spectrum {
    fft: Arc<dyn RealToComplex<f32>>,
    /// The Hann window.
    weights: Vec<f32>,
    input: Vec<f32>,
    output: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
    levels: Vec<f32>,
}

impl Spectrum {
    pub(super) fn new(span: usize) -> Self {
        let fft = RealFftPlanner::new().plan_fft_forward(span);
        let weights = (0..span)
            .map(|n| 0.5 - 0.5 * (TAU * n as f32 / span as f32).cos())
            .collect();
        Self {
            weights,
            input: fft.make_input_vec(),
            output: fft.make_output_vec(),
            scratch: fft.make_scratch_vec(),
            levels: vec![0.0; span / 2 + 1],
            fft,
        }
    }

    /// Levels in dB over a sine with an amplitude of one. `sound` has the length of the span.
    pub(super) fn levels(&mut self, sound: &[i16]) -> &[f32] {
        for ((input, sample), weight) in self.input.iter_mut().zip(sound).zip(&self.weights) {
            *input = f32::from(*sample) * weight;
        }
        self.fft
            .process_with_scratch(&mut self.input, &mut self.output, &mut self.scratch)
            .expect("all three vectors were made for this transform");
        // A sine of amplitude 1 has a line of a quarter of the span.
        let one = (sound.len() as f32 / 4.0).powi(2);
        for (level, line) in self.levels.iter_mut().zip(&self.output) {
            *level = 10.0 * (line.norm_sqr() / one + 1e-9).log10();
        }
        &self.levels
    }
}
