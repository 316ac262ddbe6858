//! The record of a finished call: the metadata file that is also the delivery queue, and what the
//! CRM gets. All of it is pure.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::campaign::{self, CampaignIds};
use super::time;
use super::{
    AnswerDetection, AnsweredBy, CallContext, CallStatus, Callback, CloseReason,
    CompleteSessionData, Dial, Direction, DoNotCall, FiledRecord, ITEM_SOURCE, Intent, KeypadInput,
    RecordingMetadata, SessionId, ToolUse, Usage, Watch, said_in, sanitise,
};

/// Version of the metadata file that is written. Files without one are the original's.
pub const SCHEMA_VERSION: u32 = 2;

/// Digits of the number that go into a call id.
const CALL_ID_DIGITS: usize = 8;

/// Where the record stands. It moves forward only; an operator's retry is the one way back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordStatus {
    /// Written at the end of the call; nothing sent.
    #[default]
    ReadyForUpload,
    /// Some delivery has been tried.
    Uploading,
    /// The CRM has confirmed everything that there was to send.
    Uploaded,
    /// The CRM has refused; an operator has to decide.
    Failed,
}

impl RecordStatus {
    /// Whether a record in this state may be put into `next`.
    pub fn can_become(self, next: Self) -> bool {
        use RecordStatus::{Failed, ReadyForUpload, Uploaded, Uploading};
        match (self, next) {
            (ReadyForUpload, _) | (Uploading, Uploading | Uploaded | Failed) => true,
            // A later recording or an operator's retry may still complete a failed record.
            (Failed, Failed | Uploaded) => true,
            (Uploaded, Uploaded) => true,
            (Uploading | Failed | Uploaded, _) => false,
        }
    }
}

/// Where one part of the delivery stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartState {
    /// To be sent.
    #[default]
    Pending,
    /// The recording is not there yet.
    Waiting,
    /// Confirmed by the CRM.
    Sent,
    /// There is no recording, or none turned up in time.
    Missing,
    /// Refused for good.
    Failed,
}

impl PartState {
    /// Whether nothing more is going to happen to this part by itself.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Sent | Self::Missing | Self::Failed)
    }

    /// Whether a part in this state may be put into `next`. What is sent stays sent; a missing
    /// recording may still turn up.
    pub fn can_become(self, next: Self) -> bool {
        match self {
            Self::Pending => true,
            Self::Waiting => next != Self::Pending,
            Self::Missing => matches!(next, Self::Missing | Self::Sent | Self::Failed),
            Self::Failed => next == Self::Failed,
            Self::Sent => next == Self::Sent,
        }
    }
}

/// Answered requests that a record keeps of each part: the first and the newest.
const KEPT_ATTEMPTS: usize = 20;

/// What came of a request to the CRM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// Taken.
    Accepted,
    /// The CRM had it already.
    Duplicate,
    /// No answer, or one that says "later".
    TryAgain,
    /// Refused for good.
    Refused,
}

/// One request to the CRM of which the end is known. A process that is killed in the middle of one
/// leaves none, only a higher count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it ended.
    #[serde(with = "time")]
    pub at: DateTime<Utc>,
    /// How long it took, ms.
    pub took_ms: u64,
    /// What came of it.
    pub outcome: AttemptOutcome,
    /// Why it was not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One kind of request to the CRM, with attempts of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryPart {
    /// `POST /upload`.
    Recording,
    /// `POST /call-data`.
    CallData,
    /// The same once more, with the URL of a recording that turned up after the call data had gone
    /// without it.
    CallDataUpdate,
}

/// What is kept about each part alike.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Where it stands.
    pub state: &'a mut PartState,
    /// Requests made so far.
    pub attempts: &'a mut u32,
    /// Not before this time.
    pub next_attempt: &'a mut Option<DateTime<Utc>>,
    /// What went wrong last.
    pub last_error: &'a mut Option<String>,
    /// What the CRM answered last, shortened.
    pub response: &'a mut Option<Value>,
    /// How long the CRM has admitted no request of this part, see
    /// [`RecordingDelivery::not_admitted`].
    pub not_admitted: &'a mut Option<Watch>,
    history: &'a mut Vec<Attempt>,
}

impl Progress<'_> {
    /// Adds to the part's history, which does not grow without end.
    pub fn note(&mut self, attempt: Attempt) {
        self.history.push(attempt);
        if self.history.len() > KEPT_ATTEMPTS {
            self.history.remove(1);
        }
    }
}

/// Delivery of the recording file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordingDelivery {
    /// Where it stands.
    pub state: PartState,
    /// The CRM's URL of it, once sent.
    pub url: Option<String>,
    /// Bytes on disk.
    pub size: Option<u64>,
    /// Seconds.
    pub duration: Option<u64>,
    /// Requests made so far.
    pub attempts: u32,
    /// Not before this time.
    #[serde(with = "time::option")]
    pub next_attempt: Option<DateTime<Utc>>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// What the CRM answered last, shortened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Value>,
    /// The first request and the newest ones, in order.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub history: Vec<Attempt>,
    /// The looks for its file and the tries to send it: how long it has been waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<Watch>,
    /// The recording is here, but was not taken: when the call data goes without it if that is so
    /// still.
    #[serde(with = "time::option", skip_serializing_if = "Option::is_none")]
    pub release_at: Option<DateTime<Utc>>,
    /// How long the CRM has turned this record's requests away for reasons that have nothing to do
    /// with the record (a key, an address); what counts is the time in which it took those of
    /// others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_admitted: Option<Watch>,
}

