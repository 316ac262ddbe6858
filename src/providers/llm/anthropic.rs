//! Anthropic's models by `POST v1/messages`, as a stream of server-sent events. Formats:
//! platform.claude.com/docs/en/api/messages and its page about streaming.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::events::{self, AnswerReader, Event, MAX_LINE_BYTES, MAX_TOOL_CALLS};
use super::turns::{Part, sent_arguments, turns};
use super::{
    ChatChunk, ChatModel, ChatRequest, ChatStream, CutShort, TokenUsage, ToolCall, ToolChoice,
    arguments,
};
use crate::providers::ProviderError;
use crate::providers::openai::{Api, Refusal};

/// The key's variable.
const KEY: &str = "ANTHROPIC_API_KEY";

/// The version of the interface: the last that takes the key in a header of its own and, of models
/// that have one, a temperature.
const VERSION: &str = "2023-06-01";

/// `vendor = "anthropic"` in `[[providers.llm]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnthropicConfig {
    /// Address of the service.
    pub base_url: String,
    /// The environment variable that holds the key; the usual one when not set.
    pub api_key_variable: Option<String>,
    /// The model.
    pub model: String,
    /// Sampling temperature, 0 to 1; the model's own when not set.
    pub temperature: Option<f32>,
    /// The longest answer in tokens.
    pub max_tokens: u32,
    /// Whether the model uses tools.
    pub tool_choice: ToolChoice,
}

impl Default for AnthropicConfig {
    fn default() -> Self {
        Self {
            base_url: "https://api.anthropic.com".to_owned(),
            api_key_variable: None,
            model: "claude-haiku-4-5".to_owned(),
            temperature: None,
            // The interface wants a number; nobody listens to longer answers on a telephone.
            max_tokens: 1_024,
            tool_choice: ToolChoice::Auto,
        }
    }
}

/// One model.
pub(in crate::providers) struct Anthropic {
    api: Api,
    config: AnthropicConfig,
    /// The model takes no temperature; learnt from its refusal.
    has_no_temperature: AtomicBool,
    name: String,
}

impl Anthropic {
    pub fn new(http: reqwest::Client, config: AnthropicConfig) -> Result<Self, ProviderError> {
        let key = config.api_key_variable.as_deref().unwrap_or(KEY);
        let api = Api::of_vendor(http, "Anthropic", &config.base_url, "x-api-key", &[key])?;
        Ok(Self {
            api,
            has_no_temperature: AtomicBool::new(false),
            name: format!("anthropic/{}", config.model),
            config,
        })
    }

    fn temperature(&self) -> Option<f32> {
        let refused = self.has_no_temperature.load(Ordering::Relaxed);
        self.config.temperature.filter(|_| !refused)
    }

    fn body(&self, request: &ChatRequest) -> Value {
        let (system, turns) = turns(&request.messages);
        let messages = turns.iter().map(|turn| {
            let role = if turn.is_user { "user" } else { "assistant" };
            json!({ "role": role, "content": turn.parts.iter().map(block).collect::<Vec<_>>() })
        });
        let mut body = json!({
            "model": self.config.model,
            "max_tokens": self.config.max_tokens,
            "messages": messages.collect::<Vec<_>>(),
            "stream": true,
        });
        if !system.trim().is_empty() {
            // Tools and instructions are the same in every request of a call.
            body["system"] = json!([{ "type": "text", "text": system, "cache_control": { "type": "ephemeral" } }]);
        }
        if !request.tools.is_empty() {
            body["tools"] = request
                .tools
                .iter()
                .map(|tool| json!({ "name": tool.name, "description": tool.description, "input_schema": tool.parameters }))
                .collect();
            let choice = match self.config.tool_choice.in_request(request) {
                ToolChoice::Auto => "auto",
                ToolChoice::Required => "any",
                ToolChoice::None => "none",
            };
            body["tool_choice"] = json!({ "type": choice });
        }
        if let Some(temperature) = self.temperature() {
            body["temperature"] = json!(temperature);
        }
        body
    }
}

