//! What each answered turn took and has cost: in the conversation file, summed in the record and
//! for the CRM, and shown.

use serde_json::{Value, json};

use crate::support::openai::{Behaviour, FakeService, Request};
use crate::support::world::{SHORT_LINE, World};

/// The list has a model that is down, then one that works.
const SETTINGS: &str = r#"
[[providers.llm]]
vendor = "openai"
model = "first-model"
[[providers.llm]]
vendor = "openai"
model = "second-model"
"#;

const CHAT: &str = r#"data: {"choices":[{"index":0,"delta":{"content":"Yes."},"finish_reason":"stop"}]}

data: {"choices":[],"usage":{"prompt_tokens":70,"completion_tokens":3}}

data: [DONE]

"#;

fn answer(media_type: &'static str, body: impl Into<Vec<u8>>) -> Behaviour {
    Behaviour::Answer {
        media_type,
        body: body.into(),
        piece: 4_096,
    }
}

fn service(request: &Request) -> Behaviour {
    match request.path.as_str() {
        "/v1/audio/transcriptions" => answer("application/json", r#"{"text":"Some words."}"#),
        "/v1/audio/speech" => {
            // Half a second of a hum, 24 kHz.
            let hum = |at: u32| {
                if (at / 100).is_multiple_of(2) {
                    8_000i16
                } else {
                    -8_000
                }
            };
            let sound: Vec<u8> = (0..12_000).flat_map(|at| hum(at).to_le_bytes()).collect();
            answer("audio/pcm", sound)
        }
        _ if request.json()["model"] == "first-model" => Behaviour::Refuse {
            status: 503,
            headers: Vec::new(),
            body: "down",
        },
        _ => answer("text/event-stream", CHAT),
    }
}

/// What did not happen is left out.
fn number(value: &Value) -> u64 {
    match value {
        Value::Null => 0,
        value => value
            .as_u64()
            .unwrap_or_else(|| panic!("{value} is no count")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answered_turn_is_in_the_record_with_what_it_took_and_cost() {
    let service = FakeService::start_with(service).await;
    let settings = [
        ("VOICEBOT__PROVIDERS__VENDOR", "openai"),
        ("OPENAI_BASE_URL", &*service.base_url()),
        ("OPENAI_API_KEY", "sk-test"),
        ("VOICEBOT_CONFIG", "list.toml"),
    ];
    let world = World::with(json!([]), &settings, |_, data| {
        std::fs::write(data.join("list.toml"), SETTINGS).expect("the settings");
    })
    .await;
    let worker = world.worker().await;
    let mut caller = world.call("turns").await;
    caller.ask(SHORT_LINE).await;
    caller.ask(SHORT_LINE).await;
    caller.hang_up().await;

    let call = &world.delivered(1).await[0];
    let turns = call.conversation["turns"].as_array().expect("turns");
    assert_eq!(turns.len(), 2, "{turns:#?}");
    for (at, turn) in turns.iter().enumerate() {
        assert_eq!(number(&turn["turn"]), at as u64 + 1);
        let ms = |stage: &str| turn[stage].as_u64().expect(stage);
        assert!(ms("final_text_ms") <= ms("end_of_turn_ms"), "{turn:#}");
        assert!(ms("end_of_turn_ms") <= ms("first_frame_ms"), "{turn:#}");
        assert!(ms("first_token_ms") <= ms("first_byte_ms"), "{turn:#}");
        assert!(ms("first_byte_ms") <= ms("first_frame_ms"), "{turn:#}");
        let vendor = |stage: &str| turn["vendors"][stage].as_str().expect("a vendor");
        assert!(vendor("llm").contains("second-model"), "{turn:#}");
        assert!(!vendor("stt").is_empty() && !vendor("tts").is_empty());
        let usage = &turn["usage"];
        assert!(number(&usage["llm_prompt_tokens"]) >= 70, "{turn:#}");
        assert!(number(&usage["llm_completion_tokens"]) >= 3, "{turn:#}");
        assert!(number(&usage["stt_audio_ms"]) > 500, "{turn:#}");
        assert!(number(&usage["tts_characters"]) >= 4, "{turn:#}");
    }
    assert!(number(&turns[0]["usage"]["llm_fallbacks"]) >= 1);

    let usage = &call.record["usage"];
    for field in ["llm_fallbacks", "llm_requests", "stt_audio_ms"] {
        let turns = turns.iter().map(|turn| number(&turn["usage"][field]));
        let sum: u64 = turns.sum();
        assert!(number(&usage[field]) >= sum, "{field}: {usage:#}");
    }
    // The greeting is no turn, and is paid for.
    assert!(number(&usage["tts_requests"]) >= 3);
    assert_eq!(call.call["usage"], *usage, "the CRM has the sums");

    let session = call.record["session_id"].as_str().expect("an id");
    let shown = world.program(&["calls", "show", session]).output().await;
    let shown = String::from_utf8(shown.expect("it runs").stdout).expect("text");
    let lines: Vec<&str> = shown
        .lines()
        .filter(|line| line.contains("turn answered"))
        .collect();
    assert_eq!(lines.len(), 2, "{shown}");
    assert!(lines[0].contains("1: after text "), "{shown}");
    assert!(lines[0].contains("second-model"), "{shown}");
    assert!(lines[0].contains("1 fallbacks"), "{shown}");
    world.nothing_is_left(worker).await;
}
