"""What a device keeps of a session until the host has it: finished results and crashes, in a journal on its disk.

A result is on the disk before it is sent, and goes when the host has acknowledged it. A job that killed its worker
twice is poison: it is remembered and not run again in this session.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path
from typing import Any

from hwprune.core.errors import DeviceError
from hwprune.core.files import Journal

QUOTA_BYTES = 64 << 20
KEPT_SESSIONS = 16
CRASHES_ALLOWED = 1
_SESSION = re.compile(r"[0-9a-f]{32}\Z")


def valid_session(name: object) -> bool:
    """Whether a session's name is one: 32 hexadecimal digits. It becomes a file name."""
    return isinstance(name, str) and _SESSION.match(name) is not None


class Spool:
    """The journal of one session. `last_seq` is the highest sequence number it knows of."""

    def __init__(self, folder: Path, session: str) -> None:
        self._path = folder / "spool" / f"{session}.jsonl"
        self._journal = Journal(self._path)
        self._results: dict[str, dict[str, Any]] = {}
        self._crashes: dict[str, int] = {}
        self.last_seq = 0
        for record in self._journal.read()[0]:
            self._take(record)
        _forget_old(self._path)

    def _take(self, record: dict[str, Any]) -> None:
        if "crash" in record:
            self._crashes[record["crash"]] = self._crashes.get(record["crash"], 0) + record["count"]
        elif "acknowledged" in record:
            self._results = {
                job: result for job, result in self._results.items() if result["seq"] > record["acknowledged"]
            }
        else:
            self._results[record["job"]] = record
            self.last_seq = max(self.last_seq, record["seq"])

    def result(self, job: str) -> dict[str, Any] | None:
        """The finished result (or error) of a job, None where there is none."""
        return self._results.get(job)

    def after(self, seq: int) -> list[dict[str, Any]]:
        """What was finished and is not known to the host, in order."""
        missing = [result for result in self._results.values() if result["seq"] > seq]
        return sorted(missing, key=lambda result: int(result["seq"]))

    def add(self, message: dict[str, Any]) -> None:
        """Keep a finished message; it is on the disk when this returns. Raises `DeviceError` above the quota."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size > QUOTA_BYTES:
            raise DeviceError(f"{self._path} has grown to {size} bytes", hint="the host does not acknowledge results")
        self._append(message)

    def acknowledge(self, seq: int) -> None:
        """The host has everything up to `seq`. The file is emptied when nothing else is in it."""
        if not any(result["seq"] <= seq for result in self._results.values()):
            return
        self._take({"acknowledged": seq})
        if self._results:
            self._journal.append({"acknowledged": seq})
            return
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        for content, count in self._crashes.items():
            self._journal.append({"crash": content, "count": count})

    def crash(self, content: str, *, count: int = 1) -> None:
        """Remember that a job of this content killed its worker."""
        self._append({"crash": content, "count": count})

    def poisonous(self, content: str) -> bool:
        """Whether a job of this content has killed more workers than are given to it."""
        return self._crashes.get(content, 0) > CRASHES_ALLOWED

    def close(self) -> None:
        """The session is over and everything acknowledged: nothing of it is kept."""
        if not self._results:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    def _append(self, record: dict[str, Any]) -> None:
        self._journal.append(record)
        self._take(record)


def _forget_old(path: Path) -> None:
    """Keep the files of the last sessions; a host that died never comes back for older ones."""
    with contextlib.suppress(FileNotFoundError):
        files = sorted(path.parent.glob("*.jsonl"), key=lambda item: item.stat().st_mtime, reverse=True)
        for old in [item for item in files if item != path][KEPT_SESSIONS:]:
            old.unlink()


class Lease:
    """The right to measure on this device, held by one session at a time; the kernel frees it when its holder dies."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(str(folder / "device.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, session: str) -> bool:
        """Try to get it; False while another process has it."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{session} {os.getpid()}".encode(), 0)
        return True

    def holder(self) -> tuple[str, str]:
        """Session and process id of who has it."""
        session, _, process = os.pread(self._descriptor, 64, 0).decode(errors="replace").partition(" ")
        return session, process
