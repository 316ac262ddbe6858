//! What a dispatch tells of its call before any process has looked at it. Pure.
//!
//! The worker puts it into the journal with the dispatch itself, so that a call whose process never
//! comes up is filed under its number and campaign too; the call learns more and adds it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{CallMetadata, CallStart, Direction, Numbers, SessionEvent, without_secrets};
use crate::phone::{self, CountryCode};

/// Keys of the job metadata that belong to the campaign, beside the object `campaign_metadata`.
const CAMPAIGN_KEYS: [&str; 4] = ["egressId", "campaignId", "voiceAgentId", "client"];

/// The key of the job metadata that says whether, and how, the number is dialled: `true`, `false`,
/// or an object.
pub const DIAL: &str = "dial";

/// How often metadata that is a JSON text is read again: dispatchers encode an object that was JSON
/// already.
const MAX_ENCODINGS: usize = 3;

/// The dispatcher's metadata as a JSON object; null when there is none. A telephone number alone,
/// bare or as JSON, is the object that says so.
///
/// # Errors
/// The rest of a sentence that begins with "the job metadata".
pub fn job_metadata(text: Option<&str>) -> Result<Value, String> {
    let mut text = text.unwrap_or_default().to_owned();
    for _ in 0..=MAX_ENCODINGS {
        // Files from a spreadsheet begin with a byte order mark.
        let bare = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
        if bare.is_empty() {
            return Ok(Value::Null);
        }
        if phone::number(bare, &CountryCode::default()).is_some() {
            return Ok(json!({ "phone_number": bare }));
        }
        match serde_json::from_str::<Value>(bare) {
            Ok(value @ (Value::Object(_) | Value::Null)) => return Ok(value),
            Ok(Value::String(inner)) => text = inner,
            Ok(_) => return Err("is JSON but no object".to_owned()),
            Err(error) => return Err(format!("is not JSON: {error}")),
        }
    }
    Err("is JSON in JSON in JSON, and no object".to_owned())
}

/// The campaign's metadata: what is known of it already, and what came with the job, which wins.
/// Anybody may dispatch a job, so nothing of it that looks like a secret gets into a record.
pub fn campaign(mut known: Map<String, Value>, job_metadata: &Value) -> Map<String, Value> {
    if let Some(from_job) = job_metadata
        .get("campaign_metadata")
        .and_then(Value::as_object)
    {
        known.extend(without_secrets(from_job.clone()));
    }
    let named: Map<String, Value> = CAMPAIGN_KEYS
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), job_metadata.get(key)?.clone())))
        .collect();
    known.extend(without_secrets(named));
    known
}

/// The two ends of a call as the session keeps them.
pub fn numbers_metadata(numbers: &Numbers) -> CallMetadata {
    CallMetadata {
        dialed_number: numbers.dialed_number.clone(),
        caller_number: numbers.dialed_number.clone(),
        trunk_number: numbers.trunk_number.clone(),
        call_id: numbers.sip_call_id.clone(),
        carrier_call_id: numbers.carrier_call_id.clone(),
        direction: numbers.direction,
        ..Default::default()
    }
}

/// How a dispatch is read, as the settings have it.
#[derive(Debug, Clone, Default)]
pub struct DispatchRules {
    /// Where numbers without a country code belong.
    pub country: CountryCode,
    /// Numbers are dialled where the dispatch does not say otherwise.
    pub dials: bool,
}

/// Whether the call's own process is to dial the number in the metadata: the key `dial` says so,
/// or, where there is none, `rules` (`dial.enabled`). A call that came in is never dialled.
pub fn is_dialled(job_metadata: &Value, rules: &DispatchRules) -> bool {
    let wanted = match job_metadata.get(DIAL) {
        None | Some(Value::Null) => rules.dials,
        Some(said) => *said != json!(false),
    };
    let inbound = job_metadata.get("direction").and_then(Value::as_str) == Some("inbound");
    wanted && !inbound && Numbers::told(job_metadata, &rules.country).is_some()
}

/// The same metadata with what follows from [`is_dialled`]: who called whom.
pub fn with_direction(mut job_metadata: Value, is_dialled: bool) -> Value {
    if is_dialled && let Some(fields) = job_metadata.as_object_mut() {
        fields.insert("direction".to_owned(), json!(Direction::Outbound));
    }
    job_metadata
}

