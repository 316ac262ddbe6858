//! Finding calls again: which there are, which one is meant, and what is told of it, at whatever
//! stage it is.

use std::fs;
use std::process::{Command, Output};

use crate::support::data::{CALLER, DataFolder, at, hangup, session_id};
use serde_json::{Value, json};
use voicebot::ledger::{self, CallFilter, FoundCall, Query, Standing};
use voicebot::session::{self, CallMetadata, Lead, RecordingMetadata, SessionId};

const FIRST: &str = "session_20261121_100000_aaaaaa";
const SECOND: &str = "session_20261121_110000_bbbbbb";
const V2: &str = "session_20261121_101500_00beef";
const ORIGINAL: &str = "session_20251029_113920_abc123";
const LEAD: &str = "0123456789abcdef0123456789abcdef";

fn lead(id: &str) -> Lead {
    Lead {
        lead_id: LEAD.parse().expect("an id"),
        session_id: session_id(id),
        call_id: None,
        name: "Asha Example".to_owned(),
        email: "asha@example.com".to_owned(),
        company: "Example Pumps".to_owned(),
        interest: "a pump".to_owned(),
        phone: CALLER.to_owned(),
        job_title: String::new(),
        budget: String::new(),
        timeline: String::new(),
        created_at: at(20),
    }
}

/// A folder with one archived, one half delivered and one old record.
fn three_calls() -> DataFolder {
    let data = DataFolder::new();
    data.copy_fixture(
        &format!("v2/metadata_{V2}.json"),
        &format!("call_metadata/metadata_{V2}.json"),
    );
    for (fixture, folder) in [
        (format!("metadata_{ORIGINAL}.json"), "call_metadata"),
        (format!("conversation_{ORIGINAL}.json"), "conversations"),
        ("lead_20251029_114101.json".to_owned(), "leads"),
    ] {
        data.copy_fixture(
            &format!("original/{fixture}"),
            &format!("{folder}/{fixture}"),
        );
    }
    archived_call(&data, FIRST);
    data
}

/// A call with a lead, delivered.
fn archived_call(data: &DataFolder, id: &str) {
    let (session, lock) = data.running_call(id, Some(CALLER));
    data.store
        .save_lead(&session, lead(id))
        .expect("the lead is saved");
    {
        let mut session = session::lock(&session);
        session.set_joined(at(0));
        session.set_call_metadata(CallMetadata {
            room_sid: Some("RM_first".to_owned()),
            call_id: Some("SCL_first".to_owned()),
            ..CallMetadata::default()
        });
        session.set_recording_metadata(RecordingMetadata {
            egress_id: Some("EG_first".to_owned()),
            recording_start_time: Some(at(0)),
            ..RecordingMetadata::default()
        });
        session.set_outcome(hangup());
    }
    let waiting = data
        .store
        .finish(&session, lock)
        .expect("the record is written");
    let name = waiting.file_name().expect("a name").to_string_lossy();
    fs::rename(&waiting, data.path(&format!("processed_metadata/{name}"))).expect("it is moved");
}

fn found(data: &DataFolder, query: &str) -> Vec<String> {
    let result = ledger::find(&data.store, &Query::new(query)).expect("the folders can be listed");
    let id = |call: &FoundCall| call.record.session_id.to_string();
    result.calls.iter().map(id).collect()
}

fn listed(data: &DataFolder, filter: &CallFilter) -> Vec<(String, Standing)> {
    ledger::list(&data.store, filter)
        .expect("the folders can be listed")
        .filter_map(Result::ok)
        .map(|call| (call.record.session_id.to_string(), call.standing))
        .collect()
}

