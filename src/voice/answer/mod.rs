//! Who has answered a call that was placed from here: a person, a voicemail, a menu, a fax. Pure.
//!
//! [`AnswerDetector`] is told what is heard, and when; it never waits. People pick up, say a word
//! or two and wait for an answer; machines go on. So it decides by how long the other party speaks
//! before a pause, by phrases that only one of them says (`phrases`), and by tones (`tone`).
//! Words are a help and not needed. Whoever is not known to be a machine is a person: a machine
//! that is greeted costs a sentence, a person who is hung up on is lost.
//!
//! The numbers are starting values of others: LiveKit Agents (`voice/amd/`: speech of up to 2.5 s
//! and then 0.5 s of silence is a person, 1.5 s of silence ends a machine's greeting, 20 s at most,
//! and 10 s in which it may change its mind), jambonz (`lib/utils/amd-utils.js`: nine words are a
//! machine, 5 s without speech), Asterisk (`app_amd.c`: shorter than 100 ms is no word).

mod phrases;
mod tone;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::phrases::Weight;
pub use self::tone::{Tone, ToneListener};
use super::turn::Time;
pub use crate::session::AnsweredBy;

/// Speech of up to this length is a person's greeting …
const HUMAN_SPEECH: Duration = Duration::from_millis(2_500);

/// … when this silence follows.
const HUMAN_SILENCE: Duration = Duration::from_millis(500);

/// The same after a bare "hello?", whose words are known.
const HELLO_SILENCE: Duration = Duration::from_millis(300);

/// After longer speech, this silence says that all of it was heard.
const MACHINE_SILENCE: Duration = Duration::from_millis(1_500);

/// The same where its words are still to come.
const WORDLESS_SILENCE: Duration = Duration::from_millis(3_000);

/// So many words before the first answer are a machine's, when nothing else tells.
const MACHINE_WORDS: usize = 9;

/// So many are, though it has not ended.
const MANY_WORDS: usize = 22;

/// Speech without known words is a machine's from this length on.
const MACHINE_SPEECH: Duration = Duration::from_millis(4_500);

/// Nobody goes on for so long without a pause of [`MACHINE_SILENCE`], except machines.
const LONG_SPEECH: Duration = Duration::from_millis(7_500);

/// A shorter sound is a click.
const SHORTEST_WORD: Duration = Duration::from_millis(100);

/// After this, nobody will say anything.
const NO_SPEECH: Duration = Duration::from_secs(5);

/// Whoever is still unknown after this is a person.
const DECISION_LIMIT: Duration = Duration::from_secs(20);

/// How long who was taken for a person may still turn out to be a machine: exchanges say who is not
/// there digit by digit, and "after the tone" comes 10 to 11 s later.
const REVISION: Duration = Duration::from_secs(15);

/// A beep is a verdict when so much was said before it: a vowel that is held can sound like one,
/// and people say less.
const SPEECH_BEFORE_BEEP: Duration = Duration::from_secs(2);

/// A longer tone is no beep.
const LONGEST_BEEP: Duration = Duration::from_secs(3);

/// How long a beep, or silence, is waited for before no message is left.
const MESSAGE_LIMIT: Duration = Duration::from_secs(60);

/// The tone of a fax machine that answers (ITU-T T.30: CED, 2.6 to 4 s) …
const CED_HZ: f32 = 2_100.0;
const CED: Duration = Duration::from_millis(1_000);

/// … and of one that calls (CNG, 0.5 s every 3.5 s), both within so many Hz.
const CNG_HZ: f32 = 1_100.0;
const FAX_OFF_HZ: f32 = 30.0;
const CNG_MS: std::ops::RangeInclusive<u128> = 400..=650;

/// The special information tones before an announcement of the network (ITU-T E.180).
const INFORMATION_HZ: [(f32, f32); 3] = [(900.0, 1_000.0), (1_350.0, 1_450.0), (1_730.0, 1_830.0)];

/// More text than this is not kept.
const MAX_TEXT: usize = 2_000;

/// What to do about a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachinePolicy {
    /// Hang up.
    #[default]
    HangUp,
    /// Leave a message after the beep, and hang up.
    LeaveMessage,
    /// Talk to it as to a person.
    Continue,
}

/// What a conversation does about whoever answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerPlan {
    /// About a voicemail. A machine that takes no message is hung up on unless this is
    /// [`MachinePolicy::Continue`].
    pub voicemail: MachinePolicy,
    /// About a menu: hang up or continue.
    pub ivr: MachinePolicy,
    /// What is said to a voicemail.
    pub message: String,
    /// How long after the end of the beep it begins.
    pub after_beep: Duration,
    /// How long nothing is said before it begins without a beep.
    pub silence_before_message: Duration,
}

