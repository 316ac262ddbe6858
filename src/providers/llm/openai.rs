//! The language model by `POST chat/completions` of an OpenAI-compatible server, as a stream of server-sent events.

use std::collections::VecDeque;

use async_trait::async_trait;
use futures_util::stream;
use reqwest::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ChatChunk, ChatMessage, ChatModel, ChatRequest, ChatStream, TokenUsage, ToolCall};
use crate::providers::ProviderError;
use crate::providers::openai::Api;

/// The longest line of the stream that is taken, bytes: a piece of an answer has a few hundred.
const MAX_LINE_BYTES: usize = 1024 * 1024;
/// The most tools that one answer may ask for.
const MAX_TOOL_CALLS: usize = 32;

/// One model on one server.
pub(in crate::providers) struct OpenAiChat {
    api: Api,
    model: String,
    temperature: Option<f32>,
    max_tokens: Option<u32>,
    name: String,
}

impl OpenAiChat {
    pub fn new(api: Api, model: &str, temperature: Option<f32>, max_tokens: Option<u32>) -> Self {
        Self {
            api,
            model: model.to_owned(),
            temperature,
            max_tokens,
            name: format!("openai/{model}"),
        }
    }

    fn body(&self, request: &ChatRequest) -> Value {
        let mut body = json!({
            "model": self.model,
            "messages": request.messages.iter().map(message).collect::<Vec<_>>(),
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if !request.tools.is_empty() {
            body["tools"] = request
                .tools
                .iter()
                .map(|tool| json!({ "type": "function", "function": { "name": tool.name, "description": tool.description, "parameters": tool.parameters } }))
                .collect();
        }
        if let Some(temperature) = self.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(max_tokens) = self.max_tokens {
            body["max_completion_tokens"] = json!(max_tokens);
        }
        body
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
                "id": call.id, "type": "function", "function": { "name": call.name, "arguments": call.arguments },
            })).collect::<Vec<_>>(),
        }),
        ChatMessage::Tool { call_id, output } => {
            json!({ "role": "tool", "tool_call_id": call_id, "content": output })
        }
    }
}

#[async_trait]
impl ChatModel for OpenAiChat {
    fn name(&self) -> &str {
        &self.name
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, ProviderError> {
        let response = self
            .api
            .send(self.api.post("chat/completions").json(&self.body(&request)))
            .await?;
        let reader = Reader {
            response,
            lines: Lines::default(),
            answer: Answer::default(),
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
            match self
                .response
                .chunk()
                .await
                .map_err(|error| self.api.broken(error))?
            {
                Some(bytes) => {
                    let lines = self
                        .lines
                        .add(&bytes)
                        .map_err(|TooLong| self.api.strange("a line that has no end"))?;
                    for line in lines {
                        match self.answer.line(&line) {
                            Ok(Event::Chunks(chunks)) => self.ready.extend(chunks),
                            Ok(Event::Done) => self.finish()?,
                            Err(what) => return Err(self.api.strange(&what)),
                        }
                        if self.ended {
                            break;
                        }
                    }
                }
                None => self.finish()?,
            }
        }
    }

    /// The stream is over. One that never said so was cut short, and half a sentence or half a tool call is no answer.
    fn finish(&mut self) -> Result<(), ProviderError> {
        self.ended = true;
        if !self.answer.complete {
            return Err(self.api.strange("an answer that breaks off"));
        }
        self.ready.extend(self.answer.take_tool_calls());
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
    all.extend(answer.take_tool_calls());
    Ok(all)
}

struct TooLong;

/// Cuts a stream of bytes into lines.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn add(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        self.rest.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        if self.rest.len() > MAX_LINE_BYTES {
            Err(TooLong)
        } else {
            Ok(lines)
        }
    }
}

/// What one line of the stream means.
#[derive(Debug, PartialEq)]
enum Event {
    Chunks(Vec<ChatChunk>),
    Done,
}

/// What has come of an answer: text goes on at once, tool calls are put together until the end.
#[derive(Default)]
struct Answer {
    tool_calls: Vec<ToolCall>,
    complete: bool,
}

#[derive(Deserialize)]
struct Piece {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCallDelta>>,
}

#[derive(Deserialize)]
struct ToolCallDelta {
    index: Option<usize>,
    id: Option<String>,
    function: Option<FunctionDelta>,
}

#[derive(Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: u64,
}

