//! The states of a connection: what str0m reports, and what the application is told.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use str0m::IceConnectionState as EngineIceState;

use super::{Event, paths::Paths};
use crate::{
    RtcError,
    peer_connection::{IceConnectionState, PeerConnectionState},
};

/// How long a connection may be disconnected before it counts as failed. Google's engine takes 15 s
/// or more from the last packet; livekit then reconnects.
pub(super) const FAILED_AFTER_DISCONNECT: Duration = Duration::from_secs(12);
/// How long the first connectivity checks may take.
pub(super) const FAILED_AFTER_CHECKING: Duration = Duration::from_secs(30);

/// The states of one connection, as str0m reports them and as the application was told.
pub(super) struct States {
    /// What str0m reports of ICE.
    pub ice: EngineIceState,
    pub dtls_connected: bool,
    /// The other side has closed the connection, which cannot be undone.
    pub ended_by_peer: bool,
    /// The connection has been given up; only a restart of ICE revives it.
    pub failed: bool,
    pub closed: bool,
    /// Since when there has been no connection although there should be one.
    without_connection_since: Option<Instant>,
    published: PeerConnectionState,
    published_ice: IceConnectionState,
}

impl States {
    pub fn new() -> Self {
        Self {
            ice: EngineIceState::New,
            dtls_connected: false,
            ended_by_peer: false,
            failed: false,
            closed: false,
            without_connection_since: None,
            published: PeerConnectionState::New,
            published_ice: IceConnectionState::New,
        }
    }

    /// The connection's state as the application was told it.
    pub fn published(&self) -> PeerConnectionState {
        self.published
    }

    /// The state of ICE as the application was told it.
    pub fn published_ice(&self) -> IceConnectionState {
        self.published_ice
    }

    /// # Errors
    ///
    /// When the connection is closed.
    pub fn check_open(&self) -> Result<(), RtcError> {
        if self.closed {
            Err(RtcError::state("the peer connection is closed"))
        } else {
            Ok(())
        }
    }

    /// Notes a restart of ICE: a new chance, also for a connection that was given up. One that
    /// works goes on. Returns whether the connection begins anew.
    pub fn restarted(&mut self) -> bool {
        let begins_anew = self.published != PeerConnectionState::Connected;
        if begins_anew {
            self.without_connection_since = None;
            self.failed = false;
        }
        begins_anew
    }

    /// Decides the states and reports what has changed. `ice` is the state of ICE, `New` before the
    /// first exchange of descriptions; `ended` is whether the connection was closed by the other
    /// side or by str0m. Returns when to ask again if nothing happens before.
    pub fn update(
        &mut self,
        now: Instant,
        ice: EngineIceState,
        paths: &Paths,
        ended: bool,
        events: &mut VecDeque<Event>,
    ) -> Option<Instant> {
        let lost_at = paths.lost_at();
        let ice_lost = paths.relay_gone || lost_at.is_some_and(|at| now >= at);
        let lost = ended || ice_lost;
        let connected = paths.had_path && self.dtls_connected && !lost;
        let mut next = lost_at.filter(|_| !ice_lost);
        if connected {
            self.without_connection_since = None;
            self.failed = false;
        } else if lost || ice != EngineIceState::New {
            let since = *self.without_connection_since.get_or_insert(now);
            let failed_at = match lost {
                true => since + FAILED_AFTER_DISCONNECT,
                false => since + FAILED_AFTER_CHECKING,
            };
            let no_path_left = paths.relay_gone && self.ice == EngineIceState::Disconnected;
            if no_path_left || now >= failed_at {
                self.failed = true;
            } else {
                next = Some(next.map_or(failed_at, |at| at.min(failed_at)));
            }
        }
        let state = if self.failed {
            PeerConnectionState::Failed
        } else if lost {
            PeerConnectionState::Disconnected
        } else if connected {
            PeerConnectionState::Connected
        } else if ice == EngineIceState::New {
            PeerConnectionState::New
        } else {
            PeerConnectionState::Connecting
        };
        self.publish(self.ice_to_publish(ice, ice_lost, paths), state, events);
        next
    }

    fn ice_to_publish(
        &self,
        ice: EngineIceState,
        ice_lost: bool,
        paths: &Paths,
    ) -> IceConnectionState {
        match ice {
            _ if self.failed => IceConnectionState::Failed,
            _ if ice_lost => IceConnectionState::Disconnected,
            EngineIceState::Completed => IceConnectionState::Completed,
            EngineIceState::Connected => IceConnectionState::Connected,
            // While ICE restarts or checks better paths, the old one carries on.
            _ if paths.had_path => match self.published_ice {
                IceConnectionState::Completed => IceConnectionState::Completed,
                _ => IceConnectionState::Connected,
            },
            EngineIceState::New => IceConnectionState::New,
            EngineIceState::Checking | EngineIceState::Disconnected => IceConnectionState::Checking,
        }
    }

    /// Tells the application of states that differ from those it was told last.
    pub fn publish(
        &mut self,
        ice: IceConnectionState,
        state: PeerConnectionState,
        events: &mut VecDeque<Event>,
    ) {
        if ice != self.published_ice {
            self.published_ice = ice;
            events.push_back(Event::IceState(ice));
        }
        if state != self.published {
            log::debug!("the connection is {state:?}");
            self.published = state;
            events.push_back(Event::ConnectionState(state));
        }
    }
}
