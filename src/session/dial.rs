//! What came of dialling a number. Pure.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::CallStatus;
use super::time;

/// What came of a call that was placed from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DialOutcome {
    /// Somebody, or something, has answered.
    Answered,
    /// The line is busy.
    Busy,
    /// The other party has declined the call.
    Declined,
    /// Nobody has answered, or the telephone cannot be reached now.
    NoAnswer,
    /// There is no such number.
    InvalidNumber,
    /// The trunk does not place the call: it refuses us, or is broken.
    TrunkFailed,
    /// The call failed for another reason.
    Failed,
}

impl DialOutcome {
    /// What the final status of the SIP call means (RFC 3261, section 21; 404, 484 and 604 are
    /// about the number, 401, 403 and 407 about us).
    pub fn of_sip_status(code: u16) -> Self {
        match code {
            200..=299 => Self::Answered,
            486 | 600 => Self::Busy,
            603 => Self::Declined,
            408 | 480 | 487 => Self::NoAnswer,
            404 | 484 | 604 => Self::InvalidNumber,
            401 | 403 | 407 | 500..=599 => Self::TrunkFailed,
            _ => Self::Failed,
        }
    }

    /// The same in the words that the CRM has always had.
    pub fn call_status(self) -> CallStatus {
        match self {
            Self::Answered => CallStatus::Completed,
            Self::Busy | Self::Declined => CallStatus::Busy,
            Self::NoAnswer => CallStatus::NoAnswer,
            Self::InvalidNumber | Self::TrunkFailed | Self::Failed => CallStatus::Failed,
        }
    }

    /// As records, CRM and logs have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Busy => "busy",
            Self::Declined => "declined",
            Self::NoAnswer => "no_answer",
            Self::InvalidNumber => "invalid_number",
            Self::TrunkFailed => "trunk_failed",
            Self::Failed => "failed",
        }
    }
}

/// Who has placed a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacedBy {
    /// The agent's own process.
    Agent,
    /// Somebody else, of whom only the telephone in the room is known.
    #[default]
    Other,
}

/// A call that was placed from here, and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dial {
    /// By whom.
    pub placed_by: PlacedBy,
    /// Over which trunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trunk_id: Option<String>,
    /// When it was asked for.
    #[serde(with = "time::option", skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<DateTime<Utc>>,
    /// When its outcome was known.
    #[serde(with = "time::option", skip_serializing_if = "Option::is_none")]
    pub known_at: Option<DateTime<Utc>>,
    /// What came of it; `None` while it rings, and in the record of a process that died meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<DialOutcome>,
    /// The final SIP status of a call that was not answered, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sip_status: Option<u16>,
    /// Its reason phrase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sip_reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sip_status_has_its_outcome_and_its_old_word() {
        use CallStatus::{Busy, Completed, Failed, NoAnswer};
        for (codes, outcome, status) in [
            (&[200, 202][..], "answered", Completed),
            (&[486, 600], "busy", Busy),
            (&[603], "declined", Busy),
            (&[408, 480, 487], "no_answer", NoAnswer),
            (&[404, 484, 604], "invalid_number", Failed),
            (
                &[401, 403, 407, 500, 502, 503, 504, 599],
                "trunk_failed",
                Failed,
            ),
            (&[0, 180, 302, 400, 488, 606, 999], "failed", Failed),
        ] {
            for code in codes {
                let known = DialOutcome::of_sip_status(*code);
                assert_eq!(known.name(), outcome, "{code}");
                assert_eq!(known.call_status(), status, "{code}");
                let written = serde_json::to_value(known).unwrap();
                assert_eq!(written, outcome, "the record has the same word");
            }
        }
    }
}
