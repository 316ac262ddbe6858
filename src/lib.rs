//! `voicebot`: one binary that holds phone conversations on LiveKit and delivers every call to the
//! CRM.
//!
//! # The life of a call
//!
//! 1. LiveKit dispatches a job. [`worker`], the long-lived process, answers from its exact number
//!    of free slots (`worker::admission`), writes the first line of the call's journal ([`store`])
//!    and starts one call process (`worker::process`). The two talk in JSON lines over the child's
//!    stdin and stdout ([`ipc`]).
//! 2. [`call`] is that process: it joins the room, publishes its track at once, finds the caller
//!    (`rooms::party`), starts the recording ([`recording`]) and, once it knows who the agent is,
//!    the conversation ([`voice`]). Numbers tell the persona, and the persona the providers:
//!    `call::lookup` finds them out meanwhile, beginning with the dispatch.
//! 3. [`voice`] turns the caller's sound into words and a reply into sound. `voice::turn` decides
//!    whose turn it is and does nothing else, `voice::answer` who has answered a call of ours;
//!    `voice::driver` does what they decided, through the [`providers`] and the [`tools`].
//! 4. Everything that must survive is an event of the [`session`], which the [`store`] appends to
//!    the journal as it happens. At hangup the journal is folded into conversation, leads and the
//!    record in `call_metadata/`.
//! 5. [`upload`], a task of the worker, finds the recording, delivers it and the call data to the
//!    CRM, and archives the record.
//! 6. [`ledger`] finds calls again, on disk at whatever stage they are, and tells what happened to
//!    them; `ledger::mongodb`, a task of the worker, keeps the copy of them in MongoDB.
//!
//! [`campaign`] works through a list of people to call: `campaign::plan` decides whom to call next,
//! folded from the events of the campaign's journal; its dialler dispatches an agent for each
//! attempt and finds what came of it in the call's record.
//!
//! [`page`], a part of the worker's HTTP server, shows an operator what [`ledger`] finds, the queue
//! and the worker; what the browser runs is in `page/web`. [`phone`] reads telephone numbers in
//! every form, for calls and leads. [`rooms`] is what call and worker know alike of rooms: who is
//! in one, and the server's API. [`cli`] has the commands; what `demo` and `dev` build around a
//! worker is in `cli::dev`, which exists only with the feature `dev`, as does `caller`, the other
//! side of a call for the demo, measurements and tests. Each part owns its section of the settings,
//! [`config`] only puts them together; [`settings`] has what all of them are made of. Beside this
//! package: `crates/libwebrtc`, the media engine under the official `livekit` crate;
//! `crates/roomserver`, the room server for development and tests; `crates/oggopus`, Opus in Ogg
//! files; `fuzz/`, fuzz targets, which reach what is private through `internals`, a module that is
//! there with the feature of that name only.
//!
//! # What must stay true
//!
//! - Every dispatched job ends in a record, whoever dies when. The journal's file lock says whether
//!   a call is alive.
//! - An attempt of a campaign is on the disk before the server hears of it, and is begun once.
//! - No caller waits in a room whose agent is lost: the call ends it, or `worker::abandoned`, or
//!   another agent is there.
//! - Nothing that a record names is deleted or archived before the CRM has confirmed it.
//! - [`session`] knows no network, no LiveKit, no files; its lock is never held across an await.
//! - Imports have one direction (`tests/it/imports.rs`): [`settings`] and [`phone`] import nothing
//!   of this program, [`session`] only those two. Only [`cli`] and, for its section, [`config`]
//!   import from [`call`]; only [`call`] and [`cli`] import [`config`].
//! - LiveKit's wire types appear only in `worker::wire`, `call::room`, `rooms::service`,
//!   `rooms::telephony`, `rooms::dispatches`, [`recording`], `cli::dial` and `cli::dev`; a vendor's
//!   JSON only in that vendor's file.
//! - A call process never talks to the CRM, the worker never touches media.
//! - Availability is answered without waiting for anything; there are never more than `max_calls`
//!   calls.
//! - Queues, buffers, retries and what is read into memory are bounded.
//! - Secrets come from the environment and are nowhere else; numbers are masked in logs, and what
//!   people say is not logged.
//! - Only `main.rs` exits the process.

#![forbid(unsafe_code)]

pub mod call;
#[cfg(feature = "dev")]
pub mod caller;
pub mod campaign;
pub mod cli;
pub mod config;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
pub mod ipc;
pub mod ledger;
pub mod page;
pub mod phone;
pub mod providers;
pub mod recording;
pub mod rooms;
pub mod session;
pub mod settings;
pub mod store;
pub mod tools;
pub mod upload;
pub mod voice;
pub mod worker;
