//! What is asked of `voicebot calls`: which calls, and how they are shown.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use clap::{Args, ValueEnum};

use crate::ledger::{CallFilter, Standing};
use crate::session::{CallStatus, time};

#[derive(Debug, Args)]
pub struct ListArguments {
    /// Only calls that stand like this; may be given several times
    #[arg(long, value_enum)]
    pub status: Vec<StatusArgument>,
    /// Only calls of which this became; may be given several times
    #[arg(long, value_enum)]
    pub outcome: Vec<OutcomeArgument>,
    /// Only calls that began since then: 30m, 12h, 7d, 2026-11-21 or 2026-11-21T10:00:00Z (UTC)
    #[arg(long, value_parser = parse_since, value_name = "TIME")]
    pub since: Option<DateTime<Utc>>,
    /// Only calls with a number that ends in these digits
    #[arg(long, value_parser = parse_digits)]
    pub number: Option<String>,
    /// At most this many; 0: all
    #[arg(long, default_value_t = 50, value_name = "CALLS")]
    pub limit: usize,
    /// One JSON object a line instead of a table
    #[arg(long)]
    pub json: bool,
    /// Show telephone numbers whole
    #[arg(long)]
    pub numbers: bool,
}

impl ListArguments {
    /// Which calls are meant.
    pub fn filter(&self) -> CallFilter {
        CallFilter {
            standings: self.status.iter().map(|status| (*status).into()).collect(),
            outcomes: self
                .outcome
                .iter()
                .map(|outcome| (*outcome).into())
                .collect(),
            since: self.since,
            number: self.number.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub struct ShowArguments {
    /// The id of a session, call, job, egress, lead or room, the name of a room, or a number
    pub id: String,
    /// Look in MongoDB alone; without this, it is asked for calls that are not in the data folder
    #[arg(long)]
    pub mongodb: bool,
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// Show telephone numbers whole
    #[arg(long)]
    pub numbers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatusArgument {
    /// Somebody is on the line
    Running,
    /// The process died and no worker has made the record yet
    Interrupted,
    /// Not delivered yet
    Waiting,
    /// Refused by the CRM
    Failed,
    /// Delivered
    Archived,
}

impl From<StatusArgument> for Standing {
    fn from(argument: StatusArgument) -> Self {
        match argument {
            StatusArgument::Running => Self::Running,
            StatusArgument::Interrupted => Self::Interrupted,
            StatusArgument::Waiting => Self::Waiting,
            StatusArgument::Failed => Self::Failed,
            StatusArgument::Archived => Self::Archived,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum OutcomeArgument {
    Completed,
    NoAnswer,
    Busy,
    Failed,
    Voicemail,
    Recovered,
}

impl From<OutcomeArgument> for CallStatus {
    fn from(argument: OutcomeArgument) -> Self {
        match argument {
            OutcomeArgument::Completed => Self::Completed,
            OutcomeArgument::NoAnswer => Self::NoAnswer,
            OutcomeArgument::Busy => Self::Busy,
            OutcomeArgument::Failed => Self::Failed,
            OutcomeArgument::Voicemail => Self::Voicemail,
            OutcomeArgument::Recovered => Self::Recovered,
        }
    }
}

pub fn parse_since(text: &str) -> Result<DateTime<Utc>, String> {
    since(text, Utc::now()).ok_or_else(|| {
        "give a length such as 30m, 12h or 7d, a day such as 2026-11-21, or a time such as 2026-11-21T10:00:00Z"
            .to_owned()
    })
}

fn since(text: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if let Some(time) = time::parse(text) {
        return Some(time);
    }
    if let Ok(day) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Some(day.and_hms_opt(0, 0, 0)?.and_utc());
    }
    let unit = text.chars().last()?;
    let count: i64 = text.strip_suffix(unit)?.parse().ok().filter(|n| *n >= 0)?;
    let length = match unit {
        's' => TimeDelta::try_seconds(count),
        'm' => TimeDelta::try_minutes(count),
        'h' => TimeDelta::try_hours(count),
        'd' => TimeDelta::try_days(count),
        _ => None,
    }?;
    now.checked_sub_signed(length)
}

pub fn parse_digits(text: &str) -> Result<String, String> {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if digits.is_empty() {
        Err("give the number, or its last digits".to_owned())
    } else {
        Ok(digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_given_as_a_length_a_day_or_a_moment() {
        let now: DateTime<Utc> = "2026-11-21T10:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("90s", Some("2026-11-21T09:58:30Z")),
            ("30m", Some("2026-11-21T09:30:00Z")),
            ("12h", Some("2026-11-20T22:00:00Z")),
            ("7d", Some("2026-11-14T10:00:00Z")),
            ("2026-11-20", Some("2026-11-20T00:00:00Z")),
            ("2026-11-20T05:30:00+05:30", Some("2026-11-20T00:00:00Z")),
            ("2026-11-20 08:00:00", Some("2026-11-20T08:00:00Z")),
            ("-1d", None),
            ("yesterday", None),
            ("99999999999999d", None),
            ("7ü", None),
            ("", None),
        ] {
            let expected: Option<DateTime<Utc>> = expected.map(|text| text.parse().unwrap());
            assert_eq!(since(text, now), expected, "{text}");
        }
    }
}
