//! Delivery under faults: a CRM that misbehaves by a seeded plan, and uploaders that are killed at
//! random moments.
//!
//! `VOICEBOT_TEST_CALLS` (2000), `VOICEBOT_TEST_KILLS` (200) and `VOICEBOT_TEST_SEED` set the
//! number of calls and kills, and the seed.

use std::collections::HashMap;
use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::support::bad_crm::{BadCrm, HOSTILE, UNRELIABLE};
use crate::support::data::{DataFolder, at, call_start, hangup};
use chrono::TimeDelta;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use voicebot::session::{
    self, CallMetadata, ConversationItem, RecordingMetadata, RecordingSource, RecordingState,
};

/// Number of days that the calls are spread over.
const DAYS: u64 = 40;
const NUMBERS: u64 = 10;
/// Workers on the folder at the same time, killed in turn.
const WORKERS: u64 = 2;
/// A worker lives until the CRM has received a random number of requests up to this, from all
/// workers.
const REQUESTS_OF_A_LIFE: u64 = 50;
/// Or this long: a worker that is killed before its first request counts too.
const LONGEST_LIFE: Duration = Duration::from_millis(1500);
/// Timeout of the whole test, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(600);

fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A folder with calls, and the bytes of each call's recording by session.
fn finished_calls(count: u64, random: &mut StdRng) -> (DataFolder, HashMap<String, Vec<u8>>) {
    let data = DataFolder::in_memory();
    let mut sounds = HashMap::new();
    for number in 0..count {
        let start_at = at(0) - TimeDelta::days((number % DAYS) as i64);
        let id = format!("session_{}_{number:06x}", start_at.format("%Y%m%d_%H%M%S"));
        let mut start = call_start(&id);
        start.call_start = start_at;
        data.store.begin(&start, &[]).expect("the journal begins");
        let (session, lock) = data
            .store
            .open_session(&start.session_id)
            .expect("the session opens");
        let (relative, path) = data.store.recording_path(&start.session_id, "ogg");
        let mut sound = vec![0; random.random_range(1..3000)];
        random.fill_bytes(&mut sound);
        fs::write(path, &sound).expect("the recording is written");
        {
            let mut session = session::lock(&session);
            session.set_call_metadata(CallMetadata {
                dialed_number: Some(format!("+1555010{:04}", number / DAYS % NUMBERS)),
                ..CallMetadata::default()
            });
            session.commit_item(ConversationItem::user(format!("Call {number}."), start_at));
            session.set_recording_metadata(RecordingMetadata {
                recording_filename: Some(relative),
                source: RecordingSource::Local,
                state: RecordingState::Resolved,
                ..RecordingMetadata::default()
            });
            let mut outcome = hangup();
            outcome.call_end = Some(start_at + TimeDelta::seconds(60));
            session.set_outcome(outcome);
        }
        data.store
            .finish(&session, lock)
            .expect("the record is written");
        sounds.insert(id, sound);
    }
    (data, sounds)
}

/// What a record of the original says about its recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Its path.
    Path,
    /// Its path on another machine.
    PathElsewhere,
    /// A Windows path.
    PathOnWindows,
    /// The id of an egress that wrote a manifest.
    Manifest,
    /// The id of an egress that no longer exists on the server.
    Lost,
    /// No recording.
    Nothing,
}

impl Told {
    const ALL: [Self; 6] = [
        Self::Path,
        Self::PathElsewhere,
        Self::PathOnWindows,
        Self::Manifest,
        Self::Lost,
        Self::Nothing,
    ];
}

