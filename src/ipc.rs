//! What the worker and one call process say to each other: one JSON object a line, the worker's
//! lines on the call's stdin, the call's lines on its stdout (logs go to stderr).
//!
//! The rule that shapes this module: the call never depends on the worker. When the worker dies in
//! mid-call, the call's stdin ends and its stdout breaks, and the caller on the phone notices
//! nothing. So sending from the call never waits and never fails, and the end of stdin is an event,
//! not an error. This module knows nothing about rooms, slots or signals.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use crate::session::{CallStart, CallStatus, SessionId, TurnMetrics, Usage};

/// The longest line that either side reads. The LiveKit server accepts 512 KiB of metadata for a
/// room or a job, JSON may escape every byte of it, and the token and the attributes come on top.
pub const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;

/// The longest line that a call writes: up to this size, which is `PIPE_BUF` on Linux, a write to a
/// pipe is done whole or not at all, so a worker that has stopped reading costs the call a message
/// and never a wait or a torn line.
const MAX_CALL_LINE_BYTES: usize = 4096;

/// How much of an error's text a call passes on; the whole text is in its log and in its record.
/// JSON escapes a byte with at most six, so this many always fit into [`MAX_CALL_LINE_BYTES`].
const MAX_ERROR_BYTES: usize = 600;

/// What the worker tells a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum ToCall {
    /// The call to hold. Sent once, after the call has said [`FromCall::Ready`].
    Start(Box<JobDescription>),
    /// End the call.
    Shutdown {
        /// Why, which also says how quickly.
        reason: ShutdownReason,
    },
    /// The final status of the job has been handed to the server (or kept for the reconnect):
    /// the call may leave the room now.
    StatusSent,
}

/// Why the worker ends a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownReason {
    /// The LiveKit server terminated the job (dispatch deleted, agent removed): end gracefully.
    Termination,
    /// The worker has been told to stop at once: write the record and leave; a kill follows in
    /// seconds.
    Finalise,
}

/// What a call tells the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum FromCall {
    /// The process has read its config and waits for [`ToCall::Start`].
    Ready,
    /// The agent is in the room.
    Joined,
    /// The agent is in the room and its track is published: the job counts as running.
    Running,
    /// The call is over and everything is said. The worker answers with [`ToCall::StatusSent`], and
    /// only then the call leaves the room: a server that sees the agent leave before the job's
    /// final status marks the job as failed ("agent worker left the room").
    Finishing {
        /// Whether the job counts as a success.
        success: bool,
        /// What went wrong, as a sentence; shown by the server beside the job.
        error: Option<String>,
    },
    /// The record is on disk and ready for upload.
    RecordWritten {
        /// Whose record.
        session_id: SessionId,
    },
    /// Something to be counted in the worker's metrics. One that is lost costs a count.
    Measured(Measurement),
    /// The room could not be joined, or was lost, and the call has done with it: somebody may be
    /// waiting there. Said last, so that the call's process need not stay for it.
    RoomLost,
}

/// Something that happened in a call and is counted by the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "measured", rename_all = "snake_case")]
pub enum Measurement {
    /// How long the stages of a turn took.
    Turn(TurnMetrics),
    /// What a provider was asked to do, and how often again.
    Used(Usage),
    /// Something has failed that the conversation could not make good by asking again.
    Failed {
        /// `stt`, `llm`, `tts`, or what a watchdog watches.
        component: String,
    },
    /// The agent was cut off.
    Interrupted,
    /// The agent went on after a cough or a "mhm".
    FalseInterruption,
    /// The call is over.
    Ended {
        /// What became of it.
        call_status: CallStatus,
    },
}

/// One call's work, as it was dispatched.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct JobDescription {
    /// Our own id of the call; its journal exists already.
    pub session_id: SessionId,
    /// The server's id of the job (`AJ_…`).
    pub job_id: String,
    /// Where to join, as a WebSocket URL.
    pub url: String,
    /// The token to join with: valid for one hour, for joining only.
    pub token: String,
    /// The room's name.
    pub room_name: String,
    /// The room's id (`RM_…`), when the server named it.
    pub room_sid: Option<String>,
    /// The dispatch's metadata, unread.
    pub job_metadata: Option<String>,
    /// The name under which the worker is registered; empty when it takes every room.
    pub agent_name: String,
    /// The identity that the agent joins with (`agent-<job id>`).
    pub participant_identity: String,
    /// The dispatch's attributes.
    #[serde(default)]
    pub attributes: HashMap<String, String>,
    /// When the worker got the assignment.
    pub dispatched_at: DateTime<Utc>,
}

