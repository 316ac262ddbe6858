//! Finding the recording of a call that has ended.
//!
//! In this order: the path in its record; the manifest that an egress leaves beside its file; what
//! the server's Egress API says about the egress, then about the room; and the file name that the
//! call requested. Each of them may name a path of the egress host, and none may lead out of the
//! folders of recordings ([`super::location`]).

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::Stream;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;
use tracing::{Span, debug, warn};

use crate::session::{
    CallRecord, PartState, RecordingEvidence, RecordingSource, RecordingState, SessionId, Watch,
    mask_numbers, sanitise,
};
use crate::store::{PathError, Store};

pub use super::directory::{
    EgressAnswer, EgressDirectory, EgressFile, EgressProgress, EgressQuery, EgressReport,
    LiveKitEgress,
};
pub use super::location::S3Location;

use super::RecordingConfig;
use super::location::{Meaning, NameRules, RECORDINGS, RecordingPath, local_folder};
use super::manifest::Manifest;
use super::s3::{S3Access, S3Object};

/// A manifest has a few hundred bytes; a larger file is no manifest.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// First pause between two scans for an expected recording; pauses grow up to
/// [`LONGEST_SCAN_PAUSE`].
const FIRST_SCAN_PAUSE: Duration = Duration::from_secs(1);
/// See [`FIRST_SCAN_PAUSE`].
pub(crate) const LONGEST_SCAN_PAUSE: Duration = Duration::from_secs(30);
/// Longest pause between two scans for a recording that is overdue.
const LONGEST_LATE_SCAN_PAUSE: Duration = Duration::from_secs(3600);
/// Pause between two scans of a file that nothing reports as complete.
const SECOND_SCAN: TimeDelta = TimeDelta::seconds(2);
/// How far the clocks of the egress host and ours may be apart.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::minutes(2);
/// How long a file that another machine has written may take to appear in a shared folder.
const PATIENCE_FOR_A_FOLDER: TimeDelta = TimeDelta::seconds(5);
/// Number of calls that are remembered as warned about. Beyond that all are forgotten, and some
/// warnings are repeated.
const MOST_WARNED: usize = 10_000;
/// Chunk size for reading a recording from disk: no more of it is in memory at a time.
const READ_BYTES: usize = 64 * 1024;

/// The result of a search for the recording of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// It is found and complete.
    Found(FoundRecording),
    /// Nobody recorded this call.
    NotRecorded,
    /// It is expected: the call data should wait for it.
    Wait {
        /// What is waited for.
        why: String,
        /// When to scan again; at the latest when the time allowed for it is over.
        scan_again: DateTime<Utc>,
        /// Bytes of a file that is there and may still grow.
        size_seen: Option<u64>,
        /// How long it has been waited for.
        watch: Watch,
    },
    /// It was not found in time: the call data goes without it.
    Missing {
        /// What was waited for.
        why: String,
        /// When to scan again, because it may still appear. `None`: the search is over.
        scan_again: Option<DateTime<Utc>>,
        /// Bytes of a file that is there and may still grow.
        size_seen: Option<u64>,
        /// How long it has been searched for.
        watch: Watch,
    },
    /// There will be none.
    Failed {
        /// Why.
        why: String,
        /// The source of this result.
        evidence: RecordingEvidence,
    },
}

impl Resolution {
    /// Writes the result into the record. Does not change the state of the delivery.
    pub fn note(&self, record: &mut CallRecord, now: DateTime<Utc>) {
        match self {
            Self::Found(found) => {
                record.files.recording = Some(found.name.clone());
                let part = &mut record.uploads.recording;
                part.size = Some(found.size);
                part.duration = found.duration;
                part.watch = Some(part.looked(now, true));
                record.recording_came_to(
                    RecordingState::Resolved,
                    now,
                    found.evidence,
                    found.flaw.clone(),
                );
            }
            Self::NotRecorded => {}
            Self::Wait {
                size_seen, watch, ..
            } => {
                record.uploads.recording.size = *size_seen;
                record.uploads.recording.watch = Some(*watch);
            }
            Self::Missing {
                why,
                size_seen,
                watch,
                ..
            } => {
                record.uploads.recording.size = *size_seen;
                record.uploads.recording.watch = Some(*watch);
                record.recording_came_to(
                    RecordingState::Missing,
                    now,
                    RecordingEvidence::Deadline,
                    Some(why.clone()),
                );
            }
            Self::Failed { why, evidence } => {
                record.recording_came_to(RecordingState::Failed, now, *evidence, Some(why.clone()));
            }
        }
    }
}

