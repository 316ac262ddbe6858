//! `add_to_do_not_call`: notes that the other party does not want to be called again, in the record
//! and on the list that campaigns keep to.

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::fields::Fields;
use super::{Context, Tool, ToolDefinition, ToolOutput};
use crate::campaign::{self, DialNumber};
use crate::phone::CountryCode;
use crate::session::{self, DoNotCall};
use crate::store::Store;

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
        let number = {
            let mut session = session::lock(&context.session);
            session.set_do_not_call(DoNotCall { reason });
            session.get_call_metadata().dialed_number.clone()
        };
        if let Some(number) = number {
            list(context.store.clone(), number).await;
        }
        ToolOutput::done("Noted: this number is not called again. Say so, and say goodbye.")
    }
}

/// Puts the number of the other party on the list. The record has the wish whatever becomes of it:
/// the dialler of a campaign reads it there, and an operator can.
async fn list(store: Store, number: String) {
    // The call knows numbers with their country already, where anything tells it.
    let country = CountryCode::default();
    let Ok(number) = DialNumber::read(&number, &country) else {
        return warn!(
            "a number that is not to be called again has no country code, so that it is not on the list: set call.country_code, and add it with `voicebot campaign do-not-call add`"
        );
    };
    let added = spawn_blocking(move || {
        let list = campaign::DoNotCall::new(store.root(), country);
        list.append(number).map_err(|error| error.to_string())
    });
    match added.await.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(()) => info!("the number is not called again"),
        Err(error) => error!(
            error,
            "a number that is not to be called again is not on the list"
        ),
    }
}
