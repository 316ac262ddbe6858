//! Connects and closes over and over, and watches what the process holds: descriptors, threads,
//! memory.
//!
//!     cargo run --release --example cycles -- --cycles 1000
//!
//! Cycle by cycle in turn: the client ends the room, the server ends it (the room is deleted), and
//! the connecting is given up at a random moment (`--seed`). One JSON line for each hundred cycles,
//! and one with the times to connect; ends with 1 if descriptors or threads are left over, or
//! memory has grown by more than `--most-growth-kib` since a quarter of the cycles. `LIVEKIT_URL`,
//! `LIVEKIT_API_KEY` and `LIVEKIT_API_SECRET` name the server, which must be another process.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use livekit::prelude::*;
use livekit::webrtc::prelude::IceTransportsType;
use livekit_api::services::room::RoomClient;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use voicebot::caller::{MicrophoneOptions, publish, token};
use voicebot::settings::http_address;

/// How long one step may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(20);
/// Connecting is given up within this time; a connection to a server nearby takes less.
const MOST_BEFORE_GIVING_UP: Duration = Duration::from_millis(80);
/// What an ended room may take to go away before it is counted: the client's own tasks end by
/// themselves, and the runtime keeps a thread for blocking work for ten seconds after it.
const SETTLE: Duration = Duration::from_secs(30);

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
struct Arguments {
    #[arg(long, env = "LIVEKIT_URL")]
    url: String,
    #[arg(long, env = "LIVEKIT_API_KEY")]
    key: String,
    #[arg(long, env = "LIVEKIT_API_SECRET", hide_env_values = true)]
    secret: String,
    #[arg(long, default_value_t = 1000)]
    cycles: u32,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How the cycles end
    #[arg(long, value_delimiter = ',', default_value = "client,server,cancel")]
    endings: Vec<Ending>,
    #[arg(long, default_value_t = 2048)]
    most_growth_kib: u64,
    /// Use nothing but relays
    #[arg(long)]
    relay: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Ending {
    Client,
    Server,
    Cancel,
}

/// What the process holds.
#[derive(Clone, Copy)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    rss_kib: u64,
}

impl Holdings {
    fn now() -> Result<Self, Failure> {
        let status = fs::read_to_string("/proc/self/status")?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok())
                .ok_or_else(|| format!("/proc/self/status has no {name}"))
        };
        Ok(Self {
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            threads: number("Threads:")? as usize,
            rss_kib: number("VmRSS:")?,
        })
    }

    fn print(self, cycle: u32) {
        println!(
            "{}",
            json!({"cycle": cycle, "descriptors": self.descriptors, "threads": self.threads, "rss_kib": self.rss_kib})
        );
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Failure> {
    let arguments = Arguments::parse();
    let mut random = StdRng::seed_from_u64(arguments.seed);
    let mut connect_ms = Vec::new();
    let (mut first, mut quarter) = (None, None);
    for cycle in 0..arguments.cycles {
        let ending = arguments.endings[cycle as usize % arguments.endings.len()];
        let give_up = random.random_range(Duration::ZERO..MOST_BEFORE_GIVING_UP);
        let took = timeout(PATIENCE, one(&arguments, cycle, ending, give_up)).await;
        let took = took.map_err(|_| format!("cycle {cycle} is stuck"))??;
        connect_ms.extend(took.map(|took| took.as_secs_f64() * 1000.0));
        if cycle == 20.min(arguments.cycles / 4) {
            sleep(SETTLE).await;
            first = Some(Holdings::now()?);
        }
        if cycle == arguments.cycles / 4 {
            sleep(SETTLE).await;
            quarter = Some(Holdings::now()?);
        }
        if cycle % 100 == 0 {
            Holdings::now()?.print(cycle);
        }
    }
    sleep(SETTLE).await;
    let last = Holdings::now()?;
    last.print(arguments.cycles);
    connect_ms.sort_by(f64::total_cmp);
    if let (Some(median), Some(longest)) = (connect_ms.get(connect_ms.len() / 2), connect_ms.last())
    {
        println!(
            "{}",
            json!({"connects": connect_ms.len(), "connect_ms": {"median": median, "max": longest}})
        );
    }
    let (Some(first), Some(quarter)) = (first, quarter) else {
        return Ok(ExitCode::SUCCESS);
    };
    let flat = last.descriptors <= first.descriptors
        && last.threads <= first.threads
        && last.rss_kib <= quarter.rss_kib + arguments.most_growth_kib;
    Ok(match flat {
        true => ExitCode::SUCCESS,
        false => {
            eprintln!("something was left over: compare the first and the last line");
            ExitCode::FAILURE
        }
    })
}

/// One room from the beginning to the end. Answers how long connecting took.
async fn one(
    arguments: &Arguments,
    cycle: u32,
    ending: Ending,
    give_up: Duration,
) -> Result<Option<Duration>, Failure> {
    let name = format!("cycles-{}-{cycle}", arguments.seed);
    let token = token(&arguments.key, &arguments.secret, "somebody", &name)?;
    let mut options = RoomOptions::default();
    if arguments.relay {
        options.rtc_config.ice_transport_type = IceTransportsType::Relay;
    }
    let began = Instant::now();
    let connecting = Room::connect(&arguments.url, &token, options);
    let (room, mut events) = match ending {
        Ending::Cancel => match timeout(give_up, connecting).await {
            Err(_) => return Ok(None),
            Ok(connected) => connected?,
        },
        _ => connecting.await?,
    };
    let took = began.elapsed();
    let microphone = MicrophoneOptions {
        sample_rate_hz: 48_000,
        red: true,
        ..MicrophoneOptions::default()
    };
    let publishing = publish(&room, &microphone);
    match ending {
        Ending::Cancel => {
            let _ = timeout(give_up, publishing).await;
            room.close().await?;
        }
        Ending::Client => {
            publishing.await?;
            room.close().await?;
        }
        Ending::Server => {
            publishing.await?;
            let http = http_address(&arguments.url);
            RoomClient::with_api_key(&http, &arguments.key, &arguments.secret)
                .delete_room(&name)
                .await?;
            while let Some(event) = events.recv().await {
                if matches!(event, RoomEvent::Disconnected { .. }) {
                    break;
                }
            }
            // The client does not let go of a room by itself when the server has ended it.
            let _ = room.close().await;
        }
    }
    Ok(Some(took))
}
