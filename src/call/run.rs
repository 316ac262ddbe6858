//! One call, told from top to bottom: join, find the caller, record, talk, hang up, write the
//! record, leave. Who the agent is, is looked up beside it.
//!
//! One loop owns the state of the call. Whatever happens, in whatever order, reaches it as an
//! event: the room, the worker, the persona, the conversation, a signal, a deadline. It ends with a
//! [`HangupCause`], and every cause ends in a record. The record is written before the room is
//! left, so that nothing that goes wrong while leaving can cost it.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use livekit::RoomEvent;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{Instrument as _, debug, error, info, warn};

use super::caller_sound::CallerSound;
use super::config::{AnsweringMachineWish, CallLines};
use super::dial::{self, Dialling};
use super::hangup::{DisconnectReason, Ending, HangupCause, LeftBehind};
use super::lookup::{AgentProfile, Lookup};
use super::media::{MediaNews, MediaWatch, Packets};
use super::persona::{Persona, Personas};
use super::publish::{Publisher, Words};
use super::room::{
    self, CallEvent, CallRoom, CallerTrack, Door, LISTEN_SAMPLE_RATE_HZ, RoomEvents,
};
use crate::config::Config;
use crate::ipc::{
    FromCall, FromWorker, JobDescription, Measurement, ShutdownReason, ToCall, ToWorker,
};
use crate::providers::{Component, ProviderFactory};
use crate::recording::Recorder;
use crate::rooms::party::{self, Choice, Party, Role};
use crate::rooms::{
    Callee, DesertedRoom, LostAgent, RoomService, RoomServiceError, TelephoneError,
    TelephoneService, end_room,
};
use crate::session::dispatch::{self, numbers_metadata};
use crate::session::{
    self, AnswerDetection, CallMetadata, CallParticipant, Dial, DialOutcome, Direction,
    KeypadInput, Numbers, Outcome, PlacedBy, SharedSession, mask, mask_numbers,
};
use crate::settings::LiveKitSettings;
use crate::store::{Store, StoreError, Unfinished};
use crate::tools::{ACTION_QUEUE, CallAction, CallRequest, Toolbox, WantedAction};
use crate::voice::answer::{AnswerPlan, Verdict};
use crate::voice::{Conversation, LineSources, VoiceCommand, VoiceEnd, VoiceEvent};

/// Frames of the caller's sound on the way to the conversation: half a second, then new ones are
/// dropped.
const AUDIO_QUEUE: usize = 50;
/// Events and commands of the conversation that may wait.
const VOICE_QUEUE: usize = 64;
/// How long somebody whose connection was replaced may take to come back: as long as a call that is
/// over may keep its slot, less what leaving takes.
const RETURN_GRACE: Duration = Duration::from_secs(1);
/// How long whoever was in the room before us, and was not there when we came, may take to be seen
/// after all.
const GIVEN_UP_GRACE: Duration = Duration::from_millis(500);
/// How long before us somebody may have come who is taken for the caller that we were dispatched
/// for. The server finds an agent within some seconds, or none.
const JUST_CAME: Duration = Duration::from_secs(30);
/// How long somebody without a microphone may take to switch it on before the agent begins to talk
/// all the same. A browser asks its user first; a telephone may be about to come.
const MICROPHONE_WAIT: Duration = Duration::from_secs(2);
/// How long after our track was taken a telephone that called us may still be said to ring. Its
/// bridge answers at once and then waits for the first packet of sound.
const STALE_RINGING: Duration = Duration::from_secs(2);
/// What a caller may type before the conversation has begun; more is lost.
const MAX_TYPED_EARLY: usize = 32;
/// After an absence of this length the caller is told that we are there again.
const NOTICED_ABSENCE: Duration = Duration::from_secs(2);
/// How much longer than a telephone may ring its call may take to be placed, or taken back.
const DIAL_MARGIN: Duration = Duration::from_secs(15);
/// The longest lead that the agent is told of, bytes of JSON.
const MAX_LEAD_BYTES: usize = 8 * 1024;
/// How often the caller's packets are counted.
const MEDIA_POLL: Duration = Duration::from_secs(1);
/// How long the conversation may take to say its last words after it was told to close.
const LAST_WORDS: Duration = Duration::from_secs(8);
/// How long the conversation may take to stop at once and commit what was heard.
const STOP_AT_ONCE: Duration = Duration::from_secs(1);
/// How long the worker may take to pass on the final status before the room is left anyway.
const STATUS_WAIT: Duration = Duration::from_millis(500);
/// How long a record that the disk did not take is tried again; the worker waits as long for a call
/// that has said its last word.
const LATE_RECORD_LIMIT: Duration = Duration::from_secs(50);
/// How often.
const LATE_RECORD_PAUSE: Duration = Duration::from_secs(2);
/// How long leaving the room may take.
const LEAVE_WAIT: Duration = Duration::from_secs(3);

/// What a call needs besides its job.
pub struct CallParts {
    /// All settings.
    pub config: Arc<Config>,
    /// The folders on disk.
    pub store: Store,
    /// Makes speech recognition, language model and speech synthesis.
    pub providers: Arc<ProviderFactory>,
    /// Where personas come from.
    pub personas: Arc<Personas>,
    /// The server's address and keys: for egress and for deleting the room. Without them both are
    /// left out.
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
///
/// # Errors
/// When the record could not be started or written. What was written by then stays in the journal.
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
    let callee = dial::callee(
        &parts.config.dial,
        &job_metadata,
        &parts.config.dispatch_rules(),
    );
    let job_metadata = dispatch::with_direction(job_metadata, callee.is_some());
    let numbers = Numbers::read(
        &job_metadata,
        &HashMap::new(),
        &job.room_name,
        &parts.config.call.country_code,
    );
    session::lock(&session).set_call_metadata(numbers_metadata(&numbers));
    let mut agent = Agent {
        lookup: Lookup::start(
            parts.personas.clone(),
            parts.providers.clone(),
            &numbers,
            job_metadata
                .get("persona")
                .and_then(Value::as_str)
                .map(str::to_owned),
        ),
        numbers,
        job_metadata,
        is_noted: false,
    };

    let join_limit = Duration::from_secs(parts.config.call.join_timeout_s);
    let mut before_us = look_into(&parts, &job.room_name);
    let mut leaving = None;
    let door = Door {
        url: job.url.clone(),
        token: job.token.clone(),
        room_name: job.room_name.clone(),
    };
    let (cause, answered, room, recorder) = match CallRoom::join(&door, join_limit).await {
        Err(failure) => {
            leaving = failure.leaving;
            let cause = HangupCause::SetUpFailed {
                message: failure.error.to_string(),
            };
            (cause, false, None, None)
        }
        Ok((mut room, mut events)) => {
            info!(
                duration_ms = started.elapsed().as_millis() as u64,
                "joined the room, the agent's track is published"
            );
            session::lock(&session).set_joined(Utc::now());
            to_worker.send(FromCall::Joined);
            to_worker.send(FromCall::Running);
            let mut call = Call::new(&job, &parts, &session, &mut room, &mut agent, &to_worker);
            call.to_be_called = callee;
            let cause = call
                .until_end(&mut events, &mut before_us, &mut from_worker, &mut stop)
                .await;
            let (cause, answered, recorder) = call.close(cause, &mut events).await;
            (cause, answered, Some(room), recorder)
        }
    };
    before_us.take().inspect(JoinHandle::abort);

    let ended_at = Utc::now();
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
    // The CRM files every call by its campaign, also one that nobody answered; but who is told to
    // stop at once asks nobody.
    if cause != HangupCause::Finalised {
        agent.found_within(parts.config.persona.timeout()).await;
    }
    agent.note(&session);
    note_call_of_others(&session, &cause);
    session::lock(&session).set_outcome(Outcome {
        close_reason: ending.close_reason,
        disconnect_reason: Some(ending.disconnect_reason.clone()),
        call_status: ending.call_status,
        error: ending.error.clone(),
        call_end: Some(ended_at),
    });
    to_worker.send(FromCall::Measured(Measurement::Ended {
        call_status: ending.call_status,
    }));
    let written = parts.store.finish(&session, journal);
    match &written {
        Ok(_) => {
            to_worker.send(FromCall::RecordWritten {
                session_id: job.session_id.clone(),
            });
        }
        Err(unfinished) => {
            error!(error = %unfinished.error, "the record could not be written; it is tried again when the room is left")
        }
    }

