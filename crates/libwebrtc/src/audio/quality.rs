//! Speech for tests, and how far what was heard is from what was said.
//!
//! The measure is a mean log-spectral distance over mel bands after time alignment: simple enough
//! to be read here, and sensitive to what a broken jitter buffer does (gaps, repetitions, clicks,
//! missing speech, the wrong speed). It is no listening test; `tests/interop/sound` scores the same
//! recordings with PESQ and STOI.

use std::f64::consts::TAU;

use realfft::RealFftPlanner;

use super::{OPUS_RATE_HZ, TICK_SAMPLES, resample::AudioResampler, track::Pcm};

/// Length of an analysis window in samples: 21 ms.
const WINDOW: usize = 1024;
/// Mel bands, and where the lowest and the highest end, in hertz. The fixtures have 16 kHz.
const BANDS: usize = 24;
const BAND_EDGES_HZ: (f64, f64) = (100.0, 7_000.0);
/// Levels this far below the loudest band of the speech count as silence, in dB.
const DYNAMIC_RANGE_DB: f64 = 50.0;
/// Windows of what was said follow each other every 10 ms; those of what was heard are closer,
/// because time stretch puts sound anywhere.
const HEARD_PER_SAID: usize = 2;
/// What it costs the alignment to stand still or to leave out a window of what was heard, in dB:
/// less than any gap costs, more than random differences.
const STEP_DB: f64 = 3.0;
/// A window whose mean band is less than this above the floor is a pause of the speaker, in dB.
const ACTIVE_DB: f64 = 12.0;

/// The spoken lines of the test caller one after the other, with pauses of half a second, until
/// `seconds` are full; mono at 48 kHz.
pub(crate) fn speech(seconds: usize) -> Vec<i16> {
    const LINES: [&[u8]; 3] = [
        include_bytes!("../../../../tests/fixtures/audio/hello.wav"),
        include_bytes!("../../../../tests/fixtures/audio/lead.wav"),
        include_bytes!("../../../../tests/fixtures/audio/goodbye.wav"),
    ];
    let mut resampler = AudioResampler::default();
    let lines: Vec<Vec<i16>> = LINES
        .iter()
        .map(|line| {
            let samples = wav_samples(line);
            let pcm = Pcm {
                samples: &samples,
                sample_rate_hz: 16_000,
                channels: 1,
            };
            resampler.convert(pcm, 1, OPUS_RATE_HZ).to_vec()
        })
        .collect();
    let wanted = seconds * OPUS_RATE_HZ as usize;
    let mut sound = vec![0; OPUS_RATE_HZ as usize / 2];
    for line in lines.iter().cycle() {
        sound.extend(line);
        sound.extend(vec![0; OPUS_RATE_HZ as usize / 2]);
        if sound.len() >= wanted {
            break;
        }
    }
    sound.truncate(wanted);
    sound
}

/// The samples of a WAV file of 16 bit: what follows the name and the length of its `data` part.
fn wav_samples(file: &[u8]) -> Vec<i16> {
    let data = file
        .windows(4)
        .position(|name| name == b"data")
        .expect("a WAV file has data");
    file[data + 8..]
        .chunks_exact(2)
        .map(|bytes| i16::from_le_bytes([bytes[0], bytes[1]]))
        .collect()
}

/// A WAV file of mono sound at 48 kHz.
pub(crate) fn wav_file(samples: &[i16]) -> Vec<u8> {
    let bytes = samples.len() as u32 * 2;
    let mut file = Vec::with_capacity(bytes as usize + 44);
    file.extend(b"RIFF");
    file.extend((36 + bytes).to_le_bytes());
    file.extend(b"WAVEfmt ");
    file.extend(16u32.to_le_bytes());
    file.extend(1u16.to_le_bytes());
    file.extend(1u16.to_le_bytes());
    file.extend(OPUS_RATE_HZ.to_le_bytes());
    file.extend((OPUS_RATE_HZ * 2).to_le_bytes());
    file.extend(2u16.to_le_bytes());
    file.extend(16u16.to_le_bytes());
    file.extend(b"data");
    file.extend(bytes.to_le_bytes());
    for sample in samples {
        file.extend(sample.to_le_bytes());
    }
    file
}