fn voicebot(data: &DataFolder, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_voicebot"))
        .args(arguments)
        .current_dir(data.store.root())
        .env_clear()
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn a_call_is_found_by_every_id_it_has() {
    let data = three_calls();
    for query in [
        FIRST,
        // The record that was there before has the id without a number behind it.
        "CALL-20261121-50100123-2",
        &format!("AJ_{FIRST}"),
        "EG_first",
        "first",
        LEAD,
        &format!("room-{FIRST}"),
        "RM_first",
        "SCL_first",
    ] {
        assert_eq!(found(&data, query), [FIRST], "{query}");
    }
    for query in ["xyz789", "EG_xyz789", "+918655066243", "8655 066 243"] {
        assert_eq!(found(&data, query), [ORIGINAL], "{query}");
    }
    assert_eq!(found(&data, CALLER), [V2, FIRST], "newest first");
    for nobody in [
        "",
        "CALL",
        "EG_",
        "RM_firs",
        "243",
        "CALL-20261122-50100123",
    ] {
        assert_eq!(found(&data, nobody), Vec::<String>::new(), "{nobody:?}");
    }
}

#[test]
fn a_running_call_is_seen_with_what_was_said_and_then_at_each_later_stage() {
    let data = DataFolder::new();
    let (session, lock) = data.running_call(FIRST, Some(CALLER));
    data.store
        .save_lead(&session, lead(FIRST))
        .expect("the lead is saved");
    let one = |query: &str| {
        let mut calls = ledger::find(&data.store, &Query::new(query))
            .expect("the folders can be listed")
            .calls;
        assert_eq!(calls.len(), 1, "{query}");
        calls.remove(0)
    };
    for query in [FIRST, &format!("AJ_{FIRST}"), LEAD, CALLER] {
        let call = one(query);
        assert_eq!(call.standing, Standing::Running);
        assert_eq!(call.record.timestamps.call_end, None);
        assert_eq!(call.live.expect("a journal only").items.len(), 2);
    }
    drop((session, lock));
    assert_eq!(one(FIRST).standing, Standing::Interrupted);

    let (session, lock) = data
        .store
        .open_session(&session_id(FIRST))
        .expect("nobody holds it");
    session::lock(&session).set_outcome(hangup());
    let journal = data.path(&format!("conversations/{FIRST}.journal.jsonl"));
    let as_it_was = fs::read(&journal).expect("a journal");
    data.store
        .finish(&session, lock)
        .expect("the record is written");
    assert_eq!(one(FIRST).standing, Standing::Waiting);

    // As a process leaves it that dies between record and journal: still one call.
    fs::write(&journal, as_it_was).expect("a file");
    assert_eq!(one(FIRST).standing, Standing::Waiting);
    assert_eq!(one(CALLER).standing, Standing::Waiting);
    let all = listed(&data, &CallFilter::default());
    assert_eq!(all, [(FIRST.to_owned(), Standing::Waiting)]);
}

#[test]
fn calls_are_listed_newest_first_and_as_the_filter_says() {
    let data = three_calls();
    let (_session, _lock) = data.running_call(SECOND, None);
    let all = [
        (SECOND, Standing::Running),
        (V2, Standing::Waiting),
        (FIRST, Standing::Archived),
        (ORIGINAL, Standing::Waiting),
    ];
    let shown = |filter: CallFilter| -> Vec<String> {
        listed(&data, &filter)
            .into_iter()
            .map(|(id, _)| id)
            .collect()
    };
    let everything = listed(&data, &CallFilter::default());
    assert_eq!(
        everything,
        all.map(|(id, standing)| (id.to_owned(), standing))
    );
    let archived = CallFilter {
        standings: vec![Standing::Archived],
        ..CallFilter::default()
    };
    assert_eq!(shown(archived), [FIRST]);
    let not_over = CallFilter {
        standings: vec![Standing::Running, Standing::Waiting],
        ..CallFilter::default()
    };
    assert_eq!(shown(not_over), [SECOND, V2, ORIGINAL]);
    let since = CallFilter {
        since: Some(at(900)),
        ..CallFilter::default()
    };
    // The record of the running one says ten o'clock.
    assert_eq!(shown(since), [V2]);
    let number = CallFilter {
        number: Some("0100123".to_owned()),
        ..CallFilter::default()
    };
    assert_eq!(shown(number), [V2, FIRST]);
    let completed = CallFilter {
        outcomes: vec![session::CallStatus::Completed],
        ..CallFilter::default()
    };
    assert_eq!(shown(completed), [V2, FIRST, ORIGINAL]);
}

#[test]
fn files_that_cannot_be_read_are_named_and_hide_no_other_call() {
    let data = three_calls();
    let broken: SessionId = session_id("session_20261121_120000_cccccc");
    data.write(
        &format!("call_metadata/metadata_{broken}.json"),
        "{\"session_id\": \"ses",
    );
    data.write("processed_metadata/metadata_empty.json", "");
    let result = ledger::find(&data.store, &Query::new("EG_first")).expect("a listing");
    assert_eq!(result.calls.len(), 1);
    let named: Vec<&str> = result.unreadable.iter().map(|u| u.file.as_str()).collect();
    assert_eq!(named.len(), 2, "{named:?}");
    assert!(result.unreadable.iter().all(|u| {
        u.problem
            .contains(data.store.root().to_str().expect("a path"))
    }));
    let (readable, unreadable): (Vec<_>, Vec<_>) =
        ledger::list(&data.store, &CallFilter::default())
            .expect("a listing")
            .partition(Result::is_ok);
    assert_eq!((readable.len(), unreadable.len()), (3, 2));

    let shown = voicebot(&data, &["calls", "show", broken.as_str()]);
    assert!(!shown.status.success());
    assert!(
        text(&shown.stderr).contains("skipped: the record"),
        "{}",
        text(&shown.stderr)
    );
    let shown = voicebot(&data, &["calls", "show", FIRST]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    data.write(&format!("conversations/conversation_{FIRST}.json"), "{");
    let shown = text(&voicebot(&data, &["calls", "show", FIRST]).stdout);
    assert!(
        shown.contains("! the record") && shown.contains("hung up"),
        "{shown}"
    );
}

#[test]
fn the_timeline_of_a_call_is_told_in_order_with_numbers_hidden() {
    let data = three_calls();
    data.write(
        &format!("conversations/conversation_{V2}.json"),
        json!({ "conversation_items": [
            { "role": "assistant", "content": "Hello!", "timestamp": "2026-11-21T10:15:03.000Z", "interrupted": true },
            { "role": "user", "content": "My number is 5550100123.", "timestamp": "2026-11-21T10:15:09.500Z", "transcript_confidence": 0.93 },
            { "role": "assistant", "content": "Thank you.", "timestamp": "2026-11-21T10:15:12.000Z", "metrics": { "e2e_latency_ms": 640 } },
        ] })
        .to_string(),
    );
    let shown = voicebot(&data, &["calls", "show", "AJ_example"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    assert_eq!(
        text(&shown.stdout),
        "\
session_20261121_101500_00beef  waiting
  call        CALL-20261121-50100123  completed  0:58
  number      …23  inbound  our number …99
  room        call-_…23-1  RM_example  job AJ_example
  persona     pumps  campaign c1  agent v1  client k1
  delivery    recording sent (1 requests)  call data pending (1 requests)
  file        call_metadata/metadata_session_20261121_101500_00beef.json

2026-11-21 (UTC)
  10:15:00.000  dispatched          job AJ_example, room call-_…23-1
  10:15:00.500  recording started   by the call, recordings/session_20261121_101500_00beef.ogg
  10:15:02.100  answered            inbound, from …23 to …99, persona pumps
  10:15:03.000  agent said          Hello! [cut off]
  10:15:09.500  caller said         My number is …23. [confidence 0.93]
  10:15:12.000  agent said          Thank you. [after 640 ms]
  10:15:30.000  intent              book_demo [confidence 0.90] {\"product\":\"pump\"}
  10:16:00.000  hung up             completed: participant_disconnected, CLIENT_INITIATED
                recording           active
  10:16:00.030  record written      call_metadata/metadata_session_20261121_101500_00beef.json
  10:16:00.100  upload              1 requests
  10:16:00.100  call data           1 requests: POST crm.example.com/call-data answered 503
                recording sent      https://crm.example.com/files/1.ogg, 123456 bytes, 60 s
                CRM answered        \"busy\"
  10:16:05.000  next attempt        call data: POST crm.example.com/call-data answered 503
! the file leads/lead_session_20261121_101500_00beef_1.json is not there
"
    );
    let whole = text(&voicebot(&data, &["calls", "show", V2, "--numbers"]).stdout);
    assert!(
        whole.contains("from +15550100123 to +15550100999"),
        "{whole}"
    );
    assert!(whole.contains("5550100123."), "{whole}");

    let json = voicebot(&data, &["calls", "show", LEAD, "--json"]);
    let answer: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(answer["status"], "archived");
    assert_eq!(answer["number"], "…23");
    assert_eq!(answer["leads"][0]["lead"]["lead_id"], LEAD);
    assert_eq!(answer["leads"][0]["lead"]["phone"], "…23");
    let events: Vec<&str> = answer["timeline"]
        .as_array()
        .expect("a timeline")
        .iter()
        .map(|entry| entry["event"].as_str().expect("an event"))
        .collect();
    assert_eq!(
        events,
        [
            "dispatched",
            "joined",
            "answered",
            "recording_started",
            "said",
            "said",
            "lead",
            "hung_up",
            "recording",
            "record_written",
            "archived",
        ]
    );
    assert!(
        !text(&json.stdout).contains("5550100123\""),
        "no whole number"
    );
}

#[test]
fn one_who_asks_too_widely_or_in_vain_is_told_how_to_go_on() {
    let data = three_calls();
    let several = voicebot(&data, &["calls", "show", "0100123"]);
    assert!(!several.status.success());
    let listed = text(&several.stdout);
    assert!(listed.contains(FIRST) && listed.contains(V2), "{listed}");
    assert!(!listed.contains(CALLER), "{listed}");
    assert!(text(&several.stderr).contains("show one of them by its session"));

    let nothing = voicebot(&data, &["calls", "show", "EG_nobody"]);
    assert!(!nothing.status.success());
    let said = text(&nothing.stderr);
    for part in [
        "EG_nobody",
        "0 running calls",
        "2 records in call_metadata",
        "1 in processed_metadata",
        "2 leads",
        "data_dir",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }

    let rows = text(&voicebot(&data, &["calls", "list", "--limit", "2"]).stdout);
    assert_eq!(rows.lines().count(), 3, "{rows}");
    let lines = text(&voicebot(&data, &["calls", "list", "--json", "--status", "archived"]).stdout);
    let row: Value = serde_json::from_str(&lines).expect("one line of JSON");
    assert_eq!(
        (&row["session_id"], &row["leads"]),
        (&json!(FIRST), &json!(1))
    );
}