    if let Some(room) = &room {
        tell_outcome(room, &session).await;
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
    if let Some(leaving) = leaving {
        // Whoever is late for longer leaves with the process.
        let _ = timeout(LEAVE_WAIT, leaving).await;
    }
    // Last of all: a room that the server ends under us is the one that leaks (rust-sdks#1443).
    if parts.config.call.delete_room {
        match cause.leaves_behind() {
            LeftBehind::OurRoom => delete_room(&parts, &job.room_name).await,
            LeftBehind::PerhapsACaller => {
                hang_up_on_who_waits(&parts, &job, &to_worker, &cause).await;
            }
            LeftBehind::OthersRoom => {}
        }
    }
    if let Err(unfinished) = written {
        write_late(&parts.store, &session, unfinished).await?;
        to_worker.send(FromCall::RecordWritten {
            session_id: job.session_id.clone(),
        });
    }
    Ok(ending)
}

/// Notes what came of a call that somebody else has placed from here, as far as its telephone told.
fn note_call_of_others(session: &SharedSession, cause: &HangupCause) {
    let mut session = session::lock(session);
    let data = session.get_complete_session_data();
    let is_telephone = data.call_metadata.call_id.is_some();
    let is_outbound = data.call_metadata.direction == Some(Direction::Outbound);
    if !is_telephone || !is_outbound || data.dial.is_some() {
        return;
    }
    let outcome = match data.answered_at.is_some() {
        true => Some(DialOutcome::Answered),
        false => cause.dial_outcome(),
    };
    if outcome.is_some() {
        session.set_dial(Dial {
            placed_by: PlacedBy::Other,
            outcome,
            ..Default::default()
        });
    }
}

/// Tells whoever follows a call that we have placed what has come of it.
async fn tell_outcome(room: &CallRoom, session: &SharedSession) {
    let told = {
        let session = session::lock(session);
        let Some(dial) = session
            .dial()
            .filter(|dial| dial.placed_by == PlacedBy::Agent)
        else {
            return;
        };
        let end = session.outcome();
        json!({
            "session_id": session.session_id(),
            "outcome": dial.outcome,
            "sip_status": dial.sip_status,
            "sip_reason": dial.sip_reason,
            "call_status": end.map(|end| end.call_status),
            "disconnect_reason": end.map(|end| &end.disconnect_reason),
            "error": end.map(|end| &end.error),
        })
    };
    let telling = room.voice();
    if timeout(STATUS_WAIT, telling.call_outcome(&told))
        .await
        .is_err()
    {
        debug!("what has come of the call could not be told in the room");
    }
}

/// Tries to write the record of a call for a while longer: this process knows what a full disk did
/// not take.
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

/// The dispatcher's metadata as JSON; text that is no JSON is kept in the record and otherwise
/// ignored.
fn read_job_metadata(job: &JobDescription) -> Value {
    dispatch::job_metadata(job.job_metadata.as_deref()).unwrap_or_else(|problem| {
        warn!("the job metadata {problem}: numbers and persona are taken from elsewhere");
        Value::Null
    })
}

/// What the server says of the room before we are in it.
#[derive(Debug, Default)]
struct BeforeUs {
    /// Who is in it.
    parties: Vec<Party>,
    /// The SIP service made it for a caller, and for nobody else.
    of_one_call: bool,
}

/// Asks the server about the room before we are in it: a caller who has gone when
/// we arrive has given up. Without the server's keys, or its answers, nothing is known.
fn look_into(parts: &CallParts, room: &str) -> Option<JoinHandle<BeforeUs>> {
    let service = RoomService::new(parts.livekit.as_ref()?);
    let room = room.to_owned();
    let looking = async move {
        let parties = service.parties(&room).await.unwrap_or_else(|error| {
            debug!(%error, "it is not known who was in the room before us");
            Vec::new()
        });
        if parties.iter().any(Party::may_be_caller) {
            debug!("somebody is in the room before the agent");
            return BeforeUs {
                parties,
                of_one_call: false,
            };
        }
        // The caller may have come and gone before us; only the room's name can tell of that.
        let prefixes = service.call_room_prefixes().await.unwrap_or_else(|error| {
            debug!(%error, "it is not known who makes rooms like this one");
            Vec::new()
        });
        BeforeUs {
            of_one_call: party::is_room_of_one_call(&room, &prefixes),
            parties,
        }
    };
    Some(tokio::spawn(looking.in_current_span()))
}

/// Ends a room that we could not enter, or lost, if somebody waits there and no other agent comes.
/// That may take minutes, so it is the worker's to do; without one, this process does it.
async fn hang_up_on_who_waits(
    parts: &CallParts,
    job: &JobDescription,
    to_worker: &ToWorker,
    cause: &HangupCause,
) {
    if to_worker.send(FromCall::RoomLost) {
        return;
    }
    let Some(livekit) = &parts.livekit else {
        return;
    };
    let room = DesertedRoom {
        room_name: job.room_name.clone(),
        room_sid: None,
        agent_identity: job.participant_identity.clone(),
        agent_name: job.agent_name.clone(),
        agent: match cause {
            HangupCause::SetUpFailed { .. } => LostAgent::NeverCame,
            _ => LostAgent::CutOff,
        },
        // Without a worker there is nobody who could be sent.
        dispatch: None,
    };
    let service = RoomService::new(livekit);
    let ending = end_room(&service, true, &room);
    let ended = match room.agent {
        // Somebody sits before `voicebot connect` and waits for its answer.
        LostAgent::NeverCame => timeout(LEAVE_WAIT, ending).await.ok(),
        LostAgent::CutOff | LostAgent::Died => Some(ending.await),
    };
    match ended {
        Some(Ok(done)) => debug!(?done, "whoever waited in the room that was lost"),
        Some(Err(error)) => warn!(%error, "it is not known whether somebody waits in the room"),
        None => warn!("it is not known whether somebody waits in the room"),
    }
}

async fn delete_room(parts: &CallParts, room: &str) {
    let Some(livekit) = &parts.livekit else {
        return;
    };
    match RoomService::new(livekit).delete(room).await {
        Ok(()) => debug!("room deleted"),
        Err(RoomServiceError::NotFound) => debug!("the room is gone already"),
        Err(error) => warn!(%error, "the room could not be deleted"),
    }
}

/// Who the agent is in this call, as far as it is known.
struct Agent {
    lookup: Lookup,
    /// Those that it is looked up by.
    numbers: Numbers,
    job_metadata: Value,
    /// The session has it.
    is_noted: bool,
}

impl Agent {
    /// These are the numbers of the call.
    fn numbers_are(&mut self, numbers: Numbers, session: &SharedSession) {
        if numbers == self.numbers {
            return;
        }
        session::lock(session).set_call_metadata(numbers_metadata(&numbers));
        self.lookup.ask_for(&numbers);
        self.numbers = numbers;
        self.is_noted = false;
    }

    /// Waits until the agent is known, for so long at the longest.
    async fn found_within(&mut self, limit: Duration) {
        if timeout(limit, self.lookup.finish()).await.is_err() {
            self.lookup.give_up();
            self.lookup.finish().await;
        }
    }

