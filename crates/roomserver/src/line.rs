//! An emulated network line for tests: a relay in front of a UDP address that loses, delays,
//! reorders and duplicates datagrams in both directions.
//!
//! The datagrams of one client address are a flow, and every flow belongs to a class. A class has
//! conditions, called its weather. A flow gets its class when it begins: that of its IP address if
//! one was assigned, otherwise the class that new flows get at that time. Each direction of a flow
//! has its own random numbers, all with the same seed and started anew when the weather changes, so
//! two participants with the same weather lose the same part of their sound.
//!
//! Knows nothing about the contents, except which datagrams are RTP. Nothing here is for
//! production.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::network::MAX_DATAGRAM;

/// Clients of one line; datagrams of further ones are dropped.
const MAX_FLOWS: usize = 64;
/// Datagrams in transit on one line. More than that are lost, as in a router whose queue is full.
const MAX_IN_TRANSIT: usize = 20_000;
/// Datagrams from the server that wait to be relayed; more than that are lost, as in a socket's
/// buffer.
const BACKLOG: usize = 1024;
/// How much longer a datagram takes that is reordered: the next two of 20 ms come before it.
const OVERTAKEN_BY: Duration = Duration::from_millis(45);
/// How long after a datagram its duplicate comes.
const DOUBLED_AFTER: Duration = Duration::from_millis(10);
/// The class of flows when nothing else was assigned.
pub const FIRST_CLASS: &str = "clear";

/// The conditions of a line.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Weather {
    /// Share of datagrams that get lost, each independently; 1 is an outage.
    pub loss: f64,
    /// How long every datagram takes.
    pub delay: Duration,
    /// Datagrams take up to so much longer, evenly distributed. Their order is kept, as queues keep
    /// it.
    pub jitter: Duration,
    /// Share of datagrams that take 45 ms longer and arrive after those sent behind them.
    pub overtaken: f64,
    /// Share of datagrams that come twice, the second time 10 ms later.
    pub doubled: f64,
    /// When nothing gets through.
    pub outages: Vec<Outage>,
}

/// A time in which nothing gets through, counted from when the weather was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// When it begins.
    pub from: Duration,
    /// When it ends.
    pub to: Duration,
    /// What was sent meanwhile arrives all at once afterwards, instead of never.
    pub held: bool,
}

/// A word of a command that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not part of a command for a line: admit CLASS, from ADDRESS CLASS, or weather CLASS loss=0.05 delay_ms=30 jitter_ms=80 overtaken=0.05 doubled=0.2 \
     lost_ms=6000..8000 held_ms=6000..8000"
)]
pub struct BadOrder(String);

/// `loss=0.05 jitter_ms=30 lost_ms=6000..8000`: in any order, what is left out is good.
impl FromStr for Weather {
    type Err = BadOrder;

    fn from_str(text: &str) -> Result<Self, BadOrder> {
        let mut weather = Self::default();
        for word in text.split_whitespace() {
            let bad = || BadOrder(word.to_owned());
            let (name, value) = word.split_once('=').ok_or_else(bad)?;
            let milliseconds = |value: &str| {
                let value = value.parse().map_err(|_| bad())?;
                Ok(Duration::from_millis(value))
            };
            let share = || match value.parse() {
                Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
                _ => Err(bad()),
            };
            match name {
                "loss" => weather.loss = share()?,
                "delay_ms" => weather.delay = milliseconds(value)?,
                "jitter_ms" => weather.jitter = milliseconds(value)?,
                "overtaken" => weather.overtaken = share()?,
                "doubled" => weather.doubled = share()?,
                "lost_ms" | "held_ms" => {
                    let (from, to) = value.split_once("..").ok_or_else(bad)?;
                    weather.outages.push(Outage {
                        from: milliseconds(from)?,
                        to: milliseconds(to)?,
                        held: name == "held_ms",
                    });
                }
                _ => return Err(bad()),
            }
        }
        Ok(weather)
    }
}

