//! The vendors, models and options that a persona names for its own calls.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::llm::ToolChoice;
use super::{Component, LlmVendor, ProvidersConfig, SttVendor, TtsVendor};

/// The most key terms of a persona: vendors refuse long lists.
const MAX_KEY_TERMS: usize = 100;

/// Keys of an entry that say to whom which secret is sent.
const ADDRESSES: [&str; 2] = ["base_url", "api_key_variable"];

/// The vendors and models that a persona may name for its own calls; its voice goes with each
/// request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PersonaModels {
    /// Instead of `providers.stt_model`, or the model of the first entry of `providers.stt`.
    pub stt: Option<String>,
    /// Instead of `providers.llm_model`, likewise.
    pub llm: Option<String>,
    /// Instead of `providers.tts_model`, likewise.
    pub tts: Option<String>,
    /// Instead of `providers.stt`, when there is an entry.
    pub stt_vendors: Vec<SttVendor>,
    /// Instead of `providers.llm`, likewise.
    pub llm_vendors: Vec<LlmVendor>,
    /// Instead of `providers.tts`, likewise.
    pub tts_vendors: Vec<TtsVendor>,
    /// Names and words that are likely to be said, beside those of each recogniser.
    pub key_terms: Vec<String>,
    /// Sampling temperature of every language model.
    pub llm_temperature: Option<f32>,
    /// The longest answer of every language model in tokens.
    pub llm_max_tokens: Option<u32>,
    /// Whether the language models use tools.
    pub llm_tool_choice: Option<ToolChoice>,
}

impl PersonaModels {
    /// What the first of `objects` that has a key says of it: the persona, its campaign, its voice
    /// agent. What is wrong is left out and becomes a sentence in `problems`, with its line in
    /// `text`. Only a persona that `may_name_addresses` may say where a vendor is and which
    /// variable holds its key.
    pub fn read(
        objects: &[&Value],
        text: &str,
        may_name_addresses: bool,
        problems: &mut Vec<String>,
    ) -> Self {
        let find = |keys: &[&str]| {
            objects.iter().find_map(|object| {
                let value = keys.iter().find_map(|key| object.get(*key));
                value.filter(|value| !value.is_null())
            })
        };
        let words = |keys: &[&str]| {
            let words = find(keys).and_then(Value::as_str);
            words
                .filter(|words| !words.trim().is_empty())
                .map(str::to_owned)
        };
        let none = Value::Null;
        let lists = find(&["providers"]).unwrap_or(&none);
        if !lists.is_null() && !lists.is_object() {
            let line = line_of(text, "providers");
            problems.push(format!("its `providers`{line} is no object and not used"));
        }
        if let Some(unknown) = lists.as_object().and_then(|lists| {
            let known = ["stt", "llm", "tts"];
            lists.keys().find(|key| !known.contains(&key.as_str()))
        }) {
            let line = line_of(text, unknown);
            problems.push(format!(
                "unknown key `providers.{unknown}`{line}; known there: stt, llm, tts"
            ));
        }
        let source = Source {
            text,
            may_name_addresses,
        };
        let stt_vendors = source.entries(lists, "stt", problems);
        let llm_vendors = source.entries(lists, "llm", problems);
        let tts_vendors = source.entries(lists, "tts", problems);
        let mut key_terms: Vec<String> = source.value(find(&["key_terms"]), "key_terms", problems);
        if key_terms.len() > MAX_KEY_TERMS {
            problems.push(format!(
                "of its `key_terms` the first {MAX_KEY_TERMS} are used"
            ));
            key_terms.truncate(MAX_KEY_TERMS);
        }
        Self {
            stt: words(&["stt_model", "sttModel"]),
            llm: words(&["llm_model", "llmModel"]),
            tts: words(&["tts_model", "ttsModel"]),
            stt_vendors,
            llm_vendors,
            tts_vendors,
            key_terms,
            llm_temperature: source.value(find(&["llm_temperature"]), "llm_temperature", problems),
            llm_max_tokens: source.value(find(&["llm_max_tokens"]), "llm_max_tokens", problems),
            llm_tool_choice: source.value(find(&["llm_tool_choice"]), "llm_tool_choice", problems),
        }
    }

    /// Whether it names anything for this provider.
    pub(super) fn changes(&self, component: Component) -> bool {
        match component {
            Component::Stt => {
                self.stt.is_some() || !self.stt_vendors.is_empty() || !self.key_terms.is_empty()
            }
            Component::Llm => {
                self.llm.is_some()
                    || !self.llm_vendors.is_empty()
                    || self.llm_temperature.is_some()
                    || self.llm_max_tokens.is_some()
                    || self.llm_tool_choice.is_some()
            }
            Component::Tts => self.tts.is_some() || !self.tts_vendors.is_empty(),
        }
    }
}

/// Where a persona comes from.
struct Source<'a> {
    text: &'a str,
    may_name_addresses: bool,
}

