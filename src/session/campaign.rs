//! The campaign of a call: the ids by which the CRM knows it, and where in its metadata the
//! original kept what the call itself had learnt.

use serde_json::{Map, Value, json};

/// The key under which the original kept the latest lead's path.
const LEAD_FILE: &str = "lead_file";
/// The key under which the campaign's source, or the original, names the egress of the recording.
const EGRESS_ID: &str = "egressId";

/// Keys of the campaign metadata, and of the call data, that say for which attempt of which of our
/// own campaigns a call was made: the campaign's name, the id of the lead in its list, and the
/// attempt's.
pub const ATTEMPT_KEYS: [&str; 3] = ["campaign", "leadId", "attemptId"];

/// The egress that the metadata names.
pub(super) fn egress_id(metadata: &Map<String, Value>) -> Option<&str> {
    let id = metadata.get(EGRESS_ID)?.as_str()?;
    Some(id).filter(|id| !id.is_empty())
}

/// The metadata without what the call knows better: its egress, its latest lead.
pub(super) fn without_own(
    mut metadata: Map<String, Value>,
    egress_id: Option<&str>,
    lead_file: Option<&str>,
) -> Map<String, Value> {
    for (key, own) in [(EGRESS_ID, egress_id), (LEAD_FILE, lead_file)] {
        if own.is_some() {
            metadata.remove(key);
        }
    }
    metadata
}

/// Puts what the call itself knows where the original had it.
pub(super) fn put_own(
    metadata: &mut Map<String, Value>,
    egress_id: Option<&str>,
    lead_file: Option<&str>,
) {
    for (key, own) in [(EGRESS_ID, egress_id), (LEAD_FILE, lead_file)] {
        if let Some(own) = own {
            metadata.entry(key.to_owned()).or_insert_with(|| own.into());
        }
    }
}

/// Takes out what [`put_own`] has put there: the egress's id, which is given back, and the lead's
/// path. A path in another form, as the original's machine had it, stays as it was written.
pub(super) fn take_own(
    metadata: &mut Map<String, Value>,
    lead_file: Option<&str>,
) -> Option<String> {
    if lead_file.is_some() && metadata.get(LEAD_FILE).and_then(Value::as_str) == lead_file {
        metadata.remove(LEAD_FILE);
    }
    let id = egress_id(metadata)?.to_owned();
    metadata.remove(EGRESS_ID);
    Some(id)
}

/// The ids by which the CRM knows a campaign.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CampaignIds {
    /// `campaigns[0]._id`.
    pub campaign_id: Option<String>,
    /// `campaigns[0].voiceAgents[0]._id`.
    pub voice_agent_id: Option<String>,
    /// `campaigns[0].client`.
    pub client: Option<String>,
}

impl CampaignIds {
    /// Reads them from a persona.
    pub fn from_persona(persona: &Value) -> Self {
        let campaign = &persona["campaigns"][0];
        Self {
            campaign_id: id_text(&campaign["_id"]),
            voice_agent_id: id_text(&campaign["voiceAgents"][0]["_id"]),
            client: id_text(&campaign["client"]),
        }
    }

    /// The known ones as a record's campaign metadata has them.
    pub fn fields(&self) -> Map<String, Value> {
        [
            ("campaignId", &self.campaign_id),
            ("voiceAgentId", &self.voice_agent_id),
            ("client", &self.client),
        ]
        .into_iter()
        .filter_map(|(key, id)| Some((key.to_owned(), id.clone()?.into())))
        .collect()
    }

    /// Reads them from a record's campaign metadata: as ours names them, as the original's session
    /// named them, or from a persona inside.
    pub fn from_campaign_metadata(metadata: &Map<String, Value>) -> Self {
        let first = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| metadata.get(*name).and_then(id_text))
        };
        let inside = Self::from_persona(&json!({ "campaigns": metadata.get("campaigns") }));
        let full_config = metadata
            .get("full_config")
            .map(Self::from_persona)
            .unwrap_or_default();
        Self {
            campaign_id: first(&["campaignId", "campaign_id"])
                .or(inside.campaign_id)
                .or(full_config.campaign_id),
            voice_agent_id: first(&["voiceAgentId", "voice_agent_id"])
                .or(inside.voice_agent_id)
                .or(full_config.voice_agent_id),
            client: first(&["client", "client_id"])
                .or(inside.client)
                .or(full_config.client),
        }
    }
}

/// An id is a text, a number, MongoDB's `{"$oid": …}`, or an object that has an `_id`.
fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Object(fields) => fields
            .get("$oid")
            .or_else(|| fields.get("_id"))
            .and_then(id_text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_campaign_are_found_in_every_form() {
        for persona in [
            json!({ "campaigns": [{ "_id": "c", "client": "k", "voiceAgents": [{ "_id": "v" }] }] }),
            json!({ "campaigns": [{ "_id": { "$oid": "c" }, "client": { "_id": "k" }, "voiceAgents": [{ "_id": "v" }, {}] }, {}] }),
        ] {
            let ids = CampaignIds::from_persona(&persona);
            assert_eq!(ids.campaign_id.as_deref(), Some("c"));
            assert_eq!(ids.voice_agent_id.as_deref(), Some("v"));
            assert_eq!(ids.client.as_deref(), Some("k"));
            let Value::Object(metadata) = persona else {
                unreachable!("it is an object")
            };
            assert_eq!(CampaignIds::from_campaign_metadata(&metadata), ids);
        }
        for nothing in [
            json!({}),
            json!({ "campaigns": [] }),
            json!({ "campaigns": null }),
            json!(null),
            json!({ "campaigns": [{}] }),
        ] {
            assert_eq!(CampaignIds::from_persona(&nothing), CampaignIds::default());
        }
        let ours = json!({ "campaignId": 7, "voice_agent_id": "v", "client_id": "k", "campaigns": [{ "_id": "other" }] });
        let Value::Object(ours) = ours else {
            unreachable!("it is an object")
        };
        let ids = CampaignIds::from_campaign_metadata(&ours);
        assert_eq!(
            (ids.campaign_id.as_deref(), ids.client.as_deref()),
            (Some("7"), Some("k"))
        );
    }

    #[test]
    fn what_the_call_knows_goes_into_the_metadata_and_out_again() {
        let read = json!({ "a": 1, "egressId": "EG_1", "lead_file": "leads/1.json" });
        let Value::Object(written) = read else {
            unreachable!("it is an object")
        };
        let mut metadata = written.clone();
        let egress_id = take_own(&mut metadata, Some("leads/1.json"));
        assert_eq!(egress_id.as_deref(), Some("EG_1"));
        assert_eq!(Value::from(metadata.clone()), json!({ "a": 1 }));
        put_own(&mut metadata, egress_id.as_deref(), Some("leads/1.json"));
        assert_eq!(metadata, written);
        // What is nobody's, or in another form, stays what it was.
        for odd in [
            json!({ "egressId": "", "lead_file": "leads/1.json" }),
            json!({ "egressId": 7, "lead_file": null }),
            json!({ "lead_file": "C:\\bot\\leads\\1.json" }),
        ] {
            let Value::Object(written) = odd else {
                unreachable!("it is an object")
            };
            for lead_file in [None, Some("leads/2.json")] {
                let mut metadata = written.clone();
                assert_eq!(take_own(&mut metadata, lead_file), None);
                put_own(&mut metadata, None, lead_file);
                assert_eq!(metadata, written);
            }
        }
    }
}
