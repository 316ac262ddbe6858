//! What the dispatcher, the telephone network and the caller's client have said about a call beyond
//! what this program understands: the dispatch's metadata and attributes, and the caller's, among
//! them the SIP headers that a trunk maps (`sip.h.…`).
//!
//! By these a call is joined to a customer's list, so all of it goes into the record and to the
//! CRM: bounded, because anybody may write it, and without what looks like a secret. What is left
//! out is named. Pure.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Each of the four parts (metadata and attributes of the dispatch and of the caller) may have so
/// many bytes as JSON. LiveKit allows 64 KiB and more for each; many web servers take no body above
/// 100 KiB, and the conversation has to fit in beside them.
const PART_BYTES: usize = 8 * 1024;
/// Names of what was left out that are kept.
const MOST_OMITTED: usize = 32;
/// Names are cut at this length, in characters.
const NAME_CHARS: usize = 80;
/// Parts of names whose values are no one else's business: passwords, keys, tokens.
const SECRET_NAMES: [&str; 12] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "privatekey",
    "authorization",
    "authentication",
    "credential",
    "cookie",
];

/// What was said about a call; empty where nobody said anything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallContext {
    /// By whoever dispatched the agent.
    #[serde(skip_serializing_if = "Said::is_empty")]
    pub dispatch: Said,
    /// By the caller's participant in the room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub participant: Option<CallParticipant>,
    /// Names of what is not in here because it is too long or looks like a secret, such as
    /// `dispatch.metadata.crm.token`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<String>,
}

/// Metadata and attributes, as LiveKit has them in several places.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Said {
    /// The metadata: JSON where its text is an object or a list, else the text itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
    /// The attributes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// The caller as the room knows the caller.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallParticipant {
    /// LiveKit identity.
    pub identity: String,
    /// The name that is shown.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What its client, or the SIP service, has said.
    #[serde(flatten)]
    pub said: Said,
    /// Names of what is not in here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<String>,
}

impl CallContext {
    /// Puts together what is known when the call has ended.
    pub fn new(
        dispatch_metadata: Option<&str>,
        dispatch_attributes: &BTreeMap<String, String>,
        participant: Option<&CallParticipant>,
    ) -> Self {
        let mut omitted = Omitted::default();
        let attributes = dispatch_attributes
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let dispatch = Said::read("dispatch", dispatch_metadata, attributes, &mut omitted);
        let mut participant = participant.cloned();
        if let Some(participant) = &mut participant {
            for name in std::mem::take(&mut participant.omitted) {
                omitted.add(&name);
            }
        }
        Self {
            dispatch,
            participant,
            omitted: omitted.names,
        }
    }

    /// Whether nobody said anything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl CallParticipant {
    /// Takes over what a participant has said about itself, bounded and without secrets.
    pub fn new(
        identity: &str,
        name: &str,
        metadata: &str,
        attributes: &HashMap<String, String>,
    ) -> Self {
        let mut omitted = Omitted::default();
        // In one order, so that the same ones are left out each time.
        let attributes: BTreeMap<&str, &str> = attributes
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let said = Said::read("participant", Some(metadata), attributes, &mut omitted);
        let short = |text: &str| text.chars().take(NAME_CHARS).collect::<String>();
        Self {
            identity: short(identity),
            name: short(name),
            said,
            omitted: omitted.names,
        }
    }
}

impl Said {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn read<'a>(
        whose: &str,
        metadata: Option<&str>,
        attributes: impl IntoIterator<Item = (&'a str, &'a str)>,
        omitted: &mut Omitted,
    ) -> Self {
        let mut room = PART_BYTES;
        let path = format!("{whose}.metadata");
        let metadata = metadata
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .and_then(|text| match serde_json::from_str::<Value>(text) {
                Ok(value) if value.is_object() || value.is_array() => {
                    taken(value, &path, &mut room, omitted)
                }
                _ => taken(text.into(), &path, &mut room, omitted),
            });
        let mut room = PART_BYTES;
        let attributes = attributes
            .into_iter()
            .filter_map(|(name, value)| {
                let path = format!("{whose}.attributes.{name}");
                if is_secret_name(name) {
                    omitted.add(&path);
                    return None;
                }
                // Attributes may hold JSON, and secrets in it.
                let inside = serde_json::from_str::<Value>(value).ok();
                let before = omitted.count;
                let inside = match inside.filter(|value| value.is_object() || value.is_array()) {
                    Some(inside) => taken(inside, &path, &mut room, omitted)?,
                    None => taken(value.into(), &path, &mut room, omitted)?,
                };
                room = room.saturating_sub(name.len());
                let value = match omitted.count == before {
                    true => value.to_owned(),
                    false => inside.to_string(),
                };
                Some((name.to_owned(), value))
            })
            .collect();
        Self {
            metadata,
            attributes,
        }
    }
}

