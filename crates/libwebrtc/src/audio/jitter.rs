//! The jitter buffer: packets in whenever they come, 10 ms of sound out whenever they are asked
//! for.
//!
//! It has no clock and no socket: both [`push`](JitterBuffer::push) and
//! [`pull`](JitterBuffer::pull) get the time. How it decides:
//!
//! - How long packets should wait is measured by [`DelayEstimator`]. The first packet of a stream
//!   or after a pause waits until its delay is the target; packets that follow it without a gap are
//!   played one after the other.
//! - A missing packet is played from its copy if a later one brought that (RED), else recovered
//!   from the next one's error correction, else concealed by the decoder. If nothing at all has
//!   arrived, the decoder conceals for [`MAX_CONCEALED`], then the background is played that was
//!   heard before ([`BackgroundNoise`]). A late packet is still played if nothing after it was:
//!   that makes the delay longer instead of losing speech.
//! - A delay away from the target is corrected by making sound shorter or longer ([`stretch`]),
//!   never by leaving packets out.
//! - Timestamps that jump without a missing packet are a pause of the sender (DTX): no loss, and
//!   comfort noise if the sender announced it.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    OPUS_RATE_HZ, TICK_SAMPLES,
    decoder::{self, OpusDecoder},
    delay::{DelayEstimator, samples_to_us},
    level,
    noise::BackgroundNoise,
    red,
    stretch::{self, Care},
};

/// No more packets than this wait: at 20 ms each, four seconds.
const MAX_PACKETS: usize = 200;

/// For how long a gap is concealed by the decoder. It fades the sound out in about this time; after
/// that it would be a hum.
const MAX_CONCEALED: usize = TICK_SAMPLES * 12;

/// Concealed sound fades into the background, and the background into the first sound after it,
/// over this many samples.
const FADE: usize = TICK_SAMPLES / 2;

/// The delay may be this much above or below the target before it is corrected: with less, every
/// small change of the target would change the speed.
const FAR_ABOVE_US: i64 = 10_000;
const FAR_BELOW_US: i64 = 10_000;

/// A correction that has begun goes on until the delay is this close to the target.
const CLOSE_US: i64 = 5_000;

/// This far above the target, sound is shortened even where that is heard, as often as possible: so
/// much delay is worse.
const INTOLERABLE_US: i64 = 120_000;

/// Pulls between two cuts, so that sound runs at most about a quarter faster or slower.
const REST_AFTER_CUT: u32 = 5;

/// Pulls before the next search for a cut after one that found none.
const REST_AFTER_SEARCH: u32 = 2;

/// As much decoded sound as a search for the longest period needs.
const STRETCH_FRAMES: usize = 2 * stretch::MAX_PERIOD;

/// While packets with error correction get lost, the delay is at least a packet and this, so that
/// the packet which repairs a loss has arrived when it is needed.
const RECOVERY_MARGIN_US: i64 = 20_000;

/// For how long after a loss the delay is kept at that.
const RECOVERY_MEMORY: Duration = Duration::from_secs(10);

/// LiveKit's server puts the last two packets into redundancy that it builds itself
/// (`pkg/sfu/redreceiver.go`).
const MAX_REDONE_DISTANCE: u64 = 2;

/// A packet whose number is further than this from the expected one belongs to a stream that
/// started anew.
const NEW_STREAM_DISTANCE: u64 = 1_000;

/// One RTP packet of Opus.
#[derive(Debug, Clone)]
pub(crate) struct RtpAudioPacket {
    pub ssrc: u32,
    /// Sequence number without wrap-around.
    pub extended_seq: u64,
    /// RTP timestamp at 48 kHz without wrap-around.
    pub rtp_timestamp: u64,
    /// The Opus packet, without padding and RED.
    pub payload: Arc<[u8]>,
}

