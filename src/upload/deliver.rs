//! The way of one record to the CRM: recording, call data, archive, each step on disk before the next.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use tracing::{Instrument as _, debug, error, info, info_span, warn};

use crate::recording::resolve::{RecordingFile, Resolution};
use crate::session::{
    Attempt, AttemptOutcome, CallRecord, DeliveredRecording, PartState, RecordStatus, SessionId,
    crm_payload, mask_numbers,
};
use crate::store::{Claim, PendingRecord, Store, StoreError};

use super::policy::{self, Verdict};
use super::queue::{Due, due_of};
use super::{Uploader, later};

/// A recording that is waited for is looked for after this, then less and less often, up to [`LONGEST_LOOK`].
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// See [`FIRST_LOOK`].
const LONGEST_LOOK: Duration = Duration::from_secs(30);

/// How a record is to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Deliver it if its time has come.
    WhenDue,
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
    WouldDeliver,
    Error(StoreError),
}

impl Delivery {
    fn ended(end: End) -> Self {
        Self {
            recording_uploaded: false,
            call_data_sent: false,
            end,
        }
    }

    /// When to look at the record again.
    pub(super) fn next_due(&self) -> Option<DateTime<Utc>> {
        match self.end {
            End::Waiting(due) | End::Retrying(due) => Some(due),
            _ => None,
        }
    }
}

/// Whether a part lets the next step begin.
enum Step {
    Go,
    Stop(End),
}

