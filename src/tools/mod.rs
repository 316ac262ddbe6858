//! What the model can do during a call besides talking: take a lead, note an intent, hang up.
//!
//! A tool never fails a call. Whatever is wrong with its arguments is told to the model in words it
//! can act on, usually by asking the caller again. Knows no provider: definitions are plain JSON
//! schema, arguments come as the text that the model wrote.

mod create_lead;
mod detect_intent;
mod end_call;
mod fields;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::{info, warn};

use crate::session::SharedSession;
use crate::store::Store;

/// Section `tools` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ToolsConfig {
    /// Names of the tools that the model gets: `create_lead`, `detect_intent`, `end_call`.
    pub enabled: Vec<String>,
    /// How long one call of a tool may take, in milliseconds. The caller hears silence meanwhile,
    /// so this is short.
    pub timeout_ms: u64,
}

impl Default for ToolsConfig {
    fn default() -> Self {
        let enabled = [create_lead::NAME, detect_intent::NAME, end_call::NAME];
        Self {
            enabled: enabled.map(str::to_owned).to_vec(),
            timeout_ms: 10_000,
        }
    }
}

impl ToolsConfig {
    /// Checks for mistakes that a type cannot catch. The error names the key.
    ///
    /// # Errors
    /// When a tool's name is not known, or the time-out is zero.
    pub fn check(&self) -> Result<(), String> {
        const KNOWN: [&str; 3] = [create_lead::NAME, detect_intent::NAME, end_call::NAME];
        if let Some(unknown) = self
            .enabled
            .iter()
            .find(|name| !KNOWN.contains(&name.as_str()))
        {
            return Err(format!(
                "tools.enabled names {unknown:?}; there are {}",
                KNOWN.join(", ")
            ));
        }
        if self.timeout_ms == 0 {
            return Err("tools.timeout_ms must be above 0".to_owned());
        }
        Ok(())
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

/// What a tool's call means for the conversation beyond its words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ToolEffect {
    /// Nothing.
    #[default]
    None,
    /// Say goodbye, let it play out, hang up.
    EndCall,
}

/// What the model is told after a call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolOutput {
    /// The words.
    pub text: String,
    /// The tool did not do what was asked.
    pub is_error: bool,
    /// What follows for the conversation.
    pub effect: ToolEffect,
}

impl ToolOutput {
    fn done(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            is_error: false,
            effect: ToolEffect::None,
        }
    }

    fn refused(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            is_error: true,
            effect: ToolEffect::None,
        }
    }
}

/// The tools of one call.
#[derive(Debug)]
pub struct Toolbox {
    context: Context,
    enabled: Vec<String>,
    timeout: Duration,
}

/// What the tools work on.
#[derive(Clone)]
struct Context {
    session: SharedSession,
    store: Store,
    /// Leads that were taken in this call, by their arguments: models like to call a tool twice.
    taken: std::sync::Arc<Mutex<HashMap<String, String>>>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Context {
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
                taken: std::sync::Arc::default(),
            },
            enabled: config.enabled.clone(),
            timeout: Duration::from_millis(config.timeout_ms),
        }
    }

    /// What the model is told about the tools.
    pub fn definitions(&self) -> Vec<ToolDefinition> {
        [
            create_lead::definition(),
            detect_intent::definition(),
            end_call::definition(),
        ]
        .into_iter()
        .filter(|tool| self.enabled.contains(&tool.name))
        .collect()
    }

    /// How long one call of a tool may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Calls a tool with the arguments as the model wrote them.
    pub async fn call(&self, name: &str, arguments_json: &str) -> ToolOutput {
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
        output
    }

    async fn run(&self, name: &str, arguments_json: &str) -> ToolOutput {
        if !self.enabled.iter().any(|enabled| enabled == name) {
            return ToolOutput::refused(format!(
                "there is no tool {name:?}; there are {}",
                self.enabled.join(", ")
            ));
        }
        let arguments = match parse_arguments(arguments_json) {
            Ok(arguments) => arguments,
            Err(problem) => return ToolOutput::refused(problem),
        };
        let context = self.context.clone();
        match name {
            // Writes a file and waits until the disk has it: not on the thread that keeps the sound
            // going.
            create_lead::NAME => on_disk(move || create_lead::call(&context, &arguments)).await,
            detect_intent::NAME => detect_intent::call(&context, &arguments),
            end_call::NAME => end_call::call(&arguments),
            _ => ToolOutput::refused(format!("there is no tool {name:?}")),
        }
    }
}

async fn on_disk(work: impl FnOnce() -> ToolOutput + Send + 'static) -> ToolOutput {
    match tokio::task::spawn_blocking(work).await {
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
