//! A worker that is full, that drains, that stops at once.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::world::{ANSWER, GREETING, SHORT_LINE, WORDS, World, eventually, read_json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_worker_takes_no_second_call() {
    let world = World::new(json!([]), &[("VOICEBOT__WORKER__MAX_CALLS", "1")]).await;
    let worker = world.worker().await;
    let mut first = world.call("first").await;
    world.dispatch("refused", Value::Null).await;
    first.ask(SHORT_LINE).await;
    world.the_call_process();
    assert!(world.agent_in("refused").is_none());
    first.hang_up().await;
    world.delivered(1).await;

    eventually("end of the first call's process", async || {
        world.call_processes().is_empty().then_some(())
    })
    .await;
    eventually("call after the first one", async || {
        // The worker says that it has a slot again a moment after the first call's process has
        // ended.
        world.dispatch("second", Value::Null).await;
        (!world.call_processes().is_empty()).then_some(())
    })
    .await;
    let mut second = world.caller("second").await;
    second.agent_has_said(1).await;
    second.hang_up().await;
    let calls = world.delivered(2).await;
    let rooms: Vec<_> = calls
        .iter()
        .map(|call| &call.record["room"]["name"])
        .collect();
    assert_eq!(rooms, ["first", "second"]);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_process_does_not_get_the_secrets_of_the_delivery() {
    let secrets = [
        ("CRM_TOKEN", "t-crm"),
        ("CRM_HMAC_SECRET", "t-hmac"),
        ("AWS_SECRET_ACCESS_KEY", "t-aws"),
    ];
    let world = World::new(json!([]), &secrets).await;
    let worker = world.worker().await;
    let caller = world.call("secrets").await;
    let environment = |process: rustix::process::Pid| {
        fs::read_to_string(format!("/proc/{}/environ", process.as_raw_nonzero()))
            .unwrap_or_default()
    };
    let of_call = environment(world.the_call_process());
    assert!(
        of_call.contains("LIVEKIT_API_SECRET="),
        "it is the call's own"
    );
    for (name, value) in secrets {
        assert!(
            !of_call.contains(name) && !of_call.contains(value),
            "{name}"
        );
    }
    caller.hang_up().await;
    world.delivered(1).await;
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_worker_lets_its_call_end_and_delivers_it() {
    let world = World::new(json!([]), &[]).await;
    let mut worker = world.worker().await;
    let mut caller = world.call("draining").await;
    worker.terminate();
    eventually("draining worker", async || {
        world.log().contains("draining: no new calls").then_some(())
    })
    .await;
    caller.ask(SHORT_LINE).await;
    caller.hang_up().await;
    let status = worker.ended().await;
    assert!(status.success(), "{status}");

    // Nobody comes after a worker that is scaled away: the call is at the CRM when it ends.
    assert_eq!(world.crm.call_data().len(), 1);
    let call = &world.delivered(1).await[0];
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    let worker = world.worker().await;
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_signal_ends_calls_at_once_with_their_records() {
    let world = World::new(json!([]), &[]).await;
    let mut worker = world.worker().await;
    let mut one = world.call("one").await;
    let mut other = world.call("other").await;
    one.ask(SHORT_LINE).await;
    worker.terminate();
    eventually("draining worker", async || {
        world.log().contains("draining: no new calls").then_some(())
    })
    .await;
    worker.terminate();
    one.hung_up_on().await;
    other.hung_up_on().await;
    let status = worker.ended().await;
    assert!(status.success(), "{status}");
    assert_eq!(world.call_processes(), []);

    let worker = world.worker().await;
    let calls = world.delivered(2).await;
    for call in &calls {
        call.ended("completed", "job_shutdown", Some("WORKER_STOPPED"));
    }
    assert_eq!(
        calls[0].transcript(),
        [
            format!("assistant: {GREETING}"),
            format!("user: {WORDS}"),
            format!("assistant: {ANSWER}")
        ]
    );
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record_of_the_last_moment_is_delivered_before_the_worker_ends() {
    let world = World::new(json!([]), &[("VOICEBOT__UPLOAD__INTERVAL_S", "3600")]).await;
    let mut worker = world.worker().await;
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/records/original");
    let session = "session_20251029_113920_abc123";
    let name = format!("conversation_{session}.json");
    fs::copy(
        fixtures.join(&name),
        world.data().join("conversations").join(&name),
    )
    .expect("a copy");
    // Without a recording: one that nobody has looked for yet would be looked for twice.
    let name = format!("metadata_{session}.json");
    let mut record = read_json(&fixtures.join(&name));
    record["campaign_metadata"]["egressId"].take();
    fs::write(
        world.data().join("call_metadata").join(&name),
        record.to_string(),
    )
    .expect("a record");
    worker.terminate();
    let status = worker.ended().await;
    assert!(status.success(), "{status}");
    assert_eq!(world.crm.call_data().len(), 1, "{}", world.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_a_call_logs_says_which_call_it_is_and_the_worker_ends_with_its_last_line()
{
    let lead = json!([
        { "when": "words", "tool": { "name": "create_lead", "arguments": { "name": "Asha", "interest": "pumps" } } },
        { "after_tool": "create_lead", "say": ANSWER },
    ]);
    let settings = [
        ("VOICEBOT__RECORDING__MODE", "egress"),
        (
            "VOICEBOT__LOG__LEVEL",
            "info,voicebot=debug,livekit=debug,livekit_signaling=debug,libwebrtc=debug",
        ),
    ];
    let world = World::new(lead, &settings).await;
    let worker = world.worker().await;
    let mut caller = world.call("logged").await;
    caller.ask(SHORT_LINE).await;
    caller.hang_up().await;
    let call = world.delivered(1).await.remove(0);
    let session = call.record["session_id"].clone();
    let log_file = world.data().join("worker.log");
    worker.terminate();
    eventually("last line", async || {
        world.log().contains("the worker stopped").then_some(())
    })
    .await;
    let mut worker = worker;
    assert!(worker.ended().await.success());
    let log = fs::read_to_string(log_file).expect("the log");
    let lines: Vec<Value> = log.lines().flat_map(serde_json::from_str).collect();
    let last = lines.last().expect("a line");
    assert_eq!(last["message"], "the worker stopped", "{last}");

    // Only processes of calls run these.
    let of_calls = [
        "voicebot::call",
        "voicebot::tools",
        "voicebot::voice",
        "voicebot::recording::egress",
        "voicebot::recording::recorder",
        "livekit::",
        "livekit_signaling",
        "libwebrtc",
    ];
    for target in of_calls {
        let of_target = lines.iter().filter(|line| {
            let logged_by = line["target"].as_str().unwrap_or_default();
            logged_by.starts_with(target)
        });
        let mut some = false;
        for line in of_target {
            some = true;
            assert_eq!(line["span"]["session.id"], session, "{line}");
        }
        let silent = ["voicebot::voice", "voicebot::recording::recorder"];
        assert!(
            some || silent.contains(&target),
            "nothing is logged by {target}"
        );
    }
    assert_eq!(world.call_processes(), []);
}