/// The events that a dispatch is: numbers and direction, persona, campaign. Metadata that is no
/// JSON tells nothing; the call says so.
pub fn told_by(start: &CallStart, rules: &DispatchRules) -> Vec<SessionEvent> {
    let metadata = job_metadata(start.job_metadata.as_deref()).unwrap_or_default();
    let dialled = is_dialled(&metadata, rules);
    let metadata = with_direction(metadata, dialled);
    let numbers = Numbers::read(&metadata, &HashMap::new(), &start.room_name, &rules.country);
    let persona = metadata.get("persona").and_then(Value::as_str);
    let mut told = vec![SessionEvent::CallMetadata(CallMetadata {
        persona: persona.map(str::to_owned),
        ..numbers_metadata(&numbers)
    })];
    let campaign = campaign(Map::new(), &metadata);
    if !campaign.is_empty() {
        told.push(SessionEvent::CampaignMetadata { metadata: campaign });
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(metadata: Option<&str>, room: &str) -> CallStart {
        CallStart {
            session_id: "session_20261121_100000_aaaaaa".parse().unwrap(),
            job_id: "AJ_1".into(),
            room_name: room.into(),
            room_sid: None,
            job_metadata: metadata.map(str::to_owned),
            direction: None,
            call_start: "2026-11-21T10:00:00Z".parse().unwrap(),
            agent_name: String::new(),
            attributes: Default::default(),
        }
    }

    #[test]
    fn a_dispatch_tells_number_persona_and_campaign() {
        let metadata = json!({
            "phone_number": "+15550100123", "direction": "outbound", "persona": "pumps", "campaignId": "c2",
            "campaign_metadata": { "campaignId": "c1", "client": "k1", "region": "x" },
        })
        .to_string();
        let told = told_by(&job(Some(&metadata), "room"), &DispatchRules::default());
        let SessionEvent::CallMetadata(call) = &told[0] else {
            panic!("{told:?}");
        };
        assert_eq!(call.dialed_number.as_deref(), Some("+15550100123"));
        assert_eq!(call.persona.as_deref(), Some("pumps"));
        assert_eq!(call.direction, Some(super::super::Direction::Outbound));
        let SessionEvent::CampaignMetadata { metadata } = &told[1] else {
            panic!("{told:?}");
        };
        assert_eq!(
            Value::from(metadata.clone()),
            json!({ "campaignId": "c2", "client": "k1", "region": "x" })
        );
    }

    #[test]
    fn secrets_of_a_dispatch_are_no_campaign_metadata() {
        let metadata = json!({
            "campaignId": { "_id": "c2", "api_key": "k" },
            "campaign_metadata": {
                "client": "k1", "max_tokens": 5, "crmToken": "t", "password": "p", "Authorization": "a",
                "hook": { "client-secret": "s", "header": "Bearer abc", "url": "https://u:p@host/", "path": "/x" },
            },
        })
        .to_string();
        let told = told_by(&job(Some(&metadata), "room"), &DispatchRules::default());
        let SessionEvent::CampaignMetadata { metadata } = &told[1] else {
            panic!("{told:?}");
        };
        let expected = json!({
            "campaignId": { "_id": "c2" }, "client": "k1", "max_tokens": 5, "hook": { "path": "/x" },
        });
        assert_eq!(Value::from(metadata.clone()), expected);
    }

    #[test]
    fn metadata_that_is_no_object_leaves_the_room_name() {
        for text in [None, Some(""), Some("[]"), Some("{"), Some("hello")] {
            let job = job(text, "number-_918655066243-1698567890");
            let told = told_by(&job, &DispatchRules::default());
            let [SessionEvent::CallMetadata(call)] = &told[..] else {
                panic!("{told:?}");
            };
            assert_eq!(call.dialed_number.as_deref(), Some("+918655066243"));
        }
    }

    #[test]
    fn a_number_is_dialled_only_where_somebody_says_so() {
        for (metadata, by_default, expected) in [
            (json!({ "phone_number": "+15550100123" }), false, false),
            (json!({ "phone_number": "+15550100123" }), true, true),
            (
                json!({ "phone_number": "+15550100123", "dial": null }),
                true,
                true,
            ),
            (
                json!({ "phone_number": "+15550100123", "dial": false }),
                true,
                false,
            ),
            (
                json!({ "phone_number": "+15550100123", "dial": true }),
                false,
                true,
            ),
            (
                json!({ "phone_number": "+15550100123", "dial": {} }),
                false,
                true,
            ),
            (
                json!({ "phone_number": "+15550100123", "direction": "inbound" }),
                true,
                false,
            ),
            (
                json!({ "phone_number": "nobody", "dial": true }),
                true,
                false,
            ),
            (json!({ "dial": true }), true, false),
            (Value::Null, true, false),
        ] {
            let rules = DispatchRules {
                dials: by_default,
                ..Default::default()
            };
            assert_eq!(is_dialled(&metadata, &rules), expected, "{metadata}");
            let text = metadata.to_string();
            let told = told_by(&job(Some(&text), "room"), &rules);
            let SessionEvent::CallMetadata(call) = &told[0] else {
                panic!("{told:?}");
            };
            let is_outbound = call.direction == Some(Direction::Outbound);
            assert_eq!(is_outbound, expected, "{metadata}");
        }
    }

    /// Each line of `metadata.txt` is the metadata of one dispatch.
    #[test]
    fn the_number_of_a_dispatch_is_found_whatever_its_form() {
        let case = include_str!("../../tests/fixtures/cases/job-metadata-forms/metadata.txt");
        let extra = [
            "\"+91 86550 66243\"",
            "\"918655066243\"",
            "918655066243.0",
            "{\"phone_number\": 918655066243.0}",
            "\"\\\"{\\\\\\\"to\\\\\\\": \\\\\\\"+918655066243\\\\\\\"}\\\"\"",
        ];
        let mut seen = 0;
        for (at, text) in case.lines().chain(extra).enumerate() {
            let expected = if at == 0 {
                "1120742267"
            } else {
                "+918655066243"
            };
            let told = told_by(&job(Some(text), "room"), &DispatchRules::default());
            let [SessionEvent::CallMetadata(call)] = &told[..] else {
                panic!("{text}: {told:?}");
            };
            assert_eq!(call.dialed_number.as_deref(), Some(expected), "{text}");
            seen += 1;
        }
        assert_eq!(seen, 6 + extra.len());
    }
}
