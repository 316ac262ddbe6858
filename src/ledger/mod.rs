//! Finding calls again: which there are, and what happened to one of them from its dispatch to the
//! CRM's answer.
//!
//! Everything is read from what the other parts have written: journals of running calls, records
//! that wait, records in the archive. Nothing here changes a record or makes a call wait.

mod mask;
pub mod mongodb;
mod pages;
mod search;
mod timeline;
mod view;

pub use mask::{masked, masked_call};
pub use pages::{CallPage, PageMark, PageQuestion, page};
pub use search::{
    CallFilter, FoundCall, Live, Query, Scanned, SearchResult, Standing, Unreadable, WholeCall,
    find, list, of_session,
};
pub use timeline::{TimelineEntry, TimelineEvent, timeline};
pub use view::{CallDetails, CallSummary, LeadView};
