//! Rooms as a call and the worker see them: who is in one, whom an agent talks to and what it
//! leaves behind ([`party`], pure), and the server's API about rooms ([`RoomService`]).

mod end;
pub mod party;
mod service;

pub use end::{DesertedRoom, LostAgent, end_room};
pub(crate) use service::is_machine;
pub use service::{RoomService, RoomServiceError};