impl RecordingDelivery {
    /// Its watch after a look at `now`, which could see whether it is there or not.
    pub fn looked(&self, now: DateTime<Utc>, could_see: bool) -> Watch {
        let watch = self.watch.unwrap_or_default();
        watch.looked(now, self.next_attempt, could_see)
    }
}

/// Delivery of the call data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallDataDelivery {
    /// Where it stands.
    pub state: PartState,
    /// Requests made so far.
    pub attempts: u32,
    /// Not before this time.
    #[serde(with = "time::option")]
    pub next_attempt: Option<DateTime<Utc>>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// What the CRM answered, shortened.
    pub response: Option<Value>,
    /// The first request and the newest ones, in order.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub history: Vec<Attempt>,
    /// See [`RecordingDelivery::not_admitted`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_admitted: Option<Watch>,
}

impl CallDataDelivery {
    fn progress(&mut self) -> Progress<'_> {
        Progress {
            state: &mut self.state,
            attempts: &mut self.attempts,
            next_attempt: &mut self.next_attempt,
            last_error: &mut self.last_error,
            response: &mut self.response,
            not_admitted: &mut self.not_admitted,
            history: &mut self.history,
        }
    }
}

/// The parts of the delivery.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordUploads {
    /// `POST /upload`.
    pub recording: RecordingDelivery,
    /// `POST /call-data`.
    pub call_data: CallDataDelivery,
    /// `POST /call-data` once more, because the recording came after the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_data_update: Option<CallDataDelivery>,
}

impl RecordUploads {
    /// The part's own figures, for changing them.
    pub fn part(&mut self, part: DeliveryPart) -> Progress<'_> {
        match part {
            DeliveryPart::Recording => {
                let part = &mut self.recording;
                Progress {
                    state: &mut part.state,
                    attempts: &mut part.attempts,
                    next_attempt: &mut part.next_attempt,
                    last_error: &mut part.last_error,
                    response: &mut part.response,
                    not_admitted: &mut part.not_admitted,
                    history: &mut part.history,
                }
            }
            DeliveryPart::CallData => self.call_data.progress(),
            DeliveryPart::CallDataUpdate => {
                self.call_data_update.get_or_insert_default().progress()
            }
        }
    }
}

/// The room of the call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoomRef {
    /// Its name.
    pub name: Option<String>,
    /// Its server id.
    pub sid: Option<String>,
}

/// The files of the call, relative to the data folder, with `/`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WrittenFiles", into = "WrittenFiles")]
pub struct RecordFiles {
    /// `recordings/…`, once it is known.
    pub recording: Option<String>,
    /// `conversations/…`.
    pub conversation: Option<String>,
    /// All leads, oldest first.
    pub leads: Vec<String>,
}

impl RecordFiles {
    /// The latest lead: the one that the CRM gets.
    pub fn lead(&self) -> Option<&str> {
        self.leads.last().map(String::as_str)
    }
}

/// The files as a record has them on disk: the original knew one lead only.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct WrittenFiles {
    recording: Option<String>,
    conversation: Option<String>,
    /// The latest lead.
    lead: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    leads: Vec<String>,
}

impl From<WrittenFiles> for RecordFiles {
    fn from(written: WrittenFiles) -> Self {
        let path = |path: Option<String>| path.as_deref().map(data_folder_path);
        let mut leads: Vec<String> = written.leads.iter().map(|l| data_folder_path(l)).collect();
        if let Some(lead) = path(written.lead)
            && leads.last() != Some(&lead)
        {
            leads.retain(|known| *known != lead);
            leads.push(lead);
        }
        Self {
            recording: path(written.recording),
            conversation: path(written.conversation),
            leads,
        }
    }
}

impl From<RecordFiles> for WrittenFiles {
    fn from(files: RecordFiles) -> Self {
        Self {
            lead: files.lead().map(str::to_owned),
            recording: files.recording,
            conversation: files.conversation,
            leads: files.leads,
        }
    }
}

/// When things happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordTimestamps {
    /// The dispatch.
    #[serde(with = "time::option")]
    pub call_start: Option<DateTime<Utc>>,
    /// When the agent was in the room.
    #[serde(with = "time::option", skip_serializing_if = "Option::is_none")]
    pub joined: Option<DateTime<Utc>>,
    /// Since when the other party's telephone was known to ring.
    #[serde(with = "time::option", skip_serializing_if = "Option::is_none")]
    pub ringing: Option<DateTime<Utc>>,
    /// When the other party was first there. The talk begins here.
    #[serde(with = "time::option", skip_serializing_if = "Option::is_none")]
    pub answered: Option<DateTime<Utc>>,
    /// The hangup.
    #[serde(with = "time::option")]
    pub call_end: Option<DateTime<Utc>>,
    /// When this file was first written.
    #[serde(with = "time::option")]
    pub metadata_saved: Option<DateTime<Utc>>,
    /// When the CRM had confirmed everything.
    #[serde(with = "time::option", skip_serializing_if = "Option::is_none")]
    pub delivered: Option<DateTime<Utc>>,
    /// When the file of its recording was deleted here, which the CRM has.
    #[serde(with = "time::option", skip_serializing_if = "Option::is_none")]
    pub recording_deleted: Option<DateTime<Utc>>,
}

