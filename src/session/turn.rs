//! What one answered turn took, and what it has cost.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Usage, time};

/// Who did each part of a turn: vendor and model, as the settings name them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TurnVendors {
    /// Speech recognition; none for a turn that was typed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stt: Option<String>,
    /// The language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm: Option<String>,
    /// Speech synthesis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tts: Option<String>,
}

/// One turn of the caller that the agent has answered aloud. Journal, conversation file and
/// timeline have it.
///
/// All durations are milliseconds since the end of the caller's speech; what did not happen, or
/// happened for a turn that was typed, is absent. An answer that is begun early may have its first
/// token before the end of the turn is decided.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TurnRecord {
    /// Counted from 1 in the call.
    pub turn: u32,
    /// When the first sound of the answer went out. Not "at": that is when a journal's line was
    /// written.
    #[serde(with = "time")]
    pub answered_at: DateTime<Utc>,
    /// Until the caller's words were final.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_text_ms: Option<u64>,
    /// Until it was decided that the turn is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_of_turn_ms: Option<u64>,
    /// Until the model's first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<u64>,
    /// Until the first sound came from speech synthesis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<u64>,
    /// Until the first frame of the answer was handed to the room: what the caller waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_frame_ms: Option<u64>,
    /// The answer was cut off.
    pub interrupted: bool,
    /// Who did it.
    pub vendors: TurnVendors,
    /// What it has cost, answers that were begun in vain included.
    pub usage: Usage,
}

impl TurnRecord {
    /// Puts the turn where it belongs among those before it. A turn is written when its answer
    /// begins to be heard, and again, with all that it has cost, when that is over.
    pub(super) fn put_into(&self, turns: &mut Vec<Self>) {
        match turns.last_mut().filter(|last| last.turn == self.turn) {
            Some(last) => last.clone_from(self),
            None => turns.push(self.clone()),
        }
    }
}
