//! One call's process, from its start to its record.
//!
//! A call is followed by one task of its own. However its process ends, [`Call::ended`] is what
//! happens next: a room that it did not leave is ended, the record is made if the process has not
//! made it, the server is told if it was not told, the upload task is notified. The slot is given
//! back by the worker's main task when this one ends. Nothing here decides whether a call may
//! start.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use chrono::Utc;
use futures_util::StreamExt as _;
use metrics::{counter, histogram};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::codec::{FramedRead, LinesCodec};
use tracing::{debug, error, info, warn};

use super::abandoned::AbandonedRoom;
use super::metrics as names;
use super::unwritten::UnwrittenRecord;
use super::wire::JobState;
use crate::ipc::{self, FromCall, JobDescription, Measurement, ShutdownReason, ToCall};
use crate::rooms::{DesertedRoom, Dispatch, LostAgent};
use crate::session::dispatch::{DispatchRules, told_by};
use crate::session::{CallStatus, CloseReason, Outcome, SessionEvent, SessionId};
use crate::store::Store;

/// How long a process may take to read its job. It reads at once; the pipe holds 64 KiB and a job
/// may be larger.
const JOB_WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a message to a running call may take. A call that does not read is dealt with by its
/// deadline.
const MESSAGE_WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the final status may take onto the wire before the call is let go anyway; a dead
/// connection keeps the status for the next.
const STATUS_WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a call may take from its job to being in the room. It gives up joining by itself much
/// earlier (`call.join_timeout_s`); one that has done neither by now is hung.
const JOIN_LIMIT: Duration = Duration::from_secs(120);
/// How long a call that the server terminated may take to say goodbye, leave and write its record,
/// before it must finalise.
const TERMINATION_LIMIT: Duration = Duration::from_secs(60);
/// How long a call may take from its last word to the end of its process: leave the room, delete
/// it, close the recording.
const LEAVE_LIMIT: Duration = Duration::from_secs(60);
/// How long a call may take to finalise before it is killed. A record is written in milliseconds;
/// the rest is for leaving the room.
pub(super) const FINALISE_LIMIT: Duration = Duration::from_secs(12);
/// How long the last lines of an ended process may take. They are in the pipe already.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);
/// The attribute of a dispatch that takes the place of a call whose agent was cut off: that call's
/// session. It is in the new call's record, as all attributes are.
const GOES_ON_FROM: &str = "voicebot.goes_on_from";
/// How often a call's memory is polled.
const MEMORY_INTERVAL: Duration = Duration::from_secs(10);

/// Secrets of the operator's page, the delivery and the ledger, which a call has no part in: its
/// process, which a stranger talks to, does not get them.
const NOT_FOR_CALLS: [&str; 6] = [
    "PAGE_TOKEN",
    "CRM_TOKEN",
    "CRM_HMAC_SECRET",
    "MONGODB_URI",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];

/// What is run for each call.
#[derive(Debug, Clone)]
pub struct CallProgram {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl CallProgram {
    /// This binary with the hidden command `call`; `options` come before it.
    ///
    /// # Errors
    /// When the system does not tell where this binary is.
    pub fn this_binary(options: impl IntoIterator<Item = OsString>) -> std::io::Result<Self> {
        let arguments = options.into_iter().chain(["call".into()]).collect();
        Ok(Self {
            program: std::env::current_exe()?,
            arguments,
        })
    }

    /// Any program that speaks the lines of [`crate::ipc`].
    pub fn new(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = OsString>) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().collect(),
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program);
        for secret in NOT_FOR_CALLS {
            command.env_remove(secret);
        }
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            // A group of its own: Ctrl-C in the worker's terminal must not end calls.
            .process_group(0)
            // A worker that dies leaves its calls alone.
            .kill_on_drop(false)
            .spawn()
    }
}

/// What a call's task is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallCommand {
    /// The server ended the job.
    Terminate,
    /// The worker is stopping at once.
    Finalise,
    /// The worker has waited long enough.
    Kill,
}

/// What a call's task tells the worker: how its job stands.
#[derive(Debug)]
pub(super) struct CallReport {
    pub job_id: String,
    pub state: JobState,
    /// Told when the status is in transit, dropped when it has to wait for a connection.
    pub written: Option<oneshot::Sender<()>>,
}

/// Everything that a call's task needs.
pub(super) struct Call {
    pub job: JobDescription,
    pub rules: DispatchRules,
    pub program: CallProgram,
    pub store: Store,
    pub reports: mpsc::Sender<CallReport>,
    pub upload_notify: mpsc::Sender<()>,
    pub unwritten: mpsc::Sender<UnwrittenRecord>,
    pub abandoned: mpsc::Sender<AbandonedRoom>,
    pub ready_timeout: Duration,
    pub hung_after: Duration,
    pub memory_warn_bytes: u64,
}

