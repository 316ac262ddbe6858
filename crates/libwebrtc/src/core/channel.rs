//! A data channel: its state, its byte counts, its callbacks.

use std::{collections::VecDeque, sync::Weak};

use parking_lot::Mutex;
use str0m::channel::{ChannelConfig, ChannelId, Reliability};

use crate::{
    callback::CallbackSlot,
    connection::Connection,
    data_channel::{
        DataBuffer, DataChannelError, DataChannelInit, DataChannelState, OnBufferedAmountChange,
        OnMessage, OnStateChange,
    },
};

/// How many bytes wait for an application that has not set a callback for messages yet. As much as
/// a sender may queue; messages beyond that are dropped, with a warning in the log.
const MAX_EARLY_BYTES: usize = 16 * 1024 * 1024;

/// Shared by the handles of the application and the core of the connection.
pub(crate) struct Channel {
    connection: Weak<Connection>,
    label: String,
    init: DataChannelInit,
    pub(super) account: Mutex<Account>,
    early: Mutex<Early>,
    pub on_state: CallbackSlot<OnStateChange>,
    pub on_buffered_amount: CallbackSlot<OnBufferedAmountChange>,
    on_message: CallbackSlot<OnMessage>,
}

/// What changes during the life of a channel.
pub(super) struct Account {
    pub state: DataChannelState,
    /// SCTP stream id, or -1.
    pub stream_id: i32,
    /// Number that str0m gave the channel, once SCTP is negotiated.
    pub id: Option<ChannelId>,
    /// Bytes handed to SCTP and not yet gone.
    pub buffered: u64,
    pub messages_sent: u32,
    pub bytes_sent: u64,
    pub messages_received: u32,
    pub bytes_received: u64,
}

#[derive(Default)]
struct Early {
    messages: VecDeque<(Vec<u8>, bool)>,
    bytes: usize,
}

impl Channel {
    pub fn new(connection: Weak<Connection>, label: &str, init: DataChannelInit) -> Self {
        let account = Account {
            state: DataChannelState::Connecting,
            stream_id: if init.negotiated { init.id } else { -1 },
            id: None,
            buffered: 0,
            messages_sent: 0,
            bytes_sent: 0,
            messages_received: 0,
            bytes_received: 0,
        };
        Self {
            connection,
            label: label.to_owned(),
            init,
            account: Mutex::new(account),
            early: Mutex::default(),
            on_state: CallbackSlot::default(),
            on_buffered_amount: CallbackSlot::default(),
            on_message: CallbackSlot::default(),
        }
    }

    pub fn send(&self, data: &[u8], binary: bool) -> Result<(), DataChannelError> {
        let connection = self.connection.upgrade().ok_or(DataChannelError::Send)?;
        connection.send_data(self, data, binary)
    }

    pub fn close(&self) {
        if let Some(connection) = self.connection.upgrade() {
            connection.close_channel(self);
        }
    }

    pub fn label(&self) -> &str {
        &self.label
    }

    pub fn protocol(&self) -> &str {
        &self.init.protocol
    }

    pub fn stream_id(&self) -> i32 {
        self.account.lock().stream_id
    }

    pub fn state(&self) -> DataChannelState {
        self.account.lock().state
    }

    pub fn buffered_amount(&self) -> u64 {
        self.account.lock().buffered
    }

    /// Sets the callback; the driver then hands over what came before.
    pub fn set_on_message(&self, callback: Option<OnMessage>) {
        let is_set = callback.is_some();
        self.on_message.set(callback);
        if is_set
            && !self.early.lock().messages.is_empty()
            && let Some(connection) = self.connection.upgrade()
        {
            connection.flush_early_messages();
        }
    }

    /// Hands a message to the application, or keeps it. Called by the driver only, which keeps the
    /// order.
    pub fn deliver(&self, data: Vec<u8>, binary: bool) {
        {
            let mut early = self.early.lock();
            if early.bytes + data.len() > MAX_EARLY_BYTES {
                log::warn!(
                    "a message of {} bytes on data channel {} is dropped: nobody reads the channel",
                    data.len(),
                    self.label
                );
                return;
            }
            early.bytes += data.len();
            early.messages.push_back((data, binary));
        }
        self.flush_early();
    }

    /// Hands over what is kept. Called by the driver only.
    pub fn flush_early(&self) {
        loop {
            let Some((data, binary)) = self.early.lock().messages.pop_front() else {
                return;
            };
            let called = self.on_message.call(|callback| {
                callback(DataBuffer {
                    data: &data,
                    binary,
                });
            });
            let mut early = self.early.lock();
            if !called {
                early.messages.push_front((data, binary));
                return;
            }
            early.bytes -= data.len();
        }
    }

    /// The stream id that both sides must agree on beforehand.
    pub(super) fn negotiated_id(&self) -> Option<u16> {
        if self.init.negotiated {
            u16::try_from(self.init.id).ok()
        } else {
            None
        }
    }

    pub(super) fn config(&self) -> ChannelConfig {
        let limit = |value: i32| u16::try_from(value.max(0)).unwrap_or(u16::MAX);
        let reliability = match (self.init.max_retransmits, self.init.max_retransmit_time) {
            (Some(retransmits), _) => Reliability::MaxRetransmits {
                retransmits: limit(retransmits),
            },
            (None, Some(lifetime)) => Reliability::MaxPacketLifetime {
                lifetime: limit(lifetime),
            },
            (None, None) => Reliability::Reliable,
        };
        ChannelConfig {
            label: self.label.clone(),
            ordered: self.init.ordered,
            reliability,
            negotiated: self.negotiated_id(),
            protocol: self.init.protocol.clone(),
        }
    }
}
