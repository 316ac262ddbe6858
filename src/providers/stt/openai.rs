//! Speech to text by `POST audio/transcriptions` of an OpenAI-compatible server.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use reqwest::multipart::{Form, Part};
use serde_json::Value;

use super::marks;
use super::{SpeechSegment, Transcriber, Transcript};
use crate::providers::ProviderError;
use crate::providers::openai::Api;

/// Bytes of the header of a WAV file with one format and one data chunk.
const WAV_HEADER: usize = 44;

/// Whisper takes a piece for silence when it gives this much for that (`no_speech_threshold` of its
/// `transcribe.py`) …
const NO_SPEECH: f64 = 0.6;

/// … and little for the words (`logprob_threshold`, the mean of the logarithms).
const LOW_LOG_PROBABILITY: f64 = -1.0;

/// What an answer without speech is turned into: a mark as other recognisers write it.
const NO_SPEECH_MARK: &str = "[no speech]";

/// One model on one server.
pub(in crate::providers) struct OpenAiSpeechToText {
    api: Api,
    model: String,
    name: String,
    /// Whether to ask for `verbose_json`, which has `no_speech_prob`. Whisper knows it; OpenAI's
    /// newer models refuse it ("Create transcription" in OpenAI's API reference).
    is_verbose: AtomicBool,
    /// Whether the server takes the language. Until it has refused one it does.
    takes_language: AtomicBool,
}

/// What a request has beside the sound and the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Options<'a> {
    is_verbose: bool,
    language: Option<&'a str>,
}

impl OpenAiSpeechToText {
    pub fn new(api: Api, model: &str) -> Self {
        Self {
            api,
            model: model.to_owned(),
            name: format!("openai/{model}"),
            is_verbose: AtomicBool::new(model.to_lowercase().contains("whisper")),
            takes_language: AtomicBool::new(true),
        }
    }

    async fn ask(
        &self,
        segment: &SpeechSegment,
        options: Options<'_>,
    ) -> Result<Transcript, ProviderError> {
        let file = Part::bytes(wav(segment))
            .file_name("speech.wav")
            .mime_str("audio/wav")
            .expect("audio/wav is a media type");
        let format = if options.is_verbose {
            "verbose_json"
        } else {
            "json"
        };
        let mut form = Form::new()
            .part("file", file)
            .text("model", self.model.clone())
            .text("response_format", format);
        if let Some(language) = options.language {
            form = form.text("language", language.to_owned());
        }
        let response = self
            .api
            .send(self.api.post("audio/transcriptions").multipart(form))
            .await?;
        let body = response
            .bytes()
            .await
            .map_err(|error| self.api.broken(error))?;
        serde_json::from_slice(&body)
            .ok()
            .and_then(|answer| transcript(&answer))
            .ok_or_else(|| self.api.strange("a transcription without a text"))
    }
}

#[async_trait]
impl Transcriber for OpenAiSpeechToText {
    fn name(&self) -> &str {
        &self.name
    }

