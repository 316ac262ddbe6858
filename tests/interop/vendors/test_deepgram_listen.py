"""Deepgram's recognition, version 1, held by deepgram-sdk."""

import asyncio

import pytest
from deepgram import AsyncDeepgramClient
from deepgram.core.api_error import ApiError
from deepgram.environment import DeepgramClientEnvironment
from deepgram.listen.v1.types import ListenV1Error, ListenV1Metadata, ListenV1Results, ListenV1SpeechStarted, ListenV1UtteranceEnd
from websockets.exceptions import ConnectionClosed

from support import chunks, collect, conforms, sound, until

QUERY = {
    "model": "nova-3",
    "encoding": "linear16",
    "sample_rate": 16000,
    "interim_results": "true",
    "punctuate": "true",
    "vad_events": "true",
}


@pytest.fixture
def listen(control):
    return control("deepgram-listen")


def connect(listen, key=None, **query):
    client = AsyncDeepgramClient(
        api_key=key or listen.key,
        environment=DeepgramClientEnvironment(base=listen.http, production=listen.ws, agent=listen.ws, agent_rest=listen.http),
    )
    return client.listen.v1.connect(**(QUERY | query))


async def hold(listen, data: bytes, then=("close",), **query):
    """Sends the sound, then the named messages; what came until the end, and how it ended."""
    got = []
    async with connect(listen, **query) as socket:
        reader = asyncio.create_task(collect(socket, got))
        try:
            for chunk in chunks(data):
                await socket.send_media(chunk)
            for name in then:
                await getattr(socket, {"close": "send_close_stream", "finalize": "send_finalize", "alive": "send_keep_alive"}[name])()
        except ConnectionClosed:
            pass
        return got, await reader


def finals(got):
    return [m for m in got if isinstance(m, ListenV1Results) and m.is_final]


def transcript(message):
    return message.channel.alternatives[0].transcript


async def test_two_utterances_from_the_first_interim_to_the_metadata(listen):
    listen.script(hears={"utterances": ["Yes, I would like that.", "Tomorrow at nine."]})
    got, error = await hold(listen, sound(1.5, 1.5, 1.0, 1.5), endpointing=300, utterance_end_ms=1000)
    assert error is None
    for message in got:
        conforms(message)
    kinds = [type(message).__name__.removeprefix("ListenV1") for message in got]
    assert kinds.count("SpeechStarted") == kinds.count("UtteranceEnd") == 2
    assert kinds[-1] == "Metadata" and kinds.index("SpeechStarted") < kinds.index("Results")
    assert [(transcript(m), m.speech_final, m.from_finalize) for m in finals(got)] == [
        ("Yes, I would like that.", True, False),
        ("Tomorrow at nine.", True, False),
    ]
    interims = [transcript(m) for m in got if isinstance(m, ListenV1Results) and not m.is_final and transcript(m)]
    assert interims[0] == "Yes," and all(text in "Yes, I would like that. Tomorrow at nine." for text in interims)
    # The results' ranges meet without gap or overlap, and each word lies in its own.
    at = 0.0
    for message in finals(got):
        assert message.start == pytest.approx(at, abs=0.001)
        at = message.start + message.duration
        words = message.channel.alternatives[0].words
        assert all(message.start <= word.start < word.end <= at for word in words)
        assert [word.punctuated_word for word in words] == transcript(message).split()
    started = [m.timestamp for m in got if isinstance(m, ListenV1SpeechStarted)]
    assert started == pytest.approx([0.0, 3.0], abs=0.05)
    ends = [m.last_word_end for m in got if isinstance(m, ListenV1UtteranceEnd)]
    assert ends == pytest.approx([1.5, 4.0], abs=0.05)
    metadata = got[-1]
    assert isinstance(metadata, ListenV1Metadata) and metadata.duration == pytest.approx(5.5) and metadata.channels == 1
    seen = listen.seen()[0]
    assert seen["messages"] == [{"sound": 5.5 * 32000}, {"type": "CloseStream"}]
    assert seen["headers"]["authorization"] == "Token (key)" and listen.key not in str(seen)
    assert seen["query"]["model"] == "nova-3" and seen["closed"] == {"by": "server", "code": 1000}


