//! Blocks bytes that are no audio from being played to the caller. Pure.
//!
//! A synthesiser that sends MP3, floats or a web page where samples are expected sends noise at
//! full volume. Such bytes are loud, and their samples are uncorrelated or all on one side of zero.
//! Voices and music are not like that for long: noisy parts of speech are soft, and the samples of
//! loud parts are correlated. So loud, clipped and sung speech passes, and so does music; in speech
//! overdriven by 18 dB, the longest stretch that looks like noise lasts 120 ms.

/// Windows per second: each has 20 ms.
const WINDOWS_PER_S: u32 = 50;

/// Softer audio always passes: -10 dBFS, as a mean square. Random bytes have -4.8 dBFS.
const LOUD: f64 = 10_362.0 * 10_362.0;

/// This many noisy windows in a row mean that it is no audio: 140 ms …
const MAX_IN_A_ROW: u32 = 7;

/// … and so do this many of the last [`RECENT`].
const MAX_OF_RECENT: u32 = 10;

/// Half a second.
const RECENT: u32 = 25;

/// The bytes are no audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IsNoise;

/// Checks the audio of one sentence. Windows that look like noise are held back until the next ones
/// decide.
#[derive(Debug)]
pub(super) struct NoiseGuard {
    window: usize,
    /// Samples of an incomplete window.
    pending: Vec<i16>,
    /// Windows that look like noise, held back.
    held: Vec<i16>,
    /// One bit for each of the last windows, the newest lowest: set if it looked like noise.
    noisy: u32,
    /// Whether any window was audio.
    has_sound: bool,
}

impl NoiseGuard {
    pub(super) fn new(sample_rate_hz: u32) -> Self {
        Self {
            window: (sample_rate_hz / WINDOWS_PER_S).max(1) as usize,
            pending: Vec::new(),
            held: Vec::new(),
            noisy: 0,
            has_sound: false,
        }
    }

    /// Takes samples and returns those that may be played.
    pub(super) fn push(&mut self, sound: &[i16]) -> Result<Vec<i16>, IsNoise> {
        self.pending.extend_from_slice(sound);
        let mut audible = Vec::with_capacity(self.pending.len());
        let whole = self.pending.len() - self.pending.len() % self.window;
        for window in self.pending[..whole].chunks_exact(self.window) {
            let is_noisy = looks_like_noise(window);
            self.noisy = self.noisy << 1 | u32::from(is_noisy);
            if is_noisy {
                self.held.extend_from_slice(window);
            } else {
                self.has_sound = true;
                audible.append(&mut self.held);
                audible.extend_from_slice(window);
            }
            let of_recent = (self.noisy << (u32::BITS - RECENT)).count_ones();
            if self.noisy.trailing_ones() >= MAX_IN_A_ROW || of_recent >= MAX_OF_RECENT {
                return Err(IsNoise);
            }
        }
        self.pending.drain(..whole);
        Ok(audible)
    }

    /// Returns the remaining samples at the end of the sentence.
    pub(super) fn finish(&mut self) -> Result<Vec<i16>, IsNoise> {
        if !self.has_sound && (!self.held.is_empty() || looks_like_noise(&self.pending)) {
            return Err(IsNoise);
        }
        let mut audible = std::mem::take(&mut self.held);
        audible.append(&mut self.pending);
        Ok(audible)
    }
}

/// Whether a complete piece of audio is classified as noise.
pub(super) fn is_noise(sound: &[i16], sample_rate_hz: u32) -> bool {
    let mut guard = NoiseGuard::new(sample_rate_hz);
    guard.push(sound).is_err() || guard.finish().is_err()
}

