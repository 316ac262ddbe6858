//! The settings: one TOML file, overridden by environment variables; secrets from the environment
//! alone.
//!
//! Each part of the program owns the struct of its section; this module only puts them together,
//! reads them, and says in a sentence what is wrong: which key, in which file or variable. A
//! command asks only for the settings that it uses.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};

use crate::call::config::{CallConfig, DialConfig, PersonaConfig};
use crate::ledger::mongodb::MongoConfig;
use crate::page::PageConfig;
use crate::providers::ProvidersConfig;
use crate::recording::RecordingConfig;
use crate::session::dispatch::DispatchRules;
use crate::settings::{LiveKitSettings, Secret};
use crate::store::StorageConfig;
use crate::tools::ToolsConfig;
use crate::upload::{CrmConfig, UploadConfig};
use crate::voice::VoiceConfig;
use crate::worker::WorkerConfig;

/// The config file that is read when none is named, if it is there.
pub const DEFAULT_FILE: &str = "config/voicebot.toml";
/// Names the config file.
pub const FILE_VARIABLE: &str = "VOICEBOT_CONFIG";
/// `VOICEBOT__SECTION__KEY` sets one key.
const KEY_PREFIX: &str = "VOICEBOT__";

/// Everything that can be set, with its default.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The folder that holds `recordings`, `conversations`, `leads`, `call_metadata` and
    /// `processed_metadata`.
    pub data_dir: PathBuf,
    /// The LiveKit server.
    pub livekit: LiveKitConfig,
    /// The long-lived process.
    pub worker: WorkerConfig,
    /// One call.
    pub call: CallConfig,
    /// Calls that the agent places.
    pub dial: DialConfig,
    /// Where personas come from.
    pub persona: PersonaConfig,
    /// Turn taking and speech.
    pub voice: VoiceConfig,
    /// Speech recognition, language model, speech synthesis.
    pub providers: ProvidersConfig,
    /// The functions that the model may call.
    pub tools: ToolsConfig,
    /// Recording of calls.
    pub recording: RecordingConfig,
    /// The customer's CRM.
    pub crm: CrmConfig,
    /// Delivery to the CRM.
    pub upload: UploadConfig,
    /// Room on the disk.
    pub storage: StorageConfig,
    /// The copy of all calls in MongoDB.
    pub mongodb: MongoConfig,
    /// The operator's page.
    pub page: PageConfig,
    /// Log output.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: ".".into(),
            livekit: Default::default(),
            worker: Default::default(),
            call: Default::default(),
            dial: Default::default(),
            persona: Default::default(),
            voice: Default::default(),
            providers: Default::default(),
            tools: Default::default(),
            recording: Default::default(),
            crm: Default::default(),
            upload: Default::default(),
            storage: Default::default(),
            mongodb: Default::default(),
            page: Default::default(),
            log: Default::default(),
        }
    }
}

/// `[livekit]`: the server and the name under which jobs are dispatched to us.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LiveKitConfig {
    /// `ws://`, `wss://`, `http://` or `https://` address. `LIVEKIT_URL` overrides it.
    pub url: String,
    /// Name for explicit dispatch; empty: automatic dispatch to every new room.
    /// `LIVEKIT_AGENT_NAME` overrides it.
    pub agent_name: String,
}

/// `[log]`: what is logged, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `text`, `json`, or `auto`: text in a terminal, JSON elsewhere.
    pub format: LogFormat,
    /// A level or a filter such as `info,voicebot::voice=debug`. `RUST_LOG` overrides it.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Auto,
            level: "info".into(),
        }
    }
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text in a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For machines: one object a line.
    Json,
}

/// What is wrong with the settings, for the person who wrote them.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named is not there or cannot be read.
    #[error("the config file {path} cannot be read: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        why: std::io::Error,
    },
    /// Keys that are unknown or have wrong values, one sentence each.
    #[error("{}", .0.join("\n"))]
    Keys(Vec<String>),
    /// A setting that the command cannot do without.
    #[error("{name} is not set: {what} (environment variable {name}{})", .key.map(|key| format!(" or key {key}")).unwrap_or_default())]
    Missing {
        /// The environment variable.
        name: &'static str,
        /// The key of the file that serves as well, if one does.
        key: Option<&'static str>,
        /// What it is for.
        what: &'static str,
    },
}

