"""The builder's timing cache on the disk: one file a fingerprint, written in one step, refused under another.

With it a second build of a layer takes the kernel that won before, which saves most of the building time and keeps
tactics the same. Its times are true for one GPU, driver and clock setting only. It is TensorRT's own format behind a
header of ours, and is never taken from anywhere but the folder we wrote it to.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwprune.core.errors import DeviceError
from hwprune.core.files import atomic_write_bytes
from hwprune.runtimes._tensorrt.api import Config

if TYPE_CHECKING:
    from hwprune.core.measurement import Fingerprint
    from hwprune.runtimes._tensorrt.api import TimingCacheObject

SCHEMA = "hwprune.timing_cache/1"
SAVE_EVERY = 16  # builds; the first one is saved too


def default_folder() -> Path:
    """Where TensorRT may find it again: in the folder of `core.specs.cache_folder`, which is not sent to a board."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    folder = os.environ.get("HWPRUNE_CACHE") or os.path.join(base, "hwprune")
    return Path(os.path.expanduser(folder)) / "tensorrt"


class TimingCache:
    """One live cache for all builds of a process. `refused` says why a saved one was not taken, "" when it was.

    `near_mhz`: about how fast the GPU runs, where the fingerprint does not say it.
    """

    def __init__(self, folder: Path, fingerprint: Fingerprint, near_mhz: int | None = None) -> None:
        clock = "" if near_mhz is None else f"-{near_mhz}MHz"
        self.path = folder / f"{fingerprint.digest()}{clock}.timing"
        self.refused = ""
        self._header = _header(fingerprint, near_mhz)
        self._cache: TimingCacheObject | None = None
        self._builds = 0
        self._saved = b""

    def attach(self, config: Config) -> None:
        """Give the cache to a build; the first time it is read from the disk. Without one every build is a slow one."""
        if self._cache is None:
            self._cache = self._first(config)
        if self._cache is not None:
            config.set_timing_cache(self._cache, False)

    def _first(self, config: Config) -> TimingCacheObject | None:
        """The saved cache where TensorRT takes it, else an empty one; None where TensorRT makes none."""
        blob = self._read()
        cache = config.create_timing_cache(blob)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
        if blob:
            self.refused = "TensorRT says that it was made on another device or version"
        return config.create_timing_cache(b"")

    def built(self) -> None:
        """Count a build, and save now and then. A disk that cannot be written costs building time later, no more."""
        self._builds += 1
        if self._builds % SAVE_EVERY == 1:
            self.save()

    def save(self) -> bool:
        """Write the cache to its file where it has grown; whether it is on the disk."""
        if self._cache is None:
            return False
        cache = self._cache
        blob = bytes(memoryview(cache.serialize()))  # type: ignore[arg-type]
        if blob == self._saved:
            return True
        header = {**self._header, "sha256": hashlib.sha256(blob).hexdigest()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            atomic_write_bytes(self.path, json.dumps(header, sort_keys=True).encode() + b"\n" + blob)
        except (OSError, DeviceError):
            return False
        self._saved = blob
        return True

    def _read(self) -> bytes:
        try:
            head, _, blob = self.path.read_bytes().partition(b"\n")
        except OSError:
            return b""
        self.refused = self._why_refused(head, blob)
        return b"" if self.refused else blob

    def _why_refused(self, head: bytes, blob: bytes) -> str:
        try:
            header: Any = json.loads(head)
            digest = header.pop("sha256")
        except (ValueError, AttributeError, KeyError, TypeError):
            return "it is damaged"
        if header != self._header:
            return "it was made under another fingerprint"
        return "" if digest == hashlib.sha256(blob).hexdigest() else "it is damaged"


def _header(fingerprint: Fingerprint, near_mhz: int | None) -> dict[str, Any]:
    clock = {} if near_mhz is None else {"near_mhz": near_mhz}
    return {"schema": SCHEMA, "fingerprint": fingerprint.to_json(), **clock}
