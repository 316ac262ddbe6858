//! Data channels as the application sees them. `core` keeps their state; this module is the handle.

use std::{fmt::Debug, str::Utf8Error, sync::Arc};

use serde::Deserialize;
use thiserror::Error;

use crate::{core::channel::Channel, rtp_parameters::Priority};

/// How a data channel is to be opened.
#[derive(Clone, Debug)]
pub struct DataChannelInit {
    /// Whether messages arrive in the order in which they were sent.
    pub ordered: bool,
    /// How long a message is retransmitted, in milliseconds (RFC 3758). Not together with
    /// `max_retransmits`.
    pub max_retransmit_time: Option<i32>,
    /// How often a message is retransmitted at most (RFC 7496).
    pub max_retransmits: Option<i32>,
    /// Name of the sub-protocol.
    pub protocol: String,
    /// Whether each side opens the channel by itself with the same `id`, instead of by DCEP (RFC
    /// 8832).
    pub negotiated: bool,
    /// SCTP stream id of a negotiated channel; -1 when the engine chooses one.
    pub id: i32,
    /// Priority among channels that have data to send. Stored, but all channels are served alike.
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
    /// The message is larger than the other side accepts.
    #[error(
        "a message of {bytes} bytes is larger than the {limit} bytes that the other side takes"
    )]
    TooLarge {
        /// Size of the message in bytes.
        bytes: u64,
        /// Size of the largest message that it accepts, in bytes.
        limit: u64,
    },
    /// A message without bytes, which the engine cannot send.
    #[error("an empty message cannot be sent")]
    Empty,
    /// A text message is not valid UTF-8.
    #[error("only utf8 strings can be sent")]
    Utf8(#[from] Utf8Error),
}

/// State of a data channel (W3C WebRTC, `RTCDataChannelState`).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataChannelState {
    /// The channel is being opened.
    Connecting,
    /// Messages can be sent.
    Open,
    /// The channel is being closed; what was queued is still sent.
    Closing,
    /// The channel has ended.
    Closed,
}

/// A received message.
#[derive(Debug)]
pub struct DataBuffer<'a> {
    /// The bytes of the message.
    pub data: &'a [u8],
    /// Whether the sender sent bytes (true) or text.
    pub binary: bool,
}

/// Called when the state of a channel changes.
pub type OnStateChange = Box<dyn FnMut(DataChannelState) + Send + Sync>;
/// Called for every message received.
pub type OnMessage = Box<dyn FnMut(DataBuffer) + Send + Sync>;
/// Called with the number of bytes that have left the send buffer. The sum of all calls is every
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
    /// When the channel is not open, the send buffer is full, or the message is empty, larger than
    /// the other side accepts, or meant as text and not UTF-8.
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

    /// Current state.
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
