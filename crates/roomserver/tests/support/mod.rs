//! A small LiveKit client on str0m, for tests: one WebSocket, two peer connections, each with its
//! UDP socket.
//!
//! It answers offers by itself and remembers everything it has received. Nothing of it is shared
//! with the server.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use livekit_protocol as proto;
use prost::Message as _;
use proto::signal_request::Message as Request;
use proto::signal_response::Message as Signal;
use roomserver::token::{Claims, Keys, VideoGrants};
use roomserver::{Options, RoomServer};
use str0m::change::{SdpAnswer, SdpOffer, SdpPendingOffer};
use str0m::channel::{ChannelConfig, ChannelId};
use str0m::media::{Direction, MediaKind, Mid};
use str0m::net::{Protocol, Receive};
use str0m::rtp::{ExtensionValues, RedEncoder, RedundantBlock, RtpWrite};
use str0m::{Candidate, Event, Input, Output, Rtc, RtcConfig};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Nothing on loopback takes this long.
const PATIENCE: Duration = Duration::from_secs(20);
const PACKET_INTERVAL: Duration = Duration::from_millis(20);
const SECRET: &str = "a secret of at least thirty-two characters";

/// A server on a free port.
pub async fn server() -> RoomServer {
    let options = Options {
        keys: vec![("devkey".into(), SECRET.into())],
        ..Options::default()
    };
    RoomServer::start(options)
        .await
        .expect("loopback has free ports")
}

/// The claims of a token for the room, unless a test changes them.
pub fn claims(identity: &str, room: &str) -> Claims {
    Claims {
        iss: "devkey".into(),
        sub: identity.into(),
        name: identity.to_uppercase(),
        exp: chrono::Utc::now().timestamp() as u64 + 60,
        video: VideoGrants {
            room_join: true,
            room: room.into(),
            can_update_own_metadata: Some(true),
            ..Default::default()
        },
        ..Default::default()
    }
}

pub fn sign(claims: &Claims) -> String {
    Keys::new(vec![("devkey".into(), SECRET.into())])
        .sign(claims)
        .expect("the key is known")
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Opens a signalling connection; an error is the HTTP status of the refusal.
pub async fn open(url: &str, path: &str, token: &str) -> Result<Socket, u16> {
    use tokio_tungstenite::tungstenite::Error;
    let mut request = format!("{url}{path}")
        .into_client_request()
        .expect("the address is valid");
    request.headers_mut().insert(
        "authorization",
        format!("Bearer {token}").parse().expect("a valid header"),
    );
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("the server cannot be reached: {error}"),
    }
}

/// A WebSocket with a task of its own, so that waiting for a message can be given up at any time.
struct Signalling {
    requests: mpsc::UnboundedSender<Request>,
    signals: mpsc::UnboundedReceiver<Signal>,
}

impl Signalling {
    fn new(socket: Socket) -> Self {
        let (requests, mut outgoing) = mpsc::unbounded_channel();
        let (incoming, signals) = mpsc::unbounded_channel();
        let (mut sink, mut stream) = socket.split();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    request = outgoing.recv() => {
                        let Some(message) = request else { return };
                        let bytes = proto::SignalRequest { message: Some(message) }.encode_to_vec();
                        // A server that has closed may still have sent something before.
                        let _ = sink.send(Message::Binary(bytes.into())).await;
                    }
                    received = stream.next() => match received {
                        Some(Ok(Message::Binary(bytes))) => {
                            let response = proto::SignalResponse::decode(bytes).expect("the server writes protobuf");
                            let _ = incoming.send(response.message.expect("no message is empty"));
                        }
                        Some(Err(_)) | None => return,
                        Some(Ok(_)) => {}
                    },
                }
            }
        });
        Self { requests, signals }
    }
}

pub struct Client {
    pub join: proto::JoinResponse,
    /// Every message of the server, in order.
    pub signals: Vec<Signal>,
    /// Payloads of the audio packets that arrived, with the track id of their section.
    pub audio: Vec<(String, Vec<u8>)>,
    /// Their payload types and sequence numbers.
    pub audio_headers: Vec<(u8, u64)>,
    pub data: Vec<proto::DataPacket>,
    pub closed: bool,
    pub offers: Vec<String>,
    signalling: Option<Signalling>,
    publisher: Rtc,
    publisher_socket: UdpSocket,
    subscriber: Rtc,
    subscriber_socket: UdpSocket,
    pending: Option<SdpPendingOffer>,
    channel: Option<ChannelId>,
    speaking: Option<(Mid, u64)>,
    /// Every packet with this number modulo ten is dropped instead of being sent to the server.
    pub loses: Option<u64>,
    next_packet: Instant,
    deadline: Instant,
    tracks: Vec<(Mid, String)>,
}

