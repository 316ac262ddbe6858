"""Whole calls: the official Python client telephones the worker (`voicebot start`, prepared conversation) and the CRM hears of it."""

import asyncio
import socket
import time
import wave

import aiohttp
import numpy as np
import pytest_asyncio
from livekit import api, rtc
from prometheus_client.parser import text_string_to_metric_families

from client import RATE_HZ, Recorder
from crm import Crm
from process import REPOSITORY, Process, voicebot_binary

AGENT_NAME = "interop"
NUMBER = "+15550100177"
READY_DEADLINE_S = 20
# Louder than this is speech and not the codec's noise floor.
LOUD = 600


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def recorded(name: str) -> np.ndarray:
    """One of the caller's recorded lines at the rate of our microphone."""
    with wave.open(str(REPOSITORY / f"tests/fixtures/audio/{name}.wav")) as file:
        assert file.getnchannels() == 1
        pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        at = np.arange(len(pcm) * RATE_HZ // file.getframerate()) * file.getframerate() / RATE_HZ
        return np.interp(at, np.arange(len(pcm)), pcm).astype(np.int16)


async def registered(http_bind: str, process: Process):
    """Waits until the worker says that it takes calls."""
    end = time.monotonic() + READY_DEADLINE_S
    async with aiohttp.ClientSession() as http:
        while True:
            assert process.child.poll() is None, f"the worker ended at once:\n{process.log.read_text()[-4000:]}"
            try:
                async with http.get(f"http://{http_bind}/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            assert time.monotonic() < end, f"the worker did not register:\n{process.log.read_text()[-4000:]}"
            await asyncio.sleep(0.05)


@pytest_asyncio.fixture
async def crm():
    async with Crm() as crm:
        yield crm


@pytest_asyncio.fixture
async def data_dir(server, crm, tmp_path):
    """A worker with a data folder of its own, for as long as the test runs."""
    http_bind = f"127.0.0.1:{free_port()}"
    environment = {
        **server.env(),
        "LIVEKIT_AGENT_NAME": AGENT_NAME,
        "CRM_BASE_URL": crm.url,
        "VOICEBOT__DATA_DIR": str(tmp_path),
        "VOICEBOT__PERSONA__DIRECTORY": str(REPOSITORY / "config/personas"),
        "VOICEBOT__PROVIDERS__VENDOR": "scripted",
        "VOICEBOT__PROVIDERS__SCRIPT": str(REPOSITORY / "config/demo-script.json"),
        "VOICEBOT__RECORDING__MODE": "local",
        "VOICEBOT__WORKER__HTTP_BIND": http_bind,
    }
    with Process([voicebot_binary(), "start"], tmp_path / "worker.log", environment, cwd=tmp_path) as process:
        await registered(http_bind, process)
        (tmp_path / "http_bind").write_text(http_bind)
        yield tmp_path


async def scraped(data_dir) -> dict[tuple, float]:
    """The worker's metrics as Prometheus's own parser reads them: values by name and labels."""
    address = (data_dir / "http_bind").read_text()
    async with aiohttp.ClientSession() as http, http.get(f"http://{address}/metrics") as answer:
        text = await answer.text()
    families = list(text_string_to_metric_families(text))
    assert all(family.type in ("counter", "gauge", "histogram") for family in families), text
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


class Telephone:
    """A caller on the line with the agent."""

    def __init__(self, caller, recorder: Recorder, mic, agent: str, joined_s: float):
        self.caller, self.recorder, self.mic, self.agent, self.joined_s = caller, recorder, mic, agent, joined_s

    async def agent_speaks(self):
        assert await self.recorder.hears(lambda pcm: np.abs(pcm).max() > LOUD, 0.1), "the agent is not heard"

    async def agent_is_quiet(self):
        quiet = await self.recorder.hears(lambda pcm: np.abs(pcm).max() < LOUD, 0.8, deadline_s=30)
        assert quiet, "the agent does not stop talking"

    async def says(self, line: str):
        await self.agent_is_quiet()
        pcm = recorded(line)
        self.mic.say(pcm)
        await asyncio.sleep(len(pcm) / RATE_HZ)

    def words_of(self, identity: str) -> str:
        """What the transcription says that somebody said."""
        return " ".join(text for sender, _, text in self.caller.text_streams if sender == identity)


async def dial(join, lk, room_name) -> Telephone:
    caller = await join("caller", topics=("lk.transcription",))
    mic = await caller.speak(None)
    started = time.monotonic()
    await lk.agent_dispatch.create_dispatch(
        api.CreateAgentDispatchRequest(agent_name=AGENT_NAME, room=room_name, metadata=f'{{"dialed_number": "{NUMBER}"}}')
    )
    await caller.until("the agent to join", lambda: caller.room.remote_participants)
    joined_s = time.monotonic() - started
    (agent,) = caller.room.remote_participants.values()
    assert agent.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
    return Telephone(caller, await caller.recorder(agent.identity), mic, agent.identity, joined_s)


async def test_a_caller_is_greeted_heard_answered_and_reported_to_the_crm(data_dir, crm, join, lk, room_name):
    line = await dial(join, lk, room_name)
    await line.agent_speaks()
    await line.says("hello")
    await line.agent_speaks()
    await line.says("lead")
    await line.agent_speaks()
    await line.says("goodbye")
    (reason,) = await line.caller.event("disconnected", deadline_s=30)
    assert reason in (rtc.DisconnectReason.ROOM_DELETED, rtc.DisconnectReason.PARTICIPANT_REMOVED)

    call = await crm.call()
    assert call["caller"]["phoneNumber"] == NUMBER
    items = call["transcription"]["conversation_items"]
    assert [item["role"] for item in items[:2]] == ["assistant", "user"]
    said = " ".join(item["content"] for item in items if item["role"] == "user")
    assert "what your plans cost" in said and "John Smith" in said and "Goodbye" in said
    assert call["lead"]["email"] == "john.smith@example.com"
    assert call["transcription"]["lead_generated"] is True
    assert call["callDetails"]["recordingUrl"]
    ((name, recording),) = crm.recordings
    assert name.endswith(".ogg") and recording[:4] == b"OggS"
    # The record moves on once the CRM's answer is in.
    await line.caller.until("the record to be archived", lambda: list((data_dir / "processed_metadata").glob("*.json")))
    assert not list((data_dir / "call_metadata").glob("*.json"))
    assert not list((data_dir / "conversations").glob("*.journal.jsonl"))

    # What the worker has counted of it, told by the call's process.
    counted = await scraped(data_dir)
    assert counted["voicebot_call_status_total", "completed"] == 1
    assert counted["voicebot_call_status_total", "voicemail"] == 0
    assert counted["voicebot_provider_errors_total", "llm"] == 0
    assert counted["lk_agents_usage_llm_output_tokens_total",] > 10
    assert counted["lk_agents_usage_tts_characters_total",] > 100
    assert counted["lk_agents_usage_stt_audio_duration_seconds_total",] >= 5
    assert counted["voicebot_upload_attempts_total", "accepted", "call_data"] == 1
    assert counted["voicebot_records_oldest_age_seconds",] >= 0
    for stage in ("e2e_latency", "llm_ttft", "tts_ttfb", "transcription_delay", "end_of_turn_delay"):
        name = f"lk_agents_turn_{stage}_seconds"
        assert counted[f"{name}_count",] >= 3, stage
        assert counted[f"{name}_bucket", "+Inf"] == counted[f"{name}_count",] and counted[f"{name}_sum",] > 0

    # What the caller's own client saw of it besides sound.
    assert "The small plan costs twenty a month" in line.words_of(line.agent)
    assert "what your plans cost" in line.words_of("caller")
    states = [
        args[0]["lk.agent.state"]
        for event, args in line.caller.events
        if event == "participant_attributes_changed" and "lk.agent.state" in args[0]
    ]
    assert {"listening", "thinking", "speaking"} <= set(states), states


async def test_a_caller_may_write_instead_of_speaking(data_dir, join, lk, room_name):
    line = await dial(join, lk, room_name)
    await line.agent_speaks()
    await line.agent_is_quiet()
    await line.caller.room.local_participant.send_text("Tell me what your plans cost.", topic="lk.chat")
    await line.agent_speaks()
    await line.caller.until("the answer's words", lambda: "The small plan costs" in line.words_of(line.agent), deadline_s=20)


async def test_when_the_caller_hangs_up_the_agent_leaves_and_the_call_is_reported(data_dir, crm, join, lk, room_name):
    line = await dial(join, lk, room_name)
    await line.agent_speaks()
    # Long enough that some of the greeting's words count as heard.
    assert await line.recorder.hears(lambda pcm: np.abs(pcm[: RATE_HZ // 2]).max() > LOUD, 1.5)
    witness = await join("witness", hidden=True, can_publish=False)
    await witness.sees(line.agent)
    hung_up = time.monotonic()
    await line.caller.room.disconnect()
    await witness.until("the agent to leave", lambda: not witness.room.remote_participants)
    gone_s = time.monotonic() - hung_up
    assert gone_s < 5, f"the agent stayed for {gone_s:.1f} s"
    call = await crm.call()
    assert call["caller"]["phoneNumber"] == NUMBER
    assert call["transcription"]["conversation_items"][0]["role"] == "assistant"


async def test_a_deleted_room_ends_the_call_and_it_is_reported(data_dir, crm, join, lk, room_name):
    line = await dial(join, lk, room_name)
    await line.agent_speaks()
    await lk.room.delete_room(api.DeleteRoomRequest(room=room_name))
    call = await crm.call()
    assert call["caller"]["phoneNumber"] == NUMBER
