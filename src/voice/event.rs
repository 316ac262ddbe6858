//! What a conversation tells the call around it, and what the call may ask of it.

use std::time::Duration;

use super::answer::Verdict;
use crate::providers::Component;
use crate::session::{ConversationItem, TurnRecord, Usage};
use crate::tools::CallRequest;

/// What the agent is doing, in the words of the `lk.agent.state` attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// The conversation has not begun.
    Initializing,
    /// The conversation is over.
    Idle,
    /// The floor is the caller's.
    Listening,
    /// An answer is being made, or has come to a halt in mid sentence.
    Thinking,
    /// The caller hears the agent.
    Speaking,
}

impl AgentState {
    /// The value of the `lk.agent.state` attribute.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "initializing",
            Self::Idle => "idle",
            Self::Listening => "listening",
            Self::Thinking => "thinking",
            Self::Speaking => "speaking",
        }
    }
}

/// What the caller is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserState {
    /// Says nothing.
    Listening,
    /// Speaks.
    Speaking,
    /// Has said nothing for so long that we asked.
    Away,
}

impl UserState {
    /// The word for logs and data messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Listening => "listening",
            Self::Speaking => "speaking",
            Self::Away => "away",
        }
    }
}

/// Something the call asks of the conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VoiceCommand {
    /// Say this as soon as nobody speaks.
    Say {
        /// The words.
        text: String,
        /// Whether the caller may cut it off.
        allow_interruptions: bool,
    },
    /// The caller wrote this (`lk.chat`): stop talking and answer it.
    UserText(String),
    /// The caller pressed this key of the telephone.
    Key(char),
    /// Neither side hears the other until [`VoiceCommand::LineBack`]: stop in mid sentence, and
    /// wait with everything.
    LineLost,
    /// They hear each other again: end the sentence that was interrupted, or answer, or else say
    /// `say`. Silence counts from now.
    LineBack {
        /// What to say when nothing else is to be said.
        say: Option<String>,
    },
    /// Whether anything arrives from the caller, be it silence. Nobody is asked over a line that
    /// has no sound at all.
    CallerSound {
        /// It does.
        arrives: bool,
    },
    /// End politely: let the sentence finish, say `say`, write down what the caller was just
    /// saying. Bounded by [`super::TurnConfig::close_timeout_ms`].
    Close {
        /// For the log.
        reason: String,
        /// A last line.
        say: Option<String>,
    },
    /// End now, because nobody listens any more: stop talking, write down what was heard, and wait
    /// for the words of a caller in mid speech no longer than
    /// [`super::TurnConfig::close_transcript_timeout_ms`].
    Stop,
}

/// Something that happened in the conversation.
#[derive(Debug, Clone, PartialEq)]
pub enum VoiceEvent {
    /// The caller has typed these keys of the telephone. They follow as the caller's words, too.
    Keypad {
        /// In order, without the `#` at their end. May be secret: not for logs.
        keys: String,
    },
    /// It is known who has answered a call of ours, or better than before.
    AnsweredBy(Verdict),
    /// A message was left with the machine that has answered.
    MessageLeft,
    /// The agent's state has changed.
    AgentState(AgentState),
    /// The caller's state has changed.
    UserState(UserState),
    /// Words of the caller. The text replaces what was sent before for this segment.
    UserTranscript {
        /// One id for all texts of one stretch of speech.
        segment_id: String,
        /// All its words so far.
        text: String,
        /// No other text will follow for this segment.
        is_final: bool,
    },
    /// Words of the agent, sent when they begin to be played.
    AgentTranscript {
        /// One id for all pieces of one reply.
        segment_id: String,
        /// The next piece; append it.
        delta: String,
        /// The reply is over; nothing more will follow for this segment.
        is_final: bool,
    },
    /// Something was said and heard: write it down.
    ItemCommitted(ConversationItem),
    /// A tool has run.
    ToolCalled {
        /// Its name.
        name: String,
        /// How long it took.
        duration_ms: u64,
        /// Whether it refused.
        is_error: bool,
    },
    /// The caller hears the agent for the first time in this call.
    FirstAudio,
    /// What one request to a provider cost. Sum them up.
    Usage(Usage),
    /// The caller went on after a cough or a "mhm" had paused the agent.
    FalseInterruption,
    /// A provider has failed, or a watchdog has found something that should not be.
    Error {
        /// `stt`, `llm`, `tts`, or what the watchdog watches.
        component: String,
        /// What happened.
        message: String,
        /// Whether the conversation goes on.
        recoverable: bool,
    },
    /// One turn, from the caller's last sound to ours, for the log.
    TurnAnswered {
        /// End of the caller's speech to our first sound.
        latency: Duration,
    },
    /// What an answered turn took and has cost so far: write it down. Comes when the answer begins
    /// to be heard, and again with the same number when it is over.
    TurnMeasured {
        /// The turn.
        turn: TurnRecord,
        /// Nothing more will come of it.
        is_over: bool,
    },
}

/// Why a conversation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VoiceEnd {
    /// The agent's last words are out, and a tool of the model's wants this of the call.
    Requested(CallRequest),
    /// [`VoiceCommand::Close`].
    Closed,
    /// The caller said nothing for [`super::TurnConfig::hang_up_after_ms`].
    SilenceHangup,
    /// A machine has answered, and was hung up on, perhaps after a message.
    MachineAnswered,
    /// A provider stayed down.
    ProviderFailed {
        /// Which one.
        component: Component,
        /// What it said last.
        message: String,
    },
    /// [`VoiceCommand::Stop`].
    Stopped,
}
