//! Joins what voice activity detection and recognition say about the caller's sound. Pure.
//!
//! Both name places in the sound, so that it does not matter who speaks first: a stretch of speech
//! gets the words that lie in it, and words that lie in none are a stretch of their own. Knows
//! nothing of turns, and does not decide what is asked.

use std::collections::VecDeque;
use std::ops::Range;

use super::turn::SegmentId;
use crate::providers::ProviderError;
use crate::providers::stt::{SttEvent, Word};

/// Stretches of speech that are remembered. More than the turn machine keeps unanswered.
const MOST_STRETCHES: usize = 80;

/// Words may lie a little beside the speech, in samples: 400 ms. Recognisers are that wrong about
/// places, and voice activity detection about the first and last sound.
const BESIDE: u64 = 6_400;

/// What is known about one stretch of speech.
#[derive(Debug)]
struct Stretch {
    id: SegmentId,
    from: u64,
    /// None while it goes on.
    end: Option<u64>,
    finals: Vec<Words>,
    state: Asked,
    /// The sound may be music, to which recognisers make words up.
    may_be_music: bool,
    /// The turn ends with it, as the recogniser says.
    ends_turn: bool,
}

/// Words that will not change.
#[derive(Debug, Clone, PartialEq)]
struct Words {
    range: Range<u64>,
    text: String,
    confidence: Option<f32>,
}

/// Whether somebody waits for the words of a stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Not yet, or not any more.
    No,
    /// For all words up to here.
    UpTo(u64),
    /// They were told, and the recogniser may take them back.
    ToldEagerly(u64),
    /// They were told.
    Told,
}

/// What follows from an event of recognition.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Said {
    /// All words of a stretch so far; they may change.
    Interim { segment: SegmentId, text: String },
    /// All words of a stretch that was asked for.
    Final {
        segment: SegmentId,
        text: String,
        confidence: Option<f32>,
        may_be_music: bool,
    },
    /// Words where no stretch waits for any.
    Beside {
        range: Range<u64>,
        text: String,
        confidence: Option<f32>,
    },
    /// A stretch that was asked for gets no words.
    Failed {
        segment: SegmentId,
        error: ProviderError,
    },
    /// The turn that ends with this stretch may be over, or is.
    EndOfTurn {
        segment: SegmentId,
        is_certain: bool,
    },
    /// It is not; its words are waited for again.
    Resumed { segment: SegmentId },
    /// Something went wrong that concerns no speech.
    Trouble(ProviderError),
}

/// The stretches of speech that wait for words, in the order in which they were said.
#[derive(Debug, Default)]
pub(super) struct Alignment {
    stretches: VecDeque<Stretch>,
    /// All words before this position are known.
    settled: u64,
}

impl Alignment {
    /// Speech has begun.
    pub fn started(&mut self, id: SegmentId, from: u64) {
        if self.stretches.len() == MOST_STRETCHES {
            self.stretches.pop_front();
        }
        self.stretches.push_back(Stretch {
            id,
            from,
            end: None,
            finals: Vec::new(),
            state: Asked::No,
            may_be_music: false,
            ends_turn: false,
        });
    }

    /// The speaker goes on after a pause: words that were told do not count any more.
    pub fn resumed(&mut self) {
        if let Some(open) = self.stretches.back_mut().filter(|s| s.end.is_none()) {
            open.state = Asked::No;
            open.ends_turn = false;
        }
    }

    /// Speech is over.
    pub fn ended(&mut self, end: u64) {
        if let Some(open) = self.stretches.back_mut().filter(|s| s.end.is_none()) {
            open.end = Some(end.max(open.from));
        }
    }

    /// The words of a stretch up to `to` are wanted. Answers where it begins, and appends what is
    /// known already.
    pub fn ask(
        &mut self,
        id: SegmentId,
        to: u64,
        may_be_music: bool,
        said: &mut Vec<Said>,
    ) -> Option<u64> {
        let stretch = self.stretches.iter_mut().find(|stretch| stretch.id == id)?;
        stretch.state = Asked::UpTo(to);
        stretch.may_be_music = may_be_music;
        let from = stretch.from;
        self.tell_settled(said);
        Some(from)
    }

