//! Log lines of a process that holds a call carry the call's ids, whoever logs them.
//!
//! Most of what such a process runs knows nothing of calls: the SDK's tasks (reconnects), the media
//! engine's thread, work on the disk. What they log is in no span. As the process holds one call,
//! the line is about that one.

use std::fmt;

use tracing::{Event, Span, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::call::process_span;

/// Formats events like what is inside; those in no span as if they were in the call's.
pub struct InCall<F>(pub F);

impl<S, N, F> FormatEvent<S, N> for InCall<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let nowhere = context.lookup_current().is_none();
        let _inside = process_span().filter(|_| nowhere).map(Span::enter);
        self.0.format_event(context, writer, event)
    }
}
