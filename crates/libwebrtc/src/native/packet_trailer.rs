//! Metadata behind encoded video frames. As there is no video, a handler only stores whether it is
//! enabled.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::{
    peer_connection_factory::PeerConnectionFactory, rtp_receiver::RtpReceiver,
    rtp_sender::RtpSender,
};

/// A stage of sending a video frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishTimingStage {
    /// The frame was given to the encoder.
    EncoderUpload,
    /// The encoder has encoded the frame.
    EncoderOutput,
    /// The frame is split into RTP packets.
    WebrtcPacketize,
}

/// A stage of receiving a video frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubscribeTimingStage {
    /// All RTP packets of the frame have come.
    WebrtcReceive,
    /// The frame was given to the decoder.
    DecoderUpload,
    /// The decoder has decoded the frame.
    DecoderOutput,
}

/// A local video frame reached a stage. Times are microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishTimingEvent {
    /// The stage that was reached.
    pub stage: PublishTimingStage,
    /// When it was reached, in microseconds.
    pub timestamp_us: u64,
    /// When the picture was taken, in microseconds.
    pub capture_timestamp_us: u64,
    /// The application's number of the frame, if it has one.
    pub frame_id: Option<u32>,
}

/// A remote video frame reached a stage. Times are microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscribeTimingEvent {
    /// The stage that was reached.
    pub stage: SubscribeTimingStage,
    /// When it was reached, in microseconds.
    pub timestamp_us: u64,
    /// When the picture was taken, in microseconds.
    pub capture_timestamp_us: u64,
    /// The application's number of the frame, if it has one.
    pub frame_id: Option<u32>,
}

/// Called with the stages of local video frames: never, as there is no video.
pub type PublishTimingObserver = Arc<dyn Fn(PublishTimingEvent) + Send + Sync + 'static>;
/// Called with the stages of remote video frames: never, as there is no video.
pub type SubscribeTimingObserver = Arc<dyn Fn(SubscribeTimingEvent) + Send + Sync + 'static>;

/// Handler of trailers on one sender or receiver.
#[derive(Clone, Debug)]
pub struct PacketTrailerHandler {
    enabled: Arc<AtomicBool>,
}

impl PacketTrailerHandler {
    fn new() -> Self {
        Self {
            enabled: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Switches the handler on or off.
    pub fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    /// Whether the handler is on.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Metadata of a received frame: none, as no video frame is ever received.
    pub fn lookup_frame_metadata(&self, _rtp_timestamp: u32) -> Option<(u64, u32, Vec<u8>)> {
        None
    }

    /// Metadata for a frame to send; dropped, as no video frame is ever sent.
    pub fn store_frame_metadata(
        &self,
        _capture_timestamp_us: i64,
        _user_timestamp: u64,
        _frame_id: u32,
        _user_data: &[u8],
    ) {
    }

    /// Sets an observer that is never called, as no video frame is ever sent.
    pub fn set_publish_timing_observer(&self, _observer: Option<PublishTimingObserver>) {}

    /// Sets an observer that is never called, as no video frame is ever received.
    pub fn set_subscribe_timing_observer(&self, _observer: Option<SubscribeTimingObserver>) {}
}

/// Handler for a sender.
pub fn create_sender_handler(
    _peer_factory: &PeerConnectionFactory,
    _sender: &RtpSender,
) -> PacketTrailerHandler {
    PacketTrailerHandler::new()
}

/// Handler for a receiver.
pub fn create_receiver_handler(
    _peer_factory: &PeerConnectionFactory,
    _receiver: &RtpReceiver,
) -> PacketTrailerHandler {
    PacketTrailerHandler::new()
}
