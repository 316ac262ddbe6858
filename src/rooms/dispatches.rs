//! The server's API about dispatches: send an agent to a room, see whether a worker took the job,
//! take it back.

use std::time::Duration;

use livekit_api::services::agent_dispatch::AgentDispatchClient;
use livekit_api::services::{ServerError, ServiceError};
use livekit_protocol as proto;

use super::service::RoomService;
use crate::settings::{LiveKitSettings, http_address};

/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// A dispatch that was not made, as far as anybody knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DispatchFailure {
    /// It was not made: the server has refused it, or could not be reached at all.
    Refused(String),
    /// It may have been made: the answer has not come.
    Unknown(String),
}

/// What there is of the dispatches of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dispatched {
    /// No room, or no dispatch of this agent.
    Nothing,
    /// A dispatch that no worker has taken.
    NoJob(String),
    /// A worker has taken it.
    Job,
    /// The server does not say.
    NotKnown,
}

/// A handle to the dispatch API of one server.
#[derive(Debug)]
pub struct DispatchService {
    client: AgentDispatchClient,
    rooms: RoomService,
    host: String,
}

impl DispatchService {
    /// The API of the server in the settings.
    pub fn new(livekit: &LiveKitSettings) -> Self {
        let host = http_address(&livekit.url);
        let (key, secret) = (&livekit.api_key, livekit.api_secret.expose());
        Self {
            client: AgentDispatchClient::with_api_key(&host, key, secret)
                .with_request_timeout(REQUEST_LIMIT),
            rooms: RoomService::new(livekit),
            host,
        }
    }

    /// Sends the agent of a name to a room, which is made. Returns the dispatch's id.
    ///
    /// # Errors
    /// See [`DispatchFailure`].
    pub async fn create(
        &self,
        room: &str,
        agent_name: &str,
        metadata: String,
    ) -> Result<String, DispatchFailure> {
        let request = proto::CreateAgentDispatchRequest {
            agent_name: agent_name.to_owned(),
            room: room.to_owned(),
            metadata,
            ..Default::default()
        };
        match self.client.create_dispatch(request).await {
            Ok(dispatch) => Ok(dispatch.id),
            Err(error) => {
                let why = format!(
                    "the dispatch API of {} (LIVEKIT_URL) answered {error}",
                    self.host
                );
                Err(match is_refusal(&error) {
                    true => DispatchFailure::Refused(why),
                    false => DispatchFailure::Unknown(why),
                })
            }
        }
    }

    /// What there is of the agent's dispatches to a room.
    pub async fn find(&self, room: &str, agent_name: &str) -> Dispatched {
        // Of a room that is not there nobody answers a request about its dispatches.
        match self.rooms.sid(room).await {
            Ok(None) => return Dispatched::Nothing,
            Ok(Some(_)) => {}
            Err(_) => return Dispatched::NotKnown,
        }
        let Ok(listed) = self.client.list_dispatch(room).await else {
            return Dispatched::NotKnown;
        };
        let ours = listed
            .into_iter()
            .find(|dispatch| dispatch.agent_name == agent_name);
        match ours {
            None => Dispatched::Nothing,
            Some(dispatch) if dispatch.state.iter().any(|state| !state.jobs.is_empty()) => {
                Dispatched::Job
            }
            Some(dispatch) => Dispatched::NoJob(dispatch.id),
        }
    }

    /// Takes a dispatch back, and its room with it. A worker that has just taken the job is told to
    /// end it.
    pub async fn take_back(&self, room: &str, dispatch_id: &str) {
        // What is gone already is taken back.
        let _ = self.client.delete_dispatch(dispatch_id, room).await;
        let _ = self.rooms.delete(room).await;
    }
}

/// Whether a request that failed has certainly done nothing.
fn is_refusal(error: &ServiceError) -> bool {
    match error {
        ServiceError::Twirp(ServerError::Twirp(refusal)) => !matches!(
            refusal.code.as_str(),
            "unavailable" | "deadline_exceeded" | "internal" | "unknown" | "canceled"
        ),
        ServiceError::Twirp(ServerError::Request(error)) => error.is_connect(),
        _ => false,
    }
}
