//! The machine in made-up time: what a caller would notice, and what must hold in any order of
//! events.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::tools::CallRequest;
use crate::voice::VoiceConfig;
use crate::voice::answer::MachinePolicy;

/// A machine, its clock and everything it has asked for.
struct Table {
    machine: TurnMachine,
    now: Time,
    log: Vec<(Time, Output)>,
}

impl Table {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut VoiceConfig)) -> Self {
        let mut config = VoiceConfig::default();
        change(&mut config);
        let machine = TurnMachine::new(config.turn, config.lines, Duration::from_secs(10));
        let mut table = Self {
            machine,
            now: Time::ZERO,
            log: Vec::new(),
        };
        table.input(Input::Started { greeting: None });
        table
    }

    fn input(&mut self, input: Input) {
        let outputs = self.machine.handle(self.now, input);
        self.log
            .extend(outputs.into_iter().map(|output| (self.now, output)));
    }

    /// Lets time pass up to `ms` after the start; every deadline on the case is kept, and the
    /// caller's line stays alive.
    fn until(&mut self, ms: u64) {
        let end = Duration::from_millis(ms);
        assert!(end >= self.now, "the test goes back in time");
        while let Some(deadline) = self
            .machine
            .next_deadline()
            .filter(|deadline| *deadline <= end)
        {
            self.now = deadline;
            self.input(Input::CallerAudio { loud: false });
        }
        self.now = end;
        self.input(Input::CallerAudio { loud: false });
    }

    /// Speech from `from` to `to`, as the detector reports it.
    fn speak(&mut self, from: u64, to: u64) {
        self.until(from + 50);
        self.input(Input::SpeechStarted {
            onset: Duration::from_millis(from),
        });
        self.until(to + 100);
        self.input(Input::SpeechPaused);
        self.until(to + 250);
        self.input(Input::SpeechEnded {
            end: Duration::from_millis(to),
        });
    }

    fn last_segment(&self) -> SegmentId {
        let mut asked = self
            .log
            .iter()
            .rev()
            .filter_map(|(_, output)| match output {
                Output::Transcribe { segment } => Some(*segment),
                _ => None,
            });
        asked.next().expect("no segment was sent to recognition")
    }

    fn heard(&mut self, text: &str) {
        let segment = self.last_segment();
        self.input(Input::Transcript {
            segment,
            text: text.to_owned(),
            confidence: None,
            is_final: true,
        });
    }

    fn reply(&self) -> ReplyId {
        self.machine.active_reply().expect("there is no reply")
    }

    /// The reply's first sound comes, and it is heard at once.
    fn plays(&mut self) -> ReplyId {
        let reply = self.reply();
        self.input(Input::AudioReady { reply });
        assert!(
            self.has(&|o| matches!(o, Output::Play { reply: r, .. } if *r == reply)),
            "{:#?}",
            self.log
        );
        reply
    }

    /// Sound goes on being taken until then.
    fn playing_until(&mut self, reply: ReplyId, ms: u64) {
        while self.now + Duration::from_millis(500) < Duration::from_millis(ms) {
            let next = self.now.as_millis() as u64 + 500;
            self.until(next);
            self.input(Input::Progress { reply });
        }
        self.until(ms);
        self.input(Input::Progress { reply });
    }

    fn has(&self, wanted: &dyn Fn(&Output) -> bool) -> bool {
        self.log.iter().any(|(_, output)| wanted(output))
    }

    fn at(&self, wanted: &dyn Fn(&Output) -> bool) -> Option<u64> {
        self.log
            .iter()
            .find(|(_, output)| wanted(output))
            .map(|(at, _)| at.as_millis() as u64)
    }

    fn prompts(&self) -> Vec<String> {
        let prompts = self.log.iter().filter_map(|(_, output)| match output {
            Output::StartReply {
                prompt: Prompt::Answer { to },
                ..
            } => Some(format!("answer: {to}")),
            Output::StartReply {
                prompt: Prompt::Say { text },
                ..
            } => Some(format!("say: {text}")),
            _ => None,
        });
        prompts.collect()
    }

    fn committed(&self) -> Vec<String> {
        let items = self.log.iter().filter_map(|(_, output)| match output {
            Output::CommitUser(turn) => Some(turn.text.clone()),
            _ => None,
        });
        items.collect()
    }

    fn ended(&self) -> Option<VoiceEnd> {
        self.log.iter().find_map(|(_, output)| match output {
            Output::End(end) => Some(end.clone()),
            _ => None,
        })
    }
}

fn is_play(output: &Output) -> bool {
    matches!(output, Output::Play { .. })
}

fn is_cancel(output: &Output) -> bool {
    matches!(output, Output::Cancel { .. })
}

#[test]
fn recognition_and_the_model_start_before_the_turn_is_over() {
    let mut table = Table::new();
    table.speak(1_000, 3_000);
    assert_eq!(
        table.at(&|o| matches!(o, Output::Transcribe { .. })),
        Some(3_100)
    );
    table.heard("the opening hours");
    assert_eq!(
        table.at(&|o| matches!(o, Output::StartReply { .. })),
        Some(3_250)
    );
    // The answer is there early; the caller may still go on, so that it waits for the end of the
    // turn.
    let reply = table.reply();
    table.until(3_400);
    table.input(Input::AudioReady { reply });
    table.until(5_000);
    assert_eq!(table.at(&is_play), Some(3_500));
    assert_eq!(table.committed(), ["the opening hours"]);
}

#[test]
fn a_whole_sentence_is_answered_sooner_and_half_of_one_later() {
    for (text, expected) in [
        ("Yes, that is right.", 3_300),
        ("my number is", 6_000),
        ("the blue one.", 3_500),
        ("My order number is 812.", 4_200),
        // Whisper's full stop behind a fragment.
        ("Please enter your password, followed.", 6_000),
    ] {
        let mut table = Table::new();
        table.speak(1_000, 3_000);
        table.heard(text);
        let reply = table.reply();
        table.input(Input::AudioReady { reply });
        table.until(7_000);
        assert_eq!(table.at(&is_play), Some(expected), "{text}");
    }
}

#[test]
fn caller_goes_on_before_the_answer_and_both_halves_are_one_turn() {
    let mut table = Table::new();
    table.speak(1_000, 3_000);
    table.heard("I would like");
    table.speak(3_300, 4_500);
    table.heard("a large pizza");
    table.plays_when_over();
    assert_eq!(
        table.prompts(),
        ["answer: I would like", "answer: I would like a large pizza"]
    );
    assert_eq!(table.committed(), ["I would like a large pizza"]);
}

#[test]
fn a_cough_before_the_answer_does_not_lose_it() {
    let mut table = Table::new();
    table.speak(1_000, 3_000);
    table.heard("what does it cost");
    table.speak(3_300, 3_400);
    table.heard("");
    table.plays_when_over();
    assert_eq!(table.prompts(), ["answer: what does it cost"]);
    assert!(!table.has(&is_cancel));
}

