//! The Egress API of the LiveKit server (`ListEgress`). The server forgets an egress a day after
//! its end.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use chrono::{DateTime, Utc};
use livekit_api::services::egress::{EgressClient, EgressListFilter, EgressListOptions};
use livekit_protocol as proto;

use super::manifest::whole_seconds;

/// How long the server may take to answer; the next pass asks again.
const API_TIMEOUT: Duration = Duration::from_secs(5);

/// The server's report about one egress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressReport {
    /// Its id.
    pub egress_id: String,
    /// Server id of its room.
    pub room_id: String,
    /// When it was started.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Its progress.
    pub progress: EgressProgress,
    /// The files that it has written or is to write.
    pub files: Vec<EgressFile>,
    /// What it produces instead of a file, such as a playlist of segments.
    pub no_file: Option<String>,
    /// Whether the upload failed and the files are in the egress's backup storage.
    pub backup_storage_used: bool,
}

/// A file of an egress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressFile {
    /// The requested path.
    pub filename: String,
    /// Where the egress has stored it.
    pub location: String,
    /// The requested S3 bucket.
    pub bucket: Option<String>,
    /// Bytes, once it is written.
    pub size: Option<u64>,
    /// Seconds, once it is written.
    pub duration: Option<u64>,
}

impl EgressFile {
    /// Whether the egress reports the file as written, not only as requested.
    pub fn is_written(&self) -> bool {
        self.size.is_some() || !self.location.is_empty()
    }
}

/// The progress of an egress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum EgressProgress {
    /// Starting, active or ending.
    #[default]
    Running,
    /// Complete, or stopped at a limit, which also leaves a usable file.
    Done,
    /// Failed or aborted, with the server's reason.
    Failed(String),
}

/// A query by an egress's id or, if that is not known, by the room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressQuery {
    /// `EG_…`
    Id(String),
    /// The room's name.
    Room(String),
}

/// The future of one query.
pub type EgressAnswer<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<EgressReport>, String>> + Send + 'a>>;

