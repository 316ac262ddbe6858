//! The search for the recording of a call: found in every place, waited for, given up, and found
//! late.

use std::fs;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::crm::FakeCrm;
use crate::support::data::{CALLER, DataFolder, at, hangup, session_id};
use crate::support::s3::{self, FakeS3};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use livekit_api::access_token::AccessToken;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Duration, timeout};
use tokio_util::sync::CancellationToken;
use voicebot::recording::RecordingConfig;
use voicebot::recording::resolve::{
    EgressAnswer, EgressDirectory, EgressFile, EgressProgress, EgressQuery, EgressReport,
    FoundRecording, RecordingResolver, Resolution,
};
use voicebot::recording::webhook::{EgressEnded, Webhooks};
use voicebot::session::{
    self, CallRecord, PartState, RecordingEvidence, RecordingMetadata, RecordingSource,
    RecordingState,
};
use voicebot::upload::{CrmConfig, CrmSecrets, UploadConfig, Uploader};
use voicebot::worker::webhook_route;

const ID: &str = "session_20261121_100000_aaaaaa";
const SECRET: &str = "a secret of at least thirty-two bytes";
const DEADLINE: Duration = Duration::from_secs(20);

/// A fake Egress API with a list of reports.
#[derive(Default)]
struct FakeEgress {
    reports: Mutex<Vec<EgressReport>>,
    /// Whether it answers no query.
    silent: AtomicBool,
    asked: Notify,
}

impl EgressDirectory for FakeEgress {
    fn find(&self, query: EgressQuery) -> EgressAnswer<'_> {
        let mut found = self.reports.lock().unwrap().clone();
        if let EgressQuery::Id(id) = &query {
            found.retain(|report| report.egress_id == *id);
        }
        self.asked.notify_one();
        let answer = match self.silent.load(Ordering::Relaxed) {
            true => Err("the server did not answer".to_owned()),
            false => Ok(found),
        };
        Box::pin(std::future::ready(answer))
    }
}

/// One call's record, and the resolver that searches for its recording.
struct Search {
    data: DataFolder,
    egress: Arc<FakeEgress>,
    config: RecordingConfig,
    record: CallRecord,
}

impl Search {
    /// A call whose process wrote this about its recording.
    fn new(recording: Option<RecordingMetadata>) -> Self {
        let data = DataFolder::new();
        let (session, lock) = data.running_call(ID, Some(CALLER));
        if let Some(recording) = recording {
            session::lock(&session).set_recording_metadata(recording);
        }
        session::lock(&session).set_outcome(hangup());
        let file = data.store.finish(&session, lock).expect("the record");
        let bytes = fs::read(file).expect("the record");
        let record = CallRecord::from_json(&bytes, &session_id(ID)).expect("a record");
        Self {
            data,
            egress: Arc::default(),
            config: RecordingConfig::default(),
            record,
        }
    }

    /// A call that requested an egress and got this id, or no answer.
    fn egress(id: Option<&str>) -> Self {
        Self::new(Some(RecordingMetadata {
            egress_id: id.map(str::to_owned),
            ..RecordingMetadata::begun(
                RecordingSource::Egress,
                match id {
                    Some(_) => RecordingState::Active,
                    None => RecordingState::Requested,
                },
                at(1),
            )
        }))
    }

    /// Scans this many seconds after ten o'clock, and writes the result into the record as the
    /// delivery does.
    async fn scan(&mut self, second: i64) -> Resolution {
        let directory: Arc<dyn EgressDirectory> = self.egress.clone();
        let resolver = RecordingResolver::new(
            self.data.store.clone(),
            self.config.clone(),
            Some(directory),
        );
        let resolution = resolver.resolve(&self.record, at(second)).await;
        resolution.note(&mut self.record, at(second));
        self.record.uploads.recording.state = match &resolution {
            Resolution::Found(_) => PartState::Pending,
            Resolution::Wait { .. } => PartState::Waiting,
            _ => PartState::Missing,
        };
        resolution
    }

    async fn found(&mut self, second: i64) -> FoundRecording {
        match self.scan(second).await {
            Resolution::Found(found) => found,
            other => panic!("not found: {other:?}"),
        }
    }

    /// Why it is waited for, and the seconds until the next scan.
    async fn waits(&mut self, second: i64) -> (String, i64) {
        match self.scan(second).await {
            Resolution::Wait {
                why, scan_again, ..
            } => (why, (scan_again - at(second)).num_seconds()),
            other => panic!("not waited for: {other:?}"),
        }
    }

    fn server_knows(&self, report: EgressReport) {
        *self.egress.reports.lock().unwrap() = vec![report];
    }

    fn states(&self) -> Vec<(RecordingState, RecordingEvidence)> {
        let recording = self.record.recording.as_ref().expect("it was recorded");
        recording
            .history
            .iter()
            .map(|change| (change.state, change.source))
            .collect()
    }
}

