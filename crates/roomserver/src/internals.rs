//! Functions through which fuzz targets reach the server's parsers. Behind the feature `internals`,
//! and not part of the interface.

use axum::http::{HeaderMap, HeaderValue, Method, header};

use crate::{
    room_service,
    rooms::Rooms,
    sdp::Description,
    token::{Claims, Keys, VideoGrants},
    twirp::Call,
};

const METHODS: [&str; 12] = [
    "CreateRoom",
    "ListRooms",
    "DeleteRoom",
    "ListParticipants",
    "GetParticipant",
    "RemoveParticipant",
    "MutePublishedTrack",
    "UpdateParticipant",
    "UpdateSubscriptions",
    "SendData",
    "UpdateRoomMetadata",
    "MoveParticipant",
];

/// A call of the room service with all permissions. The first byte chooses the method and the
/// encoding.
pub fn twirp(data: &[u8]) {
    let Some((what, body)) = data.split_first() else {
        return;
    };
    let keys = Keys::new(vec![("key".to_owned(), "secret".to_owned())]);
    let claims = Claims {
        iss: "key".to_owned(),
        exp: u64::from(u32::MAX),
        video: VideoGrants {
            room_create: true,
            room_list: true,
            room_admin: true,
            room: "room".to_owned(),
            ..VideoGrants::default()
        },
        ..Claims::default()
    };
    let token = keys.sign(&claims).expect("there is a key");
    let encoding = match what >> 7 {
        0 => "application/json",
        _ => "application/protobuf",
    };
    let bearer = HeaderValue::from_str(&format!("Bearer {token}")).expect("a token is ASCII");
    let headers = HeaderMap::from_iter([
        (header::CONTENT_TYPE, HeaderValue::from_static(encoding)),
        (header::AUTHORIZATION, bearer),
    ]);
    let method = METHODS[usize::from(what & 0x7f) % METHODS.len()];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without sockets");
    runtime.block_on(async {
        let rooms = Rooms::new();
        rooms.create("room", Default::default());
        let body = body.to_vec().into();
        let call = Call::new(&keys, &Method::POST, "/twirp", &headers, body);
        if let Ok(call) = call {
            let answer = room_service::serve(&rooms, method, call).await;
            if let Some(answer) = answer {
                assert!(!answer.status().is_server_error() || answer.status() == 501);
            }
        }
    });
}

/// Session descriptions of clients: what is written parses the same, and every change that the
/// server makes to a section leaves a valid one.
pub fn server_sdp(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut description = Description::parse(text);
    let written = description.to_string();
    assert_eq!(Description::parse(&written).to_string(), written);
    description.clear_stream_list();
    for section in &mut description.sections {
        let _ = (section.medium(), section.direction().sends());
        let _ = (section.track_id(), section.mid());
        let direction = section.direction();
        section.set_direction(direction);
        assert_eq!(section.direction(), direction);
        section.set_msid("stream", "track");
        assert_eq!(section.track_id(), Some("track"));
        section.clear_msid();
        section.clear_ssrcs();
        section.add_opus_parameters(&["stereo=1", "usedtx=1"]);
    }
    assert!(
        Description::parse(&description.to_string()).sections.len() == description.sections.len()
    );
}

/// The token that a webhook with this body carries.
#[must_use]
pub fn webhook_token(key: &str, secret: &str, body: &[u8]) -> String {
    let keys = Keys::new(vec![(key.to_owned(), secret.to_owned())]);
    crate::webhooks::sign(&keys, body).expect("there is a key")
}

/// Initial inputs by target.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let call = |method: u8, body: &str| [&[method], body.as_bytes()].concat();
    match target {
        "twirp" => vec![
            call(0, r#"{"name":"room","empty_timeout":30,"max_participants":2,"metadata":"m"}"#),
            call(1, r#"{"names":["room"]}"#),
            call(7, r#"{"room":"room","identity":"a","attributes":{"k":"v"},"permission":{"canPublish":true}}"#),
            call(9, r#"{"room":"room","data":"AAEC","kind":"RELIABLE","destinationIdentities":["a"]}"#),
            call(10, r#"{"room":"room","metadata":"m"}"#),
            [&[0x80][..], b"\x0a\x04room\x10\x1e\x18\x02"].concat(),
        ],
        "server_sdp" => vec![
            b"v=0\r\na=msid-semantic: WMS x\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=sendonly\r\na=msid:s t\r\na=rtpmap:111 opus/48000/2\r\na=fmtp:111 minptime=10;useinbandfec=1\r\na=ssrc:1 msid:s t\r\n".to_vec(),
        ],
        _ => vec![],
    }
}