impl Source<'_> {
    fn value<T: DeserializeOwned + Default>(
        &self,
        value: Option<&Value>,
        key: &str,
        problems: &mut Vec<String>,
    ) -> T {
        let read = value.map(T::deserialize);
        read.transpose()
            .map(Option::unwrap_or_default)
            .unwrap_or_else(|error| {
                let line = line_of(self.text, key);
                problems.push(format!("its `{key}`{line} is not used: {error}"));
                T::default()
            })
    }

    /// The entries of one list that can be used.
    fn entries<T: DeserializeOwned>(
        &self,
        lists: &Value,
        kind: &str,
        problems: &mut Vec<String>,
    ) -> Vec<T> {
        let entries = match lists.get(kind) {
            None | Some(Value::Null) => return Vec::new(),
            Some(Value::Array(entries)) => entries,
            Some(_) => {
                let line = line_of(self.text, kind);
                problems.push(format!(
                    "its `providers.{kind}`{line} is no list and not used"
                ));
                return Vec::new();
            }
        };
        let mut usable = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            let address = ADDRESSES.iter().find(|key| entry.get(**key).is_some());
            if let Some(key) = address.filter(|_| !self.may_name_addresses) {
                let line = line_of(self.text, key);
                problems.push(format!(
                    "the entry `providers.{kind}[{at}]` is not used: its key `{key}`{line} is taken from persona files on this machine only, \
                     because it says where a key is sent"
                ));
                continue;
            }
            match T::deserialize(entry) {
                Ok(entry) => usable.push(entry),
                Err(error) => {
                    let error = error.to_string();
                    // serde names the key or the value that it does not know first.
                    let line = match error.split('`').nth(1) {
                        Some(name) => line_of(self.text, name),
                        None => line_of(self.text, kind),
                    };
                    problems.push(format!(
                        "the entry `providers.{kind}[{at}]` is not used{line}: {error}"
                    ));
                }
            }
        }
        usable
    }
}

/// " (line 7)" of the first `word` in quotes; nothing when there is none.
fn line_of(text: &str, word: &str) -> String {
    match text.find(&format!("\"{word}\"")) {
        Some(at) => {
            let line = text[..at].matches('\n').count() + 1;
            format!(" (line {line})")
        }
        None => String::new(),
    }
}

impl ProvidersConfig {
    /// The settings for the calls of a persona with these models, as far as they are about
    /// `component`.
    pub(super) fn for_persona(&self, models: &PersonaModels, component: Component) -> Self {
        let mut config = self.clone();
        match component {
            Component::Stt => {
                take(
                    &mut config.stt_model,
                    &mut config.stt,
                    &models.stt,
                    &models.stt_vendors,
                );
                for entry in &mut config.stt {
                    change(entry, |keys| {
                        if let Some(Value::Array(terms)) = keys.get_mut("key_terms") {
                            for term in &models.key_terms {
                                let term = json!(term);
                                if !terms.contains(&term) {
                                    terms.push(term);
                                }
                            }
                        }
                    });
                }
            }
            Component::Llm => {
                take(
                    &mut config.llm_model,
                    &mut config.llm,
                    &models.llm,
                    &models.llm_vendors,
                );
                config.llm_temperature = models.llm_temperature.or(config.llm_temperature);
                config.llm_max_tokens = models.llm_max_tokens.or(config.llm_max_tokens);
                config.llm_tool_choice = models.llm_tool_choice.unwrap_or(config.llm_tool_choice);
                let options = [
                    ("temperature", json!(models.llm_temperature)),
                    ("max_tokens", json!(models.llm_max_tokens)),
                    ("tool_choice", json!(models.llm_tool_choice)),
                ];
                for entry in &mut config.llm {
                    change(entry, |keys| {
                        for (key, value) in options.iter().filter(|(_, value)| !value.is_null()) {
                            keys.insert((*key).to_owned(), value.clone());
                        }
                    });
                }
            }
            Component::Tts => {
                take(
                    &mut config.tts_model,
                    &mut config.tts,
                    &models.tts,
                    &models.tts_vendors,
                );
            }
        }
        config
    }
}

/// A persona's list goes before the settings'; its model alone is one of their first vendor.
fn take<T: Clone + Serialize + DeserializeOwned>(
    model: &mut String,
    vendors: &mut Vec<T>,
    own_model: &Option<String>,
    own_vendors: &[T],
) {
    if !own_vendors.is_empty() {
        *vendors = own_vendors.to_vec();
    } else if let Some(own) = own_model {
        model.clone_from(own);
        if let Some(first) = vendors.first_mut() {
            change(first, |keys| {
                keys.insert("model".to_owned(), json!(own));
            });
        }
    }
}

