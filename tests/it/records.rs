//! What is on disk after a call, for every kind of ending.

use std::fs;

use crate::support::data::{CALLER, DataFolder, at, call_start, hangup, session_id};
use serde_json::json;
use voicebot::session::{
    self, CallRecord, CallStatus, ConversationItem, Intent, Lead, LeadId, Outcome, RecordStatus,
    RecordingMetadata, RecordingSource, RecordingState, Usage,
};
use voicebot::store::StoreError;

const ID: &str = "session_20261121_100000_aaaaaa";

fn lead(id: &str) -> Lead {
    Lead {
        lead_id: LeadId::random(),
        session_id: session_id(id),
        call_id: None,
        name: "Asha Example".to_owned(),
        email: "asha@example.com".to_owned(),
        company: "Example Pumps".to_owned(),
        interest: "a pump".to_owned(),
        phone: String::new(),
        job_title: String::new(),
        budget: String::new(),
        timeline: String::new(),
        created_at: at(20),
    }
}

#[test]
fn a_call_that_ends_leaves_its_three_files_and_no_journal() {
    let data = DataFolder::new();
    let (session, lock) = data.running_call(ID, Some(CALLER));
    let first = data.store.save_lead(&session, lead(ID)).unwrap();
    let second = data.store.save_lead(&session, lead(ID)).unwrap();
    {
        let mut session = session::lock(&session);
        session.set_campaign_metadata(json!({ "region": "नया" }).as_object().unwrap().clone());
        session.set_recording_metadata(RecordingMetadata {
            egress_id: Some("EG_1".to_owned()),
            recording_filename: Some("recordings/x.ogg".to_owned()),
            recording_start_time: Some(at(0)),
            state: RecordingState::Active,
            source: RecordingSource::Egress,
            ..RecordingMetadata::default()
        });
        session.add_intent(Intent {
            intent: "book_demo".to_owned(),
            confidence: Some(0.5),
            entities: serde_json::Map::new(),
            timestamp: at(6),
        });
        session.add_usage(Usage {
            llm_requests: 1,
            ..Usage::default()
        });
        session.add_usage(Usage {
            llm_requests: 2,
            tts_audio_ms: 5,
            ..Usage::default()
        });
        session.set_outcome(hangup());
        session.set_outcome(Outcome::recovered("the room closed", None));
    }
    let path = data.store.finish(&session, lock).unwrap();

    assert_eq!(
        path.file_name().unwrap().to_str().unwrap(),
        format!("metadata_{ID}.json")
    );
    let record = data.json(&format!("call_metadata/metadata_{ID}.json"));
    let saved = record["timestamps"]["metadata_saved"].clone();
    assert_eq!(
        record,
        json!({
            "schema_version": 2,
            "session_id": ID,
            "dialed_number": CALLER, "caller_number": CALLER, "trunk_number": null,
            "direction": "inbound",
            "call_id": "CALL-20261121-50100123",
            "job_id": format!("AJ_{ID}"),
            "room": { "name": format!("room-{ID}"), "sid": null },
            "persona": null,
            "campaign_metadata": {
                "region": "नया", "egressId": "EG_1", "lead_file": second,
                "campaignId": "c1", "voiceAgentId": "v1", "client": "k1",
            },
            "files": {
                "recording": null,
                "conversation": format!("conversations/conversation_{ID}.json"),
                "lead": second, "leads": [first, second],
            },
            "timestamps": {
                "call_start": "2026-11-21T10:00:00.000Z", "answered": "2026-11-21T10:00:00.000Z",
                "call_end": "2026-11-21T10:01:00.000Z", "metadata_saved": saved,
            },
            "outcome": {
                "close_reason": "participant_disconnected", "disconnect_reason": "CLIENT_INITIATED", "call_status": "completed",
            },
            "recording": {
                "egress_id": "EG_1", "recording_filename": "recordings/x.ogg", "recording_start_time": "2026-11-21T10:00:00.000Z",
                "state": "active", "source": "egress",
            },
            "intents": [{ "intent": "book_demo", "confidence": 0.5, "entities": {}, "timestamp": "2026-11-21T10:00:06.000Z" }],
            "usage": {
                "llm_requests": 3, "llm_prompt_tokens": 0, "llm_prompt_cached_tokens": 0, "llm_completion_tokens": 0,
                "stt_requests": 0, "stt_audio_ms": 0, "tts_requests": 0, "tts_characters": 0, "tts_audio_ms": 5,
            },
            "status": "ready_for_upload", "upload_attempts": 0, "last_upload_attempt": null,
            "uploads": {
                "recording": {
                    "state": "pending", "url": null, "size": null, "duration": null, "attempts": 0, "next_attempt": null,
                    "last_error": null,
                },
                "call_data": { "state": "pending", "attempts": 0, "next_attempt": null, "last_error": null, "response": null },
            },
        })
    );
    let conversation = data.json(&format!("conversations/conversation_{ID}.json"));
    assert_eq!(conversation["duration_seconds"], 60);
    assert_eq!(conversation["total_items"], 2);
    assert_eq!(conversation["lead_generated"], true);
    assert_eq!(
        conversation["conversation_items"][1],
        json!({
            "role": "user", "content": "I need a pump.", "timestamp": "2026-11-21T10:00:05.000Z", "source": "livekit-session",
            "transcript_confidence": null, "interrupted": false,
        })
    );
    let saved_lead = data.json(&first);
    assert_eq!(saved_lead["call_id"], "CALL-20261121-50100123");
    assert_eq!(saved_lead["session_id"], ID);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("नया"), "not escaped to ASCII");
    data.assert_nothing_left_over();
}

