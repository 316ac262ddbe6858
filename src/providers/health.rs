//! Which of a list of vendors works, and asking the first of them that does.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, timeout};

use super::{ProviderError, asked};

/// A vendor that has failed is tried last for this long, then in its place again.
const SICK_FOR: Duration = Duration::from_secs(30);

/// An answer that comes in pieces.
type Answer<T> = BoxStream<'static, Result<T, ProviderError>>;

/// How the vendors of one kind are asked.
pub(super) struct Asking {
    /// What they are, for logs and errors, such as "voice".
    pub kind: &'static str,
    /// How long one may take to its first piece while there is another.
    pub limit: Duration,
    /// What an answer without any piece lacks, which makes it a failure; `None`: it is an answer.
    pub needs: Option<&'static str>,
}

/// When each vendor failed last.
#[derive(Debug)]
pub(super) struct Health {
    failed: Mutex<Vec<Option<Instant>>>,
}

impl Health {
    /// All of `count` vendors work.
    pub fn new(count: usize) -> Self {
        Self {
            failed: Mutex::new(vec![None; count]),
        }
    }

    /// The places of the vendors in the order in which they are to be tried: those that work as
    /// they are listed, then the others, the one whose failure is longest ago first.
    pub fn order(&self) -> Vec<usize> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let sick = |at: &usize| failed[*at].filter(|since| since.elapsed() < SICK_FOR);
        let mut order: Vec<usize> = (0..failed.len()).collect();
        order.sort_by_key(sick);
        order
    }

    /// The vendor at this place has failed.
    pub fn failed(&self, at: usize) {
        self.set(at, Some(Instant::now()));
    }

    /// The vendor at this place works.
    pub fn works(&self, at: usize) {
        self.set(at, None);
    }

    /// The answer of the first vendor in [`Self::order`] whose first piece comes in time. The last
    /// one is not hurried: nobody comes after it. `name` and `open` take a vendor's place.
    ///
    /// # Errors
    /// That of the last vendor, or that there is none.
    pub async fn first_answer<'a, T: Send + 'static>(
        &self,
        asking: &Asking,
        name: impl Fn(usize) -> &'a str + Send + Sync,
        open: impl Fn(usize) -> BoxFuture<'a, Result<Answer<T>, ProviderError>> + Send + Sync,
    ) -> Result<Answer<T>, ProviderError> {
        let Asking { kind, limit, needs } = asking;
        let order = self.order();
        let last = order.len().saturating_sub(1);
        for (place, at) in order.into_iter().enumerate() {
            let vendor = name(at);
            asked::served_by(vendor);
            if place == last {
                return open(at).await;
            }
            let begun = async {
                let mut answer = open(at).await?;
                let first = answer.try_next().await?;
                if let (None, Some(needed)) = (&first, needs) {
                    let error = format!("{vendor} answered without {needed}");
                    return Err(ProviderError::temporary(error));
                }
                Ok(stream::iter(first.map(Ok)).chain(answer).boxed())
            };
            let error = match timeout(*limit, begun).await {
                Ok(Ok(answer)) => {
                    self.works(at);
                    return Ok(answer);
                }
                Ok(Err(error)) => error,
                Err(_) => ProviderError::temporary(format!(
                    "{vendor} said nothing for {} ms",
                    limit.as_millis()
                )),
            };
            tracing::warn!(vendor, %error, "the next {kind} is asked");
            self.failed(at);
            asked::fell_back();
        }
        Err(ProviderError::config(format!("no {kind} is configured")))
    }

    fn set(&self, at: usize, value: Option<Instant>) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed[at] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sick_vendor_is_tried_last_and_comes_back() {
        let health = Health::new(3);
        assert_eq!(health.order(), [0, 1, 2]);
        health.failed(0);
        assert_eq!(health.order(), [1, 2, 0]);
        tokio::time::advance(Duration::from_secs(1)).await;
        health.failed(1);
        assert_eq!(health.order(), [2, 0, 1]);
        health.works(1);
        assert_eq!(health.order(), [1, 2, 0]);
        tokio::time::advance(SICK_FOR).await;
        assert_eq!(health.order(), [0, 1, 2]);
    }
}
