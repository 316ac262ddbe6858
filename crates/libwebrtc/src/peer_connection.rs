//! The peer connection as the application sees it. `connection` does the work.

use std::{fmt::Debug, sync::Arc};

use crate::{
    MediaType, RtcError,
    connection::Connection,
    data_channel::{DataChannel, DataChannelInit},
    ice_candidate::IceCandidate,
    media_stream::MediaStream,
    media_stream_track::MediaStreamTrack,
    peer_connection_factory::RtcConfiguration,
    rtp_receiver::RtpReceiver,
    rtp_sender::RtpSender,
    rtp_transceiver::{RtpTransceiver, RtpTransceiverDirection, RtpTransceiverInit},
    session_description::SessionDescription,
    stats::RtcStats,
};

/// State of ICE and DTLS together (W3C WebRTC, `RTCPeerConnectionState`).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum PeerConnectionState {
    /// No description has been exchanged yet.
    New,
    /// Candidates are checked, or DTLS is not done yet.
    Connecting,
    /// ICE and DTLS are done: media and data can be sent.
    Connected,
    /// Nothing has come from the other side for a while; it may recover by itself.
    Disconnected,
    /// The connection was given up; a restart of ICE may revive it.
    Failed,
    /// The connection was closed.
    Closed,
}

/// State of ICE (W3C WebRTC, `RTCIceConnectionState`).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum IceConnectionState {
    /// No description has been exchanged yet.
    New,
    /// Candidates are checked.
    Checking,
    /// A pair of candidates works; others may still be checked.
    Connected,
    /// A pair of candidates was chosen.
    Completed,
    /// No pair of candidates works.
    Failed,
    /// Nothing has come from the other side for a while.
    Disconnected,
    /// The connection was closed.
    Closed,
    /// Number of the states in Google's engine. Never reported.
    Max,
}

/// Whether candidates are still being gathered (W3C WebRTC, `RTCIceGatheringState`).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum IceGatheringState {
    /// Gathering has not begun.
    New,
    /// Candidates are being gathered.
    Gathering,
    /// All servers have answered or were given up.
    Complete,
}

/// State of the offer/answer exchange (W3C WebRTC, `RTCSignalingState`).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum SignalingState {
    /// No exchange is in progress.
    Stable,
    /// An offer of this side waits for its answer.
    HaveLocalOffer,
    /// A provisional answer of this side was given.
    HaveLocalPrAnswer,
    /// An offer of the other side waits for its answer.
    HaveRemoteOffer,
    /// A provisional answer of the other side was given.
    HaveRemotePrAnswer,
    /// The connection was closed.
    Closed,
}

/// What an offer contains besides what the transceivers say.
#[derive(Debug, Clone, Default)]
pub struct OfferOptions {
    /// Restart ICE with new credentials.
    pub ice_restart: bool,
    /// Accepted for the API and ignored: sections to receive come from transceivers.
    pub offer_to_receive_audio: bool,
    /// Accepted for the API and ignored: sections to receive come from transceivers.
    pub offer_to_receive_video: bool,
}

/// What an answer contains besides what the transceivers say: nothing yet.
#[derive(Debug, Clone, Default)]
pub struct AnswerOptions {}

/// Limits of the whole connection in bits per second. They concern the bandwidth estimator of
/// video; a voice stream is far below any of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BitrateSettings {
    /// Lower limit.
    pub min_bitrate_bps: Option<u64>,
    /// Value to begin with.
    pub start_bitrate_bps: Option<u64>,
    /// Upper limit.
    pub max_bitrate_bps: Option<u64>,
}

/// A STUN or TURN server could not be used.
#[derive(Debug, Clone)]
pub struct IceCandidateError {
    /// Local address from which the server was asked; empty if it was not asked.
    pub address: String,
    /// Local port from which the server was asked; 0 if it was not asked.
    pub port: i32,
    /// URL of the server, as configured.
    pub url: String,
    /// STUN error code (RFC 8489, section 18.5), or 701 if the server did not answer.
    pub error_code: i32,
    /// The server's reason, or what went wrong here.
    pub error_text: String,
}

