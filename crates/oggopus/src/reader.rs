//! Decodes Ogg Opus files, and measures them without decoding.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use ogg::reading::{OggReadError, PageParser};

use crate::{Channels, Error, SAMPLE_RATE_HZ};

/// A packet holds at most 120 ms (RFC 6716, section 3.2.5).
const MAX_PACKET_SAMPLES: usize = SAMPLE_RATE_HZ as usize * 120 / 1000;

/// A page has at most 27 bytes of header, 255 of lacing values and 255 times 255 of packets (RFC
/// 3533, section 6).
const MAX_PAGE_BYTES: u64 = 27 + 255 + 255 * 255;

const PAGE_HEADER_BYTES: usize = 27;

/// A position of -1 marks a page on which no packet ends.
const NO_GRANULE: u64 = u64::MAX;

/// The fields of the identification header (RFC 7845, section 5.1).
struct Identification {
    channels: Channels,
    pre_skip: u16,
}

impl Identification {
    fn parse(packet: &[u8]) -> Result<Self, Error> {
        if packet.len() < 19 || &packet[..8] != b"OpusHead" {
            return Err(Error::malformed(
                "the first packet is no opus identification header",
            ));
        }
        // The upper half of the version is the incompatible part (RFC 7845, section 5.1).
        if packet[8] & 0xf0 != 0 {
            return Err(Error::malformed(format!(
                "version {} of the opus mapping is unknown",
                packet[8]
            )));
        }
        let channels = Channels::from_count(packet[9])
            .filter(|_| packet[18] == 0)
            .ok_or_else(|| {
                Error::malformed(format!(
                    "{} channels in mapping family {} are not supported",
                    packet[9], packet[18]
                ))
            })?;
        Ok(Self {
            channels,
            pre_skip: u16::from_le_bytes([packet[10], packet[11]]),
        })
    }
}

/// Decodes one Ogg Opus stream packet by packet.
///
/// A file whose end is missing, because the process that wrote it died, reads up to its last whole
/// page.
pub struct Reader<R: Read + Seek> {
    packets: ogg::PacketReader<R>,
    decoder: opus::Decoder,
    channels: Channels,
    /// Samples of the codec's delay still to be dropped.
    to_skip: u64,
    pre_skip: u64,
    /// Samples decoded, with the codec's delay.
    decoded_samples: u64,
    ended: bool,
}

impl Reader<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, or does not begin as Ogg Opus.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::new(BufReader::new(File::open(path)?))
    }
}

impl<R: Read + Seek> Reader<R> {
    /// Reads the headers.
    ///
    /// # Errors
    ///
    /// When `input` cannot be read, or does not begin as Ogg Opus.
    pub fn new(input: R) -> Result<Self, Error> {
        let mut packets = ogg::PacketReader::new(input);
        let first = packets.read_packet_expected().map_err(read_error)?;
        let identification = Identification::parse(&first.data)?;
        let second = packets.read_packet_expected().map_err(read_error)?;
        if !second.data.starts_with(b"OpusTags") {
            return Err(Error::malformed(
                "the second packet is no opus comment header",
            ));
        }
        Ok(Self {
            packets,
            decoder: opus::Decoder::new(SAMPLE_RATE_HZ, identification.channels.for_codec())?,
            channels: identification.channels,
            to_skip: u64::from(identification.pre_skip),
            pre_skip: u64::from(identification.pre_skip),
            decoded_samples: 0,
            ended: false,
        })
    }

    /// Channels of the decoded sound.
    pub fn channels(&self) -> Channels {
        self.channels
    }

    /// The codec's delay in samples that the file declares. It is already left out of what is read.
    pub fn pre_skip(&self) -> u64 {
        self.pre_skip
    }

