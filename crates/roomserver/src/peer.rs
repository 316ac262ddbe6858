//! A participant's task: it owns the peer connections, their sockets, and the signalling
//! connection.
//!
//! It handles messages of the room ([`ToPeer`]), requests of the client, datagrams of the sockets
//! and timers, and ends when the participant leaves. The room knows everything about the
//! participant that others may see; this task knows how to reach the client.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use livekit_protocol as proto;
use prost::Message as _;
use proto::DisconnectReason;
use proto::leave_request::Action;
use proto::request_response::{Reason as Refusal, Request as Refused};
use proto::signal_request::Message as Request;
use proto::signal_response::Message as Signal;
use proto::simulate_scenario::Scenario;
use str0m::Candidate;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::ids;
use crate::network::{Datagram, Network};
use crate::room::{INBOX_CAPACITY, Inbox, JoinSpec, MEDIA_CAPACITY, MediaPacket, Room, ToPeer};
use crate::rooms::{ParticipantChange, RoomError};
use crate::server::Server;
use crate::signal::{Connection, Init, Resumed};
use crate::token::Claims;
use crate::transport::{Event, Lane, OpusWish, Outgoing, Role, Transport, offered_tracks};

/// Sent to clients: they ping this often and give up after the time-out (`room.go`).
const PING_INTERVAL_S: i32 = 5;
const PING_TIMEOUT_S: i32 = 15;
/// A client that does not connect its media in this time is removed (`room.go`, `Join`).
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// A client without signalling that has not connected its media yet has given up.
const ABANDONED_TIMEOUT: Duration = Duration::from_secs(15);
/// A client that lost its media may come back in this time (`participant.go`, the disconnect
/// timer).
const LOST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may stay whose media works but whose signalling does not come back.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(60);
/// The client's token is renewed this often, so that it can reconnect late in a call.
const TOKEN_REFRESH_INTERVAL: Duration = Duration::from_secs(300);
/// How long the simulated loss of signalling on resume stays armed (`room.go`).
const SIMULATION_TIMEOUT: Duration = Duration::from_secs(10);
/// How many simulated losses in a row the service layer of the real server would retry through.
const SIMULATED_LOSSES: u32 = 3;
/// Datagrams and packets that are handled before the connections are polled again.
const BATCH: usize = 64;
/// Tracks that wait for their media. A client that announces more than this never offers them.
const MAX_PENDING_TRACKS: usize = 64;

/// Puts a participant into a room and starts its task.
pub(crate) async fn spawn(server: Server, room: Arc<Room>, init: Init, connection: Connection) {
    let options = server.options();
    let opened = Network::open(options, server.tasks()).await;
    let network = match opened {
        Ok(network) => network,
        Err(error) => {
            tracing::error!("no sockets for a participant: {error}");
            refuse(&connection, DisconnectReason::JoinFailure);
            return;
        }
    };
    match Peer::join(server.clone(), room, init, connection, network) {
        Ok(peer) => {
            server.tasks().spawn(peer.run());
        }
        Err((error, connection)) => {
            tracing::info!("a participant is not let in: {error}");
            refuse(&connection, DisconnectReason::JoinFailure);
        }
    }
}

fn refuse(connection: &Connection, reason: DisconnectReason) {
    let message = Some(Signal::Leave(leave_request(reason, Action::Disconnect)));
    let _ = connection
        .outlet
        .try_send(proto::SignalResponse { message });
}

fn leave_request(reason: DisconnectReason, action: Action) -> proto::LeaveRequest {
    let mut leave = proto::LeaveRequest {
        can_reconnect: action == Action::Reconnect,
        ..Default::default()
    };
    leave.set_reason(reason);
    leave.set_action(action);
    leave
}

/// Why the task ends.
struct End {
    reason: DisconnectReason,
    /// The action that the client is told to take; `None` if it is told nothing.
    farewell: Option<Action>,
}

/// State of the media path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MediaState {
    /// Not connected yet, since the join.
    Connecting {
        since: Instant,
    },
    Connected,
    /// It was connected and is not now.
    Lost {
        since: Instant,
    },
}

/// State of the signalling path.
enum SignalState {
    Connected(Connection),
    /// The client may come back.
    Lost {
        since: Instant,
    },
}

/// A track that the client has announced, in the order of announcement.
struct PendingTrack {
    cid: String,
    info: proto::TrackInfo,
}

struct PublishedTrack {
    sid: Arc<str>,
    wish: OpusWish,
}

/// Simulated losses of signalling that the client has asked for.
#[derive(Default)]
struct Simulation {
    drop_after_resume: Option<Instant>,
    drop_before_resume: Option<(Instant, u32)>,
}

/// A participant's peer connections.
enum Connections {
    One(Box<Transport>),
    Two {
        publisher: Box<Transport>,
        subscriber: Box<Transport>,
    },
}

impl Connections {
    fn publisher(&mut self) -> &mut Transport {
        match self {
            Self::One(both) => both,
            Self::Two { publisher, .. } => publisher,
        }
    }

