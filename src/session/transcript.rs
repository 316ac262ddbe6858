//! What was said: the items of a conversation, and the `transcription` object that files and CRM
//! get.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::time;
use super::{CompleteSessionData, SessionId, TurnRecord};

/// Where an item comes from, in the original's word; the CRM reads it.
pub const ITEM_SOURCE: &str = "livekit-session";

/// Who said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The caller.
    User,
    /// The agent.
    Assistant,
}

/// What was measured around one item. All durations are milliseconds; what was not measured is
/// absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TurnMetrics {
    /// When the speaker was first heard (caller) or first played (agent).
    #[serde(with = "time::option", skip_serializing_if = "Option::is_none")]
    pub started_speaking_at: Option<DateTime<Utc>>,
    /// When the speaker stopped.
    #[serde(with = "time::option", skip_serializing_if = "Option::is_none")]
    pub stopped_speaking_at: Option<DateTime<Utc>>,
    /// From the end of the caller's speech to its final transcript.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transcription_delay_ms: Option<u64>,
    /// From the end of the caller's speech to the decision that the turn is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_of_turn_delay_ms: Option<u64>,
    /// From the request to the model to its first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm_ttft_ms: Option<u64>,
    /// From the first sentence sent to speech synthesis to its first sound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tts_ttfb_ms: Option<u64>,
    /// From the first sound received to the first sound played.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub playback_latency_ms: Option<u64>,
    /// From the end of the caller's speech to the first sound of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e2e_latency_ms: Option<u64>,
}

/// One thing that was said, as it was heard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConversationItem {
    /// Who said it.
    pub role: Role,
    /// The words. For the agent: those that were played.
    pub content: String,
    /// When it was committed.
    #[serde(with = "time")]
    pub timestamp: DateTime<Utc>,
    /// The recogniser's own estimate, 0 to 1; absent when it gives none.
    #[serde(default)]
    pub transcript_confidence: Option<f32>,
    /// The agent was cut off while saying this.
    #[serde(default)]
    pub interrupted: bool,
    /// What was measured, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<TurnMetrics>,
}

impl ConversationItem {
    /// Something the caller said.
    pub fn user(content: impl Into<String>, timestamp: DateTime<Utc>) -> Self {
        Self {
            role: Role::User,
            content: content.into(),
            timestamp,
            transcript_confidence: None,
            interrupted: false,
            metrics: None,
        }
    }

    /// Something the agent said.
    pub fn assistant(content: impl Into<String>, timestamp: DateTime<Utc>) -> Self {
        Self {
            role: Role::Assistant,
            ..Self::user(content, timestamp)
        }
    }
}

/// The conversation file: the `transcription` object of the CRM contract, and per item what was
/// measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transcription {
    /// The session that this was said in.
    pub session_id: SessionId,
    /// When the call started.
    #[serde(with = "time")]
    pub start_time: DateTime<Utc>,
    /// When it ended.
    #[serde(with = "time")]
    pub end_time: DateTime<Utc>,
    /// Whole seconds that the two could talk: from the answer to the end; none when nobody
    /// answered.
    pub duration_seconds: u64,
    /// Number of items below.
    pub total_items: usize,
    /// What was said, in order.
    pub conversation_items: Vec<TranscribedItem>,
    /// Whether at least one lead was taken.
    pub lead_generated: bool,
    /// How the file came to be.
    pub metadata: TranscriptionMetadata,
    /// What each answered turn took and has cost. Not for the CRM, which gets the sums.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<TurnRecord>,
}

/// An item with its source, as files and CRM name it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TranscribedItem {
    /// The item itself.
    #[serde(flatten)]
    pub item: ConversationItem,
    /// Always [`ITEM_SOURCE`] for our own items.
    pub source: String,
}

/// The original's note on a conversation file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TranscriptionMetadata {
    /// Saved by the worker, not by hand.
    pub auto_saved: bool,
}

/// The items of a conversation file; some of the original's have them under another name. None if
/// the file has neither.
pub fn said_in(conversation: &Value) -> &[Value] {
    ["conversation_items", "items"]
        .iter()
        .find_map(|name| conversation[name].as_array())
        .map_or(&[], Vec::as_slice)
}

impl Transcription {
    /// The transcription of a call that ended at `call_end`.
    pub fn of(session: &CompleteSessionData, call_end: DateTime<Utc>) -> Self {
        Self {
            session_id: session.start.session_id.clone(),
            start_time: session.start.call_start,
            end_time: call_end,
            duration_seconds: session
                .answered_at()
                .map_or(0, |answered| time::seconds_between(answered, call_end)),
            total_items: session.items.len(),
            conversation_items: session
                .items
                .iter()
                .map(|item| TranscribedItem {
                    item: item.clone(),
                    source: ITEM_SOURCE.to_owned(),
                })
                .collect(),
            lead_generated: !session.lead_files.is_empty(),
            metadata: TranscriptionMetadata { auto_saved: true },
            turns: session.turns.clone(),
        }
    }
}
