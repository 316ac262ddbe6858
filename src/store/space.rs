//! Disk space: how much is free, whether the disk is writable, and which recordings may be deleted.
//!
//! Only recordings are ever deleted, and only if an archived record names them and the CRM has
//! confirmed their upload. Records, conversations and leads stay.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::session::{CallRecord, PartState, RecordStatus, SessionId, time};

use super::{
    CALL_METADATA, CONVERSATIONS, LEADS, PROCESSED, RECORDINGS, Store, StoreError, atomic, disk,
    pending,
};

/// The content of a probe file: one block, so that a full file system refuses it.
const PROBE_BYTES: [u8; 4096] = [b' '; 4096];
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Section `storage` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// With less free space than this on the disk of the data folder, in megabytes (10⁶ bytes), the
    /// worker takes no new calls. A locally recorded call writes half a megabyte a minute. 0: no
    /// limit.
    pub min_free_mb: u64,
    /// A recording that the CRM has confirmed is deleted this many days after it was made, or after
    /// its delivery if that was later. 0: never.
    pub keep_recordings_days: u64,
    /// When `recordings/` holds more than this, in megabytes, the oldest recordings that the CRM
    /// has confirmed are deleted. 0: no limit.
    pub max_recordings_mb: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            min_free_mb: 200,
            keep_recordings_days: 0,
            max_recordings_mb: 0,
        }
    }
}

impl StorageConfig {
    /// The free space below which no call is taken.
    pub fn min_free_bytes(&self) -> u64 {
        self.min_free_mb.saturating_mul(1_000_000)
    }

    fn max_recordings_bytes(&self) -> Option<u64> {
        (self.max_recordings_mb > 0).then(|| self.max_recordings_mb.saturating_mul(1_000_000))
    }

    fn keep_for(&self) -> Option<Duration> {
        let days = u32::try_from(self.keep_recordings_days).unwrap_or(u32::MAX);
        (days > 0).then(|| DAY.saturating_mul(days))
    }

    /// Whether recordings are ever deleted.
    pub fn deletes(&self) -> bool {
        self.keep_for().is_some() || self.max_recordings_bytes().is_some()
    }
}

/// The result of a deletion run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Recordings.
    pub deleted: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A file in `recordings/`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RecordingFile {
    /// `recordings/…`.
    path: String,
    bytes: u64,
    modified: SystemTime,
}

/// The archived call whose recording a file is.
struct Owner {
    session_id: SessionId,
    /// When the CRM had confirmed all parts.
    delivered: Option<SystemTime>,
}

impl Owner {
    fn of(record: &CallRecord) -> Self {
        Self {
            session_id: record.session_id.clone(),
            delivered: record.timestamps.delivered.map(SystemTime::from),
        }
    }
}

/// Selects the recordings to delete, oldest first, among those that `may_go` permits.
fn to_delete(
    mut all: Vec<RecordingFile>,
    config: &StorageConfig,
    now: SystemTime,
    may_go: impl Fn(&RecordingFile) -> bool,
) -> Vec<RecordingFile> {
    let mut total: u64 = all.iter().map(|file| file.bytes).sum();
    all.sort_by(|a, b| (a.modified, &a.path).cmp(&(b.modified, &b.path)));
    all.retain(|file| {
        // A file from the future counts as new.
        let age = now.duration_since(file.modified).unwrap_or_default();
        let too_old = config.keep_for().is_some_and(|keep| age > keep);
        let too_many = config.max_recordings_bytes().is_some_and(|max| total > max);
        let goes = (too_old || too_many) && may_go(file);
        if goes {
            total -= file.bytes;
        }
        goes
    });
    all
}

/// Whether an archived record says that the CRM has this recording.
fn is_delivered(record: &CallRecord, path: &str) -> bool {
    record.status == RecordStatus::Uploaded
        && record.uploads.recording.state == PartState::Sent
        && record.files.recording.as_deref() == Some(path)
}

