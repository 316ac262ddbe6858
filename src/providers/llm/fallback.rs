//! A list of language models, first choice first.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;

use super::{ChatModel, ChatRequest, ChatStream};
use crate::providers::ProviderError;
use crate::providers::health::{Asking, Health};

/// How long a model may take to its first piece while there is another: two of them, and the
/// synthesiser's time, are less than the 8 s after which a caller is asked to say it again.
const FIRST_CHUNK_LIMIT: Duration = Duration::from_millis(2_500);

const ASKING: Asking = Asking {
    kind: "language model",
    limit: FIRST_CHUNK_LIMIT,
    needs: None,
};

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
        let name = |at: usize| self.models[at].name();
        let open = |at: usize| self.models[at].chat(request.clone());
        self.health.first_answer(&ASKING, name, open).await
    }

    fn members(&self) -> &[Arc<dyn ChatModel>] {
        &self.models
    }

    async fn prewarm(&self) {
        join_all(self.models.iter().map(|model| model.prewarm())).await;
    }
}
