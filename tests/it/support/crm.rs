//! A CRM that really listens on a socket. It takes recordings and call data, remembers them, and
//! answers as a test tells it to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// How long a test waits for something that should happen before it gives up.
const DEADLINE: Duration = Duration::from_secs(20);

/// The header that requests may be signed in.
pub const SIGNATURE: &str = "x-voicebot-signature";

/// How one request is answered.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Accepted, in the way the contract says.
    Accept,
    /// This status and body. Counts as received, not as accepted.
    Say(u16, Value),
    /// This status, and a text that is no JSON.
    Text(u16, &'static str),
    /// This status, with `Retry-After` in seconds.
    Later(u16, u64),
    /// This status, these headers and these bytes; taken if the status is 2xx.
    Raw(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Accepted, but the answer breaks off in the middle.
    AcceptAndBreakOff,
    /// Accepted, but never answered.
    AcceptAndHang,
    /// Never answered.
    Hang,
}

/// A recording as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    pub file_name: String,
    pub content_type: String,
    pub content_length: Option<u64>,
    pub key: String,
    pub authorization: Option<String>,
    pub signature: Option<String>,
    pub bytes: Bytes,
    pub accepted: bool,
}

/// Call data as it arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct CallData {
    pub key: String,
    pub authorization: Option<String>,
    pub signature: Option<String>,
    /// As it came, for checking signatures.
    pub text: Bytes,
    pub body: Value,
    pub accepted: bool,
}

#[derive(Default)]
struct Inside {
    upload_answers: VecDeque<Answer>,
    /// By the beginning of the idempotency key, before the others.
    standing_answers: Vec<(String, Answer)>,
    call_data_answers: VecDeque<Answer>,
    uploads: Vec<Upload>,
    call_data: Vec<CallData>,
}

impl Inside {
    fn standing_answer(&self, key: &str) -> Option<Answer> {
        let mut standing = self.standing_answers.iter();
        let found = standing.find(|(beginning, _)| key.starts_with(beginning.as_str()));
        found.map(|(_, answer)| answer.clone())
    }
}

#[derive(Clone, Default)]
struct Shared {
    inside: Arc<Mutex<Inside>>,
    changed: Arc<Notify>,
}

/// The server; it stops when it is dropped.
pub struct FakeCrm {
    base_url: String,
    shared: Shared,
    task: JoinHandle<()>,
}

impl FakeCrm {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port on loopback");
        Self::on(listener)
    }

    /// Serves on a port that is open already.
    pub fn on(listener: tokio::net::TcpListener) -> Self {
        let shared = Shared::default();
        let app = Router::new()
            .route("/api/public/upload", post(upload))
            .route("/api/public/call-data", post(call_data))
            // Where a redirect may lead.
            .route("/v2/upload", post(upload))
            .route("/v2/call-data", post(call_data))
            .layer(DefaultBodyLimit::disable())
            .with_state(shared.clone());
        let base_url = format!(
            "http://{}/api/public",
            listener.local_addr().expect("the port")
        );
        let task = tokio::spawn(async move {
            axum::serve(listener, app)
                .await
                .expect("the fake CRM serves")
        });
        Self {
            base_url,
            shared,
            task,
        }
    }

    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Answers the next uploads like this; those after them are accepted.
    pub fn answer_uploads(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared
            .inside
            .lock()
            .unwrap()
            .upload_answers
            .extend(answers);
    }

    /// Answers the next call data like this; those after them are accepted.
    pub fn answer_call_data(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared
            .inside
            .lock()
            .unwrap()
            .call_data_answers
            .extend(answers);
    }

    /// Answers every request whose idempotency key begins like this in this way, until it is told
    /// otherwise; nothing: as usual.
    pub fn always_answer(&self, key: &str, answer: Option<Answer>) {
        let standing = &mut self.shared.inside.lock().unwrap().standing_answers;
        standing.retain(|(known, _)| known != key);
        standing.extend(answer.map(|answer| (key.to_owned(), answer)));
    }

    pub fn uploads(&self) -> Vec<Upload> {
        self.shared.inside.lock().unwrap().uploads.clone()
    }

    pub fn call_data(&self) -> Vec<CallData> {
        self.shared.inside.lock().unwrap().call_data.clone()
    }

    /// Waits until something that has arrived satisfies `done`.
    pub async fn wait_until(&self, what: &str, done: impl Fn(&[Upload], &[CallData]) -> bool) {
        let wait = async {
            loop {
                let changed = self.shared.changed.notified();
                {
                    let inside = self.shared.inside.lock().unwrap();
                    if done(&inside.uploads, &inside.call_data) {
                        return;
                    }
                }
                changed.await;
            }
        };
        tokio::time::timeout(DEADLINE, wait)
            .await
            .unwrap_or_else(|_| panic!("{what} within {DEADLINE:?}"));
    }
}

