//! The accept loop of the worker's HTTP server: how many connections there may be, how long a
//! request may take to arrive, and how a connection ends when the worker stops.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Connections at a time; what comes beyond is closed at once. Each takes a few kilobytes, and up
/// to [`MAX_HEAD_BYTES`] while a request arrives.
const MAX_CONNECTIONS: usize = 256;
/// Connections at a time from one address, so that one client does not shut out the others: the
/// kubelet's and Prometheus's requests get through.
const MAX_CONNECTIONS_OF_ONE_ADDRESS: usize = 128;
/// How long the head of a request may take to arrive; also how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// The largest head of a request: method, path and headers. A larger one is answered with 431.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How long a client may leave sent bytes unread before its connection is cut. A browser that plays
/// a recording stops reading while it has enough; it asks for the rest again.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long requests in progress may take when the worker stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after a failed accept, when the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// How many connections each address has.
#[derive(Debug, Clone, Default)]
struct Connections(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A counted connection; gives its place back when it is dropped.
struct Place {
    connections: Connections,
    address: IpAddr,
}

impl Connections {
    /// A place for a connection from `address`; `None` when there are too many.
    fn take(&self, address: IpAddr) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = counts.values().sum();
        let own = counts.get(&address).copied().unwrap_or_default();
        if all >= MAX_CONNECTIONS || own >= MAX_CONNECTIONS_OF_ONE_ADDRESS {
            return None;
        }
        counts.insert(address, own + 1);
        Some(Place {
            connections: self.clone(),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self
            .connections
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Serves `app` until `stop`; then what is in progress has [`STOP_TIMEOUT`].
pub(super) async fn serve(listener: TcpListener, app: Router, stop: CancellationToken) {
    let connections = Connections::default();
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => match connections.take(from.ip()) {
                Some(place) => {
                    tasks.spawn(hold(stream, app.clone(), stop.clone(), place));
                }
                None => debug!("a connection is closed: there are too many"),
            },
            // The client has gone meanwhile.
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!(%error, "the HTTP server (worker.http_bind) cannot accept connections, trying again");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

async fn hold(stream: TcpStream, app: Router, stop: CancellationToken, _place: Place) {
    let socket = socket2::SockRef::from(&stream);
    if let Err(error) = socket.set_tcp_user_timeout(Some(UNREAD_TIMEOUT)) {
        debug!(%error, "a connection has no time-out for bytes that are not read");
    }
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            // Streams of events do not end by themselves.
            timeout(STOP_TIMEOUT, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection to the HTTP server broke off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_the_place_of_others() {
        let connections = Connections::default();
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let of_one: Vec<_> = std::iter::from_fn(|| connections.take(address(1))).collect();
        assert_eq!(of_one.len(), MAX_CONNECTIONS_OF_ONE_ADDRESS);
        let of_two: Vec<_> = std::iter::from_fn(|| connections.take(address(2))).collect();
        assert_eq!(
            of_two.len(),
            MAX_CONNECTIONS - MAX_CONNECTIONS_OF_ONE_ADDRESS
        );
        assert!(connections.take(address(3)).is_none());
        drop(of_one);
        assert!(connections.take(address(3)).is_some());
        drop(of_two);
        assert!(connections.0.lock().unwrap().is_empty());
    }
}
