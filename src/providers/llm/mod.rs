//! The language model: what to say next, and which tools to use for it.

pub(super) mod anthropic;
mod arguments;
mod events;
pub(super) mod fallback;
pub(super) mod gemini;
pub(super) mod openai;
mod turns;
pub mod written;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use super::ProviderError;
use crate::tools::ToolDefinition;

/// One request of the model to run a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The model's id of this call; its answer carries the same.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// A JSON object. Where the model wrote something else, that, as it is.
    pub arguments: String,
}

/// One entry of the history that the model sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatMessage {
    /// Who the agent is and what it is to do.
    System(String),
    /// Something the caller said.
    User(String),
    /// Something the agent said, asked of tools, or both.
    Assistant {
        /// What it said; may be empty.
        text: String,
        /// What it asked of tools. Each is answered by a [`ChatMessage::Tool`] that follows.
        tool_calls: Vec<ToolCall>,
    },
    /// What a tool answered.
    Tool {
        /// The [`ToolCall::id`] that this answers.
        call_id: String,
        /// The answer.
        output: String,
    },
}

/// What the model is given for one answer.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    /// The conversation so far, oldest first.
    pub messages: Vec<ChatMessage>,
    /// The tools that it may use; empty for none.
    pub tools: Vec<ToolDefinition>,
    /// Whether it is to use them. [`ToolChoice::None`] goes before the vendor's setting.
    pub tool_choice: ToolChoice,
}

/// Whether the model uses tools.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// Each answer to the caller begins with one.
    Required,
    /// It can only talk.
    None,
}

impl ToolChoice {
    /// What is sent with `request` where `self` is the setting: a tool that is required has been
    /// used when its output is what the model answers now.
    fn in_request(self, request: &ChatRequest) -> Self {
        let has_used = matches!(request.messages.last(), Some(ChatMessage::Tool { .. }));
        match (request.tool_choice, self) {
            (Self::None, _) => Self::None,
            (_, Self::Required) if has_used => Self::Auto,
            (Self::Auto, setting) => setting,
            (Self::Required, _) => Self::Required,
        }
    }
}

/// Tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// Sent to the model.
    pub prompt: u64,
    /// Among those, found in its cache.
    pub prompt_cached: u64,
    /// Written by the model.
    pub completion: u64,
}

/// One piece of the model's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatChunk {
    /// More text, in order; pieces break anywhere.
    Text(String),
    /// A whole request for a tool.
    ToolCall(ToolCall),
    /// What the request has cost so far; the last one counts.
    Usage(TokenUsage),
    /// The model did not say all that it wanted to.
    CutShort(CutShort),
}

/// Why an answer is shorter than the model meant it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CutShort {
    /// A filter of the provider stopped it; its name, as the provider gives it.
    Filter(String),
    /// It had used all the tokens that it may use.
    Length,
}

/// Something of a request that some servers do not take. What a server has refused once is left
/// out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatOption {
    /// `stream_options`: asks for the usage. Without it, tokens are not counted.
    StreamOptions,
    /// `temperature`.
    Temperature,
    /// `max_completion_tokens`. Without it, `max_tokens` is sent.
    MaxCompletionTokens,
    /// `max_tokens`.
    MaxTokens,
    /// `tools`. Without them the model can only talk.
    Tools,
    /// A message of the role `system`. Without it, its words begin the first message of the user.
    SystemRole,
    /// Messages in the order in which they were said. Without it, user and assistant take turns,
    /// and the user begins.
    RoleOrder,
}

impl ChatOption {
    /// Its name in the settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StreamOptions => "stream_options",
            Self::Temperature => "temperature",
            Self::MaxCompletionTokens => "max_completion_tokens",
            Self::MaxTokens => "max_tokens",
            Self::Tools => "tools",
            Self::SystemRole => "system_role",
            Self::RoleOrder => "role_order",
        }
    }
}

/// The answer as it is written. It ends after the last chunk; an error ends it early.
pub type ChatStream = BoxStream<'static, Result<ChatChunk, ProviderError>>;

/// A language model that streams.
#[async_trait]
pub trait ChatModel: Send + Sync + 'static {
    /// Vendor and model, for logs.
    fn name(&self) -> &str;

    /// Starts an answer: returns once the provider has accepted the request. Dropping the stream
    /// gives it up.
    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, ProviderError>;

    /// Opens a connection ahead of the first request. Failing is not an error yet.
    async fn prewarm(&self) {}

    /// The models of a list, for whoever checks the settings; none for a model that is no list.
    fn members(&self) -> &[Arc<dyn ChatModel>] {
        &[]
    }
}

/// What the vendors' readers make of a stream that comes in pieces of `piece` bytes, for fuzzing.
#[cfg(feature = "internals")]
pub(crate) fn read_streams(stream: &[u8], piece: usize) -> [Result<Vec<ChatChunk>, String>; 3] {
    [
        openai::read_pieces(stream, piece),
        anthropic::read_pieces(stream, piece),
        gemini::read_pieces(stream, piece),
    ]
}
