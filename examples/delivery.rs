//! How fast records are delivered and found again, and at what cost, against a CRM on this machine.
//! One JSON line a measurement on stdout.
//!
//!     cargo build --release --bin voicebot
//!     cargo run --release --example delivery -- throughput --records 10000 --recording-bytes 100000
//!     cargo run --release --example delivery -- throughput --records 1 --recording-bytes 1000000000
//!     cargo run --release --example delivery -- throughput --records 1000 --archived 100000
//!     cargo run --release --example delivery -- waiting --records 10000 --seconds 60
//!     cargo run --release --example delivery -- hangup --calls 30 --rounds 20
//!     cargo run --release --example delivery -- find --archived 100000
//!     MONGODB_URI=mongodb://… cargo run --release --example delivery -- sync --archived 10000
//!
//! `throughput` runs `voicebot uploads run --once` over so many waiting records (recordings are
//! sparse files), and `waiting` runs `voicebot uploads run` while the CRM is down; memory and
//! processor time are those of that process. `hangup` writes records all at once while the upload
//! task runs, and takes the time from the hangup until the CRM has the call. `find` and `sync` time
//! the commands of an operator: `calls list`, `calls show` by several ids, and `calls sync` with
//! nothing in MongoDB yet and then with everything. `--dir` is where the data folder is made: a
//! disk is measured with its syncs, a memory file system without.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use voicebot::recording::RecordingConfig;
use voicebot::recording::resolve::RecordingResolver;
use voicebot::session::{
    self, CallMetadata, CallRecord, CallStart, CallStatus, CloseReason, ConversationItem,
    Direction, Outcome, RecordingMetadata, RecordingSource, RecordingState, SessionId, time,
};
use voicebot::store::Store;
use voicebot::upload::{CrmConfig, CrmSecrets, UploadConfig, Uploader};

