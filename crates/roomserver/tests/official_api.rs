//! Interop tests of the server's API with the official Rust client, `livekit-api`.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use livekit_api::access_token::TokenVerifier;
use livekit_api::services::agent_dispatch::AgentDispatchClient;
use livekit_api::services::egress::{
    AudioMixing, EgressClient, EgressListFilter, EgressListOptions, EgressOutput,
    RoomCompositeOptions,
};
use livekit_api::services::room::{CreateRoomOptions, RoomClient, UpdateParticipantOptions};
use livekit_api::services::sip::{CreateSIPParticipantOptions, SIPClient};
use livekit_api::services::{ServerError, ServiceError};
use livekit_api::webhooks::WebhookReceiver;
use livekit_protocol as proto;
use roomserver::{Options, RoomServer};
use tokio::sync::mpsc;

const KEY: &str = "testkey";
const SECRET: &str = "a secret that is long enough for tests";
const PATIENCE: Duration = Duration::from_secs(30);

async fn start(options: Options) -> (RoomServer, String) {
    let options = Options {
        keys: vec![(KEY.into(), SECRET.into())],
        ..options
    };
    let server = RoomServer::start(options)
        .await
        .expect("a loopback port is free");
    let url = server.url();
    (server, url)
}

/// The code of an error that the server gave.
fn server_error(error: ServiceError) -> (String, Option<String>) {
    match error {
        ServiceError::Twirp(ServerError::Twirp(error)) => {
            (error.code, error.meta.get("sip_status_code").cloned())
        }
        other => panic!("expected the server's answer, got {other}"),
    }
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("it happens in time")
}

#[tokio::test]
async fn rooms_and_dispatches() {
    let (server, url) = start(Options::default()).await;
    let rooms = RoomClient::with_api_key(&url, KEY, SECRET);
    let options = CreateRoomOptions {
        metadata: "m".into(),
        empty_timeout: 7,
        ..Default::default()
    };
    let created = rooms
        .create_room("call-1", options)
        .await
        .expect("the room is created");
    assert_eq!(
        (
            created.name.as_str(),
            created.metadata.as_str(),
            created.empty_timeout
        ),
        ("call-1", "m", 7)
    );
    assert_eq!(
        rooms
            .list_rooms(vec!["call-1".into()])
            .await
            .expect("rooms are listed"),
        [created]
    );
    let changed = rooms
        .update_room_metadata("call-1", "n")
        .await
        .expect("the metadata is changed");
    assert_eq!(changed.metadata, "n");

    let dispatches = AgentDispatchClient::with_api_key(&url, KEY, SECRET);
    let request = proto::CreateAgentDispatchRequest {
        agent_name: "sales".into(),
        room: "call-1".into(),
        metadata: "{}".into(),
        attributes: [("lead".to_owned(), "7".to_owned())].into(),
        ..Default::default()
    };
    let made = dispatches
        .create_dispatch(request)
        .await
        .expect("the dispatch is made");
    assert_eq!(
        (made.agent_name.as_str(), made.attributes["lead"].as_str()),
        ("sales", "7")
    );
    let found = dispatches
        .get_dispatch(made.id.clone(), "call-1")
        .await
        .expect("dispatches are listed");
    assert_eq!(found, Some(made.clone()));
    dispatches
        .delete_dispatch(made.id.clone(), "call-1")
        .await
        .expect("the dispatch is deleted");
    assert_eq!(
        dispatches
            .get_dispatch(made.id, "call-1")
            .await
            .expect("dispatches are listed"),
        None
    );

    rooms
        .delete_room("call-1")
        .await
        .expect("the room is deleted");
    let error = rooms.delete_room("call-1").await.expect_err("it is gone");
    assert_eq!(server_error(error).0, "not_found");
    let stranger = RoomClient::with_api_key(&url, KEY, "another secret, as long as the first");
    let error = stranger
        .list_rooms(Vec::new())
        .await
        .expect_err("the signature is wrong");
    assert_eq!(server_error(error).0, "unauthenticated");
    server.shutdown().await;
}