/// An egress of this call's room with one file.
fn report(progress: EgressProgress, location: &str) -> EgressReport {
    EgressReport {
        egress_id: "EG_1".to_owned(),
        started_at: Some(at(2)),
        progress,
        files: vec![EgressFile {
            location: location.to_owned(),
            ..EgressFile::default()
        }],
        ..EgressReport::default()
    }
}

fn failed(reason: &str) -> EgressProgress {
    EgressProgress::Failed(reason.to_owned())
}

#[tokio::test]
async fn a_file_without_a_reported_end_is_scanned_twice() {
    let mut search = Search::new(None);
    search.record.files.recording = Some("recordings/a.ogg".to_owned());
    search.data.write("recordings/a.ogg", "");
    assert!(search.waits(61).await.0.contains("is empty"));
    search.data.write("recordings/a.ogg", "some");
    let (why, pause) = search.waits(62).await;
    assert!(why.contains("may still grow"), "{why}");
    assert_eq!(pause, 2);
    search.data.write("recordings/a.ogg", "some more");
    assert!(search.waits(64).await.0.contains("may still grow"));
    let found = search.found(66).await;
    assert_eq!((found.size, found.evidence), (9, RecordingEvidence::Record));
    assert_eq!(found.name, "recordings/a.ogg");
}

#[tokio::test]
async fn a_file_that_is_smaller_than_the_server_says_is_still_on_its_way() {
    let mut search = Search::egress(Some("EG_1"));
    let mut whole = report(EgressProgress::Done, "/out/recordings/a.ogg");
    whole.files[0].size = Some(9);
    whole.files[0].duration = Some(59);
    search.server_knows(whole);
    search.data.write("recordings/a.ogg", "some");
    let (why, pause) = search.waits(61).await;
    assert!(why.contains("has 4 of its 9 bytes"), "{why}");
    assert_eq!(pause, 2);
    let (_, pause) = search.waits(220).await;
    assert_eq!(pause, 30, "it does not grow");
    search.data.write("recordings/a.ogg", "some more");
    let found = search.found(223).await;
    assert_eq!((found.size, found.duration), (9, Some(59)));
    assert_eq!(found.evidence, RecordingEvidence::EgressApi);
}

#[tokio::test]
async fn a_missing_recording_is_still_searched_for_and_found_late() {
    let mut search = Search::egress(Some("EG_1"));
    // Pauses grow with the waiting time.
    let mut pauses = Vec::new();
    for second in [60, 64, 100, 400, 650] {
        pauses.push(search.waits(second).await.1);
    }
    assert_eq!(
        pauses,
        [1, 1, 10, 30, 10],
        "the last scan is at the end of the wait"
    );
    let Resolution::Missing {
        why, scan_again, ..
    } = search.scan(660).await
    else {
        panic!("ten minutes are over");
    };
    assert!(
        why.contains("EG_1") && why.contains("600 s after the call ended"),
        "{why}"
    );
    assert_eq!(scan_again, Some(at(660 + 150)));
    search.data.write(
        "recordings/EG_1.json",
        json!({ "egress_id": "EG_1", "files": [{ "filename": "recordings/a.ogg" }] }).to_string(),
    );
    search.data.write("recordings/a.ogg", "late");
    let found = search.found(5000).await;
    assert_eq!(found.evidence, RecordingEvidence::Manifest);
    assert_eq!(
        search.states(),
        [
            (RecordingState::Active, RecordingEvidence::Call),
            (RecordingState::Missing, RecordingEvidence::Deadline),
            (RecordingState::Resolved, RecordingEvidence::Manifest),
        ]
    );
    let recording = search.record.recording.expect("it was recorded");
    assert_eq!(recording.error, None, "what was wrong is over");
    assert_eq!(recording.history[2].at, at(5000));
}

const DAY: i64 = 24 * 3600;

/// Scans at the planned times, from this second on, until the search ends. Returns after how many
/// seconds that was.
async fn given_up_after(search: &mut Search, from: i64) -> i64 {
    let mut second = from;
    for _ in 0..1000 {
        second = match search.scan(second).await {
            Resolution::Wait { scan_again, .. } => scan_again,
            Resolution::Missing {
                scan_again: Some(scan_again),
                ..
            } => scan_again,
            Resolution::Missing {
                scan_again: None, ..
            } => return second - from,
            other => panic!("not missing: {other:?}"),
        }
        .signed_duration_since(at(0))
        .num_seconds()
            + 1;
    }
    panic!("it is never given up");
}

