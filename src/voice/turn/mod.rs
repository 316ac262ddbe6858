//! Whose turn it is: a pure machine over time.
//!
//! [`TurnMachine::handle`] takes one [`Input`] and the time, and returns what is to be done about
//! it, in order. It knows no tasks, no sound and no providers, and never waits: it names the moment
//! at which it wants to be asked again ([`TurnMachine::next_deadline`]).
//!
//! The state (`state`) is three enums, and every question (`questions`) is a match over them:
//! `Stage` (do we converse, or are we ending), `Floor` (the one reply that may exist, and how far
//! it is), `Caller` (speaking, pausing, quiet). Beside them lie the stretches of speech that nobody
//! has answered yet. What the agent's state is called outside is derived, never stored.

mod answer;
mod asked;
mod completeness;
mod keypad;
mod questions;
mod state;
mod steps;
mod vocabulary;

use std::collections::VecDeque;
use std::time::Duration;

use super::answer::{AnswerPlan, Sign};
use super::config::{LinesConfig, TurnConfig, ms};
use super::{AgentState, UserState, VoiceEnd};
use crate::providers::Component;
use answer::AnswerWatch;
use asked::Asked;
use completeness::Punctuation;
use keypad::Keypad;
use state::{
    Caller, Closing, Floor, InputWatchdog, Line, Origin, Reply, ReplyKind, Segment, Silence, Stage,
    ToolUse, TurnEnd, Words, joined,
};
pub use vocabulary::{
    Failure, FailureKind, Input, Output, Prompt, ReplyId, SegmentId, Time, UserTurn,
};

/// How many lines may wait to be said; more than that are refused with a report.
const MAX_WAITING_LINES: usize = 8;

/// How often in a row the caller is asked to repeat speech without words. After that it is taken
/// for the silence that it may be: a television, or music on hold.
const MAX_WORDLESS: u32 = 3;

/// A caller who speaks again so soon after the agent has begun to answer had not finished.
const CUT_OFF: Duration = Duration::from_millis(700);

/// The turns of one conversation: takes inputs, answers with what is to be done.
#[derive(Debug)]
pub struct TurnMachine {
    config: TurnConfig,
    lines: LinesConfig,
    tool_timeout: Duration,
    now: Time,
    stage: Stage,
    floor: Floor,
    caller: Caller,
    /// Stretches of speech without an answer, oldest first. At most the last one is open.
    turn: Vec<Segment>,
    waiting: VecDeque<Line>,
    keypad: Keypad,
    /// Set for a call of ours whose answerer is to be known first.
    answer: Option<AnswerWatch>,
    /// What the agent's last words ask for.
    asked: Asked,
    punctuation: Punctuation,
    /// How long this caller pauses within a turn, as far as that has been seen.
    own_pause: Option<Duration>,
    silence: Silence,
    watch: InputWatchdog,
    /// When interim words came last.
    interim_at: Time,
    /// Failures of providers since the last answer that was heard.
    failures: u32,
    /// Stretches of speech in a row in which there were no words.
    wordless: u32,
    /// When the agent's last reply ended.
    agent_quiet_since: Time,
    /// Answers to this turn that were given up because the caller went on.
    retries: u32,
    next_segment: u32,
    next_reply: u32,
    announced: (AgentState, UserState),
    out: Vec<Output>,
}

impl TurnMachine {
    /// A conversation that has not begun.
    pub fn new(config: TurnConfig, lines: LinesConfig, tool_timeout: Duration) -> Self {
        Self {
            config,
            lines,
            tool_timeout,
            now: Time::ZERO,
            stage: Stage::New,
            floor: Floor::Free,
            caller: Caller::Quiet,
            turn: Vec::new(),
            waiting: VecDeque::new(),
            keypad: Keypad::default(),
            answer: None,
            asked: Asked::default(),
            punctuation: Punctuation::Fragment,
            own_pause: None,
            silence: Silence {
                since: Time::ZERO,
                asked: None,
            },
            watch: InputWatchdog {
                last_audio: Time::ZERO,
                missing_reported: false,
                loud_since: None,
                lost: false,
                soundless: false,
            },
            interim_at: Time::ZERO,
            failures: 0,
            wordless: 0,
            agent_quiet_since: Time::ZERO,
            retries: 0,
            next_segment: 0,
            next_reply: 0,
            announced: (AgentState::Initializing, UserState::Listening),
            out: Vec::new(),
        }
    }

