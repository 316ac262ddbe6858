//! Data channels of a connection: opening, closing, and messages in both directions.

use std::{sync::Arc, time::Instant};

use str0m::{
    channel::{ChannelData, ChannelId},
    error::{ProtoError, RtcError as EngineError, SctpError},
};

use super::{Core, Event, channel::Channel};
use crate::{
    RtcError,
    data_channel::{DataChannelError, DataChannelInit, DataChannelState},
};

/// The data channels of a connection, and how many there were.
#[derive(Default)]
pub(super) struct DataChannels {
    /// Those that are not closed yet.
    pub live: Vec<Arc<Channel>>,
    pub opened: u32,
    pub closed: u32,
}

impl Core {
    pub fn create_channel(
        &mut self,
        now: Instant,
        label: &str,
        init: DataChannelInit,
    ) -> Result<Arc<Channel>, RtcError> {
        self.check_open()?;
        if init.max_retransmits.is_some() && init.max_retransmit_time.is_some() {
            return Err(RtcError::internal(
                "max_retransmits and max_retransmit_time cannot be set both",
            ));
        }
        if init.negotiated && !(0..65_535).contains(&init.id) {
            return Err(RtcError::internal(format!(
                "a negotiated data channel needs an id from 0 to 65534, not {}",
                init.id
            )));
        }
        let channel = Arc::new(Channel::new(self.connection.clone(), label, init));
        if let Some(id) = channel.negotiated_id()
            && self
                .data
                .live
                .iter()
                .any(|other| other.stream_id() == i32::from(id))
        {
            return Err(RtcError::internal(format!(
                "the data channel id {id} is in use"
            )));
        }
        self.data.live.push(channel.clone());
        if self.negotiation.has_application() {
            self.open_channels();
            self.poll(now);
        } else {
            self.negotiation.want_application();
            self.events.push_back(Event::NegotiationNeeded);
        }
        Ok(channel)
    }

    /// Opens channels in SCTP that were created before a section for data was agreed on.
    pub(super) fn open_channels(&mut self) {
        if !self.negotiation.has_application() {
            return;
        }
        for channel in &self.data.live {
            let mut account = channel.account.lock();
            if account.id.is_none() && account.state == DataChannelState::Connecting {
                account.id = Some(self.rtc.direct_api().create_data_channel(channel.config()));
            }
        }
    }

    pub(super) fn channel_by_id(&self, id: ChannelId) -> Option<Arc<Channel>> {
        self.data
            .live
            .iter()
            .find(|channel| channel.account.lock().id == Some(id))
            .cloned()
    }

    pub(super) fn channel_message(&mut self, message: ChannelData) {
        let Some(channel) = self.channel_by_id(message.id) else {
            return;
        };
        {
            let mut account = channel.account.lock();
            account.messages_received += 1;
            account.bytes_received += message.data.len() as u64;
        }
        self.events.push_back(Event::ChannelMessage {
            channel,
            data: message.data,
            binary: message.binary,
        });
    }

    pub(super) fn channel_opened(&mut self, id: ChannelId, label: &str) {
        let stream_id = self.rtc.direct_api().sctp_stream_id_by_channel_id(id);
        let stream_id = stream_id.map_or(-1, i32::from);
        let known = self.channel_by_id(id);
        let is_new = known.is_none();
        let channel = known.unwrap_or_else(|| {
            let config = self
                .rtc
                .channel(id)
                .and_then(|channel| channel.config().cloned());
            let init = channel_init(config, stream_id);
            let channel = Arc::new(Channel::new(self.connection.clone(), label, init));
            channel.account.lock().id = Some(id);
            self.data.live.push(channel.clone());
            channel
        });
        {
            let mut account = channel.account.lock();
            account.stream_id = stream_id;
            if account.state != DataChannelState::Connecting {
                // Closed by the application while it was being opened.
                drop(account);
                self.rtc.direct_api().close_data_channel(id);
                return;
            }
            account.state = DataChannelState::Open;
        }
        self.data.opened += 1;
        if is_new {
            self.events.push_back(Event::Channel(channel.clone()));
        }
        self.events
            .push_back(Event::ChannelState(channel, DataChannelState::Open));
    }

    pub(super) fn channel_closed(&mut self, channel: &Arc<Channel>) {
        self.data.live.retain(|other| !Arc::ptr_eq(other, channel));
        {
            let mut account = channel.account.lock();
            account.id = None;
            account.buffered = 0;
            if account.state == DataChannelState::Closed {
                return;
            }
            account.state = DataChannelState::Closed;
        }
        self.data.closed += 1;
        self.events.push_back(Event::ChannelState(
            channel.clone(),
            DataChannelState::Closed,
        ));
    }

