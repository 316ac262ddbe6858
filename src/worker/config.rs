//! `[worker]`: the settings of the long-lived process.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Calls for each core when `max_calls` is not set. A call costs about 3 % of a core while both
/// parties talk; the rest is room for joins, for the machine's other work, and for a core that is
/// slower than the one we measured on.
const DEFAULT_CALLS_PER_CORE: usize = 10;

/// `[worker]`: the long-lived process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// The most calls at a time. 0: ten for each core.
    pub max_calls: usize,
    /// The load that is told to the server instead of the measured one, 0 to 1, for benchmarks. It
    /// changes nothing else: the worker still takes `max_calls` calls and still says when it is
    /// full. A server does not choose a worker at 0.7 or above.
    pub report_load: Option<f32>,
    /// How long running calls may go on after the first stop signal, in seconds. After that they
    /// are ended as by a second signal. An hour, as LiveKit's own workers: a container's grace
    /// period should be longer.
    pub drain_timeout_s: u64,
    /// How long a call's process may take until it says that it is ready, in seconds. It needs
    /// milliseconds; a machine that needs longer than this is not fit to hold the call.
    pub ready_timeout_s: u64,
    /// How long a call may last in all, in seconds, before its process is taken for hung: it is
    /// asked to end, then killed. A call's own limit, which ends it politely, should be shorter.
    pub hung_call_s: u64,
    /// A call's process that uses more memory than this is reported in the log, in bytes. 0: never.
    pub call_memory_warn_bytes: u64,
    /// Address of the operator's page, health and metrics. Loopback, because health and metrics ask
    /// for no password; set `0.0.0.0:8081` where an orchestrator probes it over the network. The
    /// page is off there unless `PAGE_TOKEN` is set. Port 0 takes any free one.
    pub http_bind: SocketAddr,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            max_calls: 0,
            report_load: None,
            drain_timeout_s: 3600,
            ready_timeout_s: 10,
            hung_call_s: 6 * 3600,
            call_memory_warn_bytes: 100 * 1024 * 1024,
            http_bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)),
        }
    }
}

impl WorkerConfig {
    /// The exact number of slots.
    pub fn slots(&self) -> usize {
        match self.max_calls {
            0 => {
                let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
                cores * DEFAULT_CALLS_PER_CORE
            }
            given => given,
        }
    }

    pub(super) fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_s)
    }

    pub(super) fn ready_timeout(&self) -> Duration {
        Duration::from_secs(self.ready_timeout_s)
    }

    pub(super) fn hung_call(&self) -> Duration {
        Duration::from_secs(self.hung_call_s)
    }
}
