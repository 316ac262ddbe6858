"""One process with all stand-ins for the whole run, and for each test a key of its own, so that its script is its own too."""

import json
import subprocess
import sys
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def port():
    program = Path(__file__).with_name("standin.py")
    with subprocess.Popen([sys.executable, program, "--port", "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield int(process.stdout.readline())
        process.stdin.close()
        assert process.wait(10) == 0


class Control:
    """The control of one stand-in for the clients with this test's key."""

    def __init__(self, port: int, name: str, key: str):
        self.key, self.port = key, port
        self.ws, self.http = f"ws://127.0.0.1:{port}", f"http://127.0.0.1:{port}"
        self._url = f"{self.http}/control/{name}?key={urllib.parse.quote(key)}"

    def script(self, **parts):
        data = json.dumps(parts).encode()
        request = urllib.request.Request(self._url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=5):
            pass

    def seen(self) -> list[dict]:
        with urllib.request.urlopen(self._url, timeout=5) as answer:
            return json.load(answer)["connections"]


@pytest.fixture
def control(port):
    """`control("deepgram-listen")`, with a key that no other test has."""
    key = f"key-{uuid.uuid4()}"
    return lambda name, given=None: Control(port, name, given or key)
