//! The worker between a LiveKit server and its calls: the server is a fake in the test, each call
//! is a shell script.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::support::agent_server::{API_KEY, API_SECRET, AgentServer, DEADLINE};
use livekit_protocol::JobStatus;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use voicebot::session::{CallStart, SessionId};
use voicebot::settings::{LiveKitSettings, Secret};
use voicebot::store::Store;
use voicebot::worker::{CallProgram, HttpServer, Worker, WorkerConfig, WorkerError, WorkerStatus};

/// The beginning of every scripted call: it reports that it is ready and reads its job. `record`
/// removes the journal, as a call does once its record is written.
const OPENING: &str = r#"
say() { printf '%s\n' "$1"; }
say '{"message":"ready"}'
read -r job
session=${job#*\"session_id\":\"}; session=${session%%\"*}
record() { rm "$DATA/conversations/$session.journal.jsonl"; say "{\"message\":\"record_written\",\"session_id\":\"$session\"}"; }
# Holds the call until the test opens the pipe.
wait_for_end() { mkfifo "$DATA/end"; say '{"message":"joined"}'; say '{"message":"running"}'; read -r word < "$DATA/end"; }
finish() { say '{"message":"finishing","success":true,"error":null}'; read -r answer; say "$answer" > "$DATA/answer"; }
"#;

/// Holds a call until the test ends it, then ends it normally.
const GOOD_CALL: &str = "wait_for_end; record; finish";

/// A worker with its fake server and scripted calls.
struct World {
    server: AgentServer,
    data: TempDir,
    store: Store,
    stop: mpsc::Sender<()>,
    notices: mpsc::Receiver<()>,
    status: watch::Receiver<WorkerStatus>,
    worker: JoinHandle<Result<(), WorkerError>>,
}

fn settings(url: String) -> LiveKitSettings {
    LiveKitSettings {
        url,
        api_key: API_KEY.into(),
        api_secret: Secret::new(API_SECRET),
    }
}

/// `sh` with the opening and `script`.
fn scripted(data: &Path, script: &str) -> CallProgram {
    let script = format!("DATA='{}'\n{OPENING}\n{script}", data.display());
    CallProgram::new("/bin/sh", ["-c".into(), script.into()])
}

impl World {
    async fn with_script(script: &str) -> Self {
        Self::new(1, |data| scripted(data, script), |_| {}).await
    }

    async fn new(
        max_calls: usize,
        program: impl FnOnce(&Path) -> CallProgram,
        prepare: impl FnOnce(&Store),
    ) -> Self {
        let server = AgentServer::start().await;
        Self::at(server, max_calls, program, prepare)
    }

    fn at(
        server: AgentServer,
        max_calls: usize,
        program: impl FnOnce(&Path) -> CallProgram,
        prepare: impl FnOnce(&Store),
    ) -> Self {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path()).unwrap();
        prepare(&store);
        let config = WorkerConfig {
            max_calls,
            ready_timeout_s: 1,
            ..Default::default()
        };
        let (notify, notices) = mpsc::channel(1);
        let program = program(data.path());
        let worker = Worker::new(
            config,
            settings(server.url()),
            "sales".into(),
            store.clone(),
            program,
            notify,
        )
        .unwrap();
        let status = worker.status();
        let (stop, requests) = mpsc::channel(4);
        let worker = tokio::spawn(worker.run(requests));
        Self {
            server,
            data,
            store,
            stop,
            notices,
            status,
            worker,
        }
    }

    /// Releases the call that waits in `wait_for_end`.
    async fn end_call(&self) {
        let pipe = self.data.path().join("end");
        // Opening blocks until the script opens the other end.
        spawn_blocking(move || {
            writeln!(File::options().write(true).open(pipe).unwrap(), "end").unwrap()
        })
        .await
        .unwrap();
    }

    async fn notified(&mut self) {
        timeout(DEADLINE, self.notices.recv())
            .await
            .expect("the upload task was not notified in time")
            .unwrap();
    }

    /// The records that wait for upload.
    fn records(&self) -> Vec<Value> {
        let files = fs::read_dir(self.data.path().join("call_metadata")).unwrap();
        let json = |path: PathBuf| serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        files
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "json"))
            .map(json)
            .collect()
    }

    /// Stops the worker and checks that nothing is left of its calls.
    async fn stopped(self) {
        // It may have stopped already.
        let _ = self.stop.send(()).await;
        timeout(DEADLINE, self.worker)
            .await
            .expect("the worker did not stop in time")
            .unwrap()
            .unwrap();
        assert_eq!(self.store.orphans(), [], "no journal is left");
    }
}

