//! Twirp, the protocol of LiveKit's API calls: `POST /twirp/<service>/<method>` with protobuf or
//! JSON in and out.
//!
//! This module decodes, finds the access token, encodes the answer or the error; what a method does
//! is in the services' modules. Protocol: Twirp v7 wire specification. What differs from the real
//! server's JSON: fields that have their default value are left out.

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::rooms::RoomError;
use crate::token::{Claims, Keys, TokenError};

/// The error codes that this server gives, with the status that Twirp assigns to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidArgument,
    Malformed,
    NotFound,
    BadRoute,
    Unauthenticated,
    Aborted,
    DeadlineExceeded,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Unimplemented,
    Internal,
    Unavailable,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Code::InvalidArgument => "invalid_argument",
            Code::Malformed => "malformed",
            Code::NotFound => "not_found",
            Code::BadRoute => "bad_route",
            Code::PermissionDenied => "permission_denied",
            Code::DeadlineExceeded => "deadline_exceeded",
            Code::Aborted => "aborted",
            Code::Unauthenticated => "unauthenticated",
            Code::ResourceExhausted => "resource_exhausted",
            Code::FailedPrecondition => "failed_precondition",
            Code::Unimplemented => "unimplemented",
            Code::Internal => "internal",
            Code::Unavailable => "unavailable",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Code::InvalidArgument | Code::Malformed => StatusCode::BAD_REQUEST,
            Code::NotFound | Code::BadRoute => StatusCode::NOT_FOUND,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::DeadlineExceeded => StatusCode::REQUEST_TIMEOUT,
            Code::Aborted => StatusCode::CONFLICT,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::FailedPrecondition => StatusCode::PRECONDITION_FAILED,
            Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// An error on the wire: `{"code":…,"msg":…,"meta":{…}}`, always JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TwirpError {
    pub code: Code,
    pub message: String,
    pub meta: Vec<(&'static str, String)>,
}

impl TwirpError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            meta: Vec::new(),
        }
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, message)
    }

    /// The error of a call that the real server would pass on to the node with the room or the
    /// participant, when there is none.
    pub fn nobody_answers() -> Self {
        Self::new(Code::Unavailable, "no response from servers")
    }

    /// Turns "not found" into that error.
    pub fn passed_on(error: RoomError) -> Self {
        match error {
            RoomError::NoSuchRoom(_) | RoomError::NoSuchParticipant { .. } => {
                Self::nobody_answers()
            }
            other => other.into(),
        }
    }
}

impl IntoResponse for TwirpError {
    fn into_response(self) -> Response {
        let mut body = serde_json::json!({ "code": self.code.name(), "msg": self.message });
        if !self.meta.is_empty() {
            body["meta"] = self
                .meta
                .into_iter()
                .map(|(key, value)| (key.to_owned(), serde_json::Value::from(value)))
                .collect();
        }
        (self.code.status(), axum::Json(body)).into_response()
    }
}

impl From<TokenError> for TwirpError {
    /// The real server answers 401 also where a valid token lacks a grant.
    fn from(error: TokenError) -> Self {
        Self::new(Code::Unauthenticated, error.to_string())
    }
}

impl From<RoomError> for TwirpError {
    fn from(error: RoomError) -> Self {
        let code = match &error {
            RoomError::NoSuchRoom(_) | RoomError::NoSuchParticipant { .. } => Code::NotFound,
            RoomError::Full(_) => Code::ResourceExhausted,
            RoomError::TooLong { .. } => Code::InvalidArgument,
            RoomError::RemoteUnmute => Code::FailedPrecondition,
        };
        Self::new(code, error.to_string())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Protobuf,
    Json,
}

/// One request, its token already checked.
pub(crate) struct Call {
    claims: Result<Claims, TokenError>,
    encoding: Encoding,
    body: Bytes,
}

impl Call {
    /// Checks what every method needs: the verb, the content type and the token's signature.
    /// Whether the token allows the call is up to the method.
    pub fn new(
        keys: &Keys,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Self, TwirpError> {
        if method != Method::POST {
            let message =
                format!("unsupported method \"{method}\" for \"{path}\", only POST is allowed");
            return Err(TwirpError::new(Code::BadRoute, message));
        }
        let content_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let encoding = match content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase()
            .as_str()
        {
            "application/protobuf" => Encoding::Protobuf,
            "application/json" => Encoding::Json,
            other => {
                return Err(TwirpError::new(
                    Code::BadRoute,
                    format!("unexpected Content-Type: \"{other}\""),
                ));
            }
        };
        let authorization = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let claims = keys.verify_request(authorization, None);
        if let Err(error) = &claims
            && !matches!(error, TokenError::Missing)
        {
            return Err(TwirpError::new(Code::Unauthenticated, error.to_string()));
        }
        Ok(Self {
            claims,
            encoding,
            body,
        })
    }

    /// Runs one method: decodes the request, passes it with the token's claims to `handle`, encodes
    /// the answer.
    pub async fn serve<Request, Answer>(
        self,
        method: impl AsyncFnOnce(&Claims, Request) -> Result<Answer, TwirpError>,
    ) -> Response
    where
        Request: Message + Default + DeserializeOwned,
        Answer: Message + Serialize,
    {
        match self.answer(method).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        }
    }

