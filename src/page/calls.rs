//! Finished calls, one call, and the queue, as JSON.

use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use super::{Page, PageConfig, sentence};
use crate::ledger::{
    self, CallDetails, CallFilter, CallSummary, FoundCall, PageMark, PageQuestion, Standing,
    TimelineEvent, WholeCall, masked,
};
use crate::session::{CallStatus, SessionId, mask_numbers, said_in};
use crate::store::StoreError;
use crate::upload;

/// Calls of one page of a list.
const PAGE_SIZE: usize = 50;
/// Files that are opened for one page; a search that finds few goes on with the next request.
const MOST_FILES: usize = 1_000;
/// The longest text that is searched for.
const LONGEST_SEARCH: usize = 200;

/// What the list is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListQuestion {
    /// An id or a number, see [`ledger::Query`].
    text: String,
    /// `waiting`, `failed` or `archived`.
    status: String,
    /// [`CallStatus`].
    outcome: String,
    /// RFC 3339.
    from: String,
    /// RFC 3339; calls from then on are not shown.
    to: String,
    /// `next` of the page before.
    after: String,
}

/// A field that is empty when nothing is asked for.
fn field<T>(
    name: &str,
    text: &str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, String> {
    match text.trim() {
        "" => Ok(None),
        text if text.len() > LONGEST_SEARCH => Err(format!("{name} is too long")),
        text => match read(text) {
            Some(value) => Ok(Some(value)),
            None => Err(format!("{name} cannot be understood")),
        },
    }
}

fn named<T: for<'de> Deserialize<'de>>(text: &str) -> Option<T> {
    serde_json::from_value(Value::from(text)).ok()
}

fn time(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text)
        .ok()
        .map(|time| time.to_utc())
}

impl ListQuestion {
    fn read(&self) -> Result<PageQuestion, String> {
        let query = field("the id or number", &self.text, |text| {
            Some(ledger::Query::new(text))
        })?;
        let status: Option<Standing> = field("status", &self.status, named)?;
        let outcome: Option<CallStatus> = field("outcome", &self.outcome, named)?;
        Ok(PageQuestion {
            filter: CallFilter {
                standings: status.into_iter().collect(),
                outcomes: outcome.into_iter().collect(),
                since: field("from", &self.from, time)?,
                number: None,
            },
            before: field("to", &self.to, time)?,
            query,
            after: field("after", &self.after, |text| PageMark::from_str(text).ok())?,
        })
    }
}

/// `GET /page/api/calls`: finished calls, newest first.
pub(super) async fn list(
    State(page): State<Arc<Page>>,
    Query(question): Query<ListQuestion>,
) -> Result<Json<Value>, Response> {
    let question = question
        .read()
        .map_err(|why| sentence(StatusCode::BAD_REQUEST, why))?;
    let store = page.parts.store.clone();
    let found = page
        .read(move || ledger::page(&store, &question, PAGE_SIZE, MOST_FILES))
        .await?
        .map_err(unreadable)?;
    let calls: Vec<CallSummary> = found
        .calls
        .iter()
        .map(|call| summary(call, &page.parts.config))
        .collect();
    let problems: Vec<String> = found
        .unreadable
        .iter()
        .map(|unreadable| mask_numbers(&unreadable.problem))
        .collect();
    Ok(Json(json!({
        "calls": calls,
        "next": found.next.map(|mark| mark.to_string()),
        "looked_back_to": found.looked_back_to,
        "all": found.all,
        "problems": problems,
    })))
}

pub(super) fn summary(call: &FoundCall, config: &PageConfig) -> CallSummary {
    let summary = CallSummary::of(call);
    if config.show_numbers {
        summary
    } else {
        summary.masked()
    }
}

fn unreadable(error: StoreError) -> Response {
    sentence(
        StatusCode::INTERNAL_SERVER_ERROR,
        mask_numbers(&error.to_string()),
    )
}

fn not_there(id: &str) -> Response {
    let id: String = mask_numbers(id).chars().take(LONGEST_SEARCH).collect();
    sentence(
        StatusCode::NOT_FOUND,
        format!("there is no call with the session {id}"),
    )
}

/// The call with this session.
pub(super) async fn call_of(page: &Page, id: &str) -> Result<FoundCall, Response> {
    let session: SessionId = id.parse().map_err(|_| not_there(id))?;
    let store = page.parts.store.clone();
    let mut found = page
        .read(move || ledger::of_session(&store, &session))
        .await?;
    match (found.calls.pop(), found.unreadable.pop()) {
        (Some(call), _) => Ok(call),
        (None, Some(problem)) => Err(sentence(
            StatusCode::INTERNAL_SERVER_ERROR,
            mask_numbers(&problem.problem),
        )),
        (None, None) => Err(not_there(id)),
    }
}

