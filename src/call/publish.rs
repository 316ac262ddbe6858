//! What the room is told about the conversation: the agent's state and both sides' words.
//!
//! A task of its own, so that a slow server never holds up the call. Its inbox is bounded; when it
//! is full, what comes is dropped: these are for people who watch, the record has everything.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use super::room::{AgentWords, RoomVoice};
use crate::voice::AgentState;

/// Things to publish that may wait.
const QUEUE: usize = 128;
/// How long the last words may take to go out after the call has ended.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Words of one side.
#[derive(Debug)]
pub enum Words {
    /// The caller's whole segment so far.
    Caller {
        /// The segment.
        segment_id: String,
        /// All of it.
        text: String,
        /// Whether it will not change any more.
        is_final: bool,
    },
    /// More of the agent's segment.
    Agent {
        /// The segment.
        segment_id: String,
        /// What is new.
        delta: String,
        /// Whether nothing more comes.
        is_final: bool,
    },
}

enum Message {
    State(AgentState),
    Words(Words),
    Caller { identity: String, track_sid: String },
}

/// The handle of the task.
pub struct Publisher {
    inbox: Option<mpsc::Sender<Message>>,
    task: JoinHandle<()>,
    /// What the agent is doing, as the room was told.
    state: Option<AgentState>,
}

impl Publisher {
    /// Starts publishing in the name of the agent.
    pub fn start(voice: RoomVoice) -> Self {
        let (inbox, messages) = mpsc::channel(QUEUE);
        Self {
            inbox: Some(inbox),
            task: tokio::spawn(publish(voice, messages)),
            state: None,
        }
    }

    /// Goes on in the name of the agent that has come back, and drops what waits for the connection
    /// that was lost. Whose words the caller's are has to be told again.
    pub fn go_on(&mut self, voice: RoomVoice) {
        let state = self.state;
        *self = Self::start(voice);
        if let Some(state) = state {
            self.agent_state(state);
        }
    }

    /// Whose words the caller's words are.
    pub fn caller(&self, identity: &str, track_sid: String) {
        self.send(Message::Caller {
            identity: identity.to_owned(),
            track_sid,
        });
    }

    /// What the agent is doing now.
    pub fn agent_state(&mut self, state: AgentState) {
        self.state = Some(state);
        self.send(Message::State(state));
    }

    /// What was said.
    pub fn words(&self, words: Words) {
        self.send(Message::Words(words));
    }

    fn send(&self, message: Message) {
        if let Some(inbox) = &self.inbox
            && inbox.try_send(message).is_err()
        {
            debug!("the room is told less than was said: its inbox is full");
        }
    }

    /// Publishes what is still waiting, within a bound, and ends.
    pub async fn stop(&mut self) {
        self.inbox = None;
        if tokio::time::timeout(LAST_WORDS, &mut self.task)
            .await
            .is_err()
        {
            self.task.abort();
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn publish(voice: RoomVoice, mut messages: mpsc::Receiver<Message>) {
    let mut caller: Option<(String, String)> = None;
    let mut agent: Option<(String, AgentWords)> = None;
    while let Some(message) = messages.recv().await {
        match message {
            Message::Caller {
                identity,
                track_sid,
            } => caller = Some((identity, track_sid)),
            Message::State(state) => voice.agent_state(state.as_str()).await,
            Message::Words(Words::Caller {
                segment_id,
                text,
                is_final,
            }) => {
                if let Some((identity, track_sid)) = &caller {
                    voice
                        .caller_words(identity, track_sid, &segment_id, &text, is_final)
                        .await;
                }
            }
            Message::Words(Words::Agent {
                segment_id,
                delta,
                is_final,
            }) => {
                if agent.as_ref().is_none_or(|(open, _)| *open != segment_id) {
                    if let Some((_, words)) = agent.take() {
                        words.finish().await;
                    }
                    agent = voice
                        .open_agent_words(&segment_id)
                        .await
                        .map(|words| (segment_id, words));
                }
                if let Some((_, words)) = &agent
                    && !delta.is_empty()
                {
                    words.write(&delta).await;
                }
                if is_final && let Some((_, words)) = agent.take() {
                    words.finish().await;
                }
            }
        }
    }
    if let Some((_, words)) = agent {
        words.finish().await;
    }
}