/// One direction of a flow. Decides what happens to a datagram; all times are counted from when the
/// weather was set.
struct OneWay {
    weather: Weather,
    /// One generator for RTP and one for everything else: the fate of the n-th RTP packet must not
    /// depend on how many reports were sent in between.
    dice: [StdRng; 2],
    /// When the last datagram arrives that keeps its place.
    last: Duration,
}

impl OneWay {
    fn new(weather: Weather, seed: u64) -> Self {
        Self {
            weather,
            dice: [seed, seed ^ u64::MAX].map(StdRng::seed_from_u64),
            last: Duration::ZERO,
        }
    }

    /// When copies of a datagram arrive that is sent at `sent`: none if it is lost.
    fn carry(&mut self, sent: Duration, contents: &[u8]) -> [Option<Duration>; 2] {
        let weather = &self.weather;
        let dice = &mut self.dice[usize::from(!is_sound(contents))];
        // Always drawn in full, so that one outcome does not shift the others.
        let [lost, late, overtaken, doubled]: [f64; 4] = dice.random();
        let mut arrival = sent + weather.delay + weather.jitter.mul_f64(late);
        for outage in &weather.outages {
            if (outage.from..outage.to).contains(&sent) {
                if !outage.held {
                    return [None, None];
                }
                arrival = arrival.max(outage.to + weather.delay);
            }
        }
        if lost < weather.loss {
            return [None, None];
        }
        if overtaken < weather.overtaken {
            return [Some(arrival + OVERTAKEN_BY), None];
        }
        arrival = arrival.max(self.last);
        self.last = arrival;
        [
            Some(arrival),
            (doubled < weather.doubled).then_some(arrival + DOUBLED_AFTER),
        ]
    }
}

/// RTP and not RTCP, STUN or DTLS: RFC 7983, and RFC 5761 for the payload types that RTCP has.
fn is_sound(contents: &[u8]) -> bool {
    matches!(contents, [128..=191, kind, ..] if !(64..=95).contains(&(kind & 0x7f)))
}

/// What lines have done to the datagrams of a class since its weather was set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sent into the line.
    pub sent: u64,
    /// Of these, lost.
    pub lost: u64,
}

struct Class {
    weather: Weather,
    began: Instant,
    /// Every weather has a number, by which flows see that it has changed.
    number: u64,
    tally: Tally,
}

impl Class {
    fn new(weather: Weather, number: u64) -> Self {
        Self {
            weather,
            began: Instant::now(),
            number,
            tally: Tally::default(),
        }
    }
}

struct Shared {
    seed: u64,
    admitted: String,
    from: HashMap<IpAddr, String>,
    classes: HashMap<String, Class>,
    /// How often a weather was set; classes whose weather was never set have number 0.
    changes: u64,
}

impl Shared {
    fn class(&mut self, name: &str) -> &mut Class {
        self.classes
            .entry(name.to_owned())
            .or_insert_with(|| Class::new(Weather::default(), 0))
    }
}

/// Controls the weather of lines. Clones control the same lines.
#[derive(Clone)]
pub struct Lines {
    shared: Arc<Mutex<Shared>>,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Lines").finish_non_exhaustive()
    }
}

impl Lines {
    /// A clear weather for all classes.
    pub fn new(seed: u64) -> Self {
        Self {
            shared: Arc::new(Mutex::new(Shared {
                seed,
                admitted: FIRST_CLASS.to_owned(),
                from: HashMap::new(),
                classes: HashMap::new(),
                changes: 0,
            })),
        }
    }

    /// Puts flows that begin from now on into this class.
    pub fn admit(&self, class: &str) {
        self.shared.lock().admitted = class.to_owned();
    }

    /// Puts flows that begin from now on and come from this address into this class, whatever
    /// [`admit`](Self::admit) says.
    pub fn admit_from(&self, address: IpAddr, class: &str) {
        let mut shared = self.shared.lock();
        shared.from.insert(address, class.to_owned());
    }