    /// Puts persona and campaign into the session, once they are known.
    fn note(&mut self, session: &SharedSession) {
        let Some(AgentProfile { persona, .. }) = self.lookup.profile() else {
            return;
        };
        if std::mem::replace(&mut self.is_noted, true) {
            return;
        }
        let Numbers {
            direction,
            dialed_number,
            ..
        } = &self.numbers;
        info!(
            persona = persona.name,
            direction = direction.map(Direction::name).unwrap_or("unknown"),
            number = dialed_number.as_deref().map(mask).unwrap_or_default(),
            "whose call this is"
        );
        let ids = session::CampaignIds::from_persona(&persona.full);
        let campaign = dispatch::campaign(persona.campaign_metadata(), &self.job_metadata);
        let mut session = session::lock(session);
        session.set_call_metadata(CallMetadata {
            persona: Some(persona.name.clone()),
            campaign_id: ids.campaign_id,
            voice_agent_id: ids.voice_agent_id,
            client: ids.client,
            ..CallMetadata::default()
        });
        session.set_campaign_metadata(campaign);
    }
}

/// How far the call has come.
enum Stage {
    /// Nobody is here to talk to yet.
    WaitingForCaller,
    /// The caller's telephone is ringing.
    Ringing(Party),
    /// Caller and agent can hear each other; the conversation begins when it is known who the agent
    /// is.
    Answered(Box<Answered>),
    /// The conversation is under way.
    Talking(Box<Talk>),
}

/// A caller who has nobody to talk to yet.
struct Answered {
    caller: Party,
    /// What the caller has typed meanwhile, for the conversation.
    typed: Vec<VoiceCommand>,
    /// Until when the persona's source may take; `None` when it was told to give up.
    persona_until: Option<Instant>,
    /// Until then, the recording has not begun, and the agent's words wait for it.
    recording: Option<BoxFuture<'static, ()>>,
}

/// The conversation in progress.
struct Talk {
    caller: Party,
    commands: mpsc::Sender<VoiceCommand>,
    sound: CallerSound,
    events: mpsc::Receiver<VoiceEvent>,
    /// What the model's tools want of the call.
    actions: mpsc::Receiver<WantedAction>,
    conversation: JoinHandle<VoiceEnd>,
    media: MediaWatch,
    /// What the agent says about the call itself.
    lines: CallLines,
    /// The conversation knows that nothing arrives.
    soundless: bool,
    /// The caller has said or written something: from then on nobody takes their place.
    was_heard: bool,
}

/// A caller who is not there any more and may come back.
struct Away {
    party: Party,
    reason: DisconnectReason,
    since: Instant,
    until: Instant,
}

/// The state of one call between joining and hanging up.
struct Call<'a> {
    job: &'a JobDescription,
    parts: &'a CallParts,
    session: &'a SharedSession,
    room: &'a mut CallRoom,
    agent: &'a mut Agent,
    publisher: Publisher,
    to_worker: &'a ToWorker,
    /// The number of the dispatch, until it is called.
    to_be_called: Option<Result<Callee, String>>,
    /// Set while the number is being called.
    dialling: Option<Dialling>,
    /// The telephone that is being called has left: the API is about to say why.
    left_unsaid: Option<DisconnectReason>,
    /// The telephone that is answered, by the word of the API: its own attribute comes later.
    reached: Option<String>,
    /// The conversation that waits for the telephone to be answered, with its first words ready.
    prepared: Option<Talk>,
    stage: Stage,
    /// The sound of everybody who may be the caller, by identity: it may come before or after the
    /// caller is chosen.
    audible: Vec<(String, CallerTrack)>,
    recorder: Option<Recorder>,
    /// Somebody was talked to.
    answered: bool,
    /// The last one who was the caller, or looked like it.
    seen: Option<Party>,
    /// Set while the caller is away.
    away: Option<Away>,
    /// When our own connection was lost; set while it is.
    link_lost: Option<Instant>,
    /// Set while only people without a microphone are here.
    microphone_until: Option<Instant>,
    /// From when on a telephone that called us does not ring any more, whatever is said of it.
    ringing_until: Option<Instant>,
    deadline: Instant,
    longest: Instant,
}

/// What the loop waits for, as one value.
enum Event {
    Room(Option<RoomEvent>),
    /// We are in the room again, and this happens there.
    Back(Option<RoomEvents>),
    Chat(CallEvent),
    Worker(Option<ToCall>),
    Voice(VoiceEvent),
    Action(WantedAction),
    ConversationEnded(VoiceEnd),
    BeforeUs(BeforeUs),
    /// It is known who the agent is.
    AgentFound,
    /// What came of calling the number.
    Dialled(Result<(), TelephoneError>),
    /// What is said from now on is recorded.
    Recording,
    MediaPoll,
    Stop,
    Deadline,
}

impl<'a> Call<'a> {
    fn new(
        job: &'a JobDescription,
        parts: &'a CallParts,
        session: &'a SharedSession,
        room: &'a mut CallRoom,
        agent: &'a mut Agent,
        to_worker: &'a ToWorker,
    ) -> Self {
        let config = &parts.config.call;
        Self {
            job,
            parts,
            session,
            publisher: Publisher::start(room.voice()),
            to_worker,
            to_be_called: None,
            dialling: None,
            left_unsaid: None,
            reached: None,
            prepared: None,
            room,
            agent,
            stage: Stage::WaitingForCaller,
            audible: Vec::new(),
            recorder: None,
            answered: false,
            seen: None,
            away: None,
            link_lost: None,
            microphone_until: None,
            ringing_until: None,
            deadline: Instant::now() + Duration::from_secs(config.caller_wait_s),
            longest: Instant::now() + Duration::from_secs(config.max_duration_s),
        }
    }

    async fn until_end(
        &mut self,
        events: &mut RoomEvents,
        before_us: &mut Option<JoinHandle<BeforeUs>>,
        from_worker: &mut FromWorker,
        stop: &mut mpsc::Receiver<()>,
    ) -> HangupCause {
        let (chat, mut chats) = mpsc::channel(VOICE_QUEUE);
        session::lock(self.session).set_call_metadata(CallMetadata {
            room_sid: self.room.sid(),
            ..Default::default()
        });
        let mut media_polls = interval(MEDIA_POLL);
        media_polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if let Some(cause) = self.poll_room().await {
            return cause;
        }
        if let Some(cause) = self.dial() {
            return cause;
        }
        loop {
            let event = {
                let deadline = self.next_deadline();
                let talking = matches!(self.stage, Stage::Talking(_));
                // What the lost connection still has to say is old.
                let linked = !self.room.is_coming_back();
                let looking_up = self.agent.lookup.is_running();
                let dialling = self.dialling.as_mut();
                let (mut voice, mut ended, mut recording, mut actions) = (None, None, None, None);
                match &mut self.stage {
                    Stage::Talking(talk) => {
                        voice = Some(&mut talk.events);
                        ended = Some(&mut talk.conversation);
                        actions = Some(&mut talk.actions);
                    }
                    Stage::Answered(answered) => recording = answered.recording.as_mut(),
                    Stage::WaitingForCaller | Stage::Ringing(_) => {}
                }
                tokio::select! {
                    // What was said is committed before the end of the conversation is acted on.
                    biased;
                    event = next_or_never(voice) => Event::Voice(event),
                    end = joined_or_never(ended) => Event::ConversationEnded(end),
                    wanted = wanted_or_never(actions) => Event::Action(wanted),
                    event = events.recv(), if linked => Event::Room(event),
                    back = self.room.is_back() => Event::Back(back),
                    Some(message) = chats.recv() => Event::Chat(message),
                    message = from_worker.next() => Event::Worker(message),
                    Some(()) = stop.recv() => Event::Stop,
                    before_us = joined_or_pending(before_us) => Event::BeforeUs(before_us),
                    () = self.agent.lookup.finish(), if looking_up => Event::AgentFound,
                    result = dialled_or_never(dialling) => Event::Dialled(result),
                    () = ready_or_never(recording) => Event::Recording,
                    _ = media_polls.tick(), if talking => Event::MediaPoll,
                    () = sleep_until(deadline) => Event::Deadline,
                }
            };
            let cause = match event {
                Event::Voice(event) => {
                    self.voice_event(event);
                    None
                }
                Event::ConversationEnded(end) => Some(self.conversation_cause(end)),
                Event::Action(wanted) => {
                    self.act(wanted);
                    None
                }
                Event::Room(None) => Some(HangupCause::RoomGone {
                    reason: DisconnectReason::Unknown,
                }),
                Event::Room(Some(event)) => {
                    room::read_chat(&event, chat.clone());
                    match room::call_event(event) {
                        Some(event) => self.handle(event).await,
                        None => None,
                    }
                }
                Event::Back(Some(again)) => {
                    *events = again;
                    self.is_in_the_room_again();
                    self.poll_room().await
                }
                Event::Back(None) => Some(HangupCause::RoomGone {
                    reason: DisconnectReason::ConnectionTimeout,
                }),
                Event::Chat(event) => self.handle(event).await,
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
                Event::BeforeUs(before_us) => {
                    self.was_before_us(before_us);
                    None
                }
                Event::AgentFound => None,
                Event::Dialled(result) => self.dialled(result).await,
                Event::Recording => {
                    if let Stage::Answered(answered) = &mut self.stage {
                        answered.recording = None;
                    }
                    None
                }
                Event::MediaPoll => self.poll_media().await,
                Event::Deadline => match self.deadline_passed() {
                    Some(cause) => Some(cause),
                    None => self.poll_room().await,
                },
            };
            if let Some(cause) = cause {
                return cause;
            }
            self.prepare();
            self.begin_if_ready();
        }
    }

