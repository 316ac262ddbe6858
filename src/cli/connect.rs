//! `voicebot connect`: joins one room as its agent, without dispatch and without a worker.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use livekit_api::access_token::{AccessToken, VideoGrants};
use uuid::Uuid;

use super::CommandResult;
use crate::call::{self, CallParts, stop_signal};
use crate::config::Config;
use crate::ipc::{self, JobDescription};
use crate::session::SessionId;
use crate::session::dispatch::told_by;
use crate::store::Store;

#[derive(Debug, Args)]
pub struct ConnectArguments {
    /// The room
    #[arg(long)]
    room: String,
    /// Identity of the agent in the room [default: agent- and a random part]
    #[arg(long)]
    identity: Option<String>,
    /// Job metadata, as a dispatch would carry it (JSON)
    #[arg(long)]
    metadata: Option<String>,
}

/// Holds one call and delivers its record, if a CRM is set.
pub async fn run(arguments: ConnectArguments, config: Arc<Config>) -> CommandResult {
    let livekit = config.livekit_settings()?;
    let stop = stop_signal()?;
    let store = Store::open(&config.data_dir)?;
    let short = &Uuid::new_v4().simple().to_string()[..12];
    let identity = arguments
        .identity
        .unwrap_or_else(|| format!("agent-{short}"));
    let grants = VideoGrants {
        room_join: true,
        room: arguments.room.clone(),
        can_update_own_metadata: Some(true),
        ..Default::default()
    };
    let token = AccessToken::with_api_key(&livekit.api_key, livekit.api_secret.expose())
        .with_identity(&identity)
        .with_grants(grants)
        .to_jwt()?;
    let now = chrono::Utc::now();
    let job = JobDescription {
        session_id: SessionId::new(now),
        job_id: format!("connect-{short}"),
        url: livekit.url.clone(),
        token,
        room_name: arguments.room,
        room_sid: None,
        job_metadata: arguments.metadata,
        agent_name: config.livekit.agent_name.clone(),
        participant_identity: identity,
        attributes: Default::default(),
        dispatched_at: now,
    };
    store.begin(
        &job.start(),
        &told_by(&job.start(), &config.dispatch_rules()),
    )?;
    let session_id = job.session_id.clone();
    let parts = CallParts::from_config(config.clone())?;
    let (from_worker, to_worker) = ipc::alone();
    let ending = call::hold(job, parts, from_worker, to_worker, stop).await?;
    println!(
        "{session_id}: {} ({:?})",
        ending.disconnect_reason, ending.call_status
    );
    if config.crm.base_url.is_empty() {
        println!(
            "CRM_BASE_URL is not set: the record waits in {}",
            store.root().join("call_metadata").display()
        );
    } else {
        super::uploads::deliver(&config, &store, &session_id).await?;
    }
    Ok(if ending.job_succeeded() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
