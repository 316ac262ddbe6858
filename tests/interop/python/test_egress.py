"""Recordings by the API. The real server passes them on to the egress service, which needs Redis."""

import asyncio
import time

import aiohttp
import pytest
from livekit import api

from signalling import token

pytestmark = pytest.mark.conformance

DEADLINE_S = 60


async def refusal(call) -> tuple[str, int]:
    with pytest.raises(api.TwirpError) as refused:
        await call
    return refused.value.code, refused.value.status


def recording(room_name: str) -> api.RoomCompositeEgressRequest:
    output = api.EncodedFileOutput(file_type=api.EncodedFileType.OGG, filepath=room_name)
    return api.RoomCompositeEgressRequest(room_name=room_name, audio_only=True, file_outputs=[output])


async def reaches(lk, egress_id: str, status):
    end = time.monotonic() + DEADLINE_S
    while True:
        (info,) = (await lk.egress.list_egress(api.ListEgressRequest(egress_id=egress_id))).items
        if info.status == status:
            return info
        assert time.monotonic() < end, f"{egress_id} is {api.EgressStatus.Name(info.status)}"
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("method", ["StartRoomCompositeEgress", "ListEgress", "StopEgress"])
async def test_recording_needs_the_grant_for_it(server, room_name, method):
    jwt = token(server, "alice", room_name, room_admin=True).to_jwt()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {jwt}"}) as http:
        async with http.post(f"{server.http}/twirp/livekit.Egress/{method}", json={}) as response:
            assert response.status == 401
            assert (await response.json())["code"] == "unauthenticated"


async def test_a_room_that_is_not_there_cannot_be_recorded(lk, room_name):
    assert await refusal(lk.egress.start_room_composite_egress(recording(room_name))) == ("not_found", 404)


async def test_recordings_that_are_not_there(needs, lk, room_name):
    needs("redis")
    assert await refusal(lk.egress.stop_egress(api.StopEgressRequest(egress_id="EG_missing"))) == ("not_found", 404)
    listed = await lk.egress.list_egress(api.ListEgressRequest(room_name=room_name))
    assert list(listed.items) == []


async def test_a_recording_goes_from_starting_to_complete(needs, join, lk, room_name):
    needs("egress")
    alice = await join("alice")
    await alice.speak(440)
    started = await lk.egress.start_room_composite_egress(recording(room_name))
    assert started.egress_id.startswith("EG_")
    assert (started.status, started.room_name) == (api.EgressStatus.EGRESS_STARTING, room_name)
    active = await reaches(lk, started.egress_id, api.EgressStatus.EGRESS_ACTIVE)
    assert active.started_at > 0
    in_progress = await lk.egress.list_egress(api.ListEgressRequest(room_name=room_name, active=True))
    assert [info.egress_id for info in in_progress.items] == [started.egress_id]
    stopped = await lk.egress.stop_egress(api.StopEgressRequest(egress_id=started.egress_id))
    assert stopped.status == api.EgressStatus.EGRESS_ENDING
    ended = await reaches(lk, started.egress_id, api.EgressStatus.EGRESS_COMPLETE)
    (file,) = ended.file_results
    assert file.filename.endswith(".ogg") and file.size > 0 and file.duration > 0
    assert ended.ended_at >= ended.started_at
    again = lk.egress.stop_egress(api.StopEgressRequest(egress_id=started.egress_id))
    assert await refusal(again) == ("failed_precondition", 412)
    assert not (await lk.egress.list_egress(api.ListEgressRequest(room_name=room_name, active=True))).items


async def test_a_recording_ends_with_its_room(needs, join, lk, room_name):
    needs("egress")
    alice = await join("alice")
    await alice.speak(440)
    started = await lk.egress.start_room_composite_egress(recording(room_name))
    await reaches(lk, started.egress_id, api.EgressStatus.EGRESS_ACTIVE)
    await lk.room.delete_room(api.DeleteRoomRequest(room=room_name))
    await reaches(lk, started.egress_id, api.EgressStatus.EGRESS_COMPLETE)


async def test_a_recording_in_which_nobody_publishes_is_aborted(needs, lk, room_name):
    needs("egress")
    await lk.room.create_room(api.CreateRoomRequest(name=room_name))
    started = await lk.egress.start_room_composite_egress(recording(room_name))
    await lk.egress.stop_egress(api.StopEgressRequest(egress_id=started.egress_id))
    ended = await reaches(lk, started.egress_id, api.EgressStatus.EGRESS_ABORTED)
    assert (ended.error, ended.error_code) == ("Start signal not received", 412)


async def test_webhooks_tell_of_a_recording(needs, webhooks, join, lk, room_name):
    needs("egress")
    alice = await join("alice")
    await alice.speak(440)
    started = await lk.egress.start_room_composite_egress(recording(room_name))
    assert (await webhooks.event("egress_started")).egress_info.egress_id == started.egress_id
    await reaches(lk, started.egress_id, api.EgressStatus.EGRESS_ACTIVE)
    await lk.egress.stop_egress(api.StopEgressRequest(egress_id=started.egress_id))
    ended = await webhooks.event("egress_ended")
    assert ended.egress_info.status == api.EgressStatus.EGRESS_COMPLETE
    names = webhooks.names()
    assert names.index("egress_started") < names.index("egress_updated") < names.index("egress_ended")
