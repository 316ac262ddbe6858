//! Campaigns in made-up time: what is decided, and what never is.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;

use super::event::{Attempt, AttemptOutcome, AttemptResult, CampaignEvent, ImportedLead};
use super::number::DialNumber;
use super::plan::{LeadState, Next, Plan, RunState};
use super::settings::CampaignSettings;
use super::window;
use crate::phone::CountryCode;

fn at(second: i64) -> DateTime<Utc> {
    // A Monday.
    "2026-11-30T09:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::seconds(second)
}

fn number(index: u64) -> DialNumber {
    DialNumber::read(
        &format!("+1555{:07}", 1_000_000 + index),
        &CountryCode::default(),
    )
    .unwrap()
}

fn imported(index: u64, zone: Option<&str>) -> CampaignEvent {
    CampaignEvent::Imported(ImportedLead {
        number: number(index),
        lead_id: None,
        timezone: zone.map(|zone| zone.parse().unwrap()),
        data: Default::default(),
    })
}

/// A campaign with its journal.
struct Told {
    plan: Plan,
    journal: Vec<(DateTime<Utc>, CampaignEvent)>,
}

impl Told {
    fn new(more: &str, leads: u64) -> Self {
        let settings = Box::new(super::settings::tests::settings(more));
        let created = CampaignEvent::Created { settings };
        let mut told = Self {
            plan: Plan::new(&created).unwrap(),
            journal: vec![(at(0), created)],
        };
        for lead in 0..leads {
            told.add(at(0), imported(lead, None));
        }
        told.add(at(0), CampaignEvent::Started);
        told
    }

    fn add(&mut self, at: DateTime<Utc>, event: CampaignEvent) {
        self.plan.apply(at, &event, 0);
        self.journal.push((at, event));
    }

    /// The plan of a dialler that begins anew.
    fn replayed(&self) -> Plan {
        let mut plan = Plan::new(&self.journal[0].1).unwrap();
        for (at, event) in &self.journal[1..] {
            plan.apply(*at, event, 0);
        }
        plan
    }

    fn start(&mut self, now: DateTime<Utc>) -> Attempt {
        match self.plan.next(now, 100) {
            Next::Start(attempt) => {
                self.add(now, CampaignEvent::AttemptStarted(attempt));
                attempt
            }
            other => panic!("{other:?}"),
        }
    }

    fn end(&mut self, now: DateTime<Utc>, attempt: Attempt, outcome: AttemptOutcome) {
        let result = AttemptResult::only(outcome);
        self.add(now, CampaignEvent::AttemptEnded { attempt, result });
    }
}

const FAST: &str = "calls_per_second = 100\n";

#[test]
fn a_list_is_worked_through_in_its_order_and_then_finished() {
    let mut told = Told::new("calls_per_second = 100\nconcurrency = 2", 3);
    let first = told.start(at(0));
    assert_eq!((first.lead, first.attempt), (0, 1));
    assert_eq!(
        told.plan.next(at(0), 9),
        Next::Wait(at(0) + TimeDelta::milliseconds(10))
    );
    let second = told.start(at(1));
    assert_eq!(told.plan.next(at(2), 9), Next::Idle, "two run");
    told.end(at(3), first, AttemptOutcome::Answered);
    assert_eq!(told.plan.next(at(3), 0), Next::Idle, "no slot is free");
    let third = told.start(at(3));
    assert_eq!((second.lead, third.lead), (1, 2));
    told.end(at(4), second, AttemptOutcome::InvalidNumber);
    told.end(at(4), third, AttemptOutcome::Busy);
    let Next::Wait(again) = told.plan.next(at(5), 9) else {
        panic!("it is called again");
    };
    assert_eq!(again, at(4 + 300));
    let again = told.start(again);
    assert_eq!((again.lead, again.attempt), (2, 2));
    told.end(at(400), again, AttemptOutcome::Answered);
    assert_eq!(told.plan.next(at(400), 9), Next::Finished);
    let progress = told.plan.progress();
    assert_eq!((progress.reached, progress.exhausted), (2, 1));
    assert_eq!(progress.outcomes["answered"], 2);
}

