//! What one reply takes and costs, for its turn's record.
//!
//! The stages of the reply write it, the driver reads it: also of a reply that was dropped in the
//! middle of a request, whose tokens nobody will tell. Those are estimated from the length of the
//! text, with the rate that the model's own figures gave in this conversation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::providers::asked::Asked;
use crate::providers::llm::TokenUsage;
use crate::session::Usage;

/// Tokens of a thousand characters, until the model has told its own figures: about four characters
/// a token, as in English.
const USUAL_TOKENS_PER_1000: u64 = 250;

/// How many tokens the model makes of a text.
#[derive(Debug)]
pub(super) struct TokenRate(AtomicU64);

impl Default for TokenRate {
    fn default() -> Self {
        Self(AtomicU64::new(USUAL_TOKENS_PER_1000))
    }
}

impl TokenRate {
    fn learn(&self, tokens: u64, characters: u64) {
        if let Some(rate) = tokens.saturating_mul(1_000).checked_div(characters)
            && rate > 0
        {
            self.0.store(rate, Ordering::Relaxed);
        }
    }

    fn tokens(&self, characters: u64) -> u64 {
        let rate = self.0.load(Ordering::Relaxed);
        characters.saturating_mul(rate).div_ceil(1_000)
    }
}

/// What one reply takes and costs.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// The requests to the language model.
    pub llm: Arc<Asked>,
    /// The requests to the voice.
    pub tts: Arc<Asked>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    first_token: Option<Instant>,
    first_byte: Option<Instant>,
    /// The request whose cost nobody has told yet: characters sent, characters that came.
    open: Option<(u64, u64)>,
    /// Requests that the vendor has taken and not answered: how many, and their characters.
    unanswered: (u64, u64),
    /// What answers have cost that somebody may hear.
    useful: Usage,
}

impl Meter {
    /// The model has written its first token.
    pub fn first_token(&self) {
        self.lock().first_token.get_or_insert_with(Instant::now);
    }

    /// The voice has sent its first sound.
    pub fn first_byte(&self) {
        self.lock().first_byte.get_or_insert_with(Instant::now);
    }

    /// When the first token and the first sound came.
    pub fn milestones(&self) -> (Option<Instant>, Option<Instant>) {
        let state = self.lock();
        (state.first_token, state.first_byte)
    }

    /// The model has taken a request with so many characters; one before it got no answer.
    pub fn request_begins(&self, characters: usize) {
        let mut state = self.lock();
        if let Some((sent, written)) = state.open.replace((characters as u64, 0)) {
            state.unanswered.0 += 1;
            state.unanswered.1 += sent + written;
        }
    }

    /// So many characters more have come.
    pub fn written(&self, characters: usize) {
        if let Some((_, written)) = &mut self.lock().open {
            *written += characters as u64;
        }
    }

    /// The request is over. Its cost is what the vendor has `told`, else an estimate; `in_vain`
    /// when nobody will hear its answer.
    pub fn request_ends(&self, rate: &TokenRate, told: TokenUsage, in_vain: bool) -> Usage {
        let mut state = self.lock();
        let (requests, characters) = std::mem::take(&mut state.unanswered);
        let tokens = rate.tokens(characters);
        let unanswered = Usage {
            llm_requests: requests,
            llm_prompt_tokens: tokens,
            llm_tokens_estimated: tokens,
            llm_requests_in_vain: requests,
            llm_prompt_tokens_in_vain: tokens,
            ..Usage::default()
        };
        let Some((sent, written)) = state.open.take() else {
            return unanswered;
        };
        let mut usage = Usage {
            llm_requests: 1,
            llm_prompt_tokens: told.prompt,
            llm_prompt_cached_tokens: told.prompt_cached,
            llm_completion_tokens: told.completion,
            ..Usage::default()
        };
        if told == TokenUsage::default() {
            usage.llm_prompt_tokens = rate.tokens(sent);
            usage.llm_completion_tokens = rate.tokens(written);
            usage.llm_tokens_estimated = usage.llm_prompt_tokens + usage.llm_completion_tokens;
        } else {
            rate.learn(told.prompt, sent);
        }
        if in_vain {
            let cost = usage;
            usage.add(&as_in_vain(&cost));
        } else {
            state.useful.add(&usage);
        }
        usage.add(&unanswered);
        usage
    }

