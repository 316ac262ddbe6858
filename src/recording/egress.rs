//! Asks LiveKit Egress to record a call into one Ogg file, with agent and caller on one channel
//! each.
//!
//! Starts in the background and is retried a few times: the call must neither wait for it nor fail
//! with it. The client lives as long as the call. Without a layout and a page address the egress
//! takes the sound from the server directly and needs no browser.
//!
//! A request whose answer was lost may have succeeded. Before it is repeated, the server is asked
//! for an egress that writes our file; if the call ends without an answer, the recording stays
//! `requested` and is searched for by its room.
//!
//! A started egress does not record at once. The server is polled until it does, and the time is
//! recorded and logged: what was said before is not in the file.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use livekit_api::services::ServiceError;
use livekit_api::services::egress::{
    AudioMixing, EgressClient, EgressListFilter, EgressListOptions, EgressOutput,
    RoomCompositeOptions,
};
use livekit_api::services::{ServerError, ServerErrorCode};
use livekit_protocol as proto;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::directory::{EgressProgress, file_results, nanoseconds, report};
use super::{RecordingConfig, SESSION_ID};
use crate::session::{
    self, RecordingMetadata, RecordingSource, RecordingState, SessionId, SharedSession,
};

/// Attempts to start it: "no response from servers" means that no egress has capacity at present.
const ATTEMPTS: u32 = 3;
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_secs(2);
/// Timeout of one attempt.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end of the call waits for a start that is still in progress.
const LAST_WAIT: Duration = Duration::from_millis(500);
/// How long the end of the call waits until the egress is told to stop. It would end with its room.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an egress may take until it records. On a machine that has just started it takes a few
/// seconds.
const ACTIVE_LIMIT: Duration = Duration::from_secs(20);
/// First and longest pause between two polls whether it records.
const ACTIVE_PAUSES: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_millis(1000));
/// The templates that an egress fills in in the path of its file (livekit/egress,
/// `pkg/config/output_file.go`).
const EGRESS_TEMPLATES: [&str; 5] = ["{room_name}", "{room_id}", "{time}", "{utc}", "{retry}"];

/// Where an egress is asked to put its file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Output {
    /// The path or the object's key, as the request has it.
    pub filepath: String,
    file: proto::EncodedFileOutput,
    /// How the record names it.
    pub recorded_as: String,
}

impl Output {
    /// The file of a call.
    pub fn new(config: &RecordingConfig, session_id: &SessionId) -> Self {
        let filepath = config
            .egress_file_path
            .replace(SESSION_ID, session_id.as_str());
        let s3 = &config.s3;
        let bucket = s3.egress_bucket.as_str();
        let stored = (!bucket.is_empty()).then(|| {
            // No keys: the process of a call has none. The egress has its own keys or a role.
            proto::encoded_file_output::Output::S3(proto::S3Upload {
                bucket: bucket.to_owned(),
                region: s3.region.clone(),
                endpoint: s3.endpoint.clone(),
                force_path_style: s3.path_style && !s3.endpoint.is_empty(),
                ..Default::default()
            })
        });
        let recorded_as = match stored {
            Some(_) => format!("s3://{bucket}/{}", filepath.trim_start_matches('/')),
            None => filepath.clone(),
        };
        let file = proto::EncodedFileOutput {
            file_type: proto::EncodedFileType::Ogg.into(),
            filepath: filepath.clone(),
            output: stored,
            ..Default::default()
        };
        Self {
            filepath,
            file,
            recorded_as,
        }
    }
}