#[test]
fn a_call_whose_process_was_killed_is_recovered_with_what_was_said() {
    let data = DataFolder::new();
    let (session, lock) = data.running_call(ID, Some(CALLER));
    assert!(data.store.orphans()[0].alive);
    assert_eq!(
        data.store
            .recover(&session_id(ID), &Outcome::recovered("x", None))
            .unwrap(),
        None,
        "it is alive"
    );
    drop((session, lock));

    let orphans = data.store.orphans();
    assert_eq!(orphans.len(), 1);
    assert_eq!(
        (orphans[0].alive, orphans[0].job_id.as_str()),
        (false, format!("AJ_{ID}").as_str())
    );
    let why = Outcome::recovered("the call's process was ended by signal 9", Some(at(30)));
    let path = data
        .store
        .recover(&session_id(ID), &why)
        .unwrap()
        .expect("a record");
    let record = CallRecord::from_json(&fs::read(path).unwrap(), &session_id(ID)).unwrap();
    assert_eq!(record.outcome.call_status, CallStatus::Recovered);
    assert_eq!(
        record.outcome.error.as_deref(),
        Some("the call's process was ended by signal 9")
    );
    assert_eq!(record.timestamps.call_end, Some(at(30)));
    assert_eq!(
        data.json(record.files.conversation.as_deref().unwrap())["total_items"],
        2
    );
    assert_eq!(
        data.store.recover(&session_id(ID), &why).unwrap(),
        None,
        "it is recovered already"
    );
    data.assert_nothing_left_over();
}

#[test]
fn an_outcome_in_the_journal_stands_after_recovery() {
    let data = DataFolder::new();
    let (session, lock) = data.running_call(ID, Some(CALLER));
    session::lock(&session).set_outcome(hangup());
    drop((session, lock));
    data.store
        .recover(&session_id(ID), &Outcome::recovered("killed", None))
        .unwrap()
        .expect("a record");
    let record = data.store.read_record(&session_id(ID)).unwrap();
    assert_eq!(record.outcome.call_status, CallStatus::Completed);
    assert_eq!(record.timestamps.call_end, Some(at(60)));
}

#[test]
fn a_call_whose_process_never_came_up_has_a_record() {
    let data = DataFolder::new();
    data.store.begin(&call_start(ID), &[]).unwrap();
    data.store
        .recover(
            &session_id(ID),
            &Outcome::recovered("it never started", None),
        )
        .unwrap()
        .expect("a record");
    let record = data.store.read_record(&session_id(ID)).unwrap();
    assert_eq!(record.job_id, Some(format!("AJ_{ID}")));
    assert!(
        record.timestamps.call_end.is_some(),
        "the last line of the journal tells when"
    );
    assert_eq!(
        record.call_id.as_deref(),
        Some("CALL-20261121-aaaaaa"),
        "no number, so the end of the session id"
    );
    data.assert_nothing_left_over();
}

