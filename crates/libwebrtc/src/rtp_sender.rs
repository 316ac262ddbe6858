//! The sending half of a transceiver.

use std::{fmt::Debug, sync::Arc};

use crate::{
    RtcError, media_stream_track::MediaStreamTrack, rtp::Sender, rtp_parameters::RtpParameters,
    stats::RtcStats,
};

/// Which video encoder is wanted. Kept for the API; there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum VideoEncoderBackend {
    /// The engine chooses.
    #[default]
    Auto,
    /// An encoder on the processor.
    Software,
    /// Any hardware encoder.
    Hardware,
    /// NVIDIA's encoder.
    Nvenc,
    /// An encoder through VA-API.
    Vaapi,
    /// Apple's encoder.
    VideoToolbox,
    /// Frames are encoded by the application.
    PreEncoded,
}

impl VideoEncoderBackend {
    /// The encoders that exist: none.
    pub fn list_available() -> impl IntoIterator<Item = VideoEncoderBackend> {
        std::iter::empty()
    }
}

/// Handle of a sender.
#[derive(Clone)]
pub struct RtpSender {
    pub(crate) sender: Arc<Sender>,
}

impl RtpSender {
    /// The track that is sent.
    pub fn track(&self) -> Option<MediaStreamTrack> {
        self.sender.track()
    }

    /// Statistics of what is sent.
    ///
    /// # Errors
    ///
    /// None; the official crate's signature has them.
    pub async fn get_stats(&self) -> Result<Vec<RtcStats>, RtcError> {
        self.sender.stats()
    }

    /// Sends another track, or none, without a negotiation.
    ///
    /// # Errors
    ///
    /// When the track is of another kind than the sender.
    pub fn set_track(&self, track: Option<MediaStreamTrack>) -> Result<(), RtcError> {
        self.sender.set_track(track)
    }

    /// Codecs, header extensions and encodings in use.
    pub fn parameters(&self) -> RtpParameters {
        self.sender.parameters()
    }

    /// Changes the encodings.
    ///
    /// # Errors
    ///
    /// When encodings were added or taken away.
    pub fn set_parameters(&self, parameters: RtpParameters) -> Result<(), RtcError> {
        self.sender.set_parameters(parameters)
    }

    /// Concerns video, which is not sent.
    pub fn set_video_encoder_backend(&self, _backend: VideoEncoderBackend) {}
}

impl Debug for RtpSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RtpSender")
            .field("track", &self.track())
            .finish()
    }
}
