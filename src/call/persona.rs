//! Who answers this call: finds the persona for a pair of numbers.
//!
//! All numbers are looked up at the same time; our own number's persona counts first, then the
//! other party's, then the default one. Each number is asked of the HTTP source (fresh copy on
//! disk, then the network, then a stale copy) and then of the local folder. A source that is slow
//! or down never costs the call: whoever asks says when to give up on it, and there is always a
//! persona in the end.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures_util::future::FutureExt as _;
use futures_util::stream::{FuturesOrdered, StreamExt as _};
use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::{debug, warn};

use super::config::{AnsweringMachineWish, PersonaConfig};
use crate::providers::{Language, PersonaModels};
use crate::settings::Secret;
use crate::voice::OwnLines;

/// The persona that is built in, for a machine without any persona file.
const BUILT_IN: &str = include_str!("../../config/personas/default.json");
/// The largest persona that is read from anywhere.
const MAX_PERSONA_BYTES: usize = 1024 * 1024;
/// What a source does that was given up.
const TOO_SLOW: &str = "it did not answer in time (persona.timeout_ms)";
/// The longest time that one request to the HTTP source may take, however long the telephone rings.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Long texts that belong to the conversation and are left out of the campaign metadata in the
/// record.
const NOT_FOR_THE_RECORD: [&str; 12] = [
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
    "lines",
];

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
    /// Sentences about what is odd in it and was left out, for whoever wrote it.
    pub problems: Vec<String>,
    /// What it says when no model decides it.
    pub lines: OwnLines,
    /// What it does about machines that answer, in calls that are placed from here.
    pub answering_machine: AnsweringMachineWish,
    /// Voice for speech synthesis.
    pub voice: Option<String>,
    /// Vendors, models and options of its own.
    pub models: PersonaModels,
    /// The whole object as fetched; `campaigns[0]` in it names campaign, voice agent and client.
    pub full: Value,
}

impl Persona {
    /// Reads a persona from elsewhere, which may not say where keys of vendors are sent. `name` is
    /// used when the object has none. The object may be wrapped in `data`.
    ///
    /// # Errors
    /// When it is no JSON object, has no instructions, or a key has a wrong value; a sentence.
    pub fn read(text: &str, name: &str) -> Result<Self, String> {
        Self::read_from(text, name, false)
    }

    /// As [`Self::read`], of a file on this machine, which is trusted like the settings.
    fn read_own(text: &str, name: &str) -> Result<Self, String> {
        Self::read_from(text, name, true)
    }

