//! How long packets have to wait so that nearly all of them have arrived when they are to be
//! played.
//!
//! Every packet's *delay* is measured against the fastest packet of the last two seconds, by its
//! RTP timestamp. That makes the delay independent of the clocks of both sides, of pauses in
//! sending (DTX) and of how much happens to be buffered. The *target* is what covers
//! [`COVERED_SHARE`] of the recent delays. Knows nothing of what packets contain.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::OPUS_RATE_HZ;

/// For how long the fastest packet is remembered. Long enough to see a fast one in jitter, short
/// enough to follow a new route or clock drift.
const BASE_WINDOW: Duration = Duration::from_secs(2);

/// The share of packets that should be in time. The rest is concealed, which costs less than the
/// delay that it would take to wait for all.
const COVERED_SHARE: f32 = 0.97;

/// The weight that the histogram keeps with each new packet: a memory of about 100 packets or two
/// seconds of sound.
const KEPT_SHARE: f32 = 0.99;

/// A smaller share counts as zero. Otherwise shares would become denormal after three minutes, and
/// computing with those takes a hundred times as long.
const NEGLIGIBLE_SHARE: f32 = 1e-9;

/// Width of a histogram bucket. The histogram reaches to half a second; longer delays are counted
/// in its last bucket.
const BUCKET_US: i64 = 1_000;
const BUCKETS: usize = 500;

/// One tick of the clock, of which the target is a multiple.
const TICK_US: i64 = 10_000;

/// When the fastest packet is forgotten and the next fastest was slower by a tick, the delay has
/// changed in a step, for example because the call began on another route. If no more than this
/// share of the packets came before the step, the delays measured against them are corrected by it.
const EXCEPTIONAL_SHARE: f32 = 0.1;

/// Added to the covered delay: the clock pulls only every 10 ms, so a packet may be needed that
/// much before its time.
const TICK_MARGIN_US: i64 = TICK_US;

/// Bounds of the target. The lower one is a packet's length, enough to have no gap on a link
/// without jitter; beyond the upper one people start to talk over each other, and gaps are the
/// lesser evil.
pub(crate) const MIN_TARGET_US: i64 = 20_000;
pub(crate) const MAX_TARGET_US: i64 = 400_000;

/// The target until something is known about the link.
const INITIAL_TARGET_US: i64 = 40_000;

/// After how many packets the measured target counts: from then on a single late one is no more
/// than the share that need not be covered.
const LEARNING_PACKETS: u32 = 34;

/// The target rises at once, but falls only after it has been higher than needed for so many
/// packets, about two seconds: every change of it is a change of speed that might be heard.
const PATIENCE_PACKETS: u32 = 100;

/// A measured target that is too high by less than this costs less than two changes of speed would
/// if the target rises again: jitter on the border between two ticks is measured now as the one and
/// now as the other. It falls only after so many packets, about twenty seconds.
const WORTHWHILE_FALL_US: i64 = 2 * TICK_US;
const LONG_PATIENCE_PACKETS: u32 = 1_000;

/// A packet that seems later than this belongs to a new timeline: senders may stop their timestamps
/// while muted.
const NEW_TIME_LINE_US: i64 = 1_000_000;

/// Measures delays and derives the target.
#[derive(Debug)]
pub(crate) struct DelayEstimator {
    /// Arrival and timestamp of the first packet: zero of both timelines.
    origin: Option<(Instant, u64)>,
    /// Transit times in microseconds that are minima from their arrival on, the smallest first.
    quickest: VecDeque<(Instant, i64)>,
    histogram: [f32; BUCKETS],
    packets: u32,
    target_us: i64,
    /// Whether the target comes from measured delays: it is neither the initial one nor measured
    /// against a fastest packet that turned out to be an exception.
    measured: bool,
    covered_us: i64,
    too_high: TooHigh,
}

/// Since when less than the target has been needed.
#[derive(Debug, Clone, Copy, Default)]
struct TooHigh {
    packets: u32,
    /// The largest delay that was needed in this time, in microseconds.
    most_us: i64,
    /// The largest delay needed since the number of packets was last a multiple of
    /// [`PATIENCE_PACKETS`]. With it the target falls step by step after a time of jitter.
    recent_us: i64,
}

