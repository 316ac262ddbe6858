"""Gemini's speech to speech, held by google-genai."""

import asyncio
import json

import pytest
from google import genai
from google.genai import errors, types

from support import chunks, sound, until

MODEL = "gemini-3-flash-live"
BOOK = types.Tool(
    function_declarations=[types.FunctionDeclaration(name="book", description="Books a visit.", parameters_json_schema={"type": "object"})]
)


@pytest.fixture
def live(control):
    return control("gemini-live")


class Session:
    """Reads all messages of a session of the client beside what a test does."""

    def __init__(self, live, model=MODEL, **config):
        client = genai.Client(api_key=live.key, http_options=types.HttpOptions(base_url=live.http, api_version="v1beta"))
        # The client takes wss for every address.
        client._api_client._websocket_base_url = lambda *_: live.ws
        client._api_client._websocket_ssl_ctx = {}
        self.manager = client.aio.live.connect(model=model, config=types.LiveConnectConfig(**({"response_modalities": ["AUDIO"]} | config)))
        self.got: list[types.LiveServerMessage] = []
        self.error = None

    async def __aenter__(self):
        self.session = await self.manager.__aenter__()
        receive = self.session._ws.recv

        async def strictly(**options):
            data = await receive(**options)
            # Its class forbids what it does not know; the client itself passes over it.
            types.LiveServerMessage.model_validate(json.loads(data))
            return data

        self.session._ws.recv = strictly
        self.reader = asyncio.create_task(self.read())
        return self

    async def read(self):
        try:
            while True:
                async for message in self.session.receive():
                    self.got.append(message)
        except errors.APIError as error:
            self.error = error

    async def __aexit__(self, *error):
        self.reader.cancel()
        await self.manager.__aexit__(*error)

    async def say(self, data: bytes):
        for chunk in chunks(data):
            await self.session.send_realtime_input(audio=types.Blob(data=chunk, mime_type="audio/pcm;rate=16000"))

    def contents(self, field):
        return [value for m in self.got if m.server_content and (value := getattr(m.server_content, field)) is not None]

    async def until(self, field, count=1):
        await until(lambda: self.error or len(self.contents(field)) >= count)
        return self.contents(field)

    def text(self, field):
        return "".join(part.text for part in self.contents(field))

    def sound(self) -> bytes:
        return b"".join(part.inline_data.data for turn in self.contents("model_turn") for part in turn.parts)


BOTH = {"input_audio_transcription": types.AudioTranscriptionConfig(), "output_audio_transcription": types.AudioTranscriptionConfig()}


async def test_a_turn_with_both_transcripts(live):
    live.script(hears={"utterances": ["", "Hello there."]}, replies=[{"text": "Good morning."}])
    async with Session(live, **BOTH, system_instruction="Be brief.") as session:
        # Sound without words is answered by nothing.
        await session.say(sound(0.5, 1.0, 1.0, 1.0))
        await session.until("turn_complete")
    assert session.text("input_transcription") == "Hello there." and session.text("output_transcription") == "Good morning."
    assert len(session.sound()) == 13 * 60 * 48
    part = session.contents("model_turn")[0].parts[0]
    assert part.inline_data.mime_type == "audio/pcm;rate=24000"
    assert session.contents("generation_complete") == [True] and len(session.contents("turn_complete")) == 1
    assert [m.usage_metadata.total_token_count for m in session.got if m.usage_metadata] == [30]
    seen = live.seen()[0]
    assert seen["messages"][0]["setup"]["model"] == f"models/{MODEL}" and live.key not in str(seen)


async def test_a_tool(live):
    live.script(replies=[{"tools": [{"name": "book", "arguments": {"day": "Friday"}, "id": "f1"}]}, {"text": "It is booked."}])
    async with Session(live, **BOTH, tools=[BOOK]) as session:
        await session.session.send_client_content(
            turns=types.Content(role="user", parts=[types.Part(text="Book Friday.")]), turn_complete=True
        )
        await until(lambda: any(m.tool_call for m in session.got))
        [call] = [call for m in session.got if m.tool_call for call in m.tool_call.function_calls]
        assert (call.id, call.name, call.args) == ("f1", "book", {"day": "Friday"})
        await session.session.send_tool_response(
            function_responses=types.FunctionResponse(id="f1", name="book", response={"result": "done"})
        )
        await session.until("turn_complete")
    assert session.text("output_transcription") == "It is booked."


