//! The `libwebrtc` API that the official `livekit` crate uses, made in Rust on str0m and libopus.

pub mod audio_frame;
pub mod audio_source;
pub mod audio_stream;
pub mod audio_track;
pub mod media_stream_track;

mod audio;
mod engine;

use thiserror::Error;

/// What kind of fault an [`RtcError`] reports.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum RtcErrorType {
    /// The engine itself failed.
    Internal,
    /// A session description could not be understood.
    InvalidSdp,
    /// The call is not possible in the present state.
    InvalidState,
}

/// An error of the media engine.
#[derive(Error, Debug)]
#[error("{message} ({error_type:?})")]
pub struct RtcError {
    /// What kind of fault it is.
    pub error_type: RtcErrorType,
    /// The fault in words.
    pub message: String,
}

impl RtcError {
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self {
            error_type: RtcErrorType::Internal,
            message: message.into(),
        }
    }

    pub(crate) fn state(message: impl Into<String>) -> Self {
        Self {
            error_type: RtcErrorType::InvalidState,
            message: message.into(),
        }
    }
}

/// Extras that only a native (not a browser) build of the API has.
pub mod native {
    /// Conversion of sample rate and channel count.
    pub mod audio_resampler {
        pub use crate::audio::resample::AudioResampler;
    }
}