    fn subscriber(&mut self) -> &mut Transport {
        match self {
            Self::One(both) => both,
            Self::Two { subscriber, .. } => subscriber,
        }
    }

    fn all(&mut self) -> Vec<&mut Transport> {
        match self {
            Self::One(both) => vec![both],
            Self::Two {
                publisher,
                subscriber,
            } => vec![publisher, subscriber],
        }
    }
}

struct Peer {
    server: Server,
    room: Arc<Room>,
    claims: Claims,
    sid: String,
    identity: String,
    control: mpsc::Receiver<ToPeer>,
    media: mpsc::Receiver<MediaPacket>,
    network: Network,
    connections: Connections,
    /// Whether the subscriber connection is the one that makes the participant active.
    subscriber_primary: bool,
    signal: SignalState,
    media_state: MediaState,
    pending_tracks: Vec<PendingTrack>,
    published: HashMap<String, PublishedTrack>,
    last_offer_id: u32,
    next_token_refresh: Instant,
    simulation: Simulation,
    ended: Option<End>,
}

impl Peer {
    fn join(
        server: Server,
        room: Arc<Room>,
        init: Init,
        connection: Connection,
        network: Network,
    ) -> Result<Self, (RoomError, Connection)> {
        let now = Instant::now();
        let (control_sender, control) = mpsc::channel(INBOX_CAPACITY);
        let (media_sender, media) = mpsc::channel(MEDIA_CAPACITY);
        let permission = init.claims.permission();
        let can_subscribe = permission.can_subscribe;
        let can_publish = permission.can_publish;
        let mut attributes = init.claims.attributes.clone();
        let mut metadata = init.claims.metadata.clone();
        // The permission for this was checked on joining. An empty value does not delete what the
        // token says.
        let said = init
            .attributes
            .into_iter()
            .filter(|(_, value)| !value.is_empty());
        attributes.extend(said);
        if !init.metadata.is_empty() {
            metadata = init.metadata;
        }
        let spec = JoinSpec {
            identity: init.claims.identity().to_owned(),
            name: init.claims.name.clone(),
            kind: init.claims.participant_kind(),
            metadata,
            attributes,
            permission,
            auto_subscribe: init.auto_subscribe,
            client_protocol: init.client.client_protocol,
            capabilities: init.client.capabilities.clone(),
            inbox: Inbox {
                control: control_sender,
                media: media_sender,
            },
        };
        let identity = spec.identity.clone();
        let joined = match room.join(spec) {
            Ok(joined) => joined,
            Err(error) => return Err((error, connection)),
        };
        let candidates = network.candidates();
        let connections = if init.single_peer_connection {
            Connections::One(Box::new(Transport::new(Role::Both, &candidates, now)))
        } else {
            Connections::Two {
                publisher: Box::new(Transport::new(Role::Publisher, &candidates, now)),
                subscriber: Box::new(Transport::new(Role::Subscriber, &candidates, now)),
            }
        };
        // With two connections the client waits for the one on which it receives, unless it may not
        // subscribe.
        let subscriber_primary = !init.single_peer_connection && can_subscribe;
        let mut peer = Self {
            sid: joined.participant.sid.clone(),
            identity,
            server,
            room,
            claims: init.claims,
            control,
            media,
            network,
            connections,
            subscriber_primary,
            signal: SignalState::Connected(connection),
            media_state: MediaState::Connecting { since: now },
            pending_tracks: Vec::new(),
            published: HashMap::new(),
            last_offer_id: 0,
            next_token_refresh: now + TOKEN_REFRESH_INTERVAL,
            simulation: Simulation::default(),
            ended: None,
        };
        tracing::info!(
            room.name = %peer.room.name(), participant.identity = %peer.identity, participant.sid = %peer.sid,
            "participant {} joined room {}", peer.identity, peer.room.name()
        );
        let info = peer.server.info().clone();
        peer.send(Signal::Join(proto::JoinResponse {
            room: Some(joined.room),
            participant: Some(joined.participant),
            other_participants: joined.others,
            server_version: info.version.clone(),
            subscriber_primary,
            ping_interval: PING_INTERVAL_S,
            ping_timeout: PING_TIMEOUT_S,
            server_info: Some(info),
            enabled_publish_codecs: crate::room::enabled_codecs(),
            fast_publish: can_publish,
            ..Default::default()
        }));
        for request in init.add_tracks {
            peer.add_track(request);
        }
        // Subscriptions that the room has made already are in the inbox and belong into the first
        // answer.
        peer.drain_control();
        if let Some(offer) = init.publisher_offer {
            peer.on_offer(&offer);
        }
        Ok(peer)
    }

