//! RTP in both directions: which stream a packet belongs to, and its statistics.

use std::{collections::HashMap, sync::Arc, time::Instant};

use str0m::{
    media::Mid,
    rtp::{ExtensionValues, RtpPacket, RtpWrite, Ssrc},
};

use super::{
    Core,
    report::{ReceivedStream, SentStream},
};
use crate::{
    audio::{
        encoder::EncodedAudio,
        receiver::{AudioReceiver, RtpAudioPacket},
    },
    native::create_random_uuid,
};

/// An RTP stream of the other side.
pub(super) struct Incoming {
    pub mid: Mid,
    /// Number of the transceiver in [`Core::transceivers`].
    pub index: Option<usize>,
    audio: Option<Arc<AudioReceiver>>,
    pub stream: ReceivedStream,
}

/// The RTP streams of a connection.
pub(super) struct Media {
    /// Canonical name of this side for RTCP (RFC 3550, section 6.5.1).
    pub cname: String,
    /// Id of the media stream for transceivers that were made for an offer of the other side.
    pub stream_id: String,
    pub sent: HashMap<Mid, SentStream>,
    pub incoming: HashMap<Ssrc, Incoming>,
}

impl Media {
    pub fn new() -> Self {
        Self {
            cname: create_random_uuid(),
            stream_id: create_random_uuid(),
            sent: HashMap::new(),
            incoming: HashMap::new(),
        }
    }
}

impl Core {
    /// Sends a packet of Opus. Before the connection is up it is dropped, as late sound is useless.
    pub fn send_audio(&mut self, now: Instant, mid: Mid, payload_type: u8, packet: EncodedAudio) {
        if self.state.closed
            || !self.state.dtls_connected
            || !self.paths.had_path
            || self.state.failed
        {
            return;
        }
        let mut direct = self.rtc.direct_api();
        let Some(stream) = direct.stream_tx_by_mid(mid, None) else {
            return;
        };
        let sent = self.media.sent.entry(mid).or_default();
        let sequence = sent.next(packet.payload.len(), stream.ssrc());
        let extensions = ExtensionValues {
            audio_level: Some(packet.audio_level_dbov),
            voice_activity: Some(packet.voice_activity),
            ..ExtensionValues::default()
        };
        let write = RtpWrite::new(
            payload_type.into(),
            sequence.into(),
            packet.rtp_timestamp,
            now,
            packet.payload,
        );
        stream.write_rtp(write.marker(packet.marker).ext_vals(extensions));
        self.poll(now);
    }

    pub(super) fn handle_rtp(&mut self, now: Instant, packet: RtpPacket) {
        let ssrc = packet.header.ssrc;
        if !self.media.incoming.contains_key(&ssrc) {
            let mid = self
                .rtc
                .direct_api()
                .stream_rx(&ssrc)
                .map(|stream| stream.mid());
            let Some(mid) = mid else { return };
            let index = self.index_of_mid(mid);
            let audio = index.and_then(|index| self.transceivers[index].receiver.audio.clone());
            log::debug!("a new stream {ssrc} in section {mid}");
            let stream = ReceivedStream::new(*ssrc);
            let incoming = Incoming {
                mid,
                index,
                audio,
                stream,
            };
            self.media.incoming.insert(ssrc, incoming);
        }
        let Some(incoming) = self.media.incoming.get_mut(&ssrc) else {
            return;
        };
        let (sequence, time) = (*packet.seq_no, packet.time.numer());
        let payload_type = *packet.header.payload_type;
        incoming.stream.take(
            now,
            sequence,
            time,
            packet.payload.len(),
            packet.header.header_len,
            payload_type,
        );
        // A packet without payload is padding, sent to probe the bandwidth.
        if let Some(audio) = incoming
            .audio
            .as_ref()
            .filter(|_| !packet.payload.is_empty())
        {
            let packet = RtpAudioPacket {
                ssrc: *ssrc,
                extended_seq: sequence,
                rtp_timestamp: time,
                payload: packet.payload,
            };
            let red = incoming
                .index
                .and_then(|index| self.negotiation.transceivers.get(index)?.red)
                .filter(|red| red.payload_type == payload_type);
            match red {
                Some(red) => audio.push_red(now, packet, red.opus_payload_type),
                None => audio.push(now, packet),
            }
        }
    }

    /// Removes streams whose section is used for another track now: their packets must not be taken
    /// for those of the new track.
    pub(super) fn forget_old_streams(&mut self) {
        let transceivers = &self.negotiation.transceivers;
        let rtc = &mut self.rtc;
        self.media.incoming.retain(|ssrc, incoming| {
            let owner = transceivers.iter().find(|it| {
                it.mid
                    .as_deref()
                    .is_some_and(|mid| Mid::from(mid) == incoming.mid)
            });
            let Some(owner) = owner else { return false };
            let receives = owner
                .current_direction
                .is_some_and(|direction| direction.receive);
            let announced = &owner.remote_ssrcs;
            let keep = receives && (announced.is_empty() || announced.contains(ssrc));
            if !keep {
                rtc.direct_api().remove_stream_rx(*ssrc);
            }
            keep
        });
    }
}
