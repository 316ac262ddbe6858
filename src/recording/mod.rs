//! Recording calls, and finding the finished files.

mod directory;
mod egress;
mod local;
mod location;
pub(crate) mod manifest;
pub mod proof;
mod recorder;
pub mod resolve;
mod s3;
pub mod webhook;

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

pub use local::LocalRecordingError;
pub use recorder::Recorder;
pub use s3::S3Config;

/// The placeholder for the session id in [`RecordingConfig::egress_file_path`].
const SESSION_ID: &str = "{session_id}";
/// The longest that the agent's first words may wait for an egress.
const MAX_START_WAIT_MS: u64 = 5_000;

/// Who records a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordingMode {
    /// LiveKit Egress, started by the call through the server's API.
    Egress,
    /// The process of the call, into `recordings/`; needs no other service.
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
    /// The folder on the egress host that corresponds to `local_prefix` here, such as `/data/rec`.
    /// Empty: of an absolute path, the part from its last `recordings/` on is used.
    pub egress_prefix: String,
    /// The folder here that corresponds to `egress_prefix`, relative to the data folder; absolute
    /// with `outside_data_dir`.
    pub local_prefix: String,
    /// Whether `local_prefix` may be an absolute path outside the data folder.
    pub outside_data_dir: bool,
    /// The path that an egress is asked to write to, on its own host, or the object's key.
    /// `{session_id}` is the call's; the egress fills in `{room_name}`, `{room_id}`, `{time}`,
    /// `{utc}` and `{retry}`.
    pub egress_file_path: String,
    /// How long the agent's first words wait until the egress records, in milliseconds. What is
    /// said before is not in the file.
    pub egress_start_wait_ms: u64,
    /// How long the call data waits for its recording to be found and uploaded, in seconds during
    /// which scans were made ([`crate::session::Watch`]). After that the call is delivered without
    /// it.
    pub wait_s: u64,
    /// How long an overdue recording is searched for, counted in the same seconds.
    pub late_s: u64,
    /// Recordings that an egress stores in S3.
    pub s3: S3Config,
}

impl Default for RecordingConfig {
    fn default() -> Self {
        Self {
            mode: RecordingMode::default(),
            egress_prefix: String::new(),
            local_prefix: "recordings".to_owned(),
            outside_data_dir: false,
            egress_file_path: format!("recordings/{SESSION_ID}.ogg"),
            // An egress takes 0.7 s to begin, and several seconds the first time: too long for a
            // caller to wait for the greeting.
            egress_start_wait_ms: 0,
            // An egress of an hour's call is written within a minute; LiveKit forgets the egress
            // after a day.
            wait_s: 600,
            late_s: 24 * 3600,
            s3: S3Config::default(),
        }
    }
}

impl RecordingConfig {
    /// Checks for mistakes that a type cannot catch. The error names the key.
    ///
    /// # Errors
    /// When a folder is not inside the data folder, or `late_s` is shorter than `wait_s`.
    pub fn check(&self) -> Result<(), String> {
        let local = Path::new(&self.local_prefix);
        let down_only = |path: &Path| {
            path.components()
                .all(|part| matches!(part, Component::Normal(_)))
        };
        let outside = local.strip_prefix("/").ok();
        let known = match outside {
            Some(below) => {
                self.outside_data_dir && down_only(below) && below.components().next().is_some()
            }
            None => {
                // Other folders hold leads and records, which must not be sent as recordings.
                let first = local.components().next();
                let others = [
                    "conversations",
                    "leads",
                    "call_metadata",
                    "processed_metadata",
                ];
                let other = others
                    .iter()
                    .any(|name| first == Some(Component::Normal(name.as_ref())));
                down_only(local) && first.is_some() && !other
            }
        };
        if !known {
            return Err(format!(
                "recording.local_prefix must be a folder for recordings in the data folder, such as recordings, or, with \
                 recording.outside_data_dir = true, an absolute path such as /mnt/egress, not {:?}",
                self.local_prefix
            ));
        }
        egress::check_file_path(&self.egress_file_path)?;
        if self.egress_start_wait_ms > MAX_START_WAIT_MS {
            return Err(format!(
                "recording.egress_start_wait_ms must not be above {MAX_START_WAIT_MS}: the caller hears nothing meanwhile"
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

    /// Refuses an outside folder of recordings that contains the data folder: a manifest could then
    /// name any file in it.
    ///
    /// # Errors
    /// When `local_prefix` is the data folder or one above it.
    pub fn check_beside(&self, data_dir: &Path) -> Result<(), String> {
        if !self.local_prefix.starts_with('/') {
            return Ok(());
        }
        let real = |path: &Path| {
            std::fs::canonicalize(path)
                .or_else(|_| std::path::absolute(path))
                .unwrap_or_else(|_| path.to_owned())
        };
        if real(data_dir).starts_with(real(Path::new(&self.local_prefix))) {
            return Err(format!(
                "recording.local_prefix {:?} must not hold the data folder {} (data_dir): what is in there is not for the CRM",
                self.local_prefix,
                data_dir.display()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_named() {
        let good = RecordingConfig::default();
        assert_eq!(good.check(), Ok(()));
        let config = |local_prefix: &str, outside_data_dir| RecordingConfig {
            local_prefix: local_prefix.to_owned(),
            outside_data_dir,
            ..RecordingConfig::default()
        };
        assert_eq!(config("/mnt/egress", true).check(), Ok(()));
        assert_eq!(config("recordings/egress", false).check(), Ok(()));
        for (local_prefix, outside) in [
            ("/mnt/egress", false),
            ("/", true),
            ("/mnt/../etc", true),
            ("../egress", true),
            ("", false),
            ("leads", false),
            ("call_metadata/x", false),
        ] {
            let fault = config(local_prefix, outside).check().unwrap_err();
            assert!(fault.contains("recording.local_prefix"), "{fault}");
        }
        for path in [
            "",
            "recordings/call.ogg",
            "recordings/{room_name}-{time}.ogg",
            "../{session_id}.ogg",
            "a/../{session_id}.ogg",
            "recordings/{session}/{session_id}.ogg",
            "recordings/{session_id}.mp4",
            "recordings/{session_id}/",
            "s3://calls/{session_id}.ogg",
            "a\n{session_id}.ogg",
        ] {
            let fault = RecordingConfig {
                egress_file_path: path.to_owned(),
                ..RecordingConfig::default()
            }
            .check()
            .unwrap_err();
            assert!(
                fault.contains("recording.egress_file_path"),
                "{path:?}: {fault}"
            );
        }
        for path in [
            "/out/{session_id}.ogg",
            "{utc}/{room_name}-{session_id}-{retry}",
        ] {
            let config = RecordingConfig {
                egress_file_path: path.to_owned(),
                ..RecordingConfig::default()
            };
            assert_eq!(config.check(), Ok(()), "{path}");
        }
        let slow = RecordingConfig {
            egress_start_wait_ms: 60_000,
            ..RecordingConfig::default()
        };
        assert!(slow.check().unwrap_err().contains("egress_start_wait_ms"));
    }

    #[test]
    fn a_folder_of_recordings_that_holds_the_data_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        for (local_prefix, good) in [
            (folder.path().join("egress"), true),
            (data.join("recordings"), true),
            (data.clone(), false),
            (folder.path().to_owned(), false),
        ] {
            let config = RecordingConfig {
                local_prefix: local_prefix.display().to_string(),
                outside_data_dir: true,
                ..RecordingConfig::default()
            };
            assert_eq!(config.check_beside(&data).is_ok(), good, "{local_prefix:?}");
        }
    }
}
