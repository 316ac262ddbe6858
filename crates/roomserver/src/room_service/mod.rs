//! `livekit.RoomService`: rooms and their participants over the API.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use livekit_protocol as proto;

use crate::room::{MAX_ATTRIBUTES_BYTES, MAX_METADATA_BYTES, MAX_NAME_BYTES, attributes_bytes};
use crate::rooms::{ParticipantChange, RoomOptions, Rooms};
use crate::token::Claims;
use crate::twirp::{Call, Code, TwirpError};

/// Handles one call; `None` if the service has no such method.
pub(crate) async fn serve(
    rooms: &Rooms,
    method: &str,
    call: Call,
) -> Option<axum::response::Response> {
    let response = match method {
        "CreateRoom" => {
            call.serve(async |claims, request| create_room(rooms, claims, request))
                .await
        }
        "ListRooms" => {
            call.serve(async |claims, request| list_rooms(rooms, claims, &request))
                .await
        }
        "DeleteRoom" => {
            call.serve(async |claims, request| delete_room(rooms, claims, &request))
                .await
        }
        "ListParticipants" => {
            call.serve(async |claims, request| list_participants(rooms, claims, &request))
                .await
        }
        "GetParticipant" => {
            call.serve(async |claims, request| get_participant(rooms, claims, &request))
                .await
        }
        "RemoveParticipant" => {
            call.serve(async |claims, request| remove_participant(rooms, claims, &request))
                .await
        }
        "MutePublishedTrack" => {
            call.serve(async |claims, request| mute_published_track(rooms, claims, &request))
                .await
        }
        "UpdateParticipant" => {
            call.serve(async |claims, request| update_participant(rooms, claims, request))
                .await
        }
        "UpdateSubscriptions" => {
            call.serve(async |claims, request| update_subscriptions(rooms, claims, request))
                .await
        }
        "SendData" => {
            call.serve(async |claims, request| send_data(rooms, claims, request))
                .await
        }
        "UpdateRoomMetadata" => {
            call.serve(async |claims, request| update_room_metadata(rooms, claims, &request))
                .await
        }
        _ => return None,
    };
    Some(response)
}

fn create_room(
    rooms: &Rooms,
    claims: &Claims,
    request: proto::CreateRoomRequest,
) -> Result<proto::Room, TwirpError> {
    claims.require_room_create()?;
    if request.name.len() > MAX_NAME_BYTES {
        return Err(TwirpError::invalid(format!(
            "room name length exceeds limits: max length {MAX_NAME_BYTES}"
        )));
    }
    check_metadata(&request.metadata)?;
    for agent in &request.agents {
        check_metadata(&agent.metadata)?;
        check_attributes(&agent.attributes)?;
    }
    let options = RoomOptions {
        empty_timeout_s: request.empty_timeout,
        departure_timeout_s: request.departure_timeout,
        max_participants: request.max_participants,
        metadata: request.metadata,
        agents: request.agents,
        egress: request.egress,
    };
    Ok(rooms.create(&request.name, options))
}

fn list_rooms(
    rooms: &Rooms,
    claims: &Claims,
    request: &proto::ListRoomsRequest,
) -> Result<proto::ListRoomsResponse, TwirpError> {
    claims.require_room_list()?;
    Ok(proto::ListRoomsResponse {
        rooms: rooms.list(&request.names),
    })
}

fn delete_room(
    rooms: &Rooms,
    claims: &Claims,
    request: &proto::DeleteRoomRequest,
) -> Result<proto::DeleteRoomResponse, TwirpError> {
    claims.require_room_create()?;
    rooms.delete(&request.room)?;
    Ok(proto::DeleteRoomResponse {})
}

fn list_participants(
    rooms: &Rooms,
    claims: &Claims,
    request: &proto::ListParticipantsRequest,
) -> Result<proto::ListParticipantsResponse, TwirpError> {
    claims.require_room_admin(&request.room)?;
    // The real server reads this list from its store, where a room that does not exist has nobody
    // in it.
    let participants = rooms.participants(&request.room).unwrap_or_default();
    Ok(proto::ListParticipantsResponse { participants })
}

fn get_participant(
    rooms: &Rooms,
    claims: &Claims,
    request: &proto::RoomParticipantIdentity,
) -> Result<proto::ParticipantInfo, TwirpError> {
    claims.require_room_admin(&request.room)?;
    Ok(rooms.participant(&request.room, &request.identity)?)
}

