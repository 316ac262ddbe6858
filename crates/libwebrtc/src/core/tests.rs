//! Two cores on an emulated network, in virtual time.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Weak,
    time::{Duration, Instant},
};

use super::{
    paths::{RELAYS_AFTER_START, SWITCH_AFTER_SILENCE},
    state::{FAILED_AFTER_CHECKING, FAILED_AFTER_DISCONNECT},
    *,
};
use crate::{
    audio::link::{Dice, Link},
    data_channel::DataChannelInit,
    ice::stun,
};

/// One-way delay of the network.
const DELAY: Duration = Duration::from_millis(20);

/// Headers of IPv4 and UDP (RFC 791, RFC 768).
const IP_AND_UDP_BYTES: usize = 28;

/// A lossy link with jitter, and what it did to packets of sound.
pub(super) struct Line {
    link: Link,
    dice: Dice,
    start: Instant,
    last_ms: f64,
    /// Bits per second that get through, and the length of the queue in milliseconds; packets that
    /// find the queue full are lost.
    pub bottleneck: Option<(f64, f64)>,
    /// When the queue will be empty.
    drained_ms: f64,
    pub rtp_packets: u64,
    pub rtp_lost: u64,
}

impl Line {
    pub fn new(start: Instant, link: Link, seed: u64) -> Self {
        Self {
            link,
            dice: Dice::new(seed),
            start,
            last_ms: 0.0,
            bottleneck: None,
            drained_ms: 0.0,
            rtp_packets: 0,
            rtp_lost: 0,
        }
    }

    /// When a packet is through the bottleneck; `None` if it is lost there.
    fn pass(&mut self, sent_ms: f64, bytes: usize) -> Option<f64> {
        let Some((bits_per_second, queue_ms)) = self.bottleneck else {
            return Some(sent_ms);
        };
        let begins_ms = sent_ms.max(self.drained_ms);
        if begins_ms - sent_ms > queue_ms {
            return None;
        }
        let bits = (bytes + IP_AND_UDP_BYTES) as f64 * 8.0;
        self.drained_ms = begins_ms + bits / bits_per_second * 1000.0;
        Some(self.drained_ms)
    }

    /// When copies of a packet arrive that is sent now: none if it is lost.
    fn carry(&mut self, now: Instant, packet: &[u8]) -> Vec<Instant> {
        let sent_ms = (now - self.start).as_secs_f64() * 1000.0;
        let arrivals = match self.pass(sent_ms, packet.len()) {
            Some(passed_ms) => self
                .link
                .carry(passed_ms, &mut self.last_ms, &mut self.dice),
            None => vec![],
        };
        // The payload type of Opus, with and without the marker (RFC 3550, section 5.1).
        if packet.len() > 12 && packet[0] >> 6 == 2 && packet[1] & 0x7f == 111 {
            self.rtp_packets += 1;
            self.rtp_lost += u64::from(arrivals.is_empty());
        }
        arrivals
            .into_iter()
            .map(|ms| self.start + Duration::from_secs_f64(ms / 1000.0))
            .collect()
    }
}

/// A message that begins with its number.
pub(super) fn message(number: u32, bytes: usize) -> Vec<u8> {
    let mut message = vec![7; bytes];
    message[..4].copy_from_slice(&number.to_be_bytes());
    message
}

/// Numbers of the messages among events, in order.
pub(super) fn numbers(events: &[Event]) -> Vec<u32> {
    let messages = events.iter().filter_map(|event| match event {
        Event::ChannelMessage { data, .. } => data.first_chunk().map(|it| u32::from_be_bytes(*it)),
        _ => None,
    });
    messages.collect()
}

pub(super) struct Pair {
    pub now: Instant,
    pub cores: [Core; 2],
    /// Packets in transit: when they arrive, for whom, and what.
    network: BTreeMap<(Instant, u64), (usize, Transmit)>,
    packets: u64,
    /// Whether the line is cut.
    pub cut: bool,
    /// How packets from the first to the second core are delayed and lost, instead of being delayed
    /// by [`DELAY`].
    pub line: Option<Line>,
    /// Addresses that no packet comes from or goes to.
    blocked: Vec<SocketAddr>,
    /// Local addresses of the first core whose checks nominated their pair.
    nominating: Vec<SocketAddr>,
    pub events: [Vec<Event>; 2],
}

