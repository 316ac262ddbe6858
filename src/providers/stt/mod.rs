//! Speech to text: a session takes the caller's sound and gives words with their places in it.
//!
//! A place is a sample position: samples since the conversation began. Voice activity and words are
//! joined by it, so that it does not matter which of them comes first. A vendor either streams
//! ([`stream::Wire`]) or is asked once for each stretch of speech ([`Transcriber`]); [`Recogniser`]
//! makes one session of a list of both.

pub(super) mod assemblyai;
pub(super) mod cartesia;
pub(super) mod deepgram;
pub(super) mod elevenlabs;
pub mod marks;
pub(super) mod openai;
pub(super) mod openai_realtime;
mod recogniser;
mod ring;
pub(super) mod sarvam;
pub(crate) mod stream;

use std::future::pending;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::sync::mpsc;

use super::asked::Asked;
use super::{Language, ProviderError};
use crate::session::Usage;
use crate::voice::LimitsConfig;
pub use recogniser::{Recogniser, Vendor};

/// Inputs that wait for a session. It takes them at once, whatever its connection does; this is for
/// a machine that is too busy: five seconds of sound.
const INPUTS: usize = 512;

/// Events that wait for the conversation.
const EVENTS: usize = 64;

/// One stretch of speech, cut out by voice activity detection with some silence around it.
#[derive(Debug, Clone)]
pub struct SpeechSegment {
    /// Mono samples.
    pub samples: Arc<[i16]>,
    /// Samples a second.
    pub sample_rate_hz: u32,
    /// The language, when it is known.
    pub language: Option<Language>,
}

impl SpeechSegment {
    /// How long it is.
    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.samples.len() as f64 / f64::from(self.sample_rate_hz.max(1)))
    }
}

/// What was said. Empty text means that there were no words in the sound, a mark alone that nobody
/// has spoken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transcript {
    /// The words.
    pub text: String,
    /// The provider's own estimate, 0 to 1, when it gives one.
    pub confidence: Option<f32>,
}

/// A vendor that turns one stretch of speech into words with one request.
#[async_trait]
pub trait Transcriber: Send + Sync + 'static {
    /// Vendor and model, for logs.
    fn name(&self) -> &str;

    /// The words in `segment`. Dropping the future gives the request up.
    async fn transcribe(&self, segment: SpeechSegment) -> Result<Transcript, ProviderError>;

    /// Opens a connection ahead of the first request. Failing is not an error yet: the first
    /// request will say what is wrong.
    async fn prewarm(&self) {}
}

/// Speech to text as a conversation uses it.
#[async_trait]
pub trait SpeechToText: Send + Sync + 'static {
    /// Vendor and model, for logs.
    fn name(&self) -> &str;

    /// Begins to listen. Nothing happens before the session is polled; everything that can go wrong
    /// is an event of it.
    fn open(&self, request: ListenRequest) -> SttSession;

    /// Opens connections ahead of the first use, where that helps.
    async fn prewarm(&self) {}

    /// Opens each of the vendors that listen all the time once, for whoever checks the settings.
    async fn check(&self, request: &ListenRequest) -> Vec<Opened> {
        let _ = request;
        Vec::new()
    }
}

/// A vendor that was opened once.
#[derive(Debug)]
pub struct Opened {
    /// Vendor and model.
    pub name: String,
    /// How long it took.
    pub result: Result<Duration, ProviderError>,
}

/// What a session is opened with.
#[derive(Debug, Clone, Default)]
pub struct ListenRequest {
    /// The language, when it is known.
    pub language: Option<Language>,
    /// Samples a second.
    pub sample_rate_hz: u32,
    /// How long requests may take and how often they are repeated.
    pub limits: LimitsConfig,
}

/// What a session is told.
#[derive(Debug, Clone)]
pub enum SttInput {
    /// The caller's sound, in order.
    Sound {
        /// Position of the first sample.
        at: u64,
        /// Mono samples.
        samples: Vec<i16>,
    },
    /// The caller pauses: the words up to `range.end` are wanted now.
    Finalise {
        /// From the beginning of the speech to the end of it.
        range: Range<u64>,
        /// All of its sound, with some silence around it, for vendors that are asked for each
        /// stretch of speech.
        sound: Arc<[i16]>,
    },
    /// What was finalised is not wanted any more: the caller goes on, and all of the speech will be
    /// asked for. Words of a vendor that streams stay.
    Discard {
        /// Where that speech began.
        from: u64,
    },
}

