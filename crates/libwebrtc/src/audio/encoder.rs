//! From a local track's PCM to Opus packets of 20 ms.
//!
//! Knows nothing of sequence numbers, SSRCs and sockets: packets go to the sink of the
//! [`AudioSender`], with the RTP timestamp and the values for the audio-level header extension.

use std::time::{Duration, Instant};

use opus::{Application, Bitrate, Channels};
use parking_lot::Mutex;

use super::{
    OPUS_RATE_HZ, level,
    resample::AudioResampler,
    track::{Pcm, PcmSink},
};
use crate::RtcError;

/// Length of a packet: the usual one of WebRTC, and what SIP bridges expect.
const PACKET_MS: u32 = 20;

/// Samples of each channel in a packet.
const PACKET_SAMPLES: u32 = OPUS_RATE_HZ / 1000 * PACKET_MS;

/// More than a packet of Opus at 20 ms can have (RFC 6716, section 3.4: 1275 bytes in one frame).
const MAX_PACKET_BYTES: usize = 1500;

/// With a packet of at most this length Opus signals that there is nothing to transmit (libopus,
/// `opus_encode`).
const DTX_PACKET_BYTES: usize = 2;

/// The bitrates that Google's engine uses by default for full-band speech, in bits per second.
const DEFAULT_MONO_BPS: u64 = 32_000;
const DEFAULT_STEREO_BPS: u64 = 64_000;

/// The range of bitrates that Opus supports (RFC 6716, section 2.1.1), in bits per second.
const BITRATE_RANGE_BPS: std::ops::RangeInclusive<u64> = 6_000..=510_000;

/// Sent even if the link carries less, or speech would no longer be wide-band (RFC 6716, section
/// 2.1.1), in bits per second.
const NARROWEST_BPS: u64 = 12_000;

/// As thorough as Google's engine on a desktop. Complexity 4 would save a quarter of the time.
const COMPLEXITY: i32 = 9;

/// Sound louder than this counts as voice for the audio-level extension: well above the noise of a
/// quiet room, below quiet speech.
const VOICE_DBOV: i8 = -50;

/// When PCM is due this much later than the end of the PCM before, the RTP timestamp skips the
/// pause instead of hiding it.
const PAUSE: Duration = Duration::from_millis(100);

/// What was negotiated for the Opus stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpusSendConfig {
    /// Two channels (`stereo=1` in the answer); otherwise the sound is mixed down to mono.
    pub stereo: bool,
    /// Send nothing during silence (`usedtx=1`).
    pub dtx: bool,
    /// In-band forward error correction (`useinbandfec=1`). It starts to work when loss is
    /// reported.
    pub fec: bool,
    /// The bitrate to use (`maxaveragebitrate`, or the encoding's `max_bitrate`), in bits per
    /// second.
    pub max_bitrate_bps: Option<u64>,
}

impl Default for OpusSendConfig {
    fn default() -> Self {
        Self {
            stereo: false,
            dtx: false,
            fec: true,
            max_bitrate_bps: None,
        }
    }
}

/// One Opus packet, ready to be put into an RTP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EncodedAudio {
    pub payload: Vec<u8>,
    pub rtp_timestamp: u32,
    /// The first packet after a silence that was not sent (RFC 7587, section 4.2).
    pub marker: bool,
    /// Loudness, from -127 (silence) to 0 dBov.
    pub audio_level_dbov: i8,
    /// Whether the packet probably holds speech.
    pub voice_activity: bool,
    /// The link carries less than the wanted bitrate, so no redundancy is to be added.
    pub narrow: bool,
}

/// Totals of a sender, for the media-source and outbound-rtp statistics.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct AudioSenderStats {
    /// Loudness of the last 20 ms, linear, from 0 to 1.
    pub audio_level: f64,
    /// Sum over all sound of squared loudness times seconds.
    pub total_audio_energy: f64,
    /// How much sound was encoded, in seconds.
    pub total_samples_duration_s: f64,
    /// Packets handed out.
    pub packets: u64,
    /// Bytes of payload in them.
    pub payload_bytes: u64,
    /// Packets that DTX left out.
    pub dtx_packets: u64,
    /// The bitrate that the encoder aims at, in bits per second.
    pub target_bitrate_bps: u64,
}

/// Receives the packets, in order, on the media thread.
type PacketSink = Box<dyn Fn(EncodedAudio) + Send + Sync>;

