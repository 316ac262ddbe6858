//! The driver: connection, indexes, writes, searches and errors. Only this file uses its types,
//! apart from BSON.

use std::time::Duration;

use ::mongodb::bson::{Document, doc};
use ::mongodb::error::{Error, ErrorKind, WriteFailure};
use ::mongodb::options::{ClientOptions, ConnectionString, HostInfo, IndexOptions};
use ::mongodb::{Client, Collection, IndexModel};
use futures_util::TryStreamExt as _;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::document::{CallDocuments, stored_call};
use super::mirror::{Destination, Mirror, PutError};
use super::{MirrorPass, MongoConfig, MongoError, URI_VARIABLE};
use crate::ledger::{Query, WholeCall};
use crate::settings::Secret;
use crate::store::Store;

/// How long a server may take to be found and connected to.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Timeout for writing one call and for one query.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// Calls that one query returns at most.
const MOST_FOUND: i64 = 200;

/// Error codes of a server that cannot accept writes at present, or refuses our credentials:
/// <https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml>.
const DOWN_CODES: [i32; 21] = [
    6,             // HostUnreachable
    7,             // HostNotFound
    13,            // Unauthorized
    18,            // AuthenticationFailed
    50,            // MaxTimeMSExpired
    64,            // WriteConcernFailed
    89,            // NetworkTimeout
    91,            // ShutdownInProgress
    100,           // UnsatisfiableWriteConcern
    189,           // PrimarySteppedDown
    262,           // ExceededTimeLimit
    8000,          // AtlasError: a quota, for example
    9001,          // SocketException
    10107,         // NotWritablePrimary
    DUPLICATE_KEY, // two wrote the same call for the first time; the next try finds it
    11600,         // InterruptedAtShutdown
    11602,         // InterruptedDueToReplStateChange
    13435,         // NotPrimaryNoSecondaryOk
    13436,         // NotPrimaryOrSecondary
    14031,         // OutOfDiskSpace
    24,            // LockTimeout
];

/// The error code for an `_id` that exists already.
const DUPLICATE_KEY: i32 = 11000;

/// The error code for a collection that does not exist yet.
const NAMESPACE_NOT_FOUND: i32 = 26;

/// A database with `sessions` and `leads`. Connects when first used, so that a server that is down
/// at the start is no error.
pub struct MongoServer {
    uri: Secret,
    database: String,
    /// Hosts and database, for messages.
    name: String,
    connected: OnceCell<Connected>,
    /// Set once the indexes exist. They are created before the first write only, so that searching
    /// needs no right to create indexes.
    indexed: OnceCell<()>,
}

struct Connected {
    sessions: Collection<Document>,
    leads: Collection<Document>,
}

impl MongoServer {
    /// A database at an address.
    ///
    /// # Errors
    /// When the address is invalid. Does not connect.
    pub fn new(uri: Secret, config: &MongoConfig) -> Result<Self, MongoError> {
        let parsed = ConnectionString::parse(uri.expose())
            .map_err(|error| MongoError::BadUri(without_secrets(&error, &uri)))?;
        let hosts = match &parsed.host_info {
            HostInfo::HostIdentifiers(hosts) => hosts
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(","),
            HostInfo::DnsRecord(host) => host.clone(),
            _ => "MongoDB".to_owned(),
        };
        Ok(Self {
            name: format!("{hosts}/{}", config.database),
            uri,
            database: config.database.clone(),
            connected: OnceCell::new(),
            indexed: OnceCell::new(),
        })
    }

    /// The database that the environment and the settings name. `None`: `MONGODB_URI` is not set.
    fn from_env(config: &MongoConfig) -> Result<Option<Self>, MongoError> {
        Secret::from_env(URI_VARIABLE)
            .map(|uri| Self::new(uri, config))
            .transpose()
    }

    async fn connected(&self) -> Result<&Connected, Error> {
        self.connected
            .get_or_try_init(async || {
                let mut options = ClientOptions::parse(self.uri.expose()).await?;
                options.app_name = options.app_name.or(Some("voicebot".to_owned()));
                options.connect_timeout = options.connect_timeout.or(Some(CONNECT_WAIT));
                options.server_selection_timeout =
                    options.server_selection_timeout.or(Some(CONNECT_WAIT));
                let database = Client::with_options(options)?.database(&self.database);
                Ok(Connected {
                    sessions: database.collection("sessions"),
                    leads: database.collection("leads"),
                })
            })
            .await
    }