    async fn run(mut self) {
        let stop = self.server.stop().clone();
        loop {
            self.negotiate();
            self.poll(Instant::now());
            if self.ended.is_some() {
                break;
            }
            let deadline = self.deadline();
            tokio::select! {
                biased;
                message = self.control.recv() => match message {
                    Some(message) => {
                        self.on_room(message);
                        self.drain_control();
                    }
                    None => self.end(DisconnectReason::UnknownReason, None),
                },
                () = stop.cancelled() => self.end(DisconnectReason::ServerShutdown, Some(Action::Disconnect)),
                request = next_request(&mut self.signal) => self.on_request(request),
                Some(packet) = self.media.recv() => self.on_media(&packet),
                datagram = self.network.receive() => self.on_datagrams(datagram),
                () = tokio::time::sleep_until(deadline.into()) => self.on_time(Instant::now()),
            }
        }
        self.finish();
    }

    fn finish(mut self) {
        let Some(end) = self.ended.take() else { return };
        if let Some(action) = end.farewell {
            self.send(Signal::Leave(leave_request(end.reason, action)));
        }
        for transport in self.connections.all() {
            transport.close();
        }
        // Once more, so that the end of the peer connections is sent.
        self.poll(Instant::now());
        self.room.leave(&self.sid, end.reason);
        tracing::info!(
            room.name = %self.room.name(), participant.identity = %self.identity, participant.sid = %self.sid,
            reason = end.reason.as_str_name(),
            "participant {} left room {}: {}", self.identity, self.room.name(), end.reason.as_str_name()
        );
    }

    fn end(&mut self, reason: DisconnectReason, farewell: Option<Action>) {
        if self.ended.is_none() {
            self.ended = Some(End { reason, farewell });
        }
    }

    fn deadline(&mut self) -> Instant {
        let mut deadline = self.next_token_refresh;
        for transport in self.connections.all() {
            deadline = deadline.min(transport.deadline());
        }
        if let Some((at, _)) = self.life_deadline() {
            deadline = deadline.min(at);
        }
        deadline
    }

    /// When the participant is given up if nothing changes, and why.
    fn life_deadline(&self) -> Option<(Instant, DisconnectReason)> {
        let by_media = match self.media_state {
            MediaState::Connecting { since } => {
                Some((since + JOIN_TIMEOUT, DisconnectReason::JoinFailure))
            }
            MediaState::Connected => None,
            MediaState::Lost { since } => {
                Some((since + LOST_TIMEOUT, DisconnectReason::ConnectionTimeout))
            }
        };
        let by_signal = match (&self.signal, self.media_state) {
            (SignalState::Connected(_), _) => None,
            (SignalState::Lost { since }, MediaState::Connecting { .. }) => {
                Some((*since + ABANDONED_TIMEOUT, DisconnectReason::SignalClose))
            }
            (SignalState::Lost { since }, _) => {
                Some((*since + SIGNAL_TIMEOUT, DisconnectReason::SignalClose))
            }
        };
        by_media
            .into_iter()
            .chain(by_signal)
            .min_by_key(|(at, _)| *at)
    }

    fn on_time(&mut self, now: Instant) {
        if let Some((at, reason)) = self.life_deadline()
            && now >= at
        {
            self.end(reason, Some(Action::Disconnect));
        }
        if now >= self.next_token_refresh {
            self.next_token_refresh = now + TOKEN_REFRESH_INTERVAL;
            self.refresh_token();
        }
    }

    fn send(&mut self, message: Signal) {
        let SignalState::Connected(connection) = &self.signal else {
            return;
        };
        let response = proto::SignalResponse {
            message: Some(message),
        };
        match connection.outlet.try_send(response) {
            Ok(()) => {}
            // The client is gone. What it sent before is still read, above all its request to
            // leave; then its requests end.
            Err(TrySendError::Closed(_)) => {}
            // The client does not read. It gets the whole state again when it reconnects.
            Err(TrySendError::Full(_)) => {
                self.signal = SignalState::Lost {
                    since: Instant::now(),
                };
            }
        }
    }

    fn refresh_token(&mut self) {
        let Ok(info) = self.room.participant(&self.identity) else {
            return;
        };
        match self.server.keys().sign(&self.claims.refreshed(&info)) {
            Ok(token) => self.send(Signal::RefreshToken(token)),
            Err(error) => tracing::error!("a token was not renewed: {error}"),
        }
    }

    // From the room.

    fn drain_control(&mut self) {
        while let Ok(message) = self.control.try_recv() {
            self.on_room(message);
        }
    }

    fn on_room(&mut self, message: ToPeer) {
        match message {
            ToPeer::Signal(signal) => self.send(*signal),
            ToPeer::Subscribe(subscription) => {
                self.connections.subscriber().subscribe(subscription)
            }
            ToPeer::Unsubscribe { track_sid } => {
                self.connections.subscriber().unsubscribe(&track_sid)
            }
            ToPeer::RevokeTrack { track_sid } => {
                self.published.retain(|_, track| *track.sid != *track_sid);
                self.send(Signal::TrackUnpublished(proto::TrackUnpublishedResponse {
                    track_sid,
                }));
            }
            ToPeer::ClaimsChanged => self.refresh_token(),
            ToPeer::Data { lane, packet } => self.connections.subscriber().send_data(lane, packet),
            ToPeer::Close { reason } => self.end(reason, Some(Action::Disconnect)),
            ToPeer::Resume(resumed) => self.on_resume(*resumed),
        }
    }

