//! Transceivers: a sender and a receiver that share one section of the session description.

use std::{fmt::Debug, sync::Arc};

use crate::{
    RtcError,
    rtp::Transceiver,
    rtp_parameters::{RtpCodecCapability, RtpEncodingParameters},
    rtp_receiver::RtpReceiver,
    rtp_sender::RtpSender,
};

/// How a new transceiver begins.
#[derive(Debug, Clone)]
pub struct RtpTransceiverInit {
    pub direction: RtpTransceiverDirection,
    /// Streams that the track shall belong to on the other side.
    pub stream_ids: Vec<String>,
    /// Encodings to send; one is made when there is none.
    pub send_encodings: Vec<RtpEncodingParameters>,
}

/// Which ways media flows, seen from this side.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum RtpTransceiverDirection {
    SendRecv,
    SendOnly,
    RecvOnly,
    Inactive,
    Stopped,
}

/// Handle of a transceiver.
#[derive(Clone)]
pub struct RtpTransceiver {
    pub(crate) transceiver: Arc<Transceiver>,
}

impl RtpTransceiver {
    /// Identification tag of its section, once it has been negotiated.
    pub fn mid(&self) -> Option<String> {
        self.transceiver.view().mid
    }

    /// The direction that both sides agreed on, once they have.
    pub fn current_direction(&self) -> Option<RtpTransceiverDirection> {
        self.transceiver.view().current_direction
    }

    /// The direction that this side wants.
    pub fn direction(&self) -> RtpTransceiverDirection {
        self.transceiver.view().direction
    }

    /// The sending half.
    pub fn sender(&self) -> RtpSender {
        RtpSender {
            sender: self.transceiver.sender.clone(),
        }
    }

    /// The receiving half.
    pub fn receiver(&self) -> RtpReceiver {
        RtpReceiver {
            receiver: self.transceiver.receiver.clone(),
        }
    }

    /// Says which codecs are wanted, the best first.
    ///
    /// # Errors
    ///
    /// When codecs are named and none of them can be used.
    pub fn set_codec_preferences(&self, codecs: Vec<RtpCodecCapability>) -> Result<(), RtcError> {
        self.transceiver.set_codec_preferences(&codecs)
    }

    /// Ends the transceiver for ever, with the next negotiation also on the other side.
    pub fn stop(&self) -> Result<(), RtcError> {
        self.transceiver.stop()
    }
}

impl Debug for RtpTransceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RtpTransceiver")
            .field("mid", &self.mid())
            .field("direction", &self.direction())
            .field("sender", &self.sender())
            .field("receiver", &self.receiver())
            .finish()
    }
}