fn block(part: &Part) -> Value {
    match part {
        Part::Text(text) => json!({ "type": "text", "text": text }),
        Part::Call(call) => {
            json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": sent_arguments(call) })
        }
        Part::Output { call, output } => {
            json!({ "type": "tool_result", "tool_use_id": call.id, "content": output })
        }
    }
}

#[async_trait]
impl ChatModel for Anthropic {
    fn name(&self) -> &str {
        &self.name
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, ProviderError> {
        loop {
            let has_temperature = self.temperature().is_some();
            let post = self.api.post("v1/messages");
            let post = post.header("anthropic-version", VERSION);
            let Refusal { error, .. } =
                match self.api.try_send(post.json(&self.body(&request))).await {
                    Ok(response) => {
                        return Ok(events::answer(
                            self.api.clone(),
                            response,
                            Answer::default(),
                        ));
                    }
                    Err(refusal) => refusal,
                };
            let is_about_it = matches!(error, ProviderError::BadInput { .. })
                && error.to_string().contains("temperature");
            if !has_temperature || !is_about_it {
                return Err(error);
            }
            tracing::warn!(
                server.host = self.api.host(),
                "the language model takes no temperature and is asked without it for the rest of the call: {error}"
            );
            self.has_no_temperature.store(true, Ordering::Relaxed);
        }
    }

    async fn prewarm(&self) {
        self.api.prewarm().await;
    }
}

/// What has come of an answer.
#[derive(Default)]
struct Answer {
    calls: Vec<PartialCall>,
    usage: TokenUsage,
    has_text: bool,
    complete: bool,
    /// The tokens were used up.
    is_cut: bool,
    cut_calls: usize,
}

/// A tool call whose arguments are still coming.
struct PartialCall {
    index: u64,
    id: String,
    name: String,
    /// Given whole with the beginning, for an answer that does not stream them.
    whole: Option<Value>,
    arguments: String,
    /// All of it has come.
    has_ended: bool,
}

impl AnswerReader for Answer {
    fn line(&mut self, line: &str) -> Result<Event, String> {
        // Each event says its name in its data, too.
        let Some(data) = line.strip_prefix("data:") else {
            return Ok(Event::Chunks(Vec::new()));
        };
        let event: Value = match serde_json::from_str(data) {
            Ok(event) => event,
            // The answer is whole; what follows it cannot make it worse.
            Err(_) if self.complete || data.trim().is_empty() => {
                return Ok(Event::Chunks(Vec::new()));
            }
            Err(error) => {
                return Err(format!("an event that is no piece of an answer ({error})"));
            }
        };
        let text = |path: &str| {
            event
                .pointer(path)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let index = event.get("index").and_then(Value::as_u64).unwrap_or(0);
        let mut chunks = Vec::new();
        match text("/type") {
            "message_start" => self.count(event.pointer("/message/usage")),
            "content_block_start" => match text("/content_block/type") {
                "text" => self.say(text("/content_block/text"), &mut chunks),
                "tool_use" if self.calls.len() >= MAX_TOOL_CALLS => {
                    return Err(format!("more than {MAX_TOOL_CALLS} tool calls at once"));
                }
                "tool_use" => self.calls.push(PartialCall {
                    index,
                    id: text("/content_block/id").to_owned(),
                    name: text("/content_block/name").to_owned(),
                    whole: event
                        .pointer("/content_block/input")
                        .filter(|input| input.as_object().is_some_and(|input| !input.is_empty()))
                        .cloned(),
                    arguments: String::new(),
                    has_ended: false,
                }),
                // Thoughts are not spoken, and tools that run at the vendor are not offered.
                _ => {}
            },
            "content_block_delta" => match text("/delta/type") {
                "text_delta" => self.say(text("/delta/text"), &mut chunks),
                "input_json_delta" => {
                    let mut calls = self.calls.iter_mut().rev();
                    if let Some(call) = calls.find(|call| call.index == index) {
                        call.arguments.push_str(text("/delta/partial_json"));
                        if call.arguments.len() > MAX_LINE_BYTES {
                            return Err("a tool call that has no end".to_owned());
                        }
                    }
                }
                _ => {}
            },
            "content_block_stop" => {
                for call in self.calls.iter_mut().filter(|call| call.index == index) {
                    call.has_ended = true;
                }
            }
            "message_delta" => {
                self.count(event.get("usage"));
                if let Some(reason) = event.pointer("/delta/stop_reason").and_then(Value::as_str) {
                    self.complete = true;
                    match reason {
                        "refusal" => {
                            chunks.push(ChatChunk::CutShort(CutShort::Filter(reason.to_owned())))
                        }
                        "max_tokens" | "model_context_window_exceeded" => {
                            self.is_cut = true;
                            chunks.push(ChatChunk::CutShort(CutShort::Length));
                        }
                        _ => {}
                    }
                }
            }
            "message_stop" => {
                self.complete = true;
                return Ok(Event::Done);
            }
            "error" if !self.complete => {
                let (kind, message) = (text("/error/type"), text("/error/message"));
                return Err(format!("an error in mid answer: {kind}: {message}"));
            }
            // `ping`, and what later versions add.
            _ => {}
        }
        Ok(Event::Chunks(chunks))
    }

    fn finish(&mut self) -> Result<Vec<ChatChunk>, String> {
        let mut chunks = Vec::new();
        if self.usage != TokenUsage::default() {
            chunks.push(ChatChunk::Usage(self.usage));
        }
        let begun = self.calls.len();
        for call in std::mem::take(&mut self.calls) {
            let has_ended = (call.has_ended || self.complete) && !self.is_cut;
            let arguments = match (call.whole, call.arguments.trim()) {
                (Some(whole), "") => whole.to_string(),
                (None, "") if has_ended => "{}".to_owned(),
                _ => call.arguments,
            };
            // A call without its end: the connection was cut, or the tokens were used up.
            if call.id.is_empty() || call.name.is_empty() || !arguments::is_whole(&arguments) {
                continue;
            }
            chunks.push(ChatChunk::ToolCall(ToolCall {
                id: call.id,
                name: call.name,
                arguments: arguments::tidy(arguments),
            }));
        }
        let whole = chunks
            .iter()
            .filter(|chunk| matches!(chunk, ChatChunk::ToolCall(_)));
        let whole = whole.count();
        self.cut_calls = begun - whole;
        if !self.complete && !self.has_text && whole == 0 {
            return Err("an answer that breaks off".to_owned());
        }
        Ok(chunks)
    }

    fn is_complete(&self) -> bool {
        self.complete
    }

    fn cut_calls(&self) -> usize {
        self.cut_calls
    }
}

impl Answer {
    fn say(&mut self, text: &str, chunks: &mut Vec<ChatChunk>) {
        if !text.is_empty() {
            self.has_text = true;
            chunks.push(ChatChunk::Text(text.to_owned()));
        }
    }

