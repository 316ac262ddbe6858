//! The rules for agents, as a worker on a socket and a client of the API see them.

use std::time::Duration;

use livekit_protocol as proto;
use proto::participant_info::Kind;
use proto::worker_message::Message as FromWorker;
use proto::{JobStatus, JobType, WorkerStatus};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message as Frame};

use crate::room::ToPeer;
use crate::testkit::*;
use crate::token::{Keys, VideoGrants, unix_now_s};

const LIST: &str = "AgentDispatchService/ListDispatch";

/// The only job of a dispatch, once it has this status.
async fn job_with_status(
    server: &crate::RoomServer,
    room: &str,
    dispatch_id: &str,
    status: &str,
) -> Value {
    let request = json!({ "room": room, "dispatch_id": dispatch_id });
    let wanted = |answer: &Value| job_of(answer)["state"]["status"] == status;
    job_of(&call_until(server, room, LIST, request, wanted).await).clone()
}

fn job_of(answer: &Value) -> &Value {
    &answer["agent_dispatches"][0]["state"]["jobs"][0]
}

#[tokio::test]
async fn a_dispatched_job_reaches_the_worker_with_a_token_for_the_room() {
    let server = start().await;
    let (mut worker, worker_id) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    assert!(worker_id.starts_with("AW_"));
    let dispatch_id = dispatch(&server, "call-1", "sales").await;
    assert!(dispatch_id.starts_with("AD_"));

    let job = worker.asked().await;
    assert!(job.id.starts_with("AJ_"));
    assert_eq!(
        (
            job.dispatch_id.as_str(),
            job.agent_name.as_str(),
            job.metadata.as_str()
        ),
        (dispatch_id.as_str(), "sales", "{\"lead\":1}")
    );
    assert_eq!(job.r#type(), JobType::JtRoom);
    assert_eq!(
        job.room.as_ref().map(|room| room.name.as_str()),
        Some("call-1")
    );

    let assignment = worker.accept(&job).await;
    assert_eq!(assignment.url, None);
    assert_eq!(
        assignment.job.map(|assigned| assigned.id),
        Some(job.id.clone())
    );
    let keys = Keys::new(vec![(KEY.into(), SECRET.into())]);
    let claims = keys
        .verify(&assignment.token)
        .expect("the server's key signed it");
    assert_eq!(claims.identity(), format!("agent-{}", job.id));
    assert_eq!(
        (claims.name.as_str(), claims.participant_kind()),
        ("Ann", Kind::Agent)
    );
    assert_eq!(claims.attributes["lk.agent_name"], "sales");
    assert!(claims.video.room_join && claims.video.agent && claims.video.room == "call-1");
    assert_eq!(claims.video.can_update_own_metadata, Some(true));
    assert!(claims.require_room_admin("call-1").is_err() && claims.require_room_record().is_err());
    assert!((3590..=3600).contains(&(claims.exp - unix_now_s())));

    let listed = job_with_status(&server, "call-1", &dispatch_id, "JS_RUNNING").await;
    assert_eq!(listed["state"]["worker_id"], worker_id);
    assert_eq!(
        listed["state"]["participant_identity"],
        format!("agent-{}", job.id)
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_nameless_worker_gets_every_new_room_and_a_named_one_none() {
    let server = start().await;
    let (mut automatic, _) = FakeWorker::register(&server, "", JobType::JtRoom).await;
    let (mut named, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    call_ok(
        &server,
        "",
        "RoomService/CreateRoom",
        json!({ "name": "call-1" }),
    )
    .await;
    let job = automatic.asked().await;
    assert_eq!(job.room.map(|room| room.name), Some("call-1".into()));
    named.silence().await;
    server.shutdown().await;
}

#[tokio::test]
async fn agents_named_when_the_room_is_created_replace_the_automatic_ones() {
    let server = start().await;
    let (mut automatic, _) = FakeWorker::register(&server, "", JobType::JtRoom).await;
    let (mut named, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    let request =
        json!({ "name": "call-1", "agents": [{ "agent_name": "sales", "metadata": "m" }] });
    call_ok(&server, "", "RoomService/CreateRoom", request).await;
    assert_eq!(named.asked().await.metadata, "m");
    automatic.silence().await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_declined_job_goes_to_another_worker() {
    let server = start().await;
    let (mut one, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    let (mut two, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    dispatch(&server, "call-1", "sales").await;
    // Which one is asked first is random.
    let declined = tokio::select! {
        job = one.asked() => { one.send(answer(&job, false)).await; two.asked().await.id == job.id },
        job = two.asked() => { two.send(answer(&job, false)).await; one.asked().await.id == job.id },
    };
    assert!(declined, "the other worker is asked about the same job");
    server.shutdown().await;
}

#[tokio::test]
async fn a_worker_that_dies_while_it_is_asked_is_replaced() {
    let server = start().await;
    let (one, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    let (two, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    dispatch(&server, "call-1", "sales").await;
    let (mut one, mut two) = (one, two);
    let (job, mut other) = tokio::select! {
        job = one.asked() => { drop(one); (job, two) },
        job = two.asked() => { drop(two); (job, one) },
    };
    assert_eq!(other.asked().await.id, job.id);
    server.shutdown().await;
}

#[tokio::test]
async fn a_job_refused_for_good_is_recorded_as_done_and_offered_to_nobody_else() {
    let server = start().await;
    let (mut worker, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    let dispatch_id = dispatch(&server, "call-1", "sales").await;
    let job = worker.asked().await;
    let refusal = proto::AvailabilityResponse {
        job_id: job.id,
        terminate: true,
        ..Default::default()
    };
    worker.send(FromWorker::Availability(refusal)).await;
    job_with_status(&server, "call-1", &dispatch_id, "JS_SUCCESS").await;
    worker.silence().await;
    server.shutdown().await;
}

#[tokio::test]
async fn loaded_and_full_workers_are_not_asked() {
    let server = start().await;
    let (mut worker, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    for busy in [
        load(0.7, WorkerStatus::WsAvailable),
        load(0.1, WorkerStatus::WsFull),
    ] {
        worker.send(busy).await;
        worker.silence().await;
        dispatch(&server, "call-1", "sales").await;
        worker.silence().await;
    }
    worker.send(load(0.69, WorkerStatus::WsAvailable)).await;
    worker.silence().await;
    let wanted = dispatch(&server, "call-1", "sales").await;
    assert_eq!(worker.asked().await.dispatch_id, wanted);
    server.shutdown().await;
}

#[tokio::test]
async fn a_late_answer_is_no_answer_and_nobody_else_is_asked() {
    let server = start().await;
    let (mut worker, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    let dispatch_id = dispatch(&server, "call-1", "sales").await;
    let job = worker.asked().await;
    tokio::time::pause();
    tokio::time::advance(super::ASSIGN_TIMEOUT + Duration::from_millis(100)).await;
    tokio::time::resume();
    worker.send(answer(&job, true)).await;
    worker.silence().await;
    let listed = call_ok(
        &server,
        "call-1",
        LIST,
        json!({ "room": "call-1", "dispatch_id": dispatch_id }),
    )
    .await;
    assert_eq!(*job_of(&listed), Value::Null, "{listed}");
    server.shutdown().await;
}

#[tokio::test]
async fn an_agent_that_leaves_without_a_final_status_has_failed() {
    let server = start().await;
    let (mut worker, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    let dispatch_id = dispatch(&server, "call-1", "sales").await;
    let job = worker.asked().await;
    worker.accept(&job).await;
    let identity = format!("agent-{}", job.id);
    let _agent = join(&server, "call-1", &identity, Kind::Agent);
    server
        .rooms()
        .remove_participant("call-1", &identity)
        .expect("the agent is there");
    assert_eq!(worker.terminated().await, job.id);
    let listed = job_with_status(&server, "call-1", &dispatch_id, "JS_FAILED").await;
    assert_eq!(listed["state"]["error"], "agent worker left the room");
    server.shutdown().await;
}

#[tokio::test]
async fn an_agent_that_says_how_it_ended_before_it_leaves_is_not_terminated() {
    let server = start().await;
    let (mut worker, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    let dispatch_id = dispatch(&server, "call-1", "sales").await;
    let job = worker.asked().await;
    worker.accept(&job).await;
    let identity = format!("agent-{}", job.id);
    let _agent = join(&server, "call-1", &identity, Kind::Agent);
    worker.send(job_status(&job.id, JobStatus::JsSuccess)).await;
    worker.silence().await;
    server
        .rooms()
        .remove_participant("call-1", &identity)
        .expect("the agent is there");
    worker.silence().await;
    job_with_status(&server, "call-1", &dispatch_id, "JS_SUCCESS").await;
    // What comes after the end is ignored.
    worker.send(job_status(&job.id, JobStatus::JsFailed)).await;
    worker.silence().await;
    job_with_status(&server, "call-1", &dispatch_id, "JS_SUCCESS").await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_second_connection_of_the_agent_does_not_end_its_job() {
    let server = start().await;
    let (mut worker, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    dispatch(&server, "call-1", "sales").await;
    let job = worker.asked().await;
    worker.accept(&job).await;
    let identity = format!("agent-{}", job.id);
    let _first = join(&server, "call-1", &identity, Kind::Agent);
    let _second = join(&server, "call-1", &identity, Kind::Agent);
    worker.silence().await;
    server.shutdown().await;
}

#[tokio::test]
async fn deleting_the_room_ends_its_jobs() {
    let server = start().await;
    let (mut worker, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    dispatch(&server, "call-1", "sales").await;
    let job = worker.asked().await;
    worker.accept(&job).await;
    call_ok(
        &server,
        "call-1",
        "RoomService/DeleteRoom",
        json!({ "room": "call-1" }),
    )
    .await;
    assert_eq!(worker.terminated().await, job.id);
    worker.silence().await;
    server.shutdown().await;
}

#[tokio::test]
async fn deleting_the_dispatch_terminates_the_job_and_removes_an_agent_that_stays() {
    let server = start().await;
    let (mut worker, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    let dispatch_id = dispatch(&server, "call-1", "sales").await;
    let job = worker.asked().await;
    worker.accept(&job).await;
    let mut agent = join(&server, "call-1", &format!("agent-{}", job.id), Kind::Agent);
    let request = json!({ "room": "call-1", "dispatch_id": dispatch_id });
    let deleted = call_ok(
        &server,
        "call-1",
        "AgentDispatchService/DeleteDispatch",
        request.clone(),
    )
    .await;
    assert_eq!(deleted["id"], dispatch_id);
    assert_eq!(worker.terminated().await, job.id);
    assert!(
        agent.control.try_recv().is_err(),
        "the agent has time to leave by itself"
    );

    tokio::time::pause();
    tokio::time::advance(super::LEAVE_TIMEOUT + Duration::from_millis(100)).await;
    tokio::time::resume();
    loop {
        let message = tokio::time::timeout(PATIENCE, agent.control.recv())
            .await
            .expect("the agent is removed in time");
        if let Some(ToPeer::Close { reason }) = message {
            assert_eq!(reason, proto::DisconnectReason::ParticipantRemoved);
            break;
        }
    }
    let (status, answer) = call(
        &server,
        &admin("call-1"),
        "AgentDispatchService/DeleteDispatch",
        request,
    )
    .await;
    assert_eq!((status, answer["code"].as_str()), (404, Some("not_found")));
    server.shutdown().await;
}

#[tokio::test]
async fn the_jobs_of_a_worker_that_is_gone_are_forgotten_and_its_agent_stays() {
    let server = start().await;
    let (mut worker, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    dispatch(&server, "call-1", "sales").await;
    let job = worker.asked().await;
    worker.accept(&job).await;
    let mut agent = join(&server, "call-1", &format!("agent-{}", job.id), Kind::Agent);
    worker
        .socket
        .close(None)
        .await
        .expect("the connection is open");
    while worker.try_receive().await.is_some() {}

    // The worker comes back and reports on the old job: no error, and the agent stays.
    let (mut again, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    again
        .send(FromWorker::MigrateJob(proto::MigrateJobRequest {
            job_ids: vec![job.id.clone()],
        }))
        .await;
    again.send(job_status(&job.id, JobStatus::JsRunning)).await;
    again.silence().await;
    while let Ok(message) = agent.control.try_recv() {
        assert!(!matches!(message, ToPeer::Close { .. }));
    }
    server.shutdown().await;
}

#[tokio::test]
async fn participants_and_publishers_have_jobs_of_their_own() {
    let server = start().await;
    let (mut for_participants, _) = FakeWorker::register(&server, "", JobType::JtParticipant).await;
    let (mut for_publishers, _) = FakeWorker::register(&server, "", JobType::JtPublisher).await;
    let caller = join(&server, "call-1", "caller", Kind::Standard);
    let job = for_participants.asked().await;
    assert_eq!(
        job.participant.map(|participant| participant.identity),
        Some("caller".into())
    );
    for_publishers.silence().await;

    let room = server.rooms().find("call-1").expect("the room is open");
    for sid in ["TR_1", "TR_2"] {
        room.publish(
            &caller.sid,
            proto::TrackInfo {
                sid: sid.into(),
                ..Default::default()
            },
        );
    }
    let job = for_publishers.asked().await;
    assert_eq!(
        job.participant.map(|participant| participant.identity),
        Some("caller".into())
    );
    // Only the first track counts, and agents cause no jobs.
    let agent = join(&server, "call-1", "agent-1", Kind::Agent);
    room.publish(
        &agent.sid,
        proto::TrackInfo {
            sid: "TR_3".into(),
            ..Default::default()
        },
    );
    for_publishers.silence().await;
    for_participants.silence().await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_worker_can_try_itself_out() {
    let server = start().await;
    let (mut worker, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    let room = proto::Room {
        name: "playground".into(),
        ..Default::default()
    };
    worker
        .send(FromWorker::SimulateJob(proto::SimulateJobRequest {
            room: Some(room),
            ..Default::default()
        }))
        .await;
    let job = worker.asked().await;
    assert!(worker.accept(&job).await.token.len() > 20);
    server.shutdown().await;
}

#[tokio::test]
async fn a_worker_that_speaks_json_is_answered_in_json() {
    use futures_util::{SinkExt, StreamExt};

    let server = start().await;
    let mut worker = FakeWorker::open(&server).await;
    let register =
        json!({ "register": { "type": "JT_ROOM", "agentName": "sales", "version": "test" } });
    worker
        .socket
        .send(Frame::Text(register.to_string().into()))
        .await
        .expect("the connection is open");
    let frame = worker
        .socket
        .next()
        .await
        .expect("an answer")
        .expect("the connection is open");
    let answer: Value = serde_json::from_str(frame.to_text().expect("a text frame")).expect("JSON");
    assert!(
        answer["register"]["workerId"]
            .as_str()
            .is_some_and(|id| id.starts_with("AW_")),
        "{answer}"
    );
    server.shutdown().await;
}

#[tokio::test]
async fn only_workers_may_connect_and_only_over_a_websocket() {
    let server = start().await;
    let plain = reqwest::get(format!("http://{}/agent", server.address()))
        .await
        .expect("an answer");
    assert_eq!(plain.status(), 404);
    let participant = token(VideoGrants {
        room_join: true,
        room: "call-1".into(),
        ..Default::default()
    });
    for token in [participant.as_str(), "no token at all"] {
        match FakeWorker::connect(&server, token).await {
            Err(tungstenite::Error::Http(response)) => assert_eq!(response.status(), 401),
            other => panic!(
                "expected a refusal, got {:?}",
                other.map(|_| "a connection")
            ),
        }
    }
    server.shutdown().await;
}

#[tokio::test]
async fn messages_out_of_turn_close_the_connection() {
    let server = start().await;
    let mut early = FakeWorker::open(&server).await;
    early.send(load(0.0, WorkerStatus::WsAvailable)).await;
    assert_eq!(early.try_receive().await, None);

    let (mut twice, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    twice.send(register_request("sales", JobType::JtRoom)).await;
    assert_eq!(twice.try_receive().await, None);

    let mut unknown = FakeWorker::open(&server).await;
    unknown
        .send(FromWorker::Register(proto::RegisterWorkerRequest {
            r#type: 77,
            ..Default::default()
        }))
        .await;
    assert_eq!(unknown.try_receive().await, None);
    server.shutdown().await;
}

#[tokio::test]
async fn a_worker_that_does_not_register_is_sent_away() {
    let server = start().await;
    let mut silent = FakeWorker::open(&server).await;
    // A ping is answered, so the connection is served and the time-out is running.
    silent.silence().await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    assert_eq!(silent.try_receive().await, None);
    server.shutdown().await;
}

#[tokio::test]
async fn the_server_pings_idle_workers() {
    use futures_util::StreamExt;

    let server = start().await;
    let (mut worker, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(10)).await;
    tokio::time::resume();
    let frame = tokio::time::timeout(PATIENCE, worker.socket.next())
        .await
        .expect("a frame in time");
    assert!(matches!(frame, Some(Ok(Frame::Ping(_)))), "{frame:?}");
    server.shutdown().await;
}

#[tokio::test]
async fn shutting_down_closes_the_workers_connections() {
    let server = start().await;
    let (mut worker, _) = FakeWorker::register(&server, "sales", JobType::JtRoom).await;
    let (ended, ()) = tokio::join!(worker.try_receive(), server.shutdown());
    assert_eq!(ended, None);
}
