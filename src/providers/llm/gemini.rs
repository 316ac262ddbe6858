//! Gemini's models by `POST v1beta/models/…:streamGenerateContent?alt=sse`. Formats:
//! ai.google.dev/api/generate-content and its page about thought signatures.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::events::{self, AnswerReader, Event, MAX_TOOL_CALLS};
use super::turns::{Part, Turn, sent_arguments, turns};
use super::{
    ChatChunk, ChatModel, ChatRequest, ChatStream, CutShort, TokenUsage, ToolCall, ToolChoice,
};
use crate::providers::ProviderError;
use crate::providers::openai::{Api, Refusal, said};

/// The key's variables, first choice first.
const KEYS: [&str; 2] = ["GEMINI_API_KEY", "GOOGLE_API_KEY"];

/// Calls whose signatures are kept: more than a conversation has in its history.
const MAX_SIGNATURES: usize = 128;

/// A longer signature is not kept, bytes.
const MAX_SIGNATURE_BYTES: usize = 64 * 1024;

/// Stands for the signature of a call that another model has made: it is not checked then.
const NO_SIGNATURE: &str = "skip_thought_signature_validator";

/// `vendor = "gemini"` in `[[providers.llm]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct GeminiConfig {
    /// Address of the service.
    pub base_url: String,
    /// The environment variable that holds the key; the usual one when not set.
    pub api_key_variable: Option<String>,
    /// The model.
    pub model: String,
    /// Sampling temperature, 0 to 2; the model's own when not set.
    pub temperature: Option<f32>,
    /// The longest answer in tokens, thoughts included; the model's own limit when not set.
    pub max_tokens: Option<u32>,
    /// How much models from Gemini 3 on think before they answer, such as `low`; the model's own
    /// when not set. The caller waits meanwhile.
    pub thinking_level: Option<String>,
    /// The same for Gemini 2.5, in tokens; 0 for none.
    pub thinking_budget: Option<u32>,
    /// Whether the model uses tools.
    pub tool_choice: ToolChoice,
}

impl Default for GeminiConfig {
    fn default() -> Self {
        Self {
            base_url: "https://generativelanguage.googleapis.com".to_owned(),
            api_key_variable: None,
            model: "gemini-flash-latest".to_owned(),
            temperature: None,
            max_tokens: None,
            thinking_level: None,
            thinking_budget: None,
            tool_choice: ToolChoice::Auto,
        }
    }
}

/// What the model wants back with the calls in the history: each belongs to the id of its call.
#[derive(Default)]
struct Signatures {
    known: VecDeque<(String, String)>,
    /// Calls to which we gave an id, because they came without one.
    named: u64,
}

impl Signatures {
    fn keep(&mut self, id: &str, signature: &str) {
        if signature.is_empty() || signature.len() > MAX_SIGNATURE_BYTES {
            return;
        }
        self.known.truncate(MAX_SIGNATURES - 1);
        self.known.push_front((id.to_owned(), signature.to_owned()));
    }

    fn of(&self, id: &str) -> Option<&str> {
        let known = self.known.iter().find(|(known, _)| known == id);
        known.map(|(_, signature)| signature.as_str())
    }

    fn new_id(&mut self) -> String {
        self.named += 1;
        format!("gemini_{}", self.named)
    }
}

/// One model.
pub(in crate::providers) struct Gemini {
    api: Api,
    config: GeminiConfig,
    path: String,
    signatures: Arc<Mutex<Signatures>>,
    name: String,
}

impl Gemini {
    pub fn new(http: reqwest::Client, config: GeminiConfig) -> Result<Self, ProviderError> {
        let own = config.api_key_variable.as_deref().map(|own| [own]);
        let keys = own.as_ref().map_or(&KEYS[..], |own| &own[..]);
        let api = Api::of_vendor(http, "Gemini", &config.base_url, "x-goog-api-key", keys)?;
        let model = config.model.trim_start_matches("models/");
        Ok(Self {
            api,
            path: format!("v1beta/models/{model}:streamGenerateContent?alt=sse"),
            signatures: Arc::default(),
            name: format!("gemini/{model}"),
            config,
        })
    }

