//! The connection to the LiveKit server: opens it, registers, monitors it, and reconnects for as
//! long as the worker lives.
//!
//! It decides nothing about jobs. Messages of the server become [`LinkEvent`]s; messages of the
//! worker go into the outbox that comes with [`LinkEvent::Up`]. Each connection has an outbox of
//! its own, so nothing that was meant for one reaches the next.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, header::AUTHORIZATION};
use tokio_tungstenite::tungstenite::protocol::{
    CloseFrame, WebSocketConfig, frame::coding::CloseCode,
};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::wire::{self, BadLiveKitUrl, FromServer, JobStatus, ToServer};
use crate::settings::LiveKitSettings;

/// How long opening the socket may take, with name look-up and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server may take to answer a registration. The server waits as long for the
/// registration (`RegisterTimeout`).
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// The server pings every 10 s; without any frame for three of these the connection is dead,
/// whatever TCP says.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// How often the worker sends the protocol's own ping, to notice a middlebox or a server that has
/// dropped the connection.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A message that cannot be written for this long means a dead connection.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the worker waits for the server's half of a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The wait before a new attempt grows by this much with each failure…
const BACKOFF_STEP: Duration = Duration::from_secs(1);
/// …up to this. LiveKit's own workers wait up to 10 s, and give up after 16 attempts. But a server
/// that was restarted dispatches a room once, when its first caller is back, and to nobody if no
/// worker is registered by then.
const BACKOFF_LIMIT: Duration = Duration::from_secs(2);
/// A random part up to this is added to every wait, so that the workers of a restarted server do
/// not all reconnect at once.
const BACKOFF_JITTER: Duration = Duration::from_secs(1);
/// After a connection that lasted this long, the next attempt is made at once.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// The server's own limit for one message (`agent_signal_message_size_limit`).
const MAX_MESSAGE_BYTES: usize = 2 * 1024 * 1024;
/// Messages that may wait for a slow socket. A worker sends a few per second.
const OUTBOX_MESSAGES: usize = 256;

/// An outgoing message to the server.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub message: ToServer,
    /// Notified when the message has been written to the socket; dropped when that failed.
    pub written: Option<oneshot::Sender<()>>,
}

pub(super) type Outbox = mpsc::Sender<Outgoing>;

/// An event of the connection.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// Registered; send through the outbox until [`LinkEvent::Down`].
    Up { worker_id: String, outbox: Outbox },
    /// A message from the server.
    Said(FromServer),
    /// The connection is lost and will be reopened. These statuses were not sent over it.
    Down { why: String, unsent: Vec<JobStatus> },
    /// Connecting failed, for a reason that differs from the previous one.
    Refused { why: String },
}

/// Where and as whom the worker registers.
#[derive(Debug)]
pub(super) struct Registration {
    settings: LiveKitSettings,
    url: Url,
    agent_name: String,
}

impl Registration {
    pub(super) fn new(
        settings: LiveKitSettings,
        agent_name: String,
    ) -> Result<Self, BadLiveKitUrl> {
        let url = wire::agent_url(&settings.url)?;
        Ok(Self {
            settings,
            url,
            agent_name,
        })
    }

    /// The server's host and port, for messages.
    pub(super) fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        match self.url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// Keeps the worker registered until `stop`, then closes the connection properly.
    pub(super) async fn keep(self, events: mpsc::Sender<LinkEvent>, stop: CancellationToken) {
        let mut failures: u32 = 0;
        let mut last_refusal = None;
        loop {
            let attempt = async {
                let mut connection = self.connect().await?;
                let worker_id = connection.register(&self.agent_name).await?;
                Ok::<_, LinkError>((connection, worker_id))
            };
            let attempt = tokio::select! {
                attempt = attempt => attempt,
                () = stop.cancelled() => return,
            };
            match attempt {
                Ok((connection, worker_id)) => {
                    last_refusal = None;
                    let opened = Instant::now();
                    let (outbox, inbox) = mpsc::channel(OUTBOX_MESSAGES);
                    if events
                        .send(LinkEvent::Up { worker_id, outbox })
                        .await
                        .is_err()
                    {
                        return;
                    }
                    let Some(down) = connection.serve(inbox, &events, &stop).await else {
                        return;
                    };
                    if events.send(down).await.is_err() {
                        return;
                    }
                    if opened.elapsed() >= STABLE_AFTER {
                        failures = 0;
                    }
                }
                Err(error) => {
                    let why = error.sentence(&self.host());
                    if last_refusal.as_ref() != Some(&why) {
                        last_refusal = Some(why.clone());
                        if events.send(LinkEvent::Refused { why }).await.is_err() {
                            return;
                        }
                    }
                }
            }
            tokio::select! {
                () = sleep(backoff(failures, rand::random())) => {}
                () = stop.cancelled() => return,
            }
            failures = failures.saturating_add(1);
        }
    }