/// Totals so far, with the meaning that the W3C's "Identifiers for WebRTC's Statistics API" gives
/// to the fields of the same name. Samples are counted for each channel at 48 kHz.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct AudioReceiverStats {
    /// Seconds that the emitted samples spent in the buffer, summed over all of them.
    pub jitter_buffer_delay_s: f64,
    /// The same sum of the delay that the buffer aimed at.
    pub jitter_buffer_target_delay_s: f64,
    /// The same sum of the delay that the network's jitter alone needed.
    pub jitter_buffer_minimum_delay_s: f64,
    pub jitter_buffer_emitted_count: u64,
    pub total_samples_received: u64,
    pub concealed_samples: u64,
    /// Those of the concealed samples that are silence or comfort noise.
    pub silent_concealed_samples: u64,
    pub concealment_events: u64,
    pub inserted_samples_for_deceleration: u64,
    pub removed_samples_for_acceleration: u64,
    /// Packets that were recovered from the following packet's in-band error correction, or played
    /// from a copy in a later one (RED).
    pub fec_packets_received: u64,
    /// Packets that came too late, twice, damaged, or when the buffer was full.
    pub packets_discarded: u64,
    /// Packets that came, useful or not.
    pub packets_received: u64,
    /// Loudness of the last 10 ms, linear, from 0 to 1.
    pub audio_level: f64,
    /// Sum over all sound of squared loudness times seconds.
    pub total_audio_energy: f64,
    /// How much sound was delivered, in seconds.
    pub total_samples_duration_s: f64,
    /// The target delay in milliseconds when the last packet was played.
    pub target_delay_ms: f64,
}

#[derive(Debug)]
struct Waiting {
    seq: u64,
    timestamp: u64,
    /// Samples of each channel.
    frames: usize,
    arrival: Instant,
    payload: Arc<[u8]>,
    /// A later packet brought it as a copy; the packet itself has not come.
    is_copy: bool,
}

/// In which direction the delay is being corrected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Correction {
    None,
    Faster,
    Slower,
}

/// What was played since the last played packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hole {
    /// Nothing: the last packet was the last sound.
    None,
    /// So many concealed samples in place of something that should have come.
    Missing(usize),
    /// So many samples of comfort noise in a pause that the sender announced.
    Pause(usize),
}

impl Hole {
    fn frames(self) -> usize {
        match self {
            Self::None => 0,
            Self::Missing(frames) | Self::Pause(frames) => frames,
        }
    }
}

/// The playout position: number and timestamp of the next packet if none is missing.
#[derive(Debug, Clone, Copy)]
struct Position {
    seq: u64,
    timestamp: u64,
}

/// Jitter buffer and decoder for one stream after the other.
pub(crate) struct JitterBuffer {
    decoder: OpusDecoder,
    delay: DelayEstimator,
    ssrc: Option<u32>,
    /// Sorted by number, without duplicates.
    waiting: VecDeque<Waiting>,
    /// `None` before the first packet was played.
    position: Option<Position>,
    hole: Hole,
    /// The last packet announced a pause.
    paused: bool,
    /// Until when a loss is expected that error correction can repair.
    recovering_until: Option<Instant>,
    /// The length of the last packet; a missing one is assumed to be as long.
    packet_frames: usize,
    /// Decoded, not yet pulled, interleaved.
    pcm: Vec<i16>,
    scratch: Vec<i16>,
    background: BackgroundNoise,
    correction: Correction,
    /// Pulls before the next search for a cut.
    rest: u32,
    stats: AudioReceiverStats,
}

impl JitterBuffer {
    /// # Errors
    ///
    /// If libopus has no memory.
    pub fn new() -> Result<Self, opus::Error> {
        Ok(Self {
            decoder: OpusDecoder::new()?,
            delay: DelayEstimator::default(),
            ssrc: None,
            waiting: VecDeque::new(),
            position: None,
            hole: Hole::None,
            paused: false,
            recovering_until: None,
            packet_frames: 2 * TICK_SAMPLES,
            pcm: Vec::new(),
            scratch: Vec::new(),
            background: BackgroundNoise::default(),
            correction: Correction::None,
            rest: 0,
            stats: AudioReceiverStats::default(),
        })
    }

    pub fn stats(&self) -> AudioReceiverStats {
        self.stats
    }

    /// The delay with which sound is played now, relative to the fastest packet; `None` before
    /// anything was played and during a gap.
    pub fn playout_delay_us(&self, now: Instant) -> Option<i64> {
        match (self.position, self.hole) {
            (Some(position), Hole::None) => self
                .delay
                .delay_us(self.end_of_pcm(now), position.timestamp),
            _ => None,
        }
    }

