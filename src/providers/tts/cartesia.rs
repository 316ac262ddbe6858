//! Cartesia's voices, over `/tts/websocket` (docs.cartesia.ai, "TTS WebSocket").

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::stream::{Spoken, VoiceReader, VoiceWire};
use super::{SpeechRequest, WordTime};
use crate::providers::ProviderError;
use crate::providers::socket::{Account, Address, Frame};
use crate::settings::Secret;

/// The key's variable.
const KEY: &str = "CARTESIA_API_KEY";

/// The date of the interface that this file speaks.
const VERSION: &str = "2025-04-16";

/// What is asked for.
const SAMPLE_RATE_HZ: u32 = 24_000;

/// `vendor = "cartesia"` in `[[providers.tts]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CartesiaConfig {
    /// Address of the service.
    pub base_url: String,
    /// The model.
    pub model: String,
    /// Id of the voice, when the persona has none.
    pub voice: String,
}

impl Default for CartesiaConfig {
    fn default() -> Self {
        Self {
            base_url: "wss://api.cartesia.ai".to_owned(),
            model: "sonic-3".to_owned(),
            // The voice that Cartesia's plugin for LiveKit Agents takes.
            voice: "f786b574-daa5-4673-aa0c-cbe3e8534c02".to_owned(),
        }
    }
}

/// How requests show the key.
pub(in crate::providers) const ACCOUNT: Account = Account {
    vendor: "Cartesia",
    variables: &[KEY],
    header: "x-api-key",
    before: "",
};

/// An address of Cartesia's, with the key and the version that we speak.
pub(in crate::providers) fn address(
    base: &str,
    path: &str,
    key: &Secret,
) -> Result<Address, ProviderError> {
    let mut address = ACCOUNT.address(base, path, key)?;
    address.option("cartesia_version", VERSION);
    address.header("cartesia-version", VERSION);
    Ok(address)
}

/// One model.
pub(in crate::providers) struct Cartesia {
    config: CartesiaConfig,
    name: String,
    key: Secret,
}

impl Cartesia {
    pub fn new(config: CartesiaConfig) -> Result<Self, ProviderError> {
        Ok(Self {
            name: format!("cartesia/{}", config.model),
            config,
            key: ACCOUNT.key()?,
        })
    }
}

impl VoiceWire for Cartesia {
    fn name(&self) -> &str {
        &self.name
    }

    fn sample_rate_hz(&self) -> u32 {
        SAMPLE_RATE_HZ
    }

    fn address(&self, _: &SpeechRequest) -> Result<Address, ProviderError> {
        address(&self.config.base_url, "/tts/websocket", &self.key)
    }

    fn speak(&self, context: &str, request: &SpeechRequest) -> Vec<Message> {
        let voice = request.voice.as_deref().unwrap_or(&self.config.voice);
        let mut message = json!({
            "model_id": self.config.model,
            "transcript": request.text,
            "voice": { "mode": "id", "id": voice },
            "context_id": context,
            "continue": false,
            "add_timestamps": true,
            "output_format": { "container": "raw", "encoding": "pcm_s16le", "sample_rate": SAMPLE_RATE_HZ },
        });
        if let Some(language) = request.language.as_ref().and_then(|l| l.iso_639_1()) {
            message["language"] = language.into();
        }
        vec![Message::text(message.to_string())]
    }

    fn cancel(&self, context: &str) -> Option<Message> {
        let message = json!({ "context_id": context, "cancel": true });
        Some(Message::text(message.to_string()))
    }

    fn reader(&self, context: &str) -> Box<dyn VoiceReader> {
        Box::new(CartesiaReader::new(context))
    }
}

/// Reads what `/tts/websocket` says.
pub(crate) struct CartesiaReader {
    context: String,
    /// The first byte of a sample whose second has not come.
    half: Option<u8>,
}

impl CartesiaReader {
    pub fn new(context: &str) -> Self {
        Self {
            context: context.to_owned(),
            half: None,
        }
    }
}

impl VoiceReader for CartesiaReader {
    fn read(&mut self, frame: &Frame, spoken: &mut VecDeque<Spoken>) {
        let Frame::Text(text) = frame else {
            return;
        };
        let Ok(message) = serde_json::from_str::<Value>(text) else {
            return;
        };
        let context = message["context_id"].as_str();
        if context.is_some_and(|context| context != self.context) {
            return;
        }
        match message["type"].as_str() {
            Some("chunk") => {
                let data = message["data"].as_str().unwrap_or_default();
                spoken.push_back(match STANDARD.decode(data) {
                    Ok(bytes) => Spoken::Sound(samples(&mut self.half, &bytes)),
                    Err(_) => Spoken::Error(ProviderError::temporary(
                        "Cartesia sent sound that is no base64",
                    )),
                });
            }
            Some("timestamps") => {
                spoken.push_back(Spoken::Words(words(&message["word_timestamps"])));
            }
            Some("done") => spoken.push_back(Spoken::Done),
            Some("error") => spoken.push_back(Spoken::Error(error(&message))),
            _ => {}
        }
    }
}