fn remove_participant(
    rooms: &Rooms,
    claims: &Claims,
    request: &proto::RoomParticipantIdentity,
) -> Result<proto::RemoveParticipantResponse, TwirpError> {
    claims.require_room_admin(&request.room)?;
    rooms.remove_participant(&request.room, &request.identity)?;
    Ok(proto::RemoveParticipantResponse {})
}

fn mute_published_track(
    rooms: &Rooms,
    claims: &Claims,
    request: &proto::MuteRoomTrackRequest,
) -> Result<proto::MuteRoomTrackResponse, TwirpError> {
    claims.require_room_admin(&request.room)?;
    let track = rooms
        .mute_track(
            &request.room,
            &request.identity,
            &request.track_sid,
            request.muted,
        )
        .map_err(TwirpError::passed_on)?;
    Ok(proto::MuteRoomTrackResponse { track })
}

fn update_participant(
    rooms: &Rooms,
    claims: &Claims,
    request: proto::UpdateParticipantRequest,
) -> Result<proto::ParticipantInfo, TwirpError> {
    claims.require_room_admin(&request.room)?;
    // Protobuf cannot tell "not given" from "empty" here; the real server takes empty for not
    // given.
    let change = ParticipantChange {
        metadata: Some(request.metadata).filter(|text| !text.is_empty()),
        name: Some(request.name).filter(|text| !text.is_empty()),
        attributes: request.attributes,
        permission: request.permission,
    };
    Ok(rooms.update_participant(&request.room, &request.identity, change)?)
}

fn update_subscriptions(
    rooms: &Rooms,
    claims: &Claims,
    request: proto::UpdateSubscriptionsRequest,
) -> Result<proto::UpdateSubscriptionsResponse, TwirpError> {
    claims.require_room_admin(&request.room)?;
    let mut track_sids = request.track_sids;
    track_sids.extend(
        request
            .participant_tracks
            .into_iter()
            .flat_map(|tracks| tracks.track_sids),
    );
    rooms
        .update_subscriptions(
            &request.room,
            &request.identity,
            &track_sids,
            request.subscribe,
        )
        .map_err(TwirpError::passed_on)?;
    Ok(proto::UpdateSubscriptionsResponse {})
}

fn send_data(
    rooms: &Rooms,
    claims: &Claims,
    request: proto::SendDataRequest,
) -> Result<proto::SendDataResponse, TwirpError> {
    claims.require_room_admin(&request.room)?;
    if !matches!(request.nonce.len(), 0 | 16) {
        let message = format!(
            "nonce should be 16-bytes or not present, got: {} bytes",
            request.nonce.len()
        );
        return Err(TwirpError::new(Code::InvalidArgument, message));
    }
    rooms
        .send_data(&request.room.clone(), server_packet(request))
        .map_err(TwirpError::passed_on)?;
    Ok(proto::SendDataResponse {})
}

/// The packet that the room's participants receive: a user packet without a sender. Old clients
/// read the kind and the destinations inside the user packet, new ones those of the packet itself,
/// so both are set.
#[expect(
    deprecated,
    reason = "clients of older protocols read the deprecated fields"
)]
fn server_packet(request: proto::SendDataRequest) -> proto::DataPacket {
    let user = proto::UserPacket {
        payload: request.data,
        destination_sids: request.destination_sids,
        destination_identities: request.destination_identities.clone(),
        topic: request.topic,
        nonce: request.nonce,
        ..Default::default()
    };
    proto::DataPacket {
        kind: request.kind,
        destination_identities: request.destination_identities,
        value: Some(proto::data_packet::Value::User(user)),
        ..Default::default()
    }
}

fn update_room_metadata(
    rooms: &Rooms,
    claims: &Claims,
    request: &proto::UpdateRoomMetadataRequest,
) -> Result<proto::Room, TwirpError> {
    claims.require_room_admin(&request.room)?;
    check_metadata(&request.metadata)?;
    Ok(rooms.update_metadata(&request.room, &request.metadata)?)
}

pub(crate) fn check_metadata(metadata: &str) -> Result<(), TwirpError> {
    if metadata.len() > MAX_METADATA_BYTES {
        return Err(TwirpError::invalid(format!(
            "metadata size exceeds limits: {MAX_METADATA_BYTES}"
        )));
    }
    Ok(())
}

pub(crate) fn check_attributes(attributes: &HashMap<String, String>) -> Result<(), TwirpError> {
    if attributes_bytes(attributes) > MAX_ATTRIBUTES_BYTES {
        return Err(TwirpError::invalid(format!(
            "attribute size exceeds limits: {MAX_ATTRIBUTES_BYTES}"
        )));
    }
    Ok(())
}
