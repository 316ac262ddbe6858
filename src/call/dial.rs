//! The number of a dispatch, called while everything else gets ready. The API answers when somebody
//! has answered, or says why nobody did; that is an event of the call's loop.

use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use super::config::DialConfig;
use crate::rooms::{Callee, TelephoneError, TelephoneService};
use crate::session::dispatch::{self, DispatchRules};
use crate::session::{DialOutcome, Numbers};
use crate::settings::LiveKitSettings;

/// The number of a dispatch, and how it is called; or why it cannot be.
///
/// `None`: nothing is to be dialled, see [`dispatch::is_dialled`].
pub fn callee(
    config: &DialConfig,
    job_metadata: &Value,
    rules: &DispatchRules,
) -> Option<Result<Callee, String>> {
    if !dispatch::is_dialled(job_metadata, rules) {
        return None;
    }
    let number = Numbers::told(job_metadata, &rules.country)?;
    let how = match config.with_dispatched(job_metadata.get(dispatch::DIAL)) {
        Ok(how) => how,
        Err(problem) => return Some(Err(format!("the job metadata {problem}"))),
    };
    let caller_id = Some(how.caller_id)
        .filter(|shown| !shown.is_empty())
        .or_else(|| Numbers::told_trunk(job_metadata, &rules.country));
    Some(Ok(Callee {
        identity: format!("sip_{number}"),
        number,
        trunk_id: how.trunk_id,
        caller_id,
        ringing_timeout: Duration::from_secs(how.ringing_timeout_s),
        headers: how.headers.into_iter().collect(),
    }))
}

/// A call that is being placed.
pub struct Dialling {
    /// Of the telephone in the room.
    pub identity: String,
    task: JoinHandle<Result<(), TelephoneError>>,
}

impl Dialling {
    /// Calls the number into the room.
    pub fn start(livekit: &LiveKitSettings, room: &str, callee: Callee) -> Self {
        let identity = callee.identity.clone();
        let (service, room) = (TelephoneService::new(livekit), room.to_owned());
        let calling = async move { service.call(&room, callee).await };
        Self {
            identity,
            task: tokio::spawn(calling.in_current_span()),
        }
    }

    /// Waits until it is answered, or known why not. May be dropped at any time; is not asked again
    /// after it has ended.
    pub async fn finished(&mut self) -> Result<(), TelephoneError> {
        match (&mut self.task).await {
            Ok(result) => result,
            Err(error) => Err(TelephoneError {
                outcome: DialOutcome::Failed,
                sip_status: None,
                sip_reason: None,
                message: format!("the number could not be called: {error}"),
            }),
        }
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_number_of_a_dispatch_is_called_as_it_says() {
        let config = DialConfig {
            trunk_id: "ST_ours".into(),
            ..Default::default()
        };
        let rules = DispatchRules::default();
        let metadata = json!({
            "phone_number": "00 91 86550 66243", "from": "+15550100001", "dial": { "ringing_timeout_s": 20, "headers": { "X-Lead": "7" } },
        });
        let callee = callee(&config, &metadata, &rules).unwrap().unwrap();
        assert_eq!(callee.number, "+918655066243");
        assert_eq!(callee.identity, "sip_+918655066243");
        assert_eq!(callee.trunk_id, "ST_ours");
        assert_eq!(callee.caller_id.as_deref(), Some("+15550100001"));
        assert_eq!(callee.ringing_timeout, Duration::from_secs(20));
        assert_eq!(callee.headers, [("X-Lead".to_owned(), "7".to_owned())]);
    }

    #[test]
    fn nothing_is_called_unasked_and_a_wrong_wish_is_a_sentence() {
        let rules = DispatchRules::default();
        let config = DialConfig::default();
        let number = json!({ "phone_number": "+918655066243" });
        assert_eq!(callee(&config, &number, &rules), None);
        let wrong = json!({ "phone_number": "+918655066243", "dial": { "trnk": "ST_1" } });
        let problem = callee(&config, &wrong, &rules).unwrap().unwrap_err();
        assert!(
            problem.starts_with("the job metadata has a wrong dial"),
            "{problem}"
        );
        assert!(problem.contains("trnk"), "{problem}");
    }
}