#[tokio::test]
async fn a_worker_registers_takes_a_call_and_tells_the_server_how_it_went() {
    let mut world = World::with_script(GOOD_CALL).await;
    let (mut server, registration) = world.server.worker().await;
    assert_eq!(registration.agent_name, "sales");
    assert_eq!(server.claims["video"]["agent"], true);
    assert!(server.worker_status(false, 0).await < 0.7);

    server.offer("AJ_1").await;
    let answer = server.answer("AJ_1").await;
    assert!(answer.available);
    assert_eq!(answer.participant_identity, "agent-AJ_1");
    assert_eq!(
        server.worker_status(true, 1).await,
        1.0,
        "full is said at once"
    );
    server.assign("AJ_1").await;
    assert_eq!(server.job_status("AJ_1").await.0, JobStatus::JsRunning);
    assert_eq!(world.store.orphans().len(), 1, "the call has a journal");

    world.end_call().await;
    assert_eq!(
        server.job_status("AJ_1").await,
        (JobStatus::JsSuccess, String::new())
    );
    world.notified().await;
    server.worker_status(false, 0).await;
    let answer = fs::read_to_string(world.data.path().join("answer")).unwrap();
    assert_eq!(
        answer, "{\"message\":\"status_sent\"}\n",
        "the call hears that it may leave the room"
    );
    world.stopped().await;
}

#[tokio::test]
async fn two_jobs_at_once_and_one_slot_are_one_call() {
    let mut world = World::with_script(GOOD_CALL).await;
    let (mut server, _) = world.server.worker().await;
    server.offer("AJ_1").await;
    server.offer("AJ_2").await;
    assert!(server.answer("AJ_1").await.available);
    let declined = server.answer("AJ_2").await;
    assert!(
        !declined.available && !declined.terminate,
        "another worker may take it"
    );
    server.assign("AJ_1").await;
    server.assign("AJ_1").await;
    // An assignment without an accepted offer: it gets no call, but a record and an answer.
    server.assign("AJ_3").await;
    let (status, error) = server.job_status("AJ_3").await;
    assert_eq!(status, JobStatus::JsFailed);
    assert!(error.contains("no slot"), "{error}");
    assert_eq!(server.job_status("AJ_1").await.0, JobStatus::JsRunning);
    server.worker_status(true, 1).await;
    world.end_call().await;
    assert_eq!(server.job_status("AJ_1").await.0, JobStatus::JsSuccess);
    server.worker_status(false, 0).await;
    assert_eq!(world.records().len(), 1);
    assert_eq!(world.records()[0]["job_id"], "AJ_3");
    world.stopped().await;
}

#[tokio::test]
async fn calls_go_on_while_the_server_is_away_and_their_end_is_told_afterwards() {
    let mut world = World::with_script(GOOD_CALL).await;
    let (mut server, _) = world.server.worker().await;
    server.dispatch("AJ_1").await;
    assert_eq!(server.job_status("AJ_1").await.0, JobStatus::JsRunning);
    drop(server);

    // The worker reconnects and reports the calls that it holds.
    let (mut server, _) = world.server.worker().await;
    assert_eq!(server.migrated_jobs().await, ["AJ_1"]);
    server.worker_status(true, 1).await;
    drop(server);

    // The call ends between two connections.
    let mut server = world.server.connection().await;
    world.end_call().await;
    world.notified().await;
    let mut status = world.status.clone();
    let ended = status.wait_for(|status| status.active_jobs == 0 && status.worker_id.is_none());
    timeout(DEADLINE, ended)
        .await
        .expect("the call did not end in time")
        .unwrap();
    server.register().await;
    assert_eq!(server.job_status("AJ_1").await.0, JobStatus::JsSuccess);
    server.worker_status(false, 0).await;
    world.stopped().await;
}

