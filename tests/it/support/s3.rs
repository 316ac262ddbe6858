//! A server that speaks as much S3 as reading needs: HEAD, and GET with ranges and `If-Match`. It
//! does not check signatures, only whose key they name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::routing::get;
use tokio::task::JoinHandle;

/// The one key that may read.
pub const ACCESS_KEY: &str = "AKTEST";

#[derive(Clone, Default)]
struct Shared {
    objects: Arc<Mutex<HashMap<String, Bytes>>>,
    largest_answer: Arc<Mutex<usize>>,
}

/// The server; it stops when it is dropped.
pub struct FakeS3 {
    pub endpoint: String,
    shared: Shared,
    task: JoinHandle<()>,
}

impl FakeS3 {
    pub async fn start() -> Self {
        let shared = Shared::default();
        let app = Router::new()
            .route("/{*path}", get(object))
            .with_state(shared.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port on loopback");
        let endpoint = format!("http://{}", listener.local_addr().expect("the port"));
        let task = tokio::spawn(async move {
            axum::serve(listener, app)
                .await
                .expect("the fake S3 serves");
        });
        Self {
            endpoint,
            shared,
            task,
        }
    }

    /// Puts an object to `bucket/key`.
    pub fn put(&self, path: &str, bytes: impl Into<Bytes>) {
        let mut objects = self.shared.objects.lock().unwrap();
        objects.insert(path.to_owned(), bytes.into());
    }

    /// The most bytes that were asked for at once.
    pub fn largest_answer(&self) -> usize {
        *self.shared.largest_answer.lock().unwrap()
    }
}

impl Drop for FakeS3 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn object(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let signed = format!("AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/");
    if !text(header::AUTHORIZATION).is_some_and(|value| value.starts_with(&signed)) {
        return status(StatusCode::FORBIDDEN);
    }
    let Some(bytes) = shared.objects.lock().unwrap().get(&path).cloned() else {
        return status(StatusCode::NOT_FOUND);
    };
    let e_tag = format!("\"{}\"", bytes.len());
    if text(header::IF_MATCH).is_some_and(|wanted| wanted != e_tag) {
        return status(StatusCode::PRECONDITION_FAILED);
    }
    let whole = bytes.len();
    let range = text(header::RANGE).and_then(|range| {
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?))
    });
    let mut response = status(StatusCode::OK);
    if let Some((from, to)) = range {
        let part = bytes.slice(from..whole.min(to + 1));
        let mut largest = shared.largest_answer.lock().unwrap();
        *largest = part.len().max(*largest);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let content = format!("bytes {from}-{}/{whole}", from + part.len() - 1);
        response.headers_mut().insert(
            header::CONTENT_RANGE,
            content.parse().expect("a header's value"),
        );
        *response.body_mut() = Body::from(part);
    } else {
        *response.body_mut() = Body::from(bytes);
    }
    let head = response.headers_mut();
    head.insert(header::ETAG, e_tag.parse().expect("a header's value"));
    head.insert(
        header::LAST_MODIFIED,
        "Sat, 21 Nov 2026 10:00:00 GMT".parse().expect("a date"),
    );
    response
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