    /// Hands a message to SCTP.
    ///
    /// # Errors
    ///
    /// When the channel is not open, its buffer is full, or the message is not of a size that can
    /// be sent.
    pub fn send_data(
        &mut self,
        now: Instant,
        channel: &Channel,
        data: &[u8],
        binary: bool,
    ) -> Result<(), DataChannelError> {
        // SCTP has no empty messages (RFC 8831, section 6.6), and str0m does not send the byte that
        // stands for one: it only counts the message, and the other side then waits for it for
        // ever.
        if data.is_empty() {
            return Err(DataChannelError::Empty);
        }
        if self.state.closed {
            return Err(DataChannelError::Send);
        }
        {
            let mut account = channel.account.lock();
            let (DataChannelState::Open, Some(id)) = (account.state, account.id) else {
                return Err(DataChannelError::Send);
            };
            let written = self
                .rtc
                .channel(id)
                .map(|mut engine| engine.write(binary, data));
            match written {
                Some(Ok(true)) => {}
                Some(Ok(false)) | None => return Err(DataChannelError::Send),
                Some(Err(EngineError::Sctp(SctpError::Proto(
                    ProtoError::ErrOutboundPacketTooLarge,
                )))) => {
                    return Err(DataChannelError::TooLarge {
                        bytes: data.len() as u64,
                        limit: self.negotiation.max_remote_message_size(),
                    });
                }
                Some(Err(error)) => {
                    log::warn!("data channel {}: {error}", channel.label());
                    return Err(DataChannelError::Send);
                }
            }
            account.buffered += data.len() as u64;
            account.messages_sent += 1;
            account.bytes_sent += data.len() as u64;
        }
        self.poll(now);
        Ok(())
    }

    pub fn close_channel(&mut self, now: Instant, channel: &Channel) {
        let Some(shared) = self
            .data
            .live
            .iter()
            .find(|it| std::ptr::eq(Arc::as_ptr(it), channel))
            .cloned()
        else {
            return;
        };
        let id = {
            let mut account = channel.account.lock();
            match (account.state, account.id) {
                (DataChannelState::Open, Some(id)) => {
                    account.state = DataChannelState::Closing;
                    Some(id)
                }
                (DataChannelState::Connecting, Some(_)) => {
                    // It is closed as soon as it is open.
                    account.state = DataChannelState::Closing;
                    return;
                }
                (DataChannelState::Connecting, None) => None,
                _ => return,
            }
        };
        match id {
            Some(id) => {
                self.rtc.direct_api().close_data_channel(id);
                let state = DataChannelState::Closing;
                self.events.push_back(Event::ChannelState(shared, state));
                self.poll(now);
            }
            None => self.channel_closed(&shared),
        }
    }

    /// Finds out which bytes have left the buffers of SCTP. Every accepted byte is reported exactly
    /// once.
    pub(super) fn account_for_channels(&mut self) {
        for channel in &self.data.live {
            let mut account = channel.account.lock();
            let (Some(id), true) = (account.id, account.buffered > 0) else {
                continue;
            };
            let Some(mut engine) = self.rtc.channel(id) else {
                continue;
            };
            let left = (engine.buffered_amount() as u64).min(account.buffered);
            let gone = account.buffered - left;
            account.buffered = left;
            if gone > 0 {
                self.events
                    .push_back(Event::ChannelDrained(channel.clone(), gone));
            }
        }
    }

    pub fn flush_early_messages(&mut self) {
        self.events.push_back(Event::FlushEarlyMessages);
    }

    pub fn channels(&self) -> &[Arc<Channel>] {
        &self.data.live
    }
}

fn channel_init(config: Option<str0m::channel::ChannelConfig>, stream_id: i32) -> DataChannelInit {
    use str0m::channel::Reliability;
    let mut init = DataChannelInit {
        id: stream_id,
        ..DataChannelInit::default()
    };
    if let Some(config) = config {
        init.ordered = config.ordered;
        init.protocol = config.protocol;
        match config.reliability {
            Reliability::Reliable => {}
            Reliability::MaxPacketLifetime { lifetime } => {
                init.max_retransmit_time = Some(i32::from(lifetime));
            }
            Reliability::MaxRetransmits { retransmits } => {
                init.max_retransmits = Some(i32::from(retransmits));
            }
        }
    }
    init
}
