//! What the model can do during a call besides talking: take a lead, note an intent, hang up.
//!
//! A tool never fails a call. Whatever is wrong with its arguments is told to the model in words it
//! can act on, usually by asking the caller again. What it wants of the call itself is a
//! [`CallRequest`], with which the conversation ends, or a [`CallAction`], whose end the tool waits
//! for: data on which the call acts. What it did is an event of the session. Knows no
//! provider: definitions are plain JSON schema, arguments come as the text that the model wrote.
//!
//! A new tool is a file with a `Tool` and a line in `TOOLS`.

mod add_to_do_not_call;
mod create_lead;
mod detect_intent;
mod end_call;
mod fields;
mod schedule_callback;
mod send_dtmf;
mod set_outcome;
mod transfer_call;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};
use tracing::{Span, info, warn};

use crate::session::{self, SharedSession, ToolUse, time};
use crate::store::Store;

/// Every tool that there is, in the order in which the model is told of them.
static TOOLS: [&dyn Tool; 8] = [
    &create_lead::CreateLead,
    &detect_intent::DetectIntent,
    &end_call::EndCall,
    &send_dtmf::SendDtmf,
    &transfer_call::TransferCall,
    &set_outcome::SetOutcome,
    &schedule_callback::ScheduleCallback,
    &add_to_do_not_call::AddToDoNotCall,
];

/// Those that every agent has unless the settings say otherwise. The others act on the telephone,
/// or are for whoever dials.
const USUAL: [&str; 3] = ["create_lead", "detect_intent", "end_call"];

/// Something that the model can do.
#[async_trait]
trait Tool: Send + Sync {
    /// What the model calls it.
    fn name(&self) -> &'static str;

    /// What the model is told about it.
    fn definition(&self) -> ToolDefinition;

    /// Does it. What is wrong with the arguments is an answer for the model.
    async fn call(&self, context: &Context, arguments: Map<String, Value>) -> ToolOutput;
}

fn names(tools: &[&'static dyn Tool]) -> Vec<String> {
    tools.iter().map(|tool| tool.name().to_owned()).collect()
}

/// Section `tools` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ToolsConfig {
    /// Names of the tools that the model gets: those that do nothing to the telephone by default.
    pub enabled: Vec<String>,
    /// How long one call of a tool may take, in milliseconds. The caller hears silence meanwhile,
    /// so this is short.
    pub timeout_ms: u64,
    /// Whom a caller may be handed over to.
    pub transfer: TransferConfig,
    /// What is noted for whoever dials.
    pub follow_up: FollowUpConfig,
}

/// Section `tools.follow_up`: what the model notes for whoever dials.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FollowUpConfig {
    /// The outcomes that `set_outcome` may note. Empty: any.
    pub outcomes: Vec<String>,
    /// The time zone of times that come without one, by its name in the IANA database.
    pub time_zone: String,
}

impl Default for FollowUpConfig {
    fn default() -> Self {
        Self {
            outcomes: Vec::new(),
            time_zone: Tz::UTC.name().to_owned(),
        }
    }
}

impl FollowUpConfig {
    fn check(&self) -> Result<(), String> {
        if self
            .outcomes
            .iter()
            .any(|outcome| outcome.trim().is_empty())
        {
            return Err("tools.follow_up.outcomes has an empty outcome".to_owned());
        }
        match self.time_zone.parse::<Tz>() {
            Ok(_) => Ok(()),
            Err(_) => Err(format!(
                "tools.follow_up.time_zone is {:?}, which is no time zone of the IANA database, such as \"Asia/Kolkata\"",
                self.time_zone
            )),
        }
    }

    /// The time zone; [`Self::check`] has read it before.
    fn zone(&self) -> Tz {
        self.time_zone.parse().unwrap_or(Tz::UTC)
    }
}

/// Section `tools.transfer`: whom a caller may be handed over to, and how.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransferConfig {
    /// How long the other telephone may ring, s. The caller waits meanwhile.
    pub ringing_timeout_s: u64,
    /// Addresses (`tel:` or `sip:`) by the names that the model uses.
    pub targets: BTreeMap<String, String>,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            ringing_timeout_s: 25,
            targets: BTreeMap::new(),
        }
    }
}

