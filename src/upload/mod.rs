//! Delivery of finished calls to the CRM. For each record in `call_metadata/` the recording is
//! uploaded, then the call data is sent, then the record moves to `processed_metadata/`.
//!
//! Runs as a task in the worker, which wakes at an interval and when a call ends, or once from the
//! command line. Every step is on disk before the next begins, so a process that is killed at any
//! moment repeats at most one request, with the same idempotency key.

pub mod breaker;
mod crm;
mod deliver;
pub mod policy;
mod queue;
mod receipt;
mod signature;

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::header::HeaderName;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use url::Url;

use crate::recording::resolve::RecordingResolver;
use crate::recording::webhook::EgressEnded;
use crate::session::{CallRecord, CampaignIds, PartState, RecordStatus, SessionId, time};
use crate::settings::Secret;
use crate::store::{PendingRecord, Store, StoreError};

use breaker::{Breaker, BreakerChange, BreakerSettings, BreakerState};
use crm::Crm;
use deliver::{Delivery, End, Mode, on_disk};
use policy::{Backoff, Verdict};
use queue::{Due, EgressMark, Lane, Queue, Scan, Schedule, Waiting, due_of};
pub use receipt::{ReceiptConfig, ReceiptRule};

/// The shortest sleep between two scans of the folder, so that a wrong due time cannot make the
/// task spin.
const SHORTEST_SLEEP: Duration = Duration::from_millis(100);
/// After a scan of the folder, at least this many times its duration passes before the next one: a
/// folder of many thousands of records must not keep a core busy while calls end every second.
const SCAN_REST: u32 = 9;
/// How long the task waits for requests in progress when it is told to stop. Interrupted requests
/// are repeated later with the same idempotency key.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Section `crm` of the configuration. The secrets are not in it ([`CrmSecrets`]).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CrmConfig {
    /// Address that the two paths are added to, such as `https://crm.example.com/apis/api/public`.
    /// Empty: nothing is delivered and the records wait.
    pub base_url: String,
    /// Path for recordings.
    pub upload_path: String,
    /// Path for call data.
    pub call_data_path: String,
    /// Where the recording's URL may be in the answer to an upload, as JSON pointers (RFC 6901);
    /// the first that leads to a text counts.
    pub url_pointers: Vec<String>,
    /// Which answers 2xx say that the CRM has what was sent.
    pub receipts: ReceiptConfig,
    /// Header that gets the signature of each request (`upload/signature.rs` says over what).
    /// Empty: requests are not signed.
    pub signature_header: String,
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
            receipts: ReceiptConfig::default(),
            signature_header: String::new(),
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

    /// Checks for mistakes that a type cannot catch. The error names the key.
    ///
    /// # Errors
    /// When an entry of `receipts.require` is not a pointer and a value.
    pub fn check(&self) -> Result<(), String> {
        let bad = |wanted: &&String| !receipt::check_requirement(wanted);
        match self.receipts.require.iter().find(bad) {
            Some(wanted) => Err(format!(
                "crm.receipts.require must have entries such as /success=true, a JSON pointer and a value, not {wanted:?}"
            )),
            None => Ok(()),
        }
    }

    /// The name of the header that requests are signed in, checked; nothing when they are not.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub fn parsed_signature_header(&self) -> Result<Option<HeaderName>, UploadError> {
        let name = self.signature_header.trim();
        if name.is_empty() {
            return Ok(None);
        }
        name.parse()
            .map(Some)
            .map_err(|_| UploadError::BadSignatureHeader {
                name: name.to_owned(),
            })
    }
}

/// When a record counts as delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SuccessRule {
    /// When the CRM has refused neither recording nor call data.
    #[default]
    Both,
    /// When it has one of the two; the other was refused or there is none. What may pass is tried
    /// again under either rule.
    Any,
}

