#!/usr/bin/env python3
"""The same speech over the same emulated line in real time: our engine beside Google's, in one room of a LiveKit server.

    real_link.py --server PATH/livekit-server [--red] [--seed N] [--only 'NAME;NAME']      speech over bad lines, scored
    real_link.py --server PATH/livekit-server --paths [--only 'NAME;NAME']                 paths to the server that are blocked or fail

Anna's line is clear, and her client is the official Python client. `ours` and `google` have lines of the same weather and seed; both hear Anna, and Anna hears
both, at the same time. Without --server our own room server serves. Needs `requirements.txt` here and in ../python, and the programs in --programs: the examples
`participant` (cargo build --example participant), `line` and `serve` (cargo build -p roomserver --examples). For --paths with TURN it needs coturn.
Takes about 20 seconds for each line, prints a table, asserts nothing.
"""

import argparse
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import wave
from pathlib import Path

import numpy as np
from livekit import api
from scipy.signal import correlate, resample_poly

import scores

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
KEY, SECRET = "devkey", "a secret that is long enough for tests"
SECONDS = 14
PATIENCE_S = 60
# The address that LiveKit's server announces, at which the line listens.
ANNOUNCED = "127.0.0.2"
# The address from which relays send.
RELAYS = "127.0.0.3"
# One-way delay in every weather.
STEADY = "delay_ms=30"
# How long the last word may take over the worst line.
TAIL_S = 2.5

WEATHERS = {
    "no loss": "",
    "loss 2 %": "loss=0.02",
    "loss 5 %": "loss=0.05",
    "loss 10 %": "loss=0.1",
    "loss 20 %": "loss=0.2",
    "jitter 30 ms": "jitter_ms=30",
    "jitter 80 ms": "jitter_ms=80",
    "overtaken 5 %": "overtaken=0.05",
    "doubled 20 %": "doubled=0.2",
    "everything at once": "loss=0.05 jitter_ms=60 overtaken=0.05 doubled=0.05",
    "outage 200 ms lost": "lost_ms=6000..6200",
    "outage 200 ms held": "held_ms=6000..6200",
    "outage 2 s lost": "lost_ms=6000..8000",
    "outage 2 s held": "held_ms=6000..8000",
}


