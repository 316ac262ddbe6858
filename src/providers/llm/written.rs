//! What a model writes into its text that is not for the caller: thoughts, requests for tools,
//! marks of its chat template. Pure, and independent of vendors: it depends on the model and on how
//! its server was started, not on the interface.
//!
//! Text goes on at once. Only what may be the beginning of such a thing is held back, until the
//! next characters tell.

use serde_json::{Map, Value};

use super::arguments;
use crate::tools::ToolDefinition;

/// The longest request for a tool; the rest of an answer with a longer one is dropped.
const MAX_HELD_BYTES: usize = 64 * 1024;
/// The longest tag with its attributes, bytes.
const MAX_TAG_BYTES: usize = 200;

/// Elements whose content is a thought.
const THOUGHTS: &[&str] = &[
    "analysis",
    "antthinking",
    "chain_of_thought",
    "cot",
    "inner_monologue",
    "internal",
    "monologue",
    "rationale",
    "reason",
    "reasoning",
    "reflection",
    "scratchpad",
    "seed:think",
    "think",
    "thinking",
    "thought",
    "thoughts",
];

/// Elements whose content is a request for a tool.
const REQUESTS: &[&str] = &[
    "function",
    "function_call",
    "function_calls",
    "invoke",
    "tool",
    "tool_call",
    "tool_calls",
    "tool_code",
    "tool_use",
    "toolcall",
    "tools",
];

/// Elements in which a model makes up what a tool answers.
const ANSWERS: &[&str] = &[
    "function_response",
    "function_result",
    "function_results",
    "observation",
    "tool_output",
    "tool_response",
    "tool_responses",
    "tool_result",
    "tool_results",
];

/// Special tokens with which an answer ends; what follows is a turn that the model makes up.
const ENDS: &[&str] = &["end_of_sentence", "endoftext", "eom_id", "eot_id", "im_end"];

/// Names of keys under which models write the arguments of a call.
const ARGUMENT_KEYS: &[&str] = &[
    "arguments",
    "parameters",
    "args",
    "params",
    "input",
    "action_input",
];
/// Names of keys under which models write the name of a tool.
const NAME_KEYS: &[&str] = &[
    "name",
    "tool",
    "tool_name",
    "function_name",
    "function",
    "action",
];

/// A part of what the model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Words for the caller.
    Text(String),
    /// A request for a tool that is offered, with a whole JSON object as arguments.
    Call {
        /// The tool.
        name: String,
        /// A JSON object.
        arguments: String,
    },
    /// Something that is neither words nor a request that can be run.
    Dropped,
    /// All text before this was a thought, although nothing said so at its beginning: the chat
    /// template opens the thought, and the model only closes it.
    ThoughtsBefore,
}

/// Tells words from everything else in the text of one answer.
#[derive(Debug)]
pub struct Written {
    tools: Vec<ToolDefinition>,
    /// Text that is not decided yet.
    held: String,
    mode: Mode,
    /// Nothing but spaces has been written on this line.
    line_is_blank: bool,
    /// There was a request that will be run.
    has_call: bool,
    /// A request has just ended: what separates it from the next is no text.
    after_request: bool,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    Words,
    Thoughts,
    /// `held` begins with what opened the request, or with its header.
    Request {
        /// What closes it besides the end of the answer.
        close: String,
    },
    /// What a model takes for the answer of a tool.
    ToolAnswer {
        close: String,
    },
    /// `held` is the header of a message in OpenAI's harmony format, which gpt-oss writes.
    Header,
    /// This model's answers begin inside of a thought.
    Undecided,
    /// Nothing more is for the caller.
    Skipped,
}

/// What to do at the beginning of `held`, in bytes of it.
enum Lexeme {
    /// The next characters will tell.
    Wait,
    Text(usize),
    Drop(usize),
    Open(usize, Mode),
    /// As `Open`, and what opens it stays in `held`.
    OpenWith(Mode),
    Request(usize),
    ThoughtsBefore(usize),
}

impl Written {
    /// For an answer of a model that may use `tools`. With `begins_in_thought`, text counts once a
    /// thought has been closed, or when the answer ends without that.
    pub fn new(tools: &[ToolDefinition], begins_in_thought: bool) -> Self {
        Self {
            tools: tools.to_vec(),
            held: String::new(),
            mode: if begins_in_thought {
                Mode::Undecided
            } else {
                Mode::Words
            },
            line_is_blank: true,
            has_call: false,
            after_request: false,
            pieces: Vec::new(),
        }
    }