/// A recording that can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRecording {
    /// For the record: relative to the data folder, or `s3://bucket/key`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Seconds, if known.
    pub duration: Option<u64>,
    /// The source that led to it.
    pub evidence: RecordingEvidence,
    /// What is wrong with it, if it is the rest of a failed recording.
    pub flaw: Option<String>,
    place: Place,
}

/// Where the file or object is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    S3(S3Object),
}

/// The bytes of a recording, in chunks.
pub type RecordingStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

impl FoundRecording {
    /// Whether it is playable, as far as that can be told without reading all of it: an Ogg file
    /// must have a duration.
    fn is_sound(&self) -> bool {
        let ogg = [".ogg", ".oga", ".opus"];
        let here = matches!(self.place, Place::File(_));
        !here || self.duration.is_some() || !ogg.iter().any(|ending| self.name.ends_with(ending))
    }

    /// Its file name without the folder.
    pub fn file_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }

    /// Its path, if it is a file of this machine.
    pub fn file(&self) -> Option<&Path> {
        match &self.place {
            Place::File(path) => Some(path),
            Place::S3(_) => None,
        }
    }

    /// Opens it: exactly [`FoundRecording::size`] bytes, though its file may have grown since.
    ///
    /// # Errors
    /// A sentence for the log and the record.
    pub async fn open(&self) -> Result<RecordingStream, String> {
        match &self.place {
            Place::File(path) => {
                let file = tokio::fs::File::open(path)
                    .await
                    .map_err(|error| format!("failed to read {}: {error}", path.display()))?;
                Ok(Box::pin(ReaderStream::with_capacity(
                    file.take(self.size),
                    READ_BYTES,
                )))
            }
            Place::S3(object) => Ok(object.open()),
        }
    }
}

/// Finds recordings. Cheap to clone.
#[derive(Clone)]
pub struct RecordingResolver {
    store: Store,
    config: Arc<RecordingConfig>,
    directory: Option<Arc<dyn EgressDirectory>>,
    s3: S3Access,
    /// Calls for which a misplaced recording was already logged.
    warned: Arc<Mutex<HashSet<SessionId>>>,
}

impl std::fmt::Debug for RecordingResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordingResolver")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// The result of a scan.
#[derive(Debug)]
enum Scan {
    Found(FoundRecording),
    NotRecorded,
    /// Expected, but not complete yet. `why` says what is waited for.
    NotYet {
        why: String,
        size_seen: Option<u64>,
    },
    /// A server or disk did not answer, so nothing is known. The text says which.
    Blind(String),
    Failed {
        why: String,
        evidence: RecordingEvidence,
    },
}

/// The result for the names from one source.
#[derive(Debug)]
enum Candidate {
    Found(FoundRecording),
    /// Named, but the file is empty, growing, absent or not allowed.
    NotYet {
        why: String,
        size_seen: Option<u64>,
    },
    /// Named, but its place could not be read.
    Blind(String),
    /// Nothing named.
    Nothing,
}

impl Candidate {
    fn not_yet(why: String) -> Self {
        Self::NotYet {
            why,
            size_seen: None,
        }
    }

    /// Which of two incomplete results to report: a file that exists says more than one that does
    /// not.
    fn says_more_than(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::NotYet { .. } | Self::Blind(_), Self::Nothing) => true,
            // An unreadable place may hold the file.
            (
                Self::Blind(_),
                Self::NotYet {
                    size_seen: None, ..
                },
            )
            | (
                Self::NotYet {
                    size_seen: Some(_), ..
                },
                Self::Blind(_),
            ) => true,
            (
                Self::NotYet { size_seen, .. },
                Self::NotYet {
                    size_seen: known, ..
                },
            ) => size_seen.is_some() && known.is_none(),
            _ => false,
        }
    }
}

/// When a file counts as complete.
#[derive(Debug, Clone, Copy)]
enum Whole {
    /// Its writer reports that it has ended, at this size if known.
    Ended { size: Option<u64> },
    /// Nothing reports its end: it must have the same size at two scans.
    SeenBefore { size: Option<u64> },
}

/// The rules for a file that a source names.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    whole: Whole,
    evidence: RecordingEvidence,
}

