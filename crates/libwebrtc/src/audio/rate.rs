//! How much of the wanted bitrate a link carries, from what the receiver reports about once a
//! second.
//!
//! Google's loss-based control (draft-ietf-rmcat-gcc-02, section 6) lowers the bitrate above 10 %
//! of loss and raises it below 2 %. Here only one voice is sent, and LiveKit's servers negotiate no
//! transport-wide feedback for it. A queue that builds up is seen by the round-trip time, before it
//! overflows. Loss without a queue is that of a radio link, where packets get lost whatever their
//! size, and a lower bitrate would only sound worse. When loss is so high that speech is not
//! intelligible anyway, a lower bitrate is tried, and taken back if the loss stays.

use std::time::{Duration, Instant};

/// A round-trip time that is this much longer than usual in two reports in a row shows a queue in
/// the network that does not drain.
const QUEUE: Duration = Duration::from_millis(150);

/// Above this share of loss a lower bitrate is tried.
const HIGH_LOSS: f32 = 0.30;
/// Below this share of loss more may be sent.
const LOW_LOSS: f32 = 0.02;
/// A lower bitrate has helped if less than this share of the loss is left.
const HELPED: f32 = 0.6;
/// The weight of a new report of loss: 3 lost of 50 packets say little by themselves.
const LOSS_WEIGHT: f32 = 0.4;

const DOWN: f32 = 0.7;
const UP: f32 = 1.08;
/// The step up near the bitrate that was too much last time.
const CAREFULLY_UP: f32 = 1.02;
/// Which shares of it count as near.
const NEAR: std::ops::Range<f32> = 0.85..1.05;
/// Reports after a step down until the next one: a queue needs time to drain.
const STEP_REPORTS: u32 = 2;
/// The share that is sent even on the worst link; the encoder has a limit of its own.
const LOWEST: f32 = 0.25;

/// Reports after which loss must have become less, the round trip and the smoothing included.
const TRIAL_REPORTS: u32 = 4;
/// How long loss alone is no reason for a lower bitrate after one that did not help; doubled each
/// time.
const FIRST_IMMUNITY: Duration = Duration::from_secs(60);
const LONGEST_IMMUNITY: Duration = Duration::from_secs(600);

/// The share of its excess by which a longer round trip becomes the usual one, per report: half a
/// minute for one of 250 ms more.
const USUAL_WEIGHT: f64 = 0.02;

/// The share of the bitrate that one stream may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SendRate {
    share: f32,
    loss: f32,
    usual_round_trip: Option<Duration>,
    /// Reports in a row whose round trip was too long.
    queued: u32,
    /// Reports since the last step down.
    since_step: u32,
    /// The share that was too much last time.
    too_much: Option<f32>,
    trial: Option<Trial>,
    immune_until: Option<Instant>,
    immunity: Duration,
}

/// A lower bitrate that is tried because of loss.
#[derive(Debug, Clone, Copy)]
struct Trial {
    loss_before: f32,
    reports: u32,
}

impl Default for SendRate {
    fn default() -> Self {
        Self {
            share: 1.0,
            loss: 0.0,
            usual_round_trip: None,
            queued: 0,
            since_step: u32::MAX,
            too_much: None,
            trial: None,
            immune_until: None,
            immunity: FIRST_IMMUNITY,
        }
    }
}

impl SendRate {
    /// Takes a report, the share lost from 0 to 1, and returns which share of the wanted bitrate is
    /// to be sent.
    pub fn reported(&mut self, now: Instant, loss: f32, round_trip: Option<Duration>) -> f32 {
        if loss.is_finite() {
            self.loss += (loss.clamp(0.0, 1.0) - self.loss) * LOSS_WEIGHT;
        }
        self.queued = match round_trip.is_some_and(|it| self.is_queued(it)) {
            true => self.queued + 1,
            false => 0,
        };
        self.since_step = self.since_step.saturating_add(1);
        if self.queued >= 2 {
            // The cause is known to be a queue, so there is nothing to try.
            self.trial = None;
            if self.since_step >= STEP_REPORTS {
                self.step_down();
            }
        } else if self.loss > HIGH_LOSS && self.immune_until.is_none_or(|until| now >= until) {
            self.try_less(now);
        } else if self.loss < LOW_LOSS && self.queued == 0 {
            self.step_up();
        }
        self.share
    }

    fn step_down(&mut self) {
        // When one step down follows another, the bitrate was too much before the first.
        if self.since_step > 2 * STEP_REPORTS {
            self.too_much = Some(self.share);
        }
        self.since_step = 0;
        self.share = (self.share * DOWN).max(LOWEST);
    }

    fn step_up(&mut self) {
        let next = self.share * UP;
        let near = self.too_much.map(|it| NEAR.start * it..NEAR.end * it);
        self.share = match near {
            Some(near) if near.contains(&next) => self.share * CAREFULLY_UP,
            _ => next,
        };
        if self.share >= 1.0 {
            self.share = 1.0;
            self.trial = None;
        }
    }

