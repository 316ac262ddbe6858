//! The lifecycle of a call's record, from the dispatch to the archive, as one state machine.
//!
//! The stage of a record follows from its files alone, so that it is known after a crash as well.
//! Pure: [`Traces`] says which files exist, [`Traces::stage`] what that means, [`Traces::to_do`]
//! what is left to do.
//!
//! ```text
//! Running ─▶ Ended ─▶ Recorded ─▶ Waiting ─▶ Delivering ─▶ Delivered ─▶ Archived
//!    └──────────────────▲            └──────────┴──▶ Refused (a retry goes back to Waiting)
//! ```

use super::RecordStatus;

/// Whether a process holds a call's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalHolder {
    /// A live process.
    Somebody,
    /// None: the process has died or has not started.
    Nobody,
}

/// The content of a metadata file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FiledRecord {
    /// A record with this status.
    Status(RecordStatus),
    /// A record of a later version of this program.
    Newer,
    /// Not readable: truncated, or no record.
    Unreadable,
}

/// The files of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traces {
    /// Its journal in `conversations/`.
    pub journal: Option<JournalHolder>,
    /// Its file in `call_metadata/`.
    pub waiting: Option<FiledRecord>,
    /// Its file in `processed_metadata/`.
    pub archived: Option<FiledRecord>,
}

/// The stage of a record, in the order of its lifecycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// A process holds the call and writes its journal.
    Running,
    /// Its process is gone; only the journal exists.
    Ended,
    /// The record is written, the journal still exists.
    Recorded,
    /// To be delivered.
    Waiting,
    /// A part of it has been sent.
    Delivering,
    /// The CRM has refused a part of it.
    Refused,
    /// The CRM has everything.
    Delivered,
    /// In the archive.
    Archived,
}

/// What is left to do for a record that no process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToDo {
    /// Nothing, unless an operator asks for it.
    Nothing,
    /// Make the record from the journal.
    Fold {
        /// Whether an unreadable file at the record's path is quarantined first.
        quarantined: bool,
    },
    /// Remove the journal: the record contains it.
    RetireJournal,
    /// Deliver it.
    Deliver,
    /// Move it to the archive.
    Archive,
}

impl Traces {
    /// The stage of the record; `None` when the call has no files.
    pub fn stage(self) -> Option<Stage> {
        let filed = |record| match record {
            FiledRecord::Status(RecordStatus::ReadyForUpload) => Some(Stage::Waiting),
            FiledRecord::Status(RecordStatus::Uploading) => Some(Stage::Delivering),
            FiledRecord::Status(RecordStatus::Failed) => Some(Stage::Refused),
            FiledRecord::Status(RecordStatus::Uploaded) => Some(Stage::Delivered),
            // Only the later version can read it.
            FiledRecord::Newer => Some(Stage::Waiting),
            FiledRecord::Unreadable => None,
        };
        let record = self
            .waiting
            .and_then(filed)
            .or_else(|| self.archived.and_then(filed).map(|_| Stage::Archived));
        match (self.journal, record) {
            (Some(JournalHolder::Somebody), None) => Some(Stage::Running),
            (Some(JournalHolder::Nobody), None) => Some(Stage::Ended),
            (Some(_), Some(_)) => Some(Stage::Recorded),
            (None, record) => record,
        }
    }

    /// What is left to do.
    pub fn to_do(self) -> ToDo {
        match self.stage() {
            None | Some(Stage::Running | Stage::Refused | Stage::Archived) => ToDo::Nothing,
            // Its own process is about to remove it.
            Some(Stage::Recorded) if self.journal == Some(JournalHolder::Somebody) => ToDo::Nothing,
            Some(Stage::Recorded) => ToDo::RetireJournal,
            Some(Stage::Ended) => ToDo::Fold {
                quarantined: self.waiting.is_some(),
            },
            Some(Stage::Waiting | Stage::Delivering) => ToDo::Deliver,
            Some(Stage::Delivered) => ToDo::Archive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination of files of one call.
    fn all_traces() -> Vec<Traces> {
        let journals = [
            None,
            Some(JournalHolder::Somebody),
            Some(JournalHolder::Nobody),
        ];
        let filed = [
            None,
            Some(FiledRecord::Newer),
            Some(FiledRecord::Unreadable),
            Some(FiledRecord::Status(RecordStatus::ReadyForUpload)),
            Some(FiledRecord::Status(RecordStatus::Uploading)),
            Some(FiledRecord::Status(RecordStatus::Failed)),
            Some(FiledRecord::Status(RecordStatus::Uploaded)),
        ];
        let mut all = Vec::new();
        for journal in journals {
            for waiting in filed {
                for archived in filed {
                    all.push(Traces {
                        journal,
                        waiting,
                        archived,
                    });
                }
            }
        }
        all
    }

    /// The folders after `unfinished` has been done, as the store does it.
    fn done(mut traces: Traces) -> Traces {
        match traces.to_do() {
            ToDo::Nothing => {}
            ToDo::Fold { .. } => {
                traces.waiting = Some(FiledRecord::Status(RecordStatus::ReadyForUpload))
            }
            ToDo::RetireJournal => traces.journal = None,
            ToDo::Deliver => {
                if traces.waiting != Some(FiledRecord::Newer) {
                    traces.waiting = Some(FiledRecord::Status(RecordStatus::Uploaded));
                }
            }
            ToDo::Archive => {
                traces.waiting = None;
                traces.archived = Some(FiledRecord::Status(RecordStatus::Uploaded));
            }
        }
        traces
    }

    #[test]
    fn whatever_a_crash_leaves_comes_to_its_end_and_only_moves_forward() {
        for found in all_traces() {
            let mut traces = found;
            for _ in 0..8 {
                let next = done(traces);
                if let (Some(stage), Some(later)) = (traces.stage(), next.stage()) {
                    assert!(later >= stage, "{found:?}: {stage:?} became {later:?}");
                }
                assert!(
                    traces.stage().is_none() || next.stage().is_some(),
                    "{found:?} was lost"
                );
                traces = next;
            }
            let rests = match found.journal {
                Some(JournalHolder::Somebody) => {
                    matches!(traces.stage(), Some(Stage::Running | Stage::Recorded))
                }
                _ => match traces.stage() {
                    Some(Stage::Archived | Stage::Refused) => true,
                    Some(Stage::Waiting) => found.waiting == Some(FiledRecord::Newer),
                    // Only an unreadable file, which `uploads list` shows.
                    None => true,
                    _ => false,
                },
            };
            assert!(rests, "{found:?} stops as {:?}", traces.stage());
        }
    }

    #[test]
    fn a_record_that_nobody_can_read_never_costs_the_journal() {
        for found in all_traces() {
            let nothing_readable = [found.waiting, found.archived]
                .iter()
                .all(|record| matches!(record, None | Some(FiledRecord::Unreadable)));
            if found.journal == Some(JournalHolder::Nobody) && nothing_readable {
                assert!(matches!(found.to_do(), ToDo::Fold { .. }));
            }
        }
    }
}