impl RecordingResolver {
    /// `directory` is the server's Egress API; `None` without a server.
    pub fn new(
        store: Store,
        config: RecordingConfig,
        directory: Option<Arc<dyn EgressDirectory>>,
    ) -> Self {
        Self {
            store,
            s3: S3Access::new(config.s3.clone()),
            config: Arc::new(config),
            directory,
            warned: Arc::default(),
        }
    }

    /// Searches for the recording of a call that has ended.
    pub async fn resolve(&self, record: &CallRecord, now: DateTime<Utc>) -> Resolution {
        let (why, size_seen, could_see) = match self.scan(record, now).await {
            Scan::Found(found) => return Resolution::Found(found),
            Scan::NotRecorded => return Resolution::NotRecorded,
            Scan::Failed { why, evidence } => return Resolution::Failed { why, evidence },
            Scan::NotYet { why, size_seen } => (why, size_seen, true),
            // The size from the previous scan is still the latest.
            Scan::Blind(why) => (why, record.uploads.recording.size, false),
        };
        patience(&self.config, record, now, why, size_seen, could_see)
    }

    /// How long the call data waits for its recording to be found and uploaded.
    pub fn wait(&self) -> Duration {
        Duration::from_secs(self.config.wait_s)
    }

    async fn scan(&self, record: &CallRecord, now: DateTime<Utc>) -> Scan {
        let not_there = match self.scan_folder(record, now).await {
            Candidate::Found(found) => return Scan::Found(found),
            not_there => not_there,
        };
        if !is_egress(record) {
            return without_egress(record, not_there);
        }
        let asked = self.ask_directory(record, now).await;
        match (asked, not_there) {
            // The egress has failed, but its file exists: the next scan shows whether it still
            // grows.
            (
                Scan::Failed { why, .. },
                Candidate::NotYet {
                    why: here,
                    size_seen: Some(size),
                },
            ) if size > 0 => Scan::NotYet {
                why: format!("{why}, but {here}"),
                size_seen: Some(size),
            },
            (asked @ (Scan::Found(_) | Scan::Failed { .. }), _) => asked,
            // The file may be where the server would say, if it answered.
            (
                Scan::Blind(_),
                Candidate::NotYet {
                    why,
                    size_seen: None,
                },
            )
            | (_, Candidate::Blind(why)) => Scan::Blind(why),
            // An incomplete file says more than a server without a report.
            (_, Candidate::NotYet { why, size_seen }) => Scan::NotYet { why, size_seen },
            (asked, _) => asked,
        }
    }

    /// The search without the LiveKit server.
    async fn scan_folder(&self, record: &CallRecord, now: DateTime<Utc>) -> Candidate {
        let recording = record.recording.as_ref();
        let seen_before = seen_before(record, now);
        let mut verdict = Candidate::Nothing;
        if let Some(path) = &record.files.recording {
            let ours = recording.is_some_and(|known| known.source == RecordingSource::Local);
            let resolved = recording.is_some_and(|known| known.state == RecordingState::Resolved);
            let wanted = Wanted {
                // A local recording is complete when the record exists.
                whole: if ours || resolved {
                    Whole::Ended { size: None }
                } else {
                    seen_before
                },
                evidence: RecordingEvidence::Record,
            };
            match self.candidate([path.as_str()], None, wanted).await {
                Candidate::Found(mut found) => {
                    if ours {
                        // An incomplete recording is worth more than none.
                        found.flaw = recording.and_then(|known| known.error.clone());
                    }
                    return Candidate::Found(found);
                }
                Candidate::Nothing => {}
                not_yet => verdict = not_yet,
            }
        }
        if let Some(id) = record.egress_id() {
            match self.look_in_manifest(&with_prefix(id), record).await {
                Candidate::Nothing => {}
                Candidate::Found(found) => return Candidate::Found(found),
                not_yet => verdict = not_yet,
            }
        }
        // Its name contains our session id, so it belongs to this call.
        if let Some(known) = recording
            && known.source == RecordingSource::Egress
            && let Some(name) = &known.recording_filename
            && name.contains(record.session_id.as_str())
        {
            let wanted = Wanted {
                whole: seen_before,
                evidence: RecordingEvidence::Record,
            };
            match self.candidate([name.as_str()], None, wanted).await {
                Candidate::Found(mut found) => {
                    found.flaw = self.failure_of(record).await;
                    if found.flaw.is_none() || found.is_sound() {
                        return Candidate::Found(found);
                    }
                }
                grows @ Candidate::NotYet {
                    size_seen: Some(_), ..
                } => return grows,
                blind @ Candidate::Blind(_) => return blind,
                _ => {}
            }
        }
        verdict
    }

