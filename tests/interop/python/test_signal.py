"""What the server says on the signal connection, to a client that is not the official one."""

import base64
import gzip
import json
import time

import aiohttp
import jwt as jsonwebtoken
import pytest
import pytest_asyncio
from livekit import api
from livekit.protocol import models
from livekit.protocol import rtc as protocol

from signalling import Signalling, join_request, token

pytestmark = pytest.mark.conformance


@pytest_asyncio.fixture
async def enter(server, room_name):
    """`await enter("alice")` signals into this test's room; everyone is cut off at the end."""
    clients: list[Signalling] = []

    async def join(identity: str, path: str = "/rtc", query: dict | None = None, **grants) -> Signalling:
        client = Signalling(server, token(server, identity, room_name, **grants).to_jwt(), path, **(query or {}))
        await client.join()
        clients.append(client)
        return client

    yield join
    for client in clients:
        await client.close()


async def status(server, path: str, jwt: str | None, **query) -> tuple[int, str, str | None]:
    """What a plain request is answered with: status, body, and which pages may read it."""
    headers = {"Authorization": f"Bearer {jwt}"} if jwt is not None else {}
    async with aiohttp.ClientSession() as http:
        async with http.get(server.http + path, params=query, headers=headers) as response:
            return response.status, await response.text(), response.headers.get("Access-Control-Allow-Origin")


def signed(server, **claims) -> str:
    """A token that the official library would not make."""
    now = int(time.time())
    payload = {"iss": server.key, "nbf": now, "exp": now + 600, **claims}
    return jsonwebtoken.encode(payload, server.secret, algorithm="HS256")


async def refused(server, jwt: str, path: str = "/rtc", **query) -> int:
    client = Signalling(server, jwt, path, **query)
    try:
        await client.open()
    except aiohttp.WSServerHandshakeError as error:
        return error.status
    await client.close()
    pytest.fail("the server lets the client in")


async def test_a_request_without_a_websocket_is_not_found(server, room_name):
    jwt = token(server, "alice", room_name).to_jwt()
    assert (await status(server, "/rtc", jwt))[0] == 404
    assert (await status(server, "/rtc/v1", jwt))[0] == 404


async def test_a_token_can_be_validated_without_joining(server, lk, room_name):
    jwt = token(server, "alice", room_name).to_jwt()
    assert await status(server, "/rtc/validate", jwt) == (200, "success", "*")
    # The token may also stand in the query, as browsers send it.
    assert (await status(server, "/rtc/validate", None, access_token=jwt))[:2] == (200, "success")
    code, _, origin = await status(server, "/rtc/validate", "not.a.token")
    assert (code, origin) == (401, "*")
    assert not (await lk.room.list_rooms(api.ListRoomsRequest(names=[room_name]))).rooms


@pytest.mark.parametrize(
    "claims",
    [{"exp": -3600}, {"nbf": 3600}, {"iss": "unknown-key"}],
    ids=["expired", "not-yet-valid", "unknown-key"],
)
async def test_a_token_at_the_wrong_time_or_of_an_unknown_key_is_refused(server, room_name, claims):
    now = int(time.time())
    shifted = {name: value if isinstance(value, str) else now + value for name, value in claims.items()}
    jwt = signed(server, sub="alice", video={"roomJoin": True, "room": room_name}, **shifted)
    assert await refused(server, jwt) == 401


async def test_a_token_without_any_video_grant_is_refused(server, room_name):
    jwt = api.AccessToken(server.key, server.secret).with_identity("alice").to_jwt()
    assert await refused(server, jwt) == 401


async def test_a_token_must_name_an_identity_and_a_room(server, room_name):
    assert await refused(server, signed(server, video={"roomJoin": True, "room": room_name})) == 400
    assert await refused(server, signed(server, sub="alice", video={"roomJoin": True})) == 400


async def test_names_longer_than_256_bytes_are_refused(server, room_name):
    assert await refused(server, token(server, "a" * 257, room_name).to_jwt()) == 400
    assert await refused(server, token(server, "alice", "r" * 257).to_jwt()) == 400


