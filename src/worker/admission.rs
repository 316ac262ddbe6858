//! Decides which calls the worker accepts, by exact slots and without waiting.
//!
//! A slot is reserved when a job is accepted, not when it arrives, so two offers in the same
//! instant cannot both get the last one. Time is an argument; nothing here knows about sockets,
//! processes or the machine.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::session::SessionId;

/// How long a slot is kept for an accepted job whose assignment has not come. LiveKit's own workers
/// wait as long (`ASSIGNMENT_TIMEOUT` in livekit-agents `worker.py`); the server has given up after
/// 3 s.
pub(super) const ASSIGNMENT_TIMEOUT: Duration = Duration::from_millis(7500);

/// The reported load of a worker with room is scaled to at most this, because a server takes none
/// whose load is 0.7 or more (`agents.target_load` of livekit-server), even if it says that it is
/// available.
const LOAD_WITH_ROOM: f64 = 0.69;

/// The decision about an offered job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Accept,
    Decline(DeclineReason),
}

/// Why a job is declined, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeclineReason {
    Full,
    Draining,
    /// The disk is full or not writable.
    Disk,
    /// The job already runs on this worker.
    Duplicate,
}

impl DeclineReason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "all slots are taken",
            Self::Draining => "the worker is draining",
            Self::Disk => "the data folder is full or can not be written",
            Self::Duplicate => "the job runs here already",
        }
    }
}

/// The decision about an assigned job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Assigned {
    /// Start it; it keeps its slot until [`Admission::release`].
    Run,
    /// It was assigned before.
    Duplicate,
    /// It was not accepted, or its reservation expired and no slot is free.
    NoSlot,
}

/// How busy the machine is, each from 0 (idle) to 1 (at its limit).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Pressure {
    pub cpu: f64,
    pub memory: f64,
}

/// The status report for the server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Report {
    pub full: bool,
    pub load: f32,
    pub job_count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// Accepted; the assignment must arrive before `until`.
    Reserved { until: Instant },
    /// Assigned; its process is starting, running or being cleaned up.
    Running,
}

/// The slots.
#[derive(Debug)]
pub(super) struct Admission {
    max_calls: usize,
    draining: bool,
    /// Whether records cannot be written.
    disk_refuses: bool,
    slots: HashMap<String, Slot>,
    /// Calls of an earlier worker that still run on this machine: they use as much of it as the
    /// others.
    inherited: HashSet<SessionId>,
}

impl Admission {
    pub(super) fn new(max_calls: usize) -> Self {
        Self {
            max_calls,
            draining: false,
            disk_refuses: false,
            slots: HashMap::new(),
            inherited: HashSet::new(),
        }
    }

    fn occupied(&self) -> usize {
        self.slots.len() + self.inherited.len()
    }

    fn has_room(&self) -> bool {
        self.occupied() < self.max_calls
    }

    /// Answers an offer, and reserves the slot when it accepts. The same offer again gets the same
    /// answer.
    pub(super) fn offer(&mut self, now: Instant, job_id: &str) -> Decision {
        match self.slots.get(job_id) {
            Some(Slot::Running) => return Decision::Decline(DeclineReason::Duplicate),
            Some(Slot::Reserved { .. }) => {}
            None if self.draining => return Decision::Decline(DeclineReason::Draining),
            None if self.disk_refuses => return Decision::Decline(DeclineReason::Disk),
            None if !self.has_room() => return Decision::Decline(DeclineReason::Full),
            None => {}
        }
        let until = now + ASSIGNMENT_TIMEOUT;
        self.slots
            .insert(job_id.to_owned(), Slot::Reserved { until });
        Decision::Accept
    }

    /// Decides about an assignment. One that arrives after its reservation expired is still
    /// accepted if a slot is free, because the server counts the job as assigned to this worker.
    pub(super) fn assign(&mut self, job_id: &str) -> Assigned {
        match self.slots.get(job_id) {
            Some(Slot::Running) => return Assigned::Duplicate,
            Some(Slot::Reserved { .. }) => {}
            None if self.draining || self.disk_refuses || !self.has_room() => {
                return Assigned::NoSlot;
            }
            None => {}
        }
        self.slots.insert(job_id.to_owned(), Slot::Running);
        Assigned::Run
    }

    /// Frees a slot. Unknown jobs change nothing.
    pub(super) fn release(&mut self, job_id: &str) {
        self.slots.remove(job_id);
    }

