//! Does what the turn machine decides: owns the clock, the caller's sound, the requests to
//! recognition, the one reply and the history.
//!
//! Everything runs inside one future. Its parts are polled by one `select!`, so that a part that is
//! dropped has stopped, and nothing changes between looking and acting: no handler here awaits
//! anything.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt, join_all};
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::alignment::{Alignment, Said};
use super::answer::{Tone, ToneListener};
use super::history;
use super::meter::{Meter, TokenRate};
use super::playout::{PlayMode, Track};
use super::reply::{self, ReplyEvent, ReplyPipeline, Source};
use super::turn::{
    Failure, Input, Output, Prompt, ReplyId, SegmentId, Time, TurnMachine, UserTurn,
};
use super::vad::{Vad, VadEvent};
use super::{AudioFrame, Conversation, INPUT_SAMPLE_RATE_HZ, VoiceCommand, VoiceEnd, VoiceEvent};
use crate::providers::Component;
use crate::providers::llm::{ChatMessage, ToolCall};
use crate::providers::stt::{ListenRequest, SttEvent, SttInput, SttSession, marks};
use crate::session::{ConversationItem, TurnMetrics, TurnRecord, TurnVendors, Usage};
use crate::tools::ToolOutput;

/// Events that wait for a slow reader. Beyond that, states and transcripts are dropped; items are
/// not.
const MAX_WAITING_EVENTS: usize = 512;

/// Events of a reply that wait for the driver.
const REPLY_EVENTS: usize = 32;

/// How often the machine hears that the caller's line is alive, in samples: 250 ms.
const LEVEL_PERIOD: usize = INPUT_SAMPLE_RATE_HZ as usize / 4;

/// Mean square above which a line is loud: -40 dBFS.
const LOUD: f64 = 328.0 * 328.0;

/// A line that goes dead in mid speech is silent, for the detector as for everybody.
const DEAD_LINE: Duration = Duration::from_millis(400);

/// Time-out for the last events and the last tools, when everything else is over.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

impl Conversation {
    /// Holds the conversation until one side ends it. `audio` is the caller's sound; its end does
    /// not end the conversation, but that of `commands` does. Dropping the future stops everything
    /// at once, without a trace of what was being said.
    pub async fn run(
        self,
        audio: mpsc::Receiver<AudioFrame>,
        commands: mpsc::Receiver<VoiceCommand>,
        events: mpsc::Sender<VoiceEvent>,
    ) -> VoiceEnd {
        Driver::new(self).run(audio, commands, events).await
    }
}

/// The reply that exists.
struct ActiveReply {
    id: ReplyId,
    track: Arc<Track>,
    meter: Arc<Meter>,
    /// The model answers the caller; else a fixed line is said.
    is_answer: bool,
    /// The turn that it answers, once it is heard.
    turn: Option<TurnRecord>,
    making: BoxFuture<'static, Result<(), Failure>>,
    events: mpsc::Receiver<ReplyEvent>,
    /// The tools that it waits for.
    wanted: Option<WantedTools>,
    /// The tools that it has used, by round.
    tool_steps: Vec<ToolStep>,
    /// Sentences that the world has been told about.
    announced: usize,
    speech_ended: Option<Time>,
    first_sound: Option<Time>,
    ready: Option<Time>,
    metrics: TurnMetrics,
}

struct WantedTools {
    calls: Vec<ToolCall>,
    outputs: oneshot::Sender<Vec<ToolOutput>>,
}

struct ToolStep {
    calls: Vec<ToolCall>,
    outputs: Vec<String>,
}

/// Tools that have run.
struct ToolsRun {
    reply: ReplyId,
    wanted: WantedTools,
    results: Vec<(ToolOutput, Duration)>,
}

/// What the driver's `select!` has come upon.
enum Event {
    Command(Option<VoiceCommand>),
    Reply(ReplyEvent),
    ReplyOver(Result<(), Failure>),
    Recognition(SttEvent),
    Said(Said),
    ToolsRun(ToolsRun),
    Audio(Option<AudioFrame>),
    Sent,
    Deadline,
}

