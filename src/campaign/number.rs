//! A telephone number that can be dialled from anywhere.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::phone::{self, CountryCode};

/// A number with its country code: at most 15 digits (ITU-T E.164, section 6), of which the first
/// is never 0. Eight bytes, because a campaign has a hundred thousand of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DialNumber(u64);

/// Why a text is no number that can be dialled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NumberError {
    /// It is no telephone number.
    #[error(
        "{0:?} is no telephone number: it has 7 to 15 digits, with + and the country code in front"
    )]
    NoNumber(String),
    /// Nothing tells its country.
    #[error(
        "{0:?} has no country code: write it as + and the country code in front, or set call.country_code"
    )]
    NoCountry(String),
}

impl DialNumber {
    /// Reads a number in any form that people write. `country`: where one without a country code
    /// belongs.
    ///
    /// # Errors
    /// When it is none, or nothing tells its country.
    pub fn read(text: &str, country: &CountryCode) -> Result<Self, NumberError> {
        let number =
            phone::number(text, country).ok_or_else(|| NumberError::NoNumber(shortened(text)))?;
        let digits = number
            .strip_prefix('+')
            .ok_or_else(|| NumberError::NoCountry(shortened(text)))?;
        digits
            .parse()
            .map(Self)
            .map_err(|_| NumberError::NoNumber(shortened(text)))
    }
}

/// What an error repeats of a text that may be anything.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 40;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl fmt::Display for DialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{}", self.0)
    }
}

impl Serialize for DialNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DialNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::read(&text, &CountryCode::default()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of `numbers.json` are numbers as they are written.
    #[test]
    fn every_form_of_a_number_is_dialled_alike_or_refused_with_a_sentence() {
        let case = include_str!("../../tests/fixtures/cases/numbers-of-the-telephone/numbers.json");
        let forms: serde_json::Map<String, serde_json::Value> = serde_json::from_str(case).unwrap();
        let india: CountryCode = serde_json::from_str("\"91\"").unwrap();
        for form in forms.keys().filter(|form| form.contains("8655066243")) {
            let number = DialNumber::read(form, &india).unwrap();
            assert_eq!(number.to_string(), "+918655066243", "{form}");
        }
        let national = DialNumber::read("8655066243", &CountryCode::default()).unwrap_err();
        assert!(national.to_string().contains("country_code"), "{national}");
        for wrong in ["", "112", "nobody", &"9".repeat(5000)] {
            let refused = DialNumber::read(wrong, &india).unwrap_err().to_string();
            assert!(refused.contains("no telephone number"), "{refused}");
            assert!(refused.len() < 250, "{refused}");
        }
    }
}
