//! The files of the data folder: those that records and journals name, and what the others tell.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::ScanReport;
use crate::phone::CountryCode;
use crate::session::{CallRecord, FiledRecord, Numbers, SessionId, said_in, sanitise, time};
use crate::store::browse::time_in_name;
use crate::store::{
    CALL_METADATA, CONVERSATIONS, JOURNAL_SUFFIX, LEADS, PROCESSED, RECORDINGS, Store, StoreError,
    pending,
};

/// A JSON file that is larger than this is none of ours.
const LARGEST_JSON_BYTES: u64 = 16 * 1024 * 1024;

/// A conversation that no record names.
#[derive(Debug, Clone)]
pub(super) struct Conversation {
    pub file: String,
    pub session: SessionId,
    /// All names by which leads and recordings may call it.
    pub names: Vec<String>,
    pub number: Option<String>,
    pub start: DateTime<Utc>,
    pub end: DateTime<Utc>,
}

/// A recording that no record names: a file, or the manifest of an egress.
#[derive(Debug, Clone)]
pub(super) struct Recording {
    pub file: Option<String>,
    pub egress_id: Option<String>,
    /// What it is called: the file without its ending, the room.
    pub names: Vec<String>,
    pub number: Option<String>,
    pub start: DateTime<Utc>,
    pub end: DateTime<Utc>,
}

impl Recording {
    /// The session that it is named after, as our own recordings are.
    pub fn session(&self) -> Option<String> {
        let ours = |name: &&String| {
            let id: Option<SessionId> = name.parse().ok();
            id.is_some_and(|id| id.started_at().is_some())
        };
        self.names.iter().find(ours).cloned()
    }

    /// The file to speak of.
    pub fn label(&self) -> String {
        let manifest = || {
            self.egress_id
                .as_ref()
                .map(|id| format!("{RECORDINGS}/{id}.json"))
        };
        self.file.clone().or_else(manifest).unwrap_or_default()
    }
}

/// A lead that no record names.
#[derive(Debug, Clone)]
pub(super) struct LeadFile {
    pub file: String,
    pub session: Option<String>,
    pub number: Option<String>,
    /// When it was taken; an old file may have only its name and its own time, which may differ by
    /// a time zone.
    pub times: Vec<DateTime<Utc>>,
}

/// The files that no record names.
#[derive(Debug, Default)]
pub(super) struct Found<'a> {
    pub conversations: Vec<Conversation>,
    pub recordings: Vec<Recording>,
    pub leads: Vec<LeadFile>,
    pub recorded: &'a [RecordedCall],
    /// Sessions whose conversation is there but cannot be used, yet or at all: nothing is made of
    /// the rest of the call alone.
    pub held: HashSet<String>,
}

/// A call that has its record.
#[derive(Debug)]
pub(super) struct RecordedCall {
    pub session: SessionId,
    pub number: Option<String>,
    pub start: DateTime<Utc>,
    pub end: DateTime<Utc>,
    pub has_recording: bool,
}

/// What the records that there are name, and so needs none.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub sessions: HashSet<String>,
    files: HashSet<String>,
    egresses: HashSet<String>,
    calls: Vec<RecordedCall>,
}

impl Known {
    fn take(&mut self, record: &CallRecord, named: &SessionId) {
        let files = &record.files;
        self.sessions.insert(record.session_id.to_string());
        self.sessions.insert(named.to_string());
        self.files.extend(files.leads.iter().cloned());
        let single = [&files.recording, &files.conversation];
        self.files.extend(single.into_iter().flatten().cloned());
        if let Some(id) = record.egress_id() {
            self.egresses.insert(bare(id).to_owned());
        }
        if let (Some(start), Some(end)) = (record.started_at(), record.ended_at()) {
            self.calls.push(RecordedCall {
                number: record.other_party().map(str::to_owned),
                has_recording: files.recording.is_some() || record.egress_id().is_some(),
                session: record.session_id.clone(),
                start,
                end: end.max(start),
            });
        }
    }
}

fn bare(egress_id: &str) -> &str {
    egress_id.strip_prefix("EG_").unwrap_or(egress_id)
}

struct Listed {
    file: String,
    /// Without folder and ending.
    stem: String,
    modified: DateTime<Utc>,
}

impl Store {
    /// Everything that records and journals name.
    pub(super) fn known(&self, report: &mut ScanReport) -> Result<Known, StoreError> {
        let mut known = Known::default();
        for folder in [CALL_METADATA, PROCESSED] {
            for listed in self.list(folder)? {
                let name = listed.file.rsplit('/').next().unwrap_or_default();
                let Some(id) = pending::stem(name).and_then(|stem| sanitise(stem).parse().ok())
                else {
                    continue;
                };
                let path = self.root().join(&listed.file);
                let bytes = match fs::read(&path) {
                    Ok(bytes) => bytes,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(StoreError::io("read", &path)(error)),
                };
                match CallRecord::from_json(&bytes, &id) {
                    Ok(record) => known.take(&record, &id),
                    Err(why) => {
                        if CallRecord::filed(&bytes, &id) == FiledRecord::Newer {
                            known.sessions.insert(id.to_string());
                        }
                        report.unreadable(listed.file, why);
                    }
                }
            }
        }
        let journals = self.orphans();
        known.sessions.extend(
            journals
                .iter()
                .map(|journal| journal.session_id.to_string()),
        );
        Ok(known)
    }