#[test]
fn nothing_begins_unless_it_runs() {
    let mut told = Told::new(FAST, 2);
    let first = told.start(at(0));
    told.add(at(1), CampaignEvent::Paused);
    assert_eq!(told.plan.next(at(1), 9), Next::Idle);
    assert_eq!(told.plan.state(), RunState::Paused);
    told.add(at(2), CampaignEvent::Started);
    assert_eq!(
        told.plan.next(at(2), 9),
        Next::Idle,
        "a start resumes nothing"
    );
    told.add(at(3), CampaignEvent::Resumed);
    let second = told.start(at(3));
    assert_eq!(second.lead, 1);
    told.end(at(4), second, AttemptOutcome::Busy);
    told.add(at(5), CampaignEvent::Stopped);
    assert_eq!(told.plan.next(at(5), 9), Next::Idle, "one still talks");
    told.end(at(6), first, AttemptOutcome::Answered);
    assert_eq!(told.plan.next(at(5000), 9), Next::Finished);
    told.add(at(5001), CampaignEvent::Resumed);
    assert_eq!(
        told.plan.next(at(5002), 9),
        Next::Finished,
        "a stop is for good"
    );
}

#[test]
fn callbacks_come_before_the_list_and_count_anew() {
    let mut told = Told::new(
        "calls_per_second = 100\nretry.attempts = 1\nretry.attempts_per_day = 1",
        3,
    );
    let first = told.start(at(0));
    let result = AttemptResult {
        callback: Some(at(600)),
        ..AttemptResult::only(AttemptOutcome::Answered)
    };
    told.add(
        at(60),
        CampaignEvent::AttemptEnded {
            attempt: first,
            result: result.clone(),
        },
    );
    assert_eq!(told.start(at(61)).lead, 1, "it is not due yet");
    let again = told.start(at(600));
    assert_eq!((again.lead, again.attempt), (0, 2));
    // The time has passed already.
    told.add(
        at(700),
        CampaignEvent::AttemptEnded {
            attempt: again,
            result,
        },
    );
    let lead = &told.plan.leads()[0];
    assert_eq!((lead.ready_at(), lead.is_callback()), (Some(at(760)), true));
    // Whoever does not want to be called is not, whatever else was said.
    let third = told.start(at(800));
    assert_eq!(third.lead, 0);
    let result = AttemptResult {
        callback: Some(at(900)),
        do_not_call: true,
        ..AttemptResult::only(AttemptOutcome::Answered)
    };
    told.add(
        at(810),
        CampaignEvent::AttemptEnded {
            attempt: third,
            result,
        },
    );
    assert_eq!(told.plan.leads()[0].state, LeadState::DoNotCall);
    told.add(
        at(811),
        CampaignEvent::CallbackSet {
            lead: 0,
            when: at(812),
        },
    );
    assert_eq!(told.plan.leads()[0].state, LeadState::DoNotCall);
    told.add(at(811), CampaignEvent::DoNotCall { lead: 2 });
    told.end(
        at(812),
        Attempt {
            lead: 1,
            attempt: 1,
        },
        AttemptOutcome::Answered,
    );
    assert_eq!(told.plan.next(at(813), 9), Next::Finished);
    told.add(
        at(814),
        CampaignEvent::CallbackSet {
            lead: 1,
            when: at(900),
        },
    );
    assert_eq!(told.start(at(900)).lead, 1);
}

#[test]
fn the_agents_outcome_decides_about_an_answered_call() {
    let mut told = Told::new(
        "calls_per_second = 100\nretry.agent_outcome.voicemail = [60]",
        2,
    );
    for (second, agent_outcome, state) in [
        (1, "voicemail", LeadState::Waiting),
        (2, "sold", LeadState::Reached),
    ] {
        let attempt = told.start(at(second));
        let result = AttemptResult {
            agent_outcome: Some(agent_outcome.into()),
            ..AttemptResult::only(AttemptOutcome::Answered)
        };
        told.add(at(1), CampaignEvent::AttemptEnded { attempt, result });
        assert_eq!(
            told.plan.leads()[attempt.lead as usize].state,
            state,
            "{agent_outcome}"
        );
    }
}

#[test]
fn a_number_is_in_a_list_once() {
    let mut told = Told::new(FAST, 2);
    told.add(at(0), imported(1, Some("Asia/Kolkata")));
    assert_eq!(told.plan.leads().len(), 2);
    assert_eq!(told.plan.lead_of(number(1)), Some(1));
}

