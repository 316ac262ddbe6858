//! What happens in a campaign: the lines of its journal. Pure.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::number::DialNumber;
use super::settings::{CampaignName, CampaignSettings};
use crate::session::{DialOutcome, time};

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// Somebody, or something, has answered.
    Answered,
    /// The line was busy.
    Busy,
    /// The other party has declined the call.
    Declined,
    /// Nobody has answered.
    NoAnswer,
    /// There is no such number.
    InvalidNumber,
    /// The trunk did not place the call.
    TrunkFailed,
    /// It failed for another reason.
    Failed,
    /// Nobody knows: the dialler died while it gave the attempt to a worker, or a worker's record
    /// never came. It counts as an attempt, because a telephone may have rung.
    Lost,
    /// No worker has taken it, so that nobody was called. Does not count as an attempt.
    NotPlaced,
}

impl AttemptOutcome {
    /// How many there are.
    pub(super) const COUNT: usize = 9;

    /// As journal, CSV and logs have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Busy => "busy",
            Self::Declined => "declined",
            Self::NoAnswer => "no_answer",
            Self::InvalidNumber => "invalid_number",
            Self::TrunkFailed => "trunk_failed",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::NotPlaced => "not_placed",
        }
    }
}

impl From<DialOutcome> for AttemptOutcome {
    fn from(outcome: DialOutcome) -> Self {
        match outcome {
            DialOutcome::Answered => Self::Answered,
            DialOutcome::Busy => Self::Busy,
            DialOutcome::Declined => Self::Declined,
            DialOutcome::NoAnswer => Self::NoAnswer,
            DialOutcome::InvalidNumber => Self::InvalidNumber,
            DialOutcome::TrunkFailed => Self::TrunkFailed,
            DialOutcome::Failed => Self::Failed,
        }
    }
}

/// The end of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptResult {
    /// What came of it.
    pub outcome: AttemptOutcome,
    /// The final status of a SIP call that was not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sip_status: Option<u16>,
    /// The call's session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The outcome that the agent has set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_outcome: Option<String>,
    /// When the callee wants to be called again.
    #[serde(
        default,
        with = "time::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub callback: Option<DateTime<Utc>>,
    /// The callee does not want to be called again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub do_not_call: bool,
    /// It was the trunk's, a provider's or our own fault.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sick: bool,
    /// A sentence about what went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl AttemptResult {
    /// An outcome of which nothing more is known.
    pub fn only(outcome: AttemptOutcome) -> Self {
        Self {
            outcome,
            sip_status: None,
            session_id: None,
            agent_outcome: None,
            callback: None,
            do_not_call: false,
            sick: outcome == AttemptOutcome::TrunkFailed,
            error: None,
        }
    }
}

/// One attempt to reach one lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// The lead, by its place in the list.
    pub lead: u32,
    /// Its how manieth, from 1.
    pub attempt: u32,
}

/// What the rooms of a campaign's attempts begin with.
pub fn room_prefix(name: &CampaignName) -> String {
    format!("campaign-{name}-")
}

impl Attempt {
    /// Its id, which is the name of its room: the same whoever computes it.
    pub fn id(self, name: &CampaignName) -> String {
        format!("{}{}-{}", room_prefix(name), self.lead, self.attempt)
    }

    /// The attempt that this room of the campaign is for.
    pub fn of_room(room: &str, name: &CampaignName) -> Option<Self> {
        let (lead, attempt) = room.strip_prefix(&room_prefix(name))?.split_once('-')?;
        let found = Self {
            lead: lead.parse().ok()?,
            attempt: attempt.parse().ok()?,
        };
        (found.id(name) == room).then_some(found)
    }
}

/// A lead as it is imported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImportedLead {
    /// Its number.
    pub number: DialNumber,
    /// Its id in the list that it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lead_id: Option<String>,
    /// Its zone, if it has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<Tz>,
    /// All that the list says of it. The agent is told, and the record has it.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub data: Map<String, Value>,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum CampaignEvent {
    /// The campaign exists; always the first.
    Created {
        /// Its settings.
        settings: Box<CampaignSettings>,
    },
    /// A lead was added to the list, unless its number is there already.
    Imported(ImportedLead),
    /// Calls may begin.
    Started,
    /// No call begins any more until it is resumed.
    Paused,
    /// Calls may begin again.
    Resumed,
    /// No call ever begins again.
    Stopped,
    /// An attempt is about to be given to a worker. It is on the disk before the server is asked.
    AttemptStarted(Attempt),
    /// A worker has it.
    AttemptPlaced(Attempt),
    /// It is over.
    AttemptEnded {
        /// Which.
        #[serde(flatten)]
        attempt: Attempt,
        /// What came of it.
        #[serde(flatten)]
        result: AttemptResult,
    },
    /// A lead is to be called at this time.
    CallbackSet {
        /// Which.
        lead: u32,
        /// When.
        #[serde(rename = "callback", with = "time")]
        when: DateTime<Utc>,
    },
    /// A lead is never to be called: its number is on the do-not-call list.
    DoNotCall {
        /// Which.
        lead: u32,
    },
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When it happened.
    #[serde(with = "time")]
    pub at: DateTime<Utc>,
    /// What happened.
    #[serde(flatten)]
    pub event: CampaignEvent,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_found_by_the_name_of_its_room() {
        let name: CampaignName = "pumps-7".parse().unwrap();
        let attempt = Attempt {
            lead: 12,
            attempt: 3,
        };
        assert_eq!(attempt.id(&name), "campaign-pumps-7-12-3");
        assert_eq!(
            Attempt::of_room("campaign-pumps-7-12-3", &name),
            Some(attempt)
        );
        let other: CampaignName = "pumps".parse().unwrap();
        for room in [
            "campaign-pumps-7-12-3",
            "campaign-pumps-+1-2",
            "campaign-pumps-01-2",
            "x",
        ] {
            assert_eq!(Attempt::of_room(room, &other), None, "{room}");
        }
    }

    #[test]
    fn every_event_is_read_as_it_was_written() {
        let attempt = Attempt {
            lead: 0,
            attempt: 1,
        };
        let at: DateTime<Utc> = "2026-11-30T09:00:00Z".parse().unwrap();
        let result = AttemptResult {
            sip_status: Some(486),
            session_id: Some("session_1".into()),
            agent_outcome: Some("sold".into()),
            callback: Some(at),
            do_not_call: true,
            sick: true,
            error: Some("why".into()),
            ..AttemptResult::only(AttemptOutcome::Busy)
        };
        let lead = ImportedLead {
            number: serde_json::from_str("\"+15550100123\"").unwrap(),
            lead_id: Some("L-1".into()),
            timezone: Some(Tz::Asia__Kolkata),
            data: Map::from_iter([("event".to_owned(), "fair".into())]),
        };
        let settings = Box::new(super::super::settings::tests::settings(""));
        for event in [
            CampaignEvent::Created { settings },
            CampaignEvent::Imported(lead),
            CampaignEvent::Started,
            CampaignEvent::AttemptStarted(attempt),
            CampaignEvent::AttemptPlaced(attempt),
            CampaignEvent::AttemptEnded { attempt, result },
            CampaignEvent::CallbackSet { lead: 0, when: at },
            CampaignEvent::DoNotCall { lead: 0 },
            CampaignEvent::Stopped,
        ] {
            let line = Line { at, event };
            let text = serde_json::to_string(&line).unwrap();
            let read: Line = serde_json::from_str(&text).unwrap();
            assert_eq!(read, line, "{text}");
        }
    }
}
