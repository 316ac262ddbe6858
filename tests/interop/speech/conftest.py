"""Recognition and voice for the whole run (`server.py`), and recordings of a person. Rooms and callers come from `tests/interop/python`.

`SPEECH_RECORDINGS` names the folder into which Debian's packages asterisk-core-sounds-en-wav and asterisk-core-sounds-en were
unpacked."""

import gzip
import importlib.util
import os
import sys
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from process import REPOSITORY, Process

from sound import read

HERE = Path(__file__).parent
# It reads two models of 70 MB.
START_DEADLINE_S = 90
# Two files of this name cannot be imported by name.
spec = importlib.util.spec_from_file_location("rooms", REPOSITORY / "tests/interop/python/conftest.py")
rooms = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rooms)
server, lk, room_name = rooms.server, rooms.lk, rooms.room_name


class Speech:
    """The server with recognition and a voice, as the tests themselves use it."""

    def __init__(self, url: str):
        self.url = url

    async def say(self, text: str, rate_hz: int) -> np.ndarray:
        async with aiohttp.ClientSession() as http:
            async with http.post(f"{self.url}/audio/speech", json={"input": text, "response_format": "wav"}) as answer:
                assert answer.status == 200, await answer.text()
                return read(await answer.read(), rate_hz)

    async def transcribe(self, wav: bytes) -> str:
        form = aiohttp.FormData()
        form.add_field("file", wav, filename="speech.wav", content_type="audio/wav")
        async with aiohttp.ClientSession() as http:
            async with http.post(f"{self.url}/audio/transcriptions", data=form) as answer:
                assert answer.status == 200, await answer.text()
                return (await answer.json())["text"]


@pytest.fixture(scope="session")
def speech(tmp_path_factory):
    log = tmp_path_factory.mktemp("speech") / "server.log"
    command = [sys.executable, str(HERE / "server.py"), "--stop-with-stdin", "--seconds", "1200"]
    with Process(command, log, {}, has_stdin=True) as process:
        yield Speech(process.first_json_line(START_DEADLINE_S)["url"])


class Recordings:
    """What a person says, 8 kHz, with its words."""

    def __init__(self, folder: Path):
        sounds = sorted(folder.glob("usr/share/asterisk/sounds/*/agent-pass.wav"))
        texts = folder / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
        if not sounds or not texts.is_file():
            raise RuntimeError(
                f"{folder} has no recordings (SPEECH_RECORDINGS): README.md here says how they are unpacked"
            )
        self._sounds = sounds[0].parent
        lines = (line.partition(":") for line in gzip.open(texts, "rt", encoding="utf-8") if line[:1] != ";")
        self._texts = {name: text.strip() for name, _, text in lines}

    def text(self, name: str) -> str:
        return self._texts[name]

    def sound(self, name: str, rate_hz: int) -> np.ndarray:
        return read(self._sounds / f"{name}.wav", rate_hz)


@pytest.fixture(scope="session")
def recordings():
    return Recordings(Path(os.environ.get("SPEECH_RECORDINGS", REPOSITORY / "target/speech-recordings")))
