//! Serves rooms on loopback until interrupted: `cargo run -p roomserver --example serve -- [PORT]
//! [udp|tcp|lined]`. With `tcp` media is accepted over TCP only, with `udp` over UDP only. With
//! `lined`, UDP goes through emulated lines that are controlled over stdin as those of the example
//! `line` are, and the server ends when stdin does.

mod orders;

use std::net::{Ipv4Addr, SocketAddr};

use roomserver::line::Lines;
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
        lines: (transport == "lined").then(|| Lines::new(1)),
        udp: transport != "tcp",
        rtc_tcp: transport != "udp",
        ..Options::default()
    };
    let lines = options.lines.clone();
    let server = RoomServer::start(options).await?;
    println!("{}", server.url());
    match lines {
        None => tokio::signal::ctrl_c().await?,
        Some(lines) => orders::obey(&lines).await?,
    }
    server.shutdown().await;
    Ok(())
}
