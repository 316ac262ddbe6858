//! Checks a recording request and derives paths and manifest from it. Pure.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Local};
use livekit_protocol as proto;
use proto::{AudioMixing, EncodedFileType};
use serde::Serialize;

use crate::twirp::TwirpError;

/// A recording that this server can make: one Ogg Opus file on the local disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub mixing: AudioMixing,
    /// As in the request, with its templates.
    pub filepath: String,
    pub manifest: bool,
}

impl Plan {
    /// Checks a request.
    ///
    /// # Errors
    ///
    /// When it needs more than one Ogg Opus file on the local disk.
    pub fn new(request: &proto::RoomCompositeEgressRequest) -> Result<Self, TwirpError> {
        let refuse = |what: &str| {
            Err(TwirpError::unimplemented(format!(
                "this development server records audio only, to a local ogg file: {what}"
            )))
        };
        if !request.audio_only || request.video_only {
            return refuse("audio_only has to be true");
        }
        if !request.layout.is_empty() || !request.custom_base_url.is_empty() {
            return refuse("layout and custom_base_url have to be empty");
        }
        if !request.stream_outputs.is_empty()
            || !request.segment_outputs.is_empty()
            || !request.image_outputs.is_empty()
        {
            return refuse("stream, segment and image outputs are not supported");
        }
        #[expect(deprecated, reason = "older clients ask for their one file this way")]
        let output = match (&request.output, request.file_outputs.as_slice()) {
            (None, [output]) => output,
            (Some(proto::room_composite_egress_request::Output::File(output)), []) => output,
            (None, []) => {
                return Err(TwirpError::invalid(
                    "request has missing or invalid field: output",
                ));
            }
            _ => return refuse("exactly one file output is supported"),
        };
        if output.output.is_some() {
            return refuse("uploads to cloud storage are not supported");
        }
        if !matches!(
            output.file_type(),
            EncodedFileType::DefaultFiletype | EncodedFileType::Ogg
        ) {
            return refuse("the file type has to be OGG or left out");
        }
        Ok(Self {
            mixing: request.audio_mixing(),
            filepath: output.filepath.clone(),
            manifest: !output.disable_manifest,
        })
    }

    /// The file's path with its templates filled in, as the real egress does it: an empty path or a
    /// folder gets `<room>-<time>`, a missing extension is added.
    pub fn filename(&self, room_name: &str, room_id: &str, now: DateTime<Local>) -> String {
        // A room's name may hold any character; it is one component of the path.
        let room_name = room_name.replace(['/', '\\'], "_");
        let time = now.format("%Y-%m-%dT%H%M%S").to_string();
        let mut path = self.filepath.clone();
        if path.is_empty() || path.ends_with('/') {
            path.push_str("{room_name}-{time}");
        }
        let mut path = path
            .replace("{room_name}", &room_name)
            .replace("{room_id}", room_id)
            .replace("{time}", &time)
            .replace("{utc}", &now.to_utc().format("%Y%m%d%H%M%S%3f").to_string())
            .replace("{retry}", "0");
        if !path.ends_with(".ogg") {
            path.push_str(".ogg");
        }
        path
    }
}

/// The path of a file with this name; relative names are relative to the recordings' folder.
pub(super) fn location(recordings_dir: Option<&Path>, filename: &str) -> std::io::Result<PathBuf> {
    let path = match recordings_dir {
        Some(dir) => dir.join(filename),
        None => PathBuf::from(filename),
    };
    std::path::absolute(path)
}

/// The file that is written beside the recording when it is complete. The fields and their order
/// are those of the real egress (`pkg/config/manifest.go` there); a room recording has no others.
#[derive(Debug, Serialize)]
pub(super) struct Manifest<'a> {
    pub egress_id: &'a str,
    pub room_id: &'a str,
    pub room_name: &'a str,
    /// Nanoseconds since 1970, as both times.
    pub started_at: i64,
    pub ended_at: i64,
    pub files: [ManifestFile<'a>; 1],
}

