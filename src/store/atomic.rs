//! Atomic writes: a temporary file in the same folder, fsync, rename, fsync of the folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{StoreError, disk};

/// The prefix of temporary files, by which listings and cleaning recognise them.
const TEMPORARY_PREFIX: &str = ".tmp-";

/// Writes `value` as indented JSON, not escaped to ASCII.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let written = serde_json::to_vec_pretty(value)
        .map_err(io::Error::from)
        .and_then(|mut bytes| {
            bytes.push(b'\n');
            write_whole(path, &bytes)
        });
    written.map_err(StoreError::io("write", path))
}

/// Writes a file atomically.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_beside(path);
    let written = write_temporary(&temporary, bytes).and_then(|()| disk::rename(&temporary, path));
    if let Err(error) = written {
        // Partial files must not fill up the disk further.
        let _ = disk::remove_file(&temporary);
        return Err(error);
    }
    path.parent().map_or(Ok(()), disk::sync_folder)
}

fn write_temporary(temporary: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = disk::create_new(temporary)?;
    disk::write_all(&mut file, bytes)?;
    disk::sync(&file)
}

/// A unique name in the folder of `path`.
pub(super) fn temporary_beside(path: &Path) -> PathBuf {
    path.with_file_name(format!(
        "{TEMPORARY_PREFIX}{}",
        uuid::Uuid::new_v4().simple()
    ))
}

/// Removes temporary files of killed processes. Only old ones: a recent one may be a write in
/// progress.
pub(super) fn remove_stray_temporaries(folder: &Path, older_than: std::time::Duration) -> usize {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with(TEMPORARY_PREFIX)
        })
        .filter(|entry| {
            let age = entry
                .metadata()
                .and_then(|m| m.modified())
                .ok()
                .and_then(|m| m.elapsed().ok());
            age.is_some_and(|age| age >= older_than) && disk::remove_file(&entry.path()).is_ok()
        })
        .count()
}
