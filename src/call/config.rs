//! `[call]`, `[dial]` and `[persona]`: what can be set of a call. Imports nothing else of calls,
//! because the settings import it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::phone::CountryCode;
use crate::voice::LineSources;
use crate::voice::answer::{AnswerPlan, MachinePolicy};

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

/// The longest that LiveKit's server waits for an answer, s, less what setting up takes
/// (livekit-server `pkg/service/sip.go`: 80 s with `wait_until_answered`).
const MAX_RINGING_TIMEOUT_S: u64 = 75;

/// `[dial]`: calls that the agent places itself. A dispatch overrides all of it but `enabled` with
/// its object `dial`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DialConfig {
    /// Whether the number of a dispatch is dialled that does not say so itself (`dial`). Off where
    /// somebody else places the calls: they would be placed twice.
    pub enabled: bool,
    /// LiveKit's id of the outbound trunk, `ST_…`.
    pub trunk_id: String,
    /// The number that is shown to the other party; empty: the trunk's.
    pub caller_id: String,
    /// How long a telephone may ring, s.
    pub ringing_timeout_s: u64,
    /// SIP headers of the INVITE.
    pub headers: BTreeMap<String, String>,
    /// What is done about machines that answer.
    pub answering_machine: AnsweringMachineConfig,
}

/// `[dial.answering_machine]`: who has answered a call that the agent has placed, and what is done
/// about a machine. A persona overrides it with its object `answering_machine`, a dispatch with
/// `dial.answering_machine`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnsweringMachineConfig {
    /// Whether it is found out before the agent says anything.
    pub enabled: bool,
    /// What is done about a voicemail.
    pub policy: MachinePolicy,
    /// What is done about a menu; no message can be left there.
    pub ivr: MachinePolicy,
    /// What is said to a voicemail.
    pub message: String,
    /// How long after the end of the beep the message begins, ms.
    pub after_beep_ms: u64,
    /// How long a voicemail must be silent before the message begins without a beep, ms.
    pub silence_before_message_ms: u64,
}

impl Default for AnsweringMachineConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            policy: MachinePolicy::HangUp,
            ivr: MachinePolicy::HangUp,
            message: String::new(),
            after_beep_ms: 400,
            silence_before_message_ms: 3_000,
        }
    }
}

/// What a persona or a dispatch says about machines that answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnsweringMachineWish {
    enabled: Option<bool>,
    policy: Option<MachinePolicy>,
    ivr: Option<MachinePolicy>,
    message: Option<String>,
}

impl AnsweringMachineWish {
    /// Reads the object, or `true` or `false` for its `enabled` alone.
    ///
    /// # Errors
    /// A sentence about an unknown key or a wrong value.
    pub fn read(said: &Value) -> Result<Self, String> {
        match said {
            Value::Null => Ok(Self::default()),
            Value::Bool(enabled) => Ok(Self {
                enabled: Some(*enabled),
                ..Self::default()
            }),
            said => Self::deserialize(said).map_err(|error| error.to_string()),
        }
    }

    /// That of a dispatch's `dial`, which was checked before.
    pub(super) fn of_dispatch(dial: Option<&Value>) -> Self {
        let said = dial.and_then(|dial| dial.get("answering_machine"));
        said.and_then(|said| Self::read(said).ok())
            .unwrap_or_default()
    }
}

impl AnsweringMachineConfig {
    /// These settings with what somebody says who knows better.
    #[must_use]
    pub(super) fn with(mut self, wish: &AnsweringMachineWish) -> Self {
        self.enabled = wish.enabled.unwrap_or(self.enabled);
        self.policy = wish.policy.unwrap_or(self.policy);
        self.ivr = wish.ivr.unwrap_or(self.ivr);
        if let Some(message) = &wish.message {
            self.message.clone_from(message);
        }
        self
    }

