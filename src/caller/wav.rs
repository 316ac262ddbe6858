//! Reading recorded lines: WAV files with one channel of 16 bit.

use std::sync::Arc;

/// Why a WAV file cannot be said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WavError {
    /// It is another kind of file, or ends before its sound begins.
    #[error("it is no WAV file with sound in it")]
    NotWav,
    /// It has sound of another kind.
    #[error(
        "it has {channels} channels of {bits} bit at {sample_rate_hz} Hz (format {format}), not one of 16 bit PCM at {wanted_hz} Hz"
    )]
    Kind {
        /// The format's number; 1 is PCM.
        format: u16,
        /// Channels.
        channels: u16,
        /// Bits of a sample.
        bits: u16,
        /// Its rate, Hz.
        sample_rate_hz: u32,
        /// The rate that was asked for, Hz.
        wanted_hz: u32,
    },
}

/// WAVE_FORMAT_PCM, and WAVE_FORMAT_EXTENSIBLE, which some programs write for the same.
const PCM_FORMATS: [u16; 2] = [1, 0xfffe];

/// The samples of a WAV file, mono at `sample_rate_hz`. A data chunk that is shorter than it says
/// counts as far as it goes.
///
/// # Errors
/// The rest of a sentence that begins with the file.
pub fn samples(file: &[u8], sample_rate_hz: u32) -> Result<Arc<[i16]>, WavError> {
    if file.get(..4) != Some(b"RIFF") || file.get(8..12) != Some(b"WAVE") {
        return Err(WavError::NotWav);
    }
    let mut rest = &file[12..];
    let mut is_fit = false;
    while let Some((header, content)) = rest.split_first_chunk::<8>() {
        let size = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let content = &content[..size.min(content.len())];
        match &header[..4] {
            b"fmt " => {
                check_kind(content, sample_rate_hz)?;
                is_fit = true;
            }
            b"data" if is_fit => {
                let pairs = content.chunks_exact(2);
                return Ok(pairs
                    .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
                    .collect());
            }
            _ => {}
        }
        // Chunks begin at even places.
        rest = rest.get(8 + size + size % 2..).unwrap_or_default();
    }
    Err(WavError::NotWav)
}

fn check_kind(content: &[u8], wanted_hz: u32) -> Result<(), WavError> {
    let content: &[u8; 16] = content.first_chunk().ok_or(WavError::NotWav)?;
    let two = |at: usize| u16::from_le_bytes([content[at], content[at + 1]]);
    let (format, channels, bits) = (two(0), two(2), two(14));
    let sample_rate_hz = u32::from_le_bytes([content[4], content[5], content[6], content[7]]);
    let is_fit =
        PCM_FORMATS.contains(&format) && (channels, bits, sample_rate_hz) == (1, 16, wanted_hz);
    is_fit.then_some(()).ok_or(WavError::Kind {
        format,
        channels,
        bits,
        sample_rate_hz,
        wanted_hz,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(name: &[u8; 4], size: u32, content: &[u8]) -> Vec<u8> {
        [&name[..], &size.to_le_bytes(), content].concat()
    }

    fn format(channels: u8, rate: u32, bits: u8) -> Vec<u8> {
        let mut content = vec![1, 0, channels, 0];
        content.extend(rate.to_le_bytes());
        content.extend([0, 0, 0, 0, 0, 0, bits, 0]);
        chunk(b"fmt ", 16, &content)
    }

    fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
        [b"RIFF\0\0\0\0WAVE".to_vec(), chunks.concat()].concat()
    }

    #[test]
    fn a_line_is_read_past_other_chunks_and_whatever_its_length_says() {
        let sound = [1, 0, 0xff, 0xff];
        let odd = chunk(b"LIST", 5, b"data\0\0");
        for data in [
            chunk(b"data", 4, &sound),
            chunk(b"data", u32::MAX, &sound),
            chunk(b"data", 4, &[&sound[..], b"more"].concat()),
        ] {
            let file = file(&[odd.clone(), format(1, 16_000, 16), data]);
            assert_eq!(samples(&file, 16_000).as_deref(), Ok(&[1, -1][..]));
        }
    }

    #[test]
    fn what_cannot_be_said_is_refused_with_a_sentence() {
        let data = chunk(b"data", 2, &[0, 0]);
        for (fmt, expected) in [
            (format(2, 16_000, 16), "2 channels of 16 bit at 16000 Hz"),
            (format(1, 48_000, 16), "at 48000 Hz (format 1), not one"),
            (format(1, 16_000, 8), "of 8 bit"),
            (chunk(b"fmt ", 2, &[1, 0]), "no WAV file"),
            (Vec::new(), "no WAV file"),
        ] {
            let problem = samples(&file(&[fmt, data.clone()]), 16_000).unwrap_err();
            assert!(problem.to_string().contains(expected), "{problem}");
        }
        let whole = file(&[format(1, 16_000, 16), data]);
        for cut in 0..whole.len() - 2 {
            assert_eq!(
                samples(&whole[..cut], 16_000),
                Err(WavError::NotWav),
                "{cut}"
            );
        }
    }
}
