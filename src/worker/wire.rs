//! The worker protocol of LiveKit, version 1: the only file that knows its protobuf types, its
//! address and its token.
//!
//! The rest of the worker speaks [`ToServer`] and [`FromServer`]. Messages and rules are those of
//! `livekit_agent.proto` and of livekit-server's `pkg/service/agentservice.go`.

use std::collections::HashMap;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use livekit_protocol as proto;
use prost::Message as _;
use serde::Serialize;
use url::Url;

/// The implemented version of the worker protocol, which the `/worker` page shows too.
pub(super) const PROTOCOL_VERSION: u32 = 1;

/// Lifetime of a worker token. It is checked only when the socket opens; each connection gets a new
/// one.
const TOKEN_LIFETIME_S: i64 = 3600;

/// Tolerance for different clocks: the token is valid from this much earlier on.
const CLOCK_SKEW_S: i64 = 10;

/// What the worker sends.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ToServer {
    Register {
        agent_name: String,
        /// How often [`ToServer::Ping`] comes, in seconds.
        ping_interval_s: u32,
    },
    Availability(Availability),
    WorkerStatus {
        full: bool,
        load: f32,
        job_count: u32,
    },
    JobStatus(JobStatus),
    MigrateJobs {
        job_ids: Vec<String>,
    },
    Ping {
        timestamp_ms: i64,
    },
}

/// The answer to an offer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Availability {
    pub job_id: String,
    /// How the agent will join; `None` declines the job, so that the server may ask another worker.
    pub accept: Option<AgentParticipant>,
}

/// How the agent joins the room.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AgentParticipant {
    pub identity: String,
    pub name: String,
    pub attributes: HashMap<String, String>,
}

/// The status of a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct JobStatus {
    pub job_id: String,
    pub state: JobState,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum JobState {
    Running,
    Succeeded,
    Failed { error: String },
}

/// What the worker receives.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum FromServer {
    Registered {
        worker_id: String,
        server_version: String,
    },
    /// An availability request for this job.
    Offer(Job),
    /// The job is assigned to this worker.
    Assignment(Assignment),
    /// The job is to end.
    Termination {
        job_id: String,
    },
    Pong,
    /// The server is about to stop; the worker must register elsewhere.
    GoAway,
    /// A message that this version of the protocol does not define.
    Unknown,
}

/// A job as it is offered.
#[derive(Clone, PartialEq)]
pub(crate) struct Job {
    pub job_id: String,
    pub room_name: String,
    pub room_sid: Option<String>,
    pub metadata: Option<String>,
    pub attributes: HashMap<String, String>,
}

/// Shows only ids: names and metadata may carry phone numbers.
impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("job_id", &self.job_id)
            .field("room_sid", &self.room_sid)
            .finish_non_exhaustive()
    }
}

/// A job with the token to join its room.
#[derive(Clone, PartialEq)]
pub(crate) struct Assignment {
    pub job: Job,
    /// Where to join. LiveKit Cloud sets it, a self-hosted server does not.
    pub url: Option<String>,
    pub token: String,
}

impl std::fmt::Debug for Assignment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assignment")
            .field("job", &self.job)
            .finish_non_exhaustive()
    }
}

/// The bytes of one binary WebSocket message.
pub(super) fn encode(message: ToServer) -> Vec<u8> {
    use proto::worker_message::Message;
    let message = match message {
        ToServer::Register {
            agent_name,
            ping_interval_s,
        } => Message::Register(proto::RegisterWorkerRequest {
            r#type: proto::JobType::JtRoom as i32,
            agent_name,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ping_interval: ping_interval_s,
            allowed_permissions: Some(permissions()),
            ..Default::default()
        }),
        ToServer::Availability(answer) => {
            let accept = answer.accept;
            let available = accept.is_some();
            let (identity, name, attributes) = accept
                .map(|agent| (agent.identity, agent.name, agent.attributes))
                .unwrap_or_default();
            Message::Availability(proto::AvailabilityResponse {
                job_id: answer.job_id,
                available,
                participant_identity: identity,
                participant_name: name,
                participant_attributes: attributes,
                ..Default::default()
            })
        }
        ToServer::WorkerStatus {
            full,
            load,
            job_count,
        } => {
            let status = if full {
                proto::WorkerStatus::WsFull
            } else {
                proto::WorkerStatus::WsAvailable
            };
            Message::UpdateWorker(proto::UpdateWorkerStatus {
                status: Some(status as i32),
                load,
                job_count,
                ..Default::default()
            })
        }
        ToServer::JobStatus(JobStatus { job_id, state }) => {
            let (status, error) = match state {
                JobState::Running => (proto::JobStatus::JsRunning, String::new()),
                JobState::Succeeded => (proto::JobStatus::JsSuccess, String::new()),
                JobState::Failed { error } => (proto::JobStatus::JsFailed, error),
            };
            Message::UpdateJob(proto::UpdateJobStatus {
                job_id,
                status: status as i32,
                error,
            })
        }
        ToServer::MigrateJobs { job_ids } => {
            Message::MigrateJob(proto::MigrateJobRequest { job_ids })
        }
        ToServer::Ping { timestamp_ms } => Message::Ping(proto::WorkerPing {
            timestamp: timestamp_ms,
        }),
    };
    proto::WorkerMessage {
        message: Some(message),
    }
    .encode_to_vec()
}

