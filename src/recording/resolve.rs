//! Finding the recording of a call that has ended.
//!
//! In this order: the path in its record; the manifest that an egress leaves beside its file; what the server's Egress API says. All of
//! them may name paths as the egress host has them, and none of them may lead out of the data folder.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use livekit_api::services::egress::{EgressClient, EgressListFilter, EgressListOptions};
use livekit_protocol as proto;
use serde::Deserialize;
use tracing::{debug, warn};

use crate::session::{CallRecord, RecordingSource, RecordingState, mask_numbers, sanitise};
use crate::store::Store;

use super::RecordingConfig;

/// A manifest is a few hundred bytes; more than this is something else.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// How long the server may take to answer; the next pass asks again.
const API_TIMEOUT: Duration = Duration::from_secs(5);

/// What is known about the recording of a call now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// It is here and complete.
    Found(RecordingFile),
    /// Nobody recorded this call.
    NotRecorded,
    /// It may still turn up; the text says what is waited for.
    NotYet(String),
    /// There will be none; the text says why.
    Lost(String),
}

/// A recording on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordingFile {
    /// For the record, relative to the data folder.
    pub relative: String,
    /// For opening it.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Seconds, when something tells.
    pub duration: Option<u64>,
}

/// What the server knows of an egress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressReport {
    /// Its id.
    pub egress_id: String,
    /// How far it is.
    pub progress: EgressProgress,
    /// `filename` and `location` of its files.
    pub paths: Vec<String>,
    /// Seconds, once it has ended.
    pub duration: Option<u64>,
}

/// How far an egress is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressProgress {
    /// Starting, active or ending.
    Running,
    /// Complete, or cut at a limit, which leaves a usable file.
    Done,
    /// Failed or aborted, with the server's reason.
    Failed(String),
}

/// Asks for an egress by its id or, when that is not known, for those of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressQuery {
    /// `EG_…`
    Id(String),
    /// The room's name.
    Room(String),
}

/// The future of one question.
pub type EgressAnswer<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<EgressReport>, String>> + Send + 'a>>;

/// Where egresses can be asked for. A trait, so that a folder can be worked off without any LiveKit server.
pub trait EgressDirectory: Send + Sync {
    /// The egresses that fit. The error is a sentence for the log and the record.
    fn find(&self, query: EgressQuery) -> EgressAnswer<'_>;
}

/// [`EgressDirectory`] on the LiveKit server's API.
pub struct LiveKitEgress {
    client: EgressClient,
    host: String,
}

impl LiveKitEgress {
    /// `http_url` is the server's address as `http://` or `https://`.
    pub fn new(http_url: &str, api_key: &str, api_secret: &str) -> Self {
        Self {
            client: EgressClient::with_api_key(http_url, api_key, api_secret),
            host: http_url.to_owned(),
        }
    }
}

impl std::fmt::Debug for LiveKitEgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveKitEgress")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl EgressDirectory for LiveKitEgress {
    fn find(&self, query: EgressQuery) -> EgressAnswer<'_> {
        let filter = match query {
            EgressQuery::Id(id) => EgressListFilter::Egress(id),
            EgressQuery::Room(room) => EgressListFilter::Room(room),
        };
        let options = EgressListOptions {
            filter,
            ..Default::default()
        };
        Box::pin(async move {
            match tokio::time::timeout(API_TIMEOUT, self.client.list_egress(options)).await {
                Ok(Ok(found)) => Ok(found.iter().map(report).collect()),
                Ok(Err(error)) => Err(format!(
                    "failed to ask {} for the egress: {error}",
                    self.host
                )),
                Err(_) => Err(format!(
                    "{} did not answer within {} s about the egress",
                    self.host,
                    API_TIMEOUT.as_secs()
                )),
            }
        })
    }
}

