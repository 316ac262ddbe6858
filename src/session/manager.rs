//! The state of one running call. Every change is a [`SessionEvent`], applied in one place, so that
//! a journal of events is the call.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::campaign;
use super::time;
use super::{
    AnswerDetection, CallParticipant, Callback, ConversationItem, Dial, DoNotCall, LeadId,
    RecordingMetadata, SessionId, ToolUse, TurnRecord,
};

/// Changes of what a participant says about itself that are kept: a client may set its attributes
/// for ever.
const MOST_PARTICIPANT_CHANGES: usize = 32;

/// Uses of tools that are kept: a model may ask for them for ever.
const MOST_TOOL_USES: usize = 100;

/// Who called whom. Where nothing tells, there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// They called us.
    Inbound,
    /// We called them.
    Outbound,
}

impl Direction {
    /// As records and logs have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What is known when a job is dispatched; the first line of every journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallStart {
    /// Our id of the call.
    pub session_id: SessionId,
    /// LiveKit's id of the job.
    pub job_id: String,
    /// The room's name.
    pub room_name: String,
    /// The room's server id, when it is known already.
    #[serde(default)]
    pub room_sid: Option<String>,
    /// The text that came with the dispatch.
    #[serde(default)]
    pub job_metadata: Option<String>,
    /// Who called whom, as far as the dispatch tells; [`CallMetadata::direction`] overrides it.
    #[serde(default)]
    pub direction: Option<Direction>,
    /// When the job was assigned.
    #[serde(with = "time")]
    pub call_start: DateTime<Utc>,
    /// The name the worker registered under; empty for automatic dispatch.
    #[serde(default)]
    pub agent_name: String,
    /// The attributes that came with the dispatch.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// What is learnt about the call after the dispatch. Unknown things are `None`; setting keeps what
/// is known already.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallMetadata {
    /// The number that the call is filed under: the other party.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dialed_number: Option<String>,
    /// The number that called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller_number: Option<String>,
    /// Our own number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trunk_number: Option<String>,
    /// LiveKit's id of the telephone call, `SCL_…`. The CRM's id is made when the call ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// The `Call-ID` of the SIP messages, by which the carrier knows the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier_call_id: Option<String>,
    /// Who called whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Name of the persona that talks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persona: Option<String>,
    /// `campaigns[0]._id` of the persona.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub campaign_id: Option<String>,
    /// `campaigns[0].voiceAgents[0]._id` of the persona.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub voice_agent_id: Option<String>,
    /// `campaigns[0].client` of the persona.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The room's server id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_sid: Option<String>,
}

impl CallMetadata {
    fn take_known(&mut self, newer: &CallMetadata) {
        fn take<T: Clone>(slot: &mut Option<T>, newer: &Option<T>) {
            if newer.is_some() {
                slot.clone_from(newer);
            }
        }
        take(&mut self.dialed_number, &newer.dialed_number);
        take(&mut self.caller_number, &newer.caller_number);
        take(&mut self.trunk_number, &newer.trunk_number);
        take(&mut self.call_id, &newer.call_id);
        take(&mut self.carrier_call_id, &newer.carrier_call_id);
        take(&mut self.direction, &newer.direction);
        take(&mut self.persona, &newer.persona);
        take(&mut self.campaign_id, &newer.campaign_id);
        take(&mut self.voice_agent_id, &newer.voice_agent_id);
        take(&mut self.client, &newer.client);
        take(&mut self.room_sid, &newer.room_sid);
    }
}

/// What the caller wants, as the model understood it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// Its name, such as `book_demo`.
    pub intent: String,
    /// 0 to 1.
    #[serde(default)]
    pub confidence: Option<f64>,
    /// What it is about: dates, products, places.
    #[serde(default)]
    pub entities: Map<String, Value>,
    /// When it was noticed.
    #[serde(with = "time")]
    pub timestamp: DateTime<Utc>,
}

