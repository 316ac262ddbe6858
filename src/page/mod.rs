//! The operator's page: which calls are live, what became of the others, what waits for the CRM
//! and why, and how the worker is.
//!
//! It shows what [`ledger`](crate::ledger) and [`upload`](crate::upload) tell and changes one
//! thing: a record that the CRM has refused may be tried again. `access` decides who may see it;
//! `calls`, `live`, `sound` and `health` are its requests; `web/` is what the browser runs, plain
//! files that are compiled in. All of it lies below `/page`.
//!
//! Nothing here loads everything: lists come a page at a time, files are read by few threads, and a
//! recording is sent as it is read.

mod access;
mod calls;
mod health;
mod live;
mod range;
mod sound;
mod web;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::recording::resolve::RecordingResolver;
use crate::store::{StorageConfig, Store};
use crate::upload::CrmHealth;
use crate::worker::WorkerStatus;

pub use self::access::{Access, Refusal, TOKEN_VARIABLE};
use self::live::LiveCalls;

/// Requests that read files at the same time: the others wait, so that a busy page leaves the disk
/// and the processor to the calls.
const MAX_READERS: usize = 2;
/// The largest body that a request may have. The only one with a body is signing in.
const MAX_BODY_BYTES: usize = 1024;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// The answer to a wrong token takes this long, and there is one at a time: nobody tries many.
const WRONG_TOKEN_PAUSE: Duration = Duration::from_millis(300);

/// `[page]`: the operator's page.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PageConfig {
    /// Show what people say while a call is going on. The transcript of a finished call is shown in
    /// any case.
    pub show_live_transcripts: bool,
    /// Show telephone numbers whole, instead of their last two digits.
    pub show_numbers: bool,
}

/// What the page shows from.
pub struct PageParts {
    /// The settings.
    pub config: PageConfig,
    /// The data folder.
    pub store: Store,
    /// How the worker is doing.
    pub status: watch::Receiver<WorkerStatus>,
    /// The most calls at a time.
    pub slots: usize,
    /// Room on the disk.
    pub storage: StorageConfig,
    /// Host of the LiveKit server.
    pub livekit_host: String,
    /// Finds the recordings.
    pub resolver: RecordingResolver,
    /// The delivery's view of the CRM; `None` when there is none.
    pub crm: Option<CrmHealth>,
    /// Tells the delivery that a record is due.
    pub notify: mpsc::Sender<()>,
}

/// What the requests share.
struct Page {
    parts: PageParts,
    access: Access,
    readers: Semaphore,
    live: LiveCalls,
    wrong_tokens: Mutex<()>,
    started: DateTime<Utc>,
    stop: CancellationToken,
}

/// The routes of the page, all below `/page`, and the redirect from `/`. Streams of events end
/// with `stop`.
pub fn router(access: Access, parts: PageParts, stop: CancellationToken) -> Router {
    if access.is_off() {
        warn!("{}; health, metrics and webhooks are served", Refusal::Off);
    } else {
        let by = if access.needs_token() {
            "with the token"
        } else {
            "to this machine"
        };
        info!("the operator's page is at /page/ of worker.http_bind, open {by}");
    }
    let page = Arc::new(Page {
        access,
        readers: Semaphore::new(MAX_READERS),
        live: LiveCalls::default(),
        wrong_tokens: Mutex::new(()),
        started: Utc::now(),
        stop,
        parts,
    });
    let api = Router::new()
        .route("/about", get(about))
        .route("/live", get(live::stream))
        .route("/calls", get(calls::list))
        .route("/calls/{id}", get(calls::one))
        .route("/calls/{id}/recording", get(sound::recording))
        .route("/calls/{id}/retry", post(calls::retry))
        .route("/queue", get(calls::queue))
        .route("/worker", get(health::worker))
        .route("/sign-out", post(sign_out))
        .fallback(no_such_request)
        .layer(middleware::from_fn_with_state(page.clone(), only_known));
    let everybody = web::routes()
        .route("/api/sign-in", post(sign_in))
        .fallback(no_such_request);
    let below = Router::new()
        .nest("/api", api)
        .merge(everybody)
        .layer(middleware::from_fn_with_state(page.clone(), only_own_site))
        .with_state(page);
    Router::new()
        .route("/", get(way_to_the_page))
        .route("/page", get(|| async { Redirect::permanent("/page/") }))
        .nest("/page/", below)
}