    /// Sets the weather of a class from now on. Datagrams in transit arrive as decided before.
    pub fn set(&self, class: &str, weather: Weather) {
        let shared = &mut *self.shared.lock();
        shared.changes += 1;
        let class_now = Class::new(weather, shared.changes);
        shared.classes.insert(class.to_owned(), class_now);
    }

    /// What has been done to a class under its current weather.
    pub fn tally(&self, class: &str) -> Tally {
        self.shared.lock().class(class).tally
    }

    /// Carries out a command, `admit CLASS`, `from ADDRESS CLASS` or `weather CLASS loss=0.05 …`,
    /// and returns what was done to the class under its weather before.
    ///
    /// # Errors
    ///
    /// Names the word of the command that cannot be understood.
    pub fn obey(&self, order: &str) -> Result<Tally, BadOrder> {
        let bad = || BadOrder(order.to_owned());
        let (word, rest) = order.split_once(' ').unwrap_or((order, ""));
        let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
        let class = if word == "from" { second } else { first };
        let before = self.tally(class);
        match word {
            "admit" => self.admit(class),
            "from" => self.admit_from(first.parse().map_err(|_| bad())?, class),
            "weather" => self.set(class, second.parse()?),
            _ => return Err(bad()),
        }
        Ok(before)
    }

    fn begin(&self, from: IpAddr) -> Fate {
        let shared = &mut *self.shared.lock();
        let class = shared.from.get(&from).unwrap_or(&shared.admitted).clone();
        let seed = shared.seed;
        let now = shared.class(&class);
        Fate {
            began: now.began,
            number: now.number,
            directions: [(); 2].map(|()| OneWay::new(now.weather.clone(), seed)),
            class,
        }
    }

    /// When copies of a datagram of this flow arrive that is sent now: none if it is lost.
    fn carry(
        &self,
        fate: &mut Fate,
        direction: Direction,
        contents: &[u8],
    ) -> [Option<Instant>; 2] {
        let shared = &mut *self.shared.lock();
        let seed = shared.seed;
        let class = shared.class(&fate.class);
        if class.number != fate.number {
            fate.began = class.began;
            fate.number = class.number;
            fate.directions = [(); 2].map(|()| OneWay::new(class.weather.clone(), seed));
        }
        let arrivals = fate.directions[direction as usize].carry(fate.began.elapsed(), contents);
        class.tally.sent += 1;
        class.tally.lost += u64::from(arrivals == [None, None]);
        arrivals.map(|arrival| Some(fate.began + arrival?))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer = 0,
    ToClient = 1,
}

/// The state of a flow under one weather.
struct Fate {
    class: String,
    began: Instant,
    number: u64,
    directions: [OneWay; 2],
}

/// A client as the server sees it: each has a socket of its own towards the server.
struct Flow {
    fate: Fate,
    /// When the client last sent something.
    sent_at: Instant,
    socket: Arc<UdpSocket>,
    reader: AbortHandle,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct InTransit {
    arrives: Instant,
    /// Datagrams that arrive at the same time arrive in the order in which they were sent.
    order: u64,
    client: SocketAddr,
    direction: Direction,
    contents: Bytes,
}

impl InTransit {
    fn rank(&self) -> (Instant, u64) {
        (self.arrives, self.order)
    }
}

impl PartialEq for InTransit {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for InTransit {}

impl PartialOrd for InTransit {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for InTransit {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

/// A running relay in front of one address. It ends when it is dropped.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    _stop: DropGuard,
}

impl Line {
    /// Listens at `listen` for datagrams to relay to `server`, and back.
    ///
    /// # Errors
    ///
    /// When `listen` cannot be bound.
    pub async fn open(listen: SocketAddr, server: SocketAddr, lines: &Lines) -> io::Result<Self> {
        let socket = UdpSocket::bind(listen).await?;
        let address = socket.local_addr()?;
        let stop = CancellationToken::new();
        let relay = Relay {
            socket,
            server,
            lines: lines.clone(),
            flows: HashMap::new(),
            readers: JoinSet::new(),
            in_transit: BinaryHeap::new(),
            order: 0,
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(relay.run()));
        Ok(Self {
            address,
            _stop: stop.drop_guard(),
        })
    }