fn report(info: &proto::EgressInfo) -> EgressReport {
    use proto::EgressStatus as Status;
    let progress = match info.status() {
        Status::EgressStarting | Status::EgressActive | Status::EgressEnding => {
            EgressProgress::Running
        }
        Status::EgressComplete | Status::EgressLimitReached => EgressProgress::Done,
        Status::EgressFailed | Status::EgressAborted => {
            EgressProgress::Failed(match info.error.as_str() {
                "" => info.details.clone(),
                error => error.to_owned(),
            })
        }
    };
    let nanoseconds = info.file_results.first().map_or(0, |file| file.duration);
    EgressReport {
        egress_id: info.egress_id.clone(),
        progress,
        paths: info
            .file_results
            .iter()
            .flat_map(|file| [file.filename.clone(), file.location.clone()])
            .collect(),
        duration: whole_seconds(nanoseconds),
    }
}

fn whole_seconds(nanoseconds: i64) -> Option<u64> {
    let seconds = u64::try_from(nanoseconds).ok()?.checked_add(500_000_000)? / 1_000_000_000;
    (nanoseconds > 0).then_some(seconds)
}

/// Finds recordings.
#[derive(Clone)]
pub struct RecordingResolver {
    store: Store,
    config: RecordingConfig,
    directory: Option<Arc<dyn EgressDirectory>>,
}

impl std::fmt::Debug for RecordingResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordingResolver")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// What one source of paths led to.
enum Candidate {
    Found(RecordingFile),
    /// Named, but empty or not there.
    NotThere(String),
    /// Nothing named.
    Nothing,
}

impl RecordingResolver {
    /// `directory` is the server's Egress API, where there is a server to ask.
    pub fn new(
        store: Store,
        config: RecordingConfig,
        directory: Option<Arc<dyn EgressDirectory>>,
    ) -> Self {
        Self {
            store,
            config,
            directory,
        }
    }

    /// Looks for the recording of a call that has ended. Whatever is [`Resolution::NotYet`] becomes [`Resolution::Lost`] when the call
    /// ended longer ago than the configured wait.
    pub async fn resolve(&self, record: &CallRecord, now: DateTime<Utc>) -> Resolution {
        let waited_for = match self.look(record).await {
            Resolution::NotYet(waited_for) => waited_for,
            other => return other,
        };
        // A record without any time is not waited for: there is nothing to measure the wait from.
        match self.deadline(record) {
            Some(deadline) if now < deadline => Resolution::NotYet(waited_for),
            _ => Resolution::Lost(format!(
                "{waited_for}, {} s after the call ended",
                self.config.wait_s
            )),
        }
    }

    /// Until when the recording of a call is waited for.
    pub fn deadline(&self, record: &CallRecord) -> Option<DateTime<Utc>> {
        let wait = TimeDelta::try_seconds(i64::try_from(self.config.wait_s).ok()?)?;
        record.ended_at()?.checked_add_signed(wait)
    }

    async fn look(&self, record: &CallRecord) -> Resolution {
        let mut not_there = None;
        if let Some(path) = &record.files.recording {
            match self.candidate([path.as_str()]) {
                Candidate::Found(file) => return Resolution::Found(file),
                Candidate::NotThere(what) => not_there = Some(what),
                Candidate::Nothing => {}
            }
        }
        let egress_id = record.egress_id().map(with_prefix);
        let Some(query) = egress_query(record, egress_id.as_deref()) else {
            return match (not_there, &record.recording) {
                // What this worker writes itself is complete when the record is, so there is nothing to wait for.
                (Some(what), Some(recording)) if recording.source == RecordingSource::Local => {
                    Resolution::Lost(what)
                }
                (Some(what), _) => Resolution::NotYet(what),
                (None, Some(recording)) if recording.state == RecordingState::Failed => {
                    Resolution::Lost(
                        recording
                            .error
                            .clone()
                            .unwrap_or_else(|| "the recording failed".to_owned()),
                    )
                }
                (None, Some(_)) => Resolution::Lost(
                    "the recording was started, but nothing tells where it is".to_owned(),
                ),
                (None, None) => Resolution::NotRecorded,
            };
        };
        if let Some(id) = &egress_id {
            match self.look_in_manifest(id) {
                Candidate::Found(file) => return Resolution::Found(file),
                Candidate::NotThere(what) => not_there = Some(what),
                Candidate::Nothing => {}
            }
        }
        match self.ask_directory(&query).await {
            Resolution::NotYet(what) => Resolution::NotYet(not_there.unwrap_or(what)),
            other => other,
        }
    }

