//! Text to speech: the sound of one sentence, as it is made.

pub(super) mod openai;
mod sound;

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

/// Mono samples at [`TextToSpeech::sample_rate_hz`], in pieces of any size. It ends after the last
/// one; an error ends it early.
pub type SpeechStream = BoxStream<'static, Result<Vec<i16>, ProviderError>>;

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
}
