//! The server's API about telephone calls: place one, hand one over. What LiveKit's SIP service
//! answers comes back with the status of the SIP call.

use std::time::Duration;

use livekit_api::services::sip::{
    CreateSIPParticipantOptions, SIPClient, TransferSIPParticipantOptions,
};
use livekit_api::services::{ServerError, ServiceError, SipCallError};

use crate::session::DialOutcome;
use crate::settings::{LiveKitSettings, http_address};

/// How much longer than a telephone may ring the answer of the API may take: the SIP service sets
/// the call up before, and sends a CANCEL after.
const ANSWER_MARGIN: Duration = Duration::from_secs(10);

/// Why a call was not placed, or not handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TelephoneError {
    /// What came of it.
    pub outcome: DialOutcome,
    /// The final status of the SIP call, if it has come to one.
    pub sip_status: Option<u16>,
    /// Its reason phrase.
    pub sip_reason: Option<String>,
    /// A sentence for the operator.
    pub message: String,
}

impl TelephoneError {
    /// What the network said, in few words.
    pub fn in_words(&self) -> String {
        match self.sip_status {
            Some(code) => {
                let reason = self.sip_reason.as_deref().unwrap_or_default();
                format!("{code} {reason}").trim_end().to_owned()
            }
            None => match self.outcome {
                DialOutcome::NoAnswer => "nobody answered in time".to_owned(),
                _ => "it failed".to_owned(),
            },
        }
    }
}

/// A number to be called, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callee {
    /// The number.
    pub number: String,
    /// LiveKit's id of the outbound trunk.
    pub trunk_id: String,
    /// The number that is shown; the trunk's where there is none.
    pub caller_id: Option<String>,
    /// The identity of the telephone in the room.
    pub identity: String,
    /// How long it may ring.
    pub ringing_timeout: Duration,
    /// SIP headers of the INVITE.
    pub headers: Vec<(String, String)>,
}

/// A handle to the telephone API of one server.
#[derive(Debug)]
pub struct TelephoneService {
    client: SIPClient,
    host: String,
}

impl TelephoneService {
    /// The API of the server in the settings.
    pub fn new(livekit: &LiveKitSettings) -> Self {
        let host = http_address(&livekit.url);
        let (key, secret) = (&livekit.api_key, livekit.api_secret.expose());
        Self {
            client: SIPClient::with_api_key(&host, key, secret),
            host,
        }
    }

    /// Calls a number into a room and waits until it is answered.
    ///
    /// # Errors
    /// When it is not. A request that is dropped leaves the call ringing: the room, or the
    /// participant, has to be removed.
    pub async fn call(&self, room: &str, callee: Callee) -> Result<(), TelephoneError> {
        let options = CreateSIPParticipantOptions {
            participant_name: Some(format!("Phone {}", callee.number)),
            participant_identity: callee.identity,
            sip_number: callee.caller_id,
            wait_until_answered: Some(true),
            ringing_timeout: Some(callee.ringing_timeout),
            headers: Some(callee.headers.into_iter().collect()),
            timeout: Some(callee.ringing_timeout + ANSWER_MARGIN),
            ..Default::default()
        };
        let called = self.client.create_sip_participant(
            callee.trunk_id,
            callee.number,
            room.to_owned(),
            options,
            None,
        );
        called
            .await
            .map(drop)
            .map_err(|error| self.failed("the number could not be called", &error))
    }

    /// Hands a call over to `target`, a `tel:` or `sip:` address, by a SIP REFER, and waits for
    /// what comes of it.
    ///
    /// # Errors
    /// When the other side does not take it. The call goes on in its room.
    pub async fn transfer(
        &self,
        room: &str,
        identity: &str,
        target: &str,
        ringing_timeout: Duration,
    ) -> Result<(), TelephoneError> {
        let options = TransferSIPParticipantOptions {
            play_dialtone: Some(true),
            ringing_timeout: Some(ringing_timeout),
            timeout: Some(ringing_timeout + ANSWER_MARGIN),
            ..Default::default()
        };
        let transferred = self.client.transfer_sip_participant(
            room.to_owned(),
            identity.to_owned(),
            target.to_owned(),
            options,
        );
        transferred
            .await
            .map_err(|error| self.failed("the call could not be handed over", &error))
    }

    fn failed(&self, what: &str, error: &ServiceError) -> TelephoneError {
        let sip = SipCallError::from_error(error);
        let told = sip.as_ref().and_then(SipCallError::sip_status_code);
        let sip_status = told
            .and_then(|code| u16::try_from(code).ok())
            .or_else(|| status_in(&error.to_string()));
        let outcome = match sip_status {
            Some(code) => DialOutcome::of_sip_status(code),
            None if is_timeout(error) => DialOutcome::NoAnswer,
            None => DialOutcome::Failed,
        };
        TelephoneError {
            outcome,
            sip_status,
            sip_reason: sip.and_then(|sip| sip.sip_status().map(str::to_owned)),
            message: format!(
                "{what}: the telephone API of {} (LIVEKIT_URL) answered {error}",
                self.host
            ),
        }
    }
}

/// The status in the words of an error: the answer to a REFER has it there alone (livekit-sip
/// `protocol.go`, `handleReferNotify`).
fn status_in(message: &str) -> Option<u16> {
    let (_, after) = message.split_once("sip status")?;
    let digits: String = after
        .trim_start_matches([':', ' '])
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok().filter(|code| *code >= 100)
}

fn is_timeout(error: &ServiceError) -> bool {
    match error {
        ServiceError::Twirp(ServerError::Request(error)) => error.is_timeout(),
        ServiceError::Twirp(ServerError::Twirp(refusal)) => refusal.code == "deadline_exceeded",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Secret;
    use livekit_api::services::ServerErrorCode;

    fn told(code: &str, msg: &str, meta: &[(&str, &str)]) -> TelephoneError {
        let livekit = LiveKitSettings {
            url: "ws://host".into(),
            api_key: "key".into(),
            api_secret: Secret::new("secret"),
        };
        let error = ServerErrorCode {
            code: code.into(),
            msg: msg.into(),
            meta: meta
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        TelephoneService::new(&livekit)
            .failed("it failed", &ServiceError::Twirp(ServerError::Twirp(error)))
    }

    #[test]
    fn the_status_of_the_call_counts_before_the_code_of_the_answer() {
        let busy = told(
            "resource_exhausted",
            "sip status 486: Busy Here",
            &[("sip_status_code", "486"), ("sip_status", "Busy Here")],
        );
        assert_eq!(busy.outcome, DialOutcome::Busy);
        assert_eq!(busy.sip_status, Some(486));
        assert_eq!(busy.sip_reason.as_deref(), Some("Busy Here"));
        for (message, status) in [
            ("call transfer failed: sip status: 603: Declined", Some(603)),
            ("sip status 480: TEMPORARILY_UNAVAILABLE", Some(480)),
            ("sip status: x", None),
            ("no response from servers", None),
        ] {
            assert_eq!(
                told("unknown", message, &[]).sip_status,
                status,
                "{message}"
            );
        }
        let late = told("deadline_exceeded", "context deadline exceeded", &[]);
        assert_eq!(late.outcome, DialOutcome::NoAnswer);
        let refused = told("unauthenticated", "permissions denied", &[]);
        assert_eq!(refused.outcome, DialOutcome::Failed);
        assert!(refused.message.contains("LIVEKIT_URL"), "{refused}");
    }
}
