"""A person on the telephone with the agent: the official Python client, a microphone that plays recordings, and
a recorder of what the agent says."""

import asyncio

import numpy as np
from client import Client
from livekit import api, rtc

# Enough for a telephone. Both cores are needed for recognition, voice and calls, and each frame here costs Python as much as 10 ms of them.
RATE_HZ = 16_000
FRAME_MS = 40
# Louder than this is speech and not the codec's noise floor.
LOUD = 600
QUIET_FRAMES = 12
REPLY_DEADLINE_S = 60


class Recorder:
    """Keeps what a track plays, until it is taken."""

    def __init__(self, track):
        self._frames: list[np.ndarray] = []
        self._task = asyncio.create_task(self._run(track))

    async def _run(self, track):
        stream = rtc.AudioStream(track, sample_rate=RATE_HZ, num_channels=1, frame_size_ms=FRAME_MS)
        try:
            async for event in stream:
                self._frames.append(np.frombuffer(event.frame.data, np.int16).copy())
        finally:
            await stream.aclose()

    def is_quiet(self) -> bool:
        latest = self._frames[-QUIET_FRAMES:]
        return len(latest) == QUIET_FRAMES and max(np.abs(frame).max() for frame in latest) < LOUD

    def take(self) -> np.ndarray:
        frames, self._frames = self._frames, []
        return np.concatenate(frames) if frames else np.zeros(0, np.int16)

    async def stop(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Microphone:
    """A microphone that is open all the time and silent between lines."""

    def __init__(self, room):
        self._room = room
        self._source = rtc.AudioSource(RATE_HZ, 1, queue_size_ms=200)
        self._lines: asyncio.Queue[np.ndarray] = asyncio.Queue()

    async def open(self):
        track = rtc.LocalAudioTrack.create_audio_track("mic", self._source)
        # Without `dtx`, silence is sent as it is.
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, dtx=False)
        await self._room.local_participant.publish_track(track, options)
        self._task = asyncio.create_task(self._run())

    def say(self, pcm: np.ndarray):
        self._lines.put_nowait(pcm)

    async def _run(self):
        size = RATE_HZ * FRAME_MS // 1000
        line = np.zeros(0, np.int16)
        while True:
            if not len(line) and not self._lines.empty():
                line = self._lines.get_nowait()
            piece, line = line[:size], line[size:]
            piece = np.pad(piece, (0, size - len(piece)))
            await self._source.capture_frame(rtc.AudioFrame(piece.tobytes(), RATE_HZ, 1, size))

    def has_failed(self) -> bool:
        return self._task.done()

    async def stop(self):
        self._task.cancel()
        for outcome in await asyncio.gather(self._task, return_exceptions=True):
            if not isinstance(outcome, asyncio.CancelledError):
                print("the microphone:", repr(outcome))


class Caller(Client):
    """Somebody who calls a number."""

    def _recorder_for(self, track):
        return Recorder(track)

    async def dial(self, lk, agent_name: str, number: str):
        await self.connect()
        self.microphone = Microphone(self.room)
        self.mics.append(self.microphone)
        await self.microphone.open()
        metadata = f'{{"dialed_number": "{number}"}}'
        request = api.CreateAgentDispatchRequest(agent_name=agent_name, room=self.room_name, metadata=metadata)
        await lk.agent_dispatch.create_dispatch(request)
        (agent,) = await self.until("the agent to join", lambda: list(self.room.remote_participants))
        self.agent_recorder = await self.recorder(agent)
        await self._reply(since=0)

    async def says(self, pcm: np.ndarray) -> np.ndarray:
        """Speaks while the agent is silent. Gives back what the agent said before."""
        await self.until("the agent to be silent", self.agent_recorder.is_quiet)
        heard, since = self.agent_recorder.take(), len(self.events)
        self.microphone.say(pcm)
        await self._reply(since)
        return heard

    async def _reply(self, since: int):
        """Waits until the agent has said something and listens again, or has hung up."""

        def is_over():
            if any(event == "disconnected" for event, _ in self.events):
                return True
            changes = (args[0] for event, args in self.events[since:] if event == "participant_attributes_changed")
            states = [change["lk.agent.state"] for change in changes if "lk.agent.state" in change]
            return "speaking" in states and states[-1] == "listening"

        await self.until("the agent's answer", is_over, REPLY_DEADLINE_S)
        assert not self.microphone.has_failed(), "the microphone of the official client failed"
