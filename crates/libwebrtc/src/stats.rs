//! Statistics in the shapes and names of the W3C recommendation "Identifiers for WebRTC's
//! Statistics API", as far as the replaced library has them. `core::report` fills them.

use std::collections::HashMap;

use serde::Deserialize;

use crate::data_channel::DataChannelState;

/// One entry of a report.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum RtcStats {
    /// A codec in use.
    Codec(CodecStats),
    /// A stream that is received.
    InboundRtp(InboundRtpStats),
    /// A stream that is sent.
    OutboundRtp(OutboundRtpStats),
    /// The other side's report about a stream that is sent.
    RemoteInboundRtp(RemoteInboundRtpStats),
    /// The other side's report about a stream that it sends.
    RemoteOutboundRtp(RemoteOutboundRtpStats),
    /// The input of an encoder.
    MediaSource(MediaSourceStats),
    /// Playout of received sound.
    MediaPlayout(MediaPlayoutStats),
    /// The connection as a whole.
    PeerConnection(PeerConnectionStats),
    /// A data channel.
    DataChannel(DataChannelStats),
    /// The transport below everything.
    Transport(TransportStats),
    /// A pair of candidates.
    CandidatePair(CandidatePairStats),
    /// A candidate of this side.
    LocalCandidate(LocalCandidateStats),
    /// A candidate of the other side.
    RemoteCandidate(RemoteCandidateStats),
    /// A certificate.
    Certificate(CertificateStats),
    /// A stream of tracks.
    Stream(StreamStats),
    /// Obsolete in the W3C's specification. Never reported.
    Track,
}

