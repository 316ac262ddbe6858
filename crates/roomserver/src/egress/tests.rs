//! Recordings, as a client of the API and the files on disk show them.

use std::path::Path;
use std::sync::Arc;

use livekit_protocol as proto;
use proto::participant_info::Kind;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::room::{MediaPacket, Redundancy};
use crate::testkit::*;
use crate::{Options, RoomServer};

async fn start_recording_into(dir: &Path) -> RoomServer {
    let options = Options {
        recordings_dir: Some(dir.to_owned()),
        ..options()
    };
    RoomServer::start(options)
        .await
        .expect("a loopback port is free")
}

fn request(filepath: &str) -> Value {
    json!({
        "room_name": "call-1",
        "audio_only": true,
        "audio_mixing": "DUAL_CHANNEL_AGENT",
        "file_outputs": [{ "file_type": "OGG", "filepath": filepath }],
    })
}

/// Publishes a track and sends ten packets, 200 ms of a tone.
fn speak(server: &RoomServer, guest: &Guest) {
    let room = server.rooms().find("call-1").expect("the room is open");
    let track_sid: Arc<str> = format!("TR_{}", guest.sid).into();
    let mut track = proto::TrackInfo {
        sid: track_sid.to_string(),
        ..Default::default()
    };
    track.set_type(proto::TrackType::Audio);
    room.publish(&guest.sid, track);
    let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, opus::Application::Voip)
        .expect("the codec starts");
    for index in 0..10u16 {
        let tone: Vec<i16> = (0..960u16)
            .map(|i| (f64::from(index * 960 + i) * 0.06).sin() * 9_000.0)
            .map(|value| value as i16)
            .collect();
        room.forward(
            &guest.sid,
            &MediaPacket {
                track_sid: Arc::clone(&track_sid),
                sequence: index.into(),
                timestamp: u32::from(index) * 960,
                marker: false,
                level: None,
                voice: None,
                payload: Some(
                    encoder
                        .encode_vec(&tone, 1_275)
                        .expect("a tone is encoded")
                        .into(),
                ),
                redundancy: Redundancy::None,
            },
        );
    }
}

async fn until_status(server: &RoomServer, egress_id: &str, status: &str) -> Value {
    let wanted = |answer: &Value| {
        answer["items"][0]["status"]
            .as_str()
            .unwrap_or("EGRESS_STARTING")
            == status
    };
    let answer = call_until(
        server,
        "",
        "Egress/ListEgress",
        json!({ "egress_id": egress_id }),
        wanted,
    )
    .await;
    answer["items"][0].clone()
}

async fn begin(server: &RoomServer, filepath: &str) -> String {
    let started = call_ok(
        server,
        "call-1",
        "Egress/StartRoomCompositeEgress",
        request(filepath),
    )
    .await;
    // STARTING is the enum's zero, which JSON leaves out here.
    assert_eq!(started["status"], Value::Null);
    assert_eq!(started["room_name"], "call-1");
    started["egress_id"]
        .as_str()
        .expect("a recording has an id")
        .to_owned()
}

