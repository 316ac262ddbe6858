//! Signalling: a client's WebSocket.
//!
//! A client connects to `/rtc` (settings in the query, two peer connections) or to `/rtc/v1` (a
//! `JoinRequest` in the query, one peer connection). The WebSocket only carries messages to and
//! from the task of the participant ([`crate::peer`]); when it breaks, the participant stays and
//! the client comes back with `reconnect`.

use std::collections::HashMap;
use std::io::Read as _;

use axum::Router;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket};
use axum::extract::{Query, State, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use livekit_protocol as proto;
use prost::Message as _;
use proto::leave_request::Action;
use proto::signal_response::Message as Outgoing;
use tokio::sync::mpsc;

use crate::peer;
use crate::room::{MAX_NAME_BYTES, ToPeer};
use crate::rooms::RoomOptions;
use crate::server::Server;
use crate::token::Claims;

/// Messages that may wait for a client's WebSocket. A client that is further behind is disconnected
/// and may reconnect.
const OUTLET_CAPACITY: usize = 2048;
/// Requests that may wait for the participant's task; the WebSocket is not read while it is full.
const REQUEST_CAPACITY: usize = 64;
/// The largest request: an offer with very many sections.
const MAX_REQUEST_BYTES: usize = 1024 * 1024;
/// The largest join request after decompression; that of the real server.
const MAX_JOIN_REQUEST_BYTES: usize = 1024 * 1024;
/// How long a client may take to close its side before its WebSocket is dropped.
const FAREWELL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// A client's connection as the participant's task sees it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Messages to the client. Dropping it closes the WebSocket after what was sent before.
    pub outlet: mpsc::Sender<proto::SignalResponse>,
    /// Requests of the client; it ends when the WebSocket does.
    pub requests: mpsc::Receiver<proto::SignalRequest>,
}

/// A client that has reconnected, for the task of its participant.
#[derive(Debug)]
pub(crate) struct Resumed {
    pub connection: Connection,
    pub sync_state: Option<proto::SyncState>,
}

/// The settings with which a client connects.
#[derive(Debug)]
pub(crate) struct Init {
    pub claims: Claims,
    pub client: proto::ClientInfo,
    pub auto_subscribe: bool,
    pub single_peer_connection: bool,
    pub metadata: String,
    pub attributes: HashMap<String, String>,
    pub add_tracks: Vec<proto::AddTrackRequest>,
    pub publisher_offer: Option<proto::SessionDescription>,
    /// The sid of the participant that reconnects, if it does.
    pub reconnect: Option<String>,
    pub sync_state: Option<proto::SyncState>,
}

pub(crate) fn router(server: Server) -> Router {
    Router::new()
        .route("/rtc", get(connect))
        .route("/rtc/validate", get(validate))
        .route("/rtc/v1", get(connect_v1))
        .route("/rtc/v1/validate", get(validate_v1))
        .with_state(server)
}

type Parameters = Query<HashMap<String, String>>;
type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// A request that is refused, with the status that the real server gives.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// Browsers ask from any page; the token is what protects a room.
fn allow_any_origin(mut response: Response) -> Response {
    response.headers_mut().insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        header::HeaderValue::from_static("*"),
    );
    response
}

async fn validate(
    State(server): State<Server>,
    headers: HeaderMap,
    Query(query): Parameters,
) -> Response {
    allow_any_origin(
        parse(&server, &headers, &query, false, Strictness::Validating)
            .map(|_| "success")
            .into_response(),
    )
}

async fn validate_v1(
    State(server): State<Server>,
    headers: HeaderMap,
    Query(query): Parameters,
) -> Response {
    allow_any_origin(
        parse(&server, &headers, &query, true, Strictness::Validating)
            .map(|_| "success")
            .into_response(),
    )
}

async fn connect(
    State(server): State<Server>,
    headers: HeaderMap,
    Query(query): Parameters,
    upgrade: Upgrade,
) -> Response {
    accept(server, &headers, &query, upgrade, false)
}

