//! A data channel: its state, its accounts of bytes, its callbacks.

use std::convert::Infallible;

use crate::{callback::CallbackSlot, data_channel::*};

pub(crate) struct Channel {
    pub on_state: CallbackSlot<OnStateChange>,
    pub on_buffered_amount: CallbackSlot<OnBufferedAmountChange>,
    never: Infallible,
}

impl Channel {
    pub fn send(&self, _data: &[u8], _binary: bool) -> bool {
        match self.never {}
    }
    pub fn stream_id(&self) -> i32 {
        match self.never {}
    }
    pub fn label(&self) -> &str {
        match self.never {}
    }
    pub fn state(&self) -> DataChannelState {
        match self.never {}
    }
    pub fn close(&self) {
        match self.never {}
    }
    pub fn buffered_amount(&self) -> u64 {
        match self.never {}
    }
    pub fn set_on_message(&self, _callback: Option<OnMessage>) {
        match self.never {}
    }
}
