//! A bad line for tests: a relay that stands in front of a UDP address and loses, delays, reorders
//! and doubles what it carries, both ways.
//!
//! Everybody who sends to it is one flow, and every flow belongs to a class, which has a weather.
//! Who is in which class is decided by when a flow begins: it belongs to the class that is admitted
//! then, unless where it comes from has a class of its own. Each direction of a flow has dice of
//! its own, all with the same seed and thrown anew when the weather changes, so two participants
//! with the same weather lose the same of their sound.
//!
//! Knows nothing about what it carries, except which datagrams are RTP. Nothing here is for
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

/// Senders that a line carries for; those that come later get nothing through.
const MAX_FLOWS: usize = 64;
/// Datagrams that are under way on one line. More than that are lost, as in a router whose queue is
/// full.
const MAX_UNDER_WAY: usize = 20_000;
/// Datagrams from the server that wait to be looked at; more than that are lost, as in a socket's
/// buffer.
const BACKLOG: usize = 1024;
/// How much longer a packet takes that is overtaken: the next two of 20 ms come before it.
const OVERTAKEN_BY: Duration = Duration::from_millis(45);
/// How long after a packet its double comes.
const DOUBLED_AFTER: Duration = Duration::from_millis(10);
/// The class that flows belong to when nobody has said anything.
pub const FIRST_CLASS: &str = "clear";

/// What a line does to datagrams.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Weather {
    /// Share of datagrams that get lost, each by itself; 1 is a cut.
    pub loss: f64,
    /// How long every datagram takes.
    pub delay: Duration,
    /// Datagrams take up to so much longer, evenly spread. Their order is kept, as queues keep it.
    pub jitter: Duration,
    /// Share of datagrams that take 45 ms longer and are overtaken by those behind them.
    pub overtaken: f64,
    /// Share of datagrams that come twice, the second time 10 ms later.
    pub doubled: f64,
    /// When nothing gets through.
    pub outages: Vec<Outage>,
}

/// A time in which nothing gets through, counted from when the weather began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    pub from: Duration,
    pub to: Duration,
    /// What was sent meanwhile comes all at once afterwards, instead of never.
    pub held: bool,
}

/// What is no order to a line.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} says nothing to a line: admit CLASS, from ADDRESS CLASS, or weather CLASS loss=0.05 delay_ms=30 jitter_ms=80 overtaken=0.05 doubled=0.2 \
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
/// weather began.
struct Way {
    weather: Weather,
    /// For sound, and for all else: the fate of the n-th packet of sound must not depend on how
    /// many reports went between.
    dice: [StdRng; 2],
    /// When the last datagram arrives that keeps its place.
    last: Duration,
}

impl Way {
    fn new(weather: Weather, seed: u64) -> Self {
        Self {
            weather,
            dice: [seed, seed ^ u64::MAX].map(StdRng::seed_from_u64),
            last: Duration::ZERO,
        }
    }

    /// When copies of a datagram arrive that is sent at `sent`.
    fn carry(&mut self, sent: Duration, contents: &[u8]) -> [Option<Duration>; 2] {
        let weather = &self.weather;
        let dice = &mut self.dice[usize::from(!is_sound(contents))];
        // Thrown in full every time, so that one fate does not move the others.
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

/// What lines have done to the datagrams of a class since it has its weather.
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
    /// Every weather has a number, by which flows see that theirs is over.
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
    /// How often a weather was set; those that nobody set have number 0.
    changes: u64,
}

impl Shared {
    fn class(&mut self, name: &str) -> &mut Class {
        self.classes
            .entry(name.to_owned())
            .or_insert_with(|| Class::new(Weather::default(), 0))
    }
}

/// The weather of lines, and a hand on it. Clones are the same.
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
    /// Clear weather for all.
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

    /// Flows that begin from now on belong to this class.
    pub fn admit(&self, class: &str) {
        self.shared.lock().admitted = class.to_owned();
    }

    /// Flows that begin from now on and come from this address belong to this class, whoever is
    /// admitted.
    pub fn admit_from(&self, address: IpAddr, class: &str) {
        let mut shared = self.shared.lock();
        shared.from.insert(address, class.to_owned());
    }

    /// The weather of a class from now on. What is under way comes as it would have.
    pub fn set(&self, class: &str, weather: Weather) {
        let shared = &mut *self.shared.lock();
        shared.changes += 1;
        let class_now = Class::new(weather, shared.changes);
        shared.classes.insert(class.to_owned(), class_now);
    }

    /// What has been done to a class under its present weather.
    pub fn tally(&self, class: &str) -> Tally {
        self.shared.lock().class(class).tally
    }