    /// `recordings/<egress id>.json`, which an egress writes after its file.
    fn look_in_manifest(&self, egress_id: &str) -> Candidate {
        let name = format!("recordings/{}.json", sanitise(egress_id));
        let manifest = match self.store.resolve(&name) {
            Ok(path) => path,
            Err(error) => {
                warn!(
                    egress.id = egress_id,
                    "manifest refused: {}",
                    mask_numbers(&error.to_string())
                );
                return Candidate::Nothing;
            }
        };
        match read_manifest(&manifest) {
            Ok(None) => Candidate::Nothing,
            Ok(Some(manifest)) => {
                let paths: Vec<&str> = manifest
                    .files
                    .iter()
                    .flat_map(|file| [file.filename.as_deref(), file.location.as_deref()])
                    .flatten()
                    .collect();
                match self.candidate(paths) {
                    Candidate::Found(mut file) => {
                        file.duration = file
                            .duration
                            .or_else(|| whole_seconds(manifest.ended_at - manifest.started_at));
                        Candidate::Found(file)
                    }
                    Candidate::Nothing => {
                        Candidate::NotThere(format!("the manifest {name} names no file"))
                    }
                    other => other,
                }
            }
            Err(problem) => {
                warn!(egress.id = egress_id, file = %manifest.display(), problem, "manifest is not readable");
                Candidate::NotThere(format!("the manifest {name} {problem}"))
            }
        }
    }

    async fn ask_directory(&self, query: &EgressQuery) -> Resolution {
        let wanted = match query {
            EgressQuery::Id(id) => format!("the egress {id}"),
            EgressQuery::Room(room) => format!("an egress of the room {room}"),
        };
        let Some(directory) = &self.directory else {
            return Resolution::NotYet(format!("{wanted} has left no manifest in recordings/"));
        };
        let reports = match directory.find(query.clone()).await {
            Ok(reports) => reports,
            Err(error) => {
                warn!(error, "egress not asked for");
                return Resolution::NotYet(error);
            }
        };
        debug!(
            count = reports.len(),
            wanted = mask_numbers(&wanted),
            "egresses found"
        );
        let mut verdict = Resolution::NotYet(format!(
            "{wanted} is not known to the server and has left no manifest in recordings/"
        ));
        for report in reports {
            match report.progress {
                EgressProgress::Done => {
                    match self.candidate(report.paths.iter().map(String::as_str)) {
                        Candidate::Found(mut file) => {
                            file.duration = file.duration.or(report.duration);
                            return Resolution::Found(file);
                        }
                        Candidate::NotThere(what) => verdict = Resolution::NotYet(what),
                        Candidate::Nothing => {
                            verdict = Resolution::Lost(format!("{wanted} has made no file"))
                        }
                    }
                }
                EgressProgress::Running => {
                    verdict = Resolution::NotYet(format!("{wanted} has not ended"))
                }
                // One of several egresses of a room may have failed while another works.
                EgressProgress::Failed(reason) => {
                    if !matches!(verdict, Resolution::NotYet(ref what) if what.ends_with("has not ended"))
                    {
                        verdict = Resolution::Lost(format!("{wanted} has failed: {reason}"));
                    }
                }
            }
        }
        verdict
    }

