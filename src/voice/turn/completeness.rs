//! Whether the caller's words are all that they wanted to say, judged by the words alone.
//!
//! Punctuation counts only against an end. Recognisers that hear one stretch at a time put a full
//! stop behind every fragment: of 60 telephone prompts cut in mid sentence, Whisper returns 42 as
//! whole sentences. Only one that listens on over the pause knows what its full stop means.
//!
//! English and Hindi (in both scripts) have rules about sentences. In other languages the words
//! that cannot be the last ones are known, and the answers that are whole by themselves. Pure; a
//! model could replace it.

use super::asked::Asked;
use crate::voice::wording::{is_phrase, words};

/// What the words say about the end of the turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Completeness {
    /// They are a whole answer or sentence.
    Complete,
    /// They could end here.
    Open,
    /// They are part of something that is said in pieces: a number, an address, a list.
    Dictation,
    /// They stop in the middle of a phrase.
    Unfinished,
}

/// What the recogniser does with punctuation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Punctuation {
    /// It hears one stretch at a time and ends each of them like a sentence.
    Fragment,
    /// It listens on over pauses, so that its full stop means one.
    Streamed,
}

/// Classifies `text`, which answers a question of this kind.
pub(super) fn completeness(text: &str, asked: Asked, punctuation: Punctuation) -> Completeness {
    let text = text.trim_end();
    let tokens = words(text);
    let Some(last) = tokens.last().map(String::as_str) else {
        return Completeness::Open;
    };
    if text.ends_with("...") || text.ends_with('…') {
        return Completeness::Unfinished;
    }
    let goes_on = text.ends_with([',', '-', '–', '—', ':', ';', '、', '，']);
    if let Some(dictation) = dictation(text, &tokens, asked) {
        return dictation;
    }
    if is_whole_answer(&tokens, asked) {
        return match goes_on {
            true => Completeness::Open,
            false => Completeness::Complete,
        };
    }
    if goes_on {
        return Completeness::Unfinished;
    }
    let of_words = match Tongue::of(text, &tokens) {
        Tongue::English => english(&tokens, last, asked),
        Tongue::Hindi => hindi(&tokens, last),
        Tongue::Other if OTHER_NEVER_LAST.contains(&last) => Completeness::Unfinished,
        Tongue::Other => Completeness::Open,
    };
    let is_marked = text.ends_with(['.', '?', '!', '。', '？', '！', '।', '؟', '۔', '።']);
    match (of_words, punctuation) {
        (Completeness::Open, Punctuation::Streamed) if is_marked => Completeness::Complete,
        (of_words, _) => of_words,
    }
}

/// Languages with rules of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tongue {
    English,
    Hindi,
    Other,
}

impl Tongue {
    fn of(text: &str, tokens: &[String]) -> Self {
        if text.chars().any(is_devanagari) {
            return Self::Hindi;
        }
        let count = |list: &[&str]| {
            let known = |word: &&String| list.contains(&word.as_str());
            tokens.iter().filter(known).count()
        };
        let hindi = count(HINDI_COMMON);
        if hindi > 0 && hindi >= count(ENGLISH_COMMON) {
            return Self::Hindi;
        }
        if text.is_ascii() && count(ENGLISH_COMMON) >= count(OTHER_COMMON) {
            return Self::English;
        }
        Self::Other
    }
}

fn is_devanagari(c: char) -> bool {
    matches!(c, '\u{0900}'..='\u{097f}')
}

fn one_of(word: &str, list: &[&str]) -> bool {
    list.contains(&word)
}

// ---- answers that are whole by themselves ----

const YES_NO: &[&str] = &[
    "yes",
    "yeah",
    "yep",
    "yup",
    "no",
    "nope",
    "nah",
    "sure",
    "correct",
    "right",
    "exactly",
    "absolutely",
    "definitely",
    "haan",
    "han",
    "haanji",
    "ji",
    "nahi",
    "nahin",
    "bilkul",
    "sahi",
    "हाँ",
    "हां",
    "जी",
    "नहीं",
    "नही",
    "बिल्कुल",
    "बिलकुल",
    "सही",
    "sí",
    "si",
    "oui",
    "non",
    "ja",
    "nein",
    "да",
    "нет",
    "sì",
    "sim",
    "não",
];

