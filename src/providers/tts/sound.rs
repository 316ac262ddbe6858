//! The sound in the answer of a speech synthesiser: what it is, and its samples. Pure.
//!
//! What was asked for is raw samples, but services answer with what they have, and say so in the
//! media type, in the bytes, in both or in neither. The bytes are believed first. Raw samples and
//! WAV files are read, mixed to one channel and brought to one rate; everything else is named and
//! refused. Bytes that are no samples would be noise at full volume for the caller.

use crate::voice::resample::Resampler;

/// Why an answer cannot be played.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SoundProblem {
    /// It is sound or a file of a kind that is not read; the words name it.
    Unreadable(String),
    /// It is a text, such as a web page or JSON.
    Text(String),
}

/// How samples lie in the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Unsigned8,
    Signed16,
    Signed16BigEndian,
    Signed24,
    Signed32,
    Float32,
    Float64,
}

impl Encoding {
    fn bytes(self) -> usize {
        match self {
            Self::Unsigned8 => 1,
            Self::Signed16 | Self::Signed16BigEndian => 2,
            Self::Signed24 => 3,
            Self::Signed32 | Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    /// One sample; `bytes` has as many as it takes.
    fn sample(self, bytes: &[u8]) -> i16 {
        let float = |value: f64| (value * 32_768.0).clamp(-32_768.0, 32_767.0) as i16;
        match *bytes {
            [byte] => (i16::from(byte) - 128) << 8,
            [high, low] if self == Self::Signed16BigEndian => i16::from_be_bytes([high, low]),
            [low, high] | [_, low, high] => i16::from_le_bytes([low, high]),
            [a, b, c, d] if self == Self::Float32 => {
                float(f64::from(f32::from_le_bytes([a, b, c, d])))
            }
            [_, _, low, high] => i16::from_le_bytes([low, high]),
            [a, b, c, d, e, f, g, h] => float(f64::from_le_bytes([a, b, c, d, e, f, g, h])),
            _ => 0,
        }
    }
}

/// A stream of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Format {
    encoding: Encoding,
    rate_hz: u32,
    channels: usize,
}

/// Rates and channels that speech comes in; others are a header that was misread.
const RATES_HZ: std::ops::RangeInclusive<u32> = 4_000..=192_000;
const MAX_CHANNELS: usize = 8;

/// As many bytes are needed to tell a text from samples: sixteen samples that all look like
/// letters.
const TEXT_BYTES: usize = 32;

/// The longest frame of MP3 (320 kbit/s at 32 kHz) with the header of the next.
const MP3_FRAME_BYTES: usize = 1_445;

/// The longest header of a WAV file that is kept while its end is awaited. Longer chunks are
/// skipped.
const MAX_HEADER_BYTES: usize = 4_096;

/// Where in the answer the reader is.
#[derive(Debug)]
enum Place {
    /// What it is shows in the first bytes.
    Beginning,
    /// Between the chunks of a WAV file. `skip` bytes of one that does not matter are still to
    /// come.
    Chunks { format: Option<Format>, skip: u64 },
    /// Among samples; none after `left` bytes, where that is known.
    Samples { format: Format, left: Option<u64> },
}

/// Reads one answer, as it comes.
pub(super) struct SoundReader {
    media_type: MediaType,
    rate_hz: u32,
    place: Place,
    /// Bytes that have not been understood yet: less than a header or a sample.
    pending: Vec<u8>,
    resampler: Option<(u32, Resampler)>,
    /// What it was, for people.
    description: Option<String>,
}

impl SoundReader {
    /// A reader of an answer with this `Content-Type`. Its samples have `rate_hz`, which is also
    /// the rate of raw samples whose type names none.
    pub(super) fn new(content_type: &str, rate_hz: u32) -> Self {
        Self {
            media_type: MediaType::read(content_type),
            rate_hz,
            place: Place::Beginning,
            pending: Vec::new(),
            resampler: None,
            description: None,
        }
    }

