"""One child process of ours: its first line of output, its log, and an end that leaves nothing behind."""

import json
import os
import queue
import signal
import subprocess
import threading
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
START_DEADLINE_S = 20
STOP_DEADLINE_S = 20


def voicebot_binary() -> str:
    path = os.environ.get("VOICEBOT_BIN", str(REPOSITORY / "target/debug/voicebot"))
    if not os.access(path, os.X_OK):
        raise RuntimeError(f"{path} is not there: build it with `cargo build`, or name it in VOICEBOT_BIN")
    return path


class Process:
    def __init__(self, command: list[str], log: Path, environment: dict[str, str], cwd: Path | None = None, has_stdin=False):
        self.command, self.log, self.cwd, self.has_stdin = command, log, cwd, has_stdin
        # A proxy in the environment would swallow requests to loopback.
        inherited = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        self.environment = {**inherited, **environment}

    def __enter__(self):
        self._log = open(self.log, "wb")
        # A session of its own, so that whatever it starts can be ended with it.
        self.child = subprocess.Popen(
            self.command,
            env=self.environment,
            cwd=self.cwd,
            stdin=subprocess.PIPE if self.has_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self.lines: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self):
        for line in self.child.stdout:
            self.lines.put(line)
            self._log.write(line)
            self._log.flush()
        self.lines.put(b"")

    def first_json_line(self, deadline_s: float = START_DEADLINE_S) -> dict:
        try:
            line = self.lines.get(timeout=deadline_s)
        except queue.Empty:
            line = b""
        if not line.strip().startswith(b"{"):
            raise RuntimeError(f"{self.command} printed {line!r} and not its JSON line; log:\n{self.log.read_text()[-4000:]}")
        return json.loads(line)

    def __exit__(self, *_):
        if self.has_stdin:
            self.child.stdin.close()
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait()
        self._reader.join(5)
        self._log.close()