    fn on_media(&mut self, first: &MediaPacket) {
        let now = Instant::now();
        self.connections.subscriber().send_media(first, now);
        for _ in 0..BATCH {
            let Ok(packet) = self.media.try_recv() else {
                break;
            };
            self.connections.subscriber().send_media(&packet, now);
        }
    }

    // From the sockets.

    fn on_datagrams(&mut self, first: Datagram) {
        self.on_datagram(&first);
        for _ in 0..BATCH {
            let Some(datagram) = self.network.try_receive() else {
                break;
            };
            self.on_datagram(&datagram);
        }
    }

    fn on_datagram(&mut self, datagram: &Datagram) {
        let now = Instant::now();
        for transport in self.connections.all() {
            if transport.receive(datagram, now) {
                return;
            }
        }
    }

    fn poll(&mut self, now: Instant) {
        let mut events = Vec::new();
        let network = &self.network;
        let is_one = matches!(self.connections, Connections::One(_));
        for (index, transport) in self.connections.all().into_iter().enumerate() {
            let mut of_this = Vec::new();
            transport.poll(now, network, &mut of_this);
            let primary = is_one || (index == 1) == self.subscriber_primary;
            events.extend(of_this.into_iter().map(|event| (primary, event)));
        }
        for (primary, event) in events {
            self.on_transport(primary, event, now);
        }
    }

    fn on_transport(&mut self, primary: bool, event: Event, now: Instant) {
        match event {
            Event::Connected | Event::Found if primary => {
                let connected = match &mut self.connections {
                    Connections::One(both) => both.is_connected(),
                    Connections::Two { subscriber, .. } if self.subscriber_primary => {
                        subscriber.is_connected()
                    }
                    Connections::Two { publisher, .. } => publisher.is_connected(),
                };
                if connected {
                    self.media_state = MediaState::Connected;
                    self.room.set_active(&self.sid);
                    self.room
                        .set_quality(&self.sid, proto::ConnectionQuality::Excellent);
                }
            }
            Event::Lost | Event::Closed if primary => {
                if self.media_state == MediaState::Connected {
                    self.media_state = MediaState::Lost { since: now };
                    self.room
                        .set_quality(&self.sid, proto::ConnectionQuality::Lost);
                }
            }
            Event::Connected | Event::Found | Event::Lost | Event::Closed => {}
            Event::Media { mid, packet } => {
                if let Some(track) = self.published.get(&*mid.to_string()) {
                    let packet = MediaPacket {
                        track_sid: Arc::clone(&track.sid),
                        ..packet
                    };
                    self.room.forward(&self.sid, &packet);
                }
            }
            Event::Data {
                lane: Lane::Packets(kind),
                contents,
            } => match proto::DataPacket::decode(contents.as_slice()) {
                Ok(packet) => self.room.relay_data(&self.sid, kind, packet),
                Err(error) => {
                    tracing::warn!("a data packet of {} cannot be read: {error}", self.identity)
                }
            },
            Event::Data {
                lane: Lane::DataTrack,
                contents,
            } => {
                self.room.relay_data_track(&self.sid, &contents);
            }
            Event::Loss(loss) => self.room.set_quality(&self.sid, quality_of_loss(loss)),
        }
    }

    // From the client.

    fn on_request(&mut self, request: Option<proto::SignalRequest>) {
        let Some(request) = request else {
            self.signal = SignalState::Lost {
                since: Instant::now(),
            };
            return;
        };
        match request.message {
            Some(Request::Offer(offer)) => self.on_offer(&offer),
            Some(Request::Answer(answer)) => self.on_answer(&answer),
            Some(Request::Trickle(trickle)) => self.on_trickle(&trickle),
            Some(Request::AddTrack(request)) => self.add_track(request),
            Some(Request::Mute(mute)) => self.on_mute(&mute),
            Some(Request::Subscription(update)) => self.on_subscription(&update),
            Some(Request::SubscriptionPermission(permission)) => {
                self.room.set_subscription_permission(&self.sid, permission);
            }
            Some(Request::SyncState(state)) => self.on_sync_state(state),
            Some(Request::Leave(leave)) => self.on_leave(&leave),
            Some(Request::UpdateMetadata(update)) => self.on_update_metadata(update),
            Some(Request::UpdateAudioTrack(update)) => {
                self.room
                    .change_track(&self.sid, &update.track_sid, |track| {
                        track.audio_features = update.features
                    });
            }
            Some(Request::Simulate(simulate)) => self.on_simulate(simulate.scenario),
            Some(Request::Ping(_)) => {
                self.send(Signal::Pong(chrono::Utc::now().timestamp_millis()))
            }
            Some(Request::PingReq(ping)) => self.send(Signal::PongResp(proto::Pong {
                last_ping_timestamp: ping.timestamp,
                timestamp: chrono::Utc::now().timestamp_millis(),
            })),
            Some(Request::PublishDataTrackRequest(request)) => self.publish_data_track(request),
            Some(Request::UnpublishDataTrackRequest(request)) => self.unpublish_data_track(request),
            Some(Request::UpdateDataSubscription(update)) => self.on_data_subscription(&update),
            // Audio is sent whole or not at all; quality settings are for video.
            Some(Request::TrackSetting(_) | Request::UpdateVideoTrack(_)) => {}
            Some(other) => {
                tracing::debug!("a request of {} is not supported: {other:?}", self.identity)
            }
            None => {}
        }
    }