/// The RTP clock of a stream. It outlives the encoder: a stream whose timestamps begin anew looks
/// as if it went back in time, and LiveKit's server drops every packet of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RtpClock {
    /// The timestamp of the next packet if there is no pause.
    next_timestamp: u32,
    /// When the next PCM is due if there is no pause.
    next_due: Option<Instant>,
}

impl RtpClock {
    /// A clock that has not been used; its first timestamp is `first`.
    pub fn starting_at(first: u32) -> Self {
        Self {
            next_timestamp: first,
            next_due: None,
        }
    }

    #[cfg(test)]
    pub fn next_timestamp(&self) -> u32 {
        self.next_timestamp
    }
}

/// Listens to a local track and turns its sound into packets.
pub(crate) struct AudioSender {
    encoder: Mutex<PacketEncoder>,
    sink: PacketSink,
}

impl AudioSender {
    /// Makes a sender that hands its packets to `sink` and continues the timestamps of `clock`.
    ///
    /// # Errors
    ///
    /// `Internal` if libopus has no memory.
    pub fn new(
        config: OpusSendConfig,
        clock: RtpClock,
        sink: impl Fn(EncodedAudio) + Send + Sync + 'static,
    ) -> Result<Self, RtcError> {
        let encoder = PacketEncoder::new(config, clock).map_err(|error| {
            RtcError::internal(format!("the Opus encoder could not be made: {error}"))
        })?;
        Ok(Self {
            encoder: Mutex::new(encoder),
            sink: Box::new(sink),
        })
    }

    /// Tells the encoder how many packets of a hundred get lost, so that it adds a matching amount
    /// of error correction.
    pub fn set_packet_loss_percent(&self, percent: u8) {
        self.encoder.lock().set_packet_loss_percent(percent);
    }

    /// Sets the bitrate in bits per second; `None` returns to the default.
    pub fn set_max_bitrate(&self, bitrate_bps: Option<u64>) {
        self.encoder.lock().set_max_bitrate(bitrate_bps);
    }

    /// Sets the share of the bitrate that the link carries, from 0 to 1.
    pub fn set_share(&self, share: f32) {
        self.encoder.lock().set_share(share);
    }

    /// The RTP clock for a sender that continues this stream.
    pub fn clock(&self) -> RtpClock {
        self.encoder.lock().clock
    }

    /// Totals so far.
    pub fn stats(&self) -> AudioSenderStats {
        self.encoder.lock().stats
    }
}

impl PcmSink for AudioSender {
    fn on_pcm(&self, at: Instant, pcm: Pcm<'_>) {
        self.encoder.lock().push(at, pcm);
        // The lock is not held while a packet is sent. Only one thread feeds a track, so the order
        // stays.
        loop {
            let packet = self.encoder.lock().next_packet();
            match packet {
                Some(packet) => (self.sink)(packet),
                None => return,
            }
        }
    }
}

/// The encoder without thread and clock: PCM in, packets out.
pub(crate) struct PacketEncoder {
    opus: opus::Encoder,
    config: OpusSendConfig,
    channels: usize,
    resampler: AudioResampler,
    /// Interleaved PCM that waits; the first `consumed` samples are encoded already.
    pcm: Vec<i16>,
    consumed: usize,
    clock: RtpClock,
    /// Whether the last packet was silence, or there was none yet.
    silent: bool,
    loss_percent: u8,
    max_bitrate_bps: Option<u64>,
    /// The share of that bitrate that the link carries.
    share: f32,
    stats: AudioSenderStats,
}

impl PacketEncoder {
    pub fn new(config: OpusSendConfig, clock: RtpClock) -> Result<Self, opus::Error> {
        let (channels, application) = if config.stereo {
            (Channels::Stereo, Application::Audio)
        } else {
            (Channels::Mono, Application::Voip)
        };
        let mut opus = opus::Encoder::new(OPUS_RATE_HZ, channels, application)?;
        opus.set_inband_fec(config.fec)?;
        opus.set_dtx(config.dtx)?;
        opus.set_complexity(COMPLEXITY)?;
        let mut encoder = Self {
            opus,
            config,
            channels: if config.stereo { 2 } else { 1 },
            resampler: AudioResampler::default(),
            pcm: Vec::new(),
            consumed: 0,
            clock,
            silent: true,
            loss_percent: 0,
            max_bitrate_bps: config.max_bitrate_bps,
            share: 1.0,
            stats: AudioSenderStats::default(),
        };
        encoder.update_bitrate();
        Ok(encoder)
    }

