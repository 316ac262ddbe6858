//! The receiving half of a transceiver.

use std::{fmt::Debug, sync::Arc};

use crate::{
    RtcError, media_stream::MediaStream, media_stream_track::MediaStreamTrack, rtp::Receiver,
    rtp_parameters::RtpParameters, stats::RtcStats,
};

/// Handle of a receiver.
#[derive(Clone)]
pub struct RtpReceiver {
    pub(crate) receiver: Arc<Receiver>,
}

impl RtpReceiver {
    /// The track that delivers what is received.
    pub fn track(&self) -> Option<MediaStreamTrack> {
        Some(self.receiver.track.clone())
    }

    /// Ids of the streams that the other side put the track into; none while it does not send.
    pub fn stream_ids(&self) -> Vec<String> {
        self.receiver.stream_ids()
    }

    /// The streams that the other side put the track into; none while it does not send.
    pub fn streams(&self) -> Vec<MediaStream> {
        self.stream_ids()
            .into_iter()
            .map(|id| MediaStream::new(id, self.receiver.track.clone()))
            .collect()
    }

    /// Statistics of what is received.
    ///
    /// # Errors
    ///
    /// None; the official crate's signature has them.
    pub async fn get_stats(&self) -> Result<Vec<RtcStats>, RtcError> {
        self.receiver.stats()
    }

    /// Codecs and header extensions in use.
    pub fn parameters(&self) -> RtpParameters {
        self.receiver.parameters()
    }
}

impl Debug for RtpReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RtpReceiver")
            .field("track", &self.receiver.track)
            .field("streams", &self.stream_ids())
            .finish()
    }
}
