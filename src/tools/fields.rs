//! Reading arguments that a model wrote: what is missing or wrong becomes a sentence that the model
//! can repair.

use serde_json::{Map, Value};

/// Longest text that a field keeps; longer is a model that rambles.
const MAX_TEXT_CHARS: usize = 1000;

/// What models write when they do not know. Saving it would look like knowledge.
const PLACEHOLDERS: [&str; 14] = [
    "unknown",
    "n/a",
    "na",
    "n.a",
    "none",
    "none given",
    "nil",
    "null",
    "unspecified",
    "undefined",
    "anonymous",
    "tbd",
    "xxx",
    "to be determined",
];

/// Placeholders that people are called, too.
const ALSO_NAMES: [&str; 5] = ["na", "nil", "none", "null", "tbd"];

/// "Not" and one of these, perhaps with "yet" or "by the caller" after it, is a placeholder.
const NOT_KNOWN: [&str; 16] = [
    "applicable",
    "asked",
    "available",
    "collected",
    "disclosed",
    "discussed",
    "given",
    "known",
    "mentioned",
    "provided",
    "relevant",
    "said",
    "shared",
    "specified",
    "stated",
    "sure",
];

/// The longest placeholder in words: "not provided by the caller".
const PLACEHOLDER_WORDS: usize = 5;

/// First parts of e-mail addresses that only say that there is none, without the signs between
/// their words; placeholders are others.
const NO_ADDRESS: [&str; 7] = [
    "noemail",
    "notapplicable",
    "notavailable",
    "notgiven",
    "notmentioned",
    "notprovided",
    "placeholder",
];

/// First parts that are somebody's, unless they come with a made-up domain: `name@example.com` is
/// how addresses are explained.
const PERHAPS_MADE_UP: [&str; 3] = ["email", "name", "user"];

/// Domains, up to their first dot, that nobody has an address in.
const MADE_UP_DOMAINS: [&str; 8] = [
    "domain", "email", "example", "na", "nil", "none", "null", "unknown",
];

/// Collects the fields of one call and everything that is wrong with them, so that the model hears
/// all of it at once.
pub(super) struct Fields<'a> {
    arguments: &'a Map<String, Value>,
    problems: Vec<String>,
}

impl<'a> Fields<'a> {
    pub(super) fn of(arguments: &'a Map<String, Value>) -> Self {
        Self {
            arguments,
            problems: Vec::new(),
        }
    }

    /// A text that must be there. Empty when it is not; [`Fields::problems`] then says so.
    pub(super) fn required(&mut self, name: &str, ask_for: &str) -> String {
        let text = self.optional(name);
        self.missing_if_empty(name, ask_for, text)
    }

    /// As `required`, for a person's name: people are called Na and Null.
    pub(super) fn required_name(&mut self, name: &str, ask_for: &str) -> String {
        let text = self.text(name);
        let text = match is_placeholder(&text) && !is_also_a_name(&text) {
            true => String::new(),
            false => text,
        };
        self.missing_if_empty(name, ask_for, text)
    }

    fn missing_if_empty(&mut self, name: &str, ask_for: &str, text: String) -> String {
        if text.is_empty()
            && !self
                .problems
                .iter()
                .any(|problem| problem.starts_with(&format!("{name} ")))
        {
            self.problems
                .push(format!("{name} is missing: ask the caller for {ask_for}"));
        }
        text
    }

    /// A text that may be there. Empty when it is not, or when it only says that it is not known.
    pub(super) fn optional(&mut self, name: &str) -> String {
        let text = self.text(name);
        match is_placeholder(&text) {
            true => String::new(),
            false => text,
        }
    }

    fn text(&mut self, name: &str) -> String {
        let text = match self.arguments.get(name) {
            None | Some(Value::Null) => return String::new(),
            Some(Value::String(text)) => text.trim().to_owned(),
            Some(Value::Number(number)) => number.to_string(),
            Some(_) => {
                self.problems.push(format!("{name} must be a text"));
                return String::new();
            }
        };
        if text.chars().count() > MAX_TEXT_CHARS {
            self.problems.push(format!(
                "{name} is longer than {MAX_TEXT_CHARS} characters: give a short text"
            ));
            return String::new();
        }
        text
    }