    /// Interleaved sound of the next packet, at most 120 ms; `None` at the end.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or a packet in it is not Opus.
    pub fn read(&mut self) -> Result<Option<Vec<i16>>, Error> {
        while !self.ended {
            let packet = match self.packets.read_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => break,
                Err(OggReadError::ReadError(error)) if error.kind() == ErrorKind::UnexpectedEof => {
                    break;
                }
                Err(error) => return Err(read_error(error)),
            };
            let width = self.channels.count();
            let mut pcm = vec![0; MAX_PACKET_SAMPLES * width];
            let mut samples = self.decoder.decode(&packet.data, &mut pcm, false)?;
            self.decoded_samples += samples as u64;
            if packet.last_in_stream() {
                self.ended = true;
                let beyond_end = self.decoded_samples.saturating_sub(packet.absgp_page());
                samples = samples.saturating_sub(beyond_end as usize);
            }
            let skip = self.to_skip.min(samples as u64) as usize;
            self.to_skip -= skip as u64;
            pcm.truncate(samples * width);
            pcm.drain(..skip * width);
            if !pcm.is_empty() {
                return Ok(Some(pcm));
            }
        }
        self.ended = true;
        Ok(None)
    }

    /// Everything that is left, interleaved. For files that are known to be small: a minute of
    /// stereo takes 11.5 MB.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_to_end(&mut self) -> Result<Vec<i16>, Error> {
        let mut all = Vec::new();
        while let Some(pcm) = self.read()? {
            all.extend_from_slice(&pcm);
        }
        Ok(all)
    }
}

fn read_error(error: OggReadError) -> Error {
    match error {
        OggReadError::ReadError(error) => Error::Io(error),
        other => Error::malformed(other.to_string()),
    }
}

/// How long the sound in a file is, from the position on its last whole page.
///
/// Reads the first page and at most the last 128 KiB, so the time does not depend on the length of
/// the file.
///
/// # Errors
///
/// When the file cannot be read, or no page of Ogg Opus is found at its beginning or its end.
pub fn duration(path: &Path) -> Result<Duration, Error> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();

    let mut start = vec![0; length.min(MAX_PAGE_BYTES) as usize];
    file.read_exact(&mut start)?;
    let first = Page::parse(&start)
        .ok_or_else(|| Error::malformed("it does not begin with a whole ogg page"))?;
    let identification = Identification::parse(first.body)?;

    // The last page may be cut off, and the one before it may be as large again.
    let tail_length = length.min(2 * MAX_PAGE_BYTES);
    let mut tail = vec![0; tail_length as usize];
    file.seek(SeekFrom::Start(length - tail_length))?;
    file.read_exact(&mut tail)?;
    let granule = (0..tail.len())
        .rev()
        .filter(|&at| tail[at..].starts_with(b"OggS"))
        .filter_map(|at| Page::parse(&tail[at..]))
        .find(|page| page.serial == first.serial && page.granule != NO_GRANULE)
        .map(|page| page.granule)
        .ok_or_else(|| Error::malformed("no whole ogg page lies in its last 128 KiB"))?;
    let samples = granule.saturating_sub(u64::from(identification.pre_skip));
    // Exact in nanoseconds, and no overflow for any file that exists.
    Ok(Duration::from_secs(samples / u64::from(SAMPLE_RATE_HZ))
        + Duration::from_nanos(
            samples % u64::from(SAMPLE_RATE_HZ) * 1_000_000_000 / u64::from(SAMPLE_RATE_HZ),
        ))
}

struct Page<'a> {
    granule: u64,
    serial: u32,
    body: &'a [u8],
}

impl<'a> Page<'a> {
    /// The page at the start of `bytes`; `None` if it is cut off or its checksum is wrong, so that
    /// the letters "OggS" within sound are not taken for a page.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header: [u8; PAGE_HEADER_BYTES] = bytes.get(..PAGE_HEADER_BYTES)?.try_into().ok()?;
        if &header[..4] != b"OggS" {
            return None;
        }
        let (mut parser, segments) = PageParser::new(header).ok()?;
        let body_start = PAGE_HEADER_BYTES + segments;
        let body_length = parser.parse_segments(bytes.get(PAGE_HEADER_BYTES..body_start)?.to_vec());
        let body = bytes.get(body_start..body_start + body_length)?;
        parser.parse_packet_data(body.to_vec()).ok()?;
        Some(Self {
            granule: u64::from_le_bytes(header[6..14].try_into().ok()?),
            serial: u32::from_le_bytes(header[14..18].try_into().ok()?),
            body,
        })
    }
}
