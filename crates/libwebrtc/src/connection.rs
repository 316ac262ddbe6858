//! One peer connection, shared by the application's handles and the driver task.

use std::{convert::Infallible, sync::Arc};

use crate::{
    MediaType, RtcError,
    callback::CallbackSlot,
    data_channel::{DataChannel, DataChannelInit},
    ice_candidate::IceCandidate,
    media_stream_track::MediaStreamTrack,
    peer_connection::*,
    peer_connection_factory::RtcConfiguration,
    rtp_sender::RtpSender,
    rtp_transceiver::{RtpTransceiver, RtpTransceiverInit},
    session_description::SessionDescription,
    stats::RtcStats,
};

/// Callbacks of the application.
#[derive(Default)]
pub(crate) struct Callbacks {
    pub connection_change: CallbackSlot<OnConnectionChange>,
    pub data_channel: CallbackSlot<OnDataChannel>,
    pub ice_candidate: CallbackSlot<OnIceCandidate>,
    pub ice_candidate_error: CallbackSlot<OnIceCandidateError>,
    pub ice_connection_change: CallbackSlot<OnIceConnectionChange>,
    pub ice_gathering_change: CallbackSlot<OnIceGatheringChange>,
    pub negotiation_needed: CallbackSlot<OnNegotiationNeeded>,
    pub signaling_change: CallbackSlot<OnSignalingChange>,
    pub track: CallbackSlot<OnTrack>,
}

/// There is no connection yet: opening one is an error, so that none of the methods can ever be called.
pub(crate) struct Connection {
    pub(crate) callbacks: Callbacks,
    never: Infallible,
}

macro_rules! never_called {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)*) $(-> $result:ty)?;)*) => {
        impl Connection {
            $(pub(crate) fn $name(&self $(, $argument: $type)*) $(-> $result)? {
                $(let _ = $argument;)*
                match self.never {}
            })*
        }
    };
}

impl Connection {
    pub(crate) fn open(_config: RtcConfiguration) -> Result<Arc<Self>, RtcError> {
        Err(RtcError::internal(
            "this media engine cannot open peer connections yet",
        ))
    }
}

never_called! {
    fn set_configuration(&self, config: RtcConfiguration) -> Result<(), RtcError>;
    fn set_bitrate(&self, settings: BitrateSettings) -> Result<(), RtcError>;
    fn create_offer(&self, options: &OfferOptions) -> Result<SessionDescription, RtcError>;
    fn create_answer(&self) -> Result<SessionDescription, RtcError>;
    fn set_local_description(&self, desc: SessionDescription) -> Result<(), RtcError>;
    fn set_remote_description(&self, desc: SessionDescription) -> Result<(), RtcError>;
    fn add_ice_candidate(&self, candidate: &IceCandidate) -> Result<(), RtcError>;
    fn create_data_channel(&self, label: &str, init: DataChannelInit) -> Result<DataChannel, RtcError>;
    fn remove_track(&self, sender: &RtpSender) -> Result<(), RtcError>;
    fn stats(&self) -> Result<Vec<RtcStats>, RtcError>;
    fn add_transceiver(
        &self,
        kind: MediaType,
        track: Option<MediaStreamTrack>,
        init: RtpTransceiverInit
    ) -> Result<RtpTransceiver, RtcError>;
    fn close(&self);
    fn restart_ice(&self);
    fn connection_state(&self) -> PeerConnectionState;
    fn ice_connection_state(&self) -> IceConnectionState;
    fn ice_gathering_state(&self) -> IceGatheringState;
    fn signaling_state(&self) -> SignalingState;
    fn current_local_description(&self) -> Option<SessionDescription>;
    fn current_remote_description(&self) -> Option<SessionDescription>;
    fn transceivers(&self) -> Vec<RtpTransceiver>;
}
