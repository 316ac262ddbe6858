//! What the first words of an answered call tell of who speaks. Pure.
//!
//! A pattern is words in order; `a|b` is one of them, `*` up to six others. Letters are compared
//! without accents and without the dots of Devanagari, which recognisers set or leave out.

use crate::session::AnsweredBy;
use crate::voice::wording;

/// How many words a `*` stands for.
const GAP: usize = 6;

/// Words beyond these are not looked at: who it is, is said at the beginning.
const MAX_WORDS: usize = 150;

/// No message can be left here, and these words say so.
const MAILBOX_FULL: &[&str] = &[
    "mailbox|box|inbox|voicemail|memory * is|was * full",
    "cannot|can't|unable|not * accept|record|take any|new|more|your|a * message|messages",
    "not|hasn't been set up",
    "buzon * lleno",
    "messagerie|boite * pleine",
    "मेलबॉक्स * भरा",
];

/// Only a voicemail says this.
const VOICEMAIL: &[&str] = &[
    "after|at|following the|a tone|beep|signal",
    "hear the|a tone|beep",
    "record your|a message",
    "leave your * message",
    "voice mailbox|messaging|mail",
    "voicemail box|service|system|of|for|greeting",
    "forwarded to * voice|voicemail|answering|automated|automatic",
    "automated|automatic|answering voice|machine|service|system",
    "can't|cannot|unable|not|couldn't * come|get to the phone|telephone",
    "can't|cannot|unable|not|couldn't * take|answer|pick|receive your|the|up|this|my call|phone|calls",
    "missed your|you call",
    "sorry i|we missed",
    "बीप|टोन|सिग्नल के बाद",
    "संदेश|मैसेज|मेसेज * छोड़|छोड़ें|छोड़े|छोड़िए|छोड़िये|रिकॉर्ड",
    "beep|tone ke baad|bad",
    "sandesh|message * chhod|chhoden|chhodein|chhode|chhodiye|chodiye|choden",
    "वॉइसमेल|वॉयसमेल|वॉइस|वॉयस * मेल|संदेश",
    "despues|luego de|del la|el|tono|senal * senal|tono|bip|pitido|mensaje",
    "despues del tono|bip|pitido",
    "deje|deja|grabe|dejar su|tu|un|me mensaje",
    "buzon de voz|mensajes",
    "contestador automatico",
    "apres le|un bip|signal|tonalite",
    "laissez|laisser * message",
    "messagerie|boite vocale",
    "repondeur de|telephonique|automatique",
];

/// A menu, or a machine that asks who calls.
const IVR: &[&str] = &[
    "press|dial|push|enter|touch|hit 0|1|2|3|4|5|6|7|8|9|zero|one|two|three|four|five|six|seven|eight|nine|pound|star|hash|any",
    "press the pound|star|hash|number",
    "for|to * press|dial|push",
    "main menu",
    "menu options|has|have",
    "following|these options|menu",
    "call|calls may|will|is|are|might|could be|being|important * recorded|monitored|answered|important|us|transferred",
    "listen carefully|to the|closely",
    "next available|free",
    "enter|say|spell your|the * number|pin|password|extension|name|code",
    "party's|party extension",
    "state|record|tell your name",
    "in a few words",
    "if you know the|your",
    "दबाएं|दबाए|दबाइए|दबाये|दबायें",
    "dabaye|dabaen|dabaein|dabaiye|dabayen|dabayein",
    "oprima|marque|pulse|presione|digite * uno|dos|tres|cero|numero|1|2|3|0",
    "appuyez|tapez sur|le|1|2|3",
];

/// A voicemail says this, and sometimes a person.
const PERHAPS_VOICEMAIL: &[&str] = &[
    "leave a|me|us|your|detailed|brief * message",
    "leave message|messages|name|number",
    "you've|you have|you reached",
    "voicemail",
    "your name and|number * number|message",
    "reached the office|home|phone|voice",
];

