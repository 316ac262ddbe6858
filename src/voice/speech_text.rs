//! Converts the model's text to spoken sentences, without markup and emoji. Pure.

use super::markup::Markup;

/// Shorter sentences are joined with the next one: a synthesiser needs some words for a natural
/// intonation.
const MIN_SENTENCE_CHARS: usize = 20;

/// The limit for the first sentence, because the caller waits for it.
const MIN_FIRST_CHARS: usize = 8;

/// The first sentence may be cut at a comma, once this much of it is there.
const FIRST_CLAUSE_CHARS: usize = 45;

/// A sentence without an end is cut at a space.
const MAX_SENTENCE_CHARS: usize = 400;

/// Words that end in a dot without ending a sentence: titles, units of address, Latin and trade.
const ABBREVIATIONS: &[&str] = &[
    "approx", "appt", "apt", "assn", "asst", "attn", "ave", "avg", "blvd", "bzw", "ca", "capt",
    "cf", "co", "col", "corp", "dept", "dott", "dr", "dra", "encl", "esp", "esq", "est", "evtl",
    "excl", "ext", "fig", "gen", "ggf", "gov", "govt", "hon", "hrs", "inc", "incl", "inkl", "jr",
    "lbs", "lt", "ltd", "max", "messrs", "mfg", "mgr", "min", "mins", "misc", "mlle", "mme", "mr",
    "mrs", "ms", "mt", "nos", "nr", "núm", "oz", "pág", "ph", "pp", "prof", "qty", "rd", "rev",
    "sig", "sr", "sra", "srta", "st", "str", "tel", "univ", "vol", "vs",
];

/// Days and months, in the languages that shorten them with a dot. Several of them are words as
/// well, so that they count only with a capital letter, or in a language that writes them small.
const CALENDAR: &[&str] = &[
    "Mon", "Tue", "Tues", "Wed", "Weds", "Thu", "Thur", "Thurs", "Fri", "Sat", "Sun", "Jan", "Feb",
    "Mar", "Apr", "Jun", "Jul", "Aug", "Sep", "Sept", "Oct", "Nov", "Dec", "Mo", "Di", "Mi", "Do",
    "Fr", "Sa", "So", "Mär", "Okt", "Dez", "lun", "mié", "jue", "vie", "sáb", "dom", "mer", "jeu",
    "ven", "sam", "janv", "févr", "avr", "juil", "déc", "gen", "gio",
];

/// Turns a stream of text into spoken sentences.
#[derive(Debug, Default)]
pub struct Speech {
    markup: Markup,
    splitter: SentenceSplitter,
}

impl Speech {
    /// Takes more text and returns the sentences that are complete with it.
    pub fn push(&mut self, more: &str) -> Vec<String> {
        let text = self.markup.push(more);
        self.said(|splitter| splitter.push(&text))
    }

    /// Returns the rest at the end of the text.
    pub fn finish(&mut self) -> Vec<String> {
        let text = self.markup.finish();
        self.said(|splitter| {
            let mut rest = splitter.push(&text);
            rest.extend(splitter.finish());
            rest
        })
    }

    fn said(&mut self, cut: impl FnOnce(&mut SentenceSplitter) -> Vec<String>) -> Vec<String> {
        let sentences = cut(&mut self.splitter);
        sentences
            .iter()
            .map(|sentence| speakable(sentence))
            .filter(|sentence| !sentence.is_empty())
            .collect()
    }
}

/// The whole sentences at the beginning of `text`, which breaks off; empty when there is none.
pub(super) fn up_to_last_sentence(text: &str) -> &str {
    let mut end = 0;
    for (at, c) in text.char_indices() {
        let rest = &text[at + c.len_utf8()..];
        let closed = rest.trim_start_matches(['"', '\'', '”', '’', ')', ']']);
        let is_end = match c {
            '。' | '！' | '？' | '।' | '॥' | '۔' | '؟' => true,
            '.' | '!' | '?' | '…' => {
                (closed.is_empty() || closed.starts_with(char::is_whitespace))
                    && !(c == '.' && is_abbreviation(&text[..at], closed.trim_start()))
            }
            _ => false,
        };
        if is_end {
            end = text.len() - closed.len();
        }
    }
    &text[..end]
}

