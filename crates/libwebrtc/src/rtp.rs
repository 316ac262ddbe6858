//! Transceivers, senders and receivers, as the application's handles share them with the
//! connection.
//!
//! The core writes what was negotiated into them; [`Transceiver::sync`] then attaches or detaches
//! the audio. It runs without the lock of the core, because attaching calls into audio sources,
//! which may be sending at that time.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use str0m::media::Mid;

use crate::{
    MediaType, RtcError,
    audio::{
        encoder::{AudioSender, OpusSendConfig, RtpClock},
        receiver::AudioReceiver,
        red::RedWrapper,
        track::PcmSink,
    },
    audio_track::RtcAudioTrack,
    connection::Connection,
    core::report::Advice,
    jsep::negotiation::Redundancy,
    media_stream_track::MediaStreamTrack,
    native::{create_random_uuid, frame_cryptor::Cryptor},
    rtp_parameters::{
        RtcpParameters, RtpCodecCapability, RtpCodecParameters, RtpEncodingParameters,
        RtpParameters,
    },
    rtp_transceiver::RtpTransceiverDirection,
    stats::RtcStats,
    video_track::RtcVideoTrack,
};

/// The negotiated state of a transceiver that the application may see.
#[derive(Debug, Clone)]
pub(crate) struct TransceiverView {
    pub mid: Option<String>,
    pub direction: RtpTransceiverDirection,
    pub current_direction: Option<RtpTransceiverDirection>,
    /// What is to be sent, once negotiated.
    pub sending: Option<SendStream>,
    pub receiving: bool,
}

/// A negotiated stream of this side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SendStream {
    pub mid: Mid,
    /// Of Opus.
    pub payload_type: u8,
    /// Of redundant audio (RFC 2198), if the other side prefers it to plain Opus.
    pub red_payload_type: Option<u8>,
    pub config: OpusSendConfig,
}

impl SendStream {
    /// Whether an encoder made for the other stream serves this one too. A bitrate can be changed
    /// while the encoder runs.
    fn same_encoder(&self, other: &Self) -> bool {
        let unlimited = |stream: &Self| Self {
            config: OpusSendConfig {
                max_bitrate_bps: None,
                ..stream.config
            },
            ..stream.clone()
        };
        unlimited(self) == unlimited(other)
    }
}

/// A sender and a receiver that share a section.
pub(crate) struct Transceiver {
    pub kind: MediaType,
    pub sender: Arc<Sender>,
    pub receiver: Arc<Receiver>,
    connection: Weak<Connection>,
    view: Mutex<TransceiverView>,
}

impl Transceiver {
    pub fn new(
        connection: Weak<Connection>,
        kind: MediaType,
        direction: RtpTransceiverDirection,
        track: Option<MediaStreamTrack>,
        encodings: Vec<RtpEncodingParameters>,
        remote_track_id: Option<&str>,
    ) -> Self {
        let remote_track_id = remote_track_id.map_or_else(create_random_uuid, str::to_owned);
        Self {
            kind,
            sender: Arc::new(Sender::new(connection.clone(), kind, track, encodings)),
            receiver: Arc::new(Receiver::new(connection.clone(), kind, remote_track_id)),
            connection,
            view: Mutex::new(TransceiverView {
                mid: None,
                direction,
                current_direction: None,
                sending: None,
                receiving: false,
            }),
        }
    }

    pub fn view(&self) -> TransceiverView {
        self.view.lock().clone()
    }

    /// Called by the core with what was negotiated.
    pub fn publish(&self, view: TransceiverView, remote_streams: Vec<String>) {
        *self.view.lock() = view;
        *self.receiver.stream_ids.lock() = remote_streams;
    }

    /// Attaches or detaches the audio as negotiated.
    pub fn sync(&self) {
        let view = self.view();
        self.sender.configure(view.sending);
        if let Some(audio) = &self.receiver.audio {
            audio.set_active(view.receiving);
        }
    }

    /// Ends the transceiver with its connection: nothing is sent or received any more, and the
    /// remote track has ended.
    pub fn end(&self) {
        self.sender.configure(None);
        if let Some(audio) = &self.receiver.audio {
            audio.set_active(false);
        }
        match &self.receiver.track {
            MediaStreamTrack::Audio(track) => track.handle.end(),
            MediaStreamTrack::Video(track) => track.end(),
        }
    }

