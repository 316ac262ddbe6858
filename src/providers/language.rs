//! The language of a conversation, as a persona names it and as vendors want it. Pure.

use std::fmt;

/// What recognisers and synthesisers know: ISO 639-1 code, ISO 639-2 and 639-3 codes, English and
/// own name in small letters.
const KNOWN: &[(&str, &[&str], &[&str])] = &[
    ("af", &["afr"], &["afrikaans"]),
    ("am", &["amh"], &["amharic", "አማርኛ"]),
    ("ar", &["ara", "arb"], &["arabic", "العربية"]),
    ("as", &["asm"], &["assamese", "অসমীয়া"]),
    ("az", &["aze"], &["azerbaijani"]),
    ("be", &["bel"], &["belarusian", "беларуская"]),
    ("bg", &["bul"], &["bulgarian", "български"]),
    ("bn", &["ben"], &["bengali", "bangla", "বাংলা"]),
    ("bs", &["bos"], &["bosnian", "bosanski"]),
    ("ca", &["cat"], &["catalan", "català"]),
    ("cs", &["ces", "cze"], &["czech", "čeština"]),
    ("cy", &["cym", "wel"], &["welsh", "cymraeg"]),
    ("da", &["dan"], &["danish", "dansk"]),
    ("de", &["deu", "ger"], &["german", "deutsch"]),
    ("el", &["ell", "gre"], &["greek", "ελληνικά"]),
    ("en", &["eng"], &["english"]),
    ("es", &["spa"], &["spanish", "castilian", "español"]),
    ("et", &["est"], &["estonian", "eesti"]),
    ("eu", &["eus", "baq"], &["basque", "euskara"]),
    ("fa", &["fas", "per"], &["persian", "farsi", "فارسی"]),
    ("fi", &["fin"], &["finnish", "suomi"]),
    ("fr", &["fra", "fre"], &["french", "français"]),
    ("gl", &["glg"], &["galician", "galego"]),
    ("gu", &["guj"], &["gujarati", "ગુજરાતી"]),
    ("ha", &["hau"], &["hausa"]),
    ("he", &["heb"], &["hebrew", "עברית"]),
    ("hi", &["hin"], &["hindi", "हिन्दी", "हिंदी"]),
    ("hr", &["hrv"], &["croatian", "hrvatski"]),
    ("hu", &["hun"], &["hungarian", "magyar"]),
    ("hy", &["hye", "arm"], &["armenian", "հայերեն"]),
    ("id", &["ind"], &["indonesian", "bahasa indonesia"]),
    ("is", &["isl", "ice"], &["icelandic", "íslenska"]),
    ("it", &["ita"], &["italian", "italiano"]),
    ("ja", &["jpn"], &["japanese", "日本語"]),
    ("ka", &["kat", "geo"], &["georgian", "ქართული"]),
    ("kk", &["kaz"], &["kazakh", "қазақ"]),
    ("kn", &["kan"], &["kannada", "ಕನ್ನಡ"]),
    ("ko", &["kor"], &["korean", "한국어"]),
    ("lt", &["lit"], &["lithuanian", "lietuvių"]),
    ("lv", &["lav"], &["latvian", "latviešu"]),
    ("mk", &["mkd", "mac"], &["macedonian", "македонски"]),
    ("ml", &["mal"], &["malayalam", "മലയാളം"]),
    ("mr", &["mar"], &["marathi", "मराठी"]),
    ("ms", &["msa", "may", "zsm"], &["malay", "bahasa melayu"]),
    ("my", &["mya", "bur"], &["burmese", "myanmar"]),
    ("ne", &["nep"], &["nepali", "नेपाली"]),
    ("nl", &["nld", "dut"], &["dutch", "flemish", "nederlands"]),
    ("no", &["nor", "nob", "nb"], &["norwegian", "norsk"]),
    ("or", &["ori", "ory"], &["odia", "oriya", "ଓଡ଼ିଆ"]),
    ("pa", &["pan"], &["punjabi", "panjabi", "ਪੰਜਾਬੀ"]),
    ("pl", &["pol"], &["polish", "polski"]),
    ("pt", &["por"], &["portuguese", "português"]),
    (
        "ro",
        &["ron", "rum", "mo"],
        &["romanian", "moldavian", "română"],
    ),
    ("ru", &["rus"], &["russian", "русский"]),
    ("si", &["sin"], &["sinhala", "sinhalese"]),
    ("sk", &["slk", "slo"], &["slovak", "slovenčina"]),
    ("sl", &["slv"], &["slovenian", "slovene", "slovenščina"]),
    ("so", &["som"], &["somali"]),
    ("sq", &["sqi", "alb"], &["albanian", "shqip"]),
    ("sr", &["srp"], &["serbian", "српски"]),
    ("sv", &["swe"], &["swedish", "svenska"]),
    ("sw", &["swa", "swh"], &["swahili", "kiswahili"]),
    ("ta", &["tam"], &["tamil", "தமிழ்"]),
    ("te", &["tel"], &["telugu", "తెలుగు"]),
    ("th", &["tha"], &["thai", "ไทย"]),
    ("tl", &["tgl", "fil"], &["tagalog", "filipino"]),
    ("tr", &["tur"], &["turkish", "türkçe"]),
    ("uk", &["ukr"], &["ukrainian", "українська"]),
    ("ur", &["urd"], &["urdu", "اردو"]),
    ("uz", &["uzb"], &["uzbek"]),
    ("vi", &["vie"], &["vietnamese", "tiếng việt"]),
    ("yi", &["yid", "ji"], &["yiddish"]),
    ("yo", &["yor"], &["yoruba"]),
    (
        "zh",
        &["zho", "chi", "cmn"],
        &["chinese", "mandarin", "中文"],
    ),
    ("zu", &["zul"], &["zulu"]),
];

