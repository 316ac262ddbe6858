//! How a room ends whose agent is gone: a caller there hears nothing, and the server notices only
//! after half a minute, or never.
//!
//! The room is ended, which hangs up, rather than dispatched anew: what broke one agent may break
//! the next, its conversation is in no memory any more, and a caller who is hung up on knows where
//! they stand and calls again. But a server that was away broke no agent: it sends another one by
//! itself where the room's own settings name it, and where it does not, because the agent was sent
//! through the API, it is sent there again. The caller is the new agent's then.
//!
//! [`RoomWatch`] decides and is pure; [`end_room`] asks and acts.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::party::{AfterDeath, Party, after_death};
use super::service::{Dispatch, RoomService, RoomServiceError};

/// How long a server that does not answer is asked again about an agent that died. Later the room
/// has ended by itself, or its caller has hung up.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// The same, when the server was away: its SIP service goes on trying, and the caller listens to
/// nothing, for longer.
const ASK_AWAY_LIMIT: Duration = Duration::from_secs(120);
/// How long somebody waits for the agent that the server sends by itself, before the room is
/// dispatched again. A worker registers again within 3 s, which the caller's return takes as well.
const DISPATCH_AFTER: Duration = Duration::from_secs(2);
/// The pause between two polls.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the server that is back, or that was told to send one, may take to have another agent
/// in the room where somebody waits. A worker registers again within 3 s and is given a job at
/// once.
const AGENT_WAIT: Duration = Duration::from_secs(8);
/// How long the caller may take to be back after the server. LiveKit's SIP service tries 0.3, 1.5,
/// 4.2, 9, 16.5, 27.3, 42 and 61 s after the loss (server-sdk-go `engine.go`,
/// `initialReconnectInterval`), and then hangs up by itself.
const CALLER_WAIT: Duration = Duration::from_secs(20);

/// A room whose agent is gone without having left it in order.
#[derive(Debug, Clone)]
pub struct DesertedRoom {
    /// Its name.
    pub room_name: String,
    /// Only the room with this id is meant: another of the same name may have taken its place
    /// since. `None`: the agent is gone since just now.
    pub room_sid: Option<String>,
    /// The agent that is gone.
    pub agent_identity: String,
    /// The name that its worker was registered under.
    pub agent_name: String,
    /// What became of the agent.
    pub agent: LostAgent,
    /// What another agent is told that is sent there when this one was cut off; `None`: none is.
    pub dispatch: Option<Dispatch>,
}

/// What became of an agent that is not in its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostAgent {
    /// It died, and with it the call.
    Died,
    /// It could not join.
    NeverCame,
    /// It had lost its connection for good, and so had everybody else, perhaps.
    CutOff,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Poll again.
    Wait,
    /// The server does not answer.
    GiveUp,
    /// Send another agent there.
    Dispatch,
    /// Do this, and that is all.
    Act(AfterDeath),
}

/// The watch over one room.
#[derive(Debug)]
struct RoomWatch {
    began: Instant,
    agent: LostAgent,
    first_answer: Option<Instant>,
    somebody_waits_since: Option<Instant>,
    dispatched_at: Option<Instant>,
}

impl RoomWatch {
    fn new(now: Instant, agent: LostAgent) -> Self {
        Self {
            began: now,
            agent,
            first_answer: None,
            somebody_waits_since: None,
            dispatched_at: None,
        }
    }

    /// The server has not answered.
    fn unanswered(&mut self, now: Instant) -> Verdict {
        let limit = match self.agent {
            LostAgent::CutOff => ASK_AWAY_LIMIT,
            LostAgent::Died | LostAgent::NeverCame => ASK_LIMIT,
        };
        match now - self.began >= limit {
            true => Verdict::GiveUp,
            false => Verdict::Wait,
        }
    }

