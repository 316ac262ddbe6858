//! Which calls there are, and which of them somebody means.

use std::collections::VecDeque;
use std::fs;

use chrono::{DateTime, NaiveDate, Utc};
use memchr::memmem;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::session::{
    CallRecord, CallStatus, ConversationItem, LeadId, RecordStatus, SessionId, TurnRecord, sanitise,
};
use crate::store::{CallFile, Place, Store, StoreError};

/// Calls that one question shows at most; whoever asks for more gets a list instead.
const MOST_FOUND: usize = 200;
/// A part of a number that is shorter than this names too many calls.
const SHORTEST_NUMBER: usize = 4;

/// Where a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Somebody is on the line.
    Running,
    /// Its process died; the next start of a worker makes the record.
    Interrupted,
    /// It is over, and not all of it is delivered.
    Waiting,
    /// The CRM has refused it.
    Failed,
    /// The CRM has confirmed it.
    Archived,
}

impl Standing {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Interrupted => "interrupted",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
            Self::Archived => "archived",
        }
    }

    /// Where calls that stand like this have their file.
    fn place(self) -> Place {
        match self {
            Self::Running | Self::Interrupted => Place::Journal,
            Self::Waiting | Self::Failed => Place::Waiting,
            Self::Archived => Place::Archived,
        }
    }
}

/// What only the journal of a call without a record tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Live {
    /// What was said so far.
    pub items: Vec<ConversationItem>,
    /// The turns that were answered so far.
    pub turns: Vec<TurnRecord>,
    /// The leads so far.
    pub lead_ids: Vec<LeadId>,
    /// When the last of it was written.
    pub last_written: Option<DateTime<Utc>>,
}

/// A call and its file.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundCall {
    /// Where it stands.
    pub standing: Standing,
    /// The file, under the data folder.
    pub file: String,
    /// The record; of a call without one, what its journal would make.
    pub record: CallRecord,
    /// Set while there is a journal only.
    pub live: Option<Live>,
}

/// A file that should tell of a call and does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The file, under the data folder.
    pub file: String,
    /// What is wrong with it, as a sentence that names it.
    pub problem: String,
}

impl FoundCall {
    /// Reads a call's file, wherever it has gone since it was listed. `None`: there is no such call
    /// any more.
    pub(super) fn open(store: &Store, file: &CallFile) -> Option<Result<Self, Unreadable>> {
        let mut file = file.clone();
        loop {
            let unreadable = |error: StoreError| Unreadable {
                file: file.relative(),
                problem: error.to_string(),
            };
            match Self::read(store, &file).map_err(unreadable) {
                Ok(Some(call)) => return Some(Ok(call)),
                Ok(None) => file = store.follow(&file)?,
                Err(unreadable) => return Some(Err(unreadable)),
            }
        }
    }

    /// Reads a call's file where it was. `None`: it is not there any more.
    #[cfg(feature = "mongodb")]
    pub(super) fn open_here(store: &Store, file: &CallFile) -> Result<Option<Self>, Unreadable> {
        Self::read(store, file).map_err(|error| Unreadable {
            file: file.relative(),
            problem: error.to_string(),
        })
    }

    fn read(store: &Store, file: &CallFile) -> Result<Option<Self>, StoreError> {
        let Some(id) = file.session_id() else {
            return Ok(None);
        };
        if file.place == Place::Journal {
            return Self::of_journal(store, file, &id);
        }
        let Some(bytes) = store.read_call_file(file)? else {
            return Ok(None);
        };
        Self::of_record(store, file, &id, &bytes).map(Some)
    }

    fn of_journal(
        store: &Store,
        file: &CallFile,
        id: &SessionId,
    ) -> Result<Option<Self>, StoreError> {
        // A process may die between writing the record and removing the journal: the record counts.
        if store.record_exists(id) {
            return Ok(None);
        }
        let Some(journal) = store.open_journal(id)? else {
            return Ok(None);
        };
        let data = journal.data;
        let last_written = journal.last_written;
        let end = last_written.unwrap_or(data.start.call_start);
        let mut record = CallRecord::new(&data, None, String::new(), end, end);
        // These come with the record.
        record.files.conversation = None;
        record.timestamps.metadata_saved = None;
        record.timestamps.call_end = data.outcome.as_ref().and_then(|outcome| outcome.call_end);
        Ok(Some(Self {
            standing: if journal.alive {
                Standing::Running
            } else {
                Standing::Interrupted
            },
            file: file.relative(),
            record,
            live: Some(Live {
                items: data.items,
                turns: data.turns,
                lead_ids: data.lead_ids,
                last_written,
            }),
        }))
    }

