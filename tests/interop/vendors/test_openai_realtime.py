"""OpenAI's realtime transcription and speech to speech, held by openai."""

import asyncio
import base64

import pytest
from openai import AsyncOpenAI
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from support import chunks, collect, conforms, sound, until

# Of a session that the client shows as the class of a request.
SESSION = frozenset({"id", "object", "expires_at"})


@pytest.fixture
def openai(control):
    return control("openai-realtime")


class Session:
    """Reads all events of a connection of the client beside what a test does."""

    def __init__(self, at, transcribe=False):
        client = AsyncOpenAI(api_key=at.key, base_url=f"{at.http}/v1", websocket_base_url=f"{at.ws}/v1")
        query = {"extra_query": {"intent": "transcription"}} if transcribe else {"model": "gpt-realtime"}
        self.manager = client.realtime.connect(**query)
        self.got = []

    async def __aenter__(self):
        self.connection = await self.manager.__aenter__()
        self.reader = asyncio.create_task(collect(self.connection, self.got))
        return self

    async def __aexit__(self, *error):
        self.reader.cancel()
        await self.manager.__aexit__(*error)
        for event in self.got:
            conforms(event, SESSION)

    async def set(self, kind, count=1, **options):
        await self.connection.session.update(session={"type": kind, **options})
        await self.until("session.updated", count)

    async def say(self, data: bytes):
        for chunk in chunks(data, 4800):
            await self.connection.input_audio_buffer.append(audio=base64.b64encode(chunk).decode())

    async def until(self, kind, count=1):
        await until(lambda: self.reader.done() or len(self.all(kind)) >= count)
        return self.all(kind)

    def all(self, kind):
        return [event for event in self.got if event.type == kind]

    def kinds(self, without=()):
        return [event.type for event in self.got if not event.type.endswith(".delta") and event.type not in without]


def voice(*parts):
    return sound(*parts, rate=24000)


TRANSCRIBED = "conversation.item.input_audio_transcription.completed"
GPT_4O = {"transcription": {"model": "gpt-4o-transcribe", "language": "en"}}


async def test_transcription_with_the_vendors_turns(openai):
    openai.script(hears={"utterances": ["Yes, I would.", "Tomorrow."]})
    async with Session(openai, transcribe=True) as session:
        await session.set("transcription", audio={"input": GPT_4O})
        await session.say(voice(1.0, 1.0, 1.0, 1.0))
        done = await session.until(TRANSCRIBED, 2)
    assert [event.transcript for event in done] == ["Yes, I would.", "Tomorrow."]
    deltas = session.all("conversation.item.input_audio_transcription.delta")
    assert "".join(event.delta for event in deltas if event.item_id == done[0].item_id) == "Yes, I would."
    turn = [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
    ]
    assert session.kinds() == ["session.created", "session.updated", *[*turn, "conversation.item.done", TRANSCRIBED] * 2]
    started = session.all("input_audio_buffer.speech_started")
    assert [event.audio_start_ms for event in started] == [0, 2000]
    committed = session.all("input_audio_buffer.committed")
    assert committed[1].previous_item_id == committed[0].item_id == done[0].item_id
    seen = openai.seen()[0]
    assert seen["headers"]["authorization"] == "Bearer (key)" and seen["sound_ms"] == 4000


async def test_transcription_while_one_speaks_needs_a_commit(openai):
    openai.script(hears={"utterances": ["one two three four five six"]})
    live = {"transcription": {"model": "gpt-realtime-whisper"}, "turn_detection": None}
    async with Session(openai, transcribe=True) as session:
        await session.connection.session.update(
            session={"type": "transcription", "audio": {"input": {"transcription": live["transcription"]}}}
        )
        [error] = await session.until("error")
        assert error.error.param == "session.audio.input.turn_detection"
        await session.set("transcription", audio={"input": live})
        await session.say(voice(2.0, 0.5))
        await until(lambda: session.all("conversation.item.input_audio_transcription.delta"))
        assert not session.all("input_audio_buffer.speech_started")
        await session.connection.input_audio_buffer.commit()
        [done] = await session.until(TRANSCRIBED)
        assert done.transcript == "one two three four five six"
        await session.connection.input_audio_buffer.commit()
        errors = await session.until("error", 2)
        assert errors[1].error.code == "input_audio_buffer_commit_empty"


TOOL = {"type": "function", "name": "book", "description": "Books a visit.", "parameters": {"type": "object", "properties": {}}}


