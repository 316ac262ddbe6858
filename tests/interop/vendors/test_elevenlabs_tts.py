"""ElevenLabs' voices. elevenlabs has a client for one text, and only the messages of the interface for many, which
livekit-plugins-elevenlabs speaks. So the first is held by elevenlabs, the second by LiveKit's plugin, and its messages
are written and read with elevenlabs' classes.
"""

import asyncio
import base64
import json

import aiohttp
import numpy as np
import pytest
import websockets
from elevenlabs import ElevenLabs
from elevenlabs.core.api_error import ApiError
from elevenlabs.core.jsonable_encoder import jsonable_encoder
from elevenlabs.types import (
    AudioOutputMulti, CloseContext, CloseSocket, FinalOutputMulti, FlushContext, InitialiseContext, InitializeConnectionMulti, KeepContextAlive,
    SendTextMulti,
)  # fmt: skip
from livekit.agents import APIConnectOptions, APIError, APIStatusError
from livekit.plugins import elevenlabs as livekit_elevenlabs

from standins.sound import LOUD
from support import conforms

VOICE = "21m00Tcm4TlvDq8ikWAM"


@pytest.fixture
def voice(control):
    return control("elevenlabs-tts")


class Socket:
    def __init__(self, socket):
        self.socket = socket

    async def send(self, message):
        await self.socket.send(json.dumps(jsonable_encoder(message)))

    async def receive(self):
        data = json.loads(await self.socket.recv())
        kind = FinalOutputMulti if "isFinal" in data else AudioOutputMulti
        message = kind.model_validate(data)
        conforms(message)
        return message

    async def until_final(self, context: str):
        """The messages of this context up to its last, and those of others that came in between."""
        mine, others = [], []
        while True:
            message = await self.receive()
            (mine if message.context_id == context else others).append(message)
            if message.context_id == context and isinstance(message, FinalOutputMulti):
                return mine, others


def connect(voice, key=None, **query):
    query = {"model_id": "eleven_flash_v2_5", "output_format": "pcm_16000", **query}
    url = f"{voice.ws}/v1/text-to-speech/{VOICE}/multi-stream-input?" + "&".join(f"{name}={value}" for name, value in query.items())
    return websockets.connect(url, additional_headers={"xi-api-key": voice.key if key is None else key} if key != "" else {})


def audio(messages) -> bytes:
    return b"".join(base64.b64decode(message.audio) for message in messages if isinstance(message, AudioOutputMulti))


async def test_a_text_and_its_times(voice):
    async with connect(voice, sync_alignment="true") as connection:
        socket = Socket(connection)
        await socket.send(InitializeConnectionMulti(context_id="a"))
        await socket.send(SendTextMulti(text="Good morning. ", context_id="a"))
        await socket.send(FlushContext(context_id="a", text="How are you? ", flush=True))
        await socket.send(CloseContext(context_id="a", close_context=True))
        messages, _ = await socket.until_final("a")
        await socket.send(CloseSocket(close_socket=True))
        with pytest.raises(websockets.ConnectionClosedOK):
            await socket.receive()
    text = "Good morning. How are you?"
    assert len(audio(messages)) == len(text) * 60 * 16 * 2
    at, said = 0, ""
    for message in messages[:-1]:
        times = message.alignment
        # Relative to this piece.
        assert 0 <= times.char_start_times_ms[0] < 60
        said += "".join(times.chars)
        at += len(base64.b64decode(message.audio)) / 32
    assert said == text
    assert voice.seen()[0]["messages"][0] == {"text": " ", "context_id": "a"}
    assert voice.seen()[0]["audio_ms"] == len(text) * 60
    # It sounds at letters and is silent at spaces.
    samples = np.frombuffer(audio(messages), dtype="<i2").astype(float)
    for n, character in enumerate(text):
        level = np.sqrt(np.mean(samples[n * 960 : (n + 1) * 960] ** 2))
        assert (level > LOUD) == (character != " ")