    pub fn set_packet_loss_percent(&mut self, percent: u8) {
        let percent = percent.min(100);
        if percent != self.loss_percent {
            self.loss_percent = percent;
            if let Err(error) = self.opus.set_packet_loss_perc(i32::from(percent)) {
                log::warn!("the Opus encoder did not take a loss of {percent} %: {error}");
            }
        }
    }

    pub fn set_max_bitrate(&mut self, bitrate_bps: Option<u64>) {
        self.max_bitrate_bps = bitrate_bps;
        self.update_bitrate();
    }

    pub fn set_share(&mut self, share: f32) {
        self.share = share;
        self.update_bitrate();
    }

    fn update_bitrate(&mut self) {
        let default = if self.config.stereo {
            DEFAULT_STEREO_BPS
        } else {
            DEFAULT_MONO_BPS
        };
        let wanted = self
            .max_bitrate_bps
            .unwrap_or(default)
            .clamp(*BITRATE_RANGE_BPS.start(), *BITRATE_RANGE_BPS.end());
        let taken = (wanted as f64 * f64::from(self.share)) as u64;
        let bitrate = taken.max(NARROWEST_BPS).min(wanted);
        if bitrate != self.stats.target_bitrate_bps {
            self.stats.target_bitrate_bps = bitrate;
            if let Err(error) = self.opus.set_bitrate(Bitrate::Bits(bitrate as i32)) {
                log::warn!("the Opus encoder did not take a bitrate of {bitrate}: {error}");
            }
        }
    }

    /// Takes PCM of any format that is due `at`. Call [`next_packet`](Self::next_packet) until it
    /// returns `None`.
    pub fn push(&mut self, at: Instant, pcm: Pcm<'_>) {
        self.pcm.drain(..self.consumed);
        self.consumed = 0;
        if let Some(expected) = self.clock.next_due {
            let pause = at.saturating_duration_since(expected);
            if pause > PAUSE {
                let samples = pause.as_millis() * u128::from(OPUS_RATE_HZ / 1000);
                self.clock.next_timestamp = self.clock.next_timestamp.wrapping_add(samples as u32);
                self.silent = true;
            }
        }
        let frames = pcm.samples.len() / pcm.channels;
        let length = Duration::from_secs_f64(frames as f64 / f64::from(pcm.sample_rate_hz));
        self.clock.next_due = Some(at + length);
        let converted = self.resampler.convert(pcm, self.channels, OPUS_RATE_HZ);
        self.pcm.extend_from_slice(converted);
    }

