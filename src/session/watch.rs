//! Counts the time during which something was really searched for. Pure: the time is an argument.
//!
//! A limit such as "ten minutes, then go on without it" means ten minutes in which scans were made.
//! Measured from the end of a call it may have passed before the first scan: the record is a year
//! old, the worker was down for a day, the clock jumped. So only the time between scans counts
//! against a limit, and of a long gap only a part.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::time;

/// Of the time between two scans, at most this counts, or twice the planned pause if that is
/// longer.
const LONGEST_GAP: TimeDelta = TimeDelta::hours(1);
/// No planned pause counts for more than this, whatever time a file contains.
const LONGEST_PAUSE: TimeDelta = TimeDelta::hours(24);
/// Time that ended with a blind scan (one that got no answer) does not count against the final
/// limit, up to this many times that limit: a server that never answers must not be waited for
/// without end.
const BLIND_LIMITS: u32 = 6;

/// The scans for one thing, summed up for limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    /// Time of the first scan.
    #[serde(with = "time::option")]
    pub first_scan: Option<DateTime<Utc>>,
    /// Time of the latest scan.
    #[serde(with = "time::option")]
    pub last_scan: Option<DateTime<Utc>>,
    /// Milliseconds that count against limits.
    pub watched_ms: u64,
    /// The part of these milliseconds that ended with a blind scan, because a server did not answer
    /// for example.
    #[serde(skip_serializing_if = "is_zero")]
    pub blind_ms: u64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl Watch {
    /// The watch after a scan at `now` that was planned for `planned`. `could_see` is false for a
    /// blind scan.
    #[must_use]
    pub fn looked(
        self,
        now: DateTime<Utc>,
        planned: Option<DateTime<Utc>>,
        could_see: bool,
    ) -> Self {
        let counts = match self.last_scan {
            Some(last) => {
                let pause = planned.map_or(TimeDelta::zero(), |planned| planned - last);
                let longest = (pause.min(LONGEST_PAUSE) * 2).max(LONGEST_GAP);
                // If the clock was set back, the real time is unknown.
                (now - last).clamp(TimeDelta::zero(), longest)
            }
            None => TimeDelta::zero(),
        };
        let counts = u64::try_from(counts.num_milliseconds()).unwrap_or_default();
        Self {
            first_scan: self.first_scan.or(Some(now)),
            last_scan: Some(now),
            watched_ms: self.watched_ms.saturating_add(counts),
            blind_ms: self
                .blind_ms
                .saturating_add(if could_see { 0 } else { counts }),
        }
    }

    /// The time that counts against a limit on waiting.
    pub fn watched(self) -> Duration {
        Duration::from_millis(self.watched_ms)
    }

    /// The time without that of blind scans.
    pub fn seen(self) -> Duration {
        Duration::from_millis(self.watched_ms.saturating_sub(self.blind_ms))
    }

    /// What is left of the limit after which the search ends. Blind scans count only once there are
    /// very many.
    pub fn left_to_give_up(self, limit: Duration) -> Duration {
        let blind = Duration::from_millis(self.blind_ms).min(limit.saturating_mul(BLIND_LIMITS));
        limit.saturating_sub(self.watched().saturating_sub(blind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(second)
    }

    /// The seconds that count after these scans: (second of the scan, planned pause before it in
    /// seconds).
    fn watched(scans: &[(i64, i64)]) -> u64 {
        let mut watch = Watch::default();
        for (second, pause) in scans {
            let planned = watch
                .last_scan
                .map(|last| last + TimeDelta::seconds(*pause));
            watch = watch.looked(at(*second), planned, true);
        }
        watch.watched().as_secs()
    }

    #[test]
    fn only_time_between_scans_counts() {
        const DAY: i64 = 86_400;
        for (scans, expected) in [
            // At the first scan nothing counts, however old the call is.
            (vec![(0, 0)], 0),
            (vec![(365 * DAY, 0)], 0),
            (vec![(0, 0), (1, 1), (31, 30), (61, 30)], 61),
            // A gap of a day.
            (vec![(0, 0), (DAY, 30)], 3600),
            (vec![(0, 0), (DAY, 30), (DAY + 5, 5)], 3605),
            // Planned gaps.
            (vec![(0, 0), (3600, 3600), (7200, 3600)], 7200),
            (vec![(0, 0), (DAY, 3600)], 7200),
            // The clock was set back, or jumped ahead by years.
            (vec![(DAY, 0), (0, 30), (30, 30)], 30),
            (vec![(0, 0), (56 * 365 * DAY, 30)], 3600),
            // A file contains a pause of a thousand years.
            (vec![(0, 0), (3 * DAY, 365_000 * DAY)], 2 * DAY as u64),
        ] {
            assert_eq!(watched(&scans), expected, "{scans:?}");
        }
    }

    #[test]
    fn blind_scans_do_not_end_a_search_until_there_are_very_many() {
        let limit = Duration::from_secs(100);
        let mut watch = Watch::default().looked(at(0), None, true);
        watch = watch.looked(at(60), None, true);
        assert_eq!(watch.left_to_give_up(limit).as_secs(), 40);
        watch = watch.looked(at(460), None, false);
        assert_eq!(watch.left_to_give_up(limit).as_secs(), 40);
        assert_eq!(
            (watch.watched().as_secs(), watch.seen().as_secs()),
            (460, 60)
        );
        watch = watch.looked(at(500), None, true);
        assert_eq!(watch.left_to_give_up(limit), Duration::ZERO);

        let mut blind = Watch::default();
        let mut scans = 0;
        while blind.left_to_give_up(limit) > Duration::ZERO {
            scans += 1;
            blind = blind.looked(at(scans * 10), None, false);
        }
        assert_eq!(scans, 71);
    }

    proptest! {
        /// For any clock and any file: no panic, and the counted time never decreases.
        #[test]
        fn what_has_counted_stays(
            scans in prop::collection::vec((any::<i32>(), prop::option::of(any::<i32>()), any::<bool>()), 0..40),
            watched_ms in any::<u64>(), blind_ms in any::<u64>(), limit in 0_u64..10_000_000,
        ) {
            let mut watch = Watch { watched_ms, blind_ms, ..Watch::default() };
            for (second, planned, could_see) in scans {
                let next = watch.looked(at(second.into()), planned.map(|second| at(second.into())), could_see);
                prop_assert!(next.watched() >= watch.watched());
                let limit = Duration::from_secs(limit);
                prop_assert!(next.left_to_give_up(limit) <= limit);
                watch = next;
            }
        }
    }
}
