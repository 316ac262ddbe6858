//! Conversion of sample rate and channel count.
//!
//! The rate is converted by rubato's FFT resampler in blocks of about 10 ms: at the rates of
//! telephony and speech recognition one frame in gives one frame out, delayed by half a block.
//! Where the rates are equal only the channels are converted.

use rubato::{Fft, FixedSync, Resampler, audioadapter_buffers::direct::InterleavedSlice};

use super::track::Pcm;

/// Converts a stream of PCM. It keeps the tail of its input, so one converter serves one stream;
/// when the format changes it starts anew.
#[derive(Default)]
pub struct AudioResampler {
    converter: Option<RateConverter>,
    output: Vec<i16>,
}

impl std::fmt::Debug for AudioResampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioResampler")
            .field("rates", &self.converter.as_ref().map(|one| one.rates))
            .finish()
    }
}

impl AudioResampler {
    /// Converts interleaved `src` to `dst_num_channels` at `dst_sample_rate` Hz. Returns the part
    /// that is ready: with frames of 10 ms as many samples as go in, with others what the whole
    /// blocks so far give.
    ///
    /// # Panics
    ///
    /// If `src` is shorter than `samples_per_channel * num_channels`, or a rate or channel count is
    /// zero.
    pub fn remix_and_resample<'a>(
        &'a mut self,
        src: &[i16],
        samples_per_channel: u32,
        num_channels: u32,
        sample_rate: u32,
        dst_num_channels: u32,
        dst_sample_rate: u32,
    ) -> &'a [i16] {
        let samples = samples_per_channel as usize * num_channels as usize;
        let pcm = Pcm {
            samples: &src[..samples],
            sample_rate_hz: sample_rate,
            channels: num_channels as usize,
        };
        self.convert(pcm, dst_num_channels as usize, dst_sample_rate)
    }

    pub(crate) fn convert(&mut self, pcm: Pcm<'_>, channels: usize, rate_hz: u32) -> &[i16] {
        assert!(
            pcm.channels > 0 && channels > 0 && pcm.sample_rate_hz > 0 && rate_hz > 0,
            "sample rates and channel counts must not be zero"
        );
        self.output.clear();
        if pcm.sample_rate_hz == rate_hz {
            self.converter = None;
            remix(pcm.samples, pcm.channels, channels, |sample| {
                self.output.push(sample);
            });
            return &self.output;
        }
        // Filtering is the expensive part, so it is done on the smaller number of channels.
        let inner = channels.min(pcm.channels);
        let rates = (pcm.sample_rate_hz, rate_hz);
        if !matches!(&self.converter, Some(one) if one.rates == rates && one.channels == inner) {
            self.converter = Some(RateConverter::new(rates, inner));
        }
        let converter = self
            .converter
            .as_mut()
            .expect("it was made in the line before");
        remix(pcm.samples, pcm.channels, inner, |sample| {
            converter.pending.push(f32::from(sample));
        });
        let output = &mut self.output;
        converter.run(|block| {
            remix(block, inner, channels, |sample: f32| {
                // The cast saturates, which is what loud sound that overshoots in the filter needs.
                output.push(sample.round() as i16);
            });
        });
        &self.output
    }
}

/// A rate converter and the input that does not fill a block yet.
struct RateConverter {
    rates: (u32, u32),
    channels: usize,
    fft: Fft<f32>,
    pending: Vec<f32>,
    block: Vec<f32>,
}

impl RateConverter {
    fn new(rates: (u32, u32), channels: usize) -> Self {
        let block_frames = (rates.0 as usize / 100).max(1);
        let fft = Fft::new(
            rates.0 as usize,
            rates.1 as usize,
            block_frames,
            channels,
            FixedSync::Both,
        )
        .expect("rates, block length and channel count are not zero");
        let block = vec![0.0; fft.output_frames_max() * channels];
        Self {
            rates,
            channels,
            fft,
            pending: Vec::new(),
            block,
        }
    }

