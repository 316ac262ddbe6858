//! Streams of received video frames. No video is received, so a stream ends at once.

/// What only native engines offer.
pub mod native {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio_stream::Stream;

    use crate::{
        native::packet_trailer::PacketTrailerHandler, video_frame::BoxVideoFrame,
        video_track::RtcVideoTrack,
    };

    /// Configuration of a [`NativeVideoStream`].
    #[derive(Clone, Debug, Default)]
    pub struct NativeVideoStreamOptions {
        /// Frames kept for a slow reader.
        pub queue_size_frames: Option<usize>,
    }

    /// Frames of a video track: none.
    #[derive(Debug)]
    pub struct NativeVideoStream {
        track: RtcVideoTrack,
    }

    impl NativeVideoStream {
        /// A stream that ends at once.
        pub fn new(video_track: RtcVideoTrack) -> Self {
            log::warn!(
                "video is not supported: the stream of {} ends at once",
                video_track.id()
            );
            Self { track: video_track }
        }

        /// A stream that ends at once.
        pub fn with_options(
            video_track: RtcVideoTrack,
            _options: NativeVideoStreamOptions,
        ) -> Self {
            Self::new(video_track)
        }

        /// Does nothing: no frame ever comes.
        pub fn set_packet_trailer_handler(&self, _handler: PacketTrailerHandler) {}

        /// The track of the stream.
        pub fn track(&self) -> RtcVideoTrack {
            self.track.clone()
        }

        /// Ends the stream, which has ended already.
        pub fn close(&mut self) {}
    }

    impl Stream for NativeVideoStream {
        type Item = BoxVideoFrame;

        fn poll_next(self: Pin<&mut Self>, _context: &mut Context) -> Poll<Option<Self::Item>> {
            Poll::Ready(None)
        }
    }
}
