//! How loud a piece of sound is.

/// Mean square of the samples relative to full scale: 0 for silence, 1 for a full-scale square
/// wave.
pub(crate) fn energy(samples: &[i16]) -> f64 {
    if samples.is_empty() {
        return 0.0;
    }
    // Exact and quick in integers: squares are below 2^30, so that 2^33 of them fit.
    let sum: i64 = samples
        .iter()
        .map(|sample| i64::from(*sample) * i64::from(*sample))
        .sum();
    sum as f64 / samples.len() as f64 / (32_768.0 * 32_768.0)
}

/// The level of that energy in dBov, from -127 (silence) to 0, as RTP's header extension counts it
/// (RFC 6464, section 3, with the sign).
pub(crate) fn dbov(energy: f64) -> i8 {
    if energy <= 0.0 {
        return -127;
    }
    (10.0 * energy.log10()).round().clamp(-127.0, 0.0) as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_relative_to_full_scale() {
        assert_eq!(dbov(energy(&[0; 480])), -127);
        assert_eq!(dbov(energy(&[i16::MIN; 480])), 0);
        assert_eq!(dbov(energy(&[3277; 480])), -20);
        assert_eq!(dbov(energy(&[])), -127);
        assert_eq!(dbov(energy(&[1; 480])), -90);
    }
}