async def test_speech_stops_the_answer_and_takes_calls_back(live):
    live.script(
        hears={"utterances": ["Hello.", "Stop.", "Well."]},
        replies=[
            {"text": "This is a long answer that is not heard to its end."},
            {"tools": [{"name": "book", "id": "f1"}]},
            {"text": "Yes."},
        ],
        says={"pace": 2},
    )
    async with Session(live, tools=[BOOK]) as session:
        await session.say(sound(0.5, 0.7))
        await session.until("model_turn", 2)
        await session.say(sound(0.5, 0.7))
        await session.until("interrupted")
        await until(lambda: any(m.tool_call for m in session.got))
        assert session.contents("generation_complete") == [] and session.contents("turn_complete") == [True]
        assert len(session.sound()) < 40 * 60 * 48
        await session.say(sound(0.5, 0.7))
        await session.until("turn_complete", 2)
    assert [m.tool_call_cancellation.ids for m in session.got if m.tool_call_cancellation] == [["f1"]]


async def test_the_clients_turns(live):
    live.script(hears={"utterances": ["one two three four"]}, replies=[{"text": "Yes."}])
    manual = types.RealtimeInputConfig(automatic_activity_detection=types.AutomaticActivityDetection(disabled=True))
    async with Session(live, **BOTH, realtime_input_config=manual) as session:
        await session.session.send_realtime_input(activity_start=types.ActivityStart())
        await session.say(sound(1.2, 1.5))
        assert session.contents("model_turn") == []
        await session.session.send_realtime_input(activity_end=types.ActivityEnd())
        await session.until("turn_complete")
    assert session.text("input_transcription") == "one two three four"


async def test_a_session_goes_on_over_another_connection(live):
    live.script(hears={"utterances": ["Hello.", "And?"]}, replies=[{"text": "One."}, {"text": "Two."}], session={"go_away_after_turns": 1})
    resumption = types.SessionResumptionConfig()
    async with Session(live, **BOTH, session_resumption=resumption) as session:
        await session.say(sound(0.5, 0.7))
        await session.until("turn_complete")
        await until(lambda: session.error)
        assert [m.go_away.time_left for m in session.got if m.go_away] == ["0.5s"] and session.error.code == 1011
    handles = [m.session_resumption_update for m in session.got if m.session_resumption_update]
    assert handles[-1].resumable
    async with Session(live, **BOTH, session_resumption=types.SessionResumptionConfig(handle=handles[-1].new_handle)) as session:
        await session.say(sound(0.5, 0.7))
        await session.until("turn_complete")
        assert session.text("output_transcription") == "Two."
    with pytest.raises(errors.APIError) as refused:
        async with Session(live, session_resumption=types.SessionResumptionConfig(handle="unknown")):
            pass
    assert refused.value.code == 1008


async def test_what_is_wrong_ends_the_session(live):
    with pytest.raises(errors.APIError) as refused:
        async with Session(live, model="palm-1"):
            pass
    assert refused.value.code == 1008
    live.script(key="another")
    with pytest.raises(errors.APIError) as refused:
        async with Session(live):
            pass
    assert refused.value.code == 1007
    live.script()
    async with Session(live) as session:
        # Turns are the vendor's, so the client must not mark its own.
        await session.session.send_realtime_input(activity_end=types.ActivityEnd())
        await until(lambda: session.error)
        assert session.error.code == 1007


@pytest.mark.parametrize("code", [1006, 1011])
async def test_a_close_in_mid_answer(live, code):
    live.script(hears={"utterances": ["Hello."]}, faults=[{"kind": "close", "code": code, "at": {"audio_ms": 200}}])
    async with Session(live) as session:
        await session.say(sound(0.5, 0.7))
        await until(lambda: session.error)
        assert session.error.code == code and session.contents("turn_complete") == []


async def test_answers_end_twice_and_sound_of_another_rate(live):
    live.script(
        hears={"utterances": ["Hello."], "counter": "connection"}, faults=[{"kind": "double_finals"}, {"kind": "wrong_rate", "rate": 8000}]
    )
    async with Session(live) as session:
        await session.say(sound(0.5, 0.7))
        await session.until("turn_complete", 2)
    async with Session(live) as session:
        await session.say(sound(0.5, 0.7))
        await session.until("turn_complete")
        assert len(session.sound()) == len("Yes.") * 60 * 16