    fn read_from(text: &str, name: &str, may_name_addresses: bool) -> Result<Self, String> {
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
        let mut problems = Vec::new();
        let language = Language::read(&text_of(&["language"]).unwrap_or_default());
        let language = language.unwrap_or_else(|problem| {
            problems.push(format!("{problem}; speech is recognised without one"));
            None
        });
        let lines = [Some(&value), value.pointer("/campaigns/0"), voice_agent];
        let lines = lines.into_iter().flatten().find_map(|at| at.get("lines"));
        let lines = lines.map_or_else(OwnLines::default, |lines| own_lines(lines, &mut problems));
        let objects = [Some(&value), value.pointer("/campaigns/0"), voice_agent];
        let objects: Vec<&Value> = objects.into_iter().flatten().collect();
        let mut machines = objects.iter().filter_map(|at| at.get("answering_machine"));
        let answering_machine = match machines.next().map(AnsweringMachineWish::read) {
            None => AnsweringMachineWish::default(),
            Some(wish) => wish.unwrap_or_else(|problem| {
                problems.push(format!("its `answering_machine` is not used: {problem}"));
                AnsweringMachineWish::default()
            }),
        };
        let models = PersonaModels::read(&objects, text, may_name_addresses, &mut problems);
        Ok(Self {
            name: value
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or(name)
                .to_owned(),
            instructions,
            greeting: text_of(&["greeting", "firstMessage", "first_message"]),
            goodbye: text_of(&["goodbye", "endCallMessage", "end_call_message"])
                .or_else(|| lines.goodbye.clone()),
            language,
            problems,
            lines,
            answering_machine,
            voice: text_of(&["voice"]),
            models,
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

/// Reads the object `lines` of a persona, line by line: one that is wrong costs no other.
fn own_lines(lines: &Value, problems: &mut Vec<String>) -> OwnLines {
    let Some(lines) = lines.as_object() else {
        problems.push("its `lines` are no JSON object and are not used".into());
        return OwnLines::default();
    };
    let mut usable = Map::new();
    for (key, line) in lines {
        let alone = Map::from_iter([(key.clone(), line.clone())]);
        match OwnLines::deserialize(Value::from(alone)) {
            Ok(_) => {
                usable.insert(key.clone(), line.clone());
            }
            Err(error) => problems.push(format!("the line `lines.{key}` is not used: {error}")),
        }
    }
    OwnLines::deserialize(Value::from(usable)).unwrap_or_default()
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

    /// The persona for a call whose caller waits: the source has `persona.timeout_ms`.
    pub async fn find(&self, numbers: impl IntoIterator<Item = &str>) -> Persona {
        let numbers = numbers.into_iter().map(str::to_owned).collect();
        self.find_until(numbers, tokio::time::sleep(self.config.timeout()))
            .await
    }

    /// The persona for a call, by its numbers in the order in which they count. Never fails: what
    /// is wrong on the way is logged, and the default or the built-in one is taken. When `give_up`
    /// ends, a source that has not answered yet counts as one that is down.
    pub async fn find_until(
        &self,
        numbers: Vec<String>,
        give_up: impl Future<Output = ()>,
    ) -> Persona {
        let persona = self.look_up(&numbers, give_up).await;
        for problem in &persona.problems {
            warn!(persona = persona.name, "{problem}");
        }
        persona
    }

    /// The persona for numbers that have none of their own.
    pub fn default_persona(&self) -> Persona {
        self.read_file(&self.config.default).unwrap_or_else(|| {
            Persona::read(BUILT_IN, "built-in").expect("the built-in persona is checked by a test")
        })
    }

    async fn look_up(&self, numbers: &[String], give_up: impl Future<Output = ()>) -> Persona {
        let give_up = give_up.shared();
        let mut answers = FuturesOrdered::new();
        for number in numbers {
            let digits: String = number.chars().filter(char::is_ascii_digit).collect();
            if !digits.is_empty() {
                answers.push_back(self.of_number(digits, give_up.clone()));
            }
        }
        while let Some(answer) = answers.next().await {
            if let Some(persona) = answer {
                return persona;
            }
        }
        self.default_persona()
    }

    async fn of_number(
        &self,
        digits: String,
        give_up: impl Future<Output = ()>,
    ) -> Option<Persona> {
        match self.ask_source(&digits, give_up).await {
            Some(persona) => Some(persona),
            None => self.read_file(&digits),
        }
    }

    async fn ask_source(&self, digits: &str, give_up: impl Future<Output = ()>) -> Option<Persona> {
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
        let address = self.config.url.replace("{number}", digits);
        let fetched = tokio::select! {
            biased;
            fetched = self.fetch(&address, digits) => fetched,
            () = give_up => Err(source_failed(&address, TOO_SLOW.to_owned())),
        };
        match fetched {
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
    async fn fetch(
        &self,
        address: &str,
        digits: &str,
    ) -> Result<Option<(String, Persona)>, PersonaError> {
        let failed = |why: String| source_failed(address, why);
        let mut request = self.http.get(address).timeout(REQUEST_LIMIT);
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

    /// The persona in the file of this name, if there is one: what a dispatch may ask for.
    pub fn named(&self, name: &str) -> Option<Persona> {
        let is_name = |c: char| c.is_alphanumeric() || "-_ ".contains(c);
        let persona = match !name.is_empty() && name.chars().all(is_name) {
            true => self.read_file(name),
            false => None,
        };
        if persona.is_none() {
            warn!("the dispatch names a persona that has no file; it is looked up by the numbers");
        }
        persona
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
        let mut persona = Persona::read_own(&text, name)
            .map_err(|why| warn!(error = %file_error(why), "persona skipped"))
            .ok()?;
        for problem in &mut persona.problems {
            *problem = format!("{}: {problem}", path.display());
        }
        Some(persona)
    }
}

/// The failure of the source, which is named without its path: there may be a number in it.
fn source_failed(address: &str, why: String) -> PersonaError {
    let host = url::Url::parse(address).ok().and_then(|url| {
        let host = url.host_str()?;
        Some(
            url.port()
                .map_or(host.to_owned(), |port| format!("{host}:{port}")),
        )
    });
    PersonaError::Source {
        host: host.unwrap_or_else(|| "(not an address)".into()),
        why,
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
        return TOO_SLOW.into();
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
        assert!(odd.problems[0].contains("Klingon"));
    }

    #[test]
    fn lines_of_a_persona_are_its_own_and_a_wrong_key_is_named() {
        let text =
            r#"{"instructions": "i", "lines": {"apology": "Pardon.", "silence_goodbye": ""}}"#;
        let persona = Persona::read(text, "x").unwrap();
        assert_eq!(persona.lines.apology.as_deref(), Some("Pardon."));
        assert_eq!(persona.lines.silence_goodbye.as_deref(), Some(""));
        assert_eq!(persona.lines.goodbye, None);
        assert!(!persona.campaign_metadata().contains_key("lines"));
        for wrong in [r#"{"apolgy": "x"}"#, r#"{"apology": 7}"#, r#"["x"]"#] {
            let text = format!(r#"{{"instructions": "i", "lines": {wrong}}}"#);
            let persona = Persona::read(&text, "x").unwrap();
            assert_eq!(persona.lines, OwnLines::default());
            assert!(persona.problems[0].contains("lines"), "{wrong}");
        }
        let text = r#"{"instructions": "i", "lines": {"apolgy": "x", "goodbye": "Bye."}}"#;
        let persona = Persona::read(text, "x").unwrap();
        assert_eq!(persona.goodbye.as_deref(), Some("Bye."));
        assert!(persona.problems[0].contains("lines.apolgy"));
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

    /// A source that answers nobody but `known`.
    async fn silent_source(known: &'static str) -> String {
        let router = Router::new().route(
            "/persona/{number}",
            get(move |UrlPath(number): UrlPath<String>| async move {
                if number != known {
                    std::future::pending::<()>().await;
                }
                format!(r#"{{"name": "{number}", "instructions": "i"}}"#)
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}/persona/{{number}}")
    }

    #[tokio::test]
    async fn numbers_are_looked_up_together_and_a_silent_source_leaves_its_last_persona() {
        let folder = tempfile::tempdir().unwrap();
        let config = PersonaConfig {
            url: silent_source("15550100").await,
            cache_ttl_s: 0,
            directory: folder.path().to_owned(),
            ..Default::default()
        };
        let personas = Personas::new(config, reqwest::Client::new(), None, folder.path());
        let (ours, theirs) = ("+15550100".to_owned(), "+15550999".to_owned());
        let never = std::future::pending::<()>;
        // Our own number counts first, whatever becomes of the other one's.
        let both = vec![ours.clone(), theirs.clone()];
        assert_eq!(personas.find_until(both, never()).await.name, "15550100");

        // Given up at once: nothing is known of theirs; there is a copy of ours.
        let now = std::future::ready;
        let found = personas.find_until(vec![theirs.clone()], now(())).await;
        assert_eq!(found.name, "default", "the built-in persona");
        let found = personas.find_until(vec![theirs, ours], now(())).await;
        assert_eq!(found.name, "15550100", "stale copy");
    }

    #[test]
    fn a_caller_does_not_wait_longer_than_clients_do() {
        let config = |timeout_ms| PersonaConfig {
            timeout_ms,
            ..Default::default()
        };
        assert_eq!(config(15_000).check(), Ok(()));
        let fault = config(20_000).check().unwrap_err();
        assert!(fault.contains("persona.timeout_ms"), "{fault}");
    }

    #[test]
    fn a_persona_may_name_its_own_models() {
        let text = r#"{"instructions": "i", "llm_model": "large", "campaigns": [{"voiceAgents": [{"ttsModel": "warm"}]}]}"#;
        let models = Persona::read(text, "x").unwrap().models;
        assert_eq!(
            (models.stt, models.llm.as_deref(), models.tts.as_deref()),
            (None, Some("large"), Some("warm"))
        );
    }

    #[test]
    fn a_persona_that_is_named_is_the_file_of_that_name_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let config = PersonaConfig {
            directory: folder.path().join("personas"),
            ..Default::default()
        };
        std::fs::create_dir(&config.directory).unwrap();
        let persona = r#"{"instructions": "You sell pumps."}"#;
        std::fs::write(config.directory.join("pumps.json"), persona).unwrap();
        std::fs::write(folder.path().join("secret.json"), persona).unwrap();
        let http = reqwest::Client::new();
        let personas = Personas::new(config, http, None, folder.path());
        let found = personas.named("pumps").expect("it has a file");
        assert_eq!(found.instructions, "You sell pumps.");
        for name in ["", "nobody", "../secret", "..", "pumps.json", "a/b"] {
            assert!(personas.named(name).is_none(), "{name:?}");
        }
    }

    #[tokio::test]
    async fn vendors_of_a_persona_file_are_used_and_a_wrong_key_is_named_with_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("15550100.json");
        let text = "{\"instructions\": \"i\", \"providers\": {\"llm\": [\n  {\"vendor\": \"gemini\", \"base_url\": \"http://x\"},\n  {\"vendor\": \"gemini\", \"modle\": \"x\"}\n]}}";
        std::fs::write(&file, text).unwrap();
        let config = PersonaConfig {
            directory: folder.path().to_owned(),
            ..Default::default()
        };
        let personas = Personas::new(config, reqwest::Client::new(), None, folder.path());
        let persona = personas.find(["+15550100"]).await;
        assert_eq!(persona.models.llm_vendors.len(), 1);
        let [problem] = &persona.problems[..] else {
            panic!("{:?}", persona.problems)
        };
        for part in [file.to_str().unwrap(), "line 3", "modle"] {
            assert!(problem.contains(part), "{problem}");
        }
        // The same from elsewhere names no address.
        let fetched = Persona::read(text, "x").unwrap();
        assert_eq!(fetched.models.llm_vendors.len(), 0);
        assert!(fetched.problems[0].contains("base_url"));
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
