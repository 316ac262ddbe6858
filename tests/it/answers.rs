//! Answers of CRMs and of proxies in front of them: which are receipts, where the recording's URL
//! is, and what happens to the records when all requests are rejected.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::PathBuf;

use chrono::TimeDelta;
use serde_json::{Value, json};
use voicebot::settings::Secret;
use voicebot::upload::{self, FailedFilter, PassOptions, PassStats};

use crate::delivery::{ID, World, delivered, sound};
use crate::support::crm::{Answer, SIGNATURE};
use crate::support::data::{CALLER, at};

/// An example file from `tests/fixtures/cases`.
fn case(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cases");
    let path = folder.join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn case_text(name: &str) -> String {
    String::from_utf8(case(name)).expect("text")
}

fn raw(status: u16, body: &[u8]) -> Answer {
    Answer::Raw(status, Vec::new(), body.to_vec())
}

fn retrying() -> PassStats {
    PassStats {
        retrying: 1,
        ..PassStats::default()
    }
}

fn held_back(records: u64) -> PassStats {
    PassStats {
        held_back: records,
        ..PassStats::default()
    }
}

/// The only record that waits, as an operator sees it.
fn listed_error(world: &World) -> String {
    let listed = upload::list(&world.data.store).expect("the list");
    listed[0].last_error.clone().expect("what went wrong")
}

#[tokio::test]
async fn an_answer_200_that_says_no_is_no_receipt() {
    let answers = case_text("call-data-refused-with-200/answers.jsonl");
    assert_eq!(answers.lines().count(), 12);
    for answer in answers.lines() {
        let world = World::new().await;
        world.recorded_call(ID);
        world
            .crm
            .answer_uploads([raw(200, answer.as_bytes()), Answer::Accept]);
        world.crm.answer_call_data([raw(200, answer.as_bytes())]);
        // First the recording, then the call data.
        assert_eq!(world.pass().await, retrying(), "{answer}");
        assert!(listed_error(&world).contains("answered 200, but with"));
        world.advance(10);
        let stats = world.pass().await;
        assert_eq!(
            (stats.retrying, stats.recordings_uploaded),
            (1, 1),
            "{answer}"
        );
        assert!(!world.is_archived(ID), "{answer}");
        assert!(listed_error(&world).contains("answered 200, but with"));
        world.advance(20);
        assert_eq!(world.pass().await, delivered(0), "{answer}");
        world.data.assert_nothing_left_over();
    }
}

/// A line such as `HTTP 200 text/plain: OK` or `HTTP 201, empty, Location: https://…`.
fn answer_of(line: &str) -> Answer {
    let rest = line.strip_prefix("HTTP ").expect("HTTP");
    let status = rest[..3].parse().expect("a status");
    let mut headers = Vec::new();
    let mut body = "";
    if let Some((_, there)) = rest.split_once("Location: ") {
        headers.push(("location", there.to_owned()));
    } else if let Some((kind, said)) = rest[3..].split_once(": ") {
        headers.push(("content-type", kind.trim().to_owned()));
        body = said;
    }
    Answer::Raw(status, headers, body.as_bytes().to_vec())
}

#[tokio::test]
async fn an_upload_with_any_of_these_answers_is_done_and_the_call_follows_at_once() {
    const URL: &str = "https://crm.example.com/files/1.ogg";
    let answers = case_text("upload-answer-without-json/answers.txt");
    let mut cases: Vec<(String, Answer, Value)> = answers
        .lines()
        .map(|line| {
            let url = if line.contains(URL) {
                json!(URL)
            } else {
                Value::Null
            };
            (line.to_owned(), answer_of(line), url)
        })
        .collect();
    assert_eq!(cases.len(), 6);
    let gzip = vec![("content-encoding", "gzip".to_owned())];
    let marked = case("json-with-a-mark-in-front/answer.json");
    let packed = case("answer-in-gzip/answer.gz");
    let deflate = vec![("content-encoding", "deflate".to_owned())];
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice())
        .read_to_end(&mut plain)
        .expect("the case is gzip");
    let mut zlib = Vec::new();
    flate2::read::ZlibEncoder::new(plain.as_slice(), flate2::Compression::fast())
        .read_to_end(&mut zlib)
        .expect("it is packed in memory");
    for (what, answer, url) in [
        ("a mark in front", raw(200, &marked), json!(URL)),
        ("gzip", Answer::Raw(200, gzip, packed.clone()), json!(URL)),
        ("deflate", Answer::Raw(200, deflate, zlib), json!(URL)),
        (
            "gzip of which no header tells",
            raw(200, &packed),
            json!(URL),
        ),
        (
            "a mark in front of nothing",
            raw(200, b"\xEF\xBB\xBF"),
            Value::Null,
        ),
        (
            "JSON without the URL, which is in the header",
            Answer::Raw(
                201,
                vec![("location", "/files/1.ogg".to_owned())],
                b"{\"success\":true}".to_vec(),
            ),
            json!("/files/1.ogg"),
        ),
    ] {
        cases.push((what.to_owned(), answer, url));
    }
    for (what, answer, url) in cases {
        let world = World::new().await;
        world.recorded_call(ID);
        world.crm.answer_uploads([answer]);
        assert_eq!(world.pass().await, delivered(1), "{what}");
        let sent = &world.crm.call_data()[0].body["callDetails"];
        let (found, wanted) = (sent["recordingUrl"].as_str(), url.as_str());
        assert_eq!(found.is_some(), wanted.is_some(), "{what}: {found:?}");
        // A path is relative to the CRM's own host.
        assert!(
            found
                .unwrap_or_default()
                .ends_with(wanted.unwrap_or_default()),
            "{what}: {found:?}"
        );
        assert!(
            found.is_none_or(|url| url.starts_with("http")),
            "{what}: {found:?}"
        );
        assert_eq!(world.crm.uploads().len(), 1, "{what}");
        world.data.assert_nothing_left_over();
    }
}

