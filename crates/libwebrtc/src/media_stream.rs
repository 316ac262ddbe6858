//! A stream: a name by which the sender groups tracks. LiveKit puts the ids of participant and
//! track into it.

use crate::{
    audio_track::RtcAudioTrack, media_stream_track::MediaStreamTrack, video_track::RtcVideoTrack,
};

/// Tracks of one receiver under the stream id that the sender gave them.
#[derive(Clone, Debug)]
pub struct MediaStream {
    id: String,
    track: MediaStreamTrack,
}

impl MediaStream {
    pub(crate) fn new(id: String, track: MediaStreamTrack) -> Self {
        Self { id, track }
    }

    /// Stream id from the `msid` attribute; LiveKit uses `PA_…|TR_…`.
    pub fn id(&self) -> String {
        self.id.clone()
    }

    /// Audio tracks of the stream.
    pub fn audio_tracks(&self) -> Vec<RtcAudioTrack> {
        match &self.track {
            MediaStreamTrack::Audio(track) => vec![track.clone()],
            MediaStreamTrack::Video(_) => vec![],
        }
    }

    /// Video tracks of the stream.
    pub fn video_tracks(&self) -> Vec<RtcVideoTrack> {
        match &self.track {
            MediaStreamTrack::Video(track) => vec![track.clone()],
            MediaStreamTrack::Audio(_) => vec![],
        }
    }
}
