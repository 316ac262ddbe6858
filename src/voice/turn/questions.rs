//! Questions to the state, and the moments at which their answers change.
//!
//! Each moment is one function, asked by the step that acts on it and by the alarm clock, so that
//! the two cannot disagree.

use std::time::Duration;

use super::TurnMachine;
use super::asked::Asked;
use super::completeness::{Completeness, completeness};
use super::state::{
    Caller, Floor, Origin, Reply, ReplyKind, Segment, Stage, ToolUse, TurnEnd, Words, joined,
};
use super::vocabulary::Time;
use crate::voice::config::ms;
use crate::voice::wording;
use crate::voice::{AgentState, UserState};

/// Agreement that goes on for so many times the shortest interruption is one.
const LONG_AGREEMENT: u32 = 3;

impl TurnMachine {
    pub(super) fn agent_state(&self) -> AgentState {
        match (&self.stage, &self.floor) {
            (Stage::New, _) => AgentState::Initializing,
            (Stage::Over, _) => AgentState::Idle,
            (_, Floor::Free | Floor::Paused(_)) => AgentState::Listening,
            (_, Floor::Preparing(reply)) => match reply.kind {
                ReplyKind::Answer if self.caller == Caller::Quiet => AgentState::Thinking,
                _ => AgentState::Listening,
            },
            (_, Floor::Playing(reply)) if reply.stalled => AgentState::Thinking,
            (_, Floor::Playing(_)) => AgentState::Speaking,
        }
    }

    pub(super) fn user_state(&self) -> UserState {
        match self.caller {
            Caller::Speaking { .. } | Caller::Pausing { .. } => UserState::Speaking,
            Caller::Quiet if self.silence.asked.is_some() => UserState::Away,
            Caller::Quiet => UserState::Listening,
        }
    }

    pub(super) fn is_interruptible(&self, reply: &Reply) -> bool {
        self.config.interruptions
            && reply.interruptible
            && reply.request.is_none()
            && reply.tools != ToolUse::Running
    }

    /// Whether the reply in preparation may be heard, or may have effects: the turn that it answers
    /// is over.
    pub(super) fn may_be_heard(&self) -> bool {
        let Floor::Preparing(reply) = &self.floor else {
            return false;
        };
        if !self.may_say(reply.kind) {
            return false;
        }
        match reply.kind {
            ReplyKind::Greeting | ReplyKind::Message => true,
            ReplyKind::Line | ReplyKind::StillThere => {
                !reply.interruptible || self.caller == Caller::Quiet
            }
            ReplyKind::Answer if reply.request.is_some() => true,
            ReplyKind::Answer => {
                let covered = &self.turn[..reply.covers.min(self.turn.len())];
                self.caller == Caller::Quiet
                    && self.turn.iter().all(Segment::is_settled)
                    && self.turn_over_at(covered).is_none_or(|at| self.now >= at)
            }
        }
    }

    /// When it is certain that the caller has finished. None when there is nothing to wait for.
    pub(super) fn turn_over_at(&self, segments: &[Segment]) -> Option<Time> {
        let last = segments.last()?;
        if last.origin == Origin::Typed {
            return None;
        }
        let delay = match last.turn_end {
            // It has heard how the words were said, which is more than how they are written.
            TurnEnd::Certain => Duration::ZERO,
            // It will say more; should it not, the longest delay of our own rules is enough.
            TurnEnd::Eager => ms(self.config.max_endpointing_delay_ms),
            TurnEnd::Unsaid => {
                let text = joined(segments);
                // What is said while listening is a whole answer when nothing else is said.
                let is_agreement = self.asked == Asked::YesOrNo
                    && wording::is_backchannel(&text, &self.config.backchannels);
                self.delay_after(match is_agreement {
                    true => Completeness::Complete,
                    false => completeness(&text, self.asked, self.punctuation),
                })
            }
        };
        Some(last.ended? + delay)
    }

    /// How long to wait after words that are as complete as that. Callers who pause for long are
    /// given more time, up to twice as much.
    fn delay_after(&self, words: Completeness) -> Duration {
        let own = self.own_pause.unwrap_or_default() * 5 / 4;
        let longest = ms(self.config.max_endpointing_delay_ms);
        let at_least = |delay: u64| {
            let delay = ms(delay);
            own.min(delay * 2).min(longest).max(delay)
        };
        match words {
            Completeness::Complete => ms(self.config.complete_delay_ms),
            Completeness::Open => at_least(self.config.min_endpointing_delay_ms),
            Completeness::Dictation => at_least(self.config.dictation_delay_ms),
            Completeness::Unfinished => longest,
        }
    }

