//! One call: the process that the worker starts for it, from joining the room to leaving it.
//!
//! `run` tells the story; `dial` calls the number of a dispatch; `room` is the LiveKit room;
//! `media` says whether anything arrives; `lookup` finds out meanwhile who the agent is; `persona`
//! and `hangup` answer single questions; `publish` tells the room what is said. A call never talks
//! to the CRM: it leaves a record on disk and the worker delivers it.

mod caller_sound;
pub mod config;
mod dial;
mod hangup;
mod lookup;
mod media;
mod persona;
mod publish;
mod room;
mod run;

use std::sync::{Arc, OnceLock};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{Instrument as _, Span, info_span};

use crate::config::Config;
use crate::ipc::{self, FromCall, FromWorker, IpcError, JobDescription, ToWorker};
use crate::providers::{self, ProviderError, ProviderFactory};
use crate::session::mask_room_name;
use crate::settings::{LiveKitSettings, Secret};
use crate::store::{Store, StoreError};

pub use hangup::{Ending, HangupCause};
pub use persona::{Persona, PersonaError, Personas};
pub use room::CALL_OUTCOME;
pub use run::{CallError, CallParts, run};

/// The bearer token for the persona source.
const PERSONA_TOKEN: &str = "PERSONA_TOKEN";

/// Why a call process could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CallProcessError {
    /// The worker's pipes are not as they should be.
    #[error(transparent)]
    Ipc(#[from] IpcError),
    /// The data folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A provider is not set up.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The record could not be made.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signals(std::io::Error),
}

impl CallParts {
    /// Everything that a call needs, from the settings and the environment.
    ///
    /// # Errors
    /// When the data folder cannot be used, or a provider's settings are wrong.
    pub fn from_config(config: Arc<Config>) -> Result<Self, CallProcessError> {
        let store = Store::open(&config.data_dir)?;
        let http = providers::http_client()?;
        let providers = ProviderFactory::new(config.providers.clone(), http.clone())?;
        let token = Secret::from_env(PERSONA_TOKEN);
        let personas = Personas::new(config.persona.clone(), http, token, &config.data_dir);
        let livekit: Option<LiveKitSettings> = config.livekit_settings().ok();
        Ok(Self {
            config,
            store,
            providers: Arc::new(providers),
            personas: Arc::new(personas),
            livekit,
        })
    }
}

/// The life of a call process: says that it is ready, gets its job, holds the call.
///
/// # Errors
/// When the process was not started by a worker, cannot use its settings, or cannot make a record.
pub async fn run_process(config: Arc<Config>) -> Result<(), CallProcessError> {
    let (mut from_worker, to_worker) = ipc::child()?;
    let stop = stop_signal()?;
    let parts = CallParts::from_config(config)?;
    to_worker.send(FromCall::Ready);
    let job = from_worker.job().await?;
    hold(job, parts, from_worker, to_worker, stop).await?;
    Ok(())
}

/// The span of the one call that this process holds.
static PROCESS_SPAN: OnceLock<Span> = OnceLock::new();

/// The call that everything in this process is about, for lines that are logged outside any span:
/// by tasks and threads of the SDK and the media engine, which know nothing of calls. `None` in
/// processes that hold none, or have no job yet.
pub fn process_span() -> Option<&'static Span> {
    PROCESS_SPAN.get()
}

/// Holds the one call of this process with everything that is logged meanwhile carrying its ids.
///
/// # Errors
/// When the record could not be started or written. What was written by then stays in the journal.
pub async fn hold(
    job: JobDescription,
    parts: CallParts,
    from_worker: FromWorker,
    to_worker: ToWorker,
    stop: mpsc::Receiver<()>,
) -> Result<Ending, CallError> {
    let span = info_span!(
        "call",
        session.id = %job.session_id,
        job.id = job.job_id,
        room.name = mask_room_name(&job.room_name),
    );
    // Only processes that hold one call come here.
    let _ = PROCESS_SPAN.set(span.clone());
    run(job, parts, from_worker, to_worker, stop)
        .instrument(span)
        .await
}

/// SIGTERM and SIGINT as messages. The first one ends the call at once, with its record.
///
/// # Errors
/// When the system does not let this process receive signals.
pub fn stop_signal() -> Result<mpsc::Receiver<()>, CallProcessError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(CallProcessError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CallProcessError::Signals)?;
    let (told, stop) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if told.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(stop)
}