    /// The files of a folder that are not hidden, in order.
    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        let path = self.root().join(folder);
        let entries = fs::read_dir(&path).map_err(StoreError::io("list", &path))?;
        let mut all: Vec<Listed> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let meta = entry.metadata().ok().filter(|meta| meta.is_file())?;
                if name.starts_with('.') {
                    return None;
                }
                Some(Listed {
                    file: format!("{folder}/{name}"),
                    stem: Path::new(&name).file_stem()?.to_str()?.to_owned(),
                    modified: meta.modified().ok()?.into(),
                })
            })
            .collect();
        all.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(all)
    }

    fn read_object(&self, file: &str) -> Result<Value, String> {
        let path = self.root().join(file);
        let read = || {
            if fs::metadata(&path)?.len() > LARGEST_JSON_BYTES {
                return Err(io::Error::other("it is too large for such a file"));
            }
            fs::read(&path)
        };
        let bytes = read().map_err(|error| format!("can not be read: {error}"))?;
        match serde_json::from_slice(&bytes) {
            Ok(value @ Value::Object(_)) => Ok(value),
            Ok(_) => Err("is JSON but not an object".to_owned()),
            Err(error) => Err(format!("is not JSON: {error}")),
        }
    }

    /// The files that nothing names.
    pub(super) fn found<'a>(
        &self,
        known: &'a Known,
        min_age: Duration,
        report: &mut ScanReport,
    ) -> Result<Found<'a>, StoreError> {
        let mut reader = Reader {
            store: self,
            known,
            newest: (SystemTime::now() - min_age).into(),
            report,
            found: Found {
                recorded: &known.calls,
                ..Found::default()
            },
        };
        for listed in self.list(CONVERSATIONS)? {
            reader.conversation(listed);
        }
        for listed in self.list(LEADS)? {
            reader.lead(listed);
        }
        let (manifests, files): (Vec<Listed>, Vec<Listed>) = self
            .list(RECORDINGS)?
            .into_iter()
            .partition(|listed| listed.file.ends_with(".json"));
        let mut of_manifests = HashSet::new();
        for listed in manifests {
            of_manifests.extend(reader.manifest(listed));
        }
        for listed in files {
            if !of_manifests.contains(&listed.file) {
                reader.recording(listed);
            }
        }
        Ok(reader.found)
    }
}

/// Reads what no record names.
struct Reader<'a, 'r> {
    store: &'r Store,
    known: &'a Known,
    /// Files that were written later than this are left alone.
    newest: DateTime<Utc>,
    report: &'r mut ScanReport,
    found: Found<'a>,
}

impl Reader<'_, '_> {
    /// Whether nothing names the file and it is old enough.
    fn is_free(&mut self, listed: &Listed) -> bool {
        let known = self.known.files.contains(&listed.file);
        let young = !known && listed.modified > self.newest;
        self.report.young += u64::from(young);
        !known && !young
    }

    fn conversation(&mut self, listed: Listed) {
        let journal = listed.file.contains(JOURNAL_SUFFIX);
        let stem = listed
            .stem
            .strip_prefix("conversation_")
            .unwrap_or(&listed.stem)
            .to_owned();
        if journal || !listed.file.ends_with(".json") || self.known.sessions.contains(&stem) {
            return;
        }
        if !self.is_free(&listed) {
            self.found.held.insert(sanitise(&stem));
            return;
        }
        let value = match self.store.read_object(&listed.file) {
            Ok(value) => value,
            Err(why) => {
                self.found.held.insert(sanitise(&stem));
                self.report.unreadable(listed.file, why);
                return;
            }
        };
        let mut names = vec![stem.clone()];
        names.extend(text(&value, &["session_id"]));
        if names.iter().any(|name| self.known.sessions.contains(name)) {
            return;
        }
        let Ok(session) = sanitise(&stem).parse() else {
            return;
        };
        let (start, end) = conversation_times(&value, &stem, listed.modified);
        self.found.conversations.push(Conversation {
            number: text(&value, &["dialed_number", "phone_number", "caller_number"]),
            file: listed.file,
            session,
            names,
            start,
            end,
        });
    }

