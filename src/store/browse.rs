//! All calls of the data folder for display: running, waiting, archived. Nothing here locks or
//! changes anything, so a listed file may have moved by the time it is read; [`Store::follow`]
//! finds its new place.

use std::cmp::Reverse;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use chrono::{DateTime, NaiveDate, Utc};

use crate::session::{CompleteSessionData, SessionEvent, SessionId, sanitise};

use super::{
    CALL_METADATA, CONVERSATIONS, JOURNAL_SUFFIX, LEADS, PROCESSED, Replayed, Store, StoreError,
    journal, pending,
};

/// The folder of a call's file; a call passes through them in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// A journal in `conversations/`: the call is running, or its process died and no worker has
    /// written the record yet.
    Journal,
    /// `call_metadata/`.
    Waiting,
    /// `processed_metadata/`.
    Archived,
}

impl Place {
    const ALL: [Self; 3] = [Self::Journal, Self::Waiting, Self::Archived];

    /// The folder's name.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Journal => CONVERSATIONS,
            Self::Waiting => CALL_METADATA,
            Self::Archived => PROCESSED,
        }
    }

    /// The session part of the name of a file of this folder.
    fn session_of(self, file_name: &str) -> Option<&str> {
        match self {
            Self::Journal => file_name.strip_suffix(JOURNAL_SUFFIX),
            Self::Waiting | Self::Archived => pending::stem(file_name),
        }
    }

    fn file_of(self, session: &str) -> String {
        match self {
            Self::Journal => format!("{session}{JOURNAL_SUFFIX}"),
            Self::Waiting | Self::Archived => format!("metadata_{session}.json"),
        }
    }
}

/// The file of a call, known by its name only. A hundred thousand of these take a few megabytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallFile {
    /// Its folder.
    pub place: Place,
    /// The start of the call from the file's name; if the name has none, the file's modification
    /// time.
    pub began: DateTime<Utc>,
    name: Box<str>,
}

impl CallFile {
    /// The path under the data folder, with `/`.
    pub fn relative(&self) -> String {
        format!("{}/{}", self.place.folder(), self.name)
    }

    fn order(&self) -> (Reverse<DateTime<Utc>>, Option<&str>, Place) {
        let session = self.place.session_of(&self.name);
        (Reverse(self.began), session, self.place)
    }

    /// Sorts newest first; the files of one session come next to each other, in the order in which
    /// the call passes through the folders.
    pub fn sort_newest_first(files: &mut [Self]) {
        files.sort_by(|a, b| a.order().cmp(&b.order()));
    }

    /// The session part of the file's name, as it stands there.
    pub fn session(&self) -> Option<&str> {
        self.place.session_of(&self.name)
    }

    /// The time in the name of a session, if it has one.
    pub fn time_of(session: &str) -> Option<DateTime<Utc>> {
        time_in_name(session)
    }

    /// The session id in the file's name.
    pub fn session_id(&self) -> Option<SessionId> {
        sanitise(self.place.session_of(&self.name)?).parse().ok()
    }

    /// Whether the call may have begun on that day (UTC). A name without a date matches any day.
    pub fn may_be_of(&self, day: NaiveDate) -> bool {
        match self.place.session_of(&self.name).and_then(time_in_name) {
            // Name and start are set a moment apart, perhaps on both sides of midnight.
            Some(began) => (began.date_naive() - day).num_days().abs() <= 1,
            None => true,
        }
    }
}

/// A journal, replayed.
#[derive(Debug, Clone)]
pub struct OpenJournal {
    /// Its session data.
    pub data: CompleteSessionData,
    /// Whether a process holds it: the call is running.
    pub alive: bool,
    /// When its last line was written.
    pub last_written: Option<DateTime<Utc>>,
}

/// The date and time in a session's name: eight digits, a separator, six digits.
pub(super) fn time_in_name(session: &str) -> Option<DateTime<Utc>> {
    let bytes = session.as_bytes();
    let is_digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    bytes.windows(15).find_map(|window| {
        let text = std::str::from_utf8(window).ok()?;
        let fits =
            is_digits(&window[..8]) && !window[8].is_ascii_digit() && is_digits(&window[9..]);
        if !fits {
            return None;
        }
        let date = NaiveDate::parse_from_str(&text[..8], "%Y%m%d").ok()?;
        let number = |from: usize| text[from..from + 2].parse().ok();
        Some(
            date.and_hms_opt(number(9)?, number(11)?, number(13)?)?
                .and_utc(),
        )
    })
}

