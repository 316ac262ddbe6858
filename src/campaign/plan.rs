//! Whom to call next, as a state machine that is folded from the events of a campaign's journal.
//! Pure: time is an argument, and whoever folds the same events decides the same.
//!
//! ```text
//! Waiting ─▶ Open ─▶ Reached | Exhausted | DoNotCall
//!    ▲         │
//!    └─────────┘  a retry, a callback, or no worker took it
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use serde::Serialize;

use super::event::{Attempt, AttemptOutcome, AttemptResult, CampaignEvent, ImportedLead};
use super::number::DialNumber;
use super::settings::{BreakerSettings, CampaignSettings};
use super::window;

/// How long no attempt is begun after one that no worker took; doubled with each further one.
const FIRST_HOLD: TimeDelta = TimeDelta::seconds(2);
/// The longest of these holds: workers that come back are used within a minute.
const LONGEST_HOLD: TimeDelta = TimeDelta::seconds(60);
/// A callback is not before this after the call in which it was asked for, so that an agent that
/// has the time wrong does not ring at once again.
const SOONEST_CALLBACK: TimeDelta = TimeDelta::seconds(60);
/// A callback is not later than this; one that is does not count.
const LATEST_CALLBACK: TimeDelta = TimeDelta::days(366);

/// What the operator wants of the campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Nothing yet.
    Created,
    /// Calls may begin.
    Running,
    /// No call begins until it is resumed.
    Paused,
    /// No call ever begins again.
    Stopped,
}

/// Where a lead stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeadState {
    /// To be called.
    Waiting,
    /// Being called.
    Open,
    /// Somebody has answered; nothing is left to do.
    Reached,
    /// Not reached, and the rules allow no further attempt.
    Exhausted,
    /// Never to be called.
    DoNotCall,
}

/// Which queue a waiting lead is in, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Queue {
    Callback,
    Retry,
    Fresh,
}

/// One lead, as small as it can be: there are a hundred thousand of them.
#[derive(Debug, Clone)]
pub struct Lead {
    /// Its number.
    pub number: DialNumber,
    /// Where the line that imported it lies in the journal, bytes.
    pub place: u64,
    /// Where it stands.
    pub state: LeadState,
    /// What came of its last attempt.
    pub last: Option<AttemptOutcome>,
    /// When a waiting lead is to be called, ms since 1970: at the earliest as its delay, its window
    /// and its day allow.
    ready_ms: i64,
    /// All attempts so far, also those that no worker took.
    attempts: u32,
    not_placed: u32,
    /// Attempts that count for the cap.
    counted: u32,
    /// The day of its zone that `today` is about.
    day: i32,
    today: u32,
    /// How often each outcome has come.
    outcomes: [u8; AttemptOutcome::COUNT],
    callbacks: u8,
    zone: u16,
    queue: Queue,
}

impl Lead {
    /// Attempts that were made, without those that no worker took.
    pub fn attempts(&self) -> u32 {
        self.attempts - self.not_placed
    }

    /// When a waiting lead is to be called.
    pub fn ready_at(&self) -> Option<DateTime<Utc>> {
        match self.state {
            LeadState::Waiting => DateTime::from_timestamp_millis(self.ready_ms),
            _ => None,
        }
    }

    /// Whether it waits because it asked to be called back.
    pub fn is_callback(&self) -> bool {
        self.state == LeadState::Waiting && self.queue == Queue::Callback
    }
}

/// An attempt that has no end yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenAttempt {
    /// Which.
    pub attempt: Attempt,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// A worker has it.
    pub placed: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Begin this attempt.
    Start(Attempt),
    /// Ask again at this time, or when something happens.
    Wait(DateTime<Utc>),
    /// Ask again when something happens: the campaign is not running, or as many calls run as may.
    Idle,
    /// Nothing is left to do.
    Finished,
}

/// Why a campaign cannot begin from its first event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its first event is not its creation")]
pub struct StartError;

/// Whether enough of the last attempts were healthy.
#[derive(Debug, Clone, Default)]
struct Breaker {
    /// The last attempts, true for sick ones.
    recent: VecDeque<bool>,
    /// Nobody is called before this; then one lead is, as a test.
    open_until: Option<DateTime<Utc>>,
    pause_s: u64,
    test: Option<Attempt>,
}

