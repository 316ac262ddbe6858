//! The OpenAI-compatible providers against a service on a real socket: what goes out, what comes
//! in, and every way to fail.

use std::time::Duration;

use crate::support::openai::{Behaviour, FakeService};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::timeout;
use voicebot::providers::llm::{
    ChatChunk, ChatMessage, ChatOption, ChatRequest, CutShort, TokenUsage, ToolCall, ToolChoice,
};
use voicebot::providers::stt::{SpeechSegment, Transcript, hear_once};
use voicebot::providers::tts::{SpeechPiece, SpeechRequest};
use voicebot::providers::{
    Language, ProviderError, Providers, ProvidersConfig, build, http_client,
};
use voicebot::tools::ToolDefinition;
use voicebot::voice::LimitsConfig;

const SSE: &str = "text/event-stream";

fn providers(service: &FakeService) -> Providers {
    let config = ProvidersConfig {
        openai_base_url: service.base_url(),
        stt_model: "hears".to_owned(),
        llm_model: "thinks".to_owned(),
        tts_model: "speaks".to_owned(),
        ..ProvidersConfig::default()
    };
    build(&config, http_client().expect("a client")).expect("the settings are right")
}

fn segment() -> SpeechSegment {
    SpeechSegment {
        samples: vec![1, -2, 3].into(),
        sample_rate_hz: 16_000,
        language: Language::read("en-IN").expect("a language"),
    }
}

/// The words in a stretch of speech; nothing is asked twice.
async fn hear(providers: &Providers, segment: SpeechSegment) -> Result<Transcript, ProviderError> {
    let limits = LimitsConfig {
        max_retries: 0,
        ..LimitsConfig::default()
    };
    hear_once(providers.stt.as_ref(), segment, limits).await
}

fn sound(piece: Result<SpeechPiece, ProviderError>) -> Vec<i16> {
    match piece.expect("sound") {
        SpeechPiece::Sound(samples) => samples,
        SpeechPiece::Words(words) => panic!("{words:?} without being asked"),
    }
}

fn question() -> ChatRequest {
    let call = ToolCall {
        id: "call_1".to_owned(),
        name: "create_lead".to_owned(),
        arguments: "{}".to_owned(),
    };
    ChatRequest {
        messages: vec![
            ChatMessage::System("Be brief.".to_owned()),
            ChatMessage::User("Hello".to_owned()),
            ChatMessage::Assistant {
                text: String::new(),
                tool_calls: vec![call],
            },
            ChatMessage::Tool {
                call_id: "call_1".to_owned(),
                output: "done".to_owned(),
            },
        ],
        tools: vec![ToolDefinition {
            name: "create_lead".to_owned(),
            description: "Takes a lead.".to_owned(),
            parameters: json!({ "type": "object" }),
        }],
        tool_choice: ToolChoice::Auto,
    }
}

fn sentence() -> SpeechRequest {
    SpeechRequest {
        text: "We open at nine.".to_owned(),
        voice: Some("nova".to_owned()),
        language: None,
    }
}

fn sse(events: &[Value]) -> Vec<u8> {
    let mut body: String = events
        .iter()
        .map(|event| format!("data: {event}\n\n"))
        .collect();
    body.push_str("data: [DONE]\n\n");
    body.into_bytes()
}

async fn ask(providers: &Providers) -> Result<Vec<ChatChunk>, ProviderError> {
    let mut stream = providers.llm.chat(question()).await?;
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.next().await {
        chunks.push(chunk?);
    }
    Ok(chunks)
}

#[tokio::test]
async fn speech_goes_out_as_a_wav_file_and_comes_back_as_words() {
    let service = FakeService::start(Behaviour::Answer {
        media_type: "application/json",
        body: br#"{"text": " What are your opening hours? "}"#.to_vec(),
        piece: 7,
    })
    .await;
    let transcript = hear(&providers(&service), segment())
        .await
        .expect("it understands");
    assert_eq!(
        transcript,
        Transcript {
            text: "What are your opening hours?".to_owned(),
            confidence: None
        }
    );
    let request = service.requests().pop().expect("one request");
    assert_eq!(request.path, "/v1/audio/transcriptions");
    let body = String::from_utf8_lossy(&request.body);
    for part in [
        "name=\"model\"\r\n\r\nhears",
        "name=\"response_format\"\r\n\r\njson",
        "name=\"language\"\r\n\r\nen",
        "audio/wav",
    ] {
        assert!(body.contains(part), "{part} is missing in {body}");
    }
    let wav = request
        .body
        .windows(4)
        .position(|window| window == b"RIFF")
        .expect("a WAV file");
    assert_eq!(request.body[wav + 44..wav + 50], [1, 0, 254, 255, 3, 0]);
}

