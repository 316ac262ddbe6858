//! What the agent says when no model decides it, in the persona's words or at least its language.
//!
//! Each line comes from the first that has it: the persona's own `lines`, the settings for its
//! language, what is built in for its language, the settings for everybody. What is built in goes
//! after a line for everybody that somebody has set. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::config::LinesConfig;
use crate::providers::Language;

/// Lines of one persona or one language; those that are not set are taken from elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OwnLines {
    /// Instead of `voice.lines.still_there`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub still_there: Option<String>,
    /// Instead of `voice.lines.silence_goodbye`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence_goodbye: Option<String>,
    /// Instead of `voice.lines.say_again`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub say_again: Option<String>,
    /// Instead of `voice.lines.apology`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apology: Option<String>,
    /// Instead of `voice.lines.goodbye`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goodbye: Option<String>,
    /// Instead of `call.max_duration_goodbye`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_duration_goodbye: Option<String>,
    /// Instead of `call.reconnected_line`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconnected_line: Option<String>,
    /// Instead of `call.no_media_goodbye`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_media_goodbye: Option<String>,
}

/// The lines that are built in: a language's ISO 639-1 code, then, in the order of [`OwnLines`]
/// and without `silence_goodbye`, its lines.
const BUILT_IN: [(&str, [&str; 7]); 4] = [
    (
        "de",
        [
            "Sind Sie noch da?",
            "Entschuldigung, das habe ich nicht verstanden. Können Sie es noch einmal sagen?",
            "Es tut mir leid, wir haben ein technisches Problem. Wir rufen Sie zurück. Auf Wiederhören.",
            "Danke für Ihren Anruf. Auf Wiederhören.",
            "Es tut mir leid, unsere Zeit ist um. Danke für Ihren Anruf, auf Wiederhören.",
            "Entschuldigung, die Verbindung war unterbrochen. Jetzt bin ich wieder da.",
            "Es tut mir leid, ich kann Sie nicht hören. Bitte rufen Sie noch einmal an. Auf Wiederhören.",
        ],
    ),
    (
        "es",
        [
            "¿Sigue usted ahí?",
            "Perdón, no le he entendido. ¿Puede repetirlo?",
            "Lo siento, tenemos un problema técnico. Le llamaremos de nuevo. Adiós.",
            "Gracias por llamar. Adiós.",
            "Lo siento, se nos ha acabado el tiempo. Gracias por llamar, adiós.",
            "Perdón, se ha cortado la línea. Ya estoy aquí de nuevo.",
            "Lo siento, no le oigo. Por favor, llame otra vez. Adiós.",
        ],
    ),
    (
        "fr",
        [
            "Vous êtes toujours là ?",
            "Pardon, je n'ai pas compris. Pouvez-vous répéter ?",
            "Je suis désolé, nous avons un problème technique. Nous vous rappellerons. Au revoir.",
            "Merci de votre appel. Au revoir.",
            "Je suis désolé, notre temps est écoulé. Merci de votre appel, au revoir.",
            "Pardon, la ligne a été coupée. Je suis de nouveau là.",
            "Je suis désolé, je ne vous entends pas. Rappelez-nous, s'il vous plaît. Au revoir.",
        ],
    ),
    (
        "hi",
        [
            "क्या आप लाइन पर हैं?",
            "माफ़ कीजिए, बात समझ में नहीं आई। क्या आप दोबारा कह सकते हैं?",
            "माफ़ कीजिए, कुछ तकनीकी समस्या है। हम आपको दोबारा फ़ोन करेंगे। नमस्ते।",
            "फ़ोन करने के लिए धन्यवाद। नमस्ते।",
            "माफ़ कीजिए, हमारा समय पूरा हो गया है। फ़ोन करने के लिए धन्यवाद, नमस्ते।",
            "माफ़ कीजिए, लाइन कट गई थी। अब आवाज़ फिर से आ रही है।",
            "माफ़ कीजिए, आपकी आवाज़ नहीं आ रही है। कृपया फिर से फ़ोन कीजिए। नमस्ते।",
        ],
    ),
];

fn built_in(language: &Language) -> Option<OwnLines> {
    let code = language.iso_639_1()?;
    let (_, lines) = BUILT_IN.iter().find(|(known, _)| *known == code)?;
    let [
        still_there,
        say_again,
        apology,
        goodbye,
        max_duration_goodbye,
        reconnected_line,
        no_media_goodbye,
    ] = lines.map(|line| Some(line.to_owned()));
    Some(OwnLines {
        still_there,
        silence_goodbye: None,
        say_again,
        apology,
        goodbye,
        max_duration_goodbye,
        reconnected_line,
        no_media_goodbye,
    })
}

/// The lines for one language in the settings: those for the whole tag go before those for all of
/// the language.
fn configured<'a>(
    languages: &'a BTreeMap<String, OwnLines>,
    language: &Language,
) -> impl Iterator<Item = &'a OwnLines> {
    let of = |wanted: String| {
        languages.iter().find_map(|(key, lines)| {
            let key = Language::read(key).ok()??.to_string();
            (key == wanted).then_some(lines)
        })
    };
    let whole = of(language.to_string());
    let general = language.iso_639_1().map(str::to_owned).and_then(of);
    [whole, general].into_iter().flatten()
}