/// What the caller has typed on the telephone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeypadInput {
    /// The keys, in order: digits, `*`, `#`, `A` to `D`.
    pub keys: String,
    /// When the last of them was taken. Not "at": that is when a journal's line was written.
    #[serde(with = "time")]
    pub typed_at: DateTime<Utc>,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// What the providers were asked to do. Sums over the call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Requests to the language model.
    pub llm_requests: u64,
    /// Tokens sent to it.
    pub llm_prompt_tokens: u64,
    /// Tokens among those that its cache had.
    pub llm_prompt_cached_tokens: u64,
    /// Tokens that it wrote.
    pub llm_completion_tokens: u64,
    /// Requests to speech recognition, for those that work by request.
    pub stt_requests: u64,
    /// Sound sent to speech recognition, in milliseconds.
    pub stt_audio_ms: u64,
    /// Requests to speech synthesis.
    pub tts_requests: u64,
    /// Characters sent to it.
    pub tts_characters: u64,
    /// Sound that came back, in milliseconds.
    pub tts_audio_ms: u64,
    /// Requests to the language model whose answer nobody has heard: it was begun before the turn
    /// was over, broke off, or had no words.
    #[serde(skip_serializing_if = "is_zero")]
    pub llm_requests_in_vain: u64,
    /// Tokens sent with those, counted among `llm_prompt_tokens`.
    #[serde(skip_serializing_if = "is_zero")]
    pub llm_prompt_tokens_in_vain: u64,
    /// Tokens written for those, counted among `llm_completion_tokens`.
    #[serde(skip_serializing_if = "is_zero")]
    pub llm_completion_tokens_in_vain: u64,
    /// Of all tokens, those that are estimated from the length of the text: a request that is given
    /// up tells no usage.
    #[serde(skip_serializing_if = "is_zero")]
    pub llm_tokens_estimated: u64,
    /// How often recognition was asked, or connected, again.
    #[serde(skip_serializing_if = "is_zero")]
    pub stt_retries: u64,
    /// How often another vendor of recognition has taken over.
    #[serde(skip_serializing_if = "is_zero")]
    pub stt_fallbacks: u64,
    /// How often the language model was asked again.
    #[serde(skip_serializing_if = "is_zero")]
    pub llm_retries: u64,
    /// How often the next language model of the list was asked.
    #[serde(skip_serializing_if = "is_zero")]
    pub llm_fallbacks: u64,
    /// How often the voice was asked again.
    #[serde(skip_serializing_if = "is_zero")]
    pub tts_retries: u64,
    /// How often the next voice of the list was asked.
    #[serde(skip_serializing_if = "is_zero")]
    pub tts_fallbacks: u64,
}

impl Usage {
    /// Adds another use to this one.
    pub fn add(&mut self, more: &Usage) {
        self.llm_requests += more.llm_requests;
        self.llm_prompt_tokens += more.llm_prompt_tokens;
        self.llm_prompt_cached_tokens += more.llm_prompt_cached_tokens;
        self.llm_completion_tokens += more.llm_completion_tokens;
        self.stt_requests += more.stt_requests;
        self.stt_audio_ms += more.stt_audio_ms;
        self.tts_requests += more.tts_requests;
        self.tts_characters += more.tts_characters;
        self.tts_audio_ms += more.tts_audio_ms;
        self.llm_requests_in_vain += more.llm_requests_in_vain;
        self.llm_prompt_tokens_in_vain += more.llm_prompt_tokens_in_vain;
        self.llm_completion_tokens_in_vain += more.llm_completion_tokens_in_vain;
        self.llm_tokens_estimated += more.llm_tokens_estimated;
        self.stt_retries += more.stt_retries;
        self.stt_fallbacks += more.stt_fallbacks;
        self.llm_retries += more.llm_retries;
        self.llm_fallbacks += more.llm_fallbacks;
        self.tts_retries += more.tts_retries;
        self.tts_fallbacks += more.tts_fallbacks;
    }
}

/// Why a call ended, in the words of LiveKit's agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// The other party left.
    ParticipantDisconnected,
    /// The worker was told to stop.
    JobShutdown,
    /// The agent had done its work and hung up.
    TaskCompleted,
    /// Somebody asked for the end: an operator, or the caller by silence.
    UserInitiated,
    /// Something broke.
    Error,
}

/// What became of a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallStatus {
    /// Two parties talked.
    #[default]
    Completed,
    /// Nobody picked up, or nobody came.
    NoAnswer,
    /// The line was busy or the call rejected.
    Busy,
    /// It could not be held.
    Failed,
    /// A machine answered.
    Voicemail,
    /// The process that held it died; this is what its journal tells.
    Recovered,
}

/// How a call ended. The first one that is set stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why it ended.
    pub close_reason: CloseReason,
    /// LiveKit's reason for the disconnect, such as `CLIENT_INITIATED`, when there is one.
    #[serde(default)]
    pub disconnect_reason: Option<String>,
    /// What became of the call.
    pub call_status: CallStatus,
    /// A sentence about what broke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it ended. `None` means "when the journal's last line was written", for whoever did not
    /// see the end.
    #[serde(default, with = "time::option")]
    pub call_end: Option<DateTime<Utc>>,
}

impl Outcome {
    /// The outcome of a call whose process died. `call_end` when the death was seen, else `None`.
    pub fn recovered(error: impl Into<String>, call_end: Option<DateTime<Utc>>) -> Self {
        Self {
            close_reason: CloseReason::Error,
            disconnect_reason: None,
            call_status: CallStatus::Recovered,
            error: Some(error.into()),
            call_end,
        }
    }
}