async def test_attributes_of_the_query_need_the_permission_for_ones_own_metadata(server, room_name):
    attributes = base64.urlsafe_b64encode(b'{"tier": "gold"}').decode()
    jwt = token(server, "alice", room_name, can_update_own_metadata=False).to_jwt()
    assert await refused(server, jwt, attributes=attributes) == 401


async def test_attributes_of_the_query_are_added_to_those_of_the_token(server, room_name):
    attributes = base64.urlsafe_b64encode(json.dumps({"tier": "gold", "kept": "", "new": "1"}).encode()).decode()
    access = token(server, "alice", room_name).with_attributes({"tier": "none", "kept": "yes"})
    alice = await Signalling(server, access.to_jwt(), attributes=attributes).join()
    # An empty value does not delete what the token says.
    assert dict(alice.joined.participant.attributes) == {"tier": "gold", "kept": "yes", "new": "1"}
    await alice.close()


async def test_attributes_that_cannot_be_read_fail_validation_but_not_the_join(server, room_name):
    jwt = token(server, "alice", room_name).to_jwt()
    assert (await status(server, "/rtc/validate", jwt, attributes="!"))[0] == 400
    alice = await Signalling(server, jwt, attributes="!").join()
    assert not alice.joined.participant.attributes
    await alice.close()


async def test_the_single_connection_path_needs_a_join_request(server, room_name):
    jwt = token(server, "alice", room_name).to_jwt()
    assert await refused(server, jwt, "/rtc/v1") == 400
    assert await refused(server, jwt, "/rtc/v1", join_request="!") == 400
    assert (await status(server, "/rtc/v1/validate", jwt, join_request=join_request()))[:2] == (200, "success")


async def test_a_join_request_may_be_compressed_up_to_a_megabyte(server, room_name):
    def wrap(content: bytes) -> str:
        wrapped = protocol.WrappedJoinRequest(
            compression=protocol.WrappedJoinRequest.GZIP, join_request=gzip.compress(content)
        )
        return base64.urlsafe_b64encode(wrapped.SerializeToString()).decode()

    access = token(server, "alice", room_name).to_jwt()
    request = protocol.JoinRequest(metadata="zipped")
    alice = await Signalling(server, access, "/rtc/v1", join_request=wrap(request.SerializeToString())).join()
    assert alice.joined.participant.metadata == "zipped"
    await alice.close()
    assert await refused(server, access, "/rtc/v1", join_request=wrap(bytes((1 << 20) + 1))) == 400


async def test_the_join_response_tells_what_a_client_needs(enter, room_name):
    bob = await enter("bob")
    alice = await enter("alice")
    joined = alice.joined
    assert (joined.room.name, joined.participant.identity) == (room_name, "alice")
    assert joined.room.sid.startswith("RM_") and joined.participant.sid.startswith("PA_")
    # The state is that before this answer; to the others the participant has joined.
    assert joined.participant.state == models.ParticipantInfo.JOINING
    await bob.participant(
        "alice to have joined", lambda info: (info.identity, info.state) == ("alice", models.ParticipantInfo.JOINED)
    )
    assert [other.sid for other in joined.other_participants] == [bob.joined.participant.sid]
    assert (joined.ping_interval, joined.ping_timeout) == (5, 15)
    assert joined.subscriber_primary and joined.fast_publish
    assert joined.server_info.protocol >= 16
    assert "audio/opus" in [codec.mime.lower() for codec in joined.enabled_publish_codecs]
    permission = joined.participant.permission
    assert permission.can_publish and permission.can_subscribe and permission.can_publish_data
    assert (joined.room.empty_timeout, joined.room.departure_timeout) == (300, 20)


async def test_with_one_connection_there_is_no_subscriber_that_comes_first(enter):
    alice = await enter("alice", "/rtc/v1", {"join_request": join_request()})
    assert not alice.joined.subscriber_primary


async def test_who_may_not_subscribe_waits_for_its_publisher_connection(enter):
    alice = await enter("alice", can_subscribe=False)
    assert not alice.joined.subscriber_primary


async def test_pings_are_answered_with_the_time_that_they_carry(enter):
    alice = await enter("alice")
    await alice.send(ping_req=protocol.Ping(timestamp=4711))
    assert (await alice.message("pong_resp")).last_ping_timestamp == 4711
    await alice.send(ping=4712)
    assert await alice.message("pong") > 0


