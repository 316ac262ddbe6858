//! Which vendor has answered a request, and after how many attempts.
//!
//! Whoever wants to know runs the request inside [`Asked::watch`]; whoever tries again, or asks the
//! next of a list, says so with [`retried`], [`fell_back`] and [`served_by`]. Outside of a watch
//! those say nothing to nobody, so that no request has to carry this along.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

tokio::task_local! {
    static WATCHED: Arc<Asked>;
}

/// What is known of the requests under one watch. Readable while they run, and after they were
/// dropped.
#[derive(Debug, Default)]
pub(crate) struct Asked(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    vendor: Option<String>,
    attempts: Attempts,
}

/// Attempts that came to nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attempts {
    /// The same vendor was asked again.
    pub retries: u64,
    /// The next vendor was asked.
    pub fallbacks: u64,
}

impl Asked {
    /// Runs `request` and notes what happens in it.
    pub(crate) async fn watch<T>(self: &Arc<Self>, request: impl Future<Output = T>) -> T {
        WATCHED.scope(self.clone(), request).await
    }

    /// Vendor and model that served last, where there is a choice of several.
    pub(crate) fn vendor(&self) -> Option<String> {
        self.lock().vendor.clone()
    }

    /// The attempts since this was called last.
    pub(crate) fn take_attempts(&self) -> Attempts {
        std::mem::take(&mut self.lock().attempts)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// This vendor serves the request.
pub(crate) fn served_by(vendor: &str) {
    note(|state| {
        if state.vendor.as_deref() != Some(vendor) {
            state.vendor = Some(vendor.to_owned());
        }
    });
}

/// The same vendor is asked again.
pub(crate) fn retried() {
    note(|state| state.attempts.retries += 1);
}

/// A vendor has failed, and the next is asked.
pub(crate) fn fell_back() {
    note(|state| state.attempts.fallbacks += 1);
}

fn note(change: impl FnOnce(&mut State)) {
    // Nobody may be watching.
    let _ = WATCHED.try_with(|asked| change(&mut asked.lock()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_happens_under_a_watch_is_known_also_when_it_was_dropped() {
        let asked = Arc::new(Asked::default());
        served_by("nobody watches");
        let requests = asked.watch(async {
            served_by("first");
            retried();
            fell_back();
            served_by("second");
            std::future::pending::<()>().await;
        });
        assert!(futures_util::FutureExt::now_or_never(requests).is_none());
        assert_eq!(asked.vendor().as_deref(), Some("second"));
        let attempts = Attempts {
            retries: 1,
            fallbacks: 1,
        };
        assert_eq!(asked.take_attempts(), attempts);
        assert_eq!(asked.take_attempts(), Attempts::default());
    }
}
