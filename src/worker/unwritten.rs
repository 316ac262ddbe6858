//! Records of this worker's own calls that could not be written when the calls ended, because the
//! disk was full or not writable: they are tried again until they are on disk.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use super::process::{Recovered, recover};
use crate::session::{CallStart, Outcome, SessionEvent};
use crate::store::Store;

/// How often they are tried. A full disk is emptied by a person or by retention; seconds do not
/// matter.
const TRY_EVERY: Duration = Duration::from_secs(10);
/// The most calls that are kept in memory. A worker without a disk takes no new ones, so this is
/// far more than it can hold at a time.
const MOST: usize = 1024;

/// A call that has ended and has no record.
#[derive(Debug, Clone)]
pub(super) struct UnwrittenRecord {
    pub start: CallStart,
    /// What its dispatch told.
    pub told: Vec<SessionEvent>,
    pub outcome: Outcome,
}

/// Finishes what comes in, until nobody sends any more; then tries once more, and says what is
/// left.
pub(super) async fn finish(
    store: Store,
    mut inbox: mpsc::Receiver<UnwrittenRecord>,
    upload_notify: mpsc::Sender<()>,
) {
    let mut left: Vec<UnwrittenRecord> = Vec::new();
    let mut ticks = interval(TRY_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut open = true;
    while open {
        tokio::select! {
            record = inbox.recv() => match record {
                Some(record) if left.len() < MOST => left.push(record),
                Some(record) => error!(
                    session.id = %record.start.session_id, job.id = record.start.job_id,
                    "a call has no record, and too many wait for a disk that can be written: what is not in its journal is lost"
                ),
                None => open = false,
            },
            _ = ticks.tick(), if !left.is_empty() => {}
        }
        if left.is_empty() || (open && !inbox.is_empty()) {
            continue;
        }
        let before = left.len();
        let mut still_left = Vec::new();
        for record in left {
            if !written(&store, &record).await {
                still_left.push(record);
            }
        }
        left = still_left;
        if left.len() < before {
            info!(
                records = before - left.len(),
                left = left.len(),
                "records that could not be written before are written"
            );
            let _ = upload_notify.try_send(());
        }
    }
    for record in left {
        error!(
            session.id = %record.start.session_id, job.id = record.start.job_id,
            "the record could not be written before the worker stopped; its journal, if there is one, is finished at the next start"
        );
    }
}

/// Whether the call has its record now.
async fn written(store: &Store, record: &UnwrittenRecord) -> bool {
    let id = &record.start.session_id;
    let recovered = recover(store, id, record.outcome.clone()).await;
    if recovered != Recovered::NotNeeded {
        return recovered == Recovered::Made;
    }
    let (worker_store, record) = (store.clone(), record.clone());
    let begun = tokio::task::spawn_blocking(move || {
        let id = &record.start.session_id;
        // It has one when the call wrote it after all, or was only short of removing its journal.
        worker_store.record_exists(id) || worker_store.begin(&record.start, &record.told).is_ok()
    });
    if !begun.await.unwrap_or(false) {
        return false;
    }
    recover(store, id, record.outcome.clone()).await != Recovered::Failed
}
