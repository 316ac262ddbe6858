//! Whose call is this: the numbers and the direction of a call, read from what LiveKit and the dispatcher told us.
//!
//! Pure: it looks at the job metadata, the caller's SIP attributes and the room name, in that order. Any of the three may
//! be missing (`hide_phone_number` removes the numbers from the attributes), so nothing here fails.

use std::collections::HashMap;

use serde_json::Value;

use crate::session::Direction;

/// The remote party: the caller on inbound calls, the callee on outbound ones (livekit/protocol `attrs.go`).
const SIP_PHONE_NUMBER: &str = "sip.phoneNumber";
/// Our own number: the dialled one on inbound calls, the caller id on outbound ones.
const SIP_TRUNK_PHONE_NUMBER: &str = "sip.trunkPhoneNumber";
/// The dispatch rule that made the call; only inbound calls have one.
const SIP_RULE_ID: &str = "sip.ruleID";
/// LiveKit's id of the SIP call, `SCL_…`; only SIP callers have one.
const SIP_CALL_ID: &str = "sip.callID";
/// The `Call-ID` header of the SIP messages, as the carrier's lists have it (livekit/protocol `attrs.go`).
const SIP_CALL_ID_FULL: &str = "sip.callIDFull";

/// Keys of the job metadata that may hold the other party's number, in the order in which they are believed.
const NUMBER_KEYS: [&str; 6] = [
    "dialed_number",
    "phone_number",
    "phoneNumber",
    "number",
    "to",
    "caller_number",
];
/// Keys of the job metadata that may hold our own number.
const TRUNK_KEYS: [&str; 3] = ["trunk_number", "trunkNumber", "from"];

/// The shortest and longest numbers that we take for phone numbers (E.164 allows up to 15 digits).
const DIGITS: std::ops::RangeInclusive<usize> = 7..=15;

/// What is known about the two ends of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    /// The number the call is filed under, that is the other party, with a leading `+`.
    pub dialed_number: Option<String>,
    /// Our own number, with a leading `+`.
    pub trunk_number: Option<String>,
    /// Who called whom, where something tells.
    pub direction: Option<Direction>,
    /// LiveKit's id of the SIP call, for callers on the telephone.
    pub sip_call_id: Option<String>,
    /// The carrier's id of the call.
    pub carrier_call_id: Option<String>,
}

impl Numbers {
    /// Reads the numbers of a call. `attributes` are the caller's, empty while the caller has not joined yet.
    pub fn read(
        job_metadata: &Value,
        attributes: &HashMap<String, String>,
        room_name: &str,
    ) -> Self {
        let from_job = |keys: &[&str]| {
            keys.iter().find_map(|key| {
                job_metadata
                    .get(key)
                    .and_then(Value::as_str)
                    .and_then(normalise)
            })
        };
        let from_sip = |name: &str| attributes.get(name).map(String::as_str).and_then(normalise);
        Self {
            dialed_number: from_job(&NUMBER_KEYS)
                .or_else(|| from_sip(SIP_PHONE_NUMBER))
                .or_else(|| in_room_name(room_name)),
            trunk_number: from_job(&TRUNK_KEYS).or_else(|| from_sip(SIP_TRUNK_PHONE_NUMBER)),
            direction: direction(job_metadata, attributes),
            sip_call_id: attributes.get(SIP_CALL_ID).cloned(),
            carrier_call_id: attributes.get(SIP_CALL_ID_FULL).cloned(),
        }
    }
}

/// The dispatcher's word, else the telephone call's: one that a dispatch rule took in was placed by the other side, one without a rule
/// by ours. A caller from a browser, or one who never came, tells nothing.
fn direction(job_metadata: &Value, attributes: &HashMap<String, String>) -> Option<Direction> {
    match job_metadata.get("direction").and_then(Value::as_str) {
        Some("outbound") => Some(Direction::Outbound),
        Some("inbound") => Some(Direction::Inbound),
        _ if attributes.contains_key(SIP_RULE_ID) => Some(Direction::Inbound),
        _ if attributes.contains_key(SIP_CALL_ID) => Some(Direction::Outbound),
        _ => None,
    }
}

/// `+` and the digits of a phone number written in any usual way; nothing for what is no phone number.
pub fn normalise(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.strip_prefix("tel:").unwrap_or(text);
    if !text
        .chars()
        .all(|c| c.is_ascii_digit() || "+-_ ().".contains(c))
    {
        return None;
    }
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    DIGITS.contains(&digits.len()).then(|| format!("+{digits}"))
}