    /// Takes more text and returns what is decided with it.
    pub fn push(&mut self, more: &str) -> Vec<Piece> {
        self.held.push_str(more);
        self.read(false)
    }

    /// The rest, at the end of the answer.
    pub fn finish(&mut self) -> Vec<Piece> {
        self.read(true)
    }

    fn read(&mut self, last: bool) -> Vec<Piece> {
        while !self.held.is_empty() {
            let goes_on = match self.mode.clone() {
                Mode::Words => self.words(last),
                Mode::Thoughts => self.thoughts(last),
                Mode::Request { close } => self.request(&close, last),
                Mode::ToolAnswer { close } => self.tool_answer(&close, last),
                Mode::Header => self.header(last),
                Mode::Undecided => self.undecided(last),
                Mode::Skipped => {
                    self.held.clear();
                    false
                }
            };
            if !goes_on {
                break;
            }
        }
        if self.held.len() > MAX_HELD_BYTES {
            self.held.clear();
            self.mode = Mode::Skipped;
            self.pieces.push(Piece::Dropped);
        }
        std::mem::take(&mut self.pieces)
    }

    // ---- words ----

    fn words(&mut self, last: bool) -> bool {
        let candidate = self.held.find(['<', '[', '{', '`', '◁']);
        let plain = candidate.unwrap_or(self.held.len());
        if plain > 0 {
            self.text(plain);
            return candidate.is_some();
        }
        match self.lexeme(last) {
            Lexeme::Wait if !last => return false,
            Lexeme::Wait => self.text(self.held.chars().next().map_or(1, char::len_utf8)),
            Lexeme::Text(len) => self.text(len),
            Lexeme::Drop(len) => self.drop(len),
            Lexeme::Open(len, mode) => {
                self.drop(len);
                self.mode = mode;
            }
            Lexeme::OpenWith(mode) => self.mode = mode,
            Lexeme::Request(len) => {
                let request: String = self.held.drain(..len).collect();
                self.requested(&request, true);
            }
            Lexeme::ThoughtsBefore(len) => {
                self.drop(len);
                self.pieces.push(Piece::ThoughtsBefore);
            }
        }
        true
    }

