//! Servers that a call needs are down: the caller is told if that is possible, and the record says
//! why.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::crm::FakeCrm;
use crate::support::world::{GREETING, SHORT_LINE, World, eventually, files, read_json};

const APOLOGY: &str = "Sorry.";

/// An OpenAI-compatible service, some of whose parts answer 500 to everything. It stops when it is
/// dropped.
struct Service {
    url: String,
    task: JoinHandle<()>,
}

impl Service {
    async fn start(broken: &'static str) -> Self {
        Self::answering(broken, StatusCode::INTERNAL_SERVER_ERROR).await
    }

    async fn answering(broken: &'static str, status: StatusCode) -> Self {
        let answer = |part: &'static str, body: Vec<u8>| {
            post(move || async move {
                if part == broken {
                    Err((status, "out of order"))
                } else {
                    Ok(body)
                }
            })
        };
        // Half a second of a hum, 24 kHz.
        let speech = (0..12_000u32).flat_map(|at| {
            (if (at / 100).is_multiple_of(2) {
                8_000i16
            } else {
                -8_000
            })
            .to_le_bytes()
        });
        let router = Router::new()
            .route(
                "/v1/audio/transcriptions",
                answer("stt", br#"{"text":"Some words."}"#.to_vec()),
            )
            .route("/v1/chat/completions", answer("llm", Vec::new()))
            .route("/v1/audio/speech", answer("tts", speech.collect()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/v1", listener.local_addr().expect("the port"));
        let task =
            tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { url, task }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn world(service: &Service) -> World {
    let settings = [
        ("VOICEBOT__PROVIDERS__VENDOR", "openai"),
        ("OPENAI_BASE_URL", &service.url),
        ("OPENAI_API_KEY", "sk-test"),
        ("VOICEBOT__VOICE__LIMITS__MAX_RETRIES", "0"),
        ("VOICEBOT__VOICE__TURN__MAX_FAILURES", "1"),
        ("VOICEBOT__VOICE__LINES__APOLOGY", APOLOGY),
    ];
    World::new(json!([]), &settings).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_stays_down_and_the_agent_apologises_and_hangs_up() {
    let service = Service::start("llm").await;
    let world = world(&service).await;
    let worker = world.worker().await;
    let mut caller = world.call("no model").await;
    let before = caller.seen().loud_frames;
    caller.say(SHORT_LINE).await;
    let seen = caller.hung_up_on().await;
    assert!(seen.loud_frames >= before + 10, "the apology was not heard");

    let call = &world.delivered(1).await[0];
    call.ended("failed", "error", Some("LLM_FAILED"));
    let error = call.record["outcome"]["error"].as_str().unwrap_or_default();
    assert!(error.contains("llm") && error.contains("500"), "{error}");
    assert_eq!(
        call.transcript(),
        [
            format!("assistant: {GREETING}"),
            "user: Some words.".into(),
            format!("assistant: {APOLOGY}")
        ]
    );
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_without_a_voice_hangs_up_and_the_record_says_why() {
    let service = Service::start("tts").await;
    let world = world(&service).await;
    let worker = world.worker().await;
    let mut caller = world.caller("no voice").await;
    world.dispatch("no voice", serde_json::Value::Null).await;
    caller.hung_up_on().await;

    let call = &world.delivered(1).await[0];
    call.ended("failed", "error", Some("TTS_FAILED"));
    let error = call.record["outcome"]["error"].as_str().unwrap_or_default();
    assert!(error.contains("tts") && error.contains("500"), "{error}");
    assert_eq!(call.transcript(), [""; 0], "nobody heard anything");
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recogniser_refuses_every_request_and_the_call_has_failed() {
    let service = Service::answering("stt", StatusCode::BAD_REQUEST).await;
    let world = world(&service).await;
    let worker = world.worker().await;
    let mut caller = world.call("deaf").await;
    let before = caller.seen().loud_frames;
    caller.say(SHORT_LINE).await;
    let seen = caller.hung_up_on().await;
    assert!(seen.loud_frames >= before + 10, "the apology was not heard");

    let call = &world.delivered(1).await[0];
    call.ended("failed", "error", Some("STT_FAILED"));
    let error = call.record["outcome"]["error"].as_str().unwrap_or_default();
    assert!(error.contains("stt") && error.contains("400"), "{error}");
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_waits_for_a_crm_that_is_down() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!(
        "http://{}/api/public",
        listener.local_addr().expect("the port")
    );
    let settings = [
        ("CRM_BASE_URL", &*address),
        ("VOICEBOT__UPLOAD__MAX_BACKOFF_S", "1"),
    ];
    let world = World::new(json!([]), &settings).await;
    let worker = world.worker().await;
    let mut caller = world.call("no crm").await;
    // Takes connections and answers nothing.
    let down = async {
        loop {
            drop(listener.accept().await);
        }
    };
    let hang_up = async {
        caller.ask(SHORT_LINE).await;
        caller.hang_up().await;
        eventually("failed delivery", async || {
            let waiting = files(&world.data().join("call_metadata"), "json");
            let record = read_json(waiting.first()?);
            record["uploads"]["call_data"]["last_error"]
                .as_str()
                .map(str::to_owned)
        })
        .await
    };
    let error = tokio::select! {
        () = down => unreachable!(),
        error = hang_up => error,
    };
    assert!(
        error.contains("127.0.0.1"),
        "the error names the host: {error}"
    );

    let mut world = world;
    world.crm = FakeCrm::on(listener);
    let call = &world.delivered(1).await[0];
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    world.nothing_is_left(worker).await;
}