impl Pair {
    pub fn new() -> Self {
        let now = Instant::now();
        let core = |address: &str| {
            let mut core = Core::new(now, Weak::new());
            core.add_udp_candidate(address.parse::<SocketAddr>().expect("an address"));
            core
        };
        Self {
            now,
            cores: [core("192.0.2.1:1000"), core("192.0.2.2:2000")],
            network: BTreeMap::new(),
            packets: 0,
            cut: false,
            line: None,
            blocked: Vec::new(),
            nominating: Vec::new(),
            events: [vec![], vec![]],
        }
    }

    pub fn negotiate(&mut self, from: usize, ice_restart: bool) {
        self.negotiate_as_told(from, ice_restart, |description| description);
    }

    /// An exchange in which each side gets the other's description as `told` has changed it.
    pub fn negotiate_as_told(
        &mut self,
        from: usize,
        ice_restart: bool,
        told: impl Fn(SessionDescription) -> SessionDescription,
    ) {
        let (now, to) = (self.now, 1 - from);
        let offer = self.cores[from]
            .create_offer(ice_restart)
            .expect("an offer");
        let [a, b] = &mut self.cores;
        let (from, to) = if to == 1 { (a, b) } else { (b, a) };
        from.set_local_description(now, offer.clone(), &[])
            .expect("our own offer");
        to.set_remote_description(now, told(offer))
            .expect("a good offer");
        let answer = to.create_answer().expect("there is an offer");
        to.set_local_description(now, answer.clone(), &[])
            .expect("our own answer");
        from.set_remote_description(now, told(answer))
            .expect("a good answer");
    }

    fn collect(&mut self) {
        for index in 0..2 {
            self.cores[index].settle(self.now);
            for transmit in std::mem::take(&mut self.cores[index].transmits) {
                self.packets += 1;
                if index == 0 && stun::nominates(&transmit.contents) {
                    self.nominating.push(transmit.source);
                }
                let ends = [transmit.source, transmit.destination];
                if self.cut || ends.iter().any(|end| self.blocked.contains(end)) {
                    continue;
                }
                let arrivals = match &mut self.line {
                    Some(line) if index == 0 => line.carry(self.now, &transmit.contents),
                    _ => vec![self.now + DELAY],
                };
                for arrival in arrivals {
                    self.packets += 1;
                    let copy = Transmit {
                        proto: transmit.proto,
                        source: transmit.source,
                        destination: transmit.destination,
                        contents: transmit.contents.to_vec().into(),
                    };
                    self.network
                        .insert((arrival, self.packets), (1 - index, copy));
                }
            }
            self.events[index].extend(std::mem::take(&mut self.cores[index].events));
        }
    }

    /// Lets time pass until `done`, at most for `patience`; returns how long it took.
    pub fn run(&mut self, patience: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let start = self.now;
        self.collect();
        while !done(self) {
            if self.now >= start + patience {
                return None;
            }
            let timeout = self.cores.iter().map(|core| core.next_timeout).min();
            let arrival = self.network.keys().next().map(|(at, _)| *at);
            let next = timeout
                .into_iter()
                .chain(arrival)
                .min()
                .expect("there are two cores");
            // A timeout in the past is due now; a millisecond later is close enough.
            self.now = next
                .max(self.now + Duration::from_millis(1))
                .min(start + patience);
            while let Some(entry) = self.network.first_entry() {
                if entry.key().0 > self.now {
                    break;
                }
                let (to, packet) = entry.remove();
                let (source, destination) = (packet.source, packet.destination);
                self.cores[to].receive(
                    self.now,
                    Protocol::Udp,
                    source,
                    destination,
                    &packet.contents,
                );
            }
            self.collect();
        }
        Some(self.now - start)
    }

    pub fn states(&self) -> [PeerConnectionState; 2] {
        [
            self.cores[0].connection_state(),
            self.cores[1].connection_state(),
        ]
    }

    pub fn connected() -> Self {
        Self::new().connect()
    }

    fn connect(self) -> Self {
        let mut pair = self;
        let init = DataChannelInit::default();
        pair.cores[0]
            .create_channel(pair.now, "data", init)
            .expect("a channel");
        pair.negotiate(0, false);
        let both = [PeerConnectionState::Connected; 2];
        pair.run(Duration::from_secs(5), |pair| pair.states() == both)
            .expect("connected");
        let open = |pair: &Self| pair.cores[0].channels()[0].state() == DataChannelState::Open;
        pair.run(Duration::from_secs(5), open)
            .expect("the channel opens");
        pair
    }
}

