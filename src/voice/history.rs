//! How much of the conversation the model is given: the newest turns, up to a number of tokens.
//! Pure.

use crate::providers::llm::ChatMessage;

/// What a message takes besides its words: its role, and the marks around it.
const MESSAGE_TOKENS: u64 = 4;

/// When turns are left out, this share of the bound is left free: the history then begins alike in
/// the next requests, which vendors find in their cache.
const FREE_SHARE: u64 = 4;

/// About how many tokens `text` is: four letters of the Latin alphabet each, and one for every
/// other letter. Tokenizers take fewer for most languages, so that the bound is kept.
fn tokens_of(text: &str) -> u64 {
    let (mut ascii, mut others) = (0u64, 0u64);
    for c in text.chars() {
        match c.is_ascii() {
            true => ascii += 1,
            false => others += 1,
        }
    }
    ascii.div_ceil(4) + others
}

/// About how many tokens a message is.
pub(super) fn tokens(message: &ChatMessage) -> u64 {
    let words = match message {
        ChatMessage::System(text) | ChatMessage::User(text) => tokens_of(text),
        ChatMessage::Assistant { text, tool_calls } => {
            let calls = tool_calls.iter().map(|call| {
                MESSAGE_TOKENS
                    + tokens_of(&call.id)
                    + tokens_of(&call.name)
                    + tokens_of(&call.arguments)
            });
            tokens_of(text) + calls.sum::<u64>()
        }
        ChatMessage::Tool { call_id, output } => tokens_of(call_id) + tokens_of(output),
    };
    MESSAGE_TOKENS + words
}

