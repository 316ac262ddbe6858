//! Asking a provider again.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::sleep;

use super::{ProviderError, asked};
use crate::voice::LimitsConfig;

/// The pause before the next attempt after so many repetitions. A provider that asks for more time
/// than a caller waits is as good as down; the watchdogs decide.
pub(crate) fn pause(limits: &LimitsConfig, repetitions: u32, error: &ProviderError) -> Duration {
    let pause = Duration::from_millis(if repetitions == 0 {
        limits.first_retry_ms
    } else {
        limits.retry_ms
    });
    match error {
        ProviderError::Temporary {
            retry_after: Some(wanted),
            ..
        } => pause.max(*wanted),
        _ => pause,
    }
}

/// Tries `request` until it works, is refused for good, or has failed too often.
pub(crate) async fn with_retries<'a, T>(
    limits: &LimitsConfig,
    mut request: impl FnMut() -> BoxFuture<'a, Result<T, ProviderError>>,
) -> Result<T, ProviderError> {
    let mut repetitions = 0;
    loop {
        let error = match request().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if !error.is_temporary() || repetitions >= limits.max_retries {
            return Err(error);
        }
        let pause = pause(limits, repetitions, &error);
        repetitions += 1;
        asked::retried();
        tracing::debug!(repetitions, %error, "asking the provider again");
        sleep(pause).await;
    }
}
