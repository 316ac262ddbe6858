//! The five folders on disk: where a call's events, conversation, leads and record lie, and how they get there whole.
//!
//! Everything here blocks on the disk. Async callers that care about latency go through `spawn_blocking`. It knows no network and does
//! not decide what is sent; [`crate::upload`] does.

mod atomic;
mod browse;
mod call_ids;
mod journal;
mod paths;
mod pending;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use thiserror::Error;
use tracing::{debug, info, warn};

use crate::session::{
    self, CallRecord, CallStart, CompleteSessionData, Lead, Outcome, SessionEvent, SessionId,
    SessionManager, SharedSession, Transcription, call_id_base, sanitise, time,
};

pub use browse::{CallFile, OpenJournal, Place};
pub use journal::JournalLock;
pub use paths::PathError;
pub use pending::{Claim, PendingRecord};

const CONVERSATIONS: &str = "conversations";
const LEADS: &str = "leads";
const RECORDINGS: &str = "recordings";
const CALL_METADATA: &str = "call_metadata";
const PROCESSED: &str = "processed_metadata";
const JOURNAL_SUFFIX: &str = ".journal.jsonl";

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

/// A journal in the folder, and whether a process holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrphanJournal {
    /// The session.
    pub session_id: SessionId,
    /// LiveKit's id of its job; empty when the journal's first line is not readable.
    pub job_id: String,
    /// A process holds it: the call is running.
    pub alive: bool,
    /// When it was last written. A journal that nobody holds and that is a few seconds old may belong to a call that is just starting.
    pub last_written: DateTime<Utc>,
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
        for folder in [CONVERSATIONS, LEADS, RECORDINGS, CALL_METADATA, PROCESSED] {
            let path = data_dir.join(folder);
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

    /// Where a path of a record lies on this machine. For paths that we made ourselves; [`Store::resolve`] is for those of others.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// `recordings/`, absolute.
    pub fn recordings_dir(&self) -> PathBuf {
        self.root.join(RECORDINGS)
    }

    /// Where this process may write the recording of a session: the path for the record, and the absolute one.
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

    /// Begins the journal of a call with its dispatch. The worker does this before it starts the call's process, so that a call whose
    /// process never comes up has a record too.
    ///
    /// # Errors
    /// When the journal exists already or cannot be written.
    pub fn begin(&self, start: &CallStart) -> Result<(), StoreError> {
        let path = self.journal_path(&start.session_id);
        journal::create(&path, start).map_err(StoreError::io("create the journal", &path))?;
        debug!(session.id = %start.session_id, job.id = %start.job_id, "journal begun");
        Ok(())
    }

    /// Takes the session over: locks its journal for as long as the returned lock lives (that is how others know that the call is alive)
    /// and replays it. Every later event of the session is appended to it.
    ///
    /// # Errors
    /// When there is no journal, it is unreadable, or another process holds it.
    pub fn open_session(&self, id: &SessionId) -> Result<(SharedSession, JournalLock), StoreError> {
        let path = self.journal_path(id);
        let lock = self
            .lock_journal(id, &path)?
            .ok_or_else(|| StoreError::Busy(id.clone()))?;
        let mut session = self.replay(id, &path)?.0;
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

    /// The session that a journal tells of, and when its last event was written.
    fn replay(
        &self,
        id: &SessionId,
        path: &Path,
    ) -> Result<(SessionManager, Option<DateTime<Utc>>), StoreError> {
        let lines = journal::read(path).map_err(StoreError::io("read", path))?;
        let last_written = lines.last().map(|line| line.at);
        let bad = || StoreError::BadJournal {
            path: path.to_owned(),
        };
        let session =
            SessionManager::replay(lines.into_iter().map(|line| line.event)).ok_or_else(bad)?;
        if session.session_id() != id {
            return Err(bad());
        }
        Ok((session, last_written))
    }

    /// Keeps a lead: writes its file whole, then tells the session. A lead whose id was saved already is not saved again.
    /// Returns its path, `leads/…`.
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

    /// Folds the session into its files: conversation, then metadata (which is the queue for delivery), then the journal goes.
    /// Whatever is interrupted in between is finished by [`Store::recover`]. Returns the metadata file.
    ///
    /// # Errors
    /// When a file cannot be written; the journal then stays.
    pub fn finish(
        &self,
        session: &SharedSession,
        lock: JournalLock,
    ) -> Result<PathBuf, StoreError> {
        let data = session::lock(session).get_complete_session_data();
        let path = self.fold(data, time::now())?;
        lock.remove()?;
        Ok(path)
    }

    /// Makes the record of a call whose process is gone. `why` is how it ended, as far as anybody knows; an outcome in the journal comes
    /// first. `None`: its process is alive, or its record exists already.
    ///
    /// # Errors
    /// When the journal cannot be read or a file cannot be written; the journal then stays.
    pub fn recover(&self, id: &SessionId, why: &Outcome) -> Result<Option<PathBuf>, StoreError> {
        let path = self.journal_path(id);
        let lock = match self.lock_journal(id, &path) {
            Ok(Some(lock)) => lock,
            Ok(None) | Err(StoreError::NoJournal { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if self.record_exists(id) {
            // It died between writing the record and removing the journal.
            lock.remove()?;
            return Ok(None);
        }
        let (mut session, last_written) = match self.replay(id, &path) {
            Err(error @ StoreError::BadJournal { .. }) => {
                // Nothing was ever in it (the dispatch is its first line), or somebody wrote over it: kept for a person, out of the way.
                lock.set_aside()?;
                return Err(error);
            }
            other => other?,
        };
        session.set_outcome(why.clone());
        let mut data = session.get_complete_session_data();
        self.adopt_unlinked_leads(&mut data);
        let record = self.fold(data, last_written.unwrap_or_else(time::now))?;
        lock.remove()?;
        info!(session.id = %id, file = %record.display(), "record recovered from the journal");
        Ok(Some(record))
    }

    /// A lead file is written before the session hears of it, so a process that dies in between leaves a lead that no event names.
    fn adopt_unlinked_leads(&self, data: &mut CompleteSessionData) {
        let id = &data.start.session_id;
        for number in 1.. {
            let relative = format!("{LEADS}/lead_{id}_{number}.json");
            let Ok(bytes) = fs::read(self.root.join(&relative)) else {
                break;
            };
            if data.lead_files.contains(&relative) {
                continue;
            }
            match serde_json::from_slice::<Lead>(&bytes) {
                Ok(lead) => {
                    data.lead_ids.push(lead.lead_id);
                    data.campaign_metadata
                        .insert("lead_file".to_owned(), relative.clone().into());
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
        let call_id = self.call_id_of(&data)?;
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

    /// The CRM's id of the call. The first question for a session decides it; two calls never have the same.
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
        let first = journal::read_first(path).ok()?;
        let job_id = match first.map(|line| line.event) {
            Some(SessionEvent::Dispatched(start)) => start.job_id,
            _ => String::new(),
        };
        Some(OrphanJournal {
            session_id,
            job_id,
            alive,
            last_written: modified.into(),
        })
    }

    /// Reads the file of a record that names it, refusing paths that leave the data folder. `None` when it is not there.
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

    /// Resolves a path that a record or a manifest names. Both its text and, if it exists, what its links point to must lie inside the
    /// data folder.
    ///
    /// # Errors
    /// When it leaves the data folder.
    pub fn resolve(&self, relative: &str) -> Result<PathBuf, PathError> {
        paths::inside(&self.root, relative)
    }
}

/// Syncs a folder, so that a rename in it survives a power cut.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
