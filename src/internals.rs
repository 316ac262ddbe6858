//! The targets that fuzzers reach the program's parsers through. Behind the feature `internals`,
//! and no part of the interface.

use std::path::Path;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use crate::call::Persona;
use crate::ipc::{self, FromCall, ToCall};
use crate::providers::llm::read_streams;
use crate::providers::read_vendor_messages;
use crate::recording::manifest::Manifest;
use crate::recording::webhook::{WebhookRefused, Webhooks};
use crate::session::{
    CallMetadata, CallParticipant, CallRecord, CallStart, ConversationItem, Direction, Outcome,
    RecordingMetadata, SessionEvent, SessionId, SessionManager, Transcription, Usage, crm_payload,
    time,
};
use crate::store::journal;
use crate::upload::ReceiptConfig;
use crate::upload::policy::{Answer, find_url, judge, says_duplicate, shorten};
use crate::worker::wire;

/// A moment that does not change from run to run.
fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_761_738_000, 0).expect("a moment in 2025")
}

fn session() -> SessionId {
    "session_20251029_113920_abc123"
        .parse()
        .expect("a session's name")
}

/// Metadata files of any version: what was read can be sent, and once written it stays the same.
/// (The original's times have microseconds, ours milliseconds.)
pub fn record(data: &[u8]) {
    let id = session();
    let _ = CallRecord::filed(data, &id);
    let Ok(mut record) = CallRecord::from_json(data, &id) else {
        return;
    };
    let written = serde_json::to_vec(&record).expect("a record is JSON");
    let again = CallRecord::from_json(&written, &id)
        .unwrap_or_else(|error| panic!("what was written {error}"));
    let once_more = serde_json::to_vec(&again).expect("a record is JSON");
    assert!(written == once_more, "it changes each time it is written");
    let parsed: Option<Value> = serde_json::from_slice(data).ok();
    let _ = crm_payload(&record, parsed.as_ref(), parsed.as_ref(), None);
    let _ = (record.egress_id(), record.other_party());
    record.reset_for_retry();
}

/// The file that an egress writes beside its recording.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::read(data) {
        for file in &manifest.files {
            assert!(file.names().count() <= 2);
        }
    }
}

/// What a CRM answers. The first two bytes are the status and which headers there are.
pub fn crm_answer(data: &[u8]) {
    let [status, headers, body @ ..] = data else {
        return;
    };
    let header_text = String::from_utf8_lossy(body);
    let line = header_text.lines().next();
    let answer = Answer {
        status: 200 + u16::from(*status) + u16::from(headers & 8) * 25,
        retry_after: line.filter(|_| headers & 1 == 1),
        date: line.filter(|_| headers & 2 == 2),
        body,
        cut: headers & 4 == 4,
        ..Answer::default()
    };
    let _ = judge(
        "POST crm.example.com/upload",
        answer,
        &ReceiptConfig::default(),
        now(),
    );
    if let Ok(value) = serde_json::from_slice::<Value>(body) {
        let _ = says_duplicate(&value);
        let base = "https://crm.example.com/".parse().expect("a URL");
        let pointers = ["/url".to_owned(), "/data/url".to_owned()];
        let _ = find_url(&value, &pointers, &base);
        let _ = shorten(value);
    }
}

/// A journal, and the record that is made of it.
pub fn journal(data: &[u8]) {
    let journal = journal::parse(data, Path::new("a journal"));
    let last = journal.lines.last().map(|line| line.at);
    let begins = journal.begins_with_dispatch();
    let events = journal.lines.into_iter().map(|line| line.event);
    let session = match begins {
        true => SessionManager::replay(events),
        false => SessionManager::salvage(&session(), events),
    };
    let Some(session) = session else {
        assert!(!begins, "a journal with its dispatch has a session");
        return;
    };
    let data = session.get_complete_session_data();
    let end = last.unwrap_or_else(now);
    let conversation = Transcription::of(&data, end);
    let conversation = serde_json::to_value(&conversation).expect("a conversation is JSON");
    let record = CallRecord::new(&data, None, "conversations/c.json".to_owned(), end, now());
    let written = serde_json::to_vec(&record).expect("a record is JSON");
    let read = CallRecord::from_json(&written, &record.session_id);
    assert!(read.is_ok(), "{read:?}");
    let _ = crm_payload(&record, Some(&conversation), None, None);
}