#[test]
fn caller_interrupts_and_agent_stops() {
    let mut table = Table::new();
    let reply = table.answer_plays("tell me everything");
    table.playing_until(reply, 6_000);
    table.until(6_050);
    table.input(Input::SpeechStarted {
        onset: Duration::from_millis(6_000),
    });
    table.until(8_000);
    assert_eq!(
        table.at(&|o| matches!(o, Output::Pause { .. })),
        Some(6_500)
    );
    table.input(Input::SpeechEnded {
        end: Duration::from_millis(7_750),
    });
    assert!(!table.has(&is_cancel), "a cough may be all that it was");
    table.heard("wait, I have another question");
    assert!(table.has(&|o| *o == Output::Cancel { reply }));
    table.plays_when_over();
    assert_eq!(
        table.prompts()[1..],
        ["answer: wait, I have another question"]
    );
}

#[test]
fn one_short_word_stops_the_agent_as_soon_as_it_is_understood() {
    let mut table = Table::new();
    let reply = table.answer_plays("tell me everything");
    table.playing_until(reply, 6_000);
    table.speak(6_000, 6_300);
    assert!(!table.has(&|o| matches!(o, Output::Pause { .. })));
    table.heard("stop");
    assert!(table.has(&|o| *o == Output::Cancel { reply }));
}

#[test]
fn a_cough_pauses_the_agent_and_it_goes_on() {
    let mut table = Table::new();
    let reply = table.answer_plays("tell me everything");
    table.playing_until(reply, 6_000);
    table.speak(6_000, 6_700);
    table.until(7_100);
    table.heard("");
    assert_eq!(table.at(&|o| *o == Output::Resume { reply }), Some(7_100));
    assert!(!table.has(&is_cancel));
    assert_eq!(table.committed(), ["tell me everything"]);
}

#[test]
fn a_recogniser_that_takes_too_long_does_not_keep_the_agent_silent() {
    let mut table = Table::new();
    let reply = table.answer_plays("tell me everything");
    table.playing_until(reply, 6_000);
    table.speak(6_000, 6_700);
    table.until(9_000);
    assert_eq!(table.at(&|o| *o == Output::Resume { reply }), Some(8_700));
    // It was an interruption after all.
    table.heard("hold on please");
    assert!(table.has(&is_cancel));
}

#[test]
fn agreement_does_not_stop_the_agent_but_answers_its_question() {
    let mut table = Table::new();
    let reply = table.answer_plays("tell me everything");
    table.playing_until(reply, 6_000);
    table.speak(6_000, 6_200);
    table.heard("uh-huh");
    table.playing_until(reply, 9_000);
    table.speak(9_000, 9_300);
    table.heard("Yeah");
    table.input(Input::ReplyFinished { reply });
    assert!(!table.has(&is_cancel));
    assert_eq!(
        table.prompts(),
        ["answer: tell me everything", "answer: Yeah"]
    );
    assert_eq!(table.committed(), ["tell me everything", "uh-huh"]);
}

#[test]
fn what_is_said_over_an_uninterruptible_line_is_answered_after_it() {
    let mut table = Table::new();
    table.input(Input::Say {
        text: "This call is recorded.".to_owned(),
        interruptible: false,
    });
    let reply = table.plays();
    table.speak(500, 1_500);
    table.heard("I have a question");
    assert!(!table.has(&is_cancel) && !table.has(&|o| matches!(o, Output::Pause { .. })));
    table.input(Input::ReplyFinished { reply });
    assert_eq!(table.prompts()[1..], ["answer: I have a question"]);
}

#[test]
fn hello_before_the_greeting_is_answered_by_it() {
    let machine = TurnMachine::new(
        TurnConfig::default(),
        LinesConfig::default(),
        Duration::from_secs(10),
    );
    let mut table = Table {
        machine,
        now: Time::ZERO,
        log: Vec::new(),
    };
    table.input(Input::Started {
        greeting: Some("Good morning!".to_owned()),
    });
    table.speak(100, 500);
    table.heard("Hello?");
    let reply = table.plays();
    table.until(2_000);
    table.input(Input::ReplyFinished { reply });
    table.until(4_000);
    assert_eq!(table.prompts(), ["say: Good morning!"]);
    assert_eq!(table.committed(), ["Hello?"]);
}

#[test]
fn silence_is_asked_about_and_then_hung_up_on() {
    let mut table = Table::new();
    table.until(10_000);
    assert_eq!(table.prompts(), ["say: Are you still there?"]);
    let reply = table.plays();
    table.until(11_500);
    table.input(Input::ReplyFinished { reply });
    table.until(30_000);
    assert_eq!(table.ended(), Some(VoiceEnd::SilenceHangup));
    // The agent's own question is not conversation: it does not start the clock anew.
    assert_eq!(table.at(&|o| matches!(o, Output::End(_))), Some(20_000));
    assert_eq!(table.prompts().len(), 1);
}

#[test]
fn a_caller_who_answers_the_question_is_no_longer_away() {
    let mut table = Table::new();
    table.until(10_000);
    let reply = table.plays();
    table.until(11_500);
    table.input(Input::ReplyFinished { reply });
    table.speak(12_000, 13_000);
    table.heard("Yes, I am looking for my card.");
    let reply = table.plays_when_over();
    table.until(16_000);
    table.input(Input::ReplyFinished { reply });
    table.until(25_000);
    assert_eq!(table.ended(), None);
    assert!(table.has(&|o| *o == Output::UserState(UserState::Away)));
}

#[test]
fn tools_wait_for_the_end_of_the_turn_and_are_seen_through() {
    let mut table = Table::new();
    table.speak(1_000, 3_000);
    table.heard("please create a lead");
    let reply = table.reply();
    table.input(Input::ToolsWanted { reply });
    table.until(3_600);
    assert_eq!(
        table.at(&|o| matches!(o, Output::RunTools { .. })),
        Some(3_300)
    );
    // The caller goes on while it runs: the tool's effect is real, so that its reply is kept until
    // it is known.
    table.speak(3_700, 4_700);
    table.heard("and call me tomorrow");
    assert!(!table.has(&is_cancel));
    table.input(Input::ToolsDone {
        reply,
        request: None,
    });
    assert!(table.has(&is_cancel));
    assert_eq!(table.prompts()[1..], ["answer: and call me tomorrow"]);
}

#[test]
fn end_call_is_followed_by_the_goodbye_and_the_hangup_and_nothing_else() {
    let mut table = Table::new();
    table.speak(1_000, 3_000);
    table.heard("No, thank you. Goodbye.");
    let reply = table.reply();
    table.input(Input::ToolsWanted { reply });
    table.until(3_400);
    table.input(Input::ToolsDone {
        reply,
        request: Some(CallRequest::HangUp),
    });
    table.plays();
    table.until(4_000);
    table.speak(4_100, 5_000);
    table.heard("bye bye then");
    assert!(
        !table.has(&is_cancel),
        "a goodbye over ours does not open the conversation again"
    );
    table.input(Input::ReplyFinished { reply });
    assert_eq!(
        table.ended(),
        Some(VoiceEnd::Requested(CallRequest::HangUp))
    );
    assert_eq!(
        table.committed(),
        ["No, thank you. Goodbye.", "bye bye then"]
    );
}

#[test]
fn caller_hangs_up_in_mid_speech_and_the_words_are_kept() {
    let mut table = Table::new();
    table.until(1_050);
    table.input(Input::SpeechStarted {
        onset: Duration::from_millis(1_000),
    });
    table.until(2_000);
    table.input(Input::Stop);
    assert_eq!(table.ended(), None);
    table.until(2_150);
    table.heard("please call me back at");
    assert_eq!(table.committed(), ["please call me back at"]);
    assert_eq!(table.ended(), Some(VoiceEnd::Stopped));
}

