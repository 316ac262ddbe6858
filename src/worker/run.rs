//! The worker's main task: hears everything, decides, and never waits for anything slow.
//!
//! Three things run beside it and speak to it through channels: the connection to the server
//! ([`super::registration`]), one task for each call ([`super::process`]) and the watch over the
//! calls of an earlier worker ([`super::orphans`]). Records and rooms that a call could not finish
//! itself go to [`super::unwritten`] and [`super::abandoned`]. All state is in [`Dispatcher`],
//! which this task alone owns.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use metrics::counter;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::WorkerConfig;
use super::abandoned;
use super::admission::{Admission, Assigned, Decision, Pressure, Report};
use super::disk;
use super::metrics as names;
use super::orphans;
use super::pressure::PressureGauge;
use super::process::{Call, CallCommand, CallProgram, CallReport, FINALISE_LIMIT};
use super::registration::{LinkEvent, Outbox, Outgoing, Registration};
use super::unwritten;
use super::wire::{
    self, AgentParticipant, Assignment, Availability, BadLiveKitUrl, FromServer, Job, JobState,
    JobStatus, ToServer,
};
use crate::ipc::JobDescription;
use crate::rooms::RoomService;
use crate::rooms::party::AGENT_SINCE;
use crate::session::dispatch::DispatchRules;
use crate::session::{SessionId, mask_room_name};
use crate::settings::LiveKitSettings;
use crate::store::{StorageConfig, Store};

/// How often the server hears our status when nothing changes; LiveKit's own workers use the same.
const STATUS_INTERVAL: Duration = Duration::from_millis(2500);
/// How long the calls may take to finalise after a second stop signal, all together: each has
/// [`FINALISE_LIMIT`] and then is killed, and its record is made.
const STOP_LIMIT: Duration = FINALISE_LIMIT.saturating_add(Duration::from_secs(3));
/// Events that may wait for the main task. It handles one in microseconds; a full channel makes the
/// connection read more slowly.
const EVENTS: usize = 64;
/// Commands that may wait for a call's task, which is never told more than three things.
const COMMANDS: usize = 4;
/// Final statuses that are kept for the next connection. More can only pile up when the server is
/// away while hundreds of calls end.
const MAX_KEPT_STATUSES: usize = 1024;

/// Requests to stop. The first drains, the second ends calls at once.
pub type StopRequests = mpsc::Receiver<()>;

/// SIGTERM and SIGINT as stop requests. With `starter`, a pipe to the program that started this
/// one, its end counts as two: that program is gone, and nobody is left who could want the calls to
/// go on.
///
/// # Errors
/// When the system does not let us hear signals.
pub fn stop_signals(starter: Option<pipe::Receiver>) -> io::Result<StopRequests> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (requests, stop) = mpsc::channel(COMMANDS);
    if let Some(mut starter) = starter {
        let requests = requests.clone();
        tokio::spawn(async move {
            // Nothing is ever written to it, so this waits for its end; a broken pipe is an end as
            // well.
            let _ = tokio::io::copy(&mut starter, &mut tokio::io::sink()).await;
            info!("the program that started this worker is gone: stopping");
            let _ = requests.try_send(());
            let _ = requests.try_send(());
        });
    }
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(()) = terminate.recv() => {}
                Some(()) = interrupt.recv() => {}
                () = requests.closed() => return,
                else => return,
            }
            // Beyond the third request there is nothing left to ask for.
            let _ = requests.try_send(());
        }
    });
    Ok(stop)
}

/// Why the worker could not work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// `LIVEKIT_URL` is no address of a LiveKit server.
    #[error(transparent)]
    Url(#[from] BadLiveKitUrl),
}

