//! The journal of a running call: one JSON line per event, appended as it happens.
//!
//! A line is written with one `write` and reaches the kernel at once, so a killed process loses nothing that it has committed. It is not
//! fsynced: that would make the conversation wait for the disk, to guard a few seconds of talk against a power cut.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use crate::session::{CallStart, EventSink, SessionEvent, time};

use super::{StoreError, sync_folder};

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Line {
    /// When it was written.
    #[serde(with = "time")]
    pub at: DateTime<Utc>,
    #[serde(flatten)]
    pub event: SessionEvent,
}

fn encode(event: &SessionEvent) -> io::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct LineRef<'a> {
        #[serde(with = "time")]
        at: DateTime<Utc>,
        #[serde(flatten)]
        event: &'a SessionEvent,
    }
    let mut bytes = serde_json::to_vec(&LineRef {
        at: time::now(),
        event,
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Creates the journal with its first line. That line is synced: from here on the call exists.
pub(super) fn create(path: &Path, start: &CallStart) -> io::Result<()> {
    let line = encode(&SessionEvent::Dispatched(start.clone()))?;
    let mut file = File::create_new(path)?;
    file.write_all(&line)?;
    file.sync_all()?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// All complete lines. A line that was torn by a crash or does not make sense is left out with a warning; those after it still count.
pub(super) fn read(path: &Path) -> io::Result<Vec<Line>> {
    let mut text = Vec::new();
    File::open(path)?.read_to_end(&mut text)?;
    Ok(parse(&text, path))
}

fn parse(text: &[u8], path: &Path) -> Vec<Line> {
    let mut lines = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(line) => lines.push(line),
            Err(error) => {
                warn!(file = %path.display(), line = index + 1, %error, "journal line left out");
            }
        }
    }
    lines
}

/// The first line, without reading the rest.
pub(super) fn read_first(path: &Path) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    BufReader::new(File::open(path)?).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line).ok())
}

/// Whether a process holds the journal.
pub(super) fn is_held(path: &Path) -> io::Result<bool> {
    match File::open(path)?.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// An exclusive lock on a journal, released when it is dropped or its process dies.
#[derive(Debug)]
pub struct JournalLock {
    file: File,
    path: PathBuf,
}

impl JournalLock {
    /// `None` when another process holds it.
    pub(super) fn acquire(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().read(true).append(true).open(path)?;
        match lock_with_patience(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Its holder may have finished and removed it between our open and our lock.
        if !path.exists() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Some(Self {
            file,
            path: path.to_owned(),
        }))
    }

    /// The sink that appends to this journal.
    pub(super) fn sink(&self) -> io::Result<JournalSink> {
        let mut file = self.file.try_clone()?;
        let torn = !ends_with_newline(&mut file)?;
        Ok(JournalSink {
            file,
            path: self.path.clone(),
            torn,
        })
    }

    /// Removes the journal: everything in it is in the record.
    pub(super) fn remove(self) -> Result<(), StoreError> {
        fs::remove_file(&self.path).map_err(StoreError::io("remove", &self.path))?;
        if let Some(folder) = self.path.parent() {
            sync_folder(folder).map_err(StoreError::io("sync the folder", folder))?;
        }
        Ok(())
    }

    /// Renames a journal that nothing can be made of, so that it is kept but no longer found.
    pub(super) fn set_aside(self) -> Result<(), StoreError> {
        let mut name = self.path.clone().into_os_string();
        name.push(".unreadable");
        fs::rename(&self.path, name).map_err(StoreError::io("rename", &self.path))
    }
}

/// [`is_held`] locks for an instant to look; that must not make a starting call believe that somebody else has it.
fn lock_with_patience(file: &File) -> Result<(), TryLockError> {
    const TRIES: u32 = 20;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(2);
    for _ in 1..TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
    file.try_lock()
}

fn ends_with_newline(file: &mut File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last[0] == b'\n')
}

/// Appends a session's events to its journal.
pub(super) struct JournalSink {
    file: File,
    path: PathBuf,
    /// The last write was cut short (a full disk, a crash before us): the next line must not be glued to it.
    torn: bool,
}

impl EventSink for JournalSink {
    fn append(&mut self, event: &SessionEvent) {
        let written = encode(event).and_then(|mut line| {
            if self.torn {
                line.insert(0, b'\n');
            }
            self.file.write_all(&line)
        });
        self.torn = written.is_err();
        if let Err(error) = written {
            // The session goes on in memory, and the record is still written at the end if the disk allows it then.
            error!(file = %self.path.display(), %error, "failed to append to the journal");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{ConversationItem, Direction, SessionManager};
    use proptest::prelude::*;

    fn start() -> CallStart {
        CallStart {
            session_id: "session_20251029_113920_abc123".parse().unwrap(),
            job_id: "AJ_1".to_owned(),
            room_name: "room".to_owned(),
            room_sid: None,
            job_metadata: None,
            direction: Direction::Inbound,
            call_start: "2025-10-29T11:39:20Z".parse().unwrap(),
            agent_name: String::new(),
        }
    }

    proptest! {
        // Each case tears the journal at every one of its bytes.
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Wherever a crash tears the journal, every line that was complete is there again.
        #[test]
        fn a_journal_torn_anywhere_keeps_its_complete_lines(words in prop::collection::vec("\\PC{0,40}", 0..8)) {
            let mut bytes = encode(&SessionEvent::Dispatched(start())).unwrap();
            let mut ends = vec![bytes.len()];
            for word in &words {
                let item = ConversationItem::user(word, start().call_start);
                bytes.extend(encode(&SessionEvent::Item(item)).unwrap());
                ends.push(bytes.len());
            }
            for cut in 0..=bytes.len() {
                // A line without its newline may be whole or not; one that has it must be there.
                let complete = ends.iter().filter(|end| **end <= cut).count();
                let lines = parse(&bytes[..cut], Path::new("test"));
                prop_assert!(lines.len() >= complete && lines.len() <= complete + 1, "cut at {cut}");
                let session = SessionManager::replay(lines.into_iter().map(|line| line.event));
                if complete > 0 {
                    let session = session.expect("the dispatch was complete");
                    let heard: Vec<&str> = session.items().iter().map(|item| item.content.as_str()).collect();
                    prop_assert!(heard.len() >= complete - 1);
                    let said: Vec<&str> = words.iter().map(String::as_str).take(heard.len()).collect();
                    prop_assert_eq!(heard, said);
                }
            }
        }
    }

    #[test]
    fn what_is_appended_after_a_torn_line_is_not_lost_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.journal.jsonl");
        create(&path, &start()).unwrap();
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"at\":\"2025-")
            .unwrap();
        let lock = JournalLock::acquire(&path).unwrap().unwrap();
        let mut sink = lock.sink().unwrap();
        sink.append(&SessionEvent::Item(ConversationItem::user(
            "hello",
            start().call_start,
        )));
        sink.append(&SessionEvent::Item(ConversationItem::user(
            "again",
            start().call_start,
        )));
        assert_eq!(read(&path).unwrap().len(), 3);
    }

    #[test]
    fn a_held_journal_is_seen_as_held_until_it_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.journal.jsonl");
        create(&path, &start()).unwrap();
        assert!(!is_held(&path).unwrap());
        let lock = JournalLock::acquire(&path).unwrap().unwrap();
        assert!(is_held(&path).unwrap());
        assert!(JournalLock::acquire(&path).unwrap().is_none());
        drop(lock);
        assert!(!is_held(&path).unwrap());
    }
}
