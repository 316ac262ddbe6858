//! Calls through a real TURN server: coturn, the program `turnserver`.
//!
//! `tests/interop/turn/run.py` makes a certificate and runs these tests; without it they are left
//! out.

mod coturn;

use std::time::{Duration, Instant};

use coturn::TurnServer;
use libwebrtc::{
    peer_connection::IceCandidateError,
    prelude::*,
    stats::{IceCandidateType, RtcStats},
};
use tokio::{sync::mpsc, time::timeout};

/// Long enough for a busy machine; failing by ICE takes 17 s of it.
const PATIENCE: Duration = Duration::from_secs(40);

struct Peer {
    connection: PeerConnection,
    states: mpsc::UnboundedReceiver<PeerConnectionState>,
    channels: mpsc::UnboundedReceiver<DataChannel>,
    errors: mpsc::UnboundedReceiver<IceCandidateError>,
    candidates: mpsc::UnboundedReceiver<IceCandidate>,
}

impl Peer {
    fn new(config: RtcConfiguration) -> Self {
        let connection = PeerConnectionFactory::default()
            .create_peer_connection(config)
            .expect("sockets can be opened");
        let (states_sender, states) = mpsc::unbounded_channel();
        let (channels_sender, channels) = mpsc::unbounded_channel();
        let (errors_sender, errors) = mpsc::unbounded_channel();
        let (candidates_sender, candidates) = mpsc::unbounded_channel();
        connection.on_connection_state_change(Some(Box::new(move |state| {
            let _ = states_sender.send(state);
        })));
        connection.on_data_channel(Some(Box::new(move |channel| {
            let _ = channels_sender.send(channel);
        })));
        connection.on_ice_candidate_error(Some(Box::new(move |error| {
            let _ = errors_sender.send(error);
        })));
        connection.on_ice_candidate(Some(Box::new(move |candidate| {
            let _ = candidates_sender.send(candidate);
        })));
        Self {
            connection,
            states,
            channels,
            errors,
            candidates,
        }
    }

    /// A peer that may use nothing but relays.
    fn behind(urls: &[String], password: &str) -> Self {
        let mut config = RtcConfiguration::default();
        config.ice_transport_type = IceTransportsType::Relay;
        config.ice_servers = vec![IceServer {
            urls: urls.to_vec(),
            username: "user".to_owned(),
            password: password.to_owned(),
        }];
        Self::new(config)
    }

    async fn reaches(&mut self, wanted: PeerConnectionState) {
        while within("a state", self.states.recv()).await != wanted {}
    }

    /// The kind of the local candidate in use. It is in the statistics after a second.
    async fn local_candidate_kind(&self) -> IceCandidateType {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        let found = async {
            loop {
                tick.tick().await;
                let report = self.connection.get_stats().await.ok()?;
                let kind = report.into_iter().find_map(|entry| match entry {
                    RtcStats::LocalCandidate(it) => it.local_candidate.candidate_type,
                    _ => None,
                });
                if kind.is_some() {
                    return kind;
                }
            }
        };
        within("the report of the candidate", found).await
    }
}

async fn within<T>(what: &str, future: impl Future<Output = Option<T>>) -> T {
    timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come in time"))
        .unwrap_or_else(|| panic!("{what} will never come"))
}

async fn negotiate(from: &Peer, to: &Peer, ice_restart: bool) {
    let options = OfferOptions {
        ice_restart,
        ..OfferOptions::default()
    };
    let offer = from
        .connection
        .create_offer(options)
        .await
        .expect("an offer");
    let (from, to) = (&from.connection, &to.connection);
    from.set_local_description(offer.clone())
        .await
        .expect("the offer is ours");
    to.set_remote_description(offer)
        .await
        .expect("a good offer");
    let answer = to
        .create_answer(AnswerOptions::default())
        .await
        .expect("an answer");
    to.set_local_description(answer.clone())
        .await
        .expect("the answer is ours");
    from.set_remote_description(answer)
        .await
        .expect("a good answer");
}

fn messages(channel: &DataChannel) -> mpsc::UnboundedReceiver<Vec<u8>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    channel.on_message(Some(Box::new(move |message| {
        let _ = sender.send(message.data.to_vec());
    })));
    receiver
}

/// Connects two peers and sends something in each direction.
async fn connect(alice: &mut Peer, bob: &mut Peer) -> (DataChannel, DataChannel) {
    let ours = alice
        .connection
        .create_data_channel("x", DataChannelInit::default())
        .expect("a channel");
    negotiate(alice, bob, false).await;
    alice.reaches(PeerConnectionState::Connected).await;
    bob.reaches(PeerConnectionState::Connected).await;
    let theirs = within("the channel", bob.channels.recv()).await;
    let (mut at_alice, mut at_bob) = (messages(&ours), messages(&theirs));
    theirs.send(b"hello", true).expect("it is open");
    assert_eq!(within("a message", at_alice.recv()).await, b"hello");
    ours.send(b"good day", true).expect("it is open");
    assert_eq!(within("a message", at_bob.recv()).await, b"good day");
    (ours, theirs)
}

#[tokio::test]
#[ignore = "needs coturn: tests/interop/turn/run.py"]
async fn calls_go_through_the_relay_over_udp_tcp_and_tls() {
    let server = TurnServer::start(&[]).await;
    for url in server.urls() {
        let mut alice = Peer::behind(std::slice::from_ref(&url), "secret");
        let mut bob = Peer::new(RtcConfiguration::default());
        let began = Instant::now();
        connect(&mut alice, &mut bob).await;
        println!("{url}: connected and heard in {:?}", began.elapsed());
        let candidate = within("a candidate", alice.candidates.recv()).await;
        assert!(candidate.candidate().contains("typ relay"), "{url}");
        assert!(alice.candidates.try_recv().is_err(), "{url}: nothing else");
        let kind = alice.local_candidate_kind().await;
        assert!(matches!(kind, IceCandidateType::Relay), "{url}: {kind:?}");
    }
}

