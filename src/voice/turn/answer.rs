//! Whoever answers a call of ours: until it is known who it is, the agent keeps its first words
//! ready and says nothing; a machine is hung up on, or left a message.

use super::TurnMachine;
use super::state::{Floor, ReplyKind, Stage};
use super::vocabulary::{Output, Prompt, Time};
use crate::voice::VoiceEnd;
use crate::voice::answer::{AnswerDetector, AnswerPlan, Finding, MachinePolicy, Sign, Verdict};

/// How long the message to a machine may take: mailboxes cut it off after a minute or two.
const MESSAGE_LIMIT: Time = Time::from_secs(120);

/// What the agent may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Permission {
    /// Nothing: it is not known who is there.
    Nothing,
    /// Nothing yet, and then the message.
    MessageLater,
    /// The message and nothing else.
    Message { until: Time },
    /// Everything.
    Everything,
}

/// Watches who answers.
#[derive(Debug)]
pub(super) struct AnswerWatch {
    plan: AnswerPlan,
    detector: AnswerDetector,
    may_say: Permission,
}

impl AnswerWatch {
    pub(super) fn new(plan: AnswerPlan) -> Self {
        Self {
            detector: AnswerDetector::new(&plan),
            plan,
            may_say: Permission::Nothing,
        }
    }
}

impl TurnMachine {
    /// Tells what is heard to whoever watches who answers.
    pub(super) fn note_answer(&mut self, sign: Sign<'_>) {
        let now = self.now;
        if let Some(watch) = &mut self.answer {
            watch.detector.note(now, sign);
        }
    }

    /// Whether nothing that is heard tells more of who is there.
    pub fn knows_who_answered(&self) -> bool {
        let mut watch = self.answer.iter();
        watch.all(|watch| watch.detector.is_settled(self.now))
    }

    /// Whether it is not known yet who is there, or it is a machine that gets only its message.
    pub(super) fn is_held(&self) -> bool {
        self.answer
            .as_ref()
            .is_some_and(|watch| watch.may_say != Permission::Everything)
    }

    /// Whether a reply of this kind may be heard, as far as that depends on who is there.
    pub(super) fn may_say(&self, kind: ReplyKind) -> bool {
        let Some(watch) = &self.answer else {
            return true;
        };
        match watch.may_say {
            Permission::Nothing | Permission::MessageLater => false,
            Permission::Message { .. } => kind == ReplyKind::Message,
            Permission::Everything => true,
        }
    }

    /// When there may be news about who is there.
    pub(super) fn answer_deadlines(&self) -> impl Iterator<Item = Time> {
        let watch = self.answer.as_ref();
        let until = watch.and_then(|watch| match watch.may_say {
            Permission::Message { until } => Some(until),
            _ => None,
        });
        let detector = watch.into_iter().flat_map(|it| it.detector.deadlines());
        detector.chain(until)
    }

    /// Acts on what has been found out about who is there.
    pub(super) fn step_answer(&mut self) -> bool {
        if self.stage != Stage::Talking {
            return false;
        }
        let now = self.now;
        let Some(watch) = &mut self.answer else {
            return false;
        };
        let is_message_lost = match watch.may_say {
            // It could not be made, or does not end.
            Permission::MessageLater => self.floor == Floor::Free,
            Permission::Message { until } => self.floor == Floor::Free || now >= until,
            Permission::Nothing | Permission::Everything => false,
        };
        if is_message_lost {
            self.leave_machine();
            return true;
        }
        match watch.detector.poll(now) {
            None => return false,
            Some(Finding::Verdict(verdict)) => self.answered_by(verdict),
            Some(Finding::MessageTime) => {
                let until = now + MESSAGE_LIMIT;
                watch.may_say = Permission::Message { until };
            }
            Some(Finding::NoMessageTime) => self.leave_machine(),
        }
        true
    }

    fn answered_by(&mut self, verdict: Verdict) {
        let now = self.now;
        self.out.push(Output::AnsweredBy(verdict));
        let Some(watch) = &mut self.answer else {
            return;
        };
        match watch.plan.about(verdict.answered_by) {
            MachinePolicy::Continue => {
                watch.may_say = Permission::Everything;
                self.silence.since = now;
            }
            MachinePolicy::HangUp => self.leave_machine(),
            MachinePolicy::LeaveMessage => {
                watch.may_say = Permission::MessageLater;
                watch.detector.wait_for_message(now);
                let text = watch.plan.message.clone();
                self.cancel();
                self.waiting.clear();
                self.start_reply(ReplyKind::Message, false, 0, None, Prompt::Say { text });
            }
        }
    }

    /// All of the message was said.
    pub(super) fn message_left(&mut self) {
        self.out.push(Output::MessageLeft);
        self.leave_machine();
    }

    fn leave_machine(&mut self) {
        self.cancel();
        self.close(VoiceEnd::MachineAnswered, None);
    }
}
