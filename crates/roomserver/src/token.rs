//! Access tokens: who signed them, whom they name and what they allow.
//!
//! A token is a JWT signed with HS256 by the API secret that belongs to its issuer (`iss`, the API
//! key). The claim names are those of LiveKit's `auth/grants.go`.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use livekit_protocol as proto;
use proto::participant_info::Kind;
use serde::{Deserialize, Serialize};

/// How long a refreshed token is valid; the real server refreshes for ten minutes at a time.
const REFRESHED_TOKEN_LIFETIME_S: u64 = 600;

/// The API keys of the server, each with its secret.
#[derive(Clone)]
pub struct Keys {
    pairs: Vec<(String, String)>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_list()
            .entries(self.pairs.iter().map(|(key, _)| key))
            .finish()
    }
}

/// Why a token is refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The request has no token.
    #[error("no access token was given")]
    Missing,
    /// The issuer is not one of the server's API keys.
    #[error("the access token was issued by the unknown API key {0:?}")]
    UnknownKey(String),
    /// The token is malformed, wrongly signed, expired or not valid yet.
    #[error("the access token is not valid: {0}")]
    Invalid(#[from] jsonwebtoken::errors::Error),
    /// The token lacks this grant.
    #[error("the access token does not grant {0}")]
    NotGranted(&'static str),
}

/// The claims of a token.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Claims {
    /// The API key whose secret signed the token.
    pub iss: String,
    /// The participant's identity.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sub: String,
    /// When the token expires, in seconds since 1970.
    pub exp: u64,
    /// When the token becomes valid, in seconds since 1970; 0 means at once.
    #[serde(skip_serializing_if = "is_default")]
    pub nbf: u64,
    /// The participant's identity if `sub` is empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub identity: String,
    /// The participant's display name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `standard`, `ingress`, `egress`, `sip`, `agent`, `connector` or `bridge`; empty means
    /// standard.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The participant's metadata.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    /// The participant's attributes.
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub attributes: HashMap<String, String>,
    /// Grants for rooms.
    #[serde(skip_serializing_if = "is_default")]
    pub video: VideoGrants,
    /// Grants for telephone calls.
    #[serde(skip_serializing_if = "is_default")]
    pub sip: SipGrants,
    /// Settings for the room, used only when this participant is the one who creates it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_config: Option<proto::RoomConfiguration>,
}

/// What the bearer may do in rooms and with rooms.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VideoGrants {
    /// May create and delete rooms.
    #[serde(skip_serializing_if = "is_default")]
    pub room_create: bool,
    /// May list rooms.
    #[serde(skip_serializing_if = "is_default")]
    pub room_list: bool,
    /// May start and stop recordings.
    #[serde(skip_serializing_if = "is_default")]
    pub room_record: bool,
    /// May administer the room named in `room`.
    #[serde(skip_serializing_if = "is_default")]
    pub room_admin: bool,
    /// May join the room named in `room`.
    #[serde(skip_serializing_if = "is_default")]
    pub room_join: bool,
    /// Name of the room that `room_join` and `room_admin` are for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub room: String,
    /// May publish tracks. Not given means yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_publish: Option<bool>,
    /// May subscribe to tracks. Not given means yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_subscribe: Option<bool>,
    /// May send data. Not given means as `can_publish`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_publish_data: Option<bool>,
    /// Sources of tracks that may be published; empty means all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub can_publish_sources: Vec<String>,
    /// May change its own metadata, name and attributes. Not given means no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_update_own_metadata: Option<bool>,
    /// Others are not told about this participant.
    #[serde(skip_serializing_if = "is_default")]
    pub hidden: bool,
    /// The participant records the room.
    #[serde(skip_serializing_if = "is_default")]
    pub recorder: bool,
    /// The bearer is an agent worker (on `/agent`) or the participant of an agent's job (in a
    /// room).
    #[serde(skip_serializing_if = "is_default")]
    pub agent: bool,
    /// May receive metrics of other participants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_subscribe_metrics: Option<bool>,
}

