//! Statistics of a connection: what is counted, and how it is reported.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use str0m::{
    CandidateKind,
    media::Mid,
    rtp::Ssrc,
    stats::{MediaEgressStats, MediaIngressStats, PeerStats},
};

use super::{Core, EngineIceState, SignalingState};
use crate::{
    audio::{
        encoder::AudioSenderStats, loss::ExpectedLoss, rate::SendRate, receiver::AudioReceiverStats,
    },
    media_stream_track::MediaStreamTrack,
    rtp::{Receiver, Sender, Transceiver},
    stats::{self, RtcStats, dictionaries},
};

/// Clock rate of Opus in RTP, in hertz.
const AUDIO_CLOCK_RATE: f64 = 48_000.0;
/// RTP header without extensions.
const RTP_HEADER_BYTES: u64 = 12;

/// A packet that comes this much earlier or later than the one before belongs to another timeline,
/// in seconds.
const MAX_JITTER_S: f64 = 1.0;

const TRANSPORT_ID: &str = "T01";
const PAIR_ID: &str = "CP01";
const LOCAL_CANDIDATE_ID: &str = "CL01";
const REMOTE_CANDIDATE_ID: &str = "CR01";

/// Totals of the connection as a whole.
#[derive(Default)]
pub(super) struct Counters {
    pub packets_sent: u64,
    pub bytes_sent: u64,
    pub packets_received: u64,
    pub bytes_received: u64,
    pub peer: Option<PeerStats>,
    pub egress: HashMap<Mid, MediaEgressStats>,
    pub ingress: HashMap<Mid, MediaIngressStats>,
    reports: HashMap<Mid, Reports>,
}

/// What the other side has reported about a stream of this side.
#[derive(Default)]
struct Reports {
    /// Sum of all measurements, and their number.
    round_trips: (Duration, u64),
    /// The share lost according to the last report.
    fraction_lost: f32,
    expected_loss: ExpectedLoss,
    rate: SendRate,
}

/// What an encoder should do after a report of the other side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Advice {
    /// The loss to expect.
    pub loss_percent: u8,
    /// How much of the wanted bitrate the link carries, from 0 to 1.
    pub bitrate_share: f32,
}

impl Counters {
    pub fn packet_sent(&mut self, bytes: usize) {
        self.packets_sent += 1;
        self.bytes_sent += bytes as u64;
    }

    pub fn packet_received(&mut self, bytes: usize) {
        self.packets_received += 1;
        self.bytes_received += bytes as u64;
    }

    /// Returns what the encoder should do, if there is a new report of the other side.
    pub fn take_egress(&mut self, now: Instant, stats: MediaEgressStats) -> Option<Advice> {
        let mut advice = None;
        // A value of loss comes with every report of the other side, so it marks a new measurement.
        if let Some(loss) = stats.loss {
            let reports = self.reports.entry(stats.mid).or_default();
            reports.fraction_lost = loss;
            advice = Some(Advice {
                loss_percent: reports.expected_loss.reported(loss),
                bitrate_share: reports.rate.reported(now, loss, stats.rtt),
            });
            if let Some(rtt) = stats.rtt {
                reports.round_trips.0 += rtt;
                reports.round_trips.1 += 1;
            }
        }
        self.egress.insert(stats.mid, stats);
        advice
    }
}

/// A stream of this side.
#[derive(Default)]
pub(super) struct SentStream {
    /// Extended sequence number of the next packet; 0 before the first one.
    next_sequence: u64,
    ssrc: u32,
    packets: u64,
    payload_bytes: u64,
}

impl SentStream {
    /// Counts a packet and gives its sequence number.
    pub fn next(&mut self, payload_bytes: usize, ssrc: Ssrc) -> u64 {
        if self.packets == 0 {
            // In the lower half, because a receiver that misses the first packets could not detect
            // a wrap-around (RFC 3711, section 3.3.1).
            self.next_sequence = u64::from(rand::random::<u16>() >> 1);
        }
        self.ssrc = *ssrc;
        self.packets += 1;
        self.payload_bytes += payload_bytes as u64;
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        sequence
    }
}

/// A stream of the other side.
pub(super) struct ReceivedStream {
    ssrc: u32,
    first_sequence: u64,
    highest_sequence: u64,
    packets: u64,
    payload_bytes: u64,
    header_bytes: u64,
    payload_type: u8,
    last: Option<Arrival>,
    /// In units of the RTP clock (RFC 3550, section 6.4.1).
    jitter: f64,
}

struct Arrival {
    at: Instant,
    rtp_time: u64,
    wall_ms: f64,
}

