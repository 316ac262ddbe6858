//! `voicebot check`: says, before the first call does, whether everything that a call needs is
//! there.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::StreamExt as _;
use livekit_api::services::room::RoomClient;
use rustix::fs::Access;
use tokio::time::{Instant, timeout};

use super::CommandResult;
use crate::call::{Persona, Personas};
use crate::config::Config;
use crate::ledger::mongodb;
use crate::providers::llm::{ChatMessage, ChatModel, ChatRequest, ToolChoice};
use crate::providers::stt::{ListenRequest, SpeechSegment, SpeechToText, hear_once};
use crate::providers::tts::{SpeechPiece, SpeechRequest, TextToSpeech};
use crate::providers::{self, ProviderError, Providers, ProvidersConfig, Vendor};
use crate::recording::RecordingMode;
use crate::recording::proof;
use crate::settings::{Secret, http_address};
use crate::store::{Store, free_bytes};
use crate::upload::{CrmSecrets, UploadError};
use crate::voice::resample::Resampler;
use crate::voice::{self, INPUT_SAMPLE_RATE_HZ, LimitsConfig};

/// How long any one server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a word may take to be spoken or heard. A model may have to be loaded first.
const SPEECH_PATIENCE: Duration = Duration::from_secs(20);
/// The word that is spoken.
const WORD: &str = "Hello.";
/// More sound than that is not read.
const LONGEST_WORD: Duration = Duration::from_secs(10);

/// One line of the answer: what was looked at, and how it is or what to do.
struct Finding {
    what: &'static str,
    result: Result<String, String>,
}

#[derive(Debug, clap::Args)]
pub struct CheckArguments {
    /// Also record two seconds of a tone with a real egress, in a room of its own, to see that the
    /// file is found here; it is deleted then
    #[arg(long)]
    egress: bool,
}

/// Looks at everything; one line each. Fails when anything is unusable. Nothing is written, but
/// with `--egress`, which says what it does.
pub async fn run(arguments: CheckArguments, config: &Config) -> CommandResult {
    let http = providers::http_client()?;
    let mut findings = vec![
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
    ];
    let persona = persona(config, &http).await;
    let providers = providers(config, &http).await;
    let (usable, said) = match providers {
        Ok((providers, said)) => (Some(providers), Ok(said)),
        Err(why) => (None, Err(why)),
    };
    let sound = match &usable {
        Some(providers) => speech(providers, &persona).await,
        None => Vec::new(),
    };
    findings.push(Finding {
        what: "providers",
        result: said,
    });
    findings.extend(sound);
    if let Some(providers) = &usable {
        findings.extend(vendors(&config.providers, providers, &persona).await);
    }
    findings.push(Finding {
        what: "persona",
        result: match persona.problems.first() {
            Some(problem) => Err(format!("\u{201c}{}\u{201d}: {problem}", persona.name)),
            None => Ok(format!(
                "\u{201c}{}\u{201d} answers numbers without one of their own",
                persona.name
            )),
        },
    });
    findings.push(Finding {
        what: "recording",
        result: recording(config),
    });
    if arguments.egress {
        println!(
            "        egress: opens a room, records 2 s of a tone in it to {}, looks for the file and deletes it",
            asked_for(config)
        );
        findings.push(Finding {
            what: "egress",
            result: egress(config).await,
        });
    }
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
    let data_dir = std::path::absolute(&config.data_dir)
        .map_err(|error| format!("{} (data_dir): {error}", config.data_dir.display()))?;
    let mut missing = 0;
    let mut free = u64::MAX;
    for folder in Store::folders(&data_dir) {
        missing += usize::from(!folder.exists());
        // A folder that is missing will be on the disk of the one above it.
        let there = folder.ancestors().find(|folder| folder.exists());
        let there = there.unwrap_or(Path::new("/"));
        writable(there)?;
        free = free.min(free_bytes(there).map_err(|error| error.to_string())?);
    }
    let free_mb = free / 1_000_000;
    if free < config.storage.min_free_bytes() {
        return Err(format!(
            "the disk of {} has {free_mb} MB left, less than storage.min_free_mb ({}): the worker would take no calls",
            config.data_dir.display(),
            config.storage.min_free_mb
        ));
    }
    let missing = match missing {
        0 => String::new(),
        missing => format!(", {missing} of its folders are made at the start"),
    };
    Ok(format!(
        "{} can be written, {free_mb} MB are free{missing}",
        config.data_dir.display()
    ))
}

/// Whether this user may write in a folder. Asked of the system: nothing is written.
fn writable(folder: &Path) -> Result<(), String> {
    let refused = |why: &dyn std::fmt::Display| {
        format!("{} cannot be written (data_dir): {why}", folder.display())
    };
    if !folder.is_dir() {
        return Err(refused(&"it is no folder"));
    }
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| refused(&error))
}