    fn body(&self, request: &ChatRequest) -> Value {
        let (system, turns) = turns(&request.messages);
        let contents = turns.iter().map(|turn| self.content(turn));
        let mut body = json!({ "contents": contents.collect::<Vec<_>>() });
        if !system.trim().is_empty() {
            body["systemInstruction"] = json!({ "parts": [{ "text": system }] });
        }
        if !request.tools.is_empty() {
            let declarations = request.tools.iter().map(|tool| {
                json!({ "name": tool.name, "description": tool.description, "parametersJsonSchema": tool.parameters })
            });
            let declarations: Vec<Value> = declarations.collect();
            body["tools"] = json!([{ "functionDeclarations": declarations }]);
            let mode = match self.config.tool_choice.in_request(request) {
                ToolChoice::Auto => "AUTO",
                ToolChoice::Required => "ANY",
                ToolChoice::None => "NONE",
            };
            body["toolConfig"] = json!({ "functionCallingConfig": { "mode": mode } });
        }
        let config = &self.config;
        if let Some(temperature) = config.temperature {
            body["generationConfig"]["temperature"] = json!(temperature);
        }
        if let Some(max_tokens) = config.max_tokens {
            body["generationConfig"]["maxOutputTokens"] = json!(max_tokens);
        }
        if let Some(level) = &config.thinking_level {
            body["generationConfig"]["thinkingConfig"]["thinkingLevel"] = json!(level);
        }
        if let Some(budget) = config.thinking_budget {
            body["generationConfig"]["thinkingConfig"]["thinkingBudget"] = json!(budget);
        }
        body
    }

    fn content(&self, turn: &Turn) -> Value {
        let signatures = self.signatures();
        // Of several calls at once the first has the signature. Older models check none.
        let is_old = ["gemini-1", "gemini-2"]
            .iter()
            .any(|old| self.name["gemini/".len()..].starts_with(old));
        let mut needed = (!is_old).then_some(NO_SIGNATURE);
        let parts = turn.parts.iter().map(|part| match part {
            Part::Text(text) => json!({ "text": text }),
            Part::Call(call) => {
                let mut part = json!({ "functionCall": { "id": call.id, "name": call.name, "args": sent_arguments(call) } });
                if let Some(signature) = signatures.of(&call.id).or(needed.take()) {
                    part["thoughtSignature"] = json!(signature);
                }
                needed = None;
                part
            }
            Part::Output { call, output } => {
                json!({ "functionResponse": { "id": call.id, "name": call.name, "response": { "output": output } } })
            }
        });
        let parts: Vec<Value> = parts.collect();
        json!({ "role": if turn.is_user { "user" } else { "model" }, "parts": parts })
    }