    /// For a recording that was found by its name: why its egress failed, if it did, because the
    /// file is then incomplete.
    async fn failure_of(&self, record: &CallRecord) -> Option<String> {
        let id = with_prefix(record.egress_id()?);
        let asked = self.directory.as_ref()?.find(EgressQuery::Id(id.clone()));
        match asked.await.ok()?.pop()?.progress {
            EgressProgress::Failed(reason) => Some(format!("the egress {id} has failed: {reason}")),
            _ => None,
        }
    }

    /// Where an egress may have written its manifest: in the folders of recordings, and beside the
    /// requested file.
    fn manifest_places(&self, egress_id: &str, record: &CallRecord) -> Vec<RecordingPath> {
        let name = format!("{}.json", sanitise(egress_id));
        let folders = [local_folder(&self.config.local_prefix), RECORDINGS];
        let mut places: Vec<RecordingPath> = folders
            .map(|folder| RecordingPath {
                folder: folder.to_owned(),
                rest: name.clone(),
            })
            .into();
        let asked_for = record
            .recording
            .as_ref()
            .and_then(|recording| recording.recording_filename.as_deref());
        if let Some(Meaning::Files(files)) = asked_for.map(|name| self.meaning(name, None)) {
            places.extend(files.into_iter().filter_map(|file| {
                let (folder, _) = file.rest.rsplit_once('/')?;
                Some(RecordingPath {
                    rest: format!("{folder}/{name}"),
                    folder: file.folder,
                })
            }));
        }
        places.dedup();
        places
    }

    /// `recordings/<egress id>.json`, which an egress writes after its file.
    async fn look_in_manifest(&self, egress_id: &str, record: &CallRecord) -> Candidate {
        let places = self.manifest_places(egress_id, record);
        let store = self.store.clone();
        let first = move || {
            let read = |file: RecordingPath| match read_manifest(&store, &file) {
                Ok(manifest) => Some((file.to_string(), Ok(manifest?))),
                Err(problem) => Some((file.to_string(), Err(problem))),
            };
            places.into_iter().find_map(read)
        };
        let (name, manifest) = match on_disk(first).await {
            None => return Candidate::Nothing,
            Some((name, Ok(manifest))) => (name, manifest),
            Some((name, Err(problem))) => {
                warn!(
                    egress.id = egress_id,
                    file = name,
                    problem,
                    "manifest is not readable"
                );
                return Candidate::not_yet(format!("the manifest {name} {problem}"));
            }
        };
        if manifest
            .egress_id
            .as_deref()
            .is_some_and(|inside| inside != egress_id)
        {
            warn!(
                egress.id = egress_id,
                file = name,
                "manifest refused: it is another egress's"
            );
            return Candidate::not_yet(format!("the manifest {name} is another egress's"));
        }
        let mut verdict = Candidate::Nothing;
        for file in &manifest.files {
            let wanted = Wanted {
                whole: Whole::Ended { size: file.size },
                evidence: RecordingEvidence::Manifest,
            };
            match self.candidate(file.names(), None, wanted).await {
                Candidate::Found(mut found) => {
                    found.duration = found.duration.or(file.duration).or(manifest.duration);
                    return Candidate::Found(found);
                }
                Candidate::Nothing => {}
                not_yet => {
                    let said = file.names().last().unwrap_or_default();
                    verdict = self.misplaced(not_yet, record, &format!("the manifest {name}"), said)
                }
            }
        }
        match (verdict, manifest.no_file) {
            (Candidate::Nothing, Some(other)) => Candidate::not_yet(format!(
                "the manifest {name} names {other} and no single file, which is what can be delivered"
            )),
            (Candidate::Nothing, None) => {
                Candidate::not_yet(format!("the manifest {name} names no file"))
            }
            (verdict, _) => verdict,
        }
    }

    /// Logs, once per call, where a recording should be that was written but is not here: the
    /// settings are wrong or a folder is not mounted, and every call of this worker may be
    /// affected.
    fn misplaced(
        &self,
        not_there: Candidate,
        record: &CallRecord,
        told_by: &str,
        place: &str,
    ) -> Candidate {
        let Candidate::NotYet {
            why,
            size_seen: None,
        } = not_there
        else {
            return not_there;
        };
        let why = format!("{why}, though {told_by} says that it is written, at {place:?}");
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.len() >= MOST_WARNED {
            warned.clear();
        }
        if warned.insert(record.session_id.clone()) {
            warn!(
                place = mask_numbers(place),
                "the recording is not where it should be: {}; that place must be visible here as recording.local_prefix \
                 ({}, with recording.egress_prefix for its folder there) or be in recording.s3.buckets; \
                 `voicebot check --egress` tries it",
                mask_numbers(&why),
                self.config.local_prefix
            );
        }
        Candidate::not_yet(why)
    }