    fn on_leave(&mut self, leave: &proto::LeaveRequest) {
        // A client that leaves may give a reason, within limits (signalhandler.go).
        let reason = match leave.reason() {
            reason @ (DisconnectReason::UserUnavailable
            | DisconnectReason::UserRejected
            | DisconnectReason::AgentError) => reason,
            _ => DisconnectReason::ClientInitiated,
        };
        self.end(reason, Some(Action::Disconnect));
    }

    fn on_trickle(&mut self, trickle: &proto::TrickleRequest) {
        #[derive(serde::Deserialize)]
        struct CandidateInit {
            #[serde(default)]
            candidate: String,
        }
        let Ok(init) = serde_json::from_str::<CandidateInit>(&trickle.candidate_init) else {
            tracing::warn!("a candidate of {} cannot be read", self.identity);
            return;
        };
        // An empty candidate ends the list. Names instead of addresses (mDNS) cannot be resolved
        // here and need not be: the client's checks reveal its address.
        let Ok(candidate) = Candidate::from_sdp_string(&init.candidate) else {
            return;
        };
        let transport = match trickle.target() {
            proto::SignalTarget::Publisher => self.connections.publisher(),
            proto::SignalTarget::Subscriber => self.connections.subscriber(),
        };
        transport.add_remote_candidate(candidate);
    }

    fn on_offer(&mut self, offer: &proto::SessionDescription) {
        let offered = offered_tracks(&offer.sdp);
        let mut wishes = HashMap::new();
        let mut gone: Vec<String> = Vec::new();
        self.published.retain(|mid, track| {
            let stays = offered.iter().any(|one| one.mid == *mid);
            if !stays {
                gone.push(track.sid.to_string());
            }
            stays
        });
        let mut started = Vec::new();
        for one in offered.iter().filter(|one| one.audio) {
            if self.published.contains_key(&one.mid) {
                continue;
            }
            let Some(pending) = self.take_pending(one.track_id.as_deref()) else {
                tracing::warn!(
                    "{} offers a track that it has not announced: {one:?}",
                    self.identity
                );
                continue;
            };
            let mut info = pending.info;
            info.mid.clone_from(&one.mid);
            if !one.red {
                set_mime_type(&mut info, OPUS);
            }
            let track = PublishedTrack {
                sid: Arc::from(info.sid.as_str()),
                wish: opus_wish(&info),
            };
            self.published.insert(one.mid.clone(), track);
            started.push(info);
        }
        for (mid, track) in &self.published {
            wishes.insert(mid.clone(), track.wish);
        }
        let room = Arc::clone(&self.room);
        let answered = self.connections.publisher().accept_offer(
            &offer.sdp,
            |mid| wishes.get(mid).copied().unwrap_or_default(),
            |track_sid| room.is_stereo(track_sid),
        );
        match answered {
            Ok(answer) => {
                self.heard(&answer);
                self.send(Signal::Answer(proto::SessionDescription {
                    r#type: "answer".into(),
                    sdp: answer.sdp,
                    id: offer.id,
                    mid_to_track_id: answer.mid_to_track_id,
                }));
            }
            Err(error) => {
                tracing::warn!("the offer of {} cannot be answered: {error}", self.identity);
                self.end(DisconnectReason::StateMismatch, Some(Action::Reconnect));
            }
        }
        for track_sid in gone {
            self.room.unpublish(&self.sid, &track_sid);
        }
        for info in started {
            self.room.publish(&self.sid, info);
        }
    }

    /// The announced track with the client's id or, as some browsers rename their tracks, the
    /// oldest one.
    fn take_pending(&mut self, cid: Option<&str>) -> Option<PendingTrack> {
        let by_cid = self
            .pending_tracks
            .iter()
            .position(|pending| Some(pending.cid.as_str()) == cid);
        let position = by_cid.or(if self.pending_tracks.is_empty() {
            None
        } else {
            Some(0)
        })?;
        Some(self.pending_tracks.remove(position))
    }