/// Changes keys of an entry, whatever its vendor is. Keys that it does not have change nothing.
fn change<T: Serialize + DeserializeOwned>(
    entry: &mut T,
    change: impl FnOnce(&mut Map<String, Value>),
) {
    let Ok(Value::Object(mut keys)) = serde_json::to_value(&*entry) else {
        return;
    };
    change(&mut keys);
    if let Ok(changed) = serde_json::from_value(Value::Object(keys)) {
        *entry = changed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, may_name_addresses: bool) -> (PersonaModels, Vec<String>) {
        let value: Value = serde_json::from_str(text).unwrap();
        let mut problems = Vec::new();
        let models = PersonaModels::read(&[&value], text, may_name_addresses, &mut problems);
        (models, problems)
    }

    const OWN: &str = r#"{
        "providers": {
            "stt": [{ "vendor": "deepgram", "key_terms": ["Acme"] }],
            "llm": [
                { "vendor": "anthropic", "temperature": 0.5 },
                { "vendor": "gemini" }
            ],
            "tts": [{ "vendor": "elevenlabs" }]
        },
        "key_terms": ["Asha Rao", "Acme"],
        "llm_max_tokens": 200,
        "llm_tool_choice": "none"
    }"#;

    #[test]
    fn a_persona_brings_lists_of_vendors_options_and_key_terms() {
        let (models, problems) = read(OWN, false);
        assert_eq!(problems, Vec::<String>::new());
        let usual = ProvidersConfig::default();
        let stt = serde_json::to_value(usual.for_persona(&models, Component::Stt).stt).unwrap();
        assert_eq!(stt[0]["key_terms"], json!(["Acme", "Asha Rao"]));
        let own = usual.for_persona(&models, Component::Llm);
        assert_eq!(own.llm_max_tokens, Some(200));
        let llm = serde_json::to_value(&own.llm).unwrap();
        for (at, vendor, temperature) in [(0, "anthropic", json!(0.5)), (1, "gemini", Value::Null)]
        {
            assert_eq!(llm[at]["vendor"], vendor);
            assert_eq!(llm[at]["temperature"], temperature);
            assert_eq!(llm[at]["max_tokens"], 200);
            assert_eq!(llm[at]["tool_choice"], "none");
        }
        assert_eq!(usual.for_persona(&models, Component::Tts).tts.len(), 1);
        assert!(own.stt.is_empty() && own.tts.is_empty(), "one at a time");
    }

    #[test]
    fn a_model_alone_reaches_the_first_entry_of_the_settings() {
        let (models, _) = read(r#"{"llm_model": "large", "key_terms": ["Asha"]}"#, false);
        let config: ProvidersConfig = serde_json::from_value(json!({
            "stt": [{ "vendor": "openai" }, { "vendor": "assemblyai", "key_terms": ["Acme"] }],
            "llm": [{ "vendor": "gemini" }, { "vendor": "openai", "model": "small" }],
        }))
        .unwrap();
        let own = serde_json::to_value(config.for_persona(&models, Component::Llm)).unwrap();
        assert_eq!(own["llm_model"], "large");
        assert_eq!(
            (&own["llm"][0]["model"], &own["llm"][1]["model"]),
            (&json!("large"), &json!("small"))
        );
        let own = serde_json::to_value(config.for_persona(&models, Component::Stt)).unwrap();
        assert_eq!(own["stt"][1]["key_terms"], json!(["Acme", "Asha"]));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_the_rest_is_used() {
        for (wrong, right, expected) in [
            (
                "\"temperature\": 0.5",
                "\"temprature\": 0.5",
                "`providers.llm[0]` is not used (line 5): unknown field `temprature`",
            ),
            (
                "\"vendor\": \"gemini\"",
                "\"vendor\": \"gemimi\"",
                "`providers.llm[1]` is not used (line 6): unknown variant `gemimi`",
            ),
            (
                "\"tts\": [",
                "\"voice\": [",
                "unknown key `providers.voice` (line 8)",
            ),
            ("200", "\"many\"", "`llm_max_tokens` (line 11) is not used"),
            (
                "\"none\"",
                "\"never\"",
                "`llm_tool_choice` (line 12) is not used",
            ),
        ] {
            let (models, problems) = read(&OWN.replace(wrong, right), false);
            assert!(
                problems.len() == 1 && problems[0].contains(expected),
                "{problems:?}"
            );
            assert_eq!(models.stt_vendors.len(), 1);
            assert!(!models.llm_vendors.is_empty());
        }
        let (models, problems) = read(r#"{"providers": {"llm": 7}, "key_terms": "Acme"}"#, false);
        assert_eq!(models, PersonaModels::default());
        assert_eq!(problems.len(), 2, "{problems:?}");
        let (_, problems) = read(r#"{"providers": []}"#, false);
        assert_eq!(problems.len(), 1, "{problems:?}");
        let terms = json!({ "key_terms": vec!["x"; 2 * MAX_KEY_TERMS] }).to_string();
        let (models, problems) = read(&terms, false);
        assert_eq!((models.key_terms.len(), problems.len()), (MAX_KEY_TERMS, 1));
    }

    #[test]
    fn only_a_file_on_this_machine_says_where_a_key_is_sent() {
        for key in ADDRESSES {
            let text =
                json!({ "providers": { "llm": [{ "vendor": "gemini", key: "x" }] } }).to_string();
            let (models, problems) = read(&text, false);
            assert!(models.llm_vendors.is_empty());
            assert!(problems[0].contains(key), "{problems:?}");
            let (models, problems) = read(&text, true);
            assert_eq!((models.llm_vendors.len(), problems.len()), (1, 0));
        }
    }
}
