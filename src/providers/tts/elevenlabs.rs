//! ElevenLabs' voices, over `/v1/text-to-speech/{voice}/multi-stream-input` (`asyncapi.yml` of
//! elevenlabs/elevenlabs-docs).

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::cartesia::samples;
use super::stream::{Spoken, VoiceReader, VoiceWire};
use super::{SpeechRequest, WordTime};
use crate::providers::ProviderError;
use crate::providers::socket::{Account, Address, Frame};
use crate::settings::Secret;

/// The key's variable, and the other name that ElevenLabs' own tools know.
pub(in crate::providers) const KEYS: [&str; 2] = ["ELEVENLABS_API_KEY", "ELEVEN_API_KEY"];

/// What is asked for.
const SAMPLE_RATE_HZ: u32 = 24_000;

/// `vendor = "elevenlabs"` in `[[providers.tts]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ElevenLabsConfig {
    /// Address of the service.
    pub base_url: String,
    /// The model.
    pub model: String,
    /// Id of the voice, when the persona has none.
    pub voice: String,
    /// How steady the voice is, 0 to 1; the voice's own when not set.
    pub stability: Option<f64>,
    /// How close it keeps to the original, 0 to 1; the voice's own when not set.
    pub similarity_boost: Option<f64>,
    /// How fast it speaks, 0.7 to 1.2; the voice's own when not set.
    pub speed: Option<f64>,
}

impl Default for ElevenLabsConfig {
    fn default() -> Self {
        Self {
            base_url: "wss://api.elevenlabs.io".to_owned(),
            model: "eleven_flash_v2_5".to_owned(),
            // "Rachel", the voice of ElevenLabs' own examples.
            voice: "21m00Tcm4TlvDq8ikWAM".to_owned(),
            stability: None,
            similarity_boost: None,
            speed: None,
        }
    }
}

/// How requests show the key.
pub(in crate::providers) const ACCOUNT: Account = Account {
    vendor: "ElevenLabs",
    variables: &KEYS,
    header: "xi-api-key",
    before: "",
};

/// One model.
pub(in crate::providers) struct ElevenLabs {
    config: ElevenLabsConfig,
    name: String,
    key: Secret,
}

impl ElevenLabs {
    pub fn new(config: ElevenLabsConfig) -> Result<Self, ProviderError> {
        Ok(Self {
            name: format!("elevenlabs/{}", config.model),
            config,
            key: ACCOUNT.key()?,
        })
    }
}

impl VoiceWire for ElevenLabs {
    fn name(&self) -> &str {
        &self.name
    }

    fn sample_rate_hz(&self) -> u32 {
        SAMPLE_RATE_HZ
    }

    fn address(&self, request: &SpeechRequest) -> Result<Address, ProviderError> {
        let voice = request.voice.as_deref().unwrap_or(&self.config.voice);
        let is_id = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if voice.is_empty() || !voice.chars().all(is_id) {
            return Err(ProviderError::config(format!(
                "the voice {voice:?} is no voice id of ElevenLabs (the persona's voice, or voice in providers.tts)"
            )));
        }
        let path = format!("/v1/text-to-speech/{voice}/multi-stream-input");
        let mut address = ACCOUNT.address(&self.config.base_url, &path, &self.key)?;
        address.option("model_id", &self.config.model);
        address.option("output_format", "pcm_24000");
        // Each text is a whole sentence: there is nothing to wait for.
        address.option("auto_mode", "true");
        address.option("sync_alignment", "true");
        address.option("inactivity_timeout", "180");
        // Only the models of version 2.5 and later take it; others find out by themselves.
        if self.config.model.contains("v2_5")
            && let Some(language) = request.language.as_ref().and_then(|l| l.iso_639_1())
        {
            address.option("language_code", language);
        }
        Ok(address)
    }

    fn speak(&self, context: &str, request: &SpeechRequest) -> Vec<Message> {
        let mut first = json!({ "text": " ", "context_id": context });
        for (name, value) in [
            ("stability", self.config.stability),
            ("similarity_boost", self.config.similarity_boost),
            ("speed", self.config.speed),
        ] {
            if let Some(value) = value {
                first["voice_settings"][name] = value.into();
            }
        }
        // A text has to end with a space, they say.
        let text = format!("{} ", request.text);
        let messages = [
            first,
            json!({ "text": text, "context_id": context, "flush": true }),
            json!({ "context_id": context, "close_context": true }),
        ];
        messages.map(|m| Message::text(m.to_string())).to_vec()
    }

    fn cancel(&self, context: &str) -> Option<Message> {
        let message = json!({ "context_id": context, "close_context": true });
        Some(Message::text(message.to_string()))
    }

    fn reader(&self, context: &str) -> Box<dyn VoiceReader> {
        Box::new(ElevenLabsReader::new(context))
    }
}

/// Reads what a context says.
pub(crate) struct ElevenLabsReader {
    context: String,
    /// The first byte of a sample whose second has not come.
    half: Option<u8>,
    /// Samples so far.
    position: u64,
    /// The word whose end has not come, and when it began and has been said so far.
    word: Option<(String, Duration, Duration)>,
}

impl ElevenLabsReader {
    pub fn new(context: &str) -> Self {
        Self {
            context: context.to_owned(),
            half: None,
            position: 0,
            word: None,
        }
    }