struct Driver {
    machine: TurnMachine,
    pipeline: Arc<ReplyPipeline>,
    stt: SttSession,
    alignment: Alignment,
    /// What follows from what recognition has said, and is not dealt with yet.
    said: VecDeque<Said>,
    instructions: String,
    greeting: Option<String>,
    history: Vec<ChatMessage>,
    vad: Vad,
    vad_events: Vec<VadEvent>,
    /// Listens for beeps while it matters who has answered.
    tones: Option<ToneListener>,
    level: (usize, f64),
    last_audio: Instant,
    active: Option<ActiveReply>,
    /// Where the last speech that is over ended, as a sample position.
    speech_end: u64,
    tools: FuturesUnordered<BoxFuture<'static, ToolsRun>>,
    prewarming: Option<BoxFuture<'static, ()>>,
    outbox: VecDeque<VoiceEvent>,
    began: Instant,
    began_at: DateTime<Utc>,
    heard_once: bool,
    /// The turns that were answered.
    turns: u32,
    /// The caller's words that have no answer yet: when their speech ended, when they were known,
    /// and when it was decided that the turn is over.
    unanswered: Option<(Option<Time>, Time, Time)>,
    /// What was spent since the last turn was answered.
    spent: Usage,
    end: Option<VoiceEnd>,
}

impl Driver {
    fn new(conversation: Conversation) -> Self {
        let Conversation {
            config,
            instructions,
            greeting,
            goodbye,
            answer,
            language,
            voice,
            stt,
            llm,
            tts,
            tools,
            output,
        } = conversation;
        let early_pause = if config.turn.preemptive {
            config.turn.preemptive_transcription_ms
        } else {
            config.vad.min_silence_ms
        };
        let prewarming = {
            let (stt, llm, tts) = (stt.clone(), llm.clone(), tts.clone());
            async move {
                tokio::join!(stt.prewarm(), llm.prewarm(), tts.prewarm());
            }
            .boxed()
        };
        let session = stt.open(ListenRequest {
            language: language.clone(),
            sample_rate_hz: INPUT_SAMPLE_RATE_HZ,
            limits: config.limits.clone(),
        });
        let goodbye = goodbye.filter(|line| !line.trim().is_empty());
        let goodbye_is_own = goodbye.is_some();
        let mut lines = config.lines;
        if let Some(goodbye) = goodbye {
            lines.goodbye = goodbye;
        }
        Self {
            pipeline: Arc::new(ReplyPipeline {
                limits: config.limits,
                say_again: lines.say_again.clone(),
                goodbye: lines.goodbye.clone(),
                goodbye_is_own,
                begins_in_thought: AtomicBool::new(false),
                token_rate: TokenRate::default(),
                voice,
                language,
                llm,
                tts,
                tools: tools.clone(),
                output,
            }),
            tones: answer.as_ref().map(|_| ToneListener::new()),
            machine: TurnMachine::new(config.turn, lines, tools.timeout()).watching_answer(answer),
            vad: Vad::new(config.vad, early_pause),
            stt: session,
            alignment: Alignment::default(),
            said: VecDeque::new(),
            instructions,
            greeting,
            history: Vec::new(),
            vad_events: Vec::new(),
            level: (0, 0.0),
            last_audio: Instant::now(),
            active: None,
            speech_end: 0,
            tools: FuturesUnordered::new(),
            prewarming: Some(prewarming),
            outbox: VecDeque::new(),
            began: Instant::now(),
            began_at: Utc::now(),
            heard_once: false,
            turns: 0,
            unanswered: None,
            spent: Usage::default(),
            end: None,
        }
    }

    async fn run(
        mut self,
        mut audio: mpsc::Receiver<AudioFrame>,
        mut commands: mpsc::Receiver<VoiceCommand>,
        events: mpsc::Sender<VoiceEvent>,
    ) -> VoiceEnd {
        let mut audio_open = true;
        let greeting = self.greeting.take();
        self.tell(Input::Recogniser {
            streams: self.stt.wants_sound,
        });
        self.tell(Input::Started { greeting });
        let end = loop {
            if let Some(end) = self.end.take() {
                break end;
            }
            match self
                .next(&mut audio, &mut audio_open, &mut commands, &events)
                .await
            {
                Event::Command(command) => self.command(command),
                Event::Reply(event) => self.reply_event(event),
                Event::ReplyOver(result) => self.reply_over(result),
                Event::Recognition(event) => self.recognition(event),
                Event::Said(said) => self.said(said),
                Event::ToolsRun(run) => self.tools_run(run),
                Event::Audio(Some(frame)) => {
                    self.last_audio = Instant::now();
                    self.hear(frame);
                }
                Event::Audio(None) => audio_open = false,
                Event::Sent => {}
                Event::Deadline => self.deadline(),
            }
        };
        self.finish(&events).await;
        end
    }

