//! `detect_intent`: notes what the caller wants.

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use crate::session::{self, Intent, time};

use super::fields::Fields;
use super::{Context, Tool, ToolDefinition, ToolOutput};

pub(super) struct DetectIntent;

#[async_trait]
impl Tool for DetectIntent {
    fn name(&self) -> &'static str {
        "detect_intent"
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
        name: self.name().to_owned(),
        description: "Note what the caller wants as soon as it becomes clear, and again when it changes. The caller does not notice this."
            .to_owned(),
        parameters: json!({
            "type": "object",
            "properties": {
                "intent": { "type": "string", "description": "Short name in snake_case, such as book_demo, pricing, complaint or not_interested" },
                "confidence": { "type": "number", "minimum": 0, "maximum": 1, "description": "How sure you are, 0 to 1" },
                "entities": { "type": "object", "description": "What it is about, such as product, date or place", "additionalProperties": true },
            },
            "required": ["intent"],
            "additionalProperties": false,
        }),
    }
    }

    async fn call(&self, context: &Context, arguments: Map<String, Value>) -> ToolOutput {
        let mut fields = Fields::of(&arguments);
        let intent = fields.required("intent", "what they want, if it is not clear");
        let confidence = match arguments.get("confidence") {
            None | Some(Value::Null) => None,
            Some(value) => {
                let number = value
                    .as_f64()
                    .or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()));
                let valid = number.filter(|number| (0.0..=1.0).contains(number));
                if valid.is_none() {
                    fields.problem(format!("confidence {value} must be a number from 0 to 1"));
                }
                valid
            }
        };
        let entities = match arguments.get("entities") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(entities)) => entities.clone(),
            Some(_) => {
                fields.problem("entities must be a JSON object such as {\"product\": \"…\"}");
                Map::new()
            }
        };
        if let Some(problems) = fields.problems() {
            return ToolOutput::refused(format!(
                "the intent was not noted: {problems}. Call {} again.",
                self.name()
            ));
        }
        session::lock(&context.session).add_intent(Intent {
            intent: intent.clone(),
            confidence,
            entities,
            timestamp: time::now(),
        });
        ToolOutput::done(format!("Noted: {intent}. Go on with the conversation."))
    }
}
