//! Data tracks: named streams of unreliable frames, on the data channel `_data_track`.
//!
//! A publisher chooses a handle for its track, and every subscriber gets another handle for it; the
//! handle is all that forwarding changes in a packet (livekit-server,
//! `pkg/rtc/datatrack/packet.go`). Nobody is subscribed automatically.

use std::collections::HashMap;

use bytes::Bytes;
use livekit_protocol as proto;
use proto::data_track_subscriber_handles::PublishedDataTrack;
use proto::request_response::Reason;

use crate::ids;

/// Bytes of a packet's fixed header, and the offset of the handle in it.
const HEADER_BYTES: usize = 12;
const HANDLE: std::ops::Range<usize> = 2..4;
const MAX_NAME_BYTES: usize = 256;

/// The data tracks of a room.
#[derive(Debug, Default)]
pub(crate) struct DataTracks {
    tracks: Vec<DataTrack>,
    last_handles: HashMap<String, u16>,
}

#[derive(Debug)]
struct DataTrack {
    publisher_sid: String,
    publisher_identity: String,
    info: proto::DataTrackInfo,
    subscribers: Vec<(String, u16)>,
}

impl DataTracks {
    /// Publishes a participant's track.
    pub fn publish(
        &mut self,
        publisher: &proto::ParticipantInfo,
        request: &proto::PublishDataTrackRequest,
    ) -> Result<proto::DataTrackInfo, Reason> {
        if !publisher
            .permission
            .as_ref()
            .is_some_and(|permission| permission.can_publish_data)
        {
            return Err(Reason::NotAllowed);
        }
        if request.pub_handle == 0 || request.pub_handle > u32::from(u16::MAX) {
            return Err(Reason::InvalidHandle);
        }
        if request.name.is_empty() || request.name.len() > MAX_NAME_BYTES {
            return Err(Reason::InvalidName);
        }
        for track in self
            .tracks
            .iter()
            .filter(|track| track.publisher_sid == publisher.sid)
        {
            if track.info.pub_handle == request.pub_handle {
                return Err(Reason::DuplicateHandle);
            }
            if track.info.name == request.name {
                return Err(Reason::DuplicateName);
            }
        }
        let info = proto::DataTrackInfo {
            pub_handle: request.pub_handle,
            sid: ids::new_id(ids::DATA_TRACK),
            name: request.name.clone(),
            encryption: request.encryption,
            frame_encoding: request.frame_encoding.clone(),
            schema: request.schema.clone(),
        };
        self.tracks.push(DataTrack {
            publisher_sid: publisher.sid.clone(),
            publisher_identity: publisher.identity.clone(),
            info: info.clone(),
            subscribers: Vec::new(),
        });
        Ok(info)
    }

    /// Ends a participant's track. Returns it and its subscribers.
    pub fn unpublish(
        &mut self,
        publisher_sid: &str,
        handle: u32,
    ) -> Option<(proto::DataTrackInfo, Vec<String>)> {
        let position = self.tracks.iter().position(|track| {
            track.publisher_sid == publisher_sid && track.info.pub_handle == handle
        })?;
        let track = self.tracks.remove(position);
        Some((
            track.info,
            track.subscribers.into_iter().map(|(sid, _)| sid).collect(),
        ))
    }

    /// The tracks of a participant.
    pub fn of(&self, publisher_sid: &str) -> Vec<proto::DataTrackInfo> {
        let own = self
            .tracks
            .iter()
            .filter(|track| track.publisher_sid == publisher_sid);
        own.map(|track| track.info.clone()).collect()
    }

    /// Removes a participant as publisher and as subscriber.
    pub fn forget(&mut self, sid: &str) {
        self.tracks.retain(|track| track.publisher_sid != sid);
        for track in &mut self.tracks {
            track
                .subscribers
                .retain(|(subscriber, _)| subscriber != sid);
        }
        self.last_handles.remove(sid);
    }

    /// Begins or ends a subscription; returns whether that was a change.
    pub fn subscribe(&mut self, subscriber_sid: &str, track_sid: &str, subscribe: bool) -> bool {
        let Some(track) = self
            .tracks
            .iter_mut()
            .find(|track| track.info.sid == track_sid)
        else {
            return false;
        };
        let position = track
            .subscribers
            .iter()
            .position(|(sid, _)| sid == subscriber_sid);
        match (subscribe, position) {
            (true, None) if track.publisher_sid != subscriber_sid => {
                let last = self
                    .last_handles
                    .entry(subscriber_sid.to_owned())
                    .or_default();
                // Zero is not a valid handle.
                *last = last.checked_add(1).unwrap_or(1);
                track.subscribers.push((subscriber_sid.to_owned(), *last));
                true
            }
            (false, Some(position)) => {
                track.subscribers.swap_remove(position);
                true
            }
            _ => false,
        }
    }