#[test]
fn the_end_does_not_wait_for_a_recogniser_that_is_gone() {
    let mut table = Table::new();
    table.speak(1_000, 2_000);
    table.input(Input::Stop);
    table.until(10_000);
    assert_eq!(table.at(&|o| matches!(o, Output::End(_))), Some(4_250));
}

#[test]
fn a_polite_end_lets_the_sentence_finish_and_says_goodbye() {
    let mut table = Table::new();
    let reply = table.answer_plays("tell me everything");
    table.input(Input::Close {
        say: Some("We have to stop here.".to_owned()),
    });
    assert!(!table.has(&is_cancel));
    table.input(Input::ReplyFinished { reply });
    let reply = table.plays();
    table.input(Input::ReplyFinished { reply });
    assert_eq!(table.ended(), Some(VoiceEnd::Closed));
}

#[test]
fn a_polite_end_is_bounded() {
    let mut table = Table::new();
    table.answer_plays("tell me everything");
    let now = table.now.as_millis() as u64;
    table.input(Input::Close { say: None });
    table.until(now + 20_000);
    assert_eq!(
        table.at(&|o| matches!(o, Output::End(_))),
        Some(now + 10_000)
    );
    assert!(table.has(&is_cancel));
}

fn failure(component: Component, kind: FailureKind) -> Failure {
    Failure {
        component,
        message: "it is down".to_owned(),
        kind,
    }
}

#[test]
fn one_failure_is_asked_about_and_the_second_ends_the_call_with_an_apology() {
    let mut table = Table::new();
    for end in [3_000, 8_000] {
        table.speak(end - 1_000, end);
        table.heard("what does it cost");
        let reply = table.reply();
        table.input(Input::ReplyFailed {
            reply,
            failure: failure(Component::Llm, FailureKind::Temporary),
        });
        let reply = table.plays();
        table.until(end + 1_000);
        table.input(Input::ReplyFinished { reply });
    }
    assert!(
        table.prompts()[1].contains("say it again")
            && table.prompts()[3].contains("technical problem")
    );
    assert_eq!(
        table.committed(),
        ["what does it cost", "what does it cost"]
    );
    assert!(matches!(
        table.ended(),
        Some(VoiceEnd::ProviderFailed {
            component: Component::Llm,
            ..
        })
    ));
}

#[test]
fn a_wrong_key_ends_the_call_at_once_and_a_mute_agent_does_not_try_to_apologise() {
    for (component, lines) in [(Component::Llm, 2), (Component::Tts, 1)] {
        let mut table = Table::new();
        table.speak(2_000, 3_000);
        table.heard("what does it cost");
        let reply = table.reply();
        table.input(Input::ReplyFailed {
            reply,
            failure: failure(component, FailureKind::Config),
        });
        assert_eq!(table.prompts().len(), lines);
        if lines == 2 {
            let reply = table.plays();
            table.input(Input::ReplyFinished { reply });
        }
        assert!(matches!(
            table.ended(),
            Some(VoiceEnd::ProviderFailed { .. })
        ));
    }
}

#[test]
fn no_answer_in_time_is_noticed() {
    let mut table = Table::new();
    table.speak(2_000, 3_000);
    table.heard("What does it cost?");
    table.until(12_000);
    assert_eq!(table.at(&is_cancel), Some(11_300));
    assert!(table.prompts()[1].contains("say it again"));
}

#[test]
fn no_transcript_in_time_is_noticed() {
    let mut table = Table::new();
    table.speak(2_000, 3_000);
    table.until(12_000);
    assert!(table.prompts()[0].contains("say it again"));
    assert_eq!(
        table.at(&|o| matches!(o, Output::StartReply { .. })),
        Some(11_000)
    );
}

#[test]
fn an_agent_that_is_not_heard_does_not_say_that_it_speaks() {
    let mut table = Table::new();
    let reply = table.answer_plays("tell me everything");
    let began = table.at(&is_play).expect("it has been heard");
    table.until(began + 2_500);
    assert_eq!(
        table.at(&|o| matches!(
            o,
            Output::Report {
                component: "playout",
                ..
            }
        )),
        Some(began + 2_000)
    );
    assert!(matches!(
        table.log.last(),
        Some((_, Output::AgentState(AgentState::Thinking)))
    ));
    table.input(Input::Progress { reply });
    assert!(matches!(
        table.log.last(),
        Some((_, Output::AgentState(AgentState::Speaking)))
    ));
}

#[test]
fn a_deaf_detector_is_started_anew_before_the_caller_is_asked() {
    let mut table = Table::new();
    for tenth in 1..=90 {
        table.now = Duration::from_millis(tenth * 100);
        table.input(Input::CallerAudio { loud: true });
    }
    assert_eq!(table.at(&|o| *o == Output::RestartHearing), Some(8_100));
    assert!(table.prompts().is_empty());
}

#[test]
fn a_typed_message_stops_the_agent_and_is_answered_at_once() {
    let mut table = Table::new();
    let reply = table.answer_plays("tell me everything");
    table.input(Input::UserText("what is your address".to_owned()));
    assert!(table.has(&|o| *o == Output::Cancel { reply }));
    let before = table.now;
    table.plays();
    assert_eq!(table.now, before);
    assert_eq!(table.committed()[1..], ["what is your address"]);
}

#[test]
fn rounds_of_tools_without_a_word_are_noticed() {
    for heard_before in [false, true] {
        let mut table = Table::new();
        table.speak(1_000, 3_000);
        table.heard("What does it cost?");
        let reply = table.reply();
        if heard_before {
            table.input(Input::WordsReady { reply });
            table.until(3_500);
            table.plays();
        }
        // A round each second is progress to everybody but the caller.
        while table.machine.active_reply() == Some(reply) {
            table.input(Input::ToolsWanted { reply });
            let next = table.now.as_millis() as u64 + 1_000;
            table.until(next);
            table.input(Input::ToolsDone {
                reply,
                request: None,
            });
            assert!(next < 60_000, "nobody notices");
        }
        let given_up = table.at(&is_cancel).expect("it is given up");
        assert!((23_000..25_000).contains(&given_up), "{given_up}");
        assert!(table.prompts()[1].contains("say it again"));
    }
}

#[test]
fn an_answer_without_a_sound_is_none() {
    let mut table = Table::new();
    table.speak(1_000, 3_000);
    table.heard("What does it cost?");
    let reply = table.reply();
    table.input(Input::ReplyFinished { reply });
    assert!(table.prompts()[1].contains("say it again"));
    assert_eq!(table.committed(), ["What does it cost?"]);
}

