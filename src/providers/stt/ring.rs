//! The caller's sound since the last final words, so that it can be sent again. Pure.

use std::collections::VecDeque;

/// Sound with positions, bounded: the oldest is forgotten.
#[derive(Debug, Default)]
pub(super) struct Ring {
    from: u64,
    sound: VecDeque<i16>,
}

impl Ring {
    /// Position of the first sample.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// Position after the last sample.
    pub fn end(&self) -> u64 {
        self.from + self.sound.len() as u64
    }

    /// Adds sound. A gap before it, no longer than `most`, is silence; what is there already is not
    /// added again.
    pub fn push(&mut self, at: u64, samples: &[i16], most: usize) {
        let end = self.end();
        if self.sound.is_empty() || at > end + most as u64 {
            self.sound.clear();
            self.from = at;
        } else if at > end {
            self.sound.extend((end..at).map(|_| 0));
        }
        let known = usize::try_from(self.end().saturating_sub(at)).unwrap_or(usize::MAX);
        self.sound.extend(samples.iter().skip(known));
        self.keep(most);
    }

    /// Forgets all but the last `most` samples.
    pub fn keep(&mut self, most: usize) {
        let surplus = self.sound.len().saturating_sub(most);
        self.forget_before(self.from + surplus as u64);
    }

    /// Forgets what is before `position`.
    pub fn forget_before(&mut self, position: u64) {
        let count = position
            .saturating_sub(self.from)
            .min(self.sound.len() as u64);
        self.sound.drain(..count as usize);
        self.from += count;
        if self.sound.capacity() > 4 * self.sound.len().max(16_384) {
            self.sound.shrink_to(2 * self.sound.len());
        }
    }

    /// At most `most` samples from `position` on, and where they really begin: a position that is
    /// forgotten has no sound.
    pub fn read(&self, position: u64, most: usize) -> (u64, Vec<i16>) {
        let at = position.clamp(self.from, self.end());
        let skip = (at - self.from) as usize;
        let samples = self.sound.range(skip..).take(most).copied().collect();
        (at, samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is pushed and forgotten, a position has the sample that was pushed for it.
        #[test]
        fn every_position_keeps_its_sound(
            pushes in prop::collection::vec((0u64..300, 0usize..120, 0u64..400), 1..30),
            most in 50usize..200,
        ) {
            let mut ring = Ring::default();
            let mut next = 0;
            for (jump, length, forget) in pushes {
                let at = (next + jump).saturating_sub(100);
                let samples: Vec<i16> = (at..at + length as u64).map(|p| (p % 1_000) as i16 + 1).collect();
                ring.push(at, &samples, most);
                next = next.max(at + length as u64);
                ring.forget_before(next.saturating_sub(forget));
                let (from, sound) = ring.read(0, usize::MAX);
                prop_assert!(sound.len() <= most);
                for (place, sample) in (from..).zip(sound) {
                    // A gap is silence.
                    prop_assert!(sample == 0 || sample == (place % 1_000) as i16 + 1);
                }
            }
        }
    }
}