    /// Waits for the next thing to happen.
    async fn next(
        &mut self,
        audio: &mut mpsc::Receiver<AudioFrame>,
        audio_open: &mut bool,
        commands: &mut mpsc::Receiver<VoiceCommand>,
        events: &mpsc::Sender<VoiceEvent>,
    ) -> Event {
        if let Some(said) = self.said.pop_front() {
            return Event::Said(said);
        }
        let deadline = self.next_deadline();
        let Self {
            active,
            stt,
            tools,
            outbox,
            prewarming,
            ..
        } = self;
        tokio::select! {
            biased;
            command = commands.recv() => Event::Command(command),
            event = next_of_reply(active) => event,
            event = stt.next() => Event::Recognition(event),
            Some(run) = tools.next(), if !tools.is_empty() => Event::ToolsRun(run),
            place = events.reserve(), if !outbox.is_empty() => {
                match (place, outbox.pop_front()) {
                    (Ok(place), Some(event)) => place.send(event),
                    // Nobody listens; the conversation goes on all the same.
                    _ => outbox.clear(),
                }
                Event::Sent
            }
            frame = audio.recv(), if *audio_open => Event::Audio(frame),
            () = async { match prewarming { Some(warming) => warming.await, None => std::future::pending().await } } => {
                *prewarming = None;
                Event::Sent
            }
            () = sleep_until(deadline) => Event::Deadline,
        }
    }

    fn next_deadline(&self) -> Instant {
        // Nothing to wait for is rare and short; a tick once a minute costs nothing.
        let far = self.began + self.now() + Duration::from_secs(60);
        let machine = self
            .machine
            .next_deadline()
            .map_or(far, |deadline| self.began + deadline);
        if self.vad.in_speech() {
            machine.min(self.last_audio + DEAD_LINE)
        } else {
            machine
        }
    }

    fn deadline(&mut self) {
        if self.vad.in_speech() && self.last_audio.elapsed() >= DEAD_LINE {
            self.last_audio = Instant::now();
            let silence =
                vec![0; (DEAD_LINE.as_secs_f64() * f64::from(INPUT_SAMPLE_RATE_HZ)) as usize];
            self.vad_hears(silence);
        }
        self.tell(Input::Tick);
    }

    /// After the end: what was promised to be written down is, and nothing is left running.
    async fn finish(&mut self, events: &mpsc::Sender<VoiceEvent>) {
        self.stt = SttSession::over();
        let tools = async {
            while let Some(run) = self.tools.next().await {
                for (call, (output, took)) in run.wanted.calls.iter().zip(&run.results) {
                    self.outbox.push_back(tool_called(call, output, *took));
                }
            }
        };
        // A lead that is being taken when the caller hangs up is taken.
        let _ = timeout(FLUSH_TIMEOUT, tools).await;
        let outbox = std::mem::take(&mut self.outbox);
        let flush = async {
            for event in outbox {
                if events.send(event).await.is_err() {
                    break;
                }
            }
        };
        if timeout(FLUSH_TIMEOUT, flush).await.is_err() {
            tracing::warn!("the last events of the conversation were not taken in time");
        }
    }

    // ---- what happened ----

    fn now(&self) -> Time {
        self.began.elapsed()
    }

    fn tell(&mut self, input: Input) {
        for output in self.machine.handle(self.now(), input) {
            self.act(output);
        }
    }

    fn command(&mut self, command: Option<VoiceCommand>) {
        match command {
            Some(VoiceCommand::Say {
                text,
                allow_interruptions,
            }) => {
                self.tell(Input::Say {
                    text,
                    interruptible: allow_interruptions,
                });
            }
            Some(VoiceCommand::UserText(text)) => self.tell(Input::UserText(text)),
            Some(VoiceCommand::Key(key)) => self.tell(Input::Key(key)),
            Some(VoiceCommand::LineLost) => self.tell(Input::LineLost),
            Some(VoiceCommand::LineBack { say }) => self.tell(Input::LineBack { say }),
            Some(VoiceCommand::CallerSound { arrives }) => {
                self.tell(Input::CallerSound { arrives });
            }
            Some(VoiceCommand::Close { reason, say }) => {
                tracing::debug!(reason, "the conversation is to end");
                self.tell(Input::Close { say });
            }
            Some(VoiceCommand::Stop) | None => self.tell(Input::Stop),
        }
    }

