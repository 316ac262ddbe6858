//! What a vendor that streams has to say about its wire format; the rest is [`super::Recogniser`]'s
//! work: connecting, sending again, giving up.

use std::time::Duration;

use tokio_tungstenite::tungstenite::Message;

use super::ListenRequest;
use crate::providers::ProviderError;
use crate::providers::socket::Address;

/// A vendor's wire format.
pub(crate) trait Wire: Send + Sync + 'static {
    /// Vendor and model, for logs.
    fn name(&self) -> &str;

    /// Where to connect, with options and key.
    ///
    /// # Errors
    /// When the vendor cannot do what is wanted.
    fn address(&self, request: &ListenRequest) -> Result<Address, ProviderError>;

    /// Samples a second of the sound that it is sent.
    fn sample_rate_hz(&self, request: &ListenRequest) -> u32 {
        request.sample_rate_hz
    }

    /// What it has to be told before the first sound.
    fn opening(&self, request: &ListenRequest) -> Option<Message> {
        let _ = request;
        None
    }

    /// Whether it speaks first on a new connection: only that says whether it takes the key.
    fn greets(&self) -> bool {
        false
    }

    /// A piece of sound.
    fn sound(&self, samples: &[i16]) -> Message {
        Message::Binary(pcm(samples).into())
    }

    /// Asks for all words of the sound so far, where the vendor can be asked.
    fn finalise(&self) -> Option<Message> {
        None
    }

    /// How much new sound there must be before it may be asked again.
    fn shortest_finalise(&self) -> Duration {
        Duration::ZERO
    }

    /// Keeps the connection open while there is no sound, where the vendor wants that.
    fn keep_alive(&self) -> Option<Message> {
        None
    }

    /// Says goodbye, where the vendor wants that.
    fn close(&self) -> Option<Message> {
        None
    }

    /// A connection on which sound is sent says something at least this often, where that is known.
    fn longest_silence(&self) -> Option<Duration> {
        None
    }

    /// A reader for a new connection.
    fn reader(&self) -> Box<dyn Reader>;
}

/// Reads what a vendor says on one connection. Pure.
pub(crate) trait Reader: Send {
    /// Appends what a message means. Odd messages mean nothing.
    fn read(&mut self, message: &str, heard: &mut Vec<Heard>);
}

/// The end of words whose place the vendor does not tell: they end where the sound ended that it
/// had got, for the answer to [`Wire::finalise`] where it was asked.
pub(crate) const UNTOLD: Duration = Duration::MAX;

/// What a vendor says. Times count from the first sample of the connection; words begin no earlier
/// than those before them end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard {
    /// Somebody speaks.
    SpeechStarted { at: Duration },
    /// All words since the last final ones; perhaps none, which tells how far the vendor is.
    Interim {
        from: Duration,
        to: Duration,
        text: String,
    },
    /// Words that will not change; perhaps none.
    Final(FinalWords),
    /// The turn may be over; these are its words.
    EagerEndOfTurn {
        text: String,
        probability: Option<f32>,
    },
    /// It is not.
    TurnResumed,
    /// It is; its words came before.
    EndOfTurn { probability: Option<f32> },
    /// The vendor can go on no longer.
    Error(ProviderError),
}

/// Words that will not change.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct FinalWords {
    pub from: Duration,
    pub to: Duration,
    pub text: String,
    pub confidence: Option<f32>,
    /// Each word with its beginning and end, where the vendor tells.
    pub words: Vec<(String, Duration, Duration)>,
    /// They answer [`Wire::finalise`].
    pub answers_finalise: bool,
}

/// Samples as bytes, little endian.
pub(crate) fn pcm(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|s| s.to_le_bytes()).collect()
}

/// Seconds of a vendor as a time; odd ones are zero.
pub(crate) fn seconds(value: Option<f64>) -> Duration {
    value
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or_default()
}
