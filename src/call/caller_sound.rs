//! The caller's sound on its way from the room to the conversation: one stream at a time.

use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::{Instrument as _, warn};

use crate::voice::AudioFrame;

/// Leads the caller's sound to the conversation. A track that is subscribed anew, as after a
/// reconnect, takes the place of the one before: two would give the conversation each frame twice.
#[derive(Debug)]
pub struct CallerSound {
    to: mpsc::Sender<AudioFrame>,
    pump: Option<AbortHandle>,
}

impl CallerSound {
    /// Frames will go to `to`.
    pub fn new(to: mpsc::Sender<AudioFrame>) -> Self {
        Self { to, pump: None }
    }

    /// From now on the frames of `stream` are the caller's, and no earlier one's.
    pub fn lead(&mut self, stream: impl Stream<Item = AudioFrame> + Send + Unpin + 'static) {
        let pump = tokio::spawn(pump(stream, self.to.clone()).in_current_span());
        if let Some(earlier) = self.pump.replace(pump.abort_handle()) {
            earlier.abort();
        }
    }
}

impl Drop for CallerSound {
    fn drop(&mut self) {
        if let Some(pump) = &self.pump {
            pump.abort();
        }
    }
}

/// Hands the caller's sound on, frame by frame, until the stream ends. A reader that does not keep
/// up loses the newest frames.
async fn pump(mut stream: impl Stream<Item = AudioFrame> + Unpin, to: mpsc::Sender<AudioFrame>) {
    let mut dropped = 0u64;
    while let Some(frame) = stream.next().await {
        match to.try_send(frame) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => dropped += 1,
            Err(mpsc::error::TrySendError::Closed(_)) => break,
        }
    }
    if dropped > 0 {
        warn!(
            frames = dropped,
            "the conversation did not keep up with the caller's sound"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    /// A stream that tells `times` frames full of `sample` and then stays open without a word.
    fn frames(sample: i16, times: usize) -> impl Stream<Item = AudioFrame> + Send + Unpin {
        stream::iter(vec![vec![sample; 160]; times]).chain(stream::pending())
    }

    #[tokio::test]
    async fn after_a_reconnect_each_frame_of_the_caller_is_heard_once() {
        let (to, mut heard) = mpsc::channel(16);
        let (feed, first) = mpsc::channel(16);
        let first = stream::unfold(first, async |mut first: mpsc::Receiver<AudioFrame>| {
            first.recv().await.map(|frame| (frame, first))
        });
        let mut sound = CallerSound::new(to);
        sound.lead(Box::pin(first));
        feed.send(vec![1; 160]).await.unwrap();
        assert_eq!(heard.recv().await.unwrap()[0], 1);

        sound.lead(frames(2, 3));
        for _ in 0..3 {
            assert_eq!(heard.recv().await.unwrap()[0], 2);
        }
        // The stream of before is given up, whatever still comes on it.
        feed.closed().await;
        assert!(heard.try_recv().is_err());
    }

    #[tokio::test]
    async fn sound_ends_with_its_call() {
        let (to, mut heard) = mpsc::channel(16);
        let mut sound = CallerSound::new(to);
        sound.lead(frames(1, 1));
        assert!(heard.recv().await.is_some());
        drop(sound);
        assert_eq!(heard.recv().await, None);
    }
}