const WHOLE: &[&str] = &[
    "i understand",
    "understood",
    "got it",
    "makes sense",
    "that makes sense",
    "great",
    "go on",
    "perfect",
    "good",
    "wonderful",
    "okay",
    "ok",
    "fine",
    "thanks",
    "thank you",
    "thank you very much",
    "thank you so much",
    "that's all",
    "that is all",
    "that's it",
    "that is it",
    "nothing else",
    "that's everything",
    "no problem",
    "never mind",
    "goodbye",
    "bye",
    "bye bye",
    "hello",
    "hi",
    "good morning",
    "good afternoon",
    "good evening",
    "of course",
    "i agree",
    "i do",
    "i don't",
    "i am",
    "i'm not",
    "it is",
    "it's not",
    "that's right",
    "that's correct",
    "that is correct",
    "that's fine",
    "that's good",
    "not really",
    "i don't know",
    "i do not know",
    "no idea",
    "go ahead",
    "not yet",
    "of course not",
    "please",
    "please do",
    "all good",
    "sounds good",
    "i think so",
    "i guess so",
    "maybe",
    "yes please",
    "no thank you",
    "no thanks",
    "can you hear me",
    "i see",
    "theek hai",
    "thik hai",
    "theek",
    "accha",
    "achha",
    "acha",
    "bas",
    "dhanyavaad",
    "dhanyavad",
    "shukriya",
    "namaste",
    "haan ji",
    "ji haan",
    "ji nahi",
    "koi baat nahi",
    "pata nahi",
    "mujhe nahi pata",
    "aur kuch nahi",
    "bas itna hi",
    "ठीक है",
    "ठीक",
    "अच्छा",
    "बस",
    "धन्यवाद",
    "शुक्रिया",
    "नमस्ते",
    "हाँ जी",
    "जी हाँ",
    "जी हां",
    "जी नहीं",
    "कोई बात नहीं",
    "पता नहीं",
    "और कुछ नहीं",
    "gracias",
    "merci",
    "danke",
    "grazie",
    "obrigado",
    "vale",
    "claro",
    "d'accord",
    "genau",
    "спасибо",
    "хорошо",
];

fn is_whole_answer(tokens: &[String], asked: Asked) -> bool {
    let only_yes_no = tokens.iter().all(|word| one_of(word, YES_NO));
    if only_yes_no {
        // "Yes …" to an open question is a beginning.
        return asked == Asked::YesOrNo
            || tokens.len() > 1
            || one_of(&tokens[0], &["no", "nope", "nahi", "नहीं"]);
    }
    let rest: Vec<String> = tokens
        .iter()
        .skip_while(|word| one_of(word, YES_NO))
        .cloned()
        .collect();
    is_phrase(tokens, WHOLE)
        || (!rest.is_empty() && is_phrase(&rest, WHOLE)) && rest != ["please"]
        || rest == ["please"] && rest.len() < tokens.len()
}

// ---- dictation ----

