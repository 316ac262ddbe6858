//! The delivery of one record to the CRM: recording, call data, archive, each step on disk before
//! the next.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::FutureExt as _;
use serde_json::Value;
use tracing::{Instrument as _, Span, debug, error, info, info_span, warn};

use crate::recording::resolve::{FoundRecording, Resolution};
use crate::session::{
    Attempt, AttemptOutcome, CallRecord, DeliveredRecording, DeliveryPart, PartState, RecordStatus,
    SessionId, crm_payload, mask_numbers,
};
use crate::store::{Claim, PendingRecord, Store, StoreError};

use super::crm::Answered;
use super::policy::{self, Verdict};
use super::queue::{due_of, late_scan};
use super::{Endpoint, SuccessRule, Uploader, later};

/// How a record is processed in this attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Deliver it if it is due.
    WhenDue,
    /// A webhook reported the end of its egress: deliver it before it is due.
    Hurried,
    /// The CRM accepts call data but no recordings, and `recording.wait_s` is over: send the call
    /// data without the recording.
    Released,
    /// Deliver it now, whether it is due or not.
    Now,
    /// Only log what would be done.
    DryRun,
}

/// The result of one attempt to deliver one record.
#[derive(Debug)]
pub(super) struct Delivery {
    pub recording_uploaded: bool,
    pub call_data_sent: bool,
    pub end: End,
}

/// How the attempt ended.
#[derive(Debug)]
pub(super) enum End {
    Delivered,
    Waiting(DateTime<Utc>),
    Retrying(DateTime<Utc>),
    Failed,
    ClaimedElsewhere,
    /// The circuit breaker for this endpoint is open.
    HeldBack(Endpoint),
    /// The CRM rejected the request without reading it (401, 403, 404 or a redirect); other records
    /// go first.
    TurnedAway,
    WouldDeliver,
    /// The record could not be processed on this machine; the log says why.
    Broken,
}

impl End {
    /// Combines the results of two parts that are both still unsent.
    fn or_sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::Retrying(one), Self::Retrying(two)) => Self::Retrying(one.min(two)),
            (Self::Retrying(due), _) | (_, Self::Retrying(due)) => Self::Retrying(due),
            (Self::TurnedAway, _) | (_, Self::TurnedAway) => Self::TurnedAway,
            (one, _) => one,
        }
    }
}

impl Delivery {
    fn ended(end: End) -> Self {
        Self {
            recording_uploaded: false,
            call_data_sent: false,
            end,
        }
    }
}

/// Whether the delivery goes on after one part.
enum Flow {
    Go,
    Stop(End),
}

/// Why a part was not sent.
struct Fault {
    why: String,
    /// The body of the CRM's answer.
    said: Option<Value>,
    again: Again,
}

/// Whether it is worth another attempt.
enum Again {
    Never,
    /// After a pause, which is at least the one from `Retry-After`.
    After(Option<Duration>),
}

impl Fault {
    fn for_good(why: impl Into<String>, said: Option<Value>) -> Self {
        Self {
            why: why.into(),
            said,
            again: Again::Never,
        }
    }
}

/// One attempt to deliver one record.
struct DeliveryAttempt<'a> {
    uploader: &'a Uploader,
    /// The record as it is on disk.
    record: CallRecord,
    /// `None` while a blocking write owns it, or after that write failed.
    claim: Option<Claim>,
    now: DateTime<Utc>,
    /// Whether the attempt respects the circuit breaker.
    patient: bool,
    /// Whether to search for a missing recording before its next scan is due.
    scans_now: bool,
    /// Whether this attempt is already counted in the record.
    tried: bool,
    recording_uploaded: bool,
    call_data_sent: bool,
    /// The latest request, which the next write of the record adds to its list of attempts.
    unnoted: Option<(DeliveryPart, Attempt)>,
}