    /// Calls the number of the dispatch, unless a telephone is here already.
    fn dial(&mut self) -> Option<HangupCause> {
        let callee = match self.to_be_called.take()? {
            Ok(callee) => callee,
            Err(message) => return Some(self.cannot_dial(message)),
        };
        if !matches!(self.stage, Stage::WaitingForCaller) || self.away.is_some() {
            info!("somebody to talk to is in the room already: nothing is dialled");
            return None;
        }
        let Some(livekit) = &self.parts.livekit else {
            let message =
                "the number cannot be called: LIVEKIT_API_KEY and LIVEKIT_API_SECRET are not set";
            return Some(self.cannot_dial(message.to_owned()));
        };
        info!(
            number = mask(&callee.number),
            trunk = callee.trunk_id,
            "calling the number of the dispatch"
        );
        session::lock(self.session).set_dial(Dial {
            placed_by: PlacedBy::Agent,
            trunk_id: Some(callee.trunk_id.clone()),
            asked_at: Some(Utc::now()),
            ..Default::default()
        });
        self.deadline = Instant::now() + callee.ringing_timeout + DIAL_MARGIN;
        self.dialling = Some(Dialling::start(livekit, &self.job.room_name, callee));
        None
    }

    fn cannot_dial(&self, message: String) -> HangupCause {
        let outcome = DialOutcome::Failed;
        let now = Some(Utc::now());
        session::lock(self.session).set_dial(Dial {
            placed_by: PlacedBy::Agent,
            asked_at: now,
            known_at: now,
            outcome: Some(outcome),
            ..Default::default()
        });
        HangupCause::NotReached { outcome, message }
    }

    /// What the API says about the call that we have placed.
    async fn dialled(&mut self, result: Result<(), TelephoneError>) -> Option<HangupCause> {
        let identity = self
            .dialling
            .take()
            .map(|dialling| dialling.identity.clone());
        let here = matches!(self.stage, Stage::Answered(_) | Stage::Talking(_));
        let failed = match result {
            Ok(()) => None,
            // The telephone itself is the better witness.
            Err(error) if here => {
                warn!(
                    error = mask_numbers(&error.message),
                    "the call that is held is said to have failed"
                );
                None
            }
            Err(error) => Some(error),
        };
        let left = self.left_unsaid.take();
        let failed = failed.map(|mut error| {
            if error.sip_status.is_none()
                && let Some(outcome) = left
                    .map(|reason| HangupCause::CallerLeft { reason })
                    .and_then(|cause| cause.dial_outcome())
            {
                error.outcome = outcome;
            }
            error
        });
        let mut dial = session::lock(self.session)
            .dial()
            .cloned()
            .unwrap_or_default();
        dial.known_at = Some(Utc::now());
        dial.outcome = Some(
            failed
                .as_ref()
                .map_or(DialOutcome::Answered, |error| error.outcome),
        );
        if let Some(error) = &failed {
            dial.sip_status = error.sip_status;
            dial.sip_reason.clone_from(&error.sip_reason);
        }
        session::lock(self.session).set_dial(dial);
        match failed {
            None => {
                info!("the number that was called is answered");
                if let Some(reason) = left {
                    // They have hung up at once.
                    self.answered = true;
                    session::lock(self.session).set_answered(Utc::now());
                    return Some(HangupCause::CallerLeft { reason });
                }
                self.reached = identity;
                self.poll_room().await
            }
            Some(error) => {
                info!(
                    outcome = error.outcome.name(),
                    sip_status = error.sip_status,
                    "the number that was called is not reached"
                );
                Some(HangupCause::NotReached {
                    outcome: error.outcome,
                    message: mask_numbers(&error.message),
                })
            }
        }
    }

    /// Makes the conversation ready while the telephone of somebody whom we call rings, so that its
    /// first words are there when it is answered: until then, its line counts as lost.
    fn prepare(&mut self) {
        let Stage::Ringing(callee) = &self.stage else {
            return;
        };
        let waits_for_us = callee.is_called_from_here() && self.link_lost.is_none();
        let Some(profile) = self.agent.lookup.profile() else {
            // The numbers have changed, and perhaps the persona with them.
            self.drop_prepared();
            return;
        };
        if waits_for_us && self.prepared.is_none() {
            let talk = self.start_conversation(callee.clone(), profile);
            let _ = talk.commands.try_send(VoiceCommand::LineLost);
            self.prepared = Some(talk);
        }
    }

    fn drop_prepared(&mut self) {
        if let Some(talk) = self.prepared.take() {
            talk.conversation.abort();
        }
    }

    fn reconnect_wait(&self) -> Duration {
        Duration::from_secs(self.parts.config.call.reconnect_wait_s)
    }

    /// The next moment at which [`Self::deadline_passed`] or [`Self::poll_room`] has something to
    /// do.
    fn next_deadline(&self) -> Instant {
        let answered = matches!(self.stage, Stage::Answered(_) | Stage::Talking(_));
        let here = self.away.is_none() && self.link_lost.is_none();
        let choosing = [
            Some(self.deadline),
            self.microphone_until,
            // When it has passed, it was looked at.
            self.ringing_until.filter(|until| *until > Instant::now()),
        ];
        let choosing = choosing.into_iter().flatten().filter(|_| !answered && here);
        let away = self.away.iter().map(|away| away.until);
        let link = self.link_lost.map(|lost| lost + self.reconnect_wait());
        let persona = match &self.stage {
            Stage::Answered(answered) => answered.persona_until,
            _ => None,
        };
        let all = choosing.chain(away).chain(link).chain(persona);
        all.min()
            .map_or(self.longest, |first| first.min(self.longest))
    }

    fn deadline_passed(&mut self) -> Option<HangupCause> {
        let now = Instant::now();
        if let Stage::Answered(answered) = &mut self.stage
            && answered
                .persona_until
                .take_if(|until| now >= *until)
                .is_some()
        {
            self.agent.lookup.give_up();
        }
        let lost = self.link_lost;
        if lost.is_some_and(|lost| now >= lost + self.reconnect_wait()) {
            return Some(HangupCause::RoomGone {
                reason: DisconnectReason::ConnectionTimeout,
            });
        }
        if let Some(away) = &self.away
            && now >= away.until
        {
            return Some(HangupCause::CallerLeft {
                reason: away.reason,
            });
        }
        let over = now >= self.longest;
        let waited = self.away.is_none() && lost.is_none() && now >= self.deadline;
        match &self.stage {
            Stage::WaitingForCaller if over || waited => Some(HangupCause::CallerNeverCame),
            Stage::Ringing(_) if over || waited => Some(HangupCause::NeverAnswered),
            Stage::Answered(_) | Stage::Talking(_) if over => Some(HangupCause::MaxDuration),
            _ => None,
        }
    }