    /// What the answer has turned out to be, such as "WAV, 44100 Hz, 2 channels".
    pub(super) fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// Takes the next bytes and returns the samples that are complete with them.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<i16>, SoundProblem> {
        self.pending.extend_from_slice(bytes);
        self.read(false)
    }

    /// Returns what is left at the end of the answer.
    pub(super) fn finish(&mut self) -> Result<Vec<i16>, SoundProblem> {
        let mut samples = self.read(true)?;
        if let Some((_, resampler)) = &mut self.resampler {
            resampler.finish(&mut samples);
        }
        Ok(samples)
    }

    fn read(&mut self, is_end: bool) -> Result<Vec<i16>, SoundProblem> {
        let mut samples = Vec::new();
        loop {
            let goes_on = match &mut self.place {
                Place::Beginning => self.begin(is_end)?,
                Place::Chunks { .. } => self.next_chunk()?,
                Place::Samples { .. } => self.take_samples(&mut samples),
            };
            if !goes_on {
                return Ok(samples);
            }
        }
    }

    /// Looks at the first bytes. True once they have told what follows.
    fn begin(&mut self, is_end: bool) -> Result<bool, SoundProblem> {
        if self.pending.is_empty() {
            return Ok(false);
        }
        let start = self.pending.as_slice();
        if !is_end && is_undecided(start) {
            return Ok(false);
        }
        if start.starts_with(b"RIFF") && start.get(8..12) == Some(b"WAVE") {
            self.pending.drain(..12);
            self.place = Place::Chunks {
                format: None,
                skip: 0,
            };
            return Ok(true);
        }
        if let Some(name) = container(start) {
            return Err(self.unreadable(name));
        }
        if looks_like_text(start) {
            return Err(SoundProblem::Text(self.media_type.name_or("no media type")));
        }
        let Some(format) = self.media_type.raw(self.rate_hz) else {
            let named = self.media_type.essence.clone();
            let is_wav = named.ends_with("wav") || named.ends_with("wave");
            return Err(if is_wav {
                self.unreadable("something without the header of a WAV file")
            } else {
                self.unreadable(&named)
            });
        };
        self.samples_begin("raw samples", format, None)?;
        Ok(true)
    }

    fn unreadable(&self, what: &str) -> SoundProblem {
        let labelled = self.media_type.name_or("no media type");
        SoundProblem::Unreadable(if what.contains(&labelled) {
            what.to_owned()
        } else {
            format!("{what} (labelled {labelled})")
        })
    }

    fn samples_begin(
        &mut self,
        container: &str,
        format: Format,
        left: Option<u64>,
    ) -> Result<(), SoundProblem> {
        let Format {
            rate_hz, channels, ..
        } = format;
        if !RATES_HZ.contains(&rate_hz) || !(1..=MAX_CHANNELS).contains(&channels) {
            return Err(self.unreadable(&format!(
                "{container} of {rate_hz} Hz with {channels} channels"
            )));
        }
        let several = if channels == 1 { "" } else { "s" };
        self.description = Some(format!(
            "{container}, {rate_hz} Hz, {channels} channel{several}"
        ));
        // A second file in the same answer goes on where the first one has ended.
        if self
            .resampler
            .as_ref()
            .is_none_or(|(from, _)| *from != rate_hz)
        {
            self.resampler = Some((rate_hz, Resampler::new(rate_hz, self.rate_hz)));
        }
        self.place = Place::Samples { format, left };
        Ok(())
    }

