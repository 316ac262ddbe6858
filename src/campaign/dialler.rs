//! The dialler of a campaign: begins the attempts that the plan asks for, and finds out what comes
//! of them.
//!
//! An attempt is in the journal before the server is asked for its dispatch, and its room has its
//! id as name. So a dialler that takes over asks the data folder and the server what has come of
//! the attempts that have no end yet; it begins none of them again.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::do_not_call::DoNotCall;
use super::event::{Attempt, AttemptOutcome, AttemptResult, CampaignEvent, ImportedLead};
use super::follow::{Deed, Phase};
use super::journal::{Campaign, JournalError, Lease};
use super::number::DialNumber;
use super::plan::{Next, RunState};
use super::settings::{CampaignName, CampaignSettings};
use super::traces::{Trace, Traces};
use crate::phone::CountryCode;
use crate::rooms::{DispatchFailure, DispatchService, Dispatched};
use crate::session::{ATTEMPT_KEYS, time};
use crate::settings::LiveKitSettings;
use crate::store::{Store, StoreError};

/// How often journal and folders are read while nothing else happens.
const TICK: Duration = Duration::from_millis(250);
/// How often the server is asked about an attempt that has left no trace in the data folder.
const ASK_EVERY: TimeDelta = TimeDelta::seconds(2);
/// Calls are found in the data folder if they began at most so long before their attempt: the
/// clocks of two machines differ.
const CLOCK_MARGIN: TimeDelta = TimeDelta::minutes(5);
/// How often a dialler that stands by asks for the lease.
const STANDBY: Duration = Duration::from_millis(500);
/// The most answers of the server that wait to be read. Who finds it full waits.
const ANSWERS: usize = 256;

/// Why a campaign cannot be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DiallerError {
    /// Its journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The data folder cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing would ever be called.
    #[error("{0}")]
    NeverCalls(String),
}

/// What a dialler needs to know beside its campaign.
#[derive(Debug, Clone)]
pub struct DiallerSettings {
    /// The data folder, which it shares with the workers.
    pub data_dir: PathBuf,
    /// The LiveKit server.
    pub livekit: LiveKitSettings,
    /// The name of workers for campaigns that name none.
    pub agent_name: String,
    /// The trunk for campaigns that name none; empty: the workers' own.
    pub trunk_id: String,
    /// The number of slots for campaigns that say none.
    pub slots: u32,
    /// Where numbers without a country code belong.
    pub country: CountryCode,
}

/// How a dialler has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiallerEnd {
    /// Nothing is left to do.
    Finished,
    /// It was asked to stop. Calls that run go on.
    Stopped,
}

/// What the server has answered about an attempt.
#[derive(Debug)]
enum Answer {
    Created(Result<String, DispatchFailure>),
    Found(Dispatched),
    TakenBack,
}

/// An attempt in the eyes of this process.
#[derive(Debug)]
struct Followed {
    phase: Phase,
    /// A request about it is on its way.
    asking: bool,
    asked_at: Option<DateTime<Utc>>,
}

struct Dialler {
    settings: DiallerSettings,
    campaign: Campaign,
    agent_name: String,
    service: Arc<DispatchService>,
    traces: Option<Traces>,
    do_not_call: DoNotCall,
    followed: HashMap<Attempt, Followed>,
    answers: mpsc::Sender<(Attempt, Answer)>,
}

/// Works through a campaign until nothing is left to do, or `stop` is told. While another process
/// dials for it, this one stands by.
///
/// # Errors
/// See [`DiallerError`].
pub async fn dial(
    settings: DiallerSettings,
    name: &CampaignName,
    stop: &mut mpsc::Receiver<()>,
) -> Result<DiallerEnd, DiallerError> {
    let campaign = Campaign::open(&settings.data_dir, name)?;
    let mut stands_by = false;
    let _lease = loop {
        if let Some(lease) = Lease::take(&settings.data_dir, name)? {
            break lease;
        }
        if !std::mem::replace(&mut stands_by, true) {
            info!(campaign = %name, "another process dials for the campaign, this one stands by");
        }
        if timeout(STANDBY, stop.recv()).await.is_ok() {
            return Ok(DiallerEnd::Stopped);
        }
    };
    let own = campaign.plan().settings();
    let agent_name = own.agent.clone().unwrap_or(settings.agent_name.clone());
    let slots = own.slots.unwrap_or(settings.slots);
    if own.outbound_slots(slots) == 0 {
        return Err(DiallerError::NeverCalls(format!(
            "of {slots} slots none is left for the campaign beside the share that is kept for calls that come in: set slots of the campaign to those of all workers together, or inbound_share lower"
        )));
    }
    let (answers, mut answered) = mpsc::channel(ANSWERS);
    let mut dialler = Dialler {
        service: Arc::new(DispatchService::new(&settings.livekit)),
        traces: Some(Traces::new(Store::open(&settings.data_dir)?)),
        do_not_call: DoNotCall::new(&settings.data_dir, settings.country.clone()),
        followed: HashMap::new(),
        settings,
        campaign,
        agent_name,
        answers,
    };
    info!(campaign = %name, leads = dialler.campaign.plan().leads().len(), "dialling for the campaign");
    let mut failing = false;
    loop {
        let wait = match dialler.round().await {
            Ok(None) => return Ok(DiallerEnd::Finished),
            Ok(Some(wait)) => {
                if std::mem::take(&mut failing) {
                    info!(campaign = %name, "the campaign goes on");
                }
                wait
            }
            // A full disk, for example: nobody is called until it can be written again.
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    error!(campaign = %name, %error, "nobody is called; it is tried again and again");
                }
                TICK
            }
        };
        tokio::select! {
            biased;
            _ = stop.recv() => return Ok(DiallerEnd::Stopped),
            Some((attempt, answer)) = answered.recv() => {
                dialler.heard(attempt, answer);
                while let Ok((attempt, answer)) = answered.try_recv() {
                    dialler.heard(attempt, answer);
                }
            }
            () = tokio::time::sleep(wait) => {}
        }
    }
}