/// The disconnect reason of a job whose room had another agent.
pub const ANOTHER_AGENT: &str = "ANOTHER_AGENT";

/// How the call ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordOutcome {
    /// Why it ended; unknown in the original's records.
    pub close_reason: Option<CloseReason>,
    /// LiveKit's reason for the disconnect.
    pub disconnect_reason: Option<String>,
    /// What became of the call.
    pub call_status: CallStatus,
    /// A sentence about what broke.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// `call_metadata/metadata_<session_id>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct CallRecord {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The session.
    pub session_id: SessionId,
    /// The number that the call is filed under: the other party.
    #[serde(default)]
    pub dialed_number: Option<String>,
    /// The number that called.
    #[serde(default)]
    pub caller_number: Option<String>,
    /// Our own number.
    #[serde(default)]
    pub trunk_number: Option<String>,
    /// Who called whom; null where nothing tells.
    #[serde(default)]
    pub direction: Option<Direction>,
    /// The CRM's id of the call, `CALL-YYYYMMDD-<last 8 digits>`.
    #[serde(default)]
    pub call_id: Option<String>,
    /// LiveKit's id of the telephone call, `SCL_…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sip_call_id: Option<String>,
    /// The `Call-ID` of the SIP messages, by which the carrier knows the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier_call_id: Option<String>,
    /// LiveKit's id of the job.
    #[serde(default)]
    pub job_id: Option<String>,
    /// The room.
    #[serde(default, deserialize_with = "null_is_default")]
    pub room: RoomRef,
    /// Name of the persona that talked.
    #[serde(default)]
    pub persona: Option<String>,
    /// As fetched, with `campaignId`, `voiceAgentId` and `client`. In the file it also has the
    /// egress as `egressId` and the latest lead as `lead_file`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub campaign_metadata: Map<String, Value>,
    /// The egress that the campaign metadata of the file names, see [`CallRecord::egress_id`].
    #[serde(skip)]
    pub campaign_egress_id: Option<String>,
    /// What dispatcher, telephone network and caller's client have said about the call.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "CallContext::is_empty"
    )]
    pub context: CallContext,
    /// The files of the call.
    #[serde(default, deserialize_with = "null_is_default")]
    pub files: RecordFiles,
    /// When things happened.
    #[serde(default, deserialize_with = "null_is_default")]
    pub timestamps: RecordTimestamps,
    /// How the call ended.
    #[serde(default, deserialize_with = "null_is_default")]
    pub outcome: RecordOutcome,
    /// What the call knew about its recording.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recording: Option<RecordingMetadata>,
    /// The call as it was placed from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dial: Option<Dial>,
    /// Who, or what, has answered a call that was placed from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<AnsweredBy>,
    /// Why that is thought, and since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_detection: Option<AnswerDetection>,
    /// When a message was left with the machine that has answered.
    #[serde(
        default,
        with = "time::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub message_left_at: Option<DateTime<Utc>>,
    /// What has come of the call, as the model says (`set_outcome`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_outcome: Option<String>,
    /// When the other party wants to be called again (`schedule_callback`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<Callback>,
    /// The other party does not want to be called again (`add_to_do_not_call`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub do_not_call: Option<DoNotCall>,
    /// What the caller wanted.
    #[serde(default, deserialize_with = "null_is_default")]
    pub intents: Vec<Intent>,
    /// What the caller has typed on the telephone.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub keypad: Vec<KeypadInput>,
    /// What the model has used tools for.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub tool_uses: Vec<ToolUse>,
    /// What the providers were asked to do.
    #[serde(default, deserialize_with = "null_is_default")]
    pub usage: Usage,
    /// Where the record stands.
    #[serde(default)]
    pub status: RecordStatus,
    /// Passes that tried to deliver something.
    #[serde(default, deserialize_with = "null_is_default")]
    pub upload_attempts: u32,
    /// The last of them.
    #[serde(default, with = "time::option")]
    pub last_upload_attempt: Option<DateTime<Utc>>,
    /// Both parts of the delivery.
    #[serde(default, deserialize_with = "null_is_default")]
    pub uploads: RecordUploads,
    /// What somebody else put into the file; it stays in it.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

pub(super) fn has_a_call(disconnect_reason: Option<&str>, answered: Option<DateTime<Utc>>) -> bool {
    disconnect_reason != Some(ANOTHER_AGENT) || answered.is_some()
}

impl Serialize for CallRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut written = self.clone();
        campaign::put_own(
            &mut written.campaign_metadata,
            self.campaign_egress_id.as_deref(),
            self.files.lead(),
        );
        // The derived one, which writes the fields as they are.
        Self::serialize(&written, serializer)
    }
}