async fn connect_v1(
    State(server): State<Server>,
    headers: HeaderMap,
    Query(query): Parameters,
    upgrade: Upgrade,
) -> Response {
    accept(server, &headers, &query, upgrade, true)
}

fn accept(
    server: Server,
    headers: &HeaderMap,
    query: &HashMap<String, String>,
    upgrade: Upgrade,
    v1: bool,
) -> Response {
    let Ok(upgrade) = upgrade else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match parse(&server, headers, query, v1, Strictness::Joining) {
        Ok(init) => {
            upgrade
                .max_message_size(MAX_REQUEST_BYTES)
                .on_upgrade(move |socket| async move {
                    // A shutdown waits for the tasks in the tracker.
                    let tasks = server.tasks().clone();
                    tasks.spawn(serve(socket, server, init));
                })
        }
        Err(refusal) => {
            tracing::info!("a client is not let in: {}", refusal.1);
            refusal.into_response()
        }
    }
}

/// What happens to attributes in the query that cannot be parsed: a validation fails, a join
/// ignores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strictness {
    Validating,
    Joining,
}

fn parse(
    server: &Server,
    headers: &HeaderMap,
    query: &HashMap<String, String>,
    v1: bool,
    strictness: Strictness,
) -> Result<Init, Refusal> {
    let authorization = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let token = query.get("access_token").map(String::as_str);
    let unauthorized =
        |error: crate::token::TokenError| Refusal(StatusCode::UNAUTHORIZED, error.to_string());
    let claims = server
        .keys()
        .verify_request(authorization, token)
        .map_err(unauthorized)?;
    claims.require_join().map_err(unauthorized)?;
    let bad = |what: &str| Refusal(StatusCode::BAD_REQUEST, what.to_owned());
    if claims.identity().is_empty() {
        return Err(bad("identity cannot be empty"));
    }
    if claims.identity().len() > MAX_NAME_BYTES {
        return Err(bad("participant identity length exceeds limits"));
    }
    if claims.video.room.is_empty() {
        return Err(bad("the token names no room"));
    }
    if claims.video.room.len() > MAX_NAME_BYTES {
        return Err(bad("room name length exceeds limits"));
    }
    // An empty parameter counts as missing.
    let given = |name: &str| query.get(name).filter(|value| !value.is_empty());
    let may_describe_itself = claims.permission().can_update_metadata;
    let init = match given("join_request") {
        Some(request) => init_of_join_request(claims, decode_join_request(request).map_err(bad)?),
        None if v1 => return Err(bad("join_request is required")),
        None => {
            let attributes = match given("attributes").map(|text| decode_attributes(text)) {
                Some(None) if strictness == Strictness::Validating => {
                    return Err(bad("cannot decode attributes"));
                }
                decoded => decoded.flatten().unwrap_or_default(),
            };
            init_of_query(claims, query, attributes)
        }
    };
    if !may_describe_itself && (!init.metadata.is_empty() || !init.attributes.is_empty()) {
        let what = "permissions denied: the token does not allow to change its own metadata";
        return Err(Refusal(StatusCode::UNAUTHORIZED, what.to_owned()));
    }
    Ok(init)
}

fn init_of_query(
    claims: Claims,
    query: &HashMap<String, String>,
    attributes: HashMap<String, String>,
) -> Init {
    let text = |key: &str| query.get(key).cloned().unwrap_or_default();
    let flag = |key: &str, default: bool| {
        query
            .get(key)
            .map_or(default, |value| value == "1" || value == "true")
    };
    let number = |key: &str| {
        query
            .get(key)
            .and_then(|value| value.parse().ok())
            .unwrap_or(0)
    };
    let capabilities = text("capabilities");
    let client = proto::ClientInfo {
        version: text("version"),
        protocol: number("protocol"),
        os: text("os"),
        os_version: text("os_version"),
        device_model: text("device_model"),
        browser: text("browser"),
        browser_version: text("browser_version"),
        client_protocol: number("client_protocol"),
        capabilities: capabilities
            .split(',')
            .filter_map(proto::client_info::Capability::from_str_name)
            .map(|capability| capability as i32)
            .collect(),
        ..Default::default()
    };
    Init {
        claims,
        client,
        auto_subscribe: flag("auto_subscribe", true),
        single_peer_connection: false,
        metadata: String::new(),
        attributes,
        add_tracks: Vec::new(),
        publisher_offer: None,
        reconnect: flag("reconnect", false).then(|| text("sid")),
        sync_state: None,
    }
}

