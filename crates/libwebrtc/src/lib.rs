//! The `libwebrtc` API that the official `livekit` crate uses, made in Rust on str0m and libopus.
//!
//! `[patch.crates-io]` puts this crate in the place of the bindings to Google's C++
//! library. It has the same module names, types and signatures as far as `livekit` 0.10 refers to
//! them, and nothing more.
//!
//! # Map of the code
//!
//! - The public modules named as in the original (`peer_connection`, `data_channel`, `rtp_sender`,
//!   …) hold the types that `livekit` sees. They carry no logic of their own.
//! - `connection`: one peer connection as handles and driver share it, behind a mutex that is
//!   never held while waiting.
//! - `core`: the same without sockets and clocks. It owns the str0m instance; time comes in as an
//!   argument, packets and events come out as values.
//! - `jsep`: reading and writing of session descriptions and the offer/answer exchange. Pure.
//! - `rtp`: transceivers with their halves, and what attaches audio to them.
//! - `ice`: addresses from STUN servers and relays on TURN servers, without sockets and clocks.
//! - `driver`: the task that owns the sockets of one peer connection, feeds its core and calls the
//!   application's callbacks, in order and without holding a lock.
//! - `ice_tcp`: outgoing TCP connections to ICE-TCP candidates.
//! - `engine`: the one media thread of the process, where all drivers and the audio clock run.
//! - `audio`: capture queue, Opus, jitter buffer, clock.
//! - `native::frame_cryptor`: end-to-end encryption of sound and data.
//! - `internals`, with the feature of that name: fuzz targets, and what benchmarks measure.
//!
//! # Not supported
//!
//! Video cannot be sent or received, and there are no audio devices: calls that would need them
//! return an error, `false`, or zero devices.

#![forbid(unsafe_code)]

use thiserror::Error;

mod audio;
mod callback;
mod connection;
mod core;
mod driver;
mod engine;
mod enum_dispatch;
mod ice;
mod ice_tcp;
mod jsep;
mod rtp;

pub mod audio_frame;
pub mod audio_source;
pub mod audio_stream;
pub mod audio_track;
pub mod data_channel;
pub mod ice_candidate;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
pub mod media_stream;
pub mod media_stream_track;
pub mod native;
pub mod peer_connection;
pub mod peer_connection_factory;
pub mod prelude;
pub mod rtp_parameters;
pub mod rtp_receiver;
pub mod rtp_sender;
pub mod rtp_transceiver;
pub mod session_description;
pub mod stats;
pub mod video_frame;
pub mod video_source;
pub mod video_stream;
pub mod video_track;

/// What an m-section or a transceiver carries.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum MediaType {
    /// Sound.
    Audio,
    /// Pictures. Not supported beyond negotiation.
    Video,
    /// Data channels.
    Data,
    /// Anything else that a session description may name.
    Unsupported,
}

/// The kind of an [`RtcError`], as far as callers treat them differently.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum RtcErrorType {
    /// Something this crate cannot do, or an error of the engine.
    Internal,
    /// A session description that cannot be parsed or does not fit the connection.
    InvalidSdp,
    /// The call is not allowed in the current state.
    InvalidState,
}

/// Error of a call on a peer connection or one of its parts.
#[derive(Error, Debug)]
#[error("an RtcError occurred: {error_type:?} - {message}")]
pub struct RtcError {
    /// What kind of error it is.
    pub error_type: RtcErrorType,
    /// A sentence for people.
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

    pub(crate) fn sdp(message: impl Into<String>) -> Self {
        Self {
            error_type: RtcErrorType::InvalidSdp,
            message: message.into(),
        }
    }
}
