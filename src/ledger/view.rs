//! Calls as they are shown, typed, for whoever renders them: as text, as JSON.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;

use super::mask::{masked, masked_call};
use super::search::{FoundCall, Standing, WholeCall};
use super::timeline::{TimelineEntry, timeline};
use crate::session::{
    CallRecord, CallStatus, Direction, PartState, RecordUploads, SessionId, mask, mask_numbers,
    time,
};

/// One call of a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CallSummary {
    /// The session.
    pub session_id: SessionId,
    /// The CRM's id of the call.
    pub call_id: Option<String>,
    /// LiveKit's id of the job.
    pub job_id: Option<String>,
    /// Where the call stands.
    #[serde(rename = "status")]
    pub standing: Standing,
    /// What became of it; `None` while it runs.
    pub outcome: Option<CallStatus>,
    /// Who called whom, where something tells.
    pub direction: Option<Direction>,
    /// The other party's number.
    pub number: Option<String>,
    /// Name of the persona that talked.
    pub persona: Option<String>,
    /// Name of the room.
    pub room: Option<String>,
    /// The dispatch, or the best that the record has for it.
    #[serde(skip)]
    pub began: Option<DateTime<Utc>>,
    /// The dispatch.
    #[serde(with = "time::option")]
    pub call_start: Option<DateTime<Utc>>,
    /// When the other party was first there.
    #[serde(with = "time::option")]
    pub answered: Option<DateTime<Utc>>,
    /// The hangup.
    #[serde(with = "time::option")]
    pub call_end: Option<DateTime<Utc>>,
    /// How long the two parties talked or talk, s.
    pub duration_s: Option<i64>,
    /// How many leads were taken.
    pub leads: usize,
    /// Where the delivery of the recording stands.
    pub recording: PartState,
    /// Where the delivery of the call data stands.
    pub call_data: PartState,
    /// Passes that tried to deliver something.
    pub upload_attempts: u32,
    /// What went wrong last in the delivery.
    pub last_error: Option<String>,
    /// When the CRM had confirmed everything.
    #[serde(with = "time::option")]
    pub delivered: Option<DateTime<Utc>>,
    /// The call's file, under the data folder.
    pub file: String,
}

impl CallSummary {
    /// What a list has of a call.
    pub fn of(call: &FoundCall) -> Self {
        let FoundCall {
            standing,
            file,
            record,
            ..
        } = call;
        let over = call.live.is_none() || record.timestamps.call_end.is_some();
        Self {
            session_id: record.session_id.clone(),
            call_id: record.call_id.clone(),
            job_id: record.job_id.clone(),
            standing: *standing,
            outcome: over.then_some(record.outcome.call_status),
            direction: record.direction,
            number: call.number().map(str::to_owned),
            persona: record.persona.clone(),
            room: record.room.name.clone(),
            began: record.started_at(),
            call_start: record.timestamps.call_start,
            answered: record.timestamps.answered,
            call_end: record.timestamps.call_end,
            duration_s: call.duration_s(),
            leads: record.files.leads.len(),
            recording: record.uploads.recording.state,
            call_data: record.uploads.call_data.state,
            upload_attempts: record.upload_attempts,
            last_error: last_error(&record.uploads),
            delivered: record.timestamps.delivered,
            file: file.clone(),
        }
    }

    /// The same with its numbers hidden.
    #[must_use]
    pub fn masked(self) -> Self {
        Self {
            number: self.number.as_deref().map(mask),
            room: self.room.as_deref().map(mask_numbers),
            file: mask_numbers(&self.file),
            ..self
        }
    }
}

fn last_error(uploads: &RecordUploads) -> Option<String> {
    let update = uploads.call_data_update.as_ref();
    update
        .and_then(|update| update.last_error.clone())
        .or_else(|| uploads.call_data.last_error.clone())
        .or_else(|| uploads.recording.last_error.clone())
}

/// A lead of a call.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeadView {
    /// Its file, under the data folder.
    pub file: String,
    /// The file's content, of any version.
    pub lead: Value,
}

/// Everything that there is of one call.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CallDetails {
    /// What a list has of it.
    #[serde(flatten)]
    pub summary: CallSummary,
    /// What happened to it, in order.
    pub timeline: Vec<TimelineEntry>,
    /// Its record; of a call without one, what its journal would make.
    pub record: CallRecord,
    /// The conversation file's content.
    pub conversation: Option<Value>,
    /// Its leads, oldest first.
    pub leads: Vec<LeadView>,
    /// What is wrong with its files, a sentence each.
    pub problems: Vec<String>,
}

impl CallDetails {
    /// Everything there is of a call. `problems`: what was wrong with its files when they were
    /// read.
    pub fn of(whole: WholeCall, problems: Vec<String>) -> Self {
        Self {
            summary: CallSummary::of(&whole.call),
            timeline: timeline(&whole),
            record: whole.call.record,
            conversation: whole.conversation,
            leads: whole
                .leads
                .into_iter()
                .map(|(file, lead)| LeadView { file, lead })
                .collect(),
            problems,
        }
    }

    /// The same with all telephone numbers hidden.
    pub fn masked(whole: WholeCall, problems: &[String]) -> Self {
        let whole = WholeCall {
            call: masked_call(whole.call),
            conversation: whole.conversation.map(masked),
            leads: whole
                .leads
                .into_iter()
                .map(|(file, lead)| (file, masked(lead)))
                .collect(),
        };
        let problems = problems.iter().map(|problem| mask_numbers(problem));
        Self::of(whole, problems.collect())
    }
}
