//! Splits redundant audio (RFC 2198) for subscribers that have not negotiated it, as the real
//! server does (`pkg/sfu/redprimaryreceiver.go`): they get the packets themselves, and those lost
//! on the way to the server from their copies.

use std::sync::Arc;

use str0m::rtp::RedDecoder;

/// Copies further back than this are ignored; the real server's number.
const MAX_DISTANCE: u64 = 2;
/// For how many packets back the arrival is remembered.
const HISTORY: u64 = 64;

/// The packets in a redundant payload that have not come before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Unwrapped {
    /// Lost packets, the oldest first: how many packets and how many units of the RTP clock before
    /// the one that brought them, and their payload.
    pub recovered: Vec<(u64, u32, Arc<[u8]>)>,
    /// The packet itself, unless a copy of it was forwarded already.
    pub primary: Option<Arc<[u8]>>,
}

/// Remembers which packets of one stream were forwarded.
#[derive(Debug, Default)]
pub(crate) struct Unwrapper {
    highest: Option<u64>,
    /// One bit for each packet, from the highest number downwards: whether it was forwarded.
    seen: u64,
}

impl Unwrapper {
    /// Splits a payload; `None` for one that is malformed, as those of an encrypted track are.
    pub fn take(&mut self, sequence: u64, payload: &[u8]) -> Option<Unwrapped> {
        let mut blocks = RedDecoder::decode(payload).ok()?;
        let primary = blocks.pop()?;
        if self.highest.is_none() {
            // Nothing but this packet is new.
            self.note(sequence);
            self.seen = !1;
        }
        let mut unwrapped = Unwrapped::default();
        for (distance, copy) in (1..=MAX_DISTANCE).zip(blocks.iter().rev()) {
            let Some(earlier) = sequence.checked_sub(distance) else {
                break;
            };
            let usable = copy.pt == primary.pt && !copy.payload.is_empty();
            if usable && self.is_new(earlier) {
                let copy = (distance, copy.timestamp_offset, copy.payload.into());
                unwrapped.recovered.insert(0, copy);
            }
        }
        for (distance, ..) in &unwrapped.recovered {
            self.note(sequence - distance);
        }
        if self.is_new(sequence) {
            unwrapped.primary = Some(primary.payload.into());
            self.note(sequence);
        }
        Some(unwrapped)
    }

    /// Notes a packet that has no copies.
    pub fn note(&mut self, sequence: u64) {
        let highest = *self.highest.get_or_insert_with(|| {
            // Packets before the first one are not counted as lost.
            self.seen = u64::MAX;
            sequence
        });
        if sequence > highest {
            self.seen = u32::try_from(sequence - highest)
                .ok()
                .and_then(|ahead| self.seen.checked_shl(ahead))
                .unwrap_or(0);
            self.highest = Some(sequence);
        }
        let back = self.highest.unwrap_or(sequence) - sequence;
        if back < HISTORY {
            self.seen |= 1 << back;
        }
    }

    /// Packets older than the memory count as known.
    fn is_new(&self, sequence: u64) -> bool {
        match self.highest {
            Some(highest) if sequence <= highest => {
                let back = highest - sequence;
                back < HISTORY && self.seen >> back & 1 == 0
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use str0m::rtp::{RedEncoder, RedundantBlock};

    use super::*;

    /// A packet of the number, with copies of the ones before; each payload is the packet's number.
    fn packet(sequence: u8, copies: u8) -> Vec<u8> {
        let copies: Vec<_> = (1..=copies)
            .rev()
            .map(|distance| RedundantBlock {
                pt: 111,
                timestamp_offset: u32::from(distance) * 960,
                payload: vec![sequence - distance],
            })
            .collect();
        RedEncoder::encode(111, &[sequence], &copies)
    }

    #[test]
    fn what_was_lost_goes_on_once_and_in_order() {
        let mut unwrapper = Unwrapper::default();
        // The number of a packet, its copies, and what is forwarded.
        for (sequence, copies, expected) in [
            (10, 2, vec![10]),
            (11, 2, vec![11]),
            (13, 2, vec![12, 13]),
            (12, 2, vec![]),
            (16, 2, vec![14, 15, 16]),
            (19, 1, vec![18, 19]),
            (17, 1, vec![17]),
            (19, 1, vec![]),
            (120, 1, vec![119, 120]),
            (20, 0, vec![]),
        ] {
            let unwrapped = unwrapper
                .take(sequence.into(), &packet(sequence, copies))
                .expect("well formed");
            let went_on: Vec<u8> = unwrapped
                .recovered
                .iter()
                .map(|(.., payload)| payload)
                .chain(&unwrapped.primary)
                .map(|payload| payload[0])
                .collect();
            assert_eq!(went_on, expected, "{sequence}");
            for (distance, offset, payload) in unwrapped.recovered {
                assert_eq!(u64::from(payload[0]), u64::from(sequence) - distance);
                assert_eq!(u64::from(offset), distance * 960);
            }
        }
        assert_eq!(unwrapper.take(121, &packet(121, 1)[..3]), None);
    }
}