    /// Finds the calls that match `query`.
    ///
    /// # Errors
    /// When the server cannot be queried.
    pub async fn find(&self, query: &Query) -> Result<Vec<WholeCall>, MongoError> {
        let asked = async {
            let connected = self.connected().await?;
            let mut calls = connected.find(by_id(query)).await?;
            if calls.is_empty()
                && let Some(digits) = query.digits()
            {
                // No index supports the end of a number, so this query is the last one.
                let ending = doc! { "numbers": { "$regex": format!("{digits}$") } };
                calls = connected.find(ending).await?;
            }
            Ok(calls)
        };
        let calls = match timeout(ANSWER_WAIT, asked).await {
            Ok(Ok(calls)) => calls,
            Ok(Err(error)) => return Err(MongoError::Unusable(self.sentence(&error))),
            Err(_) => return Err(MongoError::Unusable(self.too_slow())),
        };
        let mut read = Vec::new();
        for (session, leads) in calls {
            match stored_call(&session, &leads, &self.name) {
                Ok(call) => read.push(call),
                Err(problem) => {
                    let id = session.get_str("_id").unwrap_or_default();
                    warn!(
                        session.id = id,
                        problem, "a call in MongoDB is not readable"
                    );
                }
            }
        }
        Ok(read)
    }

    fn too_slow(&self) -> String {
        format!(
            "MongoDB at {} did not answer within {} s",
            self.name,
            ANSWER_WAIT.as_secs()
        )
    }

    /// Describes an error for the operator. The driver's messages name hosts, and may repeat parts
    /// of the address with the password; such messages are not shown.
    fn sentence(&self, error: &Error) -> String {
        let name = &self.name;
        match error.kind.as_ref() {
            ErrorKind::Authentication { .. } => format!(
                "MongoDB at {name} does not accept the user and password of {URI_VARIABLE} (or its authSource)"
            ),
            ErrorKind::Command(command) if matches!(command.code, 13 | 18) => format!(
                "MongoDB at {name} does not let the user of {URI_VARIABLE} do this: {}; it needs the role readWrite there",
                command.message
            ),
            ErrorKind::ServerSelection { message, .. } => format!(
                "MongoDB at {name} cannot be reached ({URI_VARIABLE}): {}",
                reason_in(message)
            ),
            ErrorKind::DnsResolve { .. } => {
                format!("the host of {URI_VARIABLE} ({name}) cannot be found in DNS")
            }
            ErrorKind::InvalidTlsConfig { message, .. } => {
                format!("the TLS options of {URI_VARIABLE} cannot be used: {message}")
            }
            _ => format!("MongoDB at {name}: {}", without_secrets(error, &self.uri)),
        }
    }

    fn put_error(&self, error: &Error) -> PutError {
        let is_refused = match error.kind.as_ref() {
            ErrorKind::InvalidArgument { .. } | ErrorKind::Bson(_) => true,
            _ => code_of(error).is_some_and(|code| !DOWN_CODES.contains(&code)),
        };
        if is_refused {
            PutError::Refused(self.sentence(error))
        } else {
            PutError::Down(self.sentence(error))
        }
    }
}

