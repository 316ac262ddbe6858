//! One peer connection, shared by the application's handles and the driver task.
//!
//! The [`Core`] lies behind a mutex, because the application asks from any thread and expects an
//! answer at once. Nothing waits while holding it, and no callback runs under it: what the core
//! wants to send or to tell is taken by the driver task, which is woken after every change.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use parking_lot::Mutex;
use str0m::media::Mid;
use tokio::sync::Notify;

use crate::{
    MediaType, RtcError,
    audio::encoder::EncodedAudio,
    callback::CallbackSlot,
    core::{Core, channel::Channel},
    data_channel::{DataChannel, DataChannelError, DataChannelInit},
    driver,
    ice_candidate::IceCandidate,
    jsep::negotiation::Redundancy,
    media_stream_track::MediaStreamTrack,
    peer_connection::{
        BitrateSettings, IceConnectionState, IceGatheringState, OfferOptions, OnConnectionChange,
        OnDataChannel, OnIceCandidate, OnIceCandidateError, OnIceConnectionChange,
        OnIceGatheringChange, OnNegotiationNeeded, OnSignalingChange, OnTrack, PeerConnectionState,
        SignalingState,
    },
    peer_connection_factory::{ContinualGatheringPolicy, IceServer, RtcConfiguration},
    rtp::{Receiver, Sender, Transceiver},
    rtp_sender::RtpSender,
    rtp_transceiver::{RtpTransceiver, RtpTransceiverInit},
    session_description::SessionDescription,
    stats::RtcStats,
};

/// Callbacks of the application.
#[derive(Default)]
pub(crate) struct Callbacks {
    pub connection_change: CallbackSlot<OnConnectionChange>,
    pub data_channel: CallbackSlot<OnDataChannel>,
    pub ice_candidate: CallbackSlot<OnIceCandidate>,
    pub ice_candidate_error: CallbackSlot<OnIceCandidateError>,
    pub ice_connection_change: CallbackSlot<OnIceConnectionChange>,
    pub ice_gathering_change: CallbackSlot<OnIceGatheringChange>,
    pub negotiation_needed: CallbackSlot<OnNegotiationNeeded>,
    pub signaling_change: CallbackSlot<OnSignalingChange>,
    pub track: CallbackSlot<OnTrack>,
}

/// One peer connection as its handles and its driver share it.
pub(crate) struct Connection {
    core: Mutex<Core>,
    pub(crate) callbacks: Callbacks,
    /// Wakes the driver.
    pub(crate) wake: Notify,
    config: Mutex<RtcConfiguration>,
}

impl Connection {
    /// Opens the sockets and starts the driver.
    pub fn open(config: RtcConfiguration) -> Result<Arc<Self>, RtcError> {
        let sockets = driver::Sockets::open()?;
        let connection = Arc::new_cyclic(|this: &Weak<Self>| {
            let mut core = Core::new(Instant::now(), this.clone());
            core.set_policy(config.ice_transport_type);
            sockets.add_candidates(&mut core);
            Self {
                core: Mutex::new(core),
                callbacks: Callbacks::default(),
                wake: Notify::new(),
                config: Mutex::new(config),
            }
        });
        driver::start(connection.clone(), sockets);
        Ok(connection)
    }

    /// Changes the core and wakes the driver, which sends and tells what comes of it.
    fn change<T>(&self, change: impl FnOnce(&mut Core, Instant) -> T) -> T {
        let result = change(&mut self.core.lock(), Instant::now());
        self.wake.notify_one();
        result
    }

    /// For the driver, which needs no waking.
    pub fn with_core<T>(&self, act: impl FnOnce(&mut Core, Instant) -> T) -> T {
        act(&mut self.core.lock(), Instant::now())
    }

    /// Whether new network interfaces are searched for while the connection lives.
    pub fn gathers_continually(&self) -> bool {
        let policy = self.config.lock().continual_gathering_policy;
        policy == ContinualGatheringPolicy::GatherContinually
    }

    /// The STUN and TURN servers of the configuration.
    pub fn ice_servers(&self) -> Vec<IceServer> {
        self.config.lock().ice_servers.clone()
    }

    /// Attaches and detaches audio as negotiated.
    fn sync_transceivers(&self) {
        let transceivers: Vec<_> = self.core.lock().transceivers().cloned().collect();
        for transceiver in transceivers {
            transceiver.sync();
        }
    }

    pub fn set_configuration(&self, config: RtcConfiguration) -> Result<(), RtcError> {
        self.change(|core, _| {
            core.check_open()?;
            core.set_policy(config.ice_transport_type);
            Ok::<_, RtcError>(())
        })?;
        *self.config.lock() = config;
        Ok(())
    }

    pub fn set_bitrate(&self, settings: BitrateSettings) -> Result<(), RtcError> {
        self.core.lock().check_open()?;
        let BitrateSettings {
            min_bitrate_bps,
            start_bitrate_bps,
            max_bitrate_bps,
        } = settings;
        let in_order = |low: Option<u64>, high: Option<u64>| match (low, high) {
            (Some(low), Some(high)) => low <= high,
            _ => true,
        };
        if in_order(min_bitrate_bps, start_bitrate_bps)
            && in_order(start_bitrate_bps, max_bitrate_bps)
            && in_order(min_bitrate_bps, max_bitrate_bps)
        {
            Ok(())
        } else {
            Err(RtcError::internal(
                "bitrates must not fall from min over start to max",
            ))
        }
    }