/// How a call's process ended.
#[derive(Debug)]
enum ProcessEnd {
    /// By itself, or killed by somebody else.
    Exited(ExitStatus),
    /// It could not be started.
    NotStarted(String),
    /// It was started and not ready in time, or ended before it was.
    NotReady(String),
    /// We killed it, for this reason.
    Killed(&'static str),
    /// It was never started: the worker could not take the job.
    Refused(String),
}

/// What the process has said about its end.
#[derive(Debug, Default)]
struct Said {
    /// The final status that went to the server.
    final_state: Option<JobState>,
    joined: bool,
}

impl Call {
    /// Holds the call: returns when its process has ended and its record is on disk.
    pub(super) async fn hold(self, mut commands: mpsc::Receiver<CallCommand>) {
        let started = Instant::now();
        let mut said = Said::default();
        let begun = self.begin().await;
        let has_journal = begun.is_ok();
        let end = match begun {
            Err(problem) => ProcessEnd::Refused(problem),
            Ok(()) => match self.program.spawn() {
                Err(error) => ProcessEnd::NotStarted(error.to_string()),
                Ok(child) => {
                    metrics::gauge!(names::CHILD_PROCESSES).increment(1.0);
                    let end = Process::new(&self, child, started)
                        .follow(&mut commands, &mut said)
                        .await;
                    metrics::gauge!(names::CHILD_PROCESSES).decrement(1.0);
                    end
                }
            },
        };
        self.ended(end, has_journal, said, started).await;
    }

    /// Makes the record of a job that was assigned and cannot be held, and tells the server.
    pub(super) async fn refuse(self, why: String) {
        let begun = self.begin().await;
        let has_journal = begun.is_ok();
        let end = match begun {
            Ok(()) => ProcessEnd::Refused(why),
            Err(problem) => ProcessEnd::Refused(format!("{why}; {problem}")),
        };
        self.ended(end, has_journal, Said::default(), Instant::now())
            .await;
    }

    fn told(&self) -> Vec<SessionEvent> {
        told_by(&self.job.start(), &self.rules)
    }

    /// The journal comes first, so that from here on whatever happens ends in a record.
    async fn begin(&self) -> Result<(), String> {
        let (store, start, told) = (self.store.clone(), self.job.start(), self.told());
        let begun = spawn_blocking(move || {
            store
                .begin(&start, &told)
                .map_err(|error| error.to_string())
        })
        .await;
        begun
            .unwrap_or_else(|panic| Err(panic.to_string()))
            .map_err(|error| format!("the call's journal could not be begun: {error}"))
    }

    /// The one thing that happens after a call's process, however it ended.
    async fn ended(&self, end: ProcessEnd, has_journal: bool, said: Said, started: Instant) {
        let problem = end.problem();
        if problem.is_some() {
            // First of all: somebody may be waiting in silence.
            self.abandon_room(&said).await;
        }
        let outcome = Outcome {
            close_reason: CloseReason::Error,
            disconnect_reason: None,
            call_status: if said.joined {
                CallStatus::Recovered
            } else {
                CallStatus::Failed
            },
            error: Some(
                problem
                    .clone()
                    .unwrap_or_else(|| "the call's process ended without a record".into()),
            ),
            call_end: Some(Utc::now()),
        };
        let call_status = outcome.call_status;
        let recovered = match has_journal {
            true => recover(&self.store, &self.job.session_id, outcome.clone()).await,
            false => Recovered::Failed,
        };
        if recovered == Recovered::Failed {
            let record = UnwrittenRecord {
                start: self.job.start(),
                told: self.told(),
                outcome,
            };
            // The task that writes these records lives as long as there are calls.
            let _ = self.unwritten.send(record).await;
        }
        if recovered != Recovered::NotNeeded {
            // The call itself has not said how it ended.
            names::count(&Measurement::Ended { call_status });
        }
        let label = end.label(recovered, said.final_state.as_ref());
        if said.final_state.is_none() {
            let state = match (&problem, recovered) {
                (None, Recovered::NotNeeded) => JobState::Succeeded,
                (None, _) => JobState::Failed {
                    error: "the call's process ended without a record".into(),
                },
                (Some(error), _) => JobState::Failed {
                    error: error.clone(),
                },
            };
            // Whether it was written matters to nobody any more.
            self.report(state, None).await;
        }
        self.notify_uploader();

        let session = self.job.session_id.as_str();
        let job = self.job.job_id.as_str();
        let duration_ms = started.elapsed().as_millis() as u64;
        match &problem {
            None => info!(
                session.id = session,
                job.id = job,
                duration_ms,
                "the call's process ended"
            ),
            Some(problem) => error!(
                session.id = session,
                job.id = job,
                duration_ms,
                error = problem,
                "the call's process did not end as it should"
            ),
        }
        counter!(names::CALLS, "outcome" => label).increment(1);
        histogram!(names::CALL_DURATION).record(started.elapsed().as_secs_f64());
    }

