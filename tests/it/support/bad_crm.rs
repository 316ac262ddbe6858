//! A CRM that misbehaves by a seeded plan, and records exactly what it has accepted and what it
//! should never have received.
//!
//! It implements HTTP/1.1 itself, one request per connection, because a server library would not
//! permit its faults.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::crm::the_file;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    None,
    HangsBefore,
    HangsAfter,
    ResetBefore,
    ResetAfter,
    Says500,
    Says503,
    Says429,
    BreaksOffBefore,
    BreaksOffAfter,
    PageBefore,
    PageAfter,
    BrokenJsonBefore,
    NoHttpBefore,
    DripsAfter,
    DripsForEverAfter,
    /// Status 200, and a body that says that nothing was accepted.
    SaysNoBefore,
    /// The credentials are rejected, or a proxy has no server behind it.
    Says401Before,
    Says404Before,
    /// A bare URL for a recording, nothing at all for a call.
    SaysLittleAfter,
    /// Compressed, and with a byte order mark.
    PacksAfter,
    /// To the same URL with a trailing slash.
    RedirectsBefore,
}

/// Weight of each fault.
type Plan = &'static [(Fault, u32)];

/// An unreliable CRM.
pub const UNRELIABLE: Plan = &[
    (Fault::None, 64),
    (Fault::HangsBefore, 1),
    (Fault::HangsAfter, 1),
    (Fault::ResetBefore, 4),
    (Fault::ResetAfter, 4),
    (Fault::Says500, 4),
    (Fault::Says503, 4),
    (Fault::Says429, 3),
    (Fault::BreaksOffBefore, 3),
    (Fault::BreaksOffAfter, 3),
    (Fault::PageBefore, 2),
    (Fault::PageAfter, 1),
    (Fault::BrokenJsonBefore, 2),
    (Fault::NoHttpBefore, 2),
    (Fault::DripsAfter, 1),
    (Fault::DripsForEverAfter, 1),
];

/// A CRM that also refuses with status 200, rejects credentials, redirects, and gives short answers
/// after accepting something.
pub const HOSTILE: Plan = &[
    (Fault::None, 56),
    (Fault::HangsBefore, 1),
    (Fault::HangsAfter, 1),
    (Fault::ResetBefore, 3),
    (Fault::ResetAfter, 3),
    (Fault::Says500, 3),
    (Fault::Says503, 3),
    (Fault::Says429, 2),
    (Fault::BreaksOffBefore, 2),
    (Fault::BreaksOffAfter, 2),
    (Fault::PageBefore, 2),
    (Fault::PageAfter, 1),
    (Fault::BrokenJsonBefore, 2),
    (Fault::NoHttpBefore, 1),
    (Fault::DripsAfter, 1),
    (Fault::DripsForEverAfter, 1),
    (Fault::SaysNoBefore, 5),
    (Fault::Says401Before, 1),
    (Fault::Says404Before, 1),
    (Fault::SaysLittleAfter, 3),
    (Fault::PacksAfter, 3),
    (Fault::RedirectsBefore, 3),
];
/// Bodies of refusals with status 200.
const NOES: [&str; 5] = [
    r#"{"success":false,"message":"database unavailable"}"#,
    r#"{"status":"error"}"#,
    r#"{"errors":[{"message":"quota"}],"data":null}"#,
    "false",
    "Delivery failed, try again later",
];

impl Fault {
    fn draw(plan: Plan, random: &mut StdRng) -> Self {
        let mut number = random.random_range(0..plan.iter().map(|(_, share)| share).sum());
        for (fault, share) in plan {
            if number < *share {
                return *fault;
            }
            number -= share;
        }
        Self::None
    }

    /// Whether the CRM accepts the request, whatever it answers.
    fn takes(self) -> bool {
        matches!(
            self,
            Self::None
                | Self::HangsAfter
                | Self::ResetAfter
                | Self::BreaksOffAfter
                | Self::PageAfter
                | Self::DripsAfter
                | Self::DripsForEverAfter
                | Self::SaysLittleAfter
                | Self::PacksAfter
        )
    }
}

/// An accepted call.
#[derive(Debug, Clone)]
pub struct TakenCall {
    pub key: String,
    pub body: Value,
}

/// Everything that was accepted, and every violation.
#[derive(Debug, Default)]
pub struct Books {
    /// By idempotency key.
    pub recordings: HashMap<String, Bytes>,
    /// By the CRM's id of the call.
    pub calls: HashMap<String, TakenCall>,
    /// Updates with the URL of a recording, by the CRM's id of the call.
    pub updates: HashMap<String, Value>,
    /// How often each fault happened.
    pub faults: BTreeMap<Fault, u32>,
    /// Number of requests that were repeated although the CRM had accepted them.
    pub repeated: u32,
    pub complaints: Vec<String>,
}