/// What the agent may do in a room; the server puts it into the token of every job.
fn permissions() -> proto::ParticipantPermission {
    #[expect(
        deprecated,
        reason = "servers before participant kinds know an agent by this flag"
    )]
    proto::ParticipantPermission {
        can_publish: true,
        can_subscribe: true,
        can_publish_data: true,
        can_update_metadata: true,
        agent: true,
        ..Default::default()
    }
}

/// Reads one binary WebSocket message.
pub(crate) fn decode(bytes: &[u8]) -> Result<FromServer, prost::DecodeError> {
    use proto::server_message::Message;
    let message = proto::ServerMessage::decode(bytes)?.message;
    Ok(match message {
        Some(Message::Register(response)) => FromServer::Registered {
            worker_id: response.worker_id,
            server_version: response
                .server_info
                .map(|info| info.version)
                .unwrap_or_default(),
        },
        Some(Message::Availability(proto::AvailabilityRequest { job: Some(job), .. })) => {
            FromServer::Offer(read_job(job))
        }
        Some(Message::Assignment(proto::JobAssignment {
            job: Some(job),
            url,
            token,
        })) => FromServer::Assignment(Assignment {
            job: read_job(job),
            url: url.filter(|url| !url.is_empty()),
            token,
        }),
        Some(Message::Termination(termination)) => FromServer::Termination {
            job_id: termination.job_id,
        },
        Some(Message::Pong(_)) => FromServer::Pong,
        Some(Message::GoAway(_)) => FromServer::GoAway,
        Some(Message::Availability(_) | Message::Assignment(_)) | None => FromServer::Unknown,
    })
}

fn read_job(job: proto::Job) -> Job {
    let (room_name, room_sid) = job
        .room
        .map(|room| (room.name, room.sid))
        .unwrap_or_default();
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Job {
        job_id: job.id,
        room_name,
        room_sid: given(room_sid),
        metadata: given(job.metadata),
        attributes: job.attributes,
    }
}

/// Why `LIVEKIT_URL` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "LIVEKIT_URL {url:?} is not the address of a LiveKit server ({problem}); it looks like wss://my-project.livekit.cloud or ws://127.0.0.1:7880"
)]
pub struct BadLiveKitUrl {
    url: String,
    problem: String,
}

/// Where workers connect: `/agent` below the server's address, over WebSocket.
pub(super) fn agent_url(livekit_url: &str) -> Result<Url, BadLiveKitUrl> {
    let mut url = websocket_url(livekit_url)?;
    let path = format!("{}/agent", url.path().trim_end_matches('/'));
    url.set_path(&path);
    url.set_query(Some(&format!("protocol={PROTOCOL_VERSION}")));
    Ok(url)
}

/// The server's address as rooms are joined there.
pub(super) fn websocket_url(livekit_url: &str) -> Result<Url, BadLiveKitUrl> {
    let bad = |problem: String| BadLiveKitUrl {
        // Never show a password in the URL.
        url: Url::parse(livekit_url)
            .ok()
            .filter(|url| url.password().is_some() || !url.username().is_empty())
            .map_or_else(|| livekit_url.to_owned(), |_| "***".to_owned()),
        problem,
    };
    let mut url = Url::parse(livekit_url.trim()).map_err(|error| bad(error.to_string()))?;
    let scheme = match url.scheme() {
        "http" | "ws" => "ws",
        "https" | "wss" => "wss",
        other => return Err(bad(format!("the scheme is {other:?}"))),
    };
    url.set_scheme(scheme)
        .map_err(|()| bad("the scheme cannot be changed".into()))?;
    if !url.has_host() {
        return Err(bad("no host".into()));
    }
    url.set_fragment(None);
    url.set_query(None);
    Ok(url)
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    nbf: i64,
    exp: i64,
    video: Grants,
}

/// `livekit-api` mints no worker tokens: its grants have no `agent`.
#[derive(Serialize)]
struct Grants {
    agent: bool,
}