/// A backlog of the original from a year ago that was just copied here: the files are new, the
/// calls are not. Returns what each record says, and the bytes of its recording.
fn backlog(count: u64, random: &mut StdRng) -> (DataFolder, HashMap<String, (Told, Vec<u8>)>) {
    let data = DataFolder::in_memory();
    let mut calls = HashMap::new();
    for number in 0..count {
        let start = chrono::Utc::now() - TimeDelta::days(365 + (number % DAYS) as i64);
        let iso = |second: i64| {
            let time = start + TimeDelta::seconds(second);
            // Python's format of an aware time, followed by a Z.
            format!("{}+00:00Z", time.format("%Y-%m-%dT%H:%M:%S%.6f"))
        };
        let id = format!("session_{}_{number:06x}", start.format("%Y%m%d_%H%M%S"));
        let told = Told::ALL[(number % 6) as usize];
        let name = format!("number-_1555010{:04}-{number}.ogg", number / DAYS % NUMBERS);
        let path = match told {
            Told::Path => json!(format!("recordings/{name}")),
            Told::PathElsewhere => json!(format!("/srv/bot/recordings/{name}")),
            Told::PathOnWindows => json!(format!("C:\\bot\\recordings\\{name}")),
            Told::Manifest | Told::Lost | Told::Nothing => Value::Null,
        };
        let mut sound = Vec::new();
        if !matches!(told, Told::Lost | Told::Nothing) {
            sound = vec![0; random.random_range(1..3000)];
            random.fill_bytes(&mut sound);
            data.write(&format!("recordings/{name}"), &sound);
        }
        let mut campaign = json!({ "campaignId": "c1", "voiceAgentId": "v1", "client": "k1" });
        if matches!(told, Told::Manifest | Told::Lost) {
            campaign["egressId"] = json!(format!("back{number}"));
        }
        if told == Told::Manifest {
            let manifest = json!({
                "egress_id": format!("EG_back{number}"), "room_name": "r",
                "started_at": 1_000_000_000_i64, "ended_at": 61_000_000_000_i64,
                "files": [{ "filename": format!("recordings/{name}"), "location": format!("/out/recordings/{name}") }],
            });
            let file = format!("recordings/EG_back{number}.json");
            data.write(&file, manifest.to_string());
        }
        let conversation = format!("conversations/conversation_{id}.json");
        let said = json!({
            "session_id": id, "start_time": iso(0), "end_time": iso(60), "duration_seconds": 60, "total_items": 1,
            "conversation_items": [{ "role": "user", "content": format!("Call {number}."), "timestamp": iso(5) }],
            "lead_generated": false, "metadata": { "auto_saved": true },
        });
        data.write(&conversation, said.to_string());
        let record = json!({
            "session_id": id, "dialed_number": format!("+1555010{:04}", number / DAYS % NUMBERS),
            "campaign_metadata": campaign,
            "files": { "recording": path, "conversation": format!("/srv/bot/{conversation}"), "lead": null },
            "timestamps": { "call_start": iso(0), "call_end": iso(60), "metadata_saved": iso(61) },
            "status": "ready_for_upload", "upload_attempts": 0, "last_upload_attempt": null,
        });
        let file = format!("call_metadata/metadata_{id}.json");
        data.write(&file, record.to_string());
        calls.insert(id, (told, sound));
    }
    (data, calls)
}

struct World {
    data: DataFolder,
    crm: BadCrm,
    /// Further settings of the uploaders.
    settings: &'static [(&'static str, &'static str)],
}

impl World {
    /// `voicebot uploads run`, with short waits.
    fn uploader(&self) -> Child {
        Command::new(env!("CARGO_BIN_EXE_voicebot"))
            .args(["uploads", "run"])
            .current_dir(self.data.path(""))
            .env("VOICEBOT__DATA_DIR", self.data.path(""))
            .env("CRM_BASE_URL", &self.crm.base_url)
            .env("VOICEBOT__CRM__TIMEOUT_MS", "400")
            .env("VOICEBOT__CRM__UPLOAD_TIMEOUT_S", "1")
            .env("VOICEBOT__UPLOAD__INTERVAL_S", "1")
            .env("VOICEBOT__UPLOAD__FIRST_BACKOFF_MS", "20")
            .env("VOICEBOT__UPLOAD__MAX_BACKOFF_S", "1")
            .env("VOICEBOT__UPLOAD__BREAKER_MAX_PAUSE_S", "1")
            .envs(self.settings.iter().copied())
            .env("RUST_LOG", "off")
            .env_remove("LIVEKIT_URL")
            .env_remove("VOICEBOT_CONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts")
    }

