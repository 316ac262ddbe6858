"""The official client, whose engine is Google's, sends redundant audio (RED, RFC 2198) by default; ours takes it and sends it."""

import asyncio
import json

import pytest
from livekit import rtc

from client import Client
from process import Process
from test_encryption import echo_binary

DEADLINE_S = 15


@pytest.fixture
def echo(server, room_name, tmp_path):
    """Our engine as a participant that says back what it hears and tells with which codecs."""
    token = Client(server, room_name, "echo").token()
    with Process([echo_binary()], tmp_path / "echo.log", {"LIVEKIT_URL": server.url, "LIVEKIT_TOKEN": token}) as process:
        assert process.first_json_line() == {"ready": True}
        yield process


async def codecs_of_echo(echo) -> dict:
    return json.loads(await asyncio.to_thread(echo.lines.get, timeout=DEADLINE_S))


async def inbound_of(track: rtc.Track):
    """The statistics of what arrives."""
    stats = await track.get_stats()
    return next(entry.inbound_rtp for entry in stats if entry.WhichOneof("stats") == "inbound_rtp")


async def test_redundant_audio_goes_there_and_back(join, echo):
    alice = await join("alice")
    await alice.speak(440)
    recorder = await alice.recorder("echo")
    assert await recorder.hears_tone(440), f"share of 440 Hz was {recorder.best:.3f}"
    assert await codecs_of_echo(echo) == {"heard": "audio/red", "said": "audio/red"}
    # Google's engine counts the copies that it does not need as discarded, and there is one in each packet.
    stream = await inbound_of(recorder.track)
    assert stream.inbound.packets_discarded > stream.received.packets_received / 2


async def test_who_wants_no_redundancy_sends_none(join, echo):
    alice = await join("alice")
    await alice.speak(440, red=False)
    recorder = await alice.recorder("echo")
    assert await recorder.hears_tone(440), f"share of 440 Hz was {recorder.best:.3f}"
    assert await codecs_of_echo(echo) == {"heard": "audio/opus", "said": "audio/red"}
