"""The step at which a target's latency really changes, found by timing single convolutions for some seconds.

A tile is a step to which a width can be rounded up for free: 17 channels that cost as much as 32 mean 16. Staircases
(AVX-512, tensor cores) and sawteeth (packed kernels that only multiples of 4 or 8 reach) both have this property.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwprune.core.measurement import Protocol
from hwprune.devices.probe_kernel import probe_model

if TYPE_CHECKING:
    from hwprune.devices import Board

TILES = (1, 4, 8, 16, 32, 64)
WIDEST = 128
_TOLERANCE = 0.04  # at least this much is needed to call two latencies of one step different
_FALLBACK = 8  # what most SIMD units and tensor cores like, used where the probe shows no step at all


@dataclass(frozen=True)
class TileProbe:
    """What the probe found. `curve`: (output channels, ms, relative half-width of the interval), ascending.

    `resolved` is False where latency hardly depends on the width, so that no tile could be seen and a common one was
    assumed. `non_monotone`: widths that are slower than a wider one.
    """

    tile: int
    curve: tuple[tuple[int, float, float], ...]
    non_monotone: tuple[int, ...]
    resolved: bool


def detect_tile(board: Board, *, kernel: int = 3, seed: int = 0, protocol: Protocol | None = None) -> TileProbe:
    """Time convolutions with 4k and 4k + 1 output channels on an open device and read the tile off them."""
    widths = sorted({width for top in range(4, WIDEST + 1, 4) for width in (top, top + 1)} - {WIDEST + 1})
    models = {str(width): probe_model(width, kernel, board.fingerprint.batch) for width in widths}
    measured = board.measure(models, protocol=protocol or Protocol.sample(), seed=seed)
    curve = {}
    for width in widths:
        low, high = measured[str(width)].ci_ms
        latency_ms = measured[str(width)].latency_ms
        curve[width] = (latency_ms, (high - low) / 2 / latency_ms)
    return read_tile(curve)


def read_tile(curve: Mapping[int, tuple[float, float]]) -> TileProbe:
    """The tile of a curve `width -> (ms, relative half-width)` that has all widths 4k and 4k + 1."""
    times = {width: latency_ms for width, (latency_ms, _) in sorted(curve.items())}
    halves = sorted(half for _, half in curve.values())
    tolerance = max(_TOLERANCE, 2 * halves[len(halves) // 2])
    resolved = max(times.values()) > 1.5 * min(times.values())
    free = [tile for tile in TILES if _free_rounding(times, tile, tolerance)]
    return TileProbe(
        tile=max(free) if resolved else _FALLBACK,
        curve=tuple((width, *curve[width]) for width in times),
        non_monotone=tuple(
            width for width in times if any(times[w] < times[width] / (1 + tolerance) for w in times if w > width)
        ),
        resolved=resolved,
    )


def _free_rounding(times: Mapping[int, float], tile: int, tolerance: float) -> bool:
    """Whether no width of a step is faster than the multiple of `tile` it would be rounded up to.

    The median over the steps decides, so that one disturbed measurement does not.
    """
    costs = []
    for top in range(tile, max(times) + 1, tile):
        inside = [times[width] for width in times if top - tile < width < top]
        if inside and top in times:
            costs.append(times[top] / min(inside))
    return not costs or sorted(costs)[len(costs) // 2] <= 1 + tolerance
