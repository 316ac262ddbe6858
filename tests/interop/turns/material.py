"""The bench's sound: human prompts cut at a word, LibriVox sentences, and lines that Piper speaks, with pauses of known length.

Cuts are chosen once, by a seed and the recogniser's word times (`python3 material.py`), and kept in `cuts.tsv`; everything else follows
from the two files and the packages."""

import gzip
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
sys.path.insert(0, str(HERE.parent / "speech"))
from sound import loud, read  # noqa: E402

RATE_HZ = 16_000
FOLDER = REPOSITORY / "target/turns"
SEED = 20_251
PROMPTS = 170
# Share of the pauses inside a turn that are longer than so many seconds, so that silence alone scores here as in eot-bench's English set
# (its README: VAD baseline 55.6 % at 0.3 s, 21.7 at 0.6, 10 at 1.0, 5 at 1.6).
PAUSES = [(1.0, 0.1), (0.556, 0.3), (0.217, 0.6), (0.10, 1.0), (0.05, 1.6), (0.0, 3.0)]
DICTATION = {"phone", "code", "account", "email", "spelling", "address", "date"}
DICTATION_PAUSE_S = (0.4, 1.2)
TAIL_S = 4.0


@dataclass
class Turn:
    """One turn of a caller: what the agent has asked, and the sound with its pauses."""

    id: str
    kind: str
    asked: str
    pcm: np.ndarray
    # Where sound was cut and how much silence was put in, in seconds of the result.
    pauses: list[tuple[float, float]] = field(default_factory=list)


def pause(rng: random.Random, kind: str) -> float:
    if kind in DICTATION:
        return round(rng.uniform(*DICTATION_PAUSE_S), 3)
    longer = rng.random()
    for (share, length), (next_share, next_length) in zip(PAUSES, PAUSES[1:]):
        if longer >= next_share:
            return round(length + (share - longer) / (share - next_share) * (next_length - length), 3)
    raise AssertionError("the table ends at 0")


def trim(pcm: np.ndarray) -> np.ndarray:
    sounds = np.flatnonzero(loud(pcm, RATE_HZ, 300))
    return pcm[max(0, sounds[0] * 160 - 800) : (sounds[-1] + 1) * 160 + 400] if len(sounds) else pcm


def quiet(rng: np.random.Generator, seconds: float) -> np.ndarray:
    return rng.normal(0, 4, round(seconds * RATE_HZ)).astype(np.int16)


