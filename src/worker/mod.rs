//! The long-lived process: takes jobs from the LiveKit server, starts one process for each call,
//! and sees to it that every call ends in a record.
//!
//! It never touches media and never talks to the CRM (the upload task does). By file: `run` is the
//! one task that decides, fed by events; `registration` keeps the connection to the server;
//! `admission` counts slots; `process` follows one call's process from its start to its record;
//! `abandoned` ends the rooms of calls that died; `disk` watches the room for records; `orphans`
//! takes care of calls that an earlier worker left, `unwritten` of records that could not be
//! written; only `wire` knows the worker protocol; `http` (with `listener`, which bounds its
//! connections) and `metrics` show the worker to operators.

mod abandoned;
mod admission;
mod config;
mod disk;
mod http;
mod listener;
mod metrics;
mod orphans;
mod pressure;
mod process;
mod registration;
mod run;
mod unwritten;
pub(crate) mod wire;

pub use self::metrics::{install as install_metrics, resident_bytes};
pub use config::WorkerConfig;
pub use http::{HttpError, HttpServer, webhook_route};
pub use process::CallProgram;
pub use run::{StopRequests, Worker, WorkerError, WorkerStatus, stop_signals};
pub use wire::BadLiveKitUrl;