    pub(super) fn min_interruption(&self) -> Duration {
        ms(self.config.interruption_min_duration_ms)
    }

    /// Whether what the caller said over the reply is meant to stop it.
    pub(super) fn words_interrupt(&self) -> bool {
        let min_words = self.config.interruption_min_words.max(1);
        self.turn
            .iter()
            .filter(|segment| matches!(segment.origin, Origin::Speech | Origin::Typed))
            .any(|segment| {
                let known = &self.config.backchannels;
                let (text, is_agreement) = if segment.text().is_empty() {
                    let text = segment.interim.as_str();
                    (text, wording::may_become_backchannel(text, known))
                } else {
                    let text = segment.text();
                    (text, wording::is_backchannel(text, known))
                };
                wording::word_count(text) >= min_words && !is_agreement
            })
    }

    /// Marks agreement as such, so that it does not stop the agent.
    pub(super) fn note_backchannels(&mut self) -> bool {
        let mut changed = false;
        for segment in &mut self.turn {
            if segment.origin == Origin::Speech
                && segment.is_settled()
                && wording::is_backchannel(segment.text(), &self.config.backchannels)
            {
                segment.origin = Origin::Backchannel;
                changed = true;
            }
        }
        changed
    }

    pub(super) fn deadlines(&self) -> Vec<Option<Time>> {
        let mut deadlines = Vec::with_capacity(7);
        if self.stage != Stage::Over {
            deadlines.push(self.typing_over_at());
        }
        match &self.stage {
            Stage::New | Stage::Over => return deadlines,
            Stage::Talking if self.watch.lost => return deadlines,
            Stage::Talking => {
                deadlines.extend([
                    self.no_input_at(),
                    self.deaf_at(),
                    self.transcript_overdue_at(),
                ]);
                deadlines.extend(self.answer_deadlines().map(Some));
            }
            Stage::Closing(closing) => {
                deadlines.extend([Some(closing.deadline), closing.transcripts_until]);
                return deadlines;
            }
        }
        match &self.floor {
            Floor::Free => {
                if self.turn.is_empty() {
                    deadlines.extend([self.ask_at(), self.hang_up_at()]);
                } else {
                    deadlines.push(self.turn_over_at(&self.turn));
                }
            }
            Floor::Preparing(reply) => {
                deadlines.push(self.reply_overdue_at(reply));
                deadlines.push(self.turn_over_at(&self.turn[..reply.covers.min(self.turn.len())]));
                if let Caller::Speaking { onset } = self.caller {
                    deadlines.push(Some(onset + self.min_interruption()));
                }
            }
            Floor::Playing(reply) => {
                deadlines.push(Some(self.playout_overdue_at(reply)));
                if !reply.stalled {
                    deadlines.push(Some(self.stalled_at(reply)));
                }
                if self.is_interruptible(reply) {
                    deadlines.push(self.pause_at());
                }
            }
            Floor::Paused(_) => deadlines.push(self.false_interruption_at()),
        }
        deadlines
    }

    /// When the caller has spoken over the reply for long enough to make it fall silent.
    pub(super) fn pause_at(&self) -> Option<Time> {
        let Caller::Speaking { onset } = self.caller else {
            return None;
        };
        let segment = self
            .turn
            .last()
            .filter(|segment| segment.ended.is_none() && segment.origin == Origin::Speech)?;
        // With interim words at hand, the duration alone is not enough.
        if !segment.interim.is_empty()
            && wording::word_count(&segment.interim) < self.config.interruption_min_words
        {
            return None;
        }
        // Agreement does not need the agent's silence, unless it does not end.
        let is_agreement =
            wording::may_become_backchannel(&segment.interim, &self.config.backchannels);
        let times = if is_agreement { LONG_AGREEMENT } else { 1 };
        Some(onset + self.min_interruption() * times)
    }