    /// The reply is over, in the middle of a request perhaps. What it has cost that nobody knew
    /// yet; `in_vain` when nothing of it was heard or done.
    pub fn ends(&self, rate: &TokenRate, in_vain: bool) -> Usage {
        let mut usage = self.request_ends(rate, TokenUsage::default(), false);
        if in_vain {
            usage.add(&as_in_vain(&std::mem::take(&mut self.lock().useful)));
        }
        usage.add(&self.attempts());
        usage
    }

    /// The attempts since this was asked last.
    pub fn attempts(&self) -> Usage {
        let (llm, tts) = (self.llm.take_attempts(), self.tts.take_attempts());
        Usage {
            llm_retries: llm.retries,
            llm_fallbacks: llm.fallbacks,
            tts_retries: tts.retries,
            tts_fallbacks: tts.fallbacks,
            ..Usage::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a cost that goes to the sums of what nobody has heard.
fn as_in_vain(cost: &Usage) -> Usage {
    Usage {
        llm_requests_in_vain: cost.llm_requests,
        llm_prompt_tokens_in_vain: cost.llm_prompt_tokens,
        llm_completion_tokens_in_vain: cost.llm_completion_tokens,
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(prompt: u64, completion: u64) -> TokenUsage {
        TokenUsage {
            prompt,
            prompt_cached: 0,
            completion,
        }
    }

    #[test]
    fn what_the_vendor_tells_counts_and_teaches_the_estimate() {
        let (rate, meter) = (TokenRate::default(), Meter::default());
        meter.request_begins(1_000);
        meter.written(40);
        let usage = meter.request_ends(&rate, told(500, 9), false);
        assert_eq!(
            (
                usage.llm_requests,
                usage.llm_prompt_tokens,
                usage.llm_completion_tokens
            ),
            (1, 500, 9)
        );
        assert_eq!(usage.llm_tokens_estimated, 0);
        // Half a token a character, it has learnt.
        meter.request_begins(200);
        meter.written(10);
        let usage = meter.ends(&rate, false);
        assert_eq!(
            (
                usage.llm_prompt_tokens,
                usage.llm_completion_tokens,
                usage.llm_tokens_estimated
            ),
            (100, 5, 105)
        );
        assert_eq!(usage.llm_requests_in_vain, 0);
    }

    #[test]
    fn an_answer_that_is_thrown_away_is_in_vain_once_with_all_its_requests() {
        let (rate, meter) = (TokenRate::default(), Meter::default());
        meter.request_begins(400);
        let mut sum = meter.request_ends(&rate, told(100, 7), true);
        meter.request_begins(400);
        sum.add(&meter.request_ends(&rate, told(100, 8), false));
        meter.request_begins(800);
        sum.add(&meter.ends(&rate, true));
        assert_eq!((sum.llm_requests, sum.llm_requests_in_vain), (3, 3));
        assert_eq!(sum.llm_prompt_tokens, 100 + 100 + 200);
        assert_eq!(sum.llm_prompt_tokens_in_vain, sum.llm_prompt_tokens);
        assert_eq!(sum.llm_completion_tokens_in_vain, 15);
        // It is over once.
        assert_eq!(meter.ends(&rate, true), Usage::default());
    }

    #[test]
    fn a_text_without_characters_teaches_nothing() {
        let rate = TokenRate::default();
        rate.learn(7, 0);
        rate.learn(0, 7);
        assert_eq!(rate.tokens(1_000), USUAL_TOKENS_PER_1000);
    }
}
