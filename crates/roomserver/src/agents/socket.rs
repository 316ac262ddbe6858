//! `/agent`: a worker's WebSocket. Binary frames are protobuf, text frames are JSON; the server
//! answers in the encoding of the worker's latest frame.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message as Frame, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use livekit_protocol as proto;
use prost::Message as _;
use proto::server_message::Message as ToWorker;
use proto::worker_message::Message as FromWorker;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Agents;
use super::worker::{Registration, Worker};

/// How long a worker may take until it has registered (`RegisterTimeout` of the real server).
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the server pings, so that a dead connection is noticed (`pingFrequency`).
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A frame that cannot be written in this time means that the other side does not read; the real
/// server gives a ping 2 s and a close 5 s.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest message (`agent_signal_message_size_limit`).
const MAX_MESSAGE_BYTES: usize = 2 * 1024 * 1024;

#[derive(Deserialize)]
pub(super) struct ConnectQuery {
    access_token: Option<String>,
}

/// Handles the request that opens the WebSocket.
pub(super) async fn connect(
    State(agents): State<Agents>,
    Query(query): Query<ConnectQuery>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let authorization = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let claims = agents
        .server()
        .keys()
        .verify_request(authorization, query.access_token.as_deref());
    let api_key = match claims.and_then(|claims| claims.require_agent().map(|()| claims.iss)) {
        Ok(api_key) => api_key,
        Err(error) => return (StatusCode::UNAUTHORIZED, error.to_string()).into_response(),
    };
    upgrade
        .max_message_size(MAX_MESSAGE_BYTES)
        .on_upgrade(move |socket| async move {
            let tasks = agents.server().tasks().clone();
            // Tracked, so that a shutdown waits until the connection is closed properly.
            let _ = tasks.spawn(serve(agents, socket, api_key)).await;
        })
}

async fn serve(agents: Agents, socket: WebSocket, api_key: String) {
    let mut connection = Connection {
        socket,
        answers_json: false,
    };
    let stop = agents.server().stop().clone();
    let deadline = Instant::now() + REGISTER_TIMEOUT;
    let registering = stop
        .run_until_cancelled(timeout_at(deadline, register(&mut connection)))
        .await;
    let registration = match registering {
        Some(Ok(Ok(registration))) => registration,
        Some(Ok(Err(why))) => return connection.close(&why).await,
        Some(Err(_)) => {
            return connection
                .close("the worker did not register in time")
                .await;
        }
        None => return connection.close("the server stops").await,
    };

    let closed = CancellationToken::new();
    let (worker, mut outbox) = Worker::new(api_key, registration, closed);
    let worker = Arc::new(worker);
    let response = proto::RegisterWorkerResponse {
        worker_id: worker.id.clone(),
        server_info: Some(agents.server().info().clone()),
        ..Default::default()
    };
    // It is listed before it is told so, so that a dispatch made right after its registration finds
    // it. What it is asked waits in its outbox.
    agents.add_worker(&worker);
    if let Err(why) = connection.write(ToWorker::Register(response)).await {
        agents.remove_worker(&worker);
        return connection.close(&why).await;
    }
    let end = tokio::select! {
        end = converse(&agents, &worker, &mut connection, &mut outbox) => end,
        () = worker.closed.cancelled() => "the server closes the connection".to_owned(),
        () = stop.cancelled() => "the server stops".to_owned(),
    };
    agents.remove_worker(&worker);
    connection.close(&end).await;
}

/// Reads until the worker has registered. Pings are allowed before, anything else is not.
async fn register(connection: &mut Connection) -> Result<Registration, String> {
    loop {
        match connection.read().await? {
            FromWorker::Register(request) => {
                return Registration::new(request).ok_or_else(|| "unknown job type".to_owned());
            }
            FromWorker::Ping(ping) => connection.write(pong(&ping)).await?,
            other => return Err(format!("{} before register", name_of(&other))),
        }
    }
}

