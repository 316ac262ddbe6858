//! `schedule_callback`: notes when the other party wants to be called again. Whoever dials reads it
//! in the record.

use async_trait::async_trait;
use chrono::{DateTime, NaiveDateTime, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{Context, Tool, ToolDefinition, ToolOutput};
use crate::session::{self, Callback, time};

pub(super) const NAME: &str = "schedule_callback";

/// The furthest callback, in days: beyond it, the model has the year wrong.
const MAX_DAYS: i64 = 366;

/// Times without a zone, as models write them.
const LOCAL: [&str; 6] = [
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d %I:%M %p",
    "%Y-%m-%d %I:%M%p",
];

pub(super) struct ScheduleCallback;

#[async_trait]
impl Tool for ScheduleCallback {
    fn name(&self) -> &'static str {
        NAME
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: NAME.to_owned(),
            description: "Note when the person wants to be called again. Ask for day and time first, and repeat them. A later call of this \
                          tool replaces the time."
                .to_owned(),
            parameters: json!({
                "type": "object",
                "properties": {
                    "at": { "type": "string", "description": "Day and time, such as 2026-03-01T17:00; with an offset if the person's time zone is another one" },
                    "reason": { "type": "string", "description": "What the call is to be about, if they have said so" },
                },
                "required": ["at"],
                "additionalProperties": false,
            }),
        }
    }

    async fn call(&self, context: &Context, arguments: Map<String, Value>) -> ToolOutput {
        let mut fields = Fields::of(&arguments);
        let wanted = fields.required("at", "when they want to be called");
        let reason = fields.optional("reason");
        if let Some(problems) = fields.problems() {
            return ToolOutput::refused(format!(
                "the callback was not noted: {problems}. Call {NAME} again."
            ));
        }
        let zone = context.follow_up.zone();
        match callback_at(&wanted, zone, time::now()) {
            Ok(at) => {
                let reason = Some(reason).filter(|reason| !reason.is_empty());
                session::lock(&context.session).set_callback(Callback { at, reason });
                ToolOutput::done(format!("Noted: a callback on {}.", in_words(at, zone)))
            }
            Err(problem) => ToolOutput::refused(format!(
                "the callback was not noted: {problem}. Call {NAME} again."
            )),
        }
    }
}

/// A time for the model, in `zone`.
pub(super) fn in_words(at: DateTime<Utc>, zone: Tz) -> String {
    let there = at.with_timezone(&zone);
    format!("{} ({})", there.format("%A, %Y-%m-%d %H:%M"), zone.name())
}

/// The time that the model means; the rest of a sentence when it cannot be meant.
fn callback_at(text: &str, zone: Tz, now: DateTime<Utc>) -> Result<DateTime<Utc>, String> {
    let text = text.trim();
    let at = match DateTime::parse_from_rfc3339(text) {
        Ok(at) => at.to_utc(),
        Err(_) => {
            let mut readings = LOCAL
                .iter()
                .filter_map(|form| NaiveDateTime::parse_from_str(text, form).ok());
            let local = readings.next().ok_or(
                "at must be a day and a time such as 2026-03-01T17:00; ask for what is missing",
            )?;
            // A time that a change of clocks leaves out is an hour later; one that there is twice
            // is the earlier one.
            let in_zone = |local: NaiveDateTime| zone.from_local_datetime(&local).earliest();
            in_zone(local)
                .or_else(|| in_zone(local + TimeDelta::hours(1)))
                .ok_or("there is no such time")?
                .to_utc()
        }
    };
    let is_now = || in_words(now, zone);
    if at <= now {
        return Err(format!("that time is over; it is now {}", is_now()));
    }
    if at > now + TimeDelta::days(MAX_DAYS) {
        return Err(format!(
            "that is more than a year away; it is now {}",
            is_now()
        ));
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_models_write_them() {
        let now: DateTime<Utc> = "2026-03-01T10:00:00Z".parse().unwrap();
        for (text, zone, expected) in [
            (
                "2026-03-02T17:00:00Z",
                "Asia/Kolkata",
                Some("2026-03-02T17:00:00Z"),
            ),
            (
                "2026-03-02T17:00:00+05:30",
                "UTC",
                Some("2026-03-02T11:30:00Z"),
            ),
            (
                "2026-03-02T17:00",
                "Asia/Kolkata",
                Some("2026-03-02T11:30:00Z"),
            ),
            (
                "2026-03-02 17:00:00",
                "Asia/Kolkata",
                Some("2026-03-02T11:30:00Z"),
            ),
            (
                " 2026-03-02 5:00 PM ",
                "Asia/Kolkata",
                Some("2026-03-02T11:30:00Z"),
            ),
            // New York changes its clocks at 02:00 on 8 March, and back on 1 November.
            (
                "2026-03-08T02:30",
                "America/New_York",
                Some("2026-03-08T07:30:00Z"),
            ),
            (
                "2026-11-01T01:30",
                "America/New_York",
                Some("2026-11-01T05:30:00Z"),
            ),
            ("2026-03-01T09:59:00Z", "UTC", None),
            ("2026-03-01T15:00", "Asia/Kolkata", None),
            ("2028-03-02T17:00:00Z", "UTC", None),
            ("2026-03-02", "UTC", None),
            ("tomorrow at five", "UTC", None),
            ("2026-02-30T10:00", "UTC", None),
        ] {
            let at = callback_at(text, zone.parse().unwrap(), now);
            let expected = expected.map(|at| at.parse::<DateTime<Utc>>().unwrap());
            assert_eq!(at.clone().ok(), expected, "{text} in {zone}: {at:?}");
        }
        let past = callback_at("2025-03-02T17:00", "Asia/Kolkata".parse().unwrap(), now);
        assert_eq!(
            past.unwrap_err(),
            "that time is over; it is now Sunday, 2026-03-01 15:30 (Asia/Kolkata)"
        );
    }
}