    /// Reads the header of the next chunk of a WAV file (Microsoft's "Multimedia Programming
    /// Interface and Data Specifications 1.0", and `mmreg.h` for the extensible format).
    fn next_chunk(&mut self) -> Result<bool, SoundProblem> {
        let Place::Chunks { format, skip } = &mut self.place else {
            return Ok(false);
        };
        if *skip > 0 {
            let here = (*skip).min(self.pending.len() as u64);
            self.pending.drain(..here as usize);
            *skip -= here;
            return Ok(*skip == 0);
        }
        // A chunk of an odd length is filled up.
        if self.pending.first() == Some(&0) {
            self.pending.remove(0);
            return Ok(true);
        }
        let Some((header, rest)) = self.pending.split_at_checked(8) else {
            return Ok(false);
        };
        let size = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        match &header[..4] {
            // The next file: a service that makes its speech in parts has put them together.
            b"RIFF" => {
                if self.pending.len() < 12 {
                    return Ok(false);
                }
                self.pending.drain(..12);
                Ok(true)
            }
            b"fmt " if size as usize <= MAX_HEADER_BYTES => {
                let Some(body) = rest.get(..size as usize) else {
                    return Ok(false);
                };
                let read = wav_format(body);
                match read {
                    Ok(read) => {
                        *format = Some(read);
                        self.pending.drain(..8 + size as usize);
                        Ok(true)
                    }
                    Err(what) => Err(self.unreadable(&what)),
                }
            }
            b"data" => {
                let Some(format) = *format else {
                    return Err(self.unreadable("a WAV file without a format"));
                };
                self.pending.drain(..8);
                // Who writes a header before the sound is made leaves the size open: nothing, or as
                // much as fits in there.
                let is_open = size == 0 || size >= 0x7fff_0000;
                self.samples_begin("WAV", format, (!is_open).then_some(u64::from(size)))?;
                Ok(true)
            }
            _ => {
                *skip = u64::from(size);
                self.pending.drain(..8);
                Ok(true)
            }
        }
    }

    fn take_samples(&mut self, samples: &mut Vec<i16>) -> bool {
        let Place::Samples { format, left } = &mut self.place else {
            return false;
        };
        let width = format.encoding.bytes();
        let frame = width * format.channels;
        let available = left.map_or(self.pending.len(), |left| {
            self.pending
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX))
        });
        let whole = available - available % frame;
        let mixed: Vec<i16> = self.pending[..whole]
            .chunks_exact(frame)
            .map(|frame| {
                let sum: i32 = frame
                    .chunks_exact(width)
                    .map(|sample| i32::from(format.encoding.sample(sample)))
                    .sum();
                (sum / format.channels as i32) as i16
            })
            .collect();
        if let Some((_, resampler)) = &mut self.resampler {
            resampler.push(&mixed, samples);
        }
        self.pending.drain(..whole);
        let Some(left) = left else {
            return false;
        };
        *left -= whole as u64;
        if *left >= frame as u64 {
            return false;
        }
        // What follows the samples is another chunk, and no sound.
        let skip = *left;
        self.place = Place::Chunks {
            format: Some(*format),
            skip,
        };
        true
    }
}

/// The format in the `fmt ` chunk; else what it is, for people.
fn wav_format(body: &[u8]) -> Result<Format, String> {
    let half = |at: usize| {
        body.get(at..at + 2)
            .map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    };
    let (Some(tag), Some(channels), Some(low), Some(high), Some(bits)) =
        (half(0), half(2), half(4), half(6), half(14))
    else {
        return Err("a WAV file with half a header".to_owned());
    };
    // The extensible format has its tag in front of a fixed id.
    let tag = if tag == 0xfffe {
        half(24).unwrap_or(tag)
    } else {
        tag
    };
    let encoding = match (tag, bits) {
        (1, 8) => Encoding::Unsigned8,
        (1, 16) => Encoding::Signed16,
        (1, 24) => Encoding::Signed24,
        (1, 32) => Encoding::Signed32,
        (3, 32) => Encoding::Float32,
        (3, 64) => Encoding::Float64,
        (1 | 3, bits) => return Err(format!("WAV with {bits} bits a sample")),
        (6, _) => return Err("WAV with A-law".to_owned()),
        (7, _) => return Err("WAV with \u{b5}-law".to_owned()),
        (0x55, _) => return Err("WAV with MP3 in it".to_owned()),
        (tag, _) => return Err(format!("WAV with codec {tag:#06x}")),
    };
    Ok(Format {
        encoding,
        rate_hz: u32::from(high) << 16 | u32::from(low),
        channels: usize::from(channels),
    })
}

