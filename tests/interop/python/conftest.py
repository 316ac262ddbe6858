"""Where the server under test comes from, and a room of its own for each test.

`LIVEKIT_URL` names a server that already runs (any LiveKit-compatible one: that is how these tests are themselves
checked). Without it the room server of the `voicebot` binary is started on a free port for the whole run.
`VOICEBOT_BIN` names that binary; it is also what the tests of whole calls start as the worker.
"""

import os
import uuid
from dataclasses import dataclass

import pytest
import pytest_asyncio
from livekit import api

from client import Client
from process import Process, voicebot_binary


@dataclass(frozen=True)
class Server:
    url: str
    key: str
    secret: str

    @property
    def http(self) -> str:
        return self.url.replace("ws", "http", 1)

    def env(self) -> dict[str, str]:
        return {"LIVEKIT_URL": self.url, "LIVEKIT_API_KEY": self.key, "LIVEKIT_API_SECRET": self.secret}


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    key = os.environ.get("LIVEKIT_API_KEY", "devkey")
    secret = os.environ.get("LIVEKIT_API_SECRET", "secret")
    if url := os.environ.get("LIVEKIT_URL"):
        yield Server(url, key, secret)
        return
    environment = {"LIVEKIT_API_KEY": key, "LIVEKIT_API_SECRET": secret}
    log = tmp_path_factory.mktemp("roomserver") / "roomserver.log"
    with Process([voicebot_binary(), "roomserver", "--bind", "127.0.0.1:0"], log, environment) as process:
        ready = process.first_json_line()
        yield Server(ready["url"], key, secret)


@pytest_asyncio.fixture
async def lk(server):
    async with api.LiveKitAPI(server.http, server.key, server.secret) as lk:
        yield lk


@pytest.fixture
def room_name():
    return f"interop-{uuid.uuid4().hex[:12]}"


@pytest_asyncio.fixture
async def join(server, room_name):
    """`await join("alice")` enters this test's room; everyone who entered is seen off at the end."""
    clients: list[Client] = []

    async def enter(identity: str, **options) -> Client:
        client = Client(server, options.pop("room", room_name), identity)
        clients.append(client)
        await client.connect(**options)
        return client

    yield enter
    for client in clients:
        await client.close()