impl Default for DelayEstimator {
    fn default() -> Self {
        Self {
            origin: None,
            quickest: VecDeque::new(),
            histogram: [0.0; BUCKETS],
            packets: 0,
            target_us: INITIAL_TARGET_US,
            measured: false,
            covered_us: 0,
            too_high: TooHigh::default(),
        }
    }
}

impl DelayEstimator {
    /// Records a packet that arrived at `now`.
    pub fn packet_arrived(&mut self, now: Instant, rtp_timestamp: u64) {
        let delay = self.delay_us(now, rtp_timestamp).unwrap_or(0);
        if delay > NEW_TIME_LINE_US {
            self.forget_time_line();
        }
        let (first_arrival, first_timestamp) = *self.origin.get_or_insert((now, rtp_timestamp));
        let base_until_now = self.quickest.front().map(|(_, base)| *base);
        let transit = transit_us(first_arrival, first_timestamp, now, rtp_timestamp);
        while self
            .quickest
            .back()
            .is_some_and(|(_, known)| *known >= transit)
        {
            self.quickest.pop_back();
        }
        self.quickest.push_back((now, transit));
        while self
            .quickest
            .front()
            .is_some_and(|(arrival, _)| now.saturating_duration_since(*arrival) > BASE_WINDOW)
        {
            self.quickest.pop_front();
        }
        let base = self.quickest.front().map_or(transit, |(_, base)| *base);
        self.base_rose(base - base_until_now.unwrap_or(base));
        self.count(transit - base);
    }

    /// Records that the fastest packet is now slower than before by so many microseconds. If the
    /// one before was an exception, delays measured against it are reduced by as much.
    fn base_rose(&mut self, by_us: i64) {
        if by_us < TICK_US {
            return;
        }
        let quicker = usize::try_from(by_us / BUCKET_US).map_or(BUCKETS, |it| it.min(BUCKETS));
        let share: f32 = self.histogram[..quicker].iter().sum();
        if share > EXCEPTIONAL_SHARE {
            return;
        }
        self.histogram.copy_within(quicker.., 0);
        self.histogram[BUCKETS - quicker..].fill(0.0);
        self.histogram[0] += share;
        // The target keeps its absolute place, seen from the new base.
        self.target_us -= by_us;
        self.measured = false;
        self.too_high = TooHigh::default();
    }

    /// Records a packet that came after it should have been played. A very late one, such as a
    /// retransmitted copy, says nothing about the link.
    pub fn late_packet_arrived(&mut self, now: Instant, rtp_timestamp: u64) {
        let delay = self.delay_us(now, rtp_timestamp);
        if delay.is_some_and(|delay| delay <= NEW_TIME_LINE_US) {
            self.packet_arrived(now, rtp_timestamp);
        }
    }

    fn count(&mut self, delay_us: i64) {
        self.packets = self.packets.saturating_add(1);
        // The first packets weigh equally; later ones replace the older ones.
        let kept = KEPT_SHARE.min(1.0 - 1.0 / self.packets as f32);
        for share in &mut self.histogram {
            *share = if *share < NEGLIGIBLE_SHARE {
                0.0
            } else {
                *share * kept
            };
        }
        let bucket = usize::try_from(delay_us / BUCKET_US).unwrap_or(0);
        self.histogram[bucket.min(BUCKETS - 1)] += 1.0 - kept;

        let mut covered = 0.0;
        let buckets = self
            .histogram
            .iter()
            .position(|share| {
                covered += share;
                covered >= COVERED_SHARE
            })
            .unwrap_or(BUCKETS - 1);
        self.covered_us = (buckets as i64 * BUCKET_US / TICK_US + 1) * TICK_US;
        let needed = (self.covered_us + TICK_MARGIN_US).clamp(MIN_TARGET_US, MAX_TARGET_US);
        if self.packets < LEARNING_PACKETS {
            self.target_us = needed.max(INITIAL_TARGET_US);
            return;
        }
        if let Some(target_us) = self.next_target(needed) {
            self.target_us = target_us;
            self.measured = true;
            self.too_high = TooHigh::default();
        }
    }