#[tokio::test]
async fn call_data_answered_in_an_encoding_that_is_not_read_is_no_receipt_and_is_not_lost() {
    // {"success":true} as brotli has it, uncompressed, behind a header of its own.
    let mut brotli = b"\x8b\x07\x80".to_vec();
    brotli.extend_from_slice(b"{\"success\":true}\x03");
    for encoding in ["br", "zstd", "deflate", "compress"] {
        let headers = vec![("content-encoding", encoding.to_owned())];
        let answer = Answer::Raw(200, headers, brotli.clone());
        let world = World::new().await;
        world.recorded_call(ID);
        let key = format!("{ID}/call_data");
        world.crm.always_answer(&key, Some(answer));
        let stats = world.pass().await;
        assert_eq!((stats.recordings_uploaded, stats.retrying), (1, 1));
        let told = listed_error(&world);
        assert!(
            told.contains(&format!("{encoding:?}")) && told.contains("Accept-Encoding: gzip"),
            "{told}"
        );
        assert!(!world.is_archived(ID));
        world.crm.always_answer(&key, None);
        world.advance(700);
        assert_eq!(world.pass().await, delivered(0), "{encoding}");
        let keys: HashSet<String> = world.crm.call_data().into_iter().map(|r| r.key).collect();
        assert_eq!(keys, HashSet::from([key]));
        world.data.assert_nothing_left_over();
    }
}