    /// What a conversation is to do about whoever answers; nothing where it is not to be known.
    pub(super) fn plan(self) -> Option<AnswerPlan> {
        let message = line(&self.message);
        let voicemail = match self.policy {
            MachinePolicy::LeaveMessage if message.is_none() => {
                tracing::warn!(
                    "there is no message for voicemails (dial.answering_machine.message): they are hung up on"
                );
                MachinePolicy::HangUp
            }
            policy => policy,
        };
        let plan = AnswerPlan {
            voicemail,
            ivr: self.ivr,
            message: message.unwrap_or_default(),
            after_beep: Duration::from_millis(self.after_beep_ms),
            silence_before_message: Duration::from_millis(self.silence_before_message_ms),
        };
        self.enabled.then_some(plan)
    }

    fn check(&self) -> Result<(), String> {
        if self.ivr == MachinePolicy::LeaveMessage {
            return Err("ivr must be hang_up or continue: a menu takes no message".to_owned());
        }
        if !(300..=1_000).contains(&self.after_beep_ms) {
            return Err("after_beep_ms must be from 300 to 1000".to_owned());
        }
        if !(1_000..=20_000).contains(&self.silence_before_message_ms) {
            return Err("silence_before_message_ms must be from 1000 to 20000".to_owned());
        }
        Ok(())
    }
}

impl Default for DialConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            trunk_id: String::new(),
            caller_id: String::new(),
            ringing_timeout_s: 45,
            headers: BTreeMap::new(),
            answering_machine: AnsweringMachineConfig::default(),
        }
    }
}

/// What a dispatch says in its object `dial`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DispatchedDial {
    trunk_id: Option<String>,
    caller_id: Option<String>,
    ringing_timeout_s: Option<u64>,
    headers: BTreeMap<String, String>,
    answering_machine: Option<Value>,
}

impl DialConfig {
    /// Checks for mistakes that a type cannot catch. The error names the key.
    ///
    /// # Errors
    /// When a telephone would ring for longer than the server waits, or a header cannot be sent.
    pub fn check(&self) -> Result<(), String> {
        self.check_values()
            .map_err(|problem| format!("dial.{problem}"))
    }

    /// These settings with what a dispatch says under `dial`.
    ///
    /// # Errors
    /// The rest of a sentence that begins with "the job metadata": an unknown key, a wrong value,
    /// or no trunk at all.
    pub fn with_dispatched(&self, said: Option<&Value>) -> Result<Self, String> {
        let said = match said {
            None | Some(Value::Null | Value::Bool(_)) => DispatchedDial::default(),
            Some(said) => DispatchedDial::deserialize(said)
                .map_err(|error| format!("has a wrong dial: {error}"))?,
        };
        let mut all = self.clone();
        all.trunk_id = said.trunk_id.unwrap_or(all.trunk_id);
        all.caller_id = said.caller_id.unwrap_or(all.caller_id);
        all.ringing_timeout_s = said.ringing_timeout_s.unwrap_or(all.ringing_timeout_s);
        all.headers.extend(said.headers);
        if let Some(said) = &said.answering_machine {
            let wish = AnsweringMachineWish::read(said)
                .map_err(|error| format!("has a wrong dial.answering_machine: {error}"))?;
            all.answering_machine = all.answering_machine.with(&wish);
        }
        all.check_values()
            .map_err(|problem| format!("has a wrong dial: {problem}"))?;
        if all.trunk_id.trim().is_empty() {
            return Err(
                "asks for a call and names no trunk: set dial.trunk_id, or dial.trunk_id of the dispatch, to the id of an outbound trunk (ST_…)"
                    .to_owned(),
            );
        }
        Ok(all)
    }