async def test_speech_to_speech_with_a_tool(openai):
    openai.script(
        hears={"utterances": ["Book Friday."]},
        replies=[
            {"text": "One moment.", "tools": [{"name": "book", "arguments": {"day": "Friday"}, "id": "call_1"}]},
            {"text": "It is booked."},
        ],
    )
    async with Session(openai) as session:
        await session.set("realtime", instructions="Be brief.", tools=[TOOL], audio={"input": {"transcription": {"model": "whisper-1"}}})
        await session.say(voice(1.0, 1.0))
        [first] = await session.until("response.done")
        assert first.response.status == "completed" and [item.type for item in first.response.output] == ["message", "function_call"]
        call = first.response.output[1]
        assert (call.name, call.arguments, call.call_id) == ("book", '{"day": "Friday"}', "call_1")
        assert first.response.output[0].content[0].transcript == "One moment."
        await session.connection.conversation.item.create(item={"type": "function_call_output", "call_id": "call_1", "output": "done"})
        await session.connection.response.create()
        done = await session.until("response.done", 2)
        await session.until("rate_limits.updated", 2)
    assert done[1].response.output[0].content[0].transcript == "It is booked."
    sounds = session.all("response.output_audio.delta")
    assert sum(len(base64.b64decode(event.delta)) for event in sounds) == len("One moment.It is booked.") * 60 * 48
    assert "".join(event.delta for event in session.all("response.output_audio_transcript.delta")) == "One moment.It is booked."
    assert [event.transcript for event in session.all(TRANSCRIBED)] == ["Book Friday."]
    order = session.kinds(without=("rate_limits.updated",))
    assert order[order.index("response.created") :][:7] == [
        "response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added", "response.output_audio.done",
        "response.output_audio_transcript.done", "response.content_part.done",
    ]  # fmt: skip


async def test_speech_stops_the_response_and_the_client_cuts_it_at_what_was_heard(openai):
    openai.script(
        hears={"utterances": ["Hello.", "Stop."]},
        replies=[{"text": "This is a long answer that is not heard to its end."}],
        says={"pace": 2},
    )
    async with Session(openai) as session:
        await session.say(voice(0.5, 0.7))
        await session.until("response.output_audio.delta", 3)
        await session.say(voice(0.5))
        [done] = await session.until("response.done")
        assert done.response.status == "cancelled" and done.response.status_details.reason == "turn_detected"
        item = done.response.output[0]
        assert item.status == "incomplete"
        await session.connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=250)
        [cut] = await session.until("conversation.item.truncated")
        assert cut.audio_end_ms == 250
        await session.connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=300)
        [error] = await session.until("error")
        assert "already shorter" in error.error.message
        await session.connection.response.cancel()
        errors = await session.until("error", 2)
        assert errors[1].error.code == "response_cancel_not_active"


async def test_the_clients_turns(openai):
    openai.script(hears={"utterances": ["Hello."]}, replies=[{"text": "Yes, and this goes on for quite a while."}], says={"pace": 2})
    async with Session(openai) as session:
        await session.set("realtime", audio={"input": {"turn_detection": None}})
        await session.say(voice(0.5, 0.2))
        await session.connection.input_audio_buffer.commit()
        await session.until("input_audio_buffer.committed")
        assert not session.all("response.created")
        await session.connection.response.create()
        await session.until("response.output_audio.delta")
        await session.connection.response.create()
        [error] = await session.until("error")
        assert error.error.code == "conversation_already_has_active_response"
        await session.connection.response.cancel()
        [done] = await session.until("response.done")
        assert done.response.status_details.reason == "client_cancelled"
        await session.connection.input_audio_buffer.clear()
        await session.until("input_audio_buffer.cleared")
        item = session.all("input_audio_buffer.committed")[0].item_id
        await session.connection.conversation.item.delete(item_id=item)
        [deleted] = await session.until("conversation.item.deleted")
        assert deleted.item_id == item


async def test_what_the_specification_does_not_have_is_an_error(openai):
    async with Session(openai) as session:
        for wrong, param in (
            ({"nonsense": 1}, "session.nonsense"),
            ({"type": "transcription"}, "session.type"),
            ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}}, "session.audio.input.format"),
        ):
            count = len(session.all("error"))
            await session.connection.session.update(session={"type": "realtime"} | wrong)
            assert (await session.until("error", count + 1))[-1].error.param == param
        await session.connection.conversation.item.create(item={"type": "function_call_output", "call_id": "none", "output": ""})
        assert (await session.until("error", 4))[-1].error.code == "invalid_tool_call_id"


@pytest.mark.parametrize("status", [401, 429, 500])
async def test_refusals(openai, status):
    openai.script(**({"key": "another"} if status == 401 else {"faults": [{"kind": "status", "status": status, "retry_after": 1}]}))
    with pytest.raises(InvalidStatus) as refused:
        async with Session(openai):
            pass
    assert refused.value.response.status_code == status and b'"error"' in refused.value.response.body


@pytest.mark.parametrize("code", [1006, 1011])
async def test_a_close_in_mid_answer(openai, code):
    openai.script(hears={"utterances": ["Hello."]}, faults=[{"kind": "close", "code": code, "at": {"audio_ms": 200}}])
    async with Session(openai) as session:
        await session.say(voice(0.5, 0.7))
        assert isinstance(await session.reader, ConnectionClosedError)
        assert not session.all("response.done")


async def test_the_limit_of_a_session(openai):
    openai.script(session={"limit_s": 0.2})
    async with Session(openai) as session:
        await session.reader
        assert session.all("error")[-1].error.code == "session_expired"


async def test_transcripts_and_answers_come_twice(openai):
    openai.script(hears={"utterances": ["Hello."]}, faults=[{"kind": "double_finals"}])
    async with Session(openai) as session:
        await session.set("realtime", audio={"input": {"transcription": {"model": "whisper-1"}}})
        await session.say(voice(0.5, 0.7))
        await session.until("response.done", 2)
        assert [event.transcript for event in session.all(TRANSCRIBED)] == ["Hello.", "Hello."]
        assert len(session.all("response.done")) == 2