#[test]
fn a_process_that_dies_between_record_and_journal_leaves_one_record() {
    let data = DataFolder::new();
    let (session, lock) = data.running_call(ID, Some(CALLER));
    let journal = format!("conversations/{ID}.journal.jsonl");
    let copy = fs::read(data.path(&journal)).unwrap();
    session::lock(&session).set_outcome(hangup());
    let record = data.store.finish(&session, lock).unwrap();
    drop(session);
    let before = fs::read(&record).unwrap();
    data.write(&journal, copy);
    assert_eq!(
        data.store
            .recover(&session_id(ID), &Outcome::recovered("x", None))
            .unwrap(),
        None
    );
    assert_eq!(fs::read(&record).unwrap(), before);
    data.assert_nothing_left_over();
}

#[test]
fn a_lead_that_was_written_just_before_the_end_is_not_lost() {
    let data = DataFolder::new();
    let (session, lock) = data.running_call(ID, Some(CALLER));
    let known = data.store.save_lead(&session, lead(ID)).unwrap();
    // The file is complete, but the process died before it wrote the line of the journal.
    let unknown = format!("leads/lead_{ID}_2.json");
    data.write(&unknown, serde_json::to_vec(&lead(ID)).unwrap());
    drop((session, lock));
    data.store
        .recover(&session_id(ID), &Outcome::recovered("killed", None))
        .unwrap()
        .expect("a record");
    let record = data.store.read_record(&session_id(ID)).unwrap();
    assert_eq!(record.files.leads, [known, unknown.clone()]);
    assert_eq!(record.files.lead(), Some(unknown.as_str()));
    assert_eq!(
        serde_json::to_value(&record).unwrap()["campaign_metadata"]["lead_file"],
        *unknown
    );
    assert_eq!(
        data.json(record.files.conversation.as_deref().unwrap())["lead_generated"],
        true
    );
}

#[test]
fn an_unreadable_journal_is_quarantined() {
    let data = DataFolder::new();
    let foreign = serde_json::json!({ "at": "2026-11-21T10:00:00Z", "event": "dispatched", "session_id": "other",
        "job_id": "", "room_name": "", "call_start": "2026-11-21T10:00:00Z" });
    for (name, content) in [
        (ID, foreign.to_string()),
        ("notes", "buy milk\n".to_owned()),
    ] {
        data.write(&format!("conversations/{name}.journal.jsonl"), content);
        let error = data
            .store
            .recover(&session_id(name), &Outcome::recovered("x", None))
            .unwrap_err();
        assert!(matches!(error, StoreError::BadJournal { .. }), "{error}");
    }
    assert_eq!(data.store.orphans(), []);
    assert_eq!(
        data.files("conversations"),
        [
            "notes.journal.jsonl.unreadable".to_owned(),
            format!("{ID}.journal.jsonl.unreadable")
        ]
    );
    assert_eq!(data.files("call_metadata"), [] as [String; 0]);
}

#[test]
fn a_journal_whose_dispatch_cannot_be_read_is_a_record_all_the_same() {
    let data = DataFolder::new();
    let path = format!("conversations/{ID}.journal.jsonl");
    let (session, lock) = data.running_call(ID, Some(CALLER));
    let lead = data.store.save_lead(&session, lead(ID)).unwrap();
    drop((session, lock));
    let mut bytes = fs::read(data.path(&path)).unwrap();
    bytes[3] ^= 0x80;
    data.write(&path, &bytes);
    data.store
        .recover(&session_id(ID), &Outcome::recovered("killed", None))
        .unwrap()
        .expect("a record");
    let record = data.store.read_record(&session_id(ID)).unwrap();
    assert_eq!(record.other_party(), Some(CALLER));
    assert_eq!(record.timestamps.call_start, Some(at(0)), "from its name");
    assert_eq!((record.job_id, record.room.name), (None, None));
    assert_eq!(record.files.leads, [lead]);
    assert_eq!(
        data.json(record.files.conversation.as_deref().unwrap())["total_items"],
        2
    );
    let aside = format!("{path}.unreadable");
    assert!(record.outcome.error.unwrap().contains(&aside));
    assert_eq!(fs::read(data.path(&aside)).unwrap(), bytes, "kept");
    assert_eq!(data.store.orphans(), []);
}

