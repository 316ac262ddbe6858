//! Whose turn it is: a pure machine over time.
//!
//! [`TurnMachine::handle`] takes one [`Input`] and the time, and returns what is to be done about it, in order. It knows no tasks, no
//! sound and no providers, and never waits: it names the moment at which it wants to be asked again
//! ([`TurnMachine::next_deadline`]).
//!
//! The state is three enums, and every question is a match over them: [`Stage`] (do we converse, or are we ending), [`Floor`] (the
//! one reply that may exist, and how far it is), [`Caller`] (speaking, pausing, quiet). Beside them lie the stretches of speech that
//! nobody has answered yet. What the agent's state is called outside is derived, never stored.

use std::collections::VecDeque;
use std::time::Duration;

use super::config::{LinesConfig, TurnConfig, ms};
use super::wording::{self, Ending};
use super::{AgentState, UserState, VoiceEnd};
use crate::providers::Component;

/// Time since the conversation began.
pub type Time = Duration;

/// One stretch of the caller's speech.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u32);

/// One thing that the agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplyId(pub u32);

/// How many lines may wait to be said; more than that are refused with a report.
const MAX_WAITING_LINES: usize = 8;

/// How many stretches of speech may wait for an answer. With more, the oldest are written down unanswered.
const MAX_UNANSWERED: usize = 64;

/// Words with which people pick up a phone; a greeting that comes upon them answers them.
const MAX_HELLO_WORDS: usize = 3;

/// What a provider could not do, after all its retries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which provider.
    pub component: Component,
    /// What it said.
    pub message: String,
    /// What can be done about it.
    pub kind: FailureKind,
}

/// What can be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Another request may work.
    Temporary,
    /// No request will.
    Config,
    /// Only this request does not.
    BadInput,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The conversation begins, with these words if any.
    Started {
        /// What the agent says first.
        greeting: Option<String>,
    },
    /// The caller has begun to speak; the first sound of it was at `onset`.
    SpeechStarted {
        /// When the speech began.
        onset: Time,
    },
    /// The caller pauses, too short yet for an end.
    SpeechPaused,
    /// The caller goes on after a pause.
    SpeechResumed,
    /// The caller has stopped; the last sound was at `end`.
    SpeechEnded {
        /// When the speech ended.
        end: Time,
    },
    /// Words of a segment.
    Transcript {
        /// Which one.
        segment: SegmentId,
        /// All its words so far.
        text: String,
        /// The recogniser's own estimate.
        confidence: Option<f32>,
        /// Whether they will change.
        is_final: bool,
    },
    /// A segment could not be recognised.
    TranscriptionFailed {
        /// Which one.
        segment: SegmentId,
        /// Why.
        failure: Failure,
    },
    /// The model has begun to answer; what is still missing is sound.
    WordsReady {
        /// Which one.
        reply: ReplyId,
    },
    /// The first sound of a reply is there.
    AudioReady {
        /// Which one.
        reply: ReplyId,
    },
    /// The model wants to use tools in a reply.
    ToolsWanted {
        /// Which one.
        reply: ReplyId,
    },
    /// They have run.
    ToolsDone {
        /// Which reply wanted them.
        reply: ReplyId,
        /// One of them was `end_call`.
        end_call: bool,
    },
    /// The output has taken sound of a reply.
    Progress {
        /// Which one.
        reply: ReplyId,
    },
    /// All of a reply has been heard.
    ReplyFinished {
        /// Which one.
        reply: ReplyId,
    },
    /// A reply has come to an early end by itself.
    ReplyFailed {
        /// Which one.
        reply: ReplyId,
        /// Why.
        failure: Failure,
    },
    /// The caller's sound is coming in; sent a few times a second.
    CallerAudio {
        /// It is louder than a quiet line.
        loud: bool,
    },
    /// Say something.
    Say {
        /// The words.
        text: String,
        /// Whether the caller may cut it off.
        interruptible: bool,
    },
    /// The caller wrote something.
    UserText(String),
    /// End politely.
    Close {
        /// With these words.
        say: Option<String>,
    },
    /// End now.
    Stop,
    /// The deadline has come.
    Tick,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send the sound of this segment, as far as it is there, to recognition; give an earlier request for it up.
    Transcribe {
        /// Which one.
        segment: SegmentId,
    },
    /// Give the request for this segment up: the caller goes on speaking.
    DropTranscription {
        /// Which one.
        segment: SegmentId,
    },
    /// Make a reply, up to its first sound or its first tool, and no further.
    StartReply {
        /// Its id. Ids are never used twice.
        reply: ReplyId,
        /// What to say.
        prompt: Prompt,
    },
    /// Let the caller hear it.
    Play {
        /// Which one.
        reply: ReplyId,
        /// When the caller stopped speaking, if it answers them.
        speech_ended: Option<Time>,
    },
    /// Run the tools that it wants.
    RunTools {
        /// Which one.
        reply: ReplyId,
    },
    /// Fall silent at once, ready to go on at the same word.
    Pause {
        /// Which one.
        reply: ReplyId,
    },
    /// Go on.
    Resume {
        /// Which one.
        reply: ReplyId,
    },
    /// Fall silent at once and forget the rest; what was heard of it is written down.
    Cancel {
        /// Which one.
        reply: ReplyId,
    },
    /// The caller said this: write it down.
    CommitUser(UserTurn),
    /// Tell the world.
    AgentState(AgentState),
    /// Tell the world.
    UserState(UserState),
    /// Tell the world.
    UserTranscript {
        /// Which segment.
        segment: SegmentId,
        /// All its words so far.
        text: String,
        /// Whether they will change.
        is_final: bool,
    },
    /// The agent goes on after an interruption without words.
    FalseInterruption,
    /// Start the speech detector anew.
    RestartHearing,
    /// Something is odd.
    Report {
        /// A provider or what a watchdog watches.
        component: &'static str,
        /// What happened.
        message: String,
        /// Whether the conversation goes on.
        recoverable: bool,
    },
    /// The conversation is over; nothing follows.
    End(VoiceEnd),
}

