"""Sound in and out: the encodings, a recogniser that hears by loudness, and a voice whose length follows from its text.

Knows nothing about vendors; places are samples at the connection's rate.
"""

from dataclasses import dataclass, field, replace

import numpy as np

# The loudness that counts as speech: root mean square of 10 ms, 16 bit; about -41 dBFS.
LOUD = 300.0
# Quiet shorter than this is the gap between two syllables, whatever end of speech the client asks for.
SYLLABLE_GAP_MS = 150
# A speech of which all words were given to `finalize` is over after this much quiet.
SPEECH_GAP_MS = 300


def decode(data: bytes, encoding: str) -> np.ndarray:
    """Sound as 16 bit integers. `encoding` is linear16, mulaw or alaw."""
    if encoding == "linear16":
        return np.frombuffer(data[: len(data) & ~1], dtype="<i2")
    return _TABLES[encoding][np.frombuffer(data, dtype=np.uint8)]


def encode(samples: np.ndarray, encoding: str) -> bytes:
    """16 bit integers as linear16, float32, mulaw or alaw."""
    if encoding == "linear16":
        return samples.astype("<i2").tobytes()
    if encoding == "float32":
        return (samples.astype("<f4") / 32768).tobytes()
    # The nearest of the 256 values that the law has.
    order = np.argsort(_TABLES[encoding], kind="stable")
    values = _TABLES[encoding][order].astype(np.int32)
    above = np.clip(np.searchsorted(values, samples), 1, 255)
    below = above - 1
    nearer_below = samples - values[below] < values[above] - samples
    return order[np.where(nearer_below, below, above)].astype(np.uint8).tobytes()


def sample_bytes(encoding: str) -> int:
    return {"linear16": 2, "float32": 4}.get(encoding, 1)