impl Uploader {
    /// Delivers as much of one record as is possible now. Never fails as a whole: errors are in the
    /// result, the record and the log.
    pub(super) async fn deliver(
        &self,
        pending: PendingRecord,
        mode: Mode,
    ) -> (SessionId, Delivery) {
        let id = pending.session_id.clone();
        let span = info_span!("delivery", session.id = %id);
        let delivery = async {
            // A panic on one record must not stop the delivery of the others.
            match AssertUnwindSafe(self.try_deliver(pending, mode))
                .catch_unwind()
                .await
            {
                Ok(Ok(delivery)) => return delivery,
                Ok(Err(error)) => error!(%error, "record not delivered"),
                Err(_) => error!("record not delivered: the program has a fault, see above"),
            }
            Delivery::ended(End::Broken)
        };
        let delivery = delivery.instrument(span).await;
        (id, delivery)
    }

    async fn try_deliver(
        &self,
        pending: PendingRecord,
        mode: Mode,
    ) -> Result<Delivery, StoreError> {
        if mode == Mode::DryRun {
            return self.describe(&pending).await;
        }
        let store = self.store.clone();
        let Some(claim) = on_disk(move || store.claim(&pending)).await? else {
            debug!("another process works on the record, or it is delivered");
            return Ok(Delivery::ended(End::ClaimedElsewhere));
        };
        let now = self.now();
        // Another worker may have processed it since the folder was listed.
        if matches!(mode, Mode::WhenDue | Mode::Released)
            && let Some(due) = due_of(claim.record()).time(now)
            && due > now
        {
            return Ok(Delivery::ended(End::Retrying(due)));
        }
        let record = claim.record().clone();
        let mut delivery = DeliveryAttempt {
            uploader: self,
            record,
            claim: Some(claim),
            now,
            patient: matches!(mode, Mode::WhenDue | Mode::Hurried | Mode::Released),
            scans_now: matches!(mode, Mode::Hurried | Mode::Now),
            tried: false,
            recording_uploaded: false,
            call_data_sent: false,
            unnoted: None,
        };
        let end = delivery.deliver(mode).await?;
        let DeliveryAttempt {
            recording_uploaded,
            call_data_sent,
            record,
            claim,
            ..
        } = delivery;
        let end = match (end, claim) {
            (Some(end), _) => end,
            (None, None) => End::ClaimedElsewhere,
            (None, Some(claim)) => {
                let store = self.store.clone();
                let file = on_disk(move || store.archive(claim)).await?;
                if record.has_a_call() {
                    info!(file = %file.display(), attempts = record.upload_attempts, "call delivered to the CRM");
                    metrics::counter!("voicebot_records_delivered_total").increment(1);
                } else {
                    info!(file = %file.display(), "another agent had the call: the CRM gets its record, and this one was archived");
                }
                End::Delivered
            }
        };
        Ok(Delivery {
            recording_uploaded,
            call_data_sent,
            end,
        })
    }

    /// Logs what an attempt would do, for a dry run.
    async fn describe(&self, pending: &PendingRecord) -> Result<Delivery, StoreError> {
        let Some(record) = self.store.read_pending(pending)? else {
            return Ok(Delivery::ended(End::ClaimedElsewhere));
        };
        let state = record.uploads.recording.state;
        let recording = if state.is_settled() && late_scan(&record).is_none() {
            format!("the recording is {state:?} already")
        } else {
            match self.resolver.resolve(&record, self.now()).await {
                Resolution::Found(found) => {
                    format!("{} ({} bytes) would be uploaded", found.name, found.size)
                }
                Resolution::NotRecorded => "the call was not recorded".to_owned(),
                Resolution::Wait { why, .. } => {
                    format!("the recording would be waited for: {why}")
                }
                Resolution::Missing { why, .. } | Resolution::Failed { why, .. } => {
                    format!("there is no recording: {why}")
                }
            }
        };
        info!(status = ?record.status, recording, call_data = ?record.uploads.call_data.state, "dry run");
        Ok(Delivery::ended(End::WouldDeliver))
    }

