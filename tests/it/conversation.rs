//! Whole conversations in virtual time: real speech through the real detector, scripted providers,
//! a playout recorder in real time.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::caller::{Call, fixture};
use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use tokio::time::sleep;
use voicebot::providers::llm::{ChatChunk, ChatModel, ChatRequest, ChatStream, ToolCall};
use voicebot::providers::scripted::{Script, Scripted};
use voicebot::providers::stt::{Recogniser, SpeechSegment, Transcriber, Transcript};
use voicebot::providers::tts::{SpeechRequest, SpeechStream, TextToSpeech};
use voicebot::providers::{Component, ProviderError, Providers};
use voicebot::session::{Role, TurnRecord};
use voicebot::tools::CallRequest;
use voicebot::voice::{AgentState, TurnConfig, VoiceCommand, VoiceConfig, VoiceEnd, VoiceEvent};

const LONG: &str = "We have three plans for every kind of customer. The first plan is small and covers one person. \
                    The second plan is larger and covers a whole family.";

/// Scripted providers that understand every stretch of speech as `heard`, and answer `say` to
/// everything.
fn providers(heard: &str, say: &str) -> Providers {
    let script = format!(
        r#"{{ "caller": [{{ "seconds": 1, "text": {} }}], "agent": [], "otherwise": {} }}"#,
        serde_json::json!(heard),
        serde_json::json!(say)
    );
    from_script(serde_json::from_str(&script).expect("the script is right"))
}

