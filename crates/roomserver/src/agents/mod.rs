//! Agents: the workers that registered, the dispatches of each room, and the jobs that come of
//! them.
//!
//! A dispatch asks for one job of every type as its time comes: for the room when it starts (or
//! when the dispatch is made), for each participant that joins, for each that publishes. A job is
//! offered to one worker after the other until one takes it, within [`ASSIGN_TIMEOUT`] altogether;
//! there is one attempt, no queue and no second dispatch, as on the open-source server.
//!
//! What differs from livekit-server 1.11, found by asking both the same: a job's state in
//! `ListDispatch` follows the worker's updates (there it stays as it was at the assignment), and
//! the job is listed at once (there the first one of a minute after some seconds); there is no
//! delay of 200 ms for other nodes' claims; when a room closes, workers whose agents had not joined
//! yet get a termination too; the deprecated namespaces are ignored.

mod service;
mod socket;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use livekit_protocol as proto;
use parking_lot::Mutex;
use proto::participant_info::Kind;
use proto::server_message::Message as ToWorker;
use proto::{DisconnectReason, JobStatus, JobType};
use rand::Rng;
use tokio::sync::broadcast;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::ids;
use crate::rooms::RoomEvent;
use crate::server::Server;
use crate::token::{Claims, TokenError, VideoGrants, unix_now_s};
use worker::{Refusal, Worker, WorkerKey, is_final};

pub(crate) use service::serve;

/// How long workers may take to accept a job. The real server's requester gives up after 3 s
/// (`psrpc` request time-out), so its 10 s for the answer itself never run out.
const ASSIGN_TIMEOUT: Duration = Duration::from_secs(3);
/// A node whose workers' loads are all at or above this is never chosen (`agents.target_load`).
const TARGET_LOAD: f32 = 0.7;
/// How long an agent may take to leave after its dispatch was deleted, before it is removed.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);
/// The attribute by which clients recognise which agent a participant is.
const AGENT_NAME_ATTRIBUTE: &str = "lk.agent_name";
/// How long a job's token can be used to join; the server refreshes it for a live connection.
const JOB_TOKEN_LIFETIME_S: u64 = 3600;

/// Workers, dispatches and jobs of the whole server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Agents {
    shared: Arc<Shared>,
}

struct Shared {
    server: Server,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    workers: Vec<Arc<Worker>>,
    /// By the room's id.
    rooms: HashMap<String, RoomAgents>,
    /// Id of the current room with each name, according to the events so far.
    room_ids: HashMap<String, String>,
    /// Jobs that a connected worker runs, by job id.
    jobs: HashMap<String, RunningJob>,
}

#[derive(Default)]
struct RoomAgents {
    /// Whether the dispatches that the room was created with have been made.
    started: bool,
    dispatches: BTreeMap<String, Arc<Dispatch>>,
}

struct Dispatch {
    info: Mutex<proto::AgentDispatch>,
    /// Jobs that are being offered to workers.
    launches: TaskTracker,
    /// Participants, by their ids, for whom a job was launched already. A dispatch lists the
    /// participants when it begins and gets an event for each that joins later; the same
    /// participant may be in both.
    launched_for: Mutex<HashSet<(JobType, String)>>,
}

impl Dispatch {
    fn snapshot(&self) -> proto::AgentDispatch {
        self.info.lock().clone()
    }

    fn set_job_state(&self, job_id: &str, state: &proto::JobState) {
        let mut info = self.info.lock();
        let jobs = info
            .state
            .iter_mut()
            .flat_map(|dispatch| &mut dispatch.jobs);
        for job in jobs.filter(|job| job.id == job_id) {
            job.state = Some(state.clone());
        }
    }
}

struct RunningJob {
    worker: Arc<Worker>,
    /// `None` for a simulated job.
    dispatch: Option<Arc<Dispatch>>,
    room_id: String,
    identity: String,
}

impl Agents {
    pub fn new(server: Server) -> Self {
        Self {
            shared: Arc::new(Shared {
                server,
                state: Mutex::default(),
            }),
        }
    }

