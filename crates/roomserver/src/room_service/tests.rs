//! Rooms and participants over the API, and what every API call has in common.

use livekit_protocol as proto;
use prost::Message as _;
use proto::participant_info::Kind;
use serde_json::json;

use crate::room::ToPeer;
use crate::testkit::*;
use crate::token::VideoGrants;

#[tokio::test]
async fn a_room_is_created_listed_and_deleted() {
    let server = start().await;
    let created = call_ok(
        &server,
        "",
        "RoomService/CreateRoom",
        json!({ "name": "call-1", "metadata": "m", "empty_timeout": 7 }),
    )
    .await;
    assert!(
        created["sid"]
            .as_str()
            .is_some_and(|sid| sid.starts_with("RM_"))
    );
    assert_eq!(
        (
            created["metadata"].as_str(),
            created["empty_timeout"].as_u64()
        ),
        (Some("m"), Some(7))
    );
    call_ok(
        &server,
        "",
        "RoomService/CreateRoom",
        json!({ "name": "call-2" }),
    )
    .await;
    let listed = call_ok(
        &server,
        "",
        "RoomService/ListRooms",
        json!({ "names": ["call-2", "call-3"] }),
    )
    .await;
    assert_eq!(listed["rooms"].as_array().map(Vec::len), Some(1));
    let changed = call_ok(
        &server,
        "call-1",
        "RoomService/UpdateRoomMetadata",
        json!({ "room": "call-1", "metadata": "n" }),
    )
    .await;
    assert_eq!(changed["metadata"], "n");
    call_ok(
        &server,
        "",
        "RoomService/DeleteRoom",
        json!({ "room": "call-1" }),
    )
    .await;
    let (status, error) = call(
        &server,
        &admin(""),
        "RoomService/DeleteRoom",
        json!({ "room": "call-1" }),
    )
    .await;
    assert_eq!((status, error["code"].as_str()), (404, Some("not_found")));
    server.shutdown().await;
}

#[tokio::test]
async fn participants_are_listed_changed_and_removed() {
    let server = start().await;
    let mut guest = join(&server, "call-1", "caller", Kind::Sip);
    let listed = call_ok(
        &server,
        "call-1",
        "RoomService/ListParticipants",
        json!({ "room": "call-1" }),
    )
    .await;
    assert_eq!(listed["participants"][0]["kind"], "SIP");
    let change = json!({ "room": "call-1", "identity": "caller", "name": "Ann", "attributes": { "sip.callStatus": "active" } });
    let changed = call_ok(&server, "call-1", "RoomService/UpdateParticipant", change).await;
    assert_eq!(
        (
            changed["name"].as_str(),
            changed["attributes"]["sip.callStatus"].as_str()
        ),
        (Some("Ann"), Some("active"))
    );
    let caller = json!({ "room": "call-1", "identity": "caller" });
    assert_eq!(
        call_ok(
            &server,
            "call-1",
            "RoomService/GetParticipant",
            caller.clone()
        )
        .await["sid"],
        guest.sid
    );

    let packet = json!({ "room": "call-1", "data": "aGVsbG8=", "kind": "RELIABLE", "topic": "chat", "destination_identities": ["caller"] });
    call_ok(&server, "call-1", "RoomService/SendData", packet).await;
    call_ok(
        &server,
        "call-1",
        "RoomService/RemoveParticipant",
        caller.clone(),
    )
    .await;
    let (mut heard, mut reason) = (None, None);
    while let Ok(message) = guest.control.try_recv() {
        match message {
            ToPeer::Data { packet, .. } => {
                heard = proto::DataPacket::decode(packet)
                    .ok()
                    .and_then(|packet| packet.value)
            }
            ToPeer::Close { reason: why } => reason = Some(why),
            _ => {}
        }
    }
    assert_eq!(reason, Some(proto::DisconnectReason::ParticipantRemoved));
    assert!(
        matches!(heard, Some(proto::data_packet::Value::User(user)) if user.payload == b"hello" && user.topic.as_deref() == Some("chat"))
    );
    for method in ["GetParticipant", "RemoveParticipant"] {
        let (status, error) = call(
            &server,
            &admin("call-1"),
            &format!("RoomService/{method}"),
            caller.clone(),
        )
        .await;
        assert_eq!(
            (status, error["code"].as_str()),
            (404, Some("not_found")),
            "{method}"
        );
    }
    server.shutdown().await;
}