    fn hear(&mut self, frame: AudioFrame) {
        self.level.0 += frame.len();
        self.level.1 += frame
            .iter()
            .map(|sample| f64::from(*sample).powi(2))
            .sum::<f64>();
        if self.level.0 >= LEVEL_PERIOD {
            let loud = self.level.1 / self.level.0 as f64 > LOUD;
            self.level = (0, 0.0);
            self.tell(Input::CallerAudio { loud });
            if self.machine.knows_who_answered() {
                self.tones = None;
            }
        }
        let mut tones: Vec<Tone> = Vec::new();
        if let Some(listener) = &mut self.tones {
            listener.hear(&frame, &mut tones);
        }
        self.vad_hears(frame);
        for tone in tones {
            self.tell(Input::Tone(tone));
        }
    }

    fn vad_hears(&mut self, sound: AudioFrame) {
        let mut events = std::mem::take(&mut self.vad_events);
        let at = self.vad.position();
        self.vad.push(&sound, &mut events);
        if self.stt.wants_sound {
            self.stt.tell(SttInput::Sound { at, samples: sound });
        }
        for event in events.drain(..) {
            match event {
                VadEvent::Started { onset } => {
                    let time = self.time_of(onset);
                    self.tell(Input::SpeechStarted { onset: time });
                    if let Some(segment) = self.machine.open_segment() {
                        self.alignment.started(segment, onset);
                    }
                }
                VadEvent::Paused => self.tell(Input::SpeechPaused),
                VadEvent::Resumed => {
                    self.alignment.resumed();
                    self.tell(Input::SpeechResumed);
                }
                VadEvent::Ended { end } => {
                    self.speech_end = end;
                    self.alignment.ended(end);
                    let time = self.time_of(end);
                    self.tell(Input::SpeechEnded { end: time });
                }
            }
        }
        self.vad_events = events;
    }

    /// When a sample arrived: the last one just now, earlier ones before it by as much as they are
    /// earlier.
    fn time_of(&self, position: u64) -> Time {
        let ago = self.vad.position().saturating_sub(position) as f64;
        let ago = Duration::from_secs_f64(ago / f64::from(INPUT_SAMPLE_RATE_HZ));
        self.now().saturating_sub(ago)
    }

    fn recognition(&mut self, event: SttEvent) {
        if let SttEvent::Usage(usage) = event {
            return self.spend(usage, true);
        }
        let mut said = Vec::new();
        self.alignment.heard(event, &mut said);
        self.said.extend(said);
    }

    fn said(&mut self, said: Said) {
        match said {
            Said::Interim { segment, text } => self.tell(Input::Transcript {
                segment,
                text: marks::spoken_words(&text),
                confidence: None,
                is_final: false,
            }),
            Said::Final {
                segment,
                text,
                confidence,
                may_be_music,
            } => self.tell(match words_in(&text, may_be_music) {
                None => Input::NotSpeech { segment },
                Some(text) => Input::Transcript {
                    segment,
                    text,
                    confidence,
                    is_final: true,
                },
            }),
            Said::Beside {
                range,
                text,
                confidence,
            } => {
                let (onset, end) = (self.time_of(range.start), self.time_of(range.end));
                if let Some(text) = words_in(&text, false) {
                    self.tell(Input::WordsBeside {
                        onset,
                        end,
                        text,
                        confidence,
                    });
                }
            }
            Said::Failed { segment, error } => {
                let failure = reply::failure(Component::Stt, error);
                self.tell(Input::TranscriptionFailed { segment, failure });
            }
            Said::EndOfTurn {
                segment,
                is_certain,
            } => self.tell(Input::EndOfTurn {
                segment,
                is_certain,
            }),
            Said::Resumed { segment } => self.tell(Input::TurnResumed { segment }),
            Said::Trouble(error) => self.report(Component::Stt.as_str(), error.to_string(), true),
        }
    }

    fn reply_event(&mut self, event: ReplyEvent) {
        let now = self.now();
        let Some(active) = &mut self.active else {
            return;
        };
        let reply = active.id;
        match event {
            ReplyEvent::AudioReady => {
                active.ready = Some(now);
                self.tell(Input::AudioReady { reply });
            }
            ReplyEvent::Progress { first } => {
                if first {
                    self.first_sound();
                }
                self.announce_sentences();
                self.tell(Input::Progress { reply });
            }
            ReplyEvent::ToolsWanted { calls, outputs } => {
                active.wanted = Some(WantedTools { calls, outputs });
                self.tell(Input::ToolsWanted { reply });
            }
            ReplyEvent::LlmFirstToken(took) => {
                active.metrics.llm_ttft_ms.get_or_insert(millis(took));
            }
            ReplyEvent::WordsReady => self.tell(Input::WordsReady { reply }),
            ReplyEvent::TtsFirstByte(took) => active.metrics.tts_ttfb_ms = Some(millis(took)),
            ReplyEvent::Usage(usage) => {
                let is_answer = active.is_answer;
                self.spend(usage, is_answer);
            }
            ReplyEvent::Trouble(failure) => {
                self.report(failure.component.as_str(), failure.message, true)
            }
        }
    }

