//! Tracks what the caller has heard of one reply.
//!
//! The audio of a reply passes through a [`Playout`]: the synthesiser pushes it sentence by
//! sentence, the player takes it in frames. Each sample is assigned to its sentence, so that of an
//! interrupted reply exactly the words that were heard are recorded. Pure: [`Track`] adds the
//! waiting.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::providers::tts::WordTime;

/// Limit of buffered audio; no more is fetched from the synthesiser.
const MAX_WAITING: Duration = Duration::from_secs(8);

/// Audio that was sent to the output and is kept in case it must be sent again after a pause. More
/// than the output ever queues.
const KEPT: Duration = Duration::from_secs(1);

/// Approximate speaking rate; used for a sentence whose audio is not complete yet.
const CHARS_PER_SECOND: f64 = 15.0;

/// One sentence of the reply.
#[derive(Debug, Clone, PartialEq)]
struct Sentence {
    text: String,
    /// The step of the model that it came from; each round of tool calls begins a new one.
    step: usize,
    /// Samples so far.
    samples: u64,
    /// Whether all its audio is buffered.
    complete: bool,
    /// For each word with a reported time: where it ends in the text, and the sample in its middle.
    words: Vec<(usize, u64)>,
}

/// Whether audio may be sent to the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlayMode {
    /// Not yet: the turn is not over.
    Held,
    /// Yes.
    Playing,
    /// Paused: the caller is speaking.
    Paused,
}

/// The heard part of one step of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeardText {
    /// The words that were played.
    pub text: String,
    /// Whether that is all of them.
    pub whole: bool,
}

/// The audio of one reply that is being played.
#[derive(Debug)]
pub struct Playout {
    rate: u32,
    sentences: Vec<Sentence>,
    waiting: VecDeque<i16>,
    /// The last samples that were taken, for [`Playout::rewind`].
    taken_tail: VecDeque<i16>,
    /// Samples taken by the player.
    taken: u64,
    /// No more audio will be pushed.
    finished: bool,
    mode: PlayMode,
}

impl Playout {
    /// An empty playout in mode `Held`, for an output of `rate` samples per second.
    pub fn new(rate: u32) -> Self {
        Self {
            rate: rate.max(1),
            sentences: Vec::new(),
            waiting: VecDeque::new(),
            taken_tail: VecDeque::new(),
            taken: 0,
            finished: false,
            mode: PlayMode::Held,
        }
    }

    /// The audio that follows belongs to this sentence.
    pub fn begin_sentence(&mut self, text: String, step: usize) {
        self.end_sentence();
        self.sentences.push(Sentence {
            text,
            step,
            samples: 0,
            complete: false,
            words: Vec::new(),
        });
    }

    /// Adds the times at which words of the sentence are spoken. Words that are not in its text are
    /// skipped: a voice may report how it has read a number.
    pub fn add_words(&mut self, words: &[WordTime]) {
        let rate = f64::from(self.rate);
        let Some(sentence) = self.sentences.last_mut() else {
            return;
        };
        for word in words {
            let from = sentence.words.last().map_or(0, |(end, _)| *end);
            let spoken = word.text.trim();
            let Some(at) = sentence.text[from..]
                .find(spoken)
                .filter(|_| !spoken.is_empty())
            else {
                continue;
            };
            let end = from + at + spoken.len();
            // Punctuation after a word belongs to it.
            let is_sign = |c: char| !c.is_whitespace() && !c.is_alphanumeric();
            let rest = &sentence.text[end..];
            let end = end + rest.len() - rest.trim_start_matches(is_sign).len();
            let middle = (word.from + word.to).as_secs_f64() / 2.0 * rate;
            sentence.words.push((end, middle as u64));
        }
    }

    /// All audio of the sentence has been pushed.
    pub fn end_sentence(&mut self) {
        if let Some(sentence) = self.sentences.last_mut() {
            sentence.complete = true;
        }
    }

    /// Pushes samples.
    pub fn push(&mut self, sound: &[i16]) {
        if let Some(sentence) = self.sentences.last_mut() {
            sentence.samples += sound.len() as u64;
            self.waiting.extend(sound);
        }
    }

    /// No more audio will be pushed.
    pub fn finish(&mut self) {
        self.end_sentence();
        self.finished = true;
    }

