//! A session against vendors on real sockets that fail at every place: what it hears must be all
//! that was said, once.

use std::ops::Range;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, handshake::server};

use super::*;
use crate::providers::socket::Address;
use crate::voice::LimitsConfig;

const RATE: u32 = 16_000;

/// Samples of a word: 100 ms, all with the word's number.
const WORD: usize = 1_600;

/// Words in a final result that nobody asked for.
const WORDS_IN_FINAL: usize = 5;

/// What a connection does wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Is refused with this status.
    Refuses(u16),
    /// Is gone after so many samples.
    Breaks(usize),
    /// Is closed properly after so many samples.
    Closes(usize, u16),
    /// Reads on after so many samples, and says nothing.
    Stalls(usize),
    /// Says each final twice.
    Doubles,
    /// Says before each final one without words.
    Empties,
    /// Answers the first time that it is asked only when more sound comes.
    AnswersLate,
    /// Says after so many samples by itself that all words are final, with an end that lies so
    /// many before that of the sound.
    Decides(usize, usize),
    /// Is gone when it is asked about fewer new samples.
    Needs(usize),
}

/// A vendor that hears the numbers in the sound.
struct Server {
    address: String,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Its nth connection has the nth fault, later ones none.
async fn server(faults: Vec<Fault>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("ws://{}", listener.local_addr().expect("an address"));
    let task = tokio::spawn(async move {
        let mut faults = faults.into_iter();
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let fault = faults.next().unwrap_or(Fault::None);
            // One after the other: a session has one connection at a time.
            tokio::spawn(async move {
                #[expect(clippy::result_large_err, reason = "the library asks for this type")]
                let refuse = |_: &server::Request, response: server::Response| match fault {
                    Fault::Refuses(status) => {
                        let mut refusal = server::ErrorResponse::new(None);
                        *refusal.status_mut() = status.try_into().expect("a status");
                        Err(refusal)
                    }
                    _ => Ok(response),
                };
                if let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, refuse).await {
                    hear(socket, fault).await;
                }
            });
        }
    });
    Server { address, task }
}

async fn hear(mut socket: tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>, fault: Fault) {
    let mut sound: Vec<i16> = Vec::new();
    let mut told = 0;
    let mut late = None;
    let mut was_late = false;
    while let Some(Ok(message)) = socket.next().await {
        let is_asked = match message {
            Message::Binary(bytes) => {
                let samples = bytes.chunks_exact(2);
                sound.extend(samples.map(|pair| i16::from_le_bytes([pair[0], pair[1]])));
                false
            }
            Message::Text(_) => true,
            _ => continue,
        };
        match fault {
            Fault::Breaks(after) if sound.len() >= after => return,
            Fault::Closes(after, code) if sound.len() >= after => {
                let frame = CloseFrame {
                    code: CloseCode::from(code),
                    reason: "enough".into(),
                };
                let _ = socket.close(Some(frame)).await;
                return;
            }
            Fault::Stalls(after) if sound.len() >= after => continue,
            Fault::Needs(least) if is_asked && sound.len() - told < least => return,
            _ => {}
        }
        let asked_then = late.take();
        if fault == Fault::AnswersLate && is_asked && !was_late {
            was_late = true;
            late = Some(sound.len());
            let nothing = Message::text(format!("interim|{told}|{}|", sound.len()));
            if socket.send(nothing).await.is_err() {
                return;
            }
            continue;
        }
        let end = match is_asked {
            false if asked_then.is_some() => asked_then.unwrap_or_default(),
            true => sound.len(),
            false => {
                (sound.len() - told) / (WORD * WORDS_IN_FINAL) * (WORD * WORDS_IN_FINAL) + told
            }
        };
        let say = |kind: &str, range: Range<usize>| {
            let mut numbers = sound[range.clone()].to_vec();
            numbers.dedup();
            let words: Vec<String> = numbers
                .iter()
                .filter(|n| **n != 0)
                .map(i16::to_string)
                .collect();
            let text = words.join(" ");
            Message::text(format!("{kind}|{}|{}|{text}", range.start, range.end))
        };
        let mut messages = Vec::new();
        if let Fault::Decides(after, before) = fault {
            if sound.len() - told >= after {
                let message = say("final", told..sound.len()).into_text().expect("text");
                let end = sound.len() - before;
                let message = message.replace(&format!("|{}|", sound.len()), &format!("|{end}|"));
                messages.push(Message::text(message));
                told = sound.len();
            }
        } else if is_asked || end > told {
            let kind = if is_asked { "asked" } else { "final" };
            if fault == Fault::Empties {
                messages.push(Message::text(format!("{kind}|{told}|{end}|")));
            }
            messages.push(say(kind, told..end));
            if fault == Fault::Doubles {
                messages.push(say(kind, told..end));
            }
            told = end;
        } else {
            messages.push(say("interim", told..sound.len()));
        }
        for message in messages {
            if socket.send(message).await.is_err() {
                return;
            }
        }
    }
}

