"""Joining and leaving, the reasons for it, and the server API (livekit-api) seen by clients in the room."""

import asyncio
import base64
import datetime
import json
import time
import uuid

import aiohttp
import pytest
from livekit import api, rtc

from client import DEADLINE_S, Client
from signalling import Signalling, token

pytestmark = pytest.mark.conformance


async def test_joining_takes_well_under_a_second_and_tells_who_is_there(join, room_name):
    first = await join("alice", name="Alice")
    started = time.monotonic()
    bob = await join("bob")
    took_s = time.monotonic() - started
    # Alone on a quiet machine it takes 60 ms; the limit leaves room for a busy one.
    assert took_s < 3, f"joining took {took_s:.3f} s"
    assert bob.room.name == room_name
    assert (await bob.room.sid).startswith("RM_")
    assert bob.room.local_participant.sid.startswith("PA_")
    assert (await bob.sees("alice")).name == "Alice"
    await first.event("participant_connected", lambda participant: participant.identity == "bob")


async def test_a_leaver_is_announced_with_the_reason(join):
    alice, bob = await join("alice"), await join("bob")
    await alice.sees("bob")
    await bob.room.disconnect()
    (participant,) = await alice.event("participant_disconnected", lambda participant: participant.identity == "bob")
    assert participant.disconnect_reason == rtc.DisconnectReason.CLIENT_INITIATED
    assert "bob" not in alice.room.remote_participants


async def test_a_deleted_room_disconnects_everyone_with_that_reason(join, lk, room_name):
    clients = [await join("alice"), await join("bob")]
    await lk.room.delete_room(api.DeleteRoomRequest(room=room_name))
    for client in clients:
        (reason,) = await client.event("disconnected")
        assert reason == rtc.DisconnectReason.ROOM_DELETED
    rooms = await lk.room.list_rooms(api.ListRoomsRequest(names=[room_name]))
    assert not rooms.rooms


async def test_a_removed_participant_is_told_and_the_others_see_it(join, lk, room_name):
    alice, bob = await join("alice"), await join("bob")
    await alice.sees("bob")
    await lk.room.remove_participant(api.RoomParticipantIdentity(room=room_name, identity="bob"))
    (reason,) = await bob.event("disconnected")
    assert reason == rtc.DisconnectReason.PARTICIPANT_REMOVED
    await alice.event("participant_disconnected", lambda participant: participant.identity == "bob")


async def test_the_same_identity_joining_again_displaces_the_first(join):
    first = await join("alice")
    second = await join("alice")
    (reason,) = await first.event("disconnected")
    assert reason == rtc.DisconnectReason.DUPLICATE_IDENTITY
    assert second.room.isconnected()


@pytest.mark.parametrize(
    "spoil", [lambda token: token[:-3] + "abc", lambda token: "", lambda token: "not.a.token"], ids=["signature", "empty", "junk"]
)
async def test_a_wrong_token_is_refused(server, room_name, spoil):
    client = Client(server, room_name, "mallory")
    with pytest.raises(rtc.ConnectError):
        await asyncio.wait_for(client.room.connect(server.url, spoil(client.token())), 20)


async def test_a_token_without_the_right_to_join_is_refused(server, room_name):
    token = api.AccessToken(server.key, server.secret).with_identity("mallory")
    token = token.with_grants(api.VideoGrants(room_join=False, room=room_name)).to_jwt()
    with pytest.raises(rtc.ConnectError):
        await asyncio.wait_for(rtc.Room().connect(server.url, token), 20)


async def test_a_room_is_made_listed_described_and_deleted(lk, room_name):
    made = await lk.room.create_room(
        api.CreateRoomRequest(name=room_name, empty_timeout=60, departure_timeout=7, max_participants=5, metadata="m")
    )
    assert made.sid.startswith("RM_")
    assert (made.name, made.empty_timeout, made.departure_timeout, made.metadata) == (room_name, 60, 7, "m")
    listed = await lk.room.list_rooms(api.ListRoomsRequest(names=[room_name]))
    assert [room.sid for room in listed.rooms] == [made.sid]
    again = await lk.room.create_room(api.CreateRoomRequest(name=room_name))
    assert again.sid == made.sid
    await lk.room.delete_room(api.DeleteRoomRequest(room=room_name))
    assert not (await lk.room.list_rooms(api.ListRoomsRequest(names=[room_name]))).rooms


