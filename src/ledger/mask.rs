//! Hiding telephone numbers in what is shown.

use serde_json::{Map, Value};

use super::search::FoundCall;
use crate::session::{mask, mask_numbers};

/// Fields that hold nothing but a number.
const NUMBER_FIELDS: [&str; 7] = [
    "dialed_number",
    "caller_number",
    "trunk_number",
    "phone",
    "phoneNumber",
    "callerNumber",
    // What a caller has typed: a number, or something secret.
    "keys",
];
/// Shortest number in JSON, not text, that is taken for a telephone's.
const SHORTEST_PLAIN: u64 = 100_000_000;
/// Numbers in JSON that may be that large and are something else.
const SIZES: [&str; 2] = ["size", "bytes"];

/// `value` with every telephone number reduced to its last two digits: in the fields that hold one,
/// and wherever nine digits or more stand in a row. Ids stay as they are.
pub fn masked(value: Value) -> Value {
    masked_field("", value)
}

fn masked_field(name: &str, value: Value) -> Value {
    match value {
        Value::String(text) if NUMBER_FIELDS.contains(&name) && !text.is_empty() => {
            mask(&text).into()
        }
        Value::String(text) if !is_id(name) => mask_numbers(&text).into(),
        Value::Number(number)
            if number.as_u64().is_some_and(|n| n >= SHORTEST_PLAIN) && !SIZES.contains(&name) =>
        {
            mask(&number.to_string()).into()
        }
        Value::Array(values) => values
            .into_iter()
            .map(|value| masked_field(name, value))
            .collect::<Vec<_>>()
            .into(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| {
                let value = masked_field(&name, value);
                (name, value)
            })
            .collect::<Map<_, _>>()
            .into(),
        other => other,
    }
}

/// `lead_id`, `egressId`, `_id`, `sid`.
fn is_id(name: &str) -> bool {
    name.ends_with("id") || name.ends_with("Id")
}

/// The call with its numbers hidden.
pub fn masked_call(mut call: FoundCall) -> FoundCall {
    let hidden = serde_json::to_value(&call.record).map(masked);
    match hidden.and_then(serde_json::from_value) {
        Ok(record) => call.record = record,
        // A record that was read can be written and read again; if not, nothing of it is shown.
        Err(_) => {
            call.record.dialed_number = None;
            call.record.caller_number = None;
            call.record.trunk_number = None;
            call.record.room.name = None;
            call.record.campaign_metadata.clear();
            call.record.extra.clear();
        }
    }
    call.file = mask_numbers(&call.file);
    for item in call.live.iter_mut().flat_map(|live| &mut live.items) {
        item.content = mask_numbers(&item.content);
    }
    call
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_hidden_and_ids_times_and_sizes_are_not() {
        let shown = masked(json!({
            "dialed_number": "+15550100", "phone": "555 01 00", "trunk_number": null,
            "room": { "name": "number-_918655066243-1698567890", "sid": "RM_123456789012" },
            "session_id": "session_20251029_113920_abc123", "at": "2025-10-29T11:39:20.000Z",
            "content": ["call me at 918655066243"], "campaign_metadata": { "mobile": 918_655_066_243_u64, "egressId": "EG_123456789012" },
            "size": 2_000_000_000_u64, "call_id": "CALL-20251029-55066243", "keypad": [{ "keys": "5550123" }],
        }));
        assert_eq!(
            shown,
            json!({
                "dialed_number": "…00", "phone": "…00", "trunk_number": null,
                "room": { "name": "number-_…43-…90", "sid": "RM_123456789012" },
                "session_id": "session_20251029_113920_abc123", "at": "2025-10-29T11:39:20.000Z",
                "content": ["call me at …43"], "campaign_metadata": { "mobile": "…43", "egressId": "EG_123456789012" },
                "size": 2_000_000_000_u64, "call_id": "CALL-20251029-55066243", "keypad": [{ "keys": "…23" }],
            })
        );
    }
}
