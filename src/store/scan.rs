//! Calls that have files but no metadata: conversations, leads and recordings that an older program
//! or a lost disk has left are brought together and get a record each, which waits for delivery
//! like any other.
//!
//! [`Store::scan`] reads, [`bring_together`] decides (pure), and only then something is written.
//! Files are matched by the session they name, else by number and time; what could belong to two
//! calls is not guessed but named. No file is changed or removed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::{Value, json};

use crate::call::Numbers;
use crate::phone::CountryCode;
use crate::session::{CallRecord, CampaignIds, FiledRecord, SessionId, sanitise, time};

use super::browse::time_in_name;
use super::{
    CALL_METADATA, CONVERSATIONS, JOURNAL_SUFFIX, LEADS, PROCESSED, RECORDINGS, Store, StoreError,
    atomic, pending, quarantined_file,
};

/// A recording begins at most this long before or after its conversation: an egress takes seconds
/// to start.
const RECORDING_TOLERANCE: TimeDelta = TimeDelta::seconds(120);
/// A lead is written during its call, or at its very end.
const LEAD_TOLERANCE: TimeDelta = TimeDelta::seconds(60);
/// A JSON file that is larger than this is none of ours.
const LARGEST_JSON_BYTES: u64 = 16 * 1024 * 1024;

/// What a scan is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanOptions {
    /// Write nothing.
    pub dry_run: bool,
    /// Files that were written more recently than this may belong to a call that is going on, and
    /// are left for the next scan.
    pub min_age: Duration,
    /// The campaign that the calls belong to, which none of their files tells.
    pub campaign: Option<CampaignIds>,
}

/// What a scan has found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ScanReport {
    /// Calls that have got a record, or would get one.
    pub records: Vec<ScannedCall>,
    /// Files that may belong to several calls. Nothing was done with them.
    pub ambiguous: Vec<ScannedFile>,
    /// Files that cannot be read. They stay where they are.
    pub unreadable: Vec<ScannedFile>,
    /// Files that are too young.
    pub young: u64,
}

/// A call made of its files.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ScannedCall {
    /// The session: as the conversation's name has it, else made from time and path, the same at
    /// every scan.
    pub session_id: String,
    /// The other party.
    pub number: Option<String>,
    /// When it began.
    #[serde(with = "time::option")]
    pub start: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(with = "time::option")]
    pub end: Option<DateTime<Utc>>,
    /// `conversations/…`.
    pub conversation: Option<String>,
    /// `recordings/…`.
    pub recording: Option<String>,
    /// `EG_…`.
    pub egress_id: Option<String>,
    /// `leads/…`, oldest first.
    pub leads: Vec<String>,
    /// How its files were found to belong together.
    pub matched_by: Vec<&'static str>,
    /// The unreadable record that lay in its place, under its new name.
    pub quarantined: Option<String>,
    /// Why its record could not be written.
    pub error: Option<String>,
}

/// A file and a sentence about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScannedFile {
    /// The path under the data folder.
    pub file: String,
    /// The rest of a sentence that begins with the file.
    pub why: String,
}

#[derive(Debug, Clone)]
struct Conversation {
    file: String,
    session: SessionId,
    /// All names by which leads and recordings may call it.
    names: Vec<String>,
    number: Option<String>,
    start: DateTime<Utc>,
    end: DateTime<Utc>,
}

#[derive(Debug, Clone)]
struct Recording {
    file: Option<String>,
    egress_id: Option<String>,
    /// What it is called: the file without its ending, the room.
    names: Vec<String>,
    number: Option<String>,
    start: DateTime<Utc>,
    end: DateTime<Utc>,
}

impl Recording {
    /// The session that it is named after, as our own recordings are.
    fn session(&self) -> Option<String> {
        let ours = |name: &&String| {
            let id: Option<SessionId> = name.parse().ok();
            id.is_some_and(|id| id.started_at().is_some())
        };
        self.names.iter().find(ours).cloned()
    }