    /// Asks the server's Egress API, by the egress's id, then by the room.
    async fn ask_directory(&self, record: &CallRecord, now: DateTime<Utc>) -> Scan {
        let id = record.egress_id().map(with_prefix);
        let wanted = match (&id, &record.room.name) {
            (Some(id), _) => format!("the egress {id}"),
            (None, Some(room)) => format!("an egress of the room {room}"),
            (None, None) => "the egress, of which neither id nor room is known,".to_owned(),
        };
        let Some(directory) = &self.directory else {
            return not_yet(format!("{wanted} has left no manifest in recordings/"));
        };
        let mut reports = Vec::new();
        if let Some(id) = id {
            match directory.find(EgressQuery::Id(id)).await {
                Ok(found) => reports = found,
                Err(error) => return not_asked(error),
            }
        }
        if reports.is_empty()
            && let Some(room) = record.room.name.clone()
        {
            match directory.find(EgressQuery::Room(room)).await {
                Ok(found) => reports.extend(found.into_iter().filter(|one| belongs(one, record))),
                Err(error) => return not_asked(error),
            }
        }
        debug!(
            count = reports.len(),
            wanted = mask_numbers(&wanted),
            "egresses found"
        );
        if reports.is_empty() {
            return not_yet(format!(
                "{wanted} is not known to the server and has left no manifest in recordings/"
            ));
        }
        self.judge_all(reports, &wanted, record, now).await
    }

    /// Combines the reports of several egresses of a room: a found file counts most, then one that
    /// may still come.
    async fn judge_all(
        &self,
        reports: Vec<EgressReport>,
        wanted: &str,
        record: &CallRecord,
        now: DateTime<Utc>,
    ) -> Scan {
        let mut verdict: Option<Scan> = None;
        for report in reports {
            match (self.judge(report, wanted, record, now).await, &verdict) {
                (found @ Scan::Found(_), _) => return found,
                (Scan::Failed { .. }, Some(Scan::NotYet { .. } | Scan::Blind(_))) => {}
                (scan, _) => verdict = Some(scan),
            }
        }
        verdict.unwrap_or_else(|| not_yet(format!("{wanted} is not known to the server")))
    }

    /// Evaluates one report. A failed egress may still have written its file, in part or
    /// completely. That file is used if it exists and is playable; a file that the egress does not
    /// report as written is not waited for.
    async fn judge(
        &self,
        report: EgressReport,
        wanted: &str,
        record: &CallRecord,
        now: DateTime<Utc>,
    ) -> Scan {
        let flaw = match &report.progress {
            EgressProgress::Running => return not_yet(format!("{wanted} has not ended")),
            EgressProgress::Done => None,
            EgressProgress::Failed(reason) => Some(format!("{wanted} has failed: {reason}")),
        };
        // A file in the backup storage is complete: only the upload has failed.
        let doubtful = flaw.is_some() && !report.backup_storage_used;
        let found = self
            .look_for_files(&report, doubtful, wanted, record, now)
            .await;
        let written = report.files.iter().any(EgressFile::is_written);
        match (found, flaw) {
            (Candidate::Found(mut found), flaw) => {
                found.flaw = flaw;
                Scan::Found(found)
            }
            (Candidate::Blind(why), _) => Scan::Blind(why),
            (Candidate::NotYet { why, size_seen }, None) => Scan::NotYet { why, size_seen },
            (Candidate::NotYet { why, size_seen }, Some(flaw)) => {
                let among = match report.backup_storage_used {
                    true => "from its backup storage, ",
                    false => "",
                };
                let why = format!("{flaw}; {among}{why}");
                match report.backup_storage_used || written || size_seen.is_some() {
                    true => Scan::NotYet { why, size_seen },
                    false => failed(flaw),
                }
            }
            (Candidate::Nothing, Some(flaw)) => failed(flaw),
            (Candidate::Nothing, None) => failed(match &report.no_file {
                Some(other) => format!(
                    "{wanted} has made {other}, and a single file is what can be delivered: ask for a file output"
                ),
                None => format!("{wanted} has made no file"),
            }),
        }
    }