    /// Counts are those of the whole answer so far. What goes into the cache or comes out of it is
    /// not among `input_tokens`.
    fn count(&mut self, usage: Option<&Value>) {
        let number = |key: &str| usage.and_then(|usage| usage.get(key)?.as_u64());
        let cached = number("cache_read_input_tokens");
        let parts = [
            number("input_tokens"),
            number("cache_creation_input_tokens"),
            cached,
        ];
        if parts[0].is_some() {
            self.usage.prompt = parts
                .iter()
                .flatten()
                .fold(0, |sum, part| sum.saturating_add(*part));
            self.usage.prompt_cached = cached.unwrap_or(0);
        }
        self.usage.completion = number("output_tokens").unwrap_or(self.usage.completion);
    }
}

/// Reads a stream that comes in pieces of `piece` bytes; answers what it made of it.
#[cfg(any(test, feature = "internals"))]
pub(super) fn read_pieces(stream: &[u8], piece: usize) -> Result<Vec<ChatChunk>, String> {
    events::read_pieces(Answer::default(), stream, piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream as the vendor's documentation shows it, with a pause in a thought.
    fn stream(events: &[Value]) -> String {
        let line = |event: &Value| {
            let name = event["type"].as_str().unwrap_or_default();
            format!("event: {name}\ndata: {event}\n\n")
        };
        events.iter().map(line).collect()
    }

    fn start(usage: Value) -> Value {
        json!({ "type": "message_start", "message": { "id": "msg_1", "type": "message", "role": "assistant",
            "model": "claude-haiku-4-5", "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage } })
    }

    fn begin(index: u64, block: Value) -> Value {
        json!({ "type": "content_block_start", "index": index, "content_block": block })
    }

    fn delta(index: u64, delta: Value) -> Value {
        json!({ "type": "content_block_delta", "index": index, "delta": delta })
    }

    fn stop(index: u64) -> Value {
        json!({ "type": "content_block_stop", "index": index })
    }

    fn end(reason: &str, tokens: u64) -> Value {
        json!({ "type": "message_delta", "delta": { "stop_reason": reason, "stop_sequence": null }, "usage": { "output_tokens": tokens } })
    }

    fn call(id: &str, name: &str, arguments: &str) -> ChatChunk {
        ChatChunk::ToolCall(ToolCall {
            id: id.to_owned(),
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        })
    }

    fn text(text: &str) -> ChatChunk {
        ChatChunk::Text(text.to_owned())
    }

    fn usage(prompt: u64, prompt_cached: u64, completion: u64) -> ChatChunk {
        ChatChunk::Usage(TokenUsage {
            prompt,
            prompt_cached,
            completion,
        })
    }

    #[test]
    fn words_and_tools_are_read_and_thoughts_are_not_spoken_wherever_the_stream_is_cut() {
        let events = [
            start(
                json!({ "input_tokens": 20, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 1000, "output_tokens": 1 }),
            ),
            begin(
                0,
                json!({ "type": "thinking", "thinking": "", "signature": "" }),
            ),
            json!({ "type": "ping" }),
            delta(
                0,
                json!({ "type": "thinking_delta", "thinking": "He wants a visit." }),
            ),
            delta(0, json!({ "type": "signature_delta", "signature": "EqQB" })),
            stop(0),
            begin(1, json!({ "type": "text", "text": "" })),
            delta(
                1,
                json!({ "type": "text_delta", "text": "Einen M\u{fc}nchner? " }),
            ),
            delta(1, json!({ "type": "text_delta", "text": "Gerne." })),
            stop(1),
            begin(
                2,
                json!({ "type": "tool_use", "id": "toolu_1", "name": "book", "input": {} }),
            ),
            delta(2, json!({ "type": "input_json_delta", "partial_json": "" })),
            delta(
                2,
                json!({ "type": "input_json_delta", "partial_json": "{\"day\": \"Fri" }),
            ),
            delta(
                2,
                json!({ "type": "input_json_delta", "partial_json": "day\"}" }),
            ),
            stop(2),
            begin(
                3,
                json!({ "type": "tool_use", "id": "toolu_2", "name": "end_call", "input": {} }),
            ),
            stop(3),
            json!({ "type": "a_later_event", "index": "x" }),
            end("tool_use", 60),
            json!({ "type": "message_stop" }),
        ];
        let expected = [
            text("Einen M\u{fc}nchner? "),
            text("Gerne."),
            usage(1025, 1000, 60),
            call("toolu_1", "book", "{\"day\": \"Friday\"}"),
            call("toolu_2", "end_call", "{}"),
        ];
        let stream = stream(&events).into_bytes();
        for piece in 1..=stream.len() {
            assert_eq!(read_pieces(&stream, piece).unwrap(), expected, "{piece}");
        }
        // A stream that just ends: what is there of the words, and no half of a call.
        for end in 0..stream.len() {
            let Ok(read) = read_pieces(&stream[..end], stream.len()) else {
                continue;
            };
            for chunk in &read {
                let is_beginning = match chunk {
                    ChatChunk::Usage(_) => true,
                    chunk => expected.contains(chunk),
                };
                assert!(is_beginning, "{end}: {chunk:?}");
            }
            assert!(
                read.iter()
                    .any(|chunk| !matches!(chunk, ChatChunk::Usage(_))),
                "{end}"
            );
        }
    }

    #[test]
    fn how_an_answer_ended_is_told() {
        let words = [
            begin(0, json!({ "type": "text", "text": "" })),
            delta(0, json!({ "type": "text_delta", "text": "Well, " })),
        ];
        let half = [
            begin(
                1,
                json!({ "type": "tool_use", "id": "t", "name": "book", "input": {} }),
            ),
            delta(
                1,
                json!({ "type": "input_json_delta", "partial_json": "{\"day" }),
            ),
        ];
        let cut = |cut: CutShort| ChatChunk::CutShort(cut);
        let filter = CutShort::Filter("refusal".to_owned());
        let well = || text("Well, ");
        let cases: [(Vec<Value>, Vec<ChatChunk>); 8] = [
            (vec![end("end_turn", 0)], vec![]),
            (
                [&words[..], &[end("end_turn", 3)]].concat(),
                vec![well(), usage(0, 0, 3)],
            ),
            (
                [&words[..], &[end("max_tokens", 3)]].concat(),
                vec![well(), cut(CutShort::Length), usage(0, 0, 3)],
            ),
            (
                [&words[..], &[end("model_context_window_exceeded", 0)]].concat(),
                vec![well(), cut(CutShort::Length)],
            ),
            (
                [&words[..], &[end("refusal", 0)]].concat(),
                vec![well(), cut(filter.clone())],
            ),
            (vec![end("refusal", 0)], vec![cut(filter)]),
            // A call whose end did not fit is not run.
            (
                [&words[..], &half, &[stop(1), end("max_tokens", 0)]].concat(),
                vec![well(), cut(CutShort::Length)],
            ),
            ([&words[..], &half].concat(), vec![well()]),
        ];
        for (events, expected) in cases {
            let stream = stream(&events);
            assert_eq!(
                read_pieces(stream.as_bytes(), 9).unwrap(),
                expected,
                "{stream}"
            );
        }
    }

    #[test]
    fn what_is_no_answer_is_an_error_and_after_the_end_it_is_not() {
        let overloaded = json!({ "type": "error", "error": { "type": "overloaded_error", "message": "Overloaded" } });
        for (stream, expected) in [
            (
                stream(std::slice::from_ref(&overloaded)),
                "overloaded_error: Overloaded",
            ),
            ("data: {\"type\": [\n".to_owned(), "no piece"),
            ("data: <html>\n".to_owned(), "no piece"),
            ("<html>\n".to_owned(), "breaks off"),
            (String::new(), "breaks off"),
            ("data: 7\n\ndata:\n".to_owned(), "breaks off"),
            (
                stream(&[begin(
                    0,
                    json!({ "type": "tool_use", "id": "t", "name": "book" }),
                )]),
                "breaks off",
            ),
        ] {
            let error = read_pieces(stream.as_bytes(), 4).unwrap_err();
            assert!(error.contains(expected), "{stream}: {error}");
        }
        let mut late = stream(&[end("end_turn", 0), overloaded]);
        late.push_str("data: <html>\n");
        assert_eq!(read_pieces(late.as_bytes(), 4), Ok(vec![]));
    }
}