/// Everything that can happen to a session. A journal is these, one a line; so names and fields are
/// a file format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum SessionEvent {
    /// The job was assigned. Always the first event.
    Dispatched(CallStart),
    /// Something was learnt about the call.
    CallMetadata(CallMetadata),
    /// The campaign's metadata was fetched.
    CampaignMetadata {
        /// As fetched.
        metadata: Map<String, Value>,
    },
    /// The recording was asked for, or changed.
    Recording(RecordingMetadata),
    /// Something was said.
    Item(ConversationItem),
    /// A lead file was written.
    LeadFile {
        /// `leads/…`.
        path: String,
    },
    /// A lead belongs to this session.
    LeadLinked {
        /// Its id.
        lead_id: LeadId,
    },
    /// An intent was noticed.
    Intent(Intent),
    /// The caller has typed something.
    Keypad(KeypadInput),
    /// The model has used a tool.
    ToolUse(ToolUse),
    /// A provider was used.
    Usage(Usage),
    /// A turn of the caller is answered; again, with the same number, when the answer is over.
    Turn(TurnRecord),
    /// The agent was in the room, its track published.
    Joined {
        /// When. Not "at": that is when a journal's line was written.
        #[serde(with = "time", rename = "joined_at")]
        at: DateTime<Utc>,
    },
    /// The caller as the room knows the caller; again when that has changed.
    Participant(CallParticipant),
    /// The other party's telephone rings.
    Ringing {
        /// Since when we know.
        #[serde(with = "time", rename = "ringing_at")]
        at: DateTime<Utc>,
    },
    /// The other party was first there to talk to.
    Answered {
        /// When.
        #[serde(with = "time", rename = "answered_at")]
        at: DateTime<Utc>,
    },
    /// Whoever was taken for the caller was somebody else, and has not said anything: what follows
    /// is the call. What was said to them is not part of it.
    CallerReplaced,
    /// A number was dialled, or what came of it was learnt.
    Dial(Dial),
    /// It was found out who, or what, has answered; again when that was wrong.
    AnswerDetected(AnswerDetection),
    /// A message was left with the machine that has answered.
    MessageLeft {
        /// When all of it was said. Not "at": that is when a journal's line was written.
        #[serde(with = "time")]
        left_at: DateTime<Utc>,
    },
    /// The model has said what has come of the call.
    AgentOutcome {
        /// In a word of the settings, or its own.
        outcome: String,
    },
    /// The other party wants to be called again.
    CallbackWanted {
        /// When.
        callback: Callback,
    },
    /// The other party does not want to be called again.
    DoNotCall(DoNotCall),
    /// The call ended.
    Outcome(Outcome),
}

/// Where events go as they happen: the store's journal. Called under the session's lock, so it must
/// not wait for anything but one write.
pub trait EventSink: Send {
    /// Keeps the event. A sink that cannot says so in the log; the session goes on in memory.
    fn append(&mut self, event: &SessionEvent);
}

/// The state of one call. Its operations have the original's names.
pub struct SessionManager {
    data: CompleteSessionData,
    /// How often the participant has changed.
    participant_changes: usize,
    sink: Option<Box<dyn EventSink>>,
}

/// Everything that is known about a call: what the files and the CRM's payload are built from.
#[derive(Debug, Clone, PartialEq)]
pub struct CompleteSessionData {
    /// The dispatch.
    pub start: CallStart,
    /// What was learnt since.
    pub call_metadata: CallMetadata,
    /// As fetched; [`SessionManager::get_campaign_metadata`] adds what the call has learnt.
    pub campaign_metadata: Map<String, Value>,
    /// The recording, if one was asked for.
    pub recording: Option<RecordingMetadata>,
    /// What was said, in order.
    pub items: Vec<ConversationItem>,
    /// Paths of all lead files, oldest first.
    pub lead_files: Vec<String>,
    /// Ids of all leads, oldest first.
    pub lead_ids: Vec<LeadId>,
    /// What the caller wanted.
    pub intents: Vec<Intent>,
    /// What the caller has typed, in order.
    pub keypad: Vec<KeypadInput>,
    /// What the model has used tools for, in order.
    pub tool_uses: Vec<ToolUse>,
    /// Sums over the call.
    pub usage: Usage,
    /// The turns that were answered, in order.
    pub turns: Vec<TurnRecord>,
    /// When the agent was in the room.
    pub joined_at: Option<DateTime<Utc>>,
    /// The caller as the room knows the caller.
    pub participant: Option<CallParticipant>,
    /// Since when the other party's telephone was known to ring.
    pub ringing_at: Option<DateTime<Utc>>,
    /// When the other party was first there.
    pub answered_at: Option<DateTime<Utc>>,
    /// The call as it was placed from here.
    pub dial: Option<Dial>,
    /// Who, or what, has answered a call that was placed from here.
    pub answer: Option<AnswerDetection>,
    /// When a message was left with a machine.
    pub message_left_at: Option<DateTime<Utc>>,
    /// What has come of the call, as the model says.
    pub agent_outcome: Option<String>,
    /// When the other party wants to be called again.
    pub callback: Option<Callback>,
    /// The other party does not want to be called again.
    pub do_not_call: Option<DoNotCall>,
    /// How it ended; `None` while it runs.
    pub outcome: Option<Outcome>,
}