    async fn answer<Request, Answer>(
        self,
        method: impl AsyncFnOnce(&Claims, Request) -> Result<Answer, TwirpError>,
    ) -> Result<Response, TwirpError>
    where
        Request: Message + Default + DeserializeOwned,
        Answer: Message + Serialize,
    {
        let malformed = |what: &str, error: &dyn std::fmt::Display| {
            TwirpError::new(
                Code::Malformed,
                format!("the {what} request could not be decoded: {error}"),
            )
        };
        let request = match self.encoding {
            Encoding::Protobuf => {
                Request::decode(self.body).map_err(|error| malformed("protobuf", &error))?
            }
            Encoding::Json => {
                serde_json::from_slice(&self.body).map_err(|error| malformed("json", &error))?
            }
        };
        let claims = self.claims?;
        let answer = method(&claims, request).await?;
        let (content_type, body) = match self.encoding {
            Encoding::Protobuf => ("application/protobuf", answer.encode_to_vec()),
            Encoding::Json => {
                let json = to_twirp_json(&answer)
                    .map_err(|error| TwirpError::new(Code::Internal, error.to_string()))?;
                ("application/json", json.to_string().into_bytes())
            }
        };
        Ok((
            [(CONTENT_TYPE, HeaderValue::from_static(content_type))],
            body,
        )
            .into_response())
    }
}

/// A message as the real server's JSON shows it: fields by their names in the `.proto` files, as
/// Twirp wants it, instead of camel case.
pub(crate) fn to_twirp_json<T: Serialize>(
    message: &T,
) -> Result<serde_json::Value, serde_json::Error> {
    Ok(with_field_names(serde_json::to_value(message)?))
}

/// Fields whose value is a map: its keys are data and stay as they are.
const MAP_FIELDS: [&str; 5] = [
    "attributes",
    "participant_attributes",
    "headers",
    "tags",
    "include_headers",
];

fn with_field_names(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(with_field_names).collect()),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| {
                let name = snake_case(&name);
                let value = if MAP_FIELDS.contains(&name.as_str()) {
                    value
                } else {
                    with_field_names(value)
                };
                (name, value)
            })
            .collect(),
        other => other,
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn json_has_the_names_of_the_proto_files_and_leaves_map_keys_alone() {
        let participant = livekit_protocol::ParticipantInfo {
            sid: "PA_1".into(),
            joined_at: 12,
            attributes: HashMap::from([("sip.callStatus".to_owned(), "active".to_owned())]),
            tracks: vec![livekit_protocol::TrackInfo {
                mime_type: "audio/opus".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let json = to_twirp_json(&participant).unwrap();
        assert_eq!(json["joined_at"], "12");
        assert_eq!(json["attributes"]["sip.callStatus"], "active");
        assert_eq!(json["tracks"][0]["mime_type"], "audio/opus");
    }

    #[test]
    fn every_error_has_its_status() {
        for (code, status) in [
            (Code::Unauthenticated, 401),
            (Code::NotFound, 404),
            (Code::FailedPrecondition, 412),
            (Code::Unimplemented, 501),
        ] {
            assert_eq!(
                TwirpError::new(code, "because").into_response().status(),
                status
            );
        }
    }
}
