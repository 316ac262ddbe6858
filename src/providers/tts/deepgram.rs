//! Deepgram's Aura voices, over `/v1/speak` (`asyncapi.yml` of deepgram/deepgram-api-specs). They
//! tell no times of words.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::SpeechRequest;
use super::cartesia::samples;
use super::stream::{Spoken, VoiceReader, VoiceWire};
use crate::providers::ProviderError;
use crate::providers::socket::{Address, Frame};
use crate::providers::stt::deepgram;
use crate::settings::Secret;

/// What is asked for.
const SAMPLE_RATE_HZ: u32 = 24_000;

/// `vendor = "deepgram"` in `[[providers.tts]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeepgramVoiceConfig {
    /// Address of the service.
    pub base_url: String,
    /// The model, which is the voice as well, when the persona has none.
    pub voice: String,
}

impl Default for DeepgramVoiceConfig {
    fn default() -> Self {
        Self {
            base_url: "wss://api.deepgram.com".to_owned(),
            voice: "aura-2-thalia-en".to_owned(),
        }
    }
}

/// One voice.
pub(in crate::providers) struct DeepgramVoice {
    config: DeepgramVoiceConfig,
    name: String,
    key: Secret,
}

impl DeepgramVoice {
    pub fn new(config: DeepgramVoiceConfig) -> Result<Self, ProviderError> {
        Ok(Self {
            name: format!("deepgram/{}", config.voice),
            config,
            key: deepgram::ACCOUNT.key()?,
        })
    }
}

impl VoiceWire for DeepgramVoice {
    fn name(&self) -> &str {
        &self.name
    }

    fn sample_rate_hz(&self) -> u32 {
        SAMPLE_RATE_HZ
    }

    fn address(&self, request: &SpeechRequest) -> Result<Address, ProviderError> {
        let voice = request.voice.as_deref().unwrap_or(&self.config.voice);
        let mut address =
            deepgram::ACCOUNT.address(&self.config.base_url, "/v1/speak", &self.key)?;
        address.option("model", voice);
        address.option("encoding", "linear16");
        address.option("sample_rate", &SAMPLE_RATE_HZ.to_string());
        Ok(address)
    }

    fn speak(&self, _: &str, request: &SpeechRequest) -> Vec<Message> {
        let messages = [
            json!({ "type": "Speak", "text": request.text }),
            json!({ "type": "Flush" }),
        ];
        messages.map(|m| Message::text(m.to_string())).to_vec()
    }

    fn cancel(&self, _: &str) -> Option<Message> {
        // Its sound says not what it belongs to: another sentence gets another connection.
        None
    }

    fn reader(&self, _: &str) -> Box<dyn VoiceReader> {
        Box::new(SpeakReader::default())
    }
}

/// Reads what `/v1/speak` says.
#[derive(Default)]
pub(crate) struct SpeakReader {
    /// The first byte of a sample whose second has not come.
    half: Option<u8>,
}

impl VoiceReader for SpeakReader {
    fn read(&mut self, frame: &Frame, spoken: &mut VecDeque<Spoken>) {
        let text = match frame {
            Frame::Binary(bytes) => {
                spoken.push_back(Spoken::Sound(samples(&mut self.half, bytes)));
                return;
            }
            Frame::Text(text) => text,
        };
        let Ok(message) = serde_json::from_str::<Value>(text) else {
            return;
        };
        match message["type"].as_str() {
            Some("Flushed") => spoken.push_back(Spoken::Done),
            Some("Error") => spoken.push_back(Spoken::Error(deepgram::error(&message))),
            Some("Warning") => {
                let code = message["code"].as_str().unwrap_or_default();
                tracing::warn!(code, "Deepgram's voice warns");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sound_ends_with_its_flush() {
        let mut reader = SpeakReader::default();
        let mut spoken = VecDeque::new();
        for frame in [
            Frame::Text(json!({ "type": "Metadata" }).to_string()),
            Frame::Binary(vec![1, 0, 2]),
            Frame::Binary(vec![0]),
            Frame::Text("x".to_owned()),
            Frame::Text(json!({ "type": "Flushed", "sequence_id": 0 }).to_string()),
        ] {
            reader.read(&frame, &mut spoken);
        }
        assert_eq!(
            spoken,
            [Spoken::Sound(vec![1]), Spoken::Sound(vec![2]), Spoken::Done]
        );
    }
}