impl CompleteSessionData {
    /// When the other party was first there. Whatever was said was said to somebody, also where the
    /// journal has lost the answer.
    pub fn answered_at(&self) -> Option<DateTime<Utc>> {
        let first_words = || self.items.first().map(|item| item.timestamp);
        self.answered_at.or_else(first_words)
    }

    /// See [`super::CallRecord::has_a_call`].
    pub fn has_a_call(&self) -> bool {
        let reason = self
            .outcome
            .as_ref()
            .and_then(|outcome| outcome.disconnect_reason.as_deref());
        super::record::has_a_call(reason, self.answered_at())
    }

    /// The egress that makes the recording: ours, else the one that the campaign names.
    pub fn egress_id(&self) -> Option<&str> {
        let of_recording = self.recording.as_ref().and_then(|r| r.egress_id.as_deref());
        of_recording
            .filter(|id| !id.is_empty())
            .or_else(|| campaign::egress_id(&self.campaign_metadata))
    }

    /// The latest lead file.
    pub(super) fn lead_file(&self) -> Option<&str> {
        self.lead_files.last().map(String::as_str)
    }

    /// The campaign's metadata as fetched, without what the call knows better.
    pub(super) fn fetched_campaign_metadata(&self) -> Map<String, Value> {
        let fetched = self.campaign_metadata.clone();
        campaign::without_own(fetched, self.egress_id(), self.lead_file())
    }
}

impl SessionManager {
    /// A session that keeps its events in memory only.
    pub fn new(start: CallStart) -> Self {
        Self {
            data: CompleteSessionData {
                start,
                call_metadata: CallMetadata::default(),
                campaign_metadata: Map::new(),
                recording: None,
                items: Vec::new(),
                lead_files: Vec::new(),
                lead_ids: Vec::new(),
                intents: Vec::new(),
                keypad: Vec::new(),
                tool_uses: Vec::new(),
                usage: Usage::default(),
                turns: Vec::new(),
                joined_at: None,
                participant: None,
                ringing_at: None,
                answered_at: None,
                dial: None,
                answer: None,
                message_left_at: None,
                agent_outcome: None,
                callback: None,
                do_not_call: None,
                outcome: None,
            },
            participant_changes: 0,
            sink: None,
        }
    }

    /// A new session whose events, beginning with the dispatch, go to `sink`.
    pub fn with_sink(start: CallStart, mut sink: Box<dyn EventSink>) -> Self {
        sink.append(&SessionEvent::Dispatched(start.clone()));
        let mut session = Self::new(start);
        session.sink = Some(sink);
        session
    }

    /// The session that a journal tells of. `None` when the journal does not begin with a dispatch.
    pub fn replay(events: impl IntoIterator<Item = SessionEvent>) -> Option<Self> {
        let mut events = events.into_iter();
        let SessionEvent::Dispatched(start) = events.next()? else {
            return None;
        };
        let mut session = Self::new(start);
        for event in events {
            session.apply(&event);
        }
        Some(session)
    }

    /// The session of a journal whose dispatch cannot be read: only its name and what else is in
    /// it. `None` when the name is not one of ours, or the events are those of another session.
    pub fn salvage(
        session_id: &SessionId,
        events: impl IntoIterator<Item = SessionEvent>,
    ) -> Option<Self> {
        let mut session = Self::new(CallStart {
            session_id: session_id.clone(),
            job_id: String::new(),
            room_name: String::new(),
            room_sid: None,
            job_metadata: None,
            direction: None,
            call_start: session_id.started_at()?,
            agent_name: String::new(),
            attributes: BTreeMap::new(),
        });
        for event in events {
            session.apply(&event);
        }
        (session.session_id() == session_id).then_some(session)
    }

    /// From now on events go to `sink` (too late for those that have happened).
    pub fn set_sink(&mut self, sink: Box<dyn EventSink>) {
        self.sink = Some(sink);
    }

