//! Data channels as the application sees them. Accounts of bytes and the life of a channel are kept
//! in `core`; this module is the handle.

use std::{fmt::Debug, str::Utf8Error, sync::Arc};

use serde::Deserialize;
use thiserror::Error;

use crate::{core::channel::Channel, rtp_parameters::Priority};

/// How a data channel is to be opened.
#[derive(Clone, Debug)]
pub struct DataChannelInit {
    /// Whether messages arrive in the order in which they were sent.
    pub ordered: bool,
    /// How long a message is sent again, in milliseconds. Not together with `max_retransmits`.
    pub max_retransmit_time: Option<i32>,
    /// How often a message is sent again.
    pub max_retransmits: Option<i32>,
    /// Name of the sub-protocol.
    pub protocol: String,
    /// Whether both sides open the channel by themselves with the same `id`.
    pub negotiated: bool,
    /// SCTP stream id of a negotiated channel; -1 when the engine chooses one.
    pub id: i32,
    /// Share of the line when several channels want to send. Kept, but all channels are served
    /// alike.
    pub priority: Option<Priority>,
}

impl Default for DataChannelInit {
    fn default() -> Self {
        Self {
            ordered: true,
            max_retransmit_time: None,
            max_retransmits: None,
            protocol: String::new(),
            negotiated: false,
            id: -1,
            priority: None,
        }
    }
}

/// Why a message could not be handed to a channel.
#[derive(Debug, Error)]
pub enum DataChannelError {
    /// The channel is not open, or its send buffer is full.
    #[error("failed to send data, dc not open? send buffer is full ?")]
    Send,
    /// The message is larger than the other side takes.
    #[error(
        "a message of {bytes} bytes is larger than the {limit} bytes that the other side takes"
    )]
    TooLarge {
        /// Size of the message.
        bytes: u64,
        /// Size of the largest message that it takes.
        limit: u64,
    },
    /// A message without a byte, which the engine cannot send.
    #[error("an empty message cannot be sent")]
    Empty,
    /// A text message must be UTF-8.
    #[error("only utf8 strings can be sent")]
    Utf8(#[from] Utf8Error),
}

/// Life of a data channel.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataChannelState {
    Connecting,
    Open,
    Closing,
    Closed,
}

/// A received message.
#[derive(Debug)]
pub struct DataBuffer<'a> {
    /// The bytes of the message.
    pub data: &'a [u8],
    /// Whether the sender meant bytes (true) or text.
    pub binary: bool,
}

/// Called when the state of a channel changes.
pub type OnStateChange = Box<dyn FnMut(DataChannelState) + Send + Sync>;
/// Called for every message received.
pub type OnMessage = Box<dyn FnMut(DataBuffer) + Send + Sync>;
/// Called with the number of bytes that left the send buffer. All calls together add up to every
/// byte sent.
pub type OnBufferedAmountChange = Box<dyn FnMut(u64) + Send + Sync>;

/// Handle of a data channel.
#[derive(Clone)]
pub struct DataChannel {
    pub(crate) channel: Arc<Channel>,
}

impl DataChannel {
    /// Queues a message for sending.
    ///
    /// # Errors
    ///
    /// When the channel is not open, the send buffer is full, or the message is empty, too large or
    /// not the text that it is said to be.
    pub fn send(&self, data: &[u8], binary: bool) -> Result<(), DataChannelError> {
        if !binary {
            std::str::from_utf8(data)?;
        }
        self.channel.send(data, binary)
    }

    /// SCTP stream id, or -1 as long as none is assigned.
    pub fn id(&self) -> i32 {
        self.channel.stream_id()
    }

    /// Name given when the channel was made.
    pub fn label(&self) -> String {
        self.channel.label().to_owned()
    }

    /// Present state.
    pub fn state(&self) -> DataChannelState {
        self.channel.state()
    }

    /// Closes the channel. Messages queued before are still sent.
    pub fn close(&self) {
        self.channel.close()
    }

    /// Bytes queued and not yet handed to the network.
    pub fn buffered_amount(&self) -> u64 {
        self.channel.buffered_amount()
    }

    /// Sets or removes the callback for changes of the state.
    pub fn on_state_change(&self, callback: Option<OnStateChange>) {
        self.channel.on_state.set(callback)
    }

    /// Sets or removes the callback for messages. Messages that came before the first callback was
    /// set are kept and handed over in order.
    pub fn on_message(&self, callback: Option<OnMessage>) {
        self.channel.set_on_message(callback)
    }

    /// Sets or removes the callback for bytes that left the send buffer.
    pub fn on_buffered_amount_change(&self, callback: Option<OnBufferedAmountChange>) {
        self.channel.on_buffered_amount.set(callback)
    }
}

impl Debug for DataChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataChannel")
            .field("id", &self.id())
            .field("label", &self.label())
            .field("state", &self.state())
            .finish()
    }
}
