//! Sarvam's streaming recognition of the languages of India, with English words among them:
//! `/speech-to-text-realtime/ws` (the classes `Realtime…` of its Python client). It decides by
//! silence where an utterance ends.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::ListenRequest;
use super::stream::{FinalWords, Heard, Reader, UNTOLD, Wire, seconds};
use crate::providers::socket::{Account, Address};
use crate::providers::{Language, ProviderError};
use crate::settings::Secret;

/// The key's variable.
const KEY: &str = "SARVAM_API_KEY";

/// `vendor = "sarvam"` in `[[providers.stt]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SarvamConfig {
    /// Address of the service.
    pub base_url: String,
    /// The model.
    pub model: String,
    /// How final words are written: `codemix` (each word in its language's script), `transcribe`
    /// (all in the speaker's), `verbatim`, `translit` (all in Latin script) or `translate` (in
    /// English).
    pub mode: Mode,
    /// Silence that ends an utterance, in milliseconds.
    pub silence_ms: u64,
    /// Names and words that are likely to be said; only `saaras:v4` takes them.
    pub key_terms: Vec<String>,
}

/// How final words are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each word in the script of its language.
    Codemix,
    /// All in the script of the speaker's language.
    Transcribe,
    /// As `Transcribe`, with hesitations.
    Verbatim,
    /// All in Latin script.
    Translit,
    /// In English.
    Translate,
}

impl Mode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Codemix => "codemix",
            Self::Transcribe => "transcribe",
            Self::Verbatim => "verbatim",
            Self::Translit => "translit",
            Self::Translate => "translate",
        }
    }
}

impl Default for SarvamConfig {
    fn default() -> Self {
        Self {
            base_url: "wss://api.sarvam.ai".to_owned(),
            model: "saaras:v3-realtime".to_owned(),
            mode: Mode::Codemix,
            // Sarvam's own 500 is longer than a pause after which we want the words.
            silence_ms: 300,
            key_terms: Vec::new(),
        }
    }
}

/// How requests show the key.
pub(in crate::providers) const ACCOUNT: Account = Account {
    vendor: "Sarvam",
    variables: &[KEY],
    header: "api-subscription-key",
    before: "",
};

/// A language as Sarvam names it.
///
/// # Errors
/// When it is none of India's.
pub(in crate::providers) fn language_code(language: &Language) -> Result<String, ProviderError> {
    language.in_india().ok_or_else(|| {
        ProviderError::config(format!(
            "Sarvam knows the languages of India and English, not {language} (the persona's language)"
        ))
    })
}

/// What went wrong, by the status that stands for it. The key and the settings are what a person
/// can change.
pub(in crate::providers) fn error(status: Option<u64>, said: &str) -> ProviderError {
    let said: String = said.chars().take(200).collect();
    match status {
        Some(401 | 403) => ProviderError::config(format!("Sarvam refuses {KEY}")),
        Some(402) => ProviderError::config(format!("Sarvam wants to be paid first: {said}")),
        Some(400 | 404 | 422) => {
            ProviderError::config(format!("Sarvam refuses the settings: {said}"))
        }
        _ => ProviderError::temporary(format!("Sarvam says: {said}")),
    }
}

/// One model.
pub(in crate::providers) struct Sarvam {
    config: SarvamConfig,
    name: String,
    key: Secret,
}

impl Sarvam {
    pub fn new(config: SarvamConfig) -> Result<Self, ProviderError> {
        Ok(Self {
            name: format!("sarvam/{}", config.model),
            config,
            key: ACCOUNT.key()?,
        })
    }
}

impl Wire for Sarvam {
    fn name(&self) -> &str {
        &self.name
    }

    fn sample_rate_hz(&self, request: &ListenRequest) -> u32 {
        match request.sample_rate_hz {
            8_000 => 8_000,
            _ => 16_000,
        }
    }

    fn address(&self, request: &ListenRequest) -> Result<Address, ProviderError> {
        let config = &self.config;
        let path = "/speech-to-text-realtime/ws";
        let mut address = ACCOUNT.address(&config.base_url, path, &self.key)?;
        let language = match &request.language {
            Some(language) => language_code(language)?,
            None => "auto".to_owned(),
        };
        address.option("language_code", &language);
        address.option("model", &config.model);
        address.option("mode", config.mode.as_str());
        address.option("stream_type", "fast");
        address.option("endpointing", "vad");
        address.option("encoding", "linear16");
        let rate = self.sample_rate_hz(request);
        address.option("sample_rate", &rate.to_string());
        address.option("return_timestamps", "true");
        address.option("silence_duration_ms", &config.silence_ms.to_string());
        if !config.key_terms.is_empty() {
            address.option("keyterms", &json!(config.key_terms).to_string());
        }
        Ok(address)
    }

    fn greets(&self) -> bool {
        true
    }

    fn keep_alive(&self) -> Option<Message> {
        Some(event("ping"))
    }

    fn close(&self) -> Option<Message> {
        Some(event("end"))
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(SarvamReader::default())
    }
}

fn event(name: &str) -> Message {
    Message::text(json!({ "event": name }).to_string())
}