    /// Whether the synthesiser should wait.
    pub fn is_full(&self) -> bool {
        self.waiting.len() as u64 >= self.samples_in(MAX_WAITING)
    }

    /// Takes the next `count` samples into `frame`; at the end of the reply the last frame is
    /// padded with silence. False while there is nothing to take.
    pub fn take(&mut self, count: usize, frame: &mut Vec<i16>) -> bool {
        frame.clear();
        if self.mode != PlayMode::Playing
            || self.waiting.is_empty()
            || (self.waiting.len() < count && !self.finished)
        {
            return false;
        }
        let available = count.min(self.waiting.len());
        frame.extend(self.waiting.drain(..available));
        self.taken_tail.extend(frame.iter());
        let keep = self.samples_in(KEPT) as usize;
        let surplus = self.taken_tail.len().saturating_sub(keep);
        self.taken_tail.drain(..surplus);
        self.taken += available as u64;
        frame.resize(count, 0);
        true
    }

    /// Restores samples that were taken but not played, because the output was cleared.
    pub fn rewind(&mut self, unheard: Duration) {
        let back = (self.samples_in(unheard) as usize).min(self.taken_tail.len());
        for sample in self.taken_tail.drain(self.taken_tail.len() - back..).rev() {
            self.waiting.push_front(sample);
        }
        self.taken -= back as u64;
    }

    /// Whether all audio has been pushed and taken.
    pub fn is_drained(&self) -> bool {
        self.finished && self.waiting.is_empty()
    }

    /// Whether there is any audio.
    pub fn has_sound(&self) -> bool {
        self.sentences.iter().any(|sentence| sentence.samples > 0)
    }

    /// Whether the player may take.
    pub fn mode(&self) -> PlayMode {
        self.mode
    }

    /// Sets whether the player may take.
    pub fn set_mode(&mut self, mode: PlayMode) {
        self.mode = mode;
    }

    /// The sentences whose playback has begun, with `queued` of the audio still in the output.
    pub fn begun(&self, queued: Duration) -> impl Iterator<Item = &str> {
        let heard = self.heard_samples(queued);
        let mut start = 0;
        self.sentences.iter().filter_map(move |sentence| {
            let begun = heard > start;
            start += sentence.samples;
            begun.then_some(sentence.text.as_str())
        })
    }

    /// The words that were heard, by step, with `queued` of the audio still in the output.
    pub fn heard(&self, queued: Duration) -> Vec<HeardText> {
        let heard = self.heard_samples(queued);
        let mut steps: Vec<HeardText> = Vec::new();
        let mut start = 0;
        for sentence in &self.sentences {
            while steps.len() <= sentence.step {
                steps.push(HeardText {
                    text: String::new(),
                    whole: true,
                });
            }
            let step = &mut steps[sentence.step];
            let in_sentence = heard.saturating_sub(start);
            start += sentence.samples;
            let text =
                if sentence.complete && in_sentence >= sentence.samples && sentence.samples > 0 {
                    sentence.text.as_str()
                } else {
                    step.whole = false;
                    if !sentence.words.is_empty() {
                        let heard = sentence
                            .words
                            .iter()
                            .take_while(|(_, at)| *at < in_sentence);
                        let end = heard.last().map_or(0, |(end, _)| *end);
                        push_words(&mut step.text, &sentence.text[..end]);
                        continue;
                    }
                    let known = sentence.samples as f64;
                    let guessed = sentence.text.chars().count() as f64 / CHARS_PER_SECOND
                        * f64::from(self.rate);
                    let total = if sentence.complete {
                        known
                    } else {
                        known.max(guessed)
                    };
                    first_words(&sentence.text, in_sentence as f64 / total.max(1.0))
                };
            push_words(&mut step.text, text);
        }
        steps
    }

    /// Duration of the audio that was played, with `queued` still in the output.
    pub fn position(&self, queued: Duration) -> Duration {
        Duration::from_secs_f64(self.heard_samples(queued) as f64 / f64::from(self.rate))
    }

    fn heard_samples(&self, queued: Duration) -> u64 {
        self.taken.saturating_sub(self.samples_in(queued))
    }

    fn samples_in(&self, duration: Duration) -> u64 {
        (duration.as_secs_f64() * f64::from(self.rate)).round() as u64
    }
}

/// Adds words to others.
fn push_words(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push(' ');
    }
    text.push_str(more);
}

