"""How words are compared, and what answers by rule, by tables; and the server without anybody on the line."""

import subprocess
import sys

import aiohttp
import numpy as np
import pytest

import mind
from conftest import HERE
from sound import wav
from words import error_rate, errors, words


@pytest.mark.parametrize(("said", "heard", "wrong", "of"), [
    ("Press two, please.", "press 2 please", 0, 3),
    ("Your e-mail, okay?", "Your email OK", 0, 3),
    ("It costs twenty-one.", "it costs 21", 0, 4),
    ("I don\u2019t know", "I don't know", 0, 3),
    ("one two three", "one three", 1, 3),
    ("one two three", "one two two three", 1, 3),
    ("one two three", "", 3, 3),
    ("", "made up", 2, 0),
])
def test_wrong_words_are_counted(said, heard, wrong, of):
    assert errors(said, heard) == (wrong, of)


def test_the_rate_is_over_all_words_and_not_over_lines():
    assert error_rate([("a b c d e f g h i", "a b c d e f g h i"), ("x", "y")]) == 0.1
    assert words("20 people") == ["twenty", "people"]


@pytest.mark.parametrize(("said", "found"), [
    ("My name is Peter Brown. I work for the city hospital and my email addresses Peter at example.org.",
     {"name": "Peter Brown", "company": "city hospital", "email": "peter@example.org"}),
    ("My name is Mary Jones, my e-mail is mary dot jones, at example dot com, and I work for Acme.",
     {"name": "Mary Jones", "company": "Acme", "email": "mary.jones@example.com"}),
    # In two stretches of speech, because of a pause.
    ("My name is Mary Jones. I work for the library. and my email address is water. at example.com.",
     {"name": "Mary Jones", "company": "library", "email": "water@example.com"}),
    ("my name is David and I work at the zoo", {"name": "David", "company": "zoo"}),
    ("My email is somewhere", {}),
    ("What do your plans cost?", {}),
])
def test_a_lead_is_found_in_what_was_said(said, found):
    assert mind.lead(said) == found


ALL_TOOLS = {"create_lead", "detect_intent", "end_call"}


@pytest.mark.parametrize(("said", "words", "tools"), [
    ("What do your plans cost?", "twenty a month", ["detect_intent"]),
    ("My name is Peter Brown, I work for Acme, my e-mail is peter at example dot com.", "", ["create_lead"]),
    ("My name is Peter Brown, I work for Acme.", "e-mail address", []),
    ("I work for Acme.", "your name", []),
    ("No, thank you. Goodbye.", "Goodbye", ["end_call"]),
    ("When do you open?", "nine to five", []),
    ("Hello.", "plans cost", []),
    ("Please hold while we try to connect you.", "You said: Please hold while we try to connect you.", []),
    ("", "did not understand", []),
])
def test_the_answer_fits_what_was_said(said, words, tools):
    reply = mind.answer([{"role": "system", "content": "."}, {"role": "user", "content": said}], ALL_TOOLS)
    assert words in reply.text and [name for name, _ in reply.tools] == tools
    assert not mind.answer([{"role": "user", "content": said}], set()).tools


def test_name_and_address_may_come_one_after_the_other():
    said = [{"role": "user", "content": text} for text in ("My name is Peter Brown.", "My e-mail is peter at example dot com.")]
    (tool, arguments), = mind.answer(said, ALL_TOOLS).tools
    assert tool == "create_lead" and arguments["name"] == "Peter Brown" and arguments["email"] == "peter@example.com"


def test_a_lead_that_is_noted_is_thanked_for_and_other_tools_need_no_words():
    def after(tool: str):
        call = {"id": "1", "type": "function", "function": {"name": tool, "arguments": '{"name": "Peter"}'}}
        asked = {"role": "assistant", "tool_calls": [call]}
        return mind.answer([{"role": "user", "content": "x"}, asked, {"role": "tool", "tool_call_id": "1", "content": "ok"}], ALL_TOOLS)

    assert after("create_lead").text.startswith("Thank you, Peter.")
    assert after("end_call").text == ""


async def test_what_the_server_cannot_do_is_said_in_a_sentence(speech):
    async with aiohttp.ClientSession() as http:
        for path, body, part in [
            ("audio/speech", {"input": ""}, "input is no text"),
            ("audio/speech", {"input": "x" * 5000}, "longer than"),
            ("audio/speech", {"input": "Hello.", "response_format": "mp3"}, "pcm or wav"),
            ("audio/speech", {"input": "Hello.", "speed": "fast"}, "speed"),
            ("chat/completions", {"messages": []}, "messages"),
            ("chat/completions", [], "JSON object"),
        ]:
            async with http.post(f"{speech.url}/{path}", json=body) as answer:
                assert answer.status == 400, (path, body)
                assert part in (await answer.json())["error"]["message"]
        form = aiohttp.FormData()
        form.add_field("file", b"no sound at all", filename="a.wav")
        async with http.post(f"{speech.url}/audio/transcriptions", data=form) as answer:
            assert answer.status == 400 and "sound" in (await answer.json())["error"]["message"]


async def test_words_that_are_spoken_are_heard_again_in_both_formats(speech):
    async with aiohttp.ClientSession() as http:
        body = {"model": "any", "voice": "any", "input": "Please hold the line.", "response_format": "pcm"}
        async with http.post(f"{speech.url}/audio/speech", json=body) as answer:
            pcm = await answer.read()
    # 24 kHz, 16 bit.
    assert 0.8 < len(pcm) / 48_000 < 4
    for sound, rate_hz in [(np.frombuffer(pcm, "<i2"), 24_000), (await speech.say("Please hold the line.", 16_000), 16_000)]:
        assert words(await speech.transcribe(wav(sound, rate_hz))) == ["please", "hold", "the", "line"]


def test_the_server_ends_with_its_stdin_and_with_its_command():
    server = [sys.executable, str(HERE / "server.py"), "--seconds", "60"]
    for stdin in ({"input": b""}, {"stdin": subprocess.DEVNULL}):
        ended = subprocess.run([*server, "--stop-with-stdin", "--seconds", "3600"], **stdin, stdout=subprocess.PIPE, timeout=90)
        assert ended.returncode == 0 and b"http://127.0.0.1:" in ended.stdout
    command = [sys.executable, "-c", "import os, sys; print(os.environ['OPENAI_BASE_URL']); sys.exit(7)"]
    ended = subprocess.run([*server, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=90)
    assert ended.returncode == 7 and ended.stdout.count(b"http://127.0.0.1:") == 2