/// What a session says.
#[derive(Debug, Clone, PartialEq)]
pub enum SttEvent {
    /// The recogniser hears somebody speak.
    SpeechStarted {
        /// Where it began.
        at: u64,
    },
    /// Words that may change.
    Interim {
        /// Where they are.
        range: Range<u64>,
        /// All words since the last final ones.
        text: String,
    },
    /// Words that will not change. They follow those before them; a range that covers earlier ones
    /// replaces them.
    Final {
        /// Where they are.
        range: Range<u64>,
        /// The words; may be empty.
        text: String,
        /// The recogniser's own estimate, 0 to 1.
        confidence: Option<f32>,
        /// Each word with its place, where the vendor tells.
        words: Vec<Word>,
    },
    /// No more words will come for the sound before this position.
    Settled {
        /// The position.
        up_to: u64,
    },
    /// The recogniser thinks that the caller has finished.
    EndOfTurn {
        /// How likely that is, 0 to 1, where the vendor tells.
        probability: Option<f32>,
        /// All words of the turn, when it may be taken back: nothing may be heard of an answer yet.
        /// None when it is certain; the words came before as final ones.
        eager: Option<String>,
    },
    /// The caller goes on after an eager end of turn.
    TurnResumed,
    /// What has been paid for.
    Usage(Usage),
    /// The recogniser is down, for good or for now.
    Failed {
        /// The speech that will get no words; all that was finalised if there is none.
        range: Option<Range<u64>>,
        /// What happened.
        error: ProviderError,
    },
    /// Something went wrong, and the session goes on without a loss.
    Trouble(ProviderError),
}

/// A word and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Word {
    /// The word.
    pub text: String,
    /// Its place.
    pub range: Range<u64>,
}

/// What one conversation listens with. Dropping it stops everything that it does.
pub struct SttSession {
    inputs: mpsc::Sender<SttInput>,
    events: mpsc::Receiver<SttEvent>,
    work: Option<BoxFuture<'static, ()>>,
    /// Which vendor listens, and after how many attempts.
    asked: Arc<Asked>,
    /// Whether it uses [`SttInput::Sound`]. Else that need not be sent.
    pub wants_sound: bool,
}

impl SttSession {
    /// A session that does `work` with the two channels.
    pub fn new<F>(
        wants_sound: bool,
        work: impl FnOnce(mpsc::Receiver<SttInput>, mpsc::Sender<SttEvent>) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (inputs, inbox) = mpsc::channel(INPUTS);
        let (outbox, events) = mpsc::channel(EVENTS);
        Self {
            inputs,
            events,
            work: Some(work(inbox, outbox).boxed()),
            asked: Arc::default(),
            wants_sound,
        }
    }

    /// The same, whose work notes in `asked` which vendor listens.
    fn asked_by(self, asked: Arc<Asked>) -> Self {
        Self { asked, ..self }
    }

    /// Which vendor listens, and after how many attempts.
    pub(crate) fn asked(&self) -> &Asked {
        &self.asked
    }

    /// A session that has ended.
    pub fn over() -> Self {
        Self::new(false, |_, _| std::future::ready(()))
    }

    /// Tells it something; never waits. Sound that a session without time cannot take is lost: the
    /// gap is silence to it.
    pub fn tell(&self, input: SttInput) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.inputs.try_send(input) {
            tracing::warn!("recognition does not take the caller's sound in time; some is lost");
        }
    }

    /// What it says next. Can be dropped and called again.
    pub async fn next(&mut self) -> SttEvent {
        loop {
            let Some(work) = &mut self.work else {
                return match self.events.recv().await {
                    Some(event) => event,
                    None => pending().await,
                };
            };
            tokio::select! {
                biased;
                Some(event) = self.events.recv() => return event,
                () = work => self.work = None,
            }
        }
    }
}

/// Silence after a single stretch of speech, so that vendors which look for the end of a turn find
/// it.
const SILENCE_AFTER: Duration = Duration::from_secs(2);

/// The words in one stretch of speech, in a session of their own; for whoever checks the settings.
///
/// # Errors
/// When there are none because something has failed.
pub async fn hear_once(
    stt: &dyn SpeechToText,
    segment: SpeechSegment,
    limits: LimitsConfig,
) -> Result<Transcript, ProviderError> {
    let rate = segment.sample_rate_hz;
    let mut session = stt.open(ListenRequest {
        language: segment.language,
        sample_rate_hz: rate,
        limits,
    });
    let end = segment.samples.len() as u64;
    if session.wants_sound {
        let mut samples = segment.samples.to_vec();
        let silence = (SILENCE_AFTER.as_secs_f64() * f64::from(rate)) as usize;
        samples.resize(samples.len() + silence, 0);
        session.tell(SttInput::Sound { at: 0, samples });
    }
    session.tell(SttInput::Finalise {
        range: 0..end,
        sound: segment.samples,
    });
    let mut heard = Transcript::default();
    loop {
        match session.next().await {
            SttEvent::Final {
                text, confidence, ..
            } => {
                if !heard.text.is_empty() {
                    heard.text.push(' ');
                }
                heard.text.push_str(text.trim());
                heard.confidence = heard
                    .confidence
                    .into_iter()
                    .chain(confidence)
                    .reduce(f32::min);
            }
            SttEvent::Settled { up_to } if up_to >= end => return Ok(heard),
            SttEvent::Failed { error, .. } => return Err(error),
            _ => {}
        }
    }
}
