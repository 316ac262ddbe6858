//! The ids of sessions and leads.
//!
//! Every id becomes part of a file name, so a value of these types is always safe to use as one.
//! Nothing else checks names.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Longest id that we accept; with a prefix and a suffix it stays below the 255 bytes that file
/// systems allow.
const MAX_ID_BYTES: usize = 180;

/// Why a text cannot be an id.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdError {
    /// Nothing was given.
    #[error("an id must not be empty")]
    Empty,
    /// Longer than a file name can carry.
    #[error("an id must not be longer than {MAX_ID_BYTES} bytes")]
    TooLong,
    /// A character that could change the meaning of a path, or a leading dot.
    #[error(
        "the id {0:?} may only have the characters A-Z a-z 0-9 . _ - and must not begin with a dot"
    )]
    BadCharacter(String),
}

fn check(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > MAX_ID_BYTES {
        return Err(IdError::TooLong);
    }
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.starts_with('.') || !text.chars().all(safe) {
        return Err(IdError::BadCharacter(text.to_owned()));
    }
    Ok(())
}

/// Makes any text usable inside a file name: everything outside `A-Z a-z 0-9 . _ -` becomes `_`,
/// and a leading dot too.
pub fn sanitise(text: &str) -> String {
    let mut name: String = text
        .chars()
        .take(MAX_ID_BYTES)
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
                c
            } else {
                '_'
            }
        })
        .collect();
    if name.starts_with('.') {
        name.replace_range(0..1, "_");
    }
    if name.is_empty() {
        name.push('_');
    }
    name
}

/// Masks a text for the log: a run of nine or more digits, as in a phone number, keeps only its
/// last two. Dates and session ids have shorter runs and stay as they are.
pub fn mask_numbers(text: &str) -> String {
    const SHORTEST: usize = 9;
    const KEPT: usize = 2;
    let mut masked = String::with_capacity(text.len());
    let mut digits = String::new();
    for c in text.chars().map(Some).chain([None]) {
        if let Some(digit) = c.filter(char::is_ascii_digit) {
            digits.push(digit);
            continue;
        }
        if digits.len() >= SHORTEST {
            masked.push('…');
            digits.drain(..digits.len() - KEPT);
        }
        masked.push_str(&digits);
        digits.clear();
        masked.extend(c);
    }
    masked
}

macro_rules! file_safe_id {
    ($name:ident) => {
        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

/// One conversation, from dispatch to hangup: `session_<YYYYMMDD>_<HHMMSS>_<6 hex>`.
///
/// Ids of other shapes are accepted when read, because the original's records have them
/// (`livekit-20251029-113920`).
///
/// A clone is a reference to the same text: thousands of waiting records are known by their ids in
/// several places.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// A new id for a call that starts at `now`.
    pub fn new(now: DateTime<Utc>) -> Self {
        let random: u32 = rand::random::<u32>() & 0x00ff_ffff;
        let id = format!("session_{}_{random:06x}", now.format("%Y%m%d_%H%M%S"));
        Self(id.into())
    }

    /// The time in an id of our own shape.
    pub fn started_at(&self) -> Option<DateTime<Utc>> {
        let text = self.0.strip_prefix("session_")?.get(..15)?;
        NaiveDateTime::parse_from_str(text, "%Y%m%d_%H%M%S")
            .ok()
            .map(|time| time.and_utc())
    }
}

file_safe_id!(SessionId);

/// One lead that was taken in a call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeadId(String);

impl LeadId {
    /// A new id, unique everywhere.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }
}

file_safe_id!(LeadId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_session_id_carries_the_time() {
        let now = "2025-10-29T11:39:20Z".parse().unwrap();
        let id = SessionId::new(now);
        let rest = id
            .as_str()
            .strip_prefix("session_20251029_113920_")
            .expect("date and time in the name");
        assert_eq!(rest.len(), 6);
        assert_eq!(id.started_at(), Some(now));
        assert!(rest.chars().all(|c| c.is_ascii_hexdigit()));
        for other in [
            "livekit-20251029-113920",
            "session_",
            "session_2025ü",
            "session_20251399_000000_a",
        ] {
            let other: Result<SessionId, _> = other.parse();
            assert_eq!(other.ok().and_then(|id| id.started_at()), None);
        }
    }

    #[test]
    fn ids_that_could_leave_the_folder_are_refused() {
        for bad in [
            "",
            "../x",
            "a/b",
            "..",
            ".hidden",
            "a\\b",
            "a\0b",
            "ä",
            &"x".repeat(181),
        ] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad:?}");
            assert!(
                serde_json::from_value::<SessionId>(serde_json::json!(bad)).is_err(),
                "{bad:?}"
            );
        }
        for good in [
            "session_20251029_113920_abc123",
            "livekit-20251029-113920",
            "a.b",
        ] {
            assert!(good.parse::<SessionId>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn phone_numbers_are_masked_and_dates_are_not() {
        assert_eq!(mask_numbers("call from +918655066243"), "call from +…43");
        assert_eq!(
            mask_numbers("recordings/number-_918655066243-1698567890.ogg"),
            "recordings/number-_…43-…90.ogg"
        );
        assert_eq!(
            mask_numbers("session_20251029_113920_abc123"),
            "session_20251029_113920_abc123"
        );
        assert_eq!(mask_numbers(""), "");
    }

    #[test]
    fn any_text_can_be_made_a_name() {
        assert_eq!(sanitise("../../etc/passwd"), "_._.._etc_passwd");
        assert_eq!(sanitise(""), "_");
        assert_eq!(
            sanitise("number-_918655066243-1698567890"),
            "number-_918655066243-1698567890"
        );
        assert!(sanitise(&"ü".repeat(500)).parse::<SessionId>().is_ok());
    }
}
