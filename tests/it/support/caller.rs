//! A caller and a playout recorder in virtual time, for conversations without a network.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep, timeout};
use voicebot::session::{ConversationItem, Role};
use voicebot::tools::{CallRequest, ToolDefinition, ToolOutput};
use voicebot::voice::{
    AudioFrame, AudioOutput, Conversation, OutputClosed, Tools, VoiceCommand, VoiceConfig,
    VoiceEnd, VoiceEvent,
};

use voicebot::providers::Providers;

/// What the agent's output would play next at most.
const OUTPUT_QUEUE: Duration = Duration::from_millis(500);

/// The samples of a 16 kHz mono WAV file.
pub fn fixture(name: &str) -> Vec<i16> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/audio")
        .join(name);
    let file = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(
        u32::from_le_bytes(file[24..28].try_into().unwrap()),
        16_000,
        "{name} is not 16 kHz"
    );
    let data = file
        .windows(4)
        .position(|window| window == b"data")
        .expect("a WAV file has data")
        + 8;
    file[data..]
        .chunks_exact(2)
        .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
        .collect()
}

/// Plays what the agent says, as a track would: in real time, out of a queue.
#[derive(Default)]
pub struct PlayoutRecorder {
    state: Mutex<PlayoutState>,
}

#[derive(Default)]
struct PlayoutState {
    /// When the last sound of the queue will have been played.
    until: Option<Instant>,
    /// Beginning of every frame, and whether it is loud.
    frames: Vec<(Instant, bool)>,
}

const FRAME: Duration = Duration::from_millis(20);

impl PlayoutRecorder {
    fn lock(&self) -> MutexGuard<'_, PlayoutState> {
        self.state.lock().unwrap()
    }

    /// When sound was heard first after `from`.
    pub fn first_sound_after(&self, from: Instant) -> Option<Instant> {
        self.lock()
            .frames
            .iter()
            .find(|(at, loud)| *loud && *at >= from)
            .map(|(at, _)| *at)
    }

    /// When sound was heard last before `to`.
    pub fn last_sound_before(&self, to: Instant) -> Option<Instant> {
        self.lock()
            .frames
            .iter()
            .rev()
            .find(|(at, loud)| *loud && *at < to)
            .map(|(at, _)| *at + FRAME)
    }

    /// Holes of more than 60 ms inside replies; pauses of more than 400 ms are between them.
    pub fn holes(&self) -> usize {
        let state = self.lock();
        let gaps = state
            .frames
            .windows(2)
            .map(|pair| pair[1].0.saturating_duration_since(pair[0].0 + FRAME));
        gaps.filter(|gap| *gap > Duration::from_millis(60) && *gap < Duration::from_millis(400))
            .count()
    }
}

#[async_trait]
impl AudioOutput for PlayoutRecorder {
    fn sample_rate_hz(&self) -> u32 {
        48_000
    }

    async fn capture(&self, frame: &[i16]) -> Result<(), OutputClosed> {
        assert_eq!(frame.len(), 960, "20 ms at 48 kHz");
        while self.queued() > OUTPUT_QUEUE {
            sleep(FRAME).await;
        }
        let loud = frame.iter().any(|sample| sample.unsigned_abs() > 600);
        let mut state = self.lock();
        let now = Instant::now();
        let start = state.until.map_or(now, |until| until.max(now));
        state.frames.push((start, loud));
        state.until = Some(start + FRAME);
        Ok(())
    }

    fn clear(&self) {
        let mut state = self.lock();
        let now = Instant::now();
        state.frames.retain(|(at, _)| *at < now);
        state.until = Some(now);
    }

    fn queued(&self) -> Duration {
        self.lock().until.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        })
    }
}

/// Tools that only remember what was asked of them.
#[derive(Default)]
pub struct NotePad {
    pub calls: Mutex<Vec<(String, String)>>,
}

#[async_trait]
impl Tools for NotePad {
    fn definitions(&self) -> Vec<ToolDefinition> {
        let tool = |name: &str| ToolDefinition {
            name: name.to_owned(),
            description: String::new(),
            parameters: serde_json::json!({ "type": "object" }),
        };
        ["create_lead", "detect_intent", "end_call"]
            .map(tool)
            .to_vec()
    }

    async fn call(&self, name: &str, arguments_json: &str) -> ToolOutput {
        self.calls
            .lock()
            .unwrap()
            .push((name.to_owned(), arguments_json.to_owned()));
        let request = (name == "end_call").then_some(CallRequest::HangUp);
        sleep(Duration::from_millis(20)).await;
        ToolOutput {
            text: "done".to_owned(),
            is_error: false,
            request,
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(10)
    }
}

/// One conversation under way.
pub struct Call {
    pub playout: Arc<PlayoutRecorder>,
    pub tools: Arc<NotePad>,
    pub log: Arc<Mutex<Vec<(Instant, VoiceEvent)>>>,
    pub commands: mpsc::Sender<VoiceCommand>,
    speech: Arc<Mutex<VecDeque<i16>>>,
    conversation: JoinHandle<VoiceEnd>,
    listener: JoinHandle<()>,
    line: JoinHandle<()>,
}

impl Call {
    /// Begins one.
    pub fn start(providers: Providers, greeting: Option<&str>, config: VoiceConfig) -> Self {
        Self::start_with_goodbye(providers, greeting, None, config)
    }