    fn reply_over(&mut self, result: Result<(), Failure>) {
        // Its last events came before its end.
        while let Some(event) = self
            .active
            .as_mut()
            .and_then(|active| active.events.try_recv().ok())
        {
            self.reply_event(event);
        }
        let Some(active) = self.active.take() else {
            return;
        };
        let reply = active.id;
        match result {
            Ok(()) => {
                self.write_down(active, Duration::ZERO, false);
                self.tell(Input::ReplyFinished { reply });
            }
            Err(failure) => {
                let queued = self.pipeline.output.queued();
                self.write_down(active, queued, true);
                self.tell(Input::ReplyFailed { reply, failure });
            }
        }
    }

    fn first_sound(&mut self) {
        let now = self.now();
        let Some(active) = &mut self.active else {
            return;
        };
        active.first_sound = Some(now);
        active.metrics.started_speaking_at = Some(self.began_at + now);
        active.metrics.playback_latency_ms =
            active.ready.map(|ready| millis(now.saturating_sub(ready)));
        let latency = active.speech_ended.map(|ended| now.saturating_sub(ended));
        active.metrics.e2e_latency_ms = latency.map(millis);
        if !std::mem::replace(&mut self.heard_once, true) {
            self.emit(VoiceEvent::FirstAudio);
        }
        if let Some(latency) = latency {
            self.emit(VoiceEvent::TurnAnswered { latency });
        }
        self.turn_is_heard(now);
    }

    /// The answer to a turn has begun to be heard.
    fn turn_is_heard(&mut self, now: Time) {
        let Some(active) = self.active.as_ref().filter(|active| active.is_answer) else {
            return;
        };
        let (attempts, speech_ended) = (active.meter.attempts(), active.speech_ended);
        self.spend(attempts, true);
        let heard = self.stt_attempts();
        self.spend(heard, true);
        let Some((asked_ended, transcribed, decided)) = self.unanswered.take() else {
            return;
        };
        let (began, number) = (self.began, self.turns + 1);
        let answered_at = self.began_at + now;
        let was_spoken = asked_ended.is_some();
        let stt = self.stt.asked().vendor().filter(|_| was_spoken);
        let usage = self.spent;
        let Some(active) = &mut self.active else {
            return;
        };
        let since = |at: Time| {
            let ended = speech_ended.or(asked_ended)?;
            Some(millis(at.saturating_sub(ended)))
        };
        let at = |moment: Option<Instant>| {
            moment.and_then(|moment| since(moment.saturating_duration_since(began)))
        };
        let (first_token, first_byte) = active.meter.milestones();
        let served = |by: Option<String>, only: &str| Some(by.unwrap_or_else(|| only.to_owned()));
        let turn = TurnRecord {
            turn: number,
            answered_at,
            final_text_ms: since(transcribed),
            end_of_turn_ms: since(decided),
            first_token_ms: at(first_token),
            first_byte_ms: at(first_byte),
            first_frame_ms: since(now),
            interrupted: false,
            vendors: TurnVendors {
                stt,
                llm: served(active.meter.llm.vendor(), self.pipeline.llm.name()),
                tts: served(active.meter.tts.vendor(), self.pipeline.tts.name()),
            },
            usage,
        };
        active.turn = Some(turn.clone());
        self.turns = number;
        self.emit(VoiceEvent::TurnMeasured {
            turn,
            is_over: false,
        });
    }

    /// The attempts of recognition since this was asked last.
    fn stt_attempts(&self) -> Usage {
        let attempts = self.stt.asked().take_attempts();
        Usage {
            stt_retries: attempts.retries,
            stt_fallbacks: attempts.fallbacks,
            ..Usage::default()
        }
    }

    /// Something was spent, for a turn of the caller or for a line of ours.
    fn spend(&mut self, usage: Usage, for_a_turn: bool) {
        if usage == Usage::default() {
            return;
        }
        if for_a_turn {
            self.spent.add(&usage);
        }
        self.emit(VoiceEvent::Usage(usage));
    }

