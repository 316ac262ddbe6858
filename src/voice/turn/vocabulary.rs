//! What the machine is told and what it asks for.

use std::time::Duration;

use crate::providers::Component;
use crate::tools::CallRequest;
use crate::voice::answer::{Tone, Verdict};
use crate::voice::{AgentState, UserState, VoiceEnd};

/// Time since the conversation began.
pub type Time = Duration;

/// One stretch of the caller's speech.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u32);

/// One thing that the agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplyId(pub u32);

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
    /// There is, or was, a steady tone on the line.
    Tone(Tone),
    /// Words of a segment.
    Transcript {
        /// Which one.
        segment: SegmentId,
        /// All its words so far.
        text: String,
        /// The recogniser's own estimate.
        confidence: Option<f32>,
        /// Whether they are final and will not change any more.
        is_final: bool,
    },
    /// Words that no segment waits for: the detector has missed their speech, or they come late.
    /// They are a segment of their own.
    WordsBeside {
        /// When they began to be said.
        onset: Time,
        /// When they had been said.
        end: Time,
        /// The words.
        text: String,
        /// The recogniser's own estimate.
        confidence: Option<f32>,
    },
    /// What recognition is like in this conversation.
    Recogniser {
        /// It listens on over pauses. One that hears one stretch at a time puts a full stop behind
        /// every fragment.
        streams: bool,
    },
    /// The agent has said this, and the caller has heard it: it may be a question, which tells what
    /// a complete answer looks like. Has no outputs.
    AgentSaid {
        /// All of the reply that was heard.
        text: String,
    },
    /// The recogniser says that the caller's turn ends with this segment, whose words are known.
    EndOfTurn {
        /// Which one.
        segment: SegmentId,
        /// Whether that is certain. If not, [`Input::TurnResumed`] may take it back.
        is_certain: bool,
    },
    /// The turn goes on after all; the segment's words are waited for again.
    TurnResumed {
        /// Which one.
        segment: SegmentId,
    },
    /// What a segment holds is no speech: music, a cough.
    NotSpeech {
        /// Which one.
        segment: SegmentId,
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
        /// What one of them wants of the call: the conversation ends with it.
        request: Option<CallRequest>,
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
    /// Neither side hears the other.
    LineLost,
    /// They hear each other again.
    LineBack {
        /// What to say when nothing else is to be said.
        say: Option<String>,
    },
    /// Whether anything arrives from the caller, be it silence.
    CallerSound {
        /// It does.
        arrives: bool,
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
    /// The caller pressed a key of the telephone: a digit, `*`, `#`, or `A` to `D`.
    Key(char),
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
    /// Send the sound of this segment, as far as it is there, to recognition; give an earlier
    /// request for it up.
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
    /// The caller has typed this: write it down.
    Keypad {
        /// The keys, in order, without the `#` at their end.
        keys: String,
    },
    /// It is known who has answered, or better than before: write it down.
    AnsweredBy(Verdict),
    /// All of the message for a machine was said: write it down.
    MessageLeft,
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
        /// Whether they are final and will not change any more.
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
