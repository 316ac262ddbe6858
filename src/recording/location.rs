//! Maps a recording's name from an egress or manifest to files and objects that may be read. Pure:
//! it never reads the disk.
//!
//! An egress names its file by a path of its own host: relative to its working folder, absolute,
//! without the leading `/`, or as a URL of an S3 object. Whatever the name is, only files in
//! `recordings/`, in the configured folder (which may be outside the data folder) and objects in
//! the listed buckets are read as recordings; no other file of this machine or of the data folder
//! ever is.

use std::fmt;

/// The folder of recordings under the data folder.
pub(super) const RECORDINGS: &str = "recordings";
/// Longer names are refused: file systems allow 4,096 bytes for a path, S3 1,024 for a key.
const MAX_NAME_BYTES: usize = 4096;

/// An object in an S3 bucket. Shown as `s3://bucket/key`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct S3Location {
    /// The bucket's name.
    pub bucket: String,
    /// The object's key in it, without a leading `/`.
    pub key: String,
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Files of this machine, to be tried in this order.
    Files(Vec<RecordingPath>),
    /// An object.
    S3(S3Location),
    /// It must not or cannot be read. The text is the rest of a sentence that begins with the name.
    Refused(String),
}

/// A path inside one of the folders for recordings, without `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecordingPath {
    /// `recordings`, or the configured folder; absolute when that is outside the data folder.
    pub folder: String,
    /// The path in that folder.
    pub rest: String,
}

impl fmt::Display for RecordingPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.folder, self.rest)
    }
}

/// The settings by which names are mapped.
#[derive(Debug, Clone)]
pub(super) struct NameRules<'a> {
    /// The folder on the egress host that is `local_prefix` here; empty when there is none.
    pub egress_prefix: &'a str,
    /// Relative to the data folder, or absolute.
    pub local_prefix: &'a str,
    /// The data folder, absolute.
    pub root: &'a str,
    /// Buckets that may be read.
    pub buckets: &'a [String],
}

impl NameRules<'_> {
    /// What `name` means.
    pub fn meaning(&self, name: &str) -> Meaning {
        if name.len() > MAX_NAME_BYTES {
            return Meaning::Refused("is too long for a path".to_owned());
        }
        if name.chars().any(char::is_control) {
            return Meaning::Refused("has control characters in it".to_owned());
        }
        let name = name.replace('\\', "/");
        let name = name.strip_prefix("file://").unwrap_or(&name);
        if let Some((scheme, rest)) = name.split_once("://") {
            return self.address(scheme, rest);
        }
        let mut paths = Vec::new();
        for meaning in self.paths(name) {
            match down_only(&meaning.rest) {
                Some(rest) => {
                    let path = RecordingPath {
                        folder: meaning.folder,
                        rest,
                    };
                    if !paths.contains(&path) {
                        paths.push(path);
                    }
                }
                None => {
                    return Meaning::Refused(
                        "does not stay inside the folder of recordings".to_owned(),
                    );
                }
            }
        }
        Meaning::Files(paths)
    }

    /// The candidates for a path: with the configured prefix replaced; unchanged if it is relative;
    /// and from its last `recordings/` on.
    fn paths(&self, name: &str) -> Vec<RecordingPath> {
        let outside = self.local_prefix.starts_with('/');
        let local = local_folder(self.local_prefix);
        let within = |folder: &str, rest: &str| RecordingPath {
            folder: folder.to_owned(),
            rest: rest.to_owned(),
        };
        let mut meanings = Vec::new();
        let bare = name.trim_start_matches('/');
        let mapped = after_folder(bare, self.egress_prefix.trim_matches('/'));
        if let Some(rest) = mapped {
            meanings.push(within(local, rest));
        }
        // Absolute paths of our own data folder, from older records.
        let ours = after_folder(bare, self.root.trim_matches('/')).unwrap_or(bare);
        let ours = ours.strip_prefix("./").unwrap_or(ours);
        // A configured folder outside the data folder replaces `recordings/` of the egress host.
        let recordings = [Some(RECORDINGS), outside.then_some(local)];
        if let Some(rest) = after_folder(ours, RECORDINGS) {
            meanings.extend(
                recordings
                    .iter()
                    .flatten()
                    .map(|folder| within(folder, rest)),
            );
        }
        if let Some(rest) = after_folder(ours, local.trim_matches('/')) {
            meanings.push(within(local, rest));
        }
        if let Some(position) = name.rfind("/recordings/") {
            let rest = &name[position + "/recordings/".len()..];
            meanings.extend(
                recordings
                    .iter()
                    .flatten()
                    .map(|folder| within(folder, rest)),
            );
        }
        if !meanings.is_empty() {
            return meanings;
        }
        let absolute = name.starts_with('/') || name.get(1..2) == Some(":");
        if absolute {
            // No mapping applies: the egress's folder itself may be mounted as ours.
            let file = name.rsplit('/').next().unwrap_or_default();
            meanings.push(within(local, file));
        } else {
            meanings.push(within(local, ours));
        }
        meanings
    }

    /// An egress names an object as `https://bucket.endpoint/key` or `endpoint/bucket/key`. If the
    /// endpoint was configured with its scheme, the former becomes
    /// `https://bucket.http://endpoint/key` (livekit/storage, `s3.go`).
    fn address(&self, scheme: &str, rest: &str) -> Meaning {
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        match scheme {
            "s3" => self.object(host, path),
            "http" | "https" => {
                for bucket in self.buckets {
                    let virtual_host = host
                        .strip_prefix(bucket.as_str())
                        .and_then(|endpoint| endpoint.strip_prefix('.'));
                    match virtual_host {
                        Some("http:" | "https:") => {
                            let key = path
                                .trim_start_matches('/')
                                .split_once('/')
                                .map_or("", |(_, key)| key);
                            return self.object(bucket, key);
                        }
                        Some(_) => return self.object(bucket, path),
                        None => {}
                    }
                    if let Some(key) = after_folder(path, bucket) {
                        return self.object(bucket, key);
                    }
                }
                Meaning::Refused(
                    "is in none of the buckets that recording.s3.buckets lists".to_owned(),
                )
            }
            _ => Meaning::Refused(format!("cannot be fetched: {scheme}:// is not supported")),
        }
    }

    /// An object, if its bucket is listed and its key has no `..`.
    pub fn object(&self, bucket: &str, key: &str) -> Meaning {
        if !self.buckets.iter().any(|known| known == bucket) {
            return Meaning::Refused(format!(
                "is in the bucket {bucket:?}, which recording.s3.buckets does not list"
            ));
        }
        match down_only(key) {
            Some(key) => Meaning::S3(S3Location {
                bucket: bucket.to_owned(),
                key,
            }),
            None => Meaning::Refused("is not the key of an object".to_owned()),
        }
    }
}

