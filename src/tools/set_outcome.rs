//! `set_outcome`: notes what has come of the call, for the CRM and for whoever dials.

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{Context, Tool, ToolDefinition, ToolOutput};
use crate::session;

pub(super) const NAME: &str = "set_outcome";

/// The longest outcome, in characters.
const MAX_CHARS: usize = 100;

pub(super) struct SetOutcome;

#[async_trait]
impl Tool for SetOutcome {
    fn name(&self) -> &'static str {
        NAME
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: NAME.to_owned(),
            description: "Note what has come of the call, once it is clear and before you say goodbye; again when it changes. The other \
                          party does not notice this."
                .to_owned(),
            parameters: json!({
                "type": "object",
                "properties": { "outcome": { "type": "string", "description": "A short name in snake_case, such as interested or not_interested" } },
                "required": ["outcome"],
                "additionalProperties": false,
            }),
        }
    }

    async fn call(&self, context: &Context, arguments: Map<String, Value>) -> ToolOutput {
        let mut fields = Fields::of(&arguments);
        let wanted = fields.required("outcome", "nothing, but choose one");
        if let Some(problems) = fields.problems() {
            return ToolOutput::refused(format!(
                "the outcome was not noted: {problems}. Call {NAME} again."
            ));
        }
        match chosen(&wanted, &context.follow_up.outcomes) {
            Ok(outcome) => {
                session::lock(&context.session).set_agent_outcome(outcome.clone());
                ToolOutput::done(format!("Noted: {outcome}. Go on with the conversation."))
            }
            Err(problem) => ToolOutput::refused(format!("the outcome was not noted: {problem}")),
        }
    }
}

/// The outcome as the settings write it, however the model has capitalised it.
fn chosen(wanted: &str, allowed: &[String]) -> Result<String, String> {
    let wanted = wanted.trim();
    if allowed.is_empty() {
        return match wanted.chars().count() <= MAX_CHARS {
            true => Ok(wanted.to_owned()),
            false => Err(format!(
                "it must be a short name of at most {MAX_CHARS} letters; call {NAME} again with one"
            )),
        };
    }
    let plain = |text: &str| text.to_lowercase().replace([' ', '-'], "_");
    let mut known = allowed.iter();
    let found = known.find(|known| plain(known) == plain(wanted));
    found.cloned().ok_or_else(|| {
        format!(
            "there is no outcome {wanted:?}; call {NAME} again with one of {}",
            allowed.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_one_of_those_that_are_allowed() {
        let allowed = ["interested", "Not interested"].map(str::to_owned);
        for (wanted, expected) in [
            ("interested", Some("interested")),
            (" Interested ", Some("interested")),
            ("not_interested", Some("Not interested")),
            ("maybe", None),
        ] {
            assert_eq!(
                chosen(wanted, &allowed).ok().as_deref(),
                expected,
                "{wanted}"
            );
        }
        assert_eq!(chosen("maybe", &[]).as_deref(), Ok("maybe"));
        assert!(chosen(&"x".repeat(101), &[]).is_err());
    }
}