    pub fn create_offer(&self, options: &OfferOptions) -> Result<SessionDescription, RtcError> {
        self.change(|core, _| core.create_offer(options.ice_restart))
    }

    pub fn create_answer(&self) -> Result<SessionDescription, RtcError> {
        self.change(|core, _| core.create_answer())
    }

    pub fn set_local_description(&self, desc: SessionDescription) -> Result<(), RtcError> {
        let servers = self.ice_servers();
        self.change(|core, now| core.set_local_description(now, desc, &servers))?;
        self.sync_transceivers();
        Ok(())
    }

    pub fn set_remote_description(&self, desc: SessionDescription) -> Result<(), RtcError> {
        self.change(|core, now| core.set_remote_description(now, desc))?;
        self.sync_transceivers();
        Ok(())
    }

    pub fn add_ice_candidate(&self, candidate: &IceCandidate) -> Result<(), RtcError> {
        self.change(|core, now| core.add_remote_candidate(now, &candidate.candidate()))
    }

    pub fn create_data_channel(
        &self,
        label: &str,
        init: DataChannelInit,
    ) -> Result<DataChannel, RtcError> {
        let channel = self.change(|core, now| core.create_channel(now, label, init))?;
        Ok(DataChannel { channel })
    }

    pub fn send_data(
        &self,
        channel: &Channel,
        data: &[u8],
        binary: bool,
    ) -> Result<(), DataChannelError> {
        self.change(|core, now| core.send_data(now, channel, data, binary))
    }

    pub fn close_channel(&self, channel: &Channel) {
        self.change(|core, now| core.close_channel(now, channel));
    }

    pub fn flush_early_messages(&self) {
        self.change(|core, _| core.flush_early_messages());
    }

    pub fn send_audio(&self, mid: Mid, payload_type: u8, packet: EncodedAudio) {
        self.change(|core, now| core.send_audio(now, mid, payload_type, packet));
    }

    pub fn add_transceiver(
        &self,
        kind: MediaType,
        track: Option<MediaStreamTrack>,
        init: RtpTransceiverInit,
        from_add_track: bool,
    ) -> Result<RtpTransceiver, RtcError> {
        let transceiver =
            self.change(|core, _| core.add_transceiver(kind, track, init, from_add_track))?;
        Ok(RtpTransceiver { transceiver })
    }

    pub fn remove_track(&self, sender: &RtpSender) -> Result<(), RtcError> {
        if !self.change(|core, _| core.remove_sender(&sender.sender))? {
            return Err(RtcError::internal(
                "the sender does not belong to this connection",
            ));
        }
        sender.sender.set_track(None)
    }

    pub fn set_redundancy(&self, transceiver: &Transceiver, redundancy: Redundancy) {
        self.core.lock().set_redundancy(transceiver, redundancy);
    }

    pub fn stop_transceiver(&self, transceiver: &Transceiver) -> Result<(), RtcError> {
        self.change(|core, _| core.stop_transceiver(transceiver))?;
        transceiver.end();
        Ok(())
    }

    pub fn stats(&self) -> Result<Vec<RtcStats>, RtcError> {
        Ok(self.core.lock().report(Instant::now()))
    }

    pub fn sender_stats(&self, sender: &Arc<Sender>) -> Result<Vec<RtcStats>, RtcError> {
        Ok(self.core.lock().sender_report(sender))
    }

    pub fn receiver_stats(&self, receiver: &Arc<Receiver>) -> Result<Vec<RtcStats>, RtcError> {
        Ok(self.core.lock().receiver_report(receiver))
    }

    /// Closes the connection. The driver sends what must still be sent and then closes the sockets.
    pub fn close(&self) {
        let transceivers: Vec<_> = self.change(|core, now| {
            if core.is_closed() {
                return vec![];
            }
            core.close(now);
            core.transceivers().cloned().collect()
        });
        for transceiver in transceivers {
            transceiver.end();
        }
    }

    pub fn restart_ice(&self) {
        self.change(|core, _| core.request_ice_restart());
    }

    pub fn connection_state(&self) -> PeerConnectionState {
        self.core.lock().connection_state()
    }

    pub fn ice_connection_state(&self) -> IceConnectionState {
        self.core.lock().ice_state()
    }

    pub fn ice_gathering_state(&self) -> IceGatheringState {
        self.core.lock().gathering_state()
    }

    pub fn signaling_state(&self) -> SignalingState {
        self.core.lock().signaling_state()
    }

    pub fn current_local_description(&self) -> Option<SessionDescription> {
        self.core.lock().current_local_description()
    }

    pub fn current_remote_description(&self) -> Option<SessionDescription> {
        self.core.lock().current_remote_description()
    }

    /// All transceivers; none when closed, so that nobody uses what has ended.
    pub fn transceivers(&self) -> Vec<RtpTransceiver> {
        let core = self.core.lock();
        if core.is_closed() {
            return vec![];
        }
        core.transceivers()
            .map(|transceiver| RtpTransceiver {
                transceiver: transceiver.clone(),
            })
            .collect()
    }
}