    /// The handles of a subscriber's tracks, for a message to it.
    pub fn handles(&self, subscriber_sid: &str) -> proto::DataTrackSubscriberHandles {
        let mut sub_handles = HashMap::new();
        for track in &self.tracks {
            for (_, handle) in track
                .subscribers
                .iter()
                .filter(|(sid, _)| sid == subscriber_sid)
            {
                let published = PublishedDataTrack {
                    publisher_identity: track.publisher_identity.clone(),
                    publisher_sid: track.publisher_sid.clone(),
                    track_sid: track.info.sid.clone(),
                };
                sub_handles.insert(u32::from(*handle), published);
            }
        }
        proto::DataTrackSubscriberHandles { sub_handles }
    }

    /// A packet for each subscriber of the track whose handle it has.
    pub fn relay(&self, publisher_sid: &str, packet: &[u8]) -> Vec<(&str, Bytes)> {
        if packet.len() < HEADER_BYTES {
            return Vec::new();
        }
        let handle = u32::from(u16::from_be_bytes([
            packet[HANDLE.start],
            packet[HANDLE.start + 1],
        ]));
        let track = self
            .tracks
            .iter()
            .find(|track| track.publisher_sid == publisher_sid && track.info.pub_handle == handle);
        let subscribers = track.into_iter().flat_map(|track| &track.subscribers);
        subscribers
            .map(|(sid, handle)| {
                let mut renamed = packet.to_vec();
                renamed[HANDLE].copy_from_slice(&handle.to_be_bytes());
                (sid.as_str(), Bytes::from(renamed))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publisher() -> proto::ParticipantInfo {
        proto::ParticipantInfo {
            sid: "PA_pub".into(),
            identity: "publisher".into(),
            permission: Some(proto::ParticipantPermission {
                can_publish_data: true,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn request(handle: u32, name: &str) -> proto::PublishDataTrackRequest {
        proto::PublishDataTrackRequest {
            pub_handle: handle,
            name: name.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_packet_reaches_subscribers_under_their_own_handles() {
        let mut tracks = DataTracks::default();
        let first = tracks
            .publish(&publisher(), &request(7, "first"))
            .expect("it is allowed");
        let second = tracks
            .publish(&publisher(), &request(8, "second"))
            .expect("it is allowed");
        assert!(tracks.subscribe("PA_sub", &first.sid, true));
        assert!(tracks.subscribe("PA_sub", &second.sid, true));
        assert!(
            !tracks.subscribe("PA_sub", &second.sid, true),
            "once is enough"
        );
        assert_eq!(
            tracks.handles("PA_sub").sub_handles[&2].track_sid,
            second.sid
        );

        let mut packet = vec![0; 20];
        packet[3] = 8;
        let relayed = tracks.relay("PA_pub", &packet);
        assert_eq!(relayed.len(), 1);
        assert_eq!((relayed[0].0, relayed[0].1[3]), ("PA_sub", 2));
        assert!(
            tracks.relay("PA_pub", &packet[..11]).is_empty(),
            "too short for a header"
        );

        tracks.forget("PA_sub");
        assert!(tracks.relay("PA_pub", &packet).is_empty());
    }

    #[test]
    fn names_and_handles_are_unique_and_need_permission() {
        let mut tracks = DataTracks::default();
        tracks
            .publish(&publisher(), &request(1, "one"))
            .expect("it is allowed");
        assert_eq!(
            tracks.publish(&publisher(), &request(1, "two")),
            Err(Reason::DuplicateHandle)
        );
        assert_eq!(
            tracks.publish(&publisher(), &request(2, "one")),
            Err(Reason::DuplicateName)
        );
        assert_eq!(
            tracks.publish(&publisher(), &request(0, "zero")),
            Err(Reason::InvalidHandle)
        );
        assert_eq!(
            tracks.publish(&publisher(), &request(3, "")),
            Err(Reason::InvalidName)
        );
        let mut mute = publisher();
        mute.permission = None;
        assert_eq!(
            tracks.publish(&mute, &request(4, "four")),
            Err(Reason::NotAllowed)
        );
        assert_eq!(tracks.of("PA_pub").len(), 1);
    }
}
