//! Stores on disk which calls are in MongoDB: one line for each written file, with a stamp of its
//! state.
//!
//! The file may be lost or truncated at any time: calls that are not in it are written again, which
//! changes nothing. So it is not synced.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::session::SessionId;

/// Outdated lines that are tolerated before the file is rewritten.
const SPARE_LINES: usize = 10_000;

/// A stamp of a file's state, which differs after every change. Stamps of archived files are odd,
/// so that they are recognised without reading the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(u64);

impl Stamp {
    pub(super) fn new(archived: bool, modified: SystemTime, bytes: u64) -> Self {
        let hash = hash_of(&(modified, bytes));
        Self(if archived { hash | 1 } else { hash & !1 })
    }

    fn is_archived(self) -> bool {
        self.0 & 1 == 1
    }
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The written calls by session, 16 bytes each: a hundred thousand calls take a few megabytes.
#[derive(Debug)]
pub(super) struct Progress {
    path: PathBuf,
    file: File,
    written: HashMap<u64, Stamp>,
    lines: usize,
    /// Held as long as this process writes, so that only one of several workers on a folder does.
    _lock: File,
}

impl Progress {
    /// Opens the progress file for one destination in `folder`. `None`: another process writes to
    /// it.
    pub(super) fn open(folder: &Path, destination: &str) -> io::Result<Option<Self>> {
        fs::create_dir_all(folder)?;
        let name = format!("{:016x}", hash_of(&destination));
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(folder.join(format!("{name}.lock")))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let path = folder.join(format!("{name}.written"));
        let mut file = append_to(&path)?;
        let mut written = HashMap::new();
        let mut lines = 0;
        for line in BufReader::new(File::open(&path)?).split(b'\n') {
            lines += 1;
            if let Some((session, stamp)) = read_line(&line?) {
                written.insert(session, stamp);
            }
        }
        // A truncated last line must not be joined to the next one.
        file.write_all(b"\n")?;
        Ok(Some(Self {
            path,
            file,
            written,
            lines,
            _lock: lock,
        }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the session was written in its present state.
    pub(super) fn is_written(&self, id: &SessionId, stamp: Stamp) -> bool {
        self.written.get(&hash_of(id)) == Some(&stamp)
    }

    /// Whether the session was ever written.
    pub(super) fn knows(&self, id: &SessionId) -> bool {
        self.written.contains_key(&hash_of(id))
    }

    /// Whether it was written from the archive, where it rarely changes.
    pub(super) fn is_archived(&self, id: &SessionId) -> bool {
        let stamp = self.written.get(&hash_of(id));
        stamp.is_some_and(|stamp| stamp.is_archived())
    }

    /// Stores that the session was written with that stamp.
    pub(super) fn note(&mut self, id: &SessionId, stamp: Stamp) -> io::Result<()> {
        let session = hash_of(id);
        self.written.insert(session, stamp);
        self.lines += 1;
        writeln!(self.file, "{session:016x} {:016x}", stamp.0)?;
        if self.lines > 2 * self.written.len() + SPARE_LINES {
            self.write_anew()?;
        }
        Ok(())
    }

    /// Rewrites the file with one line for each session.
    fn write_anew(&mut self) -> io::Result<()> {
        let temporary = self.path.with_extension("tmp");
        let mut out = BufWriter::new(File::create(&temporary)?);
        for (session, stamp) in &self.written {
            writeln!(out, "{session:016x} {:016x}", stamp.0)?;
        }
        out.flush()?;
        fs::rename(&temporary, &self.path)?;
        self.file = append_to(&self.path)?;
        self.lines = self.written.len();
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn read_line(line: &[u8]) -> Option<(u64, Stamp)> {
    let line = std::str::from_utf8(line).ok()?;
    // A truncated line is shorter.
    let (session, stamp) = line.split_once(' ').filter(|_| line.len() == 33)?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(session)?, Stamp(number(stamp)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn id(number: u32) -> SessionId {
        format!("session_{number}").parse().unwrap()
    }

    fn stamp(seconds: u64) -> Stamp {
        Stamp::new(
            false,
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            1,
        )
    }

    #[test]
    fn progress_is_kept_for_the_next_process_and_for_this_destination_only() {
        let folder = tempfile::tempdir().unwrap();
        let mut progress = Progress::open(folder.path(), "a").unwrap().unwrap();
        assert!(
            Progress::open(folder.path(), "a").unwrap().is_none(),
            "one at a time"
        );
        progress.note(&id(1), stamp(1)).unwrap();
        progress.note(&id(2), stamp(1)).unwrap();
        progress.note(&id(2), stamp(2)).unwrap();
        drop(progress);

        let progress = Progress::open(folder.path(), "a").unwrap().unwrap();
        assert!(progress.is_written(&id(1), stamp(1)));
        assert!(!progress.is_written(&id(2), stamp(1)) && progress.is_written(&id(2), stamp(2)));
        let other = Progress::open(folder.path(), "b").unwrap().unwrap();
        assert!(!other.is_written(&id(1), stamp(1)));
    }

    #[test]
    fn a_truncated_or_overwritten_progress_file_loses_only_that_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut progress = Progress::open(folder.path(), "a").unwrap().unwrap();
        for number in 0..3 {
            progress.note(&id(number), stamp(1)).unwrap();
        }
        let path = progress.path().to_owned();
        drop(progress);
        let text = fs::read(&path).unwrap();
        fs::write(
            &path,
            [
                &text[..text.len() - 4],
                b"\n\xff\xfe zzz\n12 34\n0123456789a",
            ]
            .concat(),
        )
        .unwrap();
        let mut progress = Progress::open(folder.path(), "a").unwrap().unwrap();
        let known: Vec<bool> = (0..3)
            .map(|n| progress.is_written(&id(n), stamp(1)))
            .collect();
        assert_eq!(known, [true, true, false]);
        progress.note(&id(2), stamp(1)).unwrap();
        drop(progress);
        let progress = Progress::open(folder.path(), "a").unwrap().unwrap();
        assert!(progress.is_written(&id(2), stamp(1)));
    }

    #[test]
    fn many_changes_of_few_calls_do_not_fill_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let mut progress = Progress::open(folder.path(), "a").unwrap().unwrap();
        for second in 0..50_000 {
            progress.note(&id(1), stamp(second)).unwrap();
        }
        assert!(fs::metadata(progress.path()).unwrap().len() < 400_000);
        let path = progress.path().to_owned();
        drop(progress);
        let progress = Progress::open(folder.path(), "a").unwrap().unwrap();
        assert_eq!(progress.path(), path);
        assert!(progress.is_written(&id(1), stamp(49_999)));
    }
}