/// Bytes as samples, 16 bit little endian; a sample may be cut in two.
pub(super) fn samples(half: &mut Option<u8>, bytes: &[u8]) -> Vec<i16> {
    let mut samples = Vec::with_capacity(bytes.len() / 2 + 1);
    for byte in bytes {
        match half.take() {
            Some(low) => samples.push(i16::from_le_bytes([low, *byte])),
            None => *half = Some(*byte),
        }
    }
    samples
}

fn words(times: &Value) -> Vec<WordTime> {
    let list = |name: &str| times[name].as_array().map_or(&[][..], Vec::as_slice);
    let time = |value: &Value| Duration::try_from_secs_f64(value.as_f64()?).ok();
    list("words")
        .iter()
        .zip(list("start"))
        .zip(list("end"))
        .filter_map(|((word, from), to)| {
            Some(WordTime {
                text: word.as_str()?.to_owned(),
                from: time(from)?,
                to: time(to)?,
            })
        })
        .collect()
}

/// What went wrong. The key and the settings are what a person can change.
pub(in crate::providers) fn error(message: &Value) -> ProviderError {
    let said = ["message", "error", "title"]
        .iter()
        .find_map(|name| message[name].as_str())
        .unwrap_or("an error without words");
    let said: String = said.chars().take(200).collect();
    match message["status_code"].as_u64() {
        Some(401 | 403) => ProviderError::config(format!("Cartesia refuses {KEY}")),
        Some(402) => ProviderError::config(format!("Cartesia wants to be paid first: {said}")),
        Some(404 | 422) => ProviderError::config(format!(
            "Cartesia refuses the settings (model, voice): {said}"
        )),
        Some(400) => ProviderError::bad_input(format!("Cartesia refused what we sent: {said}")),
        _ => ProviderError::temporary(format!("Cartesia says: {said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &mut CartesiaReader, message: &Value) -> Vec<Spoken> {
        let mut spoken = VecDeque::new();
        reader.read(&Frame::Text(message.to_string()), &mut spoken);
        spoken.into()
    }

    #[test]
    fn sound_and_words_of_the_own_context_are_read() {
        let mut reader = CartesiaReader::new("s1");
        let chunk = |context: &str, bytes: &[u8]| {
            json!({
                "type": "chunk", "status_code": 206, "done": false, "context_id": context,
                "data": STANDARD.encode(bytes), "step_time": 1.0,
            })
        };
        assert_eq!(read(&mut reader, &chunk("s0", &[1, 0])), []);
        assert_eq!(
            read(&mut reader, &chunk("s1", &[1, 0, 255])),
            [Spoken::Sound(vec![1])]
        );
        assert_eq!(
            read(&mut reader, &chunk("s1", &[255])),
            [Spoken::Sound(vec![-1])]
        );
        let times = json!({
            "type": "timestamps", "context_id": "s1",
            "word_timestamps": { "words": ["We", "open"], "start": [0.0, 0.25], "end": [0.2, -1.0] },
        });
        let first = WordTime {
            text: "We".to_owned(),
            from: Duration::ZERO,
            to: Duration::from_millis(200),
        };
        assert_eq!(read(&mut reader, &times), [Spoken::Words(vec![first])]);
        let done = json!({ "type": "done", "done": true, "context_id": "s1" });
        assert_eq!(read(&mut reader, &done), [Spoken::Done]);
        for odd in [
            json!(7),
            json!({ "type": "flush_done", "context_id": "s1" }),
        ] {
            assert_eq!(read(&mut reader, &odd), [], "{odd}");
        }
    }

    #[test]
    fn an_error_says_what_to_do() {
        for (status, is_config) in [
            (401, true),
            (402, true),
            (422, true),
            (500, false),
            (429, false),
        ] {
            let message = json!({ "type": "error", "context_id": "s1", "status_code": status, "error": "why" });
            let [Spoken::Error(error)] = &read(&mut CartesiaReader::new("s1"), &message)[..] else {
                panic!("it is an error")
            };
            assert_eq!(
                matches!(error, ProviderError::Config { .. }),
                is_config,
                "{status}"
            );
        }
    }
}
