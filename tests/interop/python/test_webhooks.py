"""What other servers are told by HTTP, as the official library checks and reads it."""

import pytest
from livekit import api
from livekit.protocol import models

from signalling import Signalling, token

pytestmark = pytest.mark.conformance


async def test_a_call_is_told_from_its_beginning_to_its_end(webhooks, join, lk, room_name):
    alice = await join("alice")
    started = await webhooks.event("room_started")
    assert started.id.startswith("EV_") and started.created_at > 0
    assert started.room.sid.startswith("RM_")
    joined = await webhooks.event("participant_joined")
    # Who has joined is one whose media is connected.
    assert joined.participant.identity == "alice"
    assert joined.participant.state == models.ParticipantInfo.ACTIVE
    assert joined.room.sid == started.room.sid
    mic = await alice.speak(440)
    published = await webhooks.event("track_published")
    assert (published.track.sid, published.participant.identity) == (mic.publication.sid, "alice")
    assert published.track.source == models.MICROPHONE
    await alice.room.local_participant.unpublish_track(mic.publication.sid)
    unpublished = await webhooks.event("track_unpublished")
    assert unpublished.track.sid == mic.publication.sid
    await alice.room.disconnect()
    left = await webhooks.event("participant_left")
    assert left.participant.identity == "alice"
    assert left.participant.disconnect_reason == models.CLIENT_INITIATED
    await lk.room.delete_room(api.DeleteRoomRequest(room=room_name))
    finished = await webhooks.event("room_finished")
    assert finished.room.sid == started.room.sid
    assert len({event.id for event in webhooks.events}) == len(webhooks.events)
    assert webhooks.content_types == {"application/webhook+json"}
    order = [
        "room_started",
        "participant_joined",
        "track_published",
        "track_unpublished",
        "participant_left",
        "room_finished",
    ]
    assert webhooks.names() == order


async def test_who_never_connected_its_media_has_not_joined(webhooks, server, room_name):
    alice = await Signalling(server, token(server, "alice", room_name).to_jwt()).join()
    await alice.send(leave={})
    aborted = await webhooks.event("participant_connection_aborted")
    assert aborted.participant.identity == "alice"
    assert "participant_joined" not in webhooks.names()
    await alice.close()
