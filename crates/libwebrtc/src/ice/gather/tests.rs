//! Gathering from emulated servers, in virtual time.

use std::time::Duration;

use super::*;
use crate::ice::turn::tests::{PEER, RELAYED, TurnServer, address};

const HOST: &str = "192.0.2.10:1000";
const LOOPBACK: &str = "127.0.0.1:1001";

fn configured(urls: &[&str]) -> Vec<IceServer> {
    vec![IceServer {
        urls: urls.iter().map(|url| (*url).to_owned()).collect(),
        username: "user".to_owned(),
        password: "secret".to_owned(),
    }]
}

fn gatherer(now: Instant, urls: &[&str]) -> Gatherer {
    let mut gatherer = Gatherer::default();
    gatherer.set_locals(vec![address(HOST), address(LOOPBACK)]);
    gatherer.start(now, &configured(urls));
    gatherer
}

/// Resolves every host to the address that it is.
fn resolve_all(now: Instant, gatherer: &mut Gatherer) {
    for demand in std::mem::take(&mut gatherer.demands) {
        let Demand::Resolve { query, host, port } = demand else {
            gatherer.demands.push_back(demand);
            continue;
        };
        let server = SocketAddr::new(host.parse().expect("an address"), port);
        let local = address(HOST).ip();
        gatherer.resolved(now, query, Ok(vec![Route { server, local }]));
    }
}

fn stun_answer(request: &[u8], mapped: &str) -> Vec<u8> {
    let request = Message::parse(request).expect("a good request");
    Writer::new(Method::Binding, Class::Success, request.id)
        .address(attribute::XOR_MAPPED_ADDRESS, address(mapped))
        .finish()
}