struct NumbersWire {
    address: String,
    /// It can be asked for the words.
    can_be_asked: bool,
    /// New sound that it wants to be asked about at least.
    shortest: Duration,
}

impl Wire for NumbersWire {
    fn name(&self) -> &str {
        "numbers"
    }

    fn address(&self, _: &ListenRequest) -> Result<Address, ProviderError> {
        Address::new(&self.address, "base_url", "/", "NUMBERS_API_KEY")
    }

    fn finalise(&self) -> Option<Message> {
        self.can_be_asked.then(|| Message::text("finalise"))
    }

    fn shortest_finalise(&self) -> Duration {
        self.shortest
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(NumbersReader)
    }
}

struct NumbersReader;

impl Reader for NumbersReader {
    fn read(&mut self, message: &str, heard: &mut Vec<Heard>) {
        let parts: Vec<&str> = message.split('|').collect();
        let time = |text: &str| {
            let samples: f64 = text.parse().expect("a number");
            Duration::from_secs_f64(samples / f64::from(RATE))
        };
        let (from, to, text) = (time(parts[1]), time(parts[2]), parts[3].to_owned());
        heard.push(match parts[0] {
            "interim" => Heard::Interim { from, to, text },
            kind => Heard::Final(FinalWords {
                from,
                to,
                text,
                answers_finalise: kind == "asked",
                ..FinalWords::default()
            }),
        });
    }
}

/// A vendor that is asked for each stretch, and hears the same numbers.
struct NumbersByRequest;

#[async_trait]
impl Transcriber for NumbersByRequest {
    fn name(&self) -> &str {
        "numbers by request"
    }

    async fn transcribe(&self, segment: SpeechSegment) -> Result<Transcript, ProviderError> {
        let mut numbers = segment.samples.to_vec();
        numbers.dedup();
        let words: Vec<String> = numbers
            .iter()
            .filter(|n| **n != 0)
            .map(i16::to_string)
            .collect();
        Ok(Transcript {
            text: words.join(" "),
            confidence: None,
        })
    }
}

fn stream(server: &Server) -> Vendor {
    Vendor::Stream(Arc::new(wire(server)))
}

fn wire(server: &Server) -> NumbersWire {
    NumbersWire {
        address: server.address.clone(),
        can_be_asked: true,
        shortest: Duration::ZERO,
    }
}

fn limits() -> LimitsConfig {
    LimitsConfig {
        first_retry_ms: 1,
        retry_ms: 1,
        ..LimitsConfig::default()
    }
}

/// What the words of a session are in the end: later ranges replace those that they cover.
#[derive(Default)]
struct Words(Vec<(Range<u64>, String)>);

impl Words {
    fn add(&mut self, range: Range<u64>, text: String) {
        self.0
            .retain(|(old, _)| old.start < range.start || old.end > range.end);
        self.0.push((range, text));
    }

    fn text(&self) -> String {
        let texts: Vec<&str> = self.0.iter().map(|(_, text)| text.as_str()).collect();
        texts.join(" ")
    }
}

/// Says `turns` times a number of words, waits for them each time, and answers what was heard.
async fn conversation(vendors: Vec<Vendor>, turns: usize) -> (String, Vec<String>) {
    let recogniser = Recogniser::new(vendors);
    let mut session = recogniser.open(ListenRequest {
        language: None,
        sample_rate_hz: RATE,
        limits: limits(),
    });
    let mut words = Words::default();
    let mut troubles = Vec::new();
    let (mut at, mut number) = (0u64, 0i16);
    for _ in 0..turns {
        let from = at;
        let mut sound = Vec::new();
        for _ in 0..13 {
            number += 1;
            sound.extend([number; WORD]);
        }
        for frame in sound.chunks(160) {
            session.tell(SttInput::Sound {
                at,
                samples: frame.to_vec(),
            });
            at += frame.len() as u64;
        }
        session.tell(SttInput::Finalise {
            range: from..at,
            sound: sound.into(),
        });
        loop {
            let event = tokio::time::timeout(Duration::from_secs(20), session.next()).await;
            match event.expect("it says something in time") {
                SttEvent::Final { range, text, .. } => words.add(range, text),
                SttEvent::Settled { up_to } if up_to >= at => break,
                SttEvent::Trouble(error) => troubles.push(error.to_string()),
                SttEvent::Failed { error, .. } => {
                    troubles.push(format!("failed: {error}"));
                    break;
                }
                _ => {}
            }
        }
    }
    (words.text(), troubles)
}