#[test]
fn a_line_of_a_journal_that_cannot_be_read_costs_that_line_and_the_journal_is_kept() {
    let data = DataFolder::new();
    let path = format!("conversations/{ID}.journal.jsonl");
    drop(data.running_call(ID, Some(CALLER)));
    let text = fs::read_to_string(data.path(&path)).unwrap();
    let damaged = text.replacen("\"role\":\"assistant\"", "\"role\":\"assist\0nt\"", 1);
    assert_ne!(damaged, text);
    data.write(&path, &damaged);
    data.store
        .recover(&session_id(ID), &Outcome::recovered("killed", None))
        .unwrap()
        .expect("a record");
    let record = data.store.read_record(&session_id(ID)).unwrap();
    assert_eq!(
        data.json(record.files.conversation.as_deref().unwrap())["total_items"],
        1
    );
    assert_eq!(
        fs::read_to_string(data.path(&format!("{path}.unreadable"))).unwrap(),
        damaged
    );
}

#[test]
fn a_record_that_nobody_can_read_never_costs_the_journal() {
    let data = DataFolder::new();
    drop(data.running_call(ID, Some(CALLER)));
    let name = format!("metadata_{ID}.json");
    data.write(&format!("call_metadata/{name}"), "{\"half\":");
    data.store
        .recover(&session_id(ID), &Outcome::recovered("killed", None))
        .unwrap()
        .expect("a record");
    let record = data.store.read_record(&session_id(ID)).unwrap();
    assert_eq!(record.other_party(), Some(CALLER));
    assert_eq!(
        data.files("call_metadata"),
        [name.clone(), format!("{name}.unreadable")]
    );
    data.assert_no_journals_or_temporaries();
}

#[test]
fn a_call_whose_process_never_came_up_is_filed_under_its_number() {
    let data = DataFolder::new();
    let told = [
        session::SessionEvent::CallMetadata(session::CallMetadata {
            dialed_number: Some(CALLER.to_owned()),
            ..Default::default()
        }),
        session::SessionEvent::CampaignMetadata {
            metadata: json!({ "campaignId": "c1" }).as_object().unwrap().clone(),
        },
    ];
    data.store.begin(&call_start(ID), &told).unwrap();
    assert!(
        data.store.begin(&call_start(ID), &told).is_err(),
        "a journal is begun once"
    );
    data.store
        .recover(
            &session_id(ID),
            &Outcome::recovered("it never started", None),
        )
        .unwrap()
        .expect("a record");
    let record = data.store.read_record(&session_id(ID)).unwrap();
    assert_eq!(record.other_party(), Some(CALLER));
    assert_eq!(record.call_id.as_deref(), Some("CALL-20261121-50100123"));
    assert_eq!(record.campaign_metadata["campaignId"], "c1");
}

#[test]
fn what_was_said_before_a_takeover_is_still_there_after_it() {
    let data = DataFolder::new();
    drop(data.running_call(ID, Some(CALLER)));
    let (session, _lock) = data.store.open_session(&session_id(ID)).unwrap();
    assert!(matches!(
        data.store.open_session(&session_id(ID)),
        Err(StoreError::Busy(_))
    ));
    let mut session = session::lock(&session);
    session.commit_item(ConversationItem::assistant("Sure.", at(7)));
    let said: Vec<&str> = session
        .items()
        .iter()
        .map(|item| item.content.as_str())
        .collect();
    assert_eq!(said, ["Hello, how can I help?", "I need a pump.", "Sure."]);
    assert_eq!(
        session.get_call_metadata().dialed_number.as_deref(),
        Some(CALLER)
    );
}

