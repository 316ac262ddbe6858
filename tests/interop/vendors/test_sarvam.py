"""Sarvam's recognition and voices, held by sarvamai."""

import asyncio
import base64
import io
import wave

import pytest
from sarvamai import AsyncSarvamAI
from sarvamai import types as messages
from sarvamai.core.api_error import ApiError
from sarvamai.environment import SarvamAIEnvironment
from websockets.exceptions import ConnectionClosed

from support import chunks, collect, sound, until


@pytest.fixture
def listen(control):
    return control("sarvam-stt")


@pytest.fixture
def voice(control):
    return control("sarvam-tts")


def client(at) -> AsyncSarvamAI:
    return AsyncSarvamAI(api_subscription_key=at.key, environment=SarvamAIEnvironment(base=at.http, creative=at.http, production=at.ws))


def realtime(listen, **query):
    query = {"language_code": "en-IN", "encoding": "linear16", "sample_rate": "16000"} | query
    return client(listen).speech_to_text_realtime_streaming.connect(**query)


def strict(got):
    """The client's union takes the first class that fits, so the class is named by the event."""
    classes = {
        "session.begin": messages.RealtimeSessionBegin,
        "vad.speech_start": messages.RealtimeVadSpeechStart,
        "vad.speech_end": messages.RealtimeVadSpeechEnd,
        "transcript.partial": messages.RealtimeTranscriptPartial,
        "transcript.final": messages.RealtimeTranscriptFinal,
        "config.updated": messages.RealtimeConfigUpdated,
        "session.end": messages.RealtimeSessionEnd,
        "error": messages.RealtimeError,
        "pong": messages.RealtimePong,
    }
    for message in got:
        assert isinstance(message, classes[message.event])
        assert not message.model_extra, message
    return got


async def say(socket, data: bytes):
    for chunk in chunks(data):
        await socket.send_realtime_audio_input(messages.RealtimeAudioInput(audio=base64.b64encode(chunk).decode()))


async def hold(listen, *pieces, **query):
    got = []
    async with realtime(listen, **query) as socket:
        reader = asyncio.create_task(collect(socket, got))
        for piece in pieces:
            await (piece(socket) if callable(piece) else say(socket, piece))
        await socket.send_realtime_end(messages.RealtimeEnd())
        assert await reader is None
    return strict(got)


async def test_utterances_found_by_the_vendor(listen):
    listen.script(hears={"utterances": ["Haan, theek hai.", "Kal subah."]})
    got = await hold(listen, sound(1.0, 1.0, 1.0, 1.0), return_timestamps="true", language_code="auto")
    events = [message.event for message in got if message.event != "transcript.partial"]
    assert events == ["session.begin", *["vad.speech_start", "vad.speech_end", "transcript.final"] * 2, "session.end"]
    finals = [message for message in got if message.event == "transcript.final"]
    assert [(m.utterance_idx, m.text) for m in finals] == [(0, "Haan, theek hai."), (1, "Kal subah.")]
    assert finals[0].start_s == 0.0 and finals[0].language_confidence == 0.95
    assert got[-1].total_utterances == 2 and got[-1].audio_duration_s == pytest.approx(4.0)
    assert listen.key not in str(listen.seen())


async def test_utterances_ended_by_the_client(listen):
    listen.script(hears={"utterances": ["one two three four five six"]})
    data = sound(2.0, 1.0)
    start = lambda socket: socket.send_realtime_speech_start(messages.RealtimeSpeechStart())
    end = lambda socket: socket.send_realtime_speech_end(messages.RealtimeSpeechEnd())
    got = await hold(listen, start, data[:32000], end, start, data[32000:], end, endpointing="manual")
    assert [m.text for m in got if m.event == "transcript.final"] == ["one two three four", "five six"]
    assert not any(m.event.startswith("vad.") for m in got)


async def test_settings_and_pings(listen):
    update = lambda **settings: lambda socket: socket.send_realtime_config_update(messages.RealtimeConfigUpdate(**settings))
    ping = lambda socket: socket.send_realtime_ping(messages.RealtimePing())
    got = await hold(listen, ping, update(silence_duration_ms=300), update(stream_type="simulated"))
    assert [m.event for m in got] == ["session.begin", "pong", "config.updated", "error", "session.end"]
    assert got[2].applied == ["silence_duration_ms"] and got[3].code == "invalid_config" and not got[3].is_fatal


@pytest.mark.parametrize(
    ("script", "query", "code"),
    [
        ({"key": "another"}, {}, 1003),
        ({}, {"language_code": "xx-XX"}, 4000),
        ({}, {"encoding": "mp7"}, 4000),
        ({}, {"sample_rate": "44100"}, 4000),
        ({"session": {"idle_s": 0.2}}, {}, 1008),
    ],
)
async def test_what_ends_a_session_is_told_first(listen, script, query, code):
    listen.script(**script)
    got = []
    async with realtime(listen, **query) as socket:
        error = await collect(socket, got)
    assert strict(got)[-1].is_fatal and error.rcvd.code == code


