//! One reply, from the model's first token to the last sample that the output has sent.
//!
//! Four stages run side by side inside one future: `write` asks the model and cuts its text into sentences, `synthesise` opens the
//! sound of the next sentence while `fetch` reads the present one, `play` hands frames to the output. The future knows nothing of
//! turns: it makes sound up to the bounds of its [`Track`], which lets none of it out before it is told to. Dropping the future stops
//! all of it at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::BoxStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::config::{LimitsConfig, ms};
use super::playout::Track;
use super::resample::Resampler;
use super::speech_text::{SentenceSplitter, speakable};
use super::turn::{Failure, FailureKind};
use super::{AudioOutput, OutputClosed, Tools};
use crate::providers::llm::{ChatChunk, ChatMessage, ChatModel, ChatRequest, TokenUsage, ToolCall};
use crate::providers::tts::{SpeechRequest, SpeechStream, TextToSpeech};
use crate::providers::{Component, ProviderError};
use crate::session::Usage;
use crate::tools::{ToolEffect, ToolOutput};

/// The output is filled up to here, so that a late wake-up makes no hole …
const AHEAD_MAX: Duration = Duration::from_millis(240);

/// … and again when it has come down to here, so that there are few wake-ups.
const AHEAD_MIN: Duration = Duration::from_millis(120);

/// Frames between two reports of progress: 200 ms.
const FRAMES_PER_PROGRESS: u32 = 10;

/// An output whose queue does not empty for this long has stopped.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Sentences that may wait for their sound. The model is not read further while they do.
const SENTENCES_AHEAD: usize = 64;

/// What is used for making replies, for the whole conversation.
pub(super) struct Studio {
    pub limits: LimitsConfig,
    pub voice: Option<String>,
    pub language: Option<String>,
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
    /// The first sound came this long after its sentence.
    TtsFirstByte(Duration),
    /// A request has been paid for.
    Usage(Usage),
    /// Something went wrong, and what there was could be used all the same.
    Trouble(Failure),
}

/// One sentence on its way to the synthesiser.
struct Sentence {
    step: usize,
    text: String,
}

/// One sentence whose sound has begun to come.
struct Opened {
    sentence: Sentence,
    first: Vec<i16>,
    rest: SpeechStream,
}

/// Makes the reply and plays it into `track`'s output. Ends when all of it has been sent, or with the failure that ended it.
pub(super) async fn make(
    studio: Arc<Studio>,
    source: Source,
    track: Arc<Track>,
    events: mpsc::Sender<ReplyEvent>,
) -> Result<(), Failure> {
    let (sentences, sentences_in) = mpsc::channel(SENTENCES_AHEAD);
    // One sentence that is opened or being opened, beside the one that is read.
    let (opened, opened_in) = mpsc::channel(1);
    let (_, _, _, _) = tokio::try_join!(
        write(&studio, source, sentences, &events),
        synthesise(&studio, sentences_in, opened, &events),
        fetch(&studio, opened_in, &track, &events),
        play(&studio, &track, &events),
    )?;
    Ok(())
}

// ---- words ----

async fn write(
    studio: &Studio,
    source: Source,
    sentences: mpsc::Sender<Sentence>,
    events: &mpsc::Sender<ReplyEvent>,
) -> Result<(), Failure> {
    match source {
        Source::Line(line) => {
            let mut splitter = SentenceSplitter::default();
            let parts = splitter.push(&line);
            for text in parts.into_iter().chain(splitter.finish()) {
                say(&sentences, 0, &text).await;
            }
            Ok(())
        }
        Source::Model(messages) => converse(studio, messages, sentences, events).await,
    }
}

/// Rounds of model and tools.
async fn converse(
    studio: &Studio,
    mut messages: Vec<ChatMessage>,
    sentences: mpsc::Sender<Sentence>,
    events: &mpsc::Sender<ReplyEvent>,
) -> Result<(), Failure> {
    let mut may_use_tools = true;
    let mut spoken = false;
    for step in 0.. {
        let tools = if may_use_tools {
            studio.tools.definitions()
        } else {
            Vec::new()
        };
        let request = ChatRequest {
            messages: messages.clone(),
            tools,
        };
        let answer = ask(studio, request, step, &sentences, events, spoken).await?;
        spoken |= !answer.text.is_empty();
        if answer.calls.is_empty() {
            return Ok(());
        }
        let (outputs, outputs_in) = oneshot::channel();
        send(
            events,
            ReplyEvent::ToolsWanted {
                calls: answer.calls.clone(),
                outputs,
            },
        )
        .await;
        // Nobody answers any more when the conversation is over.
        let Ok(outputs) = outputs_in.await else {
            return Ok(());
        };
        let ends_call = outputs
            .iter()
            .any(|output| output.effect == ToolEffect::EndCall);
        if ends_call && spoken {
            // It has said goodbye along with the request; asking again would say it twice.
            return Ok(());
        }
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
        may_use_tools = !ends_call && step as u32 + 1 < studio.limits.max_tool_steps;
    }
    Ok(())
}

/// What the model said in one round.
#[derive(Default)]
struct Answer {
    text: String,
    calls: Vec<ToolCall>,
}

