//! Monitors the disk of the data folder: a worker that cannot write records takes no new calls, and
//! logs why.
//!
//! Also deletes old recordings, if the settings ask for it. A disk that hangs blocks only this
//! task.

use std::time::{Duration, SystemTime};

use metrics::gauge;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{error, info};

use super::metrics as names;
use crate::store::{StorageConfig, Store};

/// How often the disk is checked. A call writes some kilobytes a second, far less than
/// `storage.min_free_mb` in this time.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How long a check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);
/// How often recordings over their age or size limit are deleted.
const TIDY_EVERY: Duration = Duration::from_secs(3600);
/// The same, while the disk is too full.
const TIDY_EVERY_WHEN_FULL: Duration = Duration::from_secs(60);

/// The result of a check of the disk.
#[derive(Debug)]
struct DiskCheck {
    free_bytes: Result<u64, String>,
    writable: Result<(), String>,
}

/// Why no call may be taken, as a sentence; `None` when one may. A worker that has stopped for lack
/// of space resumes at 110 % of the limit, so that it does not flap.
fn problem(check: &DiskCheck, min_free_bytes: u64, was_full: bool) -> Option<String> {
    if let Err(error) = &check.writable {
        return Some(format!("the data folder can not be written: {error}"));
    }
    // If the free space is unknown, only writing counts.
    let free = *check.free_bytes.as_ref().ok()?;
    let enough = match was_full {
        true => min_free_bytes.saturating_add(min_free_bytes / 10),
        false => min_free_bytes,
    };
    (free < enough).then(|| {
        format!(
            "the disk of the data folder has {} MB left, less than storage.min_free_mb ({}): free some, or set storage.keep_recordings_days",
            free / 1_000_000,
            min_free_bytes / 1_000_000
        )
    })
}

/// Checks until all receivers are dropped. Sends the problem whenever it changes.
pub(super) async fn watch(
    store: Store,
    config: StorageConfig,
    problems: watch::Sender<Option<String>>,
) {
    let mut ticks = interval(CHECK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tidy_at = Instant::now();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = problems.closed() => return,
        }
        let was_full = problems.borrow().is_some();
        let found = match timeout(CHECK_TIMEOUT, check(&store)).await {
            Ok(found) => found,
            Err(_) => DiskCheck {
                free_bytes: Err(String::new()),
                writable: Err(format!(
                    "it did not answer within {} s",
                    CHECK_TIMEOUT.as_secs()
                )),
            },
        };
        if let Ok(free) = found.free_bytes {
            gauge!(names::DISK_FREE_BYTES).set(free as f64);
        }
        let new = problem(&found, config.min_free_bytes(), was_full);
        gauge!(names::DISK_REFUSES_CALLS).set(f64::from(u8::from(new.is_some())));
        match (&new, was_full) {
            (Some(problem), false) => error!("no new calls are taken: {problem}"),
            (None, true) => {
                info!("calls are taken again: the data folder has room and can be written")
            }
            _ => {}
        }
        problems.send_if_modified(|old| {
            let changed = *old != new;
            old.clone_from(&new);
            changed
        });
        if config.deletes() && Instant::now() >= tidy_at {
            tidy(&store, config).await;
            tidy_at = Instant::now()
                + if new.is_some() {
                    TIDY_EVERY_WHEN_FULL
                } else {
                    TIDY_EVERY
                };
        } else if new.is_some() {
            tidy_at = tidy_at.min(Instant::now() + TIDY_EVERY_WHEN_FULL);
        }
    }
}

async fn check(store: &Store) -> DiskCheck {
    let store = store.clone();
    let checked = spawn_blocking(move || DiskCheck {
        free_bytes: store.free_bytes().map_err(|error| error.to_string()),
        writable: store.probe().map_err(|error| error.to_string()),
    });
    checked.await.unwrap_or_else(|panic| DiskCheck {
        free_bytes: Err(panic.to_string()),
        writable: Err(panic.to_string()),
    })
}

async fn tidy(store: &Store, config: StorageConfig) {
    let store = store.clone();
    let tidied = spawn_blocking(move || store.tidy_recordings(&config, SystemTime::now())).await;
    match tidied {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            error!(%error, "failed to search for delivered recordings to delete")
        }
        Err(panic) => error!(error = %panic, "the deletion of delivered recordings failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fills_up_and_is_emptied_is_reported_once_each_time() {
        let limit = 200_000_000;
        let check = |megabytes: u64| DiskCheck {
            free_bytes: Ok(megabytes * 1_000_000),
            writable: Ok(()),
        };
        let mut full = false;
        for (megabytes, expected) in [
            (1000, false),
            (200, false),
            (199, true),
            (210, true),
            (219, true),
            (220, false),
            (201, false),
        ] {
            let problem = problem(&check(megabytes), limit, full);
            full = problem.is_some();
            assert_eq!(full, expected, "{megabytes} MB: {problem:?}");
        }
        let sentence = problem(&check(7), limit, false).unwrap();
        assert!(
            sentence.contains("7 MB left") && sentence.contains("storage.min_free_mb (200)"),
            "{sentence}"
        );
        assert_eq!(problem(&check(0), 0, false), None, "switched off");
    }

    #[test]
    fn a_disk_that_cannot_be_written_takes_no_calls_however_much_is_free() {
        let check = DiskCheck {
            free_bytes: Ok(u64::MAX),
            writable: Err("Read-only file system".to_owned()),
        };
        assert!(problem(&check, 0, false).unwrap().contains("Read-only"));
        let unknown = DiskCheck {
            free_bytes: Err("not implemented".to_owned()),
            writable: Ok(()),
        };
        assert_eq!(problem(&unknown, 1, false), None);
    }
}
