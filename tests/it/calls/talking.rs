//! The conversation as the caller's client sees it, and as it is written down.

use serde_json::{Value, json};

use crate::support::live_caller::Seen;
use crate::support::world::{ANSWER, GREETING, LONG_LINE, SHORT_LINE, WORDS, World, eventually};

/// Ten seconds of speech.
const LONG_ANSWER: &str = "We have a small plan for one person, a plan for families, a plan for offices with up to ten people, \
    and a plan for everybody else, and each of them can be paid by the month or by the year.";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_interrupts_and_only_what_was_heard_is_written_down() {
    let world = World::new(json!([{ "when": "words", "say": LONG_ANSWER }]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("interrupted").await;
    caller.say(LONG_LINE).await;
    let before = caller.seen().loud_frames;
    caller
        .until("beginning of the answer", |seen| {
            seen.loud_frames > before + 50
        })
        .await;
    caller.say(SHORT_LINE).await;
    let speaking_again = |seen: &Seen| seen.replies() == 2 && seen.state() == "speaking";
    caller.until("next answer", speaking_again).await;
    caller.hang_up().await;

    let call = &world.delivered(1).await[0];
    let items = call.conversation["conversation_items"]
        .as_array()
        .expect("items");
    // What was heard of the last answer may be in it as well.
    let said: Vec<_> = items
        .iter()
        .take(4)
        .map(|item| {
            (
                item["role"].as_str().expect("a role"),
                item["interrupted"] == true,
            )
        })
        .collect();
    assert_eq!(
        said,
        [
            ("assistant", false),
            ("user", false),
            ("assistant", true),
            ("user", false),
        ]
    );
    let heard = items[2]["content"].as_str().expect("words");
    assert!(LONG_ANSWER.starts_with(heard), "{heard:?}");
    assert!(
        (10..LONG_ANSWER.len() / 2).contains(&heard.len()),
        "{heard:?}"
    );
    assert_eq!(call.transcript()[2], format!("assistant: {heard}"));
    assert_eq!(call.transcript()[3], format!("user: {WORDS}"));
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_sees_states_and_words_and_may_write() {
    let world = World::new(json!([{ "when": "in writing", "say": "I can read." }]), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("seen").await;
    caller.ask(SHORT_LINE).await;
    caller.write("This is in writing.").await;
    caller.agent_has_said(3).await;
    let all_said = |seen: &Seen| {
        seen.transcripts
            .iter()
            .any(|transcript| transcript.ended && transcript.text == "I can read.")
    };
    let seen = caller.until("words of the last answer", all_said).await;

    for state in ["listening", "thinking", "speaking"] {
        assert!(
            seen.states.iter().any(|known| known == state),
            "{state}: {:?}",
            seen.states
        );
    }
    let agent = seen.agent.clone().expect("the agent was here");
    let by_agent: Vec<_> = seen
        .transcripts
        .iter()
        .filter(|transcript| transcript.speaker == agent)
        .collect();
    let texts: Vec<_> = by_agent
        .iter()
        .map(|transcript| transcript.text.as_str())
        .collect();
    assert_eq!(texts, [GREETING, ANSWER, "I can read."]);
    assert!(
        by_agent
            .iter()
            .all(|transcript| Some(&transcript.track) == seen.agent_track.as_ref()),
        "{by_agent:#?}"
    );
    assert!(
        by_agent
            .windows(2)
            .all(|pair| pair[0].segment != pair[1].segment),
        "{by_agent:#?}"
    );
    let by_caller: Vec<_> = seen
        .transcripts
        .iter()
        .filter(|transcript| transcript.speaker == caller.identity)
        .collect();
    let last = by_caller.last().expect("the caller's own words");
    assert!(
        last.final_at_start && last.text == WORDS && last.track == caller.track,
        "{last:#?}"
    );
    caller.hang_up().await;

    let call = &world.delivered(1).await[0];
    assert_eq!(
        call.transcript()[3..],
        [
            "user: This is in writing.".to_owned(),
            "assistant: I can read.".to_owned()
        ]
    );
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_the_caller_presses_are_answered_and_in_the_record() {
    let digits = include_str!("../../fixtures/cases/keypad-ignored/digits.txt").trim();
    let lines = json!([{ "when": digits, "say": "I have your number." }]);
    let world = World::new(lines, &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("keys").await;
    caller.press(digits).await;
    caller.press("#").await;
    caller.agent_has_said(2).await;
    caller.hang_up().await;

    let call = &world.delivered(1).await[0];
    assert_eq!(
        call.transcript()[1..],
        [
            format!("user: Keypad: {digits}"),
            "assistant: I have your number.".to_owned()
        ]
    );
    assert_eq!(call.record["keypad"][0]["keys"], digits);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_takes_a_lead_and_ends_the_call() {
    let lead = json!({ "name": "Ann Example", "email": "ann@example.com", "company": "Example", "interest": "all" });
    let agent = json!([
        { "when": "words", "tool": { "name": "create_lead", "arguments": &lead } },
        { "after_tool": "create_lead", "say": "Bye.", "tool": { "name": "end_call" } },
    ]);
    let world = World::new(agent, &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("lead").await;
    caller.say(SHORT_LINE).await;
    caller.hung_up_on().await;

    let call = &world.delivered(1).await[0];
    call.ended("completed", "task_completed", Some("AGENT_ENDED"));
    assert_eq!(
        call.transcript()[1..],
        [format!("user: {WORDS}"), "assistant: Bye.".to_owned()]
    );
    assert_eq!(call.call["lead"]["name"], "Ann Example");
    assert_eq!(call.call["transcription"]["lead_generated"], true);
    let uses = call.record["tool_uses"].as_array().expect("uses of tools");
    let names: Vec<_> = uses.iter().map(|used| &used["name"]).collect();
    assert_eq!(names, ["create_lead", "end_call"]);
    assert_eq!(uses[0]["arguments"], lead);
    assert_eq!(uses[0]["is_error"], false);
    let result = uses[0]["result"].as_str().expect("a result");
    assert!(result.contains("is saved"), "{result}");
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_lines_of_tools_providers_and_delivery_carry_the_id_of_their_call() {
    const ABOUT_A_CALL: [&str; 5] = [
        "voicebot::tools",
        "voicebot::providers",
        "voicebot::voice",
        "voicebot::upload::deliver",
        "voicebot::recording::resolve",
    ];
    let agent = json!([
        { "when": "words", "tool": { "name": "detect_intent", "arguments": { "intent": "a" } } },
    ]);
    let world = World::new(agent, &[]).await;
    let worker = world.worker().await;
    for (before, room) in ["first", "second"].into_iter().enumerate() {
        let caller = world.call(room).await;
        caller.say(SHORT_LINE).await;
        eventually("use of the tool", async || {
            let uses = world.log().matches("\"tool called\"").count();
            (uses > before).then_some(())
        })
        .await;
        caller.hang_up().await;
    }

    for call in &world.delivered(2).await {
        let id = call.record["session_id"].as_str().expect("an id");
        // The CRM has a call before the worker has read its answer and told of it.
        for what in ["\"tool called\"", "call delivered to the CRM"] {
            eventually(what, async || {
                let log = world.log();
                let mut lines = log.lines();
                lines
                    .any(|it| it.contains(what) && it.contains(id))
                    .then_some(())
            })
            .await;
        }
    }
    let log = world.log();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        let target = line["target"].as_str().unwrap_or_default();
        if ABOUT_A_CALL.iter().any(|module| target.starts_with(module)) {
            assert!(line.to_string().contains("\"session.id\""), "{line}");
        }
    }
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_caller_is_asked_and_then_hung_up_on() {
    let settings = [
        ("VOICEBOT__VOICE__TURN__ASK_AFTER_MS", "500"),
        ("VOICEBOT__VOICE__TURN__HANG_UP_AFTER_MS", "2500"),
        ("VOICEBOT__VOICE__LINES__STILL_THERE", "Hello?"),
    ];
    let world = World::new(json!([]), &settings).await;
    let worker = world.worker().await;
    let mut caller = world.call("silent").await;
    caller.hung_up_on().await;

    let call = &world.delivered(1).await[0];
    call.ended("completed", "task_completed", Some("SILENCE"));
    assert_eq!(
        call.transcript(),
        [
            format!("assistant: {GREETING}"),
            "assistant: Hello?".to_owned()
        ]
    );
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_does_not_stay_for_the_last_goodbye() {
    let settings = [
        ("VOICEBOT__CALL__MAX_DURATION_S", "2"),
        ("VOICEBOT__CALL__MAX_DURATION_GOODBYE", LONG_ANSWER),
    ];
    let world = World::new(json!([]), &settings).await;
    let worker = world.worker().await;
    let mut caller = world.call("too long").await;
    let before = caller.seen().loud_frames;
    caller
        .until("beginning of the goodbye", |seen| {
            seen.loud_frames > before + 50
        })
        .await;
    caller.hang_up().await;

    let call = &world.delivered(1).await[0];
    call.ended("completed", "task_completed", Some("MAX_DURATION"));
    let items = call.conversation["conversation_items"]
        .as_array()
        .expect("items");
    let [_, goodbye] = &items[..] else {
        panic!("{items:#?}")
    };
    let heard = goodbye["content"].as_str().expect("words");
    assert_eq!(goodbye["interrupted"], Value::Bool(true), "{goodbye}");
    assert!(
        LONG_ANSWER.starts_with(heard) && heard.len() < LONG_ANSWER.len() / 2,
        "{heard:?}"
    );
    world.nothing_is_left(worker).await;
}
