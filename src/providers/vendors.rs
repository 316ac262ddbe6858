//! The lists of vendors in the settings, first choice first: `[[providers.stt]]`,
//! `[[providers.llm]]`, `[[providers.tts]]`. Each entry names its vendor and has its keys.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::llm::anthropic::{Anthropic, AnthropicConfig};
use super::llm::gemini::{Gemini, GeminiConfig};
use super::llm::openai::OpenAiChat;
use super::llm::{ChatModel, ChatOption, ToolChoice};
use super::openai::Api;
use super::stt::assemblyai::{AssemblyAi, AssemblyAiConfig};
use super::stt::cartesia::{Ink, InkConfig};
use super::stt::deepgram::{DeepgramConfig, DeepgramFlux, DeepgramFluxConfig, DeepgramListen};
use super::stt::elevenlabs::{Scribe, ScribeConfig};
use super::stt::openai::OpenAiSpeechToText;
use super::stt::openai_realtime::{OpenAiRealtime, OpenAiRealtimeConfig};
use super::stt::sarvam::{Sarvam, SarvamConfig};
use super::stt::{self, Transcriber};
use super::tts::TextToSpeech;
use super::tts::cartesia::{Cartesia, CartesiaConfig};
use super::tts::deepgram::{DeepgramVoice, DeepgramVoiceConfig};
use super::tts::elevenlabs::{ElevenLabs, ElevenLabsConfig};
use super::tts::openai::OpenAiTextToSpeech;
use super::tts::sarvam::{SarvamVoice, SarvamVoiceConfig};
use super::tts::stream::SocketVoice;
use super::{ProviderError, ProvidersConfig};

/// A vendor of recognition.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "vendor", rename_all = "snake_case")]
pub enum SttVendor {
    /// Anything that speaks OpenAI's HTTP interface; one request for each stretch of speech.
    Openai(OpenAiConfig),
    /// Deepgram's `/v1/listen`.
    Deepgram(DeepgramConfig),
    /// Deepgram's `/v2/listen`, which decides about turns.
    DeepgramFlux(DeepgramFluxConfig),
    /// AssemblyAI's `/v3/ws`, which decides about turns.
    Assemblyai(AssemblyAiConfig),
    /// ElevenLabs' Scribe.
    Elevenlabs(ScribeConfig),
    /// Cartesia's Ink.
    Cartesia(InkConfig),
    /// Sarvam's realtime recognition, of the languages of India.
    Sarvam(SarvamConfig),
    /// OpenAI's realtime transcription.
    #[serde(alias = "openai-realtime")]
    OpenaiRealtime(OpenAiRealtimeConfig),
}

/// A vendor of language models.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "vendor", rename_all = "snake_case")]
pub enum LlmVendor {
    /// Anything that speaks OpenAI's HTTP interface.
    Openai(OpenAiChatConfig),
    /// Anthropic's `v1/messages`.
    Anthropic(AnthropicConfig),
    /// Gemini's `streamGenerateContent`.
    Gemini(GeminiConfig),
}

/// A vendor of synthesis.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "vendor", rename_all = "snake_case")]
pub enum TtsVendor {
    /// Anything that speaks OpenAI's HTTP interface.
    Openai(OpenAiVoiceConfig),
    /// Cartesia's WebSocket.
    Cartesia(CartesiaConfig),
    /// ElevenLabs' multi-context WebSocket.
    Elevenlabs(ElevenLabsConfig),
    /// Deepgram's Aura.
    Deepgram(DeepgramVoiceConfig),
    /// Sarvam's Bulbul, in the languages of India.
    Sarvam(SarvamVoiceConfig),
}

/// `vendor = "openai"` in `[[providers.stt]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpenAiConfig {
    /// Base address; ends in `/v1`. `providers.openai_base_url` if not set.
    pub base_url: Option<String>,
    /// The environment variable that holds the key.
    pub api_key_variable: String,
    /// The model.
    pub model: String,
}

/// `vendor = "openai"` in `[[providers.llm]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpenAiChatConfig {
    /// Base address; ends in `/v1`. `providers.openai_base_url` if not set.
    pub base_url: Option<String>,
    /// The environment variable that holds the key.
    pub api_key_variable: String,
    /// The model.
    pub model: String,
    /// Sampling temperature; the model's own when not set.
    pub temperature: Option<f32>,
    /// The longest answer in tokens; the model's own limit when not set.
    pub max_tokens: Option<u32>,
    /// Whether the model uses tools.
    pub tool_choice: ToolChoice,
    /// What the server is known to refuse.
    pub refuses: Vec<ChatOption>,
}

