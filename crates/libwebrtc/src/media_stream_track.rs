//! What audio and video tracks have in common.

use crate::{audio_track::RtcAudioTrack, enum_dispatch, video_track::RtcVideoTrack};

/// Whether a track can still deliver media.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum RtcTrackState {
    /// The track can carry media.
    Live,
    /// The track will never carry media again.
    Ended,
}

/// A track of either kind.
#[derive(Debug, Clone)]
pub enum MediaStreamTrack {
    /// A video track, which never carries a picture.
    Video(RtcVideoTrack),
    /// An audio track.
    Audio(RtcAudioTrack),
}

impl MediaStreamTrack {
    enum_dispatch!(
        [Video, Audio];
        /// Id of the track.
        pub fn id(self: &Self) -> String;
        /// Whether media flows; a disabled track is silent.
        pub fn enabled(self: &Self) -> bool;
        /// Mutes or unmutes. Returns whether this changed anything.
        pub fn set_enabled(self: &Self, enabled: bool) -> bool;
        /// Current state.
        pub fn state(self: &Self) -> RtcTrackState;
    );
}

impl From<RtcAudioTrack> for MediaStreamTrack {
    fn from(track: RtcAudioTrack) -> Self {
        Self::Audio(track)
    }
}

impl From<RtcVideoTrack> for MediaStreamTrack {
    fn from(track: RtcVideoTrack) -> Self {
        Self::Video(track)
    }
}
