//! One reply, from the model's first token to the last sample that the output has sent.
//!
//! Four stages run side by side inside one future: `write` asks the model and cuts its text into
//! sentences, `synthesise` opens the sound of the next sentence while `fetch` reads the present
//! one, `play` hands frames to the output. The future knows nothing of turns: it makes sound up to
//! the bounds of its [`Track`], which lets none of it out before it is told to. Dropping the future
//! stops all of it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::BoxStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::config::{LimitsConfig, ms};
use super::history;
use super::meter::{Meter, TokenRate};
use super::noise::{IsNoise, NoiseGuard};
use super::playout::Track;
use super::resample::Resampler;
use super::speech_text::{Speech, up_to_last_sentence};
use super::turn::{Failure, FailureKind};
use super::{AudioOutput, OutputClosed, Tools};
use crate::providers::llm::written::{Piece, Written};
use crate::providers::llm::{
    ChatChunk, ChatMessage, ChatModel, ChatRequest, CutShort, TokenUsage, ToolCall, ToolChoice,
};
use crate::providers::tts::{SpeechPiece, SpeechRequest, SpeechStream, TextToSpeech};
use crate::providers::{Component, Language, ProviderError, retry};
use crate::session::Usage;
use crate::tools::ToolOutput;

/// The output is filled up to here, so that a late wake-up makes no hole …
const AHEAD_MAX: Duration = Duration::from_millis(240);

/// … and again when it has come down to here, so that there are few wake-ups.
const AHEAD_MIN: Duration = Duration::from_millis(120);

/// Frames between two reports of progress: 200 ms.
const FRAMES_PER_PROGRESS: u32 = 10;

/// An output whose queue does not empty for this long has stopped.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The slowest speaker says this many characters a second, after a pause of this long; a voice that
/// goes on for longer rambles.
const SLOWEST_CHARS_PER_S: f64 = 2.0;
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Sentences that may wait for their sound. The model is not read further while they do.
const SENTENCES_AHEAD: usize = 64;

/// What is used for making replies, for the whole conversation.
pub(super) struct ReplyPipeline {
    pub limits: LimitsConfig,
    /// What is said when a provider failed in the middle of a reply.
    pub say_again: String,
    /// What is said before hanging up when the model ends the call without a word; may be empty.
    pub goodbye: String,
    /// Whether `goodbye` is the persona's own. If not, the model is asked for one first.
    pub goodbye_is_own: bool,
    /// The model begins its answers in mid thought; learnt from an answer that closed one.
    pub begins_in_thought: AtomicBool,
    /// How many tokens the model makes of a text.
    pub token_rate: TokenRate,
    pub voice: Option<String>,
    pub language: Option<Language>,
    pub llm: Arc<dyn ChatModel>,
    pub tts: Arc<dyn TextToSpeech>,
    pub tools: Arc<dyn Tools>,
    pub output: Arc<dyn AudioOutput>,
}

/// Where the words come from.
pub(super) enum Source {
    /// They are given.
    Line(String),
    /// The model answers this history.
    Model(Vec<ChatMessage>),
}

/// What happens while a reply is made.
pub(super) enum ReplyEvent {
    /// There is sound.
    AudioReady,
    /// The output has taken sound; `first` of all.
    Progress { first: bool },
    /// The model wants these tools. Their outputs are awaited.
    ToolsWanted {
        calls: Vec<ToolCall>,
        outputs: oneshot::Sender<Vec<ToolOutput>>,
    },
    /// The model's first token came this long after the request.
    LlmFirstToken(Duration),
    /// There are words to be made sound of.
    WordsReady,
    /// The first sound came this long after its sentence.
    TtsFirstByte(Duration),
    /// A request has been paid for.
    Usage(Usage),
    /// Something went wrong, and what there was could be used all the same.
    Trouble(Failure),
}

/// One sentence in transit to the synthesiser.
struct Sentence {
    step: usize,
    text: String,
}