/// Section `upload` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct UploadConfig {
    /// Longest time between two scans of the folder, in seconds. A hangup starts a scan at once.
    pub interval_s: u64,
    /// Records that one pass of `uploads run --once` takes on at most.
    pub batch: usize,
    /// Records that are delivered at the same time.
    pub parallel: usize,
    /// Pause after the first failure of a request, in milliseconds. It doubles with each further
    /// one.
    pub first_backoff_ms: u64,
    /// Longest pause, in seconds.
    pub max_backoff_s: u64,
    /// Requests in a row that fail, of any records, before the circuit breaker opens.
    pub breaker_failures: u32,
    /// The longest time that the circuit breaker stays open before it lets a probe through, in
    /// seconds.
    pub breaker_max_pause_s: u64,
    /// When a record counts as delivered and is archived.
    pub success: SuccessRule,
    /// Attempts for one part before it counts as failed. With the longest pause of 10 minutes, 1000
    /// are a week.
    pub max_attempts: u32,
    /// How long a record may be rejected with 401, 403, 404 or a redirect while the CRM accepts
    /// others, in seconds, before it counts as failed.
    pub turned_away_s: u64,
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self {
            interval_s: 30,
            batch: 100,
            parallel: 8,
            first_backoff_ms: 5_000,
            max_backoff_s: 600,
            breaker_failures: 10,
            // One request a minute is nothing, and a minute more is little after an outage.
            breaker_max_pause_s: 60,
            success: SuccessRule::default(),
            max_attempts: 1_000,
            turned_away_s: 3_600,
        }
    }
}

impl UploadConfig {
    /// Checks for mistakes that a type cannot catch. The error names the key.
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
            ("breaker_failures", u64::from(self.breaker_failures)),
            ("breaker_max_pause_s", self.breaker_max_pause_s),
            ("max_attempts", u64::from(self.max_attempts)),
            ("turned_away_s", self.turned_away_s),
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

    fn breaker(&self) -> BreakerSettings {
        BreakerSettings {
            failures: self.breaker_failures,
            backoff: Backoff {
                first: Duration::from_millis(self.first_backoff_ms),
                max: Duration::from_secs(self.breaker_max_pause_s),
            },
            full: self.parallel,
        }
    }
}

/// The credentials for the CRM. They come only from the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CrmSecrets {
    /// Bearer token, `CRM_TOKEN`.
    pub token: Option<Secret>,
    /// The key that signs requests when `crm.signature_header` is set, `CRM_HMAC_SECRET`.
    pub signing: Option<Secret>,
}

impl CrmSecrets {
    /// Those that are set.
    pub fn from_env() -> Self {
        Self {
            token: Secret::from_env("CRM_TOKEN"),
            signing: Secret::from_env("CRM_HMAC_SECRET"),
        }
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
    /// Not a header.
    #[error("crm.signature_header is {name:?}, which is no name of an HTTP header")]
    BadSignatureHeader {
        /// As it was set.
        name: String,
    },
    /// No secret to sign with.
    #[error(
        "crm.signature_header is set, but the secret to sign with is not (environment CRM_HMAC_SECRET)"
    )]
    NoSigningSecret,
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
    /// Records that another process is delivering.
    pub claimed_elsewhere: u64,
    /// Records that are due but wait, because the CRM does not answer or rejects our credentials.
    pub held_back: u64,
    /// Records that would be delivered, when nothing is to be sent.
    pub would_deliver: u64,
    /// Files that are not readable, or could not be written.
    pub errors: u64,
    /// Records that wait for their time, or for the next pass.
    pub not_due: u64,
}

impl PassStats {
    /// Records whose result this pass knows.
    pub fn ended(&self) -> u64 {
        [
            self.files_processed,
            self.waiting,
            self.retrying,
            self.failed,
            self.claimed_elsewhere,
            self.held_back,
            self.would_deliver,
            self.errors,
        ]
        .iter()
        .sum()
    }

    fn count(&mut self, delivery: &Delivery) {
        self.recordings_uploaded += u64::from(delivery.recording_uploaded);
        self.call_data_sent += u64::from(delivery.call_data_sent);
        let slot = match delivery.end {
            End::Delivered => &mut self.files_processed,
            End::Waiting(_) => &mut self.waiting,
            End::Retrying(_) => &mut self.retrying,
            End::Failed => &mut self.failed,
            End::ClaimedElsewhere => &mut self.claimed_elsewhere,
            End::HeldBack(_) | End::TurnedAway => &mut self.held_back,
            End::WouldDeliver => &mut self.would_deliver,
            End::Broken => &mut self.errors,
        };
        *slot += 1;
    }
}

/// The two endpoints of the CRM. One may work while the other does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    /// `POST /upload`.
    Upload,
    /// `POST /call-data`.
    CallData,
}

impl Endpoint {
    const ALL: [Self; 2] = [Self::Upload, Self::CallData];