impl Dialler {
    /// Does what there is to do. Gives how long nothing may be; `None`: nothing ever.
    async fn round(&mut self) -> Result<Option<Duration>, DiallerError> {
        self.campaign.catch_up()?;
        self.read_traces().await?;
        self.follow_all()?;
        loop {
            match self.next()? {
                Next::Start(attempt) => self.dispatch(attempt)?,
                Next::Finished => return Ok(None),
                Next::Idle => return Ok(Some(TICK)),
                Next::Wait(until) => {
                    let wait = (until - time::now()).to_std().unwrap_or_default();
                    return Ok(Some(wait.clamp(Duration::from_millis(1), TICK)));
                }
            }
        }
    }

    async fn read_traces(&mut self) -> Result<(), DiallerError> {
        let oldest = self
            .campaign
            .plan()
            .open()
            .map(|open| open.started_at)
            .min();
        let since = oldest.unwrap_or_else(time::now) - CLOCK_MARGIN;
        let Some(mut traces) = self.traces.take() else {
            return Err(DiallerError::NeverCalls(
                "reading the data folder failed".to_owned(),
            ));
        };
        let reading = tokio::task::spawn_blocking(move || {
            let read = traces.refresh(since);
            (traces, read)
        });
        let (traces, read) = reading
            .await
            .map_err(|error| DiallerError::NeverCalls(error.to_string()))?;
        self.traces = Some(traces);
        Ok(read?)
    }

    fn other_calls(&self) -> u32 {
        self.traces.as_ref().map_or(0, Traces::other_calls)
    }

    /// The next attempt, which is in the journal then.
    fn next(&mut self) -> Result<Next, DiallerError> {
        let other_calls = self.other_calls();
        let default_slots = self.settings.slots;
        loop {
            let now = time::now();
            let free = {
                let plan = self.campaign.plan();
                let own = plan.settings();
                let slots = own.slots.unwrap_or(default_slots);
                let open = u32::try_from(plan.open().count()).unwrap_or(u32::MAX);
                let ours = own
                    .outbound_slots(slots)
                    .min(slots.saturating_sub(other_calls));
                ours.saturating_sub(open)
            };
            let next = self.campaign.plan_mut().next(now, free);
            let Next::Start(_) = next else {
                return Ok(next);
            };
            let list = &mut self.do_not_call;
            // Others may have added to the journal: only what it says under the lock counts.
            let decided = self
                .campaign
                .record(now, |plan| match plan.next(now, free) {
                    Next::Start(attempt) => {
                        let number = plan.leads()[attempt.lead as usize].number;
                        match list.contains(number) {
                            Ok(false) => (
                                vec![CampaignEvent::AttemptStarted(attempt)],
                                Ok(Some(Next::Start(attempt))),
                            ),
                            Ok(true) => {
                                let lead = attempt.lead;
                                (vec![CampaignEvent::DoNotCall { lead }], Ok(None))
                            }
                            Err(error) => (Vec::new(), Err(error)),
                        }
                    }
                    next => (Vec::new(), Ok(Some(next))),
                })??;
            if let Some(next) = decided {
                return Ok(next);
            }
        }
    }