#[test]
fn the_same_number_calling_again_on_one_day_gets_an_id_of_its_own() {
    let data = DataFolder::new();
    let call_id = |name: &str| {
        data.store
            .read_record(&session_id(name))
            .unwrap()
            .call_id
            .unwrap()
    };
    let names = ["a", "b", "c"].map(|tail| format!("session_20261121_100000_{tail}"));
    for name in &names {
        data.finished_call(name, Some(CALLER));
    }
    assert_eq!(
        names.each_ref().map(|n| call_id(n)),
        [
            "CALL-20261121-50100123",
            "CALL-20261121-50100123-2",
            "CALL-20261121-50100123-3",
        ]
    );
    // Without its index the day is rebuilt from the waiting and delivered records.
    fs::remove_dir_all(data.path("call_metadata/.call_ids")).unwrap();
    let first = format!("metadata_{}.json", names[0]);
    fs::rename(
        data.path(&format!("call_metadata/{first}")),
        data.path(&format!("processed_metadata/{first}")),
    )
    .unwrap();
    data.finished_call("session_20261121_100000_d", Some(CALLER));
    assert_eq!(
        call_id("session_20261121_100000_d"),
        "CALL-20261121-50100123-4"
    );
}

#[test]
fn thirty_calls_of_one_number_that_end_together_have_thirty_ids() {
    let data = DataFolder::new();
    let names: Vec<String> = (0..30)
        .map(|n| format!("session_20261121_100000_{n:06x}"))
        .collect();
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| data.finished_call(name, Some(CALLER)));
        }
    });
    let ids: std::collections::HashSet<String> = names
        .iter()
        .map(|name| {
            data.store
                .read_record(&session_id(name))
                .unwrap()
                .call_id
                .unwrap()
        })
        .collect();
    assert_eq!(ids.len(), 30);
    assert!(ids.contains("CALL-20261121-50100123") && ids.contains("CALL-20261121-50100123-30"));
}

#[test]
fn a_record_moves_forward_only_and_is_claimed_once() {
    let data = DataFolder::new();
    data.finished_call(ID, Some(CALLER));
    let pending = data.store.pending().unwrap();
    let mut claim = data.store.claim(&pending[0]).unwrap().expect("free");
    assert!(data.store.claim(&pending[0]).unwrap().is_none(), "claimed");
    data.store
        .mark(&mut claim, |record| record.status = RecordStatus::Uploading)
        .unwrap();
    let error = data
        .store
        .mark(&mut claim, |record| {
            record.status = RecordStatus::ReadyForUpload
        })
        .unwrap_err();
    assert!(matches!(error, StoreError::Backward { .. }), "{error}");
    assert_eq!(
        data.store.read_record(&session_id(ID)).unwrap().status,
        RecordStatus::Uploading
    );
    data.store
        .mark(&mut claim, |record| record.status = RecordStatus::Uploaded)
        .unwrap();
    let archived = data.store.archive(claim).unwrap();
    assert!(archived.ends_with(format!("processed_metadata/metadata_{ID}.json")));
    assert_eq!(data.store.pending().unwrap(), []);
    assert!(
        data.store.claim(&pending[0]).unwrap().is_none(),
        "delivered"
    );
    data.assert_nothing_left_over();
}

#[test]
fn a_record_that_is_not_delivered_can_not_be_archived() {
    let data = DataFolder::new();
    data.finished_call(ID, Some(CALLER));
    let claim = data
        .store
        .claim(&data.store.pending().unwrap()[0])
        .unwrap()
        .unwrap();
    assert!(data.store.archive(claim).is_err());
    assert_eq!(data.store.pending().unwrap().len(), 1);
}

#[test]
fn a_record_of_the_original_is_read() {
    let data = DataFolder::new();
    let name = "metadata_session_20251029_113920_abc123.json";
    data.copy_fixture(
        &format!("original/{name}"),
        &format!("call_metadata/{name}"),
    );
    let record = data
        .store
        .read_record(&session_id("session_20251029_113920_abc123"))
        .unwrap();
    assert_eq!(record.schema_version, 2);
    assert_eq!(record.egress_id(), Some("xyz789"));
    assert_eq!(record.other_party(), Some("+918655066243"));
    assert_eq!(
        record.files.conversation.as_deref(),
        Some("conversations/conversation_session_20251029_113920_abc123.json")
    );
    assert_eq!(record.files.leads, ["leads/lead_20251029_114101.json"]);
    assert_eq!(
        record.timestamps.call_start,
        Some("2025-10-29T11:39:19.250Z".parse().unwrap())
    );
    assert_eq!(record.status, RecordStatus::ReadyForUpload);
    assert_eq!(
        data.store.call_id_for_record(&record).unwrap(),
        "CALL-20251029-55066243"
    );
}

