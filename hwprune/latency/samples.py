"""What a latency model is fitted on: measured networks as arrays, and layer times, of one space and one target."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwprune.core.errors import TableError
from hwprune.core.measurement import Fingerprint, LayerTime
from hwprune.core.ops import OpTemplate
from hwprune.core.widths import SearchSpace
from hwprune.latency.features import Array, IntArray


@dataclass(frozen=True)
class LayerSample:
    """Layer times (ms) of one sub-network inside the runtime; `values`: its widths in space order."""

    values: tuple[int, ...]
    layers: tuple[LayerTime, ...]


@dataclass(frozen=True)
class Samples:
    """`N` measured sub-networks: widths `[N, G]`, latency in ms `[N]`, and the table's space, operators and tile: the
    step to which its target pads channels.

    `fingerprint`: the target they were measured on, None where nobody measured (synthetic data).
    """

    space: SearchSpace
    op_templates: tuple[OpTemplate, ...]
    tile: int
    values: IntArray
    latency_ms: Array
    layers: tuple[LayerSample, ...] = ()
    fingerprint: Fingerprint | None = None

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.latency_ms), len(self.space.names)):
            raise TableError(
                f"{self.values.shape} widths and {len(self.latency_ms)} latencies do not fit "
                f"a space of {len(self.space.names)} groups"
            )
        if not np.all(np.isfinite(self.latency_ms)) or np.any(self.latency_ms <= 0):
            raise TableError("every latency must be a positive finite number")

    def __len__(self) -> int:
        return len(self.latency_ms)

    def digest(self) -> str:
        """A name for this data: widths, latencies, how many networks have layer times, and the tile."""
        found = hashlib.sha256(f"{self.values.shape} {len(self.layers)} {self.tile}".encode())
        found.update(np.ascontiguousarray(self.values, dtype="<i8").tobytes())
        found.update(np.ascontiguousarray(self.latency_ms, dtype="<f8").tobytes())
        return found.hexdigest()[:16]

    def scaled(self, factor: float) -> Samples:
        """The same data in milliseconds that are so many times as large; layer times stay."""
        return replace(self, latency_ms=self.latency_ms * factor) if factor != 1 else self

    def joined(self, more: Samples) -> Samples:
        """The networks of both, of one space; layer times and the rest are this one's."""
        values, latency_ms = (self.values, more.values), (self.latency_ms, more.latency_ms)
        return replace(self, values=np.concatenate(values), latency_ms=np.concatenate(latency_ms))

    def take(self, rows: Sequence[int] | IntArray) -> Samples:
        """The same data with these rows only, in this order; layer times stay whole."""
        index = np.asarray(rows, dtype=np.int64)
        return replace(self, values=self.values[index], latency_ms=self.latency_ms[index])

    def merged(self) -> Samples:
        """One row for each sub-network: repeated measurements become their geometric mean."""
        unique, place = np.unique(self.values, axis=0, return_inverse=True)
        if len(unique) == len(self):
            return self
        logs = np.bincount(place, np.log(self.latency_ms)) / np.bincount(place)
        return replace(self, values=unique, latency_ms=np.exp(logs))
