//! The language model by `POST chat/completions` of an OpenAI-compatible server, as a stream of
//! server-sent events.
//!
//! `answer` reads what comes back, `refusals` and `history` know what servers do not take.

mod answer;
pub(super) mod history;
mod refusals;

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::stream;
use serde_json::{Value, json};

use super::{
    ChatChunk, ChatMessage, ChatModel, ChatOption, ChatRequest, ChatStream, CutShort, ToolCall,
    ToolChoice, events,
};
use crate::providers::openai::{Api, Refusal};
use crate::providers::{OpenAiChatConfig, ProviderError};
use answer::Answer;

/// One model on one server.
pub(in crate::providers) struct OpenAiChat {
    api: Api,
    model: String,
    temperature: Option<f32>,
    max_tokens: Option<u32>,
    tool_choice: ToolChoice,
    /// What the server has refused, or is known to refuse. It is not sent again in this process.
    refused: Mutex<Vec<ChatOption>>,
    name: String,
}

impl OpenAiChat {
    pub fn new(api: Api, config: &OpenAiChatConfig) -> Self {
        Self {
            api,
            model: config.model.clone(),
            temperature: config.temperature,
            max_tokens: config.max_tokens,
            tool_choice: config.tool_choice,
            refused: Mutex::new(config.refuses.clone()),
            name: format!("openai/{}", config.model),
        }
    }

    fn refused(&self) -> Vec<ChatOption> {
        self.refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The request without what the server has refused, and the options that it is sent with.
    fn body(&self, request: &ChatRequest, refused: &[ChatOption]) -> (Value, Vec<ChatOption>) {
        let takes = |option: ChatOption| !refused.contains(&option);
        let messages = history::shape(&request.messages, refused);
        let mut used = Vec::new();
        let mut body = json!({
            "model": self.model,
            "messages": messages.iter().map(message).collect::<Vec<_>>(),
            "stream": true,
        });
        if takes(ChatOption::StreamOptions) {
            body["stream_options"] = json!({ "include_usage": true });
            used.push(ChatOption::StreamOptions);
        }
        let tool_choice = self.tool_choice.in_request(request);
        // Servers differ in what they make of tools that may not be used, so that those are left
        // out.
        let may_use_tools = tool_choice != ToolChoice::None && !request.tools.is_empty();
        if may_use_tools && takes(ChatOption::Tools) {
            body["tools"] = request
                .tools
                .iter()
                .map(|tool| json!({ "type": "function", "function": { "name": tool.name, "description": tool.description, "parameters": tool.parameters } }))
                .collect();
            if tool_choice == ToolChoice::Required {
                body["tool_choice"] = json!("required");
            }
            used.push(ChatOption::Tools);
        }
        if let Some(temperature) = self.temperature
            && takes(ChatOption::Temperature)
        {
            body["temperature"] = json!(temperature);
            used.push(ChatOption::Temperature);
        }
        if let Some(max_tokens) = self.max_tokens {
            // The older name of the same.
            if takes(ChatOption::MaxCompletionTokens) {
                body["max_completion_tokens"] = json!(max_tokens);
                used.push(ChatOption::MaxCompletionTokens);
            } else if takes(ChatOption::MaxTokens) {
                body["max_tokens"] = json!(max_tokens);
                used.push(ChatOption::MaxTokens);
            }
        }
        let shapes = [ChatOption::RoleOrder, ChatOption::SystemRole];
        used.extend(shapes.into_iter().filter(|option| takes(*option)));
        (body, used)
    }

    /// Remembers what is not to be sent again, and tells the operator once.
    fn remember(&self, options: &[ChatOption], why: &ProviderError) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        for option in options {
            if refused.contains(option) {
                continue;
            }
            refused.push(*option);
            let name = option.as_str();
            tracing::warn!(
                server.host = self.api.host(),
                option = name,
                "the language model refused {name} and is asked without it for the rest of the call; add {name:?} to \
                 providers.llm_refuses to spare every call this request: {why}"
            );
        }
    }
}

fn message(message: &ChatMessage) -> Value {
    match message {
        ChatMessage::System(text) => json!({ "role": "system", "content": text }),
        ChatMessage::User(text) => json!({ "role": "user", "content": text }),
        ChatMessage::Assistant { text, tool_calls } if tool_calls.is_empty() => {
            json!({ "role": "assistant", "content": text })
        }
        ChatMessage::Assistant { text, tool_calls } => json!({
            "role": "assistant",
            "content": if text.is_empty() { Value::Null } else { json!(text) },
            "tool_calls": tool_calls.iter().map(|call| json!({
                "id": call.id, "type": "function", "function": { "name": call.name, "arguments": sent_arguments(call) },
            })).collect::<Vec<_>>(),
        }),
        ChatMessage::Tool { call_id, output } => {
            json!({ "role": "tool", "tool_call_id": call_id, "content": output })
        }
    }
}

/// Servers parse the arguments of past calls for their templates, and refuse the whole request when
/// they are not JSON. What was wrong with them stands in the tool's answer.
fn sent_arguments(call: &ToolCall) -> &str {
    match serde_json::from_str::<Value>(&call.arguments) {
        Ok(Value::Object(_)) => &call.arguments,
        _ => "{}",
    }
}

#[async_trait]
impl ChatModel for OpenAiChat {
    fn name(&self) -> &str {
        &self.name
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, ProviderError> {
        let response = loop {
            let refused = self.refused();
            let (body, used) = self.body(&request, &refused);
            let Refusal { error, body } = match self
                .api
                .try_send(self.api.post("chat/completions").json(&body))
                .await
            {
                Ok(response) => break response,
                Err(refusal) => refusal,
            };
            let Some(body) = body else {
                return Err(error);
            };
            if let Some(filter) = body.get("error").and_then(answer::filter_of_error) {
                let cut = ChatChunk::CutShort(CutShort::Filter(filter));
                return Ok(Box::pin(stream::iter([Ok(cut)])));
            }
            // Each time around at least one more option is left out, and there are few.
            let named = refusals::named(&body, &used);
            if named.is_empty() {
                return Err(error);
            }
            self.remember(&named, &error);
        };
        let answer = Answer::new(request.tools.into_iter().map(|tool| tool.name));
        Ok(events::answer(self.api.clone(), response, answer))
    }

    async fn prewarm(&self) {
        self.api.prewarm().await;
    }
}

/// Reads a stream that comes in pieces of `piece` bytes; answers what it made of it. For fuzzing.
#[cfg(feature = "internals")]
pub(super) fn read_pieces(stream: &[u8], piece: usize) -> Result<Vec<ChatChunk>, String> {
    events::read_pieces(Answer::default(), stream, piece)
}