    fn text(&mut self, len: usize) {
        let text: String = self.held.drain(..len).collect();
        let mut text = text.as_str();
        if self.after_request {
            text = text.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ';' | ','));
        }
        if text.is_empty() {
            return;
        }
        self.after_request = false;
        let line = text.rsplit('\n').next().unwrap_or_default();
        let is_blank = line.chars().all(char::is_whitespace);
        self.line_is_blank = is_blank && (self.line_is_blank || line.len() < text.len());
        if let Some(Piece::Text(before)) = self.pieces.last_mut() {
            before.push_str(text);
        } else {
            self.pieces.push(Piece::Text(text.to_owned()));
        }
    }

    fn drop(&mut self, len: usize) {
        self.held.drain(..len);
    }

    /// What begins with the first character of `held`.
    fn lexeme(&self, last: bool) -> Lexeme {
        let rest = self.held.as_str();
        match rest.as_bytes()[0] {
            b'<' => match tag(rest, last) {
                Tag::Wait => Lexeme::Wait,
                Tag::None => Lexeme::Text(1),
                Tag::Element { name, closes, len } => self.element(&name, closes, len),
                Tag::Special { name, len } => special(&name, len),
            },
            b'[' => self.bracket(rest, last),
            b'{' => match rest[1..].trim_start().chars().next() {
                None => Lexeme::Wait,
                Some('"' | '\'') => json(rest, last),
                Some(_) => Lexeme::Text(1),
            },
            b'`' => self.fence(rest, last),
            // ◁, of Kimi's thoughts.
            _ => {
                match_mark(rest, "◁think▷", Mode::Thoughts).unwrap_or(Lexeme::Text('◁'.len_utf8()))
            }
        }
    }

    fn element(&self, name: &str, closes: bool, len: usize) -> Lexeme {
        let is_empty = self.held[..len].ends_with("/>");
        if THOUGHTS.contains(&name) {
            match (closes, is_empty) {
                (true, _) => Lexeme::ThoughtsBefore(len),
                (_, true) => Lexeme::Drop(len),
                _ => Lexeme::Open(len, Mode::Thoughts),
            }
        } else if closes || is_empty {
            Lexeme::Drop(len)
        } else if ANSWERS.contains(&name) && self.has_call {
            // The tool has not been run yet: this, and what follows from it, is made up.
            Lexeme::Open(len, Mode::Skipped)
        } else if ANSWERS.contains(&name) {
            Lexeme::Open(
                len,
                Mode::ToolAnswer {
                    close: format!("</{name}>"),
                },
            )
        } else {
            Lexeme::OpenWith(Mode::Request {
                close: format!("</{name}>"),
            })
        }
    }

    fn bracket(&self, rest: &str, last: bool) -> Lexeme {
        let to_the_end = Mode::Request {
            close: "[/TOOL_CALLS]".to_owned(),
        };
        for (mark, mode) in [("[TOOL_CALLS]", to_the_end), ("[THINK]", Mode::Thoughts)] {
            if let Some(lexeme) = match_mark(rest, mark, mode) {
                return lexeme;
            }
        }
        let inside = rest[1..].trim_start();
        match inside.chars().next() {
            None => Lexeme::Wait,
            Some('{') => match inside[1..].trim_start().chars().next() {
                None => Lexeme::Wait,
                Some('"' | '\'') => json(rest, last),
                Some(_) => Lexeme::Text(1),
            },
            // A call in Python's form, as Llama 3.2 and 4 write it: [create_lead(name="Asha")]
            Some(_) => {
                let name = inside
                    .split(|c: char| !(c.is_alphanumeric() || c == '_'))
                    .next()
                    .unwrap_or_default();
                let after = &inside[name.len()..];
                let may_be = |name: &str| {
                    let mut tools = self.tools.iter();
                    tools.any(|tool| tool.name.starts_with(name))
                };
                if after.is_empty() && may_be(name) {
                    Lexeme::Wait
                } else if after.starts_with('(') && self.is_offered(name) {
                    json(rest, last)
                } else {
                    Lexeme::Text(1)
                }
            }
        }
    }

    /// A code block that may hold a request. Others are words, whatever becomes of them.
    fn fence(&self, rest: &str, last: bool) -> Lexeme {
        let marks = rest.len() - rest.trim_start_matches('`').len();
        if !self.line_is_blank || marks < 3 && marks < rest.len() {
            return Lexeme::Text(marks);
        }
        if marks == rest.len() && !last {
            return Lexeme::Wait;
        }
        let Some(end) = rest[marks..].find("```") else {
            return if last {
                Lexeme::Request(rest.len())
            } else {
                Lexeme::Wait
            };
        };
        let len = marks + end + 3;
        if self.calls_in(&rest[..len]).is_empty() && !is_tool_fence(&rest[marks..]) {
            Lexeme::Text(len)
        } else {
            Lexeme::Request(len)
        }
    }

    // ---- everything else ----

    fn thoughts(&mut self, last: bool) -> bool {
        let rest = self.held.as_str();
        let Some(at) = rest.find(['<', '[', '◁']) else {
            self.held.clear();
            return false;
        };
        if at > 0 {
            self.drop(at);
            return true;
        }
        for mark in ["[/THINK]", "◁/think▷"] {
            match match_mark(rest, mark, Mode::Words) {
                Some(Lexeme::OpenWith(_)) => {
                    self.drop(mark.len());
                    self.mode = Mode::Words;
                    return true;
                }
                Some(Lexeme::Wait) if !last => return false,
                _ => {}
            }
        }
        let tag = match rest.starts_with('<') {
            true => tag(rest, last),
            false => Tag::None,
        };
        match tag {
            Tag::Wait if !last => return false,
            Tag::Element {
                name,
                closes: true,
                len,
            } if THOUGHTS.contains(&name.as_str()) => {
                self.drop(len);
                self.mode = Mode::Words;
                return true;
            }
            Tag::Special { name, len } => match name.as_str() {
                // The next message of the harmony format.
                "start" | "channel" | "end" | "return" => {
                    self.mode = Mode::Words;
                    return true;
                }
                "end_of_thought" | "/think" | "end_think" => {
                    self.drop(len);
                    self.mode = Mode::Words;
                    return true;
                }
                _ => {}
            },
            _ => {}
        }
        let first = rest.chars().next().map_or(1, char::len_utf8);
        self.drop(first);
        true
    }

    /// Everything up to the end of the thought that the chat template has opened.
    fn undecided(&mut self, last: bool) -> bool {
        let lower = self.held.to_ascii_lowercase();
        let close = THOUGHTS
            .iter()
            .filter_map(|name| {
                let close = format!("</{name}>");
                lower.find(&close).map(|at| at + close.len())
            })
            .min();
        match close {
            Some(end) => self.drop(end),
            None if !last => return false,
            // It has not thought this time.
            None => {}
        }
        self.mode = Mode::Words;
        true
    }

    fn request(&mut self, close: &str, last: bool) -> bool {
        let lower = self.held.to_ascii_lowercase();
        let close = close.to_ascii_lowercase();
        // What opened it is no end of it.
        let from = self.held.chars().next().map_or(0, char::len_utf8);
        let closed = lower[from..]
            .find(&close)
            .map(|at| (from + at, close.len()));
        // The next request ends one that was never closed.
        let opened = close.strip_prefix("</").and_then(|name| {
            let open = format!("<{}", name.trim_end_matches('>'));
            lower[from..].find(&open).map(|at| (from + at, 0))
        });
        let ended = ENDS
            .iter()
            .filter_map(|name| lower.find(&format!("<|{name}|>")).map(|at| (at, 0)))
            .min();
        let end = [closed, opened, ended].into_iter().flatten().min();
        let (end, mark) = match end {
            Some(end) => end,
            None if last => (self.held.len(), 0),
            None => return false,
        };
        let request: String = self.held.drain(..end).collect();
        self.drop(mark);
        self.mode = Mode::Words;
        self.requested(&request, mark > 0);
        true
    }

    fn tool_answer(&mut self, close: &str, last: bool) -> bool {
        match self.held.to_ascii_lowercase().find(close) {
            Some(at) => {
                self.drop(at + close.len());
                self.mode = Mode::Words;
                true
            }
            None => {
                if last {
                    self.held.clear();
                }
                false
            }
        }
    }

    fn header(&mut self, last: bool) -> bool {
        const MESSAGE: &str = "<|message|>";
        let Some(at) = self.held.find(MESSAGE) else {
            if last || self.held.len() > MAX_TAG_BYTES {
                self.held.clear();
                self.mode = Mode::Words;
            }
            return false;
        };
        let header = self.held[..at].to_owned();
        self.drop(at + MESSAGE.len());
        if header.contains("analysis") {
            self.mode = Mode::Thoughts;
        } else if header.contains("to=") {
            // The header names the tool.
            self.held.insert_str(0, &header);
            self.mode = Mode::Request {
                close: "<|call|>".to_owned(),
            };
        } else {
            self.mode = Mode::Words;
        }
        true
    }

    // ---- requests ----

    fn requested(&mut self, request: &str, is_closed: bool) {
        let calls = if is_closed || !request.contains("<parameter") && !request.contains("<arg_key")
        {
            self.calls_in(request)
        } else {
            // Without its end nobody knows whether a parameter is missing.
            Vec::new()
        };
        let has_words = |text: &str| text.contains(|c: char| c.is_alphanumeric());
        let has_content = match request.split_once('>') {
            Some((tag, content)) if tag.starts_with('<') => tag.contains('=') || has_words(content),
            _ => has_words(request),
        };
        if calls.is_empty() && has_content {
            self.pieces.push(Piece::Dropped);
        }
        self.after_request = true;
        self.has_call |= !calls.is_empty();
        self.pieces.extend(calls);
    }

    fn is_offered(&self, name: &str) -> bool {
        self.tools.iter().any(|tool| tool.name == name)
    }

    /// The calls in `text`, which is nothing but a request.
    fn calls_in(&self, text: &str) -> Vec<Piece> {
        if text.contains("<parameter") || text.contains("<arg_key") {
            return self.calls_with_parameters(text);
        }
        let calls = self.calls_in_json(text);
        if calls.is_empty() {
            self.calls_in_python(text)
        } else {
            calls
        }
    }

    /// JSON objects that name a tool, and such that follow the name of one.
    fn calls_in_json(&self, text: &str) -> Vec<Piece> {
        let mut calls = Vec::new();
        let (mut label, mut at) = (0, 0);
        while let Some(found) = text[at..].find(['{', '[']) {
            at += found;
            let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
            let Some(Ok(value)) = values.next() else {
                if text[at..].starts_with('{') {
                    // An object that is not whole; what lies in it is only a part of what was
                    // meant.
                    break;
                }
                at += 1;
                continue;
            };
            let end = at + values.byte_offset();
            let of_value = self.calls_of(&value);
            if !of_value.is_empty() {
                calls.extend(of_value);
            } else if let Value::Object(arguments) = value
                // In brackets it is one value of a call in Python's form.
                && !text[label..at].contains('(')
                && let Some(name) = self.last_name(&text[label..at])
            {
                calls.push(call(name, arguments));
            }
            (label, at) = (end, end);
        }
        calls
    }

    /// The tool that is named last in `text`.
    fn last_name(&self, text: &str) -> Option<&str> {
        let words = text.rsplit(|c: char| !(c.is_alphanumeric() || c == '_'));
        words
            .filter_map(|word| self.tools.iter().find(|tool| tool.name == word))
            .map(|tool| tool.name.as_str())
            .next()
    }

    /// The calls that a JSON value describes.
    fn calls_of(&self, value: &Value) -> Vec<Piece> {
        match value {
            Value::Array(list) => list.iter().flat_map(|value| self.calls_of(value)).collect(),
            Value::Object(object) => {
                // As in OpenAI's answers: {"tool_calls": [{"function": {"name": …}}]}
                let inner = ["tool_calls", "tool_call", "function_call", "function"]
                    .iter()
                    .filter_map(|key| object.get(*key))
                    .find(|inner| inner.is_object() || inner.is_array());
                if let Some(inner) = inner {
                    return self.calls_of(inner);
                }
                let named = NAME_KEYS.iter().find_map(|key| {
                    let name = object.get(*key)?.as_str()?;
                    let name = name.strip_prefix("functions.").unwrap_or(name);
                    self.is_offered(name).then_some(name)
                });
                let given = |value: &Value| match value {
                    Value::Object(arguments) => Some(arguments.clone()),
                    Value::String(text) => arguments::read(text),
                    Value::Null => Some(Map::new()),
                    _ => None,
                };
                if let Some(name) = named {
                    let key = ARGUMENT_KEYS.iter().find_map(|key| object.get(*key));
                    let arguments = match key {
                        Some(value) => given(value),
                        // {"name": "end_call"}
                        None => (object.len() == 1 || object.contains_key("type")).then(Map::new),
                    };
                    return arguments
                        .map(|arguments| call(name, arguments))
                        .into_iter()
                        .collect();
                }
                // {"create_lead": {…}}
                match object.iter().next() {
                    Some((name, Value::Object(arguments)))
                        if object.len() == 1 && self.is_offered(name) =>
                    {
                        vec![call(name, arguments.clone())]
                    }
                    _ => Vec::new(),
                }
            }
            _ => Vec::new(),
        }
    }

    /// Calls whose parameters are elements: of Qwen's coders, of Anthropic's and of GLM's models.
    fn calls_with_parameters(&self, text: &str) -> Vec<Piece> {
        let mut starts: Vec<usize> = ["<function=", "<invoke ", "<tool_call>"]
            .iter()
            .flat_map(|open| text.match_indices(open))
            .map(|(at, _)| at)
            .collect();
        starts.sort_unstable();
        let mut calls = Vec::new();
        for (number, start) in starts.iter().enumerate() {
            let end = starts.get(number + 1).copied().unwrap_or(text.len());
            let one = &text[*start..end];
            let head = ["<parameter", "<arg_key"]
                .iter()
                .filter_map(|mark| one.find(mark))
                .min();
            let Some(head) = head else { continue };
            let Some(tool) = self
                .last_name(&one[..head])
                .and_then(|name| self.tools.iter().find(|tool| tool.name == name))
            else {
                continue;
            };
            if let Some(arguments) = parameters(&one[head..], tool) {
                calls.push(call(&tool.name, arguments));
            }
        }
        calls
    }

    /// Calls as in Python: `create_lead(name="Asha", budget=5000)`, with plain values only.
    fn calls_in_python(&self, text: &str) -> Vec<Piece> {
        let mut calls = Vec::new();
        let mut at = 0;
        while let Some(open) = text[at..].find('(').map(|open| at + open) {
            let name_at = text[..open]
                .rfind(|c: char| !(c.is_alphanumeric() || c == '_'))
                .map_or(0, |before| {
                    before + text[before..].chars().next().map_or(1, char::len_utf8)
                });
            let name = &text[name_at..open];
            at = open + 1;
            if !self.is_offered(name) {
                continue;
            }
            let Some((arguments, len)) = python_arguments(&text[at..]) else {
                break;
            };
            calls.push(call(name, arguments));
            at += len;
        }
        calls
    }
}

