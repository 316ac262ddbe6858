//! Parses telephone numbers as people, telephones and spreadsheets write them. Pure.
//!
//! [`number`] returns the number that a call is stored under, [`contact`] the one that a lead
//! stores. Both accept the same forms: digits of any script, invisible marks from web pages and
//! address books, `tel:` and `sip:` URIs, extensions, and numbers to which a spreadsheet has added
//! `.0`. Independent of calls.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// The shortest and longest numbers that calls are stored under. E.164 allows 15 digits.
const FILED_DIGITS: RangeInclusive<usize> = 7..=15;
/// The shortest and longest numbers that a lead stores; a caller may give one without its area
/// code.
const CONTACT_DIGITS: RangeInclusive<usize> = 5..=15;
/// The longest extension, digits.
const EXTENSION_DIGITS: usize = 8;

/// The longest number that counts as national when nothing marks it as international; a longer one
/// begins with a country code.
const NATIONAL_DIGITS: usize = 10;
/// Country codes whose national numbers, without the 0 in front, are longer than that: Brazil and
/// China.
const LONGER_NATIONAL: [(&str, usize); 2] = [("55", 11), ("86", 11)];
/// Country codes whose national numbers keep their 0 in the international form: Ivory Coast, Gabon,
/// Congo, Italy, San Marino, Vatican.
const KEEPS_ZERO: [&str; 6] = ["225", "241", "242", "39", "378", "379"];

/// The zeros of the decimal digits that telephone numbers are written with: Arabic, Persian, N'Ko,
/// the scripts of India, Thai, Lao, Tibetan, Burmese, Khmer, and the wide ones of East Asia
/// (Unicode, general category Nd).
const ZEROS: [char; 18] = [
    '\u{660}', '\u{6f0}', '\u{7c0}', '\u{966}', '\u{9e6}', '\u{a66}', '\u{ae6}', '\u{b66}',
    '\u{be6}', '\u{c66}', '\u{ce6}', '\u{d66}', '\u{e50}', '\u{ed0}', '\u{f20}', '\u{1040}',
    '\u{17e0}', '\u{ff10}',
];

/// The country that numbers without a country code belong to, as its calling code. Empty: not
/// known, they stay national.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "CountryCodeSetting", into = "String")]
pub struct CountryCode(String);

/// The environment supplies it as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum CountryCodeSetting {
    Text(String),
    Number(u64),
}

impl TryFrom<CountryCodeSetting> for CountryCode {
    type Error = String;

    fn try_from(setting: CountryCodeSetting) -> Result<Self, String> {
        let text = match setting {
            CountryCodeSetting::Text(text) => text,
            CountryCodeSetting::Number(number) => number.to_string(),
        };
        let code = text.trim().trim_start_matches('+');
        let is_code = code.len() <= 3 && code.chars().all(|c| c.is_ascii_digit());
        if !is_code || code.starts_with('0') {
            return Err(format!(
                "{text:?} is no country calling code: it has one to three digits, such as \"91\" for India"
            ));
        }
        Ok(Self(code.to_owned()))
    }
}

impl From<CountryCode> for String {
    fn from(code: CountryCode) -> Self {
        code.0
    }
}

/// The number in `text`, for a call: `+` and all digits if the country is known, else the digits as
/// dialled. `None` if it is no telephone number.
pub fn number(text: &str, country: &CountryCode) -> Option<String> {
    let Parts { main, .. } = parts(text)?;
    let is_international = main.trim_start_matches(['(', ' ']).starts_with('+');
    let main = if is_international {
        // The trunk prefix for national callers inside an international number.
        main.replace("(0)", "")
    } else {
        main
    };
    let digits: String = main.chars().filter(char::is_ascii_digit).collect();
    let filed = |plus: &str, digits: &str| {
        FILED_DIGITS
            .contains(&digits.len())
            .then(|| format!("{plus}{digits}"))
    };
    if let Some(digits) = digits.strip_prefix("00") {
        return filed("+", digits);
    }
    // No country code begins with 0, whatever precedes it.
    let national = match digits.strip_prefix('0') {
        Some(rest) => rest,
        None if is_international => return filed("+", &digits),
        None => &digits,
    };
    let code = country.0.as_str();
    let has_zero = national.len() < digits.len();
    if code.is_empty() {
        let is_national = has_zero || digits.len() <= NATIONAL_DIGITS;
        return filed(if is_national { "" } else { "+" }, &digits);
    }
    let longest = LONGER_NATIONAL
        .iter()
        .find(|(longer, _)| *longer == code)
        .map_or(NATIONAL_DIGITS, |(_, longest)| *longest);
    if has_zero && KEEPS_ZERO.contains(&code) {
        filed("+", &format!("{code}{digits}"))
    } else if has_zero || digits.len() <= longest {
        filed("+", &format!("{code}{national}"))
    } else {
        filed("+", &digits)
    }
}

