//! Rooms whose call has died without leaving, or has lost its connection for good: each is dealt
//! with beside the others, so that no slot waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::rooms::party::AfterDeath;
use crate::rooms::{DesertedRoom, RoomService, end_room};
use crate::session::{SessionId, mask_room_name};

/// How long the worker that stops waits for the rooms that are left.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A room whose call is not in it any more.
#[derive(Debug, Clone)]
pub(super) struct AbandonedRoom {
    pub session_id: SessionId,
    pub room: DesertedRoom,
}

/// Ends the rooms that come in, until nobody sends any more and each was dealt with. `delete`:
/// rooms are deleted at the end of calls.
pub(super) async fn end_rooms(
    service: RoomService,
    delete: bool,
    mut inbox: mpsc::Receiver<AbandonedRoom>,
) {
    let service = Arc::new(service);
    // No more than the calls that one worker has lost within two minutes.
    let mut at_work = JoinSet::new();
    loop {
        tokio::select! {
            room = inbox.recv() => match room {
                Some(room) => {
                    at_work.spawn(deal_with(service.clone(), delete, room));
                }
                None => break,
            },
            Some(_) = at_work.join_next() => {}
        }
    }
    let rest = async { while at_work.join_next().await.is_some() {} };
    if timeout(STOP_LIMIT, rest).await.is_err() {
        warn!(
            rooms = at_work.len(),
            "the worker stops before it is known whether callers wait in rooms of calls that were lost"
        );
    }
}

async fn deal_with(service: Arc<RoomService>, delete: bool, abandoned: AbandonedRoom) {
    let session = abandoned.session_id.as_str();
    let masked = mask_room_name(&abandoned.room.room_name);
    match end_room(&service, delete, &abandoned.room).await {
        Ok(AfterDeath::DeleteRoom) => info!(
            session.id = session,
            room.name = masked,
            "the room of a call that was lost was deleted"
        ),
        Ok(AfterDeath::RemoveAgent) => info!(
            session.id = session,
            room.name = masked,
            "the agent of a call that was lost was removed from its room"
        ),
        Ok(AfterDeath::Leave) => debug!(
            session.id = session,
            room.name = masked,
            "nothing of a call that was lost is left in its room"
        ),
        Err(error) => {
            warn!(session.id = session, room.name = masked, %error, "the room of a call that was lost could not be ended; its caller may be waiting there");
        }
    }
}
