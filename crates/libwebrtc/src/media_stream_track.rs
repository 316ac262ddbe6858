//! What audio and video tracks have in common.

/// Whether a track can still carry media.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum RtcTrackState {
    /// The track may carry media.
    Live,
    /// The track will never carry media again.
    Ended,
}
