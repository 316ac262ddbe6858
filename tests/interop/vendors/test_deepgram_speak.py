"""Deepgram's voices, held by deepgram-sdk."""

import asyncio

import pytest
from deepgram import AsyncDeepgramClient
from deepgram.core.api_error import ApiError
from deepgram.environment import DeepgramClientEnvironment
from deepgram.speak.v1.types import SpeakV1Text

from support import collect, conforms, until


@pytest.fixture
def voice(control):
    return control("deepgram-speak")


def connect(voice, **query):
    client = AsyncDeepgramClient(
        api_key=voice.key,
        environment=DeepgramClientEnvironment(base=voice.http, production=voice.ws, agent=voice.ws, agent_rest=voice.http),
    )
    return client.speak.v1.connect(**({"model": "aura-2-thalia-en", "encoding": "linear16", "sample_rate": 16000} | query))


async def say(voice, *texts, **query):
    """Each text is flushed; what came until the last was spoken."""
    got = []
    async with connect(voice, **query) as socket:
        reader = asyncio.create_task(collect(socket, got))
        for text in texts:
            await socket.send_text(SpeakV1Text(type="Speak", text=text))
            await socket.send_flush()
        await until(lambda: reader.done() or sum(getattr(m, "type", "") == "Flushed" for m in got) == len(texts))
        if not reader.done():
            await socket.send_close()
        return got, await reader


def size(got):
    return sum(len(m) for m in got if isinstance(m, bytes))


async def test_texts_between_their_flushes(voice):
    got, error = await say(voice, "Good morning.", "How are you?")
    assert error is None
    for message in got:
        if not isinstance(message, bytes):
            conforms(message)
    assert got[0].type == "Metadata" and got[0].model_name == "aura-2-thalia-en"
    flushed = [n for n, m in enumerate(got) if getattr(m, "type", "") == "Flushed"]
    assert [got[n].sequence_id for n in flushed] == [0, 1]
    assert size(got[: flushed[0]]) == 13 * 60 * 32 and size(got[flushed[0] :]) == 12 * 60 * 32
    assert [m["type"] for m in voice.seen()[0]["messages"]] == ["Speak", "Flush", "Speak", "Flush", "Close"]


async def test_clear_stops_what_is_spoken(voice):
    voice.script(says={"pace": 3})
    got = []
    async with connect(voice) as socket:
        reader = asyncio.create_task(collect(socket, got))
        await socket.send_text(SpeakV1Text(type="Speak", text="This is a sentence that goes on for a while."))
        await socket.send_flush()
        await until(lambda: size(got))
        await socket.send_clear()
        await until(lambda: getattr(got[-1], "type", "") == "Cleared")
        conforms(got[-1])
        before = size(got)
        await socket.send_text(SpeakV1Text(type="Speak", text="New."))
        await socket.send_flush()
        await until(lambda: getattr(got[-1], "type", "") == "Flushed")
        await socket.send_close()
        assert await reader is None
    assert before < 44 * 60 * 32 and size(got) - before == 4 * 60 * 32


@pytest.mark.parametrize(("encoding", "rate", "each"), [("linear16", 48000, 2880 * 2), ("mulaw", 8000, 480), ("alaw", 8000, 480)])
async def test_formats(voice, encoding, rate, each):
    got, _ = await say(voice, "Ten chars.", encoding=encoding, sample_rate=rate)
    assert size(got) == each * 10


@pytest.mark.parametrize(
    "query", [{"encoding": "mp7"}, {"sample_rate": 12345}, {"model": "nova-3"}, {"encoding": "mulaw", "sample_rate": 48000}]
)
async def test_what_the_specification_does_not_have_is_refused(voice, query):
    with pytest.raises(ApiError) as refused:
        async with connect(voice, **query):
            pass
    assert refused.value.status_code == 400


@pytest.mark.parametrize("code", [1006, 1011])
async def test_a_close_in_mid_sound(voice, code):
    voice.script(faults=[{"kind": "close", "code": code, "at": {"audio_ms": 300}}])
    got, error = await say(voice, "Good morning.")
    assert size(got) == 300 * 32 and (error.rcvd.code if error.rcvd else 1006) == code


async def test_sound_of_another_rate_and_a_refusal(voice):
    voice.script(faults=[{"kind": "wrong_rate", "rate": 8000}, {"kind": "status", "status": 429}])
    got, _ = await say(voice, "Good morning.")
    assert size(got) == 13 * 60 * 16
    with pytest.raises(ApiError) as refused:
        await say(voice, "Hello.")
    assert refused.value.status_code == 429