    fn pause_after(&self, attempts: u32, asked_for: Option<Duration>) -> Duration {
        self.config
            .backoff()
            .pause(attempts, rand::random(), asked_for)
    }
}

impl DeliveryAttempt<'_> {
    /// Changes the record on disk, on a thread for blocking work.
    async fn mark(&mut self, change: impl FnOnce(&mut CallRecord)) -> Result<(), StoreError> {
        let Some(mut claim) = self.claim.take() else {
            return Err(StoreError::Busy(self.record.session_id.clone()));
        };
        let mut next = self.record.clone();
        if let Some((part, attempt)) = self.unnoted.take() {
            next.uploads.part(part).note(attempt);
        }
        change(&mut next);
        conclude(&mut next, self.uploader.config.success, self.uploader.now());
        let store = self.uploader.store.clone();
        let claim = on_disk(move || {
            store
                .mark(&mut claim, |record| *record = next)
                .map(|()| claim)
        })
        .await?;
        self.record = claim.record().clone();
        self.claim = Some(claim);
        Ok(())
    }

    /// Counts a request in the metrics, and keeps it for the next write of the record.
    fn note(&mut self, part: DeliveryPart, verdict: &Verdict, took: Duration) {
        let (outcome, label, error) = match verdict {
            Verdict::Accepted(_) => (AttemptOutcome::Accepted, "accepted", None),
            Verdict::Duplicate(_) => (AttemptOutcome::Duplicate, "duplicate", None),
            Verdict::TryAgain { why, .. } => (AttemptOutcome::TryAgain, "try_again", Some(why)),
            Verdict::NotAdmitted { why, .. } => {
                (AttemptOutcome::TryAgain, "not_admitted", Some(why))
            }
            Verdict::Refused { why, .. } => (AttemptOutcome::Refused, "refused", Some(why)),
        };
        self.uploader.saw(endpoint_of(part), verdict);
        metrics::counter!("voicebot_upload_attempts_total", "part" => key_of(part), "outcome" => label)
            .increment(1);
        let attempt = Attempt {
            at: self.uploader.now(),
            took_ms: took.as_millis() as u64,
            outcome,
            error: error.cloned(),
        };
        self.unnoted = Some((part, attempt));
    }

    /// `None`: everything is confirmed and the record may be archived.
    async fn deliver(&mut self, mode: Mode) -> Result<Option<End>, StoreError> {
        match self.record.status {
            RecordStatus::Uploaded => return Ok(None),
            RecordStatus::Failed => return Ok(Some(End::Failed)),
            RecordStatus::ReadyForUpload | RecordStatus::Uploading => {}
        }
        if !self.record.has_a_call() {
            self.mark(|record| {
                for part in [DeliveryPart::Recording, DeliveryPart::CallData] {
                    *record.uploads.part(part).state = PartState::Missing;
                }
            })
            .await?;
            return Ok(None);
        }
        let recording = match mode {
            Mode::Released if !self.record.uploads.recording.state.is_settled() => {
                Flow::Stop(End::HeldBack(Endpoint::Upload))
            }
            _ => self.deliver_recording().await?,
        };
        let recording = match recording {
            Flow::Go => None,
            Flow::Stop(end) if self.waits_no_longer(&end, mode) => Some(end),
            Flow::Stop(end) => return Ok(Some(end)),
        };
        if !self.record.uploads.call_data.state.is_settled()
            && let Flow::Stop(end) = self.deliver_call_data(DeliveryPart::CallData).await?
        {
            return Ok(Some(match recording {
                Some(other) => end.or_sooner(other),
                None => end,
            }));
        }
        if recording.is_some() {
            return Ok(recording);
        }
        let update = self.record.uploads.call_data_update.as_ref();
        if update.is_some_and(|update| !update.state.is_settled())
            && let Flow::Stop(end) = self.deliver_call_data(DeliveryPart::CallDataUpdate).await?
        {
            return Ok(Some(end));
        }
        if self.record.status != RecordStatus::Failed
            && let Some(due) = late_scan(&self.record)
        {
            return Ok(Some(End::Waiting(due)));
        }
        // A status that is not final here means that an earlier process was killed right after the
        // last answer.
        if !matches!(
            self.record.status,
            RecordStatus::Uploaded | RecordStatus::Failed
        ) {
            self.mark(|_| {}).await?;
        }
        if self.record.status == RecordStatus::Failed {
            metrics::counter!("voicebot_records_failed_total").increment(1);
            error!(
                "the CRM has refused the call; it stays in call_metadata/ until `uploads retry` is called for it"
            );
            return Ok(Some(End::Failed));
        }
        if is_refused(&self.record) {
            warn!(
                "one part was refused, and the record is archived all the same, because upload.success is any"
            );
        }
        Ok(None)
    }

    /// Whether the call data goes without a recording that was found but cannot be uploaded at
    /// present.
    fn waits_no_longer(&self, end: &End, mode: Mode) -> bool {
        let uploads = &self.record.uploads;
        let released = uploads
            .recording
            .release_at
            .is_some_and(|at| at <= self.now);
        let long_enough = mode == Mode::Released || released;
        // While the CRM accepts nothing at all, the call data waits so that it can still contain
        // the URL.
        let of_use = match end {
            End::HeldBack(_) => self.uploader.takes_no_recordings(),
            End::Retrying(_) | End::TurnedAway => true,
            _ => false,
        };
        let is_due = uploads
            .call_data
            .next_attempt
            .is_none_or(|due| !self.patient || due <= self.now);
        long_enough && of_use && is_due && !uploads.call_data.state.is_settled()
    }

    /// Writes into the record, before a request, that an attempt is made, and the call's id in the
    /// CRM.
    async fn begin(
        &mut self,
        part: DeliveryPart,
        change: impl FnOnce(&mut CallRecord),
    ) -> Result<(), StoreError> {
        let first = !std::mem::replace(&mut self.tried, true);
        let now = self.now;
        let (store, record) = (self.uploader.store.clone(), self.record.clone());
        let call_id = on_disk(move || store.call_id_for_record(&record)).await?;
        self.mark(|record| {
            record.call_id = Some(call_id);
            if first {
                record.advance(RecordStatus::Uploading);
                record.upload_attempts = record.upload_attempts.saturating_add(1);
                record.last_upload_attempt = Some(now);
            }
            let attempts = record.uploads.part(part).attempts;
            *attempts = attempts.saturating_add(1);
            change(record);
        })
        .await
    }

    /// Writes into the record that the CRM has confirmed a part.
    async fn sent(
        &mut self,
        part: DeliveryPart,
        answer: Value,
        remark: Option<String>,
        change: impl FnOnce(&mut CallRecord),
    ) -> Result<Flow, StoreError> {
        self.mark(|record| {
            let progress = record.uploads.part(part);
            *progress.state = PartState::Sent;
            *progress.next_attempt = None;
            *progress.not_admitted = None;
            *progress.last_error = remark;
            *progress.response = Some(policy::shorten(answer));
            change(record);
        })
        .await?;
        Ok(Flow::Go)
    }

    /// Writes into the record that a part was not sent, and when it is tried again, if ever. After
    /// a refused part the next part is still sent: a call without its recording is worth more than
    /// no call.
    async fn not_sent(&mut self, part: DeliveryPart, fault: Fault) -> Result<Flow, StoreError> {
        let Fault {
            mut why,
            said,
            again,
        } = fault;
        let attempts = *self.record.uploads.part(part).attempts;
        let pause = match again {
            Again::Never => None,
            Again::After(_) if attempts >= self.uploader.config.max_attempts => {
                why = format!("given up after {attempts} attempts: {why}");
                None
            }
            Again::After(asked_for) => Some(self.uploader.pause_after(attempts, asked_for)),
        };
        match pause {
            Some(pause) => warn!(
                part = key_of(part),
                why,
                attempts,
                pause_ms = pause.as_millis() as u64,
                "not sent to the CRM, will be tried again"
            ),
            None => error!(
                part = key_of(part),
                why, attempts, "not sent to the CRM, and not tried again by itself"
            ),
        }
        let now = self.uploader.now();
        let wait = self.uploader.resolver.wait();
        let due = pause.map(|pause| later(now, pause));
        self.mark(|record| {
            if part == DeliveryPart::Recording {
                hold_call_data(record, wait, now);
            }
            let progress = record.uploads.part(part);
            if due.is_none() {
                *progress.state = PartState::Failed;
            }
            *progress.not_admitted = None;
            *progress.next_attempt = due;
            *progress.last_error = Some(with_excerpt(why, said.as_ref()));
            *progress.response = said.map(policy::shorten);
        })
        .await?;
        Ok(match due {
            Some(due) => {
                let sooner = due_of(&self.record).time(now);
                Flow::Stop(End::Retrying(sooner.map_or(due, |sooner| due.min(sooner))))
            }
            None => Flow::Go,
        })
    }

    /// Writes into the record that the CRM rejected a request without reading it (401, 403, 404 or
    /// a redirect). That does not count as an attempt: the record stays due, and the breaker
    /// decides when the next request is made. A record that is rejected for `upload.turned_away_s`
    /// while others are accepted counts as refused.
    async fn turned_away(
        &mut self,
        part: DeliveryPart,
        why: String,
        body: Value,
    ) -> Result<Flow, StoreError> {
        let now = self.uploader.now();
        let before = self
            .record
            .uploads
            .part(part)
            .not_admitted
            .unwrap_or_default();
        let endpoint = endpoint_of(part);
        let others_pass = self.uploader.has_taken_since(endpoint, before.last_scan);
        let watch = before.looked(now, None, others_pass);
        if watch.seen() >= Duration::from_secs(self.uploader.config.turned_away_s) {
            let why = format!(
                "turned away for {} s, while the CRM took other calls: {why}",
                watch.seen().as_secs()
            );
            return self.not_sent(part, Fault::for_good(why, Some(body))).await;
        }
        warn!(
            part = key_of(part),
            why, "the CRM does not let the request in; the record waits"
        );
        let wait = self.uploader.resolver.wait();
        self.mark(|record| {
            if part == DeliveryPart::Recording {
                hold_call_data(record, wait, now);
            }
            let progress = record.uploads.part(part);
            *progress.attempts = progress.attempts.saturating_sub(1);
            *progress.not_admitted = Some(watch);
            // Without a time, a recording in state `Missing` counts as given up.
            let is_missing = *progress.state == PartState::Missing;
            *progress.next_attempt = is_missing.then_some(now);
            *progress.last_error = Some(with_excerpt(why, Some(&body)));
            *progress.response = Some(policy::shorten(body));
        })
        .await?;
        Ok(Flow::Stop(End::TurnedAway))
    }

    async fn deliver_recording(&mut self) -> Result<Flow, StoreError> {
        let recording = &self.record.uploads.recording;
        let is_late = recording.state == PartState::Missing
            && recording
                .next_attempt
                .is_some_and(|due| self.scans_now || due <= self.now);
        if recording.state.is_settled() && !is_late {
            return Ok(Flow::Go);
        }
        // When its wait is over, a recording is tried once more before the call data goes without
        // it, unless `Retry-After` asks for a longer pause.
        let longest = Duration::from_secs(self.uploader.config.max_backoff_s);
        if let Some(due) = recording.next_attempt
            && recording.release_at.is_some_and(|at| at <= self.now)
            && recording.state == PartState::Pending
            && !self.scans_now
            && due > later(self.now, longest)
        {
            return Ok(Flow::Stop(End::Retrying(due)));
        }
        let now = self.now;
        let resolution = self.uploader.resolver.resolve(&self.record, now).await;
        let found = match &resolution {
            Resolution::Found(found) => found,
            Resolution::Wait {
                why, scan_again, ..
            } if !is_late => {
                return self.wait_for_recording(&resolution, why, *scan_again).await;
            }
            // The clock was set back: a recording in state `Missing` stays missing until it is
            // found.
            Resolution::Wait {
                why, scan_again, ..
            } => {
                return self
                    .go_without_recording(&resolution, Some(why), Some(*scan_again))
                    .await;
            }
            Resolution::NotRecorded => {
                return self.go_without_recording(&resolution, None, None).await;
            }
            Resolution::Missing {
                why, scan_again, ..
            } => {
                if !is_late {
                    warn!(
                        why = mask_numbers(why),
                        "the call is delivered without its recording, which is still looked for"
                    );
                }
                return self
                    .go_without_recording(&resolution, Some(why), *scan_again)
                    .await;
            }
            Resolution::Failed { why, .. } => {
                warn!(
                    why = mask_numbers(why),
                    "the call is delivered without its recording"
                );
                return self
                    .go_without_recording(&resolution, Some(why), None)
                    .await;
            }
        };
        if self.is_held_back(Endpoint::Upload) {
            let wait = self.uploader.resolver.wait();
            self.mark(|record| {
                resolution.note(record, now);
                hold_call_data(record, wait, now);
            })
            .await?;
            return Ok(Flow::Stop(End::HeldBack(Endpoint::Upload)));
        }
        self.begin(DeliveryPart::Recording, |record| {
            resolution.note(record, now);
        })
        .await?;
        let key = self.key(DeliveryPart::Recording);
        let started = tokio::time::Instant::now();
        let answered = match self.uploader.crm.upload(found, &key).await {
            Ok(answered) => answered,
            // The recording could not be read, which says nothing about the CRM.
            Err(why) => {
                let fault = Fault {
                    why,
                    said: None,
                    again: Again::After(None),
                };
                return self.not_sent(DeliveryPart::Recording, fault).await;
            }
        };
        self.note(
            DeliveryPart::Recording,
            &answered.verdict,
            started.elapsed(),
        );
        self.after_upload(answered, found, started.elapsed()).await
    }

    async fn after_upload(
        &mut self,
        answered: Answered,
        found: &FoundRecording,
        took: Duration,
    ) -> Result<Flow, StoreError> {
        let part = DeliveryPart::Recording;
        let crm = &self.uploader.crm;
        let Answered { verdict, location } = answered;
        let url_in = |body: &Value| {
            policy::find_url(body, crm.url_pointers(), crm.base())
                .or_else(|| location.clone().map(String::from))
        };
        const UNKNOWN_PLACE: &str = "the CRM has the recording and did not say where";
        let (body, url) = match verdict {
            Verdict::Accepted(body) => match url_in(&body) {
                Some(url) => (body, Some(url)),
                // An empty answer or a single word is a receipt for a recording as it is for call
                // data.
                None if matches!(body, Value::Null | Value::Bool(true) | Value::String(_))
                    || policy::says_duplicate(&body) =>
                {
                    (body, None)
                }
                None => {
                    let why = "the upload was accepted, but none of crm.url_pointers leads to a URL in the answer";
                    let fault = Fault::for_good(why, Some(body));
                    return self.not_sent(part, fault).await;
                }
            },
            Verdict::Duplicate(body) => {
                let url = url_in(&body);
                (body, url)
            }
            Verdict::NotAdmitted { why, body } => return self.turned_away(part, why, body).await,
            Verdict::TryAgain { why, body, after } => {
                let fault = Fault {
                    why,
                    said: body,
                    again: Again::After(after),
                };
                return self.not_sent(part, fault).await;
            }
            Verdict::Refused { why, body } => {
                return self.not_sent(part, Fault::for_good(why, Some(body))).await;
            }
        };
        self.recording_uploaded = true;
        info!(
            bytes = found.size,
            duration_ms = took.as_millis() as u64,
            "recording uploaded"
        );
        let remark = url.is_none().then(|| UNKNOWN_PLACE.to_owned());
        self.sent(part, body, remark, |record| {
            let uploads = &mut record.uploads;
            // The call data was sent without the recording: send an update with its URL.
            if url.is_some() && uploads.call_data.state == PartState::Sent {
                uploads.call_data_update.get_or_insert_default();
            }
            uploads.recording.url = url;
        })
        .await
    }

    async fn wait_for_recording(
        &mut self,
        resolution: &Resolution,
        why: &str,
        due: DateTime<Utc>,
    ) -> Result<Flow, StoreError> {
        debug!(
            why = mask_numbers(why),
            pause_ms = (due - self.now).num_milliseconds(),
            "the recording is waited for"
        );
        let now = self.now;
        self.mark(|record| {
            resolution.note(record, now);
            let part = &mut record.uploads.recording;
            part.state = PartState::Waiting;
            part.next_attempt = Some(due);
            part.last_error = Some(why.to_owned());
        })
        .await?;
        Ok(Flow::Stop(End::Waiting(due)))
    }

    async fn go_without_recording(
        &mut self,
        resolution: &Resolution,
        why: Option<&str>,
        scan_again: Option<DateTime<Utc>>,
    ) -> Result<Flow, StoreError> {
        let now = self.now;
        self.mark(|record| {
            resolution.note(record, now);
            let part = &mut record.uploads.recording;
            part.state = PartState::Missing;
            part.next_attempt = scan_again;
            part.last_error = why.map(str::to_owned);
        })
        .await?;
        Ok(Flow::Go)
    }

    async fn deliver_call_data(&mut self, part: DeliveryPart) -> Result<Flow, StoreError> {
        if self.is_held_back(Endpoint::CallData) {
            return Ok(Flow::Stop(End::HeldBack(Endpoint::CallData)));
        }
        self.begin(part, |record| {
            let recording = &record.uploads.recording;
            if !recording.state.is_settled() {
                warn!(
                    why = recording.last_error.as_deref().map(mask_numbers),
                    "the call is delivered without its recording, which is still to be uploaded"
                );
            }
        })
        .await?;
        let (store, record) = (self.uploader.store.clone(), self.record.clone());
        let payload = match on_disk(move || payload(&store, &record)).await {
            Ok(payload) => payload,
            // An unreadable conversation file must not become an empty transcript at the CRM.
            Err(error) => {
                let fault = Fault::for_good(error.to_string(), None);
                return self.not_sent(part, fault).await;
            }
        };
        let started = tokio::time::Instant::now();
        let answered = self.uploader.crm.call_data(&payload, &self.key(part)).await;
        let verdict = answered.verdict;
        self.note(part, &verdict, started.elapsed());
        match verdict {
            Verdict::Duplicate(body) if part == DeliveryPart::CallDataUpdate => {
                self.call_data_sent = true;
                let remark = "the CRM had the call already and did not say whether it took the recording's URL";
                self.sent(part, body, Some(remark.to_owned()), |_| {}).await
            }
            Verdict::Accepted(body) | Verdict::Duplicate(body) => {
                self.call_data_sent = true;
                self.sent(part, body, None, |_| {}).await
            }
            Verdict::TryAgain { why, body, after } => {
                let fault = Fault {
                    why,
                    said: body,
                    again: Again::After(after),
                };
                self.not_sent(part, fault).await
            }
            Verdict::NotAdmitted { why, body } => self.turned_away(part, why, body).await,
            Verdict::Refused { why, body } => {
                self.not_sent(part, Fault::for_good(why, Some(body))).await
            }
        }
    }

    fn is_held_back(&self, endpoint: Endpoint) -> bool {
        self.patient && self.uploader.allowed_by_breaker(endpoint) == 0
    }

    /// The idempotency key of a part's requests: the same for each repetition.
    fn key(&self, part: DeliveryPart) -> String {
        format!("{}/{}", self.record.session_id, key_of(part))
    }
}

