//! `voicebot calls show`: everything there is of one call.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::NO_MONGODB;
use super::arguments::ShowArguments;
use super::event_text::event_text;
use super::list::{Row, say_skipped, summary};
use super::text::{length, name};
use crate::cli::CommandResult;
use crate::cli::output::Output;
use crate::config::Config;
use crate::ledger::{
    self, CallDetails, CallSummary, FoundCall, Query, Scanned, SearchResult, Standing,
    TimelineEntry, WholeCall, mongodb,
};
use crate::session::{PartState, mask};
use crate::store::Store;

pub(super) async fn show(arguments: &ShowArguments, config: &Config) -> CommandResult {
    let query = Query::new(&arguments.id);
    if arguments.mongodb {
        return match mongodb::look_up(&config.mongodb, &query).await? {
            None => Err(NO_MONGODB.into()),
            Some(calls) => show_stored(calls, arguments)?
                .ok_or_else(|| format!("no call in MongoDB is named {}", named(&query)).into()),
        };
    }
    let store = Store::open(&config.data_dir)?;
    let mut found = ledger::find(&store, &query)?;
    for unreadable in &found.unreadable {
        say_skipped(unreadable);
    }
    if found.calls.len() > 1 {
        return several(&found.calls, found.more, arguments);
    }
    if let Some(call) = found.calls.pop() {
        let mut problems = Vec::new();
        let whole = WholeCall::read(&store, call, |problem| problems.push(problem));
        return one(whole, problems, arguments);
    }
    let not_found = not_found(&query, &found, &store);
    match mongodb::look_up(&config.mongodb, &query).await {
        Ok(None) => Err(not_found.into()),
        Ok(Some(calls)) => show_stored(calls, arguments)?
            .ok_or_else(|| format!("{not_found}; nor is there one in MongoDB").into()),
        Err(error) => Err(format!("{not_found}; MongoDB could not be asked: {error}").into()),
    }
}

/// Shows what MongoDB has. `None`: it has nothing.
fn show_stored(
    mut calls: Vec<WholeCall>,
    arguments: &ShowArguments,
) -> Result<Option<ExitCode>, Box<dyn std::error::Error>> {
    match (calls.len(), calls.pop()) {
        (1, Some(call)) => one(call, Vec::new(), arguments).map(Some),
        (_, None) => Ok(None),
        (_, Some(last)) => {
            calls.push(last);
            let calls: Vec<FoundCall> = calls.into_iter().map(|whole| whole.call).collect();
            several(&calls, false, arguments).map(Some)
        }
    }
}

/// What was asked for, fit for the log of a terminal.
fn named(query: &Query) -> String {
    query.digits().map_or(query.text().to_owned(), mask)
}

/// What to say to somebody who asked for a call that is not there.
pub fn not_found(query: &Query, found: &SearchResult, store: &Store) -> String {
    let Scanned {
        journals,
        waiting,
        archived,
        leads,
    } = found.scanned;
    let mut text = format!(
        "no call has the id, room or number {}; looked at {journals} running calls, {waiting} records in call_metadata, \
         {archived} in processed_metadata and {leads} leads of {} (data_dir)",
        named(query),
        store.root().display()
    );
    if !found.unreadable.is_empty() {
        text.push_str(&format!(
            "; {} files could not be read, it may be in one of them",
            found.unreadable.len()
        ));
    }
    text
}

fn several(calls: &[FoundCall], more: bool, arguments: &ShowArguments) -> CommandResult {
    let mut output = Output::new();
    if arguments.json {
        let calls: Vec<CallSummary> = calls
            .iter()
            .map(|call| summary(call, arguments.numbers))
            .collect();
        let answer = json!({ "matches": calls, "more": more });
        output.line(&serde_json::to_string_pretty(&answer)?)?;
    } else {
        output.line(&Row::HEADER.line())?;
        for call in calls {
            if !output.line(&Row::of(&summary(call, arguments.numbers)).line())? {
                break;
            }
        }
    }
    output.finish()?;
    eprintln!(
        "{}{} calls are meant by this: show one of them by its session, or narrow the list with `voicebot calls list --number … --since …`.",
        if more { "More than " } else { "" },
        calls.len()
    );
    Ok(ExitCode::FAILURE)
}