/// How often memory is polled; the peak is the kernel's own and needs no luck.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Parser)]
struct Arguments {
    /// Where the data folder is made
    #[arg(long, global = true, default_value = "target")]
    dir: PathBuf,
    /// The program that delivers
    #[arg(long, global = true, default_value = "target/release/voicebot")]
    program: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Records a second, and the memory for it
    Throughput {
        #[arg(long, default_value_t = 10_000)]
        records: u64,
        #[arg(long, default_value_t = 100_000)]
        recording_bytes: u64,
        /// Records that lie in the archive already
        #[arg(long, default_value_t = 0)]
        archived: u64,
    },
    /// Memory and processor time while the CRM is down
    Waiting {
        #[arg(long, default_value_t = 10_000)]
        records: u64,
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// From hangup until the CRM has the call
    Hangup {
        #[arg(long, default_value_t = 30)]
        calls: u64,
        #[arg(long, default_value_t = 20)]
        rounds: u64,
        #[arg(long, default_value_t = 100_000)]
        recording_bytes: u64,
    },
    /// What it takes to list calls and to find one
    Find {
        #[arg(long, default_value_t = 100_000)]
        archived: u64,
    },
    /// What it takes to copy calls to MongoDB (`MONGODB_URI`)
    Sync {
        #[arg(long, default_value_t = 10_000)]
        archived: u64,
    },
}

type Outcomes<T> = Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Outcomes<()> {
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir_in(&arguments.dir)?;
    let store = Store::open(folder.path())?;
    let line = match arguments.what {
        What::Throughput {
            records,
            recording_bytes,
            archived,
        } => {
            archive(&store, archived)?;
            wait_in(&store, records, recording_bytes)?;
            throughput(
                &arguments.program,
                &store,
                records,
                recording_bytes,
                archived,
            )
            .await?
        }
        What::Waiting { records, seconds } => {
            wait_in(&store, records, 1000)?;
            waiting(&arguments.program, &store, records, seconds).await?
        }
        What::Hangup {
            calls,
            rounds,
            recording_bytes,
        } => hangup(&store, calls, rounds, recording_bytes).await?,
        What::Find { archived } => {
            archive(&store, archived)?;
            find(&arguments.program, &store, archived).await?
        }
        What::Sync { archived } => {
            archive(&store, archived)?;
            sync(&arguments.program, &store, archived).await?
        }
    };
    println!("{line}");
    Ok(())
}

fn session_id(number: u64) -> SessionId {
    let id = format!("session_20261121_{:06}_{number:06x}", number % 240_000);
    id.parse().expect("a session id")
}

fn archived_id(number: u64) -> SessionId {
    let id = format!("session_20261120_{:06}_{number:06x}", number % 240_000);
    id.parse().expect("a session id")
}

fn start_of(session_id: SessionId) -> CallStart {
    CallStart {
        job_id: format!("AJ_{session_id}"),
        room_name: format!("room-{session_id}"),
        room_sid: None,
        job_metadata: None,
        direction: Some(Direction::Inbound),
        call_start: time::now(),
        agent_name: "bench".to_owned(),
        attributes: Default::default(),
        session_id,
    }
}

/// A call with twenty items and a recording, as a call's process leaves it.
fn finish_call(store: &Store, id: SessionId, recording_bytes: u64) -> Outcomes<()> {
    let start = start_of(id);
    store.begin(&start, &[])?;
    let (session, lock) = store.open_session(&start.session_id)?;
    let (relative, path) = store.recording_path(&start.session_id, "ogg");
    fs::File::create(path)?.set_len(recording_bytes)?;
    {
        let mut session = session::lock(&session);
        session.set_call_metadata(CallMetadata {
            dialed_number: Some("+15550100123".to_owned()),
            ..CallMetadata::default()
        });
        for _ in 0..10 {
            session.commit_item(ConversationItem::assistant("How can I help?", time::now()));
            session.commit_item(ConversationItem::user("I need a pump.", time::now()));
        }
        session.set_recording_metadata(RecordingMetadata {
            recording_filename: Some(relative),
            source: RecordingSource::Local,
            state: RecordingState::Resolved,
            ..RecordingMetadata::default()
        });
        session.set_outcome(Outcome {
            close_reason: CloseReason::ParticipantDisconnected,
            disconnect_reason: None,
            call_status: CallStatus::Completed,
            error: None,
            call_end: Some(time::now()),
        });
    }
    store.finish(&session, lock)?;
    Ok(())
}

/// Copies one real record: syncing thousands of them would take longer than delivering them.
fn wait_in(store: &Store, records: u64, recording_bytes: u64) -> Outcomes<()> {
    let first = session_id(0);
    finish_call(store, first.clone(), recording_bytes)?;
    let record = store.read_record(&first)?;
    let conversation = store.path(record.files.conversation.as_deref().unwrap_or_default());
    for number in 1..records {
        let id = session_id(number);
        let copy = renamed(&record, &first, &id)?;
        let (_, sound) = store.recording_path(&id, "ogg");
        fs::File::create(sound)?.set_len(recording_bytes)?;
        fs::copy(
            &conversation,
            store.path(copy.files.conversation.as_deref().unwrap_or_default()),
        )?;
        write(store, "call_metadata", &copy)?;
    }
    Ok(())
}

fn archive(store: &Store, records: u64) -> Outcomes<()> {
    if records == 0 {
        return Ok(());
    }
    let first: SessionId = "session_20261120_100000_000000".parse()?;
    finish_call(store, first.clone(), 1000)?;
    let record = store.read_record(&first)?;
    fs::remove_file(store.path(&format!("call_metadata/metadata_{first}.json")))?;
    for number in 0..records {
        let id = archived_id(number);
        write(store, "processed_metadata", &renamed(&record, &first, &id)?)?;
    }
    Ok(())
}

fn renamed(record: &CallRecord, from: &SessionId, to: &SessionId) -> Outcomes<CallRecord> {
    let text = serde_json::to_string(record)?.replace(from.as_str(), to.as_str());
    let mut record: CallRecord = serde_json::from_str(&text)?;
    record.call_id = Some(format!("CALL-{to}"));
    Ok(record)
}

fn write(store: &Store, folder: &str, record: &CallRecord) -> Outcomes<()> {
    let name = format!("{folder}/metadata_{}.json", record.session_id);
    fs::write(store.path(&name), serde_json::to_vec_pretty(record)?)?;
    Ok(())
}

async fn throughput(
    program: &Path,
    store: &Store,
    records: u64,
    recording_bytes: u64,
    archived: u64,
) -> Outcomes<Value> {
    let crm = Crm::start().await?;
    let began = Instant::now();
    let mut worker = uploads(program, store, &crm.base_url)
        .args(["--once", "--json", "--batch", &records.to_string()])
        .spawn()?;
    let figures = watch_to_end(&mut worker).await?;
    let took = began.elapsed().as_secs_f64();
    let calls = crm.calls.lock().expect("no panic").len() as u64;
    if calls != records {
        return Err(format!("the CRM has {calls} of {records} calls").into());
    }
    Ok(json!({
        "what": "throughput", "records": records, "recording_bytes": recording_bytes, "archived": archived,
        "seconds": took, "records_per_second": records as f64 / took,
        "megabytes_per_second": (records * recording_bytes) as f64 / 1e6 / took,
        "peak_rss_kb": figures.peak_rss_kb, "cpu_seconds": figures.cpu_seconds,
    }))
}

async fn waiting(program: &Path, store: &Store, records: u64, seconds: u64) -> Outcomes<Value> {
    // A port on which nobody listens.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut worker = uploads(program, store, &format!("http://{nobody}")).spawn()?;
    let process = worker.id().ok_or("it has ended")?;
    // Reading the folder for the first time is work; what is asked for is the cost of waiting.
    sleep(Duration::from_secs(5)).await;
    let before = Figures::of(process).ok_or("it has ended")?;
    let mut after = before;
    let mut rss_kb = vec![before.rss_kb];
    for _ in 0..4 {
        sleep(Duration::from_secs(seconds) / 4).await;
        after = Figures::of(process).ok_or("it has ended")?;
        rss_kb.push(after.rss_kb);
    }
    worker.kill().await?;
    Ok(json!({
        "what": "waiting", "records": records, "seconds": seconds,
        "cpu_percent": (after.cpu_seconds - before.cpu_seconds) / seconds as f64 * 100.0,
        "rss_kb": rss_kb, "peak_rss_kb": after.peak_rss_kb,
    }))
}

async fn hangup(store: &Store, calls: u64, rounds: u64, recording_bytes: u64) -> Outcomes<Value> {
    let crm = Crm::start().await?;
    let config = CrmConfig {
        base_url: crm.base_url.clone(),
        ..CrmConfig::default()
    };
    let resolver = RecordingResolver::new(store.clone(), RecordingConfig::default(), None);
    let uploader = Uploader::new(
        store.clone(),
        UploadConfig::default(),
        config,
        CrmSecrets::default(),
        resolver,
    )?;
    let (notify, notified) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let task = tokio::spawn(uploader.run(notified, stop.clone()));
    let mut seconds: Vec<f64> = Vec::new();
    for round in 0..rounds {
        crm.calls.lock().expect("no panic").clear();
        let began = Instant::now();
        for number in 0..calls {
            let (store, notify) = (store.clone(), notify.clone());
            let id = session_id(round * calls + number);
            // As the calls' own processes do it: each by itself, all at once.
            std::thread::spawn(move || {
                finish_call(&store, id, recording_bytes).expect("the record is written");
                let _ = notify.try_send(());
            });
        }
        loop {
            let came = crm.came.notified();
            if crm.calls.lock().expect("no panic").len() as u64 >= calls {
                break;
            }
            came.await;
        }
        let ends = crm.calls.lock().expect("no panic");
        seconds.extend(ends.iter().map(|end| (*end - began).as_secs_f64()));
    }
    stop.cancel();
    task.await?;
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share) as usize];
    Ok(json!({
        "what": "hangup", "calls": calls, "rounds": rounds, "recording_bytes": recording_bytes,
        "p50_s": at(0.5), "p99_s": at(0.99), "max_s": at(1.0),
    }))
}

