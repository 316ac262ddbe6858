//! Where the sound of a local track comes from.
//!
//! The application pushes PCM into a [`native::NativeAudioSource`]. There are no sound devices in
//! this engine: a device source is accepted, because the API has it, and stays silent.

/// Sample rate that a device source reports, in Hz.
pub const DEFAULT_SAMPLE_RATE: u32 = 48_000;

/// Channel count that a device source reports.
pub const DEFAULT_NUM_CHANNELS: u32 = 1;

/// Sound processing that an application may ask for. The values are stored and returned; nothing is
/// processed, since there is no device.
#[derive(Default, Debug)]
pub struct AudioSourceOptions {
    /// Remove the echo of the loudspeaker.
    pub echo_cancellation: bool,
    /// Remove steady noise.
    pub noise_suppression: bool,
    /// Level the loudness.
    pub auto_gain_control: bool,
}

/// The source of a local audio track.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub enum RtcAudioSource {
    /// PCM that the application pushes.
    Native(native::NativeAudioSource),
    /// A sound device. This engine has none: the track is silent.
    Device,
}

impl RtcAudioSource {
    /// Stores the processing options of a native source; a device source ignores them.
    pub fn set_audio_options(&self, options: AudioSourceOptions) {
        if let Self::Native(source) = self {
            source.set_audio_options(options);
        }
    }

    /// The processing options, the defaults for a device source.
    pub fn audio_options(&self) -> AudioSourceOptions {
        match self {
            Self::Native(source) => source.audio_options(),
            Self::Device => AudioSourceOptions::default(),
        }
    }

    /// Sample rate in Hz.
    pub fn sample_rate(&self) -> u32 {
        match self {
            Self::Native(source) => source.sample_rate(),
            Self::Device => DEFAULT_SAMPLE_RATE,
        }
    }

    /// Number of channels.
    pub fn num_channels(&self) -> u32 {
        match self {
            Self::Native(source) => source.num_channels(),
            Self::Device => DEFAULT_NUM_CHANNELS,
        }
    }
}

/// The source into which the application pushes PCM.
pub mod native {
    use std::fmt::{Debug, Formatter};

    use super::AudioSourceOptions;
    use crate::{RtcError, audio::source::SourceCore, audio_frame::AudioFrame};

    /// A queue of PCM that the media clock plays out evenly, 10 ms at a time. Clones share the
    /// queue.
    #[derive(Clone)]
    pub struct NativeAudioSource {
        pub(crate) core: std::sync::Arc<SourceCore>,
    }

    impl Debug for NativeAudioSource {
        fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("NativeAudioSource")
                .field("sample_rate", &self.sample_rate())
                .field("num_channels", &self.num_channels())
                .finish()
        }
    }

    impl NativeAudioSource {
        /// Makes a source with a queue of `queue_size_ms`.
        ///
        /// With a queue, sound is played out by the clock: [`capture_frame`](Self::capture_frame)
        /// takes frames of any length and waits while more than `queue_size_ms` lie ready, so the
        /// queue holds at most twice that for a short time. With `queue_size_ms` 0 there is no
        /// clock: each call must bring exactly 10 ms, which are sent before the call returns.
        ///
        /// # Panics
        ///
        /// If `queue_size_ms` is not a multiple of 10, or `sample_rate` or `num_channels` is zero.
        pub fn new(
            options: AudioSourceOptions,
            sample_rate: u32,
            num_channels: u32,
            queue_size_ms: u32,
        ) -> Self {
            Self {
                core: SourceCore::new(options, sample_rate, num_channels, queue_size_ms),
            }
        }

        /// Drops everything that waits to be played and lets a waiting
        /// [`capture_frame`](Self::capture_frame) return at once.
        pub fn clear_buffer(&self) {
            self.core.clear_buffer();
        }

        /// Puts PCM into the queue and returns when at most the queue size lies ready.
        ///
        /// # Errors
        ///
        /// `InvalidState` if the format is not the source's, if another call is still waiting, or
        /// if a source without a queue gets anything but 10 ms.
        pub async fn capture_frame(&self, frame: &AudioFrame<'_>) -> Result<(), RtcError> {
            self.core.capture_frame(frame).await
        }

        /// Stores the processing options.
        pub fn set_audio_options(&self, options: AudioSourceOptions) {
            self.core.set_audio_options(options);
        }

        /// The stored processing options.
        pub fn audio_options(&self) -> AudioSourceOptions {
            self.core.audio_options()
        }

        /// Sample rate in Hz.
        pub fn sample_rate(&self) -> u32 {
            self.core.sample_rate_hz()
        }

        /// Number of channels.
        pub fn num_channels(&self) -> u32 {
            self.core.channels()
        }
    }
}
