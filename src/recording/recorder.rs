//! The recording of one call, by an egress or by its own process.

use std::time::Duration;

use chrono::Utc;
use futures_util::future::{BoxFuture, FutureExt as _};
use livekit::webrtc::audio_stream::native::NativeAudioStream;
use livekit_api::services::egress::EgressClient;
use tracing::warn;

use super::egress::{EgressRecording, Output};
use super::local::{LocalRecording, SAMPLE_RATE_HZ};
use super::{RecordingConfig, RecordingMode};
use crate::session::{self, RecordingMetadata, RecordingSource, RecordingState, SharedSession};
use crate::settings::{LiveKitSettings, http_address};
use crate::store::Store;

/// A recording in progress.
pub enum Recorder {
    /// LiveKit Egress makes it.
    Egress(EgressRecording),
    /// This process makes it.
    Local(LocalRecording),
}

impl Recorder {
    /// Starts recording as configured. If the call is recorded already (the campaign metadata names
    /// an egress), only writes that into the session. A failure is written into the session and
    /// never ends the call.
    pub fn start(
        config: &RecordingConfig,
        livekit: Option<&LiveKitSettings>,
        store: &Store,
        session: &SharedSession,
        room: &str,
        agent: impl FnOnce() -> NativeAudioStream,
    ) -> Option<Self> {
        if let Some(egress_id) = egress_of_somebody_else(session) {
            session::lock(session).set_recording_metadata(RecordingMetadata {
                egress_id: Some(egress_id),
                recording_start_time: None,
                ..RecordingMetadata::begun(
                    RecordingSource::External,
                    RecordingState::Active,
                    Utc::now(),
                )
            });
            return None;
        }
        let session_id = session::lock(session)
            .get_complete_session_data()
            .start
            .session_id;
        let (path, file) = store.recording_path(&session_id, "ogg");
        match (config.mode, livekit) {
            (RecordingMode::Off, _) => None,
            (RecordingMode::Egress, Some(livekit)) => {
                let host = http_address(&livekit.url);
                let client = EgressClient::with_api_key(
                    &host,
                    &livekit.api_key,
                    livekit.api_secret.expose(),
                );
                Some(Self::Egress(EgressRecording::start(
                    client,
                    session,
                    room.to_owned(),
                    Output::new(config, &session_id),
                )))
            }
            (RecordingMode::Egress, None) => {
                note_failure(
                    session,
                    RecordingSource::Egress,
                    "LIVEKIT_API_KEY and LIVEKIT_API_SECRET are needed to start an egress",
                );
                None
            }
            (RecordingMode::Local, _) => match LocalRecording::start(&file, &path, agent()) {
                Ok(recording) => {
                    session::lock(session).set_recording_metadata(RecordingMetadata {
                        recording_filename: Some(path),
                        ..RecordingMetadata::begun(
                            RecordingSource::Local,
                            RecordingState::Active,
                            Utc::now(),
                        )
                    });
                    Some(Self::Local(recording))
                }
                Err(error) => {
                    note_failure(session, RecordingSource::Local, &error.to_string());
                    None
                }
            },
        }
    }

    /// Completes when an egress has started to record, or after `limit`. `None` if there is nothing
    /// to wait for.
    pub fn records_within(&self, limit: Duration) -> Option<BoxFuture<'static, ()>> {
        let Self::Egress(recording) = self else {
            return None;
        };
        if limit.is_zero() {
            return None;
        }
        let recording = recording.records_within(limit);
        let waiting = async move {
            if !recording.await {
                warn!(
                    limit_ms = limit.as_millis() as u64,
                    "the egress does not record yet: the agent begins without it (recording.egress_start_wait_ms)"
                );
            }
        };
        Some(waiting.boxed())
    }

    /// Adds the caller's sound to a recording that this process makes; `listen` opens it at the
    /// given rate.
    pub fn add_caller(&self, listen: impl FnOnce(u32) -> NativeAudioStream) {
        if let Self::Local(recording) = self {
            recording.add_caller(listen(SAMPLE_RATE_HZ));
        }
    }

    /// Ends the recording and writes its result into the session. `room_stays`: the room is not
    /// deleted after the call.
    pub async fn finish(self, session: &SharedSession, room_stays: bool) {
        match self {
            Self::Egress(recording) => recording.finish(session, room_stays).await,
            Self::Local(recording) => {
                let result = recording.finish().await;
                let mut session = session::lock(session);
                let known = session
                    .get_recording_metadata()
                    .cloned()
                    .unwrap_or_default();
                session.set_recording_metadata(match result {
                    Ok(()) => known.advanced(RecordingState::Resolved, Utc::now(), None),
                    Err(error) => {
                        warn!(%error, "the recording is incomplete");
                        let why = Some(error.to_string());
                        known.advanced(RecordingState::Failed, Utc::now(), why)
                    }
                });
            }
        }
    }
}

fn egress_of_somebody_else(session: &SharedSession) -> Option<String> {
    let data = session::lock(session).get_complete_session_data();
    data.egress_id().map(str::to_owned)
}

fn note_failure(session: &SharedSession, source: RecordingSource, why: &str) {
    warn!(error = why, "the call is not recorded");
    session::lock(session).set_recording_metadata(RecordingMetadata {
        error: Some(why.to_owned()),
        ..RecordingMetadata::begun(source, RecordingState::Failed, Utc::now())
    });
}
