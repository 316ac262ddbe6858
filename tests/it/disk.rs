//! Disks that are full, read-only or owned by another user, clocks that jump, and recordings that
//! are deleted to free space.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::support::data::{CALLER, DataFolder, at, call_start, hangup, session_id};
use serde_json::json;
use voicebot::session::{
    self, CallRecord, ConversationItem, Outcome, PartState, RecordStatus, crm_payload,
};
use voicebot::store::{StorageConfig, Store, StoreError};

const ID: &str = "session_20261121_100000_aaaaaa";
const OTHER: &str = "session_20261121_110000_bbbbbb";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A small file system, if this machine permits mounting one.
struct SmallDisk {
    folder: PathBuf,
    _parent: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, with the reason printed, if that is not permitted.
    fn mount(kilobytes: u32) -> Option<Self> {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("disk");
        fs::create_dir(&folder).unwrap();
        let size = format!("size={kilobytes}k");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "voicebot-test"])
            .arg(&folder)
            .output();
        match mount {
            Ok(output) if output.status.success() => Some(Self {
                folder,
                _parent: parent,
            }),
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr);
                println!("skipped: no small disk can be mounted here: {}", why.trim());
                None
            }
            Err(error) => {
                println!("skipped: there is no mount command here: {error}");
                None
            }
        }
    }

    fn remount(&self, mode: &str) {
        let option = format!("remount,{mode}");
        let status = Command::new("mount")
            .args(["-o", &option])
            .arg(&self.folder)
            .status();
        assert!(status.unwrap().success(), "remount,{mode}");
    }

    /// Fills the disk to the last byte.
    fn fill(&self) -> PathBuf {
        let path = self.folder.join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

fn contents(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for folder in [
        "call_metadata",
        "conversations",
        "leads",
        "processed_metadata",
    ] {
        for entry in fs::read_dir(root.join(folder)).unwrap().flatten() {
            if entry.path().is_file() {
                all.push((entry.path(), fs::read(entry.path()).unwrap()));
            }
        }
    }
    all.sort();
    all
}

/// A call in progress with two conversation items.
fn talking(store: &Store, id: &str) -> (session::SharedSession, voicebot::store::JournalLock) {
    store.begin(&call_start(id), &[]).unwrap();
    let (session, lock) = store.open_session(&session_id(id)).unwrap();
    say(&session, "one");
    say(&session, "two");
    (session, lock)
}

fn say(session: &session::SharedSession, words: &str) {
    session::lock(session).commit_item(ConversationItem::user(words, at(1)));
}

fn said(store: &Store, record: &CallRecord) -> Vec<String> {
    let conversation = store.read_json(record.files.conversation.as_deref().unwrap());
    let conversation = conversation.unwrap().unwrap();
    let items = conversation["conversation_items"]
        .as_array()
        .unwrap()
        .clone();
    let content = |item: serde_json::Value| item["content"].as_str().unwrap().to_owned();
    items.into_iter().map(content).collect()
}

#[test]
fn a_full_disk_truncates_nothing_and_costs_nothing_when_there_is_room_again() {
    let Some(disk) = SmallDisk::mount(256) else {
        return;
    };
    let store = Store::open(&disk.folder).unwrap();
    let (session, lock) = talking(&store, OTHER);
    session::lock(&session).set_outcome(hangup());
    store.finish(&session, lock).unwrap();
    let (session, lock) = talking(&store, ID);
    let mut pending = store.pending().unwrap();
    let mut claim = store.claim(&pending.remove(0)).unwrap().unwrap();
    let before = contents(&disk.folder);

    let filler = disk.fill();
    assert!(store.free_bytes().unwrap() < 4096);
    let error = store.probe().unwrap_err().to_string();
    assert!(
        error.contains("write in") && error.contains("No space left"),
        "{error}"
    );
    for number in 0..200 {
        say(&session, &format!("said on a full disk {number}"));
    }
    let lead = json!({ "lead_id": "l1", "session_id": ID, "name": "Asha", "email": "", "company": "", "interest": "",
        "created_at": "2026-11-21T10:00:20Z" });
    let lead = || serde_json::from_value(lead.clone()).unwrap();
    assert!(
        store.save_lead(&session, lead()).is_err(),
        "the model is told"
    );
    session::lock(&session).set_outcome(hangup());
    let unfinished = store.finish(&session, lock).unwrap_err();
    assert!(
        unfinished.to_string().contains("No space left"),
        "{unfinished}"
    );
    let refused = store.mark(&mut claim, |record| record.status = RecordStatus::Uploading);
    assert!(matches!(refused, Err(StoreError::Io { .. })));
    let error = store.begin(&call_start("session_20261121_120000_cccccc"), &[]);
    assert!(error.unwrap_err().to_string().contains("No space left"));
    for (path, bytes) in &before {
        let now = fs::read(path).unwrap();
        assert!(now.starts_with(bytes), "{} was cut", path.display());
    }
    let names = |all: Vec<(PathBuf, Vec<u8>)>| -> Vec<PathBuf> {
        all.into_iter().map(|(path, _)| path).collect()
    };
    assert_eq!(
        names(contents(&disk.folder)),
        names(before),
        "no half of a file"
    );

    fs::remove_file(filler).unwrap();
    store.probe().unwrap();
    store.save_lead(&session, lead()).unwrap();
    store
        .mark(&mut claim, |record| record.status = RecordStatus::Uploading)
        .unwrap();
    store.finish(&session, unfinished.lock).unwrap();
    let record = store.read_record(&session_id(ID)).unwrap();
    assert_eq!(said(&store, &record).len(), 202);
    assert_eq!(record.files.leads.len(), 1);
    assert_eq!(store.orphans(), []);
}

#[test]
fn a_disk_that_becomes_read_only_is_named_and_read_on() {
    let Some(disk) = SmallDisk::mount(1024) else {
        return;
    };
    let store = Store::open(&disk.folder).unwrap();
    let (session, lock) = talking(&store, OTHER);
    session::lock(&session).set_outcome(hangup());
    store.finish(&session, lock).unwrap();
    // It keeps its journal open, even when that is deleted.
    drop(session);
    drop(talking(&store, ID));
    let before = contents(&disk.folder);
    disk.remount("ro");
    let sentences = [
        store.probe().unwrap_err().to_string(),
        store
            .begin(&call_start("session_20261121_120000_cccccc"), &[])
            .unwrap_err()
            .to_string(),
        store
            .recover(&session_id(ID), &Outcome::recovered("killed", None))
            .unwrap_err()
            .to_string(),
    ];
    for sentence in sentences {
        assert!(sentence.contains("Read-only file system"), "{sentence}");
    }
    assert_eq!(store.pending().unwrap().len(), 1);
    store.read_record(&session_id(OTHER)).unwrap();
    disk.remount("rw");
    assert_eq!(contents(&disk.folder), before);
    store
        .recover(&session_id(ID), &Outcome::recovered("killed", None))
        .unwrap()
        .expect("a record");
    let record = store.read_record(&session_id(ID)).unwrap();
    assert_eq!(said(&store, &record), ["one", "two"]);
}

/// Names the data folder for [`somebody_else_looks_at_the_folder`], which is a process of its own.
const FOLDER: &str = "VOICEBOT_TEST_DISK_FOLDER";

#[test]
#[ignore = "the other half of wrong_permissions_are_named_and_stop_nothing_else"]
fn somebody_else_looks_at_the_folder() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let store = Store::open(Path::new(&folder)).unwrap();
    let begun = store.begin(&call_start("session_20261121_120000_cccccc"), &[]);
    println!("begin: {}", begun.unwrap_err());
    println!("probe: {}", store.probe().unwrap_err());
    for pending in store.pending().unwrap() {
        match store.read_pending(&pending) {
            Ok(_) => println!("read: {}", pending.session_id),
            Err(error) => println!("not read: {error}"),
        }
        if let Err(error) = store.claim(&pending) {
            println!("not claimed: {error}");
        }
    }
    let recovered = store.recover(&session_id("session_20261121_130000_dddddd"), &hangup());
    println!("recover: {}", recovered.unwrap_err());
}

