//! Transceivers with their halves, as the handles of the application share them with the connection.

use std::{convert::Infallible, sync::Arc};

use crate::{
    RtcError,
    media_stream_track::MediaStreamTrack,
    rtp_parameters::{RtpCodecCapability, RtpParameters},
    rtp_transceiver::RtpTransceiverDirection,
    stats::RtcStats,
};

/// What the application may know of a transceiver.
pub(crate) struct TransceiverView {
    pub mid: Option<String>,
    pub direction: RtpTransceiverDirection,
    pub current_direction: Option<RtpTransceiverDirection>,
}

pub(crate) struct Transceiver {
    pub sender: Arc<Sender>,
    pub receiver: Arc<Receiver>,
    never: Infallible,
}

pub(crate) struct Sender {
    never: Infallible,
}

pub(crate) struct Receiver {
    pub track: MediaStreamTrack,
    never: Infallible,
}

impl Transceiver {
    pub fn view(&self) -> TransceiverView {
        match self.never {}
    }
    pub fn set_codec_preferences(&self, _codecs: &[RtpCodecCapability]) -> Result<(), RtcError> {
        match self.never {}
    }
    pub fn stop(&self) -> Result<(), RtcError> {
        match self.never {}
    }
}

impl Sender {
    pub fn track(&self) -> Option<MediaStreamTrack> {
        match self.never {}
    }
    pub fn set_track(&self, _track: Option<MediaStreamTrack>) -> Result<(), RtcError> {
        match self.never {}
    }
    pub fn stats(&self) -> Result<Vec<RtcStats>, RtcError> {
        match self.never {}
    }
    pub fn parameters(&self) -> RtpParameters {
        match self.never {}
    }
    pub fn set_parameters(&self, _parameters: RtpParameters) -> Result<(), RtcError> {
        match self.never {}
    }
}

impl Receiver {
    pub fn stream_ids(&self) -> Vec<String> {
        match self.never {}
    }
    pub fn stats(&self) -> Result<Vec<RtcStats>, RtcError> {
        match self.never {}
    }
    pub fn parameters(&self) -> RtpParameters {
        match self.never {}
    }
}
