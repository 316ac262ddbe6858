//! The 10 ms clock of the media thread.
//!
//! It beats for sources and receivers that asked for it and rests when there are none. A beat that comes late is made up for, so that no sound
//! is lost and queues do not grow; but never more than [`MAX_CATCH_UP`] at once, since a burst of packets is worse than a gap for whoever gets
//! it.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::engine;

/// The time between two beats.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// The most that is made up for after a delay: what the jitter buffer of a receiver usually bridges. Time beyond that is given up.
const MAX_CATCH_UP: Duration = Duration::from_millis(100);

/// Whether the clock should come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TickResult {
    Continue,
    Stop,
}

/// Something that moves sound every 10 ms.
pub(crate) trait Tick: Send + Sync {
    /// `now` is the time at which the beat was due.
    fn tick(&self, now: Instant) -> TickResult;
}

/// A clock and those it beats for.
#[derive(Default)]
pub(crate) struct Clock {
    members: Mutex<Vec<Weak<dyn Tick>>>,
    added: Notify,
}

/// The clock of the media thread, which starts with the first use.
pub(crate) fn media_clock() -> &'static Clock {
    static CLOCK: OnceLock<Arc<Clock>> = OnceLock::new();
    CLOCK.get_or_init(|| {
        let clock = Arc::new(Clock::default());
        let running = clock.clone();
        engine::handle().spawn(async move { running.run().await });
        clock
    })
}

impl Clock {
    /// Beats for `member` until it says stop or is dropped.
    pub fn add(&self, member: Weak<dyn Tick>) {
        self.members.lock().push(member);
        self.added.notify_one();
    }

    async fn run(&self) {
        let mut present: Vec<Arc<dyn Tick>> = Vec::new();
        loop {
            let added = self.added.notified();
            if self.members.lock().is_empty() {
                added.await;
            }
            let mut due = tokio::time::Instant::now();
            while self.beat(due.into_std(), &mut present) {
                due = next_beat(due, tokio::time::Instant::now());
                if due <= tokio::time::Instant::now() {
                    // Packets that came during the delay have to be in the jitter buffers before these are asked again.
                    tokio::task::yield_now().await;
                }
                tokio::time::sleep_until(due).await;
            }
        }
    }

    /// One beat for all. Answers whether anybody wants another one.
    fn beat(&self, now: Instant, present: &mut Vec<Arc<dyn Tick>>) -> bool {
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
                    // Only one entry: the member may have asked again since it said stop.
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
        // Dropped without the lock: a member may be freed here and remove others.
        present.clear();
        wanted
    }
}

/// When the next beat is due after the one that was due at `due`.
fn next_beat(due: tokio::time::Instant, now: tokio::time::Instant) -> tokio::time::Instant {
    let next = due + TICK;
    next.max(now - MAX_CATCH_UP)
}