#[tokio::test]
async fn the_search_ends_after_a_day_however_long_ago_the_call_was() {
    for first_scan in [60, DAY, 365 * DAY, -DAY] {
        let mut search = Search::egress(Some("EG_1"));
        let took = given_up_after(&mut search, first_scan).await;
        assert!((DAY..DAY + 60).contains(&took), "{first_scan}: {took}");
    }
}

#[tokio::test]
async fn a_file_is_found_however_long_ago_the_call_was_and_however_long_no_scan_was_made() {
    for first_scan in [61, 601, DAY, 365 * DAY] {
        let mut search = Search::new(None);
        search.record.files.recording = Some("recordings/a.ogg".to_owned());
        search.data.write("recordings/a.ogg", "whole");
        let (why, pause) = search.waits(first_scan).await;
        assert!(why.contains("may still grow"), "{why}");
        assert_eq!(pause, 2);
        assert_eq!(search.found(first_scan + 2).await.size, 5);
    }

    // A record without any time.
    let mut search = Search::new(None);
    search.record.timestamps = Default::default();
    search.record.files.recording = Some("recordings/a.ogg".to_owned());
    search.data.write("recordings/a.ogg", "whole");
    search.waits(365 * DAY).await;
    assert_eq!(search.found(365 * DAY + 2).await.size, 5);
}

#[tokio::test]
async fn a_file_that_appeared_between_scans_is_scanned_twice_even_after_all_limits() {
    // The worker was down, or the clock jumped.
    for second_scan in [2 * DAY, 56 * 365 * DAY] {
        let mut search = Search::new(None);
        (search.config.wait_s, search.config.late_s) = (60, 600);
        search.record.files.recording = Some("recordings/a.ogg".to_owned());
        search.waits(61).await;
        search.data.write("recordings/a.ogg", "some");
        for (second, content) in [(second_scan, "some"), (second_scan + 3600, "some more")] {
            search.data.write("recordings/a.ogg", content);
            let Resolution::Missing { scan_again, .. } = search.scan(second).await else {
                panic!("the wait is over");
            };
            assert!(scan_again.is_some(), "it may still grow");
        }
        assert_eq!(search.found(second_scan + 7200).await.size, 9);
    }
}

#[tokio::test]
async fn two_hurried_scans_are_no_proof_that_a_file_is_whole() {
    let mut search = Search::new(None);
    search.record.files.recording = Some("recordings/a.ogg".to_owned());
    search.data.write("recordings/a.ogg", "some");
    search.waits(61).await;
    assert!(search.waits(62).await.0.contains("may still grow"));
    search.data.write("recordings/a.ogg", "some more");
    assert!(search.waits(64).await.0.contains("may still grow"));
    assert_eq!(search.found(66).await.size, 9);
}

#[tokio::test]
async fn a_server_that_can_not_be_asked_does_not_cost_the_recording() {
    let mut search = Search::egress(Some("EG_1"));
    search.egress.silent.store(true, Ordering::Relaxed);
    let (mut second, mut missing_since) = (61, None);
    while second < 3 * DAY {
        let next = match search.scan(second).await {
            Resolution::Wait { scan_again, .. } => scan_again,
            Resolution::Missing { scan_again, .. } => {
                missing_since.get_or_insert(second);
                scan_again.expect("no scan has got an answer yet")
            }
            other => panic!("not missing: {other:?}"),
        };
        second = next.signed_duration_since(at(0)).num_seconds() + 1;
    }
    let held = missing_since.expect("the call data is not held for three days");
    assert!((660..720).contains(&held), "{held}");
    // The wait is bounded, too.
    let took = given_up_after(&mut search, second).await;
    assert!((4 * DAY - 7200..4 * DAY + 7200).contains(&took), "{took}");

    let mut search = Search::egress(Some("EG_1"));
    search.egress.silent.store(true, Ordering::Relaxed);
    search.scan(61).await;
    for day in 1..4 {
        search.scan(day * DAY).await;
    }
    search.egress.silent.store(false, Ordering::Relaxed);
    search.server_knows(report(EgressProgress::Done, "/out/recordings/a.ogg"));
    search.data.write("recordings/a.ogg", "late");
    assert_eq!(search.found(4 * DAY).await.size, 4);
}

#[tokio::test]
async fn what_has_failed_is_over_at_once_unless_its_backup_is_there() {
    let mut search = Search::egress(Some("EG_1"));
    search.server_knows(report(failed("Start signal not received"), ""));
    let Resolution::Failed { why, evidence } = search.scan(61).await else {
        panic!("it has failed");
    };
    assert!(why.contains("Start signal not received"), "{why}");
    assert_eq!(evidence, RecordingEvidence::EgressApi);
    assert_eq!(
        search.states().last(),
        Some(&(RecordingState::Failed, RecordingEvidence::EgressApi))
    );

    let mut search = Search::egress(Some("EG_1"));
    search.server_knows(EgressReport {
        backup_storage_used: true,
        ..report(failed("upload refused"), "/backup/recordings/b.ogg")
    });
    assert!(search.waits(61).await.0.contains("backup"));
    search.data.write("recordings/b.ogg", "saved");
    let found = search.found(63).await;
    assert!(
        found
            .flaw
            .is_some_and(|flaw| flaw.contains("upload refused"))
    );
    let recording = search.record.recording.expect("it was recorded");
    assert_eq!(recording.state, RecordingState::Resolved);
    assert!(
        recording
            .error
            .is_some_and(|error| error.contains("upload refused"))
    );
}