    fn is_queued(&mut self, round_trip: Duration) -> bool {
        let usual = self.usual_round_trip.get_or_insert(round_trip);
        if round_trip < *usual {
            *usual = round_trip;
            return false;
        }
        let excess = round_trip - *usual;
        *usual += excess.mul_f64(USUAL_WEIGHT);
        excess > QUEUE
    }

    fn try_less(&mut self, now: Instant) {
        let Some(trial) = &mut self.trial else {
            self.trial = Some(Trial {
                loss_before: self.loss,
                reports: 0,
            });
            self.too_much = Some(self.share);
            self.share = LOWEST;
            return;
        };
        trial.reports += 1;
        if trial.reports == TRIAL_REPORTS && self.loss > trial.loss_before * HELPED {
            self.trial = None;
            self.too_much = None;
            self.share = 1.0;
            self.immune_until = Some(now + self.immunity);
            self.immunity = (self.immunity * 2).min(LONGEST_IMMUNITY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report a second, of this loss in percent and a round trip in milliseconds; returns the
    /// shares.
    fn shares(rate: &mut SendRate, at: &mut Instant, reports: &[(f32, u64)]) -> Vec<f32> {
        reports
            .iter()
            .map(|(percent, round_trip_ms)| {
                *at += Duration::from_secs(1);
                let round_trip = Duration::from_millis(*round_trip_ms);
                rate.reported(*at, percent / 100.0, Some(round_trip))
            })
            .collect()
    }

    fn fresh() -> (SendRate, Instant) {
        let (mut rate, mut at) = (SendRate::default(), Instant::now());
        assert_eq!(shares(&mut rate, &mut at, &[(0.0, 50); 10]), [1.0; 10]);
        (rate, at)
    }

    #[test]
    fn a_good_line_gets_everything_and_so_does_one_with_little_loss_or_a_round_trip_that_varies() {
        let (mut rate, mut at) = fresh();
        for report in [(0.0, 50), (5.0, 50), (0.0, 180), (9.0, 60), (0.0, 250)] {
            // A single long round trip is no queue.
            assert_eq!(shares(&mut rate, &mut at, &[report, (1.0, 50)]), [1.0; 2]);
        }
    }

    #[test]
    fn a_queue_that_builds_up_is_drained_before_it_overflows() {
        let (mut rate, mut at) = fresh();
        let down = shares(
            &mut rate,
            &mut at,
            &[(0.0, 230), (0.0, 400), (0.0, 400), (0.0, 400)],
        );
        // It is given time to drain.
        assert_eq!(down[..3], [1.0, DOWN, DOWN]);
        assert!(down[3] < 0.5, "{down:?}");
        let up = shares(&mut rate, &mut at, &[(0.0, 60); 30]);
        assert!(up.windows(2).all(|pair| pair[0] <= pair[1]), "{up:?}");
        assert!(up[3] < 0.8 && up[29] == 1.0, "{up:?}");
        // Slower where it was too much.
        let last_steps = up.iter().filter(|share| (0.9..1.0).contains(*share));
        assert!(last_steps.count() >= 5, "{up:?}");
    }

    #[test]
    fn loss_that_a_lower_bitrate_does_not_lessen_is_lived_with() {
        let (mut rate, mut at) = fresh();
        let seen = shares(&mut rate, &mut at, &[(20.0, 50); 60]);
        assert_eq!(seen, [1.0; 60], "speech is understood");
        let lowered = |seen: &[f32]| seen.iter().filter(|share| **share < 1.0).count();
        let seen = shares(&mut rate, &mut at, &[(50.0, 50); 60]);
        assert!(seen.contains(&LOWEST), "it was tried");
        assert_eq!(lowered(&seen), TRIAL_REPORTS as usize, "{seen:?}");
        // The next try comes later.
        let later = shares(&mut rate, &mut at, &[(50.0, 50); 100]);
        assert_eq!(lowered(&later), TRIAL_REPORTS as usize, "{later:?}");
    }

    #[test]
    fn loss_that_a_lower_bitrate_lessens_keeps_it_low_until_the_line_is_good() {
        let (mut rate, mut at) = fresh();
        let down = shares(&mut rate, &mut at, &[(60.0, 50); 2]);
        assert_eq!(down[1], LOWEST, "{down:?}");
        let held = shares(&mut rate, &mut at, &[(4.0, 50); 30]);
        assert_eq!(held, [LOWEST; 30]);
        let up = shares(&mut rate, &mut at, &[(0.0, 50); 40]);
        assert_eq!(up[39], 1.0);
    }

    #[test]
    fn a_route_that_has_become_longer_is_the_usual_one_after_a_while() {
        let (mut rate, mut at) = fresh();
        let seen = shares(&mut rate, &mut at, &[(0.0, 300); 300]);
        assert_eq!(seen[10..20], [LOWEST; 10]);
        assert_eq!(seen[299], 1.0);
    }

    #[test]
    fn nonsense_changes_nothing() {
        let (mut rate, at) = fresh();
        for loss in [f32::NAN, f32::INFINITY, -3.0] {
            assert_eq!(rate.reported(at, loss, None), 1.0);
        }
    }
}