#[test]
fn connecting_takes_a_few_round_trips() {
    let mut pair = Pair::new();
    pair.cores[0]
        .create_channel(pair.now, "data", DataChannelInit::default())
        .expect("a channel");
    pair.negotiate(0, false);
    let opened = |pair: &Pair| {
        pair.events[1]
            .iter()
            .any(|event| matches!(event, Event::Channel(channel) if channel.label() == "data"))
    };
    let took = pair
        .run(Duration::from_secs(5), opened)
        .expect("the channel opens");
    assert!(took < DELAY * 2 * 12, "{took:?}");
}

#[test]
fn a_server_with_several_addresses_is_connected_to_as_fast() {
    let mut pair = Pair::new();
    for (core, address) in [
        (0, "10.0.0.1:1000"),
        (0, "10.0.1.1:1000"),
        (1, "10.0.0.2:2000"),
        (1, "10.0.1.2:2000"),
    ] {
        pair.cores[core].add_udp_candidate(address.parse::<SocketAddr>().expect("an address"));
    }
    pair.cores[0]
        .create_channel(pair.now, "data", DataChannelInit::default())
        .expect("a channel");
    let offer = pair.cores[0].create_offer(false).expect("an offer");
    let now = pair.now;
    let [client, server] = &mut pair.cores;
    client
        .set_local_description(now, offer.clone(), &[])
        .expect("our own offer");
    server
        .set_remote_description(now, offer)
        .expect("a good offer");
    let answer = server.create_answer().expect("there is an offer");
    server
        .set_local_description(now, answer.clone(), &[])
        .expect("our own answer");
    // Its checks arrive before its answer.
    pair.run(DELAY * 2, |_| false);
    let now = pair.now;
    pair.cores[0]
        .set_remote_description(now, answer)
        .expect("a good answer");
    let both = [PeerConnectionState::Connected; 2];
    let took = pair
        .run(Duration::from_secs(5), |pair| pair.states() == both)
        .expect("connected");
    // A check and its answer, two round trips of DTLS, and a few steps of ICE.
    assert!(took < DELAY * 2 * 4, "{took:?}");
}

#[test]
fn a_cut_line_is_disconnected_first_and_then_failed() {
    let mut pair = Pair::connected();
    pair.cut = true;
    let disconnected = pair
        .run(Duration::from_secs(30), |pair| {
            pair.states() == [PeerConnectionState::Disconnected; 2]
        })
        .expect("a cut line is noticed");
    assert!(
        disconnected > Duration::from_secs(2),
        "a hiccup is no cut: {disconnected:?}"
    );
    assert!(disconnected < Duration::from_secs(12), "{disconnected:?}");
    let failed = pair
        .run(Duration::from_secs(30), |pair| {
            pair.states() == [PeerConnectionState::Failed; 2]
        })
        .expect("it is given up");
    assert!(
        failed <= FAILED_AFTER_DISCONNECT + Duration::from_secs(1),
        "{failed:?}"
    );
}

#[test]
fn a_restart_of_ice_brings_a_cut_connection_back() {
    let mut pair = Pair::connected();
    pair.cut = true;
    pair.run(Duration::from_secs(60), |pair| {
        pair.states() == [PeerConnectionState::Failed; 2]
    })
    .expect("it is given up");
    pair.cut = false;
    pair.negotiate(0, true);
    let both = [PeerConnectionState::Connected; 2];
    pair.run(Duration::from_secs(10), |pair| pair.states() == both)
        .expect("it is back");
    let send = |pair: &mut Pair| {
        let channel = pair.cores[0].channels()[0].clone();
        let now = pair.now;
        pair.cores[0]
            .send_data(now, &channel, b"again", true)
            .is_ok()
    };
    assert!(send(&mut pair));
    let arrived = |pair: &Pair| {
        pair.events[1]
            .iter()
            .any(|event| matches!(event, Event::ChannelMessage { data, .. } if data == b"again"))
    };
    pair.run(Duration::from_secs(10), arrived)
        .expect("data flows again");
}

/// States that the application has been told since `from`.
fn states_since(pair: &Pair, from: usize, whose: usize) -> Vec<PeerConnectionState> {
    let events = pair.events[whose].iter().skip(from);
    let states = events.filter_map(|event| match event {
        Event::ConnectionState(state) => Some(*state),
        _ => None,
    });
    states.collect()
}