    /// Somebody has told what is in it without asking.
    pub fn told(&mut self, id: SegmentId) {
        if let Some(stretch) = self.stretches.iter_mut().find(|stretch| stretch.id == id) {
            stretch.state = Asked::Told;
        }
    }

    /// Nobody waits for them any more. Answers where it begins.
    pub fn dropped(&mut self, id: SegmentId) -> Option<u64> {
        let stretch = self.stretches.iter_mut().find(|stretch| stretch.id == id)?;
        stretch.state = Asked::No;
        Some(stretch.from)
    }

    /// Takes what recognition says and appends what follows.
    pub fn heard(&mut self, event: SttEvent, said: &mut Vec<Said>) {
        match event {
            SttEvent::Interim { range, text } => {
                if let Some(stretch) = self.waiting_for(&range) {
                    let text = joined(&stretch.finals, Some(&text));
                    let segment = stretch.id;
                    said.push(Said::Interim { segment, text });
                }
            }
            SttEvent::Final {
                range,
                text,
                confidence,
                words,
            } => {
                let range = narrowed(range, &words);
                let words = Words {
                    range,
                    text,
                    confidence,
                };
                self.final_words(words, said);
            }
            SttEvent::Settled { up_to } => {
                self.settled = self.settled.max(up_to);
                self.tell_settled(said);
            }
            SttEvent::EndOfTurn { eager, .. } => self.end_of_turn(eager, said),
            SttEvent::TurnResumed => {
                for stretch in &mut self.stretches {
                    if let Asked::ToldEagerly(to) = stretch.state {
                        stretch.state = Asked::UpTo(to);
                        let segment = stretch.id;
                        said.push(Said::Resumed { segment });
                    }
                }
            }
            SttEvent::Failed { range, error } => {
                let mut concerns = false;
                for stretch in &mut self.stretches {
                    let is_meant = range
                        .as_ref()
                        .is_none_or(|range| range.start == stretch.from);
                    if is_meant && matches!(stretch.state, Asked::UpTo(_)) {
                        stretch.state = Asked::No;
                        concerns = true;
                        let (segment, error) = (stretch.id, error.clone());
                        said.push(Said::Failed { segment, error });
                    }
                }
                if !concerns {
                    said.push(Said::Trouble(error));
                }
            }
            SttEvent::Trouble(error) => said.push(Said::Trouble(error)),
            SttEvent::SpeechStarted { .. } | SttEvent::Usage(_) => {}
        }
    }

    /// The stretch that words at `range` belong to, among those that still take words: the last one
    /// in which many of them lie. After an eager end of turn it is the last that was told.
    fn waiting_for(&mut self, range: &Range<u64>) -> Option<&mut Stretch> {
        let is_eager = |stretch: &Stretch| matches!(stretch.state, Asked::ToldEagerly(_));
        if let Some(at) = self.stretches.iter().rposition(is_eager) {
            return self.stretches.get_mut(at);
        }
        let overlap = |stretch: &Stretch| {
            let from = stretch.from.saturating_sub(BESIDE).max(range.start);
            let end = stretch.end.map_or(u64::MAX, |end| end + BESIDE);
            let is_candidate = stretch.takes_words();
            (end.min(range.end) + 1).saturating_sub(from) * u64::from(is_candidate)
        };
        let most = self.stretches.iter().map(overlap).max()?;
        let fits = |stretch: &Stretch| overlap(stretch) > 0 && overlap(stretch) * 2 >= most;
        let at = self.stretches.iter().rposition(fits)?;
        self.stretches.get_mut(at)
    }

    fn final_words(&mut self, words: Words, said: &mut Vec<Said>) {
        if let Some(stretch) = self.waiting_for(&words.range) {
            // All of its words will be told at once, or have been.
            let is_complete = match stretch.state {
                Asked::UpTo(to) => words.range.end >= to,
                state => matches!(state, Asked::ToldEagerly(_)),
            };
            let replaces = |old: &Words| {
                words.range.start <= old.range.start && words.range.end >= old.range.end
            };
            stretch.finals.retain(|old| !replaces(old));
            stretch.finals.push(words);
            if !is_complete {
                let text = joined(&stretch.finals, None);
                let segment = stretch.id;
                said.push(Said::Interim { segment, text });
            }
        } else if !words.text.trim().is_empty() {
            said.push(Said::Beside {
                range: words.range,
                text: words.text,
                confidence: words.confidence,
            });
        }
    }

