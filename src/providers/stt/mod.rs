//! Speech to text: the words in one stretch of the caller's speech.

pub mod marks;
pub(super) mod openai;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Language, ProviderError};

/// One stretch of speech, cut out by voice activity detection with some silence around it.
#[derive(Debug, Clone)]
pub struct SpeechSegment {
    /// Mono samples.
    pub samples: Arc<[i16]>,
    /// Samples a second.
    pub sample_rate_hz: u32,
    /// The language, when it is known.
    pub language: Option<Language>,
}

impl SpeechSegment {
    /// How long it is.
    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.samples.len() as f64 / f64::from(self.sample_rate_hz.max(1)))
    }
}

/// What was said. Empty text means that there were no words in the sound, a mark alone that nobody
/// has spoken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transcript {
    /// The words.
    pub text: String,
    /// The provider's own estimate, 0 to 1, when it gives one.
    pub confidence: Option<f32>,
}

/// A provider that turns one segment into words with one request.
#[async_trait]
pub trait SpeechToText: Send + Sync + 'static {
    /// Vendor and model, for logs.
    fn name(&self) -> &str;

    /// The words in `segment`. Dropping the future gives the request up.
    async fn transcribe(&self, segment: SpeechSegment) -> Result<Transcript, ProviderError>;

    /// Opens a connection ahead of the first request. Failing is not an error yet: the first
    /// request will say what is wrong.
    async fn prewarm(&self) {}
}
