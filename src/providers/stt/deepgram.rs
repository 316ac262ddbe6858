//! Deepgram's streaming recognition: `/v1/listen` and, with a turn detector in it, `/v2/listen`
//! (Flux). Formats: `asyncapi.yml` of deepgram/deepgram-api-specs.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::ListenRequest;
use super::stream::{FinalWords, Heard, Reader, Wire, seconds};
use crate::providers::socket::{Account, Address};
use crate::providers::{Language, ProviderError};
use crate::settings::Secret;

/// The key's variable.
const KEY: &str = "DEEPGRAM_API_KEY";

/// Regions that Deepgram's models know; of other languages they know none.
const REGIONS: [&str; 14] = [
    "en-AU", "en-GB", "en-IN", "en-NZ", "en-US", "de-CH", "es-419", "fr-CA", "nl-BE", "pt-BR",
    "pt-PT", "zh-CN", "zh-HK", "zh-TW",
];

/// A Flux connection with sound on it says something four times a second.
const FLUX_SILENCE: Duration = Duration::from_secs(3);

/// `vendor = "deepgram"`: recognition by `/v1/listen`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeepgramConfig {
    /// Address of the service.
    pub base_url: String,
    /// The model.
    pub model: String,
    /// Whether numbers, dates and the like are written as figures.
    pub smart_format: bool,
    /// Silence after which words are final even if nobody asks, in milliseconds.
    pub endpointing_ms: u64,
    /// Names and words that are likely to be said.
    pub key_terms: Vec<String>,
}

impl Default for DeepgramConfig {
    fn default() -> Self {
        Self {
            base_url: "wss://api.deepgram.com".to_owned(),
            model: "nova-3".to_owned(),
            smart_format: true,
            endpointing_ms: 300,
            key_terms: Vec::new(),
        }
    }
}

/// `vendor = "deepgram_flux"`: recognition that decides about turns, by `/v2/listen`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeepgramFluxConfig {
    /// Address of the service.
    pub base_url: String,
    /// The model.
    pub model: String,
    /// How sure it must be that a turn is over, .5 to .9.
    pub eot_threshold: f64,
    /// How sure it must be to say that a turn may be over, .3 to .9, and that the answer can be
    /// prepared; never when not set.
    pub eager_eot_threshold: Option<f64>,
    /// Silence after which a turn is over in any case, in milliseconds.
    pub eot_timeout_ms: u64,
    /// Names and words that are likely to be said.
    pub key_terms: Vec<String>,
}

impl Default for DeepgramFluxConfig {
    fn default() -> Self {
        Self {
            base_url: "wss://api.deepgram.com".to_owned(),
            model: "flux-general-en".to_owned(),
            eot_threshold: 0.7,
            eager_eot_threshold: None,
            // Deepgram's own 5000 is more silence than a caller takes for listening.
            eot_timeout_ms: 3_000,
            key_terms: Vec::new(),
        }
    }
}

/// How requests show the key.
pub(in crate::providers) const ACCOUNT: Account = Account {
    vendor: "Deepgram",
    variables: &[KEY],
    header: "authorization",
    before: "Token ",
};

/// `/v1/listen`.
pub(in crate::providers) struct DeepgramListen {
    config: DeepgramConfig,
    name: String,
    key: Secret,
}

impl DeepgramListen {
    pub fn new(config: DeepgramConfig) -> Result<Self, ProviderError> {
        Ok(Self {
            name: format!("deepgram/{}", config.model),
            config,
            key: ACCOUNT.key()?,
        })
    }

    /// As Deepgram names it; none where its model finds out by itself.
    fn language(&self, language: Option<&Language>) -> Option<String> {
        let Some(language) = language else {
            let is_multilingual = ["nova-2", "nova-3"].contains(&self.config.model.as_str());
            return is_multilingual.then(|| "multi".to_owned());
        };
        let tag = language.to_string();
        match REGIONS.contains(&tag.as_str()) {
            true => Some(tag),
            false => tag.split('-').next().map(str::to_owned),
        }
    }
}

