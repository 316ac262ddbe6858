//! A complete environment for a call: a room server and a CRM in the test's process, the real
//! program as worker and call processes, and the data folder.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use livekit_api::access_token::{AccessToken, VideoGrants};
use livekit_api::services::agent_dispatch::AgentDispatchClient;
use livekit_api::services::room::RoomClient;
use livekit_api::services::sip::SIPClient;
use livekit_protocol as proto;
use roomserver::{Options, RoomServer};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::support::crm::{FakeCrm, Upload};
use crate::support::live_caller::LiveCaller;

/// Timeout for every expected event, far more than it needs: the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(60);
const API_KEY: &str = "devkey";
const API_SECRET: &str = "secret";
/// The agent name for dispatches.
pub const AGENT_NAME: &str = "tester";
/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_voicebot");

/// The caller's telephone number.
pub const PHONE: &str = "+15550100142";

/// Recorded lines of the caller.
pub const SHORT_LINE: &str = "goodbye.wav";
pub const LONG_LINE: &str = "hello.wav";
/// The transcript that the scripted recogniser returns for everything. It recognises lines by their
/// lengths, which a busy machine may change.
pub const WORDS: &str = "Some words.";

/// What the agent says first.
pub const GREETING: &str = "Hello.";
/// The agent's answer where a script has none.
pub const ANSWER: &str = "Yes.";

/// A conversation for the scripted providers; `agent` is a list of its lines.
pub fn script(agent: Value) -> Value {
    json!({
        "caller": [{ "seconds": 2.0, "text": WORDS }],
        "agent": agent,
        "otherwise": ANSWER,
        "delays": { "stt_ms": 20, "llm_ms": 20, "word_ms": 1, "tts_ms": 20 },
    })
}

/// The runtime of a room server.
fn machine() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads")
}

