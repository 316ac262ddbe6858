//! `voicebot dial`: has a worker call a number, and tells the call's story as it happens.
//!
//! It makes a room, watches it without being seen, and dispatches the agent there. What it tells is
//! what everybody in the room can know: how far the telephone is, what is said, and what the agent
//! publishes as the call's outcome. So the worker may be on another machine.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt as _;
use livekit::StreamReader as _;
use livekit::participant::ParticipantKind;
use livekit::prelude::*;
use livekit_api::access_token::{AccessToken, VideoGrants};
use livekit_api::services::agent_dispatch::AgentDispatchClient;
use livekit_protocol::CreateAgentDispatchRequest;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::CommandResult;
use crate::call::{CALL_OUTCOME, stop_signal};
use crate::campaign::{DialNumber, NumberError};
use crate::config::Config;
use crate::phone::CountryCode;
use crate::rooms::RoomService;
use crate::session::{DialOutcome, mask};
use crate::settings::{LiveKitSettings, http_address};

/// How long a worker may take to send its agent.
const AGENT_WAIT: Duration = Duration::from_secs(20);
/// Lines of the conversation that may wait to be told.
const WORDS_QUEUE: usize = 64;
/// The longest thing that is told of one turn, bytes.
const MAX_WORDS: usize = 16 * 1024;
/// The largest file of a lead.
const MAX_LEAD_FILE: u64 = 64 * 1024;
/// The topic of transcriptions and its attribute (LiveKit Agents' `types.py`).
const TRANSCRIPTION_TOPIC: &str = "lk.transcription";
const IS_FINAL: &str = "lk.transcription_final";
/// State of a telephone call (livekit/protocol `attrs.go`).
const SIP_CALL_STATUS: &str = "sip.callStatus";

#[derive(Debug, Args)]
pub struct DialArguments {
    /// The number, with + and its country code; without where call.country_code is set
    number: String,
    /// Who calls: the name of a file in persona.directory, without .json [default: as for every
    /// call, by the numbers]
    #[arg(long)]
    persona: Option<String>,
    /// A JSON file with what is known of the person: the agent is told, and the record has it
    #[arg(long, value_name = "FILE")]
    lead: Option<PathBuf>,
    /// LiveKit's id of the outbound trunk, ST_… [default: dial.trunk_id of the worker]
    #[arg(long, value_name = "ID")]
    trunk: Option<String>,
    /// The number that is shown [default: dial.caller_id of the worker, or the trunk's]
    #[arg(long, value_name = "NUMBER")]
    caller_id: Option<String>,
    /// How long the telephone may ring, s [default: dial.ringing_timeout_s of the worker]
    #[arg(long, value_name = "SECONDS")]
    ringing_timeout: Option<u64>,
}

/// Why nothing is called.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("the lead {path} cannot be used: {why}")]
    Lead { path: PathBuf, why: String },
    #[error("LIVEKIT_AGENT_NAME is not set: a call is given to the workers of a name")]
    NoName,
    #[error(
        "no agent came within {seconds} s: is a worker of the name {name:?} (LIVEKIT_AGENT_NAME) running at {url}?"
    )]
    NoAgent {
        seconds: u64,
        name: String,
        url: String,
    },
}

/// Has the number called and tells what happens. The exit code tells what came of it.
pub async fn run(arguments: DialArguments, config: &Config) -> CommandResult {
    let number = number(&arguments.number, &config.call.country_code)?;
    let metadata = metadata(&arguments, &number)?;
    let livekit = config.livekit_settings()?;
    let agent_name = config.livekit.agent_name.clone();
    if agent_name.is_empty() {
        return Err(DialError::NoName.into());
    }
    let mut stop = stop_signal()?;
    let short = &Uuid::new_v4().simple().to_string()[..12];
    let room_name = format!("dial-{short}");
    let token = observer_token(&livekit, &room_name, short)?;
    let mut options = RoomOptions::default();
    options.auto_subscribe = false;
    let (room, mut events) = Room::connect(&livekit.url, &token, options).await?;
    let mut story = Story::new();
    story.tell(&format!(
        "calling {} from the room {room_name}, by an agent of the name {agent_name:?}",
        mask(&number)
    ));
    let host = http_address(&livekit.url);
    let dispatches =
        AgentDispatchClient::with_api_key(&host, &livekit.api_key, livekit.api_secret.expose());
    let dispatched = dispatches.create_dispatch(CreateAgentDispatchRequest {
        agent_name: agent_name.clone(),
        room: room_name.clone(),
        metadata: metadata.to_string(),
        ..Default::default()
    });
    dispatched.await?;

    let (told, mut words) = mpsc::channel(WORDS_QUEUE);
    let agent_until = Instant::now() + AGENT_WAIT;
    let no_agent = loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => {
                    hear(&event, &told);
                    if story.happened(&event) {
                        break false;
                    }
                }
                None => break false,
            },
            Some(line) = words.recv() => story.said(&line),
            Some(()) = stop.recv() => {
                story.tell("hanging up");
                break false;
            }
            () = sleep_until(agent_until), if !story.agent_came => break true,
        }
    };
    // What was still on its way.
    while let Ok(line) = words.try_recv() {
        story.said(&line);
    }
    // An error means that the room is gone already.
    let _ = room.close().await;
    if story.outcome.is_none() {
        let _ = RoomService::new(&livekit).delete(&room_name).await;
    }
    if no_agent {
        let seconds = AGENT_WAIT.as_secs();
        return Err(DialError::NoAgent {
            seconds,
            name: agent_name,
            url: livekit.url,
        }
        .into());
    }
    Ok(ExitCode::from(story.end()))
}