/// Shows one call. `problems`: what was wrong with its files.
fn one(whole: WholeCall, problems: Vec<String>, arguments: &ShowArguments) -> CommandResult {
    let details = if arguments.numbers {
        CallDetails::of(whole, problems)
    } else {
        CallDetails::masked(whole, &problems)
    };
    let mut output = Output::new();
    if arguments.json {
        let answer = serde_json::to_value(&details)?;
        output.line(&serde_json::to_string_pretty(&answer)?)?;
    } else {
        for line in lines(&details) {
            if !output.line(&line)? {
                break;
            }
        }
    }
    output.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn lines(call: &CallDetails) -> Vec<String> {
    let mut lines = facts(call);
    lines.push(String::new());
    lines.extend(timeline_lines(&call.timeline));
    lines.extend(call.problems.iter().map(|problem| format!("! {problem}")));
    lines
}

/// The timeline, with a line for each new day.
fn timeline_lines(timeline: &[TimelineEntry]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut day = None;
    for entry in timeline {
        let at = match entry.at {
            Some(at) => {
                if day.replace(at.date_naive()) != Some(at.date_naive()) {
                    lines.push(format!("{} (UTC)", at.format("%Y-%m-%d")));
                }
                at.format("%H:%M:%S%.3f").to_string()
            }
            None => String::new(),
        };
        let (what, text) = event_text(&entry.event);
        for (number, line) in text.lines().enumerate() {
            lines.push(match number {
                0 => format!("  {at:12}  {what:18}  {line}"),
                _ => format!("  {:12}  {:18}  {line}", "", ""),
            });
        }
    }
    lines
}

/// What is known of the call as a whole.
fn facts(call: &CallDetails) -> Vec<String> {
    let CallDetails {
        summary, record, ..
    } = call;
    let mut lines = vec![format!(
        "{}  {}",
        summary.session_id,
        summary.standing.name()
    )];
    let mut fact = |title: &str, parts: &[Option<String>]| {
        let text: Vec<&str> = parts.iter().flatten().map(String::as_str).collect();
        if !text.is_empty() {
            lines.push(format!("  {title:10}  {}", text.join("  ")));
        }
    };
    let named = |what: &str, value: Option<&str>| value.map(|value| format!("{what} {value}"));
    let outcome = summary.outcome.as_ref().map(name);
    let talked = summary.duration_s.map(length);
    fact("call", &[summary.call_id.clone(), outcome, talked]);
    fact(
        "number",
        &[
            summary.number.clone(),
            summary.direction.as_ref().map(name),
            named("our number", record.trunk_number.as_deref()),
            named("SIP", record.sip_call_id.as_deref()),
            named("carrier", record.carrier_call_id.as_deref()),
        ],
    );
    fact(
        "room",
        &[
            summary.room.clone(),
            record.room.sid.clone(),
            named("job", summary.job_id.as_deref()),
            named("egress", record.egress_id()),
        ],
    );
    let campaign = |key: &str| record.campaign_metadata.get(key).and_then(Value::as_str);
    fact(
        "persona",
        &[
            summary.persona.clone(),
            named("campaign", campaign("campaignId")),
            named("agent", campaign("voiceAgentId")),
            named("client", campaign("client")),
        ],
    );
    if !matches!(summary.standing, Standing::Running | Standing::Interrupted) {
        fact("delivery", &delivery(call));
    }
    fact("file", &[Some(summary.file.clone())]);
    lines
}

/// Where each part of the delivery stands.
fn delivery(call: &CallDetails) -> [Option<String>; 3] {
    let part = |what: &str, state: PartState, attempts: u32| {
        Some(format!("{what} {} ({attempts} requests)", name(&state)))
    };
    let uploads = &call.record.uploads;
    let (recording, call_data) = (&uploads.recording, &uploads.call_data);
    let update = uploads.call_data_update.as_ref();
    [
        part("recording", recording.state, recording.attempts),
        part("call data", call_data.state, call_data.attempts),
        update.and_then(|update| part("call data with the URL", update.state, update.attempts)),
    ]
}
