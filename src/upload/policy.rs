//! What an answer of the CRM means, and when to try again. Pure: no sockets, no clock, no files.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::receipt::{self, MESSAGE_CHARS, ReceiptConfig, Said};

/// How much of an answer is kept in the record for the operator.
const KEPT_BODY_CHARS: usize = 2000;
/// Longest pause that a `Retry-After` may ask for; a CRM that names a year does not mean it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The meaning of the answer to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The CRM has accepted it. `body` is the answer.
    Accepted(Value),
    /// The CRM already has it, which counts as accepted.
    Duplicate(Value),
    /// A temporary failure. Retry after `after` at the earliest, if the CRM named a time.
    TryAgain {
        /// A sentence about what happened.
        why: String,
        /// The answer's body, if any.
        body: Option<Value>,
        /// From `Retry-After`.
        after: Option<Duration>,
    },
    /// Rejected whatever the content: the credentials are not accepted, or something else answers
    /// at this address. This is no fault of the record and affects all waiting records.
    NotAdmitted {
        /// A sentence about what happened, and what to do.
        why: String,
        /// The answer's body.
        body: Value,
    },
    /// A permanent refusal of this content.
    Refused {
        /// A sentence about what happened.
        why: String,
        /// The answer's body.
        body: Value,
    },
}

/// An answer of the CRM, read up to the size limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Answer<'a> {
    /// HTTP status.
    pub status: u16,
    /// The header `Retry-After`.
    pub retry_after: Option<&'a str>,
    /// The header `Date`: the CRM's clock, by which a date in `Retry-After` is meant.
    pub date: Option<&'a str>,
    /// The body, up to the size limit.
    pub body: &'a [u8],
    /// Whether the body was longer than the limit.
    pub cut: bool,
    /// The content encoding of the body, when it is not supported.
    pub encoding: Option<&'a str>,
    /// The status of the call that was sent.
    pub sent_status: Option<&'a str>,
}

/// Decides what an answer means. `who` names the request in messages, such as `POST
/// crm.example.com/upload`.
pub fn judge(
    who: &str,
    answer: Answer<'_>,
    receipts: &ReceiptConfig,
    now: DateTime<Utc>,
) -> Verdict {
    let Answer { status, cut, .. } = answer;
    // Some programs put a byte order mark in front of UTF-8.
    let body = answer
        .body
        .strip_prefix(b"\xEF\xBB\xBF")
        .unwrap_or(answer.body);
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let shown = || keep(parsed.as_ref(), body);
    let whole = || parsed.clone().unwrap_or_else(shown);
    let try_again = |what: &str, after| Verdict::TryAgain {
        why: format!("{who} answered {status}{what}"),
        body: Some(shown()),
        after,
    };
    let not_admitted = |what: &str| Verdict::NotAdmitted {
        why: format!("{who} answered {status}{what}"),
        body: shown(),
    };
    match status {
        200..=299 => {
            if let Some(encoding) = answer.encoding {
                let what = format!(
                    ", but in the encoding {encoding:?}, which cannot be unpacked; have the CRM, or what stands in front of it, keep to Accept-Encoding: gzip"
                );
                return try_again(&what, None);
            }
            let text = String::from_utf8_lossy(body);
            let beginning = (cut && parsed.is_none())
                .then(|| receipt::beginning(body))
                .flatten();
            let said = Said {
                json: parsed.as_ref().or(beginning.as_ref()),
                text: &text,
                cut,
                sent_status: answer.sent_status,
            };
            let readable = said.json.is_some() || cut || !is_broken(body);
            if !readable && !receipt::is_named(receipts, &text) {
                return try_again(", but with something that is neither JSON nor a word", None);
            }
            match receipt::check(receipts, said) {
                Ok(()) => Verdict::Accepted(whole()),
                // Some servers answer 200 to everything.
                Err(_) if says_duplicate(&whole()) => Verdict::Duplicate(whole()),
                Err(no) => try_again(&format!(", but {no}"), None),
            }
        }
        409 => Verdict::Duplicate(whole()),
        // Only statuses that speak of the content: a 401 whose text is "token has already been
        // revoked" is no receipt.
        400 | 422 if says_duplicate(&whole()) => Verdict::Duplicate(whole()),
        400 | 422 if speaks_of_key(&whole()) => {
            not_admitted(" and speaks of the key; set CRM_TOKEN to one that is valid")
        }
        401 | 403 | 407 | 511 => not_admitted(
            ": the key is not accepted; set CRM_TOKEN to one that is valid, or let what stands in front of the CRM pass it",
        ),
        402 => not_admitted(": the CRM's account has to be put in order first"),
        404 | 405 | 410 | 421 => not_admitted(
            ": nothing takes this at this address; see whether the CRM is up, and crm.base_url and the two paths",
        ),
        300..=399 => not_admitted(
            ", a redirect that is not followed; set crm.base_url to the address that it leads to",
        ),
        408 | 425 | 429 | 500..=599 => {
            let date = answer.date.and_then(parse_date).unwrap_or(now);
            let asked = answer.retry_after;
            try_again("", asked.and_then(|text| parse_retry_after(text, date)))
        }
        _ => Verdict::Refused {
            why: format!("{who} answered {status}"),
            body: shown(),
        },
    }
}