impl Breaker {
    fn ended(
        &mut self,
        at: DateTime<Utc>,
        attempt: Attempt,
        is_sick: bool,
        settings: &BreakerSettings,
    ) {
        if self.open_until.is_some() {
            if self.test != Some(attempt) {
                return;
            }
            self.test = None;
            match is_sick {
                true => self.trip(at, settings),
                false => *self = Self::default(),
            }
            return;
        }
        self.recent.push_back(is_sick);
        if self.recent.len() > settings.attempts {
            self.recent.pop_front();
        }
        let sick = self.recent.iter().filter(|sick| **sick).count();
        if self.recent.len() == settings.attempts
            && sick as f64 >= settings.share * settings.attempts as f64
        {
            self.trip(at, settings);
        }
    }

    fn trip(&mut self, at: DateTime<Utc>, settings: &BreakerSettings) {
        self.recent.clear();
        self.pause_s = match self.pause_s {
            0 => settings.pause_s,
            before => (before.saturating_mul(2)).min(settings.max_pause_s),
        };
        self.open_until = Some(at + seconds(self.pause_s));
    }
}

/// Attempts that no worker took.
#[derive(Debug, Clone, Default)]
struct Hold {
    /// How many one after the other.
    count: u32,
    /// No attempt begins before this; then one does, as a test.
    until: Option<DateTime<Utc>>,
    test: Option<Attempt>,
}

impl Hold {
    fn not_placed(&mut self, at: DateTime<Utc>, attempt: Attempt) {
        // Those that began beside the first one tell nothing new.
        if self.until.is_some() && self.test != Some(attempt) {
            return;
        }
        self.test = None;
        let longer = FIRST_HOLD * 2_i32.pow(self.count.min(8));
        self.until = Some(at + longer.min(LONGEST_HOLD));
        self.count = self.count.saturating_add(1);
    }
}

/// How far a campaign is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// All leads.
    pub leads: usize,
    /// Leads to be called, without those below.
    pub waiting: usize,
    /// Leads that have asked to be called back.
    pub callbacks: usize,
    /// Leads that are being called.
    pub open: usize,
    /// See [`LeadState::Reached`].
    pub reached: usize,
    /// See [`LeadState::Exhausted`].
    pub exhausted: usize,
    /// See [`LeadState::DoNotCall`].
    pub do_not_call: usize,
    /// Attempts by what came of them.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// When the next lead is to be called, without regard to how many calls run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_at: Option<DateTime<Utc>>,
    /// Until when the circuit breaker lets nobody be called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker_until: Option<DateTime<Utc>>,
    /// Until when nobody is called because no worker takes an attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_worker_until: Option<DateTime<Utc>>,
}

/// A campaign: its list, and what has been done of it.
#[derive(Debug, Clone)]
pub struct Plan {
    settings: CampaignSettings,
    state: RunState,
    leads: Vec<Lead>,
    by_number: HashMap<DialNumber, u32>,
    zones: Vec<Tz>,
    waiting: BTreeSet<(Queue, i64, u32)>,
    open: BTreeMap<u32, OpenAttempt>,
    last_start: Option<DateTime<Utc>>,
    breaker: Breaker,
    hold: Hold,
    outcomes: BTreeMap<AttemptOutcome, u64>,
}

impl Plan {
    /// The campaign that the first event of a journal makes.
    ///
    /// # Errors
    /// When it is another event.
    pub fn new(first: &CampaignEvent) -> Result<Self, StartError> {
        let CampaignEvent::Created { settings } = first else {
            return Err(StartError);
        };
        Ok(Self {
            zones: vec![settings.timezone],
            settings: (**settings).clone(),
            state: RunState::Created,
            leads: Vec::new(),
            by_number: HashMap::new(),
            waiting: BTreeSet::new(),
            open: BTreeMap::new(),
            last_start: None,
            breaker: Breaker::default(),
            hold: Hold::default(),
            outcomes: BTreeMap::new(),
        })
    }

    /// Its settings.
    pub fn settings(&self) -> &CampaignSettings {
        &self.settings
    }

    /// What the operator wants of it.
    pub fn state(&self) -> RunState {
        self.state
    }