/// Sets the time until which the call data waits for a recording that was found but not uploaded.
fn hold_call_data(record: &mut CallRecord, wait: Duration, now: DateTime<Utc>) {
    let recording = &mut record.uploads.recording;
    let watched = recording.watch.unwrap_or_default().watched();
    recording.release_at = Some(later(now, wait.saturating_sub(watched)));
}

/// The endpoint that a part is sent to.
fn endpoint_of(part: DeliveryPart) -> Endpoint {
    match part {
        DeliveryPart::Recording => Endpoint::Upload,
        DeliveryPart::CallData | DeliveryPart::CallDataUpdate => Endpoint::CallData,
    }
}

/// A part's name in keys, metrics and log.
/// Every outcome of every request is counted from 0 on.
pub(super) fn counters_begin_at_zero() {
    for part in [
        DeliveryPart::Recording,
        DeliveryPart::CallData,
        DeliveryPart::CallDataUpdate,
    ] {
        for outcome in [
            "accepted",
            "duplicate",
            "try_again",
            "not_admitted",
            "refused",
        ] {
            metrics::counter!("voicebot_upload_attempts_total", "part" => key_of(part), "outcome" => outcome)
                .absolute(0);
        }
    }
}

fn key_of(part: DeliveryPart) -> &'static str {
    match part {
        DeliveryPart::Recording => "recording",
        DeliveryPart::CallData => "call_data",
        DeliveryPart::CallDataUpdate => "call_data_update",
    }
}