@pytest.mark.parametrize("code", [1006, 1013])
async def test_a_close_in_mid_speech_keeps_the_words_for_the_next_session(listen, code):
    listen.script(faults=[{"kind": "close", "code": code, "at": {"sound_ms": 500}}], hears={"utterances": ["Hello there."]})
    got = []
    async with realtime(listen) as socket:
        reader = asyncio.create_task(collect(socket, got))
        try:
            await say(socket, sound(1.0))
        except ConnectionClosed:
            pass
        assert isinstance(await reader, ConnectionClosed)
    assert not any(m.event == "transcript.final" for m in got)
    got = await hold(listen, sound(1.0, 1.0))
    assert [m.text for m in got if m.event == "transcript.final"] == ["Hello there."]


def wav(data: bytes) -> str:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(data)
    return base64.b64encode(file.getvalue()).decode()


async def test_the_older_endpoint(listen):
    listen.script(hears={"utterances": ["Haan, theek hai.", "Kal subah."]})
    got = []
    async with client(listen).speech_to_text_streaming.connect(language_code="hi-IN", vad_signals="true", flush_signal="true") as socket:
        reader = asyncio.create_task(collect(socket, got))
        for chunk in chunks(sound(1.0, 1.0, 1.0)):
            await socket.transcribe(wav(chunk))
        await socket.flush()
        await until(lambda: sum(message.type == "data" for message in got) == 2)
        reader.cancel()
    for message in got:
        kind = messages.EventsData if message.type == "events" else messages.SpeechToTextTranscriptionData
        assert isinstance(message, messages.SpeechToTextStreamingResponse)
        assert not kind.model_validate(message.data.model_dump(mode="python")).model_extra
    assert [m.data.signal_type if m.type == "events" else m.data.transcript for m in got] == [
        "START_SPEECH", "END_SPEECH", "Haan, theek hai.", "START_SPEECH", "END_SPEECH", "Kal subah.",
    ]  # fmt: skip


async def speak(voice, *texts, completion="true", **options):
    """Flushes each text; what came until the last completion."""
    got = []
    async with client(voice).text_to_speech_streaming.connect(model="bulbul:v3", send_completion_event=completion) as socket:
        reader = asyncio.create_task(collect(socket, got))
        settings = {"target_language_code": "hi-IN", "speaker": "shubh", "output_audio_codec": "linear16", "speech_sample_rate": 16000}
        await socket.configure(**(settings | options))
        for text in texts:
            await socket.convert(text)
            await socket.flush()
        await until(lambda: reader.done() or sum(m.type in ("event", "error") for m in got) >= len(texts))
        error = reader.result() if reader.done() else None
        reader.cancel()
    return got, error


def size(got):
    return sum(len(base64.b64decode(m.data.audio)) for m in got if m.type == "audio")


async def test_texts_between_their_completions(voice):
    got, _ = await speak(voice, "Namaste.", "Aap kaise hain?")
    classes = {"audio": messages.AudioOutput, "event": messages.EventResponse}
    assert all(isinstance(m, classes[m.type]) and not m.model_extra and not m.data.model_extra for m in got)
    first = next(n for n, m in enumerate(got) if m.type == "event")
    assert size(got[:first]) == 8 * 60 * 32 and size(got[first:]) == 15 * 60 * 32
    config = voice.seen()[0]["messages"][0]
    assert config["type"] == "config" and config["data"]["language_code"] == "hi-IN"


@pytest.mark.parametrize(("codec", "rate", "each"), [("linear16", 24000, 1440 * 2), ("mulaw", 8000, 480), ("alaw", 8000, 480)])
async def test_formats(voice, codec, rate, each):
    got, _ = await speak(voice, "Ten chars.", output_audio_codec=codec, speech_sample_rate=rate)
    assert size(got) == each * 10


@pytest.mark.parametrize("wrong", [{"speaker": "Shubh"}, {"speech_sample_rate": 12345}, {"output_audio_codec": "mp7"}])
async def test_what_the_specification_does_not_have_is_an_error(voice, wrong):
    got, _ = await speak(voice, "Hello.", **wrong)
    assert isinstance(got[0], messages.ErrorResponse) and got[0].data.code == 422


async def test_a_wrong_key_a_close_and_sound_of_another_rate(voice):
    voice.script(key="another")
    with pytest.raises(ApiError) as refused:
        await speak(voice, "Hello.")
    assert refused.value.status_code == 403
    voice.script(faults=[{"kind": "close", "code": 1011, "at": {"audio_ms": 300}}, {"kind": "wrong_rate", "rate": 8000}])
    got, error = await speak(voice, "Good morning.")
    assert size(got) == 300 * 32 and error.rcvd.code == 1011
    got, _ = await speak(voice, "Good morning.")
    assert size(got) == 13 * 60 * 16