/// One sentence whose sound has begun to come.
struct Opened {
    sentence: Sentence,
    first: SpeechPiece,
    rest: SpeechStream,
}

/// Makes the reply and plays it into `track`'s output. Ends when all of it has been sent, or with
/// the failure that ended it.
pub(super) async fn make(
    pipeline: Arc<ReplyPipeline>,
    source: Source,
    track: Arc<Track>,
    meter: Arc<Meter>,
    events: mpsc::Sender<ReplyEvent>,
) -> Result<(), Failure> {
    let (sentences, sentences_in) = mpsc::channel(SENTENCES_AHEAD);
    // One sentence that is opened or being opened, beside the one that is read.
    let (opened, opened_in) = mpsc::channel(1);
    let (_, _, _, _) = tokio::try_join!(
        write(&pipeline, source, sentences, &meter, &events),
        synthesise(&pipeline, sentences_in, opened, &meter, &events),
        fetch(&pipeline, opened_in, &track, &events),
        play(&pipeline, &track, &events),
    )?;
    Ok(())
}

// ---- words ----

async fn write(
    pipeline: &ReplyPipeline,
    source: Source,
    sentences: mpsc::Sender<Sentence>,
    meter: &Meter,
    events: &mpsc::Sender<ReplyEvent>,
) -> Result<(), Failure> {
    let mut writer = Writer {
        pipeline,
        sentences,
        meter,
        events,
        step: 0,
        has_spoken: false,
        last_words: None,
    };
    match source {
        Source::Line(line) => {
            writer.say(&line).await;
            Ok(())
        }
        Source::Model(messages) => writer.converse(messages).await,
    }
}

/// Why there is no answer of the model.
enum AskFailure {
    /// It could not be asked, after all retries.
    NotAsked(Failure),
    /// Its answer broke off before a word of it was said.
    BrokeOff(Failure),
}

/// What the model said in one round.
#[derive(Default)]
struct Answer {
    text: String,
    calls: Vec<ToolCall>,
    /// Some of it is spoken.
    is_spoken: bool,
    cut_short: Option<CutShort>,
}

/// Writes the words of one reply.
struct Writer<'a> {
    pipeline: &'a ReplyPipeline,
    sentences: mpsc::Sender<Sentence>,
    meter: &'a Meter,
    events: &'a mpsc::Sender<ReplyEvent>,
    /// Rounds of tools so far.
    step: usize,
    /// The caller will hear something of this reply.
    has_spoken: bool,
    /// The round of the last words.
    last_words: Option<usize>,
}

