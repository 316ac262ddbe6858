//! What only native engines offer: end-to-end encryption, and trailers of video frames, whose types
//! exist only so that `livekit` compiles.

pub mod frame_cryptor;
mod keys;
pub mod packet_trailer;

/// Conversion of sample rate and channel count.
pub mod audio_resampler {
    pub use crate::audio::resample::AudioResampler;
}

/// A random UUID (version 4, RFC 9562) in its text form.
pub fn create_random_uuid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [
        &hex[0..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..32],
    ]
    .join("-")
}

#[cfg(test)]
mod tests {
    use super::create_random_uuid;

    #[test]
    fn random_uuid_has_version_and_variant_and_differs() {
        let (one, two) = (create_random_uuid(), create_random_uuid());
        assert_ne!(one, two);
        assert_eq!(one.len(), 36);
        assert_eq!(&one[14..15], "4");
        assert!("89ab".contains(&one[19..20]));
    }
}
