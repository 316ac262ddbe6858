//! `voicebot campaign`: work through a list of people to call.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::CommandResult;
use super::output::Output;
use crate::call::stop_signal;
use crate::campaign::{
    self, Campaign, CampaignEvent, CampaignName, CampaignSettings, DialNumber, DiallerEnd,
    DiallerSettings, DoNotCall, Importer, Lead, RunState,
};
use crate::config::Config;
use crate::session::time;

/// The largest file of a campaign's settings.
const MAX_SETTINGS_FILE: u64 = 64 * 1024;
/// Refused lines that are shown on a terminal.
const SHOWN_REFUSALS: usize = 20;
/// How often `run` without a name asks for campaigns that have been started.
const NEW_CAMPAIGNS_EVERY: std::time::Duration = std::time::Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub enum CampaignCommand {
    /// Make a campaign from a file of settings; nothing is called before it is started
    Create {
        /// The settings, see README
        file: PathBuf,
        /// One JSON object instead of a sentence
        #[arg(long)]
        json: bool,
    },
    /// Add leads from a CSV file with a header, a JSON array, or JSON lines
    Import {
        name: CampaignName,
        file: PathBuf,
        /// The column of the number [default: phone_number, phone, number, mobile, telephone, tel
        /// or to]
        #[arg(long, value_name = "COLUMN")]
        number_column: Option<String>,
        /// One JSON object with all refused lines instead of sentences
        #[arg(long)]
        json: bool,
    },
    /// Let calls begin, by a dialler that runs or will
    Start { name: CampaignName },
    /// Let no call begin until it is resumed; calls that run go on
    Pause { name: CampaignName },
    /// Let calls begin again
    Resume { name: CampaignName },
    /// Let no call ever begin again
    Stop { name: CampaignName },
    /// Dial: for one campaign until it is finished, or for all that are started until it is stopped
    Run {
        /// The campaign [default: all of them]
        name: Option<CampaignName>,
    },
    /// All campaigns and how far they are
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// One campaign: its rules, and how far it is
    Show {
        name: CampaignName,
        /// One JSON object instead of sentences
        #[arg(long)]
        json: bool,
    },
    /// All leads with what came of them, as CSV
    Export {
        name: CampaignName,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// The numbers that no campaign ever calls
    #[command(subcommand)]
    DoNotCall(DoNotCallCommand),
}

#[derive(Debug, Subcommand)]
pub enum DoNotCallCommand {
    /// Add a number
    Add { number: String },
}

/// Runs one of the commands.
pub async fn run(command: CampaignCommand, config: &Config) -> CommandResult {
    match command {
        CampaignCommand::Create { file, json } => create(&file, json, config),
        CampaignCommand::Import {
            name,
            file,
            number_column,
            json,
        } => import(&name, &file, number_column, json, config),
        CampaignCommand::Start { name } => start(&name, config),
        CampaignCommand::Pause { name } => {
            change(&name, CampaignEvent::Paused, RunState::Paused, config)
        }
        CampaignCommand::Resume { name } => {
            change(&name, CampaignEvent::Resumed, RunState::Running, config)
        }
        CampaignCommand::Stop { name } => {
            change(&name, CampaignEvent::Stopped, RunState::Stopped, config)
        }
        CampaignCommand::Run { name } => dial(name, config).await,
        CampaignCommand::List { json } => list(json, config),
        CampaignCommand::Show { name, json } => show(&name, json, config),
        CampaignCommand::Export { name, json } => export(&name, json, config),
        CampaignCommand::DoNotCall(DoNotCallCommand::Add { number }) => {
            let country = config.call.country_code.clone();
            let number = DialNumber::read(&number, &country)?;
            match DoNotCall::new(&config.data_dir, country).add(number)? {
                true => println!("No campaign calls this number any more."),
                false => println!("The number is on the list already."),
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Why a campaign's calls would all fail, if they would.
fn usable(settings: &CampaignSettings, config: &Config) -> Result<(), String> {
    if settings.trunk_id.is_none() && config.dial.trunk_id.is_empty() {
        return Err(
            "no trunk is named: set trunk_id of the campaign, or dial.trunk_id, to the id of an outbound trunk (ST_…)"
                .to_owned(),
        );
    }
    if settings.agent.is_none() && config.livekit.agent_name.is_empty() {
        return Err(
            "no agent is named: set agent of the campaign, or LIVEKIT_AGENT_NAME, to the name of the workers"
                .to_owned(),
        );
    }
    let country = &config.call.country_code;
    for caller_id in &settings.caller_ids {
        DialNumber::read(caller_id, country).map_err(|error| format!("caller_ids: {error}"))?;
    }
    let mut dial = serde_json::Map::new();
    dial.insert("trunk_id".to_owned(), json!("ST_any"));
    if let Some(seconds) = settings.ringing_timeout_s {
        dial.insert("ringing_timeout_s".to_owned(), json!(seconds));
    }
    config
        .dial
        .with_dispatched(Some(&Value::from(dial)))
        .map_err(|problem| format!("the campaign {problem}"))?;
    if let Some(persona) = &settings.persona
        && config.persona.url.is_empty()
    {
        let file = config.persona.directory.join(format!("{persona}.json"));
        if !file.is_file() {
            return Err(format!(
                "there is no persona {persona:?}: {} does not exist (persona.directory)",
                file.display()
            ));
        }
    }
    Ok(())
}

fn create(file: &Path, as_json: bool, config: &Config) -> CommandResult {
    let wrong =
        |problem: String| format!("the campaign {} cannot be made: {problem}", file.display());
    let size = std::fs::metadata(file).map_err(|error| wrong(error.to_string()))?;
    if size.len() > MAX_SETTINGS_FILE {
        return Err(wrong(format!("it is larger than {MAX_SETTINGS_FILE} bytes")).into());
    }
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let settings = CampaignSettings::read(&text).map_err(wrong)?;
    usable(&settings, config).map_err(wrong)?;
    let campaign = Campaign::create(&config.data_dir, settings)?;
    let settings = campaign.plan().settings();
    if as_json {
        println!("{}", serde_json::to_string_pretty(settings)?);
    } else {
        let (name, hours) = (campaign.name(), settings.window.in_words());
        println!(
            "The campaign {name} is made. It calls {hours}, in the callee's zone ({} where a lead names none).",
            settings.timezone
        );
        println!("voicebot campaign import {name} FILE");
    }
    Ok(ExitCode::SUCCESS)
}

fn import(
    name: &CampaignName,
    file: &Path,
    number_column: Option<String>,
    as_json: bool,
    config: &Config,
) -> CommandResult {
    let mut campaign = Campaign::open(&config.data_dir, name)?;
    let country = config.call.country_code.clone();
    let report = Importer::new(&mut campaign, country, number_column).file(file)?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!(
            "{} leads imported, {} refused",
            report.imported, report.refused
        );
        for refused in report.reasons.iter().take(SHOWN_REFUSALS) {
            println!("line {}: {}", refused.line, refused.reason);
        }
        if report.reasons.len() > SHOWN_REFUSALS {
            println!("… and more; --json shows them");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn start(name: &CampaignName, config: &Config) -> CommandResult {
    let campaign = Campaign::open(&config.data_dir, name)?;
    usable(campaign.plan().settings(), config)?;
    change(name, CampaignEvent::Started, RunState::Running, config)
}

fn change(
    name: &CampaignName,
    event: CampaignEvent,
    wanted: RunState,
    config: &Config,
) -> CommandResult {
    let mut campaign = Campaign::open(&config.data_dir, name)?;
    campaign.record(time::now(), |_| (vec![event], ()))?;
    let state = campaign.plan().state();
    if state == wanted {
        println!("The campaign {name} is {}.", in_words(state));
        return Ok(ExitCode::SUCCESS);
    }
    let hint = match state {
        RunState::Created => "start it first",
        RunState::Running => "it has not been paused",
        RunState::Paused => "resume it",
        RunState::Stopped => "that is for good: make another campaign",
    };
    Err(format!("the campaign {name} is {}: {hint}", in_words(state)).into())
}

fn in_words(state: RunState) -> &'static str {
    match state {
        RunState::Created => "not started",
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Stopped => "stopped",
    }
}

/// Dials until everything is done, or the process is asked to stop.
async fn dial(name: Option<CampaignName>, config: &Config) -> CommandResult {
    let settings = DiallerSettings {
        data_dir: config.data_dir.clone(),
        livekit: config.livekit_settings()?,
        agent_name: config.livekit.agent_name.clone(),
        trunk_id: config.dial.trunk_id.clone(),
        slots: u32::try_from(config.worker.slots()).unwrap_or(u32::MAX),
        country: config.call.country_code.clone(),
    };
    let mut stop = stop_signal()?;
    if let Some(name) = name {
        let campaign = Campaign::open(&config.data_dir, &name)?;
        usable(campaign.plan().settings(), config)?;
        let end = campaign::dial(settings, &name, &mut stop).await?;
        match end {
            DiallerEnd::Finished => println!("The campaign {name} is finished."),
            DiallerEnd::Stopped => println!("Stopped. Calls that run go on."),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut diallers = JoinSet::new();
    let mut stops: HashMap<CampaignName, mpsc::Sender<()>> = HashMap::new();
    loop {
        for name in campaign::names(&config.data_dir)? {
            if stops.contains_key(&name) {
                continue;
            }
            let mut campaign = Campaign::open(&config.data_dir, &name)?;
            if !campaign::has_work(&mut campaign) {
                continue;
            }
            let (tell, mut told) = mpsc::channel(1);
            stops.insert(name.clone(), tell);
            let settings = settings.clone();
            diallers.spawn(async move {
                let end = campaign::dial(settings, &name, &mut told).await;
                (name, end)
            });
        }
        tokio::select! {
            _ = stop.recv() => break,
            Some(Ok((name, end))) = diallers.join_next() => {
                stops.remove(&name);
                if let Err(error) = end {
                    return Err(format!("the campaign {name} cannot be dialled: {error}").into());
                }
            }
            () = tokio::time::sleep(NEW_CAMPAIGNS_EVERY) => {}
        }
    }
    for tell in stops.values() {
        let _ = tell.try_send(());
    }
    while diallers.join_next().await.is_some() {}
    println!("Stopped. Calls that run go on.");
    Ok(ExitCode::SUCCESS)
}

fn list(as_json: bool, config: &Config) -> CommandResult {
    let mut output = Output::new();
    for name in campaign::names(&config.data_dir)? {
        let campaign = Campaign::open(&config.data_dir, &name)?;
        let (plan, progress) = (campaign.plan(), campaign.plan().progress());
        let done = progress.reached + progress.exhausted + progress.do_not_call;
        let line = match as_json {
            true => {
                json!({ "name": name, "state": plan.state(), "progress": progress }).to_string()
            }
            false => format!(
                "{name}: {}, {done} of {} leads done, {} being called",
                in_words(plan.state()),
                progress.leads,
                progress.open
            ),
        };
        if !output.line(&line)? {
            break;
        }
    }
    output.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn show(name: &CampaignName, as_json: bool, config: &Config) -> CommandResult {
    let campaign = Campaign::open(&config.data_dir, name)?;
    let (plan, progress) = (campaign.plan(), campaign.plan().progress());
    let settings = plan.settings();
    if as_json {
        let all = json!({ "name": name, "state": plan.state(), "progress": progress, "settings": settings });
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{name}: {}", in_words(plan.state()));
    println!(
        "calls {}, zone {}",
        settings.window.in_words(),
        settings.timezone
    );
    println!(
        "at most {} at once and {} a second; {} attempts a lead, {} a day",
        settings.concurrency,
        settings.calls_per_second,
        settings.retry.attempts,
        settings.retry.attempts_per_day
    );
    println!(
        "{} leads: {} to be called, {} callbacks, {} being called, {} reached, {} not reached, {} not to be called",
        progress.leads,
        progress.waiting,
        progress.callbacks,
        progress.open,
        progress.reached,
        progress.exhausted,
        progress.do_not_call
    );
    for (outcome, count) in &progress.outcomes {
        println!("{outcome}: {count} attempts");
    }
    if let Some(next) = progress.next_at {
        println!("next call not before {}", time::format(next));
    }
    if let Some(until) = progress.breaker_until {
        println!(
            "too many attempts failed: nobody is called until {}, then one lead",
            time::format(until)
        );
    }
    if let Some(until) = progress.no_worker_until {
        println!(
            "no worker takes an attempt: the next one at {}",
            time::format(until)
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn export(name: &CampaignName, as_json: bool, config: &Config) -> CommandResult {
    let campaign = Campaign::open(&config.data_dir, name)?;
    let mut output = Output::new();
    let header = "number,lead_id,state,attempts,last_outcome,next_call,data";
    if !as_json && !output.line(header)? {
        return Ok(ExitCode::SUCCESS);
    }
    for (index, lead) in campaign.plan().leads().iter().enumerate() {
        let line = exported(&campaign, index, lead, as_json)?;
        if !output.line(&line)? {
            break;
        }
    }
    output.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn exported(
    campaign: &Campaign,
    index: usize,
    lead: &Lead,
    as_json: bool,
) -> Result<String, Box<dyn std::error::Error>> {
    let read = campaign.lead_at(lead.place)?;
    let state = serde_json::to_value(lead.state)?;
    let last = lead.last.map(campaign::AttemptOutcome::name);
    let next = lead.ready_at().map(time::format);
    let lead_id = read.lead_id.unwrap_or_else(|| index.to_string());
    if as_json {
        let all = json!({
            "number": lead.number, "lead_id": lead_id, "state": state, "attempts": lead.attempts(),
            "last_outcome": last, "next_call": next, "data": read.data,
        });
        return Ok(all.to_string());
    }
    let mut row = csv::WriterBuilder::new()
        .terminator(csv::Terminator::Any(b'\n'))
        .from_writer(Vec::new());
    row.write_record([
        &lead.number.to_string(),
        &lead_id,
        state.as_str().unwrap_or_default(),
        &lead.attempts().to_string(),
        last.unwrap_or_default(),
        &next.unwrap_or_default(),
        &Value::from(read.data).to_string(),
    ])?;
    let bytes = row.into_inner()?;
    Ok(String::from_utf8(bytes)?.trim_end().to_owned())
}