#[test]
fn wrong_permissions_are_named_and_stop_nothing_else() {
    /// The user `nobody`, who owns no files.
    const NOBODY: u32 = 65534;
    let data = DataFolder::new();
    data.finished_call(ID, Some(CALLER));
    let secret = data.finished_call(OTHER, Some(CALLER));
    drop(data.running_call("session_20261121_130000_dddddd", Some(CALLER)));
    let before = contents(data.store.root());
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let root = data.store.root();
    let folders: Vec<PathBuf> = [
        "call_metadata",
        "conversations",
        "leads",
        "processed_metadata",
    ]
    .map(|folder| root.join(folder))
    .into();
    set(root, 0o755);
    folders.iter().for_each(|folder| set(folder, 0o555));
    set(&secret, 0o000);
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args([
            "--exact",
            "disk::somebody_else_looks_at_the_folder",
            "--ignored",
            "--nocapture",
        ])
        .env(FOLDER, root);
    // Root ignores permissions.
    if rustix::process::geteuid().is_root() {
        child.uid(NOBODY).gid(NOBODY);
    }
    let output = child.output();
    folders.iter().for_each(|folder| set(folder, 0o755));
    set(&secret, 0o644);
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: another user can not run this test here: {error}");
            return;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    for expected in [
        "begin: ",
        "probe: ",
        "not read: ",
        "not claimed: ",
        "recover: ",
    ] {
        let line = text.lines().find(|line| line.contains(expected));
        let line = line.unwrap_or_else(|| panic!("{expected} in {text}"));
        assert!(line.contains("Permission denied"), "{line}");
    }
    assert!(text.contains(&format!("read: {ID}")), "{text}");
    assert_eq!(contents(data.store.root()), before);
}