async fn find(program: &Path, store: &Store, archived: u64) -> Outcomes<Value> {
    let middle = archived_id(archived / 2);
    let mut line = json!({ "what": "find", "archived": archived });
    for (name, arguments) in [
        ("list", vec!["list".to_owned()]),
        (
            "list_by_number",
            vec!["list".to_owned(), "--number".to_owned(), "0123".to_owned()],
        ),
        (
            "show_by_session",
            vec!["show".to_owned(), middle.to_string()],
        ),
        (
            "show_by_call",
            vec!["show".to_owned(), format!("CALL-{middle}")],
        ),
        (
            "show_by_job",
            vec!["show".to_owned(), format!("AJ_{middle}")],
        ),
    ] {
        let mut command = voicebot(program, store);
        line[name] = timed(command.arg("calls").args(arguments)).await?;
    }
    Ok(line)
}

async fn sync(program: &Path, store: &Store, archived: u64) -> Outcomes<Value> {
    let mut line = json!({ "what": "sync", "archived": archived });
    for name in ["everything", "nothing"] {
        line[name] = timed(voicebot(program, store).args(["calls", "sync"])).await?;
    }
    Ok(line)
}

/// Runs a command to its end.
async fn timed(command: &mut Command) -> Outcomes<Value> {
    let began = Instant::now();
    let figures = watch_to_end(&mut command.spawn()?).await?;
    Ok(json!({
        "seconds": began.elapsed().as_secs_f64(),
        "peak_rss_kb": figures.peak_rss_kb, "cpu_seconds": figures.cpu_seconds,
    }))
}

