//! The journal of a campaign on disk: `campaigns/<name>/journal.jsonl`, one JSON line an event.
//!
//! Several processes append to it: the dialler, and the commands that import leads or pause. Each
//! locks the file, reads what the others have added, appends, and syncs. So everybody sees the same
//! events in the same order, and nothing begins after a pause that is on the disk. Who dials is
//! settled by another lock, [`Lease`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use tracing::warn;

use super::event::{CampaignEvent, ImportedLead, Line};
use super::plan::Plan;
use super::settings::{CampaignName, CampaignSettings};
use crate::session::time;

/// The folder of all campaigns, in the data folder.
const FOLDER: &str = "campaigns";
const JOURNAL: &str = "journal.jsonl";
const LEASE: &str = "dialler.lock";
/// The longest line that is read. A lead has at most 64 KiB when it is imported.
const LONGEST_LINE: u64 = 512 * 1024;

/// Why a campaign cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
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
    /// There is no such campaign.
    #[error(
        "there is no campaign {name} in {folder}; `voicebot campaign list` shows those there are"
    )]
    Unknown {
        /// The name.
        name: CampaignName,
        /// Where it was searched.
        folder: PathBuf,
    },
    /// There is one of that name already.
    #[error("there is a campaign {0} already: give this one another name")]
    Exists(CampaignName),
    /// Its journal has no readable beginning.
    #[error("the journal {0} does not begin with the creation of a campaign")]
    Damaged(PathBuf),
}

impl JournalError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// The folder of all campaigns.
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER)
}

/// The names of all campaigns, in order.
///
/// # Errors
/// When the folder cannot be listed.
pub fn names(data_dir: &Path) -> Result<Vec<CampaignName>, JournalError> {
    let folder = folder(data_dir);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(JournalError::io("list", &folder)(error)),
    };
    let mut names: Vec<CampaignName> = entries
        .flatten()
        .filter(|entry| entry.path().join(JOURNAL).exists())
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// A campaign on the disk, and its plan as far as it has been read.
#[derive(Debug)]
pub struct Campaign {
    name: CampaignName,
    path: PathBuf,
    file: File,
    plan: Plan,
    /// Bytes that are folded into the plan: always whole lines.
    read: u64,
}

