//! Finds single steady tones in the sound of a line: the beep of a voicemail, a fax machine, the
//! tones before an announcement of the network. Pure, from samples.
//!
//! A tone holds most of the band's power in one or two lines of the spectrum, and its frequency
//! stays. A voice does neither for long: its power is spread over harmonics that move. Keys of the
//! telephone, which are two tones of fixed pairs (ITU-T Q.23), do not count.

use std::time::Duration;

use super::super::INPUT_SAMPLE_RATE_HZ;
use super::super::tones::Spectrum;

/// 32 ms at 16 kHz: lines 31 Hz apart, between which the frequency is interpolated.
const SPAN: usize = 512;

/// How far the span moves: 10 ms.
const STEP: usize = 160;
const STEP_MS: u64 = 10;

const LINE_HZ: f32 = INPUT_SAMPLE_RATE_HZ as f32 / SPAN as f32;

/// The band in which power counts: what a telephone passes.
const BAND_HZ: (f32, f32) = (250.0, 3_400.0);

/// The band of a tone: beeps of voicemails lie in it, and those of fax machines.
const TONE_HZ: (f32, f32) = (350.0, 2_500.0);

/// A line spreads over so many lines to either side (the main lobe of a Hann window).
const LOBE: usize = 2;

/// The share of the power that one tone has. 7 dB above noise.
const SHARE: f32 = 0.8;

/// The share that two tones have together …
const SHARE_OF_TWO: f32 = 0.93;

/// … of which the stronger one has at least this much.
const SHARE_OF_STRONGER: f32 = 0.46;

/// A tone below this is too soft, in dB over an amplitude of one: an amplitude of 180.
const TOO_SOFT_DB: f32 = 45.0;

/// A tone stays as close to its mean frequency as this.
const STEADY_SHARE: f32 = 0.012;
const STEADY_HZ: f32 = 7.0;

/// A tone is one from this many steps on (120 ms: the spans at its ends count as well).
const FEWEST_STEPS: u64 = 12;

/// So many steps without it do not end a tone: a lost packet.
const MOST_MISSED: u64 = 2;

/// A tone that goes on is told of again after so many steps.
const TOLD_EVERY: u64 = 10;

const KEY_ROWS_HZ: [f32; 4] = [697.0, 770.0, 852.0, 941.0];
const KEY_COLUMNS_HZ: [f32; 4] = [1_209.0, 1_336.0, 1_477.0, 1_633.0];

/// A steady tone on the line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tone {
    /// Its frequency; of two, the stronger one's.
    pub frequency_hz: f32,
    /// How long it has been there.
    pub lasted: Duration,
    /// It has ended.
    pub is_over: bool,
}

/// A tone that is being followed.
#[derive(Debug, Clone, Copy)]
struct Followed {
    frequency_hz: f32,
    steps: u64,
    missed: u64,
}

/// Listens to a stream for tones.
pub struct ToneListener {
    spectrum: Spectrum,
    /// At most a span, and what of the next step has come.
    sound: Vec<i16>,
    followed: Option<Followed>,
}

impl Default for ToneListener {
    fn default() -> Self {
        Self::new()
    }
}

impl ToneListener {
    /// A listener that has heard nothing.
    pub fn new() -> Self {
        Self {
            spectrum: Spectrum::new(SPAN),
            sound: vec![0; SPAN - STEP],
            followed: None,
        }
    }

    /// Takes the next samples, at [`INPUT_SAMPLE_RATE_HZ`]; adds what is to be told of tones to
    /// `found`: when there is one, while it goes on, and once when it is over.
    pub fn hear(&mut self, samples: &[i16], found: &mut Vec<Tone>) {
        for part in samples.chunks(STEP) {
            self.sound.extend_from_slice(part);
            while self.sound.len() >= SPAN {
                let frequency_hz = self.frequency();
                self.sound.drain(..STEP);
                found.extend(self.follow(frequency_hz));
            }
        }
    }

    fn follow(&mut self, frequency_hz: Option<f32>) -> Option<Tone> {
        let Some(followed) = &mut self.followed else {
            self.followed = frequency_hz.map(begin);
            return None;
        };
        let limit = (followed.frequency_hz * STEADY_SHARE).max(STEADY_HZ);
        if let Some(heard) = frequency_hz.filter(|it| (it - followed.frequency_hz).abs() <= limit) {
            followed.steps += 1 + std::mem::take(&mut followed.missed);
            let weight = 1.0 / followed.steps as f32;
            followed.frequency_hz += (heard - followed.frequency_hz) * weight;
            let since = followed.steps.checked_sub(FEWEST_STEPS)?;
            return (since % TOLD_EVERY == 0).then(|| followed.tone(false));
        }
        // Another tone takes the place of this one at once; silence and noise may be a gap.
        followed.missed += 1;
        if followed.missed <= MOST_MISSED {
            return None;
        }
        let ended = (followed.steps >= FEWEST_STEPS).then(|| followed.tone(true));
        self.followed = frequency_hz.map(begin);
        ended
    }

