//! Detects where speech begins and ends, and keeps its samples for recognition.
//!
//! Time is counted in received samples, not by a clock, so that the same audio gives the same
//! segments however it arrives. Independent of turns: a pause and an end are properties of the
//! audio.

use std::collections::VecDeque;
use std::sync::Arc;

use earshot::Detector;

use super::INPUT_SAMPLE_RATE_HZ;
use super::config::VadConfig;
use super::music::{Background, LineMusic};
use super::tones::{Texture, ToneDetector};

/// Samples in one window of the earshot detector: 16 ms.
const WINDOW: usize = 256;

/// Audio whose level has stayed within [`STEADY_DB`] over this many windows (320 ms) is a tone or
/// noise: no speaker keeps a level for so long.
const STEADY_WINDOWS: usize = 20;

/// White noise spreads over 1.5 dB or so in windows of this length, a tone over less, speech over
/// ten and more.
const STEADY_DB: f32 = 2.0;

/// Below this level a steady level means silence, not a tone.
const AUDIBLE_DB: f32 = 20.0;

/// Speech begins when this many of the last [`ONSET_WINDOWS`] were loud and not tonal. A tone
/// begins and ends with a click, which is not tonal for up to two windows.
const ONSET_FULL_WINDOWS: u32 = 3;

/// See [`ONSET_FULL_WINDOWS`].
const ONSET_WINDOWS: u32 = 8;

/// A window this far below the loudest recent one is ignored: the score stays high for a while
/// after a tone has ended.
const FAINT_BELOW_DB: f32 = 25.0;

/// With tones or notes in at least this share of a segment, the recogniser may invent words. Three
/// of four segments of speech have 0.18 or less.
const PERHAPS_MUSIC_SHARE: f32 = 0.18;

/// With notes in at least this share, a segment contains no speech, where nothing is known of the
/// music that was there before.
const MUSIC_SHARE: f32 = 0.5;

/// Whoever speaks over music is louder than it in at least so many windows (208 ms) of a segment.
const LOUDER_WINDOWS: u32 = 13;

/// With notes in less than this share, a segment that follows a silence is not the music that was
/// there before it.
const MUSIC_AFTER_SILENCE_SHARE: f32 = 0.1;

/// Audio this far below the loudest part of the speech is silence, whatever the score: the score
/// takes 100 ms to fall after the end of speech.
const QUIET_BELOW_SPEECH_DB: f32 = 30.0;

/// The longest time that the score takes to fall.
const HANGOVER_MS: u64 = 160;

/// The score also takes some windows to rise. Audio this far above the noise floor belongs to the
/// speech that follows …
const ONSET_ABOVE_LINE_DB: f32 = 12.0;

/// … as far back as this.
const MAX_ONSET_WINDOWS: usize = 6;

/// An event of the detector. Positions count samples since the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VadEvent {
    /// Speech has begun.
    Started {
        /// Position of its first sample.
        onset: u64,
    },
    /// The speaker pauses.
    Paused,
    /// The speaker goes on after a pause.
    Resumed,
    /// The speech is over.
    Ended {
        /// Position of its last sample.
        end: u64,
    },
}

/// The state of the detector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VadState {
    Silence,
    /// Speech-like, but too short to be speech yet.
    Onset {
        /// Position from which the score is high.
        at: u64,
        /// Position from which the level is high.
        loud_from: u64,
    },
    Speech,
    /// Silence since that position, too short to end the speech yet.
    Gap {
        since: u64,
        reported: bool,
    },
}

/// The windows of a segment, counted by their content.
#[derive(Debug, Default)]
struct Windows {
    all: u32,
    tones_or_notes: u32,
    notes: u32,
    /// The music that was on the line when the segment began.
    background: Option<Background>,
    /// How many were louder than that.
    louder: u32,
}