impl Store {
    /// The files of all calls, newest first, by their names: no file is opened.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub fn call_files(&self) -> Result<Vec<CallFile>, StoreError> {
        let mut files = Vec::new();
        for place in Place::ALL {
            self.visit_call_files(place, |file| files.push(file))?;
        }
        CallFile::sort_newest_first(&mut files);
        Ok(files)
    }

    /// Calls `visit` for each file of one folder, in no order.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn visit_call_files(
        &self,
        place: Place,
        mut visit: impl FnMut(CallFile),
    ) -> Result<(), StoreError> {
        let folder = self.root().join(place.folder());
        let entries = fs::read_dir(&folder).map_err(StoreError::io("list", &folder))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let Some(session) = place.session_of(&name) else {
                continue;
            };
            let written = || Some(entry.metadata().ok()?.modified().ok()?.into());
            // A file that has moved since the listing began is found in the next folder, or by the
            // next listing.
            if let Some(began) = time_in_name(session).or_else(written) {
                visit(CallFile {
                    place,
                    began,
                    name: name.as_ref().into(),
                });
            }
        }
        Ok(())
    }

    /// The file's modification time and size in bytes. `None` when it is gone.
    pub fn changed(&self, file: &CallFile) -> Option<(SystemTime, u64)> {
        let metadata = fs::metadata(self.path(&file.relative())).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    }

    /// The files of one session.
    pub fn call_files_of(&self, id: &SessionId) -> Vec<CallFile> {
        Place::ALL
            .into_iter()
            .filter_map(|place| {
                let name = place.file_of(id.as_str());
                let path = self.root().join(place.folder()).join(&name);
                let modified = fs::metadata(path).ok()?.modified().ok()?;
                Some(CallFile {
                    place,
                    began: time_in_name(id.as_str()).unwrap_or(modified.into()),
                    name: name.into(),
                })
            })
            .collect()
    }

    /// Reads a call's file. `None` when it is gone.
    ///
    /// # Errors
    /// When it exists and is not readable.
    pub fn read_call_file(&self, file: &CallFile) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(&file.relative());
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// The room of a call, from the first line of its journal. `None`: it is gone, or unreadable.
    pub fn room_of_journal(&self, file: &CallFile) -> Option<String> {
        match journal::read_first(&self.path(&file.relative()))
            .ok()??
            .event
        {
            SessionEvent::Dispatched(start) => Some(start.room_name),
            _ => None,
        }
    }

    /// Finds the new file of a call whose file is gone: from the journal to the queue, from the
    /// queue to the archive.
    pub fn follow(&self, file: &CallFile) -> Option<CallFile> {
        let places = Place::ALL.into_iter().filter(|place| *place > file.place);
        let session = file.place.session_of(&file.name)?;
        places
            .map(|place| CallFile {
                place,
                began: file.began,
                name: place.file_of(session).into(),
            })
            .find(|moved| self.path(&moved.relative()).exists())
    }

    /// Replays a journal. `None` when it is gone.
    ///
    /// # Errors
    /// When it is not readable.
    pub fn open_journal(&self, id: &SessionId) -> Result<Option<OpenJournal>, StoreError> {
        let path = self.journal_path(id);
        if !path.exists() {
            return Ok(None);
        }
        let alive = match journal::is_held(&path) {
            Ok(alive) => alive,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("look at", &path)(error)),
        };
        match self.replay(id, &path) {
            Ok(Replayed {
                session,
                last_written,
                ..
            }) => Ok(Some(OpenJournal {
                data: session.get_complete_session_data(),
                alive,
                last_written,
            })),
            Err(_) if !path.exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The lead files, in no order.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn lead_files(&self) -> Result<impl Iterator<Item = PathBuf> + use<>, StoreError> {
        let folder = self.root().join(LEADS);
        let entries = fs::read_dir(&folder).map_err(StoreError::io("list", &folder))?;
        Ok(entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "json")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_in_a_name_is_found_wherever_it_stands() {
        for (name, expected) in [
            (
                "session_20251029_113920_abc123",
                Some("2025-10-29T11:39:20Z"),
            ),
            ("livekit-20251029-113920", Some("2025-10-29T11:39:20Z")),
            ("number-_918655066243-1698567890", None),
            ("session_20259999_113920_abc123", None),
            ("session_20251029_996120_abc123", None),
            ("short", None),
            ("ünïcödé_20251029_113920", Some("2025-10-29T11:39:20Z")),
        ] {
            let expected: Option<DateTime<Utc>> = expected.map(|text| text.parse().unwrap());
            assert_eq!(time_in_name(name), expected, "{name}");
        }
    }
}
