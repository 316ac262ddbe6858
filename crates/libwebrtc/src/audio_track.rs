//! Audio tracks, local and remote.

use std::fmt::{Debug, Formatter};

use crate::{
    audio::track::AudioTrack, audio_source::native::NativeAudioSource,
    media_stream_track::RtcTrackState,
};

/// An audio track. Clones refer to the same track.
#[derive(Clone)]
pub struct RtcAudioTrack {
    pub(crate) handle: AudioTrack,
}

impl RtcAudioTrack {
    /// A local track that sends what is pushed into `source`.
    pub(crate) fn from_source(id: String, source: NativeAudioSource) -> Self {
        Self {
            handle: AudioTrack::local(&id, &source.core),
        }
    }

    /// A local track without sound.
    pub(crate) fn silent(id: String) -> Self {
        Self {
            handle: AudioTrack::local_without_source(&id),
        }
    }

    /// A remote track, to be fed by an [`AudioReceiver`](crate::audio::receiver::AudioReceiver).
    pub(crate) fn remote(id: String) -> Self {
        Self {
            handle: AudioTrack::remote(&id),
        }
    }

    /// The id that names the track in session descriptions.
    pub fn id(&self) -> String {
        self.handle.id().to_owned()
    }

    /// Whether the track's sound is let through.
    pub fn enabled(&self) -> bool {
        self.handle.enabled()
    }

    /// Lets the sound of the track through or replaces it by silence; returns whether that was a
    /// change.
    pub fn set_enabled(&self, enabled: bool) -> bool {
        self.handle.set_enabled(enabled)
    }

    /// Whether the track can still carry sound.
    pub fn state(&self) -> RtcTrackState {
        if self.handle.has_ended() {
            RtcTrackState::Ended
        } else {
            RtcTrackState::Live
        }
    }
}

impl Debug for RtcAudioTrack {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RtcAudioTrack")
            .field("id", &self.id())
            .field("enabled", &self.enabled())
            .field("state", &self.state())
            .finish()
    }
}
