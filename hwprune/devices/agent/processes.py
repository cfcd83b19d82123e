"""Worker processes of the agent: started, spoken to without ever blocking, ended or reported as stuck."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import threading
from typing import Any, Callable

from hwprune.devices.agent.framing import FrameError, decode_line, encode_frame
from hwprune.devices.agent.link import PIECE

START = "import sys;sys.path.insert(0,sys.argv[1]);from hwprune.devices.agent.worker import main;main()"
GRACE_S = 5.0
TAIL_BYTES = 4000
PRINT_S = 0.1


class WorkerStuck(Exception):
    """A worker that SIGKILL does not end: it hangs in the kernel, mostly in a driver."""


class WorkerProcess:
    """A process with the runtime in it. `tell(worker, message)` gets what it says, `tell(worker, None)` that it ended.

    It reads from a thread of its own, so that a worker that does not listen never stops its supervisor.
    """

    def __init__(self, agent: str, tell: Callable[[WorkerProcess, dict[str, Any] | None], None]) -> None:
        self._tell = tell
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-I", "-c", START, agent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._outbox: queue.Queue[bytes | None] = queue.Queue()
        self._tail = b""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._copier = threading.Thread(target=self._copy_errors, daemon=True)
        for thread in (self._listener, self._copier, threading.Thread(target=self._write, daemon=True)):
            thread.start()

    def send(self, message: dict[str, Any], blob: bytes = b"") -> None:
        """Queue a frame for the worker."""
        self._outbox.put(encode_frame(message, blob))

    def end(self) -> None:
        """Let it finish and go; kill it when it does not. Raises `WorkerStuck`."""
        self._outbox.put(None)
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once, with everything it started. Raises `WorkerStuck`."""
        self._shoot()
        self._await_end()

    def obituary(self) -> str:
        """How it ended: the signal or exit code, the memory it used, and the last it said. Raises `WorkerStuck`."""
        code = self._await_end()
        self._copier.join(GRACE_S)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        said = self._tail.decode(errors="replace").strip().splitlines()
        last = f"; it said: {said[-1][:300]}" if said else ""
        return f"{how} (largest worker so far: {peak_mib} MiB){last}"

    def _shoot(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _await_end(self) -> int:
        """The exit code of a worker that is ending. The supervisor must not wait longer: its host would miss it."""
        try:
            return self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            raise WorkerStuck(f"its worker (process {self._process.pid}) cannot be ended") from None

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            for data in iter(self._outbox.get, None):
                pipe.write(data)
                pipe.flush()
            pipe.close()
        except OSError:
            return  # it has ended; the listener tells

    def _listen(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        try:
            for line in iter(pipe.readline, b""):
                self._tell(self, decode_line(line))
        except FrameError:
            self._shoot()
        self._tell(self, None)

    def _copy_errors(self) -> None:
        """Pass on what it prints, and keep the end of it for the obituary."""
        pipe = self._process.stderr
        assert pipe is not None
        for block in iter(lambda: os.read(pipe.fileno(), 1 << 16), b""):
            self._tail = (self._tail + block)[-TAIL_BYTES:]
            _pass_on(block)


def _pass_on(block: bytes) -> None:
    """Print it, or drop it where nobody listens or takes it: the worker must not stop for that."""
    with contextlib.suppress(OSError):
        for place in range(0, len(block), PIECE):
            if not select.select([], [2], [], PRINT_S)[1]:
                return
            os.write(2, block[place : place + PIECE])


def private_stdout() -> int:
    """A descriptor of the real standard output; from now on descriptor 1 is standard error.

    CUDA, TensorRT and others print on descriptor 1 whenever they like.
    """
    out = os.dup(1)
    os.dup2(2, 1)
    return out


def die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process when its parent ends, however that happens."""
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        sys.exit(1)


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything. Raises `OSError` where the reader has gone."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
