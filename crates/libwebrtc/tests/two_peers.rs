//! Two peer connections in one process, over real sockets on this machine.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use libwebrtc::{
    audio_source::native::NativeAudioSource,
    audio_stream::native::NativeAudioStream,
    native::{
        create_random_uuid,
        frame_cryptor::{
            EncryptionAlgorithm, FrameCryptor, KeyDerivationAlgorithm, KeyProvider,
            KeyProviderOptions,
        },
    },
    peer_connection_factory::{PeerConnectionFactory, native::PeerConnectionFactoryExt},
    prelude::*,
    stats::RtcStats,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::StreamExt;

/// Long enough for a busy machine; nothing here takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(20);

struct Peer {
    connection: PeerConnection,
    states: mpsc::UnboundedReceiver<PeerConnectionState>,
    channels: mpsc::UnboundedReceiver<DataChannel>,
    tracks: mpsc::UnboundedReceiver<(MediaStreamTrack, Vec<String>, RtpTransceiver)>,
}

impl Peer {
    fn new() -> Self {
        let connection = PeerConnectionFactory::default()
            .create_peer_connection(RtcConfiguration::default())
            .expect("sockets can be opened");
        let (states_sender, states) = mpsc::unbounded_channel();
        let (channels_sender, channels) = mpsc::unbounded_channel();
        let (tracks_sender, tracks) = mpsc::unbounded_channel();
        connection.on_connection_state_change(Some(Box::new(move |state| {
            let _ = states_sender.send(state);
        })));
        connection.on_data_channel(Some(Box::new(move |channel| {
            let _ = channels_sender.send(channel);
        })));
        connection.on_track(Some(Box::new(move |event| {
            let streams = event.streams.iter().map(|stream| stream.id()).collect();
            let _ = tracks_sender.send((event.track, streams, event.transceiver));
        })));
        Self {
            connection,
            states,
            channels,
            tracks,
        }
    }

    async fn reaches(&mut self, wanted: PeerConnectionState) {
        timeout(PATIENCE, async {
            while let Some(state) = self.states.recv().await {
                if state == wanted {
                    return;
                }
            }
            panic!("the connection ended before it was {wanted:?}");
        })
        .await
        .unwrap_or_else(|_| panic!("the connection never was {wanted:?}"));
    }
}

async fn within<T>(what: &str, future: impl Future<Output = Option<T>>) -> T {
    timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come in time"))
        .unwrap_or_else(|| panic!("{what} will never come"))
}

/// One exchange: `from` offers, `to` answers.
async fn negotiate(from: &Peer, to: &Peer, options: OfferOptions) {
    let offer = from
        .connection
        .create_offer(options)
        .await
        .expect("an offer");
    from.connection
        .set_local_description(offer.clone())
        .await
        .expect("the offer is ours");
    to.connection
        .set_remote_description(offer)
        .await
        .expect("the offer is understood");
    let answer = to
        .connection
        .create_answer(AnswerOptions::default())
        .await
        .expect("an answer");
    to.connection
        .set_local_description(answer.clone())
        .await
        .expect("the answer is ours");
    from.connection
        .set_remote_description(answer)
        .await
        .expect("the answer is understood");
}

async fn connected_pair() -> (Peer, Peer, DataChannel, DataChannel) {
    let (mut alice, mut bob) = (Peer::new(), Peer::new());
    let ours = alice
        .connection
        .create_data_channel("reliable", DataChannelInit::default())
        .expect("a channel");
    negotiate(&alice, &bob, OfferOptions::default()).await;
    alice.reaches(PeerConnectionState::Connected).await;
    bob.reaches(PeerConnectionState::Connected).await;
    let theirs = within("the data channel", bob.channels.recv()).await;
    is_open(&ours).await;
    (alice, bob, ours, theirs)
}

async fn is_open(channel: &DataChannel) {
    let (sender, mut opened) = mpsc::unbounded_channel();
    channel.on_state_change(Some(Box::new(move |state| {
        let _ = sender.send(state);
    })));
    while channel.state() != DataChannelState::Open {
        within("the opening of the channel", opened.recv()).await;
    }
}