impl ReceivedStream {
    pub fn new(ssrc: u32) -> Self {
        Self {
            ssrc,
            first_sequence: 0,
            highest_sequence: 0,
            packets: 0,
            payload_bytes: 0,
            header_bytes: 0,
            payload_type: 0,
            last: None,
            jitter: 0.0,
        }
    }

    pub fn take(
        &mut self,
        now: Instant,
        sequence: u64,
        rtp_time: u64,
        payload_bytes: usize,
        header_bytes: usize,
        payload_type: u8,
    ) {
        if self.packets == 0 {
            self.first_sequence = sequence;
        }
        self.first_sequence = self.first_sequence.min(sequence);
        self.highest_sequence = self.highest_sequence.max(sequence);
        self.packets += 1;
        self.payload_bytes += payload_bytes as u64;
        self.header_bytes += header_bytes as u64;
        self.payload_type = payload_type;
        if let Some(last) = &self.last {
            let arrival = now.saturating_duration_since(last.at).as_secs_f64() * AUDIO_CLOCK_RATE;
            let sent = rtp_time as f64 - last.rtp_time as f64;
            let difference = (arrival - sent).abs();
            // A larger difference is no jitter: the timestamps stood still while the sender was
            // muted.
            if difference < MAX_JITTER_S * AUDIO_CLOCK_RATE {
                self.jitter += (difference - self.jitter) / 16.0;
            }
        }
        self.last = Some(Arrival {
            at: now,
            rtp_time,
            wall_ms: wall_us() as f64 / 1000.0,
        });
    }

    fn lost(&self) -> i64 {
        if self.packets == 0 {
            return 0;
        }
        (self.highest_sequence - self.first_sequence + 1) as i64 - self.packets as i64
    }
}

fn wall_us() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn entry(id: impl Into<String>) -> dictionaries::RtcStats {
    dictionaries::RtcStats {
        id: id.into(),
        timestamp: wall_us(),
    }
}

fn rtp_stream(ssrc: u32, codec_id: String) -> dictionaries::RtpStreamStats {
    dictionaries::RtpStreamStats {
        ssrc,
        kind: "audio".to_owned(),
        transport_id: TRANSPORT_ID.to_owned(),
        codec_id,
    }
}

fn codec(id: &str, payload_type: u8, is_red: bool) -> RtcStats {
    RtcStats::Codec(stats::CodecStats {
        rtc: entry(id),
        codec: dictionaries::CodecStats {
            payload_type: u32::from(payload_type),
            transport_id: TRANSPORT_ID.to_owned(),
            mime_type: match is_red {
                true => "audio/red".to_owned(),
                false => "audio/opus".to_owned(),
            },
            clock_rate: 48_000,
            channels: 2,
            sdp_fmtp_line: String::new(),
        },
    })
}

impl Core {
    /// All statistics of the connection.
    pub fn report(&self, now: Instant) -> Vec<RtcStats> {
        let mut report = self.transport_report(now);
        for transceiver in &self.transceivers {
            self.report_sender(transceiver, &mut report);
            self.report_receiver(transceiver, &mut report);
        }
        for channel in &self.data.live {
            let account = channel.account.lock();
            report.push(RtcStats::DataChannel(stats::DataChannelStats {
                rtc: entry(format!("D{}", account.stream_id)),
                dc: dictionaries::DataChannelStats {
                    label: channel.label().to_owned(),
                    protocol: channel.protocol().to_owned(),
                    data_channel_identifier: account.stream_id,
                    state: Some(account.state),
                    messages_sent: account.messages_sent,
                    bytes_sent: account.bytes_sent,
                    messages_received: account.messages_received,
                    bytes_received: account.bytes_received,
                },
            }));
        }
        report.push(RtcStats::PeerConnection(stats::PeerConnectionStats {
            rtc: entry("P"),
            pc: dictionaries::PeerConnectionStats {
                data_channels_opened: self.data.opened,
                data_channels_closed: self.data.closed,
            },
        }));
        report
    }

    /// The statistics of one sender.
    pub fn sender_report(&self, sender: &std::sync::Arc<Sender>) -> Vec<RtcStats> {
        let mut report = vec![];
        let found = self
            .transceivers
            .iter()
            .find(|it| std::sync::Arc::ptr_eq(&it.sender, sender));
        if let Some(transceiver) = found {
            self.report_sender(transceiver, &mut report);
        }
        report
    }

    /// The statistics of one receiver.
    pub fn receiver_report(&self, receiver: &std::sync::Arc<Receiver>) -> Vec<RtcStats> {
        let mut report = vec![];
        let found = self
            .transceivers
            .iter()
            .find(|it| std::sync::Arc::ptr_eq(&it.receiver, receiver));
        if let Some(transceiver) = found {
            self.report_receiver(transceiver, &mut report);
        }
        report
    }

