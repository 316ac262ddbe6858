//! Calls that the agent places itself: the number comes with the dispatch.

use std::time::Duration;

use livekit_api::services::sip::TransferSIPParticipantOptions;
use livekit_protocol::participant_info::Kind;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::world::{DEADLINE, GREETING, LONG_LINE, PHONE, World, eventually};

const TRUNK: &[(&str, &str)] = &[("VOICEBOT__DIAL__TRUNK_ID", "ST_test")];
const ALWAYS: &[(&str, &str)] = &[
    ("VOICEBOT__DIAL__TRUNK_ID", "ST_test"),
    ("VOICEBOT__DIAL__ENABLED", "true"),
];

/// The telephone that was called hangs up, after it was greeted.
async fn hear_greeting_and_hang_up(world: &World, room: &str, identity: &str) {
    eventually("greeting", async || {
        world.journal().contains(GREETING).then_some(())
    })
    .await;
    let telephone = world.telephone();
    let transfer = telephone.transfer_sip_participant(
        room.into(),
        identity.into(),
        "tel:+15550100155".into(),
        TransferSIPParticipantOptions::default(),
    );
    transfer.await.expect("the telephone leaves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_a_dispatch_is_called_and_talked_to() {
    let world = World::new(json!([]), ALWAYS).await;
    let worker = world.worker().await;
    let metadata = json!({ "phone_number": "+15550100177", "from": "+15550100001" });
    world.dispatch("dialled", metadata).await;
    hear_greeting_and_hang_up(&world, "dialled", "sip_+15550100177").await;
    let call = &world.delivered(1).await[0];
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    assert_eq!(call.record["direction"], "outbound");
    assert_eq!(call.record["dialed_number"], "+15550100177");
    let dial = &call.record["dial"];
    assert_eq!(dial["placed_by"], "agent", "{dial}");
    assert_eq!(dial["outcome"], "answered", "{dial}");
    assert_eq!(dial["trunk_id"], "ST_test", "{dial}");
    assert!(dial["asked_at"].is_string(), "{dial}");
    assert!(dial["known_at"].is_string(), "{dial}");
    assert_eq!(call.call["callDetails"]["dialOutcome"], "answered");
    assert_eq!(call.call["callDetails"]["trunkNumber"], "+15550100001");
    assert_eq!(call.transcript(), [format!("assistant: {GREETING}")]);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_are_not_reached_are_told_apart() {
    // A number that ends in 0001 and a code fails at once, others after they have rung.
    const CALLS: [(&str, &str, &str, u64); 9] = [
        ("+15550000486", "busy", "busy", 486),
        ("+15550001486", "busy", "busy", 486),
        ("+15550000600", "busy", "busy", 600),
        ("+15550000603", "declined", "busy", 603),
        ("+15550000480", "no_answer", "no_answer", 480),
        ("+15550001404", "invalid_number", "failed", 404),
        ("+15550001403", "trunk_failed", "failed", 403),
        ("+15550001503", "trunk_failed", "failed", 503),
        // It rings until the time-out.
        ("+15550000408", "no_answer", "no_answer", 408),
    ];
    let world = World::new(json!([]), TRUNK).await;
    let worker = world.worker().await;
    for (number, ..) in CALLS {
        let room = format!("room of {}", &number[1..]);
        let dial = json!({ "ringing_timeout_s": 1 });
        let metadata = json!({ "phone_number": number, "dial": dial });
        world.dispatch(&room, metadata).await;
    }
    let delivered = world.delivered(CALLS.len()).await;
    for (number, outcome, status, code) in CALLS {
        let call = delivered
            .iter()
            .find(|call| call.record["dialed_number"] == number)
            .unwrap_or_else(|| panic!("no call is filed under {number}"));
        let record = &call.record;
        assert_eq!(record["dial"]["outcome"], outcome, "{number}");
        assert_eq!(record["dial"]["sip_status"], code, "{number}");
        assert_eq!(record["outcome"]["call_status"], status, "{number}");
        assert_eq!(record["direction"], "outbound", "{number}");
        assert_eq!(record["timestamps"]["answered"], Value::Null, "{number}");
        let details = &call.call["callDetails"];
        assert_eq!(details["status"], status, "{number}: {details}");
        assert_eq!(details["dialOutcome"], outcome, "{number}");
        assert_eq!(details["sipStatusCode"], code, "{number}");
        assert_eq!(details["duration"], 0, "{number}");
        assert_eq!(call.transcript(), [""; 0], "{number}");
    }
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_cannot_be_placed_ends_with_a_sentence() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    for (room, dial, word) in [
        ("no trunk", json!(true), "dial.trunk_id"),
        ("odd key", json!({ "trnk": "ST_1" }), "trnk"),
    ] {
        let metadata = json!({ "phone_number": PHONE, "dial": dial });
        world.dispatch(room, metadata).await;
        let call = eventually("record", async || {
            let all = world.archived_so_far();
            all.into_iter()
                .find(|record| record["room"]["name"] == room)
        })
        .await;
        assert_eq!(call["outcome"]["call_status"], "failed");
        assert_eq!(call["outcome"]["disconnect_reason"], "DIAL_FAILED");
        let error = call["outcome"]["error"].as_str().expect("a sentence");
        assert!(error.contains(word), "{error}");
        assert_eq!(call["direction"], "outbound");
    }
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_is_not_called_twice() {
    let world = World::new(json!([]), ALWAYS).await;
    let worker = world.worker().await;
    // Somebody else has called; or nobody is to call.
    let telephone = world.telephone_joins("others", "active", true).await;
    let metadata = json!({ "phone_number": PHONE });
    world.dispatch("others", metadata).await;
    eventually("greeting", async || {
        world.journal().contains(GREETING).then_some(())
    })
    .await;
    let telephones = || {
        let everybody = world.everybody_in("others");
        let kinds = everybody.iter().map(|participant| participant.kind());
        kinds.filter(|kind| *kind == Kind::Sip).count()
    };
    assert_eq!(telephones(), 1);
    telephone.hang_up().await;
    let call = &world.delivered(1).await[0];
    assert_eq!(call.record["dial"]["placed_by"], "other");
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dial_tells_the_story_of_a_call_and_its_exit_code_what_came_of_it() {
    let world = World::new(json!([]), TRUNK).await;
    let worker = world.worker().await;
    let dial = async |number: &str, more: &[&str]| {
        let arguments = [&["dial", number], more].concat();
        let output = world.program(&arguments).output();
        let output = timeout(DEADLINE, output).await.expect("it ends by itself");
        let output = output.expect("it starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    for number in ["nobody", "5550142"] {
        let (code, told, refused) = dial(number, &[]).await;
        assert_eq!((code, told.as_str()), (Some(1), ""));
        assert!(refused.contains(number), "{refused}");
    }
    let (code, told, log) = dial("+15550000486", &[]).await;
    assert_eq!(code, Some(10), "{told}{log}");
    assert!(told.contains("busy: 486"), "{told}");
    assert!(!told.contains("5550000486"), "the number is masked: {told}");

    let persona = json!({ "instructions": "You sell pumps.", "greeting": "Pumps here." });
    let file = world.data().join("personas/pumps.json");
    std::fs::write(file, persona.to_string()).expect("a persona");
    let lead = world.data().join("lead.json");
    std::fs::write(
        &lead,
        json!({ "name": "Asha", "lead_id": "L-7" }).to_string(),
    )
    .expect("a lead");
    let hang_up = async {
        let room = eventually("room of the call", async || {
            world.journal().contains("Pumps here.").then_some(())?;
            let mut rooms = world.room_names().into_iter();
            rooms.find(|name| name.starts_with("dial-"))
        })
        .await;
        let everybody = world.everybody_in(&room);
        let telephone = everybody
            .iter()
            .find(|participant| participant.kind() == Kind::Sip)
            .expect("the telephone is there");
        let identity = telephone.identity.clone();
        let client = world.telephone();
        let left = client.transfer_sip_participant(
            room,
            identity,
            "tel:+15550100155".into(),
            TransferSIPParticipantOptions {
                ringing_timeout: Some(Duration::from_secs(20)),
                ..Default::default()
            },
        );
        left.await.expect("the telephone leaves");
    };
    let lead = lead.display().to_string();
    let arguments = ["--persona", "pumps", "--lead", &lead];
    let ((code, told, log), ()) = tokio::join!(dial("+15550100177", &arguments), hang_up);
    assert_eq!(code, Some(0), "{told}{log}");
    for word in [
        "ringing",
        "answered",
        "agent: Pumps here.",
        "CLIENT_INITIATED",
    ] {
        assert!(told.contains(word), "{word}: {told}");
    }
    let calls = world.delivered(2).await;
    let call = calls
        .iter()
        .find(|call| call.record["dial"]["outcome"] == "answered")
        .expect("the answered one");
    assert_eq!(call.record["persona"], "pumps");
    let metadata = &call.record["context"]["dispatch"]["metadata"];
    assert_eq!(metadata["lead"]["lead_id"], "L-7", "{metadata}");
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_pressed_and_a_transfer_that_fails_brings_the_agent_back() {
    const STAYS: &str = "Nobody is free.";
    let agent = json!([
        { "when": "words", "tool": { "name": "send_dtmf", "arguments": { "keys": "12#" } } },
        { "after_tool": "send_dtmf", "tool": { "name": "transfer_call", "arguments": { "to": "sales" } } },
        { "after_tool": "transfer_call", "say": STAYS },
    ]);
    let settings = [
        (
            "VOICEBOT__TOOLS__ENABLED",
            "[\"send_dtmf\", \"transfer_call\"]",
        ),
        (
            "VOICEBOT__TOOLS__TRANSFER__TARGETS__SALES",
            "tel:+15550100155",
        ),
    ];
    let world = World::new(agent, &settings).await;
    let worker = world.worker().await;
    // The room server knows no call of this telephone, so that its transfer is refused.
    let mut caller = world.telephone_joins("keys", "active", true).await;
    world.dispatch("keys", Value::Null).await;
    caller.agent_has_said(1).await;
    caller.ask(LONG_LINE).await;
    caller.hang_up().await;
    let call = &world.delivered(1).await[0];
    let uses = call.record["tool_uses"].as_array().expect("uses of tools");
    let results: Vec<&str> = uses
        .iter()
        .filter_map(|used| used["result"].as_str())
        .collect();
    assert!(results[0].contains("pressed"), "{results:?}");
    assert!(results[1].contains("still with you"), "{results:?}");
    assert!(
        call.transcript().contains(&format!("assistant: {STAYS}")),
        "{:?}",
        call.transcript()
    );
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_answers_and_says_nothing_is_greeted_and_the_record_says_so() {
    let world = World::new(json!([]), ALWAYS).await;
    let worker = world.worker().await;
    let metadata = json!({ "phone_number": "+15550100177", "dial": { "answering_machine": true } });
    world.dispatch("judged", metadata).await;
    hear_greeting_and_hang_up(&world, "judged", "sip_+15550100177").await;
    let call = &world.delivered(1).await[0];
    assert_eq!(call.record["answered_by"], "no_speech");
    let detection = &call.record["answer_detection"];
    assert_eq!(detection["reason"], "silence", "{detection}");
    assert!(detection["after_ms"].as_u64() >= Some(5_000), "{detection}");
    let details = &call.call["callDetails"];
    assert_eq!(details["answeredBy"], "no_speech");
    assert_eq!(details["status"], "completed", "somebody was talked to");
    world.nothing_is_left(worker).await;
}