    /// The frequency of the tone that the span holds, if it holds one.
    fn frequency(&mut self) -> Option<f32> {
        let levels = self.spectrum.levels(&self.sound[..SPAN]);
        let line = |hz: f32| (hz / LINE_HZ) as usize;
        let (from, to) = (line(BAND_HZ.0), line(BAND_HZ.1));
        let power = |at: usize| 10_f32.powf(levels[at] / 10.0);
        let total: f32 = (from..to).map(power).sum();
        let strongest_of = |besides: Option<usize>| {
            (from..to)
                .filter(|at| besides.is_none_or(|it| at.abs_diff(it) > LOBE + 1))
                .max_by(|a, b| levels[*a].total_cmp(&levels[*b]))
        };
        let share = |peak: usize| {
            let around = peak.saturating_sub(LOBE).max(from)..(peak + LOBE + 1).min(to);
            around.map(power).sum::<f32>() / total
        };
        let peak = strongest_of(None)?;
        let frequency_hz = interpolated(levels, peak);
        if levels[peak] < TOO_SOFT_DB || !(TONE_HZ.0..=TONE_HZ.1).contains(&frequency_hz) {
            return None;
        }
        let alone = share(peak);
        if alone >= SHARE {
            return Some(frequency_hz);
        }
        let second = strongest_of(Some(peak))?;
        let other_hz = interpolated(levels, second);
        let are_two = alone >= SHARE_OF_STRONGER && alone + share(second) >= SHARE_OF_TWO;
        (are_two && !is_key(frequency_hz, other_hz)).then_some(frequency_hz)
    }
}

impl Followed {
    fn tone(&self, is_over: bool) -> Tone {
        Tone {
            frequency_hz: self.frequency_hz,
            lasted: Duration::from_millis(self.steps * STEP_MS),
            is_over,
        }
    }
}

fn begin(frequency_hz: f32) -> Followed {
    Followed {
        frequency_hz,
        steps: 1,
        missed: 0,
    }
}

/// The frequency of a peak, from the parabola through its level and those beside it.
fn interpolated(levels: &[f32], peak: usize) -> f32 {
    let (before, at, after) = (levels[peak - 1], levels[peak], levels[peak + 1]);
    let bend = before - 2.0 * at + after;
    let shift = match bend < -f32::EPSILON {
        true => (0.5 * (before - after) / bend).clamp(-0.5, 0.5),
        false => 0.0,
    };
    (peak as f32 + shift) * LINE_HZ
}