/// A telephone number as a lead stores it: readable, in ASCII, with its extension. `None` if it is
/// no telephone number.
pub fn contact(text: &str) -> Option<String> {
    let Parts { main, extension } = parts(text)?;
    let digits = main.chars().filter(char::is_ascii_digit).count();
    if !CONTACT_DIGITS.contains(&digits) {
        return None;
    }
    Some(match extension {
        Some(extension) => format!("{main} ext. {extension}"),
        None => main,
    })
}

/// A number and its extension.
struct Parts {
    /// Digits and the separators between them.
    main: String,
    /// The digits of the extension.
    extension: Option<String>,
}

fn parts(text: &str) -> Option<Parts> {
    let text = plain(text);
    let address = address_of(&text);
    let (main, extension) = split_extension(address)?;
    // A spreadsheet has turned it into 8655066243.0.
    let main = match main.split_once('.') {
        Some((whole, zeros))
            if !zeros.is_empty()
                && zeros.chars().all(|c| c == '0')
                && whole.chars().all(|c| c.is_ascii_digit() || c == '+') =>
        {
            whole
        }
        _ => main,
    };
    main.chars()
        .all(|c| c.is_ascii_digit() || "+-_ ()./".contains(c))
        .then(|| Parts {
            main: main.to_owned(),
            extension,
        })
}

/// Normalises a text: ASCII digits, one kind of space and dash, no invisible characters.
fn plain(text: &str) -> String {
    let text: String = text
        .chars()
        .filter_map(|c| match c {
            // Direction marks, joiners, soft hyphens, byte order marks: address books and web pages
            // put them around numbers.
            '\u{ad}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}'
            | '\u{feff}' => None,
            c if c.is_control() && !c.is_whitespace() => None,
            c if c.is_whitespace() => Some(' '),
            '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{fe63}' | '\u{ff0d}' => Some('-'),
            '\u{ff0b}' => Some('+'),
            '\u{ff08}' => Some('('),
            '\u{ff09}' => Some(')'),
            c => Some(ascii_digit(c).unwrap_or(c)),
        })
        .collect();
    text.trim().replace("%2B", "+").replace("%2b", "+")
}

fn ascii_digit(c: char) -> Option<char> {
    ZEROS.iter().find_map(|zero| {
        let digit = u32::from(c).checked_sub(u32::from(*zero))?;
        char::from_digit(digit, 10)
    })
}

/// The dialled part of `tel:…;ext=5`, `sip:…@host`, `"Name" <sip:…>` or a bare number.
fn address_of(text: &str) -> &str {
    let text = match text.rsplit_once('<') {
        Some((_, inside)) => inside.split('>').next().unwrap_or_default(),
        None => text,
    };
    let text = ["tel:", "sip:", "sips:", "callto:"]
        .iter()
        .find_map(|scheme| {
            let head = text.get(..scheme.len())?;
            head.eq_ignore_ascii_case(scheme)
                .then(|| text[scheme.len()..].trim_start_matches('/'))
        })
        .unwrap_or(text);
    let end = text.find(['@', ';', '?']).unwrap_or(text.len());
    text[..end].trim()
}

