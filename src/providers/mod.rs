//! Speech recognition, language model and speech synthesis, each behind one trait, one vendor a
//! file.
//!
//! A vendor's file knows its requests, its answers and its errors. It knows nothing of turns,
//! retries and time-outs: those belong to the conversation ([`crate::voice`]) and, for recognition,
//! to the session that all its vendors share ([`stt::Recogniser`]). `socket` is the WebSocket that
//! vendors share. `scripted` is a vendor without a network, for the demo and for tests.

pub(crate) mod asked;
mod error;
mod health;
mod language;
pub mod llm;
mod openai;
mod persona;
pub(crate) mod retry;
pub mod scripted;
pub(crate) mod socket;
pub mod stt;
pub mod tts;
mod vendors;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;

pub use error::{Component, ProviderError};
pub use language::Language;
use llm::{ChatModel, ChatOption, ToolChoice};
pub use persona::PersonaModels;
use stt::{Recogniser, SpeechToText};
use tts::TextToSpeech;
#[cfg(feature = "internals")]
pub(crate) use vendors::read_vendor_messages;
pub use vendors::{
    LlmVendor, OpenAiChatConfig, OpenAiConfig, OpenAiVoiceConfig, SttVendor, TtsVendor,
};

/// Who makes the words and the sounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Vendor {
    /// Anything that speaks OpenAI's HTTP interface.
    #[default]
    Openai,
    /// A prepared conversation, without a network.
    Scripted,
}

/// The `[providers]` section: which vendors and models a conversation uses. Keys come from the
/// environment (`OPENAI_API_KEY`).
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProvidersConfig {
    /// Who does all three.
    pub vendor: Vendor,
    /// Base URL of the OpenAI-compatible service; ends in `/v1`. `OPENAI_BASE_URL` in the
    /// environment goes first.
    pub openai_base_url: String,
    /// Model of `audio/transcriptions`.
    pub stt_model: String,
    /// Model of `chat/completions`.
    pub llm_model: String,
    /// Sampling temperature of the language model; the model's own when not set.
    pub llm_temperature: Option<f32>,
    /// The longest answer in tokens; the model's own limit when not set.
    pub llm_max_tokens: Option<u32>,
    /// Whether the language model uses tools.
    pub llm_tool_choice: ToolChoice,
    /// What the server of the language model is known to refuse. Each call finds the rest out for
    /// itself, at the price of one request for each.
    pub llm_refuses: Vec<ChatOption>,
    /// Model of `audio/speech`.
    pub tts_model: String,
    /// Voice of `audio/speech`, when the persona has none.
    pub tts_voice: String,
    /// The conversation that `scripted` plays, a JSON file. See `config/demo-script.json`.
    pub script: Option<PathBuf>,
    /// Recognisers, first choice first. An empty list stands for `stt_model`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stt: Vec<SttVendor>,
    /// Language models, likewise; instead of the keys that begin with `llm_`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub llm: Vec<LlmVendor>,
    /// Voices, likewise; instead of the keys that begin with `tts_`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tts: Vec<TtsVendor>,
}

impl Default for ProvidersConfig {
    fn default() -> Self {
        Self {
            vendor: Vendor::Openai,
            openai_base_url: "https://api.openai.com/v1".to_owned(),
            stt_model: "gpt-4o-mini-transcribe".to_owned(),
            llm_model: "gpt-4.1-mini".to_owned(),
            llm_temperature: None,
            llm_max_tokens: None,
            llm_tool_choice: ToolChoice::Auto,
            llm_refuses: Vec::new(),
            tts_model: "gpt-4o-mini-tts".to_owned(),
            tts_voice: "alloy".to_owned(),
            script: None,
            stt: Vec::new(),
            llm: Vec::new(),
            tts: Vec::new(),
        }
    }
}

/// The three providers of a conversation.
#[derive(Clone)]
pub struct Providers {
    /// Speech to text.
    pub stt: Arc<dyn SpeechToText>,
    /// What to say.
    pub llm: Arc<dyn ChatModel>,
    /// Text to speech.
    pub tts: Arc<dyn TextToSpeech>,
}

impl Providers {
    /// Opens connections ahead of the first requests. What is wrong with them, those will say.
    pub async fn prewarm(&self) {
        tokio::join!(self.stt.prewarm(), self.llm.prewarm(), self.tts.prewarm());
    }
}

/// Makes the providers of a call, which may differ from persona to persona.
pub struct ProviderFactory {
    config: ProvidersConfig,
    http: reqwest::Client,
    usual: Providers,
}

impl ProviderFactory {
    /// Providers as the settings name them. Nothing is sent yet.
    ///
    /// # Errors
    /// When a setting or a key is missing or wrong: before any call, not in the middle of one.
    pub fn new(config: ProvidersConfig, http: reqwest::Client) -> Result<Self, ProviderError> {
        let usual = build(&config, http.clone())?;
        Ok(Self {
            config,
            http,
            usual,
        })
    }

