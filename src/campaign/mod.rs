//! Campaigns: work through a list of people to call.
//!
//! [`Plan`] decides whom to call next and is pure: it is folded from the events of the campaign's
//! journal, which [`Campaign`] keeps on the disk. The dialler ([`dial`]) does what it decides: it
//! dispatches an agent for each attempt, which dials as every call does, and finds what came of it
//! in the call's record. It knows nothing of what is said in a call.

mod dialler;
mod do_not_call;
mod event;
mod follow;
mod import;
mod journal;
mod number;
mod plan;
#[cfg(test)]
mod plan_tests;
mod settings;
mod traces;
mod window;

pub use dialler::{DiallerEnd, DiallerError, DiallerSettings, dial, has_work};
pub use do_not_call::DoNotCall;
pub use event::{
    Attempt, AttemptOutcome, AttemptResult, CampaignEvent, ImportedLead, Line, room_prefix,
};
pub use import::{ImportError, ImportReport, Importer, Refused};
pub use journal::{Campaign, JournalError, Lease, folder, names};
pub use number::{DialNumber, NumberError};
pub use plan::{Lead, LeadState, Next, Plan, Progress, RunState, StartError};
pub use settings::{BreakerSettings, CampaignName, CampaignSettings, Retry};
pub use window::{Preset, Window};