    /// The same, for a call of ours: the agent says nothing until it is known who has answered.
    #[must_use]
    pub fn watching_answer(mut self, plan: Option<AnswerPlan>) -> Self {
        self.answer = plan.map(AnswerWatch::new);
        self
    }

    /// Takes what happened at `now` and returns what to do, in order. Time that goes backwards is
    /// taken for standing still.
    pub fn handle(&mut self, now: Time, input: Input) -> Vec<Output> {
        self.now = self.now.max(now);
        if let Input::AgentSaid { text } = input {
            // Comes while outputs are being acted on, and asks for nothing itself.
            self.asked = asked::asked(&text);
            return Vec::new();
        }
        if self.stage != Stage::Over {
            self.apply(input);
            // Every step that returns true has changed the state towards rest, so that this ends.
            while self.step() {}
            self.announce();
        }
        std::mem::take(&mut self.out)
    }

    /// When to call [`TurnMachine::handle`] with [`Input::Tick`], if nothing else happens before.
    /// Always later than the last input.
    pub fn next_deadline(&self) -> Option<Time> {
        self.deadlines()
            .into_iter()
            .flatten()
            .filter(|deadline| *deadline > self.now)
            .min()
    }

    /// The segment that the caller is speaking right now.
    pub fn open_segment(&self) -> Option<SegmentId> {
        self.turn
            .last()
            .filter(|segment| segment.ended.is_none())
            .map(|segment| segment.id)
    }

    /// The reply that exists, if any.
    pub fn active_reply(&self) -> Option<ReplyId> {
        self.reply().map(|reply| reply.id)
    }

