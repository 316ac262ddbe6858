//! Puts the sound of several senders in order on two channels.
//!
//! Positions are samples since the recording began. Nothing here reads a clock: the caller says
//! where sound belongs and how much time has passed.

use std::collections::VecDeque;
use std::io::Write;

use crate::{Channels, Error, SAMPLE_RATE_HZ, Writer, WriterOptions};

/// The channel of a party.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The agent's channel.
    Left,
    /// Everybody else's channel.
    Right,
}

/// One sender on a [`DualChannelTimeline`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceId(usize);

/// How long a timeline waits for late sound, and what it takes for jitter.
#[derive(Debug, Clone, Copy)]
pub struct TimelineOptions {
    /// How long a position stays open for sound that arrives late, in samples.
    pub delay_samples: u64,
    /// A gap or an overlap of up to this many samples between two pieces of one source is taken for
    /// jitter of their positions, and the pieces are joined. The error does not add up, because
    /// each piece is compared with the position that was given for it.
    pub jitter_samples: u64,
    /// Sound that lies further than this ahead of what has been drained is refused. This bounds the
    /// memory: two bytes for each sample and side.
    pub max_ahead_samples: u64,
}

impl Default for TimelineOptions {
    /// Half a second of waiting covers what a jitter buffer or a busy machine holds back. 120 ms of
    /// jitter is a delay of six packets; shorter gaps are inaudible when they are closed. Ten
    /// seconds ahead take 1.9 MB for both sides.
    fn default() -> Self {
        let rate = u64::from(SAMPLE_RATE_HZ);
        Self {
            delay_samples: rate / 2,
            jitter_samples: rate * 120 / 1000,
            max_ahead_samples: rate * 10,
        }
    }
}

/// What became of a piece of sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Where its first sample was put, after joining; the place it would have had if all of it was
    /// dropped.
    pub start: u64,
    /// Samples that are on the timeline.
    pub kept: usize,
    /// Samples that came after their position was drained, overlap sound of the same source, or lie
    /// too far ahead.
    pub dropped: usize,
}

struct Source {
    side: Side,
    /// Position at which the sound given so far ends.
    end: Option<u64>,
}

/// Mixes mono sound with positions into one continuous stereo stream.
///
/// What is drained depends on the time alone: a party that stops sending is silent and delays
/// nobody.
pub struct DualChannelTimeline {
    options: TimelineOptions,
    sources: Vec<Source>,
    /// Position of the first sample that has not been drained: the front of both queues.
    drained: u64,
    left: VecDeque<i16>,
    right: VecDeque<i16>,
    /// The piece returned last.
    piece: Vec<i16>,
}

impl DualChannelTimeline {
    /// At most this much is returned at once, so that a long silence needs no memory.
    const MAX_PIECE_SAMPLES: u64 = SAMPLE_RATE_HZ as u64;

    /// An empty timeline at position 0.
    pub fn new(options: TimelineOptions) -> Self {
        Self {
            options,
            sources: Vec::new(),
            drained: 0,
            left: VecDeque::new(),
            right: VecDeque::new(),
            piece: Vec::new(),
        }
    }

    /// Adds a sender. Several on one side are mixed.
    pub fn add_source(&mut self, side: Side) -> SourceId {
        self.sources.push(Source { side, end: None });
        SourceId(self.sources.len() - 1)
    }

