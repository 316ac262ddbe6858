//! Calls over networks on which UDP stops or never worked: media must switch to another route by
//! itself. Tests with a TURN server need coturn; `tests/interop/turn/run.py` runs them.

#[path = "../../crates/libwebrtc/tests/coturn/mod.rs"]
mod coturn;

use std::time::Duration;

use coturn::TurnServer;
use futures_util::StreamExt as _;
use livekit::options::TrackPublishOptions;
use livekit::prelude::*;
use livekit::webrtc::audio_frame::AudioFrame;
use livekit::webrtc::audio_source::native::NativeAudioSource;
use livekit::webrtc::audio_source::{AudioSourceOptions, RtcAudioSource};
use livekit::webrtc::audio_stream::native::NativeAudioStream;
use livekit::webrtc::peer_connection_factory::IceServer;
use livekit::webrtc::stats::{IceCandidateType, RtcStats};
use livekit_api::access_token::{AccessToken, VideoGrants};
use roomserver::line::{Lines, Weather};
use roomserver::{Options, RoomServer};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

const KEY: &str = "devkey";
const SECRET: &str = "a secret that is long enough for tests";
/// Timeout, far more than any step takes even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const RATE_HZ: u32 = 16_000;
const FRAME: usize = RATE_HZ as usize / 100;
/// Above what a codec leaves of silence, below the square wave that is played.
const LOUD: i16 = 600;
/// This many consecutive frames of 10 ms count as sound; fewer may be the rest of a buffer.
const ENOUGH: usize = 50;

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = timeout(PATIENCE, future).await;
    result.unwrap_or_else(|_| panic!("{what} did not come in time"))
}

/// A server behind simulated networks, where the participant `bad` gets the faults.
async fn lined_server(rtc_tcp: bool) -> (RoomServer, Lines) {
    let lines = Lines::new(1);
    let options = Options {
        rtc_tcp,
        keys: vec![(KEY.into(), SECRET.into())],
        lines: Some(lines.clone()),
        ..Options::default()
    };
    let server = RoomServer::start(options).await;
    (server.expect("loopback has free ports"), lines)
}

fn cut() -> Weather {
    "loss=1".parse().expect("a weather")
}

async fn join(
    server: &RoomServer,
    identity: &str,
    relays: &[String],
) -> (Room, UnboundedReceiver<RoomEvent>) {
    let grants = VideoGrants {
        room_join: true,
        room: "call".to_owned(),
        ..VideoGrants::default()
    };
    let token = AccessToken::with_api_key(KEY, SECRET)
        .with_identity(identity)
        .with_grants(grants)
        .to_jwt()
        .expect("a token");
    let mut options = RoomOptions::default();
    if !relays.is_empty() {
        options.rtc_config.ice_servers = vec![IceServer {
            urls: relays.to_vec(),
            username: "user".to_owned(),
            password: "secret".to_owned(),
        }];
    }
    let url = server.url();
    let joined = Room::connect(&url, &token, options);
    within("the join", joined).await.expect("the room is there")
}

/// Publishes a tone that goes on until the room ends.
async fn hum(room: &Room) {
    let source = NativeAudioSource::new(AudioSourceOptions::default(), RATE_HZ, 1, 100);
    let track = LocalAudioTrack::create_audio_track("hum", RtcAudioSource::Native(source.clone()));
    let publish = TrackPublishOptions {
        dtx: false,
        ..TrackPublishOptions::default()
    };
    let participant = room.local_participant();
    let publishing = participant.publish_track(LocalTrack::Audio(track), publish);
    within("the track", publishing).await.expect("it is ours");
    let wave: Vec<i16> = (0..FRAME)
        .map(|sample| if sample % 40 < 20 { 8_000 } else { -8_000 })
        .collect();
    tokio::spawn(async move {
        loop {
            let frame = AudioFrame {
                data: wave.as_slice().into(),
                sample_rate: RATE_HZ,
                num_channels: 1,
                samples_per_channel: FRAME as u32,
            };
            if source.capture_frame(&frame).await.is_err() {
                return;
            }
        }
    });
}

async fn audio_from(events: &mut UnboundedReceiver<RoomEvent>) -> NativeAudioStream {
    let subscribed = async {
        loop {
            if let RoomEvent::TrackSubscribed {
                track: RemoteTrack::Audio(track),
                ..
            } = events.recv().await.expect("the room is open")
            {
                return NativeAudioStream::new(track.rtc_track(), RATE_HZ as i32, 1);
            }
        }
    };
    within("the track of the other", subscribed).await
}

