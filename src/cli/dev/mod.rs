//! `voicebot dev`: local development in one terminal.
//!
//! A worker with its upload task, a page on which a person talks to the agent from the browser,
//! and, where no LiveKit server is named, the development room server with made-up keys. Without a
//! CRM address the records go to a CRM sink in `./crm`; without a key for the providers a prepared
//! conversation answers. What is made up is said on the terminal.
//!
//! Everything in this folder is for development and exists only with the feature `dev`, which a
//! production build leaves out.

mod clips;
mod crm_sink;
pub mod demo;
pub mod roomserver;
mod stage;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use ::roomserver::{Options, RoomServer};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Args;
use livekit_api::access_token::{AccessToken, VideoGrants};
use livekit_api::services::agent_dispatch::AgentDispatchClient;
use livekit_protocol as proto;
use serde_json::{Value, json};
use uuid::Uuid;

use self::crm_sink::CrmSink;
use self::stage::{WorkerProcess, free_address, made_up_keys};
use super::CommandResult;
use crate::call::stop_signal;
use crate::config::Config;
use crate::settings::{LiveKitSettings, Secret};

const PAGE: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
const CODE: &str = include_str!("page/page.js");
/// The browser's LiveKit client, as npm installs it beside its judge in the tests.
const CLIENT: &str = "tests/interop/browser/node_modules/livekit-client/dist/livekit-client.umd.js";
/// Folder for the conversation of whoever has no keys yet, in the data folder.
const SCRIPT_FOLDER: &str = ".dev-script";
/// The file that is read for variables which are not set yet.
const DOTENV: &str = ".env";

#[derive(Debug, Args)]
pub struct DevArguments {
    /// Where the page is served
    #[arg(long, default_value = "127.0.0.1:8080")]
    page: SocketAddr,
    /// The browser's LiveKit client: livekit-client.umd.js of the npm package livekit-client
    #[arg(long, value_name = "FILE", default_value = CLIENT)]
    client: PathBuf,
}

impl Default for DevArguments {
    fn default() -> Self {
        Self {
            page: SocketAddr::from(([127, 0, 0, 1], 8080)),
            client: CLIENT.into(),
        }
    }
}

/// What the page's requests need.
struct Page {
    livekit: LiveKitSettings,
    agent_name: String,
    client: PathBuf,
    scripted: bool,
}

/// Runs until Ctrl-C.
pub async fn run(
    arguments: DevArguments,
    config: Arc<Config>,
    file: Option<PathBuf>,
) -> CommandResult {
    let mut stop = stop_signal()?;
    let mut environment = read_dotenv(Path::new(DOTENV))?;
    let set = |environment: &HashMap<String, String>, name: &str| {
        environment
            .get(name)
            .cloned()
            .or_else(|| std::env::var(name).ok())
            .filter(|value| !value.is_empty())
    };

    let mut server = None;
    let url = set(&environment, "LIVEKIT_URL")
        .or_else(|| Some(config.livekit.url.clone()).filter(|url| !url.is_empty()));
    let livekit = match url {
        Some(url) => {
            let missing = |name: &str| {
                format!(
                    "{name} is not set: it belongs to LIVEKIT_URL (environment variable or {DOTENV})"
                )
            };
            LiveKitSettings {
                url,
                api_key: set(&environment, "LIVEKIT_API_KEY")
                    .ok_or_else(|| missing("LIVEKIT_API_KEY"))?,
                api_secret: Secret::new(
                    set(&environment, "LIVEKIT_API_SECRET")
                        .ok_or_else(|| missing("LIVEKIT_API_SECRET"))?,
                ),
            }
        }
        None => {
            let (api_key, api_secret) = made_up_keys();
            let options = Options {
                keys: vec![(api_key.clone(), api_secret.expose().to_owned())],
                recordings_dir: Some(config.data_dir.clone()),
                ..Options::default()
            };
            let started = RoomServer::start(options).await?;
            println!(
                "LIVEKIT_URL is not set: a development room server runs at {}",
                started.url()
            );
            let settings = LiveKitSettings {
                url: started.url(),
                api_key,
                api_secret,
            };
            environment.insert("LIVEKIT_URL".into(), settings.url.clone());
            environment.insert("LIVEKIT_API_KEY".into(), settings.api_key.clone());
            environment.insert(
                "LIVEKIT_API_SECRET".into(),
                settings.api_secret.expose().to_owned(),
            );
            server = Some(started);
            settings
        }
    };
    let agent_name = match set(&environment, "LIVEKIT_AGENT_NAME")
        .unwrap_or_else(|| config.livekit.agent_name.clone())
    {
        name if name.is_empty() => "dev".to_owned(),
        name => name,
    };
    environment.insert("LIVEKIT_AGENT_NAME".into(), agent_name.clone());

    let mut crm = None;
    if set(&environment, "CRM_BASE_URL").is_none() && config.crm.base_url.is_empty() {
        let folder = config.data_dir.join("crm");
        let sink = CrmSink::start(&folder).await?;
        println!(
            "CRM_BASE_URL is not set: records are delivered into {}",
            folder.display()
        );
        environment.insert("CRM_BASE_URL".into(), sink.url());
        crm = Some(sink);
    }
    let scripted = set(&environment, "OPENAI_API_KEY").is_none()
        && set(&environment, "OPENAI_BASE_URL").is_none();
    if scripted {
        println!(
            "OPENAI_API_KEY is not set: the agent plays a prepared conversation (config/demo-script.json)"
        );
        let script = clips::write_script(&config.data_dir.join(SCRIPT_FOLDER))?;
        environment.insert("VOICEBOT__PROVIDERS__VENDOR".into(), "scripted".into());
        environment.insert(
            "VOICEBOT__PROVIDERS__SCRIPT".into(),
            script.display().to_string(),
        );
    }

    // The usual address, unless something is there already: another worker, or another `dev`.
    let usual = config.worker.http_bind;
    let http = match std::net::TcpListener::bind(usual) {
        Ok(_) if usual.port() != 0 => usual,
        _ => free_address()?,
    };
    let mut worker = WorkerProcess::start(None, file.as_deref(), &environment, http, None)?;
    worker.ready(&reqwest::Client::new()).await?;

    let page = Arc::new(Page {
        livekit,
        agent_name,
        client: arguments.client,
        scripted,
    });
    let listener = tokio::net::TcpListener::bind(arguments.page)
        .await
        .map_err(|error| {
            format!(
                "the page cannot be served at {} (--page): {error}",
                arguments.page
            )
        })?;
    println!(
        "Talk to the agent at http://{}/ (Ctrl-C ends)",
        listener.local_addr()?
    );
    println!("See what happens at http://{http}/page/");
    let serving = tokio::spawn(async move { axum::serve(listener, router(page)).await });

    let code = tokio::select! {
        _ = stop.recv() => {
            println!("Ending calls and stopping");
            worker.stop().await?;
            ExitCode::SUCCESS
        }
        status = worker.wait() => {
            eprintln!("voicebot: the worker has ended ({})", status?);
            ExitCode::FAILURE
        }
    };
    serving.abort();
    if let Some(server) = server {
        server.shutdown().await;
    }
    drop(crm);
    Ok(code)
}