/// Checks for mistakes in `recording.egress_file_path`.
pub(super) fn check_file_path(path: &str) -> Result<(), String> {
    let mut bare = path.replace(SESSION_ID, "");
    for template in EGRESS_TEMPLATES {
        bare = bare.replace(template, "");
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    let fault = if !path.contains(SESSION_ID) {
        "has no {session_id} in it, by which no two calls have the same file"
    } else if bare.contains(['{', '}']) {
        "has a template in braces that neither this program nor the egress knows"
    } else if path.contains("://") {
        "is an address; for S3, set recording.s3.egress_bucket and here the object's key"
    } else if path.split('/').any(|part| part == "..") || path.chars().any(char::is_control) {
        "is no plain path"
    } else if name.is_empty() || extension.is_some_and(|extension| extension != "ogg") {
        "does not end in a file's name with .ogg, which is what is recorded"
    } else {
        return Ok(());
    };
    Err(format!("recording.egress_file_path {path:?} {fault}"))
}

/// A recording that an egress makes.
pub struct EgressRecording {
    client: Arc<EgressClient>,
    /// Cancels the pauses between attempts.
    hangup: CancellationToken,
    task: JoinHandle<Option<String>>,
    /// Whether it records. Closed when that can no longer be found out.
    active: watch::Receiver<bool>,
}

impl EgressRecording {
    /// Asks for a recording of `room`.
    pub(super) fn start(
        client: EgressClient,
        session: &SharedSession,
        room: String,
        output: Output,
    ) -> Self {
        let client = Arc::new(client);
        let requested = RecordingMetadata {
            recording_filename: Some(output.recorded_as.clone()),
            ..RecordingMetadata::begun(
                RecordingSource::Egress,
                RecordingState::Requested,
                Utc::now(),
            )
        };
        session::lock(session).set_recording_metadata(requested);
        let hangup = CancellationToken::new();
        let (asking, session, over) = (client.clone(), session.clone(), hangup.clone());
        let (records, active) = watch::channel(false);
        let asked_at = Utc::now();
        let task = tokio::spawn(async move {
            let asked = ask(&asking, &room, &output, &over).await;
            let egress_id = note(&session, asked)?;
            let begun = over
                .run_until_cancelled(until_active(&asking, &egress_id, asked_at))
                .await;
            if let Some(begun) = begun {
                note_beginning(&session, &egress_id, begun);
                records.send_replace(true);
            }
            Some(egress_id)
        });
        Self {
            client,
            hangup,
            task,
            active,
        }
    }

    /// Waits up to `limit` until it records or has failed. Returns whether it records.
    pub fn records_within(&self, limit: Duration) -> impl Future<Output = bool> + use<> {
        let mut active = self.active.clone();
        async move {
            let records = active.wait_for(|active| *active);
            matches!(timeout(limit, records).await, Ok(Ok(_)))
        }
    }

    /// The end of the call: gives up on a start that is still in progress. The egress itself ends
    /// with the room, or, where the room stays, is stopped here.
    pub async fn finish(self, session: &SharedSession, room_stays: bool) {
        let abort = self.task.abort_handle();
        self.hangup.cancel();
        match timeout(LAST_WAIT, self.task).await {
            Ok(Ok(Some(egress_id))) if room_stays => stop(&self.client, &egress_id).await,
            Ok(_) => {}
            Err(_) => {
                abort.abort();
                let why = "the call ended before the egress had answered".to_owned();
                note(session, Err(Fault::doubtful(why)));
            }
        }
    }
}

async fn stop(client: &EgressClient, egress_id: &str) {
    let why = match timeout(STOP_TIMEOUT, client.stop_egress(egress_id)).await {
        Ok(Ok(_)) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", STOP_TIMEOUT.as_secs()),
    };
    warn!(
        error = why,
        egress.id = egress_id,
        "the egress could not be stopped; it ends with its room"
    );
}

/// Writes the result of the start into the session. Returns the egress's id.
fn note(session: &SharedSession, asked: Result<String, Fault>) -> Option<String> {
    let mut session = session::lock(session);
    let known = session
        .get_recording_metadata()
        .cloned()
        .unwrap_or_default();
    match asked {
        Ok(egress_id) => {
            session.set_recording_metadata(RecordingMetadata {
                egress_id: Some(egress_id.clone()),
                ..known.advanced(RecordingState::Active, Utc::now(), None)
            });
            Some(egress_id)
        }
        Err(fault) => {
            warn!(
                error = fault.why,
                "the recording could not be started; the call goes on without one (recording.mode = \"egress\")"
            );
            let state = if fault.doubtful {
                known.state
            } else {
                RecordingState::Failed
            };
            session.set_recording_metadata(known.advanced(state, Utc::now(), Some(fault.why)));
            None
        }
    }
}

/// When a started egress began to record, or why it did not.
type Beginning = Result<DateTime<Utc>, String>;

/// Polls until the egress records. It reports itself when its file begins, which may be before the
/// poll.
async fn until_active(
    client: &EgressClient,
    egress_id: &str,
    asked_at: DateTime<Utc>,
) -> Beginning {
    let asking = async {
        let (mut pause, longest) = ACTIVE_PAUSES;
        loop {
            sleep(pause).await;
            pause = longest.min(pause + pause / 2);
            let options = EgressListOptions {
                filter: EgressListFilter::Egress(egress_id.to_owned()),
                ..Default::default()
            };
            // A failed poll is repeated.
            let listed = client.list_egress(options).await.unwrap_or_default();
            let Some(egress) = listed.first() else {
                continue;
            };
            if let EgressProgress::Failed(why) = report(egress).progress {
                return Err(format!("it has ended: {why}"));
            }
            if egress.status() != proto::EgressStatus::EgressStarting {
                let now = Utc::now();
                let told = file_results(egress).find_map(|file| nanoseconds(file.started_at));
                // The clock of its host may differ from ours.
                return Ok(told
                    .filter(|at| (asked_at..=now).contains(at))
                    .unwrap_or(now));
            }
        }
    };
    timeout(ACTIVE_LIMIT, asking).await.unwrap_or_else(|_| {
        Err(format!(
            "it has not begun to record within {} s",
            ACTIVE_LIMIT.as_secs()
        ))
    })
}

/// Writes into the session when the egress began to record.
fn note_beginning(session: &SharedSession, egress_id: &str, begun: Beginning) {
    let mut session = session::lock(session);
    let data = session.get_complete_session_data();
    let known = data.recording.unwrap_or_default();
    match begun {
        Ok(at) => {
            let missing = data.answered_at.map(|answered| at - answered);
            info!(
                egress.id = egress_id,
                missing_ms = missing.map(|missing| missing.num_milliseconds().max(0)),
                "the egress records; what was said before is not in the recording"
            );
            session.set_recording_metadata(RecordingMetadata {
                active_at: Some(at),
                ..known
            });
        }
        Err(why) => {
            warn!(
                egress.id = egress_id,
                error = why,
                "the call may not be recorded"
            );
            session.set_recording_metadata(RecordingMetadata {
                error: Some(why),
                ..known
            });
        }
    }
}

/// Why a start failed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    /// A sentence for the log and the record.
    why: String,
    /// Whether the egress may have been started nevertheless.
    doubtful: bool,
    /// Whether another attempt may succeed.
    again: bool,
}