/// The other side has begun to send a track.
#[derive(Debug, Clone)]
pub struct TrackEvent {
    /// The receiver of the track.
    pub receiver: RtpReceiver,
    /// The streams that the other side has put the track into.
    pub streams: Vec<MediaStream>,
    /// The track.
    pub track: MediaStreamTrack,
    /// The transceiver of the track.
    pub transceiver: RtpTransceiver,
}

/// Called when the state of the connection changes.
pub type OnConnectionChange = Box<dyn FnMut(PeerConnectionState) + Send + Sync>;
/// Called when the other side has opened a data channel.
pub type OnDataChannel = Box<dyn FnMut(DataChannel) + Send + Sync>;
/// Called for every local candidate.
pub type OnIceCandidate = Box<dyn FnMut(IceCandidate) + Send + Sync>;
/// Called when a STUN or TURN server could not be used.
pub type OnIceCandidateError = Box<dyn FnMut(IceCandidateError) + Send + Sync>;
/// Called when the state of ICE changes.
pub type OnIceConnectionChange = Box<dyn FnMut(IceConnectionState) + Send + Sync>;
/// Called when gathering begins or ends.
pub type OnIceGatheringChange = Box<dyn FnMut(IceGatheringState) + Send + Sync>;
/// Called when a new offer has to be made.
pub type OnNegotiationNeeded = Box<dyn FnMut(u32) + Send + Sync>;
/// Called when the state of the offer/answer exchange changes.
pub type OnSignalingChange = Box<dyn FnMut(SignalingState) + Send + Sync>;
/// Called when the other side has begun to send a track.
pub type OnTrack = Box<dyn FnMut(TrackEvent) + Send + Sync>;

/// A connection to one peer. Clones refer to the same connection; it closes with the last of them.
#[derive(Clone)]
pub struct PeerConnection {
    connection: Arc<Connection>,
    _closer: Arc<Closer>,
}