/// What the bearer may do with telephone calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SipGrants {
    /// May set up trunks and dispatch rules.
    #[serde(skip_serializing_if = "is_default")]
    pub admin: bool,
    /// May place and transfer calls.
    #[serde(skip_serializing_if = "is_default")]
    pub call: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Keys {
    /// The keys that tokens may be signed with, as pairs of API key and API secret.
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Self { pairs }
    }

    /// The first key and its secret, with which the server signs tokens of its own.
    pub fn first(&self) -> Option<(&str, &str)> {
        self.pairs
            .first()
            .map(|(key, secret)| (key.as_str(), secret.as_str()))
    }

    fn secret_of(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(known, _)| known == key)
            .map(|(_, secret)| secret.as_str())
    }

    /// Parses a token and checks its signature and its times.
    ///
    /// # Errors
    ///
    /// When the token is malformed, of an unknown key, wrongly signed or expired.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        let issuer = jsonwebtoken::dangerous::insecure_decode::<Claims>(token)?
            .claims
            .iss;
        let secret = self
            .secret_of(&issuer)
            .ok_or(TokenError::UnknownKey(issuer))?;
        let mut rules = Validation::new(Algorithm::HS256);
        rules.validate_nbf = true;
        rules.validate_aud = false;
        rules.set_required_spec_claims(&["exp"]);
        let key = DecodingKey::from_secret(secret.as_bytes());
        Ok(jsonwebtoken::decode::<Claims>(token, &key, &rules)?.claims)
    }

    /// Signs the claims with the secret of their issuer, or with the first key when the issuer is
    /// empty.
    ///
    /// # Errors
    ///
    /// When the issuer is not one of the keys.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let mut claims = claims.clone();
        if claims.iss.is_empty() {
            let (key, _) = self
                .first()
                .ok_or_else(|| TokenError::UnknownKey(String::new()))?;
            claims.iss = key.to_owned();
        }
        let secret = self
            .secret_of(&claims.iss)
            .ok_or_else(|| TokenError::UnknownKey(claims.iss.clone()))?;
        let key = EncodingKey::from_secret(secret.as_bytes());
        Ok(jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &claims,
            &key,
        )?)
    }

    /// Verifies the token of a request: from `Authorization: Bearer`, or else from the query's
    /// `access_token`.
    ///
    /// # Errors
    ///
    /// When there is no token, or it is refused as by [`verify`](Self::verify).
    pub fn verify_request(
        &self,
        authorization: Option<&str>,
        query: Option<&str>,
    ) -> Result<Claims, TokenError> {
        let bearer = authorization.and_then(|value| value.strip_prefix("Bearer "));
        self.verify(bearer.or(query).ok_or(TokenError::Missing)?)
    }
}

impl Claims {
    /// The participant's identity; `sub` is where the SDKs put it.
    pub fn identity(&self) -> &str {
        if self.sub.is_empty() {
            &self.identity
        } else {
            &self.sub
        }
    }

    /// The kind of participant that joins with this token.
    pub fn participant_kind(&self) -> Kind {
        match self.kind.to_ascii_lowercase().as_str() {
            "ingress" => Kind::Ingress,
            "egress" => Kind::Egress,
            "sip" => Kind::Sip,
            "agent" => Kind::Agent,
            "connector" => Kind::Connector,
            "bridge" => Kind::Bridge,
            _ => Kind::Standard,
        }
    }

    /// The permissions in the room. What a token leaves out is allowed, except for changing one's
    /// own metadata.
    pub fn permission(&self) -> proto::ParticipantPermission {
        let video = &self.video;
        let can_publish = video.can_publish.unwrap_or(true);
        #[expect(deprecated, reason = "clients of older protocols still read these two")]
        proto::ParticipantPermission {
            can_subscribe: video.can_subscribe.unwrap_or(true),
            can_publish,
            can_publish_data: video.can_publish_data.unwrap_or(can_publish),
            can_publish_sources: video
                .can_publish_sources
                .iter()
                .map(|name| track_source(name) as i32)
                .collect(),
            hidden: video.hidden,
            recorder: video.recorder,
            can_update_metadata: video.can_update_own_metadata.unwrap_or(false),
            agent: video.agent,
            can_subscribe_metrics: video.can_subscribe_metrics.unwrap_or(false),
            ..Default::default()
        }
    }

    /// The same participant's token again, valid from now, with the participant's current metadata,
    /// name, attributes and permission.
    pub fn refreshed(&self, info: &proto::ParticipantInfo) -> Self {
        let now = unix_now_s();
        Self {
            nbf: now,
            exp: now + REFRESHED_TOKEN_LIFETIME_S,
            name: info.name.clone(),
            metadata: info.metadata.clone(),
            attributes: info.attributes.clone(),
            ..self.clone()
        }
    }

    /// Checks that the bearer may join the room.
    ///
    /// # Errors
    ///
    /// When the token lacks the grant.
    pub fn require_join(&self) -> Result<(), TokenError> {
        granted(self.video.room_join, "roomJoin")
    }

    /// Checks that the bearer may administer the named room (`roomAdmin` and `room`).
    ///
    /// # Errors
    ///
    /// When the token lacks the grant, or is for another room.
    pub fn require_room_admin(&self, room: &str) -> Result<(), TokenError> {
        granted(
            self.video.room_admin && self.video.room == room,
            "roomAdmin for this room",
        )
    }

    /// Checks that the bearer may create and delete rooms.
    ///
    /// # Errors
    ///
    /// When the token lacks the grant.
    pub fn require_room_create(&self) -> Result<(), TokenError> {
        granted(self.video.room_create, "roomCreate")
    }

    /// Checks that the bearer may list rooms.
    ///
    /// # Errors
    ///
    /// When the token lacks the grant.
    pub fn require_room_list(&self) -> Result<(), TokenError> {
        granted(self.video.room_list, "roomList")
    }