    /// The file to speak of.
    fn label(&self) -> String {
        let manifest = || {
            self.egress_id
                .as_ref()
                .map(|id| format!("{RECORDINGS}/{id}.json"))
        };
        self.file.clone().or_else(manifest).unwrap_or_default()
    }
}

#[derive(Debug, Clone)]
struct LeadFile {
    file: String,
    session: Option<String>,
    number: Option<String>,
    /// When it was taken; an old file may have only its name and its own time, which may differ by
    /// a time zone.
    times: Vec<DateTime<Utc>>,
}

/// The files that no record names.
#[derive(Debug, Default)]
struct Found<'a> {
    conversations: Vec<Conversation>,
    recordings: Vec<Recording>,
    leads: Vec<LeadFile>,
    recorded: &'a [RecordedCall],
    /// Sessions whose conversation is there but cannot be used, yet or at all: nothing is made of
    /// the rest of the call alone.
    held: HashSet<String>,
}

/// A call that has its record.
#[derive(Debug)]
struct RecordedCall {
    session: SessionId,
    number: Option<String>,
    start: DateTime<Utc>,
    end: DateTime<Utc>,
    has_recording: bool,
}

impl Found<'_> {
    /// A call with a record but no recording that this one may be of.
    fn recorded_call_of(&self, recording: &Recording) -> Option<&SessionId> {
        let fits = |call: &&RecordedCall| {
            !call.has_recording
                && may_be_same(&recording.number, &call.number)
                && (recording.start - call.start).abs() <= RECORDING_TOLERANCE
        };
        self.recorded.iter().find(fits).map(|call| &call.session)
    }

    /// A call with a record in which this lead may have been taken, as far as time and number tell.
    fn recorded_call_at(&self, lead: &LeadFile) -> Option<&SessionId> {
        let fits = |call: &&RecordedCall| {
            let window = call.start..=call.end + LEAD_TOLERANCE;
            lead.session.is_none()
                && may_be_same(&lead.number, &call.number)
                && lead.times.iter().any(|at| window.contains(at))
        };
        self.recorded.iter().find(fits).map(|call| &call.session)
    }
}

fn may_be_same(one: &Option<String>, other: &Option<String>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    }
}

