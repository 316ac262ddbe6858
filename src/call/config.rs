//! `[call]` and `[persona]`: what can be set of a call. Imports nothing else of calls, because the
//! settings import it.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::phone::CountryCode;
use crate::voice::LineSources;

/// The largest `persona.timeout_ms`: LiveKit's own front ends give up on an agent that says nothing
/// for 20 s, and joining takes some of them.
const MAX_TIMEOUT_MS: u64 = 15_000;

/// `[call]`: how long a call waits for what, and how it ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CallConfig {
    /// How long joining the room may take, s.
    pub join_timeout_s: u64,
    /// How long the agent waits alone for its caller, s. Then the call counts as not answered.
    pub caller_wait_s: u64,
    /// How long a telephone may ring before the call counts as not answered, s.
    pub ring_wait_s: u64,
    /// The longest a call may last, s.
    pub max_duration_s: u64,
    /// What the agent says when the call has lasted too long; empty: nothing.
    pub max_duration_goodbye: String,
    /// How long our own connection to the room may be lost, and then how long the caller may take
    /// to be there again, s: a server that is started again needs some seconds, and so does its SIP
    /// service. Meanwhile the conversation waits. Whoever is still in the room when it has passed
    /// is given to another agent, if the server sends one within seconds, or hung up on.
    pub reconnect_wait_s: u64,
    /// What the agent says when the two are together again after that, unless it was interrupted in
    /// mid sentence, which it then ends; empty: nothing.
    pub reconnected_line: String,
    /// How long no sound may arrive from the caller, not even silence, before the call is given up,
    /// s; 0: for ever. A microphone that is muted does not count, nor does a caller who writes.
    pub no_media_s: u64,
    /// What the agent says then, because the caller may hear it all the same; empty: nothing.
    pub no_media_goodbye: String,
    /// Delete the room at the end of the call, which hangs up the caller's telephone.
    pub delete_room: bool,
    /// Where numbers without a country code belong. Empty: they stay as they were dialled, without
    /// `+`.
    pub country_code: CountryCode,
}

impl Default for CallConfig {
    fn default() -> Self {
        Self {
            join_timeout_s: 20,
            caller_wait_s: 60,
            ring_wait_s: 80,
            max_duration_s: 15 * 60,
            max_duration_goodbye: "I am sorry, our time is up. Thank you for calling, goodbye."
                .into(),
            // LiveKit's SIP service comes back 27 s after it was cut off, or after 16 s or less.
            reconnect_wait_s: 30,
            reconnected_line: "Sorry, the line was interrupted. I am here again.".into(),
            // LiveKit's SIP service hangs up a telephone 15 s after its last packet
            // (`media_timeout`), which would look like a caller who left.
            no_media_s: 9,
            no_media_goodbye: "I am sorry, I cannot hear you. Please call again. Goodbye.".into(),
            delete_room: true,
            country_code: CountryCode::default(),
        }
    }
}

/// What the agent says about the call itself; nothing where it is to be silent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CallLines {
    /// The call has lasted too long.
    pub max_duration_goodbye: Option<String>,
    /// The two are together again.
    pub reconnected: Option<String>,
    /// Nothing arrives from the caller.
    pub no_media_goodbye: Option<String>,
}

impl CallConfig {
    /// The lines of a persona whose lines come from `sources`.
    pub(super) fn lines(&self, sources: &LineSources) -> CallLines {
        let english = Self::default();
        let choose =
            |pick, general: &str, english: &str| line(&sources.choose(pick, general, english));
        CallLines {
            max_duration_goodbye: choose(
                |own| &own.max_duration_goodbye,
                &self.max_duration_goodbye,
                &english.max_duration_goodbye,
            ),
            reconnected: choose(
                |own| &own.reconnected_line,
                &self.reconnected_line,
                &english.reconnected_line,
            ),
            no_media_goodbye: choose(
                |own| &own.no_media_goodbye,
                &self.no_media_goodbye,
                &english.no_media_goodbye,
            ),
        }
    }

    pub(super) fn no_media(&self) -> Option<Duration> {
        (self.no_media_s > 0).then(|| Duration::from_secs(self.no_media_s))
    }
}

/// A line to be said, unless it is empty.
fn line(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// `[persona]`: where personas come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PersonaConfig {
    /// Address of the HTTP source; `{number}` stands for the digits of the number. Empty: only
    /// local files.
    pub url: String,
    /// How long the HTTP source may still take once the caller has answered, ms. It is asked as
    /// soon as the numbers are known, but the caller hears nothing meanwhile, so this is short.
    pub timeout_ms: u64,
    /// How long a fetched persona is used without asking again, s. An older copy is still used when
    /// the source is down.
    pub cache_ttl_s: u64,
    /// Folder with `<digits of a number>.json` and `<default>.json`.
    pub directory: PathBuf,
    /// Name of the persona for every number that has none of its own.
    pub default: String,
}

impl Default for PersonaConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            timeout_ms: 1500,
            cache_ttl_s: 300,
            directory: "config/personas".into(),
            default: "default".into(),
        }
    }
}

impl PersonaConfig {
    /// Checks for mistakes that a type cannot catch. The error names the key.
    ///
    /// # Errors
    /// When a caller would wait for too long.
    pub fn check(&self) -> Result<(), String> {
        if self.timeout_ms > MAX_TIMEOUT_MS {
            return Err(format!(
                "persona.timeout_ms must not be above {MAX_TIMEOUT_MS}: the caller hears nothing meanwhile"
            ));
        }
        Ok(())
    }

    /// [`Self::timeout_ms`] as a duration.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}
