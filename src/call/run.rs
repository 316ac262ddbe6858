//! One call, told from top to bottom: join, find the caller, learn who is calling, record, talk, hang up, write the record, leave.
//!
//! One loop owns the state of the call. Whatever happens, in whatever order, reaches it as an event: the room, the worker, the
//! conversation, a signal, a deadline. It ends with a [`HangupCause`], and every cause ends in a record. The record is written
//! before the room is left, so that nothing that goes wrong while leaving can cost it.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use livekit::RoomEvent;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use super::dispatch::{self, numbers_metadata};
use super::hangup::{Ending, HangupCause};
use super::numbers::{Numbers, mask};
use super::persona::{Persona, Personas};
use super::publish::{Publisher, Words};
use super::room::{self, CallRoom, Caller, CallerTrack, LISTEN_SAMPLE_RATE_HZ, RoomHappening};
use crate::config::{Config, LiveKitSettings};
use crate::ipc::{FromCall, FromWorker, JobDescription, ShutdownReason, ToCall, ToWorker};
use crate::providers::{Component, Providers};
use crate::recording::Recorder;
use crate::session::{self, CallMetadata, Outcome, SharedSession};
use crate::store::{Store, StoreError, Unfinished};
use crate::tools::Toolbox;
use crate::voice::{AudioFrame, Conversation, VoiceCommand, VoiceEnd, VoiceEvent};

/// Frames of the caller's sound on the way to the conversation: half a second, then new ones are dropped.
const AUDIO_QUEUE: usize = 50;
/// Events and commands of the conversation that may wait.
const VOICE_QUEUE: usize = 64;
/// How long somebody whose connection was replaced may take to come back.
const RETURN_GRACE: Duration = Duration::from_secs(1);
/// How long the conversation may take to say its last words after it was told to close.
const LAST_WORDS: Duration = Duration::from_secs(8);
/// How long the conversation may take to stop at once and commit what was heard.
const STOP_AT_ONCE: Duration = Duration::from_secs(1);
/// How long the worker may take to pass on the final status before the room is left anyway.
const STATUS_WAIT: Duration = Duration::from_millis(500);
/// How long a record that the disk did not take is tried again; the worker waits as long for a call that has said its last word.
const LATE_RECORD_LIMIT: Duration = Duration::from_secs(50);
/// How often.
const LATE_RECORD_PAUSE: Duration = Duration::from_secs(2);
/// How long leaving the room may take.
const LEAVE_WAIT: Duration = Duration::from_secs(3);
/// How long the server may take to delete the room.
const DELETE_WAIT: Duration = Duration::from_secs(3);

/// What a call needs besides its job.
pub struct CallParts {
    /// All settings.
    pub config: Arc<Config>,
    /// The folders on disk.
    pub store: Store,
    /// Speech recognition, language model, speech synthesis.
    pub providers: Providers,
    /// Where personas come from.
    pub personas: Personas,
    /// The server's address and keys: for egress and for deleting the room. Without them both are left out.
    pub livekit: Option<LiveKitSettings>,
}

