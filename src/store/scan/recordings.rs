//! Whose recording is this: by the session or room that both are named after, else by number and
//! time. Pure.

use std::collections::{HashMap, HashSet};

use chrono::TimeDelta;

use super::found::{Found, Recording};
use super::{Draft, NamedCall, ScannedCall, made_up_session, may_be_same};
use crate::session::SessionId;

/// A recording begins at most this long before or after its conversation: an egress takes seconds
/// to start.
const TOLERANCE: TimeDelta = TimeDelta::seconds(120);

/// Whose recording one is.
enum Owner {
    /// Of this call, and how that was found.
    Call(usize, &'static str),
    /// Of a call that nothing else tells of.
    Unknown,
    /// That cannot be said: the rest of a sentence that begins with the file.
    Ambiguous(String),
}

/// Which conversations the recordings claim. A claim by time counts if no other recording makes it.
#[derive(Default)]
struct Claims {
    by_name: HashSet<usize>,
    by_time: HashMap<usize, usize>,
}

impl Claims {
    fn of(found: &Found<'_>) -> Self {
        let mut claims = Self::default();
        for recording in &found.recordings {
            match by_name(found, recording) {
                Some(index) => drop(claims.by_name.insert(index)),
                None => {
                    for index in by_time(found, recording) {
                        *claims.by_time.entry(index).or_default() += 1;
                    }
                }
            }
        }
        claims
    }
}

/// Gives every recording to its call, or makes one of it. The calls in the draft are those of the
/// conversations, in their order.
pub(super) fn bring_to_calls(found: &Found<'_>, draft: &mut Draft) {
    let claims = Claims::of(found);
    for recording in &found.recordings {
        let index = match owner(found, &claims, &draft.calls, recording) {
            Owner::Call(index, how) => {
                draft.calls[index].call.matched_by.push(how);
                index
            }
            Owner::Unknown => {
                draft.calls.push(call_of(recording));
                draft.calls.len() - 1
            }
            Owner::Ambiguous(why) => {
                draft.leave(recording.label(), why);
                continue;
            }
        };
        let call = &mut draft.calls[index].call;
        call.recording = recording.file.clone();
        call.egress_id = recording.egress_id.clone();
        call.number = call.number.take().or_else(|| recording.number.clone());
    }
}

fn owner(found: &Found<'_>, claims: &Claims, calls: &[NamedCall], recording: &Recording) -> Owner {
    let session = |index: usize| calls[index].call.session_id.as_str();
    if let Some(index) = by_name(found, recording) {
        if calls[index].call.has_recording() {
            return Owner::Ambiguous(format!("is a further recording of {}", session(index)));
        }
        return Owner::Call(index, "session");
    }
    let free: Vec<usize> = by_time(found, recording)
        .into_iter()
        .filter(|index| !claims.by_name.contains(index))
        .collect();
    match free[..] {
        [] => match recorded_call_of(found, recording) {
            None => Owner::Unknown,
            Some(session) => Owner::Ambiguous(format!(
                "may be the recording of {session}, which has a record"
            )),
        },
        [index] if claims.by_time[&index] == 1 => Owner::Call(index, "number and time"),
        _ => {
            let sessions: Vec<&str> = free.iter().map(|index| session(*index)).collect();
            Owner::Ambiguous(format!(
                "may be the recording of {}, and so may others",
                sessions.join(" or ")
            ))
        }
    }
}

/// The conversation that has one of the recording's names.
fn by_name(found: &Found<'_>, recording: &Recording) -> Option<usize> {
    found.conversations.iter().position(|conversation| {
        let names = &conversation.names;
        recording.names.iter().any(|name| names.contains(name))
    })
}

/// The conversations that it may be of by number and time.
fn by_time(found: &Found<'_>, recording: &Recording) -> Vec<usize> {
    let all = found.conversations.iter().enumerate();
    all.filter(|(_, conversation)| {
        may_be_same(&recording.number, &conversation.number)
            && (recording.start - conversation.start).abs() <= TOLERANCE
    })
    .map(|(index, _)| index)
    .collect()
}

/// A call with a record but no recording that this one may be of.
fn recorded_call_of<'a>(found: &Found<'a>, recording: &Recording) -> Option<&'a SessionId> {
    let call = found.recorded.iter().find(|call| {
        !call.has_recording
            && may_be_same(&recording.number, &call.number)
            && (recording.start - call.start).abs() <= TOLERANCE
    });
    call.map(|call| &call.session)
}

/// The call of which there is nothing but this recording, so far.
fn call_of(recording: &Recording) -> NamedCall {
    let session = recording.session();
    NamedCall {
        call: ScannedCall {
            session_id: session
                .unwrap_or_else(|| made_up_session(recording.start, &recording.label())),
            start: Some(recording.start),
            end: Some(recording.end),
            ..ScannedCall::default()
        },
        names: recording.names.clone(),
    }
}