impl Writer<'_> {
    /// Rounds of model and tools. Whatever the model answers, there are at most `max_tool_steps`
    /// rounds of tools, one answer after them, and one request more than that; and either something
    /// is said, or the reply fails, so that the caller is asked to say it again.
    async fn converse(&mut self, mut messages: Vec<ChatMessage>) -> Result<(), Failure> {
        let mut ends_call = false;
        let mut has_asked_again = false;
        loop {
            let may_use_tools =
                !ends_call && self.step < self.pipeline.limits.max_tool_steps as usize;
            // The outputs of tools may be long.
            history::bound(&mut messages, self.pipeline.limits.max_history_tokens);
            let request = ChatRequest {
                messages: messages.clone(),
                // Some vendors want to know the tools of the history even if none may be used.
                tools: self.pipeline.tools.definitions(),
                tool_choice: match may_use_tools {
                    true => ToolChoice::Auto,
                    false => ToolChoice::None,
                },
            };
            let answer = match self.ask(request, has_asked_again).await {
                Ok(answer) => answer,
                Err(AskFailure::BrokeOff(failure)) if !has_asked_again && !self.has_spoken => {
                    has_asked_again = true;
                    self.trouble(failure).await;
                    continue;
                }
                Err(AskFailure::NotAsked(failure) | AskFailure::BrokeOff(failure)) => {
                    return self.give_up(failure, ends_call).await;
                }
            };
            if may_use_tools && !answer.calls.is_empty() {
                let is_spoken = answer.is_spoken;
                let Some(ended) = self.use_tools(answer, &mut messages).await else {
                    return Ok(());
                };
                ends_call = ended;
                self.step += 1;
                if ends_call && is_spoken {
                    // It has said goodbye along with the request; asking again would say it twice.
                    return Ok(());
                }
                if ends_call && self.pipeline.goodbye_is_own {
                    self.say(&self.pipeline.goodbye).await;
                    return Ok(());
                }
                continue;
            }
            let wants_tools = !answer.calls.is_empty();
            if wants_tools {
                let rounds = self.step;
                self.trouble(model_failure(format!(
                    "{} asks for tools again after {rounds} rounds of them (voice.limits.max_tool_steps); they are not run",
                    self.pipeline.llm.name()
                )))
                .await;
            }
            if answer.is_spoken {
                return Ok(());
            }
            let failure = self.wordless(&answer, wants_tools);
            if ends_call || self.has_spoken {
                // After what was said along with its request for a tool the model may have nothing
                // to add; a filter or a loop is no such silence.
                if ends_call || wants_tools || answer.cut_short.is_some() {
                    return self.give_up(failure, ends_call).await;
                }
                return Ok(());
            }
            let asking_helps =
                !wants_tools && !matches!(answer.cut_short, Some(CutShort::Filter(_)));
            if has_asked_again || !asking_helps {
                return Err(failure);
            }
            has_asked_again = true;
            self.trouble(failure).await;
        }
    }

    /// There will be no answer. What the caller hears instead is said here when the reply has begun
    /// to be heard, or ends the call; else the machine knows what to say.
    async fn give_up(&mut self, failure: Failure, ends_call: bool) -> Result<(), Failure> {
        let line = if ends_call {
            &self.pipeline.goodbye
        } else if self.has_spoken {
            &self.pipeline.say_again
        } else {
            return Err(failure);
        };
        self.trouble(failure).await;
        self.say(line).await;
        Ok(())
    }

    /// Runs what the model asks for and adds it to `messages`. Answers whether that ends the call;
    /// nothing when the conversation is over.
    async fn use_tools(&mut self, answer: Answer, messages: &mut Vec<ChatMessage>) -> Option<bool> {
        let (outputs, outputs_in) = oneshot::channel();
        let calls = answer.calls.clone();
        self.tell(ReplyEvent::ToolsWanted { calls, outputs }).await;
        // Nobody answers any more when the conversation is over.
        let outputs = outputs_in.await.ok()?;
        let ends_call = outputs.iter().any(|output| output.request.is_some());
        let ids: Vec<String> = answer.calls.iter().map(|call| call.id.clone()).collect();
        messages.push(ChatMessage::Assistant {
            text: answer.text,
            tool_calls: answer.calls,
        });
        messages.extend(
            ids.into_iter()
                .zip(outputs)
                .map(|(call_id, output)| ChatMessage::Tool {
                    call_id,
                    output: output.text,
                }),
        );
        Some(ends_call)
    }

    /// An answer without a word, as a failure that says what there was instead.
    fn wordless(&self, answer: &Answer, wants_tools: bool) -> Failure {
        let name = self.pipeline.llm.name();
        model_failure(match &answer.cut_short {
            Some(CutShort::Filter(filter)) => {
                format!("{name} gave no answer: its filter stopped it ({filter})")
            }
            Some(CutShort::Length) => format!(
                "{name} used all its tokens without a word for the caller (finish_reason length; providers.llm_max_tokens)"
            ),
            None if wants_tools => format!("{name} asks for tools instead of answering"),
            None => format!("{name} answered without a word for the caller"),
        })
    }

    /// One request to the model; its sentences go out as they are complete. In the last attempt
    /// half a sentence is better than none.
    async fn ask(&mut self, request: ChatRequest, is_last: bool) -> Result<Answer, AskFailure> {
        let pipeline = self.pipeline;
        let asked = Instant::now();
        let limits = &pipeline.limits;
        let meter = self.meter;
        let characters = characters(&request);
        let open = || -> BoxFuture<'_, Result<_, ProviderError>> {
            let asking = pipeline.llm.chat(request.clone());
            Box::pin(async move {
                let taken = async {
                    let answer = asking.await?;
                    meter.request_begins(characters);
                    Ok(answer)
                };
                open_stream(limits, pipeline.llm.name(), taken).await
            })
        };
        let asking = meter.llm.watch(with_retries(limits, Component::Llm, open));
        let (first, mut rest) = match asking.await {
            Ok(opened) => opened,
            Err(failure) => {
                self.request_ends(TokenUsage::default(), true).await;
                return Err(AskFailure::NotAsked(failure));
            }
        };
        meter.first_token();
        self.tell(ReplyEvent::LlmFirstToken(asked.elapsed())).await;
        let mut answer = Answer::default();
        let begins_in_thought = pipeline.begins_in_thought.load(Ordering::Relaxed);
        let offered = match request.tool_choice {
            ToolChoice::None => &[][..],
            ToolChoice::Auto | ToolChoice::Required => &request.tools,
        };
        let mut written = Written::new(offered, begins_in_thought);
        let mut speech = Speech::default();
        let mut tokens = TokenUsage::default();
        // Unique in the history, and nine letters or digits, as Mistral's interface wants them.
        let next_id = |calls: &[ToolCall]| {
            let number = request.messages.len() * 100 + calls.len();
            format!("call{:05}", number % 100_000)
        };
        let mut next = first;
        loop {
            let is_over = next.is_none();
            let pieces = match next {
                Some(ChatChunk::Text(text)) => {
                    meter.written(text.chars().count());
                    written.push(&text)
                }
                Some(ChatChunk::ToolCall(call)) => {
                    meter.written(call.name.len() + call.arguments.chars().count());
                    answer.calls.push(call);
                    Vec::new()
                }
                Some(ChatChunk::Usage(usage)) => {
                    tokens = usage;
                    Vec::new()
                }
                Some(ChatChunk::CutShort(cut)) => {
                    answer.cut_short = Some(cut);
                    Vec::new()
                }
                None => written.finish(),
            };
            for piece in pieces {
                match piece {
                    Piece::Text(text) => {
                        answer.text.push_str(&text);
                        for text in speech.push(&text) {
                            self.sentence(text).await;
                            answer.is_spoken = true;
                        }
                    }
                    Piece::Call { name, arguments } => {
                        let id = next_id(&answer.calls);
                        answer.calls.push(ToolCall {
                            id,
                            name,
                            arguments,
                        });
                    }
                    Piece::Dropped => {
                        self.trouble(model_failure(format!(
                            "{} wrote a request for a tool or other JSON into its text that cannot be run; it is not spoken",
                            pipeline.llm.name()
                        )))
                        .await;
                    }
                    Piece::ThoughtsBefore => {
                        speech = Speech::default();
                        answer.text.clear();
                        if !pipeline.begins_in_thought.swap(true, Ordering::Relaxed) {
                            self.trouble(model_failure(format!(
                                "{} closed a thought that it had not opened; from now on its answers count from there",
                                pipeline.llm.name()
                            )))
                            .await;
                        }
                    }
                }
            }
            if is_over || answer.text.len() > limits.max_reply_bytes {
                break;
            }
            next = match next_chunk(limits, pipeline.llm.name(), &mut rest).await {
                Ok(next) => next,
                Err(error) => {
                    let failure = failure(Component::Llm, error);
                    let has_words = answer.is_spoken || self.has_spoken;
                    let says_half = is_last && !answer.text.trim().is_empty();
                    if !has_words && !says_half {
                        self.request_ends(tokens, true).await;
                        return Err(AskFailure::BrokeOff(failure));
                    }
                    // Half an answer that the caller has heard is better finished than taken back.
                    self.trouble(failure).await;
                    None
                }
            };
        }
        let is_cut = answer.cut_short == Some(CutShort::Length)
            || answer.text.len() > limits.max_reply_bytes;
        for text in speech.finish() {
            let whole = up_to_last_sentence(&text);
            let said = match is_cut && whole.len() < text.len() {
                // Half a sentence is better than none.
                true if !whole.is_empty() || answer.is_spoken => whole,
                _ => text.as_str(),
            };
            if said.len() < text.len() {
                self.trouble(model_failure(format!(
                    "{} had no tokens left in the middle of a sentence, which is left out (max_tokens, voice.limits.max_reply_bytes)",
                    pipeline.llm.name()
                )))
                .await;
            }
            if !said.is_empty() {
                self.sentence(said.to_owned()).await;
                answer.is_spoken = true;
            }
        }
        if answer.is_spoken
            && let Some(CutShort::Filter(filter)) = &answer.cut_short
        {
            self.trouble(model_failure(format!(
                "the filter of {} stopped the answer in the middle ({filter})",
                pipeline.llm.name()
            )))
            .await;
        }
        let is_of_use = answer.is_spoken || !answer.calls.is_empty();
        self.request_ends(tokens, !is_of_use).await;
        Ok(answer)
    }

    /// A request to the model is over, and has cost what it has told.
    async fn request_ends(&self, told: TokenUsage, in_vain: bool) {
        let rate = &self.pipeline.token_rate;
        let usage = self.meter.request_ends(rate, told, in_vain);
        if usage != Usage::default() {
            self.tell(ReplyEvent::Usage(usage)).await;
        }
    }

    /// Says a fixed line.
    async fn say(&mut self, line: &str) {
        let mut speech = Speech::default();
        let parts = speech.push(line);
        for text in parts.into_iter().chain(speech.finish()) {
            self.sentence(text).await;
        }
    }

    /// Passes a sentence on.
    async fn sentence(&mut self, text: String) {
        let step = self.step;
        self.has_spoken = true;
        if self.last_words.replace(step) != Some(step) {
            self.tell(ReplyEvent::WordsReady).await;
        }
        // The receiver lives as long as this future.
        let _ = self.sentences.send(Sentence { step, text }).await;
    }

    async fn trouble(&self, failure: Failure) {
        self.tell(ReplyEvent::Trouble(failure)).await;
    }

    async fn tell(&self, event: ReplyEvent) {
        send(self.events, event).await;
    }
}

