//! What clients see: joining, hearing each other, data, reconnecting, being removed.

mod support;

use livekit_protocol as proto;
use proto::participant_info::State;
use proto::signal_request::Message as Request;
use proto::signal_response::Message as Signal;
use roomserver::token::VideoGrants;
use roomserver::{RoomEvent, RoomOptions};
use support::{Client, claims, open, server, sign, until};

fn user_packet(text: &str) -> proto::DataPacket {
    let user = proto::UserPacket {
        payload: text.into(),
        topic: Some("test".into()),
        ..Default::default()
    };
    proto::DataPacket {
        value: Some(proto::data_packet::Value::User(user)),
        ..Default::default()
    }
}

#[tokio::test]
async fn who_has_no_token_for_the_room_is_refused() {
    let server = server().await;
    assert_eq!(
        open(&server.url(), "/rtc", "nonsense").await.err(),
        Some(401)
    );
    let mut listless = claims("caller", "call");
    listless.video = VideoGrants {
        room_list: true,
        ..Default::default()
    };
    assert_eq!(
        open(&server.url(), "/rtc", &sign(&listless)).await.err(),
        Some(401)
    );
    assert_eq!(
        open(&server.url(), "/rtc/v1", &sign(&claims("caller", "call")))
            .await
            .err(),
        Some(400)
    );
    assert!(server.rooms().list(&[]).is_empty(), "nobody has joined");
    server.shutdown().await;
}

#[tokio::test]
async fn participants_hear_each_other_and_exchange_data() {
    let server = server().await;
    let mut clients = [
        Client::join(&server, &claims("alice", "call")).await,
        Client::join(&server, &claims("bob", "call")).await,
    ];
    assert_eq!(clients[1].join.other_participants[0].identity, "alice");
    for client in &mut clients {
        client.publish();
    }
    until("both hear the other's audio", &mut clients, |clients| {
        clients.iter().all(|client| client.audio.len() > 10)
    })
    .await;
    let (alice, bob) = (&clients[0], &clients[1]);
    let track_of_bob = alice.latest("bob").expect("alice knows bob").tracks[0]
        .sid
        .clone();
    assert!(track_of_bob.starts_with("TR_"));
    assert!(
        alice
            .audio
            .iter()
            .all(|packet| *packet == (track_of_bob.clone(), b"opusbob".to_vec()))
    );
    assert!(bob.audio.iter().all(|(_, payload)| payload == b"opusalice"));

    until(
        "bob is active and shown as speaking",
        &mut clients,
        |clients| {
            let bob = clients[1].sid().to_owned();
            let active = clients[0]
                .latest("bob")
                .is_some_and(|info| info.state() == State::Active);
            active
                && clients[0].signals.iter().any(|signal| {
                    matches!(signal, Signal::SpeakersChanged(changed)
                    if changed.speakers.iter().any(|speaker| speaker.sid == bob && speaker.active))
                })
        },
    )
    .await;

    let mut sent = false;
    until(
        "alice's packet reaches bob with her name on it",
        &mut clients,
        |clients| {
            sent = sent || clients[0].send_data(&user_packet("hello"));
            !clients[1].data.is_empty()
        },
    )
    .await;
    assert_eq!(clients[1].data[0].participant_identity, "alice");
    assert_eq!(clients[1].data[0].participant_sid, clients[0].sid());
    assert!(clients[0].data.is_empty(), "nobody gets its own data back");
    server.shutdown().await;
}

#[tokio::test]
async fn redundant_audio_reaches_who_takes_it_and_is_taken_apart_for_others() {
    let server = server().await;
    let mut clients = vec![
        Client::join_with_red(&server, &claims("alice", "call")).await,
        Client::join_with_red(&server, &claims("modern", "call")).await,
        Client::join(&server, &claims("plain", "call")).await,
    ];
    let mut taps = server.rooms().tap("call").expect("the room is there");
    clients[0].loses = Some(5);
    clients[0].publish();
    until("all hear alice", &mut clients, |clients| {
        clients[1..].iter().all(|client| client.audio.len() > 40)
    })
    .await;
    let (modern, plain) = (&clients[1], &clients[2]);
    let announced = modern.latest("alice").expect("she is known").tracks[0].clone();
    assert_eq!(announced.mime_type, "audio/red");
    assert!(modern.audio_headers.iter().all(|(number, _)| *number == 63));
    assert!(
        modern
            .audio
            .iter()
            .all(|(_, payload)| payload.ends_with(b"opusaliceopusalice"))
    );
    assert!(plain.audio_headers.iter().all(|(number, _)| *number == 111));
    assert!(
        plain
            .audio
            .iter()
            .all(|(_, payload)| payload == b"opusalice")
    );
    // A client that accepts redundant audio gets the gaps, for which it has copies; for others they
    // were filled.
    let numbers = |client: &Client| -> Vec<u64> {
        let numbers = client.audio_headers.iter().map(|(_, sequence)| *sequence);
        numbers.collect()
    };
    let has_holes = |numbers: &[u64]| numbers.windows(2).any(|two| two[1] != two[0] + 1);
    assert!(has_holes(&numbers(modern)), "{:?}", numbers(modern));
    assert!(!has_holes(&numbers(plain)), "{:?}", numbers(plain));
    let mut tapped = 0;
    while let Ok(packet) = taps.try_recv() {
        assert_eq!(&packet.payload[..], b"opusalice");
        tapped += 1;
    }
    assert!(tapped > 40);
    server.shutdown().await;
}