/// Closes the connection when the last handle of the application is gone. The driver task and the
/// senders hold the connection too, so its own reference count cannot tell.
struct Closer(Arc<Connection>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl PeerConnection {
    pub(crate) fn open(config: RtcConfiguration) -> Result<Self, RtcError> {
        let connection = Connection::open(config)?;
        Ok(Self {
            connection: connection.clone(),
            _closer: Arc::new(Closer(connection)),
        })
    }

    /// Replaces the configuration, for example with new credentials of TURN servers.
    ///
    /// # Errors
    ///
    /// `InvalidState` when closed.
    pub fn set_configuration(&self, config: RtcConfiguration) -> Result<(), RtcError> {
        self.connection.set_configuration(config)
    }

    /// Checks and stores limits of the bandwidth estimator.
    ///
    /// # Errors
    ///
    /// `InvalidState` when closed; `Internal` when the limits contradict each other.
    pub fn set_bitrate(&self, settings: BitrateSettings) -> Result<(), RtcError> {
        self.connection.set_bitrate(settings)
    }

    /// An offer of everything that the transceivers and data channels want. It is always possible,
    /// also without a change.
    ///
    /// # Errors
    ///
    /// `InvalidState` when closed.
    pub async fn create_offer(
        &self,
        options: OfferOptions,
    ) -> Result<SessionDescription, RtcError> {
        self.connection.create_offer(&options)
    }

    /// The answer to the remote offer.
    ///
    /// # Errors
    ///
    /// `InvalidState` when closed, or when there is no remote offer.
    pub async fn create_answer(
        &self,
        _options: AnswerOptions,
    ) -> Result<SessionDescription, RtcError> {
        self.connection.create_answer()
    }

    /// Sets a description of this side: an offer becomes pending, an answer completes the exchange,
    /// a rollback ends it.
    ///
    /// # Errors
    ///
    /// `InvalidState` when closed, or when the exchange is not in a state for it; `InvalidSdp` when
    /// it does not fit what was offered.
    pub async fn set_local_description(&self, desc: SessionDescription) -> Result<(), RtcError> {
        self.connection.set_local_description(desc)
    }

    /// Sets a description of the other side: an offer becomes pending, an answer completes the
    /// exchange, a rollback ends it.
    ///
    /// # Errors
    ///
    /// `InvalidState` when closed, or when the exchange is not in a state for it; `InvalidSdp` when
    /// it does not fit what was offered or lacks what a connection needs.
    pub async fn set_remote_description(&self, desc: SessionDescription) -> Result<(), RtcError> {
        self.connection.set_remote_description(desc)
    }

    /// Adds a candidate of the other side. An empty one, which marks their end, is ignored.
    ///
    /// # Errors
    ///
    /// `InvalidState` when closed; `Internal` when the candidate cannot be used.
    pub async fn add_ice_candidate(&self, candidate: IceCandidate) -> Result<(), RtcError> {
        self.connection.add_ice_candidate(&candidate)
    }

    /// Makes a data channel. The first one needs a new offer.
    ///
    /// # Errors
    ///
    /// `InvalidState` when closed; `Internal` when the settings contradict each other, or the id of
    /// a negotiated channel is out of range or in use.
    pub fn create_data_channel(
        &self,
        label: &str,
        init: DataChannelInit,
    ) -> Result<DataChannel, RtcError> {
        self.connection.create_data_channel(label, init)
    }

    /// Adds a track in a new transceiver that sends and receives.
    ///
    /// # Errors
    ///
    /// `InvalidState` when closed; `Internal` for a video track.
    pub fn add_track<T: AsRef<str>>(
        &self,
        track: MediaStreamTrack,
        streams_ids: &[T],
    ) -> Result<RtpSender, RtcError> {
        let init = RtpTransceiverInit {
            direction: RtpTransceiverDirection::SendRecv,
            stream_ids: streams_ids
                .iter()
                .map(|id| id.as_ref().to_owned())
                .collect(),
            send_encodings: vec![],
        };
        let kind = sendable(&track)?;
        Ok(self
            .connection
            .add_transceiver(kind, Some(track), init, true)?
            .sender())
    }

    /// Stops sending: the track is removed from the sender.
    ///
    /// # Errors
    ///
    /// `InvalidState` when closed; `Internal` when the sender is of another connection.
    pub fn remove_track(&self, sender: RtpSender) -> Result<(), RtcError> {
        self.connection.remove_track(&sender)
    }

    /// Statistics of the whole connection.
    ///
    /// # Errors
    ///
    /// None; the official crate's signature has them.
    pub async fn get_stats(&self) -> Result<Vec<RtcStats>, RtcError> {
        self.connection.stats()
    }

    /// Adds a transceiver that sends a track.
    ///
    /// # Errors
    ///
    /// `InvalidState` when closed; `Internal` for a video track.
    pub fn add_transceiver(
        &self,
        track: MediaStreamTrack,
        init: RtpTransceiverInit,
    ) -> Result<RtpTransceiver, RtcError> {
        let kind = sendable(&track)?;
        self.connection
            .add_transceiver(kind, Some(track), init, false)
    }

    /// Adds a transceiver without a track.
    ///
    /// # Errors
    ///
    /// `InvalidState` when closed; `Internal` for a kind that is neither audio nor video.
    pub fn add_transceiver_for_media(
        &self,
        media_type: MediaType,
        init: RtpTransceiverInit,
    ) -> Result<RtpTransceiver, RtcError> {
        if !matches!(media_type, MediaType::Audio | MediaType::Video) {
            return Err(RtcError::internal(format!(
                "a transceiver cannot carry {media_type:?}"
            )));
        }
        self.connection
            .add_transceiver(media_type, None, init, false)
    }

    /// Closes the connection. When this returns, nothing is sent or received any more.
    pub fn close(&self) {
        self.connection.close();
    }

    /// Lets the next offer restart ICE.
    pub fn restart_ice(&self) {
        self.connection.restart_ice();
    }

    /// State of ICE and DTLS together.
    pub fn connection_state(&self) -> PeerConnectionState {
        self.connection.connection_state()
    }

    /// State of ICE.
    pub fn ice_connection_state(&self) -> IceConnectionState {
        self.connection.ice_connection_state()
    }

    /// Whether candidates are still being gathered.
    pub fn ice_gathering_state(&self) -> IceGatheringState {
        self.connection.ice_gathering_state()
    }

    /// State of the offer/answer exchange.
    pub fn signaling_state(&self) -> SignalingState {
        self.connection.signaling_state()
    }

    /// The last description of this side that was answered.
    pub fn current_local_description(&self) -> Option<SessionDescription> {
        self.connection.current_local_description()
    }

    /// The last description of the other side that was answered.
    pub fn current_remote_description(&self) -> Option<SessionDescription> {
        self.connection.current_remote_description()
    }

    /// Senders of all transceivers.
    pub fn senders(&self) -> Vec<RtpSender> {
        self.transceivers()
            .iter()
            .map(RtpTransceiver::sender)
            .collect()
    }

    /// Receivers of all transceivers.
    pub fn receivers(&self) -> Vec<RtpReceiver> {
        self.transceivers()
            .iter()
            .map(RtpTransceiver::receiver)
            .collect()
    }

    /// All transceivers in the order in which they were made.
    pub fn transceivers(&self) -> Vec<RtpTransceiver> {
        self.connection.transceivers()
    }

    /// Sets or removes the callback for changes of the connection's state.
    pub fn on_connection_state_change(&self, f: Option<OnConnectionChange>) {
        self.connection.callbacks.connection_change.set(f);
    }

    /// Sets or removes the callback for data channels that the other side has opened.
    pub fn on_data_channel(&self, f: Option<OnDataChannel>) {
        self.connection.callbacks.data_channel.set(f);
    }

    /// Sets or removes the callback for local candidates.
    pub fn on_ice_candidate(&self, f: Option<OnIceCandidate>) {
        self.connection.callbacks.ice_candidate.set(f);
    }

    /// Sets or removes the callback for STUN and TURN servers that could not be used.
    pub fn on_ice_candidate_error(&self, f: Option<OnIceCandidateError>) {
        self.connection.callbacks.ice_candidate_error.set(f);
    }

    /// Sets or removes the callback for changes of the state of ICE.
    pub fn on_ice_connection_state_change(&self, f: Option<OnIceConnectionChange>) {
        self.connection.callbacks.ice_connection_change.set(f);
    }

    /// Sets or removes the callback for changes of the state of gathering.
    pub fn on_ice_gathering_state_change(&self, f: Option<OnIceGatheringChange>) {
        self.connection.callbacks.ice_gathering_change.set(f);
    }

    /// Sets or removes the callback that is called when a new offer has to be made.
    pub fn on_negotiation_needed(&self, f: Option<OnNegotiationNeeded>) {
        self.connection.callbacks.negotiation_needed.set(f);
    }

    /// Sets or removes the callback for changes of the state of the offer/answer exchange.
    pub fn on_signaling_state_change(&self, f: Option<OnSignalingChange>) {
        self.connection.callbacks.signaling_change.set(f);
    }

    /// Sets or removes the callback for tracks that the other side has begun to send.
    pub fn on_track(&self, f: Option<OnTrack>) {
        self.connection.callbacks.track.set(f);
    }
}

fn sendable(track: &MediaStreamTrack) -> Result<MediaType, RtcError> {
    match track {
        MediaStreamTrack::Audio(_) => Ok(MediaType::Audio),
        MediaStreamTrack::Video(_) => Err(RtcError::internal(
            "sending video is not supported by this media engine",
        )),
    }
}

impl Debug for PeerConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerConnection")
            .field("state", &self.connection_state())
            .field("ice_state", &self.ice_connection_state())
            .finish()
    }
}
