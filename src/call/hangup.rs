//! Why a call ended, and what that means for the record and for the job's status.
//!
//! Pure: a table from causes to outcomes. Every cause has one, so that no call ends without a word
//! about why.

use crate::session::{ANOTHER_AGENT, CallStatus, CloseReason, DialOutcome};

/// Why somebody is not in the room any more: LiveKit's reasons (`livekit_models.proto`,
/// `DisconnectReason`), and one of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisconnectReason {
    /// No reason is given.
    Unknown,
    /// They hung up.
    ClientInitiated,
    /// Somebody else came under the same identity, or they themselves again.
    DuplicateIdentity,
    /// The server stops.
    ServerShutdown,
    /// Somebody sent them away.
    ParticipantRemoved,
    /// Somebody deleted the room.
    RoomDeleted,
    /// Client and server disagree about the session.
    StateMismatch,
    /// Joining was not completed.
    JoinFailure,
    /// They are moved to another server.
    Migration,
    /// The signal connection was closed.
    SignalClose,
    /// The room was closed, because everybody was gone.
    RoomClosed,
    /// The telephone was not answered.
    UserUnavailable,
    /// The telephone call was declined.
    UserRejected,
    /// The trunk could not place the call.
    SipTrunkFailure,
    /// A lost connection did not come back.
    ConnectionTimeout,
    /// No sound arrived at the server.
    MediaFailure,
    /// The agent failed.
    AgentError,
    /// They were in the room before we were, and gone when we came.
    CallerGaveUp,
}

impl DisconnectReason {
    /// As records, CRM and logs have it: LiveKit's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN_REASON",
            Self::ClientInitiated => "CLIENT_INITIATED",
            Self::DuplicateIdentity => "DUPLICATE_IDENTITY",
            Self::ServerShutdown => "SERVER_SHUTDOWN",
            Self::ParticipantRemoved => "PARTICIPANT_REMOVED",
            Self::RoomDeleted => "ROOM_DELETED",
            Self::StateMismatch => "STATE_MISMATCH",
            Self::JoinFailure => "JOIN_FAILURE",
            Self::Migration => "MIGRATION",
            Self::SignalClose => "SIGNAL_CLOSE",
            Self::RoomClosed => "ROOM_CLOSED",
            Self::UserUnavailable => "USER_UNAVAILABLE",
            Self::UserRejected => "USER_REJECTED",
            Self::SipTrunkFailure => "SIP_TRUNK_FAILURE",
            Self::ConnectionTimeout => "CONNECTION_TIMEOUT",
            Self::MediaFailure => "MEDIA_FAILURE",
            Self::AgentError => "AGENT_ERROR",
            Self::CallerGaveUp => "CALLER_GAVE_UP",
        }
    }

    /// Whether the same identity usually comes back within a moment after this reason.
    ///
    /// [`Self::Unknown`] is not the server's word: the SDK forgets everybody when it connects anew
    /// (livekit `room/mod.rs`, `handle_restarting`), and says so before it says that the connection
    /// was lost.
    pub fn may_return(self) -> bool {
        matches!(
            self,
            Self::DuplicateIdentity | Self::Migration | Self::Unknown
        )
    }
}

/// What ended the call. The first one counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HangupCause {
    /// The caller is gone.
    CallerLeft {
        /// Why.
        reason: DisconnectReason,
    },
    /// We are out of the room without having left it.
    RoomGone {
        /// Why.
        reason: DisconnectReason,
    },
    /// The number that was to be dialled was not answered, or could not be dialled.
    NotReached {
        /// What came of it.
        outcome: DialOutcome,
        /// The sentence for the operator, where one is needed.
        message: String,
    },
    /// Nobody came.
    CallerNeverCame,
    /// The caller's telephone was never picked up.
    NeverAnswered,
    /// The agent said goodbye.
    AgentEnded,
    /// A machine has answered, and was hung up on, perhaps after a message.
    MachineAnswered,
    /// Nobody said anything for too long.
    Silence,
    /// No sound arrived from the caller, not even silence.
    NoMedia {
        /// Whether some had arrived before.
        ever: bool,
        /// For how long none did, s.
        seconds: u64,
    },
    /// Another agent of our name is in the room, and it was there first.
    AnotherAgent {
        /// Its identity.
        identity: String,
    },
    /// The longest a call may last is over.
    MaxDuration,
    /// A provider stayed down.
    ProviderFailed {
        /// `stt`, `llm` or `tts`.
        component: String,
        /// What it said.
        message: String,
    },
    /// The server ended the job.
    Terminated,
    /// This process was told to stop at once.
    Finalised,
    /// The room could not be joined, or the call not set up.
    SetUpFailed {
        /// The sentence for the operator.
        message: String,
    },
}