impl JobDescription {
    /// What its journal begins with.
    pub fn start(&self) -> CallStart {
        CallStart {
            session_id: self.session_id.clone(),
            job_id: self.job_id.clone(),
            room_name: self.room_name.clone(),
            room_sid: self.room_sid.clone(),
            job_metadata: self.job_metadata.clone(),
            // Who called whom is found out later.
            direction: None,
            call_start: self.dispatched_at,
            agent_name: self.agent_name.clone(),
            attributes: self.attributes.clone().into_iter().collect(),
        }
    }
}

/// Shows neither the token nor the metadata (which may carry phone numbers): this lands in logs.
impl std::fmt::Debug for JobDescription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobDescription")
            .field("session_id", &self.session_id)
            .field("job_id", &self.job_id)
            .field("room_sid", &self.room_sid)
            .finish_non_exhaustive()
    }
}

/// Why the two could not talk.
#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// The process was started by hand or with redirected streams.
    #[error(
        "stdin and stdout are not the pipes of a worker: `voicebot call` is started by `voicebot start`, \
         use `voicebot connect` to join a room by hand: {0}"
    )]
    NotAPipe(#[source] io::Error),
    /// The worker went away before it had sent the job.
    #[error("the worker closed the pipe before it had sent the job")]
    NoJob,
    /// The worker sent something else before the job.
    #[error("the worker sent {0} before the job")]
    Unexpected(&'static str),
    /// The worker ended the call before it had begun.
    #[error("the worker ended the call before it had begun ({0:?})")]
    ShutDown(ShutdownReason),
}

/// Writes one message as a line.
pub fn encode_line<T: Serialize>(message: &T) -> String {
    let mut line = serde_json::to_string(message).expect("our messages have string keys only");
    line.push('\n');
    line
}

/// Reads one message from a line.
///
/// # Errors
///
/// When the line is no JSON, or no message of this type.
pub fn decode_line<T: DeserializeOwned>(line: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(line)
}

/// The codec of both sides.
pub(crate) fn lines() -> LinesCodec {
    LinesCodec::new_with_max_length(MAX_LINE_BYTES)
}

/// Takes over stdin and stdout of a call process. Call it once, inside a tokio runtime, and print
/// nothing to stdout afterwards.
///
/// No thread is used: both ends are pipes, and tokio waits for stdin as for a socket.
///
/// # Errors
///
/// [`IpcError::NotAPipe`] when stdin or stdout is no pipe, as in a terminal.
pub fn child() -> Result<(FromWorker, ToWorker), IpcError> {
    let open = || {
        let inbox = stdin_pipe()?;
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        // Only a detour: tokio's pipe type checks that this is a pipe and makes it non-blocking.
        let outbox = pipe::Sender::from_owned_fd(stdout)?.into_nonblocking_fd()?;
        Ok((inbox, File::from(outbox)))
    };
    let (inbox, outbox) = open().map_err(IpcError::NotAPipe)?;
    Ok((
        FromWorker {
            source: Source::Pipe(FramedRead::new(inbox, lines())),
        },
        ToWorker {
            sink: Arc::new(Sink::Pipe(Mutex::new(outbox))),
            broken: Arc::default(),
        },
    ))
}

/// Stdin of a process whose starter gave it a pipe.
///
/// # Errors
/// When stdin is something else.
pub(crate) fn stdin_pipe() -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)
}

/// The same two ends for a call that has no worker (`voicebot connect`, the demo): nothing ever
/// comes in, and what is sent is dropped.
pub fn alone() -> (FromWorker, ToWorker) {
    (
        FromWorker {
            source: Source::Gone,
        },
        ToWorker {
            sink: Arc::new(Sink::Nobody),
            broken: Arc::default(),
        },
    )
}

/// The same two ends inside one process, and the worker's side of them: for tests of the call.
pub fn pair() -> (
    FromWorker,
    ToWorker,
    mpsc::Sender<ToCall>,
    mpsc::Receiver<FromCall>,
) {
    const MESSAGES: usize = 16;
    let (to_call, inbox) = mpsc::channel(MESSAGES);
    let (outbox, from_call) = mpsc::channel(MESSAGES);
    (
        FromWorker {
            source: Source::Channel(inbox),
        },
        ToWorker {
            sink: Arc::new(Sink::Channel(outbox)),
            broken: Arc::default(),
        },
        to_call,
        from_call,
    )
}

/// Receives what the worker tells the call.
#[derive(Debug)]
pub struct FromWorker {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Pipe(FramedRead<pipe::Receiver, LinesCodec>),
    Channel(mpsc::Receiver<ToCall>),
    /// The worker has gone, or there never was one.
    Gone,
}