/// Splits the extension from a number. `None` if an extension is announced but has no digits.
fn split_extension(text: &str) -> Option<(&str, Option<String>)> {
    let Some(at) = text.find(|c: char| c.is_ascii_alphabetic() || matches!(c, '#' | ',')) else {
        return Some((text, None));
    };
    let (main, rest) = text.split_at(at);
    let digits_from = rest.find(|c: char| c.is_ascii_digit())?;
    let (word, digits) = rest.split_at(digits_from);
    let word = word
        .trim_matches(['.', ':', ' ', '#', ','])
        .to_ascii_lowercase();
    let is_extension = matches!(word.as_str(), "" | "x" | "ext" | "extn" | "extension")
        && digits.len() <= EXTENSION_DIGITS
        && digits.chars().all(|c| c.is_ascii_digit());
    is_extension.then(|| (main.trim_end(), Some(digits.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn india() -> CountryCode {
        CountryCode("91".to_owned())
    }

    #[test]
    fn numbers_of_the_telephone_lead_to_the_number_that_was_meant() {
        for (text, without_country, in_india) in [
            (
                "+1 (555) 010-0999",
                Some("+15550100999"),
                Some("+15550100999"),
            ),
            ("tel:+15550999", Some("+15550999"), Some("+15550999")),
            ("918655066243", Some("+918655066243"), Some("+918655066243")),
            (
                "00918655066243",
                Some("+918655066243"),
                Some("+918655066243"),
            ),
            (
                "+00918655066243",
                Some("+918655066243"),
                Some("+918655066243"),
            ),
            ("8655066243", Some("8655066243"), Some("+918655066243")),
            ("08655066243", Some("08655066243"), Some("+918655066243")),
            ("+08655066243", Some("08655066243"), Some("+918655066243")),
            (
                "\u{202a}+918655066243\u{202c}",
                Some("+918655066243"),
                Some("+918655066243"),
            ),
            (
                "+91\u{a0}86550\u{a0}66243",
                Some("+918655066243"),
                Some("+918655066243"),
            ),
            (
                "tel:+918655066243;ext=5",
                Some("+918655066243"),
                Some("+918655066243"),
            ),
            (
                "TEL:+91-86550-66243",
                Some("+918655066243"),
                Some("+918655066243"),
            ),
            (
                "sip:+918655066243@10.0.0.1",
                Some("+918655066243"),
                Some("+918655066243"),
            ),
            (
                "sip:%2B918655066243@10.0.0.1;user=phone",
                Some("+918655066243"),
                Some("+918655066243"),
            ),
            (
                "\"Asha\" <sips:+918655066243@example.com>;tag=1",
                Some("+918655066243"),
                Some("+918655066243"),
            ),
            (
                "+1 (555) 123-4567 ext 5",
                Some("+15551234567"),
                Some("+15551234567"),
            ),
            (
                "+1 555 123 4567,,5",
                Some("+15551234567"),
                Some("+15551234567"),
            ),
            (
                "+91(0)8655066243",
                Some("+918655066243"),
                Some("+918655066243"),
            ),
            (
                "(+91) 86550 66243",
                Some("+918655066243"),
                Some("+918655066243"),
            ),
            (
                "+९१ ८६५५० ६६२४३",
                Some("+918655066243"),
                Some("+918655066243"),
            ),
            (
                "918655066243.0",
                Some("+918655066243"),
                Some("+918655066243"),
            ),
            ("anonymous", None, None),
            ("sip:bob@example.com", None, None),
            ("sip:bob12345678@example.com", None, None),
            ("12", None, None),
            ("+1234567890123456", None, None),
            ("", None, None),
        ] {
            let read = |country: &CountryCode| number(text, country);
            assert_eq!(
                read(&CountryCode::default()).as_deref(),
                without_country,
                "{text}"
            );
            assert_eq!(read(&india()).as_deref(), in_india, "{text} in India");
        }
    }

    #[test]
    fn each_country_has_its_own_national_format() {
        for (code, text, expected) in [
            ("1", "5551234567", "+15551234567"),
            ("1", "15551234567", "+15551234567"),
            ("39", "0612345678", "+390612345678"),
            ("44", "02079460958", "+442079460958"),
            ("55", "11987654321", "+5511987654321"),
            ("86", "13812345678", "+8613812345678"),
            ("91", "15550100123", "+15550100123"),
        ] {
            let country = CountryCode(code.to_owned());
            assert_eq!(number(text, &country).as_deref(), Some(expected), "{code}");
        }
    }

    #[test]
    fn phone_of_a_lead_is_kept_readable() {
        for (text, kept) in [
            ("(555) 123-4567 ext 5", Some("(555) 123-4567 ext. 5")),
            ("555-123-4567 Ext. 12", Some("555-123-4567 ext. 12")),
            ("030 123456 x7", Some("030 123456 ext. 7")),
            ("tel:+918655066243", Some("+918655066243")),
            ("८६५५०६६२४३", Some("8655066243")),
            ("+91\u{a0}86550\u{a0}66243", Some("+91 86550 66243")),
            ("\u{202a}+918655066243\u{202c}", Some("+918655066243")),
            ("555\u{2011}123\u{2011}4567", Some("555-123-4567")),
            ("8655066243.0", Some("8655066243")),
            ("555.123.4567", Some("555.123.4567")),
            ("12345", Some("12345")),
            ("1234", None),
            ("call me", None),
            ("eight six five", None),
            ("call 12345", None),
            ("12345 at nine", None),
            ("+1234567890123456", None),
        ] {
            assert_eq!(contact(text).as_deref(), kept, "{text}");
        }
    }

    #[test]
    fn a_country_code_is_a_text_or_a_number() {
        let read =
            |text: &str| serde_json::from_str::<CountryCode>(text).map_err(|e| e.to_string());
        assert_eq!(read("\"91\""), Ok(india()));
        assert_eq!(read("\"+91\""), Ok(india()));
        assert_eq!(read("91"), Ok(india()));
        assert_eq!(read("\"\""), Ok(CountryCode::default()));
        for wrong in ["\"IN\"", "\"0091\"", "1234"] {
            assert!(read(wrong).unwrap_err().contains("calling code"), "{wrong}");
        }
    }
}
