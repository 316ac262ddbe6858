//! `voicebot demo`: one whole call on this machine, and its story.
//!
//! A room server, a CRM, a worker with its call process, and a caller who speaks recorded lines
//! over real WebRTC. Every step is timed and checked from outside: by what the caller hears, by
//! what the CRM receives, by what lies on disk. The exit code says whether all of it happened.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use livekit_api::services::agent_dispatch::AgentDispatchClient;
use livekit_protocol as proto;
use roomserver::{Options, RoomServer};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::clips::{caller_line, write_script};
use super::crm_sink::{CrmSink, Delivered};
use super::stage::{WorkerProcess, free_address, made_up_keys};
use crate::caller::{self, Caller, CallerOptions, LOUD, MicrophoneOptions};
use crate::cli::CommandResult;

/// What the caller says, in order.
const LINES: [&str; 3] = [
    "Hello, I would like to know what your plans cost.",
    "My name is John Smith, my e-mail is john.smith@example.com, I work for Acme, and I am interested in the business plan.",
    "No, thank you. Goodbye.",
];
/// Rate of the clips with these lines, Hz.
const LINE_RATE_HZ: u32 = oggopus::SAMPLE_RATE_HZ;
/// A pause of the agent this long means that it has finished.
const FINISHED: Duration = Duration::from_millis(900);
/// Name under which the demo's worker is dispatched.
const AGENT_NAME: &str = "demo";
/// The number that the demo's call is filed under; from the range that is kept free for examples.
const NUMBER: &str = "+15550100199";
/// How long any single step may take before the demo gives up.
const STEP: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Folder for everything that the demo makes [default: a new one in the system's temporary
    /// folder]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// The program whose worker holds the call, for example a production build [default: this one]
    #[arg(long, value_name = "PROGRAM")]
    worker: Option<PathBuf>,
}

/// The story so far: what was seen, and what should have been.
struct Story {
    start: Instant,
    failures: Vec<String>,
}

impl Story {
    fn tell(&self, at: Instant, text: impl std::fmt::Display) {
        println!(
            "  {:7.3} s  {text}",
            at.saturating_duration_since(self.start).as_secs_f64()
        );
    }

    fn now(&self, text: impl std::fmt::Display) {
        self.tell(Instant::now(), text);
    }

    /// One thing that must have happened.
    fn check(&mut self, ok: bool, what: impl Into<String>) {
        let what = what.into();
        println!("  {}  {what}", if ok { "ok    " } else { "FAILED" });
        if !ok {
            self.failures.push(what);
        }
    }
}

/// Plays the demo.
pub async fn run(arguments: DemoArguments) -> CommandResult {
    let folder = match arguments.dir {
        Some(folder) => folder,
        None => std::env::temp_dir().join(format!(
            "voicebot-demo-{}",
            chrono::Local::now().format("%Y%m%d-%H%M%S-%3f")
        )),
    };
    std::fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    println!("One whole call on this machine: no keys, no other servers, nothing to install.\n");
    println!("The call");
    let mut story = Story {
        start: Instant::now(),
        failures: Vec::new(),
    };

    let (key, secret) = made_up_keys();
    let server = RoomServer::start(Options {
        keys: vec![(key.clone(), secret.expose().to_owned())],
        recordings_dir: Some(folder.clone()),
        ..Options::default()
    })
    .await?;
    let crm = CrmSink::start(&folder.join("crm")).await?;
    story.now(format!(
        "room server at {}, CRM at {}",
        server.url(),
        crm.url()
    ));

    let http = reqwest::Client::new();
    let script = write_script(&folder)?;
    let environment = worker_environment(&folder, &script, &server, &crm, &key, secret.expose());
    let log = folder.join("worker.log");
    let mut worker = WorkerProcess::start(
        arguments.worker.as_deref(),
        None,
        &environment,
        free_address()?,
        Some(&log),
    )?;
    worker.ready(&http).await?;
    story.now("the worker has registered and takes calls");

    let outcome = hold_call(&mut story, &server, &key, secret.expose()).await;
    if let Err(error) = &outcome {
        story.check(false, error.to_string());
    }
    let hung_up = outcome.ok().flatten().unwrap_or_else(Instant::now);
    let delivered = wait_for_crm(&crm).await;
    tell_delivery(&mut story, &delivered, hung_up);
    worker.stop().await?;
    server.shutdown().await;

    println!("\nWhat is left of it");
    check_everything(&mut story, &folder, &delivered);
    println!(
        "\nEverything the demo made is in {} (the worker's log: {})",
        folder.display(),
        log.display()
    );
    if story.failures.is_empty() {
        println!("The call went as it should.");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} of these things went wrong:", story.failures.len());
    for failure in &story.failures {
        println!("  - {failure}");
    }
    Ok(ExitCode::FAILURE)
}