/// Free bytes on the disk of a folder, as far as this user may use them.
///
/// # Errors
/// When the system does not report it.
pub fn free_bytes(folder: &Path) -> Result<u64, StoreError> {
    let space = rustix::fs::statvfs(folder)
        .map_err(|error| StoreError::io("ask for free space in", folder)(error.into()))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

impl Store {
    /// Free bytes on the disk of the data folder, as far as this user may use them. If the folders
    /// are on several disks, the fullest counts.
    ///
    /// # Errors
    /// When the system does not report it.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let mut least = u64::MAX;
        for folder in Self::folders(self.root()) {
            least = least.min(free_bytes(&folder)?);
        }
        Ok(least)
    }

    /// The folders of a data folder, existing or not.
    pub fn folders(data_dir: &Path) -> [PathBuf; 5] {
        [CONVERSATIONS, LEADS, RECORDINGS, CALL_METADATA, PROCESSED].map(|name| data_dir.join(name))
    }

    /// Writes and removes a small file in each folder that a call writes to.
    ///
    /// # Errors
    /// When that is refused: a full or read-only disk, or wrong permissions.
    pub fn probe(&self) -> Result<(), StoreError> {
        for folder in [CONVERSATIONS, CALL_METADATA] {
            let folder = self.root().join(folder);
            let path = atomic::temporary_beside(&folder.join("probe"));
            let written = disk::create_new(&path)
                .and_then(|mut file| disk::write_all(&mut file, &PROBE_BYTES));
            let removed = disk::remove_file(&path);
            written
                .and(removed)
                .map_err(StoreError::io("write in", &folder))?;
        }
        Ok(())
    }

    /// Deletes recordings by age and total size. Blocks on the disk; when nothing is over its
    /// limit, the folder is listed and that is all.
    ///
    /// # Errors
    /// When a folder cannot be listed or a record not be read; nothing is deleted then.
    pub fn tidy_recordings(
        &self,
        config: &StorageConfig,
        now: SystemTime,
    ) -> Result<Tidied, StoreError> {
        let mut tidied = Tidied::default();
        if !config.deletes() {
            return Ok(tidied);
        }
        let all = self.recording_files()?;
        // A cheap check first: whether anything is over a limit, before records are read.
        if to_delete(all.clone(), config, now, |_| true).is_empty() {
            return Ok(tidied);
        }
        let owners = self.owners_of(&all)?;
        // The age counts from the delivery: an old call that was delivered today keeps its file.
        let delivered = |file: &RecordingFile| owners.get(&file.path)?.delivered;
        let all: Vec<RecordingFile> = all
            .into_iter()
            .map(|file| RecordingFile {
                modified: delivered(&file).map_or(file.modified, |at| at.max(file.modified)),
                ..file
            })
            .collect();
        let needed = self.recordings_needed()?;
        let may_go =
            |file: &RecordingFile| owners.contains_key(&file.path) && !needed.contains(&file.path);
        for file in to_delete(all, config, now, may_go) {
            let Some(owner) = owners.get(&file.path) else {
                continue;
            };
            let session_id = &owner.session_id;
            match self.delete_recording(&file.path, session_id) {
                Ok(true) => {
                    tidied.deleted += 1;
                    tidied.bytes += file.bytes;
                }
                Ok(false) => {}
                Err(error) => {
                    warn!(session.id = %session_id, %error, "a delivered recording could not be deleted")
                }
            }
        }
        if tidied.deleted > 0 {
            info!(
                count = tidied.deleted,
                bytes = tidied.bytes,
                "delivered recordings deleted (storage.keep_recordings_days, storage.max_recordings_mb)"
            );
        }
        Ok(tidied)
    }

    fn recording_files(&self) -> Result<Vec<RecordingFile>, StoreError> {
        let folder = self.recordings_dir();
        let entries = fs::read_dir(&folder).map_err(StoreError::io("list", &folder))?;
        let file = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            // Metadata of the entry itself: symbolic links are skipped.
            let meta = entry.metadata().ok().filter(|meta| meta.is_file())?;
            // Manifests stay: they are small, and tell where the recording was.
            if name.starts_with('.') || name.ends_with(".json") {
                return None;
            }
            Some(RecordingFile {
                path: format!("{RECORDINGS}/{name}"),
                bytes: meta.len(),
                modified: meta.modified().ok()?,
            })
        };
        Ok(entries.flatten().filter_map(file).collect())
    }

    /// Recordings that have an archived record whose upload is confirmed, with that call.
    fn owners_of(&self, files: &[RecordingFile]) -> Result<HashMap<String, Owner>, StoreError> {
        let mut owners = HashMap::new();
        let mut others = HashSet::new();
        for file in files {
            // A local recording is named after its session.
            let stem = file
                .path
                .trim_start_matches(RECORDINGS)
                .trim_start_matches('/')
                .rsplit_once('.')
                .map(|(stem, _)| stem);
            let record = stem
                .and_then(|stem| stem.parse::<SessionId>().ok())
                .and_then(|id| self.archived(&id));
            match record {
                Some(record) if is_delivered(&record, &file.path) => {
                    owners.insert(file.path.clone(), Owner::of(&record));
                }
                Some(_) => {}
                None => drop(others.insert(file.path.as_str())),
            }
        }
        if others.is_empty() {
            return Ok(owners);
        }
        let folder = self.root().join(PROCESSED);
        let entries = fs::read_dir(&folder).map_err(StoreError::io("list", &folder))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let id = pending::stem(&name.to_string_lossy()).and_then(|stem| stem.parse().ok());
            let Some(record) = id.and_then(|id| self.archived(&id)) else {
                continue;
            };
            if let Some(path) = &record.files.recording
                && others.contains(path.as_str())
                && is_delivered(&record, path)
            {
                owners.insert(path.clone(), Owner::of(&record));
            }
        }
        Ok(owners)
    }

    /// An archived record; `None` if there is no readable one.
    fn archived(&self, id: &SessionId) -> Option<CallRecord> {
        let bytes = fs::read(self.record_path(PROCESSED, id)).ok()?;
        CallRecord::from_json(&bytes, id).ok()
    }

    /// Recordings that waiting records name. An unreadable record may name any recording of its
    /// call, so all of its session are kept.
    fn recordings_needed(&self) -> Result<HashSet<String>, StoreError> {
        let mut needed = HashSet::new();
        for pending in self.pending()? {
            match self.read_pending(&pending) {
                Ok(Some(record)) => needed.extend(record.files.recording),
                Ok(None) => {}
                Err(_) => {
                    let session = pending.session_id.as_str();
                    let of_session = self.recording_files()?.into_iter();
                    needed.extend(
                        of_session
                            .map(|file| file.path)
                            .filter(|path| path.contains(session)),
                    );
                }
            }
        }
        Ok(needed)
    }

    /// Writes the deletion into the record, then deletes. `false` if the record is gone or has
    /// changed.
    fn delete_recording(&self, path: &str, owner: &SessionId) -> Result<bool, StoreError> {
        let Some(mut record) = self
            .archived(owner)
            .filter(|record| is_delivered(record, path))
        else {
            return Ok(false);
        };
        record.timestamps.recording_deleted = Some(time::now());
        atomic::write_json(&self.record_path(PROCESSED, owner), &record)?;
        let file = self.root().join(path);
        disk::remove_file(&file).map_err(StoreError::io("remove", &file))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, megabytes: u64, age_days: u32) -> RecordingFile {
        RecordingFile {
            path: name.to_owned(),
            bytes: megabytes * 1_000_000,
            modified: now() - DAY * age_days,
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * 20_000
    }

    fn gone(config: StorageConfig, keep: &[&str]) -> Vec<String> {
        let all = vec![
            file("new", 10, 0),
            file("week", 20, 7),
            file("month", 30, 30),
            file("year", 40, 365),
        ];
        let may_go = |file: &RecordingFile| !keep.contains(&file.path.as_str());
        let gone = to_delete(all, &config, now(), may_go);
        gone.into_iter().map(|file| file.path).collect()
    }

    #[test]
    fn the_oldest_go_first_and_no_more_than_has_to() {
        let config = |keep_recordings_days, max_recordings_mb| StorageConfig {
            keep_recordings_days,
            max_recordings_mb,
            ..StorageConfig::default()
        };
        let nothing: [&str; 0] = [];
        assert_eq!(gone(config(0, 0), &[]), nothing);
        assert_eq!(gone(config(7, 0), &[]), ["year", "month"]);
        assert_eq!(gone(config(7, 0), &["year"]), ["month"]);
        assert_eq!(gone(config(0, 100), &[]), nothing);
        assert_eq!(gone(config(0, 99), &[]), ["year"]);
        assert_eq!(gone(config(0, 30), &[]), ["year", "month"]);
        assert_eq!(gone(config(0, 1), &[]), ["year", "month", "week", "new"]);
        assert_eq!(gone(config(0, 50), &["year", "week"]), ["month", "new"]);
        assert_eq!(gone(config(300, 55), &[]), ["year", "month"]);
    }

    #[test]
    fn a_clock_that_went_back_makes_no_file_old() {
        let config = StorageConfig {
            keep_recordings_days: 1,
            ..StorageConfig::default()
        };
        let all = vec![file("future", 1, 0)];
        assert_eq!(to_delete(all, &config, now() - DAY * 400, |_| true), []);
    }
}
