//! Anthropic's and Gemini's models against a service on a real socket: what goes out, what comes
//! in, and every way to refuse. Their readers of streams have tests of their own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use voicebot::providers::llm::{
    ChatChunk, ChatMessage, ChatRequest, CutShort, ToolCall, ToolChoice,
};
use voicebot::providers::{ProviderError, Providers, ProvidersConfig, build, http_client};
use voicebot::tools::ToolDefinition;

use crate::support::openai::{Behaviour, FakeService};

/// A variable that is set while tests run; its value is the key.
const KEY: &str = "CARGO_PKG_NAME";

const ANTHROPIC: &str = "anthropic";
const GEMINI: &str = "gemini";

/// The model of an entry in `[[providers.llm]]` with these keys.
fn model(address: &str, vendor: &str, more: Value) -> Result<Providers, ProviderError> {
    let mut entry = json!({
        "vendor": vendor, "base_url": address, "api_key_variable": KEY, "model": "gemini-3-flash", "temperature": 0.5,
    });
    let more = more.as_object().expect("an object").clone();
    entry.as_object_mut().expect("an object").extend(more);
    let config: ProvidersConfig = serde_json::from_value(
        json!({ "llm": [entry], "openai_base_url": "http://127.0.0.1:1/v1" }),
    )
    .expect("the settings are right");
    build(&config, http_client().expect("a client"))
}

fn providers(service: &FakeService, vendor: &str, more: Value) -> Providers {
    let address = format!("http://{}", service.address);
    model(&address, vendor, more).expect("a key is set")
}

fn history(call_id: &str) -> Vec<ChatMessage> {
    let call = ToolCall {
        id: call_id.to_owned(),
        name: "book".to_owned(),
        arguments: r#"{"day":"Friday"}"#.to_owned(),
    };
    vec![
        ChatMessage::System("Be brief.".to_owned()),
        ChatMessage::User("Book me in.".to_owned()),
        ChatMessage::Assistant {
            text: "One moment.".to_owned(),
            tool_calls: vec![call],
        },
        ChatMessage::Tool {
            call_id: call_id.to_owned(),
            output: "booked".to_owned(),
        },
    ]
}

fn request(messages: Vec<ChatMessage>) -> ChatRequest {
    ChatRequest {
        messages,
        tools: vec![ToolDefinition {
            name: "book".to_owned(),
            description: "Books a visit.".to_owned(),
            parameters: json!({ "type": "object" }),
        }],
        tool_choice: ToolChoice::Auto,
    }
}

async fn ask(providers: &Providers, request: ChatRequest) -> Result<Vec<ChatChunk>, ProviderError> {
    let mut answer = providers.llm.chat(request).await?;
    let mut chunks = Vec::new();
    while let Some(chunk) = answer.next().await {
        chunks.push(chunk?);
    }
    Ok(chunks)
}

fn stream(events: &[Value]) -> Behaviour {
    let events: String = events
        .iter()
        .map(|event| format!("data: {event}\n\n"))
        .collect();
    Behaviour::Answer {
        media_type: "text/event-stream",
        body: events.into(),
        piece: 50,
    }
}

/// "Yes." in the vendor's words.
fn yes(vendor: &str) -> Behaviour {
    match vendor {
        ANTHROPIC => stream(&[
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "Yes." } }),
            json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn" } }),
            json!({ "type": "message_stop" }),
        ]),
        _ => stream(&[
            json!({ "candidates": [{ "content": { "parts": [{ "text": "Yes." }] }, "finishReason": "STOP" }] }),
        ]),
    }
}

fn refusal(status: u16, retry_after: Option<&'static str>, body: Value) -> Behaviour {
    Behaviour::Refuse {
        status,
        headers: retry_after
            .map(|wait| ("retry-after", wait))
            .into_iter()
            .collect(),
        body: body.to_string().leak(),
    }
}