    /// Puts characters together; their times count from the beginning of their piece of sound.
    fn words(&mut self, alignment: &Value, words: &mut Vec<WordTime>) {
        let list = |name: &str| alignment[name].as_array().map_or(&[][..], Vec::as_slice);
        let began = Duration::from_secs_f64(self.position as f64 / f64::from(SAMPLE_RATE_HZ));
        let times = list("charStartTimesMs").iter().zip(list("charDurationsMs"));
        for (character, (start, length)) in list("chars").iter().zip(times) {
            let Some(character) = character.as_str() else {
                continue;
            };
            let ms = |value: &Value| Duration::from_millis(value.as_f64().unwrap_or(0.0) as u64);
            let from = began.saturating_add(ms(start));
            let to = from.saturating_add(ms(length));
            if character.trim().is_empty() {
                words.extend(self.word.take().map(word_time));
                continue;
            }
            let word = self.word.get_or_insert((String::new(), from, to));
            word.0.push_str(character);
            word.2 = word.2.max(to);
        }
    }
}

fn word_time((text, from, to): (String, Duration, Duration)) -> WordTime {
    WordTime { text, from, to }
}

impl VoiceReader for ElevenLabsReader {
    fn read(&mut self, frame: &Frame, spoken: &mut VecDeque<Spoken>) {
        let Frame::Text(text) = frame else {
            return;
        };
        let Ok(message) = serde_json::from_str::<Value>(text) else {
            return;
        };
        // Both spellings are seen, whatever the specification says.
        let context = message["contextId"]
            .as_str()
            .or(message["context_id"].as_str());
        if context.is_some_and(|context| context != self.context) {
            return;
        }
        if let Some(error) = message["error"].as_str() {
            let said = message["message"].as_str().unwrap_or(error);
            let said: String = said.chars().take(200).collect();
            spoken.push_back(Spoken::Error(match error {
                // Their explanation may have the key in it.
                "invalid_api_key" => {
                    ProviderError::config(format!("ElevenLabs refuses {}", KEYS[0]))
                }
                "quota_exceeded" => {
                    ProviderError::config(format!("ElevenLabs wants to be paid first: {said}"))
                }
                _ => ProviderError::temporary(format!("ElevenLabs says: {said}")),
            }));
            return;
        }
        let mut words = Vec::new();
        self.words(&message["alignment"], &mut words);
        let is_final = message["isFinal"].as_bool() == Some(true);
        if is_final {
            words.extend(self.word.take().map(word_time));
        }
        if !words.is_empty() {
            spoken.push_back(Spoken::Words(words));
        }
        if let Some(audio) = message["audio"].as_str() {
            match STANDARD.decode(audio) {
                Ok(bytes) => {
                    let sound = samples(&mut self.half, &bytes);
                    self.position += sound.len() as u64;
                    spoken.push_back(Spoken::Sound(sound));
                }
                Err(_) => spoken.push_back(Spoken::Error(ProviderError::temporary(
                    "ElevenLabs sent sound that is no base64",
                ))),
            }
        }
        if is_final {
            spoken.push_back(Spoken::Done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &mut ElevenLabsReader, message: &Value) -> Vec<Spoken> {
        let mut spoken = VecDeque::new();
        reader.read(&Frame::Text(message.to_string()), &mut spoken);
        spoken.into()
    }

    #[test]
    fn characters_become_words_over_pieces_of_sound() {
        let mut reader = ElevenLabsReader::new("s1");
        let piece = |chars: &[&str], starts: &[u64]| {
            json!({
                "audio": STANDARD.encode([0u8; 4_800]), "contextId": "s1",
                "alignment": {
                    "chars": chars, "charStartTimesMs": starts, "charDurationsMs": vec![20; chars.len()],
                },
            })
        };
        let word = |text: &str, from: u64, to: u64| WordTime {
            text: text.to_owned(),
            from: Duration::from_millis(from),
            to: Duration::from_millis(to),
        };
        let sound = Spoken::Sound(vec![0; 2_400]);
        let first = read(&mut reader, &piece(&["W", "e", " ", "o"], &[0, 20, 40, 60]));
        assert_eq!(
            first,
            [Spoken::Words(vec![word("We", 0, 40)]), sound.clone()]
        );
        let second = read(&mut reader, &piece(&["p", "."], &[10, 30]));
        assert_eq!(second, [sound]);
        assert_eq!(
            read(&mut reader, &json!({ "isFinal": true, "contextId": "s0" })),
            []
        );
        let last = json!({ "isFinal": true, "context_id": "s1", "audio": null, "alignment": null });
        assert_eq!(
            read(&mut reader, &last),
            [Spoken::Words(vec![word("op.", 60, 150)]), Spoken::Done]
        );
    }

    #[test]
    fn errors_say_what_to_do_and_odd_messages_mean_nothing() {
        let mut reader = ElevenLabsReader::new("s1");
        for (error, is_config) in [
            ("invalid_api_key", true),
            ("quota_exceeded", true),
            ("x", false),
        ] {
            let message = json!({ "message": "key sk-1", "error": error, "code": 1008 });
            let [Spoken::Error(said)] = &read(&mut reader, &message)[..] else {
                panic!("it is an error")
            };
            assert_eq!(
                matches!(said, ProviderError::Config { .. }),
                is_config,
                "{error}"
            );
        }
        for odd in [
            json!([]),
            json!({ "alignment": { "chars": [1], "charStartTimesMs": [-1], "charDurationsMs": ["x"] } }),
        ] {
            assert_eq!(read(&mut reader, &odd), [], "{odd}");
        }
    }
}