/// How the worker is doing, for the page and for whoever waits until it is ready.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerStatus {
    /// The name under which it is registered; empty: automatic dispatch.
    pub agent_name: String,
    /// The server's id of this registration; `None` while there is no connection.
    pub worker_id: Option<String>,
    /// Why there is no connection, when that is known.
    pub connection_problem: Option<String>,
    /// It takes no new jobs because it is stopping.
    pub draining: bool,
    /// Jobs that were accepted and have not ended.
    pub active_jobs: usize,
    /// Calls of an earlier worker on this machine that are still running.
    pub inherited_calls: usize,
    /// Why no records can be written, and so no calls be taken.
    pub disk_problem: Option<String>,
    /// The load that the server was told last.
    pub load: f32,
}

impl WorkerStatus {
    /// Why it takes no calls; `None` when it does (or would, if it were not full).
    pub fn not_ready(&self) -> Option<String> {
        if self.draining {
            return Some(format!("draining: {} calls left", self.active_jobs));
        }
        if let Some(problem) = &self.disk_problem {
            return Some(format!("no new calls are taken: {problem}"));
        }
        match (&self.worker_id, &self.connection_problem) {
            (Some(_), _) => None,
            (None, Some(problem)) => Some(format!("not registered: {problem}")),
            (None, None) => Some("not registered yet".into()),
        }
    }
}

/// The long-lived process: see [`Worker::run`].
pub struct Worker {
    config: WorkerConfig,
    registration: Registration,
    livekit: LiveKitSettings,
    /// Rooms are deleted at the end of calls, of those that died as well.
    delete_rooms: bool,
    /// Where calls join, unless an assignment names another address.
    room_url: String,
    agent_name: String,
    store: Store,
    storage: StorageConfig,
    rules: DispatchRules,
    program: CallProgram,
    upload_notify: mpsc::Sender<()>,
    status: watch::Sender<WorkerStatus>,
}

impl Worker {
    /// A worker that takes the jobs for `agent_name` (empty: every new room) and runs `program` for
    /// each. It sends on `upload_notify` whenever a record may be waiting.
    ///
    /// # Errors
    /// When the address of the server cannot be one.
    pub fn new(
        config: WorkerConfig,
        livekit: LiveKitSettings,
        agent_name: String,
        store: Store,
        program: CallProgram,
        upload_notify: mpsc::Sender<()>,
    ) -> Result<Self, WorkerError> {
        let room_url = wire::websocket_url(&livekit.url)?.to_string();
        let registration = Registration::new(livekit.clone(), agent_name.clone())?;
        let status = WorkerStatus {
            agent_name: agent_name.clone(),
            worker_id: None,
            connection_problem: None,
            draining: false,
            active_jobs: 0,
            inherited_calls: 0,
            disk_problem: None,
            load: 0.0,
        };
        Ok(Self {
            config,
            registration,
            livekit,
            delete_rooms: true,
            room_url,
            agent_name,
            store,
            storage: StorageConfig::default(),
            rules: DispatchRules::default(),
            program,
            upload_notify,
            status: watch::Sender::new(status),
        })
    }

    /// With these settings about room on the disk.
    #[must_use]
    pub fn with_storage(mut self, storage: StorageConfig) -> Self {
        self.storage = storage;
        self
    }

    /// Whether rooms are deleted at the end of calls (`call.delete_room`); they are unless this
    /// says otherwise.
    #[must_use]
    pub fn with_room_deletion(mut self, delete_rooms: bool) -> Self {
        self.delete_rooms = delete_rooms;
        self
    }

    /// How dispatches are read.
    #[must_use]
    pub fn with_rules(mut self, rules: DispatchRules) -> Self {
        self.rules = rules;
        self
    }

    /// How the worker is doing, from now on.
    pub fn status(&self) -> watch::Receiver<WorkerStatus> {
        self.status.subscribe()
    }