    fn other(self) -> Self {
        match self {
            Self::Upload => Self::CallData,
            Self::CallData => Self::Upload,
        }
    }

    /// Its name in log and metrics.
    fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::CallData => "call_data",
        }
    }
}

/// The state of one endpoint of the CRM.
struct Door {
    breaker: Breaker,
    /// When it last accepted a request.
    last_taken: Option<DateTime<Utc>>,
}

/// How the CRM is, as the requests of an [`Uploader`] tell.
#[derive(Clone)]
pub struct CrmHealth {
    host: String,
    doors: Arc<Mutex<[Door; 2]>>,
}

/// See [`CrmHealth::now`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CrmNow {
    /// The CRM's host.
    pub host: String,
    /// `POST /upload`.
    pub upload: EndpointNow,
    /// `POST /call-data`.
    pub call_data: EndpointNow,
}

/// How one endpoint of the CRM is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointNow {
    /// `closed` when requests are sent; `half_open` or `open` when it has not taken any lately.
    pub breaker: &'static str,
    /// When it last accepted a request of this process.
    pub last_accepted: Option<DateTime<Utc>>,
}

impl CrmHealth {
    /// How the CRM is now.
    pub fn now(&self) -> CrmNow {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoint = |endpoint: Endpoint| {
            let door = &doors[endpoint as usize];
            EndpointNow {
                breaker: door.breaker.state().name(),
                last_accepted: door.last_taken,
            }
        };
        CrmNow {
            host: self.host.clone(),
            upload: endpoint(Endpoint::Upload),
            call_data: endpoint(Endpoint::CallData),
        }
    }
}

/// The clock; tests inject their own.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// Delivers records.
pub struct Uploader {
    store: Store,
    config: UploadConfig,
    crm: Crm,
    resolver: RecordingResolver,
    clock: Clock,
    queue: Queue,
    /// In the order of [`Endpoint::ALL`].
    doors: Arc<Mutex<[Door; 2]>>,
    egress_ends: Option<mpsc::Receiver<EgressEnded>>,
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
    /// When `crm.base_url` is missing or not an address, or requests cannot be signed as the
    /// settings say.
    pub fn new(
        store: Store,
        config: UploadConfig,
        crm: CrmConfig,
        secrets: CrmSecrets,
        resolver: RecordingResolver,
    ) -> Result<Self, UploadError> {
        let crm = Crm::new(crm, secrets)?;
        let queue = Queue::new(store.clone(), resolver.wait());
        let doors = Endpoint::ALL.map(|_| Door {
            breaker: Breaker::new(config.breaker()),
            last_taken: None,
        });
        Ok(Self {
            store,
            config,
            crm,
            resolver,
            clock: Arc::new(time::now),
            queue,
            doors: Arc::new(Mutex::new(doors)),
            egress_ends: None,
        })
    }

    /// Searches for a recording as soon as `ends` reports that its egress has ended, instead of
    /// waiting for the next scan of that record.
    #[must_use]
    pub fn hurried_by(mut self, ends: mpsc::Receiver<EgressEnded>) -> Self {
        self.egress_ends = Some(ends);
        self
    }