async def test_a_room_refuses_more_than_its_maximum(join, lk, room_name):
    await lk.room.create_room(api.CreateRoomRequest(name=room_name, max_participants=1))
    await join("alice")
    with pytest.raises(rtc.ConnectError):
        await join("bob")


async def test_participants_are_listed_with_their_tracks(join, lk, room_name):
    alice = await join("alice", name="Alice")
    await join("bob")
    mic = await alice.speak(440)
    # A published track may show up in the list a moment after its publisher knows of it.
    deadline = time.monotonic() + DEADLINE_S
    while True:
        listed = await lk.room.list_participants(api.ListParticipantsRequest(room=room_name))
        by_identity = {participant.identity: participant for participant in listed.participants}
        assert set(by_identity) == {"alice", "bob"}
        if by_identity["alice"].tracks or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.1)
    assert by_identity["alice"].name == "Alice"
    assert by_identity["alice"].state == api.ParticipantInfo.State.ACTIVE
    assert [track.sid for track in by_identity["alice"].tracks] == [mic.publication.sid]
    assert by_identity["alice"].tracks[0].source == api.TrackSource.MICROPHONE
    one = await lk.room.get_participant(api.RoomParticipantIdentity(room=room_name, identity="bob"))
    assert one.sid == by_identity["bob"].sid
    assert one.joined_at > 0


async def test_what_is_not_there_is_answered_with_not_found(lk, room_name):
    with pytest.raises(api.TwirpError) as missing:
        await lk.room.get_participant(api.RoomParticipantIdentity(room=room_name, identity="nobody"))
    assert (missing.value.code, missing.value.status) == ("not_found", 404)


async def test_server_calls_with_a_wrong_key_are_refused(server):
    async with api.LiveKitAPI(server.http, server.key, "not-the-secret-not-the-secret-not") as wrong:
        with pytest.raises(api.TwirpError) as refused:
            await wrong.room.list_rooms(api.ListRoomsRequest())
        assert refused.value.status == 401


async def test_the_server_changes_metadata_and_attributes(join, lk, room_name):
    alice, bob = await join("alice"), await join("bob")
    await lk.room.update_room_metadata(api.UpdateRoomMetadataRequest(room=room_name, metadata="room m"))
    await alice.event("room_metadata_changed", lambda old, new: new == "room m")
    await lk.room.update_participant(
        api.UpdateParticipantRequest(
            room=room_name, identity="bob", metadata="bob m", name="Robert", attributes={"tier": "gold"}
        )
    )
    await alice.event("participant_metadata_changed", lambda participant, old, new: new == "bob m")
    seen = await alice.sees("bob")
    await alice.until("bob's new name and attribute", lambda: (seen.name, seen.attributes.get("tier")) == ("Robert", "gold"))
    me = bob.room.local_participant
    await bob.until("its own metadata", lambda: (me.metadata, me.attributes.get("tier")) == ("bob m", "gold"))


async def test_the_server_sends_data(join, lk, room_name):
    alice, bob = await join("alice"), await join("bob")
    await bob.data_channel_is_open(alice)
    await alice.data_channel_is_open(bob)
    await lk.room.send_data(
        api.SendDataRequest(
            room=room_name,
            data=b"for bob",
            kind=rtc.DataPacketKind.KIND_RELIABLE,
            destination_identities=["bob"],
            topic="news",
        )
    )
    await lk.room.send_data(api.SendDataRequest(room=room_name, data=b"for all", kind=rtc.DataPacketKind.KIND_RELIABLE))
    (packet,) = await bob.event("data_received", lambda packet: packet.data == b"for bob")
    assert (packet.topic, packet.participant) == ("news", None)
    await alice.event("data_received", lambda packet: packet.data == b"for all")
    assert b"for bob" not in [args[0].data for event, args in alice.events if event == "data_received"]


async def test_the_server_mutes_a_track(join, lk, room_name):
    alice, bob = await join("alice"), await join("bob")
    mic = await alice.speak(440)
    await bob.recorder("alice")
    await lk.room.mute_published_track(
        api.MuteRoomTrackRequest(room=room_name, identity="alice", track_sid=mic.publication.sid, muted=True)
    )
    await bob.event("track_muted", lambda participant, publication: participant.identity == "alice")


