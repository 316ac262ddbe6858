//! One peer connection without sockets and clocks.

pub(crate) mod channel;