impl TransferConfig {
    fn check(&self) -> Result<(), String> {
        if !(1..=MAX_TRANSFER_RINGING_S).contains(&self.ringing_timeout_s) {
            return Err(format!(
                "tools.transfer.ringing_timeout_s must be from 1 to {MAX_TRANSFER_RINGING_S}"
            ));
        }
        for (name, target) in &self.targets {
            let is_address = ["tel:", "sip:", "sips:"]
                .iter()
                .any(|scheme| target.len() > scheme.len() && target.starts_with(scheme));
            if !is_address || target.chars().any(|c| c.is_whitespace() || c.is_control()) {
                return Err(format!(
                    "tools.transfer.targets.{name} must be a tel: or sip: address, such as \"tel:+15550100155\""
                ));
            }
        }
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.targets.keys().cloned().collect()
    }

    /// The target of this name, however it is capitalised.
    fn target(&self, name: &str) -> Option<(&str, &str)> {
        let mut targets = self.targets.iter();
        let found = targets.find(|(known, _)| known.eq_ignore_ascii_case(name.trim()));
        found.map(|(name, target)| (name.as_str(), target.as_str()))
    }

    fn ringing_timeout(&self) -> Duration {
        Duration::from_secs(self.ringing_timeout_s)
    }
}

/// The longest that another telephone may ring, s: the caller hears nothing of us meanwhile.
const MAX_TRANSFER_RINGING_S: u64 = 60;
/// How much longer a transfer may take than the other telephone rings.
const TRANSFER_MARGIN: Duration = Duration::from_secs(12);
/// Actions that may wait for the call.
pub const ACTION_QUEUE: usize = 4;

impl Default for ToolsConfig {
    fn default() -> Self {
        Self {
            enabled: USUAL.map(str::to_owned).into(),
            timeout_ms: 10_000,
            transfer: TransferConfig::default(),
            follow_up: FollowUpConfig::default(),
        }
    }
}

impl ToolsConfig {
    /// Checks for mistakes that a type cannot catch. The error names the key.
    ///
    /// # Errors
    /// When a tool's name is not known, or the time-out is zero.
    pub fn check(&self) -> Result<(), String> {
        let known = names(&TOOLS);
        if let Some(unknown) = self.enabled.iter().find(|name| !known.contains(name)) {
            return Err(format!(
                "tools.enabled names {unknown:?}; there are {}",
                known.join(", ")
            ));
        }
        if self.timeout_ms == 0 {
            return Err("tools.timeout_ms must be above 0".to_owned());
        }
        if self.transfer.targets.is_empty() && self.has(transfer_call::NAME) {
            return Err(format!(
                "tools.enabled has {}, and tools.transfer.targets names nobody to hand a caller over to",
                transfer_call::NAME
            ));
        }
        self.follow_up.check()?;
        self.transfer.check()
    }

    fn has(&self, name: &str) -> bool {
        self.enabled.iter().any(|enabled| enabled == name)
    }
}

/// A tool as the model is told of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ToolDefinition {
    /// What the model calls it.
    pub name: String,
    /// When to use it.
    pub description: String,
    /// JSON schema of its arguments.
    pub parameters: Value,
}

/// What a tool wants of the call. The call does it once the agent's last words are out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CallRequest {
    /// Hang up.
    HangUp,
}

/// What a tool asks of the call while the conversation goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallAction {
    /// Press these keys of the telephone: digits, `*`, `#`, `A` to `D`; `W` is half a second of
    /// pause.
    Keys(String),
    /// Hand the caller over.
    Transfer {
        /// A `tel:` or `sip:` address.
        target: String,
        /// How long the other telephone may ring.
        ringing_timeout: Duration,
    },
}

/// An action and who waits for its end: an error is the rest of a sentence for the model.
#[derive(Debug)]
pub struct WantedAction {
    /// What the call is to do.
    pub action: CallAction,
    /// Where to say what came of it.
    pub done: oneshot::Sender<Result<(), String>>,
}

/// What the model is told after a call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolOutput {
    /// The words.
    pub text: String,
    /// The tool did not do what was asked.
    pub is_error: bool,
    /// What follows for the call.
    pub request: Option<CallRequest>,
}

impl ToolOutput {
    fn done(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            is_error: false,
            request: None,
        }
    }

    fn refused(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            is_error: true,
            request: None,
        }
    }
}

/// The tools of one call.
pub struct Toolbox {
    context: Context,
    enabled: Vec<&'static dyn Tool>,
    timeout: Duration,
}

/// What the tools work on.
#[derive(Clone)]
struct Context {
    session: SharedSession,
    store: Store,
    transfer: TransferConfig,
    follow_up: FollowUpConfig,
    /// Where the call takes actions.
    actions: Option<mpsc::Sender<WantedAction>>,
    /// Leads that were taken in this call, by their arguments: models like to call a tool twice.
    taken: std::sync::Arc<Mutex<HashMap<String, String>>>,
}