/// Personas as an HTTP server gives them.
pub fn persona(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(persona) = Persona::read(text, "name") {
        let _ = persona.campaign_metadata();
    }
}

/// What LiveKit's server tells a worker.
pub fn server_message(data: &[u8]) {
    let _ = wire::decode(data);
}

/// The stream of a chat model, which must not depend on how it is cut.
pub fn chat_stream(data: &[u8]) {
    let whole = read_streams(data, data.len());
    assert_eq!(whole, read_streams(data, 1));
    assert_eq!(whole, read_streams(data, 7));
}

/// What vendors of recognition and synthesis say over their sockets: read alike each time.
pub fn vendor_messages(data: &[u8]) {
    assert_eq!(read_vendor_messages(data), read_vendor_messages(data));
}

/// A webhook of LiveKit with a good signature.
pub fn webhook(data: &[u8]) {
    let webhooks = Webhooks::new("key", "a secret that is long enough");
    let token = roomserver::internals::webhook_token("key", "a secret that is long enough", data);
    if let Err(WebhookRefused::Signature(why)) = webhooks.read(data, &token) {
        assert!(std::str::from_utf8(data).is_err(), "{why}");
    }
}

/// What worker and call tell each other.
pub fn ipc(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(message) = ipc::decode_line::<ToCall>(line) {
        let again = ipc::decode_line::<ToCall>(ipc::encode_line(&message).trim_end());
        assert_eq!(again.ok(), Some(message));
    }
    if let Ok(message) = ipc::decode_line::<FromCall>(line) {
        let again = ipc::decode_line::<FromCall>(ipc::encode_line(&message).trim_end());
        assert_eq!(again.ok(), Some(message));
    }
    let _ = time::parse(line);
}

/// A journal with one event of each kind but leads.
fn journal_of_every_event() -> Vec<u8> {
    let at = now();
    let start = CallStart {
        session_id: session(),
        job_id: "AJ_1".to_owned(),
        room_name: "room".to_owned(),
        room_sid: None,
        job_metadata: None,
        direction: Some(Direction::Inbound),
        call_start: at,
        agent_name: String::new(),
        attributes: Default::default(),
    };
    let events = [
        SessionEvent::Dispatched(start),
        SessionEvent::CallMetadata(CallMetadata::default()),
        SessionEvent::CampaignMetadata {
            metadata: Map::from_iter([("campaignId".to_owned(), "c".into())]),
        },
        SessionEvent::Recording(RecordingMetadata::default()),
        SessionEvent::Item(ConversationItem::user("hello", at)),
        SessionEvent::Item(ConversationItem::assistant("hello", at)),
        SessionEvent::LeadFile {
            path: "leads/1.json".to_owned(),
        },
        SessionEvent::Usage(Usage::default()),
        SessionEvent::Joined { at },
        SessionEvent::Participant(CallParticipant::default()),
        SessionEvent::Ringing { at },
        SessionEvent::Answered { at },
        SessionEvent::CallerReplaced,
        SessionEvent::Outcome(Outcome::recovered("x", Some(at))),
    ];
    let mut journal = Vec::new();
    for event in events {
        let mut line = serde_json::to_value(&event).expect("an event is JSON");
        line["at"] = time::format(at).into();
        journal.extend(line.to_string().into_bytes());
        journal.push(b'\n');
    }
    journal
}