#[tokio::test]
async fn anthropic_is_asked_as_it_wants_it() {
    let service = FakeService::start(yes(ANTHROPIC)).await;
    let llm = providers(&service, ANTHROPIC, json!({ "max_tokens": 99 }));
    assert_eq!(llm.llm.name(), "anthropic/gemini-3-flash");
    let chunks = ask(&llm, request(history("t1"))).await.expect("an answer");
    assert_eq!(chunks, [ChatChunk::Text("Yes.".to_owned())]);
    let sent = &service.requests()[0];
    assert_eq!(sent.path, "/v1/messages");
    assert_eq!(sent.headers["anthropic-version"], "2023-06-01");
    assert_eq!(
        sent.headers["x-api-key"],
        std::env::var(KEY).expect("it is set")
    );
    assert_eq!(
        sent.json(),
        json!({
            "model": "gemini-3-flash",
            "max_tokens": 99,
            "stream": true,
            "temperature": 0.5,
            "system": [{ "type": "text", "text": "Be brief.", "cache_control": { "type": "ephemeral" } }],
            "messages": [
                { "role": "user", "content": [{ "type": "text", "text": "Book me in." }] },
                { "role": "assistant", "content": [
                    { "type": "text", "text": "One moment." },
                    { "type": "tool_use", "id": "t1", "name": "book", "input": { "day": "Friday" } },
                ] },
                { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t1", "content": "booked" }] },
            ],
            "tools": [{ "name": "book", "description": "Books a visit.", "input_schema": { "type": "object" } }],
            "tool_choice": { "type": "auto" },
        })
    );
}

#[tokio::test]
async fn gemini_is_asked_as_it_wants_it_and_gets_its_signatures_back() {
    let signed = json!({ "functionCall": { "id": "f1", "name": "book", "args": {} }, "thoughtSignature": "c2ln" });
    let calls = stream(&[
        json!({ "candidates": [{ "content": { "parts": [signed] }, "finishReason": "STOP" }] }),
    ]);
    let count = AtomicUsize::new(0);
    let service = FakeService::start_with(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        0 => calls.clone(),
        2 => refusal(
            400,
            None,
            json!({ "error": { "message": "Corrupted thought signature." } }),
        ),
        _ => yes(GEMINI),
    })
    .await;
    let llm = providers(
        &service,
        GEMINI,
        json!({ "max_tokens": 99, "thinking_level": "low" }),
    );
    let first = request(vec![ChatMessage::User("Book me in.".to_owned())]);
    let chunks = ask(&llm, first).await.expect("an answer");
    assert!(
        matches!(&chunks[..], [ChatChunk::ToolCall(call)] if call.id == "f1"),
        "{chunks:?}"
    );
    // The second time the service does not know the signature any more.
    for _ in 0..2 {
        let chunks = ask(&llm, request(history("f1"))).await.expect("an answer");
        assert_eq!(chunks, [ChatChunk::Text("Yes.".to_owned())]);
    }
    let sent = &service.requests()[1];
    assert_eq!(
        sent.path,
        "/v1beta/models/gemini-3-flash:streamGenerateContent"
    );
    assert_eq!(sent.query, "alt=sse");
    assert_eq!(
        sent.headers["x-goog-api-key"],
        std::env::var(KEY).expect("it is set")
    );
    let call = json!({ "id": "f1", "name": "book", "args": { "day": "Friday" } });
    assert_eq!(
        sent.json(),
        json!({
            "contents": [
                { "role": "user", "parts": [{ "text": "Book me in." }] },
                { "role": "model", "parts": [{ "text": "One moment." }, { "functionCall": call, "thoughtSignature": "c2ln" }] },
                { "role": "user", "parts": [{ "functionResponse": { "id": "f1", "name": "book", "response": { "output": "booked" } } }] },
            ],
            "systemInstruction": { "parts": [{ "text": "Be brief." }] },
            "tools": [{ "functionDeclarations": [{ "name": "book", "description": "Books a visit.", "parametersJsonSchema": { "type": "object" } }] }],
            "toolConfig": { "functionCallingConfig": { "mode": "AUTO" } },
            "generationConfig": { "temperature": 0.5, "maxOutputTokens": 99, "thinkingConfig": { "thinkingLevel": "low" } },
        })
    );
    let signature = |at: usize| {
        let body = service.requests()[at].json();
        body["contents"][1]["parts"][1]["thoughtSignature"].clone()
    };
    assert_eq!(signature(2), "c2ln");
    assert_eq!(signature(3), "skip_thought_signature_validator");
}

