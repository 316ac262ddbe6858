//! Who answers this call: finds the persona for a pair of numbers.
//!
//! Looked up by our own number first, then by the other party's, then the default persona. Each
//! number is asked of the HTTP source (fresh copy on disk, then the network, then a stale copy) and
//! then of the local folder. A source that is slow or down costs at most its time-out and never the
//! call: there is always a persona in the end.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::{debug, warn};

use crate::config::Secret;
use crate::providers::Language;

/// The persona that is built in, for a machine without any persona file.
const BUILT_IN: &str = include_str!("../../config/personas/default.json");
/// The largest persona that is read from anywhere.
const MAX_PERSONA_BYTES: usize = 1024 * 1024;
/// Long texts that belong to the conversation and are left out of the campaign metadata in the
/// record.
const NOT_FOR_THE_RECORD: [&str; 11] = [
    "instructions",
    "systemPrompt",
    "system_prompt",
    "prompt",
    "greeting",
    "firstMessage",
    "first_message",
    "goodbye",
    "endCallMessage",
    "end_call_message",
    "script",
];

/// `[persona]`: where personas come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PersonaConfig {
    /// Address of the HTTP source; `{number}` stands for the digits of the number. Empty: only
    /// local files.
    pub url: String,
    /// How long the HTTP source may take, ms. The caller hears nothing meanwhile, so it is short.
    pub timeout_ms: u64,
    /// How long a fetched persona is used without asking again, s. An older copy is still used when
    /// the source is down.
    pub cache_ttl_s: u64,
    /// Folder with `<digits of a number>.json` and `<default>.json`.
    pub directory: PathBuf,
    /// Name of the persona for every number that has none of its own.
    pub default: String,
}

impl Default for PersonaConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            timeout_ms: 1500,
            cache_ttl_s: 300,
            directory: "config/personas".into(),
            default: "default".into(),
        }
    }
}

/// Why one place gave no persona. The lookup goes on to the next place.
#[derive(Debug, thiserror::Error)]
pub enum PersonaError {
    /// The HTTP source did not answer, or not with a persona.
    #[error("the persona source {host} (persona.url) gave no persona: {why}")]
    Source {
        /// Host and port of the source.
        host: String,
        /// What went wrong.
        why: String,
    },
    /// A file that is there cannot be used.
    #[error("the persona file {path} cannot be used: {why}")]
    File {
        /// The file.
        path: String,
        /// What went wrong.
        why: String,
    },
}

/// How an agent speaks, and the campaign it speaks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Persona {
    /// Name for logs and the record: the persona's own, else where it was found.
    pub name: String,
    /// The system prompt.
    pub instructions: String,
    /// What the agent says first.
    pub greeting: Option<String>,
    /// What the agent says before it hangs up, when the model does so without a word.
    pub goodbye: Option<String>,
    /// Language of the call, for speech recognition and synthesis.
    pub language: Option<Language>,
    /// A sentence about a language that is none; recognition finds out by itself then.
    pub language_problem: Option<String>,
    /// Voice for speech synthesis.
    pub voice: Option<String>,
    /// The whole object as fetched; `campaigns[0]` in it names campaign, voice agent and client.
    pub full: Value,
}

impl Persona {
    /// Reads a persona. `name` is used when the object has none. The object may be wrapped in
    /// `data`.
    pub fn read(text: &str, name: &str) -> Result<Self, String> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
        let value = match value.get("data") {
            Some(inner) if inner.is_object() => inner.clone(),
            _ => value,
        };
        if !value.is_object() {
            return Err("it is not a JSON object".into());
        }
        let voice_agent = value.pointer("/campaigns/0/voiceAgents/0");
        let text_of = |keys: &[&str]| {
            [Some(&value), value.pointer("/campaigns/0"), voice_agent]
                .into_iter()
                .flatten()
                .find_map(|object| {
                    keys.iter()
                        .find_map(|key| object.get(*key).and_then(Value::as_str))
                })
                .filter(|text| !text.trim().is_empty())
                .map(str::to_owned)
        };
        let Some(instructions) =
            text_of(&["instructions", "systemPrompt", "system_prompt", "prompt"])
        else {
            return Err("it has no `instructions`, the text that tells the agent who it is".into());
        };
        let (language, language_problem) =
            match Language::read(&text_of(&["language"]).unwrap_or_default()) {
                Ok(language) => (language, None),
                Err(problem) => (None, Some(problem)),
            };
        Ok(Self {
            name: value
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or(name)
                .to_owned(),
            instructions,
            greeting: text_of(&["greeting", "firstMessage", "first_message"]),
            goodbye: text_of(&["goodbye", "endCallMessage", "end_call_message"]),
            language,
            language_problem,
            voice: text_of(&["voice"]),
            full: value,
        })
    }

    /// What the record keeps of the persona: its `campaign_metadata`, else all of it but the long
    /// texts.
    pub fn campaign_metadata(&self) -> Map<String, Value> {
        if let Some(map) = self
            .full
            .get("campaign_metadata")
            .and_then(Value::as_object)
        {
            let mut map = map.clone();
            if let Some(campaigns) = self.full.get("campaigns") {
                map.entry("campaigns").or_insert_with(|| campaigns.clone());
            }
            return map;
        }
        let mut map = self.full.as_object().cloned().unwrap_or_default();
        map.retain(|key, _| !NOT_FOR_THE_RECORD.contains(&key.as_str()));
        map
    }
}