/// Codes that were replaced (IANA's registry of language subtags), and what replaced them.
const REPLACED: [(&str, &str); 2] = [("iw", "he"), ("in", "id")];

/// Personas say with these that the recogniser is to find out by itself.
const ANY: [&str; 6] = ["", "any", "auto", "detect", "multi", "multilingual"];

/// Languages of India, and English, by their codes.
const OF_INDIA: [&str; 23] = [
    "as", "bn", "brx", "doi", "en", "gu", "hi", "kn", "kok", "ks", "mai", "ml", "mni", "mr", "ne",
    "or", "pa", "sa", "sat", "sd", "ta", "te", "ur",
];

/// A language tag (BCP 47, RFC 5646): language, perhaps script and region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Language {
    /// Language first, in small letters.
    subtags: Vec<String>,
}

impl Language {
    /// Reads `hi-IN`, `hi_IN`, `hin`, `Hindi`, `हिन्दी`. Nothing for "auto" and its like.
    ///
    /// # Errors
    /// When it is no language; the sentence says what to write.
    pub fn read(text: &str) -> Result<Option<Self>, String> {
        let small = text.trim().to_lowercase();
        if ANY.contains(&small.as_str()) {
            return Ok(None);
        }
        // "English (US)", "Hindi/English": the first word tells, unless the name has two.
        let first_word = small
            .split(|c: char| c.is_whitespace() || matches!(c, '(' | ',' | '/' | '+'))
            .next()
            .unwrap_or_default();
        let named = KNOWN
            .iter()
            .find(|(_, _, names)| names.contains(&small.as_str()) || names.contains(&first_word));
        if let Some((code, _, _)) = named {
            return Ok(Some(Self {
                subtags: vec![(*code).to_owned()],
            }));
        }
        // "en_US.UTF-8" is how the system names it.
        let tag = small.split(['.', '@']).next().unwrap_or_default();
        let mut subtags = tag.split(['-', '_']);
        let primary = subtags.next().unwrap_or_default();
        let is_code =
            (2..=3).contains(&primary.len()) && primary.chars().all(|c| c.is_ascii_lowercase());
        if !is_code {
            return Err(format!(
                "language {text:?} is none that we know: write a tag such as \"en\", \"en-IN\" or \"hi\""
            ));
        }
        let replaced = REPLACED.iter().find(|(old, _)| *old == primary);
        let primary = replaced.map_or(primary, |(_, new)| new);
        let known = KNOWN.iter().find(|(_, codes, _)| codes.contains(&primary));
        let primary = known.map_or(primary, |(code, _, _)| code);
        // Script and region; what else may follow, no vendor takes.
        let rest = subtags
            .take_while(|subtag| (2..=4).contains(&subtag.len()))
            .filter(|subtag| subtag.chars().all(|c| c.is_ascii_alphanumeric()))
            .take(2)
            .map(str::to_owned);
        Ok(Some(Self {
            subtags: std::iter::once(primary.to_owned()).chain(rest).collect(),
        }))
    }