impl Campaign {
    /// Makes a campaign.
    ///
    /// # Errors
    /// When there is one of that name, or the disk refuses.
    pub fn create(data_dir: &Path, settings: CampaignSettings) -> Result<Self, JournalError> {
        let name = settings.name.clone();
        let parent = folder(data_dir);
        let own = parent.join(name.as_str());
        fs::create_dir_all(&own).map_err(JournalError::io("create the folder", &own))?;
        let path = own.join(JOURNAL);
        if path.exists() {
            return Err(JournalError::Exists(name));
        }
        let line = Line {
            at: time::now(),
            event: CampaignEvent::Created {
                settings: Box::new(settings),
            },
        };
        // Whole or not at all, and never over another one.
        let temporary = own.join(format!(".tmp-{}", uuid::Uuid::new_v4().simple()));
        let write = || -> io::Result<()> {
            let mut file = File::create_new(&temporary)?;
            file.write_all(&encode(&line)?)?;
            file.sync_all()?;
            fs::hard_link(&temporary, &path)?;
            File::open(&own)?.sync_all()?;
            File::open(&parent)?.sync_all()
        };
        let written = write();
        let _ = fs::remove_file(&temporary);
        match written {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(JournalError::Exists(name));
            }
            written => written.map_err(JournalError::io("write", &path))?,
        }
        Self::open(data_dir, &name)
    }

    /// Opens a campaign and reads all of its journal.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn open(data_dir: &Path, name: &CampaignName) -> Result<Self, JournalError> {
        let path = folder(data_dir).join(name.as_str()).join(JOURNAL);
        let file = match OpenOptions::new().read(true).append(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(JournalError::Unknown {
                    name: name.clone(),
                    folder: folder(data_dir),
                });
            }
            Err(error) => return Err(JournalError::io("open", &path)(error)),
        };
        let mut first = Vec::new();
        let mut reader = BufReader::new(&file).take(LONGEST_LINE);
        reader
            .read_until(b'\n', &mut first)
            .map_err(JournalError::io("read", &path))?;
        let plan = serde_json::from_slice::<Line>(&first)
            .ok()
            .and_then(|line| Plan::new(&line.event).ok())
            .ok_or_else(|| JournalError::Damaged(path.clone()))?;
        let mut campaign = Self {
            name: name.clone(),
            path,
            file,
            plan,
            read: first.len() as u64,
        };
        campaign.catch_up()?;
        Ok(campaign)
    }

    /// Its name.
    pub fn name(&self) -> &CampaignName {
        &self.name
    }

    /// Its plan, as of the last time it was read.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its plan, to be asked what is next.
    pub fn plan_mut(&mut self) -> &mut Plan {
        &mut self.plan
    }

    /// Reads what others have added.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn catch_up(&mut self) -> Result<(), JournalError> {
        let read = self.read_on();
        read.map_err(JournalError::io("read", &self.path))
    }

    fn read_on(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() <= self.read {
            return Ok(());
        }
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut line = Vec::new();
        loop {
            line.clear();
            (&mut reader)
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut line)?;
            // What has no newline yet is no line yet, unless nothing can ever be.
            let is_whole = line.ends_with(b"\n");
            if line.is_empty() || (!is_whole && (line.len() as u64) < LONGEST_LINE) {
                return Ok(());
            }
            let place = self.read;
            self.read += line.len() as u64;
            match serde_json::from_slice::<Line>(&line) {
                Ok(line) => self.plan.apply(line.at, &line.event, place),
                // A process died while it wrote.
                Err(error) if line.len() > 1 => {
                    warn!(file = %self.path.display(), %error, "a line of the journal that cannot be read is left out");
                }
                Err(_) => {}
            }
        }
    }

    /// Reads what others have added, lets `decide` say what happens, and writes that to the disk
    /// before anybody may act on it. Others wait meanwhile.
    ///
    /// # Errors
    /// When the journal cannot be read or written. What was to happen has not happened.
    pub fn record<T>(
        &mut self,
        at: DateTime<Utc>,
        decide: impl FnOnce(&mut Plan) -> (Vec<CampaignEvent>, T),
    ) -> Result<T, JournalError> {
        let lock = self.file.try_clone();
        let lock = lock.map_err(JournalError::io("lock", &self.path))?;
        lock.lock().map_err(JournalError::io("lock", &self.path))?;
        let result = self.record_locked(at, decide);
        // It is let go with the last handle in any case.
        let _ = lock.unlock();
        result
    }

    fn record_locked<T>(
        &mut self,
        at: DateTime<Utc>,
        decide: impl FnOnce(&mut Plan) -> (Vec<CampaignEvent>, T),
    ) -> Result<T, JournalError> {
        self.catch_up()?;
        let (events, answer) = decide(&mut self.plan);
        if events.is_empty() {
            return Ok(answer);
        }
        let write = || -> io::Result<()> {
            let length = self.file.metadata()?.len();
            let mut bytes = Vec::new();
            // A line that was torn by a death is ended, and left out by every reader.
            if length > self.read {
                bytes.push(b'\n');
            }
            for event in events {
                bytes.extend(encode(&Line { at, event })?);
            }
            let written = self
                .file
                .write_all(&bytes)
                .and_then(|()| self.file.sync_data());
            if written.is_err() {
                // A part of it must not count later.
                let _ = self.file.set_len(length);
            }
            written
        };
        write().map_err(JournalError::io("append to", &self.path))?;
        self.catch_up()?;
        Ok(answer)
    }

    /// The lead of which the line lies at `place`.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn lead_at(&self, place: u64) -> Result<ImportedLead, JournalError> {
        let read = || -> io::Result<Line> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(place))?;
            let mut line = Vec::new();
            BufReader::new(file.take(LONGEST_LINE)).read_until(b'\n', &mut line)?;
            Ok(serde_json::from_slice(&line)?)
        };
        let line = read().map_err(JournalError::io("read a lead of", &self.path))?;
        match line.event {
            CampaignEvent::Imported(lead) => Ok(lead),
            _ => Err(JournalError::Damaged(self.path.clone())),
        }
    }
}

fn encode(line: &Line) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The right to dial for a campaign; it is let go when it is dropped or its process dies.
#[derive(Debug)]
pub struct Lease {
    _file: File,
}