/// Whether the body is an HTML page of a proxy or truncated JSON, which confirms nothing.
fn is_broken(body: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(body) else {
        return true;
    };
    let text = text.trim_start();
    text.starts_with(['<', '{', '[', '"'])
        || text.chars().any(|c| c.is_control() && !c.is_whitespace())
}

/// Whether an answer says that the CRM already has it. Only message fields are read: a refusal may
/// echo a transcript in which somebody speaks of a duplicate.
pub fn says_duplicate(answer: &Value) -> bool {
    const WORDS: [&str; 4] = ["duplicate", "already exist", "already been", "e11000"];
    fn is_marked(value: &Value) -> bool {
        match value {
            Value::Array(items) => items.iter().any(is_marked),
            Value::Object(fields) => fields.iter().any(|(name, value)| {
                let marks = name.to_lowercase().contains("duplicate");
                (marks && *value == Value::Bool(true)) || is_marked(value)
            }),
            _ => false,
        }
    }
    // "Token has already been revoked" is no duplicate.
    (is_marked(answer) || has_message(answer, &WORDS)) && !speaks_of_key(answer)
}

/// Whether a message is about the credentials and not about the content.
fn speaks_of_key(answer: &Value) -> bool {
    const WORDS: [&str; 10] = [
        "token",
        "api key",
        "apikey",
        "api_key",
        "credential",
        "unauthor",
        "not authorized",
        "authenticat",
        "invalid_auth",
        "jwt",
    ];
    has_message(answer, &WORDS)
}

/// Whether a message field contains one of these words.
fn has_message(answer: &Value, words: &[&str]) -> bool {
    const MESSAGE_NAMES: [&str; 16] = [
        "code",
        "description",
        "detail",
        "details",
        "err",
        "error",
        "error_code",
        "error_description",
        "errormessage",
        "errors",
        "message",
        "messages",
        "msg",
        "reason",
        "status",
        "title",
    ];
    let is_message = |text: &str| {
        // A character has at most four bytes, so a longer text need not be counted.
        let short = text.len() <= 4 * MESSAGE_CHARS && text.chars().count() <= MESSAGE_CHARS;
        short && {
            let text = text.to_lowercase();
            words.iter().any(|word| text.contains(word))
        }
    };
    fn contains_message(
        value: &Value,
        named_message: bool,
        is_message: &dyn Fn(&str) -> bool,
    ) -> bool {
        match value {
            Value::String(text) => named_message && is_message(text),
            Value::Array(items) => {
                let mut items = items.iter();
                items.any(|item| contains_message(item, named_message, is_message))
            }
            Value::Object(fields) => fields.iter().any(|(name, value)| {
                let name = name.to_lowercase();
                contains_message(value, MESSAGE_NAMES.contains(&name.as_str()), is_message)
            }),
            _ => false,
        }
    }
    // An answer that is only a text counts as a message.
    contains_message(answer, true, &is_message)
}