/// The fields without those that look like secrets, whatever their number.
pub fn without_secrets(fields: Map<String, Value>) -> Map<String, Value> {
    let mut room = usize::MAX;
    match taken(fields.into(), "", &mut room, &mut Omitted::default()) {
        Some(Value::Object(kept)) => kept,
        _ => Map::new(),
    }
}

/// Names of what was left out.
#[derive(Debug, Default)]
struct Omitted {
    names: Vec<String>,
    /// All of them; the names are bounded.
    count: usize,
}

impl Omitted {
    fn add(&mut self, name: &str) {
        self.count += 1;
        if self.names.len() < MOST_OMITTED {
            self.names.push(name.chars().take(NAME_CHARS).collect());
        }
    }
}

/// What of a value there is room for and may be kept. Whole values only: half of an id would join a
/// call to the wrong customer.
fn taken(value: Value, path: &str, room: &mut usize, omitted: &mut Omitted) -> Option<Value> {
    let below = |name: &dyn std::fmt::Display| format!("{path}.{name}");
    match value {
        Value::Object(fields) => {
            let mut kept = Map::new();
            for (name, value) in fields {
                let path = below(&name);
                if is_secret_name(&name) && !is_harmless(&value) {
                    omitted.add(&path);
                } else if let Some(value) = taken(value, &path, room, omitted) {
                    *room = room.saturating_sub(name.len());
                    kept.insert(name, value);
                }
            }
            Some(kept.into())
        }
        Value::Array(values) => {
            let numbered = values.into_iter().enumerate();
            let kept =
                numbered.filter_map(|(number, value)| taken(value, &below(&number), room, omitted));
            Some(kept.collect())
        }
        leaf => {
            let bytes = leaf.to_string().len();
            let secret = leaf.as_str().is_some_and(is_secret_text);
            if secret || bytes > *room {
                omitted.add(path);
                return None;
            }
            *room -= bytes;
            Some(leaf)
        }
    }
}

fn is_secret_name(name: &str) -> bool {
    let plain: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    SECRET_NAMES.iter().any(|secret| plain.contains(secret))
}

/// A count or a switch (`max_tokens`, `needs_password`) gives nothing away.
fn is_harmless(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(_) | Value::Number(_))
}

