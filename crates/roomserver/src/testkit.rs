//! What the tests of the API and the agents share: a server on a free port, API calls, an agent
//! worker made of a WebSocket, and participants without media.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use livekit_protocol as proto;
use prost::Message as _;
use proto::participant_info::Kind;
use proto::server_message::Message as ToWorker;
use proto::worker_message::Message as FromWorker;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message as Frame};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::room::{Inbox, JoinSpec, MediaPacket, ToPeer};
use crate::token::{Claims, Keys, SipGrants, VideoGrants, unix_now_s};
use crate::{Options, RoomServer};

/// What happens within a machine takes much less; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const KEY: &str = "testkey";
pub(crate) const SECRET: &str = "a secret that is long enough for tests";

pub(crate) fn options() -> Options {
    Options {
        keys: vec![(KEY.into(), SECRET.into())],
        ..Options::default()
    }
}

pub(crate) async fn start() -> RoomServer {
    RoomServer::start(options())
        .await
        .expect("a loopback port is free")
}

pub(crate) fn token(video: VideoGrants) -> String {
    token_with(Claims {
        video,
        ..Default::default()
    })
}

pub(crate) fn token_with(claims: Claims) -> String {
    let claims = Claims {
        iss: KEY.into(),
        sub: "tester".into(),
        exp: unix_now_s() + 60,
        ..claims
    };
    Keys::new(vec![(KEY.into(), SECRET.into())])
        .sign(&claims)
        .expect("the key is known")
}

/// Every grant there is, for one room.
pub(crate) fn admin(room: &str) -> String {
    token_with(Claims {
        video: VideoGrants {
            room_create: true,
            room_list: true,
            room_admin: true,
            room_record: true,
            room: room.to_owned(),
            ..Default::default()
        },
        sip: SipGrants {
            admin: true,
            call: true,
        },
        ..Default::default()
    })
}

thread_local! {
    /// Every test has a thread and a runtime of its own, and a client belongs to a runtime. Making
    /// one reads the machine's certificates, which is slow, so each test makes one.
    static CLIENT: reqwest::Client = reqwest::Client::new();
}

/// One API call in JSON.
pub(crate) async fn call(
    server: &RoomServer,
    token: &str,
    method: &str,
    request: Value,
) -> (u16, Value) {
    let url = format!("http://{}/twirp/livekit.{method}", server.address());
    let mut post = CLIENT.with(|client| client.post(url).json(&request));
    if !token.is_empty() {
        post = post.bearer_auth(token);
    }
    let response = post.send().await.expect("the server answers");
    let status = response.status().as_u16();
    (status, response.json().await.expect("the answer is JSON"))
}

/// One API call that has to succeed.
pub(crate) async fn call_ok(
    server: &RoomServer,
    room: &str,
    method: &str,
    request: Value,
) -> Value {
    let (status, answer) = call(server, &admin(room), method, request).await;
    assert_eq!(status, 200, "{method}: {answer}");
    answer
}

