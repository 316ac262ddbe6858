//! Delivery of finished calls to the CRM: `call_metadata/` is worked off, the recording first, then the call data, then the record moves
//! to `processed_metadata/`.
//!
//! Runs inside the worker as a task that wakes at an interval and when a call hangs up, or once from the command line. Every step is on
//! disk before the next begins, so it can be killed at any moment and repeats at most one request, with the same idempotency key.

mod crm;
mod deliver;
pub mod policy;
mod queue;

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt as _;
use futures_util::stream::{self, FuturesUnordered};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use url::Url;

use crate::recording::resolve::RecordingResolver;
use crate::session::{CallRecord, PartState, RecordStatus, SessionId, time};
use crate::store::{Store, StoreError};

use crm::Crm;
use deliver::{Delivery, Mode, on_disk};
use policy::Backoff;
use queue::{DueRecord, Look, Queue};

/// The shortest sleep between two looks at the folder, so that no mistake in a time makes the task spin.
const SHORTEST_SLEEP: Duration = Duration::from_millis(100);
/// How long the task waits for requests under way when it is told to stop. Whatever is cut off is repeated with the same key.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Section `crm` of the configuration. The token is not in it: it comes from the environment, `CRM_TOKEN`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CrmConfig {
    /// Address that the two paths are added to, such as `https://crm.example.com/apis/api/public`. Empty: nothing is delivered and the
    /// records wait.
    pub base_url: String,
    /// Path for recordings.
    pub upload_path: String,
    /// Path for call data.
    pub call_data_path: String,
    /// Where the recording's URL may be in the answer to an upload, as JSON pointers (RFC 6901); the first that leads to a text counts.
    pub url_pointers: Vec<String>,
    /// Time for a connection, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Time for the call data's request and answer, in milliseconds.
    pub timeout_ms: u64,
    /// Time for a recording's request and answer, in seconds: a large file over a slow line.
    pub upload_timeout_s: u64,
}

impl Default for CrmConfig {
    fn default() -> Self {
        let pointers = [
            "/url",
            "/data/url",
            "/fileUrl",
            "/data/fileUrl",
            "/data/0/url",
            "/file/url",
            "/files/0/url",
            "/path",
            "/data/path",
            "/data/0/path",
            "/location",
            "/data/location",
            "/data",
        ];
        Self {
            base_url: String::new(),
            upload_path: "/upload".to_owned(),
            call_data_path: "/call-data".to_owned(),
            url_pointers: pointers.map(str::to_owned).to_vec(),
            connect_timeout_ms: 10_000,
            timeout_ms: 30_000,
            upload_timeout_s: 900,
        }
    }
}

impl CrmConfig {
    /// The base address, checked.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub fn parsed_base_url(&self) -> Result<Url, UploadError> {
        if self.base_url.trim().is_empty() {
            return Err(UploadError::NoBaseUrl);
        }
        let bad = |problem: String| UploadError::BadBaseUrl { problem };
        let url = Url::parse(self.base_url.trim()).map_err(|error| bad(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(bad(
                "it must begin with http:// or https:// and name a host".to_owned(),
            ));
        }
        Ok(url)
    }
}

/// When a record counts as delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SuccessRule {
    /// When the CRM has refused neither recording nor call data.
    #[default]
    Both,
    /// When it has one of the two; the other was refused or there is none. What may pass is tried again under either rule.
    Any,
}

/// Section `upload` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct UploadConfig {
    /// Longest time between two looks at the folder, in seconds. A hangup looks at once.
    pub interval_s: u64,
    /// Records that one pass takes on at most.
    pub batch: usize,
    /// Records that are delivered at the same time.
    pub parallel: usize,
    /// Pause after the first failure of a request, in milliseconds. It doubles with each further one.
    pub first_backoff_ms: u64,
    /// Longest pause, in seconds.
    pub max_backoff_s: u64,
    /// When a record counts as delivered and is archived.
    pub success: SuccessRule,
    /// Requests that are tried for one part before it counts as failed. With the longest pause of 10 minutes, 1000 are a week.
    pub max_attempts: u32,
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self {
            interval_s: 30,
            batch: 100,
            parallel: 8,
            first_backoff_ms: 5_000,
            max_backoff_s: 600,
            success: SuccessRule::default(),
            max_attempts: 1_000,
        }
    }
}