/// Where one persona's lines come from, the first place first.
pub struct LineSources {
    set: Vec<OwnLines>,
    built_in: OwnLines,
}

impl LineSources {
    /// Of a persona with these lines of its own, in this language.
    pub fn new(config: &LinesConfig, own: &OwnLines, language: Option<&Language>) -> Self {
        let configured = language
            .into_iter()
            .flat_map(|language| configured(&config.languages, language));
        Self {
            set: std::iter::once(own).chain(configured).cloned().collect(),
            built_in: language.and_then(built_in).unwrap_or_default(),
        }
    }

    /// The line that `pick` picks: `general` when there is none for this persona. `english` is the
    /// default of `general`: another text was set by somebody.
    pub fn choose(
        &self,
        pick: fn(&OwnLines) -> &Option<String>,
        general: &str,
        english: &str,
    ) -> String {
        let set = self.set.iter().find_map(|lines| pick(lines).as_deref());
        let built_in = pick(&self.built_in)
            .as_deref()
            .filter(|_| general == english);
        set.or(built_in).unwrap_or(general).to_owned()
    }
}

impl LinesConfig {
    /// The lines of a conversation whose lines come from `sources`.
    pub fn of(&self, sources: &LineSources) -> Self {
        let english = Self::default();
        let choose = |pick, general: &str, english: &str| sources.choose(pick, general, english);
        Self {
            still_there: choose(
                |own| &own.still_there,
                &self.still_there,
                &english.still_there,
            ),
            silence_goodbye: choose(
                |own| &own.silence_goodbye,
                &self.silence_goodbye,
                &english.silence_goodbye,
            ),
            say_again: choose(|own| &own.say_again, &self.say_again, &english.say_again),
            apology: choose(|own| &own.apology, &self.apology, &english.apology),
            goodbye: choose(|own| &own.goodbye, &self.goodbye, &english.goodbye),
            languages: BTreeMap::new(),
        }
    }

    /// Checks for mistakes that a type cannot catch. The error names the key.
    ///
    /// # Errors
    /// When lines are set for a language that is none.
    pub fn check(&self) -> Result<(), String> {
        for key in self.languages.keys() {
            match Language::read(key) {
                Ok(Some(_)) => {}
                Ok(None) => {
                    return Err(format!(
                        "voice.lines.languages.{key}: {key:?} is no language; write a tag such as \"en\", \"en-IN\" or \"hi\""
                    ));
                }
                Err(problem) => return Err(format!("voice.lines.languages.{key}: {problem}")),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(tag: &str) -> Language {
        Language::read(tag).unwrap().unwrap()
    }

    fn apology(text: &str) -> OwnLines {
        OwnLines {
            apology: Some(text.to_owned()),
            ..OwnLines::default()
        }
    }

    #[test]
    fn a_persona_speaks_its_own_lines_and_else_its_language() {
        let languages = [("hi", "hi set"), ("en-IN", "en-IN set")];
        let plain = LinesConfig {
            languages: languages
                .map(|(key, text)| (key.to_owned(), apology(text)))
                .into(),
            ..LinesConfig::default()
        };
        let set = LinesConfig {
            apology: "set for all".into(),
            ..LinesConfig::default()
        };
        let english = LinesConfig::default().apology;
        let german = BUILT_IN[0].1[2];
        for (config, own, tag, expected) in [
            (&plain, apology("own"), Some("hi-IN"), "own"),
            (&plain, OwnLines::default(), Some("hi-IN"), "hi set"),
            (&plain, OwnLines::default(), Some("en-IN"), "en-IN set"),
            (&plain, OwnLines::default(), Some("en-GB"), &*english),
            (&plain, OwnLines::default(), Some("de-AT"), german),
            (&plain, OwnLines::default(), Some("haw"), &*english),
            (&plain, OwnLines::default(), None, &*english),
            // Somebody who has set a line for everybody knows what the personas speak.
            (&set, OwnLines::default(), Some("de"), "set for all"),
        ] {
            let language = tag.map(language);
            let sources = LineSources::new(config, &own, language.as_ref());
            assert_eq!(config.of(&sources).apology, expected, "{tag:?}");
        }
        // What has no line of its own stays as it is.
        let sources = LineSources::new(&plain, &apology("own"), None);
        let lines = plain.of(&sources);
        assert_eq!(lines.goodbye, plain.goodbye);
        assert_eq!(lines.silence_goodbye, "");
    }

    #[test]
    fn what_is_built_in_is_for_languages_that_there_are() {
        for (code, lines) in BUILT_IN {
            assert_eq!(language(code).iso_639_1(), Some(code));
            assert!(lines.iter().all(|line| !line.trim().is_empty()));
        }
    }

    #[test]
    fn lines_for_a_language_that_is_none_are_refused_by_name() {
        for key in ["klingon", "auto"] {
            let config = LinesConfig {
                languages: [(key.to_owned(), OwnLines::default())].into(),
                ..LinesConfig::default()
            };
            let fault = config.check().unwrap_err();
            assert!(fault.contains(&format!("voice.lines.languages.{key}")));
        }
        assert_eq!(LinesConfig::default().check(), Ok(()));
    }
}