/// Voice activity detection on 16 kHz mono sound.
pub struct Vad {
    detector: Box<Detector>,
    config: VadConfig,
    early_pause: u64,
    state: VadState,
    /// Samples that have been processed.
    position: u64,
    /// Samples of an incomplete window.
    pending: Vec<i16>,
    /// The samples before `position`: the prefix of the next speech, or the prefix and all of the
    /// current one.
    sound: Vec<i16>,
    /// Position of the first sample in `sound`.
    sound_from: u64,
    /// End of the last segment; the next one does not start before it.
    last_end: u64,
    /// Levels of the last windows.
    levels: VecDeque<f32>,
    tones: ToneDetector,
    music: LineMusic,
    /// One bit for each of the last windows, the newest lowest: set if it was a tone.
    tonal: u32,
    /// Likewise: set if it was loud and not tonal.
    full: u32,
    segment: Windows,
    /// The next window is the first of a segment, because the one before was cut.
    was_cut: bool,
    /// The loudest window of the speech in progress.
    loudest: f32,
    /// Position where the level fell to silence.
    quiet_since: Option<u64>,
    /// Scores the windows; replaced in tests that are about timing.
    #[cfg(test)]
    scores: Option<VecDeque<f32>>,
}

/// Milliseconds as samples.
fn samples(ms: u64) -> u64 {
    ms * u64::from(INPUT_SAMPLE_RATE_HZ) / 1_000
}

impl Vad {
    /// A detector that reports [`VadEvent::Paused`] after `early_pause_ms` of silence.
    pub fn new(config: VadConfig, early_pause_ms: u64) -> Self {
        Self {
            detector: Detector::default_boxed(),
            early_pause: samples(early_pause_ms.min(config.min_silence_ms)),
            config,
            state: VadState::Silence,
            position: 0,
            pending: Vec::with_capacity(WINDOW),
            sound: Vec::new(),
            sound_from: 0,
            last_end: 0,
            levels: VecDeque::with_capacity(STEADY_WINDOWS),
            tones: ToneDetector::new(),
            music: LineMusic::default(),
            tonal: 0,
            full: 0,
            segment: Windows::default(),
            was_cut: false,
            loudest: f32::MIN,
            quiet_since: None,
            #[cfg(test)]
            scores: None,
        }
    }

    /// Processes samples of any number and appends the events to `events`.
    pub fn push(&mut self, mut sound: &[i16], events: &mut Vec<VadEvent>) {
        while !sound.is_empty() {
            let take = (WINDOW - self.pending.len()).min(sound.len());
            self.pending.extend_from_slice(&sound[..take]);
            sound = &sound[take..];
            if self.pending.len() == WINDOW {
                if std::mem::take(&mut self.was_cut) {
                    self.begin_segment(0);
                }
                let score = self.score();
                let is_steady = self.measure() | self.is_lasting_tone();
                self.sound.extend_from_slice(&self.pending);
                self.pending.clear();
                if is_steady {
                    self.steady(events);
                } else {
                    self.judge(score, events);
                }
            }
        }
    }

    /// Samples received so far, processed or not.
    pub fn position(&self) -> u64 {
        self.position + self.pending.len() as u64
    }

    /// Whether speech is in progress, including its pauses.
    pub fn in_speech(&self) -> bool {
        matches!(self.state, VadState::Speech | VadState::Gap { .. })
    }

    /// Since when the speaker of the speech in progress has been silent, if they have.
    pub fn silent_since(&self) -> Option<u64> {
        match self.state {
            VadState::Gap { since, .. } => Some(since),
            _ => None,
        }
    }

    /// The samples of the segment that is in progress or has just ended, with its prefix and the
    /// silence after it.
    pub fn segment(&self) -> Arc<[i16]> {
        self.sound.as_slice().into()
    }

    /// Searches for tones and notes in the pending window. True if there has been only a tone for a
    /// while.
    fn is_lasting_tone(&mut self) -> bool {
        let Texture { is_tone, is_note } = self.tones.hear(&self.pending);
        let loudest = self.levels.iter().copied().fold(f32::MIN, f32::max);
        let is_loud = self
            .levels
            .back()
            .is_some_and(|level| *level > loudest - FAINT_BELOW_DB);
        self.segment.all += 1;
        self.segment.tones_or_notes += u32::from(is_tone || is_note);
        self.segment.notes += u32::from(is_note);
        if let Some(level) = self.levels.back() {
            self.music.hear(*level, is_note);
            let background = &self.segment.background;
            let is_louder = background.is_some_and(|music| music.is_louder(*level));
            self.segment.louder += u32::from(is_louder);
        }
        self.tonal = self.tonal << 1 | u32::from(is_tone);
        self.full = self.full << 1 | u32::from(is_loud && !is_tone);
        self.tonal.trailing_ones() as usize >= STEADY_WINDOWS
    }