    /// Encodes whole packets' worth of PCM until there is a packet to send; `None` when less than a
    /// packet is left.
    pub fn next_packet(&mut self) -> Option<EncodedAudio> {
        let packet_len = PACKET_SAMPLES as usize * self.channels;
        while self.pcm.len() - self.consumed >= packet_len {
            let pcm = &self.pcm[self.consumed..self.consumed + packet_len];
            self.consumed += packet_len;
            let rtp_timestamp = self.clock.next_timestamp;
            self.clock.next_timestamp = rtp_timestamp.wrapping_add(PACKET_SAMPLES);

            let energy = level::energy(pcm);
            let seconds = f64::from(PACKET_MS) / 1000.0;
            self.stats.audio_level = energy.sqrt();
            self.stats.total_audio_energy += energy * seconds;
            self.stats.total_samples_duration_s += seconds;

            let mut buffer = [0u8; MAX_PACKET_BYTES];
            let len = match self.opus.encode(pcm, &mut buffer) {
                Ok(len) => len,
                Err(error) => {
                    log::warn!("20 ms of sound could not be encoded: {error}");
                    continue;
                }
            };
            let nothing_new = self.config.dtx && len <= DTX_PACKET_BYTES;
            let was_silent = std::mem::replace(&mut self.silent, nothing_new);
            if nothing_new && was_silent {
                // Only the first packet of a pause is sent, as Google's engine does: it tells the
                // decoder to go on with comfort noise instead of concealing a loss.
                self.stats.dtx_packets += 1;
                continue;
            }
            let audio_level_dbov = level::dbov(energy);
            self.stats.packets += 1;
            self.stats.payload_bytes += len as u64;
            return Some(EncodedAudio {
                payload: buffer[..len].to_vec(),
                rtp_timestamp,
                marker: was_silent,
                audio_level_dbov,
                voice_activity: audio_level_dbov >= VOICE_DBOV,
                narrow: self.share < 1.0,
            });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{second_of_voice, tone},
        *,
    };

    /// Runs sound in frames of 10 ms through an encoder and returns the packets.
    fn encode(
        config: OpusSendConfig,
        rate: u32,
        channels: usize,
        sound: &[i16],
    ) -> (Vec<EncodedAudio>, AudioSenderStats) {
        let mut encoder =
            PacketEncoder::new(config, RtpClock::starting_at(5_000)).expect("an encoder");
        let start = Instant::now();
        let mut packets = Vec::new();
        for (index, samples) in sound.chunks(rate as usize / 100 * channels).enumerate() {
            let now = start + Duration::from_millis(10 * index as u64);
            encoder.push(
                now,
                Pcm {
                    samples,
                    sample_rate_hz: rate,
                    channels,
                },
            );
            packets.extend(std::iter::from_fn(|| encoder.next_packet()));
        }
        (packets, encoder.stats)
    }

    #[test]
    fn any_format_becomes_packets_of_20_ms() {
        for (rate, channels) in [
            (48_000, 1),
            (48_000, 2),
            (24_000, 2),
            (16_000, 1),
            (8_000, 1),
            (44_100, 2),
        ] {
            let sound = tone(440.0, rate, channels, rate as usize, 10_000.0);
            let (packets, stats) = encode(OpusSendConfig::default(), rate, channels, &sound);
            assert_eq!(packets.len(), 50, "{rate} Hz");
            for (index, packet) in packets.iter().enumerate() {
                assert_eq!(packet.rtp_timestamp, 5_000 + 960 * index as u32);
                assert_eq!(
                    opus::packet::get_nb_samples(&packet.payload, 48_000).ok(),
                    Some(960)
                );
                assert_eq!(packet.marker, index == 0);
            }
            let steady = packets[25].clone();
            assert_eq!(
                (steady.audio_level_dbov, steady.voice_activity),
                (-13, true)
            );
            assert_eq!((stats.packets, stats.dtx_packets), (50, 0));
            assert!((stats.total_samples_duration_s - 1.0).abs() < 1e-9);
            // The energy of a sine is half its amplitude squared.
            let expected = (10_000.0f64 / 32_768.0).powi(2) / 2.0;
            assert!((stats.total_audio_energy / expected - 1.0).abs() < 0.03);
        }
    }

    #[test]
    fn stereo_is_sent_only_if_negotiated() {
        for (stereo, expected) in [
            (false, opus::Channels::Mono),
            (true, opus::Channels::Stereo),
        ] {
            let left = tone(440.0, 48_000, 1, 48_000, 10_000.0);
            let right = tone(1200.0, 48_000, 1, 48_000, 10_000.0);
            let sound: Vec<i16> = left
                .iter()
                .zip(&right)
                .flat_map(|(l, r)| [*l, *r])
                .collect();
            let config = OpusSendConfig {
                stereo,
                ..OpusSendConfig::default()
            };
            let (packets, _) = encode(config, 48_000, 2, &sound);
            let channels = opus::packet::get_nb_channels(&packets[40].payload).ok();
            assert_eq!(channels, Some(expected));
        }
    }

    #[test]
    fn silence_is_announced_once_and_then_refreshed_only_now_and_then() {
        let mut sound = tone(440.0, 48_000, 1, 48_000, 10_000.0);
        sound.extend(vec![0; 4 * 48_000]);
        sound.extend(tone(440.0, 48_000, 1, 48_000, 10_000.0));
        let config = OpusSendConfig {
            dtx: true,
            ..OpusSendConfig::default()
        };
        let (packets, stats) = encode(config, 48_000, 1, &sound);
        let in_pause: Vec<_> = packets
            .iter()
            .filter(|packet| (5_000 + 72_000..5_000 + 240_000).contains(&packet.rtp_timestamp))
            .collect();
        assert!(
            !in_pause.is_empty() && in_pause.len() <= 25,
            "{}",
            in_pause.len()
        );
        assert!(stats.dtx_packets > 120);
        let again = packets
            .iter()
            .find(|packet| packet.rtp_timestamp >= 5_000 + 240_000);
        let again = again.expect("the sound comes back");
        assert_eq!((again.rtp_timestamp, again.marker), (5_000 + 240_000, true));
        assert_eq!(
            packets.last().map(|packet| packet.rtp_timestamp),
            Some(5_000 + 287_040)
        );
    }

    #[test]
    fn silence_goes_on_being_sent_without_dtx() {
        let (packets, _) = encode(OpusSendConfig::default(), 48_000, 1, &[0; 48_000]);
        assert_eq!(packets.len(), 50);
        let quiet = &packets[40];
        assert_eq!(
            (quiet.audio_level_dbov, quiet.voice_activity),
            (-127, false)
        );
    }

    #[test]
    fn bitrate_is_followed() {
        let bytes = |max_bitrate_bps| {
            let mut random = 1u32;
            let noise: Vec<i16> = (0..96_000)
                .map(|_| {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ((random >> 16) as i16) / 4
                })
                .collect();
            let config = OpusSendConfig {
                max_bitrate_bps,
                ..OpusSendConfig::default()
            };
            let (_, stats) = encode(config, 48_000, 1, &noise);
            stats.payload_bytes as f64 * 8.0 / 2.0
        };
        for (max, expected) in [
            (None, 32_000.0),
            (Some(16_000), 16_000.0),
            (Some(64_000), 64_000.0),
        ] {
            let bps = bytes(max);
            assert!((0.7..1.2).contains(&(bps / expected)), "{max:?}: {bps}");
        }
    }

    #[test]
    fn timestamps_follow_the_wall_clock_over_a_pause_in_the_sound() {
        let mut encoder = PacketEncoder::new(OpusSendConfig::default(), RtpClock::starting_at(0))
            .expect("an encoder");
        let start = Instant::now();
        let samples = tone(440.0, 48_000, 1, 480, 10_000.0);
        let pcm = Pcm {
            samples: &samples,
            sample_rate_hz: 48_000,
            channels: 1,
        };
        let mut packets = Vec::new();
        for ms in [0u64, 10, 20, 30, 2_030, 2_040] {
            encoder.push(start + Duration::from_millis(ms), pcm);
            packets.extend(std::iter::from_fn(|| encoder.next_packet()));
        }
        let timestamps: Vec<_> = packets.iter().map(|packet| packet.rtp_timestamp).collect();
        // The pause is from 40 ms, where the sound ended, to 2030 ms.
        assert_eq!(timestamps, [0, 960, 1920 + 1_990 * 48]);
        assert_eq!(
            packets
                .iter()
                .map(|packet| packet.marker)
                .collect::<Vec<_>>(),
            [true, false, true]
        );
    }

    #[test]
    fn error_correction_appears_when_loss_is_reported() {
        // Opus codes tones as music, which has no error correction.
        let voice = second_of_voice();
        let share = |percent| {
            let mut encoder =
                PacketEncoder::new(OpusSendConfig::default(), RtpClock::starting_at(0))
                    .expect("an encoder");
            encoder.set_packet_loss_percent(percent);
            let mut packets = Vec::new();
            for samples in voice.chunks(480) {
                encoder.push(
                    Instant::now(),
                    Pcm {
                        samples,
                        sample_rate_hz: 48_000,
                        channels: 1,
                    },
                );
                packets.extend(std::iter::from_fn(|| encoder.next_packet()));
            }
            let with = packets
                .iter()
                .filter(|packet| super::super::decoder::recovers_previous(&packet.payload))
                .count();
            with as f64 / packets.len() as f64
        };
        assert_eq!(share(0), 0.0);
        assert!(share(10) > 0.5, "{}", share(10));
    }

    #[test]
    fn sender_hands_its_packets_over_in_order() {
        let (give, take) = std::sync::mpsc::channel();
        let sender = AudioSender::new(
            OpusSendConfig::default(),
            RtpClock::starting_at(0),
            move |packet| {
                let _ = give.send(packet.rtp_timestamp);
            },
        )
        .expect("a sender");
        let samples = tone(440.0, 48_000, 1, 4_800, 10_000.0);
        sender.on_pcm(
            Instant::now(),
            Pcm {
                samples: &samples,
                sample_rate_hz: 48_000,
                channels: 1,
            },
        );
        let timestamps: Vec<u32> = take.try_iter().collect();
        assert_eq!(timestamps.len(), 5);
        assert!(
            timestamps
                .windows(2)
                .all(|two| two[1].wrapping_sub(two[0]) == 960)
        );
        assert_eq!(sender.stats().packets, 5);
        sender.set_max_bitrate(Some(24_000));
        assert_eq!(sender.stats().target_bitrate_bps, 24_000);
        sender.set_packet_loss_percent(200);
    }
}
