//! What follows from the state and the time: one thing after the other, until nothing is left to
//! do.

use super::TurnMachine;
use super::state::{
    Caller, Floor, Line, Origin, ReplyKind, Segment, Stage, ToolUse, Words, joined,
};
use super::vocabulary::{Failure, FailureKind, Output, Prompt, Time};
use crate::providers::Component;
use crate::voice::VoiceEnd;
use crate::voice::config::ms;
use crate::voice::wording;

/// How many stretches of speech may wait for an answer. With more, the oldest are written down
/// unanswered.
const MAX_UNANSWERED: usize = 64;

/// Words with which people pick up a phone; a greeting that comes upon them answers them.
const MAX_HELLO_WORDS: usize = 3;

impl TurnMachine {
    /// One thing that the state asks for. False when there is nothing.
    pub(super) fn step(&mut self) -> bool {
        if self.watch.lost && self.stage == Stage::Talking {
            return self.settle_segments();
        }
        self.settle_segments()
            || self.step_answer()
            || self.step_keypad()
            || self.watch_line()
            || match &self.stage {
                Stage::New | Stage::Over => false,
                Stage::Talking => match &self.floor {
                    Floor::Free => self.step_free(),
                    Floor::Preparing(_) => self.step_preparing(),
                    Floor::Playing(_) => self.step_playing(),
                    Floor::Paused(_) => self.step_paused(),
                },
                Stage::Closing(_) => self.step_closing(),
            }
    }

    /// Tells the world about final words, and writes down those that need no answer.
    pub(super) fn settle_segments(&mut self) -> bool {
        for segment in &mut self.turn {
            if segment.is_settled() && !segment.announced {
                segment.announced = true;
                let text = segment.text().to_owned();
                if !text.is_empty() || !segment.interim.is_empty() {
                    self.out.push(Output::UserTranscript {
                        segment: segment.id,
                        text,
                        is_final: true,
                    });
                }
                return true;
            }
        }
        if let Some(opening) = self
            .turn
            .iter_mut()
            .find(|segment| segment.origin == Origin::Opening && segment.is_settled())
        {
            let only_hello = wording::word_count(opening.text()) <= MAX_HELLO_WORDS;
            opening.origin = if only_hello {
                Origin::Noted
            } else {
                Origin::Speech
            };
            return true;
        }
        if let Some(at) = self
            .turn
            .iter()
            .position(|segment| segment.origin == Origin::Noted && segment.is_settled())
        {
            // A reply that counts on the first segments counts on one less.
            let noted = self.turn.remove(at);
            if let Floor::Preparing(reply) | Floor::Playing(reply) | Floor::Paused(reply) =
                &mut self.floor
                && at < reply.covers
            {
                reply.covers -= 1;
            }
            self.commit(vec![noted], self.now);
            return true;
        }
        if self
            .turn
            .iter()
            .filter(|segment| segment.origin != Origin::Noted)
            .count()
            > MAX_UNANSWERED
            && let Some(oldest) = self
                .turn
                .iter_mut()
                .find(|segment| segment.origin != Origin::Noted && segment.ended.is_some())
        {
            oldest.origin = Origin::Noted;
            return true;
        }
        false
    }

    /// The watchdogs of the caller's line.
    pub(super) fn watch_line(&mut self) -> bool {
        if !matches!(self.stage, Stage::Talking) {
            return false;
        }
        if let Some(at) = self.no_input_at()
            && self.now >= at
        {
            self.watch.missing_reported = true;
            self.report(
                "audio_in",
                "no sound has come from the caller for a while",
                true,
            );
            return true;
        }
        if let Some(at) = self.deaf_at()
            && self.now >= at
        {
            self.watch.loud_since = None;
            self.out.push(Output::RestartHearing);
            self.report(
                "vad",
                "there is sound, but none of it has counted as speech; the detector starts anew",
                true,
            );
            return true;
        }
        if let Some(at) = self.transcript_overdue_at()
            && self.now >= at
        {
            let now = self.now;
            let mut overdue = None;
            for segment in self
                .turn
                .iter_mut()
                .filter(|segment| segment.ended.is_some() && segment.words == Words::Asked)
            {
                segment.words = Words::Heard {
                    text: String::new(),
                    confidence: None,
                    at: now,
                };
                segment.failed = true;
                self.out.push(Output::DropTranscription {
                    segment: segment.id,
                });
                overdue = Some(());
            }
            if overdue.is_some() {
                self.provider_failed(Failure {
                    component: Component::Stt,
                    message: format!(
                        "no transcript within {} ms of the end of the speech",
                        self.config.no_reply_timeout_ms
                    ),
                    kind: FailureKind::Temporary,
                });
            }
            return true;
        }
        false
    }