/// The body of `POST /call-data`, from the record and the files that it names.
fn payload(store: &Store, record: &CallRecord) -> Result<Value, StoreError> {
    let read = |relative: Option<&str>| match relative {
        Some(relative) => store.read_json(relative),
        None => Ok(None),
    };
    let conversation = read(record.files.conversation.as_deref())?;
    if conversation.is_none() {
        warn!(
            session.id = %record.session_id,
            file = record.files.conversation.as_deref(),
            "there is no conversation file; the transcription is sent empty"
        );
    }
    let lead = read(record.files.lead())?;
    let part = &record.uploads.recording;
    let recording = part.url.clone().map(|url| DeliveredRecording {
        url,
        duration: part.duration,
        size: part.size,
    });
    Ok(crm_payload(
        record,
        conversation.as_ref(),
        lead.as_ref(),
        recording.as_ref(),
    ))
}

/// The state of each part.
fn states(record: &CallRecord) -> impl Iterator<Item = PartState> {
    let uploads = &record.uploads;
    let update = uploads.call_data_update.as_ref().map(|part| part.state);
    [uploads.recording.state, uploads.call_data.state]
        .into_iter()
        .chain(update)
}

fn is_refused(record: &CallRecord) -> bool {
    states(record).any(|state| state == PartState::Failed)
}