/// A source of egress reports. A trait, so that records can be delivered without a LiveKit server.
pub trait EgressDirectory: Send + Sync {
    /// The matching egresses. The error is a message for the log and the record.
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

/// Reads an `EgressInfo` in any of its forms: with results in the current lists, with the single
/// older field (`EgressInfo.result`, which newer servers may still fill), or with only the request.
pub(super) fn report(info: &proto::EgressInfo) -> EgressReport {
    let outputs = requested_outputs(info);
    let bucket = outputs.iter().find_map(|output| output.bucket.clone());
    let mut files: Vec<EgressFile> = file_results(info)
        .map(|file| EgressFile {
            filename: file.filename.clone(),
            location: file.location.clone(),
            bucket: bucket.clone(),
            size: u64::try_from(file.size).ok().filter(|size| *size > 0),
            duration: whole_seconds(file.duration)
                .or_else(|| whole_seconds(file.ended_at.checked_sub(file.started_at)?)),
        })
        .collect();
    let nothing_told = files
        .iter()
        .all(|file| file.filename.is_empty() && file.location.is_empty());
    if nothing_told {
        // A failed egress may have written to the requested path. Paths with templates are skipped:
        // only the egress can fill them in.
        let asked_for = outputs
            .into_iter()
            .filter(|output| !output.filepath.is_empty() && !output.filepath.contains('{'));
        files.extend(asked_for.map(|output| EgressFile {
            filename: output.filepath,
            bucket: output.bucket,
            ..EgressFile::default()
        }));
    }
    EgressReport {
        egress_id: info.egress_id.clone(),
        room_id: info.room_id.clone(),
        started_at: nanoseconds(info.started_at),
        ended_at: nanoseconds(info.ended_at),
        progress: progress(info),
        files,
        no_file: no_file(info),
        backup_storage_used: info.backup_storage_used,
    }
}

/// A time of the egress; zero is protobuf's "not set".
pub(super) fn nanoseconds(time: i64) -> Option<DateTime<Utc>> {
    (time > 0).then(|| DateTime::from_timestamp_nanos(time))
}

fn progress(info: &proto::EgressInfo) -> EgressProgress {
    use proto::EgressStatus as Status;
    let reason = || match info.error.as_str() {
        "" if info.details.is_empty() => "the server gives no reason".to_owned(),
        "" => info.details.clone(),
        error => error.to_owned(),
    };
    match Status::try_from(info.status) {
        Ok(Status::EgressComplete | Status::EgressLimitReached) => EgressProgress::Done,
        Ok(Status::EgressFailed | Status::EgressAborted) => EgressProgress::Failed(reason()),
        Ok(Status::EgressEnding) => EgressProgress::Running,
        // The last update of an egress may be lost on its route to the server (livekit#2308), and a
        // later version may have other states.
        Ok(Status::EgressStarting | Status::EgressActive) | Err(_) => match info.ended_at > 0 {
            true if info.error.is_empty() => EgressProgress::Done,
            true => EgressProgress::Failed(reason()),
            false => EgressProgress::Running,
        },
    }
}

/// The files of an egress, from either field.
pub(super) fn file_results(info: &proto::EgressInfo) -> impl Iterator<Item = &proto::FileInfo> {
    #[expect(deprecated, reason = "older servers fill only this")]
    let before = match &info.result {
        Some(proto::egress_info::Result::File(file)) if info.file_results.is_empty() => Some(file),
        _ => None,
    };
    info.file_results.iter().chain(before)
}

/// Output of an egress that is no recording file.
fn no_file(info: &proto::EgressInfo) -> Option<String> {
    let segments = |segments: &proto::SegmentsInfo| {
        let playlist = match segments.playlist_location.as_str() {
            "" => &segments.playlist_name,
            location => location,
        };
        format!(
            "a playlist of {} segments ({playlist})",
            segments.segment_count
        )
    };
    #[expect(deprecated, reason = "older servers fill only this")]
    let before = match &info.result {
        Some(proto::egress_info::Result::Segments(made)) => Some(segments(made)),
        Some(proto::egress_info::Result::Stream(_)) => Some("a stream".to_owned()),
        _ => None,
    };
    let lists = info
        .segment_results
        .first()
        .map(segments)
        .or_else(|| (!info.stream_results.is_empty()).then(|| "a stream".to_owned()))
        .or_else(|| (!info.image_results.is_empty()).then(|| "images".to_owned()));
    lists.or(before)
}

/// A requested file.
struct RequestedOutput {
    filepath: String,
    bucket: Option<String>,
}

/// The files and buckets that the request names. The server keeps both when it blanks the keys.
fn requested_outputs(info: &proto::EgressInfo) -> Vec<RequestedOutput> {
    use proto::egress_info::Request;
    use proto::encoded_file_output::Output;
    use proto::storage_config::Provider;
    let encoded = |output: &proto::EncodedFileOutput| RequestedOutput {
        filepath: output.filepath.clone(),
        bucket: match &output.output {
            Some(Output::S3(s3)) => Some(s3.bucket.clone()),
            _ => None,
        },
    };
    let lists = |outputs: &[proto::EncodedFileOutput],
                 before: Option<&proto::EncodedFileOutput>| {
        outputs.iter().chain(before).map(encoded).collect()
    };
    let unified = |outputs: &[proto::Output], storage: Option<&proto::StorageConfig>| {
        let file = |output: &proto::Output| match &output.config {
            Some(proto::output::Config::File(file)) => {
                let storage = output.storage.as_ref().or(storage);
                Some(RequestedOutput {
                    filepath: file.filepath.clone(),
                    bucket: match storage.and_then(|storage| storage.provider.as_ref()) {
                        Some(Provider::S3(s3)) => Some(s3.bucket.clone()),
                        _ => None,
                    },
                })
            }
            _ => None,
        };
        outputs.iter().filter_map(file).collect()
    };
    #[expect(deprecated, reason = "older clients ask for their one file this way")]
    match &info.request {
        Some(Request::RoomComposite(request)) => {
            use proto::room_composite_egress_request::Output;
            let before = match &request.output {
                Some(Output::File(output)) => Some(output),
                _ => None,
            };
            lists(&request.file_outputs, before)
        }
        Some(Request::Web(request)) => {
            use proto::web_egress_request::Output;
            let before = match &request.output {
                Some(Output::File(output)) => Some(output),
                _ => None,
            };
            lists(&request.file_outputs, before)
        }
        Some(Request::TrackComposite(request)) => {
            use proto::track_composite_egress_request::Output;
            let before = match &request.output {
                Some(Output::File(output)) => Some(output),
                _ => None,
            };
            lists(&request.file_outputs, before)
        }
        Some(Request::Participant(request)) => lists(&request.file_outputs, None),
        Some(Request::Track(request)) => match &request.output {
            Some(proto::track_egress_request::Output::File(file)) => vec![RequestedOutput {
                filepath: file.filepath.clone(),
                bucket: match &file.output {
                    Some(proto::direct_file_output::Output::S3(s3)) => Some(s3.bucket.clone()),
                    _ => None,
                },
            }],
            _ => Vec::new(),
        },
        Some(Request::Egress(request)) => unified(&request.outputs, request.storage.as_ref()),
        Some(Request::Replay(request)) => unified(&request.outputs, request.storage.as_ref()),
        None => Vec::new(),
    }
}
