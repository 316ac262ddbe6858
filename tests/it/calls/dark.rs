//! Callers are not left in the dark: whatever breaks, they hear somebody soon, or are hung up on.

use std::net::SocketAddr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use livekit_api::services::sip::CreateSIPDispatchRuleOptions;
use livekit_protocol::{self as proto, JobStatus};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use super::phone::telephone;
use crate::support::world::{
    ANSWER, Delivered, GREETING, LONG_LINE, PHONE, SHORT_LINE, WORDS, World, eventually,
};

/// What was said, without what is only said after an interruption.
fn words(call: &Delivered) -> Vec<String> {
    let mut words = call.transcript();
    words.retain(|line| !line.contains("interrupted"));
    words
}

fn exchange() -> [String; 2] {
    [format!("user: {WORDS}"), format!("assistant: {ANSWER}")]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_call_is_hung_up_on_and_its_record_is_made_once() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("killed").await;
    kill_process(world.the_call_process(), Signal::KILL).expect("killed");
    let seen = caller
        .until("end of the room", |seen| seen.ended.is_some())
        .await;
    assert_eq!(seen.ended, Some("ROOM_DELETED"));

    let call = &world.delivered(1).await[0];
    call.ended("recovered", "error", None);
    assert_eq!(call.transcript(), [format!("assistant: {GREETING}")]);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_that_died_with_its_worker_is_hung_up_on_by_the_next_one() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("both killed").await;
    let call = world.the_call_process();
    worker.kill().await;
    kill_process(call, Signal::KILL).expect("killed");
    caller
        .until("agent that is gone", |seen| seen.agent_gone)
        .await;

    let worker = world.worker().await;
    let seen = caller
        .until("end of the room", |seen| seen.ended.is_some())
        .await;
    assert_eq!(seen.ended, Some("ROOM_DELETED"));
    let call = &world.delivered(1).await[0];
    call.ended("recovered", "error", None);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversation_goes_on_with_its_history_when_the_server_was_restarted() {
    let mut world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("restarted").await;
    caller.ask(SHORT_LINE).await;
    world.server_is_restarted().await;
    caller
        .until("agent that is back and hears", |seen| {
            seen.lost > 0 && seen.agent_track.is_some() && seen.is_heard
        })
        .await;
    caller.ask(LONG_LINE).await;
    caller.hang_up().await;

    let call = &world.delivered(1).await[0];
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    let mut expected = vec![format!("assistant: {GREETING}")];
    expected.extend(exchange());
    expected.extend(exchange());
    assert_eq!(words(call), expected);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_who_does_not_come_back_after_a_restart_ends_the_call() {
    let settings = [("VOICEBOT__CALL__RECONNECT_WAIT_S", "8")];
    let mut world = World::new(json!([]), &settings).await;
    let worker = world.worker().await;
    // This telephone is the server's own, and gone with it.
    telephone(&world, "alone", PHONE, None).await;
    eventually("greeting", async || {
        world.journal().contains(GREETING).then_some(())
    })
    .await;
    world.server_is_restarted().await;

    let call = &world.delivered(1).await[0];
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CONNECTION_TIMEOUT"),
    );
    assert_eq!(words(call), [format!("assistant: {GREETING}")]);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn telephone_with_an_old_status_is_greeted() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    // As its bridge comes back after a restart of the server.
    let mut phone = world.telephone_joins("old status", "ringing", true).await;
    world.dispatch("old status", Value::Null).await;
    phone.agent_has_said(1).await;
    phone.hang_up().await;

    let call = &world.delivered(1).await[0];
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    assert_eq!(call.record["dialed_number"], PHONE);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn telephone_that_sends_nothing_is_no_silent_caller() {
    let world = World::new(json!([]), &[("VOICEBOT__CALL__NO_MEDIA_S", "2")]).await;
    let worker = world.worker().await;
    let mut phone = world.telephone_joins("mute", "active", false).await;
    world.dispatch("mute", Value::Null).await;
    phone.hung_up_on().await;

    let call = &world.delivered(1).await[0];
    call.ended("failed", "error", Some("NO_MEDIA"));
    let error = call.record["outcome"]["error"].as_str().unwrap_or_default();
    assert!(error.contains("call.no_media_s"), "{error}");
    assert_eq!(call.record["dialed_number"], PHONE);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn observer_who_came_first_is_not_the_caller() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let observer = world.observer("observed").await;
    world.dispatch("observed", Value::Null).await;
    world.agent_joins("observed").await;
    let mut phone = world.telephone_joins("observed", "active", true).await;
    phone.agent_has_said(1).await;
    phone
        .until("the agent hears the telephone", |seen| seen.is_heard)
        .await;
    phone.ask(SHORT_LINE).await;
    phone.hang_up().await;

    // It ends with the telephone, though the observer is still there.
    let call = &world.delivered(1).await[0];
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    assert_eq!(call.record["dialed_number"], PHONE);
    let said = call.transcript();
    assert_eq!(said[said.len() - 2..], exchange());
    drop(observer);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_caller_is_given_up_for_a_telephone() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let mut observer = world.observer("given up").await;
    world.dispatch("given up", Value::Null).await;
    // Nobody else has come for a while: the agent talks to who is there.
    observer.agent_has_said(1).await;
    let phone_came = Utc::now();
    let mut phone = world.telephone_joins("given up", "active", true).await;
    phone.agent_has_said(1).await;
    phone
        .until("the agent hears the telephone", |seen| seen.is_heard)
        .await;
    phone.ask(SHORT_LINE).await;
    phone.hang_up().await;

    // The call is the telephone's, and begins with it.
    let call = &world.delivered(1).await[0];
    assert_eq!(call.record["dialed_number"], PHONE);
    let answered = call.record["timestamps"]["answered"].as_str();
    let answered = answered.and_then(|at| at.parse::<DateTime<Utc>>().ok());
    assert!(answered.is_some_and(|at| at >= phone_came), "{answered:?}");
    let mut expected = vec![format!("assistant: {GREETING}")];
    expected.extend(exchange());
    assert_eq!(call.transcript(), expected);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_that_is_dispatched_twice_has_one_agent() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.caller("twice").await;
    tokio::join!(
        world.dispatch("twice", Value::Null),
        world.dispatch("twice", Value::Null)
    );
    let second = world.archived(1).await.remove(0);
    assert_eq!(second["outcome"]["disconnect_reason"], "ANOTHER_AGENT");
    world.job_is("twice", JobStatus::JsFailed).await;

    // The room and the conversation are the other one's.
    caller.agent_has_said(1).await;
    caller
        .until("the agent hears the caller", |seen| seen.is_heard)
        .await;
    caller.ask(SHORT_LINE).await;
    caller.hang_up().await;
    let records = world.archived(2).await;
    let (second, call): (Vec<_>, Vec<_>) = records
        .iter()
        .partition(|record| record["outcome"]["disconnect_reason"] == "ANOTHER_AGENT");
    // The CRM hears of one call, the one that was held.
    assert_eq!(
        (&second[0]["call_id"], &second[0]["timestamps"]["delivered"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(world.crm.call_data().len(), 1);
    let call = world.delivered_call(call[0]);
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    assert_eq!(call.transcript().len(), 3, "{:?}", call.transcript());
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_in_a_room_that_the_agent_cannot_join_is_hung_up_on() {
    let world = World::new(json!([]), &[("VOICEBOT__CALL__JOIN_TIMEOUT_S", "0")]).await;
    let worker = world.worker().await;
    let mut caller = world.caller("closed").await;
    world.dispatch("closed", Value::Null).await;
    let seen = caller
        .until("end of the room", |seen| seen.ended.is_some())
        .await;
    assert_eq!(seen.ended, Some("ROOM_DELETED"));

    let call = &world.delivered(1).await[0];
    call.ended("failed", "error", Some("SET_UP_FAILED"));
    world.nothing_is_left(worker).await;
}

/// A proxy to the room server that holds back whoever wants to join a room, until it is opened.
struct Gate {
    url: String,
    somebody_waits: Arc<Notify>,
    opened: Arc<Notify>,
}

impl Gate {
    async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (somebody_waits, opened) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (told, open) = (somebody_waits.clone(), opened.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, told.clone(), open.clone()));
            }
        });
        Self {
            url: format!("ws://{address}"),
            somebody_waits,
            opened,
        }
    }
}

async fn pass(
    mut client: TcpStream,
    server: SocketAddr,
    told: Arc<Notify>,
    open: Arc<Notify>,
) -> std::io::Result<()> {
    let mut beginning = [0; 8];
    client.read_exact(&mut beginning).await?;
    if beginning.starts_with(b"GET /rtc") {
        told.notify_one();
        open.notified().await;
        open.notify_one();
    }
    let mut upstream = TcpStream::connect(server).await?;
    upstream.write_all(&beginning).await?;
    copy_bidirectional(&mut client, &mut upstream).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_who_gave_up_before_the_agent_was_asked_leaves_no_slot_taken() {
    let world = World::new(json!([]), &[]).await;
    let rule = proto::SipDispatchRuleIndividual {
        room_prefix: "call-".into(),
        ..Default::default()
    };
    let rule = proto::sip_dispatch_rule::Rule::DispatchRuleIndividual(rule);
    let telephone = world.telephone();
    let made = telephone.create_sip_dispatch_rule(rule, CreateSIPDispatchRuleOptions::default());
    made.await.expect("the rule is made");
    let worker = world.worker().await;
    // Rooms of this rule are made by their callers, and this one's is not there any more.
    let room = format!("call-_{PHONE}_x44dWZvLdPSC");
    world
        .dispatch(&room, json!({ "campaignId": "campaign-1" }))
        .await;

    let call = &world.delivered(1).await[0];
    call.ended(
        "no_answer",
        "participant_disconnected",
        Some("CALLER_GAVE_UP"),
    );
    assert_eq!(call.record["dialed_number"], PHONE);
    assert_eq!(call.record["direction"], "inbound");
    let details = &call.call["callDetails"];
    assert!(details["ringDuration"].is_u64(), "{details}");
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_who_gives_up_while_the_agent_joins_leaves_no_slot_taken() {
    let mut world = World::new(json!([]), &[]).await;
    let gate = Gate::before(world.server_address()).await;
    world.server_is_reached_by(gate.url.clone());
    let worker = world.worker().await;
    let phone = world.telephone_joins("gave up", "ringing", true).await;
    world.dispatch("gave up", Value::Null).await;
    gate.somebody_waits.notified().await;
    eventually("look into the room", async || {
        world
            .log()
            .contains("somebody is in the room before the agent")
            .then_some(())
    })
    .await;
    phone.hang_up().await;
    gate.opened.notify_one();

    // Long before the room server closes an empty room, and the agent stops to wait for somebody.
    let call = &world.delivered(1).await[0];
    call.ended(
        "no_answer",
        "participant_disconnected",
        Some("CALLER_GAVE_UP"),
    );
    assert_eq!(call.record["dialed_number"], PHONE);
    assert_eq!(call.record["direction"], "inbound");
    let details = &call.call["callDetails"];
    assert!(details["ringDuration"].is_u64(), "{details}");
    world.nothing_is_left(worker).await;
}

/// A proxy to the room server that can be cut: whoever is in a room loses the connection, and
/// nobody is let in any more. The server's other services can still be reached.
struct Proxy {
    url: String,
    cut: watch::Sender<bool>,
}

impl Proxy {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (cut, is_cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(go(client, server, is_cut.clone()));
            }
        });
        Self {
            url: format!("ws://{address}"),
            cut,
        }
    }
}

