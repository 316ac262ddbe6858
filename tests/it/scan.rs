//! `uploads scan`: calls that have files but no metadata get their records.

use std::fs;
use std::time::Duration;

use crate::support::data::{CALLER, DataFolder, session_id};
use chrono::{DateTime, Utc};
use proptest::prelude::*;
use serde_json::{Value, json};
use voicebot::session::{CallStatus, Outcome};
use voicebot::store::{ScanOptions, ScanReport};

const NOW: ScanOptions = ScanOptions {
    dry_run: false,
    min_age: Duration::ZERO,
    campaign: None,
};

fn conversation(data: &DataFolder, session: &str, start: &str, end: &str) {
    let value = json!({
        "session_id": session, "start_time": start, "end_time": end,
        "conversation_items": [{ "role": "user", "content": "hello", "timestamp": start }],
    });
    data.write(
        &format!("conversations/conversation_{session}.json"),
        value.to_string(),
    );
}

fn scan(data: &DataFolder) -> ScanReport {
    let looked = data.store.scan(&ScanOptions {
        dry_run: true,
        ..NOW
    });
    let before = data.files("call_metadata");
    let mut looked = looked.unwrap();
    let report = data.store.scan(&NOW).unwrap();
    // A dry run reports the same as the real run, except for files in a record's place.
    for (would, did) in looked.records.iter_mut().zip(&report.records) {
        would.quarantined.clone_from(&did.quarantined);
    }
    assert_eq!(looked, report);
    assert!(data.files("call_metadata").len() >= before.len());
    let again = data.store.scan(&NOW).unwrap();
    assert_eq!(again.records, [], "a second scan makes nothing twice");
    report
}

fn files(data: &DataFolder, session: &str) -> Value {
    data.json(&format!("call_metadata/metadata_{session}.json"))["files"].clone()
}

#[test]
fn the_originals_files_without_metadata_become_one_record() {
    let data = DataFolder::new();
    let session = "session_20251029_113920_abc123";
    for (fixture, folder) in [
        (
            "conversation_session_20251029_113920_abc123.json",
            "conversations",
        ),
        ("lead_20251029_114101.json", "leads"),
        ("EG_xyz789.json", "recordings"),
    ] {
        data.copy_fixture(
            &format!("original/{fixture}"),
            &format!("{folder}/{fixture}"),
        );
    }
    let sound = "recordings/number-_918655066243-1761737959.ogg";
    data.write(sound, "sound");
    let report = scan(&data);
    assert_eq!(
        (report.records.len(), report.ambiguous.len()),
        (1, 0),
        "{report:?}"
    );
    let record = data.store.read_record(&session_id(session)).unwrap();
    assert_eq!(
        record.other_party(),
        Some("+918655066243"),
        "from the room's name"
    );
    assert_eq!(record.egress_id(), Some("EG_xyz789"));
    assert_eq!(record.files.recording.as_deref(), Some(sound));
    assert_eq!(record.files.leads, ["leads/lead_20251029_114101.json"]);
    assert_eq!(record.outcome.call_status, CallStatus::Recovered);
    let start: DateTime<Utc> = "2025-10-29T11:39:19.250Z".parse().unwrap();
    assert_eq!(record.timestamps.call_start, Some(start));
    assert_eq!(
        data.store.call_id_for_record(&record).unwrap(),
        "CALL-20251029-55066243"
    );
    assert_eq!(
        data.store.pending().unwrap().len(),
        1,
        "it waits for delivery"
    );
}