/// Files that are no samples begin like this.
const BEGINNINGS: [(&[u8], &str); 12] = [
    (b"ID3", "MP3"),
    (b"OggS", "Ogg (Opus or Vorbis)"),
    (b"fLaC", "FLAC"),
    (&[0x1a, 0x45, 0xdf, 0xa3], "WebM"),
    (b"FORM", "AIFF"),
    (b"caff", "CAF"),
    (b".snd", "AU"),
    (b"#!AMR", "AMR"),
    (b"RIFX", "WAV with its bytes the other way round"),
    (b"RF64", "WAV of 64 bits"),
    (b"PK\x03\x04", "a ZIP file"),
    (&[0x1f, 0x8b, 0x08], "a gzip file"),
];

/// Whether more bytes may show that these are no samples.
fn is_undecided(start: &[u8]) -> bool {
    let is_begun = |beginning: &[u8]| start.len() < beginning.len() && beginning.starts_with(start);
    let may_be_mp4 = start.len() < 8
        && start.iter().take(3).all(|byte| *byte == 0)
        && b"ftyp".starts_with(start.get(4..).unwrap_or_default());
    let may_be_mpeg = start[0] == 0xff
        && start.len() < MP3_FRAME_BYTES
        && (start.len() < 6 || mpeg_frame_bytes(start).is_some());
    let may_be_text = start.len() < TEXT_BYTES && looks_like_text(start);
    (start.starts_with(b"RIFF") && start.len() < 12)
        || is_begun(b"RIFF")
        || BEGINNINGS.iter().any(|(beginning, _)| is_begun(beginning))
        || may_be_mp4
        || may_be_mpeg
        || may_be_text
}

/// Files that are no samples, by their first bytes.
fn container(start: &[u8]) -> Option<&'static str> {
    if let Some((_, name)) = BEGINNINGS
        .iter()
        .find(|(beginning, _)| start.starts_with(beginning))
    {
        return Some(name);
    }
    if start.get(4..8) == Some(b"ftyp") {
        return Some("MP4 (AAC)");
    }
    // The sync word alone is also a soft sample, so that a second frame has to follow the first.
    let next = mpeg_frame_bytes(start)?;
    let rest = start.get(next..)?;
    match (start[1] >> 1 & 3, rest) {
        (0, [0xff, second, ..]) if second & 0xf6 == 0xf0 => Some("AAC"),
        (1..=3, rest) if mpeg_frame_bytes(rest).is_some() => Some("MP3"),
        _ => None,
    }
}

/// How long the frame is whose header stands here: MPEG audio (ISO 11172-3, 13818-3) or AAC with
/// ADTS (ISO 13818-7).
fn mpeg_frame_bytes(header: &[u8]) -> Option<usize> {
    const RATES_HZ: [usize; 3] = [44_100, 48_000, 32_000];
    const MPEG1_KBITS: [[usize; 15]; 3] = [
        [
            0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320,
        ],
        [
            0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384,
        ],
        [
            0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448,
        ],
    ];
    const MPEG2_KBITS: [usize; 15] = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];
    let &[0xff, second, third, fourth, ..] = header else {
        return None;
    };
    if second & 0xf6 == 0xf0 {
        let (fifth, sixth) = (*header.get(4)?, *header.get(5)?);
        let size =
            usize::from(fourth & 3) << 11 | usize::from(fifth) << 3 | usize::from(sixth) >> 5;
        return (size >= 7).then_some(size);
    }
    let (version, layer) = (second >> 3 & 3, usize::from(second >> 1 & 3));
    let (kbits, rate) = (usize::from(third >> 4), usize::from(third >> 2 & 3));
    // 1 is reserved in both, and a bit rate of nothing is "free".
    if second & 0xe0 != 0xe0 || version == 1 || layer == 0 || kbits % 15 == 0 || rate == 3 {
        return None;
    }
    let rate = RATES_HZ[rate] >> [2, 0, 1, 0][usize::from(version)];
    let padding = usize::from(third >> 1 & 1);
    let is_first_version = version == 3;
    let kbits = match is_first_version {
        true => MPEG1_KBITS[layer - 1][kbits],
        false if layer == 3 => MPEG1_KBITS[0][kbits],
        false => MPEG2_KBITS[kbits],
    };
    Some(match layer {
        3 => (12_000 * kbits / rate + padding) * 4,
        1 if !is_first_version => 72_000 * kbits / rate + padding,
        _ => 144_000 * kbits / rate + padding,
    })
}

