//! An allocation against an emulated server, in virtual time.

use proptest::prelude::*;

use super::*;

const REALM: &[u8] = b"example.org";
pub(in crate::ice) const RELAYED: &str = "198.51.100.7:50000";
pub(in crate::ice) const PEER: &str = "203.0.113.9:40000";

pub(in crate::ice) fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// A TURN server that knows one user and grants what it is asked for, unless told otherwise.
pub(in crate::ice) struct TurnServer {
    nonce: Vec<u8>,
    /// Answers everything with this error, once the password is right.
    pub error: Option<u16>,
    refuses_peers: bool,
    pub asked: Vec<(Method, Option<u32>)>,
}

impl TurnServer {
    pub fn new() -> Self {
        Self {
            nonce: b"first".to_vec(),
            error: None,
            refuses_peers: false,
            asked: vec![],
        }
    }

    pub fn answer(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let message = Message::parse(packet).expect("the client writes good messages");
        if message.class != Class::Request {
            return None;
        }
        let error = |code: u16| {
            let value = [0, 0, (code / 100) as u8, (code % 100) as u8, b'n', b'o'];
            Writer::new(message.method, Class::Error, message.id)
                .attribute(attribute::ERROR_CODE, &value)
                .attribute(attribute::REALM, REALM)
                .attribute(attribute::NONCE, &self.nonce)
                .finish()
        };
        let key = long_term_key("user", REALM, "secret");
        if message.attribute(attribute::USERNAME) != Some(b"user")
            || !message.is_from_holder_of(&key)
        {
            return Some(error(UNAUTHORIZED));
        }
        if message.attribute(attribute::NONCE) != Some(&self.nonce) {
            return Some(error(STALE_NONCE));
        }
        self.asked
            .push((message.method, message.number(attribute::LIFETIME)));
        let of_peer = matches!(
            message.method,
            Method::CreatePermission | Method::ChannelBind
        );
        if let Some(code) = self
            .error
            .or((of_peer && self.refuses_peers).then_some(403))
        {
            return Some(error(code));
        }
        let answer = Writer::new(message.method, Class::Success, message.id);
        let answer = match message.method {
            Method::Allocate => answer
                .address(attribute::XOR_RELAYED_ADDRESS, address(RELAYED))
                .address(attribute::XOR_MAPPED_ADDRESS, address("192.0.2.5:777"))
                .attribute(attribute::LIFETIME, &600u32.to_be_bytes()),
            Method::Refresh => answer.attribute(attribute::LIFETIME, &600u32.to_be_bytes()),
            _ => answer,
        };
        Some(answer.integrity(&key).finish())
    }

    /// Answers until the client sends nothing more; returns what was meant for peers.
    fn serve(&mut self, now: Instant, client: &mut Allocation) -> Vec<Vec<u8>> {
        let mut for_peers = vec![];
        while let Some(packet) = client.transmits.pop_front() {
            if read_channel_data(&packet).is_some() {
                for_peers.push(packet);
            } else if let Some(answer) = self.answer(&packet) {
                assert_eq!(client.handle(now, &answer), None);
            } else {
                for_peers.push(packet);
            }
        }
        for_peers
    }
}

fn allocated(now: Instant, server: &mut TurnServer, over_stream: bool) -> Allocation {
    let mut client = Allocation::new(now, "user", "secret", over_stream, false);
    server.serve(now, &mut client);
    let expected = TurnEvent::Allocated {
        relayed: address(RELAYED),
        mapped: Some(address("192.0.2.5:777")),
    };
    assert_eq!(client.events.pop_front(), Some(expected));
    client
}

#[test]
fn a_relay_is_allocated_and_carries_data_in_both_directions() {
    for over_stream in [false, true] {
        let (now, peer) = (Instant::now(), address(PEER));
        let mut server = TurnServer::new();
        let mut client = allocated(now, &mut server, over_stream);
        client.send(now, peer, b"check");
        let for_peers = server.serve(now, &mut client);
        assert_eq!(for_peers.len(), 1, "it has waited for the permission");
        client.send(now, peer, b"sound");
        let packet = client.transmits.pop_front().expect("a packet");
        let mut expected = b"\x40\0\0\x05sound".to_vec();
        if over_stream {
            expected.resize(12, 0);
        }
        assert_eq!(packet, expected);
        assert_eq!(client.handle(now, &packet), Some((peer, &b"sound"[..])));
        let indication = Writer::new(Method::Data, Class::Indication, TransactionId([3; 12]))
            .address(attribute::XOR_PEER_ADDRESS, peer)
            .attribute(attribute::DATA, b"early")
            .finish();
        assert_eq!(client.handle(now, &indication), Some((peer, &b"early"[..])));
    }
}