#[tokio::test]
async fn a_draining_worker_lets_its_calls_end_and_takes_no_new_ones() {
    let mut world = World::new(5, |data| scripted(data, GOOD_CALL), |_| {}).await;
    let (mut server, _) = world.server.worker().await;
    server.dispatch("AJ_1").await;
    assert_eq!(server.job_status("AJ_1").await.0, JobStatus::JsRunning);
    world.stop.send(()).await.unwrap();
    assert_eq!(server.worker_status(true, 1).await, 1.0);
    server.offer("AJ_2").await;
    assert!(!server.answer("AJ_2").await.available);
    assert_eq!(
        world.status.borrow().not_ready().as_deref(),
        Some("draining: 1 calls left")
    );

    world.end_call().await;
    assert_eq!(server.job_status("AJ_1").await.0, JobStatus::JsSuccess);
    server.closed().await;
    world.stopped().await;
}

#[tokio::test]
async fn a_second_signal_ends_calls_at_once_and_a_third_one_kills_what_is_left() {
    let obedient = r#"read -r order; say "$order" > "$DATA/order"; record; finish"#;
    // Ignores all requests to stop.
    let stubborn = "while :; do sleep 1; done";
    let script = format!(
        r#"say '{{"message":"joined"}}'; say '{{"message":"running"}}'
        case $job in *AJ_obedient*) {obedient} ;; *) {stubborn} ;; esac"#
    );
    let mut world = World::new(2, |data| scripted(data, &script), |_| {}).await;
    let (mut server, _) = world.server.worker().await;
    for job in ["AJ_obedient", "AJ_stubborn"] {
        server.dispatch(job).await;
        assert_eq!(server.job_status(job).await.0, JobStatus::JsRunning);
    }
    world.stop.send(()).await.unwrap();
    world.stop.send(()).await.unwrap();
    assert_eq!(
        server.job_status("AJ_obedient").await.0,
        JobStatus::JsSuccess
    );
    let order = fs::read_to_string(world.data.path().join("order")).unwrap();
    assert_eq!(
        order,
        "{\"message\":\"shutdown\",\"reason\":\"finalise\"}\n"
    );

    world.stop.send(()).await.unwrap();
    let (status, error) = server.job_status("AJ_stubborn").await;
    assert_eq!(status, JobStatus::JsFailed);
    assert!(error.contains("killed"), "{error}");
    server.closed().await;
    let records = world.records();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["job_id"], "AJ_stubborn");
    assert_eq!(records[0]["outcome"]["call_status"], "recovered");
    world.stopped().await;
}

/// Runs one job whose call fails, and returns its status at the server and its record.
async fn bad_end(world: &mut World) -> (String, Value) {
    let (mut server, _) = world.server.worker().await;
    server.dispatch("AJ_1").await;
    server.worker_status(true, 1).await;
    let (mut status, mut error) = server.job_status("AJ_1").await;
    if status == JobStatus::JsRunning {
        (status, error) = server.job_status("AJ_1").await;
    }
    assert_eq!(status, JobStatus::JsFailed);
    world.notified().await;
    server.worker_status(false, 0).await;
    let mut records = world.records();
    assert_eq!(records.len(), 1, "one job, one record");
    let record = records.remove(0);
    assert_eq!(record["job_id"], "AJ_1");
    assert_eq!(record["status"], "ready_for_upload");
    (error, record)
}

#[tokio::test]
async fn a_call_that_is_killed_has_a_record() {
    let mut world = World::with_script(
        r#"say '{"message":"joined"}'; say '{"message":"running"}'; kill -9 $$"#,
    )
    .await;
    let (error, record) = bad_end(&mut world).await;
    assert!(error.contains("signal: 9"), "{error}");
    assert_eq!(record["outcome"]["call_status"], "recovered");
    world.stopped().await;
}