    /// The providers of personas that name none of their own.
    pub fn usual(&self) -> &Providers {
        &self.usual
    }

    /// The providers of a persona with these models: the usual one where its own cannot be made.
    pub fn for_persona(&self, models: &PersonaModels) -> Providers {
        let mut providers = self.usual.clone();
        for component in [Component::Stt, Component::Llm, Component::Tts] {
            if !models.changes(component) {
                continue;
            }
            let config = self.config.for_persona(models, component);
            match (build(&config, self.http.clone()), component) {
                (Ok(own), Component::Stt) => providers.stt = own.stt,
                (Ok(own), Component::Llm) => providers.llm = own.llm,
                (Ok(own), Component::Tts) => providers.tts = own.tts,
                (Err(error), component) => {
                    let component = component.as_str();
                    warn!(component, %error, "the persona's own vendors or models cannot be used");
                }
            }
        }
        providers
    }
}

/// How long a connection to a provider may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an unused connection is kept: longer than the pauses of a conversation.
const KEEP_IDLE: Duration = Duration::from_secs(90);

/// The client of a call: its connections are shared by everything that the call asks over HTTP.
///
/// # Errors
/// When the system's certificates cannot be used.
pub fn http_client() -> Result<reqwest::Client, ProviderError> {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(KEEP_IDLE)
        .tcp_nodelay(true)
        // A POST with a key in it is not sent on to wherever an answer points.
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| ProviderError::config(format!("no HTTP client can be made: {error}")))
}

/// The providers that the settings name. Nothing is sent yet.
///
/// # Errors
/// When a setting or a key is missing or wrong.
pub fn build(config: &ProvidersConfig, http: reqwest::Client) -> Result<Providers, ProviderError> {
    let maker = vendors::Maker {
        config,
        http: &http,
    };
    // A list goes before the single keys, and before a prepared conversation.
    let scripted = match config.vendor {
        Vendor::Openai => None,
        Vendor::Scripted => Some(scripted(config)?),
    };
    let stt = match &scripted {
        Some(scripted) if config.stt.is_empty() => Recogniser::requests(scripted.clone()),
        _ => {
            let vendors = config.stt_list();
            let vendors: Result<_, _> = vendors.iter().map(|vendor| maker.stt(vendor)).collect();
            Arc::new(Recogniser::new(vendors?))
        }
    };
    let llm: Arc<dyn ChatModel> = match &scripted {
        Some(scripted) if config.llm.is_empty() => scripted.clone(),
        _ => {
            let vendors = config.llm_list();
            let vendors: Result<_, _> = vendors.iter().map(|vendor| maker.llm(vendor)).collect();
            llm::fallback::first_of(vendors?)
        }
    };
    let tts: Arc<dyn TextToSpeech> = match scripted {
        Some(scripted) if config.tts.is_empty() => scripted,
        _ => {
            let vendors = config.tts_list();
            let vendors: Result<_, _> = vendors.iter().map(|vendor| maker.tts(vendor)).collect();
            tts::fallback::first_of(vendors?)
        }
    };
    Ok(Providers { stt, llm, tts })
}

fn scripted(config: &ProvidersConfig) -> Result<Arc<scripted::Scripted>, ProviderError> {
    let path = config.script.as_ref().ok_or_else(|| {
        ProviderError::config("providers.script is not set: it names the conversation that providers.vendor = \"scripted\" plays")
    })?;
    Ok(Arc::new(scripted::Scripted::new(scripted::Script::read(
        path,
    )?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_persona_speaks_with_its_own_models_and_else_with_the_usual_ones() {
        let config = ProvidersConfig {
            openai_base_url: "http://127.0.0.1:1/v1".into(),
            ..ProvidersConfig::default()
        };
        let factory = ProviderFactory::new(config, reqwest::Client::new()).unwrap();
        let models = PersonaModels {
            llm: Some("large".into()),
            ..PersonaModels::default()
        };
        let own = factory.for_persona(&models);
        assert!(own.llm.name().contains("large"), "{}", own.llm.name());
        assert_eq!(own.stt.name(), factory.usual().stt.name());
        assert!(Arc::ptr_eq(&own.tts, &factory.usual().tts));
        let none = factory.for_persona(&PersonaModels::default());
        assert!(Arc::ptr_eq(&none.llm, &factory.usual().llm));
        // A vendor whose key is missing costs only itself.
        let vendor =
            serde_json::json!({ "vendor": "gemini", "api_key_variable": "A_KEY_THAT_NOBODY_HAS" });
        let models = PersonaModels {
            llm_vendors: vec![serde_json::from_value(vendor).unwrap()],
            tts: Some("warm".into()),
            ..PersonaModels::default()
        };
        let own = factory.for_persona(&models);
        assert!(Arc::ptr_eq(&own.llm, &factory.usual().llm));
        assert!(own.tts.name().contains("warm"), "{}", own.tts.name());
    }
}