    async fn handle(&mut self, event: CallEvent) -> Option<HangupCause> {
        match event {
            CallEvent::Changed => {}
            CallEvent::AgentHeard => {
                self.ringing_until
                    .get_or_insert(Instant::now() + STALE_RINGING);
            }
            CallEvent::Audible { identity, track } => {
                self.audible.retain(|(known, _)| *known != identity);
                self.audible.push((identity.clone(), track));
                self.record_caller(&identity);
                self.connect_sound(&identity);
            }
            CallEvent::Inaudible { sid } => {
                self.audible.retain(|(_, track)| track.sid() != sid);
            }
            CallEvent::Left { party, reason } => {
                let cause = self.left(party, reason);
                if cause.is_some() {
                    return cause;
                }
            }
            CallEvent::Chat { identity, text } => return self.typed(identity, text).await,
            CallEvent::LinkLost => self.link_is_lost(),
            CallEvent::Reconnected => self.link_is_back(),
            CallEvent::Key { identity, key } => {
                if !self.has_typed(identity.as_deref(), VoiceCommand::Key(key)) {
                    warn!("a key that the caller pressed was lost: the conversation is busy");
                }
            }
            CallEvent::Gone { reason } => match &self.away {
                // The room goes with its caller: what the caller did is the better word for it.
                Some(away) if self.link_lost.is_none() => {
                    return Some(HangupCause::CallerLeft {
                        reason: away.reason,
                    });
                }
                _ if HangupCause::is_lost(reason) => {
                    self.connect_anew(reason);
                    return None;
                }
                _ => return Some(HangupCause::RoomGone { reason }),
            },
        }
        self.poll_room().await
    }

    /// Checks who is in the room, and acts on it: chooses the caller, or ends the call.
    async fn poll_room(&mut self) -> Option<HangupCause> {
        let mut parties = self.room.parties();
        if let Some(identity) = &self.reached
            && let Some(party) = parties.iter_mut().find(|party| party.identity == *identity)
        {
            party.counts_as_answered();
        }
        if let Some(elder) = party::elder_agent(&self.room.us(), &parties) {
            return Some(HangupCause::AnotherAgent {
                identity: elder.identity.clone(),
            });
        }
        if self.link_lost.is_some() {
            return None;
        }
        let agent_heard = self
            .ringing_until
            .is_some_and(|until| until <= Instant::now());
        let is_back = |away: &mut Away| {
            let mut here = parties.iter();
            here.find(|party| party.is_same_caller(&away.party))
                .cloned()
        };
        if let Some(back) = self.away.as_mut().and_then(is_back) {
            self.caller_is_back(back);
        }
        if let Stage::Talking(talk) = &mut self.stage {
            if self.away.is_some() {
                return None;
            }
            // Attributes come one after the other.
            let mut here = parties.iter();
            let changed = here
                .find(|party| party.identity == talk.caller.identity)
                .filter(|now| **now != talk.caller);
            if let Some(now) = changed {
                talk.caller.clone_from(now);
            }
            let better = match talk.was_heard {
                true => None,
                false => party::better(&talk.caller, &parties, agent_heard),
            };
            if let Some(now) = changed {
                self.note_participant(&now.identity);
            }
            if let Some(better) = better {
                self.change_caller(better.clone()).await;
            }
            return None;
        }
        if let Stage::Answered(answered) = &self.stage {
            if self.away.is_some() {
                return None;
            }
            let identity = &answered.caller.identity;
            let now = parties.iter().find(|party| party.identity == *identity);
            let changed = now.filter(|now| **now != answered.caller).cloned();
            // Somebody who has typed is the caller.
            let better = party::better(&answered.caller, &parties, agent_heard)
                .filter(|_| answered.typed.is_empty());
            if let Some(better) = better {
                self.answered(better.clone());
            } else if let Some(now) = changed {
                self.note_participant(&now.identity);
                self.caller_is(now);
            }
            return None;
        }
        self.choose(party::choose(&parties, agent_heard));
        None
    }

    /// Nobody is talked to yet, and this is who could be.
    fn choose(&mut self, choice: Choice<'_>) {
        let now = Instant::now();
        if !matches!(choice, Choice::Silent(_)) {
            self.microphone_until = None;
        }
        match choice {
            Choice::Nobody => {}
            // Nobody is talked to in place of the telephone that is being called.
            Choice::Silent(party) | Choice::Talk(party)
                if self.dialling.is_some() && party.role != Role::Telephone => {}
            // Whoever watches a telephone being called is not called instead when it gives up.
            Choice::Silent(_) if self.telephone_gave_up() => {}
            Choice::Silent(party) => {
                self.away = None;
                self.see(party.clone());
                let until = *self.microphone_until.get_or_insert(now + MICROPHONE_WAIT);
                if now >= until {
                    self.answered(party.clone());
                }
            }
            Choice::Ringing(party) => {
                self.away = None;
                self.see(party.clone());
                if !matches!(self.stage, Stage::Ringing(_)) {
                    info!("the caller's telephone is ringing");
                    session::lock(self.session).set_ringing(Utc::now());
                    // A call of ours is over when the API says so.
                    if self.dialling.is_none() {
                        let limit = Duration::from_secs(self.parts.config.call.ring_wait_s);
                        self.deadline = now + limit;
                    }
                }
                self.note_participant(&party.identity);
                self.stage = Stage::Ringing(party.clone());
            }
            Choice::Talk(party) => {
                self.away = None;
                self.answered(party.clone());
            }
        }
    }

    /// This is the caller, or looks like it: the look-up may begin with what is known of them.
    fn see(&mut self, caller: Party) {
        let numbers = Numbers::read(
            &self.agent.job_metadata,
            &caller.attributes,
            &self.job.room_name,
            &self.parts.config.call.country_code,
        );
        self.agent.numbers_are(numbers, self.session);
        self.seen = Some(caller);
    }

    /// The caller, about whom something is known that was not known before.
    fn caller_is(&mut self, caller: Party) {
        self.see(caller.clone());
        if let Stage::Answered(answered) = &mut self.stage {
            answered.caller = caller;
        }
    }

    fn telephone_gave_up(&self) -> bool {
        let away = self.away.as_ref();
        away.is_some_and(|away| away.party.role == Role::Telephone)
    }

    /// Somebody is not here any more.
    fn left(&mut self, party: Party, reason: DisconnectReason) -> Option<HangupCause> {
        self.audible
            .retain(|(identity, _)| *identity != party.identity);
        let mut dialling = self.dialling.iter();
        if dialling.any(|dialling| dialling.identity == party.identity) {
            self.left_unsaid = Some(reason);
            return None;
        }
        let is_ours = match &self.stage {
            Stage::Talking(talk) => talk.caller.identity == party.identity,
            Stage::Answered(answered) => answered.caller.identity == party.identity,
            Stage::Ringing(caller) => caller.identity == party.identity,
            Stage::WaitingForCaller => {
                let mut seen = self.seen.iter();
                seen.any(|seen| seen.identity == party.identity)
                    && party.leaves_nobody_to_wait_for(self.telephone_is_expected())
            }
        };
        if !is_ours || self.away.is_some() {
            return None;
        }
        let waiting = matches!(self.stage, Stage::WaitingForCaller);
        if !reason.may_return() && !waiting {
            return Some(HangupCause::CallerLeft { reason });
        }
        self.is_away(party, reason);
        None
    }

    /// The caller is not there, and is waited for.
    fn is_away(&mut self, party: Party, reason: DisconnectReason) {
        let since = Instant::now();
        let (patience, reason) = match self.link_lost {
            Some(_) if reason != DisconnectReason::CallerGaveUp => {
                (self.reconnect_wait(), DisconnectReason::ConnectionTimeout)
            }
            _ if reason == DisconnectReason::CallerGaveUp => (GIVEN_UP_GRACE, reason),
            _ => (RETURN_GRACE, reason),
        };
        self.away = Some(Away {
            party,
            reason,
            since,
            until: since + patience,
        });
        if let Stage::Talking(talk) = &self.stage {
            // A conversation that is full of commands has other troubles.
            let _ = talk.commands.try_send(VoiceCommand::LineLost);
        }
    }

    fn caller_is_back(&mut self, caller: Party) {
        let Some(away) = self.away.take() else {
            return;
        };
        let absence = away.since.elapsed();
        info!(
            duration_ms = absence.as_millis() as u64,
            "the caller is back"
        );
        if let Stage::Talking(talk) = &mut self.stage {
            let say = talk.lines.reconnected.clone();
            let say = say.filter(|_| absence >= NOTICED_ABSENCE);
            let _ = talk.commands.try_send(VoiceCommand::LineBack { say });
            let identity = caller.identity.clone();
            talk.caller = caller;
            self.record_caller(&identity);
            self.connect_sound(&identity);
        } else if matches!(self.stage, Stage::Answered(_)) {
            let identity = caller.identity.clone();
            self.caller_is(caller);
            self.record_caller(&identity);
        }
    }

