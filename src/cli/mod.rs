//! The command line: which command, which settings, how to log, on which runtime.

mod calls;
mod campaign;
mod check;
mod connect;
#[cfg(feature = "dev")]
mod dev;
mod dial;
mod in_call;
mod output;
mod shell;
mod start;
mod uploads;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format;
use tracing_subscriber::fmt::format::JsonFields;

use self::in_call::InCall;
use crate::config::{Config, LogConfig, LogFormat};

/// What libraries may say, unless the filter names them: their `info` is our `debug`.
const QUIET_LIBRARIES: &str = "livekit=warn,livekit_api=warn,livekit_signaling=warn,libwebrtc=warn,str0m=warn,hyper=warn,reqwest=warn,rustls=warn,h2=warn";

/// The variable that says what is logged.
const LOG_VARIABLE: &str = "RUST_LOG";
/// The key that says it otherwise.
const LOG_KEY: &str = "log.level";

/// Exit code of a command line that cannot be understood, as clap has it.
const USAGE_ERROR: u8 = 2;

/// What is to be logged cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("{set_by} is no level and no filter such as \"info,voicebot::voice=debug\": {source}")]
struct BadLogFilter {
    set_by: &'static str,
    source: tracing_subscriber::filter::ParseError,
}

/// Threads for files and name look-ups beside a call: few, because every one of many calls has its
/// own.
const CALL_BLOCKING_THREADS: usize = 2;

/// A voice-agent worker for LiveKit: holds phone conversations and delivers every call to the CRM.
#[derive(Debug, Parser)]
#[command(name = "voicebot", version, disable_help_subcommand = true)]
struct Arguments {
    /// The config file [default: config/voicebot.toml, if it is there; environment variable
    /// VOICEBOT_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register with the LiveKit server, take calls, deliver their records (production)
    Start(start::StartArguments),
    /// Everything for local development in one terminal, with a page to talk to the agent (the
    /// default)
    #[cfg(feature = "dev")]
    Dev(dev::DevArguments),
    /// Hold one whole call on this machine, without keys or servers, and tell its story
    #[cfg(feature = "dev")]
    Demo(dev::demo::DemoArguments),
    /// Join a room as its agent, without dispatch
    Connect(connect::ConnectArguments),
    /// Have a worker call a number, and tell the call's story
    Dial(dial::DialArguments),
    /// Say whether settings, servers and providers are usable
    Check(check::CheckArguments),
    /// Which calls there are, and what happened to one of them
    #[command(subcommand)]
    Calls(calls::CallsCommand),
    /// Work through a list of people to call
    #[command(subcommand)]
    Campaign(campaign::CampaignCommand),
    /// Look at and push the delivery of records to the CRM
    #[command(subcommand)]
    Uploads(uploads::UploadsCommand),
    /// Print completions for a shell
    Completions(shell::CompletionsArguments),
    /// Print the manual page, or write a page for each command
    Man(shell::ManArguments),
    /// Hold the call whose job comes on stdin; started by the worker
    #[command(hide = true)]
    Call,
    /// Run the development room server alone
    #[cfg(feature = "dev")]
    #[command(hide = true)]
    Roomserver(dev::roomserver::RoomserverArguments),
}

/// The whole program. Gives back how it went.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => Arc::new(config),
        Err(error) => return failed(&error),
    };
    let Some(command) = arguments.command.or_else(default_command) else {
        // As clap does when a command is missing: the help goes to stderr.
        eprintln!("{}", Arguments::command().render_help());
        return ExitCode::from(USAGE_ERROR);
    };
    if let Err(error) = start_logging(&config.log, command.logs_its_story()) {
        return failed(&error);
    }
    // Two TLS back ends are compiled in by our dependencies; this settles which one is used.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();

    let mut runtime = match command {
        Command::Call => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if matches!(command, Command::Call) {
        runtime.max_blocking_threads(CALL_BLOCKING_THREADS);
    } else {
        runtime.worker_threads(2);
    }
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let result = runtime.block_on(run(command, config, arguments.config));
    // A blocked name look-up must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => failed(error.as_ref()),
    }
}

/// What the program does when no command is given: local development, where that is built in.
#[cfg(feature = "dev")]
fn default_command() -> Option<Command> {
    Some(Command::Dev(dev::DevArguments::default()))
}

#[cfg(not(feature = "dev"))]
fn default_command() -> Option<Command> {
    None
}

impl Command {
    /// Whether the log is what the person at the terminal reads. The others print their own answer.
    fn logs_its_story(&self) -> bool {
        match self {
            #[cfg(feature = "dev")]
            Self::Demo(_) => false,
            Self::Campaign(campaign::CampaignCommand::Run { .. }) => true,
            Self::Campaign(_)
            | Self::Calls(_)
            | Self::Uploads(_)
            | Self::Check(_)
            | Self::Dial(_) => false,
            _ => true,
        }
    }
}

/// Any command's failure: a sentence for the person at the terminal.
type CommandResult = Result<ExitCode, Box<dyn std::error::Error>>;

async fn run(command: Command, config: Arc<Config>, file: Option<PathBuf>) -> CommandResult {
    match command {
        Command::Start(arguments) => start::run(arguments, config, file).await,
        #[cfg(feature = "dev")]
        Command::Dev(arguments) => dev::run(arguments, config, file).await,
        #[cfg(feature = "dev")]
        Command::Demo(arguments) => dev::demo::run(arguments).await,
        Command::Connect(arguments) => connect::run(arguments, config).await,
        Command::Dial(arguments) => dial::run(arguments, &config).await,
        Command::Check(arguments) => check::run(arguments, &config).await,
        Command::Calls(command) => calls::run(command, &config).await,
        Command::Campaign(command) => campaign::run(command, &config).await,
        Command::Uploads(command) => uploads::run(command, &config).await,
        Command::Call => {
            crate::call::run_process(config).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions(arguments) => {
            shell::completions(&arguments, Arguments::command(), &mut std::io::stdout())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Man(arguments) => {
            shell::manual(&arguments, Arguments::command(), &mut std::io::stdout())?;
            Ok(ExitCode::SUCCESS)
        }
        #[cfg(feature = "dev")]
        Command::Roomserver(arguments) => dev::roomserver::run(arguments).await,
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("voicebot: {error}");
    ExitCode::FAILURE
}

/// Logs go to stderr. `shown`: commands that print for people keep their logs to warnings unless
/// RUST_LOG says otherwise.
fn start_logging(config: &LogConfig, shown: bool) -> Result<(), BadLogFilter> {
    let (set_by, filter) = match std::env::var(LOG_VARIABLE) {
        Ok(filter) if !filter.is_empty() => (LOG_VARIABLE, filter),
        _ => {
            let level = if shown { config.level.as_str() } else { "warn" };
            (LOG_KEY, format!("{QUIET_LIBRARIES},{level}"))
        }
    };
    let filter = EnvFilter::try_new(filter).map_err(|source| BadLogFilter { set_by, source })?;
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    // A terminal that has gone away must not end a call: a line that cannot be written is dropped.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    if json {
        let format = format().json().flatten_event(true).with_span_list(false);
        builder
            .fmt_fields(JsonFields::new())
            .event_format(InCall(format))
            .init();
    } else {
        builder
            .with_ansi(std::io::stderr().is_terminal())
            .event_format(InCall(format().with_target(false)))
            .init();
    }
    Ok(())
}
