//! `voicebot calls`: which calls there are, and what happened to one of them.
//!
//! [`ledger`](crate::ledger) finds the calls and says what there is of them; here it becomes text.

mod arguments;
mod event_text;
mod list;
mod show;
mod text;

use std::process::ExitCode;

use clap::Subcommand;

use super::CommandResult;
use crate::config::Config;
use crate::ledger::mongodb;
use crate::store::Store;

pub use arguments::{ListArguments, ShowArguments, parse_digits, parse_since};
pub use show::not_found;

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

/// Runs one of the commands.
pub async fn run(command: CallsCommand, config: &Config) -> CommandResult {
    match command {
        CallsCommand::List(arguments) => list::list(&arguments, &Store::open(&config.data_dir)?),
        CallsCommand::Show(arguments) => show::show(&arguments, config).await,
        CallsCommand::Sync { json } => sync(config, json).await,
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