fn numbers(turns: i16) -> String {
    let numbers: Vec<String> = (1..=turns * 13).map(|n| n.to_string()).collect();
    numbers.join(" ")
}

#[tokio::test]
async fn a_vendor_that_works_is_heard_to_the_word() {
    let server = server(vec![]).await;
    let (heard, troubles) = conversation(vec![stream(&server)], 3).await;
    assert_eq!(heard, numbers(3));
    assert_eq!(troubles, [""; 0]);
}

#[tokio::test]
async fn no_word_is_lost_and_none_comes_twice_wherever_the_connection_ends() {
    let places = (0..26).map(|at| at * 800 + 1);
    for (number, place) in places.enumerate() {
        let fault = match number % 4 {
            0 => Fault::Breaks(place),
            1 => Fault::Closes(place, 1011),
            2 => Fault::Closes(place, 1000),
            _ => Fault::Closes(place, 1001),
        };
        let server = server(vec![fault, Fault::Refuses(500), fault]).await;
        let (heard, troubles) = conversation(vec![stream(&server)], 2).await;
        assert_eq!(heard, numbers(2), "{fault:?}: {troubles:?}");
        assert!(troubles.len() >= 2, "{fault:?}: {troubles:?}");
    }
}

#[tokio::test]
async fn words_that_come_after_they_were_given_up_are_not_lost() {
    let server = server(vec![Fault::AnswersLate]).await;
    let (heard, troubles) = conversation(vec![stream(&server)], 2).await;
    assert_eq!(heard, numbers(2), "{troubles:?}");
}

#[tokio::test]
async fn finals_that_come_twice_count_once() {
    let server = server(vec![Fault::Doubles]).await;
    let (heard, _) = conversation(vec![stream(&server)], 2).await;
    assert_eq!(heard, numbers(2));
}

#[tokio::test]
async fn words_that_come_after_a_final_without_any_are_not_lost() {
    let server = server(vec![Fault::Empties]).await;
    let (heard, _) = conversation(vec![stream(&server)], 2).await;
    // Nobody waits for the last words of the second turn any more.
    assert!(heard.starts_with(&numbers(1)), "{heard}");
}

#[tokio::test]
async fn a_vendor_that_stops_in_mid_stream_gets_the_sound_again() {
    let server = server(vec![Fault::Stalls(9_000)]).await;
    let (heard, troubles) = conversation(vec![stream(&server)], 2).await;
    assert_eq!(heard, numbers(2));
    assert!(troubles[0].contains("no words"), "{troubles:?}");
}

#[tokio::test]
async fn the_next_vendor_goes_on_where_the_first_has_failed() {
    for fault in [
        Fault::Refuses(401),
        Fault::Refuses(500),
        Fault::Breaks(12_000),
    ] {
        let first = server(vec![fault; 20]).await;
        let second = server(vec![]).await;
        for next in [
            stream(&second),
            Vendor::Requests(Arc::new(NumbersByRequest)),
        ] {
            let name = next.name().to_owned();
            let (heard, troubles) = conversation(vec![stream(&first), next], 3).await;
            assert_eq!(heard, numbers(3), "{fault:?}, then {name}: {troubles:?}");
        }
    }
}

#[tokio::test]
async fn when_all_are_down_the_speech_fails_and_the_next_is_tried_again() {
    let down = server(vec![Fault::Refuses(503); 4]).await;
    let (heard, troubles) = conversation(vec![stream(&down)], 2).await;
    // The four attempts of the first turn were all that the fault covers.
    let failed = |text: &&String| text.starts_with("failed: ");
    assert_eq!(troubles.iter().filter(failed).count(), 1, "{troubles:?}");
    // Nobody waits for the words of the first turn any more; they are not lost all the same.
    assert_eq!(heard, numbers(2));
    let refusing = server(vec![Fault::Refuses(401); 4]).await;
    let (heard, troubles) = conversation(vec![stream(&refusing)], 2).await;
    assert_eq!(heard, "");
    assert_eq!(troubles.len(), 2, "{troubles:?}");
    assert!(
        troubles.iter().all(|text| text.contains("NUMBERS_API_KEY")),
        "{troubles:?}"
    );
}

#[tokio::test]
async fn words_of_a_vendor_that_decides_by_itself_may_end_before_the_speech() {
    // 200 ms, as the places of words do that voice activity detection goes on behind.
    let server = server(vec![Fault::Decides(13 * WORD, 3_200)]).await;
    let vendor = Vendor::Stream(Arc::new(NumbersWire {
        can_be_asked: false,
        ..wire(&server)
    }));
    let (heard, troubles) = conversation(vec![vendor], 2).await;
    assert_eq!(heard, numbers(2));
    assert_eq!(troubles, [""; 0], "there is nothing to ask again");
}