    /// The address to which clients send.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

struct Relay {
    socket: UdpSocket,
    server: SocketAddr,
    lines: Lines,
    flows: HashMap<SocketAddr, Flow>,
    readers: JoinSet<()>,
    in_transit: BinaryHeap<Reverse<InTransit>>,
    order: u64,
}

impl Relay {
    async fn run(mut self) {
        let (answers, mut from_server) = mpsc::channel(BACKLOG);
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let next = self.in_transit.peek().map(|Reverse(next)| next.arrives);
            let arrival = async {
                match next {
                    Some(arrives) => sleep_until(arrives).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => {
                    // The error is about an earlier datagram that could not be delivered; the
                    // socket still works.
                    let Ok((length, client)) = received else { continue };
                    if let Err(error) = self.welcome(client, &answers).await {
                        tracing::warn!("nothing is carried for {client}: {error}");
                        continue;
                    }
                    self.carry(client, Direction::ToServer, &buffer[..length]);
                }
                Some((client, contents)) = from_server.recv() => {
                    self.carry(client, Direction::ToClient, &contents);
                }
                () = arrival => {}
            }
            self.deliver();
        }
    }

    /// Opens a flow for a client's first datagram.
    async fn welcome(
        &mut self,
        client: SocketAddr,
        answers: &mpsc::Sender<(SocketAddr, Bytes)>,
    ) -> io::Result<()> {
        if self.flows.contains_key(&client) {
            return Ok(());
        }
        if self.flows.len() >= MAX_FLOWS {
            // A client tries all its addresses, and nothing tells when it is gone.
            let flows = self.flows.iter();
            let longest_silent = flows.min_by_key(|(_, flow)| flow.sent_at);
            if let Some(gone) = longest_silent.map(|(client, _)| *client) {
                self.flows.remove(&gone);
            }
        }
        let any: SocketAddr = match self.server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = Arc::new(UdpSocket::bind(any).await?);
        socket.connect(self.server).await?;
        // A new socket is not writable before the runtime has polled it once, and the flow's first
        // datagram would be lost.
        socket.writable().await?;
        let reader = read(socket.clone(), client, answers.clone());
        let flow = Flow {
            fate: self.lines.begin(client.ip()),
            sent_at: Instant::now(),
            socket,
            reader: self.readers.spawn(reader),
        };
        tracing::debug!(class = flow.fate.class, "the line carries for {client}");
        self.flows.insert(client, flow);
        Ok(())
    }

    fn carry(&mut self, client: SocketAddr, direction: Direction, contents: &[u8]) {
        let Some(flow) = self.flows.get_mut(&client) else {
            return;
        };
        if direction == Direction::ToServer {
            flow.sent_at = Instant::now();
        }
        let arrivals = self.lines.carry(&mut flow.fate, direction, contents);
        for arrives in arrivals.into_iter().flatten() {
            if self.in_transit.len() >= MAX_IN_TRANSIT {
                tracing::warn!("the line is full; a datagram is lost that should not be");
                return;
            }
            self.order += 1;
            self.in_transit.push(Reverse(InTransit {
                arrives,
                order: self.order,
                client,
                direction,
                contents: Bytes::copy_from_slice(contents),
            }));
        }
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while let Some(Reverse(next)) = self.in_transit.peek()
            && next.arrives <= now
        {
            let Some(Reverse(datagram)) = self.in_transit.pop() else {
                return;
            };
            let Some(flow) = self.flows.get(&datagram.client) else {
                continue;
            };
            // A full socket drops, as networks do, and the receiver may be gone.
            let _ = match datagram.direction {
                Direction::ToServer => flow.socket.try_send(&datagram.contents),
                Direction::ToClient => self.socket.try_send_to(&datagram.contents, datagram.client),
            };
        }
    }
}

async fn read(
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    answers: mpsc::Sender<(SocketAddr, Bytes)>,
) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let Ok(length) = socket.recv(&mut buffer).await else {
            continue;
        };
        let contents = Bytes::copy_from_slice(&buffer[..length]);
        let _ = answers.try_send((client, contents));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SOUND: &[u8] = &[0x80, 111, 0, 1];
    const REPORT: &[u8] = &[0x80, 201, 0, 1];

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn fates(weather: &str, seed: u64, count: u64) -> Vec<[Option<Duration>; 2]> {
        let mut direction = OneWay::new(weather.parse().expect("a weather"), seed);
        (0..count)
            .map(|n| direction.carry(at(20 * n), SOUND))
            .collect()
    }