fn worker_environment(
    folder: &Path,
    script: &Path,
    server: &RoomServer,
    crm: &CrmSink,
    key: &str,
    secret: &str,
) -> HashMap<String, String> {
    [
        ("LIVEKIT_URL", server.url()),
        ("LIVEKIT_API_KEY", key.to_owned()),
        ("LIVEKIT_API_SECRET", secret.to_owned()),
        ("LIVEKIT_AGENT_NAME", AGENT_NAME.to_owned()),
        ("CRM_BASE_URL", crm.url()),
        ("VOICEBOT__DATA_DIR", folder.display().to_string()),
        (
            "VOICEBOT__PERSONA__DIRECTORY",
            folder.join("personas").display().to_string(),
        ),
        ("VOICEBOT__PROVIDERS__VENDOR", "scripted".to_owned()),
        ("VOICEBOT__PROVIDERS__SCRIPT", script.display().to_string()),
        ("VOICEBOT__RECORDING__MODE", "local".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

type DemoError = Box<dyn std::error::Error>;

/// The call itself, from the caller's side. Gives back when it was over.
async fn hold_call(
    story: &mut Story,
    server: &RoomServer,
    key: &str,
    secret: &str,
) -> Result<Option<Instant>, DemoError> {
    let room = format!(
        "number-_{}-{}",
        NUMBER.trim_start_matches('+'),
        chrono::Utc::now().timestamp()
    );
    let token = caller::token(key, secret, "caller", &room)?;
    let options = CallerOptions {
        microphone: Some(MicrophoneOptions {
            sample_rate_hz: LINE_RATE_HZ,
            ..MicrophoneOptions::default()
        }),
        hearing_rate_hz: LINE_RATE_HZ,
    };
    let mut caller = Caller::join(&server.url(), &token, options).await?;
    story.now(format!("the caller is in room {room}"));

    let dispatcher = AgentDispatchClient::with_api_key(
        &crate::settings::http_address(&server.url()),
        key,
        secret,
    );
    let dispatched = Instant::now();
    let request = proto::CreateAgentDispatchRequest {
        agent_name: AGENT_NAME.into(),
        room,
        ..Default::default()
    };
    let dispatch = dispatcher.create_dispatch(request).await?;
    story.tell(dispatched, format!("agent dispatched ({})", dispatch.id));

    let joined = caller
        .agent_joined(STEP)
        .await
        .ok_or("the agent did not join the room")?;
    story.tell(
        joined,
        format!(
            "the agent has joined, {} ms after the dispatch",
            (joined - dispatched).as_millis()
        ),
    );
    let greeted = caller
        .hears_after(dispatched, STEP)
        .await
        .ok_or("the caller did not hear a greeting")?;
    story.tell(
        greeted,
        format!(
            "the caller hears the greeting, {} ms after the dispatch",
            (greeted - dispatched).as_millis()
        ),
    );

    let mut heard = greeted;
    for words in LINES {
        caller
            .quiet(heard, FINISHED, STEP * 2)
            .await
            .ok_or("the agent did not stop talking")?;
        let (first, last) = caller
            .say(caller_line(words)?)
            .await
            .ok_or("the caller's microphone broke")?;
        story.tell(
            first,
            format!(
                "caller: \u{201c}{words}\u{201d} ({:.1} s)",
                (last - first).as_secs_f64()
            ),
        );
        let answer = caller
            .hears_after(last, STEP)
            .await
            .ok_or_else(|| format!("the caller got no answer to \u{201c}{words}\u{201d}"))?;
        story.tell(
            answer,
            format!(
                "the agent answers, {} ms after the caller's last sound",
                (answer - last).as_millis()
            ),
        );
        heard = answer;
    }
    let ended = caller
        .ended(STEP * 2)
        .await
        .ok_or("the agent did not hang up")?;
    story.tell(ended, "the agent has hung up");
    caller.leave().await;
    Ok(Some(ended))
}

async fn wait_for_crm(crm: &CrmSink) -> Delivered {
    let mut changes = crm.changes();
    let complete =
        |delivered: &Delivered| !delivered.recordings.is_empty() && !delivered.calls.is_empty();
    match timeout(STEP, changes.wait_for(complete)).await {
        Ok(Ok(delivered)) => delivered.clone(),
        _ => crm.changes().borrow().clone(),
    }
}

fn tell_delivery(story: &mut Story, delivered: &Delivered, hung_up: Instant) {
    let after = |at: Instant| at.saturating_duration_since(hung_up).as_millis();
    for (path, at) in &delivered.recordings {
        story.tell(
            *at,
            format!(
                "the CRM has the recording, {} ms after hangup: {}",
                after(*at),
                path.display()
            ),
        );
    }
    for (path, _, at) in &delivered.calls {
        story.tell(
            *at,
            format!(
                "the CRM has the call data, {} ms after hangup: {}",
                after(*at),
                path.display()
            ),
        );
    }
}

/// Holds what the CRM and the disk have against what was said.
fn check_everything(story: &mut Story, folder: &Path, delivered: &Delivered) {
    let Some((path, call, _)) = delivered.calls.first() else {
        story.check(false, "the CRM got no call data");
        return;
    };
    story.check(
        delivered.calls.len() == 1 && delivered.recordings.len() == 1,
        "the CRM has the call once, and its recording once",
    );
    let text = |pointer: &str| {
        call.pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    story.check(
        text("/caller/phoneNumber") == NUMBER,
        format!(
            "it is filed under {NUMBER} as {}",
            text("/callDetails/callId")
        ),
    );
    for item in call
        .pointer("/transcription/conversation_items")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        println!(
            "            {:9} {}",
            format!("{}:", item["role"].as_str().unwrap_or("?")),
            item["content"].as_str().unwrap_or_default()
        );
    }
    let said = call
        .pointer("/transcription/conversation_items")
        .and_then(Value::as_array)
        .map_or(0, |items| {
            items.iter().filter(|item| item["role"] == "user").count()
        });
    story.check(
        said == LINES.len(),
        format!(
            "the transcript has all {} lines of the caller: {}",
            LINES.len(),
            path.display()
        ),
    );
    story.check(
        text("/lead/name") == "John Smith" && text("/lead/email") == "john.smith@example.com",
        format!(
            "the lead: {}, {}, {}",
            text("/lead/name"),
            text("/lead/email"),
            text("/lead/company")
        ),
    );

    let Some(session_id) = call
        .pointer("/transcription/session_id")
        .and_then(Value::as_str)
    else {
        story.check(false, "the call data names no session");
        return;
    };
    let made = |relative: String| folder.join(relative);
    for (what, file) in [
        (
            "conversation",
            made(format!("conversations/conversation_{session_id}.json")),
        ),
        ("lead", made(format!("leads/lead_{session_id}_1.json"))),
        (
            "record, archived after the CRM had confirmed",
            made(format!("processed_metadata/metadata_{session_id}.json")),
        ),
    ] {
        story.check(file.is_file(), format!("{what}: {}", file.display()));
    }
    let waiting = std::fs::read_dir(folder.join("call_metadata")).map_or(0, |files| {
        files
            .flatten()
            .filter(|file| {
                file.path()
                    .extension()
                    .is_some_and(|extension| extension == "json")
            })
            .count()
    });
    story.check(waiting == 0, "no record is left waiting");

    let recording = made(format!("recordings/{session_id}.ogg"));
    let same = match (
        std::fs::read(&recording),
        delivered
            .recordings
            .first()
            .map(|(path, _)| std::fs::read(path)),
    ) {
        (Ok(ours), Some(Ok(theirs))) => ours == theirs,
        _ => false,
    };
    story.check(
        same,
        format!(
            "the CRM's recording is ours, byte for byte: {}",
            recording.display()
        ),
    );
    match listen_to(&recording) {
        Ok(heard) => {
            let spoken: f64 = LINES
                .iter()
                .filter_map(|words| caller_line(words).ok())
                .map(|samples| loud_seconds(samples.iter().copied()))
                .sum();
            story.check(
                heard.agent > 2.0,
                format!(
                    "the recording is {:.1} s long; on the left the agent, {:.1} s of sound",
                    heard.length, heard.agent
                ),
            );
            story.check(
                (heard.caller - spoken).abs() <= 0.1 * spoken,
                format!("on the right the caller, {:.1} s of sound of the {spoken:.1} s that were spoken", heard.caller),
            );
        }
        Err(error) => story.check(false, format!("the recording cannot be read: {error}")),
    }
}

/// What is in a recording.
struct InRecording {
    /// Seconds.
    length: f64,
    /// Seconds of sound on the left.
    agent: f64,
    /// Seconds of sound on the right.
    caller: f64,
}

fn listen_to(recording: &Path) -> Result<InRecording, oggopus::Error> {
    let pcm = oggopus::Reader::open(recording)?.read_to_end()?;
    let side = |offset: usize| loud_seconds(pcm.iter().skip(offset).step_by(2).copied());
    Ok(InRecording {
        length: pcm.len() as f64 / 2.0 / f64::from(oggopus::SAMPLE_RATE_HZ),
        agent: side(0),
        caller: side(1),
    })
}

/// Seconds of sound: counted in pieces of 20 ms that have a loud sample.
fn loud_seconds(samples: impl Iterator<Item = i16>) -> f64 {
    const PIECE: usize = LINE_RATE_HZ as usize / 50;
    let samples: Vec<i16> = samples.collect();
    let loud = samples
        .chunks(PIECE)
        .filter(|piece| piece.iter().any(|sample| sample.saturating_abs() > LOUD))
        .count();
    loud as f64 / 50.0
}
