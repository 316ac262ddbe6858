//! Simulated callers: join LiveKit rooms, dispatch an agent into each, talk to it and time its
//! answers.
//!
//! Knows nothing of the agent beyond the name it is dispatched by, so any LiveKit worker can be
//! measured. All callers run in this one process, on the official client. Every observation is one
//! JSON line on stdout, times in seconds since 1970: `call` (joined, greeting), `turn`,
//! `interrupt`, `hangup`, and the marks `start`, `all_live`, `hold_end`, `done`.
//!
//!     cargo run --release --example load -- --agent sales --calls 10 --hold 30 --wavs FOLDER
//!
//! FOLDER has `question.wav`, `lead.wav`, `everything.wav` and `stop.wav`, 48 kHz mono 16 bit:
//! `everything` asks for a long answer, `stop` is said over it. `LIVEKIT_URL`, `LIVEKIT_API_KEY`
//! and `LIVEKIT_API_SECRET` name the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use futures_util::future::join_all;
use livekit_api::services::agent_dispatch::AgentDispatchClient;
use livekit_api::services::room::{CreateRoomOptions, RoomClient};
use livekit_protocol as proto;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use voicebot::caller::{self, Caller, CallerOptions, MicrophoneOptions, wav};
use voicebot::settings::http_address;

const RATE_HZ: u32 = 48_000;
const RECORDING_RATE_HZ: u32 = 8_000;
/// How much the microphone holds ahead, ms.
const MICROPHONE_QUEUE_MS: u32 = 100;
const ANSWER: Duration = Duration::from_secs(12);

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
struct Arguments {
    #[arg(long, env = "LIVEKIT_URL")]
    url: String,
    #[arg(long, env = "LIVEKIT_API_KEY")]
    key: String,
    #[arg(long, env = "LIVEKIT_API_SECRET", hide_env_values = true)]
    secret: String,
    /// Name that the agent is dispatched by
    #[arg(long)]
    agent: String,
    #[arg(long, default_value_t = 1)]
    calls: usize,
    /// Seconds between the starts of two calls
    #[arg(long, default_value_t = 1.0)]
    ramp: f64,
    /// Seconds of talk once every call is live
    #[arg(long, default_value_t = 40.0)]
    hold: f64,
    #[arg(long, default_value_t = 30.0)]
    join_timeout: f64,
    /// What each caller says, over and over
    #[arg(long, default_value = "question,lead,question,interrupt")]
    script: String,
    /// Folder with the lines
    #[arg(long)]
    wavs: PathBuf,
    /// How a call ends: the caller leaves, or the room is deleted
    #[arg(long, value_parser = ["leave", "delete"], default_value = "leave")]
    hangup: String,
    /// Append to this file instead of stdout
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Writes observations; the clock that they are stamped with.
struct Log {
    out: std::sync::Mutex<Box<dyn std::io::Write + Send>>,
    start: (Instant, f64),
}

impl Log {
    fn new(out: Box<dyn std::io::Write + Send>) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |now| now.as_secs_f64());
        Self {
            out: out.into(),
            start: (Instant::now(), now),
        }
    }

    fn at(&self, moment: Instant) -> f64 {
        self.start.1 + moment.saturating_duration_since(self.start.0).as_secs_f64()
    }

    fn write(&self, mut line: Value) {
        line["t"] = json!(self.at(Instant::now()));
        let mut out = self.out.lock().expect("no writer panics");
        if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
            eprintln!("load: the observations cannot be written: {error}");
        }
    }
}

struct Call {
    number: usize,
    name: String,
    caller: Caller,
}

impl Call {
    async fn enter(arguments: &Arguments, number: usize) -> Result<Self, Failure> {
        let name = format!("load-{}", &uuid::Uuid::new_v4().simple().to_string()[..10]);
        let rooms = RoomClient::with_api_key(
            &http_address(&arguments.url),
            &arguments.key,
            &arguments.secret,
        );
        rooms
            .create_room(
                &name,
                CreateRoomOptions {
                    empty_timeout: 60,
                    ..Default::default()
                },
            )
            .await?;
        let identity = format!("caller-{number}");
        let token = caller::token(&arguments.key, &arguments.secret, &identity, &name)?;
        let options = CallerOptions {
            microphone: Some(MicrophoneOptions {
                sample_rate_hz: RATE_HZ,
                queue_ms: MICROPHONE_QUEUE_MS,
                ..MicrophoneOptions::default()
            }),
            hearing_rate_hz: RECORDING_RATE_HZ,
        };
        Ok(Self {
            number,
            name,
            caller: Caller::join(&arguments.url, &token, options).await?,
        })
    }