/// The network, or an exchange, says that there is nobody.
const UNAVAILABLE: &[&str] = &[
    "number|person|subscriber|customer|party|user|caller|extension you|that|which|you're|you've * calling|dialed|dialled|called|trying|reach|tried",
    "person|party|user at extension|the",
    "subscriber|customer|extension * available|unavailable|reachable|busy|answering",
    "been disconnected",
    "no longer in|available|connected",
    "not in service",
    "out of|temporarily service|unavailable",
    "is|currently|phone|mobile switched off",
    "out|outside of|the * coverage|network",
    "not reachable",
    "call|number cannot|can't|could be|not * completed|connected|found",
    "check the number",
    "circuits are busy",
    "not accepting calls",
    "is not answering|a",
    "जिस|जिन|जिसे नंबर|नम्बर|व्यक्ति|ग्राहक|उपभोक्ता|को",
    "डायल किया|किए|किये|हुआ",
    "स्विच ऑफ|ऑफ़|आफ",
    "पहुंच|नेटवर्क|कवरेज * बाहर",
    "जिस|यह|इस * नंबर|ग्राहक|उपभोक्ता * उपलब्ध|व्यस्त|बंद",
    "jis|jin number|vyakti|grahak|customer|upbhokta|nambar",
    "number|nambar|phone * switch off",
    "pahunch|network|coverage * bahar",
    "numero|persona|cliente|abonado|telefono que|al|marcado * llamado|marcado|llamar|disponible|apagado|llama|existe",
    "encuentra|esta apagado|fuera",
    "fuera de cobertura|servicio",
    "votre correspondant",
    "numero|abonne que|demande|compose|n'est * demande|compose|attribue|disponible",
];

/// Only a person asks or says this.
const HUMAN: &[&str] = &[
    "would you like|mind|care",
    "do you want|need|have|know",
    "can|may|shall|could|should i take|ask|help|tell|have|know|pass|get|speak",
    "who|who's|whos this|calling|there|speaking|that",
    "who is|are|am this|it|you|calling|speaking|that|i|there",
    "how can|may|could|are i|we|you",
    "what can|do|is|are|was i|you|we|this|it|that",
    "what's this|it|up",
    "where are|did you",
    "can|could|are you hear|repeat|speak|call|say|there|a|tell|calling",
    "wrong number|person|house",
    "not interested",
    "don't|do|stop not? call|calling|need|want",
    "i'm|i am|we're busy|driving|eating|working|sleeping|sorry|listening|fine|good",
    "in a meeting",
    "he|she|they|he's|she's|they're|isn't|mister|mr|mrs|madam|sir|boss|manager * available|here|in|out|home|busy|away|office|back",
    "hold on",
    "one|just|a a|one|moment|second|minute|sec moment|second|minute|sec|please",
    "one|just moment|second|minute|sec",
    "is this|that|it about|a|the|from|for|regarding|an",
    "yes|yeah|yep|ya tell|go|please|what|this|who|speaking",
    "call|try me|again|back|later * later|tomorrow|evening|afternoon|hour|monday",
    "कौन|कहां|कहाँ * बोल|है|हैं|हो|से",
    "बोलिए|बोलिये|बोलो|कहिए|कहिये|बताइए|बताइये|बताओ",
    "वो|वह|वे|साहब|मैडम|सर * नहीं|बाहर|घर|ऑफिस",
    "बाद में",
    "kaun|kahan * bol|hai|ho|hain|se",
    "boliye|bolo|kahiye|bataiye|batao",
    "woh|wo|vo|sahab|madam|sir * nahi|nahin|bahar|ghar",
    "baad me|mein",
    "quien|de habla|es|llama|parte|lo",
    "digame|diga|mande",
    "el|ella no esta|se|puede",
    "qui est|c'est|etes",
    "c'est qui|de",
    "je vous ecoute",
    "il|elle n'est pas|la",
    "a l'appareil",
];

/// A person says this, and sometimes a voicemail.
const PERHAPS_HUMAN: &[&str] = &[
    "speaking",
    "hello hello",
    "hello|hi|yes|haan|हां|हेलो|हैलो who|what|kaun|कौन",
];

