//! `livekit.Egress`: records the sound of a room into one Ogg file, and writes a manifest beside
//! it.
//!
//! A recording passes through STARTING (nobody has published yet), ACTIVE, ENDING and COMPLETE; it
//! ends ABORTED when nobody publishes, and FAILED when the file cannot be written. Tests can choose
//! another end ([`crate::EgressBehaviour`]). The file is made in the temporary folder and moved to
//! its place when it is complete; the manifest comes last, so a reader that sees a manifest finds
//! the recording.
//!
//! A caller of the API may name any path that this process may write to, as with the real egress's
//! local files: the token's `roomRecord` is the permission for it.

mod plan;
mod recorder;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use livekit_protocol as proto;
use parking_lot::Mutex;
use proto::{EgressSourceType, EgressStatus};
use tempfile::NamedTempFile;
use tokio::sync::{broadcast, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::agents::unix_now_ns;
use crate::ids;
use crate::rooms::{RoomEvent, TappedPacket};
use crate::server::Server;
use crate::token::Claims;
use crate::twirp::{Call, Code, TwirpError};
use crate::webhooks::Webhooks;
use crate::{EgressEnding, EgressRefusal};
use plan::{Manifest, ManifestFile, Plan, location};
use recorder::Recorder;

/// How often sound is encoded and written: little enough at once that calls in the same process are
/// not delayed.
const ADVANCE_INTERVAL: Duration = Duration::from_millis(100);
/// Ended recordings that are kept for `ListEgress`; the real server forgets them after a day.
const MAX_REMEMBERED: usize = 1_000;
/// The error of a recording in which nobody ever published (`error_code`, an HTTP status).
const NO_START_SIGNAL: (&str, i32) = ("Start signal not received", 412);

/// The error of a recording that tests want to fail.
const STORAGE_REFUSED: &str = "the storage did not take the file";

/// All recordings of the server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Egress {
    shared: Arc<Shared>,
}

struct Shared {
    server: Server,
    webhooks: Webhooks,
    recordings: Mutex<Vec<Recording>>,
}

struct Recording {
    info: proto::EgressInfo,
    stop: CancellationToken,
}

/// Why a recording ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    StopEgress,
    SourceClosed,
}

impl End {
    fn details(self) -> String {
        let reason = match self {
            End::StopEgress => "StopEgress API",
            End::SourceClosed => "Source closed",
        };
        format!("End reason: {reason}")
    }
}

/// Handles one call; `None` if the service has no such method.
pub(crate) async fn serve(
    egress: &Egress,
    method: &str,
    call: Call,
) -> Option<axum::response::Response> {
    let response = match method {
        "StartRoomCompositeEgress" => {
            call.serve(async |claims, request| egress.start(claims, request))
                .await
        }
        "StopEgress" => {
            call.serve(async |claims, request| egress.stop(claims, &request))
                .await
        }
        "ListEgress" => {
            call.serve(async |claims, request| egress.list(claims, &request))
                .await
        }
        _ => return None,
    };
    Some(response)
}

impl Egress {
    pub fn new(server: Server, webhooks: Webhooks) -> Self {
        Self {
            shared: Arc::new(Shared {
                server,
                webhooks,
                recordings: Mutex::default(),
            }),
        }
    }