    /// Dispatches the agent and waits for its greeting.
    async fn greet(&mut self, arguments: &Arguments, log: &Log) -> Result<bool, Failure> {
        let dispatcher = AgentDispatchClient::with_api_key(
            &http_address(&arguments.url),
            &arguments.key,
            &arguments.secret,
        );
        let begin = Instant::now();
        let request = proto::CreateAgentDispatchRequest {
            agent_name: arguments.agent.clone(),
            room: self.name.clone(),
            ..Default::default()
        };
        dispatcher.create_dispatch(request).await?;
        let limit = Duration::from_secs_f64(arguments.join_timeout);
        let joined = self.caller.agent_joined(limit).await;
        let greeted = self.caller.hears_after(begin, limit).await;
        let since = |moment: Option<Instant>| moment.map(|moment| (moment - begin).as_secs_f64());
        log.write(json!({ "ev": "call", "call": self.number, "t0": log.at(begin), "joined": since(joined), "greeting": since(greeted) }));
        Ok(greeted.is_some())
    }

    /// Says a line; returns when it begins.
    async fn say(&self, samples: &Arc<[i16]>) -> Option<(Instant, Instant)> {
        let line = self.caller.begin(samples.clone()).await?;
        Some((line.first, line.last))
    }

    async fn turn(&mut self, kind: &str, lines: &Lines, log: &Log) -> Option<()> {
        let (pause, limit) = (Duration::from_millis(800), Duration::from_secs(25));
        self.caller.quiet(Instant::now(), pause, limit).await;
        sleep(Duration::from_millis(300)).await;
        let (first, last) = self.say(lines.get(kind)).await?;
        let onset = self
            .caller
            .hears_after(first, last - Instant::now() + ANSWER)
            .await;
        log.write(json!({ "ev": "turn", "call": self.number, "kind": kind, "t_start": log.at(first), "t_end": log.at(last),
                          "latency": onset.map(|onset| signed(onset, last)) }));
        onset.map(|_| ())
    }

    /// Asks for a long answer, talks over it after two seconds, and times how long the agent goes
    /// on.
    async fn interrupt(&mut self, lines: &Lines, log: &Log) -> Option<()> {
        self.turn("everything", lines, log).await?;
        sleep(Duration::from_secs(2)).await;
        let (first, last) = self.say(lines.get("stop")).await?;
        let limit = last - Instant::now() + Duration::from_secs(6);
        let stopped = self
            .caller
            .quiet(first, Duration::from_millis(350), limit)
            .await;
        log.write(json!({ "ev": "interrupt", "call": self.number, "t_start": log.at(first), "latency": stopped.map(|stopped| signed(stopped, first)) }));
        let onset = self
            .caller
            .hears_after(
                stopped.unwrap_or(first).max(first),
                last - Instant::now() + ANSWER,
            )
            .await;
        log.write(json!({ "ev": "turn", "call": self.number, "kind": "stop", "t_start": log.at(first), "t_end": log.at(last),
                          "latency": onset.map(|onset| signed(onset, last)) }));
        Some(())
    }

