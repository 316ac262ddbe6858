//! The manifest `EG_….json` that an egress writes beside its file once that is complete
//! (livekit/egress, `pkg/config/manifest.go`).
//!
//! It has neither status nor error, and empty fields are left out. Invalid fields are ignored; only
//! a file that is no JSON object is an error.

use serde_json::{Map, Value};

/// The content of a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// The egress that wrote it.
    pub egress_id: Option<String>,
    /// Seconds from the start to the end of the egress.
    pub duration: Option<u64>,
    /// The output that it names instead of a file, such as a playlist of segments.
    pub no_file: Option<String>,
    /// `filename` and `location` of each file: the requested path, and where the egress has stored
    /// it.
    pub files: Vec<ManifestFile>,
}

/// One file of a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ManifestFile {
    pub filename: Option<String>,
    pub location: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
    /// Seconds.
    pub duration: Option<u64>,
}

impl ManifestFile {
    /// Its names in the order in which to try them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [&self.filename, &self.location]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }
}

impl Manifest {
    /// Reads a manifest. The error is the rest of a sentence that begins with the file's name.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        // Some tools write a byte order mark first.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| format!("is not an egress manifest: {error}"))?;
        let Value::Object(fields) = value else {
            return Err("is not an egress manifest: it is JSON, but not an object".to_owned());
        };
        // The egress writes `files`; a stored `EgressInfo` (as JSON, for example from a webhook)
        // has `file_results`, or the single `file` of older servers.
        let lists = ["files", "file_results", "file"];
        let files = lists
            .iter()
            .filter_map(|name| field(&fields, name))
            .filter(|found| !is_nothing(found))
            .map(|found| match found {
                Value::Array(files) => files.iter().collect(),
                file => vec![file],
            })
            .map(|files: Vec<&Value>| files.into_iter().filter_map(ManifestFile::read).collect())
            .find(|files: &Vec<ManifestFile>| !files.is_empty())
            .unwrap_or_default();
        let others = ["playlists", "segment_results", "segments", "images"];
        let no_file = others
            .into_iter()
            .find(|name| field(&fields, name).is_some_and(|value| !is_nothing(value)))
            .map(str::to_owned);
        Ok(Self {
            egress_id: text(&fields, "egress_id"),
            duration: length(&fields),
            no_file,
            files,
        })
    }
}

impl ManifestFile {
    fn read(value: &Value) -> Option<Self> {
        let file = value.as_object()?;
        let number = |name: &str| field(file, name).and_then(whole_number);
        Some(Self {
            filename: text(file, "filename"),
            location: text(file, "location"),
            size: number("size").and_then(|size| u64::try_from(size).ok()),
            duration: number("duration")
                .and_then(whole_seconds)
                .or_else(|| length(file)),
        })
    }
}

/// Seconds from `started_at` to `ended_at`.
fn length(fields: &Map<String, Value>) -> Option<u64> {
    let time = |name: &str| field(fields, name).and_then(whole_number);
    whole_seconds(time("ended_at")?.checked_sub(time("started_at")?)?)
}

/// A field by its name in protobuf or in protobuf's JSON: `egress_id` or `egressId`.
pub(super) fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).or_else(|| fields.get(&camel_case(name)))
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut all, word| {
        let mut letters = word.chars();
        all.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        all + letters.as_str()
    })
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

pub(super) fn text(fields: &Map<String, Value>, name: &str) -> Option<String> {
    field(fields, name)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}

/// A number, or a string with one: protobuf's JSON writes 64-bit numbers as strings. Zero means
/// "not set".
fn whole_number(value: &Value) -> Option<i64> {
    let number = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.filter(|number| *number > 0)
}