impl AnswerPlan {
    /// What is to be done about whoever has answered.
    pub fn about(&self, who: AnsweredBy) -> MachinePolicy {
        match who {
            AnsweredBy::Human | AnsweredBy::NoSpeech => MachinePolicy::Continue,
            AnsweredBy::Voicemail => self.voicemail,
            AnsweredBy::Ivr => self.ivr,
            AnsweredBy::Unavailable | AnsweredBy::MailboxFull => match self.voicemail {
                MachinePolicy::Continue => MachinePolicy::Continue,
                MachinePolicy::HangUp | MachinePolicy::LeaveMessage => MachinePolicy::HangUp,
            },
            AnsweredBy::Fax => MachinePolicy::HangUp,
        }
    }
}

/// Something that is heard of whoever has answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sign<'a> {
    /// The call is answered: from here on the limits count.
    Answered,
    /// Somebody, or something, has begun to speak.
    SpeechStarted {
        /// When.
        onset: Time,
    },
    /// They have stopped.
    SpeechEnded {
        /// When.
        end: Time,
    },
    /// Words of theirs.
    Words {
        /// All words of one stretch of speech, as far as they are known.
        text: &'a str,
        /// They will not change; else the next words replace them.
        is_final: bool,
    },
    /// A tone, just now.
    Tone(Tone),
    /// A key of the telephone was pressed.
    Key,
}

/// Why it was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A few words, then silence.
    ShortGreeting,
    /// What was said.
    Words,
    /// Longer than a person's greeting, then silence.
    LongGreeting,
    /// Speech that does not end.
    LongSpeech,
    /// A tone after speech.
    Beep,
    /// The tone of a fax machine.
    FaxTone,
    /// The tones before an announcement of the network.
    InformationTones,
    /// Somebody has pressed a key.
    Key,
    /// Nobody has said anything.
    Silence,
    /// The time for it is over.
    TimeOver,
}

impl Reason {
    /// As records and logs have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ShortGreeting => "short_greeting",
            Self::Words => "words",
            Self::LongGreeting => "long_greeting",
            Self::LongSpeech => "long_speech",
            Self::Beep => "beep",
            Self::FaxTone => "fax_tone",
            Self::InformationTones => "information_tones",
            Self::Key => "key",
            Self::Silence => "silence",
            Self::TimeOver => "time_over",
        }
    }
}

/// Who has answered, and why that is thought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Who.
    pub answered_by: AnsweredBy,
    /// Why.
    pub reason: Reason,
    /// How long after the answer.
    pub after: Duration,
}

/// Something that was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// Who has answered; a later one corrects it.
    Verdict(Verdict),
    /// Now is the time for the message.
    MessageTime,
    /// There was none.
    NoMessageTime,
}

/// Whether the time for a message is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    NotWanted,
    WaitedFor { since: Time },
    Over,
}

/// Finds out who has answered.
#[derive(Debug)]
pub struct AnswerDetector {
    after_beep: Duration,
    silence_before_message: Duration,
    answered: Time,
    /// When they first said something.
    first_onset: Option<Time>,
    speaking_since: Option<Time>,
    last_end: Option<Time>,
    finals: String,
    interim: String,
    /// When words came last.
    words_at: Option<Time>,
    /// What a tone or a key has told.
    told: Option<(AnsweredBy, Reason)>,
    /// How many information tones there were in a row.
    information_tones: usize,
    fax_calls: u32,
    /// There is a tone, which may be the beep.
    in_tone: bool,
    /// When the last beep was over.
    beep_over: Option<Time>,
    verdict: Option<(Verdict, Time)>,
    message: Message,
}

impl AnswerDetector {
    /// A detector for a call that has just been answered, with the plan's times for a message.
    pub fn new(plan: &AnswerPlan) -> Self {
        Self {
            after_beep: plan.after_beep,
            silence_before_message: plan.silence_before_message,
            answered: Time::ZERO,
            first_onset: None,
            speaking_since: None,
            last_end: None,
            finals: String::new(),
            interim: String::new(),
            words_at: None,
            told: None,
            information_tones: 0,
            fax_calls: 0,
            in_tone: false,
            beep_over: None,
            verdict: None,
            message: Message::NotWanted,
        }
    }