/// A token that lets a worker register, for a connection that is opened at `now_s` (seconds since
/// 1970).
pub(super) fn worker_token(api_key: &str, api_secret: &str, subject: &str, now_s: i64) -> String {
    let claims = Claims {
        iss: api_key,
        sub: subject,
        nbf: now_s - CLOCK_SKEW_S,
        exp: now_s + TOKEN_LIFETIME_S,
        video: Grants { agent: true },
    };
    let key = EncodingKey::from_secret(api_secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)
        .expect("claims of strings and numbers are JSON, and HS256 takes any key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation};

    #[test]
    fn workers_connect_below_the_address_of_the_server() {
        for (given, expected) in [
            (
                "ws://127.0.0.1:7880",
                "ws://127.0.0.1:7880/agent?protocol=1",
            ),
            ("http://localhost", "ws://localhost/agent?protocol=1"),
            (
                "https://example.livekit.cloud/",
                "wss://example.livekit.cloud/agent?protocol=1",
            ),
            (
                "wss://example.com/livekit/",
                "wss://example.com/livekit/agent?protocol=1",
            ),
            (
                " ws://127.0.0.1:7880 ",
                "ws://127.0.0.1:7880/agent?protocol=1",
            ),
        ] {
            assert_eq!(agent_url(given).unwrap().as_str(), expected, "{given}");
        }
        for bad in ["", "127.0.0.1:7880", "ftp://example.com", "wss://"] {
            let error = agent_url(bad).unwrap_err().to_string();
            assert!(error.contains("LIVEKIT_URL"), "{error}");
        }
        let error = agent_url("ftp://user:hush@example.com")
            .unwrap_err()
            .to_string();
        assert!(!error.contains("hush"), "{error}");
    }

    #[test]
    fn the_token_says_agent_and_is_signed_with_our_secret() {
        let now = jsonwebtoken::get_current_timestamp() as i64;
        let token = worker_token("key", "a-secret-of-some-length", "voicebot", now);
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&["key"]);
        validation.validate_nbf = true;
        let key = DecodingKey::from_secret(b"a-secret-of-some-length");
        let claims = jsonwebtoken::decode::<serde_json::Value>(&token, &key, &validation)
            .unwrap()
            .claims;
        assert_eq!(claims["video"], serde_json::json!({ "agent": true }));
        assert_eq!(claims["sub"], "voicebot");
        assert_eq!(claims["exp"].as_i64(), Some(now + 3600));
    }

    #[test]
    fn a_registration_carries_name_and_permissions() {
        let bytes = encode(ToServer::Register {
            agent_name: "sales".into(),
            ping_interval_s: 10,
        });
        let Some(proto::worker_message::Message::Register(register)) =
            proto::WorkerMessage::decode(&*bytes).unwrap().message
        else {
            panic!("not a registration");
        };
        assert_eq!(register.agent_name, "sales");
        assert_eq!(register.r#type, proto::JobType::JtRoom as i32);
        assert!(!register.version.is_empty());
        let permissions = register.allowed_permissions.unwrap();
        assert!(
            permissions.can_publish && permissions.can_subscribe && permissions.can_publish_data
        );
        assert!(permissions.can_update_metadata && !permissions.hidden);
    }

    #[test]
    fn a_declined_offer_leaves_the_job_to_other_workers() {
        let bytes = encode(ToServer::Availability(Availability {
            job_id: "AJ_1".into(),
            accept: None,
        }));
        let Some(proto::worker_message::Message::Availability(answer)) =
            proto::WorkerMessage::decode(&*bytes).unwrap().message
        else {
            panic!("not an answer");
        };
        assert!(!answer.available && !answer.terminate);
        assert_eq!(answer.job_id, "AJ_1");
    }

    #[test]
    fn a_job_is_read_and_odd_messages_are_no_errors() {
        let job = proto::Job {
            id: "AJ_1".into(),
            room: Some(proto::Room {
                name: "room".into(),
                sid: "RM_1".into(),
                ..Default::default()
            }),
            metadata: "{}".into(),
            ..Default::default()
        };
        let assignment = proto::JobAssignment {
            job: Some(job),
            url: Some(String::new()),
            token: "secret-token".into(),
        };
        let message = proto::ServerMessage {
            message: Some(proto::server_message::Message::Assignment(assignment)),
        };
        let FromServer::Assignment(assignment) = decode(&message.encode_to_vec()).unwrap() else {
            panic!("not an assignment")
        };
        assert_eq!(assignment.url, None, "an empty address is none");
        assert_eq!(assignment.job.room_sid.as_deref(), Some("RM_1"));
        assert!(!format!("{assignment:?}").contains("secret-token"));

        assert_eq!(decode(&[]).unwrap(), FromServer::Unknown);
        let empty =
            proto::server_message::Message::Availability(proto::AvailabilityRequest::default());
        assert_eq!(
            decode(
                &proto::ServerMessage {
                    message: Some(empty)
                }
                .encode_to_vec()
            )
            .unwrap(),
            FromServer::Unknown
        );
        assert!(decode(b"not protobuf").is_err());
    }
}
