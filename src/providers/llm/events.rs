//! The answer of a model as a stream of server-sent events: cuts the bytes into lines, and hands on
//! what a vendor's reader makes of them. Knows no vendor's events.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::stream;
use reqwest::Response;
use tokio::time::timeout;

use super::{ChatChunk, ChatStream};
use crate::providers::ProviderError;
use crate::providers::openai::Api;

/// How long the rest of a stream is waited for once the answer is complete: only the usage is
/// missing, and some servers keep the connection open.
const END_GRACE: Duration = Duration::from_millis(500);

/// The longest line of the stream and the longest arguments that are taken, bytes: a piece of an
/// answer has a few hundred.
pub(super) const MAX_LINE_BYTES: usize = 1024 * 1024;

/// The most tools that one answer may ask for.
pub(super) const MAX_TOOL_CALLS: usize = 32;

/// The line is longer than [`MAX_LINE_BYTES`].
pub(super) struct TooLong;

/// Cuts a stream of bytes into lines.
#[derive(Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        self.rest.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        if self.rest.len() > MAX_LINE_BYTES {
            Err(TooLong)
        } else {
            Ok(lines)
        }
    }

    /// The last line, when nothing ended it.
    fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.rest);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).trim_end().to_owned())
    }
}

/// What one line of the stream means.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    Chunks(Vec<ChatChunk>),
    Done,
}

/// Puts one answer together from a vendor's events. Pure.
pub(super) trait AnswerReader: Send + 'static {
    /// One line of the stream. The error says what was strange about it.
    fn line(&mut self, line: &str) -> Result<Event, String>;

    /// The stream has ended in order: what is left of the answer. One that never said that it is
    /// complete keeps its words, and those tool calls whose arguments are whole.
    fn finish(&mut self) -> Result<Vec<ChatChunk>, String>;

    /// Whether the server has said that this is all.
    fn is_complete(&self) -> bool;

    /// Tool calls that are not whole and not handed on, because the answer ended in the middle.
    fn cut_calls(&self) -> usize;
}

/// The answer in `response` as it comes.
pub(super) fn answer(api: Api, response: Response, answer: impl AnswerReader) -> ChatStream {
    let reader = Reader {
        response,
        lines: Lines::default(),
        answer,
        ready: VecDeque::new(),
        ended: false,
        api,
    };
    Box::pin(stream::try_unfold(reader, async |mut reader| {
        Ok(reader.next().await?.map(|chunk| (chunk, reader)))
    }))
}

/// Reads one answer.
struct Reader<A> {
    response: Response,
    lines: Lines,
    answer: A,
    ready: VecDeque<ChatChunk>,
    ended: bool,
    api: Api,
}

impl<A: AnswerReader> Reader<A> {
    async fn next(&mut self) -> Result<Option<ChatChunk>, ProviderError> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            if self.ended {
                return Ok(None);
            }
            let bytes = if self.answer.is_complete() {
                // However the stream ends now, the answer is there.
                match timeout(END_GRACE, self.response.chunk()).await {
                    Ok(Ok(bytes)) => bytes,
                    Ok(Err(_)) | Err(_) => None,
                }
            } else {
                self.response
                    .chunk()
                    .await
                    .map_err(|error| self.api.broken(error))?
            };
            match bytes {
                Some(bytes) => {
                    let lines = self
                        .lines
                        .add(&bytes)
                        .map_err(|TooLong| self.api.strange("a line that has no end"))?;
                    for line in lines {
                        self.line(&line)?;
                        if self.ended {
                            break;
                        }
                    }
                }
                None => {
                    if let Some(line) = self.lines.finish() {
                        // The last line may be whole or cut anywhere; half of one says nothing.
                        let _ = self.line(&line);
                    }
                    if !self.ended {
                        self.finish()?;
                    }
                }
            }
        }
    }

    fn line(&mut self, line: &str) -> Result<(), ProviderError> {
        match self.answer.line(line) {
            Ok(Event::Chunks(chunks)) => self.ready.extend(chunks),
            Ok(Event::Done) => self.finish()?,
            Err(what) => return Err(self.api.strange(&what)),
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), ProviderError> {
        self.ended = true;
        let rest = self
            .answer
            .finish()
            .map_err(|what| self.api.strange(&what))?;
        if self.answer.cut_calls() > 0 {
            tracing::warn!(
                server.host = self.api.host(),
                "the answer of the language model ended in the middle of a tool call, which is not run"
            );
        }
        self.ready.extend(rest);
        Ok(())
    }
}

/// Reads a stream that comes in pieces of `piece` bytes; answers what it made of it.
#[cfg(any(test, feature = "internals"))]
pub(super) fn read_pieces(
    mut answer: impl AnswerReader,
    stream: &[u8],
    piece: usize,
) -> Result<Vec<ChatChunk>, String> {
    let mut lines = Lines::default();
    let mut all = Vec::new();
    for bytes in stream.chunks(piece.max(1)) {
        let found = lines.add(bytes).map_err(|TooLong| "too long".to_owned())?;
        for line in found {
            match answer.line(&line)? {
                Event::Chunks(chunks) => all.extend(chunks),
                Event::Done => {
                    all.extend(answer.finish()?);
                    return Ok(all);
                }
            }
        }
    }
    if let Some(line) = lines.finish()
        && let Ok(Event::Chunks(chunks)) = answer.line(&line)
    {
        all.extend(chunks);
    }
    all.extend(answer.finish()?);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_any_cut() {
        let stream = "data: {\"a\": \"\u{fc}\"}\r\n\ndata: [DONE]\n".as_bytes();
        for cut in 0..=stream.len() {
            let mut lines = Lines::default();
            let mut got = lines.add(&stream[..cut]).ok().unwrap();
            got.extend(lines.add(&stream[cut..]).ok().unwrap());
            assert_eq!(got, ["data: {\"a\": \"\u{fc}\"}", "", "data: [DONE]"]);
        }
    }
}