    pub(super) fn step_free(&mut self) -> bool {
        let is_greeting = |line: &Line| line.kind == ReplyKind::Greeting;
        if self.is_held() && !self.waiting.front().is_some_and(is_greeting) {
            return false;
        }
        if let Some(line) = self.waiting.front() {
            let may_start = self.caller == Caller::Quiet
                || !line.interruptible
                || line.kind == ReplyKind::Greeting;
            if may_start && let Some(line) = self.waiting.pop_front() {
                self.start_line(line);
                return true;
            }
        }
        if self.caller != Caller::Quiet {
            return false;
        }
        if !self.turn.is_empty() {
            if !self.turn.iter().all(Segment::is_settled) {
                return false;
            }
            for segment in self
                .turn
                .iter_mut()
                .filter(|segment| segment.origin == Origin::Backchannel)
            {
                segment.origin = Origin::Speech;
            }
            let text = joined(&self.turn);
            let certain = self
                .turn_over_at(&self.turn)
                .is_none_or(|at| self.now >= at);
            if text.is_empty() {
                if let Some(spoken) = self.wordless_speech() {
                    if !certain {
                        return false;
                    }
                    self.wordless += 1;
                    let spoken_ms = spoken.as_millis();
                    self.report(
                        "stt",
                        &format!("recognition found no words in {spoken_ms} ms of speech; the caller is asked to say it again"),
                        true,
                    );
                    self.ask_to_say_again();
                }
                self.turn.clear();
                self.retries = 0;
                return true;
            }
            if certain
                || (self.config.preemptive && self.retries < self.config.preemptive_max_retries)
            {
                let speech_ended = self
                    .turn
                    .iter()
                    .rev()
                    .find(|s| s.origin != Origin::Typed)
                    .and_then(|s| s.ended);
                let covers = self.turn.len();
                self.start_reply(
                    ReplyKind::Answer,
                    true,
                    covers,
                    speech_ended,
                    Prompt::Answer { to: text },
                );
                return true;
            }
            return false;
        }
        self.retries = 0;
        if self.hang_up_at().is_some_and(|at| self.now >= at) {
            let goodbye = Some(self.lines.silence_goodbye.clone()).filter(|line| !line.is_empty());
            self.close(VoiceEnd::SilenceHangup, goodbye);
            return true;
        }
        if self.ask_at().is_some_and(|at| self.now >= at) {
            self.silence.asked = Some(self.now);
            if self.watch.soundless {
                return true;
            }
            let text = self.lines.still_there.clone();
            self.start_line(Line {
                text,
                interruptible: true,
                kind: ReplyKind::StillThere,
            });
            return true;
        }
        false
    }

    pub(super) fn step_preparing(&mut self) -> bool {
        let Floor::Preparing(reply) = &self.floor else {
            return false;
        };
        // A tool that runs has its effect, so that its reply is seen through.
        if reply.kind == ReplyKind::Answer
            && reply.tools != ToolUse::Running
            && reply.request.is_none()
        {
            let covers = reply.covers;
            let went_on =
                self.turn.iter().skip(covers).any(|s| {
                    s.origin != Origin::Noted && (!s.text().is_empty()) && s.ended.is_some()
                });
            let speaks_long = matches!(self.caller, Caller::Speaking { onset } if self.now >= onset + self.min_interruption());
            if went_on || speaks_long {
                self.retries += 1;
                self.cancel();
                return true;
            }
        }
        let Floor::Preparing(reply) = &self.floor else {
            return false;
        };
        if self
            .reply_overdue_at(reply)
            .is_some_and(|at| self.now >= at)
        {
            let message = self.silent_for(reply.unheard_since);
            let component = reply.waits_for;
            self.cancel_and_commit();
            self.provider_failed(Failure {
                component,
                message,
                kind: FailureKind::Temporary,
            });
            return true;
        }
        if !self.may_be_heard() {
            return false;
        }
        let Floor::Preparing(reply) = &self.floor else {
            return false;
        };
        let (id, kind, speech_ended) = (reply.id, reply.kind, reply.speech_ended);
        if reply.tools == ToolUse::Wanted {
            self.commit_covered();
            self.run_tools(id);
            return true;
        }
        if reply.audio_ready {
            self.commit_covered();
            if kind == ReplyKind::Greeting {
                for segment in self
                    .turn
                    .iter_mut()
                    .filter(|segment| segment.origin == Origin::Speech)
                {
                    segment.origin = if segment.ended.is_some() {
                        Origin::Noted
                    } else {
                        Origin::Opening
                    };
                }
            }
            if kind == ReplyKind::Answer {
                self.failures = 0;
                self.retries = 0;
            }
            self.out.push(Output::Play {
                reply: id,
                speech_ended,
            });
            if let Floor::Preparing(mut reply) = std::mem::replace(&mut self.floor, Floor::Free) {
                reply.last_progress = self.now;
                reply.unheard_since = self.now;
                reply.heard_from = Some(self.now);
                self.floor = Floor::Playing(reply);
            }
            return true;
        }
        false
    }