#[test]
fn a_restart_of_ice_does_not_interrupt_a_connection_that_works() {
    let mut pair = Pair::connected();
    pair.run(Duration::from_secs(3), |_| false);
    let before = [pair.events[0].len(), pair.events[1].len()];
    pair.negotiate(0, true);
    let channel = pair.cores[0].channels()[0].clone();
    let now = pair.now;
    assert!(
        pair.cores[0]
            .send_data(now, &channel, b"meanwhile", true)
            .is_ok()
    );
    let arrived = |pair: &Pair| {
        pair.events[1].iter().any(
            |event| matches!(event, Event::ChannelMessage { data, .. } if data == b"meanwhile"),
        )
    };
    let took = pair.run(Duration::from_secs(5), arrived).expect("it flows");
    assert!(took <= DELAY * 2, "{took:?}");
    pair.run(Duration::from_secs(20), |_| false);
    for (whose, before) in before.into_iter().enumerate() {
        assert_eq!(states_since(&pair, before, whose), []);
    }
}

#[test]
fn a_path_that_dies_is_left_for_one_that_lives() {
    let mut pair = Pair::new();
    let (first, second): (SocketAddr, SocketAddr) = (
        "192.0.2.1:1000".parse().expect("an address"),
        "198.51.100.1:1000".parse().expect("an address"),
    );
    pair.cores[0].add_udp_candidate(second);
    let mut pair = pair.connect();
    let uses = |pair: &Pair, address| pair.cores[0].paths.current_local() == Some(address);
    // A second candidate is checked while the first one is used.
    pair.run(Duration::from_secs(3), |_| false);
    assert!(uses(&pair, first));
    let before = pair.events[0].len();
    pair.blocked = vec![first];
    let channel = pair.cores[0].channels()[0].clone();
    let now = pair.now;
    assert!(
        pair.cores[0]
            .send_data(now, &channel, b"onwards", true)
            .is_ok()
    );
    let took = pair
        .run(Duration::from_secs(10), |pair| uses(pair, second))
        .expect("another path is taken");
    assert!(
        took < SWITCH_AFTER_SILENCE + Duration::from_secs(2),
        "{took:?}"
    );
    pair.run(Duration::from_secs(30), |_| false);
    assert_eq!(states_since(&pair, before, 0), []);
    // The better path is used again.
    pair.blocked.clear();
    pair.cores[0].remove_local(pair.now, first);
    pair.cores[0].add_udp_candidate(first);
    pair.run(Duration::from_secs(10), |_| false);
    assert_eq!(states_since(&pair, before, 0), []);
}

#[test]
fn a_path_that_is_left_for_a_better_one_is_not_nominated_any_more() {
    let (better, worse): (SocketAddr, SocketAddr) = (
        "192.0.2.1:1000".parse().expect("an address"),
        "198.51.100.1:1000".parse().expect("an address"),
    );
    let mut pair = Pair::new();
    pair.cores[0].add_udp_candidate(worse);
    pair.blocked = vec![better];
    let mut pair = pair.connect();
    assert!(pair.nominating.contains(&worse));
    pair.blocked.clear();
    pair.run(Duration::from_secs(5), |_| false);
    assert!(pair.nominating.contains(&better));
    pair.nominating.clear();
    pair.run(Duration::from_secs(10), |_| false);
    assert!(pair.nominating.contains(&better) && !pair.nominating.contains(&worse));
    assert_eq!(pair.states(), [PeerConnectionState::Connected; 2]);
}

#[test]
fn paths_that_die_together_are_left_together() {
    let addresses = [
        "192.0.2.1:1000",
        "198.51.100.1:1000",
        "198.51.100.2:1000",
        "203.0.113.1:1000",
    ];
    let [first, second, third, last] =
        addresses.map(|text| text.parse::<SocketAddr>().expect("an address"));
    let mut pair = Pair::new();
    for address in [second, third, last] {
        pair.cores[0].add_udp_candidate(address);
    }
    let mut pair = pair.connect();
    let uses = |pair: &Pair, address| pair.cores[0].paths.current_local() == Some(address);
    let channel = pair.cores[0].channels()[0].clone();
    let goes_on = |pair: &mut Pair| {
        let now = pair.now;
        let sent = pair.cores[0].send_data(now, &channel, b"onwards", true);
        sent.expect("the channel is open");
        pair.run(Duration::from_millis(100), |_| false);
    };
    // All are checked from time to time while the first one is used.
    for _ in 0..100 {
        goes_on(&mut pair);
    }
    assert!(uses(&pair, first));
    pair.blocked = vec![first, second, third];
    let cut_at = pair.now;
    while !uses(&pair, last) {
        assert!(
            pair.now < cut_at + SWITCH_AFTER_SILENCE + Duration::from_secs(1),
            "it goes on over {:?}",
            pair.cores[0].paths.current_local()
        );
        goes_on(&mut pair);
    }
}