impl FromWorker {
    /// Waits for the job. To be called once, after [`FromCall::Ready`] was sent.
    ///
    /// # Errors
    ///
    /// [`IpcError::NoJob`] when the worker has gone, [`IpcError::ShutDown`] when it takes the job
    /// back, [`IpcError::Unexpected`] when it says something else.
    pub async fn job(&mut self) -> Result<JobDescription, IpcError> {
        if matches!(self.source, Source::Gone) {
            return Err(IpcError::NoJob);
        }
        match self.next().await {
            Some(ToCall::Start(job)) => Ok(*job),
            Some(ToCall::Shutdown { reason }) => Err(IpcError::ShutDown(reason)),
            Some(ToCall::StatusSent) => Err(IpcError::Unexpected("StatusSent")),
            None => Err(IpcError::NoJob),
        }
    }

    /// The next message. `None` is told once, when the worker has gone; from then on this never
    /// resolves, so that a `select!` loop needs no flag to go on with the call. Safe to cancel.
    pub async fn next(&mut self) -> Option<ToCall> {
        loop {
            match &mut self.source {
                Source::Gone => std::future::pending().await,
                Source::Channel(inbox) => match inbox.recv().await {
                    Some(message) => return Some(message),
                    None => break,
                },
                Source::Pipe(inbox) => match inbox.next().await {
                    Some(Ok(line)) => match decode_line(&line) {
                        Ok(message) => return Some(message),
                        Err(error) => {
                            tracing::warn!(%error, "ignored a line from the worker that is no message");
                        }
                    },
                    Some(Err(LinesCodecError::MaxLineLengthExceeded)) => {
                        tracing::warn!("ignored a line from the worker that is too long");
                    }
                    Some(Err(LinesCodecError::Io(error))) => {
                        tracing::warn!(%error, "the pipe from the worker broke");
                        break;
                    }
                    None => break,
                },
            }
        }
        self.source = Source::Gone;
        None
    }

    /// Waits until the worker has passed on the final status: the call may leave the room when this
    /// returns. Gives up after `limit`, and at once when there is no worker. A shutdown that
    /// arrives meanwhile changes nothing, because the call is already ending.
    pub async fn status_sent(&mut self, limit: Duration) -> bool {
        if matches!(self.source, Source::Gone) {
            return false;
        }
        let answer = async {
            loop {
                match self.next().await {
                    Some(ToCall::StatusSent) => return true,
                    Some(_) => {}
                    None => return false,
                }
            }
        };
        tokio::time::timeout(limit, answer).await.unwrap_or(false)
    }
}

/// Sends what the call tells the worker: cheap to clone, never waits, never fails.
#[derive(Debug, Clone)]
pub struct ToWorker {
    sink: Arc<Sink>,
    /// Set at the first failure, so that it is logged once.
    broken: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Sink {
    Pipe(Mutex<File>),
    Channel(mpsc::Sender<FromCall>),
    Nobody,
}

impl ToWorker {
    /// Tells the worker, if it still listens. A message that cannot be delivered is dropped: the
    /// worker learns the same things from the journal and from the process's end. Answers whether
    /// it was delivered.
    pub fn send(&self, mut message: FromCall) -> bool {
        if let FromCall::Finishing {
            error: Some(error), ..
        } = &mut message
        {
            truncate(error, MAX_ERROR_BYTES);
        }
        let outcome = match &*self.sink {
            Sink::Nobody => return false,
            Sink::Channel(outbox) => outbox
                .try_send(message)
                .map_err(|error| io::Error::other(error.to_string())),
            Sink::Pipe(pipe) => {
                let line = encode_line(&message);
                debug_assert!(line.len() <= MAX_CALL_LINE_BYTES);
                let mut pipe = pipe.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                pipe.write_all(line.as_bytes())
            }
        };
        let Err(error) = outcome else {
            return true;
        };
        if !self.broken.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "the worker does not read what this call reports; the call goes on");
        }
        false
    }
}

