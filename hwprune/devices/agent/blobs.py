"""The models a supervisor holds in memory, as they came: compressed, the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

HELD_BYTES = 192 << 20


class BlobStore:
    """Blobs by the SHA-256 of their content; the worker that gets one checks that it is."""

    def __init__(self, limit_bytes: int = HELD_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[str, tuple[dict[str, Any], bytes]] = OrderedDict()

    def put(self, message: Mapping[str, Any], packed: bytes) -> None:
        """Hold a blob; others go where there are too many bytes."""
        header = {"type": "blob", "name": message["name"], "length": message["length"]}
        self._held[message["name"]] = header, packed
        self._held.move_to_end(message["name"])
        while len(self._held) > 1 and sum(len(data) for _, data in self._held.values()) > self._limit_bytes:
            self._held.popitem(last=False)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Which of these are not held."""
        return [name for name in names if name not in self._held]

    def frame(self, name: str) -> tuple[dict[str, Any], bytes]:
        """Message and data for a worker."""
        self._held.move_to_end(name)
        return self._held[name]