impl Lease {
    /// `None`: another process dials.
    ///
    /// # Errors
    /// When the lock cannot be asked for.
    pub fn take(data_dir: &Path, name: &CampaignName) -> Result<Option<Self>, JournalError> {
        let path = folder(data_dir).join(name.as_str()).join(LEASE);
        let open = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = open.map_err(JournalError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(JournalError::io("lock", &path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Attempt;
    use super::super::plan::{Next, RunState};
    use super::super::settings::tests::settings;
    use super::*;

    fn lead(index: u32) -> CampaignEvent {
        CampaignEvent::Imported(ImportedLead {
            number: serde_json::from_str(&format!("\"+1555{:07}\"", 1_000_000 + index)).unwrap(),
            lead_id: Some(format!("L-{index}")),
            timezone: None,
            data: Default::default(),
        })
    }

    #[test]
    fn a_pause_is_seen_by_the_dialler_before_its_next_call() {
        let data = tempfile::tempdir().unwrap();
        let mut dialler =
            Campaign::create(data.path(), settings("calls_per_second = 100")).unwrap();
        let name = dialler.name().clone();
        assert!(matches!(
            Campaign::create(data.path(), settings("")),
            Err(JournalError::Exists(_))
        ));
        let mut command = Campaign::open(data.path(), &name).unwrap();
        let now = time::now();
        let events = vec![lead(0), lead(1), CampaignEvent::Started];
        command.record(now, |_| (events, ())).unwrap();
        let start = |plan: &mut Plan| match plan.next(now + chrono::TimeDelta::seconds(9), 9) {
            Next::Start(attempt) => (vec![CampaignEvent::AttemptStarted(attempt)], Some(attempt)),
            _ => (Vec::new(), None),
        };
        let begun = dialler.record(now, start).unwrap();
        assert_eq!(
            begun,
            Some(Attempt {
                lead: 0,
                attempt: 1
            })
        );
        command
            .record(now, |_| (vec![CampaignEvent::Paused], ()))
            .unwrap();
        assert_eq!(
            dialler.plan().state(),
            RunState::Running,
            "it has not read that"
        );
        assert_eq!(dialler.record(now, start).unwrap(), None);
        let place = dialler.plan().leads()[1].place;
        assert_eq!(
            dialler.lead_at(place).unwrap().lead_id.as_deref(),
            Some("L-1")
        );
        assert_eq!(names(data.path()).unwrap(), [name]);
    }

    #[test]
    fn a_journal_torn_anywhere_keeps_its_complete_lines_and_is_written_on() {
        let data = tempfile::tempdir().unwrap();
        let mut campaign = Campaign::create(data.path(), settings("")).unwrap();
        let (name, path) = (campaign.name().clone(), campaign.path.clone());
        let first = fs::metadata(&path).unwrap().len();
        for index in 0..3 {
            campaign
                .record(time::now(), |_| (vec![lead(index)], ()))
                .unwrap();
        }
        let whole = fs::read(&path).unwrap();
        for cut in first as usize..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let complete = whole[first as usize..cut]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count();
            let mut torn = Campaign::open(data.path(), &name).unwrap();
            assert_eq!(torn.plan().leads().len(), complete, "cut at {cut}");
            torn.record(time::now(), |_| (vec![lead(9), CampaignEvent::Started], ()))
                .unwrap();
            let again = Campaign::open(data.path(), &name).unwrap();
            for read in [&torn, &again] {
                // A line that lacked its newline only is whole with it.
                assert!((complete + 1..=complete + 2).contains(&read.plan().leads().len()));
                assert_eq!(read.plan().state(), RunState::Running);
            }
            assert_eq!(torn.plan().leads().len(), again.plan().leads().len());
        }
    }

    #[test]
    fn one_process_dials() {
        let data = tempfile::tempdir().unwrap();
        let name = Campaign::create(data.path(), settings(""))
            .unwrap()
            .name()
            .clone();
        let lease = Lease::take(data.path(), &name).unwrap();
        assert!(lease.is_some());
        assert!(Lease::take(data.path(), &name).unwrap().is_none());
        drop(lease);
        assert!(Lease::take(data.path(), &name).unwrap().is_some());
    }
}