    /// Whether [`Output::End`] has been given out.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    fn reply(&self) -> Option<&Reply> {
        match &self.floor {
            Floor::Free => None,
            Floor::Preparing(reply) | Floor::Playing(reply) | Floor::Paused(reply) => Some(reply),
        }
    }

    fn reply_mut(&mut self, id: ReplyId) -> Option<&mut Reply> {
        match &mut self.floor {
            Floor::Free => None,
            Floor::Preparing(reply) | Floor::Playing(reply) | Floor::Paused(reply) => {
                Some(reply).filter(|reply| reply.id == id)
            }
        }
    }

    // ---- what happened ----

    fn apply(&mut self, input: Input) {
        let now = self.now;
        match input {
            Input::Started { greeting } => {
                if self.stage != Stage::New {
                    return;
                }
                self.stage = Stage::Talking;
                self.silence.since = now;
                self.watch.last_audio = now;
                self.note_answer(Sign::Answered);
                if let Some(text) = greeting.filter(|text| !text.trim().is_empty()) {
                    let interruptible = self.config.greeting_interruptions;
                    self.waiting.push_back(Line {
                        text,
                        interruptible,
                        kind: ReplyKind::Greeting,
                    });
                }
            }
            Input::SpeechStarted { onset } => {
                let onset = onset.min(now);
                self.note_answer(Sign::SpeechStarted { onset });
                self.speech_started(onset);
            }
            Input::SpeechPaused => self.speech_paused(),
            Input::SpeechResumed => self.speech_resumed(),
            Input::SpeechEnded { end } => {
                let end = end.min(now);
                self.note_answer(Sign::SpeechEnded { end });
                self.speech_ended(end);
            }
            Input::Tone(tone) => self.note_answer(Sign::Tone(tone)),
            Input::Transcript {
                segment,
                text,
                confidence,
                is_final,
            } => {
                let words = Sign::Words {
                    text: &text,
                    is_final,
                };
                self.note_answer(words);
                self.transcript(segment, text, confidence, is_final);
            }
            Input::WordsBeside {
                onset,
                end,
                text,
                confidence,
            } => {
                let words = Sign::Words {
                    text: &text,
                    is_final: true,
                };
                self.note_answer(words);
                self.words_beside((onset.min(now), end.min(now)), &text, confidence);
            }
            Input::Recogniser { streams } => {
                self.punctuation = match streams {
                    true => Punctuation::Streamed,
                    false => Punctuation::Fragment,
                };
            }
            Input::EndOfTurn {
                segment,
                is_certain,
            } => self.end_of_turn(segment, is_certain),
            Input::TurnResumed { segment } => self.turn_resumed(segment),
            Input::NotSpeech { segment } => self.not_speech(segment),
            Input::TranscriptionFailed { segment, failure } => {
                self.transcription_failed(segment, failure)
            }
            Input::WordsReady { reply } => {
                if let Some(reply) = self.reply_mut(reply) {
                    reply.waits_for = Component::Tts;
                }
            }
            Input::AudioReady { reply } => {
                if let Some(reply) = self.reply_mut(reply) {
                    reply.audio_ready = true;
                }
            }
            Input::ToolsWanted { reply } => {
                if let Some(reply) = self.reply_mut(reply)
                    && reply.tools == ToolUse::Idle
                {
                    reply.tools = ToolUse::Wanted;
                }
            }
            Input::ToolsDone { reply, request } => {
                if let Some(reply) = self.reply_mut(reply) {
                    reply.tools = ToolUse::Idle;
                    reply.request = reply.request.take().or(request);
                    reply.last_progress = now;
                    // It is told what they answered.
                    reply.waits_for = Component::Llm;
                }
            }
            Input::Progress { reply } => {
                if let Some(reply) = self.reply_mut(reply) {
                    reply.last_progress = now;
                    reply.unheard_since = now;
                    reply.stalled = false;
                }
            }
            Input::ReplyFinished { reply } => self.reply_finished(reply),
            Input::ReplyFailed { reply, failure } => {
                if self.active_reply() == Some(reply) {
                    self.reply_over(true);
                    self.provider_failed(failure);
                }
            }
            Input::CallerAudio { loud } => {
                self.watch.last_audio = now;
                self.watch.missing_reported = false;
                self.watch.loud_since = if loud {
                    self.watch.loud_since.or(Some(now))
                } else {
                    None
                };
            }
            Input::LineLost => self.line_lost(),
            Input::LineBack { say } => self.line_back(say),
            Input::CallerSound { arrives } => {
                if std::mem::replace(&mut self.watch.soundless, !arrives) && arrives {
                    self.silence = Silence {
                        since: now,
                        asked: None,
                    };
                }
            }
            Input::Say {
                text,
                interruptible,
            } => {
                let refused = match self.stage {
                    Stage::New | Stage::Talking => self.waiting.len() >= MAX_WAITING_LINES,
                    Stage::Closing(_) | Stage::Over => true,
                };
                if refused {
                    self.report(
                        "say",
                        "a line was not said: the conversation ends, or too many lines wait",
                        true,
                    );
                } else {
                    self.waiting.push_back(Line {
                        text,
                        interruptible,
                        kind: ReplyKind::Line,
                    });
                }
            }
            Input::UserText(text) => self.user_text(text),
            Input::Key(key) => {
                self.note_answer(Sign::Key);
                self.key_pressed(key);
            }
            Input::Close { say } => {
                if matches!(self.floor, Floor::Preparing(_)) {
                    self.cancel_and_commit();
                }
                self.close(VoiceEnd::Closed, say);
            }
            Input::Stop => {
                self.cancel();
                match &mut self.stage {
                    // What was in transit out has been decided before; it merely has no time left.
                    Stage::Closing(closing) => closing.farewell = None,
                    _ => self.close(VoiceEnd::Stopped, None),
                }
            }
            Input::AgentSaid { .. } | Input::Tick => {}
        }
    }

    fn line_lost(&mut self) {
        if std::mem::replace(&mut self.watch.lost, true) || self.stage != Stage::Talking {
            return;
        }
        if let Floor::Playing(reply) = &self.floor {
            self.out.push(Output::Pause { reply: reply.id });
            self.move_floor(Floor::Paused);
        }
    }

    fn line_back(&mut self, say: Option<String>) {
        let now = self.now;
        if !std::mem::take(&mut self.watch.lost) {
            return;
        }
        self.note_answer(Sign::Answered);
        self.silence.since = now;
        self.watch.last_audio = now;
        self.watch.loud_since = None;
        match &mut self.floor {
            Floor::Free => {}
            Floor::Preparing(reply) | Floor::Playing(reply) | Floor::Paused(reply) => {
                reply.last_progress = now;
                reply.unheard_since = now;
            }
        }
        let nothing_to_say =
            self.floor == Floor::Free && self.turn.is_empty() && self.waiting.is_empty();
        if self.stage == Stage::Talking
            && nothing_to_say
            && let Some(text) = say
        {
            self.waiting.push_back(Line {
                text,
                interruptible: true,
                kind: ReplyKind::Line,
            });
        }
    }

    fn speech_started(&mut self, onset: Time) {
        if self.caller != Caller::Quiet {
            return;
        }
        self.learn_pause(onset);
        self.caller = Caller::Speaking { onset };
        self.watch.loud_since = None;
        let id = SegmentId(self.next_segment);
        self.next_segment += 1;
        self.turn.push(Segment::new(id, onset, Origin::Speech));
    }

    /// The caller begins to speak again: was it a pause within the turn, or has the agent begun to
    /// answer in one?
    fn learn_pause(&mut self, onset: Time) {
        let before = match &self.floor {
            Floor::Playing(reply)
                if reply
                    .heard_from
                    .is_some_and(|from| onset.saturating_sub(from) <= CUT_OFF) =>
            {
                reply.speech_ended
            }
            Floor::Free | Floor::Preparing(_) => self
                .turn
                .last()
                .filter(|segment| segment.origin == Origin::Speech && !segment.text().is_empty())
                .and_then(|segment| segment.ended),
            Floor::Playing(_) | Floor::Paused(_) => None,
        };
        let Some(pause) = before.map(|ended| onset.saturating_sub(ended)) else {
            return;
        };
        // After more than that, it is no pause but a caller who wonders whether anybody is there.
        if pause <= ms(self.config.max_endpointing_delay_ms) {
            self.own_pause = Some(match self.own_pause {
                None => pause,
                Some(known) if pause > known => (known + pause) / 2,
                Some(known) => (known * 4 + pause) / 5,
            });
        }
    }

    fn speech_paused(&mut self) {
        let Caller::Speaking { onset } = self.caller else {
            return;
        };
        self.caller = Caller::Pausing { onset };
        let (config, now) = (&self.config, self.now);
        if let Some(segment) = self
            .turn
            .last_mut()
            .filter(|segment| segment.ended.is_none())
            && config.preemptive
            && now.saturating_sub(segment.onset) <= ms(config.preemptive_max_speech_ms)
            && segment.early_requests < config.preemptive_max_retries
        {
            segment.early_requests += 1;
            segment.words = Words::Asked;
            self.out.push(Output::Transcribe {
                segment: segment.id,
            });
        }
    }

    fn speech_resumed(&mut self) {
        let Caller::Pausing { onset } = self.caller else {
            return;
        };
        self.caller = Caller::Speaking { onset };
        if let Some(segment) = self
            .turn
            .last_mut()
            .filter(|segment| segment.ended.is_none())
        {
            // Words of half a segment are worth nothing: the next request covers all of it.
            if segment.words == Words::Asked {
                self.out.push(Output::DropTranscription {
                    segment: segment.id,
                });
            }
            segment.words = Words::NotAsked;
            segment.turn_end = TurnEnd::Unsaid;
        }
    }

    fn speech_ended(&mut self, end: Time) {
        let (Caller::Speaking { onset } | Caller::Pausing { onset }) = self.caller else {
            return;
        };
        self.caller = Caller::Quiet;
        let Some(segment) = self
            .turn
            .last_mut()
            .filter(|segment| segment.ended.is_none())
        else {
            return;
        };
        segment.ended = Some(end.max(onset));
        if segment.words == Words::NotAsked {
            segment.words = Words::Asked;
            self.out.push(Output::Transcribe {
                segment: segment.id,
            });
        }
    }

    fn transcript(&mut self, id: SegmentId, text: String, confidence: Option<f32>, is_final: bool) {
        let now = self.now;
        let Some(at) = self.turn.iter().position(|segment| segment.id == id) else {
            return;
        };
        let text = text.trim().to_owned();
        let segment = &mut self.turn[at];
        if is_final && segment.turn_end == TurnEnd::Eager && segment.text() != text {
            self.take_back(at, Words::Asked);
        }
        let segment = &mut self.turn[at];
        if !is_final {
            self.interim_at = now;
            segment.interim.clone_from(&text);
            self.out.push(Output::UserTranscript {
                segment: id,
                text,
                is_final,
            });
        } else if !matches!(segment.words, Words::Heard { .. }) {
            let has_words = !text.is_empty();
            segment.words = Words::Heard {
                text,
                confidence,
                at: now,
            };
            if has_words {
                self.heard_words();
            }
        }
        self.watch.loud_since = None;
    }

    /// There is nothing in a segment that anybody said, so that nobody is asked to say it again.
    fn not_speech(&mut self, id: SegmentId) {
        let now = self.now;
        let Some(segment) = self.turn.iter_mut().find(|segment| segment.id == id) else {
            return;
        };
        if !matches!(segment.words, Words::Heard { .. }) {
            segment.words = Words::Heard {
                text: String::new(),
                confidence: None,
                at: now,
            };
            segment.failed = true;
        }
        self.watch.loud_since = None;
    }

    fn transcription_failed(&mut self, id: SegmentId, failure: Failure) {
        let now = self.now;
        let Some(segment) = self.turn.iter_mut().find(|segment| segment.id == id) else {
            return;
        };
        if matches!(segment.words, Words::Heard { .. }) {
            return;
        }
        if segment.ended.is_none() {
            // The early request failed; the one at the end of the speech may not.
            segment.words = Words::NotAsked;
            return;
        }
        segment.words = Words::Heard {
            text: String::new(),
            confidence: None,
            at: now,
        };
        segment.failed = true;
        self.provider_failed(failure);
    }

    fn user_text(&mut self, text: String) {
        let text = text.trim().to_owned();
        if text.is_empty() || !matches!(self.stage, Stage::New | Stage::Talking) {
            return;
        }
        self.heard_words();
        self.watch.loud_since = None;
        if self.reply().is_some_and(|reply| {
            reply.interruptible && reply.request.is_none() && reply.tools != ToolUse::Running
        }) {
            self.cancel();
        }
        self.insert_heard(Origin::Typed, (self.now, self.now), text, None);
    }

    /// Words that the detector has missed, or that come late.
    fn words_beside(&mut self, spoken: (Time, Time), text: &str, confidence: Option<f32>) {
        let text = text.trim().to_owned();
        let is_talking = matches!(self.stage, Stage::New | Stage::Talking | Stage::Closing(_));
        if text.is_empty() || !is_talking {
            return;
        }
        self.heard_words();
        self.watch.loud_since = None;
        self.insert_heard(Origin::Speech, spoken, text, confidence);
    }

    /// Adds a segment whose words are known. The open segment stays the last one.
    fn insert_heard(
        &mut self,
        origin: Origin,
        (onset, end): (Time, Time),
        text: String,
        confidence: Option<f32>,
    ) {
        let mut segment = Segment::new(SegmentId(self.next_segment), onset.min(end), origin);
        segment.ended = Some(end);
        segment.words = Words::Heard {
            text,
            confidence,
            at: self.now,
        };
        // What was typed, the world has seen.
        segment.announced = origin == Origin::Typed;
        self.next_segment += 1;
        let at = self
            .turn
            .iter()
            .position(|segment| segment.ended.is_none())
            .unwrap_or(self.turn.len());
        self.turn.insert(at, segment);
    }

    fn end_of_turn(&mut self, id: SegmentId, is_certain: bool) {
        if let Some(segment) = self.turn.iter_mut().find(|segment| segment.id == id)
            && matches!(segment.words, Words::Heard { .. })
        {
            segment.turn_end = if is_certain {
                TurnEnd::Certain
            } else {
                TurnEnd::Eager
            };
        }
    }

    fn turn_resumed(&mut self, id: SegmentId) {
        let Some(at) = self.turn.iter().position(|segment| segment.id == id) else {
            return;
        };
        self.take_back(at, Words::Asked);
    }

    /// The words of a segment were not its last ones: what answers them is given up.
    fn take_back(&mut self, at: usize, words: Words) {
        let segment = &mut self.turn[at];
        segment.words = words;
        segment.turn_end = TurnEnd::Unsaid;
        segment.announced = false;
        if let Floor::Preparing(reply) = &self.floor
            && at < reply.covers
            && reply.tools != ToolUse::Running
            && reply.request.is_none()
        {
            self.retries += 1;
            self.cancel();
        }
    }

    fn reply_finished(&mut self, id: ReplyId) {
        let Some(reply) = self.reply().filter(|reply| reply.id == id) else {
            return;
        };
        let is_message = reply.kind == ReplyKind::Message;
        if reply.kind != ReplyKind::StillThere {
            self.silence = Silence {
                since: self.now,
                asked: None,
            };
        }
        let boundary = self
            .now
            .saturating_sub(ms(self.config.backchannel_boundary_ms));
        for segment in self
            .turn
            .iter_mut()
            .filter(|segment| segment.origin == Origin::Backchannel)
        {
            // "Yes" on the agent's last word answers its question; in the middle of its speech it
            // only means "go on".
            let at_the_end = segment.ended.is_none_or(|ended| ended >= boundary);
            segment.origin = if at_the_end {
                Origin::Speech
            } else {
                Origin::Noted
            };
        }
        let unheard = match &self.floor {
            Floor::Preparing(reply)
                if reply.kind == ReplyKind::Answer
                    && reply.request.is_none()
                    && !reply.audio_ready =>
            {
                Some(reply.waits_for)
            }
            _ => None,
        };
        self.reply_over(true);
        if is_message {
            self.message_left();
        }
        if let Some(component) = unheard {
            self.provider_failed(Failure {
                component,
                message: "the answer ended without a sound".to_owned(),
                kind: FailureKind::Temporary,
            });
        }
    }

    /// The caller is there. Sound without words does not tell.
    fn heard_words(&mut self) {
        self.wordless = 0;
        self.silence = Silence {
            since: self.now,
            asked: None,
        };
    }

    // ---- acts ----

    fn start_line(&mut self, line: Line) {
        self.start_reply(
            line.kind,
            line.interruptible,
            0,
            None,
            Prompt::Say { text: line.text },
        );
    }

    fn start_reply(
        &mut self,
        kind: ReplyKind,
        interruptible: bool,
        covers: usize,
        speech_ended: Option<Time>,
        prompt: Prompt,
    ) {
        let id = ReplyId(self.next_reply);
        self.next_reply += 1;
        let waits_for = match prompt {
            Prompt::Answer { .. } => Component::Llm,
            Prompt::Say { .. } => Component::Tts,
        };
        self.out.push(Output::StartReply { reply: id, prompt });
        self.floor = Floor::Preparing(Reply {
            id,
            kind,
            interruptible,
            covers,
            waits_for,
            audio_ready: false,
            tools: ToolUse::Idle,
            request: None,
            last_progress: self.now,
            unheard_since: self.now,
            stalled: false,
            heard_from: None,
            speech_ended,
        });
    }

    fn run_tools(&mut self, id: ReplyId) {
        let now = self.now;
        if let Some(reply) = self.reply_mut(id) {
            reply.tools = ToolUse::Running;
            reply.last_progress = now;
            self.out.push(Output::RunTools { reply: id });
        }
    }

    fn move_floor(&mut self, to: impl FnOnce(Reply) -> Floor) {
        self.floor = match std::mem::replace(&mut self.floor, Floor::Free) {
            Floor::Free => Floor::Free,
            Floor::Preparing(reply) | Floor::Playing(reply) | Floor::Paused(reply) => to(reply),
        };
    }

    /// Ends the reply, if there is one.
    fn cancel(&mut self) {
        if let Some(id) = self.active_reply() {
            self.out.push(Output::Cancel { reply: id });
            self.reply_over(false);
        }
    }

    /// As `cancel`, when the words that it answers will get no other answer.
    fn cancel_and_commit(&mut self) {
        if let Some(id) = self.active_reply() {
            self.out.push(Output::Cancel { reply: id });
            self.reply_over(true);
        }
    }

    /// The reply is no more. With `commit`, the words that it was to answer are written down.
    fn reply_over(&mut self, commit: bool) {
        if commit || matches!(&self.floor, Floor::Preparing(reply) if reply.request.is_some()) {
            self.commit_covered();
        }
        let floor = std::mem::replace(&mut self.floor, Floor::Free);
        let is_unheard = matches!(floor, Floor::Preparing(_));
        if let Floor::Preparing(reply) | Floor::Playing(reply) | Floor::Paused(reply) = floor {
            self.agent_quiet_since = self.now;
            if reply.kind != ReplyKind::StillThere {
                self.silence.since = self.now;
            }
            if let Some(request) = reply.request {
                // Nobody is hung up on without a word.
                let goodbye = is_unheard.then(|| self.lines.goodbye.clone());
                self.close(VoiceEnd::Requested(request), goodbye);
            }
        }
    }

    fn close(&mut self, end: VoiceEnd, farewell: Option<String>) {
        self.waiting.clear();
        match &mut self.stage {
            // The first reason stands; a later one may only bring the farewell.
            Stage::Closing(_) | Stage::Over => {}
            Stage::New | Stage::Talking => {
                let farewell = farewell.filter(|text| !text.trim().is_empty());
                let deadline = self.now + ms(self.config.close_timeout_ms);
                self.stage = Stage::Closing(Closing {
                    end,
                    farewell,
                    deadline,
                    transcripts_until: None,
                });
            }
        }
    }

    fn end(&mut self) {
        self.typing_over();
        let rest = std::mem::take(&mut self.turn);
        self.commit(rest, self.now);
        if let Stage::Closing(closing) = std::mem::replace(&mut self.stage, Stage::Over) {
            self.announce();
            self.out.push(Output::End(closing.end));
        }
    }

    fn provider_failed(&mut self, failure: Failure) {
        self.failures += 1;
        let gives_up =
            failure.kind == FailureKind::Config || self.failures >= self.config.max_failures;
        self.report(failure.component.as_str(), &failure.message, !gives_up);
        if let Stage::Closing(closing) = &mut self.stage {
            if failure.component == Component::Tts {
                // There is no way left to say goodbye.
                closing.farewell = None;
            }
            return;
        }
        if gives_up {
            let mute = failure.component == Component::Tts;
            let apology = Some(self.lines.apology.clone()).filter(|_| !mute);
            if matches!(self.floor, Floor::Preparing(_)) {
                self.cancel();
            }
            self.close(
                VoiceEnd::ProviderFailed {
                    component: failure.component,
                    message: failure.message,
                },
                apology,
            );
        } else {
            self.ask_to_say_again();
        }
    }

    fn ask_to_say_again(&mut self) {
        let text = &self.lines.say_again;
        if self.waiting.len() < MAX_WAITING_LINES
            && self.waiting.iter().all(|line| line.text != *text)
        {
            self.waiting.push_back(Line {
                text: text.clone(),
                interruptible: true,
                kind: ReplyKind::Line,
            });
        }
    }

    /// Writes down the words that the reply answers, once it is certain that it will be heard or
    /// has effects.
    fn commit_covered(&mut self) {
        let covers = match &mut self.floor {
            Floor::Preparing(reply) => std::mem::take(&mut reply.covers),
            _ => 0,
        };
        if covers > 0 {
            let segments: Vec<Segment> = self.turn.drain(..covers.min(self.turn.len())).collect();
            let decided = self
                .turn_over_at(&segments)
                .unwrap_or(self.now)
                .min(self.now);
            self.commit(segments, decided);
        }
    }

    fn commit(&mut self, segments: Vec<Segment>, decided: Time) {
        let text = joined(&segments);
        if text.is_empty() {
            return;
        }
        let spoken = || {
            segments
                .iter()
                .filter(|segment| segment.origin != Origin::Typed)
        };
        let confidence = segments
            .iter()
            .filter_map(|segment| match segment.words {
                Words::Heard { confidence, .. } => confidence,
                _ => None,
            })
            .reduce(f32::min);
        let transcribed = segments
            .iter()
            .filter_map(Segment::transcribed_at)
            .max()
            .unwrap_or(self.now);
        self.out.push(Output::CommitUser(UserTurn {
            text,
            confidence,
            speech_started: spoken().map(|segment| segment.onset).min(),
            speech_ended: spoken().filter_map(|segment| segment.ended).max(),
            transcribed,
            decided: decided.max(transcribed),
        }));
    }

    fn report(&mut self, component: &'static str, message: &str, recoverable: bool) {
        self.out.push(Output::Report {
            component,
            message: message.to_owned(),
            recoverable,
        });
    }

    fn announce(&mut self) {
        let (agent, user) = (self.agent_state(), self.user_state());
        if agent != self.announced.0 {
            self.out.push(Output::AgentState(agent));
        }
        if user != self.announced.1 {
            self.out.push(Output::UserState(user));
        }
        self.announced = (agent, user);
    }
}

#[cfg(test)]
mod tests;