    /// Takes a packet with redundant payload (RFC 2198) that arrived at `now`.
    pub fn push_red(&mut self, now: Instant, packet: RtpAudioPacket, opus_payload_type: u8) {
        let RtpAudioPacket {
            ssrc,
            extended_seq,
            rtp_timestamp,
            payload,
        } = packet;
        let Some(unwrapped) = red::unwrap(&payload, opus_payload_type) else {
            log::debug!("a packet with malformed redundancy was discarded");
            self.stats.packets_received += 1;
            self.stats.packets_discarded += 1;
            return;
        };
        let primary = RtpAudioPacket {
            ssrc,
            extended_seq,
            rtp_timestamp,
            payload: unwrapped.primary.into(),
        };
        if !self.take(now, primary) {
            return;
        }
        // The nearest copy first: its place helps to find those of the others.
        for (distance, copy) in (1..).zip(unwrapped.redundant.iter().rev()) {
            self.take_copy(now, extended_seq, rtp_timestamp, distance, copy);
        }
    }

    /// Takes a packet that arrived at `now`.
    pub fn push(&mut self, now: Instant, packet: RtpAudioPacket) {
        self.take(now, packet);
    }

    /// Returns whether the packet was not known before and waits now.
    fn take(&mut self, now: Instant, packet: RtpAudioPacket) -> bool {
        if packet.payload.is_empty() {
            // Padding, which senders use to probe the bandwidth. It takes up a sequence number and
            // must not be counted as lost.
            self.skip_empty(packet.extended_seq);
            return false;
        }
        self.stats.packets_received += 1;
        let frames = match decoder::packet_frames(&packet.payload) {
            Some(frames) if frames > 0 => frames,
            _ => {
                log::debug!("a packet that is no Opus was discarded");
                self.stats.packets_discarded += 1;
                return false;
            }
        };
        if self.ssrc != Some(packet.ssrc) || self.is_far_away(packet.extended_seq) {
            self.start_stream(packet.ssrc);
        }
        let place = self
            .waiting
            .partition_point(|other| other.seq < packet.extended_seq);
        let known = self.waiting.get_mut(place);
        if let Some(known) = known.filter(|other| other.seq == packet.extended_seq) {
            if known.is_copy {
                // It was late or overtaken, not lost, and is needed no more; but it shows how long
                // packets take.
                known.is_copy = false;
                self.delay.packet_arrived(now, packet.rtp_timestamp);
            } else {
                self.stats.packets_discarded += 1;
            }
            return false;
        }
        if self
            .position
            .is_some_and(|position| packet.extended_seq < position.seq)
        {
            self.delay.late_packet_arrived(now, packet.rtp_timestamp);
            self.stats.packets_discarded += 1;
            return false;
        }
        self.delay.packet_arrived(now, packet.rtp_timestamp);
        let misses_previous = place == self.waiting.len()
            && self
                .next_after_last()
                .is_some_and(|next| next < packet.extended_seq);
        if misses_previous && decoder::recovers_previous(&packet.payload) {
            self.recovering_until = Some(now + RECOVERY_MEMORY);
        }
        let waiting = Waiting {
            seq: packet.extended_seq,
            timestamp: packet.rtp_timestamp,
            frames,
            arrival: now,
            payload: packet.payload,
            is_copy: false,
        };
        self.waiting.insert(place, waiting);
        if self.waiting.len() > MAX_PACKETS {
            self.waiting.pop_front();
            self.stats.packets_discarded += 1;
        }
        true
    }

