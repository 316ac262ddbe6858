//! Numbering of forwarded packets: continuous for the subscriber, whatever the publishers' numbers
//! are.
//!
//! A subscriber's stream keeps its SSRC when another track replaces it, so sequence numbers and
//! timestamps must go on where they were. Gaps in the publisher's numbers stay gaps: they are loss
//! that the subscriber should know of and conceal.

use tokio::time::Instant;

/// Opus runs on a clock of 48 kHz whatever it carries (RFC 7587, 4.1).
const CLOCK_HZ: u32 = 48_000;
/// Where numbering starts. Far from zero, so that late packets do not fall below it.
const FIRST_SEQUENCE: u64 = 1000;
/// Larger jumps mean a new stream, not loss.
const MAX_JUMP: u64 = 3000;

/// The numbers of a packet for the subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub sequence: u64,
    pub timestamp: u32,
}

/// The numbering of one outgoing stream.
#[derive(Debug, Default)]
pub(crate) struct Renumbering {
    source: Option<Source>,
    last: Option<Last>,
}

#[derive(Debug)]
struct Source {
    track_sid: std::sync::Arc<str>,
    in_base: u64,
    in_highest: u64,
    out_base: u64,
    timestamp_offset: u32,
}

#[derive(Debug)]
struct Last {
    numbers: Numbers,
    at: Instant,
}

impl Renumbering {
    /// Numbers a packet. `None` when it is older than the first packet of this track that the
    /// subscriber got.
    pub fn next(
        &mut self,
        track_sid: &std::sync::Arc<str>,
        sequence: u64,
        timestamp: u32,
        now: Instant,
    ) -> Option<Numbers> {
        let continues = self.source.as_ref().is_some_and(|source| {
            source.track_sid == *track_sid && sequence.abs_diff(source.in_highest) <= MAX_JUMP
        });
        if !continues {
            self.source = Some(self.begin(track_sid, sequence, timestamp, now));
        }
        let source = self.source.as_mut()?;
        let numbers = Numbers {
            sequence: source.out_base + sequence.checked_sub(source.in_base)?,
            timestamp: timestamp.wrapping_add(source.timestamp_offset),
        };
        source.in_highest = source.in_highest.max(sequence);
        if self
            .last
            .as_ref()
            .is_none_or(|last| numbers.sequence > last.numbers.sequence)
        {
            self.last = Some(Last { numbers, at: now });
        }
        Some(numbers)
    }

    fn begin(
        &self,
        track_sid: &std::sync::Arc<str>,
        sequence: u64,
        timestamp: u32,
        now: Instant,
    ) -> Source {
        let (out_base, out_timestamp) = match &self.last {
            None => (FIRST_SEQUENCE, timestamp),
            Some(last) => {
                let elapsed =
                    now.saturating_duration_since(last.at).as_secs_f64() * f64::from(CLOCK_HZ);
                (
                    last.numbers.sequence + 1,
                    last.numbers.timestamp.wrapping_add(elapsed as u64 as u32),
                )
            }
        };
        Source {
            track_sid: std::sync::Arc::clone(track_sid),
            in_base: sequence,
            in_highest: sequence,
            out_base,
            timestamp_offset: out_timestamp.wrapping_sub(timestamp),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn loss_stays_visible_and_order_is_kept() {
        let (track, now) = (Arc::from("TR_a"), Instant::now());
        let mut numbering = Renumbering::default();
        let mut sequence = |incoming| {
            numbering
                .next(&track, incoming, 0, now)
                .map(|numbers| numbers.sequence)
        };
        assert_eq!(sequence(70_000), Some(1000));
        assert_eq!(sequence(70_003), Some(1003));
        assert_eq!(
            sequence(70_001),
            Some(1001),
            "a late packet takes its place"
        );
        assert_eq!(sequence(69_999), None, "older than the beginning");
    }

    #[test]
    fn another_track_goes_on_where_the_first_one_stopped() {
        let now = Instant::now();
        let mut numbering = Renumbering::default();
        numbering.next(&Arc::from("TR_a"), 5, 96_000, now);
        let numbers = numbering
            .next(
                &Arc::from("TR_b"),
                9000,
                7,
                now + Duration::from_millis(500),
            )
            .expect("the first packet of a track is never too old");
        assert_eq!(
            numbers,
            Numbers {
                sequence: 1001,
                timestamp: 96_000 + 24_000
            }
        );
    }

    #[test]
    fn a_publisher_that_starts_again_elsewhere_is_followed() {
        let (track, now) = (Arc::from("TR_a"), Instant::now());
        let mut numbering = Renumbering::default();
        numbering.next(&track, 50_000, 0, now);
        let numbers = numbering.next(&track, 12, 0, now).expect("a new beginning");
        assert_eq!(numbers.sequence, 1001);
    }
}
