//! What the LiveKit server knows of egresses: its Egress API, `ListEgress`. It forgets an egress a day after its end.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use chrono::{DateTime, Utc};
use livekit_api::services::egress::{EgressClient, EgressListFilter, EgressListOptions};
use livekit_protocol as proto;

use super::manifest::whole_seconds;

/// How long the server may take to answer; the next pass asks again.
const API_TIMEOUT: Duration = Duration::from_secs(5);

/// What the server knows of an egress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressReport {
    /// Its id.
    pub egress_id: String,
    /// Server id of its room.
    pub room_id: String,
    /// When it was started.
    pub started_at: Option<DateTime<Utc>>,
    /// How far it is.
    pub progress: EgressProgress,
    /// What it has written, or is to write.
    pub files: Vec<EgressFile>,
    /// Its storage refused the files, and they are where it keeps them in that case.
    pub backup_storage_used: bool,
}

/// A file of an egress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressFile {
    /// The path as it was asked for.
    pub filename: String,
    /// Where the egress put it.
    pub location: String,
    /// The S3 bucket that it was to be put into.
    pub bucket: Option<String>,
    /// Bytes, once it is written.
    pub size: Option<u64>,
    /// Seconds, once it is written.
    pub duration: Option<u64>,
}

/// How far an egress is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum EgressProgress {
    /// Starting, active or ending.
    #[default]
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
    let bucket = requested_bucket(info);
    let files = info.file_results.iter().map(|file| EgressFile {
        filename: file.filename.clone(),
        location: file.location.clone(),
        bucket: bucket.clone(),
        size: u64::try_from(file.size).ok().filter(|size| *size > 0),
        duration: whole_seconds(file.duration),
    });
    EgressReport {
        egress_id: info.egress_id.clone(),
        room_id: info.room_id.clone(),
        started_at: (info.started_at > 0).then(|| DateTime::from_timestamp_nanos(info.started_at)),
        progress,
        files: files.collect(),
        backup_storage_used: info.backup_storage_used,
    }
}

/// The bucket that the request for a recording of the room named. The server leaves it in when it blanks the keys.
fn requested_bucket(info: &proto::EgressInfo) -> Option<String> {
    use proto::egress_info::Request;
    let outputs = match info.request.as_ref()? {
        Request::RoomComposite(request) => &request.file_outputs,
        Request::Participant(request) => &request.file_outputs,
        Request::TrackComposite(request) => &request.file_outputs,
        _ => return None,
    };
    outputs.iter().find_map(|output| match &output.output {
        Some(proto::encoded_file_output::Output::S3(s3)) => Some(s3.bucket.clone()),
        _ => None,
    })
}