    pub(super) fn false_interruption_at(&self) -> Option<Time> {
        if self.caller != Caller::Quiet {
            return None;
        }
        let ended = self
            .turn
            .iter()
            .filter_map(|segment| segment.ended)
            .max()
            .unwrap_or(self.now);
        Some(ended + ms(self.config.false_interruption_timeout_ms))
    }

    pub(super) fn stalled_at(&self, reply: &Reply) -> Time {
        reply.last_progress + ms(self.config.stalled_playout_ms)
    }

    pub(super) fn playout_overdue_at(&self, reply: &Reply) -> Time {
        let stands_still =
            reply.last_progress + ms(self.config.no_reply_timeout_ms) + self.tool_allowance(reply);
        // Rounds of tools are progress, but not to the caller.
        stands_still.min(reply.unheard_since + ms(self.config.max_thinking_ms))
    }

    pub(super) fn reply_overdue_at(&self, reply: &Reply) -> Option<Time> {
        // The wait for a caller who stopped in mid phrase is not the providers' fault.
        let turn_over = self
            .turn_over_at(&self.turn[..reply.covers.min(self.turn.len())])
            .unwrap_or_default();
        let since = |time: Time| {
            let quiet_since = if self.caller == Caller::Quiet {
                time
            } else {
                self.now
            };
            turn_over.max(quiet_since)
        };
        let is_held_back = reply.audio_ready || reply.tools == ToolUse::Wanted;
        let stands_still = since(reply.last_progress)
            + ms(self.config.no_reply_timeout_ms)
            + self.tool_allowance(reply);
        let thinks = since(reply.unheard_since) + ms(self.config.max_thinking_ms);
        (!is_held_back).then(|| stands_still.min(thinks))
    }

    pub(super) fn tool_allowance(&self, reply: &Reply) -> Duration {
        if reply.tools == ToolUse::Running {
            self.tool_timeout
        } else {
            Duration::ZERO
        }
    }

    pub(super) fn transcript_overdue_at(&self) -> Option<Time> {
        let ended = self
            .turn
            .iter()
            .filter(|segment| segment.words == Words::Asked)
            .filter_map(|segment| segment.ended)
            .min()?;
        // A recogniser with interim words is at work, and a turn of its own may have many segments.
        Some(ended.max(self.interim_at) + ms(self.config.no_reply_timeout_ms))
    }

    pub(super) fn no_input_at(&self) -> Option<Time> {
        (!self.watch.missing_reported).then(|| self.watch.last_audio + ms(self.config.no_input_ms))
    }

    pub(super) fn deaf_at(&self) -> Option<Time> {
        let since = self
            .watch
            .loud_since
            .filter(|_| self.caller == Caller::Quiet && self.turn.is_empty())?;
        Some(since + ms(self.config.deaf_ms))
    }

    pub(super) fn ask_at(&self) -> Option<Time> {
        let after = Some(self.config.ask_after_ms)
            .filter(|after| *after > 0 && self.silence.asked.is_none())?;
        (self.caller == Caller::Quiet).then(|| self.silence.since + ms(after))
    }

    pub(super) fn hang_up_at(&self) -> Option<Time> {
        let (ask, hang_up) = (self.config.ask_after_ms, self.config.hang_up_after_ms);
        if hang_up == 0 || self.caller != Caller::Quiet {
            return None;
        }
        let at = self.silence.since + ms(hang_up);
        if ask == 0 || ask >= hang_up {
            return Some(at);
        }
        // Whoever was not asked yet, because there was sound without words all the time, is asked
        // first.
        let asked = self.silence.asked?;
        Some(at.max(asked + ms(hang_up - ask)))
    }

    /// The caller has spoken for long, and there were no words in it. How long, when that is so.
    pub(super) fn wordless_speech(&self) -> Option<Duration> {
        let spoken: Duration = self
            .turn
            .iter()
            .filter(|segment| {
                // An echo of the agent is no question, and what has failed has been dealt with.
                segment.origin == Origin::Speech
                    && segment.onset >= self.agent_quiet_since
                    && !segment.failed
            })
            .filter_map(|segment| Some(segment.ended?.saturating_sub(segment.onset)))
            .sum();
        let least = ms(self.config.wordless_speech_ms);
        (!least.is_zero() && spoken >= least && self.wordless < super::MAX_WORDLESS)
            .then_some(spoken)
    }
}
