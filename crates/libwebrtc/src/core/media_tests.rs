//! What two cores count of the sound between them, compared with what an emulated link did to it,
//! in virtual time.

use std::time::{Duration, Instant};

use super::{
    tests::{Line, Pair},
    *,
};
use crate::{
    audio::{
        TICK_SAMPLES,
        encoder::{PacketEncoder, RtpClock},
        link::Link,
        testing::second_of_voice,
        track::{AudioTrack, Pcm},
    },
    audio_track::RtcAudioTrack,
    stats::{
        InboundRtpStats, OutboundRtpStats, RemoteInboundRtpStats, RemoteOutboundRtpStats, RtcStats,
    },
};

/// A connected pair whose first core sends sound to the second.
fn talking() -> (Pair, Mid) {
    let mut pair = Pair::new();
    let track = RtcAudioTrack {
        handle: AudioTrack::local_without_source("voice"),
    };
    let init = RtpTransceiverInit {
        direction: RtpTransceiverDirection::SendOnly,
        stream_ids: vec!["stream".to_owned()],
        send_encodings: vec![],
    };
    pair.cores[0]
        .add_transceiver(
            MediaType::Audio,
            Some(MediaStreamTrack::Audio(track)),
            init,
            false,
        )
        .expect("a transceiver");
    pair.negotiate(0, false);
    let both = [PeerConnectionState::Connected; 2];
    pair.run(Duration::from_secs(5), |pair| pair.states() == both)
        .expect("connected");
    for core in &pair.cores {
        for transceiver in core.transceivers() {
            transceiver.sync();
        }
    }
    let view = pair.cores[0].transceivers[0].view();
    (pair, view.sending.expect("negotiated").mid)
}

/// The bitrate that the encoder would aim at on this connection's advice, in bits per second.
fn target_bps(pair: &Pair) -> Option<u64> {
    let encoder = pair.cores[0].transceivers[0].sender.encoder();
    encoder.map(|encoder| encoder.stats().target_bitrate_bps)
}

/// Sends sound for so many seconds and waits until it has arrived. Returns how many packets were
/// sent, and the bytes of their payload.
fn talk(pair: &mut Pair, mid: Mid, seconds: usize) -> (u64, u64) {
    let mut encoder = PacketEncoder::new(OpusSendConfig::default(), RtpClock::starting_at(1))
        .expect("an encoder");
    let (mut packets, mut bytes) = (0, 0);
    for _ in 0..seconds {
        for samples in second_of_voice().chunks_exact(TICK_SAMPLES) {
            let now = pair.now;
            let pcm = Pcm {
                samples,
                sample_rate_hz: 48_000,
                channels: 1,
            };
            encoder.push(now, pcm);
            while let Some(packet) = encoder.next_packet() {
                packets += 1;
                bytes += packet.payload.len() as u64;
                pair.cores[0].send_audio(now, mid, 111, packet);
            }
            pair.run(Duration::from_millis(10), |_| false);
            encoder.set_max_bitrate(target_bps(pair));
        }
    }
    pair.run(Duration::from_millis(1_500), |_| false);
    (packets, bytes)
}

fn inbound(core: &Core, now: Instant) -> InboundRtpStats {
    let found = core.report(now).into_iter().find_map(|entry| match entry {
        RtcStats::InboundRtp(entry) => Some(entry),
        _ => None,
    });
    found.expect("sound was received")
}

fn outbound(core: &Core, now: Instant) -> (OutboundRtpStats, RemoteInboundRtpStats) {
    let (mut ours, mut theirs) = (None, None);
    for entry in core.report(now) {
        match entry {
            RtcStats::OutboundRtp(entry) => ours = Some(entry),
            RtcStats::RemoteInboundRtp(entry) => theirs = Some(entry),
            _ => {}
        }
    }
    (ours.expect("sound was sent"), theirs.expect("and reported"))
}