    /// Tells the words of the stretches for which all of them are known.
    fn tell_settled(&mut self, said: &mut Vec<Said>) {
        let settled = self.settled;
        for stretch in &mut self.stretches {
            let is_settled = match stretch.state {
                Asked::UpTo(to) | Asked::ToldEagerly(to) => settled >= to,
                Asked::No | Asked::Told => false,
            };
            if is_settled {
                stretch.state = Asked::Told;
                said.push(stretch.final_words());
                if stretch.ends_turn {
                    said.push(Said::EndOfTurn {
                        segment: stretch.id,
                        is_certain: true,
                    });
                }
            }
        }
    }

    fn end_of_turn(&mut self, eager: Option<String>, said: &mut Vec<Said>) {
        let is_certain = eager.is_none();
        let Some(last) = self.stretches.back_mut() else {
            return;
        };
        let segment = last.id;
        if let Some(text) = eager {
            if !matches!(last.state, Asked::UpTo(_)) {
                return;
            }
            // The words of the whole turn stand in its last stretch.
            for stretch in &mut self.stretches {
                if let Asked::UpTo(to) = stretch.state {
                    stretch.state = Asked::ToldEagerly(to);
                    said.push(Said::Final {
                        segment: stretch.id,
                        text: match stretch.id == segment {
                            true => joined(&stretch.finals, Some(&text)),
                            false => joined(&stretch.finals, None),
                        },
                        confidence: None,
                        may_be_music: stretch.may_be_music,
                    });
                }
            }
        }
        let is_told = self
            .stretches
            .back()
            .is_some_and(|last| !is_certain || last.state == Asked::Told);
        if is_told {
            said.push(Said::EndOfTurn {
                segment,
                is_certain,
            });
        } else if let Some(last) = self.stretches.back_mut() {
            // Its words are told when they are asked for.
            last.ends_turn = true;
        }
    }
}

impl Stretch {
    /// Words that come after the others were told are new to whoever was told.
    fn takes_words(&self) -> bool {
        self.state != Asked::Told && (self.end.is_none() || self.state != Asked::No)
    }

    fn final_words(&self) -> Said {
        Said::Final {
            segment: self.id,
            text: joined(&self.finals, None),
            confidence: self
                .finals
                .iter()
                .filter_map(|words| words.confidence)
                .reduce(f32::min),
            may_be_music: self.may_be_music,
        }
    }
}

/// All words, in order.
fn joined(finals: &[Words], interim: Option<&str>) -> String {
    let texts = finals
        .iter()
        .map(|words| words.text.as_str())
        .chain(interim);
    let texts: Vec<&str> = texts
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .collect();
    texts.join(" ")
}