fn messages(channel: &DataChannel) -> mpsc::UnboundedReceiver<(Vec<u8>, bool)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    channel.on_message(Some(Box::new(move |message| {
        let _ = sender.send((message.data.to_vec(), message.binary));
    })));
    receiver
}

#[tokio::test]
async fn data_travels_in_both_directions_and_every_byte_is_accounted_for() {
    let (alice, _bob, ours, theirs) = connected_pair().await;
    assert_eq!(theirs.label(), "reliable");
    let taken = DataChannelInit {
        negotiated: true,
        id: ours.id(),
        ..DataChannelInit::default()
    };
    assert!(
        alice
            .connection
            .create_data_channel("other", taken)
            .is_err(),
        "the id is in use"
    );
    let (mut at_alice, mut at_bob) = (messages(&ours), messages(&theirs));
    let drained = Arc::new(AtomicU64::new(0));
    let (counter, (all_gone, mut gone)) = (drained.clone(), mpsc::unbounded_channel());
    const BYTES: u64 = 300 * 15_000;
    ours.on_buffered_amount_change(Some(Box::new(move |bytes| {
        if counter.fetch_add(bytes, Ordering::Relaxed) + bytes == BYTES {
            let _ = all_gone.send(());
        }
    })));
    for n in 0..300u32 {
        let mut message = vec![0u8; 15_000];
        message[..4].copy_from_slice(&n.to_be_bytes());
        ours.send(&message, true).expect("the buffer holds 16 MiB");
    }
    for n in 0..300u32 {
        let (message, binary) = within("a message", at_bob.recv()).await;
        assert!(binary);
        assert_eq!(
            (message.len(), &message[..4]),
            (15_000, &n.to_be_bytes()[..])
        );
    }
    within("the last byte", gone.recv()).await;
    assert_eq!(
        (drained.load(Ordering::Relaxed), ours.buffered_amount()),
        (BYTES, 0)
    );

    theirs
        .send("grüße".as_bytes(), false)
        .expect("the channel is open");
    assert_eq!(
        within("a text", at_alice.recv()).await,
        ("grüße".as_bytes().to_vec(), false)
    );
    assert!(matches!(
        theirs.send(&[0xff], false),
        Err(DataChannelError::Utf8(_))
    ));
}

#[tokio::test]
async fn messages_wait_for_the_callback() {
    let (_alice, _bob, ours, theirs) = connected_pair().await;
    let (mut echo, mut early) = (messages(&ours), None);
    for text in ["one", "two"] {
        ours.send(text.as_bytes(), false)
            .expect("the channel is open");
    }
    // Both have arrived when a third message, sent back on another channel, has come.
    theirs.send(b"ready", false).expect("the channel is open");
    within("the echo", echo.recv()).await;
    let received = early.get_or_insert_with(|| messages(&theirs));
    for text in ["one", "two"] {
        assert_eq!(
            within("an early message", received.recv()).await.0,
            text.as_bytes()
        );
    }
}

#[tokio::test]
async fn negotiated_channels_open_without_announcement() {
    let (mut alice, bob) = (Peer::new(), Peer::new());
    let init = |id| DataChannelInit {
        negotiated: true,
        id,
        ..DataChannelInit::default()
    };
    let lossy = |id| DataChannelInit {
        ordered: false,
        max_retransmits: Some(0),
        ..init(id)
    };
    let ours = alice
        .connection
        .create_data_channel("a", init(0))
        .expect("a channel");
    let ours_lossy = alice
        .connection
        .create_data_channel("b", lossy(1))
        .expect("a channel");
    let theirs = bob
        .connection
        .create_data_channel("a", init(0))
        .expect("a channel");
    let theirs_lossy = bob
        .connection
        .create_data_channel("b", lossy(1))
        .expect("a channel");
    let twice = alice.connection.create_data_channel("c", init(1));
    assert!(twice.is_err(), "the id is in use");
    negotiate(&alice, &bob, OfferOptions::default()).await;
    alice.reaches(PeerConnectionState::Connected).await;
    for (ours, theirs) in [(ours, theirs), (ours_lossy, theirs_lossy)] {
        is_open(&ours).await;
        is_open(&theirs).await;
        let mut received = messages(&theirs);
        ours.send(b"hello", true).expect("the channel is open");
        assert_eq!(within("a message", received.recv()).await.0, b"hello");
    }
}

