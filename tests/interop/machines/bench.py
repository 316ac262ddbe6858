"""How often a machine that answers is told from a person, and how soon.

Makes openings of calls from Debian's telephone prompts (asterisk-core-sounds-en-wav; `speech_recordings` in .ci/common.sh unpacks
them) and espeak-ng's voices, sends every other one through noise or a codec, and has the detector hear each with and without its words.
Needs sox, espeak-ng and the example, optimised, or it takes many minutes:

    cargo build --example machines --config profile.dev.package.voicebot.opt-level=2
    python3 tests/interop/machines/bench.py [FOLDER OF PROMPTS]
"""

import collections
import gzip
import pathlib
import statistics
import subprocess
import sys
import tempfile

PROMPTS = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/speech-recordings")
SOUNDS = PROMPTS / "usr/share/asterisk/sounds/en_US_f_Allison"
TEXTS = PROMPTS / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
MACHINES = {"voicemail", "ivr", "unavailable", "mailbox_full", "fax"}
# How long recognition takes after the end of a prompt.
RECOGNITION_MS = 400

MENUS = """vm-advopts vm-forward vm-forward-multiple vm-forwardoptions vm-instructions vm-leavemsg vm-msginstruct vm-options
vm-opts vm-opts-full vm-review vm-tempgreeting2 vm-helpexit vm-newpassword vm-reenterpassword vm-tocallback vm-toreply vm-reachoper
vm-starmain vm-repeat vm-next vm-delete vm-calldiffnum vm-enter-num-to-call vm-whichbox""".split()
ANNOUNCEMENTS = "all-circuits-busy-now cannot-complete-as-dialed cannot-complete-network-error check-number-dial-again number-not-answering".split()
VOICEMAILS = """en:Hi, you have reached Robert. I can't come to the phone right now. Please leave a message after the beep.
en:Hello, this is the voicemail of Anna Smith. Leave your name and number and I will call you back.
en:Hey, it's Jo. You know what to do after the tone.
en:Your call has been forwarded to an automated voice messaging system. At the tone, please record your message.
en:Sorry I missed your call. Please leave a short message with your number and I will get back to you as soon as possible.
en:Thank you for calling the dental practice. We are closed now. Our hours are Monday to Friday from nine to five. Please leave a message.
en:The customer you are trying to reach is not available. Please record your message after the beep.
es:Hola, ha llamado a Carlos. Ahora no puedo contestar. Deje su mensaje después de la señal.
fr:Bonjour, vous êtes bien sur la messagerie vocale de Marie. Laissez un message après le bip sonore.
hi:नमस्ते, मैं अभी फ़ोन नहीं उठा सकता। कृपया बीप के बाद अपना संदेश छोड़ें।""".split("\n")
PEOPLE = """en:Hello?
en:Hello, hello?
en:Yes?
en:Hi.
en:Good morning.
en:Hello, Anna speaking.
en:Smith.
en:Hello, who is this?
en:Yes, hello, this is Tom.
en:She is not available at the moment.
en:The manager is not available at the moment.
en:Good morning, dental practice, this is Priya, how may I help you?
en:Hello, can you hear me?
en:I'm driving, can you call me back later?
en:He is out. Can I take a message?
en:You have the wrong number.
en:Pump shop, Michael, good afternoon.
en:Yeah, what's up?
en:Not interested, thank you.
en:Wait a second, please.
es:¿Aló? ¿Quién habla?
es:Dígame.
fr:Allô ?
fr:Allô oui, c'est qui ?
hi:हैलो?
hi:हाँ जी, बोलिए।
hi:कौन बोल रहा है?""".split("\n")


def sox(*arguments):
    subprocess.run(["sox", "-V1", *map(str, arguments)], check=True)


def length_ms(wav):
    return round(float(subprocess.run(["soxi", "-D", wav], check=True, capture_output=True, text=True).stdout) * 1000)