    fn on_answer(&mut self, answer: &proto::SessionDescription) {
        if answer.id != 0 && answer.id != self.last_offer_id {
            tracing::debug!("{} answers an offer that is out of date", self.identity);
            return;
        }
        match self.connections.subscriber().accept_answer(&answer.sdp) {
            Ok(started) => {
                for subscription in started {
                    self.room
                        .note_heard(&subscription.publisher_sid, &subscription.track_sid);
                }
            }
            Err(error) => {
                tracing::warn!("the answer of {} is not acceptable: {error}", self.identity);
                self.end(DisconnectReason::StateMismatch, Some(Action::Reconnect));
            }
        }
    }

    fn heard(&self, description: &Outgoing) {
        for subscription in &description.started {
            self.room
                .note_heard(&subscription.publisher_sid, &subscription.track_sid);
        }
    }

    /// Offers what is new, or asks the client for an offer that has enough sections for it.
    fn negotiate(&mut self) {
        if matches!(self.signal, SignalState::Lost { .. }) {
            return;
        }
        match &mut self.connections {
            Connections::One(both) => {
                if let Some(num_audios) = both.missing_sections() {
                    let requirement = proto::MediaSectionsRequirement {
                        num_audios,
                        num_videos: 0,
                    };
                    self.send(Signal::MediaSectionsRequirement(requirement));
                }
            }
            Connections::Two { .. } => self.offer(false),
        }
    }

    fn offer(&mut self, ice_restart: bool) {
        let room = Arc::clone(&self.room);
        let Connections::Two { subscriber, .. } = &mut self.connections else {
            return;
        };
        let Some(offer) =
            subscriber.create_offer(ice_restart, |track_sid| room.is_stereo(track_sid))
        else {
            return;
        };
        self.last_offer_id += 1;
        let id = self.last_offer_id;
        self.send(Signal::Offer(proto::SessionDescription {
            r#type: "offer".into(),
            sdp: offer.sdp,
            id,
            mid_to_track_id: offer.mid_to_track_id,
        }));
    }

    fn refuse(&mut self, reason: Refusal, message: &str, request: Refused) {
        let mut response = proto::RequestResponse {
            message: message.to_owned(),
            request: Some(request),
            ..Default::default()
        };
        response.set_reason(reason);
        self.send(Signal::RequestResponse(response));
    }

