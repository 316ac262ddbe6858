//! `add_to_do_not_call`: notes that the other party does not want to be called again. Whoever dials
//! reads it in the record.

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{Context, Tool, ToolDefinition, ToolOutput};
use crate::session::{self, DoNotCall};

pub(super) struct AddToDoNotCall;

#[async_trait]
impl Tool for AddToDoNotCall {
    fn name(&self) -> &'static str {
        "add_to_do_not_call"
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: self.name().to_owned(),
            description: "Note that the person does not want to be called again, as soon as they say so in any words. Do not try to change \
                          their mind."
                .to_owned(),
            parameters: json!({
                "type": "object",
                "properties": { "reason": { "type": "string", "description": "Why, if they have said so" } },
                "additionalProperties": false,
            }),
        }
    }

    async fn call(&self, context: &Context, arguments: Map<String, Value>) -> ToolOutput {
        let reason = Fields::of(&arguments).optional("reason");
        let reason = Some(reason).filter(|reason| !reason.is_empty());
        session::lock(&context.session).set_do_not_call(DoNotCall { reason });
        ToolOutput::done("Noted: this number is not called again. Say so, and say goodbye.")
    }
}
