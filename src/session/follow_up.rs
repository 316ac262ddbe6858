//! What is to follow a call, as the model has understood the other party. Pure.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::time;

/// When the other party wants to be called again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// When.
    #[serde(with = "time")]
    pub at: DateTime<Utc>,
    /// What about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The other party does not want to be called again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoNotCall {
    /// In their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
