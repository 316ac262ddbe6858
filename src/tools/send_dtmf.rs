//! `send_dtmf`: presses keys of the telephone, for menus at the other end. The call presses them.

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{CallAction, Context, Tool, ToolDefinition, ToolOutput};

/// The most keys and pauses of one call of the tool.
const MAX_KEYS: usize = 64;

pub(super) struct SendDtmf;

#[async_trait]
impl Tool for SendDtmf {
    fn name(&self) -> &'static str {
        "send_dtmf"
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: self.name().to_owned(),
            description: "Press keys of the telephone, when a menu at the other end asks for them. Never press the same keys again in the \
                          same menu: say what you want, or wait for a person."
                .to_owned(),
            parameters: json!({
                "type": "object",
                "properties": { "keys": { "type": "string", "description": "The keys in order: digits, * and #; w is a pause of half a second" } },
                "required": ["keys"],
                "additionalProperties": false,
            }),
        }
    }

    async fn call(&self, context: &Context, arguments: Map<String, Value>) -> ToolOutput {
        let text = Fields::of(&arguments).optional("keys");
        match keys(&text) {
            Ok(keys) => match context.act(CallAction::Keys(keys)).await {
                Ok(()) => ToolOutput::done("The keys are pressed. Listen to what follows."),
                Err(problem) => {
                    ToolOutput::refused(format!("the keys were not pressed: {problem}"))
                }
            },
            Err(problem) => ToolOutput::refused(problem),
        }
    }
}

/// The keys and pauses that a model means: without the separators that it writes between them.
fn keys(text: &str) -> Result<String, String> {
    let keys: String = text
        .chars()
        .filter(|c| !c.is_whitespace() && !"-,.".contains(*c))
        .map(|c| c.to_ascii_uppercase())
        .collect();
    let is_key = |c: char| c.is_ascii_digit() || "*#ABCDW".contains(c);
    if keys.is_empty() || !keys.chars().all(is_key) {
        return Err(
            "the keys are digits, * and #, with w for a pause; call send_dtmf again with those alone"
                .to_owned(),
        );
    }
    if keys.len() > MAX_KEYS {
        return Err(format!("no more than {MAX_KEYS} keys at a time"));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_models_write_them() {
        for (text, expected) in [
            ("1", Some("1")),
            ("12#", Some("12#")),
            ("1 w 2", Some("1W2")),
            ("1-800-555", Some("1800555")),
            ("*9a", Some("*9A")),
            ("", None),
            ("one", None),
            ("٣", None),
        ] {
            assert_eq!(keys(text).ok().as_deref(), expected, "{text:?}");
        }
        assert!(keys(&"1".repeat(65)).is_err());
    }
}