#[test]
fn a_goodbye_that_cannot_be_made_is_replaced_by_the_line() {
    let goodbye = LinesConfig::default().goodbye;
    for (case, component) in [
        ("fails", Component::Llm),
        ("is silent", Component::Llm),
        ("is late", Component::Llm),
        ("is mute", Component::Tts),
    ] {
        let mut table = Table::new();
        table.speak(1_000, 3_000);
        table.heard("Goodbye.");
        let reply = table.reply();
        table.input(Input::ToolsWanted { reply });
        table.until(3_500);
        table.input(Input::ToolsDone {
            reply,
            request: Some(CallRequest::HangUp),
        });
        match case {
            "is silent" => table.input(Input::ReplyFinished { reply }),
            "is late" => table.until(15_000),
            _ => table.input(Input::ReplyFailed {
                reply,
                failure: failure(component, FailureKind::Temporary),
            }),
        }
        if component == Component::Tts {
            // There is no voice to say it with.
            assert_eq!(table.prompts().len(), 1, "{case}");
        } else {
            assert_eq!(table.prompts()[1], format!("say: {goodbye}"), "{case}");
            let reply = table.plays();
            table.input(Input::ReplyFinished { reply });
        }
        assert_eq!(
            table.ended(),
            Some(VoiceEnd::Requested(CallRequest::HangUp)),
            "{case}"
        );
    }
}

#[test]
fn a_recogniser_that_fails_at_the_end_does_not_take_the_last_line_away() {
    let mut table = Table::new();
    let reply = table.answer_plays("tell me everything");
    table.speak(5_000, 5_200);
    let segment = table.last_segment();
    table.input(Input::Close {
        say: Some("We have to stop here.".to_owned()),
    });
    table.input(Input::TranscriptionFailed {
        segment,
        failure: failure(Component::Stt, FailureKind::Temporary),
    });
    table.input(Input::ReplyFinished { reply });
    assert_eq!(table.prompts()[1..], ["say: We have to stop here."]);
}

#[test]
fn speech_without_words_is_asked_for_again_and_noise_is_not() {
    for (speech_ms, expected) in [
        (
            3_000,
            vec!["say: Sorry, I did not get that. Could you say it again?"],
        ),
        (1_000, vec![]),
    ] {
        let mut table = Table::new();
        table.speak(1_000, 1_000 + speech_ms);
        table.heard("");
        table.until(1_000 + speech_ms + 499);
        assert!(table.prompts().is_empty(), "the caller may go on");
        table.until(1_000 + speech_ms + 500);
        assert_eq!(table.prompts(), expected);
    }
    // Two halves are one.
    let mut table = Table::new();
    table.speak(1_000, 2_200);
    table.speak(2_600, 3_800);
    table.heard("");
    table.until(5_000);
    assert_eq!(
        table.prompts().len(),
        0,
        "recognition of the first half is still to come"
    );
    table.input(Input::Transcript {
        segment: SegmentId(0),
        text: String::new(),
        confidence: None,
        is_final: true,
    });
    assert_eq!(table.prompts().len(), 1);
}

#[test]
fn a_recogniser_that_fails_is_complained_about_once() {
    let mut table = Table::new();
    table.speak(1_000, 5_000);
    let segment = table.last_segment();
    table.input(Input::TranscriptionFailed {
        segment,
        failure: failure(Component::Stt, FailureKind::Temporary),
    });
    let reply = table.plays();
    table.until(9_000);
    table.input(Input::ReplyFinished { reply });
    table.until(12_000);
    assert_eq!(table.prompts().len(), 1);
}

#[test]
fn sound_without_words_is_silence_in_the_end() {
    let mut table = Table::new();
    let mut at = 1_000;
    let mut speaks = |table: &mut Table| {
        at = at.max(table.now.as_millis() as u64);
        table.speak(at, at + 2_500);
        table.heard("");
        table.until(at + 3_100);
        at += 4_000;
        if let Some(reply) = table.machine.active_reply() {
            table.input(Input::AudioReady { reply });
            table.until(at);
            table.input(Input::ReplyFinished { reply });
        }
    };
    // A television.
    while table.ended().is_none() {
        speaks(&mut table);
        assert!(
            table.now < Duration::from_secs(120),
            "{:#?}",
            table.prompts()
        );
    }
    let prompts = table.prompts();
    assert_eq!(prompts.len(), 4, "{prompts:#?}");
    assert!(
        prompts[..3]
            .iter()
            .all(|prompt| prompt.contains("say it again"))
    );
    assert!(prompts[3].contains("still there"));
    assert_eq!(table.ended(), Some(VoiceEnd::SilenceHangup));
    let (asked, ended) = (
        table.at(&|o| matches!(o, Output::UserState(UserState::Away))),
        table.at(&|o| matches!(o, Output::End(_))),
    );
    assert!(
        ended.unwrap() - asked.unwrap() >= 10_000,
        "{asked:?} {ended:?}"
    );
}

#[test]
fn a_noise_does_not_put_the_question_off() {
    let mut table = Table::new();
    table.speak(9_000, 9_500);
    table.heard("");
    table.until(11_000);
    assert_eq!(
        table.at(&|o| matches!(o, Output::StartReply { .. })),
        Some(10_000)
    );
}

impl Table {
    /// The caller says `text` in the first three seconds, and the answer to it begins.
    fn answer_plays(&mut self, text: &str) -> ReplyId {
        self.speak(1_000, 3_000);
        self.heard(text);
        self.plays_when_over()
    }

    fn plays_when_over(&mut self) -> ReplyId {
        let reply = self.reply();
        self.input(Input::AudioReady { reply });
        let now = self.now.as_millis() as u64;
        self.until(now + 500);
        assert!(
            self.has(&|o| matches!(o, Output::Play { reply: r, .. } if *r == reply)),
            "{:#?}",
            self.log
        );
        reply
    }
}

#[test]
fn a_sentence_that_a_lost_line_cut_off_goes_on_when_the_line_is_back() {
    let mut table = Table::new();
    table.speak(1_000, 2_000);
    table.heard("What do you sell?");
    table.until(2_400);
    let reply = table.plays();
    table.playing_until(reply, 3_000);
    table.input(Input::LineLost);
    assert!(table.has(&|o| *o == Output::Pause { reply }));
    // Longer than any patience with a caller who hears us.
    table.until(90_000);
    assert!(!table.has(&|o| matches!(o, Output::Resume { .. } | Output::End(_))));
    table.input(Input::LineBack {
        say: Some("Here again.".to_owned()),
    });
    assert!(table.has(&|o| *o == Output::Resume { reply }));
    table.playing_until(reply, 92_000);
    table.input(Input::ReplyFinished { reply });
    table.until(95_000);
    assert_eq!(table.machine.active_reply(), None, "nothing else is said");
}

#[test]
fn nobody_is_asked_over_a_lost_line_and_silence_counts_from_its_return() {
    let mut table = Table::new();
    table.until(9_000);
    table.input(Input::LineLost);
    table.until(60_000);
    assert_eq!(table.machine.active_reply(), None);
    table.input(Input::LineBack {
        say: Some("Here again.".to_owned()),
    });
    let said = Output::StartReply {
        reply: table.reply(),
        prompt: Prompt::Say {
            text: "Here again.".to_owned(),
        },
    };
    assert!(table.has(&|o| *o == said));
    let reply = table.plays();
    table.playing_until(reply, 61_000);
    table.input(Input::ReplyFinished { reply });
    table.until(70_500);
    assert_eq!(table.machine.active_reply(), None);
    table.until(71_500);
    assert!(
        table.machine.active_reply().is_some(),
        "asks ten seconds later"
    );
}