fn truncate(text: &mut String, max_bytes: usize) {
    if text.len() > max_bytes {
        let boundary = (0..=max_bytes).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(boundary.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> JobDescription {
        JobDescription {
            session_id: "session_20261121_023000_0a1b2c".parse().unwrap(),
            job_id: "AJ_1".into(),
            url: "ws://127.0.0.1:7880".into(),
            token: "secret-token".into(),
            room_name: "number-_15550100-1".into(),
            room_sid: Some("RM_1".into()),
            job_metadata: Some("{\"phone\":\"+15550100\",\n\"name\":\"Zoë\"}".into()),
            agent_name: "sales".into(),
            participant_identity: "agent-AJ_1".into(),
            attributes: HashMap::from([("campaign".into(), "spring".into())]),
            dispatched_at: "2026-11-21T02:30:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn every_message_is_one_line_and_reads_back() {
        let to_call = [
            ToCall::Start(Box::new(job())),
            ToCall::Shutdown {
                reason: ShutdownReason::Termination,
            },
            ToCall::Shutdown {
                reason: ShutdownReason::Finalise,
            },
            ToCall::StatusSent,
        ];
        for message in to_call {
            let line = encode_line(&message);
            assert_eq!(line.find('\n'), Some(line.len() - 1));
            assert_eq!(decode_line::<ToCall>(&line).unwrap(), message);
        }
        let from_call = [
            FromCall::Ready,
            FromCall::Joined,
            FromCall::Running,
            FromCall::Finishing {
                success: false,
                error: Some("line\nbreak".into()),
            },
            FromCall::RecordWritten {
                session_id: job().session_id,
            },
        ];
        for message in from_call {
            let line = encode_line(&message);
            assert_eq!(line.find('\n'), Some(line.len() - 1));
            assert_eq!(decode_line::<FromCall>(&line).unwrap(), message);
        }
    }

    #[test]
    fn a_job_in_a_log_shows_neither_token_nor_numbers() {
        let text = format!("{:?}", ToCall::Start(Box::new(job())));
        assert!(text.contains("AJ_1"), "{text}");
        assert!(!text.contains("secret-token"), "{text}");
        assert!(!text.contains("15550100"), "{text}");
    }

    fn over_pipes() -> (FromWorker, ToWorker, pipe::Sender, pipe::Receiver) {
        let (to_call, inbox) = pipe::pipe().unwrap();
        let (outbox, from_call) = pipe::pipe().unwrap();
        (
            FromWorker {
                source: Source::Pipe(FramedRead::new(inbox, lines())),
            },
            ToWorker {
                sink: Arc::new(Sink::Pipe(Mutex::new(File::from(
                    outbox.into_nonblocking_fd().unwrap(),
                )))),
                broken: Arc::default(),
            },
            to_call,
            from_call,
        )
    }

    #[tokio::test]
    async fn the_call_reads_its_job_and_goes_on_when_the_worker_is_gone() {
        use tokio::io::AsyncWriteExt as _;
        let (mut from_worker, _to_worker, mut to_call, _from_call) = over_pipes();
        let start = encode_line(&ToCall::Start(Box::new(job())));
        let (first, second) = start.as_bytes().split_at(50);
        to_call.write_all(first).await.unwrap();
        to_call.write_all(second).await.unwrap();
        assert_eq!(from_worker.job().await.unwrap(), job());

        to_call.write_all(b"not a message\n").await.unwrap();
        to_call
            .write_all(encode_line(&ToCall::StatusSent).as_bytes())
            .await
            .unwrap();
        assert_eq!(from_worker.next().await, Some(ToCall::StatusSent));

        drop(to_call);
        assert_eq!(from_worker.next().await, None);
        let again = tokio::time::timeout(Duration::from_millis(1), from_worker.next()).await;
        assert!(again.is_err(), "the end of the worker is told once");
        assert!(!from_worker.status_sent(Duration::from_secs(3600)).await);
    }

    #[tokio::test]
    async fn a_broken_or_full_pipe_costs_the_call_nothing() {
        let (_from_worker, to_worker, _to_call, from_call) = over_pipes();
        // Far more than a pipe holds, and nobody reads.
        for _ in 0..200 {
            to_worker.send(FromCall::Finishing {
                success: false,
                error: Some("\u{1}".repeat(5000)),
            });
        }
        let mut reader = FramedRead::new(from_call, lines());
        let first: FromCall = decode_line(&reader.next().await.unwrap().unwrap()).unwrap();
        assert!(
            matches!(first, FromCall::Finishing { error: Some(error), .. } if error.len() == MAX_ERROR_BYTES)
        );
        drop(reader);
        to_worker.send(FromCall::Ready);
    }

    #[tokio::test]
    async fn a_call_without_a_worker_waits_for_nobody() {
        let (mut from_worker, to_worker) = alone();
        to_worker.send(FromCall::Ready);
        assert!(!from_worker.status_sent(Duration::from_secs(3600)).await);
        assert!(matches!(from_worker.job().await, Err(IpcError::NoJob)));
    }

    #[tokio::test]
    async fn the_call_leaves_when_its_status_was_passed_on() {
        let (mut from_worker, to_worker, to_call, mut from_call) = pair();
        to_worker.send(FromCall::Finishing {
            success: true,
            error: None,
        });
        assert!(matches!(
            from_call.recv().await,
            Some(FromCall::Finishing { success: true, .. })
        ));
        let shutdown = ToCall::Shutdown {
            reason: ShutdownReason::Termination,
        };
        to_call.send(shutdown).await.unwrap();
        to_call.send(ToCall::StatusSent).await.unwrap();
        assert!(from_worker.status_sent(Duration::from_secs(3600)).await);
    }
}