    /// Asks the server for the dispatch of an attempt that has begun.
    fn dispatch(&mut self, attempt: Attempt) -> Result<(), DiallerError> {
        self.followed.insert(
            attempt,
            Followed {
                phase: Phase::Asking,
                asking: true,
                asked_at: None,
            },
        );
        let place = self.campaign.plan().leads()[attempt.lead as usize].place;
        let lead = match self.campaign.lead_at(place) {
            Ok(lead) => lead,
            Err(error) => {
                let failure = DispatchFailure::Refused(error.to_string());
                self.heard(attempt, Answer::Created(Err(failure)));
                return Err(error.into());
            }
        };
        let own = self.campaign.plan().settings();
        let metadata = metadata(own, &self.settings.trunk_id, attempt, &lead).to_string();
        let room = attempt.id(self.campaign.name());
        info!(campaign = %self.campaign.name(), room.name = %room, "attempt begins");
        let (service, agent_name) = (self.service.clone(), self.agent_name.clone());
        self.ask(attempt, async move {
            Answer::Created(service.create(&room, &agent_name, metadata).await)
        });
        Ok(())
    }

    fn ask(&self, attempt: Attempt, asking: impl Future<Output = Answer> + Send + 'static) {
        let answers = self.answers.clone();
        tokio::spawn(async move {
            // Nobody is there any more to hear it: the next dialler asks.
            let _ = answers.send((attempt, asking.await)).await;
        });
    }

    fn age(&self, attempt: Attempt) -> Duration {
        let mut open = self.campaign.plan().open();
        let began = open.find(|open| open.attempt == attempt);
        let age = began.map(|open| time::now() - open.started_at);
        age.and_then(|age| age.to_std().ok()).unwrap_or_default()
    }

    fn heard(&mut self, attempt: Attempt, answer: Answer) {
        let age = self.age(attempt);
        let Some(followed) = self.followed.get_mut(&attempt) else {
            return;
        };
        followed.asking = false;
        let phase = std::mem::replace(&mut followed.phase, Phase::Unknown);
        followed.phase = match answer {
            Answer::Created(Ok(id)) => Phase::Dispatched { id, since: age },
            Answer::Created(Err(DispatchFailure::Refused(why))) => {
                warn!(campaign = %self.campaign.name(), error = %why, "an attempt could not be given to a worker");
                Phase::Refused { why }
            }
            Answer::Created(Err(DispatchFailure::Unknown(why))) => {
                warn!(campaign = %self.campaign.name(), error = %why, "it is not known whether an attempt has begun");
                Phase::Unknown
            }
            Answer::Found(said) => phase.heard(age, &said),
            Answer::TakenBack => Phase::TakenBack { since: age },
        };
    }

    /// Finds out what has come of the attempts that have no end.
    fn follow_all(&mut self) -> Result<(), DiallerError> {
        let now = time::now();
        let open: Vec<_> = self.campaign.plan().open().copied().collect();
        self.followed
            .retain(|attempt, _| self.campaign.plan().is_open(*attempt));
        let mut events = Vec::new();
        for open in open {
            let attempt = open.attempt;
            let room = attempt.id(self.campaign.name());
            let trace = self.traces.as_ref().and_then(|traces| traces.of(&room));
            match trace.cloned() {
                Some(Trace::Ended(result, number)) => {
                    if result.do_not_call {
                        self.never_again(attempt, number.as_deref())?;
                    }
                    events.push(CampaignEvent::AttemptEnded {
                        attempt,
                        result: *result,
                    });
                }
                Some(Trace::Running) if !open.placed => {
                    events.push(CampaignEvent::AttemptPlaced(attempt));
                }
                Some(Trace::Running) => {}
                None => events.extend(self.follow(now, attempt, open.placed, room)),
            }
        }
        if events.is_empty() {
            return Ok(());
        }
        for event in &events {
            if let CampaignEvent::AttemptEnded { attempt, result } = event {
                let room = attempt.id(self.campaign.name());
                info!(campaign = %self.campaign.name(), room.name = %room, outcome = result.outcome.name(), "attempt ended");
            }
        }
        self.campaign.record(now, |_| (events, ()))?;
        Ok(())
    }

    /// The number of the call, and of its lead, is on the list before the attempt has its end.
    fn never_again(&mut self, attempt: Attempt, number: Option<&str>) -> Result<(), DiallerError> {
        let lead = self.campaign.plan().leads()[attempt.lead as usize].number;
        self.do_not_call.add(lead)?;
        if let Some(number) = number
            && let Ok(number) = DialNumber::read(number, &self.settings.country)
        {
            self.do_not_call.add(number)?;
        }
        Ok(())
    }

