//! What recognisers write when nobody has spoken: marks for sounds, and sentences out of their
//! training. Pure.
//!
//! Marks are taken out of every transcript ([`spoken_words`]). The sentences are things that a
//! caller could say, so that they count as nothing only where something else says that there was no
//! speech: the sound ([`is_made_up`]), or the recogniser's own estimate
//! ([`is_made_up_in_silence`]).

/// Brackets in which no recogniser writes words: `[BLANK_AUDIO]`, `<|nospeech|>`, `【音楽】`.
const MARK_BRACKETS: [(char, char); 4] = [('[', ']'), ('<', '>'), ('【', '】'), ('{', '}')];

/// Brackets in which it writes either: `(coughs)`, but also `(555) 123-4567`.
const OPEN_BRACKETS: [(char, char); 3] = [('(', ')'), ('（', '）'), ('*', '*')];

/// Notes stand around what is sung, and before what is played.
const NOTES: [char; 7] = ['♪', '♫', '♬', '♩', '🎵', '🎶', '🎼'];

/// Beginnings of words that name a sound, in the languages in which recognisers write them.
const SOUNDS: &[&str] = &[
    "applau",
    "audio",
    "background",
    "beep",
    "bell",
    "blank",
    "breath",
    "buzz",
    "chatter",
    "chuckl",
    "clapping",
    "clears",
    "click",
    "cough",
    "crying",
    "dial",
    "engine",
    "exhal",
    "foreign",
    "gasp",
    "giggl",
    "groan",
    "humming",
    "inaudible",
    "indistinct",
    "inhal",
    "laugh",
    "music",
    "noise",
    "pause",
    "phone",
    "ringing",
    "rings",
    "scoff",
    "sigh",
    "silen",
    "singing",
    "sniff",
    "sneez",
    "sound",
    "speak",
    "static",
    "unintelligible",
    "whistl",
    "yawn", // English
    "applaus",
    "atmet",
    "gelächter",
    "geräusch",
    "husten",
    "lach",
    "musik",
    "räuspert",
    "seufz",
    "stille",
    "aplauso",
    "música",
    "musica",
    "ríe",
    "risa",
    "ruido",
    "silencio",
    "tos",
    "applaudiss",
    "bruit",
    "musique",
    "rire",
    "soupir",
    "toux",
    "risate",
    "rumore",
    "музыка",
    "кашель",
    "смех",
    "шум",
    "संगीत",
    "हँस",
    "खाँस",
    "音楽",
    "拍手",
    "笑",
    "音乐",
    "掌声",
    "音樂",
];

/// Sentences that end films, in small letters without signs, up to where they go on differently.
const MADE_UP: &[&str] = &[
    "thank you for watching",
    "thanks for watching",
    "thank you so much for watching",
    "thank you very much for watching",
    "thank you for your viewing",
    "thank you for listening",
    "please subscribe",
    "please like and subscribe",
    "like and subscribe",
    "dont forget to subscribe",
    "dont forget to like",
    "subscribe to my channel",
    "subscribe to the channel",
    "see you in the next video",
    "see you next time",
    "ill see you in the next",
    "subtitles by",
    "subtitled by",
    "captions by",
    "captioning by",
    "transcribed by",
    "transcription by",
    "translated by",
    "amaraorg",
    "copyright",
    "untertitel",
    "vielen dank fürs zuschauen",
    "danke fürs zuschauen",
    "soustitres",
    "merci davoir regardé",
    "merci dêtre là",
    "subtítulos",
    "gracias por ver",
    "sottotitoli",
    "grazie per la visione",
    "legendas",
    "obrigado por assistir",
    "субтитры",
    "спасибо за просмотр",
    "продолжение следует",
    "ご視聴ありがとうございました",
    "チャンネル登録",
    "字幕",
    "请不吝点赞",
    "谢谢观看",
    "시청해주셔서 감사합니다",
    "देखने के लिए धन्यवाद",
];

/// As [`MADE_UP`], but nothing may follow: what Whisper hears in silence, and what people say.
const MADE_UP_ALONE: [&str; 10] = [
    "thank you",
    "thank you very much",
    "thank you so much",
    "thanks",
    "you",
    "bye",
    "bye bye",
    "so",
    "okay",
    "the end",
];

/// The words in a transcript. Empty when it has only marks and signs.
pub fn spoken_words(text: &str) -> String {
    let text = without_songs(text);
    let words = without_brackets(&text);
    // A mark was a word of its own, so that there are spaces around the hole it leaves.
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.chars().any(char::is_alphanumeric) {
        words
    } else {
        String::new()
    }
}

/// Whether a transcript is a sentence that ends films and that no caller says.
pub fn is_made_up(text: &str) -> bool {
    let text = bare(text);
    MADE_UP.iter().any(|start| text.starts_with(start))
}

/// Whether a transcript is what recognisers make up in silence. Callers say some of it, too.
pub fn is_made_up_in_silence(text: &str) -> bool {
    is_made_up(text) || MADE_UP_ALONE.contains(&bare(text).as_str())
}

/// In small letters, without signs, with one space between words.
fn bare(text: &str) -> String {
    let bare: String = text
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || c.is_whitespace() || !c.is_ascii() && !is_sign(*c))
        .collect();
    bare.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Signs of other scripts than ours, among which vowel marks are none.
