#!/usr/bin/env python3
"""Makes the clips in `src/cli/dev/clips` again: what the agent and the caller of the prepared conversation say, as `lines.json` there
lists it. Prints what Whisper hears in each; ends with an error when that is too far from the text.

The caller has the agent's voice, spoken slowly and played fast, which makes it higher. Pauses of the caller are shortened, because the
prepared conversation tells the caller's lines by their length: each has to be one stretch of speech."""

import json
import sys
from pathlib import Path

import av
import numpy as np

from engines import STT_RATE_HZ, PiperVoice, Recognizer, said
from sound import read, resample, shorten_pauses
from words import error_rate

CLIPS = Path(__file__).resolve().parents[3] / "src/cli/dev/clips"
# Opus in Ogg is always 48 kHz (RFC 7845).
CLIP_RATE_HZ = 48_000
BITS_A_SECOND = 24_000
CALLER_PITCH = 1.16
# A caller who is understood takes his time.
CALLER_PACE = 0.8
LONGEST_PAUSE_S = {"agent": 0.35, "caller": 0.06}
# As loud as a speaker at a telephone: half of full scale.
PEAK = 16_000
# No two readings are the same: the first that is heard without a fault is taken, else the best of so many.
READINGS = 8
WORST_ERROR_RATE = 0.25


def spoken(voice: PiperVoice, who: str, text: str) -> np.ndarray:
    if who == "caller":
        slowly = said(voice, text, voice.rate_hz, speed=CALLER_PACE / CALLER_PITCH)
        sound = resample(slowly, round(voice.rate_hz * CALLER_PITCH), CLIP_RATE_HZ)
    else:
        sound = said(voice, text, CLIP_RATE_HZ)
    sound = sound.astype(np.float64) * PEAK / np.abs(sound.astype(np.int32)).max()
    return shorten_pauses(sound.astype(np.int16), CLIP_RATE_HZ, LONGEST_PAUSE_S[who])


def write(path: Path, pcm: np.ndarray):
    with av.open(str(path), "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=CLIP_RATE_HZ, layout="mono", options={"application": "voip"})
        stream.bit_rate = BITS_A_SECOND
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = CLIP_RATE_HZ
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def main() -> int:
    voice, recognizer = PiperVoice(), Recognizer()
    worst, size = 0.0, 0
    for line in json.loads((CLIPS / "lines.json").read_text()):
        path, text = CLIPS / line["file"], line.get("say", line["text"])
        best = None
        for _ in range(READINGS):
            write(path, spoken(voice, line["who"], text))
            sound = read(path, STT_RATE_HZ)
            heard = recognizer.words(sound)
            rate = error_rate([(text, heard)])
            if best is None or rate < best[0]:
                best = rate, heard, len(sound) / STT_RATE_HZ, path.read_bytes()
            if rate == 0:
                break
        rate, heard, seconds, clip = best
        path.write_bytes(clip)
        worst, size = max(worst, rate), size + len(clip)
        print(f"{path.name:24} {seconds:5.2f} s {len(clip):6} bytes {rate:5.0%}  {heard}")
    print(f"{size} bytes in all")
    return int(worst > WORST_ERROR_RATE)


if __name__ == "__main__":
    sys.exit(main())
