//! Which answers with a 2xx status are receipts. Pure: no sockets, no clock.
//!
//! Many servers answer 200 to everything and tell the result in the body. Taking a refusal for a
//! receipt loses a call; taking a receipt for a refusal costs one repetition with the same
//! idempotency key. So under the default rule an answer counts as a receipt only if nothing in it
//! says no. The settings correct this for servers whose answers it reads wrongly.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Section `crm.receipts` of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReceiptConfig {
    /// Which answers 2xx are receipts.
    pub rule: ReceiptRule,
    /// What a JSON answer must contain to be a receipt, as a JSON pointer (RFC 6901) and a value,
    /// such as `/result/code=0`. One match is enough; empty: no requirement.
    pub require: Vec<String>,
    /// Names of fields that are ignored, such as `errors` of a CRM that lists warnings there.
    pub ignore: Vec<String>,
    /// Texts that make an answer a receipt, whatever else it contains. Case does not matter.
    pub texts: Vec<String>,
}

/// See [`ReceiptConfig::rule`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReceiptRule {
    /// Answers in which nothing says no.
    #[default]
    Strict,
    /// All answers except HTML pages and truncated JSON: only the status counts.
    Status,
}

/// Longest text that is taken for a message; a longer one is an echo of what was sent.
pub(super) const MESSAGE_CHARS: usize = 300;
/// How many levels of an answer are read. JSON inside a text counts as a level, too.
const DEPTH: u8 = 5;

/// Fields that say yes or no, as [`plain`] names.
const YES_OR_NO: &[&str] = &[
    "success",
    "ok",
    "succeeded",
    "successful",
    "issuccess",
    "issuccessful",
    "isok",
    "accepted",
    "isaccepted",
    "wassuccessful",
];
/// Fields that describe an error.
const ERRORS: &[&str] = &[
    "error",
    "errors",
    "err",
    "exception",
    "exceptions",
    "fault",
    "faults",
    "failure",
    "failures",
    "failed",
    "failedcount",
    "errorcount",
    "errorcode",
    "errcode",
    "errormessage",
    "errormsg",
    "errmsg",
    "errortype",
    "errordescription",
    "haserror",
    "haserrors",
    "iserror",
    "isfailed",
    "isfault",
];
/// Fields with the result as a word or an HTTP status.
const STATES: &[&str] = &[
    "status",
    "state",
    "result",
    "outcome",
    "code",
    "statuscode",
    "httpstatus",
    "httpcode",
    "httpstatuscode",
    "responsecode",
    "resultcode",
    "level",
];
/// Fields with a message for people.
const MESSAGES: &[&str] = &[
    "message",
    "messages",
    "msg",
    "detail",
    "details",
    "description",
    "reason",
    "title",
    "statustext",
    "statusmessage",
];
/// Fields with the id of what was created.
const IDS: &[&str] = &["id", "_id", "callid", "uuid", "recordid", "insertedid"];
/// Fields that echo the request. They are not read: a caller may have spoken of an error.
const ECHOES: &[&str] = &[
    "transcription",
    "transcript",
    "conversation",
    "conversationitems",
    "items",
    "lead",
    "leads",
    "caller",
    "calldetails",
    "context",
    "usage",
    "request",
    "input",
    "echo",
];
/// Words that mean failure in messages, states and texts.
const FAILURES: &[&str] = &[
    "error",
    "fail",
    "invalid",
    "unauthor",
    "unauthenticated",
    "not authorized",
    "not authenticated",
    "forbidden",
    "denied",
    "refused",
    "rejected",
    "declined",
    "exception",
    "unavailable",
    "not available",
    "timeout",
    "timed out",
    "time out",
    "expired",
    "quota",
    "limit exceeded",
    "limit reached",
    "rate limit",
    "too many",
    "throttl",
    "not found",
    "could not",
    "couldn't",
    "cannot",
    "can not",
    "can't",
    "unable",
    "try again",
    "try later",
    "retry",
    "not allowed",
    "not accepted",
    "not saved",
    "not stored",
    "not permitted",
    "unsuccessful",
    "not successful",
    "missing",
    "bad request",
    "bad gateway",
    "internal server",
    "maintenance",
    "overload",
    "aborted",
    "disabled",
    "suspended",
    "unreachable",
];
/// Phrases that contain such a word and do not mean failure.
const NO_FAILURES: &[&str] = &[
    "no errors",
    "no error",
    "without errors",
    "without error",
    "0 errors",
    "zero errors",
    "no failures",
    "0 failures",
    "0 failed",
    "error-free",
];
/// Words that mean refusal when they are the whole text or state.
const NO_WORDS: &[&str] = &[
    "no",
    "false",
    "0",
    "-1",
    "ko",
    "nok",
    "ng",
    "err",
    "fatal",
    "n",
    "off",
    "null",
    "none",
    "busy",
    "critical",
    "cancelled",
    "canceled",
];
/// A sentence with one of these words is a receipt.
const YES_WORDS: &[&str] = &[
    "ok",
    "okay",
    "success",
    "successful",
    "successfully",
    "succeeded",
    "accepted",
    "received",
    "saved",
    "stored",
    "created",
    "queued",
    "done",
    "processed",
    "recorded",
    "logged",
    "added",
    "updated",
    "inserted",
    "delivered",
    "uploaded",
    "registered",
    "imported",
    "complete",
    "completed",
    "thanks",
    "thank",
    "acknowledged",
    "ack",
    "duplicate",
    "exists",
];