fn init_of_join_request(claims: Claims, request: proto::JoinRequest) -> Init {
    Init {
        claims,
        client: request.client_info.unwrap_or_default(),
        auto_subscribe: request
            .connection_settings
            .is_some_and(|settings| settings.auto_subscribe),
        single_peer_connection: true,
        metadata: request.metadata,
        attributes: request.participant_attributes,
        add_tracks: request.add_track_requests,
        publisher_offer: request.publisher_offer,
        reconnect: request.reconnect.then_some(request.participant_sid),
        sync_state: request.sync_state,
    }
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    [URL_SAFE, URL_SAFE_NO_PAD, STANDARD, STANDARD_NO_PAD]
        .iter()
        .find_map(|engine| engine.decode(text).ok())
}

fn decode_attributes(text: &str) -> Option<HashMap<String, String>> {
    serde_json::from_slice(&decode_base64(text)?).ok()
}

fn decode_join_request(text: &str) -> Result<proto::JoinRequest, &'static str> {
    use proto::wrapped_join_request::Compression;
    let wrapped = decode_base64(text).ok_or("cannot base64 decode wrapped join request")?;
    let wrapped = proto::WrappedJoinRequest::decode(wrapped.as_slice())
        .map_err(|_| "cannot unmarshal wrapped join request")?;
    let encoded = match wrapped.compression() {
        Compression::None => wrapped.join_request,
        Compression::Gzip => {
            let mut decompressed = Vec::new();
            flate2::read::GzDecoder::new(wrapped.join_request.as_slice())
                .take(MAX_JOIN_REQUEST_BYTES as u64 + 1)
                .read_to_end(&mut decompressed)
                .map_err(|_| "cannot read decompressed join request")?;
            decompressed
        }
    };
    if encoded.len() > MAX_JOIN_REQUEST_BYTES {
        return Err("join request too large");
    }
    proto::JoinRequest::decode(encoded.as_slice()).map_err(|_| "cannot unmarshal join request")
}

async fn serve(socket: WebSocket, server: Server, init: Init) {
    let (outlet, outgoing) = mpsc::channel(OUTLET_CAPACITY);
    let (incoming, requests) = mpsc::channel(REQUEST_CAPACITY);
    let connection = Connection { outlet, requests };
    match &init.reconnect {
        Some(_) => resume(&server, init, connection).await,
        None => join(&server, init, connection).await,
    }
    let (sink, stream) = socket.split();
    carry(sink, stream, outgoing, incoming).await;
}

async fn join(server: &Server, init: Init, connection: Connection) {
    let options = init
        .claims
        .room_config
        .clone()
        .map(RoomOptions::from)
        .unwrap_or_default();
    let room = server.rooms().open(&init.claims.video.room, options);
    peer::spawn(server.clone(), room, init, connection).await;
}

/// Gives the connection to the participant, if it still is in the room.
async fn resume(server: &Server, init: Init, connection: Connection) {
    let sid = init.reconnect.as_deref().unwrap_or_default();
    let identity = init.claims.identity();
    let room = server.rooms().find(&init.claims.video.room);
    let inbox = room.and_then(|room| room.inbox_of(identity, sid));
    let outlet = connection.outlet.clone();
    let resumed = ToPeer::Resume(Box::new(Resumed {
        connection,
        sync_state: init.sync_state,
    }));
    let found = match inbox {
        Some(inbox) => inbox.send(resumed).await.is_ok(),
        None => false,
    };
    if !found {
        // The client joins anew after this (roommanager.go, StartSession).
        let mut leave = proto::LeaveRequest {
            can_reconnect: true,
            ..Default::default()
        };
        leave.set_reason(proto::DisconnectReason::StateMismatch);
        leave.set_action(Action::Reconnect);
        let _ = outlet.try_send(proto::SignalResponse {
            message: Some(Outgoing::Leave(leave)),
        });
    }
}