    fn announce_sentences(&mut self) {
        let queued = self.pipeline.output.queued();
        let Some(active) = &mut self.active else {
            return;
        };
        let begun: Vec<String> = active
            .track
            .lock()
            .begun(queued)
            .skip(active.announced)
            .map(str::to_owned)
            .collect();
        let segment_id = format!("reply_{}", active.id.0);
        for text in begun {
            let delta = if active.announced == 0 {
                text
            } else {
                format!(" {text}")
            };
            active.announced += 1;
            self.outbox.push_back(VoiceEvent::AgentTranscript {
                segment_id: segment_id.clone(),
                delta,
                is_final: false,
            });
        }
    }

    fn tools_run(&mut self, run: ToolsRun) {
        let ToolsRun {
            reply,
            wanted: WantedTools { calls, outputs },
            results,
        } = run;
        for (call, (output, took)) in calls.iter().zip(&results) {
            self.emit(tool_called(call, output, *took));
        }
        let results: Vec<ToolOutput> = results.into_iter().map(|(output, _)| output).collect();
        let request = results.iter().find_map(|output| output.request.clone());
        let step = ToolStep {
            calls,
            outputs: results.iter().map(|output| output.text.clone()).collect(),
        };
        match self.active.as_mut().filter(|active| active.id == reply) {
            Some(active) => active.tool_steps.push(step),
            // The reply is gone, but not what its tools did.
            None => self.remember(String::new(), Some(step)),
        }
        let _ = outputs.send(results);
        self.tell(Input::ToolsDone { reply, request });
    }

    // ---- what to do ----

    fn act(&mut self, output: Output) {
        match output {
            Output::Transcribe { segment } => self.transcribe(segment),
            Output::DropTranscription { segment } => self.drop_transcription(segment),
            Output::StartReply { reply, prompt } => self.start_reply(reply, prompt),
            Output::Play { speech_ended, .. } => {
                if let Some(active) = &mut self.active {
                    active.speech_ended = speech_ended;
                    active.track.set_mode(PlayMode::Playing);
                }
            }
            Output::RunTools { reply } => self.run_tools(reply),
            Output::Pause { .. } => {
                if let Some(active) = &self.active {
                    active.track.set_mode(PlayMode::Paused);
                    let unheard = self.pipeline.output.queued();
                    self.pipeline.output.clear();
                    active.track.lock().rewind(unheard);
                }
            }
            Output::Resume { .. } => {
                if let Some(active) = &self.active {
                    active.track.set_mode(PlayMode::Playing);
                }
            }
            Output::Cancel { .. } => self.cancel_reply(),
            Output::CommitUser(turn) => self.commit_user(turn),
            Output::Keypad { keys } => self.emit(VoiceEvent::Keypad { keys }),
            Output::AnsweredBy(verdict) => self.emit(VoiceEvent::AnsweredBy(verdict)),
            Output::MessageLeft => self.emit(VoiceEvent::MessageLeft),
            Output::AgentState(state) => self.emit(VoiceEvent::AgentState(state)),
            Output::UserState(state) => self.emit(VoiceEvent::UserState(state)),
            Output::UserTranscript {
                segment,
                text,
                is_final,
            } => {
                self.emit(VoiceEvent::UserTranscript {
                    segment_id: format!("speech_{}", segment.0),
                    text,
                    is_final,
                });
            }
            Output::FalseInterruption => self.emit(VoiceEvent::FalseInterruption),
            Output::RestartHearing => self.vad.reset(),
            Output::Report {
                component,
                message,
                recoverable,
            } => self.report(component, message, recoverable),
            Output::End(end) => self.end = Some(end),
        }
    }

    fn transcribe(&mut self, segment: SegmentId) {
        if self.vad.is_music() {
            tracing::debug!("a stretch of music is not sent to recognition");
            self.alignment.told(segment);
            // What a recogniser would write if it were a good one.
            self.said.push_back(Said::Final {
                segment,
                text: "[MUSIC]".to_owned(),
                confidence: None,
                may_be_music: true,
            });
            return;
        }
        let to = match self.vad.in_speech() {
            true => self.vad.silent_since().unwrap_or(self.vad.position()),
            false => self.speech_end,
        };
        let mut said = Vec::new();
        let may_be_music = self.vad.may_be_music();
        let from = self.alignment.ask(segment, to, may_be_music, &mut said);
        // With all its words known already, there is nothing to ask for.
        if let Some(from) = from.filter(|_| said.is_empty()) {
            self.stt.tell(SttInput::Finalise {
                range: from..to.max(from),
                sound: self.vad.segment(),
            });
        }
        self.said.extend(said);
    }

