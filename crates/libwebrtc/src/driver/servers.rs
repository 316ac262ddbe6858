//! Name resolution, and connections to TURN servers over TCP and TLS, for gathering.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::{TcpStream, lookup_host},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::ice::{
    gather::{Demand, Route},
    turn::take_message,
};

/// How long resolving a name, opening a connection or writing to it may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Messages that wait, in each direction. When the queue is full, outgoing messages are dropped, as
/// a router would do, and reading pauses.
const QUEUE: usize = 256;

/// The result of a demand, or a message that came over a connection.
pub(super) enum LinkInput {
    Resolved {
        query: u32,
        routes: Result<Vec<Route>, String>,
    },
    Opened {
        link: u32,
        local: SocketAddr,
    },
    Message {
        link: u32,
        data: Vec<u8>,
    },
    Closed {
        link: u32,
        reason: String,
    },
}

/// The connections of one peer connection to its servers. They end with it, after what is still to
/// be sent.
pub(super) struct ServerLinks {
    outgoing: HashMap<u32, mpsc::Sender<Vec<u8>>>,
    input_sender: mpsc::Sender<LinkInput>,
    input: mpsc::Receiver<LinkInput>,
}

impl ServerLinks {
    pub fn new() -> Self {
        let (input_sender, input) = mpsc::channel(QUEUE);
        Self {
            outgoing: HashMap::new(),
            input_sender,
            input,
        }
    }

    /// Starts what the gatherer asks for. Must be called inside a tokio runtime.
    pub fn serve(&mut self, demand: Demand) {
        let input = self.input_sender.clone();
        match demand {
            Demand::Resolve { query, host, port } => {
                tokio::spawn(async move {
                    let routes = resolve(&host, port).await;
                    let _ = input.send(LinkInput::Resolved { query, routes }).await;
                });
            }
            Demand::Connect {
                link,
                server,
                tls_name,
            } => {
                let (sender, outgoing) = mpsc::channel(QUEUE);
                self.outgoing.insert(link, sender);
                tokio::spawn(async move {
                    let end = connect(link, server, tls_name, outgoing, &input).await;
                    let reason = match end {
                        Ok(()) => "the connection to the TURN server was closed".to_owned(),
                        Err(error) => {
                            format!("the connection to the TURN server {server}: {error}")
                        }
                    };
                    let _ = input.send(LinkInput::Closed { link, reason }).await;
                });
            }
            Demand::Disconnect { link } => {
                self.outgoing.remove(&link);
            }
        }
    }

    pub fn send(&mut self, link: u32, data: Vec<u8>) {
        let outgoing = self.outgoing.get(&link);
        if outgoing.is_some_and(|outgoing| outgoing.try_send(data).is_err()) {
            log::debug!("the connection to the TURN server is full or gone: a packet is dropped");
        }
    }

    /// The next input. Can be dropped without losing one.
    pub async fn next(&mut self) -> LinkInput {
        match self.input.recv().await {
            Some(input) => input,
            // Cannot happen while `self` holds a sender; waiting is what "no input" means.
            None => std::future::pending().await,
        }
    }
}

/// Resolves a host and asks the system from which local address each of its addresses is reached.
async fn resolve(host: &str, port: u16) -> Result<Vec<Route>, String> {
    let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => match timeout(PATIENCE, lookup_host((host, port))).await {
            Ok(Ok(addresses)) => addresses.collect(),
            Ok(Err(error)) => return Err(format!("{host} cannot be looked up: {error}")),
            Err(_) => return Err(format!("looking up {host} takes too long")),
        },
    };
    let route = |server| {
        Some(Route {
            server,
            local: local_towards(server).ok()?,
        })
    };
    Ok(addresses.into_iter().filter_map(route).collect())
}

/// The address of this machine from which a server is reached. Connecting a UDP socket sends
/// nothing.
fn local_towards(server: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(server)?;
    Ok(socket.local_addr()?.ip())
}

async fn connect(
    link: u32,
    server: SocketAddr,
    tls_name: Option<String>,
    mut outgoing: mpsc::Receiver<Vec<u8>>,
    input: &mpsc::Sender<LinkInput>,
) -> io::Result<()> {
    let opening = async {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        match tls_name {
            None => Ok::<_, io::Error>((local, Stream::Plain(stream))),
            Some(name) => {
                let connector = TlsConnector::from(tls_config().await?);
                let name = ServerName::try_from(name).map_err(io::Error::other)?;
                let stream = connector.connect(name, stream).await?;
                Ok((local, Stream::Tls(Box::new(stream))))
            }
        }
    };
    let opened = tokio::select! {
        opened = timeout(PATIENCE, opening) => opened,
        // Nothing is sent before the connection is open, so this is a request to end.
        _ = outgoing.recv() => return Ok(()),
    };
    let (local, stream) = opened.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if input.send(LinkInput::Opened { link, local }).await.is_err() {
        return Ok(());
    }
    match stream {
        Stream::Plain(stream) => carry(link, stream, outgoing, input).await,
        Stream::Tls(stream) => carry(link, stream, outgoing, input).await,
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// Carries messages in both directions until one side ends.
async fn carry(
    link: u32,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    mut outgoing: mpsc::Receiver<Vec<u8>>,
    input: &mpsc::Sender<LinkInput>,
) -> io::Result<()> {
    let (mut reader, mut writer) = split(stream);
    let mut buffer = Vec::with_capacity(4096);
    loop {
        tokio::select! {
            data = outgoing.recv() => match data {
                Some(data) => {
                    timeout(PATIENCE, async {
                        writer.write_all(&data).await?;
                        writer.flush().await
                    })
                    .await??;
                }
                None => return timeout(PATIENCE, writer.shutdown()).await?,
            },
            read = reader.read_buf(&mut buffer) => {
                if read? == 0 {
                    return Ok(());
                }
                while let Some(data) = take_message(&mut buffer).map_err(io::Error::other)? {
                    if input.send(LinkInput::Message { link, data }).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// The TLS configuration with the certificates that the system trusts. They are read when a server
/// needs them, and kept only as long as a connection uses them, because they take memory in every
/// call.
async fn tls_config() -> io::Result<Arc<ClientConfig>> {
    static SHARED: Mutex<Weak<ClientConfig>> = Mutex::new(Weak::new());
    if let Some(config) = SHARED.lock().upgrade() {
        return Ok(config);
    }
    let read = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs);
    let found = read.await.map_err(io::Error::other)?;
    for error in &found.errors {
        log::warn!("a certificate of the system cannot be read: {error}");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    *SHARED.lock() = Arc::downgrade(&config);
    Ok(config)
}