/// The number as it is dialled.
fn number(text: &str, country: &CountryCode) -> Result<String, NumberError> {
    DialNumber::read(text, country).map(|number| number.to_string())
}

/// What the dispatch says.
fn metadata(arguments: &DialArguments, number: &str) -> Result<Value, DialError> {
    let mut dial = Map::new();
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            dial.insert(key.to_owned(), value);
        }
    };
    set("trunk_id", arguments.trunk.clone().map(Value::from));
    set("caller_id", arguments.caller_id.clone().map(Value::from));
    set(
        "ringing_timeout_s",
        arguments.ringing_timeout.map(Value::from),
    );
    let mut metadata = json!({ "phone_number": number, "direction": "outbound", "dial": dial });
    if let Some(persona) = &arguments.persona {
        metadata["persona"] = json!(persona);
    }
    if let Some(path) = &arguments.lead {
        metadata["lead"] = lead(path)?;
    }
    Ok(metadata)
}

fn lead(path: &Path) -> Result<Value, DialError> {
    let failed = |why: String| DialError::Lead {
        path: path.to_owned(),
        why,
    };
    let size = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if size.len() > MAX_LEAD_FILE {
        return Err(failed(format!("it is larger than {MAX_LEAD_FILE} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    // Files from a spreadsheet begin with a byte order mark.
    match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
        Ok(lead @ Value::Object(_)) => Ok(lead),
        Ok(_) => Err(failed("it is JSON but no object".to_owned())),
        Err(error) => Err(failed(format!("it is not JSON: {error}"))),
    }
}

fn observer_token(
    livekit: &LiveKitSettings,
    room: &str,
    short: &str,
) -> Result<String, livekit_api::access_token::AccessTokenError> {
    let grants = VideoGrants {
        room_join: true,
        room: room.to_owned(),
        hidden: true,
        can_publish: Some(false),
        can_publish_data: Some(false),
        ..Default::default()
    };
    AccessToken::with_api_key(&livekit.api_key, livekit.api_secret.expose())
        .with_identity(&format!("voicebot-dial-{short}"))
        .with_grants(grants)
        .to_jwt()
}

/// Who has said what.
struct Line {
    speaker: String,
    text: String,
}

/// Reads what is said, in the background.
fn hear(event: &RoomEvent, told: &mpsc::Sender<Line>) {
    let RoomEvent::TextStreamOpened {
        reader,
        topic,
        participant_identity,
    } = event
    else {
        return;
    };
    if topic != TRANSCRIPTION_TOPIC {
        return;
    }
    let Some(mut reader) = reader.take() else {
        return;
    };
    let (speaker, told) = (participant_identity.to_string(), told.clone());
    tokio::spawn(async move {
        let mut text = String::new();
        while let Some(Ok(chunk)) = reader.next().await {
            text.push_str(&chunk);
            if text.len() > MAX_WORDS {
                break;
            }
        }
        let is_final = reader.info().attributes().get(IS_FINAL).map(String::as_str) == Some("true");
        if is_final && !text.trim().is_empty() {
            let _ = told.send(Line { speaker, text }).await;
        }
    });
}

/// What the agent says of the call at its end.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Told {
    session_id: String,
    outcome: Option<DialOutcome>,
    sip_status: Option<u16>,
    sip_reason: Option<String>,
    call_status: Option<String>,
    disconnect_reason: Option<String>,
    error: Option<String>,
}

/// The call as far as it has been seen.
struct Story {
    began: Instant,
    agent: Option<String>,
    agent_came: bool,
    /// How far the telephone was, last.
    telephone: String,
    outcome: Option<Told>,
}

impl Story {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            agent: None,
            agent_came: false,
            telephone: String::new(),
            outcome: None,
        }
    }

    /// Prints a line with the time since the beginning. A terminal that has gone away ends nothing.
    fn tell(&self, line: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        let _ = writeln!(std::io::stdout(), "{seconds:6.1} s  {line}");
    }

    fn said(&self, line: &Line) {
        let who = match self.agent.as_deref() == Some(&line.speaker) {
            true => "agent",
            false => "callee",
        };
        self.tell(&format!("{who}: {}", line.text.trim()));
    }

    /// Tells what an event means. True: the call is over.
    fn happened(&mut self, event: &RoomEvent) -> bool {
        match event {
            RoomEvent::ParticipantConnected(participant)
            | RoomEvent::ParticipantAttributesChanged {
                participant: Participant::Remote(participant),
                ..
            } => {
                let attributes = participant.attributes();
                match participant.kind() {
                    ParticipantKind::Agent => {
                        self.agent_is(&participant.identity().to_string(), &attributes);
                    }
                    ParticipantKind::Sip => self.telephone_is(&attributes),
                    _ => {}
                }
                false
            }
            RoomEvent::ParticipantDisconnected(participant) => {
                participant.kind() == ParticipantKind::Agent
            }
            RoomEvent::Disconnected { .. } => true,
            _ => false,
        }
    }

    fn agent_is(&mut self, identity: &str, attributes: &HashMap<String, String>) {
        if !std::mem::replace(&mut self.agent_came, true) {
            self.tell("the agent is there");
        }
        self.agent = Some(identity.to_owned());
        if let Some(told) = attributes.get(CALL_OUTCOME) {
            self.outcome = serde_json::from_str(told).ok();
        }
    }

    fn telephone_is(&mut self, attributes: &HashMap<String, String>) {
        let status = attributes.get(SIP_CALL_STATUS).cloned().unwrap_or_default();
        if status == self.telephone {
            return;
        }
        match status.as_str() {
            "dialing" => self.tell("dialling"),
            "ringing" => self.tell("ringing"),
            "active" | "automation"
                if !matches!(self.telephone.as_str(), "active" | "automation") =>
            {
                self.tell("answered");
            }
            "hangup" => self.tell("the telephone has hung up"),
            _ => {}
        }
        self.telephone = status;
    }

    /// Tells how it ended, and gives the exit code that says so.
    fn end(&self) -> u8 {
        let Some(told) = &self.outcome else {
            self.tell("the agent has gone without a word about the call");
            return NOT_KNOWN;
        };
        let mut line = told.outcome.map_or("failed", DialOutcome::name).to_owned();
        if let Some(code) = told.sip_status {
            let reason = told.sip_reason.as_deref().unwrap_or_default();
            line = format!("{line}: {code} {reason}");
        }
        if told.outcome == Some(DialOutcome::Answered) {
            let status = told.call_status.as_deref().unwrap_or_default();
            let reason = told.disconnect_reason.as_deref().unwrap_or_default();
            line = format!("{line}, {status} ({reason})");
        }
        self.tell(line.trim_end());
        if let Some(error) = &told.error {
            self.tell(error);
        }
        self.tell(&format!("voicebot calls show {}", told.session_id));
        exit_code(told)
    }
}

