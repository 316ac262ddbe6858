//! A CRM for demonstrations and development: takes what the worker delivers and keeps it in a
//! folder.
//!
//! It answers as the contract says (`POST /upload`, `POST /call-data`), knows repeated requests by
//! their idempotency key, and listens on loopback only.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::extract::{DefaultBodyLimit, Multipart, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::session::sanitise;

/// The largest recording that is taken, bytes: a day of a call.
const MAX_RECORDING_BYTES: usize = 1 << 30;
/// The header that names a delivery.
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// What came in.
#[derive(Debug, Clone, Default)]
pub struct Delivered {
    /// Recordings: where each was kept, and when it had come.
    pub recordings: Vec<(PathBuf, Instant)>,
    /// Call data: where each was kept, the object, and when it had come.
    pub calls: Vec<(PathBuf, Value, Instant)>,
}

#[derive(Default)]
struct Kept {
    delivered: Delivered,
    answers: HashMap<String, Value>,
}

/// A running sink. It stops when it is dropped.
pub struct CrmSink {
    address: SocketAddr,
    changes: watch::Receiver<Delivered>,
    server: tokio::task::JoinHandle<()>,
}

struct Shared {
    folder: PathBuf,
    address: SocketAddr,
    kept: Mutex<Kept>,
    changes: watch::Sender<Delivered>,
}

impl CrmSink {
    /// Listens on a free port and keeps everything in `folder`.
    pub async fn start(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (sender, changes) = watch::channel(Delivered::default());
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            address,
            kept: Mutex::default(),
            changes: sender,
        });
        let router = Router::new()
            .route("/upload", post(upload))
            .route("/call-data", post(call_data))
            .layer(DefaultBodyLimit::max(MAX_RECORDING_BYTES))
            .with_state(shared);
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the CRM sink stopped");
            }
        });
        Ok(Self {
            address,
            changes,
            server,
        })
    }

    /// Its base address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has come in so far, and what comes.
    pub fn changes(&self) -> watch::Receiver<Delivered> {
        self.changes.clone()
    }
}

impl Drop for CrmSink {
    fn drop(&mut self) {
        self.server.abort();
    }
}

type Refusal = (StatusCode, String);

fn refuse(status: StatusCode, why: impl std::fmt::Display) -> Refusal {
    (status, why.to_string())
}

async fn upload(
    State(sink): State<Arc<Shared>>,
    headers: HeaderMap,
    mut form: Multipart,
) -> Result<impl IntoResponse, Refusal> {
    if let Some(answer) = sink.known(&headers) {
        return Ok(Json(answer));
    }
    while let Some(mut field) = form
        .next_field()
        .await
        .map_err(|error| refuse(StatusCode::BAD_REQUEST, error))?
    {
        if field.name() != Some("file") {
            continue;
        }
        let name = sanitise(field.file_name().unwrap_or("recording"));
        let path = sink.folder.join(&name);
        let write = |error: io::Error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error);
        let mut file = tokio::fs::File::create(&path).await.map_err(write)?;
        while let Some(chunk) = field
            .chunk()
            .await
            .map_err(|error| refuse(StatusCode::BAD_REQUEST, error))?
        {
            file.write_all(&chunk).await.map_err(write)?;
        }
        file.sync_all().await.map_err(write)?;
        let answer = json!({ "url": format!("http://{}/files/{name}", sink.address) });
        sink.keep(&headers, &answer, |delivered| {
            delivered.recordings.push((path, Instant::now()))
        });
        return Ok(Json(answer));
    }
    Err(refuse(
        StatusCode::BAD_REQUEST,
        "the form has no field `file`",
    ))
}

async fn call_data(
    State(sink): State<Arc<Shared>>,
    headers: HeaderMap,
    Json(call): Json<Value>,
) -> Result<impl IntoResponse, Refusal> {
    if let Some(answer) = sink.known(&headers) {
        return Ok(Json(answer));
    }
    let id = call
        .pointer("/callDetails/callId")
        .and_then(Value::as_str)
        .unwrap_or("call")
        .to_owned();
    let path = sink.folder.join(format!("{}.json", sanitise(&id)));
    let text =
        serde_json::to_vec_pretty(&call).map_err(|error| refuse(StatusCode::BAD_REQUEST, error))?;
    tokio::fs::write(&path, text)
        .await
        .map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    let answer = json!({ "success": true, "callId": id });
    sink.keep(&headers, &answer, |delivered| {
        delivered.calls.push((path, call, Instant::now()))
    });
    Ok(Json(answer))
}

impl Shared {
    /// The answer that was given to the same delivery before.
    fn known(&self, headers: &HeaderMap) -> Option<Value> {
        let key = headers.get(IDEMPOTENCY_KEY)?.to_str().ok()?;
        self.kept
            .lock()
            .expect("the sink does not panic under its lock")
            .answers
            .get(key)
            .cloned()
    }

    fn keep(&self, headers: &HeaderMap, answer: &Value, add: impl FnOnce(&mut Delivered)) {
        let mut kept = self
            .kept
            .lock()
            .expect("the sink does not panic under its lock");
        if let Some(key) = headers
            .get(IDEMPOTENCY_KEY)
            .and_then(|key| key.to_str().ok())
        {
            kept.answers.insert(key.to_owned(), answer.clone());
        }
        add(&mut kept.delivered);
        self.changes.send_replace(kept.delivered.clone());
    }
}
