//! Callers on the telephone: the numbers, who called whom, and how a call ends that was not answered.

use std::time::Duration;

use livekit_api::services::sip::{CreateSIPParticipantOptions, TransferSIPParticipantOptions};
use serde_json::{Value, json};

use crate::support::world::{GREETING, World, eventually};

/// Our own number.
const TRUNK: &str = "+15550100001";

/// The agent waits in a room; then this number is called from there.
async fn telephone(world: &World, room: &str, number: &str, ringing_timeout: Option<Duration>) {
    world.dispatch(room, Value::Null).await;
    world.agent_joins(room).await;
    let options = CreateSIPParticipantOptions {
        participant_identity: "phone".into(),
        sip_number: Some(TRUNK.into()),
        ringing_timeout,
        ..Default::default()
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
    assert_eq!(call.call["callDetails"]["direction"], "outbound");
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
        assert_eq!(call.call["campaignId"], "campaign-1", "{number}");
        assert_eq!(call.transcript(), [""; 0], "{number}");
    }
    world.nothing_is_left(worker).await;
}
