#!/usr/bin/env python3
"""Scores the speech that came over the emulated link with PESQ (ITU-T P.862.2, wide band) and STOI.

    cargo test -p libwebrtc audio::link with LINK_SOUND=FOLDER    makes the recordings
    scores.py FOLDER [LINK…]                                      scores them, or those of some links
    scores.py                                                     makes them first, with 8 seeds (LINK_SEEDS) for each random link

Each line of the speaker is scored by itself, since the delay may change between two lines: cut at the speaker's pauses, aligned with what was heard
by cross-correlation, and weighted by its length. Prints the mean over a link's seeds and the worst of them, and fails when a mean is below its
floor.
"""

import os
import subprocess
import sys
import tempfile
import wave
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from pesq import pesq
from pystoi import stoi
from scipy.signal import correlate, resample_poly

REPOSITORY = Path(__file__).resolve().parents[3]
RATE = 16_000
# The speaker's pauses between lines have half a second; those within a line are shorter than this.
PAUSE_S = 0.3
SLACK_S = 0.4

SEEDS = "8"

# The lowest mean PESQ (1 to 4.6) that each link's recordings may have: well below the usual one, so that only a fault is below.
FLOORS = {
    "no_loss": 3.7,
    "loss_2__": 3.4,
    "loss_5__": 3.1,
    "loss_10__": 2.7,
    "loss_20__": 1.9,
    "RED__no_loss": 3.7,
    "RED__loss_2__": 3.7,
    "RED__loss_5__": 3.6,
    "RED__loss_10__": 3.4,
    "RED__loss_20__": 2.9,
    "jitter_30_ms": 3.6,
    "jitter_80_ms": 3.2,
    "overtaken_5__": 3.5,
    "doubled_20__": 3.7,
    "everything_at_once": 2.4,
    "outage_200_ms_lost": 3.0,
    "outage_200_ms_held": 1.8,
    "outage_2_s_lost": 1.9,
    "outage_2_s_held": 1.6,
}


def read(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
        return resample_poly(sound.astype(float), RATE, file.getframerate())


def lines(said: np.ndarray):
    """First and last sample of each stretch of speech."""
    block = RATE // 100
    loud = np.abs(said[: len(said) // block * block]).reshape(-1, block).max(axis=1) > 100
    start = end = None
    for index, is_loud in enumerate([*loud, *[False] * int(PAUSE_S * 100 + 1)]):
        if is_loud:
            start = index if start is None else start
            end = index + 1
        elif start is not None and index - end >= PAUSE_S * 100:
            yield start * block, end * block
            start = None


def score(said: np.ndarray, heard: np.ndarray, slack_s: float = SLACK_S) -> tuple[float, float]:
    """Mean PESQ and STOI over the lines; each is searched up to `slack_s` after it was said."""
    scores, weights = [], []
    slack = int(slack_s * RATE)
    for start, end in lines(said):
        line = said[start:end]
        around = heard[start : end + slack]
        if len(line) < RATE // 2 or len(around) < len(line):
            continue
        lag = int(np.argmax(correlate(around, line, mode="valid")))
        part = around[lag : lag + len(line)]
        scores.append((pesq(RATE, line, part, "wb"), stoi(line, part, RATE)))
        weights.append(len(line))
    return tuple(np.average(scores, axis=0, weights=weights))


def score_files(said: Path, heard: Path) -> tuple[float, float]:
    return score(read(said), read(heard))


def main():
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
    else:
        folder = Path(tempfile.mkdtemp(prefix="link-sound-"))
        command = ["cargo", "test", "-p", "libwebrtc", "--lib", "audio::link"]
        settings = {"LINK_SEEDS": SEEDS, **os.environ, "LINK_SOUND": str(folder)}
        subprocess.run(command, check=True, cwd=REPOSITORY, env=settings, stdout=subprocess.DEVNULL)
    recordings = defaultdict(list)
    with ProcessPoolExecutor() as pool:
        for path in sorted(folder.glob("*.*.wav")):
            link, _seed = path.stem.rsplit(".", 1)
            if not sys.argv[2:] or link in sys.argv[2:]:
                recordings[link].append(pool.submit(score_files, folder / "said.wav", path))
    failed = []
    print(f"{'link':24} {'runs':>4} {'PESQ':>5} {'worst':>5} {'STOI':>6}")
    for link, results in recordings.items():
        scores = np.array([one.result() for one in results])
        quality, intelligibility = scores.mean(axis=0)
        print(f"{link:24} {len(scores):4} {quality:5.2f} {scores[:, 0].min():5.2f} {intelligibility:6.3f}")
        if quality < FLOORS.get(link, 1.0):
            failed.append(link)
    if failed:
        sys.exit(f"worse than their floors: {', '.join(failed)}")


if __name__ == "__main__":
    main()
