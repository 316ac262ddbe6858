//! `voicebot uploads`: the delivery of records, seen and pushed by an operator.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use serde_json::json;

use super::CommandResult;
use super::calls::{parse_digits, parse_since};
use crate::call::Persona;
use crate::config::Config;
use crate::ledger::{self, Query};
use crate::recording::resolve::{EgressDirectory, LiveKitEgress, RecordingResolver};
use crate::session::{CampaignIds, SessionId};
use crate::settings::http_address;
use crate::store::{ScanOptions, ScanReport, Store};
use crate::upload::{
    self, CrmSecrets, FailedFilter, ListedRecord, PassOptions, PassStats, UploadError, Uploader,
};

#[derive(Debug, Subcommand)]
pub enum UploadsCommand {
    /// The records that wait, and why
    List {
        /// One JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Deliver what is due
    Run {
        /// One pass, then end; without it the task runs until Ctrl-C
        #[arg(long)]
        once: bool,
        /// Say what would be sent; send and write nothing
        #[arg(long, requires = "once")]
        dry_run: bool,
        /// At most this many records
        #[arg(long, value_name = "RECORDS", requires = "once")]
        batch: Option<usize>,
        /// One JSON object instead of a sentence
        #[arg(long, requires = "once")]
        json: bool,
    },
    /// Try a record again that the CRM has refused, or all of them
    Retry {
        /// An id that names one call: of its session, call, job, egress, lead or room
        #[arg(required_unless_present = "all_failed", conflicts_with = "all_failed")]
        id: Option<String>,
        /// Every record that the CRM has refused, as far as the filters mean it
        #[arg(long)]
        all_failed: bool,
        #[command(flatten)]
        filter: RetryFilter,
        /// Only say whether there is anything to try again
        #[arg(long)]
        dry_run: bool,
        /// One JSON object instead of a sentence
        #[arg(long)]
        json: bool,
    },
    /// Make records of calls that have files but no metadata
    Scan {
        /// Say what would be made; write nothing
        #[arg(long)]
        dry_run: bool,
        /// Leave files alone that were written less than this long ago: their calls may be going on
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        min_age: u64,
        /// A persona file: these calls were held for its campaign, whose ids go into their records
        #[arg(long, value_name = "FILE")]
        persona: Option<PathBuf>,
        /// One JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
}

/// Which of the refused records to try again.
#[derive(Debug, Args)]
pub struct RetryFilter {
    /// Only calls that began since then: 30m, 12h, 7d, 2026-11-21 or 2026-11-21T10:00:00Z (UTC)
    #[arg(long, value_parser = parse_since, value_name = "TIME", requires = "all_failed")]
    since: Option<DateTime<Utc>>,
    /// Only calls with this number, or one that ends with these digits
    #[arg(long, value_parser = parse_digits, requires = "all_failed")]
    number: Option<String>,
    /// Only calls of the campaign with this id
    #[arg(long, value_name = "ID", requires = "all_failed")]
    campaign: Option<String>,
    /// Only calls in whose last error this text stands, such as "answered 401"
    #[arg(long, value_name = "TEXT", requires = "all_failed")]
    error: Option<String>,
}

/// Runs one of the commands.
pub async fn run(command: UploadsCommand, config: &Config) -> CommandResult {
    let store = Store::open(&config.data_dir)?;
    match command {
        UploadsCommand::List { json } => {
            let records = upload::list(&store)?;
            if json {
                println!("{}", serde_json::to_string_pretty(&records)?);
            } else {
                print_table(&records);
            }
            Ok(ExitCode::SUCCESS)
        }
        UploadsCommand::Run {
            once: true,
            dry_run,
            batch,
            json,
        } => {
            let stats = uploader(config, &store)?
                .pass(PassOptions {
                    dry_run,
                    batch,
                    only: None,
                })
                .await?;
            report(&stats, dry_run, json)
        }
        UploadsCommand::Run { .. } => {
            let mut stop = crate::call::stop_signal()?;
            let token = tokio_util::sync::CancellationToken::new();
            let (_keep, notices) = tokio::sync::mpsc::channel(1);
            let task = tokio::spawn(uploader(config, &store)?.run(notices, token.clone()));
            stop.recv().await;
            token.cancel();
            task.await?;
            Ok(ExitCode::SUCCESS)
        }
        UploadsCommand::Scan {
            dry_run,
            min_age,
            persona,
            json,
        } => {
            let options = ScanOptions {
                dry_run,
                min_age: Duration::from_secs(min_age),
                campaign: persona.as_deref().map(campaign_of).transpose()?,
            };
            scan(&store, options, json)
        }
        UploadsCommand::Retry {
            id: None,
            filter,
            dry_run,
            json,
            ..
        } => {
            let filter = FailedFilter {
                since: filter.since,
                number: filter.number,
                campaign: filter.campaign,
                error: filter.error,
            };
            retry_all(config, &store, &filter, dry_run, json).await
        }
        UploadsCommand::Retry {
            id: Some(id),
            dry_run,
            json,
            ..
        } => {
            let session_id = one_call(&store, &id)?;
            if dry_run {
                let record = store.read_record(&session_id)?;
                let again = record.clone().reset_for_retry();
                say_retry(&session_id, again, None, json)?;
                return Ok(ExitCode::SUCCESS);
            }
            let again = upload::retry(&store, &session_id)?;
            let stats = if again {
                Some(deliver(config, &store, &session_id).await?)
            } else {
                None
            };
            let well = stats
                .as_ref()
                .is_none_or(|stats| stats.failed + stats.errors == 0);
            say_retry(&session_id, again, stats, json)?;
            Ok(if well {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
    }
}

/// The ids of the campaign that a persona file names.
fn campaign_of(file: &Path) -> Result<CampaignIds, String> {
    let path = file.display();
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("the persona file {path} (--persona) cannot be read: {error}"))?;
    let persona = Persona::read(&text, "")
        .map_err(|why| format!("the persona file {path} (--persona) cannot be used: {why}"))?;
    let ids = CampaignIds::from_persona(&persona.full);
    match ids == CampaignIds::default() {
        true => Err(format!(
            "the persona file {path} (--persona) names no campaign: it has no `campaigns` with `_id`, `client` or `voiceAgents`"
        )),
        false => Ok(ids),
    }
}

/// Looks for calls without a record and says what came of it.
fn scan(store: &Store, options: ScanOptions, json: bool) -> CommandResult {
    let report = store.scan(&options)?;
    let failed = report.records.iter().any(|call| call.error.is_some());
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_scan(&report, options.dry_run);
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn print_scan(report: &ScanReport, dry_run: bool) {
    let made = report.records.iter().filter(|call| call.error.is_none());
    let verb = if dry_run { "would be made" } else { "made" };
    println!("{} records {verb}", made.count());
    for call in &report.records {
        let one = [&call.conversation, &call.recording, &call.egress_id];
        let files: Vec<&str> = one
            .into_iter()
            .flatten()
            .chain(&call.leads)
            .map(String::as_str)
            .collect();
        let by = match call.matched_by.as_slice() {
            [] => String::new(),
            how => format!(" (by {})", how.join(", ")),
        };
        println!("  {}: {}{by}", call.session_id, files.join(" + "));
        if let Some(aside) = &call.quarantined {
            println!("    an unreadable record lay in its place, it is kept as {aside}");
        }
        if let Some(error) = &call.error {
            println!("    not written: {error}");
        }
    }
    for (title, files) in [
        ("left for a person to decide", &report.ambiguous),
        ("not readable", &report.unreadable),
    ] {
        if !files.is_empty() {
            println!("{} files {title}", files.len());
        }
        for file in files {
            println!("  {} {}", file.file, file.why);
        }
    }
    if report.young > 0 {
        println!(
            "{} files are younger than --min-age and were left for the next scan",
            report.young
        );
    }
}

/// The session of the one call that `id` names.
fn one_call(store: &Store, id: &str) -> Result<SessionId, Box<dyn std::error::Error>> {
    if let Ok(session_id) = id.parse()
        && store.record_exists(&session_id)
    {
        return Ok(session_id);
    }
    let query = Query::new(id);
    let found = ledger::find(store, &query)?;
    match found.calls.as_slice() {
        [call] => Ok(call.record.session_id.clone()),
        [] => Err(super::calls::not_found(&query, &found, store).into()),
        calls => Err(format!(
            "{} calls are meant by this; `voicebot calls show` lists them, name one by its session",
            calls.len()
        )
        .into()),
    }
}

/// Finds recordings as the settings say, asking the LiveKit server where one is named.
pub fn resolver(config: &Config, store: &Store) -> RecordingResolver {
    let directory = config.livekit_settings().ok().map(|livekit| {
        let host = http_address(&livekit.url);
        Arc::new(LiveKitEgress::new(
            &host,
            &livekit.api_key,
            livekit.api_secret.expose(),
        )) as Arc<dyn EgressDirectory>
    });
    RecordingResolver::new(store.clone(), config.recording.clone(), directory)
}

/// An uploader with everything that the settings and the environment name.
pub fn uploader(config: &Config, store: &Store) -> Result<Uploader, UploadError> {
    Uploader::new(
        store.clone(),
        config.upload.clone(),
        config.crm.clone(),
        CrmSecrets::from_env(),
        resolver(config, store),
    )
}

/// Delivers one record now.
pub async fn deliver(
    config: &Config,
    store: &Store,
    session_id: &SessionId,
) -> Result<PassStats, UploadError> {
    uploader(config, store)?
        .pass(PassOptions {
            only: Some(session_id.clone()),
            ..Default::default()
        })
        .await
}

fn report(stats: &PassStats, dry_run: bool, json: bool) -> CommandResult {
    if json {
        println!("{}", serde_json::to_string_pretty(stats)?);
    } else if dry_run {
        println!(
            "{} records would be delivered, {} are not due yet",
            stats.would_deliver, stats.not_due
        );
    } else {
        println!(
            "{} records delivered ({} recordings, {} call data); {} wait for their recording, {} will be tried again, {} are held back because the CRM takes nothing, {} refused, {} with errors, {} not due yet",
            stats.files_processed,
            stats.recordings_uploaded,
            stats.call_data_sent,
            stats.waiting,
            stats.retrying,
            stats.held_back,
            stats.failed,
            stats.errors,
            stats.not_due
        );
    }
    Ok(if stats.failed + stats.errors == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Puts every refused record that is meant back among those that wait, then delivers them. Whatever
/// ends this in between, a worker goes on with the rest.
async fn retry_all(
    config: &Config,
    store: &Store,
    filter: &FailedFilter,
    dry_run: bool,
    json: bool,
) -> CommandResult {
    let records = upload::failed(store, filter)?;
    if dry_run {
        if json {
            println!(
                "{}",
                serde_json::to_string_pretty(&json!({ "would_try_again": records }))?
            );
        } else {
            println!("{} records would be tried again", records.len());
            records.iter().for_each(|record| println!("  {record}"));
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Its settings are checked before anything is changed.
    let uploader = uploader(config, store)?;
    let mut again = HashSet::new();
    let mut left: Vec<String> = Vec::new();
    for record in records {
        match upload::retry(store, &record) {
            Ok(true) => drop(again.insert(record)),
            Ok(false) => {}
            Err(error) => left.push(error.to_string()),
        }
    }
    // Draws nothing where standard error is no terminal.
    let bar = ProgressBar::new(again.len() as u64);
    let stats = uploader
        .deliver_these(&again, |stats| {
            bar.set_position(stats.ended());
            bar.set_message(format!("{} delivered", stats.files_processed));
        })
        .await?;
    bar.finish_and_clear();
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(
                &json!({ "tried_again": again.len(), "left": left, "stats": stats })
            )?
        );
    } else {
        println!(
            "{} records tried again: {} delivered, {} refused, {} will be tried again by themselves",
            again.len(),
            stats.files_processed,
            stats.failed,
            (again.len() as u64).saturating_sub(stats.files_processed + stats.failed)
        );
        left.iter().for_each(|error| println!("  left: {error}"));
    }
    Ok(if stats.failed + stats.errors == 0 && left.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn say_retry(
    session_id: &SessionId,
    again: bool,
    stats: Option<PassStats>,
    json: bool,
) -> Result<(), serde_json::Error> {
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(
                &json!({ "session_id": session_id, "tried_again": again, "stats": stats })
            )?
        );
        return Ok(());
    }
    match (again, stats) {
        (false, _) => println!("{session_id}: nothing to try again"),
        (true, None) => println!("{session_id}: would be tried again"),
        (true, Some(stats)) if stats.files_processed > 0 => println!("{session_id}: delivered"),
        (true, Some(_)) => {
            println!("{session_id}: not delivered; `voicebot uploads list` says why")
        }
    }
    Ok(())
}

fn print_table(records: &[ListedRecord]) {
    if records.is_empty() {
        println!("No record waits for delivery.");
        return;
    }
    fn name<T: serde::Serialize>(value: &Option<T>) -> String {
        let value = value
            .as_ref()
            .and_then(|value| serde_json::to_value(value).ok());
        value
            .as_ref()
            .and_then(|value| value.as_str())
            .unwrap_or("-")
            .to_owned()
    }
    let time = |time: &Option<chrono::DateTime<chrono::Utc>>| {
        time.map_or("-".to_owned(), |time| {
            time.format("%Y-%m-%d %H:%M:%S").to_string()
        })
    };
    println!(
        "{:32} {:16} {:10} {:10} {:>8}  {:19}  last error",
        "session", "status", "recording", "call data", "attempts", "next attempt"
    );
    for record in records {
        println!(
            "{:32} {:16} {:10} {:10} {:>8}  {:19}  {}",
            record.session_id.to_string(),
            name(&record.status),
            name(&record.recording),
            name(&record.call_data),
            record.attempts,
            time(&record.next_attempt),
            record.last_error.as_deref().unwrap_or("-")
        );
    }
}