/// Carries messages until either side ends the connection.
async fn carry<E>(
    mut sink: impl Sink<Message> + Unpin,
    mut stream: impl Stream<Item = Result<Message, E>> + Unpin,
    mut outgoing: mpsc::Receiver<proto::SignalResponse>,
    incoming: mpsc::Sender<proto::SignalRequest>,
) {
    let read = async {
        while let Some(Ok(message)) = stream.next().await {
            let request = match message {
                Message::Binary(bytes) => match proto::SignalRequest::decode(bytes) {
                    Ok(request) => request,
                    Err(error) => {
                        tracing::warn!("a client sent a request that cannot be read: {error}");
                        continue;
                    }
                },
                Message::Close(_) => return,
                // Text would be JSON, which no current SDK speaks; pings are answered by axum.
                Message::Text(_) | Message::Ping(_) | Message::Pong(_) => continue,
            };
            // When the participant has left, the rest is read and ignored: closing a socket with
            // unread data would take the last messages away from the client.
            let _ = incoming.send(request).await;
        }
    };
    let write = async {
        while let Some(message) = outgoing.recv().await {
            if sink
                .send(Message::Binary(message.encode_to_vec().into()))
                .await
                .is_err()
            {
                // A client that reads nothing any more may have sent its request to leave before;
                // reading ends after that.
                std::future::pending::<()>().await;
            }
        }
        // The participant's task has ended the connection; the client is told so and closes from
        // its side.
        let farewell = async {
            let _ = sink.close().await;
            std::future::pending::<()>().await;
        };
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await;
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn request() -> proto::JoinRequest {
        proto::JoinRequest {
            participant_sid: "PA_1".into(),
            reconnect: true,
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn what_a_client_said_last_is_read_when_it_takes_nothing_any_more() {
        let (outlet, outgoing) = mpsc::channel(1);
        let (incoming, mut requests) = mpsc::channel(1);
        outlet
            .send(proto::SignalResponse::default())
            .await
            .expect("there is room");
        let broken = futures_util::sink::unfold((), |(), _: Message| async { Err::<(), ()>(()) });
        let leave = proto::SignalRequest {
            message: Some(proto::signal_request::Message::Leave(
                proto::LeaveRequest::default(),
            )),
        };
        let goodbye = Ok::<_, ()>(Message::Binary(leave.encode_to_vec().into()));
        let stream = futures_util::stream::once(async {
            // By then the server has tried to write.
            tokio::task::yield_now().await;
            goodbye
        });
        carry(Box::pin(broken), Box::pin(stream), outgoing, incoming).await;
        assert_eq!(requests.recv().await, Some(leave));
    }

    #[test]
    fn join_requests_are_read_plain_and_compressed() {
        use proto::wrapped_join_request::Compression;
        let plain = proto::WrappedJoinRequest {
            compression: Compression::None as i32,
            join_request: request().encode_to_vec(),
        };
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder
            .write_all(&request().encode_to_vec())
            .expect("memory takes it");
        let zipped = proto::WrappedJoinRequest {
            compression: Compression::Gzip as i32,
            join_request: encoder.finish().expect("memory takes it"),
        };
        for wrapped in [plain, zipped] {
            let text = base64::engine::general_purpose::URL_SAFE.encode(wrapped.encode_to_vec());
            assert_eq!(decode_join_request(&text).expect("reads"), request());
        }
    }

    #[test]
    fn a_join_request_that_unpacks_to_too_much_is_refused() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder
            .write_all(&vec![0; 4 * MAX_JOIN_REQUEST_BYTES])
            .expect("memory takes it");
        let wrapped = proto::WrappedJoinRequest {
            compression: proto::wrapped_join_request::Compression::Gzip as i32,
            join_request: encoder.finish().expect("memory takes it"),
        };
        let text = base64::engine::general_purpose::URL_SAFE.encode(wrapped.encode_to_vec());
        assert_eq!(decode_join_request(&text), Err("join request too large"));
    }
}
