//! OpenAI's streaming transcription: `/v1/realtime?intent=transcription`
//! (developers.openai.com/api/docs/guides/realtime-transcription).
//!
//! Most models get the speech that OpenAI's own voice activity detection cuts out; an item is one
//! stretch of it. Models that transcribe while one speaks take no such detection: their words are
//! final when we ask for them.

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::ListenRequest;
use super::stream::{FinalWords, Heard, Reader, UNTOLD, Wire, pcm};
use crate::providers::ProviderError;
use crate::providers::openai::KEY;
use crate::providers::socket::{Address, vendor_key};
use crate::settings::Secret;

/// The only rate that it takes, Hz.
const SAMPLE_RATE_HZ: u32 = 24_000;

/// A commit of less sound than 100 ms is refused.
const SHORTEST_COMMIT: Duration = Duration::from_millis(150);

/// Items whose words have not come. A later one gives the first up.
const MOST_ITEMS: usize = 32;

/// `vendor = "openai_realtime"` in `[[providers.stt]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpenAiRealtimeConfig {
    /// Base address; ends in `/v1`.
    pub base_url: String,
    /// The environment variable that holds the key.
    pub api_key_variable: String,
    /// The model.
    pub model: String,
    /// What may be said, in words of one's own; not for models that transcribe while one speaks.
    pub prompt: Option<String>,
    /// Silence that ends a stretch of speech, in milliseconds.
    pub silence_ms: u64,
}

impl Default for OpenAiRealtimeConfig {
    fn default() -> Self {
        Self {
            base_url: "wss://api.openai.com/v1".to_owned(),
            api_key_variable: KEY.to_owned(),
            model: "gpt-4o-mini-transcribe".to_owned(),
            prompt: None,
            // OpenAI's own 500 is longer than a pause after which we want the words.
            silence_ms: 200,
        }
    }
}

/// One model.
pub(in crate::providers) struct OpenAiRealtime {
    config: OpenAiRealtimeConfig,
    name: String,
    key: Secret,
}

impl OpenAiRealtime {
    pub fn new(config: OpenAiRealtimeConfig) -> Result<Self, ProviderError> {
        Ok(Self {
            name: format!("openai-realtime/{}", config.model),
            key: vendor_key("OpenAI", &[&config.api_key_variable])?,
            config,
        })
    }

    /// Whether the model transcribes while one speaks.
    fn is_live(&self) -> bool {
        let model = &self.config.model;
        model.contains("realtime-whisper") || model.contains("live-transcribe")
    }
}

impl Wire for OpenAiRealtime {
    fn name(&self) -> &str {
        &self.name
    }

    fn sample_rate_hz(&self, _: &ListenRequest) -> u32 {
        SAMPLE_RATE_HZ
    }

    fn address(&self, _: &ListenRequest) -> Result<Address, ProviderError> {
        let mut address = Address::new(&self.config.base_url, "base_url", "/realtime", KEY)?;
        address.option("intent", "transcription");
        address.key("authorization", "Bearer ", &self.key);
        Ok(address)
    }

    fn opening(&self, request: &ListenRequest) -> Option<Message> {
        let config = &self.config;
        let mut transcription = json!({ "model": config.model });
        if let Some(language) = request.language.as_ref().and_then(|l| l.iso_639_1()) {
            transcription["language"] = language.into();
        }
        if let Some(prompt) = config.prompt.as_ref().filter(|_| !self.is_live()) {
            transcription["prompt"] = prompt.as_str().into();
        }
        let turns = match self.is_live() {
            true => Value::Null,
            false => json!({ "type": "server_vad", "silence_duration_ms": config.silence_ms }),
        };
        let session = json!({
            "type": "transcription",
            "audio": { "input": {
                "format": { "type": "audio/pcm", "rate": SAMPLE_RATE_HZ },
                "transcription": transcription,
                "turn_detection": turns,
            }},
        });
        let message = json!({ "type": "session.update", "session": session });
        Some(Message::text(message.to_string()))
    }

    fn greets(&self) -> bool {
        true
    }

