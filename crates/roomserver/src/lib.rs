//! A LiveKit-compatible room server for development, demonstrations and tests. Not for production.
//!
//! Official LiveKit clients join it as they join the real server: they signal over a WebSocket at
//! `/rtc` or `/rtc/v1`, and exchange audio and data over WebRTC. One process holds everything in
//! memory.
//!
//! Where things are:
//! - [`server`]: the HTTP side, what all parts share, starting and stopping.
//! - [`token`]: who may do what.
//! - [`rooms`]: the handle through which API calls, agents and recorders see and change rooms.
//! - `room`: one room's state. `speakers`: who speaks. `data_tracks`: named streams of frames.
//! - `api`: the routes of API calls. `twirp`: their protocol. `room_service`: rooms and
//!   participants by API.
//! - `agents`: workers, dispatches and jobs. `egress`: recordings.
//! - `sip`: simulated telephone calls. `webhooks`: telling others what happened.
//! - `signal`: a client's WebSocket. `peer`: the task that owns a participant's connections.
//! - `transport`: one peer connection. `network`: its sockets. `sdp`: what descriptions say beyond
//!   negotiation. `forward`: how forwarded packets are numbered. `red`: redundant audio, split for
//!   subscribers that do not accept it. [`line`]: an emulated line in front of the sockets.

#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use line::Lines;
use livekit_protocol as proto;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) mod agents;
pub(crate) mod api;
pub(crate) mod data_tracks;
pub(crate) mod egress;
pub(crate) mod forward;
pub(crate) mod ids;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
pub mod line;
pub(crate) mod network;
pub(crate) mod peer;
pub(crate) mod red;
pub(crate) mod room;
pub(crate) mod room_service;
pub mod rooms;
pub(crate) mod sdp;
pub mod server;
pub(crate) mod signal;
pub(crate) mod sip;
pub(crate) mod speakers;
#[cfg(test)]
mod testkit;
pub mod token;
pub(crate) mod transport;
pub(crate) mod twirp;
pub(crate) mod webhooks;

pub use rooms::{RoomEvent, RoomOptions, Rooms};
pub use server::Server;

/// Settings of a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where HTTP and WebSocket requests are accepted; port 0 takes a free one.
    pub bind: SocketAddr,
    /// API keys with their secrets.
    pub keys: Vec<(String, String)>,
    /// The address of this machine that clients send media to.
    pub node_ip: IpAddr,
    /// Where recordings with relative paths are written; `None` is the current directory.
    pub recordings_dir: Option<PathBuf>,
    /// URLs that get every event (webhooks).
    pub webhook_urls: Vec<String>,
    /// How recordings behave.
    pub egress: EgressBehaviour,
    /// Accept media over UDP.
    pub udp: bool,
    /// Accept media over TCP (RFC 6544), for clients that cannot use UDP.
    pub rtc_tcp: bool,
    /// Media over UDP goes through emulated lines with these conditions; `None` sends it directly.
    pub lines: Option<Lines>,
}

impl Default for Options {
    /// Loopback only, any free port, the key and secret of `livekit-server --dev`.
    fn default() -> Self {
        Self {
            bind: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            keys: vec![("devkey".into(), "secret".into())],
            node_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            recordings_dir: None,
            webhook_urls: Vec::new(),
            egress: EgressBehaviour::default(),
            udp: true,
            rtc_tcp: true,
            lines: None,
        }
    }
}

/// How recordings behave, for tests of what depends on them. By default they succeed.
#[derive(Debug, Clone, Default)]
pub struct EgressBehaviour {
    /// The error with which requests for recordings are refused; `None` accepts them.
    pub refusal: Option<EgressRefusal>,
    /// How recordings end into which a participant has published.
    pub ending: EgressEnding,
    /// Recordings stay STARTING, and record nothing, until this is cancelled: the real egress takes
    /// seconds to begin.
    pub begins_after: Option<CancellationToken>,
    /// Recordings stay ENDING, with nothing written, until this is cancelled.
    pub held_until: Option<CancellationToken>,
}

/// Why a recording is not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressRefusal {
    /// No egress service answers.
    NoService,
    /// The quota is used up.
    Quota,
}

/// How a recording ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum EgressEnding {
    /// COMPLETE.
    #[default]
    Complete,
    /// LIMIT_REACHED: with its file and its manifest, as if complete.
    LimitReached,
    /// ABORTED: nothing is written.
    Aborted,
    /// FAILED: nothing is written.
    Failed,
    /// FAILED, but the file is in the backup storage, which is this folder. There is no manifest.
    BackedUp(PathBuf),
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address for HTTP cannot be bound.
    #[error("the room server cannot listen on {address}: {source}")]
    Listen {
        /// The address of the options.
        address: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// The options have no API key.
    #[error("the room server needs at least one API key")]
    NoKeys,
    /// The options allow media over neither UDP nor TCP.
    #[error("the room server needs UDP or TCP for media, and both are switched off")]
    NoTransport,
}

/// A running server. It stops when it is shut down, or abruptly when it is dropped.
pub struct RoomServer {
    address: SocketAddr,
    server: Server,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl RoomServer {
    /// Binds the listener and starts to serve.
    ///
    /// # Errors
    ///
    /// When there is no API key, or the address cannot be bound.
    pub async fn start(options: Options) -> Result<Self, Error> {
        if options.keys.is_empty() {
            return Err(Error::NoKeys);
        }
        if !options.udp && !options.rtc_tcp {
            return Err(Error::NoTransport);
        }
        let bind = options.bind;
        let listen_error = |source| Error::Listen {
            address: bind,
            source,
        };
        let listener = TcpListener::bind(bind).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let server = Server::new(options, stop.clone(), tasks.clone());
        tasks.spawn(
            stop.clone()
                .run_until_cancelled_owned(server.rooms().sweep_forever()),
        );
        tasks.spawn(server::serve(listener, server.clone(), stop.clone()));
        tracing::info!(%address, "room server listens");
        Ok(Self {
            address,
            server,
            stop,
            tasks,
        })
    }

    /// Where clients connect: `ws://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// The address of the listener, with the port that was bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The rooms, for other code in the same process.
    pub fn rooms(&self) -> &Rooms {
        self.server.rooms()
    }

    /// Disconnects everybody with `SERVER_SHUTDOWN` and waits until all tasks have ended.
    pub async fn shutdown(self) {
        self.server
            .rooms()
            .close_all(proto::DisconnectReason::ServerShutdown);
        self.tasks.close();
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for RoomServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