impl Client {
    /// Joins the room of the token.
    pub async fn join(server: &RoomServer, claims: &Claims) -> Self {
        Self::join_with(server, claims, false).await
    }

    /// Joins as a client that accepts redundant audio (RFC 2198).
    pub async fn join_with_red(server: &RoomServer, claims: &Claims) -> Self {
        Self::join_with(server, claims, true).await
    }

    async fn join_with(server: &RoomServer, claims: &Claims, red: bool) -> Self {
        let path = "/rtc?protocol=16&auto_subscribe=1&sdk=test";
        let socket = open(&server.url(), path, &sign(claims))
            .await
            .expect("the token is good");
        let mut signalling = Signalling::new(socket);
        let join = match signalling.signals.recv().await {
            Some(Signal::Join(join)) => join,
            other => panic!("the server answers a join with {other:?}"),
        };
        let now = Instant::now();
        let (publisher, publisher_socket) = peer_connection(now, red).await;
        let (subscriber, subscriber_socket) = peer_connection(now, red).await;
        Self {
            join,
            signals: Vec::new(),
            audio: Vec::new(),
            audio_headers: Vec::new(),
            data: Vec::new(),
            closed: false,
            offers: Vec::new(),
            signalling: Some(signalling),
            publisher,
            publisher_socket,
            subscriber,
            subscriber_socket,
            pending: None,
            channel: None,
            speaking: None,
            loses: None,
            next_packet: now,
            deadline: now,
            tracks: Vec::new(),
        }
    }

    pub fn sid(&self) -> &str {
        &self
            .join
            .participant
            .as_ref()
            .expect("the join names the participant")
            .sid
    }

    pub fn request(&mut self, message: Request) {
        let signalling = self.signalling.as_ref().expect("signalling is open");
        // The client may not know yet that it was removed.
        let _ = signalling.requests.send(message);
    }

    /// Announces a microphone and offers it with a reliable data channel.
    pub fn publish(&mut self) {
        let cid = format!("microphone-of-{}", self.sid());
        let mut announce = proto::AddTrackRequest {
            cid: cid.clone(),
            name: "microphone".into(),
            ..Default::default()
        };
        announce.set_type(proto::TrackType::Audio);
        announce.set_source(proto::TrackSource::Microphone);
        self.request(Request::AddTrack(announce));
        let mut changes = self.publisher.sdp_api();
        let mid = changes.add_media(
            MediaKind::Audio,
            Direction::SendOnly,
            Some("stream".into()),
            Some(cid),
            None,
        );
        changes.add_channel_with_config(ChannelConfig {
            label: "_reliable".into(),
            ..Default::default()
        });
        let (offer, pending) = changes.apply().expect("there are changes");
        self.pending = Some(pending);
        let description = proto::SessionDescription {
            r#type: "offer".into(),
            sdp: offer.to_sdp_string(),
            id: 1,
            ..Default::default()
        };
        self.request(Request::Offer(description));
        self.speaking = Some((mid, 1));
    }

    /// Sends a packet on the reliable channel if it is open.
    pub fn send_data(&mut self, packet: &proto::DataPacket) -> bool {
        let Some(id) = self.channel else { return false };
        let Some(mut channel) = self.publisher.channel(id) else {
            return false;
        };
        let sent = channel
            .write(true, &packet.encode_to_vec())
            .unwrap_or(false);
        self.deadline = Instant::now();
        sent
    }

    /// Drops the signalling connection without saying so.
    pub fn drop_signalling(&mut self) {
        self.signalling = None;
    }

    /// Reconnects with a new signalling connection.
    pub async fn resume(&mut self, server: &RoomServer, claims: &Claims) {
        let path = format!("/rtc?protocol=16&reconnect=1&sid={}", self.sid());
        let socket = open(&server.url(), &path, &sign(claims))
            .await
            .expect("the token is good");
        self.signalling = Some(Signalling::new(socket));
    }

