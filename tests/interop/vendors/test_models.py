"""Anthropic's and Gemini's models, held by anthropic and google-genai."""

import anthropic
import httpx2
import pytest
from google import genai
from google.genai import errors, types

TOOL = {"name": "book", "description": "Books a visit.", "input_schema": {"type": "object", "properties": {"day": {"type": "string"}}}}
ASK = {"model": "claude-sonnet-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello."}]}


@pytest.fixture
def claude(control):
    return control("anthropic")


def claude_client(claude, **options):
    return anthropic.AsyncAnthropic(api_key=claude.key, base_url=claude.http, max_retries=0, **options)


async def claude_says(claude, **ask):
    """The streamed text in its pieces, and the whole message."""
    async with claude_client(claude).messages.stream(**(ASK | ask)) as stream:
        return [piece async for piece in stream.text_stream], await stream.get_final_message()


async def test_claude_says_words_and_calls_tools(claude):
    claude.script(
        replies=[
            {
                "text": "One moment, please.",
                "tools": [{"name": "book", "arguments": {"day": "Friday"}, "id": "t1"}, {"name": "book", "id": "t2"}],
            },
            {"text": "It is booked."},
        ]
    )
    pieces, message = await claude_says(claude, tools=[TOOL], tool_choice={"type": "auto"})
    assert pieces == ["One", " moment,", " please."]
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"] and message.stop_reason == "tool_use"
    assert message.content[1].input == {"day": "Friday"} and message.content[2].input == {}
    assert message.usage.input_tokens > 0 and message.usage.output_tokens > 3
    results = [{"type": "tool_result", "tool_use_id": name, "content": "done"} for name in ("t1", "t2")]
    history = [*ASK["messages"], {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    pieces, message = await claude_says(claude, messages=history, tools=[TOOL], system="Be brief.")
    assert "".join(pieces) == "It is booked." and message.stop_reason == "end_turn"
    seen = claude.seen()
    assert seen[1]["messages"][0]["system"] == "Be brief." and seen[0]["headers"]["anthropic-version"] == "2026-10-21"
    assert seen[0]["headers"]["authorization"] == "Bearer (key)" and claude.key not in str(seen)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "assistant", "content": "Hi."}]}, "first message"),
        ({"messages": [{"role": "user", "content": ""}]}, "non-empty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        # Since version 2026-10-21, which the client sends.
        ({"extra_body": {"temperature": 0.5}}, "temperature"),
        ({"extra_headers": {"anthropic-version": "2020-02-02"}}, "not a valid version"),
        ({"tools": [{"name": "x", "input_schema": {}}]}, "tools.0"),
        (
            {
                "messages": [
                    *ASK["messages"],
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "book", "input": {}}]},
                    {"role": "user", "content": "And?"},
                ]
            },
            "without `tool_result`",
        ),
    ],
)
async def test_claude_refuses_what_the_vendor_refuses(claude, ask, words):
    with pytest.raises(anthropic.BadRequestError) as refused:
        await claude_says(claude, **ask)
    assert words in refused.value.message and refused.value.body["error"]["type"] == "invalid_request_error"


async def test_claude_takes_the_older_version_with_its_key_and_temperature(claude):
    old = {"anthropic-version": "2023-06-01", "x-api-key": claude.key, "Authorization": anthropic.Omit()}
    pieces, message = await claude_says(claude, extra_body={"temperature": 0.5}, extra_headers=old)
    assert pieces == ["Yes."] and message.stop_reason == "end_turn"
    assert claude.seen()[0]["headers"]["x-api-key"] == "(key)" and "authorization" not in claude.seen()[0]["headers"]


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (401, anthropic.AuthenticationError, "authentication_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.InternalServerError, "overloaded_error"),
    ],
)
async def test_claude_refusals(claude, status, kind, body):
    claude.script(faults=[{"kind": "status", "status": status, "retry_after": 1}])
    with pytest.raises(kind) as refused:
        await claude_says(claude)
    assert refused.value.body["error"]["type"] == body and refused.value.response.headers["retry-after"] == "1"


async def test_claude_client_tries_again_after_what_the_vendor_says(claude):
    claude.script(faults=[{"kind": "status", "status": 429, "retry_after": 0}, {"kind": "status", "status": 529}])
    client = claude_client(claude).with_options(max_retries=2)
    async with client.messages.stream(**ASK) as stream:
        assert await stream.get_final_text() == "Yes."
    assert [seen["status"] for seen in claude.seen()] == [429, 529, 200]