#[test]
fn leads_are_called_in_their_own_hours() {
    let mut told = Told::new(FAST, 0);
    let settings = CampaignSettings::read(
        "name = \"p\"\ntimezone = \"UTC\"\nwindow.preset = \"office-hours\"\ncalls_per_second = 100",
    )
    .unwrap();
    let created = CampaignEvent::Created {
        settings: Box::new(settings),
    };
    told.plan = Plan::new(&created).unwrap();
    // It is 9 h in UTC, 14:30 in India, 4 h in New York.
    for (index, zone) in [
        (0, Some("America/New_York")),
        (1, Some("Asia/Kolkata")),
        (2, None),
    ] {
        told.add(at(0), imported(index, zone));
    }
    told.add(at(0), CampaignEvent::Started);
    assert_eq!(told.start(at(0)).lead, 1);
    assert_eq!(told.start(at(1)).lead, 2);
    assert_eq!(told.plan.next(at(2), 9), Next::Wait(at(5 * 3600)));
    // Nobody came to it until the window had closed: the next morning.
    let evening = at(14 * 3600);
    assert_eq!(told.plan.next(evening, 9), Next::Wait(at((24 + 5) * 3600)));
}

#[test]
fn a_sick_trunk_is_left_alone_and_tried_with_one_call() {
    let mut told = Told::new(
        "calls_per_second = 100\nbreaker.attempts = 4\nbreaker.pause_s = 60\nbreaker.max_pause_s = 100",
        20,
    );
    for second in 0..4 {
        let attempt = told.start(at(second));
        let outcome = match second % 2 {
            0 => AttemptOutcome::Answered,
            _ => AttemptOutcome::TrunkFailed,
        };
        told.end(at(second), attempt, outcome);
    }
    assert_eq!(told.plan.next(at(4), 9), Next::Wait(at(3 + 60)));
    let test = told.start(at(63));
    assert_eq!(
        told.plan.next(at(64), 9),
        Next::Idle,
        "one call is the test"
    );
    told.end(at(65), test, AttemptOutcome::TrunkFailed);
    assert_eq!(
        told.plan.next(at(66), 9),
        Next::Wait(at(65 + 100)),
        "twice, but not above the longest"
    );
    let test = told.start(at(165));
    told.end(at(166), test, AttemptOutcome::NoAnswer);
    told.start(at(167));
    told.start(at(168));
}

#[test]
fn without_workers_the_list_waits_and_nobody_loses_an_attempt() {
    let mut told = Told::new("calls_per_second = 100\nretry.attempts = 1", 1);
    let mut now = at(0);
    for round in 1..300_u32 {
        let attempt = told.start(now);
        assert_eq!(attempt.attempt, round);
        told.end(now, attempt, AttemptOutcome::NotPlaced);
        let Next::Wait(until) = told.plan.next(now, 9) else {
            panic!("it is tried again");
        };
        assert!(until > now && until <= now + TimeDelta::seconds(60));
        now = until;
    }
    let attempt = told.start(now);
    told.add(now, CampaignEvent::AttemptPlaced(attempt));
    assert_eq!(told.plan.leads()[0].attempts(), 1);
    told.end(now, attempt, AttemptOutcome::Answered);
    assert_eq!(told.plan.next(now, 9), Next::Finished);
}

#[test]
fn attempts_that_nobody_took_at_the_same_time_count_once() {
    let mut told = Told::new(FAST, 5);
    let begun: Vec<_> = (0..5).map(|second| told.start(at(second))).collect();
    for attempt in begun {
        told.end(at(20), attempt, AttemptOutcome::NotPlaced);
    }
    assert_eq!(told.plan.next(at(20), 9), Next::Wait(at(22)));
    let test = told.start(at(22));
    assert_eq!(told.plan.next(at(23), 9), Next::Idle, "one is the test");
    told.end(at(42), test, AttemptOutcome::NotPlaced);
    assert_eq!(told.plan.next(at(42), 9), Next::Wait(at(46)));
}

