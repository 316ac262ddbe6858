//! The copy of all calls in MongoDB, in the collections `sessions` and `leads`, for searches.
//!
//! Only the worker writes it, from the records and leads on disk; call processes never do. The
//! files are authoritative: when MongoDB is down, calls, files and delivery go on, and missing
//! calls are written when it is back. Built with the feature `mongodb` (the default) and used when
//! `MONGODB_URI` is set.
//!
//! [`Mirror`] finds missing calls and writes them; `Progress` stores on disk what was written;
//! `document` defines the documents; only `server` uses the driver.

#[cfg(feature = "mongodb")]
mod document;
#[cfg(feature = "mongodb")]
mod mirror;
#[cfg(feature = "mongodb")]
mod progress;
#[cfg(feature = "mongodb")]
mod server;

use serde::{Deserialize, Serialize};
use thiserror::Error;

#[cfg(not(feature = "mongodb"))]
use super::{Query, WholeCall};

#[cfg(feature = "mongodb")]
pub use document::{CallDocuments, documents};
#[cfg(feature = "mongodb")]
pub use mirror::{Destination, Mirror, PutError};
#[cfg(feature = "mongodb")]
pub use server::{MongoServer, catch_up, look_up, ping, start};

/// The environment variable with address, user and password.
pub const URI_VARIABLE: &str = "MONGODB_URI";

/// Section `mongodb` of the configuration. The address is not in it: it holds a password and comes
/// from the environment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MongoConfig {
    /// The database with `sessions` and `leads`.
    pub database: String,
}

impl Default for MongoConfig {
    fn default() -> Self {
        Self {
            database: "voicebot".to_owned(),
        }
    }
}

impl MongoConfig {
    /// Checks for mistakes that a type cannot catch. The error names the key.
    ///
    /// # Errors
    /// When MongoDB would refuse the name:
    /// <https://www.mongodb.com/docs/manual/reference/limits/#naming-restrictions>
    pub fn check(&self) -> Result<(), String> {
        let bad = |c: char| c.is_control() || "/\\. \"$*<>:|?".contains(c);
        if self.database.is_empty() || self.database.len() > 63 || self.database.contains(bad) {
            return Err(format!(
                "mongodb.database is {:?}; a database's name has 1 to 63 bytes and none of /\\. \"$*<>:|?",
                self.database
            ));
        }
        Ok(())
    }
}

/// Why MongoDB cannot be used. The messages never contain user or password.
#[derive(Debug, Error)]
pub enum MongoError {
    /// The address is invalid.
    #[error(
        "MONGODB_URI is not an address of MongoDB: {0}; it looks like mongodb://user:password@host:27017/ or mongodb+srv://user:password@host/, with special characters in user and password percent-encoded"
    )]
    BadUri(String),
    /// It does not answer, or with an error.
    #[error("{0}")]
    Unusable(String),
    /// The progress cannot be stored.
    #[error("failed to keep {path}, which says what is in MongoDB already: {source}")]
    Progress {
        /// The file.
        path: std::path::PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The program was built without the feature.
    #[error(
        "MONGODB_URI is set, but this program was built without MongoDB (cargo feature mongodb)"
    )]
    NotBuilt,
}

/// The result of a pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MirrorPass {
    /// Calls written.
    pub written: u64,
    /// Calls that were refused and are not retried until their files change.
    pub refused: u64,
    /// Calls that are still to be written.
    pub behind: u64,
    /// Why the pass ended early.
    pub down: Option<String>,
    /// Whether another process writes the calls of this folder, so that this one did nothing.
    pub elsewhere: bool,
}

#[cfg(not(feature = "mongodb"))]
fn not_built<T>() -> Result<Option<T>, MongoError> {
    match crate::settings::Secret::from_env(URI_VARIABLE) {
        Some(_) => Err(MongoError::NotBuilt),
        None => Ok(None),
    }
}

/// Nothing is written: this program was built without MongoDB.
///
/// # Errors
/// When `MONGODB_URI` is set all the same.
#[cfg(not(feature = "mongodb"))]
pub fn start(
    _: &MongoConfig,
    _: &crate::store::Store,
    _: tokio_util::sync::CancellationToken,
) -> Result<Option<tokio::task::JoinHandle<()>>, MongoError> {
    not_built()
}

/// Nothing is written: this program was built without MongoDB.
///
/// # Errors
/// When `MONGODB_URI` is set all the same.
#[cfg(not(feature = "mongodb"))]
pub async fn catch_up(
    _: &MongoConfig,
    _: &crate::store::Store,
) -> Result<Option<MirrorPass>, MongoError> {
    not_built()
}

/// Nothing is found: this program was built without MongoDB.
///
/// # Errors
/// When `MONGODB_URI` is set all the same.
#[cfg(not(feature = "mongodb"))]
pub async fn look_up(_: &MongoConfig, _: &Query) -> Result<Option<Vec<WholeCall>>, MongoError> {
    not_built()
}

/// Nothing answers: this program was built without MongoDB.
///
/// # Errors
/// When `MONGODB_URI` is set all the same.
#[cfg(not(feature = "mongodb"))]
pub async fn ping(_: &MongoConfig) -> Result<Option<String>, MongoError> {
    not_built()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_database_can_have_is_refused_with_its_key() {
        for bad in ["", "a.b", "a b", "a/b", "$x", &"x".repeat(64)] {
            let config = MongoConfig {
                database: bad.to_owned(),
            };
            assert!(config.check().unwrap_err().contains("mongodb.database"));
        }
        assert!(MongoConfig::default().check().is_ok());
    }
}
