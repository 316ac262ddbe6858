//! What an answer of the CRM means, and when to try again. Pure: no sockets, no clock, no files.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

/// How much of an answer is kept in the record for the operator.
const KEPT_BODY_CHARS: usize = 2000;
/// Longest pause that a `Retry-After` may ask for; a CRM that names a year does not mean it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// What came back for a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It has it. `body` is the answer.
    Accepted(Value),
    /// It had it already, which is as good.
    Duplicate(Value),
    /// Not now. Not before `after`, if it said so.
    TryAgain {
        /// A sentence about what happened.
        why: String,
        /// What it said, if anything.
        body: Option<Value>,
        /// From `Retry-After`.
        after: Option<Duration>,
    },
    /// Never like this.
    Refused {
        /// A sentence about what happened.
        why: String,
        /// What it said.
        body: Value,
    },
}

/// Judges an answer. `who` names the request in sentences, such as `POST crm.example.com/upload`.
pub fn judge(
    who: &str,
    status: u16,
    retry_after: Option<&str>,
    body: &[u8],
    now: DateTime<Utc>,
) -> Verdict {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let shown = || keep(parsed.as_ref(), body);
    let client_error = matches!(status, 400..=499) && !matches!(status, 408 | 425 | 429);
    if status == 409 || (client_error && mentions_duplicate(body)) {
        return Verdict::Duplicate(parsed.clone().unwrap_or_else(shown));
    }
    match status {
        200..=299 => match &parsed {
            // Some servers answer 200 to everything.
            Some(Value::Object(fields)) if fields.get("success") == Some(&Value::Bool(false)) => {
                if mentions_duplicate(body) {
                    return Verdict::Duplicate(shown());
                }
                let why = format!("{who} answered {status}, but with success: false");
                Verdict::TryAgain {
                    why,
                    body: Some(shown()),
                    after: None,
                }
            }
            Some(value) => Verdict::Accepted(value.clone()),
            None => Verdict::Accepted(shown()),
        },
        408 | 425 | 429 | 500..=599 => Verdict::TryAgain {
            why: format!("{who} answered {status}"),
            body: Some(shown()),
            after: retry_after.and_then(|text| parse_retry_after(text, now)),
        },
        300..=399 => Verdict::Refused {
            why: format!(
                "{who} answered {status}, a redirect; set crm.base_url to the address that it leads to"
            ),
            body: shown(),
        },
        _ => Verdict::Refused {
            why: format!("{who} answered {status}"),
            body: shown(),
        },
    }
}

/// Whether an answer says that the thing is there already. Ask it of refusals only: an accepted answer may echo a transcript, and a
/// server error may quote a database.
pub fn mentions_duplicate(body: &[u8]) -> bool {
    const WORDS: [&str; 4] = ["duplicate", "already exist", "already been", "e11000"];
    let text = String::from_utf8_lossy(body).to_lowercase();
    WORDS.iter().any(|word| text.contains(word))
}

/// An answer as the record keeps it: JSON while it is short, else the beginning of its text.
fn keep(parsed: Option<&Value>, body: &[u8]) -> Value {
    match parsed {
        Some(value) if body.len() <= KEPT_BODY_CHARS => value.clone(),
        _ => String::from_utf8_lossy(body)
            .chars()
            .take(KEPT_BODY_CHARS)
            .collect::<String>()
            .into(),
    }
}

/// Shortens an accepted answer for the record.
pub fn shorten(value: Value) -> Value {
    let text = value.to_string();
    if text.len() <= KEPT_BODY_CHARS {
        value
    } else {
        text.chars()
            .take(KEPT_BODY_CHARS)
            .collect::<String>()
            .into()
    }
}

/// `Retry-After`: seconds, or a date as HTTP writes it (RFC 9110, section 10.2.3).
fn parse_retry_after(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    let text = text.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => (DateTime::parse_from_rfc2822(text).ok()?.with_timezone(&Utc) - now)
            .to_std()
            .ok()?,
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Finds the recording's URL in the answer to `POST /upload`: the first of the JSON pointers that leads to a text.
pub fn find_url(body: &Value, pointers: &[String], base: &url::Url) -> Option<String> {
    let found = pointers
        .iter()
        .filter_map(|pointer| body.pointer(pointer)?.as_str())
        .map(str::trim)
        .find(|text| is_address(text))?;
    // A path alone is meant on the same host.
    if found.starts_with('/')
        && let Ok(absolute) = base.join(found)
    {
        return Some(absolute.into());
    }
    Some(found.to_owned())
}

/// An address or a path. A server that has its word `ok` where another has the URL must not be taken at that word.
fn is_address(text: &str) -> bool {
    text.contains('/')
        && text.len() <= 2048
        && !text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || "<>\"".contains(c))
}

/// When to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Pause after the first failure.
    pub first: Duration,
    /// Longest pause.
    pub max: Duration,
}

