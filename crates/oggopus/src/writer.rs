//! Encodes interleaved sound to Opus and writes it as Ogg pages.

use std::hash::{BuildHasher, RandomState};
use std::io::Write;

use ogg::writing::{PacketWriteEndInfo, PacketWriter};

use crate::{Channels, Error, SAMPLE_RATE_HZ};

/// One packet is 20 ms: what Opus is tuned for, and what WebRTC sends as well.
const PACKET_SAMPLES: usize = SAMPLE_RATE_HZ as usize / 50;

/// A page is closed after this many packets, which is a second: a crash loses no more.
const PACKETS_PER_PAGE: u32 = 50;

/// The largest Opus packet of one frame is 1275 bytes (RFC 6716, section 3.4).
const MAX_PACKET_BYTES: usize = 1275;

/// Encoder settings of a file.
#[derive(Debug, Clone, Copy)]
pub struct WriterOptions {
    /// Channels of the input and of the file.
    pub channels: Channels,
    /// Target of the variable bit rate, bits per second for all channels together.
    pub bitrate_bps: i32,
    /// Effort of the encoder, 0 to 10.
    pub complexity: i32,
}

impl WriterOptions {
    /// Values for speech: 32 kbit/s for each channel keeps it transparent and the two parties of a
    /// stereo file apart. Complexity 5, because a recorder runs beside every call and the next
    /// steps cost twice the time for a difference that nobody hears at this rate.
    pub fn speech(channels: Channels) -> Self {
        Self {
            channels,
            bitrate_bps: 32_000 * channels.count() as i32,
            complexity: 5,
        }
    }
}

/// Writes one Ogg Opus stream.
///
/// Feed it with [`write`](Self::write) and end it with [`finish`](Self::finish). A writer that is
/// dropped instead leaves a file that lacks its last second and its end mark but is readable.
///
/// ```
/// # fn main() -> Result<(), oggopus::Error> {
/// use oggopus::{Channels, Writer, WriterOptions};
/// let mut writer = Writer::new(Vec::new(), WriterOptions::speech(Channels::Mono))?;
/// writer.write(&[0; 4_800])?;
/// let file = writer.finish()?;
/// assert_eq!(&file[..4], b"OggS");
/// # Ok(())
/// # }
/// ```
pub struct Writer<W: Write> {
    out: W,
    /// Collects the page in progress in memory, so that `out` gets whole pages only, each in one
    /// call.
    pages: PacketWriter<'static, Vec<u8>>,
    encoder: opus::Encoder,
    channels: Channels,
    serial: u32,
    /// Samples at the start of the decoded stream that are the codec's own delay and not sound.
    pre_skip: u64,
    /// Interleaved sound that does not fill a packet yet.
    pending: Vec<i16>,
    /// Samples in the packets written so far.
    encoded_samples: u64,
    packets_in_page: u32,
}

impl<W: Write> Writer<W> {
    /// Starts a stream and writes its two header pages.
    ///
    /// # Errors
    ///
    /// When the options are not values that Opus takes, or `out` cannot be written to.
    pub fn new(out: W, options: WriterOptions) -> Result<Self, Error> {
        let channels = options.channels;
        let mut encoder = opus::Encoder::new(
            SAMPLE_RATE_HZ,
            channels.for_codec(),
            opus::Application::Audio,
        )?;
        encoder.set_bitrate(opus::Bitrate::Bits(options.bitrate_bps))?;
        encoder.set_complexity(options.complexity)?;
        encoder.set_signal(opus::Signal::Voice)?;
        // By itself the encoder folds quiet stereo into mono, which would put each party on both
        // channels.
        encoder.set_force_channels(Some(channels.for_codec()))?;
        let pre_skip = u16::try_from(encoder.get_lookahead()?)
            .map_err(|_| Error::malformed("the encoder's delay does not fit the file's header"))?;

        let mut writer = Self {
            out,
            pages: PacketWriter::new(Vec::new()),
            encoder,
            channels,
            // Streams that are concatenated must differ in their serial numbers (RFC 3533, section
            // 6).
            serial: RandomState::new().hash_one(0u8) as u32,
            pre_skip: u64::from(pre_skip),
            pending: Vec::with_capacity(PACKET_SAMPLES * channels.count()),
            encoded_samples: 0,
            packets_in_page: 0,
        };
        writer.write_packet(
            identification_header(channels, pre_skip),
            PacketWriteEndInfo::EndPage,
            0,
        )?;
        writer.write_packet(comment_header(), PacketWriteEndInfo::EndPage, 0)?;
        Ok(writer)
    }