    fn check_values(&self) -> Result<(), String> {
        self.answering_machine
            .check()
            .map_err(|problem| format!("answering_machine.{problem}"))?;
        if !(1..=MAX_RINGING_TIMEOUT_S).contains(&self.ringing_timeout_s) {
            return Err(format!(
                "ringing_timeout_s must be from 1 to {MAX_RINGING_TIMEOUT_S}: the server waits no longer for an answer"
            ));
        }
        // A token and a field value (RFC 3261, section 25.1).
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-.!%*_+`'~".contains(c);
        for (name, value) in &self.headers {
            if name.is_empty() || !name.chars().all(is_name) {
                return Err(format!(
                    "headers has {name:?}, which is no name of a header"
                ));
            }
            if value.chars().any(char::is_control) {
                return Err(format!(
                    "headers.{name} has a line break or another control character"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_dispatch_overrides_how_its_number_is_dialled() {
        let config = DialConfig {
            trunk_id: "ST_ours".into(),
            headers: BTreeMap::from([("X-Team".to_owned(), "sales".to_owned())]),
            ..Default::default()
        };
        for said in [None, Some(json!(true)), Some(json!({})), Some(Value::Null)] {
            let all = config.with_dispatched(said.as_ref()).unwrap();
            assert_eq!(
                (all.trunk_id.as_str(), all.ringing_timeout_s),
                ("ST_ours", 45)
            );
        }
        let said = json!({ "trunk_id": "ST_theirs", "caller_id": "+15550100001", "ringing_timeout_s": 20, "headers": { "X-Lead": "7" } });
        let all = config.with_dispatched(Some(&said)).unwrap();
        assert_eq!(all.trunk_id, "ST_theirs");
        assert_eq!(all.caller_id, "+15550100001");
        assert_eq!(all.ringing_timeout_s, 20);
        assert_eq!(all.headers.len(), 2);
    }

    #[test]
    fn a_call_that_cannot_be_dialled_is_refused_by_the_key() {
        let without = DialConfig::default();
        let with = DialConfig {
            trunk_id: "ST_ours".into(),
            ..Default::default()
        };
        for (config, said, word) in [
            (&without, json!(true), "dial.trunk_id"),
            (&with, json!({ "trunk_id": "" }), "dial.trunk_id"),
            (&with, json!({ "trunk": "ST_1" }), "unknown field `trunk`"),
            (&with, json!("yes"), "invalid type"),
            (
                &with,
                json!({ "answering_machine": { "policy": "shout" } }),
                "dial.answering_machine: unknown variant `shout`",
            ),
            (
                &with,
                json!({ "answering_machine": { "ivr": "leave_message" } }),
                "answering_machine.ivr",
            ),
            (
                &with,
                json!({ "ringing_timeout_s": 0 }),
                "ringing_timeout_s",
            ),
            (
                &with,
                json!({ "ringing_timeout_s": 76 }),
                "ringing_timeout_s",
            ),
            (&with, json!({ "headers": { "X A": "1" } }), "\"X A\""),
            (
                &with,
                json!({ "headers": { "X-A": "1\r\nX-B: 2" } }),
                "headers.X-A",
            ),
        ] {
            let problem = config.with_dispatched(Some(&said)).unwrap_err();
            assert!(problem.contains(word), "{said}: {problem}");
        }
    }

    #[test]
    fn a_dispatch_overrides_the_persona_and_the_persona_the_settings() {
        let config = AnsweringMachineConfig {
            policy: MachinePolicy::LeaveMessage,
            message: "ours".into(),
            ..Default::default()
        };
        assert_eq!(config.clone().plan(), None, "off unless somebody wants it");
        let persona = json!({ "enabled": true, "message": "the persona's" });
        let persona = AnsweringMachineWish::read(&persona).unwrap();
        let plan = config.clone().with(&persona).plan().unwrap();
        assert_eq!(plan.voicemail, MachinePolicy::LeaveMessage);
        assert_eq!(plan.message, "the persona's");
        let dispatch = json!({ "answering_machine": { "policy": "continue" } });
        let dispatch = AnsweringMachineWish::of_dispatch(Some(&dispatch));
        let plan = config
            .clone()
            .with(&persona)
            .with(&dispatch)
            .plan()
            .unwrap();
        assert_eq!(plan.voicemail, MachinePolicy::Continue);
        let off = AnsweringMachineWish::read(&json!(false)).unwrap();
        assert_eq!(config.clone().with(&persona).with(&off).plan(), None);
        let silent = AnsweringMachineConfig {
            enabled: true,
            message: " ".into(),
            ..config
        };
        assert_eq!(silent.plan().unwrap().voicemail, MachinePolicy::HangUp);
    }
}
