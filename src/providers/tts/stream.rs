//! Voices that speak over a WebSocket, which is kept from one sentence to the next: opening one
//! takes longer than a caller should wait.
//!
//! A sentence has a socket to itself while it is spoken. One that is given up leaves its socket,
//! with a word that stops it, to the next sentence, which hears nothing of it: each has a context
//! of its own.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::FutureExt as _;
use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::{SpeechPiece, SpeechRequest, SpeechStream, TextToSpeech, WordTime};
use crate::providers::ProviderError;
use crate::providers::socket::{Address, Frame, Socket};

/// Sockets that are kept: the sentence that is played, and the one after it.
const MOST_KEPT: usize = 2;

/// A socket that nobody has used for so long may be dead at the other end, or cost money.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// A vendor's wire format.
pub(crate) trait VoiceWire: Send + Sync + 'static {
    /// Vendor and model, for logs.
    fn name(&self) -> &str;

    /// Samples a second of what it is asked for.
    fn sample_rate_hz(&self) -> u32;

    /// Where to connect for a request; a socket serves every request with the same address.
    ///
    /// # Errors
    /// When the vendor cannot do what is wanted.
    fn address(&self, request: &SpeechRequest) -> Result<Address, ProviderError>;

    /// The sentence, as its own context.
    fn speak(&self, context: &str, request: &SpeechRequest) -> Vec<Message>;

    /// Stops a context, so that the socket can be used for another. Without that, a sentence that
    /// is given up takes its socket with it.
    fn cancel(&self, context: &str) -> Option<Message>;

    /// A reader for a context.
    fn reader(&self, context: &str) -> Box<dyn VoiceReader>;
}

/// Reads what a vendor says about one context. Pure.
pub(crate) trait VoiceReader: Send {
    /// Appends what a message means. Odd messages, and those of other contexts, mean nothing.
    fn read(&mut self, frame: &Frame, spoken: &mut VecDeque<Spoken>);
}

/// What a vendor says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Spoken {
    Sound(Vec<i16>),
    Words(Vec<WordTime>),
    Done,
    Error(ProviderError),
}

/// A voice behind a [`VoiceWire`].
pub(in crate::providers) struct SocketVoice {
    wire: Arc<dyn VoiceWire>,
    pool: Arc<Pool>,
    next_context: AtomicU64,
}

impl SocketVoice {
    pub fn new(wire: impl VoiceWire) -> Self {
        Self {
            wire: Arc::new(wire),
            pool: Arc::default(),
            next_context: AtomicU64::new(1),
        }
    }

    /// An open socket for `address`: one that is kept, else a new one.
    async fn socket(&self, address: &Address) -> Result<Socket, ProviderError> {
        while let Some(kept) = self.pool.take(address) {
            let mut socket = kept.socket;
            // What came meanwhile is of no use, but an end is.
            let is_open = loop {
                match socket.next().now_or_never() {
                    None => break true,
                    Some(Ok(_)) => {}
                    Some(Err(_)) => break false,
                }
            };
            let is_told = match kept.cancel {
                Some(cancel) if is_open => socket.send(cancel).await.is_ok(),
                _ => is_open,
            };
            if is_told {
                return Ok(socket);
            }
        }
        Socket::connect(address).await
    }
}

#[async_trait]
impl TextToSpeech for SocketVoice {
    fn name(&self) -> &str {
        self.wire.name()
    }

    fn sample_rate_hz(&self) -> u32 {
        self.wire.sample_rate_hz()
    }

    async fn synthesize(&self, request: SpeechRequest) -> Result<SpeechStream, ProviderError> {
        let address = self.wire.address(&request)?;
        let context = format!("s{}", self.next_context.fetch_add(1, Ordering::Relaxed));
        let mut socket = self.socket(&address).await?;
        for message in self.wire.speak(&context, &request) {
            socket.send(message).await?;
        }
        let sentence = Sentence {
            reader: self.wire.reader(&context),
            cancel: self.wire.cancel(&context),
            socket: Some(socket),
            spoken: VecDeque::new(),
            address,
            pool: self.pool.clone(),
        };
        Ok(stream::try_unfold(sentence, Sentence::next).boxed())
    }

    async fn prewarm(&self) {
        let nothing = SpeechRequest {
            text: String::new(),
            voice: None,
            language: None,
        };
        let Ok(address) = self.wire.address(&nothing) else {
            return;
        };
        match Socket::connect(&address).await {
            Ok(socket) => self.pool.put(socket, address, None),
            Err(error) => tracing::debug!(%error, "the voice could not be reached ahead of time"),
        }
    }
}

/// One sentence on its way.
struct Sentence {
    /// None when it is over.
    socket: Option<Socket>,
    reader: Box<dyn VoiceReader>,
    spoken: VecDeque<Spoken>,
    cancel: Option<Message>,
    address: Address,
    pool: Arc<Pool>,
}

impl Sentence {
    async fn next(mut self) -> Result<Option<(SpeechPiece, Self)>, ProviderError> {
        loop {
            match self.spoken.pop_front() {
                Some(Spoken::Sound(samples)) if samples.is_empty() => continue,
                Some(Spoken::Sound(samples)) => {
                    return Ok(Some((SpeechPiece::Sound(samples), self)));
                }
                Some(Spoken::Words(words)) => return Ok(Some((SpeechPiece::Words(words), self))),
                Some(Spoken::Done) => {
                    if let Some(socket) = self.socket.take() {
                        self.pool.put(socket, self.address.clone(), None);
                    }
                    return Ok(None);
                }
                Some(Spoken::Error(error)) => {
                    self.socket = None;
                    return Err(error);
                }
                None => {}
            }
            let Some(socket) = &mut self.socket else {
                return Ok(None);
            };
            match socket.next().await {
                Ok(frame) => self.reader.read(&frame, &mut self.spoken),
                Err(error) => {
                    self.socket = None;
                    return Err(error);
                }
            }
        }
    }
}

impl Drop for Sentence {
    fn drop(&mut self) {
        if let (Some(socket), Some(cancel)) = (self.socket.take(), self.cancel.take()) {
            self.pool.put(socket, self.address.clone(), Some(cancel));
        }
    }
}

/// Open sockets that nobody uses.
#[derive(Default)]
struct Pool {
    kept: Mutex<Vec<Kept>>,
}

struct Kept {
    socket: Socket,
    address: Address,
    /// Stops what is still being spoken on it.
    cancel: Option<Message>,
    since: Instant,
}

impl Pool {
    fn put(&self, socket: Socket, address: Address, cancel: Option<Message>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == MOST_KEPT {
            kept.remove(0);
        }
        kept.push(Kept {
            socket,
            address,
            cancel,
            since: Instant::now(),
        });
    }

    /// The socket for `address` that was used last.
    fn take(&self, address: &Address) -> Option<Kept> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| kept.since.elapsed() < KEPT_FOR);
        let at = kept.iter().rposition(|kept| kept.address == *address)?;
        Some(kept.remove(at))
    }
}
