//! What a call costs: processes with one room each and sound in both directions, watched from
//! outside and by their own statistics.
//!
//!     cargo run --release --example rooms -- --processes 10 --seconds 60 --every 5
//!
//! Starts itself `--processes` times as one side of a call, and once as the other side of all of
//! them, which is not counted. Every `--every` seconds there is a JSON line for each process:
//! memory (PSS and USS), share of a core, threads, descriptors, how long sound waited in the jitter
//! buffer and how much of it was concealed since the line before. At the end, the least, the median
//! and the most of all lines but the first of each process, in which it was still settling.
//! `LIVEKIT_URL`, `LIVEKIT_API_KEY` and `LIVEKIT_API_SECRET` name the server, which must be another
//! process.

use std::error::Error;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::Parser;
use futures_util::StreamExt as _;
use futures_util::future::{join_all, try_join_all};
use livekit::prelude::*;
use livekit::webrtc::audio_stream::native::NativeAudioStream;
use livekit::webrtc::stats::RtcStats;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use voicebot::caller::{Microphone, MicrophoneOptions, stdin_lines, token, wav};

/// What a caller of ours says, over and over.
const VOICE: &[u8] = include_bytes!("../tests/fixtures/audio/lead.wav");
const VOICE_RATE_HZ: u32 = 16_000;
const QUEUE_MS: u32 = 100;
/// What an agent hears with.
const HEARING_RATE_HZ: i32 = 16_000;
/// How long joining, an answer and leaving may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Clock ticks a second in /proc/PID/stat; part of Linux's ABI.
const TICKS_PER_S: f64 = 100.0;

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
struct Arguments {
    #[arg(long, env = "LIVEKIT_URL")]
    url: String,
    #[arg(long, env = "LIVEKIT_API_KEY")]
    key: String,
    #[arg(long, env = "LIVEKIT_API_SECRET", hide_env_values = true)]
    secret: String,
    #[arg(long, default_value_t = 1)]
    processes: usize,
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    #[arg(long, default_value_t = 5)]
    every: u64,
    /// The side of the call that this process is, instead of the one that starts the others
    #[arg(long, hide = true)]
    side: Option<Side>,
    /// The rooms of this process
    #[arg(long, hide = true, value_delimiter = ',')]
    rooms: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Side {
    Counted,
    Other,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    match arguments.side {
        None => watch_all(&arguments).await,
        Some(side) => take_part(&arguments, side).await,
    }
}

/// One side in each of the rooms, until stdin ends. Answers each line with what the statistics say
/// of the sound in all of them.
async fn take_part(arguments: &Arguments, side: Side) -> Result<(), Failure> {
    let calls = try_join_all(
        arguments
            .rooms
            .iter()
            .map(|room| call(arguments, side, room)),
    )
    .await?;
    println!("{}", json!({"joined": calls.len()}));
    let mut orders = stdin_lines();
    while orders.recv().await.is_some() {
        let mut sound = Sound::default();
        for call in &calls {
            sound.add(call).await?;
        }
        println!("{}", sound.json());
    }
    for call in calls {
        call.room.close().await?;
    }
    Ok(())
}

struct Call {
    room: Room,
    _microphone: Microphone,
    heard: watch::Receiver<Option<RemoteAudioTrack>>,
}

async fn call(arguments: &Arguments, side: Side, name: &str) -> Result<Call, Failure> {
    let identity = format!("{side:?}");
    let token = token(&arguments.key, &arguments.secret, &identity, name)?;
    let (room, mut events) = Room::connect(&arguments.url, &token, RoomOptions::default()).await?;
    let options = MicrophoneOptions {
        sample_rate_hz: VOICE_RATE_HZ,
        queue_ms: QUEUE_MS,
        background: wav::samples(VOICE, VOICE_RATE_HZ)?,
        ..MicrophoneOptions::default()
    };
    let microphone = Microphone::switch_on(&room, options).await?;
    let (tell, heard) = watch::channel(None);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let RoomEvent::TrackSubscribed {
                track: RemoteTrack::Audio(track),
                ..
            } = event
            {
                let mut stream = NativeAudioStream::new(track.rtc_track(), HEARING_RATE_HZ, 1);
                tokio::spawn(async move { while stream.next().await.is_some() {} });
                let _ = tell.send(Some(track));
            }
        }
    });
    Ok(Call {
        room,
        _microphone: microphone,
        heard,
    })
}

/// Sums since the beginning, as the statistics have them.
#[derive(Debug, Clone, Copy, Default)]
struct Sound {
    delay_s: f64,
    emitted: f64,
    concealed: f64,
    samples: f64,
}

impl Sound {
    async fn add(&mut self, call: &Call) -> Result<(), Failure> {
        let track = call.heard.borrow().clone();
        let Some(track) = track else { return Ok(()) };
        for entry in track.get_stats().await? {
            if let RtcStats::InboundRtp(it) = entry {
                self.delay_s += it.inbound.jitter_buffer_delay;
                self.emitted += it.inbound.jitter_buffer_emitted_count as f64;
                self.concealed += it.inbound.concealed_samples as f64;
                self.samples += it.inbound.total_samples_received as f64;
            }
        }
        Ok(())
    }

    fn json(self) -> Value {
        json!([self.delay_s, self.emitted, self.concealed, self.samples])
    }

