//! ElevenLabs' streaming recognition, Scribe: `/v1/speech-to-text/realtime` (its Python client's
//! `realtime/scribe.py` and the classes of its messages).
//!
//! Words are committed when we ask for them. With times, each commit comes twice: plain, which
//! counts only when there are no words in it, and with the places of its words.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::ListenRequest;
use super::stream::{FinalWords, Heard, Reader, UNTOLD, Wire, pcm, seconds};
use crate::providers::ProviderError;
use crate::providers::socket::Address;
use crate::providers::tts::elevenlabs::{ACCOUNT, KEYS};
use crate::settings::Secret;

/// A commit of less sound than 300 ms is refused.
const SHORTEST_COMMIT: Duration = Duration::from_millis(350);

/// Rates that it takes, Hz.
const RATES: [u32; 6] = [8_000, 16_000, 22_050, 24_000, 44_100, 48_000];

/// `vendor = "elevenlabs"` in `[[providers.stt]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScribeConfig {
    /// Address of the service.
    pub base_url: String,
    /// The model.
    pub model: String,
    /// Names and words that are likely to be said.
    pub key_terms: Vec<String>,
}

impl Default for ScribeConfig {
    fn default() -> Self {
        Self {
            base_url: "wss://api.elevenlabs.io".to_owned(),
            model: "scribe_v2_realtime".to_owned(),
            key_terms: Vec::new(),
        }
    }
}

/// One model.
pub(in crate::providers) struct Scribe {
    config: ScribeConfig,
    name: String,
    key: Secret,
}

impl Scribe {
    pub fn new(config: ScribeConfig) -> Result<Self, ProviderError> {
        Ok(Self {
            name: format!("elevenlabs/{}", config.model),
            config,
            key: ACCOUNT.key()?,
        })
    }
}

impl Wire for Scribe {
    fn name(&self) -> &str {
        &self.name
    }

    fn sample_rate_hz(&self, request: &ListenRequest) -> u32 {
        match RATES.contains(&request.sample_rate_hz) {
            true => request.sample_rate_hz,
            false => 16_000,
        }
    }

    fn address(&self, request: &ListenRequest) -> Result<Address, ProviderError> {
        let config = &self.config;
        let path = "/v1/speech-to-text/realtime";
        let mut address = ACCOUNT.address(&config.base_url, path, &self.key)?;
        address.option("model_id", &config.model);
        let rate = self.sample_rate_hz(request);
        address.option("audio_format", &format!("pcm_{rate}"));
        address.option("commit_strategy", "manual");
        address.option("include_timestamps", "true");
        if let Some(language) = &request.language {
            address.option("language_code", language.language());
        }
        for word in &config.key_terms {
            address.option("keyterms", word);
        }
        Ok(address)
    }

    fn greets(&self) -> bool {
        true
    }

    fn sound(&self, samples: &[i16]) -> Message {
        chunk(&STANDARD.encode(pcm(samples)), false)
    }

    fn finalise(&self) -> Option<Message> {
        Some(chunk("", true))
    }

    fn shortest_finalise(&self) -> Duration {
        SHORTEST_COMMIT
    }

    fn keep_alive(&self) -> Option<Message> {
        Some(chunk("", false))
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(ScribeReader)
    }
}

fn chunk(sound: &str, is_commit: bool) -> Message {
    let message = json!({
        "message_type": "input_audio_chunk", "audio_base_64": sound, "commit": is_commit,
    });
    Message::text(message.to_string())
}

/// Reads what Scribe says.
pub(crate) struct ScribeReader;

impl Reader for ScribeReader {
    fn read(&mut self, message: &str, heard: &mut Vec<Heard>) {
        let Ok(message) = serde_json::from_str::<Value>(message) else {
            return;
        };
        let text = message["text"].as_str().unwrap_or_default().trim();
        let kind = message["message_type"].as_str().unwrap_or_default();
        match kind {
            "partial_transcript" => heard.push(Heard::Interim {
                from: Duration::ZERO,
                to: UNTOLD,
                text: text.to_owned(),
            }),
            "committed_transcript" if text.is_empty() => heard.push(Heard::Final(FinalWords {
                to: UNTOLD,
                answers_finalise: true,
                ..FinalWords::default()
            })),
            "committed_transcript_with_timestamps" if !text.is_empty() => {
                heard.push(Heard::Final(committed(&message, text)));
            }
            // The next commit comes when there is more sound.
            "session_started" | "commit_throttled" | "warning" => {}
            _ => {
                if let Some(said) = message["error"].as_str() {
                    heard.push(Heard::Error(error(kind, said)));
                }
            }
        }
    }
}