/// What the agent leaves behind when a call has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftBehind {
    /// The call's own room, which is of no use any more.
    OurRoom,
    /// A room that others decide about.
    OthersRoom,
    /// A room that we could not enter, or lost: somebody may be waiting there for an agent that
    /// does not come.
    PerhapsACaller,
}

/// What the record and the job say about the end of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// LiveKit Agents' word for why the session closed.
    pub close_reason: CloseReason,
    /// The exact cause in one word.
    pub disconnect_reason: String,
    /// How the call counts for a campaign.
    pub call_status: CallStatus,
    /// Something that an operator should look at.
    pub error: Option<String>,
}

impl Ending {
    /// Whether the job did what it was dispatched for; else it ends as failed on the server.
    pub fn job_succeeded(&self) -> bool {
        self.error.is_none()
    }
}

impl HangupCause {
    /// The ending that this cause makes; `answered` is whether caller and agent could ever hear
    /// each other.
    pub fn ending(&self, answered: bool) -> Ending {
        let completed = |otherwise| {
            if answered {
                CallStatus::Completed
            } else {
                otherwise
            }
        };
        let (close_reason, disconnect_reason, call_status) = match self {
            Self::CallerLeft { reason } | Self::RoomGone { reason } => {
                use DisconnectReason as Reason;
                let status = match reason {
                    Reason::UserUnavailable | Reason::CallerGaveUp => CallStatus::NoAnswer,
                    Reason::UserRejected => CallStatus::Busy,
                    Reason::SipTrunkFailure => CallStatus::Failed,
                    Reason::ClientInitiated
                    | Reason::RoomDeleted
                    | Reason::RoomClosed
                    | Reason::ParticipantRemoved => completed(CallStatus::NoAnswer),
                    _ => completed(CallStatus::Failed),
                };
                let close = match self {
                    Self::CallerLeft { .. } => CloseReason::ParticipantDisconnected,
                    Self::RoomGone { reason } if Self::is_lost(*reason) => CloseReason::Error,
                    _ => CloseReason::JobShutdown,
                };
                (close, reason.name().to_owned(), status)
            }
            Self::NotReached { outcome, .. } => (
                match Self::is_ours_to_mend(*outcome) {
                    true => CloseReason::Error,
                    false => CloseReason::ParticipantDisconnected,
                },
                match outcome {
                    // LiveKit's words for what its own participant would have told.
                    DialOutcome::Declined => DisconnectReason::UserRejected.name().to_owned(),
                    DialOutcome::TrunkFailed => DisconnectReason::SipTrunkFailure.name().to_owned(),
                    DialOutcome::Busy | DialOutcome::NoAnswer | DialOutcome::InvalidNumber => {
                        DisconnectReason::UserUnavailable.name().to_owned()
                    }
                    DialOutcome::Answered | DialOutcome::Failed => "DIAL_FAILED".to_owned(),
                },
                outcome.call_status(),
            ),
            Self::CallerNeverCame => (
                CloseReason::JobShutdown,
                "CALLER_NEVER_CAME".into(),
                CallStatus::NoAnswer,
            ),
            Self::NeverAnswered => (
                CloseReason::JobShutdown,
                "NEVER_ANSWERED".into(),
                CallStatus::NoAnswer,
            ),
            Self::AgentEnded => (
                CloseReason::TaskCompleted,
                "AGENT_ENDED".into(),
                CallStatus::Completed,
            ),
            Self::MachineAnswered => (
                CloseReason::TaskCompleted,
                "MACHINE_ANSWERED".into(),
                CallStatus::Voicemail,
            ),
            Self::Silence => (
                CloseReason::TaskCompleted,
                "SILENCE".into(),
                CallStatus::Completed,
            ),
            Self::NoMedia { ever, .. } => (
                CloseReason::Error,
                "NO_MEDIA".into(),
                // A call that lost its sound had been held until then.
                match ever {
                    true => CallStatus::Completed,
                    false => CallStatus::Failed,
                },
            ),
            Self::AnotherAgent { .. } => (
                CloseReason::JobShutdown,
                ANOTHER_AGENT.into(),
                completed(CallStatus::Failed),
            ),
            Self::MaxDuration => (
                CloseReason::TaskCompleted,
                "MAX_DURATION".into(),
                CallStatus::Completed,
            ),
            Self::ProviderFailed { component, .. } => (
                CloseReason::Error,
                format!("{}_FAILED", component.to_uppercase()),
                CallStatus::Failed,
            ),
            Self::Terminated => (
                CloseReason::JobShutdown,
                "JOB_TERMINATED".into(),
                completed(CallStatus::Failed),
            ),
            Self::Finalised => (
                CloseReason::JobShutdown,
                "WORKER_STOPPED".into(),
                completed(CallStatus::Failed),
            ),
            Self::SetUpFailed { .. } => (
                CloseReason::Error,
                "SET_UP_FAILED".into(),
                CallStatus::Failed,
            ),
        };
        let error = match self {
            Self::ProviderFailed { component, message } => {
                Some(format!("{component} provider failed: {message}"))
            }
            Self::SetUpFailed { message } => Some(message.clone()),
            Self::NotReached { outcome, message } if Self::is_ours_to_mend(*outcome) => {
                Some(message.clone())
            }
            Self::RoomGone { reason } if Self::is_lost(*reason) => Some(
                "the connection to the LiveKit server was lost and did not come back in time (call.reconnect_wait_s)".to_owned(),
            ),
            Self::NoMedia { seconds, .. } => Some(format!(
                "no sound arrived from the caller for {seconds} s (call.no_media_s): the SIP service, or the path from it or the caller's browser to the server, is broken"
            )),
            Self::AnotherAgent { identity } => Some(format!(
                "another agent of this name ({identity}) was in the room before: it was dispatched more than once"
            )),
            _ => None,
        };
        Ending {
            close_reason,
            disconnect_reason,
            call_status,
            error,
        }
    }