async def test_claude_fails_in_mid_answer(claude):
    long = [{"text": "one two three four five six seven"}]
    claude.script(
        replies=[*long, *long, *long, {"text": "one two", "error": "overloaded_error"}],
        faults=[
            {"kind": "close", "at": {"sent": 5}},
            {"kind": "stall", "at": {"sent": 5}},
            {"kind": "garbage", "frame": "json", "at": {"sent": 5}},
        ],
    )
    with pytest.raises(httpx2.RemoteProtocolError):
        await claude_says(claude)
    with pytest.raises(httpx2.ReadTimeout):
        async with claude_client(claude, timeout=httpx2.Timeout(20, read=1)).messages.stream(**ASK) as stream:
            await stream.get_final_text()
    # The client passes over an event that it does not know.
    assert "".join((await claude_says(claude))[0]) == long[0]["text"]
    with pytest.raises(anthropic.APIStatusError) as error:
        await claude_says(claude)
    assert error.value.body["error"]["type"] == "overloaded_error"


@pytest.fixture
def gemini(control):
    return control("gemini")


async def gemini_says(gemini, contents="Hello.", timeout_ms=20000, **config):
    client = genai.Client(
        api_key=gemini.key, http_options=types.HttpOptions(base_url=gemini.http, api_version="v1beta", timeout=timeout_ms)
    )
    stream = await client.aio.models.generate_content_stream(
        model="gemini-3-flash", contents=contents, config=types.GenerateContentConfig(**config) if config else None
    )
    return [chunk async for chunk in stream]


async def test_gemini_says_words_and_calls_functions(gemini):
    gemini.script(
        replies=[
            {"text": "One moment, please.", "tools": [{"name": "book", "arguments": {"day": "Friday"}, "id": "f1"}]},
            {"text": "It is booked."},
        ]
    )
    book = types.FunctionDeclaration(name="book", description="Books a visit.", parameters_json_schema={"type": "object"})
    options = {
        "tools": [types.Tool(function_declarations=[book])],
        "system_instruction": "Be brief.",
        "automatic_function_calling": types.AutomaticFunctionCallingConfig(disable=True),
    }
    chunks = await gemini_says(gemini, **options)
    assert [chunk.text for chunk in chunks[:3]] == ["One", " moment,", " please."]
    [call] = [call for chunk in chunks for call in chunk.function_calls or []]
    assert (call.name, call.args, call.id) == ("book", {"day": "Friday"}, "f1")
    assert chunks[-1].candidates[0].finish_reason == types.FinishReason.STOP and chunks[-1].usage_metadata.candidates_token_count == 4
    answer = types.Part(function_response=types.FunctionResponse(id="f1", name="book", response={"result": "done"}))
    history = [
        types.Content(role="user", parts=[types.Part(text="Hello.")]),
        types.Content(role="model", parts=[types.Part(function_call=call)]),
        types.Content(role="user", parts=[answer]),
    ]
    chunks = await gemini_says(gemini, history, **options)
    assert "".join(chunk.text or "" for chunk in chunks) == "It is booked."
    seen = gemini.seen()
    assert seen[0]["messages"][0]["systemInstruction"]["parts"][0]["text"] == "Be brief." and gemini.key not in str(seen)
    # An answer to a function is missing.
    with pytest.raises(errors.ClientError) as refused:
        await gemini_says(gemini, [*history[:2], types.Content(role="user", parts=[types.Part(text="And?")])], **options)
    assert "number of function response parts" in refused.value.message


@pytest.mark.parametrize(
    ("fault", "status"),
    [(400, "INVALID_ARGUMENT"), (403, "PERMISSION_DENIED"), (429, "RESOURCE_EXHAUSTED"), (500, "INTERNAL"), (503, "UNAVAILABLE")],
)
async def test_gemini_refusals(gemini, fault, status):
    gemini.script(faults=[{"kind": "status", "status": fault, "always": True}])
    with pytest.raises(errors.APIError) as refused:
        await gemini_says(gemini)
    assert refused.value.code == fault and refused.value.status == status


async def test_gemini_keys_and_models(gemini):
    gemini.script(key="another")
    with pytest.raises(errors.ClientError) as refused:
        await gemini_says(gemini)
    assert refused.value.code == 400 and "API key not valid" in refused.value.message


async def test_gemini_fails_in_mid_answer(gemini):
    long = [{"text": "one two three four five six seven"}]
    gemini.script(
        replies=[*long, *long, {"text": "one two", "error": "UNAVAILABLE"}],
        faults=[{"kind": "close", "at": {"sent": 3}}, {"kind": "stall", "at": {"sent": 3}}],
    )
    with pytest.raises(Exception) as cut:  # the client's transport decides which
        await gemini_says(gemini)
    assert not isinstance(cut.value, AssertionError)
    with pytest.raises(Exception) as stalled:
        await gemini_says(gemini, timeout_ms=2000)
    assert "imeout" in type(stalled.value).__name__ or "imeout" in str(stalled.value)
    with pytest.raises(errors.APIError) as error:
        await gemini_says(gemini)
    assert error.value.code == 503