impl Fault {
    fn final_word(why: String) -> Self {
        Self {
            why,
            doubtful: false,
            again: false,
        }
    }

    fn not_now(why: String) -> Self {
        Self {
            why,
            doubtful: false,
            again: true,
        }
    }

    fn doubtful(why: String) -> Self {
        Self {
            why,
            doubtful: true,
            again: true,
        }
    }

    /// What an error of the Egress API means (Twirp's codes; the messages are livekit/livekit's,
    /// `pkg/service/errors.go`).
    fn of(error: &ServiceError) -> Self {
        let ServiceError::Twirp(error) = error else {
            return Self::final_word(format!("the request cannot be made: {error}"));
        };
        match error {
            ServerError::Twirp(said) => Self::said(said),
            ServerError::Request(error) if error.is_connect() => {
                Self::not_now(format!("the LiveKit server cannot be reached: {error}"))
            }
            ServerError::Url(error) => {
                Self::final_word(format!("LIVEKIT_URL is no address: {error}"))
            }
            error => Self::doubtful(format!(
                "the answer of the LiveKit server was lost: {error}"
            )),
        }
    }

    fn said(said: &ServerErrorCode) -> Self {
        let message = &said.msg;
        match said.code.as_str() {
            _ if message.contains("redis required") => Self::final_word(format!(
                "this LiveKit server has no egress service: {message}"
            )),
            ServerErrorCode::UNAVAILABLE => Self::not_now(format!(
                "no egress service is running, or none has room for another recording: {message}"
            )),
            ServerErrorCode::RESOURCE_EXHAUSTED => Self::not_now(format!(
                "no more recordings are allowed at the same time (the quota of the LiveKit project): {message}"
            )),
            ServerErrorCode::UNAUTHENTICATED | ServerErrorCode::PERMISSION_DENIED => {
                Self::final_word(format!(
                    "LIVEKIT_API_KEY may not record rooms on this server: {message}"
                ))
            }
            ServerErrorCode::UNIMPLEMENTED | ServerErrorCode::BAD_ROUTE => {
                Self::final_word(format!("this LiveKit server has no Egress API: {message}"))
            }
            ServerErrorCode::NOT_FOUND => Self::final_word(format!(
                "the room was gone before it could be recorded: {message}"
            )),
            ServerErrorCode::INVALID_ARGUMENT | ServerErrorCode::MALFORMED => {
                Self::final_word(format!("the LiveKit server refuses the request: {message}"))
            }
            ServerErrorCode::DEADLINE_EXCEEDED => {
                Self::doubtful(format!("no egress answered in time: {message}"))
            }
            code => Self::not_now(format!("the LiveKit server answered {code}: {message}")),
        }
    }
}