    /// The only place where state changes.
    fn apply(&mut self, event: &SessionEvent) {
        let data = &mut self.data;
        match event {
            SessionEvent::Dispatched(start) => data.start = start.clone(),
            SessionEvent::CallMetadata(metadata) => data.call_metadata.take_known(metadata),
            SessionEvent::CampaignMetadata { metadata } => {
                data.campaign_metadata = metadata.clone();
            }
            SessionEvent::Recording(recording) => {
                RecordingMetadata::take_newer(&mut data.recording, recording);
            }
            SessionEvent::Item(item) => data.items.push(item.clone()),
            SessionEvent::LeadFile { path } => {
                data.lead_files.retain(|known| known != path);
                data.lead_files.push(path.clone());
            }
            SessionEvent::LeadLinked { lead_id } => {
                if !data.lead_ids.contains(lead_id) {
                    data.lead_ids.push(lead_id.clone());
                }
            }
            SessionEvent::Intent(intent) => data.intents.push(intent.clone()),
            SessionEvent::Keypad(input) => data.keypad.push(input.clone()),
            SessionEvent::ToolUse(used) => data.tool_uses.push(used.clone()),
            SessionEvent::Usage(usage) => data.usage.add(usage),
            SessionEvent::Turn(turn) => turn.put_into(&mut data.turns),
            SessionEvent::Joined { at } => {
                data.joined_at.get_or_insert(*at);
            }
            SessionEvent::Participant(participant) => data.participant = Some(participant.clone()),
            SessionEvent::Ringing { at } => {
                data.ringing_at.get_or_insert(*at);
            }
            SessionEvent::Answered { at } => {
                data.answered_at.get_or_insert(*at);
            }
            SessionEvent::CallerReplaced => {
                data.items.clear();
                data.turns.clear();
                data.answered_at = None;
            }
            SessionEvent::AnswerDetected(answer) => data.answer = Some(answer.clone()),
            SessionEvent::MessageLeft { left_at } => {
                data.message_left_at.get_or_insert(*left_at);
            }
            SessionEvent::AgentOutcome { outcome } => data.agent_outcome = Some(outcome.clone()),
            SessionEvent::CallbackWanted { callback } => data.callback = Some(callback.clone()),
            SessionEvent::DoNotCall(do_not_call) => data.do_not_call = Some(do_not_call.clone()),
            SessionEvent::Dial(dial) => data.dial = Some(dial.clone()),
            SessionEvent::Outcome(outcome) => {
                data.outcome.get_or_insert_with(|| outcome.clone());
            }
        }
    }

    /// Kept first, applied second: what the session shows is never more than what survives.
    fn record(&mut self, event: SessionEvent) {
        if let Some(sink) = &mut self.sink {
            sink.append(&event);
        }
        self.apply(&event);
    }

    /// The session's id.
    pub fn session_id(&self) -> &SessionId {
        &self.data.start.session_id
    }

    /// The dispatch that began it.
    pub fn start(&self) -> &CallStart {
        &self.data.start
    }

    /// Replaces the campaign's metadata, as fetched with the persona or the job.
    pub fn set_campaign_metadata(&mut self, metadata: Map<String, Value>) {
        self.record(SessionEvent::CampaignMetadata { metadata });
    }

    /// The campaign's metadata, with `egressId` and `lead_file` once they are known.
    pub fn get_campaign_metadata(&self) -> Map<String, Value> {
        let data = &self.data;
        let mut metadata = data.fetched_campaign_metadata();
        campaign::put_own(&mut metadata, data.egress_id(), data.lead_file());
        metadata
    }

    /// Replaces what is known about the recording, unless that would lead back from what it has
    /// come to.
    pub fn set_recording_metadata(&mut self, recording: RecordingMetadata) {
        self.record(SessionEvent::Recording(recording));
    }

    /// What is known about the recording.
    pub fn get_recording_metadata(&self) -> Option<&RecordingMetadata> {
        self.data.recording.as_ref()
    }

    /// Adds to what is known about the call; fields that are `None` keep their value.
    pub fn set_call_metadata(&mut self, metadata: CallMetadata) {
        self.record(SessionEvent::CallMetadata(metadata));
    }

    /// What is known about the call.
    pub fn get_call_metadata(&self) -> &CallMetadata {
        &self.data.call_metadata
    }

    /// Notes a lead file that was written. The store does this in `save_lead`.
    pub fn set_lead_file_path(&mut self, path: &str) {
        self.record(SessionEvent::LeadFile {
            path: path.to_owned(),
        });
    }

    /// The latest lead file.
    pub fn get_lead_file_path(&self) -> Option<&str> {
        self.data.lead_file()
    }

    /// Notes that a lead belongs to this session. The store does this in `save_lead`.
    pub fn link_lead_to_session(&mut self, lead_id: &LeadId) {
        self.record(SessionEvent::LeadLinked {
            lead_id: lead_id.clone(),
        });
    }

    /// A copy of everything.
    pub fn get_complete_session_data(&self) -> CompleteSessionData {
        self.data.clone()
    }

    /// Notes something that was said.
    pub fn commit_item(&mut self, item: ConversationItem) {
        self.record(SessionEvent::Item(item));
    }

    /// What was said so far.
    pub fn items(&self) -> &[ConversationItem] {
        &self.data.items
    }