    fn add_track(&mut self, request: proto::AddTrackRequest) {
        let permission = self
            .room
            .participant(&self.identity)
            .ok()
            .and_then(|info| info.permission);
        let may_publish = permission.is_some_and(|permission| {
            permission.can_publish
                && (permission.can_publish_sources.is_empty()
                    || permission.can_publish_sources.contains(&request.source))
        });
        if !may_publish {
            self.refuse(
                Refusal::NotAllowed,
                "not allowed to publish",
                Refused::AddTrack(request),
            );
            return;
        }
        if request.r#type() != proto::TrackType::Audio {
            self.refuse(
                Refusal::UnsupportedType,
                "only audio is forwarded",
                Refused::AddTrack(request),
            );
            return;
        }
        if self.pending_tracks.len() >= MAX_PENDING_TRACKS {
            self.refuse(
                Refusal::LimitExceeded,
                "too many tracks without media",
                Refused::AddTrack(request),
            );
            return;
        }
        let info = track_info(&request);
        self.pending_tracks.push(PendingTrack {
            cid: request.cid.clone(),
            info: info.clone(),
        });
        self.send(Signal::TrackPublished(proto::TrackPublishedResponse {
            cid: request.cid,
            track: Some(info),
        }));
    }

    fn on_mute(&mut self, mute: &proto::MuteTrackRequest) {
        if let Some(pending) = self
            .pending_tracks
            .iter_mut()
            .find(|pending| pending.info.sid == mute.sid)
        {
            pending.info.muted = mute.muted;
        }
        self.room.mute(&self.sid, &mute.sid, mute.muted);
    }

    fn on_subscription(&mut self, update: &proto::UpdateSubscription) {
        let mut track_sids = update.track_sids.clone();
        track_sids.extend(
            update
                .participant_tracks
                .iter()
                .flat_map(|tracks| tracks.track_sids.iter().cloned()),
        );
        self.room
            .update_subscriptions(&self.identity, &track_sids, update.subscribe);
    }

    fn on_update_metadata(&mut self, update: proto::UpdateParticipantMetadata) {
        let permission = self
            .room
            .participant(&self.identity)
            .ok()
            .and_then(|info| info.permission);
        let mut response = proto::RequestResponse {
            request_id: update.request_id,
            ..Default::default()
        };
        if permission.is_some_and(|permission| permission.can_update_metadata) {
            let non_empty = |text: &String| (!text.is_empty()).then(|| text.clone());
            let change = ParticipantChange {
                metadata: non_empty(&update.metadata),
                name: non_empty(&update.name),
                attributes: update.attributes.clone(),
                permission: None,
            };
            if let Err(error) = self.room.update(&self.identity, change) {
                response.set_reason(Refusal::LimitExceeded);
                response.message = error.to_string();
            }
        } else {
            response.set_reason(Refusal::NotAllowed);
            response.message = "does not have permission to update own metadata".into();
        }
        response.request = Some(Refused::UpdateMetadata(update));
        self.send(Signal::RequestResponse(response));
    }

    fn publish_data_track(&mut self, request: proto::PublishDataTrackRequest) {
        match self.room.publish_data_track(&self.sid, &request) {
            Ok(info) => {
                self.send(Signal::PublishDataTrackResponse(
                    proto::PublishDataTrackResponse { info: Some(info) },
                ));
            }
            Err(reason) => {
                let message = format!("the data track {:?} cannot be published", request.name);
                self.refuse(reason, &message, Refused::PublishDataTrack(request));
            }
        }
    }

    fn unpublish_data_track(&mut self, request: proto::UnpublishDataTrackRequest) {
        match self
            .room
            .unpublish_data_track(&self.sid, request.pub_handle)
        {
            Some(info) => {
                let response = proto::UnpublishDataTrackResponse { info: Some(info) };
                self.send(Signal::UnpublishDataTrackResponse(response));
            }
            None => {
                let message = format!(
                    "there is no data track with the handle {}",
                    request.pub_handle
                );
                self.refuse(
                    Refusal::NotFound,
                    &message,
                    Refused::UnpublishDataTrack(request),
                );
            }
        }
    }

    fn on_data_subscription(&mut self, update: &proto::UpdateDataSubscription) {
        for one in &update.updates {
            self.room
                .update_data_subscription(&self.sid, &one.track_sid, one.subscribe);
        }
    }

    // Coming back.

    fn on_resume(&mut self, resumed: Resumed) {
        let now = Instant::now();
        if let Some((until, losses)) = self.simulation.drop_before_resume {
            let losses = losses + 1;
            self.simulation.drop_before_resume =
                (losses < SIMULATED_LOSSES).then_some((until, losses));
            if now < until {
                self.signal = SignalState::Lost { since: now };
                return;
            }
        }
        self.signal = SignalState::Connected(resumed.connection);
        let Some((room, known, last_message_seq)) = self.room.resume_snapshot(&self.sid) else {
            self.end(DisconnectReason::StateMismatch, Some(Action::Reconnect));
            return;
        };
        self.send(Signal::Reconnect(proto::ReconnectResponse {
            server_info: Some(self.server.info().clone()),
            last_message_seq,
            ..Default::default()
        }));
        self.send(Signal::Update(proto::ParticipantUpdate {
            participants: known,
        }));
        self.send(Signal::RoomUpdate(proto::RoomUpdate { room: Some(room) }));
        if let MediaState::Lost { .. } = self.media_state {
            // The client has the whole time from now on to repair its media.
            self.media_state = MediaState::Lost { since: now };
        }
        if let Some(state) = resumed.sync_state {
            self.on_sync_state(state);
        }
        // With one connection it is the client that restarts ICE.
        self.offer(true);
        if let Some(until) = self.simulation.drop_after_resume.take()
            && now < until
        {
            self.signal = SignalState::Lost { since: now };
        }
        tracing::info!(participant.identity = %self.identity, participant.sid = %self.sid, "participant {} resumed", self.identity);
    }

    fn on_sync_state(&mut self, state: proto::SyncState) {
        if let Some(subscription) = &state.subscription {
            // With automatic subscription the list names the tracks that the client does not want
            // (room.go, onSyncState).
            self.on_subscription(subscription);
        }
        if let Some(update) = &state.data_subscription {
            self.on_data_subscription(update);
        }
        for packet in self
            .room
            .missed_data(&self.sid, &state.datachannel_receive_states)
        {
            self.connections
                .subscriber()
                .send_data(Lane::Packets(proto::data_packet::Kind::Reliable), packet);
        }
    }

    fn on_simulate(&mut self, scenario: Option<Scenario>) {
        let until = Instant::now() + SIMULATION_TIMEOUT;
        match scenario {
            Some(Scenario::SpeakerUpdate(_)) => self.room.pretend_speaking(&self.sid),
            Some(Scenario::NodeFailure(_)) => self.end(DisconnectReason::ServerShutdown, None),
            Some(Scenario::Migration(_)) => self.end(DisconnectReason::Migration, None),
            Some(Scenario::ServerLeave(_)) => {
                self.end(DisconnectReason::ServerShutdown, Some(Action::Disconnect))
            }
            Some(Scenario::LeaveRequestFullReconnect(_)) => {
                self.end(DisconnectReason::ClientInitiated, Some(Action::Reconnect));
            }
            Some(Scenario::SwitchCandidateProtocol(_)) => self.offer(true),
            Some(Scenario::DisconnectSignalOnResume(_)) => {
                self.simulation.drop_after_resume = Some(until)
            }
            Some(Scenario::DisconnectSignalOnResumeNoMessages(_)) => {
                self.simulation.drop_before_resume = Some((until, 0));
            }
            // There is no bandwidth to limit where only audio is forwarded.
            Some(Scenario::SubscriberBandwidth(_)) | None => {}
        }
    }
}