/// `vendor = "openai"` in `[[providers.tts]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpenAiVoiceConfig {
    /// Base address; ends in `/v1`. `providers.openai_base_url` if not set.
    pub base_url: Option<String>,
    /// The environment variable that holds the key.
    pub api_key_variable: String,
    /// The model.
    pub model: String,
    /// The voice, when the persona has none.
    pub voice: String,
}

impl Default for OpenAiConfig {
    fn default() -> Self {
        Self {
            base_url: None,
            api_key_variable: super::openai::KEY.to_owned(),
            model: ProvidersConfig::default().stt_model,
        }
    }
}

impl Default for OpenAiChatConfig {
    fn default() -> Self {
        Self {
            base_url: None,
            api_key_variable: super::openai::KEY.to_owned(),
            model: ProvidersConfig::default().llm_model,
            temperature: None,
            max_tokens: None,
            tool_choice: ToolChoice::Auto,
            refuses: Vec::new(),
        }
    }
}

impl Default for OpenAiVoiceConfig {
    fn default() -> Self {
        let usual = ProvidersConfig::default();
        Self {
            base_url: None,
            api_key_variable: super::openai::KEY.to_owned(),
            model: usual.tts_model,
            voice: usual.tts_voice,
        }
    }
}

/// Makes vendors of their settings.
pub(super) struct Maker<'a> {
    pub config: &'a ProvidersConfig,
    pub http: &'a reqwest::Client,
}

impl Maker<'_> {
    fn api(&self, base_url: Option<&str>, key: &str) -> Result<Api, ProviderError> {
        let base = base_url.unwrap_or(&self.config.openai_base_url);
        Api::new(self.http.clone(), base, key)
    }

    pub fn stt(&self, vendor: &SttVendor) -> Result<stt::Vendor, ProviderError> {
        Ok(match vendor {
            SttVendor::Openai(config) => {
                let api = self.api(config.base_url.as_deref(), &config.api_key_variable)?;
                let vendor: Arc<dyn Transcriber> =
                    Arc::new(OpenAiSpeechToText::new(api, &config.model));
                stt::Vendor::Requests(vendor)
            }
            SttVendor::Deepgram(config) => {
                stt::Vendor::Stream(Arc::new(DeepgramListen::new(config.clone())?))
            }
            SttVendor::DeepgramFlux(config) => {
                stt::Vendor::Stream(Arc::new(DeepgramFlux::new(config.clone())?))
            }
            SttVendor::Assemblyai(config) => {
                stt::Vendor::Stream(Arc::new(AssemblyAi::new(config.clone())?))
            }
            SttVendor::Elevenlabs(config) => {
                stt::Vendor::Stream(Arc::new(Scribe::new(config.clone())?))
            }
            SttVendor::Cartesia(config) => stt::Vendor::Stream(Arc::new(Ink::new(config.clone())?)),
            SttVendor::Sarvam(config) => {
                stt::Vendor::Stream(Arc::new(Sarvam::new(config.clone())?))
            }
            SttVendor::OpenaiRealtime(config) => {
                stt::Vendor::Stream(Arc::new(OpenAiRealtime::new(config.clone())?))
            }
        })
    }

    pub fn llm(&self, vendor: &LlmVendor) -> Result<Arc<dyn ChatModel>, ProviderError> {
        let http = self.http.clone();
        Ok(match vendor {
            LlmVendor::Openai(config) => {
                let api = self.api(config.base_url.as_deref(), &config.api_key_variable)?;
                Arc::new(OpenAiChat::new(api, config))
            }
            LlmVendor::Anthropic(config) => Arc::new(Anthropic::new(http, config.clone())?),
            LlmVendor::Gemini(config) => Arc::new(Gemini::new(http, config.clone())?),
        })
    }

    pub fn tts(&self, vendor: &TtsVendor) -> Result<Arc<dyn TextToSpeech>, ProviderError> {
        Ok(match vendor {
            TtsVendor::Openai(config) => {
                let api = self.api(config.base_url.as_deref(), &config.api_key_variable)?;
                let (model, voice) = (&config.model, &config.voice);
                Arc::new(OpenAiTextToSpeech::new(api, model, voice))
            }
            TtsVendor::Cartesia(config) => {
                Arc::new(SocketVoice::new(Cartesia::new(config.clone())?))
            }
            TtsVendor::Elevenlabs(config) => {
                Arc::new(SocketVoice::new(ElevenLabs::new(config.clone())?))
            }
            TtsVendor::Deepgram(config) => {
                Arc::new(SocketVoice::new(DeepgramVoice::new(config.clone())?))
            }
            TtsVendor::Sarvam(config) => {
                Arc::new(SocketVoice::new(SarvamVoice::new(config.clone())?))
            }
        })
    }
}