    /// Our own connection is lost. Whoever seems to leave from now on may only be out of our sight.
    fn link_is_lost(&mut self) {
        let lost = Instant::now();
        warn!(
            limit_s = self.reconnect_wait().as_secs(),
            "the connection to the room is lost, connecting again"
        );
        self.link_lost = Some(lost);
        let until = lost + self.reconnect_wait();
        if let Some(away) = &mut self.away
            && away.reason != DisconnectReason::CallerGaveUp
        {
            away.until = until;
            away.reason = DisconnectReason::ConnectionTimeout;
        }
    }

    /// The SDK has given up. We connect anew as long as the caller may wait.
    fn connect_anew(&mut self, reason: DisconnectReason) {
        if self.link_lost.is_none() {
            self.link_is_lost();
        }
        self.audible.clear();
        let caller = match &self.stage {
            Stage::Talking(talk) => Some(talk.caller.clone()),
            Stage::Answered(answered) => Some(answered.caller.clone()),
            Stage::Ringing(caller) => Some(caller.clone()),
            Stage::WaitingForCaller => None,
        };
        if let Some(caller) = caller.filter(|_| self.away.is_none()) {
            self.is_away(caller, DisconnectReason::ConnectionTimeout);
        }
        let lost = self.link_lost.unwrap_or_else(Instant::now);
        info!(
            reason = reason.name(),
            "the SDK has given the connection up, joining anew"
        );
        let door = Door {
            url: self.job.url.clone(),
            token: room::fresh_token(&self.job.token, self.parts.livekit.as_ref()),
            room_name: self.job.room_name.clone(),
        };
        self.room.come_back(door, lost + self.reconnect_wait());
    }

    /// A connection of our own making has taken the place of the one that was lost.
    fn is_in_the_room_again(&mut self) {
        self.publisher.go_on(self.room.voice());
        self.link_is_back();
    }

    fn link_is_back(&mut self) {
        let lost = self.link_lost.take();
        let duration_ms = lost.map(|lost| lost.elapsed().as_millis() as u64);
        info!(
            duration_ms,
            caller_is_here = self.away.is_none(),
            "back in the room"
        );
        let now = Instant::now();
        // Whoever was connected through the same server needs about as long as we did.
        let until = now + self.reconnect_wait();
        if let Some(away) = &mut self.away
            && away.reason != DisconnectReason::CallerGaveUp
        {
            away.until = until;
        }
        self.deadline = self.deadline.max(until);
    }

    /// Whether the dispatch says that a telephone is to be called: others in the room are not
    /// waited for.
    fn telephone_is_expected(&self) -> bool {
        let country = &self.parts.config.call.country_code;
        let told = Numbers::read(&self.agent.job_metadata, &HashMap::new(), "", country);
        told.dialed_number.is_some() || told.direction == Some(session::Direction::Outbound)
    }

    /// What the room was like when the call began. A caller who is not there any more has given up
    /// while we were joining.
    fn was_before_us(&mut self, before_us: BeforeUs) {
        let nobody_came = matches!(self.stage, Stage::WaitingForCaller) && self.seen.is_none();
        if !nobody_came || self.away.is_some() {
            return;
        }
        let expected = self.telephone_is_expected();
        // A server that was restarted still lists who was there before, and does not expect them to
        // have left.
        let joined_at_ms = self.room.us().joined_at_ms;
        let just_came =
            |party: &Party| joined_at_ms - party.joined_at_ms < JUST_CAME.as_millis() as i64;
        let mut gone = before_us.parties.into_iter().filter(|party| {
            party.may_be_caller() && party.leaves_nobody_to_wait_for(expected) && just_came(party)
        });
        let gone = match gone.next() {
            Some(party) => {
                let said = CallParticipant::new(&party.identity, "", "", &party.attributes);
                session::lock(self.session).set_participant(said);
                party
            }
            None if before_us.of_one_call && !expected => Party::unknown_telephone(),
            None => return,
        };
        info!("the caller was in the room before the agent and is not there any more");
        self.has_rung(&gone);
        self.see(gone.clone());
        self.is_away(gone, DisconnectReason::CallerGaveUp);
    }

    /// A telephone that has given up before we could see it has rung all the same: since it came,
    /// or at least since its room was dispatched.
    fn has_rung(&self, gone: &Party) {
        if gone.role != Role::Telephone {
            return;
        }
        let now = Utc::now();
        let came = DateTime::from_timestamp_millis(gone.joined_at_ms)
            .filter(|came| gone.joined_at_ms > 0 && *came <= now);
        let mut session = session::lock(self.session);
        session.set_ringing(came.unwrap_or(self.job.dispatched_at));
        if gone.is_unknown() {
            // Only a call that came in makes such a room.
            session.set_call_metadata(CallMetadata {
                direction: Some(Direction::Inbound),
                ..Default::default()
            });
        }
    }

    /// A chat message for the agent.
    async fn typed(&mut self, identity: String, text: String) -> Option<HangupCause> {
        if matches!(self.stage, Stage::WaitingForCaller)
            && self.microphone_until.is_some()
            && self.seen.iter().any(|seen| seen.identity == identity)
        {
            // Somebody who writes is there, microphone or not.
            self.microphone_until = Some(Instant::now());
            let cause = self.poll_room().await;
            if cause.is_some() {
                return cause;
            }
        }
        // A conversation that is too busy for chat has lost its caller's patience anyway.
        self.has_typed(Some(&identity), VoiceCommand::UserText(text));
        None
    }

    /// Somebody has typed something, on a telephone or a keyboard. From the caller it goes to the
    /// conversation; answers whether there was room for it.
    fn has_typed(&mut self, identity: Option<&str>, command: VoiceCommand) -> bool {
        let is_caller = |caller: &Party| identity.is_none_or(|it| it == caller.identity);
        match &mut self.stage {
            Stage::Talking(talk) if is_caller(&talk.caller) => {
                // Somebody who types is there, whatever arrives of their sound.
                talk.was_heard = true;
                talk.media = MediaWatch::new(Instant::now(), None);
                talk.commands.try_send(command).is_ok()
            }
            Stage::Answered(answered) if is_caller(&answered.caller) => {
                let has_room = answered.typed.len() < MAX_TYPED_EARLY;
                if has_room {
                    answered.typed.push(command);
                }
                has_room
            }
            _ => true,
        }
    }

    /// Checks whether anything arrives from the caller.
    async fn poll_media(&mut self) -> Option<HangupCause> {
        let Stage::Talking(talk) = &mut self.stage else {
            return None;
        };
        let mut audible = self.audible.iter();
        let track = audible.find(|(identity, _)| *identity == talk.caller.identity);
        let packets = match track {
            // Nobody can send anything while there is no connection.
            _ if self.link_lost.is_some() || self.away.is_some() => Packets::Excused,
            Some((_, track)) => track.packets().await,
            None => Packets::NoTrack,
        };
        let now = Instant::now();
        let missing_s = talk.media.missing_for(now).as_secs();
        let news = talk.media.poll(now, packets);
        let soundless = talk.media.is_soundless(now);
        if soundless != talk.soundless {
            let told = talk
                .commands
                .try_send(VoiceCommand::CallerSound {
                    arrives: !soundless,
                })
                .is_ok();
            // A conversation that is full of commands is told with the next poll.
            if told {
                talk.soundless = soundless;
            }
        }
        match news {
            MediaNews::Nothing => None,
            MediaNews::Missing => {
                warn!(
                    missing_s,
                    has_track = track.is_some(),
                    "no sound arrives from the caller, not even silence"
                );
                None
            }
            MediaNews::Back => {
                info!(missing_s, "sound arrives from the caller again");
                None
            }
            MediaNews::GivenUp => Some(HangupCause::NoMedia {
                ever: talk.media.ever(),
                seconds: missing_s,
            }),
        }
    }

