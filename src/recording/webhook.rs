//! LiveKit's webhooks about egresses that have ended.
//!
//! They may be lost (the server keeps them for half a minute at most), so they only trigger an
//! earlier scan; nothing in them is used except the egress's id and room.

use livekit_api::access_token::TokenVerifier;
use livekit_api::webhooks::{WebhookError, WebhookReceiver};
use livekit_protocol as proto;
use serde_json::Value;

use super::manifest;

/// An egress that has ended or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressEnded {
    /// `EG_…`
    pub egress_id: String,
    /// The name of its room.
    pub room_name: String,
}

/// Why a webhook is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookRefused {
    /// It is not signed by our server, or was changed in transit.
    #[error(
        "the signature is not of LIVEKIT_API_KEY: {0}; the server's webhook.api_key must be the key that this worker has"
    )]
    Signature(String),
    /// It is signed by our server, but not readable.
    #[error("it is not a webhook of LiveKit: {0}")]
    Content(String),
}

/// Reads webhooks and verifies their signature.
#[derive(Debug, Clone)]
pub struct Webhooks {
    receiver: WebhookReceiver,
}

impl Webhooks {
    /// A reader for webhooks that are signed with this key.
    pub fn new(api_key: &str, api_secret: &str) -> Self {
        Self {
            receiver: WebhookReceiver::new(TokenVerifier::with_api_key(api_key, api_secret)),
        }
    }

    /// Reads a webhook. `None`: it is not about the end of an egress. `authorization` is the value
    /// of that header: a token that contains the body's SHA-256.
    ///
    /// # Errors
    /// When it is not signed by our server, or not readable.
    pub fn read(
        &self,
        body: &[u8],
        authorization: &str,
    ) -> Result<Option<EgressEnded>, WebhookRefused> {
        let token = authorization
            .strip_prefix("Bearer ")
            .unwrap_or(authorization);
        let text = std::str::from_utf8(body)
            .map_err(|_| WebhookRefused::Signature("the body is no text".to_owned()))?;
        match self.receiver.receive(text, token) {
            Ok(event) => Ok(egress_ended(event)),
            // The body is parsed last, so the signature was valid. A later server may send values
            // that this version does not know.
            Err(WebhookError::InvalidData(error)) => match serde_json::from_slice::<Value>(body) {
                Ok(event) if event["event"].is_string() => Ok(ended_in_json(&event)),
                _ => Err(WebhookRefused::Content(error.to_string())),
            },
            Err(error) => Err(WebhookRefused::Signature(error.to_string())),
        }
    }
}

/// An update may report the last status, too; the event that follows it may be lost.
fn egress_ended(event: proto::WebhookEvent) -> Option<EgressEnded> {
    use proto::EgressStatus as Status;
    let egress = event.egress_info?;
    let ended = match event.event.as_str() {
        "egress_ended" => true,
        "egress_updated" => !matches!(
            egress.status(),
            Status::EgressStarting | Status::EgressActive | Status::EgressEnding
        ),
        _ => false,
    };
    ended.then_some(EgressEnded {
        egress_id: egress.egress_id,
        room_name: egress.room_name,
    })
}

/// The same from plain JSON, with field names as in protobuf or as in protobuf's JSON.
fn ended_in_json(event: &Value) -> Option<EgressEnded> {
    let egress = manifest::field(event.as_object()?, "egress_info")?.as_object()?;
    let ended = match event["event"].as_str()? {
        "egress_ended" => true,
        "egress_updated" => manifest::field(egress, "ended_at")
            .is_some_and(|time| !matches!(time.as_str(), Some("" | "0")) && *time != 0),
        _ => false,
    };
    ended.then(|| EgressEnded {
        egress_id: manifest::text(egress, "egress_id").unwrap_or_default(),
        room_name: manifest::text(egress, "room_name").unwrap_or_default(),
    })
}