/// Brings together what belongs together. What fits to several calls comes back with a sentence.
fn bring_together(found: Found<'_>) -> (Vec<ScannedCall>, Vec<ScannedFile>) {
    let mut ambiguous = Vec::new();
    let mut calls: Vec<(ScannedCall, Vec<String>)> = found
        .conversations
        .iter()
        .map(|conversation| {
            let call = ScannedCall {
                session_id: conversation.session.to_string(),
                number: conversation.number.clone(),
                start: Some(conversation.start),
                end: Some(conversation.end),
                conversation: Some(conversation.file.clone()),
                ..ScannedCall::default()
            };
            (call, conversation.names.clone())
        })
        .collect();
    let conversations = calls.len();

    // Which conversations each recording may be of; one that both sides have to themselves is
    // certain.
    let by_name = |recording: &Recording| {
        found.conversations.iter().position(|conversation| {
            recording
                .names
                .iter()
                .any(|name| conversation.names.contains(name))
        })
    };
    let by_time = |recording: &Recording| -> Vec<usize> {
        let fits = |conversation: &Conversation| {
            may_be_same(&recording.number, &conversation.number)
                && (recording.start - conversation.start).abs() <= RECORDING_TOLERANCE
        };
        let all = found.conversations.iter().enumerate();
        all.filter(|(_, conversation)| fits(conversation))
            .map(|(index, _)| index)
            .collect()
    };
    let mut wanted: HashMap<usize, usize> = HashMap::new();
    let mut named = HashSet::new();
    for recording in &found.recordings {
        match by_name(recording) {
            Some(index) => drop(named.insert(index)),
            None => {
                for index in by_time(recording) {
                    *wanted.entry(index).or_default() += 1;
                }
            }
        }
    }
    let has_recording = |call: &ScannedCall| call.recording.is_some() || call.egress_id.is_some();
    for recording in &found.recordings {
        let (index, how) = match by_name(recording) {
            Some(index) if !has_recording(&calls[index].0) => (Some(index), "session"),
            Some(index) => {
                let why = format!("is a further recording of {}", calls[index].0.session_id);
                ambiguous.push(ScannedFile {
                    file: recording.label(),
                    why,
                });
                continue;
            }
            None => {
                let free: Vec<usize> = by_time(recording)
                    .into_iter()
                    .filter(|index| !named.contains(index))
                    .collect();
                match free[..] {
                    [] => match found.recorded_call_of(recording) {
                        None => (None, ""),
                        Some(session) => {
                            ambiguous.push(ScannedFile {
                                file: recording.label(),
                                why: format!(
                                    "may be the recording of {session}, which has a record"
                                ),
                            });
                            continue;
                        }
                    },
                    [index] if wanted[&index] == 1 => (Some(index), "number and time"),
                    _ => {
                        let sessions: Vec<&str> = free
                            .iter()
                            .map(|index| calls[*index].0.session_id.as_str())
                            .collect();
                        let why = format!(
                            "may be the recording of {}, and so may others",
                            sessions.join(" or ")
                        );
                        ambiguous.push(ScannedFile {
                            file: recording.label(),
                            why,
                        });
                        continue;
                    }
                }
            }
        };
        let index = index.unwrap_or_else(|| {
            let call = ScannedCall {
                session_id: recording
                    .session()
                    .unwrap_or_else(|| made_up_session(recording.start, &recording.label())),
                start: Some(recording.start),
                end: Some(recording.end),
                ..ScannedCall::default()
            };
            calls.push((call, recording.names.clone()));
            calls.len() - 1
        });
        let call = &mut calls[index].0;
        call.recording = recording.file.clone();
        call.egress_id = recording.egress_id.clone();
        call.number = call.number.take().or_else(|| recording.number.clone());
        if index < conversations {
            call.matched_by.push(how);
        }
    }

    for lead in &found.leads {
        let names_it = |names: &Vec<String>| {
            let in_file_name = |name: &String| {
                let stem = lead.file.trim_start_matches(LEADS).trim_start_matches('/');
                stem.strip_prefix("lead_")
                    .and_then(|rest| rest.strip_prefix(name.as_str()))
                    .is_some_and(|rest| rest.starts_with(['_', '.']))
            };
            names
                .iter()
                .any(|name| lead.session.as_ref() == Some(name) || in_file_name(name))
        };
        let in_time = |call: &ScannedCall| {
            let (Some(start), Some(end)) = (call.start, call.end) else {
                return false;
            };
            // Two leads alone may be of two callers.
            (call.conversation.is_some() || has_recording(call))
                && may_be_same(&lead.number, &call.number)
                && lead
                    .times
                    .iter()
                    .any(|at| (start..=end + LEAD_TOLERANCE).contains(at))
        };
        let named = calls.iter().position(|(_, names)| names_it(names));
        let fitting: Vec<usize> = match named {
            Some(index) => vec![index],
            // A lead that names a call which is not here belongs to no other.
            None if lead.session.is_some() => Vec::new(),
            None => (0..calls.len())
                .filter(|index| in_time(&calls[*index].0))
                .collect(),
        };
        match fitting[..] {
            [index] => {
                let call = &mut calls[index].0;
                call.leads.push(lead.file.clone());
                call.matched_by.push(match named {
                    Some(_) => "session",
                    None => "number and time",
                });
            }
            [] if found.recorded_call_at(lead).is_some() => ambiguous.push(ScannedFile {
                file: lead.file.clone(),
                why: "may be of a call that has a record".to_owned(),
            }),
            [] => {
                let at = lead.times.first().copied();
                let call = ScannedCall {
                    session_id: lead
                        .session
                        .as_deref()
                        .map(sanitise)
                        .unwrap_or_else(|| made_up_session(at.unwrap_or_default(), &lead.file)),
                    number: lead.number.clone(),
                    start: at,
                    end: at,
                    leads: vec![lead.file.clone()],
                    ..ScannedCall::default()
                };
                calls.push((call, lead.session.iter().cloned().collect()));
            }
            _ => ambiguous.push(ScannedFile {
                file: lead.file.clone(),
                why: "was taken while several calls were going on".to_owned(),
            }),
        }
    }
    let calls = calls
        .into_iter()
        .map(|(mut call, _)| {
            call.matched_by.sort_unstable();
            call.matched_by.dedup();
            call
        })
        .collect();
    (calls, ambiguous)
}

