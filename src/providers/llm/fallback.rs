//! A list of language models, first choice first.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use tokio::time::timeout;

use super::{ChatModel, ChatRequest, ChatStream};
use crate::providers::ProviderError;
use crate::providers::health::Health;

/// How long a model may take to its first piece while there is another: two of them, and the
/// synthesiser's time, are less than the 8 s after which a caller is asked to say it again.
const FIRST_CHUNK_LIMIT: Duration = Duration::from_millis(2_500);

/// A model that is the first of these that works.
pub(in crate::providers) fn first_of(models: Vec<Arc<dyn ChatModel>>) -> Arc<dyn ChatModel> {
    match <[_; 1]>::try_from(models) {
        Ok([only]) => only,
        Err(models) => Arc::new(FallbackModel::new(models)),
    }
}

/// Asks the first model that works.
struct FallbackModel {
    models: Vec<Arc<dyn ChatModel>>,
    health: Health,
    name: String,
}

impl FallbackModel {
    fn new(models: Vec<Arc<dyn ChatModel>>) -> Self {
        let names: Vec<&str> = models.iter().map(|model| model.name()).collect();
        Self {
            name: names.join(", then "),
            health: Health::new(models.len()),
            models,
        }
    }
}

#[async_trait]
impl ChatModel for FallbackModel {
    fn name(&self) -> &str {
        &self.name
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, ProviderError> {
        let order = self.health.order();
        let last = order.len().saturating_sub(1);
        for (place, at) in order.into_iter().enumerate() {
            let model = &self.models[at];
            if place == last {
                return model.chat(request).await;
            }
            let first = async {
                let mut stream = model.chat(request.clone()).await?;
                let first = stream.next().await.transpose()?;
                Ok::<_, ProviderError>(stream::iter(first.map(Ok)).chain(stream).boxed())
            };
            let error = match timeout(FIRST_CHUNK_LIMIT, first).await {
                Ok(Ok(stream)) => {
                    self.health.works(at);
                    return Ok(stream);
                }
                Ok(Err(error)) => error,
                Err(_) => ProviderError::temporary(format!(
                    "{} said nothing for {} ms",
                    model.name(),
                    FIRST_CHUNK_LIMIT.as_millis()
                )),
            };
            tracing::warn!(model = model.name(), %error, "the next language model is asked");
            self.health.failed(at);
        }
        Err(ProviderError::config("no language model is configured"))
    }

    fn members(&self) -> &[Arc<dyn ChatModel>] {
        &self.models
    }

    async fn prewarm(&self) {
        join_all(self.models.iter().map(|model| model.prewarm())).await;
    }
}
