//! Who has answered a call that was placed from here. Pure.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::time;

/// Who, or what, has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnsweredBy {
    /// A person.
    Human,
    /// A machine that takes messages.
    Voicemail,
    /// A menu, or another machine that wants something of the caller.
    Ivr,
    /// An announcement that the other party cannot be reached.
    Unavailable,
    /// A machine that takes no more messages.
    MailboxFull,
    /// A fax machine.
    Fax,
    /// Nobody has said anything.
    NoSpeech,
}

impl AnsweredBy {
    /// As records, CRM and logs have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Voicemail => "voicemail",
            Self::Ivr => "ivr",
            Self::Unavailable => "unavailable",
            Self::MailboxFull => "mailbox_full",
            Self::Fax => "fax",
            Self::NoSpeech => "no_speech",
        }
    }

    /// Whether it is a machine.
    pub fn is_machine(self) -> bool {
        !matches!(self, Self::Human | Self::NoSpeech)
    }
}

/// What was found out about who has answered. A later one replaces it: a voicemail may begin like a
/// person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerDetection {
    /// Who it is.
    pub answered_by: AnsweredBy,
    /// What told: `short_greeting`, `words`, `beep` and the like.
    pub reason: String,
    /// When it was decided.
    #[serde(with = "time")]
    pub decided_at: DateTime<Utc>,
    /// How long after the answer, ms.
    pub after_ms: u64,
}
