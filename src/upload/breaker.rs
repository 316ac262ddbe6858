//! The circuit breaker for one endpoint of the CRM: after many failures in a row, or a few rejected
//! credentials, no requests are made for a while, then one probe, then more and more. Pure: time
//! and results are arguments.
//!
//! Recordings and call data have one breaker each, because one endpoint may work while the other
//! does not. The pauses of single records are separate and stored on disk. A breaker lives as long
//! as the process: a new one opens again after a few requests.

use std::time::{Duration, Instant};

use super::policy::Backoff;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Number of failures in a row that open it.
    pub failures: u32,
    /// How long it stays open.
    pub backoff: Backoff,
    /// Number of parallel deliveries at which it counts as closed again.
    pub full: usize,
}

/// The state of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// All requests may be made.
    Closed,
    /// A limited number of deliveries may run, one more after each success.
    HalfOpen,
    /// No requests are made.
    Open,
}

impl BreakerState {
    /// All states, for metrics that show which one it is.
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

/// A change of state, for log and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerChange {
    /// It opened for so long.
    Opened(Duration),
    /// One delivery may run as a probe.
    Probing,
    /// All requests may be made again.
    Closed,
}

#[derive(Debug, Clone, Copy)]
enum Inside {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { allowed: usize },
}

/// A circuit breaker; see the module.
#[derive(Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    inside: Inside,
    /// How often it opened since it was last closed.
    openings: u32,
    /// The longest `Retry-After` in this row of failures.
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

    /// The state of a breaker.
    pub fn state(&self) -> BreakerState {
        match self.inside {
            Inside::Closed { .. } => BreakerState::Closed,
            Inside::Open { .. } => BreakerState::Open,
            Inside::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// When the next probe may be made; `None` unless the breaker is open.
    pub fn opens_until(&self) -> Option<Instant> {
        match self.inside {
            Inside::Open { until } => Some(until),
            _ => None,
        }
    }

    /// Half-opens the breaker when its pause is over. Call this before [`Breaker::allowed`].
    pub fn tick(&mut self, now: Instant) -> Option<BreakerChange> {
        match self.inside {
            Inside::Open { until } if now >= until => {
                self.inside = Inside::HalfOpen { allowed: 1 };
                Some(BreakerChange::Probing)
            }
            _ => None,
        }
    }

    /// How many deliveries may run at the same time.
    pub fn allowed(&self) -> usize {
        match self.inside {
            Inside::Closed { .. } => usize::MAX,
            Inside::Open { .. } => 0,
            Inside::HalfOpen { allowed } => allowed,
        }
    }

    /// The CRM gave an answer other than "try again later".
    pub fn succeeded(&mut self) -> Option<BreakerChange> {
        match self.inside {
            Inside::Closed { ref mut failures } => {
                *failures = 0;
                self.asked_for = None;
                None
            }
            // A request from before it opened has succeeded, which counts as a probe.
            Inside::Open { .. } => {
                self.inside = Inside::HalfOpen { allowed: 1 };
                Some(BreakerChange::Probing)
            }
            // Sending all waiting records at once could cause the next outage, so the limit grows
            // by one for each success.
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

    /// There was no answer, or one that asks to try again later, perhaps with a `Retry-After`.
    /// `random` is 0 to 1.
    pub fn failed(
        &mut self,
        now: Instant,
        asked_for: Option<Duration>,
        random: f64,
    ) -> Option<BreakerChange> {
        self.asked_for = self.asked_for.max(asked_for);
        match self.inside {
            // Late failures of requests from before it opened change nothing.
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
    /// A request was rejected regardless of its content. Three of these open the breaker; a single
    /// one may still be the fault of its record.
    pub fn turned_away(&mut self, now: Instant, random: f64) -> Option<BreakerChange> {
        if let Inside::Closed { failures } = &mut self.inside {
            *failures += self.settings.failures.div_ceil(3) - 1;
        }
        self.failed(now, None, random)
    }

    /// The other endpoint of the CRM is back: half-opens this breaker, so that one delivery probes
    /// it.
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
    fn a_failing_probe_opens_it_again_and_late_failures_change_nothing() {
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
    fn three_rejected_requests_open_it_and_a_success_elsewhere_half_opens_it() {
        let (mut breaker, now) = (breaker(), Instant::now());
        breaker.settings.failures = 10;
        let opened = BreakerChange::Opened(Duration::from_secs(4));
        assert_eq!(breaker.nudge(), None);
        for _ in 0..2 {
            // One rejected record among accepted ones.
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
        /// In any order of events: it never stays open for longer than its longest pause, and never
        /// allows more parallel deliveries than there were successes since it opened.
        #[test]
        fn it_always_allows_a_probe_again(events in prop::collection::vec((0_u64..30, any::<bool>(), 0.0_f64..=1.0, prop::option::of(0_u64..10_000)), 0..200)) {
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
