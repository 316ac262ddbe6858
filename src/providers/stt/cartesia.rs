//! Cartesia's streaming recognition, Ink: `/stt/websocket` (docs.cartesia.ai, "STT WebSocket"; the
//! classes `STTManualFinalize…` of its Python client). Words are final when we ask for them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use super::ListenRequest;
use super::stream::{FinalWords, Heard, Reader, UNTOLD, Wire, seconds};
use crate::providers::ProviderError;
use crate::providers::socket::Address;
use crate::providers::tts::cartesia;
use crate::settings::Secret;

/// `vendor = "cartesia"` in `[[providers.stt]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct InkConfig {
    /// Address of the service.
    pub base_url: String,
    /// The model.
    pub model: String,
}

impl Default for InkConfig {
    fn default() -> Self {
        Self {
            base_url: "wss://api.cartesia.ai".to_owned(),
            model: "ink-2".to_owned(),
        }
    }
}

/// One model.
pub(in crate::providers) struct Ink {
    config: InkConfig,
    name: String,
    key: Secret,
}

impl Ink {
    pub fn new(config: InkConfig) -> Result<Self, ProviderError> {
        Ok(Self {
            name: format!("cartesia/{}", config.model),
            config,
            key: cartesia::ACCOUNT.key()?,
        })
    }
}

impl Wire for Ink {
    fn name(&self) -> &str {
        &self.name
    }

    fn address(&self, request: &ListenRequest) -> Result<Address, ProviderError> {
        let mut address = cartesia::address(&self.config.base_url, "/stt/websocket", &self.key)?;
        address.option("model", &self.config.model);
        if let Some(language) = request.language.as_ref().and_then(|l| l.iso_639_1()) {
            address.option("language", language);
        }
        address.option("encoding", "pcm_s16le");
        address.option("sample_rate", &request.sample_rate_hz.to_string());
        Ok(address)
    }

    fn finalise(&self) -> Option<Message> {
        Some(Message::text("finalize"))
    }

    fn close(&self) -> Option<Message> {
        Some(Message::text("done"))
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(InkReader::default())
    }
}

/// Reads what `/stt/websocket` says.
#[derive(Default)]
pub(crate) struct InkReader {
    /// Final words without a place: they get that of the answer to our question.
    unplaced: String,
}

impl Reader for InkReader {
    fn read(&mut self, message: &str, heard: &mut Vec<Heard>) {
        let Ok(message) = serde_json::from_str::<Value>(message) else {
            return;
        };
        match message["type"].as_str() {
            Some("transcript") => self.transcript(&message, heard),
            // Whatever was said before it was asked has been told.
            Some("flush_done") => heard.push(Heard::Final(FinalWords {
                to: UNTOLD,
                text: std::mem::take(&mut self.unplaced).trim().to_owned(),
                answers_finalise: true,
                ..FinalWords::default()
            })),
            Some("error") => heard.push(Heard::Error(cartesia::error(&message))),
            _ => {}
        }
    }
}

impl InkReader {
    /// Words with the white space before them, to be put together as they are.
    fn transcript(&mut self, message: &Value, heard: &mut Vec<Heard>) {
        let text = message["text"].as_str().unwrap_or_default();
        let place = |word: &Value| {
            let text = word["word"].as_str()?.trim().to_owned();
            let (from, to) = (word["start"].as_f64()?, word["end"].as_f64()?);
            Some((text, seconds(Some(from)), seconds(Some(to))))
        };
        let words = message["words"].as_array().into_iter().flatten();
        let words: Vec<_> = words.filter_map(place).collect();
        let is_final = message["is_final"].as_bool() == Some(true);
        if is_final && words.is_empty() {
            // Bounded, whatever comes: a turn has fewer words.
            if self.unplaced.len() < MOST_UNPLACED {
                self.unplaced.push_str(text);
            }
        }
        let from = words.first().map_or(Duration::ZERO, |(_, from, _)| *from);
        let to = words.last().map_or(UNTOLD, |(_, _, to)| *to);
        if is_final && !words.is_empty() {
            let before = std::mem::take(&mut self.unplaced);
            return heard.push(Heard::Final(FinalWords {
                from,
                to,
                text: format!("{before}{text}").trim().to_owned(),
                words,
                ..FinalWords::default()
            }));
        }
        let text = match is_final {
            true => self.unplaced.trim().to_owned(),
            false => format!("{}{text}", self.unplaced).trim().to_owned(),
        };
        heard.push(Heard::Interim { from, to, text });
    }
}