/// Whether all of the beginning is letters and signs: a web page, JSON, a sentence.
fn looks_like_text(start: &[u8]) -> bool {
    start[..start.len().min(TEXT_BYTES)]
        .iter()
        .all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t'))
}

/// `Content-Type`: the type, and its parameters.
#[derive(Debug)]
struct MediaType {
    /// In small letters, without parameters; empty if there was none.
    essence: String,
    parameters: Vec<(String, String)>,
}

impl MediaType {
    fn read(text: &str) -> Self {
        let mut parts = text.split(';').map(|part| part.trim().to_ascii_lowercase());
        let essence = parts.next().unwrap_or_default();
        let parameters = parts
            .filter_map(|part| {
                let (name, value) = part.split_once('=')?;
                Some((
                    name.trim().to_owned(),
                    value.trim().trim_matches('"').to_owned(),
                ))
            })
            .collect();
        Self {
            essence,
            parameters,
        }
    }

    fn name_or(&self, nothing: &str) -> String {
        match self.essence.is_empty() {
            true => nothing.to_owned(),
            false => self.essence.clone(),
        }
    }

    fn parameter(&self, names: &[&str]) -> Option<&str> {
        let mut found = self.parameters.iter();
        let found = found.find(|(name, _)| names.contains(&name.as_str()));
        found.map(|(_, value)| value.as_str())
    }

    /// How raw samples lie under this type; none if it says that they are not raw.
    fn raw(&self, asked_rate_hz: u32) -> Option<Format> {
        let is_raw = matches!(
            self.essence.as_str(),
            "" | "application/octet-stream"
                | "binary/octet-stream"
                | "audio/pcm"
                | "audio/x-pcm"
                | "audio/raw"
                | "audio/x-raw"
                | "audio/l16"
                | "audio/x-l16"
                | "audio/*"
                | "audio/s16le"
        );
        if !is_raw {
            return None;
        }
        let number = |names: &[&str]| self.parameter(names).and_then(|value| value.parse().ok());
        // RFC 2586 has L16 with the high byte first. Services that add codec=pcm mean the low one.
        let is_network_order = self.essence.ends_with("l16")
            && self.parameter(&["codec", "format", "encoding"]).is_none();
        let stated = self
            .parameter(&["format", "encoding", "codec"])
            .unwrap_or_default();
        let bits = number(&["bits", "bitdepth", "bits-per-sample"]);
        let encoding = match (bits, stated) {
            (Some(8), _) => Encoding::Unsigned8,
            (_, "s16be") => Encoding::Signed16BigEndian,
            (Some(24), _) | (_, "s24le" | "pcm_s24le") => Encoding::Signed24,
            (_, "f32le" | "pcm_f32le" | "float" | "float32") => Encoding::Float32,
            (Some(32), _) | (_, "s32le" | "pcm_s32le") => Encoding::Signed32,
            (_, "mulaw" | "ulaw" | "pcm_mulaw" | "alaw" | "pcm_alaw" | "mp3" | "opus") => {
                return None;
            }
            _ if is_network_order => Encoding::Signed16BigEndian,
            _ => Encoding::Signed16,
        };
        Some(Format {
            encoding,
            rate_hz: number(&["rate", "samplerate", "sample_rate", "sample-rate"])
                .unwrap_or(asked_rate_hz),
            channels: number(&["channels", "channel", "ch"]).unwrap_or(1) as usize,
        })
    }
}

#[cfg(test)]
#[path = "sound_tests.rs"]
mod tests;