/// The length of what the model is sent.
fn characters(request: &ChatRequest) -> usize {
    let messages = request.messages.iter().map(|message| match message {
        ChatMessage::System(text) | ChatMessage::User(text) => text.chars().count(),
        ChatMessage::Assistant { text, tool_calls } => {
            let calls = tool_calls.iter();
            let calls = calls.map(|call| call.name.len() + call.arguments.chars().count());
            text.chars().count() + calls.sum::<usize>()
        }
        ChatMessage::Tool { output, .. } => output.chars().count(),
    });
    let tools = request.tools.iter().map(|tool| {
        tool.name.len() + tool.description.chars().count() + tool.parameters.to_string().len()
    });
    messages.chain(tools).sum()
}

fn model_failure(message: String) -> Failure {
    failure(Component::Llm, ProviderError::temporary(message))
}

// ---- sound ----

async fn synthesise(
    pipeline: &ReplyPipeline,
    mut sentences: mpsc::Receiver<Sentence>,
    opened: mpsc::Sender<Opened>,
    meter: &Meter,
    events: &mpsc::Sender<ReplyEvent>,
) -> Result<(), Failure> {
    let limits = &pipeline.limits;
    let mut is_first = true;
    while let Some(sentence) = sentences.recv().await {
        let Ok(place) = opened.reserve().await else {
            return Ok(());
        };
        let asked = Instant::now();
        let open = || -> BoxFuture<'_, Result<_, ProviderError>> {
            let request = SpeechRequest {
                text: sentence.text.clone(),
                voice: pipeline.voice.clone(),
                language: pipeline.language.clone(),
            };
            Box::pin(async move {
                let name = pipeline.tts.name();
                let (first, rest) =
                    open_stream(limits, name, pipeline.tts.synthesize(request)).await?;
                // A sentence has words, so that no sound is no answer.
                let first = first.ok_or_else(|| {
                    ProviderError::temporary(format!("{name} answered without any sound"))
                })?;
                Ok((first, rest))
            })
        };
        let asking = meter.tts.watch(with_retries(limits, Component::Tts, open));
        let (first, rest) = asking.await?;
        meter.first_byte();
        if std::mem::take(&mut is_first) {
            send(events, ReplyEvent::TtsFirstByte(asked.elapsed())).await;
        }
        place.send(Opened {
            sentence,
            first,
            rest,
        });
    }
    Ok(())
}