    /// What is done about an attempt that has left no trace in the data folder.
    fn follow(
        &mut self,
        now: DateTime<Utc>,
        attempt: Attempt,
        placed: bool,
        room: String,
    ) -> Option<CampaignEvent> {
        let age = self.age(attempt);
        let followed = self.followed.entry(attempt).or_insert(Followed {
            phase: match placed {
                true => Phase::Placed,
                false => Phase::Unknown,
            },
            asking: false,
            asked_at: None,
        });
        let ended = |result: AttemptResult| CampaignEvent::AttemptEnded { attempt, result };
        match followed.phase.deed(age) {
            Deed::Lost => return Some(ended(AttemptResult::only(AttemptOutcome::Lost))),
            Deed::NotPlaced => {
                let mut result = AttemptResult::only(AttemptOutcome::NotPlaced);
                result.error = match &followed.phase {
                    Phase::Refused { why } => Some(why.clone()),
                    _ => Some(format!(
                        "no worker of the name {:?} took it",
                        self.agent_name
                    )),
                };
                return Some(ended(result));
            }
            Deed::TakeBack(id) => {
                if !std::mem::replace(&mut followed.asking, true) {
                    let service = self.service.clone();
                    self.ask(attempt, async move {
                        service.take_back(&room, &id).await;
                        Answer::TakenBack
                    });
                }
                return None;
            }
            Deed::Wait => {}
        }
        if followed.phase == Phase::Placed && !placed {
            return Some(CampaignEvent::AttemptPlaced(attempt));
        }
        let is_due = followed
            .asked_at
            .is_none_or(|asked| (now - asked).abs() >= ASK_EVERY);
        if is_due && !followed.asking {
            followed.asking = true;
            followed.asked_at = Some(now);
            let (service, agent_name) = (self.service.clone(), self.agent_name.clone());
            self.ask(attempt, async move {
                Answer::Found(service.find(&room, &agent_name).await)
            });
        }
        None
    }
}

/// What the dispatch of an attempt says.
fn metadata(
    settings: &CampaignSettings,
    trunk_id: &str,
    attempt: Attempt,
    lead: &ImportedLead,
) -> Value {
    let mut dial = Map::new();
    let trunk = settings.trunk_id.as_deref().unwrap_or(trunk_id);
    if !trunk.is_empty() {
        dial.insert("trunk_id".to_owned(), json!(trunk));
    }
    if let Some(seconds) = settings.ringing_timeout_s {
        dial.insert("ringing_timeout_s".to_owned(), json!(seconds));
    }
    if !settings.caller_ids.is_empty() {
        let turn =
            (attempt.lead as usize + attempt.attempt as usize - 1) % settings.caller_ids.len();
        dial.insert("caller_id".to_owned(), json!(settings.caller_ids[turn]));
    }
    let id = attempt.id(&settings.name);
    let lead_id = lead
        .lead_id
        .clone()
        .unwrap_or_else(|| attempt.lead.to_string());
    let mut about = lead.data.clone();
    about.entry("lead_id").or_insert_with(|| json!(lead_id));
    let [campaign, lead_key, attempt_key] = ATTEMPT_KEYS;
    let mut metadata = json!({
        "phone_number": lead.number,
        "direction": "outbound",
        "dial": dial,
        "lead": about,
        "campaign_metadata": { campaign: settings.name, lead_key: lead_id, attempt_key: id },
    });
    if let Some(persona) = &settings.persona {
        metadata["persona"] = json!(persona);
    }
    if let Some(id) = &settings.crm_campaign_id {
        metadata["campaignId"] = json!(id);
    }
    metadata
}

/// Whether a dialler has anything to do for a campaign now: it runs, or an attempt has no end.
pub fn has_work(campaign: &mut Campaign) -> bool {
    let plan = campaign.plan();
    let runs = plan.state() == RunState::Running;
    let is_open = plan.open().next().is_some();
    (runs || is_open) && campaign.plan_mut().next(time::now(), 1) != Next::Finished
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dispatch_names_the_trunk_of_the_campaign_or_that_of_the_dialler() {
        let lead = json!({ "number": "+15550100123", "lead_id": "L-1", "data": {} });
        let lead = serde_json::from_value::<ImportedLead>(lead).unwrap();
        let attempt = Attempt {
            lead: 0,
            attempt: 1,
        };
        for (own, of_dialler, expected) in [
            (Some("ST_own"), "ST_dialler", json!("ST_own")),
            (None, "ST_dialler", json!("ST_dialler")),
            // The workers' settings have it.
            (None, "", Value::Null),
        ] {
            let settings = json!({
                "name": "c", "timezone": "Asia/Kolkata", "window": { "preset": "any-time" }, "trunk_id": own,
            });
            let settings: CampaignSettings = serde_json::from_value(settings).unwrap();
            let told = metadata(&settings, of_dialler, attempt, &lead);
            assert_eq!(told["dial"]["trunk_id"], expected);
        }
    }
}
