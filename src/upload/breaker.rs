//! The circuit breaker in front of each kind of request to the CRM: when many in a row have failed,
//! or a few were turned away at the door, no further records are tried for a while, then one, then
//! more and more. Pure: it is told the time and what happened.
//!
//! It is about the CRM as a whole, but recordings and call data have one each: a CRM that takes the
//! one may not take the other. Each record has its own pauses beside it, which are on disk; the
//! breaker lives as long as the process, because a new one finds out within a few requests.

use std::time::{Duration, Instant};

use super::policy::Backoff;

/// What makes it open, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Failures in a row that open it.
    pub failures: u32,
    /// Its pauses.
    pub backoff: Backoff,
    /// Deliveries at a time at which it counts as closed again.
    pub full: usize,
}

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything may go.
    Closed,
    /// Some deliveries may go, one more after each success.
    HalfOpen,
    /// Nothing may go.
    Open,
}

impl BreakerState {
    /// Every state, for those who show which one it is.
    pub const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// A change that somebody should hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerChange {
    /// It opened for so long.
    Opened(Duration),
    /// One delivery may go and find out.
    Probing,
    /// All is well again.
    Closed,
}

#[derive(Debug, Clone, Copy)]
enum Inside {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { allowed: usize },
}

/// See the module.
#[derive(Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    inside: Inside,
    /// How often it opened since it was last closed.
    openings: u32,
    /// The longest time to wait that the CRM has asked for in this row of failures.
    asked_for: Option<Duration>,
}