    /// Takes a copy of an earlier packet that came with the packet `bearer_seq`, `distance` copies
    /// before it, if that packet is missing.
    ///
    /// A copy has a timestamp and no sequence number. Usually it is as many packets back as there
    /// are copies in between; but a server that rebuilds the redundancy, as LiveKit's can, leaves
    /// out what it has lost itself. So a timestamp that is one or two whole packets back counts
    /// first; one that is further back may lie before a pause of the sender.
    fn take_copy(
        &mut self,
        now: Instant,
        bearer_seq: u64,
        bearer_timestamp: u64,
        distance: u64,
        copy: &red::Redundant<'_>,
    ) {
        let Some(timestamp) = bearer_timestamp.checked_sub(u64::from(copy.timestamp_offset)) else {
            return;
        };
        let Some(frames) = decoder::packet_frames(copy.payload).filter(|frames| *frames > 0) else {
            return;
        };
        let place = self
            .waiting
            .partition_point(|other| other.timestamp < timestamp);
        let Some(next) = self.waiting.get(place) else {
            return;
        };
        // Before the first packet nothing can be missing.
        let Some((first_missing, silent_until)) = self.gap_before(place) else {
            return;
        };
        if next.timestamp == timestamp || next.seq <= first_missing {
            return;
        }
        if timestamp < silent_until {
            // It comes too late for its own place, and would displace the next one.
            let replaced = self.position.is_some_and(|it| timestamp >= it.timestamp);
            if place == 0 && replaced {
                self.recovering_until = Some(now + RECOVERY_MEMORY);
            }
            return;
        }
        let (offset, frames_each) = (u64::from(copy.timestamp_offset), frames as u64);
        let by_time = (offset % frames_each == 0)
            .then_some(offset / frames_each)
            .filter(|packets| *packets <= MAX_REDONE_DISTANCE);
        let missing = first_missing..next.seq;
        let seq = by_time
            .into_iter()
            .chain([distance])
            .filter_map(|packets| bearer_seq.checked_sub(packets))
            .find(|seq| missing.contains(seq));
        let Some(seq) = seq else { return };
        self.recovering_until = Some(now + RECOVERY_MEMORY);
        let waiting = Waiting {
            seq,
            timestamp,
            frames,
            arrival: now,
            payload: copy.payload.into(),
            is_copy: true,
        };
        self.waiting.insert(place, waiting);
        if self.waiting.len() > MAX_PACKETS {
            self.waiting.pop_front();
        }
    }

    /// The lowest sequence number that can be missing before the waiting packet at `place`, and the
    /// timestamp up to which concealed sound has been played there. `None` before the very first
    /// packet.
    fn gap_before(&self, place: usize) -> Option<(u64, u64)> {
        match (place.checked_sub(1), self.position) {
            (Some(previous), _) => {
                let previous = self.waiting.get(previous)?;
                Some((previous.seq + 1, previous.timestamp.saturating_add(1)))
            }
            (None, Some(position)) => {
                let bridged = self.hole.frames() as u64;
                Some((position.seq, position.timestamp.saturating_add(bridged)))
            }
            (None, None) => None,
        }
    }

    /// Drops what is overdue. Called instead of [`pull`](Self::pull) while nobody listens, so that
    /// a new listener hears current sound.
    pub fn drop_overdue(&mut self, now: Instant) {
        self.pcm.clear();
        while let Some(first) = self.waiting.front() {
            if !self.is_due(first, now) {
                break;
            }
            self.waiting.pop_front();
        }
        self.position = None;
        self.hole = Hole::None;
        self.correction = Correction::None;
    }

    /// Forgets all packets and sound, as after the end of a stream.
    pub fn clear(&mut self) {
        self.ssrc = None;
        self.waiting.clear();
        self.pcm.clear();
        self.position = None;
        self.hole = Hole::None;
        self.paused = false;
        self.correction = Correction::None;
        self.decoder.reset();
        self.background.forget();
        self.delay.forget_time_line();
    }

    /// Replaces `out` by the next 10 ms of interleaved sound and returns its number of channels.
    pub fn pull(&mut self, now: Instant, out: &mut Vec<i16>) -> usize {
        while self.pcm_frames() < TICK_SAMPLES {
            self.produce(now);
        }
        self.correct_delay(now);

        let channels = self.decoder.channels();
        out.clear();
        out.extend(self.pcm.drain(..TICK_SAMPLES * channels));
        if self.position.is_some() {
            self.stats.total_samples_received += TICK_SAMPLES as u64;
            let energy = level::energy(out);
            let seconds = TICK_SAMPLES as f64 / f64::from(OPUS_RATE_HZ);
            self.stats.audio_level = energy.sqrt();
            self.stats.total_audio_energy += energy * seconds;
            self.stats.total_samples_duration_s += seconds;
        }
        channels
    }