struct Inside {
    plan: Plan,
    books: Books,
    random: StdRng,
}

/// The server; it stops when it is dropped.
pub struct BadCrm {
    pub base_url: String,
    inside: Arc<Mutex<Inside>>,
    /// Number of complete requests.
    requests: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl BadCrm {
    pub async fn start(plan: Plan, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port on loopback");
        let base_url = format!("http://{}/api", listener.local_addr().expect("the port"));
        let inside = Arc::new(Mutex::new(Inside {
            plan,
            books: Books::default(),
            random: StdRng::seed_from_u64(seed),
        }));
        let (count, requests) = watch::channel(0);
        let task = tokio::spawn({
            let inside = inside.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(inside.clone(), count.clone(), stream));
                }
            }
        });
        Self {
            base_url,
            inside,
            requests,
            task,
        }
    }

    /// Takes the books and starts new ones.
    pub fn take_books(&self) -> Books {
        std::mem::take(&mut self.inside.lock().unwrap().books)
    }

    pub fn requests(&self) -> u64 {
        *self.requests.borrow()
    }

    /// Waits until this many complete requests have come, at most for `at_most`.
    pub async fn wait_for_requests(&self, number: u64, at_most: Duration) {
        let mut requests = self.requests.clone();
        let come = requests.wait_for(|count| *count >= number);
        let _ = tokio::time::timeout(at_most, come).await;
    }
}