    #[test]
    fn the_same_seed_is_the_same_line() {
        let bad = "loss=0.1 jitter_ms=80 overtaken=0.05 doubled=0.1";
        assert_eq!(fates(bad, 1, 1000), fates(bad, 1, 1000));
        assert_ne!(fates(bad, 1, 1000), fates(bad, 2, 1000));
    }

    #[test]
    fn what_goes_between_does_not_change_the_fate_of_sound() {
        let mut direction = OneWay::new("loss=0.3".parse().expect("a weather"), 1);
        let with_reports: Vec<_> = (0..100)
            .map(|n| {
                direction.carry(at(20 * n), REPORT);
                direction.carry(at(20 * n), SOUND)
            })
            .collect();
        assert_eq!(with_reports, fates("loss=0.3", 1, 100));
    }

    #[test]
    fn shares_are_as_wished() {
        let count = |fates: Vec<[Option<Duration>; 2]>, is: fn(&[Option<Duration>; 2]) -> bool| {
            fates.iter().filter(|fate| is(fate)).count()
        };
        let lost = count(fates("loss=0.2", 1, 10_000), |fate| fate[0].is_none());
        assert!((1_850..2_150).contains(&lost), "{lost} of 10,000");
        let doubled = count(fates("doubled=0.2", 1, 10_000), |fate| fate[1].is_some());
        assert!((1_850..2_150).contains(&doubled), "{doubled} of 10,000");
        assert_eq!(count(fates("loss=1", 1, 1000), |fate| fate[0].is_some()), 0);
        assert_eq!(count(fates("", 1, 1000), |fate| fate[0].is_none()), 0);
    }

    #[test]
    fn jitter_keeps_the_order_and_overtaking_does_not() {
        let arrivals = |weather| -> Vec<Duration> {
            let fates = fates(weather, 1, 1000);
            fates.into_iter().filter_map(|fate| fate[0]).collect()
        };
        let late = arrivals("delay_ms=30 jitter_ms=80");
        assert!(late.is_sorted());
        assert!(
            (0u64..)
                .zip(&late)
                .all(|(n, &arrival)| { (at(20 * n + 30)..=at(20 * n + 110)).contains(&arrival) })
        );
        assert!(!arrivals("overtaken=0.05").is_sorted());
    }

    #[test]
    fn an_outage_loses_what_is_sent_or_holds_it_back() {
        let lost = fates("delay_ms=30 lost_ms=200..400", 1, 30);
        assert_eq!(lost[9][0], Some(at(210)));
        assert!(lost[10..20].iter().all(|fate| fate[0].is_none()));
        assert_eq!(lost[20][0], Some(at(430)));
        let held = fates("delay_ms=30 held_ms=200..400", 1, 30);
        assert!(held[10..20].iter().all(|fate| fate[0] == Some(at(430))));
        assert_eq!(held[21][0], Some(at(450)));
    }