/// An answer with a 2xx status.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said<'a> {
    /// The answer if it is JSON; of a truncated one, the fields that were complete.
    pub json: Option<&'a Value>,
    pub text: &'a str,
    /// Whether the body was longer than the limit.
    pub cut: bool,
    /// The status of the call that was sent. An answer that echoes it does not report a result.
    pub sent_status: Option<&'a str>,
}

/// Whether the answer is a receipt. The error says what is against it, as the end of a sentence.
pub(super) fn check(config: &ReceiptConfig, said: Said<'_>) -> Result<(), String> {
    if is_named(config, said.text) {
        return Ok(());
    }
    let reader = Reader {
        config,
        sent_status: said.sent_status,
    };
    if let Some(value) = said.json
        && !config.require.is_empty()
        && !config.require.iter().any(|wanted| holds(wanted, value))
    {
        return Err("without anything that crm.receipts.require asks for".to_owned());
    }
    if config.rule == ReceiptRule::Status {
        return Ok(());
    }
    match said.json {
        Some(value) => {
            reader.value(value, DEPTH, false)?;
            let affirmed = value
                .as_object()
                .is_some_and(|fields| reader.affirms(fields));
            if said.cut && !affirmed {
                return Err(
                    "with more than is read of an answer, and its beginning does not say yes"
                        .to_owned(),
                );
            }
            Ok(())
        }
        None if said.cut => Err("with a text that is too long for a receipt".to_owned()),
        None => text(said.text),
    }
}

/// Whether the answer contains one of the configured texts.
pub(super) fn is_named(config: &ReceiptConfig, answer: &str) -> bool {
    let lower = answer.to_lowercase();
    let mut texts = config.texts.iter().filter(|text| !text.trim().is_empty());
    texts.any(|text| lower.contains(&text.trim().to_lowercase()))
}

/// Whether an entry of `crm.receipts.require` can be used.
pub(super) fn check_requirement(wanted: &str) -> bool {
    wanted
        .split_once('=')
        .is_some_and(|(pointer, _)| pointer.is_empty() || pointer.starts_with('/'))
}

fn holds(wanted: &str, value: &Value) -> bool {
    let Some((pointer, expected)) = wanted.split_once('=') else {
        return false;
    };
    match value.pointer(pointer.trim()) {
        Some(Value::String(text)) => text.eq_ignore_ascii_case(expected.trim()),
        Some(other) => other.to_string().eq_ignore_ascii_case(expected.trim()),
        None => false,
    }
}

