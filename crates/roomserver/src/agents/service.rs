//! `livekit.AgentDispatchService`.

use livekit_protocol as proto;

use super::Agents;
use crate::ids;
use crate::room_service::{check_attributes, check_metadata};
use crate::rooms::RoomOptions;
use crate::token::Claims;
use crate::twirp::{Call, TwirpError};

/// Handles one call; `None` if the service has no such method.
pub(crate) async fn serve(
    agents: &Agents,
    method: &str,
    call: Call,
) -> Option<axum::response::Response> {
    let response = match method {
        "CreateDispatch" => {
            call.serve(async |claims, request| create(agents, claims, request))
                .await
        }
        "ListDispatch" => {
            call.serve(async |claims, request| list(agents, claims, &request))
                .await
        }
        "DeleteDispatch" => {
            call.serve(async |claims, request| delete(agents, claims, &request))
                .await
        }
        _ => return None,
    };
    Some(response)
}

fn create(
    agents: &Agents,
    claims: &Claims,
    request: proto::CreateAgentDispatchRequest,
) -> Result<proto::AgentDispatch, TwirpError> {
    claims.require_room_admin(&request.room)?;
    check_metadata(&request.metadata)?;
    check_attributes(&request.attributes)?;
    let room = agents
        .server()
        .rooms()
        .create(&request.room, RoomOptions::default());
    let dispatch = proto::AgentDispatch {
        id: ids::new_id(ids::DISPATCH),
        agent_name: request.agent_name,
        room: request.room,
        metadata: request.metadata,
        restart_policy: request.restart_policy,
        deployment: request.deployment,
        attributes: request.attributes,
        ..Default::default()
    };
    Ok(agents.add_dispatch(&room, dispatch))
}

fn list(
    agents: &Agents,
    claims: &Claims,
    request: &proto::ListAgentDispatchRequest,
) -> Result<proto::ListAgentDispatchResponse, TwirpError> {
    claims.require_room_admin(&request.room)?;
    let room = find_room(agents, &request.room)?;
    Ok(proto::ListAgentDispatchResponse {
        agent_dispatches: agents.dispatches(&room.sid, &request.dispatch_id),
    })
}

fn delete(
    agents: &Agents,
    claims: &Claims,
    request: &proto::DeleteAgentDispatchRequest,
) -> Result<proto::AgentDispatch, TwirpError> {
    claims.require_room_admin(&request.room)?;
    let room = find_room(agents, &request.room)?;
    agents
        .delete_dispatch(&room, &request.dispatch_id)
        .ok_or_else(|| TwirpError::not_found("dispatch ID not found"))
}

fn find_room(agents: &Agents, name: &str) -> Result<proto::Room, TwirpError> {
    agents
        .server()
        .rooms()
        .get(name)
        .ok_or_else(TwirpError::nobody_answers)
}