#[tokio::test]
async fn a_recording_that_cannot_be_uploaded_delays_the_call_data_for_ten_minutes_and_follows() {
    // An unsupported content encoding, an HTML page, an empty answer, and a file that cannot be
    // read.
    let unreadable = Answer::Raw(
        200,
        vec![("content-encoding", "br".to_owned())],
        vec![0x0b, 0x02, 0x80, 0xff, 0x03],
    );
    for answer in [
        unreadable,
        Answer::Text(200, "<html>maintenance</html>"),
        Answer::Say(503, json!("busy")),
        Answer::Say(404, json!("not here")),
    ] {
        let world = World::new().await;
        world.recorded_call(ID);
        let key = format!("{ID}/recording");
        world.crm.always_answer(&key, Some(answer.clone()));
        let mut passes = 0;
        while world.crm.call_data().is_empty() {
            assert!(passes < 300, "{answer:?}: {}", world.waiting());
            passes += 1;
            world.advance(5);
            world.pass().await;
        }
        let waited = passes * 5;
        assert!((590..=620).contains(&waited), "{answer:?}: {waited} s");
        let call = &world.crm.call_data()[0];
        assert_eq!(call.key, format!("{ID}/call_data"));
        assert_eq!(call.body["callDetails"]["recordingUrl"], Value::Null);
        assert!(!world.is_archived(ID));

        world.crm.always_answer(&key, None);
        world.advance(700);
        let stats = world.pass().await;
        assert_eq!(
            (stats.files_processed, stats.recordings_uploaded),
            (1, 1),
            "{answer:?}"
        );
        assert_eq!(world.crm.uploads().last().unwrap().bytes, sound());
        let calls = world.crm.call_data();
        assert_eq!(calls.len(), 2, "{answer:?}");
        assert_eq!(calls[1].key, format!("{ID}/call_data_update"));
        assert!(calls[1].body["callDetails"]["recordingUrl"].is_string());
        world.data.assert_nothing_left_over();
    }
}

#[tokio::test]
async fn calls_go_on_while_the_crm_takes_no_recordings_at_all() {
    let mut world = World::new().await;
    // Longer than the test: once open, the breaker stays open.
    world.config.first_backoff_ms = 600_000;
    world.config.max_backoff_s = 600;
    world.config.breaker_max_pause_s = 600;
    let ids: Vec<String> = (0..30)
        .map(|number| format!("session_20261121_100000_{number:06x}"))
        .collect();
    for id in &ids {
        world.recorded_call(id);
        let key = format!("{id}/recording");
        world
            .crm
            .always_answer(&key, Some(Answer::Say(404, json!("no such path"))));
    }
    let uploader = world.uploader();
    let pass = || async { uploader.pass(PassOptions::default()).await.unwrap() };
    assert_eq!(pass().await, held_back(30));
    let tried = world.crm.uploads().len();
    // Requests that were in progress when it opened come to their ends.
    assert!((3..=3 * world.config.parallel).contains(&tried), "{tried}");
    world.advance(599);
    assert_eq!(pass().await.call_data_sent, 0);
    world.advance(2);
    assert_eq!(pass().await.call_data_sent, 30);
    assert_eq!(pass().await.call_data_sent, 0, "each call once");
    assert_eq!(world.crm.uploads().len(), tried, "the door stays shut");

    for id in &ids {
        world.crm.always_answer(&format!("{id}/recording"), None);
    }
    world.advance(600);
    let stats = world.pass().await;
    assert_eq!((stats.files_processed, stats.recordings_uploaded), (30, 30));
    let calls = world.crm.call_data();
    let updates = calls
        .iter()
        .filter(|call| call.key.ends_with("/call_data_update"));
    assert_eq!((calls.len(), updates.count()), (60, 30));
    world.data.assert_nothing_left_over();
}

#[tokio::test]
async fn rejected_credentials_for_ten_minutes_fail_no_record() {
    let token = case("token-expired-for-a-while/answer.json");
    for (status, body) in [
        (401, token.clone()),
        (400, token.clone()),
        (403, b"<html>blocked by the firewall</html>".to_vec()),
        (404, b"<html>nginx</html>".to_vec()),
        (407, Vec::new()),
        (302, Vec::new()),
    ] {
        let world = World::new().await;
        *world.now.lock().unwrap() = at(10_000);
        for number in 0..20 {
            let id = format!("session_20261121_100000_{number:06x}");
            match number % 2 {
                0 => world.recorded_call(&id),
                _ => drop(world.data.finished_call(&id, None)),
            }
        }
        world.crm.always_answer("session", Some(raw(status, &body)));
        let mut passes = 0;
        for _ in 0..10 {
            let stats = world.pass().await;
            assert_eq!(stats, held_back(20), "{status}");
            passes += 1;
            world.advance(60);
        }
        // Each pass is a new process with a closed breaker; its requests in progress come to their
        // ends.
        let requests = world.crm.uploads().len() + world.crm.call_data().len();
        assert!(requests <= passes * 4 * world.config.parallel, "{requests}");
        let error = listed_error(&world);
        assert!(error.contains(&format!("answered {status}")), "{error}");
        world.crm.always_answer("session", None);
        let stats = world.pass().await;
        assert_eq!(stats.files_processed, 20, "{status}: {stats:?}");
        assert_eq!(stats.recordings_uploaded, 10);
        world.data.assert_nothing_left_over();
    }
}

