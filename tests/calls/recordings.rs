//! The recording of a call: two channels, both voices, at the CRM.

use std::io::Cursor;

use oggopus::Channels;
use serde_json::json;

use crate::live_caller::line;
use crate::world::{Delivered, LONG_LINE, World};

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
async fn recorded_call(mode: &str) -> (World, crate::world::Worker, Delivered) {
    let world = World::new(json!([]), &[("VOICEBOT__RECORDING__MODE", mode)]).await;
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
