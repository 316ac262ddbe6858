//! Makes decoded sound shorter or longer by one period of its pitch, so that its length changes but
//! not its pitch.
//!
//! The cut is hidden by fading the period before it into the period after it. That works for voiced
//! speech and music, where neighbouring periods are alike, and for silence. For anything else the
//! caller decides whether an audible cut is worth it.

use super::level;

/// The shortest and the longest period: 400 Hz to 67 Hz covers voices.
pub(crate) const MIN_PERIOD: usize = 120;
pub(crate) const MAX_PERIOD: usize = 720;

/// The search runs on every eighth sample, at 6 kHz, where pitch is still well visible.
const DECIMATION: usize = 8;

/// Neighbouring periods that correlate this much can be faded inaudibly.
const ALIKE: f32 = 0.9;

/// Below this mean square (about -60 dBov) any cut is inaudible.
const QUIET_ENERGY: f64 = 1e-6;

/// Where a cut is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Care {
    /// Only where it will not be heard.
    Unheard,
    /// At the best place there is, audible or not.
    Anyhow,
}

/// Removes one period from the beginning of interleaved `pcm`, at most `limit` samples of each
/// channel. Returns how many were removed; 0 if nothing fits.
pub(crate) fn shorten(pcm: &mut Vec<i16>, channels: usize, limit: usize, care: Care) -> usize {
    let Some(period) = cut_length(pcm, channels, limit, care) else {
        return 0;
    };
    let len = period * channels;
    // The first period is faded into the second one and replaces it.
    for frame in 0..period {
        for channel in 0..channels {
            let at = frame * channels + channel;
            pcm[at] = fade(pcm[at], pcm[at + len], frame, period);
        }
    }
    pcm.drain(len..2 * len);
    period
}

/// Inserts one more period at the beginning of interleaved `pcm`, at most `limit` samples of each
/// channel. Returns how many were added; 0 if nothing fits.
pub(crate) fn lengthen(
    pcm: &mut Vec<i16>,
    channels: usize,
    limit: usize,
    care: Care,
    scratch: &mut Vec<i16>,
) -> usize {
    let Some(period) = cut_length(pcm, channels, limit, care) else {
        return 0;
    };
    let len = period * channels;
    // After the first period comes the second one, fading back into the first, then the second one
    // as it is.
    scratch.clear();
    for frame in 0..period {
        for channel in 0..channels {
            let at = frame * channels + channel;
            scratch.push(fade(pcm[at + len], pcm[at], frame, period));
        }
    }
    pcm.splice(len..len, scratch.iter().copied());
    period
}

/// Mixes two samples; `position` of `length` goes from the first to the second.
fn fade(from: i16, to: i16, position: usize, length: usize) -> i16 {
    let (position, length) = (position as i32, length as i32);
    let mixed = i32::from(from) * (length - position) + i32::from(to) * position;
    // A mean of 16-bit numbers is a 16-bit number.
    (mixed / length) as i16
}

/// The length to cut out or repeat, in samples of each channel.
fn cut_length(pcm: &[i16], channels: usize, limit: usize, care: Care) -> Option<usize> {
    let frames = pcm.len() / channels;
    let longest = limit.min(MAX_PERIOD).min(frames / 2);
    if longest < MIN_PERIOD {
        return None;
    }
    let window = &pcm[..2 * longest * channels];
    if level::energy(window) < QUIET_ENERGY {
        return Some(longest);
    }
    let (period, likeness) = find_period(window, channels, longest);
    (care == Care::Anyhow || likeness >= ALIKE).then_some(period)
}

/// The period after which the sound repeats itself best, and the correlation there (1: identical).
fn find_period(pcm: &[i16], channels: usize, longest: usize) -> (usize, f32) {
    // The mean of eight samples is a low-pass filter good enough for pitch.
    let coarse: Vec<f32> = pcm
        .chunks_exact(DECIMATION * channels)
        .map(|block| block.iter().map(|sample| f32::from(*sample)).sum::<f32>())
        .collect();
    let (shortest_coarse, longest_coarse) = (MIN_PERIOD / DECIMATION, longest / DECIMATION);
    let window = coarse.len() - longest_coarse;
    let (coarse_period, _) = best_lag(shortest_coarse..=longest_coarse, |lag| {
        likeness(&coarse[..window], &coarse[lag..lag + window])
    });

    let mono: Vec<f32> = pcm
        .chunks_exact(channels)
        .map(|frame| frame.iter().map(|sample| f32::from(*sample)).sum())
        .collect();
    let around = coarse_period * DECIMATION;
    let from = around.saturating_sub(DECIMATION).max(MIN_PERIOD);
    let to = (around + DECIMATION).min(longest);
    best_lag(from..=to, |lag| likeness(&mono[..lag], &mono[lag..2 * lag]))
}