#[test]
fn an_outage_that_outlasts_all_checks_heals_by_itself() {
    let mut pair = Pair::connected();
    pair.cut = true;
    pair.run(Duration::from_secs(10), |_| false);
    assert_eq!(pair.states(), [PeerConnectionState::Disconnected; 2]);
    pair.cut = false;
    let both = [PeerConnectionState::Connected; 2];
    pair.run(Duration::from_secs(4), |pair| pair.states() == both)
        .expect("it is back");
}

#[test]
fn after_failure_nothing_but_checks_is_sent() {
    let mut pair = Pair::connected();
    pair.cut = true;
    pair.run(Duration::from_secs(60), |pair| {
        pair.states() == [PeerConnectionState::Failed; 2]
    })
    .expect("it is given up");
    let channel = pair.cores[0].channels()[0].clone();
    let now = pair.now;
    let sent = pair.cores[0].send_data(now, &channel, b"nobody wants it", true);
    sent.expect("the channel is open");
    let start = pair.now;
    while pair.now < start + Duration::from_secs(20) {
        pair.now = pair.cores[0].next_timeout.max(pair.now + DELAY);
        pair.cores[0].settle(pair.now);
        for transmit in std::mem::take(&mut pair.cores[0].transmits) {
            assert!(transmit.contents[0] <= 3, "a packet that is no check");
        }
    }
}

#[test]
fn with_relays_only_nothing_is_sent_directly() {
    let mut pair = Pair::new();
    let relayed: SocketAddr = "203.0.113.7:7000".parse().expect("an address");
    pair.cores[0].set_policy(IceTransportsType::Relay);
    pair.cores[0]
        .create_channel(pair.now, "data", DataChannelInit::default())
        .expect("a channel");
    let offer = pair.cores[0].create_offer(false).expect("an offer");
    assert!(!offer.text().contains("a=candidate"), "{}", offer.text());
    pair.negotiate(0, false);
    assert_eq!(pair.cores[0].relays_wanted_at(), Some(pair.now), "at once");
    pair.run(Duration::from_secs(2), |_| false);
    assert_eq!(pair.states()[0], PeerConnectionState::Connecting);
    let (now, local) = (pair.now, "192.0.2.1:1000".parse().expect("an address"));
    pair.cores[0].add_relayed_candidate(now, relayed, local);
    let announced = |pair: &Pair| {
        pair.events[0].iter().any(
            |event| matches!(event, Event::IceCandidate { candidate, .. } if candidate.contains("typ relay")),
        )
    };
    let both = [PeerConnectionState::Connected; 2];
    pair.run(Duration::from_secs(10), |pair| {
        pair.states() == both && announced(pair)
    })
    .expect("connected through the relay");
    assert_eq!(pair.cores[0].paths.current_local(), Some(relayed));
    pair.cores[0].relay_lost(pair.now, relayed);
    pair.run(DELAY, |pair| {
        pair.states()[0] == PeerConnectionState::Failed
    })
    .expect("without its relay it has failed");
}

#[test]
fn a_relay_that_is_lost_is_replaced_by_another_path_or_the_connection_fails_soon() {
    let relayed: SocketAddr = "203.0.113.7:7000".parse().expect("an address");
    let direct: SocketAddr = "192.0.2.1:1000".parse().expect("an address");
    for direct_works in [true, false] {
        let mut pair = Pair::new();
        pair.blocked = vec![direct];
        let (now, local) = (pair.now, direct);
        pair.cores[0].add_relayed_candidate(now, relayed, local);
        let mut pair = pair.connect();
        assert_eq!(pair.cores[0].paths.current_local(), Some(relayed));
        pair.run(Duration::from_secs(20), |_| false);
        let before = pair.events[0].len();
        if direct_works {
            pair.blocked.clear();
        }
        pair.blocked.push(relayed);
        let now = pair.now;
        pair.cores[0].relay_lost(now, relayed);
        let wanted = match direct_works {
            true => PeerConnectionState::Connected,
            false => PeerConnectionState::Failed,
        };
        let changed = |pair: &Pair| states_since(pair, before, 0).last() == Some(&wanted);
        let took = pair.run(Duration::from_secs(20), changed);
        let limit = match direct_works {
            true => Duration::from_secs(1),
            // All checks of the direct path.
            false => Duration::from_secs(10),
        };
        assert!(
            took.is_some_and(|took| took < limit),
            "{direct_works}: {took:?}"
        );
    }
}

