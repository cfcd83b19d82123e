"""Files that survive a crash: atomic replacement, an append-only journal with a checksum a line, and a lock.

A reader never sees half a file: new content goes to a temporary name in the same folder, is synced, and is then
renamed over the old one. A journal loses at most the line in flight.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hwprune.core.errors import DeviceError, HwpruneError, RunError, UsageError


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Replace `path` by `data` in one step; the old content stays whole if anything fails.

    Raises `DeviceError` when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _write_error(path, error) from error


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` for UTF-8 text."""
    atomic_write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, document: Any) -> None:
    """Write one JSON document atomically; NaN and infinities become null."""
    atomic_write_text(path, json.dumps(finite(document), indent=2, allow_nan=False) + "\n")


def create_json(path: str | Path, document: Any) -> None:
    """`write_json` for a new file: of several processes one makes it, the others get `FileExistsError`."""
    path = Path(path)
    draft = path.with_name(f"{path.name}.new.{os.getpid()}")
    write_json(draft, document)
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(draft, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()


def read_json(path: str | Path) -> Any:
    """The JSON document in `path`; `UsageError` naming the file when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a JSON document: {error}") from error


def finite(document: Any) -> Any:
    """The same document with NaN and infinities replaced by None and tuples by lists."""
    if isinstance(document, float):
        return document if math.isfinite(document) else None
    if isinstance(document, dict):
        return {str(key): finite(value) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [finite(value) for value in document]
    return document


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class Journal:
    """An append-only file of JSON records, one a line: `crc32 SP json LF`.

    A record is on the disk when `append` returns. `read` skips lines whose checksum is wrong and counts them, so a
    torn tail or a flipped bit costs the record it touched and no other.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, record: dict[str, Any]) -> None:
        """Add one record; `DeviceError` when it could not be written (the file is then as it was before)."""
        body = json.dumps(finite(record), separators=(",", ":"), allow_nan=False).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                self._append_locked(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _write_error(self.path, error) from error

    def _append_locked(self, descriptor: int, line: bytes) -> None:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # never glue a record onto a torn tail
        try:
            written = os.write(descriptor, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise

    def read(self) -> tuple[list[dict[str, Any]], int]:
        """All intact records in order, and the number of lines that were damaged."""
        if not self.path.exists():
            return [], 0
        records: list[dict[str, Any]] = []
        damaged = 0
        for line in self.path.read_bytes().split(b"\n"):
            if not line:
                continue
            record = _record(line)
            if record is None:
                damaged += 1
            else:
                records.append(record)
        return records, damaged


def _record(line: bytes) -> dict[str, Any] | None:
    checksum, _, body = line.partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        record = json.loads(body)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process; `RunError` naming the holder when another process has it.

    The kernel releases the lock when its process dies, so a killed run leaves nothing to clean up.
    """
    path = Path(folder) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
            raise RunError(
                f"{folder} is in use by process {holder or 'unknown'}",
                hint="wait until it ends, or use another folder",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(path: Path, error: OSError) -> HwpruneError:
    if error.errno == errno.EISDIR:
        return UsageError(f"cannot write {path}: it is a folder", hint="name a file")
    hint = "check the permissions of the folder, or choose another one"
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        hint = "free some disk space; the same command then goes on where it stopped"
    return DeviceError(f"cannot write {path}: {error.strerror or error}", hint=hint)
