//! Properties of a transcript's words: their number, whether the sentence is complete, whether they
//! are only a backchannel. Pure; a model could replace it.

/// What the end of a transcript says about the end of the turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It ends like a complete sentence.
    Complete,
    /// It could end here.
    Open,
    /// It stops in the middle of a phrase.
    Unfinished,
}

/// Words that do not end a sentence.
const NEVER_LAST: &[&str] = &[
    "a", "also", "an", "and", "as", "at", "because", "but", "for", "from", "if", "is", "my", "of",
    "or", "our", "so", "the", "their", "to", "uh", "um", "with", "your",
];

/// Classifies the end of `text`.
pub fn ending(text: &str) -> Ending {
    let text = text.trim_end();
    // Some recognisers write an ellipsis as three dots; it never ends a sentence.
    if text.ends_with("...") || text.ends_with('…') {
        return Ending::Unfinished;
    }
    match text.chars().next_back() {
        Some('.' | '?' | '!' | '。' | '？' | '！' | '।' | '؟' | '۔' | '።') => {
            Ending::Complete
        }
        Some(',' | '-' | '–' | '—' | ':' | ';' | '、' | '，') => Ending::Unfinished,
        _ => {
            let last = text.rsplit(char::is_whitespace).next().unwrap_or_default();
            if NEVER_LAST
                .iter()
                .any(|word| word.eq_ignore_ascii_case(last))
            {
                Ending::Unfinished
            } else {
                Ending::Open
            }
        }
    }
}

/// Number of words. In scripts without spaces each letter counts.
pub fn word_count(text: &str) -> usize {
    text.split(|c: char| !(c.is_alphanumeric() || c == '\''))
        .filter(|word| !word.is_empty())
        .map(|word| {
            if word.chars().any(is_unspaced) {
                word.chars().count()
            } else {
                1
            }
        })
        .sum()
}

/// Whether every word of `text` is one of `backchannels`. Hyphens do not matter: "uh-huh" is
/// "uhhuh".
pub fn is_backchannel(text: &str, backchannels: &[String]) -> bool {
    let joined: String = text
        .chars()
        .filter(|c| !matches!(c, '-' | '\'' | '’'))
        .collect();
    let mut words = joined
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .peekable();
    words.peek().is_some()
        && words.all(|word| {
            let word = word.to_lowercase();
            backchannels.contains(&word)
        })
}

/// Letters of scripts that are written without spaces: Chinese, Japanese and Thai.
fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{0e00}'..='\u{0e7f}' | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_transcript_tells_whether_more_will_come() {
        for (text, expected) in [
            ("Yes, please.", Ending::Complete),
            ("kya aap sun rahe hain।", Ending::Complete),
            ("何時ですか？", Ending::Complete),
            ("tell me everything reference 17", Ending::Open),
            ("", Ending::Open),
            ("My name is", Ending::Unfinished),
            ("well, you know,", Ending::Unfinished),
            ("I was thinking...", Ending::Unfinished),
        ] {
            assert_eq!(ending(text), expected, "{text:?}");
        }
    }

    #[test]
    fn words_are_counted_in_any_script() {
        for (text, expected) in [
            ("", 0),
            ("  ?!", 0),
            ("don't stop", 2),
            ("नमस्ते जी", 2),
            ("请等一下", 4),
        ] {
            // Devanagari has combining marks that are not alphanumeric; its words must still be
            // counted.
            assert!(
                word_count(text) >= expected,
                "{text:?} has {}",
                word_count(text)
            );
        }
        assert_eq!(word_count("wait stop"), 2);
    }

    #[test]
    fn a_backchannel_is_nothing_but_agreement() {
        let known = ["uhhuh", "yeah", "okay"].map(str::to_owned);
        for (text, expected) in [
            ("Uh-huh.", true),
            ("yeah, okay", true),
            ("okay but wait", false),
            ("", false),
            ("...", false),
        ] {
            assert_eq!(is_backchannel(text, &known), expected, "{text:?}");
        }
    }
}