async fn fetch(
    pipeline: &ReplyPipeline,
    mut opened: mpsc::Receiver<Opened>,
    track: &Track,
    events: &mpsc::Sender<ReplyEvent>,
) -> Result<(), Failure> {
    let input_rate = pipeline.tts.sample_rate_hz();
    let mut is_ready = false;
    let mut sound = Vec::new();
    while let Some(Opened {
        sentence,
        first,
        mut rest,
    }) = opened.recv().await
    {
        let mut resampler = Resampler::new(input_rate, pipeline.output.sample_rate_hz());
        let mut guard = NoiseGuard::new(input_rate);
        let noise = |IsNoise| {
            let name = pipeline.tts.name();
            let error = ProviderError::temporary(format!(
                "{name} sent noise at full volume instead of speech; it is not played"
            ));
            failure(Component::Tts, error)
        };
        let characters = sentence.text.chars().count() as u64;
        let longest = LONGEST_PAUSE.as_secs_f64() + characters as f64 / SLOWEST_CHARS_PER_S;
        let longest = (longest * f64::from(input_rate)) as u64;
        let mut received = 0;
        track.lock().begin_sentence(sentence.text, sentence.step);
        let mut next = Some(first);
        while let Some(piece) = next {
            match piece {
                SpeechPiece::Words(words) => track.lock().add_words(&words),
                SpeechPiece::Sound(chunk) => {
                    received += chunk.len() as u64;
                    sound.clear();
                    resampler.push(&guard.push(&chunk).map_err(noise)?, &mut sound);
                }
            }
            if !sound.is_empty() {
                track.push(&sound).await;
                sound.clear();
                if !is_ready {
                    is_ready = true;
                    send(events, ReplyEvent::AudioReady).await;
                }
            }
            if received > longest {
                let message = format!(
                    "{} goes on speaking after {} s for {characters} characters; the rest is left out",
                    pipeline.tts.name(),
                    received / u64::from(input_rate.max(1))
                );
                let failure = failure(Component::Tts, ProviderError::temporary(message));
                send(events, ReplyEvent::Trouble(failure)).await;
                break;
            }
            let chunk = next_chunk(&pipeline.limits, pipeline.tts.name(), &mut rest).await;
            next = chunk.map_err(|error| failure(Component::Tts, error))?;
        }
        sound.clear();
        resampler.push(&guard.finish().map_err(noise)?, &mut sound);
        resampler.finish(&mut sound);
        track.push(&sound).await;
        // A sound that is shorter than the guard's window has come out only now.
        if !is_ready && !sound.is_empty() {
            is_ready = true;
            send(events, ReplyEvent::AudioReady).await;
        }
        track.lock().end_sentence();
        let usage = Usage {
            tts_requests: 1,
            tts_characters: characters,
            tts_audio_ms: received * 1_000 / u64::from(input_rate.max(1)),
            ..Usage::default()
        };
        send(events, ReplyEvent::Usage(usage)).await;
    }
    track.finish();
    Ok(())
}

