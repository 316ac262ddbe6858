//! Text to speech: the sound of one sentence, as it is made, and when its words are said.
//!
//! A vendor is asked by request (`openai`), or speaks over a socket that all sentences share
//! (`stream`). `fallback` makes one voice of a list.

pub(super) mod cartesia;
pub(super) mod deepgram;
pub(super) mod elevenlabs;
pub(super) mod fallback;
pub(super) mod openai;
pub(super) mod sarvam;
mod sound;
pub(crate) mod stream;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::{Language, ProviderError};

/// One sentence to be spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpeechRequest {
    /// Plain words: no markup, no emoji.
    pub text: String,
    /// The provider's name of the voice; its default if none.
    pub voice: Option<String>,
    /// The language, when it is known.
    pub language: Option<Language>,
}

/// Something that comes while a sentence is spoken.
#[derive(Debug, Clone, PartialEq)]
pub enum SpeechPiece {
    /// Mono samples at [`TextToSpeech::sample_rate_hz`], of any number.
    Sound(Vec<i16>),
    /// Words and when they are said, where the vendor tells; before their sound or after it.
    Words(Vec<WordTime>),
}

impl From<Vec<i16>> for SpeechPiece {
    fn from(samples: Vec<i16>) -> Self {
        Self::Sound(samples)
    }
}

/// When a word is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordTime {
    /// The word.
    pub text: String,
    /// From here on, counted from the first sample of the sentence …
    pub from: Duration,
    /// … until here.
    pub to: Duration,
}

/// The sound of a sentence. It ends after the last piece; an error ends it early.
pub type SpeechStream = BoxStream<'static, Result<SpeechPiece, ProviderError>>;

/// A speech synthesiser that streams.
#[async_trait]
pub trait TextToSpeech: Send + Sync + 'static {
    /// Vendor and model, for logs.
    fn name(&self) -> &str;

    /// Samples a second of every stream.
    fn sample_rate_hz(&self) -> u32;

    /// Starts one sentence: returns once the provider has accepted the request. Dropping the stream
    /// gives it up.
    async fn synthesize(&self, request: SpeechRequest) -> Result<SpeechStream, ProviderError>;

    /// What the sound of the last answer was before it became samples, such as "WAV, 44100 Hz, 2
    /// channels", for whoever checks the settings. None where nothing had to be read.
    fn last_format(&self) -> Option<String> {
        None
    }

    /// Opens a connection ahead of the first request. Failing is not an error yet.
    async fn prewarm(&self) {}

    /// The voices of a list, for whoever checks the settings; none for a voice that is no list.
    fn members(&self) -> &[Arc<dyn TextToSpeech>] {
        &[]
    }
}