#[tokio::test]
async fn the_file_of_a_failed_egress_is_used_when_it_exists_and_is_playable() {
    // It reports the file as written, and failed afterwards.
    let sound = ogg();
    let mut search = Search::egress(Some("EG_1"));
    let mut left = report(failed("closing failed"), "/out/recordings/a.ogg");
    left.files[0].size = Some(sound.len() as u64);
    search.server_knows(left);
    search.data.write("recordings/a.ogg", &sound);
    let found = search.found(61).await;
    assert!(
        found
            .flaw
            .is_some_and(|flaw| flaw.contains("closing failed"))
    );
    let recording = search.record.recording.expect("it was recorded");
    assert_eq!(recording.state, RecordingState::Resolved);
    assert!(
        recording
            .error
            .is_some_and(|error| error.contains("closing failed"))
    );

    // It names only the requested file.
    let asked_for = EgressReport {
        files: vec![EgressFile {
            filename: "recordings/b.ogg".to_owned(),
            ..EgressFile::default()
        }],
        ..report(failed("Service terminated"), "")
    };
    let mut search = Search::egress(Some("EG_1"));
    search.server_knows(asked_for.clone());
    search.data.write("recordings/b.ogg", &sound);
    assert!(search.waits(61).await.0.contains("may still grow"));
    assert_eq!(search.found(63).await.duration, Some(1));

    // The file is not playable, or there is none.
    for bytes in [Some(&b"no sound"[..]), None] {
        let mut search = Search::egress(Some("EG_1"));
        search.server_knows(asked_for.clone());
        if let Some(bytes) = bytes {
            search.data.write("recordings/b.ogg", bytes);
        }
        let Resolution::Failed { why, .. } = search.scan(63).await else {
            panic!("there is nothing to be had");
        };
        assert!(why.contains("Service terminated"), "{why}");
    }
}

/// A call that requested a file with its name, whose egress failed without reporting a file; the
/// file has these bytes.
fn left_by_a_failed_egress(bytes: &[u8]) -> Search {
    let search = Search::new(Some(RecordingMetadata {
        egress_id: Some("EG_1".to_owned()),
        recording_filename: Some(format!("/out/recordings/{ID}.ogg")),
        ..RecordingMetadata::begun(RecordingSource::Egress, RecordingState::Active, at(1))
    }));
    search.server_knows(EgressReport {
        files: Vec::new(),
        ..report(failed("Service terminated"), "")
    });
    search.data.write(&format!("recordings/{ID}.ogg"), bytes);
    search
}

#[tokio::test]
async fn the_requested_file_is_used_though_its_egress_has_failed() {
    let mut search = left_by_a_failed_egress(b"no sound");
    search.waits(61).await;
    let Resolution::Failed { why, .. } = search.scan(63).await else {
        panic!("it cannot be listened to");
    };
    assert!(why.contains("Service terminated"), "{why}");

    let mut search = left_by_a_failed_egress(&ogg());
    let (why, _) = search.waits(61).await;
    assert!(
        why.contains("Service terminated") && why.contains("may still grow"),
        "{why}"
    );
    let found = search.found(63).await;
    assert!(
        found
            .flaw
            .is_some_and(|flaw| flaw.contains("Service terminated"))
    );
}

/// An Ogg file with a second of silence.
fn ogg() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let out = file.reopen().expect("the file");
    let writer = oggopus::DualChannelWriter::new(out, Default::default()).expect("a writer");
    writer
        .finish(u64::from(oggopus::SAMPLE_RATE_HZ))
        .expect("an end");
    fs::read(file.path()).expect("the file")
}

#[tokio::test]
async fn output_that_is_no_file_is_reported_as_none() {
    let mut search = Search::egress(Some("EG_1"));
    search.server_knows(EgressReport {
        no_file: Some("a playlist of 12 segments".to_owned()),
        files: Vec::new(),
        ..report(EgressProgress::Done, "")
    });
    let Resolution::Failed { why, .. } = search.scan(61).await else {
        panic!("it will not turn up");
    };
    assert!(why.contains("a playlist of 12 segments"), "{why}");
}

