//! Calls that have files but no metadata: conversations, leads and recordings that an older program
//! or a lost disk has left are brought together and get a record each, which waits for delivery
//! like any other.
//!
//! [`found`] reads, [`bring_together`] decides (pure; [`recordings`] and [`leads`] say whose each
//! is), and only then something is written. Files are matched by the session they name, else by
//! number and time; what could belong to two calls is not guessed but named. No file is changed or
//! removed.

mod found;
mod leads;
mod recordings;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;

use found::{Conversation, Found};

use crate::session::{CallRecord, CampaignIds, FiledRecord, SessionId, time};

use super::{CALL_METADATA, Store, StoreError, atomic, quarantined_file};

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

impl ScanReport {
    fn unreadable(&mut self, file: String, why: String) {
        self.unreadable.push(ScannedFile { file, why });
    }
}

impl ScannedCall {
    fn has_recording(&self) -> bool {
        self.recording.is_some() || self.egress_id.is_some()
    }
}

/// A call in the making, and all names by which other files may call it.
struct NamedCall {
    call: ScannedCall,
    names: Vec<String>,
}

impl From<&Conversation> for NamedCall {
    fn from(conversation: &Conversation) -> Self {
        Self {
            call: ScannedCall {
                session_id: conversation.session.to_string(),
                number: conversation.number.clone(),
                start: Some(conversation.start),
                end: Some(conversation.end),
                conversation: Some(conversation.file.clone()),
                ..ScannedCall::default()
            },
            names: conversation.names.clone(),
        }
    }
}

/// What has been brought together so far.
struct Draft {
    calls: Vec<NamedCall>,
    ambiguous: Vec<ScannedFile>,
}

impl Draft {
    /// Leaves a file alone, for a reason.
    fn leave(&mut self, file: String, why: String) {
        self.ambiguous.push(ScannedFile { file, why });
    }
}

/// Brings together what belongs together. What fits to several calls comes back with a sentence.
fn bring_together(found: &Found<'_>) -> (Vec<ScannedCall>, Vec<ScannedFile>) {
    let mut draft = Draft {
        calls: found.conversations.iter().map(NamedCall::from).collect(),
        ambiguous: Vec::new(),
    };
    recordings::bring_to_calls(found, &mut draft);
    leads::bring_to_calls(found, &mut draft);
    let calls = draft.calls.into_iter().map(|NamedCall { mut call, .. }| {
        call.matched_by.sort_unstable();
        call.matched_by.dedup();
        call
    });
    (calls.collect(), draft.ambiguous)
}

fn may_be_same(one: &Option<String>, other: &Option<String>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    }
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
        let (calls, ambiguous) = bring_together(&found);
        report.ambiguous = ambiguous;
        for mut call in calls {
            let why = if known.sessions.contains(&call.session_id) {
                Some("whose record does not name it")
            } else if found.held.contains(&call.session_id) {
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

/// The record of a scanned call, read from the original's metadata, which knows no more than this
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
    let metadata = campaign.map(CampaignIds::fields).unwrap_or_default();
    let value = json!({
        "session_id": id,
        "dialed_number": call.number,
        "caller_number": call.number,
        "campaign_metadata": metadata,
        "files": {
            "recording": call.recording,
            "conversation": call.conversation,
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
    let mut record = CallRecord::from_json(value.to_string().as_bytes(), &id).map_err(bad)?;
    record.campaign_egress_id = call.egress_id.clone();
    Ok(record)
}
