//! The history as the turns of two sides, for vendors that want it so: the system's words apart,
//! then user and assistant by turns, beginning with the user; outputs of tools are the user's, each
//! right after the turn that asked for it. Pure.

use serde_json::{Map, Value};

use super::openai::history::{NOTHING_SAID, alternating};
use super::{ChatMessage, ToolCall};

/// What stands for an output that is not there.
const NO_OUTPUT: &str = "no answer";

/// A piece of a turn.
#[derive(Debug, PartialEq)]
pub(super) enum Part {
    /// Words, never blank.
    Text(String),
    /// A request for a tool.
    Call(ToolCall),
    /// What a tool answered.
    Output {
        /// The request.
        call: ToolCall,
        /// The answer.
        output: String,
    },
}

/// What one side said at once. Never empty.
#[derive(Debug, PartialEq)]
pub(super) struct Turn {
    pub is_user: bool,
    pub parts: Vec<Part>,
}

/// The system's words and the turns of `messages`.
pub(super) fn turns(messages: &[ChatMessage]) -> (String, Vec<Turn>) {
    let (mut system, mut turns) = (String::new(), Vec::new());
    // Requests of the last turn without an output yet.
    let mut open: Vec<ToolCall> = Vec::new();
    for message in alternating(messages.to_vec()) {
        match message {
            ChatMessage::System(text) => {
                if !system.is_empty() {
                    system.push_str("\n\n");
                }
                system.push_str(&text);
            }
            ChatMessage::Tool { call_id, output } => {
                // One that answers nothing is refused by every vendor.
                if let Some(at) = open.iter().position(|call| call.id == call_id) {
                    let call = open.remove(at);
                    push(&mut turns, true, Part::Output { call, output });
                }
            }
            ChatMessage::User(text) => {
                close(&mut turns, &mut open);
                if !text.trim().is_empty() {
                    push(&mut turns, true, Part::Text(text));
                }
            }
            ChatMessage::Assistant { text, tool_calls } => {
                close(&mut turns, &mut open);
                if turns.is_empty() {
                    push(&mut turns, true, Part::Text(NOTHING_SAID.to_owned()));
                }
                if !text.trim().is_empty() {
                    push(&mut turns, false, Part::Text(text));
                }
                for call in tool_calls {
                    open.push(call.clone());
                    push(&mut turns, false, Part::Call(call));
                }
            }
        }
    }
    close(&mut turns, &mut open);
    if turns.is_empty() {
        push(&mut turns, true, Part::Text(NOTHING_SAID.to_owned()));
    }
    (system, turns)
}

/// Answers the requests that got no output.
fn close(turns: &mut Vec<Turn>, open: &mut Vec<ToolCall>) {
    for call in open.drain(..) {
        let output = NO_OUTPUT.to_owned();
        push(turns, true, Part::Output { call, output });
    }
}

fn push(turns: &mut Vec<Turn>, is_user: bool, part: Part) {
    match turns.last_mut().filter(|turn| turn.is_user == is_user) {
        Some(turn) => turn.parts.push(part),
        None => turns.push(Turn {
            is_user,
            parts: vec![part],
        }),
    }
}

/// The arguments of a past call as an object. What was wrong with others stands in the output.
pub(super) fn sent_arguments(call: &ToolCall) -> Value {
    match serde_json::from_str(&call.arguments) {
        Ok(Value::Object(object)) => Value::Object(object),
        _ => Value::Object(Map::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str) -> ToolCall {
        ToolCall {
            id: id.to_owned(),
            name: "create_lead".to_owned(),
            arguments: "{}".to_owned(),
        }
    }

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn turn(is_user: bool, parts: Vec<Part>) -> Turn {
        Turn { is_user, parts }
    }

    fn output(id: &str, output: &str) -> Part {
        Part::Output {
            call: call(id),
            output: output.to_owned(),
        }
    }

    fn asks(text: &str, ids: &[&str]) -> ChatMessage {
        ChatMessage::Assistant {
            text: text.to_owned(),
            tool_calls: ids.iter().map(|id| call(id)).collect(),
        }
    }

    fn says(id: &str, output: &str) -> ChatMessage {
        ChatMessage::Tool {
            call_id: id.to_owned(),
            output: output.to_owned(),
        }
    }

    #[test]
    fn the_user_begins_the_sides_take_turns_and_every_request_for_a_tool_is_answered_once() {
        let user = |text: &str| ChatMessage::User(text.to_owned());
        let system = ChatMessage::System("Be kind.".to_owned());
        let cases = [
            (
                vec![system.clone(), asks("Hello!", &[]), user("Hi")],
                "Be kind.\n\nYou have already said to the caller: Hello!",
                vec![turn(true, vec![text("Hi")])],
            ),
            (
                vec![
                    system.clone(),
                    user("a"),
                    asks("One moment.", &["1", "2"]),
                    says("2", "two"),
                    says("1", "one"),
                    asks("Done.", &[]),
                    user("b"),
                ],
                "Be kind.",
                vec![
                    turn(true, vec![text("a")]),
                    turn(
                        false,
                        vec![
                            text("One moment."),
                            Part::Call(call("1")),
                            Part::Call(call("2")),
                        ],
                    ),
                    turn(true, vec![output("2", "two"), output("1", "one")]),
                    turn(false, vec![text("Done.")]),
                    turn(true, vec![text("b")]),
                ],
            ),
            // The reply was cut off after its tool.
            (
                vec![user("a"), asks("", &["1"]), says("1", "one"), user("b")],
                "",
                vec![
                    turn(true, vec![text("a")]),
                    turn(false, vec![Part::Call(call("1"))]),
                    turn(true, vec![output("1", "one")]),
                    turn(false, vec![text("…")]),
                    turn(true, vec![text("b")]),
                ],
            ),
            // Outputs that are missing, doubled or of nobody's request.
            (
                vec![
                    asks("", &["1"]),
                    says("7", "?"),
                    asks("", &["2"]),
                    says("2", "two"),
                    says("2", "two"),
                ],
                "",
                vec![
                    turn(true, vec![text("…")]),
                    turn(false, vec![Part::Call(call("1"))]),
                    turn(true, vec![output("1", NO_OUTPUT)]),
                    turn(false, vec![Part::Call(call("2"))]),
                    turn(true, vec![output("2", "two")]),
                ],
            ),
            (vec![], "", vec![turn(true, vec![text("…")])]),
        ];
        for (messages, expected_system, expected) in cases {
            let (system, turns) = turns(&messages);
            assert_eq!(
                (&*system, turns),
                (expected_system, expected),
                "{messages:?}"
            );
        }
    }
}