async def test_without_punctuation_words_are_plain(listen):
    listen.script(hears={"utterances": ["Yes, I would."]})
    got, _ = await hold(listen, sound(1.0, 1.0), punctuate="false", interim_results="false", vad_events="false")
    assert {type(message) for message in got} == {ListenV1Results, ListenV1Metadata}
    assert [transcript(message) for message in finals(got)] == ["yes i would"]
    assert finals(got)[0].channel.alternatives[0].words[0].punctuated_word is None


async def test_finalize_brings_the_words_of_speech_that_goes_on(listen):
    listen.script(hears={"utterances": ["one two three four five six"]})
    got = []
    async with connect(listen, endpointing="false") as socket:
        reader = asyncio.create_task(collect(socket, got))
        data = sound(2.0, 0.5)
        await socket.send_media(data[:32000])
        await socket.send_finalize()
        await until(lambda: finals(got))
        await socket.send_media(data[32000:])
        await socket.send_finalize()
        await socket.send_close_stream()
        assert await reader is None
    assert [(transcript(m), m.from_finalize) for m in finals(got)] == [("one two three four", True), ("five six", True)]


@pytest.mark.parametrize(("encoding", "rate"), [("linear16", 8000), ("mulaw", 8000), ("alaw", 16000), ("linear16", 48000)])
async def test_encodings(listen, encoding, rate):
    listen.script(hears={"utterances": ["Hello."]})
    got, error = await hold(listen, sound(1.0, 1.0, rate=rate, encoding=encoding), encoding=encoding, sample_rate=rate)
    assert error is None and transcript(finals(got)[0]) == "Hello."
    assert listen.seen()[0]["sound_ms"] == 2000


async def test_a_message_that_is_none_is_answered_and_the_stream_goes_on(listen):
    listen.script(hears={"utterances": ["Hello."]})
    got = []
    async with connect(listen) as socket:
        reader = asyncio.create_task(collect(socket, got))
        await socket._send("{not json")
        await socket.send_keep_alive()
        for chunk in chunks(sound(1.0, 1.0)):
            await socket.send_media(chunk)
        await socket.send_close_stream()
        await reader
    assert isinstance(got[0], ListenV1Error) and got[0].variant == "SchemaError" and got[0].message == "{not json"
    conforms(got[0])
    assert transcript(finals(got)[0]) == "Hello."


async def test_silence_for_too_long_ends_the_connection(listen):
    listen.script(session={"idle_s": 0.2})
    async with connect(listen) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd.code == 1011 and closed.value.rcvd.reason.startswith("NET-0001")


async def test_sound_without_its_encoding_is_refused(listen):
    listen.script()
    got, error = await hold(listen, sound(1.0), encoding=None, sample_rate=None)
    assert got == [] and error.rcvd.code == 1008 and error.rcvd.reason.startswith("DATA-0000")


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"model": "nova-99"}, 400),
        ({"encoding": "mp7"}, 400),
        ({"sample_rate": None}, 400),
        ({"sample_rate": 1000000}, 400),
        ({"interim_results": "maybe"}, 400),
        ({"endpointing": "soon"}, 400),
        ({"utterance_end_ms": "late"}, 400),
    ],
)
async def test_what_the_specification_does_not_have_is_refused(listen, query, status):
    listen.script()
    with pytest.raises(ApiError) as refused:
        async with connect(listen, **query):
            pass
    assert refused.value.status_code == status and listen.seen()[0]["status"] == status


async def test_a_wrong_key_is_refused(listen):
    listen.script(key="another")
    with pytest.raises(ApiError) as refused:
        async with connect(listen):
            pass
    assert refused.value.status_code == 401


@pytest.mark.parametrize("fault", [{"status": 429, "retry_after": 2}, {"status": 429}, {"status": 500}])
async def test_a_told_refusal_comes_once(listen, fault):
    listen.script(faults=[{"kind": "status", **fault}], hears={"utterances": ["Hello."]})
    with pytest.raises(ApiError) as refused:
        async with connect(listen):
            pass
    assert refused.value.status_code == fault["status"]
    got, error = await hold(listen, sound(1.0, 1.0))
    assert error is None and transcript(finals(got)[0]) == "Hello."