    fn records_left(&self) -> usize {
        let names = self.data.files("call_metadata");
        names.iter().filter(|name| !name.starts_with('.')).count()
    }

    /// Kills one worker after another in the middle of its work. Stops early when there is no work
    /// left.
    async fn kill_workers(&self, kills: &AtomicU64, wanted: u64, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        while kills.load(Ordering::Relaxed) < wanted && self.records_left() > 0 {
            let mut worker = self.uploader();
            let requests = self.crm.requests() + random.random_range(0..REQUESTS_OF_A_LIFE);
            self.crm.wait_for_requests(requests, LONGEST_LIFE).await;
            // A random delay after the request.
            let moment = Duration::from_micros(random.random_range(0..20_000));
            let _ = tokio::time::timeout(moment, worker.wait()).await;
            let running = worker.try_wait().expect("it can be asked").is_none();
            worker.start_kill().expect("it can be killed");
            worker.wait().await.expect("it ends");
            assert!(running, "the worker ended by itself");
            kills.fetch_add(u64::from(self.records_left() > 0), Ordering::Relaxed);
        }
    }

    /// Lets one worker run undisturbed until `done`.
    async fn run_until(&self, what: &str, done: impl Fn() -> bool) {
        let _worker = self.uploader();
        let work = async {
            while !done() {
                let next = self.crm.requests() + 1;
                self.crm
                    .wait_for_requests(next, Duration::from_millis(50))
                    .await;
            }
        };
        tokio::time::timeout(DEADLINE, work)
            .await
            .unwrap_or_else(|_| panic!("{what} within {DEADLINE:?}; {} left", self.records_left()));
    }

    /// Files left by killed processes: temporary files and claims.
    fn strays(&self) -> Vec<String> {
        let claims = self.data.files("call_metadata/.claims");
        let folders = ["call_metadata", "processed_metadata", "conversations"];
        let temporaries = folders
            .iter()
            .flat_map(|folder| self.data.files(folder))
            .filter(|name| name.starts_with('.'));
        claims.into_iter().chain(temporaries).collect()
    }

