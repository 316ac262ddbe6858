//! However a call ends, its record arrives and says how.

use livekit_protocol::JobStatus;
use serde_json::{Value, json};

use crate::support::world::{ANSWER, GREETING, SHORT_LINE, WORDS, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_hangs_up_and_the_call_is_completed() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("number-_15550100199-1").await;
    caller.ask(SHORT_LINE).await;
    caller.hang_up().await;

    let [call] = &world.delivered(1).await[..] else {
        unreachable!()
    };
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    assert_eq!(
        call.transcript(),
        [
            format!("assistant: {GREETING}"),
            format!("user: {WORDS}"),
            format!("assistant: {ANSWER}")
        ]
    );
    assert_eq!(call.call["caller"]["phoneNumber"], "+15550100199");
    assert_eq!(call.call["campaignId"], "campaign-1");
    assert_eq!(call.record["outcome"]["error"], Value::Null);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_deletes_the_room_and_the_call_is_completed() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("deleted").await;
    world.rooms().delete_room("deleted").await.expect("deleted");
    caller.hung_up_on().await;

    world.delivered(1).await[0].ended("completed", "job_shutdown", Some("ROOM_DELETED"));
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_removes_the_agent_and_the_call_is_completed() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("removed").await;
    let agent = world.agent_joins("removed").await;
    world
        .rooms()
        .remove_participant("removed", &agent)
        .await
        .expect("removed");
    caller.hung_up_on().await;

    // Word of it comes from two sides: the room's, which says more, and the end of the job.
    let call = &world.delivered(1).await[0];
    let told = call.record["outcome"]["disconnect_reason"].as_str();
    assert!(
        matches!(told, Some("PARTICIPANT_REMOVED" | "JOB_TERMINATED")),
        "{told:?}"
    );
    call.ended("completed", "job_shutdown", told);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatch_is_deleted_and_the_agent_says_goodbye_to_the_job() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.caller("terminated").await;
    let dispatch = world.dispatch("terminated", Value::Null).await;
    caller.agent_has_said(1).await;
    world
        .dispatches()
        .delete_dispatch(&dispatch, "terminated")
        .await
        .expect("deleted");
    caller.hung_up_on().await;

    world.delivered(1).await[0].ended("completed", "job_shutdown", Some("JOB_TERMINATED"));
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_comes_and_the_call_was_not_answered() {
    let world = World::new(json!([]), &[("VOICEBOT__CALL__CALLER_WAIT_S", "1")]).await;
    let worker = world.worker().await;
    let number = json!({ "phone_number": "+15550100188", "direction": "outbound" });
    world.dispatch("nobody", number).await;

    let call = &world.delivered(1).await[0];
    call.ended("no_answer", "job_shutdown", Some("CALLER_NEVER_CAME"));
    assert_eq!(call.transcript(), [""; 0]);
    // What the job said about the call is not lost with the caller.
    assert_eq!(call.record["dialed_number"], "+15550100188");
    assert_eq!(call.record["direction"], "outbound");
    assert_eq!(call.call["campaignId"], "campaign-1");
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_that_cannot_be_joined_leaves_a_record_that_says_so() {
    let world = World::new(json!([]), &[("VOICEBOT__CALL__JOIN_TIMEOUT_S", "0")]).await;
    let worker = world.worker().await;
    let room = "number-_15550100155-1";
    world.dispatch(room, Value::Null).await;
    world.job_is(room, JobStatus::JsFailed).await;

    let call = &world.delivered(1).await[0];
    call.ended("failed", "error", Some("SET_UP_FAILED"));
    let error = call.record["outcome"]["error"].as_str().unwrap_or_default();
    assert!(error.contains("LIVEKIT_URL"), "{error}");
    assert_eq!(call.record["dialed_number"], "+15550100155");
    assert_eq!(call.call["campaignId"], "campaign-1");
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_whose_connection_is_replaced_stays_in_the_call() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("replaced").await;
    let mut again = world.caller("replaced").await;
    caller.hung_up_on().await;
    again
        .until("agent that hears", |seen| {
            seen.agent_track.is_some() && seen.is_heard
        })
        .await;
    again.ask(SHORT_LINE).await;
    again.hang_up().await;

    let call = &world.delivered(1).await[0];
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    assert_eq!(call.transcript().len(), 3, "{:?}", call.transcript());
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_goes_away_and_the_record_is_delivered_without_it() {
    let mut world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("no server").await;
    caller.ask(SHORT_LINE).await;
    world.server_goes_away().await;
    caller.hung_up_on().await;

    let call = &world.delivered(1).await[0];
    let told = call.record["outcome"]["disconnect_reason"].as_str();
    call.ended("completed", "job_shutdown", told);
    assert_eq!(told, Some("SERVER_SHUTDOWN"));
    assert_eq!(call.transcript().len(), 3, "{:?}", call.transcript());
    world.nothing_is_left(worker).await;
}