    /// Starts the recordings that rooms ask for when they are created, until the server stops.
    pub async fn follow(self, mut events: broadcast::Receiver<RoomEvent>) {
        let stop = self.shared.server.stop().clone();
        while let Some(event) = stop.run_until_cancelled(events.recv()).await {
            match event {
                Ok(RoomEvent::Started { room, options }) => {
                    if let Some(wanted) = options
                        .egress
                        .as_ref()
                        .and_then(|egress| egress.room.clone())
                    {
                        let request = proto::RoomCompositeEgressRequest {
                            room_name: room.name.clone(),
                            ..wanted
                        };
                        if let Err(error) = self.begin(request) {
                            tracing::warn!(
                                room.name = room.name,
                                "the room's recording cannot start: {}",
                                error.message
                            );
                        }
                    }
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::error!("the recorder missed {missed} room events")
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    fn start(
        &self,
        claims: &Claims,
        request: proto::RoomCompositeEgressRequest,
    ) -> Result<proto::EgressInfo, TwirpError> {
        claims.require_room_record()?;
        self.begin(request)
    }

    fn begin(
        &self,
        request: proto::RoomCompositeEgressRequest,
    ) -> Result<proto::EgressInfo, TwirpError> {
        let server = &self.shared.server;
        match server.options().egress.refusal {
            Some(EgressRefusal::NoService) => {
                return Err(TwirpError::new(
                    Code::Unavailable,
                    "no response from servers",
                ));
            }
            Some(EgressRefusal::Quota) => {
                return Err(TwirpError::new(
                    Code::ResourceExhausted,
                    "concurrent egress sessions limit exceeded",
                ));
            }
            None => {}
        }
        let rooms = server.rooms();
        let room = rooms
            .get(&request.room_name)
            .ok_or_else(|| TwirpError::not_found("requested room does not exist"))?;
        let plan = Plan::new(&request)?;
        let filename = plan.filename(&room.name, &room.sid, chrono::Local::now());
        let location =
            location(server.options().recordings_dir.as_deref(), &filename).map_err(|error| {
                TwirpError::invalid(format!("the path {filename:?} cannot be used: {error}"))
            })?;
        // Subscribed before the tracks are listed: a track that is published in between is then
        // found in one of the two.
        let events = rooms.subscribe();
        let packets = rooms.tap(&room.name)?;
        let now = unix_now_ns();
        let mut info = proto::EgressInfo {
            egress_id: ids::new_id(ids::EGRESS),
            room_id: room.sid.clone(),
            room_name: room.name.clone(),
            source_type: EgressSourceType::Sdk.into(),
            started_at: now,
            updated_at: now,
            file_results: vec![proto::FileInfo {
                filename: filename.clone(),
                ..Default::default()
            }],
            request: Some(proto::egress_info::Request::RoomComposite(request)),
            ..Default::default()
        };
        info.set_status(EgressStatus::EgressStarting);
        let stop = CancellationToken::new();
        {
            let mut recordings = self.shared.recordings.lock();
            if recordings.len() >= MAX_REMEMBERED
                && let Some(oldest) = recordings
                    .iter()
                    .position(|recording| !is_active(recording.info.status()))
            {
                recordings.remove(oldest);
            }
            recordings.push(Recording {
                info: info.clone(),
                stop: stop.clone(),
            });
        }
        let job = RecordingJob {
            egress: self.clone(),
            egress_id: info.egress_id.clone(),
            room,
            plan,
            filename,
            location,
            started_at: now,
            stop,
        };
        self.shared.webhooks.egress("egress_started", &info);
        server.tasks().spawn(job.run(packets, events));
        Ok(info)
    }

    fn stop(
        &self,
        claims: &Claims,
        request: &proto::StopEgressRequest,
    ) -> Result<proto::EgressInfo, TwirpError> {
        claims.require_room_record()?;
        let recordings = self.shared.recordings.lock();
        let recording = recordings
            .iter()
            .find(|recording| recording.info.egress_id == request.egress_id)
            .ok_or_else(|| TwirpError::not_found("egress does not exist"))?;
        let status = recording.info.status();
        if !matches!(
            status,
            EgressStatus::EgressStarting | EgressStatus::EgressActive
        ) {
            let message = format!(
                "egress with status {} cannot be stopped",
                status.as_str_name()
            );
            return Err(TwirpError::new(Code::FailedPrecondition, message));
        }
        recording.stop.cancel();
        // The task sets the status for everybody; the caller gets it now.
        let mut info = recording.info.clone();
        info.set_status(EgressStatus::EgressEnding);
        info.details = End::StopEgress.details();
        Ok(info)
    }

    fn list(
        &self,
        claims: &Claims,
        request: &proto::ListEgressRequest,
    ) -> Result<proto::ListEgressResponse, TwirpError> {
        claims.require_room_record()?;
        let recordings = self.shared.recordings.lock();
        let items = recordings
            .iter()
            .map(|recording| &recording.info)
            .filter(|info| request.egress_id.is_empty() || info.egress_id == request.egress_id)
            .filter(|info| request.room_name.is_empty() || info.room_name == request.room_name)
            .filter(|info| !request.active || is_active(info.status()))
            .cloned()
            .collect();
        Ok(proto::ListEgressResponse {
            items,
            ..Default::default()
        })
    }

    /// Changes a recording's info and publishes it as a webhook.
    fn update(&self, egress_id: &str, change: impl FnOnce(&mut proto::EgressInfo)) {
        let changed = {
            let mut recordings = self.shared.recordings.lock();
            let Some(recording) = recordings
                .iter_mut()
                .find(|recording| recording.info.egress_id == egress_id)
            else {
                return;
            };
            change(&mut recording.info);
            recording.info.updated_at = unix_now_ns();
            recording.info.clone()
        };
        let name = if is_active(changed.status()) {
            "egress_updated"
        } else {
            "egress_ended"
        };
        self.shared.webhooks.egress(name, &changed);
    }
}

fn is_active(status: EgressStatus) -> bool {
    matches!(
        status,
        EgressStatus::EgressStarting | EgressStatus::EgressActive | EgressStatus::EgressEnding
    )
}

/// One recording's task.
struct RecordingJob {
    egress: Egress,
    egress_id: String,
    room: proto::Room,
    plan: Plan,
    /// The path as the API reports it.
    filename: String,
    /// The final path of the file.
    location: PathBuf,
    /// Nanoseconds since 1970.
    started_at: i64,
    stop: CancellationToken,
}

/// How a recording ended.
enum Outcome {
    NothingPublished(End),
    Complete(End, proto::FileInfo, Option<PathBuf>),
    /// Killed, because a test wants it.
    Aborted,
}

impl RecordingJob {
    async fn run(
        self,
        packets: mpsc::Receiver<TappedPacket>,
        events: broadcast::Receiver<RoomEvent>,
    ) {
        let rooms = self.egress.shared.server.rooms().clone();
        // The room may end at any time; then there is nobody left to show it to.
        let _ = rooms.set_recording(&self.room.name, true);
        let outcome = self.record(packets, events).await;
        let _ = rooms.set_recording(&self.room.name, false);
        let egress_id = &self.egress_id;
        self.egress.update(egress_id, |info| {
            info.ended_at = unix_now_ns();
            match outcome {
                Ok(Outcome::Complete(end, file, manifest)) => {
                    tracing::info!(
                        egress.id = egress_id,
                        "recorded {} ({})",
                        file.location,
                        end.details()
                    );
                    info.details = end.details();
                    match &self.egress.shared.server.options().egress.ending {
                        EgressEnding::LimitReached => {
                            info.set_status(EgressStatus::EgressLimitReached);
                            info.details = "End reason: Limit reached".to_owned();
                        }
                        EgressEnding::BackedUp(_) => {
                            info.set_status(EgressStatus::EgressFailed);
                            info.backup_storage_used = true;
                            (info.error, info.error_code) = (STORAGE_REFUSED.to_owned(), 500);
                        }
                        _ => info.set_status(EgressStatus::EgressComplete),
                    }
                    info.file_results = vec![file];
                    info.manifest_location = manifest
                        .map(|path| path.display().to_string())
                        .unwrap_or_default();
                }
                Ok(Outcome::Aborted) => {
                    info.set_status(EgressStatus::EgressAborted);
                    info.details = "End reason: Service terminated".to_owned();
                    info.file_results.clear();
                }
                Ok(Outcome::NothingPublished(end)) => {
                    tracing::info!(
                        egress.id = egress_id,
                        "nothing was published, so nothing was recorded"
                    );
                    info.set_status(EgressStatus::EgressAborted);
                    info.details = end.details();
                    info.file_results.clear();
                    (info.error, info.error_code) =
                        (NO_START_SIGNAL.0.to_owned(), NO_START_SIGNAL.1);
                }
                Err(error) => {
                    tracing::error!(egress.id = egress_id, "the recording failed: {error}");
                    info.set_status(EgressStatus::EgressFailed);
                    info.file_results.clear();
                    (info.error, info.error_code) = (error.to_string(), 500);
                }
            }
        });
    }

    async fn record(
        &self,
        mut packets: mpsc::Receiver<TappedPacket>,
        mut events: broadcast::Receiver<RoomEvent>,
    ) -> Result<Outcome, RecordError> {
        let first = match self.first_sound(&mut packets, &mut events).await {
            Ok(first) => first,
            Err(end) => return Ok(Outcome::NothingPublished(end)),
        };
        drop(events);
        if let Some(end) = self.slow_start(&mut packets).await {
            return Ok(Outcome::NothingPublished(end));
        }
        let (begin, started_at) = (Instant::now(), unix_now_ns());
        let position = |at: Instant| samples_in(at.saturating_duration_since(begin));
        self.egress.update(&self.egress_id, |info| {
            info.set_status(EgressStatus::EgressActive);
            for file in &mut info.file_results {
                file.started_at = started_at;
            }
        });

        let staged = NamedTempFile::with_prefix(&self.egress_id)?;
        let mut recorder = Recorder::new(staged.reopen()?, self.plan.mixing)?;
        if let Some(packet) = first {
            recorder.packet(&packet, 0)?;
        }
        let mut ticks = tokio::time::interval(ADVANCE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let end = loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break End::StopEgress,
                packet = packets.recv() => match packet {
                    Some(packet) => recorder.packet(&packet, position(packet.arrival))?,
                    None => break End::SourceClosed,
                },
                _ = ticks.tick() => recorder.advance(position(Instant::now()))?,
            }
        };
        // What had arrived when the recording was stopped belongs to it.
        while let Ok(packet) = packets.try_recv() {
            recorder.packet(&packet, position(packet.arrival))?;
        }
        drop(packets);
        let (length, ended_at) = (position(Instant::now()), unix_now_ns());
        self.egress.update(&self.egress_id, |info| {
            info.set_status(EgressStatus::EgressEnding);
            info.details = end.details();
        });

        let behaviour = &self.egress.shared.server.options().egress;
        if let Some(held) = &behaviour.held_until {
            let stop = self.egress.shared.server.stop();
            stop.run_until_cancelled(held.cancelled()).await;
        }
        let (manifest, location) = match &behaviour.ending {
            EgressEnding::Complete | EgressEnding::LimitReached => {
                (self.plan.manifest, self.location.clone())
            }
            EgressEnding::BackedUp(folder) => (
                false,
                folder.join(self.location.file_name().unwrap_or_default()),
            ),
            EgressEnding::Aborted => return Ok(Outcome::Aborted),
            EgressEnding::Failed => return Err(RecordError::StorageRefused),
        };
        let finish = Finish {
            egress_id: self.egress_id.clone(),
            room: self.room.clone(),
            manifest,
            filename: self.filename.clone(),
            location,
            egress_started_at: self.started_at,
            started_at,
            ended_at,
        };
        // Encoding the rest and copying an hour of sound takes long and must not delay calls.
        let finishing = tokio::task::spawn_blocking(move || finish.run(recorder, length, &staged));
        let (file, manifest) = finishing.await.map_err(std::io::Error::other)??;
        Ok(Outcome::Complete(end, file, manifest))
    }

    /// Waits to begin for as long as tests want. What is sent meanwhile is not recorded. `Some` if
    /// the recording ends before it has begun.
    async fn slow_start(&self, packets: &mut mpsc::Receiver<TappedPacket>) -> Option<End> {
        let behaviour = &self.egress.shared.server.options().egress;
        let begins = behaviour.begins_after.as_ref()?;
        loop {
            tokio::select! {
                biased;
                () = begins.cancelled() => return None,
                () = self.stop.cancelled() => return Some(End::StopEgress),
                packet = packets.recv() => {
                    if packet.is_none() {
                        return Some(End::SourceClosed);
                    }
                }
            }
        }
    }

    /// Waits until a participant publishes sound. If a packet was the first sign of that, it is
    /// returned, as it has to be recorded.
    async fn first_sound(
        &self,
        packets: &mut mpsc::Receiver<TappedPacket>,
        events: &mut broadcast::Receiver<RoomEvent>,
    ) -> Result<Option<TappedPacket>, End> {
        let present = self
            .egress
            .shared
            .server
            .rooms()
            .participants(&self.room.name)
            .unwrap_or_default();
        let is_audio = |track: &proto::TrackInfo| track.r#type() == proto::TrackType::Audio;
        if present
            .iter()
            .flat_map(|participant| &participant.tracks)
            .any(is_audio)
        {
            return Ok(None);
        }
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(End::StopEgress),
                packet = packets.recv() => return packet.map(Some).ok_or(End::SourceClosed),
                event = events.recv() => match event {
                    Ok(RoomEvent::TrackPublished { room, track, .. }) if room == self.room.name && is_audio(&track) => return Ok(None),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Err(End::SourceClosed),
                },
            }
        }
    }
}

/// What is left to do after the last packet.
struct Finish {
    egress_id: String,
    room: proto::Room,
    manifest: bool,
    filename: String,
    location: PathBuf,
    egress_started_at: i64,
    started_at: i64,
    ended_at: i64,
}

impl Finish {
    /// Closes the temporary file, moves it to its place, and writes the manifest.
    fn run(
        self,
        recorder: Recorder<File>,
        length: u64,
        staged: &NamedTempFile,
    ) -> Result<(proto::FileInfo, Option<PathBuf>), RecordError> {
        let file = recorder.finish(length)?;
        let file_info = proto::FileInfo {
            filename: self.filename.clone(),
            started_at: self.started_at,
            ended_at: self.ended_at,
            duration: i64::try_from(oggopus::duration(staged.path())?.as_nanos())
                .unwrap_or(i64::MAX),
            size: i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX),
            location: self.location.display().to_string(),
        };
        let dir = self.location.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(dir).map_err(|source| RecordError::Place {
            path: dir.to_owned(),
            source,
        })?;
        place(&self.location, |target| {
            std::io::copy(&mut staged.reopen()?, target).map(drop)
        })?;
        if !self.manifest {
            return Ok((file_info, None));
        }
        let path = dir.join(format!("{}.json", self.egress_id));
        let manifest = serde_json::to_string(&Manifest {
            egress_id: &self.egress_id,
            room_id: &self.room.sid,
            room_name: &self.room.name,
            started_at: self.egress_started_at,
            ended_at: self.ended_at,
            files: [ManifestFile {
                filename: &file_info.filename,
                location: &file_info.location,
            }],
        })?;
        place(&path, |target| target.write_all(manifest.as_bytes()))?;
        Ok((file_info, Some(path)))
    }
}

