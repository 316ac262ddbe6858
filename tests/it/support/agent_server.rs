//! The side of a LiveKit server that workers see: `/agent`, played by the test.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use livekit_protocol as proto;
use prost::Message as _;
use proto::server_message::Message as ToWorker;
use proto::worker_message::Message as FromWorker;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

pub const API_KEY: &str = "APItest";
pub const API_SECRET: &str = "a-secret-that-is-long-enough-for-anybody";

/// Nothing in these tests takes a second; a machine that is busy with other things may.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Listens as a LiveKit server does.
pub struct AgentServer {
    pub address: SocketAddr,
    connections: mpsc::Receiver<Connection>,
    /// The HTTP status that connections are refused with; 0: none.
    refusal: Arc<AtomicU16>,
}

impl AgentServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let refusal = Arc::new(AtomicU16::new(0));
        let (accepted, connections) = mpsc::channel(16);
        let refuse_with = refusal.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let refuse_with = refuse_with.load(Ordering::SeqCst);
                if let Some(connection) = Connection::accept(stream, refuse_with).await
                    && accepted.send(connection).await.is_err()
                {
                    return;
                }
            }
        });
        Self {
            address,
            connections,
            refusal,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn refuse_with(&self, http_status: u16) {
        self.refusal.store(http_status, Ordering::SeqCst);
    }

    /// The next connection of a worker, not yet registered.
    pub async fn connection(&mut self) -> Connection {
        timeout(DEADLINE, self.connections.recv())
            .await
            .expect("no worker connected in time")
            .unwrap()
    }

    /// The next worker that registers, and the registration it sent.
    pub async fn worker(&mut self) -> (Connection, proto::RegisterWorkerRequest) {
        let mut connection = self.connection().await;
        let registration = connection.register().await;
        (connection, registration)
    }
}

/// One worker's connection.
pub struct Connection {
    socket: WebSocketStream<TcpStream>,
    /// What came while the test waited for something else.
    heard: VecDeque<FromWorker>,
    pub claims: serde_json::Value,
}

impl Connection {
    #[expect(clippy::result_large_err, reason = "the callback's type is given")]
    async fn accept(stream: TcpStream, refuse_with: u16) -> Option<Self> {
        let mut claims = serde_json::Value::Null;
        let check = |request: &Request, response: Response| {
            let refuse = |status: u16| {
                let mut refusal = ErrorResponse::new(None);
                *refusal.status_mut() = status.try_into().unwrap();
                Err(refusal)
            };
            if refuse_with != 0 {
                return refuse(refuse_with);
            }
            if request.uri().path() != "/agent" || request.uri().query() != Some("protocol=1") {
                return refuse(404);
            }
            let bearer = request
                .headers()
                .get("authorization")
                .and_then(|value| value.to_str().ok());
            let token = bearer
                .and_then(|bearer| bearer.strip_prefix("Bearer "))
                .unwrap_or_default();
            let mut validation = Validation::new(Algorithm::HS256);
            validation.set_issuer(&[API_KEY]);
            let key = DecodingKey::from_secret(API_SECRET.as_bytes());
            match jsonwebtoken::decode::<serde_json::Value>(token, &key, &validation) {
                Ok(token) if token.claims["video"]["agent"] == true => {
                    claims = token.claims;
                    Ok(response)
                }
                _ => refuse(401),
            }
        };
        let socket = tokio_tungstenite::accept_hdr_async(stream, check)
            .await
            .ok()?;
        Some(Self {
            socket,
            heard: VecDeque::new(),
            claims,
        })
    }

    pub async fn send(&mut self, message: ToWorker) {
        let message = proto::ServerMessage {
            message: Some(message),
        };
        self.socket
            .send(Message::binary(message.encode_to_vec()))
            .await
            .unwrap();
    }