    /// Waits for one event and handles it.
    async fn step(&mut self) {
        self.speak();
        self.poll();
        let mut buffer = [0; 2048];
        let mut other_buffer = [0; 2048];
        let wake = self.deadline.min(if self.speaking.is_some() {
            self.next_packet
        } else {
            self.deadline
        });
        tokio::select! {
            message = next(&mut self.signalling) => match message {
                Some(signal) => self.on_signal(signal),
                None => {
                    self.signalling = None;
                    self.closed = true;
                }
            },
            received = self.publisher_socket.recv_from(&mut buffer) => {
                accept_datagram(&mut self.publisher, &self.publisher_socket, &buffer, received);
                self.deadline = Instant::now();
            }
            received = self.subscriber_socket.recv_from(&mut other_buffer) => {
                accept_datagram(&mut self.subscriber, &self.subscriber_socket, &other_buffer, received);
                self.deadline = Instant::now();
            }
            () = tokio::time::sleep_until(wake.into()) => {
                let now = Instant::now();
                for rtc in [&mut self.publisher, &mut self.subscriber] {
                    rtc.handle_input(Input::Timeout(now)).expect("time passes");
                }
            }
        }
    }

    fn on_signal(&mut self, signal: Signal) {
        match &signal {
            Signal::Offer(offer) => {
                self.offers.push(offer.sdp.clone());
                let mut mid = None;
                for line in offer.sdp.lines() {
                    if let Some(value) = line.strip_prefix("a=mid:") {
                        mid = Some(Mid::from(value));
                    } else if let (Some(msid), Some(mid)) = (line.strip_prefix("a=msid:"), mid) {
                        self.tracks
                            .push((mid, msid.split(' ').nth(1).unwrap_or_default().to_owned()));
                    }
                }
                let parsed = SdpOffer::from_sdp_string(&offer.sdp).expect("the server writes SDP");
                let answer = self
                    .subscriber
                    .sdp_api()
                    .accept_offer(parsed)
                    .expect("the offer is acceptable");
                let answer = proto::SessionDescription {
                    r#type: "answer".into(),
                    sdp: answer.to_sdp_string(),
                    id: offer.id,
                    ..Default::default()
                };
                self.request(Request::Answer(answer));
            }
            Signal::Answer(answer) => {
                let parsed =
                    SdpAnswer::from_sdp_string(&answer.sdp).expect("the server writes SDP");
                let pending = self.pending.take().expect("an answer has an offer");
                self.publisher
                    .sdp_api()
                    .accept_answer(pending, parsed)
                    .expect("the answer is acceptable");
            }
            _ => {}
        }
        self.signals.push(signal);
        self.deadline = Instant::now();
    }

    fn speak(&mut self) {
        let now = Instant::now();
        let Some((mid, sequence)) = &mut self.speaking else {
            return;
        };
        if now < self.next_packet || !self.publisher.is_connected() {
            self.next_packet = self.next_packet.max(now);
            if !self.publisher.is_connected() {
                self.next_packet = now + PACKET_INTERVAL;
            }
            return;
        }
        self.next_packet = now + PACKET_INTERVAL;
        let mut api = self.publisher.direct_api();
        let stream = api.stream_tx_by_mid(*mid, None).expect("the section sends");
        let payload = [
            b"opus",
            self.join
                .participant
                .as_ref()
                .expect("joined")
                .identity
                .as_bytes(),
        ]
        .concat();
        // As Google's engine does: redundant if the answer lists that first, with one copy.
        let first = self.signals.iter().rev().find_map(|signal| match signal {
            Signal::Answer(answer) => answer.sdp.lines().find(|line| line.starts_with("m=audio")),
            _ => None,
        });
        let prefers_red = first.is_some_and(|line| line.contains("SAVPF 63 111"));
        let (number, payload) = match prefers_red {
            true => {
                let copy = RedundantBlock {
                    pt: 111,
                    timestamp_offset: 960,
                    payload: payload.clone(),
                };
                (63, RedEncoder::encode(111, &payload, &[copy]))
            }
            false => (111, payload),
        };
        let loud = ExtensionValues {
            audio_level: Some(-10),
            voice_activity: Some(true),
            ..Default::default()
        };
        let packet = RtpWrite::new(
            number.into(),
            (*sequence).into(),
            (*sequence * 960) as u32,
            now,
            payload,
        );
        if self.loses.is_none_or(|lost| *sequence % 10 != lost) {
            stream.write_rtp(packet.ext_vals(loud));
        }
        *sequence += 1;
        self.deadline = now;
    }

