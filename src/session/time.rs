//! Times as the files have them: RFC 3339 in UTC with `Z`, to the millisecond; and the odd ones
//! that old files have.

use chrono::{DateTime, NaiveDateTime, SecondsFormat, SubsecRound, Utc};
use serde::{Deserialize, Deserializer, Serializer};

/// `2025-10-29T11:39:20.000Z`.
pub fn format(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Reads RFC 3339, and what Python's `isoformat() + "Z"` makes of naive and of aware times
/// (`…+00:00Z`). A time without any zone is UTC.
pub fn parse(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.with_timezone(&Utc));
    }
    let without_z = text.strip_suffix(['Z', 'z']).unwrap_or(text);
    if let Ok(time) = DateTime::parse_from_rfc3339(without_z) {
        return Some(time.with_timezone(&Utc));
    }
    NaiveDateTime::parse_from_str(&without_z.replace(' ', "T"), "%Y-%m-%dT%H:%M:%S%.f")
        .ok()
        .map(|naive| naive.and_utc())
}

/// Now, with the precision that the files keep, so that a value read back equals the one written.
pub fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(3)
}

/// Whole seconds from `start` to `end`, rounded; zero when the clock went backwards.
pub fn seconds_between(start: DateTime<Utc>, end: DateTime<Utc>) -> u64 {
    let millis = (end - start).num_milliseconds().max(0);
    u64::try_from((millis + 500) / 1000).unwrap_or(0)
}

/// Writes the time as RFC 3339 with milliseconds, for `#[serde(with = "time")]`.
///
/// # Errors
///
/// The serializer's own, when it cannot take the text.
pub fn serialize<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*time))
}

/// Reads a time, for `#[serde(with = "time")]`.
///
/// # Errors
///
/// When the value is no text, or a text that is no time.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a time")))
}

/// For `#[serde(with = "time::option")]`: a time or null; a text that is no time reads as null.
pub mod option {
    use chrono::{DateTime, Utc};
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the time or null.
    ///
    /// # Errors
    ///
    /// The serializer's own.
    pub fn serialize<S: Serializer>(
        time: &Option<DateTime<Utc>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => super::serialize(time, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads the time or null.
    ///
    /// # Errors
    ///
    /// When the value is neither a text nor null.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<DateTime<Utc>>, D::Error> {
        Ok(Option::<String>::deserialize(deserializer)?
            .as_deref()
            .and_then(super::parse))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_time_that_old_files_have_is_read() {
        let expected: DateTime<Utc> = "2025-10-29T11:39:20.5Z".parse().unwrap();
        for text in [
            "2025-10-29T11:39:20.5Z",
            "2025-10-29T11:39:20.500000Z",
            "2025-10-29T11:39:20.500000+00:00Z",
            "2025-10-29T11:39:20.500000+00:00",
            "2025-10-29T17:09:20.5+05:30",
            "2025-10-29T11:39:20.500000",
            "2025-10-29 11:39:20.500000",
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        assert_eq!(parse("yesterday"), None);
        assert_eq!(format(expected), "2025-10-29T11:39:20.500Z");
    }

    #[test]
    fn a_clock_that_went_backwards_gives_no_negative_duration() {
        let start = "2025-10-29T11:39:20Z".parse().unwrap();
        let end = "2025-10-29T11:39:10Z".parse().unwrap();
        assert_eq!(seconds_between(start, end), 0);
        assert_eq!(seconds_between(end, start), 10);
    }
}
