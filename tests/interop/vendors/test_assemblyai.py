"""AssemblyAI's recognition, held by assemblyai."""

import pytest
from assemblyai.streaming.v3 import RealTimeEvents, RealTimeParameters, RealTimeSessionParameters, RealTimeTranscriberOptions
from assemblyai.streaming.v3.async_client import AsyncRealTimeTranscriber

from support import chunks, sound, until

PLAIN = {"speech_model": "universal-streaming-english", "sample_rate": 16000}
PRO = {"speech_model": "u3-rt-pro", "sample_rate": 16000}


@pytest.fixture
def listen(control):
    return control("assemblyai")


class Session:
    """The client's session; its own classes read what comes, and tell here."""

    def __init__(self, listen):
        self.got, self.errors = [], []
        # The client adds nothing to an address that has its scheme.
        self.client = AsyncRealTimeTranscriber(
            RealTimeTranscriberOptions(api_host=listen.ws, api_key=listen.key, max_connection_retries=0, connect_timeout=20)
        )
        for event in RealTimeEvents:
            self.client.on(event, self.take(event))

    def take(self, event):
        return lambda _, message: (self.errors if event == RealTimeEvents.Error else self.got).append(message)

    async def hold(self, *pieces, **parameters):
        await self.client.connect(RealTimeParameters(**parameters))
        for piece in pieces:
            if callable(piece):
                await piece(self.client)
            else:
                for chunk in chunks(piece):
                    await self.client.stream(chunk)
        if not self.errors:
            await self.client.disconnect(terminate=True)
        return self.got

    def turns(self, ended=True):
        return [m for m in self.got if m.type == "Turn" and m.end_of_turn == ended]


async def test_plain_words_then_the_whole_turn_with_punctuation(listen):
    listen.script(hears={"utterances": ["Yes, I would like that.", "Tomorrow."]})
    session = Session(listen)
    got = await session.hold(sound(1.5, 1.0, 1.0, 1.0), **PLAIN, format_turns=True)
    assert [m.type for m in (got[0], got[-1])] == ["Begin", "Termination"] and not session.errors
    assert [(m.turn_order, m.turn_is_formatted, m.transcript) for m in session.turns()] == [
        (0, False, "yes i would like that"),
        (0, True, "Yes, I would like that."),
        (1, False, "tomorrow"),
        (1, True, "Tomorrow."),
    ]
    partials = session.turns(ended=False)
    # The last word is not final yet, and not in the transcript.
    assert partials[0].transcript == "" and [word.text for word in partials[0].words] == ["yes"] and not partials[0].words[0].word_is_final
    assert partials[1].transcript == "yes" and partials[1].words[0].word_is_final
    assert got[-1].audio_duration_seconds == 4
    seen = listen.seen()[0]
    assert seen["messages"][-1] == {"type": "Terminate"} and listen.key not in str(seen)


async def test_without_formatting_a_turn_ends_once(listen):
    listen.script(hears={"utterances": ["Yes, I would."]})
    session = Session(listen)
    await session.hold(sound(1.0, 1.0), **PLAIN)
    assert [m.transcript for m in session.turns()] == ["yes i would"]


async def test_the_newer_models_are_formatted_and_say_when_speech_starts(listen):
    listen.script(hears={"utterances": ["Yes, I would.", ""]})
    session = Session(listen)
    got = await session.hold(sound(1.0, 1.0, 0.5, 1.0), **PRO)
    assert [m.timestamp for m in got if m.type == "SpeechStarted"] == [0]
    assert [(m.turn_is_formatted, m.transcript) for m in session.turns()] == [(True, "Yes, I would.")]
    words = session.turns()[0].words
    assert words[0].start == 0 and words[-1].end == pytest.approx(1000, abs=20)


async def test_a_forced_end_in_mid_speech_and_settings(listen):
    listen.script(hears={"utterances": ["one two three four five six"]})
    session = Session(listen)
    data = sound(2.0, 1.0)
    update = lambda client: client.set_params(RealTimeSessionParameters(min_turn_silence=300))
    await session.hold(
        update, data[:32000], lambda client: client.force_endpoint(), data[32000:], lambda client: client.keep_alive(), **PLAIN
    )
    assert [(m.turn_order, m.transcript) for m in session.turns()] == [(0, "one two three four"), (1, "five six")]
    kinds = [m.get("type", "sound") for m in listen.seen()[0]["messages"]]
    assert kinds == ["UpdateConfiguration", "sound", "ForceEndpoint", "sound", "KeepAlive", "Terminate"]


async def test_terminate_ends_the_open_turn(listen):
    listen.script(hears={"utterances": ["Half a sentence"]})
    session = Session(listen)
    got = await session.hold(sound(1.0), **PLAIN)
    assert [m.transcript for m in session.turns()] == ["half a sentence"] and got[-1].type == "Termination"


@pytest.mark.parametrize(
    ("piece", "parameters", "code"),
    [
        (b"\0" * 320, PLAIN, 3007),
        (b"\0" * 64000, PLAIN, 3007),
        (b"", {**PLAIN, "speech_model": None}, 3006),
        (b"", {**PLAIN, "sample_rate": 7}, 3006),
    ],
)
async def test_what_the_specification_does_not_have_ends_the_session(listen, piece, parameters, code):
    session = Session(listen)
    await session.hold(*([lambda client: client.stream(piece)] if piece else []), lambda _: until(lambda: session.errors), **parameters)
    assert session.errors[0].code == code
    await session.client.disconnect()


@pytest.mark.parametrize("status", [401, 429, 500])
async def test_refusals(listen, status):
    listen.script(**({"key": "another"} if status == 401 else {"faults": [{"kind": "status", "status": status}]}))
    session = Session(listen)
    await session.client.connect(RealTimeParameters(**PLAIN))
    assert session.errors and str(status) in str(session.errors[0])
    await session.client.disconnect()


@pytest.mark.parametrize("code", [1006, 1011])
async def test_a_close_in_mid_speech_keeps_the_words_for_the_next_session(listen, code):
    listen.script(faults=[{"kind": "close", "code": code, "at": {"sound_ms": 500}}], hears={"utterances": ["Hello there."]})
    session = Session(listen)
    await session.hold(sound(1.0), lambda _: until(lambda: session.errors), **PLAIN)
    assert session.turns() == []
    await session.client.disconnect()
    session = Session(listen)
    await session.hold(sound(1.0, 1.0), **PLAIN)
    assert [m.transcript for m in session.turns()] == ["hello there"]


async def test_the_limit_of_a_session(listen):
    listen.script(session={"limit_s": 0.2})
    session = Session(listen)
    await session.hold(lambda _: until(lambda: session.errors), **PLAIN)
    assert session.errors[0].code == 3008
    await session.client.disconnect()


async def test_ends_twice(listen):
    listen.script(faults=[{"kind": "double_finals"}], hears={"utterances": ["Hello."]})
    session = Session(listen)
    await session.hold(sound(1.0, 1.0), **PLAIN)
    assert [(m.turn_order, m.transcript) for m in session.turns()] == [(0, "hello")] * 2