async fn go(
    mut client: TcpStream,
    server: SocketAddr,
    mut cut: watch::Receiver<bool>,
) -> std::io::Result<()> {
    const REFUSAL: &[u8] =
        b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let mut beginning = [0; 8];
    client.read_exact(&mut beginning).await?;
    let to_room = beginning.starts_with(b"GET /rtc");
    if to_room && *cut.borrow() {
        return client.write_all(REFUSAL).await;
    }
    let mut upstream = TcpStream::connect(server).await?;
    upstream.write_all(&beginning).await?;
    tokio::select! {
        done = copy_bidirectional(&mut client, &mut upstream) => done.map(|_| ()),
        Ok(_) = cut.wait_for(|cut| *cut), if to_room => Ok(()),
    }
}

const GIVEN_UP: &str = "the SDK has given the connection up";
const LINK_LOST: &str = "the connection to the room is lost";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversation_goes_on_when_the_sdk_has_given_its_connection_up() {
    let settings = [
        ("VOICEBOT__CALL__RECONNECTED_LINE", ""),
        ("VOICEBOT__VOICE__TURN__ASK_AFTER_MS", "0"),
    ];
    let mut world = World::new(json!([]), &settings).await;
    let proxy = Proxy::to(world.server_address()).await;
    world.server_is_reached_by(proxy.url.clone());
    let worker = world.worker().await;
    let mut caller = world.call("given up on").await;
    caller.ask(SHORT_LINE).await;
    let before = caller.seen();
    proxy.cut.send_replace(true);
    eventually("SDK that has given up", async || {
        world.log().contains(GIVEN_UP).then_some(())
    })
    .await;
    proxy.cut.send_replace(false);
    caller
        .until("another track of the agent", |seen| {
            seen.agent_track != before.agent_track
        })
        .await;
    eventually("agent that has found the caller", async || {
        world.log().contains("the caller is back").then_some(())
    })
    .await;
    caller.ask(LONG_LINE).await;
    caller.hang_up().await;

    let call = &world.delivered(1).await[0];
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    let mut expected = vec![format!("assistant: {GREETING}")];
    expected.extend(exchange());
    expected.extend(exchange());
    assert_eq!(words(call), expected);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_of_an_agent_that_does_not_come_back_is_greeted_by_another_one() {
    let settings = [("VOICEBOT__CALL__RECONNECT_WAIT_S", "0")];
    let mut world = World::new(json!([]), &settings).await;
    let proxy = Proxy::to(world.server_address()).await;
    world.server_is_reached_by(proxy.url.clone());
    let worker = world.worker().await;
    let mut caller = world.caller("greeted again").await;
    let lead = json!({ "leadId": "L-7" });
    world.dispatch("greeted again", lead.clone()).await;
    caller.agent_has_said(1).await;
    let before = caller.seen();
    proxy.cut.send_replace(true);
    eventually("agent that has lost its connection", async || {
        world.log().contains(LINK_LOST).then_some(())
    })
    .await;
    proxy.cut.send_replace(false);
    caller
        .until("the track of another agent", |seen| {
            seen.agent_track != before.agent_track && seen.replies() > before.replies()
        })
        .await;
    caller.hang_up().await;

    // Two records, and the second one names the first.
    let calls = world.delivered(2).await;
    let is_first = |call: &&Delivered| call.record["outcome"]["close_reason"] == "error";
    let (first, second): (Vec<_>, Vec<_>) = calls.iter().partition(is_first);
    first[0].ended("completed", "error", Some("CONNECTION_TIMEOUT"));
    second[0].ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    let dispatch = &second[0].call["context"]["dispatch"];
    assert_eq!(dispatch["metadata"], lead);
    assert_eq!(
        dispatch["attributes"]["voicebot.goes_on_from"],
        first[0].record["session_id"]
    );
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_to_whom_no_other_agent_can_come_is_hung_up_on() {
    let settings = [("VOICEBOT__CALL__RECONNECT_WAIT_S", "1")];
    let mut world = World::new(json!([]), &settings).await;
    let proxy = Proxy::to(world.server_address()).await;
    world.server_is_reached_by(proxy.url.clone());
    let worker = world.worker().await;
    let mut caller = world.call("lost").await;
    proxy.cut.send_replace(true);
    // The record does not wait for what becomes of the caller, nor does the slot.
    let call = &world.delivered(1).await[0];
    call.ended("completed", "error", Some("CONNECTION_TIMEOUT"));
    let error = call.call["callDetails"]["error"].as_str();
    assert!(
        error.is_some_and(|error| error.contains("connection to the LiveKit server was lost")),
        "{error:?}"
    );
    let seen = caller
        .until("end of the room", |seen| seen.ended.is_some())
        .await;
    assert_eq!(seen.ended, Some("ROOM_DELETED"));
    // The agent that was sent again could not come either.
    let calls = world.delivered(2).await;
    let could_not = calls
        .iter()
        .filter(|call| call.record["outcome"]["disconnect_reason"] == "SET_UP_FAILED");
    assert_eq!(could_not.count(), 1);
    world.nothing_is_left(worker).await;
}