#[tokio::test]
async fn channels_closed_before_the_exchange_can_be_made_again_in_band() {
    let (mut alice, mut bob) = (Peer::new(), Peer::new());
    let init = DataChannelInit {
        negotiated: true,
        id: 0,
        ..DataChannelInit::default()
    };
    let first = alice
        .connection
        .create_data_channel("x", init.clone())
        .expect("a channel");
    let _offer = alice
        .connection
        .create_offer(OfferOptions::default())
        .await
        .expect("an offer");
    first.close();
    assert_eq!(first.state(), DataChannelState::Closed);
    let second = alice
        .connection
        .create_data_channel("x", DataChannelInit::default())
        .expect("a channel");
    negotiate(&alice, &bob, OfferOptions::default()).await;
    alice.reaches(PeerConnectionState::Connected).await;
    is_open(&second).await;
    assert_eq!(
        within("the data channel", bob.channels.recv())
            .await
            .label(),
        "x"
    );
}

#[tokio::test]
async fn closing_a_channel_is_seen_on_the_other_side() {
    let (_alice, _bob, ours, theirs) = connected_pair().await;
    let (sender, mut states) = mpsc::unbounded_channel();
    theirs.on_state_change(Some(Box::new(move |state| {
        let _ = sender.send(state);
    })));
    ours.close();
    while within("the end of the channel", states.recv()).await != DataChannelState::Closed {}
    assert!(ours.send(b"late", true).is_err());
}

/// A tone that is pushed into `source` until the flag is set.
fn play(source: NativeAudioSource, stop: Arc<AtomicBool>) {
    tokio::spawn(async move {
        let mut phase = 0f32;
        while !stop.load(Ordering::Relaxed) {
            let mut frame = AudioFrame::new(48_000, 1, 480);
            for sample in frame.data.to_mut() {
                phase += 440.0 / 48_000.0;
                *sample = ((phase * std::f32::consts::TAU).sin() * 10_000.0) as i16;
            }
            if source.capture_frame(&frame).await.is_err() {
                return;
            }
        }
    });
}

fn local_track() -> (NativeAudioSource, MediaStreamTrack) {
    let source = NativeAudioSource::new(AudioSourceOptions::default(), 48_000, 1, 100);
    let track =
        PeerConnectionFactory::default().create_audio_track(&create_random_uuid(), source.clone());
    (source, track.into())
}

async fn packets_received(receiver: &RtpReceiver, at_least: u64) {
    timeout(PATIENCE, async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            let report = receiver.get_stats().await.expect("a report");
            let received = report.iter().find_map(|entry| match entry {
                RtcStats::InboundRtp(inbound) => Some(inbound.received.packets_received),
                _ => None,
            });
            if received.unwrap_or(0) >= at_least {
                return;
            }
        }
    })
    .await
    .expect("packets arrive");
}