/// Why a call could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The record could not be started or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Holds the call of `job`. When this returns, the record is on disk and the room is left.
pub async fn run(
    job: JobDescription,
    parts: CallParts,
    mut from_worker: FromWorker,
    to_worker: ToWorker,
    mut stop: mpsc::Receiver<()>,
) -> Result<Ending, CallError> {
    let started = Instant::now();
    let (session, journal) = parts.store.open_session(&job.session_id)?;
    let job_metadata = read_job_metadata(&job);
    let nothing_more = HashMap::new();
    let numbers = Numbers::read(&job_metadata, &nothing_more, &job.room_name);
    session::lock(&session).set_call_metadata(numbers_metadata(&numbers));

    let timeout = Duration::from_secs(parts.config.call.join_timeout_s);
    let (cause, answered, room, recorder) =
        match CallRoom::join(&job.url, &job.token, &job.room_name, timeout).await {
            Err(error) => {
                identify(&job, &parts, &session, &job_metadata, &nothing_more).await;
                let cause = HangupCause::SetUpFailed {
                    message: error.to_string(),
                };
                (cause, false, None, None)
            }
            Ok((room, mut events)) => {
                info!(
                    duration_ms = started.elapsed().as_millis() as u64,
                    "joined the room, the agent's track is published"
                );
                session::lock(&session).set_joined(Utc::now());
                to_worker.send(FromCall::Joined);
                to_worker.send(FromCall::Running);
                let mut call = Call::new(&job, &parts, &session, &room, job_metadata);
                let cause = call
                    .until_end(&mut events, &mut from_worker, &mut stop)
                    .await;
                let (cause, answered, recorder) = call.close(cause, &mut events).await;
                (cause, answered, Some(room), recorder)
            }
        };

    let ending = cause.ending(answered);
    match &ending.error {
        Some(error) => warn!(%error, cause = ending.disconnect_reason, "the call failed"),
        None => info!(
            cause = ending.disconnect_reason,
            duration_ms = started.elapsed().as_millis() as u64,
            "the call ended"
        ),
    }
    if let Some(recorder) = recorder {
        recorder
            .finish(&session, !parts.config.call.delete_room)
            .await;
    }
    session::lock(&session).set_outcome(Outcome {
        close_reason: ending.close_reason,
        disconnect_reason: Some(ending.disconnect_reason.clone()),
        call_status: ending.call_status,
        error: ending.error.clone(),
        call_end: Some(Utc::now()),
    });
    let written = parts.store.finish(&session, journal);
    match &written {
        Ok(_) => to_worker.send(FromCall::RecordWritten {
            session_id: job.session_id.clone(),
        }),
        Err(unfinished) => {
            error!(error = %unfinished.error, "the record could not be written; it is tried again when the room is left")
        }
    }

    // The server takes an agent that leaves before its job's final status for one that failed.
    to_worker.send(FromCall::Finishing {
        success: ending.job_succeeded(),
        error: ending.error.clone(),
    });
    from_worker.status_sent(STATUS_WAIT).await;
    if let Some(room) = room {
        room.leave(LEAVE_WAIT).await;
    }
    // Last of all: a room that the server ends under us is the one that leaks (rust-sdks#1443).
    if parts.config.call.delete_room
        && !matches!(
            cause,
            HangupCause::SetUpFailed { .. } | HangupCause::RoomGone { .. }
        )
    {
        delete_room(&parts, &job.room_name).await;
    }
    if let Err(unfinished) = written {
        write_late(&parts.store, &session, unfinished).await?;
        to_worker.send(FromCall::RecordWritten {
            session_id: job.session_id.clone(),
        });
    }
    Ok(ending)
}

/// Tries to write the record of a call for a while longer: this process knows what a full disk did not take.
async fn write_late(
    store: &Store,
    session: &SharedSession,
    mut unfinished: Unfinished,
) -> Result<(), StoreError> {
    let end = Instant::now() + LATE_RECORD_LIMIT;
    loop {
        tokio::time::sleep(LATE_RECORD_PAUSE).await;
        match store.finish(session, unfinished.lock) {
            Ok(_) => {
                info!("the record is written");
                return Ok(());
            }
            Err(again) if Instant::now() < end => unfinished = again,
            Err(again) => return Err(again.error),
        }
    }
}

/// The dispatcher's metadata as JSON; text that is no JSON is kept in the record and otherwise ignored.
fn read_job_metadata(job: &JobDescription) -> Value {
    dispatch::job_metadata(job).unwrap_or_else(|problem| {
        warn!("the job metadata {problem}: numbers and persona are taken from elsewhere");
        Value::Null
    })
}

async fn delete_room(parts: &CallParts, room: &str) {
    let Some(livekit) = &parts.livekit else {
        return;
    };
    let client = livekit_api::services::room::RoomClient::with_api_key(
        &http_address(&livekit.url),
        &livekit.api_key,
        livekit.api_secret.expose(),
    );
    match tokio::time::timeout(DELETE_WAIT, client.delete_room(room)).await {
        Ok(Ok(())) => debug!("room deleted"),
        Ok(Err(error)) => debug!(%error, "the room could not be deleted; it may be gone already"),
        Err(_) => warn!(
            "the server did not delete the room within {} s",
            DELETE_WAIT.as_secs()
        ),
    }
}

/// The server's address for its HTTP services.
pub fn http_address(url: &str) -> String {
    match url.split_once("://") {
        Some(("ws", rest)) => format!("http://{rest}"),
        Some(("wss", rest)) => format!("https://{rest}"),
        _ => url.to_owned(),
    }
}