class Bench:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.openings = []
        with gzip.open(TEXTS, "rt") as lines:
            pairs = (line.strip().split(": ", 1) for line in lines)
            self.texts = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

    def wav(self, name, *effects, source=("-n",)):
        path = self.folder / f"{name}.wav"
        sox(*source, "-r", 16000, "-c", 1, "-b", 16, path, *effects)
        return path

    def prompt(self, name):
        source = SOUNDS / f"{name}.wav"
        text = "" if name == "beep" else self.texts.get(name, name.rsplit("/", 1)[-1])
        return self.wav(f"p_{name.replace('/', '_')}", source=(source,)), text

    def said(self, line, voice):
        language, text = line.split(":", 1)
        path = self.folder / f"said{len(self.openings)}.wav"
        subprocess.run(["espeak-ng", "-v", f"{language}+{voice}", "-s", "150", "-w", path, text], check=True)
        return self.wav(f"s{len(self.openings)}", source=(path,)), text

    def add(self, expected, parts, pause_s=0.9):
        """One opening: silence, the parts, and what the line does to them."""
        at = len(self.openings)
        silence = self.wav("pause", "trim", 0, pause_s)
        whole, words, end = [silence], [], round(pause_s * 1000)
        beep_end = None
        for wav, text in parts:
            whole.append(wav)
            end += length_ms(wav)
            if text:
                words.append(f"{end + RECOGNITION_MS}:{text}")
            else:
                beep_end = end
        path = self.folder / f"o{at}.wav"
        sox(*whole, path)
        if at % 4 == 1:
            noisy = self.folder / f"n{at}.wav"
            hiss = self.folder / f"h{at}.wav"
            sox("-n", "-r", 16000, "-c", 1, "-b", 16, hiss, "synth", end / 1000, "pinknoise", "vol", 0.01)
            sox("-m", "-v", 1, path, "-v", 1, hiss, noisy)
            path = noisy
        elif at % 4 == 3:
            packed = self.folder / f"g{at}.gsm"
            sox(path, "-r", 8000, packed)
            path = self.folder / f"c{at}.wav"
            sox(packed, "-r", 16000, "-b", 16, path)
        raw = self.folder / f"r{at}.raw"
        sox(path, "-t", "raw", "-e", "signed", "-b", 16, raw)
        self.openings.append((expected, raw, "|".join(words), beep_end))

    def make(self):
        beep = self.prompt("beep")
        gap = self.wav("gap", "trim", 0, 0.6), ""
        digits = [self.prompt(f"digits/{n}") for n in range(10)]
        for n in range(16):
            number = [digits[(n * 7 + k * 3) % 10] for k in range(4)]
            gone = self.prompt(("vm-isunavail", "vm-isonphone")[n % 2])
            self.add("voicemail", [self.prompt("vm-theperson"), *number, gone, self.prompt("vm-intro"), beep])
        for n in range(4):
            self.add("voicemail", [self.prompt("vm-nobodyavail"), self.prompt("vm-intro"), beep], 0.4 + n / 3)
        for line in VOICEMAILS:
            for voice in ("m3", "f2"):
                self.add("voicemail", [self.said(line, voice), gap, beep])
        for n, name in enumerate(MENUS):
            self.add("ivr", [self.prompt(name), self.prompt(MENUS[(n + 5) % len(MENUS)])])
        for name in ANNOUNCEMENTS:
            if (SOUNDS / f"{name}.wav").exists():
                self.add("unavailable", [self.prompt(name)])
        self.add("mailbox_full", [self.prompt("vm-mailboxfull")])
        self.add("fax", [(self.wav("ced", "synth", 3, "sine", 2100, "vol", 0.3), "")])
        self.add("fax", [(self.wav("cng", "synth", 0.5, "sine", 1100, "vol", 0.3), "")])
        for pause in (0.3, 1.2, 2.5):
            self.add("human", [self.prompt("hello")], pause)
            self.add("no_speech", [], 2 + pause)
        for line in PEOPLE:
            for voice in ("m3", "f2"):
                self.add("human", [self.said(line, voice)])


def kind(who):
    return "machine" if who in MACHINES else who


def report(bench, with_words):
    lines = "".join(f"{raw}\t{words if with_words else ''}\n" for _, raw, words, _ in bench.openings)
    run = ["target/debug/examples/machines"]
    out = subprocess.run(run, input=lines, check=True, capture_output=True, text=True).stdout
    table, times, exact, after_beep, wrong = collections.Counter(), collections.defaultdict(list), 0, [], []
    for (expected, raw, words, beep_end), line in zip(bench.openings, out.splitlines(), strict=True):
        _, first, reason, at, last, message = line.split("\t")
        table[kind(expected), kind(last)] += 1
        times[kind(expected)].append(int(at or 0))
        exact += expected == last
        if kind(expected) != kind(last):
            wrong.append(f"  {expected} taken for {last} ({reason} at {at} ms): {words}")
        if expected == "voicemail" and message and beep_end:
            after_beep.append(int(message) - beep_end)
    right = sum(n for (expected, found), n in table.items() if expected == found)
    print(f"{'with' if with_words else 'without'} words: {right} of {len(bench.openings)} right, {exact} by their exact kind")
    for (expected, found), n in sorted(table.items()):
        print(f"  {expected} -> {found}: {n}")
    for expected, all_times in sorted(times.items()):
        print(f"  {expected}: decided at {statistics.median(all_times):.0f} ms, at the latest {max(all_times)} ms")
    if after_beep:
        good = sum(300 <= it <= 1000 for it in after_beep)
        print(f"  messages {min(after_beep)} to {max(after_beep)} ms after the beep, {good} of {len(after_beep)} in 300 to 1000 ms")
    print("\n".join(wrong))


with tempfile.TemporaryDirectory() as folder:
    bench = Bench(folder)
    bench.make()
    report(bench, True)
    report(bench, False)
