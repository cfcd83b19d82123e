"""Why a layer takes longer than its MACs promise: what can be told from two profiles of the same layer.

- `overhead`: the fixed cost of a node, as the shortest node shows it where that is short, does not shrink;
- `padding`: the runtime computes channels up to a multiple of its tile (as its own shapes show where they are those of
  its layout and not the model's, else by the tile);
- `layout`: the pruned layer left the runtime's blocked layout for a slower kernel;
- `memory`: the layer moves bytes that did not shrink as much, and moving them takes longer than computing. Rate and
  bandwidth are those of the fastest layers of these profiles;
- `other`: what none of these explains. It is shown, not hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import gt

from hwprune.core.measurement import LayerTime
from hwprune.core.ops import OpKey

CAUSES = ("overhead", "padding", "layout", "memory", "other")
WEIGHTED = ("conv", "conv_transpose", "linear", "matmul")
FLOOR_MOST_MS = 0.05  # a shortest node above this is one with work to do, and tells nothing of a fixed cost
NEAR_FLOOR = 3.0  # a layer below this many times the shortest node says nothing about rates

Nodes = Mapping[str, Sequence[LayerTime]]


@dataclass(frozen=True)
class Cause:
    """One of `CAUSES` and the time it costs in this layer."""

    name: str
    cost_ms: float
    text: str


@dataclass(frozen=True)
class Machine:
    """What the profiles show of the device: shortest node, best MACs and values moved in a ms, the tile.

    `physical_shapes`: whether the shapes that the runtime reports are those it computes, rather than the model's.
    """

    floor_ms: float
    macs_per_ms: float
    values_per_ms: float
    tile: int
    physical_shapes: bool = False

    @classmethod
    def of(cls, sides: Sequence[tuple[Nodes, Mapping[str, OpKey]]], tile: int) -> Machine:
        """From each network's nodes by module and its operators with weights."""
        times = [node.latency_ms for by_module, _ in sides for nodes in by_module.values() for node in nodes]
        times = [latency for latency in times if latency > 0]
        floor = min((latency for latency in times if latency <= FLOOR_MOST_MS), default=0.0)
        macs, moved = [0.0], [0.0]
        for by_module, ops in sides:
            for name, nodes in by_module.items():
                latency = sum(node.latency_ms for node in nodes)
                if name in ops and latency > NEAR_FLOOR * floor:
                    macs.append(ops[name].macs / latency)
                    moved.append(sum(_values(ops[name])) / latency)
        physical = any(
            _is_blocked(nodes) or any(map(gt, _reported(nodes), (ops[name].in_channels, ops[name].out_channels)))
            for by_module, ops in sides
            for name, nodes in by_module.items()
            if name in ops and ops[name].groups == 1
        )
        return cls(floor, max(macs), max(moved), tile, physical)

    def is_memory_bound(self, op: OpKey) -> bool:
        """Whether moving the layer's values takes at least as long as computing it, at the best rates seen here."""
        if not self.macs_per_ms or not self.values_per_ms:
            return False
        return sum(_values(op)) / self.values_per_ms >= op.macs / self.macs_per_ms


@dataclass(frozen=True)
class ShrunkLayer:
    """One layer on both sides, as the model says and as the runtime pads it."""

    dense_op: OpKey
    pruned_op: OpKey
    padded_dense: OpKey
    padded_pruned: OpKey
    dense_ms: float
    left_blocks: bool

    @classmethod
    def of(
        cls, ops: tuple[OpKey, OpKey], dense: Sequence[LayerTime], pruned: Sequence[LayerTime], machine: Machine
    ) -> ShrunkLayer:
        """From the (dense, pruned) operators and the nodes that ran them."""
        return cls(
            *ops,
            _padded(ops[0], dense, machine),
            _padded(ops[1], pruned, machine),
            sum(node.latency_ms for node in dense),
            _is_blocked(dense) and not _is_blocked(pruned),
        )


