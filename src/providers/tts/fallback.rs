//! A list of voices, first choice first.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{FutureExt as _, join_all};
use futures_util::{StreamExt as _, stream};

use super::{SpeechPiece, SpeechRequest, SpeechStream, TextToSpeech};
use crate::providers::ProviderError;
use crate::providers::health::{Asking, Health};
use crate::voice::resample::Resampler;

/// How long a voice may take to its first sound while there is another.
const FIRST_SOUND_LIMIT: Duration = Duration::from_millis(2_500);

const ASKING: Asking = Asking {
    kind: "voice",
    limit: FIRST_SOUND_LIMIT,
    needs: Some("sound"),
};

/// A voice that is the first of these that works.
pub(in crate::providers) fn first_of(voices: Vec<Arc<dyn TextToSpeech>>) -> Arc<dyn TextToSpeech> {
    match <[_; 1]>::try_from(voices) {
        Ok([only]) => only,
        Err(voices) => Arc::new(FallbackVoice::new(voices)),
    }
}

/// Lets the first voice speak that works, at the sample rate of the first of all.
struct FallbackVoice {
    voices: Vec<Arc<dyn TextToSpeech>>,
    health: Health,
    name: String,
}

impl FallbackVoice {
    fn new(voices: Vec<Arc<dyn TextToSpeech>>) -> Self {
        let names: Vec<&str> = voices.iter().map(|voice| voice.name()).collect();
        Self {
            name: names.join(", then "),
            health: Health::new(voices.len()),
            voices,
        }
    }

    async fn open(&self, at: usize, request: SpeechRequest) -> Result<SpeechStream, ProviderError> {
        let voice = &self.voices[at];
        let (rate, wanted) = (voice.sample_rate_hz(), self.sample_rate_hz());
        // A voice of one vendor is none of another's.
        let request = SpeechRequest {
            voice: request.voice.filter(|_| at == 0),
            ..request
        };
        let sound = voice.synthesize(request).await?;
        Ok(match rate == wanted {
            true => sound,
            false => resampled(sound, rate, wanted),
        })
    }
}

/// The same sound at another rate.
fn resampled(sound: SpeechStream, from: u32, to: u32) -> SpeechStream {
    let state = (sound, Some(Resampler::new(from, to)));
    stream::unfold(state, |(mut sound, resampler)| async move {
        let mut resampler = resampler?;
        let mut samples = Vec::new();
        match sound.next().await {
            Some(Ok(SpeechPiece::Sound(piece))) => {
                resampler.push(&piece, &mut samples);
                Some((Ok(SpeechPiece::Sound(samples)), (sound, Some(resampler))))
            }
            Some(other) => Some((other, (sound, Some(resampler)))),
            None => {
                resampler.finish(&mut samples);
                Some((Ok(SpeechPiece::Sound(samples)), (sound, None)))
            }
        }
    })
    .boxed()
}

#[async_trait]
impl TextToSpeech for FallbackVoice {
    fn name(&self) -> &str {
        &self.name
    }

    fn sample_rate_hz(&self) -> u32 {
        self.voices
            .first()
            .map_or(24_000, |voice| voice.sample_rate_hz())
    }

    async fn synthesize(&self, request: SpeechRequest) -> Result<SpeechStream, ProviderError> {
        let name = |at: usize| self.voices[at].name();
        let open = |at: usize| self.open(at, request.clone()).boxed();
        self.health.first_answer(&ASKING, name, open).await
    }

    fn last_format(&self) -> Option<String> {
        self.voices.first().and_then(|voice| voice.last_format())
    }

    fn members(&self) -> &[Arc<dyn TextToSpeech>] {
        &self.voices
    }

    async fn prewarm(&self) {
        join_all(self.voices.iter().map(|voice| voice.prewarm())).await;
    }
}
