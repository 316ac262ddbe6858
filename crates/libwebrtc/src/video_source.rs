//! Video sources: they can be made, and refuse every frame.

/// Size of a picture in pixels.
#[derive(Debug, Clone)]
pub struct VideoResolution {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl Default for VideoResolution {
    fn default() -> Self {
        Self {
            width: 1280,
            height: 720,
        }
    }
}

/// The target of an encoder that feeds an encoded source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EncodedRateControl {
    /// Bits per second.
    pub target_bitrate_bps: u64,
    /// Frames per second.
    pub framerate_fps: f64,
}

/// A source of video frames.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub enum RtcVideoSource {
    /// Frames that the application pushes.
    Native(native::NativeVideoSource),
}

impl RtcVideoSource {
    crate::enum_dispatch!(
        [Native];
        /// Size of the pictures.
        pub fn video_resolution(self: &Self) -> VideoResolution;
    );
}

/// What only native engines offer.
pub mod native {
    use super::{EncodedRateControl, VideoResolution};
    use crate::{
        native::packet_trailer::PacketTrailerHandler,
        video_frame::{EncodedVideoFrame, VideoBuffer, VideoFrame},
    };

    /// A source that the application would push frames into. All are refused.
    #[derive(Clone, Debug, Default)]
    pub struct NativeVideoSource {
        resolution: VideoResolution,
    }

    impl NativeVideoSource {
        /// A source for pictures of the given size.
        pub fn new(resolution: VideoResolution, _is_screencast: bool) -> Self {
            Self { resolution }
        }

        /// A source for frames that are encoded already.
        pub fn new_encoded(resolution: VideoResolution) -> Self {
            Self { resolution }
        }

        /// Refuses the frame.
        pub fn capture_frame<T: AsRef<dyn VideoBuffer>>(&self, _frame: &VideoFrame<T>) -> bool {
            false
        }

        /// Refuses the frame.
        pub fn capture_encoded_frame(&self, _frame: &EncodedVideoFrame<'_>) -> bool {
            false
        }

        /// Whether a key frame is wanted: never.
        pub fn take_keyframe_request(&self) -> bool {
            false
        }

        /// What the encoder should aim at: nothing.
        pub fn take_rate_control_request(&self) -> Option<EncodedRateControl> {
            None
        }

        /// Does nothing: no frame is ever sent.
        pub fn set_packet_trailer_handler(&self, _handler: PacketTrailerHandler) {}

        /// Size given when the source was made.
        pub fn video_resolution(&self) -> VideoResolution {
            self.resolution.clone()
        }
    }
}