    /// Notes what the caller wants.
    pub fn add_intent(&mut self, intent: Intent) {
        self.record(SessionEvent::Intent(intent));
    }

    /// Notes what the caller has typed.
    pub fn add_keypad_input(&mut self, input: KeypadInput) {
        self.record(SessionEvent::Keypad(input));
    }

    /// Notes what the model has used a tool for: the first hundred times.
    pub fn add_tool_use(&mut self, used: ToolUse) {
        if self.data.tool_uses.len() < MOST_TOOL_USES {
            self.record(SessionEvent::ToolUse(used));
        }
    }

    /// Adds to the sums.
    pub fn add_usage(&mut self, usage: Usage) {
        self.record(SessionEvent::Usage(usage));
    }

    /// Notes a turn that is answered; a later one with the same number replaces it.
    pub fn set_turn(&mut self, turn: TurnRecord) {
        self.record(SessionEvent::Turn(turn));
    }

    /// Notes when the agent was in the room. The first call counts.
    pub fn set_joined(&mut self, at: DateTime<Utc>) {
        if self.data.joined_at.is_none() {
            self.record(SessionEvent::Joined { at });
        }
    }

    /// Notes what is known of the caller's participant, if that is news.
    pub fn set_participant(&mut self, participant: CallParticipant) {
        let news = self.data.participant.as_ref() != Some(&participant);
        if news && self.participant_changes < MOST_PARTICIPANT_CHANGES {
            self.participant_changes += 1;
            self.record(SessionEvent::Participant(participant));
        }
    }

    /// Notes that the other party's telephone rings. The first call counts.
    pub fn set_ringing(&mut self, at: DateTime<Utc>) {
        if self.data.ringing_at.is_none() {
            self.record(SessionEvent::Ringing { at });
        }
    }

    /// Notes when the other party was first there. The first call counts.
    pub fn set_answered(&mut self, at: DateTime<Utc>) {
        if self.data.answered_at.is_none() {
            self.record(SessionEvent::Answered { at });
        }
    }

    /// Notes that a number was dialled, or what came of it.
    pub fn set_dial(&mut self, dial: Dial) {
        self.record(SessionEvent::Dial(dial));
    }

    /// The call as it was placed from here.
    pub fn dial(&self) -> Option<&Dial> {
        self.data.dial.as_ref()
    }

    /// Notes who, or what, has answered a call that was placed from here.
    pub fn set_answer(&mut self, answer: AnswerDetection) {
        self.record(SessionEvent::AnswerDetected(answer));
    }

    /// Notes that a message was left with a machine. The first call counts.
    pub fn set_message_left(&mut self, left_at: DateTime<Utc>) {
        if self.data.message_left_at.is_none() {
            self.record(SessionEvent::MessageLeft { left_at });
        }
    }

    /// Notes what has come of the call, as the model says. The last word counts.
    pub fn set_agent_outcome(&mut self, outcome: String) {
        self.record(SessionEvent::AgentOutcome { outcome });
    }

    /// Notes when the other party wants to be called again. The last wish counts.
    pub fn set_callback(&mut self, callback: Callback) {
        self.record(SessionEvent::CallbackWanted { callback });
    }

    /// Notes that the other party does not want to be called again.
    pub fn set_do_not_call(&mut self, do_not_call: DoNotCall) {
        self.record(SessionEvent::DoNotCall(do_not_call));
    }

    /// Notes that whoever was taken for the caller was somebody else, of whom nothing was heard.
    pub fn replace_caller(&mut self) {
        self.record(SessionEvent::CallerReplaced);
    }

    /// Notes how the call ended. The first one stands: what follows from an end (the room closing,
    /// the job being shut down) must not hide why it ended.
    pub fn set_outcome(&mut self, outcome: Outcome) {
        if self.data.outcome.is_none() {
            self.record(SessionEvent::Outcome(outcome));
        }
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.data.outcome.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::{Arc, Mutex};

    fn start() -> CallStart {
        CallStart {
            session_id: "session_20251029_113920_abc123".parse().unwrap(),
            job_id: "AJ_1".to_owned(),
            room_name: "room".to_owned(),
            room_sid: None,
            job_metadata: Some("{\"number\": \"+15550100123\"}".to_owned()),
            direction: Some(Direction::Outbound),
            call_start: "2025-10-29T11:39:20Z".parse().unwrap(),
            agent_name: "sales".to_owned(),
            attributes: BTreeMap::new(),
        }
    }

    /// Keeps events as the lines of a journal.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl EventSink for Lines {
        fn append(&mut self, event: &SessionEvent) {
            self.0
                .lock()
                .unwrap()
                .push(serde_json::to_string(event).unwrap());
        }
    }