/// Reads what the realtime endpoint says.
#[derive(Default)]
pub(crate) struct SarvamReader {
    /// The number of the utterance that comes next. Earlier ones were final: a second time is none.
    next: u64,
}

impl Reader for SarvamReader {
    fn read(&mut self, message: &str, heard: &mut Vec<Heard>) {
        let Ok(message) = serde_json::from_str::<Value>(message) else {
            return;
        };
        let text = message["text"].as_str().unwrap_or_default().trim();
        let is_new = message["utterance_idx"]
            .as_u64()
            .is_none_or(|number| number >= self.next);
        match message["event"].as_str() {
            Some("transcript.partial") if is_new => heard.push(Heard::Interim {
                from: Duration::ZERO,
                to: UNTOLD,
                text: text.to_owned(),
            }),
            Some("transcript.final") if is_new => {
                if let Some(number) = message["utterance_idx"].as_u64() {
                    self.next = number.saturating_add(1);
                }
                let end = message["end_s"].as_f64();
                heard.push(Heard::Final(FinalWords {
                    from: seconds(message["start_s"].as_f64()),
                    to: end.map_or(UNTOLD, |end| seconds(Some(end))),
                    text: text.to_owned(),
                    ..FinalWords::default()
                }));
            }
            Some("error") if message["is_fatal"].as_bool() == Some(false) => {
                let code = message["code"].as_str().unwrap_or_default();
                tracing::warn!(code, "Sarvam's recognition does not take a message");
            }
            Some("error") => {
                let said = message["message"].as_str().unwrap_or("an error");
                heard.push(Heard::Error(error(message["status_code"].as_u64(), said)));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_utterance_is_final_once() {
        let partial = |number: u64| json!({ "event": "transcript.partial", "utterance_idx": number, "text": "Haan," });
        let last = |number: u64, text: &str| json!({ "event": "transcript.final", "final": true, "utterance_idx": number, "text": text, "start_s": 0.5, "end_s": 1.5 });
        let interim = Heard::Interim {
            from: Duration::ZERO,
            to: UNTOLD,
            text: "Haan,".to_owned(),
        };
        let words = |text: &str, to: Duration| {
            Heard::Final(FinalWords {
                from: Duration::from_millis(500),
                to,
                text: text.to_owned(),
                ..FinalWords::default()
            })
        };
        let to = Duration::from_millis(1_500);
        let mut without_end = last(2, "Kal.");
        without_end["end_s"] = Value::Null;
        let mut reader = SarvamReader::default();
        for (message, expected) in [
            (
                json!({ "event": "session.begin", "request_id": "x" }),
                vec![],
            ),
            (
                json!({ "event": "vad.speech_start", "utterance_idx": 0 }),
                vec![],
            ),
            (partial(0), vec![interim]),
            (
                last(0, "Haan, theek hai."),
                vec![words("Haan, theek hai.", to)],
            ),
            (last(0, "Haan, theek hai."), vec![]),
            (partial(0), vec![]),
            (last(1, ""), vec![words("", to)]),
            (without_end, vec![words("Kal.", UNTOLD)]),
            (
                json!({ "event": "error", "code": "invalid_config", "is_fatal": false, "message": "x" }),
                vec![],
            ),
            (json!({ "event": 7 }), vec![]),
            (json!([]), vec![]),
        ] {
            let mut heard = Vec::new();
            reader.read(&message.to_string(), &mut heard);
            assert_eq!(heard, expected, "{message}");
        }
    }

    #[test]
    fn an_error_says_what_to_do() {
        for (status, is_temporary) in [
            (401, false),
            (400, false),
            (408, true),
            (429, true),
            (500, true),
        ] {
            let message = json!({ "event": "error", "code": "x", "is_fatal": true, "message": "key sk-1", "status_code": status });
            let mut heard = Vec::new();
            SarvamReader::default().read(&message.to_string(), &mut heard);
            let [Heard::Error(error)] = &heard[..] else {
                panic!("{status} is an error")
            };
            assert_eq!(error.is_temporary(), is_temporary, "{status}");
            assert!(
                status != 401 || !error.to_string().contains("sk-1"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_address_has_the_language_as_sarvam_names_it() {
        let sarvam = Sarvam {
            config: SarvamConfig {
                key_terms: vec!["Acme".to_owned()],
                ..SarvamConfig::default()
            },
            name: String::new(),
            key: Secret::new("secret"),
        };
        let address = |language: &str| {
            sarvam.address(&ListenRequest {
                language: Language::read(language).unwrap(),
                sample_rate_hz: 48_000,
                ..ListenRequest::default()
            })
        };
        for (language, expected) in [
            ("hi", "language_code=hi-IN&"),
            ("en-US", "language_code=en-IN&"),
            ("Odia", "language_code=or-IN&"),
            ("auto", "language_code=auto&"),
        ] {
            let address = address(language).unwrap();
            let url = address.url();
            assert!(
                url.contains(expected) && url.contains("sample_rate=16000"),
                "{url}"
            );
            assert!(
                url.ends_with("keyterms=%5B%22Acme%22%5D") && !url.contains("secret"),
                "{url}"
            );
        }
        let refused = address("de").err().expect("German is none of India's");
        assert!(refused.to_string().contains("de"), "{refused}");
    }
}