#[tokio::test]
async fn a_call_that_ends_without_a_record_gets_one() {
    let mut world = World::with_script("exit 0").await;
    let (error, _) = bad_end(&mut world).await;
    assert!(error.contains("without a record"), "{error}");
    world.stopped().await;
}

#[tokio::test]
async fn a_call_that_cannot_be_started_has_a_record() {
    let nothing = |_: &Path| CallProgram::new("/nonexistent/voicebot", [OsString::from("call")]);
    let mut world = World::new(1, nothing, |_| {}).await;
    let (error, record) = bad_end(&mut world).await;
    assert!(error.contains("could not be started"), "{error}");
    assert_eq!(record["outcome"]["call_status"], "failed");
    assert_eq!(record["dialed_number"], "+15550100123", "of the dispatch");
    assert_eq!(record["campaign_metadata"]["campaignId"], "campaign-1");
    world.stopped().await;
}

#[tokio::test]
async fn a_call_that_comes_while_the_disk_is_away_gets_its_record_when_it_is_back() {
    let mut world = World::with_script(GOOD_CALL).await;
    let folder = world.data.path().join("conversations");
    let away = world.data.path().join("away");
    let (mut server, _) = world.server.worker().await;
    server.offer("AJ_1").await;
    assert!(server.answer("AJ_1").await.available);
    fs::rename(&folder, &away).unwrap();
    server.assign("AJ_1").await;
    let (status, error) = server.job_status("AJ_1").await;
    assert_eq!(status, JobStatus::JsFailed);
    assert!(error.contains("journal could not be begun"), "{error}");
    world.notified().await;
    assert_eq!(world.records(), [] as [Value; 0]);
    fs::rename(&away, &folder).unwrap();
    // Retried every few seconds, and once more before the worker ends.
    world.stop.send(()).await.unwrap();
    let stopped = timeout(DEADLINE, &mut world.worker).await.unwrap();
    stopped.unwrap().unwrap();
    let records = world.records();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["job_id"], "AJ_1");
    assert_eq!(records[0]["dialed_number"], "+15550100123");
    assert_eq!(records[0]["outcome"]["call_status"], "failed");
    assert_eq!(world.store.orphans(), []);
}

#[tokio::test]
async fn a_call_that_never_gets_ready_is_killed_and_has_a_record() {
    // Lives without reporting that it is ready.
    let mut world = World::new(
        1,
        |_| CallProgram::new("/bin/sleep", [OsString::from("60")]),
        |_| {},
    )
    .await;
    let (error, record) = bad_end(&mut world).await;
    assert!(error.contains("worker.ready_timeout_s"), "{error}");
    assert_eq!(record["outcome"]["call_status"], "failed");
    world.stopped().await;
}

#[tokio::test]
async fn a_call_that_dies_before_it_is_ready_has_a_record() {
    let mut world = World::new(1, |_| CallProgram::new("/bin/false", []), |_| {}).await;
    let (error, _) = bad_end(&mut world).await;
    assert!(
        error.contains("did not get ready") && error.contains("exit status: 1"),
        "{error}"
    );
    world.stopped().await;
}

#[tokio::test]
async fn a_job_that_the_server_terminates_is_ended() {
    let script = r#"say '{"message":"running"}'; read -r order; say "$order" > "$DATA/order"; record; finish"#;
    let mut world = World::with_script(script).await;
    let (mut server, _) = world.server.worker().await;
    server.dispatch("AJ_1").await;
    assert_eq!(server.job_status("AJ_1").await.0, JobStatus::JsRunning);
    server.terminate("AJ_unknown").await;
    server.terminate("AJ_1").await;
    assert_eq!(server.job_status("AJ_1").await.0, JobStatus::JsSuccess);
    let order = fs::read_to_string(world.data.path().join("order")).unwrap();
    assert_eq!(
        order,
        "{\"message\":\"shutdown\",\"reason\":\"termination\"}\n"
    );
    world.stopped().await;
}

