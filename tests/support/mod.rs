//! The world around the parts under test: servers that really listen on a socket.

pub mod agent_server;
