//! The recording of a call: two channels, both voices, at the CRM.

use std::io::Cursor;

use oggopus::Channels;
use roomserver::{EgressBehaviour, EgressEnding, EgressRefusal};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::live_caller::line;
use crate::support::world::{ANSWER, DEADLINE, Delivered, LONG_LINE, World, eventually, files};

/// Seconds of sound, counted in pieces of 20 ms that have a loud sample.
fn loud_seconds(samples: impl Iterator<Item = i16>, rate_hz: u32) -> f64 {
    const LOUD: u16 = 600;
    let samples: Vec<i16> = samples.collect();
    let pieces = samples.chunks(rate_hz as usize / 50);
    pieces
        .filter(|piece| piece.iter().any(|sample| sample.unsigned_abs() > LOUD))
        .count() as f64
        / 50.0
}

/// A call with one question and its answer, recorded.
async fn recorded_call(mode: &str) -> (World, crate::support::world::Worker, Delivered) {
    let world = World::new(json!([]), &[("VOICEBOT__RECORDING__MODE", mode)]).await;
    call_in(world).await
}

/// The same, recorded by an egress that ends like this; a backup goes into the folder that is
/// mounted as `recordings/backup`.
async fn call_with_egress(
    egress: EgressBehaviour,
) -> (World, crate::support::world::Worker, Delivered) {
    let settings = [("VOICEBOT__RECORDING__MODE", "egress")];
    let world = World::with(json!([]), &settings, |options, data| {
        options.egress = egress;
        if let EgressEnding::BackedUp(folder) = &mut options.egress.ending {
            *folder = data.join(&folder);
        }
    })
    .await;
    call_in(world).await
}

async fn call_in(world: World) -> (World, crate::support::world::Worker, Delivered) {
    let worker = world.worker().await;
    let mut caller = world.call("recorded").await;
    caller.ask(LONG_LINE).await;
    caller.hang_up().await;
    let call = world.delivered(1).await.remove(0);
    (world, worker, call)
}