    /// Places mono sound whose first sample belongs at `start`. Pieces of one source come in their
    /// order; where they overlap by more than jitter, the earlier piece stays.
    ///
    /// # Panics
    ///
    /// If `source` is from another timeline that had more sources.
    pub fn push(&mut self, source: SourceId, start: u64, pcm: &[i16]) -> Placed {
        let source = &mut self.sources[source.0];
        let start = match source.end {
            Some(end) if end.abs_diff(start) <= self.options.jitter_samples => end,
            _ => start,
        };
        let first_free = self.drained.max(source.end.unwrap_or(0));
        let limit = self.drained + self.options.max_ahead_samples;
        let end = start.saturating_add(pcm.len() as u64);
        let kept_from = start.max(first_free).min(end);
        let kept_to = end.min(limit).max(kept_from);
        if kept_to > kept_from {
            source.end = Some(kept_to);
        } else if end <= first_free {
            // All of it came too late. The source's end still moves on, so that the next piece
            // joins this one.
            source.end = Some(source.end.unwrap_or(0).max(end));
        }

        let pcm = &pcm[(kept_from - start) as usize..(kept_to - start) as usize];
        if !pcm.is_empty() {
            let queue = match source.side {
                Side::Left => &mut self.left,
                Side::Right => &mut self.right,
            };
            let at = (kept_from - self.drained) as usize;
            if queue.len() < at + pcm.len() {
                queue.resize(at + pcm.len(), 0);
            }
            for (there, new) in queue.range_mut(at..at + pcm.len()).zip(pcm) {
                *there = there.saturating_add(*new);
            }
        }
        Placed {
            start: kept_from,
            kept: pcm.len(),
            dropped: (end - start) as usize - pcm.len(),
        }
    }

    /// Position up to which everything has been returned.
    pub fn drained(&self) -> u64 {
        self.drained
    }

    /// Position after the last sound that is on the timeline.
    pub fn end(&self) -> u64 {
        self.drained + self.left.len().max(self.right.len()) as u64
    }

    /// The next piece of interleaved sound that is final at time `now` (samples since the start),
    /// at most a second; `None` when there is no more. Call it until it returns `None`.
    pub fn drain(&mut self, now: u64) -> Option<&[i16]> {
        self.drain_until(now.saturating_sub(self.options.delay_samples))
    }

    /// Like [`drain`](Self::drain) up to a position, without waiting for late sound: for the end of
    /// the recording.
    pub fn drain_until(&mut self, position: u64) -> Option<&[i16]> {
        let samples = position
            .saturating_sub(self.drained)
            .min(Self::MAX_PIECE_SAMPLES) as usize;
        if samples == 0 {
            return None;
        }
        self.piece.clear();
        for _ in 0..samples {
            self.piece.push(self.left.pop_front().unwrap_or(0));
            self.piece.push(self.right.pop_front().unwrap_or(0));
        }
        self.drained += samples as u64;
        Some(&self.piece)
    }
}

/// Records a call: a [`DualChannelTimeline`] whose sound goes to a stereo [`Writer`].
pub struct DualChannelWriter<W: Write> {
    timeline: DualChannelTimeline,
    writer: Writer<W>,
}

impl<W: Write> DualChannelWriter<W> {
    /// Starts a stereo stream with [`WriterOptions::speech`].
    ///
    /// # Errors
    ///
    /// As [`Writer::new`].
    pub fn new(out: W, options: TimelineOptions) -> Result<Self, Error> {
        Ok(Self {
            timeline: DualChannelTimeline::new(options),
            writer: Writer::new(out, WriterOptions::speech(Channels::Stereo))?,
        })
    }

    /// Adds a sender; see [`DualChannelTimeline::add_source`].
    pub fn add_source(&mut self, side: Side) -> SourceId {
        self.timeline.add_source(side)
    }

    /// Places mono sound; see [`DualChannelTimeline::push`].
    pub fn push(&mut self, source: SourceId, start: u64, pcm: &[i16]) -> Placed {
        self.timeline.push(source, start, pcm)
    }

    /// Writes what is final at time `now`, in samples since the recording began. To be called a few
    /// times a second.
    ///
    /// # Errors
    ///
    /// When the destination cannot be written to.
    pub fn advance(&mut self, now: u64) -> Result<(), Error> {
        while let Some(pcm) = self.timeline.drain(now) {
            self.writer.write(pcm)?;
        }
        Ok(())
    }

    /// Samples in the file so far.
    pub fn samples(&self) -> u64 {
        self.writer.samples()
    }

    /// Writes everything that is on the timeline, silence up to `end` if it is later, and the end
    /// of the file. Returns the destination.
    ///
    /// # Errors
    ///
    /// When the destination cannot be written to.
    pub fn finish(mut self, end: u64) -> Result<W, Error> {
        let end = end.max(self.timeline.end());
        while let Some(pcm) = self.timeline.drain_until(end) {
            self.writer.write(pcm)?;
        }
        self.writer.finish()
    }
}