    /// Whether that segment is music, without speech to recognise.
    ///
    /// Where music was on the line before, it is more of that music if it is not louder; otherwise
    /// its notes tell.
    pub fn is_music(&self) -> bool {
        let segment = &self.segment;
        let notes = |share: f32| segment.notes as f32 > share * segment.all as f32;
        match segment.background {
            Some(music) => {
                let may_be_over = music.has_paused && !notes(MUSIC_AFTER_SILENCE_SHARE);
                segment.louder < LOUDER_WINDOWS && !may_be_over
            }
            None => notes(MUSIC_SHARE),
        }
    }

    /// Whether the recogniser may invent words: there was music before that segment, or much of it
    /// is tones or notes.
    pub fn may_be_music(&self) -> bool {
        let segment = &self.segment;
        segment.background.is_some()
            || segment.tones_or_notes as f32 > PERHAPS_MUSIC_SHARE * segment.all as f32
    }

    /// Begins to count a segment that began `windows` ago.
    fn begin_segment(&mut self, windows: u64) {
        let background = self.music.background();
        let louder = background.map_or(0, |music| self.music.louder(&music, windows as usize));
        self.segment = Windows {
            background,
            louder,
            ..Windows::default()
        };
    }

    /// Resets all state, including any speech in progress.
    pub fn reset(&mut self) {
        self.detector.reset();
        self.levels.clear();
        self.tones.reset();
        self.music.reset();
        self.tonal = 0;
        self.full = 0;
        self.state = VadState::Silence;
        self.trim();
    }

    fn score(&mut self) -> f32 {
        #[cfg(test)]
        if let Some(scores) = &mut self.scores {
            return scores.pop_front().unwrap_or(0.0);
        }
        self.detector.predict_i16(&self.pending)
    }

    /// Measures the level of the pending window. True if the level is steady.
    fn measure(&mut self) -> bool {
        let energy: f32 = self
            .pending
            .iter()
            .map(|sample| f32::from(*sample).powi(2))
            .sum();
        let level = 10.0 * (energy / WINDOW as f32 + 1.0).log10();
        if self.levels.len() == STEADY_WINDOWS {
            self.levels.pop_front();
        }
        self.levels.push_back(level);
        self.loudest = if self.in_speech() {
            self.loudest.max(level)
        } else {
            level
        };
        if level > self.loudest - QUIET_BELOW_SPEECH_DB {
            self.quiet_since = None;
        } else {
            self.quiet_since.get_or_insert(self.position);
        }
        let (low, high) = self
            .levels
            .iter()
            .fold((f32::MAX, f32::MIN), |(low, high), level| {
                (low.min(*level), high.max(*level))
            });
        self.levels.len() == STEADY_WINDOWS && low > AUDIBLE_DB && high - low < STEADY_DB
    }

    /// Handles a steady level: what counted as speech is a tone or noise.
    fn steady(&mut self, events: &mut Vec<VadEvent>) {
        self.position += WINDOW as u64;
        if self.in_speech() {
            let since = self.position - (STEADY_WINDOWS * WINDOW) as u64;
            self.end(since, events);
        } else {
            self.state = VadState::Silence;
            self.trim();
        }
    }