    pub(super) fn problem(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    /// Everything that is wrong, in one text; `None` when nothing is.
    pub(super) fn problems(self) -> Option<String> {
        (!self.problems.is_empty()).then(|| self.problems.join("; "))
    }
}

/// Whether a text has the form `name@example.com`. Whether mail arrives there, only mail can tell.
pub(super) fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else {
        return false;
    };
    let plain = |c: char| {
        !c.is_whitespace()
            && !c.is_control()
            && !matches!(c, '@' | ',' | ';' | '<' | '>' | '"' | '(' | ')')
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_alphanumeric() || c == '-')
    };
    !local.is_empty()
        && text.len() <= 254
        && local.chars().all(plain)
        && !local.starts_with('.')
        && !local.ends_with('.')
        && domain.contains('.')
        && domain.split('.').all(label)
}

/// Whether a text only says that nothing is known. An e-mail address does so when its first part
/// does: `unknown@example.com`.
fn is_placeholder(text: &str) -> bool {
    if let Some((local, domain)) = text.split_once('@') {
        let local: String = local.chars().filter(|c| c.is_alphanumeric()).collect();
        let local = local.to_lowercase();
        let local = local.as_str();
        let domain = domain.split('.').next().unwrap_or_default().to_lowercase();
        return if ALSO_NAMES.contains(&local) || PERHAPS_MADE_UP.contains(&local) {
            MADE_UP_DOMAINS.contains(&domain.as_str())
        } else {
            PLACEHOLDERS.contains(&local) || NO_ADDRESS.contains(&local)
        };
    }
    let bare = bare(text);
    let words: Vec<&str> = bare.split_whitespace().collect();
    match words[..] {
        // Nothing but signs: "-", "?", "...".
        [] => true,
        ["not", "yet", second, ..] | ["not", second, ..] if words.len() <= PLACEHOLDER_WORDS => {
            NOT_KNOWN.contains(&second)
        }
        _ => PLACEHOLDERS.contains(&words.join(" ").as_str()),
    }
}

fn is_also_a_name(text: &str) -> bool {
    ALSO_NAMES.contains(&bare(text).as_str())
}

/// The text in small letters, without the signs around it.
fn bare(text: &str) -> String {
    // Marks that belong to letters, as in Devanagari, are not alphanumeric, so only what is ASCII
    // is cut away.
    let is_sign = |c: char| c.is_whitespace() || (c.is_ascii() && !c.is_ascii_alphanumeric());
    text.trim_matches(is_sign).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e_mail_addresses() {
        for good in [
            "a@b.co",
            "asha.rao+x@mail.example.co.in",
            "o'neil@example.com",
        ] {
            assert!(is_email(good), "{good}");
        }
        for bad in [
            "",
            "asha",
            "asha at example dot com",
            "a@b",
            "a@@b.co",
            "a b@c.de",
            "a@b..co",
            "@b.co",
            "a@-b.co",
            ".a@b.co",
            "a@b.co,",
        ] {
            assert!(!is_email(bad), "{bad}");
        }
    }

    #[test]
    fn placeholders_are_no_knowledge_except_where_people_are_called_so() {
        for text in [
            "unknown",
            "N/A",
            "N.A.",
            "(not provided)",
            "Not applicable",
            "not mentioned",
            "Not yet known",
            "not provided by the caller",
            "unknown@example.com",
            "not.provided@example.com",
            "N/A@none.com",
            "name@example.com",
            "None@none.com",
            "-",
            "???",
        ] {
            assert!(is_placeholder(text), "{text}");
        }
        for text in [
            "na.li@example.com",
            "na@pumps.example",
            "Notion Labs",
            "Unknown Worlds",
            "none of the above works, call me",
            "not before March",
            "पंप",
            "pumps",
        ] {
            assert!(!is_placeholder(text), "{text}");
        }
        for name in ["Na", "Null", "none", "TBD"] {
            assert!(is_also_a_name(name), "{name}");
        }
        for name in ["Unknown", "n/a", "not provided", "-"] {
            assert!(!is_also_a_name(name), "{name}");
        }
    }
}