    /// These are in the room. `somebody_waits`: a caller among them, who is really there. `delete`:
    /// rooms are deleted at the end of calls.
    fn answered(
        &mut self,
        now: Instant,
        room: &DesertedRoom,
        parties: &[Party],
        somebody_waits: bool,
        delete: bool,
    ) -> Verdict {
        let after = after_death(&room.agent_identity, &room.agent_name, parties, delete);
        match self.agent {
            LostAgent::Died => return Verdict::Act(after),
            LostAgent::NeverCame if somebody_waits => return Verdict::Act(after),
            // The room may have been made for somebody who is still to come.
            LostAgent::NeverCame => return Verdict::Act(AfterDeath::Leave),
            LostAgent::CutOff => {}
        }
        if after != AfterDeath::DeleteRoom {
            // An agent that was cut off the server takes out by itself. After a restart it may only
            // stand in the server's list, and a request to remove it is not answered.
            return Verdict::Act(AfterDeath::Leave);
        }
        let first_answer = *self.first_answer.get_or_insert(now);
        if somebody_waits {
            let since = *self.somebody_waits_since.get_or_insert(now);
            let may_dispatch = room.dispatch.is_some() && self.dispatched_at.is_none();
            if may_dispatch && now - since >= DISPATCH_AFTER {
                // Once: an agent that does not come now does not come the next time either.
                self.dispatched_at = Some(now);
                return Verdict::Dispatch;
            }
            let since = self.dispatched_at.unwrap_or(since);
            return match now - since >= AGENT_WAIT {
                true => Verdict::Act(AfterDeath::DeleteRoom),
                false => Verdict::Wait,
            };
        }
        self.somebody_waits_since = None;
        match now - first_answer >= CALLER_WAIT {
            true => Verdict::Act(AfterDeath::Leave),
            false => Verdict::Wait,
        }
    }
}