#[test]
fn nobody_is_asked_over_a_line_without_sound() {
    for arrives in [true, false] {
        let mut table = Table::new();
        table.until(6_000);
        table.input(Input::CallerSound { arrives });
        table.until(12_000);
        let asked = table.prompts();
        assert_eq!(asked.len(), usize::from(arrives), "{asked:?}");
    }
    // It ends all the same when nobody gives it up.
    let mut table = Table::new();
    table.until(6_000);
    table.input(Input::CallerSound { arrives: false });
    table.until(22_000);
    assert!(table.has(&|o| *o == Output::End(VoiceEnd::SilenceHangup)));
    // And a caller who can be heard again is asked after as long as anybody.
    let mut table = Table::new();
    table.until(6_000);
    table.input(Input::CallerSound { arrives: false });
    table.until(15_000);
    table.input(Input::CallerSound { arrives: true });
    table.until(24_000);
    assert_eq!(table.prompts(), [""; 0]);
    table.until(26_000);
    assert_eq!(table.prompts(), ["say: Are you still there?"]);
}

#[test]
fn an_answer_that_is_still_being_made_when_the_line_is_back_is_waited_for() {
    let mut table = Table::new();
    table.speak(1_000, 2_000);
    table.heard("What do you sell?");
    let reply = table.reply();
    table.input(Input::LineLost);
    table.until(60_000);
    table.input(Input::LineBack { say: None });
    table.until(62_000);
    assert!(!table.has(&is_cancel), "the caller has waited for 2 s");
    table.input(Input::AudioReady { reply });
    assert!(table.has(&is_play));
}

#[test]
fn an_answer_that_was_being_made_is_heard_when_the_line_is_back() {
    let mut table = Table::new();
    table.speak(1_000, 2_000);
    table.heard("What do you sell?");
    let reply = table.reply();
    table.input(Input::LineLost);
    table.input(Input::AudioReady { reply });
    table.until(30_000);
    assert!(!table.has(&|o| matches!(o, Output::Play { .. } | Output::Cancel { .. })));
    table.input(Input::LineBack { say: None });
    assert!(table.has(&|o| matches!(o, Output::Play { reply: r, .. } if *r == reply)));
}

/// Any input at all, mostly about segments and replies that exist.
fn any_input() -> impl Strategy<Value = Input> {
    let segment = (0u32..6).prop_map(SegmentId);
    let reply = || (0u32..8).prop_map(ReplyId);
    let text = prop_oneof![
        Just(String::new()),
        Just("yeah".to_owned()),
        Just("what about my".to_owned()),
        Just("Stop it.".to_owned())
    ];
    let kind = prop_oneof![
        Just(FailureKind::Temporary),
        Just(FailureKind::BadInput),
        Just(FailureKind::Config)
    ];
    let component = prop_oneof![
        Just(Component::Stt),
        Just(Component::Llm),
        Just(Component::Tts)
    ];
    let failure = (component, kind).prop_map(|(component, kind)| failure(component, kind));
    prop_oneof![
        4 => Just(Input::SpeechStarted { onset: Time::ZERO }),
        2 => Just(Input::SpeechPaused),
        2 => Just(Input::SpeechResumed),
        4 => Just(Input::SpeechEnded { end: Time::MAX }),
        6 => (segment.clone(), text.clone(), any::<bool>())
            .prop_map(|(segment, text, is_final)| Input::Transcript { segment, text, confidence: None, is_final }),
        2 => text.clone().prop_map(|text| Input::WordsBeside { onset: Time::ZERO, end: Time::MAX, text, confidence: None }),
        2 => (segment.clone(), any::<bool>()).prop_map(|(segment, is_certain)| Input::EndOfTurn { segment, is_certain }),
        1 => segment.clone().prop_map(|segment| Input::TurnResumed { segment }),
        1 => any::<bool>().prop_map(|streams| Input::Recogniser { streams }),
        1 => text.clone().prop_map(|text| Input::AgentSaid { text }),
        1 => Just(Input::LineLost),
        1 => Just(Input::LineBack { say: Some("Here again.".to_owned()) }),
        1 => any::<bool>().prop_map(|arrives| Input::CallerSound { arrives }),
        1 => (segment, failure.clone()).prop_map(|(segment, failure)| Input::TranscriptionFailed { segment, failure }),
        6 => reply().prop_map(|reply| Input::AudioReady { reply }),
        1 => reply().prop_map(|reply| Input::WordsReady { reply }),
        2 => reply().prop_map(|reply| Input::ToolsWanted { reply }),
        2 => (reply(), prop::bool::weighted(0.1)).prop_map(|(reply, hangs_up)| Input::ToolsDone { reply, request: hangs_up.then_some(CallRequest::HangUp) }),
        2 => reply().prop_map(|reply| Input::Progress { reply }),
        3 => reply().prop_map(|reply| Input::ReplyFinished { reply }),
        1 => (reply(), failure).prop_map(|(reply, failure)| Input::ReplyFailed { reply, failure }),
        2 => any::<bool>().prop_map(|loud| Input::CallerAudio { loud }),
        1 => any::<bool>().prop_map(|interruptible| Input::Say { text: "A line.".to_owned(), interruptible }),
        1 => text.prop_map(Input::UserText),
        1 => prop::option::of(Just("Goodbye.".to_owned())).prop_map(|say| Input::Close { say }),
        1 => Just(Input::Stop),
        4 => Just(Input::Tick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_events_keeps_one_reply_and_comes_to_an_end(
        steps in prop::collection::vec((0u64..3_000, any_input()), 0..80),
        greeting in prop::option::of(Just("Good morning.".to_owned())),
    ) {
        let config = VoiceConfig::default();
        let mut machine = TurnMachine::new(config.turn, config.lines, Duration::from_secs(10));
        let mut now = Time::ZERO;
        let mut active: Option<ReplyId> = None;
        let mut ended = 0;
        let mut check = |machine: &TurnMachine, now: Time, input: &Input, outputs: Vec<Output>| -> Result<(), TestCaseError> {
            // What the driver knows: a reply that reports its end is over.
            if let Input::ReplyFinished { reply } | Input::ReplyFailed { reply, .. } = input && active == Some(*reply) {
                active = None;
            }
            for output in outputs {
                prop_assert_eq!(ended, 0, "{:?} follows the end", output);
                match output {
                    Output::StartReply { reply, .. } => {
                        prop_assert_eq!(active, None, "{:?} starts beside another", reply);
                        active = Some(reply);
                    }
                    Output::Cancel { reply } => {
                        prop_assert_eq!(active, Some(reply));
                        active = None;
                    }
                    Output::Play { reply, .. } | Output::Pause { reply } | Output::Resume { reply } | Output::RunTools { reply } => {
                        prop_assert_eq!(active, Some(reply));
                    }
                    Output::End(_) => ended += 1,
                    _ => {}
                }
            }
            prop_assert_eq!(active, machine.active_reply());
            if let Some(deadline) = machine.next_deadline() {
                prop_assert!(deadline > now, "a deadline that does not pass would spin");
            }
            Ok(())
        };
        let started = Input::Started { greeting };
        let outputs = machine.handle(now, started.clone());
        check(&machine, now, &started, outputs)?;
        for (wait, input) in steps {
            now += Duration::from_millis(wait);
            let outputs = machine.handle(now, input.clone());
            check(&machine, now, &input, outputs)?;
        }
        // A line that stays lost is the call's affair.
        let back = Input::LineBack { say: None };
        let outputs = machine.handle(now, back.clone());
        check(&machine, now, &back, outputs)?;
        // Left alone, with a caller who says nothing and providers that do nothing, it asks, waits
        // and hangs up.
        let end = Input::SpeechEnded { end: now };
        let outputs = machine.handle(now, end.clone());
        check(&machine, now, &end, outputs)?;
        let mut ticks = 0;
        while !machine.is_over() {
            now = machine.next_deadline().expect("a conversation without a deadline would last for ever");
            let outputs = machine.handle(now, Input::Tick);
            check(&machine, now, &Input::Tick, outputs)?;
            ticks += 1;
            prop_assert!(ticks < 200, "it does not come to an end");
        }
        prop_assert_eq!(machine.active_reply(), None);
    }
}

fn keypad(table: &Table) -> Vec<(u64, String)> {
    table
        .log
        .iter()
        .filter_map(|(at, output)| match output {
            Output::Keypad { keys } => Some((at.as_millis() as u64, keys.clone())),
            _ => None,
        })
        .collect()
}

/// Keys with the time since the one before, in ms.
type Pressed = &'static [(u64, char)];
/// What is told when, in ms.
type Told = &'static [(u64, &'static str)];

