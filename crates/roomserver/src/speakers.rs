//! Active speakers: audio levels of packets, collected over one interval at a time.
//!
//! The constants are those of the real server's `audio` section: a packet counts as speech from -35
//! dBov up, and a participant speaks when at least 40 % of the interval was speech.

/// Quieter packets are not speech, in dBov as in RFC 6464.
const ACTIVE_LEVEL_DBOV: i8 = -35;
/// Share of the interval's packets that must be speech.
const ACTIVE_SHARE: f32 = 0.4;
/// Packets of 20 ms in an interval of 400 ms; with fewer, as with DTX, the missing ones count as
/// silence.
const EXPECTED_PACKETS: u32 = 20;
/// Levels are rounded to steps, so that small changes are not reported (8 steps, as in the real
/// server).
const LEVEL_STEPS: f32 = 8.0;

/// The levels of one track in the current interval.
#[derive(Debug, Default)]
pub(crate) struct LevelWindow {
    packets: u32,
    active: u32,
    sum_dbov: f32,
}

impl LevelWindow {
    /// Notes the level of a packet, in dBov: 0 is the loudest, -127 silence.
    pub fn observe(&mut self, level_dbov: i8) {
        self.packets += 1;
        if level_dbov >= ACTIVE_LEVEL_DBOV {
            self.active += 1;
            self.sum_dbov += f32::from(level_dbov);
        }
    }

    /// Ends the interval. Returns the loudness from 0 to 1 if there was speech, in steps of an
    /// eighth.
    pub fn take(&mut self) -> Option<f32> {
        let window = std::mem::take(self);
        let packets = window.packets.max(EXPECTED_PACKETS) as f32;
        if window.active == 0 || (window.active as f32) < packets * ACTIVE_SHARE {
            return None;
        }
        let mean_dbov = window.sum_dbov / window.active as f32;
        let linear = 10f32.powf(mean_dbov / 20.0);
        Some((linear * LEVEL_STEPS).ceil() / LEVEL_STEPS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speech_for_half_of_the_interval_counts() {
        let mut window = LevelWindow::default();
        for _ in 0..10 {
            window.observe(-20);
            window.observe(-90);
        }
        assert_eq!(window.take(), Some(0.125));
        assert_eq!(window.take(), None, "the next interval starts empty");
    }

    #[test]
    fn a_click_and_silence_do_not_count() {
        let mut window = LevelWindow::default();
        window.observe(0);
        assert_eq!(window.take(), None);
        for _ in 0..20 {
            window.observe(-60);
        }
        assert_eq!(window.take(), None);
    }
}