impl Wire for DeepgramListen {
    fn name(&self) -> &str {
        &self.name
    }

    fn address(&self, request: &ListenRequest) -> Result<Address, ProviderError> {
        let config = &self.config;
        let mut address = ACCOUNT.address(&config.base_url, "/v1/listen", &self.key)?;
        address.option("model", &config.model);
        if let Some(language) = self.language(request.language.as_ref()) {
            address.option("language", &language);
        }
        address.option("encoding", "linear16");
        address.option("sample_rate", &request.sample_rate_hz.to_string());
        address.option("channels", "1");
        address.option("interim_results", "true");
        address.option("punctuate", "true");
        address.option("smart_format", &config.smart_format.to_string());
        address.option("endpointing", &config.endpointing_ms.to_string());
        // Models before the third know them by another name.
        let term = match config.model.starts_with("nova-3") {
            true => "keyterm",
            false => "keywords",
        };
        for word in &config.key_terms {
            address.option(term, word);
        }
        Ok(address)
    }

    fn finalise(&self) -> Option<Message> {
        Some(command("Finalize"))
    }

    fn keep_alive(&self) -> Option<Message> {
        Some(command("KeepAlive"))
    }

    fn close(&self) -> Option<Message> {
        Some(command("CloseStream"))
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(ListenReader)
    }
}

fn command(name: &str) -> Message {
    Message::text(json!({ "type": name }).to_string())
}

/// Reads what `/v1/listen` says.
pub(crate) struct ListenReader;

impl Reader for ListenReader {
    fn read(&mut self, message: &str, heard: &mut Vec<Heard>) {
        let Ok(message) = serde_json::from_str::<Value>(message) else {
            return;
        };
        match message["type"].as_str() {
            Some("Results") => heard.push(results(&message)),
            Some("SpeechStarted") => heard.push(Heard::SpeechStarted {
                at: seconds(message["timestamp"].as_f64()),
            }),
            Some("Error") => heard.push(Heard::Error(error(&message))),
            // Metadata, UtteranceEnd, and whatever they think of next.
            _ => {}
        }
    }
}

fn results(message: &Value) -> Heard {
    let from = seconds(message["start"].as_f64());
    let to = from.saturating_add(seconds(message["duration"].as_f64()));
    let best = &message["channel"]["alternatives"][0];
    let text = best["transcript"].as_str().unwrap_or_default().to_owned();
    if message["is_final"].as_bool() != Some(true) {
        return Heard::Interim { from, to, text };
    }
    let words = best["words"].as_array().into_iter().flatten();
    let word = |word: &Value| {
        let text = word["punctuated_word"].as_str().or(word["word"].as_str())?;
        let (from, to) = (word["start"].as_f64()?, word["end"].as_f64()?);
        Some((text.to_owned(), seconds(Some(from)), seconds(Some(to))))
    };
    Heard::Final(FinalWords {
        from,
        to,
        text,
        confidence: best["confidence"].as_f64().map(|c| c as f32),
        words: words.filter_map(word).collect(),
        answers_finalise: message["from_finalize"].as_bool() == Some(true),
    })
}

/// What an error says.
pub(in crate::providers) fn error(message: &Value) -> ProviderError {
    let said = ["description", "message", "code"]
        .iter()
        .find_map(|name| message[name].as_str())
        .unwrap_or("an error without words");
    let said: String = said.chars().take(200).collect();
    ProviderError::temporary(format!("Deepgram says: {said}"))
}

/// `/v2/listen`.
pub(in crate::providers) struct DeepgramFlux {
    config: DeepgramFluxConfig,
    name: String,
    key: Secret,
}

impl DeepgramFlux {
    pub fn new(config: DeepgramFluxConfig) -> Result<Self, ProviderError> {
        Ok(Self {
            name: format!("deepgram/{}", config.model),
            config,
            key: ACCOUNT.key()?,
        })
    }
}

impl Wire for DeepgramFlux {
    fn name(&self) -> &str {
        &self.name
    }

