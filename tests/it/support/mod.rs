//! The world around the parts under test: servers that really listen on a socket.

pub mod agent_server;
pub mod bad_crm;
pub mod caller;
pub mod crm;
pub mod data;
pub mod live_caller;
pub mod openai;
pub mod s3;
pub mod world;