#[tokio::test]
async fn a_call_is_recorded_and_the_manifest_names_the_file() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let server = start_recording_into(dir.path()).await;
    let agent = join(&server, "call-1", "agent-1", Kind::Agent);
    let egress_id = begin(&server, "rec/{room_name}.ogg").await;
    speak(&server, &agent);
    until_status(&server, &egress_id, "EGRESS_ACTIVE").await;
    assert!(
        server
            .rooms()
            .get("call-1")
            .is_some_and(|room| room.active_recording)
    );
    let path = dir.path().join("rec/call-1.ogg");
    assert!(!path.exists(), "nothing lies there before the end");

    let stopped = call_ok(
        &server,
        "",
        "Egress/StopEgress",
        json!({ "egress_id": egress_id }),
    )
    .await;
    assert_eq!(stopped["status"], "EGRESS_ENDING");
    let ended = until_status(&server, &egress_id, "EGRESS_COMPLETE").await;
    assert_eq!(ended["details"], "End reason: StopEgress API");
    assert_eq!(ended["source_type"], "EGRESS_SOURCE_TYPE_SDK");
    let file = &ended["file_results"][0];
    assert_eq!(file["filename"], "rec/call-1.ogg");
    assert_eq!(file["location"], path.display().to_string());
    assert_eq!(
        file["size"],
        path.metadata()
            .expect("the recording is there")
            .len()
            .to_string()
    );
    let duration = oggopus::duration(&path).expect("an ogg file");
    assert_eq!(file["duration"], duration.as_nanos().to_string());
    assert!(duration.as_millis() >= 200, "{duration:?}");

    let manifest_path = dir.path().join(format!("rec/{egress_id}.json"));
    assert_eq!(
        ended["manifest_location"],
        manifest_path.display().to_string()
    );
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(manifest_path).expect("the manifest is there"))
            .expect("JSON");
    let number = |name: &str| {
        ended[name]
            .as_str()
            .and_then(|text| text.parse::<i64>().ok())
    };
    assert_eq!(manifest["egress_id"], egress_id);
    assert_eq!(
        (manifest["room_id"].clone(), manifest["room_name"].clone()),
        (ended["room_id"].clone(), json!("call-1"))
    );
    assert_eq!(manifest["started_at"].as_i64(), number("started_at"));
    assert!(manifest["ended_at"].as_i64() > number("started_at"));
    assert_eq!(
        manifest["files"],
        json!([{ "filename": "rec/call-1.ogg", "location": path.display().to_string() }])
    );

    let pcm = oggopus::Reader::open(&path)
        .expect("an ogg file")
        .read_to_end()
        .expect("opus");
    let loudest = |side: usize| {
        pcm.iter()
            .skip(side)
            .step_by(2)
            .map(|value| value.unsigned_abs())
            .max()
    };
    assert!(
        loudest(0) > Some(5_000) && loudest(1) < Some(500),
        "the agent is on the left alone: {:?} {:?}",
        loudest(0),
        loudest(1)
    );
    let written = std::fs::read_dir(dir.path().join("rec"))
        .expect("the folder is there")
        .count();
    assert_eq!(written, 2, "the recording, the manifest and nothing else");

    let (status, error) = call(
        &server,
        &admin(""),
        "Egress/StopEgress",
        json!({ "egress_id": egress_id }),
    )
    .await;
    assert_eq!(
        (status, error["msg"].as_str()),
        (
            412,
            Some("egress with status EGRESS_COMPLETE cannot be stopped")
        )
    );
    assert!(
        server
            .rooms()
            .get("call-1")
            .is_some_and(|room| !room.active_recording)
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_recording_ends_with_its_room_and_is_complete() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let server = start_recording_into(dir.path()).await;
    let caller = join(&server, "call-1", "caller", Kind::Sip);
    speak(&server, &caller);
    let egress_id = begin(&server, "").await;
    until_status(&server, &egress_id, "EGRESS_ACTIVE").await;
    call_ok(
        &server,
        "",
        "RoomService/DeleteRoom",
        json!({ "room": "call-1" }),
    )
    .await;
    let ended = until_status(&server, &egress_id, "EGRESS_COMPLETE").await;
    assert_eq!(ended["details"], "End reason: Source closed");
    let filename = ended["file_results"][0]["filename"]
        .as_str()
        .expect("a name");
    assert!(
        filename.starts_with("call-1-") && filename.ends_with(".ogg"),
        "{filename}"
    );
    assert!(dir.path().join(filename).exists());
    server.shutdown().await;
}

#[tokio::test]
async fn a_recording_of_a_silent_room_is_aborted_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let server = start_recording_into(dir.path()).await;
    join(&server, "call-1", "caller", Kind::Standard);
    let egress_id = begin(&server, "a.ogg").await;
    call_ok(
        &server,
        "",
        "Egress/StopEgress",
        json!({ "egress_id": egress_id }),
    )
    .await;
    let ended = until_status(&server, &egress_id, "EGRESS_ABORTED").await;
    assert_eq!(
        (ended["error"].as_str(), ended["error_code"].as_i64()),
        (Some("Start signal not received"), Some(412))
    );
    assert_eq!(
        std::fs::read_dir(dir.path())
            .expect("the folder is there")
            .count(),
        0
    );
    server.shutdown().await;
}

#[tokio::test]
async fn shutting_the_server_down_completes_its_recordings() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let server = start_recording_into(dir.path()).await;
    let caller = join(&server, "call-1", "caller", Kind::Standard);
    let egress_id = begin(&server, "a.ogg").await;
    speak(&server, &caller);
    until_status(&server, &egress_id, "EGRESS_ACTIVE").await;
    server.shutdown().await;
    assert!(dir.path().join("a.ogg").exists());
    assert!(dir.path().join(format!("{egress_id}.json")).exists());
}

