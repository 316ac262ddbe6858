//! How much loss the encoder should expect, from what the receiver reports.

/// The weight of a report that is lower than what is expected. With a report a second, the
/// expectation follows in about ten seconds, as in Google's engine: losses come in groups, and
/// after a second without one error correction is still wanted.
const FALLING_WEIGHT: f32 = 0.1;

/// The weight of a report that is higher: one bad second counts at once, but only half of it.
const RISING_WEIGHT: f32 = 0.5;

/// An expectation that starts with no loss.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ExpectedLoss {
    share: f32,
}

impl ExpectedLoss {
    /// Takes a reported share from 0 to 1 and returns the loss that the encoder should expect, in
    /// percent.
    pub fn reported(&mut self, share: f32) -> u8 {
        // A share that is not a number says nothing.
        if share.is_finite() {
            let share = share.clamp(0.0, 1.0);
            let weight = match share > self.share {
                true => RISING_WEIGHT,
                false => FALLING_WEIGHT,
            };
            self.share += (share - self.share) * weight;
        }
        (self.share * 100.0).round() as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_report_without_loss_does_not_end_error_correction() {
        let mut loss = ExpectedLoss::default();
        assert_eq!(loss.reported(0.0), 0);
        assert_eq!(loss.reported(0.2), 10);
        assert_eq!(loss.reported(0.2), 15);
        for _ in 0..3 {
            assert!(loss.reported(0.0) >= 10);
        }
        let last = (0..40).map(|_| loss.reported(0.0)).last();
        assert_eq!(last, Some(0));
    }

    #[test]
    fn nonsense_is_no_loss() {
        let mut loss = ExpectedLoss::default();
        assert_eq!(loss.reported(f32::NAN), 0);
        assert_eq!(loss.reported(-3.0), 0);
        assert_eq!(loss.reported(9.0), 50);
    }
}
