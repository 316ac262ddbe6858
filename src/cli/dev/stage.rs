//! What `dev` and `demo` build their scene from: made-up keys, a free port, a worker in a process
//! of its own.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::settings::Secret;

/// How long a worker may take to register before something must be wrong.
const READY_WAIT: Duration = Duration::from_secs(20);
/// How often the worker is asked whether it has registered.
const READY_EVERY: Duration = Duration::from_millis(25);
/// How long a worker may take to stop once it was told to.
const STOP_WAIT: Duration = Duration::from_secs(20);

/// Why the scene could not be built.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// No free port, no program, no folder.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The worker ended before it had registered.
    #[error("the worker ended before it had registered ({0}); its log says why")]
    WorkerEnded(std::process::ExitStatus),
    /// The worker did not register.
    #[error("the worker did not register within {} s; its log says why", READY_WAIT.as_secs())]
    NotReady,
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> StageError {
    move |source| StageError::Io { what, source }
}

/// An API key and its secret that nobody else knows.
pub fn made_up_keys() -> (String, Secret) {
    (
        format!("API{}", &Uuid::new_v4().simple().to_string()[..12]),
        Secret::new(Uuid::new_v4().simple().to_string()),
    )
}

/// A port on loopback that was free a moment ago.
pub fn free_address() -> Result<SocketAddr, StageError> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io("no free port on 127.0.0.1"))?;
    listener
        .local_addr()
        .map_err(io("no free port on 127.0.0.1"))
}

/// `voicebot start` as a child process.
pub struct WorkerProcess {
    child: Child,
    /// Held open as long as we live: its end tells the worker to stop, however we end.
    _lifeline: Option<ChildStdin>,
    http: SocketAddr,
}

impl WorkerProcess {
    /// Starts a worker with `environment` on top of ours, as `program` or this one. Its log goes to
    /// `log`, or where ours goes.
    pub fn start(
        program: Option<&Path>,
        config: Option<&Path>,
        environment: &HashMap<String, String>,
        http: SocketAddr,
        log: Option<&Path>,
    ) -> Result<Self, StageError> {
        let program = match program {
            Some(program) => program.to_owned(),
            None => std::env::current_exe().map_err(io("this program cannot be found on disk"))?,
        };
        let mut command = Command::new(program);
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        command
            .args(["start", "--stop-with-stdin"])
            .envs(environment)
            .env("VOICEBOT__WORKER__HTTP_BIND", http.to_string())
            .stdin(Stdio::piped())
            // A group of its own: Ctrl-C reaches us alone, and we tell the worker in order.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(log) = log {
            let file =
                std::fs::File::create(log).map_err(io("the worker's log cannot be written"))?;
            command.stderr(file);
        }
        let mut child = command
            .spawn()
            .map_err(io("the worker cannot be started"))?;
        Ok(Self {
            _lifeline: child.stdin.take(),
            child,
            http,
        })
    }

    /// Waits until the worker has registered with the server.
    pub async fn ready(&mut self, http: &reqwest::Client) -> Result<(), StageError> {
        let address = format!("http://{}/readyz", self.http);
        let deadline = Instant::now() + READY_WAIT;
        while Instant::now() < deadline {
            if let Some(status) = self
                .child
                .try_wait()
                .map_err(io("the worker cannot be watched"))?
            {
                return Err(StageError::WorkerEnded(status));
            }
            if let Ok(response) = http.get(&address).send().await
                && response.status().is_success()
            {
                return Ok(());
            }
            sleep(READY_EVERY).await;
        }
        Err(StageError::NotReady)
    }

    /// Waits until the worker ends by itself.
    pub async fn wait(&mut self) -> Result<std::process::ExitStatus, StageError> {
        self.child
            .wait()
            .await
            .map_err(io("the worker cannot be watched"))
    }

    /// Asks the worker to end its calls and stop; kills it when it does not.
    pub async fn stop(mut self) -> Result<(), StageError> {
        if let Some(id) = self.child.id() {
            // The first signal drains, the second one ends calls at once.
            if let Some(id) = rustix::process::Pid::from_raw(id.cast_signed()) {
                // Two different ones, because two of the same kind may be delivered as one.
                use rustix::process::{Signal, kill_process};
                for signal in [Signal::TERM, Signal::INT] {
                    // It may have ended by itself.
                    let _ = kill_process(id, signal);
                }
            }
        }
        if tokio::time::timeout(STOP_WAIT, self.child.wait())
            .await
            .is_err()
        {
            self.child
                .kill()
                .await
                .map_err(io("the worker cannot be stopped"))?;
        }
        Ok(())
    }
}
