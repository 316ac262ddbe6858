//! Redundant audio (RFC 2198), as it is used for Opus: each packet also carries a copy of the one
//! before.
//!
//! Knows blocks and timestamps; which sequence number a block had is for the jitter buffer to find
//! out, which knows what is missing.

use str0m::rtp::{RedDecoder, RedEncoder, RedundantBlock};

use super::encoder::EncodedAudio;

/// Payloads of this length and more do not fit the ten bits of a block's length (RFC 2198, section
/// 3). They are sent as they are.
const UNWRAPPABLE_BYTES: usize = 1 << 10;

/// A timestamp that is so much older does not fit the fourteen bits of a block's offset; at 48 kHz
/// that is a third of a second. Only a packet from before a pause (DTX) is that old, and it is not
/// needed any more.
const MAX_OFFSET: u32 = (1 << 14) - 1;

/// The longest redundant payload. Google's engine allows 1200 bytes for a packet on the wire; the
/// RTP header with its extensions, the SRTP tag and the trailer of end-to-end encryption are at
/// most 72 of them.
const MAX_RED_BYTES: usize = 1200 - 72;

/// Header of a redundant block and of the primary one, in bytes.
const HEADERS_BYTES: usize = 4 + 1;

/// A copy of an earlier packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Redundant<'a> {
    /// By how much its RTP timestamp is before that of the packet that carries it.
    pub timestamp_offset: u32,
    pub payload: &'a [u8],
}

/// What a redundant payload holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unwrapped<'a> {
    /// Copies of earlier packets, the oldest first.
    pub redundant: Vec<Redundant<'a>>,
    /// The packet itself.
    pub primary: &'a [u8],
}

/// Splits a redundant payload into its blocks; `None` if it is malformed or its primary block is
/// not Opus. Other copies and empty ones are left out.
pub(crate) fn unwrap(payload: &[u8], opus_payload_type: u8) -> Option<Unwrapped<'_>> {
    let mut blocks = RedDecoder::decode(payload).ok()?;
    let primary = blocks.pop()?;
    if primary.pt != opus_payload_type {
        return None;
    }
    let is_copy =
        |pt, offset, payload: &[u8]| pt == opus_payload_type && offset > 0 && !payload.is_empty();
    let mut redundant: Vec<_> = blocks
        .iter()
        .filter(|block| is_copy(block.pt, block.timestamp_offset, block.payload))
        .map(|block| Redundant {
            timestamp_offset: block.timestamp_offset,
            payload: block.payload,
        })
        .collect();
    redundant.sort_by_key(|block| std::cmp::Reverse(block.timestamp_offset));
    Some(Unwrapped {
        redundant,
        primary: primary.payload,
    })
}

/// Adds the packet before to each packet of a stream, as Google's engine does by default.
#[derive(Debug)]
pub(crate) struct RedWrapper {
    opus_payload_type: u8,
    /// Timestamp and payload of the last packet, if it can be sent again.
    previous: Option<(u32, Vec<u8>)>,
}

impl RedWrapper {
    pub fn new(opus_payload_type: u8) -> Self {
        Self {
            opus_payload_type,
            previous: None,
        }
    }

