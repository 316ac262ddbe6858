//! The single changes that the store makes to the file system, one function each, so that the tests
//! can let the process die, or the disk refuse, before and within every one of them.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

pub(super) fn create_new(path: &Path) -> io::Result<File> {
    step()?;
    File::create_new(path)
}

pub(super) fn write_all(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match write(file, rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes some of the bytes, as the system does when the disk has room for no more, and says how
/// many.
pub(super) fn write(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    #[cfg(test)]
    let bytes = faults::cut(bytes)?;
    file.write(bytes)
}

pub(super) fn sync(file: &File) -> io::Result<()> {
    step()?;
    file.sync_all()
}

/// Syncs a folder, so that a rename in it survives a power cut.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    step()?;
    File::open(folder)?.sync_all()
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    step()?;
    fs::rename(from, to)
}

pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    step()?;
    fs::remove_file(path)
}

#[cfg(not(test))]
fn step() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
fn step() -> io::Result<()> {
    faults::before()
}

/// What goes wrong, in the thread of a test.
#[cfg(test)]
pub(super) mod faults {
    use std::cell::Cell;
    use std::io;

    /// What happens at the chosen step.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(in crate::store) enum Fault {
        /// The process dies: of a write half is done, of anything else nothing, and nothing happens
        /// after it.
        Death,
        /// The disk has no room: writes and new files fail from here on, half of the first write is
        /// done; syncing, renaming and removing go on.
        FullDisk,
        /// This and every later change is refused.
        ReadOnly,
    }

    thread_local! {
        static PLAN: Cell<Option<(Fault, usize)>> = const { Cell::new(None) };
        static STEPS: Cell<usize> = const { Cell::new(0) };
    }

    /// Runs `work` with `fault` at step number `at`. Returns its result and how many steps were
    /// tried.
    pub(in crate::store) fn with<T>(
        fault: Fault,
        at: usize,
        work: impl FnOnce() -> T,
    ) -> (T, usize) {
        PLAN.set(Some((fault, at)));
        STEPS.set(0);
        let result = work();
        PLAN.set(None);
        (result, STEPS.get())
    }

    /// Whether the fault has come.
    pub(in crate::store) fn happened() -> bool {
        PLAN.get().is_some_and(|(_, at)| STEPS.get() > at)
    }

    enum Verdict {
        Go,
        Now(Fault),
        Since(Fault),
    }

    fn verdict() -> Verdict {
        let number = STEPS.get();
        STEPS.set(number + 1);
        match PLAN.get() {
            Some((fault, at)) if number == at => Verdict::Now(fault),
            Some((fault, at)) if number > at => Verdict::Since(fault),
            _ => Verdict::Go,
        }
    }

    fn refusal(fault: Fault) -> io::Error {
        match fault {
            Fault::Death => io::Error::other("the process is dead"),
            Fault::FullDisk => io::ErrorKind::StorageFull.into(),
            Fault::ReadOnly => io::ErrorKind::ReadOnlyFilesystem.into(),
        }
    }

    pub(super) fn before() -> io::Result<()> {
        match verdict() {
            Verdict::Now(Fault::FullDisk) | Verdict::Since(Fault::FullDisk) | Verdict::Go => Ok(()),
            Verdict::Now(fault) | Verdict::Since(fault) => Err(refusal(fault)),
        }
    }

    /// The part of a write that is done.
    pub(super) fn cut(bytes: &[u8]) -> io::Result<&[u8]> {
        let half = bytes.len() / 2;
        match verdict() {
            Verdict::Go => Ok(bytes),
            Verdict::Now(fault @ (Fault::Death | Fault::FullDisk)) if half > 0 => {
                // The caller tries to write the rest, and that is refused.
                PLAN.set(Some((fault, 0)));
                Ok(&bytes[..half])
            }
            Verdict::Now(fault) | Verdict::Since(fault) => Err(refusal(fault)),
        }
    }
}