    /// Does what a line of text says, `admit CLASS`, `from ADDRESS CLASS` or `weather CLASS
    /// loss=0.05 …`, and answers what was done to the class under its weather before.
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
            ways: [(); 2].map(|()| Way::new(now.weather.clone(), seed)),
            class,
        }
    }

    /// When copies of a datagram of this flow arrive that is sent now.
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
            fate.ways = [(); 2].map(|()| Way::new(class.weather.clone(), seed));
        }
        let arrivals = fate.ways[direction as usize].carry(fate.began.elapsed(), contents);
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

/// What happens to a flow's datagrams, as long as the weather lasts.
struct Fate {
    class: String,
    began: Instant,
    number: u64,
    ways: [Way; 2],
}

/// A client, as the server sees it: each has a socket of its own towards the server.
struct Flow {
    fate: Fate,
    /// When the client has last sent something.
    sent_at: Instant,
    socket: Arc<UdpSocket>,
    reader: AbortHandle,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct UnderWay {
    arrives: Instant,
    /// Those that arrive at the same time arrive in the order in which they were sent.
    order: u64,
    client: SocketAddr,
    direction: Direction,
    contents: Bytes,
}

impl UnderWay {
    fn rank(&self) -> (Instant, u64) {
        (self.arrives, self.order)
    }
}

impl PartialEq for UnderWay {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for UnderWay {}

impl PartialOrd for UnderWay {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for UnderWay {
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
    /// Listens at `listen` for what is to be carried to `server`, and back.
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
            under_way: BinaryHeap::new(),
            order: 0,
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(relay.run()));
        Ok(Self {
            address,
            _stop: stop.drop_guard(),
        })
    }

    /// Where clients send to.
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
    under_way: BinaryHeap<Reverse<UnderWay>>,
    order: u64,
}

impl Relay {
    async fn run(mut self) {
        let (answers, mut from_server) = mpsc::channel(BACKLOG);
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let next = self.under_way.peek().map(|Reverse(next)| next.arrives);
            let arrival = async {
                match next {
                    Some(arrives) => sleep_until(arrives).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => {
                    // An error is the echo of an earlier datagram that could not be delivered; the
                    // socket is still good.
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

    /// Opens a flow if this is the first that somebody sends.
    async fn welcome(
        &mut self,
        client: SocketAddr,
        answers: &mpsc::Sender<(SocketAddr, Bytes)>,
    ) -> io::Result<()> {
        if self.flows.contains_key(&client) {
            return Ok(());
        }
        if self.flows.len() >= MAX_FLOWS {
            // A client tries all addresses that it has, and nobody says when it is gone.
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
        // A new socket takes nothing before the runtime has looked at it once, and the flow's first
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
            if self.under_way.len() >= MAX_UNDER_WAY {
                tracing::warn!("the line is full; a datagram is lost that should not be");
                return;
            }
            self.order += 1;
            self.under_way.push(Reverse(UnderWay {
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
        while let Some(Reverse(next)) = self.under_way.peek()
            && next.arrives <= now
        {
            let Some(Reverse(datagram)) = self.under_way.pop() else {
                return;
            };
            let Some(flow) = self.flows.get(&datagram.client) else {
                continue;
            };
            // A full socket drops, as networks do, and nobody may listen any more.
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
        let mut way = Way::new(weather.parse().expect("a weather"), seed);
        (0..count).map(|n| way.carry(at(20 * n), SOUND)).collect()
    }

    #[test]
    fn the_same_seed_is_the_same_line() {
        let bad = "loss=0.1 jitter_ms=80 overtaken=0.05 doubled=0.1";
        assert_eq!(fates(bad, 1, 1000), fates(bad, 1, 1000));
        assert_ne!(fates(bad, 1, 1000), fates(bad, 2, 1000));
    }

    #[test]
    fn what_goes_between_does_not_change_the_fate_of_sound() {
        let mut way = Way::new("loss=0.3".parse().expect("a weather"), 1);
        let with_reports: Vec<_> = (0..100)
            .map(|n| {
                way.carry(at(20 * n), REPORT);
                way.carry(at(20 * n), SOUND)
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

    /// What has been sent on this machine comes at once.
    async fn comes<T>(received: impl Future<Output = io::Result<T>>) -> T {
        let received = timeout(Duration::from_secs(30), received).await;
        received.expect("it comes").expect("loopback")
    }

    #[tokio::test]
    async fn each_class_has_its_own_weather_both_ways() {
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
        // Where it comes from decides before who is admitted.
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