    /// Whether a number was not reached for a reason that an operator can mend.
    fn is_ours_to_mend(outcome: DialOutcome) -> bool {
        matches!(outcome, DialOutcome::TrunkFailed | DialOutcome::Failed)
    }

    /// What is known of a call that somebody else has placed, by how it ended before it was
    /// answered.
    pub fn dial_outcome(&self) -> Option<DialOutcome> {
        match self {
            Self::CallerLeft { reason } => match reason {
                DisconnectReason::UserUnavailable => Some(DialOutcome::NoAnswer),
                DisconnectReason::UserRejected => Some(DialOutcome::Declined),
                DisconnectReason::SipTrunkFailure => Some(DialOutcome::TrunkFailed),
                DisconnectReason::MediaFailure => Some(DialOutcome::Failed),
                _ => None,
            },
            Self::NeverAnswered => Some(DialOutcome::NoAnswer),
            _ => None,
        }
    }

    /// Whether we are out of the room for this reason without anybody having decided it.
    pub fn is_lost(reason: DisconnectReason) -> bool {
        !matches!(
            reason,
            DisconnectReason::RoomDeleted
                | DisconnectReason::RoomClosed
                | DisconnectReason::ParticipantRemoved
                | DisconnectReason::DuplicateIdentity
                | DisconnectReason::ServerShutdown
        )
    }