impl Backoff {
    /// The pause after `attempts` failures: doubling from `first` to `max`, of which between half and all is taken by chance (`random`,
    /// 0 to 1), so that records that failed together do not come back together. Never shorter than the CRM asked for.
    pub fn pause(&self, attempts: u32, random: f64, asked_for: Option<Duration>) -> Duration {
        let doublings = attempts.saturating_sub(1).min(31);
        let full = self.first.saturating_mul(1 << doublings).min(self.max);
        let pause = full.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        match asked_for {
            // Spread those too: everybody was told the same.
            Some(asked_for) => pause.max(asked_for + self.first.mul_f64(random.clamp(0.0, 1.0))),
            None => pause,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn now() -> DateTime<Utc> {
        "2025-10-29T11:00:00Z".parse().unwrap()
    }

    #[derive(Debug, PartialEq)]
    enum Kind {
        Accepted,
        Duplicate,
        TryAgain,
        Refused,
    }

    fn kind(status: u16, body: &str) -> Kind {
        match judge("POST crm/x", status, None, body.as_bytes(), now()) {
            Verdict::Accepted(_) => Kind::Accepted,
            Verdict::Duplicate(_) => Kind::Duplicate,
            Verdict::TryAgain { .. } => Kind::TryAgain,
            Verdict::Refused { .. } => Kind::Refused,
        }
    }

    #[test]
    fn every_answer_has_its_meaning() {
        for (status, body, expected) in [
            (200, "{}", Kind::Accepted),
            (201, "", Kind::Accepted),
            (200, r#"{"success":false,"message":"busy"}"#, Kind::TryAgain),
            (
                200,
                r#"{"success":false,"message":"Duplicate call"}"#,
                Kind::Duplicate,
            ),
            (
                200,
                r#"{"transcript":"we have a duplicate invoice"}"#,
                Kind::Accepted,
            ),
            (409, "", Kind::Duplicate),
            (400, r#"{"message":"Call already exists"}"#, Kind::Duplicate),
            (422, "E11000 duplicate key error", Kind::Duplicate),
            (408, "", Kind::TryAgain),
            (425, "", Kind::TryAgain),
            (429, "duplicate", Kind::TryAgain),
            (500, "duplicate key while retrying", Kind::TryAgain),
            (503, "", Kind::TryAgain),
            (400, "bad", Kind::Refused),
            (401, "", Kind::Refused),
            (404, "", Kind::Refused),
            (413, "", Kind::Refused),
            (301, "", Kind::Refused),
        ] {
            assert_eq!(kind(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(
            parse_retry_after("120", now()),
            Some(Duration::from_secs(120))
        );
        assert_eq!(
            parse_retry_after("Wed, 29 Oct 2025 11:00:30 GMT", now()),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            parse_retry_after("Wed, 29 Oct 2025 10:00:30 GMT", now()),
            None
        );
        assert_eq!(parse_retry_after("soon", now()), None);
        assert_eq!(
            parse_retry_after("99999999999", now()),
            Some(MAX_RETRY_AFTER)
        );
    }

    #[test]
    fn the_url_is_found_wherever_the_crm_puts_it() {
        let base = url::Url::parse("https://crm.example.com/apis/public").unwrap();
        let pointers = super::super::CrmConfig::default().url_pointers;
        for (body, expected) in [
            (json!({"url": "https://x/a.ogg"}), Some("https://x/a.ogg")),
            (
                json!({"data": {"url": "https://x/a.ogg"}}),
                Some("https://x/a.ogg"),
            ),
            (
                json!({"fileUrl": "https://x/a.ogg"}),
                Some("https://x/a.ogg"),
            ),
            (
                json!({"data": [{"url": "https://x/a.ogg"}]}),
                Some("https://x/a.ogg"),
            ),
            (
                json!({"path": "/uploads/a.ogg"}),
                Some("https://crm.example.com/uploads/a.ogg"),
            ),
            (json!({"data": "https://x/a.ogg"}), Some("https://x/a.ogg")),
            (
                json!({"url": "", "path": "uploads/a.ogg"}),
                Some("uploads/a.ogg"),
            ),
            (json!({"url": "<html> not an address"}), None),
            (json!({"data": "ok"}), None),
            (json!({"ok": true}), None),
            (json!({"url": 5}), None),
        ] {
            assert_eq!(
                find_url(&body, &pointers, &base).as_deref(),
                expected,
                "{body}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_pause_grows_is_bounded_and_honours_what_was_asked_for(
            attempts in 0_u32..200, random in 0.0_f64..=1.0, asked in prop::option::of(0_u64..10_000)
        ) {
            let backoff = Backoff { first: Duration::from_secs(5), max: Duration::from_secs(600) };
            let asked = asked.map(Duration::from_secs);
            let pause = backoff.pause(attempts, random, asked);
            prop_assert!(pause >= Duration::from_millis(2500));
            prop_assert!(pause <= backoff.max.max(asked.unwrap_or_default() + backoff.first));
            prop_assert!(pause >= asked.unwrap_or_default());
            prop_assert!(backoff.pause(attempts + 1, random, asked) >= pause);
        }

        /// Whatever comes, there is a meaning and no panic.
        #[test]
        fn any_answer_is_judged(status in 100_u16..1000, after in prop::option::of("\\PC{0,20}"), body in prop::collection::vec(any::<u8>(), 0..200)) {
            judge("POST crm/x", status, after.as_deref(), &body, now());
        }
    }
}
