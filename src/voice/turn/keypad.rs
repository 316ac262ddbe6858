//! Keys of the telephone: digits become the caller's words once no more of them come.

use super::TurnMachine;
use super::vocabulary::{Output, Time};
use crate::voice::config::ms;

/// Longer than any number that people type: a card has 19 digits.
const MAX_KEYS: usize = 32;

/// Ends what is typed, as machines on the telephone ask for it.
const END: char = '#';

/// Stands before the digits, so that the model knows that they were not said.
const LABEL: &str = "Keypad: ";

/// What has been typed and not been told yet.
#[derive(Debug, Default)]
pub(super) struct Keypad {
    keys: String,
    /// When the last key was pressed.
    last: Time,
}

impl TurnMachine {
    /// Takes a key. Who types is there, though nothing is heard.
    pub(super) fn key_pressed(&mut self, key: char) {
        self.heard_words();
        if key == END && !self.keypad.keys.is_empty() {
            self.typing_over();
            return;
        }
        self.keypad.keys.push(key);
        self.keypad.last = self.now;
        if self.keypad.keys.chars().count() >= MAX_KEYS {
            self.typing_over();
        }
    }

    /// When the keys so far are taken for all of them.
    pub(super) fn typing_over_at(&self) -> Option<Time> {
        let is_typing = !self.keypad.keys.is_empty();
        is_typing.then(|| self.keypad.last + ms(self.config.keypad_pause_ms))
    }

    /// Ends the typing when its time has come.
    pub(super) fn step_keypad(&mut self) -> bool {
        let is_over = self.typing_over_at().is_some_and(|at| self.now >= at);
        if is_over {
            self.typing_over();
        }
        is_over
    }

    /// Tells what was typed, and answers it if there is still somebody to answer.
    pub(super) fn typing_over(&mut self) {
        let keys = std::mem::take(&mut self.keypad.keys);
        if !keys.is_empty() {
            let text = format!("{LABEL}{keys}");
            self.out.push(Output::Keypad { keys });
            self.user_text(text);
        }
    }
}