/// The places personas come from. Cheap to make: one for each call.
pub struct Personas {
    config: PersonaConfig,
    http: reqwest::Client,
    token: Option<Secret>,
    cache: PathBuf,
}

impl Personas {
    /// `data_dir` gets the folder of copies; `token` is sent to the HTTP source as bearer token.
    pub fn new(
        config: PersonaConfig,
        http: reqwest::Client,
        token: Option<Secret>,
        data_dir: &Path,
    ) -> Self {
        Self {
            config,
            http,
            token,
            cache: data_dir.join(".persona_cache"),
        }
    }

    /// The persona for a call. Never fails: what is wrong on the way is logged, and the default or
    /// the built-in one is taken.
    pub async fn find(&self, numbers: impl IntoIterator<Item = &str>) -> Persona {
        let persona = self.look_up(numbers).await;
        if let Some(problem) = &persona.language_problem {
            warn!(
                persona = persona.name,
                "{problem}; speech is recognised without one"
            );
        }
        persona
    }

    async fn look_up(&self, numbers: impl IntoIterator<Item = &str>) -> Persona {
        for number in numbers {
            let digits: String = number.chars().filter(char::is_ascii_digit).collect();
            if digits.is_empty() {
                continue;
            }
            if let Some(persona) = self.ask_source(&digits).await {
                return persona;
            }
            if let Some(persona) = self.read_file(&digits) {
                return persona;
            }
        }
        self.read_file(&self.config.default).unwrap_or_else(|| {
            Persona::read(BUILT_IN, "built-in").expect("the built-in persona is checked by a test")
        })
    }

    async fn ask_source(&self, digits: &str) -> Option<Persona> {
        if self.config.url.is_empty() {
            return None;
        }
        let copy = self.cache.join(format!("{digits}.json"));
        let read_copy = || {
            std::fs::read_to_string(&copy)
                .ok()
                .and_then(|text| Persona::read(&text, digits).ok())
        };
        let age = std::fs::metadata(&copy)
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        if age.is_some_and(|age| age < Duration::from_secs(self.config.cache_ttl_s))
            && let Some(persona) = read_copy()
        {
            return Some(persona);
        }
        match self.fetch(digits).await {
            Ok(Some((text, persona))) => {
                if let Err(error) = keep_copy(&copy, &text) {
                    warn!(%error, "the fetched persona could not be kept for the next call");
                }
                Some(persona)
            }
            Ok(None) => None,
            Err(error) => {
                let stale = read_copy();
                warn!(%error, stale_copy = stale.is_some(), "persona source failed");
                stale
            }
        }
    }

    /// The source's answer; nothing when it says that it knows no such number.
    async fn fetch(&self, digits: &str) -> Result<Option<(String, Persona)>, PersonaError> {
        let address = self.config.url.replace("{number}", digits);
        let host = url::Url::parse(&address)
            .ok()
            .and_then(|url| {
                url.host_str().map(|host| {
                    url.port()
                        .map_or(host.to_owned(), |port| format!("{host}:{port}"))
                })
            })
            .unwrap_or_else(|| "(not an address)".into());
        let failed = |why: String| PersonaError::Source {
            host: host.clone(),
            why,
        };
        let mut request = self
            .http
            .get(&address)
            .timeout(Duration::from_millis(self.config.timeout_ms));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let mut response = request
            .send()
            .await
            .map_err(|error| failed(reason(error)))?;
        if response.status() == reqwest::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !response.status().is_success() {
            return Err(failed(format!("it answered {}", response.status())));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| failed(reason(error)))?
        {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_PERSONA_BYTES {
                return Err(failed(format!(
                    "it is larger than {MAX_PERSONA_BYTES} bytes"
                )));
            }
        }
        let text = String::from_utf8(body).map_err(|_| failed("it is not UTF-8".into()))?;
        let persona = Persona::read(&text, digits).map_err(failed)?;
        Ok(Some((text, persona)))
    }

    fn read_file(&self, name: &str) -> Option<Persona> {
        let path = self.config.directory.join(format!("{name}.json"));
        let file_error = |why: String| PersonaError::File {
            path: path.display().to_string(),
            why,
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                debug!(path = %path.display(), "no persona file");
                return None;
            }
            Err(error) => {
                warn!(error = %file_error(error.to_string()), "persona skipped");
                return None;
            }
        };
        Persona::read(&text, name)
            .map_err(|why| warn!(error = %file_error(why), "persona skipped"))
            .ok()
    }
}

/// Keeps a fetched persona for the next call. Calls that fetch the same one at the same time
/// replace each other's whole file.
fn keep_copy(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&unfinished, text)?;
    std::fs::rename(&unfinished, path)
}