    /// The process is gone and has not left its room, or never came there.
    async fn abandon_room(&self, said: &Said) {
        let job = &self.job;
        // One that had said its last word may have left long ago, and the next call be in a room of
        // the same name.
        let room_sid = job.room_sid.clone().filter(|_| said.final_state.is_some());
        self.give_up_room(room_sid, LostAgent::Died).await;
    }

    /// Nobody of ours is in the room any more, and somebody may be waiting there.
    async fn give_up_room(&self, room_sid: Option<String>, agent: LostAgent) {
        let job = &self.job;
        let abandoned = AbandonedRoom {
            session_id: job.session_id.clone(),
            room: DesertedRoom {
                room_name: job.room_name.clone(),
                room_sid,
                agent_identity: job.participant_identity.clone(),
                agent_name: job.agent_name.clone(),
                agent,
                dispatch: self.dispatch_again(agent),
            },
        };
        // Whoever ends rooms lives as long as there are calls.
        let _ = self.abandoned.send(abandoned).await;
    }

    /// What the agent is told that takes the place of this call's, which was cut off. A worker
    /// without a name cannot be sent anywhere: the server gives it every room that is new.
    fn dispatch_again(&self, agent: LostAgent) -> Option<Dispatch> {
        let job = &self.job;
        let can_be_sent = agent == LostAgent::CutOff && !job.agent_name.is_empty();
        can_be_sent.then(|| {
            let mut attributes = job.attributes.clone();
            attributes.insert(GOES_ON_FROM.to_owned(), job.session_id.to_string());
            Dispatch {
                metadata: job.job_metadata.clone().unwrap_or_default(),
                attributes,
            }
        })
    }

    async fn report(&self, state: JobState, written: Option<oneshot::Sender<()>>) {
        let report = CallReport {
            job_id: self.job.job_id.clone(),
            state,
            written,
        };
        // The worker waits for every call, so it is there to hear this.
        let _ = self.reports.send(report).await;
    }

    fn notify_uploader(&self) {
        // A full inbox means that it is about to scan anyway.
        let _ = self.upload_notify.try_send(());
    }
}

/// What came of looking for a record that was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recovered {
    /// The record was there.
    NotNeeded,
    /// It has been made from the journal.
    Made,
    /// It could not be made; it is tried again.
    Failed,
}

/// Makes the record from the journal if there is one that nobody holds.
pub(super) async fn recover(store: &Store, session_id: &SessionId, outcome: Outcome) -> Recovered {
    let (store, id) = (store.clone(), session_id.clone());
    let outcome = spawn_blocking(move || {
        store
            .recover(&id, &outcome)
            .map_err(|error| error.to_string())
    })
    .await;
    match outcome.unwrap_or_else(|panic| Err(panic.to_string())) {
        Ok(None) => Recovered::NotNeeded,
        Ok(Some(_)) => {
            warn!(session.id = %session_id, "the call had made no record, it was made from its journal");
            counter!(names::RECORDS_RECOVERED).increment(1);
            Recovered::Made
        }
        Err(problem) => {
            error!(session.id = %session_id, error = problem, "failed to make the record of a call from its journal");
            Recovered::Failed
        }
    }
}

impl ProcessEnd {
    /// A sentence about what went wrong; `None` for a process that ended well.
    fn problem(&self) -> Option<String> {
        match self {
            Self::Exited(status) if status.success() => None,
            Self::Exited(status) => Some(format!("the call's process ended with {status}")),
            Self::NotStarted(error) => {
                Some(format!("the call's process could not be started: {error}"))
            }
            Self::NotReady(problem) => {
                Some(format!("the call's process did not get ready: {problem}"))
            }
            Self::Killed(reason) => Some(format!("the call's process was killed: {reason}")),
            Self::Refused(why) => Some(format!("the worker could not take the job: {why}")),
        }
    }