    #[test]
    fn a_weather_that_makes_no_sense_is_refused() {
        for text in ["loss", "loss=2", "loss=-0.1", "lost_ms=5", "snow=1"] {
            assert!(text.parse::<Weather>().is_err(), "{text}");
        }
        let weather: Weather = "loss=0.05 held_ms=1..2".parse().expect("a weather");
        assert_eq!(weather.loss, 0.05);
        assert!(weather.outages[0].held);
    }

    /// Waits for a datagram sent on this machine, which arrives at once.
    async fn comes<T>(received: impl Future<Output = io::Result<T>>) -> T {
        let received = timeout(Duration::from_secs(30), received).await;
        received.expect("it comes").expect("loopback")
    }

    #[tokio::test]
    async fn each_class_has_its_own_weather_in_both_directions() {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
        let lines = Lines::new(1);
        let server_address = server.local_addr().expect("it is bound");
        let listen = "127.0.0.1:0".parse().expect("an address");
        let line = Line::open(listen, server_address, &lines)
            .await
            .expect("loopback");
        let (mut clients, mut seen_as) = (Vec::new(), Vec::new());
        let mut buffer = [0; 100];
        for class in ["good", "bad"] {
            lines.admit(class);
            let client = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
            client.connect(line.address()).await.expect("loopback");
            client.send(class.as_bytes()).await.expect("it is sent");
            let (length, from) = comes(server.recv_from(&mut buffer)).await;
            assert_eq!(&buffer[..length], class.as_bytes());
            server.send_to(b"welcome", from).await.expect("it is sent");
            let length = comes(client.recv(&mut buffer)).await;
            assert_eq!(&buffer[..length], b"welcome");
            clients.push(client);
            seen_as.push(from);
        }
        let cut: Weather = "loss=1".parse().expect("a weather");
        lines.set("bad", cut);
        clients[1].send(b"lost").await.expect("it is sent");
        clients[0].send(b"kept").await.expect("it is sent");
        let (length, from) = comes(server.recv_from(&mut buffer)).await;
        assert_eq!((&buffer[..length], from), (&b"kept"[..], seen_as[0]));
        server.send_to(b"lost", seen_as[1]).await.expect("sent");
        while lines.tally("bad").sent < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(lines.tally("bad"), Tally { sent: 2, lost: 2 });
        lines.set("bad", Weather::default());
        server.send_to(b"again", seen_as[1]).await.expect("sent");
        let length = comes(clients[1].recv(&mut buffer)).await;
        assert_eq!(&buffer[..length], b"again");
        // A class assigned to the address has priority.
        lines.obey("from 127.0.0.9 good").expect("an order");
        lines.set("bad", "loss=1".parse().expect("a weather"));
        let client = UdpSocket::bind("127.0.0.9:0").await.expect("loopback");
        client.connect(line.address()).await.expect("loopback");
        client.send(b"kept").await.expect("it is sent");
        let (length, _) = comes(server.recv_from(&mut buffer)).await;
        assert_eq!(&buffer[..length], b"kept");
    }

    #[tokio::test]
    async fn there_is_room_for_a_new_client_when_many_have_gone() {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
        let server_address = server.local_addr().expect("it is bound");
        let listen = "127.0.0.1:0".parse().expect("an address");
        let line = Line::open(listen, server_address, &Lines::new(1))
            .await
            .expect("loopback");
        let mut buffer = [0; 100];
        let stays = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
        for _ in 0..=MAX_FLOWS {
            let comes_and_goes = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
            for client in [&stays, &comes_and_goes] {
                client
                    .send_to(b"hello", line.address())
                    .await
                    .expect("sent");
                let (length, from) = comes(server.recv_from(&mut buffer)).await;
                assert_eq!(&buffer[..length], b"hello");
                server.send_to(b"welcome", from).await.expect("it is sent");
                let length = comes(client.recv(&mut buffer)).await;
                assert_eq!(&buffer[..length], b"welcome");
            }
        }
    }
}