    fn transport_report(&self, _now: Instant) -> Vec<RtcStats> {
        let pair = self
            .counters
            .peer
            .as_ref()
            .and_then(|it| it.selected_candidate_pair.as_ref());
        let controlling = self.negotiation.is_controlling();
        let negotiated = self.negotiation.state() != SignalingState::Stable
            || self.negotiation.current_remote().is_some();
        let mut report = vec![RtcStats::Transport(stats::TransportStats {
            rtc: entry(TRANSPORT_ID),
            transport: dictionaries::TransportStats {
                packets_sent: self.counters.packets_sent,
                packets_received: self.counters.packets_received,
                bytes_sent: self.counters.bytes_sent,
                bytes_received: self.counters.bytes_received,
                ice_role: match (negotiated, controlling) {
                    (false, _) => stats::IceRole::Unknown,
                    (true, true) => stats::IceRole::Controlling,
                    (true, false) => stats::IceRole::Controlled,
                },
                dtls_state: Some(
                    match (self.state.closed, self.state.dtls_connected, self.state.ice) {
                        (true, ..) => stats::DtlsTransportState::Closed,
                        (_, true, _) => stats::DtlsTransportState::Connected,
                        (_, _, EngineIceState::New) => stats::DtlsTransportState::New,
                        _ => stats::DtlsTransportState::Connecting,
                    },
                ),
                ice_state: Some(match self.state.ice {
                    _ if self.state.closed => stats::IceTransportState::Closed,
                    _ if self.state.failed => stats::IceTransportState::Failed,
                    EngineIceState::New => stats::IceTransportState::New,
                    EngineIceState::Checking => stats::IceTransportState::Checking,
                    EngineIceState::Connected => stats::IceTransportState::Connected,
                    EngineIceState::Completed => stats::IceTransportState::Completed,
                    EngineIceState::Disconnected => stats::IceTransportState::Disconnected,
                }),
                selected_candidate_pair_id: pair.map(|_| PAIR_ID.to_owned()).unwrap_or_default(),
                dtls_role: match self.negotiation.is_dtls_active() {
                    None => stats::DtlsRole::Unknown,
                    Some(true) => stats::DtlsRole::Client,
                    Some(false) => stats::DtlsRole::Server,
                },
                ..dictionaries::TransportStats::default()
            },
        })];
        if let Some(pair) = pair {
            let protocol = match pair.protocol {
                str0m::net::Protocol::Udp => "udp",
                _ => "tcp",
            };
            report.push(RtcStats::CandidatePair(stats::CandidatePairStats {
                rtc: entry(PAIR_ID),
                candidate_pair: dictionaries::CandidatePairStats {
                    transport_id: TRANSPORT_ID.to_owned(),
                    local_candidate_id: LOCAL_CANDIDATE_ID.to_owned(),
                    remote_candidate_id: REMOTE_CANDIDATE_ID.to_owned(),
                    state: Some(stats::IceCandidatePairState::Succeeded),
                    nominated: true,
                    packets_sent: self.counters.packets_sent,
                    packets_received: self.counters.packets_received,
                    bytes_sent: self.counters.bytes_sent,
                    bytes_received: self.counters.bytes_received,
                    total_round_trip_time: pair.total_round_trip_time.as_secs_f64(),
                    current_round_trip_time: pair
                        .current_round_trip_time
                        .unwrap_or_default()
                        .as_secs_f64(),
                    responses_received: pair.responses_received,
                    ..dictionaries::CandidatePairStats::default()
                },
            }));
            let candidate = |address: std::net::SocketAddr| dictionaries::IceCandidateStats {
                transport_id: TRANSPORT_ID.to_owned(),
                address: address.ip().to_string(),
                port: i32::from(address.port()),
                protocol: protocol.to_owned(),
                ..dictionaries::IceCandidateStats::default()
            };
            report.push(RtcStats::LocalCandidate(stats::LocalCandidateStats {
                rtc: entry(LOCAL_CANDIDATE_ID),
                local_candidate: dictionaries::IceCandidateStats {
                    candidate_type: self.paths.kind_of_local(pair.local.addr).map(
                        |kind| match kind {
                            CandidateKind::Host => stats::IceCandidateType::Host,
                            CandidateKind::PeerReflexive => stats::IceCandidateType::Prflx,
                            CandidateKind::ServerReflexive => stats::IceCandidateType::Srflx,
                            CandidateKind::Relayed => stats::IceCandidateType::Relay,
                        },
                    ),
                    ..candidate(pair.local.addr)
                },
            }));
            report.push(RtcStats::RemoteCandidate(stats::RemoteCandidateStats {
                rtc: entry(REMOTE_CANDIDATE_ID),
                remote_candidate: candidate(pair.remote.addr),
            }));
        }
        report
    }

