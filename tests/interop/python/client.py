"""The official Python client as one participant: joins, keeps every event, speaks and hears tones."""

import asyncio
import datetime
import time

import numpy as np
from livekit import api, rtc

RATE_HZ = 48000
DEADLINE_S = 15


def tone(frequency_hz: float, samples: int, start: int, level: float = 0.3) -> np.ndarray:
    t = (np.arange(samples) + start) / RATE_HZ
    return (np.sin(2 * np.pi * frequency_hz * t) * level * 32767).astype(np.int16)


def spectral_share(pcm: np.ndarray, frequency_hz: float, width_hz: float = 20) -> float:
    """How much of the sound's energy lies within `width_hz` of a frequency: 1.0 is a clean tone, 0.0 none of it."""
    window = pcm.astype(np.float64) * np.hanning(len(pcm))
    energy = np.abs(np.fft.rfft(window)) ** 2
    frequencies = np.fft.rfftfreq(len(pcm), 1 / RATE_HZ)
    # Below 50 Hz there is no voice, only offset and rumble.
    audible = frequencies > 50
    total = energy[audible].sum()
    near = energy[audible & (np.abs(frequencies - frequency_hz) < width_hz)].sum()
    return float(near / total) if total > 0 else 0.0


class Recorder:
    """Collects what a remote track plays."""

    def __init__(self, track):
        self.track = track
        self.pcm = np.zeros(0, np.int16)
        self._arrived = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self):
        stream = rtc.AudioStream(self.track, sample_rate=RATE_HZ, num_channels=1)
        try:
            async for event in stream:
                self.pcm = np.concatenate([self.pcm, np.frombuffer(event.frame.data, np.int16)])[-RATE_HZ * 60:]
                self._arrived.set()
        finally:
            await stream.aclose()

    async def hears(self, test, seconds: float, deadline_s: float = DEADLINE_S):
        """Waits until the latest `seconds` of sound pass the test; returns whether they did in time."""
        need, end = int(seconds * RATE_HZ), time.monotonic() + deadline_s
        while time.monotonic() < end:
            if len(self.pcm) >= need and test(self.pcm[-need:]):
                return True
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), max(0.01, end - time.monotonic()))
            except asyncio.TimeoutError:
                break
        return False

    async def hears_tone(self, frequency_hz: float, share: float = 0.9, **options) -> bool:
        self.best = 0.0

        def test(pcm):
            self.best = max(self.best, spectral_share(pcm, frequency_hz)) if np.abs(pcm).max() > 1000 else self.best
            return self.best >= share

        return await self.hears(test, 1.0, **options)

    async def falls_silent(self, deadline_s: float = DEADLINE_S) -> bool:
        """Waits for half a second that brings no sound, be it silence or nothing at all."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            self.pcm = self.pcm[:0]
            await asyncio.sleep(0.5)
            if np.abs(self.pcm).max(initial=0) < 50:
                return True
        return False

    async def stop(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Mic:
    """A published microphone track that plays one tone, or a recording, without a break."""

    def __init__(self, room, frequency_hz: float | None = None):
        self.room, self.frequency_hz = room, frequency_hz
        self.source = rtc.AudioSource(RATE_HZ, 1, queue_size_ms=200)
        self.queue: list[np.ndarray] = []

    async def publish(self, **options):
        track = rtc.LocalAudioTrack.create_audio_track("mic", self.source)
        publish = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, **options)
        self.publication = await self.room.local_participant.publish_track(track, publish)
        self._task = asyncio.create_task(self._run())
        return self

    def say(self, pcm: np.ndarray):
        """Queues a recording; until it is its turn, and after it, the microphone is silent (or hums its tone)."""
        self.queue.extend(np.array_split(pcm, max(1, len(pcm) // (RATE_HZ // 100))))

    async def _run(self):
        chunk, at = RATE_HZ // 100, 0
        while True:
            if self.queue:
                pcm = self.queue.pop(0)
            elif self.frequency_hz:
                pcm = tone(self.frequency_hz, chunk, at)
            else:
                pcm = np.zeros(chunk, np.int16)
            at += len(pcm)
            await self.source.capture_frame(rtc.AudioFrame(pcm.tobytes(), RATE_HZ, 1, len(pcm)))

    async def stop(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Client:
    EVENTS = [
        "participant_connected",
        "participant_disconnected",
        "track_published",
        "track_unpublished",
        "track_subscribed",
        "track_unsubscribed",
        "track_muted",
        "track_unmuted",
        "active_speakers_changed",
        "room_metadata_changed",
        "participant_metadata_changed",
        "participant_name_changed",
        "participant_attributes_changed",
        "participant_permissions_changed",
        "data_received",
        "transcription_received",
        "connection_state_changed",
        "disconnected",
        "reconnecting",
        "reconnected",
    ]

    def __init__(self, server, room_name: str, identity: str):
        self.server, self.room_name, self.identity = server, room_name, identity
        self.room = rtc.Room()
        self.events: list[tuple] = []
        self.text_streams: list[tuple] = []
        self.byte_streams: list[tuple] = []
        self.recorders: dict[str, Recorder] = {}
        self.mics: list[Mic] = []
        self._tasks: set[asyncio.Task] = set()
        self._changed = asyncio.Event()

    def token(self, **grants) -> str:
        name = grants.pop("name", None)
        token = (
            api.AccessToken(self.server.key, self.server.secret)
            .with_identity(self.identity)
            .with_ttl(datetime.timedelta(minutes=10))
            .with_grants(
                api.VideoGrants(room_join=True, room=self.room_name, can_update_own_metadata=True, **grants)
            )
        )
        return (token.with_name(name) if name else token).to_jwt()

    async def connect(self, auto_subscribe: bool = True, topics: tuple[str, ...] = (), encryption=None, **grants):
        for event in self.EVENTS:
            self.room.on(event, lambda *args, event=event: self._note(event, args))
        for topic in topics:
            self.room.register_text_stream_handler(topic, self._on_text)
            self.room.register_byte_stream_handler(topic, self._on_bytes)
        await asyncio.wait_for(
            self.room.connect(
                self.server.url,
                self.token(**grants),
                rtc.RoomOptions(auto_subscribe=auto_subscribe, encryption=encryption),
            ),
            DEADLINE_S,
        )

    def _note(self, event: str, args: tuple):
        self.events.append((event, args))
        if event == "track_subscribed" and args[0].kind == rtc.TrackKind.KIND_AUDIO:
            self.recorders[args[2].identity] = self._recorder_for(args[0])
        self._changed.set()

    def _recorder_for(self, track):
        return Recorder(track)

    def _on_text(self, reader, identity):
        self._collect(self.text_streams, reader, identity, self._read_text(reader))

    def _on_bytes(self, reader, identity):
        self._collect(self.byte_streams, reader, identity, self._read_bytes(reader))

    @staticmethod
    async def _read_text(reader):
        return await reader.read_all()

    @staticmethod
    async def _read_bytes(reader):
        return b"".join([chunk async for chunk in reader])

    def _collect(self, into, reader, identity, reading):
        async def run():
            try:
                into.append((identity, reader.info, await reading))
            except rtc.StreamError:
                return  # the room ended in the middle of it
            self._changed.set()

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def until(self, what: str, test, deadline_s: float = DEADLINE_S):
        """Waits for a test over what this client has seen; its truthy value is the result."""
        end = time.monotonic() + deadline_s
        while True:
            if value := test():
                return value
            left = end - time.monotonic()
            assert left > 0, f"{self.identity} waited {deadline_s} s for {what}; saw {[e for e, _ in self.events]}"
            self._changed.clear()
            try:
                # Some state changes without an event of its own, so poll for it too.
                await asyncio.wait_for(self._changed.wait(), min(left, 0.2))
            except asyncio.TimeoutError:
                pass

    async def event(self, name: str, test=lambda *args: True, deadline_s: float = DEADLINE_S) -> tuple:
        def find():
            return next((args or (True,) for e, args in self.events if e == name and test(*args)), None)

        return await self.until(name, find, deadline_s)

    async def sees(self, identity: str):
        return await self.until(f"{identity} to be in the room", lambda: self.room.remote_participants.get(identity))

    async def data_channel_is_open(self, sender: "Client"):
        """A server cannot send data to a client whose channel is still opening, so wait until some has come through."""
        await sender.sees(self.identity)

        async def keep_sending():
            while True:
                await sender.room.local_participant.publish_data(b"probe", destination_identities=[self.identity])
                await asyncio.sleep(0.1)

        probing = asyncio.create_task(keep_sending())
        try:
            await self.event("data_received", lambda packet: packet.data == b"probe")
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)

    async def recorder(self, identity: str) -> Recorder:
        return await self.until(f"audio of {identity}", lambda: self.recorders.get(identity))

    async def speak(self, frequency_hz: float | None, **options) -> Mic:
        mic = Mic(self.room, frequency_hz)
        self.mics.append(mic)
        return await mic.publish(**options)

    async def close(self):
        for sound in [*self.mics, *self.recorders.values()]:
            await sound.stop()
        for task in self._tasks:
            task.cancel()
        await self.room.disconnect()