    async fn transcribe(&self, segment: SpeechSegment) -> Result<Transcript, ProviderError> {
        let language = segment.language.as_ref().and_then(|l| l.iso_639_1());
        let options = Options {
            is_verbose: self.is_verbose.load(Ordering::Relaxed),
            language: language.filter(|_| self.takes_language.load(Ordering::Relaxed)),
        };
        let without_format = Options {
            is_verbose: false,
            ..options
        };
        let plain = Options {
            language: None,
            ..without_format
        };
        let mut forms = vec![options, without_format, plain];
        forms.dedup();
        let mut refused = None;
        for form in forms {
            match self.ask(&segment, form).await {
                // What is left out may be what the server did not like.
                Err(error @ ProviderError::BadInput { .. }) => {
                    refused.get_or_insert(error);
                }
                Ok(transcript) => {
                    if let Some(error) = refused {
                        self.is_verbose.store(form.is_verbose, Ordering::Relaxed);
                        let lost = language.filter(|_| form.language.is_none());
                        self.takes_language
                            .fetch_and(lost.is_none(), Ordering::Relaxed);
                        tracing::warn!(
                            language = lost,
                            %error,
                            "the recogniser refuses an option; it is left out from now on"
                        );
                    }
                    return Ok(transcript);
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused.expect("every form was refused"))
    }

    async fn prewarm(&self) {
        self.api.prewarm().await;
    }
}

/// Reads an answer; none if there is no text in it. A text that is null is no words.
fn transcript(answer: &Value) -> Option<Transcript> {
    let segments: Vec<&Value> = answer
        .get("segments")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .collect();
    let is_silent = |segment: &&Value| {
        let value = |name: &str| segment.get(name).and_then(Value::as_f64);
        let text = segment.get("text").and_then(Value::as_str);
        let is_no_speech = value("no_speech_prob").is_some_and(|p| p > NO_SPEECH);
        let is_unlikely = value("avg_logprob").is_some_and(|p| p < LOW_LOG_PROBABILITY);
        is_no_speech && (is_unlikely || text.is_some_and(marks::is_made_up_in_silence))
    };
    let has_silence = segments.iter().any(is_silent);
    let text = match answer.get("text") {
        _ if has_silence => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Null) => Some(String::new()),
        Some(_) => return None,
        None if segments.is_empty() => return None,
        None => None,
    };
    let heard: Vec<&Value> = segments.into_iter().filter(|s| !is_silent(s)).collect();
    let text = text.unwrap_or_else(|| {
        let texts = heard
            .iter()
            .filter_map(|segment| segment.get("text").and_then(Value::as_str));
        texts.map(str::trim).collect::<Vec<_>>().join(" ")
    });
    // Nobody has spoken, which is more than that no words were found.
    let text = match heard.is_empty() && has_silence {
        true => NO_SPEECH_MARK.to_owned(),
        false => text,
    };
    let confidence = heard
        .iter()
        .filter_map(|segment| segment.get("avg_logprob").and_then(Value::as_f64))
        .map(|logarithm| logarithm.exp().clamp(0.0, 1.0) as f32)
        .reduce(f32::min);
    Some(Transcript {
        text: text.trim().to_owned(),
        confidence,
    })
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
    use serde_json::json;

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

    #[test]
    fn an_answer_is_read_in_every_form() {
        let case =
            include_str!("../../../tests/fixtures/cases/transcription-text-null/answer.json");
        let segment = |text: &str, no_speech: f64, log: f64| json!({ "text": text, "no_speech_prob": no_speech, "avg_logprob": log });
        for (answer, text) in [
            (serde_json::from_str(case).unwrap(), Some("")),
            (json!({ "text": " Hello. " }), Some("Hello.")),
            (
                json!({ "text": "Hello.", "segments": null }),
                Some("Hello."),
            ),
            (
                json!({ "text": "Hello.", "segments": [segment("Hello.", 0.7, -0.2)] }),
                Some("Hello."),
            ),
            (
                json!({ "text": "Hello.", "segments": [{ "no_speech_prob": null }, null] }),
                Some("Hello."),
            ),
            (
                json!({ "text": "Hm wha", "segments": [segment(" Hm wha", 0.9, -1.4)] }),
                Some(NO_SPEECH_MARK),
            ),
            (
                json!({
                    "text": "Yes. Thank you for watching!",
                    "segments": [
                        segment(" Yes.", 0.1, -0.2),
                        segment(" Thank you for watching!", 0.8, -0.1),
                    ],
                }),
                Some("Yes."),
            ),
            (
                json!({
                    "text": "Thank you.",
                    "segments": [segment(" Thank you.", 0.2, -0.1)],
                }),
                Some("Thank you."),
            ),
            (
                json!({ "segments": [segment(" Yes.", 0.1, -0.2)] }),
                Some("Yes."),
            ),
            (json!({}), None),
            (json!({ "text": 5 }), None),
            (json!(["text"]), None),
        ] {
            let read = transcript(&answer).map(|transcript| transcript.text);
            assert_eq!(read.as_deref(), text, "{answer}");
        }
        let sure = json!({ "text": "Yes.", "segments": [segment(" Yes.", 0.1, 0.0)] });
        assert_eq!(transcript(&sure).unwrap().confidence, Some(1.0));
    }
}