/// Probes ask for `/` and get `OK`, as from LiveKit's own workers; a browser is led to the page.
async fn way_to_the_page(headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT);
    let is_browser = accept.is_some_and(|accept| {
        let accept = accept.as_bytes();
        accept.windows(9).any(|part| part == b"text/html")
    });
    if is_browser {
        Redirect::temporary("/page/").into_response()
    } else {
        "OK".into_response()
    }
}

/// A sentence for whoever asked.
fn sentence(status: StatusCode, why: impl std::fmt::Display) -> Response {
    (status, Json(json!({ "error": why.to_string() }))).into_response()
}

impl Refusal {
    fn status(self) -> StatusCode {
        match self {
            Self::Off | Self::Host | Self::CrossSite => StatusCode::FORBIDDEN,
            Self::NoToken | Self::WrongToken => StatusCode::UNAUTHORIZED,
        }
    }
}

async fn no_such_request() -> Response {
    sentence(StatusCode::NOT_FOUND, "there is no such page")
}

/// In front of everything: no other site, and what the browser may do with the answer.
async fn only_own_site(State(page): State<Arc<Page>>, request: Request, next: Next) -> Response {
    let checked = page
        .access
        .check_origin(request.method(), request.headers());
    let mut response = match checked {
        Ok(()) => next.run(request).await,
        Err(refusal) => sentence(refusal.status(), refusal),
    };
    let headers = response.headers_mut();
    for (name, value) in SECURITY_HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// What a browser may do with any answer: run our files alone, guess no types, keep nothing, be in
/// no frame.
const SECURITY_HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; \
         connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

/// In front of all that tells something: only who may see it.
async fn only_known(State(page): State<Arc<Page>>, request: Request, next: Next) -> Response {
    match page
        .access
        .check(request.method(), request.headers(), Utc::now())
    {
        Ok(()) => next.run(request).await,
        Err(refusal) => page.refuse(refusal).await,
    }
}

/// What the page says about itself.
async fn about(State(page): State<Arc<Page>>) -> Json<Value> {
    let status = page.parts.status.borrow();
    Json(json!({
        "agent_name": status.agent_name,
        "version": env!("CARGO_PKG_VERSION"),
        "signed_in": page.access.needs_token(),
        "show_live_transcripts": page.parts.config.show_live_transcripts,
        "show_numbers": page.parts.config.show_numbers,
    }))
}

#[derive(Deserialize)]
struct SignIn {
    token: String,
}

async fn sign_in(State(page): State<Arc<Page>>, request: Request) -> Response {
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY_BYTES);
    let body = match timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let why = format!("the request is larger than {MAX_BODY_BYTES} bytes, or broke off");
            return sentence(StatusCode::PAYLOAD_TOO_LARGE, why);
        }
        Err(_) => {
            let why = format!("the request took more than {} s", BODY_TIMEOUT.as_secs());
            return sentence(StatusCode::REQUEST_TIMEOUT, why);
        }
    };
    let Ok(SignIn { token }) = serde_json::from_slice(&body) else {
        return sentence(
            StatusCode::BAD_REQUEST,
            "the request must be JSON with a `token`",
        );
    };
    if let Err(refusal) = page.access.check_token(&token) {
        return page.refuse(refusal).await;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(cookie) = page.access.sign_in(Utc::now()) {
        set_cookie(&mut response, &cookie);
    }
    response
}

async fn sign_out(State(page): State<Arc<Page>>) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    set_cookie(&mut response, &page.access.sign_out());
    response
}

fn set_cookie(response: &mut Response, cookie: &str) {
    // Made of digits and words of our own.
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
}

impl Page {
    async fn refuse(&self, refusal: Refusal) -> Response {
        if refusal == Refusal::WrongToken {
            let Ok(_turn) = timeout(WRONG_TOKEN_PAUSE * 10, self.wrong_tokens.lock()).await else {
                return sentence(StatusCode::TOO_MANY_REQUESTS, "too many wrong tokens");
            };
            sleep(WRONG_TOKEN_PAUSE).await;
            warn!("somebody sent a wrong token to the operator's page");
        }
        let mut response = sentence(refusal.status(), refusal);
        if refusal.status() == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }

    /// Reads files, on a thread where that may take its time.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Response> {
        let failed = |why| sentence(StatusCode::INTERNAL_SERVER_ERROR, why);
        let _turn = self
            .readers
            .acquire()
            .await
            .map_err(|_| failed("the worker stops"))?;
        spawn_blocking(read)
            .await
            .map_err(|_| failed("reading failed; the worker's log says why"))
    }
}
