//! Whether sound arrives from the caller at all. Silence arrives as packets too; when none come,
//! nobody can be heard, whatever they say.
//!
//! Pure: counts and the time are arguments.

use std::time::Duration;

use tokio::time::Instant;

/// How long no packet may come before that is odd: longer than any burst of loss, and than the
/// pause of a telephone that is handed over.
const MISSING_AFTER: Duration = Duration::from_secs(5);

/// How long no packet may come before nobody is asked any more whether they are there: longer than
/// a burst of loss.
const SOUNDLESS_AFTER: Duration = Duration::from_secs(2);

/// What is known of the caller's packets at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packets {
    /// So many have come on the caller's track.
    Came(u64),
    /// The caller publishes no sound.
    NoTrack,
    /// None are to be expected, or they cannot be counted: the caller has muted the microphone, or
    /// the engine does not tell.
    Excused,
}

/// What a look at the packets has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaNews {
    /// Nothing new.
    Nothing,
    /// No packet has come for a while.
    Missing,
    /// After that, some have come again.
    Back,
    /// None has come for as long as a call may last without.
    GivenUp,
}

/// The watch over one caller's packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaWatch {
    limit: Option<Duration>,
    packets: u64,
    last: Instant,
    ever: bool,
    told: bool,
}

impl MediaWatch {
    /// A watch that begins now. It gives up after `limit` without a packet; `None`: never.
    pub fn new(now: Instant, limit: Option<Duration>) -> Self {
        Self {
            limit,
            packets: 0,
            last: now,
            ever: false,
            told: false,
        }
    }

    /// Takes a count.
    pub fn poll(&mut self, now: Instant, packets: Packets) -> MediaNews {
        let arrives = match packets {
            // Another track begins at zero.
            Packets::Came(count) => {
                std::mem::replace(&mut self.packets, count) != count && count > 0
            }
            Packets::NoTrack => false,
            Packets::Excused => {
                self.last = now;
                return MediaNews::Nothing;
            }
        };
        if arrives {
            self.last = now;
            self.ever = true;
            return match std::mem::take(&mut self.told) {
                true => MediaNews::Back,
                false => MediaNews::Nothing,
            };
        }
        let missing = self.missing_for(now);
        if self.limit.is_some_and(|limit| missing >= limit) {
            MediaNews::GivenUp
        } else if missing >= MISSING_AFTER && !std::mem::replace(&mut self.told, true) {
            MediaNews::Missing
        } else {
            MediaNews::Nothing
        }
    }

    /// How long no packet has come.
    pub fn missing_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last)
    }

    /// Whether that is odd.
    pub fn is_missing(&self, now: Instant) -> bool {
        self.missing_for(now) >= MISSING_AFTER
    }

    /// Whether the caller could not be heard now, whatever they said.
    pub fn is_soundless(&self, now: Instant) -> bool {
        self.missing_for(now) >= SOUNDLESS_AFTER
    }

    /// Whether any packet has ever come.
    pub fn ever(&self) -> bool {
        self.ever
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 15;

    /// What a poll each second tells, with the second; `packets` from the first second on.
    fn news(packets: impl IntoIterator<Item = Packets>) -> Vec<(u64, MediaNews)> {
        let start = Instant::now();
        let mut watch = MediaWatch::new(start, Some(Duration::from_secs(LIMIT)));
        let polls = (1..).zip(packets);
        polls
            .map(|(second, packets)| {
                let now = start + Duration::from_secs(second);
                (second, watch.poll(now, packets))
            })
            .filter(|(_, news)| *news != MediaNews::Nothing)
            .collect()
    }

    fn coming(seconds: u64) -> impl Iterator<Item = Packets> {
        (1..=seconds).map(|second| Packets::Came(50 * second))
    }

    fn standing(packets: Packets, seconds: usize) -> impl Iterator<Item = Packets> {
        std::iter::repeat_n(packets, seconds)
    }

    #[test]
    fn packets_that_come_are_no_news_even_when_they_are_silence() {
        assert_eq!(news(coming(120)), []);
    }

    #[test]
    fn a_caller_who_never_sends_is_told_of_and_given_up() {
        use MediaNews::{GivenUp, Missing};
        for none in [Packets::NoTrack, Packets::Came(0)] {
            assert_eq!(news(standing(none, 15)), [(5, Missing), (15, GivenUp)]);
        }
    }

    #[test]
    fn sound_that_stops_counts_from_its_last_packet() {
        use MediaNews::{Back, GivenUp, Missing};
        let stops = coming(30).chain(standing(Packets::Came(1500), 15));
        assert_eq!(news(stops), [(35, Missing), (45, GivenUp)]);
        let pauses = coming(30)
            .chain(standing(Packets::Came(1500), 10))
            .chain(standing(Packets::Came(1550), 1));
        assert_eq!(news(pauses), [(35, Missing), (41, Back)]);
        // Another track, which has sent less than the one before.
        let replaced = coming(30)
            .chain(standing(Packets::NoTrack, 10))
            .chain(coming(1));
        assert_eq!(news(replaced), [(35, Missing), (41, Back)]);
    }

    #[test]
    fn a_muted_microphone_is_excused_as_long_as_it_is_muted() {
        let muted = coming(2)
            .chain(standing(Packets::Excused, 600))
            .chain(standing(Packets::Came(100), 15));
        assert_eq!(
            news(muted),
            [(607, MediaNews::Missing), (617, MediaNews::GivenUp)]
        );
    }

    #[test]
    fn without_a_limit_it_is_only_told_of() {
        let start = Instant::now();
        let mut watch = MediaWatch::new(start, None);
        let late = start + Duration::from_secs(3600);
        assert_eq!(watch.poll(late, Packets::NoTrack), MediaNews::Missing);
        assert_eq!(watch.poll(late, Packets::NoTrack), MediaNews::Nothing);
        assert!(watch.is_missing(late) && !watch.ever());
    }
}
