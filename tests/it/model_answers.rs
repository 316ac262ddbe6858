//! What the caller hears when a model answers in one of the many shapes that models and their
//! servers have: whole conversations through the OpenAI-compatible provider and a socket. The
//! inputs lie in `tests/fixtures/cases`, one folder a case.

use std::path::Path;

use futures_util::future::join_all;
use serde_json::{Value, json};
use voicebot::providers::scripted::{Script, Scripted};
use voicebot::providers::{Providers, ProvidersConfig, build, http_client};
use voicebot::tools::CallRequest;
use voicebot::voice::{VoiceCommand, VoiceConfig, VoiceEnd};

use crate::support::caller::Call;
use crate::support::openai::{Behaviour, FakeService, Request};

const PRICE: &str = "The small pump costs two hundred euros.";
const DONE: &str = "It is done.";

fn case(name: &str, file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/cases")
        .join(name)
        .join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn stream(body: impl Into<Vec<u8>>) -> Behaviour {
    Behaviour::Answer {
        media_type: "text/event-stream",
        body: body.into(),
        piece: 200,
    }
}

fn words(text: &str) -> Behaviour {
    let event = json!({ "choices": [{ "delta": { "content": text }, "finish_reason": "stop" }] });
    stream(format!("data: {event}\n\ndata: [DONE]\n\n"))
}

/// The case's HTTP answer: a status line, headers and an empty line, the body.
fn refusal(name: &str) -> Behaviour {
    let answer = case(name, "answer.http");
    let status = answer
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status");
    let (_, body) = answer.split_once("\n\n").expect("a body");
    Behaviour::Refuse {
        status,
        headers: vec![("content-type", "application/json")],
        body: body.trim().to_owned().leak(),
    }
}

fn roles(request: &Request) -> Vec<String> {
    let body = request.json();
    let messages = body["messages"].as_array().expect("messages");
    let role = |message: &Value| message["role"].as_str().expect("a role").to_owned();
    messages.iter().map(role).collect()
}

/// Time enough for a busy machine: what is tested here is what is said, not when.
fn patient() -> VoiceConfig {
    let mut config = VoiceConfig::default();
    config.turn.no_reply_timeout_ms = 50_000;
    config.turn.max_thinking_ms = 100_000;
    config.turn.ask_after_ms = 0;
    config.turn.hang_up_after_ms = 0;
    config.limits.request_timeout_ms = 50_000;
    config.limits.first_chunk_timeout_ms = 50_000;
    config.limits.chunk_gap_timeout_ms = 50_000;
    config
}

fn providers(service: &FakeService) -> Providers {
    let config = ProvidersConfig {
        openai_base_url: service.base_url(),
        ..ProvidersConfig::default()
    };
    let real = build(&config, http_client().expect("a client")).expect("the settings are right");
    let script: Script =
        serde_json::from_value(json!({ "caller": [], "agent": [], "otherwise": "" }))
            .expect("a script");
    let scripted = std::sync::Arc::new(Scripted::new(script));
    Providers {
        stt: voicebot::providers::stt::Recogniser::requests(scripted.clone()),
        tts: scripted,
        ..real
    }
}

/// What is written to the agent.
async fn write(call: &Call, text: &str) {
    let text = VoiceCommand::UserText(text.to_owned());
    call.commands.send(text).await.expect("it listens");
}

/// One question, and what follows.
struct Heard {
    said: Vec<String>,
    tools: Vec<(String, Value)>,
    requests: usize,
    troubles: Vec<String>,
}

async fn ask(service: &FakeService) -> Heard {
    let call = Call::start(providers(service), None, patient());
    write(&call, "What does it cost?").await;
    call.agent_has_said(1).await;
    let tools = call.tools.calls.lock().unwrap().clone();
    let heard = Heard {
        said: call.transcript()[1..].to_vec(),
        tools: tools
            .into_iter()
            .map(|(name, arguments)| (name, serde_json::from_str(&arguments).expect("JSON")))
            .collect(),
        requests: service.requests().len(),
        troubles: call.troubles(),
    };
    call.commands
        .send(VoiceCommand::Stop)
        .await
        .expect("it listens");
    assert_eq!(call.end().await, VoiceEnd::Stopped);
    heard
}

#[tokio::test]
async fn the_caller_hears_words_and_nothing_else_whatever_the_shape_of_the_answer() {
    let lead = || {
        let lead = json!({ "name": "Asha Rao", "email": "asha.rao@example.com", "company": "Acme", "interest": "solar pumps" });
        ("create_lead".to_owned(), lead)
    };
    let intent = || {
        let intent = json!({ "intent": "buy_pump", "confidence": 0.9 });
        ("detect_intent".to_owned(), intent)
    };
    let say_again = VoiceConfig::default().lines.say_again;
    let cases = [
        (
            "two-calls-both-index-0",
            DONE,
            vec![intent(), lead()],
            2,
            "",
        ),
        ("index-left-out-in-pieces", DONE, vec![lead()], 2, ""),
        ("name-in-every-delta", DONE, vec![lead()], 2, ""),
        ("arguments-as-object", DONE, vec![lead()], 2, ""),
        ("arguments-encoded-twice", DONE, vec![lead()], 2, ""),
        ("arguments-in-a-fence", DONE, vec![lead()], 2, ""),
        ("tool-call-as-text-xml", DONE, vec![lead()], 2, ""),
        ("tool-call-as-text-json", DONE, vec![lead()], 2, ""),
        ("usage-with-null", PRICE, vec![], 1, ""),
        ("delta-null-in-the-last-event", PRICE, vec![], 1, ""),
        ("content-as-parts", PRICE, vec![], 1, ""),
        ("stream-ends-without-a-word", PRICE, vec![], 1, ""),
        ("think-tags", PRICE, vec![], 1, ""),
        ("empty-answer", &say_again, vec![], 2, "without a word"),
        (
            "content-filter",
            &say_again,
            vec![],
            1,
            "filter stopped it (content_filter)",
        ),
    ];
    let checks = cases.map(|(name, said, tools, requests, trouble)| async move {
        let service = FakeService::start_with(move |request| {
            match roles(request).last().map(String::as_str) {
                Some("tool") => words(DONE),
                _ => stream(case(name, "stream.sse")),
            }
        })
        .await;
        let heard = ask(&service).await;
        assert_eq!(heard.said, [format!("agent: {said}")], "{name}");
        assert_eq!(heard.tools, tools, "{name}");
        assert_eq!(heard.requests, requests, "{name}: {:?}", heard.troubles);
        let found = heard.troubles.iter().any(|known| known.contains(trouble));
        let as_expected = if trouble.is_empty() {
            heard.troubles.is_empty()
        } else {
            found
        };
        assert!(as_expected, "{name}: {:?}", heard.troubles);
    });
    join_all(checks).await;
}

#[tokio::test]
async fn a_model_that_wants_nothing_but_tools_is_stopped_and_the_caller_hears_something() {
    let service = FakeService::start(stream(case("tool-loop-without-end", "stream.sse"))).await;
    let heard = ask(&service).await;
    let lines = VoiceConfig::default().lines;
    let most = VoiceConfig::default().limits.max_tool_steps as usize;
    assert_eq!(heard.said, [format!("agent: {}", lines.say_again)]);
    assert_eq!((heard.tools.len(), heard.requests), (most, most + 1));
    assert!(
        heard
            .troubles
            .iter()
            .any(|trouble| trouble.contains("max_tool_steps")),
        "{:?}",
        heard.troubles
    );
    let offered: Vec<bool> = service
        .requests()
        .iter()
        .map(|request| request.json().get("tools").is_some())
        .collect();
    assert_eq!(offered, [true, true, true, false]);
}

#[tokio::test]
async fn a_server_that_refuses_an_option_is_asked_without_it_in_the_whole_call() {
    let service = FakeService::start_with(|request| {
        if request.json().get("stream_options").is_some() {
            refusal("stream-options-refused")
        } else {
            words(PRICE)
        }
    })
    .await;
    let call = Call::start(providers(&service), None, patient());
    for turn in [1, 2] {
        write(&call, "What does it cost?").await;
        call.agent_has_said(turn).await;
    }
    assert_eq!(call.transcript()[1], format!("agent: {PRICE}"));
    assert_eq!(call.transcript()[3], format!("agent: {PRICE}"));
    assert_eq!(service.requests().len(), 3, "refused once, answered twice");
    call.commands
        .send(VoiceCommand::Stop)
        .await
        .expect("it listens");
    call.end().await;
}

#[tokio::test]
async fn a_server_whose_roles_must_alternate_gets_them_so() {
    let service = FakeService::start_with(|request| {
        let roles = roles(request);
        let turns = roles[1..].iter().enumerate();
        let alternate = turns
            .into_iter()
            .all(|(at, role)| *role == ["user", "assistant"][at % 2]);
        if alternate {
            words(PRICE)
        } else {
            refusal("roles-must-alternate")
        }
    })
    .await;
    let call = Call::start(providers(&service), Some("Hello!"), patient());
    call.agent_has_said(1).await;
    for turn in [2, 3] {
        write(&call, "What does it cost?").await;
        call.agent_has_said(turn).await;
    }
    assert_eq!(call.transcript()[4], format!("agent: {PRICE}"));
    assert_eq!(service.requests().len(), 3, "refused once, answered twice");
    let system = service.requests()[2].json()["messages"][0]["content"].clone();
    assert!(
        system
            .as_str()
            .is_some_and(|system| system.contains("Hello!")),
        "{system}"
    );
    call.commands
        .send(VoiceCommand::Stop)
        .await
        .expect("it listens");
    call.end().await;
}

#[tokio::test]
async fn nobody_is_hung_up_on_without_a_word() {
    let end_call = r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"end_call","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}

data: [DONE]

"#;
    let after_tool = |answer: fn() -> Behaviour| {
        move |request: &Request| match roles(request).last().map(String::as_str) {
            Some("tool") => answer(),
            _ => stream(end_call),
        }
    };
    let own = "It was a pleasure. Goodbye!";
    let general = VoiceConfig::default().lines.goodbye;
    type AfterTool = fn() -> Behaviour;
    let cases: [(Option<&str>, AfterTool, &str, usize); 5] = [
        // The persona's own line needs no second request.
        (Some(own), || words("Not asked."), own, 1),
        (None, || words("Bye now!"), "Bye now!", 2),
        (None, || words(""), &general, 2),
        (
            None,
            || stream(case("content-filter", "stream.sse")),
            &general,
            2,
        ),
        (
            None,
            || stream(case("tool-loop-without-end", "stream.sse")),
            &general,
            2,
        ),
    ];
    let checks = cases.map(|(goodbye, answer, expected, requests)| async move {
        let service = FakeService::start_with(after_tool(answer)).await;
        let call = Call::start_with_goodbye(providers(&service), None, goodbye, patient());
        write(&call, "Goodbye.").await;
        call.agent_has_said(1).await;
        assert_eq!(call.transcript()[1..], [format!("agent: {expected}")]);
        assert_eq!(service.requests().len(), requests, "{expected}");
        assert_eq!(call.end().await, VoiceEnd::Requested(CallRequest::HangUp));
    });
    join_all(checks).await;
}

#[tokio::test]
async fn an_answer_that_runs_out_of_tokens_ends_at_a_sentence() {
    for (text, expected) in [
        (
            "We open at nine in the morning. The gates close at",
            "We open at nine in the morning.",
        ),
        ("The gates close at", "The gates close at"),
    ] {
        let event =
            json!({ "choices": [{ "delta": { "content": text }, "finish_reason": "length" }] });
        let service =
            FakeService::start(stream(format!("data: {event}\n\ndata: [DONE]\n\n"))).await;
        let heard = ask(&service).await;
        assert_eq!(heard.said, [format!("agent: {expected}")]);
        let is_told = heard.troubles.iter().any(|one| one.contains("max_tokens"));
        assert_eq!(is_told, text != expected, "{:?}", heard.troubles);
    }
}

#[tokio::test]
async fn the_model_is_given_as_much_of_the_conversation_as_fits() {
    let service = FakeService::start(words(PRICE)).await;
    let mut config = patient();
    config.limits.max_history_tokens = 1;
    let call = Call::start(providers(&service), None, config);
    for answered in 1..=3 {
        write(&call, "What does it cost?").await;
        call.agent_has_said(answered).await;
    }
    for request in service.requests() {
        assert_eq!(roles(&request), ["system", "user"]);
    }
    assert_eq!(call.transcript().len(), 6, "the record has all of it");
    call.commands
        .send(VoiceCommand::Stop)
        .await
        .expect("it listens");
    assert_eq!(call.end().await, VoiceEnd::Stopped);
}