#[tokio::test]
#[ignore = "needs coturn: tests/interop/turn/run.py"]
async fn both_sides_can_be_behind_relays() {
    let server = TurnServer::start(&[]).await;
    let [udp, tcp, _] = server.urls();
    let (mut alice, mut bob) = (
        Peer::behind(&[udp], "secret"),
        Peer::behind(&[tcp], "secret"),
    );
    alice
        .connection
        .create_data_channel("x", DataChannelInit::default())
        .expect("a channel");
    negotiate(&alice, &bob, false).await;
    let at_alice = within("a candidate", alice.candidates.recv()).await;
    let at_bob = within("a candidate", bob.candidates.recv()).await;
    let (ours, theirs) = (&alice.connection, &bob.connection);
    theirs
        .add_ice_candidate(at_alice)
        .await
        .expect("a good one");
    ours.add_ice_candidate(at_bob).await.expect("a good one");
    alice.reaches(PeerConnectionState::Connected).await;
    bob.reaches(PeerConnectionState::Connected).await;
}

#[tokio::test]
#[ignore = "needs coturn: tests/interop/turn/run.py"]
async fn a_wrong_password_is_told_with_the_code_of_the_server() {
    let server = TurnServer::start(&[]).await;
    for url in server.urls() {
        let mut alice = Peer::behind(std::slice::from_ref(&url), "wrong");
        let bob = Peer::new(RtcConfiguration::default());
        alice
            .connection
            .create_data_channel("x", DataChannelInit::default())
            .expect("a channel");
        negotiate(&alice, &bob, false).await;
        let error = within("the error", alice.errors.recv()).await;
        assert_eq!((&error.url, error.error_code), (&url, 401));
        assert_eq!(error.address, "127.0.0.1");
    }
}

#[tokio::test]
#[ignore = "needs coturn: tests/interop/turn/run.py"]
async fn a_full_server_is_told_with_its_code() {
    let server = TurnServer::start(&["--user-quota=1"]).await;
    let [udp, _, _] = server.urls();
    let urls = std::slice::from_ref(&udp);
    let mut bob = Peer::new(RtcConfiguration::default());
    let mut first = Peer::behind(urls, "secret");
    connect(&mut first, &mut bob).await;
    let mut second = Peer::behind(urls, "secret");
    let other = Peer::new(RtcConfiguration::default());
    second
        .connection
        .create_data_channel("x", DataChannelInit::default())
        .expect("a channel");
    negotiate(&second, &other, false).await;
    assert_eq!(
        within("the error", second.errors.recv()).await.error_code,
        486
    );
}

#[tokio::test]
#[ignore = "needs coturn: tests/interop/turn/run.py"]
async fn a_server_that_goes_in_mid_call_fails_the_call_and_a_restart_brings_it_back() {
    let server = TurnServer::start(&[]).await;
    let other = TurnServer::start(&[]).await;
    let [_, tcp, _] = server.urls();
    let [_, other_tcp, _] = other.urls();
    let mut alice = Peer::behind(&[tcp], "secret");
    let mut bob = Peer::new(RtcConfiguration::default());
    let (ours, theirs) = connect(&mut alice, &mut bob).await;
    drop(server);
    // Without another path there is nothing to wait for.
    let next = within("the next state", alice.states.recv()).await;
    assert_eq!(next, PeerConnectionState::Failed);
    let mut config = RtcConfiguration::default();
    config.ice_transport_type = IceTransportsType::Relay;
    config.ice_servers = vec![IceServer {
        urls: vec![other_tcp],
        username: "user".to_owned(),
        password: "secret".to_owned(),
    }];
    alice
        .connection
        .set_configuration(config)
        .expect("it is open");
    negotiate(&alice, &bob, true).await;
    alice.reaches(PeerConnectionState::Connected).await;
    let mut at_bob = messages(&theirs);
    ours.send(b"back again", true).expect("it is open");
    assert_eq!(within("a message", at_bob.recv()).await, b"back again");
}

/// Where UDP is blocked, TLS is not: the relay is used without relays being forced.
#[tokio::test]
#[ignore = "needs coturn: tests/interop/turn/run.py"]
async fn without_a_direct_path_the_relay_is_found() {
    let server = TurnServer::start(&[]).await;
    let [_, _, tls] = server.urls();
    let mut config = RtcConfiguration::default();
    config.ice_servers = vec![IceServer {
        urls: vec![tls],
        username: "user".to_owned(),
        password: "secret".to_owned(),
    }];
    let (mut alice, bob) = (Peer::new(config), Peer::new(RtcConfiguration::default()));
    alice
        .connection
        .create_data_channel("x", DataChannelInit::default())
        .expect("a channel");
    let offer = alice
        .connection
        .create_offer(OfferOptions::default())
        .await
        .expect("an offer");
    let local = &alice.connection;
    local
        .set_local_description(offer.clone())
        .await
        .expect("the offer is ours");
    bob.connection
        .set_remote_description(offer)
        .await
        .expect("a good offer");
    // No answer comes, so there is no direct path.
    while !within("a relay", alice.candidates.recv())
        .await
        .candidate()
        .contains("typ relay")
    {}
}