impl Drop for BadCrm {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Request {
    is_upload: bool,
    key: String,
    content_type: String,
    body: Bytes,
}

async fn serve(inside: Arc<Mutex<Inside>>, count: watch::Sender<u64>, mut stream: TcpStream) {
    let fault = {
        let mut inside = inside.lock().unwrap();
        let plan = inside.plan;
        Fault::draw(plan, &mut inside.random)
    };
    if fault == Fault::ResetBefore {
        let _ = stream.read(&mut [0; 1]).await;
        note(&inside, &count, fault);
        reset(stream);
        return;
    }
    // Incomplete: the uploader was killed.
    let Some(request) = read_request(&mut stream).await else {
        return;
    };
    let answer = fault.takes().then(|| take(&inside, &request));
    note(&inside, &count, fault);
    let answer = match (fault, answer) {
        (_, Some(answer)) => answer,
        (Fault::Says500, _) => plain(500, "", r#"{"error":"duplicate key while writing"}"#),
        (Fault::Says503, _) => plain(503, "", "busy"),
        (Fault::Says429, _) => later(&inside),
        (Fault::SaysNoBefore, _) => {
            let index = inside.lock().unwrap().random.random_range(0..NOES.len());
            plain(200, "", NOES[index])
        }
        (Fault::Says401Before, _) => plain(401, "", r#"{"message":"token expired"}"#),
        (Fault::Says404Before, _) => plain(404, "", "<html>nobody behind</html>"),
        (Fault::RedirectsBefore, _) => {
            let path = if request.is_upload {
                "upload"
            } else {
                "call-data"
            };
            plain(308, &format!("Location: /api/{path}/\r\n"), "")
        }
        (Fault::BrokenJsonBefore, _) => plain(200, "", r#"{"success":true,"data":{"url":"ht"#),
        _ => plain(200, "", "<html><body>Maintenance</body></html>"),
    };
    let bytes = answer.as_bytes();
    match fault {
        Fault::HangsBefore | Fault::HangsAfter => {
            // Until the client closes the connection.
            let _ = stream.read(&mut [0; 1]).await;
        }
        Fault::ResetBefore | Fault::ResetAfter => reset(stream),
        Fault::BreaksOffBefore | Fault::BreaksOffAfter => {
            let _ = stream.write_all(&bytes[..bytes.len() - 7]).await;
        }
        Fault::PageAfter => {
            let page = plain(200, "", "<html><body>Maintenance</body></html>");
            let _ = stream.write_all(page.as_bytes()).await;
        }
        Fault::SaysLittleAfter => {
            let little = match request.is_upload {
                true => plain(201, "", &url_of(&request.key)),
                false => "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n".to_owned(),
            };
            let _ = stream.write_all(little.as_bytes()).await;
        }
        Fault::PacksAfter => {
            let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
            let status = head.lines().next().expect("a status line");
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            let packed = packer
                .write_all(format!("\u{feff}{body}").as_bytes())
                .and_then(|()| packer.finish())
                .expect("it is packed in memory");
            let head = format!(
                "{status}\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
                packed.len()
            );
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&packed).await;
        }
        Fault::NoHttpBefore => {
            let _ = stream.write_all(b"\x16\x03\x01\x00\xa5\xff\r\n\r\n").await;
        }
        Fault::DripsAfter | Fault::DripsForEverAfter => {
            let pause = match fault {
                Fault::DripsAfter => Duration::from_micros(200),
                _ => Duration::from_millis(20),
            };
            let mut ticks = tokio::time::interval(pause);
            for byte in bytes {
                ticks.tick().await;
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
            }
        }
        _ => {
            let _ = stream.write_all(bytes).await;
        }
    }
}

fn note(inside: &Mutex<Inside>, count: &watch::Sender<u64>, fault: Fault) {
    *inside
        .lock()
        .unwrap()
        .books
        .faults
        .entry(fault)
        .or_default() += 1;
    count.send_modify(|count| *count += 1);
}

fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}

/// An answer with one of the three forms of `Retry-After`.
fn later(inside: &Mutex<Inside>) -> String {
    let kind = inside.lock().unwrap().random.random_range(0..3);
    let header = match kind {
        0 => "Retry-After: 0\r\n".to_owned(),
        1 => "Retry-After: 1\r\n".to_owned(),
        _ => {
            let date = (chrono::Utc::now() + chrono::TimeDelta::seconds(1))
                .format("%a, %d %b %Y %H:%M:%S GMT");
            format!("Retry-After: {date}\r\n")
        }
    };
    plain(429, &header, "too many")
}

/// Stores a request in the books once and returns the answer: a repetition gets the first answer
/// again, or that of a duplicate.
fn take(inside: &Mutex<Inside>, request: &Request) -> String {
    let mut guard = inside.lock().unwrap();
    let inside = &mut *guard;
    let books = &mut inside.books;
    let (known, accepted) = if request.is_upload {
        let Some((_, _, bytes)) = the_file(&request.content_type, &request.body) else {
            books.complaints.push(format!(
                "{}: not a multipart form with one file",
                request.key
            ));
            return plain(400, "", "no file");
        };
        let url = url_of(&request.key);
        let known = books.recordings.get(&request.key);
        if known.is_some_and(|known| *known != bytes) {
            let complaint = format!("{}: other bytes under the same key", request.key);
            books.complaints.push(complaint);
        }
        let known = known.is_some();
        books.recordings.insert(request.key.clone(), bytes);
        (known, json!({ "success": true, "data": { "url": url } }))
    } else {
        let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
            let complaint = format!("{}: call data that is no JSON", request.key);
            books.complaints.push(complaint);
            return plain(400, "", "no JSON");
        };
        let call_id = body["callDetails"]["callId"].as_str().unwrap_or_default();
        if let Some(first) = request.key.strip_suffix("_update") {
            let complaint = match books.calls.get(call_id) {
                Some(call) if call.key == first => None,
                _ => Some(format!("{}: no call that it belongs to", request.key)),
            };
            books.complaints.extend(complaint);
            let accepted = json!({ "success": true, "id": call_id });
            books.updates.insert(call_id.to_owned(), body);
            return plain(200, "", &accepted.to_string());
        }
        let known = books.calls.get(call_id);
        if known.is_some_and(|known| known.key != request.key || known.body != body) {
            let complaint = format!("{}: other call data under {call_id}", request.key);
            books.complaints.push(complaint);
        }
        let known = known.is_some();
        let taken = TakenCall {
            key: request.key.clone(),
            body: body.clone(),
        };
        books.calls.insert(call_id.to_owned(), taken);
        (known, json!({ "success": true, "id": call_id }))
    };
    books.repeated += u32::from(known);
    match (known, inside.random.random_range(0..3)) {
        (true, 0) => plain(409, "", &accepted.to_string()),
        (true, 1) if !request.is_upload => plain(
            400,
            "",
            r#"{"success":false,"message":"Call already exists"}"#,
        ),
        _ => plain(201, "", &accepted.to_string()),
    }
}

fn url_of(key: &str) -> String {
    format!("https://crm.example.com/recordings/{key}")
}

fn plain(status: u16, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = std::str::from_utf8(&bytes[..head_end]).ok()?.to_owned();
    let header = |wanted: &str| {
        head.split("\r\n").skip(1).find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted)
                .then(|| value.trim().to_owned())
        })
    };
    let length: usize = header("content-length")?.parse().ok()?;
    while bytes.len() < head_end + 4 + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some(Request {
        is_upload: head.starts_with("POST /api/upload"),
        key: header("idempotency-key")?,
        content_type: header("content-type")?,
        body: Bytes::from(bytes.split_off(head_end + 4)),
    })
}
