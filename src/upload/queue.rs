//! What is due in `call_metadata/`. A folder of thousands is listed, but a record is read again only when its file has changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use chrono::{DateTime, TimeDelta, Utc};
use tracing::error;

use crate::session::{CallRecord, PartState, RecordStatus, SessionId};
use crate::store::{PendingRecord, Store, StoreError};

/// A call that ended less than this ago goes before the older ones: somebody may be waiting for it.
const FRESH: TimeDelta = TimeDelta::seconds(60);

/// When a record wants to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Not before this time.
    At(DateTime<Utc>),
    /// Not by itself.
    Never,
    /// Its file cannot be read.
    Unreadable,
}

/// When the open part of a record wants to be tried.
pub(super) fn due_of(record: &CallRecord) -> Due {
    let at_once = DateTime::<Utc>::UNIX_EPOCH;
    match record.status {
        // Delivered, but killed before it was moved.
        RecordStatus::Uploaded => return Due::At(at_once),
        RecordStatus::Failed => return Due::Never,
        RecordStatus::ReadyForUpload | RecordStatus::Uploading => {}
    }
    let uploads = &record.uploads;
    let next_attempt = if !uploads.recording.state.is_settled() {
        uploads.recording.next_attempt
    } else if matches!(
        uploads.call_data.state,
        PartState::Pending | PartState::Waiting
    ) {
        uploads.call_data.next_attempt
    } else {
        // Both are settled, but it was killed before it could say so.
        None
    };
    Due::At(next_attempt.unwrap_or(at_once))
}

/// A record that is due.
#[derive(Debug, Clone)]
pub(super) struct DueRecord {
    pub pending: PendingRecord,
    /// Its call has just ended.
    pub fresh: bool,
}

/// What a look at the folder found.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Calls that have just ended, then the others, oldest first.
    pub due: Vec<DueRecord>,
    pub not_due: u64,
    pub unreadable: u64,
    /// The earliest time at which one of the others is due.
    pub next_due: Option<DateTime<Utc>>,
}

/// What was last seen of a record.
#[derive(Debug, Clone, Copy)]
struct Known {
    modified: SystemTime,
    due: Due,
    ended_at: Option<DateTime<Utc>>,
}

/// The folder, and what is known of it. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    store: Store,
    known: Arc<Mutex<HashMap<SessionId, Known>>>,
}

impl Queue {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            known: Arc::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SessionId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads this record again at the next look, whatever its file's time says: two writes can fall into one tick of that clock.
    pub(super) fn forget(&self, id: &SessionId) {
        self.known().remove(id);
    }

    /// Lists what is due. Blocks on the disk.
    pub(super) fn look(&self, now: DateTime<Utc>) -> Result<Look, StoreError> {
        let pending = self.store.pending()?;
        let before = self.known().clone();
        let mut seen = HashMap::with_capacity(pending.len());
        let mut look = Look::default();
        let mut older = Vec::new();
        for record in pending {
            let last = before
                .get(&record.session_id)
                .copied()
                .filter(|last| last.modified == record.modified);
            let Some(current) = last.or_else(|| self.read(&record)) else {
                continue;
            };
            seen.insert(record.session_id.clone(), current);
            match current.due {
                Due::At(due) if due <= now => {
                    let fresh = current.ended_at.is_some_and(|end| now - end < FRESH);
                    let list = if fresh { &mut look.due } else { &mut older };
                    list.push(DueRecord {
                        pending: record,
                        fresh,
                    });
                }
                Due::At(due) => {
                    look.not_due += 1;
                    look.next_due = Some(look.next_due.map_or(due, |earliest| earliest.min(due)));
                }
                Due::Never => look.not_due += 1,
                Due::Unreadable => look.unreadable += 1,
            }
        }
        look.due.append(&mut older);
        *self.known() = seen;
        Ok(look)
    }

    /// The record of one session, whether its time has come or not; none when it is delivered.
    pub(super) fn only(&self, id: &SessionId) -> Result<Look, StoreError> {
        let due: Vec<DueRecord> = self
            .store
            .pending()?
            .into_iter()
            .filter(|pending| pending.session_id == *id)
            .map(|pending| DueRecord {
                pending,
                fresh: true,
            })
            .collect();
        if due.is_empty() {
            // Delivered already is fine; unknown is a mistake that the operator should hear of.
            self.store.read_record(id)?;
        }
        Ok(Look {
            due,
            ..Look::default()
        })
    }

    /// `None` when it has been archived since the folder was listed.
    fn read(&self, pending: &PendingRecord) -> Option<Known> {
        let (due, ended_at) = match self.store.read_pending(pending) {
            Ok(Some(record)) => (due_of(&record), record.timestamps.call_end),
            Ok(None) => return None,
            Err(error) => {
                // Said once per version of the file: when a person repairs it, its time of change is new.
                error!(session.id = %pending.session_id, %error, "record left out");
                metrics::counter!("voicebot_records_unreadable_total").increment(1);
                (Due::Unreadable, None)
            }
        };
        Some(Known {
            modified: pending.modified,
            due,
            ended_at,
        })
    }
}
