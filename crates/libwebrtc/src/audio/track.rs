//! A track: the place where sound passes from its producer to all listeners.
//!
//! A local track is fed by a [`SourceCore`], a remote one by an
//! [`AudioReceiver`](super::receiver::AudioReceiver). The track keeps neither sound nor time.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use super::source::SourceCore;

/// Interleaved 16-bit PCM, borrowed from whoever delivers it.
#[derive(Clone, Copy)]
pub(crate) struct Pcm<'a> {
    pub samples: &'a [i16],
    pub sample_rate_hz: u32,
    pub channels: usize,
}

/// A listener of a track.
pub(crate) trait PcmSink: Send + Sync {
    /// Takes the next piece of sound, usually 10 ms. It was due `at`: a late clock makes up for its
    /// delay, and then the pieces come closer together than they are due. Called from the media
    /// thread, so it must be quick.
    fn on_pcm(&self, at: Instant, pcm: Pcm<'_>);

    /// The track will never bring sound again.
    fn on_ended(&self) {}
}

/// Whatever feeds a track and has to know whether it has listeners.
pub(crate) trait Feed: Send + Sync {
    /// A listener came or went.
    fn listeners_changed(&self);
}

/// A handle of an audio track. Clones refer to the same track.
#[derive(Clone)]
pub(crate) struct AudioTrack {
    shared: Arc<TrackShared>,
}

pub(super) struct TrackShared {
    id: String,
    enabled: AtomicBool,
    ended: AtomicBool,
    /// Replaced as a whole, so that delivering needs no lock while the listeners run.
    sinks: Mutex<Arc<[Arc<dyn PcmSink>]>>,
    feed: OnceLock<Weak<dyn Feed>>,
    /// A local track keeps its source alive. Its sound is silenced when the track is disabled; that
    /// of a remote track is not, as in Google's engine, where a disabled remote track still
    /// delivers raw PCM to its listeners.
    source: Option<Arc<SourceCore>>,
}

impl AudioTrack {
    /// A track that sends the sound of `source`.
    pub fn local(id: &str, source: &Arc<SourceCore>) -> Self {
        let track = Self::new(id, Some(source.clone()));
        source.add_track(&track.shared);
        let feed: Weak<dyn Feed> = Arc::downgrade(source) as Weak<dyn Feed>;
        track.set_feed(feed);
        track
    }

    /// A local track without any sound, as for a device that does not exist.
    pub fn local_without_source(id: &str) -> Self {
        Self::new(id, None)
    }

    /// A track that brings sound from the network, once a receiver feeds it.
    pub fn remote(id: &str) -> Self {
        Self::new(id, None)
    }

    fn new(id: &str, source: Option<Arc<SourceCore>>) -> Self {
        Self {
            shared: Arc::new(TrackShared {
                id: id.to_owned(),
                enabled: AtomicBool::new(true),
                ended: AtomicBool::new(false),
                sinks: Mutex::new(Arc::new([])),
                feed: OnceLock::new(),
                source,
            }),
        }
    }

    /// Sets what feeds the track. Only the first call counts.
    pub(super) fn set_feed(&self, feed: Weak<dyn Feed>) {
        let _ = self.shared.feed.set(feed);
        self.shared.tell_feed();
    }

    pub fn id(&self) -> &str {
        &self.shared.id
    }

    pub fn enabled(&self) -> bool {
        self.shared.enabled.load(Ordering::Relaxed)
    }

    /// Returns whether this was a change.
    pub fn set_enabled(&self, enabled: bool) -> bool {
        self.shared.enabled.swap(enabled, Ordering::Relaxed) != enabled
    }

    pub fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }

    /// Ends the track for ever: listeners are told and removed.
    pub fn end(&self) {
        if self.shared.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        let sinks = std::mem::replace(&mut *self.shared.sinks.lock(), Arc::new([]));
        for sink in sinks.iter() {
            sink.on_ended();
        }
        self.shared.tell_feed();
    }

    /// Adds a listener. If the track has ended, it is told so at once.
    pub fn add_sink(&self, sink: Arc<dyn PcmSink>) {
        {
            let mut sinks = self.shared.sinks.lock();
            if !self.has_ended() {
                *sinks = sinks.iter().cloned().chain([sink]).collect();
                drop(sinks);
                self.shared.tell_feed();
                return;
            }
        }
        sink.on_ended();
    }

    /// Removes a listener; unknown ones are ignored.
    pub fn remove_sink(&self, sink: &Arc<dyn PcmSink>) {
        {
            let mut sinks = self.shared.sinks.lock();
            *sinks = sinks
                .iter()
                .filter(|known| !Arc::ptr_eq(known, sink))
                .cloned()
                .collect();
        }
        self.shared.tell_feed();
    }

    pub fn has_sinks(&self) -> bool {
        self.shared.has_sinks()
    }

    pub(super) fn deliver(&self, at: Instant, pcm: Pcm<'_>) {
        self.shared.deliver(at, pcm);
    }
}

impl TrackShared {
    pub(super) fn has_sinks(&self) -> bool {
        !self.sinks.lock().is_empty()
    }

    fn tell_feed(&self) {
        if let Some(feed) = self.feed.get().and_then(Weak::upgrade) {
            feed.listeners_changed();
        }
    }

    /// Hands sound to all listeners. No lock is held while they run.
    pub(super) fn deliver(&self, at: Instant, pcm: Pcm<'_>) {
        let sinks = self.sinks.lock().clone();
        if sinks.is_empty() {
            return;
        }
        let muted = self.source.is_some() && !self.enabled.load(Ordering::Relaxed);
        let silence: Vec<i16>;
        let pcm = if muted {
            silence = vec![0; pcm.samples.len()];
            Pcm {
                samples: &silence,
                ..pcm
            }
        } else {
            pcm
        };
        for sink in sinks.iter() {
            sink.on_pcm(at, pcm);
        }
    }
}
