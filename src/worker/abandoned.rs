//! Rooms whose call has died without leaving: a caller there hears nothing, and the server notices
//! only after half a minute.
//!
//! The room is ended, which hangs up, rather than dispatched anew: what broke one process may break
//! the next, its conversation is in no memory any more, and a caller who is hung up on knows where
//! they stand and calls again. One call stays one record.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::call::{AfterDeath, RoomService, RoomServiceError, after_death, mask_room_name};
use crate::session::SessionId;

/// How long a server that does not answer is asked again. Later the room has ended by itself, or
/// its caller has hung up.
const LIMIT: Duration = Duration::from_secs(10);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// A room whose call has died.
#[derive(Debug, Clone)]
pub(super) struct AbandonedRoom {
    pub session_id: SessionId,
    pub room_name: String,
    /// Only the room with this id is meant: another of the same name may have taken its place
    /// since. `None`: the call has died just now.
    pub room_sid: Option<String>,
    /// The dead agent.
    pub agent_identity: String,
    /// The name that its worker was registered under.
    pub agent_name: String,
}

/// Ends the rooms that come in, until nobody sends any more and each was dealt with. `delete`:
/// rooms are deleted at the end of calls.
pub(super) async fn end_rooms(
    service: RoomService,
    delete: bool,
    mut inbox: mpsc::Receiver<AbandonedRoom>,
) {
    let service = Arc::new(service);
    // No more than the calls that one worker holds.
    let mut at_work = JoinSet::new();
    loop {
        tokio::select! {
            room = inbox.recv() => match room {
                Some(room) => {
                    at_work.spawn(end_room(service.clone(), delete, room));
                }
                None => break,
            },
            Some(_) = at_work.join_next() => {}
        }
    }
    while at_work.join_next().await.is_some() {}
}

async fn end_room(service: Arc<RoomService>, delete: bool, room: AbandonedRoom) {
    let session = room.session_id.as_str();
    let masked = mask_room_name(&room.room_name);
    let end = Instant::now() + LIMIT;
    loop {
        match attempt(&service, delete, &room).await {
            Ok(AfterDeath::DeleteRoom) => {
                info!(
                    session.id = session,
                    room.name = masked,
                    "the room of a call that died was deleted"
                );
                return;
            }
            Ok(AfterDeath::RemoveAgent) => {
                info!(
                    session.id = session,
                    room.name = masked,
                    "the agent of a call that died was removed from its room"
                );
                return;
            }
            Ok(AfterDeath::Leave) | Err(RoomServiceError::NotFound) => {
                debug!(
                    session.id = session,
                    room.name = masked,
                    "nothing of a call that died is left in its room"
                );
                return;
            }
            Err(error) if Instant::now() >= end => {
                warn!(session.id = session, room.name = masked, %error, "the room of a call that died could not be ended; its caller may be waiting there");
                return;
            }
            Err(error) => {
                debug!(session.id = session, room.name = masked, %error, "the room of a call that died is not ended yet");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn attempt(
    service: &RoomService,
    delete: bool,
    room: &AbandonedRoom,
) -> Result<AfterDeath, RoomServiceError> {
    if room.room_sid.is_some() && service.sid(&room.room_name).await? != room.room_sid {
        return Ok(AfterDeath::Leave);
    }
    let parties = service.parties(&room.room_name).await?;
    let after = after_death(&room.agent_identity, &room.agent_name, &parties, delete);
    match after {
        AfterDeath::DeleteRoom => service.delete(&room.room_name).await?,
        AfterDeath::RemoveAgent => {
            service
                .remove(&room.room_name, &room.agent_identity)
                .await?;
        }
        AfterDeath::Leave => {}
    }
    Ok(after)
}