    fn lead(&mut self, listed: Listed) {
        if !listed.file.ends_with(".json") || !self.is_free(&listed) {
            return;
        }
        let value = match self.store.read_object(&listed.file) {
            Ok(value) => value,
            Err(why) => return self.report.unreadable(listed.file, why),
        };
        let times = match time_field(&value, &["created_at", "timestamp"]) {
            Some(taken) => vec![taken],
            None => time_of(&listed.stem)
                .into_iter()
                .chain([listed.modified])
                .collect(),
        };
        self.found.leads.push(LeadFile {
            session: text(&value, &["session_id"]),
            // What the caller said as a number need not be the one that was called from.
            number: text(&value, &["dialed_number", "caller_number"]),
            times,
            file: listed.file,
        });
    }

    /// What an egress left beside its file. Gives back that file, if it is here.
    fn manifest(&mut self, listed: Listed) -> Option<String> {
        let value = match self.store.read_object(&listed.file) {
            Ok(value) => value,
            Err(why) => {
                self.report.unreadable(listed.file, why);
                return None;
            }
        };
        let egress_id = text(&value, &["egress_id"]).unwrap_or_else(|| listed.stem.clone());
        let named: Vec<String> = value["files"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|file| text(file, &["filename", "location"]))
            .map(|path| path.rsplit('/').next().unwrap_or_default().to_owned())
            .collect();
        let is_here = |file: &String| self.store.resolve(file).is_ok_and(|path| path.is_file());
        let file = named
            .iter()
            .map(|name| format!("{RECORDINGS}/{name}"))
            .find(is_here);
        let is_known = self.known.egresses.contains(bare(&egress_id))
            || file
                .as_ref()
                .is_some_and(|file| self.known.files.contains(file));
        if is_known || !self.is_free(&listed) {
            return file;
        }
        let mut names: Vec<String> = text(&value, &["room_name"]).into_iter().collect();
        names.extend(named.iter().map(|name| stem_of(name).to_owned()));
        let start = nanoseconds(&value, "started_at")
            .or_else(|| names.iter().find_map(|name| time_of(name)))
            .unwrap_or(listed.modified);
        self.found.recordings.push(Recording {
            number: names.iter().find_map(|name| number_in(name)),
            end: nanoseconds(&value, "ended_at").unwrap_or(listed.modified),
            egress_id: Some(egress_id),
            names,
            file: file.clone(),
            start,
        });
        file
    }

    /// A recording without a manifest.
    fn recording(&mut self, listed: Listed) {
        let path = self.store.root().join(&listed.file);
        let is_empty = fs::metadata(path).map_or(0, |meta| meta.len()) == 0;
        if self.known.sessions.contains(&listed.stem) || is_empty || !self.is_free(&listed) {
            return;
        }
        self.found.recordings.push(Recording {
            number: number_in(&listed.stem),
            start: time_of(&listed.stem).unwrap_or(listed.modified),
            end: listed.modified,
            egress_id: None,
            names: vec![listed.stem],
            file: Some(listed.file),
        });
    }
}

fn number_in(name: &str) -> Option<String> {
    let country = CountryCode::default();
    Numbers::read(&Value::Null, &HashMap::new(), name, &country).dialed_number
}

/// A time in a name: date and time, or seconds since 1970 as the original wrote them
/// (`number-_918655066243-1698567890`).
fn time_of(name: &str) -> Option<DateTime<Utc>> {
    time_in_name(name).or_else(|| {
        let seconds = name.rsplit('-').next().filter(|text| text.len() == 10)?;
        DateTime::from_timestamp(seconds.parse().ok()?, 0)
    })
}

/// The text of a JSON field.
fn text(value: &Value, names: &[&str]) -> Option<String> {
    let found = names.iter().find_map(|name| value.get(*name)?.as_str());
    found.filter(|text| !text.is_empty()).map(str::to_owned)
}

fn time_field(value: &Value, names: &[&str]) -> Option<DateTime<Utc>> {
    names
        .iter()
        .find_map(|name| time::parse(value.get(*name)?.as_str()?))
}

fn nanoseconds(value: &Value, name: &str) -> Option<DateTime<Utc>> {
    let field = value.get(name)?;
    let nanoseconds = field
        .as_i64()
        .or_else(|| field.as_str()?.parse().ok())
        .filter(|nanoseconds| *nanoseconds > 0)?;
    Some(DateTime::from_timestamp_nanos(nanoseconds))
}

fn stem_of(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// When a conversation began and ended: as it says, else by its items, its name, its file.
fn conversation_times(
    value: &Value,
    stem: &str,
    modified: DateTime<Utc>,
) -> (DateTime<Utc>, DateTime<Utc>) {
    let items = said_in(value);
    let said = |item: Option<&Value>| time_field(item?, &["timestamp"]);
    let start = time_field(value, &["start_time"])
        .or_else(|| said(items.first()))
        .or_else(|| time_of(stem));
    let end = time_field(value, &["end_time"])
        .or_else(|| said(items.last()))
        .unwrap_or(modified);
    let start = start.unwrap_or(end);
    (start, end.max(start))
}
