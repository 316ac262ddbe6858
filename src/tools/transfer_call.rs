//! `transfer_call`: hands the caller over to somebody else, by a SIP REFER. The call asks for it;
//! whom it may be handed to is in the settings alone.

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{CallAction, Context, Tool, ToolDefinition, ToolOutput};

pub(super) const NAME: &str = "transfer_call";

pub(super) struct TransferCall;

#[async_trait]
impl Tool for TransferCall {
    fn name(&self) -> &'static str {
        NAME
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: NAME.to_owned(),
            description: "Hand the caller over to somebody else on the telephone. Say first that you are connecting them. If it does not \
                          work, you are told why and the caller is with you again: say so, and offer something else."
                .to_owned(),
            parameters: json!({
                "type": "object",
                "properties": { "to": { "type": "string", "description": "Whom to hand over to: one of the names that you were given" } },
                "required": ["to"],
                "additionalProperties": false,
            }),
        }
    }

    async fn call(&self, context: &Context, arguments: Map<String, Value>) -> ToolOutput {
        let wanted = Fields::of(&arguments).optional("to");
        let Some((name, target)) = context.transfer.target(&wanted) else {
            return ToolOutput::refused(format!(
                "nobody is called {wanted:?}; there are {}",
                context.transfer.names().join(", ")
            ));
        };
        let action = CallAction::Transfer {
            target: target.to_owned(),
            ringing_timeout: context.transfer.ringing_timeout(),
        };
        match context.act(action).await {
            Ok(()) => ToolOutput::done(format!("The caller is handed over to {name}.")),
            Err(problem) => ToolOutput::refused(format!(
                "the caller is still with you, because {name} could not take the call: {problem}. Tell the caller, and offer something else."
            )),
        }
    }
}