    /// The `/agent` endpoint.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/agent", any(socket::connect))
            .with_state(self.clone())
    }

    fn server(&self) -> &Server {
        &self.shared.server
    }

    /// Processes the events of all rooms until the server stops.
    pub async fn follow(self, mut events: broadcast::Receiver<RoomEvent>) {
        let stop = self.server().stop().clone();
        while let Some(event) = stop.run_until_cancelled(events.recv()).await {
            match event {
                Ok(event) => self.room_event(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::error!(
                        "agents missed {missed} room events; some jobs may not start or end"
                    );
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    fn room_event(&self, event: RoomEvent) {
        match event {
            RoomEvent::Started { room, options } => self.room_started(&room, &options.agents),
            RoomEvent::Finished { room } => self.room_finished(&room),
            RoomEvent::ParticipantJoined { room, participant } => {
                self.launch_for_participant(&room, &participant, JobType::JtParticipant)
            }
            RoomEvent::TrackPublished {
                room, participant, ..
            } => self.launch_for_participant(&room, &participant, JobType::JtPublisher),
            RoomEvent::ParticipantLeft { room, participant } => {
                self.participant_left(&room, &participant)
            }
            RoomEvent::ParticipantActive { .. }
            | RoomEvent::ParticipantChanged { .. }
            | RoomEvent::TrackUnpublished { .. } => {}
        }
    }

    fn room_started(&self, room: &proto::Room, configured: &[proto::RoomAgentDispatch]) {
        {
            let mut state = self.shared.state.lock();
            state.room_ids.insert(room.name.clone(), room.sid.clone());
            let agents = state.rooms.entry(room.sid.clone()).or_default();
            if std::mem::replace(&mut agents.started, true) {
                return;
            }
        }
        // A room that names no agents gets those registered without a name: automatic dispatch.
        let automatic = [proto::RoomAgentDispatch::default()];
        let wanted = if configured.is_empty() {
            &automatic
        } else {
            configured
        };
        for agent in wanted {
            self.add_dispatch(
                room,
                proto::AgentDispatch {
                    id: ids::new_id(ids::DISPATCH),
                    agent_name: agent.agent_name.clone(),
                    room: room.name.clone(),
                    metadata: agent.metadata.clone(),
                    restart_policy: agent.restart_policy,
                    deployment: agent.deployment.clone(),
                    attributes: agent.attributes.clone(),
                    ..Default::default()
                },
            );
        }
    }

    fn room_finished(&self, room: &proto::Room) {
        let ended: Vec<String> = {
            let mut state = self.shared.state.lock();
            if state.room_ids.get(&room.name) == Some(&room.sid) {
                state.room_ids.remove(&room.name);
            }
            state.rooms.remove(&room.sid);
            state
                .jobs
                .iter()
                .filter(|(_, job)| job.room_id == room.sid)
                .map(|(id, _)| id.clone())
                .collect()
        };
        for job_id in ended {
            self.end_job(&job_id, JobStatus::JsSuccess, "");
        }
    }

    /// An agent that leaves before its worker has reported the end of the job has failed.
    fn participant_left(&self, room: &str, participant: &proto::ParticipantInfo) {
        // Another connection of the same participant has taken its place.
        if participant.disconnect_reason() == DisconnectReason::DuplicateIdentity {
            return;
        }
        let job_id = {
            let state = self.shared.state.lock();
            let Some(room_id) = state.room_ids.get(room).cloned() else {
                return;
            };
            let of_participant =
                |job: &RunningJob| job.room_id == room_id && job.identity == participant.identity;
            state
                .jobs
                .iter()
                .find(|(_, job)| of_participant(job))
                .map(|(id, _)| id.clone())
        };
        if let Some(job_id) = job_id {
            self.end_job(&job_id, JobStatus::JsFailed, "agent worker left the room");
        }
    }

    /// Adds a dispatch to a room and launches the jobs that it asks for now.
    fn add_dispatch(
        &self,
        room: &proto::Room,
        mut info: proto::AgentDispatch,
    ) -> proto::AgentDispatch {
        info.state = Some(proto::AgentDispatchState {
            created_at: unix_now_ns(),
            ..Default::default()
        });
        let dispatch = Arc::new(Dispatch {
            info: Mutex::new(info.clone()),
            launches: TaskTracker::new(),
            launched_for: Mutex::default(),
        });
        {
            let mut state = self.shared.state.lock();
            // The API call may come before the event that announces the room.
            let agents = state.rooms.entry(room.sid.clone()).or_default();
            agents
                .dispatches
                .insert(info.id.clone(), Arc::clone(&dispatch));
        }
        self.launch(&dispatch, room, None, JobType::JtRoom);
        for participant in self
            .server()
            .rooms()
            .participants(&room.name)
            .unwrap_or_default()
        {
            if is_dependent(&participant) {
                continue;
            }
            if !participant.tracks.is_empty() {
                self.launch(&dispatch, room, Some(&participant), JobType::JtPublisher);
            }
            self.launch(&dispatch, room, Some(&participant), JobType::JtParticipant);
        }
        info
    }

    fn launch_for_participant(
        &self,
        room: &str,
        participant: &proto::ParticipantInfo,
        job_type: JobType,
    ) {
        if is_dependent(participant) {
            return;
        }
        let Some(room) = self.server().rooms().get(room) else {
            return;
        };
        let dispatches: Vec<_> = {
            let state = self.shared.state.lock();
            state
                .rooms
                .get(&room.sid)
                .map(|agents| agents.dispatches.values().cloned().collect())
                .unwrap_or_default()
        };
        for dispatch in dispatches {
            self.launch(&dispatch, &room, Some(participant), job_type);
        }
    }

    /// Offers one job to the workers, in a task of its own.
    fn launch(
        &self,
        dispatch: &Arc<Dispatch>,
        room: &proto::Room,
        participant: Option<&proto::ParticipantInfo>,
        job_type: JobType,
    ) {
        if let Some(participant) = participant {
            let reason = (job_type, participant.sid.clone());
            if !dispatch.launched_for.lock().insert(reason) {
                return;
            }
        }
        let info = dispatch.snapshot();
        let key = WorkerKey {
            agent_name: info.agent_name.clone(),
            deployment: info.deployment.clone(),
            job_type,
        };
        if !self
            .shared
            .state
            .lock()
            .workers
            .iter()
            .any(|worker| worker.registration.key == key)
        {
            tracing::debug!(
                room.name = room.name,
                agent.name = info.agent_name,
                job.r#type = job_type.as_str_name(),
                "not dispatching an agent job, because no such worker is registered"
            );
            return;
        }
        let job = proto::Job {
            id: ids::new_id(ids::JOB),
            dispatch_id: info.id,
            r#type: job_type.into(),
            room: Some(room.clone()),
            participant: participant.cloned(),
            metadata: info.metadata,
            agent_name: info.agent_name,
            deployment: info.deployment,
            attributes: info.attributes,
            ..Default::default()
        };
        let (agents, dispatch) = (self.clone(), Arc::clone(dispatch));
        let stop = self.server().stop().clone();
        let launches = dispatch.launches.clone();
        let offering = launches.track_future(async move {
            let job_id = job.id.clone();
            match timeout(ASSIGN_TIMEOUT, agents.offer(&key, job, Some(dispatch))).await {
                Ok(Ok(())) => {}
                Ok(Err(refusal)) => {
                    tracing::info!(job.id = job_id, "no agent worker takes the job: {refusal}")
                }
                Err(_) => tracing::info!(
                    job.id = job_id,
                    "no agent worker answered in time about the job"
                ),
            }
        });
        self.server()
            .tasks()
            .spawn(stop.run_until_cancelled_owned(offering));
    }

    /// Asks workers one after the other until one takes the job.
    async fn offer(
        &self,
        key: &WorkerKey,
        job: proto::Job,
        dispatch: Option<Arc<Dispatch>>,
    ) -> Result<(), Refusal> {
        if self.affinity(key) <= 0.0 {
            return Err(Refusal::NotAvailable);
        }
        let mut asked = HashSet::new();
        loop {
            let worker = self.choose(key, &asked).ok_or(Refusal::NotAvailable)?;
            asked.insert(worker.id.clone());
            match self.assign(&worker, job.clone(), dispatch.clone()).await {
                Ok(()) => return Ok(()),
                Err(refusal @ (Refusal::NotAvailable | Refusal::Closed)) => {
                    tracing::debug!(
                        worker.id = worker.id,
                        job.id = job.id,
                        "{refusal}; asking another one"
                    );
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    /// The spare capacity of the workers of a key: only load below the target load counts.
    fn affinity(&self, key: &WorkerKey) -> f32 {
        let state = self.shared.state.lock();
        let matching = state
            .workers
            .iter()
            .filter(|worker| worker.registration.key == *key);
        matching
            .filter_map(|worker| worker.available_load())
            .map(|load| (TARGET_LOAD - load).max(0.0))
            .sum()
    }

    /// Chooses a worker at random, the idle ones more likely.
    fn choose(&self, key: &WorkerKey, except: &HashSet<String>) -> Option<Arc<Worker>> {
        let state = self.shared.state.lock();
        let matching = state
            .workers
            .iter()
            .filter(|worker| worker.registration.key == *key && !except.contains(&worker.id));
        let weighted: Vec<_> = matching
            .filter_map(|worker| Some((worker, 1.0 - worker.available_load()?)))
            .filter(|(_, weight)| *weight > 0.0)
            .collect();
        let sum: f32 = weighted.iter().map(|(_, weight)| weight).sum();
        let mut left = rand::rng().random::<f32>() * sum;
        let found = weighted.iter().find(|(_, weight)| {
            left -= weight;
            left <= 0.0
        });
        // Rounding may leave a small remainder behind the last one.
        found
            .or(weighted.last())
            .map(|(worker, _)| Arc::clone(worker))
    }

    /// Asks one worker and, if it agrees, gives it the job.
    async fn assign(
        &self,
        worker: &Arc<Worker>,
        mut job: proto::Job,
        dispatch: Option<Arc<Dispatch>>,
    ) -> Result<(), Refusal> {
        let now = unix_now_ns();
        let mut state = proto::JobState {
            worker_id: worker.id.clone(),
            started_at: now,
            updated_at: now,
            ..Default::default()
        };
        state.set_status(JobStatus::JsRunning);
        job.state = Some(state.clone());

        let answer = worker.ask(&job)?;
        // However this ends, also by a time-out, the question is removed.
        let question = Question {
            worker,
            job_id: &job.id,
        };
        let answer = answer.await.map_err(|_| Refusal::Closed)?;
        drop(question);
        if answer.terminate {
            // The worker reports the job as done: that is recorded, and nobody else is asked.
            state.set_status(JobStatus::JsSuccess);
            state.ended_at = now;
            job.state = Some(state);
            record_job(dispatch.as_deref(), &job);
            return Ok(());
        }
        if !answer.available {
            return Err(Refusal::NotAvailable);
        }

        // Also an empty one, with which nobody can join (`pkg/agent/worker.go`, `AssignJob`).
        let identity = answer.participant_identity.clone();
        state.participant_identity = identity.clone();
        job.state = Some(state);
        let room = job.room.clone().unwrap_or_default();
        let token = match self.job_token(worker, &room.name, &identity, &answer) {
            Ok(token) => token,
            Err(error) => {
                tracing::error!(
                    worker.id = worker.id,
                    job.id = job.id,
                    "the job's token could not be made: {error}"
                );
                return Err(Refusal::NotAvailable);
            }
        };
        record_job(dispatch.as_deref(), &job);
        {
            let mut state = self.shared.state.lock();
            // A worker that disconnected just now has been removed from the list, and its jobs with
            // it.
            if worker.closed.is_cancelled() {
                return Err(Refusal::Closed);
            }
            let running = RunningJob {
                worker: Arc::clone(worker),
                dispatch,
                room_id: room.sid,
                identity,
            };
            state.jobs.insert(job.id.clone(), running);
        }
        tracing::info!(
            worker.id = worker.id,
            job.id = job.id,
            room.name = room.name,
            "assigned the job to an agent worker"
        );
        worker.assign(job, token);
        Ok(())
    }

    /// The token with which a job's agent joins. It holds what the worker registered for and cannot
    /// call the API.
    fn job_token(
        &self,
        worker: &Worker,
        room: &str,
        identity: &str,
        answer: &proto::AvailabilityResponse,
    ) -> Result<String, TokenError> {
        let permissions = &worker.registration.permissions;
        let mut attributes = answer.participant_attributes.clone();
        attributes.insert(
            AGENT_NAME_ATTRIBUTE.to_owned(),
            worker.registration.key.agent_name.clone(),
        );
        let now = unix_now_s();
        self.server().keys().sign(&Claims {
            iss: worker.api_key.clone(),
            sub: identity.to_owned(),
            nbf: now,
            exp: now + JOB_TOKEN_LIFETIME_S,
            name: answer.participant_name.clone(),
            kind: "agent".into(),
            metadata: answer.participant_metadata.clone(),
            attributes,
            video: VideoGrants {
                room_join: true,
                room: room.to_owned(),
                agent: true,
                can_subscribe: Some(permissions.can_subscribe),
                can_publish: Some(permissions.can_publish),
                can_publish_data: Some(permissions.can_publish_data),
                can_update_own_metadata: Some(permissions.can_update_metadata),
                can_subscribe_metrics: Some(permissions.can_subscribe_metrics),
                hidden: permissions.hidden,
                ..Default::default()
            },
            ..Default::default()
        })
    }

    fn add_worker(&self, worker: &Arc<Worker>) {
        let key = &worker.registration.key;
        tracing::info!(
            worker.id = worker.id,
            agent.name = key.agent_name,
            job.r#type = key.job_type.as_str_name(),
            "agent worker registered"
        );
        self.shared.state.lock().workers.push(Arc::clone(worker));
    }

    /// Removes a worker and the record of its jobs. The agents in the rooms stay.
    fn remove_worker(&self, worker: &Arc<Worker>) {
        let mut state = self.shared.state.lock();
        state.workers.retain(|other| other.id != worker.id);
        worker.close();
        state.jobs.retain(|_, job| job.worker.id != worker.id);
        tracing::info!(worker.id = worker.id, "agent worker gone");
    }

    /// A worker reports the status of one of its jobs. A job that has ended already, for example
    /// with its room, is ignored.
    fn job_updated(&self, worker: &Arc<Worker>, update: &proto::UpdateJobStatus) {
        self.set_job_status(worker, &update.job_id, update.status(), &update.error);
    }

    /// Ends a job with this status and tells the worker.
    fn end_job(&self, job_id: &str, status: JobStatus, error: &str) -> Option<proto::JobState> {
        let worker = Arc::clone(&self.shared.state.lock().jobs.get(job_id)?.worker);
        worker.send(ToWorker::Termination(proto::JobTermination {
            job_id: job_id.to_owned(),
        }));
        self.set_job_status(&worker, job_id, status, error)
    }

    fn set_job_status(
        &self,
        worker: &Worker,
        job_id: &str,
        status: JobStatus,
        error: &str,
    ) -> Option<proto::JobState> {
        let Some(job) = worker.update_job(job_id, status, error) else {
            tracing::debug!(
                worker.id = worker.id,
                job.id = job_id,
                "update for a job that the worker does not run"
            );
            return None;
        };
        let mut state = self.shared.state.lock();
        if let Some(dispatch) = state
            .jobs
            .get(job_id)
            .and_then(|running| running.dispatch.clone())
        {
            dispatch.set_job_state(job_id, &job);
        }
        if is_final(status) {
            state.jobs.remove(job_id);
            tracing::info!(
                job.id = job_id,
                job.status = status.as_str_name(),
                job.error = error,
                "agent job ended"
            );
        }
        Some(job)
    }

    /// A worker asks for a simulated job; it goes to this worker, whatever its load.
    fn simulate_job(&self, worker: &Arc<Worker>, request: proto::SimulateJobRequest) {
        let job_type = if request.participant.is_some() {
            JobType::JtPublisher
        } else {
            JobType::JtRoom
        };
        let job = proto::Job {
            id: ids::new_id(ids::JOB),
            r#type: job_type.into(),
            room: request.room,
            participant: request.participant,
            agent_name: worker.registration.key.agent_name.clone(),
            ..Default::default()
        };
        let (agents, worker) = (self.clone(), Arc::clone(worker));
        let stop = self.server().stop().clone();
        self.server().tasks().spawn(async move {
            let assigning = timeout(ASSIGN_TIMEOUT, agents.assign(&worker, job, None));
            if let Some(Ok(Err(refusal))) = stop.run_until_cancelled(assigning).await {
                tracing::warn!(
                    worker.id = worker.id,
                    "the simulated job was not assigned: {refusal}"
                );
            }
        });
    }

    fn dispatches(&self, room_id: &str, dispatch_id: &str) -> Vec<proto::AgentDispatch> {
        let state = self.shared.state.lock();
        let all = state
            .rooms
            .get(room_id)
            .into_iter()
            .flat_map(|agents| &agents.dispatches);
        all.filter(|(id, _)| dispatch_id.is_empty() || *id == dispatch_id)
            .map(|(_, dispatch)| dispatch.snapshot())
            .collect()
    }

    /// Removes a dispatch from its room; a task ends its jobs and removes their agents.
    fn delete_dispatch(
        &self,
        room: &proto::Room,
        dispatch_id: &str,
    ) -> Option<proto::AgentDispatch> {
        let dispatch = self
            .shared
            .state
            .lock()
            .rooms
            .get_mut(&room.sid)?
            .dispatches
            .remove(dispatch_id)?;
        let info = dispatch.snapshot();
        let (agents, room) = (self.clone(), room.name.clone());
        let stop = self.server().stop().clone();
        let ending = async move { agents.end_jobs_of(&dispatch, &room).await };
        self.server()
            .tasks()
            .spawn(stop.run_until_cancelled_owned(ending));
        Some(info)
    }

    async fn end_jobs_of(&self, dispatch: &Dispatch, room: &str) {
        dispatch.launches.close();
        dispatch.launches.wait().await;
        let jobs: Vec<_> = dispatch
            .snapshot()
            .state
            .into_iter()
            .flat_map(|state| state.jobs)
            .collect();
        for job in jobs {
            let mut events = self.server().rooms().subscribe();
            let Some(state) = self.end_job(&job.id, JobStatus::JsSuccess, "") else {
                continue;
            };
            let identity = state.participant_identity;
            if self.server().rooms().participant(room, &identity).is_err() {
                continue;
            }
            let left = timeout(LEAVE_TIMEOUT, wait_until_left(&mut events, room, &identity)).await;
            if left.is_err() {
                tracing::info!(
                    job.id = job.id,
                    "the agent did not leave within 3 s and is removed"
                );
                // It may have left just now; then there is nothing to remove.
                let _ = self.server().rooms().remove_participant(room, &identity);
            }
        }
    }
}

/// Withdraws an unanswered question when it goes out of scope.
struct Question<'a> {
    worker: &'a Worker,
    job_id: &'a str,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.worker.forget(self.job_id);
    }
}

fn record_job(dispatch: Option<&Dispatch>, job: &proto::Job) {
    if let Some(dispatch) = dispatch {
        dispatch
            .info
            .lock()
            .state
            .get_or_insert_default()
            .jobs
            .push(job.clone());
    }
}

async fn wait_until_left(events: &mut broadcast::Receiver<RoomEvent>, room: &str, identity: &str) {
    loop {
        match events.recv().await {
            Ok(RoomEvent::ParticipantLeft {
                room: left,
                participant,
            }) if left == room && participant.identity == identity => return,
            Ok(RoomEvent::Finished { room: finished }) if finished.name == room => return,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Agents and recorders do not cause jobs, or agents would call for agents.
fn is_dependent(participant: &proto::ParticipantInfo) -> bool {
    matches!(participant.kind(), Kind::Agent | Kind::Egress)
}

/// Nanoseconds since 1970, the unit of all times in jobs and recordings.
pub(crate) fn unix_now_ns() -> i64 {
    chrono::Utc::now().timestamp_nanos_opt().unwrap_or_default()
}