#[test]
fn a_clock_that_jumps_back_during_a_call_gives_a_call_of_no_length() {
    let data = DataFolder::new();
    let (session, lock) = data.running_call(ID, Some(CALLER));
    session::lock(&session).set_outcome(Outcome {
        call_end: Some(at(-3600)),
        ..hangup()
    });
    data.store.finish(&session, lock).unwrap();
    let record = data.store.read_record(&session_id(ID)).unwrap();
    let conversation = data.json(record.files.conversation.as_deref().unwrap());
    assert_eq!(conversation["duration_seconds"], 0);
    assert_eq!(
        crm_payload(&record, Some(&conversation), None, None)["callDetails"]["duration"],
        0
    );
    assert_eq!(
        conversation["total_items"], 2,
        "in the order in which they were said"
    );
}

#[test]
fn a_journal_from_the_future_is_recovered_like_any_other() {
    let data = DataFolder::new();
    drop(data.running_call(ID, Some(CALLER)));
    let journal = data.path(&format!("conversations/{ID}.journal.jsonl"));
    let file = File::options().append(true).open(&journal).unwrap();
    file.set_modified(SystemTime::now() + DAY * 400).unwrap();
    assert!(!data.store.orphans()[0].alive);
    data.store
        .recover(&session_id(ID), &Outcome::recovered("killed", None))
        .unwrap()
        .expect("a record");
}

/// A call whose recording is in the given state at the CRM, archived or still waiting. Returns the
/// recording.
fn recorded(
    data: &DataFolder,
    id: &str,
    recording: &str,
    state: PartState,
    archived: bool,
) -> PathBuf {
    let path = data.finished_call(id, Some(CALLER));
    let mut record = data.store.read_record(&session_id(id)).unwrap();
    record.files.recording = Some(recording.to_owned());
    record.uploads.recording.state = state;
    record.uploads.call_data.state = PartState::Sent;
    record.status = if archived {
        RecordStatus::Uploaded
    } else {
        RecordStatus::Uploading
    };
    fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
    if archived {
        let name = path.file_name().unwrap();
        fs::rename(&path, data.path("processed_metadata").join(name)).unwrap();
    }
    data.write(recording, vec![0; 1_000_000]);
    let file = data.path(recording);
    let opened = File::options().append(true).open(&file).unwrap();
    opened.set_modified(SystemTime::now() - DAY * 10).unwrap();
    file
}