/// A text that is a key by its form: an HTTP authorization, a signed token (RFC 7519), a private
/// key, an address with a password.
fn is_secret_text(text: &str) -> bool {
    let text = text.trim_start();
    let starts = |prefix: &str| {
        text.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    let address_with_password = || {
        let (_, rest) = text.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        let (user, _) = authority.rsplit_once('@')?;
        Some(user.contains(':'))
    };
    starts("bearer ")
        || starts("basic ")
        || starts("-----BEGIN")
        || (text.starts_with("eyJ") && text.matches('.').count() >= 2)
        || address_with_password().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn dispatched(metadata: &str) -> CallContext {
        CallContext::new(Some(metadata), &BTreeMap::new(), None)
    }

    fn attributes(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn everything_that_was_said_is_kept() {
        let caller = CallParticipant::new(
            "sip_+15550100123",
            "Phone +15550100123",
            r#"{"list": [1, 2]}"#,
            &attributes(&[
                ("sip.h.X-Customer-Id", "4711"),
                ("sip.trunkID", "ST_1"),
                ("note", "three words here"),
            ]),
        );
        let of_dispatch = BTreeMap::from([("queue".to_owned(), "north".to_owned())]);
        let context = CallContext::new(
            Some(r#"{"lead_id": 12345678901234567, "deep": {"a": [true, null, "x"]}}"#),
            &of_dispatch,
            Some(&caller),
        );
        assert_eq!(
            serde_json::to_value(&context).unwrap(),
            json!({
                "dispatch": {
                    "metadata": { "lead_id": 12345678901234567_u64, "deep": { "a": [true, null, "x"] } },
                    "attributes": { "queue": "north" },
                },
                "participant": {
                    "identity": "sip_+15550100123", "name": "Phone +15550100123",
                    "metadata": { "list": [1, 2] },
                    "attributes": { "sip.h.X-Customer-Id": "4711", "sip.trunkID": "ST_1", "note": "three words here" },
                },
            })
        );
        assert!(dispatched("").is_empty() && dispatched(" ").is_empty());
        for text in ["campaign 7", "4711", "{\"half\":", "\"quoted\""] {
            assert_eq!(dispatched(text).dispatch.metadata, Some(json!(text)));
        }
    }

    #[test]
    fn secrets_are_left_out_and_named() {
        let context = dispatched(
            &json!({
                "crm": { "api_key": "k-1", "url": "https://crm.example.com/x?y=1", "login": "https://me:pw@crm.example.com" },
                "max_tokens": 300, "needs_password": true, "callback": "Bearer abc",
                "list": [{ "Client-Secret": "s" }, "eyJhbGciOi.eyJpc3Mi.c2ln"],
            })
            .to_string(),
        );
        assert_eq!(
            context.dispatch.metadata,
            Some(json!({
                "crm": { "url": "https://crm.example.com/x?y=1" }, "max_tokens": 300, "needs_password": true, "list": [{}],
            }))
        );
        assert_eq!(
            context.omitted,
            [
                "dispatch.metadata.callback",
                "dispatch.metadata.crm.api_key",
                "dispatch.metadata.crm.login",
                "dispatch.metadata.list.0.Client-Secret",
                "dispatch.metadata.list.1",
            ]
        );
        let caller = CallParticipant::new(
            "a",
            "",
            "",
            &attributes(&[
                ("sip.h.Proxy-Authorization", "Digest 1"),
                ("session_token", "1"),
                ("config", r#"{"password": "p", "plan": "gold"}"#),
            ]),
        );
        let kept = &caller.said.attributes;
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert_eq!(kept["config"], r#"{"plan":"gold"}"#);
        assert_eq!(caller.omitted.len(), 3);
    }

    #[test]
    fn what_is_too_long_is_left_out_whole_and_the_rest_stays() {
        let long = "x".repeat(PART_BYTES);
        let context = dispatched(&json!({ "a_long": long, "lead_id": "L-1" }).to_string());
        assert_eq!(context.dispatch.metadata, Some(json!({ "lead_id": "L-1" })));
        assert_eq!(context.omitted, ["dispatch.metadata.a_long"]);
        assert_eq!(dispatched(&long).omitted, ["dispatch.metadata"]);
        // More names than anybody reads.
        let many: Map<String, Value> = (0..5000)
            .map(|number| (format!("key-{number}"), "value".into()))
            .collect();
        let context = dispatched(&Value::from(many).to_string());
        assert_eq!(context.omitted.len(), MOST_OMITTED);
        assert!(serde_json::to_string(&context).unwrap().len() < 3 * PART_BYTES);
    }

    proptest! {
        /// Whatever is said, it is bounded, and what is written is read back the same.
        #[test]
        fn any_text_is_bounded(metadata in any::<String>(), name in any::<String>(), value in any::<String>()) {
            let caller = CallParticipant::new(&name, &value, &metadata, &HashMap::from([(name.clone(), value.clone())]));
            let context = CallContext::new(Some(&metadata), &BTreeMap::from([(name, value)]), Some(&caller));
            let text = serde_json::to_string(&context).unwrap();
            prop_assert!(text.len() < 8 * PART_BYTES);
            prop_assert_eq!(serde_json::from_str::<CallContext>(&text).unwrap(), context);
        }
    }
}