#[test]
fn a_new_nonce_is_taken_on() {
    let now = Instant::now();
    let mut server = TurnServer::new();
    let mut client = allocated(now, &mut server, false);
    server.nonce = b"second".to_vec();
    client.send(now, address(PEER), b"check");
    assert_eq!(server.serve(now, &mut client).len(), 1);
}

#[test]
fn refusals_end_the_allocation_with_the_code_of_the_server() {
    for (password, error, code) in [
        ("wrong", None, UNAUTHORIZED),
        ("secret", Some(486), 486),
        ("secret", Some(508), 508),
        ("secret", Some(STALE_NONCE), STALE_NONCE),
    ] {
        let now = Instant::now();
        let mut server = TurnServer::new();
        server.error = error;
        let mut client = Allocation::new(now, "user", password, false, false);
        server.serve(now, &mut client);
        match client.events.pop_front() {
            Some(TurnEvent::Refused(refusal)) => assert_eq!(refusal.code, code),
            other => panic!("{code}: {other:?}"),
        }
        assert!(client.is_over() && client.next_timeout().is_none());
    }
}

#[test]
fn an_answer_without_the_password_is_not_believed() {
    let now = Instant::now();
    let mut server = TurnServer::new();
    let mut client = Allocation::new(now, "user", "secret", false, false);
    let first = client.transmits.pop_front().expect("a request");
    let challenge = server.answer(&first).expect("a challenge");
    client.handle(now, &challenge);
    let request = client.transmits.pop_front().expect("a signed request");
    let id = Message::parse(&request).expect("a good message").id;
    let forged = Writer::new(Method::Allocate, Class::Success, id)
        .address(attribute::XOR_RELAYED_ADDRESS, address("192.0.2.66:1"))
        .finish();
    client.handle(now, &forged);
    assert!(client.events.is_empty() && client.relayed().is_none());
}