    fn drop_transcription(&mut self, segment: SegmentId) {
        if let Some(from) = self.alignment.dropped(segment) {
            self.stt.tell(SttInput::Discard { from });
        }
    }

    fn start_reply(&mut self, id: ReplyId, prompt: Prompt) {
        let source = match prompt {
            Prompt::Say { text } => Source::Line(text),
            Prompt::Answer { to } => {
                let mut messages = Vec::with_capacity(self.history.len() + 2);
                messages.push(ChatMessage::System(self.instructions.clone()));
                messages.extend(self.history.iter().cloned());
                messages.push(ChatMessage::User(to));
                // What is left out now will be left out of every later request.
                let most = self.pipeline.limits.max_history_tokens;
                let left_out = history::bound(&mut messages, most);
                self.history.drain(..left_out);
                Source::Model(messages)
            }
        };
        let track = Arc::new(Track::new(self.pipeline.output.sample_rate_hz()));
        let (sender, events) = mpsc::channel(REPLY_EVENTS);
        let is_answer = matches!(source, Source::Model(_));
        let meter = Arc::new(Meter::default());
        let (pipeline, metered) = (self.pipeline.clone(), meter.clone());
        let making = reply::make(pipeline, source, track.clone(), metered, sender).boxed();
        self.active = Some(ActiveReply {
            id,
            track,
            meter,
            is_answer,
            turn: None,
            making,
            events,
            wanted: None,
            tool_steps: Vec::new(),
            announced: 0,
            speech_ended: None,
            first_sound: None,
            ready: None,
            metrics: TurnMetrics::default(),
        });
    }

    fn run_tools(&mut self, reply: ReplyId) {
        let Some(wanted) = self.active.as_mut().and_then(|active| active.wanted.take()) else {
            return;
        };
        let tools = self.pipeline.tools.clone();
        self.tools.push(
            async move {
                let calls = wanted.calls.iter().map(|call| {
                    let tools = &tools;
                    async move {
                        let began = Instant::now();
                        let output = tools.call(&call.name, &call.arguments).await;
                        (output, began.elapsed())
                    }
                });
                let results = join_all(calls).await;
                ToolsRun {
                    reply,
                    wanted,
                    results,
                }
            }
            .boxed(),
        );
    }

    fn cancel_reply(&mut self) {
        let Some(active) = self.active.take() else {
            return;
        };
        let queued = self.pipeline.output.queued();
        if active.track.lock().mode() != PlayMode::Held {
            self.pipeline.output.clear();
        }
        // What a pause has cleared is not in the output any more.
        self.write_down(active, queued, true);
    }

    /// The reply is over: what was heard of it goes to the record and into the history.
    fn write_down(&mut self, active: ActiveReply, queued: Duration, cut_off: bool) {
        let heard = active.track.lock().heard(queued);
        let ActiveReply {
            id,
            tool_steps,
            mut metrics,
            first_sound,
            announced,
            making,
            mut events,
            meter,
            is_answer,
            turn,
            ..
        } = active;
        drop(making);
        // What it has cost comes with its events, also with those that nobody has read.
        while let Ok(event) = events.try_recv() {
            if let ReplyEvent::Usage(usage) = event {
                self.spend(usage, is_answer);
            }
        }
        let had_effect = !tool_steps.is_empty() || heard.iter().any(|step| !step.text.is_empty());
        let rest = meter.ends(&self.pipeline.token_rate, !had_effect);
        self.spend(rest, is_answer);
        if announced > 0 {
            let segment_id = format!("reply_{}", id.0);
            self.emit(VoiceEvent::AgentTranscript {
                segment_id,
                delta: String::new(),
                is_final: true,
            });
        }
        let whole = heard.iter().all(|step| step.whole);
        let texts: Vec<String> = heard.into_iter().map(|step| step.text).collect();
        let content = texts
            .iter()
            .filter(|text| !text.is_empty())
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(" ");
        let mut texts = texts.into_iter();
        for step in tool_steps {
            self.remember(texts.next().unwrap_or_default(), Some(step));
        }
        for text in texts {
            self.remember(text, None);
        }
        let interrupted = cut_off && !whole;
        if content.is_empty() {
            self.turn_is_over(turn, interrupted);
            return;
        }
        let now = self.now();
        self.tell(Input::AgentSaid {
            text: content.clone(),
        });
        if first_sound.is_some() {
            metrics.stopped_speaking_at = Some(self.began_at + now);
        }
        let mut item = ConversationItem::assistant(content, self.began_at + now);
        item.interrupted = interrupted;
        item.metrics = Some(metrics);
        self.emit(VoiceEvent::ItemCommitted(item));
        self.turn_is_over(turn, interrupted);
    }