impl<'de> Deserialize<'de> for CallRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The derived one, which reads the fields as they are.
        let mut record = Self::deserialize(deserializer)?;
        record.campaign_egress_id =
            campaign::take_own(&mut record.campaign_metadata, record.files.lead());
        Ok(record)
    }
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl CallRecord {
    /// The record of a call that has ended at `call_end`, ready to be delivered.
    pub fn new(
        session: &CompleteSessionData,
        call_id: Option<String>,
        conversation: String,
        call_end: DateTime<Utc>,
        saved_at: DateTime<Utc>,
    ) -> Self {
        let call = &session.call_metadata;
        let mut campaign_metadata = session.fetched_campaign_metadata();
        let ids = CampaignIds {
            campaign_id: call.campaign_id.clone(),
            voice_agent_id: call.voice_agent_id.clone(),
            client: call.client.clone(),
        };
        campaign_metadata.extend(ids.fields());
        let local_recording = session.recording.as_ref().and_then(local_recording_path);
        let outcome = session.outcome.as_ref();
        Self {
            schema_version: SCHEMA_VERSION,
            session_id: session.start.session_id.clone(),
            dialed_number: call.dialed_number.clone(),
            caller_number: call.caller_number.clone(),
            trunk_number: call.trunk_number.clone(),
            direction: call.direction.or(session.start.direction),
            call_id,
            sip_call_id: call.call_id.clone(),
            carrier_call_id: call.carrier_call_id.clone(),
            job_id: known(&session.start.job_id),
            room: RoomRef {
                name: known(&session.start.room_name),
                sid: call
                    .room_sid
                    .clone()
                    .or_else(|| session.start.room_sid.clone()),
            },
            persona: call.persona.clone(),
            campaign_metadata,
            campaign_egress_id: session.egress_id().map(str::to_owned),
            context: CallContext::new(
                session.start.job_metadata.as_deref(),
                &session.start.attributes,
                session.participant.as_ref(),
            ),
            files: RecordFiles {
                recording: local_recording,
                conversation: Some(conversation),
                leads: session.lead_files.clone(),
            },
            timestamps: RecordTimestamps {
                call_start: Some(session.start.call_start),
                joined: session.joined_at,
                ringing: session.ringing_at,
                answered: session.answered_at(),
                call_end: Some(call_end),
                metadata_saved: Some(saved_at),
                delivered: None,
                recording_deleted: None,
            },
            outcome: RecordOutcome {
                close_reason: outcome.map(|o| o.close_reason),
                disconnect_reason: outcome.and_then(|o| o.disconnect_reason.clone()),
                call_status: outcome.map(|o| o.call_status).unwrap_or_default(),
                error: outcome.and_then(|o| o.error.clone()),
            },
            recording: session.recording.clone(),
            dial: session.dial.clone(),
            answered_by: session.answer.as_ref().map(|answer| answer.answered_by),
            answer_detection: session.answer.clone(),
            message_left_at: session.message_left_at,
            agent_outcome: session.agent_outcome.clone(),
            callback: session.callback.clone(),
            do_not_call: session.do_not_call.clone(),
            intents: session.intents.clone(),
            keypad: session.keypad.clone(),
            tool_uses: session.tool_uses.clone(),
            usage: session.usage,
            status: RecordStatus::ReadyForUpload,
            upload_attempts: 0,
            last_upload_attempt: None,
            uploads: RecordUploads::default(),
            extra: Map::new(),
        }
    }

    /// Reads a metadata file of any version and brings it to this one. `named` is the session in
    /// the file's name, for a file that does not say it inside.
    ///
    /// # Errors
    /// The rest of a sentence that begins with the file's name.
    pub fn from_json(bytes: &[u8], named: &SessionId) -> Result<Self, String> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| format!("is not JSON: {error}"))?;
        let Value::Object(mut fields) = value else {
            return Err("is JSON but not an object".to_owned());
        };
        match fields.get("schema_version") {
            None | Some(Value::Null) => upgrade_original(&mut fields, named),
            Some(version) if version.as_u64() == Some(u64::from(SCHEMA_VERSION)) => {}
            Some(version) => {
                return Err(format!(
                    "has schema_version {version}; this program reads up to {SCHEMA_VERSION}"
                ));
            }
        }
        serde_json::from_value(Value::Object(fields))
            .map_err(|error| format!("is not a call record: {error}"))
    }

    /// What a metadata file holds, as far as crash recovery depends on it.
    pub fn filed(bytes: &[u8], named: &SessionId) -> FiledRecord {
        let version = |value: &Value| value.get("schema_version").and_then(Value::as_u64);
        match Self::from_json(bytes, named) {
            Ok(record) => FiledRecord::Status(record.status),
            Err(_) => match serde_json::from_slice::<Value>(bytes).as_ref().map(version) {
                Ok(Some(version)) if version > u64::from(SCHEMA_VERSION) => FiledRecord::Newer,
                _ => FiledRecord::Unreadable,
            },
        }
    }

    /// The id of the egress that made the recording.
    pub fn egress_id(&self) -> Option<&str> {
        let from_recording = || self.recording.as_ref().and_then(|r| r.egress_id.as_deref());
        self.campaign_egress_id
            .as_deref()
            .or_else(from_recording)
            .filter(|id| !id.is_empty())
    }

    /// The other party's number: what the call is filed under.
    pub fn other_party(&self) -> Option<&str> {
        let known = |number: &'_ Option<String>| number.as_deref().is_some_and(|n| !n.is_empty());
        if known(&self.dialed_number) {
            return self.dialed_number.as_deref();
        }
        match self.direction {
            Some(Direction::Inbound) | None if known(&self.caller_number) => {
                self.caller_number.as_deref()
            }
            _ => None,
        }
    }

    /// When the call started, or the best that the record has for it.
    pub fn started_at(&self) -> Option<DateTime<Utc>> {
        self.timestamps
            .call_start
            .or(self.timestamps.metadata_saved)
            .or(self.timestamps.call_end)
    }

    /// When the call ended, or the best that the record has for it.
    pub fn ended_at(&self) -> Option<DateTime<Utc>> {
        self.timestamps
            .call_end
            .or(self.timestamps.metadata_saved)
            .or(self.timestamps.call_start)
    }

    /// Whether the job has held a call. One that found another agent in the room, and talked to
    /// nobody, has not: the call is the other one's and has its own record.
    pub fn has_a_call(&self) -> bool {
        has_a_call(
            self.outcome.disconnect_reason.as_deref(),
            self.timestamps.answered,
        )
    }

    /// How long the two parties could talk when the talk ended, or has come to, `end`: from the
    /// answer on, whole seconds. A call that nobody answered has none. The original's records do
    /// not say when a call was answered; they count from their start.
    pub fn talk_seconds(&self, end: DateTime<Utc>) -> u64 {
        let unanswered = matches!(
            self.outcome.call_status,
            CallStatus::NoAnswer | CallStatus::Busy
        );
        let ours = self.job_id.is_some();
        let begin = match self.timestamps.answered {
            None if ours || unanswered => None,
            None => self.started_at(),
            answered => answered,
        };
        begin.map_or(0, |begin| time::seconds_between(begin, end))
    }

    /// How long the other party's telephone rang, until it was answered or the call ended, whole
    /// seconds. `None` where nobody knows.
    pub fn ring_seconds(&self) -> Option<u64> {
        let times = &self.timestamps;
        // Whoever calls us hears it ring from the dispatch on, at the latest.
        let called_us = self.direction == Some(Direction::Inbound) && self.sip_call_id.is_some();
        let dispatched = times.call_start.filter(|_| called_us);
        let begin = dispatched.or(times.ringing)?;
        let end = times.answered.or(times.call_end)?;
        Some(time::seconds_between(begin, end))
    }

    /// Moves the record forward. `false`, and no change, when that would be backward.
    pub fn advance(&mut self, next: RecordStatus) -> bool {
        let allowed = self.status.can_become(next);
        if allowed {
            self.status = next;
        }
        allowed
    }

    /// An operator's "try again": refused parts become pending, waits end; what was sent stays
    /// sent. `false` when there is nothing to try.
    pub fn reset_for_retry(&mut self) -> bool {
        let recording = &mut self.uploads.recording;
        let call_data = &mut self.uploads.call_data;
        let mut anything = false;
        if recording.state != PartState::Sent {
            recording.state = PartState::Pending;
            recording.next_attempt = None;
            recording.attempts = 0;
            recording.watch = None;
            recording.release_at = None;
            recording.not_admitted = None;
            anything = true;
        }
        if call_data.state != PartState::Sent {
            call_data.state = PartState::Pending;
            call_data.next_attempt = None;
            call_data.attempts = 0;
            call_data.not_admitted = None;
            anything = true;
        }
        if let Some(update) = &mut self.uploads.call_data_update
            && update.state != PartState::Sent
        {
            update.state = PartState::Pending;
            update.next_attempt = None;
            update.attempts = 0;
            update.not_admitted = None;
            anything = true;
        }
        if anything {
            self.status = RecordStatus::ReadyForUpload;
        }
        anything
    }
}