impl UploadConfig {
    /// Looks for mistakes that a type cannot catch. The error names the key.
    ///
    /// # Errors
    /// When a value is zero that must not be.
    pub fn check(&self) -> Result<(), String> {
        let values = [
            ("interval_s", self.interval_s),
            ("batch", self.batch as u64),
            ("parallel", self.parallel as u64),
            ("first_backoff_ms", self.first_backoff_ms),
            ("max_backoff_s", self.max_backoff_s),
            ("max_attempts", u64::from(self.max_attempts)),
        ];
        match values.iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(format!("upload.{key} must be above 0")),
            None => Ok(()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff {
            first: Duration::from_millis(self.first_backoff_ms),
            max: Duration::from_secs(self.max_backoff_s),
        }
    }
}

/// The CRM's bearer token. Prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct CrmToken(String);

impl CrmToken {
    /// A token; `None` when the text is empty.
    pub fn new(token: impl Into<String>) -> Option<Self> {
        let token = token.into();
        (!token.is_empty()).then_some(Self(token))
    }

    fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CrmToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Why nothing can be delivered.
#[derive(Debug, Error)]
pub enum UploadError {
    /// No address.
    #[error("crm.base_url is not set (environment CRM_BASE_URL), so nothing can be delivered")]
    NoBaseUrl,
    /// Not an address.
    #[error("crm.base_url (environment CRM_BASE_URL) is not usable: {problem}")]
    BadBaseUrl {
        /// What is wrong with it.
        problem: String,
    },
    /// The HTTP client could not be made.
    #[error("failed to make the client for the CRM: {0}")]
    Client(String),
    /// The folder could not be listed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a pass is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PassOptions {
    /// Say what would be sent; send and write nothing.
    pub dry_run: bool,
    /// This record alone, whether its time has come or not.
    pub only: Option<SessionId>,
    /// Instead of the configured batch.
    pub batch: Option<usize>,
}

/// What a pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PassStats {
    /// Records delivered whole and archived.
    pub files_processed: u64,
    /// Recordings confirmed by the CRM.
    pub recordings_uploaded: u64,
    /// Call data confirmed by the CRM.
    pub call_data_sent: u64,
    /// Records whose recording is waited for.
    pub waiting: u64,
    /// Records that will be tried again.
    pub retrying: u64,
    /// Records that the CRM has refused.
    pub failed: u64,
    /// Records that another process works on.
    pub claimed_elsewhere: u64,
    /// Records that would be delivered, when nothing is to be sent.
    pub would_deliver: u64,
    /// Files that are not readable, or could not be written.
    pub errors: u64,
    /// Records that wait for their time, or for the next pass.
    pub not_due: u64,
}

impl PassStats {
    fn count(&mut self, delivery: &Delivery) {
        self.recordings_uploaded += u64::from(delivery.recording_uploaded);
        self.call_data_sent += u64::from(delivery.call_data_sent);
        let slot = match delivery.end {
            deliver::End::Delivered => &mut self.files_processed,
            deliver::End::Waiting(_) => &mut self.waiting,
            deliver::End::Retrying(_) => &mut self.retrying,
            deliver::End::Failed => &mut self.failed,
            deliver::End::ClaimedElsewhere => &mut self.claimed_elsewhere,
            deliver::End::WouldDeliver => &mut self.would_deliver,
            deliver::End::Error(_) => &mut self.errors,
        };
        *slot += 1;
    }
}

/// Where the time comes from; tests bring their own.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// Delivers records.
pub struct Uploader {
    store: Store,
    config: UploadConfig,
    crm: Crm,
    resolver: RecordingResolver,
    clock: Clock,
    queue: Queue,
}

impl fmt::Debug for Uploader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploader")
            .field("config", &self.config)
            .field("crm", &self.crm)
            .finish_non_exhaustive()
    }
}