    fn poll(&mut self) {
        let mut deadline = Instant::now() + PATIENCE;
        for is_publisher in [true, false] {
            loop {
                let (rtc, socket) = if is_publisher {
                    (&mut self.publisher, &self.publisher_socket)
                } else {
                    (&mut self.subscriber, &self.subscriber_socket)
                };
                match rtc.poll_output().expect("the connection works") {
                    Output::Timeout(at) => {
                        deadline = deadline.min(at);
                        break;
                    }
                    Output::Transmit(transmit) => {
                        let _ = socket.try_send_to(&transmit.contents, transmit.destination);
                    }
                    Output::Event(event) => self.on_event(is_publisher, event),
                }
            }
        }
        self.deadline = deadline;
    }

    fn on_event(&mut self, is_publisher: bool, event: Event) {
        match event {
            Event::ChannelOpen(id, label) if is_publisher && label == "_reliable" => {
                self.channel = Some(id);
            }
            Event::ChannelData(data) => {
                self.data
                    .push(proto::DataPacket::decode(data.data.as_slice()).expect("a data packet"));
            }
            Event::RtpPacket(packet) => {
                let mid = self
                    .subscriber
                    .direct_api()
                    .stream_rx(&packet.header.ssrc)
                    .map(|stream| stream.mid());
                let track = self
                    .tracks
                    .iter()
                    .rev()
                    .find(|(known, _)| Some(*known) == mid);
                let header = (*packet.header.payload_type, *packet.seq_no);
                self.audio_headers.push(header);
                self.audio.push((
                    track.map(|(_, sid)| sid.clone()).unwrap_or_default(),
                    packet.payload.to_vec(),
                ));
            }
            _ => {}
        }
    }

    /// The latest state of a participant that the server has sent.
    pub fn latest(&self, identity: &str) -> Option<&proto::ParticipantInfo> {
        let updates = self.signals.iter().rev().filter_map(|signal| match signal {
            Signal::Update(update) => Some(update),
            _ => None,
        });
        updates
            .flat_map(|update| update.participants.iter().rev())
            .find(|info| info.identity == identity)
    }

    /// Why the server has removed the client, if it has.
    pub fn leave_reason(&self) -> Option<proto::DisconnectReason> {
        self.signals.iter().find_map(|signal| match signal {
            Signal::Leave(leave) => Some(leave.reason()),
            _ => None,
        })
    }
}

async fn peer_connection(now: Instant, red: bool) -> (Rtc, UdpSocket) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("loopback has free ports");
    let address = socket.local_addr().expect("it is bound");
    let mut rtc = RtcConfig::new()
        .clear_codecs()
        .enable_opus(true, red)
        .set_rtp_mode(true)
        .build(now);
    rtc.add_local_candidate(Candidate::host(address, "udp").expect("a valid candidate"));
    (rtc, socket)
}

fn accept_datagram(
    rtc: &mut Rtc,
    socket: &UdpSocket,
    buffer: &[u8],
    received: std::io::Result<(usize, SocketAddr)>,
) {
    let Ok((length, source)) = received else {
        return;
    };
    let address = socket.local_addr().expect("it is bound");
    let Ok(receive) = Receive::new(Protocol::Udp, source, address, &buffer[..length]) else {
        return;
    };
    rtc.handle_input(Input::Receive(Instant::now(), receive))
        .expect("the server sends what is right");
}

async fn next(signalling: &mut Option<Signalling>) -> Option<Signal> {
    match signalling {
        Some(signalling) => signalling.signals.recv().await,
        None => std::future::pending().await,
    }
}

/// Runs the clients until the condition holds; panics when it takes too long.
pub async fn until(
    what: &str,
    clients: &mut [Client],
    mut condition: impl FnMut(&mut [Client]) -> bool,
) {
    let run = async {
        while !condition(clients) {
            let steps = clients.iter_mut().map(|client| Box::pin(client.step()));
            futures_util::future::select_all(steps).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, run).await.is_ok(),
        "waited in vain for: {what}"
    );
}