    pub fn set_codec_preferences(&self, codecs: &[RtpCodecCapability]) -> Result<(), RtcError> {
        let place_of = |name| {
            let is_it = |codec: &RtpCodecCapability| codec.mime_type.eq_ignore_ascii_case(name);
            codecs.iter().position(is_it)
        };
        let usable = match self.kind {
            MediaType::Audio => place_of("audio/opus"),
            _ => place_of("video/vp8"),
        };
        let redundancy = match (place_of("audio/red"), usable) {
            _ if codecs.is_empty() => Some(Redundancy::AfterOpus),
            (_, None) => None,
            (None, Some(_)) => Some(Redundancy::No),
            (Some(red), Some(opus)) if red < opus => Some(Redundancy::BeforeOpus),
            (Some(_), Some(_)) => Some(Redundancy::AfterOpus),
        };
        if let Some(redundancy) = redundancy {
            // With one codec for each kind, the order of preference decides nothing but redundancy.
            // A closed connection negotiates nothing.
            if let Some(connection) = self.connection.upgrade() {
                connection.set_redundancy(self, redundancy);
            }
            return Ok(());
        }
        let names: Vec<_> = codecs
            .iter()
            .map(|codec| codec.mime_type.as_str())
            .collect();
        Err(RtcError::internal(format!(
            "none of these codecs is supported: {}",
            names.join(", ")
        )))
    }

    pub fn stop(&self) -> Result<(), RtcError> {
        let connection = self
            .connection
            .upgrade()
            .ok_or_else(|| RtcError::state("the connection is closed"))?;
        connection.stop_transceiver(self)
    }
}

/// The sending half.
pub(crate) struct Sender {
    connection: Weak<Connection>,
    kind: MediaType,
    state: Mutex<SenderState>,
    /// Encrypts what is sent, if the application encrypts end to end.
    cryptor: Arc<Mutex<Option<Arc<Cryptor>>>>,
}

struct SenderState {
    track: Option<MediaStreamTrack>,
    encodings: Vec<RtpEncodingParameters>,
    stream: Option<SendStream>,
    attached: Option<Attached>,
    /// The RTP clock of the stream while no encoder is attached.
    clock: RtpClock,
}

impl SenderState {
    /// Removes the encoder.
    fn detach(&mut self) {
        if let Some(old) = self.attached.take() {
            old.detach();
            self.clock = old.encoder.clock();
        }
    }
}

/// An encoder that listens to a track.
struct Attached {
    encoder: Arc<AudioSender>,
    track: RtcAudioTrack,
}

impl Attached {
    fn detach(&self) {
        let sink: Arc<dyn PcmSink> = self.encoder.clone();
        self.track.handle.remove_sink(&sink);
    }
}

impl Sender {
    fn new(
        connection: Weak<Connection>,
        kind: MediaType,
        track: Option<MediaStreamTrack>,
        mut encodings: Vec<RtpEncodingParameters>,
    ) -> Self {
        if encodings.is_empty() {
            encodings.push(RtpEncodingParameters::default());
        }
        let state = SenderState {
            track,
            encodings,
            stream: None,
            attached: None,
            clock: RtpClock::starting_at(rand::random()),
        };
        Self {
            connection,
            kind,
            state: Mutex::new(state),
            cryptor: Arc::default(),
        }
    }

    /// Lets `cryptor` encrypt what is sent from now on.
    pub fn set_cryptor(&self, cryptor: Arc<Cryptor>) {
        *self.cryptor.lock() = Some(cryptor);
    }

    pub fn track(&self) -> Option<MediaStreamTrack> {
        self.state.lock().track.clone()
    }

    /// Sends what was negotiated, or nothing. The encoder stays as long as its configuration stays
    /// the same.
    fn configure(&self, stream: Option<SendStream>) {
        let mut state = self.state.lock();
        let keep = match (&state.stream, &stream) {
            (Some(old), Some(new)) => new.same_encoder(old),
            _ => false,
        };
        if !keep {
            state.detach();
        }
        state.stream = stream;
        self.attach(&mut state);
    }