#[test]
fn statistics_of_both_sides_say_what_the_line_did() {
    for link in [
        Link::default(),
        Link {
            loss: 0.1,
            ..Link::default()
        },
        Link {
            jitter_ms: 40.0,
            ..Link::default()
        },
        Link {
            loss: 0.02,
            overtaken: 0.05,
            doubled: 0.1,
            ..Link::default()
        },
    ] {
        let (mut pair, mid) = talking();
        pair.line = Some(Line::new(pair.now, link, 5));
        let (sent, bytes) = talk(&mut pair, mid, 10);
        let line = pair.line.take().expect("it was put there");
        assert_eq!(line.rtp_packets, sent, "{link:?}");

        let inbound = inbound(&pair.cores[1], pair.now);
        // Losses before the first packet and after the last are not noticed.
        let lost = line.rtp_lost as i64;
        assert!(
            (lost - 3..=lost).contains(&inbound.received.packets_lost),
            "{link:?}: {lost}, {:?}",
            inbound.received
        );
        assert_eq!(
            inbound.received.packets_received,
            sent - line.rtp_lost,
            "{link:?}"
        );
        if line.rtp_lost == 0 {
            assert_eq!(inbound.inbound.bytes_received, bytes);
        }
        // Packets come every 20 ms; the mean difference between the delays of two packets is a
        // third of the range.
        let jitter_ms = inbound.received.jitter * 1000.0;
        let expected = match (link.jitter_ms > 0.0, link.overtaken > 0.0) {
            (true, _) => 4.0..20.0,
            (_, true) => 0.1..20.0,
            _ => 0.0..1.1,
        };
        assert!(expected.contains(&jitter_ms), "{link:?}: {jitter_ms}");
        assert!(!inbound.stream.codec_id.is_empty());

        let (outbound, remote) = outbound(&pair.cores[0], pair.now);
        assert_eq!(
            (outbound.sent.packets_sent, outbound.sent.bytes_sent),
            (sent, bytes)
        );
        // 30 ms there and 20 ms back, and the jitter.
        let round_trip_ms = remote.remote_inbound.round_trip_time * 1000.0;
        assert!(
            (45.0..60.0 + link.jitter_ms).contains(&round_trip_ms),
            "{link:?}: {round_trip_ms}"
        );
        assert!(remote.remote_inbound.round_trip_time_measurements >= 5);
        let reported = remote.received.packets_lost;
        assert!(
            (reported - lost).abs() <= 3 + lost / 5,
            "{link:?}: {reported} of {lost}"
        );

        let sender_report =
            pair.cores[1]
                .report(pair.now)
                .into_iter()
                .find_map(|entry| match entry {
                    RtcStats::RemoteOutboundRtp(RemoteOutboundRtpStats { sent, .. }) => Some(sent),
                    _ => None,
                });
        let sender_report = sender_report.expect("the sender reports too");
        assert!(sender_report.packets_sent > 0 && sender_report.packets_sent <= sent);
    }
}

#[test]
fn candidate_pair_shows_the_round_trip_and_what_went_over_it() {
    let (mut pair, mid) = talking();
    talk(&mut pair, mid, 10);
    let found = pair.cores[0]
        .report(pair.now)
        .into_iter()
        .find_map(|entry| match entry {
            RtcStats::CandidatePair(entry) => Some(entry.candidate_pair),
            _ => None,
        });
    let found = found.expect("a pair was selected");
    let round_trip_ms = found.current_round_trip_time * 1000.0;
    assert!((39.0..45.0).contains(&round_trip_ms), "{round_trip_ms}");
    assert!(found.responses_received >= 1);
    assert!(found.packets_sent >= 500 && found.bytes_sent > 500 * 60);
}

#[test]
fn a_line_that_takes_less_gets_less_and_all_again_when_it_takes_more() {
    let (mut pair, mid) = talking();
    let wanted = target_bps(&pair);
    pair.line = Some(Line::new(pair.now, Link::default(), 5));
    talk(&mut pair, mid, 5);
    assert_eq!(target_bps(&pair), wanted);

    // Speech at 32 kbit/s and its headers are 53 kbit/s.
    let line = pair.line.as_mut().expect("it was put there");
    line.bottleneck = Some((44_000.0, 400.0));
    talk(&mut pair, mid, 20);
    let line = pair.line.as_mut().expect("it was put there");
    (line.rtp_packets, line.rtp_lost) = (0, 0);
    talk(&mut pair, mid, 20);
    assert!(target_bps(&pair) < wanted, "{:?}", target_bps(&pair));
    let line = pair.line.as_mut().expect("it was put there");
    let lost = line.rtp_lost as f64 / line.rtp_packets as f64;
    assert!(lost < 0.02, "{lost}");

    line.bottleneck = None;
    talk(&mut pair, mid, 40);
    assert_eq!(target_bps(&pair), wanted);
}