impl ProvidersConfig {
    /// The list of recognisers; the one of the single keys when there is none.
    pub(super) fn stt_list(&self) -> Vec<SttVendor> {
        match self.stt.is_empty() {
            true => vec![SttVendor::Openai(OpenAiConfig {
                model: self.stt_model.clone(),
                ..OpenAiConfig::default()
            })],
            false => self.stt.clone(),
        }
    }

    /// The list of language models, likewise.
    pub(super) fn llm_list(&self) -> Vec<LlmVendor> {
        match self.llm.is_empty() {
            true => vec![LlmVendor::Openai(OpenAiChatConfig {
                model: self.llm_model.clone(),
                temperature: self.llm_temperature,
                max_tokens: self.llm_max_tokens,
                tool_choice: self.llm_tool_choice,
                refuses: self.llm_refuses.clone(),
                ..OpenAiChatConfig::default()
            })],
            false => self.llm.clone(),
        }
    }

    /// The list of voices, likewise.
    pub(super) fn tts_list(&self) -> Vec<TtsVendor> {
        match self.tts.is_empty() {
            true => vec![TtsVendor::Openai(OpenAiVoiceConfig {
                model: self.tts_model.clone(),
                voice: self.tts_voice.clone(),
                ..OpenAiVoiceConfig::default()
            })],
            false => self.tts.clone(),
        }
    }
}

/// What the vendors' readers make of lines: the first byte chooses the vendor. Answers what was
/// read, so that readings can be compared.
#[cfg(feature = "internals")]
pub(crate) fn read_vendor_messages(data: &[u8]) -> Vec<String> {
    use super::socket::Frame;
    use super::stt::assemblyai::TurnReader;
    use super::stt::cartesia::InkReader;
    use super::stt::deepgram::{FluxReader, ListenReader};
    use super::stt::elevenlabs::ScribeReader;
    use super::stt::openai_realtime::TranscriptionReader;
    use super::stt::sarvam::SarvamReader;
    use super::stt::stream::Reader;
    use super::tts::cartesia::CartesiaReader;
    use super::tts::deepgram::SpeakReader;
    use super::tts::elevenlabs::ElevenLabsReader;
    use super::tts::sarvam::SarvamVoiceReader;
    use super::tts::stream::VoiceReader;

    let Some((choice, data)) = data.split_first() else {
        return Vec::new();
    };
    let mut read = Vec::new();
    let listener: Option<Box<dyn Reader>> = match choice % 13 {
        0 => Some(Box::new(ListenReader)),
        1 => Some(Box::new(FluxReader)),
        2 => Some(Box::new(TurnReader { wants_format: true })),
        3 => Some(Box::new(TurnReader {
            wants_format: false,
        })),
        7 => Some(Box::new(ScribeReader)),
        8 => Some(Box::new(InkReader::default())),
        9 => Some(Box::new(SarvamReader::default())),
        10 => Some(Box::new(TranscriptionReader::new(false))),
        11 => Some(Box::new(TranscriptionReader::new(true))),
        _ => None,
    };
    if let Some(mut reader) = listener {
        for line in String::from_utf8_lossy(data).lines() {
            let mut heard = Vec::new();
            reader.read(line, &mut heard);
            read.extend(heard.iter().map(|heard| format!("{heard:?}")));
        }
        return read;
    }
    let mut reader: Box<dyn VoiceReader> = match choice % 13 {
        4 => Box::new(CartesiaReader::new("s1")),
        5 => Box::new(ElevenLabsReader::new("s1")),
        12 => Box::new(SarvamVoiceReader::default()),
        _ => Box::new(SpeakReader::default()),
    };
    for line in data.split(|byte| *byte == b'\n') {
        let frame = match std::str::from_utf8(line) {
            Ok(text) => Frame::Text(text.to_owned()),
            Err(_) => Frame::Binary(line.to_vec()),
        };
        let mut spoken = std::collections::VecDeque::new();
        reader.read(&frame, &mut spoken);
        read.extend(spoken.iter().map(|spoken| format!("{spoken:?}")));
    }
    read
}