#[tokio::test]
async fn the_history_goes_out_and_words_tools_and_usage_come_back_whatever_the_pieces() {
    let delta = |delta: Value| json!({ "choices": [{ "index": 0, "delta": delta }] });
    let body = sse(&[
        delta(json!({ "role": "assistant", "content": "" })),
        delta(json!({ "content": "We open " })),
        delta(json!({ "content": "at nün." })),
        delta(
            json!({ "tool_calls": [{ "index": 0, "id": "a", "function": { "name": "create_lead", "arguments": "" } }] }),
        ),
        delta(
            json!({ "tool_calls": [{ "index": 1, "id": "b", "function": { "name": "end_call", "arguments": "{}" } }] }),
        ),
        delta(json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "{\"name\":" } }] })),
        delta(json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "\"J\"}" } }] })),
        json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "tool_calls" }] }),
        json!({ "choices": [], "usage": { "prompt_tokens": 50, "completion_tokens": 20, "prompt_tokens_details": { "cached_tokens": 8 } } }),
    ]);
    for piece in [1, 3, 64, 100_000] {
        let service = FakeService::start(Behaviour::Answer {
            media_type: SSE,
            body: body.clone(),
            piece,
        })
        .await;
        let mut chunks = ask(&providers(&service)).await.expect("it answers");
        let usage = ChatChunk::Usage(TokenUsage {
            prompt: 50,
            prompt_cached: 8,
            completion: 20,
        });
        assert!(chunks.contains(&usage), "{chunks:?}");
        chunks.retain(|chunk| *chunk != usage);
        let call = |id: &str, name: &str, arguments: &str| {
            ChatChunk::ToolCall(ToolCall {
                id: id.to_owned(),
                name: name.to_owned(),
                arguments: arguments.to_owned(),
            })
        };
        assert_eq!(
            chunks,
            [
                ChatChunk::Text("We open ".to_owned()),
                ChatChunk::Text("at nün.".to_owned()),
                call("a", "create_lead", r#"{"name":"J"}"#),
                call("b", "end_call", "{}"),
            ]
        );
        let sent: Value = serde_json::from_slice(&service.requests()[0].body).expect("JSON");
        assert_eq!(
            (&sent["model"], &sent["stream"]),
            (&json!("thinks"), &json!(true))
        );
        assert_eq!(sent["stream_options"]["include_usage"], json!(true));
        assert_eq!(
            sent["messages"][2]["tool_calls"][0]["function"]["name"],
            json!("create_lead")
        );
        assert_eq!(
            sent["messages"][3],
            json!({ "role": "tool", "tool_call_id": "call_1", "content": "done" })
        );
        assert_eq!(
            sent["tools"][0]["function"]["parameters"],
            json!({ "type": "object" })
        );
    }
}

#[tokio::test]
async fn sound_comes_back_as_it_is_made() {
    let expected: Vec<i16> = (0..1_000).map(|n| n * 13 - 6_000).collect();
    let body: Vec<u8> = expected
        .iter()
        .flat_map(|sample| sample.to_le_bytes())
        .collect();
    for piece in [1, 333, 100_000] {
        let service = FakeService::start(Behaviour::Answer {
            media_type: "audio/pcm",
            body: body.clone(),
            piece,
        })
        .await;
        let tts = providers(&service).tts;
        assert_eq!(tts.sample_rate_hz(), 24_000);
        let stream = tts.synthesize(sentence()).await.expect("it speaks");
        let pieces: Vec<Vec<i16>> = stream.map(sound).collect().await;
        assert_eq!(pieces.concat(), expected);
        let sent: Value = serde_json::from_slice(&service.requests()[0].body).expect("JSON");
        assert_eq!(
            sent,
            json!({ "model": "speaks", "voice": "nova", "input": "We open at nine.", "response_format": "pcm" })
        );
    }
    // The first sound is there while the rest is still being made.
    let service = FakeService::start(Behaviour::Stall {
        media_type: "audio/pcm",
        body: vec![1, 0, 2, 0],
    })
    .await;
    let mut stream = providers(&service)
        .tts
        .synthesize(sentence())
        .await
        .expect("it speaks");
    let first = timeout(Duration::from_secs(5), stream.next())
        .await
        .expect("sound before the end");
    assert_eq!(sound(first.expect("sound")), [1, 2]);
}