/// A text that is empty when it could not be read.
fn known(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Only a recording that this worker's own process made has a path on this disk; an egress's path
/// is on the egress host.
fn local_recording_path(recording: &RecordingMetadata) -> Option<String> {
    (recording.source == super::RecordingSource::Local)
        .then(|| recording.recording_filename.clone())
        .flatten()
}

/// Brings the original's metadata to version 2. Its fields keep their names, so only what is odd
/// about them needs doing.
fn upgrade_original(fields: &mut Map<String, Value>, named: &SessionId) {
    fields.insert("schema_version".to_owned(), SCHEMA_VERSION.into());
    // Its session ids were free texts too.
    let session_id = match fields.get("session_id") {
        Some(Value::String(id)) if !id.is_empty() => sanitise(id),
        _ => named.to_string(),
    };
    fields.insert("session_id".to_owned(), session_id.into());
    // Its status was a free text; whatever is not a known end is still to be delivered.
    let status = fields.get("status").and_then(Value::as_str);
    if !matches!(
        status,
        Some("ready_for_upload" | "uploading" | "uploaded" | "failed")
    ) {
        fields.insert("status".to_owned(), "ready_for_upload".into());
    }
    // It had no direction, and told the CRM "inbound" of every call.
    if fields.get("direction").is_none_or(Value::is_null) {
        fields.insert("direction".to_owned(), json!(Direction::Inbound));
    }
    // Its writers sometimes had a number as a JSON number.
    for key in ["dialed_number", "caller_number", "trunk_number"] {
        if let Some(Value::Number(number)) = fields.get(key) {
            let text = number.to_string();
            fields.insert(key.to_owned(), text.into());
        }
    }
}

/// The original wrote paths as its machine had them: absolute, and with `\` on Windows. What counts
/// begins at our folder's name.
fn data_folder_path(path: &str) -> String {
    const FOLDERS: [&str; 3] = ["recordings", "conversations", "leads"];
    let path = path.replace('\\', "/");
    let absolute = path.starts_with('/') || path.get(1..2) == Some(":");
    if absolute {
        let parts: Vec<&str> = path.split('/').collect();
        if let Some(start) = parts.iter().rposition(|part| FOLDERS.contains(part)) {
            return parts[start..].join("/");
        }
    }
    path.strip_prefix("./").map(str::to_owned).unwrap_or(path)
}

/// `CALL-YYYYMMDD-<last 8 digits>`, without the suffix that tells two calls of one day apart. A
/// call without a number (from a browser) takes the random end of its session id instead.
pub fn call_id_base(
    call_start: DateTime<Utc>,
    number: Option<&str>,
    session_id: &SessionId,
) -> String {
    let digits: Vec<char> = number
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    let tail: String = if digits.is_empty() {
        session_id
            .as_str()
            .rsplit(['_', '-'])
            .next()
            .unwrap_or_default()
            .to_owned()
    } else {
        digits[digits.len().saturating_sub(CALL_ID_DIGITS)..]
            .iter()
            .collect()
    };
    format!("CALL-{}-{tail}", call_start.format("%Y%m%d"))
}

/// A recording as the CRM has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredRecording {
    /// Where the CRM put it.
    pub url: String,
    /// Seconds.
    pub duration: Option<u64>,
    /// Bytes.
    pub size: Option<u64>,
}

