//! A participant's sockets: one for UDP, and a listener for ICE over TCP.
//!
//! TCP carries the same datagrams, each behind its length in two bytes (RFC 4571). The server is
//! always the passive side (RFC 6544).

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use str0m::Candidate;
use str0m::net::{Protocol, TcpType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::Options;
use crate::line::Line;

/// Longer datagrams than this do not occur: DTLS, RTP and STUN all stay below the path's MTU.
pub(crate) const MAX_DATAGRAM: usize = 2048;
/// A client makes at most one connection for each of its peer connections and for each restart that
/// overlaps.
const MAX_TCP_CONNECTIONS: usize = 8;
/// Datagrams that wait to be written to a TCP connection. More than that are dropped, as UDP would.
const TCP_BACKLOG: usize = 512;

/// A datagram and where it came from.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub contents: Bytes,
}

enum TcpEvent {
    Opened {
        peer: SocketAddr,
        frames: mpsc::Sender<Bytes>,
    },
    Received(Datagram),
    Closed {
        peer: SocketAddr,
    },
}

/// The sockets of one participant.
pub(crate) struct Network {
    /// With the address to which clients send.
    udp: Option<(UdpSocket, SocketAddr)>,
    lined: Option<Lined>,
    tcp_address: Option<SocketAddr>,
    tcp_events: mpsc::Receiver<TcpEvent>,
    connections: HashMap<SocketAddr, mpsc::Sender<Bytes>>,
    buffer: Vec<u8>,
    _stop_tcp: DropGuard,
}

/// A line in front of the UDP socket.
struct Lined {
    _line: Line,
    /// Addresses from which the line has relayed. Nothing is sent to others: connectivity checks
    /// sent directly to a client's own addresses would open a path around the line.
    brought: HashSet<SocketAddr>,
}

impl Network {
    /// Opens the sockets that the options allow, on free ports of the address.
    pub async fn open(options: &Options, tasks: &TaskTracker) -> io::Result<Self> {
        let ip = options.node_ip;
        let (mut udp, mut lined) = (None, None);
        if options.udp {
            let socket = UdpSocket::bind((ip, 0)).await?;
            let mut address = socket.local_addr()?;
            if let Some(lines) = &options.lines {
                let line = Line::open((ip, 0).into(), address, lines).await?;
                address = line.address();
                lined = Some(Lined {
                    _line: line,
                    brought: HashSet::new(),
                });
            }
            udp = Some((socket, address));
        }
        let stop = CancellationToken::new();
        let (events, tcp_events) = mpsc::channel(TCP_BACKLOG);
        let tcp_address = if options.rtc_tcp {
            let listener = TcpListener::bind((ip, 0)).await?;
            let address = listener.local_addr()?;
            tasks.spawn(
                stop.clone()
                    .run_until_cancelled_owned(accept(listener, address, events)),
            );
            Some(address)
        } else {
            None
        };
        Ok(Self {
            udp,
            lined,
            tcp_address,
            tcp_events,
            connections: HashMap::new(),
            buffer: vec![0; MAX_DATAGRAM],
            _stop_tcp: stop.drop_guard(),
        })
    }

    /// The addresses at which this participant can be reached.
    pub fn candidates(&self) -> Vec<Candidate> {
        let udp = self
            .udp
            .as_ref()
            .map(|(_, address)| Candidate::builder().udp().host(*address).build());
        let tcp = self.tcp_address.map(|address| {
            Candidate::builder()
                .tcp()
                .host(address)
                .tcptype(TcpType::Passive)
                .build()
        });
        udp.into_iter()
            .chain(tcp)
            .filter_map(|candidate| {
                candidate
                    .inspect_err(|error| tracing::error!("an own candidate is not valid: {error}"))
                    .ok()
            })
            .collect()
    }

    /// The next datagram. Cancel safe.
    pub async fn receive(&mut self) -> Datagram {
        loop {
            let Self {
                udp,
                lined,
                tcp_events,
                connections,
                buffer,
                ..
            } = self;
            tokio::select! {
                received = receive_udp(udp.as_ref(), buffer) => {
                    if let Some(datagram) = received {
                        if let Some(lined) = lined {
                            lined.brought.insert(datagram.source);
                        }
                        return datagram;
                    }
                }
                Some(event) = tcp_events.recv() => match event {
                    TcpEvent::Received(datagram) => return datagram,
                    TcpEvent::Opened { peer, frames } => {
                        connections.insert(peer, frames);
                    }
                    TcpEvent::Closed { peer } => {
                        connections.remove(&peer);
                    }
                },
            }
        }
    }