/// Finds out who calls whom and for which campaign, and puts it into the session: the CRM files every call by it, also one that
/// nobody answered.
async fn identify(
    job: &JobDescription,
    parts: &CallParts,
    session: &SharedSession,
    job_metadata: &Value,
    attributes: &HashMap<String, String>,
) -> Persona {
    let numbers = Numbers::read(job_metadata, attributes, &job.room_name);
    let order = [
        numbers.trunk_number.as_deref(),
        numbers.dialed_number.as_deref(),
    ];
    let persona = parts.personas.find(order.into_iter().flatten()).await;
    info!(
        persona = persona.name,
        direction = ?numbers.direction,
        number = numbers.dialed_number.as_deref().map(mask).unwrap_or_default(),
        "whose call this is"
    );
    let ids = session::CampaignIds::from_persona(&persona.full);
    let campaign = dispatch::campaign(persona.campaign_metadata(), job_metadata);
    let mut session = session::lock(session);
    session.set_call_metadata(CallMetadata {
        persona: Some(persona.name.clone()),
        campaign_id: ids.campaign_id,
        voice_agent_id: ids.voice_agent_id,
        client: ids.client,
        ..numbers_metadata(&numbers)
    });
    session.set_campaign_metadata(campaign);
    persona
}

/// How far the call has come.
enum Stage {
    /// Nobody is here yet.
    WaitingForCaller,
    /// The caller's telephone is ringing.
    Ringing(Caller),
    /// Caller and agent can hear each other.
    Talking(Box<Talk>),
}

/// The conversation in progress.
struct Talk {
    caller: String,
    commands: mpsc::Sender<VoiceCommand>,
    audio: mpsc::Sender<AudioFrame>,
    events: mpsc::Receiver<VoiceEvent>,
    conversation: JoinHandle<VoiceEnd>,
    /// Set while the caller's connection is being replaced.
    gone_until: Option<(Instant, &'static str)>,
}

/// The state of one call between joining and hanging up.
struct Call<'a> {
    job: &'a JobDescription,
    parts: &'a CallParts,
    session: &'a SharedSession,
    room: &'a CallRoom,
    job_metadata: Value,
    publisher: Publisher,
    stage: Stage,
    /// The sound of everybody who may be the caller, by identity: it may come before or after the caller is chosen.
    audible: Vec<(String, CallerTrack)>,
    recorder: Option<Recorder>,
    deadline: Instant,
    longest: Instant,
}

/// What the loop waits for, as one value.
enum Event {
    Room(Option<RoomEvent>),
    Chat(RoomHappening),
    Worker(Option<ToCall>),
    Voice(VoiceEvent),
    ConversationEnded(VoiceEnd),
    Stop,
    Deadline,
}

impl<'a> Call<'a> {
    fn new(
        job: &'a JobDescription,
        parts: &'a CallParts,
        session: &'a SharedSession,
        room: &'a CallRoom,
        job_metadata: Value,
    ) -> Self {
        let config = &parts.config.call;
        Self {
            job,
            parts,
            session,
            room,
            job_metadata,
            publisher: Publisher::start(room.voice()),
            stage: Stage::WaitingForCaller,
            audible: Vec::new(),
            recorder: None,
            deadline: Instant::now() + Duration::from_secs(config.caller_wait_s),
            longest: Instant::now() + Duration::from_secs(config.max_duration_s),
        }
    }

    async fn until_end(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<RoomEvent>,
        from_worker: &mut FromWorker,
        stop: &mut mpsc::Receiver<()>,
    ) -> HangupCause {
        let (chat, mut chats) = mpsc::channel(VOICE_QUEUE);
        session::lock(self.session).set_call_metadata(CallMetadata {
            room_sid: self.room.sid(),
            ..Default::default()
        });
        for caller in self.room.callers() {
            self.caller_here(caller).await;
        }
        loop {
            let event = {
                let deadline = self.next_deadline();
                let (voice, ended) = match &mut self.stage {
                    Stage::Talking(talk) => (Some(&mut talk.events), Some(&mut talk.conversation)),
                    _ => (None, None),
                };
                tokio::select! {
                    // What was said is committed before the end of the conversation is acted on.
                    biased;
                    event = next_or_never(voice) => Event::Voice(event),
                    end = joined_or_never(ended) => Event::ConversationEnded(end),
                    event = events.recv() => Event::Room(event),
                    Some(message) = chats.recv() => Event::Chat(message),
                    message = from_worker.next() => Event::Worker(message),
                    Some(()) = stop.recv() => Event::Stop,
                    () = sleep_until(deadline) => Event::Deadline,
                }
            };
            let cause = match event {
                Event::Voice(event) => {
                    self.voice_event(event);
                    None
                }
                Event::ConversationEnded(end) => Some(conversation_cause(end)),
                Event::Room(None) => Some(HangupCause::RoomGone {
                    reason: "UNKNOWN_REASON",
                }),
                Event::Room(Some(event)) => {
                    room::read_chat(&event, chat.clone());
                    match room::happening(event) {
                        Some(happening) => self.happened(happening).await,
                        None => None,
                    }
                }
                Event::Chat(happening) => self.happened(happening).await,
                Event::Worker(Some(ToCall::Shutdown {
                    reason: ShutdownReason::Termination,
                })) => Some(HangupCause::Terminated),
                Event::Worker(Some(ToCall::Shutdown {
                    reason: ShutdownReason::Finalise,
                }))
                | Event::Stop => Some(HangupCause::Finalised),
                Event::Worker(Some(_)) => None,
                Event::Worker(None) => {
                    warn!("the worker is gone; the call goes on without it");
                    None
                }
                Event::Deadline => self.deadline_passed(),
            };
            if let Some(cause) = cause {
                return cause;
            }
        }
    }