struct Reader<'a> {
    config: &'a ReceiptConfig,
    sent_status: Option<&'a str>,
}

impl Reader<'_> {
    /// `affirmed`: the object around this value has said yes.
    fn value(&self, value: &Value, depth: u8, affirmed: bool) -> Result<(), String> {
        match value {
            // As good as an empty body.
            Value::Null | Value::Bool(true) => Ok(()),
            Value::Bool(false) => Err("with false".to_owned()),
            Value::Number(number) if number.as_f64() == Some(0.0) => Err("with 0".to_owned()),
            Value::Number(_) => Ok(()),
            Value::String(inside) => match encoded(inside).filter(|_| depth > 0) {
                Some(decoded) => self.value(&decoded, depth - 1, affirmed),
                None => text(inside),
            },
            Value::Array(items) => items
                .iter()
                .filter(|item| !item.is_string())
                .try_for_each(|item| self.value(item, depth.saturating_sub(1), affirmed)),
            Value::Object(fields) => self.object(fields, depth, affirmed),
        }
    }

    fn object(
        &self,
        fields: &Map<String, Value>,
        depth: u8,
        affirmed_around: bool,
    ) -> Result<(), String> {
        let affirmed = affirmed_around || self.affirms(fields);
        let made = fields
            .iter()
            .any(|(name, value)| IDS.contains(&plain(name).as_str()) && is_something(value));
        for (name, value) in fields {
            let no = || Err(format!("with {name:?}: {}", excerpt(value)));
            let field = plain(name);
            let field = field.as_str();
            if self.ignores(name) || ECHOES.contains(&field) {
                continue;
            }
            if YES_OR_NO.contains(&field) && says_no(value) {
                return no();
            }
            if ERRORS.contains(&field) && is_something(value) {
                return no();
            }
            if STATES.contains(&field) {
                let echoes =
                    made && self.sent_status.is_some() && value.as_str() == self.sent_status;
                // Inside the created object, a state may be that of the call.
                let of_the_call = affirmed_around && value.is_string();
                if state_says_no(field, value, affirmed) && !echoes && !of_the_call {
                    return no();
                }
            }
            if MESSAGES.contains(&field)
                && !affirmed
                && !made
                && let Some(message) = value.as_str()
                && speaks_of_failure(message)
            {
                return no();
            }
            if depth == 0 {
                continue;
            }
            match value {
                Value::Object(inside) => self.object(inside, depth - 1, affirmed)?,
                Value::Array(items) => {
                    for item in items {
                        if let Value::Object(inside) = item {
                            self.object(inside, depth - 1, affirmed)?;
                        }
                    }
                }
                Value::String(inside) => {
                    if let Some(decoded) = encoded(inside) {
                        self.value(&decoded, depth - 1, affirmed)?;
                    }
                }
                Value::Bool(false) if matches!(field, "data" | "result" | "response" | "body") => {
                    return no();
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether one of the object's fields says yes.
    fn affirms(&self, fields: &Map<String, Value>) -> bool {
        fields.iter().any(|(name, value)| {
            let field = plain(name);
            let yes_or_no = YES_OR_NO.contains(&field.as_str());
            let state = STATES.contains(&field.as_str());
            !self.ignores(name)
                && match value {
                    Value::Bool(yes) => *yes && (yes_or_no || state),
                    Value::Number(number) => {
                        yes_or_no && number.as_f64().is_some_and(|number| number > 0.0)
                    }
                    Value::String(text) => {
                        let word = text.trim().to_lowercase();
                        (yes_or_no && matches!(word.as_str(), "true" | "1" | "yes" | "y"))
                            || (state && YES_WORDS.contains(&word.as_str()))
                    }
                    _ => false,
                }
        })
    }

    fn ignores(&self, name: &str) -> bool {
        let mut names = self.config.ignore.iter();
        names.any(|ignored| plain(ignored) == plain(name))
    }
}

/// A field's name in one spelling: lower case, without separators.
fn plain(name: &str) -> String {
    let keep = |c: &char| !matches!(c, '-' | ' ' | '.');
    let lower: String = name.chars().filter(keep).collect();
    let lower = lower.to_lowercase();
    match lower.as_str() {
        "_id" => lower,
        _ => lower.replace('_', ""),
    }
}

/// JSON inside a text: some gateways wrap the server's answer.
fn encoded(text: &str) -> Option<Value> {
    let text = text.trim();
    text.starts_with(['{', '[', '"'])
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

/// Whether the value of a yes-or-no field is a no.
fn says_no(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(yes) => !yes,
        Value::Number(number) => number.as_f64().is_none_or(|number| number <= 0.0),
        Value::String(text) => {
            let word = text.trim().to_lowercase();
            word.is_empty() || NO_WORDS.contains(&word.as_str()) || speaks_of_failure(&word)
        }
        Value::Array(_) | Value::Object(_) => false,
    }
}

/// Whether the value of an error field describes an error.
fn is_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(yes) => *yes,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => {
            let word = text.trim().to_lowercase();
            let word = word.trim_end_matches('.');
            let nothing = [
                "",
                "0",
                "none",
                "null",
                "no",
                "false",
                "ok",
                "success",
                "n/a",
                "-",
                "undefined",
            ];
            !nothing.contains(&word) && !NO_FAILURES.contains(&word)
        }
        Value::Array(items) => items.iter().any(is_something),
        Value::Object(fields) => fields.values().any(is_something),
    }
}

fn state_says_no(field: &str, value: &Value, affirmed: bool) -> bool {
    let number_says_no = |number: f64| {
        number < 0.0
            || (400.0..600.0).contains(&number)
            // In a field called a code, 0 usually means success.
            || (number == 0.0 && !affirmed && !field.ends_with("code"))
    };
    match value {
        Value::Bool(yes) => !yes,
        Value::Number(number) => number.as_f64().is_some_and(number_says_no),
        Value::String(text) => {
            let word = text.trim().to_lowercase();
            match word.parse::<f64>() {
                Ok(number) => number_says_no(number),
                Err(_) => {
                    NO_WORDS.contains(&word.as_str())
                        || word.starts_with("err")
                        || word.starts_with("not ")
                        || word.starts_with("not_")
                        || speaks_of_failure(&word)
                }
            }
        }
        _ => false,
    }
}

fn speaks_of_failure(message: &str) -> bool {
    // A character has at most four bytes, so a longer text need not be counted.
    if message.len() > 4 * MESSAGE_CHARS || message.chars().count() > MESSAGE_CHARS {
        return false;
    }
    let mut message = format!(" {}", message.to_lowercase().replace('_', " "));
    for phrase in NO_FAILURES {
        // Whole words only: "10 errors" contains "0 errors".
        message = message.replace(&format!(" {phrase}"), " ");
    }
    FAILURES.iter().any(|word| message.contains(word))
}

/// Whether a text is a receipt: empty, one word that is no refusal, or a sentence that only says
/// yes.
fn text(text: &str) -> Result<(), String> {
    let text = text.trim();
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower
        .split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '-')
        .filter(|word| !word.is_empty())
        .collect();
    let bare = lower.trim_matches(|c: char| c.is_whitespace() || ".!\"'".contains(c));
    if NO_WORDS.contains(&bare) || speaks_of_failure(text) {
        return Err("with a text that speaks of a failure".to_owned());
    }
    if !text.contains(char::is_whitespace) {
        return Ok(());
    }
    let says_yes = words.iter().any(|word| YES_WORDS.contains(word));
    let says_no = words
        .iter()
        .any(|word| matches!(*word, "no" | "not" | "never"));
    if says_yes && !says_no && text.chars().count() <= MESSAGE_CHARS {
        return Ok(());
    }
    Err(
        "with a text that does not say that it was taken (crm.receipts.texts can name it)"
            .to_owned(),
    )
}