#[tokio::test]
async fn a_vendor_is_not_asked_about_less_sound_than_it_takes() {
    let server = server(vec![Fault::Needs(5_600)]).await;
    let recogniser = Recogniser::new(vec![Vendor::Stream(Arc::new(NumbersWire {
        shortest: Duration::from_millis(350),
        ..wire(&server)
    }))]);
    let mut session = recogniser.open(ListenRequest {
        sample_rate_hz: RATE,
        limits: limits(),
        ..ListenRequest::default()
    });
    // A word, whose end is told at once, and the silence after it.
    let word: Arc<[i16]> = [7; WORD].into();
    session.tell(SttInput::Sound {
        at: 0,
        samples: word.to_vec(),
    });
    session.tell(SttInput::Finalise {
        range: 0..WORD as u64,
        sound: word,
    });
    for at in 1..5 {
        session.tell(SttInput::Sound {
            at: (at * WORD) as u64,
            samples: vec![0; WORD],
        });
    }
    loop {
        match session.next().await {
            SttEvent::Final { text, .. } => assert_eq!(text, "7"),
            SttEvent::Settled { up_to } if up_to >= WORD as u64 => break,
            SttEvent::Trouble(error) | SttEvent::Failed { error, .. } => panic!("{error}"),
            _ => {}
        }
    }
}

/// A vendor that wants to be told first, and sound at another rate, and speaks first itself.
struct PoliteWire {
    address: String,
}

impl Wire for PoliteWire {
    fn name(&self) -> &str {
        "polite"
    }

    fn address(&self, _: &ListenRequest) -> Result<Address, ProviderError> {
        Address::new(&self.address, "base_url", "/", "POLITE_API_KEY")
    }

    fn sample_rate_hz(&self, _: &ListenRequest) -> u32 {
        24_000
    }

    fn opening(&self, _: &ListenRequest) -> Option<Message> {
        Some(Message::text("opening"))
    }

    fn greets(&self) -> bool {
        true
    }

    fn reader(&self) -> Box<dyn Reader> {
        Box::new(PoliteReader)
    }
}

struct PoliteReader;

impl Reader for PoliteReader {
    fn read(&mut self, message: &str, heard: &mut Vec<Heard>) {
        heard.push(match message {
            "refused" => Heard::Error(ProviderError::config("POLITE_API_KEY is refused")),
            _ => Heard::SpeechStarted { at: Duration::ZERO },
        });
    }
}

/// Greets each connection with these words, and gives what came on the first.
async fn polite(greeting: &'static str) -> (String, JoinHandle<Vec<Message>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("ws://{}", listener.local_addr().expect("an address"));
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut socket = tokio_tungstenite::accept_async(stream)
            .await
            .expect("a client");
        let _ = socket.send(Message::text(greeting)).await;
        let mut messages = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            messages.push(message);
            if messages.len() == 11 {
                break;
            }
        }
        messages
    });
    (address, task)
}

#[tokio::test]
async fn a_vendor_is_told_first_what_it_wants_to_know_and_gets_its_own_rate() {
    let (address, server) = polite("hello").await;
    let recogniser = Recogniser::new(vec![Vendor::Stream(Arc::new(PoliteWire { address }))]);
    let mut session = recogniser.open(ListenRequest {
        sample_rate_hz: RATE,
        limits: limits(),
        ..ListenRequest::default()
    });
    // Ten pieces.
    session.tell(SttInput::Sound {
        at: 0,
        samples: vec![1_000; 8_000],
    });
    let hears = async { while !matches!(session.next().await, SttEvent::Failed { .. }) {} };
    let messages = tokio::select! {
        messages = server => messages.expect("the server"),
        () = hears => panic!("nobody fails"),
    };
    assert_eq!(messages[0], Message::text("opening"));
    let bytes: usize = messages[1..].iter().map(Message::len).sum();
    // Half a second at 24 kHz, but for what the filter keeps.
    assert!((23_900..=24_000).contains(&bytes), "{bytes}");
    let samples = messages[5].clone().into_data();
    assert_eq!(samples[..2], 1_000i16.to_le_bytes());
}

#[tokio::test]
async fn a_check_reads_what_a_vendor_says_first() {
    for (greeting, is_taken) in [("hello", true), ("refused", false)] {
        let (address, server) = polite(greeting).await;
        let recogniser = Recogniser::new(vec![Vendor::Stream(Arc::new(PoliteWire { address }))]);
        let opened = recogniser.check(&ListenRequest::default()).await;
        assert_eq!(opened.len(), 1);
        assert_eq!(opened[0].result.is_ok(), is_taken, "{greeting}: {opened:?}");
        server.abort();
    }
}