    /// What this uploader learns about the CRM, for whoever shows it.
    pub fn health(&self) -> CrmHealth {
        CrmHealth {
            host: self.crm.host().to_owned(),
            doors: self.doors.clone(),
        }
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
    /// When the folder cannot be listed. What goes wrong with one record is counted and logged, and
    /// the others go on.
    pub async fn pass(&self, options: PassOptions) -> Result<PassStats, UploadError> {
        let mode = match (options.dry_run, &options.only) {
            (true, _) => Mode::DryRun,
            (false, Some(_)) => Mode::Now,
            (false, None) => Mode::WhenDue,
        };
        let scan = self.scan(options.only).await?;
        let batch = options.batch.unwrap_or(self.config.batch);
        Ok(self.work_off(scan, batch, mode, |_| {}).await)
    }

    /// Delivers those of these records that are due, once, and reports its progress after each.
    ///
    /// # Errors
    /// When the folder cannot be listed. What goes wrong with one record is counted and logged, and
    /// the others go on.
    pub async fn deliver_these(
        &self,
        records: &HashSet<SessionId>,
        tell: impl FnMut(&PassStats),
    ) -> Result<PassStats, UploadError> {
        let mut scan = self.scan(None).await?;
        let is_meant = |next: &Waiting| records.contains(&next.pending.session_id);
        scan.waiting.retain(is_meant);
        (scan.resting, scan.unreadable) = (0, 0);
        Ok(self.work_off(scan, usize::MAX, Mode::WhenDue, tell).await)
    }

    async fn work_off(
        &self,
        scan: Scan,
        batch: usize,
        mode: Mode,
        mut tell: impl FnMut(&PassStats),
    ) -> PassStats {
        let mut stats = PassStats {
            not_due: scan.resting,
            errors: scan.unreadable,
            ..PassStats::default()
        };
        let mut schedule = Schedule::default();
        schedule.replace(scan.waiting, self.now());
        let mut running = FuturesUnordered::new();
        let mut started = 0;
        loop {
            while started < batch
                && let Some((next, how)) = self.next(&mut schedule, mode)
            {
                started += 1;
                running.push(self.deliver(next, how));
            }
            let Some((id, delivery)) = running.next().await else {
                break;
            };
            schedule.done(&id);
            stats.count(&delivery);
            tell(&stats);
        }
        stats.not_due += schedule.later() as u64;
        let left_over = schedule.ready() as u64;
        if started < batch {
            stats.held_back += left_over;
        } else {
            stats.not_due += left_over;
        }
        stats
    }

    /// The next record to deliver, and in which mode.
    fn next(&self, schedule: &mut Schedule, mode: Mode) -> Option<(PendingRecord, Mode)> {
        let has_room = |schedule: &Schedule, lane| self.has_room(schedule, lane);
        if let Some(next) = schedule.next(self.now(), has_room) {
            let hurried = mode == Mode::WhenDue && schedule.is_hurried(&next.session_id);
            return Some((next, if hurried { Mode::Hurried } else { mode }));
        }
        if mode != Mode::WhenDue || !self.takes_no_recordings() {
            return None;
        }
        let next = schedule.next_released(self.now(), has_room)?;
        Some((next, Mode::Released))
    }

    /// Delivers what is due until `stop`. `notices` reports that a record was just written; a
    /// channel with a capacity of one is enough.
    pub async fn run(mut self, mut notices: mpsc::Receiver<()>, stop: CancellationToken) {
        info!(crm.host = self.crm.host(), "delivery to the CRM started");
        describe_metrics();
        for endpoint in Endpoint::ALL {
            self.show_breaker(endpoint, BreakerState::Closed);
        }
        let removed = self.store.remove_stray_temporaries();
        if removed > 0 {
            info!(
                count = removed,
                "removed temporary files of killed processes"
            );
        }
        let interval = Duration::from_secs(self.config.interval_s.max(1));
        let mut schedule = Schedule::default();
        let mut running = FuturesUnordered::new();
        let mut look_at = Instant::now();
        let mut rested_at = Instant::now();
        let mut notices_open = true;
        let mut egress_ends = self.egress_ends.take();
        loop {
            if Instant::now() >= look_at {
                let began = Instant::now();
                self.scan_again(&mut schedule).await;
                rested_at = Instant::now() + began.elapsed() * SCAN_REST;
                look_at = rested_at.max(Instant::now() + interval);
            }
            while let Some((next, mode)) = self.next(&mut schedule, Mode::WhenDue) {
                running.push(self.deliver(next, mode));
            }
            let wake_at = look_at.min(self.next_wake(&schedule).unwrap_or(look_at));
            tokio::select! {
                () = stop.cancelled() => break,
                Some((id, delivery)) = running.next(), if !running.is_empty() => {
                    self.note_end(&mut schedule, &id, &delivery);
                }
                notify = notices.recv(), if notices_open => {
                    notices_open = notify.is_some();
                    if notices_open {
                        look_at = rested_at;
                    }
                }
                ended = next_end(&mut egress_ends) => {
                    let marks = [EgressMark::of_id(&ended.egress_id), EgressMark::of_room(&ended.room_name)];
                    schedule.hurry(&marks, self.now());
                }
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
        let drain = async { while running.next().await.is_some() {} };
        if tokio::time::timeout(STOP_GRACE, drain).await.is_err() {
            warn!(
                "stopped in the middle of a request to the CRM; it is repeated with the same key at the next start"
            );
        }
    }

    async fn scan_again(&self, schedule: &mut Schedule) {
        match self.scan(None).await {
            Ok(scan) => {
                let all = scan.waiting.len() as u64 + scan.resting + scan.unreadable;
                metrics::gauge!("voicebot_records_pending").set(all as f64);
                let ended = scan.waiting.iter().filter_map(|record| record.ended_at);
                let oldest = ended
                    .min()
                    .map_or(0, |ended| (self.now() - ended).num_seconds());
                metrics::gauge!("voicebot_records_oldest_age_seconds").set(oldest.max(0) as f64);
                schedule.replace(scan.waiting, self.now());
            }
            Err(error) => error!(%error, "failed to scan for records"),
        }
    }

    /// When the task must wake if no event comes.
    fn next_wake(&self, schedule: &Schedule) -> Option<Instant> {
        let due = schedule
            .next_due()
            .map(|due| Instant::now() + self.sleep_until(due));
        // Ready records get room when a delivery ends, or when a breaker's pause is over.
        let doors = self.doors();
        let reopened = Endpoint::ALL
            .into_iter()
            .filter(|endpoint| schedule.has_to_send(*endpoint))
            .filter_map(|endpoint| doors[endpoint as usize].breaker.opens_until())
            .map(Instant::from_std);
        due.into_iter().chain(reopened).min()
    }

    fn note_end(&self, schedule: &mut Schedule, id: &SessionId, delivery: &Delivery) {
        let now = self.now();
        match delivery.end {
            End::Waiting(due) | End::Retrying(due) => schedule.again(id, due, now),
            End::HeldBack(endpoint) => schedule.held(id, endpoint, now),
            End::Broken | End::TurnedAway => schedule.put_off(id, self.config.backoff(), now),
            End::Delivered | End::Failed | End::ClaimedElsewhere | End::WouldDeliver => {
                schedule.done(id);
            }
        }
    }

    /// Whether one more delivery of this lane may start. Searches for recordings and requests to
    /// the CRM are limited separately, and a call that has just ended does not queue behind older
    /// ones that time out.
    fn has_room(&self, schedule: &Schedule, lane: Lane) -> bool {
        let parallel = self.config.parallel.max(1);
        let limit = if lane.is_fresh() {
            parallel * 2
        } else {
            parallel
        };
        let alike = |other: Lane| other.sends().is_some() == lane.sends().is_some();
        if schedule.under_way(alike) >= limit {
            return false;
        }
        lane.sends().is_none_or(|endpoint| {
            let same = |other: Lane| other.sends() == Some(endpoint);
            schedule.under_way(same) < self.allowed_by_breaker(endpoint)
        })
    }

    fn doors(&self) -> MutexGuard<'_, [Door; 2]> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allowed_by_breaker(&self, endpoint: Endpoint) -> usize {
        let (change, allowed) = {
            let breaker = &mut self.doors()[endpoint as usize].breaker;
            (breaker.tick(Instant::now().into_std()), breaker.allowed())
        };
        self.tell_breaker(endpoint, change);
        allowed
    }

    /// Whether the CRM accepts call data but no recordings, so that waiting for an upload is
    /// useless.
    fn takes_no_recordings(&self) -> bool {
        let doors = self.doors();
        let state = |endpoint: Endpoint| doors[endpoint as usize].breaker.state();
        state(Endpoint::Upload) == BreakerState::Open
            && state(Endpoint::CallData) == BreakerState::Closed
    }

    /// Whether this endpoint has accepted a request since then.
    fn has_taken_since(&self, endpoint: Endpoint, since: Option<DateTime<Utc>>) -> bool {
        let last_taken = self.doors()[endpoint as usize].last_taken;
        since.is_some_and(|since| last_taken.is_some_and(|last| last >= since))
    }

    /// Reports the result of a request to the breaker.
    fn saw(&self, endpoint: Endpoint, verdict: &Verdict) {
        let (now, random) = (Instant::now().into_std(), rand::random());
        let mut doors = self.doors();
        let door = &mut doors[endpoint as usize];
        let was_closed = door.breaker.state() == BreakerState::Closed;
        let change = match verdict {
            Verdict::TryAgain { after, .. } => door.breaker.failed(now, *after, random),
            Verdict::NotAdmitted { .. } => door.breaker.turned_away(now, random),
            Verdict::Refused { .. } => door.breaker.succeeded(),
            Verdict::Accepted(_) | Verdict::Duplicate(_) => {
                door.last_taken = Some(self.now());
                door.breaker.succeeded()
            }
        };
        // When one endpoint is back after an outage, the other one is probed at once.
        let is_back =
            !was_closed && matches!(verdict, Verdict::Accepted(_) | Verdict::Duplicate(_));
        let other = endpoint.other();
        let nudged = match is_back {
            true => doors[other as usize].breaker.nudge(),
            false => None,
        };
        drop(doors);
        self.tell_breaker(endpoint, change);
        self.tell_breaker(other, nudged);
    }

    fn tell_breaker(&self, endpoint: Endpoint, change: Option<BreakerChange>) {
        let (crm_host, request) = (self.crm.host(), endpoint.name());
        match change {
            None => return,
            Some(BreakerChange::Opened(pause)) => {
                metrics::counter!("voicebot_crm_breaker_openings_total").increment(1);
                warn!(
                    crm.host = crm_host,
                    request,
                    pause_ms = pause.as_millis() as u64,
                    "the CRM does not take anything: nothing of this kind is sent for this long"
                );
            }
            Some(BreakerChange::Probing) => {
                info!(
                    crm.host = crm_host,
                    request, "trying the CRM again with one record"
                );
            }
            Some(BreakerChange::Closed) => {
                info!(
                    crm.host = crm_host,
                    request, "the CRM takes records again: delivering at full speed"
                );
            }
        }
        let state = self.doors()[endpoint as usize].breaker.state();
        self.show_breaker(endpoint, state);
    }

    fn show_breaker(&self, endpoint: Endpoint, current: BreakerState) {
        for state in BreakerState::ALL {
            let labels = [
                ("host", self.crm.host().to_owned()),
                ("request", endpoint.name().to_owned()),
                ("state", state.name().to_owned()),
            ];
            metrics::gauge!("voicebot_crm_breaker", &labels).set(f64::from(state == current));
        }
    }

    fn sleep_until(&self, due: DateTime<Utc>) -> Duration {
        (due - self.now())
            .to_std()
            .unwrap_or_default()
            .max(SHORTEST_SLEEP)
    }

    async fn scan(&self, only: Option<SessionId>) -> Result<Scan, StoreError> {
        let (queue, now) = (self.queue.clone(), self.now());
        on_disk(move || match only {
            Some(id) => queue.only(&id, now),
            None => queue.scan(now),
        })
        .await
    }
}

/// The next egress that has ended; pending for ever once the channel is closed or absent.
async fn next_end(ends: &mut Option<mpsc::Receiver<EgressEnded>>) -> EgressEnded {
    if let Some(receiver) = ends {
        if let Some(ended) = receiver.recv().await {
            return ended;
        }
        *ends = None;
    }
    std::future::pending().await
}

fn describe_metrics() {
    metrics::describe_gauge!(
        "voicebot_records_pending",
        "Records in call_metadata/, at the last scan"
    );
    metrics::describe_gauge!(
        "voicebot_records_oldest_age_seconds",
        "Since the end of the oldest call that waits to be delivered, at the last scan; 0 for none"
    );
    deliver::counters_begin_at_zero();
    for name in [
        "voicebot_records_delivered_total",
        "voicebot_records_failed_total",
        "voicebot_records_unreadable_total",
        "voicebot_crm_breaker_openings_total",
    ] {
        metrics::counter!(name).absolute(0);
    }
    metrics::describe_gauge!(
        "voicebot_crm_breaker",
        "1 for the state of the circuit breaker in front of each kind of request to the CRM: closed, half_open or open"
    );
    metrics::describe_counter!(
        "voicebot_crm_breaker_openings_total",
        "How often the circuit breaker has opened because many requests in a row had failed"
    );
    metrics::describe_counter!(
        "voicebot_upload_attempts_total",
        "Requests to the CRM by part and outcome"
    );
    metrics::describe_counter!(
        "voicebot_records_delivered_total",
        "Records that were delivered and archived"
    );
    metrics::describe_counter!("voicebot_records_failed_total", "Records that were refused");
    metrics::describe_counter!(
        "voicebot_records_unreadable_total",
        "Files in call_metadata/ that could not be read"
    );
}

fn later(now: DateTime<Utc>, pause: Duration) -> DateTime<Utc> {
    now + TimeDelta::from_std(pause).unwrap_or(TimeDelta::days(1))
}

/// One waiting record, as `uploads list` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ListedRecord {
    /// The session.
    pub session_id: SessionId,
    /// The CRM's id of the call.
    pub call_id: Option<String>,
    /// When the call ended.
    pub call_end: Option<DateTime<Utc>>,
    /// The status of the record; `None` when the file is not readable.
    pub status: Option<RecordStatus>,
    /// The state of its recording.
    pub recording: Option<PartState>,
    /// The state of its call data.
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
    Ok(list_page(store, 0, usize::MAX)?.0)
}

/// At most `size` of the records that wait for delivery, oldest first, without the `skip` oldest,
/// and how many there are in all.
///
/// # Errors
/// When the folder cannot be listed. A file that is not readable is listed with its error.
pub fn list_page(
    store: &Store,
    skip: usize,
    size: usize,
) -> Result<(Vec<ListedRecord>, usize), StoreError> {
    let pending = store.pending()?;
    let all = pending.len();
    let rows = pending
        .into_iter()
        .skip(skip)
        .take(size)
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
    Ok((rows.collect(), all))
}

fn listed(record: &CallRecord) -> ListedRecord {
    let (recording, call_data) = (&record.uploads.recording, &record.uploads.call_data);
    let next_attempt = match due_of(record) {
        Due::At { due, .. } => Some(due).filter(|due| *due > DateTime::UNIX_EPOCH),
        Due::Never | Due::Unreadable => None,
    };
    let update = record.uploads.call_data_update.as_ref();
    ListedRecord {
        session_id: record.session_id.clone(),
        call_id: record.call_id.clone(),
        call_end: record.timestamps.call_end,
        status: Some(record.status),
        recording: Some(recording.state),
        call_data: Some(call_data.state),
        attempts: record.upload_attempts,
        next_attempt,
        last_error: update
            .and_then(|update| update.last_error.clone())
            .or_else(|| call_data.last_error.clone())
            .or_else(|| recording.last_error.clone()),
    }
}

/// Makes a record due at once and its refused parts pending again, as an operator asked. `false`
/// when all of it is delivered already.
///
/// # Errors
/// When there is no such record, or another process works on it.
pub fn retry(store: &Store, id: &SessionId) -> Result<bool, StoreError> {
    store.reset_for_retry(id)
}

/// Selects among the records that the CRM has refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailedFilter {
    /// Only calls that began since then.
    pub since: Option<DateTime<Utc>>,
    /// Only calls with a number that ends with these digits.
    pub number: Option<String>,
    /// Only calls of the campaign with this id.
    pub campaign: Option<String>,
    /// Only calls whose last errors contain this text, in upper or lower case.
    pub error: Option<String>,
}