def with_pauses(turn: str, pcm: np.ndarray, cuts: list[tuple[float, float]]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """The sound with silence at each cut (seconds of `pcm`, length), before and after it, and where the silences are."""
    noise = np.random.default_rng(abs(int.from_bytes(turn.encode()[-6:], "big")))
    parts, pauses, last, at = [quiet(noise, 0.5)], [], 0, 0.5
    for cut, length in cuts:
        piece = pcm[last : round(cut * RATE_HZ)]
        at += len(piece) / RATE_HZ
        parts += [piece, quiet(noise, length)]
        pauses.append((round(at, 3), length))
        at += length
        last = round(cut * RATE_HZ)
    parts += [pcm[last:], quiet(noise, TAIL_S)]
    return np.concatenate(parts), pauses


def prompt_texts() -> dict[str, str]:
    path = FOLDER / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    lines = (line.partition(":") for line in gzip.open(path, "rt", encoding="utf-8") if line[:1] != ";")
    return {name: text.strip() for name, _, text in lines}


def prompt_sound(name: str) -> np.ndarray:
    if name.startswith("librivox/"):
        folder = FOLDER / "usr/share/pocketsphinx/test/data"
        return trim(read(folder / f"{name}.wav", RATE_HZ))
    (path,) = (FOLDER / "usr/share/asterisk/sounds").glob(f"en_*/{name}.wav")
    return trim(read(path, RATE_HZ))


def lines() -> list[tuple[str, str, str, str, str]]:
    """Id, kind, language, the agent's question, the words with their pauses."""
    rows = [row for row in (HERE / "lines.tsv").read_text(encoding="utf-8").splitlines() if row and row[0] != "#"]
    return [(f"line-{at:03}", *row.split("\t")) for at, row in enumerate(rows)]


def longest_gaps(pcm: np.ndarray, count: int) -> list[float]:
    """The middles of the longest silences inside a sound, in order."""
    is_loud, gaps, since = loud(pcm, RATE_HZ, 200), [], None
    for at, sounds in enumerate(is_loud):
        if sounds:
            if since is not None:
                gaps.append((at - since, (at + since) / 200))
            since = None
        elif since is None and is_loud[:at].any():
            since = at
    return sorted(middle for _, middle in sorted(gaps)[-count:])


def piper_turns():
    """The lines in English, spoken with a comma where the pause is: it has the tune of one that goes on."""
    from engines import said, voice

    piper = voice()
    for name, kind, language, asked, text in lines():
        if language != "en":
            continue
        pieces = [piece.strip() for piece in text.split("/")]
        path = FOLDER / "piper" / f"{name}.npy"
        if not path.exists():
            path.parent.mkdir(exist_ok=True, parents=True)
            np.save(path, trim(said(piper, ", ".join(pieces) + ".", RATE_HZ)))
        pcm = np.load(path)
        rng = random.Random(f"{SEED} {name}")
        gaps = longest_gaps(pcm, len(pieces) - 1) if len(pieces) > 1 else []
        pcm, pauses = with_pauses(name, pcm, [(gap, pause(rng, kind)) for gap in gaps])
        yield Turn(name, kind, asked, pcm, pauses)


def cut_turns():
    for row in (HERE / "cuts.tsv").read_text(encoding="utf-8").splitlines():
        if row.startswith("#"):
            continue
        name, cut, length = row.split("\t")
        pcm, pauses = with_pauses(name, prompt_sound(name), [(float(cut), float(length))])
        kind = "librivox" if name.startswith("librivox/") else "prompt"
        yield Turn(name, kind, "", pcm, pauses)


def choose_cuts():
    """Writes `cuts.tsv`: one cut a prompt, at a boundary between words, each as likely as any other."""
    from engines import Recognizer

    rng = random.Random(SEED)
    model = Recognizer()._model
    whole = {
        name: text
        for name, text in prompt_texts().items()
        if text[-1:] in ".?!" and not text.endswith("...") and "[" not in text and 5 <= len(text.split()) <= 24
    }
    folder = FOLDER / "usr/share/pocketsphinx/test/data/librivox"
    names = sorted(whole)
    rng.shuffle(names)
    names = names[: PROMPTS * 2] + sorted(f"librivox/{path.stem}" for path in folder.glob("*.wav"))
    rows = []
    for name in names:
        is_prompt = not name.startswith("librivox/")
        if is_prompt and len(rows) >= PROMPTS:
            continue
        try:
            pcm = prompt_sound(name)
        except ValueError:
            continue
        segments, _ = model.transcribe(pcm.astype(np.float32) / 32768, language="en", beam_size=1, word_timestamps=True)
        words = [word for segment in segments for word in segment.words]
        # Not where the text itself ends a sentence: that would be a turn's end.
        places = [
            (a.end + b.start) / 2 for a, b in zip(words, words[1:]) if a.word.strip()[-1:] not in ".?!" and b.start >= a.end - 0.01
        ]
        if len(words) < 5 or not places:
            continue
        middle = rng.choice(places)
        # The softest 10 ms near the boundary.
        at = round(middle * 100)
        level = [(int(np.abs(pcm[i * 160 : i * 160 + 160].astype(np.int32)).max()), i) for i in range(max(0, at - 6), at + 7)]
        rows.append(f"{name}\t{min(level)[1] / 100 + 0.005:.3f}\t{pause(rng, 'prompt')}")
    head = "# A recording, where it is cut, in seconds after its first sound, and how long the pause is."
    (HERE / "cuts.tsv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    choose_cuts()