fn call(name: &str, arguments: Map<String, Value>) -> Piece {
    Piece::Call {
        name: name.to_owned(),
        arguments: Value::Object(arguments).to_string(),
    }
}

/// A tag, or what may become one.
enum Tag {
    Wait,
    /// It is none that we know.
    None,
    Element {
        name: String,
        closes: bool,
        len: usize,
    },
    /// `<|name|>`, also with DeepSeek's wide bars.
    Special {
        name: String,
        len: usize,
    },
}

/// Reads the tag at the beginning of `text`.
fn tag(text: &str, last: bool) -> Tag {
    let inside = &text[1..];
    if let Some(bar) = ['|', '｜'].into_iter().find(|bar| inside.starts_with(*bar)) {
        let inside = &inside[bar.len_utf8()..];
        let end = format!("{bar}>");
        return match inside.find(&end) {
            Some(len) if len <= MAX_TAG_BYTES && !inside[..len].contains(['<', '\n']) => {
                Tag::Special {
                    name: inside[..len].trim().to_lowercase().replace('▁', "_"),
                    len: 1 + bar.len_utf8() + len + end.len(),
                }
            }
            None if !last && inside.len() < MAX_TAG_BYTES && !inside.contains(['<', '\n', ' ']) => {
                Tag::Wait
            }
            _ => Tag::None,
        };
    }
    let closes = inside.starts_with('/');
    let name_at = usize::from(closes);
    let name_len = inside[name_at..]
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-')))
        .unwrap_or(inside.len() - name_at);
    let name = inside[name_at..name_at + name_len]
        .to_lowercase()
        .replace('-', "_");
    let known = || THOUGHTS.iter().chain(REQUESTS).chain(ANSWERS);
    let after = inside[name_at + name_len..].chars().next();
    if after.is_none() {
        let may_be = !last && known().any(|known| known.starts_with(&name));
        return if may_be { Tag::Wait } else { Tag::None };
    }
    if !known().any(|known| *known == name) {
        return Tag::None;
    }
    // <function=create_lead>; the word alone is no request.
    if name == "function" && !closes && after != Some('=') {
        return Tag::None;
    }
    match inside.find('>') {
        Some(end) if end <= MAX_TAG_BYTES => Tag::Element {
            name,
            closes,
            len: end + 2,
        },
        None if !last && inside.len() < MAX_TAG_BYTES => Tag::Wait,
        _ => Tag::None,
    }
}