/// The body of `POST /call-data`: the original's fields with their meaning, and beside them what it
/// did not have. `conversation` and `lead` are the files' contents, of any version; a call without
/// them has an empty transcription and an empty lead.
pub fn crm_payload(
    record: &CallRecord,
    conversation: Option<&Value>,
    lead: Option<&Value>,
    recording: Option<&DeliveredRecording>,
) -> Value {
    let ids = CampaignIds::from_campaign_metadata(&record.campaign_metadata);
    let start = record.started_at();
    let end = record.ended_at();
    let duration = end.map_or(0, |end| record.talk_seconds(end));
    let outcome = &record.outcome;
    let number = record.other_party();
    let mut payload = json!({
        "campaignId": ids.campaign_id,
        "voiceAgentId": ids.voice_agent_id,
        "client": ids.client,
        "callDetails": {
            "callId": record.call_id,
            "direction": record.direction,
            "startTime": start.map(time::format),
            "endTime": end.map(time::format),
            "duration": duration,
            "status": crm_status(outcome.call_status),
            "callerNumber": number,
            "trunkNumber": record.trunk_number,
            "answerTime": record.timestamps.answered.map(time::format),
            "ringDuration": record.ring_seconds(),
            "callStatus": outcome.call_status,
            "closeReason": outcome.close_reason,
            "disconnectReason": outcome.disconnect_reason,
            "error": outcome.error,
            "sipCallId": record.sip_call_id,
            "carrierCallId": record.carrier_call_id,
            "recordingUrl": recording.map(|r| r.url.as_str()),
            "recordingDuration": recording.and_then(|r| r.duration),
            "recordingSize": recording.and_then(|r| r.size),
            "recordingStartTime": record.recording.as_ref().and_then(RecordingMetadata::began_at).map(time::format),
        },
        "caller": { "phoneNumber": number },
        "transcription": transcription_for_crm(record, conversation, start, end, duration),
        "lead": lead.cloned().unwrap_or_else(|| json!({})),
        "context": record.context,
        "usage": record.usage,
    });
    if let Some(dial) = &record.dial {
        let details = &mut payload["callDetails"];
        details["dialOutcome"] = json!(dial.outcome);
        details["sipStatusCode"] = json!(dial.sip_status);
        details["sipStatusReason"] = json!(dial.sip_reason);
    }
    for key in campaign::ATTEMPT_KEYS {
        if let Some(id) = record.campaign_metadata.get(key) {
            payload[key] = id.clone();
        }
    }
    if let Some(answer) = &record.answer_detection {
        let details = &mut payload["callDetails"];
        details["answeredBy"] = json!(answer.answered_by);
        details["answeredByReason"] = json!(answer.reason);
        details["answeredByAfterMs"] = json!(answer.after_ms);
        details["messageLeftTime"] = json!(record.message_left_at.map(time::format));
    }
    if let Some(outcome) = &record.agent_outcome {
        payload["callDetails"]["agentOutcome"] = json!(outcome);
    }
    if let Some(callback) = &record.callback {
        payload["callDetails"]["callback"] = json!(callback);
    }
    if let Some(do_not_call) = &record.do_not_call {
        payload["callDetails"]["doNotCall"] = json!(do_not_call);
    }
    payload
}

/// The CRM knows the original's `completed`. A call whose process died was talked all the same;
/// that it was recovered is our affair.
fn crm_status(status: CallStatus) -> Value {
    match status {
        CallStatus::Recovered => json!(CallStatus::Completed),
        other => json!(other),
    }
}

fn transcription_for_crm(
    record: &CallRecord,
    conversation: Option<&Value>,
    start: Option<DateTime<Utc>>,
    end: Option<DateTime<Utc>>,
    duration: u64,
) -> Value {
    let field = |name: &str| {
        conversation
            .and_then(|c| c.get(name))
            .filter(|value| !value.is_null())
            .cloned()
    };
    let said = conversation.map_or(&[][..], said_in);
    let items: Vec<Value> = said.iter().map(item_for_crm).collect();
    json!({
        "session_id": record.session_id,
        "start_time": field("start_time").or_else(|| start.map(|t| time::format(t).into())),
        "end_time": field("end_time").or_else(|| end.map(|t| time::format(t).into())),
        "duration_seconds": field("duration_seconds").unwrap_or_else(|| duration.into()),
        "total_items": items.len(),
        "conversation_items": items,
        "lead_generated": record.files.lead().is_some(),
        "metadata": field("metadata").unwrap_or_else(|| json!({ "auto_saved": true })),
    })
}