    async fn look_for_files(
        &self,
        report: &EgressReport,
        doubtful: bool,
        whose: &str,
        record: &CallRecord,
        now: DateTime<Utc>,
    ) -> Candidate {
        let mut verdict = Candidate::Nothing;
        // A file that was just written may not be visible in a shared folder yet.
        let ended_at = report.ended_at.or(record.ended_at());
        let settled = ended_at.is_none_or(|ended| now - ended >= PATIENCE_FOR_A_FOLDER);
        for file in &report.files {
            let wanted = Wanted {
                whole: Whole::Ended { size: file.size },
                evidence: RecordingEvidence::EgressApi,
            };
            let names = [file.filename.as_str(), file.location.as_str()];
            match self.candidate(names, file.bucket.as_deref(), wanted).await {
                // The file will not grow: treat it as absent.
                Candidate::Found(found) if doubtful && !found.is_sound() => {
                    warn!(
                        file = mask_numbers(&found.name),
                        "what a failed egress has left cannot be read as a recording"
                    );
                }
                Candidate::Found(mut found) => {
                    let unsaid = doubtful && file.size.is_none();
                    let grows = incomplete(&found.name, found.size, seen_before(record, now));
                    match grows.filter(|_| unsaid) {
                        Some(why) => {
                            verdict = Candidate::NotYet {
                                why,
                                size_seen: Some(found.size),
                            }
                        }
                        None => {
                            found.duration = found.duration.or(file.duration);
                            return Candidate::Found(found);
                        }
                    }
                }
                Candidate::Nothing => {}
                not_yet if file.is_written() && settled => {
                    let place = match file.location.as_str() {
                        "" => &file.filename,
                        location => location,
                    };
                    verdict = self.misplaced(not_yet, record, whose, place);
                }
                not_yet => verdict = not_yet,
            }
        }
        verdict
    }

    /// The first complete recording among the names, each tried with all its meanings. Refused
    /// names are logged.
    async fn candidate<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        bucket: Option<&str>,
        wanted: Wanted,
    ) -> Candidate {
        let mut verdict = Candidate::Nothing;
        let mut tried = HashSet::new();
        for name in names {
            if name.is_empty() || !tried.insert(name) {
                continue;
            }
            let candidate = match self.meaning(name, bucket) {
                Meaning::Files(paths) => {
                    let store = self.store.clone();
                    on_disk(move || first_file(&store, &paths, wanted)).await
                }
                Meaning::S3(location) => self.object(&location, wanted.evidence).await,
                Meaning::Refused(why) => {
                    let name = mask_numbers(&format!("{name:?}"));
                    warn!(name, why, "recording refused");
                    Candidate::not_yet(format!("the recording's name {name} {why}"))
                }
            };
            match candidate {
                Candidate::Found(found) => return Candidate::Found(found),
                Candidate::Nothing => {}
                // Later names win: the requested name comes first, the reported location last.
                not_yet if !verdict.says_more_than(&not_yet) => verdict = not_yet,
                _ => {}
            }
        }
        verdict
    }

    fn meaning(&self, name: &str, bucket: Option<&str>) -> Meaning {
        let root = self.store.root().to_string_lossy();
        let rules = NameRules {
            egress_prefix: &self.config.egress_prefix,
            local_prefix: &self.config.local_prefix,
            root: &root,
            buckets: self.s3.buckets(),
        };
        match bucket {
            Some(bucket) if !name.contains("://") => rules.object(bucket, name),
            _ => rules.meaning(name),
        }
    }

    /// S3 shows an object only once it is complete.
    async fn object(&self, location: &S3Location, evidence: RecordingEvidence) -> Candidate {
        match self.s3.head(location).await {
            Ok(Some(object)) if object.size > 0 => Candidate::Found(FoundRecording {
                name: location.to_string(),
                size: object.size,
                duration: None,
                evidence,
                flaw: None,
                place: Place::S3(object),
            }),
            Ok(Some(_)) => Candidate::NotYet {
                why: format!("the recording {location} is empty"),
                size_seen: Some(0),
            },
            Ok(None) => Candidate::not_yet(format!("the recording {location} is not there")),
            Err(error) => {
                let error = mask_numbers(&error);
                warn!(error, "failed to search for a recording");
                Candidate::Blind(error)
            }
        }
    }
}

/// Runs blocking disk work on a thread for it, since the folder may be on another machine. Its log
/// lines keep the span of the call.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(result) => result,
        // Only a panic or the shutdown of the runtime ends here; neither may be hidden.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