    /// The leads, in the order of the list.
    pub fn leads(&self) -> &[Lead] {
        &self.leads
    }

    /// The lead that has this number.
    pub fn lead_of(&self, number: DialNumber) -> Option<u32> {
        self.by_number.get(&number).copied()
    }

    /// The zone of a lead.
    pub fn zone_of(&self, lead: &Lead) -> Tz {
        self.zones[usize::from(lead.zone)]
    }

    /// The attempts that have no end yet, in the order of the list.
    pub fn open(&self) -> impl Iterator<Item = &OpenAttempt> {
        self.open.values()
    }

    /// Whether this attempt has no end yet.
    pub fn is_open(&self, attempt: Attempt) -> bool {
        self.open
            .get(&attempt.lead)
            .is_some_and(|open| open.attempt == attempt)
    }

    /// Adds what happened. An event that cannot be, such as the end of an attempt that has ended
    /// already, changes nothing. `place`: where its line lies in the journal.
    pub fn apply(&mut self, at: DateTime<Utc>, event: &CampaignEvent, place: u64) {
        match event {
            CampaignEvent::Created { .. } => {}
            CampaignEvent::Imported(lead) => self.imported(at, lead, place),
            CampaignEvent::Started if self.state == RunState::Created => {
                self.state = RunState::Running;
            }
            CampaignEvent::Paused if self.state == RunState::Running => {
                self.state = RunState::Paused;
            }
            CampaignEvent::Resumed if self.state == RunState::Paused => {
                self.state = RunState::Running;
            }
            CampaignEvent::Stopped => self.state = RunState::Stopped,
            CampaignEvent::Started | CampaignEvent::Paused | CampaignEvent::Resumed => {}
            CampaignEvent::AttemptStarted(attempt) => self.attempt_started(at, *attempt),
            CampaignEvent::AttemptPlaced(attempt) => {
                if let Some(open) = self.open.get_mut(&attempt.lead)
                    && open.attempt == *attempt
                {
                    open.placed = true;
                    self.hold = Hold::default();
                }
            }
            CampaignEvent::AttemptEnded { attempt, result } => {
                self.attempt_ended(at, *attempt, result);
            }
            CampaignEvent::CallbackSet { lead, when } => self.callback_set(at, *lead, *when),
            CampaignEvent::DoNotCall { lead } => self.do_not_call(*lead),
        }
    }

    fn imported(&mut self, at: DateTime<Utc>, imported: &ImportedLead, place: u64) {
        let Ok(index) = u32::try_from(self.leads.len()) else {
            return;
        };
        if self.by_number.contains_key(&imported.number) {
            return;
        }
        let wanted = imported.timezone.unwrap_or(self.settings.timezone);
        let known = self.zones.iter().position(|zone| *zone == wanted);
        let zone = known.unwrap_or_else(|| {
            self.zones.push(wanted);
            self.zones.len() - 1
        });
        self.by_number.insert(imported.number, index);
        self.leads.push(Lead {
            number: imported.number,
            place,
            state: LeadState::Waiting,
            last: None,
            ready_ms: 0,
            attempts: 0,
            not_placed: 0,
            counted: 0,
            day: 0,
            today: 0,
            outcomes: [0; AttemptOutcome::COUNT],
            callbacks: 0,
            // There are fewer zones than 65,536.
            zone: zone as u16,
            queue: Queue::Fresh,
        });
        self.wait(index, Queue::Fresh, at);
    }

    /// Puts a lead into a queue, to be called from `due` on as soon as its window and day allow.
    fn wait(&mut self, index: u32, queue: Queue, due: DateTime<Utc>) {
        let ready = self.allowed_from(&self.leads[index as usize], due);
        let lead = &mut self.leads[index as usize];
        lead.state = LeadState::Waiting;
        lead.queue = queue;
        lead.ready_ms = ready.timestamp_millis();
        self.waiting.insert((queue, lead.ready_ms, index));
    }

    fn take_out(&mut self, index: u32) {
        let lead = &self.leads[index as usize];
        self.waiting.remove(&(lead.queue, lead.ready_ms, index));
    }