#[tokio::test]
async fn a_late_joiner_hears_what_is_already_published_and_unpublishing_ends_it() {
    let server = server().await;
    let mut clients = vec![Client::join(&server, &claims("alice", "call")).await];
    clients[0].publish();
    until("alice is published", &mut clients, |clients| {
        clients[0]
            .latest("alice")
            .is_some_and(|info| info.is_publisher)
    })
    .await;
    clients.push(Client::join(&server, &claims("late", "call")).await);
    until("the late one hears alice", &mut clients, |clients| {
        clients[1].audio.len() > 5
    })
    .await;
    let track_sid = clients[1].join.other_participants[0].tracks[0].sid.clone();

    let subscription = proto::UpdateSubscription {
        track_sids: vec![track_sid.clone()],
        ..Default::default()
    };
    clients[1].request(Request::Subscription(subscription));
    until(
        "the section is offered as inactive",
        &mut clients,
        |clients| {
            clients[1]
                .offers
                .last()
                .is_some_and(|offer| offer.contains("a=inactive") && !offer.contains(&track_sid))
        },
    )
    .await;
    let subscription = proto::UpdateSubscription {
        track_sids: vec![track_sid.clone()],
        subscribe: true,
        ..Default::default()
    };
    clients[1].request(Request::Subscription(subscription));
    let heard = clients[1].audio.len();
    until("the late one hears alice again", &mut clients, |clients| {
        clients[1].audio.len() > heard + 10
    })
    .await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_client_that_lost_its_signalling_comes_back_as_the_same_participant() {
    let server = server().await;
    let alice = claims("alice", "call");
    let mut clients = [
        Client::join(&server, &alice).await,
        Client::join(&server, &claims("bob", "call")).await,
    ];
    clients[0].publish();
    until("bob hears alice", &mut clients, |clients| {
        clients[1].audio.len() > 5
    })
    .await;

    let mut events = server.rooms().subscribe();
    clients[0].drop_signalling();
    clients[0].resume(&server, &alice).await;
    let offers = clients[0].offers.len();
    until(
        "alice is welcomed back and offered an ICE restart",
        &mut clients,
        |clients| {
            clients[0]
                .signals
                .iter()
                .any(|signal| matches!(signal, Signal::Reconnect(_)))
                && clients[0].offers.len() > offers
        },
    )
    .await;
    let heard = clients[1].audio.len();
    until("bob still hears alice", &mut clients, |clients| {
        clients[1].audio.len() > heard + 10
    })
    .await;
    while let Ok(event) = events.try_recv() {
        assert!(
            !matches!(event, RoomEvent::ParticipantLeft { .. }),
            "nobody has left: {event:?}"
        );
    }
    server.shutdown().await;
}

#[tokio::test]
async fn who_comes_back_to_a_session_that_is_gone_has_to_join_anew() {
    let server = server().await;
    let token = sign(&claims("alice", "call"));
    let mut socket = open(&server.url(), "/rtc?reconnect=1&sid=PA_gone", &token)
        .await
        .expect("the token is good");
    use futures_util::StreamExt as _;
    use prost::Message as _;
    let message = socket
        .next()
        .await
        .expect("an answer")
        .expect("a message")
        .into_data();
    let Some(Signal::Leave(leave)) = proto::SignalResponse::decode(message)
        .expect("protobuf")
        .message
    else {
        panic!("the server says something else than leave");
    };
    assert_eq!(leave.reason(), proto::DisconnectReason::StateMismatch);
    assert_eq!(leave.action(), proto::leave_request::Action::Reconnect);
    server.shutdown().await;
}

#[tokio::test]
async fn the_same_identity_takes_the_place_of_the_older_participant() {
    let server = server().await;
    let first = Client::join(&server, &claims("alice", "call")).await;
    let watcher = Client::join(&server, &claims("bob", "call")).await;
    let old_sid = first.sid().to_owned();
    let second = Client::join(&server, &claims("alice", "call")).await;
    let mut clients = [first, watcher, second];
    until("the first alice is sent away", &mut clients, |clients| {
        clients[0].closed
    })
    .await;
    assert_eq!(
        clients[0].leave_reason(),
        Some(proto::DisconnectReason::DuplicateIdentity)
    );
    until("bob sees the new alice", &mut clients, |clients| {
        clients[1]
            .latest("alice")
            .is_some_and(|info| info.sid != old_sid)
    })
    .await;
    let alices = server
        .rooms()
        .participants("call")
        .expect("the room exists");
    assert_eq!(
        alices
            .iter()
            .filter(|info| info.identity == "alice")
            .count(),
        1
    );
    server.shutdown().await;
}

#[tokio::test]
async fn deleting_the_room_sends_everybody_away() {
    let server = server().await;
    let mut clients = [
        Client::join(&server, &claims("alice", "call")).await,
        Client::join(&server, &claims("bob", "call")).await,
    ];
    server.rooms().delete("call").expect("the room exists");
    until("both are gone", &mut clients, |clients| {
        clients.iter().all(|client| client.closed)
    })
    .await;
    for client in &clients {
        assert_eq!(
            client.leave_reason(),
            Some(proto::DisconnectReason::RoomDeleted)
        );
    }
    assert!(server.rooms().get("call").is_none());
    server.shutdown().await;
}

#[tokio::test]
async fn a_room_ends_when_only_an_agent_is_left_in_it() {
    let server = server().await;
    let mut events = server.rooms().subscribe();
    server.rooms().create(
        "call",
        RoomOptions {
            departure_timeout_s: 1,
            ..Default::default()
        },
    );
    let mut agent = claims("agent", "call");
    agent.kind = "agent".into();
    let mut clients = [
        Client::join(&server, &agent).await,
        Client::join(&server, &claims("caller", "call")).await,
    ];
    clients[1].request(Request::Leave(proto::LeaveRequest::default()));
    until("the agent is sent away", &mut clients, |clients| {
        clients[0].closed
    })
    .await;
    assert_eq!(
        clients[0].leave_reason(),
        Some(proto::DisconnectReason::RoomClosed)
    );
    let caller = clients[0]
        .latest("caller")
        .expect("the agent saw the caller");
    assert_eq!(
        caller.disconnect_reason(),
        proto::DisconnectReason::ClientInitiated
    );
    let mut finished = false;
    while let Ok(event) = events.try_recv() {
        finished |= matches!(event, RoomEvent::Finished { .. });
    }
    assert!(finished, "the room's end is announced");
    server.shutdown().await;
}

#[tokio::test]
async fn attributes_are_changed_only_by_who_may() {
    let server = server().await;
    let mut listener = claims("listener", "call");
    listener.video.can_update_own_metadata = None;
    let mut clients = [
        Client::join(&server, &claims("agent", "call")).await,
        Client::join(&server, &listener).await,
    ];
    let update = |state: &str| {
        let attributes = [("lk.agent.state".to_owned(), state.to_owned())].into();
        Request::UpdateMetadata(proto::UpdateParticipantMetadata {
            attributes,
            request_id: 7,
            ..Default::default()
        })
    };
    clients[0].request(update("listening"));
    clients[1].request(update("thinking"));
    until(
        "the listener sees the agent's state",
        &mut clients,
        |clients| {
            clients[1]
                .latest("agent")
                .is_some_and(|info| info.attributes["lk.agent.state"] == "listening")
        },
    )
    .await;
    until("the listener is refused", &mut clients, |clients| {
        clients[1].signals.iter().any(|signal| {
            matches!(signal, Signal::RequestResponse(response)
                if response.request_id == 7 && response.reason() == proto::request_response::Reason::NotAllowed)
        })
    })
    .await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_tap_hears_every_participant() {
    let server = server().await;
    let mut clients = [Client::join(&server, &claims("alice", "call")).await];
    let mut tap = server.rooms().tap("call").expect("the room exists");
    clients[0].publish();
    let mut tapped = Vec::new();
    until("packets arrive at the tap", &mut clients, |_| {
        tapped.extend(std::iter::from_fn(|| tap.try_recv().ok()));
        tapped.len() > 5
    })
    .await;
    assert!(
        tapped
            .iter()
            .all(|packet| packet.identity == "alice" && &*packet.payload == b"opusalice")
    );
    assert!(
        tapped
            .windows(2)
            .all(|pair| pair[1].timestamp.wrapping_sub(pair[0].timestamp) == 960)
    );
    server.rooms().delete("call").expect("the room exists");
    until("the tap ends with the room", &mut clients, |_| {
        tap.is_closed()
    })
    .await;
    server.shutdown().await;
}
