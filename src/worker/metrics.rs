//! The worker's metrics: their names, and the figures of its own process.
//!
//! Metrics that LiveKit's own workers have use their names
//! (`metrics.py` and `otel_metrics.py` in `livekit-agents/livekit/agents/telemetry`; dots are
//! underscores in Prometheus, with the unit behind), so that dashboards work for both. What happens
//! in calls is told by their processes, see [`Measurement`]. Everything that is counted is there
//! from the start with 0: a rate needs a value before the first count.

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::ipc::Measurement;
use crate::session::{CallStatus, TurnMetrics, Usage};

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
const TURN_END_TO_END: &str = "lk_agents_turn_e2e_latency_seconds";
const TURN_FIRST_TOKEN: &str = "lk_agents_turn_llm_ttft_seconds";
const TURN_FIRST_BYTE: &str = "lk_agents_turn_tts_ttfb_seconds";
const TURN_TRANSCRIPTION: &str = "lk_agents_turn_transcription_delay_seconds";
const TURN_END: &str = "lk_agents_turn_end_of_turn_delay_seconds";
const INPUT_TOKENS: &str = "lk_agents_usage_llm_input_tokens_total";
const CACHED_TOKENS: &str = "lk_agents_usage_llm_input_cached_tokens_total";
const OUTPUT_TOKENS: &str = "lk_agents_usage_llm_output_tokens_total";
const SPOKEN_CHARACTERS: &str = "lk_agents_usage_tts_characters_total";
const SPOKEN_SECONDS: &str = "lk_agents_usage_tts_audio_duration_seconds_total";
const HEARD_SECONDS: &str = "lk_agents_usage_stt_audio_duration_seconds_total";
const TOKENS_IN_VAIN: &str = "voicebot_llm_tokens_in_vain_total";
const PROVIDER_ERRORS: &str = "voicebot_provider_errors_total";
const PROVIDER_RETRIES: &str = "voicebot_provider_retries_total";
const PROVIDER_FALLBACKS: &str = "voicebot_provider_fallbacks_total";
const INTERRUPTIONS: &str = "voicebot_interruptions_total";
const CALL_STATUS: &str = "voicebot_call_status_total";
const REGISTERED: &str = "voicebot_worker_registered";
const THREADS: &str = "process_threads";
const OPEN_FILES: &str = "process_open_fds";
const RESIDENT_BYTES: &str = "process_resident_memory_bytes";

/// Duration of a call: from one that nobody answered to one of an hour.
const CALL_BUCKETS_S: [f64; 9] = [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];
/// From assignment to joined: normally tens of milliseconds.
const JOIN_BUCKETS_S: [f64; 9] = [0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 10.0];

/// From what a caller does not notice to what makes them hang up.
const STAGE_BUCKETS_S: [f64; 13] = [
    0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 15.0,
];

/// The stages of a turn.
const STAGES: [&str; 5] = [
    TURN_END_TO_END,
    TURN_FIRST_TOKEN,
    TURN_FIRST_BYTE,
    TURN_TRANSCRIPTION,
    TURN_END,
];

/// What can fail: the providers, and everything else that a conversation watches.
const COMPONENTS: [&str; 4] = ["stt", "llm", "tts", "other"];

/// How the processes of calls end, see `process`.
const PROCESS_ENDS: [&str; 7] = [
    "success",
    "failed",
    "crashed",
    "killed",
    "not_started",
    "not_ready",
    "refused",
];

const STATUSES: [CallStatus; 6] = [
    CallStatus::Completed,
    CallStatus::NoAnswer,
    CallStatus::Busy,
    CallStatus::Failed,
    CallStatus::Voicemail,
    CallStatus::Recovered,
];

/// Sound in milliseconds: the counters have whole seconds of the sums.
static SPOKEN_MS: AtomicU64 = AtomicU64::new(0);
static HEARD_MS: AtomicU64 = AtomicU64::new(0);

/// Installs the metrics recorder of this process and returns its renderer. Call once per process.
///
/// # Errors
/// When a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for stage in STAGES {
        builder = builder.set_buckets_for_metric(Matcher::Full(stage.into()), &STAGE_BUCKETS_S)?;
    }
    let handle = builder
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
    describe_calls();
    begin_at_zero();
    Ok(handle)
}

fn describe_calls() {
    for (stage, what) in STAGES.into_iter().zip([
        "From the end of the caller's speech to the first sound of the answer",
        "From the request to the language model to its first token",
        "From the first sentence of an answer to its first sound",
        "From the end of the caller's speech to its final transcript",
        "From the end of the caller's speech to the decision that the turn is over",
    ]) {
        describe_histogram!(stage, Unit::Seconds, what);
    }
    for (name, what) in [
        (INPUT_TOKENS, "Tokens sent to language models"),
        (CACHED_TOKENS, "Tokens among those that a cache had"),
        (OUTPUT_TOKENS, "Tokens that language models wrote"),
        (SPOKEN_CHARACTERS, "Characters sent to speech synthesis"),
        (SPOKEN_SECONDS, "Sound that came from speech synthesis"),
        (HEARD_SECONDS, "Sound sent to speech recognition"),
        (TOKENS_IN_VAIN, "Tokens of answers that nobody has heard"),
        (
            PROVIDER_ERRORS,
            "Requests that have failed, also those that another attempt has made good",
        ),
        (PROVIDER_RETRIES, "How often a provider was asked again"),
        (
            PROVIDER_FALLBACKS,
            "How often the next provider of a list was asked",
        ),
        (
            INTERRUPTIONS,
            "How often callers have cut the agent off, or it has gone on after a false interruption",
        ),
        (CALL_STATUS, "What became of calls"),
    ] {
        describe_counter!(name, what);
    }
}