/// The meaning of a refusal, for `voicebot check --egress`.
pub(super) fn refusal(error: &ServiceError) -> String {
    Fault::of(error).why
}

/// Retries until the egress is started, refused for good, out of attempts, or the call has ended.
async fn ask(
    client: &EgressClient,
    room: &str,
    output: &Output,
    hangup: &CancellationToken,
) -> Result<String, Fault> {
    let mut attempt = 1;
    let mut doubtful = false;
    loop {
        let started = match timeout(TIMEOUT, start(client, room, output)).await {
            Ok(Ok(egress_id)) => Ok(egress_id),
            Ok(Err(error)) => Err(Fault::of(&error)),
            Err(_) => Err(Fault::doubtful(format!(
                "the LiveKit server did not answer within {} s",
                TIMEOUT.as_secs()
            ))),
        };
        let fault = match started {
            Ok(egress_id) => {
                info!(egress.id = egress_id, attempt, "recording started");
                return Ok(egress_id);
            }
            Err(fault) => fault,
        };
        doubtful |= fault.doubtful;
        let over = attempt == ATTEMPTS
            || !fault.again
            || hangup.run_until_cancelled(sleep(PAUSE)).await.is_none();
        if over {
            return Err(Fault { doubtful, ..fault });
        }
        if doubtful && let Some(egress_id) = already_started(client, room, &output.filepath).await {
            info!(
                egress.id = egress_id,
                attempt, "recording started; the answer was lost"
            );
            return Ok(egress_id);
        }
        attempt += 1;
    }
}

pub(super) async fn start(
    client: &EgressClient,
    room: &str,
    output: &Output,
) -> Result<String, ServiceError> {
    let output = EgressOutput::File(output.file.clone());
    let options = RoomCompositeOptions {
        audio_only: true,
        audio_mixing: AudioMixing::DualChannelAgent,
        ..Default::default()
    };
    let egress = client
        .start_room_composite_egress(room, vec![output], options)
        .await?;
    Ok(egress.egress_id)
}

