//! Reads one answer, event by event, in all the shapes that servers give it. Pure.
//!
//! The shape is OpenAI's `chat.completion.chunk`. Every field may be missing or null: what is there
//! is taken, and only what cannot be a piece of an answer at all is an error.

use serde_json::Value;

use super::super::arguments;
use super::super::events::{AnswerReader, Event, MAX_LINE_BYTES, MAX_TOOL_CALLS};
use super::super::{ChatChunk, CutShort, TokenUsage, ToolCall};

/// What has come of an answer: text goes on at once, tool calls are put together until the end.
#[derive(Default)]
pub(super) struct Answer {
    /// Names of the tools that the model may use.
    offered: Vec<String>,
    calls: Vec<PartialCall>,
    /// The server has said that this is all.
    complete: bool,
    /// Tool calls that are not whole, because the answer ended in the middle.
    cut_calls: usize,
    has_text: bool,
    has_events: bool,
    /// A body that is no event stream.
    plain: String,
}

/// A tool call whose pieces are still coming.
#[derive(Default)]
struct PartialCall {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
}

impl Answer {
    pub(super) fn new(offered: impl IntoIterator<Item = String>) -> Self {
        Self {
            offered: offered.into_iter().collect(),
            ..Self::default()
        }
    }
}

impl AnswerReader for Answer {
    fn line(&mut self, line: &str) -> Result<Event, String> {
        let nothing = Ok(Event::Chunks(Vec::new()));
        let line = line.trim_start_matches('\u{feff}');
        let Some(data) = line.strip_prefix("data:") else {
            // Comments keep the connection open; other fields of events carry nothing for us. A
            // server that does not stream sends one JSON object instead of events.
            if !self.has_events && self.plain.len() + line.len() <= MAX_LINE_BYTES {
                self.plain.push_str(line);
                self.plain.push('\n');
            }
            return nothing;
        };
        self.has_events = true;
        let data = data.trim();
        if data == "[DONE]" {
            self.complete = true;
            return Ok(Event::Done);
        }
        if data.is_empty() {
            return nothing;
        }
        let piece = serde_json::from_str(data)
            .map_err(|error| format!("an event that is no piece of an answer ({error})"));
        match piece.and_then(|piece| self.piece(&piece)) {
            Ok(chunks) => Ok(Event::Chunks(chunks)),
            // The answer is whole; what follows it cannot make it worse.
            Err(_) if self.complete => nothing,
            Err(what) => Err(what),
        }
    }