    /// Adds interleaved sound of any length.
    ///
    /// # Errors
    ///
    /// When `out` cannot be written to.
    pub fn write(&mut self, mut pcm: &[i16]) -> Result<(), Error> {
        let packet_values = PACKET_SAMPLES * self.channels.count();
        while !pcm.is_empty() {
            let take = pcm.len().min(packet_values - self.pending.len());
            self.pending.extend_from_slice(&pcm[..take]);
            pcm = &pcm[take..];
            if self.pending.len() == packet_values {
                let granule = self.encoded_samples + PACKET_SAMPLES as u64;
                self.encode_pending(false, granule)?;
            }
        }
        Ok(())
    }

    /// Samples written so far, also those that wait for their packet to fill.
    pub fn samples(&self) -> u64 {
        self.encoded_samples + (self.pending.len() / self.channels.count()) as u64
    }

    /// Writes what is left with the end mark, and returns the destination. The decoded length is
    /// exactly [`samples`](Self::samples).
    ///
    /// # Errors
    ///
    /// When `out` cannot be written to.
    pub fn finish(mut self) -> Result<W, Error> {
        // The decoder drops `pre_skip` samples at the start, so that many have to be encoded after
        // the last one. The last page's position then tells the decoder where to cut (RFC 7845,
        // section 4.4).
        let end = self.samples() + self.pre_skip;
        loop {
            self.pending
                .resize(PACKET_SAMPLES * self.channels.count(), 0);
            let covered = self.encoded_samples + PACKET_SAMPLES as u64;
            if covered >= end {
                self.encode_pending(true, end)?;
                return Ok(self.out);
            }
            self.encode_pending(false, covered)?;
        }
    }

    fn encode_pending(&mut self, last: bool, granule: u64) -> Result<(), Error> {
        let packet = self.encoder.encode_vec(&self.pending, MAX_PACKET_BYTES)?;
        self.pending.clear();
        self.encoded_samples += PACKET_SAMPLES as u64;
        self.packets_in_page += 1;
        let page_is_full = self.packets_in_page == PACKETS_PER_PAGE;
        if page_is_full {
            self.packets_in_page = 0;
        }
        let end = match (last, page_is_full) {
            (true, _) => PacketWriteEndInfo::EndStream,
            (false, true) => PacketWriteEndInfo::EndPage,
            (false, false) => PacketWriteEndInfo::NormalPacket,
        };
        self.write_packet(packet, end, granule)
    }

    fn write_packet(
        &mut self,
        packet: Vec<u8>,
        end: PacketWriteEndInfo,
        granule: u64,
    ) -> Result<(), Error> {
        self.pages.write_packet(packet, self.serial, end, granule)?;
        let page = self.pages.inner_mut();
        if !page.is_empty() {
            self.out.write_all(page)?;
            self.out.flush()?;
            page.clear();
        }
        Ok(())
    }
}

/// The identification header (RFC 7845, section 5.1).
fn identification_header(channels: Channels, pre_skip: u16) -> Vec<u8> {
    let mut header = Vec::with_capacity(19);
    header.extend_from_slice(b"OpusHead");
    header.push(1); // version
    header.push(channels.count() as u8);
    header.extend_from_slice(&pre_skip.to_le_bytes());
    header.extend_from_slice(&SAMPLE_RATE_HZ.to_le_bytes());
    header.extend_from_slice(&0i16.to_le_bytes()); // output gain
    header.push(0); // channel mapping family: mono or stereo
    header
}

/// The comment header (RFC 7845, section 5.2), with no comments.
fn comment_header() -> Vec<u8> {
    let vendor = opus::version();
    let mut header = Vec::with_capacity(16 + vendor.len());
    header.extend_from_slice(b"OpusTags");
    header.extend_from_slice(&(vendor.len() as u32).to_le_bytes());
    header.extend_from_slice(vendor.as_bytes());
    header.extend_from_slice(&0u32.to_le_bytes());
    header
}