#[test]
fn only_recordings_that_the_crm_has_are_deleted_and_their_records_say_so() {
    let data = DataFolder::new();
    let session = |number: u32| format!("session_20261121_1000{number:02}_aaaaaa");
    let own = |number: u32| format!("recordings/{}.ogg", session(number));
    let sent = recorded(&data, &session(0), &own(0), PartState::Sent, true);
    let by_room = recorded(
        &data,
        &session(1),
        "recordings/room-1.ogg",
        PartState::Sent,
        true,
    );
    let kept = [
        recorded(&data, &session(2), &own(2), PartState::Sent, false),
        recorded(&data, &session(3), &own(3), PartState::Failed, true),
        recorded(&data, &session(4), &own(4), PartState::Missing, true),
        recorded(
            &data,
            &session(5),
            "recordings/room-5.ogg",
            PartState::Waiting,
            false,
        ),
        // Two records name it, and one of them waits.
        recorded(
            &data,
            &session(6),
            "recordings/shared.ogg",
            PartState::Sent,
            true,
        ),
        recorded(
            &data,
            &session(7),
            "recordings/shared.ogg",
            PartState::Pending,
            false,
        ),
    ];
    data.write("recordings/EG_1.json", "{}");
    data.write("recordings/foreign.ogg", "nobody's");
    let now = SystemTime::now();
    let never = StorageConfig::default();
    assert_eq!(data.store.tidy_recordings(&never, now).unwrap().deleted, 0);
    let later = StorageConfig {
        keep_recordings_days: 30,
        ..never
    };
    assert_eq!(data.store.tidy_recordings(&later, now).unwrap().deleted, 0);
    let all = StorageConfig {
        keep_recordings_days: 7,
        max_recordings_mb: 1,
        ..never
    };
    let tidied = data.store.tidy_recordings(&all, now).unwrap();
    assert_eq!((tidied.deleted, tidied.bytes), (2, 2_000_000));
    assert!(!sent.exists() && !by_room.exists());
    for file in kept {
        assert!(file.exists(), "{}", file.display());
    }
    for file in ["recordings/EG_1.json", "recordings/foreign.ogg"] {
        assert!(data.path(file).exists(), "{file}");
    }
    let record = data.store.read_record(&session_id(&session(0))).unwrap();
    assert!(record.timestamps.recording_deleted.is_some());
    assert_eq!(record.files.recording, Some(own(0)), "where it was");
    assert_eq!(
        data.files("processed_metadata").len(),
        5,
        "the archive stays"
    );
}

#[test]
fn a_recording_that_was_delivered_late_is_kept_as_long_as_any_other() {
    let data = DataFolder::new();
    let id = "session_20261121_100000_aaaaaa";
    let file = recorded(
        &data,
        id,
        &format!("recordings/{id}.ogg"),
        PartState::Sent,
        true,
    );
    let now = SystemTime::now();
    let path = format!("processed_metadata/metadata_{id}.json");
    let mut record = data.json(&path);
    let delivered = chrono::DateTime::<chrono::Utc>::from(now - DAY);
    record["timestamps"]["delivered"] = delivered.to_rfc3339().into();
    data.write(&path, record.to_string());
    let config = StorageConfig {
        keep_recordings_days: 7,
        ..StorageConfig::default()
    };
    for (days, deleted) in [(0, 0), (5, 0), (7, 1)] {
        let tidied = data.store.tidy_recordings(&config, now + DAY * days);
        assert_eq!(tidied.unwrap().deleted, deleted, "after {days} days");
    }
    assert!(!file.exists());
}