/// Whether two tones are a key of the telephone.
fn is_key(one_hz: f32, other_hz: f32) -> bool {
    let (low, high) = (one_hz.min(other_hz), one_hz.max(other_hz));
    let among = |group: [f32; 4], hz: f32| group.iter().any(|it| (hz - it).abs() <= it * 0.02);
    among(KEY_ROWS_HZ, low) && among(KEY_COLUMNS_HZ, high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f32::consts::TAU;

    const RATE: f32 = INPUT_SAMPLE_RATE_HZ as f32;

    fn tones(parts: &[(f32, f32)], ms: usize) -> Vec<i16> {
        let samples = ms * INPUT_SAMPLE_RATE_HZ as usize / 1_000;
        let sample = |n: usize| {
            let each = parts
                .iter()
                .map(|(hz, amplitude)| amplitude * (TAU * hz * n as f32 / RATE).sin());
            each.sum::<f32>() as i16
        };
        (0..samples).map(sample).collect()
    }

    fn silence(ms: usize) -> Vec<i16> {
        vec![0; ms * INPUT_SAMPLE_RATE_HZ as usize / 1_000]
    }

    /// White noise with the same numbers each time.
    fn noise(sound: &mut [i16], amplitude: f32) {
        let mut state = 7_u32;
        for sample in sound {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let unit = (state >> 16) as f32 / 32_768.0 - 1.0;
            *sample = (f32::from(*sample) + unit * amplitude) as i16;
        }
    }

    /// As G.711 (u-law) stores it: 14 bits, of which it keeps four and an exponent.
    fn through_g711(sound: &mut [i16]) {
        for sample in sound {
            let magnitude = (i32::from(*sample).abs() >> 2).min(8_158) + 33;
            let exponent = magnitude.ilog2() - 5;
            let kept = (magnitude >> (exponent + 1) << (exponent + 1)) + (1 << exponent) - 33;
            *sample = (kept.max(0) << 2) as i16 * sample.signum();
        }
    }

    fn ended(sound: &[i16]) -> Vec<Tone> {
        let (mut listener, mut found) = (ToneListener::new(), Vec::new());
        for frame in sound.chunks(160) {
            listener.hear(frame, &mut found);
        }
        found.retain(|tone| tone.is_over);
        found
    }

    #[test]
    fn beeps_of_every_pitch_are_found_through_codec_and_noise() {
        for hz in [
            350.0, 400.0, 440.0, 500.0, 853.0, 1_000.0, 1_400.0, 2_000.0, 2_500.0,
        ] {
            for (amplitude, noise_amplitude) in
                [(8_000.0, 0.0), (1_000.0, 60.0), (8_000.0, 3_500.0)]
            {
                for ms in [140, 200, 500, 1_000] {
                    let mut sound = silence(200);
                    // Not at the very edge of the band.
                    let hz = f32::clamp(hz, 356.0, 2_490.0);
                    sound.extend(tones(&[(hz, amplitude)], ms));
                    sound.extend(silence(200));
                    noise(&mut sound, noise_amplitude);
                    through_g711(&mut sound);
                    let found = ended(&sound);
                    assert_eq!(
                        found.len(),
                        1,
                        "{hz} Hz, {ms} ms, noise {noise_amplitude}: {found:?}"
                    );
                    assert!(
                        (found[0].frequency_hz - hz).abs() < 8.0,
                        "{hz} Hz: {found:?}"
                    );
                    let off = found[0].lasted.as_millis().abs_diff(ms as u128);
                    assert!(off <= 40, "{ms} ms: {found:?}");
                }
            }
        }
    }

    #[test]
    fn two_tones_are_a_beep_unless_they_are_a_key() {
        let framed =
            |parts: &[(f32, f32)]| [silence(100), tones(parts, 300), silence(100)].concat();
        assert_eq!(
            ended(&framed(&[(480.0, 5_000.0), (620.0, 5_000.0)])).len(),
            1
        );
        for row in KEY_ROWS_HZ {
            for column in KEY_COLUMNS_HZ {
                let sound = framed(&[(row, 5_000.0), (column, 5_000.0)]);
                assert_eq!(ended(&sound), [], "{row} {column}");
            }
        }
    }

    #[test]
    fn what_is_no_tone_is_not_one() {
        let mut hiss = silence(2_000);
        noise(&mut hiss, 9_000.0);
        // A voice: a pitch that glides, with harmonics.
        let mut phase = 0.0_f32;
        let voice: Vec<i16> = (0..32_000)
            .map(|n| {
                let hz = 180.0 + 40.0 * (TAU * 2.0 * n as f32 / RATE).sin();
                phase += TAU * hz / RATE;
                let harmonics = (1..12).map(|k| (phase * k as f32).sin() / k as f32);
                (harmonics.sum::<f32>() * 6_000.0) as i16
            })
            .collect();
        let sweep: Vec<i16> = (0..16_000)
            .map(|n| {
                let t = n as f32 / RATE;
                (8_000.0 * (TAU * (400.0 * t + 800.0 * t * t)).sin()) as i16
            })
            .collect();
        let short = [silence(100), tones(&[(1_000.0, 8_000.0)], 70), silence(100)].concat();
        let low = [tones(&[(300.0, 8_000.0)], 500), silence(100)].concat();
        let high = [tones(&[(2_800.0, 8_000.0)], 500), silence(100)].concat();
        for (what, sound) in [
            ("noise", hiss),
            ("a voice", voice),
            ("a sweep", sweep),
            ("a blip", short),
            ("too low", low),
            ("too high", high),
            ("silence", silence(1_000)),
        ] {
            assert_eq!(ended(&sound), [], "{what}");
        }
    }

    #[test]
    fn tones_in_a_row_are_told_apart_and_a_lost_packet_is_no_end() {
        // The special information tones before an announcement of the network (ITU-T E.180).
        let mut row = silence(100);
        for hz in [950.0, 1_400.0, 1_800.0] {
            row.extend(tones(&[(hz, 6_000.0)], 330));
        }
        row.extend(silence(200));
        let found: Vec<i32> = ended(&row)
            .iter()
            .map(|it| it.frequency_hz.round() as i32)
            .collect();
        assert_eq!(found, [950, 1_400, 1_800]);

        let mut gap = tones(&[(1_000.0, 8_000.0)], 400);
        gap[3_000..3_320].fill(0);
        gap.extend(silence(200));
        assert_eq!(ended(&gap).len(), 1);
    }

    #[test]
    fn a_long_tone_is_told_of_before_it_is_over() {
        let (mut listener, mut found) = (ToneListener::new(), Vec::new());
        listener.hear(&tones(&[(2_100.0, 8_000.0)], 1_300), &mut found);
        let longest = found.iter().map(|tone| tone.lasted).max().unwrap();
        assert!(longest >= Duration::from_millis(1_100), "{found:?}");
        assert!(found.iter().all(|tone| !tone.is_over));
    }
}