/// The longest text that waits for its place, in bytes.
const MOST_UNPLACED: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(text: &str, is_final: bool, words: &[(&str, f64, f64)]) -> String {
        let words: Vec<Value> = words
            .iter()
            .map(|(word, start, end)| serde_json::json!({ "word": word, "start": start, "end": end }))
            .collect();
        let message = serde_json::json!({ "type": "transcript", "text": text, "is_final": is_final, "duration": 1.0, "words": words });
        message.to_string()
    }

    fn read(reader: &mut InkReader, message: &str) -> Vec<Heard> {
        let mut heard = Vec::new();
        reader.read(message, &mut heard);
        heard
    }

    fn answer(text: &str) -> Heard {
        Heard::Final(FinalWords {
            to: UNTOLD,
            text: text.to_owned(),
            answers_finalise: true,
            ..FinalWords::default()
        })
    }

    const FLUSH_DONE: &str = r#"{"type":"flush_done","request_id":"x"}"#;

    #[test]
    fn words_with_places_are_final_at_once_and_the_flush_is_the_answer() {
        let ms = Duration::from_millis;
        let mut reader = InkReader::default();
        let interim = read(
            &mut reader,
            &transcript("Yes", false, &[("Yes", 0.5, 0.75)]),
        );
        let (from, to) = (ms(500), ms(750));
        let text = "Yes".to_owned();
        assert_eq!(interim, [Heard::Interim { from, to, text }]);
        let last = transcript(
            " Yes, I do.",
            true,
            &[(" Yes,", 0.5, 0.75), ("I do.", 1.0, 1.5)],
        );
        let words = FinalWords {
            from: ms(500),
            to: ms(1_500),
            text: "Yes, I do.".to_owned(),
            words: vec![
                ("Yes,".to_owned(), ms(500), ms(750)),
                ("I do.".to_owned(), ms(1_000), ms(1_500)),
            ],
            ..FinalWords::default()
        };
        assert_eq!(read(&mut reader, &last), [Heard::Final(words)]);
        assert_eq!(read(&mut reader, FLUSH_DONE), [answer("")]);
    }

    #[test]
    fn words_without_places_wait_for_the_flush() {
        let mut reader = InkReader::default();
        let interim = |text: &str| Heard::Interim {
            from: Duration::ZERO,
            to: UNTOLD,
            text: text.to_owned(),
        };
        assert_eq!(
            read(&mut reader, &transcript("Yes,", true, &[])),
            [interim("Yes,")]
        );
        assert_eq!(
            read(&mut reader, &transcript(" I", false, &[])),
            [interim("Yes, I")]
        );
        assert_eq!(
            read(&mut reader, &transcript(" I do.", true, &[])),
            [interim("Yes, I do.")]
        );
        assert_eq!(read(&mut reader, FLUSH_DONE), [answer("Yes, I do.")]);
        assert_eq!(read(&mut reader, FLUSH_DONE), [answer("")]);
    }

    #[test]
    fn odd_messages_mean_nothing_and_errors_say_why() {
        let mut reader = InkReader::default();
        for odd in ["[", "7", r#"{"type":"done"}"#, r#"{"type":["transcript"]}"#] {
            assert_eq!(read(&mut reader, odd), [], "{odd}");
        }
        let error = r#"{"type":"error","status_code":401,"error":"x"}"#;
        let [Heard::Error(error)] = &read(&mut reader, error)[..] else {
            panic!("it is an error")
        };
        assert!(!error.is_temporary() && error.to_string().contains("CARTESIA_API_KEY"));
    }
}