/// The words of which more than half was spoken when `share` of the audio was played.
fn first_words(text: &str, share: f64) -> &str {
    let chars = text.chars().count() as f64;
    let said = share.clamp(0.0, 1.0) * chars;
    let mut end = 0;
    let mut word_start = None;
    // One step beyond the last letter, so that the last word ends too.
    let steps = text
        .char_indices()
        .map(|(at, c)| (at, c.is_whitespace()))
        .chain([(text.len(), true)]);
    for (count, (at, is_space)) in steps.enumerate() {
        match (is_space, word_start) {
            (false, None) => word_start = Some(count),
            (true, Some(start)) => {
                let middle = (start + count) as f64 / 2.0;
                if middle >= said {
                    break;
                }
                end = at;
                word_start = None;
            }
            _ => {}
        }
    }
    text[..end].trim_end()
}

/// A shared [`Playout`] with async waiting. Its lock is held for one method at a time and never
/// across an await.
#[derive(Debug)]
pub struct Track {
    playout: Mutex<Playout>,
    /// Wakes the player.
    for_player: Notify,
    /// Wakes the synthesiser.
    for_writer: Notify,
}

impl Track {
    /// An empty track.
    pub fn new(rate: u32) -> Self {
        Self {
            playout: Mutex::new(Playout::new(rate)),
            for_player: Notify::new(),
            for_writer: Notify::new(),
        }
    }

    /// Locks the playout.
    pub fn lock(&self) -> MutexGuard<'_, Playout> {
        // Every method leaves the playout consistent, so a panic elsewhere does not make it
        // unusable.
        self.playout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the mode.
    pub fn set_mode(&self, mode: PlayMode) {
        self.lock().set_mode(mode);
        self.for_player.notify_one();
    }

    /// Pushes samples, and waits while the buffer is full.
    pub async fn push(&self, sound: &[i16]) {
        self.lock().push(sound);
        self.for_player.notify_one();
        while self.lock().is_full() {
            self.for_writer.notified().await;
        }
    }

    /// No more audio will be pushed.
    pub fn finish(&self) {
        self.lock().finish();
        self.for_player.notify_one();
    }

    /// Waits for the next frame. False at the end of the reply.
    pub async fn next_frame(&self, count: usize, frame: &mut Vec<i16>) -> bool {
        loop {
            {
                let mut playout = self.lock();
                if playout.take(count, frame) {
                    self.for_writer.notify_one();
                    return true;
                }
                if playout.is_drained()
                    && (playout.mode() == PlayMode::Playing || !playout.has_sound())
                {
                    return false;
                }
            }
            self.for_player.notified().await;
        }
    }