fn from_script(script: Script) -> Providers {
    let scripted = Arc::new(Scripted::new(script));
    Providers {
        stt: Recogniser::requests(scripted.clone()),
        llm: scripted.clone(),
        tts: scripted,
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_asks_leaves_a_lead_and_says_goodbye() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo-script.json");
    let providers = from_script(Script::read(&path).expect("the demo's script is right"));
    let call = Call::start(
        providers,
        Some("Hello, this is Acme. How can I help you?"),
        VoiceConfig::default(),
    );
    call.agent_has_said(1).await;
    let mut latencies = Vec::new();
    for (turn, line) in ["hello.wav", "lead.wav", "goodbye.wav"]
        .into_iter()
        .enumerate()
    {
        sleep(Duration::from_millis(700)).await;
        let (_, ended) = call.say(&fixture(line)).await;
        call.agent_has_said(turn + 2).await;
        latencies.push(call.playout.first_sound_after(ended).expect("an answer") - ended);
    }
    assert_eq!(
        call.transcript(),
        [
            "agent: Hello, this is Acme. How can I help you?",
            "caller: Hello, I would like to know what your plans cost.",
            "agent: The small plan costs twenty a month, the business plan fifty. Who may I send an offer to?",
            "caller: My name is John Smith, my e-mail is john.smith@example.com, I work for Acme, and I am interested in the business \
         plan.",
            "agent: Thank you, John. The offer is on its way. Is there anything else?",
            "caller: No, thank you. Goodbye.",
            "agent: Goodbye, and thank you for calling.",
        ]
    );
    let used: Vec<String> = call
        .tools
        .calls
        .lock()
        .unwrap()
        .iter()
        .map(|(name, _)| name.clone())
        .collect();
    assert_eq!(used, ["detect_intent", "create_lead", "end_call"]);
    // 0.25 s of silence, of which recognition uses 0.15 s; 0.2 s for the first token, some words,
    // 0.15 s for the first sound. The turn with the tool asks the model twice.
    for (latency, most) in latencies.iter().zip([900, 1_200, 900]) {
        assert!(*latency < Duration::from_millis(most), "{latencies:?}");
    }
    let items = call.items();
    assert!(items.iter().all(|item| !item.interrupted));
    let metrics = items[2].metrics.clone().expect("an answer is measured");
    assert_eq!(
        (metrics.llm_ttft_ms, metrics.tts_ttfb_ms),
        (Some(200), Some(150))
    );
    assert!(
        metrics
            .e2e_latency_ms
            .is_some_and(|ms| (500..900).contains(&ms)),
        "{metrics:?}"
    );
    let metrics = items[1]
        .metrics
        .clone()
        .expect("a turn of the caller is measured");
    assert!(
        metrics
            .transcription_delay_ms
            .is_some_and(|ms| (240..330).contains(&ms)),
        "{metrics:?}"
    );
    let turns: Vec<TurnRecord> = {
        let log = call.log.lock().unwrap();
        let turns = log.iter().filter_map(|(_, event)| match event {
            VoiceEvent::TurnMeasured {
                turn,
                is_over: true,
            } => Some(turn.clone()),
            _ => None,
        });
        turns.collect()
    };
    let numbers: Vec<u32> = turns.iter().map(|turn| turn.turn).collect();
    assert_eq!(numbers, [1, 2, 3]);
    for (turn, answer) in turns.iter().zip([&items[2], &items[4], &items[6]]) {
        let metrics = answer.metrics.as_ref().expect("an answer is measured");
        assert_eq!(turn.first_frame_ms, metrics.e2e_latency_ms);
        assert!(turn.final_text_ms <= turn.end_of_turn_ms, "{turn:?}");
        assert!(turn.first_token_ms < turn.first_byte_ms, "{turn:?}");
        assert!(turn.first_byte_ms <= turn.first_frame_ms, "{turn:?}");
        // The script tells no tokens, so that they are estimated.
        let usage = &turn.usage;
        let tokens = usage.llm_prompt_tokens + usage.llm_completion_tokens;
        assert!(tokens > 0 && tokens == usage.llm_tokens_estimated);
        // Spaces between sentences are not spoken.
        let letters = answer.content.chars().filter(|c| !c.is_whitespace());
        assert!(usage.tts_characters >= letters.count() as u64, "{turn:?}");
        assert!(usage.stt_audio_ms > 500, "{usage:?}");
    }
    // One turn has asked for a tool, and asked again with its answer.
    assert!(turns[1].usage.llm_requests >= 2, "{:?}", turns[1]);
    assert_eq!(call.playout.holes(), 0);
    assert_eq!(call.end().await, VoiceEnd::Requested(CallRequest::HangUp));
}

/// An answer is begun in a pause of the caller, who then goes on: it is thrown away, and paid for.
#[tokio::test(start_paused = true)]
async fn tokens_of_an_answer_that_nobody_hears_are_counted_as_in_vain() {
    let script = r#"{ "caller": [{ "seconds": 1, "text": "Some words." }], "agent": [], "otherwise": "Here you are.",
                      "delays": { "stt_ms": 20, "llm_ms": 2000, "word_ms": 1, "tts_ms": 20 } }"#;
    let script = serde_json::from_str(script).expect("the script is right");
    let call = Call::start(from_script(script), None, VoiceConfig::default());
    let line = fixture("goodbye.wav");
    call.say(&line).await;
    // The model has been asked and has not answered.
    sleep(Duration::from_millis(700)).await;
    call.say(&line).await;
    call.agent_has_said(1).await;
    let measured =
        |event: &VoiceEvent| matches!(event, VoiceEvent::TurnMeasured { is_over, .. } if *is_over);
    call.until("turn that is over", measured).await;
    let turn = {
        let log = call.log.lock().unwrap();
        let mut turns = log.iter().filter_map(|(_, event)| match event {
            VoiceEvent::TurnMeasured {
                turn,
                is_over: true,
            } => Some(turn.clone()),
            _ => None,
        });
        turns.next().expect("it was measured")
    };
    let usage = turn.usage;
    assert!(usage.llm_requests_in_vain >= 1, "{usage:?}");
    assert_eq!(usage.llm_requests, usage.llm_requests_in_vain + 1);
    assert!(usage.llm_prompt_tokens_in_vain > 0, "{usage:?}");
    assert!(usage.llm_prompt_tokens > usage.llm_prompt_tokens_in_vain);
    call.abort().await;
}