/// What a special token of a chat template means among words.
fn special(name: &str, len: usize) -> Lexeme {
    let request = |close: String| Lexeme::OpenWith(Mode::Request { close });
    match name {
        "start" | "channel" => Lexeme::Open(len, Mode::Header),
        "begin_of_thought" | "think" | "begin_think" => Lexeme::Open(len, Mode::Thoughts),
        "end_of_thought" | "/think" | "end_think" => Lexeme::ThoughtsBefore(len),
        "python_tag" => request("<|eom_id|>".to_owned()),
        "python_start" => request("<|python_end|>".to_owned()),
        "action_start" => request("<|action_end|>".to_owned()),
        "tool_call" | "tool_calls" => request(format!("<|/{name}|>")),
        "tool_call_start" => request("<|tool_call_end|>".to_owned()),
        "tool_call_begin" => request("tool_call_end".to_owned()),
        "tool_calls_section_begin" => request("<|tool_calls_section_end|>".to_owned()),
        "tool_calls_begin" => request("<｜tool▁calls▁end｜>".to_owned()),
        _ if ENDS.contains(&name) => Lexeme::Open(len, Mode::Skipped),
        _ => Lexeme::Drop(len),
    }
}

/// `mark` at the beginning of `text`, or what may become it.
fn match_mark(text: &str, mark: &str, mode: Mode) -> Option<Lexeme> {
    if text.starts_with(mark) {
        Some(match mode {
            Mode::Thoughts => Lexeme::Open(mark.len(), mode),
            mode => Lexeme::OpenWith(mode),
        })
    } else {
        mark.starts_with(text).then_some(Lexeme::Wait)
    }
}

