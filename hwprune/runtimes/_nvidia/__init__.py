"""The state of an NVIDIA board: what it is, whether its clocks stand still, and what throttled it meanwhile.

Observes only: nothing here changes a clock, a mode or a setting. Standard library, Python 3.8 or later. Everything of
a Jetson is read from files under a root folder; everything of another GPU from NVML by ctypes.
"""

from __future__ import annotations

from pathlib import Path

from hwprune.runtimes._base import Check
from hwprune.runtimes._nvidia.findings import gpu_findings, jetson_findings
from hwprune.runtimes._nvidia.jetson import Jetson
from hwprune.runtimes._nvidia.nvml import Nvml
from hwprune.runtimes._nvidia.throttle import ClockSpan, Throttle

__all__ = ["ClockSpan", "Jetson", "Nvml", "Throttle", "facts", "findings", "throttle_counters"]

ROOT = Path("/")


def facts(bus_id: str = "", *, root: Path = ROOT, library: str = "") -> tuple[tuple[str, str], ...]:
    """What belongs in a fingerprint because a latency is not the same without it, as (name, text).

    On a Jetson: board, L4T, power mode, range and governor of the clocks of GPU and CPU, the memory's clock where it
    can be read. Elsewhere: GPU, driver, power limit. `bus_id` is CUDA's PCI bus id of the GPU, "" the first one.
    `library`: path of libnvidia-ml, where it is not found by itself.
    """
    board = Jetson.find(root)
    if board is not None:
        return board.facts()
    with Nvml.opened(bus_id, library) as card:
        return card.facts() if card is not None else ()


def throttle_counters(bus_id: str = "", *, root: Path = ROOT, library: str = "") -> Throttle:
    """A callable: counters of everything that slows the GPU down, a change of which voids a round."""
    return Throttle(Jetson.find(root), Nvml.open(bus_id, library))


def findings(bus_id: str = "", *, root: Path = ROOT, library: str = "") -> tuple[Check, ...]:
    """Whether the board is fit to be measured on, and the exact commands that make it so; runs none of them."""
    board = Jetson.find(root)
    if board is not None:
        return jetson_findings(board)
    with Nvml.opened(bus_id, library) as card:
        return gpu_findings(card)