fn earlier_call(id: &str) -> CallStart {
    CallStart {
        session_id: id.parse().unwrap(),
        job_id: "AJ_old".into(),
        room_name: "old-room".into(),
        room_sid: None,
        job_metadata: None,
        direction: Default::default(),
        call_start: "2026-11-21T02:30:00Z".parse().unwrap(),
        agent_name: "sales".into(),
        attributes: Default::default(),
    }
}

#[tokio::test]
async fn calls_that_a_killed_worker_left_are_counted_until_they_end_and_then_recorded() {
    let id: SessionId = "session_20261121_023000_0a1b2c".parse().unwrap();
    let mut held = None;
    let prepare = |store: &Store| {
        store.begin(&earlier_call(id.as_str()), &[]).unwrap();
        // Holds the journal as a live process does.
        held = Some(store.open_session(&id).unwrap());
    };
    let server = AgentServer::start().await;
    let mut world = World::at(server, 1, |data| scripted(data, GOOD_CALL), prepare);
    let (mut server, _) = world.server.worker().await;
    assert_eq!(server.worker_status(true, 0).await, 1.0);
    server.offer("AJ_1").await;
    assert!(!server.answer("AJ_1").await.available);
    assert_eq!(world.status.borrow().inherited_calls, 1);

    // Its process dies.
    drop(held);
    server.worker_status(false, 0).await;
    world.notified().await;
    assert_eq!(world.records()[0]["session_id"], id.as_str());
    server.offer("AJ_2").await;
    assert!(server.answer("AJ_2").await.available);
    // The accepted job is never assigned; the worker must not wait for it when it is told twice to
    // stop.
    world.stop.send(()).await.unwrap();
    world.stopped().await;
}

#[tokio::test]
async fn a_call_that_died_with_its_worker_is_recorded_at_the_next_start() {
    let prepare = |store: &Store| {
        store
            .begin(&earlier_call("session_20261121_023000_0a1b2c"), &[])
            .unwrap();
        let journal = store
            .root()
            .join("conversations/session_20261121_023000_0a1b2c.journal.jsonl");
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        File::options()
            .append(true)
            .open(journal)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
    };
    let server = AgentServer::start().await;
    let mut world = World::at(server, 1, |data| scripted(data, GOOD_CALL), prepare);
    world.notified().await;
    assert_eq!(world.records()[0]["outcome"]["call_status"], "recovered");
    world.stopped().await;
}

#[tokio::test]
async fn a_refused_key_is_named_and_the_worker_goes_on_trying() {
    let server = AgentServer::start().await;
    server.refuse_with(401);
    let mut world = World::at(server, 1, |data| scripted(data, GOOD_CALL), |_| {});
    let mut status = world.status.clone();
    let refused = status.wait_for(|status| status.connection_problem.is_some());
    let problem = timeout(DEADLINE, refused)
        .await
        .expect("nothing was said in time")
        .unwrap()
        .not_ready()
        .unwrap();
    assert!(
        problem.contains("LIVEKIT_API_KEY") && problem.contains(&world.server.address.to_string()),
        "{problem}"
    );
    world.server.refuse_with(0);
    let _registered = world.server.worker().await;
    timeout(
        DEADLINE,
        status.wait_for(|status| status.not_ready().is_none()),
    )
    .await
    .expect("not ready in time")
    .unwrap();
    world.stopped().await;
}

#[tokio::test]
async fn an_address_that_cannot_be_one_is_refused_before_anything_starts() {
    let data = tempfile::tempdir().unwrap();
    let store = Store::open(data.path()).unwrap();
    let program = scripted(data.path(), GOOD_CALL);
    let (notify, _notices) = mpsc::channel(1);
    let worker = Worker::new(
        WorkerConfig::default(),
        settings("localhost:7880".into()),
        String::new(),
        store,
        program,
        notify,
    );
    let Err(error) = worker else {
        panic!("accepted")
    };
    assert!(error.to_string().contains("LIVEKIT_URL"), "{error}");
}