    fn sound(&self, samples: &[i16]) -> Message {
        let sound = STANDARD.encode(pcm(samples));
        let message = json!({ "type": "input_audio_buffer.append", "audio": sound });
        Message::text(message.to_string())
    }

    fn finalise(&self) -> Option<Message> {
        let message = json!({ "type": "input_audio_buffer.commit" });
        self.is_live().then(|| Message::text(message.to_string()))
    }

    fn shortest_finalise(&self) -> Duration {
        SHORTEST_COMMIT
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(TranscriptionReader::new(self.is_live()))
    }
}

/// A stretch of speech.
#[derive(Debug)]
struct Item {
    id: String,
    from: Duration,
    to: Duration,
    /// The words so far.
    text: String,
    is_complete: bool,
}

/// Reads what a transcription session says.
pub(crate) struct TranscriptionReader {
    /// Whether each item answers a question of ours.
    answers: bool,
    /// Items whose words are not final, in the order of the sound: OpenAI may complete a later one
    /// first.
    items: VecDeque<Item>,
    /// The last items whose words were final.
    told: VecDeque<String>,
}

impl TranscriptionReader {
    pub fn new(answers: bool) -> Self {
        Self {
            answers,
            items: VecDeque::new(),
            told: VecDeque::new(),
        }
    }

    /// The item with this id, which may be new; none for one whose words are final.
    fn item(&mut self, id: &str) -> Option<&mut Item> {
        if id.is_empty() || self.told.iter().any(|told| told == id) {
            return None;
        }
        let at = match self.items.iter().position(|item| item.id == id) {
            Some(at) => at,
            None => {
                if self.items.len() == MOST_ITEMS {
                    self.items.pop_front();
                }
                self.items.push_back(Item {
                    id: id.to_owned(),
                    from: Duration::ZERO,
                    to: UNTOLD,
                    text: String::new(),
                    is_complete: false,
                });
                self.items.len() - 1
            }
        };
        self.items.get_mut(at)
    }

    /// The words of the first items that are complete, and of the next so far.
    fn tell(&mut self, heard: &mut Vec<Heard>) {
        while self.items.front().is_some_and(|item| item.is_complete)
            && let Some(item) = self.items.pop_front()
        {
            if self.told.len() == MOST_ITEMS {
                self.told.pop_front();
            }
            self.told.push_back(item.id);
            heard.push(Heard::Final(FinalWords {
                from: item.from,
                to: item.to,
                text: item.text.trim().to_owned(),
                answers_finalise: self.answers,
                ..FinalWords::default()
            }));
        }
        let texts: Vec<&str> = self.items.iter().map(|item| item.text.trim()).collect();
        let text = texts.join(" ").trim().to_owned();
        if let (Some(first), Some(last)) = (self.items.front(), self.items.back())
            && !text.is_empty()
        {
            let (from, to) = (first.from, last.to);
            heard.push(Heard::Interim { from, to, text });
        }
    }
}