#[test]
fn keys_become_words_after_a_pause_or_a_hash() {
    let cases: &[(Pressed, Told)] = &[
        (
            &[(500, '5'), (800, '5'), (1_500, '5'), (300, '0')],
            &[(5_100, "5550")],
        ),
        (&[(500, '1'), (400, '2'), (400, '#')], &[(1_300, "12")]),
        (&[(500, '1'), (2_500, '2')], &[(2_500, "1"), (5_000, "2")]),
        (&[(500, '#')], &[(2_500, "#")]),
        (&[(500, '*'), (500, '9')], &[(3_000, "*9")]),
    ];
    for (keys, expected) in cases {
        let mut table = Table::new();
        let mut at = 0;
        for (after, key) in *keys {
            at += after;
            table.until(at);
            table.input(Input::Key(*key));
        }
        table.until(8_000);
        let told = keypad(&table);
        let told: Vec<(u64, &str)> = told.iter().map(|(at, keys)| (*at, keys.as_str())).collect();
        assert_eq!(told, *expected, "{keys:?}");
        let last = format!("Keypad: {}", expected.last().unwrap().1);
        assert!(
            table.has(&|output| matches!(
                output,
                Output::StartReply { prompt: Prompt::Answer { to }, .. } if to.ends_with(&last)
            )),
            "{:#?}",
            table.log
        );
    }
}

#[test]
fn whoever_types_is_there_and_loses_nothing_at_the_end() {
    let mut table = Table::new();
    for key in 1..=12 {
        table.until(key * 1_900);
        table.input(Input::Key('7'));
    }
    assert!(
        !table.has(&|output| matches!(output, Output::StartReply { .. })),
        "nobody asks whether the caller is there"
    );
    table.input(Input::Stop);
    assert_eq!(keypad(&table), [(22_800, "7".repeat(12))]);
    assert!(table.machine.is_over());
    // A number without an end is told in pieces.
    let mut table = Table::new();
    for _ in 0..40 {
        table.input(Input::Key('7'));
    }
    assert_eq!(keypad(&table)[0].1.len(), 32);
}

#[test]
fn a_recogniser_that_refuses_every_request_ends_the_call_as_failed() {
    for kind in [FailureKind::BadInput, FailureKind::Temporary] {
        let mut table = Table::new();
        for turn in 0..2 {
            table.speak(turn * 4_000 + 1_000, turn * 4_000 + 2_000);
            let segment = table.last_segment();
            table.input(Input::TranscriptionFailed {
                segment,
                failure: failure(Component::Stt, kind),
            });
            let reply = table.plays();
            table.playing_until(reply, turn * 4_000 + 4_000);
            table.input(Input::ReplyFinished { reply });
        }
        let said: Vec<String> = table
            .log
            .iter()
            .filter_map(|(_, output)| match output {
                Output::StartReply {
                    prompt: Prompt::Say { text },
                    ..
                } => Some(text.clone()),
                _ => None,
            })
            .collect();
        let lines = VoiceConfig::default().lines;
        assert_eq!(said, [lines.say_again, lines.apology], "{kind:?}");
        assert!(
            table.has(&|output| matches!(
                output,
                Output::End(VoiceEnd::ProviderFailed {
                    component: Component::Stt,
                    ..
                })
            )),
            "{:#?}",
            table.log
        );
    }
}

#[test]
fn what_is_no_speech_is_not_asked_for_again() {
    for is_speech in [true, false] {
        let mut table = Table::new();
        table.speak(1_000, 6_000);
        let segment = table.last_segment();
        if is_speech {
            table.heard("");
        } else {
            table.input(Input::NotSpeech { segment });
        }
        table.until(8_000);
        let asked = table.has(&|output| matches!(output, Output::StartReply { .. }));
        assert_eq!(asked, is_speech, "{:#?}", table.log);
    }
}

#[test]
fn a_turn_that_the_recogniser_ends_is_answered_at_once() {
    let mut table = Table::new();
    table.speak(1_000, 3_000);
    table.heard("my number is");
    let reply = table.reply();
    table.input(Input::AudioReady { reply });
    table.until(3_600);
    assert_eq!(table.at(&is_play), None, "the words end in mid phrase");
    let segment = table.last_segment();
    table.input(Input::EndOfTurn {
        segment,
        is_certain: true,
    });
    assert_eq!(table.at(&is_play), Some(3_600));
}

#[test]
fn an_answer_begun_at_an_early_end_of_turn_is_the_answer() {
    let mut table = Table::new();
    table.speak(1_000, 3_000);
    let segment = table.last_segment();
    table.heard("What does it cost?");
    table.input(Input::EndOfTurn {
        segment,
        is_certain: false,
    });
    let reply = table.reply();
    table.input(Input::AudioReady { reply });
    table.until(4_000);
    assert_eq!(table.at(&is_play), None, "it may be taken back");
    table.heard("What does it cost?");
    table.input(Input::EndOfTurn {
        segment,
        is_certain: true,
    });
    assert_eq!(table.at(&is_play), Some(4_000));
    assert_eq!(table.prompts(), ["answer: What does it cost?"]);
}

#[test]
fn an_early_end_of_turn_that_is_taken_back_is_not_heard() {
    let mut table = Table::new();
    table.speak(1_000, 3_000);
    let segment = table.last_segment();
    table.heard("Send it to John");
    table.input(Input::EndOfTurn {
        segment,
        is_certain: false,
    });
    let reply = table.reply();
    table.input(Input::AudioReady { reply });
    table.input(Input::TurnResumed { segment });
    assert!(table.has(&|o| *o == Output::Cancel { reply }));
    table.until(4_000);
    table.heard("Send it to John Smith.");
    table.input(Input::EndOfTurn {
        segment,
        is_certain: true,
    });
    table.plays();
    assert_eq!(
        table.prompts(),
        ["answer: Send it to John", "answer: Send it to John Smith."]
    );
    assert_eq!(table.committed(), ["Send it to John Smith."]);
}