    /// Frees the slots whose assignment has not arrived in time, and returns their jobs.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<String> {
        let late = |slot: &Slot| matches!(slot, Slot::Reserved { until } if *until <= now);
        self.slots
            .extract_if(|_, slot| late(slot))
            .map(|(job_id, _)| job_id)
            .collect()
    }

    /// When the next reservation expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let until = |slot: &Slot| match slot {
            Slot::Reserved { until } => Some(*until),
            Slot::Running => None,
        };
        self.slots.values().filter_map(until).min()
    }

    /// Takes no new jobs from now on. Those accepted before may still be assigned.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// Accepts no new jobs while records cannot be written. Jobs accepted before may still be
    /// assigned: a call without a record is better than one that nobody answers.
    pub(super) fn set_disk_refuses(&mut self, refuses: bool) {
        self.disk_refuses = refuses;
    }

    /// The calls of an earlier worker that are still running.
    pub(super) fn set_inherited(&mut self, running: HashSet<SessionId>) {
        self.inherited = running;
    }

    /// Number of calls that were accepted or are running, without those of an earlier worker.
    pub(super) fn own_calls(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn report(&self, pressure: Pressure) -> Report {
        let full = self.draining || self.disk_refuses || !self.has_room();
        let taken = self.occupied() as f64 / self.max_calls.max(1) as f64;
        // A resource at its limit makes this worker the last choice, but only full slots refuse
        // calls.
        let busiest = taken.max(pressure.cpu).max(pressure.memory).clamp(0.0, 1.0);
        Report {
            full,
            load: if full {
                1.0
            } else {
                (LOAD_WITH_ROOM * busiest) as f32
            },
            job_count: self.slots.len() as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDLE: Pressure = Pressure {
        cpu: 0.0,
        memory: 0.0,
    };

    #[test]
    fn one_slot_is_given_once_however_close_two_offers_are() {
        let now = Instant::now();
        let mut admission = Admission::new(1);
        assert_eq!(admission.offer(now, "AJ_1"), Decision::Accept);
        assert_eq!(
            admission.offer(now, "AJ_2"),
            Decision::Decline(DeclineReason::Full)
        );
        assert_eq!(admission.assign("AJ_1"), Assigned::Run);
        assert_eq!(
            admission.offer(now, "AJ_2"),
            Decision::Decline(DeclineReason::Full)
        );
        admission.release("AJ_1");
        assert_eq!(admission.offer(now, "AJ_2"), Decision::Accept);
    }

    #[test]
    fn a_job_is_taken_once() {
        let now = Instant::now();
        let mut admission = Admission::new(5);
        assert_eq!(admission.offer(now, "AJ_1"), Decision::Accept);
        assert_eq!(
            admission.offer(now, "AJ_1"),
            Decision::Accept,
            "a repeated question"
        );
        assert_eq!(admission.own_calls(), 1);
        assert_eq!(admission.assign("AJ_1"), Assigned::Run);
        assert_eq!(admission.assign("AJ_1"), Assigned::Duplicate);
        assert_eq!(
            admission.offer(now, "AJ_1"),
            Decision::Decline(DeclineReason::Duplicate)
        );
    }

    #[test]
    fn a_slot_whose_assignment_never_comes_is_free_again() {
        let now = Instant::now();
        let mut admission = Admission::new(1);
        admission.offer(now, "AJ_1");
        assert_eq!(admission.next_expiry(), Some(now + ASSIGNMENT_TIMEOUT));
        assert!(
            admission
                .expire(now + ASSIGNMENT_TIMEOUT - Duration::from_millis(1))
                .is_empty()
        );
        assert_eq!(admission.expire(now + ASSIGNMENT_TIMEOUT), ["AJ_1"]);
        assert_eq!(admission.next_expiry(), None);
        assert_eq!(admission.offer(now, "AJ_2"), Decision::Accept);
        assert_eq!(
            admission.assign("AJ_1"),
            Assigned::NoSlot,
            "too late, and the slot is gone"
        );
        admission.release("AJ_2");
        assert_eq!(
            admission.assign("AJ_1"),
            Assigned::Run,
            "late, but there is room"
        );
    }

    #[test]
    fn a_draining_worker_takes_what_it_has_accepted_and_nothing_else() {
        let now = Instant::now();
        let mut admission = Admission::new(5);
        admission.offer(now, "AJ_1");
        admission.drain();
        assert_eq!(
            admission.offer(now, "AJ_2"),
            Decision::Decline(DeclineReason::Draining)
        );
        assert_eq!(admission.assign("AJ_2"), Assigned::NoSlot);
        assert_eq!(admission.assign("AJ_1"), Assigned::Run);
        assert_eq!(
            admission.report(IDLE),
            Report {
                full: true,
                load: 1.0,
                job_count: 1
            }
        );
    }

    #[test]
    fn a_worker_without_a_disk_takes_what_it_has_accepted_and_says_that_it_is_full() {
        let now = Instant::now();
        let mut admission = Admission::new(5);
        admission.offer(now, "AJ_1");
        admission.set_disk_refuses(true);
        assert_eq!(
            admission.offer(now, "AJ_2"),
            Decision::Decline(DeclineReason::Disk)
        );
        assert_eq!(admission.assign("AJ_2"), Assigned::NoSlot);
        assert_eq!(admission.assign("AJ_1"), Assigned::Run);
        assert!(admission.report(IDLE).full);
        admission.set_disk_refuses(false);
        assert!(!admission.report(IDLE).full);
        assert_eq!(admission.offer(now, "AJ_2"), Decision::Accept);
    }

    #[test]
    fn a_worker_with_one_free_slot_is_still_chosen_and_a_full_one_is_not() {
        let now = Instant::now();
        let mut admission = Admission::new(2);
        let busy = Pressure {
            cpu: 3.0,
            memory: 0.2,
        };
        assert_eq!(admission.report(IDLE).load, 0.0);
        assert!(
            admission.report(busy).load < 0.7,
            "a busy machine is the last choice, not none"
        );
        admission.offer(now, "AJ_1");
        let report = admission.report(IDLE);
        assert!(!report.full);
        assert!((report.load - 0.345).abs() < 1e-6, "{}", report.load);
        admission.offer(now, "AJ_2");
        assert_eq!(
            admission.report(IDLE),
            Report {
                full: true,
                load: 1.0,
                job_count: 2
            }
        );
    }

    #[test]
    fn calls_of_an_earlier_worker_use_slots_until_they_end() {
        let now = Instant::now();
        let mut admission = Admission::new(2);
        let old: SessionId = "session_20261121_023000_0a1b2c".parse().unwrap();
        admission.set_inherited(HashSet::from([old]));
        assert_eq!(admission.offer(now, "AJ_1"), Decision::Accept);
        assert_eq!(
            admission.offer(now, "AJ_2"),
            Decision::Decline(DeclineReason::Full)
        );
        admission.set_inherited(HashSet::new());
        assert_eq!(admission.offer(now, "AJ_2"), Decision::Accept);
    }

    #[derive(Debug, Clone)]
    enum Action {
        Offer(u8),
        Assign(u8),
        Release(u8),
        Wait(u16),
        Inherit(u8),
        Drain,
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            6 => (0..12u8).prop_map(Action::Offer),
            6 => (0..12u8).prop_map(Action::Assign),
            4 => (0..12u8).prop_map(Action::Release),
            3 => (0..9000u16).prop_map(Action::Wait),
            1 => (0..4u8).prop_map(Action::Inherit),
            1 => Just(Action::Drain),
        ]
    }

    proptest! {
        /// In any order of events: never more calls than slots, never a job twice, and the report
        /// agrees with the decisions.
        #[test]
        fn never_more_calls_than_slots(max_calls in 1..6usize, actions in prop::collection::vec(action(), 0..200)) {
            let mut now = Instant::now();
            let mut admission = Admission::new(max_calls);
            // The expected state, kept independently of the code under test.
            let mut running: HashSet<u8> = HashSet::new();
            let mut accepted: HashMap<u8, Instant> = HashMap::new();
            let mut inherited = 0;
            let mut draining = false;
            for action in actions {
                let full = admission.report(IDLE).full;
                match action {
                    Action::Offer(job) => {
                        let known = accepted.contains_key(&job);
                        let decision = admission.offer(now, &format!("AJ_{job}"));
                        if running.contains(&job) {
                            prop_assert_eq!(decision, Decision::Decline(DeclineReason::Duplicate));
                        } else if known {
                            prop_assert_eq!(decision, Decision::Accept);
                        } else {
                            prop_assert_eq!(decision == Decision::Accept, !full);
                        }
                        if decision == Decision::Accept {
                            accepted.insert(job, now + ASSIGNMENT_TIMEOUT);
                        }
                    }
                    Action::Assign(job) => {
                        let assigned = admission.assign(&format!("AJ_{job}"));
                        prop_assert_eq!(assigned == Assigned::Duplicate, running.contains(&job));
                        if assigned == Assigned::Run {
                            prop_assert!(accepted.remove(&job).is_some() || !full);
                            running.insert(job);
                        } else {
                            prop_assert!(!accepted.contains_key(&job), "an accepted job is run");
                        }
                    }
                    Action::Release(job) => {
                        // The worker releases calls that it ran, and no others.
                        if running.remove(&job) {
                            admission.release(&format!("AJ_{job}"));
                        }
                    }
                    Action::Wait(milliseconds) => {
                        now += Duration::from_millis(milliseconds.into());
                        let expired: HashSet<String> = admission.expire(now).into_iter().collect();
                        let late: HashSet<u8> = accepted.extract_if(|_, until| *until <= now).map(|(job, _)| job).collect();
                        prop_assert_eq!(expired, late.iter().map(|job| format!("AJ_{job}")).collect::<HashSet<_>>());
                    }
                    Action::Inherit(count) => {
                        // Set at the start of a worker, and only decreasing afterwards.
                        if running.is_empty() && accepted.is_empty() || usize::from(count) <= inherited {
                            inherited = count.into();
                            let ids = (0..count).map(|n| format!("session_20261121_023000_00000{n}").parse().unwrap());
                            admission.set_inherited(ids.collect());
                        }
                    }
                    Action::Drain => {
                        draining = true;
                        admission.drain();
                    }
                }
                prop_assert_eq!(admission.own_calls(), running.len() + accepted.len());
                prop_assert!(running.len() + accepted.len() <= max_calls);
                prop_assert!(running.len() + accepted.len() + inherited <= max_calls.max(inherited));
                let report = admission.report(IDLE);
                prop_assert_eq!(report.full, draining || running.len() + accepted.len() + inherited >= max_calls);
                prop_assert_eq!(report.load >= 0.7, report.full);
                prop_assert_eq!(admission.next_expiry(), accepted.values().min().copied());
            }
        }
    }
}
