//! ICE over TCP, the side that opens connections (RFC 6544), with a length of two bytes before
//! every packet (RFC 4571).

use std::{collections::HashMap, io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

/// How long a connection may take to open or to take a packet.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection that was opened for a connectivity check and is not used is closed after this time.
const IDLE: Duration = Duration::from_secs(30);
/// Packets that wait for a connection, in each direction. When the queue is full, packets are
/// dropped, as a router would do.
const QUEUE: usize = 256;

/// A packet that has come over TCP.
pub(crate) struct TcpPacket {
    /// The other side.
    pub source: SocketAddr,
    /// The candidate of this side.
    pub destination: SocketAddr,
    pub data: Vec<u8>,
}

/// The connections of one peer connection, by candidate of this side and address of the other.
pub(crate) struct TcpConnections {
    outgoing: HashMap<(SocketAddr, SocketAddr), mpsc::Sender<Vec<u8>>>,
    incoming_sender: mpsc::Sender<TcpPacket>,
    incoming: mpsc::Receiver<TcpPacket>,
}

impl TcpConnections {
    pub fn new() -> Self {
        let (incoming_sender, incoming) = mpsc::channel(QUEUE);
        Self {
            outgoing: HashMap::new(),
            incoming_sender,
            incoming,
        }
    }

    /// Sends a packet, over a new connection if there is none. Must be called inside a tokio
    /// runtime.
    pub fn send(&mut self, source: SocketAddr, destination: SocketAddr, data: Vec<u8>) {
        let data = match self.outgoing.get(&(source, destination)) {
            Some(outgoing) => match outgoing.try_send(data) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    log::debug!("the TCP connection to {destination} is full: a packet is dropped");
                    return;
                }
                Err(mpsc::error::TrySendError::Closed(data)) => data,
            },
            None => data,
        };
        let (sender, outgoing) = mpsc::channel(QUEUE);
        if sender.try_send(data).is_ok() {
            self.outgoing.insert((source, destination), sender);
        }
        let incoming = self.incoming_sender.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(source, destination, outgoing, incoming).await {
                log::debug!("the TCP connection to {destination} has ended: {error}");
            }
        });
    }

    /// The next packet from any connection. Can be dropped without losing one.
    pub async fn receive(&mut self) -> TcpPacket {
        match self.incoming.recv().await {
            Some(packet) => packet,
            // Cannot happen while `self` holds a sender; waiting is what "no packet" means.
            None => std::future::pending().await,
        }
    }
}

/// Runs until the peer connection drops its end, the other side closes, or nothing is sent for
/// long.
async fn serve(
    source: SocketAddr,
    destination: SocketAddr,
    mut outgoing: mpsc::Receiver<Vec<u8>>,
    incoming: mpsc::Sender<TcpPacket>,
) -> io::Result<()> {
    let mut stream = timeout(PATIENCE, TcpStream::connect(destination)).await??;
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.split();
    let mut buffer = Vec::with_capacity(4096);
    loop {
        tokio::select! {
            packet = timeout(IDLE, outgoing.recv()) => match packet {
                Ok(Some(packet)) => {
                    if let Some(frame) = frame(&packet) {
                        timeout(PATIENCE, writer.write_all(&frame)).await??;
                    }
                }
                Ok(None) | Err(_) => return writer.shutdown().await,
            },
            read = reader.read_buf(&mut buffer) => {
                if read? == 0 {
                    return Ok(());
                }
                while let Some(data) = take_frame(&mut buffer) {
                    let packet = TcpPacket { source: destination, destination: source, data };
                    if incoming.send(packet).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn frame(packet: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(packet.len()).ok()?;
    let mut frame = Vec::with_capacity(packet.len() + 2);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(packet);
    Some(frame)
}

pub(crate) fn take_frame(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes([*buffer.first()?, *buffer.get(1)?]));
    if buffer.len() < length + 2 {
        return None;
    }
    let packet = buffer[2..length + 2].to_vec();
    buffer.drain(..length + 2);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn frames_are_found_whatever_the_pieces() {
        let mut stream = frame(b"one").expect("short enough");
        stream.extend(frame(b"").expect("short enough"));
        stream.extend(frame(&[7; 300]).expect("short enough"));
        let (mut buffer, mut found) = (Vec::new(), Vec::new());
        for byte in stream {
            buffer.push(byte);
            found.extend(take_frame(&mut buffer));
        }
        assert_eq!(found, [b"one".to_vec(), vec![], vec![7; 300]]);
        assert!(buffer.is_empty());
        assert!(frame(&[0; 65_536]).is_none());
    }

    #[tokio::test]
    async fn packets_travel_in_both_directions_and_the_connection_ends_with_its_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let server = listener.local_addr().expect("bound");
        let local: SocketAddr = "127.0.0.1:9".parse().expect("an address");
        let mut connections = TcpConnections::new();
        connections.send(local, server, b"hello".to_vec());
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut received = [0; 7];
        stream.read_exact(&mut received).await.expect("a frame");
        assert_eq!(&received, b"\0\x05hello");
        stream.write_all(b"\0\x02hi").await.expect("written");
        let packet = connections.receive().await;
        assert_eq!(
            (packet.source, packet.destination, packet.data),
            (server, local, b"hi".to_vec())
        );
        drop(connections);
        assert_eq!(stream.read(&mut received).await.expect("the end"), 0);
    }
}
