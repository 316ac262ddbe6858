//! Calls that are going on, as a stream of events.
//!
//! One task reads the journals for all pages that are open, and only while one is.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{Page, PageConfig, calls, sentence};
use crate::ledger::{self, CallSummary, FoundCall, Standing};
use crate::session::{ConversationItem, Role, SessionId, mask_numbers};
use crate::store::{CallFile, Place, Store};

/// How often the journals are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// A journal that has not changed is read again after this long, because its process may have died.
const REREAD_AFTER: Duration = Duration::from_secs(5);
/// Calls that are shown; more are counted.
const MOST_SHOWN: usize = 200;
/// The last things said of each call that are shown, if words are shown at all.
const MOST_ITEMS: usize = 4;
/// Pages that may be open at a time.
const MOST_PAGES: usize = 32;
/// How often something is sent when nothing happens, so that a page whose browser has gone is
/// noticed.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// A stream ends after this long and the page opens a new one: who may see it is checked again.
const LONGEST_STREAM: Duration = Duration::from_secs(3600);

/// One call that is going on.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct LiveCall {
    #[serde(flatten)]
    summary: CallSummary,
    /// What it is doing.
    stage: Stage,
    /// Who said something last.
    last_role: Option<Role>,
    /// From the end of the caller's last words to the agent's answer.
    latency_ms: Option<u64>,
    /// Things said so far.
    said: usize,
    /// The last of them; `None` when words are not shown.
    items: Option<Vec<ConversationItem>>,
}

/// How far a call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    /// The agent is not in the room yet.
    Joining,
    /// The agent waits for the other party.
    WaitingForCaller,
    /// The other party's telephone rings.
    Ringing,
    /// The two talk.
    Talking,
    /// It is over, and the record is being written.
    Ending,
    /// Its process died.
    Interrupted,
}

impl LiveCall {
    fn of(call: &FoundCall, config: &PageConfig) -> Option<Self> {
        let live = call.live.as_ref()?;
        let times = &call.record.timestamps;
        let stage = if call.standing == Standing::Interrupted {
            Stage::Interrupted
        } else if times.call_end.is_some() {
            Stage::Ending
        } else if times.answered.is_some() {
            Stage::Talking
        } else if times.ringing.is_some() {
            Stage::Ringing
        } else if times.joined.is_some() {
            Stage::WaitingForCaller
        } else {
            Stage::Joining
        };
        let latency = |item: &ConversationItem| item.metrics.as_ref()?.e2e_latency_ms;
        let newest = live.items.len().saturating_sub(MOST_ITEMS);
        let items = config.show_live_transcripts.then(|| {
            let mut items = live.items[newest..].to_vec();
            if !config.show_numbers {
                for item in &mut items {
                    item.content = mask_numbers(&item.content);
                }
            }
            items
        });
        Some(Self {
            summary: calls::summary(call, config),
            stage,
            last_role: live.items.last().map(|item| item.role),
            latency_ms: live.items.iter().rev().find_map(latency),
            said: live.items.len(),
            items,
        })
    }
}

/// What the journals said last.
#[derive(Debug, Default, PartialEq)]
struct LiveList {
    calls: Vec<LiveCall>,
    /// How many more there are.
    more: usize,
    problem: Option<String>,
}

/// The list, for all pages that are open. `None`: not read yet.
pub(super) struct LiveCalls {
    list: watch::Sender<Option<Arc<LiveList>>>,
    /// Whether the task runs that reads the journals.
    is_read: Mutex<bool>,
}

impl Default for LiveCalls {
    fn default() -> Self {
        Self {
            list: watch::Sender::new(None),
            is_read: Mutex::new(false),
        }
    }
}

impl LiveCalls {
    /// The list, from now on; the first listener starts the task that reads. `None`: too many
    /// listen.
    fn listen(page: &Arc<Page>) -> Option<watch::Receiver<Option<Arc<LiveList>>>> {
        let live = &page.live;
        let mut is_read = live.is_read.lock().unwrap_or_else(PoisonError::into_inner);
        if live.list.receiver_count() >= MOST_PAGES {
            return None;
        }
        if !*is_read {
            *is_read = true;
            live.list.send_replace(None);
            tokio::spawn(follow(page.clone()));
        }
        Some(live.list.subscribe())
    }