impl Breaker {
    /// A closed one.
    pub fn new(settings: BreakerSettings) -> Self {
        Self {
            settings,
            inside: Inside::Closed { failures: 0 },
            openings: 0,
            asked_for: None,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> BreakerState {
        match self.inside {
            Inside::Closed { .. } => BreakerState::Closed,
            Inside::Open { .. } => BreakerState::Open,
            Inside::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// When it is worth asking again; nothing unless it is open.
    pub fn opens_until(&self) -> Option<Instant> {
        match self.inside {
            Inside::Open { until } => Some(until),
            _ => None,
        }
    }

    /// Lets a probe go when the pause is over. To be called before [`Breaker::allowed`] is asked.
    pub fn tick(&mut self, now: Instant) -> Option<BreakerChange> {
        match self.inside {
            Inside::Open { until } if now >= until => {
                self.inside = Inside::HalfOpen { allowed: 1 };
                Some(BreakerChange::Probing)
            }
            _ => None,
        }
    }

    /// How many deliveries may be in progress.
    pub fn allowed(&self) -> usize {
        match self.inside {
            Inside::Closed { .. } => usize::MAX,
            Inside::Open { .. } => 0,
            Inside::HalfOpen { allowed } => allowed,
        }
    }

    /// The CRM has answered with anything but "later".
    pub fn succeeded(&mut self) -> Option<BreakerChange> {
        match self.inside {
            Inside::Closed { ref mut failures } => {
                *failures = 0;
                self.asked_for = None;
                None
            }
            // A request from before it opened has come through: as good as a probe.
            Inside::Open { .. } => {
                self.inside = Inside::HalfOpen { allowed: 1 };
                Some(BreakerChange::Probing)
            }
            // All that wait would come at once and be the next outage, so they come back little by
            // little.
            Inside::HalfOpen { allowed } if allowed < self.settings.full => {
                self.inside = Inside::HalfOpen {
                    allowed: allowed + 1,
                };
                None
            }
            Inside::HalfOpen { .. } => {
                *self = Self::new(self.settings);
                Some(BreakerChange::Closed)
            }
        }
    }

    /// There was no answer, or one that says "later", perhaps with a time. `random` is 0 to 1.
    pub fn failed(
        &mut self,
        now: Instant,
        asked_for: Option<Duration>,
        random: f64,
    ) -> Option<BreakerChange> {
        self.asked_for = self.asked_for.max(asked_for);
        match self.inside {
            // Requests from before it opened come to their ends.
            Inside::Open { .. } => return None,
            Inside::Closed { ref mut failures } => {
                *failures += 1;
                if *failures < self.settings.failures {
                    return None;
                }
            }
            Inside::HalfOpen { .. } => {}
        }
        self.openings = self.openings.saturating_add(1);
        let backoff = self.settings.backoff;
        let asked_for = self.asked_for.take().unwrap_or_default();
        let pause = backoff
            .pause(self.openings, random, None)
            .max(asked_for.min(backoff.max));
        self.inside = Inside::Open { until: now + pause };
        Some(BreakerChange::Opened(pause))
    }
}

impl Breaker {
    /// A request was turned away at the door, whatever was in it. Three of them are as good as a
    /// whole row of failures; one alone may have to do with its record after all.
    pub fn turned_away(&mut self, now: Instant, random: f64) -> Option<BreakerChange> {
        if let Inside::Closed { failures } = &mut self.inside {
            *failures += self.settings.failures.div_ceil(3) - 1;
        }
        self.failed(now, None, random)
    }

    /// The CRM is back, as another kind of request has found: one delivery may go and find out for
    /// this kind, too.
    pub fn nudge(&mut self) -> Option<BreakerChange> {
        match self.inside {
            Inside::Open { .. } => {
                self.inside = Inside::HalfOpen { allowed: 1 };
                Some(BreakerChange::Probing)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FULL: usize = 8;

    fn breaker() -> Breaker {
        Breaker::new(BreakerSettings {
            failures: 3,
            backoff: Backoff {
                first: Duration::from_secs(4),
                max: Duration::from_secs(60),
            },
            full: FULL,
        })
    }

    #[test]
    fn one_bad_record_among_good_ones_opens_nothing() {
        let (mut breaker, now) = (breaker(), Instant::now());
        for _ in 0..100 {
            assert_eq!(breaker.failed(now, None, 1.0), None);
            assert_eq!(breaker.failed(now, None, 1.0), None);
            assert_eq!(breaker.succeeded(), None);
        }
        assert_eq!(breaker.allowed(), usize::MAX);
    }

    #[test]
    fn an_outage_costs_one_probe_a_minute_and_ends_little_by_little() {
        let (mut breaker, mut now) = (breaker(), Instant::now());
        let day = Duration::from_secs(24 * 3600);
        let end = now + day;
        let mut requests = 0;
        let mut pauses = Vec::new();
        while now < end {
            let _ = breaker.tick(now);
            for _ in 0..breaker.allowed().min(FULL) {
                requests += 1;
                if let Some(BreakerChange::Opened(pause)) = breaker.failed(now, None, 1.0) {
                    pauses.push(pause.as_secs());
                }
            }
            now = breaker.opens_until().unwrap_or(now);
        }
        assert!(requests < 1500, "{requests} requests in a day");
        assert_eq!(pauses[..6], [4, 8, 16, 32, 60, 60]);

        assert_eq!(breaker.tick(now), Some(BreakerChange::Probing));
        for allowed in 1..=FULL {
            assert_eq!(
                (breaker.allowed(), breaker.state()),
                (allowed, BreakerState::HalfOpen)
            );
            let change = breaker.succeeded();
            assert_eq!(change.is_some(), allowed == FULL);
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn what_the_crm_asked_for_is_honoured_up_to_the_longest_pause() {
        for (asked, expected) in [(1, 4), (30, 30), (3600, 60)] {
            let (mut breaker, now) = (breaker(), Instant::now());
            for _ in 0..2 {
                let asked = Some(Duration::from_secs(asked));
                assert_eq!(breaker.failed(now, asked, 1.0), None);
            }
            let opened = BreakerChange::Opened(Duration::from_secs(expected));
            assert_eq!(breaker.failed(now, None, 1.0), Some(opened));
        }
    }

    #[test]
    fn a_failing_probe_closes_the_way_again_and_late_failures_change_nothing() {
        let (mut breaker, now) = (breaker(), Instant::now());
        for _ in 0..3 {
            let _ = breaker.failed(now, None, 1.0);
        }
        let until = breaker.opens_until();
        assert_eq!(breaker.failed(now, None, 1.0), None);
        assert_eq!(breaker.opens_until(), until);
        let then = until.unwrap();
        assert_eq!(breaker.tick(then), Some(BreakerChange::Probing));
        assert_eq!(
            breaker.failed(then, None, 1.0),
            Some(BreakerChange::Opened(Duration::from_secs(8)))
        );
        assert_eq!(breaker.allowed(), 0);
    }

    #[test]
    fn three_requests_turned_away_open_it_and_one_success_elsewhere_lets_a_probe_go() {
        let (mut breaker, now) = (breaker(), Instant::now());
        breaker.settings.failures = 10;
        let opened = BreakerChange::Opened(Duration::from_secs(4));
        assert_eq!(breaker.nudge(), None);
        for _ in 0..2 {
            // One record that is turned away among others that are not.
            assert_eq!(breaker.turned_away(now, 1.0), None);
            assert_eq!(breaker.succeeded(), None);
        }
        for expected in [None, None, Some(opened), None] {
            assert_eq!(breaker.turned_away(now, 1.0), expected);
        }
        assert_eq!(breaker.allowed(), 0);
        assert_eq!(breaker.nudge(), Some(BreakerChange::Probing));
        assert_eq!((breaker.nudge(), breaker.allowed()), (None, 1));
        let opened = BreakerChange::Opened(Duration::from_secs(8));
        assert_eq!(breaker.turned_away(now, 1.0), Some(opened));
    }

    proptest! {
        /// Whatever happens in whatever order: it never stays shut for longer than its longest
        /// pause, and never lets more go at once than there were successes since it opened.
        #[test]
        fn it_always_lets_somebody_try(events in prop::collection::vec((0_u64..30, any::<bool>(), 0.0_f64..=1.0, prop::option::of(0_u64..10_000)), 0..200)) {
            let (mut breaker, mut now) = (breaker(), Instant::now());
            let mut successes = 0;
            for (seconds, well, random, asked) in events {
                now += Duration::from_secs(seconds);
                let _ = breaker.tick(now);
                if let Some(until) = breaker.opens_until() {
                    prop_assert!(until - now <= Duration::from_secs(60));
                }
                match breaker.state() {
                    BreakerState::Closed => prop_assert_eq!(breaker.allowed(), usize::MAX),
                    BreakerState::Open => prop_assert_eq!(breaker.allowed(), 0),
                    BreakerState::HalfOpen => prop_assert!((1..=successes + 1).contains(&breaker.allowed())),
                }
                if well {
                    successes += 1;
                    let _ = breaker.succeeded();
                } else if let Some(BreakerChange::Opened(pause)) = breaker.failed(now, asked.map(Duration::from_secs), random) {
                    prop_assert!(pause >= Duration::from_secs(2));
                    successes = 0;
                }
            }
        }
    }
}