async fn next_request(signal: &mut SignalState) -> Option<proto::SignalRequest> {
    match signal {
        SignalState::Connected(connection) => connection.requests.recv().await,
        SignalState::Lost { .. } => std::future::pending().await,
    }
}

const OPUS: &str = "audio/opus";
const RED: &str = "audio/red";

/// The description of a track that a client announces.
fn track_info(request: &proto::AddTrackRequest) -> proto::TrackInfo {
    use proto::AudioTrackFeature::{TfNoDtx, TfStereo};
    let mut features = request.audio_features.clone();
    #[expect(
        deprecated,
        reason = "clients of older protocols still set and read these fields"
    )]
    {
        if request.stereo && !features.contains(&(TfStereo as i32)) {
            features.push(TfStereo as i32);
        }
        if request.disable_dtx && !features.contains(&(TfNoDtx as i32)) {
            features.push(TfNoDtx as i32);
        }
        // Encrypted payloads cannot be split for a subscriber that has not negotiated redundant
        // audio.
        let red = !request.disable_red && request.encryption() == proto::encryption::Type::None;
        let mime_type = if red { RED } else { OPUS };
        let stream = match request.source() {
            _ if !request.stream.is_empty() => request.stream.clone(),
            proto::TrackSource::ScreenShareAudio => "screen_share".into(),
            _ => "camera".into(),
        };
        proto::TrackInfo {
            sid: ids::new_id(ids::TRACK),
            r#type: request.r#type,
            name: request.name.clone(),
            muted: request.muted,
            disable_dtx: features.contains(&(TfNoDtx as i32)),
            source: request.source,
            mime_type: mime_type.into(),
            codecs: vec![proto::SimulcastCodecInfo {
                mime_type: mime_type.into(),
                cid: request.cid.clone(),
                ..Default::default()
            }],
            stereo: features.contains(&(TfStereo as i32)),
            disable_red: request.disable_red,
            encryption: request.encryption,
            stream,
            audio_features: features,
            ..Default::default()
        }
    }
}

fn set_mime_type(info: &mut proto::TrackInfo, mime_type: &str) {
    info.mime_type = mime_type.into();
    for codec in &mut info.codecs {
        codec.mime_type = mime_type.into();
    }
}

fn opus_wish(info: &proto::TrackInfo) -> OpusWish {
    use proto::AudioTrackFeature::{TfNoDtx, TfStereo};
    OpusWish {
        stereo: info.audio_features.contains(&(TfStereo as i32)),
        dtx: !info.audio_features.contains(&(TfNoDtx as i32)),
        red: info.mime_type == RED,
    }
}

/// Coarser than the real server's score, which also weighs jitter and round trips.
fn quality_of_loss(loss: f32) -> proto::ConnectionQuality {
    const GOOD_UP_TO: f32 = 0.02;
    const POOR_FROM: f32 = 0.08;
    if loss <= GOOD_UP_TO {
        proto::ConnectionQuality::Excellent
    } else if loss < POOR_FROM {
        proto::ConnectionQuality::Good
    } else {
        proto::ConnectionQuality::Poor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rooms::{RoomEvent, RoomOptions};
    use crate::testkit;
    use crate::token::VideoGrants;

    #[tokio::test]
    async fn goodbye_of_a_client_that_does_not_listen_any_more_counts() {
        let server = testkit::start().await;
        let mut events = server.rooms().subscribe();
        let (outlet, deaf) = mpsc::channel(1);
        drop(deaf);
        let (said, requests) = mpsc::channel(1);
        let leave = Request::Leave(proto::LeaveRequest::default());
        said.send(proto::SignalRequest {
            message: Some(leave),
        })
        .await
        .expect("there is room");
        let init = Init {
            claims: Claims {
                sub: "alice".into(),
                video: VideoGrants {
                    room_join: true,
                    room: "room".into(),
                    ..Default::default()
                },
                ..Default::default()
            },
            client: proto::ClientInfo::default(),
            auto_subscribe: true,
            single_peer_connection: true,
            metadata: String::new(),
            attributes: HashMap::new(),
            add_tracks: Vec::new(),
            publisher_offer: None,
            reconnect: None,
            sync_state: None,
        };
        let room = server.rooms().open("room", RoomOptions::default());
        let connection = Connection { outlet, requests };
        spawn(server.server.clone(), room, init, connection).await;
        let left = async {
            loop {
                if let RoomEvent::ParticipantLeft { participant, .. } =
                    events.recv().await.expect("the server runs")
                {
                    return participant.disconnect_reason();
                }
            }
        };
        // Without its request to leave, the server would wait for it to come back.
        let reason = tokio::time::timeout(ABANDONED_TIMEOUT / 2, left).await;
        assert_eq!(
            reason.expect("the client has left"),
            DisconnectReason::ClientInitiated
        );
        server.shutdown().await;
    }
}
