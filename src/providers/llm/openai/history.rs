//! The history as servers with narrow chat templates take it. Pure.

use super::super::{ChatMessage, ChatOption};

/// Stands where a template wants somebody to speak who said nothing.
pub(in super::super) const NOTHING_SAID: &str = "…";

/// `messages` without what the server has refused.
pub(super) fn shape(messages: &[ChatMessage], refused: &[ChatOption]) -> Vec<ChatMessage> {
    let mut messages = messages.to_vec();
    if refused.contains(&ChatOption::Tools) {
        messages = without_tools(messages);
    }
    if refused.contains(&ChatOption::RoleOrder) {
        messages = alternating(messages);
    }
    if refused.contains(&ChatOption::SystemRole) {
        messages = without_system(messages);
    }
    messages
}

/// Tools and their answers as words.
fn without_tools(messages: Vec<ChatMessage>) -> Vec<ChatMessage> {
    messages
        .into_iter()
        .filter_map(|message| match message {
            ChatMessage::Assistant { text, .. } if text.is_empty() => None,
            ChatMessage::Assistant { text, .. } => Some(ChatMessage::Assistant {
                text,
                tool_calls: Vec::new(),
            }),
            ChatMessage::Tool { output, .. } => Some(ChatMessage::User(format!("[{output}]"))),
            message => Some(message),
        })
        .collect()
}

/// After the system message user and assistant take turns, beginning with the user. Rounds of tools
/// do not count, as in the templates of Mistral's models.
///
/// What the agent said before the caller's first words, its greeting, is told in the system
/// message: no words of the caller are made up.
pub(in super::super) fn alternating(messages: Vec<ChatMessage>) -> Vec<ChatMessage> {
    #[derive(PartialEq)]
    enum Speaker {
        User,
        Assistant,
    }
    let mut shaped: Vec<ChatMessage> = Vec::with_capacity(messages.len());
    let mut last = None;
    for message in messages {
        match message {
            ChatMessage::Assistant { text, tool_calls } if tool_calls.is_empty() => {
                if last.is_none() {
                    let said = format!("You have already said to the caller: {text}");
                    match shaped.first_mut() {
                        Some(ChatMessage::System(system)) => {
                            system.push_str("\n\n");
                            system.push_str(&said);
                        }
                        _ => shaped.insert(0, ChatMessage::System(said)),
                    }
                    continue;
                }
                match shaped.last_mut() {
                    Some(ChatMessage::Assistant {
                        text: before,
                        tool_calls,
                    }) if tool_calls.is_empty() => {
                        before.push(' ');
                        before.push_str(&text);
                        continue;
                    }
                    _ => {}
                }
                if last == Some(Speaker::Assistant) {
                    shaped.push(ChatMessage::User(NOTHING_SAID.to_owned()));
                }
                last = Some(Speaker::Assistant);
                shaped.push(ChatMessage::Assistant {
                    text,
                    tool_calls: Vec::new(),
                });
            }
            ChatMessage::User(text) => {
                if let Some(ChatMessage::User(before)) = shaped.last_mut() {
                    before.push('\n');
                    before.push_str(&text);
                    continue;
                }
                if last == Some(Speaker::User) {
                    shaped.push(ChatMessage::Assistant {
                        text: NOTHING_SAID.to_owned(),
                        tool_calls: Vec::new(),
                    });
                }
                last = Some(Speaker::User);
                shaped.push(ChatMessage::User(text));
            }
            message => shaped.push(message),
        }
    }
    shaped
}

/// The system message as the beginning of the first user message.
fn without_system(messages: Vec<ChatMessage>) -> Vec<ChatMessage> {
    let mut system = String::new();
    let mut shaped = Vec::with_capacity(messages.len());
    for message in messages {
        match message {
            ChatMessage::System(text) => {
                system.push_str(&text);
                system.push_str("\n\n");
            }
            ChatMessage::User(text) if !system.is_empty() => {
                shaped.push(ChatMessage::User(std::mem::take(&mut system) + &text));
            }
            message => shaped.push(message),
        }
    }
    if !system.is_empty() {
        shaped.insert(0, ChatMessage::User(system.trim_end().to_owned()));
    }
    shaped
}

#[cfg(test)]
mod tests {
    use super::super::super::ToolCall;
    use super::*;

    fn system(text: &str) -> ChatMessage {
        ChatMessage::System(text.to_owned())
    }

    fn user(text: &str) -> ChatMessage {
        ChatMessage::User(text.to_owned())
    }

    fn agent(text: &str) -> ChatMessage {
        ChatMessage::Assistant {
            text: text.to_owned(),
            tool_calls: Vec::new(),
        }
    }

    fn asks_tool(text: &str) -> ChatMessage {
        let call = ToolCall {
            id: "1".to_owned(),
            name: "create_lead".to_owned(),
            arguments: "{}".to_owned(),
        };
        ChatMessage::Assistant {
            text: text.to_owned(),
            tool_calls: vec![call],
        }
    }

    fn tool(output: &str) -> ChatMessage {
        ChatMessage::Tool {
            call_id: "1".to_owned(),
            output: output.to_owned(),
        }
    }

    #[test]
    fn roles_take_turns_and_nothing_that_was_said_is_lost() {
        let cases = [
            (
                vec![system("Be kind."), agent("Hello!"), user("Hi")],
                vec![
                    system("Be kind.\n\nYou have already said to the caller: Hello!"),
                    user("Hi"),
                ],
            ),
            (
                vec![
                    system("S"),
                    user("a"),
                    user("b"),
                    agent("c"),
                    agent("d"),
                    user("e"),
                ],
                vec![system("S"), user("a\nb"), agent("c d"), user("e")],
            ),
            (
                vec![
                    system("S"),
                    user("a"),
                    asks_tool("Sure."),
                    tool("ok"),
                    agent("Done."),
                    user("b"),
                ],
                vec![
                    system("S"),
                    user("a"),
                    asks_tool("Sure."),
                    tool("ok"),
                    agent("Done."),
                    user("b"),
                ],
            ),
            // The reply was cut off after its tool.
            (
                vec![system("S"), user("a"), asks_tool(""), tool("ok"), user("b")],
                vec![
                    system("S"),
                    user("a"),
                    asks_tool(""),
                    tool("ok"),
                    agent("…"),
                    user("b"),
                ],
            ),
        ];
        for (messages, expected) in cases {
            assert_eq!(shape(&messages, &[]), messages, "nothing was refused");
            assert_eq!(shape(&messages, &[ChatOption::RoleOrder]), expected);
        }
    }

    #[test]
    fn roles_that_a_server_does_not_know_become_words_of_others() {
        let messages = [
            system("Be kind."),
            user("a"),
            asks_tool(""),
            tool("ok"),
            agent("b"),
            user("c"),
        ];
        assert_eq!(
            shape(&messages, &[ChatOption::SystemRole]),
            [
                user("Be kind.\n\na"),
                asks_tool(""),
                tool("ok"),
                agent("b"),
                user("c")
            ]
        );
        assert_eq!(
            shape(&messages, &[ChatOption::Tools, ChatOption::RoleOrder]),
            [system("Be kind."), user("a\n[ok]"), agent("b"), user("c")]
        );
        assert_eq!(
            shape(&[system("Be kind.")], &[ChatOption::SystemRole]),
            [user("Be kind.")]
        );
    }
}
