//! Calls that an earlier worker left: those that still run are counted until they end, and
//! whichever of them ends without a record gets one from its journal, and its room is ended.
//!
//! Only journals that were there before this worker's first call are checked, so its own calls
//! are never touched here.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::Utc;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::info;

use super::abandoned::AbandonedRoom;
use super::process::{Recovered, recover};
use super::run::agent_identity;
use crate::rooms::{DesertedRoom, LostAgent};
use crate::session::{Outcome, SessionId};
use crate::store::{OrphanJournal, Store};

/// How often the journals are checked while any is left. Their calls may last for an hour; nobody
/// waits for this but a slot.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// A journal that nobody holds and that was written more recently than this may belong to a call
/// whose process is just starting (its worker waits up to ten seconds for it).
const MAY_BE_STARTING: Duration = Duration::from_secs(15);

/// How soon a record is tried again that could not be written.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Follows the journals of an earlier worker to their ends. Tells which calls are running whenever
/// that changes, and returns when none is left.
pub(super) async fn follow(
    store: Store,
    found: Vec<OrphanJournal>,
    running: watch::Sender<HashSet<SessionId>>,
    abandoned: mpsc::Sender<AbandonedRoom>,
    upload_notify: mpsc::Sender<()>,
) {
    let mut left: HashSet<SessionId> = found
        .into_iter()
        .map(|journal| journal.session_id)
        .collect();
    let mut seen_alive: HashSet<SessionId> = running.borrow().clone();
    let mut not_before: HashMap<SessionId, Instant> = HashMap::new();
    if !seen_alive.is_empty() {
        info!(
            calls = seen_alive.len(),
            "calls of an earlier worker are still running"
        );
    }
    let mut polls = interval(POLL_EVERY);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !left.is_empty() {
        polls.tick().await;
        let journals = find(&store).await;
        let mut alive = HashSet::new();
        let mut still_left = HashSet::new();
        for journal in journals
            .into_iter()
            .filter(|journal| left.contains(&journal.session_id))
        {
            if journal.alive {
                alive.insert(journal.session_id.clone());
                still_left.insert(journal.session_id);
                continue;
            }
            let age = Utc::now().signed_duration_since(journal.last_written);
            let starting = age.to_std().is_ok_and(|age| age < MAY_BE_STARTING);
            // A call that was in its room had begun.
            if starting && !journal.joined && !seen_alive.contains(&journal.session_id) {
                still_left.insert(journal.session_id);
                continue;
            }
            let now = Instant::now();
            if not_before
                .get(&journal.session_id)
                .is_some_and(|again| now < *again)
            {
                still_left.insert(journal.session_id);
                continue;
            }
            let why = "the call's process ended while no worker looked after it";
            // When it ended is told by the journal's last line.
            match recover(&store, &journal.session_id, Outcome::recovered(why, None)).await {
                Recovered::Made => {
                    if let Some(room) = abandoned_room(journal) {
                        // Whoever ends rooms lives longer than this task.
                        let _ = abandoned.send(room).await;
                    }
                }
                Recovered::NotNeeded => {}
                // A full disk, perhaps. What can never be read is quarantined and not found again.
                Recovered::Failed => {
                    not_before.insert(journal.session_id.clone(), now + TRY_AGAIN_AFTER);
                    still_left.insert(journal.session_id);
                }
            }
        }
        if still_left.len() < left.len() {
            // A call that ended by itself has a record that waits, too.
            let _ = upload_notify.try_send(());
        }
        seen_alive.extend(alive.iter().cloned());
        left = still_left;
        running.send_if_modified(|running| {
            let changed = *running != alive;
            *running = alive;
            changed
        });
    }
}

/// The room that the call of this journal may have left behind. Without the room's id it cannot be
/// told from one that came later.
fn abandoned_room(journal: OrphanJournal) -> Option<AbandonedRoom> {
    Some(AbandonedRoom {
        session_id: journal.session_id,
        room: DesertedRoom {
            room_name: journal.room_name,
            room_sid: Some(journal.room_sid?),
            agent_identity: agent_identity(&journal.job_id),
            agent_name: journal.agent_name,
            agent: LostAgent::Died,
            dispatch: None,
        },
    })
}

/// All journals in the data folder.
pub(super) async fn find(store: &Store) -> Vec<OrphanJournal> {
    let store = store.clone();
    spawn_blocking(move || store.orphans())
        .await
        .unwrap_or_default()
}