impl Config {
    /// Reads the settings: defaults, then the file, then the environment. `file`: the one named on
    /// the command line.
    ///
    /// # Errors
    /// When a file that was named is not there, and for unknown keys and wrong values: all of them,
    /// a sentence each.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let named = file
            .map(Path::to_owned)
            .or_else(|| std::env::var_os(FILE_VARIABLE).map(PathBuf::from));
        let path = named.clone().unwrap_or_else(|| DEFAULT_FILE.into());
        if named.is_some() {
            std::fs::metadata(&path).map_err(|why| ConfigError::File {
                path: path.clone(),
                why,
            })?;
        }
        let given = file_layer(&path, named.is_some()).merge(Env::prefixed(KEY_PREFIX).split("__"));
        let mut config = Self::extract(given)?;
        config.take_usual_variables();
        config.check()?;
        Ok(config)
    }

    /// Values that no type can refuse.
    fn check(&self) -> Result<(), ConfigError> {
        let faults: Vec<String> = [
            self.upload.check(),
            self.crm.check(),
            self.mongodb.check(),
            self.tools.check(),
            self.persona.check(),
            self.dial.check(),
            self.voice.lines.check(),
            self.recording.check(),
            self.recording.check_beside(&self.data_dir),
        ]
        .into_iter()
        .filter_map(Result::err)
        .collect();
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Keys(faults))
        }
    }

    fn extract(given: Figment) -> Result<Self, ConfigError> {
        let all = Figment::from(Serialized::defaults(Config::default())).merge(given);
        all.extract().map_err(|error| {
            ConfigError::Keys(error.into_iter().map(|error| sentence(&error)).collect())
        })
    }

    /// The variables that LiveKit's and the vendors' own tools use win over the file.
    fn take_usual_variables(&mut self) {
        let take = |name: &str, key: &mut String| {
            if let Some(value) = std::env::var(name).ok().filter(|value| !value.is_empty()) {
                *key = value;
            }
        };
        take("LIVEKIT_URL", &mut self.livekit.url);
        take("LIVEKIT_AGENT_NAME", &mut self.livekit.agent_name);
        take("CRM_BASE_URL", &mut self.crm.base_url);
        take("OPENAI_BASE_URL", &mut self.providers.openai_base_url);
    }

    /// How dispatches are read.
    pub fn dispatch_rules(&self) -> DispatchRules {
        DispatchRules {
            country: self.call.country_code.clone(),
            dials: self.dial.enabled,
        }
    }

    /// The LiveKit server's address and keys, for the commands that need them.
    ///
    /// # Errors
    /// When one of them is not set; the error names the key.
    pub fn livekit_settings(&self) -> Result<LiveKitSettings, ConfigError> {
        if self.livekit.url.is_empty() {
            let what = "the address of the LiveKit server, such as wss://my-project.livekit.cloud";
            return Err(ConfigError::Missing {
                name: "LIVEKIT_URL",
                key: Some("livekit.url"),
                what,
            });
        }
        let secret = |name, what| {
            Secret::from_env(name).ok_or(ConfigError::Missing {
                name,
                key: None,
                what,
            })
        };
        Ok(LiveKitSettings {
            url: self.livekit.url.clone(),
            api_key: secret("LIVEKIT_API_KEY", "the API key of the LiveKit server")?
                .expose()
                .to_owned(),
            api_secret: secret(
                "LIVEKIT_API_SECRET",
                "the secret that belongs to LIVEKIT_API_KEY",
            )?,
        })
    }
}

/// What the file sets. One that was named must be there.
fn file_layer(path: &Path, named: bool) -> Figment {
    if named || path.exists() {
        Figment::from(Toml::file_exact(path))
    } else {
        Figment::new()
    }
}

/// Keys that have other names now, as `(old, new)`.
const RENAMED_KEYS: [(&str, &str); 3] = [
    (
        "voice.turn.min_delay_ms",
        "voice.turn.min_endpointing_delay_ms",
    ),
    (
        "voice.turn.max_delay_ms",
        "voice.turn.max_endpointing_delay_ms",
    ),
    (
        "voice.turn.early_transcription_ms",
        "voice.turn.preemptive_transcription_ms",
    ),
];

/// One fault of the settings in words: the key, where it stands, and what is wrong.
fn sentence(error: &figment::Error) -> String {
    use figment::error::Kind;
    let key = error.path.join(".");
    let place = match error.metadata.as_ref() {
        Some(metadata) => match (&metadata.source, metadata.name.contains("environment")) {
            (Some(figment::Source::File(path)), _) => path.display().to_string(),
            (_, true) => format!(
                "the environment variable {KEY_PREFIX}{}",
                key.to_uppercase().replace('.', "__")
            ),
            _ => metadata.name.to_string(),
        },
        None => "the config".into(),
    };
    match &error.kind {
        Kind::UnknownField(field, known) => {
            let full =
                if error.path.is_empty() || error.path.last().is_some_and(|last| last == field) {
                    if key.is_empty() {
                        field.clone()
                    } else {
                        key.clone()
                    }
                } else {
                    format!("{key}.{field}")
                };
            match RENAMED_KEYS.iter().find(|(old, _)| *old == full) {
                Some((_, new)) => format!("the key {full} in {place} is called {new} now"),
                None => format!(
                    "unknown key {full} in {place}; known there: {}",
                    known.join(", ")
                ),
            }
        }
        Kind::InvalidType(actual, expected) => {
            format!(
                "the key {key} in {place} must be {}, not {actual}",
                plain(&expected.to_string())
            )
        }
        Kind::InvalidValue(actual, expected) => {
            format!("the key {key} in {place} must be {expected}, not {actual}")
        }
        Kind::UnknownVariant(actual, known) => format!(
            "the key {key} in {place} must be one of {}, not {actual}",
            known.join(", ")
        ),
        _ if key.is_empty() => format!("{place} cannot be used: {error}"),
        kind => format!("the key {key} in {place} cannot be used: {kind}"),
    }
}

