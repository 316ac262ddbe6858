"""A CRM that keeps what it is sent: `POST /upload` (a recording) and `POST /call-data` (a call)."""

import asyncio

from aiohttp import web


class Crm:
    async def __aenter__(self):
        self.calls: list[dict] = []
        self.recordings: list[tuple[str, bytes]] = []
        self._changed = asyncio.Event()
        app = web.Application(client_max_size=1 << 28)
        app.add_routes([web.post("/upload", self._upload), web.post("/call-data", self._call_data)])
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        await self._runner.cleanup()

    async def _upload(self, request):
        async for part in await request.multipart():
            if part.name == "file":
                self.recordings.append((part.filename, await part.read()))
        self._changed.set()
        return web.json_response({"url": f"{self.url}/files/{len(self.recordings)}"})

    async def _call_data(self, request):
        self.calls.append(await request.json())
        self._changed.set()
        return web.json_response({"success": True})

    async def has(self, calls: int, deadline_s: float = 20):
        """Waits until the data of so many calls are here."""

        async def wait():
            while len(self.calls) < calls:
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(wait(), deadline_s)

    async def call(self, deadline_s: float = 20) -> dict:
        """The call data of the only call there was."""
        await self.has(1, deadline_s)
        return self.calls[0]
