"""Cartesia's voices and recognition, held by cartesia."""

import asyncio

import pytest
from cartesia import AsyncCartesia
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from support import chunks, collect, conforms, sound, until

VOICE = {"mode": "id", "id": "6ccbfb76-1fc6-48f7-b71d-91ac6298247b"}
FORMAT = {"container": "raw", "encoding": "pcm_s16le", "sample_rate": 16000}


@pytest.fixture
def voice(control):
    return control("cartesia-tts")


@pytest.fixture
def listen(control):
    return control("cartesia-stt")


def client(at) -> AsyncCartesia:
    return AsyncCartesia(api_key=at.key, base_url=at.http, websocket_base_url=at.ws)


def context(connection, name="a", **options):
    return connection.context(name, model_id="sonic-3.5", voice=VOICE, output_format=FORMAT, **options)


async def receive(context) -> list:
    events = [event async for event in context.receive()]
    for event in events:
        conforms(event)
    return events


def audio(events) -> bytes:
    return b"".join(event.audio for event in events if event.type == "chunk")


async def test_a_text_in_parts_and_its_word_times(voice):
    async with client(voice).tts.websocket_connect() as connection:
        speech = context(connection, add_timestamps=True)
        await speech.push("Good mor")
        await speech.push("ning. ")
        await speech.push("How are you?")
        await speech.no_more_inputs()
        events = await receive(speech)
    text = "Good morning. How are you?"
    assert len(audio(events)) == len(text) * 60 * 32
    assert events[-1].type == "done"
    times = [event.word_timestamps for event in events if event.type == "timestamps"]
    words = [word for one in times for word in one.words]
    starts = [start for one in times for start in one.start]
    assert words == text.split()
    # In the time of the whole context, though it was generated in two parts.
    assert starts == [pytest.approx(text.index(word) * 0.06) for word in words]
    seen = voice.seen()[0]
    assert [message["continue"] for message in seen["messages"]] == [True, True, True, False]
    assert voice.key not in str(seen)


async def test_flush_says_what_is_buffered(voice):
    async with client(voice).tts.websocket_connect() as connection:
        speech = context(connection)
        await speech.push("Well", flush=True)
        await speech.push("then", flush=True)
        await speech.no_more_inputs()
        events = await receive(speech)
    assert [event.flush_id for event in events if event.type == "flush_done"] == [1, 2]
    assert {event.flush_id for event in events if event.type == "chunk"} == {1, 2}


async def test_buffered_text_is_spoken_after_its_delay_and_a_context_expires(voice):
    voice.script(session={"expire_s": 0.2})
    async with client(voice).tts.websocket_connect() as connection:
        speech = context(connection, max_buffer_delay_ms=200)
        await speech.push("no end")
        events = await receive(speech)
    assert len(audio(events)) == 6 * 60 * 32 and events[-1].type == "done"


async def test_two_contexts_and_a_cancelled_one(voice):
    voice.script(says={"pace": 5, "chunk_ms": 20})
    async with client(voice).tts.websocket_connect() as connection:
        one, two = context(connection, "one"), context(connection, "two")
        await one.push("This one goes on for a long while before it ends.", continue_=False)
        await two.push("This is short.", continue_=False)
        await one.cancel()
        assert len(audio(await receive(two))) == 14 * 60 * 32
        # The connection and the name can be used again; of the cancelled text nothing comes any more.
        again = context(connection, "one")
        await again.push("New.", continue_=False)
        assert len(audio(await receive(again))) == 4 * 60 * 32


