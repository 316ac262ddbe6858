"""Two official clients hear each other through the server."""

import numpy as np
import pytest

pytestmark = pytest.mark.conformance


async def test_two_callers_hear_each_others_tone(join):
    alice, bob = await join("alice"), await join("bob")
    await alice.speak(440)
    await bob.speak(1000)
    heard_by_bob, heard_by_alice = await bob.recorder("alice"), await alice.recorder("bob")
    assert await heard_by_bob.hears_tone(440), f"share of 440 Hz was {heard_by_bob.best:.3f}"
    assert await heard_by_alice.hears_tone(1000), f"share of 1000 Hz was {heard_by_alice.best:.3f}"


async def test_three_callers_hear_two_each(join):
    tones = {"alice": 400, "bob": 900, "carol": 1500}
    clients = {identity: await join(identity) for identity in tones}
    for identity, frequency_hz in tones.items():
        await clients[identity].speak(frequency_hz)
    for listener, client in clients.items():
        for speaker, frequency_hz in tones.items():
            if speaker != listener:
                recorder = await client.recorder(speaker)
                assert await recorder.hears_tone(frequency_hz), f"{listener} hears {speaker} at {recorder.best:.3f}"


async def test_a_late_joiner_hears_a_track_that_was_there_before(join):
    alice = await join("alice")
    await alice.speak(440)
    bob = await join("bob")
    assert "alice" in bob.room.remote_participants
    recorder = await bob.recorder("alice")
    assert await recorder.hears_tone(440), f"share of 440 Hz was {recorder.best:.3f}"


@pytest.mark.parametrize("options", [{"dtx": True}, {"dtx": False}, {"red": True}, {"red": False}], ids=str)
async def test_opus_is_heard_however_it_is_published(join, options):
    alice, bob = await join("alice"), await join("bob")
    await alice.speak(440, **options)
    recorder = await bob.recorder("alice")
    assert await recorder.hears_tone(440), f"share of 440 Hz was {recorder.best:.3f}"


async def test_muting_is_announced_and_silences(join):
    alice, bob = await join("alice"), await join("bob")
    mic = await alice.speak(440)
    recorder = await bob.recorder("alice")
    assert await recorder.hears_tone(440)
    mic.publication.track.mute()
    await bob.event("track_muted", lambda participant, publication: participant.identity == "alice")
    assert await recorder.hears(lambda pcm: np.abs(pcm).max() < 50, 0.5)
    mic.publication.track.unmute()
    await bob.event("track_unmuted", lambda participant, publication: participant.identity == "alice")
    assert await recorder.hears_tone(440)


async def test_unpublishing_takes_the_track_away_and_another_can_follow(join):
    alice, bob = await join("alice"), await join("bob")
    mic = await alice.speak(440)
    assert await (await bob.recorder("alice")).hears_tone(440)
    await alice.room.local_participant.unpublish_track(mic.publication.sid)
    await bob.event("track_unpublished", lambda publication, participant: participant.identity == "alice")
    await mic.stop()
    await bob.recorders.pop("alice").stop()
    await alice.speak(1000)
    recorder = await bob.recorder("alice")
    assert await recorder.hears_tone(1000), f"share of 1000 Hz was {recorder.best:.3f}"


async def test_without_auto_subscribe_a_track_is_heard_only_when_asked_for(join):
    alice, bob = await join("alice"), await join("bob", auto_subscribe=False)
    await alice.speak(440)
    publication, _ = await bob.event("track_published")
    assert "alice" not in bob.recorders
    publication.set_subscribed(True)
    recorder = await bob.recorder("alice")
    assert await recorder.hears_tone(440), f"share of 440 Hz was {recorder.best:.3f}"
    publication.set_subscribed(False)
    await bob.event("track_unsubscribed")


async def test_whoever_speaks_is_announced_as_active_speaker(join):
    alice, bob = await join("alice"), await join("bob")
    await alice.speak(440)
    await bob.event("active_speakers_changed", lambda speakers: [s.identity for s in speakers] == ["alice"])
