//! Opus sound in Ogg files (RFC 7845): writing as the sound arrives, reading it back, and measuring
//! how long it is.
//!
//! Everything here works on 48 kHz samples, because that is the clock of Opus in Ogg whatever was
//! recorded. A "sample" is one instant of all channels together; interleaved buffers hold
//! `channels` values for each.
//!
//! - [`Writer`] encodes interleaved sound and writes it in pages of about a second, so that a
//!   process which dies loses no more than that.
//! - [`DualChannelTimeline`] puts the sound of a call in order: the agent left, the caller right,
//!   silence where nobody sent anything.
//! - [`DualChannelWriter`] is the two together, which is all that a call recorder needs.
//! - [`duration`] reads the length of a file from its end; [`Reader`] decodes it.
//!
//! The crate knows nothing about calls, tracks or the network, spawns nothing and reads no clock:
//! positions are given to it.

#![forbid(unsafe_code)]

mod reader;
mod timeline;
mod writer;

pub use reader::{Reader, duration};
pub use timeline::{
    DualChannelTimeline, DualChannelWriter, Placed, Side, SourceId, TimelineOptions,
};
pub use writer::{Writer, WriterOptions};

/// Samples per second of everything in this crate (RFC 7845, section 4: granule positions always
/// count at 48 kHz).
pub const SAMPLE_RATE_HZ: u32 = 48_000;

/// Number of channels in a file. RFC 7845's channel mapping family 0 knows these two and no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// One channel.
    Mono,
    /// Two channels, left first.
    Stereo,
}

impl Channels {
    /// How many values one sample has in an interleaved buffer.
    pub fn count(self) -> usize {
        match self {
            Channels::Mono => 1,
            Channels::Stereo => 2,
        }
    }

    fn from_count(count: u8) -> Option<Self> {
        match count {
            1 => Some(Channels::Mono),
            2 => Some(Channels::Stereo),
            _ => None,
        }
    }

    fn for_codec(self) -> opus::Channels {
        match self {
            Channels::Mono => opus::Channels::Mono,
            Channels::Stereo => opus::Channels::Stereo,
        }
    }
}

/// Why sound could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or stream underneath failed.
    #[error("reading or writing the file failed: {0}")]
    Io(#[from] std::io::Error),
    /// The codec refused what it was given.
    #[error("the opus codec failed: {0}")]
    Codec(#[from] opus::Error),
    /// What was read is not Opus in Ogg, or is damaged; the text says where.
    #[error("not a readable ogg opus file: {0}")]
    Malformed(String),
}

impl Error {
    fn malformed(what: impl Into<String>) -> Self {
        Error::Malformed(what.into())
    }
}