    fn report_sender(&self, transceiver: &Transceiver, report: &mut Vec<RtcStats>) {
        let view = transceiver.view();
        let Some(sending) = &view.sending else { return };
        let mid = sending.mid;
        let encoder = transceiver.sender.encoder();
        let encoded: AudioSenderStats = encoder
            .as_ref()
            .map(|encoder| encoder.stats())
            .unwrap_or_default();
        let source_id = format!("SA{mid}");
        let (outbound_id, remote_id) = (format!("OA{mid}"), format!("RIA{mid}"));
        let payload_type = sending.red_payload_type.unwrap_or(sending.payload_type);
        let codec_id = format!("CO{mid}_{payload_type}");
        let egress = self.counters.egress.get(&mid);
        let remote = egress.and_then(|egress| egress.remote.as_ref());
        if let Some(track) = transceiver.sender.track() {
            report.push(RtcStats::MediaSource(stats::MediaSourceStats {
                rtc: entry(&*source_id),
                source: dictionaries::MediaSourceStats {
                    track_identifier: track.id(),
                    kind: "audio".to_owned(),
                },
                audio: dictionaries::AudioSourceStats {
                    audio_level: encoded.audio_level,
                    total_audio_energy: encoded.total_audio_energy,
                    total_samples_duration: encoded.total_samples_duration_s,
                    ..dictionaries::AudioSourceStats::default()
                },
                video: dictionaries::VideoSourceStats::default(),
            }));
        }
        let is_red = sending.red_payload_type.is_some();
        report.push(codec(&codec_id, payload_type, is_red));
        let sent = self.media.sent.get(&mid);
        let (packets, payload_bytes, ssrc) = sent.map_or((0, 0, 0), |sent| {
            (sent.packets, sent.payload_bytes, sent.ssrc)
        });
        report.push(RtcStats::OutboundRtp(stats::OutboundRtpStats {
            rtc: entry(&*outbound_id),
            stream: rtp_stream(ssrc, codec_id.clone()),
            sent: dictionaries::SentRtpStreamStats {
                packets_sent: packets,
                bytes_sent: payload_bytes,
            },
            outbound: dictionaries::OutboundRtpStreamStats {
                mid: mid.to_string(),
                media_source_id: source_id,
                remote_id: remote.map(|_| remote_id.clone()).unwrap_or_default(),
                header_bytes_sent: packets * RTP_HEADER_BYTES,
                target_bitrate: encoded.target_bitrate_bps as f64,
                nack_count: egress.map_or(0, |egress| egress.nacks as u32),
                active: encoder.is_some(),
                encoder_implementation: "libopus".to_owned(),
                ..dictionaries::OutboundRtpStreamStats::default()
            },
        }));
        if let (Some(egress), Some(remote)) = (egress, remote) {
            let (total, count, fraction_lost) =
                self.counters
                    .reports
                    .get(&mid)
                    .map_or_else(Default::default, |reports| {
                        let (total, count) = reports.round_trips;
                        (total, count, reports.fraction_lost)
                    });
            report.push(RtcStats::RemoteInboundRtp(stats::RemoteInboundRtpStats {
                rtc: entry(remote_id),
                stream: rtp_stream(ssrc, codec_id),
                received: dictionaries::ReceivedRtpStreamStats {
                    packets_received: packets.saturating_sub(remote.packets_lost),
                    packets_lost: remote.packets_lost as i64,
                    jitter: f64::from(remote.jitter) / AUDIO_CLOCK_RATE,
                },
                remote_inbound: dictionaries::RemoteInboundRtpStreamStats {
                    local_id: outbound_id,
                    round_trip_time: egress.rtt.unwrap_or_default().as_secs_f64(),
                    total_round_trip_time: total.as_secs_f64(),
                    fraction_lost: f64::from(fraction_lost),
                    round_trip_time_measurements: count,
                },
            }));
        }
    }