#[test]
fn a_record_of_this_version_is_read_and_written_back_unchanged() {
    let data = DataFolder::new();
    let name = "metadata_session_20261121_101500_00beef.json";
    data.copy_fixture(&format!("v2/{name}"), &format!("call_metadata/{name}"));
    let record = data
        .store
        .read_record(&session_id("session_20261121_101500_00beef"))
        .unwrap();
    assert_eq!(
        serde_json::to_value(&record).unwrap(),
        data.json(&format!("call_metadata/{name}"))
    );
}

#[test]
fn odd_metadata_files_are_told_apart_and_stop_nothing() {
    let data = DataFolder::new();
    for (name, content, expected) in [
        ("empty", "", "is not JSON"),
        (
            "half",
            "{\"session_id\": \"half\", \"files\": {",
            "is not JSON",
        ),
        ("list", "[]", "not an object"),
        (
            "future",
            "{\"schema_version\": 3, \"session_id\": \"future\"}",
            "schema_version 3",
        ),
        (
            "wrong",
            "{\"schema_version\": 2, \"session_id\": \"../x\"}",
            "not a call record",
        ),
    ] {
        data.write(&format!("call_metadata/metadata_{name}.json"), content);
        let error = data
            .store
            .read_record(&session_id(name))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(expected) && error.contains(&format!("metadata_{name}.json")),
            "{error}"
        );
    }
    // The minimum that the original may have written.
    data.write(
        "call_metadata/metadata_bare.json",
        "{\"campaign_metadata\": null, \"files\": null, \"timestamps\": null}",
    );
    assert_eq!(
        data.store
            .read_record(&session_id("bare"))
            .unwrap()
            .session_id,
        session_id("bare")
    );
    assert_eq!(data.store.pending().unwrap().len(), 6);
}

/// Names the data folder for [`a_process_that_talks_until_it_is_killed`], which is a process of its
/// own.
const CHILD_FOLDER: &str = "VOICEBOT_TEST_CHILD_FOLDER";

#[test]
#[ignore = "the other half of killing_a_call_process_loses_nothing_that_was_said"]
fn a_process_that_talks_until_it_is_killed() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else {
        return;
    };
    let store = voicebot::store::Store::open(std::path::Path::new(&folder)).unwrap();
    let (session, _lock) = store.open_session(&session_id(ID)).unwrap();
    for number in 0_u64.. {
        session::lock(&session)
            .commit_item(ConversationItem::user(format!("word {number}"), at(0)));
        println!("said {number}");
    }
}

#[test]
fn killing_a_call_process_loses_nothing_that_was_said() {
    use std::io::{BufRead as _, BufReader};
    let data = DataFolder::new();
    data.store.begin(&call_start(ID), &[]).unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "records::a_process_that_talks_until_it_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(CHILD_FOLDER, data.store.root())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(|line| line.unwrap())
        .filter_map(|line| {
            line.strip_prefix("said ")
                .and_then(|number| number.parse::<usize>().ok())
        });
    assert!(said.by_ref().any(|number| number == 300));
    assert!(data.store.orphans()[0].alive);
    assert_eq!(
        data.store
            .recover(&session_id(ID), &Outcome::recovered("x", None))
            .unwrap(),
        None,
        "it is alive"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let last = said.last().unwrap_or(300);

    data.store
        .recover(&session_id(ID), &Outcome::recovered("killed", None))
        .unwrap()
        .expect("a record");
    let record = data.store.read_record(&session_id(ID)).unwrap();
    let items =
        data.json(record.files.conversation.as_deref().unwrap())["conversation_items"].clone();
    let items = items.as_array().unwrap();
    // An item is written before it is printed, so there may be one more.
    assert!(
        items.len() == last + 1 || items.len() == last + 2,
        "{} items, {last} was the last",
        items.len()
    );
    assert!(
        items
            .iter()
            .enumerate()
            .all(|(number, item)| item["content"] == format!("word {number}"))
    );
    data.assert_nothing_left_over();
}