    /// Checks that the bearer may record.
    ///
    /// # Errors
    ///
    /// When the token lacks the grant.
    pub fn require_room_record(&self) -> Result<(), TokenError> {
        granted(self.video.room_record, "roomRecord")
    }

    /// Checks that the bearer may register as an agent worker.
    ///
    /// # Errors
    ///
    /// When the token lacks the grant.
    pub fn require_agent(&self) -> Result<(), TokenError> {
        granted(self.video.agent, "agent")
    }

    /// Checks that the bearer may set up the telephone service.
    ///
    /// # Errors
    ///
    /// When the token lacks the grant.
    pub fn require_sip_admin(&self) -> Result<(), TokenError> {
        granted(self.sip.admin, "sip.admin")
    }

    /// Checks that the bearer may place and transfer telephone calls.
    ///
    /// # Errors
    ///
    /// When the token lacks the grant.
    pub fn require_sip_call(&self) -> Result<(), TokenError> {
        granted(self.sip.call, "sip.call")
    }
}

fn granted(allowed: bool, what: &'static str) -> Result<(), TokenError> {
    if allowed {
        Ok(())
    } else {
        Err(TokenError::NotGranted(what))
    }
}

fn track_source(name: &str) -> proto::TrackSource {
    match name.to_ascii_lowercase().as_str() {
        "camera" => proto::TrackSource::Camera,
        "microphone" => proto::TrackSource::Microphone,
        "screen_share" => proto::TrackSource::ScreenShare,
        "screen_share_audio" => proto::TrackSource::ScreenShareAudio,
        _ => proto::TrackSource::Unknown,
    }
}

/// Seconds since 1970.
pub(crate) fn unix_now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new(vec![(
            "devkey".into(),
            "a secret of at least thirty-two characters".into(),
        )])
    }

    fn caller() -> Claims {
        Claims {
            iss: "devkey".into(),
            sub: "caller".into(),
            exp: unix_now_s() + 60,
            video: VideoGrants {
                room_join: true,
                room: "call".into(),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    #[test]
    fn a_signed_token_is_read_back() {
        let token = keys().sign(&caller()).expect("the key is known");
        let claims = keys().verify(&token).expect("the token is good");
        assert_eq!(claims.identity(), "caller");
        assert_eq!(claims.video.room, "call");
        claims.require_join().expect("the token allows to join");
        assert!(claims.require_room_admin("call").is_err());
    }

    #[test]
    fn a_token_of_another_secret_is_refused() {
        let stranger = Keys::new(vec![(
            "devkey".into(),
            "quite another secret, also long enough".into(),
        )]);
        let token = stranger.sign(&caller()).expect("the key is known");
        assert!(matches!(keys().verify(&token), Err(TokenError::Invalid(_))));
    }

    #[test]
    fn an_expired_token_is_refused() {
        let expired = Claims {
            exp: unix_now_s() - 3600,
            ..caller()
        };
        let token = keys().sign(&expired).expect("the key is known");
        assert!(matches!(keys().verify(&token), Err(TokenError::Invalid(_))));
    }

    #[test]
    fn an_unknown_key_is_named() {
        let token = Keys::new(vec![("otherkey".into(), "secret".into())])
            .sign(&Claims {
                iss: "otherkey".into(),
                ..caller()
            })
            .expect("the key is known");
        let error = keys().verify(&token).expect_err("the key is unknown");
        assert!(error.to_string().contains("otherkey"), "{error}");
    }

    #[test]
    fn what_the_token_leaves_out_is_allowed_except_own_metadata() {
        let permission = caller().permission();
        assert!(permission.can_publish && permission.can_subscribe && permission.can_publish_data);
        assert!(!permission.can_update_metadata);

        let listener = Claims {
            video: VideoGrants {
                can_publish: Some(false),
                ..Default::default()
            },
            ..caller()
        };
        assert!(
            !listener.permission().can_publish_data,
            "data follows publishing unless it is named"
        );
    }

    #[test]
    fn room_settings_and_kind_are_read_from_the_claims() {
        let json = serde_json::json!({
            "iss": "devkey", "sub": "agent-1", "exp": unix_now_s() + 60, "kind": "agent",
            "video": {"roomJoin": true, "room": "call", "agent": true, "canUpdateOwnMetadata": true},
            "roomConfig": {"emptyTimeout": 7, "agents": [{"agentName": "sales", "metadata": "{}"}]},
            "attributes": {"tier": "gold"},
        });
        let key = EncodingKey::from_secret(b"a secret of at least thirty-two characters");
        let token =
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &json, &key).expect("signs");
        let claims = keys().verify(&token).expect("the token is good");
        assert_eq!(claims.participant_kind(), Kind::Agent);
        assert!(claims.permission().can_update_metadata);
        let config = claims.room_config.expect("the token has room settings");
        assert_eq!(
            (config.empty_timeout, config.agents[0].agent_name.as_str()),
            (7, "sales")
        );
        assert_eq!(claims.attributes["tier"], "gold");
    }
}
