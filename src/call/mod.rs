//! One call: the process that the worker starts for it, from joining the room to leaving it.
//!
//! `run` tells the story; `room` is the LiveKit room; `party` says whom to talk to, `media` whether
//! anything arrives; `lookup` finds out meanwhile who the agent is; `dispatch`, `numbers`,
//! `persona` and `hangup` answer single questions; `publish` tells the room what is said;
//! `room_service` is the server's API for rooms, `room_end` ends those that were lost. A call never
//! talks to the CRM: it leaves a record on disk and the worker delivers it.

mod caller_sound;
mod dispatch;
mod hangup;
mod lookup;
mod media;
mod numbers;
mod party;
mod persona;
mod publish;
mod room;
mod room_end;
mod room_service;
mod run;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{Instrument as _, Span, info_span};

use crate::config::{Config, LiveKitSettings, Secret};
use crate::ipc::{self, FromCall, FromWorker, IpcError, JobDescription, ToWorker};
use crate::phone::CountryCode;
use crate::providers::{self, ProviderError, ProviderFactory};
use crate::store::{Store, StoreError};
use crate::voice::LineSources;

pub use dispatch::told_by;
pub use hangup::{Ending, HangupCause};
pub use numbers::{Numbers, mask, mask_room_name};
pub(crate) use party::{AGENT_SINCE, AfterDeath};
pub use persona::{Persona, PersonaConfig, PersonaError, Personas};
pub(crate) use room_end::{DesertedRoom, LostAgent, end_room};
pub(crate) use room_service::RoomService;
pub use run::{CallError, CallParts, http_address, run};

/// The bearer token for the persona source.
const PERSONA_TOKEN: &str = "PERSONA_TOKEN";

/// `[call]`: how long a call waits for what, and how it ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CallConfig {
    /// How long joining the room may take, s.
    pub join_timeout_s: u64,
    /// How long the agent waits alone for its caller, s. Then the call counts as not answered.
    pub caller_wait_s: u64,
    /// How long a telephone may ring before the call counts as not answered, s.
    pub ring_wait_s: u64,
    /// The longest a call may last, s.
    pub max_duration_s: u64,
    /// What the agent says when the call has lasted too long; empty: nothing.
    pub max_duration_goodbye: String,
    /// How long our own connection to the room may be lost, and then how long the caller may take
    /// to be there again, s: a server that is started again needs some seconds, and so does its SIP
    /// service. Meanwhile the conversation waits. Whoever is still in the room when it has passed
    /// is given to another agent, if the server sends one within seconds, or hung up on.
    pub reconnect_wait_s: u64,
    /// What the agent says when the two are together again after that, unless it was interrupted in
    /// mid sentence, which it then ends; empty: nothing.
    pub reconnected_line: String,
    /// How long no sound may arrive from the caller, not even silence, before the call is given up,
    /// s; 0: for ever. A microphone that is muted does not count, nor does a caller who writes.
    pub no_media_s: u64,
    /// What the agent says then, because the caller may hear it all the same; empty: nothing.
    pub no_media_goodbye: String,
    /// Delete the room at the end of the call, which hangs up the caller's telephone.
    pub delete_room: bool,
    /// Where numbers without a country code belong. Empty: they stay as they were dialled, without
    /// `+`.
    pub country_code: CountryCode,
}

impl Default for CallConfig {
    fn default() -> Self {
        Self {
            join_timeout_s: 20,
            caller_wait_s: 60,
            ring_wait_s: 80,
            max_duration_s: 15 * 60,
            max_duration_goodbye: "I am sorry, our time is up. Thank you for calling, goodbye."
                .into(),
            // LiveKit's SIP service comes back 27 s after it was cut off, or after 16 s or less.
            reconnect_wait_s: 30,
            reconnected_line: "Sorry, the line was interrupted. I am here again.".into(),
            // LiveKit's SIP service hangs up a telephone 15 s after its last packet
            // (`media_timeout`), which would look like a caller who left.
            no_media_s: 9,
            no_media_goodbye: "I am sorry, I cannot hear you. Please call again. Goodbye.".into(),
            delete_room: true,
            country_code: CountryCode::default(),
        }
    }
}

/// What the agent says about the call itself; nothing where it is to be silent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct CallLines {
    /// The call has lasted too long.
    max_duration_goodbye: Option<String>,
    /// The two are together again.
    reconnected: Option<String>,
    /// Nothing arrives from the caller.
    no_media_goodbye: Option<String>,
}

impl CallConfig {
    /// The lines of a persona whose lines come from `sources`.
    fn lines(&self, sources: &LineSources) -> CallLines {
        let english = Self::default();
        let choose =
            |pick, general: &str, english: &str| line(&sources.choose(pick, general, english));
        CallLines {
            max_duration_goodbye: choose(
                |own| &own.max_duration_goodbye,
                &self.max_duration_goodbye,
                &english.max_duration_goodbye,
            ),
            reconnected: choose(
                |own| &own.reconnected_line,
                &self.reconnected_line,
                &english.reconnected_line,
            ),
            no_media_goodbye: choose(
                |own| &own.no_media_goodbye,
                &self.no_media_goodbye,
                &english.no_media_goodbye,
            ),
        }
    }

    fn no_media(&self) -> Option<Duration> {
        (self.no_media_s > 0).then(|| Duration::from_secs(self.no_media_s))
    }
}

/// A line to be said, unless it is empty.
fn line(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

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
