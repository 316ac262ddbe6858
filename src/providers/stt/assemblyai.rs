//! AssemblyAI's streaming recognition, which decides about turns: `/v3/ws`
//! (assemblyai.com/docs/streaming).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::ListenRequest;
use super::stream::{FinalWords, Heard, Reader, Wire};
use crate::providers::ProviderError;
use crate::providers::socket::{Account, Address};
use crate::settings::Secret;

/// The key's variable.
const KEY: &str = "ASSEMBLYAI_API_KEY";

/// How requests show the key.
const ACCOUNT: Account = Account {
    vendor: "AssemblyAI",
    variables: &[KEY],
    header: "authorization",
    before: "",
};

/// `vendor = "assemblyai"` in `[[providers.stt]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AssemblyAiConfig {
    /// Address of the service.
    pub base_url: String,
    /// The model.
    pub model: String,
    /// Whether a turn is waited for until it has capitals and punctuation.
    pub format_turns: bool,
    /// Silence that ends a turn of which the recogniser is sure, in milliseconds; its own when not
    /// set.
    pub min_turn_silence_ms: Option<u64>,
    /// Silence that ends any turn, in milliseconds; its own when not set.
    pub max_turn_silence_ms: Option<u64>,
    /// Names and words that are likely to be said.
    pub key_terms: Vec<String>,
}

impl Default for AssemblyAiConfig {
    fn default() -> Self {
        Self {
            base_url: "wss://streaming.assemblyai.com".to_owned(),
            model: "universal-streaming-english".to_owned(),
            format_turns: true,
            min_turn_silence_ms: None,
            max_turn_silence_ms: None,
            key_terms: Vec::new(),
        }
    }
}

/// One model.
pub(in crate::providers) struct AssemblyAi {
    config: AssemblyAiConfig,
    name: String,
    key: Secret,
}

impl AssemblyAi {
    pub fn new(config: AssemblyAiConfig) -> Result<Self, ProviderError> {
        let key = ACCOUNT.key()?;
        Ok(Self {
            name: format!("assemblyai/{}", config.model),
            config,
            key,
        })
    }
}

impl Wire for AssemblyAi {
    fn name(&self) -> &str {
        &self.name
    }

    fn address(&self, request: &ListenRequest) -> Result<Address, ProviderError> {
        let config = &self.config;
        let mut address = ACCOUNT.address(&config.base_url, "/v3/ws", &self.key)?;
        address.option("sample_rate", &request.sample_rate_hz.to_string());
        address.option("encoding", "pcm_s16le");
        address.option("speech_model", &config.model);
        address.option("format_turns", &config.format_turns.to_string());
        for (name, value) in [
            ("min_turn_silence", config.min_turn_silence_ms),
            ("max_turn_silence", config.max_turn_silence_ms),
        ] {
            if let Some(value) = value {
                address.option(name, &value.to_string());
            }
        }
        if !config.key_terms.is_empty() {
            address.option("keyterms_prompt", &json!(config.key_terms).to_string());
        }
        Ok(address)
    }

    fn close(&self) -> Option<Message> {
        Some(Message::text(json!({ "type": "Terminate" }).to_string()))
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(TurnReader {
            wants_format: self.config.format_turns,
        })
    }
}

/// Reads what `/v3/ws` says.
pub(crate) struct TurnReader {
    /// The end of a turn counts when its words are formatted.
    pub wants_format: bool,
}

impl Reader for TurnReader {
    fn read(&mut self, message: &str, heard: &mut Vec<Heard>) {
        let Ok(message) = serde_json::from_str::<Value>(message) else {
            return;
        };
        match message["type"].as_str() {
            Some("SpeechStarted") => heard.push(Heard::SpeechStarted {
                at: ms(&message["timestamp"]),
            }),
            Some("Turn") => self.turn(&message, heard),
            Some("Error") => {
                let said = message["error"]
                    .as_str()
                    .unwrap_or("an error without words");
                let said: String = said.chars().take(200).collect();
                heard.push(Heard::Error(ProviderError::temporary(format!(
                    "AssemblyAI says: {said}"
                ))));
            }
            _ => {}
        }
    }
}

fn ms(value: &Value) -> Duration {
    Duration::from_millis(value.as_u64().unwrap_or(0))
}

impl TurnReader {
    fn turn(&self, message: &Value, heard: &mut Vec<Heard>) {
        let words = message["words"].as_array().map_or(&[][..], Vec::as_slice);
        let place = |word: &Value| {
            let text = word["text"].as_str()?.to_owned();
            Some((text, ms(&word["start"]), ms(&word["end"])))
        };
        let words_in: Vec<_> = words.iter().filter_map(place).collect();
        let from = words_in
            .first()
            .map_or(Duration::ZERO, |(_, from, _)| *from);
        let to = words_in.last().map_or(from, |(_, _, to)| *to);
        let is_formatted = message["turn_is_formatted"].as_bool() == Some(true);
        let is_over = message["end_of_turn"].as_bool() == Some(true);
        if !is_over || (self.wants_format && !is_formatted) {
            // `transcript` lacks the words that may change.
            let texts: Vec<&str> = words_in.iter().map(|(text, _, _)| text.as_str()).collect();
            let text = texts.join(" ");
            return heard.push(Heard::Interim { from, to, text });
        }
        let confidence = words
            .iter()
            .filter_map(|word| word["confidence"].as_f64())
            .map(|confidence| confidence as f32)
            .reduce(f32::min);
        heard.push(Heard::Final(FinalWords {
            from,
            to,
            text: message["transcript"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            confidence,
            words: words_in,
            answers_finalise: false,
        }));
        heard.push(Heard::EndOfTurn {
            probability: message["end_of_turn_confidence"].as_f64().map(|p| p as f32),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_ends_once_when_its_words_are_formatted() {
        let turn = |text: &str, is_over: bool, is_formatted: bool| {
            json!({
                "type": "Turn", "turn_order": 0, "turn_is_formatted": is_formatted, "end_of_turn": is_over,
                "transcript": text, "end_of_turn_confidence": 0.75,
                "words": [{ "text": text, "start": 100, "end": 400, "confidence": 0.5, "word_is_final": true }],
            })
        };
        let (from, to) = (Duration::from_millis(100), Duration::from_millis(400));
        let interim = Heard::Interim {
            from,
            to,
            text: "yes".to_owned(),
        };
        let end = |text: &str| {
            vec![
                Heard::Final(FinalWords {
                    from,
                    to,
                    text: text.to_owned(),
                    confidence: Some(0.5),
                    words: vec![(text.to_owned(), from, to)],
                    answers_finalise: false,
                }),
                Heard::EndOfTurn {
                    probability: Some(0.75),
                },
            ]
        };
        for (wants_format, message, expected) in [
            (true, turn("yes", false, false), vec![interim.clone()]),
            (true, turn("yes", true, false), vec![interim]),
            (true, turn("Yes.", true, true), end("Yes.")),
            (false, turn("yes", true, false), end("yes")),
            (true, json!({ "type": "Begin", "id": "x" }), vec![]),
            (true, json!("Turn"), vec![]),
        ] {
            let mut heard = Vec::new();
            TurnReader { wants_format }.read(&message.to_string(), &mut heard);
            assert_eq!(heard, expected, "{message}");
        }
    }
}