    fn address(&self, request: &ListenRequest) -> Result<Address, ProviderError> {
        let config = &self.config;
        let mut address = ACCOUNT.address(&config.base_url, "/v2/listen", &self.key)?;
        address.option("model", &config.model);
        address.option("encoding", "linear16");
        address.option("sample_rate", &request.sample_rate_hz.to_string());
        address.option("eot_threshold", &config.eot_threshold.to_string());
        if let Some(threshold) = config.eager_eot_threshold {
            address.option("eager_eot_threshold", &threshold.to_string());
        }
        address.option("eot_timeout_ms", &config.eot_timeout_ms.to_string());
        for word in &config.key_terms {
            address.option("keyterm", word);
        }
        Ok(address)
    }

    fn close(&self) -> Option<Message> {
        Some(command("CloseStream"))
    }

    fn longest_silence(&self) -> Option<Duration> {
        Some(FLUX_SILENCE)
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(FluxReader)
    }
}

/// Reads what `/v2/listen` says.
pub(crate) struct FluxReader;

impl Reader for FluxReader {
    fn read(&mut self, message: &str, heard: &mut Vec<Heard>) {
        let Ok(message) = serde_json::from_str::<Value>(message) else {
            return;
        };
        match message["type"].as_str() {
            Some("TurnInfo") => turn_info(&message, heard),
            Some("Error" | "FatalError") => heard.push(Heard::Error(error(&message))),
            _ => {}
        }
    }
}