/// One request to the model; its sentences go out as they are complete.
async fn ask(
    studio: &Studio,
    request: ChatRequest,
    step: usize,
    sentences: &mpsc::Sender<Sentence>,
    events: &mpsc::Sender<ReplyEvent>,
    mut spoken: bool,
) -> Result<Answer, Failure> {
    let asked = Instant::now();
    let limits = &studio.limits;
    let open = || -> BoxFuture<'_, Result<_, ProviderError>> {
        let request = request.clone();
        Box::pin(
            async move { open_stream(limits, studio.llm.name(), studio.llm.chat(request)).await },
        )
    };
    let (first, mut rest) = with_retries(limits, Component::Llm, open).await?;
    send(events, ReplyEvent::LlmFirstToken(asked.elapsed())).await;
    let mut answer = Answer::default();
    let mut splitter = SentenceSplitter::default();
    let mut tokens = TokenUsage::default();
    let mut next = first;
    while let Some(chunk) = next {
        match chunk {
            ChatChunk::Text(text) => {
                answer.text.push_str(&text);
                for text in splitter.push(&text) {
                    spoken |= say(sentences, step, &text).await;
                }
            }
            ChatChunk::ToolCall(call) => answer.calls.push(call),
            ChatChunk::Usage(usage) => tokens = usage,
            ChatChunk::CutShort(_) => {}
        }
        if answer.text.len() > limits.max_reply_bytes {
            break;
        }
        next = match next_chunk(limits, studio.llm.name(), &mut rest).await {
            Ok(next) => next,
            Err(error) => {
                let failure = failure(Component::Llm, error);
                if !spoken {
                    return Err(failure);
                }
                // Half an answer that the caller has heard is better finished than taken back.
                send(events, ReplyEvent::Trouble(failure)).await;
                None
            }
        };
    }
    if let Some(text) = splitter.finish() {
        say(sentences, step, &text).await;
    }
    let usage = Usage {
        llm_requests: 1,
        llm_prompt_tokens: tokens.prompt,
        llm_prompt_cached_tokens: tokens.prompt_cached,
        llm_completion_tokens: tokens.completion,
        ..Usage::default()
    };
    send(events, ReplyEvent::Usage(usage)).await;
    Ok(answer)
}

/// Passes a sentence on. False if there is nothing in it to say.
async fn say(sentences: &mpsc::Sender<Sentence>, step: usize, text: &str) -> bool {
    let text = speakable(text);
    if text.is_empty() {
        return false;
    }
    // The receiver lives as long as this future.
    let _ = sentences.send(Sentence { step, text }).await;
    true
}

// ---- sound ----

async fn synthesise(
    studio: &Studio,
    mut sentences: mpsc::Receiver<Sentence>,
    opened: mpsc::Sender<Opened>,
    events: &mpsc::Sender<ReplyEvent>,
) -> Result<(), Failure> {
    let limits = &studio.limits;
    let mut is_first = true;
    while let Some(sentence) = sentences.recv().await {
        let Ok(place) = opened.reserve().await else {
            return Ok(());
        };
        let asked = Instant::now();
        let open = || -> BoxFuture<'_, Result<_, ProviderError>> {
            let request = SpeechRequest {
                text: sentence.text.clone(),
                voice: studio.voice.clone(),
                language: studio.language.clone(),
            };
            Box::pin(async move {
                open_stream(limits, studio.tts.name(), studio.tts.synthesize(request)).await
            })
        };
        let (first, rest) = with_retries(limits, Component::Tts, open).await?;
        if std::mem::take(&mut is_first) {
            send(events, ReplyEvent::TtsFirstByte(asked.elapsed())).await;
        }
        place.send(Opened {
            sentence,
            first: first.unwrap_or_default(),
            rest,
        });
    }
    Ok(())
}

async fn fetch(
    studio: &Studio,
    mut opened: mpsc::Receiver<Opened>,
    track: &Track,
    events: &mpsc::Sender<ReplyEvent>,
) -> Result<(), Failure> {
    let input_rate = studio.tts.sample_rate_hz();
    let mut is_ready = false;
    let mut sound = Vec::new();
    while let Some(Opened {
        sentence,
        first,
        mut rest,
    }) = opened.recv().await
    {
        let mut resampler = Resampler::new(input_rate, studio.output.sample_rate_hz());
        let characters = sentence.text.chars().count() as u64;
        let mut received = 0;
        track.lock().begin_sentence(sentence.text, sentence.step);
        let mut next = Some(first);
        while let Some(chunk) = next {
            received += chunk.len() as u64;
            sound.clear();
            resampler.push(&chunk, &mut sound);
            if !sound.is_empty() {
                track.push(&sound).await;
                if !is_ready {
                    is_ready = true;
                    send(events, ReplyEvent::AudioReady).await;
                }
            }
            let chunk = next_chunk(&studio.limits, studio.tts.name(), &mut rest).await;
            next = chunk.map_err(|error| failure(Component::Tts, error))?;
        }
        sound.clear();
        resampler.finish(&mut sound);
        track.push(&sound).await;
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
    studio: &Studio,
    track: &Track,
    events: &mpsc::Sender<ReplyEvent>,
) -> Result<(), Failure> {
    let output = &studio.output;
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

/// Tries `request` until it works, is refused for good, or has failed too often.
pub(super) async fn with_retries<'a, T>(
    limits: &LimitsConfig,
    component: Component,
    mut request: impl FnMut() -> BoxFuture<'a, Result<T, ProviderError>>,
) -> Result<T, Failure> {
    let mut retries = 0;
    loop {
        let error = match request().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let ProviderError::Temporary { retry_after, .. } = &error else {
            return Err(failure(component, error));
        };
        if retries >= limits.max_retries {
            return Err(failure(component, error));
        }
        let pause = ms(if retries == 0 {
            limits.first_retry_ms
        } else {
            limits.retry_ms
        });
        retries += 1;
        // A provider that asks for more time than a caller waits is as good as down; the watchdog decides.
        let pause = retry_after.unwrap_or(pause).max(pause);
        tracing::debug!(component = component.as_str(), retries, %error, "asking the provider again");
        sleep(pause).await;
    }
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