impl Uploader {
    /// An uploader of the records in `store` to the CRM that `crm` names.
    ///
    /// # Errors
    /// When `crm.base_url` is missing or not an address.
    pub fn new(
        store: Store,
        config: UploadConfig,
        crm: CrmConfig,
        token: Option<CrmToken>,
        resolver: RecordingResolver,
    ) -> Result<Self, UploadError> {
        let crm = Crm::new(crm, token)?;
        let queue = Queue::new(store.clone());
        Ok(Self {
            store,
            config,
            crm,
            resolver,
            clock: Arc::new(time::now),
            queue,
        })
    }

    /// Takes the time from `clock`.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    fn now(&self) -> DateTime<Utc> {
        (self.clock)()
    }

    /// Delivers everything that is due, once.
    ///
    /// # Errors
    /// When the folder cannot be listed. What goes wrong with one record is counted and logged, and the others go on.
    pub async fn pass(&self, options: PassOptions) -> Result<PassStats, UploadError> {
        let mode = match (options.dry_run, &options.only) {
            (true, _) => Mode::DryRun,
            (false, Some(_)) => Mode::Now,
            (false, None) => Mode::WhenDue,
        };
        let look = self.look(options.only).await?;
        let batch = options.batch.unwrap_or(self.config.batch);
        let left_over = look.due.len().saturating_sub(batch) as u64;
        let mut stats = PassStats {
            not_due: look.not_due + left_over,
            errors: look.unreadable,
            ..PassStats::default()
        };
        let mut deliveries = stream::iter(look.due.into_iter().take(batch))
            .map(|due| self.deliver(due.pending, mode))
            .buffer_unordered(self.config.parallel.max(1));
        while let Some((_, delivery)) = deliveries.next().await {
            stats.count(&delivery);
        }
        Ok(stats)
    }

    /// Delivers what is due until `stop`. `pokes` says that a record was just written; a channel of one place is enough.
    pub async fn run(self, mut pokes: mpsc::Receiver<()>, stop: CancellationToken) {
        info!(
            crm.host = self.crm.base().host_str().unwrap_or_default(),
            "delivery to the CRM started"
        );
        let removed = self.store.remove_stray_temporaries();
        if removed > 0 {
            info!(
                count = removed,
                "removed temporary files of killed processes"
            );
        }
        let interval = Duration::from_secs(self.config.interval_s.max(1));
        let mut queue: VecDeque<DueRecord> = VecDeque::new();
        let mut in_flight: HashSet<SessionId> = HashSet::new();
        let mut running = FuturesUnordered::new();
        let mut wake_at = Instant::now();
        let mut poked_open = true;
        loop {
            while let Some(next) = queue.front() {
                // A call that has just ended does not queue behind a CRM that lets older ones time out.
                let limit = if next.fresh {
                    self.config.parallel * 2
                } else {
                    self.config.parallel
                };
                if running.len() >= limit.max(1) {
                    break;
                }
                if let Some(next) = queue.pop_front()
                    && in_flight.insert(next.pending.session_id.clone())
                {
                    running.push(self.deliver(next.pending, Mode::WhenDue));
                }
            }
            let look = tokio::select! {
                () = stop.cancelled() => break,
                Some((id, delivery)) = running.next(), if !running.is_empty() => {
                    in_flight.remove(&id);
                    self.queue.forget(&id);
                    if let Some(due) = delivery.next_due() {
                        wake_at = wake_at.min(Instant::now() + self.sleep_until(due));
                    }
                    false
                }
                poke = pokes.recv(), if poked_open => {
                    poked_open = poke.is_some();
                    poked_open
                }
                () = tokio::time::sleep_until(wake_at) => true,
            };
            if !look {
                continue;
            }
            wake_at = Instant::now() + interval;
            match self.look(None).await {
                Ok(look) => {
                    metrics::gauge!("voicebot_records_pending")
                        .set((look.due.len() as u64 + look.not_due) as f64);
                    if look.due.len() > self.config.batch {
                        // The rest is looked for again when this batch is through.
                        wake_at = Instant::now() + SHORTEST_SLEEP.max(interval / 10);
                    } else if let Some(due) = look.next_due {
                        wake_at = wake_at.min(Instant::now() + self.sleep_until(due));
                    }
                    queue = look
                        .due
                        .into_iter()
                        .filter(|due| !in_flight.contains(&due.pending.session_id))
                        .take(self.config.batch)
                        .collect();
                }
                Err(error) => error!(%error, "failed to look for records"),
            }
        }
        let drain = async { while running.next().await.is_some() {} };
        if tokio::time::timeout(STOP_GRACE, drain).await.is_err() {
            warn!(
                "stopped in the middle of a request to the CRM; it is repeated with the same key at the next start"
            );
        }
    }

    fn sleep_until(&self, due: DateTime<Utc>) -> Duration {
        (due - self.now())
            .to_std()
            .unwrap_or_default()
            .max(SHORTEST_SLEEP)
    }

    async fn look(&self, only: Option<SessionId>) -> Result<Look, StoreError> {
        let (queue, now) = (self.queue.clone(), self.now());
        on_disk(move || match only {
            Some(id) => queue.only(&id),
            None => queue.look(now),
        })
        .await
    }
}

