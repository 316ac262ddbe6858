//! Resamples from the synthesiser's sample rate to the output's with a polyphase filter: a windowed
//! sinc, one branch for each phase.

use std::f64::consts::PI;

/// Length of each branch. With 16 taps the images of speech are about 60 dB down, which is below
/// what Opus encodes.
const TAPS: usize = 16;

/// The largest number of phases; rates that need more do not occur in audio.
const MAX_PHASES: u32 = 1_024;

/// Resamples one mono stream.
#[derive(Debug, Clone)]
pub struct Resampler {
    /// Output samples for each `down` input samples.
    up: usize,
    down: usize,
    /// `up` branches of `TAPS` coefficients.
    branches: Vec<f32>,
    history: Vec<i16>,
    /// Phase of the next output sample, in `1 / up` of an input sample, relative to the window at
    /// the start of `history`.
    phase: usize,
}

impl Resampler {
    /// A resampler from `from_hz` to `to_hz`. Rates without a small common ratio are rounded to the
    /// nearest that has one.
    pub fn new(from_hz: u32, to_hz: u32) -> Self {
        let (from, to) = (from_hz.max(1), to_hz.max(1));
        let divisor = gcd(from, to);
        let (mut up, mut down) = (to / divisor, from / divisor);
        if up > MAX_PHASES {
            down =
                ((f64::from(down) * f64::from(MAX_PHASES) / f64::from(up)).round() as u32).max(1);
            up = MAX_PHASES;
        }
        let (up, down) = (up as usize, down as usize);
        // When downsampling, the cutoff must be below the lower Nyquist frequency.
        let cutoff = (up as f64 / down as f64).min(1.0) * if up == down { 1.0 } else { 0.94 };
        let centre = (TAPS / 2) as f64;
        let mut branches = Vec::with_capacity(up * TAPS);
        for phase in 0..up {
            let shift = phase as f64 / up as f64;
            let mut branch: Vec<f64> = (0..TAPS)
                .map(|tap| {
                    let x = tap as f64 + 1.0 - centre - shift;
                    let window = 0.5 + 0.5 * (PI * x / centre).cos();
                    cutoff * sinc(cutoff * x) * window.max(0.0)
                })
                .collect();
            let sum: f64 = branch.iter().sum();
            branch.iter_mut().for_each(|tap| *tap /= sum);
            branches.extend(branch.iter().map(|tap| *tap as f32));
        }
        Self {
            up,
            down,
            branches,
            history: vec![0; TAPS / 2 - 1],
            phase: 0,
        }
    }

    /// Appends the resampled `input` to `output`.
    pub fn push(&mut self, input: &[i16], output: &mut Vec<i16>) {
        if self.up == self.down {
            output.extend_from_slice(input);
            return;
        }
        self.history.extend_from_slice(input);
        let mut start = 0;
        while start + TAPS <= self.history.len() {
            let branch = &self.branches[self.phase * TAPS..(self.phase + 1) * TAPS];
            let window = &self.history[start..start + TAPS];
            let sum: f32 = branch
                .iter()
                .zip(window)
                .map(|(tap, sample)| tap * f32::from(*sample))
                .sum();
            output.push(sum.round().clamp(f32::from(i16::MIN), f32::from(i16::MAX)) as i16);
            self.phase += self.down;
            start += self.phase / self.up;
            self.phase %= self.up;
        }
        let used = start.min(self.history.len());
        self.history.drain(..used);
        // When downsampling by a large factor, samples that have not arrived yet may have to be
        // skipped.
        self.phase += (start - used) * self.up;
    }

    /// Appends the remaining output at the end of a stream.
    pub fn finish(&mut self, output: &mut Vec<i16>) {
        if self.up != self.down {
            self.push(&[0; TAPS / 2], output);
        }
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn sinc(x: f64) -> f64 {
    if x.abs() < 1e-9 {
        1.0
    } else {
        (PI * x).sin() / (PI * x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(hz: f64, rate: u32, seconds: f64) -> Vec<i16> {
        let count = (f64::from(rate) * seconds) as usize;
        (0..count)
            .map(|n| (10_000.0 * (2.0 * PI * hz * n as f64 / f64::from(rate)).sin()) as i16)
            .collect()
    }

    /// Root of the mean square difference to the same tone at the other rate, in dB below the tone,
    /// away from both ends.
    fn error_db(from: u32, to: u32, hz: f64) -> f64 {
        let mut resampler = Resampler::new(from, to);
        let mut output = Vec::new();
        // Chunks of odd sizes, as from a network.
        for piece in tone(hz, from, 0.5).chunks(331) {
            resampler.push(piece, &mut output);
        }
        resampler.finish(&mut output);
        let expected = tone(hz, to, 0.5);
        let edge = to as usize / 20;
        let range = edge..expected.len().min(output.len()) - edge;
        let noise: f64 = range
            .clone()
            .map(|n| (f64::from(output[n]) - f64::from(expected[n])).powi(2))
            .sum();
        let signal: f64 = range.map(|n| f64::from(expected[n]).powi(2)).sum();
        10.0 * (noise / signal).log10()
    }

    #[test]
    fn speech_keeps_its_shape() {
        for (from, to) in [
            (24_000, 48_000),
            (16_000, 48_000),
            (22_050, 48_000),
            (24_000, 24_000),
            (48_000, 24_000),
        ] {
            for hz in [200.0, 1_000.0, 3_400.0] {
                let error = error_db(from, to, hz);
                assert!(error < -38.0, "{from} to {to} at {hz} Hz: {error:.1} dB");
            }
        }
    }

    #[test]
    fn the_length_is_right_and_silence_stays_silent() {
        for (from, to) in [
            (24_000, 48_000),
            (22_050, 48_000),
            (48_000, 16_000),
            (44_100, 8_000),
        ] {
            let mut resampler = Resampler::new(from, to);
            let mut output = Vec::new();
            for _ in 0..100 {
                resampler.push(&vec![0; from as usize / 100], &mut output);
            }
            resampler.finish(&mut output);
            let expected = u64::from(from / 100 * 100) * u64::from(to) / u64::from(from);
            let off = output.len().abs_diff(expected as usize);
            assert!(off <= TAPS, "{from} to {to}: {} samples", output.len());
            assert!(output.iter().all(|sample| *sample == 0));
        }
    }
}
