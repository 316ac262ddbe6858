//! The recording of a call: two channels, both voices, at the CRM.

use std::io::Cursor;

use oggopus::Channels;
use roomserver::{EgressBehaviour, EgressEnding, EgressRefusal};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::live_caller::line;
use crate::support::world::{ANSWER, Delivered, LONG_LINE, World, eventually};

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

/// The same, recorded by an egress that ends like this; a backup goes into the folder that is mounted as `recordings/backup`.
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
    let spoken = loud_seconds(line(LONG_LINE).into_iter(), 16_000);
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
