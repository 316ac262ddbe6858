//! The server's API about rooms, as far as calls and the worker need it: who is in a room, whether
//! a telephone call made it, send somebody away, send an agent there, delete it.

use std::collections::HashMap;
use std::time::Duration;

use livekit_api::services::agent_dispatch::AgentDispatchClient;
use livekit_api::services::room::RoomClient;
use livekit_api::services::sip::{ListSIPDispatchRuleFilter, SIPClient};
use livekit_api::services::{ServerError, ServiceError};
use livekit_protocol as proto;

use super::party::{Party, Role};
use crate::settings::{LiveKitSettings, http_address};

/// How long one request may take. A caller waits at the other end of each.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);

/// Why the room API could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RoomServiceError {
    /// The room, or the participant, does not exist.
    #[error("it is not there any more")]
    NotFound,
    /// The server refused, or could not be reached.
    #[error("the room API of {host} (LIVEKIT_URL) failed: {why}")]
    Failed {
        /// The server's address.
        host: String,
        /// What happened.
        why: String,
    },
}

/// What an agent is told when it is sent to a room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dispatch {
    /// Any text.
    pub metadata: String,
    /// Any names and values.
    pub attributes: HashMap<String, String>,
}

/// A handle to the room API of one server.
#[derive(Debug)]
pub struct RoomService {
    client: RoomClient,
    telephones: SIPClient,
    dispatches: AgentDispatchClient,
    host: String,
}

impl RoomService {
    /// The API of the server in the settings.
    pub fn new(livekit: &LiveKitSettings) -> Self {
        let host = http_address(&livekit.url);
        let (key, secret) = (&livekit.api_key, livekit.api_secret.expose());
        Self {
            client: RoomClient::with_api_key(&host, key, secret)
                .with_request_timeout(REQUEST_LIMIT),
            telephones: SIPClient::with_api_key(&host, key, secret)
                .with_request_timeout(REQUEST_LIMIT),
            dispatches: AgentDispatchClient::with_api_key(&host, key, secret)
                .with_request_timeout(REQUEST_LIMIT),
            host,
        }
    }

    /// Everybody in the room.
    ///
    /// # Errors
    /// See [`RoomServiceError`]. A room that does not exist has nobody in it on some servers and is
    /// not found on others.
    pub async fn parties(&self, room: &str) -> Result<Vec<Party>, RoomServiceError> {
        let listed = self.client.list_participants(room).await;
        let everybody = listed.map_err(|error| self.failed(&error))?;
        Ok(everybody
            .into_iter()
            .filter(|participant| {
                participant.state() != proto::participant_info::State::Disconnected
            })
            .map(read)
            .collect())
    }

    /// Whether somebody who is listed is really there: a server that was restarted goes on listing
    /// whoever was there before (livekit-server `pkg/service/redisstore.go`). Only the node that
    /// holds the participant answers a request about their subscriptions, and one that names no
    /// tracks changes nothing (`roommanager.go`, `UpdateSubscriptions`).
    pub async fn is_here(&self, room: &str, identity: &str) -> bool {
        let asked = self
            .client
            .update_subscriptions(room, identity, Vec::new(), true);
        asked.await.is_ok()
    }

    /// The prefixes of rooms that the SIP service makes for one call each (dispatch rules for
    /// individual rooms, and for callees with a random part).
    ///
    /// # Errors
    /// See [`RoomServiceError`]; a server without a SIP service refuses.
    pub async fn call_room_prefixes(&self) -> Result<Vec<String>, RoomServiceError> {
        use proto::sip_dispatch_rule::Rule;
        let listed = self
            .telephones
            .list_sip_dispatch_rule(ListSIPDispatchRuleFilter::All)
            .await;
        let rules = listed.map_err(|error| self.failed(&error))?;
        let prefixes = rules.into_iter().filter_map(|info| match info.rule?.rule? {
            Rule::DispatchRuleIndividual(rule) if !rule.no_randomness => Some(rule.room_prefix),
            Rule::DispatchRuleCallee(rule) if rule.randomize => Some(rule.room_prefix),
            _ => None,
        });
        Ok(prefixes.collect())
    }

    /// The server's id of the room, if it exists.
    ///
    /// # Errors
    /// See [`RoomServiceError`].
    pub async fn sid(&self, room: &str) -> Result<Option<String>, RoomServiceError> {
        let listed = self.client.list_rooms(vec![room.to_owned()]).await;
        let rooms = listed.map_err(|error| self.failed(&error))?;
        Ok(rooms.into_iter().next().map(|room| room.sid))
    }

    /// Sends everybody away and closes the room, which hangs up telephones.
    ///
    /// # Errors
    /// See [`RoomServiceError`].
    pub async fn delete(&self, room: &str) -> Result<(), RoomServiceError> {
        let deleted = self.client.delete_room(room).await;
        deleted.map_err(|error| self.failed(&error))
    }

    /// Sends one participant away.
    ///
    /// # Errors
    /// See [`RoomServiceError`].
    pub async fn remove(&self, room: &str, identity: &str) -> Result<(), RoomServiceError> {
        let removed = self.client.remove_participant(room, identity).await;
        removed.map_err(|error| self.failed(&error))
    }

    /// Sends an agent of this name to the room.
    ///
    /// # Errors
    /// See [`RoomServiceError`].
    pub async fn dispatch(
        &self,
        room: &str,
        agent_name: &str,
        dispatch: &Dispatch,
    ) -> Result<(), RoomServiceError> {
        let request = proto::CreateAgentDispatchRequest {
            agent_name: agent_name.to_owned(),
            room: room.to_owned(),
            metadata: dispatch.metadata.clone(),
            attributes: dispatch.attributes.clone(),
            ..Default::default()
        };
        let made = self.dispatches.create_dispatch(request).await;
        made.map(drop).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &ServiceError) -> RoomServiceError {
        match error {
            ServiceError::Twirp(ServerError::Twirp(refusal)) if refusal.code == "not_found" => {
                RoomServiceError::NotFound
            }
            error => RoomServiceError::Failed {
                host: self.host.clone(),
                why: error.to_string(),
            },
        }
    }
}

fn read(participant: proto::ParticipantInfo) -> Party {
    use proto::participant_info::Kind;
    let machine = participant.permission.as_ref().is_some_and(is_machine);
    Party {
        role: match participant.kind() {
            Kind::Agent => Role::Agent,
            Kind::Egress | Kind::Ingress => Role::Machine,
            _ if machine => Role::Machine,
            Kind::Sip | Kind::Connector => Role::Telephone,
            Kind::Standard | Kind::Bridge => Role::Person,
        },
        microphone: participant.tracks.iter().any(|track| {
            track.r#type() == proto::TrackType::Audio
                && track.source() != proto::TrackSource::ScreenShareAudio
                && !track.muted
        }),
        joined_at_ms: participant.joined_at_ms,
        identity: participant.identity,
        attributes: participant.attributes,
    }
}

/// Whether somebody with these permissions is nobody's caller: hidden, or a recorder.
pub(crate) fn is_machine(permission: &proto::ParticipantPermission) -> bool {
    #[expect(
        deprecated,
        reason = "servers before participant kinds know a recorder by this flag"
    )]
    let recorder = permission.recorder;
    permission.hidden || recorder
}