    fn of_record(
        store: &Store,
        file: &CallFile,
        id: &SessionId,
        bytes: &[u8],
    ) -> Result<Self, StoreError> {
        let record = CallRecord::from_json(bytes, id).map_err(|problem| StoreError::BadRecord {
            path: store.path(&file.relative()),
            problem,
        })?;
        let standing = match (file.place, record.status) {
            (Place::Archived, _) => Standing::Archived,
            (_, RecordStatus::Failed) => Standing::Failed,
            _ => Standing::Waiting,
        };
        Ok(Self {
            standing,
            file: file.relative(),
            record,
            live: None,
        })
    }

    /// How long the two parties talked or talk, seconds. `None` when nobody knows.
    pub fn duration_s(&self) -> Option<i64> {
        let times = &self.record.timestamps;
        let last_written = || self.live.as_ref().and_then(|live| live.last_written);
        let end = times.call_end.or_else(last_written)?;
        times.call_start?;
        i64::try_from(self.record.talk_seconds(end)).ok()
    }

    /// The other party's number, as far as anything tells it.
    pub fn number(&self) -> Option<&str> {
        let record = &self.record;
        let known = |number: &&str| !number.is_empty();
        let caller = || record.caller_number.as_deref().filter(known);
        record.other_party().or_else(caller)
    }
}

/// A call with the content of its files, from the data folder or from MongoDB.
#[derive(Debug, Clone)]
pub struct WholeCall {
    /// The call and its record.
    pub call: FoundCall,
    /// The conversation file's content.
    pub conversation: Option<Value>,
    /// The leads, with the paths of their files.
    pub leads: Vec<(String, Value)>,
}

impl WholeCall {
    /// A call of the data folder with the files that its record names. `problem` hears of those
    /// that are not there or not readable.
    pub fn read(store: &Store, call: FoundCall, mut problem: impl FnMut(String)) -> Self {
        let mut read = |relative: &str| match store.read_json(relative) {
            Ok(Some(value)) => Some(value),
            Ok(None) => {
                problem(format!("the file {relative} is not there"));
                None
            }
            Err(error) => {
                problem(error.to_string());
                None
            }
        };
        let files = &call.record.files;
        let conversation = files.conversation.as_deref().and_then(&mut read);
        let leads = files
            .leads
            .iter()
            .filter_map(|file| Some((file.clone(), read(file)?)))
            .collect();
        Self {
            call,
            conversation,
            leads,
        }
    }
}

/// Which calls are to be listed. Everything that is not set lets all pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallFilter {
    /// Only those that stand like one of these.
    pub standings: Vec<Standing>,
    /// Only those of which this became.
    pub outcomes: Vec<CallStatus>,
    /// Only those that began then or later.
    pub since: Option<DateTime<Utc>>,
    /// Only those with a number that ends in these digits: theirs or ours.
    pub number: Option<String>,
}

impl CallFilter {
    pub(super) fn place_counts(&self, place: Place) -> bool {
        self.standings.is_empty()
            || self
                .standings
                .iter()
                .any(|standing| standing.place() == place)
    }

    pub(super) fn lets_pass(&self, call: &FoundCall) -> bool {
        let record = &call.record;
        let standing = self.standings.is_empty() || self.standings.contains(&call.standing);
        // A call that runs has no outcome yet, whatever the record's default says.
        let ended = call.live.is_none() || record.timestamps.call_end.is_some();
        let outcome = self.outcomes.is_empty()
            || (ended && self.outcomes.contains(&record.outcome.call_status));
        let since = match (self.since, record.started_at()) {
            (Some(since), Some(began)) => began >= since,
            _ => true,
        };
        let number = self
            .number
            .as_deref()
            .is_none_or(|digits| has_number(record, digits));
        standing && outcome && since && number
    }
}