/// Once every part is settled, the record is delivered or refused.
fn conclude(record: &mut CallRecord, rule: SuccessRule, now: DateTime<Utc>) {
    let open = matches!(
        record.status,
        RecordStatus::ReadyForUpload | RecordStatus::Uploading
    );
    let settled = states(record).all(PartState::is_settled) && late_scan(record).is_none();
    if !open || !settled {
        return;
    }
    let delivered = match rule {
        SuccessRule::Both => !is_refused(record),
        SuccessRule::Any => {
            !is_refused(record) || states(record).any(|state| state == PartState::Sent)
        }
    };
    if delivered {
        record.advance(RecordStatus::Uploaded);
        record.timestamps.delivered = Some(now).filter(|_| record.has_a_call());
    } else {
        record.advance(RecordStatus::Failed);
    }
}

/// Runs blocking disk work on a thread for it.
pub(super) async fn on_disk<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    // Its log lines keep the span of the call.
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

/// Adds the CRM's answer to an error in the record. The log does not get it: answers may repeat
/// what was sent.
fn with_excerpt(why: String, said: Option<&Value>) -> String {
    match said {
        Some(said) if !said.as_str().is_some_and(str::is_empty) => {
            format!(
                "{why}: {}",
                said.to_string().chars().take(300).collect::<String>()
            )
        }
        _ => why,
    }
}