/// Cuts a stream of text into sentences.
#[derive(Debug, Default)]
pub struct SentenceSplitter {
    text: String,
    /// Bytes of `text` in which no cut was found.
    searched: usize,
    past_first: bool,
}

impl SentenceSplitter {
    /// Takes more text and returns the sentences that are complete with it.
    pub fn push(&mut self, more: &str) -> Vec<String> {
        self.text.push_str(more);
        let mut sentences = Vec::new();
        while let Some(end) = self.find_cut() {
            let rest = self.text.split_off(end);
            let sentence = std::mem::replace(&mut self.text, rest);
            self.searched = 0;
            let sentence = sentence.trim();
            if !sentence.is_empty() {
                self.past_first = true;
                sentences.push(sentence.to_owned());
            }
        }
        sentences
    }

    /// Returns the rest at the end of the text.
    pub fn finish(&mut self) -> Option<String> {
        self.searched = 0;
        let rest = std::mem::take(&mut self.text);
        let rest = rest.trim();
        (!rest.is_empty()).then(|| rest.to_owned())
    }

    /// Where the first sentence ends, in bytes.
    fn find_cut(&mut self) -> Option<usize> {
        let min = if self.past_first {
            MIN_SENTENCE_CHARS
        } else {
            MIN_FIRST_CHARS
        };
        let mut chars = 0;
        let mut last_space = None;
        for (at, c) in self.text.char_indices() {
            chars += 1;
            let end = at + c.len_utf8();
            if c.is_whitespace() && c != '\n' {
                last_space = Some(end);
            }
            if at < self.searched {
                continue;
            }
            let rest = &self.text[end..];
            let cut = match c {
                // A line of its own: a heading, a list entry.
                '\n' => !self.text[..at].trim().is_empty(),
                '。' | '！' | '？' | '।' | '॥' | '۔' | '؟' => {
                    wide_chars(&self.text[..end]) >= min
                }
                '.' | '!' | '?' | '…' => {
                    let closed = rest.trim_start_matches([
                        '"', '\'', '”', '’', ')', ']', '*', '_', '.', '!', '?', '…',
                    ]);
                    // Without a space after it this may be inside a number, a URL or an
                    // abbreviation; the next piece of text decides.
                    closed.starts_with(char::is_whitespace)
                        && chars >= min
                        && !(c == '.' && is_abbreviation(&self.text[..at], closed.trim_start()))
                }
                ',' | ';' | ':' | '—' if !self.past_first => {
                    chars >= FIRST_CLAUSE_CHARS && rest.starts_with(char::is_whitespace)
                }
                '、' | '，' if !self.past_first => {
                    wide_chars(&self.text[..end]) >= FIRST_CLAUSE_CHARS
                }
                _ => false,
            };
            if cut {
                // Quotes and brackets that close here belong to the sentence.
                let closing = rest.len()
                    - rest
                        .trim_start_matches([
                            '"', '\'', '”', '’', ')', ']', '*', '_', '.', '!', '?', '…',
                        ])
                        .len();
                let closing = if c == '\n' || matches!(c, ',' | ';' | ':') {
                    0
                } else {
                    closing
                };
                return Some(end + closing);
            }
            if chars >= MAX_SENTENCE_CHARS {
                return Some(last_space.unwrap_or(end));
            }
        }
        // A dot at the very end has to be read again with what follows it.
        let tail = self
            .text
            .trim_end_matches(|c: char| !c.is_alphanumeric() && !c.is_whitespace())
            .len();
        self.searched = tail;
        None
    }
}

/// Length in Latin letters: a letter of a script without spaces counts as two.
fn wide_chars(text: &str) -> usize {
    text.chars()
        .map(|c| if c >= '\u{2e80}' { 2 } else { 1 })
        .sum()
}