impl Destination for MongoServer {
    async fn put(&self, call: CallDocuments, is_new: bool) -> Result<(), PutError> {
        let writing = async {
            let connected = self.connected().await?;
            self.indexed
                .get_or_try_init(|| connected.create_indexes())
                .await?;
            // Leads first: when a session is found, its leads exist.
            for lead in call.leads {
                write(&connected.leads, lead, is_new).await?;
            }
            write(&connected.sessions, call.session, is_new).await
        };
        match timeout(ANSWER_WAIT, writing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.put_error(&error)),
            Err(_) => Err(PutError::Down(self.too_slow())),
        }
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Connected {
    async fn create_indexes(&self) -> Result<(), Error> {
        let sessions = [
            "call_id",
            "job_id",
            "sip_call_id",
            "egress_id",
            "lead_ids",
            "numbers",
            "room.name",
            "room.sid",
            "call_start",
        ];
        create_missing(&self.sessions, &sessions).await?;
        create_missing(&self.leads, &["session_id", "call_id", "created_at"]).await
    }

    async fn find(&self, filter: Document) -> Result<Vec<(Document, Vec<Document>)>, Error> {
        let sessions: Vec<Document> = self
            .sessions
            .find(filter)
            .sort(doc! { "call_start": -1 })
            .limit(MOST_FOUND)
            .await?
            .try_collect()
            .await?;
        let mut calls = Vec::new();
        for session in sessions {
            let id = session.get("_id").cloned();
            let leads = self
                .leads
                .find(doc! { "session_id": id })
                .sort(doc! { "file": 1 })
                .await?
                .try_collect()
                .await?;
            calls.push((session, leads));
        }
        Ok(calls)
    }
}

/// Inserts or replaces a document. New ones are inserted, because a replacement without a match
/// makes some servers read the whole collection.
async fn write(
    collection: &Collection<Document>,
    document: Document,
    is_new: bool,
) -> Result<(), Error> {
    if is_new {
        match collection.insert_one(&document).await {
            Err(error) if code_of(&error) == Some(DUPLICATE_KEY) => {}
            inserted => return inserted.map(|_| ()),
        }
    }
    let id = document.get("_id").cloned();
    collection
        .replace_one(doc! { "_id": id }, document)
        .upsert(true)
        .await
        .map(|_| ())
}

/// The server's code of an error, if the error comes from the server.
fn code_of(error: &Error) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => Some(command.code),
        ErrorKind::Write(WriteFailure::WriteError(write)) => Some(write.code),
        _ => None,
    }
}

/// Creates the missing indexes. FerretDB fails when it is asked for an index that exists.
async fn create_missing(collection: &Collection<Document>, keys: &[&str]) -> Result<(), Error> {
    let there = match collection.list_index_names().await {
        Ok(names) => names,
        Err(error) => match error.kind.as_ref() {
            ErrorKind::Command(command) if command.code == NAMESPACE_NOT_FOUND => Vec::new(),
            _ => return Err(error),
        },
    };
    let missing: Vec<IndexModel> = keys
        .iter()
        .map(|key| (*key, key.replace('.', "_")))
        .filter(|(_, name)| !there.contains(name))
        .map(|(key, name)| {
            IndexModel::builder()
                .keys(doc! { key: 1 })
                .options(IndexOptions::builder().name(name).build())
                .build()
        })
        .collect();
    if !missing.is_empty() {
        collection.create_indexes(missing).await?;
    }
    Ok(())
}

/// A filter for sessions with this id.
fn by_id(query: &Query) -> Document {
    let text = query.text();
    let mut alternatives: Vec<Document> = [
        "_id",
        "call_id",
        "job_id",
        "sip_call_id",
        "lead_ids",
        "room.name",
        "room.sid",
    ]
    .into_iter()
    .map(|key| doc! { key: text })
    .collect();
    alternatives.push(doc! { "egress_id": query.bare() });
    alternatives.extend(query.digits().map(|digits| doc! { "numbers": digits }));
    doc! { "$or": alternatives }
}

/// The part of the driver's long description that says why no server is available.
fn reason_in(message: &str) -> &str {
    for (sign, reason) in [
        (
            "Connection refused",
            "connection refused, is it running there?",
        ),
        ("failed to lookup", "the host is not known"),
        (
            "InvalidCertificate",
            "its TLS certificate is not valid for us",
        ),
        (
            "Authentication failed",
            "it does not accept the user and password",
        ),
        ("timed out", "it does not answer"),
    ] {
        if message.contains(sign) {
            return reason;
        }
    }
    "no server answers as it should"
}

/// The driver's message, unless it repeats a part of user or password.
fn without_secrets(error: &Error, uri: &Secret) -> String {
    let text = error.kind.to_string();
    let after_scheme = uri.expose().split_once("://").map_or("", |(_, rest)| rest);
    let Some((credentials, _)) = after_scheme.rsplit_once('@') else {
        return text;
    };
    // The driver splits a password at characters that should have been percent-encoded.
    let repeats = |piece: &str| piece.len() > 1 && text.contains(piece);
    if credentials
        .split([':', '@', '/', '?', '&', '=', '%', ','])
        .any(repeats)
    {
        "its parts cannot be told apart".to_owned()
    } else {
        text
    }
}