/// How what was heard compares with what was said.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quality {
    /// Mean difference of the levels in the bands while the speaker speaks, in dB: 0 is the same,
    /// Opus at 32 kbit/s alone has about 2.
    pub distance_db: f64,
    /// The longest stretch of speech in whose place nothing was heard, in milliseconds.
    pub longest_gap_ms: usize,
    /// Speech in whose place nothing was heard, all together, in milliseconds.
    pub gaps_ms: usize,
}

/// Compares mono sound at 48 kHz that was heard about `delay_ms` later than it was said, `slack_ms`
/// more or less.
pub(crate) fn compare(said: &[i16], heard: &[i16], delay_ms: usize, slack_ms: usize) -> Quality {
    let heard_hop = TICK_SAMPLES / HEARD_PER_SAID;
    let (said, heard) = (levels(said, TICK_SAMPLES), levels(heard, heard_hop));
    let loudest = said.iter().flatten().copied().fold(f64::MIN, f64::max);
    let floor = loudest - DYNAMIC_RANGE_DB;
    let floored = |windows: Vec<Levels>| -> Vec<Levels> {
        windows
            .iter()
            .map(|bands| bands.map(|level| level.max(floor)))
            .collect()
    };
    let (said, heard) = (floored(said), floored(heard));
    let windows = |milliseconds: usize| milliseconds * HEARD_PER_SAID / 10;
    let path = align(&said, &heard, windows(delay_ms), windows(slack_ms));

    let level_of = |bands: &Levels| bands.iter().sum::<f64>() / BANDS as f64 - floor;
    let (mut sum, mut count, mut gap, mut longest, mut gaps) = (0.0, 0, 0, 0, 0);
    let mut last = None;
    for (s, h) in path {
        // Sound that was heard more than once counts once, at its first place.
        if last.replace(s) == Some(s) {
            sum += difference(&said[s], &heard[h]) / HEARD_PER_SAID as f64;
            continue;
        }
        let level = level_of(&said[s]);
        if level < ACTIVE_DB {
            gap = 0;
            continue;
        }
        sum += difference(&said[s], &heard[h]);
        count += 1;
        // Speech at a quarter of its level in dB counts as missing.
        if level_of(&heard[h]) < level / 4.0 {
            gap += 10;
            gaps += 10;
            longest = longest.max(gap);
        } else {
            gap = 0;
        }
    }
    Quality {
        distance_db: sum / f64::from(count.max(1)),
        longest_gap_ms: longest,
        gaps_ms: gaps,
    }
}

/// Levels of the mel bands in one window, in dB.
type Levels = [f64; BANDS];

/// Levels of the windows that begin every `hop` samples.
fn levels(sound: &[i16], hop: usize) -> Vec<Levels> {
    let fft = RealFftPlanner::<f64>::new().plan_fft_forward(WINDOW);
    let (mut input, mut output) = (fft.make_input_vec(), fft.make_output_vec());
    let mel = |hz: f64| (1.0 + hz / 700.0).ln();
    let (low, high) = (mel(BAND_EDGES_HZ.0), mel(BAND_EDGES_HZ.1));
    let band_of = |bin: usize| {
        let hz = bin as f64 * f64::from(OPUS_RATE_HZ) / WINDOW as f64;
        let share = (mel(hz) - low) / (high - low);
        (0.0..1.0)
            .contains(&share)
            .then_some((share * BANDS as f64) as usize)
    };
    let bands_of_bins: Vec<Option<usize>> = (0..output.len()).map(band_of).collect();
    let hann: Vec<f64> = (0..WINDOW)
        .map(|index| 0.5 - 0.5 * (index as f64 * TAU / WINDOW as f64).cos())
        .collect();
    sound
        .windows(WINDOW)
        .step_by(hop)
        .map(|window| {
            for ((value, sample), hann) in input.iter_mut().zip(window).zip(&hann) {
                *value = f64::from(*sample) * hann;
            }
            fft.process(&mut input, &mut output)
                .expect("the buffers were made for it");
            let mut bands = [1e-3; BANDS];
            for (band, value) in bands_of_bins.iter().zip(&output) {
                if let Some(band) = band {
                    bands[*band] += value.norm_sqr();
                }
            }
            bands.map(|power| 10.0 * power.log10())
        })
        .collect()
}

