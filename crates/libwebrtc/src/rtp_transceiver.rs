//! Transceivers: a sender and a receiver that share one section of the session description.

use std::{fmt::Debug, sync::Arc};

use crate::{
    RtcError,
    rtp::Transceiver,
    rtp_parameters::{RtpCodecCapability, RtpEncodingParameters},
    rtp_receiver::RtpReceiver,
    rtp_sender::RtpSender,
};

/// Initial settings of a new transceiver.
#[derive(Debug, Clone)]
pub struct RtpTransceiverInit {
    /// The direction that this side wants.
    pub direction: RtpTransceiverDirection,
    /// Streams that the track belongs to on the other side.
    pub stream_ids: Vec<String>,
    /// Encodings to send; one is made when there is none.
    pub send_encodings: Vec<RtpEncodingParameters>,
}

/// In which directions media flows, seen from this side.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum RtpTransceiverDirection {
    /// Both sides send.
    SendRecv,
    /// Only this side sends.
    SendOnly,
    /// Only the other side sends.
    RecvOnly,
    /// Neither side sends.
    Inactive,
    /// The transceiver has ended.
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

    /// The direction that both sides agreed on, `None` before they have.
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

    /// Sets which codecs are wanted, the best first.
    ///
    /// # Errors
    ///
    /// When codecs are named and none of them can be used.
    pub fn set_codec_preferences(&self, codecs: Vec<RtpCodecCapability>) -> Result<(), RtcError> {
        self.transceiver.set_codec_preferences(&codecs)
    }

    /// Ends the transceiver for ever, with the next negotiation also on the other side.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
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
