//! Video frames as the application makes them. They can be built and are refused by the source.

use std::fmt::Debug;

use thiserror::Error;

use crate::video_source::VideoResolution;

/// Why a frame was refused.
#[derive(Debug, Error)]
pub enum SinkError {
    /// The platform's reason.
    #[error("platform error: {0}")]
    Platform(String),
}

/// How a picture must be turned to be upright.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum VideoRotation {
    /// It is upright.
    VideoRotation0 = 0,
    /// By 90 degrees clockwise.
    VideoRotation90 = 90,
    /// By 180 degrees.
    VideoRotation180 = 180,
    /// By 270 degrees clockwise.
    VideoRotation270 = 270,
}

/// Order of colours in packed pictures.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
#[allow(
    clippy::upper_case_acronyms,
    reason = "the names are part of the API that is replaced"
)]
pub enum VideoFormatType {
    /// Alpha, red, green, blue.
    ARGB,
    /// Blue, green, red, alpha.
    BGRA,
    /// Alpha, blue, green, red.
    ABGR,
    /// Red, green, blue, alpha.
    RGBA,
}

/// Layout of a picture.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VideoBufferType {
    /// A buffer of the platform.
    Native,
    /// Three planes, see [`I420Buffer`].
    I420,
}

/// Metadata of a frame.
#[derive(Debug, Clone)]
pub struct FrameMetadata {
    /// The application's time of the frame.
    pub user_timestamp: Option<u64>,
    /// The application's number of the frame.
    pub frame_id: Option<u32>,
    /// Bytes of the application.
    pub user_data: Option<Vec<u8>>,
}

/// Codec of an encoded frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodedVideoCodec {
    /// H.264.
    H264,
    /// H.265.
    H265,
    /// VP8.
    VP8,
    /// VP9.
    VP9,
    /// AV1.
    AV1,
}

/// Whether a frame can be decoded alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncodedFrameType {
    /// It can be decoded alone.
    Key,
    /// It needs frames before it.
    Delta,
}

/// A frame that the application has encoded.
#[derive(Debug, Clone)]
pub struct EncodedVideoFrame<'a> {
    /// Codec of the payload.
    pub codec: EncodedVideoCodec,
    /// The encoded frame.
    pub payload: &'a [u8],
    /// When the picture was taken, in microseconds.
    pub timestamp_us: i64,
    /// Whether the frame can be decoded alone.
    pub frame_type: EncodedFrameType,
    /// Size of the picture.
    pub resolution: VideoResolution,
    /// Metadata of the frame.
    pub frame_metadata: Option<FrameMetadata>,
}

/// A frame of pixels.
#[derive(Debug)]
pub struct VideoFrame<T>
where
    T: AsRef<dyn VideoBuffer>,
{
    /// How the picture must be turned.
    pub rotation: VideoRotation,
    /// When the picture was taken, in microseconds.
    pub timestamp_us: i64,
    /// Metadata of the frame.
    pub frame_metadata: Option<FrameMetadata>,
    /// The picture.
    pub buffer: T,
}

impl<T: AsRef<dyn VideoBuffer>> VideoFrame<T> {
    /// A frame without time and metadata.
    pub fn new(rotation: VideoRotation, buffer: T) -> Self {
        Self {
            rotation,
            timestamp_us: 0,
            frame_metadata: None,
            buffer,
        }
    }
}

/// A picture of any layout.
pub type BoxVideoBuffer = Box<dyn VideoBuffer>;
/// A frame of any layout.
pub type BoxVideoFrame = VideoFrame<BoxVideoBuffer>;

/// A picture.
pub trait VideoBuffer: Send + Sync + Debug {
    /// Width in pixels.
    fn width(&self) -> u32;
    /// Height in pixels.
    fn height(&self) -> u32;
    /// Layout.
    fn buffer_type(&self) -> VideoBufferType;
    /// The picture, if its layout is I420.
    fn as_i420(&self) -> Option<&I420Buffer> {
        None
    }
}

/// A picture as three planes: luma, and two of chroma at half width and height.
pub struct I420Buffer {
    width: u32,
    height: u32,
    planes: [Vec<u8>; 3],
}

impl I420Buffer {
    /// A picture with all bytes zero.
    pub fn new(width: u32, height: u32) -> Self {
        let chroma = (width.div_ceil(2) * height.div_ceil(2)) as usize;
        let planes = [
            vec![0; (width * height) as usize],
            vec![0; chroma],
            vec![0; chroma],
        ];
        Self {
            width,
            height,
            planes,
        }
    }

    /// A black picture.
    pub fn new_black(width: u32, height: u32) -> Self {
        let mut picture = Self::new(width, height);
        picture.planes[1].fill(128);
        picture.planes[2].fill(128);
        picture
    }

    /// Bytes of a row of each plane.
    pub fn strides(&self) -> (u32, u32, u32) {
        (self.width, self.width.div_ceil(2), self.width.div_ceil(2))
    }

    /// The three planes: Y, U and V.
    pub fn data(&self) -> (&[u8], &[u8], &[u8]) {
        let [y, u, v] = &self.planes;
        (y, u, v)
    }

    /// The three planes, writable: Y, U and V.
    pub fn data_mut(&mut self) -> (&mut [u8], &mut [u8], &mut [u8]) {
        let [y, u, v] = &mut self.planes;
        (y, u, v)
    }
}

impl VideoBuffer for I420Buffer {
    fn width(&self) -> u32 {
        self.width
    }

    fn height(&self) -> u32 {
        self.height
    }

    fn buffer_type(&self) -> VideoBufferType {
        VideoBufferType::I420
    }

    fn as_i420(&self) -> Option<&I420Buffer> {
        Some(self)
    }
}

impl Debug for I420Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("I420Buffer")
            .field("width", &self.width)
            .field("height", &self.height)
            .finish()
    }
}

impl AsRef<dyn VideoBuffer> for I420Buffer {
    fn as_ref(&self) -> &(dyn VideoBuffer + 'static) {
        self
    }
}