/// The calls that the filter lets pass, newest first, each read when it is asked for. Files that
/// are not readable come as they are met.
///
/// # Errors
/// When a folder cannot be listed.
pub fn list<'a>(
    store: &'a Store,
    filter: &'a CallFilter,
) -> Result<impl Iterator<Item = Result<FoundCall, Unreadable>> + use<'a>, StoreError> {
    // The list is given back piece by piece: at its end nothing of it is left in memory.
    let mut files = VecDeque::from(store.call_files()?);
    Ok(std::iter::from_fn(move || {
        loop {
            let file = files.pop_front()?;
            if filter
                .since
                .is_some_and(|since| file.began < since - chrono::TimeDelta::minutes(1))
            {
                files.clear();
                return None;
            }
            if !filter.place_counts(file.place) {
                continue;
            }
            // A call that moved on while the folders were listed stands in the list twice.
            let again = |other: &CallFile| other.session_id() == file.session_id();
            if files.front().is_some_and(again) {
                continue;
            }
            match FoundCall::open(store, &file) {
                Some(Ok(call)) if !filter.lets_pass(&call) => continue,
                Some(result) => return Some(result),
                None => continue,
            }
        }
    }))
}

fn digits_of(text: &str) -> String {
    text.chars().filter(char::is_ascii_digit).collect()
}

fn has_number(record: &CallRecord, digits: &str) -> bool {
    [
        &record.dialed_number,
        &record.caller_number,
        &record.trunk_number,
    ]
    .into_iter()
    .flatten()
    .any(|number| digits_of(number).ends_with(digits))
}

/// What somebody calls a call by: the id of its session, call, job, egress or lead, the telephone
/// network's id, the name or id of its room, or a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    text: String,
    digits: Option<String>,
}

impl Query {
    /// A question for `text`.
    pub fn new(text: &str) -> Self {
        let text = text.trim().to_owned();
        let looks_like_number = text
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '+' | ' ' | '-' | '(' | ')' | '.'));
        let digits = Some(digits_of(&text))
            .filter(|digits| looks_like_number && digits.len() >= SHORTEST_NUMBER);
        Self { text, digits }
    }

    /// What was asked for.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The digits, when it may be a number.
    pub fn digits(&self) -> Option<&str> {
        self.digits.as_deref()
    }

    /// An egress's id without the `EG_` that some write and some do not.
    pub fn bare(&self) -> &str {
        self.text.strip_prefix("EG_").unwrap_or(&self.text)
    }

    /// The day in `CALL-YYYYMMDD-…`: such a call is looked for among those of that day.
    pub(super) fn day(&self) -> Option<NaiveDate> {
        let day = self.text.strip_prefix("CALL-")?.get(..8)?;
        NaiveDate::parse_from_str(day, "%Y%m%d").ok()
    }

    /// Whether a file with these bytes may be meant. An id stands in a file as it is; what could be
    /// written in another form is read.
    fn may_be_in(&self, bytes: &[u8]) -> bool {
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '/');
        if self.digits.is_some() || !self.text.chars().all(plain) {
            return true;
        }
        memmem::find(bytes, self.bare().as_bytes()).is_some()
    }

    /// Whether this call is meant.
    pub fn names(&self, call: &FoundCall) -> bool {
        let record = &call.record;
        let ids = [
            Some(record.session_id.as_str()),
            record.call_id.as_deref(),
            record.job_id.as_deref(),
            record.sip_call_id.as_deref(),
            record.room.name.as_deref(),
            record.room.sid.as_deref(),
        ];
        let egress = record
            .egress_id()
            .map(|id| id.strip_prefix("EG_").unwrap_or(id));
        let live = call.live.as_ref();
        !self.text.is_empty()
            && (ids.into_iter().flatten().any(|id| id == self.text)
                || egress == Some(self.bare())
                || live.is_some_and(|live| live.lead_ids.iter().any(|id| id.as_str() == self.text))
                || self
                    .digits()
                    .is_some_and(|digits| has_number(record, digits)))
    }
}

/// How many files were scanned, by folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Scanned {
    /// Journals in `conversations/`.
    pub journals: usize,
    /// Records in `call_metadata/`.
    pub waiting: usize,
    /// Records in `processed_metadata/`.
    pub archived: usize,
    /// Files in `leads/`; they are read when no record has the id.
    pub leads: usize,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct SearchResult {
    /// The calls, newest first.
    pub calls: Vec<FoundCall>,
    /// There are more than are kept here.
    pub more: bool,
    /// Files that could not be read.
    pub unreadable: Vec<Unreadable>,
    /// What was scanned.
    pub scanned: Scanned,
}

