//! What can be set of one campaign. Pure.

use std::collections::BTreeMap;
use std::fmt;

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::event::AttemptOutcome;
use super::window::Window;

/// The longest name of a campaign. It is a part of room names, which may have 256 bytes.
const LONGEST_NAME: usize = 60;
/// The highest `calls_per_second`: carriers allow single calls a second, not thousands.
const MOST_CALLS_PER_SECOND: f64 = 100.0;
/// The highest `concurrency`.
const MOST_CONCURRENT: u32 = 10_000;

/// The name of a campaign: its folder's, and a part of its room names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CampaignName(String);

impl CampaignName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for CampaignName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let good = !text.is_empty()
            && text.len() <= LONGEST_NAME
            && text.chars().all(fits)
            && !text.starts_with('-');
        match good {
            true => Ok(Self(text)),
            false => Err(format!(
                "{text:?} is no name of a campaign: it has at most {LONGEST_NAME} of a to z, 0 to 9 and -"
            )),
        }
    }
}

impl std::str::FromStr for CampaignName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

impl From<CampaignName> for String {
    fn from(name: CampaignName) -> Self {
        name.0
    }
}

impl fmt::Display for CampaignName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The settings of a campaign, as its file has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CampaignSettings {
    /// Its name.
    pub name: CampaignName,
    /// Who calls: the name of a persona. Absent: as for every call, by the numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persona: Option<String>,
    /// The name under which workers are registered. Absent: `livekit.agent_name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// LiveKit's id of the outbound trunk, `ST_…`. Absent: `dial.trunk_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trunk_id: Option<String>,
    /// The numbers that are shown, one call after the other in turn. Empty: `dial.caller_id`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caller_ids: Vec<String>,
    /// How long a telephone may ring, s. Absent: `dial.ringing_timeout_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ringing_timeout_s: Option<u64>,
    /// The CRM's id of the campaign. Absent: the persona's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crm_campaign_id: Option<String>,
    /// The zone of leads that name none, such as `Asia/Kolkata`.
    pub timezone: Tz,
    /// When people may be called, in their own zone. Has no default.
    pub window: Window,
    /// The most calls at the same time.
    #[serde(default = "default_concurrency")]
    pub concurrency: u32,
    /// The most calls begun in a second.
    #[serde(default = "default_calls_per_second")]
    pub calls_per_second: f64,
    /// Slots of all workers together. Absent: `worker.max_calls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// The share of the slots that is kept for calls that come in.
    #[serde(default = "default_inbound_share")]
    pub inbound_share: f64,
    /// Who is called again, and when.
    #[serde(default)]
    pub retry: Retry,
    /// When a sick trunk or provider is left alone.
    #[serde(default)]
    pub breaker: BreakerSettings,
}

fn default_concurrency() -> u32 {
    10
}

fn default_calls_per_second() -> f64 {
    1.0
}

fn default_inbound_share() -> f64 {
    0.2
}

/// Who is called again, and when. Each list has the delays before the first, second … call after
/// that outcome, s; where it ends, the lead is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// The most attempts for one lead.
    pub attempts: u32,
    /// The most attempts for one lead on one day of its own.
    pub attempts_per_day: u32,
    /// How often the wish to be called back counts for one lead. Each time its attempts count anew.
    pub callbacks: u32,
    /// The line was busy.
    pub busy: Vec<u64>,
    /// Nobody answered.
    pub no_answer: Vec<u64>,
    /// The call was declined.
    pub declined: Vec<u64>,
    /// There is no such number.
    pub invalid_number: Vec<u64>,
    /// The trunk did not place the call.
    pub trunk_failed: Vec<u64>,
    /// It failed for another reason.
    pub failed: Vec<u64>,
    /// Nobody knows what came of it: the dialler or the worker died.
    pub lost: Vec<u64>,
    /// Somebody answered, and the agent has set no outcome that is named below.
    pub answered: Vec<u64>,
    /// Somebody answered, and the agent has set this outcome.
    pub agent_outcome: BTreeMap<String, Vec<u64>>,
}

impl Default for Retry {
    fn default() -> Self {
        const MINUTE: u64 = 60;
        const HOUR: u64 = 60 * MINUTE;
        Self {
            attempts: 4,
            attempts_per_day: 2,
            callbacks: 3,
            busy: vec![5 * MINUTE, 15 * MINUTE, HOUR],
            no_answer: vec![2 * HOUR, 24 * HOUR, 48 * HOUR],
            declined: vec![],
            invalid_number: vec![],
            trunk_failed: vec![5 * MINUTE, HOUR, 4 * HOUR],
            failed: vec![15 * MINUTE, 4 * HOUR],
            lost: vec![HOUR],
            answered: vec![],
            agent_outcome: BTreeMap::new(),
        }
    }
}

impl Retry {
    /// The delays after an outcome, s.
    pub(super) fn delays(&self, outcome: AttemptOutcome, agent_outcome: Option<&str>) -> &[u64] {
        match outcome {
            AttemptOutcome::Answered => agent_outcome
                .and_then(|name| self.agent_outcome.get(name))
                .unwrap_or(&self.answered),
            AttemptOutcome::Busy => &self.busy,
            AttemptOutcome::NoAnswer => &self.no_answer,
            AttemptOutcome::Declined => &self.declined,
            AttemptOutcome::InvalidNumber => &self.invalid_number,
            AttemptOutcome::TrunkFailed => &self.trunk_failed,
            AttemptOutcome::Failed => &self.failed,
            AttemptOutcome::Lost => &self.lost,
            AttemptOutcome::NotPlaced => &[],
        }
    }
}

