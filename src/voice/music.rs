//! The music that has been on the line for a while, so that more of it is not taken for somebody
//! who speaks. Pure.
//!
//! Notes alone do not tell: between them there are drums and slides, and speech over music has
//! notes too. But notes tell how loud the music is, and whoever speaks over music speaks louder
//! than it. After a silence the music may be over, so that its level means nothing any more.

use std::collections::VecDeque;

/// How far back the music is remembered, in windows of 16 ms: 30 s, which is longer than pieces of
/// hold music go on without notes.
const REMEMBERED_WINDOWS: usize = 1_875;

/// A softer window is a pause, in dB over an amplitude of one.
const AUDIBLE_DB: f32 = 30.0;

/// With fewer windows of notes (1 s) there may only have been a beep.
const FEWEST_NOTES: usize = 63;

/// Notes in one of so many audible windows mean music. Speech has them in one of 500.
const AUDIBLE_PER_NOTE: usize = 10;

/// Windows this far above the music's level are louder than it. Nine of ten of its notes are below
/// that level.
const LOUDER_DB: f32 = 4.0;

/// Music has paused when it was this far below its level …
const PAUSED_BELOW_DB: f32 = 25.0;

/// … for so many windows in a row (192 ms) …
const PAUSED_WINDOWS: usize = 12;

/// … of this many.
const PAUSED_WITHIN: usize = 75;

/// What is remembered of one window.
#[derive(Debug, Clone, Copy)]
struct Heard {
    level_db: f32,
    is_note: bool,
}

/// Remembers what was on the line.
#[derive(Debug, Default)]
pub(super) struct LineMusic {
    recent: VecDeque<Heard>,
}

/// The music that is on the line when somebody may have begun to speak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Background {
    /// The level that nine of ten of its notes are below, in dB over an amplitude of one.
    level_db: f32,
    /// It may be over: there was a silence just before.
    pub(super) has_paused: bool,
}

impl Background {
    /// Whether a window of this level is louder than the music.
    pub(super) fn is_louder(&self, level_db: f32) -> bool {
        level_db > self.level_db + LOUDER_DB
    }
}

impl LineMusic {
    /// Takes the next window.
    pub(super) fn hear(&mut self, level_db: f32, is_note: bool) {
        if self.recent.len() == REMEMBERED_WINDOWS {
            self.recent.pop_front();
        }
        self.recent.push_back(Heard { level_db, is_note });
    }

    /// Forgets everything.
    pub(super) fn reset(&mut self) {
        self.recent.clear();
    }

    /// The music on the line, if there has been any lately.
    pub(super) fn background(&self) -> Option<Background> {
        let audible = self.recent.iter().filter(|it| it.level_db > AUDIBLE_DB);
        let notes = self.recent.iter().filter(|it| it.is_note);
        let mut levels: Vec<f32> = notes.map(|it| it.level_db).collect();
        if levels.len() < FEWEST_NOTES || levels.len() * AUDIBLE_PER_NOTE < audible.count() {
            return None;
        }
        let at = levels.len() * 9 / 10;
        let (_, level_db, _) = levels.select_nth_unstable_by(at, f32::total_cmp);
        let level_db = *level_db;
        let mut paused = 0;
        let mut before = self.recent.iter().rev().take(PAUSED_WITHIN);
        let has_paused = before.any(|it| {
            let is_quiet = it.level_db < level_db - PAUSED_BELOW_DB;
            paused = if is_quiet { paused + 1 } else { 0 };
            paused >= PAUSED_WINDOWS
        });
        Some(Background {
            level_db,
            has_paused,
        })
    }

    /// How many of the last `windows` were louder than `background`.
    pub(super) fn louder(&self, background: &Background, windows: usize) -> u32 {
        let last = self.recent.iter().rev().take(windows);
        let louder = last.filter(|it| background.is_louder(it.level_db));
        louder.count() as u32
    }
}