fn uploads(program: &Path, store: &Store, base_url: &str) -> Command {
    let mut command = voicebot(program, store);
    command
        .args(["uploads", "run"])
        .env("CRM_BASE_URL", base_url);
    command
}

fn voicebot(program: &Path, store: &Store) -> Command {
    let mut command = Command::new(program);
    command
        .env("VOICEBOT__DATA_DIR", store.root())
        .env("RUST_LOG", "error")
        .env_remove("VOICEBOT_CONFIG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    command
}

/// What a process has used.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    rss_kb: u64,
    peak_rss_kb: u64,
    cpu_seconds: f64,
}

impl Figures {
    /// `None` when it has ended.
    fn of(process: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let kilobytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // After the name, which may have spaces: fields 14 and 15 of proc(5), in hundredths of a
        // second.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: f64 =
            fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
        Some(Self {
            rss_kb: kilobytes("VmRSS:")?,
            peak_rss_kb: kilobytes("VmHWM:")?,
            cpu_seconds: ticks / 100.0,
        })
    }
}

async fn watch_to_end(worker: &mut Child) -> Outcomes<Figures> {
    let process = worker.id().ok_or("it has ended")?;
    let mut last = Figures::default();
    loop {
        if let Some(figures) = Figures::of(process) {
            last = figures;
        }
        tokio::select! {
            status = worker.wait() => {
                let status = status?;
                return if status.success() { Ok(last) } else { Err(format!("the program ended with {status}").into()) };
            }
            () = sleep(POLL_INTERVAL) => {}
        }
    }
}

/// A CRM that takes everything, as fast as it can, and remembers when.
struct Crm {
    base_url: String,
    calls: Arc<Mutex<Vec<Instant>>>,
    came: Arc<Notify>,
}

impl Crm {
    async fn start() -> Outcomes<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let crm = Self {
            base_url: format!("http://{}", listener.local_addr()?),
            calls: Arc::default(),
            came: Arc::default(),
        };
        let (calls, came) = (crm.calls.clone(), crm.came.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, calls.clone(), came.clone()));
            }
        });
        Ok(crm)
    }
}

/// One connection, request after request. `None`: it was closed.
async fn serve(
    mut stream: TcpStream,
    calls: Arc<Mutex<Vec<Instant>>>,
    came: Arc<Notify>,
) -> Option<()> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; 256 * 1024];
    loop {
        let head_end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            let read = stream
                .read(&mut piece)
                .await
                .ok()
                .filter(|read| *read > 0)?;
            bytes.extend_from_slice(&piece[..read]);
        };
        let head = String::from_utf8_lossy(&bytes[..head_end]).to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length?.trim().parse().ok()?;
        let mut left = length.saturating_sub(bytes.len() - head_end);
        bytes.drain(..(head_end + length).min(bytes.len()));
        while left > 0 {
            let read = stream
                .read(&mut piece)
                .await
                .ok()
                .filter(|read| *read > 0)?;
            left = left.saturating_sub(read);
        }
        let body = if head.starts_with("post /upload ") {
            r#"{"success":true,"data":{"url":"https://crm.example.com/a.ogg"}}"#
        } else {
            calls.lock().expect("no panic").push(Instant::now());
            came.notify_waiters();
            r#"{"success":true,"id":"1"}"#
        };
        let answer = format!(
            "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}