/// The name of a type in words; others are words already.
fn plain(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, not negative",
        "f32" | "f64" => "a number",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(toml: &str) -> String {
        Config::extract(Figment::new().merge(Toml::string(toml)))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_section() {
        let text = faults("[worker]\nmax_cals = 3\n");
        assert!(
            text.contains("worker.max_cals") && text.contains("max_calls"),
            "{text}"
        );
    }

    #[test]
    fn lists_of_vendors_are_read_and_an_unknown_key_in_one_is_named() {
        let config = Config::extract(Figment::new().merge(Toml::string(
            "[[providers.stt]]\nvendor = \"deepgram\"\nkey_terms = [\"Acme\"]\n\
             [[providers.stt]]\nvendor = \"openai\"\nmodel = \"whisper-1\"\n\
             [[providers.tts]]\nvendor = \"elevenlabs\"\n",
        )))
        .unwrap();
        assert_eq!(config.providers.stt.len(), 2);
        assert_eq!(config.providers.tts.len(), 1);
        for (toml, key) in [
            (
                "[[providers.stt]]\nvendor = \"deepgram\"\nmodle = \"x\"\n",
                "modle",
            ),
            (
                "[[providers.tts]]\nvendor = \"cartesia\"\nvoise = \"x\"\n",
                "voise",
            ),
            ("[[providers.llm]]\nvendor = \"opnai\"\n", "opnai"),
        ] {
            let text = faults(toml);
            assert!(text.contains("providers.") && text.contains(key), "{text}");
        }
    }

    #[test]
    fn a_renamed_key_is_refused_with_its_new_name() {
        for (old, new) in RENAMED_KEYS {
            let (section, key) = old.rsplit_once('.').unwrap();
            let text = faults(&format!("[{section}]\n{key} = 500\n"));
            assert!(text.contains(old) && text.contains(new), "{text}");
            let (_, new) = new.rsplit_once('.').unwrap();
            let renamed = format!("[{section}]\n{new} = 500\n");
            Config::extract(Figment::new().merge(Toml::string(&renamed))).unwrap();
        }
    }

    #[test]
    fn a_wrong_value_says_what_would_be_right() {
        let text = faults("[persona]\ntimeout_ms = \"soon\"\n");
        assert!(
            text.contains("persona.timeout_ms") && text.contains("a whole number"),
            "{text}"
        );
        assert!(faults("[log]\nformat = \"xml\"\n").contains("log.format"));
    }

    #[test]
    fn the_file_in_the_repository_sets_nothing_but_the_defaults() {
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/voicebot.toml"))
                .unwrap();
        let shown = Config::extract(Figment::new().merge(Toml::string(&text))).unwrap();
        assert_eq!(
            serde_json::to_value(&shown).unwrap(),
            serde_json::to_value(Config::default()).unwrap()
        );
    }

    #[test]
    fn every_key_stands_in_the_file_in_the_repository() {
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/voicebot.toml"))
                .unwrap();
        let shown: toml::Table = toml::from_str(&text).unwrap();
        let mut missing = Vec::new();
        let all = toml::Table::try_from(Config::default()).unwrap();
        missing_keys(&all, &shown, "", &mut missing);
        assert!(
            missing.is_empty(),
            "not in config/voicebot.toml: {missing:?}"
        );
    }

    fn missing_keys(all: &toml::Table, shown: &toml::Table, path: &str, missing: &mut Vec<String>) {
        for (key, value) in all {
            match (value, shown.get(key)) {
                (toml::Value::Table(all), Some(toml::Value::Table(shown))) => {
                    missing_keys(all, shown, &format!("{path}{key}."), missing)
                }
                (_, Some(_)) => {}
                (_, None) => missing.push(format!("{path}{key}")),
            }
        }
    }

    #[test]
    fn a_file_that_was_not_named_need_not_be_there() {
        let nowhere = tempfile::tempdir().unwrap().path().join("voicebot.toml");
        assert!(Config::extract(file_layer(&nowhere, false)).is_ok());
        assert!(Config::extract(file_layer(&nowhere, true)).is_err());
    }
}
