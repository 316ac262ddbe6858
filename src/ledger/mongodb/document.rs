//! The documents of a call and its leads in MongoDB. Pure.
//!
//! A session document starts with the ids and times that people search by, as MongoDB types; the
//! contents of the record and conversation files follow. Keys from outside are converted, because
//! MongoDB does not accept every key of JSON.

use ::mongodb::bson::{Bson, DateTime as BsonDateTime, Document, doc};
use chrono::{DateTime, Utc};
use serde_json::{Map, Number, Value};

use crate::ledger::search::{FoundCall, Standing, WholeCall};
use crate::session::{CallRecord, CampaignIds, RecordStatus, SessionId, time};

/// Values nested deeper than this are stored as their JSON text: MongoDB allows 100 levels, some of
/// which the document itself uses.
const DEEPEST: usize = 60;

/// A call, ready to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct CallDocuments {
    /// For `sessions`; its `_id` is the session's id.
    pub session: Document,
    /// For `leads`; their `_id` is the lead's id.
    pub leads: Vec<Document>,
}

/// The documents of a call that has a record. `conversation` and `leads` are the files' contents;
/// leads come with their paths.
pub fn documents(
    call: &FoundCall,
    conversation: Option<&Value>,
    leads: &[(String, Value)],
) -> CallDocuments {
    let record = &call.record;
    let leads: Vec<Document> = leads
        .iter()
        .map(|(file, lead)| lead_document(record, file, lead))
        .collect();
    let lead_ids: Vec<Bson> = leads
        .iter()
        .filter_map(|lead| lead.get("_id").cloned())
        .collect();
    let campaign = CampaignIds::from_campaign_metadata(&record.campaign_metadata);
    let word = |value: Value| bson_of(&value, 0);
    let session = doc! {
        "_id": record.session_id.as_str(),
        "session_id": record.session_id.as_str(),
        "call_id": record.call_id.as_deref(),
        "job_id": record.job_id.as_deref(),
        "sip_call_id": record.sip_call_id.as_deref(),
        "egress_id": record.egress_id().map(bare_egress_id),
        "room": { "name": record.room.name.as_deref(), "sid": record.room.sid.as_deref() },
        "numbers": numbers_of(record),
        "dialed_number": record.dialed_number.as_deref(),
        "direction": word(serde_json::json!(record.direction)),
        "persona": record.persona.as_deref(),
        "campaign_id": campaign.campaign_id,
        "voice_agent_id": campaign.voice_agent_id,
        "client": campaign.client,
        "call_start": record.timestamps.call_start.map(date),
        "answered": record.timestamps.answered.map(date),
        "call_end": record.timestamps.call_end.map(date),
        "delivered": record.timestamps.delivered.map(date),
        "duration_s": call.duration_s(),
        "call_status": word(serde_json::json!(record.outcome.call_status)),
        "close_reason": word(serde_json::json!(record.outcome.close_reason)),
        "status": word(serde_json::json!(record.status)),
        "archived": call.standing == Standing::Archived,
        "lead_ids": lead_ids,
        "record": bson_of(&serde_json::to_value(record).unwrap_or_default(), 0),
        "conversation": conversation.map_or(Bson::Null, |value| bson_of(value, 0)),
    };
    CallDocuments { session, leads }
}

/// An egress's id without the prefix `EG_`, which not every source has.
fn bare_egress_id(id: &str) -> &str {
    id.strip_prefix("EG_").unwrap_or(id)
}

/// The numbers of both parties, digits only.
fn numbers_of(record: &CallRecord) -> Vec<String> {
    let mut numbers: Vec<String> = [
        &record.dialed_number,
        &record.caller_number,
        &record.trunk_number,
    ]
    .into_iter()
    .flatten()
    .map(|number| number.chars().filter(char::is_ascii_digit).collect())
    .filter(|digits: &String| !digits.is_empty())
    .collect();
    numbers.sort();
    numbers.dedup();
    numbers
}

fn lead_document(record: &CallRecord, file: &str, lead: &Value) -> Document {
    let mut document = match bson_of(lead, 0) {
        Bson::Document(document) => document,
        other => doc! { "lead": other },
    };
    // The original's leads have no id of their own; their files have names.
    let id = lead["lead_id"].as_str().unwrap_or(file).to_owned();
    document.insert("_id", id);
    document.insert("session_id", record.session_id.as_str());
    document.insert("call_id", record.call_id.as_deref());
    document.insert("file", file);
    let created_at = lead["created_at"].as_str().and_then(time::parse);
    let created_at = created_at.or(record.timestamps.call_end).map(date);
    document.insert("created_at", created_at);
    document
}

