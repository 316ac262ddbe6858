//! Properties of a transcript's words: which they are, their number, whether they are only a
//! backchannel. Pure. What they say about the end of a turn is `turn::completeness`.

/// The words of a text in lower case. Hyphens join ("uh-huh" is "uhhuh", "e-mail" is "email"),
/// apostrophes stay ("don't").
pub fn words(text: &str) -> Vec<String> {
    let joined: String = text
        .chars()
        .filter(|c| *c != '-')
        .map(|c| if c == '’' { '\'' } else { c })
        .collect();
    joined
        .split(|c: char| !is_of_word(c))
        .map(|word| word.trim_matches('\'').to_lowercase())
        .filter(|word| !word.is_empty())
        .collect()
}

/// Letters, digits and what belongs to them: the signs of Indian scripts (without their full stops)
/// and combining marks are not alphanumeric, and would cut words in two.
fn is_of_word(c: char) -> bool {
    let is_mark = matches!(c, '\u{0300}'..='\u{036f}' | '\u{0900}'..='\u{0963}' | '\u{0970}'..='\u{0d7f}' | '\u{200c}' | '\u{200d}');
    c.is_alphanumeric() || c == '\'' || is_mark
}

/// Whether `words` are nothing but some of `phrases`, one after the other, each of one word or
/// more.
pub fn is_phrase(words: &[String], phrases: &[impl AsRef<str>]) -> bool {
    // Whether the words up to each place are phrases.
    let mut reached = vec![false; words.len() + 1];
    reached[0] = true;
    for at in 0..words.len() {
        if !reached[at] {
            continue;
        }
        for phrase in phrases {
            let length = phrase.as_ref().split_whitespace().count();
            if begins_with(&words[at..], phrase.as_ref()) && length > 0 {
                reached[at + length] = true;
            }
        }
    }
    !words.is_empty() && reached[words.len()]
}

fn begins_with(words: &[String], phrase: &str) -> bool {
    let mut words = words.iter();
    phrase
        .split_whitespace()
        .all(|word| words.next().is_some_and(|said| said == word))
}

/// Number of words. In scripts without spaces each letter counts.
pub fn word_count(text: &str) -> usize {
    words(text)
        .iter()
        .map(|word| match word.chars().any(is_unspaced) {
            true => word.chars().count(),
            false => 1,
        })
        .sum()
}

/// Whether `text` is nothing but words and phrases of `backchannels`, which are in lower case.
pub fn is_backchannel(text: &str, backchannels: &[String]) -> bool {
    is_phrase(&words(text), backchannels)
}

/// Whether more words could make a backchannel of `text`: it is the beginning of one, or of one
/// after others.
pub fn may_become_backchannel(text: &str, backchannels: &[String]) -> bool {
    let words = words(text);
    (0..words.len()).any(|from| {
        let (whole, rest) = words.split_at(from);
        (whole.is_empty() || is_phrase(whole, backchannels))
            && backchannels.iter().any(|phrase| {
                let phrase: Vec<&str> = phrase.split_whitespace().collect();
                phrase.len() >= rest.len()
                    && rest.iter().zip(&phrase).all(|(said, word)| said == word)
            })
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
    fn words_are_counted_in_any_script() {
        for (text, expected) in [
            ("", 0),
            ("  ?!", 0),
            ("don't stop", 2),
            ("नमस्ते जी", 2),
            ("अच्छा, ठीक है।", 3),
            ("请等一下", 4),
            ("wait stop", 2),
        ] {
            assert_eq!(word_count(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_backchannel_is_nothing_but_agreement() {
        let known = ["uhhuh", "yeah", "okay", "got it", "ठीक है", "अच्छा"].map(str::to_owned);
        for (text, expected) in [
            ("Uh-huh.", true),
            ("yeah, okay", true),
            ("okay but wait", false),
            ("Okay, got it.", true),
            ("got", false),
            ("it got it", false),
            ("अच्छा, ठीक है।", true),
            ("ठीक नहीं है", false),
            ("", false),
            ("...", false),
        ] {
            assert_eq!(is_backchannel(text, &known), expected, "{text:?}");
        }
        for (text, expected) in [
            ("got", true),
            ("okay got", true),
            ("okay", true),
            ("got me", false),
            ("wait", false),
            ("", false),
        ] {
            assert_eq!(may_become_backchannel(text, &known), expected, "{text:?}");
        }
    }
}
