"""The official client, whose engine is Google's, and ours encrypt for each other end to end."""

import asyncio
import os

import pytest
from livekit import rtc

from client import Client
from process import REPOSITORY, Process

KEY = b"a passphrase for two"


def echo_binary() -> str:
    path = os.environ.get("ECHO_BIN", str(REPOSITORY / "target/debug/examples/encrypted_echo"))
    if not os.access(path, os.X_OK):
        pytest.fail(f"{path} is not there: build it with `cargo build --example encrypted_echo`, or name it in ECHO_BIN")
    return path


@pytest.fixture
def echo(server, room_name, tmp_path):
    """Our engine as a participant that says back what it hears."""
    token = Client(server, room_name, "echo").token()
    environment = {"LIVEKIT_URL": server.url, "LIVEKIT_TOKEN": token, "ECHO_KEY": KEY.decode()}
    with Process([echo_binary()], tmp_path / "echo.log", environment) as process:
        assert process.first_json_line() == {"ready": True}
        yield process


def encryption(key: bytes) -> rtc.E2EEOptions:
    return rtc.E2EEOptions(key_provider_options=rtc.KeyProviderOptions(shared_key=key))


async def test_sound_goes_there_and_back_encrypted(join, echo):
    alice = await join("alice", encryption=encryption(KEY))
    await alice.speak(440)
    recorder = await alice.recorder("echo")
    assert await recorder.hears_tone(440), f"share of 440 Hz was {recorder.best:.3f}"


async def test_data_goes_there_and_back_encrypted(join, echo):
    alice = await join("alice", encryption=encryption(KEY))

    # The first ones may find channels that are still opening.
    async def keep_saying():
        while True:
            await alice.room.local_participant.publish_data(b"between us", reliable=True, topic="say")
            await asyncio.sleep(0.2)

    saying = asyncio.create_task(keep_saying())
    try:
        packet, = await alice.event("data_received", lambda packet: packet.topic == "echo")
        assert packet.data == b"between us"
    finally:
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)


async def test_who_has_another_key_never_hears_the_tone(join, echo):
    mallory = await join("mallory", encryption=encryption(b"a wrong guess"))
    await mallory.speak(440)
    recorder = await mallory.recorder("echo")
    # Noise is allowed: on a busy machine the official client has been seen to make some while it joins.
    assert not await recorder.hears_tone(440, deadline_s=4), f"share of 440 Hz was {recorder.best:.3f}"
