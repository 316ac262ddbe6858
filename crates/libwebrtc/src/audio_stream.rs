//! Reading the sound of a track.

/// The stream of PCM frames for the application.
pub mod native {
    use std::{
        fmt::{Debug, Formatter},
        pin::Pin,
        sync::Arc,
        task::{Context, Poll},
    };

    use tokio_stream::Stream;

    use crate::{
        audio::{stream::FrameQueue, track::PcmSink},
        audio_frame::AudioFrame,
        audio_track::RtcAudioTrack,
    };

    /// 100 ms: enough for a reader that is held up briefly, little enough that what it then gets is
    /// not old.
    const DEFAULT_QUEUE_SIZE_FRAMES: usize = 10;

    /// How many frames a [`NativeAudioStream`] keeps that nobody has read yet.
    #[derive(Clone, Debug, Default)]
    pub struct NativeAudioStreamOptions {
        /// How many frames of 10 ms wait at most; when one more comes, the oldest is dropped.
        /// `None` means 10, `Some(0)` no limit.
        pub queue_size_frames: Option<usize>,
    }

    /// The sound of a track as frames of 10 ms in the format that was asked for. It ends when the
    /// track ends or the stream is closed.
    pub struct NativeAudioStream {
        track: RtcAudioTrack,
        queue: Arc<FrameQueue>,
    }

    impl Debug for NativeAudioStream {
        fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("NativeAudioStream")
                .field("track", &self.track)
                .finish()
        }
    }

    impl NativeAudioStream {
        /// Starts to listen to the track, with frames at `sample_rate` Hz and of `num_channels`
        /// channels.
        ///
        /// # Panics
        ///
        /// If `sample_rate` or `num_channels` is not positive.
        pub fn new(audio_track: RtcAudioTrack, sample_rate: i32, num_channels: i32) -> Self {
            Self::with_options(
                audio_track,
                sample_rate,
                num_channels,
                NativeAudioStreamOptions::default(),
            )
        }

        /// Like [`new`](Self::new), with a queue of another length.
        ///
        /// # Panics
        ///
        /// If `sample_rate` or `num_channels` is not positive.
        pub fn with_options(
            audio_track: RtcAudioTrack,
            sample_rate: i32,
            num_channels: i32,
            options: NativeAudioStreamOptions,
        ) -> Self {
            assert!(sample_rate > 0, "sample_rate must be positive");
            assert!(num_channels > 0, "num_channels must be positive");
            let limit = match options.queue_size_frames {
                None => Some(DEFAULT_QUEUE_SIZE_FRAMES),
                Some(0) => None,
                Some(frames) => Some(frames),
            };
            let queue = Arc::new(FrameQueue::new(
                sample_rate.unsigned_abs(),
                num_channels.unsigned_abs() as usize,
                limit,
            ));
            let sink: Arc<dyn PcmSink> = queue.clone();
            audio_track.handle.add_sink(sink);
            Self {
                track: audio_track,
                queue,
            }
        }

        /// The track that is listened to.
        pub fn track(&self) -> RtcAudioTrack {
            self.track.clone()
        }

        /// Stops listening. Frames that are already there can still be read; then the stream ends.
        pub fn close(&mut self) {
            let sink: Arc<dyn PcmSink> = self.queue.clone();
            self.track.handle.remove_sink(&sink);
            self.queue.close();
        }
    }

    impl Drop for NativeAudioStream {
        fn drop(&mut self) {
            self.close();
        }
    }

    impl Stream for NativeAudioStream {
        type Item = AudioFrame<'static>;

        fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            self.queue.poll_next(cx)
        }
    }
}
