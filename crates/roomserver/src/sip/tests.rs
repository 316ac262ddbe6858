//! Telephone calls, as their caller and an observer of the room see them.

use std::time::Duration;

use livekit_protocol as proto;
use proto::DisconnectReason;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::Script;
use crate::rooms::RoomEvent;
use crate::testkit::*;
use crate::token::VideoGrants;

fn call_to(number: &str) -> Value {
    json!({
        "sip_trunk_id": "ST_1",
        "sip_number": "+15550100",
        "sip_call_to": number,
        "room_name": "call-1",
        "participant_attributes": { "lead": "7" },
    })
}

async fn next(events: &mut broadcast::Receiver<RoomEvent>) -> RoomEvent {
    tokio::time::timeout(PATIENCE, events.recv())
        .await
        .expect("an event in time")
        .expect("the server runs")
}

/// The statuses of the call in order, up to this one, and why it ended if it did.
async fn statuses(
    events: &mut broadcast::Receiver<RoomEvent>,
    last: &str,
) -> (Vec<String>, Option<DisconnectReason>) {
    let mut seen: Vec<String> = Vec::new();
    loop {
        let (participant, end) = match next(events).await {
            RoomEvent::ParticipantJoined { participant, .. }
            | RoomEvent::ParticipantChanged { participant, .. } => (participant, None),
            RoomEvent::ParticipantLeft { participant, .. } => {
                let reason = participant.disconnect_reason();
                (participant, Some(reason))
            }
            _ => continue,
        };
        let status = participant.attributes["sip.callStatus"].clone();
        if seen.last() != Some(&status) {
            seen.push(status.clone());
        }
        if end.is_some() || status == last {
            return (seen, end);
        }
    }
}

#[test]
fn the_number_tells_what_happens() {
    assert_eq!(
        Script::of("+15550000486"),
        Script::Fails(proto::SipStatusCode::SipStatusBusyHere)
    );
    assert_eq!(Script::of("tel:+1 555 0000-408"), Script::RingsOn);
    for answers in ["+15550100486", "+15550000200", "+15550000999", "486", ""] {
        assert_eq!(Script::of(answers), Script::Answers, "{answers}");
    }
}

#[tokio::test]
async fn an_answered_call_dials_rings_is_active_and_publishes() {
    let server = start().await;
    let mut events = server.rooms().subscribe();
    let placed = call_ok(
        &server,
        "call-1",
        "SIP/CreateSIPParticipant",
        call_to("+15550999"),
    )
    .await;
    assert_eq!(placed["participant_identity"], "sip_+15550999");
    assert!(
        placed["sip_call_id"]
            .as_str()
            .is_some_and(|id| id.starts_with("SCL_"))
    );
    let (seen, _) = statuses(&mut events, "active").await;
    assert_eq!(seen, ["dialing", "ringing", "active"]);
    let caller = server
        .rooms()
        .participant("call-1", "sip_+15550999")
        .expect("the callee is there");
    assert_eq!(
        (caller.kind(), caller.name.as_str()),
        (proto::participant_info::Kind::Sip, "Phone +15550999")
    );
    for (name, value) in [
        ("sip.phoneNumber", "+15550999"),
        ("sip.trunkPhoneNumber", "+15550100"),
        ("sip.trunkID", "ST_1"),
        ("lead", "7"),
    ] {
        assert_eq!(caller.attributes[name], value);
    }
    assert_eq!(
        caller.attributes["sip.callID"],
        placed["sip_call_id"].as_str().unwrap_or_default()
    );

    let mut packets = server.rooms().tap("call-1").expect("the room is open");
    let packet = tokio::time::timeout(PATIENCE, packets.recv())
        .await
        .expect("sound in time")
        .expect("the room is open");
    assert_eq!(
        (packet.identity.as_str(), packet.kind),
        ("sip_+15550999", proto::participant_info::Kind::Sip)
    );
    let mut decoder = opus::Decoder::new(48_000, opus::Channels::Mono).expect("the codec starts");
    let mut pcm = [1; 960];
    assert_eq!(
        decoder.decode(&packet.payload, &mut pcm, false).ok(),
        Some(960)
    );
    assert!(pcm.iter().all(|value| value.abs() < 10));

    server
        .rooms()
        .remove_participant("call-1", "sip_+15550999")
        .expect("the callee is there");
    let (_, reason) = statuses(&mut events, "never").await;
    assert_eq!(reason, Some(DisconnectReason::ParticipantRemoved));
    server.shutdown().await;
}