impl FailedFilter {
    fn means(&self, record: &CallRecord) -> bool {
        let digits =
            |number: &str| -> String { number.chars().filter(char::is_ascii_digit).collect() };
        let campaign = CampaignIds::from_campaign_metadata(&record.campaign_metadata).campaign_id;
        let update = record.uploads.call_data_update.as_ref();
        let errors = [
            record.uploads.recording.last_error.as_deref(),
            record.uploads.call_data.last_error.as_deref(),
            update.and_then(|update| update.last_error.as_deref()),
        ];
        record.status == RecordStatus::Failed
            && self
                .since
                .is_none_or(|since| record.started_at().is_none_or(|start| start >= since))
            && self.number.as_ref().is_none_or(|number| {
                let other = record.other_party().map(digits);
                other.is_some_and(|other| other.ends_with(number.as_str()))
            })
            && self
                .campaign
                .as_ref()
                .is_none_or(|wanted| campaign.as_ref() == Some(wanted))
            && self.error.as_ref().is_none_or(|wanted| {
                let wanted = wanted.to_lowercase();
                let mut errors = errors.iter().flatten();
                errors.any(|error| error.to_lowercase().contains(&wanted))
            })
    }
}

/// The records that the CRM has refused, oldest first. Unreadable files are not among them;
/// [`list`] shows those.
///
/// # Errors
/// When the folder cannot be listed.
pub fn failed(store: &Store, filter: &FailedFilter) -> Result<Vec<SessionId>, StoreError> {
    let pending = store.pending()?.into_iter();
    let records = pending.filter_map(|pending| store.read_pending(&pending).ok().flatten());
    Ok(records
        .filter(|record| filter.means(record))
        .map(|record| record.session_id)
        .collect())
}
