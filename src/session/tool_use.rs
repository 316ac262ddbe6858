//! What the model has used a tool for.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::time;

/// Arguments that are longer are kept as the beginning of their text, bytes.
const MAX_ARGUMENTS: usize = 4096;
/// As much of what the tool answered is kept, bytes.
const MAX_RESULT: usize = 1024;

/// One use of a tool, in journal and record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolUse {
    /// The tool, as the model named it.
    pub name: String,
    /// What it was given: the JSON object, or the text where the model wrote none.
    pub arguments: Value,
    /// What the model was told.
    pub result: String,
    /// Whether it was not done.
    pub is_error: bool,
    /// When the model asked for it. Not "at": that is when a journal's line was written.
    #[serde(with = "time")]
    pub called_at: DateTime<Utc>,
    /// How long it took, ms.
    pub duration_ms: u64,
}

impl ToolUse {
    /// A use with the arguments as the model wrote them; what is too long is cut.
    pub fn new(
        name: &str,
        arguments_json: &str,
        result: &str,
        is_error: bool,
        called_at: DateTime<Utc>,
        duration_ms: u64,
    ) -> Self {
        let arguments = match serde_json::from_str(arguments_json) {
            Ok(object @ Value::Object(_)) if arguments_json.len() <= MAX_ARGUMENTS => object,
            _ => Value::from(beginning(arguments_json, MAX_ARGUMENTS)),
        };
        Self {
            name: beginning(name, MAX_RESULT).to_owned(),
            arguments,
            result: beginning(result, MAX_RESULT).to_owned(),
            is_error,
            called_at,
            duration_ms,
        }
    }
}

fn beginning(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arguments_are_kept_as_what_they_are_and_not_without_end() {
        let long = format!("{{\"note\": \"{}\"}}", "ü".repeat(5000));
        for (text, kept) in [
            (r#"{"intent": "pricing"}"#, json!({ "intent": "pricing" })),
            ("", json!("")),
            ("{\"intent\": ", json!("{\"intent\": ")),
            (&long, json!(beginning(&long, MAX_ARGUMENTS))),
        ] {
            let used = ToolUse::new("tool", text, &long, false, time::now(), 1);
            assert_eq!(used.arguments, kept);
            assert!(used.result.len() <= MAX_RESULT);
            let text = serde_json::to_string(&used).unwrap();
            assert_eq!(serde_json::from_str::<ToolUse>(&text).unwrap(), used);
        }
    }
}