/// `recording.local_prefix` without a trailing `/`.
pub(super) fn local_folder(local_prefix: &str) -> &str {
    match local_prefix.starts_with('/') {
        true => local_prefix.trim_end_matches('/'),
        false => local_prefix.trim_matches('/'),
    }
}

/// The part of `name` after `folder`.
fn after_folder<'a>(name: &'a str, folder: &str) -> Option<&'a str> {
    if folder.is_empty() {
        return None;
    }
    name.strip_prefix(folder)?.strip_prefix('/')
}

/// The path without empty and `.` parts; `None` if a part is `..` or nothing is left.
fn down_only(path: &str) -> Option<String> {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    let down = !parts.is_empty() && !parts.contains(&"..");
    down.then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules<'a>(egress_prefix: &'a str, buckets: &'a [String]) -> NameRules<'a> {
        NameRules {
            egress_prefix,
            local_prefix: RECORDINGS,
            root: "/srv/bot",
            buckets,
        }
    }

    fn shown(meaning: Meaning) -> Vec<String> {
        match meaning {
            Meaning::Files(paths) => paths.iter().map(RecordingPath::to_string).collect(),
            Meaning::S3(object) => vec![object.to_string()],
            Meaning::Refused(why) => vec![format!("refused: {why}")],
        }
    }

    #[test]
    fn a_name_means_every_file_that_it_can_mean_here() {
        for (name, prefix, expected) in [
            ("recordings/a.ogg", "", vec!["recordings/a.ogg"]),
            ("./recordings/a.ogg", "", vec!["recordings/a.ogg"]),
            ("/recordings/a.ogg", "", vec!["recordings/a.ogg"]),
            ("/out/recordings/b/a.ogg", "", vec!["recordings/b/a.ogg"]),
            ("out/recordings/a.ogg", "", vec!["recordings/a.ogg"]),
            ("a.ogg", "", vec!["recordings/a.ogg"]),
            ("day/a.ogg", "", vec!["recordings/day/a.ogg"]),
            ("/elsewhere/a.ogg", "", vec!["recordings/a.ogg"]),
            ("C:\\egress\\a.ogg", "", vec!["recordings/a.ogg"]),
            ("file:///out/recordings/a.ogg", "", vec!["recordings/a.ogg"]),
            ("/srv/bot/recordings/a.ogg", "", vec!["recordings/a.ogg"]),
            ("/data/rec/a.ogg", "/data/rec", vec!["recordings/a.ogg"]),
            ("data/rec/a.ogg", "/data/rec/", vec!["recordings/a.ogg"]),
            (
                "/data/rec/recordings/a.ogg",
                "/data/rec",
                vec!["recordings/recordings/a.ogg", "recordings/a.ogg"],
            ),
        ] {
            assert_eq!(shown(rules(prefix, &[]).meaning(name)), expected, "{name}");
        }
    }

    #[test]
    fn a_configured_folder_outside_the_data_folder_is_searched() {
        let inside_and_outside = ["recordings/a.ogg", "/mnt/egress/a.ogg"];
        for (name, prefix, expected) in [
            // As the default request and an egress container name it.
            ("recordings/a.ogg", "", &inside_and_outside[..]),
            (
                "/recordings/a.ogg",
                "/recordings",
                &["/mnt/egress/a.ogg", "recordings/a.ogg"],
            ),
            ("/out/recordings/a.ogg", "", &inside_and_outside),
            ("/elsewhere/a.ogg", "", &["/mnt/egress/a.ogg"]),
            // The name in our own records.
            ("/mnt/egress/a.ogg", "", &["/mnt/egress/a.ogg"]),
            (
                "/mnt/egress/day/../../x",
                "",
                &["refused: does not stay inside the folder of recordings"],
            ),
        ] {
            let rules = NameRules {
                local_prefix: "/mnt/egress/",
                ..rules(prefix, &[])
            };
            assert_eq!(shown(rules.meaning(name)), expected, "{name}");
        }
    }

    #[test]
    fn nothing_but_recordings_is_taken_for_one() {
        for name in [
            "recordings/../.env",
            "/out/recordings/../../x",
            "../x",
            "a/../../x",
            "/data/rec/../x",
            "",
            "/",
            "recordings/",
            "a\0b",
            "a\nb",
            "gs://bucket/key",
            "https://example.com/key",
            "s3://other/key",
            "s3://calls/../key",
            "s3://calls",
        ] {
            let meaning = rules("/data/rec", &["calls".to_owned()]).meaning(name);
            assert!(
                matches!(meaning, Meaning::Refused(_)),
                "{name:?}: {meaning:?}"
            );
        }
        // Names of other files of the data folder are mapped into the recordings, where they do not
        // exist.
        assert_eq!(
            shown(rules("", &[]).meaning("leads/lead_1.json")),
            ["recordings/leads/lead_1.json"]
        );
    }

    #[test]
    fn every_form_of_an_objects_address_leads_to_it() {
        let buckets = ["calls".to_owned()];
        for name in [
            "s3://calls/rec/a.ogg",
            "https://calls.s3.amazonaws.com/rec/a.ogg",
            "https://calls.s3.eu-west-1.amazonaws.com/rec/a.ogg",
            "https://minio.example.com:9000/calls/rec/a.ogg",
            "http://127.0.0.1:9000/calls/rec/a.ogg",
            "https://calls.http://minio:9000/rec/a.ogg",
        ] {
            assert_eq!(
                shown(rules("", &buckets).meaning(name)),
                ["s3://calls/rec/a.ogg"],
                "{name}"
            );
        }
    }

    proptest! {
        /// For any name in a manifest: no result leads upwards, out of the two folders, or into a
        /// bucket that is not listed.
        #[test]
        fn no_name_leads_out(
            name in prop_oneof![
                any::<String>(),
                prop::collection::vec(
                    prop::sample::select(vec!["..", ".", "/", "recordings", "calls", "s3://", "https://", "data/rec", "a.ogg", "\\", "\0", "srv/bot", ":"]),
                    0..12,
                ).prop_map(|parts| parts.concat()),
            ],
            prefix in prop::sample::select(vec!["", "/", "/data/rec", "data"]),
            local_prefix in prop::sample::select(vec![RECORDINGS, "/mnt/egress"]),
        ) {
            let buckets = ["calls".to_owned()];
            let rules = NameRules { local_prefix, ..rules(prefix, &buckets) };
            match rules.meaning(&name) {
                Meaning::Files(paths) => {
                    prop_assert!(!paths.is_empty());
                    for path in paths {
                        prop_assert!([RECORDINGS, local_prefix].contains(&path.folder.as_str()));
                        prop_assert!(!path.rest.is_empty() && !path.rest.contains('\0') && !path.rest.starts_with('/'));
                        prop_assert!(path.rest.split('/').all(|part| part != ".." && !part.is_empty()));
                    }
                }
                Meaning::S3(object) => {
                    prop_assert_eq!(object.bucket.as_str(), "calls");
                    prop_assert!(object.key.split('/').all(|part| part != ".." && !part.is_empty()));
                }
                Meaning::Refused(why) => prop_assert!(!why.is_empty()),
            }
        }
    }
}