/// What a reply is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// What the model answers to these words, which are not in the history yet.
    Answer {
        /// The caller's words.
        to: String,
    },
    /// Exactly this.
    Say {
        /// The words.
        text: String,
    },
}

/// Something that the caller said, as it is written down.
#[derive(Debug, Clone, PartialEq)]
pub struct UserTurn {
    /// The words of all its segments.
    pub text: String,
    /// The lowest confidence among them.
    pub confidence: Option<f32>,
    /// When the caller began to speak; none for typed words.
    pub speech_started: Option<Time>,
    /// When the caller stopped.
    pub speech_ended: Option<Time>,
    /// When the last words were known.
    pub transcribed: Time,
    /// When it was certain that the turn was over.
    pub decided: Time,
}

/// How the conversation stands as a whole.
#[derive(Debug, Clone, PartialEq)]
enum Stage {
    /// Not yet begun.
    New,
    /// Under way.
    Talking,
    /// On its way out; nothing the caller says is answered any more.
    Closing(Closing),
    /// Over.
    Over,
}

/// The rest of a conversation that ends.
#[derive(Debug, Clone, PartialEq)]
struct Closing {
    /// How it will have ended.
    end: VoiceEnd,
    /// What is still to be said.
    farewell: Option<String>,
    /// It ends now, whatever is unfinished.
    deadline: Time,
    /// The last words may still be in recognition until then; set when everything is said.
    transcripts_until: Option<Time>,
}

/// The one reply that may exist.
#[derive(Debug, Clone, PartialEq)]
enum Floor {
    /// None.
    Free,
    /// It is being made; nothing of it has been heard.
    Preparing(Reply),
    /// The caller hears it.
    Playing(Reply),
    /// The caller speaks over it; perhaps an interruption, perhaps a cough.
    Paused(Reply),
}

/// One reply.
#[derive(Debug, Clone, PartialEq)]
struct Reply {
    id: ReplyId,
    kind: ReplyKind,
    interruptible: bool,
    /// How many of the unanswered segments it answers. None of them once they are written down.
    covers: usize,
    /// Who is to blame if nothing comes.
    waits_for: Component,
    audio_ready: bool,
    tools: ToolUse,
    /// A tool of it has ended the call: after it, we hang up.
    ends_call: bool,
    /// It stands still since before this time: its start, its last sound taken, its tools' end.
    last_progress: Time,
    /// No sound has come for a while; the caller hears nothing.
    stalled: bool,
    /// End of the speech that it answers.
    speech_ended: Option<Time>,
}