/// An answer as the record stores it: JSON if it is short, else the beginning of its text.
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

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3). `now` is the time by the server's
/// clock.
fn parse_retry_after(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    let text = text.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => (parse_date(text)? - now).to_std().ok()?,
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// A date in any of the three forms that HTTP knows (RFC 9110, section 5.6.7).
fn parse_date(text: &str) -> Option<DateTime<Utc>> {
    httpdate::parse_http_date(text.trim()).ok().map(Into::into)
}

/// Finds the recording's URL in the answer to `POST /upload`: the first of the JSON pointers that
/// leads to a text, or an answer that is a URL and nothing else.
pub fn find_url(body: &Value, pointers: &[String], base: &url::Url) -> Option<String> {
    let found = match body {
        // A bare text counts as a URL only if it begins with `/` or contains `://`.
        Value::String(text) => Some(text.trim())
            .filter(|text| text.starts_with('/') || text.contains("://"))
            .filter(|text| is_address(text))?,
        _ => pointers
            .iter()
            .filter_map(|pointer| body.pointer(pointer)?.as_str())
            .map(str::trim)
            .find(|text| is_address(text))?,
    };
    // A path is relative to the same host.
    if found.starts_with('/')
        && let Ok(absolute) = base.join(found)
    {
        return Some(absolute.into());
    }
    Some(found.to_owned())
}

/// Whether a text is a URL or a path, and not a word such as `ok` that stands where another server
/// has the URL.
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
    /// The pause after `attempts` failures: doubling from `first` to `max`, times a random factor
    /// from 0.5 to 1 (`random`, 0 to 1), so that records that failed together are not retried
    /// together. Never shorter than the CRM asked for.
    pub fn pause(&self, attempts: u32, random: f64, asked_for: Option<Duration>) -> Duration {
        let doublings = attempts.saturating_sub(1).min(31);
        let full = self.first.saturating_mul(1 << doublings).min(self.max);
        let pause = full.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        match asked_for {
            // These pauses get a random part too, since all records got the same `Retry-After`.
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
        NotAdmitted,
        Refused,
    }

    fn kind(status: u16, body: &str) -> Kind {
        let answer = Answer {
            status,
            body: body.as_bytes(),
            ..Answer::default()
        };
        match judge("POST crm/x", answer, &ReceiptConfig::default(), now()) {
            Verdict::Accepted(_) => Kind::Accepted,
            Verdict::Duplicate(_) => Kind::Duplicate,
            Verdict::TryAgain { .. } => Kind::TryAgain,
            Verdict::NotAdmitted { .. } => Kind::NotAdmitted,
            Verdict::Refused { .. } => Kind::Refused,
        }
    }

    #[test]
    fn every_answer_has_its_meaning() {
        for (status, body, expected) in [
            (200, "{}", Kind::Accepted),
            (201, "", Kind::Accepted),
            (200, "OK", Kind::Accepted),
            (200, "<html>maintenance</html>", Kind::TryAgain),
            (200, r#"{"succ"#, Kind::TryAgain),
            (200, "\u{1}\u{2}", Kind::TryAgain),
            (401, "token has already been revoked", Kind::NotAdmitted),
            (
                200,
                r#"{"ok":false,"error":"token has already been revoked"}"#,
                Kind::TryAgain,
            ),
            (400, r#"{"message":"jwt expired"}"#, Kind::NotAdmitted),
            (
                400,
                r#"{"message":"already exists","url":"https://x/a?token=1"}"#,
                Kind::Duplicate,
            ),
            (
                400,
                r#"{"errors":[{"msg":"too long","value":"we have a duplicate invoice"}]}"#,
                Kind::Refused,
            ),
            (
                422,
                r#"{"errors":[{"msg":"callId already exists"}]}"#,
                Kind::Duplicate,
            ),
            (400, r#"{"isDuplicate":true}"#, Kind::Duplicate),
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
            (401, "", Kind::NotAdmitted),
            (403, "<html>blocked by the firewall", Kind::NotAdmitted),
            (404, "", Kind::NotAdmitted),
            (405, "", Kind::NotAdmitted),
            (407, "", Kind::NotAdmitted),
            (413, "", Kind::Refused),
            (415, "", Kind::Refused),
            (301, "", Kind::NotAdmitted),
            (308, "", Kind::NotAdmitted),
            (200, "\u{feff}{\"success\":true}", Kind::Accepted),
            (200, "\u{feff}", Kind::Accepted),
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
        for obsolete in [
            "Wednesday, 29-Oct-25 11:00:30 GMT",
            "Wed Oct 29 11:00:30 2025",
        ] {
            assert_eq!(
                parse_retry_after(obsolete, now()),
                Some(Duration::from_secs(30))
            );
        }
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
    fn a_retry_after_date_is_read_by_the_clock_of_the_crm() {
        let answer = Answer {
            status: 503,
            retry_after: Some("Wed, 29 Oct 2025 14:00:30 GMT"),
            date: Some("Wed, 29 Oct 2025 14:00:00 GMT"),
            ..Answer::default()
        };
        let Verdict::TryAgain { after, .. } =
            judge("POST crm/x", answer, &ReceiptConfig::default(), now())
        else {
            panic!("503 is tried again");
        };
        assert_eq!(after, Some(Duration::from_secs(30)));
    }

    #[test]
    fn a_long_answer_that_was_not_read_to_its_end_is_still_accepted() {
        let answer = Answer {
            status: 201,
            body: br#"{"success":true,"echo":""#,
            cut: true,
            ..Answer::default()
        };
        assert!(matches!(
            judge("POST crm/x", answer, &ReceiptConfig::default(), now()),
            Verdict::Accepted(_)
        ));
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
            (json!("https://x/a.ogg\n"), Some("https://x/a.ogg")),
            (
                json!("/uploads/a.ogg"),
                Some("https://crm.example.com/uploads/a.ogg"),
            ),
            (json!("n/a"), None),
            (json!("see https://x/a.ogg"), None),
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

        /// For any answer there is a decision, the stored part of it is bounded, and no failure
        /// counts as a receipt.
        #[test]
        fn any_answer_is_judged(
            status in 100_u16..1000,
            after in prop::option::of(prop_oneof!["\\PC{0,30}", "[0-9]{1,25}", "Wed, 29 Oct 20[0-9]{2} 1[0-9]:00:00 GMT"]),
            date in prop::option::of("\\PC{0,30}"),
            body in any_body(),
            cut in any::<bool>(),
        ) {
            let answer = Answer { status, retry_after: after.as_deref(), date: date.as_deref(), body: &body, cut, ..Answer::default() };
            match judge("POST crm/x", answer, &ReceiptConfig::default(), now()) {
                Verdict::Accepted(body) => {
                    prop_assert!((200..300).contains(&status));
                    let pointers = super::super::CrmConfig::default().url_pointers;
                    let base = url::Url::parse("https://crm.example.com/api").unwrap();
                    if let Some(url) = find_url(&body, &pointers, &base) {
                        prop_assert!(!url.contains(char::is_whitespace) && url.len() < 3000);
                    }
                    prop_assert!(shorten(body).to_string().len() <= BOUND);
                }
                Verdict::Duplicate(body) => {
                    prop_assert!((200..300).contains(&status) || [400, 409, 422].contains(&status));
                    prop_assert!(shorten(body).to_string().len() <= BOUND);
                }
                Verdict::TryAgain { body, after, .. } => {
                    prop_assert!(after.is_none_or(|after| after <= MAX_RETRY_AFTER));
                    prop_assert!(matches!(status, 200..=299 | 408 | 425 | 429 | 500..=599));
                    prop_assert!(body.unwrap_or_default().to_string().len() <= BOUND);
                }
                Verdict::NotAdmitted { body, .. } => {
                    prop_assert!(matches!(status, 300..=499 | 511));
                    prop_assert!(body.to_string().len() <= BOUND);
                }
                Verdict::Refused { body, .. } => {
                    prop_assert!(!matches!(status, 200..=299 | 401 | 403 | 404 | 408 | 409 | 425 | 429 | 500..=599));
                    prop_assert!(body.to_string().len() <= BOUND);
                }
            }
        }
    }

    /// Bound of what a record stores of an answer, as JSON, where one character may take up to six
    /// bytes.
    const BOUND: usize = 6 * KEPT_BODY_CHARS + 2;

    /// Bytes, texts, and JSON with the names that matter.
    fn any_body() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,400}".prop_map(Value::from),
            Just(json!("https://x/a.ogg")),
            Just(json!("E11000 duplicate key")),
        ];
        let names = prop::sample::select(vec![
            "success", "url", "data", "message", "errors", "msg", "file", "path", "other",
        ]);
        let any_json = leaf.prop_recursive(5, 60, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((names.clone(), inner), 0..6).prop_map(|fields| {
                    let fields = fields
                        .into_iter()
                        .map(|(name, value)| (name.to_owned(), value));
                    Value::Object(fields.collect())
                }),
            ]
        });
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..5000),
            "\\PC{0,3000}".prop_map(String::into_bytes),
            any_json.prop_map(|value| value.to_string().into_bytes()),
            // Deeper than any parser should follow.
            (1_usize..40_000).prop_map(|depth| vec![b'['; depth]),
        ]
    }
}