/// Nanoseconds as rounded seconds; `None` unless they are a duration.
pub(super) fn whole_seconds(nanoseconds: i64) -> Option<u64> {
    let nanoseconds = u64::try_from(nanoseconds)
        .ok()
        .filter(|length| *length > 0)?;
    Some(nanoseconds.saturating_add(500_000_000) / 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_manifest_of_a_real_egress_is_read() {
        let real = br#"{"egress_id":"EG_TRugmE6QHimA","room_id":"RM_79Wg5zQ2vbpx","room_name":"rec-room","started_at":1795213903155560255,"ended_at":1795213913317245731,"files":[{"filename":"/data/rec/rec-room-2026-11-20T223143.ogg","location":"/data/rec/rec-room-2026-11-20T223143.ogg"}]}"#;
        let manifest = Manifest::read(real).unwrap();
        assert_eq!(manifest.egress_id.as_deref(), Some("EG_TRugmE6QHimA"));
        assert_eq!(manifest.duration, Some(10));
        let names: Vec<&str> = manifest.files[0].names().collect();
        assert_eq!(names, ["/data/rec/rec-room-2026-11-20T223143.ogg"; 2]);
    }

    #[test]
    fn invalid_fields_of_a_manifest_are_ignored() {
        for (odd, files) in [
            (json!({}), 0),
            (
                json!({ "files": null, "started_at": "soon", "ended_at": 5 }),
                0,
            ),
            (json!({ "files": {} }), 0),
            (json!({ "files": [null, 3, {}, { "filename": 7 }] }), 2),
            (json!({ "started_at": i64::MIN, "ended_at": i64::MAX }), 0),
            (json!({ "started_at": 9_000_000_000_i64, "ended_at": 1 }), 0),
        ] {
            let manifest = Manifest::read(odd.to_string().as_bytes()).unwrap();
            assert_eq!(manifest.files.len(), files, "{odd}");
            assert_eq!(manifest.duration, None, "{odd}");
            assert!(
                manifest
                    .files
                    .iter()
                    .all(|file| file.names().next().is_none())
            );
        }
        let texts = json!({ "started_at": "1000000000", "ended_at": "3600000000" });
        assert_eq!(
            Manifest::read(texts.to_string().as_bytes())
                .unwrap()
                .duration,
            Some(3)
        );
        for no_manifest in [&b"[]"[..], b"", b"null", b"{\"egress_id\":", b"\xff"] {
            assert!(Manifest::read(no_manifest).is_err(), "{no_manifest:?}");
        }
    }

    #[test]
    fn every_shape_of_an_egress_description_names_its_file() {
        let file = |names: [&str; 4]| {
            let [filename, location, started, ended] = names;
            json!({ filename: "recordings/a.ogg", location: "/out/a.ogg", "size": "50004", started: "1000000000", ended: "61000000000" })
        };
        let snake = file(["filename", "location", "started_at", "ended_at"]);
        let camel = file(["filename", "location", "startedAt", "endedAt"]);
        let expected = ManifestFile {
            filename: Some("recordings/a.ogg".to_owned()),
            location: Some("/out/a.ogg".to_owned()),
            size: Some(50_004),
            duration: Some(60),
        };
        for described in [
            json!({ "egress_id": "EG_1", "files": [snake] }),
            json!({ "egress_id": "EG_1", "file_results": [snake], "status": "EGRESS_COMPLETE" }),
            json!({ "egressId": "EG_1", "fileResults": [camel], "status": 3 }),
            json!({ "egress_id": "EG_1", "file": snake, "file_results": [] }),
            json!({ "egressId": "EG_1", "file": camel, "fileResults": null }),
            json!({ "egressId": "EG_1", "files": camel }),
        ] {
            let manifest = Manifest::read(described.to_string().as_bytes()).unwrap();
            assert_eq!(manifest.egress_id.as_deref(), Some("EG_1"), "{described}");
            assert_eq!(
                manifest.files,
                std::slice::from_ref(&expected),
                "{described}"
            );
        }
        let case = include_bytes!(
            "../../tests/fixtures/cases/egress-with-the-old-result-only/egress.json"
        );
        let manifest = Manifest::read(case).unwrap();
        assert_eq!(manifest.files[0].size, Some(50_004));
        assert_eq!(manifest.files[0].duration, Some(60));

        let marked = [b"\xef\xbb\xbf".as_slice(), case].concat();
        assert_eq!(Manifest::read(&marked).unwrap(), manifest);
        let playlist = json!({ "egress_id": "EG_1", "playlists": [{ "location": "/out/a.m3u8" }] });
        let manifest = Manifest::read(playlist.to_string().as_bytes()).unwrap();
        assert_eq!(manifest.no_file.as_deref(), Some("playlists"));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let names = prop::sample::select(vec![
            "egress_id",
            "started_at",
            "ended_at",
            "files",
            "filename",
            "location",
            "other",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(names.clone(), inner, 0..6).prop_map(|fields| {
                    let fields: Map<String, Value> = fields
                        .into_iter()
                        .map(|(name, value)| (name.to_owned(), value))
                        .collect();
                    Value::Object(fields)
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::read(&bytes);
        }

        /// Any JSON object is read as a manifest without a panic, and no value is invented.
        #[test]
        fn any_json_is_read_or_refused(value in any_json()) {
            let read = Manifest::read(value.to_string().as_bytes());
            prop_assert_eq!(read.is_ok(), value.is_object());
            if let Ok(manifest) = read {
                let text = value.to_string();
                let files = value["files"].as_array().map_or(1, Vec::len);
                prop_assert!(manifest.files.len() <= files);
                for name in manifest.files.iter().flat_map(ManifestFile::names) {
                    prop_assert!(text.contains(&Value::from(name).to_string()));
                }
            }
        }

        /// A truncated manifest, such as one that is still being copied, is an error.
        #[test]
        fn a_truncated_manifest_is_refused(cut in 0_usize..80) {
            let whole = br#"{"egress_id":"EG_1","files":[{"filename":"recordings/a.ogg","location":"/a.ogg"}]}"#;
            prop_assert!(Manifest::read(&whole[..cut.min(whole.len() - 1)]).is_err());
        }
    }
}
