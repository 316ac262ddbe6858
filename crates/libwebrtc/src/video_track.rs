//! Video tracks: they have an id and a state, and never carry a picture.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{media_stream_track::RtcTrackState, native::packet_trailer::PacketTrailerHandler};

struct Shared {
    id: String,
    enabled: AtomicBool,
    ended: AtomicBool,
    packet_trailer_handler: Mutex<Option<PacketTrailerHandler>>,
}

/// A video track.
#[derive(Clone)]
pub struct RtcVideoTrack {
    shared: Arc<Shared>,
}

impl RtcVideoTrack {
    pub(crate) fn new(id: String) -> Self {
        Self {
            shared: Arc::new(Shared {
                id,
                enabled: AtomicBool::new(true),
                ended: AtomicBool::new(false),
                packet_trailer_handler: Mutex::new(None),
            }),
        }
    }

    pub(crate) fn end(&self) {
        self.shared.ended.store(true, Ordering::Relaxed);
    }

    /// Id of the track.
    pub fn id(&self) -> String {
        self.shared.id.clone()
    }

    /// Whether the track is not muted.
    pub fn enabled(&self) -> bool {
        self.shared.enabled.load(Ordering::Relaxed)
    }

    /// Mutes or unmutes. Returns whether this changed anything.
    pub fn set_enabled(&self, enabled: bool) -> bool {
        self.shared.enabled.swap(enabled, Ordering::Relaxed) != enabled
    }

    /// Whether the connection of the track is still open.
    pub fn state(&self) -> RtcTrackState {
        if self.shared.ended.load(Ordering::Relaxed) {
            RtcTrackState::Ended
        } else {
            RtcTrackState::Live
        }
    }

    /// Stores a handler of frame trailers; there are no frames.
    pub fn set_packet_trailer_handler(&self, handler: PacketTrailerHandler) {
        *self.shared.packet_trailer_handler.lock() = Some(handler);
    }

    /// The stored handler.
    pub fn packet_trailer_handler(&self) -> Option<PacketTrailerHandler> {
        self.shared.packet_trailer_handler.lock().clone()
    }
}

impl Debug for RtcVideoTrack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RtcVideoTrack")
            .field("id", &self.id())
            .field("enabled", &self.enabled())
            .field("state", &self.state())
            .finish()
    }
}