fn date(time: DateTime<Utc>) -> BsonDateTime {
    BsonDateTime::from_millis(time.timestamp_millis())
}

/// A JSON value as BSON that MongoDB accepts.
fn bson_of(value: &Value, depth: usize) -> Bson {
    match value {
        Value::Null => Bson::Null,
        Value::Bool(value) => Bson::Boolean(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Bson::Int64(whole),
            (None, Some(number)) => Bson::Double(number),
            (None, None) => Bson::String(number.to_string()),
        },
        Value::String(text) => Bson::String(text.clone()),
        Value::Array(_) | Value::Object(_) if depth >= DEEPEST => Bson::String(value.to_string()),
        Value::Array(values) => values
            .iter()
            .map(|value| bson_of(value, depth + 1))
            .collect::<Vec<_>>()
            .into(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| (fit_key(key), bson_of(value, depth + 1)))
            .collect::<Document>()
            .into(),
    }
}

/// Older servers refuse `$` at the beginning of a key and a dot in it, and no server takes a zero
/// byte: they become the characters that look like them, as MongoDB's own manual advises.
fn fit_key(key: &str) -> String {
    let key = match key.strip_prefix('$') {
        Some(rest) => format!("\u{ff04}{rest}"),
        None => key.to_owned(),
    };
    key.replace('.', "\u{ff0e}").replace('\0', "\u{2400}")
}

fn key_as_it_was(key: &str) -> String {
    let key = match key.strip_prefix('\u{ff04}') {
        Some(rest) => format!("${rest}"),
        None => key.to_owned(),
    };
    key.replace('\u{ff0e}', ".").replace('\u{2400}', "\0")
}

/// The inverse of [`bson_of`].
fn json_of(value: &Bson) -> Value {
    match value {
        Bson::Boolean(value) => Value::Bool(*value),
        Bson::Int32(value) => (*value).into(),
        Bson::Int64(value) => (*value).into(),
        Bson::Double(value) => Number::from_f64(*value).map_or(Value::Null, Value::Number),
        Bson::String(text) => text.clone().into(),
        Bson::Array(values) => values.iter().map(json_of).collect::<Vec<_>>().into(),
        Bson::Document(document) => document
            .iter()
            .map(|(key, value)| (key_as_it_was(key), json_of(value)))
            .collect::<Map<_, _>>()
            .into(),
        Bson::DateTime(at) => DateTime::from_timestamp_millis(at.timestamp_millis())
            .map_or(Value::Null, |at| time::format(at).into()),
        // No other type is written.
        _ => Value::Null,
    }
}

/// Reads a call back from its documents. `database` is the name of the database, for messages.
///
/// # Errors
/// The rest of a sentence that begins with the session's id.
pub(super) fn stored_call(
    session: &Document,
    leads: &[Document],
    database: &str,
) -> Result<WholeCall, String> {
    let id = session.get_str("_id").unwrap_or_default();
    let id: SessionId = id.parse().map_err(|error| format!("has no id: {error}"))?;
    let record = session.get("record").map(json_of).unwrap_or_default();
    let record = CallRecord::from_json(record.to_string().as_bytes(), &id)?;
    let standing = match (session.get_bool("archived"), record.status) {
        (Ok(true), _) => Standing::Archived,
        (_, RecordStatus::Failed) => Standing::Failed,
        _ => Standing::Waiting,
    };
    Ok(WholeCall {
        call: FoundCall {
            standing,
            file: format!("{database}.sessions in MongoDB"),
            record,
            live: None,
        },
        conversation: session
            .get("conversation")
            .map(json_of)
            .filter(|conversation| !conversation.is_null()),
        leads: leads.iter().map(stored_lead).collect(),
    })
}