impl Answer {
    /// One line of the event stream. The error says what was strange about it.
    fn line(&mut self, line: &str) -> Result<Event, String> {
        let Some(data) = line.strip_prefix("data:") else {
            // Comments keep the connection open; other fields carry nothing for us.
            return Ok(Event::Chunks(Vec::new()));
        };
        let data = data.trim();
        if data == "[DONE]" {
            self.complete = true;
            return Ok(Event::Done);
        }
        if data.is_empty() {
            return Ok(Event::Chunks(Vec::new()));
        }
        let piece: Piece = serde_json::from_str(data)
            .map_err(|error| format!("an event that is no piece of an answer ({error})"))?;
        if let Some(error) = piece.error.filter(|error| !error.is_null()) {
            let message = error
                .get("message")
                .and_then(Value::as_str)
                .unwrap_or("no reason given");
            return Err(format!("an error in mid answer: {message}"));
        }
        let mut chunks = Vec::new();
        for choice in piece.choices {
            if let Some(text) = choice.delta.content.filter(|text| !text.is_empty()) {
                chunks.push(ChatChunk::Text(text));
            }
            for delta in choice.delta.tool_calls.into_iter().flatten() {
                self.add_tool_call(delta)?;
            }
            if choice.finish_reason.is_some() {
                self.complete = true;
            }
        }
        if let Some(usage) = piece.usage {
            chunks.push(ChatChunk::Usage(TokenUsage {
                prompt: usage.prompt_tokens,
                prompt_cached: usage
                    .prompt_tokens_details
                    .map_or(0, |details| details.cached_tokens),
                completion: usage.completion_tokens,
            }));
        }
        Ok(Event::Chunks(chunks))
    }

    fn add_tool_call(&mut self, delta: ToolCallDelta) -> Result<(), String> {
        // Servers that send whole calls leave the index out; each is a call of its own.
        let index = delta.index.unwrap_or(self.tool_calls.len());
        if index >= MAX_TOOL_CALLS {
            return Err(format!("more than {MAX_TOOL_CALLS} tool calls at once"));
        }
        while self.tool_calls.len() <= index {
            self.tool_calls.push(ToolCall {
                id: String::new(),
                name: String::new(),
                arguments: String::new(),
            });
        }
        let call = &mut self.tool_calls[index];
        if let Some(id) = delta.id.filter(|id| !id.is_empty()) {
            call.id = id;
        }
        if let Some(function) = delta.function {
            if let Some(name) = function.name {
                call.name.push_str(&name);
            }
            if let Some(arguments) = function.arguments {
                call.arguments.push_str(&arguments);
            }
        }
        if call.arguments.len() > MAX_LINE_BYTES {
            return Err("a tool call that has no end".into());
        }
        Ok(())
    }

    fn take_tool_calls(&mut self) -> impl Iterator<Item = ChatChunk> + use<> {
        std::mem::take(&mut self.tool_calls)
            .into_iter()
            .enumerate()
            .filter(|(_, call)| !call.name.is_empty())
            .map(|(index, mut call)| {
                if call.id.is_empty() {
                    call.id = format!("call_{index}");
                }
                ChatChunk::ToolCall(call)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(events: &[&str]) -> (Vec<ChatChunk>, Answer) {
        let mut answer = Answer::default();
        let mut chunks = Vec::new();
        for event in events {
            match answer.line(event).unwrap() {
                Event::Chunks(more) => chunks.extend(more),
                Event::Done => chunks.extend(answer.take_tool_calls()),
            }
        }
        (chunks, answer)
    }

    #[test]
    fn a_tool_call_comes_in_pieces_and_goes_on_whole() {
        let (chunks, answer) = texts(&[
            r#"data: {"choices":[{"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"c1","function":{"name":"create_lead","arguments":""}}]}}]}"#,
            r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"name\":"}}]}}]}"#,
            r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\"J\"}"}}]}}]}"#,
            r#"data: {"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#,
            r#"data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":5}}}"#,
            "",
            ": keep-alive",
            "data: [DONE]",
        ]);
        let call = ToolCall {
            id: "c1".into(),
            name: "create_lead".into(),
            arguments: r#"{"name":"J"}"#.into(),
        };
        let usage = TokenUsage {
            prompt: 7,
            prompt_cached: 5,
            completion: 3,
        };
        assert_eq!(chunks, [ChatChunk::Usage(usage), ChatChunk::ToolCall(call)]);
        assert!(answer.complete);
    }

    #[test]
    fn an_error_in_mid_answer_is_an_error() {
        let mut answer = Answer::default();
        assert!(
            answer
                .line(r#"data: {"error":{"message":"overloaded"}}"#)
                .unwrap_err()
                .contains("overloaded")
        );
        assert!(
            answer
                .line("data: <html>")
                .unwrap_err()
                .contains("no piece")
        );
    }

    #[test]
    fn lines_survive_any_cut() {
        let stream = "data: {\"a\": \"\u{fc}\"}\r\n\ndata: [DONE]\n".as_bytes();
        for cut in 0..=stream.len() {
            let mut lines = Lines::default();
            let mut got = lines.add(&stream[..cut]).ok().unwrap();
            got.extend(lines.add(&stream[cut..]).ok().unwrap());
            assert_eq!(got, ["data: {\"a\": \"\u{fc}\"}", "", "data: [DONE]"]);
        }
    }
}
