//! What is known about one call, from its dispatch to its end.
//!
//! [`SessionManager`] holds it while the call runs; [`CallRecord`] is what stays on disk and goes
//! to the CRM. This module knows no network, no LiveKit, no files and no tasks: the store gives it
//! a sink for its events and reads the record out of it.

mod answer;
mod campaign;
mod context;
mod dial;
pub mod dispatch;
mod follow_up;
mod id;
mod lead;
mod life;
mod manager;
mod numbers;
mod record;
mod recording;
pub mod time;
mod tool_use;
mod transcript;
mod turn;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use answer::{AnswerDetection, AnsweredBy};
pub use campaign::{ATTEMPT_KEYS, CampaignIds};
pub use context::{CallContext, CallParticipant, Said, without_secrets};
pub use dial::{Dial, DialOutcome, PlacedBy};
pub use follow_up::{Callback, DoNotCall};
pub use id::{IdError, LeadId, SessionId, mask_numbers, sanitise};
pub use lead::Lead;
pub use life::{FiledRecord, JournalHolder, Stage, ToDo, Traces};
pub use manager::{
    CallMetadata, CallStart, CallStatus, CloseReason, CompleteSessionData, Direction, EventSink,
    Intent, KeypadInput, Outcome, SessionEvent, SessionManager, Usage,
};
pub use numbers::{Numbers, mask, mask_room_name};
pub use record::{
    ANOTHER_AGENT, Attempt, AttemptOutcome, CallDataDelivery, CallRecord, DeliveredRecording,
    DeliveryPart, PartState, Progress, RecordFiles, RecordOutcome, RecordStatus, RecordTimestamps,
    RecordUploads, RecordingDelivery, RoomRef, SCHEMA_VERSION, call_id_base, crm_payload,
};
pub use recording::{
    RecordingChange, RecordingEvidence, RecordingMetadata, RecordingSource, RecordingState,
};
pub use tool_use::ToolUse;
pub use transcript::{
    ConversationItem, ITEM_SOURCE, Role, TranscribedItem, Transcription, TranscriptionMetadata,
    TurnMetrics, said_in,
};
pub use turn::{TurnRecord, TurnVendors};
pub use watch::Watch;

/// The session of a running call, shared by everything that writes to it. A std mutex, because
/// every critical section is short and nothing inside one waits; never hold the guard across an
/// await.
pub type SharedSession = Arc<Mutex<SessionManager>>;

/// Locks the session. A panic in another holder does not take the call's record with it: every
/// mutation is one `apply` of one event, so the state is whole even then.
pub fn lock(session: &SharedSession) -> MutexGuard<'_, SessionManager> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}
