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
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use livekit::options::TrackPublishOptions;
use livekit::participant::ParticipantKind;
use livekit::prelude::*;
use livekit::webrtc::audio_frame::AudioFrame;
use livekit::webrtc::audio_source::native::NativeAudioSource;
use livekit::webrtc::audio_source::{AudioSourceOptions, RtcAudioSource};
use livekit::webrtc::audio_stream::native::NativeAudioStream;
use livekit_api::access_token::{AccessToken, VideoGrants};
use livekit_api::services::agent_dispatch::AgentDispatchClient;
use livekit_api::services::room::{CreateRoomOptions, RoomClient};
use livekit_protocol as proto;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

const RATE_HZ: u32 = 48_000;
const EAR_RATE_HZ: u32 = 8_000;
/// What counts as sound, of a full scale of 32,768.
const LOUD: i16 = 600;
/// Sound after a pause this long is a new onset.
const PAUSE: Duration = Duration::from_millis(300);
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

#[derive(Clone, Copy, Default)]
struct Heard {
    onset: Option<Instant>,
    last: Option<Instant>,
    stutters: u32,
}

struct Line {
    samples: Arc<[i16]>,
    begun: oneshot::Sender<(Instant, Instant)>,
}

struct Call {
    number: usize,
    name: String,
    room: Room,
    microphone: mpsc::Sender<Line>,
    heard: watch::Receiver<Heard>,
    joined: watch::Receiver<Option<Instant>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Call {
    async fn enter(arguments: &Arguments, number: usize) -> Result<Self, Failure> {
        let name = format!("load-{}", &uuid::Uuid::new_v4().simple().to_string()[..10]);
        let rooms =
            RoomClient::with_api_key(&http(&arguments.url), &arguments.key, &arguments.secret);
        rooms
            .create_room(
                &name,
                CreateRoomOptions {
                    empty_timeout: 60,
                    ..Default::default()
                },
            )
            .await?;
        let grants = VideoGrants {
            room_join: true,
            room: name.clone(),
            ..Default::default()
        };
        let token = AccessToken::with_api_key(&arguments.key, &arguments.secret)
            .with_identity(&format!("caller-{number}"))
            .with_grants(grants)
            .to_jwt()?;
        let mut options = RoomOptions::default();
        options.auto_subscribe = true;
        let (room, events) = Room::connect(&arguments.url, &token, options).await?;
        let source = NativeAudioSource::new(
            AudioSourceOptions::default(),
            RATE_HZ,
            1,
            MICROPHONE_QUEUE_MS,
        );
        let track = LocalAudioTrack::create_audio_track(
            "microphone",
            RtcAudioSource::Native(source.clone()),
        );
        let publish = TrackPublishOptions {
            source: TrackSource::Microphone,
            dtx: false,
            red: false,
            ..Default::default()
        };
        room.local_participant()
            .publish_track(LocalTrack::Audio(track), publish)
            .await?;
        let (microphone, lines) = mpsc::channel(1);
        let (hear, heard) = watch::channel(Heard::default());
        let (see, joined) = watch::channel(None);
        let tasks = vec![
            tokio::spawn(speak(source, lines)),
            tokio::spawn(look(events, see, hear)),
        ];
        Ok(Self {
            number,
            name,
            room,
            microphone,
            heard,
            joined,
            tasks,
        })
    }

    /// Dispatches the agent and waits for its greeting.
    async fn greet(&mut self, arguments: &Arguments, log: &Log) -> Result<bool, Failure> {
        let dispatcher = AgentDispatchClient::with_api_key(
            &http(&arguments.url),
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
        let joined = timeout(limit, self.joined.wait_for(Option::is_some))
            .await
            .ok()
            .and_then(|seen| seen.ok().and_then(|seen| *seen));
        let greeted = self.onset_after(begin, limit).await;
        let since = |moment: Option<Instant>| moment.map(|moment| (moment - begin).as_secs_f64());
        log.write(json!({ "ev": "call", "call": self.number, "t0": log.at(begin), "joined": since(joined), "greeting": since(greeted) }));
        Ok(greeted.is_some())
    }

    async fn onset_after(&mut self, moment: Instant, limit: Duration) -> Option<Instant> {
        let after = |heard: &Heard| heard.onset.is_some_and(|onset| onset > moment);
        timeout(limit, self.heard.wait_for(after))
            .await
            .ok()?
            .ok()?
            .onset
    }

    /// Waits until nothing has been heard for `pause`; gives back when the last sound was.
    async fn quiet(&mut self, since: Instant, pause: Duration, limit: Duration) -> Option<Instant> {
        let quiet = |heard: &Heard| {
            since.elapsed() > pause && heard.last.is_some_and(|last| last.elapsed() > pause)
        };
        timeout(limit, self.heard.wait_for(quiet))
            .await
            .ok()?
            .ok()?
            .last
    }

    async fn say(&self, samples: &Arc<[i16]>) -> Option<(Instant, Instant)> {
        let (begun, begin) = oneshot::channel();
        self.microphone
            .send(Line {
                samples: samples.clone(),
                begun,
            })
            .await
            .ok()?;
        begin.await.ok()
    }

    async fn turn(&mut self, kind: &str, lines: &Lines, log: &Log) -> Option<()> {
        self.quiet(
            Instant::now(),
            Duration::from_millis(800),
            Duration::from_secs(25),
        )
        .await;
        sleep(Duration::from_millis(300)).await;
        let (first, last) = self.say(lines.get(kind)).await?;
        let onset = self
            .onset_after(first, last - Instant::now() + ANSWER)
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
        let stopped = {
            let silent = |heard: &Heard| {
                Instant::now() > first + Duration::from_millis(350)
                    && heard
                        .last
                        .is_some_and(|at| at.elapsed() > Duration::from_millis(350))
            };
            timeout(
                last - Instant::now() + Duration::from_secs(6),
                self.heard.wait_for(silent),
            )
            .await
            .ok()
            .and_then(|heard| heard.ok().and_then(|heard| heard.last))
        };
        log.write(json!({ "ev": "interrupt", "call": self.number, "t_start": log.at(first), "latency": stopped.map(|stopped| signed(stopped, first)) }));
        let onset = self
            .onset_after(
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
        for task in &self.tasks {
            task.abort();
        }
        let stutters = self.heard.borrow().stutters;
        let rooms =
            RoomClient::with_api_key(&http(&arguments.url), &arguments.key, &arguments.secret);
        if arguments.hangup == "delete" {
            // An error means that the agent was quicker.
            let _ = rooms.delete_room(&self.name).await;
        }
        // An error means that the room is gone already.
        let _ = self.room.close().await;
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

fn http(url: &str) -> String {
    voicebot::call::http_address(url)
}

struct Lines(Vec<(String, Arc<[i16]>)>);

impl Lines {
    fn read(folder: &Path) -> Result<Self, Failure> {
        let mut lines = Vec::new();
        for kind in ["question", "lead", "everything", "stop"] {
            let path = folder.join(format!("{kind}.wav"));
            let wav =
                std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let at = wav
                .windows(4)
                .position(|window| window == b"data")
                .ok_or_else(|| format!("{} is no WAV file", path.display()))?;
            let samples = wav[at + 8..]
                .chunks_exact(2)
                .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
                .collect();
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

async fn speak(source: NativeAudioSource, mut lines: mpsc::Receiver<Line>) {
    const FRAME: usize = RATE_HZ as usize / 50;
    let silence = [0i16; FRAME];
    loop {
        match lines.try_recv() {
            Ok(line) => {
                let first = Instant::now() + Duration::from_millis(u64::from(MICROPHONE_QUEUE_MS));
                let length =
                    Duration::from_secs_f64(line.samples.len() as f64 / f64::from(RATE_HZ));
                let _ = line.begun.send((first, first + length));
                for piece in line.samples.chunks(FRAME) {
                    let mut frame = silence;
                    frame[..piece.len()].copy_from_slice(piece);
                    if capture(&source, &frame).await.is_err() {
                        return;
                    }
                }
            }
            Err(mpsc::error::TryRecvError::Empty) => {
                if capture(&source, &silence).await.is_err() {
                    return;
                }
            }
            Err(mpsc::error::TryRecvError::Disconnected) => return,
        }
    }
}

async fn capture(
    source: &NativeAudioSource,
    samples: &[i16],
) -> Result<(), livekit::webrtc::RtcError> {
    let frame = AudioFrame {
        data: samples.into(),
        sample_rate: RATE_HZ,
        num_channels: 1,
        samples_per_channel: samples.len() as u32,
    };
    source.capture_frame(&frame).await
}

async fn look(
    mut events: mpsc::UnboundedReceiver<RoomEvent>,
    see: watch::Sender<Option<Instant>>,
    hear: watch::Sender<Heard>,
) {
    let mut ear: Option<JoinHandle<()>> = None;
    while let Some(event) = events.recv().await {
        let is_agent =
            |participant: &RemoteParticipant| participant.kind() == ParticipantKind::Agent;
        match event {
            RoomEvent::ParticipantConnected(participant) if is_agent(&participant) => {
                see.send_if_modified(|seen| {
                    seen.is_none() && {
                        *seen = Some(Instant::now());
                        true
                    }
                });
            }
            RoomEvent::TrackSubscribed {
                track: RemoteTrack::Audio(track),
                participant,
                ..
            } if is_agent(&participant) => {
                see.send_if_modified(|seen| {
                    seen.is_none() && {
                        *seen = Some(Instant::now());
                        true
                    }
                });
                ear = Some(tokio::spawn(listen(
                    NativeAudioStream::new(track.rtc_track(), EAR_RATE_HZ as i32, 1),
                    hear.clone(),
                )));
            }
            RoomEvent::Disconnected { .. } => break,
            _ => {}
        }
    }
    if let Some(ear) = ear {
        ear.abort();
    }
}

async fn listen(mut stream: NativeAudioStream, hear: watch::Sender<Heard>) {
    let mut frames = 0u32;
    while let Some(frame) = stream.next().await {
        let loud = frame
            .data
            .iter()
            .any(|sample| sample.saturating_abs() > LOUD);
        frames += 1;
        let now = Instant::now();
        hear.send_if_modified(|heard| {
            if loud {
                match heard.last {
                    Some(last) if now - last <= PAUSE => {
                        heard.stutters += u32::from(now - last > Duration::from_millis(60))
                    }
                    _ => heard.onset = Some(now),
                }
                heard.last = Some(now);
            }
            // Readers also wait for silence; five looks in a tenth of a second are enough for that.
            loud || frames.is_multiple_of(2)
        });
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