    /// The next datagram if one has arrived already.
    pub fn try_receive(&mut self) -> Option<Datagram> {
        let (socket, address) = self.udp.as_ref()?;
        let (length, source) = socket.try_recv_from(&mut self.buffer).ok()?;
        if let Some(lined) = &mut self.lined {
            lined.brought.insert(source);
        }
        Some(Datagram {
            protocol: Protocol::Udp,
            source,
            destination: *address,
            contents: Bytes::copy_from_slice(&self.buffer[..length]),
        })
    }

    /// Sends a datagram, or drops it when the socket is full, as networks do.
    pub fn send(&self, protocol: Protocol, destination: SocketAddr, contents: &[u8]) {
        match protocol {
            Protocol::Udp => {
                if let Some(lined) = &self.lined
                    && !lined.brought.contains(&destination)
                {
                    return;
                }
                if let Some((socket, _)) = &self.udp
                    && let Err(error) = socket.try_send_to(contents, destination)
                {
                    tracing::debug!("a datagram to {destination} was not sent: {error}");
                }
            }
            _ => {
                // Clients also announce active TCP candidates, to which nobody can connect.
                if let Some(frames) = self.connections.get(&destination) {
                    let _ = frames.try_send(Bytes::copy_from_slice(contents));
                }
            }
        }
    }
}

async fn receive_udp(udp: Option<&(UdpSocket, SocketAddr)>, buffer: &mut [u8]) -> Option<Datagram> {
    let Some((socket, address)) = udp else {
        return std::future::pending().await;
    };
    // The error is about an earlier datagram that could not be delivered; the socket still works.
    let (length, source) = socket.recv_from(buffer).await.ok()?;
    Some(Datagram {
        protocol: Protocol::Udp,
        source,
        destination: *address,
        contents: Bytes::copy_from_slice(&buffer[..length]),
    })
}

async fn accept(listener: TcpListener, address: SocketAddr, events: mpsc::Sender<TcpEvent>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_TCP_CONNECTIONS {
            tracing::warn!("{peer} has too many media connections over TCP; one more is refused");
            continue;
        }
        connections.spawn(serve_tcp(stream, peer, address, events.clone()));
    }
}

async fn serve_tcp(
    stream: TcpStream,
    peer: SocketAddr,
    address: SocketAddr,
    events: mpsc::Sender<TcpEvent>,
) {
    let _ = stream.set_nodelay(true);
    let (mut reader, mut writer) = stream.into_split();
    let (frames, mut outgoing) = mpsc::channel::<Bytes>(TCP_BACKLOG);
    if events
        .send(TcpEvent::Opened { peer, frames })
        .await
        .is_err()
    {
        return;
    }
    let read = async {
        loop {
            let length = usize::from(reader.read_u16().await?);
            let mut contents = vec![0; length];
            reader.read_exact(&mut contents).await?;
            let datagram = Datagram {
                protocol: Protocol::Tcp,
                source: peer,
                destination: address,
                contents: Bytes::from(contents),
            };
            if events.send(TcpEvent::Received(datagram)).await.is_err() {
                return io::Result::Ok(());
            }
        }
    };
    let write = async {
        while let Some(contents) = outgoing.recv().await {
            let Ok(length) = u16::try_from(contents.len()) else {
                continue;
            };
            let mut frame = Vec::with_capacity(2 + contents.len());
            frame.extend_from_slice(&length.to_be_bytes());
            frame.extend_from_slice(&contents);
            writer.write_all(&frame).await?;
        }
        io::Result::Ok(())
    };
    let ended = tokio::select! {
        ended = read => ended,
        ended = write => ended,
    };
    if let Err(error) = ended {
        tracing::debug!("the media connection of {peer} over TCP ended: {error}");
    }
    let _ = events.send(TcpEvent::Closed { peer }).await;
}
