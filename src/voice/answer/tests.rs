//! The detector in made-up time: who answers, when that is known, and when a message begins.

use proptest::prelude::*;

use super::*;

/// What happens when, in ms.
#[derive(Debug, Clone)]
enum Heard {
    /// Speech from the first time to the second.
    Speech(u64, u64),
    /// Final words at this time.
    Words(u64, &'static str),
    /// Interim words at this time.
    Interim(u64, &'static str),
    /// A tone of this frequency from the second time to the third.
    Tone(f32, u64, u64),
    Key(u64),
}
use Heard::{Interim, Key, Speech, Words};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn plan(voicemail: MachinePolicy) -> AnswerPlan {
    AnswerPlan {
        voicemail,
        ivr: MachinePolicy::HangUp,
        message: "Please call us back.".to_owned(),
        after_beep: ms(400),
        silence_before_message: ms(3_000),
    }
}

/// The signs in order, as detector, recogniser and [`ToneListener`] give them.
fn signs(heard: &[Heard]) -> Vec<(u64, Sign<'static>)> {
    let mut signs = Vec::new();
    for it in heard {
        match *it {
            Speech(from, to) => {
                signs.push((from + 50, Sign::SpeechStarted { onset: ms(from) }));
                signs.push((to + 250, Sign::SpeechEnded { end: ms(to) }));
            }
            Words(at, text) => signs.push((
                at,
                Sign::Words {
                    text,
                    is_final: true,
                },
            )),
            Interim(at, text) => signs.push((
                at,
                Sign::Words {
                    text,
                    is_final: false,
                },
            )),
            Heard::Tone(frequency_hz, from, to) => {
                let tone = |lasted, is_over| {
                    Sign::Tone(Tone {
                        frequency_hz,
                        lasted: ms(lasted),
                        is_over,
                    })
                };
                signs.extend(
                    (from + 120..to)
                        .step_by(100)
                        .map(|at| (at, tone(at - from, false))),
                );
                signs.push((to + 40, tone(to - from, true)));
            }
            Key(at) => signs.push((at, Sign::Key)),
        }
    }
    signs.sort_by_key(|(at, _)| *at);
    signs
}

/// Lets it happen, with a message wanted where a voicemail answers, and gives what is found when.
fn run(heard: &[Heard], until: u64) -> Vec<(u64, Finding)> {
    run_with(heard, until, &plan(MachinePolicy::LeaveMessage))
}

fn run_with(heard: &[Heard], until: u64, plan: &AnswerPlan) -> Vec<(u64, Finding)> {
    let mut detector = AnswerDetector::new(plan);
    detector.note(Time::ZERO, Sign::Answered);
    let mut signs = signs(heard).into_iter().peekable();
    let (mut now, mut found) = (Time::ZERO, Vec::new());
    loop {
        while let Some(finding) = detector.poll(now) {
            found.push((now.as_millis() as u64, finding));
            if let Finding::Verdict(verdict) = finding
                && plan.about(verdict.answered_by) == MachinePolicy::LeaveMessage
            {
                detector.wait_for_message(now);
            }
        }
        let alarm = detector.deadlines().filter(|at| *at > now).min();
        let sign_at = signs.peek().map(|(at, _)| ms(*at).max(now));
        let Some(next) = alarm
            .into_iter()
            .chain(sign_at)
            .min()
            .filter(|at| *at <= ms(until))
        else {
            return found;
        };
        now = next;
        while let Some((_, sign)) = signs.next_if(|(at, _)| ms(*at) <= now) {
            detector.note(now, sign);
        }
    }
}

/// The first verdict, and when.
fn first(heard: &[Heard]) -> (AnsweredBy, Reason, u64) {
    let found = run(heard, 30_000);
    match found.first() {
        Some((at, Finding::Verdict(it))) => (it.answered_by, it.reason, *at),
        other => panic!("{heard:?}: {other:?}"),
    }
}

#[test]
fn it_is_known_who_answers_and_when() {
    use AnsweredBy::*;
    let hello = Speech(800, 1_200);
    for (heard, who, reason, at) in [
        // A person, with and without words, as early as the rules allow.
        (vec![hello.clone()], Human, Reason::ShortGreeting, 1_700),
        (
            vec![hello.clone(), Words(1_300, "Hello?")],
            Human,
            Reason::ShortGreeting,
            1_500,
        ),
        (
            vec![Speech(500, 2_900)],
            Human,
            Reason::ShortGreeting,
            3_400,
        ),
        (
            vec![Speech(500, 900), Speech(1_300, 1_600)],
            Human,
            Reason::ShortGreeting,
            2_100,
        ),
        (
            vec![
                Speech(500, 2_300),
                Words(2_600, "She is not available at the moment."),
            ],
            Human,
            Reason::Words,
            2_800,
        ),
        (
            vec![
                Speech(500, 2_700),
                Words(3_100, "The GM is not available at the moment."),
            ],
            Human,
            Reason::ShortGreeting,
            3_200,
        ),
        (
            vec![
                Speech(400, 5_000),
                Words(
                    5_300,
                    "Good morning, Sunrise Dental, this is Priya speaking, how can I help you today?",
                ),
            ],
            Human,
            Reason::Words,
            5_500,
        ),
        (
            vec![Speech(400, 3_400), Words(3_800, "Sunrise Dental, Priya")],
            Human,
            Reason::LongGreeting,
            4_900,
        ),
        (vec![Key(700)], Human, Reason::Key, 700),
        // Machines.
        (
            vec![
                Speech(300, 9_000),
                Interim(2_000, "hi you've reached bob i can't come to the phone"),
            ],
            Voicemail,
            Reason::Words,
            2_000,
        ),
        (
            vec![Speech(300, 20_000)],
            Voicemail,
            Reason::LongSpeech,
            7_800,
        ),
        (
            vec![
                Speech(300, 5_500),
                Words(
                    5_900,
                    "Hi everyone this is the family of the Smiths in Springfield thanks so much",
                ),
            ],
            Voicemail,
            Reason::LongGreeting,
            7_000,
        ),
        (
            vec![Speech(300, 5_500)],
            Voicemail,
            Reason::LongGreeting,
            8_500,
        ),
        (
            vec![Speech(300, 2_600), Heard::Tone(1_000.0, 2_750, 3_000)],
            Voicemail,
            Reason::Beep,
            3_040,
        ),
        (
            vec![
                Speech(300, 3_600),
                Words(3_900, "Thank you for calling. For sales, press one."),
            ],
            Ivr,
            Reason::Words,
            3_900,
        ),
        (
            vec![
                Speech(300, 3_600),
                Words(3_900, "The number you have dialed is not in service."),
            ],
            Unavailable,
            Reason::Words,
            5_100,
        ),
        (
            vec![
                Speech(300, 3_600),
                Words(3_900, "The mailbox is full and cannot accept messages."),
            ],
            MailboxFull,
            Reason::Words,
            3_900,
        ),
        (
            vec![
                Heard::Tone(950.0, 300, 630),
                Heard::Tone(1_400.0, 640, 970),
                Heard::Tone(1_800.0, 980, 1_310),
            ],
            Unavailable,
            Reason::InformationTones,
            1_350,
        ),
        // Faxes.
        (
            vec![Heard::Tone(2_100.0, 500, 3_500)],
            Fax,
            Reason::FaxTone,
            1_520,
        ),
        (
            vec![Heard::Tone(1_100.0, 500, 1_000)],
            Fax,
            Reason::FaxTone,
            1_040,
        ),
        // Nobody, and a click.
        (vec![], NoSpeech, Reason::Silence, 5_000),
        (vec![Speech(400, 460)], NoSpeech, Reason::Silence, 5_000),
    ] {
        assert_eq!(first(&heard), (who, reason, at), "{heard:?}");
    }
}

#[test]
fn who_says_hello_waits_no_longer_than_700_ms() {
    for length in (120..=2_500).step_by(70) {
        let heard = [Speech(1_000, 1_000 + length)];
        let (who, _, at) = first(&heard);
        assert_eq!(who, AnsweredBy::Human);
        assert!(at - (1_000 + length) <= 700, "{length} ms of speech: {at}");
    }
}

#[test]
fn a_machine_that_began_like_a_person_is_seen_through() {
    let heard = [
        Speech(300, 900),
        Speech(1_700, 8_000),
        Interim(5_000, "please leave your message after the tone"),
    ];
    let verdicts: Vec<(u64, AnsweredBy)> = run(&heard, 9_000)
        .into_iter()
        .filter_map(|(at, finding)| match finding {
            Finding::Verdict(it) => Some((at, it.answered_by)),
            _ => None,
        })
        .collect();
    assert_eq!(
        verdicts,
        [(1_400, AnsweredBy::Human), (5_000, AnsweredBy::Voicemail)]
    );
    // But not for ever, and not by what people may say as well.
    let later = [
        Speech(300, 900),
        Words(17_000, "leave your message after the tone"),
    ];
    assert_eq!(run(&later, 30_000).len(), 1);
    let weak = [
        Speech(300, 900),
        Words(4_000, "you have reached my office"),
        Words(6_000, "the number you have dialed"),
    ];
    assert_eq!(run(&weak, 30_000).len(), 1);
}

/// When the message begins.
fn message_at(heard: &[Heard]) -> Option<u64> {
    let mut found = run(heard, 120_000).into_iter();
    found.find_map(|(at, finding)| (finding == Finding::MessageTime).then_some(at))
}

#[test]
fn a_message_begins_after_the_beep_or_after_silence_and_once() {
    let greeting = "I can't come to the phone, leave a message after the beep";
    let opening = |end| vec![Speech(300, end), Interim(2_000, greeting)];
    let with = |more: &[Heard]| [opening(6_000), more.to_vec()].concat();
    for (heard, expected) in [
        (with(&[Heard::Tone(1_000.0, 6_500, 6_900)]), Some(7_340)),
        (with(&[Heard::Tone(440.0, 8_000, 9_000)]), Some(9_440)),
        // Two beeps: after the second one.
        (
            with(&[
                Heard::Tone(800.0, 6_500, 6_700),
                Heard::Tone(800.0, 6_900, 7_100),
            ]),
            Some(7_540),
        ),
        // A chime before more words is not the beep.
        (
            with(&[
                Heard::Tone(800.0, 6_300, 6_500),
                Speech(6_700, 9_000),
                Heard::Tone(1_400.0, 9_500, 9_800),
            ]),
            Some(10_240),
        ),
        // Without a beep, after silence.
        (opening(6_000), Some(9_000)),
        // The line's tone when the other side has hung up is no beep.
        (with(&[Heard::Tone(425.0, 6_400, 12_000)]), Some(9_420)),
        // Nobody stops talking.
        (opening(100_000), None),
    ] {
        assert_eq!(message_at(&heard), expected, "{heard:?}");
        let times = run(&heard, 120_000);
        let messages = times.iter().filter(|(_, it)| *it == Finding::MessageTime);
        assert!(messages.count() <= 1);
    }
    let endless = run(&opening(100_000), 120_000);
    assert_eq!(endless.last(), Some(&(62_000, Finding::NoMessageTime)));
}

#[test]
fn a_full_mailbox_is_noticed_while_the_beep_is_waited_for() {
    let heard = [
        Speech(300, 9_000),
        Interim(
            2_000,
            "you are forwarded to an automated voice messaging system",
        ),
        Interim(6_000, "you are forwarded to a mailbox that is full"),
    ];
    let found = run(&heard, 7_000);
    let Some((6_000, Finding::Verdict(verdict))) = found.last() else {
        panic!("{found:?}");
    };
    assert_eq!(verdict.answered_by, AnsweredBy::MailboxFull);
}

fn any_heard() -> impl Strategy<Value = Heard> {
    let at = 0_u64..25_000;
    let texts = prop::sample::select(vec![
        "hello",
        "leave a message after the tone",
        "press one",
        "the number you have dialed",
        "who is this",
        "",
        "और",
    ]);
    prop_oneof![
        (at.clone(), 20_u64..9_000).prop_map(|(from, length)| Speech(from, from + length)),
        (at.clone(), texts.clone()).prop_map(|(at, text)| Words(at, text)),
        (at.clone(), texts).prop_map(|(at, text)| Interim(at, text)),
        (350.0_f32..2_500.0, at.clone(), 120_u64..4_000)
            .prop_map(|(hz, from, length)| Heard::Tone(hz, from, from + length)),
        at.prop_map(Key),
    ]
}

proptest! {
    /// Whatever is heard: a verdict within the limit, at most one message, and an end.
    #[test]
    fn it_is_always_decided(heard in prop::collection::vec(any_heard(), 0..12)) {
        let found = run(&heard, 200_000);
        let Some((at, Finding::Verdict(_))) = found.first() else {
            return Err(TestCaseError::fail(format!("no verdict first: {found:?}")));
        };
        prop_assert!(*at <= 20_000);
        let ends = found.iter().filter(|(_, it)| !matches!(it, Finding::Verdict(_)));
        prop_assert!(ends.count() <= 1, "{found:?}");
        prop_assert!(found.len() <= 4, "{found:?}");
    }
}
