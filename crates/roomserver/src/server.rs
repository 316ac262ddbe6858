//! The HTTP side of the server, and what all its parts share.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use livekit_protocol as proto;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::rooms::Rooms;
use crate::token::Keys;
use crate::{Options, ids, signal};

/// The protocol version that the server speaks; that of livekit-server 1.11.
pub const PROTOCOL_VERSION: i32 = 17;
/// The version of the agent worker protocol.
pub const AGENT_PROTOCOL_VERSION: i32 = 1;
/// The server version that clients are told. They decide by it what they may use, so it names the
/// real server whose behaviour this one follows.
pub const SERVER_VERSION: &str = "1.11.0";

/// State that the parts of the server share. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    keys: Keys,
    rooms: Rooms,
    info: proto::ServerInfo,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    pub(crate) fn new(options: Options, stop: CancellationToken, tasks: TaskTracker) -> Self {
        let info = proto::ServerInfo {
            version: SERVER_VERSION.into(),
            protocol: PROTOCOL_VERSION,
            node_id: ids::new_id(ids::NODE),
            agent_protocol: AGENT_PROTOCOL_VERSION,
            ..Default::default()
        };
        let keys = Keys::new(options.keys.clone());
        Self {
            shared: Arc::new(Shared {
                options,
                keys,
                rooms: Rooms::new(),
                info,
                stop,
                tasks,
            }),
        }
    }

    /// The settings with which the server was started.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// The API keys.
    pub fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    /// The rooms.
    pub fn rooms(&self) -> &Rooms {
        &self.shared.rooms
    }

    /// The server's description for clients and workers.
    pub fn info(&self) -> &proto::ServerInfo {
        &self.shared.info
    }

    /// Cancelled when the server stops; every task watches it.
    pub fn stop(&self) -> &CancellationToken {
        &self.shared.stop
    }

    /// Where tasks are spawned, so that shutting down waits for them.
    pub fn tasks(&self) -> &TaskTracker {
        &self.shared.tasks
    }
}

fn router(server: Server) -> Router {
    Router::new()
        .route("/", get(async || "OK"))
        .merge(crate::api::router(server.clone()))
        .merge(signal::router(server))
}

/// Serves until the server stops. The routes and the tasks behind them exist when this returns, so
/// that no room event is missed.
pub(crate) fn serve(
    listener: TcpListener,
    server: Server,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let router = router(server);
    async move {
        let serving = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = serving.await {
            tracing::error!("the room server stopped serving: {error}");
        }
    }
}