/// The reason under a client error: without the address, which may hold a number.
fn reason(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time (persona.timeout_ms)".into();
    }
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, extract::Path as UrlPath, http::StatusCode, routing::get};
    use std::sync::{Arc, Mutex};

    #[test]
    fn the_built_in_persona_is_a_persona() {
        let persona = Persona::read(BUILT_IN, "built-in").unwrap();
        assert!(persona.greeting.is_some());
    }

    #[test]
    fn texts_may_lie_in_the_voice_agent_and_stay_out_of_the_record() {
        let text = r#"{"data": {"campaigns": [{"_id": "c1", "client": "k1", "voiceAgents": [{"_id": "v1", "systemPrompt": "You sell."}]}],
                       "egressId": "EG_1", "greeting": "Hello.", "endCallMessage": "Bye."}}"#;
        let persona = Persona::read(text, "5550100").unwrap();
        assert_eq!(persona.instructions, "You sell.");
        assert_eq!(persona.name, "5550100");
        let metadata = persona.campaign_metadata();
        assert_eq!(metadata["egressId"], "EG_1");
        assert_eq!(metadata["campaigns"][0]["_id"], "c1");
        assert_eq!(persona.goodbye.as_deref(), Some("Bye."));
        for text in ["greeting", "endCallMessage"] {
            assert!(!metadata.contains_key(text));
        }
    }

    #[test]
    fn language_tag_of_the_persona_is_read_or_named_as_a_problem() {
        let case =
            include_str!("../../tests/fixtures/cases/language-tag-of-the-persona/persona.json");
        let persona = Persona::read(case, "x").unwrap();
        let language = persona.language.expect("a language");
        assert_eq!(language.to_string(), "hi-IN");
        assert_eq!(language.iso_639_1(), Some("hi"));
        let odd = Persona::read(&case.replace("hi-IN", "Klingon"), "x").unwrap();
        assert_eq!(odd.language, None);
        assert!(odd.language_problem.unwrap().contains("Klingon"));
    }

    #[test]
    fn an_object_without_instructions_is_no_persona() {
        assert!(
            Persona::read(r#"{"name": "x"}"#, "x")
                .unwrap_err()
                .contains("instructions")
        );
        assert!(Persona::read("[]", "x").unwrap_err().contains("object"));
        assert!(Persona::read("{", "x").unwrap_err().contains("JSON"));
    }

    /// A persona source on a socket whose answer the test sets: status and body.
    async fn source(answer: Arc<Mutex<(u16, String)>>) -> String {
        let router = Router::new().route(
            "/persona/{number}",
            get(move |UrlPath(_): UrlPath<String>| {
                let (status, body) = answer.lock().unwrap().clone();
                async move { (StatusCode::from_u16(status).unwrap(), body) }
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}/persona/{{number}}")
    }

    #[tokio::test]
    async fn a_source_that_went_down_leaves_its_last_persona_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let answer = Arc::new(Mutex::new((
            200,
            r#"{"name": "fetched", "instructions": "a"}"#.to_owned(),
        )));
        let config = PersonaConfig {
            url: source(answer.clone()).await,
            cache_ttl_s: 0,
            directory: folder.path().join("personas"),
            ..Default::default()
        };
        let personas = Personas::new(config, reqwest::Client::new(), None, folder.path());
        assert_eq!(personas.find(["+15550100"]).await.name, "fetched");
        *answer.lock().unwrap() = (503, String::new());
        assert_eq!(
            personas.find(["+15550100"]).await.name,
            "fetched",
            "stale copy"
        );
        assert_ne!(
            personas.find(["+15550111"]).await.name,
            "fetched",
            "another number has no copy"
        );
        *answer.lock().unwrap() = (200, "garbage".into());
        assert_eq!(personas.find(["+15550100"]).await.name, "fetched");
    }

    #[tokio::test]
    async fn our_number_is_asked_before_theirs_and_files_serve_when_the_source_knows_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let answer = Arc::new(Mutex::new((404, String::new())));
        let write = |name: &str| {
            std::fs::write(
                folder.path().join(format!("{name}.json")),
                format!(r#"{{"instructions": "i", "name": "{name}"}}"#),
            )
            .unwrap()
        };
        write("15550100");
        write("15550999");
        write("default");
        let config = PersonaConfig {
            url: source(answer).await,
            directory: folder.path().to_owned(),
            ..Default::default()
        };
        let personas = Personas::new(config, reqwest::Client::new(), None, folder.path());
        assert_eq!(
            personas.find(["+15550100", "+15550999"]).await.name,
            "15550100"
        );
        assert_eq!(
            personas.find(["+15550777", "+15550999"]).await.name,
            "15550999"
        );
        assert_eq!(personas.find(["+15550777"]).await.name, "default");
        assert_eq!(personas.find([]).await.name, "default");
    }

    #[tokio::test]
    async fn a_broken_persona_file_costs_no_call() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("15550100.json"), "{").unwrap();
        let config = PersonaConfig {
            directory: folder.path().to_owned(),
            ..Default::default()
        };
        let personas = Personas::new(config, reqwest::Client::new(), None, folder.path());
        assert!(!personas.find(["+15550100"]).await.instructions.is_empty());
    }
}