    /// The code of the language alone: that of ISO 639-1, or of three letters where there is none.
    pub fn language(&self) -> &str {
        self.subtags.first().map_or("", String::as_str)
    }

    /// As spoken in India (`hi-IN`, `en-IN`), for vendors that know nothing else; none for a
    /// language that is none of India's.
    pub fn in_india(&self) -> Option<String> {
        let code = self.language();
        OF_INDIA.contains(&code).then(|| format!("{code}-IN"))
    }

    /// The ISO 639-1 code, for vendors that take nothing else; none for a language that has none.
    pub fn iso_639_1(&self) -> Option<&str> {
        self.subtags
            .first()
            .map(String::as_str)
            .filter(|code| code.len() == 2)
    }
}

/// The whole tag: `hi-IN`, `zh-Hant-TW`.
impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, subtag) in self.subtags.iter().enumerate() {
            match (at, subtag.len()) {
                (0, _) => f.write_str(subtag)?,
                (_, 4) => {
                    let (first, rest) = subtag.split_at(1);
                    write!(f, "-{}{rest}", first.to_uppercase())?;
                }
                _ => write!(f, "-{}", subtag.to_uppercase())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_is_read_in_every_form_in_which_personas_name_it() {
        for (text, tag, code) in [
            ("hi-IN", "hi-IN", Some("hi")),
            ("en", "en", Some("en")),
            ("en_us", "en-US", Some("en")),
            ("en_US.UTF-8", "en-US", Some("en")),
            ("zh-hant-tw", "zh-Hant-TW", Some("zh")),
            ("cmn-Hans-CN", "zh-Hans-CN", Some("zh")),
            ("nb-NO", "no-NO", Some("no")),
            ("iw", "he", Some("he")),
            ("hin", "hi", Some("hi")),
            ("ger", "de", Some("de")),
            ("fil-PH", "tl-PH", Some("tl")),
            ("haw", "haw", None),
            ("English", "en", Some("en")),
            ("English (US)", "en", Some("en")),
            ("Bahasa Indonesia", "id", Some("id")),
            (" हिन्दी ", "hi", Some("hi")),
            ("Deutsch", "de", Some("de")),
        ] {
            let language = Language::read(text).unwrap().unwrap();
            assert_eq!(language.to_string(), tag, "{text}");
            assert_eq!(language.iso_639_1(), code, "{text}");
        }
        for (text, expected) in [
            ("Hindi", Some("hi-IN")),
            ("en-GB", Some("en-IN")),
            ("kok", Some("kok-IN")),
            ("de", None),
        ] {
            let language = Language::read(text).unwrap().unwrap();
            assert_eq!(language.in_india().as_deref(), expected, "{text}");
        }
        for text in ["", "auto", "Multi"] {
            assert_eq!(Language::read(text), Ok(None), "{text}");
        }
        for text in ["Klingon", "e", "??", "en1"] {
            let error = Language::read(text).unwrap_err();
            assert!(error.contains(text) && error.contains("en-IN"), "{error}");
        }
    }
}