/// Where the words are, when it is known better than where they were looked for.
fn narrowed(range: Range<u64>, words: &[Word]) -> Range<u64> {
    match (words.first(), words.last()) {
        (Some(first), Some(last)) if first.range.start < last.range.end => {
            first.range.start..last.range.end
        }
        _ => range,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIRST: SegmentId = SegmentId(0);
    const SECOND: SegmentId = SegmentId(1);

    fn words(range: Range<u64>, text: &str) -> SttEvent {
        SttEvent::Final {
            range,
            text: text.to_owned(),
            confidence: None,
            words: Vec::new(),
        }
    }

    fn told(segment: SegmentId, text: &str) -> Said {
        Said::Final {
            segment,
            text: text.to_owned(),
            confidence: None,
            may_be_music: false,
        }
    }

    fn heard(alignment: &mut Alignment, event: SttEvent) -> Vec<Said> {
        let mut said = Vec::new();
        alignment.heard(event, &mut said);
        said
    }

    fn ask(alignment: &mut Alignment, id: SegmentId, to: u64) -> Vec<Said> {
        let mut said = Vec::new();
        alignment
            .ask(id, to, false, &mut said)
            .expect("it is known");
        said
    }

    #[test]
    fn final_words_are_added_to_each_other_and_told_when_they_are_wanted() {
        let mut alignment = Alignment::default();
        alignment.started(FIRST, 1_000);
        let said = heard(&mut alignment, words(0..20_000, "I want"));
        assert_eq!(
            said,
            [Said::Interim {
                segment: FIRST,
                text: "I want".to_owned()
            }]
        );
        let interim = SttEvent::Interim {
            range: 20_000..30_000,
            text: "a plan".to_owned(),
        };
        let said = heard(&mut alignment, interim);
        assert_eq!(
            said,
            [Said::Interim {
                segment: FIRST,
                text: "I want a plan".to_owned()
            }]
        );
        assert_eq!(ask(&mut alignment, FIRST, 31_000), []);
        assert_eq!(heard(&mut alignment, words(20_000..32_000, "a plan.")), []);
        let said = heard(&mut alignment, SttEvent::Settled { up_to: 32_000 });
        assert_eq!(said, [told(FIRST, "I want a plan.")]);
    }

    #[test]
    fn words_that_were_there_before_they_are_wanted_are_told_at_once() {
        let mut alignment = Alignment::default();
        alignment.started(FIRST, 1_000);
        heard(&mut alignment, words(0..20_000, "Yes."));
        heard(&mut alignment, SttEvent::Settled { up_to: 20_000 });
        assert_eq!(ask(&mut alignment, FIRST, 19_000), [told(FIRST, "Yes.")]);
    }

    #[test]
    fn an_answer_about_all_of_the_speech_replaces_those_about_its_beginning() {
        let mut alignment = Alignment::default();
        alignment.started(FIRST, 1_000);
        ask(&mut alignment, FIRST, 9_000);
        heard(&mut alignment, words(1_000..9_000, "I want"));
        let said = heard(&mut alignment, SttEvent::Settled { up_to: 9_000 });
        assert_eq!(said, [told(FIRST, "I want")]);
        alignment.resumed();
        alignment.ended(30_000);
        ask(&mut alignment, FIRST, 30_000);
        heard(&mut alignment, words(1_000..30_000, "I want a plan"));
        let said = heard(&mut alignment, SttEvent::Settled { up_to: 30_000 });
        assert_eq!(said, [told(FIRST, "I want a plan")]);
    }

    #[test]
    fn words_where_nobody_was_heard_and_words_that_come_late_are_not_lost() {
        let mut alignment = Alignment::default();
        let beside = |range: Range<u64>, text: &str| {
            [Said::Beside {
                range,
                text: text.to_owned(),
                confidence: None,
            }]
        };
        let said = heard(&mut alignment, words(100..8_000, "Hello?"));
        assert_eq!(said, beside(100..8_000, "Hello?"));
        alignment.started(FIRST, 100_000);
        alignment.ended(120_000);
        ask(&mut alignment, FIRST, 120_000);
        // Long before this speech.
        let said = heard(&mut alignment, words(50_000..60_000, "um"));
        assert_eq!(said, beside(50_000..60_000, "um"));
        heard(&mut alignment, SttEvent::Settled { up_to: 120_000 });
        let said = heard(&mut alignment, words(110_000..125_000, "late"));
        assert_eq!(said, beside(110_000..125_000, "late"));
        assert_eq!(heard(&mut alignment, words(0..1, " ")), []);
    }

    #[test]
    fn the_places_of_the_words_tell_more_than_the_place_that_was_searched() {
        let mut alignment = Alignment::default();
        alignment.started(FIRST, 10_000);
        alignment.ended(20_000);
        ask(&mut alignment, FIRST, 20_000);
        alignment.started(SECOND, 60_000);
        let event = SttEvent::Final {
            range: 0..90_000,
            text: "Second".to_owned(),
            confidence: Some(0.5),
            words: vec![Word {
                text: "Second".to_owned(),
                range: 61_000..70_000,
            }],
        };
        assert_eq!(
            heard(&mut alignment, event),
            [Said::Interim {
                segment: SECOND,
                text: "Second".to_owned()
            }]
        );
    }

    #[test]
    fn an_end_of_turn_follows_the_words_and_can_be_taken_back() {
        let eager = |text: &str| SttEvent::EndOfTurn {
            probability: None,
            eager: Some(text.to_owned()),
        };
        let certain = || SttEvent::EndOfTurn {
            probability: None,
            eager: None,
        };
        let end = |is_certain| Said::EndOfTurn {
            segment: FIRST,
            is_certain,
        };
        let mut alignment = Alignment::default();
        alignment.started(FIRST, 1_000);
        alignment.ended(20_000);
        ask(&mut alignment, FIRST, 20_000);
        let said = heard(&mut alignment, eager("My number is"));
        assert_eq!(said, [told(FIRST, "My number is"), end(false)]);
        let said = heard(&mut alignment, SttEvent::TurnResumed);
        assert_eq!(said, [Said::Resumed { segment: FIRST }]);
        let said = heard(&mut alignment, eager("My number is five"));
        assert_eq!(said, [told(FIRST, "My number is five"), end(false)]);
        assert_eq!(
            heard(&mut alignment, words(0..25_000, "My number is five.")),
            []
        );
        let said = heard(&mut alignment, SttEvent::Settled { up_to: 25_000 });
        assert_eq!(said, [told(FIRST, "My number is five.")]);
        assert_eq!(heard(&mut alignment, certain()), [end(true)]);
        // Before voice activity detection has noticed the end.
        let mut alignment = Alignment::default();
        alignment.started(FIRST, 1_000);
        heard(&mut alignment, words(0..18_000, "Bye."));
        heard(&mut alignment, SttEvent::Settled { up_to: 18_000 });
        assert_eq!(heard(&mut alignment, certain()), []);
        assert_eq!(
            ask(&mut alignment, FIRST, 17_000),
            [told(FIRST, "Bye."), end(true)]
        );
    }

    #[test]
    fn a_failure_is_told_to_those_who_wait() {
        let failed = |range: Option<Range<u64>>| SttEvent::Failed {
            range,
            error: ProviderError::temporary("down"),
        };
        let mut alignment = Alignment::default();
        let said = heard(&mut alignment, failed(None));
        assert_eq!(said, [Said::Trouble(ProviderError::temporary("down"))]);
        alignment.started(FIRST, 1_000);
        alignment.ended(2_000);
        ask(&mut alignment, FIRST, 2_000);
        let said = heard(&mut alignment, failed(Some(1_000..2_000)));
        let error = ProviderError::temporary("down");
        assert_eq!(
            said,
            [Said::Failed {
                segment: FIRST,
                error
            }]
        );
    }

    proptest! {
        /// Each final word is told once: with a stretch, or beside all of them.
        #[test]
        fn no_word_is_lost_and_none_is_told_twice(
            steps in prop::collection::vec((0u8..6, 1u64..40_000), 1..60),
        ) {
            let mut alignment = Alignment::default();
            let (mut at, mut next, mut open, mut settled, mut count) = (0u64, 0u32, None, 0u64, 0);
            let mut said = Vec::new();
            for (step, length) in steps {
                at += length;
                match step {
                    0 if open.is_none() => {
                        open = Some(SegmentId(next));
                        alignment.started(SegmentId(next), at);
                        next += 1;
                    }
                    1 | 2 => if let Some(id) = open.take() {
                        alignment.ended(at);
                        alignment.ask(id, at, false, &mut said);
                    },
                    3 => if let Some(id) = open {
                        alignment.resumed();
                        alignment.ask(id, at, false, &mut said);
                    },
                    _ => {
                        let event = words(settled..at, &format!("w{count}w"));
                        count += 1;
                        settled = at;
                        alignment.heard(event, &mut said);
                        alignment.heard(SttEvent::Settled { up_to: settled }, &mut said);
                    }
                }
            }
            if let Some(id) = open {
                alignment.ended(at);
                alignment.ask(id, at, false, &mut said);
            }
            alignment.heard(SttEvent::Settled { up_to: at }, &mut said);
            // A stretch is told with all of its words, perhaps more than once: the last counts.
            let mut texts = std::collections::BTreeMap::new();
            let mut all = String::new();
            for said in said {
                match said {
                    Said::Final { segment, text, .. } => { texts.insert(segment, text); }
                    Said::Beside { text, .. } => { all.push_str(&text); all.push(' '); }
                    _ => {}
                }
            }
            for text in texts.values() {
                all.push_str(text);
                all.push(' ');
            }
            for number in 0..count {
                let word = format!("w{number}w");
                prop_assert_eq!(all.matches(&word).count(), 1, "{} in {}", word, all);
            }
        }
    }
}
