"""The MongoDB server under test, a data folder for each test, and the command that is tested.

`MONGODB_SERVER` names the server's program (`server/main.go`, built); `VOICEBOT_BIN` that of voicebot.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pymongo
import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "tests/interop/python"))

from process import voicebot_binary  # noqa: E402

FIXTURES = REPOSITORY / "tests/fixtures/records"
FOLDERS = ["call_metadata", "processed_metadata", "conversations", "leads", "recordings"]
START_DEADLINE_S = 20


class Server:
    """A server on a port of its own, which can be killed and started again with what it had."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.uri = f"mongodb://{self.address}/?serverSelectionTimeoutMS=2000"
        self.child = None

    def start(self):
        program = os.environ.get("MONGODB_SERVER", str(REPOSITORY / "target/interop-mongodb/server"))
        with open(self.folder.with_suffix(".log"), "ab") as log:
            self.child = subprocess.Popen(
                [program, self.address, str(self.folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )
        until(lambda: self.client().admin.command("ping"), "the server answers")

    def kill(self):
        if self.child:
            self.child.send_signal(signal.SIGKILL)
            self.child.wait()
            self.child = None

    def client(self) -> pymongo.MongoClient:
        return pymongo.MongoClient(self.uri)

    @property
    def database(self):
        return self.client()["calls_test"]


def until(check, what: str, deadline_s: float = START_DEADLINE_S):
    """Waits for an event that can only be asked for."""
    end = time.monotonic() + deadline_s
    while True:
        try:
            if result := check():
                return result
        except pymongo.errors.PyMongoError as error:
            if time.monotonic() > end:
                raise AssertionError(f"not within {deadline_s} s: {what}: {error}") from error
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(0.25)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "server")
    server.start()
    yield server
    server.kill()


class Data:
    """A data folder, and the program that works on it."""

    def __init__(self, root: Path, uri: str):
        self.root = root
        for folder in FOLDERS:
            (root / folder).mkdir(parents=True)
        inherited = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        self.environment = {
            **inherited,
            "VOICEBOT__DATA_DIR": str(root),
            "VOICEBOT__MONGODB__DATABASE": "calls_test",
            "MONGODB_URI": uri,
        }

    def copy(self, fixture: str, target: str):
        shutil.copy(FIXTURES / fixture, self.root / target)

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [voicebot_binary(), *arguments], env=self.environment, cwd=self.root,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )


@pytest.fixture
def data(tmp_path, server):
    return Data(tmp_path / "data", server.uri)