/// `GET /page/api/calls/{id}`: everything there is of one call.
pub(super) async fn one(
    State(page): State<Arc<Page>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Response> {
    let call = call_of(&page, &id).await?;
    let store = page.parts.store.clone();
    let config = page.parts.config.clone();
    let view = page
        .read(move || {
            let mut problems = Vec::new();
            let whole = WholeCall::read(&store, call, |problem| problems.push(problem));
            view(whole, problems, &config)
        })
        .await?;
    Ok(Json(view))
}

/// What the page shows of a call. While it is going on, words are shown only if the settings say
/// so; neither are leads, intents and results of tools, which tell what was said.
fn view(whole: WholeCall, problems: Vec<String>, config: &PageConfig) -> Value {
    let hides_words = whole.call.live.is_some() && !config.show_live_transcripts;
    let recording = whole.call.record.recording.clone();
    let started = recording
        .as_ref()
        .and_then(|recording| recording.began_at());
    let items = match (&whole.call.live, &whole.conversation) {
        (Some(live), _) => serde_json::to_value(&live.items).unwrap_or_default(),
        (None, Some(conversation)) => said_in(conversation).into(),
        (None, None) => Value::Null,
    };
    let turns = whole.conversation.as_ref().map(|all| all["turns"].clone());
    let mut details = if config.show_numbers {
        CallDetails::of(whole, problems)
    } else {
        CallDetails::masked(whole, &problems)
    };
    if hides_words {
        hide_words(&mut details);
    }
    let shown = |value: Value| match config.show_numbers {
        true => value,
        false => masked(value),
    };
    let hidden = |value: Value| if hides_words { Value::Null } else { value };
    let record = serde_json::to_value(&details.record).unwrap_or_default();
    json!({
        "call": details.summary,
        "timeline": details.timeline,
        "items": hidden(shown(items)),
        "turns": shown(turns.unwrap_or_default()),
        "leads": if hides_words { Vec::new() } else { details.leads },
        "usage": record["usage"],
        "uploads": record["uploads"],
        "recording": {
            "expected": recording.is_some() || details.record.files.recording.is_some(),
            "deleted": details.record.timestamps.recording_deleted.is_some(),
            "began_at": started,
            "error": recording.and_then(|recording| recording.error),
        },
        "problems": details.problems,
        "hides_words": hides_words,
    })
}

fn hide_words(details: &mut CallDetails) {
    for entry in &mut details.timeline {
        match &mut entry.event {
            TimelineEvent::Said { content, .. } => content.clear(),
            TimelineEvent::Intent {
                intent, entities, ..
            } => {
                intent.clear();
                *entities = Value::Null;
            }
            TimelineEvent::ToolUsed { result, .. } => result.clear(),
            TimelineEvent::Lead { lead, .. } => *lead = Value::Null,
            _ => {}
        }
    }
}

/// `POST /page/api/calls/{id}/retry`: delivers a record again that the CRM has refused.
pub(super) async fn retry(
    State(page): State<Arc<Page>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Response> {
    let session: SessionId = id.parse().map_err(|_| not_there(&id))?;
    let store = page.parts.store.clone();
    let asked = session.clone();
    let again = page
        .read(move || upload::retry(&store, &asked))
        .await?
        .map_err(|error| match error {
            StoreError::NoRecord { .. } => sentence(
                StatusCode::NOT_FOUND,
                "this call has no record that waits for delivery",
            ),
            StoreError::Busy(_) => sentence(
                StatusCode::CONFLICT,
                "the record is being delivered at this moment",
            ),
            error => unreadable(error),
        })?;
    if again {
        info!(session.id = %session, "the record is due again: somebody asked for it on the operator's page");
        // Full: the delivery is about to scan anyway.
        let _ = page.parts.notify.try_send(());
    }
    Ok(Json(json!({ "tried_again": again })))
}

/// What the queue is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct QueueQuestion {
    /// How many are left out at the beginning.
    skip: usize,
}

/// `GET /page/api/queue`: what waits for delivery, oldest first.
pub(super) async fn queue(
    State(page): State<Arc<Page>>,
    Query(question): Query<QueueQuestion>,
) -> Result<Json<Value>, Response> {
    let store = page.parts.store.clone();
    let (records, all) = page
        .read(move || upload::list_page(&store, question.skip, PAGE_SIZE))
        .await?
        .map_err(unreadable)?;
    let next = question.skip.saturating_add(records.len());
    Ok(Json(json!({
        "records": records,
        "all": all,
        "next": (next < all && !records.is_empty()).then_some(next),
        "delivers": page.parts.crm.is_some(),
        "crm": page.parts.crm.as_ref().map(upload::CrmHealth::now),
    })))
}