async def test_text_waits_for_its_schedule_a_flush_or_automatic_mode(voice):
    long = "This sentence is long enough to reach the hundred and twenty characters that the vendor waits for before it begins to speak. "
    async with connect(voice) as connection:
        socket = Socket(connection)
        await socket.send(SendTextMulti(text="Short. ", context_id="a"))
        await socket.send(InitialiseContext(text=long, context_id="b"))
        first = await socket.receive()
        assert first.context_id == "b" and "".join(first.alignment.chars) == long.strip()
        # Without sync_alignment the times came with the first sound; the rest has none.
        assert (await socket.receive()).alignment is None
        # What was not flushed is never spoken.
        await socket.send(CloseContext(context_id="a", close_context=True))
        mine, _ = await socket.until_final("a")
        assert audio(mine) == b""
    async with connect(voice, auto_mode="true") as connection:
        socket = Socket(connection)
        await socket.send(SendTextMulti(text="Short. ", context_id="a"))
        assert "".join((await socket.receive()).alignment.chars) == "Short."


async def test_a_closed_context_says_what_was_flushed_while_another_speaks(voice):
    voice.script(says={"pace": 5, "chunk_ms": 20})
    async with connect(voice) as connection:
        socket = Socket(connection)
        for name in "ab":
            await socket.send(InitialiseContext(text=f"This is context {name}. ", context_id=name))
            await socket.send(FlushContext(context_id=name, flush=True))
        await socket.send(CloseContext(context_id="a", close_context=True))
        await socket.send(CloseSocket(close_socket=True))
        a, others = await socket.until_final("a")
        assert others and all(message.context_id == "b" for message in others)
        rest, _ = await socket.until_final("b")
        assert len(audio(a)) == len(audio(others + rest)) == len("This is context b.") * 60 * 32


async def test_contexts_end_after_a_silence_and_there_are_five(voice):
    async with connect(voice, inactivity_timeout=2) as connection:
        socket = Socket(connection)
        for n in range(5):
            await socket.send(InitializeConnectionMulti(context_id=f"c{n}"))
        ended = set()
        while len(ended) < 4:
            await socket.send(KeepContextAlive(context_id="c0"))
            try:
                async with asyncio.timeout(0.2):
                    ended.add((await socket.receive()).context_id)
            except TimeoutError:
                pass
        assert ended == {"c1", "c2", "c3", "c4"}
        for n in range(5, 10):
            await socket.send(InitializeConnectionMulti(context_id=f"c{n}"))
        data = json.loads(await connection.recv())
        assert data["error"] == "max_active_conversations" and data["code"] == 1008
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await connection.recv()
        assert closed.value.rcvd.code == 1008


@pytest.mark.parametrize(("output", "size"), [("pcm_8000", 480 * 2), ("pcm_24000", 1440 * 2), ("pcm_44100", 2646 * 2), ("ulaw_8000", 480)])
async def test_formats(voice, output, size):
    async with connect(voice, output_format=output, auto_mode="true") as connection:
        socket = Socket(connection)
        await socket.send(SendTextMulti(text="Ten chars. ", context_id="a", flush=True))
        await socket.send(CloseContext(context_id="a", close_context=True))
        messages, _ = await socket.until_final("a")
        assert len(audio(messages)) == size * 10


@pytest.mark.parametrize(
    ("query", "status"), [({"output_format": "pcm_7"}, 400), ({"auto_mode": "perhaps"}, 400), ({"inactivity_timeout": 181}, 400)]
)
async def test_what_the_specification_does_not_have_is_refused(voice, query, status):
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with connect(voice, **query):
            pass
    assert refused.value.response.status_code == status and b"detail" in refused.value.response.body


async def test_no_key_and_a_wrong_key(voice):
    voice.script(key="another")
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with connect(voice):
            pass
    assert refused.value.response.status_code == 401
    async with connect(voice, key="") as connection:
        await Socket(connection).send(InitializeConnectionMulti(context_id="a"))
        assert json.loads(await connection.recv())["error"] == "invalid_api_key"
    # It may come in the first message.
    async with connect(voice, key="") as connection:
        await Socket(connection).send(InitializeConnectionMulti(context_id="a", xi_api_key=voice.key))
        await Socket(connection).send(SendTextMulti(text="Hello. ", context_id="a", flush=True))
        assert isinstance(await Socket(connection).receive(), AudioOutputMulti)


