//! `voicebot calls`: which calls there are, and what happened to one of them.

use std::process::ExitCode;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::CommandResult;
use super::output::Output;
use crate::call::mask;
use crate::config::Config;
use crate::ledger::{
    self, CallFilter, FoundCall, Query, Scanned, SearchResult, Standing, TimelineEntry,
    TimelineEvent, Unreadable, WholeCall, mongodb,
};
use crate::session::{
    AttemptOutcome, CallStatus, Direction, PartState, RecordingSource, Role, mask_numbers, time,
};
use crate::store::Store;

#[derive(Debug, Subcommand)]
pub enum CallsCommand {
    /// The calls, newest first: running, waiting for delivery, refused, archived
    List(ListArguments),
    /// What happened to one call, from its dispatch to the CRM's answer
    Show(ShowArguments),
    /// Write to MongoDB what it does not have yet; a running worker does this by itself
    Sync {
        /// One JSON object instead of a sentence
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub struct ListArguments {
    /// Only calls that stand like this; may be given several times
    #[arg(long, value_enum)]
    status: Vec<StatusArgument>,
    /// Only calls of which this became; may be given several times
    #[arg(long, value_enum)]
    outcome: Vec<OutcomeArgument>,
    /// Only calls that began since then: 30m, 12h, 7d, 2026-11-21 or 2026-11-21T10:00:00Z (UTC)
    #[arg(long, value_parser = parse_since, value_name = "TIME")]
    since: Option<DateTime<Utc>>,
    /// Only calls with a number that ends in these digits
    #[arg(long, value_parser = parse_digits)]
    number: Option<String>,
    /// At most this many; 0: all
    #[arg(long, default_value_t = 50, value_name = "CALLS")]
    limit: usize,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Show telephone numbers whole
    #[arg(long)]
    numbers: bool,
}

#[derive(Debug, Args)]
pub struct ShowArguments {
    /// The id of a session, call, job, egress, lead or room, the name of a room, or a number
    id: String,
    /// Look in MongoDB alone; without this, it is asked for calls that are not in the data folder
    #[arg(long)]
    mongodb: bool,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
    /// Show telephone numbers whole
    #[arg(long)]
    numbers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StatusArgument {
    /// Somebody is on the line
    Running,
    /// The process died and no worker has made the record yet
    Interrupted,
    /// Not delivered yet
    Waiting,
    /// Refused by the CRM
    Failed,
    /// Delivered
    Archived,
}

impl From<StatusArgument> for Standing {
    fn from(argument: StatusArgument) -> Self {
        match argument {
            StatusArgument::Running => Self::Running,
            StatusArgument::Interrupted => Self::Interrupted,
            StatusArgument::Waiting => Self::Waiting,
            StatusArgument::Failed => Self::Failed,
            StatusArgument::Archived => Self::Archived,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum OutcomeArgument {
    Completed,
    NoAnswer,
    Busy,
    Failed,
    Voicemail,
    Recovered,
}

impl From<OutcomeArgument> for CallStatus {
    fn from(argument: OutcomeArgument) -> Self {
        match argument {
            OutcomeArgument::Completed => Self::Completed,
            OutcomeArgument::NoAnswer => Self::NoAnswer,
            OutcomeArgument::Busy => Self::Busy,
            OutcomeArgument::Failed => Self::Failed,
            OutcomeArgument::Voicemail => Self::Voicemail,
            OutcomeArgument::Recovered => Self::Recovered,
        }
    }
}

pub(super) fn parse_since(text: &str) -> Result<DateTime<Utc>, String> {
    since(text, Utc::now()).ok_or_else(|| {
        "give a length such as 30m, 12h or 7d, a day such as 2026-11-21, or a time such as 2026-11-21T10:00:00Z"
            .to_owned()
    })
}

fn since(text: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if let Some(time) = time::parse(text) {
        return Some(time);
    }
    if let Ok(day) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Some(day.and_hms_opt(0, 0, 0)?.and_utc());
    }
    let unit = text.chars().last()?;
    let count: i64 = text.strip_suffix(unit)?.parse().ok().filter(|n| *n >= 0)?;
    let length = match unit {
        's' => TimeDelta::try_seconds(count),
        'm' => TimeDelta::try_minutes(count),
        'h' => TimeDelta::try_hours(count),
        'd' => TimeDelta::try_days(count),
        _ => None,
    }?;
    now.checked_sub_signed(length)
}

pub(super) fn parse_digits(text: &str) -> Result<String, String> {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if digits.is_empty() {
        Err("give the number, or its last digits".to_owned())
    } else {
        Ok(digits)
    }
}

/// What is missing for a command that needs MongoDB.
const NO_MONGODB: &str =
    "MONGODB_URI is not set: the address of MongoDB, such as mongodb://user:password@host:27017/";

async fn sync(config: &Config, json: bool) -> CommandResult {
    let store = Store::open(&config.data_dir)?;
    let Some(pass) = mongodb::catch_up(&config.mongodb, &store).await? else {
        return Err(NO_MONGODB.into());
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&pass)?);
    } else if pass.elsewhere {
        println!("A running worker writes the calls of this folder to MongoDB.");
    } else {
        println!(
            "{} calls written, {} refused, {} left",
            pass.written, pass.refused, pass.behind
        );
    }
    if let Some(why) = pass.down {
        return Err(why.into());
    }
    Ok(if pass.refused == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs one of the commands.
pub async fn run(command: CallsCommand, config: &Config) -> CommandResult {
    match command {
        CallsCommand::List(arguments) => list(&arguments, &Store::open(&config.data_dir)?),
        CallsCommand::Show(arguments) => show(&arguments, config).await,
        CallsCommand::Sync { json } => sync(config, json).await,
    }
}

fn list(arguments: &ListArguments, store: &Store) -> CommandResult {
    let filter = CallFilter {
        standings: arguments.status.iter().map(|s| (*s).into()).collect(),
        outcomes: arguments.outcome.iter().map(|s| (*s).into()).collect(),
        since: arguments.since,
        number: arguments.number.clone(),
    };
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
        let line = if arguments.json {
            summary(&call, arguments.numbers).to_string()
        } else {
            Row::of(&call, arguments.numbers).line()
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

fn say_skipped(unreadable: &Unreadable) {
    eprintln!("skipped: {}", mask_numbers(&unreadable.problem));
}

/// One line of the table.
struct Row<T> {
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
    const HEADER: Self = Self {
        began: "began (UTC)",
        standing: "status",
        outcome: "outcome",
        direction: "way",
        number: "number",
        length: "length",
        call_id: "call",
        session_id: "session",
    };
}

impl<T: AsRef<str>> Row<T> {
    fn line(&self) -> String {
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
            "{:19}  {:11}  {:9}  {:3}  {:16}  {:>7}  {:24}  {}",
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
    fn of(call: &FoundCall, numbers: bool) -> Self {
        let record = &call.record;
        let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
        let number = call.number().map(|number| shown_number(number, numbers));
        Self {
            began: record.started_at().map_or("-".to_owned(), |began| {
                began.format("%Y-%m-%d %H:%M:%S").to_string()
            }),
            standing: call.standing.name().to_owned(),
            outcome: or_dash(outcome_of(call).as_deref()),
            direction: match record.direction {
                Some(Direction::Inbound) => "in",
                Some(Direction::Outbound) => "out",
                None => "-",
            }
            .to_owned(),
            number: or_dash(number.as_deref()),
            length: call.duration_s().map_or("-".to_owned(), length),
            call_id: or_dash(record.call_id.as_deref()),
            session_id: record.session_id.to_string(),
        }
    }
}

fn shown_number(number: &str, whole: bool) -> String {
    if whole {
        number.to_owned()
    } else {
        mask(number)
    }
}

/// What became of a call that is over.
fn outcome_of(call: &FoundCall) -> Option<String> {
    let over = call.live.is_none() || call.record.timestamps.call_end.is_some();
    over.then(|| word(&call.record.outcome.call_status))
}

/// A value of a closed set, as in JSON.
fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        _ => "-".to_owned(),
    }
}

/// The same in plain words.
fn told<T: serde::Serialize>(value: &T) -> String {
    word(value).replace('_', " ")
}

fn length(seconds: i64) -> String {
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    match minutes / 60 {
        0 => format!("{minutes}:{seconds:02}"),
        hours => format!("{hours}:{:02}:{seconds:02}", minutes % 60),
    }
}

/// One call of a list as JSON.
fn summary(call: &FoundCall, numbers: bool) -> Value {
    let record = &call.record;
    let uploads = &record.uploads;
    let last_error = uploads
        .call_data_update
        .as_ref()
        .and_then(|update| update.last_error.as_ref())
        .or(uploads.call_data.last_error.as_ref())
        .or(uploads.recording.last_error.as_ref());
    json!({
        "session_id": record.session_id,
        "call_id": record.call_id,
        "job_id": record.job_id,
        "status": call.standing,
        "outcome": outcome_of(call),
        "direction": record.direction,
        "number": call.number().map(|number| shown_number(number, numbers)),
        "persona": record.persona,
        "room": record.room.name.as_deref().map(|name| if numbers { name.to_owned() } else { mask_numbers(name) }),
        "call_start": record.timestamps.call_start.map(time::format),
        "answered": record.timestamps.answered.map(time::format),
        "call_end": record.timestamps.call_end.map(time::format),
        "duration_s": call.duration_s(),
        "leads": record.files.leads.len(),
        "recording": uploads.recording.state,
        "call_data": uploads.call_data.state,
        "upload_attempts": record.upload_attempts,
        "last_error": last_error,
        "delivered": record.timestamps.delivered.map(time::format),
        "file": if numbers { call.file.clone() } else { mask_numbers(&call.file) },
    })
}

async fn show(arguments: &ShowArguments, config: &Config) -> CommandResult {
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
        return print(&Shown::read(&store, call, arguments.numbers), arguments);
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
        (1, Some(call)) => {
            let shown = Shown::of(call, Vec::new(), arguments.numbers);
            print(&shown, arguments).map(Some)
        }
        (_, None) => Ok(None),
        (_, Some(last)) => {
            calls.push(last);
            let calls: Vec<FoundCall> = calls.into_iter().map(|whole| whole.call).collect();
            several(&calls, false, arguments).map(Some)
        }
    }
}

fn print(shown: &Shown, arguments: &ShowArguments) -> CommandResult {
    let mut output = Output::new();
    if arguments.json {
        output.line(&serde_json::to_string_pretty(&shown.json())?)?;
    } else {
        for line in shown.lines() {
            if !output.line(&line)? {
                break;
            }
        }
    }
    output.finish()?;
    Ok(ExitCode::SUCCESS)
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
        let calls: Vec<Value> = calls
            .iter()
            .map(|call| summary(call, arguments.numbers))
            .collect();
        let answer = json!({ "matches": calls, "more": more });
        output.line(&serde_json::to_string_pretty(&answer)?)?;
    } else {
        output.line(&Row::HEADER.line())?;
        for call in calls {
            if !output.line(&Row::of(call, arguments.numbers).line())? {
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

/// A call with everything that belongs to it, as it may be shown.
struct Shown {
    whole: WholeCall,
    timeline: Vec<TimelineEntry>,
    /// Files that the record names and that cannot be read.
    problems: Vec<String>,
}

impl Shown {
    fn read(store: &Store, call: FoundCall, numbers: bool) -> Self {
        let mut problems = Vec::new();
        let whole = WholeCall::read(store, call, |problem| problems.push(problem));
        Self::of(whole, problems, numbers)
    }

    fn of(mut whole: WholeCall, mut problems: Vec<String>, numbers: bool) -> Self {
        if !numbers {
            whole = WholeCall {
                call: ledger::masked_call(whole.call),
                conversation: whole.conversation.map(ledger::masked),
                leads: whole
                    .leads
                    .into_iter()
                    .map(|(file, lead)| (file, ledger::masked(lead)))
                    .collect(),
            };
            for problem in &mut problems {
                *problem = mask_numbers(problem);
            }
        }
        let timeline = ledger::timeline(&whole);
        Self {
            whole,
            timeline,
            problems,
        }
    }

    fn json(&self) -> Value {
        let mut answer = summary(&self.whole.call, true);
        answer["timeline"] = json!(self.timeline);
        answer["record"] = json!(self.whole.call.record);
        answer["conversation"] = json!(self.whole.conversation);
        answer["leads"] = self
            .whole
            .leads
            .iter()
            .map(|(file, lead)| json!({ "file": file, "lead": lead }))
            .collect();
        answer["problems"] = json!(self.problems);
        answer
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = self.facts();
        lines.push(String::new());
        let mut day = None;
        for entry in &self.timeline {
            let at = match entry.at {
                Some(at) => {
                    if day.replace(at.date_naive()) != Some(at.date_naive()) {
                        lines.push(format!("{} (UTC)", at.format("%Y-%m-%d")));
                    }
                    at.format("%H:%M:%S%.3f").to_string()
                }
                None => String::new(),
            };
            let (what, text) = words(&entry.event);
            for (number, line) in text.lines().enumerate() {
                lines.push(match number {
                    0 => format!("  {at:12}  {what:18}  {line}"),
                    _ => format!("  {:12}  {:18}  {line}", "", ""),
                });
            }
        }
        for problem in &self.problems {
            lines.push(format!("! {problem}"));
        }
        lines
    }

    fn facts(&self) -> Vec<String> {
        let call = &self.whole.call;
        let record = &call.record;
        let mut lines = vec![format!("{}  {}", record.session_id, call.standing.name())];
        let mut fact = |name: &str, parts: &[Option<String>]| {
            let text: Vec<&str> = parts.iter().flatten().map(String::as_str).collect();
            if !text.is_empty() {
                lines.push(format!("  {name:10}  {}", text.join("  ")));
            }
        };
        let named = |name: &str, value: Option<&str>| value.map(|value| format!("{name} {value}"));
        fact(
            "call",
            &[
                record.call_id.clone(),
                outcome_of(call),
                call.duration_s().map(length),
            ],
        );
        fact(
            "number",
            &[
                call.number().map(str::to_owned),
                record.direction.as_ref().map(word),
                named("our number", record.trunk_number.as_deref()),
                named("SIP", record.sip_call_id.as_deref()),
                named("carrier", record.carrier_call_id.as_deref()),
            ],
        );
        fact(
            "room",
            &[
                record.room.name.clone(),
                record.room.sid.clone(),
                named("job", record.job_id.as_deref()),
                named("egress", record.egress_id()),
            ],
        );
        let campaign = |key: &str| record.campaign_metadata.get(key).and_then(Value::as_str);
        fact(
            "persona",
            &[
                record.persona.clone(),
                named("campaign", campaign("campaignId")),
                named("agent", campaign("voiceAgentId")),
                named("client", campaign("client")),
            ],
        );
        let uploads = &record.uploads;
        if call.live.is_none() {
            let part = |name: &str, state: PartState, attempts: u32| {
                Some(format!("{name} {} ({attempts} requests)", word(&state)))
            };
            fact(
                "delivery",
                &[
                    part(
                        "recording",
                        uploads.recording.state,
                        uploads.recording.attempts,
                    ),
                    part(
                        "call data",
                        uploads.call_data.state,
                        uploads.call_data.attempts,
                    ),
                    uploads.call_data_update.as_ref().and_then(|update| {
                        part("call data with the URL", update.state, update.attempts)
                    }),
                ],
            );
        }
        fact("file", &[Some(call.file.clone())]);
        lines
    }
}

fn or_nothing(name: &str, value: Option<&str>) -> String {
    match value.filter(|value| !value.is_empty()) {
        Some(value) => format!("{name}{value}"),
        None => String::new(),
    }
}

/// A step as an operator reads it: what, and the rest of the line.
fn words(event: &TimelineEvent) -> (&'static str, String) {
    match event {
        TimelineEvent::Dispatched { job_id, room } => (
            "dispatched",
            format!(
                "job {}{}",
                job_id.as_deref().unwrap_or("-"),
                or_nothing(", room ", room.as_deref())
            ),
        ),
        TimelineEvent::Joined { room_sid } => (
            "agent joined",
            format!("room {}", room_sid.as_deref().unwrap_or("-")),
        ),
        TimelineEvent::Answered {
            direction,
            number,
            trunk_number,
            persona,
        } => {
            let (from, to) = match direction {
                Some(Direction::Outbound) => (trunk_number, number),
                Some(Direction::Inbound) | None => (number, trunk_number),
            };
            let way = direction.as_ref().map(|way| format!("{}, ", word(way)));
            let text = format!(
                "{}from {} to {}{}",
                way.unwrap_or_default(),
                from.as_deref().unwrap_or("-"),
                to.as_deref().unwrap_or("-"),
                or_nothing(", persona ", persona.as_deref())
            );
            ("answered", text)
        }
        TimelineEvent::RecordingStarted {
            source,
            egress_id,
            file,
        } => {
            let by = match source {
                RecordingSource::Egress => "by egress",
                RecordingSource::Local => "by the call",
                RecordingSource::External => "by somebody else",
            };
            (
                "recording started",
                format!(
                    "{by}{}{}",
                    or_nothing(" ", egress_id.as_deref()),
                    or_nothing(", ", file.as_deref())
                ),
            )
        }
        TimelineEvent::Said {
            role,
            content,
            confidence,
            interrupted,
            answered_after_ms,
        } => {
            let mut text = content.clone();
            if *interrupted {
                text.push_str(" [cut off]");
            }
            if let Some(ms) = answered_after_ms {
                text.push_str(&format!(" [after {ms} ms]"));
            }
            if let Some(confidence) = confidence {
                text.push_str(&format!(" [confidence {confidence:.2}]"));
            }
            let who = match role {
                Role::User => "caller said",
                Role::Assistant => "agent said",
            };
            (who, text)
        }
        TimelineEvent::Intent {
            intent,
            confidence,
            entities,
        } => (
            "intent",
            format!(
                "{intent}{}{}",
                confidence.map_or(String::new(), |c| format!(" [confidence {c:.2}]")),
                match entities {
                    Value::Object(fields) if !fields.is_empty() => format!(" {entities}"),
                    _ => String::new(),
                }
            ),
        ),
        TimelineEvent::ToolUsed {
            name,
            result,
            is_error,
            duration_ms,
        } => {
            let not_done = if *is_error { ", not done" } else { "" };
            (
                "tool",
                format!("{name} [{duration_ms} ms{not_done}]: {result}"),
            )
        }
        TimelineEvent::Lead { file, lead } => ("lead", lead_words(file.as_deref(), lead)),
        TimelineEvent::HungUp {
            close_reason,
            disconnect_reason,
            call_status,
            error,
        } => (
            "hung up",
            format!(
                "{}{}{}{}",
                word(call_status),
                or_nothing(": ", close_reason.as_ref().map(word).as_deref()),
                or_nothing(", ", disconnect_reason.as_deref()),
                or_nothing("; ", error.as_deref())
            ),
        ),
        TimelineEvent::Recording {
            state,
            evidence,
            error,
        } => (
            "recording",
            format!(
                "{}{}{}",
                word(state),
                or_nothing(", known from ", evidence.as_ref().map(told).as_deref()),
                or_nothing(": ", error.as_deref())
            ),
        ),
        TimelineEvent::RecordWritten { file } => ("record written", file.clone()),
        TimelineEvent::Request {
            part,
            outcome,
            took_ms,
            error,
        } => {
            let outcome = match outcome {
                AttemptOutcome::Accepted => "accepted",
                AttemptOutcome::Duplicate => "the CRM had it already",
                AttemptOutcome::TryAgain => "not taken",
                AttemptOutcome::Refused => "refused",
            };
            (
                request_of(part),
                format!(
                    "{outcome} [{took_ms} ms]{}",
                    or_nothing(": ", error.as_deref())
                ),
            )
        }
        TimelineEvent::Tried {
            part,
            attempts,
            error,
        } => (
            request_of(part),
            format!("{attempts} requests{}", or_nothing(": ", error.as_deref())),
        ),
        TimelineEvent::NextAttempt { part, error } => (
            "next attempt",
            format!(
                "{}{}",
                part.replace('_', " "),
                or_nothing(": ", error.as_deref())
            ),
        ),
        TimelineEvent::WithoutRecording { error } => (
            "no recording",
            error
                .clone()
                .unwrap_or_else(|| "the call was not recorded".to_owned()),
        ),
        TimelineEvent::RecordingDelivered {
            url,
            size,
            duration,
        } => (
            "recording sent",
            format!(
                "{}{}{}",
                url.as_deref().unwrap_or("the CRM did not say where to"),
                size.map_or(String::new(), |size| format!(", {size} bytes")),
                duration.map_or(String::new(), |seconds| format!(", {seconds} s"))
            ),
        ),
        TimelineEvent::CrmAnswer { response } => ("CRM answered", response.to_string()),
        TimelineEvent::Refused { error } => (
            "refused",
            format!(
                "{}; `voicebot uploads retry` sends it again",
                error.as_deref().unwrap_or("the CRM did not take it")
            ),
        ),
        TimelineEvent::Delivered => ("delivered", "all of it is confirmed".to_owned()),
        TimelineEvent::Archived { file } => ("archived", file.clone()),
    }
}

fn request_of(part: &str) -> &'static str {
    match part {
        "recording" => "upload",
        "call_data_update" => "call data again",
        _ => "call data",
    }
}

fn lead_words(file: Option<&str>, lead: &Value) -> String {
    const FIELDS: [&str; 8] = [
        "name",
        "company",
        "email",
        "phone",
        "interest",
        "job_title",
        "budget",
        "timeline",
    ];
    let mut parts: Vec<String> = FIELDS
        .iter()
        .filter_map(|field| {
            let text = lead[*field].as_str().filter(|text| !text.is_empty())?;
            Some(format!("{}: {text}", field.replace('_', " ")))
        })
        .collect();
    parts.extend(lead["lead_id"].as_str().map(|id| format!("id: {id}")));
    parts.extend(file.map(|file| format!("file: {file}")));
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_given_as_a_length_a_day_or_a_moment() {
        let now: DateTime<Utc> = "2026-11-21T10:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("90s", Some("2026-11-21T09:58:30Z")),
            ("30m", Some("2026-11-21T09:30:00Z")),
            ("12h", Some("2026-11-20T22:00:00Z")),
            ("7d", Some("2026-11-14T10:00:00Z")),
            ("2026-11-20", Some("2026-11-20T00:00:00Z")),
            ("2026-11-20T05:30:00+05:30", Some("2026-11-20T00:00:00Z")),
            ("2026-11-20 08:00:00", Some("2026-11-20T08:00:00Z")),
            ("-1d", None),
            ("yesterday", None),
            ("99999999999999d", None),
            ("7ü", None),
            ("", None),
        ] {
            let expected: Option<DateTime<Utc>> = expected.map(|text| text.parse().unwrap());
            assert_eq!(since(text, now), expected, "{text}");
        }
    }

    #[test]
    fn lengths_are_shown_in_minutes() {
        assert_eq!(
            (length(5), length(65), length(3605)),
            ("0:05".into(), "1:05".into(), "1:00:05".into())
        );
    }
}