/// Finds the calls that `query` names.
///
/// # Errors
/// When a folder cannot be listed.
pub fn find(store: &Store, query: &Query) -> Result<SearchResult, StoreError> {
    let mut result = SearchResult::default();
    if let Ok(id) = query.text.parse::<SessionId>() {
        result.take_session(store, &id);
        if !result.calls.is_empty() || !result.unreadable.is_empty() {
            return Ok(result);
        }
    }
    let day = query.day();
    for file in store.call_files()? {
        if day.is_some_and(|day| !file.may_be_of(day)) {
            continue;
        }
        *match file.place {
            Place::Journal => &mut result.scanned.journals,
            Place::Waiting => &mut result.scanned.waiting,
            Place::Archived => &mut result.scanned.archived,
        } += 1;
        match open_if_named(store, query, &file) {
            Some(Ok(call)) if query.names(&call) => result.take(call),
            Some(Err(problem)) => result.unreadable.push(problem),
            _ => {}
        }
    }
    if result.calls.is_empty() {
        find_by_lead(store, query, &mut result)?;
    }
    Ok(result)
}

/// The call of one session, found by its name alone.
pub fn of_session(store: &Store, id: &SessionId) -> SearchResult {
    let mut result = SearchResult::default();
    result.take_session(store, id);
    result
}

/// The call of a file, unless its bytes show that the query does not mean it.
pub(super) fn open_if_named(
    store: &Store,
    query: &Query,
    file: &CallFile,
) -> Option<Result<FoundCall, Unreadable>> {
    match sniff(store, query, file) {
        Sniffed::Open => FoundCall::open(store, file),
        Sniffed::Broken(problem) => Some(Err(problem)),
        Sniffed::Not => None,
    }
}

/// What a first scan of a file tells.
enum Sniffed {
    Open,
    Not,
    Broken(Unreadable),
}

/// Checks whether the file has the id in it at all: parsing a hundred thousand records takes ten
/// times as long.
fn sniff(store: &Store, query: &Query, file: &CallFile) -> Sniffed {
    if file.place == Place::Journal {
        return Sniffed::Open;
    }
    match store.read_call_file(file) {
        Ok(None) => Sniffed::Open,
        Ok(Some(bytes)) if query.may_be_in(&bytes) => Sniffed::Open,
        Ok(Some(bytes)) => {
            let text = bytes.trim_ascii();
            if text.starts_with(b"{") && text.ends_with(b"}") {
                return Sniffed::Not;
            }
            Sniffed::Broken(Unreadable {
                file: file.relative(),
                problem: format!(
                    "the record {} is not whole JSON",
                    store.path(&file.relative()).display()
                ),
            })
        }
        Err(error) => Sniffed::Broken(Unreadable {
            file: file.relative(),
            problem: error.to_string(),
        }),
    }
}

fn find_by_lead(store: &Store, query: &Query, result: &mut SearchResult) -> Result<(), StoreError> {
    if query.digits.is_some() || query.text.is_empty() {
        return Ok(());
    }
    for path in store.lead_files()? {
        result.scanned.leads += 1;
        let Ok(bytes) = fs::read(&path) else {
            continue;
        };
        if memmem::find(&bytes, query.text.as_bytes()).is_none() {
            continue;
        }
        let Ok(lead) = serde_json::from_slice::<Value>(&bytes) else {
            continue;
        };
        if lead["lead_id"].as_str() != Some(&query.text) {
            continue;
        }
        if let Some(session) = lead["session_id"].as_str()
            && let Ok(id) = sanitise(session).parse()
        {
            result.take_session(store, &id);
        }
    }
    Ok(())
}

impl SearchResult {
    fn take(&mut self, call: FoundCall) {
        // A call that moved on during the search is met in both folders.
        let again = |known: &FoundCall| known.record.session_id == call.record.session_id;
        if self.calls.iter().any(again) {
            return;
        }
        if self.calls.len() < MOST_FOUND {
            self.calls.push(call);
        } else {
            self.more = true;
        }
    }

    fn take_session(&mut self, store: &Store, id: &SessionId) {
        for file in store.call_files_of(id) {
            match FoundCall::open(store, &file) {
                Some(Ok(call)) => self.take(call),
                Some(Err(problem)) => self.unreadable.push(problem),
                None => {}
            }
        }
    }
}