    fn signatures(&self) -> std::sync::MutexGuard<'_, Signatures> {
        self.signatures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ChatModel for Gemini {
    fn name(&self) -> &str {
        &self.name
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, ProviderError> {
        loop {
            let post = self.api.post(&self.path).json(&self.body(&request));
            let Refusal { error, body } = match self.api.try_send(post).await {
                Ok(response) => {
                    let answer = Answer {
                        signatures: self.signatures.clone(),
                        ..Answer::default()
                    };
                    return Ok(events::answer(self.api.clone(), response, answer));
                }
                Err(refusal) => refusal,
            };
            if !matches!(error, ProviderError::BadInput { .. }) {
                return Err(error);
            }
            let words = body.as_ref().and_then(said).unwrap_or_default();
            if words.contains("API key not valid") || words.contains("API key expired") {
                return Err(self.api.refuses_key(reqwest::StatusCode::BAD_REQUEST));
            }
            // Another key or model behind the same address does not know them.
            let mut signatures = self.signatures();
            if signatures.known.is_empty() || !words.to_lowercase().contains("signature") {
                return Err(error);
            }
            signatures.known.clear();
        }
    }

    async fn prewarm(&self) {
        self.api.prewarm().await;
    }
}

/// What has come of an answer.
#[derive(Default)]
struct Answer {
    calls: Vec<ToolCall>,
    usage: TokenUsage,
    has_text: bool,
    complete: bool,
    signatures: Arc<Mutex<Signatures>>,
}

impl AnswerReader for Answer {
    fn line(&mut self, line: &str) -> Result<Event, String> {
        let Some(data) = line.trim_start_matches('\u{feff}').strip_prefix("data:") else {
            return Ok(Event::Chunks(Vec::new()));
        };
        let piece = match serde_json::from_str::<Value>(data) {
            Ok(piece) => self.piece(&piece),
            Err(_) if data.trim().is_empty() => Ok(Vec::new()),
            Err(error) => Err(format!("an event that is no piece of an answer ({error})")),
        };
        match piece {
            Ok(chunks) => Ok(Event::Chunks(chunks)),
            // The answer is whole; what follows it cannot make it worse.
            Err(_) if self.complete => Ok(Event::Chunks(Vec::new())),
            Err(what) => Err(what),
        }
    }

    fn finish(&mut self) -> Result<Vec<ChatChunk>, String> {
        if !self.complete && !self.has_text && self.calls.is_empty() {
            return Err("an answer that breaks off".to_owned());
        }
        let mut chunks = Vec::new();
        if self.usage != TokenUsage::default() {
            chunks.push(ChatChunk::Usage(self.usage));
        }
        chunks.extend(self.calls.drain(..).map(ChatChunk::ToolCall));
        Ok(chunks)
    }

    fn is_complete(&self) -> bool {
        self.complete
    }

    /// Calls come whole.
    fn cut_calls(&self) -> usize {
        0
    }
}

impl Answer {
    fn piece(&mut self, piece: &Value) -> Result<Vec<ChatChunk>, String> {
        let text = |value: Option<&Value>| {
            let text = value.and_then(Value::as_str).unwrap_or_default();
            text.to_owned()
        };
        if let Some(error) = piece.get("error").filter(|error| !error.is_null()) {
            let (status, message) = (text(error.get("status")), text(error.get("message")));
            return Err(format!("an error in mid answer: {status}: {message}"));
        }
        self.count(piece.get("usageMetadata"));
        let mut chunks = Vec::new();
        let blocked = text(piece.pointer("/promptFeedback/blockReason"));
        if !blocked.is_empty() && blocked != "BLOCK_REASON_UNSPECIFIED" {
            self.complete = true;
            chunks.push(ChatChunk::CutShort(CutShort::Filter(blocked)));
        }
        let candidates = piece.get("candidates").and_then(Value::as_array);
        // One answer is asked for; whatever else comes is not for the caller.
        let mut candidates = candidates.into_iter().flatten();
        let Some(candidate) =
            candidates.find(|one| one.get("index").and_then(Value::as_u64).unwrap_or(0) == 0)
        else {
            return Ok(chunks);
        };
        let parts = candidate
            .pointer("/content/parts")
            .and_then(Value::as_array);
        for part in parts.into_iter().flatten() {
            if let Some(call) = part.get("functionCall").filter(|call| call.is_object()) {
                self.call(call, &text(part.get("thoughtSignature")))?;
            }
            let is_thought = part.get("thought").and_then(Value::as_bool) == Some(true);
            let words = text(part.get("text"));
            if !is_thought && !words.is_empty() {
                self.has_text = true;
                chunks.push(ChatChunk::Text(words));
            }
        }
        match &*text(candidate.get("finishReason")) {
            "" | "FINISH_REASON_UNSPECIFIED" => {}
            reason => {
                self.complete = true;
                match reason {
                    "MAX_TOKENS" => chunks.push(ChatChunk::CutShort(CutShort::Length)),
                    "SAFETY" | "RECITATION" | "LANGUAGE" | "BLOCKLIST" | "PROHIBITED_CONTENT"
                    | "SPII" => {
                        chunks.push(ChatChunk::CutShort(CutShort::Filter(reason.to_owned())));
                    }
                    // `STOP`; and calls that the model could not write: asking again may help.
                    _ => {}
                }
            }
        }
        Ok(chunks)
    }

    fn call(&mut self, call: &Value, signature: &str) -> Result<(), String> {
        let text = |key: &str| call.get(key).and_then(Value::as_str).unwrap_or_default();
        let name = text("name").to_owned();
        if name.is_empty() {
            return Ok(());
        }
        if self.calls.len() >= MAX_TOOL_CALLS {
            return Err(format!("more than {MAX_TOOL_CALLS} tool calls at once"));
        }
        let mut signatures = self
            .signatures
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // The answers of tools are told apart by these.
        let is_new = |id: &str| !id.is_empty() && self.calls.iter().all(|known| known.id != id);
        let id = match text("id") {
            id if is_new(id) => id.to_owned(),
            _ => signatures.new_id(),
        };
        signatures.keep(&id, signature);
        let arguments = match call.get("args").filter(|args| args.is_object()) {
            Some(args) => args.to_string(),
            None => "{}".to_owned(),
        };
        drop(signatures);
        self.calls.push(ToolCall {
            id,
            name,
            arguments,
        });
        Ok(())
    }

    /// Counts are those of the whole answer so far; thoughts are paid for like words.
    fn count(&mut self, usage: Option<&Value>) {
        let number = |key: &str| usage.and_then(|usage| usage.get(key)?.as_u64());
        let take = |to: &mut u64, parts: &[Option<u64>]| {
            if parts.iter().any(Option::is_some) {
                *to = parts
                    .iter()
                    .flatten()
                    .fold(0, |sum: u64, part| sum.saturating_add(*part));
            }
        };
        take(
            &mut self.usage.prompt,
            &[
                number("promptTokenCount"),
                number("toolUsePromptTokenCount"),
            ],
        );
        take(
            &mut self.usage.prompt_cached,
            &[number("cachedContentTokenCount")],
        );
        take(
            &mut self.usage.completion,
            &[number("candidatesTokenCount"), number("thoughtsTokenCount")],
        );
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

    fn stream(events: &[Value]) -> String {
        events
            .iter()
            .map(|event| format!("data: {event}\r\n\r\n"))
            .collect()
    }

    fn piece(parts: Value, finish: Option<&str>) -> Value {
        let mut candidate = json!({ "content": { "parts": parts, "role": "model" }, "index": 0 });
        if let Some(finish) = finish {
            candidate["finishReason"] = json!(finish);
        }
        json!({ "candidates": [candidate], "modelVersion": "gemini-3-flash", "responseId": "r" })
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

    #[test]
    fn words_and_functions_are_read_and_thoughts_are_not_spoken_wherever_the_stream_is_cut() {
        let mut last = piece(json!([{ "text": "" }]), Some("STOP"));
        last["usageMetadata"] = json!({ "promptTokenCount": 900, "cachedContentTokenCount": 800, "candidatesTokenCount": 30,
            "thoughtsTokenCount": 12, "totalTokenCount": 942 });
        let events = [
            piece(
                json!([{ "text": "He wants a visit.", "thought": true }]),
                None,
            ),
            piece(json!([{ "text": "Einen M\u{fc}nchner? " }]), None),
            piece(
                json!([{ "text": "Gerne." }, { "executableCode": { "code": "x" } }]),
                None,
            ),
            piece(
                json!([
                    { "functionCall": { "id": "f1", "name": "book", "args": { "day": "Friday" } }, "thoughtSignature": "c2ln" },
                    { "functionCall": { "name": "end_call" } },
                ]),
                None,
            ),
            last,
        ];
        let expected = [
            text("Einen M\u{fc}nchner? "),
            text("Gerne."),
            ChatChunk::Usage(TokenUsage {
                prompt: 900,
                prompt_cached: 800,
                completion: 42,
            }),
            call("f1", "book", "{\"day\":\"Friday\"}"),
            call("gemini_1", "end_call", "{}"),
        ];
        let stream = stream(&events).into_bytes();
        for piece in 1..=stream.len() {
            assert_eq!(read_pieces(&stream, piece).unwrap(), expected, "{piece}");
        }
        for end in 0..stream.len() {
            let Ok(read) = read_pieces(&stream[..end], stream.len()) else {
                continue;
            };
            assert!(!read.is_empty(), "{end}");
            assert!(
                read.iter().all(|chunk| expected.contains(chunk)),
                "{end}: {read:?}"
            );
        }
    }

    #[test]
    fn how_an_answer_ended_is_told() {
        let words = || json!([{ "text": "Well, " }]);
        let filter = |name: &str| ChatChunk::CutShort(CutShort::Filter(name.to_owned()));
        let well = || text("Well, ");
        let blocked = json!({ "promptFeedback": { "blockReason": "PROHIBITED_CONTENT" }, "usageMetadata": {} });
        for (events, expected) in [
            (vec![piece(words(), Some("STOP"))], vec![well()]),
            (vec![piece(json!([]), Some("STOP"))], vec![]),
            (
                vec![
                    json!({ "candidates": [{ "finishReason": "MALFORMED_FUNCTION_CALL", "index": 0 }] }),
                ],
                vec![],
            ),
            (
                vec![piece(words(), Some("MAX_TOKENS"))],
                vec![well(), ChatChunk::CutShort(CutShort::Length)],
            ),
            (
                vec![piece(words(), Some("SAFETY"))],
                vec![well(), filter("SAFETY")],
            ),
            (
                vec![json!({ "candidates": [{ "finishReason": "RECITATION" }] })],
                vec![filter("RECITATION")],
            ),
            (vec![blocked], vec![filter("PROHIBITED_CONTENT")]),
            (vec![piece(words(), None)], vec![well()]),
            // Other candidates are not for the caller.
            (
                vec![
                    json!({ "candidates": [{ "index": 1, "content": { "parts": words() } }] }),
                    piece(words(), Some("STOP")),
                ],
                vec![well()],
            ),
        ] {
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
        let overloaded = json!({ "error": { "code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE" } });
        for (stream, expected) in [
            (
                stream(std::slice::from_ref(&overloaded)),
                "UNAVAILABLE: The model is overloaded.",
            ),
            ("data: {\"type\": [\n".to_owned(), "no piece"),
            ("data: {\"type\":17}\n".to_owned(), "breaks off"),
            ("[{\n".to_owned(), "breaks off"),
            (String::new(), "breaks off"),
            (
                stream(&[piece(json!([{ "text": "Hm", "thought": true }]), None)]),
                "breaks off",
            ),
        ] {
            let error = read_pieces(stream.as_bytes(), 4).unwrap_err();
            assert!(error.contains(expected), "{stream}: {error}");
        }
        let late = stream(&[piece(json!([]), Some("STOP")), overloaded]);
        assert_eq!(read_pieces(late.as_bytes(), 4), Ok(vec![]));
    }

    #[test]
    fn signatures_go_back_with_their_calls_and_few_are_kept() {
        let mut signatures = Signatures::default();
        for number in 0..2 * MAX_SIGNATURES {
            signatures.keep(&number.to_string(), "s");
        }
        signatures.keep("large", &"x".repeat(MAX_SIGNATURE_BYTES + 1));
        assert_eq!(signatures.known.len(), MAX_SIGNATURES);
        assert_eq!(
            (
                signatures.of("0"),
                signatures.of("255"),
                signatures.of("large")
            ),
            (None, Some("s"), None)
        );
    }
}