/// Starts writing the calls of `store` to MongoDB, until `stop`. `None`: `MONGODB_URI` is not set.
///
/// # Errors
/// When `MONGODB_URI` is invalid. A server that does not answer is no error.
pub fn start(
    config: &MongoConfig,
    store: &Store,
    stop: CancellationToken,
) -> Result<Option<JoinHandle<()>>, MongoError> {
    let Some(server) = MongoServer::from_env(config)? else {
        return Ok(None);
    };
    let mirror = Mirror::new(store.clone(), server);
    Ok(Some(tokio::spawn(mirror.run(stop))))
}

/// Writes every call of `store` that is missing or outdated in MongoDB. `None`: `MONGODB_URI` is
/// not set.
///
/// # Errors
/// When `MONGODB_URI` is invalid, or the progress cannot be stored.
pub async fn catch_up(
    config: &MongoConfig,
    store: &Store,
) -> Result<Option<MirrorPass>, MongoError> {
    match MongoServer::from_env(config)? {
        Some(server) => Mirror::new(store.clone(), server)
            .catch_up()
            .await
            .map(Some),
        None => Ok(None),
    }
}

/// Finds calls in MongoDB. `None`: `MONGODB_URI` is not set.
///
/// # Errors
/// When `MONGODB_URI` is invalid or its server cannot be queried.
pub async fn look_up(
    config: &MongoConfig,
    query: &Query,
) -> Result<Option<Vec<WholeCall>>, MongoError> {
    match MongoServer::from_env(config)? {
        Some(server) => server.find(query).await.map(Some),
        None => Ok(None),
    }
}

/// Tests whether MongoDB can be used; returns its name. `None`: `MONGODB_URI` is not set.
///
/// # Errors
/// When `MONGODB_URI` is invalid or its server cannot be used.
pub async fn ping(config: &MongoConfig) -> Result<Option<String>, MongoError> {
    let Some(server) = MongoServer::from_env(config)? else {
        return Ok(None);
    };
    let pinged = async {
        let connected = server.connected().await?;
        connected.sessions.find_one(doc! { "_id": "" }).await
    };
    match timeout(ANSWER_WAIT, pinged).await {
        Ok(Ok(_)) => Ok(Some(server.name.clone())),
        Ok(Err(error)) => Err(MongoError::Unusable(server.sentence(&error))),
        Err(_) => Err(MongoError::Unusable(server.too_slow())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(uri: &str) -> Result<MongoServer, MongoError> {
        MongoServer::new(Secret::new(uri), &MongoConfig::default())
    }

    #[test]
    fn a_bad_address_is_refused_without_its_password() {
        for uri in [
            "mongodb://bob:hunter2@/",
            "mongodb://bob:hunt/er2@db.example.com:27017/",
            "mongodb://bob:hun@ter2@db.example.com:27017/",
            "mongodb://bob:hunter2@db.example.com:port/",
            "mongodb://bob:hunter2@db.example.com/?hunter2=1&w=hunter2",
            "postgres://bob:hunter2@db.example.com/",
            "hunter2",
        ] {
            let Err(error) = server(uri) else {
                continue;
            };
            let text = error.to_string();
            assert!(text.contains("MONGODB_URI"), "{text}");
            let told = text.replace("mongodb://user:password@host", "");
            for secret in ["hunt", "er2", "bob"] {
                assert!(uri == "hunter2" || !told.contains(secret), "{uri}: {text}");
            }
        }
        assert!(server("hunter2").is_err());
        assert!(server("mongodb://bob:hun@ter2@db.example.com/").is_err());
    }

    #[test]
    fn a_server_is_named_by_hosts_and_database() {
        for (uri, name) in [
            (
                "mongodb://bob:hunter2@a.example.com:27018,b.example.com/x",
                "a.example.com:27018,b.example.com:27017/voicebot",
            ),
            (
                "mongodb+srv://bob:hunter2@cluster.example.com/",
                "cluster.example.com/voicebot",
            ),
        ] {
            assert_eq!(server(uri).unwrap().name(), name);
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_down_and_the_sentence_says_where() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let uri = format!("mongodb://bob:hunter2@{address}/?serverSelectionTimeoutMS=300");
        let server = server(&uri).unwrap();
        let call = CallDocuments {
            session: doc! { "_id": "session_1" },
            leads: vec![],
        };
        let Err(PutError::Down(why)) = server.put(call, true).await else {
            panic!("there is no server");
        };
        assert!(
            why.contains(&address.to_string()) && why.contains("refused"),
            "{why}"
        );
        assert!(!why.contains("hunter2"), "{why}");
    }
}