    fn attach(&self, state: &mut SenderState) {
        let active = state
            .encodings
            .first()
            .is_none_or(|encoding| encoding.active);
        let wanted = match &state.track {
            Some(MediaStreamTrack::Audio(track)) if active => Some(track.clone()),
            _ => None,
        };
        let (Some(track), Some(stream)) = (wanted, &state.stream) else {
            state.detach();
            return;
        };
        let encoder = match state.attached.take() {
            Some(old) => {
                old.detach();
                old.encoder
            }
            None => {
                log::debug!("an encoder for the track {}: {stream:?}", track.id());
                let connection = self.connection.clone();
                let (mid, opus) = (stream.mid, stream.payload_type);
                let red = stream
                    .red_payload_type
                    .map(|red| (red, Mutex::new(RedWrapper::new(opus))));
                let cryptor = self.cryptor.clone();
                let encoder = AudioSender::new(stream.config, state.clock, move |mut packet| {
                    let mut payload_type = opus;
                    if let Some((red, wrapper)) = red.as_ref().filter(|_| !packet.narrow)
                        && let Some(payload) = wrapper.lock().wrap(&packet)
                    {
                        (payload_type, packet.payload) = (*red, payload);
                    }
                    // A redundant payload is encrypted as a whole, as in Google's engine. The
                    // cryptor is taken out of its lock, because encrypting may call the
                    // application.
                    let cryptor = cryptor.lock().clone();
                    if let Some(cryptor) = cryptor {
                        match cryptor.encrypt(&packet.payload, packet.rtp_timestamp) {
                            Some(payload) => packet.payload = payload,
                            None => return,
                        }
                    }
                    if let Some(connection) = connection.upgrade() {
                        connection.send_audio(mid, payload_type, packet);
                    }
                });
                match encoder {
                    Ok(encoder) => Arc::new(encoder),
                    Err(error) => {
                        log::error!("the track {} is not sent: {error}", track.id());
                        return;
                    }
                }
            }
        };
        let limit = state
            .encodings
            .first()
            .and_then(|encoding| encoding.max_bitrate);
        encoder.set_max_bitrate(stream.config.max_bitrate_bps.or(limit));
        let sink: Arc<dyn PcmSink> = encoder.clone();
        track.handle.add_sink(sink);
        state.attached = Some(Attached { encoder, track });
    }

    pub fn set_track(&self, track: Option<MediaStreamTrack>) -> Result<(), RtcError> {
        let fits = match &track {
            None => true,
            Some(MediaStreamTrack::Audio(_)) => self.kind == MediaType::Audio,
            Some(MediaStreamTrack::Video(_)) => self.kind == MediaType::Video,
        };
        if !fits {
            return Err(RtcError::internal(
                "the track is of another kind than its sender",
            ));
        }
        let mut state = self.state.lock();
        state.track = track;
        self.attach(&mut state);
        Ok(())
    }

    /// Limit of the first encoding, in bits per second.
    pub fn max_bitrate(&self) -> Option<u64> {
        self.state
            .lock()
            .encodings
            .first()
            .and_then(|encoding| encoding.max_bitrate)
    }

    /// Adapts the encoder to what the receiver has reported.
    pub fn follow(&self, advice: Advice) {
        if let Some(attached) = &self.state.lock().attached {
            attached
                .encoder
                .set_packet_loss_percent(advice.loss_percent);
            attached.encoder.set_share(advice.bitrate_share);
        }
    }

    /// The encoder, while there is one.
    pub fn encoder(&self) -> Option<Arc<AudioSender>> {
        self.state
            .lock()
            .attached
            .as_ref()
            .map(|attached| attached.encoder.clone())
    }

    pub fn stats(self: &Arc<Self>) -> Result<Vec<RtcStats>, RtcError> {
        match self.connection.upgrade() {
            Some(connection) => connection.sender_stats(self),
            None => Ok(vec![]),
        }
    }

    pub fn parameters(&self) -> RtpParameters {
        let state = self.state.lock();
        let payload_type = state.stream.as_ref().map(|stream| stream.payload_type);
        RtpParameters {
            encodings: state.encodings.clone(),
            ..parameters(self.kind, payload_type)
        }
    }

    pub fn set_parameters(&self, parameters: RtpParameters) -> Result<(), RtcError> {
        let mut state = self.state.lock();
        if parameters.encodings.len() != state.encodings.len() {
            return Err(RtcError::state(
                "encodings can be changed, but not added or removed",
            ));
        }
        state.encodings = parameters.encodings;
        self.attach(&mut state);
        Ok(())
    }
}