    /// Who has answered, as far as that is known.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict.map(|(verdict, _)| verdict)
    }

    /// Whether nothing that is heard changes anything any more.
    pub fn is_settled(&self, now: Time) -> bool {
        let is_late = self.verdict.is_some_and(|(_, at)| now > at + REVISION);
        is_late && !matches!(self.message, Message::WaitedFor { .. })
    }

    /// From now on, the time for a message is looked for.
    pub fn wait_for_message(&mut self, now: Time) {
        if self.message == Message::NotWanted {
            self.message = Message::WaitedFor { since: now };
        }
    }

    /// Takes what is heard. Ask [`Self::poll`] after it.
    pub fn note(&mut self, now: Time, sign: Sign<'_>) {
        match sign {
            Sign::Answered => {
                if self.first_onset.is_none() && self.verdict.is_none() {
                    self.answered = now;
                }
            }
            Sign::SpeechStarted { onset } => {
                self.speaking_since.get_or_insert(onset);
                self.first_onset.get_or_insert(onset);
                self.beep_over = None;
            }
            Sign::SpeechEnded { end } => {
                let Some(since) = self.speaking_since.take() else {
                    return;
                };
                let is_click = end.saturating_sub(since) < SHORTEST_WORD;
                if is_click && self.last_end.is_none() {
                    self.first_onset = None;
                } else {
                    self.last_end = Some(end);
                }
            }
            Sign::Words { text, is_final } => {
                self.words_at = Some(now);
                self.interim.clear();
                let kept = match is_final {
                    true => &mut self.finals,
                    false => &mut self.interim,
                };
                let room = MAX_TEXT.saturating_sub(kept.len());
                kept.push_str(&text[..text.floor_char_boundary(room)]);
                kept.push(' ');
            }
            Sign::Tone(tone) => self.note_tone(now, tone),
            Sign::Key => self.told = Some((AnsweredBy::Human, Reason::Key)),
        }
    }

    fn note_tone(&mut self, now: Time, tone: Tone) {
        let is_near = |hz: f32| (tone.frequency_hz - hz).abs() <= FAX_OFF_HZ;
        if is_near(CED_HZ) && tone.lasted >= CED {
            self.told = Some((AnsweredBy::Fax, Reason::FaxTone));
            return;
        }
        self.in_tone = !tone.is_over && tone.lasted <= LONGEST_BEEP;
        if !tone.is_over {
            self.beep_over = None;
            return;
        }
        if is_near(CNG_HZ) && CNG_MS.contains(&tone.lasted.as_millis()) {
            self.fax_calls += 1;
            // After speech, one may be the beep of a voicemail.
            if self.first_onset.is_none() || self.fax_calls > 1 {
                self.told = Some((AnsweredBy::Fax, Reason::FaxTone));
                return;
            }
        }
        let is_information = |at: usize| {
            INFORMATION_HZ
                .get(at)
                .is_some_and(|(from, to)| (*from..=*to).contains(&tone.frequency_hz))
        };
        self.information_tones = match is_information(self.information_tones) {
            true => self.information_tones + 1,
            false => usize::from(is_information(0)),
        };
        if self.information_tones == INFORMATION_HZ.len() {
            self.told = Some((AnsweredBy::Unavailable, Reason::InformationTones));
            return;
        }
        if tone.lasted > LONGEST_BEEP {
            return;
        }
        let said_much = self.spoken(now) >= SPEECH_BEFORE_BEEP;
        if said_much || self.message != Message::NotWanted {
            self.beep_over = Some(now);
        }
        if said_much && self.verdict.is_none() {
            self.told = Some((AnsweredBy::Voicemail, Reason::Beep));
        }
    }

    /// What has been found out by `now`; each finding once, so ask until there is none.
    pub fn poll(&mut self, now: Time) -> Option<Finding> {
        if let Some((answered_by, reason)) = self.judge(now) {
            let verdict = Verdict {
                answered_by,
                reason,
                after: now.saturating_sub(self.answered),
            };
            self.verdict = Some((verdict, now));
            return Some(Finding::Verdict(verdict));
        }
        let Message::WaitedFor { since } = self.message else {
            return None;
        };
        let finding = if self.message_at().is_some_and(|at| now >= at) {
            Finding::MessageTime
        } else if now >= since + MESSAGE_LIMIT {
            Finding::NoMessageTime
        } else {
            return None;
        };
        self.message = Message::Over;
        Some(finding)
    }

    /// When to ask [`Self::poll`] again, if nothing is heard before. May have passed.
    pub fn deadlines(&self) -> impl Iterator<Item = Time> {
        let quiet_since = self.last_end.filter(|_| self.speaking_since.is_none());
        let mut all = Vec::new();
        if self.verdict.is_none() {
            all.push(self.answered + DECISION_LIMIT);
            match self.first_onset {
                None => all.push(self.answered + NO_SPEECH),
                Some(onset) => all.push(onset + LONG_SPEECH),
            }
            let silences = [
                HELLO_SILENCE,
                HUMAN_SILENCE,
                MACHINE_SILENCE,
                WORDLESS_SILENCE,
            ];
            all.extend(
                quiet_since
                    .iter()
                    .flat_map(|it| silences.map(|silence| *it + silence)),
            );
        }
        if let Message::WaitedFor { since } = self.message {
            all.push(since + MESSAGE_LIMIT);
            all.extend(self.message_at());
        }
        all.into_iter()
    }

    /// When the message may begin, as far as that is known.
    fn message_at(&self) -> Option<Time> {
        let Message::WaitedFor { since } = self.message else {
            return None;
        };
        if self.speaking_since.is_some() || self.in_tone {
            return None;
        }
        let after_beep = self.beep_over.map(|over| over + self.after_beep);
        let quiet_since = self.last_end.unwrap_or(since);
        after_beep.or(Some(quiet_since + self.silence_before_message))
    }

    /// From the first to the last sound of their speech.
    fn spoken(&self, now: Time) -> Duration {
        let end = match self.speaking_since {
            Some(_) => Some(now),
            None => self.last_end,
        };
        let (Some(from), Some(to)) = (self.first_onset, end) else {
            return Duration::ZERO;
        };
        to.saturating_sub(from)
    }

    fn text(&self) -> String {
        format!("{}{}", self.finals, self.interim)
    }

    /// A verdict, where there is a new one.
    fn judge(&mut self, now: Time) -> Option<(AnsweredBy, Reason)> {
        match self.verdict {
            None => self.told.take().or_else(|| self.first_verdict(now)),
            Some((verdict, at)) => {
                let told = self.told.take().filter(|(by, _)| *by == AnsweredBy::Fax);
                let may_change = match verdict.answered_by {
                    AnsweredBy::Human | AnsweredBy::NoSpeech => now <= at + REVISION,
                    // A mailbox says that it is full after it has said whose it is.
                    AnsweredBy::Voicemail => matches!(self.message, Message::WaitedFor { .. }),
                    _ => false,
                };
                let said = || {
                    let said = phrases::said(&self.text())?;
                    let is_news = match verdict.answered_by {
                        AnsweredBy::Voicemail => said.by == AnsweredBy::MailboxFull,
                        _ => said.by.is_machine() && said.weight == Weight::Certain,
                    };
                    is_news.then_some((said.by, Reason::Words))
                };
                told.filter(|_| verdict.answered_by != AnsweredBy::Fax && may_change)
                    .or_else(|| may_change.then(said).flatten())
            }
        }
    }

    fn first_verdict(&self, now: Time) -> Option<(AnsweredBy, Reason)> {
        use AnsweredBy::{Human, NoSpeech, Voicemail};
        if now >= self.answered + DECISION_LIMIT {
            return Some((Human, Reason::TimeOver));
        }
        let text = self.text();
        let said = phrases::said(&text);
        if let Some(said) = said
            && said.by.is_machine()
            && said.weight == Weight::Certain
        {
            return Some((said.by, Reason::Words));
        }
        if self.first_onset.is_none() {
            return (now >= self.answered + NO_SPEECH).then_some((NoSpeech, Reason::Silence));
        }
        let spoken = self.spoken(now);
        let quiet_for = self
            .last_end
            .filter(|_| self.speaking_since.is_none())
            .map_or(Duration::ZERO, |end| now.saturating_sub(end));
        let words = crate::voice::wording::word_count(&text);
        let is_silent_for = |silence: Duration| quiet_for >= silence;
        match said.map(|said| (said.by, said.weight)) {
            Some((Human, _)) => {
                return is_silent_for(HUMAN_SILENCE).then_some((Human, Reason::Words));
            }
            Some((AnsweredBy::Unavailable, _)) => {
                // More may follow, such as an offer to take a message.
                let is_all = is_silent_for(MACHINE_SILENCE) || spoken >= LONG_SPEECH;
                return is_all.then_some((AnsweredBy::Unavailable, Reason::Words));
            }
            Some((by, _)) => return is_silent_for(HUMAN_SILENCE).then_some((by, Reason::Words)),
            None => {}
        }
        if words >= MANY_WORDS || spoken >= LONG_SPEECH {
            return Some((Voicemail, Reason::LongSpeech));
        }
        if spoken <= HUMAN_SPEECH {
            let enough = match phrases::is_hello(&text) {
                true => HELLO_SILENCE,
                false => HUMAN_SILENCE,
            };
            return is_silent_for(enough).then_some((Human, Reason::ShortGreeting));
        }
        let words_known = self.words_at >= self.last_end;
        let is_all = is_silent_for(match words_known {
            true => MACHINE_SILENCE,
            false => WORDLESS_SILENCE,
        });
        let is_long = match words_known {
            true => words >= MACHINE_WORDS,
            false => spoken >= MACHINE_SPEECH,
        };
        is_all.then_some((
            if is_long { Voicemail } else { Human },
            Reason::LongGreeting,
        ))
    }
}

#[cfg(test)]
mod tests;
