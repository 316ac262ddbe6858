//! Which of a list of vendors works.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A vendor that has failed is tried last for this long, then in its place again.
const SICK_FOR: Duration = Duration::from_secs(30);

/// When each vendor failed last.
#[derive(Debug)]
pub(super) struct Health {
    failed: Mutex<Vec<Option<Instant>>>,
}

impl Health {
    /// All of `count` vendors work.
    pub fn new(count: usize) -> Self {
        Self {
            failed: Mutex::new(vec![None; count]),
        }
    }

    /// The places of the vendors in the order in which they are to be tried: those that work as
    /// they are listed, then the others, the one whose failure is longest ago first.
    pub fn order(&self) -> Vec<usize> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let sick = |at: &usize| failed[*at].filter(|since| since.elapsed() < SICK_FOR);
        let mut order: Vec<usize> = (0..failed.len()).collect();
        order.sort_by_key(sick);
        order
    }

    /// The vendor at this place has failed.
    pub fn failed(&self, at: usize) {
        self.set(at, Some(Instant::now()));
    }

    /// The vendor at this place works.
    pub fn works(&self, at: usize) {
        self.set(at, None);
    }

    fn set(&self, at: usize, value: Option<Instant>) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed[at] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sick_vendor_is_tried_last_and_comes_back() {
        let health = Health::new(3);
        assert_eq!(health.order(), [0, 1, 2]);
        health.failed(0);
        assert_eq!(health.order(), [1, 2, 0]);
        tokio::time::advance(Duration::from_secs(1)).await;
        health.failed(1);
        assert_eq!(health.order(), [2, 0, 1]);
        health.works(1);
        assert_eq!(health.order(), [1, 2, 0]);
        tokio::time::advance(SICK_FOR).await;
        assert_eq!(health.order(), [0, 1, 2]);
    }
}
