//! An emulated line in front of a server's one UDP media port, controlled over stdin:
//!
//!     cargo run -p roomserver --example line -- LISTEN SERVER [SEED [SECONDS]]
//!
//! - `admit CLASS` puts clients that send for the first time from now on into this class.
//! - `from ADDRESS CLASS` puts those at this address into the class in any case.
//! - `weather CLASS loss=0.05 jitter_ms=80 lost_ms=6000..8000 …` sets the conditions of a class
//!   from now on; with nothing after the class, its line is clear again.
//!
//! Each command is answered with a JSON line that says what was done under the conditions before.
//! Ends when stdin does, or after SECONDS (an hour).
//!
//! LiveKit's server announces the address in `rtc.node_ip` and listens on the machine's own
//! addresses, so the line can have the same port on a loopback address that is announced; with
//! `rtc.use_ice_lite` the server does not look for paths around the line.

mod orders;

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use roomserver::line::{Line, Lines};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or_else(|| format!("{what} is missing"));
    let listen: SocketAddr = next("the address to listen at")?.parse()?;
    let server: SocketAddr = next("the server's address")?.parse()?;
    let seed = next("").map_or(Ok(1), |seed| seed.parse())?;
    let seconds = next("").map_or(Ok(3600), |seconds| seconds.parse())?;
    let lines = Lines::new(seed);
    let line = Line::open(listen, server, &lines).await?;
    println!("{}", json!({"listens": line.address(), "seed": seed}));
    tokio::time::timeout(Duration::from_secs(seconds), orders::obey(&lines))
        .await
        .unwrap_or(Ok(()))
}