/// What people say first, and nothing else, in at most three words.
const HELLO: &[&str] = &[
    "hello",
    "hallo",
    "hi",
    "hey",
    "yes",
    "yeah",
    "yep",
    "speaking",
    "good",
    "morning",
    "evening",
    "afternoon",
    "allo",
    "oui",
    "hola",
    "bueno",
    "diga",
    "digame",
    "si",
    "aló",
    "haan",
    "han",
    "ha",
    "ji",
    "helo",
    "namaste",
    "namaskar",
    "हां",
    "हा",
    "जी",
    "हेलो",
    "हैलो",
    "हलो",
    "नमस्ते",
    "नमस्कार",
    "who",
    "is",
    "this",
    "it",
    "there",
    "who's",
];

/// How sure a phrase is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// Nobody else says it: it decides at once.
    Certain,
    /// It decides when nothing else is said.
    Likely,
}

/// What was said, as far as it tells who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Said {
    /// Who says such a thing.
    pub(super) by: AnsweredBy,
    pub(super) weight: Weight,
}

/// Looks for what tells who speaks.
pub(super) fn said(text: &str) -> Option<Said> {
    let words = words(text);
    let find = |patterns: &[&str], by, weight| {
        let has = |pattern: &&str| contains(&words, pattern);
        patterns.iter().any(has).then_some(Said { by, weight })
    };
    // Who asks the caller something is a person, also when they offer to take a message; but no
    // person says what comes before.
    find(MAILBOX_FULL, AnsweredBy::MailboxFull, Weight::Certain)
        .or_else(|| find(VOICEMAIL, AnsweredBy::Voicemail, Weight::Certain))
        .or_else(|| find(IVR, AnsweredBy::Ivr, Weight::Certain))
        .or_else(|| find(UNAVAILABLE, AnsweredBy::Unavailable, Weight::Likely))
        .or_else(|| find(HUMAN, AnsweredBy::Human, Weight::Certain))
        .or_else(|| find(PERHAPS_VOICEMAIL, AnsweredBy::Voicemail, Weight::Likely))
        .or_else(|| find(PERHAPS_HUMAN, AnsweredBy::Human, Weight::Likely))
}

/// Whether this is only what people say when they pick up a telephone.
pub(super) fn is_hello(text: &str) -> bool {
    let words = words(text);
    (1..=3).contains(&words.len())
        && words
            .iter()
            .all(|word| HELLO.iter().any(|it| folded(it) == *word))
}

fn words(text: &str) -> Vec<String> {
    let mut words = wording::words(text);
    words.truncate(MAX_WORDS);
    words.iter().map(|word| folded(word)).collect()
}

/// A word without what recognisers set or leave out.
fn folded(word: &str) -> String {
    word.chars()
        .filter_map(|c| match c {
            'á' | 'à' | 'â' | 'ä' => Some('a'),
            'é' | 'è' | 'ê' | 'ë' => Some('e'),
            'í' | 'î' | 'ï' => Some('i'),
            'ó' | 'ô' | 'ö' => Some('o'),
            'ú' | 'ù' | 'û' | 'ü' => Some('u'),
            'ñ' => Some('n'),
            'ç' => Some('c'),
            // The dot below, which some keyboards write as a sign of its own.
            '\u{093c}' => None,
            '\u{095c}' => Some('\u{0921}'),
            '\u{095d}' => Some('\u{0922}'),
            '\u{095e}' => Some('\u{092b}'),
            '\u{095b}' => Some('\u{091c}'),
            '\u{0901}' => Some('\u{0902}'),
            c => Some(c),
        })
        .collect()
}

fn contains(words: &[String], pattern: &str) -> bool {
    let pattern: Vec<String> = folded(pattern)
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    (0..words.len()).any(|from| begins_with(&words[from..], &pattern))
}