    fn read(line: &str) -> Result<Self, Failure> {
        let [delay_s, emitted, concealed, samples] = serde_json::from_str(line)?;
        Ok(Self {
            delay_s,
            emitted,
            concealed,
            samples,
        })
    }
}

/// A process that takes part; killed when it is dropped.
struct Process {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    id: u32,
    last: Option<(Instant, f64, Sound)>,
}

impl Process {
    async fn start(arguments: &Arguments, side: &str, rooms: &[String]) -> Result<Self, Failure> {
        // The key and the secret go by the environment; arguments can be read by everybody.
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--side", side, "--rooms", &rooms.join(",")])
            .env("LIVEKIT_URL", &arguments.url)
            .env("LIVEKIT_API_KEY", &arguments.key)
            .env("LIVEKIT_API_SECRET", &arguments.secret)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let orders = child.stdin.take().ok_or("a child has a stdin")?;
        let answers = child.stdout.take().ok_or("a child has a stdout")?;
        let id = child.id().ok_or("a child that runs has an id")?;
        let mut process = Self {
            child,
            orders,
            answers: BufReader::new(answers).lines(),
            id,
            last: None,
        };
        process.answer().await?;
        Ok(process)
    }

    async fn answer(&mut self) -> Result<String, Failure> {
        let line = timeout(PATIENCE, self.answers.next_line()).await;
        let line = line.map_err(|_| format!("process {} does not answer", self.id))??;
        Ok(line.ok_or_else(|| format!("process {} has ended", self.id))?)
    }

    /// What it holds now, and what it has used since it was polled before.
    async fn poll(&mut self) -> Result<Value, Failure> {
        self.orders.write_all(b"stats\n").await?;
        let sound = Sound::read(&self.answer().await?)?;
        let (now, used_s) = (Instant::now(), used_s(self.id)?);
        let before = self.last.replace((now, used_s, sound));
        let memory = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.id))?;
        let status = fs::read_to_string(format!("/proc/{}/status", self.id))?;
        let mut found = json!({
            "pss_kib": number(&memory, "Pss:"),
            "uss_kib": number(&memory, "Private_Clean:") + number(&memory, "Private_Dirty:"),
            "threads": number(&status, "Threads:"),
            "descriptors": fs::read_dir(format!("/proc/{}/fd", self.id))?.count(),
        });
        if let Some((then, used_then_s, sound_then)) = before {
            let emitted = sound.emitted - sound_then.emitted;
            let samples = sound.samples - sound_then.samples;
            let share = (used_s - used_then_s) / (now - then).as_secs_f64();
            found["cpu_percent"] = json!(share * 100.0);
            found["buffer_ms"] = json!((sound.delay_s - sound_then.delay_s) * 1000.0 / emitted);
            found["concealed_percent"] =
                json!((sound.concealed - sound_then.concealed) * 100.0 / samples);
        }
        Ok(found)
    }

    async fn end(mut self) {
        drop(self.orders);
        if timeout(PATIENCE, self.child.wait()).await.is_err() {
            eprintln!("process {} did not leave and is killed", self.id);
            let _ = self.child.kill().await;
        }
    }
}

/// The number behind a name in a file of /proc.
fn number(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

/// The time on processors that a process has had, in user and in kernel mode.
fn used_s(id: u32) -> Result<f64, Failure> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name in the second field may have anything in it; the fields are counted from behind it
    // (proc(5): utime is the 14th).
    let (_, fields) = stat.rsplit_once(')').ok_or("/proc/PID/stat has a name")?;
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum();
    Ok(ticks / TICKS_PER_S)
}

async fn watch_all(arguments: &Arguments) -> Result<(), Failure> {
    let rooms: Vec<String> = (0..arguments.processes)
        .map(|number| format!("rooms-{}-{number}", std::process::id()))
        .collect();
    let other = Process::start(arguments, "other", &rooms).await?;
    let mut processes = try_join_all(
        rooms
            .chunks(1)
            .map(|room| Process::start(arguments, "counted", room)),
    )
    .await?;
    let began = Instant::now();
    let mut tick = interval(Duration::from_secs(arguments.every.max(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut found = Vec::new();
    let seconds = Duration::from_secs(arguments.seconds);
    while began.elapsed() < seconds {
        tick.tick().await;
        for (number, process) in processes.iter_mut().enumerate() {
            let mut line = process.poll().await?;
            line["process"] = json!(number);
            line["at_s"] = json!(began.elapsed().as_secs_f64());
            println!("{line}");
            found.push(line);
        }
    }
    println!("{}", summary(&found));
    join_all(processes.into_iter().chain([other]).map(Process::end)).await;
    Ok(())
}

/// The least, the median and the most of each figure.
fn summary(lines: &[Value]) -> Value {
    let settled = || {
        lines
            .iter()
            .filter(|line| line.get("cpu_percent").is_some())
    };
    let mut told = json!({"lines": settled().count()});
    for name in [
        "pss_kib",
        "uss_kib",
        "cpu_percent",
        "threads",
        "descriptors",
        "buffer_ms",
        "concealed_percent",
    ] {
        let mut values: Vec<f64> = settled().filter_map(|line| line[name].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        if let (Some(min), Some(max)) = (values.first(), values.last()) {
            told[name] = json!({"min": min, "median": values[values.len() / 2], "max": max});
        }
    }
    told
}
