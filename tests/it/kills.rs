//! Processes of calls are killed at random moments, hundreds of times: everything that the store
//! had confirmed is still on disk.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::data::{CALLER, DataFolder, at, call_start, hangup, session_id};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use voicebot::session::{self, CallMetadata, CallStatus, ConversationItem, Outcome, SessionEvent};
use voicebot::store::Store;

/// Kills in one run. Each has its own seed, which a failure names.
const KILLS: u64 = 300;
/// Names the data folder for [`calls_until_killed`], which is a process of its own.
const FOLDER: &str = "VOICEBOT_TEST_KILLS_FOLDER";
/// Its seed.
const SEED: &str = "VOICEBOT_TEST_KILLS_SEED";

/// Reports to the test what the store has confirmed. A line without the dot at its end was
/// truncated by the kill.
fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line} .").unwrap();
}

#[test]
#[ignore = "the other half of nothing_that_was_acknowledged_is_lost_whenever_a_call_is_killed"]
fn calls_until_killed() {
    let (Ok(folder), Ok(seed)) = (std::env::var(FOLDER), std::env::var(SEED)) else {
        return;
    };
    let seed: u64 = seed.parse().unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let store = Store::open(Path::new(&folder)).unwrap();
    let told = [SessionEvent::CallMetadata(CallMetadata {
        dialed_number: Some(CALLER.to_owned()),
        ..CallMetadata::default()
    })];
    for call in 0_u32.. {
        let id = format!(
            "session_20261121_{:02}{:02}00_{seed:06x}",
            call / 60 % 24,
            call % 60
        );
        store.begin(&call_start(&id), &told).unwrap();
        tell(&format!("begun {id}"));
        let (session, lock) = store.open_session(&session_id(&id)).unwrap();
        let mut items = 0;
        for _ in 0..random.random_range(0..12) {
            if random.random_bool(0.2) {
                let lead = json!({
                    "lead_id": format!("l{:08x}", random.random::<u32>()), "session_id": id, "name": "Asha Example",
                    "email": "", "company": "", "interest": "a pump", "created_at": "2026-11-21T10:00:20Z",
                });
                let lead = serde_json::from_value(lead).unwrap();
                tell(&format!(
                    "lead {id} {}",
                    store.save_lead(&session, lead).unwrap()
                ));
            } else {
                // Long enough that some lines span memory pages.
                let words = format!("word {items} {}", "x".repeat(random.random_range(0..3000)));
                session::lock(&session).commit_item(ConversationItem::user(words, at(1)));
                tell(&format!("item {id} {items}"));
                items += 1;
            }
        }
        session::lock(&session).set_outcome(hangup());
        store.finish(&session, lock).unwrap();
        tell(&format!("record {id}"));
    }
}

/// What the store has confirmed to one call's process.
#[derive(Debug, Default)]
struct Told {
    items: usize,
    leads: Vec<String>,
    record: bool,
}

/// Lets a process hold calls until it has reported a number of lines, kills it at a random moment
/// after that, and returns what it has reported.
fn kill_one(folder: &Path, seed: u64) -> BTreeMap<String, Told> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "kills::calls_until_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(FOLDER, folder)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let lines_before = random.random_range(1..24);
    let spins = random.random_range(0..200_000_u32);
    let mut told: BTreeMap<String, Told> = BTreeMap::new();
    let mut killed = false;
    let mut count = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["begun", id, "."] => drop(told.entry(id.to_owned()).or_default()),
            ["item", id, number, "."] => {
                told.get_mut(id).unwrap().items = number.parse::<usize>().unwrap() + 1
            }
            ["lead", id, path, "."] => told.get_mut(id).unwrap().leads.push(path.to_owned()),
            ["record", id, "."] => told.get_mut(id).unwrap().record = true,
            // Output of the test harness.
            _ => continue,
        }
        count += 1;
        if count >= lines_before && !killed {
            // A random moment of its next work.
            for spin in 0..spins {
                std::hint::black_box(spin);
            }
            child.kill().unwrap();
            killed = true;
        }
    }
    let status = child.wait().unwrap();
    assert!(killed && !status.success(), "seed {seed}: {status}");
    told
}

#[test]
fn nothing_that_was_acknowledged_is_lost_whenever_a_call_is_killed() {
    let data = DataFolder::new();
    let why = Outcome::recovered("killed", None);
    let mut call_ids = HashSet::new();
    let (mut recovered, mut items, mut leads) = (0, 0, 0);
    for seed in 0..KILLS {
        let told = kill_one(data.store.root(), seed);
        for orphan in data.store.orphans() {
            assert!(!orphan.alive, "seed {seed}: its process is dead");
            recovered += usize::from(
                data.store
                    .recover(&orphan.session_id, &why)
                    .unwrap()
                    .is_some(),
            );
        }
        for (id, told) in told {
            let context = format!("seed {seed}, {id}, {told:?}");
            let record = data
                .store
                .read_record(&session_id(&id))
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(record.other_party(), Some(CALLER), "{context}");
            if told.record {
                assert_eq!(
                    record.outcome.call_status,
                    CallStatus::Completed,
                    "{context}"
                );
            }
            let conversation = data.json(record.files.conversation.as_deref().unwrap());
            let said = conversation["conversation_items"].as_array().unwrap();
            // At most one more item, whose report was interrupted.
            assert!(
                (told.items..=told.items + 1).contains(&said.len()),
                "{context}"
            );
            for (number, item) in said.iter().enumerate() {
                let words = item["content"].as_str().unwrap();
                assert!(words.starts_with(&format!("word {number} ")), "{context}");
            }
            for lead in &told.leads {
                assert!(record.files.leads.contains(lead), "{context}");
            }
            assert!(
                record.files.leads.len() <= told.leads.len() + 1,
                "{context}"
            );
            for lead in &record.files.leads {
                assert_eq!(data.json(lead)["session_id"], Value::from(id.as_str()));
            }
            let call_id = record.call_id.expect("a call id");
            assert!(
                call_ids.insert(call_id),
                "{context}: its call id is another's"
            );
            items += told.items;
            leads += told.leads.len();
        }
    }
    assert_eq!(data.store.orphans(), []);
    println!(
        "{KILLS} kills, {} calls, {recovered} of them recovered, {items} items and {leads} leads acknowledged",
        call_ids.len()
    );
    assert!(
        recovered > 50 && items > 1000 && leads > 100,
        "the kills came at dull moments"
    );
}