fn stored_lead(lead: &Document) -> (String, Value) {
    let file = lead.get_str("file").unwrap_or_default().to_owned();
    let mut fields = json_of(&Bson::Document(lead.clone()));
    if let Value::Object(fields) = &mut fields {
        fields.remove("_id");
        fields.remove("file");
    }
    (file, fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn record() -> CallRecord {
        let text = include_bytes!(
            "../../../tests/fixtures/records/v2/metadata_session_20261121_101500_00beef.json"
        );
        let id = "session_20261121_101500_00beef".parse().unwrap();
        CallRecord::from_json(text, &id).unwrap()
    }

    fn call() -> FoundCall {
        FoundCall {
            standing: Standing::Archived,
            file: String::new(),
            record: record(),
            live: None,
        }
    }

    #[test]
    fn a_session_can_be_searched_by_everything_that_names_it() {
        let mut call = call();
        call.record.campaign_egress_id = Some("EG_1".to_owned());
        let lead = json!({ "lead_id": "l1", "name": "Asha Example", "created_at": "2026-11-21T10:15:40.000Z" });
        let file = "leads/lead_session_20261121_101500_00beef_1.json".to_owned();
        let documents = documents(&call, Some(&json!({ "total_items": 0 })), &[(file, lead)]);
        let session = &documents.session;
        for (key, expected) in [
            ("_id", "session_20261121_101500_00beef"),
            ("call_id", "CALL-20261121-50100123"),
            ("job_id", "AJ_example"),
            ("egress_id", "1"),
            ("campaign_id", "c1"),
            ("call_status", "completed"),
            ("status", "uploading"),
        ] {
            assert_eq!(session.get_str(key).ok(), Some(expected), "{key}");
        }
        assert_eq!(
            session.get_document("room").unwrap().get_str("sid").ok(),
            Some("RM_example")
        );
        let numbers: Vec<Bson> = vec!["15550100123".into(), "15550100999".into()];
        assert_eq!(session.get_array("numbers").ok(), Some(&numbers));
        assert_eq!(session.get_array("lead_ids").ok(), Some(&vec!["l1".into()]));
        assert_eq!(session.get_i64("duration_s").ok(), Some(58));
        assert_eq!(
            session
                .get_datetime("call_start")
                .unwrap()
                .timestamp_millis(),
            record().timestamps.call_start.unwrap().timestamp_millis()
        );
        let lead = &documents.leads[0];
        assert_eq!(lead.get_str("_id").ok(), Some("l1"));
        assert_eq!(lead.get_str("call_id").ok(), Some("CALL-20261121-50100123"));
        assert!(lead.get_datetime("created_at").is_ok());
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut call = call();
        call.record.campaign_metadata.insert(
            "_id".to_owned(),
            json!({ "$oid": "68fa0c1e995436dc7dd90001", "a.b": { "$x": u64::MAX }, "n\0l": -1.5 }),
        );
        let conversation =
            json!({ "conversation_items": [{ "role": "user", "content": "ja, नमस्ते" }] });
        let lead = json!({ "name": "Asha Example", "timeline": "next month" });
        let file = "leads/lead_20251029_114101.json";
        let written = documents(&call, Some(&conversation), &[(file.to_owned(), lead)]);
        assert_eq!(
            written.leads[0].get_str("_id").ok(),
            Some(file),
            "the original's have no id"
        );
        let read = stored_call(&written.session, &written.leads, "voicebot").unwrap();
        // A number beyond 64 bits with a sign is a double there.
        call.record.campaign_metadata["_id"]["a.b"]["$x"] = json!(u64::MAX as f64);
        assert_eq!(read.call.record, call.record);
        assert_eq!(read.call.standing, Standing::Archived);
        assert_eq!(read.conversation, Some(conversation));
        assert_eq!(read.leads[0].0, file);
        assert_eq!(read.leads[0].1["timeline"], "next month");
    }

    fn deepest(value: &Bson) -> usize {
        match value {
            Bson::Array(values) => 1 + values.iter().map(deepest).max().unwrap_or(0),
            Bson::Document(document) => 1 + document.values().map(deepest).max().unwrap_or(0),
            _ => 0,
        }
    }

    fn keys_fit(value: &Bson) -> bool {
        match value {
            Bson::Array(values) => values.iter().all(keys_fit),
            Bson::Document(document) => document.iter().all(|(key, value)| {
                !key.starts_with('$') && !key.contains(['.', '\0']) && keys_fit(value)
            }),
            _ => true,
        }
    }

    proptest! {
        /// For any campaign metadata, the document has no key or depth that the server refuses.
        #[test]
        fn every_key_and_depth_fits(keys in prop::collection::vec("[$.a\0]{0,4}", 1..100)) {
            let nested = keys.iter().fold(json!(1), |inner, key| json!({ key: inner, "list": [key] }));
            let mut call = call();
            call.record.campaign_metadata.insert("outside".to_owned(), nested);
            let session = Bson::Document(documents(&call, None, &[]).session);
            prop_assert!(keys_fit(&session));
            prop_assert!(deepest(&session) < 80);
        }
    }
}
