//! Giving each call an id of its own. The original's id has the day and the last 8 digits of the
//! number, so the same number calling twice on one day got the same id, and the CRM took the second
//! call for a duplicate. Here the second becomes `…-2`, the third `…-3`.
//!
//! One small file a day, `call_metadata/.call_ids/<day>.jsonl`, says which session has which id;
//! processes take turns by locking it. When it is not there it is made again from the records on
//! disk, which have the ids in them.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use chrono::{DateTime, Utc};
use memchr::{memchr, memmem, memrchr};
use serde::{Deserialize, Serialize};

use crate::session::{CallRecord, SessionId, call_id_base, sanitise};

use super::{CALL_METADATA, PROCESSED, StoreError, disk, pending};

const FOLDER: &str = ".call_ids";

#[derive(Serialize, Deserialize)]
struct Entry {
    call_id: String,
    session_id: SessionId,
}

/// The id of the session's call: the one it has already, else `base`, else `base-2`, `base-3`…
pub(super) fn reserve(
    root: &Path,
    base: &str,
    call_start: DateTime<Utc>,
    session_id: &SessionId,
) -> Result<String, StoreError> {
    let folder = root.join(CALL_METADATA).join(FOLDER);
    fs::create_dir_all(&folder).map_err(StoreError::io("create the folder", &folder))?;
    let day = call_start.format("%Y%m%d").to_string();
    let path = folder.join(format!("{day}.jsonl"));
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    reserve_in(&mut file, root, &day, base, session_id)
        .map_err(StoreError::io("keep the call id in", &path))
}

fn reserve_in(
    file: &mut File,
    root: &Path,
    day: &str,
    base: &str,
    session_id: &SessionId,
) -> io::Result<String> {
    // Held for some milliseconds at most; released when the file is closed.
    file.lock()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let mut added = Vec::new();
    if lines_with(&text, "").next().is_none() {
        for entry in from_records(root, day) {
            write_line(&mut added, &entry)?;
        }
    }
    let known = [text.as_slice(), added.as_slice()];
    let own = known
        .iter()
        .flat_map(|lines| lines_with(lines, session_id.as_str()))
        .find(|entry| entry.session_id == *session_id);
    if let Some(entry) = own {
        return Ok(entry.call_id);
    }
    let taken: HashSet<String> = known
        .iter()
        .flat_map(|lines| lines_with(lines, base))
        .map(|entry| entry.call_id)
        .collect();
    let call_id = std::iter::once(base.to_owned())
        .chain((2_u32..).map(|number| format!("{base}-{number}")))
        .find(|id| !taken.contains(id))
        .unwrap_or_else(|| base.to_owned());
    // A line that a crash tore must not swallow this one.
    if text.last().is_some_and(|byte| *byte != b'\n') {
        added.insert(0, b'\n');
    }
    write_line(
        &mut added,
        &Entry {
            call_id: call_id.clone(),
            session_id: session_id.clone(),
        },
    )?;
    disk::write_all(file, &added)?;
    disk::sync(file)?;
    Ok(call_id)
}

/// The entries whose line has `part` in it. A day may have ten thousands, and each call asks for
/// its own: bytes are searched, and only what is found is parsed. Ids have nothing in them that
/// JSON would write differently.
fn lines_with<'a>(text: &'a [u8], part: &str) -> impl Iterator<Item = Entry> + use<'a> {
    let finder = memmem::Finder::new(part).into_owned();
    let mut rest = text;
    std::iter::from_fn(move || {
        let at = finder.find(rest).filter(|_| !rest.is_empty())?;
        let start = memrchr(b'\n', &rest[..at]).map_or(0, |newline| newline + 1);
        let end = memchr(b'\n', &rest[at..]).map_or(rest.len(), |newline| at + newline);
        let line = &rest[start..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        Some(serde_json::from_slice(line).ok())
    })
    .flatten()
}

fn write_line(out: &mut Vec<u8>, entry: &Entry) -> io::Result<()> {
    serde_json::to_writer(&mut *out, entry)?;
    out.push(b'\n');
    Ok(())
}

/// The ids in the records of that day, delivered or not. Only files whose name has the day in it
/// are opened.
fn from_records(root: &Path, day: &str) -> Vec<Entry> {
    [CALL_METADATA, PROCESSED]
        .iter()
        .flat_map(|folder| {
            fs::read_dir(root.join(folder))
                .into_iter()
                .flatten()
                .flatten()
        })
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let stem = pending::stem(&name).filter(|stem| stem.contains(day))?;
            let session_id: SessionId = sanitise(stem).parse().ok()?;
            let record = CallRecord::from_json(&fs::read(entry.path()).ok()?, &session_id).ok()?;
            if !record.has_a_call() {
                return None;
            }
            let call_id = record.call_id.clone().or_else(|| {
                // The original did not keep the id in its file; this is the one it sent.
                Some(call_id_base(
                    record.started_at()?,
                    record.other_party(),
                    &record.session_id,
                ))
            })?;
            // A record of the original that is still waiting asks for its id itself.
            let delivered = entry.path().parent()?.ends_with(PROCESSED);
            (delivered || record.call_id.is_some()).then_some(Entry {
                call_id,
                session_id: record.session_id,
            })
        })
        .collect()
}
