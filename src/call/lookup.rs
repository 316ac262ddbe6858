//! Who answers a call and with which providers, found out beside the call's loop.
//!
//! It begins as soon as the dispatch is read, and anew when the caller's attributes name other
//! numbers. Nothing waits for it but the agent's first words; its end is an event of the loop.
//! Connections to the providers are opened meanwhile.

use std::sync::Arc;

use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error};

use super::persona::{Persona, Personas};
use crate::providers::{ProviderFactory, Providers};
use crate::session::Numbers;

/// Who answers the call, and with what.
pub struct AgentProfile {
    /// Instructions, greeting, language, campaign.
    pub persona: Persona,
    /// Built from the persona.
    pub providers: Providers,
}

/// The look-up for one call. It stops when it is dropped.
pub struct Lookup {
    personas: Arc<Personas>,
    providers: Arc<ProviderFactory>,
    /// Those that are asked for, in the order in which they count.
    numbers: Vec<String>,
    /// The persona that the dispatch names: it goes before all numbers.
    named: Option<String>,
    give_up: CancellationToken,
    state: State,
    warming: AbortHandle,
}

enum State {
    Running(JoinHandle<AgentProfile>),
    Found(Box<AgentProfile>),
}

impl Lookup {
    /// Begins to look up the persona for these numbers, and to open connections to the providers.
    pub fn start(
        personas: Arc<Personas>,
        providers: Arc<ProviderFactory>,
        numbers: &Numbers,
        named: Option<String>,
    ) -> Self {
        let usual = providers.usual().clone();
        let warming = tokio::spawn(async move { usual.prewarm().await }.in_current_span());
        let numbers = in_order(numbers);
        let give_up = CancellationToken::new();
        let task = begin(
            &personas,
            &providers,
            numbers.clone(),
            named.clone(),
            &give_up,
        );
        Self {
            personas,
            providers,
            numbers,
            named,
            give_up,
            state: State::Running(task),
            warming: warming.abort_handle(),
        }
    }

    /// The numbers as they are known now. Others than before are looked up anew.
    pub fn ask_for(&mut self, numbers: &Numbers) {
        let numbers = in_order(numbers);
        if numbers == self.numbers {
            return;
        }
        self.stop();
        let task = begin(
            &self.personas,
            &self.providers,
            numbers.clone(),
            self.named.clone(),
            &self.give_up,
        );
        self.numbers = numbers;
        self.state = State::Running(task);
    }

    /// Whether the answer is still to come.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// Waits for the answer. May be dropped at any time.
    pub async fn finish(&mut self) {
        if let State::Running(task) = &mut self.state {
            let profile = match task.await {
                Ok(profile) => profile,
                Err(error) => {
                    error!(%error, "the persona look-up broke; the default persona answers");
                    AgentProfile {
                        persona: self.personas.default_persona(),
                        providers: self.providers.usual().clone(),
                    }
                }
            };
            self.state = State::Found(Box::new(profile));
        }
    }

    /// The answer, once it has come: see [`Self::finish`].
    pub fn profile(&self) -> Option<&AgentProfile> {
        match &self.state {
            State::Found(profile) => Some(profile),
            State::Running(_) => None,
        }
    }

    /// The caller waits no longer: what is not answered yet counts as down, and an older copy, a
    /// file or the default persona answers at once.
    pub fn give_up(&self) {
        self.give_up.cancel();
    }

    fn stop(&self) {
        if let State::Running(task) = &self.state {
            task.abort();
        }
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        self.stop();
        self.warming.abort();
    }
}

/// Our own number counts before the other party's.
fn in_order(numbers: &Numbers) -> Vec<String> {
    [&numbers.trunk_number, &numbers.dialed_number]
        .into_iter()
        .flatten()
        .cloned()
        .collect()
}

fn begin(
    personas: &Arc<Personas>,
    providers: &Arc<ProviderFactory>,
    numbers: Vec<String>,
    named: Option<String>,
    give_up: &CancellationToken,
) -> JoinHandle<AgentProfile> {
    let (personas, providers) = (personas.clone(), providers.clone());
    let give_up = give_up.clone().cancelled_owned();
    let look_up = async move {
        let named = named.and_then(|name| personas.named(&name));
        let persona = match named {
            Some(persona) => persona,
            None => personas.find_until(numbers, give_up).await,
        };
        let providers = providers.for_persona(&persona.models);
        AgentProfile { persona, providers }
    };
    tokio::spawn(look_up.in_current_span())
}
