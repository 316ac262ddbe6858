//! Turns the packets of a room into one stereo recording. Time is an argument: positions are
//! samples since the recording began.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use livekit_protocol::AudioMixing;
use livekit_protocol::participant_info::Kind;
use oggopus::{DualChannelWriter, SAMPLE_RATE_HZ, Side, SourceId, TimelineOptions};

use crate::rooms::TappedPacket;

/// A packet holds at most 120 ms (RFC 6716, section 3.2.5).
const MAX_PACKET_SAMPLES: usize = SAMPLE_RATE_HZ as usize * 120 / 1000;
/// Packets are placed by their sender's timestamps. If those differ from the arrival by more than
/// this, the sender's clock has jumped or stood still, as some do while muted, and packets are
/// placed by their arrival again.
const MAX_SKEW_SAMPLES: u64 = SAMPLE_RATE_HZ as u64 / 4;
/// Up to this many packets in a row are concealed by the decoder; a longer loss is silence.
const MAX_CONCEALED_PACKETS: u64 = 5;

pub(super) struct Recorder<W: Write> {
    writer: DualChannelWriter<W>,
    mixing: AudioMixing,
    tracks: HashMap<Arc<str>, Track>,
    /// Which channel each participant has when channels alternate, in the order of their first
    /// packets.
    sides: HashMap<String, Side>,
}

struct Track {
    decoder: opus::Decoder,
    sources: Vec<SourceId>,
    last: Option<Last>,
}

/// The packet that was placed last.
#[derive(Clone, Copy)]
struct Last {
    sequence: u64,
    timestamp: u32,
    position: u64,
    samples: u64,
}

impl<W: Write> Recorder<W> {
    pub fn new(out: W, mixing: AudioMixing) -> Result<Self, oggopus::Error> {
        Ok(Self {
            writer: DualChannelWriter::new(out, TimelineOptions::default())?,
            mixing,
            tracks: HashMap::new(),
            sides: HashMap::new(),
        })
    }

    /// Places one packet that arrived at the position `arrival`. A packet that cannot be decoded
    /// leaves a gap.
    pub fn packet(&mut self, packet: &TappedPacket, arrival: u64) -> Result<(), oggopus::Error> {
        // A recorder is not a party of the call, and padding is not sound.
        if packet.kind == Kind::Egress || packet.payload.is_empty() {
            return Ok(());
        }
        if !self.tracks.contains_key(&packet.track_sid) {
            let track = Track {
                decoder: opus::Decoder::new(SAMPLE_RATE_HZ, opus::Channels::Mono)?,
                sources: self
                    .sides_of(packet)
                    .into_iter()
                    .map(|side| self.writer.add_source(side))
                    .collect(),
                last: None,
            };
            self.tracks.insert(Arc::clone(&packet.track_sid), track);
        }
        let Some(track) = self.tracks.get_mut(&packet.track_sid) else {
            return Ok(());
        };
        if track
            .last
            .is_some_and(|last| packet.sequence <= last.sequence)
        {
            return Ok(());
        }
        let position = track.position_of(packet, arrival);
        track.conceal(packet, position, &mut self.writer);
        let mut pcm = [0; MAX_PACKET_SAMPLES];
        let samples = match track.decoder.decode(&packet.payload, &mut pcm, false) {
            Ok(samples) => samples,
            Err(error) => {
                tracing::debug!(
                    track.sid = &*packet.track_sid,
                    "a packet cannot be decoded: {error}"
                );
                return Ok(());
            }
        };
        for source in &track.sources {
            self.writer.push(*source, position, &pcm[..samples]);
        }
        track.last = Some(Last {
            sequence: packet.sequence,
            timestamp: packet.timestamp,
            position,
            samples: samples as u64,
        });
        Ok(())
    }

    fn sides_of(&mut self, packet: &TappedPacket) -> Vec<Side> {
        match self.mixing {
            AudioMixing::DefaultMixing => vec![Side::Left, Side::Right],
            AudioMixing::DualChannelAgent if packet.kind == Kind::Agent => vec![Side::Left],
            AudioMixing::DualChannelAgent => vec![Side::Right],
            AudioMixing::DualChannelAlternate => {
                let next = if self.sides.len().is_multiple_of(2) {
                    Side::Left
                } else {
                    Side::Right
                };
                vec![*self.sides.entry(packet.identity.clone()).or_insert(next)]
            }
        }
    }

    /// Writes what is final by now.
    pub fn advance(&mut self, now: u64) -> Result<(), oggopus::Error> {
        self.writer.advance(now)
    }

    /// Writes the rest, at least up to `end`, and closes the file.
    pub fn finish(self, end: u64) -> Result<W, oggopus::Error> {
        self.writer.finish(end)
    }
}