    /// Ages every temporary file, so that it counts as abandoned.
    fn age_temporaries(&self) {
        let long_ago = SystemTime::now() - Duration::from_secs(7200);
        for folder in ["call_metadata", "processed_metadata", "conversations"] {
            for name in self.data.files(folder) {
                if name.starts_with('.') {
                    let path = self.data.path(&format!("{folder}/{name}"));
                    let file = fs::OpenOptions::new().write(true).open(path);
                    let _ = file.and_then(|file| file.set_modified(long_ago));
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_crm_does_and_whoever_is_killed_it_has_each_call_once() {
    let calls = setting("VOICEBOT_TEST_CALLS", 2000);
    let wanted = setting("VOICEBOT_TEST_KILLS", 200);
    let seed = setting("VOICEBOT_TEST_SEED", 20_261_121);
    let (data, sounds) = finished_calls(calls, &mut StdRng::seed_from_u64(seed));
    let world = World {
        data,
        crm: BadCrm::start(UNRELIABLE, seed).await,
        settings: &[],
    };

    let kills = AtomicU64::new(0);
    let workers = (0..WORKERS).map(|n| world.kill_workers(&kills, wanted, seed + n));
    futures_util::future::join_all(workers).await;
    world
        .run_until("everything is delivered", || world.records_left() == 0)
        .await;
    world.age_temporaries();
    world
        .run_until("nothing is left over", || world.strays().is_empty())
        .await;

    let books = world.crm.take_books();
    println!(
        "seed {seed}: {calls} calls, {} kills, {} requests, {} repeated, faults {:?}",
        kills.load(Ordering::Relaxed),
        world.crm.requests(),
        books.repeated,
        books.faults
    );
    assert_eq!(books.complaints, Vec::<String>::new());
    assert!(kills.load(Ordering::Relaxed) >= wanted, "too few kills");
    assert_eq!(books.calls.len() as u64, calls);
    assert_eq!(books.recordings.len() as u64, calls);
    for (call_id, call) in &books.calls {
        let id = call.key.strip_suffix("/call_data").expect("the key");
        let sound = &sounds[id];
        let details = &call.body["callDetails"];
        assert_eq!(call.body["transcription"]["session_id"], id, "{call_id}");
        assert_eq!(
            details["recordingUrl"],
            format!("https://crm.example.com/recordings/{id}/recording")
        );
        assert_eq!(details["recordingSize"], sound.len(), "{id}");
        assert!(
            books.recordings[&format!("{id}/recording")] == sound[..],
            "{id}: byte for byte"
        );
    }
    assert_eq!(
        world.data.files("processed_metadata").len() as u64,
        calls,
        "every record is archived"
    );
    world.data.assert_nothing_left_over();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_a_year_ago_is_delivered_each_call_once_and_each_recording_byte_for_byte() {
    const CALLS: u64 = 300;
    const KILLS: u64 = 30;
    let seed = setting("VOICEBOT_TEST_SEED", 20_261_121);
    let (data, calls) = backlog(CALLS, &mut StdRng::seed_from_u64(seed));
    let world = World {
        data,
        crm: BadCrm::start(HOSTILE, seed).await,
        // Long enough for the second scan of a file, even between kills.
        settings: &[
            ("VOICEBOT__RECORDING__WAIT_S", "8"),
            ("VOICEBOT__RECORDING__LATE_S", "10"),
        ],
    };
    let kills = AtomicU64::new(0);
    let workers = (0..WORKERS).map(|n| world.kill_workers(&kills, KILLS, seed + n));
    futures_util::future::join_all(workers).await;
    world
        .run_until("everything is delivered", || world.records_left() == 0)
        .await;

    let books = world.crm.take_books();
    println!(
        "seed {seed}: {CALLS} calls, {} kills, {} requests, {} repeated, {} updates, faults {:?}",
        kills.load(Ordering::Relaxed),
        world.crm.requests(),
        books.repeated,
        books.updates.len(),
        books.faults
    );
    assert_eq!(books.complaints, Vec::<String>::new());
    assert_eq!(books.calls.len() as u64, CALLS);
    let recorded = calls.values().filter(|(_, sound)| !sound.is_empty());
    assert_eq!(books.recordings.len(), recorded.count());
    for (call_id, call) in &books.calls {
        let id = call.key.strip_suffix("/call_data").expect("the key");
        let (told, sound) = &calls[id];
        assert_eq!(call.body["transcription"]["session_id"], *id, "{call_id}");
        // The recording's URL may have come with the update.
        let latest = books.updates.get(call_id).unwrap_or(&call.body);
        let details = &latest["callDetails"];
        let record = world
            .data
            .json(&format!("processed_metadata/metadata_{id}.json"));
        let state = record["uploads"]["recording"]["state"].as_str();
        if sound.is_empty() {
            assert_eq!(details["recordingUrl"], Value::Null, "{id}");
            assert_eq!(state, Some("missing"), "{id}");
            continue;
        }
        assert_eq!(state, Some("sent"), "{id}, {told:?}: {record}");
        let key = format!("{id}/recording");
        assert!(books.recordings[&key] == sound[..], "{id}: byte for byte");
        let url = format!("https://crm.example.com/recordings/{key}");
        assert_eq!(details["recordingUrl"], url, "{id}, {told:?}");
        assert_eq!(details["recordingSize"], sound.len(), "{id}");
    }
    assert_eq!(world.data.files("processed_metadata").len() as u64, CALLS);
}