#[test]
fn files_that_name_their_session_are_matched_by_it() {
    let data = DataFolder::new();
    let (one, two) = (
        "session_20261121_100000_aaaaaa",
        "session_20261121_100001_bbbbbb",
    );
    for session in [one, two] {
        conversation(
            &data,
            session,
            "2026-11-21T10:00:00Z",
            "2026-11-21T10:05:00Z",
        );
        data.write(&format!("recordings/{session}.ogg"), "sound");
    }
    data.write(&format!("leads/lead_{two}_1.json"), "{\"name\": \"Asha\"}");
    data.write(
        "leads/a.json",
        json!({ "session_id": one, "name": "Ravi" }).to_string(),
    );
    let report = scan(&data);
    assert_eq!(report.ambiguous, []);
    assert_eq!(
        files(&data, one),
        json!({ "recording": format!("recordings/{one}.ogg"), "conversation": format!("conversations/conversation_{one}.json"),
            "lead": "leads/a.json", "leads": ["leads/a.json"] })
    );
    assert_eq!(
        files(&data, two)["lead"],
        format!("leads/lead_{two}_1.json")
    );
}

#[test]
fn what_may_belong_to_two_calls_is_named_and_not_guessed() {
    let data = DataFolder::new();
    for session in ["a", "b"] {
        conversation(
            &data,
            session,
            "2026-11-21T10:00:00Z",
            "2026-11-21T10:05:00Z",
        );
    }
    // 10:00:10, and nothing says which of the two calls had this number.
    data.write("recordings/number-_15550100123-1795255210.ogg", "sound");
    data.write(
        "leads/l.json",
        json!({ "name": "Asha", "created_at": "2026-11-21T10:01:00Z" }).to_string(),
    );
    let report = scan(&data);
    let named: Vec<&str> = report
        .ambiguous
        .iter()
        .map(|file| file.file.as_str())
        .collect();
    assert_eq!(
        named,
        [
            "recordings/number-_15550100123-1795255210.ogg",
            "leads/l.json"
        ]
    );
    assert_eq!(report.records.len(), 2, "the calls go without them");
    assert!(
        report
            .records
            .iter()
            .all(|call| call.recording.is_none() && call.leads.is_empty())
    );
}

#[test]
fn a_recording_or_a_lead_alone_is_a_call_too() {
    let data = DataFolder::new();
    data.write("recordings/number-_15550100123-1795255210.ogg", "sound");
    data.write(
        "leads/l.json",
        json!({ "name": "Asha", "created_at": "2026-10-01T10:01:00Z" }).to_string(),
    );
    data.write("recordings/empty.ogg", "");
    let report = scan(&data);
    let sessions: Vec<&str> = report
        .records
        .iter()
        .map(|call| call.session_id.as_str())
        .collect();
    assert_eq!(sessions.len(), 2);
    assert!(
        sessions[0].starts_with("session_20261001_100100_"),
        "{sessions:?}"
    );
    assert!(
        sessions[1].starts_with("session_20261121_100010_"),
        "{sessions:?}"
    );
    let record = data.store.read_record(&session_id(sessions[1])).unwrap();
    assert_eq!(record.other_party(), Some(CALLER));
}

#[test]
fn calls_with_records_or_journals_and_young_files_are_left_alone() {
    let data = DataFolder::new();
    data.finished_call("session_20261121_100000_aaaaaa", Some(CALLER));
    data.finished_call("session_20261121_110000_cccccc", Some(CALLER));
    let archived = "metadata_session_20261121_110000_cccccc.json";
    fs::rename(
        data.path(&format!("call_metadata/{archived}")),
        data.path(&format!("processed_metadata/{archived}")),
    )
    .unwrap();
    let _running = data.running_call("session_20261121_120000_dddddd", Some(CALLER));
    data.write("recordings/session_20261121_120000_dddddd.ogg", "growing");
    assert_eq!(scan(&data).records, []);
    conversation(&data, "new", "2026-11-21T10:00:00Z", "2026-11-21T10:05:00Z");
    let careful = ScanOptions {
        min_age: Duration::from_secs(600),
        ..NOW
    };
    let report = data.store.scan(&careful).unwrap();
    assert_eq!((report.records.len(), report.young), (0, 1));
}

