//! Webhooks: tells other servers by HTTP what happens in rooms and to recordings.
//!
//! Delivery is as limited as the real server's: per address a queue of [`QUEUE_DEPTH`] events, a
//! few attempts, and nothing is sent that is older than [`MAX_AGE`].

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use livekit_protocol as proto;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;

use crate::ids;
use crate::rooms::RoomEvent;
use crate::server::Server;
use crate::token::{Keys, unix_now_s};

/// Events that wait for one address; when the queue is full, new events are dropped.
const QUEUE_DEPTH: usize = 200;
/// An event that could not be delivered in this time is given up.
const MAX_AGE: Duration = Duration::from_secs(30);
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a failed attempt; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How long the signature is valid.
const SIGNATURE_LIFETIME_S: u64 = 300;

/// Queues events for delivery. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Webhooks {
    shared: Arc<Shared>,
}

struct Shared {
    server: Server,
    /// Made when the first address needs it: it reads the machine's certificates, which takes long.
    client: OnceLock<reqwest::Client>,
    /// The addresses that get every event.
    queues: Vec<Address>,
}

struct Address {
    url: String,
    queue: mpsc::Sender<Queued>,
}

#[derive(Clone)]
struct Queued {
    body: Arc<[u8]>,
    handed_in: Instant,
}

/// The JWT's claims.
#[derive(Serialize)]
struct Signature<'a> {
    iss: &'a str,
    nbf: u64,
    exp: u64,
    /// Base64 of the SHA-256 of the body.
    sha256: String,
}

impl Webhooks {
    /// Starts one task for each of the server's webhook addresses.
    pub fn new(server: Server) -> Self {
        let client = OnceLock::<reqwest::Client>::new();
        let queues = server
            .options()
            .webhook_urls
            .iter()
            .map(|url| {
                let (queue, inbox) = mpsc::channel(QUEUE_DEPTH);
                let delivering = deliver(
                    client.get_or_init(reqwest::Client::new).clone(),
                    server.keys().clone(),
                    url.clone(),
                    inbox,
                );
                let stop = server.stop().clone();
                server
                    .tasks()
                    .spawn(stop.run_until_cancelled_owned(delivering));
                Address {
                    url: url.clone(),
                    queue,
                }
            })
            .collect();
        Self {
            shared: Arc::new(Shared {
                server,
                client,
                queues,
            }),
        }
    }