    fn label(&self, recovered: Recovered, final_state: Option<&JobState>) -> &'static str {
        match self {
            Self::Exited(status) if !status.success() => "crashed",
            Self::Exited(_) if recovered != Recovered::NotNeeded => "crashed",
            Self::Exited(_) => match final_state {
                Some(JobState::Failed { .. }) => "failed",
                _ => "success",
            },
            Self::NotStarted(_) => "not_started",
            Self::NotReady(_) => "not_ready",
            Self::Killed(_) => "killed",
            Self::Refused(_) => "refused",
        }
    }
}

/// What happens when a process has used up its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimeUp {
    /// Give it up: it never got ready.
    NotReady,
    /// Ask it to finalise.
    Ask(&'static str),
    /// Kill it.
    Kill(&'static str),
}

const NOT_JOINED: &str = "it neither joined the room nor gave up";

/// A running process and the pipes to it.
struct Process<'a> {
    call: &'a Call,
    child: Child,
    to_call: ChildStdin,
    lines: Option<FramedRead<ChildStdout, LinesCodec>>,
    started: Instant,
    ready: bool,
    deadline: (Instant, TimeUp),
}

impl<'a> Process<'a> {
    fn new(call: &'a Call, mut child: Child, started: Instant) -> Self {
        let to_call = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        debug!(session.id = %call.job.session_id, process.id = child.id(), "the call's process started");
        Self {
            call,
            child,
            to_call,
            lines: Some(FramedRead::new(stdout, ipc::lines())),
            started,
            ready: false,
            deadline: (Instant::now() + call.ready_timeout, TimeUp::NotReady),
        }
    }

    async fn follow(
        mut self,
        commands: &mut mpsc::Receiver<CallCommand>,
        said: &mut Said,
    ) -> ProcessEnd {
        let mut memory = interval(MEMORY_INTERVAL);
        memory.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commands_open = true;
        loop {
            let (deadline, time_up) = self.deadline;
            tokio::select! {
                biased;
                line = next_line(&mut self.lines) => {
                    if let Some(end) = self.heard(&line, said).await {
                        return self.kill(end).await;
                    }
                }
                status = self.child.wait() => {
                    let last = timeout(LAST_LINES_TIMEOUT, async {
                        while let Some(line) = next_line_or_end(&mut self.lines).await {
                            self.heard(&line, said).await;
                        }
                    });
                    let _ = last.await;
                    return match status {
                        Ok(status) if !self.ready => ProcessEnd::NotReady(format!("it ended with {status}")),
                        Ok(status) => ProcessEnd::Exited(status),
                        Err(error) => ProcessEnd::NotReady(format!("it cannot be watched: {error}")),
                    };
                }
                command = commands.recv(), if commands_open => match command {
                    Some(CallCommand::Terminate) => {
                        self.shut_down(ShutdownReason::Termination).await;
                        self.hurry(TERMINATION_LIMIT, TimeUp::Ask("it did not end after the server had terminated the job"));
                    }
                    Some(CallCommand::Finalise) => {
                        self.shut_down(ShutdownReason::Finalise).await;
                        self.hurry(FINALISE_LIMIT, TimeUp::Kill("it did not finalise in time when the worker was stopped"));
                    }
                    Some(CallCommand::Kill) => return self.kill(ProcessEnd::Killed("the worker was stopped")).await,
                    None => commands_open = false,
                },
                () = sleep_until(deadline) => match time_up {
                    TimeUp::NotReady => {
                        let waited = self.call.ready_timeout.as_secs();
                        let problem = format!("it did not say so within {waited} s (worker.ready_timeout_s)");
                        return self.kill(ProcessEnd::NotReady(problem)).await;
                    }
                    TimeUp::Ask(reason) => {
                        warn!(session.id = %self.call.job.session_id, job.id = self.call.job.job_id, reason, "asking a call to finalise");
                        self.shut_down(ShutdownReason::Finalise).await;
                        self.deadline = (Instant::now() + FINALISE_LIMIT, TimeUp::Kill(reason));
                    }
                    TimeUp::Kill(reason) => return self.kill(ProcessEnd::Killed(reason)).await,
                },
                _ = memory.tick() => self.poll_memory(&mut memory),
            }
        }
    }