async def test_the_elevenlabs_client_speaks_one_text(voice):
    client = ElevenLabs(api_key=voice.key, base_url=voice.http)
    # The client takes wss for every address.
    client.text_to_speech._ws_base_url = voice.ws

    def say():
        return b"".join(
            client.text_to_speech.convert_realtime(VOICE, text=iter(["Good morning. ", "How are you?"]), output_format="pcm_16000")
        )

    assert len(await asyncio.to_thread(say)) == len("Good morning. How are you?") * 60 * 32
    voice.script(faults=[{"kind": "close", "code": 1011, "reason": "gone", "at": {"audio_ms": 500}}])
    with pytest.raises(ApiError) as error:
        await asyncio.to_thread(say)
    assert error.value.status_code == 1011


async def say_with_livekit(voice, text: str, max_retry=0, timeout=10):
    async with aiohttp.ClientSession() as session:
        speaker = livekit_elevenlabs.TTS(
            voice_id=VOICE, model="eleven_flash_v2_5", encoding="pcm_24000", api_key=voice.key, base_url=f"{voice.http}/v1", http_session=session,
            sync_alignment=True, auto_mode=True,
        )  # fmt: skip
        try:
            options = APIConnectOptions(max_retry=max_retry, retry_interval=0.05, timeout=timeout)
            async with speaker.stream(conn_options=options) as stream:
                stream.push_text(text)
                stream.end_input()
                frames = [event.frame async for event in stream]
                return sum(frame.duration for frame in frames), [
                    word for frame in frames for word in frame.userdata.get("lk.timed_transcripts", [])
                ]
        finally:
            await speaker.aclose()


@pytest.mark.parametrize("session", [{}, {"names": "snake", "nulls": True}])
async def test_livekits_plugin_speaks_and_gets_word_times(voice, session):
    voice.script(session=session)
    seconds, words = await say_with_livekit(voice, "Good morning, how are you today?")
    assert seconds == pytest.approx(len("Good morning, how are you today?") * 0.06, abs=0.05)
    assert "".join(words).split() == ["Good", "morning,", "how", "are", "you", "today?"]
    sent = voice.seen()[0]
    assert sent["query"]["sync_alignment"] == "true" and sent["messages"][0]["text"] == " "


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 429, "retry_after": 1},
        {"kind": "status", "status": 500},
        {"kind": "close", "code": 1011, "at": {"received": 1}},
        {"kind": "close", "code": 1006, "at": {"received": 1}},
        {"kind": "close", "code": 1000, "at": {"received": 1}},
    ],
)
async def test_livekits_plugin_tries_again_after_a_fault(voice, fault):
    voice.script(faults=[fault])
    seconds, _ = await say_with_livekit(voice, "Good morning.", max_retry=1)
    assert seconds == pytest.approx(13 * 0.06, abs=0.05)
    assert len(voice.seen()) == 2


@pytest.mark.parametrize("fault", [{"kind": "stall"}, {"kind": "stall", "at": {"audio_ms": 300}}])
async def test_livekits_plugin_notices_a_stall(voice, fault):
    voice.script(faults=[fault])
    with pytest.raises(APIError):
        await say_with_livekit(voice, "Good morning, how are you today?", timeout=1)
    assert voice.seen()[0]["audio_ms"] == fault.get("at", {}).get("audio_ms", 0)


async def test_livekits_plugin_does_not_hide_a_fault_in_mid_sound(voice):
    voice.script(faults=[{"kind": "close", "code": 1011, "at": {"audio_ms": 600}}])
    with pytest.raises(APIStatusError):
        await say_with_livekit(voice, "Good morning, how are you today?")


async def test_sound_of_another_rate_and_two_finals(voice):
    voice.script(faults=[{"kind": "wrong_rate", "rate": 8000}, {"kind": "double_finals"}])
    seconds, _ = await say_with_livekit(voice, "Good morning.")
    assert seconds == pytest.approx(13 * 0.06 / 3, abs=0.05)
    async with connect(voice) as connection:
        socket = Socket(connection)
        await socket.send(InitialiseContext(text="Hello. ", context_id="a"))
        await socket.send(CloseContext(context_id="a", close_context=True))
        await socket.until_final("a")
        assert isinstance(await socket.receive(), FinalOutputMulti)