#[tokio::test]
async fn sound_flows_in_both_directions_and_stops_when_the_track_is_removed() {
    let (mut alice, mut bob) = (Peer::new(), Peer::new());
    let (source, track) = local_track();
    let sender = alice
        .connection
        .add_track(track, &["alice"])
        .expect("a sender");
    let (back_source, back_track) = local_track();
    bob.connection
        .add_track(back_track, &["bob"])
        .expect("a sender");
    negotiate(&alice, &bob, OfferOptions::default()).await;
    assert_eq!(
        bob.connection.transceivers().len(),
        1,
        "the offer takes over bob's transceiver"
    );
    alice.reaches(PeerConnectionState::Connected).await;
    bob.reaches(PeerConnectionState::Connected).await;
    let stop = Arc::new(AtomicBool::new(false));
    play(source, stop.clone());
    play(back_source, stop.clone());
    let (_, streams, at_bob) = within("alice's track", bob.tracks.recv()).await;
    assert_eq!(streams, ["alice"]);
    let (_, streams, at_alice) = within("bob's track", alice.tracks.recv()).await;
    assert_eq!(streams, ["bob"]);
    packets_received(&at_bob.receiver(), 10).await;
    packets_received(&at_alice.receiver(), 10).await;

    alice
        .connection
        .remove_track(sender)
        .expect("the sender is ours");
    negotiate(&alice, &bob, OfferOptions::default()).await;
    assert_eq!(
        at_bob.current_direction(),
        Some(RtpTransceiverDirection::SendOnly)
    );
    assert!(at_bob.receiver().streams().is_empty());
    assert_eq!(
        at_alice.current_direction(),
        Some(RtpTransceiverDirection::RecvOnly)
    );
    stop.store(true, Ordering::Relaxed);
}

#[tokio::test]
async fn the_answerer_may_offer_later_and_sections_keep_their_places() {
    let (alice, mut bob, ..) = connected_pair().await;
    let (_source, track) = local_track();
    let init = RtpTransceiverInit {
        direction: RtpTransceiverDirection::SendOnly,
        stream_ids: vec!["later".to_owned()],
        send_encodings: vec![],
    };
    bob.connection
        .add_transceiver(track, init)
        .expect("a transceiver");
    let mut alice = alice;
    negotiate(&bob, &alice, OfferOptions::default()).await;
    let (_, streams, at_alice) = within("bob's track", alice.tracks.recv()).await;
    assert_eq!(streams, ["later"]);
    assert_eq!(
        at_alice.current_direction(),
        Some(RtpTransceiverDirection::RecvOnly)
    );
    negotiate(&alice, &bob, OfferOptions::default()).await;
    let text = alice
        .connection
        .current_local_description()
        .expect("agreed")
        .to_string();
    let kinds: Vec<_> = text.lines().filter(|line| line.starts_with("m=")).collect();
    assert!(
        kinds[0].starts_with("m=application") && kinds[1].starts_with("m=audio"),
        "{kinds:?}"
    );
    assert!(bob.tracks.try_recv().is_err());
}

#[tokio::test]
async fn an_offer_is_possible_without_a_change_and_before_a_pending_one_is_answered() {
    let (alice, bob, ours, theirs) = connected_pair().await;
    negotiate(&alice, &bob, OfferOptions::default()).await;
    let offer = alice
        .connection
        .create_offer(OfferOptions::default())
        .await
        .expect("an offer");
    alice
        .connection
        .set_local_description(offer)
        .await
        .expect("the offer is ours");
    assert_eq!(
        alice.connection.signaling_state(),
        SignalingState::HaveLocalOffer
    );

    // livekit takes a pending offer back by applying the last answer again.
    let last = alice
        .connection
        .current_remote_description()
        .expect("an answer before");
    alice
        .connection
        .set_remote_description(last)
        .await
        .expect("the offer is taken back");
    assert_eq!(alice.connection.signaling_state(), SignalingState::Stable);
    negotiate(&alice, &bob, OfferOptions::default()).await;
    let mut received = messages(&theirs);
    ours.send(b"still here", true).expect("the channel is open");
    assert_eq!(within("a message", received.recv()).await.0, b"still here");
}

#[tokio::test]
async fn a_transceiver_of_a_forgotten_offer_is_offered_again() {
    let (alice, bob, ..) = connected_pair().await;
    let (_source, track) = local_track();
    alice
        .connection
        .add_track(track, &["again"])
        .expect("a sender");
    let offer = alice
        .connection
        .create_offer(OfferOptions::default())
        .await
        .expect("an offer");
    alice
        .connection
        .set_local_description(offer)
        .await
        .expect("the offer is ours");
    assert!(alice.connection.transceivers()[0].mid().is_some());
    let last = alice
        .connection
        .current_remote_description()
        .expect("an answer before");
    alice
        .connection
        .set_remote_description(last)
        .await
        .expect("the offer is taken back");
    assert_eq!(alice.connection.transceivers()[0].mid(), None);
    let mut bob = bob;
    negotiate(&alice, &bob, OfferOptions::default()).await;
    assert_eq!(within("the track", bob.tracks.recv()).await.1, ["again"]);
}

