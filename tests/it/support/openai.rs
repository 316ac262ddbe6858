//! A vendor's HTTP service on a real socket that behaves as badly as a test wants: the
//! OpenAI-compatible one by its address, or any other by its answers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use axum::serve::ListenerExt;
use futures_util::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// How the service answers.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// With this body, cut into pieces of so many bytes.
    Answer {
        media_type: &'static str,
        body: Vec<u8>,
        piece: usize,
    },
    /// With this status and body.
    Refuse {
        status: u16,
        headers: Vec<(&'static str, &'static str)>,
        body: &'static str,
    },
    /// With this much of a body, and then nothing for as long as anybody waits.
    Stall {
        media_type: &'static str,
        body: Vec<u8>,
    },
    /// With this much of a body, and then a broken connection.
    Break {
        media_type: &'static str,
        body: Vec<u8>,
    },
}

/// One request that came.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Request {
    /// The body, which is JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

type Rule = Box<dyn Fn(&Request) -> Behaviour + Send + Sync>;

struct Shared {
    rule: Rule,
    requests: Mutex<Vec<Request>>,
    connections: AtomicUsize,
}

/// The service. It stops when it is dropped.
pub struct FakeService {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl FakeService {
    pub async fn start(behaviour: Behaviour) -> Self {
        Self::start_with(move |_| behaviour.clone()).await
    }

    /// One that looks at each request before it answers.
    pub async fn start_with(rule: impl Fn(&Request) -> Behaviour + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            rule: Box::new(rule),
            requests: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        let router = Router::new()
            .route("/v1/models", any(|| async { StatusCode::OK }))
            .route("/{*path}", post(answer))
            .with_state(shared.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let counted = shared.clone();
        let listener = listener.tap_io(move |_| {
            counted.connections.fetch_add(1, Ordering::Relaxed);
        });
        let server =
            tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self {
            address,
            shared,
            server,
        }
    }

    /// What `OPENAI_BASE_URL` would be.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// How many connections have been opened.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }
}

impl Drop for FakeService {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: axum::extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 16 << 20)
        .await
        .expect("the whole request");
    let request = Request {
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body,
    };
    let behaviour = (shared.rule)(&request);
    shared.requests.lock().unwrap().push(request);
    let pieces = |body: Vec<u8>, piece: usize| {
        let pieces: Vec<Bytes> = body
            .chunks(piece.max(1))
            .map(Bytes::copy_from_slice)
            .collect();
        // Each piece is its own write, so that the client sees the cuts.
        stream::iter(pieces).then(|piece| async move {
            tokio::task::yield_now().await;
            Ok::<_, std::io::Error>(piece)
        })
    };
    match behaviour {
        Behaviour::Answer {
            media_type,
            body,
            piece,
        } => (
            [(header::CONTENT_TYPE, media_type)],
            Body::from_stream(pieces(body, piece)),
        )
            .into_response(),
        Behaviour::Refuse {
            status,
            headers,
            body,
        } => {
            let status = StatusCode::from_u16(status).expect("a status");
            let mut response = (status, body).into_response();
            for (name, value) in headers {
                response
                    .headers_mut()
                    .insert(name, value.parse().expect("a header"));
            }
            response
        }
        Behaviour::Stall { media_type, body } => {
            let endless = pieces(body, usize::MAX).chain(stream::pending());
            (
                [(header::CONTENT_TYPE, media_type)],
                Body::from_stream(endless),
            )
                .into_response()
        }
        Behaviour::Break { media_type, body } => {
            let broken = stream::once(async {
                // The first piece has to be on its way before the connection breaks.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(std::io::Error::other("broken"))
            });
            (
                [(header::CONTENT_TYPE, media_type)],
                Body::from_stream(pieces(body, usize::MAX).chain(broken)),
            )
                .into_response()
        }
    }
}