/// The receiving half.
pub(crate) struct Receiver {
    pub track: MediaStreamTrack,
    /// Jitter buffer and decoder; video has none.
    pub audio: Option<Arc<AudioReceiver>>,
    kind: MediaType,
    connection: Weak<Connection>,
    stream_ids: Mutex<Vec<String>>,
}

impl Receiver {
    fn new(connection: Weak<Connection>, kind: MediaType, track_id: String) -> Self {
        let (track, audio) = if kind == MediaType::Audio {
            let track = RtcAudioTrack::remote(track_id);
            let receiver = AudioReceiver::new(&track.handle);
            (MediaStreamTrack::Audio(track), Some(receiver))
        } else {
            (MediaStreamTrack::Video(RtcVideoTrack::new(track_id)), None)
        };
        Self {
            track,
            audio,
            kind,
            connection,
            stream_ids: Mutex::default(),
        }
    }

    pub fn stream_ids(&self) -> Vec<String> {
        self.stream_ids.lock().clone()
    }

    pub fn stats(self: &Arc<Self>) -> Result<Vec<RtcStats>, RtcError> {
        match self.connection.upgrade() {
            Some(connection) => connection.receiver_stats(self),
            None => Ok(vec![]),
        }
    }

    pub fn parameters(&self) -> RtpParameters {
        parameters(self.kind, None)
    }
}

fn parameters(kind: MediaType, payload_type: Option<u8>) -> RtpParameters {
    let codec = (kind == MediaType::Audio).then(|| RtpCodecParameters {
        payload_type: payload_type.unwrap_or(111),
        mime_type: "audio/opus".to_owned(),
        clock_rate: Some(48_000),
        channels: Some(2),
    });
    RtpParameters {
        codecs: codec.into_iter().collect(),
        rtcp: RtcpParameters {
            cname: String::new(),
            reduced_size: false,
        },
        ..RtpParameters::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::audio::track::Pcm;

    /// A server drops everything of a stream that goes back in time, so a new encoder has to
    /// continue the timestamps of the old one.
    #[test]
    fn timestamps_go_on_when_what_was_negotiated_changes() {
        let track = RtcAudioTrack::silent("voice".to_owned());
        let sender = Sender::new(
            Weak::new(),
            MediaType::Audio,
            Some(MediaStreamTrack::Audio(track)),
            vec![],
        );
        let stream = |stereo| {
            Some(SendStream {
                mid: "0".into(),
                payload_type: 111,
                red_payload_type: None,
                config: OpusSendConfig {
                    stereo,
                    ..OpusSendConfig::default()
                },
            })
        };
        let start = Instant::now();
        let speak = |at_ms| {
            let encoder = sender.encoder().expect("an encoder");
            let before = encoder.clock();
            let pcm = Pcm {
                samples: &[0; 960],
                sample_rate_hz: 48_000,
                channels: 1,
            };
            encoder.on_pcm(start + Duration::from_millis(at_ms), pcm);
            (before, encoder.clock())
        };
        sender.configure(stream(false));
        let first = sender.encoder().expect("an encoder");
        let limited = stream(false).map(|stream| SendStream {
            config: OpusSendConfig {
                max_bitrate_bps: Some(20_000),
                ..stream.config
            },
            ..stream
        });
        sender.configure(limited);
        assert!(
            Arc::ptr_eq(&first, &sender.encoder().expect("an encoder")),
            "a new bitrate needs no new encoder"
        );
        assert_eq!(first.stats().target_bitrate_bps, 20_000);
        let (_, after_first) = speak(0);
        sender.configure(stream(true));
        let (before_second, after_second) = speak(20);
        assert_eq!(before_second, after_first);
        // Nothing is sent for a while, and then by yet another encoder.
        sender.configure(None);
        sender.configure(stream(false));
        let (before_third, after_third) = speak(1_040);
        assert_eq!(before_third, after_second);
        assert_eq!(
            after_third
                .next_timestamp()
                .wrapping_sub(after_second.next_timestamp()),
            (1_000 + 20) * 48
        );
        sender.set_track(None).expect("no track is fine");
    }
}