    fn any_event() -> impl Strategy<Value = SessionEvent> {
        let at = (0_i64..100_000)
            .prop_map(|ms| start().call_start + chrono::TimeDelta::milliseconds(ms));
        let text = "\\PC{0,10}";
        prop_oneof![
            (text, text).prop_map(
                |(number, persona)| SessionEvent::CallMetadata(CallMetadata {
                    dialed_number: Some(number).filter(|n| !n.is_empty()),
                    persona: Some(persona).filter(|p| !p.is_empty()),
                    ..CallMetadata::default()
                })
            ),
            text.prop_map(|value| SessionEvent::CampaignMetadata {
                metadata: json!({ "key": value })
                    .as_object()
                    .cloned()
                    .unwrap_or_default()
            }),
            text.prop_map(|id| SessionEvent::Recording(RecordingMetadata {
                egress_id: Some(id),
                ..RecordingMetadata::default()
            })),
            (text, at.clone(), prop::option::of(0_u8..=100)).prop_map(|(words, at, percent)| {
                let transcript_confidence = percent.map(|percent| f32::from(percent) / 128.0);
                SessionEvent::Item(ConversationItem {
                    transcript_confidence,
                    ..ConversationItem::user(words, at)
                })
            }),
            (1_u8..5).prop_map(|n| SessionEvent::LeadFile {
                path: format!("leads/{n}.json")
            }),
            (1_u8..5).prop_map(|n| SessionEvent::LeadLinked {
                lead_id: format!("l{n}").parse().unwrap()
            }),
            (0_u64..1000).prop_map(|n| SessionEvent::Usage(Usage {
                tts_characters: n,
                llm_requests: 1,
                ..Usage::default()
            })),
            (1_u32..4, at.clone(), prop::option::of(0_u64..9_000)).prop_map(
                |(turn, answered_at, first_frame_ms)| SessionEvent::Turn(TurnRecord {
                    turn,
                    answered_at,
                    first_frame_ms,
                    ..TurnRecord::default()
                })
            ),
            (text, text, at.clone()).prop_map(|(arguments, result, at)| {
                SessionEvent::ToolUse(ToolUse::new("tool", &arguments, &result, false, at, 7))
            }),
            ("[0-9*#]{1,8}", at.clone())
                .prop_map(|(keys, typed_at)| SessionEvent::Keypad(KeypadInput { keys, typed_at })),
            at.clone().prop_map(|at| SessionEvent::Joined { at }),
            at.clone().prop_map(|at| SessionEvent::Ringing { at }),
            at.clone().prop_map(|at| SessionEvent::Answered { at }),
            Just(SessionEvent::CallerReplaced),
            (text, at.clone(), 0_u64..9_000).prop_map(|(reason, decided_at, after_ms)| {
                SessionEvent::AnswerDetected(AnswerDetection {
                    answered_by: crate::session::AnsweredBy::Voicemail,
                    reason,
                    decided_at,
                    after_ms,
                })
            }),
            at.clone()
                .prop_map(|left_at| SessionEvent::MessageLeft { left_at }),
            text.prop_map(|outcome| SessionEvent::AgentOutcome { outcome }),
            (at.clone(), prop::option::of(text)).prop_map(|(at, reason)| {
                SessionEvent::CallbackWanted {
                    callback: Callback { at, reason },
                }
            }),
            prop::option::of(text).prop_map(|reason| SessionEvent::DoNotCall(DoNotCall { reason })),
            (at.clone(), 400_u16..700).prop_map(|(at, code)| SessionEvent::Dial(Dial {
                asked_at: Some(at),
                sip_status: Some(code),
                outcome: Some(crate::session::DialOutcome::of_sip_status(code)),
                ..Dial::default()
            })),
            (text, text).prop_map(|(identity, metadata)| SessionEvent::Participant(
                CallParticipant::new(&identity, "", &metadata, &Default::default())
            )),
            (text, at)
                .prop_map(|(error, at)| SessionEvent::Outcome(Outcome::recovered(error, Some(at)))),
        ]
    }