@pytest.mark.parametrize("code", [1000, 1006, 1011])
async def test_a_close_in_mid_speech_loses_and_doubles_no_word_of_the_next_connection(listen, code):
    fault = {"kind": "close", "code": code, "reason": "gone", "at": {"sound_ms": 2500}}
    listen.script(faults=[fault], hears={"utterances": ["First sentence.", "one two three four five six"]})
    data = sound(1.0, 1.0, 2.0, 1.0)
    got, error = await hold(listen, data, then=())
    # The SDK ends its iteration quietly after a 1000.
    assert (error is None) == (code == 1000)
    if code == 1011:
        assert error.rcvd.code == 1011 and error.rcvd.reason == "gone"
    if code == 1006:
        assert error.rcvd is None
    assert [transcript(m) for m in finals(got)] == ["First sentence."]
    # What was not final is sent again, as a client has to.
    again, error = await hold(listen, data[int(32000 * 1.5) :])
    assert error is None
    assert [transcript(m) for m in finals(again)] == ["one two three four five six"]
    assert [seen["closed"]["code"] for seen in listen.seen()] == [code, 1000]


async def test_finals_twice_and_without_words(listen):
    listen.script(faults=[{"kind": "double_finals"}, {"kind": "empty_finals"}], hears={"utterances": ["Hello."], "counter": "connection"})
    got, _ = await hold(listen, sound(1.0, 1.0))
    assert [transcript(m) for m in finals(got)] == ["Hello.", "Hello."]
    got, _ = await hold(listen, sound(1.0, 1.0))
    assert [transcript(m) for m in finals(got)] == ["", "Hello."]


async def test_a_stall_answers_pings_and_a_half_open_connection_does_not(listen):
    listen.script(
        faults=[{"kind": "stall", "at": {"sound_ms": 500}}, {"kind": "half_open", "at": {"sound_ms": 500}}],
        hears={"utterances": ["Hello."]},
    )
    got = []
    for answers in (True, False):
        async with connect(listen) as socket:
            reader = asyncio.create_task(collect(socket, got))
            for chunk in chunks(sound(1.0, 1.0)):
                await socket.send_media(chunk)
            pong = await socket._websocket.ping()
            if answers:
                await asyncio.wait_for(pong, 2)
                await until(lambda: listen.seen()[0]["sound_ms"] == 2000)
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(pong, 0.3)
                # Lets go of it; the SDK would wait ten seconds for the closing handshake.
                listen.script()
            reader.cancel()
    assert finals(got) == []


async def test_a_connection_that_is_never_opened(listen):
    listen.script(faults=[{"kind": "no_answer"}])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            async with connect(listen):
                pass
    assert listen.seen()[0]["status"] is None
    # Lets go of it.
    listen.script()


async def test_garbage_reaches_the_client_in_between(listen):
    """The SDK itself gives up on a frame that is no JSON, so this reads the frames."""
    listen.script(
        faults=[{"kind": "garbage", "frame": frame, "at": {"sound_ms": 1500}} for frame in ("text", "binary", "json")],
        hears={"utterances": ["Hello."], "counter": "connection"},
    )
    for frame in ("text", "binary", "json"):
        async with connect(listen) as socket:
            for chunk in chunks(sound(1.0, 1.0)):
                await socket.send_media(chunk)
            await socket.send_close_stream()
            frames = [message async for message in socket._websocket]
        assert any(isinstance(one, bytes) for one in frames) == (frame == "binary")
        assert '"Metadata"' in frames[-1] and any("Hello." in str(one) for one in frames)
        assert "garbage" in listen.seen()[-1]["sent"]


async def test_events_at_given_places(listen):
    events = [
        {"ms": 300, "event": "started", "from_ms": 200},
        {"sample": 8000, "event": "interim", "text": "Hel", "from_ms": 200},
        {"ms": 900, "event": "ended", "text": "Hello there.", "from_ms": 200},
    ]
    listen.script(hears={"events": events})
    got, _ = await hold(listen, sound(0.0, 1.0))
    told = [(type(m).__name__, transcript(m) if isinstance(m, ListenV1Results) else "") for m in got]
    assert told == [
        ("ListenV1SpeechStarted", ""),
        ("ListenV1Results", "Hel"),
        ("ListenV1Results", "Hello there."),
        ("ListenV1Metadata", ""),
    ]
    assert got[2].channel.alternatives[0].words[0].start == 0.2
