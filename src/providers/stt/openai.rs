//! Speech to text by `POST audio/transcriptions` of an OpenAI-compatible server.

use async_trait::async_trait;
use reqwest::multipart::{Form, Part};
use serde::Deserialize;

use super::{SpeechSegment, SpeechToText, Transcript};
use crate::providers::ProviderError;
use crate::providers::openai::Api;

/// Bytes of the header of a WAV file with one format and one data chunk.
const WAV_HEADER: usize = 44;

/// One model on one server.
pub(in crate::providers) struct OpenAiSpeechToText {
    api: Api,
    model: String,
    name: String,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
}

impl OpenAiSpeechToText {
    pub fn new(api: Api, model: &str) -> Self {
        Self {
            api,
            model: model.to_owned(),
            name: format!("openai/{model}"),
        }
    }
}

#[async_trait]
impl SpeechToText for OpenAiSpeechToText {
    fn name(&self) -> &str {
        &self.name
    }

    async fn transcribe(&self, segment: SpeechSegment) -> Result<Transcript, ProviderError> {
        let file = Part::bytes(wav(&segment))
            .file_name("speech.wav")
            .mime_str("audio/wav")
            .expect("audio/wav is a media type");
        let mut form = Form::new()
            .part("file", file)
            .text("model", self.model.clone())
            .text("response_format", "json");
        if let Some(language) = &segment.language {
            form = form.text("language", language.clone());
        }
        let response = self
            .api
            .send(self.api.post("audio/transcriptions").multipart(form))
            .await?;
        let body = response
            .bytes()
            .await
            .map_err(|error| self.api.broken(error))?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| self.api.strange("a transcription without a text"))?;
        Ok(Transcript {
            text: answer.text.trim().to_owned(),
            confidence: None,
        })
    }

    async fn prewarm(&self) {
        self.api.prewarm().await;
    }
}

/// The segment as a WAV file: PCM, 16 bit, mono.
fn wav(segment: &SpeechSegment) -> Vec<u8> {
    let data = segment.samples.len() as u32 * 2;
    let rate = segment.sample_rate_hz;
    let mut wav = Vec::with_capacity(WAV_HEADER + data as usize);
    wav.extend_from_slice(b"RIFF");
    wav.extend_from_slice(&(WAV_HEADER as u32 - 8 + data).to_le_bytes());
    wav.extend_from_slice(b"WAVEfmt ");
    wav.extend_from_slice(&16u32.to_le_bytes());
    wav.extend_from_slice(&1u16.to_le_bytes());
    wav.extend_from_slice(&1u16.to_le_bytes());
    wav.extend_from_slice(&rate.to_le_bytes());
    wav.extend_from_slice(&(rate * 2).to_le_bytes());
    wav.extend_from_slice(&2u16.to_le_bytes());
    wav.extend_from_slice(&16u16.to_le_bytes());
    wav.extend_from_slice(b"data");
    wav.extend_from_slice(&data.to_le_bytes());
    wav.extend(
        segment
            .samples
            .iter()
            .flat_map(|sample| sample.to_le_bytes()),
    );
    wav
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wav_file_says_how_long_it_is() {
        let segment = SpeechSegment {
            samples: vec![1, -1, 256].into(),
            sample_rate_hz: 16_000,
            language: None,
        };
        let wav = wav(&segment);
        assert_eq!(wav.len(), WAV_HEADER + 6);
        assert_eq!(wav[4..8], 42u32.to_le_bytes());
        assert_eq!(wav[24..28], 16_000u32.to_le_bytes());
        assert_eq!(wav[40..44], 6u32.to_le_bytes());
        assert_eq!(wav[44..], [1, 0, 255, 255, 0, 1]);
    }
}
