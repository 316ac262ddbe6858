"""Sound as 16-bit mono samples: read from files, brought to another rate, and cut at its pauses."""

import io
import wave
from pathlib import Path

import av
import numpy as np


def resample(pcm: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    if from_hz == to_hz or not len(pcm):
        return pcm
    frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate = from_hz
    resampler = av.AudioResampler(format="s16", layout="mono", rate=to_hz)
    frames = resampler.resample(frame) + resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def read(source: Path | bytes, rate_hz: int, channel: int = 0) -> np.ndarray:
    """One channel of a sound in any format.

    Raises `ValueError` for what is no sound."""
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="s16p", rate=rate_hz)
            frames = [part for frame in container.decode(stream) for part in resampler.resample(frame)]
            frames += resampler.resample(None) if frames else []
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"this cannot be read as sound: {error}") from error
    parts = [frame.to_ndarray()[channel] for frame in frames]
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)


def wav(pcm: np.ndarray, rate_hz: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes(pcm.tobytes())
    return file.getvalue()


def loud(pcm: np.ndarray, rate_hz: int, level: int) -> np.ndarray:
    """For each 10 ms, whether a sample is louder than `level`."""
    piece = rate_hz // 100
    whole = pcm[: len(pcm) // piece * piece].reshape(-1, piece)
    return np.abs(whole.astype(np.int32)).max(axis=1) > level


def shorten_pauses(pcm: np.ndarray, rate_hz: int, longest_s: float, level: int = 300) -> np.ndarray:
    """Cuts silence off both ends and every pause down to `longest_s`, so that what is left is one stretch of speech."""
    is_loud, piece, longest = loud(pcm, rate_hz, level), rate_hz // 100, round(longest_s * 100)
    kept, pause = [], longest
    for at, sounds in enumerate(is_loud):
        pause = 0 if sounds else pause + 1
        if pause <= longest:
            kept.append(pcm[at * piece : (at + 1) * piece])
    kept = kept[: len(kept) - min(pause, longest)] if kept else kept
    return np.concatenate(kept) if kept else pcm[:0]