def split(lost_ms: float, layer: ShrunkLayer, machine: Machine) -> tuple[Cause, ...]:
    """Causes that add up to `lost_ms`, each at most what it can explain, in the order in which they are certain."""
    left = lost_ms
    causes = []

    def take(name: str, at_most: float, text: str) -> None:
        nonlocal left
        cost = min(left, at_most)
        if cost > 0.01 * lost_ms:
            causes.append(Cause(name, cost, text))
            left -= cost

    work = work_ratio(layer.pruned_op, layer.dense_op)
    padded = work_ratio(layer.padded_pruned, layer.padded_dense)
    floor_ms = min(machine.floor_ms, layer.dense_ms)
    shrinking_ms = layer.dense_ms - floor_ms
    take("overhead", floor_ms * (1 - work), f"fixed cost of a node ({machine.floor_ms * 1e3:.1f} us) does not shrink")
    take("padding", shrinking_ms * (padded - work), padding_text(layer.pruned_op, layer.padded_pruned))
    if layer.left_blocks:
        take("layout", left, f"left the blocked layout: {_channel_text(layer.pruned_op)} at a tile of {machine.tile}")
    if machine.is_memory_bound(layer.pruned_op):
        weights, activations = _values(layer.pruned_op)
        moved = (weights + activations) / sum(_values(layer.dense_op))
        kind = "weights" if weights > activations else "activations"
        take("memory", shrinking_ms * (moved - max(padded, work)), f"bound by memory ({kind})")
    take("other", left, "not explained by padding, layout, memory or overhead")
    return tuple(causes)


def padding_text(op: OpKey, padded: OpKey) -> str:
    """`25 -> padded to 32`, for the output channels, the input channels or both."""
    parts = []
    if padded.out_channels > op.out_channels:
        parts.append(f"{op.out_channels} -> padded to {padded.out_channels}")
    if padded.in_channels > op.in_channels and op.groups == 1:
        parts.append(f"{op.in_channels} -> padded to {padded.in_channels} (input)")
    return ", ".join(parts)


def _channel_text(op: OpKey) -> str:
    return f"{op.out_channels} channels" if op.groups > 1 else f"{op.in_channels} -> {op.out_channels} channels"


def _padded(op: OpKey, layers: Sequence[LayerTime], machine: Machine) -> OpKey:
    """The operator with the channels the runtime really computes: its own shapes where it gives them, else the tile."""
    ins, outs = _reported(layers) if machine.physical_shapes else (0, 0)
    in_channels = max(op.in_channels, ins) if ins else _round_up(op.in_channels, machine.tile)
    out_channels = max(op.out_channels, outs) if outs else _round_up(op.out_channels, machine.tile)
    if op.groups > 1:
        in_channels = op.in_channels  # a grouped layer's work follows its output channels alone
    return replace(op, in_channels=in_channels, out_channels=out_channels)


def _reported(layers: Sequence[LayerTime]) -> tuple[int, int]:
    """Input and output channels in the shapes of a module's longest node; 0 where it gives none."""
    main = max(layers, key=lambda layer: layer.latency_ms)
    return _shape_channels(main.in_shapes), _shape_channels(main.out_shapes)


def _shape_channels(shapes: Sequence[Sequence[int]]) -> int:
    if not shapes or len(shapes[0]) < 2:
        return 0
    return shapes[0][1] if len(shapes[0]) == 4 else shapes[0][-1]


def _round_up(channels: int, tile: int) -> int:
    return -(-channels // tile) * tile


def work_ratio(after: OpKey, before: OpKey) -> float:
    """What is left of an operator's MACs, or of the values it moves where it has none."""
    return after.macs / before.macs if before.macs else sum(_values(after)) / max(sum(_values(before)), 1)


def _values(op: OpKey) -> tuple[int, int]:
    """How many (weights, activations) are moved, each once; only ratios count, so their size in bytes does not."""
    taps = op.kernel[0] * op.kernel[1]
    weights = taps * op.in_channels * op.out_channels // op.groups if op.kind in WEIGHTED else 0
    inputs = op.batch * op.in_channels * op.in_size[0] * op.in_size[1]
    outputs = op.batch * op.out_channels * op.out_size[0] * op.out_size[1]
    return weights, inputs + outputs


def _is_blocked(layers: Sequence[LayerTime]) -> bool:
    return any(layer.name.endswith("_nchwc") for layer in layers)
