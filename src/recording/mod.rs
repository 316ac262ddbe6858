//! The recording of a call: who makes it, and where its file is in the end.

mod directory;
mod egress;
mod local;
mod location;
pub(crate) mod manifest;
mod recorder;
pub mod resolve;
mod s3;
pub mod webhook;

use serde::{Deserialize, Serialize};

pub use local::LocalRecordingError;
pub use recorder::Recorder;
pub use s3::S3Config;

/// Who records a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordingMode {
    /// LiveKit Egress, started by the call through the server's API.
    Egress,
    /// The call's own process, into `recordings/`: nothing else needs to be installed.
    #[default]
    Local,
    /// Nobody.
    Off,
}

/// Section `recording` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecordingConfig {
    /// Who records: `egress`, `local` or `off`.
    pub mode: RecordingMode,
    /// The folder on the egress host that is our `local_prefix`, such as `/data/rec` when that folder is mounted there. Empty: an
    /// absolute path of the egress is looked for from its last `recordings/` on.
    pub egress_prefix: String,
    /// Our side of `egress_prefix`, relative to the data folder.
    pub local_prefix: String,
    /// How long after the end of a call its recording may take to turn up, in seconds. After that the call is delivered without it.
    pub wait_s: u64,
    /// How long after the end of a call a recording that did not turn up in that time is still looked for, in seconds.
    pub late_s: u64,
    /// Recordings that an egress puts into S3.
    pub s3: S3Config,
}

impl Default for RecordingConfig {
    fn default() -> Self {
        Self {
            mode: RecordingMode::default(),
            egress_prefix: String::new(),
            local_prefix: "recordings".to_owned(),
            // An egress of an hour's call is written within a minute; LiveKit forgets the egress after a day.
            wait_s: 600,
            late_s: 24 * 3600,
            s3: S3Config::default(),
        }
    }
}

impl RecordingConfig {
    /// Looks for mistakes that a type cannot catch. The error names the key.
    ///
    /// # Errors
    /// When a folder is not inside the data folder, or a time ends before the one that it follows.
    pub fn check(&self) -> Result<(), String> {
        let inside = std::path::Path::new(&self.local_prefix)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        if self.local_prefix.is_empty() || !inside {
            return Err(format!(
                "recording.local_prefix must be a folder in the data folder, such as recordings, not {:?}",
                self.local_prefix
            ));
        }
        if self.late_s < self.wait_s {
            return Err(
                "recording.late_s must not be below recording.wait_s, after which it counts on"
                    .to_owned(),
            );
        }
        self.s3.check()
    }
}
