//! The way of one record to the CRM: recording, call data, archive, each step on disk before the next.

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

use super::policy::{self, Verdict};
use super::queue::{due_of, late_look};
use super::{SuccessRule, Uploader, later};

/// How a record is to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Deliver it if its time has come.
    WhenDue,
    /// Its recording is said to have come: deliver it, though its time has not.
    Hurried,
    /// Deliver it now.
    Now,
    /// Say what would be done.
    DryRun,
}

/// What became of one record in one try.
#[derive(Debug)]
pub(super) struct Delivery {
    pub recording_uploaded: bool,
    pub call_data_sent: bool,
    pub end: End,
}

/// How the try ended.
#[derive(Debug)]
pub(super) enum End {
    Delivered,
    Waiting(DateTime<Utc>),
    Retrying(DateTime<Utc>),
    Failed,
    ClaimedElsewhere,
    /// The CRM gets nothing for a while.
    HeldBack,
    WouldDeliver,
    /// The record could not be worked on here; the log says why.
    Broken,
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

/// Whether a part lets the next step begin.
enum Step {
    Go,
    Stop(End),
}

/// Why a part was not sent.
struct Fault {
    why: String,
    /// What the CRM answered.
    said: Option<Value>,
    again: Again,
}

/// Whether it is worth another attempt.
enum Again {
    Never,
    /// Not before what the CRM asked for.
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

/// The record on its way.
struct Parcel<'a> {
    uploader: &'a Uploader,
    /// As it is on disk.
    record: CallRecord,
    /// With us between two writes, with the thread that writes during one. A write that failed keeps it, and the try ends there.
    claim: Option<Claim>,
    now: DateTime<Utc>,
    /// It waits while the CRM is given a rest.
    patient: bool,
    /// A recording that is missing is looked for now, though the time for it has not come.
    looks_now: bool,
    /// The try is noted in the record.
    tried: bool,
    recording_uploaded: bool,
    call_data_sent: bool,
    /// The latest request, for the next write of the record.
    unnoted: Option<(DeliveryPart, Attempt)>,
}

impl Uploader {
    /// Delivers one record as far as it goes now. Never fails as a whole: what goes wrong is in the answer, the record and the log.
    pub(super) async fn deliver(
        &self,
        pending: PendingRecord,
        mode: Mode,
    ) -> (SessionId, Delivery) {
        let id = pending.session_id.clone();
        let span = info_span!("delivery", session.id = %id);
        let delivery = async {
            // Whatever is in a record, the others must not suffer from it.
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
        // Another worker may have tried since the folder was listed.
        if mode == Mode::WhenDue
            && let Some(due) = due_of(claim.record()).time(now)
            && due > now
        {
            return Ok(Delivery::ended(End::Retrying(due)));
        }
        let record = claim.record().clone();
        let mut parcel = Parcel {
            uploader: self,
            record,
            claim: Some(claim),
            now,
            patient: matches!(mode, Mode::WhenDue | Mode::Hurried),
            looks_now: mode != Mode::WhenDue,
            tried: false,
            recording_uploaded: false,
            call_data_sent: false,
            unnoted: None,
        };
        let end = parcel.deliver().await?;
        let Parcel {
            recording_uploaded,
            call_data_sent,
            record,
            claim,
            ..
        } = parcel;
        let end = match (end, claim) {
            (Some(end), _) => end,
            (None, None) => End::ClaimedElsewhere,
            (None, Some(claim)) => {
                let store = self.store.clone();
                let file = on_disk(move || store.archive(claim)).await?;
                info!(file = %file.display(), attempts = record.upload_attempts, "call delivered to the CRM");
                metrics::counter!("voicebot_records_delivered_total").increment(1);
                End::Delivered
            }
        };
        Ok(Delivery {
            recording_uploaded,
            call_data_sent,
            end,
        })
    }

    /// What a try would do, for a dry run.
    async fn describe(&self, pending: &PendingRecord) -> Result<Delivery, StoreError> {
        let Some(record) = self.store.read_pending(pending)? else {
            return Ok(Delivery::ended(End::ClaimedElsewhere));
        };
        let state = record.uploads.recording.state;
        let recording = if state.is_settled() && late_look(&record).is_none() {
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

impl Parcel<'_> {
    /// Changes the record on disk. Waiting for the disk is done away from the threads that serve sockets.
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

    /// Counts a request, and keeps it for the record.
    fn note(&mut self, part: DeliveryPart, verdict: &Verdict, took: Duration) {
        let (outcome, label, error) = match verdict {
            Verdict::Accepted(_) => (AttemptOutcome::Accepted, "accepted", None),
            Verdict::Duplicate(_) => (AttemptOutcome::Duplicate, "duplicate", None),
            Verdict::TryAgain { why, .. } => (AttemptOutcome::TryAgain, "try_again", Some(why)),
            Verdict::Refused { why, .. } => (AttemptOutcome::Refused, "refused", Some(why)),
        };
        self.uploader.saw(verdict);
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
    async fn deliver(&mut self) -> Result<Option<End>, StoreError> {
        match self.record.status {
            RecordStatus::Uploaded => return Ok(None),
            RecordStatus::Failed => return Ok(Some(End::Failed)),
            RecordStatus::ReadyForUpload | RecordStatus::Uploading => {}
        }
        if let Step::Stop(end) = self.deliver_recording().await? {
            return Ok(Some(end));
        }
        let uploads = &self.record.uploads;
        if !uploads.call_data.state.is_settled()
            && let Step::Stop(end) = self.deliver_call_data(DeliveryPart::CallData).await?
        {
            return Ok(Some(end));
        }
        let update = self.record.uploads.call_data_update.as_ref();
        if update.is_some_and(|update| !update.state.is_settled())
            && let Step::Stop(end) = self.deliver_call_data(DeliveryPart::CallDataUpdate).await?
        {
            return Ok(Some(end));
        }
        if self.record.status != RecordStatus::Failed
            && let Some(look) = late_look(&self.record)
        {
            return Ok(Some(End::Waiting(look)));
        }
        // Only a record whose process was killed right after its last answer has not concluded by now.
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

    /// Notes in the record, before a request, that it is made: the try, and the id that the CRM will know the call by.
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

    /// Notes that the CRM has a part.
    async fn sent(
        &mut self,
        part: DeliveryPart,
        answer: Value,
        remark: Option<String>,
        change: impl FnOnce(&mut CallRecord),
    ) -> Result<Step, StoreError> {
        self.mark(|record| {
            let progress = record.uploads.part(part);
            *progress.state = PartState::Sent;
            *progress.next_attempt = None;
            *progress.last_error = remark;
            *progress.response = Some(policy::shorten(answer));
            change(record);
        })
        .await?;
        Ok(Step::Go)
    }

    /// Notes that a part was not sent: until its next attempt, or for good. What comes after a part that was refused goes all the same: a
    /// call without its recording is worth more than no call.
    async fn not_sent(&mut self, part: DeliveryPart, fault: Fault) -> Result<Step, StoreError> {
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
        let due = pause.map(|pause| later(self.uploader.now(), pause));
        self.mark(|record| {
            let progress = record.uploads.part(part);
            if due.is_none() {
                *progress.state = PartState::Failed;
            }
            *progress.next_attempt = due;
            *progress.last_error = Some(with_excerpt(why, said.as_ref()));
            *progress.response = said.map(policy::shorten);
        })
        .await?;
        Ok(match due {
            Some(due) => Step::Stop(End::Retrying(due)),
            None => Step::Go,
        })
    }

    async fn deliver_recording(&mut self) -> Result<Step, StoreError> {
        let recording = &self.record.uploads.recording;
        let is_late = recording.state == PartState::Missing
            && recording
                .next_attempt
                .is_some_and(|due| self.looks_now || due <= self.now);
        if recording.state.is_settled() && !is_late {
            return Ok(Step::Go);
        }
        let now = self.now;
        let resolution = self.uploader.resolver.resolve(&self.record, now).await;
        let found = match &resolution {
            Resolution::Found(found) => found,
            Resolution::Wait {
                why, look_again, ..
            } if !is_late => {
                return self.wait_for_recording(&resolution, why, *look_again).await;
            }
            // The clock was set back, and what is missing stays so until it is found.
            Resolution::Wait {
                why, look_again, ..
            } => {
                return self
                    .go_without_recording(&resolution, Some(why), Some(*look_again))
                    .await;
            }
            Resolution::NotRecorded => {
                return self.go_without_recording(&resolution, None, None).await;
            }
            Resolution::Missing {
                why, look_again, ..
            } => {
                if !is_late {
                    warn!(
                        why = mask_numbers(why),
                        "the call is delivered without its recording, which is still looked for"
                    );
                }
                return self
                    .go_without_recording(&resolution, Some(why), *look_again)
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
        if self.is_held_back() {
            self.mark(|record| resolution.note(record, now)).await?;
            return Ok(Step::Stop(End::HeldBack));
        }
        self.begin(DeliveryPart::Recording, |record| {
            resolution.note(record, now);
        })
        .await?;
        let key = self.key(DeliveryPart::Recording);
        let started = tokio::time::Instant::now();
        let verdict = match self.uploader.crm.upload(found, &key).await {
            Ok(verdict) => verdict,
            // The disk's fault, not the CRM's.
            Err(why) => {
                let fault = Fault {
                    why,
                    said: None,
                    again: Again::After(None),
                };
                return self.not_sent(DeliveryPart::Recording, fault).await;
            }
        };
        self.note(DeliveryPart::Recording, &verdict, started.elapsed());
        self.after_upload(verdict, found, started.elapsed()).await
    }

    async fn after_upload(
        &mut self,
        verdict: Verdict,
        found: &FoundRecording,
        took: Duration,
    ) -> Result<Step, StoreError> {
        let part = DeliveryPart::Recording;
        let crm = &self.uploader.crm;
        let url_in = |body: &Value| policy::find_url(body, crm.url_pointers(), crm.base());
        const UNKNOWN_PLACE: &str = "the CRM had the recording already and did not say where";
        let (body, url) = match verdict {
            Verdict::Accepted(body) => match url_in(&body) {
                Some(url) => (body, Some(url)),
                None if policy::says_duplicate(&body) => (body, None),
                // An answer that is not JSON was cut off or comes from something in between, and may be another one next time.
                None if body.is_string() => {
                    let fault = Fault {
                        why: "the upload was answered with something that is not JSON".to_owned(),
                        said: Some(body),
                        again: Again::After(None),
                    };
                    return self.not_sent(part, fault).await;
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
            // The call data went without it.
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
    ) -> Result<Step, StoreError> {
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
        Ok(Step::Stop(End::Waiting(due)))
    }

    async fn go_without_recording(
        &mut self,
        resolution: &Resolution,
        why: Option<&str>,
        look_again: Option<DateTime<Utc>>,
    ) -> Result<Step, StoreError> {
        let now = self.now;
        self.mark(|record| {
            resolution.note(record, now);
            let part = &mut record.uploads.recording;
            part.state = PartState::Missing;
            part.next_attempt = look_again;
            part.last_error = why.map(str::to_owned);
        })
        .await?;
        Ok(Step::Go)
    }

    async fn deliver_call_data(&mut self, part: DeliveryPart) -> Result<Step, StoreError> {
        if self.is_held_back() {
            return Ok(Step::Stop(End::HeldBack));
        }
        self.begin(part, |_| {}).await?;
        let (store, record) = (self.uploader.store.clone(), self.record.clone());
        let payload = match on_disk(move || payload(&store, &record)).await {
            Ok(payload) => payload,
            // A file that cannot be read is not sent as if nothing had been said.
            Err(error) => {
                let fault = Fault::for_good(error.to_string(), None);
                return self.not_sent(part, fault).await;
            }
        };
        let started = tokio::time::Instant::now();
        let verdict = self.uploader.crm.call_data(&payload, &self.key(part)).await;
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
            Verdict::Refused { why, body } => {
                self.not_sent(part, Fault::for_good(why, Some(body))).await
            }
        }
    }

    fn is_held_back(&self) -> bool {
        self.patient && self.uploader.allowed_by_breaker() == 0
    }

    /// The idempotency key of a part's requests: the same for each repetition.
    fn key(&self, part: DeliveryPart) -> String {
        format!("{}/{}", self.record.session_id, key_of(part))
    }
}

/// A part's name in keys, metrics and log.
fn key_of(part: DeliveryPart) -> &'static str {
    match part {
        DeliveryPart::Recording => "recording",
        DeliveryPart::CallData => "call_data",
        DeliveryPart::CallDataUpdate => "call_data_update",
    }
}

/// The body of `POST /call-data`, from the record and the files that it names.
fn payload(store: &Store, record: &CallRecord) -> Result<Value, StoreError> {
    let read = |relative: &Option<String>| match relative {
        Some(relative) => store.read_json(relative),
        None => Ok(None),
    };
    let conversation = read(&record.files.conversation)?;
    if conversation.is_none() {
        warn!(
            session.id = %record.session_id,
            file = record.files.conversation.as_deref(),
            "there is no conversation file; the transcription is sent empty"
        );
    }
    let lead = read(&record.files.lead)?;
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

/// Where each part stands.
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
    let settled = states(record).all(PartState::is_settled) && late_look(record).is_none();
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
        record.timestamps.delivered = Some(now);
    } else {
        record.advance(RecordStatus::Failed);
    }
}

/// Runs what waits for the disk where it holds nothing else up.
pub(super) async fn on_disk<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    // What is logged there belongs to the same call.
    let span = Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(result) => result,
        // Only a panic or the end of the runtime gets here, and both are not ours to swallow.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

/// The record keeps what the CRM said; the log does not, because answers repeat what was sent.
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