#[test]
fn relays_are_wanted_when_nothing_else_works() {
    let mut pair = Pair::new();
    assert_eq!(pair.cores[0].relays_wanted_at(), None, "before the start");
    pair.cores[0]
        .create_channel(pair.now, "data", DataChannelInit::default())
        .expect("a channel");
    let start = pair.now;
    pair.negotiate(0, false);
    let wanted = |pair: &Pair| pair.cores[0].relays_wanted_at().expect("it has begun");
    assert_eq!(wanted(&pair), start + RELAYS_AFTER_START);
    let both = [PeerConnectionState::Connected; 2];
    pair.run(Duration::from_secs(5), |pair| pair.states() == both)
        .expect("connected");
    for _ in 0..200 {
        pair.run(Duration::from_millis(100), |_| false);
        assert!(wanted(&pair) > pair.now, "there is a path");
    }
    pair.cut = true;
    pair.run(Duration::from_secs(3), |pair| wanted(pair) <= pair.now)
        .expect("the path is silent");
}

#[test]
fn a_connection_that_never_comes_up_fails() {
    let mut pair = Pair::new();
    pair.cut = true;
    pair.cores[0]
        .create_channel(pair.now, "data", DataChannelInit::default())
        .expect("a channel");
    pair.negotiate(0, false);
    let took = pair
        .run(Duration::from_secs(60), |pair| {
            pair.states() == [PeerConnectionState::Failed; 2]
        })
        .expect("it is given up");
    assert!(
        took <= FAILED_AFTER_CHECKING + Duration::from_secs(1),
        "{took:?}"
    );
}

#[test]
fn a_connection_that_has_not_been_negotiated_waits_without_end() {
    let mut pair = Pair::new();
    pair.run(Duration::from_secs(600), |_| false);
    assert_eq!(pair.states(), [PeerConnectionState::New; 2]);
    assert!(pair.events.iter().all(Vec::is_empty));
    let mut pair = pair.connect();
    pair.run(Duration::from_secs(60), |_| false);
    assert_eq!(pair.states(), [PeerConnectionState::Connected; 2]);
}

#[test]
fn closing_tells_the_other_side_at_once() {
    let mut pair = Pair::connected();
    let now = pair.now;
    pair.cores[0].close(now);
    let lost = |pair: &Pair| pair.cores[1].connection_state() == PeerConnectionState::Disconnected;
    let took = pair
        .run(Duration::from_secs(5), lost)
        .expect("the other side hears of it");
    assert!(took <= DELAY * 2, "{took:?}");
}

#[test]
fn a_full_buffer_refuses_instead_of_growing() {
    let mut pair = Pair::connected();
    let open = |pair: &Pair| pair.cores[0].channels()[0].state() == DataChannelState::Open;
    pair.run(Duration::from_secs(5), open)
        .expect("the channel opens");
    pair.cut = true;
    let channel = pair.cores[0].channels()[0].clone();
    let message = vec![0; 60_000];
    let now = pair.now;
    let accepted = (0..1000).take_while(|_| {
        pair.cores[0]
            .send_data(now, &channel, &message, true)
            .is_ok()
    });
    let accepted = accepted.count();
    assert!(
        (200..=MAX_BUFFERED_BYTES / 60_000 + 1).contains(&accepted),
        "{accepted}"
    );
    assert!(channel.buffered_amount() <= (accepted * 60_000) as u64);
}

#[test]
fn opus_parameters_of_the_other_side_are_followed() {
    let codec = Codec {
        payload_type: 111,
        name: "opus".to_owned(),
        clock_rate: 48_000,
        channels: Some(2),
        parameters: "minptime=10; stereo=1;usedtx=1;useinbandfec=1;maxaveragebitrate=24000"
            .to_owned(),
        feedback: vec![],
    };
    let expected = OpusSendConfig {
        stereo: true,
        dtx: true,
        fec: true,
        max_bitrate_bps: Some(24_000),
    };
    assert_eq!(opus_config(&codec, Some(48_000)), expected);
}