async def test_coming_back_to_a_session_that_is_gone_is_answered_with_join_anew(server, room_name):
    jwt = token(server, "alice", room_name).to_jwt()
    alice = await Signalling(server, jwt, reconnect="1", sid="PA_gone").open()
    leave = await alice.message("leave")
    assert leave.reason == models.STATE_MISMATCH
    assert leave.action == protocol.LeaveRequest.RECONNECT
    await alice.is_closed()
    await alice.close()


async def test_a_track_is_announced_and_given_its_id(enter):
    alice = await enter("alice")
    await alice.send(
        add_track=protocol.AddTrackRequest(
            cid="mic-1", name="mic", type=models.AUDIO, source=models.MICROPHONE, muted=True, disable_dtx=True
        )
    )
    published = await alice.message("track_published")
    assert published.cid == "mic-1"
    assert published.track.sid.startswith("TR_")
    assert (published.track.name, published.track.source) == ("mic", models.MICROPHONE)
    assert (published.track.type, published.track.muted, published.track.disable_dtx) == (models.AUDIO, True, True)


@pytest.mark.parametrize(
    "grants", [{"can_publish": False}, {"can_publish_sources": ["camera"]}], ids=["not-at-all", "not-this-source"]
)
async def test_a_track_that_may_not_be_published_is_refused(enter, grants):
    alice = await enter("alice", **grants)
    await alice.send(add_track=protocol.AddTrackRequest(cid="mic-1", type=models.AUDIO, source=models.MICROPHONE))
    refusal = await alice.message("request_response")
    assert refusal.reason == protocol.RequestResponse.NOT_ALLOWED
    assert refusal.add_track.cid == "mic-1"


async def test_who_leaves_may_say_why(enter):
    alice = await enter("alice")
    for identity, reason in (("busy", models.USER_REJECTED), ("away", models.USER_UNAVAILABLE)):
        client = await enter(identity)
        await client.send(leave=protocol.LeaveRequest(reason=reason))
        gone = await alice.participant(
            f"{identity} to be gone",
            lambda info: info.identity == identity and info.state == models.ParticipantInfo.DISCONNECTED,
        )
        assert gone.disconnect_reason == reason


async def test_changing_ones_own_metadata_needs_the_permission(enter):
    alice, bob = await enter("alice"), await enter("bob", can_update_own_metadata=False)
    update = lambda value: protocol.UpdateParticipantMetadata(attributes={"mood": value}, request_id=7)
    await bob.send(update_metadata=update("bad"))
    refusal = await bob.message("request_response")
    assert (refusal.request_id, refusal.reason) == (7, protocol.RequestResponse.NOT_ALLOWED)
    await alice.send(update_metadata=update("good"))
    await bob.participant("alice's attribute", lambda info: info.attributes.get("mood") == "good")
    answer = await alice.message("request_response")
    assert (answer.request_id, answer.reason) == (7, protocol.RequestResponse.OK)


@pytest.mark.parametrize(
    "update",
    [
        {"metadata": "m" * (512 * 1024 + 1)},
        {"name": "n" * 257},
        {"attributes": {"a": "v" * (64 * 1024)}},
    ],
    ids=["metadata", "name", "attributes"],
)
async def test_ones_own_metadata_has_limits(enter, update):
    alice = await enter("alice")
    await alice.send(update_metadata=protocol.UpdateParticipantMetadata(request_id=8, **update))
    refusal = await alice.message("request_response")
    assert (refusal.request_id, refusal.reason) == (8, protocol.RequestResponse.LIMIT_EXCEEDED)


@pytest.mark.parametrize(
    "update",
    [
        {"metadata": "m" * 512 * 1024},
        {"name": "n" * 256},
        {"attributes": {"a": "v" * (64 * 1024 - 1)}},
    ],
    ids=["metadata", "name", "attributes"],
)
async def test_what_is_just_within_the_limits_is_taken(enter, update):
    alice = await enter("alice")
    await alice.send(update_metadata=protocol.UpdateParticipantMetadata(request_id=9, **update))
    answer = await alice.message("request_response")
    assert (answer.request_id, answer.reason) == (9, protocol.RequestResponse.OK)