#[test]
fn unreadable_files_are_named_and_stop_nothing() {
    let data = DataFolder::new();
    let session = "session_20261121_100000_aaaaaa";
    conversation(
        &data,
        session,
        "2026-11-21T10:00:00Z",
        "2026-11-21T10:05:00Z",
    );
    let record = format!("call_metadata/metadata_{session}.json");
    data.write(&record, "{\"session_id\": \"ha");
    data.write("conversations/conversation_half.json", "{\"items\": [");
    data.write("leads/list.json", "[]");
    data.write("recordings/EG_1.json", [0xff, 0xfe]);
    data.write("conversations/notes.txt", "foreign");
    data.write("leads/lead_of_half.json", "{\"session_id\": \"half\"}");
    data.write(
        "call_metadata/metadata_later.json",
        "{\"schema_version\": 3, \"session_id\": \"later\"}",
    );
    conversation(
        &data,
        "later",
        "2026-11-21T10:00:00Z",
        "2026-11-21T10:05:00Z",
    );
    let report = scan(&data);
    let named: Vec<&str> = report
        .unreadable
        .iter()
        .map(|file| file.file.as_str())
        .collect();
    assert_eq!(
        named,
        [
            "call_metadata/metadata_later.json",
            record.as_str(),
            "conversations/conversation_half.json",
            "leads/list.json",
            "recordings/EG_1.json",
        ]
    );
    assert_eq!(report.records.len(), 1, "made again from the conversation");
    assert_eq!(report.ambiguous.len(), 1, "{report:?}");
    assert_eq!(report.ambiguous[0].file, "leads/lead_of_half.json");
    let aside = format!("{record}.unreadable");
    assert_eq!(
        report.records[0].quarantined.as_deref(),
        Some(aside.as_str())
    );
    assert_eq!(
        fs::read_to_string(data.path(&aside)).unwrap(),
        "{\"session_id\": \"ha"
    );
    assert!(data.path("conversations/conversation_half.json").exists());
}

#[test]
fn an_operator_sees_what_a_scan_would_do_and_then_does_it() {
    let data = DataFolder::new();
    conversation(&data, "old", "2026-11-21T10:00:00Z", "2026-11-21T10:05:00Z");
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_voicebot"))
            .args(["uploads", "scan", "--min-age", "0"])
            .args(arguments)
            .env_clear()
            .env("VOICEBOT__DATA_DIR", data.store.root())
            .current_dir(data.store.root())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        text
    };
    let looked: Value = serde_json::from_str(&run(&["--dry-run", "--json"])).unwrap();
    assert_eq!(looked["records"][0]["session_id"], "old");
    assert_eq!(data.files("call_metadata"), [] as [String; 0]);
    let text = run(&[]);
    assert!(
        text.contains("1 records made")
            && text.contains("old: conversations/conversation_old.json"),
        "{text}"
    );
    assert_eq!(data.files("call_metadata"), ["metadata_old.json"]);
}

#[test]
fn scanned_calls_are_filed_under_the_campaign_of_a_named_persona() {
    let data = DataFolder::new();
    conversation(&data, "old", "2026-11-21T10:00:00Z", "2026-11-21T10:05:00Z");
    let persona = json!({
        "instructions": "You sell roofs.",
        "campaigns": [{ "_id": "c-7", "client": "roofs", "voiceAgents": [{ "_id": "v-3" }] }],
    });
    data.write("roofs.json", persona.to_string());
    data.write("nobody.json", "{\"instructions\": \"You sell nothing.\"}");
    let run = |persona: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_voicebot"))
            .args(["uploads", "scan", "--min-age", "0", "--persona", persona])
            .env_clear()
            .env("VOICEBOT__DATA_DIR", data.store.root())
            .current_dir(data.store.root())
            .output()
            .unwrap()
    };
    for (persona, why) in [
        ("missing.json", "cannot be read"),
        ("nobody.json", "names no campaign"),
    ] {
        let refused = run(persona);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success(), "{persona}");
        assert!(said.contains(persona) && said.contains(why), "{said}");
        assert_eq!(data.files("call_metadata"), [] as [String; 0]);
    }
    assert!(run("roofs.json").status.success());
    let record = data.json("call_metadata/metadata_old.json");
    let metadata = &record["campaign_metadata"];
    let ids = ["campaignId", "voiceAgentId", "client"].map(|key| &metadata[key]);
    assert_eq!(ids, ["c-7", "v-3", "roofs"]);
}

