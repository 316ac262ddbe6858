//! One call.

mod hangup;
mod numbers;
mod persona;

use serde::{Deserialize, Serialize};

pub use hangup::{Ending, HangupCause};
pub use numbers::{Numbers, mask, mask_room_name, normalise};
pub use persona::{Persona, PersonaConfig, PersonaError, Personas};

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
    /// Delete the room at the end of the call, which hangs up the caller's telephone.
    pub delete_room: bool,
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
            delete_room: true,
        }
    }
}

impl CallConfig {
    fn goodbye(&self) -> Option<String> {
        let text = self.max_duration_goodbye.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}