#[tokio::test]
async fn a_worker_that_cannot_write_records_takes_no_calls_until_it_can() {
    let mut away = None;
    let mut world = World::new(
        1,
        |data| scripted(data, GOOD_CALL),
        |store| {
            let folder = store.path("conversations");
            let elsewhere = store.path("elsewhere");
            fs::rename(&folder, &elsewhere).unwrap();
            away = Some((folder, elsewhere));
        },
    )
    .await;
    let (folder, elsewhere) = away.unwrap();
    let (mut server, _) = world.server.worker().await;
    server.worker_status(true, 0).await;
    server.offer("AJ_1").await;
    assert!(!server.answer("AJ_1").await.available);
    let why = world.status.borrow_and_update().not_ready().unwrap();
    assert!(
        why.contains("no new calls are taken") && why.contains("conversations"),
        "{why}"
    );
    fs::rename(&elsewhere, &folder).unwrap();
    server.worker_status(false, 0).await;
    server.offer("AJ_2").await;
    assert!(server.answer("AJ_2").await.available);
    // A second request to stop: the worker does not wait for the assignment.
    world.stop.send(()).await.unwrap();
    world.stopped().await;
}

#[tokio::test]
async fn the_page_says_how_the_worker_is() {
    let mut world = World::with_script(GOOD_CALL).await;
    let page = HttpServer::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = page.address();
    let taken = HttpServer::bind(address).await.unwrap_err().to_string();
    assert!(
        taken.contains("worker.http_bind") && taken.contains(&address.to_string()),
        "{taken}"
    );

    let extra = axum::Router::new().route("/", axum::routing::get(async || "a page of one's own"));
    let stop = CancellationToken::new();
    let metrics = voicebot::worker::install_metrics().unwrap();
    let serving =
        tokio::spawn(page.serve(world.status.clone(), Some(metrics), extra, stop.clone()));
    let get = async |path: &str| {
        let answer = reqwest::get(format!("http://{address}{path}"))
            .await
            .unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(get("/").await, (200, "a page of one's own".into()));
    assert_eq!(
        get("/healthz").await,
        (200, "OK".into()),
        "alive, whatever the server does"
    );
    let (code, words) = get("/readyz").await;
    assert_eq!(code, 503);
    assert!(words.contains("not registered"), "{words}");

    let (mut server, _) = world.server.worker().await;
    server.dispatch("AJ_1").await;
    assert_eq!(server.job_status("AJ_1").await.0, JobStatus::JsRunning);
    server.worker_status(true, 1).await;
    assert_eq!(get("/readyz").await, (200, "ready".into()));
    let about: Value = serde_json::from_str(&get("/worker").await.1).unwrap();
    assert_eq!(about["agent_name"], "sales");
    assert_eq!(about["active_jobs"], 1);
    assert_eq!(about["protocol_version"], 1);
    let (_, text) = get("/metrics").await;
    // The metrics are shared by all workers of this test process.
    for name in [
        "lk_agents_active_job_count ",
        "lk_agents_child_process_count ",
        "lk_agents_worker_load ",
        "process_open_fds ",
        // There before anything is counted.
        "lk_agents_turn_e2e_latency_seconds_bucket{le=\"0.5\"} ",
        "lk_agents_usage_llm_input_tokens_total ",
        "voicebot_provider_errors_total{component=\"tts\"} ",
        "voicebot_provider_fallbacks_total{component=\"stt\"} ",
        "voicebot_interruptions_total{kind=\"real\"} ",
        "voicebot_call_status_total{status=\"voicemail\"} ",
        "voicebot_calls_total{outcome=\"not_ready\"} ",
        "voicebot_job_offers_total{answer=\"declined\"} ",
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }

    world.end_call().await;
    assert_eq!(server.job_status("AJ_1").await.0, JobStatus::JsSuccess);
    server.worker_status(false, 0).await;
    let (_, text) = get("/metrics").await;
    assert!(
        text.contains("voicebot_calls_total{outcome=\"success\"}"),
        "{text}"
    );
    world.stopped().await;
    stop.cancel();
    timeout(DEADLINE, serving)
        .await
        .expect("the page did not stop in time")
        .unwrap();
}
