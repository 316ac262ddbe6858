//! `voicebot`: one binary that holds phone conversations on LiveKit.

pub mod call;
pub mod cli;
pub mod config;
pub mod ipc;
pub mod providers;
pub mod recording;
pub mod session;
pub mod store;
pub mod tools;
pub mod upload;
pub mod voice;
pub mod worker;
