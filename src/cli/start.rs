//! `voicebot start`: the worker in production.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

use super::CommandResult;
use crate::config::Config;
use crate::ipc;
use crate::ledger::mongodb;
use crate::page::{self, Access, PageParts};
use crate::providers;
use crate::recording::webhook::Webhooks;
use crate::settings::Secret;
use crate::store::Store;
use crate::upload::PassOptions;
use crate::worker::{self, CallProgram, HttpServer, Worker};

/// How long the last delivery may take before a worker that was told to stop ends.
const LAST_PASS: Duration = Duration::from_secs(10);
/// Ends of egresses that may wait to be heard by the delivery. What comes when it is full is
/// dropped: recordings are looked for anyway.
const EGRESS_ENDS: usize = 64;

#[derive(Debug, clap::Args)]
pub struct StartArguments {
    /// End all calls and stop when stdin, a pipe, ends: for programs that start a worker and may be
    /// killed
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

/// Takes calls until it is told to stop and the last one has ended. `file`: the config file, which
/// the calls read as well.
pub async fn run(
    arguments: StartArguments,
    config: Arc<Config>,
    file: Option<PathBuf>,
) -> CommandResult {
    let livekit = config.livekit_settings()?;
    // Calls would find these faults one by one; here they end the start.
    providers::build(&config.providers, providers::http_client()?)?;
    let store = Store::open(&config.data_dir)?;
    let http = HttpServer::bind(config.worker.http_bind).await?;
    let access = Access::new(http.address(), Secret::from_env(page::TOKEN_VARIABLE))?;
    let metrics = worker::install_metrics()?;
    let starter = if arguments.stop_with_stdin {
        Some(ipc::stdin_pipe()?)
    } else {
        None
    };
    let signals = worker::stop_signals(starter)?;

    let stop = CancellationToken::new();
    let (notify, notices) = mpsc::channel(1);
    let (egress_ended, egress_ends) = mpsc::channel(EGRESS_ENDS);
    let delivery = if config.crm.base_url.is_empty() {
        warn!(
            "CRM_BASE_URL is not set: records wait in {}",
            store.root().join("call_metadata").display()
        );
        None
    } else {
        let uploader = super::uploads::uploader(&config, &store)?.hurried_by(egress_ends);
        let health = uploader.health();
        Some((tokio::spawn(uploader.run(notices, stop.clone())), health))
    };
    let (delivery, crm) = delivery.unzip();
    let webhooks = Webhooks::new(&livekit.api_key, livekit.api_secret.expose());
    let hears = worker::webhook_route(webhooks, egress_ended);
    // Stopped last: what the last delivery changes belongs into the copy too.
    let stop_copy = CancellationToken::new();
    let copy = mongodb::start(&config.mongodb, &store, stop_copy.clone())?;
    let options = file
        .into_iter()
        .flat_map(|file| ["--config".into(), file.into_os_string()]);
    let program = CallProgram::this_binary(options)?;
    let livekit_host = Url::parse(&livekit.url)
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned))
        .unwrap_or_default();
    let worker = Worker::new(
        config.worker.clone(),
        livekit,
        config.livekit.agent_name.clone(),
        store.clone(),
        program,
        notify.clone(),
    )?
    .with_storage(config.storage)
    .with_room_deletion(config.call.delete_room)
    .with_rules(config.dispatch_rules());
    let parts = PageParts {
        config: config.page.clone(),
        store: store.clone(),
        status: worker.status(),
        slots: config.worker.slots(),
        storage: config.storage,
        livekit_host,
        resolver: super::uploads::resolver(&config, &store),
        crm,
        notify,
    };
    let shown = hears.merge(page::router(access, parts, stop.clone()));
    let page = tokio::spawn(http.serve(worker.status(), Some(metrics), shown, stop.clone()));
    let result = worker.run(signals).await;

    stop.cancel();
    if let Some(delivery) = delivery {
        delivery.await?;
        // The last record of a worker that stops may be younger than the delivery's last scan.
        let last_scan = super::uploads::uploader(&config, &store)?;
        match timeout(LAST_PASS, last_scan.pass(PassOptions::default())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(%error, "records may be waiting for the next start"),
            Err(_) => warn!("records wait for the next start: the CRM took too long"),
        }
    }
    stop_copy.cancel();
    if let Some(copy) = copy {
        copy.await?;
    }
    page.await?;
    result?;
    // Whoever reads it knows that nothing more comes.
    info!("the worker stopped");
    Ok(ExitCode::SUCCESS)
}