    /// The new target after a packet that needs `needed_us`; `None` if the target stays as it is.
    fn next_target(&mut self, needed_us: i64) -> Option<i64> {
        let too_high = &mut self.too_high;
        too_high.packets += 1;
        too_high.most_us = too_high.most_us.max(needed_us);
        too_high.recent_us = too_high.recent_us.max(needed_us);
        if needed_us >= self.target_us {
            return Some(needed_us);
        }
        if too_high.packets >= LONG_PATIENCE_PACKETS {
            return Some(too_high.most_us);
        }
        if !too_high.packets.is_multiple_of(PATIENCE_PACKETS) {
            return None;
        }
        let recent = std::mem::take(&mut too_high.recent_us);
        let worthwhile = !self.measured || self.target_us - recent >= WORTHWHILE_FALL_US;
        worthwhile.then_some(recent)
    }

    /// The delay in microseconds with which sound of that timestamp is played if it is played at
    /// `at`; `None` before the first packet. Negative only if no packet was as fast.
    pub fn delay_us(&self, at: Instant, rtp_timestamp: u64) -> Option<i64> {
        let (first_arrival, first_timestamp) = self.origin?;
        let (_, base) = self.quickest.front()?;
        Some(transit_us(first_arrival, first_timestamp, at, rtp_timestamp) - base)
    }

    /// The delay to aim at, in microseconds.
    pub fn target_us(&self) -> i64 {
        self.target_us
    }

    /// The delay that the jitter alone needs, without bounds and margin, in microseconds.
    pub fn covered_us(&self) -> i64 {
        self.covered_us
    }

    /// Starts a new timeline but keeps what is known about the jitter.
    pub fn forget_time_line(&mut self) {
        self.origin = None;
        self.quickest.clear();
    }
}

/// How much longer than the first packet something took from the sender's timestamp to `at`.
fn transit_us(first_arrival: Instant, first_timestamp: u64, at: Instant, timestamp: u64) -> i64 {
    let arrival_us = match at.checked_duration_since(first_arrival) {
        Some(after) => after.as_micros() as i64,
        None => -(first_arrival.duration_since(at).as_micros() as i64),
    };
    let samples = timestamp.wrapping_sub(first_timestamp) as i64;
    arrival_us - samples_to_us(samples)
}

