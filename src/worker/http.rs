//! The worker's HTTP endpoints: liveness, readiness, status and metrics for operators and
//! orchestrators, and the receiver of LiveKit's webhooks.
//!
//! They read the worker's status and change nothing; the operator's page ([`crate::page`]) is
//! served beside them. Liveness and readiness differ on purpose:
//! a worker that has lost its server must not be restarted, because it may be holding calls.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::run::WorkerStatus;
use super::{listener, metrics, wire};
use crate::recording::webhook::{EgressEnded, WebhookRefused, Webhooks};

/// How often the metrics are compacted: otherwise histogram samples would accumulate while nobody
/// scrapes them.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// A webhook has a few kilobytes: a room with its participant and track, or an egress with its
/// request.
const MAX_WEBHOOK_BYTES: usize = 256 * 1024;
/// How long a webhook may take to arrive; LiveKit itself gives up after less.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the HTTP server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The port is in use, or the address is not one of this machine.
    #[error(
        "cannot listen on {address} (worker.http_bind) for health and metrics: {source}; choose another address, port 0 takes any free one"
    )]
    Bind {
        /// The requested address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// The HTTP server, bound and not yet serving.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
}

#[derive(Clone)]
struct Page {
    status: watch::Receiver<WorkerStatus>,
    metrics: Option<PrometheusHandle>,
}

impl HttpServer {
    /// Binds the address. Do this before anything else starts, so that a port in use is reported at
    /// once.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(address: SocketAddr) -> Result<Self, HttpError> {
        let bind = async {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        bind.await
            .map_err(|source| HttpError::Bind { address, source })
    }

    /// The address it listens on; the real port when 0 was requested.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`. Routes in `extra` take precedence (a page at `/`, for example).
    pub async fn serve(
        self,
        status: watch::Receiver<WorkerStatus>,
        metrics: Option<PrometheusHandle>,
        extra: Router,
        stop: CancellationToken,
    ) {
        let app = extra.fallback_service(routes(status, metrics.clone()));
        let upkeep = async {
            let mut ticks = interval(UPKEEP_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if let Some(metrics) = &metrics {
                    metrics.run_upkeep();
                }
            }
        };
        tokio::select! {
            () = listener::serve(self.listener, app, stop) => {}
            () = upkeep => {}
        }
    }
}

fn routes(status: watch::Receiver<WorkerStatus>, metrics: Option<PrometheusHandle>) -> Router {
    Router::new()
        .route("/", get(alive))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/worker", get(worker))
        .route("/metrics", get(render_metrics))
        .with_state(Page { status, metrics })
}

/// `POST /webhook`, for LiveKit's webhooks. Ended egresses go to `ended`; when that is full they
/// are dropped, because recordings are found by scans anyway.
pub fn webhook_route(webhooks: Webhooks, ended: mpsc::Sender<EgressEnded>) -> Router {
    Router::new()
        .route("/webhook", post(hear_webhook))
        .with_state((webhooks, ended))
}

async fn hear_webhook(
    State((webhooks, ended)): State<(Webhooks, mpsc::Sender<EgressEnded>)>,
    headers: HeaderMap,
    body: Body,
) -> (StatusCode, String) {
    // Do not buffer a body from a client without an authorization header.
    let Some(authorization) = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
    else {
        let why = WebhookRefused::Signature("it has none".to_owned());
        return refuse_webhook(StatusCode::UNAUTHORIZED, &why);
    };
    let body = match timeout(WEBHOOK_TIMEOUT, to_bytes(body, MAX_WEBHOOK_BYTES)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let why = format!("it is larger than {MAX_WEBHOOK_BYTES} bytes, or broke off");
            return refuse_webhook(StatusCode::PAYLOAD_TOO_LARGE, &WebhookRefused::Content(why));
        }
        Err(_) => {
            let why = format!("it took more than {} s", WEBHOOK_TIMEOUT.as_secs());
            return refuse_webhook(StatusCode::REQUEST_TIMEOUT, &WebhookRefused::Content(why));
        }
    };
    match webhooks.read(&body, authorization) {
        Ok(event) => {
            if let Some(event) = event {
                debug!(
                    egress.id = event.egress_id,
                    "LiveKit says that an egress has ended"
                );
                if ended.try_send(event).is_err() {
                    debug!("the webhook is dropped: nobody delivers, or many have come at once");
                }
            }
            (StatusCode::OK, "heard".to_owned())
        }
        Err(why @ WebhookRefused::Signature(_)) => refuse_webhook(StatusCode::UNAUTHORIZED, &why),
        Err(why @ WebhookRefused::Content(_)) => refuse_webhook(StatusCode::BAD_REQUEST, &why),
    }
}

fn refuse_webhook(status: StatusCode, why: &WebhookRefused) -> (StatusCode, String) {
    warn!(error = %why, "webhook refused");
    (status, why.to_string())
}

async fn alive() -> &'static str {
    "OK"
}

async fn ready(State(page): State<Page>) -> (StatusCode, String) {
    match page.status.borrow().not_ready() {
        None => (StatusCode::OK, "ready".into()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

async fn worker(State(page): State<Page>) -> Json<serde_json::Value> {
    let status = page.status.borrow();
    Json(json!({
        "agent_name": status.agent_name,
        "worker_type": "JT_ROOM",
        "active_jobs": status.active_jobs,
        // Rounded to the precision of an f32.
        "worker_load": (f64::from(status.load) * 1e4).round() / 1e4,
        "sdk_version": env!("CARGO_PKG_VERSION"),
        "protocol_version": wire::PROTOCOL_VERSION,
    }))
}

async fn render_metrics(State(page): State<Page>) -> impl IntoResponse {
    let Some(handle) = &page.metrics else {
        return (StatusCode::NOT_FOUND, "this process keeps no metrics").into_response();
    };
    metrics::set_process_figures();
    let text_format = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (text_format, handle.render()).into_response()
}
