//! Arguments of a tool as models write them: a JSON object, sometimes wrapped into something. Pure.

use serde_json::{Map, Value};

/// How many wrappings are taken off: encoded twice inside a fence is two.
const MAX_WRAPPINGS: u32 = 3;

/// The object that `text` is meant to be. Nothing when there is no whole one, or more than one.
///
/// Besides plain JSON it reads an object that is encoded twice, stands in a code fence, is the only
/// entry of a list, is repeated or preceded by `{}` (servers that send placeholders first), or has
/// line breaks inside of its strings.
pub(super) fn read(text: &str) -> Option<Map<String, Value>> {
    unwrap(text, MAX_WRAPPINGS)
}

/// `text` as a JSON object where it can be read as one; else as it is, so that the tool can tell
/// the model what is wrong with it.
pub(super) fn tidy(text: String) -> String {
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::Object(_)) => text,
        _ => match read(&text) {
            Some(object) => Value::Object(object).to_string(),
            None => text,
        },
    }
}

/// Whether `text` is one whole object.
pub(super) fn is_whole(text: &str) -> bool {
    read(text).is_some()
}

/// What stands in the first code fence of `text`; up to the end when it is never closed.
pub(super) fn inside_fence(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("```")?;
    let inside = rest.split_once("```").map_or(rest, |(inside, _)| inside);
    // The word after the opening marks names the language.
    Some(inside.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'))
}

fn unwrap(text: &str, wrappings: u32) -> Option<Map<String, Value>> {
    let text = text.trim();
    let again = |text: &str| wrappings.checked_sub(1).and_then(|left| unwrap(text, left));
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Some(object),
        Ok(Value::String(inner)) => again(&inner),
        Ok(Value::Array(list)) => match <[Value; 1]>::try_from(list) {
            Ok([Value::Object(object)]) => Some(object),
            _ => None,
        },
        Ok(_) => None,
        Err(_) if text.starts_with("```") => again(inside_fence(text)?),
        Err(_) => the_one_of_several(text).or_else(|| {
            let escaped = escape_controls(text);
            (escaped != text).then(|| again(&escaped)).flatten()
        }),
    }
}

/// Several objects in a row that are the same one, apart from empty ones.
fn the_one_of_several(text: &str) -> Option<Map<String, Value>> {
    let mut found: Option<Map<String, Value>> = None;
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let Ok(Value::Object(object)) = value else {
            return None;
        };
        match &found {
            _ if object.is_empty() => {}
            Some(known) if *known != object => return None,
            _ => found = Some(object),
        }
    }
    found
}

/// Control characters inside of strings are not JSON, but models write them.
fn escape_controls(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let (mut in_string, mut after_backslash) = (false, false);
    for c in text.chars() {
        match c {
            '\n' if in_string => escaped.push_str("\\n"),
            '\r' if in_string => escaped.push_str("\\r"),
            '\t' if in_string => escaped.push_str("\\t"),
            c => escaped.push(c),
        }
        in_string ^= c == '"' && !after_backslash;
        after_backslash = c == '\\' && !after_backslash;
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_is_found_in_every_wrapping_and_nothing_is_guessed() {
        let expected = json!({ "name": "Asha", "note": "a \"b\"" });
        let plain = expected.to_string();
        let twice = json!(plain).to_string();
        for text in [
            plain.clone(),
            format!("  {plain}\n"),
            twice.clone(),
            json!(twice).to_string(),
            format!("```json\n{plain}\n```"),
            format!("```\n{plain}"),
            format!("```json\n{twice}\n```"),
            format!("[{plain}]"),
            format!("{{}}{plain}"),
            format!("{plain}{plain}"),
        ] {
            assert_eq!(
                read(&text).map(Value::Object),
                Some(expected.clone()),
                "{text}"
            );
            assert_eq!(
                serde_json::from_str::<Value>(&tidy(text)).unwrap(),
                expected
            );
        }
        assert_eq!(
            read("{\"note\": \"two\nlines\"}").map(Value::Object),
            Some(json!({ "note": "two\nlines" }))
        );
        for text in [
            "",
            "null",
            "[1]",
            "7",
            "{\"name\": ",
            "{\"a\": 1}{\"a\": 2}",
            "call me",
            "```json\n{\"a\"",
            "\"words\"",
            "[{\"a\": 1}, {\"b\": 2}]",
        ] {
            assert_eq!(read(text), None, "{text}");
            assert_eq!(tidy(text.to_owned()), text);
        }
    }
}
