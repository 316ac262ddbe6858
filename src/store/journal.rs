//! The journal of a running call: one JSON line per event, appended as it happens.
//!
//! A line is written with one `write` and reaches the kernel at once, so a killed process loses no
//! committed line. It is not fsynced: that would make the conversation wait for the disk, only to
//! protect a few seconds of it against a power cut.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use crate::session::{CallStart, EventSink, SessionEvent, time};

use super::{StoreError, atomic, disk};

/// Limit of one call's events in memory while the disk is full. A long call has a few hundred
/// kilobytes.
const MOST_UNWRITTEN_BYTES: usize = 4 * 1024 * 1024;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Time of writing.
    #[serde(with = "time")]
    pub at: DateTime<Utc>,
    #[serde(flatten)]
    pub event: SessionEvent,
}

/// The readable part of a journal.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Journal {
    /// The events, in order.
    pub lines: Vec<Line>,
    /// Whether something was unreadable: a line that is no event, or a first line that is no
    /// dispatch. A last line without a newline does not count: it was never committed.
    pub damaged: bool,
}

impl Journal {
    /// Whether the first event is the dispatch.
    pub(crate) fn begins_with_dispatch(&self) -> bool {
        let first = self.lines.first().map(|line| &line.event);
        matches!(first, Some(SessionEvent::Dispatched(_)))
    }
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

/// Creates the journal atomically with its dispatch and the `known` events, and syncs it: from here
/// on the call exists.
pub(super) fn create(path: &Path, start: &CallStart, known: &[SessionEvent]) -> io::Result<()> {
    if path.exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut bytes = encode(&SessionEvent::Dispatched(start.clone()))?;
    for event in known {
        bytes.extend(encode(event)?);
    }
    atomic::write_whole(path, &bytes)
}

/// Reads a journal. Unreadable lines are left out with a warning; the lines after them still count.
pub(super) fn read(path: &Path) -> io::Result<Journal> {
    let mut text = Vec::new();
    File::open(path)?.read_to_end(&mut text)?;
    Ok(parse(&text, path))
}

pub(crate) fn parse(text: &[u8], path: &Path) -> Journal {
    let mut journal = Journal::default();
    let torn_at = text
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    let mut start = 0;
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let torn = start >= torn_at;
        start += line.len() + 1;
        if line.is_empty() {
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(line) => journal.lines.push(line),
            Err(error) => {
                warn!(file = %path.display(), line = index + 1, %error, "journal line left out");
                journal.damaged |= !torn;
            }
        }
    }
    journal.damaged |= !journal.begins_with_dispatch();
    journal
}

/// The readable events, without warnings about other lines.
pub(super) fn glance(path: &Path) -> io::Result<Vec<Line>> {
    let mut text = Vec::new();
    File::open(path)?.read_to_end(&mut text)?;
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
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
        // Its holder may have removed it between the open and the lock.
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
        // A truncated last line must not be joined to the next one.
        let unwritten = match ends_with_newline(&mut file)? {
            true => Vec::new(),
            false => vec![b'\n'],
        };
        Ok(JournalSink {
            file,
            path: self.path.clone(),
            unwritten,
            failing: false,
        })
    }

    /// Reads the journal.
    pub(super) fn read(&self) -> io::Result<Journal> {
        read(&self.path)
    }

    /// Removes the journal: everything in it is in the record.
    pub(super) fn remove(self) -> Result<(), StoreError> {
        disk::remove_file(&self.path).map_err(StoreError::io("remove", &self.path))?;
        match self.path.parent() {
            Some(folder) => {
                disk::sync_folder(folder).map_err(StoreError::io("sync the folder", folder))
            }
            None => Ok(()),
        }
    }

    /// Renames a damaged journal, so that it is kept for a person and no longer found by scans.
    pub(super) fn quarantined(self) -> Result<PathBuf, StoreError> {
        super::quarantined_file(&self.path)
    }
}

/// Locks with retries, because [`is_held`] takes the lock for an instant.
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

/// Appends a session's events to its journal. Events that a full disk refuses are kept and written
/// before the next event.
pub(super) struct JournalSink {
    file: File,
    path: PathBuf,
    /// Bytes that are not written yet, from where the last write stopped, so that no line is torn
    /// or doubled.
    unwritten: Vec<u8>,
    failing: bool,
}