/// Exactly the contract's fields: what we measure beside them stays in the file.
fn item_for_crm(item: &Value) -> Value {
    json!({
        "role": item["role"],
        "content": match &item["content"] {
            // The SDK's own history has the content as a list of texts.
            Value::Array(parts) => parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n").into(),
            other => other.clone(),
        },
        "timestamp": item["timestamp"],
        "source": item.get("source").filter(|s| !s.is_null()).cloned().unwrap_or_else(|| ITEM_SOURCE.into()),
        "transcript_confidence": item["transcript_confidence"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATUSES: [RecordStatus; 4] = [
        RecordStatus::ReadyForUpload,
        RecordStatus::Uploading,
        RecordStatus::Uploaded,
        RecordStatus::Failed,
    ];
    const PARTS: [PartState; 5] = [
        PartState::Pending,
        PartState::Waiting,
        PartState::Sent,
        PartState::Missing,
        PartState::Failed,
    ];

    fn named() -> SessionId {
        "session_20251029_113920_abc123".parse().unwrap()
    }

    #[test]
    fn a_call_id_has_the_day_and_the_last_eight_digits() {
        let start = "2025-10-29T23:59:59Z".parse().unwrap();
        for (number, expected) in [
            (Some("+918655066243"), "CALL-20251029-55066243"),
            (Some("+1 (555) 010-0123"), "CALL-20251029-50100123"),
            (Some("112"), "CALL-20251029-112"),
            (Some("anonymous"), "CALL-20251029-abc123"),
            (None, "CALL-20251029-abc123"),
        ] {
            assert_eq!(call_id_base(start, number, &named()), expected);
        }
    }

    #[test]
    fn talk_and_ringing_are_told_apart() {
        let at = |second: i64| DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(second);
        let record = |job, ringing: Option<i64>, answered: Option<i64>, status, direction| {
            let record = json!({
                "schema_version": 2, "session_id": named(), "job_id": job, "direction": direction, "sip_call_id": "SCL_1",
                "timestamps": {
                    "call_start": time::format(at(0)), "call_end": time::format(at(100)),
                    "ringing": ringing.map(|second| time::format(at(second))),
                    "answered": answered.map(|second| time::format(at(second))),
                },
                "outcome": { "call_status": status },
            });
            CallRecord::from_json(record.to_string().as_bytes(), &named()).unwrap()
        };
        let ours = Some("AJ_1");
        for (record, talk, ringing) in [
            (
                record(ours, Some(2), Some(12), "completed", "outbound"),
                88,
                Some(10),
            ),
            (
                record(ours, Some(2), None, "no_answer", "outbound"),
                0,
                Some(98),
            ),
            (record(ours, None, None, "no_answer", "outbound"), 0, None),
            (record(ours, None, None, "recovered", "outbound"), 0, None),
            // An inbound call rings from before the dispatch until our track is there, whenever we
            // see it ring.
            (
                record(ours, Some(6), Some(7), "completed", "inbound"),
                93,
                Some(7),
            ),
            (
                record(ours, None, Some(1), "completed", "inbound"),
                99,
                Some(1),
            ),
            // The original does not say when a call was answered.
            (record(None, None, None, "completed", "outbound"), 100, None),
            (record(None, None, None, "busy", "outbound"), 0, None),
        ] {
            assert_eq!(record.talk_seconds(at(100)), talk, "{record:?}");
            assert_eq!(record.ring_seconds(), ringing, "{record:?}");
            let payload = crm_payload(&record, None, None, None);
            assert_eq!(payload["callDetails"]["duration"], talk);
            assert_eq!(payload["transcription"]["duration_seconds"], talk);
        }
    }

    #[test]
    fn a_direction_that_nothing_tells_is_null() {
        let record =
            |fields: Value| CallRecord::from_json(fields.to_string().as_bytes(), &named()).unwrap();
        let ours = record(json!({ "schema_version": 2, "session_id": named(), "direction": null }));
        let payload = crm_payload(&ours, None, None, None);
        assert_eq!(payload["callDetails"]["direction"], Value::Null);
        // The original told the CRM "inbound" of every call.
        for original in [json!({}), json!({ "direction": null })] {
            let payload = crm_payload(&record(original), None, None, None);
            assert_eq!(payload["callDetails"]["direction"], "inbound");
        }
    }

    #[test]
    fn a_record_keeps_the_first_and_the_newest_requests() {
        let mut uploads = RecordUploads::default();
        for number in 0..1000 {
            uploads.part(DeliveryPart::CallData).note(Attempt {
                at: DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(number),
                took_ms: 1,
                outcome: AttemptOutcome::TryAgain,
                error: None,
            });
        }
        let history = uploads.call_data.history;
        let seconds: Vec<i64> = history.iter().map(|a| a.at.timestamp()).collect();
        assert_eq!(seconds.len(), KEPT_ATTEMPTS);
        assert_eq!((seconds[0], seconds[1], seconds[19]), (0, 981, 999));
    }

    #[test]
    fn what_is_derived_is_written_as_it_was_read() {
        let ours = include_bytes!(
            "../../tests/fixtures/records/v2/metadata_session_20261121_101500_00beef.json"
        );
        let original = include_bytes!(
            "../../tests/fixtures/records/original/metadata_session_20251029_113920_abc123.json"
        );
        for (file, egress_id) in [(&ours[..], None), (&original[..], Some("xyz789"))] {
            let before: Value = serde_json::from_slice(file).unwrap();
            let record = CallRecord::from_json(file, &named()).unwrap();
            assert_eq!(record.egress_id(), egress_id);
            for key in ["egressId", "lead_file"] {
                let typed = record.campaign_metadata.get(key).and_then(Value::as_str);
                assert!(typed.is_none_or(|path| path.contains('\\')), "{key}");
            }
            let after = serde_json::to_value(&record).unwrap();
            assert_eq!(after["campaign_metadata"], before["campaign_metadata"]);
            let lead = record.files.lead().expect("it has a lead");
            assert_eq!(after["files"]["lead"], lead);
        }
    }

    #[test]
    fn the_lead_that_an_old_record_names_is_the_latest() {
        for (files, expected) in [
            (json!({ "lead": "leads/1.json" }), vec!["leads/1.json"]),
            (
                json!({ "lead": "C:\\bot\\leads\\1.json", "leads": null }),
                vec!["leads/1.json"],
            ),
            (
                json!({ "lead": "leads/2.json", "leads": ["leads/1.json", "leads/2.json"] }),
                vec!["leads/1.json", "leads/2.json"],
            ),
            (
                json!({ "lead": "leads/1.json", "leads": ["leads/1.json", "leads/2.json"] }),
                vec!["leads/2.json", "leads/1.json"],
            ),
            (json!({ "lead": null, "leads": [] }), vec![]),
        ] {
            let file = json!({ "files": files }).to_string();
            let record = CallRecord::from_json(file.as_bytes(), &named()).unwrap();
            assert_eq!(record.files.leads, expected);
            assert_eq!(record.files.lead(), expected.last().copied());
            let written = serde_json::to_value(&record).unwrap();
            assert_eq!(written["files"]["lead"], json!(expected.last()));
        }
    }

    #[test]
    fn paths_of_other_machines_begin_at_our_folder() {
        for (path, expected) in [
            ("/srv/bot/leads/lead_1.json", "leads/lead_1.json"),
            ("C:\\bot\\conversations\\c.json", "conversations/c.json"),
            ("leads\\lead_1.json", "leads/lead_1.json"),
            ("./recordings/a.ogg", "recordings/a.ogg"),
            ("/leads/old/leads/l.json", "leads/l.json"),
            ("/etc/passwd", "/etc/passwd"),
        ] {
            assert_eq!(data_folder_path(path), expected);
        }
    }

    /// Any JSON, with our own field names in it often enough to get past the first check.
    fn any_json() -> impl Strategy<Value = Value> {
        let names = prop::sample::select(vec![
            "session_id",
            "schema_version",
            "files",
            "recording",
            "lead",
            "leads",
            "timestamps",
            "call_start",
            "campaign_metadata",
            "uploads",
            "state",
            "status",
            "direction",
            "outcome",
            "usage",
            "intents",
            "other",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
            Just(json!("session_1")),
            Just(json!(2)),
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(names.clone(), inner, 0..8).prop_map(|fields| {
                    fields
                        .into_iter()
                        .map(|(name, value)| (name.to_owned(), value))
                        .collect::<Map<_, _>>()
                        .into()
                }),
            ]
        })
    }

    proptest! {
        /// Whatever is tried in whatever order: what was confirmed stays confirmed, and a refusal
        /// is undone by an operator only.
        #[test]
        fn a_record_only_moves_forward(
            statuses in prop::collection::vec(prop::sample::select(STATUSES.to_vec()), 0..12),
            parts in prop::collection::vec(prop::sample::select(PARTS.to_vec()), 0..12),
        ) {
            let mut status = RecordStatus::ReadyForUpload;
            for next in statuses {
                if status.can_become(next) {
                    prop_assert!(status != RecordStatus::Uploaded || next == RecordStatus::Uploaded);
                    prop_assert!(next != RecordStatus::ReadyForUpload || status == RecordStatus::ReadyForUpload);
                    status = next;
                }
            }
            let mut part = PartState::Pending;
            for next in parts {
                if part.can_become(next) {
                    prop_assert!(!part.is_settled() || next.is_settled());
                    prop_assert!(part != PartState::Sent || next == PartState::Sent);
                    part = next;
                }
            }
        }

        /// A valid file with bytes changed or its end missing is read or refused with a sentence,
        /// without a panic; as are any bytes.
        #[test]
        fn a_damaged_file_is_read_or_refused(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = include_bytes!("../../tests/fixtures/records/v2/metadata_session_20261121_101500_00beef.json").to_vec();
            for (index, byte) in damage {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            for bytes in [bytes, noise] {
                match CallRecord::from_json(&bytes, &named()) {
                    Ok(record) => prop_assert_eq!(CallRecord::filed(&bytes, &named()), FiledRecord::Status(record.status)),
                    Err(problem) => {
                        prop_assert!(problem.starts_with("is ") || problem.starts_with("has "), "{problem}");
                        prop_assert_ne!(CallRecord::filed(&bytes, &named()), FiledRecord::Status(RecordStatus::Uploaded));
                    }
                }
            }
        }

        /// A file that anybody may have written is read or refused, without a panic, and what is
        /// read is written and read back the same.
        #[test]
        fn any_file_is_read_or_refused(value in any_json()) {
            if let Ok(record) = CallRecord::from_json(value.to_string().as_bytes(), &named()) {
                let again = serde_json::to_vec(&record).unwrap();
                prop_assert_eq!(CallRecord::from_json(&again, &named()).unwrap(), record.clone());
                crm_payload(&record, Some(&value), Some(&value), None);
            }
        }
    }
}