    /// Waits until the mode is not `Playing`.
    pub async fn stopped(&self) {
        while self.lock().mode() == PlayMode::Playing {
            self.for_player.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 1_000;

    fn playing() -> Playout {
        let mut playout = Playout::new(RATE);
        playout.set_mode(PlayMode::Playing);
        playout
    }

    fn text(heard: &[HeardText]) -> Vec<(&str, bool)> {
        heard
            .iter()
            .map(|step| (step.text.as_str(), step.whole))
            .collect()
    }

    #[test]
    fn an_interrupted_reply_is_recorded_up_to_the_word_that_was_heard() {
        let mut playout = playing();
        playout.begin_sentence("We open at nine.".to_owned(), 0);
        playout.push(&[1; 1_600]);
        playout.begin_sentence("And we close at five in the evening.".to_owned(), 0);
        playout.push(&[1; 3_600]);
        playout.finish();
        let mut frame = Vec::new();
        for (taken, queued, expected) in [
            (0, 0, ""),
            (1_000, 0, "We open at"),
            (800, 200, "We open at nine."),
            (1_000, 0, "We open at nine. And we close"),
            (2_400, 2_400, "We open at nine. And we close"),
            (
                0,
                0,
                "We open at nine. And we close at five in the evening.",
            ),
        ] {
            if taken > 0 {
                assert!(playout.take(taken, &mut frame));
            }
            assert_eq!(
                playout.heard(Duration::from_millis(queued))[0].text,
                expected
            );
        }
        assert!(playout.is_drained());
        assert!(playout.heard(Duration::ZERO)[0].whole);
    }

    #[test]
    fn a_voice_that_tells_its_words_is_written_down_to_the_word() {
        let mut playout = playing();
        let line = "The plan costs 20, a month. Yes.";
        playout.begin_sentence(line.to_owned(), 0);
        playout.push(&[1; 4_000]);
        let word = |text: &str, from: u64, to: u64| WordTime {
            text: text.to_owned(),
            from: Duration::from_millis(from),
            to: Duration::from_millis(to),
        };
        playout.add_words(&[word("The", 0, 100), word("plan", 200, 300)]);
        playout.add_words(&[
            word("costs", 400, 500),
            word("twenty", 600, 2_600),
            word("a", 2_700, 2_800),
            word("month", 2_900, 3_100),
        ]);
        let mut frame = Vec::new();
        for (taken, expected) in [
            (40, ""),
            (20, "The"),
            (400, "The plan costs"),
            (2_200, "The plan costs"),
            (200, "The plan costs 20, a"),
            (200, "The plan costs 20, a month."),
        ] {
            assert!(playout.take(taken, &mut frame));
            assert_eq!(playout.heard(Duration::ZERO)[0].text, expected);
        }
        playout.finish();
        assert!(playout.take(940, &mut frame));
        assert_eq!(text(&playout.heard(Duration::ZERO)), [(line, true)]);
    }

    #[test]
    fn a_sentence_that_is_still_being_made_is_not_heard_as_a_whole() {
        let mut playout = playing();
        playout.begin_sentence(
            "This sentence takes four seconds to say out loud, or nearly.".to_owned(),
            0,
        );
        playout.push(&[1; 1_000]);
        assert!(playout.take(1_000, &mut Vec::new()));
        let heard = playout.heard(Duration::ZERO);
        assert_eq!(text(&heard), [("This sentence", false)]);
    }

    #[test]
    fn a_pause_goes_back_to_what_was_heard() {
        let mut playout = playing();
        playout.begin_sentence("One two three four.".to_owned(), 0);
        let sound: Vec<i16> = (0..1_000).collect();
        playout.push(&sound);
        let mut frame = Vec::new();
        assert!(playout.take(500, &mut frame));
        playout.set_mode(PlayMode::Paused);
        playout.rewind(Duration::from_millis(200));
        assert!(!playout.take(10, &mut frame), "it is paused");
        assert_eq!(playout.position(Duration::ZERO), Duration::from_millis(300));
        playout.set_mode(PlayMode::Playing);
        assert!(playout.take(10, &mut frame));
        assert_eq!(frame[0], 300);
    }

    #[test]
    fn each_round_of_tools_has_its_own_words() {
        let mut playout = playing();
        playout.begin_sentence("One moment.".to_owned(), 0);
        playout.push(&[1; 500]);
        playout.begin_sentence("It is done.".to_owned(), 1);
        playout.push(&[1; 500]);
        playout.finish();
        assert!(playout.take(520, &mut Vec::new()));
        assert_eq!(
            text(&playout.heard(Duration::ZERO)),
            [("One moment.", true), ("", false)]
        );
        assert_eq!(playout.begun(Duration::ZERO).count(), 2);
        assert_eq!(playout.begun(Duration::from_millis(30)).count(), 1);
    }

    #[test]
    fn the_last_frame_is_filled_up_and_memory_is_bounded() {
        let mut playout = playing();
        playout.begin_sentence("Long.".to_owned(), 0);
        let mut frame = Vec::new();
        for _ in 0..100 {
            playout.push(&[1; 100]);
            assert!(!playout.is_full());
            assert!(playout.take(100, &mut frame));
        }
        assert!(playout.taken_tail.len() as u64 <= playout.samples_in(KEPT));
        playout.push(&[1; 30]);
        assert!(
            !playout.take(100, &mut frame),
            "a half frame waits for the rest"
        );
        playout.finish();
        assert!(playout.take(100, &mut frame));
        assert_eq!((frame.len(), frame[29], frame[30]), (100, 1, 0));
        playout.push(&[1; 9_000]);
        assert!(playout.is_full());
    }

    #[test]
    fn words_are_counted_as_heard_from_their_middle_on() {
        assert_eq!(first_words("alpha beta", 0.0), "");
        assert_eq!(first_words("alpha beta", 0.3), "alpha");
        assert_eq!(first_words("alpha beta", 0.7), "alpha");
        assert_eq!(first_words("alpha beta", 0.9), "alpha beta");
        assert_eq!(first_words("", 1.0), "");
    }
}