#[test]
fn reflexive_addresses_are_found_and_a_silent_server_is_told_of() {
    let now = Instant::now();
    let mut gatherer = gatherer(now, &["stun:198.51.100.1", "stun:198.51.100.2:99"]);
    resolve_all(now, &mut gatherer);
    assert_eq!(
        gatherer.outgoing.len(),
        2,
        "the loopback address leads nowhere"
    );
    let Some(Outgoing::Udp {
        local,
        server,
        data,
    }) = gatherer.outgoing.pop_front()
    else {
        panic!("STUN goes over UDP");
    };
    let answer = stun_answer(&data, "203.0.113.5:4000");
    assert_eq!(
        gatherer.handle_udp(now, local, address("203.0.113.66:1"), &answer),
        Taken::No,
        "it comes from somebody else"
    );
    assert_eq!(gatherer.handle_udp(now, local, server, &answer), Taken::Yes);
    assert_eq!(
        gatherer.handle_udp(now, local, server, &answer),
        Taken::No,
        "it was answered before"
    );
    let expected = Finding::Reflexive {
        address: address("203.0.113.5:4000"),
        base: address(HOST),
    };
    assert_eq!(gatherer.findings.pop_front(), Some(expected));
    let mut last = now;
    while let Some(at) = gatherer.next_timeout() {
        last = at;
        gatherer.handle_timeout(at);
    }
    assert_eq!(last - now, Duration::from_millis(9500));
    match gatherer.findings.pop_front() {
        Some(Finding::Failed(failure)) => {
            assert_eq!((failure.code, &*failure.url), (701, "stun:198.51.100.2:99"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(gatherer.findings.pop_front(), Some(Finding::Complete));
}

#[test]
fn a_host_that_is_not_found_and_an_address_that_is_none_are_told_of() {
    let now = Instant::now();
    let mut gatherer = gatherer(now, &["stun:nowhere.example", "stun:"]);
    let Some(Demand::Resolve { query, .. }) = gatherer.demands.pop_front() else {
        panic!("a name is looked up");
    };
    gatherer.resolved(now, query, Err("no such host".to_owned()));
    let failed: Vec<String> = gatherer
        .findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::Failed(failure) => Some(failure.url.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(failed, ["stun:", "stun:nowhere.example"]);
    assert_eq!(gatherer.findings.back(), Some(&Finding::Complete));
}

/// Lets the server answer everything that is sent; returns what was meant for peers.
fn serve(now: Instant, server: &mut TurnServer, gatherer: &mut Gatherer) -> Vec<Vec<u8>> {
    let mut for_peers = vec![];
    while let Some(outgoing) = gatherer.outgoing.pop_front() {
        let (Outgoing::Udp { data, .. } | Outgoing::Link { data, .. }) = &outgoing;
        let Some(answer) = server.answer(data) else {
            for_peers.push(data.clone());
            continue;
        };
        let taken = match outgoing {
            Outgoing::Udp { local, server, .. } => gatherer.handle_udp(now, local, server, &answer),
            Outgoing::Link { link, .. } => gatherer.link_message(now, link, &answer),
        };
        assert_eq!(taken, Taken::Yes);
    }
    for_peers
}

/// A gatherer with one relay.
fn with_relay(now: Instant, url: &str, server: &mut TurnServer) -> Gatherer {
    let mut gatherer = gatherer(now, &[url]);
    assert!(gatherer.demands.is_empty() && gatherer.has_reserve());
    gatherer.findings.clear();
    gatherer.ask_relays();
    resolve_all(now, &mut gatherer);
    if let Some(Demand::Connect { link, tls_name, .. }) = gatherer.demands.pop_front() {
        let is_tls = url.starts_with("turns:");
        assert_eq!(tls_name, is_tls.then(|| "198.51.100.1".to_owned()));
        assert!(gatherer.outgoing.is_empty(), "it waits for the connection");
        gatherer.link_opened(now, link, address("192.0.2.10:5555"));
    }
    serve(now, server, &mut gatherer);
    gatherer
}

const ALL_TRANSPORTS: [&str; 3] = [
    "turn:198.51.100.1",
    "turn:198.51.100.1?transport=tcp",
    "turns:198.51.100.1",
];

#[test]
fn relays_are_asked_for_when_wanted_and_given_back_at_the_end() {
    for url in ALL_TRANSPORTS {
        let now = Instant::now();
        let mut server = TurnServer::new();
        let mut gatherer = with_relay(now, url, &mut server);
        let relayed = address(RELAYED);
        assert!(
            gatherer
                .findings
                .iter()
                .any(|it| matches!(it, Finding::Relayed { address, .. } if *address == relayed)),
            "{url}: {:?}",
            gatherer.findings
        );
        assert!(gatherer.is_relay(relayed) && !gatherer.is_relay(address(HOST)));
        gatherer.send(now, relayed, address(PEER), b"check");
        assert_eq!(serve(now, &mut server, &mut gatherer).len(), 1, "{url}");
        gatherer.close();
        for outgoing in gatherer.outgoing.drain(..) {
            let (Outgoing::Udp { data, .. } | Outgoing::Link { data, .. }) = outgoing;
            server.answer(&data);
        }
        assert_eq!(
            server.asked.last(),
            Some(&(Method::Refresh, Some(0))),
            "{url}"
        );
        assert!(gatherer.next_timeout().is_none());
    }
}

#[test]
fn packets_of_peers_come_out_of_the_relay_and_others_pass() {
    let now = Instant::now();
    let mut server = TurnServer::new();
    let mut gatherer = with_relay(now, ALL_TRANSPORTS[0], &mut server);
    let (relayed, peer, turn) = (
        address(RELAYED),
        address(PEER),
        address("198.51.100.1:3478"),
    );
    gatherer.send(now, relayed, peer, b"check");
    serve(now, &mut server, &mut gatherer);
    let expected = Taken::FromPeer {
        relayed,
        peer,
        data: b"hi",
    };
    let packet = b"\x40\0\0\x02hi";
    assert_eq!(
        gatherer.handle_udp(now, address(HOST), turn, packet),
        expected
    );
    let (host, loopback) = (address(HOST), address(LOOPBACK));
    assert_eq!(gatherer.handle_udp(now, loopback, turn, packet), Taken::No);
    assert_eq!(gatherer.handle_udp(now, host, peer, packet), Taken::No);
    // A server that is also the peer sends media and checks from the same port.
    assert_eq!(gatherer.handle_udp(now, host, turn, b"\x80rtp"), Taken::No);
    let check = Writer::new(Method::Binding, Class::Request, TransactionId([4; 12])).finish();
    assert_eq!(gatherer.handle_udp(now, host, turn, &check), Taken::No);
}

#[test]
fn a_lost_relay_is_told_of() {
    let lose: [fn(&mut Gatherer); 2] = [
        |gatherer| gatherer.link_closed(2, "reset".to_owned()),
        |gatherer| gatherer.set_locals(vec![address(LOOPBACK)]),
    ];
    for lose in lose {
        let now = Instant::now();
        let mut gatherer = with_relay(now, ALL_TRANSPORTS[1], &mut TurnServer::new());
        gatherer.findings.clear();
        lose(&mut gatherer);
        let lost = Finding::RelayLost {
            address: address(RELAYED),
        };
        assert!(gatherer.findings.contains(&lost), "{:?}", gatherer.findings);
        assert!(!gatherer.is_relay(address(RELAYED)));
        // The next restart of ICE asks again.
        gatherer.start(now, &configured(&ALL_TRANSPORTS[1..2]));
        assert!(gatherer.has_reserve());
    }
}

#[test]
fn a_relay_that_lives_is_not_asked_for_twice() {
    let now = Instant::now();
    let mut gatherer = with_relay(now, ALL_TRANSPORTS[0], &mut TurnServer::new());
    gatherer.start(now, &configured(&ALL_TRANSPORTS));
    gatherer.ask_relays();
    assert_eq!(gatherer.demands.len(), 2);
}

#[test]
fn servers_that_refuse_are_told_of_with_their_code() {
    let now = Instant::now();
    let mut server = TurnServer::new();
    server.error = Some(486);
    let gatherer = with_relay(now, ALL_TRANSPORTS[0], &mut server);
    match gatherer.findings.front() {
        Some(Finding::Failed(failure)) => {
            assert_eq!((failure.code, failure.local), (486, Some(address(HOST))));
        }
        other => panic!("{other:?}"),
    }
    assert!(gatherer.next_timeout().is_none());
}

#[test]
fn servers_that_name_each_other_are_followed_a_few_times_only() {
    let now = Instant::now();
    let mut gatherer = gatherer(now, &ALL_TRANSPORTS[..1]);
    gatherer.ask_relays();
    resolve_all(now, &mut gatherer);
    let mut asked = 0;
    while let Some(outgoing) = gatherer.outgoing.pop_front() {
        let Outgoing::Udp {
            local,
            server,
            data,
        } = outgoing
        else {
            panic!("this server is reached over UDP");
        };
        asked += 1;
        let id = Message::parse(&data).expect("a good request").id;
        let answer = Writer::new(Method::Allocate, Class::Error, id)
            .attribute(attribute::ERROR_CODE, &[0, 0, 3, 0])
            .attribute(attribute::ALTERNATE_SERVER, &[0, 1, 0, asked, 192, 0, 2, 9])
            .finish();
        assert_eq!(gatherer.handle_udp(now, local, server, &answer), Taken::Yes);
    }
    assert_eq!(asked, 3);
    assert!(
        gatherer
            .findings
            .iter()
            .any(|it| matches!(it, Finding::Failed(_)))
    );
}