#[test]
fn words_that_the_detector_has_missed_are_answered_and_stop_the_agent() {
    let beside = |text: &str, from: u64, to: u64| Input::WordsBeside {
        onset: Duration::from_millis(from),
        end: Duration::from_millis(to),
        text: text.to_owned(),
        confidence: Some(0.5),
    };
    let mut table = Table::new();
    table.until(2_000);
    table.input(beside("Are you there?", 1_000, 1_800));
    let reply = table.plays_when_over();
    assert_eq!(table.committed(), ["Are you there?"]);
    table.playing_until(reply, 4_000);
    table.input(beside("stop that please", 3_000, 3_900));
    assert!(table.has(&|o| *o == Output::Cancel { reply }));
    table.plays_when_over();
    assert_eq!(table.committed(), ["Are you there?", "stop that please"]);
}

#[test]
fn a_recogniser_with_interim_words_is_not_overdue() {
    let mut table = Table::new();
    table.speak(1_000, 3_000);
    let segment = table.last_segment();
    for second in 4..15 {
        table.until(second * 1_000);
        table.input(Input::Transcript {
            segment,
            text: "I am still".to_owned(),
            confidence: None,
            is_final: false,
        });
    }
    assert_eq!(table.prompts(), Vec::<String>::new());
    table.until(23_000);
    assert_eq!(
        table.prompts().len(),
        1,
        "the caller is asked to say it again"
    );
}

/// The agent asks `question`, then the caller says `text` from 3 to 4 s: when the answer is heard,
/// in milliseconds after that.
fn answered_after(question: &str, text: &str, streams: bool) -> u64 {
    let mut table = Table::new();
    table.input(Input::Recogniser { streams });
    table.input(Input::Say {
        text: question.to_owned(),
        interruptible: true,
    });
    let asking = table.plays();
    table.until(1_000);
    table.input(Input::AgentSaid {
        text: question.to_owned(),
    });
    table.input(Input::ReplyFinished { reply: asking });
    table.speak(3_000, 4_000);
    table.heard(text);
    let reply = table.reply();
    table.input(Input::AudioReady { reply });
    table.until(8_000);
    let plays = |o: &Output| matches!(o, Output::Play { reply: r, .. } if *r == reply);
    table.at(&plays).expect("there is no answer") - 4_000
}

#[test]
fn the_question_sets_what_a_whole_answer_is() {
    for (question, text, expected) in [
        ("Is that right?", "Yes.", 300),
        ("How can I help you?", "Yes.", 500),
        ("What is your phone number?", "98765.", 3_000),
        ("What is your phone number?", "98765 43210.", 300),
        ("What is your e-mail address?", "anna at bank dot.", 3_000),
        ("What is your e-mail address?", "anna at bank dot com", 300),
        ("How do you spell that?", "S M I.", 1_200),
        ("आपका नाम क्या है?", "मेरा नाम।", 500),
        ("आपका नाम क्या है?", "मेरा नाम राहुल है।", 300),
    ] {
        let after = answered_after(question, text, false);
        assert_eq!(after, expected, "{question:?} {text:?}");
    }
}

#[test]
fn a_full_stop_counts_only_from_a_recogniser_that_listens_on() {
    for (streams, expected) in [(false, 500), (true, 300)] {
        assert_eq!(answered_after("", "The blue one.", streams), expected);
    }
}

#[test]
fn a_caller_who_pauses_within_a_turn_is_given_more_time() {
    let mut table = Table::new();
    table.speak(1_000, 2_000);
    table.heard("the blue one");
    table.speak(2_700, 3_500);
    table.heard("or the red one");
    let reply = table.reply();
    table.input(Input::AudioReady { reply });
    table.until(6_000);
    // 1.25 times the pause of 700 ms.
    assert_eq!(table.at(&is_play), Some(4_375));
}

/// What is said while listening, in English, Hindi and Hindi in Latin letters.
const AGREEMENT: [&str; 60] = [
    "Mhm.",
    "Uh-huh.",
    "Yeah.",
    "Okay.",
    "Got it.",
    "I see.",
    "Makes sense.",
    "Go on.",
    "Right.",
    "Sure.",
    "Okay, got it.",
    "Yeah, yeah.",
    "Of course.",
    "All right.",
    "Sounds good.",
    "I understand.",
    "That makes sense.",
    "Go ahead.",
    "Exactly.",
    "Great.",
    "haan",
    "haan ji",
    "ji",
    "ji haan",
    "achha",
    "theek hai",
    "achha theek hai",
    "haan haan",
    "sahi hai",
    "bilkul",
    "samajh gaya",
    "haan boliye",
    "acha",
    "thik hai",
    "ji ji",
    "ok ji",
    "hmm",
    "han",
    "haanji",
    "theek",
    "हाँ",
    "हाँ जी",
    "जी",
    "जी हाँ।",
    "अच्छा",
    "ठीक है।",
    "अच्छा ठीक है",
    "हाँ हाँ",
    "सही है",
    "बिल्कुल",
    "समझ गया",
    "बोलिए",
    "हां",
    "ठीक",
    "जी जी",
    "ओके",
    "हम्म",
    "समझ गई",
    "सही",
    "जी अच्छा",
];

/// What is meant to stop the agent.
const BARGE_INS: [&str; 40] = [
    "Stop.",
    "Wait.",
    "No.",
    "Hold on.",
    "Wait a minute.",
    "Excuse me.",
    "Yeah, but what is the price?",
    "Okay, but not on Monday.",
    "Can I ask something?",
    "That's wrong.",
    "Not that one.",
    "I have a question.",
    "Sorry, what?",
    "Say that again.",
    "How much?",
    "No, no, no.",
    "Hello?",
    "Which one?",
    "Slow down.",
    "Got it wrong.",
    "ruko",
    "nahi",
    "ek minute",
    "haan lekin kitna",
    "suniye",
    "mujhe nahi chahiye",
    "theek nahi hai",
    "kitne ka hai",
    "phir se boliye",
    "galat hai",
    "रुको",
    "नहीं",
    "एक मिनट",
    "हाँ लेकिन कितना",
    "सुनिए",
    "मुझे नहीं चाहिए",
    "ठीक नहीं है",
    "कितने का है",
    "फिर से बोलिए",
    "गलत है",
];

/// Whether `text`, said for 400 ms in mid speech, stops the agent; word by word where the
/// recogniser has interim words.
fn stops(text: &str, word_by_word: bool) -> bool {
    let mut table = Table::new();
    let reply = table.answer_plays("tell me everything");
    table.playing_until(reply, 6_000);
    table.until(6_050);
    table.input(Input::SpeechStarted {
        onset: Duration::from_millis(6_000),
    });
    let segment = table.machine.open_segment().unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    for heard in 1..=words.len() {
        if word_by_word {
            table.until(6_050 + heard as u64 * 50);
            table.input(Input::Transcript {
                segment,
                text: words[..heard].join(" "),
                confidence: None,
                is_final: false,
            });
        }
    }
    table.until(6_400);
    table.input(Input::SpeechPaused);
    table.until(6_550);
    table.input(Input::SpeechEnded {
        end: Duration::from_millis(6_400),
    });
    table.input(Input::Transcript {
        segment,
        text: text.to_owned(),
        confidence: None,
        is_final: true,
    });
    table.has(&|o| *o == Output::Cancel { reply })
}