fn is_sign(c: char) -> bool {
    matches!(c, '\u{2010}'..='\u{206f}' | '\u{3000}'..='\u{303f}' | '\u{ff01}'..='\u{ff1f}' | '।' | '¡' | '¿')
}

/// What stands between two notes is sung, and what follows the last one of an odd number is music
/// too. Notes in a row are one.
fn without_songs(text: &str) -> String {
    let mut spoken = String::new();
    let mut is_sung = false;
    for (at, part) in text.split(NOTES).enumerate() {
        let is_between_notes = at > 0 && part.trim().is_empty();
        if at > 0 && !is_between_notes {
            is_sung = !is_sung;
            spoken.push(' ');
        }
        if !is_sung {
            spoken.push_str(part);
        }
    }
    spoken
}

/// Takes marks out: all that stands in brackets for marks, and in others what names a sound or is
/// all that there is.
fn without_brackets(text: &str) -> String {
    let mut words = String::with_capacity(text.len());
    let mut kept_brackets = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let closing = |pairs: &[(char, char)]| {
            let (_, close) = pairs.iter().find(|(open, _)| *open == c)?;
            let (inside, after) = after.split_once(*close)?;
            Some((inside, after))
        };
        if let Some((_, after)) = closing(&MARK_BRACKETS) {
            words.push(' ');
            rest = after;
        } else if let Some((inside, after)) = closing(&OPEN_BRACKETS) {
            if names_a_sound(inside) {
                words.push(' ');
            } else {
                let from = words.len();
                words.push_str(&rest[..rest.len() - after.len()]);
                kept_brackets.push(from..words.len());
            }
            rest = after;
        } else {
            words.push(c);
            rest = after;
        }
    }
    let mut outside = words.clone();
    for bracket in kept_brackets.iter().rev() {
        outside.replace_range(bracket.clone(), "");
    }
    let has_words = outside.chars().any(char::is_alphanumeric);
    let has_digits = words.chars().any(|c| c.is_numeric());
    if has_words || has_digits {
        words
    } else {
        String::new()
    }
}

fn names_a_sound(text: &str) -> bool {
    !text.chars().any(char::is_numeric)
        && text
            .to_lowercase()
            .split(|c: char| c.is_whitespace() || c.is_ascii_punctuation())
            .any(|word| SOUNDS.iter().any(|sound| word.starts_with(sound)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn marks_for_no_speech_are_no_words() {
        let case = include_str!("../../../tests/fixtures/cases/marks-for-no-speech/texts.json");
        let answers: Vec<Value> = serde_json::from_str(case).unwrap();
        let from_the_case = answers.iter().filter_map(|answer| answer["text"].as_str());
        let others = [
            "",
            " . ",
            "...",
            "…",
            "[ Silence ]",
            "<|nospeech|>",
            "<unk> <noise>",
            "*laughs*",
            "*sigh*.",
            "(Musik)",
            "（音楽）",
            "(хлопает дверь)",
            "[inaudible] (speaking in foreign language)",
            "♪",
            "♪ La la la la",
            "♪ Oh happy day ♪",
            "🎵🎵",
            "- [phone ringing]",
        ];
        let mut seen = 0;
        for text in from_the_case.chain(others) {
            assert_eq!(spoken_words(text), "", "{text:?}");
            seen += 1;
        }
        assert_eq!(seen, 4 + others.len());
    }

    #[test]
    fn words_beside_a_mark_are_kept() {
        for (text, words) in [
            (
                " What are your opening hours? ",
                "What are your opening hours?",
            ),
            ("(coughs) Yes, please.", "Yes, please."),
            ("Yes [laughter] please", "Yes please"),
            ("My number is (555) 123-4567", "My number is (555) 123-4567"),
            ("(555) 123-4567", "(555) 123-4567"),
            ("Springfield (Ohio)", "Springfield (Ohio)"),
            ("<|en|><|NEUTRAL|><|Speech|>hello", "hello"),
            ("हाँ (हँसते हुए) बोलिए।", "हाँ बोलिए।"),
            ("♪ la la ♪ Hello?", "Hello?"),
            ("Hello? ♪♪", "Hello?"),
            ("2 * 3 is 6", "2 * 3 is 6"),
            ("a < b", "a < b"),
            ("नमस्ते", "नमस्ते"),
        ] {
            assert_eq!(spoken_words(text), words, "{text:?}");
        }
    }

    #[test]
    fn sentences_out_of_films_are_known_and_others_are_not() {
        for text in [
            "Thank you for watching!",
            "Thanks for watching, and don't forget to subscribe.",
            " Thank you.",
            "You.",
            "Untertitel der Amara.org-Community",
            "ご視聴ありがとうございました。",
            "देखने के लिए धन्यवाद।",
        ] {
            assert!(is_made_up_in_silence(text), "{text:?}");
            let is_said_by_callers = text.len() < 12;
            assert_eq!(is_made_up(text), !is_said_by_callers, "{text:?}");
        }
        for text in [
            "Thank you, and what does it cost?",
            "You said nine o'clock.",
            "So what now?",
            "No thanks.",
            "धन्यवाद",
        ] {
            assert!(!is_made_up_in_silence(text), "{text:?}");
        }
    }
}