impl Context {
    /// Has the call do something, and waits for what comes of it.
    async fn act(&self, action: CallAction) -> Result<(), String> {
        const NOBODY: &str = "there is no telephone";
        let (done, end) = oneshot::channel();
        let Some(actions) = &self.actions else {
            return Err(NOBODY.to_owned());
        };
        let wanted = WantedAction { action, done };
        match actions.try_send(wanted) {
            Ok(()) => end.await.unwrap_or_else(|_| Err(NOBODY.to_owned())),
            Err(_) => Err("the call is busy with something else".to_owned()),
        }
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Toolbox {
    /// The tools that `config` enables, working on this call.
    pub fn new(session: SharedSession, store: Store, config: &ToolsConfig) -> Self {
        Self {
            context: Context {
                session,
                store,
                transfer: config.transfer.clone(),
                follow_up: config.follow_up.clone(),
                actions: None,
                taken: std::sync::Arc::default(),
            },
            enabled: TOOLS
                .into_iter()
                .filter(|tool| config.enabled.iter().any(|name| name == tool.name()))
                .collect(),
            timeout: match config.has(transfer_call::NAME) {
                // Somebody has to pick up.
                true => Duration::from_millis(config.timeout_ms)
                    .max(config.transfer.ringing_timeout() + TRANSFER_MARGIN),
                false => Duration::from_millis(config.timeout_ms),
            },
        }
    }

    /// The same, with a call that takes actions.
    #[must_use]
    pub fn with_call(mut self, actions: mpsc::Sender<WantedAction>) -> Self {
        self.context.actions = Some(actions);
        self
    }

    /// What the model is told about the tools.
    pub fn definitions(&self) -> Vec<ToolDefinition> {
        let told = self.enabled.iter().map(|tool| {
            let mut definition = tool.definition();
            if tool.name() == transfer_call::NAME {
                let names = self.context.transfer.names();
                definition.parameters["properties"]["to"]["enum"] = json!(names);
            }
            let follow_up = &self.context.follow_up;
            if tool.name() == set_outcome::NAME && !follow_up.outcomes.is_empty() {
                let outcomes = &follow_up.outcomes;
                definition.parameters["properties"]["outcome"]["enum"] = json!(outcomes);
            }
            if tool.name() == schedule_callback::NAME {
                let now = schedule_callback::in_words(time::now(), follow_up.zone());
                definition
                    .description
                    .push_str(&format!(" The call began on {now}."));
            }
            definition
        });
        told.collect()
    }

    /// How long one call of a tool may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Calls a tool with the arguments as the model wrote them, and notes in the session what it
    /// did.
    pub async fn call(&self, name: &str, arguments_json: &str) -> ToolOutput {
        let called_at = time::now();
        let started = tokio::time::Instant::now();
        let output = match tokio::time::timeout(self.timeout, self.run(name, arguments_json)).await
        {
            Ok(output) => output,
            Err(_) => ToolOutput::refused(format!(
                "{name} took too long and may not have worked. Do not repeat it; tell the caller that somebody will follow up."
            )),
        };
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(
            tool.name = name,
            duration_ms,
            tool.is_error = output.is_error,
            "tool called"
        );
        session::lock(&self.context.session).add_tool_use(ToolUse::new(
            name,
            arguments_json,
            &output.text,
            output.is_error,
            called_at,
            duration_ms,
        ));
        output
    }

    async fn run(&self, name: &str, arguments_json: &str) -> ToolOutput {
        let Some(tool) = self.enabled.iter().find(|tool| tool.name() == name) else {
            return ToolOutput::refused(format!(
                "there is no tool {name:?}; there are {}",
                names(&self.enabled).join(", ")
            ));
        };
        match parse_arguments(arguments_json) {
            Ok(arguments) => tool.call(&self.context, arguments).await,
            Err(problem) => ToolOutput::refused(problem),
        }
    }
}

async fn on_disk(work: impl FnOnce() -> ToolOutput + Send + 'static) -> ToolOutput {
    let span = Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(output) => output,
        Err(error) => {
            warn!(%error, "a tool broke");
            ToolOutput::refused(
                "the tool broke and did not do it. Tell the caller that somebody will follow up.",
            )
        }
    }
}

/// Models write nothing at all for a tool without required arguments.
fn parse_arguments(text: &str) -> Result<Map<String, Value>, String> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(arguments)) => Ok(arguments),
        Ok(_) => {
            Err("the arguments must be one JSON object; call the tool again with one".to_owned())
        }
        Err(error) => Err(format!(
            "the arguments are not valid JSON ({error}); call the tool again with valid JSON"
        )),
    }
}