@pytest.mark.parametrize(("encoding", "rate", "size"), [("pcm_f32le", 44100, 4 * 2646), ("pcm_mulaw", 8000, 480), ("pcm_alaw", 8000, 480)])
async def test_formats(voice, encoding, rate, size):
    async with client(voice).tts.websocket_connect() as connection:
        speech = connection.context(
            "a", model_id="sonic-3.5", voice=VOICE, output_format={**FORMAT, "encoding": encoding, "sample_rate": rate}
        )
        await speech.push("Ten chars.", continue_=False)
        assert len(audio(await receive(speech))) == size * 10


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"output_format": {**FORMAT, "sample_rate": 12345}}, "sample_rate"),
        ({"output_format": {**FORMAT, "encoding": "mp7"}}, "output_format"),
        ({"voice": {"mode": "name"}}, "voice"),
    ],
)
async def test_what_the_specification_does_not_have_is_an_error_of_its_context(voice, change, word):
    async with client(voice).tts.websocket_connect() as connection:
        speech = context(connection)
        await speech.send(transcript="Hello.", continue_=False, **{"voice": VOICE, "output_format": FORMAT, **change})
        [error] = await receive(speech)
        assert error.type == "error" and word in error.message and error.context_id == "a" and error.status_code == 400


async def test_a_changed_setting_in_a_context_is_an_error(voice):
    async with client(voice).tts.websocket_connect() as connection:
        speech = context(connection, max_buffer_delay_ms=5000)
        await speech.push("No end")
        await speech.push("and", voice={"mode": "id", "id": "another"})
        assert [event.type for event in await receive(speech)] == ["error"]


async def test_refusals(voice, listen):
    voice.script(key="another")
    with pytest.raises(InvalidStatus) as refused:
        await client(voice).tts.websocket_connect().enter()
    assert refused.value.response.status_code == 401 and b"error_code" in refused.value.response.body
    voice.script(faults=[{"kind": "status", "status": 429, "retry_after": 3}])
    with pytest.raises(InvalidStatus) as refused:
        await client(voice).tts.websocket_connect().enter()
    assert refused.value.response.headers["Retry-After"] == "3" and b"concurrency_limited" in refused.value.response.body
    for wrong in ({"encoding": "mp7"}, {"model": "ink-99"}, {"sample_rate": 7}, {"turn_end_threshold": 0.9}):
        with pytest.raises(InvalidStatus) as refused:
            async with client(listen).stt.auto_finalize.websocket(
                **{"model": "ink-2", "encoding": "pcm_s16le", "sample_rate": 16000, **wrong}
            ):
                pass
        assert refused.value.response.status_code == 400


@pytest.mark.parametrize("code", [1006, 1011])
async def test_a_close_in_mid_sound(voice, code):
    voice.script(faults=[{"kind": "close", "code": code, "at": {"audio_ms": 500}}])
    async with client(voice).tts.websocket_connect() as connection:
        # A context of the client waits for ever when the connection ends, so this reads the connection.
        await connection.send(
            {"context_id": "a", "model_id": "sonic-3.5", "voice": VOICE, "output_format": FORMAT, "transcript": "This is a sentence."}
        )
        got = []
        error = await collect(connection, got)
        assert isinstance(error, ConnectionClosedError) and len(audio(got)) == 500 * 32


async def test_sound_of_another_rate_a_drip_and_two_ends(voice):
    voice.script(faults=[{"kind": "wrong_rate", "rate": 8000}, {"kind": "drip", "ms": 20}, {"kind": "double_finals"}])
    for rate in (8, 16, 16):
        async with client(voice).tts.websocket_connect() as connection:
            speech = context(connection)
            await speech.push("Ten chars.", continue_=False)
            assert len(audio(await receive(speech))) == 600 * rate * 2
    assert voice.seen()[2]["sent"][-2:] == ["done", "done"]


def turns(listen, **options):
    return client(listen).stt.auto_finalize.websocket(model="ink-2", encoding="pcm_s16le", sample_rate=16000, **options)


async def hold(connection, data: bytes, then) -> list:
    got = []
    reader = asyncio.create_task(collect(connection, got))
    for chunk in chunks(data):
        await connection.send_raw(chunk)
    await then()
    assert await reader is None
    return got


