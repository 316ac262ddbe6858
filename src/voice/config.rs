//! The `[voice]` section: how the agent takes turns, how it hears, and how long it waits for
//! providers.
//!
//! Defaults are those of LiveKit Agents where users will compare; the reason stands by the value
//! where ours differs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lines::OwnLines;

/// The `[voice]` section.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct VoiceConfig {
    /// Whose turn it is.
    pub turn: TurnConfig,
    /// What counts as speech.
    pub vad: VadConfig,
    /// How long providers and tools may take.
    pub limits: LimitsConfig,
    /// What the agent says when the model does not decide it.
    pub lines: LinesConfig,
}

/// The `[voice.turn]` section.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TurnConfig {
    /// The agent is not heard earlier than this after the end of the caller's speech, in
    /// milliseconds. The answer is made meanwhile, so that this costs nothing while the providers
    /// take longer.
    pub min_endpointing_delay_ms: u64,
    /// As `min_endpointing_delay_ms`, when the words are a whole sentence, or a whole answer to
    /// what the agent has asked.
    pub complete_delay_ms: u64,
    /// As `min_endpointing_delay_ms`, when the words belong to something that is said in pieces: a
    /// number, an e-mail address, a name letter by letter, a postal address.
    pub dictation_delay_ms: u64,
    /// As `min_endpointing_delay_ms`, when the words end in the middle of a phrase ("my name is", a
    /// comma).
    pub max_endpointing_delay_ms: u64,
    /// Whether recognition and the model's answer are started before it is certain that the turn is
    /// over. Costs some requests in vain; saves their time in every turn.
    pub preemptive: bool,
    /// Recognition is started early after this much silence, in milliseconds; must be shorter than
    /// `voice.vad.min_silence_ms`.
    pub preemptive_transcription_ms: u64,
    /// Speech that has gone on for longer than this is not worth an early request, in milliseconds.
    pub preemptive_max_speech_ms: u64,
    /// How many early requests of each kind one turn may cost in vain.
    pub preemptive_max_retries: u32,
    /// Keys of the telephone are told as one number when no more have come for this long, in
    /// milliseconds. A `#` ends them at once.
    pub keypad_pause_ms: u64,
    /// Whether the caller can cut the agent off.
    pub interruptions: bool,
    /// The caller has to speak for this long to interrupt, in milliseconds.
    pub interruption_min_duration_ms: u64,
    /// The transcript needs at least this many words to interrupt. Words are counted in final
    /// transcripts, and in interim ones when the recogniser has them; without interim ones, the
    /// duration alone pauses the agent.
    pub interruption_min_words: usize,
    /// Words and phrases that are said while listening, in lower case and without hyphens. Alone or
    /// one after the other, they do not interrupt.
    pub backchannels: Vec<String>,
    /// A backchannel that ends within this many milliseconds of the end of the agent's speech is
    /// taken for an answer.
    pub backchannel_boundary_ms: u64,
    /// Whether the agent goes on after an interruption that had no words in it.
    pub resume_false_interruption: bool,
    /// How long the agent waits for those words, in milliseconds after the end of the speech.
    pub false_interruption_timeout_ms: u64,
    /// Whether the caller can cut off the greeting.
    pub greeting_interruptions: bool,
    /// Silence after which the agent asks whether the caller is still there, in milliseconds; 0 for
    /// never.
    pub ask_after_ms: u64,
    /// Silence after which the agent hangs up, in milliseconds, counted from the same moment; 0 for
    /// never.
    pub hang_up_after_ms: u64,
    /// The caller has spoken and hears nothing for this long: the agent asks them to say it again,
    /// in milliseconds.
    pub no_reply_timeout_ms: u64,
    /// The caller hears nothing of an answer for this long, whatever the model and its tools are
    /// doing, in milliseconds: the answer is given up and the caller is asked to say it again.
    /// Longer than `no_reply_timeout_ms` and `tools.timeout_ms` together, so that one slow tool
    /// does not come to it.
    pub max_thinking_ms: u64,
    /// Speech of at least this length in which recognition finds no words is asked for again, in
    /// milliseconds; 0 for never. Shorter sounds are coughs and noises.
    pub wordless_speech_ms: u64,
    /// The agent is speaking, but no sound has been taken by the output for this long, in
    /// milliseconds.
    pub stalled_playout_ms: u64,
    /// No sound at all has come from the caller for this long, in milliseconds.
    pub no_input_ms: u64,
    /// There is loud sound, but none of it has counted as speech for this long, in milliseconds:
    /// the detector is started anew.
    pub deaf_ms: u64,
    /// The answer that follows so many failures of providers in a row is an apology, and the call
    /// ends.
    pub max_failures: u32,
    /// How long a polite end may take, in milliseconds.
    pub close_timeout_ms: u64,
    /// How long the end waits for the transcript of the last words, in milliseconds.
    pub close_transcript_timeout_ms: u64,
}