/// Damage to a file.
#[derive(Debug, Clone)]
enum Damage {
    None,
    Cut(prop::sample::Index),
    Flipped(Vec<(prop::sample::Index, u8)>),
    Noise(Vec<u8>),
}

impl Damage {
    fn apply(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self {
            Self::None => {}
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Flipped(bits) => {
                for (at, bit) in bits {
                    let at = at.index(bytes.len());
                    bytes[at] ^= 1 << (bit % 8);
                }
            }
            Self::Noise(noise) => bytes.clone_from(noise),
        }
        bytes
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        Just(Damage::None),
        any::<prop::sample::Index>().prop_map(Damage::Cut),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
            .prop_map(Damage::Flipped),
        prop::collection::vec(any::<u8>(), 0..64).prop_map(Damage::Noise),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// For any damage: no panic, nothing is lost, every refusal names its file, and the undamaged
    /// call beside them gets its record.
    #[test]
    fn damaged_files_are_named_and_kept_and_block_no_others(damages in prop::collection::vec(damage(), 6)) {
        const JOURNAL: &str = "session_20261121_100000_aaaaaa";
        let data = DataFolder::new();
        drop(data.running_call(JOURNAL, Some(CALLER)));
        let sound = data.finished_call("session_20261121_090000_eeeeee", Some(CALLER));
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/records");
        let files = [
            ("v2/metadata_session_20261121_101500_00beef.json", "call_metadata/metadata_session_20261121_101500_00beef.json"),
            ("original/metadata_session_20251029_113920_abc123.json", "call_metadata/metadata_session_20251029_113920_abc123.json"),
            ("original/conversation_session_20251029_113920_abc123.json", "conversations/conversation_session_20251029_113920_abc123.json"),
            ("original/lead_20251029_114101.json", "leads/lead_20251029_114101.json"),
            ("original/EG_xyz789.json", "recordings/EG_xyz789.json"),
        ];
        let mut written = Vec::new();
        for ((fixture, path), damage) in files.iter().zip(&damages) {
            let bytes = damage.apply(fs::read(format!("{fixtures}/{fixture}")).unwrap());
            data.write(path, &bytes);
            written.push((*path, bytes));
        }
        let journal = format!("conversations/{JOURNAL}.journal.jsonl");
        let whole = fs::read(data.path(&journal)).unwrap();
        let left = damages[5].apply(whole.clone());
        data.write(&journal, &left);

        for orphan in data.store.orphans() {
            if let Err(error) = data.store.recover(&orphan.session_id, &Outcome::recovered("killed", None)) {
                prop_assert!(error.to_string().contains(JOURNAL), "{error}");
            }
        }
        prop_assert_eq!(data.store.orphans(), []);
        let report = data.store.scan(&NOW).unwrap();
        for file in report.unreadable.iter().chain(&report.ambiguous) {
            prop_assert!(!file.why.is_empty() && data.path(&file.file).exists() || file.file.starts_with("call_metadata/"));
        }
        for pending in data.store.pending().unwrap() {
            if let Err(error) = data.store.read_pending(&pending) {
                prop_assert!(error.to_string().contains(pending.session_id.as_str()), "{error}");
            }
        }
        prop_assert!(sound.exists());
        for (path, bytes) in written {
            let kept = [path.to_owned(), format!("{path}.unreadable")];
            prop_assert!(
                kept.iter().any(|path| fs::read(data.path(path)).is_ok_and(|now| now == bytes)),
                "{path} is lost"
            );
        }
        // A removed journal is completely in its record.
        let aside = fs::read(data.path(&format!("{journal}.unreadable")));
        let record = data.path(&format!("call_metadata/metadata_{JOURNAL}.json")).exists();
        prop_assert!(record || aside.as_ref().is_ok_and(|kept| *kept == left));
        if left == whole {
            prop_assert!(aside.is_err() && record);
        }
    }
}
