//! What is asked of a LiveKit server about recordings, and how its answers are understood.

use std::fs;
use std::sync::{Arc, Mutex};

use crate::support::data::{CALLER, DataFolder, at, hangup, session_id};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use livekit_protocol as proto;
use prost::Message as _;
use serde_json::{Value, json};
use voicebot::recording::RecordingConfig;
use voicebot::recording::resolve::{
    EgressDirectory, EgressFile, EgressProgress, EgressQuery, EgressReport, LiveKitEgress,
    RecordingResolver, Resolution,
};
use voicebot::session::{self, CallRecord, RecordingMetadata, RecordingSource, RecordingState};

const SECRET: &str = "a secret of at least thirty-two bytes";

/// A server with one answer. It keeps what it was asked.
#[derive(Clone, Default)]
struct Server {
    egresses: Vec<proto::EgressInfo>,
    asked: Arc<Mutex<Vec<(proto::ListEgressRequest, String)>>>,
}

impl Server {
    async fn start(egresses: Vec<proto::EgressInfo>) -> (Self, String) {
        let server = Self {
            egresses,
            ..Self::default()
        };
        let app = Router::new()
            .route("/twirp/livekit.Egress/ListEgress", post(list_egress))
            .with_state(server.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (server, url)
    }
}

async fn list_egress(
    State(server): State<Server>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, [(&'static str, &'static str); 1], Vec<u8>) {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let request = proto::ListEgressRequest::decode(body).expect("protobuf");
    server.asked.lock().unwrap().push((request, token));
    let answer = proto::ListEgressResponse {
        items: server.egresses.clone(),
        ..Default::default()
    };
    (
        StatusCode::OK,
        [("content-type", "application/protobuf")],
        answer.encode_to_vec(),
    )
}

fn egress(status: proto::EgressStatus) -> proto::EgressInfo {
    proto::EgressInfo {
        egress_id: "EG_1".to_owned(),
        room_id: "RM_1".to_owned(),
        started_at: 1_795_255_200_500_000_000,
        status: status as i32,
        details: "End reason: Source closed".to_owned(),
        file_results: vec![proto::FileInfo {
            filename: "recordings/a.ogg".to_owned(),
            location: "/out/recordings/a.ogg".to_owned(),
            size: 1_234,
            duration: 59_600_000_000,
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[tokio::test]
async fn an_egress_is_asked_for_by_id_or_room_with_the_right_to_record() {
    let (server, url) = Server::start(vec![egress(proto::EgressStatus::EgressComplete)]).await;
    let api = LiveKitEgress::new(&url, "key", SECRET);
    let found = api.find(EgressQuery::Id("EG_1".to_owned())).await.unwrap();
    let file = EgressFile {
        filename: "recordings/a.ogg".to_owned(),
        location: "/out/recordings/a.ogg".to_owned(),
        bucket: None,
        size: Some(1_234),
        duration: Some(60),
    };
    assert_eq!(
        found[0],
        EgressReport {
            egress_id: "EG_1".to_owned(),
            room_id: "RM_1".to_owned(),
            started_at: "2026-11-21T10:00:00.5Z".parse().ok(),
            progress: EgressProgress::Done,
            files: vec![file],
            ..EgressReport::default()
        }
    );
    api.find(EgressQuery::Room("room".to_owned()))
        .await
        .unwrap();
    let asked = server.asked.lock().unwrap();
    assert_eq!(
        (asked[0].0.egress_id.as_str(), asked[1].0.room_name.as_str()),
        ("EG_1", "room")
    );
    let token = asked[0].1.strip_prefix("Bearer ").expect("a token");
    let claims = livekit_api::access_token::TokenVerifier::with_api_key("key", SECRET)
        .verify(token)
        .expect("signed with our key");
    assert!(claims.video.room_record);
}

#[tokio::test]
async fn every_status_of_an_egress_has_its_meaning() {
    use proto::EgressStatus as Status;
    let reason = EgressProgress::Failed("End reason: Source closed".to_owned());
    for (status, expected) in [
        (Status::EgressStarting, EgressProgress::Running),
        (Status::EgressActive, EgressProgress::Running),
        (Status::EgressEnding, EgressProgress::Running),
        (Status::EgressComplete, EgressProgress::Done),
        (Status::EgressLimitReached, EgressProgress::Done),
        (Status::EgressFailed, reason.clone()),
        (Status::EgressAborted, reason),
    ] {
        let (_server, url) = Server::start(vec![egress(status)]).await;
        let found = LiveKitEgress::new(&url, "key", SECRET)
            .find(EgressQuery::Id("EG_1".to_owned()))
            .await
            .unwrap();
        assert_eq!(found[0].progress, expected, "{status:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = LiveKitEgress::new(&url, "key", SECRET)
        .find(EgressQuery::Id("EG_1".to_owned()))
        .await
        .unwrap_err();
    assert!(error.contains(&url), "{error}");
}

/// An egress as protobuf's JSON describes it.
fn described(json: &Value) -> proto::EgressInfo {
    serde_json::from_value(json.clone()).unwrap_or_else(|error| panic!("{json}: {error}"))
}

async fn found(json: &Value) -> EgressReport {
    let (_server, url) = Server::start(vec![described(json)]).await;
    let mut found = LiveKitEgress::new(&url, "key", SECRET)
        .find(EgressQuery::Id("EG_1".to_owned()))
        .await
        .unwrap();
    found.remove(0)
}

#[tokio::test]
async fn every_shape_of_an_egress_description_is_understood() {
    let file = json!({ "filename": "recordings/a.ogg", "location": "/out/a.ogg", "size": "7", "duration": "60000000000" });
    let whole = EgressFile {
        filename: "recordings/a.ogg".to_owned(),
        location: "/out/a.ogg".to_owned(),
        size: Some(7),
        duration: Some(60),
        ..EgressFile::default()
    };
    let in_bucket = EgressFile {
        bucket: Some("calls".to_owned()),
        ..whole.clone()
    };
    let asked_for = EgressFile {
        filename: "recordings/a.ogg".to_owned(),
        ..EgressFile::default()
    };
    let output = json!({ "filepath": "recordings/a.ogg" });
    let s3 = json!({ "filepath": "recordings/a.ogg", "s3": { "bucket": "calls" } });
    let unified = json!({ "room_name": "r", "outputs": [{ "file": output }], "storage": { "s3": { "bucket": "calls" } } });
    for (told, files) in [
        (json!({ "file_results": [file] }), vec![whole.clone()]),
        (json!({ "fileResults": [file] }), vec![whole.clone()]),
        // The field that had the result before there was a list of them.
        (json!({ "file": file }), vec![whole.clone()]),
        (
            json!({ "file": file, "file_results": [file] }),
            vec![whole.clone()],
        ),
        (
            json!({ "file": file, "room_composite": { "file": s3 } }),
            vec![in_bucket.clone()],
        ),
        (
            json!({ "file": file, "roomComposite": { "fileOutputs": [s3] } }),
            vec![in_bucket.clone()],
        ),
        (
            json!({ "file_results": [file], "egress": unified }),
            vec![in_bucket.clone()],
        ),
        (
            json!({ "file_results": [file], "track": { "file": s3 } }),
            vec![in_bucket.clone()],
        ),
        // Nothing but the request tells of a file.
        (
            json!({ "room_composite": { "file_outputs": [output] } }),
            vec![asked_for.clone()],
        ),
        (
            json!({ "room_composite": { "file": output } }),
            vec![asked_for.clone()],
        ),
        (
            json!({ "web": { "file": output } }),
            vec![asked_for.clone()],
        ),
        (
            json!({ "participant": { "file_outputs": [output] } }),
            vec![asked_for.clone()],
        ),
        (
            json!({ "track_composite": { "file": output } }),
            vec![asked_for.clone()],
        ),
        (
            json!({ "room_composite": { "file_outputs": [{ "filepath": "r/{time}.ogg" }] } }),
            vec![],
        ),
        (json!({}), vec![]),
        // Its length, from its times.
        (
            json!({ "file": { "filename": "recordings/a.ogg", "location": "/out/a.ogg", "size": 7, "startedAt": "1", "endedAt": 60000000001_i64 } }),
            vec![whole],
        ),
    ] {
        assert_eq!(found(&told).await.files, files, "{told}");
    }
    let playlist = json!({ "playlist_location": "/out/a.m3u8", "segment_count": 12 });
    for (told, words) in [
        (
            json!({ "segment_results": [playlist] }),
            "a playlist of 12 segments (/out/a.m3u8)",
        ),
        (json!({ "segments": playlist }), "a playlist of 12 segments"),
        (
            json!({ "stream": { "info": [{ "url": "rtmp://x" }] } }),
            "a stream",
        ),
        (
            json!({ "stream_results": [{ "url": "rtmp://x" }] }),
            "a stream",
        ),
        (json!({ "image_results": [{}] }), "images"),
    ] {
        let no_file = found(&told).await.no_file.unwrap_or_default();
        assert!(no_file.contains(words), "{told}: {no_file}");
    }
}

#[tokio::test]
async fn an_egress_whose_last_word_was_lost_has_ended_all_the_same() {
    let failed = |why: &str| EgressProgress::Failed(why.to_owned());
    for (told, expected) in [
        (
            json!({ "status": "EGRESS_ACTIVE", "ended_at": "5" }),
            EgressProgress::Done,
        ),
        (
            json!({ "status": "EGRESS_STARTING", "ended_at": 5, "error": "no room" }),
            failed("no room"),
        ),
        (
            json!({ "status": "EGRESS_ENDING", "ended_at": 5 }),
            EgressProgress::Running,
        ),
        (json!({ "status": 2 }), EgressProgress::Running),
        (
            json!({ "status": "EGRESS_LIMIT_REACHED" }),
            EgressProgress::Done,
        ),
        (
            json!({ "status": "EGRESS_ABORTED" }),
            failed("the server gives no reason"),
        ),
    ] {
        assert_eq!(found(&told).await.progress, expected, "{told}");
    }
    // A status that this program does not know.
    let mut later = described(&json!({}));
    later.status = 77;
    for (ended_at, expected) in [(0, EgressProgress::Running), (5, EgressProgress::Done)] {
        later.ended_at = ended_at;
        let (_server, url) = Server::start(vec![later.clone()]).await;
        let api = LiveKitEgress::new(&url, "key", SECRET);
        let found = api.find(EgressQuery::Id("EG_1".to_owned())).await.unwrap();
        assert_eq!(found[0].progress, expected, "{ended_at}");
    }
}

#[tokio::test]
async fn a_recording_that_only_the_old_result_names_is_found() {
    let case = include_bytes!("../fixtures/cases/egress-with-the-old-result-only/egress.json");
    let case: Value = serde_json::from_slice(case).expect("the case");
    let data = DataFolder::new();
    let id = "session_20261121_100000_aaaaaa";
    let (session, lock) = data.running_call(id, Some(CALLER));
    session::lock(&session).set_recording_metadata(RecordingMetadata {
        egress_id: Some("EG_case1".to_owned()),
        ..RecordingMetadata::begun(RecordingSource::Egress, RecordingState::Active, at(1))
    });
    session::lock(&session).set_outcome(hangup());
    let file = data.store.finish(&session, lock).expect("the record");
    let record = CallRecord::from_json(&fs::read(file).expect("the record"), &session_id(id));
    data.write("recordings/case1.ogg", vec![7; 50_004]);
    let (_server, url) = Server::start(vec![described(&case)]).await;
    let resolver = RecordingResolver::new(
        data.store.clone(),
        RecordingConfig::default(),
        Some(Arc::new(LiveKitEgress::new(&url, "key", SECRET))),
    );
    let resolution = resolver.resolve(&record.expect("a record"), at(61)).await;
    let Resolution::Found(found) = resolution else {
        panic!("{resolution:?}");
    };
    assert_eq!(
        (found.name.as_str(), found.size, found.duration),
        ("recordings/case1.ogg", 50_004, Some(60))
    );
    assert_eq!(found.flaw, None);
}
