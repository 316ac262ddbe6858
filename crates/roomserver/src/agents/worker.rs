//! One registered worker: its capabilities, its load, its jobs. Knows nothing about rooms and
//! sockets; messages for the worker go into its outbox.

use std::collections::HashMap;

use livekit_protocol as proto;
use parking_lot::Mutex;
use proto::server_message::Message as ToWorker;
use proto::{JobStatus, JobType, WorkerStatus};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::ids;

/// Messages that a worker may leave unread. A job is two of them, so this is more than a hundred
/// jobs at once. A worker that is further behind is disconnected.
pub(super) const OUTBOX_CAPACITY: usize = 256;

/// What a job has to match for a worker to be asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct WorkerKey {
    pub agent_name: String,
    pub deployment: String,
    pub job_type: JobType,
}

/// The content of a worker's registration.
#[derive(Debug, Clone)]
pub(super) struct Registration {
    pub key: WorkerKey,
    pub permissions: proto::ParticipantPermission,
}

impl Registration {
    /// Reads a registration; `None` if it asks for a type of job that does not exist.
    pub fn new(request: proto::RegisterWorkerRequest) -> Option<Self> {
        let job_type = JobType::try_from(request.r#type).ok()?;
        // The default that the real server assumes for workers that name no permissions.
        let default_permissions = || proto::ParticipantPermission {
            can_subscribe: true,
            can_publish: true,
            can_publish_data: true,
            can_update_metadata: true,
            ..Default::default()
        };
        Some(Self {
            key: WorkerKey {
                agent_name: request.agent_name,
                deployment: request.deployment,
                job_type,
            },
            permissions: request
                .allowed_permissions
                .unwrap_or_else(default_permissions),
        })
    }
}

/// Why a worker did not take a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the worker is not available")]
    NotAvailable,
    #[error("the worker's connection is closed")]
    Closed,
    #[error("the worker has been asked about this job already")]
    Duplicate,
}

pub(super) struct Worker {
    pub id: String,
    /// The API key of the worker's token. Job tokens are signed with its secret.
    pub api_key: String,
    pub registration: Registration,
    outbox: mpsc::Sender<proto::ServerMessage>,
    /// Cancelled when the connection has ended or is to end.
    pub closed: CancellationToken,
    state: Mutex<WorkerState>,
}

#[derive(Default)]
struct WorkerState {
    load: f32,
    status: WorkerStatus,
    asked: HashMap<String, oneshot::Sender<proto::AvailabilityResponse>>,
    running: HashMap<String, proto::JobState>,
}

impl Worker {
    pub fn new(
        api_key: String,
        registration: Registration,
        closed: CancellationToken,
    ) -> (Self, mpsc::Receiver<proto::ServerMessage>) {
        let (outbox, inbox) = mpsc::channel(OUTBOX_CAPACITY);
        let worker = Self {
            id: ids::new_id(ids::WORKER),
            api_key,
            registration,
            outbox,
            closed,
            state: Mutex::default(),
        };
        (worker, inbox)
    }

    /// Puts a message into the outbox. If it is full, the worker is not reading, and its connection
    /// is closed.
    pub fn send(&self, message: ToWorker) {
        if self
            .outbox
            .try_send(proto::ServerMessage {
                message: Some(message),
            })
            .is_err()
        {
            tracing::warn!(
                worker.id = self.id,
                "an agent worker does not read its messages; closing its connection"
            );
            self.closed.cancel();
        }
    }

    pub fn set_status(&self, update: &proto::UpdateWorkerStatus) {
        let mut state = self.state.lock();
        if let Some(status) = update
            .status
            .and_then(|status| WorkerStatus::try_from(status).ok())
        {
            state.status = status;
        }
        state.load = update.load;
    }

    /// The load, if the worker says that it is available and its connection is open.
    pub fn available_load(&self) -> Option<f32> {
        let state = self.state.lock();
        (state.status == WorkerStatus::WsAvailable && !self.closed.is_cancelled())
            .then_some(state.load)
    }

    /// Asks the worker about a job. The answer arrives on the channel that is returned; it closes
    /// if the worker disconnects.
    pub fn ask(
        &self,
        job: &proto::Job,
    ) -> Result<oneshot::Receiver<proto::AvailabilityResponse>, Refusal> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.state.lock();
            if self.closed.is_cancelled() {
                return Err(Refusal::Closed);
            }
            if state.asked.contains_key(&job.id) || state.running.contains_key(&job.id) {
                return Err(Refusal::Duplicate);
            }
            state.asked.insert(job.id.clone(), sender);
        }
        self.send(ToWorker::Availability(proto::AvailabilityRequest {
            job: Some(job.clone()),
            resuming: false,
        }));
        Ok(receiver)
    }

    /// Withdraws a question: an answer that still comes is ignored.
    pub fn forget(&self, job_id: &str) {
        self.state.lock().asked.remove(job_id);
    }

    /// Passes the worker's answer to the task that waits for it.
    pub fn answered(&self, answer: proto::AvailabilityResponse) {
        let waiting = self.state.lock().asked.remove(&answer.job_id);
        match waiting {
            // The task may have timed out just now: the same as an answer that comes too late.
            Some(waiting) => drop(waiting.send(answer)),
            None => tracing::warn!(
                worker.id = self.id,
                job.id = answer.job_id,
                "answer about a job that is not asked for"
            ),
        }
    }

    /// Gives the worker its job.
    pub fn assign(&self, job: proto::Job, token: String) {
        let state = job.state.clone().unwrap_or_default();
        self.state.lock().running.insert(job.id.clone(), state);
        self.send(ToWorker::Assignment(proto::JobAssignment {
            job: Some(job),
            url: None,
            token,
        }));
    }

    /// Applies a status to a running job; `None` if the worker does not run it (any more).
    pub fn update_job(
        &self,
        job_id: &str,
        status: JobStatus,
        error: &str,
    ) -> Option<proto::JobState> {
        let mut state = self.state.lock();
        let job = state.running.get_mut(job_id)?;
        let now = super::unix_now_ns();
        job.updated_at = now;
        job.set_status(status);
        job.error = error.to_owned();
        if is_final(status) {
            job.ended_at = now;
            return state.running.remove(job_id);
        }
        Some(job.clone())
    }

    /// Marks the connection as ended: every task that waits for an answer is told.
    pub fn close(&self) {
        self.closed.cancel();
        self.state.lock().asked.clear();
    }
}

pub(super) fn is_final(status: JobStatus) -> bool {
    matches!(status, JobStatus::JsSuccess | JobStatus::JsFailed)
}