    /// The first of the paths, each in every way it can be meant, that is a file with something in it.
    fn candidate<'a>(&self, paths: impl IntoIterator<Item = &'a str>) -> Candidate {
        let mut verdict = Candidate::Nothing;
        for given in paths.into_iter().filter(|path| !path.is_empty()) {
            for relative in self.meanings(given) {
                let path = match self.store.resolve(&relative) {
                    Ok(path) => path,
                    Err(error) => {
                        warn!("recording refused: {}", mask_numbers(&error.to_string()));
                        verdict = Candidate::NotThere(format!(
                            "the recording's path {given:?} is not inside the data folder"
                        ));
                        continue;
                    }
                };
                match fs::metadata(&path) {
                    Ok(meta) if meta.is_file() && meta.len() > 0 => {
                        let duration = oggopus_seconds(&path);
                        return Candidate::Found(RecordingFile {
                            relative,
                            path,
                            size: meta.len(),
                            duration,
                        });
                    }
                    Ok(meta) if meta.is_file() => {
                        verdict = Candidate::NotThere(format!("the recording {relative} is empty"));
                    }
                    _ if matches!(verdict, Candidate::Nothing) => {
                        verdict =
                            Candidate::NotThere(format!("the recording {relative} is not there"));
                    }
                    _ => {}
                }
            }
        }
        verdict
    }

    /// A path as somebody wrote it, as paths relative to the data folder: by the configured prefix, as it is when it is relative, and from
    /// its last `recordings/` on. An egress writes absolute paths of its own host, sometimes without the leading `/`.
    fn meanings(&self, given: &str) -> Vec<String> {
        let given = given.replace('\\', "/");
        let mut meanings = Vec::new();
        let prefix = self.config.egress_prefix.trim_matches('/');
        if !prefix.is_empty()
            && let Some(rest) = given
                .trim_start_matches('/')
                .strip_prefix(prefix)
                .and_then(|rest| rest.strip_prefix('/'))
        {
            meanings.push(format!(
                "{}/{rest}",
                self.config.local_prefix.trim_end_matches('/')
            ));
        }
        let inside_root = Path::new(&given)
            .strip_prefix(self.store.root())
            .ok()
            .and_then(Path::to_str);
        if let Some(rest) = inside_root {
            meanings.push(rest.to_owned());
        } else if given.starts_with("recordings/")
            || (meanings.is_empty() && !given.starts_with('/'))
        {
            meanings.push(given.clone());
        }
        if let Some(position) = given.rfind("/recordings/") {
            meanings.push(given[position + 1..].to_owned());
        }
        if meanings.is_empty() {
            // Absolute, and nothing maps it: the file itself may be mounted flat.
            let name = given.rsplit('/').next().unwrap_or_default();
            meanings.push(format!("recordings/{name}"));
        }
        meanings.dedup();
        meanings
    }
}

fn with_prefix(id: &str) -> String {
    if id.starts_with("EG_") {
        id.to_owned()
    } else {
        format!("EG_{id}")
    }
}

/// How to ask for the egress of a record: by its id; by the room when one was asked for and its id was lost with the process; not at all
/// when this process recorded, or nobody did.
fn egress_query(record: &CallRecord, egress_id: Option<&str>) -> Option<EgressQuery> {
    if let Some(id) = egress_id {
        return Some(EgressQuery::Id(id.to_owned()));
    }
    let recording = record.recording.as_ref()?;
    let lost =
        recording.source == RecordingSource::Egress && recording.state == RecordingState::Requested;
    lost.then(|| record.room.name.clone().map(EgressQuery::Room))
        .flatten()
}

/// What an egress writes beside its file.
#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    started_at: i64,
    #[serde(default)]
    ended_at: i64,
    #[serde(default)]
    files: Vec<ManifestFile>,
}

#[derive(Debug, Deserialize)]
struct ManifestFile {
    filename: Option<String>,
    location: Option<String>,
}

/// `None` when it is not there (yet).
fn read_manifest(path: &Path) -> Result<Option<Manifest>, String> {
    let size = match fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("can not be read: {error}")),
    };
    if size > MAX_MANIFEST_BYTES {
        return Err(format!("has {size} bytes, which is no manifest"));
    }
    let bytes = fs::read(path).map_err(|error| format!("can not be read: {error}"))?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| format!("is not an egress manifest: {error}"))
}

/// Length of an Ogg file by its own clock; nothing for other formats.
fn oggopus_seconds(path: &Path) -> Option<u64> {
    let duration = oggopus::duration(path).ok()?;
    Some(
        duration
            .saturating_add(Duration::from_millis(500))
            .as_secs(),
    )
}