#[test]
fn agreement_in_mid_speech_does_not_stop_the_agent_and_other_words_do() {
    for word_by_word in [false, true] {
        for text in AGREEMENT {
            assert!(!stops(text, word_by_word), "{text:?} stops the agent");
        }
        for text in BARGE_INS {
            assert!(
                stops(text, word_by_word),
                "{text:?} does not stop the agent"
            );
        }
    }
}

#[test]
fn agreement_after_a_question_is_the_answer() {
    for text in AGREEMENT {
        let mut table = Table::new();
        let reply = table.answer_plays("tell me everything");
        table.playing_until(reply, 6_000);
        table.input(Input::AgentSaid {
            text: "Shall I go on?".to_owned(),
        });
        table.input(Input::ReplyFinished { reply });
        table.speak(6_500, 6_900);
        table.heard(text);
        table.plays_when_over();
        assert_eq!(table.prompts()[1..], [format!("answer: {text}")]);
    }
}

/// A call of ours that has just been answered, with a greeting that is ready.
fn answered_call(policy: MachinePolicy) -> Table {
    let config = VoiceConfig::default();
    let plan = AnswerPlan {
        voicemail: policy,
        ivr: MachinePolicy::HangUp,
        message: "Please call us back.".to_owned(),
        after_beep: Duration::from_millis(400),
        silence_before_message: Duration::from_secs(3),
    };
    let machine = TurnMachine::new(config.turn, config.lines, Duration::from_secs(10));
    let mut table = Table {
        machine: machine.watching_answer(Some(plan)),
        now: Time::ZERO,
        log: Vec::new(),
    };
    table.input(Input::Started {
        greeting: Some("Hello, this is the pump shop.".to_owned()),
    });
    let reply = table.reply();
    table.input(Input::AudioReady { reply });
    table
}

fn is_heard(output: &Output) -> bool {
    matches!(output, Output::Play { .. })
}

fn is_machine_answered(output: &Output) -> bool {
    matches!(output, Output::End(VoiceEnd::MachineAnswered))
}

fn beep(table: &mut Table, from: u64, to: u64) {
    let tone = |at: u64, is_over| {
        Input::Tone(crate::voice::answer::Tone {
            frequency_hz: 1_000.0,
            lasted: Duration::from_millis(at - from),
            is_over,
        })
    };
    table.until(from + 120);
    table.input(tone(from + 120, false));
    table.until(to + 40);
    table.input(tone(to, true));
}

const VOICEMAIL: &str = "I can't come to the phone, leave a message after the beep.";

#[test]
fn the_greeting_waits_for_hello_and_then_no_longer_than_700_ms() {
    let mut table = answered_call(MachinePolicy::HangUp);
    table.speak(1_000, 1_400);
    table.until(3_000);
    let played = table.at(&is_heard).expect("the greeting is said");
    assert!((1_400..=2_100).contains(&played), "{played}");
    table.heard("Hello?");
    let asked = |output: &Output| {
        matches!(
            output,
            Output::StartReply {
                prompt: Prompt::Answer { .. },
                ..
            }
        )
    };
    assert!(!table.has(&asked), "the greeting answers it");
}

#[test]
fn who_says_nothing_is_greeted_all_the_same() {
    let mut table = answered_call(MachinePolicy::HangUp);
    table.until(6_000);
    assert_eq!(table.at(&is_heard), Some(5_000));
    assert!(!table.has(&is_machine_answered));
}

#[test]
fn a_voicemail_is_hung_up_on_without_a_word() {
    let mut table = answered_call(MachinePolicy::HangUp);
    table.speak(300, 6_000);
    table.heard(VOICEMAIL);
    table.until(10_000);
    assert!(!table.has(&is_heard));
    assert!(table.at(&is_machine_answered).is_some_and(|at| at <= 6_500));
    let is_written =
        |output: &Output| matches!(output, Output::CommitUser(turn) if turn.text == VOICEMAIL);
    assert!(table.has(&is_written), "what it said is in the record");
}

#[test]
fn a_message_is_left_after_the_beep_and_once() {
    let mut table = answered_call(MachinePolicy::LeaveMessage);
    table.speak(300, 6_000);
    table.heard(VOICEMAIL);
    let message = table.reply();
    let prompt = Prompt::Say {
        text: "Please call us back.".to_owned(),
    };
    assert!(table.has(&|it| *it
        == Output::StartReply {
            reply: message,
            prompt: prompt.clone()
        }));
    table.input(Input::AudioReady { reply: message });
    beep(&mut table, 7_000, 7_500);
    table.until(9_000);
    let played = table.at(&is_heard).expect("the message is said");
    assert!((7_800..=8_500).contains(&played), "{played}");
    // The machine may say what it likes.
    table.playing_until(message, 10_000);
    table.speak(10_100, 11_000);
    table.playing_until(message, 12_000);
    table.input(Input::ReplyFinished { reply: message });
    table.until(20_000);
    assert!(table.has(&|it| *it == Output::MessageLeft));
    assert!(table.has(&is_machine_answered));
    let plays = table.log.iter().filter(|(_, it)| is_heard(it));
    assert_eq!(plays.count(), 1);
}

#[test]
fn a_message_that_cannot_be_made_ends_the_call() {
    let mut table = answered_call(MachinePolicy::LeaveMessage);
    table.speak(300, 6_000);
    table.heard(VOICEMAIL);
    let reply = table.reply();
    let failure = Failure {
        component: Component::Tts,
        message: "down".to_owned(),
        kind: FailureKind::Temporary,
    };
    table.input(Input::ReplyFailed { reply, failure });
    table.until(12_000);
    assert!(table.has(&is_machine_answered));
    assert!(!table.has(&is_heard) && !table.has(&|it| *it == Output::MessageLeft));
}

#[test]
fn a_machine_that_was_greeted_like_a_person_is_hung_up_on() {
    let mut table = answered_call(MachinePolicy::HangUp);
    table.speak(300, 900);
    table.until(1_500);
    let greeting = table.reply();
    assert!(table.has(&is_heard));
    table.speak(2_000, 5_000);
    table.heard(VOICEMAIL);
    table.until(8_000);
    assert!(table.has(&|it| *it == Output::Cancel { reply: greeting }));
    assert!(table.has(&is_machine_answered));
}

#[test]
fn with_continue_a_machine_is_talked_to() {
    let mut table = answered_call(MachinePolicy::Continue);
    table.speak(300, 6_000);
    table.heard(VOICEMAIL);
    table.until(7_000);
    assert!(table.has(&is_heard));
    assert!(!table.has(&is_machine_answered));
}

#[test]
fn while_the_telephone_rings_nothing_is_decided() {
    let mut table = answered_call(MachinePolicy::HangUp);
    table.input(Input::LineLost);
    table.until(30_000);
    assert!(!table.has(&|it| matches!(it, Output::AnsweredBy(_))));
    table.input(Input::LineBack { say: None });
    table.until(34_900);
    assert!(!table.has(&is_heard));
    table.until(35_100);
    assert_eq!(table.at(&is_heard), Some(35_000));
}