impl Reader for TranscriptionReader {
    fn read(&mut self, message: &str, heard: &mut Vec<Heard>) {
        let Ok(message) = serde_json::from_str::<Value>(message) else {
            return;
        };
        let ms = |name: &str| Duration::from_millis(message[name].as_u64().unwrap_or(0));
        let id = message["item_id"].as_str().unwrap_or_default();
        match message["type"].as_str().unwrap_or_default() {
            "input_audio_buffer.speech_started" => {
                let at = ms("audio_start_ms");
                if let Some(item) = self.item(id) {
                    item.from = at;
                    heard.push(Heard::SpeechStarted { at });
                }
            }
            "input_audio_buffer.speech_stopped" => {
                let to = ms("audio_end_ms");
                if let Some(item) = self.item(id) {
                    item.to = to;
                }
            }
            "input_audio_buffer.committed" => {
                self.item(id);
            }
            "conversation.item.input_audio_transcription.delta" => {
                let delta = message["delta"].as_str().unwrap_or_default();
                if let Some(item) = self.item(id).filter(|item| !item.is_complete) {
                    item.text.push_str(delta);
                    self.tell(heard);
                }
            }
            "conversation.item.input_audio_transcription.completed" => {
                let text = message["transcript"].as_str().unwrap_or_default();
                if let Some(item) = self.item(id).filter(|item| !item.is_complete) {
                    item.text = text.to_owned();
                    item.is_complete = true;
                    self.tell(heard);
                }
            }
            // Another connection gets the sound again.
            "conversation.item.input_audio_transcription.failed" => {
                let said = message["error"]["message"].as_str().unwrap_or("no reason");
                heard.push(Heard::Error(ProviderError::temporary(format!(
                    "OpenAI has no words for a speech: {}",
                    short(said)
                ))));
            }
            "error" => {
                let error = &message["error"];
                match error["code"].as_str() {
                    // There was nothing that could have had words.
                    Some("input_audio_buffer_commit_empty") => {
                        heard.push(Heard::Final(FinalWords {
                            to: UNTOLD,
                            answers_finalise: true,
                            ..FinalWords::default()
                        }));
                    }
                    code => heard.push(Heard::Error(refusal(code, error))),
                }
            }
            _ => {}
        }
    }
}

fn short(said: &str) -> String {
    said.chars().take(200).collect()
}