    /// The answer to a turn is over, and what it has cost is known.
    fn turn_is_over(&mut self, turn: Option<TurnRecord>, interrupted: bool) {
        let Some(mut turn) = turn else {
            return;
        };
        turn.interrupted = interrupted;
        turn.usage = std::mem::take(&mut self.spent);
        self.emit(VoiceEvent::TurnMeasured {
            turn,
            is_over: true,
        });
    }

    /// One round of the model in the history; a request for tools never without its answers.
    fn remember(&mut self, text: String, step: Option<ToolStep>) {
        let (tool_calls, outputs) = step
            .map(|step| (step.calls, step.outputs))
            .unwrap_or_default();
        if text.is_empty() && tool_calls.is_empty() {
            return;
        }
        let ids: Vec<String> = tool_calls.iter().map(|call| call.id.clone()).collect();
        self.history
            .push(ChatMessage::Assistant { text, tool_calls });
        self.history.extend(
            ids.into_iter()
                .zip(outputs)
                .map(|(call_id, output)| ChatMessage::Tool { call_id, output }),
        );
    }

    fn commit_user(&mut self, turn: UserTurn) {
        self.history.push(ChatMessage::User(turn.text.clone()));
        let asked_ended = self.unanswered.and_then(|(ended, ..)| ended);
        self.unanswered = Some((
            turn.speech_ended.or(asked_ended),
            turn.transcribed,
            turn.decided,
        ));
        let since_speech = |at: Time| {
            turn.speech_ended
                .map(|ended| millis(at.saturating_sub(ended)))
        };
        let metrics = TurnMetrics {
            started_speaking_at: turn.speech_started.map(|at| self.began_at + at),
            stopped_speaking_at: turn.speech_ended.map(|at| self.began_at + at),
            transcription_delay_ms: since_speech(turn.transcribed),
            end_of_turn_delay_ms: since_speech(turn.decided),
            ..TurnMetrics::default()
        };
        let mut item = ConversationItem::user(turn.text, self.began_at + self.now());
        item.transcript_confidence = turn.confidence;
        item.metrics = Some(metrics);
        self.emit(VoiceEvent::ItemCommitted(item));
    }

    fn report(&mut self, component: &str, message: String, recoverable: bool) {
        tracing::warn!(
            component,
            recoverable,
            "trouble in the conversation: {message}"
        );
        self.emit(VoiceEvent::Error {
            component: component.to_owned(),
            message,
            recoverable,
        });
    }

    fn emit(&mut self, event: VoiceEvent) {
        let must_arrive = matches!(
            event,
            VoiceEvent::ItemCommitted(_)
                | VoiceEvent::Keypad { .. }
                | VoiceEvent::AnsweredBy(_)
                | VoiceEvent::MessageLeft
                | VoiceEvent::ToolCalled { .. }
                | VoiceEvent::Usage(_)
                | VoiceEvent::TurnMeasured { .. }
        );
        if must_arrive || self.outbox.len() < MAX_WAITING_EVENTS {
            self.outbox.push_back(event);
        }
    }
}

fn tool_called(call: &ToolCall, output: &ToolOutput, took: Duration) -> VoiceEvent {
    VoiceEvent::ToolCalled {
        name: call.name.clone(),
        duration_ms: millis(took),
        is_error: output.is_error,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The reply's next event, or its end.
async fn next_of_reply(active: &mut Option<ActiveReply>) -> Event {
    let Some(active) = active else {
        return std::future::pending().await;
    };
    tokio::select! {
        biased;
        Some(event) = active.events.recv() => Event::Reply(event),
        result = &mut active.making => Event::ReplyOver(result),
    }
}

/// The words that somebody has spoken, when somebody has.
fn words_in(text: &str, may_be_music: bool) -> Option<String> {
    let words = marks::spoken_words(text);
    let is_made_up = may_be_music && marks::is_made_up(&words);
    let is_mark = words.is_empty() && !text.trim().is_empty();
    (!is_made_up && !is_mark).then_some(words)
}
