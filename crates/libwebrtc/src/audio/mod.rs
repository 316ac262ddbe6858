//! Sound, from the application's PCM to Opus packets and back.
//!
//! - Out: [`source`] (the application's queue) → [`track`] → [`encoder`] (Opus packets, handed to
//!   whoever sends them).
//! - In: [`receiver`] (jitter buffer and decoder) → [`track`] → [`stream`] (the application's
//!   frames).
//! - [`clock`] drives both every 10 ms on the media thread.
//!
//! The machinery that decides anything knows no socket, thread or clock and gets the time as an
//! argument: [`source_queue`], [`resample`], [`delay`], [`stretch`], [`jitter`], [`level`],
//! [`noise`], [`red`], [`rate`]. Nothing here knows RTP headers, SDP or peer connections.

pub(crate) mod clock;
pub(crate) mod decoder;
pub(crate) mod delay;
pub(crate) mod encoder;
pub(crate) mod jitter;
pub(crate) mod level;
#[cfg(test)]
pub(crate) mod link;
pub(crate) mod loss;
pub(crate) mod noise;
#[cfg(test)]
mod quality;
pub(crate) mod rate;
pub(crate) mod receiver;
pub(crate) mod red;
pub(crate) mod resample;
pub(crate) mod source;
pub(crate) mod source_queue;
pub(crate) mod stream;
pub(crate) mod stretch;
#[cfg(any(test, feature = "internals"))]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "benchmarks want the voice only")
)]
pub(crate) mod testing;
pub(crate) mod track;

/// Sample rate at which everything is encoded, decoded and buffered, and the clock rate of Opus in
/// RTP (RFC 7587, section 4.1).
pub(crate) const OPUS_RATE_HZ: u32 = 48_000;

/// Samples of each channel in 10 ms at [`OPUS_RATE_HZ`]: what the clock moves with one tick.
pub(crate) const TICK_SAMPLES: usize = 480;