fn best_lag(
    lags: std::ops::RangeInclusive<usize>,
    likeness_at: impl Fn(usize) -> f32,
) -> (usize, f32) {
    let first = *lags.start();
    lags.map(|lag| (lag, likeness_at(lag)))
        .fold(
            (first, f32::MIN),
            |best, this| {
                if this.1 > best.1 { this } else { best }
            },
        )
}

/// Normalised correlation of two pieces of the same length.
fn likeness(one: &[f32], other: &[f32]) -> f32 {
    let (mut product, mut energy_one, mut energy_other) = (0.0f32, 1.0f32, 1.0f32);
    for (a, b) in one.iter().zip(other) {
        product += a * b;
        energy_one += a * a;
        energy_other += b * b;
    }
    product / (energy_one * energy_other).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sine(frequency_hz: f64, frames: usize, channels: usize) -> Vec<i16> {
        (0..frames)
            .flat_map(|frame| {
                let phase = frame as f64 * frequency_hz * std::f64::consts::TAU / 48_000.0;
                vec![(phase.sin() * 12_000.0) as i16; channels]
            })
            .collect()
    }

    /// The largest step between neighbouring samples of the first channel: a cut that is heard as a
    /// click is a large step.
    fn largest_step(pcm: &[i16], channels: usize) -> i32 {
        let first: Vec<i32> = pcm
            .iter()
            .step_by(channels)
            .map(|s| i32::from(*s))
            .collect();
        first
            .windows(2)
            .map(|two| (two[1] - two[0]).abs())
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn sound_with_pitch_changes_its_length_by_whole_periods_without_a_click() {
        for (frequency, channels) in [(100.0, 1), (150.0, 2), (220.0, 1), (350.0, 2)] {
            let original = sine(frequency, 1440, channels);
            let period = 48_000.0 / frequency;

            let mut shorter = original.clone();
            let taken = shorten(&mut shorter, channels, MAX_PERIOD, Care::Unheard);
            assert_eq!(shorter.len(), (1440 - taken) * channels);
            let periods = taken as f64 / period;
            assert!(
                taken > 0 && (periods - periods.round()).abs() < 0.02,
                "{frequency} Hz: {taken}"
            );
            assert!(largest_step(&shorter, channels) <= largest_step(&original, channels) + 40);

            let mut longer = original.clone();
            let added = lengthen(
                &mut longer,
                channels,
                MAX_PERIOD,
                Care::Unheard,
                &mut Vec::new(),
            );
            assert_eq!(longer.len(), (1440 + added) * channels);
            let periods = added as f64 / period;
            assert!(
                added > 0 && (periods - periods.round()).abs() < 0.02,
                "{frequency} Hz: {added}"
            );
            assert!(largest_step(&longer, channels) <= largest_step(&original, channels) + 40);
        }
    }

    #[test]
    fn noise_is_left_alone_unless_it_must_be() {
        let mut state = 1u32;
        let noise: Vec<i16> = (0..1440)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 18) as i16
            })
            .collect();
        let centred: Vec<i16> = noise.iter().map(|sample| sample - 8192).collect();
        let mut careful = centred.clone();
        assert_eq!(shorten(&mut careful, 1, MAX_PERIOD, Care::Unheard), 0);
        assert_eq!(careful, centred);
        assert!(shorten(&mut careful, 1, MAX_PERIOD, Care::Anyhow) >= MIN_PERIOD);
    }

    #[test]
    fn silence_gives_all_that_is_asked_for() {
        let mut silence = vec![0; 1440];
        assert_eq!(shorten(&mut silence, 1, 500, Care::Unheard), 500);
        assert_eq!(silence.len(), 940);
    }

    #[test]
    fn too_little_sound_is_left_alone() {
        let mut pcm = sine(200.0, 2 * MIN_PERIOD - 1, 1);
        assert_eq!(shorten(&mut pcm, 1, MAX_PERIOD, Care::Anyhow), 0);
        let mut pcm = sine(200.0, 1440, 1);
        assert_eq!(shorten(&mut pcm, 1, MIN_PERIOD - 1, Care::Anyhow), 0);
    }
}