/// Waits until there was sound, or silence, without interruption for [`ENOUGH`] frames.
async fn hears(audio: &mut NativeAudioStream, sound: bool) {
    let mut run = 0;
    while run < ENOUGH {
        let frame = audio.next().await.expect("the track goes on");
        let loud = frame.data.iter().any(|sample| sample.abs() > LOUD);
        run = if loud == sound { run + 1 } else { 0 };
    }
}

/// Waits until the statistics, which are updated every second, report a relay candidate.
async fn sends_from_a_relay(room: &Room) {
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tick.tick().await;
        let stats = room.get_stats().await.expect("the room is open");
        let relayed = |entry: &RtcStats| match entry {
            RtcStats::LocalCandidate(it) => matches!(
                it.local_candidate.candidate_type,
                Some(IceCandidateType::Relay)
            ),
            _ => false,
        };
        let (ours, theirs) = (stats.publisher_stats, stats.subscriber_stats);
        if ours.iter().chain(&theirs).any(relayed) {
            return;
        }
    }
}

#[tokio::test]
async fn sound_goes_on_over_tcp_in_both_directions_when_udp_stops_in_mid_call() {
    let (server, lines) = lined_server(true).await;
    let (clear, mut at_clear) = join(&server, "clear", &[]).await;
    lines.admit("bad");
    let (bad, mut at_bad) = join(&server, "bad", &[]).await;
    hum(&clear).await;
    hum(&bad).await;
    let (mut down, mut up) = (
        audio_from(&mut at_bad).await,
        audio_from(&mut at_clear).await,
    );
    within("sound at first", hears(&mut down, true)).await;
    within("sound at first", hears(&mut up, true)).await;
    assert!(lines.tally("bad").sent > 0, "the sound came over the line");
    lines.set("bad", cut());
    within("the silence", hears(&mut down, false)).await;
    // No UDP packet arrives any more, so this came over TCP.
    within("sound over TCP", hears(&mut down, true)).await;
    within("sound over TCP", hears(&mut up, true)).await;
    let tally = lines.tally("bad");
    assert!(tally.sent > 0 && tally.lost == tally.sent, "{tally:?}");
    server.shutdown().await;
}

#[tokio::test]
async fn where_udp_is_blocked_a_call_is_made_over_tcp() {
    let (server, lines) = lined_server(true).await;
    let (clear, _at_clear) = join(&server, "clear", &[]).await;
    hum(&clear).await;
    lines.admit("bad");
    lines.set("bad", cut());
    let (_bad, mut at_bad) = join(&server, "bad", &[]).await;
    let mut down = audio_from(&mut at_bad).await;
    within("sound over TCP", hears(&mut down, true)).await;
    let tally = lines.tally("bad");
    assert!(tally.sent > 0 && tally.lost == tally.sent, "{tally:?}");
    server.shutdown().await;
}

#[tokio::test]
#[ignore = "needs coturn: tests/interop/turn/run.py"]
async fn sound_goes_on_through_a_relay_when_udp_stops_in_mid_call() {
    let turn = TurnServer::start(&[]).await;
    let [_, over_tcp, over_tls] = turn.urls();
    for relay in [over_tcp, over_tls] {
        let (server, lines) = lined_server(false).await;
        let (clear, mut at_clear) = join(&server, "clear", &[]).await;
        lines.admit("bad");
        let (bad, mut at_bad) = join(&server, "bad", &[relay]).await;
        hum(&clear).await;
        hum(&bad).await;
        let (mut down, mut up) = (
            audio_from(&mut at_bad).await,
            audio_from(&mut at_clear).await,
        );
        within("sound at first", hears(&mut down, true)).await;
        within("sound at first", hears(&mut up, true)).await;
        // The network of the TURN server keeps working.
        lines.admit("relayed");
        lines.set("bad", cut());
        within("the silence", hears(&mut down, false)).await;
        within("sound through the relay", hears(&mut down, true)).await;
        within("sound through the relay", hears(&mut up, true)).await;
        within("the relay in the report", sends_from_a_relay(&bad)).await;
        server.shutdown().await;
    }
}