fn begins_with(words: &[String], pattern: &[String]) -> bool {
    let Some((first, rest)) = pattern.split_first() else {
        return true;
    };
    if first == "*" {
        return (0..=GAP.min(words.len())).any(|skipped| begins_with(&words[skipped..], rest));
    }
    // A word that may be missing.
    if let Some(optional) = first.strip_suffix('?') {
        let is_there = words.first().is_some_and(|word| word == optional);
        return begins_with(words, rest) || (is_there && begins_with(&words[1..], rest));
    }
    let matches = |word: &String| first.split('|').any(|it| it == word);
    words.first().is_some_and(matches) && begins_with(&words[1..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use AnsweredBy::{Human, Ivr, MailboxFull, Unavailable, Voicemail};

    #[test]
    fn what_is_said_tells_who_speaks() {
        for (text, by) in [
            (
                "Hi, you've reached Bob. I can't come to the phone right now.",
                Some(Voicemail),
            ),
            (
                "Please leave your name and number after the beep.",
                Some(Voicemail),
            ),
            ("At the tone, please record your message.", Some(Voicemail)),
            (
                "Your call has been forwarded to an automated voice messaging system.",
                Some(Voicemail),
            ),
            ("Hey, it's Jo, leave me a message.", Some(Voicemail)),
            ("You have reached the Smiths.", Some(Voicemail)),
            ("Sorry, I am not able to take your call.", Some(Voicemail)),
            (
                "The mailbox is full and cannot accept any messages at this time. Goodbye.",
                Some(MailboxFull),
            ),
            (
                "has a voice mailbox that has not been set up yet",
                Some(MailboxFull),
            ),
            (
                "Thank you for calling Acme. For sales, press one.",
                Some(Ivr),
            ),
            ("Your call may be recorded for quality purposes", Some(Ivr)),
            (
                "Please listen carefully, as our menu options have changed.",
                Some(Ivr),
            ),
            (
                "Please state your name after which I will connect you",
                Some(Ivr),
            ),
            (
                "The person at extension one two three four is unavailable.",
                Some(Unavailable),
            ),
            (
                "The number you have dialed is not in service.",
                Some(Unavailable),
            ),
            (
                "The subscriber you are trying to reach is switched off",
                Some(Unavailable),
            ),
            (
                "the customer you are calling is not available",
                Some(Unavailable),
            ),
            (
                "आप जिस व्यक्ति से संपर्क करना चाहते हैं वह अभी उपलब्ध नहीं है",
                Some(Unavailable),
            ),
            ("आप जिस नंबर पर कॉल कर रहे हैं वह स्विच ऑफ है", Some(Unavailable)),
            ("कृपया बीप के बाद अपना संदेश छोड़ें", Some(Voicemail)),
            (
                "aap jis number par call kar rahe hain wo switch off hai",
                Some(Unavailable),
            ),
            ("हिंदी के लिए एक दबाएँ", Some(Ivr)),
            ("Deje su mensaje después de la señal.", Some(Voicemail)),
            (
                "El número que usted ha marcado no existe.",
                Some(Unavailable),
            ),
            ("Laissez un message après le bip sonore.", Some(Voicemail)),
            (
                "Votre correspondant n'est pas disponible.",
                Some(Unavailable),
            ),
            // People.
            ("She is not available at the moment.", Some(Human)),
            ("The GM is not available at the moment.", None),
            (
                "Priya isn't here right now, would you like to leave a message?",
                Some(Human),
            ),
            ("He's out, can I take a message?", Some(Human)),
            ("You've reached the wrong number.", Some(Human)),
            (
                "Good morning, Sunrise Dental, this is Priya, how may I help you?",
                Some(Human),
            ),
            ("Bob speaking.", Some(Human)),
            ("Hello, who is this?", Some(Human)),
            ("I'm driving, call me back later", Some(Human)),
            ("हाँ जी बोलिए", Some(Human)),
            ("kaun bol raha hai", Some(Human)),
            ("¿Quién habla?", Some(Human)),
            ("Hello?", None),
            ("", None),
        ] {
            assert_eq!(said(text).map(|said| said.by), by, "{text}");
        }
    }

    #[test]
    fn a_hello_is_told_from_a_sentence() {
        for (text, expected) in [
            ("Hello?", true),
            ("Hello, hello!", true),
            ("हैलो जी", true),
            ("haan ji", true),
            ("¿Aló?", true),
            ("Hello, you have reached", false),
            ("", false),
        ] {
            assert_eq!(is_hello(text), expected, "{text}");
        }
    }

    #[test]
    fn any_text_is_read_in_bounded_time() {
        let long = "the number you ".repeat(5_000);
        assert_eq!(said(&long), None);
    }
}
