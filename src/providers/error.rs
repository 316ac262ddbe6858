//! What can go wrong with a provider, by what the conversation does about it.

use std::fmt;
use std::time::Duration;

/// Which of the three providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Component {
    /// Speech to text.
    Stt,
    /// The language model.
    Llm,
    /// Text to speech.
    Tts,
}

impl Component {
    /// The short name that logs, events and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stt => "stt",
            Self::Llm => "llm",
            Self::Tts => "tts",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An answer that a provider did not give. Every message names the host or the setting, and never
/// carries a key or what was said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// The same request may work in a moment: no connection, a time-out, an overloaded server, an
    /// answer cut short.
    #[error("{message}")]
    Temporary {
        /// What happened.
        message: String,
        /// How long the provider asked us to wait, when it did.
        retry_after: Option<Duration>,
    },
    /// No request will work until somebody changes the configuration.
    #[error("{message}")]
    Config {
        /// What to change.
        message: String,
    },
    /// This request will never work, but another may.
    #[error("{message}")]
    BadInput {
        /// What the provider did not like.
        message: String,
    },
}

impl ProviderError {
    /// Something that may pass.
    pub fn temporary(message: impl Into<String>) -> Self {
        Self::Temporary {
            message: message.into(),
            retry_after: None,
        }
    }

    /// Something to be changed by a person.
    pub fn config(message: impl Into<String>) -> Self {
        Self::Config {
            message: message.into(),
        }
    }

    /// A request that the provider cannot digest.
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self::BadInput {
            message: message.into(),
        }
    }

    /// Whether asking again can help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Temporary { .. })
    }
}