/// An id in our shape for a call that has none: the same for the same file at every scan (FNV-1a of
/// its path).
fn made_up_session(start: DateTime<Utc>, file: &str) -> String {
    let hash = file.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!(
        "session_{}_{:06x}",
        start.format("%Y%m%d_%H%M%S"),
        hash & 0x00ff_ffff
    )
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

/// What the records that there are name, and so needs none.
#[derive(Debug, Default)]
struct Known {
    sessions: HashSet<String>,
    files: HashSet<String>,
    egresses: HashSet<String>,
    calls: Vec<RecordedCall>,
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
    /// Looks for calls that have no record and gives them one.
    ///
    /// # Errors
    /// When a folder cannot be listed. What is wrong with one file is in the report, and the others
    /// go on.
    pub fn scan(&self, options: &ScanOptions) -> Result<ScanReport, StoreError> {
        let mut report = ScanReport::default();
        let known = self.known(&mut report)?;
        let found = self.found(&known, options.min_age, &mut report)?;
        let held = found.held.clone();
        let (calls, ambiguous) = bring_together(found);
        report.ambiguous = ambiguous;
        for mut call in calls {
            let why = if known.sessions.contains(&call.session_id) {
                Some("whose record does not name it")
            } else if held.contains(&call.session_id) {
                Some("whose conversation is not readable or very young")
            } else {
                None
            };
            if let Some(why) = why {
                let files = [&call.conversation, &call.recording];
                for file in files.into_iter().flatten().chain(&call.leads) {
                    report.ambiguous.push(ScannedFile {
                        file: file.clone(),
                        why: format!("belongs to {}, {why}", call.session_id),
                    });
                }
                continue;
            }
            if !options.dry_run {
                match self.write_scanned(&call, options.campaign.as_ref()) {
                    Ok(quarantined) => call.quarantined = quarantined,
                    Err(error) => call.error = Some(error.to_string()),
                }
            }
            report.records.push(call);
        }
        report
            .records
            .sort_by(|a, b| a.session_id.cmp(&b.session_id));
        Ok(report)
    }

    /// Everything that records and journals name.
    fn known(&self, report: &mut ScanReport) -> Result<Known, StoreError> {
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
                    Ok(record) => {
                        let files = &record.files;
                        known.sessions.insert(record.session_id.to_string());
                        known.sessions.insert(id.to_string());
                        known.files.extend(files.leads.iter().cloned());
                        let single = [&files.recording, &files.conversation, &files.lead];
                        known.files.extend(single.into_iter().flatten().cloned());
                        if let Some(id) = record.egress_id() {
                            known.egresses.insert(bare(id).to_owned());
                        }
                        if let (Some(start), Some(end)) = (record.started_at(), record.ended_at()) {
                            known.calls.push(RecordedCall {
                                number: record.other_party().map(str::to_owned),
                                has_recording: files.recording.is_some()
                                    || record.egress_id().is_some(),
                                session: record.session_id.clone(),
                                start,
                                end: end.max(start),
                            });
                        }
                    }
                    Err(why) => {
                        if CallRecord::filed(&bytes, &id) == FiledRecord::Newer {
                            known.sessions.insert(id.to_string());
                        }
                        report.unreadable.push(ScannedFile {
                            file: listed.file,
                            why,
                        });
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

    fn read_found(&self, file: &str) -> Result<Value, String> {
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
    fn found<'a>(
        &self,
        known: &'a Known,
        min_age: Duration,
        report: &mut ScanReport,
    ) -> Result<Found<'a>, StoreError> {
        let newest: DateTime<Utc> = (SystemTime::now() - min_age).into();
        let mut found = Found {
            recorded: &known.calls,
            ..Found::default()
        };
        let fresh = |listed: &Listed, report: &mut ScanReport| {
            let known = known.files.contains(&listed.file);
            let young = !known && listed.modified > newest;
            report.young += u64::from(young);
            !known && !young
        };

        for listed in self.list(CONVERSATIONS)? {
            let journal = listed.file.contains(JOURNAL_SUFFIX);
            let stem = listed
                .stem
                .strip_prefix("conversation_")
                .unwrap_or(&listed.stem)
                .to_owned();
            if journal || !listed.file.ends_with(".json") || known.sessions.contains(&stem) {
                continue;
            }
            if !fresh(&listed, report) {
                found.held.insert(sanitise(&stem));
                continue;
            }
            match self.read_found(&listed.file) {
                Ok(value) => {
                    let mut names = vec![stem.clone()];
                    names.extend(text(&value, &["session_id"]));
                    if names.iter().any(|name| known.sessions.contains(name)) {
                        continue;
                    }
                    let Ok(session) = sanitise(&stem).parse() else {
                        continue;
                    };
                    let (start, end) = conversation_times(&value, &stem, listed.modified);
                    let number = text(&value, &["dialed_number", "phone_number", "caller_number"]);
                    found.conversations.push(Conversation {
                        file: listed.file,
                        session,
                        names,
                        number,
                        start,
                        end,
                    });
                }
                Err(why) => {
                    found.held.insert(sanitise(&stem));
                    report.unreadable.push(ScannedFile {
                        file: listed.file,
                        why,
                    });
                }
            }
        }

        for listed in self.list(LEADS)? {
            if !listed.file.ends_with(".json") || !fresh(&listed, report) {
                continue;
            }
            match self.read_found(&listed.file) {
                Ok(value) => {
                    let taken = time_field(&value, &["created_at", "timestamp"]);
                    let times = match taken {
                        Some(taken) => vec![taken],
                        None => time_of(&listed.stem)
                            .into_iter()
                            .chain([listed.modified])
                            .collect(),
                    };
                    found.leads.push(LeadFile {
                        session: text(&value, &["session_id"]),
                        // What the caller said as a number need not be the one that was called
                        // from.
                        number: text(&value, &["dialed_number", "caller_number"]),
                        times,
                        file: listed.file,
                    });
                }
                Err(why) => report.unreadable.push(ScannedFile {
                    file: listed.file,
                    why,
                }),
            }
        }

        let (manifests, files): (Vec<Listed>, Vec<Listed>) = self
            .list(RECORDINGS)?
            .into_iter()
            .partition(|listed| listed.file.ends_with(".json"));
        let mut of_manifests = HashSet::new();
        for listed in manifests {
            let value = match self.read_found(&listed.file) {
                Ok(value) => value,
                Err(why) => {
                    report.unreadable.push(ScannedFile {
                        file: listed.file,
                        why,
                    });
                    continue;
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
            let file = named
                .iter()
                .map(|name| format!("{RECORDINGS}/{name}"))
                .find(|file| self.resolve(file).is_ok_and(|path| path.is_file()));
            of_manifests.extend(file.clone());
            let is_known = known.egresses.contains(bare(&egress_id))
                || file.as_ref().is_some_and(|file| known.files.contains(file));
            if is_known || !fresh(&listed, report) {
                continue;
            }
            let mut names: Vec<String> = text(&value, &["room_name"]).into_iter().collect();
            names.extend(named.iter().map(|name| stem_of(name).to_owned()));
            let start = nanoseconds(&value, "started_at")
                .or_else(|| names.iter().find_map(|name| time_of(name)))
                .unwrap_or(listed.modified);
            found.recordings.push(Recording {
                number: names.iter().find_map(|name| number_in(name)),
                end: nanoseconds(&value, "ended_at").unwrap_or(listed.modified),
                egress_id: Some(egress_id),
                names,
                file,
                start,
            });
        }
        for listed in files {
            let taken =
                of_manifests.contains(&listed.file) || known.sessions.contains(&listed.stem);
            let empty =
                fs::metadata(self.root().join(&listed.file)).map_or(0, |meta| meta.len()) == 0;
            if taken || empty || !fresh(&listed, report) {
                continue;
            }
            found.recordings.push(Recording {
                number: number_in(&listed.stem),
                start: time_of(&listed.stem).unwrap_or(listed.modified),
                end: listed.modified,
                egress_id: None,
                names: vec![listed.stem],
                file: Some(listed.file),
            });
        }
        Ok(found)
    }

    /// Writes the record. Returns what lay in its place.
    fn write_scanned(
        &self,
        call: &ScannedCall,
        campaign: Option<&CampaignIds>,
    ) -> Result<Option<String>, StoreError> {
        let record = record_of(call, campaign)?;
        let path = self.record_path(CALL_METADATA, &record.session_id);
        let mut quarantined = None;
        match self.filed(CALL_METADATA, &record.session_id)? {
            None => {}
            Some(FiledRecord::Unreadable) => {
                let aside = quarantined_file(&path)?;
                let name = aside.file_name().unwrap_or_default().to_string_lossy();
                quarantined = Some(format!("{CALL_METADATA}/{name}"));
            }
            Some(_) => {
                return Err(StoreError::BadRecord {
                    path,
                    problem: "was made by somebody else just now".to_owned(),
                });
            }
        }
        atomic::write_json(&path, &record)?;
        Ok(quarantined)
    }
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
    let items = value["conversation_items"]
        .as_array()
        .or_else(|| value["items"].as_array());
    let said = |item: Option<&Value>| time_field(item?, &["timestamp"]);
    let start = time_field(value, &["start_time"])
        .or_else(|| said(items.and_then(|items| items.first())))
        .or_else(|| time_of(stem));
    let end = time_field(value, &["end_time"])
        .or_else(|| said(items.and_then(|items| items.last())))
        .unwrap_or(modified);
    let start = start.unwrap_or(end);
    (start, end.max(start))
}

/// The record of a scanned call, by way of the original's metadata, which knows no more than this
/// either.
fn record_of(call: &ScannedCall, campaign: Option<&CampaignIds>) -> Result<CallRecord, StoreError> {
    let bad = |problem: String| StoreError::BadRecord {
        path: call.session_id.clone().into(),
        problem,
    };
    let id: SessionId = call
        .session_id
        .parse()
        .map_err(|error| bad(format!("has no usable session: {error}")))?;
    let mut metadata = campaign.map(CampaignIds::fields).unwrap_or_default();
    if let Some(egress_id) = &call.egress_id {
        metadata.insert("egressId".to_owned(), egress_id.clone().into());
    }
    if let Some(lead) = call.leads.last() {
        metadata.insert("lead_file".to_owned(), lead.clone().into());
    }
    let value = json!({
        "session_id": id,
        "dialed_number": call.number,
        "caller_number": call.number,
        "campaign_metadata": metadata,
        "files": {
            "recording": call.recording,
            "conversation": call.conversation,
            "lead": call.leads.last(),
            "leads": call.leads,
        },
        "timestamps": {
            "call_start": call.start.map(time::format),
            "call_end": call.end.map(time::format),
            "metadata_saved": time::format(time::now()),
        },
        "outcome": {
            "call_status": "recovered",
            "error": "the call had files but no record; `uploads scan` made this one",
        },
    });
    CallRecord::from_json(value.to_string().as_bytes(), &id).map_err(bad)
}
