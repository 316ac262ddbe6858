//! Asks LiveKit Egress to record a call: the room's sound, agent and caller on a channel each, into one Ogg file.
//!
//! Starts in the background and is tried a few times, because the call must neither wait for it nor end with it. The client
//! lives as long as the call. Without a layout and a page address the egress takes the sound from the server directly and needs
//! no browser.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use livekit_api::services::egress::{
    AudioMixing, EgressClient, EgressOutput, RoomCompositeOptions,
};
use livekit_protocol as proto;
use tokio::task::JoinHandle;
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

/// A recording that an egress makes.
pub struct EgressRecording {
    client: Arc<EgressClient>,
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
        let (asking, session) = (client.clone(), session.clone());
        let requested = RecordingMetadata {
            recording_filename: Some(filepath.clone()),
            recording_start_time: Some(Utc::now()),
            state: RecordingState::Requested,
            source: RecordingSource::Egress,
            ..Default::default()
        };
        session::lock(&session).set_recording_metadata(requested.clone());
        let task =
            tokio::spawn(async move { ask(&asking, &session, requested, room, filepath).await });
        Self { client, task }
    }

    /// The end of the call: gives up on a start that is still under way. The egress itself ends with the room, or, where the
    /// room stays, is stopped here.
    pub async fn finish(self, session: &SharedSession, room_stays: bool) {
        let abort = self.task.abort_handle();
        match tokio::time::timeout(LAST_WAIT, self.task).await {
            Ok(Ok(Some(egress_id))) if room_stays => {
                if let Err(error) = self.client.stop_egress(&egress_id).await {
                    warn!(%error, egress.id = egress_id, "the egress could not be stopped");
                }
            }
            Ok(_) => {}
            Err(_) => {
                abort.abort();
                let mut session = session::lock(session);
                let known = session
                    .get_recording_metadata()
                    .cloned()
                    .unwrap_or_default();
                session.set_recording_metadata(RecordingMetadata {
                    state: RecordingState::Failed,
                    error: Some("the call ended before the egress had answered".into()),
                    ..known
                });
            }
        }
    }
}

async fn ask(
    client: &EgressClient,
    session: &SharedSession,
    requested: RecordingMetadata,
    room: String,
    filepath: String,
) -> Option<String> {
    let mut last = String::new();
    for attempt in 1..=ATTEMPTS {
        let output = EgressOutput::File(proto::EncodedFileOutput {
            file_type: proto::EncodedFileType::Ogg.into(),
            filepath: filepath.clone(),
            ..Default::default()
        });
        let options = RoomCompositeOptions {
            audio_only: true,
            audio_mixing: AudioMixing::DualChannelAgent,
            ..Default::default()
        };
        let started = client.start_room_composite_egress(&room, vec![output], options);
        last = match tokio::time::timeout(TIMEOUT, started).await {
            Ok(Ok(egress)) => {
                info!(egress.id = egress.egress_id, attempt, "recording started");
                session::lock(session).set_recording_metadata(RecordingMetadata {
                    egress_id: Some(egress.egress_id.clone()),
                    state: RecordingState::Active,
                    ..requested
                });
                return Some(egress.egress_id);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", TIMEOUT.as_secs()),
        };
        if attempt < ATTEMPTS {
            tokio::time::sleep(PAUSE).await;
        }
    }
    warn!(
        error = last,
        "the recording could not be started; the call goes on without one (recording.mode = \"egress\")"
    );
    session::lock(session).set_recording_metadata(RecordingMetadata {
        state: RecordingState::Failed,
        error: Some(last),
        ..requested
    });
    None
}