    /// Takes calls until it is told to stop and every call has ended with its record.
    ///
    /// # Errors
    /// None at present once it runs: an unreachable server is tried again for ever.
    pub async fn run(self, mut stop: StopRequests) -> Result<(), WorkerError> {
        // TLS needs to be told which of its engines to use, once per process; whoever was first has
        // chosen the same one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();

        let found = orphans::find(&self.store).await;
        let alive = found
            .iter()
            .filter(|journal| journal.alive)
            .map(|journal| journal.session_id.clone())
            .collect();
        let (inherited_sender, mut inherited) = watch::channel::<HashSet<SessionId>>(alive);
        let (abandoned_sender, abandoned_inbox) = mpsc::channel(EVENTS);
        let room_ends = tokio::spawn(abandoned::end_rooms(
            RoomService::new(&self.livekit),
            self.delete_rooms,
            abandoned_inbox,
        ));
        let orphans = tokio::spawn(orphans::follow(
            self.store.clone(),
            found,
            inherited_sender,
            abandoned_sender.clone(),
            self.upload_notify.clone(),
        ));

        let (unwritten_sender, unwritten_inbox) = mpsc::channel(EVENTS);
        let unwritten = tokio::spawn(unwritten::finish(
            self.store.clone(),
            unwritten_inbox,
            self.upload_notify.clone(),
        ));
        let (problems, mut disk_problem) = watch::channel(None);
        let disk = tokio::spawn(disk::watch(self.store.clone(), self.storage, problems));
        let (event_sender, mut events) = mpsc::channel(EVENTS);
        let (report_sender, mut reports) = mpsc::channel(EVENTS);
        let disconnect = CancellationToken::new();
        info!(
            agent.name = self.agent_name,
            server.host = self.registration.host(),
            max_calls = self.config.slots(),
            "the worker started"
        );
        let link = tokio::spawn(self.registration.keep(event_sender, disconnect.clone()));

        let starter = CallStarter {
            config: self.config.clone(),
            room_url: self.room_url,
            agent_name: self.agent_name,
            rules: self.rules,
            program: self.program,
            store: self.store,
            reports: report_sender,
            upload_notify: self.upload_notify,
            unwritten: unwritten_sender,
            abandoned: abandoned_sender,
        };
        let mut dispatcher = Dispatcher::new(self.config, starter, self.status);
        dispatcher.inherited_changed(inherited.borrow_and_update().clone());

        let mut status_ticks = interval(STATUS_INTERVAL);
        status_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !dispatcher.is_done() {
            let next_deadline = dispatcher.next_deadline();
            let input = tokio::select! {
                biased;
                Some(report) = reports.recv() => Input::Report(report),
                Some(ended) = dispatcher.calls.join_next_with_id() => Input::CallEnded(ended),
                Some(event) = events.recv() => Input::Link(event),
                Some(()) = stop.recv() => Input::Stop,
                Ok(()) = inherited.changed() => Input::Inherited(inherited.borrow_and_update().clone()),
                Ok(()) = disk_problem.changed() => Input::Disk(disk_problem.borrow_and_update().clone()),
                () = until(next_deadline) => Input::Deadline,
                _ = status_ticks.tick() => Input::StatusTick,
            };
            match input {
                Input::Report(report) => dispatcher.call_reported(report),
                Input::CallEnded(ended) => dispatcher.call_ended(ended),
                Input::Link(event) => dispatcher.link_event(event),
                Input::Stop => dispatcher.stop_requested(),
                Input::Inherited(running) => dispatcher.inherited_changed(running),
                Input::Disk(problem) => dispatcher.disk_changed(problem),
                Input::Deadline => dispatcher.deadline(),
                Input::StatusTick => dispatcher.status_tick(),
            }
        }
        disconnect.cancel();
        // The connection must not wait for us to hear something while we wait for it to end.
        drop(events);
        orphans.abort();
        disk.abort();
        // All calls have ended, so nobody else sends any more, and what is left is tried once
        // again.
        drop(dispatcher);
        if let Err(error) = room_ends.await {
            error!(%error, "the task that ends the rooms of calls that died failed");
        }
        if let Err(error) = unwritten.await {
            error!(%error, "the task that writes what could not be written failed");
        }
        if let Err(error) = link.await {
            error!(%error, "the task of the connection to the server failed");
        }
        debug!("all calls have ended");
        Ok(())
    }
}

