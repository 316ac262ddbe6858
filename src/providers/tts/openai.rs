//! Text to speech by `POST audio/speech` of an OpenAI-compatible server, as a stream of raw samples.

use async_trait::async_trait;
use futures_util::stream;
use serde_json::json;

use super::{SpeechRequest, SpeechStream, TextToSpeech};
use crate::providers::ProviderError;
use crate::providers::openai::Api;

/// `response_format: pcm` is 24 kHz, mono, 16 bit little endian (OpenAI's API reference, "Create speech").
const SAMPLE_RATE_HZ: u32 = 24_000;

/// One model on one server.
pub(in crate::providers) struct OpenAiTextToSpeech {
    api: Api,
    model: String,
    voice: String,
    name: String,
}

impl OpenAiTextToSpeech {
    /// `voice` speaks when the persona names none.
    pub fn new(api: Api, model: &str, voice: &str) -> Self {
        Self {
            api,
            model: model.to_owned(),
            voice: voice.to_owned(),
            name: format!("openai/{model}"),
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
            .unwrap_or_default();
        if kind.starts_with("text/") || kind.contains("json") {
            return Err(self.api.strange(&format!("{kind} instead of sound")));
        }
        let state = (response, Halves::default(), self.api.clone());
        Ok(Box::pin(stream::try_unfold(
            state,
            async |(mut response, mut halves, api)| {
                loop {
                    match response.chunk().await.map_err(|error| api.broken(error))? {
                        Some(chunk) => {
                            let samples = halves.samples(&chunk);
                            if !samples.is_empty() {
                                return Ok(Some((samples, (response, halves, api))));
                            }
                        }
                        None => return Ok(None),
                    }
                }
            },
        )))
    }

    async fn prewarm(&self) {
        self.api.prewarm().await;
    }
}

/// Puts samples together whose two bytes came in different pieces.
#[derive(Default)]
struct Halves {
    low: Option<u8>,
}

impl Halves {
    fn samples(&mut self, bytes: &[u8]) -> Vec<i16> {
        let mut samples = Vec::with_capacity(bytes.len() / 2 + 1);
        let mut rest = bytes;
        if let (Some(low), Some((high, others))) = (self.low, rest.split_first()) {
            samples.push(i16::from_le_bytes([low, *high]));
            self.low = None;
            rest = others;
        }
        let pairs = rest.chunks_exact(2);
        if let [low] = pairs.remainder() {
            self.low = Some(*low);
        }
        samples.extend(pairs.map(|pair| i16::from_le_bytes([pair[0], pair[1]])));
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_survive_any_cut() {
        let whole: Vec<i16> = vec![1, -2, 300, -400, 5];
        let bytes: Vec<u8> = whole
            .iter()
            .flat_map(|sample| sample.to_le_bytes())
            .collect();
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let mut halves = Halves::default();
                let mut got = halves.samples(&bytes[..first]);
                got.extend(halves.samples(&bytes[first..second]));
                got.extend(halves.samples(&bytes[second..]));
                assert_eq!(got, whole, "cut at {first} and {second}");
            }
        }
    }
}