    /// The number that follows the newest packet so far.
    fn next_after_last(&self) -> Option<u64> {
        self.waiting
            .back()
            .map(|last| last.seq + 1)
            .or(self.position.map(|position| position.seq))
    }

    /// The delay to aim at, in microseconds.
    fn target_us(&self, now: Instant) -> i64 {
        let for_jitter = self.delay.target_us();
        match self.recovering_until {
            Some(until) if now < until => {
                let packet_us = samples_to_us(self.packet_frames as i64);
                for_jitter.max(packet_us + RECOVERY_MARGIN_US)
            }
            _ => for_jitter,
        }
    }

    fn pcm_frames(&self) -> usize {
        self.pcm.len() / self.decoder.channels()
    }

    /// When the sound that is produced next will be pulled, if the first sample of `pcm` is pulled
    /// at `now`.
    fn end_of_pcm(&self, now: Instant) -> Instant {
        let micros = samples_to_us(self.pcm_frames() as i64);
        now + Duration::from_micros(micros.unsigned_abs())
    }

    /// Whether a packet's delay has reached the target if it is played at `at`.
    fn is_due(&self, packet: &Waiting, at: Instant) -> bool {
        self.delay
            .delay_us(at, packet.timestamp)
            .is_none_or(|delay| delay >= self.target_us(at))
    }

    fn is_far_away(&self, seq: u64) -> bool {
        let known = self
            .position
            .map(|position| position.seq)
            .or_else(|| self.waiting.back().map(|last| last.seq));
        known.is_some_and(|known| known.abs_diff(seq) > NEW_STREAM_DISTANCE)
    }

    /// Starts a new stream; sound that is decoded already is still played.
    fn start_stream(&mut self, ssrc: u32) {
        self.stats.packets_discarded += self.waiting.len() as u64;
        self.waiting.clear();
        if self.ssrc.replace(ssrc).is_some() {
            self.decoder.reset();
            self.background.forget();
        }
        self.delay.forget_time_line();
        self.position = None;
        self.hole = Hole::None;
        self.paused = false;
        self.correction = Correction::None;
    }

    fn skip_empty(&mut self, seq: u64) {
        // A number that has sound as well is not skipped: that sound would then lie before the
        // playout position.
        let has_sound = self.waiting.front().is_some_and(|first| first.seq == seq);
        if let Some(position) = &mut self.position
            && position.seq == seq
            && !has_sound
        {
            position.seq += 1;
        }
    }

    /// Appends some sound to `pcm`: a packet, or concealed sound.
    fn produce(&mut self, now: Instant) {
        let at = self.end_of_pcm(now);
        let Some(first) = self.waiting.front() else {
            self.bridge(TICK_SAMPLES);
            return;
        };
        let Some(position) = self.position else {
            if self.is_due(first, at) {
                self.play_first(at);
            } else {
                self.silence(TICK_SAMPLES);
            }
            return;
        };

        let gap = first.timestamp.wrapping_sub(position.timestamp) as i64;
        let bridged = self.hole.frames() as i64;
        let lost_packets = first.seq - position.seq;
        if lost_packets == 0 && gap == 0 {
            // A long gap has used up the delay, so it is built up anew.
            if self.hole.frames() <= MAX_CONCEALED || self.is_due(first, at) {
                self.play_first(at);
            } else {
                self.bridge(TICK_SAMPLES);
            }
        } else if gap <= bridged {
            self.play_first(at);
        } else if lost_packets > 0 && !self.is_bridged(lost_packets, first, at) {
            self.replace_lost((gap - bridged) as usize);
        } else if self.is_due(first, at) {
            self.play_first(at);
        } else {
            self.bridge(TICK_SAMPLES);
        }
    }

    /// Whether enough was played in place of lost packets: as much as they held, or so much that
    /// the packet after them is due.
    fn is_bridged(&self, lost_packets: u64, first: &Waiting, at: Instant) -> bool {
        let bridged = self.hole.frames();
        let lost = lost_packets.saturating_mul(self.packet_frames as u64);
        bridged as u64 >= lost || (bridged >= MAX_CONCEALED && self.is_due(first, at))
    }