/// Exit code of a call of which nothing is known, and of one that broke while it was held.
const NOT_KNOWN: u8 = 1;

/// What came of a call, for scripts.
fn exit_code(told: &Told) -> u8 {
    match told.outcome {
        Some(DialOutcome::Answered) if told.error.is_some() => NOT_KNOWN,
        Some(DialOutcome::Answered) => 0,
        Some(DialOutcome::Busy) => 10,
        Some(DialOutcome::Declined) => 11,
        Some(DialOutcome::NoAnswer) => 12,
        Some(DialOutcome::InvalidNumber) => 13,
        Some(DialOutcome::TrunkFailed) => 14,
        Some(DialOutcome::Failed) | None => 15,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of `numbers.json` are numbers as they are written.
    #[test]
    fn a_number_is_dialled_with_its_country_code_or_refused_with_a_sentence() {
        let case = include_str!("../../tests/fixtures/cases/numbers-of-the-telephone/numbers.json");
        let forms: HashMap<String, Value> = serde_json::from_str(case).unwrap();
        let mut dialled = 0;
        for form in forms.keys() {
            match number(form, &CountryCode::default()) {
                Ok(number) => {
                    assert!(number.starts_with('+'), "{form:?}: {number}");
                    dialled += 1;
                }
                Err(refused) => assert!(refused.to_string().contains("country_code"), "{refused}"),
            }
            let india: CountryCode = serde_json::from_str("\"91\"").unwrap();
            assert!(number(form, &india).is_ok(), "{form:?}");
        }
        assert!(dialled >= 6, "{dialled} of {}", forms.len());
        for text in ["", "112", "nobody", "+12", "1234567890123456"] {
            let refused = number(text, &CountryCode::default()).unwrap_err();
            assert!(
                refused.to_string().contains("no telephone number"),
                "{refused}"
            );
        }
    }

    #[test]
    fn every_outcome_has_its_exit_code() {
        let mut seen = Vec::new();
        for code in [200, 486, 603, 408, 404, 503, 488] {
            let told = Told {
                outcome: Some(DialOutcome::of_sip_status(code)),
                ..Default::default()
            };
            seen.push(exit_code(&told));
        }
        assert_eq!(seen, [0, 10, 11, 12, 13, 14, 15]);
        let broken = Told {
            outcome: Some(DialOutcome::Answered),
            error: Some("llm provider failed".into()),
            ..Default::default()
        };
        assert_eq!(exit_code(&broken), NOT_KNOWN);
    }
}
