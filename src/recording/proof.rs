//! Tests with a real egress whether recordings will be found: `voicebot check --egress`.
//!
//! Opens its own room, publishes a tone, starts an egress as calls do, searches for the file as the
//! delivery does, deletes it, and closes the room. Nobody is called, and nothing is sent to the
//! CRM.

use std::fs;
use std::time::Duration;

use chrono::Utc;
use livekit::options::TrackPublishOptions;
use livekit::prelude::*;
use livekit::webrtc::audio_frame::AudioFrame;
use livekit::webrtc::audio_source::native::NativeAudioSource;
use livekit::webrtc::audio_source::{AudioSourceOptions, RtcAudioSource};
use livekit_api::access_token::{AccessToken, VideoGrants};
use livekit_api::services::egress::{EgressClient, EgressListFilter, EgressListOptions};
use livekit_api::services::room::RoomClient;
use livekit_protocol as proto;
use tokio::time::{Instant, sleep, timeout};

use super::RecordingConfig;
use super::directory::{EgressProgress, EgressReport, report};
use super::egress::{self, Output};
use super::resolve::{FoundRecording, RecordingResolver, Resolution};
use crate::session::{
    CallRecord, CallStart, Outcome, PartState, RecordingMetadata, RecordingSource, RecordingState,
    SessionId, SessionManager,
};
use crate::settings::{LiveKitSettings, http_address};

/// Rate of the tone.
const SAMPLE_RATE_HZ: u32 = 48_000;
/// Frequency in Hz and amplitude of the tone.
const TONE: (f64, f64) = (440.0, 3000.0);
/// Samples of a frame of 10 ms.
const FRAME: usize = SAMPLE_RATE_HZ as usize / 100;
/// Timeout for the room and for each answer of the server.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the egress may take to start recording.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long it records.
const LENGTH: Duration = Duration::from_secs(2);
/// How long it may take to write its file and report it.
const END_LIMIT: Duration = Duration::from_secs(60);
/// How long the file may take to be found after that: two scans, and the delay of a shared folder.
const FIND_LIMIT: Duration = Duration::from_secs(15);
/// Pause between two polls.
const PAUSE: Duration = Duration::from_millis(250);

/// The result of a successful test.
#[derive(Debug)]
pub struct Proof {
    /// The name that the record would have.
    pub name: String,
    /// The location that the egress reports.
    pub place: String,
    /// Bytes.
    pub size: u64,
    /// From the request until the egress recorded.
    pub start: Duration,
    /// Files that could not be deleted afterwards.
    pub left: Option<String>,
}

/// Records for two seconds. The error is a message that says what to do.
///
/// # Errors
/// When the room, the egress or its file is not available.
pub async fn record_once(
    config: &RecordingConfig,
    livekit: &LiveKitSettings,
    resolver: &RecordingResolver,
) -> Result<Proof, String> {
    let session_id = SessionId::new(Utc::now());
    let room_name = format!("voicebot-check-{session_id}");
    let (room, track) = open_room(livekit, &room_name).await?;
    let tone = tokio::spawn(play(track));
    let host = http_address(&livekit.url);
    let client = EgressClient::with_api_key(&host, &livekit.api_key, livekit.api_secret.expose());
    let output = Output::new(config, &session_id);
    let tried = record(&client, &room_name, &output).await;
    tone.abort();
    let closed = async {
        let _ = room.close().await;
        let rooms = RoomClient::with_api_key(&host, &livekit.api_key, livekit.api_secret.expose());
        let _ = rooms.delete_room(&room_name).await;
    };
    // An empty room closes by itself.
    let _ = timeout(ANSWER_LIMIT, closed).await;
    let (ended, start) = tried?;
    let place = ended.files.first().map_or_else(String::new, |file| {
        let known = [&file.location, &file.filename];
        known
            .into_iter()
            .find(|name| !name.is_empty())
            .cloned()
            .unwrap_or_default()
    });
    let record = made_up_record(&session_id, &room_name, &ended.egress_id, &output);
    let found = find(resolver, record).await?;
    Ok(Proof {
        left: remove(&found, &ended.egress_id),
        name: found.name,
        size: found.size,
        place,
        start,
    })
}