/// The egress of this room that writes our file, whose name no other has.
async fn already_started(client: &EgressClient, room: &str, filepath: &str) -> Option<String> {
    let options = EgressListOptions {
        filter: EgressListFilter::Room(room.to_owned()),
        ..Default::default()
    };
    let listed = timeout(TIMEOUT, client.list_egress(options))
        .await
        .ok()?
        .ok()?;
    let writes_ours = |egress: &proto::EgressInfo| match &egress.request {
        Some(proto::egress_info::Request::RoomComposite(request)) => request
            .file_outputs
            .iter()
            .any(|output| output.filepath == filepath),
        _ => false,
    };
    listed
        .into_iter()
        .find(writes_ours)
        .map(|egress| egress.egress_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::S3Config;

    #[test]
    fn a_request_names_the_file_as_the_settings_say_and_the_record_where_it_will_be() {
        let session: SessionId = "session_20261121_100000_aaaaaa".parse().unwrap();
        let config = |path: &str, bucket: &str| RecordingConfig {
            egress_file_path: path.to_owned(),
            s3: S3Config {
                egress_bucket: bucket.to_owned(),
                endpoint: "https://minio.example.com".to_owned(),
                ..S3Config::default()
            },
            ..RecordingConfig::default()
        };
        for (path, bucket, filepath, recorded_as) in [
            (
                "recordings/{session_id}.ogg",
                "",
                "recordings/S.ogg",
                "recordings/S.ogg",
            ),
            (
                "/out/{session_id}-{time}",
                "",
                "/out/S-{time}",
                "/out/S-{time}",
            ),
            (
                "/day/{session_id}.ogg",
                "calls",
                "/day/S.ogg",
                "s3://calls/day/S.ogg",
            ),
        ] {
            let output = Output::new(&config(path, bucket), &session);
            let named = |text: &str| text.replace('S', session.as_str());
            assert_eq!(output.filepath, named(filepath));
            assert_eq!(output.file.filepath, named(filepath));
            assert_eq!(output.recorded_as, named(recorded_as));
            let stored = match &output.file.output {
                Some(proto::encoded_file_output::Output::S3(s3)) => {
                    assert!(s3.access_key.is_empty() && s3.secret.is_empty());
                    assert_eq!(s3.endpoint, "https://minio.example.com");
                    assert!(s3.force_path_style);
                    s3.bucket.as_str()
                }
                _ => "",
            };
            assert_eq!(stored, bucket);
        }
    }

    fn said(code: &str, msg: &str) -> Fault {
        Fault::said(&ServerErrorCode {
            code: code.to_owned(),
            msg: msg.to_owned(),
            meta: Default::default(),
        })
    }

    #[test]
    fn every_refusal_is_a_sentence_and_only_what_may_pass_is_tried_again() {
        for (code, msg, words, again, doubtful) in [
            (
                "unavailable",
                "no response from servers",
                "no egress service is running",
                true,
                false,
            ),
            (
                "internal",
                "egress not connected (redis required)",
                "has no egress service",
                false,
                false,
            ),
            (
                "resource_exhausted",
                "concurrent egress sessions limit exceeded",
                "the quota of the LiveKit project",
                true,
                false,
            ),
            (
                "permission_denied",
                "permissions denied",
                "LIVEKIT_API_KEY",
                false,
                false,
            ),
            (
                "unauthenticated",
                "invalid token",
                "LIVEKIT_API_KEY",
                false,
                false,
            ),
            ("unimplemented", "no", "no Egress API", false, false),
            ("bad_route", "no handler", "no Egress API", false, false),
            (
                "not_found",
                "requested room does not exist",
                "the room was gone",
                false,
                false,
            ),
            (
                "invalid_argument",
                "output",
                "refuses the request",
                false,
                false,
            ),
            (
                "deadline_exceeded",
                "request timed out",
                "no egress answered",
                true,
                true,
            ),
            ("internal", "broken", "answered internal", true, false),
        ] {
            let fault = said(code, msg);
            assert!(
                fault.why.contains(words) && fault.why.contains(msg),
                "{code}: {}",
                fault.why
            );
            assert_eq!((fault.again, fault.doubtful), (again, doubtful), "{code}");
        }
    }
}