/// The circuit breaker: when too many of the last attempts have failed for reasons that are not the
/// callee's, nobody is called for a while, and then one lead as a test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerSettings {
    /// This share of them has failed.
    pub share: f64,
    /// How many of the last attempts are counted.
    pub attempts: usize,
    /// How long nobody is called then, s; it doubles with each test that fails.
    pub pause_s: u64,
    /// The longest of these pauses, s.
    pub max_pause_s: u64,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            share: 0.5,
            attempts: 10,
            pause_s: 120,
            max_pause_s: 1800,
        }
    }
}

impl CampaignSettings {
    /// Reads a campaign's file.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub fn read(text: &str) -> Result<Self, String> {
        let settings: Self =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), String> {
        let between = |key: &str, good: bool, what: &str| match good {
            true => Ok(()),
            false => Err(format!("{key} must be {what}")),
        };
        between(
            "concurrency",
            (1..=MOST_CONCURRENT).contains(&self.concurrency),
            &format!("from 1 to {MOST_CONCURRENT}"),
        )?;
        between(
            "calls_per_second",
            self.calls_per_second > 0.0 && self.calls_per_second <= MOST_CALLS_PER_SECOND,
            &format!("above 0 and at most {MOST_CALLS_PER_SECOND}"),
        )?;
        between(
            "inbound_share",
            (0.0..1.0).contains(&self.inbound_share),
            "from 0 to below 1",
        )?;
        between("retry.attempts", self.retry.attempts > 0, "at least 1")?;
        between(
            "retry.attempts_per_day",
            self.retry.attempts_per_day > 0,
            "at least 1",
        )?;
        between(
            "breaker.share",
            self.breaker.share > 0.0 && self.breaker.share <= 1.0,
            "above 0 and at most 1",
        )?;
        between(
            "breaker.attempts",
            (1..=1000).contains(&self.breaker.attempts),
            "from 1 to 1000",
        )?;
        between(
            "breaker.max_pause_s",
            self.breaker.pause_s > 0 && self.breaker.max_pause_s >= self.breaker.pause_s,
            "at least breaker.pause_s, which must be above 0",
        )
    }

    /// How many slots campaigns may use when the workers have so many: what is left beside the
    /// share that is kept for calls that come in.
    pub fn outbound_slots(&self, slots: u32) -> u32 {
        let kept = (f64::from(slots) * self.inbound_share).ceil() as u32;
        slots.saturating_sub(kept)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const SMALLEST: &str = "name = \"pumps\"\ntimezone = \"UTC\"\nwindow.preset = \"any-time\"\n";

    pub(in crate::campaign) fn settings(more: &str) -> CampaignSettings {
        CampaignSettings::read(&format!("{SMALLEST}{more}")).unwrap()
    }

    #[test]
    fn a_campaign_that_cannot_be_is_refused_by_its_key() {
        for (text, word) in [
            ("", "name"),
            ("name = \"Pumps!\"", "a to z"),
            ("name = \"pumps\"\ntimezone = \"Mars/Base\"", "timezone"),
            ("name = \"pumps\"\ntimezone = \"UTC\"", "window"),
            (
                "name = \"pumps\"\ntimezone = \"UTC\"\n[window]\n",
                "no hours",
            ),
            (&format!("{SMALLEST}concurency = 3"), "concurency"),
            (&format!("{SMALLEST}concurrency = 0"), "concurrency"),
            (
                &format!("{SMALLEST}calls_per_second = 0"),
                "calls_per_second",
            ),
            (&format!("{SMALLEST}inbound_share = 1.0"), "inbound_share"),
            (&format!("{SMALLEST}retry.attempts = 0"), "retry.attempts"),
            (&format!("{SMALLEST}retry.bussy = [1]"), "bussy"),
            (&format!("{SMALLEST}breaker.share = 2"), "breaker.share"),
        ] {
            let problem = CampaignSettings::read(text).unwrap_err();
            assert!(problem.contains(word), "{text}: {problem}");
        }
    }

    #[test]
    fn settings_in_a_journal_are_read_as_they_were_written() {
        let all = settings("persona = \"p\"\nslots = 5\nretry.agent_outcome.voicemail = [60]");
        let line = serde_json::to_string(&all).unwrap();
        let read: CampaignSettings = serde_json::from_str(&line).unwrap();
        assert_eq!(read, all);
    }

    #[test]
    fn slots_are_kept_for_calls_that_come_in() {
        for (slots, share, left) in [
            (10, 0.2, 8),
            (5, 0.2, 4),
            (4, 0.2, 3),
            (1, 0.2, 0),
            (3, 0.0, 3),
        ] {
            let all = settings(&format!("inbound_share = {share}"));
            assert_eq!(all.outbound_slots(slots), left, "{slots} {share}");
        }
    }
}
