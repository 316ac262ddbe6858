//! Asks LiveKit Egress to record a call: the room's sound, agent and caller on a channel each, into one Ogg file.
//!
//! Starts in the background and is tried a few times, because the call must neither wait for it nor end with it. The client
//! lives as long as the call. Without a layout and a page address the egress takes the sound from the server directly and needs
//! no browser.
//!
//! A request whose answer was lost may have been heard: before it is repeated, the server is asked for an egress that writes our file,
//! and when the call ends without an answer, the recording stays `requested` and is looked for by its room.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use livekit_api::services::ServiceError;
use livekit_api::services::egress::{
    AudioMixing, EgressClient, EgressListFilter, EgressListOptions, EgressOutput,
    RoomCompositeOptions,
};
use livekit_api::services::{ServerError, ServerErrorCode};
use livekit_protocol as proto;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::session::{self, RecordingMetadata, RecordingSource, RecordingState, SharedSession};

/// How often the start is tried: "no response from servers" means that no egress has room just now.
const ATTEMPTS: u32 = 3;
/// Pause between two tries.
const PAUSE: Duration = Duration::from_secs(2);
/// How long one try may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end of the call waits for a start that is still under way.
const LAST_WAIT: Duration = Duration::from_millis(500);
/// How long the end of the call waits until the egress is told to stop. It would end with its room.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// A recording that an egress makes.
pub struct EgressRecording {
    client: Arc<EgressClient>,
    /// Ends the pauses between tries.
    hangup: CancellationToken,
    task: JoinHandle<Option<String>>,
}

impl EgressRecording {
    /// Asks for a recording of `room` at `filepath`, which the egress takes relative to its own folder.
    pub fn start(
        client: EgressClient,
        session: &SharedSession,
        room: String,
        filepath: String,
    ) -> Self {
        let client = Arc::new(client);
        let requested = RecordingMetadata {
            recording_filename: Some(filepath.clone()),
            ..RecordingMetadata::begun(
                RecordingSource::Egress,
                RecordingState::Requested,
                Utc::now(),
            )
        };
        session::lock(session).set_recording_metadata(requested);
        let hangup = CancellationToken::new();
        let (asking, session, over) = (client.clone(), session.clone(), hangup.clone());
        let task = tokio::spawn(async move {
            let asked = ask(&asking, &room, &filepath, &over).await;
            note(&session, asked)
        });
        Self {
            client,
            hangup,
            task,
        }
    }

    /// The end of the call: gives up on a start that is still under way. The egress itself ends with the room, or, where the
    /// room stays, is stopped here.
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

/// Writes down what came of the start. Gives back the egress's id.
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

/// Why a start did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    /// A sentence for the log and the record.
    why: String,
    /// The egress may have been started all the same.
    doubtful: bool,
    /// The next try may have more luck.
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

    /// What an error of the Egress API means (Twirp's codes; the messages are livekit/livekit's, `pkg/service/errors.go`).
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

/// Tries until it is started, refused for good, tried often enough, or no longer wanted.
async fn ask(
    client: &EgressClient,
    room: &str,
    filepath: &str,
    hangup: &CancellationToken,
) -> Result<String, Fault> {
    let mut attempt = 1;
    let mut doubtful = false;
    loop {
        let started = match timeout(TIMEOUT, start(client, room, filepath)).await {
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
        if doubtful && let Some(egress_id) = already_started(client, room, filepath).await {
            info!(
                egress.id = egress_id,
                attempt, "recording started; the answer was lost"
            );
            return Ok(egress_id);
        }
        attempt += 1;
    }
}

async fn start(client: &EgressClient, room: &str, filepath: &str) -> Result<String, ServiceError> {
    let output = EgressOutput::File(proto::EncodedFileOutput {
        file_type: proto::EncodedFileType::Ogg.into(),
        filepath: filepath.to_owned(),
        ..Default::default()
    });
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