/// JSON is never for the caller; whether it asks for a tool is seen when it is whole.
fn json(text: &str, last: bool) -> Lexeme {
    match balanced(text) {
        Some(len) => Lexeme::Request(len),
        None if last => Lexeme::Request(text.len()),
        None => Lexeme::Wait,
    }
}

/// Length of the bracketed text at the beginning of `text`.
fn balanced(text: &str) -> Option<usize> {
    let mut depth = 0_u32;
    let mut quote = None;
    let mut after_backslash = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(mark), _) => {
                if c == mark && !after_backslash {
                    quote = None;
                }
                after_backslash = c == '\\' && !after_backslash;
            }
            (None, '"' | '\'') => quote = Some(c),
            (None, '{' | '[' | '(') => depth += 1,
            (None, '}' | ']' | ')') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Some(at + c.len_utf8());
                }
            }
            _ => {}
        }
    }
    None
}

/// Whether a code block says that it is a request; `text` begins with its language.
fn is_tool_fence(text: &str) -> bool {
    let language = text.lines().next().unwrap_or_default().trim();
    matches!(
        language,
        "tool_call" | "tool_calls" | "tool_code" | "function_call"
    )
}

/// `<parameter=key>value</parameter>`, `<parameter name="key">value</parameter>` or
/// `<arg_key>key</arg_key><arg_value>value</arg_value>`. Nothing when one of them is not whole.
fn parameters(text: &str, tool: &ToolDefinition) -> Option<Map<String, Value>> {
    let mut arguments = Map::new();
    let mut rest = text;
    loop {
        let (key, after) = if let Some((_, after)) = rest.split_once("<parameter") {
            let (key, after) = after.split_once('>')?;
            let key = key.trim_start_matches([' ', '=']);
            let key = key.strip_prefix("name=").unwrap_or(key);
            (key.split_whitespace().next()?, after)
        } else if let Some((_, after)) = rest.split_once("<arg_key>") {
            let (key, after) = after.split_once("</arg_key>")?;
            (key, after.split_once("<arg_value>")?.1)
        } else {
            return Some(arguments);
        };
        let end = ["</parameter>", "</arg_value>"]
            .iter()
            .filter_map(|close| after.find(close))
            .min()?;
        let key = key.trim().trim_matches(['"', '\'']);
        let value = after[..end].trim();
        let is_text = tool.parameters["properties"][key]["type"] == "string";
        let value = match serde_json::from_str(value) {
            Ok(parsed) if !is_text => parsed,
            _ => Value::String(value.to_owned()),
        };
        arguments.insert(key.to_owned(), value);
        rest = &after[end..];
    }
}