    /// Converts all whole blocks.
    fn run(&mut self, mut emit: impl FnMut(&[f32])) {
        let frames_in = self.fft.input_frames_next();
        let frames_out = self.fft.output_frames_next();
        let block_len = frames_in * self.channels;
        let mut done = 0;
        while self.pending.len() - done >= block_len {
            let input = InterleavedSlice::new(
                &self.pending[done..done + block_len],
                self.channels,
                frames_in,
            )
            .expect("the slice has exactly that many frames");
            let mut output = InterleavedSlice::new_mut(&mut self.block, self.channels, frames_out)
                .expect("the block was made for the longest output");
            self.fft
                .process_into_buffer(&input, &mut output, None)
                .expect("both buffers have the lengths that the resampler asked for");
            emit(&self.block[..frames_out * self.channels]);
            done += block_len;
        }
        self.pending.drain(..done);
    }
}

/// A sample whose channels can be mixed.
trait Sample: Copy {
    fn average(frame: &[Self]) -> Self;
}

impl Sample for i16 {
    fn average(frame: &[Self]) -> Self {
        let sum: i32 = frame.iter().map(|sample| i32::from(*sample)).sum();
        // A mean of 16-bit numbers is a 16-bit number.
        (sum / frame.len() as i32) as i16
    }
}

impl Sample for f32 {
    fn average(frame: &[Self]) -> Self {
        frame.iter().sum::<f32>() / frame.len() as f32
    }
}