    fn judge(&mut self, score: f32, events: &mut Vec<VadEvent>) {
        let from = self.position;
        self.position += WINDOW as u64;
        if self.in_speech() && self.sound_from < self.last_end {
            // The previous segment was cut at its maximum length and has been fetched by now.
            self.drop_before(self.last_end);
        }
        let starts = score >= self.config.activation_threshold;
        let goes_on = score >= self.config.deactivation_threshold;
        match self.state {
            VadState::Silence => {
                if starts {
                    let loud_from = from.saturating_sub(self.loud_windows() * WINDOW as u64);
                    self.state = VadState::Onset {
                        at: from,
                        loud_from,
                    };
                    self.maybe_start(from, loud_from, events);
                }
            }
            VadState::Onset { at, loud_from } => {
                if goes_on {
                    self.maybe_start(at, loud_from, events);
                } else {
                    self.state = VadState::Silence;
                }
            }
            VadState::Speech => {
                if !goes_on {
                    // The score falls slowly; the level tells when the silence began.
                    let earliest = from.saturating_sub(samples(HANGOVER_MS));
                    let since = self.quiet_since.unwrap_or(from).clamp(earliest, from);
                    self.state = VadState::Gap {
                        since,
                        reported: false,
                    };
                    self.maybe_pause(events);
                }
            }
            VadState::Gap { reported, .. } => {
                if goes_on {
                    self.state = VadState::Speech;
                    if reported {
                        events.push(VadEvent::Resumed);
                    }
                } else {
                    self.maybe_pause(events);
                }
            }
        }
        if self.in_speech() {
            if self.position - self.sound_from.max(self.last_end)
                >= samples(self.config.max_segment_ms)
            {
                // A speaker without a pause, or a noisy line: the segment so far goes to
                // recognition, and a new one begins.
                let at = self.position;
                self.end(at, events);
                self.state = VadState::Speech;
                // The counts stay until the next window, as the samples do.
                self.was_cut = true;
                events.push(VadEvent::Started { onset: at });
            }
        } else {
            self.trim();
        }
    }

    /// Consecutive windows before the present one that are above the noise floor.
    fn loud_windows(&self) -> u64 {
        let line = self.levels.iter().copied().fold(f32::MAX, f32::min);
        let before = self.levels.iter().rev().skip(1).take(MAX_ONSET_WINDOWS);
        before
            .take_while(|level| **level > line + ONSET_ABOVE_LINE_DB)
            .count() as u64
    }

    fn maybe_start(&mut self, at: u64, loud_from: u64, events: &mut Vec<VadEvent>) {
        let since = self.position - at;
        let windows = ONSET_WINDOWS.min((since / WINDOW as u64) as u32);
        let full = (self.full << (u32::BITS - windows)).count_ones();
        if since >= samples(self.config.min_speech_ms) && full >= ONSET_FULL_WINDOWS.min(windows) {
            self.state = VadState::Speech;
            let onset = loud_from.max(self.last_end);
            let prefix = onset.saturating_sub(samples(self.config.prefix_ms));
            self.drop_before(prefix.max(self.last_end));
            self.begin_segment((self.position - onset) / WINDOW as u64);
            events.push(VadEvent::Started { onset });
        }
    }

    fn maybe_pause(&mut self, events: &mut Vec<VadEvent>) {
        let VadState::Gap { since, reported } = self.state else {
            return;
        };
        let silent = self.position - since;
        if !reported && silent >= self.early_pause {
            self.state = VadState::Gap {
                since,
                reported: true,
            };
            events.push(VadEvent::Paused);
        }
        if silent >= samples(self.config.min_silence_ms) {
            self.end(since, events);
        }
    }

    /// The samples stay until the next window, so that the receiver of the event can fetch them.
    fn end(&mut self, end: u64, events: &mut Vec<VadEvent>) {
        self.state = VadState::Silence;
        self.last_end = self.position;
        events.push(VadEvent::Ended { end });
    }

    /// Drops all but the possible prefix of the next speech.
    fn trim(&mut self) {
        // The samples of a segment that has just ended are kept for its reader.
        if self.last_end == self.position {
            return;
        }
        let keep = samples(self.config.prefix_ms)
            + samples(self.config.min_speech_ms)
            + ((MAX_ONSET_WINDOWS + 1) * WINDOW) as u64;
        // Moving the tail costs time; waiting for twice the size makes it rare.
        if self.sound.len() as u64 > 2 * keep {
            self.drop_before(self.position - keep);
        }
    }

