"""A participant on Google's engine, through the official Python client: does what `examples/participant.rs` does on ours; that file describes its input and output."""

import asyncio
import json
import os
import sys
import time
import wave
from array import array
from pathlib import Path

from livekit import rtc

RATE_HZ = 48_000
FRAME = RATE_HZ // 100
QUEUE_MS = 40
MOST_SECONDS = 300
TRACK_FIELDS = {
    "received": ["packets_received", "packets_lost", "jitter"],
    "inbound": [
        "fec_packets_received", "nack_count", "retransmitted_packets_received", "jitter_buffer_delay", "jitter_buffer_target_delay",
        "jitter_buffer_emitted_count", "total_samples_received", "concealed_samples", "silent_concealed_samples", "concealment_events",
        "inserted_samples_for_deceleration", "removed_samples_for_acceleration",
    ],
}


def tell(**what):
    print(json.dumps({**what, "at": time.time()}), flush=True)


async def listen(track, file: Path, ended: asyncio.Event):
    stream = rtc.AudioStream(track, sample_rate=RATE_HZ, num_channels=1)
    samples, times = bytearray(), array("d")

    async def collect():
        async for event in stream:
            samples.extend(event.frame.data)
            times.append(time.time())
            if len(samples) >= MOST_SECONDS * RATE_HZ * 2:
                break

    collecting = asyncio.create_task(collect())
    await asyncio.wait([collecting, asyncio.create_task(ended.wait())], return_when=asyncio.FIRST_COMPLETED)
    collecting.cancel()
    file.with_suffix(".times").write_bytes(times.tobytes())
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE_HZ)
        out.writeframes(bytes(samples))


async def speak(source: rtc.AudioSource, lines: asyncio.Queue):
    silence = bytes(FRAME * 2)
    while True:
        line = silence
        if not lines.empty():
            line = lines.get_nowait()
            tell(event="says")
        for at in range(0, len(line), FRAME * 2):
            chunk = line[at : at + FRAME * 2].ljust(FRAME * 2, b"\0")
            await source.capture_frame(rtc.AudioFrame(chunk, RATE_HZ, 1, FRAME))


def path(entries):
    """Protocol and kind of the local candidate in use."""
    by_id = {}
    for entry in entries:
        kind = entry.WhichOneof("stats")
        by_id[getattr(entry, kind).rtc.id if kind != "track" else ""] = getattr(entry, kind)
    for entry in entries:
        if entry.WhichOneof("stats") == "transport":
            pair = by_id.get(entry.transport.transport.selected_candidate_pair_id)
            local = pair and by_id.get(pair.candidate_pair.local_candidate_id)
            if local:
                kinds = ["Host", "Srflx", "Prflx", "Relay"]
                return f"{local.candidate.protocol} {kinds[local.candidate.candidate_type]}"


async def stats(room, heard):
    tracks = {}
    for identity, track in heard:
        entries = await track.get_stats()
        codec = next((e.codec.codec.mime_type for e in entries if e.WhichOneof("stats") == "codec"), None)
        for entry in entries:
            if entry.WhichOneof("stats") == "inbound_rtp":
                told = {"codec": codec}
                for group, fields in TRACK_FIELDS.items():
                    told.update({field: getattr(getattr(entry.inbound_rtp, group), field) for field in fields})
                tracks[identity] = told
    session = await room.get_rtc_stats()
    return {"tracks": tracks, "paths": [path(session.publisher_stats), path(session.subscriber_stats)]}


async def main():
    options = rtc.RoomOptions(auto_subscribe=False)
    if os.environ.get("RELAY") == "1":
        options.rtc_config = rtc.RtcConfiguration(ice_transport_type=rtc.IceTransportType.TRANSPORT_RELAY)
    wanted = os.environ.get("HEAR", "").split(",")
    room, heard, listening, ended = rtc.Room(), [], [], asyncio.Event()

    def subscribe(publication, participant):
        if participant.identity in wanted:
            publication.set_subscribed(True)

    def subscribed(track, _, participant):
        tell(event="hears", whom=participant.identity)
        me = room.local_participant.identity
        file = Path(os.environ["FOLDER"]) / f"{me}-{participant.identity}.wav"
        listening.append(asyncio.create_task(listen(track, file, ended)))
        heard.append((participant.identity, track))

    room.on("track_published", subscribe)
    room.on("track_subscribed", subscribed)
    room.on("connection_state_changed", lambda state: tell(event="state", state=rtc.ConnectionState.Name(state)))
    room.on("disconnected", lambda reason: tell(event="disconnected", reason=rtc.DisconnectReason.Name(reason)))
    began = time.time()
    try:
        await room.connect(os.environ["LIVEKIT_URL"], os.environ["LIVEKIT_TOKEN"], options)
    except rtc.ConnectError as error:
        tell(event="failed", ms=(time.time() - began) * 1000, error=str(error))
        return
    tell(event="joined", ms=(time.time() - began) * 1000)
    for participant in room.remote_participants.values():
        for publication in participant.track_publications.values():
            subscribe(publication, participant)
    source = rtc.AudioSource(RATE_HZ, 1, queue_size_ms=QUEUE_MS)
    track = rtc.LocalAudioTrack.create_audio_track("voice", source)
    red = os.environ.get("RED") == "1"
    publish = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, dtx=False, red=red)
    try:
        await room.local_participant.publish_track(track, publish)
        tell(event="published", ms=(time.time() - began) * 1000)
    except Exception as error:
        tell(event="not published", error=str(error))
    lines = asyncio.Queue()
    speaking = asyncio.create_task(speak(source, lines))

    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while True:
        order, _, file = (await orders.readline()).decode().strip().partition(" ")
        if order == "say":
            with wave.open(file) as said:
                lines.put_nowait(said.readframes(said.getnframes()))
        elif order == "stats":
            tell(event="stats", stats=await stats(room, heard))
        else:
            break
    ended.set()
    await asyncio.gather(*listening)
    speaking.cancel()
    await room.disconnect()
    tell(event="left")


asyncio.run(main())