    /// Whether nobody listens any more. Then the task has to end.
    fn is_left(&self) -> bool {
        let mut is_read = self.is_read.lock().unwrap_or_else(PoisonError::into_inner);
        if self.list.receiver_count() == 0 {
            *is_read = false;
        }
        !*is_read
    }
}

/// Reads the journals as long as somebody listens.
async fn follow(page: Arc<Page>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = Journals::default();
    loop {
        ticks.tick().await;
        if page.live.is_left() {
            return;
        }
        let (store, config) = (page.parts.store.clone(), page.parts.config.clone());
        let read = page.read(move || {
            let list = known.read(&store, &config);
            (known, list)
        });
        let list = match read.await {
            Ok((journals, list)) => {
                known = journals;
                list
            }
            Err(_) => {
                known = Journals::default();
                LiveList {
                    problem: Some("the journals could not be read; the log says why".to_owned()),
                    ..LiveList::default()
                }
            }
        };
        page.live.list.send_if_modified(|shown| {
            let is_new = shown.as_deref() != Some(&list);
            if is_new {
                *shown = Some(Arc::new(list));
            }
            is_new
        });
    }
}

/// What is known of the journals, so that those that have not changed are not read again.
#[derive(Default)]
struct Journals(HashMap<SessionId, Known>);

struct Known {
    changed: (SystemTime, u64),
    read_at: Instant,
    call: LiveCall,
}

impl Journals {
    fn read(&mut self, store: &Store, config: &PageConfig) -> LiveList {
        let mut files = Vec::new();
        let listed = store.visit_call_files(Place::Journal, |file| files.push(file));
        CallFile::sort_newest_first(&mut files);
        let mut list = LiveList {
            more: files.len().saturating_sub(MOST_SHOWN),
            problem: listed.err().map(|error| mask_numbers(&error.to_string())),
            calls: Vec::new(),
        };
        files.truncate(MOST_SHOWN);
        let mut before = std::mem::take(&mut self.0);
        let now = Instant::now();
        for file in files {
            let (Some(id), Some(changed)) = (file.session_id(), store.changed(&file)) else {
                continue;
            };
            let known = before.remove(&id).filter(|known| {
                known.changed == changed && now.duration_since(known.read_at) < REREAD_AFTER
            });
            let known = known.or_else(|| {
                let call = ledger::of_session(store, &id).calls.pop()?;
                Some(Known {
                    changed,
                    read_at: now,
                    call: LiveCall::of(&call, config)?,
                })
            });
            if let Some(known) = known {
                list.calls.push(known.call.clone());
                self.0.insert(id, known);
            }
        }
        list
    }
}

/// `GET /page/api/live`: an event whenever a call or the worker has changed.
pub(super) async fn stream(State(page): State<Arc<Page>>) -> Response {
    let Some(list) = LiveCalls::listen(&page) else {
        let why = format!("{MOST_PAGES} pages are open already; close one");
        return sentence(StatusCode::SERVICE_UNAVAILABLE, why);
    };
    let status = page.parts.status.clone();
    let stop = page.stop.clone();
    let until = Instant::now() + LONGEST_STREAM;
    let events = stream::unfold(
        (page, list, status, true),
        |(page, mut list, mut status, first)| async move {
            if !first {
                tokio::select! {
                    changed = list.changed() => changed.ok()?,
                    changed = status.changed() => changed.ok()?,
                }
            }
            let shown = list.borrow_and_update().clone();
            status.borrow_and_update();
            let data = json!({
                "worker": page.worker_now(),
                "now": Utc::now(),
                // Not read yet: the page shows nothing, which is not the same as no calls.
                "calls": shown.as_ref().map(|list| &list.calls),
                "more": shown.as_ref().map(|list| list.more),
                "problem": shown.as_ref().and_then(|list| list.problem.clone()),
            });
            let event = Event::default().data(data.to_string());
            Some((Ok::<_, Infallible>(event), (page, list, status, false)))
        },
    )
    .take_until(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep_until(until) => {}
        }
    });
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE_EVERY))
        .into_response()
}