/// Whether the dot after `before` belongs to its last word. `after` is what follows, as far as it
/// is known.
fn is_abbreviation(before: &str, after: &str) -> bool {
    let word = before
        .rsplit(|c: char| c.is_whitespace() || matches!(c, '(' | '"' | '“' | '-' | '–' | '/'))
        .next()
        .unwrap_or_default();
    let mut letters = word.chars();
    match (letters.next(), letters.next()) {
        // An initial, as in "J. Smith"; the pronoun "I" ends sentences.
        (Some(only), None) if only.is_alphabetic() && only != 'I' => return true,
        // "1." at the start of a line is a list; anywhere else a number may end a sentence.
        (Some(first), _) if first.is_ascii_digit() => {
            let is_number = word.chars().all(|c| c.is_ascii_digit());
            return is_number
                && before
                    .trim_end_matches(|c: char| c.is_ascii_digit())
                    .trim()
                    .is_empty();
        }
        _ => {}
    }
    // "No. 5" is a number, "No." an answer; the next character decides.
    if word.eq_ignore_ascii_case("no") {
        return after.is_empty() || after.starts_with(|c: char| c.is_ascii_digit());
    }
    // "e.g.", "a.m.", "U.S.", "Ph.D."
    let mut parts = word.split('.');
    if word.contains('.')
        && parts.all(|part| {
            (1..=2).contains(&part.chars().count()) && part.chars().all(char::is_alphabetic)
        })
    {
        return true;
    }
    CALENDAR.contains(&word) || ABBREVIATIONS.contains(&word.to_lowercase().as_str())
}

/// The spoken form of a sentence: markdown and emoji are removed, links keep their text.
pub fn speakable(sentence: &str) -> String {
    let mut text = sentence.trim();
    // Markdown block marks at the beginning of a line.
    loop {
        let stripped = text.trim_start_matches(['#', '>']).trim_start();
        let stripped = ["- ", "* ", "+ ", "• "]
            .iter()
            .find_map(|mark| stripped.strip_prefix(mark))
            .unwrap_or(stripped)
            .trim_start();
        if stripped.len() == text.len() {
            break;
        }
        text = stripped;
    }
    let mut spoken = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c == '['
            && let Some((label, after)) = rest[1..].split_once("](")
            && let Some((_, after)) = after.split_once(')')
        {
            spoken.push_str(label);
            rest = after;
            continue;
        }
        rest = &rest[c.len_utf8()..];
        let before = spoken.chars().next_back();
        let between_words =
            before.is_some_and(char::is_alphanumeric) && rest.starts_with(char::is_alphanumeric);
        match c {
            '`' => {}
            // Separators of table cells.
            '|' => {
                spoken.truncate(spoken.trim_end().len());
                if !spoken.is_empty() {
                    spoken.push(',');
                }
            }
            // Something was left out before it.
            '.' | ',' if before == Some(' ') && !rest.starts_with(char::is_alphanumeric) => {
                spoken.truncate(spoken.trim_end().len());
                spoken.push(c);
            }
            // "2 * 3" keeps its star, "snake_case" its underscore.
            '*' | '_' | '~' if between_words || (before == Some(' ') && rest.starts_with(' ')) => {
                spoken.push(c)
            }
            '*' | '_' | '~' => {}
            c if is_picture(c) || is_invisible(c) => {}
            c if c.is_whitespace() => {
                if before.is_some_and(|before| before != ' ') {
                    spoken.push(' ');
                }
            }
            c => spoken.push(c),
        }
    }
    let spoken = spoken.trim().to_owned();
    // A line of dashes, a lone smile: nothing to say.
    if spoken.chars().any(char::is_alphanumeric) {
        spoken
    } else {
        String::new()
    }
}