#[test]
fn a_clock_that_was_set_back_holds_nothing_up() {
    let mut told = Told::new("calls_per_second = 0.5", 3);
    told.start(at(100_000));
    told.start(at(10));
    assert_eq!(told.plan.next(at(11), 9), Next::Wait(at(12)));
}

#[test]
fn a_hundred_thousand_leads_are_planned_at_once() {
    let mut told = Told::new("calls_per_second = 50\nconcurrency = 2000", 100_000);
    assert!(
        size_of::<super::plan::Lead>() <= 88,
        "{}",
        size_of::<super::plan::Lead>()
    );
    let mut now = at(0);
    for _ in 0..1000 {
        told.start(now);
        now += TimeDelta::milliseconds(20);
    }
    assert_eq!(told.plan.open().count(), 1000);
}

/// One thing that a made-up world does.
#[derive(Debug, Clone)]
enum Doing {
    Pass(u32),
    End(usize, AttemptOutcome, Option<i64>, bool),
    Placed(usize),
    Restart,
    Pause,
    Resume,
    Import(u64),
    Callback(u32, i64),
}

fn doing() -> impl Strategy<Value = Doing> {
    use AttemptOutcome::*;
    let outcome = prop::sample::select(vec![
        Answered,
        Busy,
        Declined,
        NoAnswer,
        InvalidNumber,
        TrunkFailed,
        Failed,
        Lost,
        NotPlaced,
    ]);
    prop_oneof![
        6 => (1_u32..40_000).prop_map(Doing::Pass),
        6 => (1_u32..3).prop_map(Doing::Pass),
        8 => (0_usize..5, outcome, prop::option::weighted(0.1, -5000_i64..200_000), prop::bool::weighted(0.05))
            .prop_map(|(which, outcome, callback, never)| Doing::End(which, outcome, callback, never)),
        2 => (0_usize..5).prop_map(Doing::Placed),
        1 => Just(Doing::Restart),
        1 => Just(Doing::Pause),
        2 => Just(Doing::Resume),
        1 => (0_u64..12).prop_map(Doing::Import),
        1 => (0_u32..12, 0_i64..100_000).prop_map(|(lead, when)| Doing::Callback(lead, when)),
    ]
}

/// The rules, checked from outside with nothing but the journal.
#[derive(Default)]
struct Rules {
    open: BTreeSet<Attempt>,
    seen: BTreeSet<Attempt>,
    last_start: Option<DateTime<Utc>>,
    /// Since its last callback: attempts, and attempts by day.
    counted: BTreeMap<u32, (u32, BTreeMap<i32, u32>)>,
}

impl Rules {
    fn check(
        &mut self,
        told: &Told,
        now: DateTime<Utc>,
        attempt: Attempt,
    ) -> Result<(), TestCaseError> {
        let settings = told.plan.settings();
        prop_assert!(self.seen.insert(attempt), "{attempt:?} is begun twice");
        prop_assert!(
            self.open.iter().all(|open| open.lead != attempt.lead),
            "{attempt:?} while the lead is called"
        );
        self.open.insert(attempt);
        prop_assert!(self.open.len() <= settings.concurrency as usize);
        if let Some(last) = self.last_start {
            prop_assert!(
                (now - last).num_milliseconds() as f64 >= 1000.0 / settings.calls_per_second
            );
        }
        self.last_start = Some(now);
        let lead = &told.plan.leads()[attempt.lead as usize];
        let zone = told.plan.zone_of(lead);
        prop_assert!(settings.window.is_open(zone, now), "{now} in {zone}");
        let (all, days) = self.counted.entry(attempt.lead).or_default();
        *all += 1;
        prop_assert!(*all <= settings.retry.attempts);
        let today = days.entry(window::local_day(zone, now)).or_default();
        *today += 1;
        prop_assert!(*today <= settings.retry.attempts_per_day);
        Ok(())
    }

