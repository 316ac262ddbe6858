//! The background noise of a stream, played during gaps: when speech breaks off for long, complete
//! silence would be taken for a lost call.
//!
//! The level of the background comes from the quietest blocks of the last seconds; speech always
//! has some. Its spectrum comes from an all-pole filter fitted to the autocorrelation of these
//! blocks, as speech codecs and Google's NetEq do it. A background of digital silence stays silent.

use std::collections::VecDeque;

use super::TICK_SAMPLES;

/// Poles of the filter: enough for the slope of a room's noise and one or two peaks. Google's
/// number.
const ORDER: usize = 8;

/// The quietest block is searched in so many stretches of so many blocks of 10 ms: five to six
/// seconds. Speakers pause more often than that.
const STRETCHES: usize = 5;
const STRETCH_BLOCKS: usize = 100;

/// Before so many blocks nothing is known about the background.
const LEARNING_BLOCKS: usize = 50;

/// Weight of a block in the smoothed level, so that one block alone does not decide it.
const MOMENT_WEIGHT: f64 = 0.3;

/// A block is background up to this many times the energy of the quietest level (6 dB): noise is
/// never quite even.
const BACKGROUND_RANGE: f64 = 4.0;

/// Weight of a block of background in the mean autocorrelation.
const LEARNING_WEIGHT: f64 = 0.1;

/// Quieter than this is inaudible: -80 dBov, as mean square of samples.
const QUIETEST: f64 = 32_768.0 * 32_768.0 * 1e-8;

/// No background is louder than this: -45 dBov. Anything louder is music or a tone, and hiss of
/// that level would not continue it.
const LOUDEST: f64 = 32_768.0 * 32_768.0 * 3.162e-5;

/// White noise this far below the background is added before the filter is calculated, which keeps
/// it stable where a band is empty.
const CONDITIONING: f64 = 1e-4;

/// The background of one stream.
#[derive(Debug)]
pub(crate) struct BackgroundNoise {
    /// Smoothed energy of the last blocks.
    moment: f64,
    /// The quietest levels of the last stretches, that of the current one last.
    quietest: VecDeque<f64>,
    blocks: usize,
    /// Mean autocorrelation of the background for each sample, in squares of samples.
    correlation: [f64; ORDER + 1],
    /// The last samples that were made, the newest first.
    history: [f64; ORDER],
    random: u32,
}

impl Default for BackgroundNoise {
    fn default() -> Self {
        Self {
            moment: 0.0,
            quietest: VecDeque::new(),
            blocks: 0,
            correlation: [0.0; ORDER + 1],
            history: [0.0; ORDER],
            random: 0x9e37_79b9,
        }
    }
}

impl BackgroundNoise {
    /// Forgets everything, as with a new stream.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Analyses interleaved sound that was received.
    pub fn listen(&mut self, pcm: &[i16], channels: usize) {
        for block in pcm.chunks_exact(TICK_SAMPLES * channels) {
            let mut mono = [0.0; TICK_SAMPLES];
            for (sample, frame) in mono.iter_mut().zip(block.chunks_exact(channels)) {
                let sum: f64 = frame.iter().map(|sample| f64::from(*sample)).sum();
                *sample = sum / channels as f64;
            }
            self.listen_to_block(&mono);
        }
    }

    fn listen_to_block(&mut self, block: &[f64]) {
        let energy = correlation(block, 0);
        self.moment = match self.blocks {
            0 => energy,
            _ => self.moment + (energy - self.moment) * MOMENT_WEIGHT,
        };
        if self.blocks.is_multiple_of(STRETCH_BLOCKS) {
            self.quietest.push_back(f64::MAX);
            if self.quietest.len() > STRETCHES + 1 {
                self.quietest.pop_front();
            }
        }
        self.blocks += 1;
        if let Some(running) = self.quietest.back_mut() {
            *running = running.min(self.moment);
        }
        let floor = self.quietest.iter().copied().fold(f64::MAX, f64::min);
        if energy > (floor * BACKGROUND_RANGE).max(QUIETEST) {
            return;
        }
        // The background learned so far may have been speech.
        let weight = match self.correlation[0] > energy * BACKGROUND_RANGE {
            true => 1.0,
            false => LEARNING_WEIGHT,
        };
        for (lag, known) in self.correlation.iter_mut().enumerate() {
            *known += (correlation(block, lag) - *known) * weight;
        }
    }

    /// Whether there is anything to be heard.
    fn is_audible(&self) -> bool {
        self.blocks >= LEARNING_BLOCKS && self.correlation[0] > QUIETEST
    }

    /// Adds background to interleaved sound. `loudness` gives its share for each sample, from 0 to
    /// 1, by the sample's index.
    pub fn mix(&mut self, pcm: &mut [i16], channels: usize, loudness: impl Fn(usize) -> f64) {
        if !self.is_audible() {
            return;
        }
        let (filter, residual) = all_pole_filter(&self.correlation);
        let limit = (LOUDEST / self.correlation[0]).min(1.0);
        // The mean square of a uniform distribution from -1 to 1 is a third.
        let gain = (3.0 * residual * limit).sqrt();
        for (index, frame) in pcm.chunks_exact_mut(channels).enumerate() {
            let past: f64 = filter
                .iter()
                .zip(&self.history)
                .map(|(weight, sample)| weight * sample)
                .sum();
            let sample = past + gain * self.roll();
            self.history.rotate_right(1);
            self.history[0] = sample;
            let added = (sample * loudness(index)).round() as i16;
            for sample in frame {
                *sample = sample.saturating_add(added);
            }
        }
    }

