//! Whose call is this: the numbers and the direction of a call, read from what LiveKit and the
//! dispatcher told us.
//!
//! Pure: it looks at the job metadata, the caller's SIP attributes and the room name, in that
//! order. Any of the three may be missing (`hide_phone_number` removes the numbers from the
//! attributes), so nothing here fails.

use std::collections::HashMap;

use serde_json::Value;

use super::Direction;
use crate::phone::{self, CountryCode};

/// The remote party: the caller on inbound calls, the callee on outbound ones (livekit/protocol
/// `attrs.go`).
const SIP_PHONE_NUMBER: &str = "sip.phoneNumber";
/// Our own number: the dialled one on inbound calls, the caller id on outbound ones.
const SIP_TRUNK_PHONE_NUMBER: &str = "sip.trunkPhoneNumber";
/// The dispatch rule that made the call; only inbound calls have one.
const SIP_RULE_ID: &str = "sip.ruleID";
/// LiveKit's id of the SIP call, `SCL_…`; only SIP callers have one.
const SIP_CALL_ID: &str = "sip.callID";
/// The `Call-ID` header of the SIP messages, as the carrier's lists have it (livekit/protocol
/// `attrs.go`).
const SIP_CALL_ID_FULL: &str = "sip.callIDFull";

/// Keys of the job metadata that may hold the other party's number, in the order in which they are
/// believed.
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

/// What is known about the two ends of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    /// The number the call is filed under, that is the other party: with a leading `+` where its
    /// country is known.
    pub dialed_number: Option<String>,
    /// Our own number, likewise.
    pub trunk_number: Option<String>,
    /// Who called whom, where something tells.
    pub direction: Option<Direction>,
    /// LiveKit's id of the SIP call, for callers on the telephone.
    pub sip_call_id: Option<String>,
    /// The carrier's id of the call.
    pub carrier_call_id: Option<String>,
}

impl Numbers {
    /// The other party's number, where the dispatcher tells it.
    pub fn told(job_metadata: &Value, country: &CountryCode) -> Option<String> {
        from_job(job_metadata, &NUMBER_KEYS, country)
    }

    /// Our own number, where the dispatcher tells it.
    pub fn told_trunk(job_metadata: &Value, country: &CountryCode) -> Option<String> {
        from_job(job_metadata, &TRUNK_KEYS, country)
    }

    /// Reads the numbers of a call. `attributes` are the caller's, empty while the caller has not
    /// joined yet; `country` is where numbers without a country code belong.
    pub fn read(
        job_metadata: &Value,
        attributes: &HashMap<String, String>,
        room_name: &str,
        country: &CountryCode,
    ) -> Self {
        let from_job = |keys: &[&str]| from_job(job_metadata, keys, country);
        let from_sip = |name: &str| phone::number(attributes.get(name)?, country);
        Self {
            dialed_number: from_job(&NUMBER_KEYS)
                .or_else(|| from_sip(SIP_PHONE_NUMBER))
                .or_else(|| phone::number(in_room_name(room_name)?, country)),
            trunk_number: from_job(&TRUNK_KEYS).or_else(|| from_sip(SIP_TRUNK_PHONE_NUMBER)),
            direction: direction(job_metadata, attributes),
            sip_call_id: attributes.get(SIP_CALL_ID).cloned(),
            carrier_call_id: attributes.get(SIP_CALL_ID_FULL).cloned(),
        }
    }
}