    /// The first time from `due` on at which a lead may be called.
    fn allowed_from(&self, lead: &Lead, due: DateTime<Utc>) -> DateTime<Utc> {
        let zone = self.zone_of(lead);
        let window = &self.settings.window;
        let opening = window.opening(zone, due);
        match self.day_is_full(lead, opening) {
            true => window.opening(zone, window::next_day(zone, opening)),
            false => opening,
        }
    }

    fn day_is_full(&self, lead: &Lead, at: DateTime<Utc>) -> bool {
        lead.today >= self.settings.retry.attempts_per_day
            && lead.day == window::local_day(self.zone_of(lead), at)
    }

    fn attempt_started(&mut self, at: DateTime<Utc>, attempt: Attempt) {
        let Some(lead) = self.leads.get(attempt.lead as usize) else {
            return;
        };
        if lead.state != LeadState::Waiting || attempt.attempt != lead.attempts + 1 {
            return;
        }
        let day = window::local_day(self.zone_of(lead), at);
        self.take_out(attempt.lead);
        let lead = &mut self.leads[attempt.lead as usize];
        lead.state = LeadState::Open;
        lead.attempts += 1;
        lead.counted += 1;
        if lead.day != day {
            (lead.day, lead.today) = (day, 0);
        }
        lead.today += 1;
        self.open.insert(
            attempt.lead,
            OpenAttempt {
                attempt,
                started_at: at,
                placed: false,
            },
        );
        self.last_start = Some(at);
        if self.breaker.open_until.is_some() {
            self.breaker.test = Some(attempt);
        }
        if self.hold.until.is_some() {
            self.hold.test = Some(attempt);
        }
    }

    fn attempt_ended(&mut self, at: DateTime<Utc>, attempt: Attempt, result: &AttemptResult) {
        if !self.is_open(attempt) {
            return;
        }
        self.open.remove(&attempt.lead);
        *self.outcomes.entry(result.outcome).or_default() += 1;
        let retry = &self.settings.retry;
        let lead = &mut self.leads[attempt.lead as usize];
        lead.last = Some(result.outcome);
        let count = &mut lead.outcomes[result.outcome as usize];
        *count = count.saturating_add(1);
        let count = usize::from(*count);
        if result.outcome == AttemptOutcome::NotPlaced {
            lead.not_placed += 1;
            lead.counted = lead.counted.saturating_sub(1);
            lead.today = lead.today.saturating_sub(1);
            let queue = lead.queue;
            if self.breaker.test == Some(attempt) {
                self.breaker.test = None;
            }
            self.hold.not_placed(at, attempt);
            self.wait(attempt.lead, queue, at);
            return;
        }
        self.hold = Hold::default();
        self.breaker
            .ended(at, attempt, result.sick, &self.settings.breaker);
        if result.do_not_call {
            lead.state = LeadState::DoNotCall;
            return;
        }
        let callback = result
            .callback
            .filter(|when| *when <= at + LATEST_CALLBACK)
            .filter(|_| u32::from(lead.callbacks) < retry.callbacks);
        if let Some(when) = callback {
            lead.callbacks += 1;
            lead.counted = 0;
            lead.today = 0;
            self.wait(
                attempt.lead,
                Queue::Callback,
                when.max(at + SOONEST_CALLBACK),
            );
            return;
        }
        let delays = retry.delays(result.outcome, result.agent_outcome.as_deref());
        match delays.get(count - 1) {
            Some(delay) if lead.counted < retry.attempts => {
                let due = at + seconds(*delay);
                self.wait(attempt.lead, Queue::Retry, due);
            }
            _ if result.outcome == AttemptOutcome::Answered => lead.state = LeadState::Reached,
            _ => lead.state = LeadState::Exhausted,
        }
    }

    fn callback_set(&mut self, at: DateTime<Utc>, index: u32, when: DateTime<Utc>) {
        let Some(lead) = self.leads.get(index as usize) else {
            return;
        };
        match lead.state {
            LeadState::Open | LeadState::DoNotCall => return,
            LeadState::Waiting => self.take_out(index),
            LeadState::Reached | LeadState::Exhausted => {}
        }
        let lead = &mut self.leads[index as usize];
        lead.counted = 0;
        lead.today = 0;
        self.wait(index, Queue::Callback, when.max(at));
    }