#[tokio::test]
async fn ice_restarts_while_data_flows() {
    let (mut alice, mut bob, ours, theirs) = connected_pair().await;
    let ufrag = |peer: &Peer| {
        let text = peer
            .connection
            .current_local_description()
            .expect("agreed")
            .to_string();
        text.lines()
            .find(|line| line.starts_with("a=ice-ufrag:"))
            .expect("a ufrag")
            .to_owned()
    };
    let before = (ufrag(&alice), ufrag(&bob));
    let restart = OfferOptions {
        ice_restart: true,
        ..OfferOptions::default()
    };
    negotiate(&alice, &bob, restart).await;
    assert_ne!(ufrag(&alice), before.0);
    assert_ne!(ufrag(&bob), before.1);
    let mut received = messages(&theirs);
    ours.send(b"after the restart", true)
        .expect("the channel is open");
    assert_eq!(
        within("a message", received.recv()).await.0,
        b"after the restart"
    );
    for peer in [&mut alice, &mut bob] {
        let states: Vec<_> = std::iter::from_fn(|| peer.states.try_recv().ok()).collect();
        assert_eq!(states, [], "the old path carries on");
    }
}

#[tokio::test]
async fn closing_is_seen_by_the_other_side_and_refuses_everything_after() {
    let (alice, mut bob, ours, _theirs) = connected_pair().await;
    let (sender, mut ended) = mpsc::unbounded_channel();
    ours.on_state_change(Some(Box::new(move |state| {
        let _ = sender.send(state);
    })));
    alice.connection.close();
    assert_eq!(
        alice.connection.connection_state(),
        PeerConnectionState::Closed
    );
    assert_eq!(alice.connection.signaling_state(), SignalingState::Closed);
    assert_eq!(
        within("the end", ended.recv()).await,
        DataChannelState::Closed
    );
    assert!(ours.send(b"late", true).is_err());
    let offer = alice.connection.create_offer(OfferOptions::default()).await;
    assert_eq!(
        offer.expect_err("closed").error_type,
        RtcErrorType::InvalidState
    );
    alice.connection.close();
    bob.reaches(PeerConnectionState::Disconnected).await;
}

#[tokio::test]
async fn video_is_refused_in_words() {
    let alice = Peer::new();
    let track = PeerConnectionFactory::default().create_video_track(
        "camera",
        libwebrtc::video_source::native::NativeVideoSource::default(),
    );
    let error = alice
        .connection
        .add_track(track.into(), &["x"])
        .expect_err("no video");
    assert!(error.message.contains("video is not supported"), "{error}");
}

fn open_sockets() -> usize {
    std::fs::read_dir("/proc/self/fd")
        .expect("Linux")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

#[test]
fn nothing_is_left_of_closed_and_dropped_connections() {
    // In a process of its own, as other tests open sockets at the same time.
    if std::env::var_os("LIBWEBRTC_COUNT_SOCKETS").is_none() {
        let status = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args([
                "--exact",
                "nothing_is_left_of_closed_and_dropped_connections",
            ])
            .env("LIBWEBRTC_COUNT_SOCKETS", "1")
            .status()
            .expect("the test starts");
        assert!(status.success());
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        drop(connected_pair().await);
        timeout(PATIENCE, async {
            while open_sockets() > 1 {
                tokio::task::yield_now().await
            }
        })
        .await
        .ok();
        let before = open_sockets();
        for round in 0..20 {
            let (alice, bob, ours, theirs) = connected_pair().await;
            if round % 2 == 0 {
                alice.connection.close();
                bob.connection.close();
            }
            drop((alice, bob, ours, theirs));
        }
        let gone = timeout(PATIENCE, async {
            while open_sockets() > before {
                tokio::task::yield_now().await;
            }
        });
        assert!(
            gone.await.is_ok(),
            "{} sockets before, {} after",
            before,
            open_sockets()
        );
    });
}

