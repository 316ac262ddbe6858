"""ElevenLabs' recognition, held by elevenlabs."""

import base64

import pytest
from elevenlabs import AudioFormat, CommitStrategy
from elevenlabs import types as messages
from elevenlabs.realtime.connection import RealtimeEvents
from elevenlabs.realtime.scribe import ScribeRealtime
from websockets.exceptions import ConnectionClosed, InvalidStatus

from support import chunks, conforms, sound, until

CLASSES = {
    "session_started": messages.SessionStartedPayload,
    "partial_transcript": messages.PartialTranscriptPayload,
    "committed_transcript": messages.CommittedTranscriptPayload,
    "committed_transcript_with_timestamps": messages.CommittedTranscriptWithTimestampsPayload,
    "commit_throttled": messages.ScribeThrottledErrorPayload,
    "auth_error": messages.ScribeAuthErrorPayload,
    "input_error": messages.ScribeInputErrorPayload,
    "session_time_limit_exceeded": messages.ScribeSessionTimeLimitExceededErrorPayload,
}


@pytest.fixture
def scribe(control):
    return control("elevenlabs-scribe")


class Session:
    """A session of the client; it is over when the client says so."""

    async def open(self, scribe, **options):
        self.got, self.closed = [], []
        base = {"model_id": "scribe_v2_realtime", "audio_format": AudioFormat.PCM_16000, "sample_rate": 16000}
        self.connection = await ScribeRealtime(scribe.key, scribe.ws).connect(base | options)
        for event in RealtimeEvents:
            if event == RealtimeEvents.CLOSE:
                self.connection.on(event, lambda info: self.closed.append(info))
            elif event not in (RealtimeEvents.OPEN, RealtimeEvents.ERROR):
                self.connection.on(event, self.take)
        return self

    def take(self, message):
        # The client swallows what a handler raises, so what came is judged at the end.
        self.got.append(message)

    async def close(self):
        await self.connection.close()
        self.judge()

    def judge(self):
        for message in self.got:
            if kind := CLASSES.get(message["message_type"]):
                conforms(kind.model_validate(message))

    async def say(self, data: bytes):
        for chunk in chunks(data):
            await self.connection.send({"audio_base_64": base64.b64encode(chunk).decode()})

    def texts(self, kind="committed_transcript"):
        return [message["text"] for message in self.got if message["message_type"] == kind]

    async def until(self, count: int, kind="committed_transcript"):
        await until(lambda: len(self.texts(kind)) >= count)


async def test_commits_by_silence_come_plain_and_with_times(scribe):
    scribe.script(hears={"utterances": ["Yes, I would.", "Tomorrow."]})
    options = {"commit_strategy": CommitStrategy.VAD, "vad_silence_threshold_secs": 0.5, "include_timestamps": True}
    session = await Session().open(scribe, **options)
    await session.say(sound(1.0, 1.0, 1.0, 1.0))
    await session.until(2, "committed_transcript_with_timestamps")
    assert session.got[0]["message_type"] == "session_started" and session.got[0]["config"]["sample_rate"] == 16000
    assert session.texts() == session.texts("committed_transcript_with_timestamps") == ["Yes, I would.", "Tomorrow."]
    assert session.texts("partial_transcript")[0] == "Yes,"
    words = next(m for m in session.got if m["message_type"] == "committed_transcript_with_timestamps")["words"]
    assert "".join(word["text"] for word in words) == "Yes, I would." and words[0]["start"] == 0.0
    await session.close()
    await until(lambda: scribe.seen()[0]["closed"] == {"by": "client", "code": 1000})
    assert scribe.key not in str(scribe.seen())


async def test_commits_by_the_client(scribe):
    scribe.script(hears={"utterances": ["one two three four five six"]})
    session = await Session().open(scribe)
    data = sound(2.0, 1.5)
    await session.say(data[:32000])
    await session.connection.commit()
    await session.say(data[32000:])
    await session.connection.commit()
    await session.until(2)
    assert session.texts() == ["one two three four", "five six"]
    # Nothing came since.
    await session.connection.commit()
    await until(lambda: session.got[-1]["message_type"] == "commit_throttled")
    await session.close()


@pytest.mark.parametrize("wrong", [{"model_id": "scribe_v9"}, {"commit_strategy": CommitStrategy.VAD, "vad_silence_threshold_secs": 9}])
async def test_what_the_specification_does_not_have_is_refused(scribe, wrong):
    with pytest.raises(InvalidStatus) as refused:
        await Session().open(scribe, **wrong)
    assert refused.value.response.status_code == 400


async def test_a_wrong_key_a_wrong_rate_and_the_limit_end_the_session_with_a_message(scribe):
    for script, options, kind in (
        ({"key": "another"}, {}, "auth_error"),
        ({}, {"sample_rate": 8000}, "input_error"),
        ({"session": {"limit_s": 0.2}}, {}, "session_time_limit_exceeded"),
    ):
        scribe.script(**script)
        session = await Session().open(scribe, **options)
        if options:
            await session.say(sound(0.1))
        await until(lambda: session.closed)
        session.judge()
        assert session.closed == [{"code": 1008, "reason": session.closed[0]["reason"]}]
        assert scribe.seen()[0]["sent"][-1] == kind


@pytest.mark.parametrize("code", [1006, 1011])
async def test_a_close_in_mid_speech_keeps_the_words_for_the_next_session(scribe, code):
    scribe.script(faults=[{"kind": "close", "code": code, "at": {"sound_ms": 500}}], hears={"utterances": ["Hello there."]})
    session = await Session().open(scribe)
    try:
        await session.say(sound(1.0))
    except ConnectionClosed:
        pass
    await until(lambda: session.closed)
    assert session.closed[0]["code"] == code and session.texts() == []
    session = await Session().open(scribe)
    await session.say(sound(1.0, 0.5))
    await session.connection.commit()
    await session.until(1)
    assert session.texts() == ["Hello there."]
    await session.close()


async def test_a_refusal(scribe):
    scribe.script(faults=[{"kind": "status", "status": 429, "retry_after": 1}])
    with pytest.raises(InvalidStatus) as refused:
        await Session().open(scribe)
    assert refused.value.response.status_code == 429 and refused.value.response.headers["Retry-After"] == "1"
