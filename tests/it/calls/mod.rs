//! Whole calls: a caller on the official LiveKit client, the room server, the worker with its call
//! processes, a CRM.
//!
//! Everything is real but the providers, which play a script, and the network, which is this
//! machine's loopback.

mod commands;
mod crashes;
mod dark;
mod dial;
mod early;
mod endings;
mod phone;
mod recordings;
mod stopping;
mod talking;
mod trouble;
mod turns;