fn committed(message: &Value, text: &str) -> FinalWords {
    let all = message["words"].as_array().map_or(&[][..], Vec::as_slice);
    let is_word = |word: &&Value| word["type"].as_str() == Some("word");
    let place = |word: &Value| {
        let text = word["text"].as_str()?.to_owned();
        let (from, to) = (word["start"].as_f64()?, word["end"].as_f64()?);
        Some((text, seconds(Some(from)), seconds(Some(to))))
    };
    let words: Vec<_> = all.iter().filter(is_word).filter_map(place).collect();
    // The probability of the least likely word.
    let confidence = all
        .iter()
        .filter(is_word)
        .filter_map(|word| word["logprob"].as_f64())
        .map(|log| log.exp().clamp(0.0, 1.0) as f32)
        .reduce(f32::min);
    FinalWords {
        from: words.first().map_or(Duration::ZERO, |(_, from, _)| *from),
        to: words.last().map_or(UNTOLD, |(_, _, to)| *to),
        text: text.to_owned(),
        confidence,
        words,
        answers_finalise: true,
    }
}

fn error(kind: &str, said: &str) -> ProviderError {
    let said: String = said.chars().take(200).collect();
    match kind {
        // Their explanation may have the key in it.
        "auth_error" => ProviderError::config(format!("ElevenLabs refuses {}", KEYS[0])),
        "quota_exceeded" | "unaccepted_terms" => ProviderError::config(format!(
            "ElevenLabs does not serve the account of {}: {said}",
            KEYS[0]
        )),
        "input_error" | "invalid_request" => {
            ProviderError::bad_input(format!("ElevenLabs refused what we sent: {said}"))
        }
        _ => ProviderError::temporary(format!("ElevenLabs says: {said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_counts_once_with_its_places() {
        let word = |text: &str, start: f64, end: f64, kind: &str| json!({ "text": text, "start": start, "end": end, "type": kind, "logprob": 0.0 });
        let ms = Duration::from_millis;
        let words = json!([
            word("Yes,", 0.5, 0.75, "word"),
            word(" ", 0.75, 1.0, "spacing"),
            word("please.", 1.0, 1.5, "word")
        ]);
        let timed = |text: &str, words: &Value| json!({ "message_type": "committed_transcript_with_timestamps", "text": text, "language_code": "en", "words": words });
        let nothing = FinalWords {
            to: UNTOLD,
            answers_finalise: true,
            ..FinalWords::default()
        };
        for (message, expected) in [
            (
                json!({ "message_type": "session_started", "session_id": "x" }),
                vec![],
            ),
            (
                json!({ "message_type": "partial_transcript", "text": "Yes," }),
                vec![Heard::Interim {
                    from: ms(0),
                    to: UNTOLD,
                    text: "Yes,".to_owned(),
                }],
            ),
            (
                json!({ "message_type": "committed_transcript", "text": "Yes, please." }),
                vec![],
            ),
            (
                timed("Yes, please.", &words),
                vec![Heard::Final(FinalWords {
                    from: ms(500),
                    to: ms(1_500),
                    text: "Yes, please.".to_owned(),
                    confidence: Some(1.0),
                    words: vec![
                        ("Yes,".to_owned(), ms(500), ms(750)),
                        ("please.".to_owned(), ms(1_000), ms(1_500)),
                    ],
                    answers_finalise: true,
                })],
            ),
            (
                json!({ "message_type": "committed_transcript", "text": "" }),
                vec![Heard::Final(nothing)],
            ),
            (timed("", &json!([])), vec![]),
            (
                json!({ "message_type": "commit_throttled", "error": "x" }),
                vec![],
            ),
            (json!(["x"]), vec![]),
        ] {
            let mut heard = Vec::new();
            ScribeReader.read(&message.to_string(), &mut heard);
            assert_eq!(heard, expected, "{message}");
        }
    }

    #[test]
    fn an_error_says_whether_asking_again_helps_and_never_the_key() {
        for (kind, is_temporary) in [
            ("auth_error", false),
            ("quota_exceeded", false),
            ("input_error", false),
            ("rate_limited", true),
            ("session_time_limit_exceeded", true),
            ("something_new", true),
        ] {
            let message = json!({ "message_type": kind, "error": "key sk-1" });
            let mut heard = Vec::new();
            ScribeReader.read(&message.to_string(), &mut heard);
            let [Heard::Error(error)] = &heard[..] else {
                panic!("{kind} is an error")
            };
            assert_eq!(error.is_temporary(), is_temporary, "{kind}");
            let is_quoted = error.to_string().contains("sk-1");
            assert!(kind != "auth_error" || !is_quoted, "{error}");
        }
    }
}