/// Digits that these words stand for; zero when they are none.
fn digits_in(tokens: &[String]) -> Option<usize> {
    const UNITS: &[&str] = &[
        "zero",
        "oh",
        "o",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "shunya",
        "ek",
        "do",
        "teen",
        "tin",
        "char",
        "chaar",
        "paanch",
        "panch",
        "chhah",
        "chhe",
        "cheh",
        "chah",
        "saat",
        "sat",
        "aath",
        "ath",
        "nau",
        "no",
        "शून्य",
        "एक",
        "दो",
        "तीन",
        "चार",
        "पाँच",
        "पांच",
        "छह",
        "छः",
        "छे",
        "सात",
        "आठ",
        "नौ",
        "ज़ीरो",
        "जीरो",
    ];
    const TEENS: &[&str] = &[
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: &[&str] = &[
        "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    ];
    let (mut digits, mut repeat, mut open_ten) = (0, 1, false);
    for token in tokens {
        let token = token.as_str();
        let number = token.chars().filter(char::is_ascii_digit).count();
        let devanagari = token
            .chars()
            .filter(|c| matches!(c, '\u{0966}'..='\u{096f}'))
            .count();
        let found = if number > 0 && number == token.chars().count() {
            number
        } else if devanagari > 0 && devanagari == token.chars().count() {
            devanagari
        } else if one_of(token, UNITS) {
            // "Ninety eight" are two digits, not three.
            usize::from(!std::mem::take(&mut open_ten))
        } else if one_of(token, TEENS) {
            2
        } else if one_of(token, TENS) {
            open_ten = true;
            digits += 2 * repeat;
            repeat = 1;
            continue;
        } else if one_of(token, &["double", "डबल"]) {
            repeat = 2;
            continue;
        } else if one_of(token, &["triple", "ट्रिपल"]) {
            repeat = 3;
            continue;
        } else if one_of(token, &["plus", "hundred", "thousand", "and"]) {
            continue;
        } else {
            return None;
        };
        open_ten = false;
        digits += found * repeat;
        repeat = 1;
    }
    Some(digits)
}

/// How many of the last words are digits, and how many digits they are.
fn digit_tail(tokens: &[String]) -> (usize, usize) {
    let mut best = (0, 0);
    for from in (0..tokens.len()).rev() {
        match digits_in(&tokens[from..]) {
            Some(0) | None if tokens.len() - from > 1 && best.0 == 0 => break,
            Some(digits) => best = (tokens.len() - from, digits),
            None => break,
        }
    }
    best
}

const TOP_DOMAINS: &[&str] = &[
    "com",
    "in",
    "org",
    "net",
    "edu",
    "uk",
    "de",
    "fr",
    "es",
    "it",
    "us",
    "io",
    "au",
    "ca",
    "कॉम",
];

/// The completeness of what is said in pieces; None when it is not.
fn dictation(text: &str, tokens: &[String], asked: Asked) -> Option<Completeness> {
    let last = tokens.last()?.as_str();
    if one_of(last, &["double", "triple", "plus", "डबल"]) && asked != Asked::Anything {
        return Some(Completeness::Unfinished);
    }
    if let Some(email) = email(text, tokens, asked) {
        return Some(email);
    }
    if let Some(letters) = spelling(tokens, asked) {
        return Some(letters);
    }
    let (digit_words, digits) = digit_tail(tokens);
    let names_a_number = tokens.iter().any(|word| {
        one_of(
            word,
            &[
                "number",
                "code",
                "account",
                "pin",
                "नंबर",
                "phone",
                "mobile",
                "card",
                "reference",
            ],
        )
    });
    match asked {
        Asked::Phone if digits > 0 => {
            let is_whole = match digits {
                10 => !text.contains('+') && tokens.iter().all(|word| word != "plus"),
                11..=14 => true,
                _ => false,
            };
            return Some(match is_whole {
                true => Completeness::Complete,
                // Local numbers of seven or eight digits exist.
                false if matches!(digits, 7 | 8) && digit_words > 1 => Completeness::Dictation,
                false => Completeness::Unfinished,
            });
        }
        Asked::Code if digits > 0 => {
            let wanted = tokens.iter().any(|word| word == "digit");
            return Some(match digits {
                6 if !wanted => Completeness::Complete,
                4 | 5 | 8 => Completeness::Dictation,
                6 => Completeness::Complete,
                1..=3 => Completeness::Unfinished,
                _ => Completeness::Complete,
            });
        }
        Asked::Number if digits > 0 => return Some(Completeness::Dictation),
        Asked::Address => {
            return Some(match (digits, tokens.len()) {
                // A postal code is the last thing.
                (5 | 6, 4..) => Completeness::Complete,
                _ if never_last(last) => Completeness::Unfinished,
                _ => Completeness::Dictation,
            });
        }
        Asked::Date => return date(tokens, last, digits),
        _ => {}
    }
    if digits >= 10 {
        return Some(Completeness::Complete);
    }
    if digits > 0
        && (digit_words >= 3 || names_a_number && digit_words >= 1 && tokens.len() > digit_words)
    {
        return Some(Completeness::Dictation);
    }
    None
}

fn email(text: &str, tokens: &[String], asked: Asked) -> Option<Completeness> {
    let has = |list: &[&str]| tokens.iter().any(|word| one_of(word, list));
    let is_email = text.contains('@')
        || asked == Asked::Email
        || has(&["gmail", "yahoo", "hotmail", "outlook", "जीमेल", "underscore"])
        || tokens.windows(2).any(|two| two == ["at", "the"]) && has(&["rate", "dot"]);
    if !is_email {
        return None;
    }
    if is_followed(text) {
        return None;
    }
    let trimmed = text.trim_end_matches(['.', '?', '!', '।']).to_lowercase();
    let last = tokens.last()?.as_str();
    if one_of(
        last,
        &[
            "at",
            "dot",
            "rate",
            "the",
            "underscore",
            "dash",
            "hyphen",
            "is",
            "and",
            "it's",
            "डॉट",
            "रेट",
            "@",
        ],
    ) || trimmed.ends_with('@')
    {
        return Some(Completeness::Unfinished);
    }
    let has_at = text.contains('@') || has(&["at", "ऐट", "एट", "rate", "रेट"]);
    // "dot com", ".com"; and nothing after "co" yet.
    let written = trimmed.rsplit_once('.').is_some_and(|(before, end)| {
        one_of(end.trim(), TOP_DOMAINS) && !before.ends_with(char::is_whitespace)
    });
    let spoken = tokens.len() >= 2
        && one_of(&tokens[tokens.len() - 2], &["dot", "डॉट", "point"])
        && one_of(last, TOP_DOMAINS);
    if has_at && (written || spoken) {
        return Some(Completeness::Complete);
    }
    let is_other = asked == Asked::Email && !has_at && is_whole_answer(tokens, Asked::YesOrNo);
    (!is_other).then_some(if has_at || asked != Asked::Email {
        Completeness::Dictation
    } else {
        // The name without its host.
        Completeness::Unfinished
    })
}

/// Whether a sentence goes on after a written address that is whole: "my mail is a@b.com, and I …".
fn is_followed(text: &str) -> bool {
    let after_at = text.rsplit_once('@').map(|(_, after)| after.trim_start());
    let Some((host, after)) = after_at.and_then(|after| after.split_once(char::is_whitespace))
    else {
        return false;
    };
    let end = host.trim_end_matches([',', '.', ';']).rsplit_once('.');
    end.is_some_and(|(_, end)| one_of(&end.to_lowercase(), TOP_DOMAINS)) && words(after).len() > 1
}

fn is_letter(word: &str) -> bool {
    let mut chars = word.chars();
    matches!((chars.next(), chars.next()), (Some(letter), None) if letter.is_alphabetic())
}

fn spelling(tokens: &[String], asked: Asked) -> Option<Completeness> {
    let letters = tokens
        .iter()
        .rev()
        .take_while(|word| is_letter(word))
        .count();
    let last = tokens.last()?.as_str();
    if asked == Asked::Spelling {
        let is_joined = tokens.len() == 1 && last.chars().count() >= 3;
        return Some(match is_joined {
            // The recogniser has made a word of the letters.
            true => Completeness::Open,
            false if one_of(last, &["for", "as", "in", "double", "is"]) => Completeness::Unfinished,
            false => Completeness::Dictation,
        });
    }
    (letters >= 2 && last != "i").then_some(Completeness::Dictation)
}

const MONTHS: &[&str] = &[
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
    "janvari",
    "farvari",
    "जनवरी",
    "फरवरी",
    "मार्च",
    "अप्रैल",
    "मई",
    "जून",
    "जुलाई",
    "अगस्त",
    "सितंबर",
    "अक्टूबर",
    "नवंबर",
    "दिसंबर",
];

const ORDINALS: &[&str] = &[
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
    "nineteenth",
    "twentieth",
    "thirtieth",
];

fn is_ordinal(word: &str) -> bool {
    one_of(word, ORDINALS)
        || ["st", "nd", "rd", "th"].iter().any(|end| {
            word.strip_suffix(end)
                .is_some_and(|number| number.parse::<u32>().is_ok())
        })
}

fn date(tokens: &[String], last: &str, digits: usize) -> Option<Completeness> {
    let months = tokens.iter().filter(|word| one_of(word, MONTHS)).count();
    let has_day = tokens.iter().any(|word| is_ordinal(word));
    if months > 0 && (digits >= 4 || digits >= 2 && has_day) {
        return Some(Completeness::Complete);
    }
    if is_ordinal(last) || months > 0 && one_of(last, MONTHS) || months > 0 && digits > 0 {
        return Some(Completeness::Dictation);
    }
    if one_of(
        last,
        &[
            "next", "around", "about", "this", "at", "on", "in", "every", "maybe", "agle",
        ],
    ) {
        return Some(Completeness::Unfinished);
    }
    None
}

// ---- English ----

/// Tells English from other languages in Latin letters.
const ENGLISH_COMMON: &[&str] = &[
    "the", "i", "i'm", "i'd", "you", "your", "my", "is", "are", "was", "to", "of", "for", "and",
    "it", "it's", "that", "this", "want", "would", "have", "can", "please", "what", "when",
    "where", "how", "with", "not", "we", "he", "she", "they", "be", "will",
];

/// Articles, determiners, prepositions, conjunctions, auxiliaries, fillers: more follows.
const NEVER_LAST: &[&str] = &[
    "a",
    "an",
    "the",
    "my",
    "your",
    "his",
    "our",
    "their",
    "its",
    "every",
    "each",
    "another",
    "and",
    "or",
    "but",
    "because",
    "cause",
    "if",
    "while",
    "although",
    "unless",
    "until",
    "than",
    "whether",
    "which",
    "whose",
    "as",
    "since",
    "that's",
    "there's",
    "at",
    "by",
    "from",
    "into",
    "of",
    "onto",
    "per",
    "to",
    "toward",
    "towards",
    "upon",
    "with",
    "without",
    "between",
    "during",
    "through",
    "via",
    "for",
    "about",
    "against",
    "under",
    "regarding",
    "concerning",
    "is",
    "are",
    "was",
    "were",
    "am",
    "be",
    "been",
    "being",
    "has",
    "had",
    "would",
    "could",
    "should",
    "may",
    "might",
    "must",
    "shall",
    "will",
    "i'm",
    "i'd",
    "i'll",
    "i've",
    "you're",
    "you'll",
    "you've",
    "we're",
    "we'd",
    "we'll",
    "we've",
    "they're",
    "he's",
    "she's",
    "it's",
    "it'll",
    "what's",
    "who's",
    "isn't",
    "aren't",
    "wasn't",
    "i",
    "he",
    "she",
    "we",
    "they",
    "very",
    "really",
    "quite",
    "so",
    "also",
    "um",
    "uh",
    "er",
    "erm",
    "hmm",
    "mm",
    "well",
    "like",
    "basically",
    "actually",
    "let's",
    "let",
    "some",
    "any",
    "no-one's",
    "mr",
    "mrs",
    "ms",
    "dr",
    "plus",
    "the.",
    "approximately",
    "only",
    "maybe",
    "when",
    "where",
    "followed",
    "wants",
    "want",
    "wanted",
    "need",
    "needs",
    "enter",
    "bring",
    "buy",
    "sell",
    "got",
    "get",
    "give",
    "gives",
    "giving",
    "tell",
    "put",
    "take",
    "taking",
    "make",
    "makes",
    "making",
    "send",
    "sending",
    "sent",
    "find",
    "use",
    "using",
    "including",
    "called",
    "named",
    "other",
    "these",
    "those",
    "both",
    "either",
    "neither",
    "such",
    "whatever",
    "cannot",
    "can",
    "can't",
    "don't",
    "doesn't",
    "didn't",
    "won't",
    "wouldn't",
    "couldn't",
    "shouldn't",
    "trying",
    "going",
    "wondering",
    "looking",
    "calling",
    "supposed",
    "able",
];

/// Words of `NEVER_LAST` that end a question or an answer after others: "what is that for?", "yes I
/// do", "where is it from?".
const STRANDED: &[&str] = &[
    "for",
    "about",
    "from",
    "with",
    "to",
    "at",
    "of",
    "is",
    "are",
    "was",
    "were",
    "am",
    "would",
    "could",
    "should",
    "will",
    "can",
    "can't",
    "don't",
    "doesn't",
    "didn't",
    "won't",
    "isn't",
    "calling",
    "going",
    "looking",
    "wondering",
    "like",
    "well",
    "need",
    "want",
    "called",
    "that's",
    "take",
    "under",
];

/// Verbs of `NEVER_LAST` that a question ends with, whose object stands at its beginning: "what do
/// you sell?".
const ASKED_FOR: &[&str] = &[
    "sell", "buy", "need", "want", "use", "bring", "find", "get", "give", "send", "make", "take",
    "tell", "enter", "put",
];

/// Questions begin with these.
const WH_WORDS: &[&str] = &[
    "what", "what's", "where", "where's", "when", "when's", "who", "who's", "why", "how", "how's",
    "which",
];

const AUXILIARIES: &[&str] = &[
    "is", "are", "was", "were", "do", "does", "did", "can", "could", "will", "would", "should",
    "have", "has", "had", "may", "am",
];

/// Clauses that begin with these need another one.
const SUBORDINATE: &[&str] = &[
    "if", "when", "whenever", "while", "after", "before", "once", "although", "since", "unless",
    "until",
];

/// Who does it.
const SUBJECTS: &[&str] = &[
    "i",
    "i'm",
    "i'd",
    "i'll",
    "i've",
    "you",
    "you're",
    "you'll",
    "we",
    "we're",
    "we'd",
    "we've",
    "we'll",
    "they",
    "they're",
    "he",
    "he's",
    "she",
    "she's",
    "it",
    "it's",
    "that",
    "that's",
    "this",
    "there",
    "there's",
    "nobody",
    "somebody",
    "someone",
    "everything",
    "nothing",
];

/// Verbs that are common on the telephone, beside auxiliaries.
const VERBS: &[&str] = &[
    "want", "need", "like", "think", "know", "hope", "guess", "said", "says", "say", "got", "get",
    "call", "called", "bought", "ordered", "paid", "received", "changed", "works", "work",
    "worked", "stopped", "broke", "broken", "came", "comes", "come", "live", "lives", "moved",
    "lost", "forgot", "tried", "try", "told", "sent", "press", "click", "needs", "wants", "closes",
    "opens", "open", "closed", "leaking", "starts", "started", "happens", "happened", "stolen",
    "arrived", "arrives", "agree", "prefer", "see", "hear", "believe", "heard", "asked", "has",
    "been", "being", "cannot", "can't", "don't", "doesn't", "didn't", "won't",
];

/// Sentences that ask the agent to do something begin with these.
const IMPERATIVES: &[&str] = &[
    "please", "call", "send", "tell", "book", "cancel", "change", "give", "let", "stop", "wait",
    "hold", "connect", "transfer", "press", "enter", "dial", "leave", "hang", "speak", "repeat",
    "say", "check", "put", "make", "take", "remind", "try", "come", "show", "help", "add",
    "remove", "record", "record", "exit", "goodbye", "thank", "welcome",
];

fn never_last(word: &str) -> bool {
    one_of(word, NEVER_LAST)
}

fn english(tokens: &[String], last: &str, asked: Asked) -> Completeness {
    // Fillers before the first word say nothing about the last.
    let start = tokens
        .iter()
        .position(|word| {
            !one_of(
                word,
                &[
                    "um", "uh", "well", "so", "okay", "ok", "hi", "hello", "yes", "yeah", "no",
                    "and", "but", "oh", "sure", "actually", "sorry",
                ],
            )
        })
        .unwrap_or(tokens.len() - 1);
    let tokens = &tokens[start..];
    let first = tokens[0].as_str();
    let second = tokens.get(1).map(String::as_str).unwrap_or_default();
    let is_question = one_of(first, WH_WORDS)
        && (one_of(second, AUXILIARIES) || first.ends_with("'s") || first == "how")
        || one_of(first, AUXILIARIES)
            && (one_of(second, SUBJECTS) || one_of(second, &["the", "your", "my", "my"]));
    if tokens.len() >= 2
        && one_of(last, &["know", "mean", "say"])
        && tokens[tokens.len() - 2] == "you"
    {
        return Completeness::Unfinished;
    }
    if tokens.len() >= 4 && tokens.ends_with(&["tell".to_owned(), "me".to_owned()]) {
        return Completeness::Unfinished;
    }
    if one_of(first, WH_WORDS) && is_question && tokens.len() >= 4 && one_of(last, ASKED_FOR) {
        return Completeness::Complete;
    }
    if never_last(last) {
        let is_stranded = is_question && tokens.len() >= 4 && one_of(last, STRANDED)
            || tokens.len() == 2
                && one_of(first, SUBJECTS)
                && one_of(
                    last,
                    &[
                        "am", "is", "can", "can't", "don't", "will", "would", "was", "did",
                    ],
                )
                && asked == Asked::YesOrNo
            || last == "well" && tokens.len() > 2 && tokens[tokens.len() - 2] == "as";
        return match is_stranded {
            true => Completeness::Open,
            false => Completeness::Unfinished,
        };
    }
    if last == "please" && tokens.len() >= 2 {
        let before = tokens[tokens.len() - 2].as_str();
        return match one_of(before, &["you", "can", "could"]) {
            true => Completeness::Unfinished,
            false => Completeness::Complete,
        };
    }
    match asked {
        Asked::OneName if tokens.len() <= 2 => return Completeness::Complete,
        Asked::Name => return name(tokens, last),
        _ => {}
    }
    if is_question {
        return match tokens.len() {
            0..3 => Completeness::Unfinished,
            _ => Completeness::Complete,
        };
    }
    let clauses = clauses(tokens);
    if one_of(first, SUBORDINATE) {
        return match clauses {
            0 | 1 => Completeness::Unfinished,
            _ => Completeness::Complete,
        };
    }
    if first == "to" || first == "for" && tokens.len() > 4 {
        let main = tokens.iter().skip(2).any(|word| {
            one_of(
                word,
                &["press", "dial", "enter", "call", "say", "please", "hang"],
            )
        });
        return match (main, asked) {
            (true, _) => Completeness::Complete,
            (false, Asked::Anything) => Completeness::Open,
            (false, _) => Completeness::Open,
        };
    }
    if one_of(first, IMPERATIVES) && tokens.len() >= 3 {
        return Completeness::Complete;
    }
    if clauses >= 1 && tokens.len() >= 3 {
        return Completeness::Complete;
    }
    if one_of(first, SUBJECTS) && tokens.len() <= 2 {
        return Completeness::Unfinished;
    }
    Completeness::Open
}

/// How many subjects with a verb behind them there are.
fn clauses(tokens: &[String]) -> usize {
    let contracted = |word: &str| word.contains('\'') && one_of(word, SUBJECTS);
    let is_verb = |word: &str| {
        one_of(word, AUXILIARIES)
            || one_of(word, VERBS)
            || (word.len() > 4 && word.ends_with("ed"))
            || word == "be"
            || word == "must"
    };
    let mut count = 0;
    let mut subject = false;
    for (at, word) in tokens.iter().enumerate() {
        let word = word.as_str();
        let asks = at > 0 && one_of(word, AUXILIARIES) && !one_of(word, &["have", "do"]);
        if contracted(word) || is_verb(word) && (subject || asks) {
            count += 1;
            subject = false;
        } else if one_of(word, SUBJECTS) {
            subject = true;
        } else if one_of(word, &["to", "for", "of", "with", "in", "on", "at"]) {
            subject = false;
        } else if !never_last(word) && at > 0 {
            // A noun can be the subject: "the screen is broken".
            subject = true;
        }
    }
    count
}

fn name(tokens: &[String], last: &str) -> Completeness {
    let said: Vec<&String> = tokens
        .iter()
        .filter(|word| {
            !one_of(
                word,
                &[
                    "my", "name", "is", "it's", "i'm", "this", "full", "am", "i", "speaking",
                    "here", "the",
                ],
            )
        })
        .collect();
    match said.len() {
        0 => Completeness::Unfinished,
        1 if one_of(last, &["speaking", "here"]) => Completeness::Complete,
        1 => Completeness::Open,
        _ => Completeness::Complete,
    }
}

// ---- Hindi ----

/// Tells Hindi in Latin letters from English. Without words that are English too.
const HINDI_COMMON: &[&str] = &[
    "hai", "hain", "hoon", "hun", "mujhe", "mera", "meri", "mere", "aap", "aapka", "aapki",
    "aapke", "nahi", "nahin", "kya", "kab", "kahan", "kaise", "kyun", "kyunki", "aur", "lekin",
    "magar", "agar", "matlab", "haan", "ji", "ka", "ki", "ke", "ko", "se", "mein", "par",
    "chahiye", "karna", "karo", "karo", "kijiye", "dijiye", "bataiye", "bataye", "hum", "tha",
    "thi", "raha", "rahi", "rahe", "kal", "aaj", "abhi", "ek", "yeh", "woh", "wo", "jab", "tab",
    "toh", "bhi", "hi", "wala", "wali", "liye", "apna", "apni", "apne", "maine", "baat", "log",
    "kuch", "koi", "main", "gaya", "gayi", "kar", "ho", "accha", "theek", "bas", "hafte", "shaam",
];

/// What a Hindi sentence does not end with.
const HINDI_NEVER_LAST: &[&str] = &[
    "aur",
    "ya",
    "lekin",
    "magar",
    "par",
    "kyunki",
    "kyonki",
    "ki",
    "agar",
    "jab",
    "jo",
    "toh",
    "to",
    "matlab",
    "yaani",
    "ka",
    "ke",
    "mera",
    "meri",
    "mere",
    "apna",
    "apni",
    "apne",
    "aapka",
    "aapki",
    "aapke",
    "hamara",
    "hamari",
    "ek",
    "mujhe",
    "maine",
    "main",
    "hum",
    "ne",
    "ko",
    "se",
    "liye",
    "woh",
    "wo",
    "yeh",
    "um",
    "uh",
    "bahut",
    "sirf",
    "और",
    "या",
    "लेकिन",
    "मगर",
    "पर",
    "क्योंकि",
    "कि",
    "अगर",
    "जब",
    "जो",
    "तो",
    "मतलब",
    "यानी",
    "का",
    "के",
    "की",
    "मेरा",
    "मेरी",
    "मेरे",
    "अपना",
    "अपनी",
    "अपने",
    "आपका",
    "आपकी",
    "हमारा",
    "एक",
    "मुझे",
    "मैंने",
    "मैं",
    "हम",
    "ने",
    "को",
    "से",
    "लिए",
    "वो",
    "वह",
    "यह",
    "ये",
    "बहुत",
    "सिर्फ",
];

/// What it ends with: a verb.
const HINDI_VERBS: &[&str] = &[
    "hai",
    "hain",
    "hoon",
    "hun",
    "ho",
    "tha",
    "thi",
    "the",
    "chahiye",
    "karna",
    "karo",
    "kariye",
    "kijiye",
    "karein",
    "karen",
    "do",
    "dijiye",
    "dena",
    "lo",
    "lijiye",
    "lena",
    "bataiye",
    "bataye",
    "batao",
    "raha",
    "rahi",
    "rahe",
    "gaya",
    "gayi",
    "gaye",
    "hua",
    "hui",
    "aaya",
    "aayi",
    "aaye",
    "aaunga",
    "aaungi",
    "aayenge",
    "jaunga",
    "honge",
    "hoga",
    "hogi",
    "karunga",
    "karungi",
    "karenge",
    "mila",
    "mili",
    "sakta",
    "sakti",
    "sakte",
    "jaye",
    "nahi",
    "nahin",
    "है",
    "हैं",
    "हूँ",
    "हूं",
    "हो",
    "था",
    "थी",
    "थे",
    "चाहिए",
    "करना",
    "करो",
    "कीजिए",
    "करें",
    "दो",
    "दीजिए",
    "देना",
    "लो",
    "लीजिए",
    "लेना",
    "बताइए",
    "बताओ",
    "रहा",
    "रही",
    "रहे",
    "गया",
    "गई",
    "गए",
    "हुआ",
    "हुई",
    "आया",
    "आई",
    "आए",
    "आऊँगा",
    "होंगे",
    "होगा",
    "होगी",
    "करूँगा",
    "करेंगे",
    "मिला",
    "मिली",
    "सकता",
    "सकती",
    "सकते",
    "जाए",
    "नहीं",
];

fn hindi(tokens: &[String], last: &str) -> Completeness {
    if one_of(last, HINDI_NEVER_LAST) {
        return Completeness::Unfinished;
    }
    let subordinate = ["agar", "jab", "अगर", "जब"].iter().any(|word| {
        tokens[..tokens.len().min(2)]
            .iter()
            .any(|token| token == word)
    }) && !tokens
        .iter()
        .skip(2)
        .any(|word| one_of(word, &["to", "toh", "tab", "तो", "तब"]));
    if subordinate {
        return Completeness::Unfinished;
    }
    // "Chahiye tha", "karna hai": the verb stands at the end.
    if one_of(last, HINDI_VERBS) && tokens.len() >= 2 {
        return Completeness::Complete;
    }
    match tokens.len() {
        // An answer without a verb: "Dilli mein".
        0..=2 => Completeness::Open,
        _ => Completeness::Dictation,
    }
}

// ---- other languages ----

/// Words by which Spanish, French, Italian, German and Portuguese are told from English.
const OTHER_COMMON: &[&str] = &[
    "el", "la", "los", "las", "de", "que", "y", "en", "un", "una", "por", "para", "con", "le",
    "les", "des", "et", "est", "je", "vous", "pour", "il", "di", "che", "e", "per", "sono", "der",
    "die", "das", "und", "ich", "ist", "mein", "meine", "mi", "o", "não", "uma", "eu", "quiero",
    "voudrais", "vorrei", "möchte",
];

/// Their articles, prepositions, conjunctions, possessives and fillers, and the Russian ones.
const OTHER_NEVER_LAST: &[&str] = &[
    "el",
    "la",
    "los",
    "las",
    "un",
    "una",
    "unos",
    "de",
    "del",
    "que",
    "y",
    "o",
    "pero",
    "porque",
    "en",
    "por",
    "para",
    "con",
    "sin",
    "mi",
    "mis",
    "su",
    "sus",
    "si",
    "cuando",
    "este",
    "le",
    "les",
    "une",
    "des",
    "du",
    "et",
    "ou",
    "mais",
    "parce",
    "car",
    "dans",
    "pour",
    "avec",
    "sans",
    "mon",
    "ma",
    "mes",
    "votre",
    "euh",
    "quand",
    "il",
    "lo",
    "gli",
    "uno",
    "di",
    "che",
    "e",
    "ma",
    "perché",
    "per",
    "con",
    "nel",
    "al",
    "alla",
    "mio",
    "mia",
    "der",
    "die",
    "das",
    "ein",
    "eine",
    "einen",
    "und",
    "oder",
    "aber",
    "weil",
    "dass",
    "wenn",
    "mit",
    "für",
    "von",
    "zu",
    "zum",
    "zur",
    "mein",
    "meine",
    "ich",
    "äh",
    "ähm",
    "os",
    "as",
    "um",
    "uma",
    "da",
    "do",
    "dos",
    "mas",
    "em",
    "com",
    "meu",
    "minha",
    "и",
    "или",
    "но",
    "а",
    "что",
    "потому",
    "если",
    "когда",
    "в",
    "на",
    "с",
    "к",
    "для",
    "из",
    "по",
    "мой",
    "моя",
    "мне",
    "я",
    "это",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::voice::turn::asked::asked;

    /// The bench's lines of callers, with a slash for each pause inside the turn.
    const LINES: &str = include_str!("../../../tests/interop/turns/lines.tsv");

    /// What is judged at each pause of each line, the last of which is the end: language, question,
    /// words so far, whether they are all. Each stretch has the full stop of a recogniser that
    /// hears it alone.
    fn pauses() -> Vec<(&'static str, &'static str, String, bool)> {
        let mut pauses = Vec::new();
        for line in LINES.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split('\t').collect();
            let [_, language, question, text] = fields[..] else {
                panic!("{line:?} has {} fields", fields.len());
            };
            let stretches: Vec<String> =
                text.split('/').map(|s| format!("{}.", s.trim())).collect();
            for last in 1..=stretches.len() {
                let so_far = stretches[..last].join(" ");
                pauses.push((language, question, so_far, last == stretches.len()));
            }
        }
        pauses
    }

    #[test]
    fn a_sentence_that_goes_on_after_an_address_is_judged_by_its_own_end() {
        use Completeness::{Complete, Dictation, Open, Unfinished};
        let my = "My e-mail is john.smith@example.com, I work for Acme";
        for (text, expected) in [
            ("My e-mail is john.smith@example.com.", &[Complete][..]),
            ("My e-mail is john.smith@example.", &[Dictation]),
            (my, &[Complete, Open]),
            (
                &format!("{my}, and I am interested in the business plan."),
                &[Complete, Open],
            ),
            (&format!("{my}, and I am interested in the"), &[Unfinished]),
        ] {
            let judged = completeness(text, Asked::Anything, Punctuation::Fragment);
            assert!(expected.contains(&judged), "{text}: {judged:?}");
        }
    }

    #[test]
    fn pauses_of_the_benchs_lines_are_told_from_their_ends() {
        for language in ["en", "hi"] {
            let (mut holds, mut cut_off, mut ends, mut whole) = (0, 0, 0, 0);
            let mut wrong = Vec::new();
            for (_, question, text, is_end) in pauses().iter().filter(|pause| pause.0 == language) {
                let judged = completeness(text, asked(question), Punctuation::Fragment);
                if *is_end {
                    ends += 1;
                    whole += u32::from(judged == Completeness::Complete);
                } else {
                    holds += 1;
                    cut_off += u32::from(judged == Completeness::Complete);
                }
                if *is_end != (judged == Completeness::Complete) {
                    wrong.push(format!("{is_end} {judged:?} {question:?} {text:?}"));
                }
            }
            let wrong = wrong.join("\n");
            let (most_holds, fewest_ends) = match language {
                "en" => (0.10, 0.70),
                _ => (0.04, 0.90),
            };
            assert!(
                f64::from(cut_off) <= most_holds * f64::from(holds)
                    && f64::from(whole) >= fewest_ends * f64::from(ends),
                "{language}: {cut_off} of {holds} pauses are taken for an end, {whole} of {ends} ends are seen\n{wrong}"
            );
        }
    }
}