/// Repeats the call until its answer is as wanted.
pub(crate) async fn call_until(
    server: &RoomServer,
    room: &str,
    method: &str,
    request: Value,
    wanted: impl Fn(&Value) -> bool,
) -> Value {
    let mut last = Value::Null;
    let asking = async {
        loop {
            last = call_ok(server, room, method, request.clone()).await;
            if wanted(&last) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, asking).await;
    assert!(
        in_time.is_ok(),
        "{method} never answered as wanted, but at last {last}"
    );
    last
}

/// A participant without media.
pub(crate) struct Guest {
    pub sid: String,
    pub control: mpsc::Receiver<ToPeer>,
    _media: mpsc::Receiver<MediaPacket>,
}

pub(crate) fn join(server: &RoomServer, room: &str, identity: &str, kind: Kind) -> Guest {
    let (control, control_inbox) = mpsc::channel(1024);
    let (media, media_inbox) = mpsc::channel(1024);
    let spec = JoinSpec {
        identity: identity.to_owned(),
        name: String::new(),
        kind,
        metadata: String::new(),
        attributes: HashMap::new(),
        permission: Claims::default().permission(),
        auto_subscribe: true,
        client_protocol: 16,
        capabilities: Vec::new(),
        inbox: Inbox { control, media },
    };
    let room = server.rooms().open(room, crate::RoomOptions::default());
    let joined = room.join(spec).expect("the room is open");
    room.set_active(&joined.participant.sid);
    Guest {
        sid: joined.participant.sid,
        control: control_inbox,
        _media: media_inbox,
    }
}

/// An agent worker's side of the connection.
pub(crate) struct FakeWorker {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl FakeWorker {
    pub async fn connect(server: &RoomServer, token: &str) -> Result<Self, tungstenite::Error> {
        let mut request = format!("{}/agent?protocol=1", server.url()).into_client_request()?;
        let bearer = format!("Bearer {token}")
            .parse()
            .expect("a token is a header value");
        request.headers_mut().insert("Authorization", bearer);
        let (socket, _) = tokio_tungstenite::connect_async(request).await?;
        Ok(Self { socket })
    }

    /// Connects with a good token.
    pub async fn open(server: &RoomServer) -> Self {
        let token = token(VideoGrants {
            agent: true,
            ..Default::default()
        });
        Self::connect(server, &token)
            .await
            .expect("the token is good")
    }

    /// Connects and registers; returns the worker's id as well.
    pub async fn register(
        server: &RoomServer,
        agent_name: &str,
        job_type: proto::JobType,
    ) -> (Self, String) {
        let mut worker = Self::open(server).await;
        worker.send(register_request(agent_name, job_type)).await;
        match worker.receive().await {
            ToWorker::Register(response) => (worker, response.worker_id),
            other => panic!("expected the answer to register, got {other:?}"),
        }
    }

    pub async fn send(&mut self, message: FromWorker) {
        let bytes = proto::WorkerMessage {
            message: Some(message),
        }
        .encode_to_vec();
        self.socket
            .send(Frame::Binary(bytes.into()))
            .await
            .expect("the connection is open");
    }

    /// The next message; none when the server has closed the connection.
    pub async fn try_receive(&mut self) -> Option<ToWorker> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.socket.next())
                .await
                .expect("a message in time");
            match frame {
                Some(Ok(Frame::Binary(bytes))) => {
                    return proto::ServerMessage::decode(bytes)
                        .expect("a server message")
                        .message;
                }
                Some(Ok(Frame::Ping(_) | Frame::Pong(_))) => {}
                Some(Ok(Frame::Close(_)) | Err(_)) | None => return None,
                Some(Ok(other)) => panic!("unexpected frame {other:?}"),
            }
        }
    }

    pub async fn receive(&mut self) -> ToWorker {
        self.try_receive().await.expect("the connection is open")
    }

    /// The next message, which has to be a question about a job.
    pub async fn asked(&mut self) -> proto::Job {
        match self.receive().await {
            ToWorker::Availability(request) => request.job.expect("the question names a job"),
            other => panic!("expected to be asked about a job, got {other:?}"),
        }
    }

    /// The next message, which has to be an assignment.
    pub async fn assigned(&mut self) -> proto::JobAssignment {
        match self.receive().await {
            ToWorker::Assignment(assignment) => assignment,
            other => panic!("expected an assignment, got {other:?}"),
        }
    }

    /// The next message, which has to be the end of a job.
    pub async fn terminated(&mut self) -> String {
        match self.receive().await {
            ToWorker::Termination(termination) => termination.job_id,
            other => panic!("expected a termination, got {other:?}"),
        }
    }

    /// Fails if the server has sent anything before it answered this ping.
    pub async fn silence(&mut self) {
        self.send(FromWorker::Ping(proto::WorkerPing { timestamp: 7 }))
            .await;
        match self.receive().await {
            ToWorker::Pong(pong) => assert_eq!(pong.last_timestamp, 7),
            other => panic!("expected nothing but the answer to the ping, got {other:?}"),
        }
    }

    /// Accepts a job and waits until it is assigned.
    pub async fn accept(&mut self, job: &proto::Job) -> proto::JobAssignment {
        self.send(answer(job, true)).await;
        self.assigned().await
    }
}

pub(crate) fn register_request(agent_name: &str, job_type: proto::JobType) -> FromWorker {
    FromWorker::Register(proto::RegisterWorkerRequest {
        agent_name: agent_name.to_owned(),
        r#type: job_type.into(),
        version: "test".into(),
        allowed_permissions: Some(proto::ParticipantPermission {
            can_publish: true,
            can_subscribe: true,
            can_publish_data: true,
            can_update_metadata: true,
            ..Default::default()
        }),
        ..Default::default()
    })
}

pub(crate) fn answer(job: &proto::Job, available: bool) -> FromWorker {
    FromWorker::Availability(proto::AvailabilityResponse {
        job_id: job.id.clone(),
        available,
        participant_identity: format!("agent-{}", job.id),
        participant_name: "Ann".into(),
        ..Default::default()
    })
}

pub(crate) fn load(load: f32, status: proto::WorkerStatus) -> FromWorker {
    FromWorker::UpdateWorker(proto::UpdateWorkerStatus {
        status: Some(status.into()),
        load,
        job_count: 0,
        ..Default::default()
    })
}

pub(crate) fn job_status(job_id: &str, status: proto::JobStatus) -> FromWorker {
    FromWorker::UpdateJob(proto::UpdateJobStatus {
        job_id: job_id.to_owned(),
        status: status.into(),
        error: String::new(),
    })
}

/// A dispatch made over the API; returns its id.
pub(crate) async fn dispatch(server: &RoomServer, room: &str, agent_name: &str) -> String {
    let request = json!({ "room": room, "agent_name": agent_name, "metadata": "{\"lead\":1}" });
    let answer = call_ok(server, room, "AgentDispatchService/CreateDispatch", request).await;
    answer["id"]
        .as_str()
        .expect("a dispatch has an id")
        .to_owned()
}