    fn finish(&mut self) -> Result<Vec<ChatChunk>, String> {
        let mut chunks = Vec::new();
        if !self.has_events
            && let Ok(body) = serde_json::from_str::<Value>(&self.plain)
        {
            chunks = self.piece(&body)?;
        }
        if !self.complete {
            let begun = self.calls.len();
            self.calls
                .retain(|call| arguments::is_whole(&call.arguments));
            self.cut_calls = begun - self.calls.len();
            if !self.has_text && self.calls.is_empty() {
                return Err("an answer that breaks off".to_owned());
            }
        }
        chunks.extend(self.take_tool_calls());
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
    fn piece(&mut self, piece: &Value) -> Result<Vec<ChatChunk>, String> {
        const NO_PIECE: &str = "an event that is no piece of an answer";
        let mut chunks = Vec::new();
        if let Some(error) = piece
            .get("error")
            .filter(|error| !error.is_null() && *error != "")
        {
            if let Some(filter) = filter_of_error(error) {
                self.complete = true;
                return Ok(vec![ChatChunk::CutShort(CutShort::Filter(filter))]);
            }
            let message = error
                .get("message")
                .or(Some(error))
                .and_then(Value::as_str)
                .unwrap_or("no reason given");
            return Err(format!("an error in mid answer: {message}"));
        }
        let choices: &[Value] = match piece.get("choices") {
            None | Some(Value::Null) if piece.is_object() => &[],
            Some(Value::Array(choices)) => choices,
            _ => return Err(NO_PIECE.to_owned()),
        };
        for choice in choices {
            // One answer is asked for; whatever else comes is not for the caller.
            if choice.get("index").and_then(Value::as_u64).unwrap_or(0) != 0 {
                continue;
            }
            self.choice(choice, piece, &mut chunks)?;
        }
        if let Some(usage) = piece.get("usage").filter(|usage| usage.is_object()) {
            chunks.push(ChatChunk::Usage(TokenUsage {
                prompt: number(usage.get("prompt_tokens")),
                prompt_cached: number(usage.pointer("/prompt_tokens_details/cached_tokens")),
                completion: number(usage.get("completion_tokens")),
            }));
        }
        Ok(chunks)
    }

    fn choice(
        &mut self,
        choice: &Value,
        piece: &Value,
        chunks: &mut Vec<ChatChunk>,
    ) -> Result<(), String> {
        let has_delta = choice.get("delta").is_some_and(Value::is_object);
        // A whole message repeats what the pieces have said.
        let whole = !has_delta && !self.has_text && self.calls.is_empty();
        let delta = match has_delta {
            true => choice.get("delta"),
            false => choice.get("message").filter(|_| whole),
        };
        if let Some(delta) = delta {
            for key in ["content", "refusal"] {
                let text = text_of(delta.get(key));
                if !text.is_empty() {
                    self.has_text = true;
                    chunks.push(ChatChunk::Text(text));
                }
            }
            match delta.get("tool_calls") {
                Some(Value::Array(calls)) => {
                    for call in calls {
                        self.add_tool_call(call)?;
                    }
                }
                Some(call @ Value::Object(_)) => self.add_tool_call(call)?,
                _ => {}
            }
            // The form before there were `tool_calls`.
            if let Some(function) = delta.get("function_call").filter(|call| call.is_object()) {
                self.add_tool_call(function)?;
            }
        }
        match choice.get("finish_reason").and_then(Value::as_str) {
            None | Some("" | "null") => {}
            Some(reason) => {
                self.complete = true;
                if is_filter(reason) {
                    let filter = named_filters(reason, choice, piece);
                    chunks.push(ChatChunk::CutShort(CutShort::Filter(filter)));
                } else if matches!(reason, "length" | "max_tokens") {
                    chunks.push(ChatChunk::CutShort(CutShort::Length));
                }
            }
        }
        Ok(())
    }

    fn add_tool_call(&mut self, delta: &Value) -> Result<(), String> {
        let function = delta
            .get("function")
            .filter(|function| function.is_object());
        let field = |key: &str| {
            function
                .and_then(|function| function.get(key))
                .or_else(|| delta.get(key))
        };
        let text = |value: Option<&Value>| {
            value
                .and_then(Value::as_str)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let index = delta.get("index").and_then(|index| match index {
            Value::String(index) => index.parse().ok(),
            index => index.as_u64(),
        });
        let id = text(delta.get("id"));
        let name = tool_name(&text(field("name")), &self.offered);
        let at = match self.slot(index, &id, &name, field("arguments")) {
            Some(at) => at,
            // Half a call without a beginning.
            None if name.is_empty() && id.is_empty() => return Ok(()),
            None => {
                if self.calls.len() >= MAX_TOOL_CALLS {
                    return Err(format!("more than {MAX_TOOL_CALLS} tool calls at once"));
                }
                self.calls.push(PartialCall {
                    index,
                    ..PartialCall::default()
                });
                self.calls.len() - 1
            }
        };
        let call = &mut self.calls[at];
        if !id.is_empty() {
            call.id = id;
        }
        if name.starts_with(&call.name) {
            // The first name, the same once more, or more of it.
            call.name = name;
        } else if !name.is_empty() {
            call.name.push_str(&name);
        }
        match field("arguments") {
            Some(Value::String(more)) => call.arguments.push_str(more),
            Some(whole @ (Value::Object(_) | Value::Array(_))) => {
                call.arguments = whole.to_string()
            }
            _ => {}
        }
        if call.arguments.len() > MAX_LINE_BYTES {
            return Err("a tool call that has no end".into());
        }
        Ok(())
    }

    /// The call that a piece goes on with; none when it begins another.
    ///
    /// Servers differ in what they repeat, so all of it counts: another id is another call,
    /// whatever the index; a name that cannot belong to the call so far, or one that comes after
    /// whole arguments together with new ones, begins another too.
    fn slot(
        &self,
        index: Option<u64>,
        id: &str,
        name: &str,
        more: Option<&Value>,
    ) -> Option<usize> {
        let last = |fits: &dyn Fn(&PartialCall) -> bool| self.calls.iter().rposition(fits);
        let at = match index {
            Some(_) => last(&|call| call.index == index)?,
            None if !id.is_empty() => {
                last(&|call| call.id == id).or_else(|| last(&|call| call.id.is_empty()))?
            }
            None => last(&|_| true)?,
        };
        let call = &self.calls[at];
        if !id.is_empty() && !call.id.is_empty() && call.id != id {
            return None;
        }
        if name.is_empty() {
            return Some(at);
        }
        let has_arguments = !call.arguments.is_empty();
        let brings_arguments = match more {
            Some(Value::String(more)) => more.trim_start().starts_with('{'),
            Some(more) => more.is_object(),
            None => false,
        };
        let fits = if name.starts_with(&call.name) {
            !(brings_arguments && arguments::is_whole(&call.arguments))
        } else {
            // A name that comes in pieces comes before the arguments and makes a name that we know.
            let joined = format!("{}{name}", call.name);
            let is_offered = |name: &str| self.offered.iter().any(|offered| offered == name);
            !has_arguments && (is_offered(&joined) || !is_offered(&call.name) && !is_offered(name))
        };
        fits.then_some(at)
    }

    fn take_tool_calls(&mut self) -> Vec<ChatChunk> {
        let mut taken: Vec<ToolCall> = Vec::new();
        for (number, call) in std::mem::take(&mut self.calls).into_iter().enumerate() {
            if call.name.is_empty() {
                continue;
            }
            // The answers of tools are told apart by these.
            let is_new = !call.id.is_empty() && taken.iter().all(|known| known.id != call.id);
            taken.push(ToolCall {
                id: match is_new {
                    true => call.id,
                    false => format!(
                        "{}_{number}",
                        if call.id.is_empty() { "call" } else { &call.id }
                    ),
                },
                name: call.name,
                arguments: arguments::tidy(call.arguments),
            });
        }
        taken.into_iter().map(ChatChunk::ToolCall).collect()
    }
}

/// The tool that a model means by `name`: some write a namespace before it or marks after it.
fn tool_name(name: &str, offered: &[String]) -> String {
    let bare = name.split("<|").next().unwrap_or_default().trim();
    let short = bare.strip_prefix("functions.").unwrap_or(bare);
    match offered.iter().any(|offered| offered == short) {
        true => short.to_owned(),
        false => bare.to_owned(),
    }
}

/// The words in a `content`: a text, or a list of parts of which some are thoughts.
fn text_of(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().map(|part| text_of(Some(part))).collect(),
        Some(Value::Object(part)) => {
            let is_said = match part.get("type").and_then(Value::as_str) {
                None | Some("text" | "output_text") => true,
                Some("refusal") => return text_of(part.get("refusal")),
                Some(_) => false,
            };
            let text = part.get("text").or_else(|| part.get("value"));
            if is_said {
                text_of(text)
            } else {
                String::new()
            }
        }
        _ => String::new(),
    }
}

fn number(value: Option<&Value>) -> u64 {
    match value {
        Some(Value::Number(number)) => number
            .as_u64()
            .or_else(|| number.as_f64().map(|number| number as u64))
            .unwrap_or(0),
        _ => 0,
    }
}

/// Whether a `finish_reason` means that somebody did not want the answer to be given: OpenAI's and
/// Azure's `content_filter`, and the words that Google, Anthropic, Amazon and Zhipu pass through
/// interfaces that are compatible with it.
fn is_filter(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    reason.contains("filter")
        || matches!(
            reason.as_str(),
            "safety"
                | "recitation"
                | "prohibited_content"
                | "blocklist"
                | "spii"
                | "refusal"
                | "sensitive"
                | "moderation"
                | "guardrail_intervened"
        )
}

/// `reason` with the categories of Azure's filter that have fired, where the event names them.
fn named_filters(reason: &str, choice: &Value, piece: &Value) -> String {
    let prompts = piece
        .get("prompt_filter_results")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let results = prompts.chain([choice]).filter_map(|place| {
        place
            .get("content_filter_results")
            .or_else(|| place.get("content_filter_result"))
    });
    let fired: Vec<&str> = results.flat_map(fired).collect();
    if fired.is_empty() {
        reason.to_owned()
    } else {
        format!("{reason}: {}", fired.join(", "))
    }
}

fn fired(results: &Value) -> impl Iterator<Item = &str> {
    let results = results.as_object().into_iter().flatten();
    results
        .filter(|(_, result)| result.get("filtered").and_then(Value::as_bool) == Some(true))
        .map(|(name, _)| name.as_str())
}

/// The filter that an error speaks of, as Azure refuses a request: `code` is `content_filter`, and
/// `innererror` has the categories.
pub(super) fn filter_of_error(error: &Value) -> Option<String> {
    let code = error.get("code").and_then(Value::as_str)?;
    if !is_filter(code) {
        return None;
    }
    let results = error
        .pointer("/innererror/content_filter_result")
        .or_else(|| error.pointer("/inner_error/content_filter_results"));
    let fired: Vec<&str> = results.into_iter().flat_map(fired).collect();
    Some(match fired.is_empty() {
        true => code.to_owned(),
        false => format!("{code}: {}", fired.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(events: &[&str]) -> (Vec<ChatChunk>, Answer) {
        let mut answer = Answer::new(["create_lead", "end_call"].map(str::to_owned));
        let mut chunks = Vec::new();
        for event in events {
            match answer.line(event).unwrap() {
                Event::Chunks(more) => chunks.extend(more),
                Event::Done => break,
            }
        }
        chunks.extend(answer.finish().unwrap());
        (chunks, answer)
    }

    fn call(id: &str, name: &str, arguments: &str) -> ChatChunk {
        ChatChunk::ToolCall(ToolCall {
            id: id.to_owned(),
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        })
    }

    #[test]
    fn a_tool_call_comes_in_pieces_and_goes_on_whole() {
        let (chunks, answer) = read(&[
            r#"data: {"choices":[{"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"c1","function":{"name":"create_lead","arguments":""}}]}}]}"#,
            r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"name\":"}}]}}]}"#,
            r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\"J\"}"}}]}}]}"#,
            r#"data: {"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#,
            r#"data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":5}}}"#,
            "",
            ": keep-alive",
            "data: [DONE]",
        ]);
        let usage = TokenUsage {
            prompt: 7,
            prompt_cached: 5,
            completion: 3,
        };
        let call = call("c1", "create_lead", r#"{"name":"J"}"#);
        assert_eq!(chunks, [ChatChunk::Usage(usage), call]);
        assert!(answer.complete);
    }

    /// What comes of these entries of `tool_calls`, each in an event of its own.
    fn merged(deltas: &[Value]) -> Vec<(String, String)> {
        let events: Vec<String> = deltas
            .iter()
            .map(|delta| {
                format!(
                    "data: {}",
                    json!({ "choices": [{ "delta": { "tool_calls": [delta] } }] })
                )
            })
            .chain(["data: [DONE]".to_owned()])
            .collect();
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let calls = read(&events).0.into_iter().map(|chunk| match chunk {
            ChatChunk::ToolCall(call) => (call.name, call.arguments),
            other => panic!("{other:?}"),
        });
        calls.collect()
    }

    #[test]
    fn pieces_find_their_call_whatever_a_server_repeats_or_leaves_out() {
        let lead = ("create_lead".to_owned(), r#"{"a":1}"#.to_owned());
        let end = ("end_call".to_owned(), "{}".to_owned());
        let function =
            |name: &str, arguments: &str| json!({ "name": name, "arguments": arguments });
        let whole = || function("create_lead", r#"{"a":1}"#);
        let cases = [
            // Whole calls with nothing that tells them apart but themselves.
            (
                vec![
                    json!({ "function": whole() }),
                    json!({ "function": whole() }),
                ],
                vec![&lead, &lead],
            ),
            (
                vec![
                    json!({ "index": 0, "function": whole() }),
                    json!({ "index": 0, "function": function("end_call", "{}") }),
                ],
                vec![&lead, &end],
            ),
            // One index for all, pieces after each id.
            (
                vec![
                    json!({ "index": 0, "id": "a", "function": function("create_lead", "{\"a\"") }),
                    json!({ "index": 0, "function": { "arguments": ":1}" } }),
                    json!({ "index": 0, "id": "b", "function": function("end_call", "{") }),
                    json!({ "index": 0, "function": { "arguments": "}" } }),
                ],
                vec![&lead, &end],
            ),
            // Ids without an index, in turns.
            (
                vec![
                    json!({ "id": "a", "function": function("create_lead", "{\"a\"") }),
                    json!({ "id": "b", "function": function("end_call", "{") }),
                    json!({ "id": "a", "function": { "arguments": ":1}" } }),
                    json!({ "id": "b", "function": { "arguments": "}" } }),
                ],
                vec![&lead, &end],
            ),
            // The name in pieces, growing, or with marks around it.
            (
                vec![
                    json!({ "index": 0, "function": { "name": "create_" } }),
                    json!({ "index": 0, "function": function("lead", r#"{"a":1}"#) }),
                ],
                vec![&lead],
            ),
            (
                vec![
                    json!({ "index": 0, "function": { "name": "create" } }),
                    json!({ "index": 0, "function": function("create_lead", r#"{"a":1}"#) }),
                ],
                vec![&lead],
            ),
            (
                vec![
                    json!({ "index": "0", "function": function(" functions.create_lead<|channel|>", r#"{"a":1}"#) }),
                ],
                vec![&lead],
            ),
            // Without `function`, and an index that begins high.
            (
                vec![json!({ "index": 9_000_000, "name": "create_lead", "arguments": { "a": 1 } })],
                vec![&lead],
            ),
            (
                vec![
                    json!({ "index": 0, "function": function("create_lead", "{}") }),
                    json!({ "index": 0, "function": { "arguments": r#"{"a":1}"# } }),
                    json!({ "index": 0, "id": null, "function": null }),
                ],
                vec![&lead],
            ),
            (vec![json!({ "function": { "arguments": "lost" } })], vec![]),
        ];
        for (deltas, expected) in cases {
            let merged = merged(&deltas);
            assert_eq!(merged.iter().collect::<Vec<_>>(), expected, "{deltas:?}");
        }
    }

    #[test]
    fn calls_have_ids_of_their_own() {
        let one = |id: Value, index: u64| json!({ "choices": [{ "delta": { "tool_calls": [{ "id": id, "index": index, "function": { "name": "end_call" } }] } }] });
        let events = [one(json!("x"), 0), one(json!("x"), 1), one(Value::Null, 2)]
            .map(|event| format!("data: {event}"));
        let (chunks, _) = read(&[&events[0], &events[1], &events[2], "data: [DONE]"]);
        assert_eq!(
            chunks,
            [
                call("x", "end_call", ""),
                call("x_1", "end_call", ""),
                call("call_2", "end_call", "")
            ]
        );
    }

    #[test]
    fn the_words_are_found_in_every_shape() {
        for (event, expected) in [
            (r#"{"choices":[{"delta":{"content":"Yes."}}]}"#, "Yes."),
            (
                r#"{"choices":[{"delta":{"content":["Ye",{"type":"text","text":"s."}]}}]}"#,
                "Yes.",
            ),
            (
                r#"{"choices":[{"delta":{"content":[{"type":"output_text","text":{"value":"Yes."}}]}}]}"#,
                "Yes.",
            ),
            (
                r#"{"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"Hm"}]},{"text":"Yes."}]}}]}"#,
                "Yes.",
            ),
            (
                r#"{"choices":[{"delta":{"content":null,"refusal":"No."}}]}"#,
                "No.",
            ),
            (
                r#"{"choices":[{"delta":null,"message":{"content":"Yes."},"finish_reason":"stop"}]}"#,
                "Yes.",
            ),
            (
                r#"{"choices":[{"index":1,"delta":{"content":"other"}},{"index":0,"delta":{"content":"Yes."}}],"usage":null,"error":null}"#,
                "Yes.",
            ),
            (
                r#"{"choices":[{"delta":{"reasoning_content":"Hm","content":"Yes.","tool_calls":null,"function_call":null}}]}"#,
                "Yes.",
            ),
        ] {
            let data = format!("data: {event}");
            assert_eq!(
                read(&[&data]).0,
                [ChatChunk::Text(expected.to_owned())],
                "{event}"
            );
        }
    }

    #[test]
    fn an_answer_that_is_not_streamed_is_an_answer() {
        let body = json!({
            "object": "chat.completion",
            "choices": [{ "index": 0, "finish_reason": "tool_calls", "message": {
                "role": "assistant", "content": "Sure.",
                "tool_calls": [{ "id": "a", "type": "function", "function": { "name": "end_call", "arguments": "{}" } }],
            }}],
        });
        let body = serde_json::to_string_pretty(&body).unwrap();
        let lines: Vec<&str> = body.lines().collect();
        assert_eq!(
            read(&lines).0,
            [
                ChatChunk::Text("Sure.".to_owned()),
                call("a", "end_call", "{}")
            ]
        );
    }

    #[test]
    fn a_stream_that_just_ends_keeps_words_and_whole_calls() {
        let half = r#"data: {"choices":[{"delta":{"content":"One moment.","tool_calls":[{"index":0,"id":"a","function":{"name":"end_call","arguments":"{}"}},{"index":1,"id":"b","function":{"name":"create_lead","arguments":"{\"name\":"}}]}}]}"#;
        let (chunks, answer) = read(&[half]);
        assert_eq!(
            chunks,
            [
                ChatChunk::Text("One moment.".to_owned()),
                call("a", "end_call", "{}")
            ]
        );
        assert_eq!((answer.complete, answer.cut_calls), (false, 1));
        let mut empty = Answer::default();
        empty.line(": hello").unwrap();
        assert!(empty.finish().unwrap_err().contains("breaks off"));
    }

    #[test]
    fn a_filter_is_named() {
        for (event, expected) in [
            (
                json!({ "choices": [{ "finish_reason": "content_filter" }] }),
                "content_filter",
            ),
            (
                json!({ "choices": [{ "delta": {}, "finish_reason": "SAFETY" }] }),
                "SAFETY",
            ),
            (
                json!({ "choices": [{ "finish_reason": "content_filter", "content_filter_results": {
                    "hate": { "filtered": false, "severity": "safe" }, "violence": { "filtered": true, "severity": "high" } } }] }),
                "content_filter: violence",
            ),
            (
                json!({ "error": { "code": "content_filter", "message": "…", "innererror": { "content_filter_result": { "jailbreak": { "filtered": true } } } } }),
                "content_filter: jailbreak",
            ),
        ] {
            let mut answer = Answer::default();
            let cut = ChatChunk::CutShort(CutShort::Filter(expected.to_owned()));
            assert_eq!(
                answer.line(&format!("data: {event}")),
                Ok(Event::Chunks(vec![cut]))
            );
            assert!(answer.complete);
        }
    }

    #[test]
    fn an_error_in_mid_answer_is_an_error_and_after_the_end_it_is_not() {
        let mut answer = Answer::default();
        for (event, expected) in [
            (r#"data: {"error":{"message":"overloaded"}}"#, "overloaded"),
            (r#"data: {"error":"overloaded"}"#, "overloaded"),
            ("data: <html>", "no piece"),
            ("data: 7", "no piece"),
            (r#"data: {"choices":7}"#, "no piece"),
        ] {
            assert!(
                answer.line(event).unwrap_err().contains(expected),
                "{event}"
            );
        }
        answer
            .line(r#"data: {"choices":[{"delta":{"content":"Yes."},"finish_reason":"stop"}]}"#)
            .unwrap();
        assert!(answer.line("data: <html>").is_ok());
    }
}
