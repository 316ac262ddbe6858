//! Serves rooms on loopback until interrupted: `cargo run -p roomserver --example serve -- [PORT] [udp|tcp]`.
//! With `tcp` media is accepted over TCP only, with `udp` over UDP only.

use std::net::{Ipv4Addr, SocketAddr};

use roomserver::{Options, RoomServer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let port = std::env::args()
        .nth(1)
        .map_or(Ok(7880), |port| port.parse())?;
    let transport = std::env::args().nth(2).unwrap_or_default();
    let options = Options {
        bind: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        udp: transport != "tcp",
        rtc_tcp: transport != "udp",
        ..Options::default()
    };
    let server = RoomServer::start(options).await?;
    println!("{}", server.url());
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}
