//! `call_metadata/` as a queue: lists, claims and updates records, and moves them to
//! `processed_metadata/`.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::session::{CallRecord, FiledRecord, RecordStatus, SessionId, ToDo, Traces, sanitise};

use super::{CALL_METADATA, CONVERSATIONS, LEADS, PROCESSED, Store, StoreError, atomic, disk};

const CLAIMS: &str = ".claims";
/// A temporary file older than this was left by a killed process: writing one takes milliseconds.
const STRAY_AFTER: Duration = Duration::from_secs(3600);

/// The session part of `metadata_<session_id>.json`.
pub(super) fn stem(file_name: &str) -> Option<&str> {
    file_name.strip_prefix("metadata_")?.strip_suffix(".json")
}

/// A metadata file that waits in `call_metadata/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRecord {
    /// The session id in the file's name.
    pub session_id: SessionId,
    /// When the file was last written.
    pub modified: SystemTime,
    /// The file's name, if it is not the standard one for the session.
    odd_name: Option<Box<OsStr>>,
}

impl PendingRecord {
    /// The record of a session whose file has the standard name.
    pub fn new(session_id: SessionId, modified: SystemTime) -> Self {
        Self {
            session_id,
            modified,
            odd_name: None,
        }
    }
}

/// An exclusive claim on a record. Released when it is dropped or the process dies.
#[derive(Debug)]
pub struct Claim {
    record: CallRecord,
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Claim {
    /// The record as it is on disk.
    pub fn record(&self) -> &CallRecord {
        &self.record
    }
}

impl Store {
    /// The records that wait for delivery, oldest first (by name, which begins with the time of the
    /// call).
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn pending(&self) -> Result<Vec<PendingRecord>, StoreError> {
        let folder = self.root().join(CALL_METADATA);
        let entries = fs::read_dir(&folder).map_err(StoreError::io("list", &folder))?;
        let mut pending: Vec<PendingRecord> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let session_id: SessionId =
                    sanitise(stem(&name.to_string_lossy())?).parse().ok()?;
                // A record that was archived since the listing began is skipped.
                let modified = entry.metadata().and_then(|m| m.modified()).ok()?;
                let is_ours = name.to_str().and_then(stem) == Some(session_id.as_str());
                Some(PendingRecord {
                    odd_name: (!is_ours).then(|| name.into()),
                    ..PendingRecord::new(session_id, modified)
                })
            })
            .collect();
        pending.sort_by(|a, b| a.session_id.cmp(&b.session_id));
        Ok(pending)
    }

    /// Reads a waiting or archived record without claiming it. For display only: it may change at
    /// any time.
    ///
    /// # Errors
    /// When it does not exist or is not readable.
    pub fn read_record(&self, id: &SessionId) -> Result<CallRecord, StoreError> {
        for folder in [CALL_METADATA, PROCESSED] {
            if let Some(record) = read(&self.record_path(folder, id), id)? {
                return Ok(record);
            }
        }
        Err(StoreError::NoRecord {
            session_id: id.clone(),
            folder: self.root().join(CALL_METADATA),
        })
    }

    /// The file of a record that [`Store::pending`] listed.
    fn pending_path(&self, pending: &PendingRecord) -> PathBuf {
        match &pending.odd_name {
            Some(name) => self.root().join(CALL_METADATA).join(&**name),
            None => self.record_path(CALL_METADATA, &pending.session_id),
        }
    }

    /// Reads a record that [`Store::pending`] listed. `None` when it has been archived since.
    ///
    /// # Errors
    /// When it is not readable.
    pub fn read_pending(&self, pending: &PendingRecord) -> Result<Option<CallRecord>, StoreError> {
        read(&self.pending_path(pending), &pending.session_id)
    }

    /// Claims a waiting record. `None`: another process holds it, or it has been delivered.
    ///
    /// # Errors
    /// When the claim cannot be made or the record is not readable.
    pub fn claim(&self, pending: &PendingRecord) -> Result<Option<Claim>, StoreError> {
        let folder = self.root().join(CALL_METADATA).join(CLAIMS);
        fs::create_dir_all(&folder).map_err(StoreError::io("create the folder", &folder))?;
        let lock_path = folder.join(format!("{}.lock", pending.session_id));
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(StoreError::io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => {
                return Err(StoreError::io("lock", &lock_path)(error));
            }
        }
        // The previous holder may have removed the lock file when it archived the record, and
        // another process may have created a new one: a lock on an unlinked file protects nothing.
        if !is_same_file(&lock, &lock_path) {
            return Ok(None);
        }
        // Read under the lock: the previous holder may have changed it.
        let path = self.pending_path(pending);
        match read(&path, &pending.session_id) {
            Ok(Some(record)) => Ok(Some(Claim {
                record,
                path,
                lock_path,
                _lock: lock,
            })),
            Ok(None) => {
                let _ = disk::remove_file(&lock_path);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Changes a claimed record on disk. Changes only move it forward: one that would undo a
    /// confirmed part is refused.
    ///
    /// # Errors
    /// When the change is backward or the file cannot be written; the record on disk is then as
    /// before.
    pub fn mark(
        &self,
        claim: &mut Claim,
        change: impl FnOnce(&mut CallRecord),
    ) -> Result<(), StoreError> {
        let mut next = claim.record.clone();
        change(&mut next);
        let (before, after) = (&claim.record.uploads, &next.uploads);
        let forward = claim.record.status.can_become(next.status)
            && before.recording.state.can_become(after.recording.state)
            && before.call_data.state.can_become(after.call_data.state)
            && match (&before.call_data_update, &after.call_data_update) {
                (None, _) => true,
                (Some(before), Some(after)) => before.state.can_become(after.state),
                (Some(_), None) => false,
            };
        if !forward {
            return Err(StoreError::Backward {
                session_id: next.session_id,
                from: claim.record.status,
                to: next.status,
            });
        }
        atomic::write_json(&claim.path, &next)?;
        claim.record = next;
        Ok(())
    }

    /// Moves a record with status `uploaded` to `processed_metadata/`. Returns its new path.
    ///
    /// # Errors
    /// When it is not `uploaded`, or the file cannot be moved.
    pub fn archive(&self, claim: Claim) -> Result<PathBuf, StoreError> {
        let traces = Traces {
            waiting: Some(FiledRecord::Status(claim.record.status)),
            ..Traces::default()
        };
        if traces.to_do() != ToDo::Archive {
            return Err(StoreError::Backward {
                session_id: claim.record.session_id,
                from: claim.record.status,
                to: RecordStatus::Uploaded,
            });
        }
        let waiting = self.root().join(CALL_METADATA);
        let archive = self.root().join(PROCESSED);
        let target = archive.join(claim.path.file_name().unwrap_or_default());
        disk::rename(&claim.path, &target).map_err(StoreError::io("move", &claim.path))?;
        for folder in [&archive, &waiting] {
            disk::sync_folder(folder).map_err(StoreError::io("sync the folder", folder))?;
        }
        let _ = disk::remove_file(&claim.lock_path);
        Ok(target)
    }

    /// Makes a waiting or refused record due again, as an operator asked. `false` when nothing of
    /// it is left to send.
    ///
    /// # Errors
    /// When there is no such record, another process holds it, or it cannot be written.
    pub fn reset_for_retry(&self, id: &SessionId) -> Result<bool, StoreError> {
        let pending = PendingRecord::new(id.clone(), SystemTime::now());
        let Some(mut claim) = self.claim(&pending)? else {
            return match self.pending_path(&pending).exists() {
                true => Err(StoreError::Busy(id.clone())),
                false if self.record_path(PROCESSED, id).exists() => Ok(false),
                false => Err(StoreError::NoRecord {
                    session_id: id.clone(),
                    folder: self.root().join(CALL_METADATA),
                }),
            };
        };
        let anything = claim.record.reset_for_retry();
        if anything {
            atomic::write_json(&claim.path, &claim.record)?;
        }
        Ok(anything)
    }

    /// Removes temporary files that killed processes have left, and claims of records that are
    /// archived. Returns how many.
    pub fn remove_stray_temporaries(&self) -> usize {
        self.remove_stray_claims() + self.remove_half_written()
    }

    /// Removes lock files of processes that died between archiving a record and releasing it. Each
    /// is locked first, so no process holds it.
    fn remove_stray_claims(&self) -> usize {
        let waiting = self.root().join(CALL_METADATA);
        let Ok(entries) = fs::read_dir(waiting.join(CLAIMS)) else {
            return 0;
        };
        let is_stray = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            let session = name.to_str().and_then(|name| name.strip_suffix(".lock"));
            session
                .is_some_and(|session| !waiting.join(format!("metadata_{session}.json")).exists())
        };
        entries
            .flatten()
            .filter(is_stray)
            .filter(|entry| {
                let lock = File::open(entry.path());
                lock.is_ok_and(|lock| {
                    lock.try_lock().is_ok() && disk::remove_file(&entry.path()).is_ok()
                })
            })
            .count()
    }

    fn remove_half_written(&self) -> usize {
        [CALL_METADATA, PROCESSED, CONVERSATIONS, LEADS]
            .iter()
            .map(|folder| atomic::remove_stray_temporaries(&self.root().join(folder), STRAY_AFTER))
            .sum()
    }
}

fn is_same_file(open: &File, path: &Path) -> bool {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    match (open.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

fn read(path: &Path, id: &SessionId) -> Result<Option<CallRecord>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    CallRecord::from_json(&bytes, id)
        .map(Some)
        .map_err(|problem| StoreError::BadRecord {
            path: path.to_owned(),
            problem,
        })
}