/// Carries messages in both directions until the connection ends; returns why it did.
async fn converse(
    agents: &Agents,
    worker: &Arc<Worker>,
    connection: &mut Connection,
    outbox: &mut mpsc::Receiver<proto::ServerMessage>,
) -> String {
    let mut pings = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    loop {
        let done = tokio::select! {
            message = connection.read() => match message {
                Ok(FromWorker::Ping(ping)) => connection.write(pong(&ping)).await,
                Ok(message) => handle(agents, worker, message),
                Err(why) => Err(why),
            },
            message = outbox.recv() => match message.and_then(|message| message.message) {
                Some(message) => connection.write(message).await,
                None => Ok(()),
            },
            _ = pings.tick() => connection.write_frame(Frame::Ping(bytes::Bytes::new())).await,
        };
        if let Err(why) = done {
            return why;
        }
    }
}

/// Acts on a message. An error closes the connection, as it does on the real server.
fn handle(agents: &Agents, worker: &Arc<Worker>, message: FromWorker) -> Result<(), String> {
    match message {
        FromWorker::Availability(answer) => worker.answered(answer),
        FromWorker::UpdateWorker(update) => worker.set_status(&update),
        FromWorker::UpdateJob(update) => agents.job_updated(worker, &update),
        FromWorker::SimulateJob(request) => agents.simulate_job(worker, request),
        // The open-source server does nothing with it either.
        FromWorker::MigrateJob(_) => {}
        other => {
            return Err(format!(
                "{} is not expected from a registered worker",
                name_of(&other)
            ));
        }
    }
    Ok(())
}

fn pong(ping: &proto::WorkerPing) -> ToWorker {
    ToWorker::Pong(proto::WorkerPong {
        last_timestamp: ping.timestamp,
        timestamp: chrono::Utc::now().timestamp_millis(),
    })
}

fn name_of(message: &FromWorker) -> &'static str {
    match message {
        FromWorker::Register(_) => "register",
        FromWorker::Availability(_) => "availability",
        FromWorker::UpdateWorker(_) => "update_worker",
        FromWorker::UpdateJob(_) => "update_job",
        FromWorker::Ping(_) => "ping",
        FromWorker::SimulateJob(_) => "simulate_job",
        FromWorker::MigrateJob(_) => "migrate_job",
        #[allow(unreachable_patterns, reason = "newer protocols have more messages")]
        _ => "a message of a newer protocol",
    }
}

struct Connection {
    socket: WebSocket,
    answers_json: bool,
}

impl Connection {
    /// The next message. Cancelling it loses nothing.
    async fn read(&mut self) -> Result<FromWorker, String> {
        loop {
            let frame = self
                .socket
                .recv()
                .await
                .ok_or("the worker closed the connection")?;
            let message = match frame.map_err(|error| format!("reading failed: {error}"))? {
                Frame::Binary(bytes) => {
                    self.answers_json = false;
                    proto::WorkerMessage::decode(bytes)
                        .map_err(|error| format!("not a worker message: {error}"))?
                }
                Frame::Text(text) => {
                    self.answers_json = true;
                    serde_json::from_str(&text)
                        .map_err(|error| format!("not a worker message: {error}"))?
                }
                Frame::Ping(_) | Frame::Pong(_) => continue,
                Frame::Close(_) => return Err("the worker closed the connection".to_owned()),
            };
            return message
                .message
                .ok_or_else(|| "an empty worker message".to_owned());
        }
    }

    async fn write(&mut self, message: ToWorker) -> Result<(), String> {
        let message = proto::ServerMessage {
            message: Some(message),
        };
        let frame = if self.answers_json {
            let text = serde_json::to_string(&message)
                .map_err(|error| format!("encoding failed: {error}"))?;
            Frame::Text(text.into())
        } else {
            Frame::Binary(message.encode_to_vec().into())
        };
        self.write_frame(frame).await
    }

    async fn write_frame(&mut self, frame: Frame) -> Result<(), String> {
        match timeout(WRITE_TIMEOUT, self.socket.send(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("writing failed: {error}")),
            Err(_) => Err("the worker does not read".to_owned()),
        }
    }

    async fn close(mut self, why: &str) {
        tracing::debug!("an agent worker's connection ends: {why}");
        // The other side may be gone already, which is the usual reason for closing.
        let _ = timeout(WRITE_TIMEOUT, self.socket.send(Frame::Close(None))).await;
    }
}