class Program:
    """A child process that writes JSON lines and reads commands."""

    def __init__(self, command, environment, log: Path):
        inherited = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        self.log = open(log, "ab")
        self.child = subprocess.Popen(
            [str(part) for part in command], env={**inherited, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log
        )
        self.seen, self.lines = [], queue.Queue()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.child.stdout:
            self.log.write(line)
            self.log.flush()
            if line.startswith(b"{"):
                self.lines.put(json.loads(line))
        self.lines.put({"event": "ended"})

    def order(self, text: str):
        try:
            self.child.stdin.write(f"{text}\n".encode())
            self.child.stdin.flush()
        except BrokenPipeError:
            pass  # the end of the program is among its lines

    def until(self, test, patience_s: float = PATIENCE_S):
        """The first line from now on that passes the test; all are kept. None if it has not come or the program has ended."""
        end = time.monotonic() + patience_s
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return None
            self.seen.append(line)
            if test(line):
                return line
            if line.get("event") == "ended":
                return None

    def event(self, name: str, patience_s: float = PATIENCE_S, **fields):
        return self.until(lambda line: line.get("event") == name and all(line.get(k) == v for k, v in fields.items()), patience_s)

    def stats(self):
        self.order("stats")
        told = self.event("stats", 10)
        return told and told["stats"]

    def close(self, patience_s: float = 20):
        if self.child.stdin and not self.child.stdin.closed:
            try:
                self.child.stdin.close()
            except BrokenPipeError:
                pass
        try:
            self.child.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.reader.join(5)
        self.log.close()


def free_port() -> int:
    """Free for TCP and UDP, at every address."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("0.0.0.0", 0))
            port = tcp.getsockname()[1]
            try:
                udp.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port


class Network:
    """A network namespace, joined to this one by a pair of virtual interfaces; needs root."""

    HERE, SERVER = "10.201.7.1", "10.201.7.2"

    def __init__(self):
        self.name = f"line{os.getpid()}"
        self.outside, inside = f"{self.name}o", f"{self.name}i"
        self.command = ["ip", "netns", "exec", self.name]
        self.remove_what_a_killed_run_left()
        for command in [
            f"ip netns add {self.name}",
            f"ip link add {self.outside} type veth peer name {inside} netns {self.name}",
            f"ip addr add {self.HERE}/30 dev {self.outside}",
            f"ip link set {self.outside} up",
            f"ip -n {self.name} addr add {self.SERVER}/30 dev {inside}",
            f"ip -n {self.name} link set {inside} up",
            f"ip -n {self.name} link set lo up",
        ]:
            subprocess.run(command.split(), check=True)

    @staticmethod
    def remove_what_a_killed_run_left():
        for named in subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout.splitlines():
            name = named.split()[0]
            owner = name.removeprefix("line")
            if name != owner and owner.isdigit() and not Path(f"/proc/{owner}").exists():
                subprocess.run(["ip", "link", "del", f"{name}o"])
                subprocess.run(["ip", "netns", "del", name])

    def close(self):
        # With the namespace alone the pair would be removed some time later, and the next one could not have its name.
        subprocess.run(["ip", "link", "del", self.outside], check=True)
        subprocess.run(["ip", "netns", "del", self.name], check=True)


def relay_tcp(listen: tuple[str, int], server: tuple[str, int]):
    """Carries TCP unchanged, until the program ends."""

    def carry(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def accept():
        while True:
            client, _ = listener.accept()
            upstream = socket.create_connection(server)
            for end in (client, upstream):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for ends in [(client, upstream), (upstream, client)]:
                threading.Thread(target=carry, args=ends, daemon=True).start()

    listener = socket.create_server(listen)
    threading.Thread(target=accept, daemon=True).start()


def wait_for_port(port: int, address: str = "127.0.0.1"):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex((address, port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens on port {port}")


class Server:
    """A LiveKit server with lines in front of its media ports; `order` controls the lines."""

    def __init__(self, arguments, folder: Path, tcp: bool = True, turn: list[dict] = ()):
        port = free_port()
        self.url = f"ws://127.0.0.1:{port}"
        self.programs, self.network = [], None
        # Our own room server has the key of `livekit-server --dev`.
        self.secret = SECRET if arguments.server else "secret"
        if arguments.server:
            # In a network of its own, so that the line can have the server's ports at the address that is announced.
            self.network = Network()
            there = Network.SERVER
            self.url = f"ws://{there}:{port}"
            media, media_tcp = free_port(), free_port()
            config = {
                "port": port,
                "bind_addresses": [there],
                "keys": {KEY: SECRET},
                "logging": {"level": "info"},
                "rtc": {
                    "udp_port": media,
                    "tcp_port": media_tcp if tcp else 0,
                    "node_ip": ANNOUNCED,
                    "ips": {"includes": [f"{there}/32"]},
                    "use_external_ip": False,
                    # Otherwise its checks would find paths around the line.
                    "use_ice_lite": True,
                    "turn_servers": list(turn),
                },
            }
            file = folder / "livekit.yaml"
            file.write_text(json.dumps(config))
            command = ["nice", "-n", arguments.nice, *self.network.command, arguments.server, "--config", file]
            self.programs.append(Program(command, {}, folder / "server.log"))
            wait_for_port(port, there)
            line = ["nice", "-n", arguments.nice, arguments.programs / "line", f"{ANNOUNCED}:{media}", f"{there}:{media}", str(arguments.seed)]
            self.lines = Program(line, {"RUST_LOG": "roomserver=debug"}, folder / "line.log")
            self.programs.append(self.lines)
            assert self.lines.until(lambda line: "listens" in line), "the line listens"
            if tcp:
                relay_tcp((ANNOUNCED, media_tcp), (there, media_tcp))
        else:
            self.lines = Program([arguments.programs / "serve", port, "lined"], {}, folder / "server.log")
            self.programs.append(self.lines)
            wait_for_port(port)

    def order(self, text: str) -> dict:
        self.lines.order(text)
        return self.lines.until(lambda line: line.get("done") == text)

    def close(self):
        for program in reversed(self.programs):
            if program is not self.lines:
                program.child.terminate()
            program.close()
        if self.network:
            self.network.close()


def said_speech(seconds: int = SECONDS) -> np.ndarray:
    """The lines of the test caller, put together as in `crates/libwebrtc/src/audio/quality.rs`; mono at 48 kHz."""
    pause, parts = np.zeros(24_000), [np.zeros(24_000)]
    while sum(map(len, parts)) < seconds * 48_000:
        for name in ["hello", "lead", "goodbye"]:
            with wave.open(str(REPOSITORY / f"tests/fixtures/audio/{name}.wav")) as file:
                line = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
            parts += [resample_poly(line.astype(float), 48_000, file.getframerate()), pause]
    return np.clip(np.concatenate(parts)[: seconds * 48_000], -32768, 32767).astype(np.int16)


def said_tone(seconds: int) -> np.ndarray:
    t = np.arange(seconds * 48_000) / 48_000
    return (8000 * np.sin(2 * np.pi * 440 * t) * (0.75 + 0.25 * np.sin(2 * np.pi * 4 * t))).astype(np.int16)


def write(path: Path, sound: np.ndarray):
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(48_000)
        out.writeframes(sound.tobytes())


def heard_from(path: Path, at: float) -> tuple[np.ndarray, np.ndarray]:
    """The sound that was delivered from a time on, and the time of each frame."""
    times = np.fromfile(path.with_suffix(".times"))
    with wave.open(str(path)) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
    frame = len(sound) // len(times)
    first = int(np.searchsorted(times, at))
    return sound[first * frame :], times[first:]


def runs(silent: np.ndarray) -> list[int]:
    """The lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], silent, [False]]).astype(int)))
    return list(edges[1::2] - edges[::2])


