//! Rooms as a call and the worker see them: who is in one, whom an agent talks to and what it
//! leaves behind ([`party`], pure), and the server's API about rooms ([`RoomService`]),
//! telephone calls ([`TelephoneService`]) and dispatches of agents ([`DispatchService`]).

mod dispatches;
mod end;
pub mod party;
mod service;
mod telephony;

pub use dispatches::{DispatchFailure, DispatchService, Dispatched};
pub use end::{DesertedRoom, LostAgent, end_room};
pub(crate) use service::is_machine;
pub use service::{Dispatch, RoomService, RoomServiceError};
pub use telephony::{Callee, TelephoneError, TelephoneService};
