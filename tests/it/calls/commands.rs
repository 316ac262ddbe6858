//! What the program says to the person at the terminal when something is not set, or set wrongly.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::SystemTime;

use serde_json::json;
use tokio::time::timeout;

use crate::support::openai::{Behaviour, FakeService};
use crate::support::world::{DEADLINE, World};

async fn run(mut command: tokio::process::Command) -> Output {
    timeout(DEADLINE, command.output())
        .await
        .expect("the program ends by itself")
        .expect("the program starts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_settings_end_the_start_with_a_sentence_that_names_them() {
    let world = World::new(json!([]), &[]).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("the port").to_string();
    std::fs::write(
        world.data().join("bad.toml"),
        "[voice.turn]\nmin_delay = 3\n",
    )
    .expect("a file");
    std::fs::write(world.data().join("broken.json"), "{").expect("a file");
    // The variable, its value (none: not set), and what the sentence has to name.
    let cases: &[(&str, Option<&str>, &[&str])] = &[
        ("LIVEKIT_URL", None, &["LIVEKIT_URL", "livekit.url"]),
        ("LIVEKIT_URL", Some("not an address"), &["LIVEKIT_URL"]),
        ("LIVEKIT_API_KEY", None, &["LIVEKIT_API_KEY"]),
        ("LIVEKIT_API_SECRET", None, &["LIVEKIT_API_SECRET"]),
        (
            "CRM_BASE_URL",
            Some("not an address"),
            &["CRM_BASE_URL", "crm.base_url"],
        ),
        (
            "VOICEBOT__WORKER__MAX_CALS",
            Some("1"),
            &["worker.max_cals", "max_calls"],
        ),
        (
            "VOICEBOT__WORKER__MAX_CALLS",
            Some("many"),
            &["worker.max_calls", "many"],
        ),
        (
            "VOICEBOT__WORKER__HTTP_BIND",
            Some(&taken),
            &["worker.http_bind", &taken],
        ),
        (
            "VOICEBOT__PROVIDERS__VENDOR",
            Some("openai"),
            &["OPENAI_API_KEY"],
        ),
        (
            "VOICEBOT__PROVIDERS__VENDOR",
            Some("abacus"),
            &["providers.vendor", "openai"],
        ),
        ("VOICEBOT__PROVIDERS__SCRIPT", None, &["providers.script"]),
        (
            "VOICEBOT__PROVIDERS__SCRIPT",
            Some("nowhere.json"),
            &["providers.script", "nowhere.json"],
        ),
        (
            "VOICEBOT__PROVIDERS__SCRIPT",
            Some("broken.json"),
            &["providers.script", "broken.json"],
        ),
        (
            "VOICEBOT__UPLOAD__PARALLEL",
            Some("0"),
            &["upload.parallel"],
        ),
        (
            "VOICEBOT__TOOLS__ENABLED",
            Some("[create_led]"),
            &["tools.enabled", "create_led"],
        ),
        (
            "VOICEBOT__DATA_DIR",
            Some("/dev/null/data"),
            &["/dev/null/data"],
        ),
        (
            "VOICEBOT__LOG__LEVEL",
            Some("voicebot=noisy"),
            &["log.level"],
        ),
        ("RUST_LOG", Some("voicebot=noisy"), &["RUST_LOG"]),
        ("VOICEBOT_CONFIG", Some("nowhere.toml"), &["nowhere.toml"]),
        (
            "VOICEBOT_CONFIG",
            Some("bad.toml"),
            &[
                "voice.turn.min_delay",
                "bad.toml",
                "min_endpointing_delay_ms",
            ],
        ),
    ];
    for (variable, value, names) in cases {
        let mut command = world.program(&["start"]);
        match value {
            Some(value) => command.env(variable, value),
            None => command.env_remove(variable),
        };
        let output = run(command).await;
        let said = String::from_utf8_lossy(&output.stderr);
        let case = format!("{variable}={value:?}: {said}");
        assert_eq!(output.status.code(), Some(1), "{case}");
        assert!(!said.contains("panicked"), "{case}");
        assert!(
            said.lines().any(|line| line.starts_with("voicebot: ")),
            "{case}"
        );
        for name in *names {
            assert!(said.contains(name), "{name} is not named by {case}");
        }
    }
    // The port is still ours: nothing else may have taken it meanwhile.
    drop(taken);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_says_what_is_usable_and_what_is_not() {
    let world = World::new(json!([]), &[]).await;
    let good = run(world.program(&["check"])).await;
    let said = String::from_utf8_lossy(&good.stdout);
    assert!(good.status.success(), "{said}");
    for part in [
        "data folder",
        "LiveKit",
        "CRM",
        "providers",
        "voice",
        "recognition",
        "persona",
    ] {
        assert!(
            said.contains(&format!("ok      {part}: ")),
            "{part}: {said}"
        );
    }

    let cases: &[(&str, &str, &str)] = &[
        ("LIVEKIT_API_SECRET", "another", "LIVEKIT_API_SECRET"),
        ("LIVEKIT_URL", "ws://127.0.0.1:1", "LIVEKIT_URL"),
        ("CRM_BASE_URL", "http://127.0.0.1:1", "CRM_BASE_URL"),
        (
            "VOICEBOT__PROVIDERS__SCRIPT",
            "nowhere.json",
            "providers.script",
        ),
        ("VOICEBOT__PROVIDERS__VENDOR", "openai", "OPENAI_API_KEY"),
    ];
    for (variable, value, named) in cases {
        let mut command = world.program(&["check"]);
        command.env(variable, value);
        let bad = run(command).await;
        let said = String::from_utf8_lossy(&bad.stdout);
        let failed: Vec<_> = said
            .lines()
            .filter(|line| line.starts_with("FAILED"))
            .collect();
        assert_eq!(bad.status.code(), Some(1), "{variable}: {said}");
        assert!(
            matches!(failed[..], [line] if line.contains(named)),
            "{variable}: {said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_changes_nothing_on_disk() {
    let world = World::new(json!([]), &[]).await;
    for data_dir in ["", "not/there/yet"] {
        let data_dir = world.data().join(data_dir);
        let before = everything_in(&world.data());
        let mut command = world.program(&["check"]);
        command.env("VOICEBOT__DATA_DIR", &data_dir);
        let output = run(command).await;
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        assert!(
            said.contains("5 of its folders are made at the start"),
            "{said}"
        );
        assert_eq!(everything_in(&world.data()), before, "{data_dir:?}");
    }
    // A file is where the folder should be.
    let mut command = world.program(&["check"]);
    command.env("VOICEBOT__DATA_DIR", world.data().join("script.json"));
    let output = run(command).await;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("FAILED  data folder: ") && said.contains("is no folder"),
        "{said}"
    );
}

/// Every file and folder, with its time.
fn everything_in(folder: &Path) -> Vec<(PathBuf, SystemTime)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder").flatten() {
        let meta = entry.metadata().expect("it is there");
        all.push((entry.path(), meta.modified().expect("a time")));
        if meta.is_dir() {
            all.extend(everything_in(&entry.path()));
        }
    }
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_hears_one_word_and_says_what_came() {
    let world = World::new(json!([]), &[]).await;
    let mp3 = include_bytes!("../../fixtures/cases/speech-as-mp3/speech.mp3");
    let wav = include_bytes!("../../fixtures/cases/speech-at-another-rate/stereo.wav");
    let cases: [(&'static str, &[u8], &str); 4] = [
        ("audio/mpeg", mp3, "FAILED  voice: "),
        ("audio/pcm", b"", "without any sound"),
        ("audio/wav", wav, "ok      voice: "),
        // The same server's recogniser answers with a sound, which is no transcript.
        ("audio/wav", wav, "FAILED  recognition: "),
    ];
    for (media_type, body, said) in cases {
        let service = FakeService::start(Behaviour::Answer {
            media_type,
            body: body.to_vec(),
            piece: 4_096,
        })
        .await;
        let mut command = world.program(&["check"]);
        command.env("VOICEBOT__PROVIDERS__VENDOR", "openai");
        command.env("OPENAI_BASE_URL", service.base_url());
        command.env("OPENAI_API_KEY", "sk-test");
        let output = run(command).await;
        let lines = String::from_utf8_lossy(&output.stdout);
        let line = lines.lines().find(|line| line.contains(said));
        let line = line.unwrap_or_else(|| panic!("{said} is missing: {lines}"));
        if media_type == "audio/mpeg" {
            assert!(line.contains("MP3"), "{line}");
        } else if said.starts_with("ok") {
            assert!(line.contains("WAV, 44100 Hz, 2 channels"), "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_stops_when_the_program_that_started_it_is_gone() {
    let world = World::new(json!([]), &[]).await;
    let mut worker = world
        .program(&["start", "--stop-with-stdin"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("the worker starts");
    // What a killed starter leaves behind: the other end of the pipe is closed.
    drop(worker.stdin.take());
    let status = timeout(DEADLINE, worker.wait())
        .await
        .expect("the worker ends by itself")
        .expect("its status");
    assert!(status.success(), "{status}");
}