#[test]
fn a_silent_server_is_given_up() {
    let start = Instant::now();
    let mut client = Allocation::new(start, "user", "secret", false, false);
    while let Some(at) = client.next_timeout() {
        client.handle_timeout(at);
    }
    assert_eq!(client.transmits.len(), 5);
    match client.events.pop_front() {
        Some(TurnEvent::Refused(refusal)) => assert_eq!(refusal.code, UNREACHABLE),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_hour_of_sound_keeps_allocation_permission_and_channel_alive() {
    let start = Instant::now();
    let mut server = TurnServer::new();
    let mut client = allocated(start, &mut server, false);
    let mut now = start;
    let mut renewed = start;
    while now < start + Duration::from_secs(3600) {
        client.send(now, address(PEER), b"sound");
        let before = server.asked.len();
        assert_eq!(server.serve(now, &mut client).len(), 1);
        if server.asked.len() > before {
            renewed = now;
        }
        assert!(
            now < renewed + Duration::from_secs(300),
            "something has run out"
        );
        now += Duration::from_secs(5);
        client.handle_timeout(now);
    }
    let count = |wanted| {
        server
            .asked
            .iter()
            .filter(|(method, _)| *method == wanted)
            .count()
    };
    assert!(
        (6..=7).contains(&count(Method::Refresh)),
        "{}",
        count(Method::Refresh)
    );
    assert!((15..=16).contains(&count(Method::CreatePermission)));
    assert!((7..=8).contains(&count(Method::ChannelBind)));
    assert!(client.events.is_empty());
}

#[test]
fn a_server_that_goes_is_tried_until_the_allocation_has_run_out() {
    let start = Instant::now();
    let mut client = allocated(start, &mut TurnServer::new(), false);
    let mut now = start;
    while client.events.is_empty() {
        now = client.next_timeout().expect("it waits for something");
        client.handle_timeout(now);
    }
    match client.events.pop_front() {
        Some(TurnEvent::Lost(refusal)) => assert_eq!(refusal.code, UNREACHABLE),
        other => panic!("{other:?}"),
    }
    let after = now - start;
    assert!((600..615).contains(&after.as_secs()), "{after:?}");
}

#[test]
fn a_broken_connection_is_a_lost_relay() {
    let now = Instant::now();
    let mut client = allocated(now, &mut TurnServer::new(), true);
    client.connection_lost("it was closed".to_owned());
    assert!(matches!(
        client.events.pop_front(),
        Some(TurnEvent::Lost(_))
    ));
    client.send(now, address(PEER), b"late");
    assert!(client.transmits.is_empty());
}

#[test]
fn peers_that_the_server_forbids_are_left_alone() {
    let now = Instant::now();
    let mut server = TurnServer::new();
    server.refuses_peers = true;
    let mut client = allocated(now, &mut server, false);
    for _ in 0..3 {
        client.send(now, address(PEER), b"check");
        assert!(server.serve(now, &mut client).is_empty());
    }
    let asked = server
        .asked
        .iter()
        .filter(|(method, _)| *method != Method::Allocate);
    assert_eq!(asked.count(), 2, "once for each right");
    assert!(client.relayed().is_some());
}

#[test]
fn closing_gives_the_allocation_back() {
    let now = Instant::now();
    let mut server = TurnServer::new();
    let mut client = allocated(now, &mut server, false);
    client.close();
    server.serve(now, &mut client);
    assert_eq!(server.asked.last(), Some(&(Method::Refresh, Some(0))));
    assert!(client.next_timeout().is_none());
}

#[test]
fn another_server_can_be_named() {
    let now = Instant::now();
    let mut client = Allocation::new(now, "user", "secret", false, false);
    let request = client.transmits.pop_front().expect("a request");
    let id = Message::parse(&request).expect("a good message").id;
    let redirect = Writer::new(Method::Allocate, Class::Error, id)
        .attribute(attribute::ERROR_CODE, &[0, 0, 3, 0])
        .attribute(
            attribute::ALTERNATE_SERVER,
            &[0, 1, 0x0d, 0x96, 192, 0, 2, 9],
        )
        .finish();
    client.handle(now, &redirect);
    let expected = TurnEvent::Redirected(address("192.0.2.9:3478"));
    assert_eq!(client.events.pop_front(), Some(expected));
}

#[test]
fn messages_are_found_in_a_stream_whatever_the_pieces() {
    let stun = Writer::new(Method::Refresh, Class::Success, TransactionId([9; 12])).finish();
    let data = channel_data(0x4001, b"hello", true).expect("short enough");
    let stream = [&stun[..], &data[..], &stun[..]].concat();
    let (mut buffer, mut found) = (vec![], vec![]);
    for byte in stream {
        buffer.push(byte);
        found.extend(take_message(&mut buffer).expect("this is TURN"));
    }
    assert_eq!(found, [stun.clone(), data, stun]);
    assert_eq!(
        take_message(&mut b"HTTP".to_vec()),
        Ok(None),
        "a length of 21,588"
    );
    assert_eq!(take_message(&mut vec![0x80, 0, 0, 0]), Err(NotTurn));
}

proptest! {
    #[test]
    fn no_bytes_break_an_allocation(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20)) {
        let now = Instant::now();
        let mut client = allocated(now, &mut TurnServer::new(), false);
        for packet in packets {
            client.send(now, address(PEER), &packet);
            let _ = client.handle(now, &packet);
            let mut stream = packet;
            while let Ok(Some(_)) = take_message(&mut stream) {}
        }
        prop_assert!(client.relayed().is_some());
    }

    /// Responses of every kind to every request, with any attributes: an allocation may end, but
    /// nothing panics.
    #[test]
    fn no_answers_break_an_allocation(answers in prop::collection::vec((any::<bool>(), 0u16..0x30, prop::collection::vec(any::<u8>(), 0..24), any::<bool>()), 1..40)) {
        let mut now = Instant::now();
        let mut client = Allocation::new(now, "user", "secret", false, true);
        let key = long_term_key("user", REALM, "secret");
        for (error, kind, value, signed) in answers {
            client.send(now, address(PEER), b"check");
            let Some(request) = client.transmits.pop_front() else { break };
            let Ok(request) = Message::parse(&request) else { continue };
            let class = if error { Class::Error } else { Class::Success };
            let mut answer = Writer::new(request.method, class, request.id)
                .attribute(kind, &value)
                .attribute(attribute::REALM, REALM)
                .attribute(attribute::NONCE, &value)
                .address(attribute::XOR_RELAYED_ADDRESS, address(RELAYED));
            if signed {
                answer = answer.integrity(&key);
            }
            let _ = client.handle(now, &answer.finish());
            now += Duration::from_millis(700);
            client.handle_timeout(now);
        }
        client.close();
        prop_assert!(client.next_timeout().is_none());
    }
}