async def test_a_changed_participant_gets_a_token_that_says_the_same(enter, server, lk, room_name):
    alice = await enter("alice")
    await lk.room.update_participant(
        api.UpdateParticipantRequest(room=room_name, identity="alice", name="Alice A.", attributes={"tier": "gold"})
    )

    def fresh():
        # There may be one for each thing that changed.
        for jwt in alice.all("refresh_token"):
            claims = api.TokenVerifier(server.key, server.secret).verify(jwt)
            if (claims.name, claims.attributes) == ("Alice A.", {"tier": "gold"}):
                return claims

    claims = await alice.until("a token with the new name and attribute", fresh)
    assert claims.identity == "alice"
    assert claims.video.room_join and claims.video.room == room_name


async def test_a_data_track_is_announced_once_under_its_name_and_handle(enter):
    alice, bob = await enter("alice"), await enter("bob")
    request = lambda handle, name: protocol.PublishDataTrackRequest(pub_handle=handle, name=name)
    await alice.send(publish_data_track_request=request(1, "pose"))
    info = (await alice.message("publish_data_track_response")).info
    assert info.sid.startswith("DTR_") and (info.pub_handle, info.name) == (1, "pose")
    await bob.participant("alice's data track", lambda one: [track.sid for track in one.data_tracks] == [info.sid])
    for handle, name, reason in (
        (1, "other", protocol.RequestResponse.DUPLICATE_HANDLE),
        (2, "pose", protocol.RequestResponse.DUPLICATE_NAME),
        (0, "zero", protocol.RequestResponse.INVALID_HANDLE),
        (3, "", protocol.RequestResponse.INVALID_NAME),
    ):
        await alice.send(publish_data_track_request=request(handle, name))
        await alice.message("request_response", lambda refusal: refusal.reason == reason)
    await alice.send(unpublish_data_track_request=protocol.UnpublishDataTrackRequest(pub_handle=1))
    assert (await alice.message("unpublish_data_track_response")).info.sid == info.sid


async def test_who_may_not_publish_data_may_not_announce_a_data_track(enter):
    alice = await enter("alice", can_publish_data=False)
    await alice.send(publish_data_track_request=protocol.PublishDataTrackRequest(pub_handle=1, name="pose"))
    refusal = await alice.message("request_response")
    assert refusal.reason == protocol.RequestResponse.NOT_ALLOWED


async def test_metadata_of_the_token_and_of_the_join_request(server, room_name, enter):
    access = token(server, "alice", room_name).with_metadata("of the token").with_name("Alice")
    alice = await Signalling(server, access.to_jwt()).join()
    assert (alice.joined.participant.metadata, alice.joined.participant.name) == ("of the token", "Alice")
    await alice.close()
    request = join_request(metadata="of the request", participant_attributes={"tier": "gold"})
    bob = await enter("bob", "/rtc/v1", {"join_request": request})
    assert bob.joined.participant.metadata == "of the request"
    assert dict(bob.joined.participant.attributes) == {"tier": "gold"}


@pytest.mark.parametrize(
    "kind, expected",
    [("agent", models.ParticipantInfo.AGENT), ("sip", models.ParticipantInfo.SIP), ("standard", models.ParticipantInfo.STANDARD)],
)
async def test_a_token_says_what_kind_of_participant_joins(server, room_name, kind, expected):
    alice = await Signalling(server, token(server, "alice", room_name).with_kind(kind).to_jwt()).join()
    assert alice.joined.participant.kind == expected
    await alice.close()


async def test_room_settings_in_the_token_count_when_it_makes_the_room(server, room_name):
    config = api.RoomConfiguration(empty_timeout=61, departure_timeout=7, max_participants=2, metadata="made by a token")
    alice = await Signalling(server, token(server, "alice", room_name).with_room_config(config).to_jwt()).join()
    room = alice.joined.room
    assert (room.empty_timeout, room.departure_timeout, room.max_participants) == (61, 7, 2)
    assert room.metadata == "made by a token"
    other = api.RoomConfiguration(metadata="too late")
    bob = await Signalling(server, token(server, "bob", room_name).with_room_config(other).to_jwt()).join()
    assert bob.joined.room.metadata == "made by a token"
    await alice.close()
    await bob.close()
