//! The operator's page over real sockets: what it tells, and each request that nobody should make.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use voicebot::page::{self, Access, PageConfig, PageParts};
use voicebot::recording::RecordingConfig;
use voicebot::recording::resolve::RecordingResolver;
use voicebot::settings::Secret;
use voicebot::store::StorageConfig;
use voicebot::worker::{HttpServer, WorkerStatus};

use crate::support::data::{CALLER, DataFolder};

const TOKEN: &str = "a-token-of-this-test-0123456789";
const DEADLINE: Duration = Duration::from_secs(30);
const FIRST: &str = "session_20261121_100000_aaaaaa";
const SECOND: &str = "session_20261121_110000_bbbbbb";

struct Site {
    address: SocketAddr,
    data: DataFolder,
    notices: mpsc::Receiver<()>,
    stop: CancellationToken,
    _status: watch::Sender<WorkerStatus>,
}

impl Site {
    async fn open(data: DataFolder, token: Option<&str>, config: PageConfig) -> Self {
        let http = HttpServer::bind("127.0.0.1:0".parse().expect("an address"))
            .await
            .expect("a free port");
        let address = http.address();
        let access = Access::new(address, token.map(Secret::new)).expect("the token is long");
        let status = watch::Sender::new(WorkerStatus {
            agent_name: "sales".to_owned(),
            worker_id: Some("AW_1".to_owned()),
            connection_problem: None,
            draining: false,
            active_jobs: 1,
            inherited_calls: 0,
            disk_problem: None,
            load: 0.1,
        });
        let (notify, notices) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let store = data.store.clone();
        let parts = PageParts {
            config,
            resolver: RecordingResolver::new(store.clone(), RecordingConfig::default(), None),
            store,
            status: status.subscribe(),
            slots: 10,
            storage: StorageConfig::default(),
            livekit_host: "livekit.example.com".to_owned(),
            crm: None,
            notify,
        };
        let router = page::router(access, parts, stop.clone());
        tokio::spawn(http.serve(status.subscribe(), None, router, stop.clone()));
        Self {
            address,
            data,
            notices,
            stop,
            _status: status,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn json(&self, path: &str) -> Value {
        let answer = reqwest::get(self.url(path)).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json().await.expect("JSON")
    }

    /// Sends bytes as they are and gives back what comes until the server closes.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("connected");
        // The server may close before it has read all.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let read = timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
        let _ = read.expect("the server closes");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn two_calls() -> DataFolder {
    let data = DataFolder::new();
    data.finished_call(FIRST, Some(CALLER));
    data.finished_call(SECOND, Some("+15550100177"));
    data
}

#[tokio::test]
async fn each_request_that_nobody_should_make_is_refused() {
    let data = two_calls();
    data.write("recordings/secret.ogg", b"OggS");
    let site = Site::open(data, Some(TOKEN), PageConfig::default()).await;
    let http = reqwest::Client::new();
    let wrong = "Bearer a-token-of-another-test-012345";
    let right = format!("Bearer {TOKEN}");
    let foreign = [("origin", "https://example.com")];
    let embedded = [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "no-cors"),
    ];
    type Lines<'a> = &'a [(&'a str, &'a str)];
    let retry = format!("/page/api/calls/{FIRST}/retry");
    let one = format!("/page/api/calls/{FIRST}");
    let sound = format!("/page/api/calls/{FIRST}/recording");
    let with_wrong = [("authorization", wrong)];
    let with = [("authorization", right.as_str())];
    let with_foreign = [("authorization", right.as_str()), foreign[0]];
    let cases: Vec<(Method, &str, Lines<'_>, u16)> = vec![
        // No token.
        (Method::GET, "/page/api/about", &[], 401),
        (Method::GET, "/page/api/live", &[], 401),
        (Method::GET, "/page/api/calls", &[], 401),
        (Method::GET, &one, &[], 401),
        (Method::GET, &sound, &[], 401),
        (Method::GET, "/page/api/queue", &[], 401),
        (Method::GET, "/page/api/worker", &[], 401),
        (Method::POST, &retry, &[], 401),
        (Method::GET, "/page/api/nothing", &[], 401),
        // A wrong one.
        (Method::GET, "/page/api/calls", &with_wrong, 401),
        (Method::POST, &retry, &with_wrong, 401),
        (
            Method::GET,
            "/page/api/calls?token=a-token-of-this-test-0123456789",
            &[],
            401,
        ),
        (
            Method::GET,
            "/page/api/calls",
            &[("cookie", "voicebot_page=1")],
            401,
        ),
        // The page of another site.
        (Method::POST, &retry, &with_foreign, 403),
        (Method::POST, "/page/api/sign-in", &foreign, 403),
        (Method::GET, "/page/api/calls", &foreign, 403),
        (Method::GET, &sound, &embedded, 403),
        (Method::GET, "/page/main.js", &embedded, 403),
        // Nothing there, and ways out of the folder.
        (Method::GET, "/page/nothing.js", &[], 404),
        (Method::GET, "/page/..%2f..%2fetc%2fpasswd", &[], 404),
        (
            Method::GET,
            "/page/api/calls/..%2f..%2fetc%2fpasswd",
            &with,
            404,
        ),
        (
            Method::GET,
            "/page/api/calls/..%2frecordings%2fsecret.ogg/recording",
            &with,
            404,
        ),
        (
            Method::GET,
            "/page/api/calls/%2fetc%2fpasswd/recording",
            &with,
            404,
        ),
        (
            Method::POST,
            "/page/api/calls/..%2fsecret/retry",
            &with,
            404,
        ),
        (
            Method::POST,
            "/page/api/calls/session_20261121_100000_ffffff/retry",
            &with,
            404,
        ),
        // What the page cannot do.
        (Method::DELETE, &one, &with, 405),
        (Method::PUT, &retry, &with, 405),
        (Method::GET, &retry, &with, 405),
        (Method::POST, "/page/api/calls", &with, 405),
        // What cannot be understood.
        (Method::GET, "/page/api/calls?after=nonsense", &with, 400),
        (Method::GET, "/page/api/calls?outcome=nonsense", &with, 400),
        (Method::GET, "/page/api/calls?from=yesterday", &with, 400),
        (Method::GET, "/page/api/queue?skip=-1", &with, 400),
        // And what is allowed.
        (Method::GET, "/page/api/calls", &with, 200),
        (Method::GET, "/page/", &[], 200),
        (Method::GET, "/healthz", &[], 200),
    ];
    for (method, path, lines, expected) in cases {
        let mut request = http.request(method.clone(), site.url(path));
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.expect("an answer");
        let status = answer.status().as_u16();
        let headers = answer.headers().clone();
        let text = answer.text().await.expect("a body");
        assert_eq!(status, expected, "{method} {path} {lines:?}: {text}");
        assert!(
            !text.contains(TOKEN) && !text.contains("root:"),
            "{path}: {text}"
        );
        if path.starts_with("/page") {
            let csp = headers["content-security-policy"].to_str().expect("text");
            assert!(
                csp.contains("default-src 'none'") && !csp.contains("unsafe"),
                "{csp}"
            );
            assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
            assert_eq!(headers["cache-control"], "no-store", "{path}");
        }
    }
    let waiting = site.data.files("call_metadata");
    assert_eq!(waiting.len(), 2, "nothing was changed: {waiting:?}");
}

#[tokio::test]
async fn who_signs_in_sees_the_page_until_signing_out() {
    let site = Site::open(two_calls(), Some(TOKEN), PageConfig::default()).await;
    let http = reqwest::Client::new();
    let sign_in = async |body: Vec<u8>| {
        let request = http.post(site.url("/page/api/sign-in")).body(body);
        request.send().await.expect("an answer")
    };
    let wrong = json!({ "token": "another" }).to_string().into_bytes();
    assert_eq!(sign_in(wrong).await.status(), 401);
    assert_eq!(sign_in(b"{}".to_vec()).await.status(), 400);
    let huge = sign_in(vec![b'x'; 4_000]).await;
    assert_eq!(huge.status(), 413);
    let right = json!({ "token": TOKEN }).to_string().into_bytes();
    let answer = sign_in(right).await;
    assert_eq!(answer.status(), 204);
    let cookie = answer.headers()["set-cookie"]
        .to_str()
        .expect("text")
        .to_owned();
    for word in ["HttpOnly", "SameSite=Strict", "Path=/page"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    assert!(!cookie.contains(TOKEN));
    let get = http
        .get(site.url("/page/api/calls"))
        .header("cookie", &cookie);
    assert_eq!(get.send().await.expect("an answer").status(), 200);
    let out = http
        .post(site.url("/page/api/sign-out"))
        .header("cookie", &cookie);
    let out = out.send().await.expect("an answer");
    assert!(
        out.headers()["set-cookie"]
            .to_str()
            .expect("text")
            .contains("Max-Age=0")
    );
}

#[tokio::test]
async fn without_a_token_only_this_machine_is_answered() {
    let site = Site::open(two_calls(), None, PageConfig::default()).await;
    for (host, expected) in [
        ("localhost:1", "200"),
        ("127.0.0.1", "200"),
        ("rebound.example.com", "403"),
        ("10.0.0.7:8081", "403"),
    ] {
        let request =
            format!("GET /page/api/calls HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = site.raw(request.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected}")),
            "{host}: {answer}"
        );
    }
    // Probes come under any name, and a browser is led to the page.
    let answer = site
        .raw(b"GET /healthz HTTP/1.1\r\nHost: 10.0.0.7:8081\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = site
        .raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        answer.to_lowercase().contains("location: /page/"),
        "{answer}"
    );
    assert_eq!(
        reqwest::get(site.url("/"))
            .await
            .expect("an answer")
            .text()
            .await
            .expect("text"),
        "OK"
    );
}

#[tokio::test]
async fn heads_without_end_and_connections_beyond_the_limit_are_cut_off() {
    let site = Site::open(two_calls(), None, PageConfig::default()).await;
    let long = format!(
        "GET /page/ HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    let answer = site.raw(long.as_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    let many: String = (0..500).map(|n| format!("X-{n}: 1\r\n")).collect();
    let many = format!("GET /page/ HTTP/1.1\r\nHost: localhost\r\n{many}\r\n");
    let answer = site.raw(many.as_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );

    // Those beyond the limit are closed at once; nobody of them has sent a byte.
    let mut open = Vec::new();
    for _ in 0..400 {
        open.push(TcpStream::connect(site.address).await.expect("connected"));
    }
    let mut closed = 0;
    for stream in &mut open[200..] {
        let mut byte = [0];
        let read = timeout(DEADLINE, stream.read(&mut byte))
            .await
            .expect("it is closed");
        closed += usize::from(matches!(read, Ok(0) | Err(_)));
    }
    assert_eq!(closed, 200);
    drop(open);
    let answered = crate::support::world::eventually("the page answers again", async || {
        reqwest::get(site.url("/page/")).await.ok()
    });
    assert_eq!(answered.await.status(), 200);
}

#[tokio::test]
async fn finished_calls_come_a_page_at_a_time_and_are_found_by_what_is_known_of_them() {
    let data = DataFolder::in_memory();
    for n in 0..60 {
        let id = format!("session_20261120_1000{n:02}_aaaaaa");
        data.finished_call(&id, Some(&format!("+155501{n:05}")));
        let record = format!("call_metadata/metadata_{id}.json");
        let mut changed = data.json(&record);
        changed["timestamps"]["call_start"] = json!(format!("2026-11-20T10:00:{n:02}Z"));
        data.write(&record, changed.to_string());
    }
    data.finished_call(SECOND, Some(CALLER));
    data.write(
        "call_metadata/metadata_session_20261119_100000_aaaaaa.json",
        b"{broken",
    );
    let site = Site::open(data, None, PageConfig::default()).await;
    let first = site.json("/page/api/calls").await;
    let calls = first["calls"].as_array().expect("a list");
    assert_eq!(calls.len(), 50);
    assert_eq!(calls[0]["session_id"], SECOND);
    assert_eq!(calls[0]["number"], "…23", "numbers are hidden");
    assert_eq!(first["all"], 62);
    let next = first["next"].as_str().expect("there are more");
    let second = site.json(&format!("/page/api/calls?after={next}")).await;
    let rest = second["calls"].as_array().expect("a list");
    assert_eq!(rest.len(), 11);
    assert_eq!(second["next"], Value::Null);
    assert_eq!(second["problems"].as_array().expect("a list").len(), 1);
    let known = |call: &Value| {
        calls
            .iter()
            .any(|other| other["session_id"] == call["session_id"])
    };
    assert!(!rest.iter().any(known), "no call is on both pages");
    for (question, expected) in [
        ("text=5550100123", 1),
        ("text=0123", 1),
        (&*format!("text={SECOND}"), 1),
        ("text=nothing-like-this", 0),
        ("outcome=completed&from=2026-11-21T00:00:00Z", 1),
        ("outcome=busy", 0),
        ("status=waiting&to=2026-11-20T10:00:30Z", 30),
        ("status=archived", 0),
    ] {
        let found = site.json(&format!("/page/api/calls?{question}")).await;
        assert_eq!(
            found["calls"].as_array().expect("a list").len(),
            expected,
            "{question}: {found}"
        );
    }
    let queue = site.json("/page/api/queue").await;
    assert_eq!(queue["all"], 62);
    assert_eq!(queue["next"], 50);
    let rest = site.json("/page/api/queue?skip=50").await;
    assert_eq!(rest["records"].as_array().expect("a list").len(), 12);
    assert_eq!(site.json("/page/api/worker").await["records_waiting"], 62);
}

#[tokio::test]
async fn words_of_a_call_that_goes_on_are_shown_only_if_the_settings_say_so() {
    for shows in [false, true] {
        let data = DataFolder::new();
        let (_session, _lock) = data.running_call(FIRST, Some(CALLER));
        data.finished_call(SECOND, Some(CALLER));
        let config = PageConfig {
            show_live_transcripts: shows,
            ..PageConfig::default()
        };
        let site = Site::open(data, None, config).await;
        let live = site.json(&format!("/page/api/calls/{FIRST}")).await;
        assert_eq!(live["call"]["status"], "running");
        assert_eq!(live.to_string().contains("a pump"), shows, "{live}");
        assert!(!live.to_string().contains("5550100123"), "{live}");
        let finished = site.json(&format!("/page/api/calls/{SECOND}")).await;
        assert!(finished.to_string().contains("a pump"), "{finished}");

        let mut stream = reqwest::get(site.url("/page/api/live"))
            .await
            .expect("an answer");
        let mut text = String::new();
        while !text.contains("\"stage\"") {
            let chunk = timeout(DEADLINE, stream.chunk()).await.expect("in time");
            text.push_str(&String::from_utf8_lossy(
                &chunk.expect("read").expect("more"),
            ));
        }
        assert!(
            text.contains("\"talking\"") && text.contains(FIRST),
            "{text}"
        );
        assert_eq!(text.contains("a pump"), shows, "{text}");
        assert!(!text.contains("5550100123"), "{text}");
    }
}

#[tokio::test]
async fn a_recording_comes_in_the_parts_that_are_asked_for() {
    let data = two_calls();
    let sound: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    data.write("recordings/one.wav", &sound);
    let record = format!("call_metadata/metadata_{FIRST}.json");
    let mut changed = data.json(&record);
    changed["files"]["recording"] = json!("recordings/one.wav");
    changed["recording"] = json!({
        "source": "local", "state": "resolved", "recording_filename": "recordings/one.wav",
        "recording_start_time": "2026-11-21T10:00:00.000Z"
    });
    data.write(&record, changed.to_string());
    let site = Site::open(data, None, PageConfig::default()).await;
    let url = site.url(&format!("/page/api/calls/{FIRST}/recording"));
    let http = reqwest::Client::new();
    for (range, status, bytes) in [
        (None, 200, 0..200_000),
        (Some("bytes=100-299"), 206, 100..300),
        (Some("bytes=199990-"), 206, 199_990..200_000),
        (Some("bytes=200000-"), 416, 0..0),
    ] {
        let mut request = http.get(&url);
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), status, "{range:?}");
        assert_eq!(answer.headers()["content-type"], "audio/wav");
        let body = answer.bytes().await.expect("a body");
        assert_eq!(&body[..], &sound[bytes], "{range:?}");
    }
    let head = http.head(&url).send().await.expect("an answer");
    assert_eq!(head.headers()["content-length"], "200000");
    let none = reqwest::get(site.url(&format!("/page/api/calls/{SECOND}/recording"))).await;
    assert_eq!(none.expect("an answer").status(), 404);
}

#[tokio::test]
async fn a_refused_record_is_due_again_when_somebody_asks_for_it() {
    let data = two_calls();
    let record = format!("call_metadata/metadata_{FIRST}.json");
    let mut changed = data.json(&record);
    changed["status"] = json!("failed");
    changed["uploads"]["call_data"] = json!({
        "state": "failed", "attempts": 1, "last_error": "the CRM answered 422"
    });
    data.write(&record, changed.to_string());
    let mut site = Site::open(data, None, PageConfig::default()).await;
    let queue = site.json("/page/api/queue").await;
    assert_eq!(queue["records"][0]["last_error"], "the CRM answered 422");
    let http = reqwest::Client::new();
    let retry = http.post(site.url(&format!("/page/api/calls/{FIRST}/retry")));
    let answer: Value = retry
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON");
    assert_eq!(answer["tried_again"], true);
    timeout(DEADLINE, site.notices.recv())
        .await
        .expect("in time")
        .expect("a notice");
    assert_eq!(
        site.data.json(&record)["uploads"]["call_data"]["state"],
        "pending"
    );
    assert!(fs::exists(site.data.path(&record)).expect("known"));
}