    fn next_deadline(&self) -> Instant {
        match &self.stage {
            Stage::Talking(talk) => talk
                .gone_until
                .map_or(self.longest, |(until, _)| until.min(self.longest)),
            _ => self.deadline.min(self.longest),
        }
    }

    fn deadline_passed(&self) -> Option<HangupCause> {
        match &self.stage {
            Stage::WaitingForCaller => Some(HangupCause::CallerNeverCame),
            Stage::Ringing(_) => Some(HangupCause::NeverAnswered),
            Stage::Talking(talk) => match talk.gone_until {
                Some((until, reason)) if until <= Instant::now() => {
                    Some(HangupCause::CallerLeft { reason })
                }
                _ => Some(HangupCause::MaxDuration),
            },
        }
    }

    async fn happened(&mut self, happening: RoomHappening) -> Option<HangupCause> {
        match happening {
            RoomHappening::CallerHere(caller) => self.caller_here(caller).await,
            RoomHappening::Audible { identity, track } => {
                self.audible.retain(|(known, _)| *known != identity);
                self.audible.push((identity.clone(), track));
                self.connect_sound(&identity);
            }
            RoomHappening::Left { identity, reason } => {
                self.audible.retain(|(known, _)| *known != identity);
                match &mut self.stage {
                    Stage::Talking(talk) if talk.caller == identity => {
                        if HangupCause::may_return(reason) {
                            talk.gone_until = Some((Instant::now() + RETURN_GRACE, reason));
                        } else {
                            return Some(HangupCause::CallerLeft { reason });
                        }
                    }
                    Stage::Ringing(caller) if caller.identity == identity => {
                        return Some(HangupCause::CallerLeft { reason });
                    }
                    _ => {}
                }
            }
            RoomHappening::Chat { identity, text } => {
                if let Stage::Talking(talk) = &self.stage
                    && talk.caller == identity
                {
                    // A conversation that is too busy for chat has lost its caller's patience anyway.
                    let _ = talk.commands.try_send(VoiceCommand::UserText(text));
                }
            }
            RoomHappening::Reconnected => info!("back in the room"),
            RoomHappening::Gone { reason } => {
                let left = match &self.stage {
                    Stage::Talking(talk) => talk.gone_until,
                    _ => None,
                };
                return Some(match left {
                    // The room goes with its caller: what the caller did is the better word for it.
                    Some((_, reason)) => HangupCause::CallerLeft { reason },
                    None => HangupCause::RoomGone { reason },
                });
            }
        }
        None
    }

    /// Somebody who may be the caller is in the room, or has new attributes.
    async fn caller_here(&mut self, caller: Caller) {
        if matches!(&self.stage, Stage::Talking(talk) if talk.caller == caller.identity) {
            self.note_participant(&caller.identity);
        }
        match &mut self.stage {
            Stage::Talking(talk) => {
                if talk.caller == caller.identity && talk.gone_until.take().is_some() {
                    info!("the caller is back");
                }
            }
            Stage::Ringing(ringing) if ringing.identity != caller.identity => {}
            Stage::WaitingForCaller | Stage::Ringing(_) if caller.has_answered() => {
                self.answered(caller).await
            }
            Stage::WaitingForCaller => {
                info!("the caller's telephone is ringing");
                session::lock(self.session).set_ringing(Utc::now());
                self.note_participant(&caller.identity);
                self.deadline =
                    Instant::now() + Duration::from_secs(self.parts.config.call.ring_wait_s);
                self.stage = Stage::Ringing(caller);
            }
            // Attributes come one after the other.
            Stage::Ringing(ringing) => *ringing = caller,
        }
    }