/// How far a reply is with its tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ToolUse {
    Idle,
    Wanted,
    Running,
}

/// Why a reply exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReplyKind {
    /// It answers the caller.
    Answer,
    /// The first words of the call. They answer a "hello?" that came before them.
    Greeting,
    /// A line that the call wants to be said.
    Line,
    /// The question whether the caller is there. It does not count as conversation.
    StillThere,
}

/// The caller's voice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Quiet,
    Speaking { onset: Time },
    Pausing { onset: Time },
}

/// A stretch of speech that nobody has answered yet.
#[derive(Debug, Clone, PartialEq)]
struct Segment {
    id: SegmentId,
    onset: Time,
    /// None while the caller speaks.
    ended: Option<Time>,
    words: Words,
    /// Interim words, for a recogniser that has them.
    interim: String,
    /// Early requests spent on it.
    early_requests: u32,
    origin: Origin,
    announced: bool,
}

/// What is known of the words of a segment.
#[derive(Debug, Clone, PartialEq)]
enum Words {
    NotAsked,
    Asked,
    Heard {
        text: String,
        confidence: Option<f32>,
        at: Time,
    },
}

/// Where a segment came from, and so whether it wants an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Speech to be answered.
    Speech,
    /// Typed: there is no end of speech to wait for.
    Typed,
    /// Agreement while the agent spoke: an answer only if it came at the end.
    Backchannel,
    /// Begun before the greeting and not over when it came: a "hello?" that it answers, or a request.
    Opening,
    /// Speech that needs no answer; it is only written down.
    Noted,
}

/// A line that waits to be said.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    text: String,
    interruptible: bool,
    kind: ReplyKind,
}

/// What the watchdogs of the caller's line know.
#[derive(Debug, Clone, Copy, PartialEq)]
struct LineWatch {
    last_audio: Time,
    missing_reported: bool,
    loud_since: Option<Time>,
}

/// Since when nobody has said anything.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Silence {
    since: Time,
    asked: bool,
}

impl Segment {
    fn text(&self) -> &str {
        match &self.words {
            Words::Heard { text, .. } => text,
            _ => "",
        }
    }

    /// Nothing more will be known about it.
    fn is_settled(&self) -> bool {
        self.ended.is_some() && matches!(self.words, Words::Heard { .. })
    }

    fn transcribed_at(&self) -> Option<Time> {
        match self.words {
            Words::Heard { at, .. } => Some(at),
            _ => None,
        }
    }
}