    pub(super) fn step_playing(&mut self) -> bool {
        let Floor::Playing(reply) = &self.floor else {
            return false;
        };
        let (id, interruptible, stalled) = (reply.id, self.is_interruptible(reply), reply.stalled);
        if reply.tools == ToolUse::Wanted {
            self.run_tools(id);
            return true;
        }
        let (stalled_at, gave_up_at) = (self.stalled_at(reply), self.playout_overdue_at(reply));
        if interruptible {
            if self.note_backchannels() {
                return true;
            }
            if self.words_interrupt() {
                self.cancel();
                return true;
            }
            if self.pause_at().is_some_and(|at| self.now >= at) {
                if self.config.resume_false_interruption {
                    self.out.push(Output::Pause { reply: id });
                    self.move_floor(Floor::Paused);
                } else {
                    self.cancel();
                }
                return true;
            }
        }
        if self.now >= gave_up_at {
            self.give_up_playing();
            return true;
        }
        if !stalled && self.now >= stalled_at {
            if let Some(reply) = self.reply_mut(id) {
                let waits_for_tool = reply.tools == ToolUse::Running;
                reply.stalled = true;
                if !waits_for_tool {
                    self.report(
                        "playout",
                        "the agent speaks, but no sound of it has been taken for a while",
                        true,
                    );
                }
            }
            return true;
        }
        false
    }

    /// The reply has come to a halt in the middle.
    fn give_up_playing(&mut self) {
        let Floor::Playing(reply) = &self.floor else {
            return;
        };
        let waits_for_words = reply.tools != ToolUse::Idle || reply.waits_for == Component::Llm;
        if !waits_for_words {
            self.report("playout", "the reply stands still and is given up", true);
            self.cancel();
            return;
        }
        // What was said before the tools was not all that the caller is to hear.
        let message = self.silent_for(reply.unheard_since);
        let component = reply.waits_for;
        if let Some(request) = reply.request.clone() {
            let goodbye = self.lines.goodbye.clone();
            self.close(VoiceEnd::Requested(request), Some(goodbye));
        }
        self.cancel();
        self.provider_failed(Failure {
            component,
            message,
            kind: FailureKind::Temporary,
        });
    }

    fn silent_for(&self, since: Time) -> String {
        let ms = self.now.saturating_sub(since).as_millis();
        format!("no sound of the answer for {ms} ms")
    }

    pub(super) fn step_paused(&mut self) -> bool {
        let Floor::Paused(reply) = &self.floor else {
            return false;
        };
        let id = reply.id;
        if reply.tools == ToolUse::Wanted {
            self.run_tools(id);
            return true;
        }
        if self.is_interruptible(reply) && self.words_interrupt() {
            self.cancel();
            return true;
        }
        if self.caller != Caller::Quiet {
            return false;
        }
        let settled = self.turn.iter().all(Segment::is_settled);
        if settled
            || self
                .false_interruption_at()
                .is_some_and(|at| self.now >= at)
        {
            self.note_backchannels();
            self.turn
                .retain(|segment| !segment.is_settled() || !segment.text().is_empty());
            self.out.push(Output::FalseInterruption);
            self.out.push(Output::Resume { reply: id });
            let now = self.now;
            self.move_floor(|mut reply| {
                reply.last_progress = now;
                reply.unheard_since = now;
                Floor::Playing(reply)
            });
            return true;
        }
        false
    }

    pub(super) fn step_closing(&mut self) -> bool {
        let Stage::Closing(closing) = &self.stage else {
            return false;
        };
        if self.now >= closing.deadline {
            self.cancel();
            self.end();
            return true;
        }
        match &self.floor {
            Floor::Preparing(reply) => {
                let id = reply.id;
                if reply.tools == ToolUse::Wanted {
                    self.run_tools(id);
                    true
                } else if reply.audio_ready {
                    self.out.push(Output::Play {
                        reply: id,
                        speech_ended: None,
                    });
                    let now = self.now;
                    self.move_floor(|mut reply| {
                        reply.last_progress = now;
                        reply.unheard_since = now;
                        Floor::Playing(reply)
                    });
                    true
                } else {
                    false
                }
            }
            Floor::Playing(reply) => {
                let id = reply.id;
                if reply.tools == ToolUse::Wanted {
                    self.run_tools(id);
                    return true;
                }
                false
            }
            Floor::Paused(reply) => {
                self.out.push(Output::Resume { reply: reply.id });
                self.move_floor(Floor::Playing);
                true
            }
            Floor::Free => self.step_out(),
        }
    }

    /// Nobody speaks any more and the conversation is to end: the last line, the last transcripts,
    /// the end.
    pub(super) fn step_out(&mut self) -> bool {
        let now = self.now;
        let Stage::Closing(closing) = &mut self.stage else {
            return false;
        };
        if let Some(text) = closing.farewell.take() {
            self.start_line(Line {
                text,
                interruptible: false,
                kind: ReplyKind::Line,
            });
            return true;
        }
        let until = *closing
            .transcripts_until
            .get_or_insert(now + ms(self.config.close_transcript_timeout_ms));
        if self.caller != Caller::Quiet {
            // In mid speech: what there is of it is recognised.
            self.speech_ended(now);
            return true;
        }
        if now >= until || self.turn.iter().all(Segment::is_settled) {
            self.end();
            return true;
        }
        false
    }
}