async def test_a_hidden_participant_is_not_seen(join):
    alice = await join("alice")
    await join("spy", hidden=True)
    await join("bob")
    await alice.sees("bob")
    assert "spy" not in alice.room.remote_participants


async def test_who_may_not_publish_data_is_not_heard(join):
    alice, bob = await join("alice"), await join("bob", can_publish_data=False)
    await bob.sees("alice")
    try:
        await bob.room.local_participant.publish_data(b"forbidden")
    except rtc.PublishDataError:
        pass
    # Whatever bob sent would have come before this.
    carol = await join("carol")
    await carol.sees("alice")
    await carol.room.local_participant.publish_data(b"allowed")
    await alice.event("data_received", lambda packet: packet.data == b"allowed")
    assert [args[0].data for event, args in alice.events if event == "data_received"] == [b"allowed"]


async def test_a_client_survives_the_loss_of_its_signal_connection(join):
    alice, bob = await join("alice"), await join("bob")
    await alice.speak(440)
    assert await (await bob.recorder("alice")).hears_tone(440)
    scenario = rtc.SimulateScenarioKind.SIMULATE_SIGNAL_RECONNECT
    await bob.room.simulate_scenario(scenario)
    await bob.event("reconnected", deadline_s=30)
    recorder = bob.recorders["alice"]
    recorder.pcm = recorder.pcm[:0]
    assert await recorder.hears_tone(440), f"share of 440 Hz was {recorder.best:.3f} after the resume"
    await alice.sees("bob")
    await alice.room.local_participant.publish_data(b"after")
    await bob.event("data_received", lambda packet: packet.data == b"after")


async def test_a_client_survives_a_full_reconnect(join):
    alice, bob = await join("alice"), await join("bob")
    await alice.speak(440)
    await bob.recorder("alice")
    bob.recorders.clear()
    await bob.room.simulate_scenario(rtc.SimulateScenarioKind.SIMULATE_FULL_RECONNECT)
    await bob.event("reconnected", deadline_s=30)
    recorder = await bob.recorder("alice")
    assert await recorder.hears_tone(440), f"share of 440 Hz was {recorder.best:.3f} after the reconnect"


async def refusal(call) -> tuple[str, int]:
    """The code and the HTTP status that a call is refused with."""
    with pytest.raises(api.TwirpError) as refused:
        await call
    return refused.value.code, refused.value.status


def service_token(server, **grants) -> str:
    access = api.AccessToken(server.key, server.secret).with_ttl(datetime.timedelta(minutes=10))
    return access.with_grants(api.VideoGrants(**grants)).to_jwt()


async def twirp(server, method: str, body, jwt: str | None, content_type: str = "application/json", verb: str = "POST"):
    """A call without the official library: the status and the JSON of the answer."""
    headers = {"Content-Type": content_type}
    if jwt is not None:
        headers["Authorization"] = f"Bearer {jwt}"
    async with aiohttp.ClientSession() as http:
        async with http.request(verb, f"{server.http}/twirp/livekit.{method}", data=body, headers=headers) as response:
            return response.status, await response.json(content_type=None)


ROOM_CALLS = {
    "CreateRoom": '{"name": "%s"}',
    "ListRooms": "{}",
    "DeleteRoom": '{"room": "%s"}',
    "ListParticipants": '{"room": "%s"}',
    "GetParticipant": '{"room": "%s", "identity": "alice"}',
    "RemoveParticipant": '{"room": "%s", "identity": "alice"}',
    "MutePublishedTrack": '{"room": "%s", "identity": "alice", "track_sid": "TR_1", "muted": true}',
    "UpdateParticipant": '{"room": "%s", "identity": "alice", "name": "Alice"}',
    "UpdateSubscriptions": '{"room": "%s", "identity": "alice", "track_sids": ["TR_1"]}',
    "SendData": '{"room": "%s", "data": "aGk="}',
    "UpdateRoomMetadata": '{"room": "%s", "metadata": "m"}',
}