/// What people say while they listen: English, Hindi in both scripts, and a few words of other
/// languages.
#[rustfmt::skip]
const BACKCHANNELS: [&str; 113] = [
    "ah", "aha", "hm", "hmm", "huh", "mhm", "mhmm", "mm", "mmhm", "mmm", "okay", "ok", "oh", "right", "sure", "uh", "uhhuh", "um",
    "yeah", "yep", "yes", "yup", "uh huh", "mm hmm", "got it", "i got it", "i see", "makes sense", "that makes sense", "it makes sense",
    "go on", "go ahead", "of course", "all right", "alright", "sounds good", "i understand", "understood", "exactly", "absolutely", "cool",
    "great", "good", "nice", "perfect", "fine", "true", "wow", "really", "keep going", "fair enough", "for sure", "i know", "that's right",
    "okay then", "thank you", "thanks", "very good", "that's fine",
    "haan", "han", "haanji", "haan ji", "ji", "ji haan", "achha", "accha", "acha", "theek", "theek hai", "thik hai", "sahi", "sahi hai",
    "bilkul", "samajh gaya", "samajh gayi", "boliye", "haan boliye", "hmm ji", "aage boliye",
    "हाँ", "हां", "जी", "हाँ जी", "जी हाँ", "अच्छा", "ठीक", "ठीक है", "सही", "सही है", "बिल्कुल", "बिलकुल", "हम्म", "समझ गया", "समझ गई",
    "बोलिए", "ओके",
    "sí", "vale", "claro", "ajá", "de acuerdo", "entiendo", "oui", "ouais", "d'accord", "je vois", "ja", "genau", "alles klar", "verstehe",
    "да", "угу",
];

impl Default for TurnConfig {
    fn default() -> Self {
        Self {
            min_endpointing_delay_ms: 500,
            complete_delay_ms: 300,
            dictation_delay_ms: 1_200,
            max_endpointing_delay_ms: 3_000,
            preemptive: true,
            preemptive_transcription_ms: 100,
            preemptive_max_speech_ms: 10_000,
            preemptive_max_retries: 3,
            // Theirs is 4 s, in which a caller who has chosen from a menu hears nothing.
            keypad_pause_ms: 2_000,
            interruptions: true,
            interruption_min_duration_ms: 500,
            interruption_min_words: 0,
            backchannels: BACKCHANNELS.map(str::to_owned).to_vec(),
            backchannel_boundary_ms: 1_000,
            resume_false_interruption: true,
            false_interruption_timeout_ms: 2_000,
            greeting_interruptions: true,
            ask_after_ms: 10_000,
            hang_up_after_ms: 20_000,
            no_reply_timeout_ms: 8_000,
            max_thinking_ms: 20_000,
            wordless_speech_ms: 2_000,
            stalled_playout_ms: 2_000,
            no_input_ms: 5_000,
            deaf_ms: 8_000,
            max_failures: 2,
            close_timeout_ms: 10_000,
            close_transcript_timeout_ms: 2_000,
        }
    }
}

/// The `[voice.vad]` section.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct VadConfig {
    /// Sound that scores at least this much is speech, 0 to 1.
    pub activation_threshold: f32,
    /// Speech goes on while the score stays at or above this.
    pub deactivation_threshold: f32,
    /// Shorter sounds are not speech, in milliseconds.
    pub min_speech_ms: u64,
    /// The speech is over after this much silence, in milliseconds.
    pub min_silence_ms: u64,
    /// How much sound before the speech goes to recognition with it, in milliseconds.
    pub prefix_ms: u64,
    /// Speech without a pause is cut into segments of this length, in milliseconds.
    pub max_segment_ms: u64,
}

impl Default for VadConfig {
    fn default() -> Self {
        Self {
            activation_threshold: 0.5,
            deactivation_threshold: 0.35,
            min_speech_ms: 50,
            min_silence_ms: 250,
            prefix_ms: 500,
            // Theirs is 60 s; at 30 s the buffer of one call stays below 1 MB.
            max_segment_ms: 30_000,
        }
    }
}

/// The `[voice.limits]` section.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// How long a provider may take to accept a request, in milliseconds.
    pub request_timeout_ms: u64,
    /// How long the first piece of a streamed answer may take after that, in milliseconds.
    pub first_chunk_timeout_ms: u64,
    /// How long any further piece may take, in milliseconds.
    pub chunk_gap_timeout_ms: u64,
    /// How often a request is repeated.
    pub max_retries: u32,
    /// Pause before the first repetition, in milliseconds.
    pub first_retry_ms: u64,
    /// Pause before the others, in milliseconds.
    pub retry_ms: u64,
    /// How many rounds of tools the model may use for one reply.
    pub max_tool_steps: u32,
    /// The longest reply that is spoken, in bytes of text.
    pub max_reply_bytes: usize,
    /// About how many tokens of the conversation the model is given; the oldest turns are left out.
    pub max_history_tokens: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            request_timeout_ms: 10_000,
            first_chunk_timeout_ms: 5_000,
            chunk_gap_timeout_ms: 3_000,
            max_retries: 3,
            first_retry_ms: 100,
            retry_ms: 2_000,
            max_tool_steps: 3,
            max_reply_bytes: 8_192,
            // More than half an hour of talk, and room in every model that people use.
            max_history_tokens: 16_000,
        }
    }
}

/// The `[voice.lines]` section: fixed sentences of personas that have none of their own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinesConfig {
    /// After `ask_after_ms` of silence.
    pub still_there: String,
    /// Before hanging up on silence; empty for nothing.
    pub silence_goodbye: String,
    /// When a provider failed once, the model had no words, or the caller's had none.
    pub say_again: String,
    /// When a provider stays down, before hanging up.
    pub apology: String,
    /// Before hanging up, when the model ends the call without a word and the persona has no
    /// `goodbye`.
    pub goodbye: String,
    /// Others for personas that speak another language, by its tag, such as `hi` or `en-IN`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub languages: BTreeMap<String, OwnLines>,
}

impl Default for LinesConfig {
    fn default() -> Self {
        Self {
            still_there: "Are you still there?".to_owned(),
            silence_goodbye: String::new(),
            say_again: "Sorry, I did not get that. Could you say it again?".to_owned(),
            apology: "I am sorry, we have a technical problem. We will call you back. Goodbye."
                .to_owned(),
            goodbye: "Thank you for calling. Goodbye.".to_owned(),
            languages: BTreeMap::new(),
        }
    }
}

/// Milliseconds of the config as a duration.
pub(super) fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}