    fn ended(
        &mut self,
        told: &Told,
        started: DateTime<Utc>,
        attempt: Attempt,
        outcome: AttemptOutcome,
    ) {
        self.open.remove(&attempt);
        if outcome == AttemptOutcome::NotPlaced {
            let zone = told.plan.zone_of(&told.plan.leads()[attempt.lead as usize]);
            let (all, days) = self.counted.entry(attempt.lead).or_default();
            *all -= 1;
            *days.entry(window::local_day(zone, started)).or_default() -= 1;
        }
        if told.plan.leads()[attempt.lead as usize].is_callback() {
            self.counted.remove(&attempt.lead);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever happens when: no attempt is begun twice, none is forgotten, and concurrency, rate,
    /// hours and caps are kept; a dialler that begins anew goes on.
    #[test]
    fn the_rules_are_kept_whatever_happens(doings in prop::collection::vec(doing(), 1..120)) {
        let mut told = Told::new("", 0);
        let settings = CampaignSettings::read(
            "name = \"p\"\ntimezone = \"America/New_York\"\nconcurrency = 3\ncalls_per_second = 0.4\n\
             retry.attempts = 3\nretry.callbacks = 2\nretry.lost = [100, 100000]\nretry.answered = [50]\n\
             breaker.attempts = 3\nbreaker.share = 0.7\n\
             window.monday = [\"08:00-12:00\", \"13:00-20:00\"]\nwindow.tuesday = [\"00:00-24:00\"]\nwindow.friday = [\"10:00-11:00\"]",
        ).unwrap();
        let created = CampaignEvent::Created { settings: Box::new(settings) };
        told.plan = Plan::new(&created).unwrap();
        told.journal = vec![(at(0), created)];
        for lead in 0..8 {
            told.add(at(0), imported(lead, (lead % 3 == 0).then_some("Asia/Kolkata")));
        }
        told.add(at(0), CampaignEvent::Started);
        let mut rules = Rules::default();
        let mut now = at(0);
        let quiet = std::iter::repeat_n(Doing::Resume, 1)
            .chain((0..4000).flat_map(|_| [Doing::Pass(36_000), Doing::End(0, AttemptOutcome::Busy, None, false)]));
        for (step, doing) in doings.iter().cloned().chain(quiet).enumerate() {
            let open: Vec<_> = told.plan.open().copied().collect();
            match doing {
                Doing::Pass(tenths) => now += TimeDelta::milliseconds(i64::from(tenths) * 100),
                Doing::End(which, outcome, callback, never) => {
                    if let Some(open) = open.get(which) {
                        let result = AttemptResult {
                            callback: callback.map(|after| now + TimeDelta::seconds(after)),
                            do_not_call: never,
                            ..AttemptResult::only(outcome)
                        };
                        let attempt = open.attempt;
                        let ended = CampaignEvent::AttemptEnded { attempt, result };
                        told.add(now, ended.clone());
                        // Told twice, it has ended once.
                        told.add(now, ended);
                        rules.ended(&told, open.started_at, attempt, outcome);
                    }
                }
                Doing::Placed(which) => if let Some(open) = open.get(which) {
                    told.add(now, CampaignEvent::AttemptPlaced(open.attempt));
                },
                Doing::Restart => told.plan = told.replayed(),
                Doing::Pause => told.add(now, CampaignEvent::Paused),
                Doing::Resume => told.add(now, CampaignEvent::Resumed),
                Doing::Import(index) => told.add(now, imported(index, None)),
                Doing::Callback(lead, after) => {
                    told.add(now, CampaignEvent::CallbackSet { lead, when: now + TimeDelta::seconds(after) });
                    if told.plan.leads().get(lead as usize).is_some_and(|lead| lead.is_callback()) {
                        rules.counted.remove(&lead);
                    }
                }
            }
            let running = told.plan.state() == RunState::Running;
            while let Next::Start(attempt) = told.plan.next(now, 100) {
                prop_assert!(running, "it does not run");
                let anew = told.replayed().next(now, 100);
                prop_assert!(matches!(anew, Next::Start(_)), "{anew:?}");
                told.add(now, CampaignEvent::AttemptStarted(attempt));
                rules.check(&told, now, attempt)?;
            }
            if step >= doings.len() && told.plan.next(now, 100) == Next::Finished {
                break;
            }
        }
        // In the end nobody is left, and everybody was called or must not be.
        prop_assert_eq!(told.plan.next(now, 100), Next::Finished);
        for lead in told.plan.leads() {
            prop_assert!(!matches!(lead.state, LeadState::Waiting | LeadState::Open));
            prop_assert!(lead.attempts() > 0 || lead.state == LeadState::DoNotCall);
        }
    }
}