#[tokio::test]
async fn a_recording_that_is_not_where_it_should_be_is_waited_for_with_the_place_that_the_server_named()
 {
    let mut search = Search::egress(Some("EG_1"));
    let mut elsewhere = report(EgressProgress::Done, "/recordings/a.ogg");
    elsewhere.files[0].filename = "recordings/a.ogg".to_owned();
    elsewhere.ended_at = Some(at(60));
    search.server_knows(elsewhere);
    // A shared folder may show the file late.
    assert!(!search.waits(62).await.0.contains("/recordings/a.ogg"));
    let (why, _) = search.waits(66).await;
    assert!(
        why.contains("recordings/a.ogg is not there")
            && why.contains(r#"written, at "/recordings/a.ogg""#),
        "{why}"
    );
}

#[tokio::test]
async fn a_folder_outside_the_data_folder_has_recordings_and_gives_away_nothing_else() {
    let mounted = tempfile::tempdir().expect("a folder");
    let path = |name: &str| mounted.path().join(name);
    fs::create_dir(path("day")).expect("a folder");
    let mut search = Search::new(Some(RecordingMetadata {
        egress_id: Some("EG_1".to_owned()),
        recording_filename: Some(format!("/out/day/{ID}.ogg")),
        ..RecordingMetadata::begun(RecordingSource::Egress, RecordingState::Active, at(1))
    }));
    search.config.local_prefix = mounted.path().display().to_string();
    search.config.outside_data_dir = true;
    search.config.egress_prefix = "/out".to_owned();
    assert_eq!(search.config.check(), Ok(()));
    let secret = tempfile::NamedTempFile::new().expect("a file");
    fs::write(secret.path(), "secret").expect("a file");
    std::os::unix::fs::symlink(secret.path(), path("day/link.ogg")).expect("a link");
    let manifest = |name: &str| {
        let manifest = json!({ "egress_id": "EG_1", "files": [{ "filename": name }] });
        // Beside the requested file.
        fs::write(path("day/EG_1.json"), manifest.to_string()).expect("a manifest");
    };
    for name in [
        "/out/day/../../etc/passwd",
        "/out/day/link.ogg",
        "/etc/passwd",
    ] {
        manifest(name);
        search.waits(61).await;
    }
    manifest("/out/day/a.ogg");
    fs::write(path("day/a.ogg"), "sound").expect("a recording");
    let found = search.found(62).await;
    assert_eq!(found.name, path("day/a.ogg").display().to_string());
    assert_eq!(found.evidence, RecordingEvidence::Manifest);

    // The record is saved, and searched again when the delivery goes on later.
    fs::remove_file(path("day/EG_1.json")).expect("it was there");
    let bytes = serde_json::to_vec(&search.record).expect("a record");
    search.record = CallRecord::from_json(&bytes, &session_id(ID)).expect("a record");
    assert_eq!(search.found(90_000).await.size, 5);
}

#[tokio::test]
async fn an_egress_whose_id_was_lost_is_found_by_its_room_but_never_that_of_another_call() {
    let mut search = Search::egress(None);
    search.data.write("recordings/a.ogg", "ours");
    search.data.write("recordings/old.ogg", "theirs");
    let earlier = EgressReport {
        started_at: Some(at(-3600)),
        ..report(EgressProgress::Done, "recordings/old.ogg")
    };
    search.server_knows(earlier.clone());
    assert!(search.waits(61).await.0.contains("an egress of the room"));
    let ours = report(EgressProgress::Done, "recordings/a.ogg");
    *search.egress.reports.lock().unwrap() = vec![earlier, ours];
    assert_eq!(search.found(63).await.name, "recordings/a.ogg");

    // The room's id is more precise than the time.
    let mut search = Search::egress(None);
    search.data.write("recordings/a.ogg", "ours");
    search.record.room.sid = Some("RM_ours".to_owned());
    for (room_id, found) in [("RM_other", false), ("RM_ours", true)] {
        search.server_knows(EgressReport {
            room_id: room_id.to_owned(),
            ..report(EgressProgress::Done, "recordings/a.ogg")
        });
        let resolution = search.scan(61).await;
        assert_eq!(
            matches!(resolution, Resolution::Found(_)),
            found,
            "{room_id}"
        );
    }
}

#[tokio::test]
async fn a_recording_that_works_is_waited_for_though_another_of_its_room_has_failed() {
    let mut search = Search::egress(None);
    let first = report(failed("no room"), "");
    let second = report(EgressProgress::Running, "");
    for reports in [[first.clone(), second.clone()], [second, first]] {
        *search.egress.reports.lock().unwrap() = reports.to_vec();
        assert!(search.waits(61).await.0.contains("has not ended"));
    }
}

#[tokio::test]
async fn the_requested_file_is_found_without_manifest_or_server() {
    let mut search = Search::new(Some(RecordingMetadata {
        recording_filename: Some(format!("recordings/{ID}.ogg")),
        ..RecordingMetadata::begun(RecordingSource::Egress, RecordingState::Requested, at(1))
    }));
    search.data.write(&format!("recordings/{ID}.ogg"), "there");
    assert!(search.waits(61).await.0.contains("may still grow"));
    assert_eq!(search.found(63).await.size, 5);
}

#[tokio::test]
async fn a_manifest_of_another_egress_is_not_believed() {
    let mut search = Search::egress(Some("1"));
    search.data.write("recordings/a.ogg", "theirs");
    search.data.write(
        "recordings/EG_1.json",
        json!({ "egress_id": "EG_2", "files": [{ "filename": "recordings/a.ogg" }] }).to_string(),
    );
    assert!(search.waits(61).await.0.contains("another egress's"));
}

#[tokio::test]
async fn a_manifest_gives_away_no_other_file_of_the_data_folder() {
    for name in ["leads/lead_1.json", ".env", "recordings/../.env", "./.env"] {
        let mut search = Search::egress(Some("EG_1"));
        search.data.write("leads/lead_1.json", "private");
        search.data.write(".env", "private");
        search.data.write(
            "recordings/EG_1.json",
            json!({ "files": [{ "filename": name, "location": name }] }).to_string(),
        );
        search.waits(61).await;
    }
}

#[tokio::test]
async fn a_local_recording_is_found_or_lost() {
    let local = || {
        Some(RecordingMetadata {
            recording_filename: Some("recordings/l.ogg".to_owned()),
            ..RecordingMetadata::begun(RecordingSource::Local, RecordingState::Active, at(1))
        })
    };
    let mut search = Search::new(local());
    let Resolution::Failed { why, evidence } = search.scan(61).await else {
        panic!("it is not going to turn up");
    };
    assert!(why.contains("recordings/l.ogg is not there"), "{why}");
    assert_eq!(evidence, RecordingEvidence::Call);

    // Its process was killed: the file will not grow.
    let mut search = Search::new(local());
    search.data.write("recordings/l.ogg", "half");
    assert_eq!(search.found(61).await.size, 4);

    // Its disk was full: an incomplete recording is better than none, and the record names the
    // fault.
    let broke_off = local()
        .map(|begun| begun.advanced(RecordingState::Failed, at(30), Some("disk full".to_owned())));
    let mut search = Search::new(broke_off);
    search.data.write("recordings/l.ogg", "half");
    assert_eq!(search.found(61).await.flaw.as_deref(), Some("disk full"));
}

/// `voicebot uploads run --once` on the folder of a call whose manifest names an object.
async fn run_with_s3(
    crm: &FakeCrm,
    endpoint: &str,
    keys: [&str; 2],
    location: &str,
) -> (Value, Output) {
    let search = Search::egress(Some("EG_1"));
    search.data.write(
        "recordings/EG_1.json",
        json!({
            "egress_id": "EG_1", "started_at": 1_000_000_000_i64, "ended_at": 61_000_000_000_i64,
            "files": [{ "filename": "rec/a.ogg", "location": location }],
        })
        .to_string(),
    );
    // The program uses the machine's clock; the call is over on any date.
    let path = format!("call_metadata/metadata_{ID}.json");
    let mut record = search.data.json(&path);
    record["timestamps"]["call_end"] = json!("2020-01-01T10:00:00Z");
    search.data.write(&path, record.to_string());
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_voicebot"))
        .args(["uploads", "run", "--once", "--json"])
        .env_clear()
        .env("CRM_BASE_URL", crm.base_url())
        .env("AWS_ACCESS_KEY_ID", keys[0])
        .env("AWS_SECRET_ACCESS_KEY", keys[1])
        .env("VOICEBOT__RECORDING__S3__BUCKETS", r#"["calls"]"#)
        .env("VOICEBOT__RECORDING__S3__ENDPOINT", endpoint)
        // One scan, then the call is delivered without.
        .env("VOICEBOT__RECORDING__WAIT_S", "0")
        .env("VOICEBOT__RECORDING__LATE_S", "0")
        .current_dir(search.data.path("."))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(DEADLINE, output)
        .await
        .expect("the program ends in time")
        .expect("the program runs");
    let record = search
        .data
        .json(&format!("processed_metadata/metadata_{ID}.json"));
    (record, output)
}

#[tokio::test]
async fn a_recording_in_s3_goes_to_the_crm_in_pieces() {
    let (crm, s3) = (FakeCrm::start().await, FakeS3::start().await);
    let sound: Vec<u8> = (0..2_500_000_u32).map(|n| (n % 251) as u8).collect();
    s3.put("calls/rec/a.ogg", sound.clone());
    let address = format!("{}/calls/rec/a.ogg", s3.endpoint);
    let (record, output) = run_with_s3(&crm, &s3.endpoint, [s3::ACCESS_KEY, "x"], &address).await;
    assert!(output.status.success(), "{output:?}");
    let uploads = crm.uploads();
    assert_eq!(uploads.len(), 1);
    assert!(uploads[0].bytes == sound, "byte for byte");
    assert_eq!(uploads[0].file_name, "a.ogg");
    assert_eq!(s3.largest_answer(), 1 << 20, "never more at once");
    assert_eq!(record["files"]["recording"], "s3://calls/rec/a.ogg");
    assert_eq!(record["recording"]["state"], "resolved");
    let details = &crm.call_data()[0].body["callDetails"];
    assert_eq!(details["recordingSize"], 2_500_000);
    assert_eq!(details["recordingDuration"], 60);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !said.contains("AWS4-HMAC"),
        "no signature in the log: {said}"
    );
}

#[tokio::test]
async fn an_s3_error_is_reported_and_the_call_goes_without_its_recording() {
    let s3 = FakeS3::start().await;
    s3.put("calls/a.ogg", "sound");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let nowhere = format!("http://{}", closed.local_addr().expect("the port"));
    drop(closed);
    let good = [s3::ACCESS_KEY, "x"];
    for (endpoint, keys, location, words) in [
        (
            &s3.endpoint,
            good,
            "s3://calls/b.ogg",
            "s3://calls/b.ogg is not there",
        ),
        (
            &s3.endpoint,
            ["AKOTHER", "x"],
            "s3://calls/a.ogg",
            "the keys may not read it",
        ),
        (
            &s3.endpoint,
            ["AKOTHER", ""],
            "s3://calls/a.ogg",
            "recording.s3",
        ),
        (&nowhere, good, "s3://calls/a.ogg", &nowhere),
        (
            &s3.endpoint,
            good,
            "s3://other/a.ogg",
            "recording.s3.buckets",
        ),
        (
            &s3.endpoint,
            good,
            "s3://calls/../a.ogg",
            "is not the key of an object",
        ),
    ] {
        let crm = FakeCrm::start().await;
        let (record, _) = run_with_s3(&crm, endpoint, keys, location).await;
        let part = &record["uploads"]["recording"];
        assert_eq!(part["state"], "missing", "{location}: {record}");
        let error = part["last_error"].as_str().expect("a sentence");
        assert!(error.contains(words), "{location}: {error}");
        assert_eq!(record["recording"]["state"], "missing");
        assert_eq!(crm.call_data().len(), 1);
        assert!(crm.uploads().is_empty());
    }
}

/// The worker's HTTP server, and the events from its webhooks.
async fn page() -> (String, mpsc::Receiver<EgressEnded>, CancellationToken) {
    let page = voicebot::worker::HttpServer::bind("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a free port");
    let url = format!("http://{}/webhook", page.address());
    let (sender, ended) = mpsc::channel(8);
    let route = webhook_route(Webhooks::new("key", SECRET), sender);
    let stop = CancellationToken::new();
    let status = watch::Sender::new(worker_status());
    let serving = page.serve(status.subscribe(), None, route, stop.clone());
    tokio::spawn(async move {
        let _kept = status;
        serving.await
    });
    (url, ended, stop)
}

fn worker_status() -> voicebot::worker::WorkerStatus {
    voicebot::worker::WorkerStatus {
        agent_name: String::new(),
        worker_id: None,
        connection_problem: None,
        draining: false,
        active_jobs: 0,
        inherited_calls: 0,
        disk_problem: None,
        load: 0.0,
    }
}

fn signature(secret: &str, body: &str) -> String {
    AccessToken::with_api_key("key", secret)
        .with_sha256(&BASE64_STANDARD.encode(Sha256::digest(body)))
        .to_jwt()
        .expect("a token")
}

#[tokio::test]
async fn a_webhook_is_heard_when_livekit_signed_it_and_tells_of_ended_egresses_only() {
    let (url, mut ended, stop) = page().await;
    let http = reqwest::Client::new();
    let post = async |authorization: Option<&str>, body: &str| {
        let mut request = http.post(&url).body(body.to_owned());
        if let Some(token) = authorization {
            request = request.header("Authorization", token);
        }
        let answer = request.send().await.expect("an answer");
        answer.status().as_u16()
    };
    let event = |name: &str, status: &str| {
        json!({
            "event": name, "id": "EV_1", "createdAt": "1795255260", "somethingNew": true,
            "egressInfo": { "egressId": "EG_1", "roomName": "call-1", "status": status },
        })
        .to_string()
    };
    let good = event("egress_ended", "EGRESS_COMPLETE");
    let long = "x".repeat(300_000);
    for (token, body, expected) in [
        (None, good.as_str(), 401),
        (Some("no token".to_owned()), &good, 401),
        (
            Some(signature("another secret, as long as the first", &good)),
            &good,
            401,
        ),
        (Some(signature(SECRET, "another body")), &good, 401),
        (
            Some(
                AccessToken::with_api_key("key", SECRET)
                    .to_jwt()
                    .expect("a token"),
            ),
            &good,
            401,
        ),
        (Some(signature(SECRET, "{")), "{", 400),
        (Some(signature(SECRET, &long)), &long, 413),
    ] {
        assert_eq!(post(token.as_deref(), body).await, expected);
    }
    for (name, status, tells) in [
        ("egress_started", "EGRESS_STARTING", false),
        ("egress_updated", "EGRESS_ACTIVE", false),
        ("egress_updated", "EGRESS_ENDING", false),
        ("room_finished", "EGRESS_COMPLETE", false),
        ("egress_updated", "EGRESS_FAILED", true),
        ("egress_ended", "EGRESS_LIMIT_REACHED", true),
    ] {
        let body = event(name, status);
        assert_eq!(post(Some(&signature(SECRET, &body)), &body).await, 200);
        assert_eq!(ended.try_recv().is_ok(), tells, "{name} {status}");
    }
    // Unknown values and spellings of a later server are tolerated.
    let later = json!({
        "event": "egress_ended", "somethingNew": { "status": "EGRESS_ELSEWHERE" },
        "egress_info": { "egress_id": "EG_1", "room_name": "call-1", "status": "EGRESS_ELSEWHERE" },
    })
    .to_string();
    assert_eq!(post(Some(&signature(SECRET, &later)), &later).await, 200);
    let told = ended.try_recv().expect("it has ended");
    assert_eq!((&*told.egress_id, &*told.room_name), ("EG_1", "call-1"));
    // A flood is answered, and events that nobody receives are dropped.
    for _ in 0..20 {
        assert_eq!(post(Some(&signature(SECRET, &good)), &good).await, 200);
    }
    let told = EgressEnded {
        egress_id: "EG_1".to_owned(),
        room_name: "call-1".to_owned(),
    };
    assert_eq!(ended.try_recv().as_ref(), Ok(&told));
    stop.cancel();
}

/// Reports the end of the egress to a delivery that has scanned in vain, whose clock stands still
/// and which waits for `wait_s`. Then the CRM must have the expected numbers of recordings and call
/// data.
async fn egress_ends(wait_s: u64, expected: (usize, usize)) -> FakeCrm {
    let crm = FakeCrm::start().await;
    let search = Search::egress(Some("EG_1"));
    let directory: Arc<dyn EgressDirectory> = search.egress.clone();
    let resolver = RecordingResolver::new(
        search.data.store.clone(),
        RecordingConfig {
            wait_s,
            ..RecordingConfig::default()
        },
        Some(directory),
    );
    let settings = CrmConfig {
        base_url: crm.base_url().to_owned(),
        ..CrmConfig::default()
    };
    let (ended, ends) = mpsc::channel(1);
    let (_notify, notices) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let store = search.data.store.clone();
    let config = UploadConfig::default();
    let uploader = Uploader::new(store, config, settings, CrmSecrets::default(), resolver)
        .expect("the settings are good")
        // No waiting record ever becomes due.
        .with_clock(Arc::new(|| at(61)))
        .hurried_by(ends);
    let delivery = tokio::spawn(uploader.run(notices, stop.clone()));
    timeout(DEADLINE, search.egress.asked.notified())
        .await
        .expect("the recording is looked for");

    search.data.write("recordings/a.ogg", "sound");
    search.data.write(
        "recordings/EG_1.json",
        json!({ "files": [{ "filename": "recordings/a.ogg" }] }).to_string(),
    );
    let end = EgressEnded {
        egress_id: "EG_1".to_owned(),
        room_name: String::new(),
    };
    ended.send(end).await.expect("the delivery listens");
    crm.wait_until("the call with its recording", |uploads, calls| {
        (uploads.len(), calls.len()) == expected
    })
    .await;
    stop.cancel();
    timeout(DEADLINE, delivery)
        .await
        .expect("it stops")
        .expect("it does not panic");
    assert_eq!(crm.uploads()[0].bytes, "sound");
    crm
}

#[tokio::test]
async fn the_end_of_an_egress_sends_its_call_at_once() {
    egress_ends(600, (1, 1)).await;
}

#[tokio::test]
async fn the_end_of_an_egress_sends_a_recording_at_once_that_was_given_up_for_missing() {
    let crm = egress_ends(0, (1, 2)).await;
    let calls = crm.call_data();
    assert_eq!(calls[0].body["callDetails"]["recordingUrl"], Value::Null);
    assert_eq!(calls[1].key, format!("{ID}/call_data_update"));
    assert!(calls[1].body["callDetails"]["recordingUrl"].is_string());
}