async def test_turns_with_an_eager_end_that_is_taken_back(listen):
    listen.script(hears={"utterances": ["Well, I would like that.", "Yes."], "eager_ms": 250})
    async with turns(listen, keyterm=["Acme"]) as connection:
        got = await hold(connection, sound(1.0, 0.4, 0.8, 1.0, 0.5, 1.0), lambda: connection.send({"type": "close"}))
    for event in got:
        conforms(event)
    kinds = [event.type for event in got if event.type != "turn.update"]
    assert kinds == [
        "connected",
        "turn.start",
        "turn.eager_end",
        "turn.resume",
        "turn.eager_end",
        "turn.end",
        "turn.start",
        "turn.eager_end",
        "turn.end",
    ]
    assert [event.transcript for event in got if event.type == "turn.end"] == ["Well, I would like that.", "Yes."]
    updates = [event.transcript for event in got if event.type == "turn.update"]
    assert updates and updates[0] == "Well," and all(text.startswith("Well,") for text in updates[:3])
    assert listen.seen()[0]["query"]["keyterm"] == "Acme"


async def test_close_ends_an_open_turn_and_configuration_is_checked(listen):
    listen.script(hears={"utterances": ["Half a sentence"]})
    async with turns(listen) as connection:
        await connection.send({"type": "config", "turn": {"end_timeout_ms": 1000}})
        got = await hold(connection, sound(1.0), lambda: connection.send({"type": "close"}))
    assert got[-1].type == "turn.end" and got[-1].transcript == "Half a sentence"
    async with turns(listen) as connection:
        got = await hold_until_closed(connection, {"type": "config", "turn": {"end_threshold": 7}})
    assert got[-1].type == "error"
    conforms(got[-1])


async def hold_until_closed(connection, message) -> list:
    got = []
    await connection.send(message)
    error = await collect(connection, got)
    assert isinstance(error, ConnectionClosed)
    return got


async def test_words_on_finalize_are_put_together_as_they_are(listen):
    listen.script(hears={"utterances": ["one two three four five six", "Thank you."]})
    async with client(listen).stt.manual_finalize.websocket(model="ink-2", encoding="pcm_s16le", sample_rate=16000) as connection:
        got = []
        reader = asyncio.create_task(collect(connection, got))
        data = sound(2.0, 0.4, 1.0, 0.4)
        for part in (data[:32000], data[32000 : int(2.3 * 32000)], data[int(2.3 * 32000) :]):
            await connection.send_raw(part)
            await connection.send("finalize")
        await connection.send("close")
        assert await reader is None
    for event in got:
        if event.type == "transcript":
            # The document has a list of words, each with its times; the client's class has lists of words, starts and ends.
            assert all(set(word.model_extra) <= {"word"} for word in event.words)
            event.words = None
        conforms(event)
    assert "".join(event.text for event in got if event.type == "transcript" and event.is_final) == "one two three four five six Thank you."
    assert [event.type for event in got].count("flush_done") == 3 and got[-1].type == "done"


async def test_a_close_in_mid_speech_keeps_the_words_for_the_next_connection(listen):
    listen.script(faults=[{"kind": "close", "code": 1011, "at": {"sound_ms": 800}}], hears={"utterances": ["Hello there."]})
    async with turns(listen) as connection:
        got = []
        reader = asyncio.create_task(collect(connection, got))
        for chunk in chunks(sound(1.0)):
            try:
                await connection.send_raw(chunk)
            except ConnectionClosed:
                break
        assert isinstance(await reader, ConnectionClosedError) and not any(event.type == "turn.end" for event in got)
    async with turns(listen) as connection:
        got = await hold(connection, sound(1.0, 1.0), lambda: connection.send({"type": "close"}))
    assert [event.transcript for event in got if event.type == "turn.end"] == ["Hello there."]
    await until(lambda: all(seen["closed"] for seen in listen.seen()))
