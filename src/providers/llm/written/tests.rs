use proptest::prelude::*;
use serde_json::json;

use super::*;

fn tools() -> Vec<ToolDefinition> {
    let tool = |name: &str| ToolDefinition {
        name: name.to_owned(),
        description: String::new(),
        parameters: json!({ "type": "object", "properties": { "name": { "type": "string" }, "budget": { "type": "string" } } }),
    };
    ["create_lead", "detect_intent", "end_call"]
        .map(tool)
        .to_vec()
}

/// Words as they are, calls as `name(arguments)`, the rest as marks.
fn read_by(text: &str, piece: usize) -> (String, Vec<String>) {
    let mut written = Written::new(&tools(), false);
    let chars: Vec<char> = text.chars().collect();
    let mut pieces = Vec::new();
    for piece in chars.chunks(piece) {
        pieces.extend(written.push(&piece.iter().collect::<String>()));
    }
    pieces.extend(written.finish());
    let (mut words, mut rest) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Text(text) => words.push_str(&text),
            Piece::Call { name, arguments } => rest.push(format!("{name}({arguments})")),
            Piece::Dropped => rest.push("dropped".to_owned()),
            Piece::ThoughtsBefore => words.clear(),
        }
    }
    (words.trim().to_owned(), rest)
}

const LEAD: &str = r#"create_lead({"company":"A & B","name":"Asha \"{\" Rao"})"#;
const ARGUMENTS: &str = r#"{"name": "Asha \"{\" Rao", "company": "A & B"}"#;