impl Drop for FakeCrm {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<String> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

async fn upload(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let content_type = text(&headers, header::CONTENT_TYPE).unwrap_or_default();
    let Some((file_name, part_type, bytes)) = the_file(&content_type, &body) else {
        return plain(400, "expected one multipart part named file");
    };
    let (answer, number) = {
        let mut inside = shared.inside.lock().unwrap();
        let key = text(&headers, "idempotency-key").unwrap_or_default();
        let standing = inside.standing_answer(&key);
        let answer = standing
            .or_else(|| inside.upload_answers.pop_front())
            .unwrap_or(Answer::Accept);
        inside.uploads.push(Upload {
            file_name: file_name.clone(),
            content_type: part_type,
            content_length: text(&headers, header::CONTENT_LENGTH)
                .and_then(|length| length.parse().ok()),
            key,
            authorization: text(&headers, header::AUTHORIZATION),
            signature: text(&headers, SIGNATURE),
            bytes,
            accepted: accepts(&answer),
        });
        (answer, inside.uploads.len())
    };
    shared.changed.notify_waiters();
    give(answer, json!({ "success": true, "data": { "url": format!("https://crm.example.com/uploads/{number}-{file_name}") } })).await
}

async fn call_data(State(shared): State<Shared>, headers: HeaderMap, raw: Bytes) -> Response<Body> {
    let Ok(body) = serde_json::from_slice(&raw) else {
        return plain(400, "expected JSON");
    };
    let answer = {
        let mut inside = shared.inside.lock().unwrap();
        let key = text(&headers, "idempotency-key").unwrap_or_default();
        let standing = inside.standing_answer(&key);
        let answer = standing
            .or_else(|| inside.call_data_answers.pop_front())
            .unwrap_or(Answer::Accept);
        inside.call_data.push(CallData {
            key,
            authorization: text(&headers, header::AUTHORIZATION),
            signature: text(&headers, SIGNATURE),
            text: raw,
            body,
            accepted: accepts(&answer),
        });
        answer
    };
    shared.changed.notify_waiters();
    give(
        answer,
        json!({ "success": true, "id": "6900ac4c995436dc7dd9abb4" }),
    )
    .await
}

fn accepts(answer: &Answer) -> bool {
    matches!(
        answer,
        Answer::Accept
            | Answer::Raw(200..=299, ..)
            | Answer::AcceptAndBreakOff
            | Answer::AcceptAndHang
    )
}

async fn give(answer: Answer, accepted: Value) -> Response<Body> {
    match answer {
        Answer::Accept => plain(201, &accepted.to_string()),
        Answer::Say(status, body) => plain(status, &body.to_string()),
        Answer::Text(status, body) => plain(status, body),
        Answer::Later(status, seconds) => {
            let mut response = plain(status, "later");
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
            response
        }
        Answer::Raw(status, headers, body) => {
            let mut response = plain(status, "");
            *response.body_mut() = Body::from(body);
            for (name, value) in headers {
                let value = value.parse().expect("a header's value");
                response.headers_mut().insert(name, value);
            }
            response
        }
        Answer::AcceptAndBreakOff => {
            let mut response = plain(201, "");
            let half: [Result<Bytes, std::io::Error>; 2] = [
                Ok(Bytes::from_static(b"{\"succ")),
                Err(std::io::ErrorKind::ConnectionReset.into()),
            ];
            *response.body_mut() = Body::from_stream(futures_util::stream::iter(half));
            response
        }
        Answer::AcceptAndHang | Answer::Hang => std::future::pending().await,
    }
}

fn plain(status: u16, body: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_owned()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

/// The one part of a multipart form (RFC 7578) with the name `file`: its file name, media type and
/// content.
pub fn the_file(content_type: &str, body: &Bytes) -> Option<(String, String, Bytes)> {
    let boundary = content_type.strip_prefix("multipart/form-data; boundary=")?;
    let (opening, closing) = (
        format!("--{boundary}\r\n"),
        format!("\r\n--{boundary}--\r\n"),
    );
    if !body.starts_with(opening.as_bytes()) || !body.ends_with(closing.as_bytes()) {
        return None;
    }
    let head_end = body.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&body[opening.len()..head_end]).ok()?;
    let mut file_name = None;
    let mut media_type = String::new();
    for line in head.split("\r\n") {
        let (name, value) = line.split_once(": ")?;
        match name.to_lowercase().as_str() {
            "content-disposition" => {
                let rest = value.strip_prefix("form-data; name=\"file\"; filename=\"")?;
                file_name = rest.strip_suffix('"').map(str::to_owned);
            }
            "content-type" => media_type = value.to_owned(),
            _ => {}
        }
    }
    Some((
        file_name?,
        media_type,
        body.slice(head_end + 4..body.len() - closing.len()),
    ))
}