def _mulaw_table() -> np.ndarray:
    """ITU-T G.711, μ-law: all bits inverted; sign, three bits of segment, four of step."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    magnitude = ((((code & 0x0F) << 3) + 0x84) << ((code >> 4) & 7)) - 0x84
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _alaw_table() -> np.ndarray:
    """ITU-T G.711, A-law: even bits inverted."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    segment, step = (code >> 4) & 7, (code & 0x0F) << 4
    magnitude = np.where(segment == 0, step + 8, (step + 0x108) << np.maximum(segment - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


_TABLES = {"mulaw": _mulaw_table(), "alaw": _alaw_table()}


@dataclass
class Word:
    text: str
    start: float
    end: float


@dataclass
class Heard:
    """What the recogniser says. Times are in seconds of the connection's sound."""

    # started, interim, final, ended (a final that ends the turn), eager (the turn may be over), resumed (it was not), quiet (a time
    # without speech)
    kind: str
    words: list[Word] = field(default_factory=list)
    start: float = 0.0
    end: float = 0.0
    from_finalize: bool = False
    # The second of two finals that are the same.
    again: bool = False

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass
class Memory:
    """Which text comes next, and how many of its words were final already."""

    utterance: int = 0
    given: int = 0


class Recogniser:
    """Hears the script's texts in stretches of loud sound, or its events at their places."""

    def __init__(self, rate: int, hears: dict, memory: Memory, silence_ms: float, double_finals=False, empty_finals=False):
        self.rate = rate
        self.hears = hears
        self.memory = memory
        # `None`: nothing but `finalize` ends a stretch.
        silence_ms = hears.get("silence_ms", silence_ms)
        self.silence = None if silence_ms is None else max(silence_ms, SYLLABLE_GAP_MS) * rate / 1000
        # Silence after which the turn may be over; 0 never says so.
        self.eager = hears.get("eager_ms", 0) * rate / 1000
        self.interim = hears.get("interim_ms", 200) * rate / 1000
        # How often silence is told.
        self.quiet = rate
        self.double_finals = double_finals
        self.empty_finals = empty_finals
        self.position = 0
        self.rest = np.zeros(0, dtype=np.int16)
        self.frame = rate // 100
        self.speaking = False
        self.began = self.last_loud = self.loud_frames = self.last_interim = 0
        # Where the words begin that are not final yet.
        self.words_from = 0
        self.eager_said = False
        self.quiet_since = 0
        self.events = sorted(hears.get("events", []), key=self._place)

    def feed(self, samples: np.ndarray) -> list[Heard]:
        sound = np.concatenate([self.rest, samples])
        whole = len(sound) // self.frame * self.frame
        self.rest = sound[whole:]
        heard = []
        levels = np.sqrt(np.mean(sound[:whole].reshape(-1, self.frame).astype(np.float64) ** 2, axis=1))
        for level in levels:
            self.position += self.frame
            heard += self._scripted() if "events" in self.hears else self._step(level >= LOUD)
        return self._spoilt(heard)

    def finalize(self) -> list[Heard]:
        """The words up to here, now; the whole text if its speech is over."""
        if not self.speaking:
            return []
        if self.position - self.last_loud >= SYLLABLE_GAP_MS * self.rate / 1000:
            heard = self._end()
        else:
            upto = self._revealed()
            heard = [Heard("final", self._words(upto), self._seconds(self.words_from), self._seconds(self.position))]
            self.memory.given = upto
            self.words_from = self.position
        for one in heard:
            one.from_finalize = True
        return self._spoilt(heard)

    def force_end(self) -> list[Heard]:
        """As `finalize`, but it ends the turn: words of speech that goes on open the next."""
        heard = self.finalize()
        for one in heard:
            one.kind = "ended" if one.words or one.kind == "ended" else one.kind
        self.speaking = False
        self.loud_frames = 0
        self.quiet_since = self.position
        return heard

    @property
    def seconds(self) -> float:
        return self._seconds(self.position)

    @property
    def has_text(self) -> bool:
        """Whether the stretch that goes on is speech that is understood."""
        return "events" in self.hears or bool(self._text())

    def _step(self, loud: bool) -> list[Heard]:
        if loud:
            self.loud_frames += 1
            self.last_loud = self.position
        else:
            self.loud_frames = 0
        if not self.speaking:
            # Three frames, so that a click is no speech.
            if self.loud_frames < 3:
                if self.position - self.quiet_since >= self.quiet:
                    start, self.quiet_since = self.quiet_since, self.position
                    return [Heard("quiet", [], self._seconds(start), self.seconds)]
                return []
            self.speaking = True
            self.eager_said = False
            self.began = self.words_from = self.last_interim = self.position - 3 * self.frame
            return [Heard("started", [], self._seconds(self.began), self.seconds)]
        silence = self.position - self.last_loud
        if self.silence is not None and silence >= self.silence:
            return self._end()
        if silence >= SPEECH_GAP_MS * self.rate / 1000 and self.memory.given and not self._words(len(self._text())):
            # Its words are known: nothing is left to say about it.
            self._end()
            return []
        if loud and self.eager_said:
            self.eager_said = False
            return [Heard("resumed", self._words(len(self._text())), self._seconds(self.began), self.seconds)]
        if self.eager and silence >= self.eager and not self.eager_said and self._words(len(self._text())):
            self.eager_said = True
            return [Heard("eager", self._words(len(self._text())), self._seconds(self.began), self.seconds)]
        if self.position - self.last_interim >= self.interim:
            self.last_interim = self.position
            if words := self._words(self._revealed()):
                return [Heard("interim", words, self._seconds(self.began), self.seconds)]
        return []

    def _end(self) -> list[Heard]:
        heard = Heard("ended", self._words(len(self._text())), self._seconds(self.began), self.seconds)
        self.speaking = False
        self.loud_frames = 0
        self.quiet_since = self.position
        self.memory.utterance += 1
        self.memory.given = 0
        return [heard]

    def _text(self) -> list[str]:
        texts = self.hears.get("utterances", [])
        index = self.memory.utterance
        if self.hears.get("repeat") and texts:
            index %= len(texts)
        return texts[index].split() if index < len(texts) else []

    def _revealed(self) -> int:
        spoken = (self.position - self.words_from) / self.rate * 1000
        return min(len(self._text()), self.memory.given + int(spoken / self.hears.get("word_ms", 250)))

    def _words(self, upto: int) -> list[Word]:
        """The words that are not final yet, up to the `upto`-th, spread evenly over the loud part of the stretch that they have."""
        words = self._text()[self.memory.given : upto]
        return self._spread(words, self._seconds(self.words_from), self._seconds(max(self.last_loud, self.words_from + self.frame)))

    def _spread(self, words: list[str], start: float, end: float) -> list[Word]:
        step = (end - start) / max(len(words), 1)
        return [Word(word, round(start + n * step, 3), round(start + (n + 1) * step, 3)) for n, word in enumerate(words)]

    def _scripted(self) -> list[Heard]:
        heard = []
        while self.events and self._place(self.events[0]) <= self.position:
            event = self.events.pop(0)
            start = event.get("from_ms", self.seconds * 1000) / 1000
            words = self._spread(event.get("text", "").split(), start, self.seconds)
            heard.append(Heard(event["event"], words, start, self.seconds))
        return heard

    def _place(self, event: dict) -> float:
        return event["sample"] if "sample" in event else event["ms"] * self.rate / 1000

    def _seconds(self, position: float) -> float:
        return round(position / self.rate, 3)

    def _spoilt(self, heard: list[Heard]) -> list[Heard]:
        """With the faults that are about finals."""
        out = []
        for one in heard:
            is_final = one.kind in ("final", "ended")
            if is_final and self.empty_finals:
                out.append(Heard("final", [], one.start, one.end, one.from_finalize))
            out.append(one)
            if is_final and self.double_finals:
                out.append(replace(one, again=True))
        return out


@dataclass
class Speech:
    """What a voice says: its samples, and for each character its start and length in milliseconds."""

    samples: np.ndarray
    rate: int
    characters: list[tuple[str, int, int]]

    def words(self) -> list[Word]:
        words: list[Word] = []
        open_word = False
        for character, start, length in self.characters:
            if character.isspace():
                open_word = False
                continue
            if not open_word:
                words.append(Word("", start / 1000, 0.0))
                open_word = True
            words[-1].text += character
            words[-1].end = (start + length) / 1000
        return words


def speak(text: str, rate: int, says: dict) -> Speech:
    """A buzz of 150 Hz and its harmonics, one syllable per character, silent at spaces."""
    length_ms = says.get("ms_per_character", 60)
    each = rate * length_ms // 1000
    time = np.arange(each * len(text)) / rate
    buzz = sum(np.sin(2 * np.pi * 150 * n * time) / n for n in (1, 2, 3, 5))
    loudness = np.repeat([0.0 if character.isspace() else 1.0 for character in text], each)
    # Never down to nothing between the letters of a word: there would be speech and silence in turns.
    syllable = np.tile(0.35 + 0.65 * np.sin(np.pi * np.arange(each) / max(each, 1)) ** 2, len(text))
    samples = (buzz * loudness * syllable * 6000).astype(np.int16)
    return Speech(samples, rate, [(character, n * length_ms, length_ms) for n, character in enumerate(text)])