/// The number inside a room name such as `number-_918655066243-1698567890` or `call-_+15550999_x44dWZvLdPSC`.
///
/// A number counts only behind `+`, `_` or the word `number-`: a bare run of digits is far more often a time stamp.
fn in_room_name(room_name: &str) -> Option<String> {
    let mut rest = room_name;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let before = &rest[..start];
        let digits: String = rest[start..]
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        let marked = before.ends_with(['+', '_']) || before.ends_with("number-");
        if marked && DIGITS.contains(&digits.len()) {
            return Some(format!("+{digits}"));
        }
        rest = &rest[start + digits.len()..];
    }
    None
}

/// A telephone number for logs: its last two digits.
pub fn mask(number: &str) -> String {
    let end = number.char_indices().rev().nth(1).map_or(0, |(at, _)| at);
    format!("…{}", &number[end..])
}

/// A room name for logs: a number in it is masked.
pub fn mask_room_name(room_name: &str) -> String {
    match in_room_name(room_name) {
        Some(number) => room_name.replacen(&number[1..], &mask(&number), 1),
        None => room_name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn attributes(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn job_metadata_is_believed_before_sip_attributes_before_the_room_name() {
        let sip = attributes(&[
            ("sip.phoneNumber", "+15550999"),
            ("sip.trunkPhoneNumber", "+15550100"),
            ("sip.callID", "SCL_1"),
            ("sip.ruleID", "SDR_1"),
        ]);
        let room = "number-_918655066243-1698567890";
        let read = |job: Value, sip: &HashMap<String, String>| {
            Numbers::read(&job, sip, room).dialed_number
        };
        assert_eq!(
            read(json!({"phone_number": "+44 20 7946 0958"}), &sip).as_deref(),
            Some("+442079460958")
        );
        assert_eq!(read(json!({}), &sip).as_deref(), Some("+15550999"));
        assert_eq!(
            read(Value::Null, &HashMap::new()).as_deref(),
            Some("+918655066243")
        );
        assert_eq!(
            Numbers::read(&Value::Null, &sip, room)
                .trunk_number
                .as_deref(),
            Some("+15550100")
        );
    }

    #[test]
    fn room_names_give_a_number_only_where_it_is_marked_as_one() {
        for (room, number) in [
            ("number-_918655066243-1698567890", Some("+918655066243")),
            ("number-918655066243", Some("+918655066243")),
            ("call-_+15550999_x44dWZvLdPSC", Some("+15550999")),
            ("room-1698567890", None),
            ("demo", None),
            ("call-_12345_x", None),
            ("x_12345678901234567890", None),
        ] {
            assert_eq!(in_room_name(room).as_deref(), number, "{room}");
        }
    }

    #[test]
    fn logs_show_the_last_two_digits_only() {
        assert_eq!(mask("+918655066243"), "…43");
        assert_eq!(mask("7"), "…7");
        assert_eq!(
            mask_room_name("number-_918655066243-1698567890"),
            "number-_…43-1698567890"
        );
        assert_eq!(mask_room_name("demo"), "demo");
    }

    #[test]
    fn odd_numbers_are_no_numbers() {
        for (text, number) in [
            ("+1 (555) 010-0999", Some("+15550100999")),
            ("tel:+15550999", Some("+15550999")),
            ("918655066243", Some("+918655066243")),
            ("anonymous", None),
            ("sip:bob@example.com", None),
            ("12", None),
            ("", None),
        ] {
            assert_eq!(normalise(text).as_deref(), number, "{text}");
        }
    }

    #[test]
    fn a_sip_call_without_a_rule_was_placed_by_us() {
        let outbound = attributes(&[("sip.callID", "SCL_1")]);
        let inbound = attributes(&[("sip.callID", "SCL_1"), ("sip.ruleID", "SDR_1")]);
        assert_eq!(
            Numbers::read(&Value::Null, &outbound, "r").direction,
            Some(Direction::Outbound)
        );
        assert_eq!(
            Numbers::read(&Value::Null, &inbound, "r").direction,
            Some(Direction::Inbound)
        );
        assert_eq!(
            Numbers::read(&Value::Null, &HashMap::new(), "r").direction,
            None,
            "nothing tells"
        );
        assert_eq!(
            Numbers::read(&json!({"direction": "inbound"}), &outbound, "r").direction,
            Some(Direction::Inbound)
        );
    }
}