/// Lines `NAME=value` for variables that are not set yet. A file that is not there is an empty one.
fn read_dotenv(path: &Path) -> Result<HashMap<String, String>, String> {
    match dotenvy::from_path_iter(path) {
        Ok(lines) => lines
            .filter(|line| !matches!(line, Ok((name, _)) if std::env::var_os(name).is_some()))
            .map(|line| line.map_err(|error| format!("{} cannot be used: {error}", path.display())))
            .collect(),
        Err(error) if error.not_found() => Ok(HashMap::new()),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
    }
}

fn router(page: Arc<Page>) -> Router {
    let text = |kind: &'static str, body: &'static str| {
        move || async move { ([(header::CONTENT_TYPE, kind)], body) }
    };
    Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/style.css", get(text("text/css; charset=utf-8", STYLE)))
        .route(
            "/page.js",
            get(text("text/javascript; charset=utf-8", CODE)),
        )
        .route("/livekit-client.js", get(client))
        .route("/about", get(about))
        .route("/call", post(call))
        .with_state(page)
}

async fn client(State(page): State<Arc<Page>>) -> Response {
    match tokio::fs::read(&page.client).await {
        Ok(code) => (
            [(header::CONTENT_TYPE, "text/javascript; charset=utf-8")],
            code,
        )
            .into_response(),
        Err(error) => (
            StatusCode::NOT_FOUND,
            format!("{}: {error}", page.client.display()),
        )
            .into_response(),
    }
}

/// What the page tells the person in front of it.
async fn about(State(page): State<Arc<Page>>) -> Json<Value> {
    let client_missing = !page.client.is_file();
    Json(json!({
        "url": page.livekit.url,
        "agent_name": page.agent_name,
        "scripted": page.scripted,
        "client_missing": client_missing.then(|| page.client.display().to_string()),
    }))
}

/// A room for one call: a token for the person, a dispatch for the agent.
async fn call(State(page): State<Arc<Page>>) -> Result<Json<Value>, (StatusCode, String)> {
    let failed = |error: &dyn std::error::Error| {
        (
            StatusCode::BAD_GATEWAY,
            format!(
                "the LiveKit server at {} refused: {error}",
                page.livekit.url
            ),
        )
    };
    let room = format!("dev-{}", &Uuid::new_v4().simple().to_string()[..8]);
    let (key, secret) = (&page.livekit.api_key, page.livekit.api_secret.expose());
    let grants = VideoGrants {
        room_join: true,
        room: room.clone(),
        ..Default::default()
    };
    let token = AccessToken::with_api_key(key, secret)
        .with_identity("you")
        .with_name("You")
        .with_grants(grants)
        .to_jwt()
        .map_err(|error| failed(&error))?;
    let dispatcher = AgentDispatchClient::with_api_key(
        &crate::settings::http_address(&page.livekit.url),
        key,
        secret,
    );
    let request = proto::CreateAgentDispatchRequest {
        agent_name: page.agent_name.clone(),
        room: room.clone(),
        ..Default::default()
    };
    dispatcher
        .create_dispatch(request)
        .await
        .map_err(|error| failed(&error))?;
    Ok(Json(
        json!({ "url": page.livekit.url, "token": token, "room": room }),
    ))
}