macro_rules! lowercase_enum {
    ($($(#[$attribute:meta])* $name:ident { $($(#[$variant_attribute:meta])* $variant:ident),+ $(,)? })+) => {
        $(
            $(#[$attribute])*
            #[derive(Debug, Copy, Clone, PartialEq, Eq, Deserialize)]
            #[serde(rename_all = "kebab-case")]
            #[expect(
                missing_docs,
                reason = "each value is that of the same name in the W3C's specification"
            )]
            pub enum $name { $($(#[$variant_attribute])* $variant),+ }
        )+
    };
}

lowercase_enum! {
    /// What limits the quality of a sender.
    #[derive(Default)]
    QualityLimitationReason { #[default] None, Cpu, Bandwidth, Other }
    /// Which side nominates the candidate pair.
    #[derive(Default)]
    IceRole { #[default] Unknown, Controlling, Controlled }
    /// State of the DTLS handshake.
    DtlsTransportState { New, Connecting, Connected, Closed, Failed }
    /// State of ICE.
    IceTransportState { New, Checking, Connected, Completed, Disconnected, Failed, Closed }
    /// Which side started the DTLS handshake.
    #[derive(Default)]
    DtlsRole { Client, Server, #[default] Unknown }
    /// State of a candidate pair.
    IceCandidatePairState { Frozen, Waiting, InProgress, Failed, Succeeded }
    /// Where a candidate comes from.
    IceCandidateType { Host, Srflx, Prflx, Relay }
    /// How a TURN server is reached.
    IceServerTransportProtocol { Udp, Tcp, Tls }
    /// Which side opens the connection of a TCP candidate.
    IceTcpCandidateType { Active, Passive, So }
}

macro_rules! entries {
    ($($(#[$attribute:meta])* $name:ident { $($field:ident: $dictionary:ident),+ $(,)? })+) => {
        $(
            $(#[$attribute])*
            #[derive(Debug, Default, Clone, Deserialize)]
            #[expect(missing_docs, reason = "a group of fields, which its type describes")]
            pub struct $name {
                $(#[serde(flatten)] pub $field: dictionaries::$dictionary),+
            }
        )+
    };
}

entries! {
    /// A codec in use.
    CodecStats { rtc: RtcStats, codec: CodecStats }
    /// A stream that is received.
    InboundRtpStats {
        rtc: RtcStats, stream: RtpStreamStats, received: ReceivedRtpStreamStats, inbound: InboundRtpStreamStats,
    }
    /// A stream that is sent.
    OutboundRtpStats {
        rtc: RtcStats, stream: RtpStreamStats, sent: SentRtpStreamStats, outbound: OutboundRtpStreamStats,
    }
    /// What the other side reports about a stream that this side sends.
    RemoteInboundRtpStats {
        rtc: RtcStats, stream: RtpStreamStats, received: ReceivedRtpStreamStats,
        remote_inbound: RemoteInboundRtpStreamStats,
    }
    /// What the other side reports about a stream that it sends.
    RemoteOutboundRtpStats {
        rtc: RtcStats, stream: RtpStreamStats, sent: SentRtpStreamStats,
        remote_outbound: RemoteOutboundRtpStreamStats,
    }
    /// The input of an encoder.
    MediaSourceStats {
        rtc: RtcStats, source: MediaSourceStats, audio: AudioSourceStats, video: VideoSourceStats,
    }
    /// Playout of received sound.
    MediaPlayoutStats { rtc: RtcStats, audio_playout: AudioPlayoutStats }
    /// The connection as a whole.
    PeerConnectionStats { rtc: RtcStats, pc: PeerConnectionStats }
    /// A data channel.
    DataChannelStats { rtc: RtcStats, dc: DataChannelStats }
    /// The transport below everything.
    TransportStats { rtc: RtcStats, transport: TransportStats }
    /// A pair of candidates.
    CandidatePairStats { rtc: RtcStats, candidate_pair: CandidatePairStats }
    /// A candidate of this side.
    LocalCandidateStats { rtc: RtcStats, local_candidate: IceCandidateStats }
    /// A candidate of the other side.
    RemoteCandidateStats { rtc: RtcStats, remote_candidate: IceCandidateStats }
    /// A certificate.
    CertificateStats { rtc: RtcStats, certificate: CertificateStats }
    /// A stream of tracks.
    StreamStats { rtc: RtcStats, stream: StreamStats }
}

/// The groups of fields that entries are put together from. Each field is the W3C's of the same
/// name, in snake case. Times are in seconds unless a name says otherwise; `timestamp` is in
/// microseconds since 1970.
#[expect(
    missing_docs,
    reason = "each field has the meaning and unit that the W3C gives to the one of its name"
)]
pub mod dictionaries {
    use super::*;

    macro_rules! dictionaries {
        ($($(#[$attribute:meta])* $name:ident { $($field:ident: $type:ty),+ $(,)? })+) => {
            $(
                $(#[$attribute])*
                #[derive(Debug, Default, Clone, Deserialize)]
                #[serde(rename_all = "camelCase", default)]
                pub struct $name { $(pub $field: $type),+ }
            )+
        };
    }

    dictionaries! {
        /// Fields of every entry.
        RtcStats { id: String, timestamp: i64 }
        /// A codec.
        CodecStats {
            payload_type: u32, transport_id: String, mime_type: String, clock_rate: u32, channels: u32,
            sdp_fmtp_line: String,
        }
        /// Fields of every RTP stream.
        RtpStreamStats { ssrc: u32, kind: String, transport_id: String, codec_id: String }
        /// Fields of every received RTP stream.
        ReceivedRtpStreamStats { packets_received: u64, packets_lost: i64, jitter: f64 }
        /// Fields of a received stream that only this side knows.
        InboundRtpStreamStats {
            track_identifier: String, mid: String, remote_id: String, frames_decoded: u32,
            key_frames_decoded: u32, frames_rendered: u32, frames_dropped: u32, frame_width: u32,
            frame_height: u32, frames_per_second: f64, qp_sum: u64, total_decode_time: f64,
            total_inter_frame_delay: f64, total_squared_inter_frame_delay: f64, pause_count: u32,
            total_pause_duration: f64, freeze_count: u32, total_freeze_duration: f64,
            last_packet_received_timestamp: f64, header_bytes_received: u64, packets_discarded: u64,
            fec_bytes_received: u64, fec_packets_received: u64, fec_packets_discarded: u64,
            bytes_received: u64, nack_count: u32, fir_count: u32, pli_count: u32,
            total_processing_delay: f64, estimated_playout_timestamp: f64, jitter_buffer_delay: f64,
            jitter_buffer_target_delay: f64, jitter_buffer_emitted_count: u64,
            jitter_buffer_minimum_delay: f64, total_samples_received: u64, concealed_samples: u64,
            silent_concealed_samples: u64, concealment_events: u64,
            inserted_samples_for_deceleration: u64, removed_samples_for_acceleration: u64,
            audio_level: f64, total_audio_energy: f64, total_samples_duration: f64,
            frames_received: u64, decoder_implementation: String, playout_id: String,
            power_efficient_decoder: bool, frames_assembled_from_multiple_packets: u64,
            total_assembly_time: f64, retransmitted_packets_received: u64,
            retransmitted_bytes_received: u64, rtx_ssrc: u32, fec_ssrc: u32,
        }
        /// Fields of every sent RTP stream.
        SentRtpStreamStats { packets_sent: u64, bytes_sent: u64 }
        /// Fields of a sent stream that only this side knows.
        OutboundRtpStreamStats {
            mid: String, media_source_id: String, remote_id: String, rid: String,
            header_bytes_sent: u64, retransmitted_packets_sent: u64, retransmitted_bytes_sent: u64,
            rtx_ssrc: u32, target_bitrate: f64, total_encoded_bytes_target: u64, frame_width: u32,
            frame_height: u32, frames_per_second: f64, frames_sent: u32, huge_frames_sent: u32,
            frames_encoded: u32, key_frames_encoded: u32, qp_sum: u64, total_encode_time: f64,
            total_packet_send_delay: f64, quality_limitation_reason: QualityLimitationReason,
            quality_limitation_durations: HashMap<String, f64>,
            quality_limitation_resolution_changes: u32, nack_count: u32, fir_count: u32,
            pli_count: u32, encoder_implementation: String, power_efficient_encoder: bool,
            active: bool, scalibility_mode: String,
        }
        /// What the other side reports about what this side sends.
        RemoteInboundRtpStreamStats {
            local_id: String, round_trip_time: f64, total_round_trip_time: f64, fraction_lost: f64,
            round_trip_time_measurements: u64,
        }
        /// What the other side reports about what it sends.
        RemoteOutboundRtpStreamStats {
            local_id: String, remote_timestamp: f64, reports_sent: u64, round_trip_time: f64,
            total_round_trip_time: f64, round_trip_time_measurements: u64,
        }
        /// Fields of every source.
        MediaSourceStats { track_identifier: String, kind: String }
        /// An audio source.
        AudioSourceStats {
            audio_level: f64, total_audio_energy: f64, total_samples_duration: f64,
            echo_return_loss: f64, echo_return_loss_enhancement: f64, dropped_samples_duration: f64,
            dropped_samples_events: u32, total_capture_delay: f64, total_samples_captured: u64,
        }
        /// A video source.
        VideoSourceStats { width: u32, height: u32, frames: u32, frames_per_second: f64 }
        /// Played audio.
        AudioPlayoutStats {
            kind: String, synthesized_samples_duration: f64, synthesized_samples_events: u32,
            total_samples_duration: f64, total_playout_delay: f64, total_samples_count: u64,
        }
        /// The connection.
        PeerConnectionStats { data_channels_opened: u32, data_channels_closed: u32 }
        /// A data channel.
        DataChannelStats {
            label: String, protocol: String, data_channel_identifier: i32,
            state: Option<DataChannelState>, messages_sent: u32, bytes_sent: u64,
            messages_received: u32, bytes_received: u64,
        }
        /// The transport.
        TransportStats {
            packets_sent: u64, packets_received: u64, bytes_sent: u64, bytes_received: u64,
            ice_role: IceRole, ice_local_username_fragment: String,
            dtls_state: Option<DtlsTransportState>, ice_state: Option<IceTransportState>,
            selected_candidate_pair_id: String, local_certificate_id: String,
            remote_certificate_id: String, tls_version: String, dtls_cipher: String,
            dtls_role: DtlsRole, srtp_cipher: String, selected_candidate_pair_changes: u32,
        }
        /// A pair of candidates.
        CandidatePairStats {
            transport_id: String, local_candidate_id: String, remote_candidate_id: String,
            state: Option<IceCandidatePairState>, nominated: bool, packets_sent: u64,
            packets_received: u64, bytes_sent: u64, bytes_received: u64,
            last_packet_sent_timestamp: f64, last_packet_received_timestamp: f64,
            total_round_trip_time: f64, current_round_trip_time: f64,
            available_outgoing_bitrate: f64, available_incoming_bitrate: f64,
            requests_received: u64, requests_sent: u64, responses_received: u64,
            responses_sent: u64, consent_requests_sent: u64, packets_discarded_on_send: u32,
            bytes_discarded_on_send: u64,
        }
        /// A candidate.
        IceCandidateStats {
            transport_id: String, address: String, port: i32, protocol: String,
            candidate_type: Option<IceCandidateType>, priority: i32, url: String,
            relay_protocol: Option<IceServerTransportProtocol>, foundation: String,
            related_address: String, related_port: i32, username_fragment: String,
            tcp_type: Option<IceTcpCandidateType>, network_type: Option<String>,
        }
        /// A certificate.
        CertificateStats {
            fingerprint: String, fingerprint_algorithm: String, base64_certificate: String,
            issuer_certificate_id: String,
        }
        /// A stream of tracks.
        StreamStats { id: String, stream_identifier: String }
    }
}