    /// Begins one whose persona has a goodbye of its own.
    pub fn start_with_goodbye(
        providers: Providers,
        greeting: Option<&str>,
        goodbye: Option<&str>,
        config: VoiceConfig,
    ) -> Self {
        let playout = Arc::new(PlayoutRecorder::default());
        let tools = Arc::new(NotePad::default());
        let conversation = Conversation {
            config,
            instructions: "You are a test.".to_owned(),
            greeting: greeting.map(str::to_owned),
            answer: None,
            goodbye: goodbye.map(str::to_owned),
            language: None,
            voice: None,
            stt: providers.stt,
            llm: providers.llm,
            tts: providers.tts,
            tools: tools.clone(),
            output: playout.clone(),
        };
        let (audio, audio_in) = mpsc::channel::<AudioFrame>(16);
        let (commands, commands_in) = mpsc::channel(8);
        let (events, mut events_in) = mpsc::channel(16);
        let log = Arc::new(Mutex::new(Vec::new()));
        let listener = {
            let log = log.clone();
            tokio::spawn(async move {
                while let Some(event) = events_in.recv().await {
                    log.lock().unwrap().push((Instant::now(), event));
                }
            })
        };
        let speech: Arc<Mutex<VecDeque<i16>>> = Arc::default();
        let line = {
            let speech = speech.clone();
            tokio::spawn(async move {
                let mut tick = interval(Duration::from_millis(10));
                loop {
                    tick.tick().await;
                    let frame: AudioFrame = {
                        let mut speech = speech.lock().unwrap();
                        let count = speech.len().min(160);
                        let mut frame: AudioFrame = speech.drain(..count).collect();
                        frame.resize(160, 0);
                        frame
                    };
                    if audio.send(frame).await.is_err() {
                        break;
                    }
                }
            })
        };
        let conversation = tokio::spawn(conversation.run(audio_in, commands_in, events));
        Self {
            playout,
            tools,
            log,
            commands,
            speech,
            conversation,
            listener,
            line,
        }
    }

    /// The caller says this. Returns when it began and when it is said.
    pub async fn say(&self, sound: &[i16]) -> (Instant, Instant) {
        self.speech.lock().unwrap().extend(sound);
        let began = Instant::now();
        sleep(Duration::from_secs_f64(sound.len() as f64 / 16_000.0)).await;
        (began, Instant::now())
    }

    /// Waits until an event fits.
    pub async fn until(&self, what: &str, wanted: impl Fn(&VoiceEvent) -> bool) -> Instant {
        self.until_nth(what, 1, wanted).await
    }

    /// Waits until the nth event fits.
    pub async fn until_nth(
        &self,
        what: &str,
        nth: usize,
        wanted: impl Fn(&VoiceEvent) -> bool,
    ) -> Instant {
        let found = async {
            loop {
                let at = {
                    let log = self.log.lock().unwrap();
                    log.iter()
                        .filter(|(_, event)| wanted(event))
                        .nth(nth - 1)
                        .map(|(at, _)| *at)
                };
                match at {
                    Some(at) => return at,
                    None => sleep(Duration::from_millis(5)).await,
                }
            }
        };
        match timeout(Duration::from_secs(60), found).await {
            Ok(at) => at,
            Err(_) => panic!("no {what} within a minute: {:#?}", self.log.lock().unwrap()),
        }
    }

    /// Waits until the agent has said its nth thing.
    pub async fn agent_has_said(&self, nth: usize) {
        self.until_nth("words of the agent", nth, |event| {
            matches!(
                event,
                VoiceEvent::ItemCommitted(ConversationItem {
                    role: Role::Assistant,
                    ..
                })
            )
        })
        .await;
    }

    /// What was written down so far.
    pub fn items(&self) -> Vec<ConversationItem> {
        let log = self.log.lock().unwrap();
        let items = log.iter().filter_map(|(_, event)| match event {
            VoiceEvent::ItemCommitted(item) => Some(item.clone()),
            _ => None,
        });
        items.collect()
    }

    /// As `role: words`.
    pub fn transcript(&self) -> Vec<String> {
        let line = |item: ConversationItem| {
            let who = match item.role {
                Role::User => "caller",
                Role::Assistant => "agent",
            };
            format!("{who}: {}", item.content)
        };
        self.items().into_iter().map(line).collect()
    }

    /// What went wrong so far, as `component: message`.
    pub fn troubles(&self) -> Vec<String> {
        let log = self.log.lock().unwrap();
        let troubles = log.iter().filter_map(|(_, event)| match event {
            VoiceEvent::Error {
                component, message, ..
            } => Some(format!("{component}: {message}")),
            _ => None,
        });
        troubles.collect()
    }

    /// Drops the conversation in the middle.
    pub async fn abort(self) {
        self.conversation.abort();
        let _ = self.conversation.await;
        timeout(Duration::from_secs(5), self.listener)
            .await
            .expect("its events end with it")
            .unwrap();
        timeout(Duration::from_secs(5), self.line)
            .await
            .expect("nobody listens to the caller any more")
            .unwrap();
    }

    /// Waits for the end, and sees to it that nothing is left running.
    pub async fn end(self) -> VoiceEnd {
        let end = timeout(Duration::from_secs(120), self.conversation)
            .await
            .expect("the conversation ends")
            .unwrap();
        timeout(Duration::from_secs(5), self.listener)
            .await
            .expect("its events end with it")
            .unwrap();
        timeout(Duration::from_secs(5), self.line)
            .await
            .expect("nobody listens to the caller any more")
            .unwrap();
        end
    }
}
