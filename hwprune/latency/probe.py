"""The step at which a target's latency really changes, found by timing single convolutions for some seconds.

A tile is a step to which a width can be rounded up for free: 17 channels that cost as much as 32 mean 16. Staircases
(AVX-512, tensor cores) and sawteeth (packed kernels that only multiples of 4 or 8 reach) both have this property.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwprune.core.measurement import Protocol
from hwprune.core.statistics import median
from hwprune.core.widths import SearchSpace
from hwprune.devices.reference import single_convolution
from hwprune.latency.light import light

if TYPE_CHECKING:
    from hwprune.devices import AbstractBoard

Point = tuple[float, float]  # ms, relative half-width of its interval

TILES = (4, 8, 16, 32, 64)
WIDEST = 128
WIDTHS = tuple(sorted(width for step in range(0, WIDEST, 4) for width in (step + 1, step + 4)))
_FREE = 0.25  # of the mean rise over a step: too large a tile costs half of it, the right one nothing
_RESOLVED = 1.25  # from 8 channels to 128 the latency rises at least this much, or the probe says nothing
_TOLERANCE = 0.08  # a width is called slower only when the intervals are this far apart: sessions differ by so much
_UNCERTAIN = 0.05  # a width whose interval is wider than this on either side was disturbed, and is timed again
_ATTEMPTS, _CONFIRMATIONS = 3, 2
_FALLBACK = 8  # what most SIMD units and tensor cores like, used where the probe shows no step at all


@dataclass(frozen=True)
class TileProbe:
    """What the probe found. `curve`: (output channels, ms, relative half-width of the interval), ascending.

    `resolved` is False where latency hardly depends on the width, so that no tile could be seen and a common one was
    assumed.
    """

    tile: int
    curve: tuple[tuple[int, float, float], ...]
    resolved: bool

    @property
    def slower_than_wider(self) -> tuple[tuple[int, int], ...]:
        """Every width that is slower than a wider one, with the next such wider one."""
        pairs = ((width, self.faster_and_wider(width)) for width, _, _ in self.curve)
        return tuple((width, better[0]) for width, better in pairs if better)

    @property
    def non_monotone(self) -> tuple[int, ...]:
        """The widths that are slower than a wider one."""
        return tuple(width for width, _ in self.slower_than_wider)

    def faster_and_wider(self, width: int) -> tuple[int, ...]:
        """The wider ones of the probed widths that were faster than `width`: by the tolerance, intervals apart.

        A width between two probed ones is taken for as slow as the narrower of them.
        """
        tolerance = max(_TOLERANCE, 2 * median([half for _, _, half in self.curve]))
        narrower = [latency_ms * (1 - half) for other, latency_ms, half in self.curve if other <= width <= WIDEST]
        least = narrower[-1] if narrower else 0.0
        return tuple(
            other
            for other, latency_ms, half in self.curve
            if other > width and latency_ms * (1 + half) * (1 + tolerance) < least
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON document from which `from_json` makes an equal probe."""
        return {
            "tile": self.tile,
            "resolved": self.resolved,
            "curve": [list(point) for point in self.curve],
            "slower_than_wider": [list(pair) for pair in self.slower_than_wider],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TileProbe:
        """The probe that `to_json` wrote."""
        curve = tuple((int(width), float(latency_ms), float(half)) for width, latency_ms, half in document["curve"])
        return cls(int(document["tile"]), curve, bool(document["resolved"]))


def detect_tile(board: AbstractBoard, *, kernel: int = 3, seed: int = 0) -> TileProbe:
    """Time convolutions with 4k and 4k + 1 output channels on an open device and read the tile off them.

    Widths whose measurement was disturbed are timed again, up to twice. So are widths that seem slower than a wider
    one, in sessions of their own: the faster measurement counts, since what is not the kernel's doing only lengthens.
    """
    curve: dict[int, Point] = {}
    for attempt in range(_ATTEMPTS):
        widths = [width for width in WIDTHS if width not in curve or curve[width][1] > _UNCERTAIN]
        for width, found in _timed(board, widths, kernel, seed + attempt).items():
            curve[width] = min(curve.get(width, found), found, key=lambda point: point[1])
    for attempt in range(_CONFIRMATIONS):
        suspects = read_tile(curve).non_monotone
        for width, found in _timed(board, suspects, kernel, seed + _ATTEMPTS + attempt).items():
            curve[width] = min(curve[width], found)
    return read_tile(curve)


def _timed(board: AbstractBoard, widths: Sequence[int], kernel: int, seed: int) -> dict[int, Point]:
    """A convolution of each width, timed in turns."""
    if not widths:
        return {}
    models = {str(width): single_convolution(width, kernel, board.fingerprint.batch) for width in widths}
    if board.distant:
        models = {name: light(model) for name, model in models.items()}
    measured = board.measure(models, protocol=Protocol.sample(), seed=seed)
    return {width: (measured[str(width)].latency_ms, measured[str(width)].scatter) for width in widths}


def read_tile(curve: Mapping[int, tuple[float, float]]) -> TileProbe:
    """The tile of a curve `width -> (ms, relative half-width)` that has all `WIDTHS`: 4k + 1 and 4k up to 128."""
    points = tuple((width, *curve[width]) for width in sorted(curve))
    times = {width: latency_ms for width, latency_ms, _ in points}
    low, high = _level(times, range(9)), _level(times, range(WIDEST - 15, WIDEST + 1))
    resolved = high > _RESOLVED * low
    rise = _FREE * (high - low) / WIDEST
    free = [tile for tile in TILES if _rounding_cost(times, tile) < rise * tile or _is_sawtooth(times, tile)]
    return TileProbe(
        tile=max(free, default=1) if resolved else _FALLBACK,
        curve=points,
        resolved=resolved,
    )


def worthwhile(space: SearchSpace, probe: TileProbe) -> SearchSpace:
    """The space without widths that are slower than a wider one of the same group; dense widths stay."""
    return SearchSpace(
        space.groups,
        tuple(
            tuple(width for width in allowed if not _is_beaten(width, allowed, group.unit_channels, probe))
            for group, allowed in zip(space.groups, space.widths, strict=True)
        ),
    )


def _is_beaten(width: int, allowed: tuple[int, ...], unit_channels: int, probe: TileProbe) -> bool:
    better = set(probe.faster_and_wider(width * unit_channels))
    return any(other * unit_channels in better for other in allowed)


def _rounding_cost(times: Mapping[int, float], tile: int) -> float:
    """What the upper half of a step costs more than its lower half, in ms; about 0 where rounding up is free.

    Medians, so that single disturbed measurements do not matter.
    """
    half = tile // 2
    bottoms = range(0, WIDEST, tile)
    costs = [_level(times, _after(begin + half, half)) - _level(times, _after(begin, half)) for begin in bottoms]
    return median(costs)


def _is_sawtooth(times: Mapping[int, float], tile: int) -> bool:
    """Whether multiples of the tile are no slower than what is half a tile narrower: kernels that only they reach."""
    ends = [end for end in range(tile, WIDEST + 1, tile) if end - tile // 2 in times]
    return bool(ends) and median([times[end] - times[end - tile // 2] for end in ends]) <= 0


def _after(begin: int, count: int) -> range:
    return range(begin + 1, begin + count + 1)


def _level(times: Mapping[int, float], widths: range) -> float:
    return median([times[width] for width in widths if width in times])