/// Both voices are in the recording that the CRM got, each on its side.
fn has_both_voices(call: &Delivered) {
    let recording = call.recording.as_ref().expect("the CRM has the recording");
    let mut reader =
        oggopus::Reader::new(Cursor::new(recording.bytes.clone())).expect("an Ogg file");
    assert_eq!(reader.channels(), Channels::Stereo);
    let sound = reader.read_to_end().expect("sound");
    let side = |offset: usize| {
        loud_seconds(
            sound.iter().skip(offset).step_by(2).copied(),
            oggopus::SAMPLE_RATE_HZ,
        )
    };
    let (agent, caller) = (side(0), side(1));
    let spoken = loud_seconds(line(LONG_LINE).iter().copied(), 16_000);
    // The answer is four letters long, the greeting six: half a second together.
    assert!((0.4..1.2).contains(&agent), "agent: {agent} s");
    assert!(
        (caller - spoken).abs() < 0.15 * spoken,
        "caller: {caller} s of {spoken} s"
    );

    let details = &call.call["callDetails"];
    assert!(
        details["recordingUrl"]
            .as_str()
            .is_some_and(|url| url.contains("/uploads/")),
        "{details}"
    );
    assert_eq!(details["recordingSize"], recording.bytes.len());
    let duration = details["recordingDuration"].as_f64().expect("a duration");
    let decoded = sound.len() as f64 / 2.0 / f64::from(oggopus::SAMPLE_RATE_HZ);
    assert!(
        (duration - decoded).abs() <= 1.0,
        "{duration} s, decoded {decoded} s"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_records_itself_on_two_channels() {
    let (world, worker, call) = recorded_call("local").await;
    has_both_voices(&call);
    let file = call.record["files"]["recording"].as_str().expect("a file");
    let ours = std::fs::read(world.data().join(file)).expect("the recording");
    let details = &call.call["callDetails"];
    assert!(details["recordingStartTime"].is_string(), "{details}");
    assert_eq!(
        details["recordingStartTime"],
        call.record["recording"]["recording_start_time"]
    );
    assert_eq!(ours, call.recording.expect("uploaded").bytes);
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn egress_records_the_call_and_its_manifest_leads_to_the_file() {
    let (world, worker, call) = recorded_call("egress").await;
    has_both_voices(&call);
    let id = call.record["recording"]["egress_id"]
        .as_str()
        .expect("an egress id");
    let manifest = world.data().join(format!("recordings/{id}.json"));
    assert!(manifest.is_file(), "{}", manifest.display());
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_that_was_cut_at_a_limit_is_delivered() {
    let (world, worker, call) = call_with_egress(EgressBehaviour {
        ending: EgressEnding::LimitReached,
        ..Default::default()
    })
    .await;
    has_both_voices(&call);
    assert_eq!(call.record["recording"]["state"], "resolved");
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_in_the_backup_storage_is_found_through_the_servers_api() {
    let (world, worker, call) = call_with_egress(EgressBehaviour {
        ending: EgressEnding::BackedUp("recordings/backup".into()),
        ..Default::default()
    })
    .await;
    has_both_voices(&call);
    let recording = &call.record["recording"];
    assert_eq!(recording["state"], "resolved");
    assert!(
        recording["error"]
            .as_str()
            .is_some_and(|error| error.contains("the storage did not take the file")),
        "{recording}"
    );
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_recording_failed_is_delivered_at_once_and_says_why() {
    for (ending, reason) in [
        (EgressEnding::Failed, "the storage did not take the file"),
        (EgressEnding::Aborted, "End reason: Service terminated"),
    ] {
        let (world, worker, call) = call_with_egress(EgressBehaviour {
            ending,
            ..Default::default()
        })
        .await;
        assert_eq!(call.recording, None);
        let recording = &call.record["recording"];
        assert_eq!(recording["state"], "failed");
        assert!(
            recording["error"]
                .as_str()
                .is_some_and(|error| error.contains(reason)),
            "{recording}"
        );
        world.nothing_is_left(worker).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_no_egress_records_goes_on() {
    for (refusal, reason) in [
        (EgressRefusal::NoService, "no egress service is running"),
        (EgressRefusal::Quota, "quota"),
    ] {
        let (world, worker, call) = call_with_egress(EgressBehaviour {
            refusal: Some(refusal),
            ..Default::default()
        })
        .await;
        assert!(
            call.transcript().contains(&format!("assistant: {ANSWER}")),
            "{:?}",
            call.transcript()
        );
        assert_eq!(call.recording, None);
        let recording = &call.record["recording"];
        assert_eq!(recording["state"], "failed", "{recording}");
        assert!(
            recording["error"]
                .as_str()
                .is_some_and(|error| error.contains(reason)),
            "{recording}"
        );
        world.nothing_is_left(worker).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_that_takes_its_time_is_waited_for_until_livekit_says_that_it_has_ended() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|probe| probe.local_addr())
        .expect("a free port");
    let written = CancellationToken::new();
    let page = port.to_string();
    let settings = [
        ("VOICEBOT__RECORDING__MODE", "egress"),
        ("VOICEBOT__WORKER__HTTP_BIND", &page),
    ];
    let world = World::with(json!([]), &settings, |options, _| {
        options.webhook_urls = vec![format!("http://{page}/webhook")];
        options.egress.held_until = Some(written.clone());
    })
    .await;
    let worker = world.worker().await;
    let mut caller = world.call("recorded").await;
    caller.ask(LONG_LINE).await;
    caller.hang_up().await;
    eventually("record that waits", async || {
        let folder = std::fs::read_dir(world.data().join("call_metadata")).ok()?;
        let records = folder
            .flatten()
            .flat_map(|entry| std::fs::read(entry.path()));
        let mut records = records.flat_map(|bytes| serde_json::from_slice(&bytes));
        records
            .find(|record: &serde_json::Value| record["uploads"]["recording"]["state"] == "waiting")
    })
    .await;
    written.cancel();
    let call = world.delivered(1).await.remove(0);
    has_both_voices(&call);
    let states: Vec<_> = call.record["recording"]["history"]
        .as_array()
        .expect("its steps")
        .iter()
        .map(|change| change["state"].as_str().expect("a state"))
        .collect();
    assert_eq!(states, ["requested", "active", "resolved"]);
    assert!(
        world
            .log()
            .contains("LiveKit says that an egress has ended")
    );
    world.nothing_is_left(worker).await;
}

/// A world whose egress writes below a folder of its own, with these settings of `[recording]`.
async fn world_with_egress_folder(folder: &std::path::Path, settings: &[(&str, &str)]) -> World {
    let mut all = vec![("VOICEBOT__RECORDING__MODE", "egress")];
    all.extend(settings);
    World::with(json!([]), &all, |options, _| {
        options.recordings_dir = Some(folder.to_owned());
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_egress_that_writes_to_a_folder_outside_the_data_folder_is_found_there() {
    let mounted = tempfile::tempdir().expect("a folder");
    let local = mounted.path().join("out").display().to_string();
    let world = world_with_egress_folder(
        mounted.path(),
        &[
            (
                "VOICEBOT__RECORDING__EGRESS_FILE_PATH",
                "out/{utc}/{session_id}-{retry}.ogg",
            ),
            ("VOICEBOT__RECORDING__EGRESS_PREFIX", "out"),
            ("VOICEBOT__RECORDING__LOCAL_PREFIX", &local),
            ("VOICEBOT__RECORDING__OUTSIDE_DATA_DIR", "true"),
        ],
    )
    .await;
    let (world, worker, call) = call_in(world).await;
    has_both_voices(&call);
    let file = call.record["files"]["recording"].as_str().expect("a file");
    assert!(file.starts_with(&local), "{file}");
    let data = world.data();
    assert!(!data.join("out").exists() && !world.log().contains("is not where it should be"));
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_that_is_not_where_it_should_be_is_a_warning_with_the_place() {
    let elsewhere = tempfile::tempdir().expect("a folder");
    let world = world_with_egress_folder(elsewhere.path(), &[]).await;
    let worker = world.worker().await;
    let mut caller = world.call("misplaced").await;
    caller.ask(LONG_LINE).await;
    caller.hang_up().await;
    let warning = eventually("warning", async || {
        let log = world.log();
        let mut lines = log.lines();
        lines
            .find(|line| line.contains("is not where it should be"))
            .map(str::to_owned)
    })
    .await;
    let place = elsewhere.path().display().to_string();
    for part in [
        r#""level":"WARN""#,
        "session.id",
        &place,
        "recording.local_prefix",
    ] {
        assert!(warning.contains(part), "{part}: {warning}");
    }
    // Somebody mounts it.
    let session = files(&elsewhere.path().join("recordings"), "ogg").remove(0);
    let name = session.file_name().expect("a name");
    std::fs::copy(&session, world.data().join("recordings").join(name)).expect("a copy");
    let call = world.delivered(1).await.remove(0);
    has_both_voices(&call);
    let said = world.log().matches("is not where it should be").count();
    assert_eq!(said, 1, "once for each call");
    world.nothing_is_left(worker).await;
}

/// A world whose egress begins when the token is cancelled, and a call in it whose caller hears the
/// agent.
async fn call_with_slow_egress(wait_ms: &str) -> (World, CancellationToken) {
    let begins = CancellationToken::new();
    let settings = [
        ("VOICEBOT__RECORDING__MODE", "egress"),
        ("VOICEBOT__RECORDING__EGRESS_START_WAIT_MS", wait_ms),
    ];
    let world = World::with(json!([]), &settings, |options, _| {
        options.egress.begins_after = Some(begins.clone());
    })
    .await;
    (world, begins)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_greeting_waits_for_the_egress_where_that_is_wanted() {
    let (world, begins) = call_with_slow_egress("5000").await;
    let worker = world.worker().await;
    let mut caller = world.caller("patient").await;
    world.dispatch("patient", json!({})).await;
    eventually("started egress", async || {
        world.log().contains("recording started").then_some(())
    })
    .await;
    assert_eq!(caller.seen().replies(), 0, "not without the egress");
    let began_after = chrono::Utc::now();
    begins.cancel();
    caller.agent_has_said(1).await;
    caller
        .until("the agent hears the caller", |seen| seen.is_heard)
        .await;
    caller.ask(LONG_LINE).await;
    caller.hang_up().await;
    let call = world.delivered(1).await.remove(0);
    has_both_voices(&call);
    let began = call.record["recording"]["active_at"].as_str();
    let began = began.expect("when it began");
    assert_eq!(call.call["callDetails"]["recordingStartTime"], began);
    let began: chrono::DateTime<chrono::Utc> = began.parse().expect("a time");
    assert!(began >= began_after - chrono::TimeDelta::milliseconds(1));
    let log = world.log();
    let at = |message: &str| log.find(message).unwrap_or_else(|| panic!("{message}"));
    assert!(at("the egress records") < at("first sound of the agent"));
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_is_greeted_without_the_egress_and_the_record_says_what_is_missing() {
    for (wait_ms, says) in [("0", None), ("200", Some("the egress does not record yet"))] {
        let (world, begins) = call_with_slow_egress(wait_ms).await;
        let worker = world.worker().await;
        let mut caller = world.call("impatient").await;
        begins.cancel();
        let noted = eventually("beginning of the recording", async || {
            let log = world.log();
            let mut lines = log.lines();
            lines
                .find(|line| line.contains("the egress records"))
                .map(str::to_owned)
        })
        .await;
        let noted: serde_json::Value = serde_json::from_str(&noted).expect("a line of JSON");
        assert!(
            noted["missing_ms"].as_i64().is_some_and(|ms| ms > 0),
            "{noted}"
        );
        caller.ask(LONG_LINE).await;
        caller.hang_up().await;
        let call = world.delivered(1).await.remove(0);
        assert!(call.recording.is_some() && call.record["recording"]["active_at"].is_string());
        if let Some(says) = says {
            assert!(world.log().contains(says), "{wait_ms}");
        }
        world.nothing_is_left(worker).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_tries_an_egress_where_that_is_wanted() {
    let check = async |world: &World| {
        let output = world.program(&["check", "--egress"]).output();
        let output = tokio::time::timeout(DEADLINE, output).await;
        let output = output.expect("it ends").expect("it starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let world = World::new(json!([]), &[("VOICEBOT__RECORDING__MODE", "egress")]).await;
    let said = check(&world).await;
    assert!(said.contains("egress: opens a room, records 2 s"), "{said}");
    assert!(said.contains("ok      egress: recorded to "), "{said}");
    assert_eq!(
        files(&world.data().join("recordings"), "ogg"),
        [""; 0].map(std::path::PathBuf::from)
    );
    assert_eq!(files(&world.data().join("recordings"), "json").len(), 0);
    let rooms = world
        .rooms()
        .list_rooms(Vec::new())
        .await
        .expect("an answer");
    assert!(rooms.is_empty(), "{rooms:?}");

    let elsewhere = tempfile::tempdir().expect("a folder");
    let world = world_with_egress_folder(elsewhere.path(), &[]).await;
    let said = check(&world).await;
    let place = elsewhere.path().display().to_string();
    let failed = said.lines().find(|line| line.starts_with("FAILED"));
    assert!(
        failed.is_some_and(|line| line.contains("egress: ") && line.contains(&place)),
        "{said}"
    );

    let world = World::with(json!([]), &[], |options, _| {
        options.egress.refusal = Some(EgressRefusal::NoService);
    })
    .await;
    let said = check(&world).await;
    assert!(
        said.contains("FAILED  egress: no egress service is running"),
        "{said}"
    );
}
