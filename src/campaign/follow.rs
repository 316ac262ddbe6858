//! What is done about an attempt that has left no trace in the data folder yet. Pure.

use std::time::Duration;

use crate::rooms::Dispatched;

/// How long workers may take to accept a job: a server offers it to one after the other for some
/// seconds.
const JOB_WAIT: Duration = Duration::from_secs(20);
/// How long after an attempt's beginning a request of a dialler that has died, or that got no
/// answer, may still reach the server.
const REQUEST_GRACE: Duration = Duration::from_secs(10);
/// How long after a dispatch was taken back a worker's journal may still appear.
const JOURNAL_GRACE: Duration = Duration::from_secs(3);
/// How long the record of a call may take whose room is gone. A worker writes it at once; this is
/// for one that has to be started again.
const RECORD_WAIT: Duration = Duration::from_secs(120);

/// How far an attempt is known to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// The server is asked for the dispatch.
    Asking,
    /// The server has refused it, or cannot be reached.
    Refused {
        /// Why.
        why: String,
    },
    /// It is not known whether the server has the dispatch.
    Unknown,
    /// The server has it, and no worker.
    Dispatched {
        /// Its id.
        id: String,
        /// Since when.
        since: Duration,
    },
    /// It was taken back.
    TakenBack {
        /// When.
        since: Duration,
    },
    /// The server knows nothing of it.
    Absent {
        /// Since when.
        since: Duration,
    },
    /// A worker has it.
    Placed,
    /// A worker had it, and its room is gone.
    Gone {
        /// Since when.
        since: Duration,
    },
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deed {
    /// Nothing yet.
    Wait,
    /// Take the dispatch with this id back.
    TakeBack(String),
    /// No worker has taken it: it is over, and nobody was called.
    NotPlaced,
    /// It is over, and nobody knows what came of it.
    Lost,
}

impl Phase {
    /// What is to be done. All times are since the attempt began.
    pub(super) fn deed(&self, now: Duration) -> Deed {
        match self {
            Self::Asking | Self::Unknown | Self::Placed => Deed::Wait,
            Self::Refused { .. } => Deed::NotPlaced,
            Self::Dispatched { id, since } if now >= *since + JOB_WAIT => {
                Deed::TakeBack(id.clone())
            }
            Self::TakenBack { since } if now >= *since + JOURNAL_GRACE => Deed::NotPlaced,
            Self::Absent { since } if now >= *since + JOURNAL_GRACE => Deed::Lost,
            Self::Gone { since } if now >= *since + RECORD_WAIT => Deed::Lost,
            Self::Dispatched { .. }
            | Self::TakenBack { .. }
            | Self::Absent { .. }
            | Self::Gone { .. } => Deed::Wait,
        }
    }

    /// What the server has said of it.
    pub(super) fn heard(self, now: Duration, said: &Dispatched) -> Self {
        match (self, said) {
            (Self::Unknown | Self::Absent { .. }, Dispatched::NoJob(id)) => Self::Dispatched {
                id: id.clone(),
                since: now,
            },
            (Self::Unknown, Dispatched::Nothing) if now >= REQUEST_GRACE => {
                Self::Absent { since: now }
            }
            (Self::Placed, Dispatched::Nothing) => Self::Gone { since: now },
            // A dispatch is gone that nobody has taken back here: somebody has deleted the room.
            (Self::Dispatched { .. }, Dispatched::Nothing) => Self::TakenBack { since: now },
            (phase @ (Self::Asking | Self::Refused { .. } | Self::TakenBack { .. }), _) => phase,
            (_, Dispatched::Job) => Self::Placed,
            (phase, _) => phase,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_job_that_does_not_appear_is_taken_back_before_the_lead_is_called_again() {
        let dispatched = Phase::Dispatched {
            id: "AD_1".into(),
            since: s(1),
        };
        assert_eq!(dispatched.deed(s(20)), Deed::Wait);
        assert_eq!(dispatched.deed(s(21)), Deed::TakeBack("AD_1".into()));
        let taken = Phase::TakenBack { since: s(21) };
        assert_eq!(taken.deed(s(23)), Deed::Wait);
        assert_eq!(taken.deed(s(24)), Deed::NotPlaced);
        let placed = dispatched.heard(s(9), &Dispatched::Job);
        assert_eq!(placed, Phase::Placed);
    }

    #[test]
    fn what_a_dead_dialler_has_begun_is_found_out_and_not_begun_again() {
        // Its request may still be on its way.
        let unknown = Phase::Unknown.heard(s(2), &Dispatched::Nothing);
        assert_eq!(unknown, Phase::Unknown);
        assert_eq!(
            unknown.deed(s(9999)),
            Deed::Wait,
            "the server has to say it"
        );
        let absent = Phase::Unknown.heard(s(10), &Dispatched::Nothing);
        // Its record may have been written since the folders were read.
        assert_eq!(absent.deed(s(12)), Deed::Wait);
        assert_eq!(absent.deed(s(13)), Deed::Lost);
        let silent = Phase::Unknown.heard(s(99), &Dispatched::NotKnown);
        assert_eq!(silent, Phase::Unknown);
        let found = Phase::Unknown.heard(s(99), &Dispatched::NoJob("AD_1".into()));
        assert_eq!(found.deed(s(100)), Deed::Wait);
        assert_eq!(Phase::Unknown.heard(s(1), &Dispatched::Job), Phase::Placed);
    }

    #[test]
    fn a_call_without_a_record_is_lost_after_a_while() {
        let gone = Phase::Placed.heard(s(60), &Dispatched::Nothing);
        assert_eq!(gone.deed(s(179)), Deed::Wait);
        assert_eq!(gone.deed(s(180)), Deed::Lost);
        let still = gone.heard(s(100), &Dispatched::Nothing);
        assert_eq!(still.deed(s(180)), Deed::Lost);
        assert_eq!(
            still.heard(s(101), &Dispatched::NotKnown),
            Phase::Gone { since: s(60) }
        );
    }
}