    /// From here on the two can hear each other, and are recorded. The conversation begins when it
    /// is known who the agent is.
    fn answered(&mut self, caller: Party) {
        session::lock(self.session).set_answered(Utc::now());
        self.note_participant(&caller.identity);
        self.see(caller.clone());
        self.microphone_until = None;
        // A campaign that has its calls recorded elsewhere says so in its persona, which may be
        // known already.
        let _ = self.agent.lookup.finish().now_or_never();
        self.agent.note(self.session);
        let mut recording = None;
        if !std::mem::replace(&mut self.answered, true) {
            self.recorder = Recorder::start(
                &self.parts.config.recording,
                self.parts.livekit.as_ref(),
                &self.parts.store,
                self.session,
                &self.job.room_name,
                || self.room.listen_to_agent(),
            );
            let limit = self.parts.config.recording.egress_start_wait_ms;
            recording = self
                .recorder
                .as_ref()
                .and_then(|recorder| recorder.records_within(Duration::from_millis(limit)));
        } else if let Stage::Answered(answered) = &mut self.stage {
            recording = answered.recording.take();
        }
        let identity = caller.identity.clone();
        self.stage = Stage::Answered(Box::new(Answered {
            caller,
            typed: Vec::new(),
            persona_until: Some(Instant::now() + self.parts.config.persona.timeout()),
            recording,
        }));
        self.record_caller(&identity);
    }

    /// Begins the conversation with a caller who waits for it, when it is known who the agent is,
    /// what is said is recorded, and the two hear each other.
    fn begin_if_ready(&mut self) {
        let Stage::Answered(answered) = &mut self.stage else {
            return;
        };
        let is_recorded = answered.recording.is_none();
        if !is_recorded || self.away.is_some() || self.link_lost.is_some() {
            return;
        }
        let Some(profile) = self.agent.lookup.profile() else {
            // It was made ready for other numbers.
            self.drop_prepared();
            return;
        };
        let caller = answered.caller.clone();
        let typed = std::mem::take(&mut answered.typed);
        let identity = caller.identity.clone();
        let prepared = self.prepared.take();
        let talk = match prepared.filter(|talk| talk.caller.identity == identity) {
            Some(mut talk) => {
                talk.caller = caller;
                talk.media = MediaWatch::new(Instant::now(), self.parts.config.call.no_media());
                let _ = talk.commands.try_send(VoiceCommand::LineBack { say: None });
                talk
            }
            None => self.start_conversation(caller, profile),
        };
        self.stage = Stage::Talking(Box::new(talk));
        self.agent.note(self.session);
        self.connect_sound(&identity);
        for command in typed {
            self.has_typed(Some(&identity), command);
        }
    }

    /// The one we talk to has not been heard, and somebody has come who goes first: they get a
    /// conversation of their own.
    async fn change_caller(&mut self, caller: Party) {
        info!("somebody goes before the one who was taken for the caller and has not been heard");
        let stage = std::mem::replace(&mut self.stage, Stage::WaitingForCaller);
        if let Stage::Talking(mut talk) = stage {
            let _ = talk.commands.try_send(VoiceCommand::Stop);
            let limit = Instant::now() + STOP_AT_ONCE;
            loop {
                tokio::select! {
                    event = talk.events.recv() => match event {
                        Some(event) => self.voice_event(event),
                        None => break,
                    },
                    () = sleep_until(limit) => {
                        talk.conversation.abort();
                        break;
                    }
                }
            }
        }
        session::lock(self.session).replace_caller();
        self.answered(caller);
    }

    /// Keeps what the caller's participant says about itself: the record and the CRM get it.
    fn note_participant(&self, identity: &str) {
        if let Some(participant) = self.room.about(identity) {
            session::lock(self.session).set_participant(participant);
        }
    }

    fn start_conversation(&self, caller: Party, profile: &AgentProfile) -> Talk {
        let parts = self.parts;
        let AgentProfile { persona, providers } = profile;
        let (audio, heard) = mpsc::channel(AUDIO_QUEUE);
        let (commands, inbox) = mpsc::channel(VOICE_QUEUE);
        let (outbox, events) = mpsc::channel(VOICE_QUEUE);
        let (wanted, actions) = mpsc::channel(ACTION_QUEUE);
        let mut config = parts.config.voice.clone();
        let sources = LineSources::new(&config.lines, &persona.lines, persona.language.as_ref());
        config.lines = config.lines.of(&sources);
        let conversation = Conversation {
            config,
            instructions: instructions(&persona.instructions, &self.agent.job_metadata),
            greeting: persona.greeting.clone(),
            goodbye: persona.goodbye.clone(),
            answer: self.answer_plan(persona),
            language: persona.language.clone(),
            voice: persona.voice.clone(),
            stt: providers.stt.clone(),
            llm: providers.llm.clone(),
            tts: providers.tts.clone(),
            tools: Arc::new(
                Toolbox::new(
                    self.session.clone(),
                    parts.store.clone(),
                    &parts.config.tools,
                )
                .with_call(wanted),
            ),
            output: self.room.speaker(),
        };
        Talk {
            caller,
            commands,
            sound: CallerSound::new(audio),
            events,
            actions,
            conversation: tokio::spawn(conversation.run(heard, inbox, outbox).in_current_span()),
            media: MediaWatch::new(Instant::now(), parts.config.call.no_media()),
            lines: parts.config.call.lines(&sources),
            soundless: false,
            was_heard: false,
        }
    }

    /// What to do about whoever answers, in a call that we have placed.
    fn answer_plan(&self, persona: &Persona) -> Option<AnswerPlan> {
        let session = session::lock(self.session);
        let is_ours = session.dial()?.placed_by == PlacedBy::Agent;
        let said = self.agent.job_metadata.get(dispatch::DIAL);
        let config = self.parts.config.dial.answering_machine.clone();
        let config = config
            .with(&persona.answering_machine)
            .with(&AnsweringMachineWish::of_dispatch(said));
        is_ours.then(|| config.plan()).flatten()
    }

    /// Does what a tool of the model's wants, in the background: the tool waits for its end.
    fn act(&self, wanted: WantedAction) {
        let Stage::Talking(talk) = &self.stage else {
            return;
        };
        let WantedAction { action, done } = wanted;
        // Whoever waits for the end may have been given up.
        if talk.caller.role != Role::Telephone {
            let _ = done.send(Err("the caller is not on the telephone".to_owned()));
            return;
        }
        match action {
            CallAction::Keys(keys) => {
                info!(keys = keys.len(), "pressing keys of the telephone");
                let voice = self.room.voice();
                let pressing = async move {
                    let _ = done.send(voice.press(&keys).await);
                };
                tokio::spawn(pressing.in_current_span());
            }
            CallAction::Transfer {
                target,
                ringing_timeout,
            } => {
                let Some(livekit) = &self.parts.livekit else {
                    let why = "LIVEKIT_API_KEY and LIVEKIT_API_SECRET are not set";
                    let _ = done.send(Err(why.to_owned()));
                    return;
                };
                let service = TelephoneService::new(livekit);
                let (room, identity) = (self.job.room_name.clone(), talk.caller.identity.clone());
                let handing_over = async move {
                    let handed = service.transfer(&room, &identity, &target, ringing_timeout);
                    let result = handed.await;
                    match &result {
                        Ok(()) => info!("the caller is handed over"),
                        Err(error) => warn!(
                            error = mask_numbers(&error.message),
                            "the caller could not be handed over"
                        ),
                    }
                    let _ = done.send(result.map_err(|error| error.in_words()));
                };
                tokio::spawn(handing_over.in_current_span());
            }
        }
    }

    /// Leads the caller's sound to the recording, once both the caller and the sound are known.
    fn record_caller(&self, identity: &str) {
        let caller = match &self.stage {
            Stage::Answered(answered) => &answered.caller,
            Stage::Talking(talk) => &talk.caller,
            Stage::WaitingForCaller | Stage::Ringing(_) => return,
        };
        if caller.identity == identity
            && let Some(recorder) = &self.recorder
            && let Some((_, track)) = self.audible.iter().find(|(known, _)| known == identity)
        {
            recorder.add_caller(|sample_rate_hz| track.listen(sample_rate_hz));
        }
    }

