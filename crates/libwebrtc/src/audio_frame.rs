//! A piece of PCM sound as the application gives and gets it.

use std::borrow::Cow;

/// Interleaved 16-bit PCM with its format.
#[derive(Debug, Clone)]
pub struct AudioFrame<'a> {
    /// Interleaved samples: `num_channels * samples_per_channel` of them.
    pub data: Cow<'a, [i16]>,
    /// Sample rate in Hz.
    pub sample_rate: u32,
    /// Number of interleaved channels.
    pub num_channels: u32,
    /// Number of samples of each channel.
    pub samples_per_channel: u32,
}

impl AudioFrame<'_> {
    /// Makes a frame of silence.
    pub fn new(sample_rate: u32, num_channels: u32, samples_per_channel: u32) -> Self {
        let samples = num_channels as usize * samples_per_channel as usize;
        Self {
            data: Cow::Owned(vec![0; samples]),
            sample_rate,
            num_channels,
            samples_per_channel,
        }
    }
}
