//! The copy of all calls in MongoDB: its content after faults. The destination is a table that
//! fails on demand; `tests/interop/mongodb` tests against the real server.

#![cfg(feature = "mongodb")]

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::data::{CALLER, DataFolder};
use tokio_util::sync::CancellationToken;
use voicebot::ledger::mongodb::{CallDocuments, Destination, Mirror, MirrorPass, PutError};

/// A destination that can be told to fail.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    sessions: BTreeMap<String, CallDocuments>,
    /// The value of `is_new` for each accepted call.
    puts: Vec<bool>,
    /// Number of calls that are accepted before it goes down.
    up_for: Option<usize>,
    /// Sessions whose id ends in this are refused.
    refuses: Option<&'static str>,
}

impl Destination for Table {
    async fn put(&self, call: CallDocuments, is_new: bool) -> Result<(), PutError> {
        let mut state = self.0.lock().unwrap();
        if state.up_for == Some(0) {
            return Err(PutError::Down("the server is away".to_owned()));
        }
        let id = call.session.get_str("_id").expect("an id").to_owned();
        if state.refuses.is_some_and(|ending| id.ends_with(ending)) {
            return Err(PutError::Refused("too large".to_owned()));
        }
        state.up_for = state.up_for.map(|calls| calls - 1);
        state.puts.push(is_new);
        state.sessions.insert(id, call);
        Ok(())
    }

    fn name(&self) -> &str {
        "table/voicebot"
    }
}

impl Table {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn puts(&self) -> usize {
        self.state().puts.len()
    }

    fn is_archived(&self, id: &str) -> bool {
        self.state().sessions[id]
            .session
            .get_bool("archived")
            .expect("a bool")
    }
}

fn id(number: usize) -> String {
    format!("session_20261121_100000_{number:06x}")
}

/// Creates `count` waiting calls from one record: only their number matters.
fn calls(data: &DataFolder, count: usize) {
    data.finished_call(&id(0), Some(CALLER));
    let mut record = data.json(&format!("call_metadata/metadata_{}.json", id(0)));
    for number in 1..count {
        record["session_id"] = id(number).into();
        let path = format!("call_metadata/metadata_{}.json", id(number));
        data.write(&path, record.to_string());
    }
}

fn archive(data: &DataFolder, id: &str) {
    let name = format!("metadata_{id}.json");
    fs::rename(
        data.path(&format!("call_metadata/{name}")),
        data.path(&format!("processed_metadata/{name}")),
    )
    .expect("it is moved");
}

fn mirror(data: &DataFolder, table: &Table) -> Mirror<Table> {
    Mirror::new(data.store.clone(), table.clone())
}

async fn pass(mirror: &mut Mirror<Table>) -> MirrorPass {
    mirror.pass().await.expect("the folders can be listed")
}

fn wrote(written: u64) -> MirrorPass {
    MirrorPass {
        written,
        ..MirrorPass::default()
    }
}

#[tokio::test]
async fn each_call_is_written_once_and_once_more_after_each_change() {
    let data = DataFolder::new();
    let table = Table::default();
    calls(&data, 3);
    // A running call is not copied.
    let running = data.running_call(&id(9), None);
    let mut mirror = mirror(&data, &table);
    assert_eq!(pass(&mut mirror).await, wrote(3));
    assert_eq!(pass(&mut mirror).await, wrote(0));

    let path = format!("call_metadata/metadata_{}.json", id(1));
    let mut record = data.json(&path);
    record["status"] = "uploading".into();
    data.write(&path, record.to_string());
    assert_eq!(pass(&mut mirror).await, wrote(1));
    let status = |id: &str| {
        let state = table.state();
        state.sessions[id]
            .session
            .get_str("status")
            .expect("a text")
            .to_owned()
    };
    assert_eq!(status(&id(1)), "uploading");

    archive(&data, &id(2));
    assert_eq!(pass(&mut mirror).await, wrote(1));
    assert!(table.is_archived(&id(2)) && !table.is_archived(&id(1)));
    drop(running);
    assert_eq!(pass(&mut mirror).await, wrote(0));
    assert_eq!(table.state().puts, [true, true, true, false, false]);
}