    /// From here on the two can hear each other: persona, recording, conversation.
    async fn answered(&mut self, caller: Caller) {
        self.note_participant(&caller.identity);
        let persona = self.identify(&caller.attributes).await;
        session::lock(self.session).set_answered(Utc::now());
        self.recorder = Recorder::start(
            &self.parts.config.recording,
            self.parts.livekit.as_ref(),
            &self.parts.store,
            self.session,
            &self.job.room_name,
            || self.room.listen_to_agent(),
        );
        if let Some(recorder) = &self.recorder {
            let limit = self.parts.config.recording.egress_start_wait_ms;
            recorder.records_within(Duration::from_millis(limit)).await;
        }
        self.stage = Stage::Talking(Box::new(
            self.start_conversation(caller.identity.clone(), persona),
        ));
        self.connect_sound(&caller.identity);
    }

    /// Keeps what the caller's participant says about itself: the record and the CRM get it.
    fn note_participant(&self, identity: &str) {
        if let Some(participant) = self.room.about(identity) {
            session::lock(self.session).set_participant(participant);
        }
    }

    async fn identify(&self, attributes: &HashMap<String, String>) -> Persona {
        identify(
            self.job,
            self.parts,
            self.session,
            &self.job_metadata,
            attributes,
        )
        .await
    }

    fn start_conversation(&self, caller: String, persona: Persona) -> Talk {
        let parts = self.parts;
        let (audio, heard) = mpsc::channel(AUDIO_QUEUE);
        let (commands, inbox) = mpsc::channel(VOICE_QUEUE);
        let (outbox, events) = mpsc::channel(VOICE_QUEUE);
        let conversation = Conversation {
            config: parts.config.voice.clone(),
            instructions: persona.instructions,
            greeting: persona.greeting,
            goodbye: persona.goodbye,
            language: persona.language,
            voice: persona.voice,
            stt: parts.providers.stt.clone(),
            llm: parts.providers.llm.clone(),
            tts: parts.providers.tts.clone(),
            tools: Arc::new(Toolbox::new(
                self.session.clone(),
                parts.store.clone(),
                &parts.config.tools,
            )),
            output: self.room.speaker(),
        };
        Talk {
            caller,
            commands,
            audio,
            events,
            conversation: tokio::spawn(conversation.run(heard, inbox, outbox)),
            gone_until: None,
        }
    }

    /// Leads the caller's sound to the conversation and the recording, once both the caller and the sound are known.
    fn connect_sound(&mut self, identity: &str) {
        let Stage::Talking(talk) = &self.stage else {
            return;
        };
        if talk.caller != identity {
            return;
        }
        let Some((_, track)) = self.audible.iter().find(|(known, _)| known == identity) else {
            return;
        };
        self.publisher.caller(identity, track.sid());
        tokio::spawn(room::pump(
            track.listen(LISTEN_SAMPLE_RATE_HZ),
            talk.audio.clone(),
        ));
        if let Some(recorder) = &self.recorder {
            recorder.add_caller(|sample_rate_hz| track.listen(sample_rate_hz));
        }
    }

    fn voice_event(&mut self, event: VoiceEvent) {
        match event {
            VoiceEvent::AgentState(state) => self.publisher.agent_state(state),
            VoiceEvent::UserTranscript {
                segment_id,
                text,
                is_final,
            } => {
                self.publisher.words(Words::Caller {
                    segment_id,
                    text,
                    is_final,
                });
            }
            VoiceEvent::AgentTranscript {
                segment_id,
                delta,
                is_final,
            } => {
                self.publisher.words(Words::Agent {
                    segment_id,
                    delta,
                    is_final,
                });
            }
            VoiceEvent::ItemCommitted(item) => {
                session::lock(self.session).commit_item(item);
            }
            VoiceEvent::Usage(usage) => session::lock(self.session).add_usage(usage),
            // The tools log what they did themselves.
            VoiceEvent::ToolCalled { .. } => {}
            VoiceEvent::FirstAudio => info!("first sound of the agent"),
            VoiceEvent::Error {
                component,
                message,
                recoverable,
            } => warn!(component, error = message, recoverable, "provider error"),
            VoiceEvent::FalseInterruption => debug!("the agent went on after a false interruption"),
            VoiceEvent::TurnAnswered { latency } => info!(
                latency_ms = latency.as_millis() as u64,
                "the agent answered"
            ),
            VoiceEvent::UserState(state) => debug!(?state, "user state"),
        }
    }