/// Control characters and marks of the writing direction, which some voices read out.
fn is_invisible(c: char) -> bool {
    (c.is_control() && !c.is_whitespace())
        || matches!(c, '\u{ad}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Emoji and the characters that join them.
fn is_picture(c: char) -> bool {
    matches!(c,
        '\u{200d}' | '\u{20e3}' | '\u{2190}'..='\u{21ff}' | '\u{2300}'..='\u{23ff}' | '\u{2500}'..='\u{27bf}'
        | '\u{2900}'..='\u{297f}' | '\u{2b00}'..='\u{2bff}' | '\u{fe00}'..='\u{fe0f}' | '\u{1f000}'..='\u{1faff}'
        | '\u{e0020}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split_by(text: &str, piece: usize) -> Vec<String> {
        let mut splitter = SentenceSplitter::default();
        let chars: Vec<char> = text.chars().collect();
        let mut sentences = Vec::new();
        for piece in chars.chunks(piece) {
            sentences.extend(splitter.push(&piece.iter().collect::<String>()));
        }
        sentences.extend(splitter.finish());
        sentences
    }

    #[test]
    fn sentences_are_found_whatever_the_pieces() {
        let cases: &[(&str, &[&str])] = &[
            (
                "Sure, we are open. We close at five on Sundays. Bye!",
                &["Sure, we are open.", "We close at five on Sundays.", "Bye!"],
            ),
            (
                "Yes. We open at nine and close at five.",
                &["Yes. We open at nine and close at five."],
            ),
            (
                "Ask for Dr. Smith or Mr. J. Doe at 3.30 p.m. on weekdays. Thank you very much.",
                &[
                    "Ask for Dr. Smith or Mr. J. Doe at 3.30 p.m. on weekdays.",
                    "Thank you very much.",
                ],
            ),
            (
                "Write to john.smith@example.com today. It costs 3.50 dollars per month.",
                &[
                    "Write to john.smith@example.com today.",
                    "It costs 3.50 dollars per month.",
                ],
            ),
            (
                "He said \"We are open today.\" Then he left the building.",
                &[
                    "He said \"We are open today.\"",
                    "Then he left the building.",
                ],
            ),
            (
                "Our plans:\n1. The small plan\n2. The large plan",
                &["Our plans:", "1. The small plan", "2. The large plan"],
            ),
            (
                "当店は午前九時に開店します。閉店は午後五時でございます。",
                &[
                    "当店は午前九時に開店します。",
                    "閉店は午後五時でございます。",
                ],
            ),
            (
                "हम सुबह नौ बजे खुलते हैं। शाम पाँच बजे बंद होते हैं।",
                &["हम सुबह नौ बजे खुलते हैं।", "शाम पाँच बजे बंद होते हैं।"],
            ),
            (
                "Really?! That is wonderful news for us... Shall we go on then?",
                &[
                    "Really?!",
                    "That is wonderful news for us...",
                    "Shall we go on then?",
                ],
            ),
        ];
        for (text, expected) in cases {
            for piece in [1, 2, 3, 7, 100] {
                assert_eq!(split_by(text, piece), *expected, "pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_text_that_breaks_off_ends_at_a_sentence() {
        for (text, expected) in [
            ("We open at nine. We close at", "We open at nine."),
            ("We open at nine.", "We open at nine."),
            ("Yes! (We open.) But", "Yes! (We open.)"),
            ("Is it 3.50 or", ""),
            ("Ask for Dr. Smith and", ""),
            ("We open at", ""),
            ("", ""),
            ("हम खुलते हैं। शाम", "हम खुलते हैं।"),
            ("開店します。閉店は", "開店します。"),
        ] {
            assert_eq!(up_to_last_sentence(text), expected, "{text}");
        }
    }

    #[test]
    fn the_first_words_do_not_wait_for_a_long_sentence() {
        let text = "We have three different plans for every kind of customer, and the first of them is small";
        assert_eq!(
            split_by(text, 5)[0],
            "We have three different plans for every kind of customer,"
        );
        let mut splitter = SentenceSplitter::default();
        assert!(
            splitter.push("We open at nine.").is_empty(),
            "the dot may belong to a number"
        );
        assert_eq!(splitter.push(" And"), ["We open at nine."]);
    }

    #[test]
    fn a_text_without_an_end_is_cut_at_a_space() {
        let sentences = split_by(&"word ".repeat(200), 9);
        assert!(
            sentences.len() > 2
                && sentences
                    .iter()
                    .all(|s| s.chars().count() <= MAX_SENTENCE_CHARS && s.ends_with("word"))
        );
    }

    #[test]
    fn only_words_are_spoken() {
        for (written, spoken) in [
            ("**Great** news! 🎉", "Great news!"),
            ("## Our _plans_", "Our plans"),
            ("- the `small` plan", "the small plan"),
            (
                "See [our page](https://example.com/a_b) for more.",
                "See our page for more.",
            ),
            (
                "2 * 3 is 6 and snake_case stays",
                "2 * 3 is 6 and snake_case stays",
            ),
            ("---", ""),
            ("👍🏽", ""),
            ("Café für Jörg, 5 °C", "Café für Jörg, 5 °C"),
        ] {
            assert_eq!(speakable(written), spoken, "{written:?}");
        }
    }

    #[test]
    fn a_dot_that_belongs_to_a_word_does_not_cut_a_sentence() {
        // Only the first sentence is cut at commas.
        let second = |text: &str| split_by(&format!("Hello to you. {text}"), 3)[1].clone();
        for text in [
            "We open at 9 a.m. on Mon. to Fri. only. Come and see us then.",
            "Ask for Messrs. Smith, approx. at noon, e.g. on the 3rd of Sept. please. Bye for now.",
            "Please ring the bell at No. 5, Main St. to the left, next to Acme Corp. and wait. Bye for now.",
            "Wir sind von Mo. bis Fr. ab ca. neun Uhr da, z.B. morgen, bzw. bis Dez. hier. Bis dann also.",
            "The seminar of the Ph.D. students of the U.S. is on Thurs. at nine, vs. noon. Bye for now.",
        ] {
            let end = text[..text.len() - 1].rfind(". ").expect("two sentences") + 1;
            assert_eq!(second(text), text[..end]);
        }
        for (text, expected) in [
            (
                "I am afraid that the answer is no. We close at five.",
                "I am afraid that the answer is no.",
            ),
            (
                "It was so nice that he sat. Then he left the room.",
                "It was so nice that he sat.",
            ),
            (
                "We are happy to enjoy the sun. Come and see us.",
                "We are happy to enjoy the sun.",
            ),
        ] {
            assert_eq!(second(text), expected);
        }
    }

    #[test]
    fn markup_is_not_spoken() {
        let said = |text: &str, piece: usize| {
            let mut speech = Speech::default();
            let chars: Vec<char> = text.chars().collect();
            let mut sentences: Vec<String> = chars
                .chunks(piece)
                .flat_map(|piece| speech.push(&piece.iter().collect::<String>()))
                .collect();
            sentences.extend(speech.finish());
            sentences
        };
        let case = |name: &str| {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/fixtures/cases/markup-spoken")
                .join(name);
            std::fs::read_to_string(path).expect("the case is there")
        };
        for piece in [1, 3, 1_000] {
            assert_eq!(
                said(&case("text.md"), piece),
                [
                    "Great news!",
                    "Our plans:",
                    "Plan, Price",
                    "Small, 20",
                    "1. First one",
                    "2. Second one",
                    "See here",
                    "and."
                ]
            );
            assert_eq!(
                said(&case("ssml.txt"), piece).concat(),
                "Hello there, this is important news for you."
            );
            assert_eq!(
                said("Plan | Price\n--- | ---\nSmall | 20", piece),
                ["Plan, Price", "Small, 20"]
            );
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_is_made_up(text in "[a-zA-Z .,!?。\n…)\"1-9é]{0,200}", piece in 1usize..20) {
            let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(bare(&split_by(&text, piece).concat()), bare(&text));
        }
    }
}