#[derive(Debug, Serialize)]
pub(super) struct ManifestFile<'a> {
    pub filename: &'a str,
    pub location: &'a str,
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;

    fn request() -> proto::RoomCompositeEgressRequest {
        let output = proto::EncodedFileOutput {
            file_type: EncodedFileType::Ogg.into(),
            filepath: "rec/{room_name}-{time}.ogg".into(),
            ..Default::default()
        };
        proto::RoomCompositeEgressRequest {
            room_name: "call-1".into(),
            audio_only: true,
            audio_mixing: AudioMixing::DualChannelAgent.into(),
            file_outputs: vec![output],
            ..Default::default()
        }
    }

    #[test]
    fn an_audio_recording_to_a_local_file_is_accepted() {
        let plan = Plan::new(&request()).unwrap();
        assert_eq!(
            (plan.mixing, plan.manifest),
            (AudioMixing::DualChannelAgent, true)
        );
    }

    #[test]
    fn what_needs_a_browser_a_cloud_or_another_format_is_refused() {
        type Change = fn(&mut proto::RoomCompositeEgressRequest);
        let changes: [Change; 6] = [
            |request| request.audio_only = false,
            |request| request.layout = "grid".into(),
            |request| request.file_outputs[0].file_type = EncodedFileType::Mp3.into(),
            |request| {
                request.file_outputs[0].output = Some(proto::encoded_file_output::Output::S3(
                    proto::S3Upload::default(),
                ))
            },
            |request| {
                request
                    .file_outputs
                    .push(proto::EncodedFileOutput::default())
            },
            |request| request.stream_outputs.push(proto::StreamOutput::default()),
        ];
        for change in changes {
            let mut request = request();
            change(&mut request);
            let error = Plan::new(&request).unwrap_err();
            assert_eq!(error.code, crate::twirp::Code::Unimplemented, "{error:?}");
        }
        let nothing = proto::RoomCompositeEgressRequest {
            audio_only: true,
            ..Default::default()
        };
        assert_eq!(
            Plan::new(&nothing).unwrap_err().code,
            crate::twirp::Code::InvalidArgument
        );
    }

    #[test]
    fn templates_are_filled_in() {
        let now = Local.with_ymd_and_hms(2026, 11, 20, 22, 31, 43).unwrap();
        let utc = now.to_utc().format("%Y%m%d%H%M%S").to_string();
        for (filepath, expected) in [
            ("", "call_1-2026-11-20T223143.ogg".to_owned()),
            (
                "/data/rec/",
                "/data/rec/call_1-2026-11-20T223143.ogg".to_owned(),
            ),
            ("{room_name}/{room_id}", "call_1/RM_1.ogg".to_owned()),
            ("a-{utc}.ogg", format!("a-{utc}000.ogg")),
            ("a.{retry}.mp4", "a.0.mp4.ogg".to_owned()),
        ] {
            let plan = Plan {
                mixing: AudioMixing::DefaultMixing,
                filepath: filepath.into(),
                manifest: true,
            };
            assert_eq!(plan.filename("call/1", "RM_1", now), expected);
        }
    }

    #[test]
    fn the_manifest_looks_like_the_real_one() {
        let manifest = Manifest {
            egress_id: "EG_1",
            room_id: "RM_1",
            room_name: "call-1",
            started_at: 1_795_213_903_155_560_255,
            ended_at: 1_795_213_913_317_245_731,
            files: [ManifestFile {
                filename: "a.ogg",
                location: "/rec/a.ogg",
            }],
        };
        assert_eq!(
            serde_json::to_string(&manifest).unwrap(),
            r#"{"egress_id":"EG_1","room_id":"RM_1","room_name":"call-1","started_at":1795213903155560255,"ended_at":1795213913317245731,"files":[{"filename":"a.ogg","location":"/rec/a.ogg"}]}"#
        );
    }
}