    /// Ends the conversation as the cause allows and commits what was said until then. Gives back the cause, which what happens
    /// meanwhile may tell better, whether the call was answered, and the recorder, which is still running.
    async fn close(
        mut self,
        cause: HangupCause,
        events: &mut mpsc::UnboundedReceiver<RoomEvent>,
    ) -> (HangupCause, bool, Option<Recorder>) {
        let recorder = self.recorder.take();
        let stage = std::mem::replace(&mut self.stage, Stage::WaitingForCaller);
        let mut talk = match stage {
            Stage::Talking(talk) => talk,
            // Who is told to stop at once asks nobody whose call it was.
            _ if cause == HangupCause::Finalised => return (cause, false, recorder),
            Stage::Ringing(caller) => {
                self.identify(&caller.attributes).await;
                return (cause, false, recorder);
            }
            Stage::WaitingForCaller => {
                self.identify(&HashMap::new()).await;
                return (cause, false, recorder);
            }
        };
        let (command, limit) = match &cause {
            HangupCause::MaxDuration => (
                VoiceCommand::Close {
                    reason: "max_duration".into(),
                    say: self.parts.config.call.goodbye(),
                },
                LAST_WORDS,
            ),
            HangupCause::Terminated => (
                VoiceCommand::Close {
                    reason: "job_terminated".into(),
                    say: None,
                },
                LAST_WORDS,
            ),
            _ => (VoiceCommand::Stop, STOP_AT_ONCE),
        };
        // A conversation that has ended by itself takes no commands.
        let _ = talk.commands.try_send(command);
        let mut limit = Instant::now() + limit;
        let mut gone = None;
        loop {
            tokio::select! {
                biased;
                event = talk.events.recv() => match event {
                    Some(event) => self.voice_event(event),
                    // The conversation has dropped its end: all is said.
                    None => break,
                },
                event = events.recv(), if gone.is_none() => {
                    gone = nobody_listens(event, &talk.caller);
                    if gone.is_some() {
                        // Whatever was still to be said is said to nobody.
                        let _ = talk.commands.try_send(VoiceCommand::Stop);
                        limit = limit.min(Instant::now() + STOP_AT_ONCE);
                    }
                }
                () = sleep_until(limit) => {
                    warn!("the conversation did not end in time");
                    talk.conversation.abort();
                    break;
                }
            }
        }
        self.publisher.stop().await;
        while gone.is_none()
            && let Ok(event) = events.try_recv()
        {
            gone = nobody_listens(Some(event), &talk.caller);
        }
        let cause = match (cause, gone) {
            // The server terminates the job of an agent that it sends away, too.
            (HangupCause::Terminated, Some(gone @ HangupCause::RoomGone { .. })) => gone,
            (cause, _) => cause,
        };
        (cause, true, recorder)
    }
}

/// Whether an event means that the caller does not hear the agent any more, and why.
fn nobody_listens(event: Option<RoomEvent>, caller: &str) -> Option<HangupCause> {
    let Some(event) = event else {
        return Some(HangupCause::RoomGone {
            reason: "UNKNOWN_REASON",
        });
    };
    match room::happening(event)? {
        RoomHappening::Gone { reason } => Some(HangupCause::RoomGone { reason }),
        RoomHappening::Left { identity, reason } if identity == caller => {
            Some(HangupCause::CallerLeft { reason })
        }
        _ => None,
    }
}

fn conversation_cause(end: VoiceEnd) -> HangupCause {
    match end {
        VoiceEnd::EndCall | VoiceEnd::Closed => HangupCause::AgentEnded,
        VoiceEnd::SilenceHangup => HangupCause::Silence,
        VoiceEnd::ProviderFailed { component, message } => HangupCause::ProviderFailed {
            component: component.to_string(),
            message,
        },
        VoiceEnd::Stopped => HangupCause::Finalised,
    }
}

async fn next_or_never(events: Option<&mut mpsc::Receiver<VoiceEvent>>) -> VoiceEvent {
    match events {
        Some(events) => match events.recv().await {
            Some(event) => event,
            // The end of the conversation says why.
            None => pending().await,
        },
        None => pending().await,
    }
}

async fn joined_or_never(conversation: Option<&mut JoinHandle<VoiceEnd>>) -> VoiceEnd {
    match conversation {
        Some(conversation) => match conversation.await {
            Ok(end) => end,
            Err(error) => VoiceEnd::ProviderFailed {
                component: Component::Llm,
                message: format!("the conversation broke: {error}"),
            },
        },
        None => pending().await,
    }
}