def loudness(sound: np.ndarray) -> np.ndarray:
    """Root mean square of each block of 10 ms."""
    block = scores.RATE // 100
    return np.sqrt((sound[: len(sound) // block * block].reshape(-1, block) ** 2).mean(axis=1))


def gaps_and_delay(said: np.ndarray, heard: np.ndarray, slack_s: float, said_at: float, times: np.ndarray):
    """Milliseconds of speech in whose place nothing was heard, the longest such gap, and the median mouth-to-ear delay of the lines in ms."""
    gaps, delays = [], []
    for start, end in scores.lines(said):
        line = said[start:end]
        around = heard[start : end + int(slack_s * scores.RATE)]
        if len(line) < scores.RATE // 2 or len(around) < len(line):
            continue
        lag = int(np.argmax(correlate(around, line, mode="valid")))
        spoken, played = loudness(line), loudness(around[lag : lag + len(line)])
        around = np.array([played[max(0, i - 2) : i + 3].max() for i in range(len(played))])
        gaps += runs((spoken > 0.1 * spoken.max()) & (around < 0.05 * spoken))
        delivered = times[min(len(times) - 1, (start + lag) // (scores.RATE // 100))]
        delays.append((delivered - said_at - start / scores.RATE) * 1000)
    return sum(gaps) * 10, max(gaps, default=0) * 10, float(np.median(delays)) if delays else float("nan")


def difference(before: dict, after: dict) -> dict:
    return {key: value - before.get(key, 0) if isinstance(value, (int, float)) else value for key, value in after.items()}


class Call:
    """Anna, ours and google in one room."""

    def __init__(self, arguments, server: Server, folder: Path, room: str, relay: bool = False, environment: dict = {}, patience_s: float = PATIENCE_S):
        self.folder, self.server, self.people = folder, server, {}
        python = [sys.executable, HERE / "participant.py"]
        programs = {"anna": python, "ours": [arguments.programs / "participant"], "google": python}
        for name, command in programs.items():
            server.order(f"admit {'clear' if name == 'anna' else 'bad'}")
            grants = api.VideoGrants(room_join=True, room=room)
            token = api.AccessToken(KEY, server.secret).with_identity(name).with_grants(grants).to_jwt()
            settings = {
                **environment, "LIVEKIT_URL": server.url, "LIVEKIT_TOKEN": token, "FOLDER": str(folder),
                "HEAR": "ours,google" if name == "anna" else "anna",
                "RED": "1" if arguments.red else "0", "RELAY": "1" if relay and name != "anna" else "0",
            }
            person = self.people[name] = Program(["nice", "-n", arguments.nice, *command], settings, folder / f"{name}.log")
            person.joined = person.event("joined", patience_s)
            person.published = person.joined and person.event("published", patience_s)
        self.anna, self.ours, self.google = self.people.values()

    def all_hear(self) -> bool:
        heard = [self.ours.event("hears", whom="anna"), self.google.event("hears", whom="anna")]
        return all(heard) and bool(self.anna.event("hears") and self.anna.event("hears"))

    def say(self, file: Path) -> dict[str, float]:
        for person in self.people.values():
            person.order(f"say {file}")
        return {name: person.event("says")["at"] for name, person in self.people.items()}

    def close(self):
        for person in self.people.values():
            person.order("leave")
        for person in self.people.values():
            person.close()


# Direction of the media at the engine under test, who listens, who speaks.
PAIRS = [("down", "ours", "anna"), ("down", "google", "anna"), ("up", "anna", "ours"), ("up", "anna", "google")]


def over_bad_lines(arguments, folder: Path):
    said = said_speech()
    write(folder / "said.wav", said)
    said_16 = scores.read(folder / "said.wav")
    server = Server(arguments, folder)
    print(
        f"{'line':20} {'dir':4} {'engine':6} {'PESQ':>5} {'STOI':>6} {'conceal%':>8} {'buffer':>6} {'target':>6} {'delay':>9} {'gaps':>5} {'longest':>7}"
        f" {'lost':>4} {'fec':>4} {'nack':>4} {'codec':10}  (ms)"
    )
    try:
        for name, weather in WEATHERS.items():
            if arguments.only and name not in arguments.only:
                continue
            kept = folder / name.replace(" ", "_").replace("%", "percent")
            kept.mkdir()
            server.order(f"weather bad {STEADY}")
            call = Call(arguments, server, kept, f"line {name}")
            try:
                assert call.all_hear(), f"everybody hears everybody: {kept}"
                time.sleep(2)
                before = {who: person.stats() for who, person in call.people.items()}
                server.order(f"weather bad {STEADY} {weather}")
                said_at = call.say(folder / "said.wav")
                time.sleep(SECONDS + TAIL_S)
                after = {who: person.stats() for who, person in call.people.items()}
            finally:
                call.close()
            slack_s = 2.5 if "2 s held" in name else 0.7
            for direction, listener, speaker in PAIRS:
                sound, times = heard_from(kept / f"{listener}-{speaker}.wav", said_at[speaker])
                heard = resample_poly(sound.astype(float), scores.RATE, 48_000)
                stats = difference(before[listener]["tracks"][speaker], after[listener]["tracks"][speaker])
                pesq, stoi = scores.score(said_16, heard, slack_s)
                gaps, longest, delay = gaps_and_delay(said_16, heard, slack_s, said_at[speaker], times)
                emitted = max(1, stats["jitter_buffer_emitted_count"])
                print(
                    f"{name:20} {direction:4} {speaker if direction == 'up' else listener:6} {pesq:5.2f} {stoi:6.3f}"
                    f" {100 * stats['concealed_samples'] / max(1, stats['total_samples_received']):8.2f}"
                    f" {1000 * stats['jitter_buffer_delay'] / emitted:6.0f} {1000 * stats['jitter_buffer_target_delay'] / emitted:6.0f}"
                    f" {delay:9.0f} {gaps:5} {longest:7} {stats['packets_lost']:4} {stats['fec_packets_received']:4} {stats['nack_count']:4}"
                    f" {stats['codec'] or '?':10}",
                    flush=True,
                )
    finally:
        server.close()


class TurnServer:
    """coturn on loopback, over UDP, TCP and TLS."""

    def __init__(self, folder: Path):
        self.port, self.tls_port = free_port(), free_port()
        self.certificate = folder / "certificate.pem"
        key = folder / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
             "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", self.certificate],
            check=True, capture_output=True,
        )
        folder.chmod(0o755)
        key.chmod(0o644)
        command = [
            "turnserver", "-n", "--no-cli", "--lt-cred-mech", "--fingerprint", "--listening-ip=127.0.0.1", f"--relay-ip={RELAYS}",
            "--realm=example.org", "--user=user:secret", "--allow-loopback-peers", "--log-file=stdout", f"--listening-port={self.port}",
            f"--tls-listening-port={self.tls_port}", f"--cert={self.certificate}", f"--pkey={key}", f"--pidfile={folder}/turn.pid",
            f"--userdb={folder}/turn.sqlite",
        ]
        self.log = open(folder / "turn.log", "wb")
        self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        wait_for_port(self.port)

    def servers(self, protocol: str, credential: str = "secret") -> list[dict]:
        port = self.tls_port if protocol == "tls" else self.port
        return [{"host": "127.0.0.1", "port": port, "protocol": protocol, "username": "user", "credential": credential}]

    def close(self):
        self.child.kill()
        self.child.wait()
        self.log.close()


# What is allowed, and what happens to UDP or to the TURN server: (ICE-TCP, TURN protocol, TURN password, relay only, cut before or in mid-call, TURN goes).
PATHS = {
    "tcp, udp cut in mid-call": dict(tcp=True, cut="middle"),
    "tcp, udp blocked": dict(tcp=True, cut="before"),
    "turn/tcp, udp cut in mid-call": dict(turn="tcp", cut="middle"),
    "turn/tcp, udp blocked": dict(turn="tcp", cut="before"),
    "turn/tls, udp blocked": dict(turn="tls", cut="before"),
    "turn/tls, relay only": dict(turn="tls", relay=True),
    "turn/tcp, wrong password": dict(turn="tcp", relay=True, credential="wrong"),
    "turn/tcp, server gone in mid-call": dict(turn="tcp", relay=True, gone=True),
}
PATH_SECONDS = 40
CHANGE_AFTER_S = 5


def over_changing_paths(arguments, folder: Path):
    write(folder / "said.wav", said_tone(PATH_SECONDS))
    for name, case in PATHS.items():
        if arguments.only and name not in arguments.only:
            continue
        kept = folder / name.replace(" ", "_").replace(",", "").replace("/", "-")
        kept.mkdir()
        one_path(arguments, kept, folder / "said.wav", name, case)


def one_path(arguments, kept: Path, said: Path, name: str, case: dict):
    turn = TurnServer(kept) if "turn" in case else None
    servers = turn.servers(case["turn"], case.get("credential", "secret")) if turn else []
    server = Server(arguments, kept, tcp=case.get("tcp", False), turn=servers)
    environment = {"SSL_CERT_FILE": str(turn.certificate), "RUST_LOG": "info"} if turn else {}
    call = None
    try:
        # Packets from a relay are not dropped.
        server.order(f"from {RELAYS} clear")
        server.order("weather bad" + (" loss=1" if case.get("cut") == "before" else ""))
        call = Call(arguments, server, kept, name, relay=case.get("relay", False), environment=environment)
        for who in ("ours", "google"):
            person = call.people[who]
            times = {what: line and round(line["ms"]) for what, line in (("joined", person.joined), ("published", person.published))}
            print(f"{name:36} {who:6} {times} ms", [line for line in person.seen if line["event"] in ("failed", "not published")], flush=True)
        alive = [who for who in ("ours", "google") if call.people[who].joined]
        for who in alive:
            call.people[who].heard = call.people[who].event("hears", 30, whom="anna")
            print(f"{name:36} {who:6} paths {(call.people[who].stats() or {}).get('paths')}", flush=True)
        while call.anna.event("hears", 3):
            pass
        alive = [who for who in alive if call.people[who].heard]
        if "cut" in case or "gone" in case:
            at = {}
            for who in ["anna", *alive]:
                call.people[who].order(f"say {said}")
            for who in ["anna", *alive]:
                at[who] = call.people[who].event("says", 10)
            time.sleep(CHANGE_AFTER_S)
            changed = time.time()
            if case.get("cut") == "middle":
                server.order("weather bad loss=1")
            if case.get("gone"):
                turn.child.kill()
            time.sleep(PATH_SECONDS - CHANGE_AFTER_S)
        for who in alive:
            print(f"{name:36} {who:6} paths at the end {(call.people[who].stats() or {}).get('paths')}", flush=True)
        call.close()
        closed, call_people, call = time.time(), call.people, None
        for who in ("ours", "google"):
            events = [
                f"{line['at'] - changed:+.1f} s {line.get('state') or line['reason']}" for line in call_people[who].seen
                if line["event"] in ("state", "disconnected") and changed - 1 < line["at"] < closed - 1
            ] if "cut" in case or "gone" in case else [line.get("state") for line in call_people[who].seen if line["event"] == "state"]
            print(f"{name:36} {who:6} events {events}", flush=True)
        for direction, listener, speaker in PAIRS:
            file = kept / f"{listener}-{speaker}.wav"
            if not file.exists() or speaker not in locals().get("at", {}) or not at[speaker]:
                continue
            sound, times = heard_from(file, at[speaker]["at"] + 1)
            wanted = int((PATH_SECONDS - 2) * scores.RATE)
            levels = loudness(resample_poly(sound.astype(float), scores.RATE, 48_000)[:wanted])
            silences = runs(levels < 300)
            where = speaker if direction == "up" else listener
            print(f"{name:36} {where:6} {direction}: longest silence {max(silences, default=0) * 10} ms, all {sum(silences) * 10} ms of {len(levels) * 10}", flush=True)
    finally:
        if call:
            call.close()
        server.close()
        if turn:
            turn.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", type=Path)
    parser.add_argument("--programs", type=Path, default=REPOSITORY / "target/debug/examples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--red", action="store_true", help="publish with redundancy")
    parser.add_argument("--nice", type=int, default=0, help="niceness; below 0, sound has priority on a busy machine")
    parser.add_argument("--paths", action="store_true")
    parser.add_argument("--only", type=lambda names: names.split(";"), help="names separated by ;")
    parser.add_argument("--folder", type=Path, help="keeps the recordings and logs here")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="real-link-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (over_changing_paths if arguments.paths else over_bad_lines)(arguments, folder)
    finally:
        if not arguments.folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