async fn play(
    pipeline: &ReplyPipeline,
    track: &Track,
    events: &mpsc::Sender<ReplyEvent>,
) -> Result<(), Failure> {
    let output = &pipeline.output;
    // 20 ms: what a packet of Opus carries.
    let frame_len = (output.sample_rate_hz() / 50).max(1) as usize;
    let mut frame = Vec::with_capacity(frame_len);
    let mut frames: u32 = 0;
    loop {
        let queued = output.queued();
        if queued >= AHEAD_MAX {
            sleep(queued - AHEAD_MIN).await;
        }
        if !track.next_frame(frame_len, &mut frame).await {
            break;
        }
        // A pause does not wait for an output that is stuck: it forgets the frame.
        let taken = match select(output.capture(&frame), Box::pin(track.stopped())).await {
            Either::Left((taken, _)) => taken,
            Either::Right(_) => continue,
        };
        if taken == Err(OutputClosed) {
            // The call is about to learn that from the room; until then nobody hears anything.
            track.lock().finish();
            return Ok(());
        }
        if frames.is_multiple_of(FRAMES_PER_PROGRESS) {
            send(events, ReplyEvent::Progress { first: frames == 0 }).await;
        }
        frames = frames.wrapping_add(1);
    }
    let drained = async {
        while !output.queued().is_zero() {
            sleep(output.queued().max(ms(5))).await;
        }
    };
    // Whatever is left after that will not be heard; the reply is over all the same.
    let _ = timeout(DRAIN_TIMEOUT, drained).await;
    Ok(())
}

