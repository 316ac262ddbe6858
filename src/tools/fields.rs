//! Reading arguments that a model wrote: what is missing or wrong becomes a sentence that the model can repair.

use serde_json::{Map, Value};

/// Longest text that a field keeps; longer is a model that has lost its way.
const MAX_TEXT_CHARS: usize = 1000;

/// What models write when they do not know. Saving it would look like knowledge.
const PLACEHOLDERS: [&str; 12] = [
    "unknown",
    "n/a",
    "na",
    "none",
    "null",
    "not provided",
    "not specified",
    "not given",
    "undefined",
    "tbd",
    "-",
    "?",
];

/// Collects the fields of one call and everything that is wrong with them, so that the model hears all of it at once.
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
        if PLACEHOLDERS.contains(&text.to_lowercase().as_str()) {
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

/// Whether a text can be a phone number: 5 to 15 digits (E.164 has at most 15) and the signs people write between them.
pub(super) fn is_phone(text: &str) -> bool {
    let digits = text.chars().filter(char::is_ascii_digit).count();
    (5..=15).contains(&digits)
        && text
            .chars()
            .all(|c| c.is_ascii_digit() || " +-()./x".contains(c))
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
    fn phone_numbers() {
        for good in ["+91 86550 66243", "(030) 123-456", "12345"] {
            assert!(is_phone(good), "{good}");
        }
        for bad in ["", "call me", "1234", "+1234567890123456", "eight six five"] {
            assert!(!is_phone(bad), "{bad}");
        }
    }
}