    fn do_not_call(&mut self, index: u32) {
        let Some(lead) = self.leads.get(index as usize) else {
            return;
        };
        match lead.state {
            // Its call has begun. The list is asked again before the next.
            LeadState::Open => return,
            LeadState::Waiting => self.take_out(index),
            LeadState::Reached | LeadState::Exhausted | LeadState::DoNotCall => {}
        }
        self.leads[index as usize].state = LeadState::DoNotCall;
    }

    /// What is to be done at `now`. `slots`: how many more calls the workers have room for.
    pub fn next(&mut self, now: DateTime<Utc>, slots: u32) -> Next {
        if self.open.is_empty() && (self.waiting.is_empty() || self.state == RunState::Stopped) {
            return Next::Finished;
        }
        let is_full = self.open.len() >= self.settings.concurrency as usize || slots == 0;
        if self.state != RunState::Running || is_full || self.waiting.is_empty() {
            return Next::Idle;
        }
        if self.breaker.test.is_some() || self.hold.test.is_some() {
            return Next::Idle;
        }
        let held = [
            self.breaker.open_until,
            self.hold.until,
            self.rate_allows(now),
        ];
        if let Some(until) = held.into_iter().flatten().max()
            && until > now
        {
            return Next::Wait(until);
        }
        let mut wake: Option<DateTime<Utc>> = None;
        for queue in [Queue::Callback, Queue::Retry, Queue::Fresh] {
            match self.first_of(queue, now) {
                Some(Ok(attempt)) => return Next::Start(attempt),
                Some(Err(later)) => wake = Some(wake.map_or(later, |wake| wake.min(later))),
                None => {}
            }
        }
        wake.map_or(Next::Idle, Next::Wait)
    }

    /// The first lead of a queue if it is to be called now, or when it is.
    fn first_of(
        &mut self,
        queue: Queue,
        now: DateTime<Utc>,
    ) -> Option<Result<Attempt, DateTime<Utc>>> {
        loop {
            let from = (queue, i64::MIN, 0);
            let to = (queue, i64::MAX, u32::MAX);
            let (_, ready_ms, index) = *self.waiting.range(from..=to).next()?;
            if ready_ms > now.timestamp_millis() {
                return Some(Err(DateTime::from_timestamp_millis(ready_ms)?));
            }
            let lead = &self.leads[index as usize];
            let zone = self.zone_of(lead);
            if self.settings.window.is_open(zone, now) && !self.day_is_full(lead, now) {
                return Some(Ok(Attempt {
                    lead: index,
                    attempt: lead.attempts + 1,
                }));
            }
            // Its turn did not come while it might have been called.
            self.take_out(index);
            self.wait(index, queue, now);
        }
    }

    /// From when on the next call may begin. A clock that was set back delays nothing by more than
    /// the distance between two calls.
    fn rate_allows(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let last = self.last_start?;
        let gap = 1000.0 / self.settings.calls_per_second;
        let gap = TimeDelta::milliseconds(gap.ceil() as i64);
        match (now - last).abs() >= gap {
            true => None,
            false => Some(last + gap),
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let mut progress = Progress {
            leads: self.leads.len(),
            open: self.open.len(),
            next_at: self
                .waiting
                .iter()
                .map(|(_, ready_ms, _)| *ready_ms)
                .min()
                .and_then(DateTime::from_timestamp_millis),
            breaker_until: self.breaker.open_until,
            no_worker_until: self.hold.until,
            ..Progress::default()
        };
        for lead in &self.leads {
            let count = match lead.state {
                LeadState::Waiting if lead.queue == Queue::Callback => &mut progress.callbacks,
                LeadState::Waiting => &mut progress.waiting,
                LeadState::Open => continue,
                LeadState::Reached => &mut progress.reached,
                LeadState::Exhausted => &mut progress.exhausted,
                LeadState::DoNotCall => &mut progress.do_not_call,
            };
            *count += 1;
        }
        let outcomes = self.outcomes.iter();
        progress.outcomes = outcomes
            .map(|(outcome, count)| (outcome.name(), *count))
            .collect();
        progress
    }
}

fn seconds(seconds: u64) -> TimeDelta {
    /// Longer delays are this one.
    const LONGEST: u64 = 10 * 366 * 24 * 3600;
    TimeDelta::seconds(seconds.min(LONGEST) as i64)
}