#[tokio::test]
async fn every_refusal_says_what_to_do_about_it_and_names_the_host() {
    enum Kind {
        Temporary(Option<u64>),
        Config,
        BadInput,
    }
    let cases = [
        (401, vec![], "key", Kind::Config),
        (403, vec![], "key", Kind::Config),
        (
            404,
            vec![],
            r#"{"error": {"message": "no such model"}}"#,
            Kind::Config,
        ),
        (
            400,
            vec![],
            r#"{"error": {"message": "audio too short"}}"#,
            Kind::BadInput,
        ),
        (413, vec![], "<html>too large</html>", Kind::BadInput),
        (
            429,
            vec![("retry-after", "7")],
            "slow down",
            Kind::Temporary(Some(7)),
        ),
        (500, vec![], "", Kind::Temporary(None)),
        (
            503,
            vec![("retry-after", "soon")],
            "not now",
            Kind::Temporary(None),
        ),
    ];
    for (status, headers, body, kind) in cases {
        let service = FakeService::start(Behaviour::Refuse {
            status,
            headers,
            body,
        })
        .await;
        let providers = providers(&service);
        let errors = [
            hear(&providers, segment()).await.expect_err("it refuses"),
            providers
                .llm
                .chat(question())
                .await
                .err()
                .expect("it refuses"),
            providers
                .tts
                .synthesize(sentence())
                .await
                .err()
                .expect("it refuses"),
        ];
        for error in errors {
            let message = error.to_string();
            assert!(
                message.contains(&service.address.to_string()),
                "{status}: {message}"
            );
            match (&kind, &error) {
                (Kind::Temporary(expected), ProviderError::Temporary { retry_after, .. }) => {
                    assert_eq!(retry_after.map(|wait| wait.as_secs()), *expected);
                }
                (Kind::Config, ProviderError::Config { .. })
                | (Kind::BadInput, ProviderError::BadInput { .. }) => {}
                _ => panic!("{status} is {error:?}"),
            }
            if matches!(status, 401 | 403) {
                assert!(message.contains("OPENAI_API_KEY"), "{message}");
            }
        }
    }
}