/// Where an egress would be asked to write.
fn asked_for(config: &Config) -> String {
    let recording = &config.recording;
    match recording.s3.egress_bucket.as_str() {
        "" => recording.egress_file_path.clone(),
        bucket => format!("s3://{bucket}/{}", recording.egress_file_path),
    }
}

fn recording(config: &Config) -> Result<String, String> {
    let recording = &config.recording;
    let outside = Path::new(&recording.local_prefix);
    if outside.is_absolute() && !outside.is_dir() {
        return Err(format!(
            "{} (recording.local_prefix) is no folder: it is not mounted, or has another name",
            outside.display()
        ));
    }
    Ok(match recording.mode {
        RecordingMode::Off => "calls are not recorded (recording.mode = \"off\")".to_owned(),
        RecordingMode::Local => "each call records itself into recordings/".to_owned(),
        RecordingMode::Egress => format!(
            "an egress is asked for {}, which is looked for in {}; `voicebot check --egress` tries it",
            asked_for(config),
            recording.local_prefix
        ),
    })
}

async fn egress(config: &Config) -> Result<String, String> {
    let livekit = config
        .livekit_settings()
        .map_err(|error| error.to_string())?;
    let store = Store::open(&config.data_dir).map_err(|error| error.to_string())?;
    let resolver = super::uploads::resolver(config, &store);
    let proof = proof::record_once(&config.recording, &livekit, &resolver).await?;
    let left = match proof.left {
        Some(left) => format!("; {left} is left and may be deleted"),
        None => String::new(),
    };
    Ok(format!(
        "recorded to {} and found as {} ({} bytes); the egress began after {:.1} s, what is said before is not in a recording \
         (recording.egress_start_wait_ms){left}",
        proof.place,
        proof.name,
        proof.size,
        proof.start.as_secs_f32()
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

/// The providers, and what is to be said about them.
async fn providers(config: &Config, http: &reqwest::Client) -> Result<(Providers, String), String> {
    let providers =
        providers::build(&config.providers, http.clone()).map_err(|error| error.to_string())?;
    if config.providers.vendor == Vendor::Scripted {
        let said = "a prepared conversation (providers.vendor = \"scripted\")";
        return Ok((providers, said.into()));
    }
    let lists = &config.providers;
    if !lists.stt.is_empty() && !lists.llm.is_empty() && !lists.tts.is_empty() {
        let said = format!(
            "{}; {}; {}",
            providers.stt.name(),
            providers.llm.name(),
            providers.tts.name()
        );
        return Ok((providers, said));
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
        Ok(response) => Ok((providers, format!("{base} answers ({})", response.status()))),
        Err(error) => Err(format!(
            "{base} (OPENAI_BASE_URL) does not answer: {}",
            error.without_url()
        )),
    }
}

async fn persona(config: &Config, http: &reqwest::Client) -> Persona {
    let token = Secret::from_env("PERSONA_TOKEN");
    let personas = Personas::new(
        config.persona.clone(),
        http.clone(),
        token,
        &config.data_dir,
    );
    personas.find([]).await
}

/// Lets the synthesiser speak one word in the persona's voice, and the recogniser hear it.
async fn speech(providers: &Providers, persona: &Persona) -> Vec<Finding> {
    let began = Instant::now();
    let word = match timeout(
        SPEECH_PATIENCE,
        speak(providers.tts.as_ref(), persona.voice.clone(), persona),
    )
    .await
    {
        Ok(word) => word,
        Err(_) => Err(format!(
            "{} spoke no word within {} s",
            providers.tts.name(),
            SPEECH_PATIENCE.as_secs()
        )),
    };
    let took = began.elapsed();
    let rate_hz = providers.tts.sample_rate_hz();
    let heard = match &word {
        Ok(word) => Some(hear(providers.stt.as_ref(), persona, word, rate_hz).await),
        Err(_) => None,
    };
    let name = providers.tts.name();
    let voice = word.map(|word| {
        let seconds = word.len() as f64 / f64::from(rate_hz.max(1));
        let peak = word.iter().map(|sample| sample.unsigned_abs()).max();
        let level = 20.0 * (f64::from(peak.unwrap_or(0)).max(1.0) / 32_768.0).log10();
        let format = match providers.tts.last_format() {
            Some(format) => format!(" ({format})"),
            None => String::new(),
        };
        format!(
            "{name} says \u{201c}{WORD}\u{201d} in {seconds:.2} s{format}, at most {level:.0} dBFS; all of it was there \
             after {} ms",
            took.as_millis()
        )
    });
    let mut findings = vec![Finding {
        what: "voice",
        result: voice,
    }];
    findings.extend(heard.map(|result| Finding {
        what: "recognition",
        result,
    }));
    findings
}

/// Opens each vendor of the lists once.
async fn vendors(
    settings: &ProvidersConfig,
    providers: &Providers,
    persona: &Persona,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let request = ListenRequest {
        language: persona.language.clone(),
        sample_rate_hz: INPUT_SAMPLE_RATE_HZ,
        limits: LimitsConfig::default(),
    };
    for opened in providers.stt.check(&request).await {
        let name = opened.name;
        findings.push(Finding {
            what: "recognition",
            result: match opened.result {
                Ok(took) => Ok(format!("{name} opens in {} ms", took.as_millis())),
                Err(error) => Err(format!("{name}: {error}")),
            },
        });
    }
    let models = match providers.llm.members() {
        // A list of one is that one.
        [] if !settings.llm.is_empty() => std::slice::from_ref(&providers.llm),
        members => members,
    };
    for model in models {
        let began = Instant::now();
        let name = model.name();
        findings.push(Finding {
            what: "language model",
            result: match timeout(SPEECH_PATIENCE, answers(model.as_ref())).await {
                Ok(Ok(())) => Ok(format!(
                    "{name} begins to answer after {} ms",
                    began.elapsed().as_millis()
                )),
                Ok(Err(error)) => Err(format!("{name}: {error}")),
                Err(_) => Err(format!(
                    "{name} said nothing within {} s",
                    SPEECH_PATIENCE.as_secs()
                )),
            },
        });
    }
    for (at, voice) in providers.tts.members().iter().enumerate() {
        let began = Instant::now();
        let name = voice.name();
        // The persona's voice is one of the first vendor.
        let speaks = async {
            let own = persona.voice.clone().filter(|_| at == 0);
            speak(voice.as_ref(), own, persona).await
        };
        findings.push(Finding {
            what: "voice",
            result: match timeout(SPEECH_PATIENCE, speaks).await {
                Ok(Ok(_)) => Ok(format!(
                    "{name} has said \u{201c}{WORD}\u{201d} after {} ms",
                    began.elapsed().as_millis()
                )),
                Ok(Err(why)) => Err(why),
                Err(_) => Err(format!(
                    "{name} spoke no word within {} s",
                    SPEECH_PATIENCE.as_secs()
                )),
            },
        });
    }
    findings
}

/// Waits for the beginning of an answer.
async fn answers(model: &dyn ChatModel) -> Result<(), ProviderError> {
    let request = ChatRequest {
        messages: vec![ChatMessage::User(WORD.to_owned())],
        tools: Vec::new(),
        tool_choice: ToolChoice::Auto,
    };
    let mut answer = model.chat(request).await?;
    match answer.next().await {
        Some(first) => first.map(|_| ()),
        None => Err(ProviderError::temporary("it answers without a word")),
    }
}

/// The sound of one word.
async fn speak(
    tts: &dyn TextToSpeech,
    voice: Option<String>,
    persona: &Persona,
) -> Result<Vec<i16>, String> {
    let request = SpeechRequest {
        text: WORD.to_owned(),
        voice,
        language: persona.language.clone(),
    };
    let most = tts.sample_rate_hz() as usize * LONGEST_WORD.as_secs() as usize;
    let mut word = Vec::new();
    let sound = async {
        let mut pieces = tts.synthesize(request).await?;
        while let Some(piece) = pieces.next().await {
            if let SpeechPiece::Sound(samples) = piece? {
                word.extend(samples);
            }
            if word.len() > most {
                break;
            }
        }
        Ok::<_, ProviderError>(())
    };
    sound.await.map_err(|error| error.to_string())?;
    if word.is_empty() {
        return Err(format!("{} answered without any sound", tts.name()));
    }
    if voice::is_noise(&word, tts.sample_rate_hz()) {
        return Err(format!(
            "{} sent noise at full volume instead of speech (providers.tts_model)",
            tts.name()
        ));
    }
    Ok(word)
}

async fn hear(
    stt: &dyn SpeechToText,
    persona: &Persona,
    word: &[i16],
    rate_hz: u32,
) -> Result<String, String> {
    let mut samples = Vec::new();
    let mut resampler = Resampler::new(rate_hz, INPUT_SAMPLE_RATE_HZ);
    resampler.push(word, &mut samples);
    resampler.finish(&mut samples);
    let segment = SpeechSegment {
        samples: samples.into(),
        sample_rate_hz: INPUT_SAMPLE_RATE_HZ,
        language: persona.language.clone(),
    };
    let language = match &persona.language {
        Some(language) => format!(" as {language}"),
        None => String::new(),
    };
    match timeout(
        SPEECH_PATIENCE,
        hear_once(stt, segment, LimitsConfig::default()),
    )
    .await
    {
        Ok(Ok(heard)) => Ok(format!(
            "{} hears \u{201c}{}\u{201d}{language}",
            stt.name(),
            heard.text
        )),
        Ok(Err(error)) => Err(format!("{}{language}: {error}", stt.name())),
        Err(_) => Err(format!(
            "{} heard nothing within {} s",
            stt.name(),
            SPEECH_PATIENCE.as_secs()
        )),
    }
}