/// What went wrong. The key, the account and the settings are what a person can change.
fn refusal(code: Option<&str>, error: &Value) -> ProviderError {
    let said = short(
        error["message"]
            .as_str()
            .unwrap_or("an error without words"),
    );
    let is_request = error["type"].as_str() == Some("invalid_request_error");
    match code {
        // Their explanation may have the key in it.
        Some("invalid_api_key") => ProviderError::config("OpenAI refuses the key"),
        Some("insufficient_quota") => {
            ProviderError::config(format!("OpenAI wants to be paid first: {said}"))
        }
        Some("session_expired" | "rate_limit_exceeded") => {
            ProviderError::temporary(format!("OpenAI says: {said}"))
        }
        _ if is_request => ProviderError::config(format!(
            "OpenAI refuses the settings (openai_realtime: model, prompt): {said}"
        )),
        _ => ProviderError::temporary(format!("OpenAI says: {said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::Language;

    fn read(reader: &mut TranscriptionReader, message: &Value) -> Vec<Heard> {
        let mut heard = Vec::new();
        reader.read(&message.to_string(), &mut heard);
        heard
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn words(id: &str, kind: &str, text: &str) -> Value {
        let field = match kind {
            "delta" => "delta",
            _ => "transcript",
        };
        json!({ "type": format!("conversation.item.input_audio_transcription.{kind}"), "item_id": id, "content_index": 0, field: text })
    }

    fn place(id: &str, kind: &str, name: &str, at: u64) -> Value {
        json!({ "type": format!("input_audio_buffer.speech_{kind}"), "item_id": id, name: at })
    }

    fn last(from: Duration, to: Duration, text: &str, answers_finalise: bool) -> Heard {
        Heard::Final(FinalWords {
            from,
            to,
            text: text.to_owned(),
            answers_finalise,
            ..FinalWords::default()
        })
    }

    #[test]
    fn items_are_told_in_the_order_in_which_they_were_spoken() {
        let mut reader = TranscriptionReader::new(false);
        let interim = |from: u64, to: u64, text: &str| Heard::Interim {
            from: ms(from),
            to: ms(to),
            text: text.to_owned(),
        };
        for (message, expected) in [
            (json!({ "type": "session.created", "session": {} }), vec![]),
            (
                place("a", "started", "audio_start_ms", 500),
                vec![Heard::SpeechStarted { at: ms(500) }],
            ),
            (place("a", "stopped", "audio_end_ms", 1_000), vec![]),
            (
                json!({ "type": "input_audio_buffer.committed", "item_id": "a", "previous_item_id": null }),
                vec![],
            ),
            (
                place("b", "started", "audio_start_ms", 1_500),
                vec![Heard::SpeechStarted { at: ms(1_500) }],
            ),
            (place("b", "stopped", "audio_end_ms", 2_000), vec![]),
            (
                words("b", "completed", "please."),
                vec![interim(500, 2_000, "please.")],
            ),
            (
                words("a", "delta", "Yes,"),
                vec![interim(500, 2_000, "Yes, please.")],
            ),
            (
                words("a", "completed", "Yes,"),
                vec![
                    last(ms(500), ms(1_000), "Yes,", false),
                    last(ms(1_500), ms(2_000), "please.", false),
                ],
            ),
            // What comes again is nothing new.
            (words("a", "completed", "Yes,"), vec![]),
            (words("b", "completed", "please."), vec![]),
            (
                json!({ "type": "conversation.item.added", "item": {} }),
                vec![],
            ),
            (json!(["x"]), vec![]),
        ] {
            assert_eq!(read(&mut reader, &message), expected, "{message}");
        }
    }

    #[test]
    fn items_that_we_commit_answer_us() {
        let mut reader = TranscriptionReader::new(true);
        let interim = Heard::Interim {
            from: ms(0),
            to: UNTOLD,
            text: "Yes".to_owned(),
        };
        assert_eq!(read(&mut reader, &words("a", "delta", "Yes ")), [interim]);
        let answer = |text: &str| last(ms(0), UNTOLD, text, true);
        assert_eq!(
            read(&mut reader, &words("a", "completed", "Yes.")),
            [answer("Yes.")]
        );
        let code = "input_audio_buffer_commit_empty";
        let error = json!({ "type": "error", "error": { "type": "invalid_request_error", "code": code, "message": "x" } });
        assert_eq!(read(&mut reader, &error), [answer("")]);
    }

    #[test]
    fn an_error_says_what_to_do_and_never_the_key() {
        for (kind, code, is_temporary) in [
            ("invalid_request_error", json!("invalid_api_key"), false),
            ("invalid_request_error", json!("unknown_parameter"), false),
            ("invalid_request_error", json!("session_expired"), true),
            ("server_error", Value::Null, true),
        ] {
            let error = json!({ "type": kind, "code": code, "message": "key sk-1" });
            let message = json!({ "type": "error", "error": error });
            let [Heard::Error(error)] = &read(&mut TranscriptionReader::new(false), &message)[..]
            else {
                panic!("{code} is an error")
            };
            assert_eq!(error.is_temporary(), is_temporary, "{code}");
            assert!(code != "invalid_api_key" || !error.to_string().contains("sk-1"));
        }
        let failed = json!({ "type": "conversation.item.input_audio_transcription.failed", "item_id": "a", "error": {} });
        let [Heard::Error(error)] = &read(&mut TranscriptionReader::new(false), &failed)[..] else {
            panic!("it is an error")
        };
        assert!(error.is_temporary());
    }

    #[test]
    fn models_that_transcribe_while_one_speaks_take_no_turn_detection() {
        let vendor = |model: &str| OpenAiRealtime {
            config: OpenAiRealtimeConfig {
                model: model.to_owned(),
                ..OpenAiRealtimeConfig::default()
            },
            name: String::new(),
            key: Secret::new("secret"),
        };
        let request = ListenRequest {
            language: Language::read("hi-IN").unwrap(),
            ..ListenRequest::default()
        };
        for (model, is_live) in [("gpt-4o-transcribe", false), ("gpt-realtime-whisper", true)] {
            let vendor = vendor(model);
            let opening = vendor.opening(&request).unwrap().into_text().unwrap();
            let opening: Value = serde_json::from_str(&opening).unwrap();
            let input = &opening["session"]["audio"]["input"];
            assert_eq!(
                input["transcription"],
                json!({ "model": model, "language": "hi" })
            );
            assert_eq!(input["turn_detection"].is_null(), is_live, "{model}");
            assert_eq!(vendor.finalise().is_some(), is_live, "{model}");
            let address = vendor.address(&request).unwrap();
            assert_eq!(
                address.url(),
                "wss://api.openai.com/v1/realtime?intent=transcription"
            );
        }
    }
}