#[tokio::test]
async fn nobody_at_the_address_is_temporary_and_named() {
    let service = FakeService::start(Behaviour::Refuse {
        status: 500,
        headers: vec![],
        body: "",
    })
    .await;
    let providers = providers(&service);
    let address = service.address.to_string();
    drop(service);
    let error = hear(&providers, segment())
        .await
        .expect_err("nobody is there");
    assert!(
        error.is_temporary() && error.to_string().contains(&address),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_no_answer_is_an_error() {
    let piece = b"data: {\"choices\":[{\"delta\":{\"content\":\"We op\"}}]}\n\n".to_vec();
    let bodies: &[(&str, &[u8])] = &[
        (SSE, b"data: {\"choices\": 7}\n\n"),
        (SSE, b"data: not json\n\n"),
        (SSE, b"data: {\"error\": {\"message\": \"overloaded\"}}\n\n"),
        (SSE, b"data: {\"choices\":[{\"delta\":{\"cont"),
        (SSE, b""),
        ("text/html", b"<html>welcome</html>"),
        ("application/json", b"{\"choices\": []}"),
    ];
    let answers = bodies.iter().map(|(media_type, body)| Behaviour::Answer {
        media_type,
        body: body.to_vec(),
        piece: 5,
    });
    let broken = Behaviour::Break {
        media_type: SSE,
        body: piece,
    };
    for behaviour in answers.chain([broken]) {
        let service = FakeService::start(behaviour.clone()).await;
        let answer = timeout(Duration::from_secs(5), ask(&providers(&service)))
            .await
            .expect("no hang");
        let error = answer.expect_err("it is no answer");
        assert!(
            error.is_temporary() && error.to_string().contains(&service.address.to_string()),
            "{behaviour:?}: {error}"
        );
    }
}

#[tokio::test]
async fn a_stream_that_just_ends_is_what_has_come_of_it() {
    let half = br#"data: {"choices":[{"delta":{"content":"We op"}}]}"#.to_vec();
    let whole = [half.clone(), b"\n\n".to_vec()].concat();
    let cut = [whole.clone(), b"data: {\"choices\":[{\"del".to_vec()].concat();
    // The connection breaks, or stays open, after the answer has said that it is complete.
    let done = br#"data: {"choices":[{"delta":{"content":"We op"},"finish_reason":"stop"}]}"#;
    let done = [done.to_vec(), b"\n\n".to_vec()].concat();
    let ends = [half, whole, cut].map(|body| Behaviour::Answer {
        media_type: SSE,
        body,
        piece: 10,
    });
    let broken = Behaviour::Break {
        media_type: SSE,
        body: done.clone(),
    };
    let open = Behaviour::Stall {
        media_type: SSE,
        body: done,
    };
    for behaviour in ends.into_iter().chain([broken, open]) {
        let service = FakeService::start(behaviour.clone()).await;
        let answer = timeout(Duration::from_secs(5), ask(&providers(&service)))
            .await
            .expect("no hang");
        assert_eq!(
            answer.expect("it is an answer"),
            [ChatChunk::Text("We op".to_owned())],
            "{behaviour:?}"
        );
    }
}

#[tokio::test]
async fn what_a_server_refuses_is_left_out_and_remembered() {
    let accepted =
        sse(&[json!({ "choices": [{ "delta": { "content": "Yes." }, "finish_reason": "stop" }] })]);
    // A server that takes nothing but messages of user and assistant in turns.
    let service = FakeService::start_with(move |request| {
        let body = request.json();
        let refuse = |status, body: &'static str| Behaviour::Refuse {
            status,
            headers: vec![],
            body,
        };
        let has = |key: &str| body.get(key).is_some();
        let roles: Vec<&str> = body["messages"]
            .as_array()
            .expect("messages")
            .iter()
            .map(|message| message["role"].as_str().expect("a role"))
            .collect();
        if has("stream_options") {
            refuse(422, r#"{"detail": [{"loc": ["body", "stream_options"], "msg": "no", "input": {"tools": 1}}]}"#)
        } else if has("max_completion_tokens") {
            refuse(400, r#"{"error": {"message": "Unknown parameter: 'max_completion_tokens'"}}"#)
        } else if has("temperature") {
            refuse(400, r#"{"error": {"message": "Unsupported value", "param": "temperature"}}"#)
        } else if has("tools") {
            refuse(400, r#"{"error": "the model does not support tools"}"#)
        } else if roles.contains(&"system") {
            refuse(500, r#"{"message": "System role not supported"}"#)
        } else if !roles.iter().enumerate().all(|(at, role)| *role == ["user", "assistant"][at % 2]) {
            refuse(500, r#"{"message": "Conversation roles must alternate user/assistant"}"#)
        } else {
            assert_eq!(body["max_tokens"], json!(50));
            Behaviour::Answer {
                media_type: SSE,
                body: accepted.clone(),
                piece: 1_000,
            }
        }
    })
    .await;
    let config = ProvidersConfig {
        openai_base_url: service.base_url(),
        llm_temperature: Some(0.5),
        llm_max_tokens: Some(50),
        ..ProvidersConfig::default()
    };
    let providers =
        build(&config, http_client().expect("a client")).expect("the settings are right");
    for requests in [7, 8] {
        assert_eq!(
            ask(&providers).await.expect("it answers"),
            [ChatChunk::Text("Yes.".to_owned())]
        );
        assert_eq!(
            service.requests().len(),
            requests,
            "each refusal costs one request, once"
        );
    }
    let messages = service.requests()[7].json()["messages"].clone();
    assert_eq!(
        messages,
        json!([{ "role": "user", "content": "Be brief.\n\nHello\n[done]" }])
    );
    // What the settings tell need not be found out.
    let service = FakeService::start(Behaviour::Answer {
        media_type: SSE,
        body: sse(&[]),
        piece: 1_000,
    })
    .await;
    let config = ProvidersConfig {
        openai_base_url: service.base_url(),
        llm_refuses: vec![ChatOption::StreamOptions],
        ..ProvidersConfig::default()
    };
    let providers =
        build(&config, http_client().expect("a client")).expect("the settings are right");
    ask(&providers).await.expect("it answers");
    assert!(service.requests()[0].json().get("stream_options").is_none());
}

#[tokio::test]
async fn a_refusal_that_is_about_something_else_is_passed_on() {
    let service = FakeService::start(Behaviour::Refuse {
        status: 400,
        headers: vec![],
        body: r#"{"error": {"message": "the context is too long", "param": "messages"}}"#,
    })
    .await;
    let error = ask(&providers(&service)).await.expect_err("it refuses");
    assert!(error.to_string().contains("too long"), "{error}");
    assert_eq!(service.requests().len(), 1);
}

#[tokio::test]
async fn a_request_that_a_filter_refuses_names_the_filter() {
    let service = FakeService::start(Behaviour::Refuse {
        status: 400,
        headers: vec![],
        body: r#"{"error": {"code": "content_filter", "message": "…", "innererror": {"content_filter_result": {"violence": {"filtered": true}}}}}"#,
    })
    .await;
    let filter = CutShort::Filter("content_filter: violence".to_owned());
    assert_eq!(
        ask(&providers(&service))
            .await
            .expect("an answer of its own"),
        [ChatChunk::CutShort(filter)]
    );
}

#[tokio::test]
async fn arguments_that_are_no_json_are_not_sent_back_to_the_server() {
    let service = FakeService::start(Behaviour::Answer {
        media_type: SSE,
        body: sse(&[]),
        piece: 1_000,
    })
    .await;
    let mut question = question();
    if let ChatMessage::Assistant { tool_calls, .. } = &mut question.messages[2] {
        tool_calls[0].arguments = "{\"name\": ".to_owned();
    }
    let _ = providers(&service)
        .llm
        .chat(question)
        .await
        .expect("it takes it");
    let sent = service.requests()[0].json();
    assert_eq!(
        sent["messages"][2]["tool_calls"][0]["function"]["arguments"],
        json!("{}")
    );
}

#[tokio::test]
async fn an_answer_without_the_last_marker_is_whole_when_the_model_has_finished() {
    let body = br#"data: {"choices":[{"delta":{"content":"Yes."},"finish_reason":"stop"}]}"#;
    let body = [body.to_vec(), b"\r\n\r\n".to_vec()].concat();
    let service = FakeService::start(Behaviour::Answer {
        media_type: SSE,
        body,
        piece: 9,
    })
    .await;
    assert_eq!(
        ask(&providers(&service)).await.expect("it answers"),
        [ChatChunk::Text("Yes.".to_owned())]
    );
}

#[tokio::test]
async fn json_instead_of_sound_is_not_played() {
    for (media_type, body) in [
        ("application/json", &b"{\"oops\": 1}"[..]),
        ("text/html; charset=utf-8", b"<html>"),
    ] {
        let service = FakeService::start(Behaviour::Answer {
            media_type,
            body: body.to_vec(),
            piece: 100,
        })
        .await;
        let error = providers(&service)
            .tts
            .synthesize(sentence())
            .await
            .err()
            .expect("it is no sound");
        assert!(error.to_string().contains(media_type), "{error}");
    }
}

#[tokio::test]
async fn a_transcript_that_is_none_is_temporary() {
    for body in [&b"{}"[..], b"", b"<html>"] {
        let service = FakeService::start(Behaviour::Answer {
            media_type: "application/json",
            body: body.to_vec(),
            piece: 100,
        })
        .await;
        let error = hear(&providers(&service), segment())
            .await
            .expect_err("it is no transcript");
        assert!(error.is_temporary(), "{error}");
    }
}

#[tokio::test]
async fn a_warm_connection_is_used_again() {
    let body = br#"{"text": "hello"}"#.to_vec();
    let service = FakeService::start(Behaviour::Answer {
        media_type: "application/json",
        body,
        piece: 100,
    })
    .await;
    let providers = providers(&service);
    tokio::join!(
        providers.stt.prewarm(),
        providers.llm.prewarm(),
        providers.tts.prewarm()
    );
    let opened = service.connections();
    assert!(
        opened > 0 && service.requests().is_empty(),
        "opening a connection asks for nothing that costs"
    );
    for _ in 0..3 {
        hear(&providers, segment()).await.expect("it understands");
    }
    assert_eq!(service.connections(), opened);
}

#[tokio::test]
async fn a_recogniser_that_refuses_an_option_is_asked_without_it() {
    // What the server refuses, the model, and what is left out at the first request and at the
    // second.
    for (refused, model, first, second) in [
        ("name=\"language\"", "hears", 2, 1),
        ("verbose_json", "whisper-1", 2, 1),
        ("name=\"language\"", "whisper-1", 3, 1),
        ("audio/wav", "whisper-1", 3, 3),
    ] {
        let service = FakeService::start_with(move |request| {
            if String::from_utf8_lossy(&request.body).contains(refused) {
                return Behaviour::Refuse {
                    status: 400,
                    headers: vec![],
                    body: "no",
                };
            }
            Behaviour::Answer {
                media_type: "application/json",
                body: br#"{"text": "Hello."}"#.to_vec(),
                piece: 100,
            }
        })
        .await;
        let config = ProvidersConfig {
            openai_base_url: service.base_url(),
            stt_model: model.to_owned(),
            ..ProvidersConfig::default()
        };
        let providers = build(&config, http_client().expect("a client")).expect("right settings");
        let mut before = 0;
        for expected in [first, second] {
            let answer = hear(&providers, segment()).await;
            let requests = service.requests().len() - before;
            before += requests;
            assert_eq!(requests, expected, "{refused} to {model}");
            match answer {
                Ok(transcript) => assert_eq!(transcript.text, "Hello."),
                Err(error) => {
                    assert_eq!(refused, "audio/wav", "{error}");
                    assert!(matches!(error, ProviderError::BadInput { .. }), "{error}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_language_goes_out_as_the_code_that_recognisers_know() {
    for (language, sent) in [
        ("hi-IN", Some("hi")),
        ("English", Some("en")),
        ("haw", None),
    ] {
        let service = FakeService::start(Behaviour::Answer {
            media_type: "application/json",
            body: br#"{"text": null}"#.to_vec(),
            piece: 100,
        })
        .await;
        let asked = SpeechSegment {
            language: Language::read(language).expect("a language"),
            ..segment()
        };
        let heard = hear(&providers(&service), asked).await;
        assert_eq!(heard.expect("an answer").text, "", "no text is no words");
        let request = service.requests().pop().expect("one request");
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let field = body.split("name=\"language\"\r\n\r\n").nth(1);
        let code = field.and_then(|rest| rest.split("\r\n").next());
        assert_eq!(code, sent, "{language}");
    }
}

#[tokio::test]
async fn sound_of_another_kind_is_read_or_named() {
    let mp3 = include_bytes!("../fixtures/cases/speech-as-mp3/speech.mp3");
    let wav = include_bytes!("../fixtures/cases/speech-as-wav/speech.wav");
    for media_type in ["audio/mpeg", "audio/pcm"] {
        let service = FakeService::start(Behaviour::Answer {
            media_type,
            body: mp3.to_vec(),
            piece: 700,
        })
        .await;
        let stream = providers(&service).tts.synthesize(sentence()).await;
        let pieces: Vec<_> = stream.expect("it answers").collect().await;
        let [Err(error)] = &pieces[..] else {
            panic!("{} pieces of MP3 are played", pieces.len());
        };
        assert!(matches!(error, ProviderError::Config { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains("MP3") && said.contains("tts_model"), "{said}");
    }
    let service = FakeService::start(Behaviour::Answer {
        media_type: "audio/wav",
        body: wav.to_vec(),
        piece: 999,
    })
    .await;
    let tts = providers(&service).tts;
    let stream = tts.synthesize(sentence()).await.expect("it speaks");
    let pieces: Vec<Vec<i16>> = stream.map(sound).collect().await;
    assert_eq!(pieces.concat().len(), (wav.len() - 44) / 2);
    let format = tts.last_format().expect("a format");
    assert_eq!(format, "WAV, 24000 Hz, 1 channel");
}