@pytest.mark.parametrize("method", ROOM_CALLS)
async def test_a_call_needs_the_grant_for_it(server, room_name, method):
    body = ROOM_CALLS[method].replace("%s", room_name)
    # Everything but what is needed: the room of another, or the right to join alone.
    creates = method in ("CreateRoom", "ListRooms", "DeleteRoom")
    wrong = {"room_admin": True, "room": room_name} if creates else {"room_admin": True, "room": "another", "room_create": True}
    for jwt in (None, token(server, "alice", room_name).to_jwt(), service_token(server, **wrong)):
        code, answer = await twirp(server, f"RoomService/{method}", body, jwt)
        assert (code, answer["code"]) == (401, "unauthenticated")


async def test_calls_are_made_in_json_with_the_names_of_the_protocol(server, room_name):
    jwt = service_token(server, room_create=True, room_list=True)
    # Both spellings are read, the protocol's own is written; 64-bit numbers are strings.
    code, made = await twirp(server, "RoomService/CreateRoom", f'{{"name": "{room_name}", "emptyTimeout": 60}}', jwt)
    assert code == 200
    assert (made["empty_timeout"], made["sid"][:3]) == (60, "RM_")
    assert int(made["creation_time"]) > 0 and isinstance(made["creation_time"], str)
    code, listed = await twirp(server, "RoomService/ListRooms", f'{{"names": ["{room_name}"]}}', jwt)
    assert [room["name"] for room in listed["rooms"]] == [room_name]


@pytest.mark.parametrize(
    "change, status, code",
    [
        ({"verb": "GET"}, 404, "bad_route"),
        ({"content_type": "text/plain"}, 404, "bad_route"),
        ({"body": "{"}, 400, "malformed"),
        ({"method": "RoomService/NoSuchMethod"}, 404, "bad_route"),
    ],
    ids=["verb", "content-type", "body", "method"],
)
async def test_a_malformed_call_is_refused(server, change, status, code):
    call = {"method": "RoomService/ListRooms", "body": "{}", **change}
    answer = await twirp(server, jwt=service_token(server, room_list=True), **call)
    assert (answer[0], answer[1]["code"]) == (status, code)


async def test_a_room_has_the_defaults_of_the_server(lk, room_name):
    room = await lk.room.create_room(api.CreateRoomRequest(name=room_name))
    assert (room.empty_timeout, room.departure_timeout, room.max_participants) == (300, 20, 0)
    assert (room.num_participants, room.num_publishers, room.metadata) == (0, 0, "")
    assert room.creation_time_ms // 1000 == room.creation_time > 0


async def test_what_is_too_long_is_refused(join, lk, room_name):
    await join("alice")
    update = lambda **fields: lk.room.update_participant(
        api.UpdateParticipantRequest(room=room_name, identity="alice", **fields)
    )
    long = "m" * (512 * 1024 + 1)
    create = lambda **fields: lk.room.create_room(api.CreateRoomRequest(**fields))
    assert await refusal(create(name=room_name + "-long", metadata=long)) == ("invalid_argument", 400)
    assert await refusal(create(name="r" * 257)) == ("invalid_argument", 400)
    metadata = api.UpdateRoomMetadataRequest(room=room_name, metadata=long)
    assert await refusal(lk.room.update_room_metadata(metadata)) == ("invalid_argument", 400)
    assert await refusal(update(metadata=long)) == ("invalid_argument", 400)
    assert await refusal(update(name="n" * 257)) == ("invalid_argument", 400)
    assert await refusal(update(attributes={"a": "v" * 64 * 1024})) == ("invalid_argument", 400)


async def test_calls_about_a_room_that_is_not_there(lk):
    name = f"missing-{uuid.uuid4().hex[:8]}"
    nobody = api.RoomParticipantIdentity(room=name, identity="nobody")
    not_found = ("not_found", 404)
    assert await refusal(lk.room.delete_room(api.DeleteRoomRequest(room=name))) == not_found
    metadata = api.UpdateRoomMetadataRequest(room=name, metadata="m")
    assert await refusal(lk.room.update_room_metadata(metadata)) == not_found
    assert await refusal(lk.room.get_participant(nobody)) == not_found
    assert await refusal(lk.room.remove_participant(nobody)) == not_found
    update = api.UpdateParticipantRequest(room=name, identity="nobody", name="n")
    assert await refusal(lk.room.update_participant(update)) == not_found
    listed = await lk.room.list_participants(api.ListParticipantsRequest(room=name))
    assert list(listed.participants) == []
    await nobody_answers(lk, name)