/// See the module's own words.
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
    silence: Silence,
    watch: LineWatch,
    /// Failures of providers since the last answer that was heard.
    failures: u32,
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
            silence: Silence {
                since: Time::ZERO,
                asked: false,
            },
            watch: LineWatch {
                last_audio: Time::ZERO,
                missing_reported: false,
                loud_since: None,
            },
            failures: 0,
            retries: 0,
            next_segment: 0,
            next_reply: 0,
            announced: (AgentState::Initializing, UserState::Listening),
            out: Vec::new(),
        }
    }

    /// Takes what happened at `now` and returns what to do, in order. Time that goes backwards is taken for standing still.
    pub fn handle(&mut self, now: Time, input: Input) -> Vec<Output> {
        self.now = self.now.max(now);
        if self.stage != Stage::Over {
            self.apply(input);
            // Every step that returns true has changed the state towards rest, so that this ends.
            while self.step() {}
            self.announce();
        }
        std::mem::take(&mut self.out)
    }

    /// When to call [`TurnMachine::handle`] with [`Input::Tick`], if nothing else happens before. Always later than the last input.
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
                if let Some(text) = greeting.filter(|text| !text.trim().is_empty()) {
                    let interruptible = self.config.greeting_interruptions;
                    self.waiting.push_back(Line {
                        text,
                        interruptible,
                        kind: ReplyKind::Greeting,
                    });
                }
            }
            Input::SpeechStarted { onset } => self.speech_started(onset.min(now)),
            Input::SpeechPaused => self.speech_paused(),
            Input::SpeechResumed => self.speech_resumed(),
            Input::SpeechEnded { end } => self.speech_ended(end.min(now)),
            Input::Transcript {
                segment,
                text,
                confidence,
                is_final,
            } => self.transcript(segment, text, confidence, is_final),
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
            Input::ToolsDone { reply, end_call } => {
                if let Some(reply) = self.reply_mut(reply) {
                    reply.tools = ToolUse::Idle;
                    reply.ends_call |= end_call;
                    reply.last_progress = now;
                }
            }
            Input::Progress { reply } => {
                if let Some(reply) = self.reply_mut(reply) {
                    reply.last_progress = now;
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
            Input::Close { say } => {
                if matches!(self.floor, Floor::Preparing(_)) {
                    self.cancel_and_commit();
                }
                self.close(VoiceEnd::Closed, say);
            }
            Input::Stop => {
                self.cancel();
                match &mut self.stage {
                    // What was on its way out has been decided before; it merely has no time left.
                    Stage::Closing(closing) => closing.farewell = None,
                    _ => self.close(VoiceEnd::Stopped, None),
                }
            }
            Input::Tick => {}
        }
    }

    fn speech_started(&mut self, onset: Time) {
        if self.caller != Caller::Quiet {
            return;
        }
        self.caller = Caller::Speaking { onset };
        self.heard_from_caller();
        let id = SegmentId(self.next_segment);
        self.next_segment += 1;
        self.turn.push(Segment {
            id,
            onset,
            ended: None,
            words: Words::NotAsked,
            interim: String::new(),
            early_requests: 0,
            origin: Origin::Speech,
            announced: false,
        });
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
        }
    }

    fn speech_ended(&mut self, end: Time) {
        let (Caller::Speaking { onset } | Caller::Pausing { onset }) = self.caller else {
            return;
        };
        self.caller = Caller::Quiet;
        self.silence.since = self.now;
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
        let Some(segment) = self.turn.iter_mut().find(|segment| segment.id == id) else {
            return;
        };
        let text = text.trim().to_owned();
        if !is_final {
            segment.interim.clone_from(&text);
            self.out.push(Output::UserTranscript {
                segment: id,
                text,
                is_final,
            });
        } else if !matches!(segment.words, Words::Heard { .. }) {
            segment.words = Words::Heard {
                text,
                confidence,
                at: now,
            };
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
        if failure.kind == FailureKind::BadInput {
            self.report(failure.component.as_str(), &failure.message, true);
        } else {
            self.provider_failed(failure);
        }
    }

    fn user_text(&mut self, text: String) {
        let text = text.trim().to_owned();
        if text.is_empty() || !matches!(self.stage, Stage::New | Stage::Talking) {
            return;
        }
        self.heard_from_caller();
        self.silence.since = self.now;
        if self.reply().is_some_and(|reply| {
            reply.interruptible && !reply.ends_call && reply.tools != ToolUse::Running
        }) {
            self.cancel();
        }
        let segment = Segment {
            id: SegmentId(self.next_segment),
            onset: self.now,
            ended: Some(self.now),
            words: Words::Heard {
                text,
                confidence: None,
                at: self.now,
            },
            interim: String::new(),
            early_requests: 0,
            origin: Origin::Typed,
            announced: true,
        };
        self.next_segment += 1;
        // The open segment stays the last one.
        let at = self
            .turn
            .iter()
            .position(|segment| segment.ended.is_none())
            .unwrap_or(self.turn.len());
        self.turn.insert(at, segment);
    }

    fn reply_finished(&mut self, id: ReplyId) {
        let Some(reply) = self.reply().filter(|reply| reply.id == id) else {
            return;
        };
        if reply.kind != ReplyKind::StillThere {
            self.silence = Silence {
                since: self.now,
                asked: false,
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
            // "Yes" on the agent's last word answers its question; in the middle of its speech it only means "go on".
            let at_the_end = segment.ended.is_none_or(|ended| ended >= boundary);
            segment.origin = if at_the_end {
                Origin::Speech
            } else {
                Origin::Noted
            };
        }
        // An answer without a word is an answer: asking again would bring the same.
        self.reply_over(true);
    }

    /// The caller is there.
    fn heard_from_caller(&mut self) {
        self.silence.asked = false;
        self.watch.loud_since = None;
    }

    // ---- what follows from it ----

    /// One thing that the state asks for. False when there is nothing.
    fn step(&mut self) -> bool {
        self.settle_segments()
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
    fn settle_segments(&mut self) -> bool {
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
    fn watch_line(&mut self) -> bool {
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

    fn step_free(&mut self) -> bool {
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
            if text.is_empty() {
                self.turn.clear();
                self.retries = 0;
                return true;
            }
            let certain = self
                .turn_over_at(&self.turn)
                .is_none_or(|at| self.now >= at);
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
            self.silence.asked = true;
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

    fn step_preparing(&mut self) -> bool {
        let Floor::Preparing(reply) = &self.floor else {
            return false;
        };
        // A tool that runs has its effect, so that its reply is seen through.
        if reply.kind == ReplyKind::Answer && reply.tools != ToolUse::Running && !reply.ends_call {
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
            let message = format!(
                "no sound of the answer within {} ms",
                self.config.no_reply_timeout_ms
            );
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
                self.floor = Floor::Playing(reply);
            }
            return true;
        }
        false
    }

    fn step_playing(&mut self) -> bool {
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
            self.report("playout", "the reply stands still and is given up", true);
            self.cancel();
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

    fn step_paused(&mut self) -> bool {
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
                Floor::Playing(reply)
            });
            return true;
        }
        false
    }

    fn step_closing(&mut self) -> bool {
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

    /// Nobody speaks any more and the conversation is to end: the last line, the last transcripts, the end.
    fn step_out(&mut self) -> bool {
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
            ends_call: false,
            last_progress: self.now,
            stalled: false,
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
        if commit || matches!(&self.floor, Floor::Preparing(reply) if reply.ends_call) {
            self.commit_covered();
        }
        let floor = std::mem::replace(&mut self.floor, Floor::Free);
        if let Floor::Preparing(reply) | Floor::Playing(reply) | Floor::Paused(reply) = floor {
            if reply.kind != ReplyKind::StillThere {
                self.silence.since = self.now;
            }
            if reply.ends_call {
                self.close(VoiceEnd::EndCall, None);
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
            // There is no way left to say goodbye.
            closing.farewell = None;
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
        } else if !self
            .waiting
            .iter()
            .any(|line| line.text == self.lines.say_again)
            && self.waiting.len() < MAX_WAITING_LINES
        {
            let text = self.lines.say_again.clone();
            self.waiting.push_back(Line {
                text,
                interruptible: true,
                kind: ReplyKind::Line,
            });
        }
    }

    /// Writes down the words that the reply answers, once it is certain that it will be heard or has effects.
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

    // ---- questions to the state ----

    fn agent_state(&self) -> AgentState {
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

    fn user_state(&self) -> UserState {
        match self.caller {
            Caller::Speaking { .. } | Caller::Pausing { .. } => UserState::Speaking,
            Caller::Quiet if self.silence.asked => UserState::Away,
            Caller::Quiet => UserState::Listening,
        }
    }

    fn is_interruptible(&self, reply: &Reply) -> bool {
        self.config.interruptions
            && reply.interruptible
            && !reply.ends_call
            && reply.tools != ToolUse::Running
    }

    /// Whether the reply in preparation may be heard, or may have effects: the turn that it answers is over.
    fn may_be_heard(&self) -> bool {
        let Floor::Preparing(reply) = &self.floor else {
            return false;
        };
        match reply.kind {
            ReplyKind::Greeting => true,
            ReplyKind::Line | ReplyKind::StillThere => {
                !reply.interruptible || self.caller == Caller::Quiet
            }
            ReplyKind::Answer if reply.ends_call => true,
            ReplyKind::Answer => {
                let covered = &self.turn[..reply.covers.min(self.turn.len())];
                self.caller == Caller::Quiet
                    && self.turn.iter().all(Segment::is_settled)
                    && self.turn_over_at(covered).is_none_or(|at| self.now >= at)
            }
        }
    }

    /// When it is certain that the caller has finished. None when there is nothing to wait for.
    fn turn_over_at(&self, segments: &[Segment]) -> Option<Time> {
        let last = segments.last()?;
        if last.origin == Origin::Typed {
            return None;
        }
        let delay = match wording::ending(&joined(segments)) {
            Ending::Complete => self.config.complete_delay_ms,
            Ending::Open => self.config.min_delay_ms,
            Ending::Unfinished => self.config.max_delay_ms,
        };
        Some(last.ended? + ms(delay))
    }

    fn min_interruption(&self) -> Duration {
        ms(self.config.interruption_min_duration_ms)
    }

    /// Whether what the caller said over the reply is meant to stop it.
    fn words_interrupt(&self) -> bool {
        let min_words = self.config.interruption_min_words.max(1);
        self.turn
            .iter()
            .filter(|segment| matches!(segment.origin, Origin::Speech | Origin::Typed))
            .any(|segment| {
                let text = if segment.text().is_empty() {
                    segment.interim.as_str()
                } else {
                    segment.text()
                };
                wording::word_count(text) >= min_words
                    && !wording::is_backchannel(text, &self.config.backchannels)
            })
    }

    /// Marks agreement as such, so that it does not stop the agent.
    fn note_backchannels(&mut self) -> bool {
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

    // ---- deadlines: one function each, so that the step and the alarm clock cannot disagree ----

    fn deadlines(&self) -> Vec<Option<Time>> {
        let mut deadlines = Vec::with_capacity(6);
        match &self.stage {
            Stage::New | Stage::Over => return deadlines,
            Stage::Talking => {
                deadlines.extend([
                    self.no_input_at(),
                    self.deaf_at(),
                    self.transcript_overdue_at(),
                ]);
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
    fn pause_at(&self) -> Option<Time> {
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
        Some(onset + self.min_interruption())
    }

    fn false_interruption_at(&self) -> Option<Time> {
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

    fn stalled_at(&self, reply: &Reply) -> Time {
        reply.last_progress + ms(self.config.stalled_playout_ms)
    }

    fn playout_overdue_at(&self, reply: &Reply) -> Time {
        reply.last_progress + ms(self.config.no_reply_timeout_ms) + self.tool_allowance(reply)
    }

    fn reply_overdue_at(&self, reply: &Reply) -> Option<Time> {
        // The wait for a caller who stopped in mid phrase is not the providers' fault.
        let turn_over = self
            .turn_over_at(&self.turn[..reply.covers.min(self.turn.len())])
            .unwrap_or_default();
        let quiet_since = if self.caller == Caller::Quiet {
            reply.last_progress
        } else {
            self.now
        };
        let is_held_back = reply.audio_ready || reply.tools == ToolUse::Wanted;
        (!is_held_back).then(|| {
            turn_over.max(quiet_since)
                + ms(self.config.no_reply_timeout_ms)
                + self.tool_allowance(reply)
        })
    }

    fn tool_allowance(&self, reply: &Reply) -> Duration {
        if reply.tools == ToolUse::Running {
            self.tool_timeout
        } else {
            Duration::ZERO
        }
    }

    fn transcript_overdue_at(&self) -> Option<Time> {
        let ended = self
            .turn
            .iter()
            .filter(|segment| segment.words == Words::Asked)
            .filter_map(|segment| segment.ended)
            .min()?;
        Some(ended + ms(self.config.no_reply_timeout_ms))
    }

    fn no_input_at(&self) -> Option<Time> {
        (!self.watch.missing_reported).then(|| self.watch.last_audio + ms(self.config.no_input_ms))
    }

    fn deaf_at(&self) -> Option<Time> {
        let since = self
            .watch
            .loud_since
            .filter(|_| self.caller == Caller::Quiet && self.turn.is_empty())?;
        Some(since + ms(self.config.deaf_ms))
    }

    fn ask_at(&self) -> Option<Time> {
        let after =
            Some(self.config.ask_after_ms).filter(|after| *after > 0 && !self.silence.asked)?;
        (self.caller == Caller::Quiet).then(|| self.silence.since + ms(after))
    }

    fn hang_up_at(&self) -> Option<Time> {
        let after = Some(self.config.hang_up_after_ms).filter(|after| *after > 0)?;
        (self.caller == Caller::Quiet).then(|| self.silence.since + ms(after))
    }
}

/// The words of the segments, in order.
fn joined(segments: &[Segment]) -> String {
    let words: Vec<&str> = segments
        .iter()
        .map(Segment::text)
        .filter(|text| !text.is_empty())
        .collect();
    words.join(" ")
}

#[cfg(test)]
#[path = "turn_tests.rs"]
mod tests;