/// The record on its way.
struct Parcel<'a> {
    uploader: &'a Uploader,
    /// As it is on disk.
    record: CallRecord,
    /// With us between two writes, with the thread that writes during one. A write that failed keeps it, and the try ends there.
    claim: Option<Claim>,
    now: DateTime<Utc>,
    /// The try is noted in the record.
    tried: bool,
    recording_uploaded: bool,
    call_data_sent: bool,
    /// The latest request, for the next write of the record.
    unnoted: Option<(Part, Attempt)>,
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Recording,
    CallData,
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
            let delivery = self
                .try_deliver(pending, mode)
                .await
                .unwrap_or_else(|error| Delivery::ended(End::Error(error)));
            if let End::Error(error) = &delivery.end {
                error!(%error, "record not delivered");
            }
            delivery
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
            && let Due::At(due) = due_of(claim.record())
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
        let recording = match record.uploads.recording.state {
            PartState::Pending | PartState::Waiting => {
                match self.resolver.resolve(&record, self.now()).await {
                    Resolution::Found(file) => {
                        format!("{} ({} bytes) would be uploaded", file.relative, file.size)
                    }
                    Resolution::NotRecorded => "the call was not recorded".to_owned(),
                    Resolution::NotYet(why) => format!("the recording would be waited for: {why}"),
                    Resolution::Lost(why) => format!("there is no recording: {why}"),
                }
            }
            settled => format!("the recording is {settled:?} already"),
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
        match self.unnoted.take() {
            Some((Part::Recording, attempt)) => next.uploads.recording.note(attempt),
            Some((Part::CallData, attempt)) => next.uploads.call_data.note(attempt),
            None => {}
        }
        change(&mut next);
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
    fn note(&mut self, part: Part, verdict: &Verdict, took: Duration) {
        let (outcome, label, error) = match verdict {
            Verdict::Accepted(_) => (AttemptOutcome::Accepted, "accepted", None),
            Verdict::Duplicate(_) => (AttemptOutcome::Duplicate, "duplicate", None),
            Verdict::TryAgain { why, .. } => (AttemptOutcome::TryAgain, "try_again", Some(why)),
            Verdict::Refused { why, .. } => (AttemptOutcome::Refused, "refused", Some(why)),
        };
        let name = match part {
            Part::Recording => "recording",
            Part::CallData => "call_data",
        };
        metrics::counter!("voicebot_upload_attempts_total", "part" => name, "outcome" => label)
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
        if let Step::Stop(end) = self.deliver_call_data().await? {
            return Ok(Some(end));
        }
        // Only a record whose process was killed right after its last answer has not concluded by now.
        if !matches!(
            self.record.status,
            RecordStatus::Uploaded | RecordStatus::Failed
        ) {
            let now = self.uploader.now();
            self.mark(|record| conclude(record, now)).await?;
        }
        if self.record.status == RecordStatus::Failed {
            metrics::counter!("voicebot_records_failed_total").increment(1);
            error!(
                "the CRM has refused the call; it stays in call_metadata/ until `uploads retry` is called for it"
            );
            return Ok(Some(End::Failed));
        }
        Ok(None)
    }

    /// What is noted before the first request of a try: the try itself, and the id that the CRM will know the call by.
    fn begin(&mut self) -> Result<impl FnOnce(&mut CallRecord) + use<>, StoreError> {
        let first = !std::mem::replace(&mut self.tried, true);
        let now = self.now;
        let call_id = self.uploader.store.call_id_for_record(&self.record)?;
        Ok(move |record: &mut CallRecord| {
            record.call_id = Some(call_id);
            if first {
                record.advance(RecordStatus::Uploading);
                record.upload_attempts = record.upload_attempts.saturating_add(1);
                record.last_upload_attempt = Some(now);
            }
        })
    }

    async fn deliver_recording(&mut self) -> Result<Step, StoreError> {
        if self.record.uploads.recording.state.is_settled() {
            return Ok(Step::Go);
        }
        let file = match self.uploader.resolver.resolve(&self.record, self.now).await {
            Resolution::Found(file) => file,
            Resolution::NotYet(why) => return self.wait_for_recording(why).await,
            Resolution::NotRecorded => return self.go_without_recording(None).await,
            Resolution::Lost(why) => {
                warn!(
                    why = mask_numbers(&why),
                    "the call is delivered without its recording"
                );
                return self.go_without_recording(Some(why)).await;
            }
        };
        let attempts = self.record.uploads.recording.attempts.saturating_add(1);
        let found = file.clone();
        let begin = self.begin()?;
        self.mark(|record| {
            begin(record);
            record.files.recording = Some(found.relative);
            let part = &mut record.uploads.recording;
            part.size = Some(found.size);
            part.duration = found.duration;
            part.attempts = attempts;
        })
        .await?;
        let key = format!("{}/recording", self.record.session_id);
        let started = tokio::time::Instant::now();
        let verdict = self.uploader.crm.upload(&file.path, file.size, &key).await;
        self.note(Part::Recording, &verdict, started.elapsed());
        self.after_upload(verdict, &file, attempts, started.elapsed())
            .await
    }

    async fn after_upload(
        &mut self,
        verdict: Verdict,
        file: &RecordingFile,
        attempts: u32,
        took: Duration,
    ) -> Result<Step, StoreError> {
        let crm = &self.uploader.crm;
        let (url, note) = match verdict {
            Verdict::Accepted(body) => {
                match policy::find_url(&body, crm.url_pointers(), crm.base()) {
                    Some(url) => (Some(url), None),
                    None if policy::mentions_duplicate(body.to_string().as_bytes()) => (None, None),
                    // An answer that is not JSON was cut off or comes from something in between, and may be another one next time.
                    None if body.is_string() => {
                        let why =
                            "the upload was answered with something that is not JSON".to_owned();
                        return self.retry_recording(why, Some(body), attempts, None).await;
                    }
                    None => {
                        let why = "the upload was accepted, but none of crm.url_pointers leads to a URL in the answer".to_owned();
                        return self.fail_recording(why, Some(body)).await;
                    }
                }
            }
            Verdict::Duplicate(body) => {
                let url = policy::find_url(&body, crm.url_pointers(), crm.base());
                let note = url
                    .is_none()
                    .then(|| "the CRM had the recording already and did not say where".to_owned());
                (url, note)
            }
            Verdict::TryAgain { why, body, after } => {
                return self.retry_recording(why, body, attempts, after).await;
            }
            Verdict::Refused { why, body } => return self.fail_recording(why, Some(body)).await,
        };
        self.recording_uploaded = true;
        info!(
            bytes = file.size,
            duration_ms = took.as_millis() as u64,
            "recording uploaded"
        );
        self.mark(|record| {
            let part = &mut record.uploads.recording;
            part.state = PartState::Sent;
            part.url = url;
            part.next_attempt = None;
            part.last_error = note;
        })
        .await?;
        Ok(Step::Go)
    }

    async fn wait_for_recording(&mut self, why: String) -> Result<Step, StoreError> {
        // The longer the call is over, the less often it is worth a look.
        let since_end = self
            .record
            .ended_at()
            .map(|end| (self.now - end).to_std().unwrap_or_default());
        let pause = (since_end.unwrap_or_default() / 4).clamp(FIRST_LOOK, LONGEST_LOOK);
        let deadline = self.uploader.resolver.deadline(&self.record);
        let due = later(self.now, pause).min(deadline.unwrap_or(self.now));
        debug!(
            why = mask_numbers(&why),
            pause_ms = pause.as_millis() as u64,
            "the recording is waited for"
        );
        self.mark(|record| {
            let part = &mut record.uploads.recording;
            part.state = PartState::Waiting;
            part.next_attempt = Some(due);
            part.last_error = Some(why);
        })
        .await?;
        Ok(Step::Stop(End::Waiting(due)))
    }

    async fn go_without_recording(&mut self, why: Option<String>) -> Result<Step, StoreError> {
        self.mark(|record| {
            let part = &mut record.uploads.recording;
            part.state = PartState::Missing;
            part.next_attempt = None;
            part.last_error = why;
        })
        .await?;
        Ok(Step::Go)
    }

    async fn retry_recording(
        &mut self,
        why: String,
        said: Option<Value>,
        attempts: u32,
        after: Option<Duration>,
    ) -> Result<Step, StoreError> {
        if attempts >= self.uploader.config.max_attempts {
            return self
                .fail_recording(format!("given up after {attempts} attempts: {why}"), said)
                .await;
        }
        let pause = self.uploader.pause_after(attempts, after);
        let due = later(self.now, pause);
        warn!(
            why,
            attempts,
            pause_ms = pause.as_millis() as u64,
            "recording not uploaded, will be tried again"
        );
        self.mark(|record| {
            let part = &mut record.uploads.recording;
            part.next_attempt = Some(due);
            part.last_error = Some(with_excerpt(why, said.as_ref()));
        })
        .await?;
        Ok(Step::Stop(End::Retrying(due)))
    }

    /// The call data goes all the same: a call without its recording is worth more than no call.
    async fn fail_recording(
        &mut self,
        why: String,
        said: Option<Value>,
    ) -> Result<Step, StoreError> {
        error!(why, "the recording can not be uploaded");
        self.mark(|record| {
            let part = &mut record.uploads.recording;
            part.state = PartState::Failed;
            part.next_attempt = None;
            part.last_error = Some(with_excerpt(why, said.as_ref()));
        })
        .await?;
        Ok(Step::Go)
    }

    async fn deliver_call_data(&mut self) -> Result<Step, StoreError> {
        let state = self.record.uploads.call_data.state;
        if state.is_settled() {
            return Ok(Step::Go);
        }
        let attempts = self.record.uploads.call_data.attempts.saturating_add(1);
        let begin = self.begin()?;
        self.mark(|record| {
            begin(record);
            record.uploads.call_data.attempts = attempts;
        })
        .await?;
        let payload = match self.payload() {
            Ok(payload) => payload,
            // A file that cannot be read is not sent as if nothing had been said.
            Err(error) => return self.fail_call_data(error.to_string(), None).await,
        };
        let key = format!("{}/call_data", self.record.session_id);
        let started = tokio::time::Instant::now();
        let verdict = self.uploader.crm.call_data(&payload, &key).await;
        self.note(Part::CallData, &verdict, started.elapsed());
        let now = self.uploader.now();
        match verdict {
            Verdict::Accepted(body) | Verdict::Duplicate(body) => {
                self.call_data_sent = true;
                self.mark(|record| {
                    let part = &mut record.uploads.call_data;
                    part.state = PartState::Sent;
                    part.next_attempt = None;
                    part.last_error = None;
                    part.response = Some(policy::shorten(body));
                    conclude(record, now);
                })
                .await?;
                Ok(Step::Go)
            }
            Verdict::TryAgain { why, body, .. }
                if attempts >= self.uploader.config.max_attempts =>
            {
                self.fail_call_data(format!("given up after {attempts} attempts: {why}"), body)
                    .await
            }
            Verdict::TryAgain { why, body, after } => {
                let pause = self.uploader.pause_after(attempts, after);
                let due = later(self.now, pause);
                warn!(
                    why,
                    attempts,
                    pause_ms = pause.as_millis() as u64,
                    "call data not sent, will be tried again"
                );
                self.mark(|record| {
                    let part = &mut record.uploads.call_data;
                    part.next_attempt = Some(due);
                    part.last_error = Some(why);
                    part.response = body;
                })
                .await?;
                Ok(Step::Stop(End::Retrying(due)))
            }
            Verdict::Refused { why, body } => self.fail_call_data(why, Some(body)).await,
        }
    }

    async fn fail_call_data(
        &mut self,
        why: String,
        response: Option<Value>,
    ) -> Result<Step, StoreError> {
        error!(why, "the call data was refused");
        let now = self.uploader.now();
        self.mark(|record| {
            let part = &mut record.uploads.call_data;
            part.state = PartState::Failed;
            part.next_attempt = None;
            part.last_error = Some(why);
            part.response = response;
            conclude(record, now);
        })
        .await?;
        Ok(Step::Go)
    }

    /// The body of `POST /call-data`, from the record and the files that it names.
    fn payload(&self) -> Result<Value, StoreError> {
        let record = &self.record;
        let store: &Store = &self.uploader.store;
        let read = |relative: &Option<String>| match relative {
            Some(relative) => store.read_json(relative),
            None => Ok(None),
        };
        let conversation = read(&record.files.conversation)?;
        if conversation.is_none() {
            warn!(
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
}

/// Both parts are settled: the record is delivered, or refused.
fn conclude(record: &mut CallRecord, now: DateTime<Utc>) {
    let uploads = &record.uploads;
    let refused = [uploads.recording.state, uploads.call_data.state].contains(&PartState::Failed);
    if refused {
        record.advance(RecordStatus::Failed);
    } else if record.advance(RecordStatus::Uploaded) {
        record.timestamps.delivered.get_or_insert(now);
    }
}

/// Runs what waits for the disk where it holds nothing else up.
pub(super) async fn on_disk<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
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