impl JournalSink {
    fn write(&mut self) -> io::Result<()> {
        while !self.unwritten.is_empty() {
            match disk::write(&mut self.file, &self.unwritten) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => drop(self.unwritten.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl EventSink for JournalSink {
    fn append(&mut self, event: &SessionEvent) {
        match encode(event) {
            Ok(line) if self.unwritten.len() + line.len() <= MOST_UNWRITTEN_BYTES => {
                self.unwritten.extend(line)
            }
            Ok(_) => {}
            Err(error) => error!(file = %self.path.display(), %error, "an event has no JSON"),
        }
        // The session goes on in memory, and the record is still written at the end if the disk
        // allows it then. Each outage is logged once.
        match self.write() {
            Err(error) if !self.failing => {
                self.failing = true;
                error!(file = %self.path.display(), %error, "failed to append to the journal; it is tried again with the next event");
            }
            Ok(()) if self.failing => {
                self.failing = false;
                info!(file = %self.path.display(), "the journal is written again, nothing is missing in it");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{
        CallMetadata, ConversationItem, Direction, Intent, Outcome, RecordingMetadata,
        SessionManager, Usage,
    };
    use proptest::prelude::*;
    use std::io::Write as _;

    fn start() -> CallStart {
        CallStart {
            session_id: "session_20251029_113920_abc123".parse().unwrap(),
            job_id: "AJ_1".to_owned(),
            room_name: "room".to_owned(),
            room_sid: None,
            job_metadata: None,
            direction: Some(Direction::Inbound),
            call_start: "2025-10-29T11:39:20Z".parse().unwrap(),
            agent_name: String::new(),
            attributes: Default::default(),
        }
    }

    proptest! {
        // Each case truncates the journal at every one of its bytes.
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Wherever a crash truncates the journal, every complete line is read back.
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
                // A line without its newline may be complete or not; one with its newline must be
                // read.
                let complete = ends.iter().filter(|end| **end <= cut).count();
                let lines = parse(&bytes[..cut], Path::new("test")).lines;
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

    /// One event of each kind.
    fn every_event() -> Vec<SessionEvent> {
        let at = start().call_start;
        vec![
            SessionEvent::Dispatched(start()),
            SessionEvent::CallMetadata(CallMetadata {
                dialed_number: Some("+15550100123".to_owned()),
                ..CallMetadata::default()
            }),
            SessionEvent::CampaignMetadata {
                metadata: serde_json::Map::from_iter([("at".to_owned(), 1.into())]),
            },
            SessionEvent::Recording(RecordingMetadata::default()),
            SessionEvent::Item(ConversationItem::assistant("नमस्ते", at)),
            SessionEvent::LeadFile {
                path: "leads/1.json".to_owned(),
            },
            SessionEvent::LeadLinked {
                lead_id: "l1".parse().unwrap(),
            },
            SessionEvent::Intent(Intent {
                intent: "book_demo".to_owned(),
                confidence: Some(0.5),
                entities: serde_json::Map::new(),
                timestamp: at,
            }),
            SessionEvent::Usage(Usage::default()),
            SessionEvent::Joined { at },
            SessionEvent::Answered { at },
            SessionEvent::CallerReplaced,
            SessionEvent::Outcome(Outcome::recovered("x", Some(at))),
        ]
    }

    #[test]
    fn every_kind_of_event_is_read_back_from_its_line() {
        let events = every_event();
        let bytes: Vec<u8> = events
            .iter()
            .flat_map(|event| encode(event).unwrap())
            .collect();
        let journal = parse(&bytes, Path::new("test"));
        assert!(!journal.damaged);
        let read: Vec<_> = journal.lines.into_iter().map(|line| line.event).collect();
        assert_eq!(read, events);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A damaged journal is read without a panic, and its undamaged lines are read back.
        #[test]
        fn a_damaged_journal_costs_only_the_damaged_lines(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let events = every_event();
            let mut bytes: Vec<u8> = events.iter().flat_map(|event| encode(event).unwrap()).collect();
            let whole = bytes.clone();
            for (index, byte) in damage {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(whole.len() + 1));
            let read = parse(&bytes, Path::new("test"));
            let mut start = 0;
            for line in whole.split_inclusive(|byte| *byte == b'\n') {
                let end = start + line.len();
                // Undamaged, and so is the end of the line before it.
                let untouched = end <= bytes.len() && bytes[start..end] == *line && (start == 0 || bytes[start - 1] == b'\n');
                if untouched {
                    let line: Line = serde_json::from_slice(line).unwrap();
                    prop_assert!(read.lines.contains(&line), "{line:?}");
                }
                start = end;
            }
        }

        /// Any bytes are read without a panic, as a damaged journal unless they begin with a
        /// dispatch.
        #[test]
        fn any_bytes_are_read_as_a_journal(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let journal = parse(&bytes, Path::new("test"));
            prop_assert!(journal.damaged || matches!(journal.lines.first().map(|line| &line.event), Some(SessionEvent::Dispatched(_))));
        }
    }

    #[test]
    fn what_is_appended_after_a_torn_line_is_not_lost_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.journal.jsonl");
        create(&path, &start(), &[]).unwrap();
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
        let journal = read(&path).unwrap();
        assert_eq!((journal.lines.len(), journal.damaged), (3, true));
    }

    #[test]
    fn a_held_journal_is_seen_as_held_until_it_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.journal.jsonl");
        create(&path, &start(), &[]).unwrap();
        assert!(!is_held(&path).unwrap());
        let lock = JournalLock::acquire(&path).unwrap().unwrap();
        assert!(is_held(&path).unwrap());
        assert!(JournalLock::acquire(&path).unwrap().is_none());
        drop(lock);
        assert!(!is_held(&path).unwrap());
    }
}