#[test]
fn a_request_in_the_text_is_run_and_not_spoken_whatever_the_pieces() {
    let object = format!(r#"{{"name": "create_lead", "arguments": {ARGUMENTS}}}"#);
    let llama = format!(r#"{{"name": "create_lead", "parameters": {ARGUMENTS}}}"#);
    let in_text = json!({ "name": "create_lead", "arguments": ARGUMENTS });
    let openai = json!({ "tool_calls": [{ "id": "1", "type": "function", "function": in_text }] });
    let forms = [
        // Hermes and Qwen, closed, not closed, and closed by the end of the turn.
        format!("<tool_call>\n{object}\n</tool_call>"),
        format!("<TOOL_CALL>{object}</TOOL_CALL>"),
        format!("<tool_call>\n{object}"),
        format!("<tool_call>\n{object}<|im_end|>\n<|im_start|>user\nThanks!"),
        format!("<tools>{object}</tools>"),
        format!("<tool_call>\n```json\n{object}\n```\n</tool_call>"),
        // Llama.
        llama.clone(),
        format!("<|python_tag|>{llama}<|eom_id|>"),
        format!("<function=create_lead>{ARGUMENTS}</function>"),
        r#"[create_lead(name="Asha \"{\" Rao", company='A & B')]"#.to_owned(),
        r#"<|python_start|>[create_lead(name="Asha \"{\" Rao", company="A & B")]<|python_end|>"#.to_owned(),
        // Mistral.
        format!("[TOOL_CALLS] [{object}]"),
        format!("[TOOL_CALLS]create_lead{ARGUMENTS}"),
        format!("[TOOL_CALLS]create_lead[ARGS]{ARGUMENTS}"),
        // Qwen's coders, Anthropic, GLM.
        "<tool_call>\n<function=create_lead>\n<parameter=name>\nAsha \"{\" Rao\n</parameter>\n<parameter=company>\nA & B\n</parameter>\n</function>\n</tool_call>".to_owned(),
        "<function_calls>\n<invoke name=\"create_lead\">\n<parameter name=\"name\">Asha \"{\" Rao</parameter>\n<parameter name=\"company\">A & B</parameter>\n</invoke>\n</function_calls>".to_owned(),
        "<tool_call>create_lead\n<arg_key>name</arg_key>\n<arg_value>Asha \"{\" Rao</arg_value>\n<arg_key>company</arg_key>\n<arg_value>A & B</arg_value>\n</tool_call>".to_owned(),
        // DeepSeek, Kimi, Phi, gpt-oss.
        format!("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>create_lead\n```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
        format!("<|tool_calls_section_begin|><|tool_call_begin|>functions.create_lead:0<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|><|tool_calls_section_end|>"),
        format!("<|tool_call|>[{object}]<|/tool_call|>"),
        format!("<|channel|>analysis<|message|>Save it.<|end|><|start|>assistant<|channel|>commentary to=functions.create_lead <|constrain|>json<|message|>{ARGUMENTS}<|call|>"),
        // Others.
        format!("```json\n{object}\n```"),
        "```tool_code\ncreate_lead(name='Asha \"{\" Rao', company='A & B')\n```".to_owned(),
        openai.to_string(),
        in_text.to_string(),
        format!(r#"{{"create_lead": {ARGUMENTS}}}"#),
        format!(r#"[{{"type": "function", "name": "functions.create_lead", "arguments": {ARGUMENTS}}}]"#),
    ];
    for form in &forms {
        for piece in [1, 2, 5, 1_000] {
            for (text, words) in [
                (form.clone(), ""),
                (
                    format!("One moment, please.\n{form}"),
                    "One moment, please.",
                ),
            ] {
                let (said, calls) = read_by(&text, piece);
                assert_eq!(
                    (said.as_str(), calls.as_slice()),
                    (words, &[LEAD.to_owned()][..]),
                    "{text}"
                );
            }
        }
    }
}

#[test]
fn what_a_model_makes_up_for_a_tool_that_has_not_run_is_not_spoken() {
    let call = r#"<tool_call>{"name": "end_call", "arguments": {}}</tool_call>"#;
    let text = format!("Bye. {call}<tool_response>done</tool_response> It is done.");
    for piece in [1, 5, 1_000] {
        assert_eq!(
            read_by(&text, piece),
            ("Bye.".to_owned(), vec!["end_call({})".to_owned()])
        );
    }
}

#[test]
fn several_requests_are_several_calls() {
    let lead = format!(r#"{{"name": "create_lead", "parameters": {ARGUMENTS}}}"#);
    let end = r#"{"name": "end_call", "parameters": {}}"#;
    for text in [
        format!("{lead}; {end}"),
        format!("[{lead}, {end}]"),
        format!("<tool_call>{lead}</tool_call>\n<tool_call>{end}</tool_call>"),
        format!("<tool_call>{lead}\n<tool_call>{end}</tool_call>"),
        format!("[TOOL_CALLS][{lead}, {end}]"),
        r#"[create_lead(name="Asha \"{\" Rao", company="A & B"), end_call()]"#.to_owned(),
    ] {
        for piece in [1, 4, 1_000] {
            let (said, calls) = read_by(&text, piece);
            assert_eq!(
                (said.as_str(), calls),
                ("", vec![LEAD.to_owned(), "end_call({})".to_owned()]),
                "{text}"
            );
        }
    }
    assert_eq!(read_by(r#"{"name": "end_call"}"#, 3).1, ["end_call({})"]);
}

#[test]
fn what_is_not_whole_or_not_offered_is_neither_run_nor_spoken() {
    for text in [
        r#"{"name": "create_lead", "parameters": {"name": "Asha"#,
        r#"<tool_call>{"name": "create_lead", "arguments": {"name": "Asha""#,
        "<tool_call>\n<function=create_lead>\n<parameter=name>\nAsha</parameter>\n<parameter=comp",
        r#"<tool_call>{"name": "delete_everything", "arguments": {}}</tool_call>"#,
        r#"{"name": "Asha Rao", "email": "asha@example.com"}"#,
        r#"{"name": "create_lead", "arguments": "all of it"}"#,
        r#"{'name': 'create_lead', 'arguments': {}}"#,
        r#"[create_lead(name="Asha"#,
        r#"[create_lead(name={"first": "Asha"})]"#,
        r#"<tool_call>{"name": "create_lead", "arguments": {"name": "Asha"}</tool_call>"#,
        "<tool_call>create_lead for Asha</tool_call>",
        "```tool_code\nprint(1)\n```",
    ] {
        for piece in [1, 3, 1_000] {
            let (said, rest) = read_by(text, piece);
            assert_eq!(
                (said.as_str(), rest),
                ("", vec!["dropped".to_owned()]),
                "{text}"
            );
        }
    }
    let nothing = read_by("<tool_call></tool_call>Yes.", 1);
    assert_eq!(
        (nothing.0.as_str(), nothing.1.as_slice()),
        ("Yes.", &[][..])
    );
}

#[test]
fn thoughts_are_not_spoken() {
    for text in [
        "<think>\nThe caller < asks. Keep it secret.\n</think>\n\nYes.",
        "<thinking>Hm.</thinking>Yes.",
        "<Reasoning effort=\"low\">Hm. </think </Reasoning>Yes.",
        "<think>Hm.</thinking>Yes.",
        "<seed:think>Hm.</seed:think>Yes.",
        "<think/>Yes.",
        "[THINK]Hm. [No.][/THINK]Yes.",
        "◁think▷Hm.◁/think▷Yes.",
        "<think>Hm ◁ so [/think] it is.</think>Yes.",
        "<|begin_of_thought|>Hm.<|end_of_thought|>Yes.",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        "Hm.\n</think>\nYes.",
        "Yes.<think>Hm. Never closed",
        "Yes.<|im_end|>\n<|im_start|>user\nAnd now?",
        "<tool_response>{\"saved\": true}</tool_response>Yes.",
    ] {
        for piece in [1, 2, 7, 1_000] {
            let (said, rest) = read_by(text, piece);
            assert_eq!((said.as_str(), rest.len()), ("Yes.", 0), "{text}");
        }
    }
}

#[test]
fn a_model_that_never_opens_its_thoughts_is_waited_for() {
    for (text, expected) in [
        ("Hm.\n</think>\nYes.", "Yes."),
        // This time it did not think.
        ("Yes.", "Yes."),
    ] {
        let mut written = Written::new(&tools(), true);
        let mut words = String::new();
        let pieces: Vec<Piece> = text
            .chars()
            .flat_map(|c| written.push(&c.to_string()))
            .collect();
        for piece in pieces.into_iter().chain(written.finish()) {
            let Piece::Text(text) = piece else {
                panic!("{piece:?}")
            };
            words.push_str(&text);
        }
        assert_eq!(words.trim(), expected);
    }
}

#[test]
fn ordinary_text_goes_on_at_once() {
    for text in [
        "We open at nine. It costs 5 < 6, or [really] 20 %.",
        "Use `code`, {this} and {that}, a <b>tag</b> and <thin> ones; I think so.",
        "See [our page](https://example.com). I ❤ ◁ it. [1] [T] [Tool] {}",
    ] {
        let mut written = Written::new(&tools(), false);
        let mut words = String::new();
        let mut longest_wait = 0;
        for (at, c) in text.char_indices() {
            for piece in written.push(&c.to_string()) {
                let Piece::Text(text) = piece else {
                    panic!("{piece:?}")
                };
                words.push_str(&text);
            }
            longest_wait = longest_wait.max(at + c.len_utf8() - words.len());
        }
        assert!(
            longest_wait <= "<thin".len(),
            "{longest_wait} bytes of {text}"
        );
        for piece in written.finish() {
            let Piece::Text(text) = piece else {
                panic!("{piece:?}")
            };
            words.push_str(&text);
        }
        assert_eq!(words, text);
    }
}

#[test]
fn code_that_is_no_request_stays_text() {
    let text = "See:\n```python\nprint(1)\n```\nDone.";
    let (said, rest) = read_by(text, 4);
    assert_eq!((said.as_str(), rest.len()), (text, 0));
    let text = "Hello <speak>you</speak>";
    assert_eq!(read_by(text, 1).0, text);
}

#[test]
fn a_request_without_end_is_bounded() {
    let mut written = Written::new(&tools(), false);
    let mut pieces = written.push("<tool_call>{\"name\": \"");
    for _ in 0..1_000 {
        pieces.extend(written.push(&"x".repeat(1_000)));
        assert!(written.held.len() <= MAX_HELD_BYTES + 1_000);
    }
    pieces.extend(written.finish());
    assert_eq!(pieces, [Piece::Dropped]);
}

proptest! {
    #[test]
    fn any_text_reads_the_same_whatever_the_pieces(
        text in "(<|/|>|\\||think|tool_call|\\{|\\}|\"|'|\\[|\\]|`|```|name|create_lead|\\(|\\)|[a-z .:,\n=▁｜◁é])*",
        piece in 1usize..9,
    ) {
        prop_assert_eq!(read_by(&text, piece), read_by(&text, 100_000));
    }
}
