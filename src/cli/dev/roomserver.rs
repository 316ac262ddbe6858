//! `voicebot roomserver`: the development room server alone, for tests that bring their own
//! clients.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use roomserver::{Options, RoomServer};
use serde_json::json;

use crate::call::stop_signal;
use crate::cli::CommandResult;
use crate::settings::Secret;

#[derive(Debug, Args)]
pub struct RoomserverArguments {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:7880")]
    bind: SocketAddr,
    /// Folder that recordings are written to
    #[arg(long)]
    recordings: Option<PathBuf>,
    /// An address that is told of everything that happens; may be given several times
    #[arg(long = "webhook", value_name = "URL")]
    webhooks: Vec<String>,
    /// Refuse media over UDP
    #[arg(long)]
    no_udp: bool,
}

/// Serves until it is told to stop. The first line on stdout is JSON with the address.
pub async fn run(arguments: RoomserverArguments) -> CommandResult {
    let mut options = Options {
        bind: arguments.bind,
        node_ip: arguments.bind.ip(),
        recordings_dir: arguments.recordings,
        webhook_urls: arguments.webhooks,
        udp: !arguments.no_udp,
        ..Options::default()
    };
    if let (Some(key), Some(secret)) = (
        Secret::from_env("LIVEKIT_API_KEY"),
        Secret::from_env("LIVEKIT_API_SECRET"),
    ) {
        options.keys = vec![(key.expose().to_owned(), secret.expose().to_owned())];
    }
    let mut stop = stop_signal()?;
    let server = RoomServer::start(options).await?;
    println!("{}", json!({ "url": server.url() }));
    stop.recv().await;
    server.shutdown().await;
    Ok(ExitCode::SUCCESS)
}