/// Writes a file under another name in the same folder and renames it, so that no reader sees half
/// of it.
fn place(
    path: &Path,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> Result<(), RecordError> {
    let placing = || -> std::io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut staged = tempfile::Builder::new()
            .prefix(".egress-")
            .permissions(file_permissions())
            .tempfile_in(dir)?;
        write(staged.as_file_mut())?;
        staged.as_file().sync_all()?;
        staged.persist(path)?;
        Ok(())
    };
    placing().map_err(|source| RecordError::Place {
        path: path.to_owned(),
        source,
    })
}

/// Temporary files are private by default; a recording is for other processes to pick up.
fn file_permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o644)
}

fn samples_in(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(oggopus::SAMPLE_RATE_HZ) / 1_000_000_000)
        .unwrap_or(u64::MAX)
}

/// Why a recording failed.
#[derive(Debug, thiserror::Error)]
enum RecordError {
    #[error("the recording cannot be staged: {0}")]
    Stage(#[from] std::io::Error),
    #[error("{} cannot be written: {source}", path.display())]
    Place {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the sound cannot be written: {0}")]
    Sound(#[from] oggopus::Error),
    #[error("the manifest cannot be written: {0}")]
    Manifest(#[from] serde_json::Error),
    #[error("{STORAGE_REFUSED}")]
    StorageRefused,
}
