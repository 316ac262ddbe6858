"""Deepgram's recognition with turns, held by deepgram-sdk."""

import asyncio

import pytest
from deepgram import AsyncDeepgramClient
from deepgram.core.api_error import ApiError
from deepgram.environment import DeepgramClientEnvironment
from deepgram.listen.v2.types import ListenV2Configure, ListenV2TurnInfo

from support import chunks, collect, conforms, sound, until


@pytest.fixture
def flux(control):
    return control("deepgram-flux")


def connect(flux, **query):
    client = AsyncDeepgramClient(
        api_key=flux.key, environment=DeepgramClientEnvironment(base=flux.http, production=flux.ws, agent=flux.ws, agent_rest=flux.http)
    )
    return client.listen.v2.connect(**({"model": "flux-general-en", "encoding": "linear16", "sample_rate": 16000} | query))


async def hold(flux, *pieces, **query):
    """Sends pieces of sound, and between them what a function does with the socket; then ends the stream."""
    got = []
    async with connect(flux, **query) as socket:
        reader = asyncio.create_task(collect(socket, got))
        for piece in pieces:
            if callable(piece):
                await piece(socket)
            else:
                for chunk in chunks(piece):
                    await socket.send_media(chunk)
        await socket.send_close_stream()
        error = await reader
        # Deepgram ends a stream without a closing code.
        assert socket._websocket.close_code == 1005 and error is None or error.rcvd.code == 1005
    for message in got:
        conforms(message)
    assert [message.sequence_id for message in got] == list(range(len(got)))
    return got


def events(got, *without):
    return [m.event for m in got if isinstance(m, ListenV2TurnInfo) and m.event not in without]


async def test_turns(flux):
    flux.script(hears={"utterances": ["Yes, I would like that.", "Tomorrow."]})
    got = await hold(flux, sound(1.0, 1.0, 0.5, 1.0))
    assert events(got, "Update") == ["StartOfTurn", "EndOfTurn"] * 2
    turns = [m for m in got if isinstance(m, ListenV2TurnInfo)]
    assert {"Update"} < {m.event for m in turns}
    ends = [m for m in turns if m.event == "EndOfTurn"]
    assert [(m.turn_index, m.transcript, m.trigger) for m in ends] == [(0, "Yes, I would like that.", "model"), (1, "Tomorrow.", "model")]
    assert [word.word for word in ends[0].words] == ["Yes,", "I", "would", "like", "that."]
    assert ends[0].end_of_turn_confidence >= 0.7 and ends[1].audio_window_start == ends[0].audio_window_end
    assert all(m.transcript in "Yes, I would like that." for m in turns if m.turn_index == 0)
    assert flux.seen()[0]["closed"] == {"by": "server", "code": 1005}


async def test_an_eager_end_that_is_taken_back(flux):
    flux.script(hears={"utterances": ["Well, I would like that."]})
    got = await hold(flux, sound(1.0, 0.4, 0.8, 1.0), eager_eot_threshold=0.4)
    assert events(got, "Update") == ["StartOfTurn", "EagerEndOfTurn", "TurnResumed", "EagerEndOfTurn", "EndOfTurn"]
    eager, end = [m for m in got if isinstance(m, ListenV2TurnInfo) and m.event in ("EagerEndOfTurn", "EndOfTurn")][-2:]
    assert eager.transcript == end.transcript


async def test_sound_without_words_begins_no_turn(flux):
    flux.script(hears={"utterances": ["", "Yes."]})
    got = await hold(flux, sound(0.5, 1.0, 0.5, 1.0), eager_eot_threshold=0.4)
    assert events(got, "Update") == ["StartOfTurn", "EagerEndOfTurn", "EndOfTurn"]


async def test_a_turn_ends_by_force_or_by_time(flux):
    flux.script(hears={"utterances": ["one two three four five six", "Yes."]})
    force = lambda socket: socket.send_force_end_turn()
    data = sound(2.0, 0.5)
    got = await hold(flux, data[:32000], force, data[32000:], force, sound(0.5, 2.0), eot_threshold=1.0, eot_timeout_ms=1000)
    ends = [m for m in got if isinstance(m, ListenV2TurnInfo) and m.event == "EndOfTurn"]
    assert [(m.transcript, m.trigger) for m in ends] == [("one two three four", "manual"), ("five six", "manual"), ("Yes.", "timeout")]


async def test_an_open_turn_is_not_finished_by_the_end_of_the_stream(flux):
    flux.script(hears={"utterances": ["Half a sentence"]})
    assert events(await hold(flux, sound(1.0)), "Update") == ["StartOfTurn"]


async def test_settings_change(flux):
    flux.script(hears={"utterances": ["Yes."]})
    change = lambda **parts: lambda socket: socket.send_configure(ListenV2Configure(type="Configure", **parts))
    got = await hold(
        flux, change(thresholds={"eager_eot_threshold": 0.5}, keyterms=["Acme"]), change(thresholds={"eot_threshold": 7}), sound(0.5, 1.0)
    )
    assert [m.type for m in got[:3]] == ["Connected", "ConfigureSuccess", "ConfigureFailure"]
    assert got[1].keyterms == ["Acme"] and "eot_threshold" in got[2].description
    assert "EagerEndOfTurn" in events(got)


async def test_a_message_that_is_none_ends_the_stream(flux):
    got = []
    async with connect(flux) as socket:
        await socket._send('{"type": "KeepAlive"}')
        error = await collect(socket, got)
    assert [m.type for m in got] == ["Connected", "Error"] and error.rcvd.code == 1008
    conforms(got[1])


@pytest.mark.parametrize(
    "query",
    [
        {"model": "nova-3"},
        {"encoding": "mp7"},
        {"sample_rate": None},
        {"eot_threshold": 0.2},
        {"eager_eot_threshold": 1.0},
        {"eot_timeout_ms": 100},
        {"language_hint": "en"},
    ],
)
async def test_what_the_specification_does_not_have_is_refused(flux, query):
    with pytest.raises(ApiError) as refused:
        async with connect(flux, **query):
            pass
    assert refused.value.status_code == 400


@pytest.mark.parametrize("code", [1000, 1006, 1011])
async def test_a_close_in_mid_turn_keeps_the_words_for_the_next_connection(flux, code):
    flux.script(faults=[{"kind": "close", "code": code, "at": {"sound_ms": 500}}], hears={"utterances": ["Hello there."]})
    got = []
    async with connect(flux) as socket:
        reader = asyncio.create_task(collect(socket, got))
        await socket.send_media(sound(1.0))
        error = await reader
    assert (error is None) == (code == 1000) and "EndOfTurn" not in events(got)
    got = await hold(flux, sound(1.0, 1.0))
    assert [m.transcript for m in got if isinstance(m, ListenV2TurnInfo) and m.event == "EndOfTurn"] == ["Hello there."]
    await until(lambda: flux.seen()[0]["closed"] == {"by": "server", "code": code})


async def test_ends_twice_and_a_drip(flux):
    flux.script(faults=[{"kind": "double_finals"}, {"kind": "drip", "ms": 10}], hears={"utterances": ["Hello."], "counter": "connection"})
    for times in (2, 1):
        ends = [m for m in await hold(flux, sound(1.0, 1.0)) if getattr(m, "event", "") == "EndOfTurn"]
        assert [(m.turn_index, m.transcript) for m in ends] == [(0, "Hello.")] * times