    /// Decodes the first waiting packet, which is played from `at` on.
    fn play_first(&mut self, at: Instant) {
        let Some(packet) = self.waiting.pop_front() else {
            return;
        };
        self.follow_channels(&packet.payload);
        let before = self.pcm.len();
        let decoded = self
            .decoder
            .decode(&packet.payload, packet.frames, &mut self.pcm);
        let after_silence = matches!(self.hole, Hole::Missing(frames) if frames > MAX_CONCEALED);
        self.position = Some(Position {
            seq: packet.seq + 1,
            timestamp: packet.timestamp.wrapping_add(packet.frames as u64),
        });
        self.packet_frames = packet.frames;
        if let Err(error) = decoded {
            log::debug!(
                "a packet of {} bytes could not be decoded: {error}",
                packet.payload.len()
            );
            self.stats.packets_discarded += 1;
            self.conceal(packet.frames);
            return;
        }
        let channels = self.decoder.channels();
        self.background.listen(&self.pcm[before..], channels);
        if after_silence {
            let pcm = &mut self.pcm[before..];
            fade_in(pcm, channels);
            let length = FADE.min(pcm.len() / channels);
            let beginning = &mut pcm[..length * channels];
            self.background.mix(beginning, channels, |index| {
                1.0 - index as f64 / length as f64
            });
        }
        self.hole = Hole::None;
        self.paused = packet.payload.len() <= 2;
        self.stats.fec_packets_received += u64::from(packet.is_copy);

        let frames = packet.frames as f64;
        let waited = at.saturating_duration_since(packet.arrival);
        self.stats.jitter_buffer_delay_s += waited.as_secs_f64() * frames;
        let target_us = self.target_us(at);
        self.stats.target_delay_ms = target_us as f64 / 1e3;
        self.stats.jitter_buffer_target_delay_s += target_us as f64 / 1e6 * frames;
        self.stats.jitter_buffer_minimum_delay_s += self.delay.covered_us() as f64 / 1e6 * frames;
        self.stats.jitter_buffer_emitted_count += packet.frames as u64;
    }

    /// A stereo packet makes everything stereo, also what is decoded already.
    fn follow_channels(&mut self, payload: &[u8]) {
        match self.decoder.follow_channels(payload) {
            Ok(false) => {}
            Ok(true) => {
                self.pcm = self.pcm.iter().flat_map(|sample| [*sample; 2]).collect();
            }
            Err(error) => log::warn!("the stereo decoder could not be made: {error}"),
        }
    }

    /// Conceals the packets that are missing before the first waiting one, `gap` samples before it
    /// is to be played.
    fn replace_lost(&mut self, gap: usize) {
        let Some(first) = self.waiting.front() else {
            return;
        };
        let recoverable = gap == first.frames && decoder::recovers_previous(&first.payload);
        if !recoverable {
            // Rounded to a length that the decoder can conceal.
            self.conceal(
                gap.min(self.packet_frames)
                    .next_multiple_of(TICK_SAMPLES / 4),
            );
            return;
        }
        let payload = first.payload.clone();
        let next = Position {
            seq: first.seq,
            timestamp: first.timestamp,
        };
        self.follow_channels(&payload);
        match self.decoder.recover_previous(&payload, gap, &mut self.pcm) {
            Ok(()) => {
                self.stats.fec_packets_received += 1;
                self.position = Some(next);
                self.hole = Hole::None;
            }
            Err(error) => {
                log::debug!("error correction could not be decoded: {error}");
                self.conceal(gap);
            }
        }
    }

    /// Fills time in which no packet has come or is due.
    fn bridge(&mut self, frames: usize) {
        if self.position.is_none() {
            self.silence(frames);
        } else if self.paused {
            if self.decoder.conceal(frames, &mut self.pcm).is_err() {
                self.silence(frames);
            }
            self.hole = Hole::Pause(self.hole.frames() + frames);
        } else {
            self.conceal(frames);
        }
    }