async fn open_room(
    livekit: &LiveKitSettings,
    room_name: &str,
) -> Result<(Room, NativeAudioSource), String> {
    let grants = VideoGrants {
        room_join: true,
        room: room_name.to_owned(),
        ..Default::default()
    };
    let token = AccessToken::with_api_key(&livekit.api_key, livekit.api_secret.expose())
        .with_identity("voicebot-check")
        .with_grants(grants)
        .to_jwt()
        .map_err(|error| error.to_string())?;
    let failed = |why: String| format!("a room cannot be joined at {}: {why}", livekit.url);
    let mut options = RoomOptions::default();
    options.single_peer_connection = true;
    options.join_retries = 0;
    // Not safe to cancel (rust-sdks#1334), so a task of its own.
    let url = livekit.url.clone();
    let joining = tokio::spawn(async move { Room::connect(&url, &token, options).await });
    let (room, mut events) = timeout(ANSWER_LIMIT, joining)
        .await
        .map_err(|_| failed(format!("no answer within {} s", ANSWER_LIMIT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(error.to_string()))?;
    // Events are not needed, but must not accumulate.
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    let source = NativeAudioSource::new(AudioSourceOptions::default(), SAMPLE_RATE_HZ, 1, 100);
    let track =
        LocalAudioTrack::create_audio_track("check", RtcAudioSource::Native(source.clone()));
    let options = TrackPublishOptions {
        source: TrackSource::Microphone,
        ..Default::default()
    };
    room.local_participant()
        .publish_track(LocalTrack::Audio(track), options)
        .await
        .map_err(|error| failed(format!("no track can be published: {error}")))?;
    Ok((room, source))
}

/// Plays a tone until it is aborted. The source accepts frames in real time.
async fn play(source: NativeAudioSource) {
    let (pitch, loudness) = TONE;
    let step = std::f64::consts::TAU * pitch / f64::from(SAMPLE_RATE_HZ);
    let mut phase = 0.0_f64;
    loop {
        let data: Vec<i16> = (0..FRAME)
            .map(|_| {
                phase = (phase + step) % std::f64::consts::TAU;
                (phase.sin() * loudness) as i16
            })
            .collect();
        let frame = AudioFrame {
            data: data.into(),
            sample_rate: SAMPLE_RATE_HZ,
            num_channels: 1,
            samples_per_channel: FRAME as u32,
        };
        if source.capture_frame(&frame).await.is_err() {
            return;
        }
    }
}

/// Makes one recording. Returns the egress's report and how long it took to start.
async fn record(
    client: &EgressClient,
    room_name: &str,
    output: &Output,
) -> Result<(EgressReport, Duration), String> {
    let asked = Instant::now();
    let egress_id = timeout(ANSWER_LIMIT, egress::start(client, room_name, output))
        .await
        .map_err(|_| format!("no egress answered within {} s", ANSWER_LIMIT.as_secs()))?
        .map_err(|error| egress::refusal(&error))?;
    let begun = |egress: &proto::EgressInfo| egress.status() != proto::EgressStatus::EgressStarting;
    until(client, &egress_id, START_LIMIT, "begun to record", begun).await?;
    let start = asked.elapsed();
    sleep(LENGTH).await;
    // An egress that has already ended cannot be stopped; the next poll reports how it ended.
    let _ = timeout(ANSWER_LIMIT, client.stop_egress(&egress_id)).await;
    let over = |egress: &proto::EgressInfo| report(egress).progress != EgressProgress::Running;
    let ended = until(client, &egress_id, END_LIMIT, "ended", over).await?;
    let ended = report(&ended);
    match &ended.progress {
        EgressProgress::Failed(why) => Err(format!(
            "the egress {egress_id} was to write {:?} and has failed: {why}",
            output.recorded_as
        )),
        _ => Ok((ended, start)),
    }
}

async fn until(
    client: &EgressClient,
    egress_id: &str,
    limit: Duration,
    what: &str,
    is_so: impl Fn(&proto::EgressInfo) -> bool,
) -> Result<proto::EgressInfo, String> {
    let asking = async {
        loop {
            let options = EgressListOptions {
                filter: EgressListFilter::Egress(egress_id.to_owned()),
                ..Default::default()
            };
            let listed = client.list_egress(options).await.unwrap_or_default();
            if let Some(egress) = listed.into_iter().find(&is_so) {
                return egress;
            }
            sleep(PAUSE).await;
        }
    };
    timeout(limit, asking).await.map_err(|_| {
        format!(
            "the egress {egress_id} has not {what} within {} s; its own log says why",
            limit.as_secs()
        )
    })
}

/// The record that a call with this recording would have.
fn made_up_record(
    session_id: &SessionId,
    room_name: &str,
    egress_id: &str,
    output: &Output,
) -> CallRecord {
    let now = Utc::now();
    let mut session = SessionManager::new(CallStart {
        session_id: session_id.clone(),
        job_id: "check".to_owned(),
        room_name: room_name.to_owned(),
        room_sid: None,
        job_metadata: None,
        direction: None,
        call_start: now,
        agent_name: String::new(),
        attributes: Default::default(),
    });
    session.set_recording_metadata(RecordingMetadata {
        egress_id: Some(egress_id.to_owned()),
        recording_filename: Some(output.recorded_as.clone()),
        ..RecordingMetadata::begun(RecordingSource::Egress, RecordingState::Active, now)
    });
    session.set_outcome(Outcome::recovered("a trial", Some(now)));
    let data = session.get_complete_session_data();
    CallRecord::new(&data, None, String::new(), now, now)
}

/// Searches as the delivery does.
async fn find(
    resolver: &RecordingResolver,
    mut record: CallRecord,
) -> Result<FoundRecording, String> {
    let end = Instant::now() + FIND_LIMIT;
    loop {
        let now = Utc::now();
        let resolution = resolver.resolve(&record, now).await;
        resolution.note(&mut record, now);
        record.uploads.recording.state = PartState::Waiting;
        let why = match resolution {
            Resolution::Found(found) => return Ok(found),
            Resolution::NotRecorded => "nothing was recorded".to_owned(),
            Resolution::Wait { why, .. }
            | Resolution::Missing { why, .. }
            | Resolution::Failed { why, .. } => why,
        };
        if Instant::now() >= end {
            return Err(format!(
                "the egress has recorded, and the file is not found here: {why}; make that place visible on this machine and set \
                 recording.local_prefix to it (recording.egress_prefix is its name there), or ask for a path that is \
                 visible here (recording.egress_file_path)"
            ));
        }
        sleep(PAUSE).await;
    }
}

/// Deletes the test's file and its manifest. Returns what could not be deleted.
fn remove(found: &FoundRecording, egress_id: &str) -> Option<String> {
    let Some(file) = found.file() else {
        return Some(found.name.clone());
    };
    let manifest = file.with_file_name(format!("{egress_id}.json"));
    // The egress may be set to write no manifest.
    let _ = fs::remove_file(manifest);
    match fs::remove_file(file) {
        Ok(()) => None,
        Err(error) => Some(format!("{} ({error})", found.name)),
    }
}