fn turn_info(message: &Value, heard: &mut Vec<Heard>) {
    let from = seconds(message["audio_window_start"].as_f64());
    let to = seconds(message["audio_window_end"].as_f64()).max(from);
    let text = message["transcript"].as_str().unwrap_or_default();
    let text = text.trim().to_owned();
    let probability = message["end_of_turn_confidence"].as_f64().map(|p| p as f32);
    match message["event"].as_str() {
        Some("StartOfTurn") => {
            heard.push(Heard::SpeechStarted { at: from });
            heard.push(Heard::Interim { from, to, text });
        }
        Some("Update") => heard.push(Heard::Interim { from, to, text }),
        Some("EagerEndOfTurn") => heard.push(Heard::EagerEndOfTurn { text, probability }),
        Some("TurnResumed") => {
            heard.push(Heard::TurnResumed);
            heard.push(Heard::Interim { from, to, text });
        }
        Some("EndOfTurn") => {
            let words = message["words"].as_array().into_iter().flatten();
            let confidence = words
                .filter_map(|word| word["confidence"].as_f64())
                .map(|confidence| confidence as f32)
                .reduce(f32::min);
            heard.push(Heard::Final(FinalWords {
                from,
                to,
                text,
                confidence,
                ..FinalWords::default()
            }));
            heard.push(Heard::EndOfTurn { probability });
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &mut dyn Reader, message: &Value) -> Vec<Heard> {
        let mut heard = Vec::new();
        reader.read(&message.to_string(), &mut heard);
        heard
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn results_are_read_with_their_places() {
        let result = |is_final: bool, from_finalize: bool| {
            json!({
                "type": "Results", "channel_index": [0, 1], "start": 1.5, "duration": 2.0,
                "is_final": is_final, "speech_final": false, "from_finalize": from_finalize,
                "channel": { "alternatives": [{
                    "transcript": "Hello there.", "confidence": 0.98,
                    "words": [
                        { "word": "hello", "start": 1.6, "end": 2.0, "confidence": 0.99, "punctuated_word": "Hello" },
                        { "word": "there", "start": 2.1, "end": 2.5, "confidence": 0.97, "punctuated_word": "there." },
                    ],
                }]},
                "metadata": {},
            })
        };
        assert_eq!(
            read(&mut ListenReader, &result(false, false)),
            [Heard::Interim {
                from: ms(1_500),
                to: ms(3_500),
                text: "Hello there.".to_owned()
            }]
        );
        let words = FinalWords {
            from: ms(1_500),
            to: ms(3_500),
            text: "Hello there.".to_owned(),
            confidence: Some(0.98),
            words: vec![
                ("Hello".to_owned(), ms(1_600), ms(2_000)),
                ("there.".to_owned(), ms(2_100), ms(2_500)),
            ],
            answers_finalise: true,
        };
        assert_eq!(
            read(&mut ListenReader, &result(true, true)),
            [Heard::Final(words)]
        );
    }

    #[test]
    fn odd_messages_mean_nothing_and_errors_say_why() {
        for message in [
            json!({}),
            json!([1]),
            json!({ "type": "Metadata", "duration": 3.0 }),
            json!({ "type": "UtteranceEnd", "last_word_end": 2.0 }),
            json!({ "type": "TurnInfo", "event": "New" }),
        ] {
            assert_eq!(read(&mut ListenReader, &message), [], "{message}");
            assert_eq!(read(&mut FluxReader, &message), [], "{message}");
        }
        let odd = json!({ "type": "Results", "start": -1e300, "duration": "x", "is_final": true });
        assert_eq!(
            read(&mut ListenReader, &odd),
            [Heard::Final(FinalWords::default())]
        );
        let error = json!({ "type": "Error", "code": "INTERNAL", "description": "Out of order" });
        let [Heard::Error(error)] = &read(&mut FluxReader, &error)[..] else {
            panic!("it is an error")
        };
        assert!(error.to_string().contains("Out of order"));
    }

    #[test]
    fn turns_of_flux_are_read() {
        let info = |event: &str| {
            json!({
                "type": "TurnInfo", "request_id": "r", "sequence_id": 1, "event": event, "turn_index": 0,
                "audio_window_start": 0.0, "audio_window_end": 1.2, "transcript": "Hello there",
                "words": [{ "word": "Hello", "confidence": 0.9 }, { "word": "there", "confidence": 0.8 }],
                "end_of_turn_confidence": 0.5,
            })
        };
        let interim = Heard::Interim {
            from: ms(0),
            to: ms(1_200),
            text: "Hello there".to_owned(),
        };
        for (event, expected) in [
            ("Update", vec![interim.clone()]),
            (
                "StartOfTurn",
                vec![Heard::SpeechStarted { at: ms(0) }, interim.clone()],
            ),
            ("TurnResumed", vec![Heard::TurnResumed, interim]),
            (
                "EagerEndOfTurn",
                vec![Heard::EagerEndOfTurn {
                    text: "Hello there".to_owned(),
                    probability: Some(0.5),
                }],
            ),
            (
                "EndOfTurn",
                vec![
                    Heard::Final(FinalWords {
                        from: ms(0),
                        to: ms(1_200),
                        text: "Hello there".to_owned(),
                        confidence: Some(0.8),
                        ..FinalWords::default()
                    }),
                    Heard::EndOfTurn {
                        probability: Some(0.5),
                    },
                ],
            ),
        ] {
            assert_eq!(read(&mut FluxReader, &info(event)), expected, "{event}");
        }
    }

    #[test]
    fn the_address_has_the_language_as_deepgram_names_it() {
        let listen = DeepgramListen {
            config: DeepgramConfig {
                key_terms: vec!["Acme & Co".to_owned()],
                ..DeepgramConfig::default()
            },
            name: String::new(),
            key: Secret::new("secret"),
        };
        for (language, expected) in [
            ("en-IN", "language=en-IN&"),
            ("hi-IN", "language=hi&"),
            ("auto", "language=multi&"),
        ] {
            let request = ListenRequest {
                language: Language::read(language).unwrap(),
                sample_rate_hz: 16_000,
                ..ListenRequest::default()
            };
            let address = listen.address(&request).unwrap();
            let url = address.url();
            assert!(url.starts_with("wss://api.deepgram.com/v1/listen?model=nova-3&"));
            assert!(
                url.contains(expected) && url.contains("sample_rate=16000"),
                "{url}"
            );
            assert!(
                url.ends_with("keyterm=Acme+%26+Co") && !url.contains("secret"),
                "{url}"
            );
        }
    }
}
