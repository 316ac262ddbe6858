"""Joining and leaving, the reasons for it, and the server API (livekit-api) seen by clients in the room."""

import asyncio
import time

import pytest
from livekit import api, rtc

from client import DEADLINE_S, Client


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
    await bob.ear("alice")
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
    assert await (await bob.ear("alice")).hears_tone(440)
    scenario = rtc.SimulateScenarioKind.SIMULATE_SIGNAL_RECONNECT
    await bob.room.simulate_scenario(scenario)
    await bob.event("reconnected", deadline_s=30)
    ear = bob.ears["alice"]
    ear.pcm = ear.pcm[:0]
    assert await ear.hears_tone(440), f"share of 440 Hz was {ear.best:.3f} after the resume"
    await alice.sees("bob")
    await alice.room.local_participant.publish_data(b"after")
    await bob.event("data_received", lambda packet: packet.data == b"after")


async def test_a_client_survives_a_full_reconnect(join):
    alice, bob = await join("alice"), await join("bob")
    await alice.speak(440)
    await bob.ear("alice")
    bob.ears.clear()
    await bob.room.simulate_scenario(rtc.SimulateScenarioKind.SIMULATE_FULL_RECONNECT)
    await bob.event("reconnected", deadline_s=30)
    ear = await bob.ear("alice")
    assert await ear.hears_tone(440), f"share of 440 Hz was {ear.best:.3f} after the reconnect"