#[tokio::test(start_paused = true)]
async fn caller_interrupts_and_only_what_was_heard_is_written_down() {
    let call = Call::start(
        providers("wait, I have another question", LONG),
        None,
        VoiceConfig::default(),
    );
    call.say(&fixture("hello.wav")).await;
    call.until("speech", |event| {
        *event == VoiceEvent::AgentState(AgentState::Speaking)
    })
    .await;
    sleep(Duration::from_secs(3)).await;
    let (began, _) = call.say(&fixture("hello.wav")).await;
    call.agent_has_said(1).await;
    // The half second is counted from the first sound that becomes speech.
    let silent_after = call
        .playout
        .last_sound_before(began + Duration::from_secs(2))
        .expect("it spoke")
        - began;
    assert!(
        silent_after < Duration::from_millis(560),
        "{silent_after:?}"
    );
    let item = call
        .items()
        .into_iter()
        .find(|item| item.role == Role::Assistant)
        .expect("it spoke");
    assert!(item.interrupted);
    assert!(
        LONG.starts_with(&item.content) && item.content.len() < LONG.len(),
        "{}",
        item.content
    );
    assert!(
        item.content.contains("three plans for every"),
        "about three and a half seconds of it: {}",
        item.content
    );
    call.commands.send(VoiceCommand::Stop).await.unwrap();
    assert_eq!(call.end().await, VoiceEnd::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_noise_over_the_agent_pauses_it_and_nothing_is_lost() {
    let heard = Heard::in_turn(&["tell me everything", ""]);
    let call = Call::start(
        Providers {
            stt: Recogniser::requests(heard),
            ..providers("", LONG)
        },
        None,
        VoiceConfig::default(),
    );
    call.say(&fixture("hello.wav")).await;
    call.until("speech", |event| {
        *event == VoiceEvent::AgentState(AgentState::Speaking)
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    call.say(&fixture("goodbye.wav")).await;
    call.until("resumption", |event| {
        *event == VoiceEvent::FalseInterruption
    })
    .await;
    call.agent_has_said(1).await;
    assert_eq!(
        call.transcript(),
        [
            "caller: tell me everything".to_owned(),
            format!("agent: {LONG}")
        ]
    );
    assert!(!call.items()[1].interrupted);
    call.commands.send(VoiceCommand::Stop).await.unwrap();
    assert_eq!(call.end().await, VoiceEnd::Stopped);
}

#[tokio::test(start_paused = true)]
async fn caller_hangs_up_in_mid_speech_and_the_words_are_kept() {
    let call = Call::start(
        providers("please call me back", "Sure."),
        None,
        VoiceConfig::default(),
    );
    call.say(&fixture("lead.wav")[..40_000]).await;
    call.commands.send(VoiceCommand::Stop).await.unwrap();
    call.until("the words", |event| {
        matches!(event, VoiceEvent::ItemCommitted(_))
    })
    .await;
    assert_eq!(call.transcript(), ["caller: please call me back"]);
    assert_eq!(call.end().await, VoiceEnd::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_silent_caller_is_asked_and_then_hung_up_on() {
    let call = Call::start(providers("", ""), Some("Hello!"), VoiceConfig::default());
    call.agent_has_said(2).await;
    assert_eq!(
        call.transcript(),
        ["agent: Hello!", "agent: Are you still there?"]
    );
    assert_eq!(call.end().await, VoiceEnd::SilenceHangup);
}

#[tokio::test(start_paused = true)]
async fn a_written_message_is_answered() {
    let call = Call::start(
        providers("", "We are at the station."),
        None,
        VoiceConfig::default(),
    );
    call.commands
        .send(VoiceCommand::UserText("Where are you?".to_owned()))
        .await
        .unwrap();
    call.agent_has_said(1).await;
    assert_eq!(
        call.transcript(),
        ["caller: Where are you?", "agent: We are at the station."]
    );
    call.commands
        .send(VoiceCommand::Close {
            reason: "test".to_owned(),
            say: Some("Bye.".to_owned()),
        })
        .await
        .unwrap();
    call.agent_has_said(2).await;
    assert_eq!(call.end().await, VoiceEnd::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_stays_down_ends_the_call_with_an_apology() {
    let down = Arc::new(DownModel::default());
    let call = Call::start(
        Providers {
            llm: down.clone(),
            ..providers("hello?", "")
        },
        None,
        VoiceConfig::default(),
    );
    for turn in [1, 2] {
        call.say(&fixture("goodbye.wav")).await;
        call.agent_has_said(turn).await;
    }
    let lines = VoiceConfig::default().lines;
    assert_eq!(
        call.transcript(),
        [
            "caller: hello?".to_owned(),
            format!("agent: {}", lines.say_again),
            "caller: hello?".to_owned(),
            format!("agent: {}", lines.apology),
        ]
    );
    // Each answer was asked for four times before it was given up.
    assert_eq!(down.asked.load(Ordering::Relaxed), 8);
    let VoiceEnd::ProviderFailed { component, message } = call.end().await else {
        panic!("the model is down")
    };
    assert_eq!(component, Component::Llm);
    assert!(message.contains("model.example"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_mute_agent_hangs_up() {
    let call = Call::start(
        Providers {
            tts: Arc::new(MuteVoice),
            ..providers("", "")
        },
        Some("Hello!"),
        VoiceConfig::default(),
    );
    assert!(matches!(
        call.end().await,
        VoiceEnd::ProviderFailed {
            component: Component::Tts,
            ..
        }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_model_that_stalls_in_mid_answer_is_heard_as_far_as_it_got() {
    let call = Call::start(
        Providers {
            llm: Arc::new(StallingModel),
            ..providers("hello?", "")
        },
        None,
        VoiceConfig::default(),
    );
    call.say(&fixture("hello.wav")).await;
    call.agent_has_said(1).await;
    assert_eq!(
        call.transcript()[1],
        "agent: We open at nine in the morning. And we close"
    );
    call.until(
        "a report",
        |event| matches!(event, VoiceEvent::Error { component, .. } if component == "llm"),
    )
    .await;
    call.commands.send(VoiceCommand::Stop).await.unwrap();
    call.end().await;
}

#[tokio::test(start_paused = true)]
async fn speech_without_words_is_asked_for_again() {
    let call = Call::start(
        Providers {
            stt: Recogniser::requests(Heard::in_turn(&["", "What do your plans cost?"])),
            ..providers("", "Twenty a month.")
        },
        None,
        VoiceConfig {
            turn: TurnConfig {
                preemptive: false,
                ..TurnConfig::default()
            },
            ..VoiceConfig::default()
        },
    );
    let (_, ended) = call.say(&fixture("hello.wav")).await;
    call.agent_has_said(1).await;
    let heard = call.playout.first_sound_after(ended).expect("it is asked");
    assert!(
        heard - ended < Duration::from_secs(2),
        "{:?}",
        heard - ended
    );
    call.say(&fixture("hello.wav")).await;
    call.agent_has_said(2).await;
    assert_eq!(
        call.transcript(),
        [
            format!("agent: {}", VoiceConfig::default().lines.say_again),
            "caller: What do your plans cost?".to_owned(),
            "agent: Twenty a month.".to_owned(),
        ]
    );
    assert!(
        call.troubles()[0].contains("no words"),
        "{:?}",
        call.troubles()
    );
    call.commands.send(VoiceCommand::Stop).await.unwrap();
    call.end().await;
}

/// A caller who has asked hears `said` when the model gives these answers, one for each request.
async fn model_answers(answers: Vec<ModelAnswer>, said: &str) -> Vec<String> {
    let call = Call::start(
        Providers {
            llm: Arc::new(Answers {
                answers: Mutex::new(answers.into()),
            }),
            ..providers("", "")
        },
        None,
        VoiceConfig::default(),
    );
    let question = VoiceCommand::UserText("Where are you?".to_owned());
    call.commands.send(question).await.unwrap();
    call.agent_has_said(1).await;
    assert_eq!(call.transcript()[1..], [format!("agent: {said}")]);
    let troubles = call.troubles();
    call.commands.send(VoiceCommand::Stop).await.unwrap();
    call.end().await;
    troubles
}

#[tokio::test(start_paused = true)]
async fn what_a_model_has_said_is_heard_whatever_happens_to_it_then() {
    let text = |text: &str| Ok(ChatChunk::Text(text.to_owned()));
    let broken = || Err(ProviderError::temporary("model.example hung up"));
    let refused = || Err(ProviderError::bad_input("model.example refused"));
    let lead = || {
        Ok(ChatChunk::ToolCall(ToolCall {
            id: "1".to_owned(),
            name: "create_lead".to_owned(),
            arguments: "{}".to_owned(),
        }))
    };
    let say_again = VoiceConfig::default().lines.say_again;
    let cases = [
        // Half a sentence is taken back while nobody has heard it, and said when there is no more.
        (
            vec![
                vec![text("We are"), broken()],
                vec![text("We are at the station.")],
            ],
            "We are at the station.".to_owned(),
        ),
        (
            vec![
                vec![text("We are"), broken()],
                vec![text("We are at the"), broken()],
            ],
            "We are at the".to_owned(),
        ),
        (
            vec![vec![text("We are at the station. And"), broken()]],
            "We are at the station. And".to_owned(),
        ),
        // The caller was told to wait, and there is no answer.
        (
            vec![vec![text("One moment, please."), lead()], vec![refused()]],
            format!("One moment, please. {say_again}"),
        ),
        // Nothing more is to be said after the tool.
        (
            vec![vec![text("We are at the station."), lead()], vec![]],
            "We are at the station.".to_owned(),
        ),
        // A request for a tool that cannot be run is no answer.
        (
            vec![
                vec![text("{\"name\": \"delete_everything\"}")],
                vec![text("We are at the station.")],
            ],
            "We are at the station.".to_owned(),
        ),
        (vec![vec![text("👍")], vec![text("👍")]], say_again.clone()),
    ];
    for (answers, said) in cases {
        let is_odd = answers.iter().flatten().any(Result::is_err) || said == say_again;
        let troubles = model_answers(answers, &said).await;
        assert!(!is_odd || !troubles.is_empty(), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_that_only_closes_its_thoughts_is_understood_from_then_on() {
    let text = |text: &str| vec![Ok(ChatChunk::Text(text.to_owned()))];
    let call = Call::start(
        Providers {
            llm: Arc::new(Answers {
                answers: Mutex::new(
                    vec![
                        text("Hm, where is it</think>\n\nAt the station."),
                        text("Let me think. He asks for the time. </think> At nine."),
                        text("Bye."),
                    ]
                    .into(),
                ),
            }),
            ..providers("", "")
        },
        None,
        VoiceConfig::default(),
    );
    for turn in 1..=3 {
        let question = VoiceCommand::UserText("?!".to_owned());
        call.commands.send(question).await.unwrap();
        call.agent_has_said(turn).await;
    }
    let said: Vec<String> = call
        .transcript()
        .into_iter()
        .filter(|line| line.starts_with("agent"))
        .collect();
    assert_eq!(
        said,
        ["agent: At the station.", "agent: At nine.", "agent: Bye."]
    );
    call.commands.send(VoiceCommand::Stop).await.unwrap();
    call.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_voice_that_never_ends_is_cut() {
    let call = Call::start(
        Providers {
            tts: Arc::new(EndlessVoice),
            ..providers("", "")
        },
        Some("Hello!"),
        VoiceConfig::default(),
    );
    call.agent_has_said(1).await;
    assert_eq!(call.transcript(), ["agent: Hello!"]);
    assert!(
        call.troubles()[0].starts_with("tts: "),
        "{:?}",
        call.troubles()
    );
    call.commands.send(VoiceCommand::Stop).await.unwrap();
    call.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_dropped_conversation_leaves_nothing_running() {
    let call = Call::start(providers("", LONG), Some(LONG), VoiceConfig::default());
    call.until("speech", |event| {
        *event == VoiceEvent::AgentState(AgentState::Speaking)
    })
    .await;
    let captured = Arc::downgrade(&call.playout);
    call.abort().await;
    assert_eq!(
        captured.strong_count(),
        0,
        "somebody still holds the output"
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_caller_types_is_answered_and_told() {
    let case = include_str!("../fixtures/cases/keypad-ignored/digits.txt");
    let call = Call::start(
        providers("", "Thank you, I have your number."),
        None,
        VoiceConfig::default(),
    );
    for key in case.trim().chars() {
        call.commands.send(VoiceCommand::Key(key)).await.unwrap();
        sleep(Duration::from_millis(400)).await;
    }
    call.agent_has_said(1).await;
    assert_eq!(
        call.transcript(),
        [
            "caller: Keypad: 5550123",
            "agent: Thank you, I have your number."
        ]
    );
    let keys = "5550123".to_owned();
    call.until("the keys", |event| {
        *event == VoiceEvent::Keypad { keys: keys.clone() }
    })
    .await;
    call.commands.send(VoiceCommand::Stop).await.unwrap();
    assert_eq!(call.end().await, VoiceEnd::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_mark_for_no_speech_does_not_stop_the_agent() {
    let case = include_str!("../fixtures/cases/marks-for-no-speech/texts.json");
    let answers: Vec<serde_json::Value> = serde_json::from_str(case).unwrap();
    for answer in answers {
        let mark = answer["text"].as_str().expect("a text").to_owned();
        let call = Call::start(
            Providers {
                stt: Recogniser::requests(Heard::in_turn(&["tell me everything", mark.leak()])),
                ..providers("", LONG)
            },
            None,
            VoiceConfig::default(),
        );
        call.say(&fixture("hello.wav")).await;
        call.until("speech", |event| {
            *event == VoiceEvent::AgentState(AgentState::Speaking)
        })
        .await;
        sleep(Duration::from_secs(2)).await;
        call.say(&fixture("goodbye.wav")).await;
        call.agent_has_said(1).await;
        assert_eq!(
            call.transcript(),
            [
                "caller: tell me everything".to_owned(),
                format!("agent: {LONG}")
            ]
        );
        call.commands.send(VoiceCommand::Stop).await.unwrap();
        assert_eq!(call.end().await, VoiceEnd::Stopped);
    }
}

#[tokio::test(start_paused = true)]
async fn beeps_and_keys_ask_nobody_for_words() {
    let heard = Heard::in_turn(&["Thank you for watching!"; 20]);
    let call = Call::start(
        Providers {
            stt: Recogniser::requests(heard.clone()),
            ..providers("", LONG)
        },
        None,
        VoiceConfig::default(),
    );
    let sine = |hz: f64, n: usize| (std::f64::consts::TAU * hz * n as f64 / 16_000.0).sin();
    let sound: Vec<i16> = (0..5 * 16_000)
        .map(|n| match n % 16_000 {
            at if at < 4_000 => (12_000.0 * sine(440.0, n)) as i16,
            at if (8_000..11_200).contains(&at) => {
                (7_000.0 * (sine(770.0, n) + sine(1_336.0, n))) as i16
            }
            _ => 0,
        })
        .collect();
    call.say(&sound).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(heard.next.load(Ordering::Relaxed), 0, "requests for words");
    assert_eq!(call.transcript(), [""; 0]);
    call.commands.send(VoiceCommand::Stop).await.unwrap();
    assert_eq!(call.end().await, VoiceEnd::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_recogniser_that_refuses_everything_ends_the_call_with_an_apology() {
    let call = Call::start(
        Providers {
            stt: Recogniser::requests(Arc::new(RefusingTranscriber)),
            ..providers("", "")
        },
        None,
        VoiceConfig::default(),
    );
    for turn in [1, 2] {
        call.say(&fixture("goodbye.wav")).await;
        call.agent_has_said(turn).await;
    }
    let lines = VoiceConfig::default().lines;
    assert_eq!(
        call.transcript(),
        [
            format!("agent: {}", lines.say_again),
            format!("agent: {}", lines.apology),
        ]
    );
    let VoiceEnd::ProviderFailed { component, message } = call.end().await else {
        panic!("the recogniser refuses everything")
    };
    assert_eq!(component, Component::Stt);
    assert!(message.contains("hi-IN"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_voice_without_sound_or_with_noise_is_a_voice_that_is_down() {
    let mp3 = include_bytes!("../fixtures/cases/speech-as-mp3/speech.mp3");
    let noise: Vec<i16> = mp3
        .chunks_exact(2)
        .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    for (sound, asked, named) in [(Vec::new(), 8, "without any sound"), (noise, 2, "noise")] {
        let voice = Arc::new(OddVoice {
            sound,
            asked: AtomicUsize::new(0),
        });
        let call = Call::start(
            Providers {
                tts: voice.clone(),
                ..providers("", "")
            },
            Some("Hello!"),
            VoiceConfig::default(),
        );
        let playout = call.playout.clone();
        let began = tokio::time::Instant::now();
        let VoiceEnd::ProviderFailed { component, message } = call.end().await else {
            panic!("the voice is down")
        };
        assert_eq!(component, Component::Tts);
        assert!(message.contains(named), "{message}");
        assert_eq!(
            playout.first_sound_after(began),
            None,
            "the caller heard {named}"
        );
        // The greeting and the line that asks to say it again, each with its retries.
        assert_eq!(voice.asked.load(Ordering::Relaxed), asked, "{named}");
    }
}

/// Recognition that takes no request at all.
struct RefusingTranscriber;

#[async_trait]
impl Transcriber for RefusingTranscriber {
    fn name(&self) -> &str {
        "refusing"
    }

    async fn transcribe(&self, _: SpeechSegment) -> Result<Transcript, ProviderError> {
        Err(ProviderError::bad_input(
            "playout.example refused the request (400): unsupported language hi-IN",
        ))
    }
}

/// A voice that says the same to everything.
struct OddVoice {
    sound: Vec<i16>,
    asked: AtomicUsize,
}

#[async_trait]
impl TextToSpeech for OddVoice {
    fn name(&self) -> &str {
        "odd"
    }

    fn sample_rate_hz(&self) -> u32 {
        24_000
    }

    async fn synthesize(&self, _: SpeechRequest) -> Result<SpeechStream, ProviderError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let pieces: Vec<_> = self
            .sound
            .chunks(960)
            .map(|piece| Ok(piece.to_vec().into()))
            .collect();
        Ok(stream::iter(pieces).boxed())
    }
}

/// Recognition that understands what it is told to, each stretch of speech once.
struct Heard {
    lines: Vec<&'static str>,
    next: AtomicUsize,
}

impl Heard {
    fn in_turn(lines: &[&'static str]) -> Arc<Self> {
        Arc::new(Self {
            lines: lines.to_vec(),
            next: AtomicUsize::new(0),
        })
    }
}

#[async_trait]
impl Transcriber for Heard {
    fn name(&self) -> &str {
        "heard"
    }

    async fn transcribe(&self, _: SpeechSegment) -> Result<Transcript, ProviderError> {
        sleep(Duration::from_millis(300)).await;
        let text = self
            .lines
            .get(self.next.fetch_add(1, Ordering::Relaxed))
            .copied()
            .unwrap_or_default();
        Ok(Transcript {
            text: text.to_owned(),
            confidence: None,
        })
    }
}

#[derive(Default)]
struct DownModel {
    asked: AtomicUsize,
}

#[async_trait]
impl ChatModel for DownModel {
    fn name(&self) -> &str {
        "down"
    }

    async fn chat(&self, _: ChatRequest) -> Result<ChatStream, ProviderError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Err(ProviderError::temporary("model.example has a fault (500)"))
    }
}

type ModelAnswer = Vec<Result<ChatChunk, ProviderError>>;

/// A model that gives these answers, one for each request.
struct Answers {
    answers: Mutex<VecDeque<ModelAnswer>>,
}

#[async_trait]
impl ChatModel for Answers {
    fn name(&self) -> &str {
        "answers"
    }

    async fn chat(&self, _: ChatRequest) -> Result<ChatStream, ProviderError> {
        let answer = self.answers.lock().unwrap().pop_front();
        Ok(stream::iter(answer.expect("it is asked no more often")).boxed())
    }
}

/// A voice that says "aaaa" for ever, in real time.
struct EndlessVoice;

#[async_trait]
impl TextToSpeech for EndlessVoice {
    fn name(&self) -> &str {
        "endless"
    }

    fn sample_rate_hz(&self) -> u32 {
        24_000
    }

    async fn synthesize(&self, _: SpeechRequest) -> Result<SpeechStream, ProviderError> {
        let sound = stream::repeat_with(|| Ok(vec![3_000; 2_400].into())).then(|piece| async {
            sleep(Duration::from_millis(100)).await;
            piece
        });
        Ok(sound.boxed())
    }
}

struct StallingModel;

#[async_trait]
impl ChatModel for StallingModel {
    fn name(&self) -> &str {
        "stalling"
    }

    async fn chat(&self, _: ChatRequest) -> Result<ChatStream, ProviderError> {
        let text = ChatChunk::Text("We open at nine in the morning. And we close".to_owned());
        Ok(stream::iter([Ok(text)]).chain(stream::pending()).boxed())
    }
}

struct MuteVoice;

#[async_trait]
impl TextToSpeech for MuteVoice {
    fn name(&self) -> &str {
        "mute"
    }

    fn sample_rate_hz(&self) -> u32 {
        24_000
    }

    async fn synthesize(&self, _: SpeechRequest) -> Result<SpeechStream, ProviderError> {
        Ok(stream::pending().boxed())
    }
}
