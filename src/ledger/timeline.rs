//! What happened to a call, in the order in which it happened. Pure: everything comes from the
//! call's record, its conversation and its leads.

use chrono::{DateTime, Utc};
use serde::{Deserialize as _, Serialize};
use serde_json::Value;

use super::search::{FoundCall, Standing, WholeCall};
use crate::session::{
    Attempt, AttemptOutcome, CallDataDelivery, CallRecord, CallStatus, CloseReason, DeliveryPart,
    Direction, PartState, RecordStatus, RecordUploads, RecordingEvidence, RecordingSource,
    RecordingState, Role, TurnRecord, said_in, time,
};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TimelineEntry {
    /// When, if anything tells it.
    #[serde(with = "time::option")]
    pub at: Option<DateTime<Utc>>,
    /// What.
    #[serde(flatten)]
    pub event: TimelineEvent,
}

/// What can happen to a call.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TimelineEvent {
    /// LiveKit assigned the job.
    Dispatched {
        /// LiveKit's id of it.
        job_id: Option<String>,
        /// Name of the room.
        room: Option<String>,
    },
    /// The agent was in the room, its track published.
    Joined {
        /// Server id of the room.
        room_sid: Option<String>,
    },
    /// The other party was there to talk to.
    Answered {
        /// Who called whom, where something tells.
        direction: Option<Direction>,
        /// The other party.
        number: Option<String>,
        /// Our own number.
        trunk_number: Option<String>,
        /// Who the agent was.
        persona: Option<String>,
    },
    /// The recording was started.
    RecordingStarted {
        /// By whom.
        source: RecordingSource,
        /// The egress.
        egress_id: Option<String>,
        /// Where to.
        file: Option<String>,
    },
    /// Something was said.
    Said {
        /// By whom.
        role: Role,
        /// The words; for the agent, those that were heard.
        content: String,
        /// The recogniser's own estimate, 0 to 1.
        #[serde(skip_serializing_if = "Option::is_none")]
        confidence: Option<f64>,
        /// The agent was cut off.
        interrupted: bool,
        /// From the end of the caller's words to the first sound of this answer, ms.
        #[serde(skip_serializing_if = "Option::is_none")]
        answered_after_ms: Option<u64>,
    },
    /// A turn of the caller had its answer: what that took and has cost.
    TurnAnswered {
        /// The turn.
        #[serde(flatten)]
        turn: Box<TurnRecord>,
    },
    /// The caller was understood to want something.
    Intent {
        /// What.
        intent: String,
        /// How certain, 0 to 1.
        confidence: Option<f64>,
        /// What it is about.
        entities: Value,
    },
    /// The model used a tool.
    ToolUsed {
        /// Which.
        name: String,
        /// What the model was told.
        result: String,
        /// Whether it was not done.
        is_error: bool,
        /// How long it took, ms.
        duration_ms: u64,
    },
    /// A lead was taken.
    Lead {
        /// Its file.
        file: Option<String>,
        /// What is in it.
        lead: Value,
    },
    /// The call was over.
    HungUp {
        /// Why.
        close_reason: Option<CloseReason>,
        /// LiveKit's word for it.
        disconnect_reason: Option<String>,
        /// What became of the call.
        call_status: CallStatus,
        /// What broke.
        error: Option<String>,
    },
    /// The recording came to this.
    Recording {
        /// How far.
        state: RecordingState,
        /// What it was learnt from; records of earlier versions do not tell.
        #[serde(skip_serializing_if = "Option::is_none")]
        evidence: Option<RecordingEvidence>,
        /// What is wrong with it.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// The record was written: from here on the call is being delivered to the CRM.
    RecordWritten {
        /// The file.
        file: String,
    },
    /// A request to the CRM ended.
    Request {
        /// What it was about.
        part: DeliveryPart,
        /// What came of it.
        outcome: AttemptOutcome,
        /// How long it took, ms.
        took_ms: u64,
        /// Why it was not taken.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A part was tried as often as this, and more is not known: an older version wrote it, or the
    /// worker died during the request.
    Tried {
        /// Which part.
        part: DeliveryPart,
        /// How often.
        attempts: u32,
        /// Why it was not taken.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A part is not tried before this.
    NextAttempt {
        /// Which part.
        part: DeliveryPart,
        /// Why it is not there yet.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// There is no recording to deliver.
    WithoutRecording {
        /// Why.
        error: Option<String>,
    },
    /// The CRM has the recording.
    RecordingDelivered {
        /// Where it put it.
        url: Option<String>,
        /// Bytes.
        size: Option<u64>,
        /// Seconds.
        duration: Option<u64>,
    },
    /// The CRM's last word on the call data.
    CrmAnswer {
        /// As it came, shortened.
        response: Value,
    },
    /// The CRM has refused the call; an operator has to decide.
    Refused {
        /// What was refused, and why.
        error: Option<String>,
    },
    /// Everything was confirmed.
    Delivered,
    /// The record went to the archive.
    Archived {
        /// The file.
        file: String,
    },
}

/// The timeline of a call.
pub fn timeline(whole: &WholeCall) -> Vec<TimelineEntry> {
    let WholeCall {
        call,
        conversation,
        leads,
    } = whole;
    let mut timeline = Timeline::default();
    timeline.beginning(call);
    timeline.conversation(call, conversation.as_ref());
    for intent in &call.record.intents {
        let event = TimelineEvent::Intent {
            intent: intent.intent.clone(),
            confidence: intent.confidence,
            entities: intent.entities.clone().into(),
        };
        timeline.at(Some(intent.timestamp), event);
    }
    for used in &call.record.tool_uses {
        let event = TimelineEvent::ToolUsed {
            name: used.name.clone(),
            result: used.result.clone(),
            is_error: used.is_error,
            duration_ms: used.duration_ms,
        };
        timeline.at(Some(used.called_at), event);
    }
    for (file, lead) in leads {
        let event = TimelineEvent::Lead {
            file: Some(file.clone()),
            lead: lead.clone(),
        };
        timeline.at(time_of(lead, "created_at"), event);
    }
    timeline.end(call);
    timeline.delivery(call);
    timeline.in_order()
}

fn time_of(value: &Value, field: &str) -> Option<DateTime<Utc>> {
    value[field].as_str().and_then(time::parse)
}

/// A clock that was set back must not put the end before the beginning: times order only what
/// belongs to one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Call,
    Record,
    Delivery,
    Archive,
}

#[derive(Default)]
struct Timeline(Vec<(Phase, TimelineEntry)>);

impl Timeline {
    fn at(&mut self, at: Option<DateTime<Utc>>, event: TimelineEvent) {
        let phase = match &event {
            TimelineEvent::RecordWritten { .. } => Phase::Record,
            TimelineEvent::Recording {
                evidence: Some(evidence),
                ..
            } if *evidence != RecordingEvidence::Call => Phase::Delivery,
            TimelineEvent::Request { .. }
            | TimelineEvent::Tried { .. }
            | TimelineEvent::NextAttempt { .. }
            | TimelineEvent::WithoutRecording { .. }
            | TimelineEvent::RecordingDelivered { .. }
            | TimelineEvent::CrmAnswer { .. } => Phase::Delivery,
            TimelineEvent::Refused { .. }
            | TimelineEvent::Delivered
            | TimelineEvent::Archived { .. } => Phase::Archive,
            _ => Phase::Call,
        };
        self.0.push((phase, TimelineEntry { at, event }));
    }

    fn beginning(&mut self, call: &FoundCall) {
        let record = &call.record;
        let times = &record.timestamps;
        self.at(
            times.call_start,
            TimelineEvent::Dispatched {
                job_id: record.job_id.clone(),
                room: record.room.name.clone(),
            },
        );
        if times.joined.is_some() {
            let room_sid = record.room.sid.clone();
            self.at(times.joined, TimelineEvent::Joined { room_sid });
        }
        if times.answered.is_some() {
            self.at(
                times.answered,
                TimelineEvent::Answered {
                    direction: record.direction,
                    number: call.number().map(str::to_owned),
                    trunk_number: record.trunk_number.clone(),
                    persona: record.persona.clone(),
                },
            );
        }
        if let Some(recording) = &record.recording
            && recording.recording_start_time.is_some()
        {
            self.at(
                recording.recording_start_time,
                TimelineEvent::RecordingStarted {
                    source: recording.source,
                    egress_id: recording.egress_id.clone(),
                    file: recording.recording_filename.clone(),
                },
            );
        }
    }

    fn conversation(&mut self, call: &FoundCall, conversation: Option<&Value>) {
        if let Some(live) = &call.live {
            for item in &live.items {
                let said = TimelineEvent::Said {
                    role: item.role,
                    content: item.content.clone(),
                    confidence: item.transcript_confidence.map(f64::from),
                    interrupted: item.interrupted,
                    answered_after_ms: item.metrics.as_ref().and_then(|m| m.e2e_latency_ms),
                };
                self.at(Some(item.timestamp), said);
            }
            self.turns(live.turns.iter().cloned());
        }
        let Some(conversation) = conversation else {
            return;
        };
        for item in said_in(conversation) {
            let content = match &item["content"] {
                Value::String(text) => text.clone(),
                Value::Array(parts) => parts
                    .iter()
                    .filter_map(Value::as_str)
                    .collect::<Vec<_>>()
                    .join("\n"),
                _ => continue,
            };
            let role = match item["role"].as_str() {
                Some("assistant" | "agent") => Role::Assistant,
                _ => Role::User,
            };
            let said = TimelineEvent::Said {
                role,
                content,
                confidence: item["transcript_confidence"].as_f64(),
                interrupted: item["interrupted"] == true,
                answered_after_ms: item["metrics"]["e2e_latency_ms"].as_u64(),
            };
            self.at(time_of(item, "timestamp"), said);
        }
        // A turn that is no turn, of a later version perhaps, costs no other.
        let turns = conversation["turns"].as_array().into_iter().flatten();
        self.turns(turns.filter_map(|turn| TurnRecord::deserialize(turn).ok()));
    }

    fn turns(&mut self, turns: impl Iterator<Item = TurnRecord>) {
        for turn in turns {
            let (at, turn) = (turn.answered_at, Box::new(turn));
            self.at(Some(at), TimelineEvent::TurnAnswered { turn });
        }
    }

    fn end(&mut self, call: &FoundCall) {
        let record = &call.record;
        let times = &record.timestamps;
        if call.live.is_none() || times.call_end.is_some() {
            self.at(
                times.call_end,
                TimelineEvent::HungUp {
                    close_reason: record.outcome.close_reason,
                    disconnect_reason: record.outcome.disconnect_reason.clone(),
                    call_status: record.outcome.call_status,
                    error: record.outcome.error.clone(),
                },
            );
        }
        self.recording(call);
        if call.live.is_none() {
            let file = format!("call_metadata/metadata_{}.json", record.session_id);
            self.at(times.metadata_saved, TimelineEvent::RecordWritten { file });
        }
    }

    fn recording(&mut self, call: &FoundCall) {
        let Some(recording) = &call.record.recording else {
            return;
        };
        if recording.history.is_empty() {
            let state = recording.state;
            let error = recording.error.clone();
            let evidence = None;
            self.at(
                None,
                TimelineEvent::Recording {
                    state,
                    evidence,
                    error,
                },
            );
        }
        // That it was asked for is told as its start.
        let changes = recording
            .history
            .iter()
            .filter(|change| change.state != RecordingState::Requested);
        for change in changes {
            let last = change.state == recording.state;
            self.at(
                Some(change.at),
                TimelineEvent::Recording {
                    state: change.state,
                    evidence: Some(change.source),
                    error: recording.error.clone().filter(|_| last),
                },
            );
        }
    }

    fn delivery(&mut self, call: &FoundCall) {
        let record = &call.record;
        let uploads = &record.uploads;
        let (recording, call_data) = (&uploads.recording, &uploads.call_data);
        let update = uploads.call_data_update.as_ref();
        let tried_at = record.last_upload_attempt;
        self.attempts(
            DeliveryPart::Recording,
            &recording.history,
            recording.attempts,
            &recording.last_error,
            tried_at,
        );
        let sent = [
            (DeliveryPart::CallData, Some(call_data)),
            (DeliveryPart::CallDataUpdate, update),
        ];
        let sent = || {
            sent.into_iter()
                .filter_map(|(part, sent)| Some((part, sent?)))
        };
        for (part, sent) in sent() {
            self.attempts(
                part,
                &sent.history,
                sent.attempts,
                &sent.last_error,
                tried_at,
            );
        }
        self.recording_delivery(record);
        for (part, sent) in sent() {
            self.call_data_delivery(part, sent);
        }
        self.end_of_delivery(call);
    }

    /// The requests of one part, or their number where no more is known.
    fn attempts(
        &mut self,
        part: DeliveryPart,
        history: &[Attempt],
        attempts: u32,
        error: &Option<String>,
        tried_at: Option<DateTime<Utc>>,
    ) {
        for attempt in history {
            let request = TimelineEvent::Request {
                part,
                outcome: attempt.outcome,
                took_ms: attempt.took_ms,
                error: attempt.error.clone(),
            };
            self.at(Some(attempt.at), request);
        }
        if attempts > 0 && history.is_empty() {
            let error = error.clone();
            let tried = TimelineEvent::Tried {
                part,
                attempts,
                error,
            };
            self.at(tried_at, tried);
        }
    }

    fn recording_delivery(&mut self, record: &CallRecord) {
        let recording = &record.uploads.recording;
        let next = |error| TimelineEvent::NextAttempt {
            part: DeliveryPart::Recording,
            error,
        };
        match recording.state {
            PartState::Sent => {
                let done = recording.history.last().map(|attempt| attempt.at);
                let delivered = TimelineEvent::RecordingDelivered {
                    url: recording.url.clone(),
                    size: recording.size,
                    duration: recording.duration,
                };
                self.at(done, delivered);
            }
            PartState::Missing if record.has_a_call() => {
                let error = recording.last_error.clone();
                self.at(None, TimelineEvent::WithoutRecording { error });
                if recording.next_attempt.is_some() && record.status != RecordStatus::Failed {
                    self.at(recording.next_attempt, next(None));
                }
            }
            PartState::Pending | PartState::Waiting if recording.next_attempt.is_some() => {
                self.at(recording.next_attempt, next(recording.last_error.clone()));
            }
            PartState::Pending | PartState::Waiting | PartState::Missing | PartState::Failed => {}
        }
    }

    fn call_data_delivery(&mut self, part: DeliveryPart, sent: &CallDataDelivery) {
        if let Some(response) = &sent.response {
            let done = sent.history.last().map(|attempt| attempt.at);
            let response = response.clone();
            self.at(done, TimelineEvent::CrmAnswer { response });
        }
        if sent.next_attempt.is_some() && !sent.state.is_settled() {
            let error = sent.last_error.clone();
            let next = TimelineEvent::NextAttempt { part, error };
            self.at(sent.next_attempt, next);
        }
    }

    fn end_of_delivery(&mut self, call: &FoundCall) {
        let record = &call.record;
        if record.status == RecordStatus::Failed {
            let error = refusal(&record.uploads);
            self.at(None, TimelineEvent::Refused { error });
        }
        let delivered = record.timestamps.delivered;
        if delivered.is_some() {
            self.at(delivered, TimelineEvent::Delivered);
        }
        if call.standing == Standing::Archived {
            let file = call.file.clone();
            self.at(delivered, TimelineEvent::Archived { file });
        }
    }

    /// What has no time stays behind what it was put behind.
    fn in_order(self) -> Vec<TimelineEntry> {
        let mut last = DateTime::<Utc>::MIN_UTC;
        let mut keyed: Vec<(Phase, DateTime<Utc>, TimelineEntry)> = self
            .0
            .into_iter()
            .map(|(phase, entry)| {
                last = entry.at.unwrap_or(last);
                (phase, last, entry)
            })
            .collect();
        keyed.sort_by_key(|(phase, at, _)| (*phase, *at));
        keyed.into_iter().map(|(_, _, entry)| entry).collect()
    }
}

/// Why the CRM has refused the call: the error of the first part that it refused.
fn refusal(uploads: &RecordUploads) -> Option<String> {
    let (recording, call_data) = (&uploads.recording, &uploads.call_data);
    let update = uploads.call_data_update.as_ref();
    [
        Some((recording.state, &recording.last_error)),
        Some((call_data.state, &call_data.last_error)),
        update.map(|update| (update.state, &update.last_error)),
    ]
    .into_iter()
    .flatten()
    .find(|(state, _)| *state == PartState::Failed)
    .and_then(|(_, error)| error.clone())
}