/// Waits for a moment, or for ever.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Everything that the main task hears.
enum Input {
    Report(CallReport),
    CallEnded(Result<(task::Id, ()), task::JoinError>),
    Link(LinkEvent),
    Stop,
    Inherited(HashSet<SessionId>),
    Disk(Option<String>),
    Deadline,
    StatusTick,
}

/// Makes the task of a call.
struct CallStarter {
    config: WorkerConfig,
    room_url: String,
    agent_name: String,
    rules: DispatchRules,
    program: CallProgram,
    store: Store,
    reports: mpsc::Sender<CallReport>,
    upload_notify: mpsc::Sender<()>,
    unwritten: mpsc::Sender<unwritten::UnwrittenRecord>,
    abandoned: mpsc::Sender<abandoned::AbandonedRoom>,
}

impl CallStarter {
    fn call(&self, assignment: Assignment) -> Call {
        let Assignment { job, url, token } = assignment;
        let dispatched_at = Utc::now();
        Call {
            job: JobDescription {
                session_id: SessionId::new(dispatched_at),
                participant_identity: agent_identity(&job.job_id),
                job_id: job.job_id,
                url: url.unwrap_or_else(|| self.room_url.clone()),
                token,
                room_name: job.room_name,
                room_sid: job.room_sid,
                job_metadata: job.metadata,
                agent_name: self.agent_name.clone(),
                attributes: job.attributes,
                dispatched_at,
            },
            rules: self.rules.clone(),
            program: self.program.clone(),
            store: self.store.clone(),
            reports: self.reports.clone(),
            upload_notify: self.upload_notify.clone(),
            unwritten: self.unwritten.clone(),
            abandoned: self.abandoned.clone(),
            ready_timeout: self.config.ready_timeout(),
            hung_after: self.config.hung_call(),
            memory_warn_bytes: self.config.call_memory_warn_bytes,
        }
    }
}

/// LiveKit's own workers name their agents in the same way.
pub(super) fn agent_identity(job_id: &str) -> String {
    format!("agent-{job_id}")
}

/// What the worker is up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// No new calls; those that run may go on until then.
    Draining {
        until: Instant,
    },
    /// Every call was told to finalise, and is killed then.
    Finalising {
        until: Instant,
    },
    /// Every call was told to die.
    Killing,
}

/// A call that is looked after.
struct RunningCall {
    task: task::Id,
    commands: mpsc::Sender<CallCommand>,
}

/// All that the worker knows, and what it does about each thing that happens.
struct Dispatcher {
    config: WorkerConfig,
    starter: CallStarter,
    phase: Phase,
    admission: Admission,
    gauge: PressureGauge,
    pressure: Pressure,
    /// What the server was told last over this connection.
    reported: Option<Report>,
    outbox: Option<Outbox>,
    worker_id: Option<String>,
    connection_problem: Option<String>,
    /// Statuses of jobs that wait for a connection.
    kept_statuses: Vec<JobStatus>,
    calls: JoinSet<()>,
    running: HashMap<Arc<str>, RunningCall>,
    jobs_of_tasks: HashMap<task::Id, Arc<str>>,
    inherited_calls: usize,
    disk_problem: Option<String>,
    status: watch::Sender<WorkerStatus>,
}

impl Dispatcher {
    fn new(
        config: WorkerConfig,
        starter: CallStarter,
        status: watch::Sender<WorkerStatus>,
    ) -> Self {
        Self {
            admission: Admission::new(config.slots()),
            config,
            starter,
            phase: Phase::Serving,
            gauge: PressureGauge::new(),
            pressure: Pressure::default(),
            reported: None,
            outbox: None,
            worker_id: None,
            connection_problem: None,
            kept_statuses: Vec::new(),
            calls: JoinSet::new(),
            running: HashMap::new(),
            jobs_of_tasks: HashMap::new(),
            inherited_calls: 0,
            disk_problem: None,
            status,
        }
    }