/// Ends the room as far as it has to be ended, and says what was done. `delete`: rooms are deleted
/// at the end of calls.
///
/// # Errors
/// When the server did not answer for long.
pub async fn end_room(
    service: &RoomService,
    delete: bool,
    room: &DesertedRoom,
) -> Result<AfterDeath, RoomServiceError> {
    let mut room_watch = RoomWatch::new(Instant::now(), room.agent);
    loop {
        let polled = poll(service, room).await;
        let now = Instant::now();
        let verdict = match &polled {
            Ok(Some((parties, somebody_waits))) => {
                room_watch.answered(now, room, parties, *somebody_waits, delete)
            }
            Ok(None) => Verdict::Act(AfterDeath::Leave),
            Err(_) => room_watch.unanswered(now),
        };
        let acted = match (verdict, polled) {
            (Verdict::Act(what), _) => act(service, room, what).await.map(|()| what),
            (Verdict::GiveUp, Err(error)) => return Err(error),
            (Verdict::Dispatch, _) => {
                dispatch_again(service, room).await;
                continue;
            }
            (_, Err(error)) => Err(error),
            (_, Ok(_)) => {
                sleep(PAUSE).await;
                continue;
            }
        };
        match acted {
            Ok(done) => return Ok(done),
            Err(error) if room_watch.unanswered(now) == Verdict::GiveUp => return Err(error),
            Err(error) => {
                debug!(%error, "the room of an agent that is gone is not ended yet");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Everybody in the room, and whether a caller waits there; `None`: it has ended, or another room
/// has its name.
async fn poll(
    service: &RoomService,
    room: &DesertedRoom,
) -> Result<Option<(Vec<Party>, bool)>, RoomServiceError> {
    if room.room_sid.is_some() && service.sid(&room.room_name).await? != room.room_sid {
        return Ok(None);
    }
    let cut_off = room.agent == LostAgent::CutOff;
    let parties = match service.parties(&room.room_name).await {
        Ok(parties) => parties,
        // It comes back with whoever comes back first.
        Err(RoomServiceError::NotFound) if cut_off => Vec::new(),
        Err(RoomServiceError::NotFound) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut somebody_waits = false;
    for caller in parties.iter().filter(|party| party.may_be_caller()) {
        somebody_waits = !cut_off || service.is_here(&room.room_name, &caller.identity).await;
        if somebody_waits {
            break;
        }
    }
    Ok(Some((parties, somebody_waits)))
}

/// Sends another agent to a caller who waits. If that fails the room is ended after all.
async fn dispatch_again(service: &RoomService, room: &DesertedRoom) {
    let Some(dispatch) = &room.dispatch else {
        return;
    };
    let sent = service.dispatch(&room.room_name, &room.agent_name, dispatch);
    match sent.await {
        Ok(()) => info!(
            agent.name = room.agent_name,
            "somebody waits in the room of an agent that was cut off: another one is sent there"
        ),
        Err(error) => warn!(
            agent.name = room.agent_name,
            %error,
            "no other agent can be sent to the room of one that was cut off; who waits there is hung up on"
        ),
    }
}

async fn act(
    service: &RoomService,
    room: &DesertedRoom,
    what: AfterDeath,
) -> Result<(), RoomServiceError> {
    let acted = match what {
        AfterDeath::DeleteRoom => service.delete(&room.room_name).await,
        AfterDeath::RemoveAgent => {
            let removed = service.remove(&room.room_name, &room.agent_identity);
            removed.await
        }
        AfterDeath::Leave => Ok(()),
    };
    match acted {
        Err(RoomServiceError::NotFound) => Ok(()),
        acted => acted,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::party::Role;
    use super::*;

    fn room(agent: LostAgent) -> DesertedRoom {
        DesertedRoom {
            room_name: "room".into(),
            room_sid: None,
            agent_identity: "agent-1".into(),
            agent_name: "sales".into(),
            agent,
            dispatch: None,
        }
    }

    fn party(identity: &str, role: Role) -> Party {
        let name = ("lk.agent_name".to_owned(), "sales".to_owned());
        Party {
            identity: identity.into(),
            attributes: HashMap::from_iter((role == Role::Agent).then_some(name)),
            role,
            microphone: true,
            joined_at_ms: 0,
        }
    }

    /// What a poll tells: `None`, no answer; a letter for each who is there: the dead agent, the
    /// other one, the caller, a caller of whom only the list knows.
    type Seen = Option<&'static str>;

    /// When the watch ended, s, and how; a poll each second.
    fn watch(agent: LostAgent, seen: impl IntoIterator<Item = (u64, Seen)>) -> (u64, Verdict) {
        let start = Instant::now();
        let mut room_watch = RoomWatch::new(start, agent);
        watch_on(&mut room_watch, start, &room(agent), seen)
    }

    fn watch_on(
        room_watch: &mut RoomWatch,
        start: Instant,
        room: &DesertedRoom,
        seen: impl IntoIterator<Item = (u64, Seen)>,
    ) -> (u64, Verdict) {
        let polls = seen
            .into_iter()
            .flat_map(|(seconds, seen)| std::iter::repeat_n(seen, seconds as usize));
        for (second, seen) in (0..).zip(polls) {
            let now = start + Duration::from_secs(second);
            let verdict = match seen {
                None => room_watch.unanswered(now),
                Some(letters) => {
                    let parties: Vec<Party> = letters
                        .chars()
                        .map(|letter| match letter {
                            'd' => party("agent-1", Role::Agent),
                            'o' => party("agent-2", Role::Agent),
                            'l' => party("listed", Role::Telephone),
                            _ => party("phone", Role::Telephone),
                        })
                        .collect();
                    room_watch.answered(now, room, &parties, letters.contains('c'), true)
                }
            };
            if verdict != Verdict::Wait {
                return (second, verdict);
            }
        }
        panic!("it never ended");
    }

    #[test]
    fn a_caller_whose_agent_died_is_hung_up_on_at_once() {
        use AfterDeath::{DeleteRoom, Leave, RemoveAgent};
        for (seen, expected) in [
            (vec![(1, Some("dc"))], (0, Verdict::Act(DeleteRoom))),
            (vec![(1, Some(""))], (0, Verdict::Act(DeleteRoom))),
            (
                vec![(3, None), (1, Some("c"))],
                (3, Verdict::Act(DeleteRoom)),
            ),
            (vec![(1, Some("doc"))], (0, Verdict::Act(RemoveAgent))),
            (vec![(1, Some("oc"))], (0, Verdict::Act(Leave))),
            (vec![(60, None)], (10, Verdict::GiveUp)),
        ] {
            assert_eq!(watch(LostAgent::Died, seen.clone()), expected, "{seen:?}");
        }
    }

    #[test]
    fn a_caller_who_was_cut_off_with_the_agent_is_sent_another_one_once() {
        use AfterDeath::{DeleteRoom, Leave};
        let room = DesertedRoom {
            dispatch: Some(Dispatch::default()),
            ..room(LostAgent::CutOff)
        };
        let start = Instant::now();
        for (then, expected) in [
            // It comes.
            (vec![(1, Some("co"))], (0, Verdict::Act(Leave))),
            (
                vec![(7, Some("c")), (1, Some("co"))],
                (7, Verdict::Act(Leave)),
            ),
            // It does not: nobody waits for ever.
            (vec![(60, Some("c"))], (7, Verdict::Act(DeleteRoom))),
        ] {
            let mut room_watch = RoomWatch::new(start, LostAgent::CutOff);
            let before = [(40, None), (60, Some("c"))];
            let sent = watch_on(&mut room_watch, start, &room, before);
            assert_eq!(sent, (42, Verdict::Dispatch));
            let start = start + Duration::from_secs(43);
            let end = watch_on(&mut room_watch, start, &room, then.clone());
            assert_eq!(end, expected, "{then:?}");
        }
        // The server sends one by itself, or nobody waits.
        for (seen, expected) in [
            (
                vec![(40, None), (1, Some("c")), (1, Some("co"))],
                (41, Verdict::Act(Leave)),
            ),
            (vec![(40, None), (60, Some("l"))], (60, Verdict::Act(Leave))),
        ] {
            let mut room_watch = RoomWatch::new(start, LostAgent::CutOff);
            let end = watch_on(&mut room_watch, start, &room, seen.clone());
            assert_eq!(end, expected, "{seen:?}");
        }
    }

    #[test]
    fn a_room_that_the_agent_could_not_join_is_ended_for_whoever_waits_there() {
        use AfterDeath::{DeleteRoom, Leave};
        for (seen, expected) in [
            (vec![(1, Some("c"))], (0, Verdict::Act(DeleteRoom))),
            (vec![(1, Some(""))], (0, Verdict::Act(Leave))),
            (vec![(1, Some("oc"))], (0, Verdict::Act(Leave))),
            (vec![(60, None)], (10, Verdict::GiveUp)),
        ] {
            assert_eq!(
                watch(LostAgent::NeverCame, seen.clone()),
                expected,
                "{seen:?}"
            );
        }
    }

    #[test]
    fn a_server_that_was_away_may_send_another_agent_first() {
        use AfterDeath::{DeleteRoom, Leave};
        for (seen, expected) in [
            // The server is still away, then the caller is there alone.
            (
                vec![(40, None), (60, Some("c"))],
                (48, Verdict::Act(DeleteRoom)),
            ),
            // A new agent comes in time.
            (
                vec![(40, None), (5, Some("c")), (1, Some("co"))],
                (45, Verdict::Act(Leave)),
            ),
            (
                vec![(1, Some("dc")), (1, Some("dco"))],
                (1, Verdict::Act(Leave)),
            ),
            // The list of before the restart is no caller.
            (
                vec![
                    (28, None),
                    (14, Some("dl")),
                    (2, Some("dc")),
                    (1, Some("doc")),
                ],
                (44, Verdict::Act(Leave)),
            ),
            (
                vec![(28, None), (60, Some("dl"))],
                (48, Verdict::Act(Leave)),
            ),
            // The caller comes later than the server, and finds nobody.
            (
                vec![(10, None), (12, Some("")), (60, Some("c"))],
                (30, Verdict::Act(DeleteRoom)),
            ),
            // Nobody comes.
            (vec![(10, None), (60, Some(""))], (30, Verdict::Act(Leave))),
            (vec![(10, None), (60, Some("d"))], (30, Verdict::Act(Leave))),
            (vec![(300, None)], (120, Verdict::GiveUp)),
        ] {
            assert_eq!(watch(LostAgent::CutOff, seen.clone()), expected, "{seen:?}");
        }
    }
}