    /// Leads the caller's sound to the conversation, once both the caller and the sound are known.
    fn connect_sound(&mut self, identity: &str) {
        let Stage::Talking(talk) = &mut self.stage else {
            return;
        };
        if talk.caller.identity != identity {
            return;
        }
        let Some((_, track)) = self.audible.iter().find(|(known, _)| known == identity) else {
            return;
        };
        self.publisher.caller(identity, track.sid());
        let frames = track.listen(LISTEN_SAMPLE_RATE_HZ);
        talk.sound.lead(frames.map(|frame| frame.data.into_owned()));
    }

    fn voice_event(&mut self, event: VoiceEvent) {
        match event {
            VoiceEvent::AgentState(state) => self.publisher.agent_state(state),
            VoiceEvent::UserTranscript {
                segment_id,
                text,
                is_final,
            } => {
                if let Stage::Talking(talk) = &mut self.stage {
                    talk.was_heard |= !text.trim().is_empty();
                }
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
                if item.interrupted {
                    self.measured(Measurement::Interrupted);
                }
                if let Some(metrics) = &item.metrics {
                    self.measured(Measurement::Turn(metrics.clone()));
                }
                session::lock(self.session).commit_item(item);
            }
            VoiceEvent::Keypad { keys } => {
                info!(
                    keys = keys.chars().count(),
                    "the caller has typed on the telephone"
                );
                session::lock(self.session).add_keypad_input(KeypadInput {
                    keys,
                    typed_at: Utc::now(),
                });
            }
            VoiceEvent::AnsweredBy(verdict) => {
                let Verdict {
                    answered_by,
                    reason,
                    after,
                } = verdict;
                let after_ms = after.as_millis() as u64;
                info!(
                    answered_by = answered_by.name(),
                    reason = reason.name(),
                    after_ms,
                    "who has answered"
                );
                session::lock(self.session).set_answer(AnswerDetection {
                    answered_by,
                    reason: reason.name().to_owned(),
                    decided_at: Utc::now(),
                    after_ms,
                });
            }
            VoiceEvent::MessageLeft => {
                info!("a message was left with the machine that has answered");
                session::lock(self.session).set_message_left(Utc::now());
            }
            VoiceEvent::Usage(usage) => {
                session::lock(self.session).add_usage(usage);
                self.measured(Measurement::Used(usage));
            }
            VoiceEvent::TurnMeasured { turn, .. } => session::lock(self.session).set_turn(turn),
            // The tools note what they did themselves.
            VoiceEvent::ToolCalled { .. } => {}
            VoiceEvent::FirstAudio => info!("first sound of the agent"),
            VoiceEvent::Error {
                component,
                message,
                recoverable,
            } => {
                warn!(component, error = message, recoverable, "provider error");
                self.measured(Measurement::Failed { component });
            }
            VoiceEvent::FalseInterruption => {
                debug!("the agent went on after a false interruption");
                self.measured(Measurement::FalseInterruption);
            }
            VoiceEvent::TurnAnswered { latency } => info!(
                latency_ms = latency.as_millis() as u64,
                "the agent answered"
            ),
            VoiceEvent::UserState(state) => debug!(?state, "user state"),
        }
    }

    fn measured(&self, measurement: Measurement) {
        self.to_worker.send(FromCall::Measured(measurement));
    }

    /// What the end of the conversation means. The silence of a line that is dead is not the
    /// caller's.
    fn conversation_cause(&self, end: VoiceEnd) -> HangupCause {
        let now = Instant::now();
        match (end, &self.stage) {
            (VoiceEnd::Requested(CallRequest::HangUp) | VoiceEnd::Closed, _) => {
                HangupCause::AgentEnded
            }
            (VoiceEnd::MachineAnswered, _) => HangupCause::MachineAnswered,
            (VoiceEnd::SilenceHangup, _) if self.link_lost.is_some() => HangupCause::RoomGone {
                reason: DisconnectReason::ConnectionTimeout,
            },
            (VoiceEnd::SilenceHangup, Stage::Talking(talk)) if talk.media.is_missing(now) => {
                HangupCause::NoMedia {
                    ever: talk.media.ever(),
                    seconds: talk.media.missing_for(now).as_secs(),
                }
            }
            (VoiceEnd::SilenceHangup, _) => HangupCause::Silence,
            (VoiceEnd::ProviderFailed { component, message }, _) => HangupCause::ProviderFailed {
                component: component.to_string(),
                message,
            },
            (VoiceEnd::Stopped, _) => HangupCause::Finalised,
        }
    }

    /// Ends the conversation as the cause allows and commits what was said until then. Gives back
    /// the cause, which what happens meanwhile may tell better, whether the call was answered, and
    /// the recorder, which is still running.
    async fn close(
        mut self,
        cause: HangupCause,
        events: &mut RoomEvents,
    ) -> (HangupCause, bool, Option<Recorder>) {
        let recorder = self.recorder.take();
        self.drop_prepared();
        let stage = std::mem::replace(&mut self.stage, Stage::WaitingForCaller);
        let Stage::Talking(mut talk) = stage else {
            return (cause, self.answered, recorder);
        };
        let (command, limit) = match &cause {
            HangupCause::MaxDuration => (
                VoiceCommand::Close {
                    reason: "max_duration".into(),
                    say: talk.lines.max_duration_goodbye.take(),
                },
                LAST_WORDS,
            ),
            // They may hear us all the same.
            HangupCause::NoMedia { .. } => (
                VoiceCommand::Close {
                    reason: "no_media".into(),
                    say: talk.lines.no_media_goodbye.take(),
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
                    gone = nobody_listens(event, &talk.caller.identity);
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
            gone = nobody_listens(Some(event), &talk.caller.identity);
        }
        let cause = match (cause, gone) {
            // The server terminates the job of an agent that it sends away, too.
            (HangupCause::Terminated, Some(gone @ HangupCause::RoomGone { .. })) => gone,
            (cause, _) => cause,
        };
        (cause, true, recorder)
    }
}

/// The persona's instructions, and the lead that the dispatch is about.
fn instructions(persona: &str, job_metadata: &Value) -> String {
    match job_metadata.get("lead") {
        Some(lead @ Value::Object(_)) => {
            let lead = lead.to_string();
            if lead.len() > MAX_LEAD_BYTES {
                warn!(
                    "the lead of the dispatch is longer than {MAX_LEAD_BYTES} bytes: the agent is not told of it"
                );
                return persona.to_owned();
            }
            format!("{persona}\n\nWhat is known of the person on the line: {lead}")
        }
        _ => persona.to_owned(),
    }
}

/// Whether an event means that the caller does not hear the agent any more, and why.
fn nobody_listens(event: Option<RoomEvent>, caller: &str) -> Option<HangupCause> {
    let Some(event) = event else {
        return Some(HangupCause::RoomGone {
            reason: DisconnectReason::Unknown,
        });
    };
    match room::call_event(event)? {
        CallEvent::Gone { reason } => Some(HangupCause::RoomGone { reason }),
        CallEvent::Left { party, reason } if party.identity == caller => {
            Some(HangupCause::CallerLeft { reason })
        }
        _ => None,
    }
}

async fn dialled_or_never(dialling: Option<&mut Dialling>) -> Result<(), TelephoneError> {
    match dialling {
        Some(dialling) => dialling.finished().await,
        None => pending().await,
    }
}

async fn ready_or_never(waiting: Option<&mut BoxFuture<'static, ()>>) {
    match waiting {
        Some(waiting) => waiting.await,
        None => pending().await,
    }
}

async fn wanted_or_never(actions: Option<&mut mpsc::Receiver<WantedAction>>) -> WantedAction {
    match actions {
        Some(actions) => match actions.recv().await {
            Some(wanted) => wanted,
            // The conversation is ending.
            None => pending().await,
        },
        None => pending().await,
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

/// The result of a task that may be there, once.
async fn joined_or_pending(task: &mut Option<JoinHandle<BeforeUs>>) -> BeforeUs {
    match task {
        Some(running) => {
            let joined = running.await;
            *task = None;
            joined.unwrap_or_default()
        }
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