    /// Stopping, and nothing is left: neither calls nor jobs that were accepted and may still be
    /// assigned.
    fn is_done(&self) -> bool {
        match self.phase {
            Phase::Serving => false,
            Phase::Draining { .. } => self.calls.is_empty() && self.admission.own_calls() == 0,
            Phase::Finalising { .. } | Phase::Killing => self.calls.is_empty(),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let stopping = match self.phase {
            Phase::Draining { until } | Phase::Finalising { until } => Some(until),
            Phase::Serving | Phase::Killing => None,
        };
        [stopping, self.admission.next_expiry()]
            .into_iter()
            .flatten()
            .min()
    }

    fn deadline(&mut self) {
        let now = Instant::now();
        for job_id in self.admission.expire(now) {
            warn!(
                job.id = job_id,
                "an accepted job was never assigned, its slot is free again"
            );
        }
        match self.phase {
            Phase::Draining { until } if until <= now => {
                warn!(
                    calls = self.running.len(),
                    "calls are still running after worker.drain_timeout_s, they are ended now"
                );
                self.finalise();
            }
            Phase::Finalising { until } if until <= now => self.kill(),
            _ => {}
        }
        self.slots_changed();
    }

    fn stop_requested(&mut self) {
        match self.phase {
            Phase::Serving => {
                self.phase = Phase::Draining {
                    until: Instant::now() + self.config.drain_timeout(),
                };
                self.admission.drain();
                info!(
                    calls = self.running.len(),
                    "draining: no new calls, waiting for those that run"
                );
                self.slots_changed();
            }
            Phase::Draining { .. } => {
                info!(
                    calls = self.running.len(),
                    "stopping now: every call writes its record and leaves"
                );
                self.finalise();
            }
            Phase::Finalising { .. } => self.kill(),
            Phase::Killing => {}
        }
    }

    fn finalise(&mut self) {
        self.phase = Phase::Finalising {
            until: Instant::now() + STOP_LIMIT,
        };
        self.command_all(CallCommand::Finalise);
    }

    fn kill(&mut self) {
        warn!(
            calls = self.running.len(),
            "killing the calls that are left; their records are made from their journals"
        );
        self.phase = Phase::Killing;
        self.command_all(CallCommand::Kill);
    }

    fn command_all(&self, command: CallCommand) {
        for call in self.running.values() {
            // Cannot be full: a call is told less than fits. Closed: its task is about to end.
            let _ = call.commands.try_send(command);
        }
    }

    fn link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { worker_id, outbox } => {
                info!(
                    worker.id = worker_id,
                    calls = self.running.len(),
                    "registered with the LiveKit server"
                );
                self.worker_id = Some(worker_id);
                self.connection_problem = None;
                self.outbox = Some(outbox);
                self.reported = None;
                if !self.running.is_empty() {
                    let job_ids = self
                        .running
                        .keys()
                        .map(|job_id| job_id.to_string())
                        .collect();
                    self.send(ToServer::MigrateJobs { job_ids });
                }
                for status in std::mem::take(&mut self.kept_statuses) {
                    self.send_status(status, None);
                }
                self.slots_changed();
            }
            LinkEvent::Said(said) => self.server_said(said),
            LinkEvent::Down { why, unsent } => {
                warn!(
                    why,
                    calls = self.running.len(),
                    "the connection to the LiveKit server is lost; calls go on, connecting again"
                );
                self.outbox = None;
                self.worker_id = None;
                self.connection_problem = Some(why);
                for status in unsent {
                    self.keep_status(status);
                }
                self.publish();
            }
            LinkEvent::Refused { why } => {
                error!("{why}; trying again until it works");
                self.connection_problem = Some(why);
                self.publish();
            }
        }
    }

    fn server_said(&mut self, said: FromServer) {
        match said {
            FromServer::Offer(job) => self.offered(job),
            FromServer::Assignment(assignment) => self.assigned(assignment),
            FromServer::Termination { job_id } => match self.running.get(job_id.as_str()) {
                Some(call) => {
                    info!(job.id = job_id, "the server terminated the job");
                    let _ = call.commands.try_send(CallCommand::Terminate);
                }
                None => debug!(
                    job.id = job_id,
                    "the server terminated a job that does not run here"
                ),
            },
            FromServer::Registered { .. } | FromServer::Pong | FromServer::GoAway => {}
            FromServer::Unknown => {
                debug!("ignored a message of the server that this version does not know")
            }
        }
    }

    fn offered(&mut self, job: Job) {
        let decision = self.admission.offer(Instant::now(), &job.job_id);
        let accept = (decision == Decision::Accept).then(|| AgentParticipant {
            identity: agent_identity(&job.job_id),
            name: self.starter.agent_name.clone(),
            attributes: HashMap::from([
                ("lk.agent.name".to_owned(), self.starter.agent_name.clone()),
                (
                    AGENT_SINCE.to_owned(),
                    Utc::now().timestamp_millis().to_string(),
                ),
            ]),
        });
        self.send(ToServer::Availability(Availability {
            job_id: job.job_id.clone(),
            accept,
        }));
        let room_sid = job.room_sid.as_deref();
        match decision {
            Decision::Accept => {
                counter!(names::OFFERS, "answer" => "accepted").increment(1);
                info!(job.id = job.job_id, room.sid = room_sid, "job accepted");
            }
            Decision::Decline(reason) => {
                counter!(names::OFFERS, "answer" => "declined").increment(1);
                info!(
                    job.id = job.job_id,
                    room.sid = room_sid,
                    why = reason.as_str(),
                    "job declined"
                );
            }
        }
        self.slots_changed();
    }

    fn assigned(&mut self, assignment: Assignment) {
        let job_id: Arc<str> = assignment.job.job_id.as_str().into();
        match self.admission.assign(&job_id) {
            Assigned::Duplicate => {
                warn!(job.id = %job_id, "the server assigned a job twice");
                return;
            }
            Assigned::NoSlot => {
                warn!(job.id = %job_id, "refused an assignment for which there is no slot (any more)");
                let call = self.starter.call(assignment);
                let task = self
                    .calls
                    .spawn(call.refuse("it was assigned when there was no slot for it".into()));
                // Not entered under its job's id: it has no slot to give back.
                drop(task);
            }
            Assigned::Run => {
                let call = self.starter.call(assignment);
                let room_name = mask_room_name(&call.job.room_name);
                info!(job.id = %job_id, session.id = %call.job.session_id, room.name = room_name, "job assigned, starting its call");
                let (commands, inbox) = mpsc::channel(COMMANDS);
                let task = self.calls.spawn(call.hold(inbox)).id();
                self.jobs_of_tasks.insert(task, job_id.clone());
                if let Phase::Finalising { .. } | Phase::Killing = self.phase {
                    let _ = commands.try_send(CallCommand::Finalise);
                }
                self.running.insert(job_id, RunningCall { task, commands });
            }
        }
        self.slots_changed();
    }

    fn call_reported(&mut self, report: CallReport) {
        let status = JobStatus {
            job_id: report.job_id,
            state: report.state,
        };
        self.send_status(status, report.written);
    }

    /// However the task of a call ends, its slot is free then.
    fn call_ended(&mut self, ended: Result<(task::Id, ()), task::JoinError>) {
        let task = match &ended {
            Ok((task, ())) => *task,
            Err(error) => {
                error!(%error, "the task of a call failed; its journal stays until the next start of a worker");
                error.id()
            }
        };
        if let Some(job_id) = self.jobs_of_tasks.remove(&task) {
            debug_assert_eq!(self.running.get(&job_id).map(|call| call.task), Some(task));
            self.running.remove(&job_id);
            self.admission.release(&job_id);
        }
        if self.phase != Phase::Serving {
            info!(calls = self.running.len(), "stopping: a call has ended");
        }
        self.slots_changed();
    }

    fn inherited_changed(&mut self, running: HashSet<SessionId>) {
        self.inherited_calls = running.len();
        self.admission.set_inherited(running);
        self.slots_changed();
    }

    fn disk_changed(&mut self, problem: Option<String>) {
        self.admission.set_disk_refuses(problem.is_some());
        self.disk_problem = problem;
        self.slots_changed();
    }

    fn status_tick(&mut self) {
        self.pressure = self.gauge.sample(Instant::now());
        self.report();
    }

    /// The server hears of it at once when the number of calls or the fullness changed: it must not
    /// choose a worker by an old status.
    fn slots_changed(&mut self) {
        let new = self.admission.report(self.pressure);
        let same = |old: Report| old.full == new.full && old.job_count == new.job_count;
        if self.reported.is_some_and(same) {
            self.publish();
        } else {
            self.report();
        }
    }

    fn report(&mut self) {
        let mut report = self.admission.report(self.pressure);
        if let Some(load) = self.config.report_load {
            report.load = load;
        }
        let Report {
            full,
            load,
            job_count,
        } = report;
        if self.send(ToServer::WorkerStatus {
            full,
            load,
            job_count,
        }) {
            self.reported = Some(report);
        }
        self.publish();
    }

    /// For the page and for the metrics.
    fn publish(&self) {
        let load = self.reported.map_or_else(
            || self.admission.report(self.pressure).load,
            |reported| reported.load,
        );
        let active_jobs = self.admission.own_calls();
        names::set_state(self.worker_id.is_some(), active_jobs, load);
        self.status.send_if_modified(|status| {
            let new = WorkerStatus {
                agent_name: status.agent_name.clone(),
                worker_id: self.worker_id.clone(),
                connection_problem: self.connection_problem.clone(),
                draining: self.phase != Phase::Serving,
                active_jobs,
                inherited_calls: self.inherited_calls,
                disk_problem: self.disk_problem.clone(),
                load,
            };
            let changed = *status != new;
            *status = new;
            changed
        });
    }

    fn send_status(&mut self, status: JobStatus, written: Option<oneshot::Sender<()>>) {
        let message = ToServer::JobStatus(status.clone());
        let sent = match &self.outbox {
            Some(outbox) => outbox.try_send(Outgoing { message, written }).is_ok(),
            None => false,
        };
        if !sent {
            self.keep_status(status);
        }
    }

    /// Keeps a status for the next connection, in place of an earlier one of the same job.
    fn keep_status(&mut self, status: JobStatus) {
        let final_is_kept =
            |kept: &JobStatus| kept.job_id == status.job_id && kept.state != JobState::Running;
        if status.state == JobState::Running && self.kept_statuses.iter().any(final_is_kept) {
            return;
        }
        self.kept_statuses
            .retain(|kept| kept.job_id != status.job_id);
        if self.kept_statuses.len() == MAX_KEPT_STATUSES {
            self.kept_statuses.remove(0);
        }
        self.kept_statuses.push(status);
    }

    /// Sends what may be lost with the connection.
    fn send(&self, message: ToServer) -> bool {
        let Some(outbox) = &self.outbox else {
            return false;
        };
        let outgoing = Outgoing {
            message,
            written: None,
        };
        match outbox.try_send(outgoing) {
            Ok(()) => true,
            Err(error) => {
                debug!(%error, "a message for the server was dropped with its connection");
                false
            }
        }
    }
}
