//! Everything besides signalling: API calls over Twirp and the endpoint for agent workers, as one
//! router.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;

use crate::agents::{self, Agents};
use crate::egress::{self, Egress};
use crate::room_service;
use crate::server::Server;
use crate::sip::{self, Sip};
use crate::twirp::{Call, Code, TwirpError};
use crate::webhooks::Webhooks;

#[derive(Clone)]
struct Api {
    server: Server,
    agents: Agents,
    egress: Egress,
    sip: Sip,
}

/// The routes, and the tasks behind them, which end with the server.
pub(crate) fn router(server: Server) -> Router {
    let agents = Agents::new(server.clone());
    let sip = Sip::new(server.clone());
    let webhooks = Webhooks::new(server.clone());
    let egress = Egress::new(server.clone(), webhooks.clone());
    server
        .tasks()
        .spawn(agents.clone().follow(server.rooms().subscribe()));
    server
        .tasks()
        .spawn(egress.clone().follow(server.rooms().subscribe()));
    let agent_socket = agents.router();
    server
        .tasks()
        .spawn(webhooks.follow(server.rooms().subscribe()));
    let api = Api {
        server,
        agents,
        egress,
        sip,
    };
    Router::new()
        .route("/twirp/{service}/{method}", any(call))
        .with_state(api)
        .merge(agent_socket)
}

async fn call(
    State(api): State<Api>,
    Path((service, method)): Path<(String, String)>,
    verb: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = format!("/twirp/{service}/{method}");
    let call = match Call::new(api.server.keys(), &verb, &path, &headers, body) {
        Ok(call) => call,
        Err(error) => return error.into_response(),
    };
    let response = match service.as_str() {
        "livekit.RoomService" => room_service::serve(api.server.rooms(), &method, call).await,
        "livekit.SIP" => sip::serve(&api.sip, &method, call).await,
        "livekit.Egress" => egress::serve(&api.egress, &method, call).await,
        "livekit.AgentDispatchService" => agents::serve(&api.agents, &method, call).await,
        _ => None,
    };
    response.unwrap_or_else(|| no_such_method(&service, &method, &path).into_response())
}

fn no_such_method(service: &str, method: &str, path: &str) -> TwirpError {
    let only_real = match service {
        "livekit.RoomService" => {
            ["ForwardParticipant", "MoveParticipant", "PerformRpc"].contains(&method)
        }
        "livekit.Egress" => method.starts_with("Start") || method.starts_with("Update"),
        "livekit.SIP" | "livekit.Ingress" | "livekit.Connector" => true,
        _ => false,
    };
    if only_real {
        return TwirpError::unimplemented(format!("this development server does not have {path}"));
    }
    TwirpError::new(Code::BadRoute, format!("no handler for path \"{path}\""))
}
