"""A client that only signals: it opens the WebSocket, keeps every message, and never connects its media.

The official client hides most of what a server says. What a server must answer at this level is seen only here.
"""

import asyncio
import base64
import datetime
import time

import aiohttp
from livekit import api
from livekit.protocol import models
from livekit.protocol import rtc as protocol

DEADLINE_S = 30


def token(server, identity: str, room_name: str, **grants) -> api.AccessToken:
    grants = {"room_join": True, "room": room_name, "can_update_own_metadata": True, **grants}
    return (
        api.AccessToken(server.key, server.secret)
        .with_identity(identity)
        .with_ttl(datetime.timedelta(minutes=10))
        .with_grants(api.VideoGrants(**grants))
    )


def join_request(**fields) -> str:
    """A `JoinRequest` as `/rtc/v1` takes it in its query. It is never empty, because an empty one counts as missing."""
    fields.setdefault("client_info", models.ClientInfo(sdk=models.ClientInfo.PYTHON, protocol=16))
    wrapped = protocol.WrappedJoinRequest(join_request=protocol.JoinRequest(**fields).SerializeToString())
    return base64.urlsafe_b64encode(wrapped.SerializeToString()).decode()


class Signalling:
    def __init__(self, server, jwt: str, path: str = "/rtc", **query):
        self.server, self.jwt, self.path = server, jwt, path
        self.query = {"protocol": "16", "auto_subscribe": "1", **query} if path == "/rtc" else query
        self.received: list[protocol.SignalResponse] = []
        self.closed = False
        self._changed = asyncio.Event()

    async def open(self):
        self._http = aiohttp.ClientSession(headers={"Authorization": f"Bearer {self.jwt}"})
        try:
            self.socket = await self._http.ws_connect(self.server.url + self.path, params=self.query)
        except aiohttp.WSServerHandshakeError:
            await self._http.close()
            raise
        self._task = asyncio.create_task(self._run())
        return self

    async def join(self):
        await self.open()
        self.joined = await self.message("join")
        return self

    async def _run(self):
        async for frame in self.socket:
            if frame.type == aiohttp.WSMsgType.BINARY:
                self.received.append(protocol.SignalResponse.FromString(frame.data))
                self._changed.set()
        self.closed = True
        self._changed.set()

    async def send(self, **message):
        await self.socket.send_bytes(protocol.SignalRequest(**message).SerializeToString())

    def all(self, kind: str) -> list:
        return [getattr(message, kind) for message in self.received if message.WhichOneof("message") == kind]

    async def until(self, what: str, test, deadline_s: float = DEADLINE_S):
        end = time.monotonic() + deadline_s
        while not (value := test()):
            left = end - time.monotonic()
            kinds = [message.WhichOneof("message") for message in self.received]
            assert left > 0, f"the client waited {deadline_s} s for {what}; it has {kinds}"
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except asyncio.TimeoutError:
                pass
        return value

    async def message(self, kind: str, test=lambda message: True):
        def find():
            return next(([message] for message in self.all(kind) if test(message)), None)

        return (await self.until(kind, find))[0]

    async def participant(self, what: str, test):
        """Waits until an update tells of such a participant."""

        def find():
            infos = [info for update in self.all("update") for info in update.participants]
            return next((info for info in infos if test(info)), None)

        return await self.until(what, find)

    async def is_closed(self):
        await self.until("the server to close the connection", lambda: self.closed)

    async def close(self):
        self._task.cancel()
        await self.socket.close()
        await self._http.close()