#[tokio::test]
async fn a_failed_call_is_an_error_with_its_sip_status_and_the_reason_on_the_participant() {
    let server = start().await;
    let mut events = server.rooms().subscribe();
    for (number, http_status, code, sip_status, reason) in [
        (
            "+15550000486",
            429,
            "resource_exhausted",
            "486",
            DisconnectReason::UserUnavailable,
        ),
        (
            "+15550000603",
            403,
            "permission_denied",
            "603",
            DisconnectReason::UserRejected,
        ),
        (
            "+15550000503",
            412,
            "failed_precondition",
            "503",
            DisconnectReason::SipTrunkFailure,
        ),
    ] {
        let mut request = call_to(number);
        request["wait_until_answered"] = json!(true);
        let (status, error) = call(
            &server,
            &admin("call-1"),
            "SIP/CreateSIPParticipant",
            request,
        )
        .await;
        assert_eq!(
            (status, error["code"].as_str()),
            (http_status, Some(code)),
            "{error}"
        );
        assert_eq!(error["meta"]["sip_status_code"], sip_status);
        let (seen, left) = statuses(&mut events, "never").await;
        assert_eq!(seen, ["dialing", "ringing", "hangup"]);
        assert_eq!(left, Some(reason));
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_call_may_fail_before_it_rings() {
    let server = start().await;
    let mut events = server.rooms().subscribe();
    let mut request = call_to("+15550001404");
    request["wait_until_answered"] = json!(true);
    let (status, error) = call(
        &server,
        &admin("call-1"),
        "SIP/CreateSIPParticipant",
        request,
    )
    .await;
    assert_eq!((status, error["code"].as_str()), (404, Some("not_found")));
    assert_eq!(error["meta"]["sip_status_code"], "404");
    let (seen, left) = statuses(&mut events, "never").await;
    assert_eq!(seen, ["dialing", "hangup"]);
    assert!(left.is_some());
    server.shutdown().await;
}

#[tokio::test]
async fn nobody_answers_until_the_ringing_times_out() {
    let server = start().await;
    let mut events = server.rooms().subscribe();
    let mut request = call_to("+15550000408");
    request["ringing_timeout"] = json!("20s");
    call_ok(&server, "call-1", "SIP/CreateSIPParticipant", request).await;
    let (seen, left) = statuses(&mut events, "ringing").await;
    assert_eq!(
        (seen.last().map(String::as_str), left),
        (Some("ringing"), None)
    );
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(21)).await;
    tokio::time::resume();
    let (_, left) = statuses(&mut events, "never").await;
    assert_eq!(left, Some(DisconnectReason::UserUnavailable));
    server.shutdown().await;
}

#[tokio::test]
async fn a_transfer_takes_the_call_out_of_the_room_unless_it_fails() {
    let server = start().await;
    let mut events = server.rooms().subscribe();
    let mut request = call_to("+15550999");
    request["wait_until_answered"] = json!(true);
    call_ok(&server, "call-1", "SIP/CreateSIPParticipant", request).await;
    let to = |target: &str| json!({ "room_name": "call-1", "participant_identity": "sip_+15550999", "transfer_to": target });
    let (status, error) = call(
        &server,
        &admin("call-1"),
        "SIP/TransferSIPParticipant",
        to("tel:+15550000486"),
    )
    .await;
    assert_eq!(
        (status, error["meta"]["sip_status_code"].as_str()),
        (429, Some("486"))
    );
    assert!(
        server
            .rooms()
            .participant("call-1", "sip_+15550999")
            .is_ok(),
        "a failed transfer leaves the call as it was"
    );
    let (status, _) = call(
        &server,
        &admin("call-1"),
        "SIP/TransferSIPParticipant",
        to("+15550777"),
    )
    .await;
    assert_eq!(status, 400, "a number alone is no address");
    call_ok(
        &server,
        "call-1",
        "SIP/TransferSIPParticipant",
        to("sip:+15550777@example.com"),
    )
    .await;
    let (_, left) = statuses(&mut events, "never").await;
    assert_eq!(left, Some(DisconnectReason::ClientInitiated));
    server.shutdown().await;
}

#[tokio::test]
async fn a_call_needs_its_grant_a_number_and_a_trunk() {
    let server = start().await;
    let powerless = token(VideoGrants {
        room_admin: true,
        room: "call-1".into(),
        ..Default::default()
    });
    for method in ["CreateSIPParticipant", "TransferSIPParticipant"] {
        let mut request = call_to("+15550999");
        request["participant_identity"] = json!("sip_+15550999");
        let (status, _) = call(&server, &powerless, &format!("SIP/{method}"), request).await;
        assert_eq!(status, 401, "{method}");
    }
    for missing in ["sip_call_to", "room_name"] {
        let mut request = call_to("+15550999");
        request[missing] = json!("");
        let (status, error) = call(
            &server,
            &admin("call-1"),
            "SIP/CreateSIPParticipant",
            request,
        )
        .await;
        assert_eq!(
            (status, error["code"].as_str()),
            (400, Some("invalid_argument")),
            "{missing}"
        );
    }
    let (status, error) = call(
        &server,
        &admin("call-1"),
        "SIP/CreateSIPOutboundTrunk",
        json!({}),
    )
    .await;
    assert_eq!(
        (status, error["code"].as_str()),
        (501, Some("unimplemented"))
    );
    server.shutdown().await;
}

#[tokio::test]
async fn dispatch_rules_are_kept_and_listed() {
    let server = start().await;
    let rule = json!({ "dispatch_rule": {
        "rule": { "dispatch_rule_individual": { "room_prefix": "call-" } },
    } });
    let (status, _) = call(
        &server,
        &token(VideoGrants::default()),
        "SIP/CreateSIPDispatchRule",
        rule.clone(),
    )
    .await;
    assert_eq!(status, 401);
    let (status, answer) = call(
        &server,
        &admin(""),
        "SIP/CreateSIPDispatchRule",
        json!({ "dispatch_rule": {} }),
    )
    .await;
    assert_eq!(
        (status, answer["code"].as_str()),
        (400, Some("invalid_argument"))
    );
    let kept = call_ok(&server, "", "SIP/CreateSIPDispatchRule", rule).await;
    let id = kept["sip_dispatch_rule_id"].as_str().expect("an id");
    assert!(id.starts_with("SDR_"), "{id}");
    let listed = call_ok(&server, "", "SIP/ListSIPDispatchRule", json!({})).await;
    assert_eq!(listed["items"], json!([kept]));
}
