//! Processes die at any moment: what was said until then arrives, once.

use std::time::{Duration, SystemTime};

use livekit_protocol::JobStatus;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::support::world::{
    ANSWER, GREETING, LONG_LINE, SHORT_LINE, WORDS, World, eventually, files, read_json,
};

fn transcript(exchanges: &[&str]) -> Vec<String> {
    let mut lines = vec![format!("assistant: {GREETING}")];
    for words in exchanges {
        lines.push(format!("user: {words}"));
        lines.push(format!("assistant: {ANSWER}"));
    }
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_call_is_delivered_with_what_was_said() {
    // The server forgets a job with its room.
    let world = World::new(json!([]), &[("VOICEBOT__CALL__DELETE_ROOM", "false")]).await;
    let worker = world.worker().await;
    let mut caller = world.call("number-_15550100166-1").await;
    caller.ask(SHORT_LINE).await;
    kill_process(world.the_call_process(), Signal::KILL).expect("killed");
    caller
        .until("agent that is gone", |seen| seen.agent_gone)
        .await;
    world
        .job_is("number-_15550100166-1", JobStatus::JsFailed)
        .await;

    let call = &world.delivered(1).await[0];
    call.ended("recovered", "error", None);
    assert_eq!(call.transcript(), transcript(&[WORDS]));
    let turn = &call.conversation["turns"][0];
    assert!(turn["first_frame_ms"].is_u64(), "{turn}");
    assert_eq!(turn["vendors"]["llm"], "scripted");
    assert_eq!(call.call["caller"]["phoneNumber"], "+15550100166");
    assert_eq!(call.call["campaignId"], "campaign-1");
    let error = call.record["outcome"]["error"].as_str().unwrap_or_default();
    assert!(error.contains("signal: 9"), "{error}");
    caller.hang_up().await;
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_worker_leaves_its_call_alone_and_the_next_one_delivers_it() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("goes on").await;
    worker.kill().await;
    caller.ask(SHORT_LINE).await;
    caller.hang_up().await;
    eventually("end of the call's process", async || {
        world.call_processes().is_empty().then_some(())
    })
    .await;
    assert_eq!(files(&world.data().join("call_metadata"), "json").len(), 1);
    assert_eq!(world.crm.call_data(), []);

    let worker = world.worker().await;
    let call = &world.delivered(1).await[0];
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    assert_eq!(call.transcript(), transcript(&[WORDS]));
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn next_worker_inherits_a_running_call() {
    let world = World::new(json!([]), &[("VOICEBOT__WORKER__MAX_CALLS", "2")]).await;
    let worker = world.worker().await;
    let mut first = world.call("inherited").await;
    worker.kill().await;
    let worker = world.worker().await;
    let mut second = world.call("own").await;
    first.ask(LONG_LINE).await;
    first.hang_up().await;
    let calls = world.delivered(1).await;
    assert_eq!(calls[0].transcript(), transcript(&[WORDS]));
    calls[0].ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );

    second.ask(SHORT_LINE).await;
    second.hang_up().await;
    let calls = world.delivered(2).await;
    assert_eq!(calls[1].transcript(), transcript(&[WORDS]));
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_that_died_with_its_worker_is_delivered_by_the_next_one() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("both die").await;
    caller.ask(SHORT_LINE).await;
    let call = world.the_call_process();
    worker.kill().await;
    kill_process(call, Signal::KILL).expect("killed");
    caller
        .until("agent that is gone", |seen| seen.agent_gone)
        .await;
    caller.hang_up().await;
    // A young journal may be that of a call which is just starting; this one is old.
    let journals = files(&world.data().join("conversations"), "jsonl");
    let journal = std::fs::File::options()
        .append(true)
        .open(&journals[0])
        .expect("the journal");
    journal
        .set_modified(SystemTime::now() - Duration::from_secs(60))
        .expect("the journal's time");

    let worker = world.worker().await;
    let call = &world.delivered(1).await[0];
    call.ended("recovered", "error", None);
    assert_eq!(call.transcript(), transcript(&[WORDS]));
    assert_ne!(call.record["outcome"]["error"], Value::Null);
    world.nothing_is_left(worker).await;
}

/// How many calls are killed, each behind a random event of its journal.
const KILLS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_killed_at_random_moments_lose_nothing_that_was_committed() {
    let lead = json!({ "name": "Ann Example", "email": "ann@example.com", "company": "Example", "interest": "all" });
    let agent = json!([
        { "when": "words", "tool": { "name": "create_lead", "arguments": lead } },
        { "after_tool": "create_lead", "say": ANSWER },
    ]);
    let world = World::new(agent, &[]).await;
    let mut worker = world.worker().await;
    let mut random = StdRng::seed_from_u64(20_261_121);
    let mut committed = Vec::new();
    for number in 0..KILLS {
        let room = format!("number-_1555010020{number}-1");
        let mut caller = world.caller(&room).await;
        world.dispatch(&room, Value::Null).await;
        let lines: usize = random.random_range(3..26);
        let what = format!("journal of {lines} lines");
        let journal = tokio::select! {
            journal = eventually(&what, async || {
                let journal = world.journal();
                (journal.lines().count() >= lines).then_some(journal)
            }) => journal,
            () = async {
                caller.agent_has_said(1).await;
                loop {
                    caller.ask(SHORT_LINE).await;
                }
            } => unreachable!("the caller never stops"),
        };
        kill_process(world.the_call_process(), Signal::KILL).expect("killed");
        caller.hang_up().await;
        let events: Vec<Value> = journal
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let texts = |kind: &str, field: &str| -> Vec<String> {
            let of_kind = events.iter().filter(|event| event["event"] == kind);
            of_kind
                .map(|event| event[field].as_str().expect("a text").to_owned())
                .collect()
        };
        committed.push((texts("item", "content"), texts("lead_file", "path")));
        world.delivered(number + 1).await;
    }
    let calls = world.delivered(KILLS).await;
    for (call, (items, leads)) in calls.iter().zip(&committed) {
        let record = &call.record;
        let said: Vec<&str> = call.conversation["conversation_items"]
            .as_array()
            .expect("items")
            .iter()
            .map(|item| item["content"].as_str().expect("words"))
            .collect();
        assert!(
            said.len() >= items.len() && said[..items.len()] == items[..],
            "{said:?}, committed: {items:?}"
        );
        for lead in leads {
            let named = record["files"]["leads"].as_array().expect("leads");
            assert!(named.contains(&json!(lead)), "{lead} is not in {named:?}");
            assert_eq!(read_json(&world.data().join(lead))["name"], "Ann Example");
        }
        let number = call.call["caller"]["phoneNumber"]
            .as_str()
            .unwrap_or_default();
        assert!(number.starts_with("+1555010020"), "{number}");
    }
    worker.terminate();
    assert!(worker.ended().await.success());
    assert_eq!(
        files(&world.data().join("conversations"), "jsonl"),
        [] as [std::path::PathBuf; 0]
    );
}