// ---- providers ----

/// Starts a stream and waits for its first piece.
async fn open_stream<T>(
    limits: &LimitsConfig,
    name: &str,
    request: impl Future<Output = Result<BoxStream<'static, Result<T, ProviderError>>, ProviderError>>,
) -> Result<(Option<T>, BoxStream<'static, Result<T, ProviderError>>), ProviderError> {
    let mut stream = match timeout(ms(limits.request_timeout_ms), request).await {
        Ok(stream) => stream?,
        Err(_) => {
            return Err(too_slow(
                name,
                "did not accept the request",
                limits.request_timeout_ms,
            ));
        }
    };
    match timeout(ms(limits.first_chunk_timeout_ms), stream.next()).await {
        Ok(first) => Ok((first.transpose()?, stream)),
        Err(_) => Err(too_slow(
            name,
            "accepted the request but sent nothing",
            limits.first_chunk_timeout_ms,
        )),
    }
}

async fn next_chunk<T>(
    limits: &LimitsConfig,
    name: &str,
    stream: &mut BoxStream<'static, Result<T, ProviderError>>,
) -> Result<Option<T>, ProviderError> {
    match timeout(ms(limits.chunk_gap_timeout_ms), stream.next()).await {
        Ok(next) => next.transpose(),
        Err(_) => Err(too_slow(
            name,
            "stopped in the middle of its answer",
            limits.chunk_gap_timeout_ms,
        )),
    }
}

fn too_slow(name: &str, what: &str, after_ms: u64) -> ProviderError {
    ProviderError::temporary(format!("{name} {what} for {after_ms} ms"))
}

/// Asks a provider as often as the settings want it.
async fn with_retries<'a, T>(
    limits: &LimitsConfig,
    component: Component,
    request: impl FnMut() -> BoxFuture<'a, Result<T, ProviderError>>,
) -> Result<T, Failure> {
    retry::with_retries(limits, request)
        .await
        .map_err(|error| failure(component, error))
}

/// What the machine is told about an error.
pub(super) fn failure(component: Component, error: ProviderError) -> Failure {
    let kind = match &error {
        ProviderError::Temporary { .. } => FailureKind::Temporary,
        ProviderError::Config { .. } => FailureKind::Config,
        ProviderError::BadInput { .. } => FailureKind::BadInput,
    };
    Failure {
        component,
        message: error.to_string(),
        kind,
    }
}

async fn send(events: &mpsc::Sender<ReplyEvent>, event: ReplyEvent) {
    // The driver holds the receiver for as long as it polls this future.
    let _ = events.send(event).await;
}