    /// Understands a line. `Some`: the process must go.
    async fn heard(&mut self, line: &str, said: &mut Said) -> Option<ProcessEnd> {
        let job = &self.call.job;
        let message = match ipc::decode_line(line) {
            Ok(message) => message,
            Err(error) => {
                debug!(session.id = %job.session_id, %error, "ignored a line on a call's stdout that is no message");
                return None;
            }
        };
        match message {
            FromCall::Ready if !self.ready => {
                self.ready = true;
                self.relax(TimeUp::NotReady, JOIN_LIMIT, TimeUp::Ask(NOT_JOINED));
                if !self
                    .write(ToCall::Start(Box::new(job.clone())), JOB_WRITE_TIMEOUT)
                    .await
                {
                    return Some(ProcessEnd::NotReady("it did not read its job".into()));
                }
            }
            FromCall::Ready => {}
            FromCall::Joined => {
                said.joined = true;
                let hung = TimeUp::Ask("it ran longer than worker.hung_call_s");
                self.relax(TimeUp::Ask(NOT_JOINED), self.call.hung_after, hung);
                let duration_ms = self.started.elapsed().as_millis() as u64;
                info!(session.id = %job.session_id, job.id = job.job_id, duration_ms, "the agent joined the room");
                histogram!(names::JOIN_DURATION).record(self.started.elapsed().as_secs_f64());
            }
            FromCall::Running => self.call.report(JobState::Running, None).await,
            FromCall::Finishing { success, error } => {
                let state = if success {
                    JobState::Succeeded
                } else {
                    JobState::Failed {
                        error: error.unwrap_or_else(|| "the call failed".into()),
                    }
                };
                said.final_state = Some(state.clone());
                let (written, on_its_way) = oneshot::channel();
                self.call.report(state, Some(written)).await;
                // Without a connection the sender is dropped at once, and the status goes out with
                // the next one.
                let _ = timeout(STATUS_WRITE_TIMEOUT, on_its_way).await;
                self.write(ToCall::StatusSent, MESSAGE_WRITE_TIMEOUT).await;
                self.hurry(
                    LEAVE_LIMIT,
                    TimeUp::Ask("it did not end after its last word"),
                );
            }
            FromCall::RecordWritten { .. } => self.call.notify_uploader(),
            FromCall::Measured(measurement) => names::count(&measurement),
            FromCall::RoomLost => {
                let agent = match said.joined {
                    true => LostAgent::CutOff,
                    false => LostAgent::NeverCame,
                };
                self.call.give_up_room(None, agent).await;
            }
        }
        None
    }

    /// Replaces the deadline of a step that is done, unless another one has taken its place: a call
    /// that was told to end stays told.
    fn relax(&mut self, done: TimeUp, limit: Duration, time_up: TimeUp) {
        if self.deadline.1 == done {
            self.deadline = (Instant::now() + limit, time_up);
        }
    }

    /// Shortens the time that is left, never lengthens it.
    fn hurry(&mut self, limit: Duration, time_up: TimeUp) {
        let at = Instant::now() + limit;
        if at < self.deadline.0 {
            self.deadline = (at, time_up);
        }
    }

    async fn shut_down(&mut self, reason: ShutdownReason) {
        self.write(ToCall::Shutdown { reason }, MESSAGE_WRITE_TIMEOUT)
            .await;
    }

    async fn write(&mut self, message: ToCall, limit: Duration) -> bool {
        let line = ipc::encode_line(&message);
        match timeout(limit, self.to_call.write_all(line.as_bytes())).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                // It has ended or is about to; waiting for it says more.
                debug!(session.id = %self.call.job.session_id, %error, "a call does not hear us");
                true
            }
            Err(_) => false,
        }
    }

    async fn kill(mut self, end: ProcessEnd) -> ProcessEnd {
        // Fails only when it has ended already.
        let _ = self.child.start_kill();
        if let Err(error) = self.child.wait().await {
            error!(session.id = %self.call.job.session_id, %error, "a killed call cannot be waited for");
        }
        end
    }

    fn poll_memory(&self, memory: &mut tokio::time::Interval) {
        let limit = self.call.memory_warn_bytes;
        let used = self
            .child
            .id()
            .and_then(names::resident_bytes_of)
            .unwrap_or(0);
        if limit > 0 && used > limit {
            warn!(session.id = %self.call.job.session_id, memory_bytes = used, "a call uses more memory than worker.call_memory_warn_bytes");
            // Said once an hour is enough.
            memory.reset_after(Duration::from_secs(3600));
        }
    }
}

/// The next line; never resolves once there are no more.
async fn next_line(lines: &mut Option<FramedRead<ChildStdout, LinesCodec>>) -> String {
    match next_line_or_end(lines).await {
        Some(line) => line,
        None => std::future::pending().await,
    }
}

/// The next line; `None` once there are no more.
async fn next_line_or_end(
    lines: &mut Option<FramedRead<ChildStdout, LinesCodec>>,
) -> Option<String> {
    match lines.as_mut()?.next().await {
        Some(Ok(line)) => Some(line),
        Some(Err(error)) => {
            debug!(%error, "a call's stdout is not readable any more");
            *lines = None;
            None
        }
        None => {
            *lines = None;
            None
        }
    }
}