    /// The redundant payload for a packet; `None` for one that is too long and has to be sent as
    /// plain Opus.
    pub fn wrap(&mut self, packet: &EncodedAudio) -> Option<Vec<u8>> {
        if packet.payload.len() >= UNWRAPPABLE_BYTES {
            self.previous = None;
            return None;
        }
        let current = (packet.rtp_timestamp, packet.payload.clone());
        let previous = self.previous.replace(current).filter(|(timestamp, copy)| {
            packet.rtp_timestamp.wrapping_sub(*timestamp) <= MAX_OFFSET
                && HEADERS_BYTES + copy.len() + packet.payload.len() <= MAX_RED_BYTES
        });
        let redundant: Vec<_> = previous
            .map(|(timestamp, payload)| RedundantBlock {
                pt: self.opus_payload_type,
                timestamp_offset: packet.rtp_timestamp.wrapping_sub(timestamp),
                payload,
            })
            .into_iter()
            .collect();
        Some(RedEncoder::encode(
            self.opus_payload_type,
            &packet.payload,
            &redundant,
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPUS: u8 = 111;

    fn packet(rtp_timestamp: u32, bytes: usize) -> EncodedAudio {
        EncodedAudio {
            payload: vec![rtp_timestamp as u8; bytes],
            rtp_timestamp,
            marker: false,
            audio_level_dbov: -30,
            voice_activity: true,
            narrow: false,
        }
    }

    /// Offset and length of the copies, and the length of the packet itself.
    fn lengths(payload: &[u8]) -> Option<(Vec<(u32, usize)>, usize)> {
        let unwrapped = unwrap(payload, OPUS)?;
        let copies = unwrapped.redundant.iter();
        let copies = copies.map(|copy| (copy.timestamp_offset, copy.payload.len()));
        Some((copies.collect(), unwrapped.primary.len()))
    }

    #[test]
    fn payloads_are_taken_apart_as_the_standard_says() {
        let block = |pt: u8, offset: u32, len: u32| {
            let [_, a, b, c] = (offset << 10 | len).to_be_bytes();
            vec![0x80 | pt, a, b, c]
        };
        let whole = |headers: &[Vec<u8>], bytes: usize| {
            let mut payload = headers.concat();
            payload.resize(payload.len() + bytes, 7);
            payload
        };
        let primary = vec![OPUS];
        for (name, payload, expected) in [
            ("nothing", vec![], None),
            (
                "a packet alone",
                whole(std::slice::from_ref(&primary), 3),
                Some((vec![], 3)),
            ),
            (
                "padding",
                whole(std::slice::from_ref(&primary), 0),
                Some((vec![], 0)),
            ),
            (
                "one copy",
                whole(&[block(OPUS, 960, 4), primary.clone()], 4 + 5),
                Some((vec![(960, 4)], 5)),
            ),
            (
                "two copies",
                whole(
                    &[block(OPUS, 1920, 2), block(OPUS, 960, 1), primary.clone()],
                    2 + 1 + 5,
                ),
                Some((vec![(1920, 2), (960, 1)], 5)),
            ),
            (
                "the largest copy",
                whole(&[block(OPUS, MAX_OFFSET, 1023), primary.clone()], 1023 + 1),
                Some((vec![(MAX_OFFSET, 1023)], 1)),
            ),
            (
                "copies out of order",
                whole(
                    &[block(OPUS, 960, 1), block(OPUS, 1920, 2), primary.clone()],
                    2 + 1 + 5,
                ),
                Some((vec![(1920, 2), (960, 1)], 5)),
            ),
            (
                "a copy of comfort noise and an empty one",
                whole(
                    &[block(13, 1920, 2), block(OPUS, 960, 0), primary.clone()],
                    2 + 5,
                ),
                Some((vec![], 5)),
            ),
            ("no last header", block(OPUS, 960, 0), None),
            ("half a header", vec![0x80 | OPUS, 1], None),
            (
                "less than it says",
                whole(&[block(OPUS, 960, 10), primary.clone()], 9),
                None,
            ),
            ("a telephone event", whole(&[vec![126]], 4), None),
        ] {
            assert_eq!(lengths(&payload), expected, "{name}");
        }
    }

    #[test]
    fn each_packet_carries_the_one_before_if_that_fits() {
        let mut wrapper = RedWrapper::new(OPUS);
        for (name, timestamp, bytes, expected) in [
            ("the first", 0, 80, Some((vec![], 80))),
            ("the second", 960, 90, Some((vec![(960, 80)], 90))),
            (
                "after 340 ms of silence",
                17_280,
                70,
                Some((vec![(16_320, 90)], 70)),
            ),
            ("after more silence", 34_560, 60, Some((vec![], 60))),
            (
                "as much as fits",
                35_520,
                1_023,
                Some((vec![(960, 60)], 1_023)),
            ),
            ("too much together", 36_480, 200, Some((vec![], 200))),
            ("too long for a block", 37_440, 1_024, None),
            (
                "after one that cannot be copied",
                38_400,
                80,
                Some((vec![], 80)),
            ),
            ("back to normal", 39_360, 80, Some((vec![(960, 80)], 80))),
        ] {
            let wrapped = wrapper.wrap(&packet(timestamp, bytes));
            assert!(
                wrapped.iter().all(|payload| payload.len() <= MAX_RED_BYTES),
                "{name}"
            );
            assert_eq!(
                wrapped.map(|payload| lengths(&payload).expect(name)),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn timestamps_that_wrap_around_are_no_hindrance() {
        let mut wrapper = RedWrapper::new(OPUS);
        wrapper.wrap(&packet(u32::MAX - 59, 10));
        let second = wrapper.wrap(&packet(900, 20)).expect("short enough");
        assert_eq!(lengths(&second), Some((vec![(960, 10)], 20)));
    }

    proptest! {
        /// Any payload is split or refused, and what is returned lies within it.
        #[test]
        fn arbitrary_bytes_are_harmless(payload in prop::collection::vec(any::<u8>(), 0..1500), opus in 0u8..128) {
            if let Some(unwrapped) = unwrap(&payload, opus) {
                let copies: usize = unwrapped.redundant.iter().map(|copy| copy.payload.len()).sum();
                prop_assert!(copies + 4 * unwrapped.redundant.len() + 1 + unwrapped.primary.len() <= payload.len());
                prop_assert!(unwrapped.redundant.is_sorted_by(|a, b| a.timestamp_offset >= b.timestamp_offset));
            }
        }

        /// Bytes that begin like a redundant payload get further than arbitrary ones.
        #[test]
        fn nearly_good_bytes_are_harmless(headers in prop::collection::vec((0u32..1 << 14, 0u32..40), 0..40), rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut payload = vec![];
            for (offset, len) in &headers {
                let [_, a, b, c] = (offset << 10 | len).to_be_bytes();
                payload.extend([0x80 | OPUS, a, b, c]);
            }
            payload.push(OPUS);
            payload.extend(&rest);
            let wanted: usize = headers.iter().map(|(_, len)| *len as usize).sum();
            let unwrapped = unwrap(&payload, OPUS);
            // A payload with more than 32 copies is refused: no sender makes one, and parsing it
            // would cost time.
            prop_assert_eq!(unwrapped.is_some(), wanted <= rest.len() && headers.len() <= 32);
        }

        #[test]
        fn what_was_wrapped_comes_back(sizes in prop::collection::vec((1usize..1300, 1u32..30), 1..20), first in any::<u32>()) {
            let mut wrapper = RedWrapper::new(OPUS);
            let mut timestamp = first;
            let mut before: Option<EncodedAudio> = None;
            for (size, frames) in sizes {
                timestamp = timestamp.wrapping_add(frames * 960);
                let packet = packet(timestamp, size);
                let wrapped = wrapper.wrap(&packet);
                prop_assert_eq!(wrapped.is_none(), size >= 1024);
                if let Some(wrapped) = wrapped {
                    let unwrapped = unwrap(&wrapped, OPUS).expect("our own");
                    prop_assert_eq!(unwrapped.primary, &packet.payload[..]);
                    for copy in unwrapped.redundant {
                        let before = before.as_ref().expect("there was one");
                        prop_assert_eq!(copy.payload, &before.payload[..]);
                        prop_assert_eq!(copy.timestamp_offset, timestamp.wrapping_sub(before.rtp_timestamp));
                    }
                }
                before = Some(packet);
            }
        }
    }
}
