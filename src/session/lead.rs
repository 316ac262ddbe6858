//! A lead: a caller who asked for further contact.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::time;
use super::{LeadId, SessionId};

/// One lead file, `leads/lead_<session_id>_<n>.json`. Optional texts are empty when the caller did
/// not say them, as in the original.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lead {
    /// Globally unique id.
    pub lead_id: LeadId,
    /// The call it was taken in.
    pub session_id: SessionId,
    /// The CRM's id of that call. The store fills it in when it saves the lead.
    #[serde(default)]
    pub call_id: Option<String>,
    /// The person.
    pub name: String,
    /// The email address.
    pub email: String,
    /// The person's company.
    pub company: String,
    /// What the person is interested in.
    pub interest: String,
    /// Phone number as it was said.
    #[serde(default)]
    pub phone: String,
    /// Role in the company.
    #[serde(default)]
    pub job_title: String,
    /// Budget as it was said.
    #[serde(default)]
    pub budget: String,
    /// When they want to start or decide.
    #[serde(default)]
    pub timeline: String,
    /// When the lead was taken.
    #[serde(with = "time")]
    pub created_at: DateTime<Utc>,
}