#[tokio::test]
async fn every_method_needs_its_grant() {
    let server = start().await;
    join(&server, "call-1", "caller", Kind::Standard);
    let powerless = token(VideoGrants {
        room_join: true,
        room: "call-1".into(),
        ..Default::default()
    });
    let elsewhere = token(VideoGrants {
        room_admin: true,
        room: "call-2".into(),
        ..Default::default()
    });
    let of_room = json!({ "room": "call-1", "identity": "caller", "names": [], "name": "call-1" });
    let methods = [
        "RoomService/CreateRoom",
        "RoomService/ListRooms",
        "RoomService/DeleteRoom",
        "RoomService/ListParticipants",
        "RoomService/GetParticipant",
        "RoomService/RemoveParticipant",
        "RoomService/MutePublishedTrack",
        "RoomService/UpdateParticipant",
        "RoomService/UpdateSubscriptions",
        "RoomService/SendData",
        "RoomService/UpdateRoomMetadata",
        "AgentDispatchService/CreateDispatch",
        "AgentDispatchService/ListDispatch",
        "AgentDispatchService/DeleteDispatch",
    ];
    for method in methods {
        for token in ["", "rubbish", &powerless, &elsewhere] {
            let (status, error) = call(&server, token, method, of_room.clone()).await;
            assert_eq!(
                (status, error["code"].as_str()),
                (401, Some("unauthenticated")),
                "{method} with {token:?}: {error}"
            );
        }
    }
    assert!(server.rooms().participant("call-1", "caller").is_ok());
    server.shutdown().await;
}

#[tokio::test]
async fn requests_may_be_protobuf_and_bad_ones_are_refused_in_json() {
    let server = start().await;
    let base = format!("http://{}/twirp", server.address());
    let client = reqwest::Client::new();
    let post = |path: &str, content_type: &str, body: Vec<u8>| {
        client
            .post(format!("{base}/{path}"))
            .bearer_auth(admin(""))
            .header("Content-Type", content_type)
            .body(body)
            .send()
    };
    let request = proto::CreateRoomRequest {
        name: "call-1".into(),
        ..Default::default()
    };
    let response = post(
        "livekit.RoomService/CreateRoom",
        "application/protobuf",
        request.encode_to_vec(),
    )
    .await
    .expect("an answer");
    assert_eq!(response.headers()["content-type"], "application/protobuf");
    let room = proto::Room::decode(response.bytes().await.expect("a body")).expect("a room");
    assert_eq!(room.name, "call-1");

    for (path, content_type, body, status, code) in [
        (
            "livekit.RoomService/CreateRoom",
            "application/protobuf",
            b"\xff\xff\xff".to_vec(),
            400,
            "malformed",
        ),
        (
            "livekit.RoomService/CreateRoom",
            "application/json",
            b"{".to_vec(),
            400,
            "malformed",
        ),
        (
            "livekit.RoomService/CreateRoom",
            "text/plain",
            b"{}".to_vec(),
            404,
            "bad_route",
        ),
        (
            "livekit.RoomService/CreateCastle",
            "application/json",
            b"{}".to_vec(),
            404,
            "bad_route",
        ),
        (
            "livekit.RoomService/MoveParticipant",
            "application/json",
            b"{}".to_vec(),
            501,
            "unimplemented",
        ),
        (
            "castle.Castles/Create",
            "application/json",
            b"{}".to_vec(),
            404,
            "bad_route",
        ),
    ] {
        let response = post(path, content_type, body).await.expect("an answer");
        assert_eq!(response.status().as_u16(), status, "{path}");
        let error: serde_json::Value = response.json().await.expect("errors are JSON");
        assert_eq!(error["code"], code, "{path}");
        assert!(error["msg"].as_str().is_some_and(|text| !text.is_empty()));
    }
    let response = client
        .get(format!("{base}/livekit.RoomService/ListRooms"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(response.status(), 404);
    server.shutdown().await;
}
