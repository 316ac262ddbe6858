//! The queue between an application that pushes PCM in pieces of any size and the clock that takes
//! 10 ms at a time.
//!
//! Pure state: who waits and who is woken is decided by [`source`](super::source).

use std::collections::VecDeque;

/// What a pull has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pulled {
    /// Sound of the application, padded with silence at its end if there was less than 10 ms.
    Sound,
    /// The queue was empty.
    Silence,
}

/// PCM that waits to be played out.
#[derive(Debug)]
pub(crate) struct SourceQueue {
    samples: VecDeque<i16>,
    channels: usize,
    sample_rate_hz: u32,
    /// The queue size that the application asked for, in interleaved samples.
    size: usize,
    /// Hundredths of a sample that earlier ticks were too short, for rates that 100 does not
    /// divide.
    owed: u32,
}

impl SourceQueue {
    /// A queue of `queue_size_ms`. The rate and the channel count must not be zero.
    pub fn new(sample_rate_hz: u32, channels: usize, queue_size_ms: u32) -> Self {
        let frames = u64::from(queue_size_ms) * u64::from(sample_rate_hz) / 1000;
        let size = usize::try_from(frames).expect("a queue length fits the address space");
        Self {
            samples: VecDeque::new(),
            channels,
            sample_rate_hz,
            size: size * channels,
            owed: 0,
        }
    }

    /// The queue size in interleaved samples. A pusher waits while more than this lies ready.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many interleaved samples lie ready.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// How many interleaved samples still fit: the capacity is twice the queue size.
    pub fn space(&self) -> usize {
        2 * self.size - self.samples.len()
    }

    /// Whether a pusher may go on.
    pub fn is_ready_for_more(&self) -> bool {
        self.samples.len() <= self.size
    }

    /// Puts all of `samples` into the queue if they fit, else none of them, and returns which.
    pub fn push(&mut self, samples: &[i16]) -> bool {
        let fits = samples.len() <= self.space();
        if fits {
            self.samples.extend(samples);
        }
        fits
    }

    /// Replaces `out` by the next 10 ms. At rates that 100 does not divide, the lengths of the
    /// ticks differ by one so that their sum is exact.
    ///
    /// The rest of a sentence that ends within the 10 ms is played at once and padded with silence:
    /// held back, it would be heard as a click before the next sentence.
    pub fn pull(&mut self, out: &mut Vec<i16>) -> Pulled {
        let hundredths = self.sample_rate_hz + self.owed;
        self.owed = hundredths % 100;
        let wanted = (hundredths / 100) as usize * self.channels;
        let available = wanted.min(self.samples.len());
        out.clear();
        out.extend(self.samples.drain(..available));
        out.resize(wanted, 0);
        if available == 0 {
            Pulled::Silence
        } else {
            Pulled::Sound
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.samples.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pulled(queue: &mut SourceQueue) -> Vec<i16> {
        let mut out = Vec::new();
        queue.pull(&mut out);
        out
    }

    #[test]
    fn holds_twice_its_size_and_not_one_sample_more() {
        let mut queue = SourceQueue::new(48_000, 1, 100);
        assert!(queue.push(&[1; 4800]));
        assert!(queue.is_ready_for_more());
        assert!(queue.push(&[2; 4800]));
        assert!(!queue.is_ready_for_more());
        assert!(!queue.push(&[3; 1]));
        assert_eq!(queue.len(), 9600);
    }

    #[test]
    fn pusher_may_go_on_once_no_more_than_the_size_is_left() {
        let mut queue = SourceQueue::new(16_000, 2, 20);
        assert!(queue.push(&[5; 640]));
        assert!(queue.push(&[5; 320]));
        assert!(!queue.is_ready_for_more());
        pulled(&mut queue);
        assert!(queue.is_ready_for_more());
    }

    #[test]
    fn empty_queue_gives_whole_frames_of_silence() {
        let mut queue = SourceQueue::new(48_000, 2, 50);
        let mut out = vec![7; 3];
        assert_eq!(queue.pull(&mut out), Pulled::Silence);
        assert_eq!(out, vec![0; 960]);
    }

    #[test]
    fn end_of_a_sentence_is_played_and_filled_up_with_silence() {
        let mut queue = SourceQueue::new(8_000, 1, 50);
        assert!(queue.push(&[9; 30]));
        let mut out = Vec::new();
        assert_eq!(queue.pull(&mut out), Pulled::Sound);
        assert_eq!(out[..30], [9; 30]);
        assert_eq!(out[30..], [0; 50]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_second_has_all_its_samples_at_any_rate() {
        for rate in [
            8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000,
        ] {
            let mut queue = SourceQueue::new(rate, 1, 10);
            let total: usize = (0..100).map(|_| pulled(&mut queue).len()).sum();
            assert_eq!(total, rate as usize);
        }
    }

    #[test]
    fn clearing_leaves_nothing() {
        let mut queue = SourceQueue::new(48_000, 1, 100);
        assert!(queue.push(&[1; 9600]));
        queue.clear();
        assert!(queue.is_empty() && queue.is_ready_for_more());
        assert_eq!(pulled(&mut queue), vec![0; 480]);
    }

    proptest! {
        /// Whatever is pushed and pulled in whatever order, the sound comes out whole and in order,
        /// and the queue stays within its bounds.
        #[test]
        fn sound_comes_out_as_it_went_in(steps in prop::collection::vec((0usize..3000, 0usize..6), 1..60)) {
            let mut queue = SourceQueue::new(48_000, 1, 50);
            let mut next = 1i16;
            let (mut sent, mut played) = (Vec::new(), Vec::new());
            for (pushed, ticks) in steps {
                let frame: Vec<i16> = (0..pushed).map(|_| { next = next % 30_000 + 1; next }).collect();
                let space = queue.space();
                prop_assert_eq!(queue.push(&frame), pushed <= space);
                if pushed <= space { sent.extend(frame); }
                prop_assert!(queue.len() <= 2 * queue.size());
                for _ in 0..ticks {
                    let frame = pulled(&mut queue);
                    prop_assert_eq!(frame.len(), 480);
                    // No sample of the application is 0, so zeros are the silence that was put in.
                    played.extend(frame.into_iter().filter(|sample| *sample != 0));
                }
            }
            while !queue.is_empty() {
                played.extend(pulled(&mut queue).into_iter().filter(|sample| *sample != 0));
            }
            prop_assert_eq!(played, sent);
        }
    }
}
