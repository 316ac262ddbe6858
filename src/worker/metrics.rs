//! The worker's metrics: their names, and the figures of its own process.
//!
//! Metrics that LiveKit's own workers have use their names
//! (`livekit-agents/livekit/agents/telemetry/metrics.py`), so that dashboards work for both.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

pub(super) const ACTIVE_JOBS: &str = "lk_agents_active_job_count";
pub(super) const CHILD_PROCESSES: &str = "lk_agents_child_process_count";
pub(super) const WORKER_LOAD: &str = "lk_agents_worker_load";
pub(super) const CALLS: &str = "voicebot_calls_total";
pub(super) const CALL_DURATION: &str = "voicebot_call_duration_seconds";
pub(super) const JOIN_DURATION: &str = "voicebot_call_join_duration_seconds";
pub(super) const DISK_FREE_BYTES: &str = "voicebot_disk_free_bytes";
pub(super) const DISK_REFUSES_CALLS: &str = "voicebot_disk_refuses_calls";
pub(super) const OFFERS: &str = "voicebot_job_offers_total";
pub(super) const RECORDS_RECOVERED: &str = "voicebot_records_recovered_total";
const REGISTERED: &str = "voicebot_worker_registered";
const THREADS: &str = "process_threads";
const OPEN_FILES: &str = "process_open_fds";
const RESIDENT_BYTES: &str = "process_resident_memory_bytes";

/// Duration of a call: from one that nobody answered to one of an hour.
const CALL_BUCKETS_S: [f64; 9] = [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];
/// From assignment to joined: normally tens of milliseconds.
const JOIN_BUCKETS_S: [f64; 9] = [0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 10.0];

/// Installs the metrics recorder of this process and returns its renderer. Call once per process.
///
/// # Errors
/// When a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(CALL_DURATION.into()), &CALL_BUCKETS_S)?
        .set_buckets_for_metric(Matcher::Full(JOIN_DURATION.into()), &JOIN_BUCKETS_S)?
        .install_recorder()?;
    describe_gauge!(ACTIVE_JOBS, "Jobs that were accepted and have not ended");
    describe_gauge!(CHILD_PROCESSES, "Call processes of this worker");
    describe_gauge!(
        WORKER_LOAD,
        "The load that the LiveKit server was told last"
    );
    describe_counter!(CALLS, "Calls by outcome");
    describe_histogram!(CALL_DURATION, Unit::Seconds, "From assignment to record");
    describe_histogram!(
        JOIN_DURATION,
        Unit::Seconds,
        "From assignment until the agent was in the room"
    );
    describe_counter!(OFFERS, "Offered jobs by answer");
    describe_counter!(
        RECORDS_RECOVERED,
        "Records made from a journal because the call had made none"
    );
    describe_gauge!(
        DISK_FREE_BYTES,
        Unit::Bytes,
        "Free space on the disk of the data folder"
    );
    describe_gauge!(
        DISK_REFUSES_CALLS,
        "1 while no calls are taken because the data folder is full or cannot be written"
    );
    describe_gauge!(
        REGISTERED,
        "1 while the worker is registered with the LiveKit server"
    );
    describe_gauge!(THREADS, "Threads of the worker");
    describe_gauge!(OPEN_FILES, "Open file descriptors of the worker");
    describe_gauge!(RESIDENT_BYTES, Unit::Bytes, "Resident memory of the worker");
    gauge!(CHILD_PROCESSES).set(0.0);
    Ok(handle)
}

/// Updates the metrics of the worker's state.
pub(super) fn set_state(registered: bool, active_jobs: usize, load: f32) {
    gauge!(REGISTERED).set(if registered { 1.0 } else { 0.0 });
    gauge!(ACTIVE_JOBS).set(active_jobs as f64);
    gauge!(WORKER_LOAD).set(f64::from(load));
}

/// Updates the metrics of this process. Without `/proc` they are left out.
pub(super) fn set_process_figures() {
    let entries = |path: &str| {
        std::fs::read_dir(path)
            .ok()
            .map(|entries| entries.count() as f64)
    };
    if let Some(threads) = entries("/proc/self/task") {
        gauge!(THREADS).set(threads);
    }
    if let Some(files) = entries("/proc/self/fd") {
        // The listing itself has one file open.
        gauge!(OPEN_FILES).set(files - 1.0);
    }
    if let Some(bytes) = resident_bytes() {
        gauge!(RESIDENT_BYTES).set(bytes as f64);
    }
}

/// The resident memory of this process. `None` without `/proc`.
pub fn resident_bytes() -> Option<u64> {
    resident_bytes_of(std::process::id())
}

/// The resident memory of a process.
pub(super) fn resident_bytes_of(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kilobytes * 1024)
}