#[tokio::test]
async fn whether_tools_are_used_is_told_in_each_vendors_words() {
    let user = || vec![ChatMessage::User("Hello.".to_owned())];
    for (vendor, place, names) in [
        (ANTHROPIC, "/tool_choice/type", ["auto", "any", "none"]),
        (
            GEMINI,
            "/toolConfig/functionCallingConfig/mode",
            ["AUTO", "ANY", "NONE"],
        ),
    ] {
        let service = FakeService::start(yes(vendor)).await;
        for (setting, messages, asked, expected) in [
            ("auto", user(), ToolChoice::Auto, 0),
            ("required", user(), ToolChoice::Auto, 1),
            // It has used one.
            ("required", history("t"), ToolChoice::Auto, 0),
            ("required", user(), ToolChoice::None, 2),
            ("none", user(), ToolChoice::Auto, 2),
        ] {
            let llm = providers(&service, vendor, json!({ "tool_choice": setting }));
            let request = ChatRequest {
                tool_choice: asked,
                ..request(messages)
            };
            ask(&llm, request).await.expect("an answer");
            let body = service.requests().last().expect("a request").json();
            assert_eq!(
                body.pointer(place),
                Some(&json!(names[expected])),
                "{vendor} {setting}"
            );
        }
    }
}

enum Kind {
    Temporary(Option<u64>),
    Config,
    BadInput,
}

#[tokio::test]
async fn a_refusal_says_whether_to_wait_to_give_up_or_to_change_something() {
    use Kind::{BadInput, Config, Temporary};
    let said = |kind: &str| json!({ "type": "error", "error": { "type": kind, "message": "M." } });
    let google = |status: &str, message: &str| json!({ "error": { "code": 0, "message": message, "status": status } });
    let mut exhausted = google("RESOURCE_EXHAUSTED", "M.");
    exhausted["error"]["details"] =
        json!([{ "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.2s" }]);
    for (vendor, status, retry_after, body, expected) in [
        (ANTHROPIC, 401, None, said("authentication_error"), Config),
        (ANTHROPIC, 403, None, said("permission_error"), Config),
        (ANTHROPIC, 404, None, said("not_found_error"), Config),
        (
            ANTHROPIC,
            400,
            None,
            said("invalid_request_error"),
            BadInput,
        ),
        (ANTHROPIC, 413, None, said("request_too_large"), BadInput),
        (
            ANTHROPIC,
            429,
            Some("7"),
            said("rate_limit_error"),
            Temporary(Some(7)),
        ),
        (
            ANTHROPIC,
            429,
            None,
            said("rate_limit_error"),
            Temporary(None),
        ),
        (ANTHROPIC, 500, None, said("api_error"), Temporary(None)),
        (
            ANTHROPIC,
            529,
            Some("3"),
            said("overloaded_error"),
            Temporary(Some(3)),
        ),
        (
            GEMINI,
            400,
            None,
            google(
                "INVALID_ARGUMENT",
                "API key not valid. Please pass a valid API key.",
            ),
            Config,
        ),
        (
            GEMINI,
            400,
            None,
            google("INVALID_ARGUMENT", "M."),
            BadInput,
        ),
        (GEMINI, 403, None, google("PERMISSION_DENIED", "M."), Config),
        (GEMINI, 404, None, google("NOT_FOUND", "M."), Config),
        (GEMINI, 429, None, exhausted.clone(), Temporary(Some(34))),
        (GEMINI, 429, Some("5"), exhausted, Temporary(Some(5))),
        (GEMINI, 500, None, google("INTERNAL", "M."), Temporary(None)),
        (GEMINI, 503, None, json!("busy"), Temporary(None)),
    ] {
        let service = FakeService::start(refusal(status, retry_after, body)).await;
        let llm = providers(&service, vendor, json!({}));
        let error = ask(&llm, request(history("t")))
            .await
            .expect_err("it refuses");
        let message = error.to_string();
        assert!(message.contains(&service.address.to_string()), "{message}");
        match (&expected, &error) {
            (Temporary(expected), ProviderError::Temporary { retry_after, .. }) => {
                assert_eq!(
                    retry_after.map(|wait| wait.as_secs()),
                    *expected,
                    "{message}"
                );
            }
            (Config, ProviderError::Config { .. }) | (BadInput, ProviderError::BadInput { .. }) => {
            }
            _ => panic!("{vendor} {status} is {error:?}"),
        }
        let is_about_key = matches!(status, 401 | 403) || message.contains("API key");
        assert_eq!(
            message.contains(KEY),
            is_about_key || vendor == GEMINI && status == 400 && matches!(expected, Config),
            "{message}"
        );
        assert_eq!(service.requests().len(), 1, "{vendor} {status}");
    }
}

