//! Callers on the telephone: the numbers, who called whom, and how a call ends that was not
//! answered.

use std::collections::HashMap;
use std::time::Duration;

use livekit_api::services::sip::{CreateSIPParticipantOptions, TransferSIPParticipantOptions};
use livekit_protocol::CreateAgentDispatchRequest;
use serde_json::{Value, json};

use crate::support::world::{AGENT_NAME, GREETING, World, eventually};

/// Our own number.
const TRUNK: &str = "+15550100001";

/// The agent waits in a room; then this number is called from there.
pub async fn telephone(world: &World, room: &str, number: &str, ringing_timeout: Option<Duration>) {
    world.dispatch(room, Value::Null).await;
    world.agent_joins(room).await;
    let options = CreateSIPParticipantOptions {
        ringing_timeout,
        ..Default::default()
    };
    place_call(world, room, number, options).await;
}

async fn place_call(world: &World, room: &str, number: &str, options: CreateSIPParticipantOptions) {
    let options = CreateSIPParticipantOptions {
        participant_identity: "phone".into(),
        sip_number: Some(TRUNK.into()),
        ..options
    };
    let telephone = world.telephone();
    let called = telephone.create_sip_participant(
        "ST_test".into(),
        number.into(),
        room.into(),
        options,
        None,
    );
    called.await.expect("the number is called");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn telephone_is_answered_and_hangs_up() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    telephone(&world, "outbound", "+15550100177", None).await;
    eventually("greeting", async || {
        world.journal().contains(GREETING).then_some(())
    })
    .await;
    let telephone = world.telephone();
    let transfer = telephone.transfer_sip_participant(
        "outbound".into(),
        "phone".into(),
        "tel:+15550100155".into(),
        TransferSIPParticipantOptions::default(),
    );
    transfer.await.expect("the telephone is transferred");

    let call = &world.delivered(1).await[0];
    call.ended(
        "completed",
        "participant_disconnected",
        Some("CLIENT_INITIATED"),
    );
    assert_eq!(call.record["dialed_number"], "+15550100177");
    assert_eq!(call.record["trunk_number"], TRUNK);
    assert_eq!(call.record["direction"], "outbound");
    let details = &call.call["callDetails"];
    assert_eq!(details["direction"], "outbound");
    assert_eq!(details["trunkNumber"], TRUNK);
    assert_eq!(details["disconnectReason"], "CLIENT_INITIATED");
    assert_eq!(details["callStatus"], "completed");
    assert!(details["ringDuration"].is_u64(), "{details}");
    assert_eq!(details["answerTime"], call.record["timestamps"]["answered"]);
    assert_eq!(call.call["caller"]["phoneNumber"], "+15550100177");
    assert_eq!(call.transcript(), [format!("assistant: {GREETING}")]);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn telephones_that_do_not_answer_are_told_apart() {
    const CALLS: [(&str, &str, &str, Option<Duration>); 5] = [
        // The line is busy.
        ("+15550000486", "no_answer", "USER_UNAVAILABLE", None),
        // The callee declines.
        ("+15550000603", "busy", "USER_REJECTED", None),
        // The trunk is broken.
        ("+15550000503", "failed", "SIP_TRUNK_FAILURE", None),
        // It rings until the network gives up.
        (
            "+15510000408",
            "no_answer",
            "USER_UNAVAILABLE",
            Some(Duration::from_secs(1)),
        ),
        // It rings for longer than we wait.
        (
            "+15520000408",
            "no_answer",
            "NEVER_ANSWERED",
            Some(Duration::from_secs(60)),
        ),
    ];
    let world = World::new(json!([]), &[("VOICEBOT__CALL__RING_WAIT_S", "3")]).await;
    let worker = world.worker().await;
    for (number, _, _, ringing_timeout) in CALLS {
        telephone(
            &world,
            &format!("room of {}", &number[1..]),
            number,
            ringing_timeout,
        )
        .await;
    }
    let delivered = world.delivered(CALLS.len()).await;
    for (number, status, reason, _) in CALLS {
        let call = delivered
            .iter()
            .find(|call| call.record["dialed_number"] == number)
            .unwrap_or_else(|| panic!("no call is filed under {number}"));
        let close = match reason {
            "NEVER_ANSWERED" => "job_shutdown",
            _ => "participant_disconnected",
        };
        call.ended(status, close, Some(reason));
        assert_eq!(call.record["direction"], "outbound", "{number}");
        assert_eq!(call.record["trunk_number"], TRUNK, "{number}");
        let details = &call.call["callDetails"];
        assert_eq!(details["duration"], 0, "nobody talked to {number}");
        assert_eq!(call.call["transcription"]["duration_seconds"], 0);
        assert_eq!(details["answerTime"], Value::Null, "{number}");
        assert_eq!(details["disconnectReason"], reason, "{number}");
        assert!(details["ringDuration"].is_u64(), "{number}: {details}");
        assert_eq!(call.call["campaignId"], "campaign-1", "{number}");
        assert_eq!(call.transcript(), [""; 0], "{number}");
    }
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_dispatcher_and_trunk_said_of_a_call_reaches_record_and_crm() {
    let world = World::new(json!([]), &[]).await;
    let worker = world.worker().await;
    let request = CreateAgentDispatchRequest {
        agent_name: AGENT_NAME.into(),
        room: "joined".into(),
        metadata: json!({ "lead_id": 4711, "list": "spring", "crm_token": "t0ps3cret" })
            .to_string(),
        attributes: HashMap::from([("queue".to_owned(), "north".to_owned())]),
        ..Default::default()
    };
    let dispatch = world.dispatches().create_dispatch(request).await;
    dispatch.expect("the dispatch is made");
    world.agent_joins("joined").await;
    let options = CreateSIPParticipantOptions {
        participant_metadata: Some(r#"{"tier":"gold"}"#.into()),
        participant_attributes: Some(HashMap::from(
            [
                ("sip.h.X-Customer-Id", "C-99"),
                ("sip.callIDFull", "a84b4c76e66710@pbx.example.com"),
                ("sip.h.Authorization", "Digest t0ps3cret"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        )),
        ..Default::default()
    };
    place_call(&world, "joined", "+15550100177", options).await;
    eventually("greeting", async || {
        world.journal().contains(GREETING).then_some(())
    })
    .await;
    let gone = world.rooms().remove_participant("joined", "phone").await;
    gone.expect("the telephone is sent away");

    let call = &world.delivered(1).await[0];
    let context = &call.call["context"];
    assert_eq!(*context, call.record["context"]);
    let dispatch = json!({
        "metadata": { "lead_id": 4711, "list": "spring" }, "attributes": { "queue": "north" },
    });
    assert_eq!(context["dispatch"], dispatch);
    let participant = &context["participant"];
    assert_eq!(participant["identity"], "phone");
    assert_eq!(participant["metadata"], json!({ "tier": "gold" }));
    assert_eq!(participant["attributes"]["sip.h.X-Customer-Id"], "C-99");
    assert_eq!(participant["attributes"]["sip.callStatus"], "active");
    assert_eq!(
        context["omitted"],
        json!([
            "dispatch.metadata.crm_token",
            "participant.attributes.sip.h.Authorization"
        ])
    );
    let details = &call.call["callDetails"];
    assert_eq!(details["carrierCallId"], "a84b4c76e66710@pbx.example.com");
    assert_eq!(details["sipCallId"], call.record["sip_call_id"]);
    assert!(details["sipCallId"].is_string(), "{details}");
    assert!(!call.call.to_string().contains("t0ps3cret"));
    assert!(!call.record.to_string().contains("t0ps3cret"));
    assert!(!world.log().contains("t0ps3cret"));
    world.nothing_is_left(worker).await;
}
