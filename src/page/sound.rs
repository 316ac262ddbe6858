//! A call's recording, for the player: in parts, as it asks for them.

use std::io::SeekFrom;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

use super::range::{Wanted, wanted};
use super::{Page, calls, sentence};
use crate::recording::resolve::{FoundRecording, Resolution};

/// How much of a recording is in memory at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// How long the search for a recording may take; it may ask LiveKit's server and an S3 bucket.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(10);

/// `GET /page/api/calls/{id}/recording`.
pub(super) async fn recording(
    State(page): State<Arc<Page>>,
    Path(id): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let call = calls::call_of(&page, &id).await?;
    if call.live.is_some() {
        let why = "the call is going on; its recording is there when it is over";
        return Err(sentence(StatusCode::CONFLICT, why));
    }
    if call.record.timestamps.recording_deleted.is_some() {
        let why = "the recording was delivered and then deleted here ([storage] in the settings)";
        return Err(sentence(StatusCode::GONE, why));
    }
    let search = page.parts.resolver.resolve(&call.record, Utc::now());
    let Ok(found) = timeout(SEARCH_TIMEOUT, search).await else {
        let why = "the recording was not found in time";
        return Err(sentence(StatusCode::GATEWAY_TIMEOUT, why));
    };
    let found = match found {
        Resolution::Found(found) => found,
        Resolution::NotRecorded => {
            return Err(sentence(StatusCode::NOT_FOUND, "the call was not recorded"));
        }
        Resolution::Wait { why, .. }
        | Resolution::Missing { why, .. }
        | Resolution::Failed { why, .. } => return Err(sentence(StatusCode::NOT_FOUND, why)),
    };
    let range = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    answer(&found, range, method == Method::HEAD)
        .await
        .map_err(|why| sentence(StatusCode::BAD_GATEWAY, why))
}

async fn answer(
    found: &FoundRecording,
    range: Option<&str>,
    head: bool,
) -> Result<Response, String> {
    let kind = media_type(found.file_name());
    let size = found.size;
    let Some(path) = found.file() else {
        // An object of S3 comes as a whole.
        let body = match head {
            true => Body::empty(),
            false => Body::from_stream(found.open().await?),
        };
        return Ok(([(header::CONTENT_TYPE, kind)], body).into_response());
    };
    let (status, from, length, content_range) = match wanted(range, size) {
        Wanted::All => (StatusCode::OK, 0, size, None),
        Wanted::Part { from, to } => (
            StatusCode::PARTIAL_CONTENT,
            from,
            to - from + 1,
            Some(format!("bytes {from}-{to}/{size}")),
        ),
        Wanted::Nothing => (
            StatusCode::RANGE_NOT_SATISFIABLE,
            0,
            0,
            Some(format!("bytes */{size}")),
        ),
    };
    let body = if head || length == 0 {
        Body::empty()
    } else {
        let unreadable = |error| format!("failed to read the recording: {error}");
        let mut file = tokio::fs::File::open(path).await.map_err(unreadable)?;
        file.seek(SeekFrom::Start(from)).await.map_err(unreadable)?;
        Body::from_stream(ReaderStream::with_capacity(file.take(length), CHUNK_BYTES))
    };
    let mut response = (status, [(header::CONTENT_TYPE, kind)], body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if let Some(value) = content_range.and_then(|range| HeaderValue::from_str(&range).ok()) {
        headers.insert(header::CONTENT_RANGE, value);
    }
    Ok(response)
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "ogg" | "oga" | "opus" => "audio/ogg",
        "mp4" | "m4a" => "audio/mp4",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wav",
        "webm" => "audio/webm",
        _ => "application/octet-stream",
    }
}
