//! `voicebot calls list`: a table, or a line of JSON for each call.

use std::process::ExitCode;

use super::arguments::ListArguments;
use super::text::{direction_column, length, name};
use crate::cli::CommandResult;
use crate::cli::output::Output;
use crate::ledger::{self, CallSummary, FoundCall, Unreadable};
use crate::session::mask_numbers;
use crate::store::Store;

pub(super) fn list(arguments: &ListArguments, store: &Store) -> CommandResult {
    let filter = arguments.filter();
    let most = match arguments.limit {
        0 => usize::MAX,
        limit => limit,
    };
    let mut output = Output::new();
    let mut shown = 0;
    let mut calls = ledger::list(store, &filter)?;
    while shown < most
        && let Some(call) = calls.next()
    {
        let call = match call {
            Ok(call) => call,
            Err(unreadable) => {
                say_skipped(&unreadable);
                continue;
            }
        };
        if shown == 0 && !arguments.json {
            output.line(&Row::HEADER.line())?;
        }
        shown += 1;
        let summary = summary(&call, arguments.numbers);
        let line = if arguments.json {
            serde_json::to_value(&summary)?.to_string()
        } else {
            Row::of(&summary).line()
        };
        if !output.line(&line)? {
            return Ok(ExitCode::SUCCESS);
        }
    }
    output.finish()?;
    if !arguments.json {
        if shown == 0 {
            println!("No such call in {}.", store.root().display());
        } else if shown == most {
            eprintln!("Only the newest {shown}; --limit 0 shows all.");
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn summary(call: &FoundCall, numbers: bool) -> CallSummary {
    let summary = CallSummary::of(call);
    if numbers { summary } else { summary.masked() }
}

pub(super) fn say_skipped(unreadable: &Unreadable) {
    eprintln!("skipped: {}", mask_numbers(&unreadable.problem));
}

/// One line of the table.
pub(super) struct Row<T> {
    began: T,
    standing: T,
    outcome: T,
    direction: T,
    number: T,
    length: T,
    call_id: T,
    session_id: T,
}

impl Row<&str> {
    pub(super) const HEADER: Self = Self {
        began: "began (UTC)",
        standing: "status",
        outcome: "outcome",
        direction: "direction",
        number: "number",
        length: "length",
        call_id: "call",
        session_id: "session",
    };
}

impl<T: AsRef<str>> Row<T> {
    pub(super) fn line(&self) -> String {
        let Self {
            began,
            standing,
            outcome,
            direction,
            number,
            length,
            call_id,
            session_id,
        } = self;
        format!(
            "{:19}  {:11}  {:9}  {:9}  {:16}  {:>7}  {:24}  {}",
            began.as_ref(),
            standing.as_ref(),
            outcome.as_ref(),
            direction.as_ref(),
            number.as_ref(),
            length.as_ref(),
            call_id.as_ref(),
            session_id.as_ref()
        )
    }
}

impl Row<String> {
    pub(super) fn of(call: &CallSummary) -> Self {
        let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
        Self {
            began: call.began.map_or("-".to_owned(), |began| {
                began.format("%Y-%m-%d %H:%M:%S").to_string()
            }),
            standing: call.standing.name().to_owned(),
            outcome: or_dash(call.outcome.as_ref().map(name).as_deref()),
            direction: direction_column(call.direction).to_owned(),
            number: or_dash(call.number.as_deref()),
            length: call.duration_s.map_or("-".to_owned(), length),
            call_id: or_dash(call.call_id.as_deref()),
            session_id: call.session_id.to_string(),
        }
    }
}