    fn report_receiver(&self, transceiver: &Transceiver, report: &mut Vec<RtcStats>) {
        let view = transceiver.view();
        let (true, Some(mid)) = (view.receiving, view.mid) else {
            return;
        };
        let mid = Mid::from(mid.as_str());
        let MediaStreamTrack::Audio(track) = &transceiver.receiver.track else {
            return;
        };
        let audio: AudioReceiverStats = transceiver
            .receiver
            .audio
            .as_ref()
            .map(|receiver| receiver.stats())
            .unwrap_or_default();
        for incoming in self
            .media
            .incoming
            .values()
            .filter(|incoming| incoming.mid == mid)
        {
            let stream = &incoming.stream;
            let inbound_id = format!("IA{}", stream.ssrc);
            let remote_id = format!("ROA{}", stream.ssrc);
            let ingress = self.counters.ingress.get(&mid);
            let remote = ingress.and_then(|ingress| ingress.remote.as_ref());
            let lost = stream.lost();
            let codec_id = format!("CI{mid}_{}", stream.payload_type);
            let red = incoming
                .index
                .and_then(|index| self.negotiation.transceivers.get(index)?.red);
            let is_red = red.is_some_and(|red| red.payload_type == stream.payload_type);
            report.push(codec(&codec_id, stream.payload_type, is_red));
            report.push(RtcStats::InboundRtp(stats::InboundRtpStats {
                rtc: entry(&*inbound_id),
                stream: rtp_stream(stream.ssrc, codec_id.clone()),
                received: dictionaries::ReceivedRtpStreamStats {
                    packets_received: stream.packets,
                    packets_lost: lost,
                    jitter: stream.jitter / AUDIO_CLOCK_RATE,
                },
                inbound: dictionaries::InboundRtpStreamStats {
                    track_identifier: track.id(),
                    mid: mid.to_string(),
                    remote_id: remote.map(|_| remote_id.clone()).unwrap_or_default(),
                    last_packet_received_timestamp: stream
                        .last
                        .as_ref()
                        .map_or(0.0, |last| last.wall_ms),
                    header_bytes_received: stream.header_bytes,
                    bytes_received: stream.payload_bytes,
                    packets_discarded: audio.packets_discarded,
                    fec_packets_received: audio.fec_packets_received,
                    decoder_implementation: "libopus".to_owned(),
                    jitter_buffer_delay: audio.jitter_buffer_delay_s,
                    jitter_buffer_target_delay: audio.jitter_buffer_target_delay_s,
                    jitter_buffer_minimum_delay: audio.jitter_buffer_minimum_delay_s,
                    jitter_buffer_emitted_count: audio.jitter_buffer_emitted_count,
                    total_samples_received: audio.total_samples_received,
                    concealed_samples: audio.concealed_samples,
                    silent_concealed_samples: audio.silent_concealed_samples,
                    concealment_events: audio.concealment_events,
                    inserted_samples_for_deceleration: audio.inserted_samples_for_deceleration,
                    removed_samples_for_acceleration: audio.removed_samples_for_acceleration,
                    audio_level: audio.audio_level,
                    total_audio_energy: audio.total_audio_energy,
                    total_samples_duration: audio.total_samples_duration_s,
                    ..dictionaries::InboundRtpStreamStats::default()
                },
            }));
            if let Some(remote) = remote {
                report.push(RtcStats::RemoteOutboundRtp(stats::RemoteOutboundRtpStats {
                    rtc: entry(remote_id),
                    stream: rtp_stream(stream.ssrc, codec_id),
                    sent: dictionaries::SentRtpStreamStats {
                        packets_sent: remote.packets,
                        bytes_sent: remote.bytes,
                    },
                    remote_outbound: dictionaries::RemoteOutboundRtpStreamStats {
                        local_id: inbound_id,
                        ..dictionaries::RemoteOutboundRtpStreamStats::default()
                    },
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_jitter_of_a_stream_are_counted() {
        let start = Instant::now();
        let mut stream = ReceivedStream::new(1);
        for (n, late_ms) in [(0u64, 0), (1, 0), (3, 5), (4, 0)] {
            let at = start + Duration::from_millis(20 * n + late_ms);
            stream.take(at, 1000 + n, 960 * n, 100, 20, 111);
        }
        assert_eq!((stream.packets, stream.lost()), (4, 1));
        assert_eq!((stream.payload_bytes, stream.header_bytes), (400, 80));
        // 5 ms late and then 5 ms early: a sixteenth of 240 samples each time.
        let expected = 15.0 + (240.0 - 15.0) / 16.0;
        assert!((stream.jitter - expected).abs() < 0.1, "{}", stream.jitter);
    }

    #[test]
    fn sequence_numbers_start_low_and_follow_each_other() {
        let mut sent = SentStream::default();
        let first = sent.next(10, 5.into());
        assert!(first < 32_768);
        assert_eq!(sent.next(10, 5.into()), first + 1);
    }
}
