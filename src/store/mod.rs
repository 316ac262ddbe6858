//! The five folders on disk: where a call's events, conversation, leads and record lie, and how
//! they get there whole.
//!
//! Everything here blocks on the disk. Async callers that care about latency go through
//! `spawn_blocking`. It knows no network and does not decide what is sent; [`crate::upload`] does.

mod atomic;
mod browse;
mod call_ids;
#[cfg(test)]
mod crash_tests;
mod disk;
pub(crate) mod journal;
mod paths;
mod pending;
mod scan;
mod space;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use thiserror::Error;
use tracing::{debug, info, warn};

use crate::session::{
    self, CallRecord, CallStart, CompleteSessionData, FiledRecord, JournalHolder, Lead, Outcome,
    SessionEvent, SessionId, SessionManager, SharedSession, ToDo, Traces, Transcription,
    call_id_base, sanitise, time,
};

pub use browse::{CallFile, OpenJournal, Place};
pub use journal::JournalLock;
pub use paths::PathError;
pub use pending::{Claim, PendingRecord};
pub use scan::{ScanOptions, ScanReport, ScannedCall, ScannedFile};
pub use space::{StorageConfig, Tidied, free_bytes};

const CONVERSATIONS: &str = "conversations";
const LEADS: &str = "leads";
const RECORDINGS: &str = "recordings";
const CALL_METADATA: &str = "call_metadata";
const PROCESSED: &str = "processed_metadata";
const JOURNAL_SUFFIX: &str = ".journal.jsonl";
/// Ends the name of a file that nobody can read and that lay where one was needed. It is kept for a
/// person.
const QUARANTINE_SUFFIX: &str = ".unreadable";

/// Why something could not be kept or read.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file system said no.
    #[error("failed to {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process holds the session's journal.
    #[error("the call {0} is held by another process")]
    Busy(SessionId),
    /// There is no journal of that session.
    #[error("there is no journal of the call {session_id} in {folder}")]
    NoJournal {
        /// The session.
        session_id: SessionId,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The journal has no readable beginning.
    #[error("the journal {path} does not begin with a dispatch, so nothing can be made of it")]
    BadJournal {
        /// The file.
        path: PathBuf,
    },
    /// A metadata file cannot be read.
    #[error("the record {path} {problem}")]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no record of that session.
    #[error("there is no record of the call {session_id} in {folder}")]
    NoRecord {
        /// The session.
        session_id: SessionId,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A change would have moved a record backward.
    #[error("the record of the call {session_id} can not go back from {from:?} to {to:?}")]
    Backward {
        /// The session.
        session_id: SessionId,
        /// Where it stands on disk.
        from: session::RecordStatus,
        /// Where it was to be put.
        to: session::RecordStatus,
    },
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// A record that could not be written. Everything that it needs is still there.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct Unfinished {
    /// Why not.
    pub error: StoreError,
    /// The journal, still held.
    pub lock: JournalLock,
}

/// The session that a journal tells of.
struct Replayed {
    session: SessionManager,
    /// When its last event was written.
    last_written: Option<DateTime<Utc>>,
    /// Some of it could not be read.
    damaged: bool,
}

/// A journal in the folder, and whether a process holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrphanJournal {
    /// The session.
    pub session_id: SessionId,
    /// LiveKit's id of its job; empty when the journal's first line is not readable.
    pub job_id: String,
    /// A process holds it: the call is running.
    pub alive: bool,
    /// When it was last written. A journal that nobody holds and that is a few seconds old may
    /// belong to a call that is just starting.
    pub last_written: DateTime<Utc>,
    /// The room's name; empty when the journal's first line is not readable.
    pub room_name: String,
    /// The room's id, as far as it is known.
    pub room_sid: Option<String>,
    /// The name that the worker was registered under.
    pub agent_name: String,
    /// The call was in its room. Known only of calls that do not run.
    pub joined: bool,
}

/// The data folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    root: Arc<PathBuf>,
}

