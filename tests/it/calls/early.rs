//! Who the agent is, is looked up beside the call: a source that takes its time, or never answers,
//! makes no wrong answer time, no late recording and no deaf agent.

use std::future::pending;
use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::support::live_caller::LiveCaller;
use crate::support::world::{GREETING, PHONE, World, eventually};

/// What the persona of the source says first.
const ITS_GREETING: &str = "Good day.";

/// A persona source that holds every answer back until it is let go. It stops when it is dropped.
struct Source {
    url: String,
    asked: Arc<Notify>,
    gate: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Source {
    async fn start() -> Self {
        let asked = Arc::new(Notify::new());
        let (gate, is_open) = watch::channel(false);
        let told = asked.clone();
        let answer = get(async move |Path(number): Path<String>| {
            told.notify_one();
            if is_open.clone().wait_for(|open| *open).await.is_err() {
                pending::<()>().await;
            }
            let persona = json!({
                "name": format!("persona of {number}"),
                "instructions": "You are a test.",
                "greeting": ITS_GREETING,
                "campaigns": [{ "_id": "campaign-2" }],
            });
            persona.to_string()
        });
        let router = Router::new().route("/persona/{number}", answer);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("the port");
        let task =
            tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self {
            url: format!("http://{address}/persona/{{number}}"),
            asked,
            gate,
            task,
        }
    }

    /// From now on it answers, also those who wait.
    fn answers(&self) {
        self.gate.send_replace(true);
    }

    /// A world whose personas are here; a caller waits for them for `timeout_ms`.
    async fn world(&self, timeout_ms: &str) -> World {
        let settings = [
            ("VOICEBOT__PERSONA__URL", self.url.as_str()),
            ("VOICEBOT__PERSONA__TIMEOUT_MS", timeout_ms),
            ("VOICEBOT__RECORDING__MODE", "local"),
        ];
        World::new(json!([]), &settings).await
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A telephone and the agent in a room, answered and recorded, and the agent does not know yet who
/// it is.
async fn answered(world: &World, source: &Source) -> LiveCaller {
    let caller = world.telephone_joins("early", "active", true).await;
    world
        .dispatch("early", json!({ "phone_number": PHONE }))
        .await;
    source.asked.notified().await;
    for event in ["answered", "recording"] {
        eventually(event, async || {
            let line = format!("\"event\":\"{event}\"");
            world.journal().contains(&line).then_some(())
        })
        .await;
    }
    caller
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_is_answered_and_recorded_before_it_is_known_who_the_agent_is() {
    let source = Source::start().await;
    let world = source.world("15000").await;
    let worker = world.worker().await;
    let mut caller = answered(&world, &source).await;
    assert_eq!(caller.seen().state(), "", "the agent has begun");
    caller.write("Is anybody there?").await;
    source.answers();
    caller.agent_has_said(1).await;
    eventually("the words that were typed", async || {
        world.journal().contains("Is anybody there?").then_some(())
    })
    .await;
    caller.hang_up().await;

    let call = &world.delivered(1).await[0];
    let number = PHONE.trim_start_matches('+');
    assert_eq!(call.record["persona"], format!("persona of {number}"));
    assert_eq!(call.call["campaignId"], "campaign-2");
    assert!(call.recording.is_some(), "the CRM got no recording");
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_who_hangs_up_before_the_agent_speaks_is_noticed_at_once() {
    let source = Source::start().await;
    let world = source.world("15000").await;
    let worker = world.worker().await;
    answered(&world, &source).await.hang_up().await;
    eventually("end of the call", async || {
        world.log().contains("\"the call ended\"").then_some(())
    })
    .await;
    // The record waits a moment longer for its campaign.
    source.answers();

    let call = &world.delivered(1).await[0];
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    assert_eq!(call.call["campaignId"], "campaign-2");
    assert_eq!(call.transcript(), [""; 0], "nobody has said anything");
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_that_never_answers_leaves_the_caller_with_the_default_persona() {
    let source = Source::start().await;
    let world = source.world("500").await;
    let worker = world.worker().await;
    let mut caller = answered(&world, &source).await;
    caller.agent_has_said(1).await;
    caller.hang_up().await;

    let call = &world.delivered(1).await[0];
    assert_eq!(call.record["persona"], "tester");
    assert_eq!(call.call["campaignId"], "campaign-1");
    assert_eq!(call.transcript(), [format!("assistant: {GREETING}")]);
    let log = world.log();
    assert!(log.contains("persona.timeout_ms"), "{log}");
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn persona_is_asked_for_with_the_dispatch_and_not_only_with_the_answer() {
    let source = Source::start().await;
    let world = source.world("500").await;
    let worker = world.worker().await;
    world
        .dispatch("ahead", json!({ "phone_number": PHONE }))
        .await;
    source.asked.notified().await;
    assert!(!world.journal().contains("\"event\":\"answered\""));
    source.answers();
    let mut caller = world.telephone_joins("ahead", "active", true).await;
    caller.agent_has_said(1).await;
    caller.hang_up().await;

    let call = &world.delivered(1).await[0];
    assert_eq!(
        call.transcript(),
        [format!("assistant: {ITS_GREETING}")],
        "the source had time until the answer"
    );
    world.nothing_is_left(worker).await;
}
