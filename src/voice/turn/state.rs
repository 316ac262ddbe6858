//! What the machine knows: closed sets, so that there is one place that lists what can be.

use super::vocabulary::{ReplyId, SegmentId, Time};
use crate::providers::Component;
use crate::tools::CallRequest;
use crate::voice::VoiceEnd;

/// How the conversation stands as a whole.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Stage {
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
pub(super) struct Closing {
    /// How it will have ended.
    pub(super) end: VoiceEnd,
    /// What is still to be said.
    pub(super) farewell: Option<String>,
    /// It ends now, whatever is unfinished.
    pub(super) deadline: Time,
    /// The last words may still be in recognition until then; set when everything is said.
    pub(super) transcripts_until: Option<Time>,
}

/// The one reply that may exist.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Floor {
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
pub(super) struct Reply {
    pub(super) id: ReplyId,
    pub(super) kind: ReplyKind,
    pub(super) interruptible: bool,
    /// How many of the unanswered segments it answers. None of them once they are written down.
    pub(super) covers: usize,
    /// Who is to blame if nothing comes.
    pub(super) waits_for: Component,
    pub(super) audio_ready: bool,
    pub(super) tools: ToolUse,
    /// What a tool of it wants of the call: after it, the conversation ends.
    pub(super) request: Option<CallRequest>,
    /// It stands still since before this time: its start, its last sound taken, its tools' end.
    pub(super) last_progress: Time,
    /// The caller has heard nothing of it since then: its start, or its last sound taken.
    pub(super) unheard_since: Time,
    /// No sound has come for a while; the caller hears nothing.
    pub(super) stalled: bool,
    /// When the caller began to hear it.
    pub(super) heard_from: Option<Time>,
    /// End of the speech that it answers.
    pub(super) speech_ended: Option<Time>,
}

/// How far a reply is with its tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ToolUse {
    Idle,
    Wanted,
    Running,
}

/// Why a reply exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReplyKind {
    /// It answers the caller.
    Answer,
    /// The first words of the call. They answer a "hello?" that came before them.
    Greeting,
    /// A line that the call wants to be said.
    Line,
    /// What is left with a machine that has answered.
    Message,
    /// The question whether the caller is there. It does not count as conversation.
    StillThere,
}

/// The caller's voice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    Quiet,
    Speaking { onset: Time },
    Pausing { onset: Time },
}

/// A stretch of speech that nobody has answered yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Segment {
    pub(super) id: SegmentId,
    pub(super) onset: Time,
    /// None while the caller speaks.
    pub(super) ended: Option<Time>,
    pub(super) words: Words,
    /// Interim words, for a recogniser that has them.
    pub(super) interim: String,
    /// Early requests spent on it.
    pub(super) early_requests: u32,
    pub(super) origin: Origin,
    /// Whether the turn ends with it, as the recogniser sees it.
    pub(super) turn_end: TurnEnd,
    pub(super) announced: bool,
    /// Recognition has failed, and that has been dealt with; or nobody has spoken.
    pub(super) failed: bool,
}

/// What is known of the words of a segment.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Words {
    NotAsked,
    Asked,
    Heard {
        text: String,
        confidence: Option<f32>,
        at: Time,
    },
}

/// What the recogniser says about the end of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnEnd {
    /// Nothing: our own rules decide.
    Unsaid,
    /// It may be here; it will say so again, or take it back.
    Eager,
    /// It is here.
    Certain,
}

/// Where a segment came from, and so whether it wants an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Speech to be answered.
    Speech,
    /// Typed: there is no end of speech to wait for.
    Typed,
    /// Agreement while the agent spoke: an answer only if it came at the end.
    Backchannel,
    /// Begun before the greeting and not over when it came: a "hello?" that it answers, or a
    /// request.
    Opening,
    /// Speech that needs no answer; it is only written down.
    Noted,
}

/// A line that waits to be said.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) interruptible: bool,
    pub(super) kind: ReplyKind,
}

/// What the watchdogs of the caller's line know.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct InputWatchdog {
    pub(super) last_audio: Time,
    pub(super) missing_reported: bool,
    pub(super) loud_since: Option<Time>,
    /// Neither side hears the other: nothing is said, and nobody's silence counts.
    pub(super) lost: bool,
    /// Nothing arrives from the caller: a question could not be answered.
    pub(super) soundless: bool,
}

/// Since when nobody has said anything.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Silence {
    pub(super) since: Time,
    /// When we asked whether the caller is there.
    pub(super) asked: Option<Time>,
}

impl Segment {
    /// A segment without words.
    pub(super) fn new(id: SegmentId, onset: Time, origin: Origin) -> Self {
        Self {
            id,
            onset,
            ended: None,
            words: Words::NotAsked,
            interim: String::new(),
            early_requests: 0,
            origin,
            turn_end: TurnEnd::Unsaid,
            announced: false,
            failed: false,
        }
    }

    pub(super) fn text(&self) -> &str {
        match &self.words {
            Words::Heard { text, .. } => text,
            _ => "",
        }
    }

    /// Nothing more will be known about it.
    pub(super) fn is_settled(&self) -> bool {
        self.ended.is_some() && matches!(self.words, Words::Heard { .. })
    }

    pub(super) fn transcribed_at(&self) -> Option<Time> {
        match self.words {
            Words::Heard { at, .. } => Some(at),
            _ => None,
        }
    }
}

/// The words of the segments, in order.
pub(super) fn joined(segments: &[Segment]) -> String {
    let words: Vec<&str> = segments
        .iter()
        .map(Segment::text)
        .filter(|text| !text.is_empty())
        .collect();
    words.join(" ")
}
