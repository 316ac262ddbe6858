//! In which call was this lead taken: the one it names, else the only one that it can be of by
//! number and time. Pure.

use chrono::TimeDelta;

use super::found::{Found, LeadFile};
use super::{Draft, NamedCall, ScannedCall, made_up_session, may_be_same};
use crate::session::sanitise;
use crate::store::LEADS;

/// A lead is written during its call, or at its very end.
const TOLERANCE: TimeDelta = TimeDelta::seconds(60);

/// In which call a lead was taken.
enum Owner {
    /// In this one, and how that was found.
    Call(usize, &'static str),
    /// In one that nothing else tells of.
    Unknown,
    /// That cannot be said: the rest of a sentence that begins with the file.
    Ambiguous(&'static str),
}

/// Gives every lead to its call, or makes one of it.
pub(super) fn bring_to_calls(found: &Found<'_>, draft: &mut Draft) {
    for lead in &found.leads {
        match owner(found, &draft.calls, lead) {
            Owner::Call(index, how) => {
                let call = &mut draft.calls[index].call;
                call.leads.push(lead.file.clone());
                call.matched_by.push(how);
            }
            Owner::Unknown => draft.calls.push(call_of(lead)),
            Owner::Ambiguous(why) => draft.leave(lead.file.clone(), why.to_owned()),
        }
    }
}

fn owner(found: &Found<'_>, calls: &[NamedCall], lead: &LeadFile) -> Owner {
    if let Some(index) = calls.iter().position(|call| is_named(lead, &call.names)) {
        return Owner::Call(index, "session");
    }
    let fitting: Vec<usize> = match lead.session {
        // A lead that names a call which is not here belongs to no other.
        Some(_) => Vec::new(),
        None => (0..calls.len())
            .filter(|index| may_be_of(lead, &calls[*index].call))
            .collect(),
    };
    match fitting[..] {
        [index] => Owner::Call(index, "number and time"),
        [] if may_be_of_recorded_call(found, lead) => {
            Owner::Ambiguous("may be of a call that has a record")
        }
        [] => Owner::Unknown,
        _ => Owner::Ambiguous("was taken while several calls were going on"),
    }
}

/// Whether the lead, or its file's name, names a call that has these names.
fn is_named(lead: &LeadFile, names: &[String]) -> bool {
    let in_file_name = |name: &String| {
        let stem = lead.file.trim_start_matches(LEADS).trim_start_matches('/');
        stem.strip_prefix("lead_")
            .and_then(|rest| rest.strip_prefix(name.as_str()))
            .is_some_and(|rest| rest.starts_with(['_', '.']))
    };
    names
        .iter()
        .any(|name| lead.session.as_ref() == Some(name) || in_file_name(name))
}

/// Whether it may have been taken in this call, as far as number and time tell. Two leads alone may
/// be of two callers.
fn may_be_of(lead: &LeadFile, call: &ScannedCall) -> bool {
    let (Some(start), Some(end)) = (call.start, call.end) else {
        return false;
    };
    let window = start..=end + TOLERANCE;
    (call.conversation.is_some() || call.has_recording())
        && may_be_same(&lead.number, &call.number)
        && lead.times.iter().any(|at| window.contains(at))
}

/// Whether it may have been taken in a call that has its record, likewise.
fn may_be_of_recorded_call(found: &Found<'_>, lead: &LeadFile) -> bool {
    found.recorded.iter().any(|call| {
        let window = call.start..=call.end + TOLERANCE;
        lead.session.is_none()
            && may_be_same(&lead.number, &call.number)
            && lead.times.iter().any(|at| window.contains(at))
    })
}

/// The call of which there is nothing but this lead, so far.
fn call_of(lead: &LeadFile) -> NamedCall {
    let at = lead.times.first().copied();
    let named = lead.session.as_deref().map(sanitise);
    NamedCall {
        call: ScannedCall {
            session_id: named
                .unwrap_or_else(|| made_up_session(at.unwrap_or_default(), &lead.file)),
            number: lead.number.clone(),
            start: at,
            end: at,
            leads: vec![lead.file.clone()],
            ..ScannedCall::default()
        },
        names: lead.session.iter().cloned().collect(),
    }
}