    /// The first message, heard already or yet to come, that `wanted` takes. Others wait for their
    /// turn.
    pub async fn expect<T>(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&FromWorker) -> Option<T>,
    ) -> T {
        for at in 0..self.heard.len() {
            if let Some(found) = wanted(&self.heard[at]) {
                self.heard.remove(at);
                return found;
            }
        }
        let search = async {
            loop {
                let frame = self
                    .socket
                    .next()
                    .await
                    .expect("the worker closed the connection")
                    .unwrap();
                let Message::Binary(bytes) = frame else {
                    continue;
                };
                let Some(message) = proto::WorkerMessage::decode(bytes).unwrap().message else {
                    continue;
                };
                if let Some(found) = wanted(&message) {
                    return found;
                }
                self.heard.push_back(message);
            }
        };
        match timeout(DEADLINE, search).await {
            Ok(found) => found,
            Err(_) => panic!(
                "the worker did not send in time: {what}; it sent {:?}",
                self.heard
            ),
        }
    }

    pub async fn register(&mut self) -> proto::RegisterWorkerRequest {
        let registration = self
            .expect("a registration", |message| match message {
                FromWorker::Register(registration) => Some(registration.clone()),
                _ => None,
            })
            .await;
        self.send(ToWorker::Register(proto::RegisterWorkerResponse {
            worker_id: "AW_test".into(),
            ..Default::default()
        }))
        .await;
        registration
    }

    pub async fn offer(&mut self, job_id: &str) {
        self.send(ToWorker::Availability(proto::AvailabilityRequest {
            job: Some(job(job_id)),
            resuming: false,
        }))
        .await;
    }

    pub async fn answer(&mut self, job_id: &str) -> proto::AvailabilityResponse {
        self.expect("an answer to an offer", |message| match message {
            FromWorker::Availability(answer) if answer.job_id == job_id => Some(answer.clone()),
            _ => None,
        })
        .await
    }

    pub async fn assign(&mut self, job_id: &str) {
        let assignment = proto::JobAssignment {
            job: Some(job(job_id)),
            url: None,
            token: "join-token".into(),
        };
        self.send(ToWorker::Assignment(assignment)).await;
    }

    /// Offers a job, and assigns it, since it is taken.
    pub async fn dispatch(&mut self, job_id: &str) {
        self.offer(job_id).await;
        assert!(self.answer(job_id).await.available, "{job_id} was declined");
        self.assign(job_id).await;
    }

    pub async fn terminate(&mut self, job_id: &str) {
        self.send(ToWorker::Termination(proto::JobTermination {
            job_id: job_id.into(),
        }))
        .await;
    }

    /// The next status of a job.
    pub async fn job_status(&mut self, job_id: &str) -> (proto::JobStatus, String) {
        self.expect("the status of a job", |message| match message {
            FromWorker::UpdateJob(update) if update.job_id == job_id => {
                Some((update.status(), update.error.clone()))
            }
            _ => None,
        })
        .await
    }

    pub async fn migrated_jobs(&mut self) -> Vec<String> {
        self.expect("the running jobs", |message| match message {
            FromWorker::MigrateJob(request) => Some(request.job_ids.clone()),
            _ => None,
        })
        .await
    }

    /// Waits for a status of the worker, forgetting those before it.
    pub async fn worker_status(&mut self, full: bool, job_count: u32) -> f32 {
        let wanted = if full {
            proto::WorkerStatus::WsFull
        } else {
            proto::WorkerStatus::WsAvailable
        };
        let mut older = 0;
        let load = self
            .expect(
                &format!("a status with full = {full} and {job_count} jobs"),
                |message| match message {
                    FromWorker::UpdateWorker(update)
                        if update.status() == wanted && update.job_count == job_count =>
                    {
                        Some(update.load)
                    }
                    FromWorker::UpdateWorker(_) => {
                        older += 1;
                        None
                    }
                    _ => None,
                },
            )
            .await;
        // They would look like news to who waits next.
        self.heard.retain(|message| {
            let is_older = older > 0 && matches!(message, FromWorker::UpdateWorker(_));
            older -= usize::from(is_older);
            !is_older
        });
        load
    }

    /// Waits until the worker closes the connection.
    pub async fn closed(mut self) {
        let close = async {
            while let Some(Ok(frame)) = self.socket.next().await {
                if frame.is_close() {
                    let _ = self.socket.close(None).await;
                }
            }
        };
        timeout(DEADLINE, close)
            .await
            .expect("the worker did not close the connection in time");
    }
}

fn job(job_id: &str) -> proto::Job {
    proto::Job {
        id: job_id.into(),
        room: Some(proto::Room {
            name: "room-1".into(),
            sid: "RM_1".into(),
            ..Default::default()
        }),
        metadata: r#"{"phone_number":"+15550100123","campaignId":"campaign-1"}"#.into(),
        ..Default::default()
    }
}