fn excerpt(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The complete fields of a truncated JSON object.
pub(super) fn beginning(bytes: &[u8]) -> Option<Value> {
    use serde::de::{Deserializer as _, MapAccess, Visitor};

    /// Fills a map from outside, because the deserializer returns only an error at the truncated
    /// end.
    struct Beginning<'a>(&'a mut Map<String, Value>);

    impl<'de> Visitor<'de> for Beginning<'_> {
        type Value = ();

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
            while let Some((name, value)) = access.next_entry()? {
                self.0.insert(name, value);
            }
            Ok(())
        }
    }

    let mut fields = Map::new();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let whole = reader.deserialize_map(Beginning(&mut fields));
    (whole.is_ok() || !fields.is_empty()).then_some(Value::Object(fields))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Checks an answer under these rules, for a call with the status `busy`.
    fn judged(config: &ReceiptConfig, body: &str) -> Result<(), String> {
        let json = serde_json::from_str(body).ok();
        let said = Said {
            json: json.as_ref(),
            text: body,
            cut: false,
            sent_status: Some("busy"),
        };
        check(config, said)
    }

    #[test]
    fn an_answer_in_which_anything_says_no_is_no_receipt() {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/cases/call-data-refused-with-200/answers.jsonl"
        );
        let case = std::fs::read_to_string(file).expect("the case");
        let ours = [
            r#"{"isSuccess": "No"}"#,
            r#"{"success": null, "data": null}"#,
            r#"{"SUCCESS": "FALSE"}"#,
            r#"{"result": "failure"}"#,
            r#"{"result": false}"#,
            r#"{"Status": "Not saved"}"#,
            r#"{"status": 0, "msg": "db"}"#,
            r#"{"status": "503"}"#,
            r#"{"code": -1, "data": {}}"#,
            r#"{"code": "ERR_QUOTA"}"#,
            r#"{"meta": {"status_code": 401}}"#,
            r#"{"error_message": "no such campaign"}"#,
            r#"{"errorMessage": "2026-11-21 Task timed out after 3.00 seconds"}"#,
            r#"{"failed": 1, "inserted": 0}"#,
            r#"{"hasErrors": true}"#,
            r#"{"message": "Internal server error"}"#,
            r#"{"Envelope": {"Body": {"Fault": {"faultcode": "Server"}}}}"#,
            r#"{"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "x"}}"#,
            r#"{"success": true, "results": [{"success": true}, {"success": false}]}"#,
            r#"[{"ok": true}, {"ok": 0}]"#,
            r#"{"statusCode": 200, "body": "{\"success\": false}"}"#,
            r#""{\"ok\": false}""#,
            r#""failed""#,
            "0",
            "False",
            "ERROR",
            "Unauthorized.",
            "We have received nothing, please try again",
            "Call not received",
            "An operator will look at it",
        ];
        for body in case.lines().chain(ours) {
            let why = judged(&ReceiptConfig::default(), body).expect_err(body);
            assert!(why.starts_with("with"), "{body}: {why}");
            let anything = ReceiptConfig {
                rule: ReceiptRule::Status,
                ..ReceiptConfig::default()
            };
            assert_eq!(judged(&anything, body), Ok(()), "{body}");
        }
    }

    #[test]
    fn an_answer_in_which_nothing_says_no_is_one() {
        for body in [
            "",
            "OK",
            "ok\n",
            "null",
            "true",
            "1",
            "6900ac4c995436dc7dd9abb4",
            "Call saved successfully.",
            "Imported 3 rows with 0 errors",
            "https://crm.example.com/calls/1",
            "{}",
            "[]",
            r#"{"success": true, "id": 1}"#,
            r#"{"ok": "yes", "error": null, "errors": [], "failed": 0}"#,
            r#"{"error": false, "message": "Call logged"}"#,
            r#"{"error": {"code": 0, "message": "OK"}}"#,
            r#"{"errors": "none", "result": "queued"}"#,
            r#"{"code": 0, "msg": "success"}"#,
            r#"{"status": 1}"#,
            r#"{"status": 201, "statusText": "Created"}"#,
            r#"{"success": true, "message": "lead has an invalid email, call saved"}"#,
            r#"{"id": 7, "message": "saved, agent not found"}"#,
            // Echoes of the call.
            r#"{"_id": "7", "status": "busy", "callDetails": {"status": "failed"}}"#,
            r#"{"success": true, "data": {"status": "failed", "lead": {"error": "no"}}}"#,
            r#"{"transcript": "it failed with an error, success: false"}"#,
            r#"{"data": {"conversation_items": [{"content": "x", "ok": false}]}}"#,
            r#"{"data": {"context": {"status": "error"}, "callDetails": {"closeReason": "error"}}}"#,
        ] {
            assert_eq!(judged(&ReceiptConfig::default(), body), Ok(()), "{body}");
        }
        // Without a created object, the status is not that of the call.
        assert!(judged(&ReceiptConfig::default(), r#"{"status": "busy"}"#).is_err());
    }

    #[test]
    fn the_settings_say_what_else_an_answer_means() {
        let require = ReceiptConfig {
            require: vec!["/result/code=0".to_owned(), "/saved=true".to_owned()],
            ..ReceiptConfig::default()
        };
        for (body, receipt) in [
            (r#"{"result": {"code": 0}}"#, true),
            (r#"{"result": {"code": "0"}}"#, true),
            (r#"{"saved": true}"#, true),
            (r#"{"saved": true, "error": "x"}"#, false),
            (r#"{"saved": false}"#, false),
            ("{}", false),
            ("ok", true),
        ] {
            assert_eq!(judged(&require, body).is_ok(), receipt, "{body}");
        }
        let lenient = ReceiptConfig {
            ignore: vec!["err_list".to_owned(), "errors".to_owned()],
            texts: vec!["<status>OK".to_owned(), "Vielen Dank".to_owned()],
            ..ReceiptConfig::default()
        };
        for (body, receipt) in [
            (r#"{"Errors": ["no email"]}"#, true),
            (r#"{"error": "no email"}"#, false),
            ("vielen dank, der Fehler ist notiert", true),
            ("Danke vielmals", false),
        ] {
            assert_eq!(judged(&lenient, body).is_ok(), receipt, "{body}");
        }
        for (wanted, usable) in [("/a=1", true), ("=1", true), ("a=1", false), ("/a", false)] {
            assert_eq!(check_requirement(wanted), usable, "{wanted}");
        }
    }

    #[test]
    fn a_truncated_answer_is_a_receipt_only_if_it_says_yes() {
        for (body, receipt) in [
            (r#"{"success":true,"echo":""#, true),
            (r#"{"success":false,"echo":""#, false),
            (r#"{"id":5,"echo":{"a":[1,"#, false),
            (r#"{"ech"#, false),
            ("Thank you for", false),
        ] {
            let json = beginning(body.as_bytes());
            let said = Said {
                json: json.as_ref(),
                text: body,
                cut: true,
                sent_status: None,
            };
            let judged = check(&ReceiptConfig::default(), said);
            assert_eq!(judged.is_ok(), receipt, "{body}: {judged:?}");
        }
    }

    proptest! {
        /// A field that says no is found at any place and in any spelling of its name.
        #[test]
        fn a_no_is_never_overlooked(
            name in prop::sample::select(vec!["success", "Success", "is_success", "OK", "is-ok"]),
            no in prop::sample::select(vec![Value::Bool(false), Value::from(0), Value::from("false"), Value::from("no")]),
            around in prop::collection::vec(prop::sample::select(vec!["data", "result", "response", "x"]), 0..4),
            others in prop::collection::hash_map("[a-z]{1,6}", any::<u8>(), 0..5),
        ) {
            let mut value = Value::Object(others.into_iter().map(|(name, value)| (name, value.into())).collect());
            value[name] = no;
            for name in around {
                value = serde_json::json!({ name: value, "message": "fine" });
            }
            prop_assert!(judged(&ReceiptConfig::default(), &value.to_string()).is_err());
        }
    }
}
