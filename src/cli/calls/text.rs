//! Small pieces of text.

use serde_json::Value;

use crate::session::Direction;

/// The name of a value of a closed set, as in JSON.
pub fn name<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        _ => "-".to_owned(),
    }
}

/// The same with spaces.
pub fn plain_name<T: serde::Serialize>(value: &T) -> String {
    name(value).replace('_', " ")
}

/// The direction as the table has it.
pub fn direction_column(direction: Option<Direction>) -> &'static str {
    match direction {
        Some(Direction::Inbound) => "in",
        Some(Direction::Outbound) => "out",
        None => "-",
    }
}

/// Seconds as minutes, or hours: `0:05`, `1:00:05`.
pub fn length(seconds: i64) -> String {
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    match minutes / 60 {
        0 => format!("{minutes}:{seconds:02}"),
        hours => format!("{hours}:{:02}:{seconds:02}", minutes % 60),
    }
}

/// `before` and the value; nothing when there is none.
pub fn if_known(before: &str, value: &Option<String>) -> String {
    match value.as_deref() {
        None | Some("") => String::new(),
        Some(value) => format!("{before}{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_shown_in_minutes() {
        assert_eq!(
            (length(5), length(65), length(3605)),
            ("0:05".into(), "1:05".into(), "1:00:05".into())
        );
    }
}
