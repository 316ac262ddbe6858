//! Conversion of sample rate and channel count.
//!
//! The rate is converted by rubato's FFT resampler in blocks of about 10 ms: at the rates of telephony and speech recognition one frame in
//! gives one frame out, delayed by half a block. Where the rates are equal nothing but the channels is touched.

use rubato::{Fft, FixedSync, Resampler, audioadapter_buffers::direct::InterleavedSlice};

use super::track::Pcm;

/// Converts a stream of PCM. It keeps the tail of what it saw, so one converter serves one stream; when the format changes it starts anew.
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
    /// Converts interleaved `src` to `dst_num_channels` at `dst_sample_rate` Hz. What comes back is the part that is ready: with frames of 10 ms
    /// as many out as in, with others what the whole blocks so far give.
    ///
    /// # Panics
    ///
    /// If `src` is shorter than `samples_per_channel * num_channels`, or a rate or channel count is zero.
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
        // Filtering is the dear part, so it is done on the smaller number of channels.
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

/// A rate converter with the input that does not fill a block yet.
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

/// Changes the channel count: down to mono by the mean, up from mono by copying; otherwise the first channels are kept and missing ones are
/// copies of the last.
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
