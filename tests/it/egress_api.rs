//! What is asked of a LiveKit server about recordings, and how its answers are understood.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use livekit_protocol as proto;
use prost::Message as _;
use voicebot::recording::resolve::{
    EgressDirectory, EgressFile, EgressProgress, EgressQuery, EgressReport, LiveKitEgress,
};

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
            backup_storage_used: false,
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