/// Polls until `poll` returns something. For files and processes, which send no notification.
pub async fn eventually<T>(what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = poll().await {
            return found;
        }
        assert!(Instant::now() < end, "no {what} within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A delivered and archived call.
#[derive(Debug)]
pub struct Delivered {
    /// The archived record.
    pub record: Value,
    /// The call data that the CRM received.
    pub call: Value,
    /// The conversation file.
    pub conversation: Value,
    /// The recording, if the CRM received one.
    pub recording: Option<Upload>,
}

impl Delivered {
    /// `role: words` of the conversation.
    pub fn transcript(&self) -> Vec<String> {
        let items = self.call["transcription"]["conversation_items"]
            .as_array()
            .expect("items");
        items
            .iter()
            .map(|item| {
                let who = item["role"].as_str().expect("a role");
                format!("{who}: {}", item["content"].as_str().expect("words"))
            })
            .collect()
    }

    /// Checks how the call ended: `call_status`, `close_reason`, `disconnect_reason`.
    pub fn ended(&self, status: &str, close: &str, disconnect: Option<&str>) {
        let outcome = &self.record["outcome"];
        assert_eq!(
            (
                &outcome["call_status"],
                &outcome["close_reason"],
                outcome["disconnect_reason"].as_str()
            ),
            (&json!(status), &json!(close), disconnect),
            "{outcome}"
        );
    }
}

/// The environment of the program.
pub struct World {
    server: Option<RoomServer>,
    /// The server's runtime, so that it can be shut down.
    machine: Option<Runtime>,
    /// The server's options with its address.
    options: Options,
    pub crm: FakeCrm,
    folder: TempDir,
    settings: HashMap<String, String>,
}

impl World {
    /// A world in which the agent follows the script `agent`, with these additional settings.
    pub async fn new(agent: Value, settings: &[(&str, &str)]) -> Self {
        Self::with(agent, settings, |_, _| {}).await
    }

    /// The same, with other options of the server; `change` also gets the data folder.
    pub async fn with(
        agent: Value,
        settings: &[(&str, &str)],
        change: impl FnOnce(&mut Options, &Path),
    ) -> Self {
        let crm = FakeCrm::start().await;
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().canonicalize().expect("the folder");
        let mut options = Options {
            keys: vec![(API_KEY.into(), API_SECRET.into())],
            recordings_dir: Some(data.clone()),
            ..Options::default()
        };
        change(&mut options, &data);
        let machine = machine();
        let server = machine.spawn(RoomServer::start(options.clone()));
        let server = server.await.expect("the machine runs");
        let server = server.expect("the room server starts");
        options.bind = server.address();
        let script_file = data.join("script.json");
        fs::write(&script_file, script(agent).to_string()).expect("the script");
        fs::create_dir(data.join("personas")).expect("the folder of personas");
        let persona = json!({
            "name": "tester",
            "instructions": "You are a test.",
            "greeting": GREETING,
            "campaigns": [{ "_id": "campaign-1", "client": "client-1", "voiceAgents": [{ "_id": "agent-1" }] }],
        });
        fs::write(data.join("personas/default.json"), persona.to_string()).expect("a persona");
        let text = |path: &Path| path.display().to_string();
        let mut all: HashMap<String, String> = [
            ("LIVEKIT_URL", server.url()),
            ("LIVEKIT_API_KEY", API_KEY.into()),
            ("LIVEKIT_API_SECRET", API_SECRET.into()),
            ("LIVEKIT_AGENT_NAME", AGENT_NAME.into()),
            ("CRM_BASE_URL", crm.base_url().to_owned()),
            ("VOICEBOT__DATA_DIR", text(&data)),
            ("VOICEBOT__PERSONA__DIRECTORY", text(&data.join("personas"))),
            ("VOICEBOT__PROVIDERS__VENDOR", "scripted".into()),
            ("VOICEBOT__PROVIDERS__SCRIPT", text(&script_file)),
            ("VOICEBOT__RECORDING__MODE", "off".into()),
            ("VOICEBOT__UPLOAD__FIRST_BACKOFF_MS", "100".into()),
            ("VOICEBOT__WORKER__HTTP_BIND", "127.0.0.1:0".into()),
            // The machine may be busy with other tests; a server assigns no jobs to a busy worker.
            ("VOICEBOT__WORKER__REPORT_LOAD", "0.1".into()),
            // A busy machine causes gaps in the caller's audio, which must not end a turn.
            ("VOICEBOT__VOICE__VAD__MIN_SILENCE_MS", "600".into()),
            ("VOICEBOT__LOG__LEVEL", "info,voicebot=debug".into()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        all.extend(
            settings
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        );
        Self {
            server: Some(server),
            machine: Some(machine),
            options,
            crm,
            folder,
            settings: all,
        }
    }

    fn server(&self) -> &RoomServer {
        self.server.as_ref().expect("the server is there")
    }

    /// The room server disconnects all participants and stops.
    pub async fn server_goes_away(&mut self) {
        let server = self.server.take().expect("the server is there");
        server.shutdown().await;
    }

    /// The room server dies without closing connections, and a new one without its state starts at
    /// the same address.
    pub async fn server_is_restarted(&mut self) {
        let stopped = self.machine.take().expect("the machine runs");
        // Its runtime must be down before the server is dropped, since dropping it closes
        // connections properly.
        let off = spawn_blocking(move || stopped.shutdown_timeout(DEADLINE));
        off.await.expect("the machine is off");
        drop(self.server.take());
        let machine = machine();
        let server = eventually("room server at the same address", async || {
            let server = machine.spawn(RoomServer::start(self.options.clone()));
            server.await.expect("the machine runs").ok()
        });
        self.server = Some(server.await);
        self.machine = Some(machine);
    }

    /// Makes the program reach the server at this URL from now on.
    pub fn server_is_reached_by(&mut self, url: String) {
        self.settings.insert("LIVEKIT_URL".into(), url);
    }

    /// Where the room server listens.
    pub fn server_address(&self) -> std::net::SocketAddr {
        self.server().address()
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().canonicalize().expect("the folder")
    }

    /// The program with this world's settings as its only environment.
    pub fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(&self.settings)
            .current_dir(self.data())
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    fn log_file(&self) -> PathBuf {
        self.data().join("worker.log")
    }

    /// The log of workers and calls, one JSON object per line.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The contents of the journals of running calls.
    pub fn journal(&self) -> String {
        let journals = files(&self.data().join("conversations"), "jsonl");
        let texts = journals.iter().flat_map(fs::read_to_string);
        texts.collect()
    }

    fn registrations(&self) -> usize {
        self.log()
            .matches("registered with the LiveKit server")
            .count()
    }

    /// Starts a worker and waits until it accepts calls.
    pub async fn worker(&self) -> Worker {
        let before = self.registrations();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("the log");
        let child = self
            .program(&["start"])
            .stderr(log)
            .spawn()
            .expect("the worker starts");
        eventually("registered worker", async || {
            (self.registrations() > before).then_some(())
        })
        .await;
        Worker { child }
    }

    /// A caller joins a room.
    pub async fn caller(&self, room: &str) -> LiveCaller {
        let token = self.token(room, "caller", "", &[]);
        LiveCaller::join(&self.server().url(), &token).await
    }

    /// Somebody without a microphone joins a room.
    pub async fn observer(&self, room: &str) -> LiveCaller {
        let token = self.token(room, "observer", "", &[]);
        LiveCaller::watch(&self.server().url(), &token).await
    }

    /// A telephone's bridge joins a room, with a microphone or without; `status` is that of the
    /// call.
    pub async fn telephone_joins(&self, room: &str, status: &str, microphone: bool) -> LiveCaller {
        let attributes = [
            ("sip.callID", "SCL_test"),
            ("sip.callStatus", status),
            ("sip.phoneNumber", PHONE),
            // It has called us.
            ("sip.ruleID", "SDR_test"),
        ];
        let token = self.token(room, "sip_phone", "sip", &attributes);
        let url = self.server().url();
        match microphone {
            true => LiveCaller::join(&url, &token).await,
            false => LiveCaller::watch(&url, &token).await,
        }
    }

    fn token(&self, room: &str, identity: &str, kind: &str, attributes: &[(&str, &str)]) -> String {
        let grants = VideoGrants {
            room_join: true,
            room: room.into(),
            ..Default::default()
        };
        AccessToken::with_api_key(API_KEY, API_SECRET)
            .with_identity(identity)
            .with_kind(kind)
            .with_attributes(attributes.iter().copied())
            .with_grants(grants)
            .to_jwt()
            .expect("a token")
    }

    fn api(&self) -> String {
        self.server().url().replace("ws://", "http://")
    }

    pub fn rooms(&self) -> RoomClient {
        RoomClient::with_api_key(&self.api(), API_KEY, API_SECRET)
    }

    pub fn telephone(&self) -> SIPClient {
        SIPClient::with_api_key(&self.api(), API_KEY, API_SECRET)
    }

    pub fn dispatches(&self) -> AgentDispatchClient {
        AgentDispatchClient::with_api_key(&self.api(), API_KEY, API_SECRET)
    }

    /// Dispatches the agent to a room. Returns the dispatch's id.
    pub async fn dispatch(&self, room: &str, metadata: Value) -> String {
        let metadata = match metadata {
            Value::Null => String::new(),
            metadata => metadata.to_string(),
        };
        let request = proto::CreateAgentDispatchRequest {
            agent_name: AGENT_NAME.into(),
            room: room.into(),
            metadata,
            ..Default::default()
        };
        let dispatch = self.dispatches().create_dispatch(request).await;
        dispatch.expect("the dispatch is made").id
    }

    /// A caller and the agent in a room; the greeting was played, and the agent receives the
    /// caller's audio.
    pub async fn call(&self, room: &str) -> LiveCaller {
        let mut caller = self.caller(room).await;
        self.dispatch(room, Value::Null).await;
        caller.agent_has_said(1).await;
        caller
            .until("audio stream of the caller", |seen| seen.is_heard)
            .await;
        caller
    }

    /// Everybody in a room as the server sees them.
    pub fn everybody_in(&self, room: &str) -> Vec<proto::ParticipantInfo> {
        self.server().rooms().participants(room).unwrap_or_default()
    }

    /// The names of all rooms.
    pub fn room_names(&self) -> Vec<String> {
        let rooms = self.server().rooms().list(&[]);
        rooms.into_iter().map(|room| room.name).collect()
    }

    /// The agent in a room as the server sees it.
    pub fn agent_in(&self, room: &str) -> Option<proto::ParticipantInfo> {
        let mut everybody = self.server().rooms().participants(room).unwrap_or_default();
        everybody.retain(|participant| {
            participant.kind() == proto::participant_info::Kind::Agent
                && participant.state() == proto::participant_info::State::Active
        });
        everybody.pop()
    }

    /// Waits until the agent's media is connected.
    pub async fn agent_joins(&self, room: &str) -> String {
        eventually("agent in the room", async || self.agent_in(room))
            .await
            .identity
    }

    /// Waits until the agent's job in a room has this status.
    pub async fn job_is(&self, room: &str, wanted: proto::JobStatus) {
        let what = format!("job with {}", wanted.as_str_name());
        eventually(&what, async || {
            let dispatches = self.dispatches().list_dispatch(room).await.ok()?;
            dispatches
                .iter()
                .flat_map(|dispatch| &dispatch.state)
                .flat_map(|state| &state.jobs)
                .flat_map(|job| &job.state)
                .any(|state| state.status() == wanted)
                .then_some(())
        })
        .await;
    }

    /// The records that are archived by now.
    pub fn archived_so_far(&self) -> Vec<Value> {
        let records = files(&self.data().join("processed_metadata"), "json");
        records.iter().map(|path| read_json(path)).collect()
    }

    /// Waits until so many records are archived, and gives them in the order of their beginnings.
    pub async fn archived(&self, calls: usize) -> Vec<Value> {
        let archive = self.data().join("processed_metadata");
        let records = eventually("archived record", async || {
            let records = files(&archive, "json");
            (records.len() >= calls).then_some(records)
        })
        .await;
        assert_eq!(records.len(), calls, "{records:?}");
        let mut all: Vec<Value> = records.iter().map(|path| read_json(path)).collect();
        all.sort_by_key(|record| record["timestamps"]["call_start"].to_string());
        all
    }

    /// Waits until this many calls are delivered and archived; returns them by their start.
    pub async fn delivered(&self, calls: usize) -> Vec<Delivered> {
        let records = self.archived(calls).await;
        let calls = records.iter().map(|record| self.delivered_call(record));
        calls.collect()
    }

    /// A call whose record is archived, as the CRM has it.
    pub fn delivered_call(&self, record: &Value) -> Delivered {
        let record = record.clone();
        assert_eq!(record["status"], "uploaded", "{record:#}");
        let session = record["session_id"].as_str().expect("a session id");
        let accepted: Vec<_> = self
            .crm
            .call_data()
            .into_iter()
            .filter(|call| call.accepted && call.key == format!("{session}/call_data"))
            .collect();
        assert_eq!(accepted.len(), 1, "the CRM has {session} once");
        let recording = self
            .crm
            .uploads()
            .into_iter()
            .find(|upload| upload.accepted && upload.key == format!("{session}/recording"));
        let conversation = record["files"]["conversation"].as_str().expect("a file");
        Delivered {
            call: accepted[0].body.clone(),
            conversation: read_json(&self.data().join(conversation)),
            recording,
            record,
        }
    }

    /// The running processes of calls, with any parent.
    pub fn call_processes(&self) -> Vec<Pid> {
        let mine = format!("VOICEBOT__DATA_DIR={}", self.data().display());
        let has = |file: PathBuf, wanted: &str| {
            let bytes = fs::read(file).unwrap_or_default();
            bytes
                .split(|byte| *byte == 0)
                .any(|part| part == wanted.as_bytes())
        };
        let Ok(processes) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        processes
            .flatten()
            .filter(|process| {
                has(process.path().join("cmdline"), "call")
                    && has(process.path().join("environ"), &mine)
            })
            .filter_map(|process| process.file_name().to_str()?.parse().ok())
            .filter_map(Pid::from_raw)
            .collect()
    }

    /// The process of the only running call.
    pub fn the_call_process(&self) -> Pid {
        match self.call_processes()[..] {
            [process] => process,
            ref others => panic!("{} calls run", others.len()),
        }
    }

    /// Stops the worker gracefully and checks that nothing is left over.
    pub async fn nothing_is_left(self, mut worker: Worker) {
        worker.terminate();
        let status = worker.ended().await;
        assert!(status.success(), "the worker ended with {status}");
        assert_eq!(self.call_processes(), [], "processes of calls");
        let data = self.data();
        let waiting = files(&data.join("call_metadata"), "json");
        assert!(waiting.is_empty(), "records wait: {waiting:?}");
        let journals = files(&data.join("conversations"), "jsonl");
        assert!(journals.is_empty(), "journals are left: {journals:?}");
        for folder in [
            "call_metadata",
            "conversations",
            "leads",
            "processed_metadata",
            "recordings",
        ] {
            let hidden: Vec<_> = fs::read_dir(data.join(folder))
                .expect("the folder")
                .flatten()
                .map(|file| file.file_name())
                .filter(|name| name.as_encoded_bytes().starts_with(b".tmp-"))
                .collect();
            assert!(
                hidden.is_empty(),
                "half-written files in {folder}: {hidden:?}"
            );
        }
        for room in self
            .server
            .iter()
            .flat_map(|server| server.rooms().list(&[]))
        {
            assert!(
                self.agent_in(&room.name).is_none(),
                "an agent in {}",
                room.name
            );
        }
        let panicked = self.log().lines().any(|line| line.contains("panicked at"));
        assert!(!panicked, "something panicked: {}", self.log());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(machine) = self.machine.take() {
            machine.shutdown_background();
        }
        for process in self.call_processes() {
            // The process may have ended meanwhile.
            let _ = rustix::process::kill_process(process, Signal::KILL);
        }
        if std::thread::panicking() {
            eprintln!("---- log of worker and calls\n{}----", self.log());
        }
    }
}

/// A worker's process.
pub struct Worker {
    child: Child,
}

impl Worker {
    fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("the worker runs").cast_signed();
        let id = Pid::from_raw(id).expect("a process id");
        rustix::process::kill_process(id, signal).expect("the worker takes the signal");
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill(mut self) {
        self.signal(Signal::KILL);
        self.ended().await;
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        timeout(DEADLINE, self.child.wait())
            .await
            .expect("the worker ends in time")
            .expect("the worker is watched")
    }
}

/// The files with this extension in a folder that may not exist.
pub fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|file| file.path())
        .filter(|path| path.extension() == Some(OsStr::new(extension)))
        .collect();
    found.sort();
    found
}

pub fn read_json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