async def nobody_answers(lk, room_name: str):
    """What is passed on to whoever holds the participant finds nobody."""
    unavailable = ("unavailable", 503)
    mute = api.MuteRoomTrackRequest(room=room_name, identity="nobody", track_sid="TR_1", muted=True)
    assert await refusal(lk.room.mute_published_track(mute)) == unavailable
    subscriptions = api.UpdateSubscriptionsRequest(room=room_name, identity="nobody", track_sids=["TR_1"])
    assert await refusal(lk.room.update_subscriptions(subscriptions)) == unavailable


async def test_calls_about_a_participant_that_is_not_there(join, lk, room_name):
    await join("alice")
    nobody = api.RoomParticipantIdentity(room=room_name, identity="nobody")
    not_found = ("not_found", 404)
    assert await refusal(lk.room.get_participant(nobody)) == not_found
    assert await refusal(lk.room.remove_participant(nobody)) == not_found
    update = api.UpdateParticipantRequest(room=room_name, identity="nobody", name="n")
    assert await refusal(lk.room.update_participant(update)) == not_found
    await nobody_answers(lk, room_name)


async def test_data_for_a_room_that_is_not_there_finds_nobody(lk):
    request = api.SendDataRequest(room=f"missing-{uuid.uuid4().hex[:8]}", data=b"hello")
    assert await refusal(lk.room.send_data(request)) == ("unavailable", 503)


async def test_a_room_counts_its_participants_and_publishers(server, join, lk, room_name):
    alice = await join("alice")
    await join("bob")
    await join("spy", hidden=True)
    await alice.speak(440)
    agent = await Signalling(server, token(server, "agent", room_name).with_kind("agent").to_jwt()).join()
    # Agents do not count, hidden participants do; the numbers follow within some seconds.
    counts, end = None, time.monotonic() + DEADLINE_S
    while counts != (3, 1) and time.monotonic() < end:
        await asyncio.sleep(0.2)
        (room,) = (await lk.room.list_rooms(api.ListRoomsRequest(names=[room_name]))).rooms
        counts = (room.num_participants, room.num_publishers)
    assert counts == (3, 1)
    await agent.close()


async def test_a_room_that_nobody_enters_ends_after_its_time(lk, room_name):
    await lk.room.create_room(api.CreateRoomRequest(name=room_name, empty_timeout=1))
    await room_ends(lk, room_name)


async def room_ends(lk, room_name: str):
    end = time.monotonic() + 60
    while (await lk.room.list_rooms(api.ListRoomsRequest(names=[room_name]))).rooms:
        assert time.monotonic() < end, f"{room_name} does not end"
        await asyncio.sleep(0.2)


async def test_a_room_with_only_an_agent_in_it_ends_after_the_departure(server, join, lk, room_name):
    await lk.room.create_room(api.CreateRoomRequest(name=room_name, departure_timeout=1))
    agent = await Signalling(server, token(server, "agent", room_name).with_kind("agent").to_jwt()).join()
    caller = await join("caller")
    await caller.room.disconnect()
    leave = await agent.message("leave")
    assert rtc.DisconnectReason.Name(leave.reason) == "ROOM_CLOSED"
    await agent.close()
    await room_ends(lk, room_name)


async def test_an_agent_does_not_count_for_the_maximum(server, join, lk, room_name):
    await lk.room.create_room(api.CreateRoomRequest(name=room_name, max_participants=1))
    agent = await Signalling(server, token(server, "agent", room_name).with_kind("agent").to_jwt()).join()
    await join("alice")
    with pytest.raises(rtc.ConnectError):
        await join("bob")
    await agent.close()


async def test_a_track_cannot_be_unmuted_by_the_server(join, lk, room_name):
    alice, bob = await join("alice"), await join("bob")
    mic = await alice.speak(440)
    await bob.recorder("alice")
    request = lambda **fields: lk.room.mute_published_track(
        api.MuteRoomTrackRequest(**{"room": room_name, "identity": "alice", "track_sid": mic.publication.sid, **fields})
    )
    muted = await request(muted=True)
    assert muted.track.muted and muted.track.sid == mic.publication.sid
    assert await refusal(request(muted=False)) == ("failed_precondition", 412)
    assert await refusal(request(muted=False, track_sid="TR_missing")) == ("failed_precondition", 412)
    # A track that is not there is no error.
    assert not (await request(muted=True, track_sid="TR_missing")).HasField("track")


