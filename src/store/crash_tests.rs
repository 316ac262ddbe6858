//! The process dies, or the disk refuses, at every single step of a call's life on disk. Whatever
//! was acknowledged is there afterwards, whoever comes next finishes the rest, and doing it twice
//! changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::disk::faults::{self, Fault};
use super::*;
use crate::session::{
    CallMetadata, CallStatus, CloseReason, ConversationItem, Direction, LeadId, PartState,
    RecordStatus,
};

const ID: &str = "session_20261121_100000_aaaaaa";
const OTHER: &str = "session_20261121_090000_bbbbbb";
const NUMBER: &str = "+15550100123";
/// More than any of the lives below has.
const NEVER: usize = usize::MAX;

fn folder() -> tempfile::TempDir {
    // Thousands of folders and syncs: in memory where there is such a place.
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn id(text: &str) -> SessionId {
    text.parse().unwrap()
}

fn start(session: &str) -> CallStart {
    CallStart {
        session_id: id(session),
        job_id: format!("AJ_{session}"),
        room_name: "room".to_owned(),
        room_sid: None,
        job_metadata: None,
        direction: Some(Direction::Inbound),
        call_start: id(session).started_at().unwrap(),
        agent_name: String::new(),
        attributes: Default::default(),
    }
}

fn told() -> [SessionEvent; 1] {
    [SessionEvent::CallMetadata(CallMetadata {
        dialed_number: Some(NUMBER.to_owned()),
        ..CallMetadata::default()
    })]
}

fn lead(session: &str) -> Lead {
    serde_json::from_value(serde_json::json!({
        "lead_id": LeadId::random(), "session_id": session, "name": "Asha Example", "email": "asha@example.com",
        "company": "", "interest": "a pump", "created_at": "2026-11-21T10:00:20Z",
    }))
    .unwrap()
}

/// What the caller of the store has been told is kept.
#[derive(Debug, Default, Clone)]
struct Acknowledged {
    begun: bool,
    items: usize,
    leads: Vec<String>,
    record: bool,
}

/// What is left of a life: what it was told, and the call if it could not be finished.
struct Lived {
    told: Acknowledged,
    left: Option<(SharedSession, JournalLock)>,
}

/// A whole call. Goes on after a refusal, as a call does that has lost its disk; `dead` says that
/// nothing more is acknowledged.
fn live(store: &Store, session: &str, dead: impl Fn() -> bool) -> Lived {
    let mut told_us = Acknowledged::default();
    let mut left = None;
    if store.begin(&start(session), &told()).is_err() || dead() {
        return Lived {
            told: told_us,
            left,
        };
    }
    told_us.begun = true;
    let Ok((call, lock)) = store.open_session(&id(session)) else {
        return Lived {
            told: told_us,
            left,
        };
    };
    for number in 0..3 {
        let item = ConversationItem::user(format!("word {number}"), start(session).call_start);
        session::lock(&call).commit_item(item);
        told_us.items += usize::from(!dead());
        if number > 0
            && let Ok(path) = store.save_lead(&call, lead(session))
            && !dead()
        {
            told_us.leads.push(path);
        }
    }
    session::lock(&call).set_outcome(Outcome {
        close_reason: CloseReason::ParticipantDisconnected,
        disconnect_reason: None,
        call_status: CallStatus::Completed,
        error: None,
        call_end: None,
    });
    match store.finish(&call, lock) {
        Ok(_) => told_us.record = !dead(),
        Err(unfinished) => left = Some((call, unfinished.lock)),
    }
    Lived {
        told: told_us,
        left,
    }
}

fn why() -> Outcome {
    Outcome::recovered("killed", None)
}

/// Everything in the data folder but locks, by path.
fn contents(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for folder in [CONVERSATIONS, LEADS, CALL_METADATA, PROCESSED] {
        for entry in fs::read_dir(root.join(folder)).unwrap().flatten() {
            if entry.path().is_file() {
                let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
                all.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    all
}

fn without_temporaries(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = contents(root);
    all.retain(|name, _| !name.contains("/.tmp-"));
    all
}

fn json(root: &Path, path: &str) -> Value {
    serde_json::from_slice(&fs::read(root.join(path)).unwrap()).unwrap()
}

/// The record has everything that was acknowledged, and nothing twice.
fn has_everything(store: &Store, session: &str, told: &Acknowledged, context: &str) {
    let record = store
        .read_record(&id(session))
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(record.other_party(), Some(NUMBER), "{context}");
    let root = store.root();
    let conversation = json(root, record.files.conversation.as_deref().unwrap());
    let items = conversation["conversation_items"].as_array().unwrap();
    assert!(items.len() >= told.items, "{context}: {items:?}");
    for (number, item) in items.iter().enumerate() {
        assert_eq!(item["content"], format!("word {number}"), "{context}");
    }
    for lead in &told.leads {
        assert!(record.files.leads.contains(lead), "{context}: {lead}");
    }
    for lead in &record.files.leads {
        assert_eq!(json(root, lead)["session_id"], session, "{context}");
    }
    let named: std::collections::HashSet<_> = record.files.leads.iter().collect();
    assert_eq!(named.len(), record.files.leads.len(), "{context}");
    assert_eq!(store.orphans(), [], "{context}");
}

fn with_another_call() -> (tempfile::TempDir, Store, BTreeMap<String, Vec<u8>>) {
    let folder = folder();
    let store = Store::open(folder.path()).unwrap();
    assert!(live(&store, OTHER, || false).told.record);
    let before = without_temporaries(store.root());
    (folder, store, before)
}

fn steps_of_a_life() -> usize {
    let (_folder, store, _) = with_another_call();
    faults::with(Fault::Death, NEVER, || live(&store, ID, || false)).1
}

#[test]
fn a_process_that_dies_at_any_step_of_a_call_loses_nothing_that_was_acknowledged() {
    let steps = steps_of_a_life();
    assert!(steps > 30, "{steps}");
    for at in 0..steps {
        // The one that recovers dies as well, at each of its steps, and a third one ends it.
        for second in 0.. {
            let context = format!("dead at step {at}, then at {second}");
            let (_folder, store, before) = with_another_call();
            let (lived, _) = faults::with(Fault::Death, at, || live(&store, ID, faults::happened));
            drop(lived.left);
            let (recovered, taken) =
                faults::with(Fault::Death, second, || store.recover(&id(ID), &why()));
            let died_again = second < taken;
            drop(recovered);
            store
                .recover(&id(ID), &why())
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            if lived.told.begun {
                has_everything(&store, ID, &lived.told, &context);
            }
            let after = without_temporaries(store.root());
            for (name, bytes) in &before {
                assert_eq!(after.get(name), Some(bytes), "{context}: {name}");
            }
            assert_eq!(store.recover(&id(ID), &why()).unwrap(), None);
            assert_eq!(without_temporaries(store.root()), after, "{context}: twice");
            if !died_again {
                break;
            }
        }
    }
}

#[test]
fn a_disk_that_refuses_at_any_step_costs_nothing_when_it_is_well_again() {
    for fault in [Fault::FullDisk, Fault::ReadOnly] {
        for at in 0..steps_of_a_life() {
            for dies in [false, true] {
                let context = format!("{fault:?} from step {at} on, then dead: {dies}");
                let (_folder, store, before) = with_another_call();
                let (mut lived, _) = faults::with(fault, at, || live(&store, ID, || false));
                let while_full = without_temporaries(store.root());
                for (name, bytes) in &before {
                    assert_eq!(while_full.get(name), Some(bytes), "{context}: {name}");
                }
                if !lived.told.begun {
                    assert!(store.begin(&start(ID), &told()).is_ok() || store.orphans().len() == 1);
                }
                match lived.left.take() {
                    Some((call, lock)) if !dies => {
                        store.finish(&call, lock).unwrap();
                    }
                    left => {
                        // What was not written died with the process; that is why it goes on
                        // trying.
                        let written = left.is_none();
                        drop(left);
                        if !written {
                            lived.told.items = 0;
                        }
                        store.recover(&id(ID), &why()).unwrap();
                    }
                }
                has_everything(&store, ID, &lived.told, &context);
            }
        }
    }
}

#[test]
fn what_a_full_disk_did_not_take_is_written_when_there_is_room_again() {
    let folder = folder();
    let store = Store::open(folder.path()).unwrap();
    store.begin(&start(ID), &told()).unwrap();
    let (call, lock) = store.open_session(&id(ID)).unwrap();
    let say = |word: &str| {
        session::lock(&call).commit_item(ConversationItem::user(word, start(ID).call_start));
    };
    faults::with(Fault::FullDisk, 0, || {
        say("word 0");
        say("word 1");
    });
    say("word 2");
    drop((call, lock));
    let journal = journal::read(&store.journal_path(&id(ID))).unwrap();
    assert!(!journal.damaged);
    store.recover(&id(ID), &why()).unwrap().unwrap();
    let told = Acknowledged {
        items: 3,
        ..Acknowledged::default()
    };
    has_everything(&store, ID, &told, "after the outage");
}

/// Delivers a record as the uploader does: every answer of the CRM is on disk before the next step.
/// Returns how far it was told to be.
fn deliver(store: &Store) -> Result<RecordStatus, StoreError> {
    let Some(pending) = store.pending()?.into_iter().next() else {
        return Ok(RecordStatus::Uploaded);
    };
    let Some(mut claim) = store.claim(&pending)? else {
        return Ok(RecordStatus::ReadyForUpload);
    };
    if claim.record().status == RecordStatus::ReadyForUpload {
        store.mark(&mut claim, |record| record.status = RecordStatus::Uploading)?;
    }
    if claim.record().uploads.recording.state != PartState::Sent {
        store.mark(&mut claim, |record| {
            record.uploads.recording.state = PartState::Sent;
            record.uploads.recording.url = Some("https://crm.example/1".to_owned());
        })?;
    }
    if claim.record().status != RecordStatus::Uploaded {
        store.mark(&mut claim, |record| {
            record.uploads.call_data.state = PartState::Sent;
            record.status = RecordStatus::Uploaded;
        })?;
    }
    store.archive(claim)?;
    Ok(RecordStatus::Uploaded)
}

#[test]
fn a_process_that_dies_at_any_step_of_a_delivery_loses_no_confirmation() {
    let finished = || {
        let folder = folder();
        let store = Store::open(folder.path()).unwrap();
        assert!(live(&store, ID, || false).told.record);
        (folder, store)
    };
    let (_folder, store) = finished();
    let (_, steps) = faults::with(Fault::Death, NEVER, || deliver(&store).unwrap());
    assert!(steps > 12, "{steps}");
    for fault in [Fault::Death, Fault::FullDisk, Fault::ReadOnly] {
        for at in 0..steps {
            let context = format!("{fault:?} at step {at}");
            let (_folder, store) = finished();
            let _ = faults::with(fault, at, || deliver(&store));
            // Whole wherever it is, and in one place.
            let before = store.read_record(&id(ID)).unwrap();
            let places = [CALL_METADATA, PROCESSED]
                .iter()
                .filter(|folder| store.record_path(folder, &id(ID)).exists())
                .count();
            assert_eq!(places, 1, "{context}");
            deliver(&store).unwrap();
            let after = store.read_record(&id(ID)).unwrap();
            assert_eq!(store.pending().unwrap(), [], "{context}");
            store.remove_stray_temporaries();
            let claims = store.root().join(CALL_METADATA).join(".claims");
            assert_eq!(fs::read_dir(claims).unwrap().count(), 0, "{context}");
            assert_eq!(after.status, RecordStatus::Uploaded, "{context}");
            assert!(before.status.can_become(after.status), "{context}");
            assert!(
                before.uploads.recording.url.is_none()
                    || before.uploads.recording.url == after.uploads.recording.url,
                "{context}"
            );
        }
    }
}