/// Reads a manifest. `None` when the file does not exist (yet).
fn read_manifest(store: &Store, file: &RecordingPath) -> Result<Option<Manifest>, String> {
    let path = path_of(store, file).map_err(|error| format!("is refused: it {error}"))?;
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let meta = match fs::metadata(&path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    if !meta.is_file() {
        return Err("is no file".to_owned());
    }
    if meta.len() > MAX_MANIFEST_BYTES {
        return Err(format!("has {} bytes, which is no manifest", meta.len()));
    }
    Manifest::read(&fs::read(&path).map_err(unreadable)?).map(Some)
}

/// Its path on this machine, if no symbolic link leads out of its folder.
fn path_of(store: &Store, file: &RecordingPath) -> Result<PathBuf, PathError> {
    match file.folder.starts_with('/') {
        true => store.resolve_outside(Path::new(&file.folder), &file.rest),
        false => store.resolve(&file.to_string()),
    }
}

/// The first complete recording among the files.
fn first_file(store: &Store, paths: &[RecordingPath], wanted: Wanted) -> Candidate {
    let mut verdict = Candidate::Nothing;
    for path in paths {
        match look_at_file(store, path, wanted) {
            Candidate::Found(found) => return Candidate::Found(found),
            other if other.says_more_than(&verdict) => verdict = other,
            _ => {}
        }
    }
    verdict
}

fn look_at_file(store: &Store, file: &RecordingPath, wanted: Wanted) -> Candidate {
    let name = file.to_string();
    let path = match path_of(store, file) {
        Ok(path) => path,
        Err(error) => {
            let error = mask_numbers(&error.to_string());
            warn!(error, "recording refused");
            return Candidate::not_yet(format!(
                "the recording {name} leads out of the folder {}",
                file.folder
            ));
        }
    };
    let size = match fs::metadata(&path) {
        Ok(meta) if meta.is_file() => meta.len(),
        Ok(_) => return Candidate::not_yet(format!("the recording {name} is no file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Candidate::not_yet(format!("the recording {name} is not there"));
        }
        Err(error) => {
            return Candidate::Blind(format!("the recording {name} cannot be read: {error}"));
        }
    };
    if let Some(why) = incomplete(&name, size, wanted.whole) {
        return Candidate::NotYet {
            why,
            size_seen: Some(size),
        };
    }
    Candidate::Found(FoundRecording {
        name,
        size,
        duration: ogg_seconds(&path),
        evidence: wanted.evidence,
        flaw: None,
        place: Place::File(path),
    })
}

/// Why a file of this size is incomplete; `None` when it is complete.
fn incomplete(name: &str, size: u64, whole: Whole) -> Option<String> {
    if size == 0 {
        return Some(format!("the recording {name} is empty"));
    }
    match whole {
        Whole::Ended { size: Some(end) } if size < end => Some(format!(
            "the recording {name} has {size} of its {end} bytes"
        )),
        Whole::Ended { .. } => None,
        Whole::SeenBefore { size: Some(before) } if before == size => None,
        Whole::SeenBefore { .. } => Some(format!(
            "the recording {name} may still grow ({size} bytes)"
        )),
    }
}

/// How to go on after a scan without a result: wait until `recording.wait_s`, then search as
/// missing until `recording.late_s`. Both limits count only time in which scans were made
/// ([`Watch`]), not the time since the call.
fn patience(
    config: &RecordingConfig,
    record: &CallRecord,
    now: DateTime<Utc>,
    why: String,
    size_seen: Option<u64>,
    could_see: bool,
) -> Resolution {
    let watch = record.uploads.recording.looked(now, could_see);
    let watched = watch.watched();
    // Pauses grow with the time of the search. A file that grows or is new is scanned again soon.
    let grows =
        size_seen.is_some_and(|size| size > 0) && size_seen != record.uploads.recording.size;
    let next = |longest: Duration, left: Duration| match grows {
        true => now + SECOND_SCAN,
        false => later(
            now,
            (watched / 4).clamp(FIRST_SCAN_PAUSE, longest).min(left),
        ),
    };
    let wait = Duration::from_secs(config.wait_s);
    if watched < wait {
        return Resolution::Wait {
            why,
            scan_again: next(LONGEST_SCAN_PAUSE, wait.saturating_sub(watched)),
            size_seen,
            watch,
        };
    }
    let late = Duration::from_secs(config.late_s.max(config.wait_s));
    let scan_again = match watch.left_to_give_up(late) {
        // A growing file is scanned until it is complete, even after the limit.
        Duration::ZERO if grows => Some(later(now, LONGEST_LATE_SCAN_PAUSE)),
        Duration::ZERO => None,
        left => Some(next(LONGEST_LATE_SCAN_PAUSE, left)),
    };
    let since_end = record
        .ended_at()
        .map(|end| {
            format!(
                "{} s after the call ended and ",
                (now - end).num_seconds().max(0)
            )
        })
        .unwrap_or_default();
    Resolution::Missing {
        why: format!(
            "{why}, {since_end}after {} s of searching",
            watched.as_secs()
        ),
        scan_again,
        size_seen,
        watch,
    }
}

fn later(now: DateTime<Utc>, pause: Duration) -> DateTime<Utc> {
    now + TimeDelta::from_std(pause).unwrap_or(TimeDelta::hours(1))
}

fn not_yet(why: String) -> Scan {
    Scan::NotYet {
        why,
        size_seen: None,
    }
}

fn not_asked(error: String) -> Scan {
    warn!(error, "failed to ask the Egress API");
    Scan::Blind(error)
}

fn failed(why: String) -> Scan {
    Scan::Failed {
        why,
        evidence: RecordingEvidence::EgressApi,
    }
}

/// The rule for a file that nothing reports as complete: the same size as at the previous scan.
fn seen_before(record: &CallRecord, now: DateTime<Utc>) -> Whole {
    let part = &record.uploads.recording;
    let last_scan = part.watch.and_then(|watch| watch.last_scan);
    // After a hurried scan too little time may have passed for the file to grow.
    let long_enough = last_scan.is_none_or(|last| now < last || now - last >= SECOND_SCAN);
    let waits = matches!(part.state, PartState::Waiting | PartState::Missing);
    Whole::SeenBefore {
        size: part.size.filter(|_| waits && long_enough),
    }
}

fn with_prefix(id: &str) -> String {
    if id.starts_with("EG_") {
        id.to_owned()
    } else {
        format!("EG_{id}")
    }
}

/// Whether to ask the Egress API: the egress's id is known, or an egress was requested and the
/// process died before it wrote the id.
fn is_egress(record: &CallRecord) -> bool {
    record.egress_id().is_some()
        || record.recording.as_ref().is_some_and(|recording| {
            recording.source == RecordingSource::Egress
                && matches!(
                    recording.state,
                    RecordingState::Requested | RecordingState::Missing
                )
        })
}

/// The result for a call without an egress.
fn without_egress(record: &CallRecord, found: Candidate) -> Scan {
    let failed = |why: String| Scan::Failed {
        why,
        evidence: RecordingEvidence::Call,
    };
    match (found, &record.recording) {
        (Candidate::Found(found), _) => Scan::Found(found),
        (Candidate::Blind(why), _) => Scan::Blind(why),
        (Candidate::NotYet { why, .. }, Some(known)) if known.source == RecordingSource::Local => {
            failed(match &known.error {
                Some(error) => format!("{why}: {error}"),
                None => why,
            })
        }
        (Candidate::NotYet { why, size_seen }, _) => Scan::NotYet { why, size_seen },
        (Candidate::Nothing, Some(known)) => failed(match &known.error {
            Some(error) => error.clone(),
            None => "the recording was started, but nothing tells where it is".to_owned(),
        }),
        (Candidate::Nothing, None) => Scan::NotRecorded,
    }
}

/// Whether an egress of a room with this name belongs to this call: room names are reused, and the
/// server keeps egresses for a day.
fn belongs(report: &EgressReport, record: &CallRecord) -> bool {
    if let Some(sid) = record.room.sid.as_deref().filter(|sid| !sid.is_empty())
        && !report.room_id.is_empty()
    {
        return report.room_id == sid;
    }
    let Some(started_at) = report.started_at else {
        return true;
    };
    let not_before = record.timestamps.call_start.map(|at| at - CLOCK_TOLERANCE);
    let not_after = record.ended_at().map(|at| at + CLOCK_TOLERANCE);
    not_before.is_none_or(|at| started_at >= at) && not_after.is_none_or(|at| started_at <= at)
}

/// Duration of an Ogg file from its granule positions, in seconds; `None` for other formats.
fn ogg_seconds(path: &std::path::Path) -> Option<u64> {
    let duration = oggopus::duration(path).ok()?;
    Some(
        duration
            .saturating_add(Duration::from_millis(500))
            .as_secs(),
    )
}