    /// A random number from -1 to 1 (xorshift).
    fn roll(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        f64::from(self.random) / f64::from(u32::MAX) * 2.0 - 1.0
    }
}

/// Mean product of a block with itself `lag` samples later.
fn correlation(block: &[f64], lag: usize) -> f64 {
    let pairs = block.iter().zip(&block[lag..]);
    pairs.map(|(one, other)| one * other).sum::<f64>() / block.len() as f64
}

/// Weights with which past samples predict the next one, and the mean square of what they cannot
/// predict (Levinson's and Durbin's recursion).
fn all_pole_filter(correlation: &[f64; ORDER + 1]) -> ([f64; ORDER], f64) {
    let mut weights = [0.0; ORDER];
    let mut error = correlation[0] * (1.0 + CONDITIONING);
    for order in 0..ORDER {
        let predicted: f64 = (0..order)
            .map(|index| weights[index] * correlation[order - index])
            .sum();
        let reflection = (correlation[order + 1] - predicted) / error;
        let before = weights;
        weights[order] = reflection;
        for index in 0..order {
            weights[index] = before[index] - reflection * before[order - 1 - index];
        }
        error *= 1.0 - reflection * reflection;
    }
    (weights, error)
}

#[cfg(test)]
mod tests {
    use super::{super::OPUS_RATE_HZ, *};

    const SECOND: usize = OPUS_RATE_HZ as usize;

    fn white(frames: usize, amplitude: f64) -> Vec<i16> {
        let mut source = BackgroundNoise::default();
        (0..frames)
            .map(|_| (source.roll() * amplitude) as i16)
            .collect()
    }

    /// Level in dB, and how much of the energy is in the difference of neighbours: 2 for white
    /// noise, less the lower it sounds.
    fn sound(pcm: &[i16]) -> (f64, f64) {
        let square = |sample: f64| sample * sample;
        let energy: f64 = pcm.iter().map(|sample| square(f64::from(*sample))).sum();
        let difference: f64 = pcm
            .windows(2)
            .map(|two| square(f64::from(two[1]) - f64::from(two[0])))
            .sum();
        let mean = energy / pcm.len() as f64;
        (
            10.0 * (mean / 32_768.0f64.powi(2)).log10(),
            difference / energy,
        )
    }

    fn made(noise: &mut BackgroundNoise) -> Vec<i16> {
        let mut pcm = vec![0; SECOND];
        noise.mix(&mut pcm, 1, |_| 1.0);
        pcm
    }

    #[test]
    fn background_is_continued_with_its_level_and_colour() {
        for smoothing in [0.0, 0.5, 0.9] {
            for amplitude in [30.0, 100.0, 250.0] {
                let mut last = 0.0;
                let background: Vec<i16> = white(3 * SECOND, amplitude)
                    .iter()
                    .map(|sample| {
                        last = smoothing * last + (1.0 - smoothing) * f64::from(*sample);
                        last.round() as i16
                    })
                    .collect();
                let mut noise = BackgroundNoise::default();
                noise.listen(&background, 1);
                let (heard, continued) = (sound(&background), sound(&made(&mut noise)));
                if heard.0 < -79.0 {
                    continue;
                }
                assert!(
                    (heard.0 - continued.0).abs() < 1.5,
                    "{heard:?} {continued:?}"
                );
                assert!(
                    (heard.1 / continued.1 - 1.0).abs() < 0.3,
                    "{heard:?} {continued:?}"
                );
            }
        }
    }

    #[test]
    fn speech_is_no_background_if_there_are_pauses() {
        let background = white(SECOND / 2, 100.0);
        let loud = white(SECOND * 2, 12_000.0);
        let mut noise = BackgroundNoise::default();
        for _ in 0..3 {
            noise.listen(&loud, 1);
            noise.listen(&background, 1);
        }
        noise.listen(&loud, 1);
        let (level, _) = sound(&made(&mut noise));
        assert!((level - sound(&background).0).abs() < 2.0, "{level} dB");
    }

    #[test]
    fn digital_silence_and_what_is_not_known_stay_silent() {
        let mut noise = BackgroundNoise::default();
        noise.listen(&white(SECOND / 4, 500.0), 1);
        assert_eq!(made(&mut noise), vec![0; SECOND], "too early");
        noise.listen(&white(SECOND, 9_000.0), 1);
        noise.listen(&vec![0; SECOND / 2], 1);
        noise.listen(&white(SECOND, 9_000.0), 1);
        assert_eq!(made(&mut noise), vec![0; SECOND]);
    }

    #[test]
    fn what_never_pauses_is_not_continued_loudly() {
        let mut noise = BackgroundNoise::default();
        let music: Vec<i16> = (0..6 * SECOND)
            .map(|index| ((index as f64 * 0.06).sin() * 15_000.0) as i16)
            .collect();
        noise.listen(&music, 1);
        let (level, _) = sound(&made(&mut noise));
        assert!(level < -40.0, "{level} dB");
    }

    #[test]
    fn the_filter_is_stable_whatever_was_heard() {
        for period in [2, 3, 7, 50, 480] {
            let mut noise = BackgroundNoise::default();
            let sound: Vec<i16> = (0..SECOND)
                .map(|index| if index % period == 0 { 300 } else { -20 })
                .collect();
            noise.listen(&sound, 1);
            for _ in 0..20 {
                let pcm = made(&mut noise);
                assert!(pcm.iter().all(|sample| sample.abs() < 8_000), "{period}");
            }
        }
    }
}
