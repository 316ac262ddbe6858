//! Opus packets to PCM at 48 kHz, and concealment of packets that did not come.

use opus::Channels;

use super::OPUS_RATE_HZ;

/// The decoder of one stream. It begins in mono and becomes stereo with the first stereo packet,
/// for good: encoders change back and forth, and with every change the decoder would lose its
/// memory.
pub(crate) struct OpusDecoder {
    opus: opus::Decoder,
    channels: usize,
}

impl OpusDecoder {
    /// # Errors
    ///
    /// If libopus has no memory.
    pub fn new() -> Result<Self, opus::Error> {
        Ok(Self {
            opus: opus::Decoder::new(OPUS_RATE_HZ, Channels::Mono)?,
            channels: 1,
        })
    }

    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Becomes stereo if the packet is; returns whether that was a change.
    pub fn follow_channels(&mut self, payload: &[u8]) -> Result<bool, opus::Error> {
        if self.channels == 2 || !is_stereo(payload) {
            return Ok(false);
        }
        self.opus = opus::Decoder::new(OPUS_RATE_HZ, Channels::Stereo)?;
        self.channels = 2;
        Ok(true)
    }

    /// Forgets the stream so far.
    pub fn reset(&mut self) {
        if let Err(error) = self.opus.reset_state() {
            log::warn!("the Opus decoder was not reset: {error}");
        }
    }

    /// Appends the packet's `frames` samples of each channel to `pcm`.
    pub fn decode(
        &mut self,
        payload: &[u8],
        frames: usize,
        pcm: &mut Vec<i16>,
    ) -> Result<(), opus::Error> {
        self.append(payload, false, frames, pcm)
    }

    /// Appends `frames` samples in place of the packet before this one, from this one's in-band
    /// error correction, or concealed if it has none.
    pub fn recover_previous(
        &mut self,
        payload: &[u8],
        frames: usize,
        pcm: &mut Vec<i16>,
    ) -> Result<(), opus::Error> {
        self.append(payload, true, frames, pcm)
    }

    /// Appends `frames` concealed samples, which must be a multiple of 2.5 ms: the sound before
    /// continued and fading, or noise during DTX.
    pub fn conceal(&mut self, frames: usize, pcm: &mut Vec<i16>) -> Result<(), opus::Error> {
        self.append(&[], false, frames, pcm)
    }

    fn append(
        &mut self,
        payload: &[u8],
        recover: bool,
        frames: usize,
        pcm: &mut Vec<i16>,
    ) -> Result<(), opus::Error> {
        let before = pcm.len();
        pcm.resize(before + frames * self.channels, 0);
        match self.opus.decode(payload, &mut pcm[before..], recover) {
            Ok(decoded) => {
                pcm.truncate(before + decoded * self.channels);
                Ok(())
            }
            Err(error) => {
                pcm.truncate(before);
                Err(error)
            }
        }
    }
}

/// Whether the packet says that it holds two channels (RFC 6716, section 3.1: the third last bit of
/// the first byte).
fn is_stereo(payload: &[u8]) -> bool {
    payload.first().is_some_and(|toc| toc & 0x04 != 0)
}

/// Samples of each channel in the packet at 48 kHz, `None` if it is not an Opus packet.
pub(crate) fn packet_frames(payload: &[u8]) -> Option<usize> {
    opus::packet::get_nb_samples(payload, OPUS_RATE_HZ).ok()
}

/// Whether the packet carries error correction for the one before it.
///
/// SILK and hybrid frames begin with a voice activity bit for each of their SILK frames, followed
/// by the bit that says so (LBRR), twice that for stereo (RFC 6716, sections 4.2.3 and 4.2.4); CELT
/// frames never carry any.
pub(crate) fn recovers_previous(payload: &[u8]) -> bool {
    let Some(toc) = payload.first() else {
        return false;
    };
    let config = toc >> 3;
    let silk_frames = match config {
        // 10, 20, 40 and 60 ms of SILK; 10 and 20 ms of hybrid (RFC 6716, table 2).
        0..=11 => (config % 4).max(1),
        12..=15 => 1,
        _ => return false,
    };
    let Ok(packet) = opus::packet::parse(payload) else {
        return false;
    };
    let Some(first) = packet.frames.first().and_then(|frame| frame.first()) else {
        return false;
    };
    let bit = |position: u8| first >> (7 - position) & 1 == 1;
    bit(silk_frames) || (is_stereo(payload) && bit(2 * silk_frames + 1))
}