impl Store {
    /// Opens the data folder and creates what is missing of its five folders.
    ///
    /// # Errors
    /// When a folder cannot be created.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        for path in Self::folders(data_dir) {
            fs::create_dir_all(&path).map_err(StoreError::io("create the folder", &path))?;
        }
        // Absolute, so that a later change of the working directory changes nothing.
        let root =
            fs::canonicalize(data_dir).map_err(StoreError::io("open the data folder", data_dir))?;
        Ok(Self {
            root: Arc::new(root),
        })
    }

    /// The data folder, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a path of a record lies on this machine. For paths that we made ourselves;
    /// [`Store::resolve`] is for those of others.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// `recordings/`, absolute.
    pub fn recordings_dir(&self) -> PathBuf {
        self.root.join(RECORDINGS)
    }

    /// Where this process may write the recording of a session: the path for the record, and the
    /// absolute one.
    pub fn recording_path(&self, session_id: &SessionId, extension: &str) -> (String, PathBuf) {
        let relative = format!("{RECORDINGS}/{session_id}.{}", sanitise(extension));
        let absolute = self.root.join(&relative);
        (relative, absolute)
    }

    fn journal_path(&self, id: &SessionId) -> PathBuf {
        self.root
            .join(CONVERSATIONS)
            .join(format!("{id}{JOURNAL_SUFFIX}"))
    }

    fn record_path(&self, folder: &str, id: &SessionId) -> PathBuf {
        self.root.join(folder).join(format!("metadata_{id}.json"))
    }

    /// Begins the journal of a call with its dispatch and what that tells of the call. The worker
    /// does this before it starts the call's process, so that a call whose process never comes up
    /// has a record too, under its number.
    ///
    /// # Errors
    /// When the journal exists already or cannot be written.
    pub fn begin(&self, start: &CallStart, told: &[SessionEvent]) -> Result<(), StoreError> {
        let path = self.journal_path(&start.session_id);
        journal::create(&path, start, told).map_err(StoreError::io("create the journal", &path))?;
        debug!(session.id = %start.session_id, job.id = %start.job_id, "journal begun");
        Ok(())
    }

    /// Takes the session over: locks its journal for as long as the returned lock lives (that is
    /// how others know that the call is alive) and replays it. Every later event of the session is
    /// appended to it.
    ///
    /// # Errors
    /// When there is no journal, it is unreadable, or another process holds it.
    pub fn open_session(&self, id: &SessionId) -> Result<(SharedSession, JournalLock), StoreError> {
        let path = self.journal_path(id);
        let lock = self
            .lock_journal(id, &path)?
            .ok_or_else(|| StoreError::Busy(id.clone()))?;
        let lines = lock.read().map_err(StoreError::io("read", &path))?.lines;
        let mut session = SessionManager::replay(lines.into_iter().map(|line| line.event))
            .filter(|session| session.session_id() == id)
            .ok_or_else(|| StoreError::BadJournal { path: path.clone() })?;
        let sink = lock
            .sink()
            .map_err(StoreError::io("open for appending", &path))?;
        session.set_sink(Box::new(sink));
        Ok((Arc::new(std::sync::Mutex::new(session)), lock))
    }

    /// `None` when another process holds it.
    fn lock_journal(&self, id: &SessionId, path: &Path) -> Result<Option<JournalLock>, StoreError> {
        match JournalLock::acquire(path) {
            Ok(lock) => Ok(lock),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::NoJournal {
                session_id: id.clone(),
                folder: self.root.join(CONVERSATIONS),
            }),
            Err(error) => Err(StoreError::io("lock", path)(error)),
        }
    }

    /// Keeps a lead: writes its file whole, then tells the session. A lead whose id was saved
    /// already is not saved again. Returns its path, `leads/…`.
    ///
    /// # Errors
    /// When the file cannot be written; the session then does not know of the lead.
    pub fn save_lead(&self, session: &SharedSession, mut lead: Lead) -> Result<String, StoreError> {
        let data = session::lock(session).get_complete_session_data();
        if let Some(known) = data.lead_ids.iter().position(|id| *id == lead.lead_id) {
            return Ok(data.lead_files.get(known).cloned().unwrap_or_default());
        }
        lead.call_id = Some(self.call_id_of(&data)?);
        let id = &data.start.session_id;
        let mut number = data.lead_files.len() + 1;
        let relative = loop {
            let relative = format!("{LEADS}/lead_{id}_{number}.json");
            if !self.root.join(&relative).exists() {
                break relative;
            }
            number += 1;
        };
        atomic::write_json(&self.root.join(&relative), &lead)?;
        let mut session = session::lock(session);
        session.set_lead_file_path(&relative);
        session.link_lead_to_session(&lead.lead_id);
        info!(session.id = %id, lead.id = %lead.lead_id, file = %relative, "lead saved");
        Ok(relative)
    }

    /// Folds the session into its files: conversation, then metadata (which is the queue for
    /// delivery), then the journal goes. Whatever is interrupted in between is finished by
    /// [`Store::recover`]. Returns the metadata file.
    ///
    /// # Errors
    /// When a file cannot be written; the journal then stays, and its lock is given back for
    /// another try.
    pub fn finish(
        &self,
        session: &SharedSession,
        lock: JournalLock,
    ) -> Result<PathBuf, Unfinished> {
        let data = session::lock(session).get_complete_session_data();
        match self.fold(data, time::now()) {
            Ok(path) => {
                // The call is whole without this: whoever finds the journal sees the record beside
                // it.
                if let Err(error) = lock.remove() {
                    warn!(%error, "the journal of a call that has its record stays until the next scan");
                }
                Ok(path)
            }
            Err(error) => Err(Unfinished { error, lock }),
        }
    }

    /// Finishes what the process of a call has left, whatever it is: makes the record from the
    /// journal, or puts a journal away whose record exists. `why` is how the call ended, as far as
    /// anybody knows; an outcome in the journal comes first. `None`: its process is alive, or its
    /// record exists already.
    ///
    /// # Errors
    /// When the journal cannot be read or a file cannot be written; the journal then stays, and
    /// this can be called again.
    pub fn recover(&self, id: &SessionId, why: &Outcome) -> Result<Option<PathBuf>, StoreError> {
        let path = self.journal_path(id);
        let lock = match self.lock_journal(id, &path) {
            Ok(Some(lock)) => lock,
            Ok(None) | Err(StoreError::NoJournal { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let traces = Traces {
            // We hold it, so nobody else does.
            journal: Some(JournalHolder::Nobody),
            waiting: self.filed(CALL_METADATA, id)?,
            archived: self.filed(PROCESSED, id)?,
        };
        match traces.to_do() {
            ToDo::Fold { quarantined } => {
                if quarantined {
                    let record = self.record_path(CALL_METADATA, id);
                    let aside = quarantined_file(&record)?;
                    warn!(session.id = %id, file = %aside.display(), "a record that nobody can read was quarantined, it is made again from the journal");
                }
                self.recover_from(lock, id, why).map(Some)
            }
            // It died between writing the record and removing the journal.
            _ => {
                retire(lock, id)?;
                Ok(None)
            }
        }
    }

    fn recover_from(
        &self,
        lock: JournalLock,
        id: &SessionId,
        why: &Outcome,
    ) -> Result<PathBuf, StoreError> {
        let (mut session, last_written, damaged) = match self.replay(id, &self.journal_path(id)) {
            Ok(replayed) => (replayed.session, replayed.last_written, replayed.damaged),
            Err(error @ StoreError::BadJournal { .. }) => {
                // Not of this program, or written over: quarantined for an operator.
                lock.quarantined()?;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        let mut why = why.clone();
        if damaged {
            let note = format!(
                "part of its journal could not be read and is kept as conversations/{id}{JOURNAL_SUFFIX}{QUARANTINE_SUFFIX}"
            );
            why.error = Some(match why.error.take() {
                Some(error) => format!("{error}; {note}"),
                None => note,
            });
        }
        session.set_outcome(why);
        let mut data = session.get_complete_session_data();
        self.adopt_unlinked_leads(&mut data);
        let record = self.fold(data, last_written.unwrap_or_else(time::now))?;
        retire(lock, id)?;
        info!(session.id = %id, file = %record.display(), "record recovered from the journal");
        Ok(record)
    }

    /// The session that a journal tells of, as far as it can be read.
    fn replay(&self, id: &SessionId, path: &Path) -> Result<Replayed, StoreError> {
        let journal = journal::read(path).map_err(StoreError::io("read", path))?;
        let last_written = journal.lines.last().map(|line| line.at);
        let begins = journal.begins_with_dispatch();
        let events = journal.lines.into_iter().map(|line| line.event);
        let session = match begins {
            true => SessionManager::replay(events).filter(|session| session.session_id() == id),
            false => SessionManager::salvage(id, events),
        };
        let bad = || StoreError::BadJournal {
            path: path.to_owned(),
        };
        Ok(Replayed {
            session: session.ok_or_else(bad)?,
            last_written,
            damaged: journal.damaged,
        })
    }

    /// What the metadata file of a session holds in one of the two folders.
    fn filed(&self, folder: &str, id: &SessionId) -> Result<Option<FiledRecord>, StoreError> {
        let path = self.record_path(folder, id);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(CallRecord::filed(&bytes, id))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// A lead file is written before the session hears of it, so a process that dies in between
    /// leaves a lead that no event names. Its number is one of the next: files that were there
    /// already are skipped when a lead is written.
    fn adopt_unlinked_leads(&self, data: &mut CompleteSessionData) {
        /// How many numbers may be missing in a row.
        const GAP: usize = 8;
        let id = &data.start.session_id;
        let mut missing = 0;
        for number in 1_usize.. {
            let relative = format!("{LEADS}/lead_{id}_{number}.json");
            if missing > GAP {
                break;
            }
            let bytes = match fs::read(self.root.join(&relative)) {
                Ok(bytes) => bytes,
                Err(error) => {
                    missing += 1;
                    if error.kind() != io::ErrorKind::NotFound {
                        warn!(session.id = %id, file = %relative, %error, "lead file is not readable");
                    }
                    continue;
                }
            };
            missing = 0;
            if data.lead_files.contains(&relative) {
                continue;
            }
            match serde_json::from_slice::<Lead>(&bytes) {
                Ok(lead) => {
                    data.lead_ids.push(lead.lead_id);
                    data.lead_files.push(relative);
                }
                Err(error) => {
                    warn!(session.id = %id, file = %relative, %error, "lead file is not readable")
                }
            }
        }
    }

    fn fold(
        &self,
        data: CompleteSessionData,
        end_if_unknown: DateTime<Utc>,
    ) -> Result<PathBuf, StoreError> {
        let id = &data.start.session_id;
        let call_end = data
            .outcome
            .as_ref()
            .and_then(|o| o.call_end)
            .unwrap_or(end_if_unknown);
        // The id is asked for again before anything is sent; a record without one is better than
        // none.
        let call_id = match data.has_a_call().then(|| self.call_id_of(&data)) {
            None => None,
            Some(Ok(call_id)) => Some(call_id),
            Some(Err(error)) => {
                warn!(session.id = %id, %error, "the record is written without its call id");
                None
            }
        };
        let conversation = format!("{CONVERSATIONS}/conversation_{id}.json");
        atomic::write_json(
            &self.root.join(&conversation),
            &Transcription::of(&data, call_end),
        )?;
        let record = CallRecord::new(&data, call_id, conversation, call_end, time::now());
        let path = self.record_path(CALL_METADATA, id);
        atomic::write_json(&path, &record)?;
        Ok(path)
    }

    /// The CRM's id of the call. The first question for a session decides it; two calls never have
    /// the same.
    fn call_id_of(&self, data: &CompleteSessionData) -> Result<String, StoreError> {
        let number = data
            .call_metadata
            .dialed_number
            .as_deref()
            .or(data.call_metadata.caller_number.as_deref());
        let base = call_id_base(data.start.call_start, number, &data.start.session_id);
        call_ids::reserve(
            &self.root,
            &base,
            data.start.call_start,
            &data.start.session_id,
        )
    }

    /// The CRM's id for a record that has none yet: the original's did not keep it.
    ///
    /// # Errors
    /// When the index of the day cannot be read or written.
    pub fn call_id_for_record(&self, record: &CallRecord) -> Result<String, StoreError> {
        if let Some(id) = &record.call_id {
            return Ok(id.clone());
        }
        let start = record.started_at().unwrap_or_else(time::now);
        let base = call_id_base(start, record.other_party(), &record.session_id);
        call_ids::reserve(&self.root, &base, start, &record.session_id)
    }

    /// Whether the session has a record, delivered or not.
    pub fn record_exists(&self, id: &SessionId) -> bool {
        [CALL_METADATA, PROCESSED]
            .iter()
            .any(|folder| self.record_path(folder, id).exists())
    }

    /// All journals: calls that run, and calls whose process died.
    pub fn orphans(&self) -> Vec<OrphanJournal> {
        let folder = self.root.join(CONVERSATIONS);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                warn!(folder = %folder.display(), %error, "failed to look for journals");
                return Vec::new();
            }
        };
        let mut orphans: Vec<OrphanJournal> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let session_id: SessionId =
                    name.to_str()?.strip_suffix(JOURNAL_SUFFIX)?.parse().ok()?;
                self.inspect(session_id, &entry.path())
            })
            .collect();
        orphans.sort_by(|a, b| a.session_id.cmp(&b.session_id));
        orphans
    }

    fn inspect(&self, session_id: SessionId, path: &Path) -> Option<OrphanJournal> {
        let modified = fs::metadata(path).and_then(|m| m.modified()).ok()?;
        let alive = journal::is_held(path).ok()?;
        let mut orphan = OrphanJournal {
            session_id,
            job_id: String::new(),
            alive,
            last_written: modified.into(),
            room_name: String::new(),
            room_sid: None,
            agent_name: String::new(),
            joined: false,
        };
        // Journals of calls that run are checked often, and are long.
        let lines = match alive {
            true => journal::read_first(path).ok()?.into_iter().collect(),
            false => journal::glance(path).ok()?,
        };
        for line in lines {
            match line.event {
                SessionEvent::Dispatched(start) => {
                    orphan.job_id = start.job_id;
                    orphan.room_name = start.room_name;
                    orphan.room_sid = start.room_sid;
                    orphan.agent_name = start.agent_name;
                }
                SessionEvent::CallMetadata(call) if call.room_sid.is_some() => {
                    orphan.room_sid = call.room_sid;
                }
                SessionEvent::Joined { .. } => orphan.joined = true,
                _ => {}
            }
        }
        Some(orphan)
    }

    /// Reads the file of a record that names it, refusing paths that leave the data folder. `None`
    /// when it is not there.
    ///
    /// # Errors
    /// When the path is not inside, or the file is there and cannot be read as JSON.
    pub fn read_json(&self, relative: &str) -> Result<Option<serde_json::Value>, StoreError> {
        let path = paths::inside(&self.root, relative).map_err(|error| StoreError::BadRecord {
            path: PathBuf::from(relative),
            problem: error.to_string(),
        })?;
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        let problem = |error: serde_json::Error| StoreError::BadRecord {
            path,
            problem: format!("is not JSON: {error}"),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(problem)
    }

    /// Resolves a path that a record or a manifest names. Both its text and, if it exists, what its
    /// links point to must lie inside the data folder.
    ///
    /// # Errors
    /// When it leaves the data folder.
    pub fn resolve(&self, relative: &str) -> Result<PathBuf, PathError> {
        paths::inside(&self.root, relative)
    }

    /// The same in another folder, which the operator has named: nothing leads out of that one.
    ///
    /// # Errors
    /// When it leaves the folder, or the folder is not there.
    pub fn resolve_outside(&self, folder: &Path, relative: &str) -> Result<PathBuf, PathError> {
        // What is not there has no real name, and nothing in it either.
        let real = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        paths::inside(&real, relative)
    }
}

/// Puts a journal away whose record is written: removed when all of it could be read, else kept
/// under another name.
fn retire(lock: JournalLock, id: &SessionId) -> Result<(), StoreError> {
    // One that cannot be read at all is kept as well.
    if lock.read().is_ok_and(|journal| !journal.damaged) {
        return lock.remove();
    }
    let aside = lock.quarantined()?;
    warn!(session.id = %id, file = %aside.display(), "part of the journal could not be read, it is kept");
    Ok(())
}

/// Renames a file that nobody can read, so that its place is free and it is kept for a person.
fn quarantined_file(path: &Path) -> Result<PathBuf, StoreError> {
    let aside = quarantine_name(path);
    disk::rename(path, &aside).map_err(StoreError::io("rename", path))?;
    if let Some(folder) = path.parent() {
        disk::sync_folder(folder).map_err(StoreError::io("sync the folder", folder))?;
    }
    Ok(aside)
}

/// A name that is free: nothing that was quarantined before is written over.
fn quarantine_name(path: &Path) -> PathBuf {
    let named = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(QUARANTINE_SUFFIX);
        if number > 1 {
            name.push(format!("-{number}"));
        }
        PathBuf::from(name)
    };
    (1..)
        .map(named)
        .find(|name| !name.exists())
        .unwrap_or_else(|| named(1))
}