async def test_the_server_ends_and_begins_subscriptions(join, lk, room_name):
    alice, bob = await join("alice"), await join("bob")
    mic = await alice.speak(440)
    recorder = await bob.recorder("alice")
    assert await recorder.hears_tone(440)
    update = lambda subscribe: lk.room.update_subscriptions(
        api.UpdateSubscriptionsRequest(
            room=room_name, identity="bob", track_sids=[mic.publication.sid], subscribe=subscribe
        )
    )
    await update(False)
    assert await recorder.falls_silent()
    await update(True)
    await bob.until("another recorder", lambda: bob.recorders["alice"] is not recorder or len(recorder.pcm))
    recorder = bob.recorders["alice"]
    assert await recorder.hears_tone(440), f"share of 440 Hz was {recorder.best:.3f}"


async def test_taking_the_right_to_publish_takes_the_tracks(join, lk, room_name):
    alice, bob = await join("alice"), await join("bob")
    await alice.speak(440)
    await bob.recorder("alice")
    permission = api.ParticipantPermission(can_subscribe=True, can_publish=False, can_publish_data=True)
    info = await lk.room.update_participant(
        api.UpdateParticipantRequest(room=room_name, identity="alice", permission=permission)
    )
    assert not info.permission.can_publish and info.permission.can_publish_data
    await bob.event("track_unpublished", lambda publication, participant: participant.identity == "alice")
    await alice.event("participant_permissions_changed")


async def test_taking_the_right_to_subscribe_ends_the_subscriptions(join, lk, room_name):
    alice, bob = await join("alice"), await join("bob")
    await alice.speak(440)
    recorder = await bob.recorder("alice")
    assert await recorder.hears_tone(440)
    permission = api.ParticipantPermission(can_subscribe=False, can_publish=True, can_publish_data=True)
    await lk.room.update_participant(
        api.UpdateParticipantRequest(room=room_name, identity="bob", permission=permission)
    )
    assert await recorder.falls_silent()


async def test_data_of_the_server_with_the_same_nonce_arrives_once(server, join, room_name):
    alice, bob = await join("alice"), await join("bob")
    await bob.data_channel_is_open(alice)
    jwt = service_token(server, room_admin=True, room=room_name)

    async def send(data: bytes, nonce: bytes):
        # The official library makes up a nonce of its own for each call.
        text = lambda content: base64.b64encode(content).decode()
        body = {"room": room_name, "data": text(data), "kind": "RELIABLE", "nonce": text(nonce)}
        return await twirp(server, "RoomService/SendData", json.dumps(body), jwt)

    nonce = uuid.uuid4().bytes
    for data, its_nonce in ((b"once", nonce), (b"once", nonce), (b"end", uuid.uuid4().bytes)):
        assert (await send(data, its_nonce))[0] == 200
    await bob.event("data_received", lambda packet: packet.data == b"end")
    received = [args[0].data for event, args in bob.events if event == "data_received"]
    assert received.count(b"once") == 1
    status, answer = await send(b"short", b"12345")
    assert (status, answer["code"]) == (400, "invalid_argument")


async def test_an_update_of_a_participant_answers_with_what_it_is_now(join, lk, room_name):
    await join("alice")
    update = lambda **fields: lk.room.update_participant(
        api.UpdateParticipantRequest(room=room_name, identity="alice", **fields)
    )
    await update(name="Alice", metadata="m", attributes={"tier": "gold", "gone": "soon"})
    info = await update(attributes={"gone": ""})
    # What a request leaves empty stays as it is; an empty attribute is deleted.
    assert (info.name, info.metadata, dict(info.attributes)) == ("Alice", "m", {"tier": "gold"})


async def test_metadata_of_the_room_is_answered_and_kept(lk, room_name):
    await lk.room.create_room(api.CreateRoomRequest(name=room_name, metadata="old"))
    changed = await lk.room.update_room_metadata(api.UpdateRoomMetadataRequest(room=room_name, metadata="new"))
    assert changed.metadata == "new"
    (listed,) = (await lk.room.list_rooms(api.ListRoomsRequest(names=[room_name]))).rooms
    assert listed.metadata == "new"