    async fn connect(&self) -> Result<Connection, LinkError> {
        let now = chrono::Utc::now().timestamp();
        let secret = self.settings.api_secret.expose();
        let token = wire::worker_token(&self.settings.api_key, secret, "voicebot", now);
        let mut request = self.url.as_str().into_client_request()?;
        let mut bearer =
            HeaderValue::from_str(&format!("Bearer {token}")).expect("a token is base64 and dots");
        bearer.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, bearer);
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        // Without Nagle's algorithm: a small answer must not wait for more data.
        let opening = tokio_tungstenite::connect_async_with_config(request, Some(config), true);
        let (socket, _response) = timeout(CONNECT_TIMEOUT, opening).await.map_err(|_| {
            LinkError::timeout("the connection could not be opened", CONNECT_TIMEOUT)
        })??;
        Ok(Connection { socket })
    }
}

/// The wait before the next attempt: 0, 2, 4, 6, 8, 10, 10… seconds and a random part of one.
/// `random` is any number.
fn backoff(failures: u32, random: u32) -> Duration {
    let wait = BACKOFF_STEP.saturating_mul(failures).min(BACKOFF_LIMIT);
    wait + BACKOFF_JITTER.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

struct Connection {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Connection {
    async fn register(&mut self, agent_name: &str) -> Result<String, LinkError> {
        self.send(ToServer::Register {
            agent_name: agent_name.to_owned(),
            ping_interval_s: PING_INTERVAL.as_secs() as u32,
        })
        .await?;
        let answer = async {
            loop {
                match self.receive().await? {
                    Some(FromServer::Registered {
                        worker_id,
                        server_version,
                    }) => {
                        tracing::debug!(
                            worker.id = worker_id,
                            server.version = server_version,
                            "the server answered the registration"
                        );
                        return Ok(worker_id);
                    }
                    _ => continue,
                }
            }
        };
        timeout(REGISTER_TIMEOUT, answer).await.map_err(|_| {
            LinkError::timeout("the registration was not answered", REGISTER_TIMEOUT)
        })?
    }

    /// Forwards messages in both directions until the connection ends. `None`: `stop` was
    /// cancelled, everything is written and closed.
    async fn serve(
        mut self,
        mut inbox: mpsc::Receiver<Outgoing>,
        events: &mpsc::Sender<LinkEvent>,
        stop: &CancellationToken,
    ) -> Option<LinkEvent> {
        let mut unsent = Vec::new();
        let outcome = self.carry(&mut inbox, &mut unsent, events, stop).await;
        // From here on sending fails, and the worker keeps messages that it cannot send.
        inbox.close();
        match outcome {
            Ok(()) => {
                while let Ok(outgoing) = inbox.try_recv() {
                    if self.send(outgoing.message).await.is_err() {
                        break;
                    }
                    outgoing.written.map(|written| written.send(()));
                }
                self.close().await;
                None
            }
            Err(error) => {
                while let Ok(outgoing) = inbox.try_recv() {
                    keep_status(outgoing.message, &mut unsent);
                }
                Some(LinkEvent::Down {
                    why: error.to_string(),
                    unsent,
                })
            }
        }
    }

    async fn carry(
        &mut self,
        inbox: &mut mpsc::Receiver<Outgoing>,
        unsent: &mut Vec<JobStatus>,
        events: &mpsc::Sender<LinkEvent>,
        stop: &CancellationToken,
    ) -> Result<(), LinkError> {
        let mut pings = tokio::time::interval(PING_INTERVAL);
        pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_heard = Instant::now();
        loop {
            tokio::select! {
                biased;
                // The worker cancels only after its last message, so what is in the inbox then is
                // written by `serve`.
                () = stop.cancelled() => return Ok(()),
                frame = self.socket.next() => {
                    last_heard = Instant::now();
                    let Some(frame) = frame else { return Err(LinkError::Closed(None)) };
                    let Some(said) = understand(frame?)? else { continue };
                    if let FromServer::GoAway = said {
                        return Err(LinkError::GoAway);
                    }
                    if events.send(LinkEvent::Said(said)).await.is_err() {
                        return Ok(());
                    }
                }
                Some(outgoing) = inbox.recv() => {
                    let status = outgoing.message.clone();
                    if let Err(error) = self.send(outgoing.message).await {
                        keep_status(status, unsent);
                        return Err(error);
                    }
                    outgoing.written.map(|written| written.send(()));
                }
                _ = pings.tick() => {
                    self.send(ToServer::Ping { timestamp_ms: chrono::Utc::now().timestamp_millis() }).await?;
                }
                () = tokio::time::sleep_until(last_heard + SILENCE_LIMIT) => {
                    return Err(LinkError::timeout("the server was silent", SILENCE_LIMIT));
                }
            }
        }
    }

    async fn send(&mut self, message: ToServer) -> Result<(), LinkError> {
        let message = Message::binary(wire::encode(message));
        timeout(WRITE_TIMEOUT, self.socket.send(message))
            .await
            .map_err(|_| LinkError::timeout("a message could not be sent", WRITE_TIMEOUT))??;
        Ok(())
    }

    async fn receive(&mut self) -> Result<Option<FromServer>, LinkError> {
        match self.socket.next().await {
            Some(frame) => understand(frame?),
            None => Err(LinkError::Closed(None)),
        }
    }

    async fn close(mut self) {
        let frame = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        let closing = async {
            self.socket.close(Some(frame)).await?;
            while self.socket.next().await.transpose()?.is_some() {}
            Ok::<_, tungstenite::Error>(())
        };
        if let Ok(Err(error)) = timeout(CLOSE_TIMEOUT, closing).await {
            tracing::debug!(%error, "the connection to the server did not close cleanly");
        }
    }
}

/// A job's status must reach the server even if this connection fails; all other messages are
/// created anew on the next one.
fn keep_status(message: ToServer, unsent: &mut Vec<JobStatus>) {
    if let ToServer::JobStatus(status) = message {
        unsent.push(status);
    }
}

/// Reads a frame. `None`: it contains no message for the worker.
fn understand(frame: Message) -> Result<Option<FromServer>, LinkError> {
    match frame {
        Message::Binary(bytes) => match wire::decode(&bytes) {
            Ok(said) => Ok(Some(said)),
            Err(error) => {
                tracing::warn!(%error, "ignored a message of the server that is not understood");
                Ok(None)
            }
        },
        Message::Close(frame) => Err(LinkError::Closed(
            frame
                .filter(|frame| !frame.reason.is_empty())
                .map(|frame| frame.reason.to_string()),
        )),
        // The WebSocket library answers pings; the server uses the encoding of the worker, which is
        // binary.
        _ => Ok(None),
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{what} for {} s", .limit.as_secs())]
    Timeout { what: &'static str, limit: Duration },
    #[error("the server closed the connection{}", .0.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Closed(Option<String>),
    #[error("the server is stopping and asks to register elsewhere")]
    GoAway,
    #[error("{0}")]
    Socket(Box<tungstenite::Error>),
}

impl From<tungstenite::Error> for LinkError {
    fn from(error: tungstenite::Error) -> Self {
        Self::Socket(Box::new(error))
    }
}

impl LinkError {
    fn timeout(what: &'static str, limit: Duration) -> Self {
        Self::Timeout { what, limit }
    }

    /// A message for the operator: what is wrong, and where to start.
    fn sentence(&self, host: &str) -> String {
        let Self::Socket(error) = self else {
            return format!("cannot register at {host} (LIVEKIT_URL): {self}");
        };
        match &**error {
            tungstenite::Error::Http(response) => match response.status() {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!(
                    "the LiveKit server at {host} does not accept our key ({}): LIVEKIT_API_KEY or LIVEKIT_API_SECRET is not one of its keys, or the clocks differ",
                    response.status().as_u16()
                ),
                StatusCode::NOT_FOUND => {
                    format!(
                        "there are no workers at {host} (404): LIVEKIT_URL is not the address of a LiveKit server, or its path is wrong"
                    )
                }
                status => format!(
                    "the LiveKit server at {host} (LIVEKIT_URL) refused the connection with HTTP status {}",
                    status.as_u16()
                ),
            },
            tungstenite::Error::Io(error) => {
                format!("cannot reach the LiveKit server at {host} (LIVEKIT_URL): {error}")
            }
            tungstenite::Error::Tls(error) => format!(
                "no secure connection to the LiveKit server at {host} (LIVEKIT_URL): {error}"
            ),
            tungstenite::Error::Protocol(error) => {
                format!("what answers at {host} (LIVEKIT_URL) is not a LiveKit server: {error}")
            }
            error => {
                format!("cannot connect to the LiveKit server at {host} (LIVEKIT_URL): {error}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_is_immediate_and_later_ones_at_most_three_seconds_apart() {
        assert_eq!(backoff(0, 0), Duration::ZERO);
        assert_eq!(backoff(1, 0), Duration::from_secs(1));
        assert_eq!(backoff(5, 0), Duration::from_secs(2));
        assert_eq!(backoff(u32::MAX, u32::MAX), Duration::from_secs(3));
    }

    #[test]
    fn a_refusal_names_the_key_to_look_at() {
        let refused = |status: u16| {
            let response = tungstenite::http::Response::builder()
                .status(status)
                .body(None)
                .unwrap();
            LinkError::from(tungstenite::Error::Http(Box::new(response)))
                .sentence("lk.example:7880")
        };
        assert!(
            refused(401).contains("LIVEKIT_API_KEY") && refused(401).contains("lk.example:7880")
        );
        assert!(refused(404).contains("LIVEKIT_URL"));
        assert!(refused(503).contains("503"));
        let io = LinkError::from(tungstenite::Error::Io(
            std::io::ErrorKind::ConnectionRefused.into(),
        ));
        let sentence = io.sentence("lk.example:7880");
        assert!(
            sentence.contains("LIVEKIT_URL") && sentence.contains("refused"),
            "{sentence}"
        );
    }

    /// A server that registers every worker, then only reads.
    async fn silent_server() -> std::net::SocketAddr {
        use livekit_protocol as proto;
        use prost::Message as _;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            let registered = proto::RegisterWorkerResponse {
                worker_id: "AW_1".into(),
                ..Default::default()
            };
            let answer = proto::ServerMessage {
                message: Some(proto::server_message::Message::Register(registered)),
            };
            let answer = Message::binary(answer.encode_to_vec());
            socket.send(answer).await.unwrap();
            while let Some(Ok(_)) = socket.next().await {}
        });
        address
    }

    #[tokio::test]
    async fn a_silent_server_counts_as_gone() {
        let settings = LiveKitSettings {
            url: format!("ws://{}", silent_server().await),
            api_key: "key".into(),
            api_secret: crate::settings::Secret::new("secret"),
        };
        let registration = Registration::new(settings, "sales".into()).unwrap();
        let (sender, mut events) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let link = tokio::spawn(registration.keep(sender, stop.clone()));
        let Some(LinkEvent::Up { worker_id, outbox }) = events.recv().await else {
            panic!("not registered");
        };
        assert_eq!(worker_id, "AW_1");

        // From here on only time passes.
        tokio::time::pause();
        let before = Instant::now();
        let Some(LinkEvent::Down { why, .. }) = events.recv().await else {
            panic!("still connected");
        };
        assert!(why.contains("silent"), "{why}");
        let waited = before.elapsed();
        assert!(
            waited >= SILENCE_LIMIT - Duration::from_secs(1),
            "{waited:?}"
        );
        assert!(
            waited <= SILENCE_LIMIT + Duration::from_secs(1),
            "{waited:?}"
        );
        assert!(
            outbox.is_closed(),
            "the worker learns that nothing more goes out here"
        );

        stop.cancel();
        // The task may be blocked on sending the event about the refused connection.
        drop(events);
        link.await.unwrap();
    }
}