/// Leaves out the oldest turns of the user together with all that followed them, so that `messages`
/// are about `max_tokens` at most. The system's messages at the beginning stay, and so do the
/// newest turn of the user and what follows it, however long they are; a request for a tool and its
/// output stay or go together. Answers how many messages were left out: those after the system's.
pub(super) fn bound(messages: &mut Vec<ChatMessage>, max_tokens: u64) -> usize {
    let total: u64 = messages.iter().map(tokens).sum();
    if total <= max_tokens {
        return 0;
    }
    let wanted = max_tokens - max_tokens / FREE_SHARE;
    let is_system = |message: &ChatMessage| matches!(message, ChatMessage::System(_));
    let is_user = |message: &ChatMessage| matches!(message, ChatMessage::User(_));
    let start = messages.iter().take_while(|one| is_system(one)).count();
    let newest = messages.iter().rposition(is_user).unwrap_or(start);
    let (mut end, mut left, mut dropped) = (start, total, 0);
    // Requests for tools whose output comes later.
    let mut open: Vec<&str> = Vec::new();
    for (at, message) in messages.iter().enumerate().take(newest + 1).skip(start) {
        if is_user(message) && open.is_empty() {
            (end, left) = (at, total - dropped);
            if left <= wanted {
                break;
            }
        }
        dropped += tokens(message);
        match message {
            ChatMessage::Assistant { tool_calls, .. } => {
                open.extend(tool_calls.iter().map(|call| call.id.as_str()));
            }
            ChatMessage::Tool { call_id, .. } => {
                if let Some(at) = open.iter().position(|id| id == call_id) {
                    open.remove(at);
                }
            }
            ChatMessage::System(_) | ChatMessage::User(_) => {}
        }
    }
    tracing::debug!(
        messages = end - start,
        tokens = total,
        left,
        "the oldest turns are left out of what the model is given"
    );
    messages.drain(start..end);
    end - start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::llm::ToolCall;
    use proptest::prelude::*;

    fn user(text: &str) -> ChatMessage {
        ChatMessage::User(text.to_owned())
    }

    fn agent(text: &str) -> ChatMessage {
        ChatMessage::Assistant {
            text: text.to_owned(),
            tool_calls: Vec::new(),
        }
    }

    #[test]
    fn tokens_are_rather_too_many_than_too_few() {
        for (text, expected) in [
            ("", 4),
            ("word", 5),
            ("a word", 6),
            ("नमस्ते", 10),
            ("今日は", 7),
        ] {
            assert_eq!(tokens(&user(text)), expected, "{text}");
        }
    }

    #[test]
    fn the_oldest_turns_go_first_with_their_answers() {
        let words = "x".repeat(64);
        let all = vec![
            ChatMessage::System("Be brief.".to_owned()),
            agent("Hello!"),
            user(&words),
            agent(&words),
            user(&words),
            agent(&words),
            user("And now?"),
        ];
        let total: u64 = all.iter().map(tokens).sum();
        for (max_tokens, dropped) in [(total, 0), (total - 1, 3), (60, 5), (1, 5), (0, 5)] {
            let mut messages = all.clone();
            assert_eq!(bound(&mut messages, max_tokens), dropped, "{max_tokens}");
            let kept: Vec<ChatMessage> = [&all[..1], &all[1 + dropped..]].concat();
            assert_eq!(messages, kept, "{max_tokens}");
        }
    }

    /// A turn of the user and what followed it: rounds of tools, each with so many requests, and
    /// the answer.
    fn turn(number: usize, length: usize, rounds: &[usize], answers: bool) -> Vec<ChatMessage> {
        let words = "w".repeat(length);
        let mut messages = vec![user(&words)];
        for (round, calls) in rounds.iter().enumerate() {
            let ids: Vec<String> = (0..*calls)
                .map(|call| format!("{number}.{round}.{call}"))
                .collect();
            messages.push(ChatMessage::Assistant {
                text: String::new(),
                tool_calls: ids
                    .iter()
                    .map(|id| ToolCall {
                        id: id.clone(),
                        name: "f".to_owned(),
                        arguments: "{}".to_owned(),
                    })
                    .collect(),
            });
            messages.extend(ids.into_iter().map(|call_id| ChatMessage::Tool {
                call_id,
                output: words.clone(),
            }));
        }
        if answers {
            messages.push(agent(&words));
        }
        messages
    }

    proptest! {
        #[test]
        fn the_system_the_newest_turn_and_every_tool_with_its_output_stay(
            turns in prop::collection::vec(
                (0usize..200, prop::collection::vec(1usize..4, 0..3), any::<bool>()),
                1..12,
            ),
            has_system in any::<bool>(),
            has_greeting in any::<bool>(),
            max_tokens in 0u64..2_000,
        ) {
            let mut all = Vec::new();
            if has_system {
                all.push(ChatMessage::System("Be brief.".to_owned()));
            }
            if has_greeting {
                all.push(agent("Hello!"));
            }
            let mut newest = 0;
            for (number, (length, rounds, answers)) in turns.iter().enumerate() {
                newest = all.len();
                all.extend(turn(number, *length, rounds, *answers));
            }
            let mut kept = all.clone();
            let dropped = bound(&mut kept, max_tokens);
            let start = usize::from(has_system);
            prop_assert_eq!(&kept[..start], &all[..start]);
            prop_assert_eq!(&kept[start..], &all[start + dropped..]);
            prop_assert!(start + dropped <= newest);
            // The bound is kept, or only what must stay is there.
            let size: u64 = kept.iter().map(tokens).sum();
            prop_assert!(size <= max_tokens || start + dropped == newest);
            let mut asked: Vec<&str> = Vec::new();
            for message in &kept {
                match message {
                    ChatMessage::Assistant { tool_calls, .. } => {
                        asked.extend(tool_calls.iter().map(|call| call.id.as_str()));
                    }
                    ChatMessage::Tool { call_id, .. } => {
                        let at = asked.iter().position(|id| id == call_id);
                        prop_assert!(at.is_some(), "an output without its request");
                        asked.remove(at.unwrap());
                    }
                    _ => {}
                }
            }
            prop_assert!(asked.is_empty(), "a request without its output");
        }
    }
}
