//! The conversation: the caller's sound in, the agent's sound out, and what was said as events.
//!
//! [`turn`] decides whose turn it is and what to do about it; it is pure. `driver` does what it
//! decided: it owns the clock, the caller's sound and the history; `alignment` joins speech and
//! words. `reply` makes one reply, from the model's first token to the last sample. [`vad`] hears
//! speech, [`playout`] knows what was heard, [`answer`] who has answered a call of ours. All of it
//! runs inside the one future of [`Conversation::run`]: dropping that stops everything. Nothing
//! here knows LiveKit, files or the CRM.

mod alignment;
pub mod answer;
mod config;
mod driver;
mod event;
mod history;
mod lines;
mod markup;
mod meter;
mod music;
mod noise;
pub mod playout;
mod reply;
pub(crate) mod resample;
pub(crate) mod speech_text;
mod tones;
pub mod turn;
pub mod vad;
mod wording;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use config::{LimitsConfig, LinesConfig, TurnConfig, VadConfig, VoiceConfig};
pub use event::{AgentState, UserState, VoiceCommand, VoiceEnd, VoiceEvent};
pub use lines::{LineSources, OwnLines};

use self::answer::AnswerPlan;
use crate::providers::Language;
use crate::providers::llm::ChatModel;
use crate::providers::stt::SpeechToText;
use crate::providers::tts::TextToSpeech;
use crate::tools::{ToolDefinition, ToolOutput, Toolbox};

/// The caller's sound: mono samples at [`INPUT_SAMPLE_RATE_HZ`], usually 10 ms.
pub type AudioFrame = Vec<i16>;

/// Sample rate of the caller's sound.
pub const INPUT_SAMPLE_RATE_HZ: u32 = 16_000;

/// The track is gone; nothing can be played any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audio output is closed")]
pub struct OutputClosed;

/// Whether a sound is loud noise and no speech: what comes of bytes that are no samples. A
/// conversation does not play it.
pub fn is_noise(sound: &[i16], sample_rate_hz: u32) -> bool {
    noise::is_noise(sound, sample_rate_hz)
}

/// Where the agent's sound goes.
#[async_trait]
pub trait AudioOutput: Send + Sync + 'static {
    /// Samples a second of the frames that it takes. Any rate will do: the conversation resamples.
    fn sample_rate_hz(&self) -> u32;

    /// Takes one mono frame of 10 or 20 ms, and waits while its queue is full.
    async fn capture(&self, frame: &[i16]) -> Result<(), OutputClosed>;

    /// Forgets at once what is queued.
    fn clear(&self);

    /// How much has been captured but not yet been sent.
    fn queued(&self) -> Duration;
}

/// What the model may use. The call's [`Toolbox`] is one.
#[async_trait]
pub trait Tools: Send + Sync + 'static {
    /// Everything that the model is told about.
    fn definitions(&self) -> Vec<ToolDefinition>;

    /// Runs one tool. Everything that goes wrong is an answer for the model. Not longer than
    /// [`Tools::timeout`].
    async fn call(&self, name: &str, arguments_json: &str) -> ToolOutput;

    /// How long a tool may take.
    fn timeout(&self) -> Duration;
}

#[async_trait]
impl Tools for Toolbox {
    fn definitions(&self) -> Vec<ToolDefinition> {
        Toolbox::definitions(self)
    }

    async fn call(&self, name: &str, arguments_json: &str) -> ToolOutput {
        Toolbox::call(self, name, arguments_json).await
    }

    fn timeout(&self) -> Duration {
        Toolbox::timeout(self)
    }
}

/// Everything that one conversation needs.
pub struct Conversation {
    /// How turns are taken.
    pub config: VoiceConfig,
    /// Who the agent is and what it is to do: the model's system message.
    pub instructions: String,
    /// What the agent says first; nothing if it is to wait for the caller.
    pub greeting: Option<String>,
    /// What the agent says before it hangs up, when the model ends the call without a word. When
    /// there is none, the model is asked for one, and `voice.lines.goodbye` is said if it stays
    /// silent.
    pub goodbye: Option<String>,
    /// What to do about whoever answers a call of ours; nothing where that does not matter.
    pub answer: Option<AnswerPlan>,
    /// The language, when the persona has one.
    pub language: Option<Language>,
    /// The provider's name of the voice, when the persona has one.
    pub voice: Option<String>,
    /// Speech to text.
    pub stt: Arc<dyn SpeechToText>,
    /// The language model.
    pub llm: Arc<dyn ChatModel>,
    /// Text to speech.
    pub tts: Arc<dyn TextToSpeech>,
    /// What the model may use.
    pub tools: Arc<dyn Tools>,
    /// Where the agent's sound goes.
    pub output: Arc<dyn AudioOutput>,
}