    /// What the agent leaves behind in the room.
    pub fn leaves_behind(&self) -> LeftBehind {
        match self {
            Self::AnotherAgent { .. } => LeftBehind::OthersRoom,
            Self::SetUpFailed { .. } => LeftBehind::PerhapsACaller,
            Self::RoomGone { reason } if Self::is_lost(*reason) => LeftBehind::PerhapsACaller,
            // Somebody has decided this, and knows of the caller.
            Self::RoomGone { .. } => LeftBehind::OthersRoom,
            _ => LeftBehind::OurRoom,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_a_telephone_call_has_its_status() {
        for (reason, answered, status) in [
            (
                DisconnectReason::ClientInitiated,
                true,
                CallStatus::Completed,
            ),
            (
                DisconnectReason::ClientInitiated,
                false,
                CallStatus::NoAnswer,
            ),
            (
                DisconnectReason::UserUnavailable,
                false,
                CallStatus::NoAnswer,
            ),
            (DisconnectReason::UserRejected, false, CallStatus::Busy),
            (DisconnectReason::SipTrunkFailure, false, CallStatus::Failed),
            (
                DisconnectReason::ConnectionTimeout,
                true,
                CallStatus::Completed,
            ),
            (DisconnectReason::MediaFailure, false, CallStatus::Failed),
            (DisconnectReason::RoomDeleted, true, CallStatus::Completed),
            (DisconnectReason::SignalClose, true, CallStatus::Completed),
            (DisconnectReason::Unknown, false, CallStatus::Failed),
            (DisconnectReason::CallerGaveUp, false, CallStatus::NoAnswer),
        ] {
            let ending = HangupCause::CallerLeft { reason }.ending(answered);
            assert_eq!(ending.call_status, status, "{reason:?} {answered}");
            assert_eq!(ending.close_reason, CloseReason::ParticipantDisconnected);
            assert_eq!(ending.disconnect_reason, reason.name());
            assert!(ending.job_succeeded(), "{reason:?} is no fault of ours");
        }
    }

    #[test]
    fn a_number_that_is_not_reached_has_its_old_word_and_livekits() {
        for (outcome, status, reason, is_error) in [
            (
                DialOutcome::Busy,
                CallStatus::Busy,
                "USER_UNAVAILABLE",
                false,
            ),
            (
                DialOutcome::Declined,
                CallStatus::Busy,
                "USER_REJECTED",
                false,
            ),
            (
                DialOutcome::NoAnswer,
                CallStatus::NoAnswer,
                "USER_UNAVAILABLE",
                false,
            ),
            (
                DialOutcome::InvalidNumber,
                CallStatus::Failed,
                "USER_UNAVAILABLE",
                false,
            ),
            (
                DialOutcome::TrunkFailed,
                CallStatus::Failed,
                "SIP_TRUNK_FAILURE",
                true,
            ),
            (DialOutcome::Failed, CallStatus::Failed, "DIAL_FAILED", true),
        ] {
            let message = "503 Service Unavailable".to_owned();
            let cause = HangupCause::NotReached { outcome, message };
            let ending = cause.ending(false);
            assert_eq!(ending.call_status, status, "{outcome:?}");
            assert_eq!(ending.disconnect_reason, reason, "{outcome:?}");
            assert_eq!(ending.error.is_some(), is_error, "{outcome:?}");
            assert_eq!(cause.leaves_behind(), LeftBehind::OurRoom);
        }
    }

    #[test]
    fn what_came_of_a_call_that_others_placed_is_told_by_how_its_telephone_left() {
        let left = |reason| HangupCause::CallerLeft { reason }.dial_outcome();
        use DisconnectReason as Reason;
        assert_eq!(left(Reason::UserUnavailable), Some(DialOutcome::NoAnswer));
        assert_eq!(left(Reason::UserRejected), Some(DialOutcome::Declined));
        assert_eq!(
            left(Reason::SipTrunkFailure),
            Some(DialOutcome::TrunkFailed)
        );
        assert_eq!(left(Reason::ClientInitiated), None);
        let rang_on = HangupCause::NeverAnswered.dial_outcome();
        assert_eq!(rang_on, Some(DialOutcome::NoAnswer));
    }

    #[test]
    fn a_provider_that_stays_down_fails_the_job_and_says_which() {
        let ending = HangupCause::ProviderFailed {
            component: "tts".into(),
            message: "503".into(),
        }
        .ending(true);
        assert_eq!(ending.call_status, CallStatus::Failed);
        assert_eq!(ending.disconnect_reason, "TTS_FAILED");
        assert!(!ending.job_succeeded() && ending.error.unwrap().contains("503"));
    }

    #[test]
    fn sound_that_does_not_arrive_is_no_silence_of_the_caller() {
        for (ever, status) in [(true, CallStatus::Completed), (false, CallStatus::Failed)] {
            let ending = HangupCause::NoMedia { ever, seconds: 15 }.ending(true);
            assert_eq!(ending.call_status, status);
            assert_eq!(ending.close_reason, CloseReason::Error);
            assert_eq!(ending.disconnect_reason, "NO_MEDIA");
            assert!(ending.error.unwrap().contains("call.no_media_s"));
        }
    }

    #[test]
    fn agent_that_leaves_the_room_to_another_one_leaves_the_room_alone() {
        let cause = HangupCause::AnotherAgent {
            identity: "agent-AJ_1".into(),
        };
        assert_eq!(cause.leaves_behind(), LeftBehind::OthersRoom);
        assert_eq!(HangupCause::Silence.leaves_behind(), LeftBehind::OurRoom);
        let ending = cause.ending(false);
        assert_eq!(ending.disconnect_reason, "ANOTHER_AGENT");
        assert_eq!(ending.call_status, CallStatus::Failed);
        assert!(!ending.job_succeeded() && ending.error.unwrap().contains("agent-AJ_1"));
    }

    #[test]
    fn a_room_that_we_lost_is_not_forgotten() {
        for (reason, left) in [
            (
                DisconnectReason::ConnectionTimeout,
                LeftBehind::PerhapsACaller,
            ),
            (DisconnectReason::Unknown, LeftBehind::PerhapsACaller),
            (DisconnectReason::RoomDeleted, LeftBehind::OthersRoom),
            (DisconnectReason::ParticipantRemoved, LeftBehind::OthersRoom),
            (DisconnectReason::ServerShutdown, LeftBehind::OthersRoom),
        ] {
            let cause = HangupCause::RoomGone { reason };
            assert_eq!(cause.leaves_behind(), left, "{reason:?}");
        }
        let message = "no answer".to_owned();
        let cause = HangupCause::SetUpFailed { message };
        assert_eq!(cause.leaves_behind(), LeftBehind::PerhapsACaller);
    }

    #[test]
    fn a_call_that_we_end_is_completed() {
        for cause in [
            HangupCause::AgentEnded,
            HangupCause::Silence,
            HangupCause::MaxDuration,
        ] {
            assert_eq!(cause.ending(true).call_status, CallStatus::Completed);
            assert_eq!(cause.ending(true).close_reason, CloseReason::TaskCompleted);
        }
    }
}