#[tokio::test]
async fn a_recording_that_cannot_be_written_has_failed_and_says_where() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("in-the-way"), "").expect("a file");
    let server = start_recording_into(dir.path()).await;
    let caller = join(&server, "call-1", "caller", Kind::Standard);
    let egress_id = begin(&server, "in-the-way/a.ogg").await;
    speak(&server, &caller);
    until_status(&server, &egress_id, "EGRESS_ACTIVE").await;
    call_ok(
        &server,
        "",
        "Egress/StopEgress",
        json!({ "egress_id": egress_id }),
    )
    .await;
    let ended = until_status(&server, &egress_id, "EGRESS_FAILED").await;
    assert!(
        ended["error"]
            .as_str()
            .is_some_and(|text| text.contains("in-the-way")),
        "{ended}"
    );
    server.shutdown().await;
}

#[tokio::test]
async fn recordings_end_as_a_test_wants_them_to() {
    use crate::EgressEnding as Ending;
    for (ending, status, files) in [
        (Ending::LimitReached, "EGRESS_LIMIT_REACHED", 2),
        (Ending::Aborted, "EGRESS_ABORTED", 0),
        (Ending::Failed, "EGRESS_FAILED", 0),
        (Ending::BackedUp("backup".into()), "EGRESS_FAILED", 1),
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let ending = match ending {
            Ending::BackedUp(folder) => Ending::BackedUp(dir.path().join(folder)),
            other => other,
        };
        let backed_up = matches!(ending, Ending::BackedUp(_));
        let gate = CancellationToken::new();
        let options = Options {
            recordings_dir: Some(dir.path().to_owned()),
            egress: crate::EgressBehaviour {
                ending,
                held_until: Some(gate.clone()),
                ..Default::default()
            },
            ..options()
        };
        let server = RoomServer::start(options)
            .await
            .expect("a loopback port is free");
        let caller = join(&server, "call-1", "caller", Kind::Standard);
        let egress_id = begin(&server, "a.ogg").await;
        speak(&server, &caller);
        until_status(&server, &egress_id, "EGRESS_ACTIVE").await;
        let stop = json!({ "egress_id": egress_id });
        call_ok(&server, "", "Egress/StopEgress", stop).await;
        until_status(&server, &egress_id, "EGRESS_ENDING").await;
        gate.cancel();
        let ended = until_status(&server, &egress_id, status).await;
        assert_eq!(
            ended["backup_storage_used"] == json!(true),
            backed_up,
            "{ended}"
        );
        let folder = if backed_up {
            dir.path().join("backup")
        } else {
            dir.path().to_owned()
        };
        let count = std::fs::read_dir(&folder).map_or(0, Iterator::count);
        assert_eq!(count, files, "{status}");
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_room_may_ask_for_its_recording_when_it_is_created() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let server = start_recording_into(dir.path()).await;
    let mut wanted = request("auto.ogg");
    wanted["room_name"] = json!("");
    call_ok(
        &server,
        "",
        "RoomService/CreateRoom",
        json!({ "name": "call-1", "egress": { "room": wanted } }),
    )
    .await;
    let listed = call_until(
        &server,
        "",
        "Egress/ListEgress",
        json!({ "room_name": "call-1" }),
        |answer| answer["items"].is_array(),
    )
    .await;
    assert_eq!(listed["items"][0]["room_name"], "call-1");
    server.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_recorded_is_said() {
    let server = start().await;
    join(&server, "call-1", "caller", Kind::Standard);
    let video = json!({ "room_name": "call-1", "file_outputs": [{ "filepath": "a.mp4" }] });
    let elsewhere = json!({ "room_name": "call-2", "audio_only": true, "file_outputs": [{ "filepath": "a.ogg" }] });
    for (method, request, status, code) in [
        ("StartRoomCompositeEgress", video, 501, "unimplemented"),
        ("StartRoomCompositeEgress", elsewhere, 404, "not_found"),
        ("StartTrackEgress", json!({}), 501, "unimplemented"),
        (
            "StopEgress",
            json!({ "egress_id": "EG_1" }),
            404,
            "not_found",
        ),
    ] {
        let (answered, error) =
            call(&server, &admin(""), &format!("Egress/{method}"), request).await;
        assert_eq!(
            (answered, error["code"].as_str()),
            (status, Some(code)),
            "{method}: {error}"
        );
    }
    for method in ["StartRoomCompositeEgress", "StopEgress", "ListEgress"] {
        let (status, _) = call(
            &server,
            &token(Default::default()),
            &format!("Egress/{method}"),
            json!({}),
        )
        .await;
        assert_eq!(status, 401, "{method}");
    }
    server.shutdown().await;
}