fn difference(one: &Levels, other: &Levels) -> f64 {
    one.iter()
        .zip(other)
        .map(|(a, b)| (a - b).abs())
        .sum::<f64>()
        / BANDS as f64
}

/// Assigns windows of what was heard to windows of what was said, by dynamic time warping: time
/// stretch and delay cost little, missing or added sound costs much. Searches as far as `slack`
/// windows of what was heard around a delay of `delay` of them.
fn align(said: &[Levels], heard: &[Levels], delay: usize, slack: usize) -> Vec<(usize, usize)> {
    let width = 2 * slack + 1;
    // Cell `k` of row `s` is this window of what was heard.
    let window = |s: usize, k: usize| {
        (HEARD_PER_SAID * s + delay + k)
            .checked_sub(slack)
            .filter(|h| *h < heard.len())
    };
    let mut cost = vec![f64::INFINITY; said.len() * width];
    // The cells before, each as rows and cells back to the left or right.
    let mut from = vec![(0usize, 0usize); said.len() * width];
    for s in 0..said.len() {
        for k in 0..width {
            let Some(h) = window(s, k) else { continue };
            let mut best = (if s == 0 { 0.0 } else { f64::INFINITY }, (s, k));
            let mut consider = |row: usize, cell: usize, steps: usize| {
                let total = cost[row * width + cell] + steps as f64 * STEP_DB;
                if total < best.0 {
                    best = (total, (row, cell));
                }
            };
            if s > 0 {
                // Both go on; or what was heard goes on by less, or stands still.
                for steps in 0..=HEARD_PER_SAID.min(width - 1 - k) {
                    consider(s - 1, k + steps, steps);
                }
            }
            if k > 0 {
                consider(s, k - 1, 1);
            }
            cost[s * width + k] = best.0 + difference(&said[s], &heard[h]);
            from[s * width + k] = best.1;
        }
    }
    let row = |s: usize| &cost[s * width..(s + 1) * width];
    let Some(last) = (0..said.len()).rfind(|s| row(*s).iter().any(|cost| cost.is_finite())) else {
        return vec![];
    };
    let end = (0..width).min_by(|a, b| row(last)[*a].total_cmp(&row(last)[*b]));
    let mut cell = (last, end.unwrap_or(slack));
    let mut path = Vec::new();
    loop {
        if let Some(h) = window(cell.0, cell.1) {
            path.push((cell.0, h));
        }
        let before = from[cell.0 * width + cell.1];
        if before == cell {
            path.reverse();
            return path;
        }
        cell = before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measure_forgives_delay_and_sees_holes_repetitions_and_noise() {
        let said = speech(8);
        let quality = compare(&said, &said, 0, 250);
        assert!(
            quality.distance_db < 0.01 && quality.gaps_ms == 0,
            "{quality:?}"
        );

        let mut later = vec![0; 4_800];
        later.extend(&said);
        let quality = compare(&said, &later, 100, 250);
        assert!(quality.distance_db < 0.01, "{quality:?}");

        // 20 ms of silence in every 100 ms, as if every fifth packet was not replaced by anything.
        let mut holes = said.clone();
        for piece in holes.chunks_mut(4_800) {
            let length = piece.len().min(960);
            piece[..length].fill(0);
        }
        let quality = compare(&said, &holes, 0, 250);
        assert!(quality.distance_db > 2.0, "{quality:?}");

        // One long hole.
        let mut hole = said.clone();
        hole[96_000..115_200].fill(0);
        let quality = compare(&said, &hole, 0, 250);
        // The speaker does not speak all the time.
        assert!((120..=450).contains(&quality.gaps_ms), "{quality:?}");

        // Every tenth piece of 20 ms twice, and the next one not at all.
        let mut repeated = said.clone();
        for piece in repeated.chunks_mut(9_600) {
            if piece.len() == 9_600 {
                piece.copy_within(0..960, 960);
            }
        }
        let quality = compare(&said, &repeated, 0, 250);
        assert!(quality.distance_db > 0.3, "{quality:?}");

        let mut state = 1u32;
        let noisy: Vec<i16> = said
            .iter()
            .map(|sample| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                sample.saturating_add((state >> 20) as i16 - 2048)
            })
            .collect();
        let quality = compare(&said, &noisy, 0, 250);
        assert!(quality.distance_db > 5.0, "{quality:?}");
    }
}