/// Samples at 48 kHz as microseconds.
pub(crate) fn samples_to_us(samples: i64) -> i64 {
    (i128::from(samples) * 1_000_000 / i128::from(OPUS_RATE_HZ)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds packets of 20 ms, each with its own extra delay in milliseconds, and returns the
    /// target.
    fn feed(
        estimator: &mut DelayEstimator,
        start: Instant,
        first: u64,
        extra_ms: impl IntoIterator<Item = u64>,
    ) -> i64 {
        for (index, extra) in extra_ms.into_iter().enumerate() {
            let number = first + index as u64;
            estimator.packet_arrived(
                start + Duration::from_millis(number * 20 + extra),
                number * 960,
            );
        }
        estimator.target_us() / 1000
    }

    #[test]
    fn steady_link_needs_the_least_delay() {
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        assert_eq!(
            feed(&mut estimator, start, 0, [0; 10]),
            40,
            "while learning"
        );
        assert_eq!(feed(&mut estimator, start, 10, [0; 200]), 20);
    }

    #[test]
    fn quick_first_packets_are_no_measure_for_the_others() {
        // The first three came over a faster route than all others.
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        let step = [0; 3].into_iter().chain([31; 90]);
        assert_eq!(feed(&mut estimator, start, 0, step), 50);
        // While the first is remembered, sound is played 50 ms after it, and afterwards at the same
        // time: 19 ms after the others, or 20.
        assert_eq!(feed(&mut estimator, start, 93, [31; 20]), 20);
    }

    #[test]
    fn steps_between_what_is_common_are_jitter() {
        // Every two and a half seconds the route changes, and one of the two is 50 ms slower.
        // Without that memory, the slower packets would be late each time.
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        let extra_ms = |number: u64| number / 125 % 2 * 50;
        assert_eq!(feed(&mut estimator, start, 0, (0..1_000).map(extra_ms)), 70);
        assert_eq!(
            feed(&mut estimator, start, 1_000, (1_000..1_240).map(extra_ms)),
            70
        );
    }

    #[test]
    fn target_to_begin_with_is_no_evidence() {
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        let jitter = (0..134).map(|number: u64| if number.is_multiple_of(4) { 15 } else { 0 });
        assert_eq!(feed(&mut estimator, start, 0, jitter), 30);
    }

    #[test]
    fn one_late_packet_among_the_first_is_not_waited_for() {
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        let rare = (0..134).map(|number| if number == 15 { 60 } else { 0 });
        assert_eq!(feed(&mut estimator, start, 0, rare), 20);
    }

    #[test]
    fn what_goes_down_step_by_step_is_followed() {
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        let rough = [45, 35, 25, 15].into_iter().flat_map(|extra| [extra; 4]);
        let until_then = [0; 100].into_iter().chain(rough);
        assert_eq!(feed(&mut estimator, start, 0, until_then), 60);
        assert_eq!(feed(&mut estimator, start, 116, [0; 500]), 20);
    }

    #[test]
    fn target_covers_the_jitter_and_falls_when_it_is_over() {
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        let jitter = (0..200).map(|index| if index % 5 == 0 { 75 } else { 0 });
        assert_eq!(feed(&mut estimator, start, 0, jitter), 90);
        assert_eq!(feed(&mut estimator, start, 200, [0; 300]), 20);
    }

    #[test]
    fn target_does_not_follow_every_breath_of_the_jitter() {
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        // Every 30th packet is late: sometimes that is more than the share that need not be
        // covered, and sometimes less.
        let mut changes = 0;
        let mut target = 0;
        for number in 0..3_000u64 {
            let late = if number % 30 == 0 { 75 } else { 0 };
            let arrival = start + Duration::from_millis(number * 20 + late);
            estimator.packet_arrived(arrival, number * 960);
            changes += u32::from(number > 500 && estimator.target_us() != target);
            target = estimator.target_us();
        }
        assert_eq!((changes, target), (0, 90_000));
    }

    #[test]
    fn target_that_is_a_little_too_high_falls_late() {
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        let jitter = |worst| move |number: u64| if number.is_multiple_of(5) { worst } else { 0 };
        assert_eq!(feed(&mut estimator, start, 0, (0..300).map(jitter(75))), 90);
        assert_eq!(
            feed(&mut estimator, start, 300, (0..900).map(jitter(65))),
            90
        );
        assert_eq!(
            feed(&mut estimator, start, 1_200, (0..600).map(jitter(65))),
            80
        );
    }

    #[test]
    fn one_late_packet_in_a_hundred_is_not_waited_for() {
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        let rare = (0..1000).map(|index| if index % 100 == 50 { 150 } else { 5 });
        assert_eq!(feed(&mut estimator, start, 0, rare), 20);
    }

    #[test]
    fn pauses_and_clock_drift_are_no_jitter() {
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        // The sender's clock loses 200 ppm for a minute, and nothing is sent for every second
        // second.
        let mut target = 0;
        for second in (0..60u64).step_by(2) {
            for packet in second * 50..second * 50 + 50 {
                let arrival = Duration::from_micros(packet * 20_004);
                estimator.packet_arrived(start + arrival, packet * 960);
                target = estimator.target_us() / 1000;
            }
        }
        assert_eq!(target, 20);
    }

    #[test]
    fn slower_route_is_the_new_base_after_two_seconds() {
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        feed(&mut estimator, start, 0, [0; 200]);
        feed(&mut estimator, start, 200, [60; 110]);
        let at = start + Duration::from_millis(310 * 20 + 60);
        assert_eq!(estimator.delay_us(at, 310 * 960), Some(0));
    }

    #[test]
    fn timestamps_that_stood_still_while_muted_start_a_new_time_line() {
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        feed(&mut estimator, start, 0, [0; 100]);
        assert_eq!(feed(&mut estimator, start, 100, [7_000; 50]), 20);
    }

    #[test]
    fn what_is_long_past_is_forgotten_wholly() {
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        let once_wild = (0..10_000u64).map(|index| if index < 500 { index } else { 0 });
        feed(&mut estimator, start, 0, once_wild);
        assert!(!estimator.histogram.iter().any(|share| share.is_subnormal()));
        assert_eq!(estimator.histogram[1..], [0.0; BUCKETS - 1]);
    }

    #[test]
    fn target_is_bounded() {
        let start = Instant::now();
        let mut estimator = DelayEstimator::default();
        let wild = (0..400u64).map(|index| (index * 7919) % 900);
        assert_eq!(feed(&mut estimator, start, 0, wild), 400);
    }
}