#[tokio::test]
async fn a_call_is_placed_recorded_and_hung_up() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (server, url) = start(Options {
        recordings_dir: Some(dir.path().to_owned()),
        ..Options::default()
    })
    .await;
    let sip = SIPClient::with_api_key(&url, KEY, SECRET);
    let options = || CreateSIPParticipantOptions {
        participant_identity: "callee".into(),
        sip_number: Some("+15550100".into()),
        wait_until_answered: Some(true),
        ..Default::default()
    };
    let busy = sip
        .create_sip_participant(
            "ST_1".into(),
            "+15550000486".into(),
            "call-1".into(),
            options(),
            None,
        )
        .await;
    assert_eq!(
        server_error(busy.expect_err("the line is busy")),
        ("resource_exhausted".into(), Some("486".into()))
    );
    let placed = sip
        .create_sip_participant(
            "ST_1".into(),
            "+15550999".into(),
            "call-1".into(),
            options(),
            None,
        )
        .await;
    assert_eq!(
        placed.expect("the call is answered").participant_identity,
        "callee"
    );

    let rooms = RoomClient::with_api_key(&url, KEY, SECRET);
    let callee = rooms
        .get_participant("call-1", "callee")
        .await
        .expect("the callee is there");
    assert_eq!(
        (callee.kind(), callee.attributes["sip.callStatus"].as_str()),
        (proto::participant_info::Kind::Sip, "active")
    );
    let change = UpdateParticipantOptions {
        name: "Ann".into(),
        ..Default::default()
    };
    assert_eq!(
        rooms
            .update_participant("call-1", "callee", change)
            .await
            .expect("the name is changed")
            .name,
        "Ann"
    );

    let egress = EgressClient::with_api_key(&url, KEY, SECRET);
    let output = proto::EncodedFileOutput {
        file_type: proto::EncodedFileType::Ogg.into(),
        filepath: "{room_name}.ogg".into(),
        ..Default::default()
    };
    let options = RoomCompositeOptions {
        audio_only: true,
        audio_mixing: AudioMixing::DualChannelAgent,
        ..Default::default()
    };
    let started = egress
        .start_room_composite_egress("call-1", vec![EgressOutput::File(output)], options)
        .await;
    let egress_id = started.expect("the recording starts").egress_id;
    let reach = async |wanted: proto::EgressStatus| {
        loop {
            let filter = EgressListFilter::Egress(egress_id.clone());
            let listed = egress
                .list_egress(EgressListOptions {
                    filter,
                    active: false,
                    page_token: None,
                })
                .await;
            let info = listed.expect("recordings are listed").remove(0);
            if info.status() == wanted {
                return info;
            }
        }
    };
    in_time(reach(proto::EgressStatus::EgressActive)).await;
    egress
        .stop_egress(&egress_id)
        .await
        .expect("the recording is stopped");
    let ended = in_time(reach(proto::EgressStatus::EgressComplete)).await;
    let path = dir.path().join("call-1.ogg");
    assert_eq!(ended.file_results[0].location, path.display().to_string());
    assert_eq!(
        oggopus::duration(&path).expect("an ogg file").as_nanos(),
        ended.file_results[0].duration as u128
    );
    let error = egress
        .stop_egress(&egress_id)
        .await
        .expect_err("it has ended");
    assert_eq!(server_error(error).0, "failed_precondition");

    rooms
        .remove_participant("call-1", "callee")
        .await
        .expect("the callee is sent away");
    assert!(
        rooms
            .list_participants("call-1")
            .await
            .expect("participants are listed")
            .is_empty()
    );
    server.shutdown().await;
}

#[tokio::test]
async fn webhooks_are_accepted_by_the_official_receiver() {
    let (sender, mut bodies) = mpsc::unbounded_channel();
    let take = async |State(sender): State<mpsc::UnboundedSender<(String, String)>>,
                      headers: HeaderMap,
                      body: String| {
        let token = headers["authorization"]
            .to_str()
            .unwrap_or_default()
            .to_owned();
        // The receiver is gone when the test has what it needs.
        let _ = sender.send((body, token));
        StatusCode::OK
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let hook = format!("http://{}/hook", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        axum::serve(
            listener,
            Router::new().route("/hook", post(take)).with_state(sender),
        )
        .await
    });

    let (server, url) = start(Options {
        webhook_urls: vec![hook],
        ..Options::default()
    })
    .await;
    let rooms = RoomClient::with_api_key(&url, KEY, SECRET);
    rooms
        .create_room("call-1", CreateRoomOptions::default())
        .await
        .expect("the room is created");
    let (body, token) = in_time(bodies.recv()).await.expect("the sink runs");
    let receiver = WebhookReceiver::new(TokenVerifier::with_api_key(KEY, SECRET));
    let event = receiver
        .receive(&body, &token)
        .expect("the signature and the body are good");
    assert_eq!(
        (event.event.as_str(), event.room.map(|room| room.name)),
        ("room_started", Some("call-1".into()))
    );
    server.shutdown().await;
}