#[tokio::test]
async fn a_new_key_is_tried_at_once() {
    let mut world = World::new().await;
    world.recorded_call(ID);
    world
        .crm
        .always_answer(ID, Some(Answer::Say(401, json!("token expired"))));
    assert_eq!(world.pass().await, held_back(1));
    assert!(listed_error(&world).contains("CRM_TOKEN"));
    let record = world.waiting();
    assert_eq!(
        record["uploads"]["recording"]["attempts"], 0,
        "it is no attempt of the record's"
    );

    world.crm.always_answer(ID, None);
    world.secrets.token = Some(Secret::new("new"));
    assert_eq!(world.pass().await, delivered(1), "without any wait");
    let authorization = world.crm.call_data()[0].authorization.clone();
    assert_eq!(authorization.as_deref(), Some("Bearer new"));
}

#[tokio::test]
async fn a_record_that_alone_is_rejected_for_an_hour_fails_and_blocks_no_other() {
    let world = World::new().await;
    let bad = "session_20261121_090000_000000";
    world.data.finished_call(bad, Some(CALLER));
    world.crm.always_answer(
        bad,
        Some(Answer::Text(403, "<html>this looks like an attack</html>")),
    );
    let started = *world.now.lock().unwrap();
    let mut others = 0;
    while upload::failed(&world.data.store, &FailedFilter::default())
        .unwrap()
        .is_empty()
    {
        assert!(others < 60);
        let id = format!("session_20261121_100000_{others:06x}");
        world.data.finished_call(&id, Some(CALLER));
        others += 1;
        // Within one process, other records go first.
        let uploader = world.uploader();
        uploader.pass(PassOptions::default()).await.unwrap();
        assert!(world.is_archived(&id), "{id}");
        world.advance(300);
        uploader.pass(PassOptions::default()).await.unwrap();
    }
    let took = *world.now.lock().unwrap() - started;
    assert!(took >= TimeDelta::minutes(55), "{took}");
    let error = listed_error(&world);
    assert!(
        error.contains("while the CRM took other calls") && error.contains("answered 403"),
        "{error}"
    );
}

/// The status and the `Location` of a raw HTTP answer.
fn redirect_of(text: &str) -> (u16, String) {
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let location = text
        .lines()
        .find_map(|line| line.strip_prefix("Location: "));
    (
        status.expect("a status"),
        location.expect("a location").to_owned(),
    )
}

#[tokio::test]
async fn a_redirect_that_keeps_the_method_is_followed_on_the_same_host() {
    let (status, there) = redirect_of(&case_text("redirect-that-keeps-the-method/answer.http"));
    assert_eq!((status, there.as_str()), (308, "/v2/call-data"));
    let mut world = World::new().await;
    world.signature_header = SIGNATURE;
    world.secrets.signing = Some(Secret::new("s3cret"));
    world.recorded_call(ID);
    let to =
        |status, there: &str| Answer::Raw(status, vec![("location", there.to_owned())], Vec::new());
    world.crm.answer_uploads([to(307, "/v2/upload")]);
    world.crm.answer_call_data([to(status, &there)]);
    assert_eq!(world.pass().await, delivered(1));
    let uploads = world.crm.uploads();
    assert_eq!(uploads.len(), 2);
    assert_eq!(uploads[1].bytes, sound(), "from its beginning");
    assert_eq!(uploads[1].authorization, uploads[0].authorization);
    assert_ne!(
        uploads[1].signature, uploads[0].signature,
        "the path is signed"
    );
    let calls = world.crm.call_data();
    assert_eq!((calls.len(), &calls[0].body), (2, &calls[1].body));
    world.data.assert_nothing_left_over();

    // Redirects to another host, in a loop, or with a status that drops the body: the records wait,
    // and the error names the target.
    for (status, there, said) in [
        (
            308,
            "https://other.example.com/call-data",
            "other.example.com",
        ),
        (301, "/v2/call-data", "crm.base_url"),
        (307, "/api/public/call-data", "3 redirects"),
    ] {
        let world = World::new().await;
        world.data.finished_call(ID, Some(CALLER));
        world.crm.always_answer(ID, Some(to(status, there)));
        assert_eq!(world.pass().await, held_back(1), "{there}");
        let error = listed_error(&world);
        assert!(
            error.contains(said) && error.contains("crm.base_url"),
            "{error}"
        );
        world.crm.always_answer(ID, None);
        assert_eq!(world.pass().await, delivered(0), "{there}");
    }
}

