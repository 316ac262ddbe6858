//! A data folder with calls in it, for tests of what happens after a call.

use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde_json::Value;
use voicebot::session::{
    self, CallMetadata, CallStart, CallStatus, CloseReason, ConversationItem, Direction, Outcome,
    SessionId, SharedSession,
};
use voicebot::store::{JournalLock, Store};

/// The caller's number, from a range that is reserved for fiction.
pub const CALLER: &str = "+15550100123";

/// A data folder that is deleted after the test.
pub struct DataFolder {
    folder: tempfile::TempDir,
    pub store: Store,
}

impl DataFolder {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(folder.path()).expect("the data folder opens");
        Self { folder, store }
    }

    /// In memory if the system has such a folder, for tests that write thousands of files: syncs
    /// are then fast, and no test cuts the power.
    pub fn in_memory() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .expect("a temporary folder");
        let store = Store::open(folder.path()).expect("the data folder opens");
        Self { folder, store }
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    pub fn json(&self, relative: &str) -> Value {
        let path = self.path(relative);
        let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_slice(&text).expect("JSON")
    }

    pub fn write(&self, relative: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(relative), content).expect("the file can be written");
    }

    /// Copies an example record into the folder it belongs to.
    pub fn copy_fixture(&self, fixture: &str, relative: &str) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/records")
            .join(fixture);
        fs::copy(&from, self.path(relative))
            .unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    }

    /// Names of all files of a folder in order, including hidden ones; folders are left out.
    pub fn files(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(folder))
            .expect("the folder is there")
            .map(|entry| entry.expect("an entry"))
            .filter(|entry| entry.path().is_file())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// A running call that was answered.
    pub fn running_call(&self, id: &str, number: Option<&str>) -> (SharedSession, JournalLock) {
        let start = call_start(id);
        self.store.begin(&start, &[]).expect("the journal begins");
        let (session, lock) = self
            .store
            .open_session(&start.session_id)
            .expect("the session opens");
        {
            let mut session = session::lock(&session);
            session.set_call_metadata(CallMetadata {
                dialed_number: number.map(str::to_owned),
                caller_number: number.map(str::to_owned),
                campaign_id: Some("c1".to_owned()),
                voice_agent_id: Some("v1".to_owned()),
                client: Some("k1".to_owned()),
                ..CallMetadata::default()
            });
            session.set_answered(start.call_start);
            session.commit_item(ConversationItem::assistant("Hello, how can I help?", at(1)));
            session.commit_item(ConversationItem::user("I need a pump.", at(5)));
        }
        (session, lock)
    }

    /// A call that has ended normally. Returns its metadata file.
    pub fn finished_call(&self, id: &str, number: Option<&str>) -> PathBuf {
        let (session, lock) = self.running_call(id, number);
        session::lock(&session).set_outcome(hangup());
        self.store
            .finish(&session, lock)
            .expect("the record is written")
    }

    /// Checks that no journal, temporary file or claim is left.
    pub fn assert_nothing_left_over(&self) {
        self.assert_no_journals_or_temporaries();
        if self.path("call_metadata/.claims").exists() {
            assert_eq!(self.files("call_metadata/.claims"), Vec::<String>::new());
        }
    }

    /// Checks that no journal or temporary file is left; waiting records keep their lock files.
    pub fn assert_no_journals_or_temporaries(&self) {
        for folder in [
            "call_metadata",
            "processed_metadata",
            "conversations",
            "leads",
            "recordings",
        ] {
            let stray: Vec<String> = self
                .files(folder)
                .into_iter()
                .filter(|name| name.starts_with('.') || name.contains("journal"))
                .collect();
            assert!(stray.is_empty(), "{folder} has {stray:?}");
        }
    }
}

/// Ten in the morning plus `seconds`.
pub fn at(seconds: i64) -> DateTime<Utc> {
    "2026-11-21T10:00:00Z"
        .parse::<DateTime<Utc>>()
        .expect("a time")
        + chrono::TimeDelta::seconds(seconds)
}

pub fn session_id(id: &str) -> SessionId {
    id.parse().expect("a session id")
}

pub fn call_start(id: &str) -> CallStart {
    CallStart {
        session_id: session_id(id),
        job_id: format!("AJ_{id}"),
        room_name: format!("room-{id}"),
        room_sid: None,
        job_metadata: None,
        direction: Some(Direction::Inbound),
        call_start: at(0),
        agent_name: "sales".to_owned(),
        attributes: Default::default(),
    }
}

/// The caller hung up after a minute.
pub fn hangup() -> Outcome {
    Outcome {
        close_reason: CloseReason::ParticipantDisconnected,
        disconnect_reason: Some("CLIENT_INITIATED".to_owned()),
        call_status: CallStatus::Completed,
        error: None,
        call_end: Some(at(60)),
    }
}
