//! `voicebot check`: says, before the first call does, whether everything that a call needs is there.

use std::process::ExitCode;
use std::time::Duration;

use livekit_api::services::room::RoomClient;

use super::CommandResult;
use crate::call::{Personas, http_address};
use crate::config::{Config, Secret};
use crate::ledger::mongodb;
use crate::providers::{self, Vendor};
use crate::store::Store;
use crate::upload::{CrmSecrets, UploadError};

/// How long any one server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// One line of the answer: what was looked at, and how it is or what to do.
struct Finding {
    what: &'static str,
    result: Result<String, String>,
}

/// Looks at everything; one line each. Fails when anything is unusable.
pub async fn run(config: &Config) -> CommandResult {
    let http = providers::http_client()?;
    let findings = [
        Finding {
            what: "data folder",
            result: data_folder(config),
        },
        Finding {
            what: "LiveKit",
            result: livekit(config).await,
        },
        Finding {
            what: "CRM",
            result: crm(config, &http).await,
        },
        Finding {
            what: "MongoDB",
            result: mongodb(config).await,
        },
        Finding {
            what: "providers",
            result: providers(config, &http).await,
        },
        Finding {
            what: "persona",
            result: persona(config, &http).await,
        },
    ];
    for Finding { what, result } in &findings {
        match result {
            Ok(text) => println!("ok      {what}: {text}"),
            Err(text) => println!("FAILED  {what}: {text}"),
        }
    }
    let usable = findings.iter().all(|finding| finding.result.is_ok());
    Ok(if usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn data_folder(config: &Config) -> Result<String, String> {
    let store = Store::open(&config.data_dir).map_err(|error| error.to_string())?;
    store
        .probe()
        .map_err(|error| format!("{error} (data_dir)"))?;
    let free = store.free_bytes().map_err(|error| error.to_string())?;
    let free_mb = free / 1_000_000;
    if free < config.storage.min_free_bytes() {
        return Err(format!(
            "the disk of {} has {free_mb} MB left, less than storage.min_free_mb ({}): the worker would take no calls",
            config.data_dir.display(),
            config.storage.min_free_mb
        ));
    }
    Ok(format!(
        "{} can be written, {free_mb} MB are free",
        config.data_dir.display()
    ))
}

async fn livekit(config: &Config) -> Result<String, String> {
    let settings = config
        .livekit_settings()
        .map_err(|error| error.to_string())?;
    let client = RoomClient::with_api_key(
        &http_address(&settings.url),
        &settings.api_key,
        settings.api_secret.expose(),
    );
    match tokio::time::timeout(PATIENCE, client.list_rooms(Vec::new())).await {
        Ok(Ok(rooms)) => Ok(format!(
            "{} answers and takes our key; {} rooms are open",
            settings.url,
            rooms.len()
        )),
        Ok(Err(error)) => Err(format!(
            "{} (LIVEKIT_URL, LIVEKIT_API_KEY, LIVEKIT_API_SECRET): {error}",
            settings.url
        )),
        Err(_) => Err(format!(
            "{} (LIVEKIT_URL) did not answer within {} s",
            settings.url,
            PATIENCE.as_secs()
        )),
    }
}

async fn mongodb(config: &Config) -> Result<String, String> {
    match mongodb::ping(&config.mongodb).await {
        Ok(Some(name)) => Ok(format!("{name} answers")),
        Ok(None) => Ok("not used, MONGODB_URI is not set".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn crm(config: &Config, http: &reqwest::Client) -> Result<String, String> {
    let base = &config.crm.base_url;
    if base.is_empty() {
        return Err("CRM_BASE_URL is not set: records will wait on disk (environment variable or key crm.base_url)".into());
    }
    let signs = config.crm.parsed_signature_header();
    if signs.map_err(|error| error.to_string())?.is_some()
        && CrmSecrets::from_env().signing.is_none()
    {
        return Err(UploadError::NoSigningSecret.to_string());
    }
    // Any answer will do: only deliveries have addresses there.
    match http.get(base).timeout(PATIENCE).send().await {
        Ok(_) => Ok(format!("{base} answers")),
        Err(error) => Err(format!(
            "{base} (CRM_BASE_URL) does not answer: {}",
            error.without_url()
        )),
    }
}

async fn providers(config: &Config, http: &reqwest::Client) -> Result<String, String> {
    providers::build(&config.providers, http.clone()).map_err(|error| error.to_string())?;
    if config.providers.vendor == Vendor::Scripted {
        return Ok("a prepared conversation (providers.vendor = \"scripted\")".into());
    }
    let base = config.providers.openai_base_url.trim_end_matches('/');
    let mut request = http.get(format!("{base}/models")).timeout(PATIENCE);
    if let Some(key) = Secret::from_env("OPENAI_API_KEY") {
        request = request.bearer_auth(key.expose());
    }
    match request.send().await {
        Ok(response) if response.status() == reqwest::StatusCode::UNAUTHORIZED => {
            Err(format!("{base} refuses OPENAI_API_KEY (401)"))
        }
        // Servers that only imitate the interface often have no list of models.
        Ok(response) => Ok(format!("{base} answers ({})", response.status())),
        Err(error) => Err(format!(
            "{base} (OPENAI_BASE_URL) does not answer: {}",
            error.without_url()
        )),
    }
}

async fn persona(config: &Config, http: &reqwest::Client) -> Result<String, String> {
    let token = Secret::from_env("PERSONA_TOKEN");
    let personas = Personas::new(
        config.persona.clone(),
        http.clone(),
        token,
        &config.data_dir,
    );
    let persona = personas.find([]).await;
    Ok(format!(
        "\u{201c}{}\u{201d} answers numbers without one of their own",
        persona.name
    ))
}
