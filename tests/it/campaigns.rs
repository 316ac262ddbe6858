//! Campaigns: lists that are worked through by `voicebot campaign`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Output, Stdio};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::world::{DEADLINE, World, eventually};

/// How often the dialler is killed.
const KILLS: u64 = 12;
/// Numbers that end in 0001 and a code fail with it at once.
const OUTCOMES: [(&str, &str); 6] = [
    ("486", "busy"),
    ("603", "declined"),
    ("480", "no_answer"),
    ("404", "invalid_number"),
    ("503", "trunk_failed"),
    ("488", "failed"),
];

async fn campaign(world: &World, arguments: &[&str]) -> Output {
    let arguments = [&["campaign"], arguments].concat();
    let output = world.program(&arguments).output();
    let output = timeout(DEADLINE, output).await.expect("it ends by itself");
    output.expect("it starts")
}

/// What a command prints that does what it was asked for.
async fn done(world: &World, arguments: &[&str]) -> String {
    let output = campaign(world, arguments).await;
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {log}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The sentence of a command that does not.
async fn refused(world: &World, arguments: &[&str]) -> String {
    let output = campaign(world, arguments).await;
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn write(world: &World, name: &str, text: &str) {
    fs::write(world.data().join(name), text).expect("a file");
}

fn journal(world: &World, name: &str) -> Vec<Value> {
    let path = world
        .data()
        .join("campaigns")
        .join(name)
        .join("journal.jsonl");
    let text = fs::read_to_string(path).expect("the journal");
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// Lead and number of the attempt of an event.
fn attempt_of(event: &Value) -> (u64, u64) {
    let number = |key: &str| event[key].as_u64().expect("a number");
    (number("lead"), number("attempt"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialler_that_is_killed_again_and_again_makes_each_attempt_once() {
    const LEADS: usize = 24;
    let settings = [
        ("VOICEBOT__DIAL__TRUNK_ID", "ST_test"),
        ("VOICEBOT__WORKER__MAX_CALLS", "8"),
    ];
    let world = World::new(json!([]), &settings).await;
    let worker = world.worker().await;
    // Nobody is called twice, unless it is not known whether they were called once.
    write(
        &world,
        "pumps.toml",
        "name = \"pumps\"\ntimezone = \"Asia/Kolkata\"\nwindow.preset = \"any-time\"\nconcurrency = 3\n\
         calls_per_second = 20\nslots = 8\nbreaker.share = 1.0\nbreaker.attempts = 1000\n\
         [retry]\nattempts = 100\nattempts_per_day = 100\nbusy = []\nno_answer = []\ntrunk_failed = []\nfailed = []\n\
         lost = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]\n",
    );
    let mut list = String::from("phone,name,lead_id\n");
    for lead in 0..LEADS {
        let (code, _) = OUTCOMES[lead % OUTCOMES.len()];
        list += &format!("+1{}0001{code},Lead {lead},L-{lead}\n", 200 + lead);
    }
    write(&world, "list.csv", &list);
    done(&world, &["create", "pumps.toml"]).await;
    done(&world, &["import", "pumps", "list.csv"]).await;
    done(&world, &["start", "pumps"]).await;
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..KILLS {
        let before = journal(&world, "pumps").len();
        let more = random.random_range(1..5);
        let mut dialler = world
            .program(&["campaign", "run", "pumps"])
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        // It may also come to the end of the list.
        eventually("events of the campaign", async || {
            let has_ended = dialler.try_wait().expect("it is watched").is_some();
            let has_more = journal(&world, "pumps").len() >= before + more;
            (has_ended || has_more).then_some(())
        })
        .await;
        for spin in 0..random.random_range(0..2_000_000_u32) {
            std::hint::black_box(spin);
        }
        let _ = dialler.start_kill();
        dialler.wait().await.expect("it has ended");
    }
    // Two at once: one stands by.
    let (one, other) = tokio::join!(
        done(&world, &["run", "pumps"]),
        done(&world, &["run", "pumps"])
    );
    assert!(one.contains("finished"), "{one}");
    assert!(other.contains("finished"), "{other}");

    let events = journal(&world, "pumps");
    let of = |kind: &'static str| events.iter().filter(move |event| event["event"] == *kind);
    let started: Vec<_> = of("attempt_started").map(attempt_of).collect();
    let unique: BTreeSet<_> = started.iter().copied().collect();
    assert_eq!(unique.len(), started.len(), "an attempt is begun twice");
    let ended: BTreeMap<_, _> = of("attempt_ended")
        .map(|event| (attempt_of(event), event["outcome"].clone()))
        .collect();
    let ended_attempts: BTreeSet<_> = ended.keys().copied().collect();
    assert_eq!(ended_attempts, unique, "each attempt has its end");
    let called: BTreeSet<String> = ended
        .iter()
        .filter(|(_, outcome)| !matches!(outcome.as_str(), Some("lost" | "not_placed")))
        .map(|((lead, attempt), _)| format!("campaign-pumps-{lead}-{attempt}"))
        .collect();
    assert_eq!(called.len(), LEADS, "each lead is called once");
    let records = world.delivered(LEADS).await;
    let rooms: BTreeSet<String> = records
        .iter()
        .map(|call| {
            call.record["room"]["name"]
                .as_str()
                .expect("a room")
                .to_owned()
        })
        .collect();
    assert_eq!(rooms, called, "each call is the one of its attempt");
    for call in &records {
        let room = call.record["room"]["name"].as_str().expect("a room");
        assert_eq!(call.call["attemptId"], room);
        assert_eq!(call.call["campaign"], "pumps");
        let lead = call.call["leadId"].as_str().expect("a lead");
        let index: usize = lead["L-".len()..].parse().expect("a number");
        let (code, outcome) = OUTCOMES[index % OUTCOMES.len()];
        assert_eq!(call.record["dial"]["outcome"], outcome, "{lead}");
        let number = format!("+1{}0001{code}", 200 + index);
        assert_eq!(call.record["dialed_number"], number);
        assert_eq!(
            call.record["context"]["dispatch"]["metadata"]["lead"]["name"],
            format!("Lead {index}")
        );
    }
    let exported = done(&world, &["export", "pumps"]).await;
    assert_eq!(exported.lines().count(), LEADS + 1);
    assert!(
        exported.contains("+12000001486,L-0,exhausted,"),
        "{exported}"
    );
    println!(
        "{KILLS} kills, {} attempts for {LEADS} leads",
        started.len()
    );
    world.nothing_is_left(worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_answered_with_a_sentence_and_nobody_is_called() {
    let world = World::new(json!([]), &[]).await;
    let good = "name = \"pumps\"\ntimezone = \"UTC\"\nwindow.preset = \"any-time\"\n";
    for (text, word) in [
        (good.to_owned(), "dial.trunk_id"),
        (
            format!("{good}trunk_id = \"ST_1\"\npersona = \"nobody\"\n"),
            "no persona \"nobody\"",
        ),
        (
            format!("{good}trunk_id = \"ST_1\"\nringing_timeout_s = 600\n"),
            "ringing_timeout_s",
        ),
        (
            format!("{good}trunk_id = \"ST_1\"\ncaller_ids = [\"x\"]\n"),
            "caller_ids",
        ),
        (
            "name = \"pumps\"\ntimezone = \"UTC\"\ntrunk_id = \"ST_1\"\n".to_owned(),
            "window",
        ),
    ] {
        write(&world, "c.toml", &text);
        let said = refused(&world, &["create", "c.toml"]).await;
        assert!(said.contains(word), "{said}");
    }
    let said = refused(&world, &["import", "pumps", "list.csv"]).await;
    assert!(said.contains("no campaign pumps"), "{said}");
    write(&world, "c.toml", &format!("{good}trunk_id = \"ST_1\"\n"));
    let said = done(&world, &["create", "c.toml"]).await;
    assert!(said.contains("Mon 00:00-24:00"), "{said}");
    assert!(
        refused(&world, &["create", "c.toml"])
            .await
            .contains("already")
    );

    write(&world, "wrong.csv", "name,age\nAsha,5\n");
    let said = refused(&world, &["import", "pumps", "wrong.csv"]).await;
    assert!(said.contains("--number-column"), "{said}");
    // The keys of the case are numbers as they are written.
    let case = include_str!("../fixtures/cases/numbers-of-the-telephone/numbers.json");
    let forms: serde_json::Map<String, Value> = serde_json::from_str(case).expect("JSON");
    let leads: Vec<Value> = forms.keys().map(|form| json!({ "phone": form })).collect();
    write(&world, "forms.json", &Value::from(leads).to_string());
    let said = done(&world, &["import", "pumps", "forms.json", "--json"]).await;
    let report: Value = serde_json::from_str(&said).expect("JSON");
    let count = |key: &str| report[key].as_u64().expect("a count") as usize;
    assert_eq!(
        count("imported") + count("refused"),
        forms.len(),
        "{report}"
    );
    assert!(count("imported") >= 2, "{report}");
    assert!(said.contains("call.country_code"), "{said}");

    let mut run = world.program(&["campaign", "run", "pumps"]);
    let output = run.env_remove("LIVEKIT_API_SECRET").output();
    let output = timeout(DEADLINE, output)
        .await
        .expect("it ends")
        .expect("it starts");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("LIVEKIT_API_SECRET is not set"), "{said}");
    assert!(
        refused(&world, &["pause", "pumps"])
            .await
            .contains("start it first")
    );

    // Everybody in the list is never to be called.
    let exported = done(&world, &["export", "pumps", "--json"]).await;
    for line in exported.lines() {
        let lead: Value = serde_json::from_str(line).expect("JSON");
        let number = lead["number"].as_str().expect("a number");
        done(&world, &["do-not-call", "add", number]).await;
    }
    done(&world, &["start", "pumps"]).await;
    let said = done(&world, &["run", "pumps"]).await;
    assert!(said.contains("finished"), "{said}");
    let shown: Value =
        serde_json::from_str(&done(&world, &["show", "pumps", "--json"]).await).expect("JSON");
    let all = count("imported");
    assert_eq!(shown["progress"]["do_not_call"], all, "{shown}");
    assert_eq!(shown["progress"]["outcomes"], json!({}));
    assert_eq!(world.room_names(), [""; 0]);
    assert!(done(&world, &["list"]).await.contains("pumps: running"));
    done(&world, &["stop", "pumps"]).await;
    let said = refused(&world, &["resume", "pumps"]).await;
    assert!(said.contains("for good"), "{said}");
}