    proptest! {
        /// The journal is the call: what its lines tell is exactly what the running call knew.
        #[test]
        fn a_replayed_journal_is_the_same_call(events in prop::collection::vec(any_event(), 0..30)) {
            let lines = Lines::default();
            let mut live = SessionManager::with_sink(start(), Box::new(lines.clone()));
            for event in events {
                match event {
                    SessionEvent::CallMetadata(metadata) => live.set_call_metadata(metadata),
                    SessionEvent::CampaignMetadata { metadata } => live.set_campaign_metadata(metadata),
                    SessionEvent::Recording(recording) => live.set_recording_metadata(recording),
                    SessionEvent::Item(item) => live.commit_item(item),
                    SessionEvent::LeadFile { path } => live.set_lead_file_path(&path),
                    SessionEvent::LeadLinked { lead_id } => live.link_lead_to_session(&lead_id),
                    SessionEvent::Intent(intent) => live.add_intent(intent),
                    SessionEvent::Keypad(input) => live.add_keypad_input(input),
                    SessionEvent::ToolUse(used) => live.add_tool_use(used),
                    SessionEvent::Usage(usage) => live.add_usage(usage),
                    SessionEvent::Turn(turn) => live.set_turn(turn),
                    SessionEvent::Joined { at } => live.set_joined(at),
                    SessionEvent::Participant(participant) => live.set_participant(participant),
                    SessionEvent::Ringing { at } => live.set_ringing(at),
                    SessionEvent::Answered { at } => live.set_answered(at),
                    SessionEvent::CallerReplaced => live.replace_caller(),
                    SessionEvent::AnswerDetected(answer) => live.set_answer(answer),
                    SessionEvent::MessageLeft { left_at } => live.set_message_left(left_at),
                    SessionEvent::AgentOutcome { outcome } => live.set_agent_outcome(outcome),
                    SessionEvent::CallbackWanted { callback } => live.set_callback(callback),
                    SessionEvent::DoNotCall(do_not_call) => live.set_do_not_call(do_not_call),
                    SessionEvent::Dial(dial) => live.set_dial(dial),
                    SessionEvent::Outcome(outcome) => live.set_outcome(outcome),
                    SessionEvent::Dispatched(_) => {}
                }
            }
            let lines = lines.0.lock().unwrap();
            let replayed = SessionManager::replay(lines.iter().map(|line| serde_json::from_str(line).unwrap())).unwrap();
            prop_assert_eq!(replayed.get_complete_session_data(), live.get_complete_session_data());
        }
    }

    #[test]
    fn what_the_call_has_added_outlives_a_second_fetch_of_the_campaign() {
        let mut session = SessionManager::new(start());
        session.set_campaign_metadata(
            json!({ "egressId": "EG_theirs", "a": 1 })
                .as_object()
                .unwrap()
                .clone(),
        );
        assert_eq!(session.get_campaign_metadata()["egressId"], "EG_theirs");
        session.set_lead_file_path("leads/1.json");
        session.set_recording_metadata(RecordingMetadata {
            egress_id: Some("EG_ours".to_owned()),
            ..RecordingMetadata::default()
        });
        session.set_campaign_metadata(json!({ "a": 2 }).as_object().unwrap().clone());
        let expected = json!({ "a": 2, "egressId": "EG_ours", "lead_file": "leads/1.json" });
        assert_eq!(Value::Object(session.get_campaign_metadata()), expected);
    }

    #[test]
    fn the_first_outcome_stands_and_what_is_known_is_not_unlearnt() {
        let mut session = SessionManager::new(start());
        let number = Some("+15550100123".to_owned());
        session.set_call_metadata(CallMetadata {
            dialed_number: number.clone(),
            ..CallMetadata::default()
        });
        session.set_call_metadata(CallMetadata {
            persona: Some("pumps".to_owned()),
            ..CallMetadata::default()
        });
        assert_eq!(session.get_call_metadata().dialed_number, number);
        session.set_outcome(Outcome {
            call_status: CallStatus::Busy,
            ..Outcome::recovered("first", None)
        });
        session.set_outcome(Outcome::recovered("second", None));
        assert_eq!(
            session.outcome().and_then(|o| o.error.as_deref()),
            Some("first")
        );
    }

    #[test]
    fn a_client_that_changes_its_attributes_for_ever_does_not_fill_the_journal() {
        let lines = Lines::default();
        let mut session = SessionManager::with_sink(start(), Box::new(lines.clone()));
        for number in 0..1000 {
            for _ in 0..2 {
                let attributes = [("n".to_owned(), number.to_string())].into();
                session.set_participant(CallParticipant::new("caller", "", "", &attributes));
            }
        }
        assert_eq!(lines.0.lock().unwrap().len(), 1 + MOST_PARTICIPANT_CHANGES);
    }

    #[test]
    fn the_call_begins_with_the_caller_and_not_with_who_was_taken_for_the_caller() {
        let mut session = SessionManager::new(start());
        let at = |second| start().call_start + chrono::TimeDelta::seconds(second);
        session.set_answered(at(1));
        session.commit_item(ConversationItem::assistant("Hello.", at(2)));
        session.replace_caller();
        session.set_answered(at(20));
        session.commit_item(ConversationItem::assistant("Hello.", at(21)));
        let data = session.get_complete_session_data();
        assert_eq!(data.answered_at(), Some(at(20)));
        assert_eq!(data.items.len(), 1);
    }

    #[test]
    fn a_journal_without_its_dispatch_is_no_call() {
        assert!(SessionManager::replay([]).is_none());
        assert!(
            SessionManager::replay([SessionEvent::Answered {
                at: start().call_start
            }])
            .is_none()
        );
    }
}