impl Track {
    fn position_of(&self, packet: &TappedPacket, arrival: u64) -> u64 {
        let Some(last) = self.last else {
            return arrival;
        };
        // The difference wraps as the timestamps do (RFC 3550, section 5.1).
        let advance = i64::from(packet.timestamp.wrapping_sub(last.timestamp) as i32);
        match last.position.checked_add_signed(advance) {
            Some(position) if position.abs_diff(arrival) <= MAX_SKEW_SAMPLES => position,
            _ => arrival,
        }
    }

    /// Conceals the gap that lost packets leave before this one. Where none is missing, as in a
    /// pause of a sender that does not send silence, the gap stays silent.
    fn conceal<W: Write>(
        &mut self,
        packet: &TappedPacket,
        position: u64,
        writer: &mut DualChannelWriter<W>,
    ) {
        let Some(last) = self.last else { return };
        let lost = packet.sequence - last.sequence - 1;
        let from = last.position + last.samples;
        if lost == 0
            || lost > MAX_CONCEALED_PACKETS
            || last.samples == 0
            || from + lost * last.samples > position
        {
            return;
        }
        let mut pcm = [0; MAX_PACKET_SAMPLES];
        for index in 0..lost {
            // The packet after the loss may carry a copy of the one before it at low quality.
            let has_copy = index + 1 == lost;
            let payload: &[u8] = if has_copy { &packet.payload } else { &[] };
            let wanted = &mut pcm[..last.samples as usize];
            if self.decoder.decode(payload, wanted, has_copy).is_err() {
                return;
            }
            for source in &self.sources {
                writer.push(*source, from + index * last.samples, wanted);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::time::Instant;

    use oggopus::Reader;

    use super::*;

    const FRAME: u64 = 960;

    /// A tone as the packets of one track.
    struct Sender {
        identity: &'static str,
        kind: Kind,
        encoder: opus::Encoder,
        frequency_hz: f64,
        sent: u64,
        timestamp: u32,
    }

    impl Sender {
        fn new(identity: &'static str, kind: Kind, frequency_hz: f64) -> Self {
            let encoder = opus::Encoder::new(
                SAMPLE_RATE_HZ,
                opus::Channels::Mono,
                opus::Application::Voip,
            )
            .unwrap();
            // Close to the end of 32 bits, so that the timestamps wrap in every test.
            Self {
                identity,
                kind,
                encoder,
                frequency_hz,
                sent: 0,
                timestamp: u32::MAX - 5_000,
            }
        }

        fn packet(&mut self) -> TappedPacket {
            let tone: Vec<i16> = (0..FRAME)
                .map(|i| {
                    ((self.sent * FRAME + i) as f64 * self.frequency_hz / 48_000.0
                        * std::f64::consts::TAU)
                        .sin()
                })
                .map(|value| (value * 10_000.0) as i16)
                .collect();
            let packet = TappedPacket {
                identity: self.identity.into(),
                kind: self.kind,
                track_sid: format!("TR_{}", self.identity).into(),
                timestamp: self.timestamp,
                sequence: self.sent,
                arrival: Instant::now(),
                payload: self.encoder.encode_vec(&tone, 1_275).unwrap().into(),
            };
            self.sent += 1;
            self.timestamp = self.timestamp.wrapping_add(FRAME as u32);
            packet
        }
    }

    fn recorder(mixing: AudioMixing) -> Recorder<Vec<u8>> {
        Recorder::new(Vec::new(), mixing).unwrap()
    }

    /// The finished recording, one list a side.
    fn sides(recorder: Recorder<Vec<u8>>, end: u64) -> [Vec<i16>; 2] {
        let file = recorder.finish(end).unwrap();
        let pcm = Reader::new(Cursor::new(file))
            .unwrap()
            .read_to_end()
            .unwrap();
        [0, 1].map(|side| pcm.iter().skip(side).step_by(2).copied().collect())
    }

    fn loudness(pcm: &[i16], from: u64, to: u64) -> u64 {
        pcm[from as usize..to as usize]
            .iter()
            .map(|value| u64::from(value.unsigned_abs()))
            .sum::<u64>()
            / (to - from)
    }

    /// Upward zero crossings in a second give the frequency.
    fn frequency_hz(pcm: &[i16]) -> usize {
        let crossings = pcm
            .windows(2)
            .filter(|pair| pair[0] < 0 && pair[1] >= 0)
            .count();
        crossings * 48_000 / pcm.len()
    }

    #[test]
    fn the_agent_is_left_the_caller_right_and_jitter_leaves_no_holes() {
        let mut recorder = recorder(AudioMixing::DualChannelAgent);
        let mut agent = Sender::new("agent", Kind::Agent, 400.0);
        let mut caller = Sender::new("caller", Kind::Sip, 700.0);
        for tick in 0..100 {
            let now = 4_800 + tick * FRAME;
            recorder
                .packet(&agent.packet(), now + tick % 7 * 300)
                .unwrap();
            recorder
                .packet(&caller.packet(), now + tick % 5 * 700)
                .unwrap();
            recorder.advance(now).unwrap();
        }
        let [left, right] = sides(recorder, 110 * FRAME);
        assert_eq!(left.len() as u64, 110 * FRAME);
        let steady = 9_600..90_000;
        assert!(
            frequency_hz(&left[steady.clone()]).abs_diff(400) < 5,
            "{}",
            frequency_hz(&left[steady.clone()])
        );
        assert!(
            frequency_hz(&right[steady.clone()]).abs_diff(700) < 5,
            "{}",
            frequency_hz(&right[steady])
        );
        assert!((9..90).all(|tenth| loudness(&left, tenth * 1_000, (tenth + 1) * 1_000) > 3_000));
        assert!(loudness(&left, 0, 4_000) < 100);
    }

    #[test]
    fn a_pause_is_as_long_in_the_recording_as_it_was() {
        // The sender's clock stands still during the pause, as some senders' do while they are
        // muted.
        let mut recorder = recorder(AudioMixing::DualChannelAgent);
        let mut caller = Sender::new("caller", Kind::Standard, 500.0);
        for tick in (0..50).chain(150..200) {
            recorder.packet(&caller.packet(), tick * FRAME).unwrap();
            recorder.advance(tick * FRAME).unwrap();
        }
        let [_, right] = sides(recorder, 200 * FRAME);
        assert!(loudness(&right, 2_000, 46_000) > 3_000);
        assert!(loudness(&right, 50_000, 140_000) < 50);
        assert!(loudness(&right, 150_000, 190_000) > 3_000);
    }

    #[test]
    fn a_lost_packet_is_concealed() {
        let mut recorder = recorder(AudioMixing::DualChannelAgent);
        let mut caller = Sender::new("caller", Kind::Standard, 500.0);
        for tick in 0..50 {
            let packet = caller.packet();
            if tick != 25 {
                recorder.packet(&packet, tick * FRAME).unwrap();
            }
        }
        let [_, right] = sides(recorder, 50 * FRAME);
        assert!(
            loudness(&right, 25 * FRAME, 26 * FRAME) > 1_000,
            "{}",
            loudness(&right, 25 * FRAME, 26 * FRAME)
        );
    }

    #[test]
    fn sides_alternate_by_participant_or_everybody_is_on_both() {
        for (mixing, expected) in [
            (
                AudioMixing::DualChannelAlternate,
                [[true, false], [false, true]],
            ),
            (AudioMixing::DefaultMixing, [[true, true], [true, true]]),
        ] {
            let mut recorder = recorder(mixing);
            let mut senders = [
                Sender::new("one", Kind::Standard, 400.0),
                Sender::new("two", Kind::Standard, 700.0),
            ];
            for (index, sender) in senders.iter_mut().enumerate() {
                for tick in 0..50 {
                    recorder
                        .packet(&sender.packet(), (index as u64 * 50 + tick) * FRAME)
                        .unwrap();
                }
            }
            let sides = sides(recorder, 100 * FRAME);
            for (index, heard) in expected.iter().enumerate() {
                let from = index as u64 * 48_000 + 10_000;
                for (side, heard) in heard.iter().enumerate() {
                    assert_eq!(
                        loudness(&sides[side], from, from + 30_000) > 1_000,
                        *heard,
                        "{mixing:?} sender {index} side {side}"
                    );
                }
            }
        }
    }

    #[test]
    fn rubbish_repeats_and_other_recorders_do_no_harm() {
        let mut recorder = recorder(AudioMixing::DualChannelAgent);
        let mut caller = Sender::new("caller", Kind::Standard, 500.0);
        let good = caller.packet();
        recorder.packet(&good, 0).unwrap();
        recorder.packet(&good, FRAME).unwrap();
        let mut rubbish = caller.packet();
        rubbish.payload = vec![0xff; 40].into();
        recorder.packet(&rubbish, FRAME).unwrap();
        rubbish.payload = Vec::new().into();
        recorder.packet(&rubbish, FRAME).unwrap();
        let mut other = Sender::new("EG_1", Kind::Egress, 500.0);
        recorder.packet(&other.packet(), FRAME).unwrap();
        let [left, right] = sides(recorder, 0);
        assert_eq!((left.len() as u64, right.len() as u64), (FRAME, FRAME));
    }
}