#[tokio::test]
async fn an_outage_in_the_middle_is_caught_up_and_costs_few_repetitions() {
    const CALLS: usize = 1200;
    let data = DataFolder::new();
    let table = Table::default();
    calls(&data, CALLS);
    table.state().up_for = Some(700);
    let mut first = mirror(&data, &table);
    assert_eq!(
        pass(&mut first).await.behind,
        CALLS as u64 - 500,
        "one batch"
    );
    let second = pass(&mut first).await;
    assert_eq!(second.down.as_deref(), Some("the server is away"));
    assert!(second.written <= 200 && second.behind >= 500, "{second:?}");
    assert_eq!(pass(&mut first).await.written, 0);

    // The worker was killed meanwhile.
    drop(first);
    table.state().up_for = None;
    let mut second = mirror(&data, &table);
    while pass(&mut second).await.behind > 0 {}
    assert_eq!(table.state().sessions.len(), CALLS);
    // Writes in progress when it went down may have succeeded without being stored in the progress.
    assert!(table.puts() <= CALLS + 8, "{} puts", table.puts());
}

#[tokio::test]
async fn a_lost_progress_file_causes_a_second_write_and_nothing_else() {
    let data = DataFolder::new();
    let table = Table::default();
    calls(&data, 5);
    pass(&mut mirror(&data, &table)).await;
    let before = table.state().sessions.clone();
    fs::remove_dir_all(data.path("call_metadata/.mongodb")).expect("it is there");
    assert_eq!(pass(&mut mirror(&data, &table)).await, wrote(5));
    assert_eq!(table.state().sessions, before);
    data.assert_no_journals_or_temporaries();
}

#[tokio::test]
async fn a_call_that_is_refused_or_cannot_be_read_holds_no_other_up() {
    let data = DataFolder::new();
    let table = Table::default();
    calls(&data, 30);
    data.write("call_metadata/metadata_broken.json", "{");
    table.state().refuses = Some("7");
    let mut mirror = mirror(&data, &table);
    let first = pass(&mut mirror).await;
    assert_eq!((first.written, first.refused, first.behind), (28, 3, 0));
    assert_eq!(pass(&mut mirror).await, wrote(0), "they are left alone");
    table.state().refuses = None;
    let path = format!("call_metadata/metadata_{}.json", id(7));
    let mut record = data.json(&path);
    record["note"] = "mended".into();
    data.write(&path, record.to_string());
    assert_eq!(pass(&mut mirror).await, wrote(1));
}

#[tokio::test]
async fn a_server_that_refuses_everything_is_taken_for_down() {
    let data = DataFolder::new();
    let table = Table::default();
    calls(&data, 40);
    table.state().refuses = Some("");
    let mut mirror = mirror(&data, &table);
    let refused = pass(&mut mirror).await;
    assert!(
        refused
            .down
            .is_some_and(|why| why.contains("no call at all"))
    );
    table.state().refuses = None;
    assert_eq!(pass(&mut mirror).await, wrote(40));
}

#[tokio::test]
async fn two_workers_on_one_folder_do_not_both_write() {
    let data = DataFolder::new();
    let table = Table::default();
    calls(&data, 2);
    let (mut one, mut other) = (mirror(&data, &table), mirror(&data, &table));
    assert_eq!(pass(&mut one).await, wrote(2));
    calls_after(&data, 2..4);
    let nothing = pass(&mut other).await;
    assert!(nothing.elsewhere && nothing.written == 0, "{nothing:?}");
    drop(one);
    assert_eq!(
        pass(&mut other).await,
        wrote(2),
        "it takes over where the first was"
    );
}

fn calls_after(data: &DataFolder, numbers: std::ops::Range<usize>) {
    for number in numbers {
        data.finished_call(&id(number), Some(CALLER));
    }
}

#[tokio::test(start_paused = true)]
async fn the_task_waits_out_a_long_outage_and_writes_the_last_call_before_it_ends() {
    let data = DataFolder::new();
    let table = Table::default();
    calls(&data, 3);
    table.state().up_for = Some(0);
    let stop = CancellationToken::new();
    let task = tokio::spawn(mirror(&data, &table).run(stop.clone()));
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(table.puts(), 0);
    table.state().up_for = None;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(table.puts(), 3);
    calls_after(&data, 3..4);
    stop.cancel();
    task.await.expect("it ends");
    assert_eq!(table.puts(), 4);
}
