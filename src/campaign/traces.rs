//! What the data folder tells of attempts: calls that run, and records of those that have ended.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::event::{AttemptOutcome, AttemptResult};
use crate::session::{DialOutcome, time};
use crate::store::{CallFile, Place, Store, StoreError};

/// What there is of the call in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trace {
    /// A worker has it, and it has no record yet.
    Running,
    /// It has ended.
    Ended(Box<AttemptResult>, Option<String>),
}

/// Finds traces, reading each record once.
#[derive(Debug)]
pub(super) struct Traces {
    store: Store,
    /// Sessions whose records were read.
    read: HashSet<String>,
    /// Rooms of the journals that are there.
    journals: HashMap<String, String>,
    /// By room.
    found: HashMap<String, (DateTime<Utc>, Trace)>,
}

/// What attempts' rooms begin with.
const ROOMS: &str = "campaign-";

impl Traces {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            read: HashSet::new(),
            journals: HashMap::new(),
            found: HashMap::new(),
        }
    }

    /// Of the call in this room.
    pub(super) fn of(&self, room: &str) -> Option<&Trace> {
        self.found.get(room).map(|(_, trace)| trace)
    }

    /// Calls that run and belong to no campaign.
    pub(super) fn other_calls(&self) -> u32 {
        let others = self
            .journals
            .values()
            .filter(|room| !room.starts_with(ROOMS));
        u32::try_from(others.count()).unwrap_or(u32::MAX)
    }

    /// Reads what is new of calls that began at `since` or later.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub(super) fn refresh(&mut self, since: DateTime<Utc>) -> Result<(), StoreError> {
        let mut files: Vec<CallFile> = Vec::new();
        self.store
            .visit_call_files(Place::Journal, |file| files.push(file))?;
        let sessions: HashSet<&str> = files.iter().filter_map(CallFile::session).collect();
        self.journals
            .retain(|session, _| sessions.contains(session.as_str()));
        for file in &files {
            let Some(session) = file.session() else {
                continue;
            };
            if !self.journals.contains_key(session)
                && let Some(room) = self.store.room_of_journal(file)
            {
                if room.starts_with(ROOMS) {
                    let running = || (file.began, Trace::Running);
                    self.found.entry(room.clone()).or_insert_with(running);
                }
                self.journals.insert(session.to_owned(), room);
            }
        }
        files.clear();
        for place in [Place::Waiting, Place::Archived] {
            self.store.visit_call_files(place, |file| {
                let is_new = file.session().is_some_and(|s| !self.read.contains(s));
                if file.began >= since && is_new {
                    files.push(file);
                }
            })?;
        }
        for file in files {
            let Ok(Some(bytes)) = self.store.read_call_file(&file) else {
                // It has moved, and is found there the next time.
                continue;
            };
            if let Some(session) = file.session() {
                self.read.insert(session.to_owned());
            }
            let record: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let room = record["room"]["name"].as_str().unwrap_or_default();
            if room.starts_with(ROOMS) {
                let number = record["dialed_number"].as_str().map(str::to_owned);
                let ended = Trace::Ended(Box::new(result_of(&record)), number);
                self.found.insert(room.to_owned(), (file.began, ended));
            }
        }
        self.found
            .retain(|_, (began, trace)| *began >= since || (*trace == Trace::Running));
        let began = |session: &str| CallFile::time_of(session);
        self.read
            .retain(|session| began(session).is_none_or(|began| began >= since));
        Ok(())
    }
}

/// What a call's record says of its attempt. Fields of later versions are read if they are there.
fn result_of(record: &Value) -> AttemptResult {
    let dial = &record["dial"];
    let outcome = serde_json::from_value::<DialOutcome>(dial["outcome"].clone())
        .map_or(AttemptOutcome::Failed, AttemptOutcome::from);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let sip_status = dial["sip_status"]
        .as_u64()
        .and_then(|code| u16::try_from(code).ok());
    let has_failed = record["outcome"]["call_status"] == "failed";
    let sick = match outcome {
        AttemptOutcome::TrunkFailed => true,
        AttemptOutcome::Failed => sip_status.is_none(),
        AttemptOutcome::Answered => has_failed,
        _ => false,
    };
    AttemptResult {
        outcome,
        sip_status,
        session_id: text(&record["session_id"]),
        agent_outcome: text(&record["agent_outcome"]),
        callback: record["callback"]["at"].as_str().and_then(time::parse),
        do_not_call: record["do_not_call"].is_object(),
        sick,
        error: text(&record["outcome"]["error"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_tells_what_came_of_its_attempt() {
        for (record, outcome, sick) in [
            (json!({}), AttemptOutcome::Failed, true),
            (
                json!({ "dial": { "outcome": "answered" }, "outcome": { "call_status": "completed" } }),
                AttemptOutcome::Answered,
                false,
            ),
            (
                json!({ "dial": { "outcome": "answered" }, "outcome": { "call_status": "failed" } }),
                AttemptOutcome::Answered,
                true,
            ),
            (
                json!({ "dial": { "outcome": "busy", "sip_status": 486 } }),
                AttemptOutcome::Busy,
                false,
            ),
            (
                json!({ "dial": { "outcome": "trunk_failed", "sip_status": 503 } }),
                AttemptOutcome::TrunkFailed,
                true,
            ),
            (
                json!({ "dial": { "outcome": "failed", "sip_status": 488 } }),
                AttemptOutcome::Failed,
                false,
            ),
            (
                json!({ "dial": { "outcome": "failed" } }),
                AttemptOutcome::Failed,
                true,
            ),
        ] {
            let result = result_of(&record);
            assert_eq!((result.outcome, result.sick), (outcome, sick), "{record}");
        }
        let told = result_of(&json!({
            "session_id": "s", "dial": { "outcome": "answered" }, "agent_outcome": "sold",
            "callback": { "at": "2026-12-01T17:00:00+05:30", "reason": "busy" }, "do_not_call": {},
        }));
        assert_eq!(told.agent_outcome.as_deref(), Some("sold"));
        assert_eq!(told.callback, "2026-12-01T11:30:00Z".parse().ok());
        assert!(told.do_not_call);
        for odd in [
            json!({ "callback": 5, "do_not_call": null }),
            json!({ "callback": { "at": "soon" } }),
            json!([]),
        ] {
            let told = result_of(&odd);
            assert!(told.callback.is_none() && !told.do_not_call, "{odd}");
        }
    }
}