/// The first of these keys that holds a number.
fn from_job(job_metadata: &Value, keys: &[&str], country: &CountryCode) -> Option<String> {
    keys.iter().find_map(|key| {
        let text = match job_metadata.get(key)? {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        phone::number(&text, country)
    })
}

/// The dispatcher's word, else the telephone call's: one that a dispatch rule took in was placed by
/// the other side, one without a rule by ours. A caller from a browser, or one who never came,
/// tells nothing.
fn direction(job_metadata: &Value, attributes: &HashMap<String, String>) -> Option<Direction> {
    match job_metadata.get("direction").and_then(Value::as_str) {
        Some("outbound") => Some(Direction::Outbound),
        Some("inbound") => Some(Direction::Inbound),
        _ if attributes.contains_key(SIP_RULE_ID) => Some(Direction::Inbound),
        _ if attributes.contains_key(SIP_CALL_ID) => Some(Direction::Outbound),
        _ => None,
    }
}

/// The number inside a room name such as `number-_918655066243-1698567890` or
/// `call-_+15550999_x44dWZvLdPSC`, with its `+`.
///
/// A number counts only behind `+`, `_` or the word `number-`: a bare run of digits is far more
/// often a time stamp.
fn in_room_name(room_name: &str) -> Option<&str> {
    let mut from = 0;
    while let Some(start) = room_name[from..].find(|c: char| c.is_ascii_digit()) {
        let start = from + start;
        let run = &room_name[start..];
        let end = start + run.find(|c: char| !c.is_ascii_digit()).unwrap_or(run.len());
        let before = &room_name[..start];
        let has_plus = before.ends_with('+');
        let number = &room_name[start - usize::from(has_plus)..end];
        let is_marked = has_plus || before.ends_with('_') || before.ends_with("number-");
        if is_marked && phone::number(number, &CountryCode::default()).is_some() {
            return Some(number);
        }
        from = end;
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
        Some(number) => room_name.replacen(number.trim_start_matches('+'), &mask(number), 1),
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
            Numbers::read(&job, sip, room, &CountryCode::default()).dialed_number
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
            Numbers::read(&Value::Null, &sip, room, &CountryCode::default())
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
            ("call-_1120742267_x44dWZvLdPSC", Some("1120742267")),
            ("room-1698567890", None),
            ("demo", None),
            ("call-_12345_x", None),
            ("x_12345678901234567890", None),
        ] {
            let found = in_room_name(room).and_then(|n| phone::number(n, &CountryCode::default()));
            assert_eq!(found.as_deref(), number, "{room}");
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

    /// `numbers.json` has what a telephone said and what was made of it before.
    #[test]
    fn numbers_of_the_telephone_lead_to_the_number_that_was_meant() {
        let case = include_str!("../../tests/fixtures/cases/numbers-of-the-telephone/numbers.json");
        let forms: serde_json::Map<String, Value> = serde_json::from_str(case).unwrap();
        for form in forms.keys() {
            let expected = match form.as_str() {
                "8655066243" | "08655066243" => form,
                form if form.starts_with("+1") => "+15551234567",
                _ => "+918655066243",
            };
            let sip = attributes(&[("sip.phoneNumber", form)]);
            let read = Numbers::read(&Value::Null, &sip, "room", &CountryCode::default());
            assert_eq!(read.dialed_number.as_deref(), Some(expected), "{form}");
        }
        assert_eq!(forms.len(), 9);
    }

    #[test]
    fn a_national_number_belongs_to_the_country_that_is_set() {
        let country: CountryCode = serde_json::from_value(json!("91")).unwrap();
        let sip = attributes(&[("sip.phoneNumber", "08655066243")]);
        for (job, room) in [
            (Value::Null, "room"),
            (json!({"phone_number": 8655066243_u64}), "room"),
            (Value::Null, "number-_8655066243-1698567890"),
        ] {
            let sip = if room == "room" {
                &sip
            } else {
                &HashMap::new()
            };
            let read = Numbers::read(&job, sip, room, &country);
            assert_eq!(
                read.dialed_number.as_deref(),
                Some("+918655066243"),
                "{job} {room}"
            );
        }
    }

    #[test]
    fn a_sip_call_without_a_rule_was_placed_by_us() {
        let outbound = attributes(&[("sip.callID", "SCL_1")]);
        let inbound = attributes(&[("sip.callID", "SCL_1"), ("sip.ruleID", "SDR_1")]);
        assert_eq!(
            Numbers::read(&Value::Null, &outbound, "r", &CountryCode::default()).direction,
            Some(Direction::Outbound)
        );
        assert_eq!(
            Numbers::read(&Value::Null, &inbound, "r", &CountryCode::default()).direction,
            Some(Direction::Inbound)
        );
        assert_eq!(
            Numbers::read(&Value::Null, &HashMap::new(), "r", &CountryCode::default()).direction,
            None,
            "nothing tells"
        );
        assert_eq!(
            Numbers::read(
                &json!({"direction": "inbound"}),
                &outbound,
                "r",
                &CountryCode::default()
            )
            .direction,
            Some(Direction::Inbound)
        );
    }
}