fn begin_at_zero() {
    for stage in STAGES.into_iter().chain([CALL_DURATION, JOIN_DURATION]) {
        // Taking its handle is enough.
        drop(histogram!(stage));
    }
    for name in [
        INPUT_TOKENS,
        CACHED_TOKENS,
        OUTPUT_TOKENS,
        SPOKEN_CHARACTERS,
        SPOKEN_SECONDS,
        HEARD_SECONDS,
        TOKENS_IN_VAIN,
        RECORDS_RECOVERED,
    ] {
        counter!(name).absolute(0);
    }
    for component in COMPONENTS {
        counter!(PROVIDER_ERRORS, "component" => component).absolute(0);
    }
    for component in &COMPONENTS[..3] {
        counter!(PROVIDER_RETRIES, "component" => *component).absolute(0);
        counter!(PROVIDER_FALLBACKS, "component" => *component).absolute(0);
    }
    for kind in ["real", "false"] {
        counter!(INTERRUPTIONS, "kind" => kind).absolute(0);
    }
    for status in STATUSES {
        counter!(CALL_STATUS, "status" => name_of(status)).absolute(0);
    }
    for outcome in PROCESS_ENDS {
        counter!(CALLS, "outcome" => outcome).absolute(0);
    }
    for answer in ["accepted", "declined"] {
        counter!(OFFERS, "answer" => answer).absolute(0);
    }
}

fn name_of(status: CallStatus) -> &'static str {
    match status {
        CallStatus::Completed => "completed",
        CallStatus::NoAnswer => "no_answer",
        CallStatus::Busy => "busy",
        CallStatus::Failed => "failed",
        CallStatus::Voicemail => "voicemail",
        CallStatus::Recovered => "recovered",
    }
}

/// Counts what a call has told.
pub(super) fn count(measurement: &Measurement) {
    match measurement {
        Measurement::Turn(turn) => count_turn(turn),
        Measurement::Used(usage) => count_usage(usage),
        Measurement::Failed { component } => {
            let mut known = COMPONENTS.into_iter();
            let component = known.find(|known| known == component).unwrap_or("other");
            counter!(PROVIDER_ERRORS, "component" => component).increment(1);
        }
        Measurement::Interrupted => counter!(INTERRUPTIONS, "kind" => "real").increment(1),
        Measurement::FalseInterruption => counter!(INTERRUPTIONS, "kind" => "false").increment(1),
        Measurement::Ended { call_status } => {
            counter!(CALL_STATUS, "status" => name_of(*call_status)).increment(1);
        }
    }
}

fn count_turn(turn: &TurnMetrics) {
    let measured = [
        turn.e2e_latency_ms,
        turn.llm_ttft_ms,
        turn.tts_ttfb_ms,
        turn.transcription_delay_ms,
        turn.end_of_turn_delay_ms,
    ];
    for (stage, ms) in STAGES.into_iter().zip(measured) {
        if let Some(ms) = ms {
            histogram!(stage).record(ms as f64 / 1_000.0);
        }
    }
}

fn count_usage(usage: &Usage) {
    for (name, more) in [
        (INPUT_TOKENS, usage.llm_prompt_tokens),
        (CACHED_TOKENS, usage.llm_prompt_cached_tokens),
        (OUTPUT_TOKENS, usage.llm_completion_tokens),
        (SPOKEN_CHARACTERS, usage.tts_characters),
        (
            TOKENS_IN_VAIN,
            usage.llm_prompt_tokens_in_vain + usage.llm_completion_tokens_in_vain,
        ),
    ] {
        counter!(name).increment(more);
    }
    for (name, sum, more) in [
        (SPOKEN_SECONDS, &SPOKEN_MS, usage.tts_audio_ms),
        (HEARD_SECONDS, &HEARD_MS, usage.stt_audio_ms),
    ] {
        let ms = sum.fetch_add(more, Ordering::Relaxed) + more;
        counter!(name).absolute(ms / 1_000);
    }
    for (component, retries, fallbacks) in [
        ("stt", usage.stt_retries, usage.stt_fallbacks),
        ("llm", usage.llm_retries, usage.llm_fallbacks),
        ("tts", usage.tts_retries, usage.tts_fallbacks),
    ] {
        counter!(PROVIDER_RETRIES, "component" => component).increment(retries);
        counter!(PROVIDER_FALLBACKS, "component" => component).increment(fallbacks);
        counter!(PROVIDER_ERRORS, "component" => component).increment(retries + fallbacks);
    }
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
