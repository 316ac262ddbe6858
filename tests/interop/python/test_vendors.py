"""Whole calls with vendors that stream: the worker hears and speaks through the stand-ins of `tests/interop/vendors`, with all their faults."""

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
import uuid

import pytest
import pytest_asyncio

from crm import Crm
from process import REPOSITORY, Process, voicebot_binary
from test_call import AGENT_NAME, dial, free_port, registered

STANDIN = REPOSITORY / "tests/interop/vendors/standin.py"
SAID = {
    "hello": "Hello, I would like to know what your plans cost.",
    "lead": "My name is John Smith, my e-mail is john.smith@example.com, I work for Acme, and I am interested in the business plan.",
    "goodbye": "No, thank you. Goodbye.",
}


@pytest.fixture(scope="module")
def port():
    with subprocess.Popen([sys.executable, STANDIN, "--port", "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield int(process.stdout.readline())
        process.stdin.close()
        assert process.wait(10) == 0


class Vendors:
    """The stand-ins, for the clients with this test's key."""

    def __init__(self, port: int, tmp_path):
        self.key, self.port, self.tmp_path = f"key-{uuid.uuid4()}", port, tmp_path
        self.lists: list[str] = []

    def control(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/control/{name}?key={self.key}"

    def script(self, name: str, **parts):
        request = urllib.request.Request(self.control(name), json.dumps(parts).encode(), {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=5).close()

    def seen(self, name: str) -> list[dict]:
        with urllib.request.urlopen(self.control(name), timeout=5) as answer:
            return json.load(answer)["connections"]

    def use(self, kind: str, vendor: str, **keys):
        path = "/v1" if vendor == "openai_realtime" else ""
        entries = {"vendor": vendor, "base_url": f"ws://127.0.0.1:{self.port}{path}", **keys}
        lines = [f"{name} = {json.dumps(value)}" for name, value in entries.items()]
        self.lists.append("\n".join([f"[[providers.{kind}]]", *lines]))

    def config(self):
        path = self.tmp_path / "vendors.toml"
        script = json.dumps(str(REPOSITORY / "config/demo-script.json"))
        path.write_text("\n".join(["[providers]", 'vendor = "scripted"', f"script = {script}", "", *self.lists]))
        return path


@pytest.fixture
def vendors(port, tmp_path):
    return Vendors(port, tmp_path)


@pytest_asyncio.fixture
async def worker(server, vendors, tmp_path):
    """`await worker()` starts a worker that uses the vendors, and a CRM."""
    async with Crm() as crm:
        started = []

        async def start():
            http_bind = f"127.0.0.1:{free_port()}"
            names = ("DEEPGRAM", "CARTESIA", "ELEVENLABS", "ASSEMBLYAI", "SARVAM", "OPENAI", "ANTHROPIC", "GEMINI")
            keys = [f"{vendor}_API_KEY" for vendor in names]
            environment = {
                **server.env(),
                **{name: vendors.key for name in keys},
                "LIVEKIT_AGENT_NAME": AGENT_NAME,
                "CRM_BASE_URL": crm.url,
                "VOICEBOT_CONFIG": str(vendors.config()),
                "VOICEBOT__DATA_DIR": str(tmp_path),
                "VOICEBOT__PERSONA__DIRECTORY": str(REPOSITORY / "config/personas"),
                "VOICEBOT__RECORDING__MODE": "off",
                "VOICEBOT__WORKER__HTTP_BIND": http_bind,
            }
            process = Process([voicebot_binary(), "start"], tmp_path / "worker.log", environment, cwd=tmp_path)
            process.__enter__()
            started.append(process)
            await registered(http_bind, process)
            return crm

        yield start
        for process in started:
            process.__exit__()


async def talk(crm, join, lk, room_name) -> list[str]:
    """A call in which the caller says all lines and hears an answer to each: what the record says that they said."""
    line = await dial(join, lk, room_name)
    await line.agent_speaks()
    for words in SAID:
        await line.says(words)
        spoken = time.monotonic()
        await line.agent_speaks()
        print(f"{words}: answered after {time.monotonic() - spoken:.1f} s")
    await line.caller.event("disconnected", deadline_s=30)
    call = await crm.call()
    items = call["transcription"]["conversation_items"]
    return [item["content"] for item in items if item["role"] == "user"]


FAULTS = {
    "none": [],
    "closed with 1011 in mid speech": [{"kind": "close", "code": 1011, "at": {"sound_ms": 6000}}],
    "gone without a word": [{"kind": "close", "code": 1006, "at": {"sound_ms": 6000}}, {"kind": "close", "code": 1006, "at": {"sound_ms": 900}}],
    "half open": [{"kind": "half_open", "at": {"sound_ms": 6000}}],
    "stalled": [{"kind": "stall", "at": {"sound_ms": 6000}}],
    "stalled from the start": [{"kind": "stall"}],
    "closed with 1000": [{"kind": "close", "code": 1000, "at": {"sound_ms": 11000}}],
    "garbage": [{"kind": "garbage", "at": {"sound_ms": 6000}}],
    "finals twice": [{"kind": "double_finals"}],
    "finals without words": [{"kind": "empty_finals"}],
    "slow": [{"kind": "drip", "ms": 150}],
    "refused": [{"kind": "status", "status": 429}, {"kind": "status", "status": 500}],
}
# With these the connection stays.
UNBROKEN = ("none", "garbage", "finals twice", "finals without words", "slow")
STANDINS = {
    "deepgram": "deepgram-listen",
    "deepgram_flux": "deepgram-flux",
    "assemblyai": "assemblyai",
    "elevenlabs": "elevenlabs-scribe",
    "cartesia": "cartesia-stt",
    "sarvam": "sarvam-stt",
    "openai_realtime": "openai-realtime",
}
CASES = [(vendor, fault) for vendor in STANDINS for fault in FAULTS if vendor not in ("deepgram_flux", "assemblyai")]
CASES += [(vendor, fault) for vendor in ("deepgram_flux", "assemblyai") for fault in ("none", "closed with 1011 in mid speech")]
# A call takes half a minute; for every change, two that are disturbed are enough.
SHORT = [("deepgram", "closed with 1011 in mid speech"), ("sarvam", "none")]
CASES = [pytest.param(*case, marks=[] if case in SHORT else pytest.mark.long) for case in CASES]


@pytest.mark.parametrize(("vendor", "fault"), CASES)
async def test_no_word_is_lost_or_doubled_whatever_the_recogniser_does(worker, vendors, join, lk, room_name, vendor, fault):
    name = STANDINS[vendor]
    vendors.script(name, hears={"utterances": list(SAID.values())}, faults=FAULTS[fault])
    vendors.use("stt", vendor)
    crm = await worker()
    said = await talk(crm, join, lk, room_name)
    assert " ".join(said) == " ".join(SAID.values())
    assert fault in UNBROKEN or len(vendors.seen(name)) > 1


@pytest.mark.long
async def test_a_model_that_transcribes_while_one_speaks_is_asked_for_its_words(worker, vendors, join, lk, room_name):
    vendors.script("openai-realtime", hears={"utterances": list(SAID.values())}, faults=FAULTS["closed with 1011 in mid speech"])
    vendors.use("stt", "openai_realtime", model="gpt-realtime-whisper")
    crm = await worker()
    said = await talk(crm, join, lk, room_name)
    assert " ".join(said) == " ".join(SAID.values())
    kinds = {message.get("type") for seen in vendors.seen("openai-realtime") for message in seen["messages"]}
    assert "input_audio_buffer.commit" in kinds


# Some refuse the key with a status, others on the open connection.
@pytest.mark.long
@pytest.mark.parametrize("vendor", ["deepgram", "elevenlabs", "cartesia", "sarvam", "openai_realtime"])
async def test_the_next_recogniser_goes_on_when_the_first_refuses_the_key(worker, vendors, join, lk, room_name, vendor):
    vendors.script(STANDINS[vendor], key="another")
    vendors.script("deepgram-flux", hears={"utterances": list(SAID.values())})
    vendors.use("stt", vendor)
    vendors.use("stt", "deepgram_flux", eager_eot_threshold=0.4)
    crm = await worker()
    said = await talk(crm, join, lk, room_name)
    assert " ".join(said) == " ".join(SAID.values())


VOICES = {
    ("elevenlabs", "closed at once"): ("elevenlabs-tts", [{"kind": "close", "code": 1011}]),
    ("cartesia", "refused"): ("cartesia-tts", [{"kind": "status", "status": 429}, {"kind": "status", "status": 500}]),
    ("deepgram", "none"): ("deepgram-speak", []),
    ("sarvam", "none"): ("sarvam-tts", []),
    ("sarvam", "closed at once"): ("sarvam-tts", [{"kind": "close", "code": 1011}]),
    ("sarvam", "refused"): ("sarvam-tts", [{"kind": "status", "status": 429}, {"kind": "status", "status": 500}]),
    ("sarvam", "stalled from the start"): ("sarvam-tts", [None, {"kind": "stall"}]),
    ("sarvam", "garbage"): ("sarvam-tts", [{"kind": "garbage", "at": {"audio_ms": 300}}]),
    ("sarvam", "completed twice"): ("sarvam-tts", [{"kind": "double_finals", "always": True}]),
    ("sarvam", "slow"): ("sarvam-tts", [{"kind": "drip", "ms": 80}]),
}
VOICE_CASES = [pytest.param(*case, marks=[] if case[0] == "elevenlabs" else pytest.mark.long) for case in VOICES]


@pytest.mark.parametrize(("vendor", "fault"), VOICE_CASES)
async def test_the_agent_speaks_through_a_voice_that_fails(worker, vendors, join, lk, room_name, vendor, fault):
    name, faults = VOICES[vendor, fault]
    vendors.script(name, says={"ms_per_character": 50}, faults=faults)
    vendors.script("deepgram-listen", hears={"utterances": list(SAID.values())})
    vendors.use("tts", vendor)
    vendors.use("stt", "deepgram")
    crm = await worker()
    said = await talk(crm, join, lk, room_name)
    assert " ".join(said) == " ".join(SAID.values())


def models_of(port: int) -> dict[str, dict]:
    """The keys of each model's entry."""
    base = f"http://127.0.0.1:{port}"
    return {"anthropic": {"base_url": base}, "gemini": {"base_url": base, "model": "gemini-3-flash"}}


# Requests that are given up, because the caller goes on, use up replies; so the same two come again and again.
REPLIES = 20 * [
    {
        "text": "One moment, please.",
        "tools": [{"name": "create_lead", "arguments": {"name": "John Smith", "email": "john.smith@example.com", "company": "Acme"}}],
    },
    {"text": "The small plan costs ten euros a month."},
]
# What a model does to its first requests; each is asked again, so that the caller hears every answer.
MODEL_FAULTS = {
    "none": [],
    "429 with Retry-After, 500": [{"kind": "status", "status": 429, "retry_after": 1}, {"kind": "status", "status": 500}],
    "429 without Retry-After": [{"kind": "status", "status": 429}],
    "garbage": [{"kind": "garbage", "at": {"sent": 1}}],
    "cut before a word": [{"kind": "close", "code": 1006, "at": {"sent": 0}}],
    "stalled before a word": [{"kind": "stall"}],
}
MODEL_CASES = [
    pytest.param(vendor, fault, marks=[] if (vendor, fault) == ("anthropic", "429 with Retry-After, 500") else pytest.mark.long)
    for vendor in ("anthropic", "gemini")
    for fault in MODEL_FAULTS
]


async def talk_and_hang_up(crm, join, lk, room_name):
    """A call in which the caller says all lines, hears an answer to each, and hangs up."""
    line = await dial(join, lk, room_name)
    await line.agent_speaks()
    for words in SAID:
        await line.says(words)
        await line.agent_speaks()
    await line.agent_is_quiet()
    await line.caller.room.disconnect()
    call = await crm.call()
    said = [item["content"] for item in call["transcription"]["conversation_items"] if item["role"] == "user"]
    assert " ".join(said) == " ".join(SAID.values())


@pytest.mark.parametrize(("vendor", "fault"), MODEL_CASES)
async def test_a_model_answers_and_uses_tools_whatever_its_vendor_does(worker, vendors, join, lk, room_name, vendor, fault):
    vendors.script(vendor, replies=REPLIES, faults=MODEL_FAULTS[fault])
    vendors.script("deepgram-listen", hears={"utterances": list(SAID.values())})
    vendors.use("llm", vendor, **models_of(vendors.port)[vendor])
    vendors.use("stt", "deepgram")
    crm = await worker()
    await talk_and_hang_up(crm, join, lk, room_name)
    call = await crm.call()
    answers = [item["content"] for item in call["transcription"]["conversation_items"] if item["role"] == "assistant"]
    assert any("ten euros" in answer for answer in answers), answers
    seen = vendors.seen(vendor)
    assert len(seen) > len(MODEL_FAULTS[fault])
    # The output of a tool has gone back to the model.
    asked = json.dumps([connection["messages"] for connection in seen])
    assert "tool_result" in asked or "functionResponse" in asked


@pytest.mark.long
@pytest.mark.parametrize(("first", "second"), [("anthropic", "gemini"), ("gemini", "anthropic")])
@pytest.mark.parametrize("fault", [{"kind": "stall"}, {"kind": "no_answer"}, {"kind": "status", "status": 500}, {"kind": "status", "status": 401}])
async def test_the_next_model_answers_when_the_first_does_not(worker, vendors, join, lk, room_name, first, second, fault):
    vendors.script(first, faults=[{**fault, "always": True}])
    vendors.script(second, replies=REPLIES)
    vendors.script("deepgram-listen", hears={"utterances": list(SAID.values())})
    for vendor in (first, second):
        vendors.use("llm", vendor, **models_of(vendors.port)[vendor])
    vendors.use("stt", "deepgram")
    crm = await worker()
    await talk_and_hang_up(crm, join, lk, room_name)
    assert len(vendors.seen(second)) >= len(SAID)


async def test_check_opens_each_vendor_and_says_how_long_it_took(server, vendors, tmp_path):
    vendors.script("deepgram-listen")
    vendors.script("elevenlabs-scribe", key="another")
    vendors.script("cartesia-tts", faults=[{"kind": "status", "status": 401, "always": True}])
    vendors.script("gemini")
    vendors.use("stt", "deepgram")
    # This one refuses a key only on the open connection.
    vendors.use("stt", "elevenlabs")
    vendors.use("stt", "openai_realtime")
    vendors.use("llm", "gemini", **models_of(vendors.port)["gemini"])
    vendors.use("tts", "cartesia")
    keys = ("DEEPGRAM_API_KEY", "CARTESIA_API_KEY", "ELEVENLABS_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY")
    environment = {**server.env(), **{name: vendors.key for name in keys}}
    environment |= {"VOICEBOT_CONFIG": str(vendors.config()), "VOICEBOT__DATA_DIR": str(tmp_path)}
    with Process([voicebot_binary(), "check"], tmp_path / "check.log", environment, cwd=tmp_path) as process:
        await asyncio.to_thread(process.child.wait, 60)
        process._reader.join(5)
    said = (tmp_path / "check.log").read_text()
    assert "deepgram/nova-3 opens in" in said and "openai-realtime/gpt-4o-mini-transcribe opens in" in said, said
    assert "CARTESIA_API_KEY" in said and "ELEVENLABS_API_KEY" in said and vendors.key not in said, said
    assert "gemini/gemini-3-flash begins to answer after" in said, said


HEARD = "one two three four five six seven eight."
# Their places are in the fixture that `check` lets each vendor hear once.
QUICK_FAULTS = {
    "none": [],
    "closed with 1000": [{"kind": "close", "code": 1000, "at": {"sound_ms": 500}}],
    "closed with 1011": [{"kind": "close", "code": 1011, "at": {"sound_ms": 200}}],
    "gone without a word": [{"kind": "close", "code": 1006, "at": {"sound_ms": 300}}],
    "stalled": [{"kind": "stall", "at": {"sound_ms": 200}}],
    "stalled from the start": [{"kind": "stall"}],
    "garbage": [{"kind": "garbage", "at": {"sound_ms": 200}}],
    "finals twice": [{"kind": "double_finals"}],
    "slow": [{"kind": "drip", "ms": 50}],
    "refused": [{"kind": "status", "status": 429}, {"kind": "status", "status": 500}],
}
QUICK_CASES = [(vendor, fault) for vendor in ("elevenlabs", "cartesia", "sarvam", "openai_realtime") for fault in QUICK_FAULTS]


@pytest.mark.parametrize(("vendor", "fault"), QUICK_CASES)
def test_check_hears_each_word_once_whatever_the_recogniser_does(vendors, tmp_path, vendor, fault):
    """A session without a call, whose sound comes at once: what a busy machine can hold in a second or two."""
    name = STANDINS[vendor]
    vendors.script(name, hears={"utterances": [HEARD]}, faults=QUICK_FAULTS[fault])
    vendors.script("sarvam-tts", says={"ms_per_character": 50})
    vendors.use("stt", vendor)
    vendors.use("tts", "sarvam")
    keys = {f"{name}_API_KEY": vendors.key for name in ("ELEVENLABS", "CARTESIA", "SARVAM", "OPENAI")}
    # Nobody is there: the findings about LiveKit are none of this test's.
    livekit = {"LIVEKIT_URL": "ws://127.0.0.1:1", "LIVEKIT_API_KEY": "key", "LIVEKIT_API_SECRET": "secret"}
    environment = {**livekit, **keys, "VOICEBOT_CONFIG": str(vendors.config()), "VOICEBOT__DATA_DIR": str(tmp_path)}
    environment["VOICEBOT__PERSONA__DIRECTORY"] = str(REPOSITORY / "config/personas")
    began = time.monotonic()
    with Process([voicebot_binary(), "check"], tmp_path / "check.log", environment, cwd=tmp_path) as process:
        process.child.wait(100)
        process._reader.join(5)
    print(f"{vendor}, {fault}: heard within {time.monotonic() - began:.1f} s")
    said = (tmp_path / "check.log").read_text()
    assert f"hears “{HEARD}”" in said and vendors.key not in said, said
