//! Sarvam's voices, in the languages of India: `/text-to-speech/ws` (the classes
//! `ConfigureConnection`, `SendText`, `FlushSignal` and `AudioOutput` of its Python client). They
//! tell no times of words, and their sound says not what it belongs to.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::SpeechRequest;
use super::cartesia::samples;
use super::stream::{Spoken, VoiceReader, VoiceWire};
use crate::providers::ProviderError;
use crate::providers::socket::{Address, Frame};
use crate::providers::stt::sarvam;
use crate::settings::Secret;

/// What is asked for.
const SAMPLE_RATE_HZ: u32 = 24_000;

/// The longest text of one message, in characters.
const LONGEST_TEXT: usize = 2_500;

/// `vendor = "sarvam"` in `[[providers.tts]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SarvamVoiceConfig {
    /// Address of the service.
    pub base_url: String,
    /// The model.
    pub model: String,
    /// The speaker, when the persona has no voice.
    pub voice: String,
    /// The language, when the persona has none.
    pub language: String,
    /// How fast it speaks, 0.5 to 2; the model's own when not set.
    pub pace: Option<f64>,
}

impl Default for SarvamVoiceConfig {
    fn default() -> Self {
        Self {
            base_url: "wss://api.sarvam.ai".to_owned(),
            model: "bulbul:v3".to_owned(),
            // Sarvam's own for this model.
            voice: "shubh".to_owned(),
            language: "en-IN".to_owned(),
            pace: None,
        }
    }
}

/// One model.
pub(in crate::providers) struct SarvamVoice {
    config: SarvamVoiceConfig,
    name: String,
    key: Secret,
}

impl SarvamVoice {
    pub fn new(config: SarvamVoiceConfig) -> Result<Self, ProviderError> {
        Ok(Self {
            name: format!("sarvam/{}", config.model),
            config,
            key: sarvam::ACCOUNT.key()?,
        })
    }
}

impl VoiceWire for SarvamVoice {
    fn name(&self) -> &str {
        &self.name
    }

    fn sample_rate_hz(&self) -> u32 {
        SAMPLE_RATE_HZ
    }

    fn address(&self, request: &SpeechRequest) -> Result<Address, ProviderError> {
        if let Some(language) = &request.language {
            sarvam::language_code(language)?;
        }
        let path = "/text-to-speech/ws";
        let mut address = sarvam::ACCOUNT.address(&self.config.base_url, path, &self.key)?;
        address.option("model", &self.config.model);
        address.option("send_completion_event", "true");
        Ok(address)
    }

    fn speak(&self, _: &str, request: &SpeechRequest) -> Vec<Message> {
        let config = &self.config;
        let language = request.language.as_ref().and_then(|l| l.in_india());
        // A speaker in other than small letters is refused.
        let voice = request.voice.as_deref().unwrap_or(&config.voice);
        let mut settings = json!({
            "model": config.model,
            "language_code": language.as_deref().unwrap_or(&config.language),
            "speaker": voice.to_lowercase(),
            "output_audio_codec": "linear16",
            "speech_sample_rate": SAMPLE_RATE_HZ,
        });
        if let Some(pace) = config.pace {
            settings["pace"] = pace.into();
        }
        let mut messages = vec![json!({ "type": "config", "data": settings })];
        let characters: Vec<char> = request.text.chars().collect();
        for text in characters.chunks(LONGEST_TEXT) {
            let text: String = text.iter().collect();
            messages.push(json!({ "type": "text", "data": { "text": text } }));
        }
        messages.push(json!({ "type": "flush" }));
        let text = |message: Value| Message::text(message.to_string());
        messages.into_iter().map(text).collect()
    }

    fn cancel(&self, _: &str) -> Option<Message> {
        // Its sound says not what it belongs to: another sentence gets another connection.
        None
    }

    fn reader(&self, _: &str) -> Box<dyn VoiceReader> {
        Box::new(SarvamVoiceReader::default())
    }
}