    async fn hang_up(self, arguments: &Arguments, log: &Log) {
        let begin = Instant::now();
        let stutters = self.caller.seen().heard.stutters;
        let rooms = RoomClient::with_api_key(
            &http_address(&arguments.url),
            &arguments.key,
            &arguments.secret,
        );
        if arguments.hangup == "delete" {
            // An error means that the agent was quicker.
            let _ = rooms.delete_room(&self.name).await;
        }
        self.caller.leave().await;
        let mut gone = None;
        while begin.elapsed() < Duration::from_secs(30) {
            let left = rooms
                .list_participants(&self.name)
                .await
                .unwrap_or_default();
            if left.is_empty() {
                gone = Some(begin.elapsed().as_secs_f64());
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        log.write(json!({ "ev": "hangup", "call": self.number, "t0": log.at(begin), "agent_gone": gone, "stutters": stutters }));
        // The agent has usually deleted it.
        let _ = rooms.delete_room(&self.name).await;
    }
}

/// `later - earlier` in seconds; negative when the answer came first.
fn signed(later: Instant, earlier: Instant) -> f64 {
    later.saturating_duration_since(earlier).as_secs_f64()
        - earlier.saturating_duration_since(later).as_secs_f64()
}

struct Lines(Vec<(String, Arc<[i16]>)>);

impl Lines {
    fn read(folder: &Path) -> Result<Self, Failure> {
        let mut lines = Vec::new();
        for kind in ["question", "lead", "everything", "stop"] {
            let path = folder.join(format!("{kind}.wav"));
            let file =
                std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let samples = wav::samples(&file, RATE_HZ)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            lines.push((kind.to_owned(), samples));
        }
        Ok(Self(lines))
    }

    fn get(&self, kind: &str) -> &Arc<[i16]> {
        self.0
            .iter()
            .find(|(known, _)| known == kind)
            .map(|(_, samples)| samples)
            .unwrap_or(&self.0[0].1)
    }
}

async fn hold(
    mut call: Call,
    arguments: &Arguments,
    lines: &Lines,
    log: &Log,
    mut over: watch::Receiver<bool>,
) -> Call {
    let script: Vec<&str> = arguments.script.split(',').collect();
    let mut step = 0;
    while !*over.borrow_and_update() {
        let kind = script[step % script.len()];
        step += 1;
        if kind == "interrupt" {
            call.interrupt(lines, log).await;
        } else {
            call.turn(kind, lines, log).await;
        }
    }
    call
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let out: Box<dyn std::io::Write + Send> = match &arguments.out {
        Some(path) => Box::new(
            std::fs::File::options()
                .create(true)
                .append(true)
                .open(path)?,
        ),
        None => Box::new(std::io::stdout()),
    };
    let (log, lines) = (Log::new(out), Lines::read(&arguments.wavs)?);
    let (log, lines, arguments) = (&log, &lines, &arguments);
    log.write(json!({ "ev": "start", "calls": arguments.calls }));
    let begin = Instant::now();
    let (end, over) = watch::channel(false);
    let live = std::sync::atomic::AtomicUsize::new(0);
    let connected = tokio::sync::Barrier::new(arguments.calls + 1);
    let one = async |number: usize| {
        sleep_until(begin + Duration::from_secs_f64(arguments.ramp * number as f64)).await;
        let call = async {
            let mut call = Call::enter(arguments, number).await?;
            let greeted = call.greet(arguments, log).await?;
            Ok::<_, Failure>((call, greeted))
        };
        let call = match call.await {
            Ok((call, greeted)) => {
                live.fetch_add(usize::from(greeted), std::sync::atomic::Ordering::Relaxed);
                Some((call, greeted))
            }
            Err(error) => {
                log.write(json!({ "ev": "error", "call": number, "error": error.to_string() }));
                None
            }
        };
        let talk = async {
            match call {
                Some((call, true)) => Some(hold(call, arguments, lines, log, over.clone()).await),
                Some((call, false)) => Some(call),
                None => None,
            }
        };
        let (call, _) = tokio::join!(talk, connected.wait());
        if let Some(call) = call {
            call.hang_up(arguments, log).await;
        }
    };
    let clock = async {
        connected.wait().await;
        log.write(json!({ "ev": "all_live", "live": live.load(std::sync::atomic::Ordering::Relaxed), "cpu": cpu_seconds() }));
        sleep(Duration::from_secs_f64(arguments.hold)).await;
        log.write(json!({ "ev": "hold_end", "cpu": cpu_seconds() }));
        end.send_replace(true);
    };
    let calls = join_all((0..arguments.calls).map(one));
    tokio::join!(calls, clock);
    log.write(json!({ "ev": "done" }));
    Ok(())
}

/// CPU time of this process, from `/proc` (100 ticks a second).
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?) / 100.0)
}
