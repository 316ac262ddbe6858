//! The language model by `POST chat/completions` of an OpenAI-compatible server, as a stream of
//! server-sent events.
//!
//! `answer` reads what comes back, `refusals` and `history` know what servers do not take.

mod answer;
mod history;
mod refusals;

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use reqwest::Response;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    ChatChunk, ChatMessage, ChatModel, ChatOption, ChatRequest, ChatStream, CutShort, ToolCall,
};
use crate::providers::openai::{Api, Refusal};
use crate::providers::{OpenAiChatConfig, ProviderError};
use answer::{Answer, Event, Lines, TooLong};

/// How long the rest of a stream is waited for once the answer is complete: only the usage is
/// missing, and some servers keep the connection open.
const END_GRACE: Duration = Duration::from_millis(500);

/// One model on one server.
pub(in crate::providers) struct OpenAiChat {
    api: Api,
    model: String,
    temperature: Option<f32>,
    max_tokens: Option<u32>,
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
        if !request.tools.is_empty() && takes(ChatOption::Tools) {
            body["tools"] = request
                .tools
                .iter()
                .map(|tool| json!({ "type": "function", "function": { "name": tool.name, "description": tool.description, "parameters": tool.parameters } }))
                .collect();
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
        let reader = Reader {
            response,
            lines: Lines::default(),
            answer: Answer::new(request.tools.into_iter().map(|tool| tool.name)),
            ready: VecDeque::new(),
            ended: false,
            api: self.api.clone(),
        };
        Ok(Box::pin(stream::try_unfold(reader, async |mut reader| {
            Ok(reader.next().await?.map(|chunk| (chunk, reader)))
        })))
    }

    async fn prewarm(&self) {
        self.api.prewarm().await;
    }
}

/// Reads one answer.
struct Reader {
    response: Response,
    lines: Lines,
    answer: Answer,
    ready: VecDeque<ChatChunk>,
    ended: bool,
    api: Api,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<ChatChunk>, ProviderError> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            if self.ended {
                return Ok(None);
            }
            let bytes = if self.answer.complete {
                // However the stream ends now, the answer is there.
                match timeout(END_GRACE, self.response.chunk()).await {
                    Ok(Ok(bytes)) => bytes,
                    Ok(Err(_)) | Err(_) => None,
                }
            } else {
                self.response
                    .chunk()
                    .await
                    .map_err(|error| self.api.broken(error))?
            };
            match bytes {
                Some(bytes) => {
                    let lines = self
                        .lines
                        .add(&bytes)
                        .map_err(|TooLong| self.api.strange("a line that has no end"))?;
                    for line in lines {
                        self.line(&line)?;
                        if self.ended {
                            break;
                        }
                    }
                }
                None => {
                    if let Some(line) = self.lines.finish() {
                        // The last line may be whole or cut anywhere; half of one says nothing.
                        let _ = self.line(&line);
                    }
                    if !self.ended {
                        self.finish()?;
                    }
                }
            }
        }
    }

    fn line(&mut self, line: &str) -> Result<(), ProviderError> {
        match self.answer.line(line) {
            Ok(Event::Chunks(chunks)) => self.ready.extend(chunks),
            Ok(Event::Done) => self.finish()?,
            Err(what) => return Err(self.api.strange(&what)),
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), ProviderError> {
        self.ended = true;
        let rest = self
            .answer
            .finish()
            .map_err(|what| self.api.strange(&what))?;
        if self.answer.cut_calls > 0 {
            tracing::warn!(
                server.host = self.api.host(),
                "the answer of the language model ended in the middle of a tool call, which is not run"
            );
        }
        self.ready.extend(rest);
        Ok(())
    }
}

/// Reads a stream that comes in pieces of `piece` bytes; answers what it made of it. For fuzzing.
#[cfg(feature = "internals")]
pub(crate) fn read_pieces(stream: &[u8], piece: usize) -> Result<Vec<ChatChunk>, String> {
    let (mut lines, mut answer) = (Lines::default(), Answer::default());
    let mut all = Vec::new();
    for bytes in stream.chunks(piece.max(1)) {
        let found = lines.add(bytes).map_err(|TooLong| "too long".to_owned())?;
        for line in found {
            if let Event::Chunks(chunks) = answer.line(&line)? {
                all.extend(chunks);
            }
        }
    }
    all.extend(answer.finish()?);
    Ok(all)
}