/// Changes the channel count: down to mono by the mean, up from mono by copying; otherwise the
/// first channels are kept and missing ones are copies of the last.
fn remix<S: Sample>(samples: &[S], from: usize, to: usize, mut emit: impl FnMut(S)) {
    match (from, to) {
        (from, to) if from == to => samples.iter().copied().for_each(emit),
        (from, 1) => samples.chunks_exact(from).map(S::average).for_each(emit),
        (from, to) => {
            for frame in samples.chunks_exact(from) {
                for channel in 0..to {
                    emit(frame[channel.min(from - 1)]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{channel, fit_tone, tone},
        *,
    };

    const RATES: [u32; 9] = [
        8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000,
    ];

    /// Converts in frames of 10 ms, or as near as the rate allows.
    fn convert(input: &[i16], from: (u32, usize), to: (u32, usize)) -> Vec<i16> {
        let mut resampler = AudioResampler::default();
        let frame_len = (from.0 / 100) as usize * from.1;
        let mut output = Vec::new();
        for samples in input.chunks(frame_len) {
            let pcm = Pcm {
                samples,
                sample_rate_hz: from.0,
                channels: from.1,
            };
            output.extend_from_slice(resampler.convert(pcm, to.1, to.0));
        }
        output
    }

    #[test]
    fn tone_stays_clean_between_all_rates() {
        for from in RATES {
            for to in RATES {
                let input = tone(1000.0, from, 1, from as usize, 20_000.0);
                let output = convert(&input, (from, 1), (to, 1));
                let steady = &output[output.len() / 4..output.len() / 4 * 3];
                let (amplitude, snr) = fit_tone(steady, 1000.0, to);
                assert!(
                    (19_800.0..20_200.0).contains(&amplitude),
                    "{from} to {to}: {amplitude}"
                );
                assert!(snr > 70.0, "{from} to {to}: {snr} dB");
            }
        }
    }

    #[test]
    fn what_the_lower_rate_cannot_hold_is_filtered_out() {
        for (to, frequency) in [(16_000, 10_000.0), (8_000, 5_000.0), (24_000, 14_000.0)] {
            let input = tone(frequency, 48_000, 1, 48_000, 20_000.0);
            let output = convert(&input, (48_000, 1), (to, 1));
            let loudest = output[output.len() / 4..]
                .iter()
                .map(|s| s.unsigned_abs())
                .max();
            // 60 dB below the input.
            assert!(loudest < Some(20), "{to} Hz: {loudest:?}");
        }
    }

    #[test]
    fn frames_of_10_ms_give_frames_of_10_ms() {
        for from in [8_000, 16_000, 24_000, 32_000, 44_100, 48_000] {
            for to in [8_000, 16_000, 24_000, 32_000, 44_100, 48_000] {
                let mut resampler = AudioResampler::default();
                let samples = vec![100; from as usize / 100];
                for _ in 0..20 {
                    let pcm = Pcm {
                        samples: &samples,
                        sample_rate_hz: from,
                        channels: 1,
                    };
                    assert_eq!(
                        resampler.convert(pcm, 1, to).len(),
                        to as usize / 100,
                        "{from} to {to}"
                    );
                }
            }
        }
    }

    #[test]
    fn length_is_exact_over_time_at_odd_rates_and_frame_lengths() {
        for (from, to, frame_len) in [
            (22_050, 48_000, 220),
            (48_000, 22_050, 480),
            (11_025, 16_000, 64),
            (48_000, 16_000, 1),
        ] {
            let mut resampler = AudioResampler::default();
            let input = tone(300.0, from, 1, from as usize * 3, 10_000.0);
            let mut frames = 0;
            for samples in input.chunks(frame_len) {
                let pcm = Pcm {
                    samples,
                    sample_rate_hz: from,
                    channels: 1,
                };
                frames += resampler.convert(pcm, 1, to).len();
            }
            let missing = to as usize * 3 - frames;
            assert!(
                missing <= to as usize / 50,
                "{from} to {to}: {missing} samples are held back"
            );
        }
    }

    #[test]
    fn channels_are_mixed_copied_and_kept() {
        let stereo: Vec<i16> = (0..480).flat_map(|_| [1000, 3000]).collect();
        assert_eq!(convert(&stereo, (48_000, 2), (48_000, 1)), vec![2000; 480]);
        assert_eq!(
            convert(&[500; 480], (48_000, 1), (48_000, 2)),
            vec![500; 960]
        );
        assert_eq!(convert(&stereo, (48_000, 2), (48_000, 2)), stereo);
        let quad: Vec<i16> = (0..480).flat_map(|_| [1, 2, 3, 4]).collect();
        assert_eq!(convert(&quad, (48_000, 4), (48_000, 2))[..4], [1, 2, 1, 2]);

        let left = tone(400.0, 48_000, 1, 48_000, 10_000.0);
        let right = tone(700.0, 48_000, 1, 48_000, 10_000.0);
        let both: Vec<i16> = left
            .iter()
            .zip(&right)
            .flat_map(|(l, r)| [*l, *r])
            .collect();
        let output = convert(&both, (48_000, 2), (16_000, 2));
        for (index, frequency) in [(0, 400.0), (1, 700.0)] {
            let (amplitude, snr) =
                fit_tone(&channel(&output, 2, index)[4000..12_000], frequency, 16_000);
            assert!(
                (9_900.0..10_100.0).contains(&amplitude) && snr > 60.0,
                "{amplitude}, {snr} dB"
            );
        }
    }

    #[test]
    fn full_scale_sound_is_clipped_and_does_not_wrap() {
        let square: Vec<i16> = (0..48_000)
            .map(|i| if i / 240 % 2 == 0 { i16::MAX } else { i16::MIN })
            .collect();
        let output = convert(&square, (48_000, 1), (16_000, 1));
        let high = &output[8000..8080];
        // A wrapped overshoot would be a sample of the opposite sign in the middle of a half wave.
        let changes = high
            .windows(2)
            .filter(|two| (two[0] < 0) != (two[1] < 0))
            .count();
        assert!(changes <= 1, "{changes} changes of sign");
    }

    #[test]
    fn public_interface_converts_a_frame() {
        let mut resampler = AudioResampler::default();
        let output = resampler.remix_and_resample(&[0; 960], 480, 2, 48_000, 1, 24_000);
        assert_eq!(output, [0; 240]);
    }
}