/// Inputs to begin with. Records come from the tests' fixtures.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let texts: &[&str] = match target {
        "manifest" => &[
            r#"{"egress_id":"EG_1","started_at":1761738000000000000,"ended_at":"1761738060000000000","files":[{"filename":"recordings/a.ogg","location":"/out/a.ogg"}]}"#,
        ],
        "persona" => &[
            r#"{"data":{"name":"Asha","instructions":"Be kind.","campaigns":[{"_id":"c","voiceAgents":[{"_id":"v","greeting":"Hello"}],"client":"x"}]}}"#,
        ],
        "chat_stream" => &[
            concat!(
                ": comment\n\n",
                "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n",
                "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"c1\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n",
                "data: [DONE]\n\n",
            ),
            // Anthropic.
            concat!(
                "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":9,\"cache_read_input_tokens\":5,\"output_tokens\":1}}}\n\n",
                "data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
                "data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hel\"}}\n\n",
                "data: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"f\",\"input\":{}}}\n\n",
                "data: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{}\"}}\n\n",
                "data: {\"type\":\"content_block_stop\",\"index\":1}\n\n",
                "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"max_tokens\"},\"usage\":{\"output_tokens\":7}}\n\n",
                "data: {\"type\":\"message_stop\"}\n\n",
            ),
            // Gemini.
            concat!(
                "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"Hm\",\"thought\":true},{\"text\":\"Hel\"}],\"role\":\"model\"},\"index\":0}]}\r\n\r\n",
                "data: {\"candidates\":[{\"content\":{\"parts\":[{\"functionCall\":{\"name\":\"f\",\"args\":{}},\"thoughtSignature\":\"c2ln\"}]},\"finishReason\":\"SAFETY\"}],\"usageMetadata\":{\"promptTokenCount\":3}}\r\n\r\n",
                "data: {\"promptFeedback\":{\"blockReason\":\"SAFETY\"}}\n\n",
            ),
        ],
        "vendor_messages" => &[
            "\u{0}{\"type\":\"Results\",\"start\":1.5,\"duration\":2.0,\"is_final\":true,\"from_finalize\":true,\"channel\":{\"alternatives\":[{\"transcript\":\"Hello.\",\"confidence\":0.9,\"words\":[{\"word\":\"hello\",\"punctuated_word\":\"Hello.\",\"start\":1.6,\"end\":2.0}]}]}}",
            "\u{1}{\"type\":\"TurnInfo\",\"event\":\"EndOfTurn\",\"audio_window_start\":0.0,\"audio_window_end\":1.2,\"transcript\":\"Hello\",\"words\":[{\"word\":\"Hello\",\"confidence\":0.9}],\"end_of_turn_confidence\":0.5}",
            "\u{2}{\"type\":\"Turn\",\"turn_is_formatted\":true,\"end_of_turn\":true,\"transcript\":\"Yes.\",\"words\":[{\"text\":\"Yes.\",\"start\":100,\"end\":400,\"confidence\":0.5}]}",
            "\u{4}{\"type\":\"chunk\",\"context_id\":\"s1\",\"data\":\"AQA=\"}\n{\"type\":\"timestamps\",\"context_id\":\"s1\",\"word_timestamps\":{\"words\":[\"We\"],\"start\":[0.0],\"end\":[0.2]}}\n{\"type\":\"done\",\"context_id\":\"s1\"}",
            "\u{5}{\"audio\":\"AQA=\",\"contextId\":\"s1\",\"alignment\":{\"chars\":[\"W\",\" \"],\"charStartTimesMs\":[0,20],\"charDurationsMs\":[20,20]}}\n{\"isFinal\":true,\"contextId\":\"s1\"}",
            "\u{6}{\"type\":\"Flushed\",\"sequence_id\":0}",
            "\u{7}{\"message_type\":\"partial_transcript\",\"text\":\"Yes,\"}\n{\"message_type\":\"committed_transcript_with_timestamps\",\"text\":\"Yes.\",\"words\":[{\"text\":\"Yes.\",\"start\":0.5,\"end\":0.75,\"type\":\"word\",\"logprob\":-0.1}]}",
            "\u{8}{\"type\":\"transcript\",\"text\":\" Yes.\",\"is_final\":true,\"words\":[{\"word\":\"Yes.\",\"start\":0.5,\"end\":0.75}]}\n{\"type\":\"flush_done\"}",
            "\u{9}{\"event\":\"transcript.partial\",\"utterance_idx\":0,\"text\":\"Haan\"}\n{\"event\":\"transcript.final\",\"utterance_idx\":0,\"text\":\"Haan.\",\"start_s\":0.5,\"end_s\":0.75}",
            "\u{a}{\"type\":\"input_audio_buffer.speech_started\",\"item_id\":\"a\",\"audio_start_ms\":500}\n{\"type\":\"input_audio_buffer.speech_stopped\",\"item_id\":\"a\",\"audio_end_ms\":900}\n{\"type\":\"conversation.item.input_audio_transcription.delta\",\"item_id\":\"a\",\"delta\":\"Yes\"}\n{\"type\":\"conversation.item.input_audio_transcription.completed\",\"item_id\":\"a\",\"transcript\":\"Yes.\"}",
            "\u{b}{\"type\":\"conversation.item.input_audio_transcription.completed\",\"item_id\":\"a\",\"transcript\":\"Yes.\"}\n{\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"code\":\"input_audio_buffer_commit_empty\"}}",
            "\u{c}{\"type\":\"audio\",\"data\":{\"content_type\":\"audio/linear16\",\"audio\":\"AQA=\"}}\n{\"type\":\"event\",\"data\":{\"event_type\":\"final\"}}",
        ],
        "webhook" => &[
            r#"{"event":"egress_ended","egressInfo":{"egressId":"EG_1","roomName":"room","status":"EGRESS_COMPLETE"},"id":"EV_1","createdAt":"1761738000"}"#,
        ],
        "ipc" => &[
            r#"{"message":"shutdown","reason":"termination"}"#,
            r#"{"message":"finishing","success":true,"error":null}"#,
            r#"{"message":"record_written","session_id":"session_20251029_113920_abc123"}"#,
        ],
        _ => &[],
    };
    let mut seeds: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    let bytes: &[&[u8]] = match target {
        "crm_answer" => &[
            b"\0\0{\"success\":true,\"data\":{\"url\":\"/files/1.ogg\",\"id\":7}}",
            b"\xc8\0{\"error\":{\"message\":\"E11000 duplicate key\"}}",
            b"\xe5\x01120",
            b"\x67\x0bWed, 29 Oct 2025 11:39:20 GMT",
        ],
        "server_message" => &[b"\x0a\x0c\x0a\x04AW_1\x12\x04\x12\x021.", b"\x2a\0"],
        _ => &[],
    };
    if target == "journal" {
        seeds.push(journal_of_every_event());
    }
    seeds.extend(bytes.iter().map(|bytes| bytes.to_vec()));
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_takes_what_it_begins_with() {
        let targets: [(&str, fn(&[u8])); 10] = [
            ("record", record),
            ("manifest", manifest),
            ("crm_answer", crm_answer),
            ("journal", journal),
            ("persona", persona),
            ("server_message", server_message),
            ("chat_stream", chat_stream),
            ("vendor_messages", vendor_messages),
            ("webhook", webhook),
            ("ipc", ipc),
        ];
        for (name, target) in targets {
            let seeds = seeds(name);
            assert!(!seeds.is_empty() || name == "record", "{name}");
            for seed in seeds {
                target(&seed);
                target(&seed[..seed.len() / 2]);
            }
        }
        let text = String::from_utf8(journal_of_every_event()).expect("it is text");
        let read = journal::parse(text.as_bytes(), Path::new("a journal"));
        assert_eq!((read.lines.len(), read.damaged), (11, false));
    }
}