/// Keyword arguments up to the closing bracket, and how long they are with it.
fn python_arguments(text: &str) -> Option<(Map<String, Value>, usize)> {
    let mut arguments = Map::new();
    let mut at = 0;
    loop {
        at += text[at..].len() - text[at..].trim_start_matches([' ', '\n', ',']).len();
        let rest = &text[at..];
        if rest.starts_with(')') {
            return Some((arguments, at + 1));
        }
        let equals = rest.find('=')?;
        let key = rest[..equals].trim();
        if key.is_empty() || key.contains(|c: char| !(c.is_alphanumeric() || c == '_')) {
            return None;
        }
        at += equals + 1;
        at += text[at..].len() - text[at..].trim_start().len();
        let (value, len) = python_value(&text[at..])?;
        arguments.insert(key.to_owned(), value);
        at += len;
    }
}

fn python_value(text: &str) -> Option<(Value, usize)> {
    let quote = text.chars().next()?;
    if matches!(quote, '"' | '\'') {
        let mut value = String::new();
        let mut after_backslash = false;
        for (at, c) in text.char_indices().skip(1) {
            match c {
                _ if after_backslash => {
                    value.push(if c == 'n' { '\n' } else { c });
                    after_backslash = false;
                }
                '\\' => after_backslash = true,
                c if c == quote => return Some((Value::String(value), at + 1)),
                c => value.push(c),
            }
        }
        return None;
    }
    let len = text.find([',', ')'])?;
    let value = match text[..len].trim() {
        "True" => Value::Bool(true),
        "False" => Value::Bool(false),
        "None" => Value::Null,
        number => serde_json::from_str::<serde_json::Number>(number)
            .ok()?
            .into(),
    };
    Some((value, len))
}

#[cfg(test)]
mod tests;