    fn drop_before(&mut self, position: u64) {
        let drop = (position.saturating_sub(self.sound_from) as usize).min(self.sound.len());
        self.sound.drain(..drop);
        self.sound_from += drop as u64;
        // Release the buffer of a long speech; the next one is probably short.
        if self.sound.capacity() > 8 * self.sound.len().max(samples(1_000) as usize) {
            self.sound.shrink_to(samples(2_000) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW_MS: u64 = 16;

    fn run(
        pattern: &[(u64, f32)],
        change: impl FnOnce(&mut VadConfig),
    ) -> (Vad, Vec<(u64, VadEvent)>) {
        let mut config = VadConfig::default();
        change(&mut config);
        let mut vad = Vad::new(config, 100);
        let scores = pattern
            .iter()
            .flat_map(|(ms, score)| std::iter::repeat_n(*score, (ms / WINDOW_MS) as usize));
        vad.scores = Some(scores.collect());
        let mut heard = Vec::new();
        let windows = vad.scores.as_ref().map_or(0, VecDeque::len);
        for _ in 0..windows {
            let mut events = Vec::new();
            vad.push(&[0; WINDOW], &mut events);
            let at = vad.position() * 1_000 / u64::from(INPUT_SAMPLE_RATE_HZ);
            heard.extend(events.into_iter().map(|event| (at, event)));
        }
        (vad, heard)
    }

    #[test]
    fn speech_is_reported_with_its_beginning_its_pause_and_its_end() {
        let (vad, events) = run(&[(800, 0.0), (1_600, 0.9), (256, 0.1)], |_| {});
        let expected = [
            (
                864,
                VadEvent::Started {
                    onset: samples(800),
                },
            ),
            (2_512, VadEvent::Paused),
            (
                2_656,
                VadEvent::Ended {
                    end: samples(2_400),
                },
            ),
        ];
        assert_eq!(events, expected);
        // Half a second before the speech, the speech, and the silence that ended it.
        assert_eq!(vad.segment().len() as u64, samples(500 + 1_600 + 256));
    }

    #[test]
    fn a_short_pause_is_part_of_the_speech_and_a_click_is_none() {
        let (_, events) = run(
            &[
                (160, 0.0),
                (32, 0.9),
                (160, 0.0),
                (480, 0.9),
                (160, 0.2),
                (480, 0.4),
                (320, 0.2),
            ],
            |_| {},
        );
        let kinds: Vec<VadEvent> = events.into_iter().map(|(_, event)| event).collect();
        let onset = samples(352);
        let end = samples(352 + 480 + 160 + 480);
        assert_eq!(
            kinds,
            [
                VadEvent::Started { onset },
                VadEvent::Paused,
                VadEvent::Resumed,
                VadEvent::Paused,
                VadEvent::Ended { end },
            ]
        );
    }

    #[test]
    fn the_next_segment_does_not_repeat_the_end_of_the_last() {
        let (vad, _) = run(
            &[(800, 0.0), (800, 0.9), (256, 0.0), (96, 0.0), (800, 0.9)],
            |_| {},
        );
        assert_eq!(vad.segment().len() as u64, samples(96 + 800));
    }

    #[test]
    fn a_speaker_without_a_pause_is_cut_into_segments() {
        let (vad, events) = run(&[(800, 0.0), (4_000, 0.9)], |config| {
            config.max_segment_ms = 2_000
        });
        let ends = events
            .iter()
            .filter(|(_, event)| matches!(event, VadEvent::Ended { .. }))
            .count();
        assert!(ends >= 2, "{events:?}");
        assert!(vad.segment().len() as u64 <= samples(2_000));
    }

    #[test]
    fn hours_of_silence_take_no_memory() {
        let (vad, events) = run(&[(60_000, 0.0)], |_| {});
        assert!(events.is_empty());
        assert!(vad.sound.capacity() < samples(3_000) as usize);
    }
}

#[cfg(test)]
#[path = "vad_speech_tests.rs"]
mod speech_tests;
