//! Text to speech by `POST audio/speech` of an OpenAI-compatible server. Raw samples are asked for;
//! what comes is [`sound`](super::sound)'s business.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::stream;
use reqwest::Response;
use serde_json::json;

use super::sound::{SoundProblem, SoundReader};
use super::{SpeechPiece, SpeechRequest, SpeechStream, TextToSpeech};
use crate::providers::ProviderError;
use crate::providers::openai::Api;

/// `response_format: pcm` is 24 kHz, mono, 16 bit little endian (OpenAI's API reference, "Create
/// speech").
const SAMPLE_RATE_HZ: u32 = 24_000;

/// One model on one server.
pub(in crate::providers) struct OpenAiTextToSpeech {
    api: Api,
    model: String,
    voice: String,
    name: String,
    /// What the last answer was.
    format: Arc<Mutex<Option<String>>>,
}

impl OpenAiTextToSpeech {
    /// `voice` speaks when the persona names none.
    pub fn new(api: Api, model: &str, voice: &str) -> Self {
        Self {
            api,
            model: model.to_owned(),
            voice: voice.to_owned(),
            name: format!("openai/{model}"),
            format: Arc::default(),
        }
    }
}

#[async_trait]
impl TextToSpeech for OpenAiTextToSpeech {
    fn name(&self) -> &str {
        &self.name
    }

    fn sample_rate_hz(&self) -> u32 {
        SAMPLE_RATE_HZ
    }

    async fn synthesize(&self, request: SpeechRequest) -> Result<SpeechStream, ProviderError> {
        let body = json!({
            "model": self.model,
            "input": request.text,
            "voice": request.voice.as_deref().unwrap_or(&self.voice),
            "response_format": "pcm",
        });
        let response = self
            .api
            .send(self.api.post("audio/speech").json(&body))
            .await?;
        let kind = response
            .headers()
            .get(reqwest::header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        if kind.starts_with("text/") || kind.contains("json") {
            return Err(self.api.strange(&format!("{kind} instead of sound")));
        }
        let state = State {
            response: Some(response),
            reader: SoundReader::new(&kind, SAMPLE_RATE_HZ),
            api: self.api.clone(),
            format: self.format.clone(),
        };
        Ok(Box::pin(stream::try_unfold(state, State::next)))
    }

    fn last_format(&self) -> Option<String> {
        lock(&self.format).clone()
    }

    async fn prewarm(&self) {
        self.api.prewarm().await;
    }
}

/// An answer that is being received.
struct State {
    /// None once it has ended.
    response: Option<Response>,
    reader: SoundReader,
    api: Api,
    format: Arc<Mutex<Option<String>>>,
}

impl State {
    /// The next samples; none at the end.
    async fn next(mut self) -> Result<Option<(SpeechPiece, Self)>, ProviderError> {
        while let Some(response) = &mut self.response {
            let chunk = response.chunk().await;
            let samples = match chunk.map_err(|error| self.api.broken(error))? {
                Some(chunk) => self.reader.push(&chunk),
                None => {
                    self.response = None;
                    self.reader.finish()
                }
            };
            let samples = samples.map_err(|problem| self.not_speech(problem))?;
            self.note_format();
            if !samples.is_empty() {
                return Ok(Some((SpeechPiece::Sound(samples), self)));
            }
        }
        Ok(None)
    }

    fn note_format(&self) {
        let now = self.reader.description();
        let mut known = lock(&self.format);
        if now.is_some() && known.as_deref() != now {
            tracing::debug!(format = now, "what speech comes as");
            *known = now.map(str::to_owned);
        }
    }

    fn not_speech(&self, problem: SoundProblem) -> ProviderError {
        match problem {
            SoundProblem::Unreadable(what) => self.api.misconfigured(&format!(
                "{what} to audio/speech, where raw samples (pcm) or WAV can be played: choose a model or a server \
                 that knows response_format pcm (OPENAI_BASE_URL, providers.tts_model)"
            )),
            SoundProblem::Text(label) => self.api.strange(&format!("a text ({label}) instead of sound")),
        }
    }
}

fn lock(format: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    format.lock().unwrap_or_else(PoisonError::into_inner)
}
