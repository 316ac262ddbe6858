//! The 10 ms clock of the media thread.
//!
//! It ticks for the sources and receivers that were added and stops when there are none. Ticks that
//! are late are made up for, so that no sound is lost and queues do not grow; but never more than
//! [`MAX_CATCH_UP`] at once, since a burst of packets is worse for the receiver than a gap.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::engine;

/// The time between two ticks.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// The longest delay that is made up for: what the jitter buffer of a receiver usually bridges.
/// Time beyond that is skipped.
const MAX_CATCH_UP: Duration = Duration::from_millis(100);

/// Whether the member wants further ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TickResult {
    Continue,
    Stop,
}

/// Something that moves sound every 10 ms.
pub(crate) trait Tick: Send + Sync {
    /// `now` is the time at which the tick was due.
    fn tick(&self, now: Instant) -> TickResult;
}

/// A clock and the members that it ticks for.
#[derive(Default)]
pub(crate) struct Clock {
    members: Mutex<Vec<Weak<dyn Tick>>>,
    added: Notify,
}

/// The clock of the media thread, which is started by the first call.
pub(crate) fn media_clock() -> &'static Arc<Clock> {
    static CLOCK: OnceLock<Arc<Clock>> = OnceLock::new();
    CLOCK.get_or_init(|| {
        let clock = Arc::new(Clock::default());
        let running = clock.clone();
        engine::handle().spawn(async move { running.run().await });
        clock
    })
}

impl Clock {
    /// The number of members.
    #[cfg(test)]
    pub fn members(&self) -> usize {
        self.members.lock().len()
    }

    /// Ticks for `member` until it answers [`TickResult::Stop`] or is dropped.
    pub fn add(&self, member: Weak<dyn Tick>) {
        self.members.lock().push(member);
        self.added.notify_one();
    }

    /// Ticks for ever.
    pub async fn run(&self) {
        let mut present: Vec<Arc<dyn Tick>> = Vec::new();
        loop {
            let added = self.added.notified();
            if self.members.lock().is_empty() {
                added.await;
            }
            let mut due = tokio::time::Instant::now();
            while self.tick(due.into_std(), &mut present) {
                due = next_tick(due, tokio::time::Instant::now());
                if due <= tokio::time::Instant::now() {
                    // Packets that came during the delay have to reach the jitter buffers before
                    // the next tick.
                    tokio::task::yield_now().await;
                }
                tokio::time::sleep_until(due).await;
            }
        }
    }

    /// Ticks once for every member. Returns whether any wants another tick.
    pub(crate) fn tick(&self, now: Instant, present: &mut Vec<Arc<dyn Tick>>) -> bool {
        present.extend(self.members.lock().iter().filter_map(Weak::upgrade));
        let mut stopped: Vec<*const ()> = Vec::new();
        for member in present.iter() {
            if member.tick(now) == TickResult::Stop {
                stopped.push(Arc::as_ptr(member).cast());
            }
        }
        let mut members = self.members.lock();
        members.retain(|member| {
            member.strong_count() > 0 && {
                let address: *const () = member.as_ptr().cast();
                match stopped.iter().position(|one| *one == address) {
                    // Only one entry: the member may have been added again since it answered
                    // `Stop`.
                    Some(index) => {
                        stopped.swap_remove(index);
                        false
                    }
                    None => true,
                }
            }
        });
        let wanted = !members.is_empty();
        drop(members);
        // Dropped without the lock: dropping a member may remove other members.
        present.clear();
        wanted
    }
}

/// When the next tick is due after the one that was due at `due`.
fn next_tick(due: tokio::time::Instant, now: tokio::time::Instant) -> tokio::time::Instant {
    let next = due + TICK;
    next.max(now - MAX_CATCH_UP)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records the time of every tick and stops after some.
    struct Counter {
        ticks: Mutex<Vec<Instant>>,
        stop_after: usize,
    }

    impl Counter {
        fn new(stop_after: usize) -> Arc<Self> {
            Arc::new(Self {
                ticks: Mutex::new(Vec::new()),
                stop_after,
            })
        }
    }

    impl Tick for Counter {
        fn tick(&self, now: Instant) -> TickResult {
            let mut ticks = self.ticks.lock();
            ticks.push(now);
            if ticks.len() < self.stop_after {
                TickResult::Continue
            } else {
                TickResult::Stop
            }
        }
    }

    fn start() -> Arc<Clock> {
        let clock = Arc::new(Clock::default());
        let running = clock.clone();
        tokio::spawn(async move { running.run().await });
        clock
    }

    fn member(counter: &Arc<Counter>) -> Weak<dyn Tick> {
        let weak: Weak<Counter> = Arc::downgrade(counter);
        weak
    }

    #[tokio::test(start_paused = true)]
    async fn ticks_every_10_ms_until_told_to_stop() {
        let clock = start();
        let counter = Counter::new(50);
        clock.add(member(&counter));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let ticks = counter.ticks.lock().clone();
        assert_eq!(ticks.len(), 50);
        assert!(ticks.windows(2).all(|two| two[1] - two[0] == TICK));
        assert_eq!(clock.members(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn starts_again_for_a_member_that_comes_later() {
        let clock = start();
        clock.add(member(&Counter::new(3)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let later = Counter::new(3);
        clock.add(member(&later));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(later.ticks.lock().len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_member_is_forgotten() {
        let clock = start();
        let counter = Counter::new(usize::MAX);
        clock.add(member(&counter));
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(counter);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(clock.members(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn delay_is_made_up_for_up_to_a_limit() {
        for (stall_ms, expected) in [(50, 5..=6), (1000, 10..=12)] {
            let clock = start();
            let counter = Counter::new(usize::MAX);
            clock.add(member(&counter));
            tokio::time::sleep(Duration::from_millis(25)).await;
            let before = counter.ticks.lock().len();
            // The whole thread stood still for that long: time has passed, but nothing ran.
            tokio::time::advance(Duration::from_millis(stall_ms)).await;
            let settle = tokio::time::Instant::now() + Duration::from_millis(1);
            tokio::time::sleep_until(settle).await;
            let caught_up = counter.ticks.lock().len() - before;
            assert!(
                expected.contains(&caught_up),
                "{stall_ms} ms: {caught_up} ticks"
            );
        }
    }
}
