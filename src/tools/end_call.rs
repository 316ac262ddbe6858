//! `end_call`: hangs up once the last words are out. The call does the hanging up; this only says
//! that it should.

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{CallRequest, Context, Tool, ToolDefinition, ToolOutput};

pub(super) struct EndCall;

#[async_trait]
impl Tool for EndCall {
    fn name(&self) -> &'static str {
        "end_call"
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
        name: self.name().to_owned(),
        description: "Hang up. Use it when the conversation has come to its end or the caller asks to end it; say goodbye in the same \
                      answer."
            .to_owned(),
        parameters: json!({
            "type": "object",
            "properties": { "reason": { "type": "string", "description": "Why the call ends, in a few words" } },
            "additionalProperties": false,
        }),
    }
    }

    async fn call(&self, _: &Context, arguments: Map<String, Value>) -> ToolOutput {
        // Whatever the reason looks like: somebody who wants to hang up is let go.
        let reason = Fields::of(&arguments).optional("reason");
        let text = match reason.as_str() {
            "" => "The call ends after your last words.".to_owned(),
            reason => format!("The call ends after your last words ({reason})."),
        };
        ToolOutput {
            text,
            is_error: false,
            request: Some(CallRequest::HangUp),
        }
    }
}
