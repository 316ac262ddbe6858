//! Writing a file whole or not at all: a temporary file in the same folder, fsync, rename, fsync of the folder.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{StoreError, sync_folder};

/// Temporary files begin with this, so that listings and cleaning know them.
const TEMPORARY_PREFIX: &str = ".tmp-";

/// Writes `value` as indented JSON, not escaped to ASCII.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let temporary = temporary_beside(path);
    let written = write_temporary(&temporary, value).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // A full disk must not fill up further with halves of files.
        let _ = fs::remove_file(&temporary);
        return Err(StoreError::io("write", path)(error));
    }
    match path.parent() {
        Some(folder) => sync_folder(folder).map_err(StoreError::io("sync the folder", folder)),
        None => Ok(()),
    }
}

fn write_temporary<T: Serialize>(temporary: &Path, value: &T) -> io::Result<()> {
    let file = File::create_new(temporary)?;
    let mut writer = BufWriter::new(&file);
    serde_json::to_writer_pretty(&mut writer, value)?;
    writer.write_all(b"\n")?;
    writer.flush()?;
    drop(writer);
    file.sync_all()
}

fn temporary_beside(path: &Path) -> PathBuf {
    path.with_file_name(format!(
        "{TEMPORARY_PREFIX}{}",
        uuid::Uuid::new_v4().simple()
    ))
}

/// Removes temporary files that a killed process has left. Only old ones: a young one may be somebody's write in progress.
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
            age.is_some_and(|age| age >= older_than) && fs::remove_file(entry.path()).is_ok()
        })
        .count()
}