    /// Lets the decoder conceal for a while, then continues with the background that was heard
    /// before.
    fn conceal(&mut self, frames: usize) {
        let bridged = match self.hole {
            Hole::Missing(frames) => frames,
            Hole::None | Hole::Pause(_) => {
                self.stats.concealment_events += 1;
                self.hole.frames()
            }
        };
        let before = self.pcm.len();
        let concealed =
            bridged < MAX_CONCEALED && self.decoder.conceal(frames, &mut self.pcm).is_ok();
        let channels = self.decoder.channels();
        if !concealed {
            self.silence(frames);
            self.background
                .mix(&mut self.pcm[before..], channels, |_| 1.0);
            self.stats.silent_concealed_samples += frames as u64;
        } else if bridged + frames >= MAX_CONCEALED {
            let pcm = &mut self.pcm[before..];
            fade_out(pcm, channels);
            let length = FADE.min(pcm.len() / channels);
            let end = pcm.len() - length * channels;
            self.background.mix(&mut pcm[end..], channels, |index| {
                (index + 1) as f64 / length as f64
            });
        }
        self.stats.concealed_samples += frames as u64;
        self.hole = Hole::Missing(bridged + frames);
    }

    fn silence(&mut self, frames: usize) {
        let len = self.pcm.len() + frames * self.decoder.channels();
        self.pcm.resize(len, 0);
    }

    /// If it is time for one, makes a cut in the sound that is about to be pulled, to bring the
    /// delay nearer to the target.
    fn correct_delay(&mut self, now: Instant) {
        let Some(delay) = self.playout_delay_us(now) else {
            self.correction = Correction::None;
            return;
        };
        let above = delay - self.target_us(now);
        self.correction = match self.correction {
            _ if above > FAR_ABOVE_US => Correction::Faster,
            _ if above < -FAR_BELOW_US => Correction::Slower,
            Correction::Faster if above > CLOSE_US => Correction::Faster,
            Correction::Slower if above < -CLOSE_US / 2 => Correction::Slower,
            _ => Correction::None,
        };
        let intolerable = above > INTOLERABLE_US;
        if self.correction == Correction::None || (self.rest > 0 && !intolerable) {
            self.rest = self.rest.saturating_sub(1);
            return;
        }
        while self.pcm_frames() < STRETCH_FRAMES && self.next_follows() {
            let at = self.end_of_pcm(now);
            self.play_first(at);
        }
        let channels = self.decoder.channels();
        let samples = (above.unsigned_abs() * u64::from(OPUS_RATE_HZ) / 1_000_000) as usize;
        let cut = if self.correction == Correction::Faster {
            let care = if intolerable {
                Care::Anyhow
            } else {
                Care::Unheard
            };
            // What is left must be enough for this pull.
            let spare = self.pcm_frames() - TICK_SAMPLES;
            let removed = stretch::shorten(&mut self.pcm, channels, samples.min(spare), care);
            self.stats.removed_samples_for_acceleration += removed as u64;
            removed
        } else {
            // A period too much does no harm, a delay that stays too short does.
            let limit = samples + TICK_SAMPLES;
            let care = Care::Unheard;
            let added = stretch::lengthen(&mut self.pcm, channels, limit, care, &mut self.scratch);
            self.stats.inserted_samples_for_deceleration += added as u64;
            added
        };
        self.rest = if cut > 0 {
            REST_AFTER_CUT
        } else {
            REST_AFTER_SEARCH
        };
    }

    /// Whether the first waiting packet is the one that is expected.
    fn next_follows(&self) -> bool {
        match (self.waiting.front(), self.position) {
            (Some(first), Some(position)) => {
                first.seq == position.seq && first.timestamp == position.timestamp
            }
            _ => false,
        }
    }
}

/// Fades the end of a piece of sound to silence.
fn fade_out(pcm: &mut [i16], channels: usize) {
    let frames = pcm.len() / channels;
    let length = FADE.min(frames);
    for (index, frame) in pcm
        .chunks_exact_mut(channels)
        .rev()
        .take(length)
        .enumerate()
    {
        scale(frame, index, length);
    }
}

/// Fades the beginning of a piece of sound in from silence.
fn fade_in(pcm: &mut [i16], channels: usize) {
    let frames = pcm.len() / channels;
    let length = FADE.min(frames);
    for (index, frame) in pcm.chunks_exact_mut(channels).take(length).enumerate() {
        scale(frame, index, length);
    }
}

fn scale(frame: &mut [i16], numerator: usize, denominator: usize) {
    for sample in frame {
        *sample = (i32::from(*sample) * numerator as i32 / denominator as i32) as i16;
    }
}

#[cfg(test)]
mod tests;