#[tokio::test]
async fn failed_records_can_be_retried_all_at_once_or_by_filter() {
    let world = World::new().await;
    *world.now.lock().unwrap() = at(10_000);
    for (number, caller) in [(0, CALLER), (1, CALLER), (2, "+15550100999")] {
        let id = format!("session_20261121_100000_{number:06x}");
        world.data.finished_call(&id, Some(caller));
    }
    world.data.finished_call(ID, Some(CALLER));
    let refused = || Answer::Say(422, json!({ "message": "campaignId is not known" }));
    world.crm.answer_call_data([
        refused(),
        refused(),
        refused(),
        Answer::Text(413, "too large"),
    ]);
    let stats = world.pass().await;
    assert_eq!(stats.failed, 4, "{stats:?}");

    let of = |filter: &FailedFilter| upload::failed(&world.data.store, filter).unwrap().len();
    let filter = FailedFilter::default;
    for (filter, expected) in [
        (filter(), 4),
        (
            FailedFilter {
                number: Some("0999".to_owned()),
                ..filter()
            },
            1,
        ),
        (
            FailedFilter {
                error: Some("Answered 413".to_owned()),
                ..filter()
            },
            1,
        ),
        (
            FailedFilter {
                campaign: Some("c1".to_owned()),
                ..filter()
            },
            4,
        ),
        (
            FailedFilter {
                campaign: Some("c2".to_owned()),
                ..filter()
            },
            0,
        ),
        (
            FailedFilter {
                since: Some(at(-5)),
                ..filter()
            },
            4,
        ),
        (
            FailedFilter {
                since: Some(at(5)),
                ..filter()
            },
            0,
        ),
    ] {
        assert_eq!(of(&filter), expected, "{filter:?}");
    }

    let run = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_voicebot"));
        command
            .args(["uploads", "retry", "--all-failed"])
            .args(arguments)
            .current_dir(world.data.path(""))
            .env("VOICEBOT__DATA_DIR", world.data.path(""))
            .env("CRM_BASE_URL", world.crm.base_url())
            .env("RUST_LOG", "off")
            .env_remove("LIVEKIT_URL")
            .env_remove("VOICEBOT_CONFIG");
        async move {
            let output = command.output().await.expect("the program runs");
            assert_eq!(
                String::from_utf8_lossy(&output.stderr),
                "",
                "no bar outside a terminal"
            );
            let said = String::from_utf8(output.stdout).expect("text");
            (output.status.success(), said)
        }
    };
    let (well, said) = run(&["--number", "0999", "--dry-run"]).await;
    assert!(
        well && said.contains("1 records would be tried again"),
        "{said}"
    );
    assert_eq!(of(&filter()), 4, "nothing has changed");
    let (well, said) = run(&["--number", "0999"]).await;
    assert!(
        well && said.contains("1 records tried again: 1 delivered"),
        "{said}"
    );
    assert_eq!(of(&filter()), 3);
    world.crm.always_answer(ID, Some(refused()));
    let (well, said) = run(&["--json"]).await;
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert!(!well, "one was refused again");
    assert_eq!(said["tried_again"], 3);
    assert_eq!(
        (&said["stats"]["files_processed"], &said["stats"]["failed"]),
        (&json!(2), &json!(1))
    );
    let keys: HashSet<String> = world
        .crm
        .call_data()
        .into_iter()
        .filter(|call| call.accepted)
        .map(|call| call.key)
        .collect();
    assert_eq!(keys.len(), 3);
}