/// What `pick` finds in the statistics, as soon as it does.
async fn reported<T>(peer: &Peer, what: &str, pick: impl Fn(&RtcStats) -> Option<T>) -> T {
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    timeout(PATIENCE, async {
        loop {
            tick.tick().await;
            let report = peer.connection.get_stats().await.expect("a report");
            if let Some(found) = report.iter().find_map(&pick) {
                return found;
            }
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{what} is not reported"))
}

#[tokio::test]
async fn statistics_tell_what_happened() {
    let (mut alice, mut bob) = (Peer::new(), Peer::new());
    let channel = alice
        .connection
        .create_data_channel("counted", DataChannelInit::default())
        .expect("a channel");
    let (source, track) = local_track();
    let track_id = track.id();
    alice
        .connection
        .add_track(track, &["alice"])
        .expect("a sender");
    negotiate(&alice, &bob, OfferOptions::default()).await;
    alice.reaches(PeerConnectionState::Connected).await;
    bob.reaches(PeerConnectionState::Connected).await;
    let stop = Arc::new(AtomicBool::new(false));
    play(source, stop.clone());
    is_open(&channel).await;
    let theirs = within("the data channel", bob.channels.recv()).await;
    let mut received = messages(&theirs);
    channel.send(&[1; 500], true).expect("the channel is open");
    within("a message", received.recv()).await;

    let (sent, bytes) = reported(&alice, "the channel", |entry| match entry {
        RtcStats::DataChannel(channel) => Some((channel.dc.messages_sent, channel.dc.bytes_sent)),
        _ => None,
    })
    .await;
    assert_eq!((sent, bytes), (1, 500));
    let source_track = reported(&alice, "the source", |entry| match entry {
        RtcStats::MediaSource(source) if source.audio.total_audio_energy > 0.0 => {
            Some(source.source.track_identifier.clone())
        }
        _ => None,
    })
    .await;
    assert_eq!(source_track, track_id);
    let ssrc = reported(&alice, "the sent stream", |entry| match entry {
        RtcStats::OutboundRtp(outbound) if outbound.sent.packets_sent > 5 => {
            Some(outbound.stream.ssrc)
        }
        _ => None,
    })
    .await;
    reported(
        &bob,
        "the same stream, received without loss",
        |entry| match entry {
            RtcStats::InboundRtp(inbound) => (inbound.stream.ssrc == ssrc
                && inbound.received.packets_received > 5
                && inbound.received.packets_lost == 0)
                .then_some(()),
            _ => None,
        },
    )
    .await;
    let local = reported(&alice, "the candidate pair", |entry| match entry {
        RtcStats::LocalCandidate(candidate) => Some(candidate.local_candidate.port),
        _ => None,
    })
    .await;
    let remote = reported(&bob, "the candidate pair", |entry| match entry {
        RtcStats::RemoteCandidate(candidate) => Some(candidate.remote_candidate.port),
        _ => None,
    })
    .await;
    assert_eq!(local, remote, "both report the same path");
    reported(
        &alice,
        "the round-trip time that the other side's reports give",
        |entry| match entry {
            RtcStats::RemoteInboundRtp(remote) => (remote.remote_inbound.round_trip_time > 0.0
                && remote.remote_inbound.round_trip_time < 1.0)
                .then_some(()),
            _ => None,
        },
    )
    .await;
    stop.store(true, Ordering::Relaxed);
}

/// The codec of the sound that arrives, once it is decoded: packets were received, and none was
/// discarded.
async fn heard_codec(peer: &Peer, receiver: &RtpReceiver) -> String {
    let MediaStreamTrack::Audio(track) = receiver.track().expect("a track") else {
        panic!("it is audio");
    };
    let mut stream = NativeAudioStream::new(track, 48_000, 1);
    let heard = async {
        while let Some(frame) = stream.next().await {
            if frame.data.iter().any(|sample| sample.abs() > 5_000) {
                return Some(());
            }
        }
        None
    };
    within("sound", heard).await;
    let codec_id = reported(peer, "the sound", |entry| match entry {
        RtcStats::InboundRtp(inbound) => {
            assert_eq!(inbound.inbound.packets_discarded, 0);
            Some(inbound.stream.codec_id.clone())
        }
        _ => None,
    })
    .await;
    reported(peer, "the codec", |entry| match entry {
        RtcStats::Codec(codec) => (codec.rtc.id == codec_id).then(|| codec.codec.mime_type.clone()),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn redundant_audio_is_sent_where_it_is_preferred_encrypted_or_not() {
    let factory = PeerConnectionFactory::default();
    for encrypted in [false, true] {
        let (mut alice, mut bob) = (Peer::new(), Peer::new());
        let (source, track) = local_track();
        let sender = alice
            .connection
            .add_track(track, &["alice"])
            .expect("a sender");
        let (back_source, back_track) = local_track();
        bob.connection
            .add_track(back_track, &["bob"])
            .expect("a sender");
        // A side that wants to receive redundant audio lists it first. Bob does so when he answers.
        let mut codecs = factory
            .get_rtp_receiver_capabilities(MediaType::Audio)
            .codecs;
        codecs.sort_by_key(|codec| codec.mime_type != "audio/red");
        bob.connection.transceivers()[0]
            .set_codec_preferences(codecs)
            .expect("both are known");
        negotiate(&alice, &bob, OfferOptions::default()).await;
        alice.reaches(PeerConnectionState::Connected).await;
        bob.reaches(PeerConnectionState::Connected).await;
        let (.., at_bob) = within("alice's track", bob.tracks.recv()).await;
        let (.., at_alice) = within("bob's track", alice.tracks.recv()).await;
        let mut cryptors = vec![];
        if encrypted {
            let keys = KeyProvider::new(KeyProviderOptions {
                shared_key: true,
                ratchet_window_size: 0,
                ratchet_salt: b"LKFrameEncryptionKey".to_vec(),
                failure_tolerance: -1,
                key_ring_size: 16,
                key_derivation_algorithm: KeyDerivationAlgorithm::HKDF,
            });
            keys.set_shared_key(0, b"secret".to_vec());
            let algorithm = EncryptionAlgorithm::AesGcm;
            let name = || "alice".to_owned();
            cryptors.push(FrameCryptor::new_for_rtp_sender(
                &factory,
                name(),
                algorithm,
                keys.clone(),
                sender,
            ));
            cryptors.push(FrameCryptor::new_for_rtp_receiver(
                &factory,
                name(),
                algorithm,
                keys,
                at_bob.receiver(),
            ));
            for cryptor in &cryptors {
                cryptor.set_enabled(true);
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        play(source, stop.clone());
        play(back_source, stop.clone());
        assert_eq!(heard_codec(&bob, &at_bob.receiver()).await, "audio/red");
        assert_eq!(
            heard_codec(&alice, &at_alice.receiver()).await,
            "audio/opus"
        );
        stop.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = nobody.local_addr().expect("it is bound");
    drop(nobody);
    let url = format!("turn:{address}?transport=tcp");
    let mut config = RtcConfiguration::default();
    config.ice_transport_type = IceTransportsType::Relay;
    config.ice_servers = vec![IceServer {
        urls: vec![url.clone()],
        username: "user".to_owned(),
        password: "password".to_owned(),
    }];
    let connection = PeerConnectionFactory::default()
        .create_peer_connection(config)
        .expect("sockets can be opened");
    let (sender, mut errors) = mpsc::unbounded_channel();
    connection.on_ice_candidate_error(Some(Box::new(move |error| {
        let _ = sender.send(error);
    })));
    connection
        .create_data_channel("x", DataChannelInit::default())
        .expect("a channel");
    let offer = connection
        .create_offer(OfferOptions::default())
        .await
        .expect("an offer");
    connection
        .set_local_description(offer)
        .await
        .expect("the offer is ours");
    let error = within("the error", errors.recv()).await;
    assert_eq!((error.url.as_str(), error.error_code), (url.as_str(), 701));
}