/// Loud, and either uncorrelated (the difference of neighbours has at least as much energy as the
/// samples; in white noise it has twice as much) or on one side of zero (at least half of the
/// energy is in the mean).
fn looks_like_noise(window: &[i16]) -> bool {
    let count = window.len() as f64;
    let values = || window.iter().map(|sample| f64::from(*sample));
    let energy = values().map(|value| value * value).sum::<f64>() / count;
    if energy < LOUD {
        return false;
    }
    let mean = values().sum::<f64>() / count;
    let neighbours = values().zip(values().skip(1));
    let change = neighbours.map(|(a, b)| (b - a).powi(2)).sum::<f64>() / count;
    change >= energy || mean * mean >= energy / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::TAU;

    const RATE: u32 = 24_000;

    /// Number of samples that pass when audio arrives in pieces, and whether it was classified as
    /// noise.
    fn heard(sound: &[i16], piece: usize) -> (usize, bool) {
        let mut guard = NoiseGuard::new(RATE);
        let mut audible = 0;
        for piece in sound.chunks(piece) {
            match guard.push(piece) {
                Ok(sound) => audible += sound.len(),
                Err(IsNoise) => return (audible, true),
            }
        }
        match guard.finish() {
            Ok(sound) => (audible + sound.len(), false),
            Err(IsNoise) => (audible, true),
        }
    }

    fn as_samples(bytes: &[u8]) -> Vec<i16> {
        bytes
            .chunks_exact(2)
            .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
            .collect()
    }

    fn speech() -> Vec<i16> {
        as_samples(&include_bytes!("../../tests/fixtures/audio/lead.wav")[44..])
    }

    #[test]
    fn bytes_that_are_no_audio_are_not_played() {
        let mp3 = include_bytes!("../../tests/fixtures/cases/speech-as-mp3/speech.mp3");
        let page = "<html><head><title>502 Bad Gateway</title></head></html>\n".repeat(100);
        let floats: Vec<u8> = speech()
            .iter()
            .flat_map(|sample| (f32::from(*sample) / 32_768.0).to_le_bytes())
            .collect();
        let swapped: Vec<i16> = speech().iter().map(|sample| sample.swap_bytes()).collect();
        let one_sided = vec![0x5555_i16; 4_800];
        for (what, sound) in [
            ("MP3", as_samples(mp3)),
            ("MP3 from its second byte on", as_samples(&mp3[1..])),
            ("a short piece of MP3", as_samples(&mp3[200..1_300])),
            ("a web page", as_samples(page.as_bytes())),
            ("filling bytes", one_sided),
        ] {
            for piece in [1, 333, 100_000] {
                assert_eq!(heard(&sound, piece), (0, true), "{what}");
            }
        }
        for (what, sound) in [("floats", as_samples(&floats)), ("swapped bytes", swapped)] {
            let (audible, is_noise) = heard(&sound, 1_000);
            assert!(is_noise, "{what}");
            assert!(audible < RATE as usize / 10, "{audible} samples of {what}");
        }
    }

    #[test]
    fn loud_voices_and_music_are_heard_whole() {
        let louder = |factor: i32| -> Vec<i16> {
            let amplify =
                |sample: &i16| (i32::from(*sample) * factor).clamp(-32_768, 32_767) as i16;
            speech().iter().map(amplify).collect()
        };
        let tone = |parts: &[f64]| -> Vec<i16> {
            (0..48_000)
                .map(|n| {
                    let at = |hz: &f64| (TAU * hz * f64::from(n) / f64::from(RATE)).sin();
                    (parts.iter().map(at).sum::<f64>() / parts.len() as f64 * 32_700.0) as i16
                })
                .collect()
        };
        for (what, sound) in [
            ("a voice", louder(1)),
            ("a voice at full volume", louder(4)),
            ("an overdriven voice", louder(12)),
            ("a beep at full volume", tone(&[1_000.0])),
            ("a chord", tone(&[262.0, 330.0, 392.0, 1_046.0, 3_500.0])),
            ("nothing", vec![]),
            ("silence", vec![0; 5_000]),
        ] {
            for piece in [7, 4_096] {
                assert_eq!(heard(&sound, piece), (sound.len(), false), "{what}");
            }
        }
    }
}