fn later(now: DateTime<Utc>, pause: Duration) -> DateTime<Utc> {
    now + TimeDelta::from_std(pause).unwrap_or(TimeDelta::days(1))
}

/// One waiting record, for showing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ListedRecord {
    /// The session.
    pub session_id: SessionId,
    /// The CRM's id of the call.
    pub call_id: Option<String>,
    /// When the call ended.
    pub call_end: Option<DateTime<Utc>>,
    /// Where the record stands; `None` when the file is not readable.
    pub status: Option<RecordStatus>,
    /// Where its recording stands.
    pub recording: Option<PartState>,
    /// Where its call data stands.
    pub call_data: Option<PartState>,
    /// Passes that tried to deliver something.
    pub attempts: u32,
    /// Not before this time.
    pub next_attempt: Option<DateTime<Utc>>,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// The records that wait for delivery, oldest first.
///
/// # Errors
/// When the folder cannot be listed. A file that is not readable is listed with its error.
pub fn list(store: &Store) -> Result<Vec<ListedRecord>, StoreError> {
    let rows =
        store
            .pending()?
            .into_iter()
            .filter_map(|pending| match store.read_pending(&pending) {
                Ok(record) => record.map(|record| listed(&record)),
                Err(error) => Some(ListedRecord {
                    session_id: pending.session_id,
                    call_id: None,
                    call_end: None,
                    status: None,
                    recording: None,
                    call_data: None,
                    attempts: 0,
                    next_attempt: None,
                    last_error: Some(error.to_string()),
                }),
            });
    Ok(rows.collect())
}

fn listed(record: &CallRecord) -> ListedRecord {
    let (recording, call_data) = (&record.uploads.recording, &record.uploads.call_data);
    let open_part_next = if recording.state.is_settled() {
        call_data.next_attempt
    } else {
        recording.next_attempt
    };
    ListedRecord {
        session_id: record.session_id.clone(),
        call_id: record.call_id.clone(),
        call_end: record.timestamps.call_end,
        status: Some(record.status),
        recording: Some(recording.state),
        call_data: Some(call_data.state),
        attempts: record.upload_attempts,
        next_attempt: open_part_next,
        last_error: call_data
            .last_error
            .clone()
            .or_else(|| recording.last_error.clone()),
    }
}

/// An operator's "try again": the record is due at once, and refused parts are sent again. `false` when all of it is delivered already.
///
/// # Errors
/// When there is no such record, or another process works on it.
pub fn retry(store: &Store, id: &SessionId) -> Result<bool, StoreError> {
    store.reset_for_retry(id)
}