    /// Turns the rooms' events into webhooks until the server stops.
    pub async fn follow(self, mut events: broadcast::Receiver<RoomEvent>) {
        if self.shared.queues.is_empty() {
            return;
        }
        let stop = self.shared.server.stop().clone();
        let mut active = HashSet::new();
        while let Some(event) = stop.run_until_cancelled(events.recv()).await {
            match event {
                Ok(event) => {
                    if let Some(event) = self.room_event(event, &mut active) {
                        self.send(event);
                    }
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!("{missed} room events got no webhook")
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// The webhook for an event, if it has one. `active` holds the participants that were reported
    /// as joined.
    fn room_event(
        &self,
        event: RoomEvent,
        active: &mut HashSet<String>,
    ) -> Option<proto::WebhookEvent> {
        let webhook = |name: &str| proto::WebhookEvent {
            event: name.to_owned(),
            ..Default::default()
        };
        let in_room = |name: &str, room: &str| {
            // When the room is being closed, only its name is left to report.
            let room = self
                .shared
                .server
                .rooms()
                .get(room)
                .unwrap_or_else(|| proto::Room {
                    name: room.to_owned(),
                    ..Default::default()
                });
            proto::WebhookEvent {
                room: Some(room),
                ..webhook(name)
            }
        };
        let event = match event {
            RoomEvent::Started { room, .. } => proto::WebhookEvent {
                room: Some(*room),
                ..webhook("room_started")
            },
            RoomEvent::Finished { room } => proto::WebhookEvent {
                room: Some(*room),
                ..webhook("room_finished")
            },
            RoomEvent::ParticipantActive { room, participant } => {
                active.insert(participant.sid.clone());
                proto::WebhookEvent {
                    participant: Some(*participant),
                    ..in_room("participant_joined", &room)
                }
            }
            RoomEvent::ParticipantLeft { room, participant } => {
                let name = if active.remove(&participant.sid) {
                    "participant_left"
                } else {
                    "participant_connection_aborted"
                };
                proto::WebhookEvent {
                    participant: Some(*participant),
                    ..in_room(name, &room)
                }
            }
            RoomEvent::TrackPublished {
                room,
                participant,
                track,
            } => proto::WebhookEvent {
                participant: Some(*participant),
                track: Some(*track),
                ..in_room("track_published", &room)
            },
            RoomEvent::TrackUnpublished {
                room,
                participant,
                track,
            } => proto::WebhookEvent {
                participant: Some(*participant),
                track: Some(*track),
                ..in_room("track_unpublished", &room)
            },
            RoomEvent::ParticipantJoined { .. } | RoomEvent::ParticipantChanged { .. } => {
                return None;
            }
        };
        Some(event)
    }

    /// Reports a recording: to every address of the options, and to those that its request names.
    pub fn egress(&self, name: &str, info: &proto::EgressInfo) {
        let event = proto::WebhookEvent {
            event: name.to_owned(),
            egress_info: Some(info.clone()),
            ..Default::default()
        };
        let queued = self.send(event);
        let Some(proto::egress_info::Request::RoomComposite(request)) = &info.request else {
            return;
        };
        let (Some(queued), false) = (queued, request.webhooks.is_empty()) else {
            return;
        };
        for webhook in request.webhooks.iter().filter(|webhook| {
            !self
                .shared
                .queues
                .iter()
                .any(|known| known.url == webhook.url)
        }) {
            let (queue, inbox) = mpsc::channel(1);
            // The channel was made for this one event, so it fits.
            let _ = queue.try_send(queued.clone());
            let server = &self.shared.server;
            let delivering = deliver(
                self.shared.client.get_or_init(reqwest::Client::new).clone(),
                server.keys().clone(),
                webhook.url.clone(),
                inbox,
            );
            server
                .tasks()
                .spawn(server.stop().clone().run_until_cancelled_owned(delivering));
        }
    }

    fn send(&self, mut event: proto::WebhookEvent) -> Option<Queued> {
        event.id = ids::new_id(ids::EVENT);
        event.created_at = i64::try_from(unix_now_s()).unwrap_or_default();
        let body = match serde_json::to_vec(&event) {
            Ok(body) => body.into(),
            Err(error) => {
                tracing::error!("the webhook {} cannot be encoded: {error}", event.event);
                return None;
            }
        };
        let queued = Queued {
            body,
            handed_in: Instant::now(),
        };
        for address in &self.shared.queues {
            if address.queue.try_send(queued.clone()).is_err() {
                tracing::warn!(
                    "the webhook {} for {} is lost: too many wait",
                    event.event,
                    address.url
                );
            }
        }
        Some(queued)
    }
}

/// Sends the events of one queue to its address, in order.
async fn deliver(
    client: reqwest::Client,
    keys: Keys,
    url: String,
    mut inbox: mpsc::Receiver<Queued>,
) {
    while let Some(queued) = inbox.recv().await {
        let give_up_at = queued.handed_in + MAX_AGE;
        let mut pause = FIRST_PAUSE;
        while let Err(why) = attempt(&client, &keys, &url, &queued.body).await {
            if Instant::now() + pause >= give_up_at {
                tracing::warn!("a webhook to {url} is given up: {why}");
                break;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

async fn attempt(
    client: &reqwest::Client,
    keys: &Keys,
    url: &str,
    body: &Arc<[u8]>,
) -> Result<(), String> {
    let token = sign(keys, body)?;
    let response = client
        .post(url)
        .timeout(ATTEMPT_TIMEOUT)
        .header("Content-Type", "application/webhook+json")
        .header("Authorization", token)
        .body(body.to_vec())
        .send()
        .await
        .map_err(|error| error.to_string())?;
    if response.status().is_success() {
        return Ok(());
    }
    Err(format!("it answered {}", response.status()))
}

pub(crate) fn sign(keys: &Keys, body: &[u8]) -> Result<String, String> {
    let (key, secret) = keys.first().ok_or("the server has no API key")?;
    let now = unix_now_s();
    let claims = Signature {
        iss: key,
        nbf: now,
        exp: now + SIGNATURE_LIFETIME_S,
        sha256: BASE64_STANDARD.encode(Sha256::digest(body)),
    };
    jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &claims,
        &EncodingKey::from_secret(secret.as_bytes()),
    )
    .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::State;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::post;
    use bytes::Bytes;
    use jsonwebtoken::{DecodingKey, Validation};
    use proto::participant_info::Kind;
    use serde_json::{Value, json};

    use super::*;
    use crate::testkit::*;
    use crate::{Options, RoomServer};

    /// A server that takes webhooks, refusing the first one, and returns what it gets.
    async fn sink() -> (String, mpsc::UnboundedReceiver<Value>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let refused = Arc::new(parking_lot::Mutex::new(false));
        let take = async move |State(sender): State<mpsc::UnboundedSender<Value>>,
                               headers: HeaderMap,
                               body: Bytes| {
            assert_eq!(headers["content-type"], "application/webhook+json");
            let token = headers["authorization"].to_str().expect("a token");
            let mut rules = Validation::new(Algorithm::HS256);
            rules.validate_aud = false;
            let claims = jsonwebtoken::decode::<Value>(
                token,
                &DecodingKey::from_secret(SECRET.as_bytes()),
                &rules,
            )
            .expect("the server signed it")
            .claims;
            assert_eq!(
                claims["sha256"],
                BASE64_STANDARD.encode(Sha256::digest(&body))
            );
            if !std::mem::replace(&mut *refused.lock(), true) {
                return StatusCode::SERVICE_UNAVAILABLE;
            }
            let _ = sender.send(serde_json::from_slice(&body).expect("JSON"));
            StatusCode::OK
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        let router = Router::new().route("/hook", post(take)).with_state(sender);
        tokio::spawn(async move { axum::serve(listener, router).await });
        (url, receiver)
    }

    #[tokio::test]
    async fn what_happens_is_told_in_order_and_signed() {
        let (url, mut received) = sink().await;
        let options = Options {
            webhook_urls: vec![url],
            ..options()
        };
        let server = RoomServer::start(options)
            .await
            .expect("a loopback port is free");
        join(&server, "call-1", "caller", Kind::Sip);
        let request = json!({ "room_name": "call-1", "audio_only": true, "file_outputs": [{ "filepath": "never.ogg" }] });
        let egress = call_ok(&server, "", "Egress/StartRoomCompositeEgress", request).await;
        server
            .rooms()
            .remove_participant("call-1", "caller")
            .expect("the caller is there");
        call_ok(
            &server,
            "",
            "Egress/StopEgress",
            json!({ "egress_id": egress["egress_id"] }),
        )
        .await;
        let mut names = Vec::new();
        while !names.contains(&"egress_ended".to_owned())
            || !names.contains(&"participant_left".to_owned())
        {
            let event = tokio::time::timeout(PATIENCE, received.recv())
                .await
                .expect("webhooks in time")
                .expect("the sink runs");
            assert!(
                event["id"].as_str().is_some_and(|id| id.starts_with("EV_")),
                "{event}"
            );
            if event["event"] == "participant_left" {
                assert_eq!(event["participant"]["identity"], "caller");
                assert_eq!(event["room"]["name"], "call-1");
            }
            if event["event"] == "egress_ended" {
                assert_eq!(event["egressInfo"]["status"], "EGRESS_ABORTED");
            }
            names.push(event["event"].as_str().expect("a name").to_owned());
        }
        let position = |name: &str| names.iter().position(|known| known == name);
        assert_eq!(
            position("room_started"),
            Some(0),
            "also the one that had to be sent twice: {names:?}"
        );
        assert!(
            position("participant_joined") < position("participant_left"),
            "{names:?}"
        );
        assert!(
            position("egress_started") < position("egress_ended"),
            "{names:?}"
        );
        server.shutdown().await;
    }
}
