//! Signalling: a client's WebSocket.

use axum::Router;
use livekit_protocol as proto;
use tokio::sync::mpsc;

use crate::server::Server;

/// A client that came back: its new WebSocket, to be taken over by the task of its participant.
#[derive(Debug)]
pub(crate) struct Resumed {
    /// Where messages to the client go from now on.
    pub outlet: mpsc::Sender<proto::SignalResponse>,
}

pub(crate) fn router(_server: Server) -> Router {
    Router::new()
}
