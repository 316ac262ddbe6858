//! What the agent has just asked, and so what a complete answer to it looks like. Pure.

use crate::voice::wording::words;

/// The kind of answer that the agent's last words ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Asked {
    /// Nothing in particular.
    #[default]
    Anything,
    /// Yes or no.
    YesOrNo,
    /// The number of a telephone.
    Phone,
    /// Digits whose number nobody knows: an account, an order.
    Number,
    /// A short code: a PIN, a one-time password, a postal code.
    Code,
    /// An e-mail address.
    Email,
    /// A word letter by letter.
    Spelling,
    /// A postal address.
    Address,
    /// A day or a time.
    Date,
    /// A whole name.
    Name,
    /// One name of several: the first name, the city.
    OneName,
}

/// Words with which a question begins that is answered with yes or no.
const YES_NO_OPENERS: &[&str] = &[
    "am", "are", "can", "could", "did", "do", "does", "has", "have", "is", "may", "might", "shall",
    "should", "was", "were", "will", "would",
];

/// What turns such a question into a request: "could you tell me …", "may I have …".
const REQUESTS: &[&str] = &[
    "give", "have", "take", "tell", "spell", "share", "say", "provide", "confirm", "repeat",
    "know", "get", "read",
];

fn has(words: &[String], any: &[&str]) -> bool {
    words.iter().any(|word| any.contains(&word.as_str()))
}

/// What the last question of `text` asks for; of a text without a question, its last sentence.
pub(super) fn asked(text: &str) -> Asked {
    let is_end = |c: char| matches!(c, '.' | '?' | '!' | '।' | '？' | '。' | '؟');
    let sentences: Vec<&str> = text
        .split_inclusive(is_end)
        .filter(|sentence| sentence.chars().any(char::is_alphanumeric))
        .collect();
    let is_question = |sentence: &&&str| sentence.trim_end().ends_with(['?', '？', '؟']);
    let Some(sentence) = sentences
        .iter()
        .rev()
        .take(2)
        .find(is_question)
        .or(sentences.last())
    else {
        return Asked::Anything;
    };
    of_sentence(&words(sentence))
}

fn of_sentence(words: &[String]) -> Asked {
    let first = words.first().map(String::as_str).unwrap_or_default();
    let is_request = has(words, REQUESTS) && (has(words, &["you", "i", "we"]));
    // "May I know …", "can I have …" ask for what follows; "is your number …" asks whether.
    if YES_NO_OPENERS.contains(&first) && !is_request {
        return Asked::YesOrNo;
    }
    if first == "kya" || first == "क्या" {
        return Asked::YesOrNo;
    }
    if has(words, &["spell", "spelling", "spelled", "spelt", "स्पेलिंग"]) {
        return Asked::Spelling;
    }
    if has(words, &["email", "mail", "ईमेल", "मेल"]) && !has(words, &["send", "sent"])
    {
        return Asked::Email;
    }
    if has(
        words,
        &[
            "otp",
            "pin",
            "postcode",
            "zip",
            "code",
            "ओटीपी",
            "पिन",
            "कोड",
            "o.t.p",
        ],
    ) || words
        .windows(3)
        .any(|three| three.iter().map(String::as_str).eq(["o", "t", "p"]))
    {
        return Asked::Code;
    }
    let is_number = has(words, &["number", "नंबर", "नम्बर", "numbar"]);
    let is_account = has(
        words,
        &[
            "account",
            "order",
            "policy",
            "reference",
            "booking",
            "customer",
            "card",
            "ticket",
            "case",
            "tracking",
            "invoice",
            "ऑर्डर",
            "खाता",
            "house",
            "flat",
        ],
    );
    let is_phone = has(
        words,
        &["phone", "mobile", "telephone", "फ़ोन", "फोन", "मोबाइल"],
    );
    if is_number {
        return match is_account && !is_phone {
            true => Asked::Number,
            false => Asked::Phone,
        };
    }
    if has(words, &["address", "deliver", "पता", "pata", "एड्रेस"]) {
        return Asked::Address;
    }
    if has(
        words,
        &[
            "when",
            "date",
            "day",
            "birth",
            "born",
            "birthday",
            "time",
            "तारीख",
            "तारीख़",
            "कब",
            "kab",
            "tarikh",
            "दिन",
            "din",
            "samay",
            "समय",
        ],
    ) {
        return Asked::Date;
    }
    let is_name = has(words, &["name", "नाम", "naam", "surname", "called"]);
    if is_name && has(words, &["first", "last", "company", "family", "street"])
        || has(
            words,
            &["surname", "city", "country", "town", "शहर", "shahar"],
        )
    {
        return Asked::OneName;
    }
    if is_name || has(words, &["who"]) && has(words, &["speaking", "this"]) {
        return Asked::Name;
    }
    if YES_NO_OPENERS.contains(&first) && !words.iter().any(|word| word == "tell") {
        return Asked::YesOrNo;
    }
    Asked::Anything
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_tells_what_the_answer_is() {
        for (text, expected) in [
            ("What is your phone number?", Asked::Phone),
            (
                "Thank you. Can I have your mobile number, please?",
                Asked::Phone,
            ),
            ("What number can we reach you on?", Asked::Phone),
            ("आपका मोबाइल नंबर क्या है?", Asked::Phone),
            ("Aapka phone number kya hai?", Asked::Phone),
            ("Could you tell me your order number?", Asked::Number),
            ("What is the O T P?", Asked::Code),
            ("Please tell me the six digit code.", Asked::Code),
            ("What is your e-mail address?", Asked::Email),
            ("आपका ईमेल क्या है?", Asked::Email),
            ("Could you spell your last name?", Asked::Spelling),
            ("What is your address?", Asked::Address),
            ("Where should we deliver it?", Asked::Address),
            ("What is your date of birth?", Asked::Date),
            ("Aap kab aana chahenge?", Asked::Date),
            ("May I have your name, please?", Asked::Name),
            ("आपका नाम क्या है?", Asked::Name),
            ("What is your first name?", Asked::OneName),
            ("Is your number 98765?", Asked::YesOrNo),
            ("Shall I send it by e-mail?", Asked::YesOrNo),
            ("Great. Is that correct? I will wait.", Asked::YesOrNo),
            ("Kya yeh sahi hai?", Asked::YesOrNo),
            ("How can I help you?", Asked::Anything),
            ("Your order is on its way.", Asked::Anything),
            ("", Asked::Anything),
        ] {
            assert_eq!(asked(text), expected, "{text:?}");
        }
    }
}