/// Reads what `/text-to-speech/ws` says.
#[derive(Default)]
pub(crate) struct SarvamVoiceReader {
    /// The first byte of a sample whose second has not come.
    half: Option<u8>,
}

impl VoiceReader for SarvamVoiceReader {
    fn read(&mut self, frame: &Frame, spoken: &mut VecDeque<Spoken>) {
        let Frame::Text(text) = frame else {
            return;
        };
        let Ok(message) = serde_json::from_str::<Value>(text) else {
            return;
        };
        let data = &message["data"];
        match message["type"].as_str() {
            Some("audio") => {
                let sound = STANDARD.decode(data["audio"].as_str().unwrap_or_default());
                spoken.push_back(match sound {
                    Ok(bytes) => Spoken::Sound(samples(&mut self.half, &bytes)),
                    Err(_) => Spoken::Error(ProviderError::temporary(
                        "Sarvam sent sound that is no base64",
                    )),
                });
            }
            Some("event") if data["event_type"].as_str() == Some("final") => {
                spoken.push_back(Spoken::Done);
            }
            Some("error") => {
                let said = data["message"].as_str().unwrap_or("an error");
                let error = sarvam::error(data["code"].as_u64(), said);
                spoken.push_back(Spoken::Error(error));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::Language;

    #[test]
    fn sound_ends_with_its_completion() {
        let mut reader = SarvamVoiceReader::default();
        let mut spoken = VecDeque::new();
        let audio = |bytes: &[u8]| {
            let audio = STANDARD.encode(bytes);
            json!({ "type": "audio", "data": { "content_type": "audio/linear16", "audio": audio, "request_id": "x" } })
        };
        for message in [
            audio(&[1, 0, 2]),
            audio(&[0]),
            json!({ "type": "event", "data": { "event_type": "started" } }),
            json!({ "type": "pong" }),
            json!([1]),
            json!({ "type": "event", "data": { "event_type": "final" } }),
        ] {
            reader.read(&Frame::Text(message.to_string()), &mut spoken);
        }
        reader.read(&Frame::Binary(vec![1]), &mut spoken);
        let expected = [Spoken::Sound(vec![1]), Spoken::Sound(vec![2]), Spoken::Done];
        assert_eq!(spoken, expected);
    }

    #[test]
    fn an_error_says_what_to_do() {
        for (code, is_temporary) in [(403, false), (422, false), (429, true), (500, true)] {
            let message = json!({ "type": "error", "data": { "message": "why", "code": code } });
            let mut spoken = VecDeque::new();
            SarvamVoiceReader::default().read(&Frame::Text(message.to_string()), &mut spoken);
            let Some(Spoken::Error(error)) = spoken.pop_front() else {
                panic!("it is an error")
            };
            assert_eq!(error.is_temporary(), is_temporary, "{code}");
        }
    }

    #[test]
    fn a_sentence_is_asked_for_in_the_language_as_sarvam_names_it() {
        let voice = SarvamVoice {
            config: SarvamVoiceConfig::default(),
            name: String::new(),
            key: Secret::new("secret"),
        };
        let request = |language: &str, text: &str| SpeechRequest {
            text: text.to_owned(),
            voice: Some("Ritu".to_owned()),
            language: Language::read(language).unwrap(),
        };
        let messages = voice.speak("s1", &request("hi", &"na".repeat(1_300)));
        let messages: Vec<Value> = messages
            .into_iter()
            .map(|message| serde_json::from_str(&message.into_text().unwrap()).unwrap())
            .collect();
        let kinds: Vec<_> = messages
            .iter()
            .map(|m| m["type"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, ["config", "text", "text", "flush"]);
        assert_eq!(messages[0]["data"]["language_code"], "hi-IN");
        assert_eq!(messages[0]["data"]["speaker"], "ritu");
        assert!(voice.address(&request("de", "x")).is_err());
        let address = voice.address(&request("hi", "x")).unwrap();
        assert!(!address.url().contains("secret"), "{}", address.url());
    }
}