#[tokio::test]
async fn a_model_without_temperature_is_asked_once_with_it() {
    let service = FakeService::start_with(|request| match request.json().get("temperature") {
        Some(_) => refusal(
            400,
            None,
            json!({ "type": "error", "error": { "type": "invalid_request_error", "message": "temperature: not supported by this model" } }),
        ),
        None => yes(ANTHROPIC),
    })
    .await;
    let llm = providers(&service, ANTHROPIC, json!({}));
    for _ in 0..2 {
        ask(&llm, request(history("t"))).await.expect("an answer");
    }
    assert_eq!(service.requests().len(), 3);
}

#[tokio::test]
async fn a_stream_that_stops_breaks_or_is_refused_in_the_middle_is_an_error_and_a_filter_is_an_answer()
 {
    let cut = CutShort::Filter("SAFETY".to_owned());
    let filtered = stream(&[json!({ "promptFeedback": { "blockReason": "SAFETY" } })]);
    let service = FakeService::start(filtered).await;
    let chunks = ask(
        &providers(&service, GEMINI, json!({})),
        request(history("t")),
    )
    .await;
    assert_eq!(chunks, Ok(vec![ChatChunk::CutShort(cut)]));
    for (vendor, first) in [
        (
            ANTHROPIC,
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "We op" } }),
        ),
        (
            GEMINI,
            json!({ "candidates": [{ "content": { "parts": [{ "text": "We op" }] } }] }),
        ),
    ] {
        let body = format!("data: {first}\n\n");
        let refused = match vendor {
            ANTHROPIC => {
                json!({ "type": "error", "error": { "type": "overloaded_error", "message": "Overloaded" } })
            }
            _ => {
                json!({ "error": { "code": 503, "message": "Overloaded", "status": "UNAVAILABLE" } })
            }
        };
        let media_type = "text/event-stream";
        let broken = Behaviour::Break {
            media_type,
            body: body.clone().into(),
        };
        for behaviour in [broken, stream(&[first, refused])] {
            let service = FakeService::start(behaviour).await;
            let llm = providers(&service, vendor, json!({}));
            let mut answer = llm
                .llm
                .chat(request(history("t")))
                .await
                .expect("it begins");
            assert_eq!(
                answer.next().await,
                Some(Ok(ChatChunk::Text("We op".to_owned())))
            );
            let error = answer
                .next()
                .await
                .expect("an end")
                .expect_err("no good one");
            assert!(error.is_temporary(), "{error}");
            assert!(
                error.to_string().contains(&service.address.to_string()),
                "{error}"
            );
        }
        // The end is told, but the connection stays open.
        let Behaviour::Answer { body, .. } = yes(vendor) else {
            unreachable!()
        };
        let body = String::from_utf8(body)
            .expect("UTF-8")
            .replace("data: {\"type\":\"message_stop\"}\n\n", "");
        let service = FakeService::start(Behaviour::Stall {
            media_type,
            body: body.into(),
        })
        .await;
        let llm = providers(&service, vendor, json!({}));
        let answer =
            tokio::time::timeout(Duration::from_secs(20), ask(&llm, request(history("t"))));
        assert_eq!(
            answer.await.expect("no hang"),
            Ok(vec![ChatChunk::Text("Yes.".to_owned())])
        );
    }
}

#[tokio::test]
async fn a_key_that_is_not_set_and_an_address_that_is_none_are_named() {
    for (more, expected) in [
        (
            json!({ "api_key_variable": "A_KEY_THAT_NOBODY_HAS" }),
            "A_KEY_THAT_NOBODY_HAS is not set",
        ),
        (
            json!({ "base_url": "nowhere" }),
            "base_url \"nowhere\" is no address",
        ),
    ] {
        for vendor in [ANTHROPIC, GEMINI] {
            let error = model("http://127.0.0.1:1", vendor, more.clone())
                .err()
                .expect("it is wrong");
            assert!(error.to_string().contains(expected), "{error}");
            assert!(matches!(error, ProviderError::Config { .. }));
        }
    }
}
