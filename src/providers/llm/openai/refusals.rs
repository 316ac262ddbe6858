//! What a server says about a request that it does not take. Pure.

use serde_json::Value;

use super::super::ChatOption;

/// Which of the `used` options an error is about; none when it is about something else.
///
/// An error that names the field is believed first: OpenAI's `param`, and `loc` of the servers that
/// check requests with pydantic. Others only tell it in words.
pub(super) fn named(body: &Value, used: &[ChatOption]) -> Vec<ChatOption> {
    let mut fields = Vec::new();
    let mut words = String::new();
    collect(body, &mut fields, &mut words);
    let words = words.to_lowercase();
    let only = |fits: &dyn Fn(ChatOption) -> bool| -> Vec<ChatOption> {
        used.iter()
            .copied()
            .filter(|option| fits(*option))
            .collect()
    };
    let by_field = only(&|option| {
        let keys = keys(option);
        fields.iter().any(|field| keys.contains(&field.as_str()))
    });
    if !by_field.is_empty() {
        return by_field;
    }
    only(&|option| is_refused_in_words(option, &words))
}

/// The keys of the request that an option is sent with.
fn keys(option: ChatOption) -> &'static [&'static str] {
    match option {
        ChatOption::StreamOptions => &["stream_options", "include_usage"],
        ChatOption::Temperature => &["temperature"],
        ChatOption::MaxCompletionTokens => &["max_completion_tokens"],
        ChatOption::MaxTokens => &["max_tokens"],
        ChatOption::Tools => &["tools", "tool_choice"],
        // These are about messages, which an error names for many other reasons.
        ChatOption::SystemRole | ChatOption::RoleOrder => &[],
    }
}

fn is_refused_in_words(option: ChatOption, words: &str) -> bool {
    let has = |text: &str| words.contains(text);
    match option {
        // vLLM without its tool parser, Ollama, OpenRouter.
        ChatOption::Tools => {
            has("does not support tool")
                || has("support tool use")
                || has("\"auto\" tool choice requires")
                || has("tools are not supported")
        }
        // Templates of Gemma and of Mistral's first models.
        ChatOption::SystemRole => {
            has("system role not supported")
                || has("system role is not supported")
                || has("only user and assistant roles")
        }
        // Templates of Mistral's, Llama's and Gemma's models; Anthropic's interface.
        ChatOption::RoleOrder => {
            has("alternat") && (has("role") || has("user"))
                || has("first message must")
                || has("consecutive") && has("role")
        }
        option => keys(option).iter().any(|key| names_key(words, key)),
    }
}

/// Whether `words` has `key` as a word of its own: `max_tokens` is not in `max_tokens_to_sample`.
fn names_key(words: &str, key: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    words.match_indices(key).any(|(at, _)| {
        !words[..at].ends_with(is_part) && !words[at + key.len()..].starts_with(is_part)
    })
}

/// Fields and sentences of an error. `input` is left out: it repeats the request, with all its
/// keys.
fn collect(value: &Value, fields: &mut Vec<String>, words: &mut String) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match (key.as_str(), value) {
                    ("input" | "ctx" | "body", _) => {}
                    ("param", Value::String(field)) => {
                        // As in `messages[0].role` or `stream_options.include_usage`.
                        fields.extend(field.split(['.', '[']).map(str::to_owned));
                    }
                    ("loc", Value::Array(path)) => {
                        fields.extend(path.iter().filter_map(Value::as_str).map(str::to_owned));
                    }
                    (_, value) => collect(value, fields, words),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, fields, words)),
        Value::String(text) => {
            // Some wrap the error of the server behind them, as text.
            match serde_json::from_str::<Value>(text) {
                Ok(inner @ (Value::Object(_) | Value::Array(_))) => collect(&inner, fields, words),
                _ => {
                    words.push_str(text);
                    words.push('\n');
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_option_that_a_server_refuses_is_found_in_its_words() {
        use ChatOption::*;
        let all = [
            StreamOptions,
            Temperature,
            MaxCompletionTokens,
            Tools,
            SystemRole,
            RoleOrder,
        ];
        for (body, expected) in [
            (
                json!({"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted", "input": {"temperature": 1}}]}}),
                vec![StreamOptions],
            ),
            (
                json!({"detail": [{"loc": ["body", "stream_options"], "msg": "no"}, {"loc": ["body", "max_completion_tokens"], "msg": "no"}]}),
                vec![StreamOptions, MaxCompletionTokens],
            ),
            (
                json!({"error": {"message": "Unrecognized request argument supplied: stream_options", "type": "invalid_request_error", "param": null}}),
                vec![StreamOptions],
            ),
            (
                json!({"error": {"message": "Unsupported value: 'temperature' does not support 0.7 with this model.", "param": "temperature"}}),
                vec![Temperature],
            ),
            (
                json!({"error": {"message": "Unsupported parameter", "param": "stream_options.include_usage"}}),
                vec![StreamOptions],
            ),
            (
                json!({"error": "registry/library/gemma:latest does not support tools"}),
                vec![Tools],
            ),
            (
                json!({"object": "error", "message": "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set"}),
                vec![Tools],
            ),
            (
                json!({"object": "error", "message": "After the optional system message, conversation roles must alternate user/assistant/user/assistant/...", "type": "BadRequestError", "code": 400}),
                vec![RoleOrder],
            ),
            (
                json!({"message": "System role not supported"}),
                vec![SystemRole],
            ),
            (
                json!({"error": {"message": "Provider error", "metadata": {"raw": "{\"message\": \"extra field stream_options\"}"}}}),
                vec![StreamOptions],
            ),
            (
                json!({"error": {"message": "max_tokens_to_sample is wrong"}}),
                vec![],
            ),
            (
                json!({"error": {"message": "context length exceeded", "param": "messages"}}),
                vec![],
            ),
            (json!("not allowed"), vec![]),
            (json!(null), vec![]),
        ] {
            assert_eq!(named(&body, &all), expected, "{body}");
        }
        let body = json!({"error": {"message": "no stream_options"}});
        assert_eq!(
            named(&body, &[Tools]),
            [],
            "only what was sent can be refused"
        );
    }
}
