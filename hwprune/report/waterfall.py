"""Layer by layer from the dense to the pruned network: where channels were lost and no time, and why.

For a layer whose work shrinks, `promised_ms` is the time it would take if time followed the MACs. What the pruned
layer takes beyond that is lost, and is split among causes that can be told from the profiles:

- `overhead`: the fixed cost of a node, as the shortest node shows it, does not shrink;
- `padding`: the runtime computes channels up to a multiple of its tile (as its own shapes show, else by the tile);
- `layout`: the pruned layer left the runtime's blocked layout for a slower kernel;
- `memory`: the layer moves bytes that did not shrink as much, and moving them takes longer than computing. Rate and
  bandwidth are those of the fastest layers of these profiles;
- `other`: what none of these explains. It is shown, not hidden.

Layer times are of one profiled session and carry its overhead: they explain, the measurement of the whole decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hwprune.core.measurement import LayerTime
from hwprune.core.ops import OpKey
from hwprune.report.run_data import LayerProfile, NamedOp

CAUSES = ("overhead", "padding", "layout", "memory", "other")
WEIGHTED = ("conv", "conv_transpose", "linear", "matmul")
ELEMENTWISE = ("relu", "clip", "add", "sum", "mul", "sigmoid", "hardsigmoid", "hardswish", "batchnormalization", "silu")
NEAR_FLOOR = 3.0  # a layer below this many times the shortest node says nothing about rates
RESOLVED = 0.05  # a loss below this share of the layer is not told from the noise of a profile


@dataclass(frozen=True)
class Cause:
    """One of `CAUSES` and the time it costs in this layer."""

    name: str
    cost_ms: float
    text: str


@dataclass(frozen=True)
class LayerRow:
    """All nodes of one module, dense beside pruned; a side is None where the runtime executes nothing there.

    `channels` are (in, out) of the operator with weights, None for layers without. `promised_ms` is the dense time
    scaled with the MACs (with the values moved where there are no MACs). `causes` add up to `lost_ms`.
    """

    name: str
    kind: str
    dense_ms: float | None
    pruned_ms: float | None
    dense_channels: tuple[int, int] | None = None
    pruned_channels: tuple[int, int] | None = None
    dense_macs: int = 0
    pruned_macs: int = 0
    promised_ms: float | None = None
    causes: tuple[Cause, ...] = ()
    note: str = ""
    in_model: bool = True

    @property
    def change_ms(self) -> float:
        """Pruned minus dense: negative where time was saved."""
        return (self.pruned_ms or 0.0) - (self.dense_ms or 0.0)

    @property
    def lost_ms(self) -> float:
        """What the pruned layer takes beyond the promise of the MACs."""
        return sum(cause.cost_ms for cause in self.causes)

    @property
    def shrunk(self) -> bool:
        """Whether the layer lost channels."""
        return self.dense_channels != self.pruned_channels

    @property
    def in_vain(self) -> bool:
        """Whether the layer lost channels and less than a twentieth of its time."""
        both = self.dense_ms is not None and self.pruned_ms is not None
        return both and self.shrunk and self.change_ms > -0.05 * (self.dense_ms or 0.0)

    @property
    def why(self) -> str:
        """The reason in words: the largest cause, or why the row stands on one side only."""
        if self.causes:
            return max(self.causes, key=lambda cause: cause.cost_ms).text
        return self.note


@dataclass(frozen=True)
class Waterfall:
    """The rows in order of execution, and what they add up to.

    `dense_ms` and `pruned_ms` are the measured whole networks, None when not known; the layers' sums differ from
    them by what profiling adds and by what happens outside of layers.
    """

    rows: tuple[LayerRow, ...]
    tile: int
    dense_ms: float | None = None
    pruned_ms: float | None = None
    simulated: bool = False

    @property
    def dense_sum_ms(self) -> float:
        """All layers of the dense network."""
        return sum(row.dense_ms or 0.0 for row in self.rows)

    @property
    def pruned_sum_ms(self) -> float:
        """All layers of the pruned network."""
        return sum(row.pruned_ms or 0.0 for row in self.rows)

    @property
    def promised_sum_ms(self) -> float:
        """The pruned network if every layer's time had followed its MACs."""
        return sum(row.pruned_ms or 0.0 if row.promised_ms is None else row.promised_ms for row in self.rows)

    @property
    def unattributed_ms(self) -> float:
        """Time of the pruned network in nodes that belong to no module of the model."""
        return sum(row.pruned_ms or 0.0 for row in self.rows if not row.in_model)

    def lost_by_cause(self) -> dict[str, float]:
        """ms by cause, the largest first; causes that cost nothing are left out."""
        totals = {
            name: sum(cause.cost_ms for row in self.rows for cause in row.causes if cause.name == name)
            for name in CAUSES
        }
        totals["added nodes"] = sum(row.pruned_ms or 0.0 for row in self.rows if row.dense_ms is None)
        return dict(sorted(((k, v) for k, v in totals.items() if v > 0), key=lambda item: -item[1]))

    def to_json(self) -> dict[str, Any]:
        """The document of `hwprune explain --json`."""
        return {
            "tile": self.tile,
            "simulated": self.simulated,
            "dense_ms": self.dense_ms,
            "pruned_ms": self.pruned_ms,
            "dense_sum_ms": self.dense_sum_ms,
            "pruned_sum_ms": self.pruned_sum_ms,
            "promised_sum_ms": self.promised_sum_ms,
            "unattributed_ms": self.unattributed_ms,
            "lost_by_cause_ms": self.lost_by_cause(),
            "rows": [
                {**asdict(row), "change_ms": row.change_ms, "lost_ms": row.lost_ms, "why": row.why} for row in self.rows
            ],
        }


def waterfall(
    profile: LayerProfile, *, dense_ms: float | None = None, pruned_ms: float | None = None, simulated: bool = False
) -> Waterfall:
    """Compare the two layer profiles of a run, module by module."""
    dense, pruned = _by_module(profile.dense), _by_module(profile.pruned)
    dense_ops, pruned_ops = _weighted(profile.dense_ops), _weighted(profile.pruned_ops)
    modules = {named.name for named in (*profile.dense_ops, *profile.pruned_ops)}
    machine = _Machine.of(profile, dense_ops, pruned_ops)
    rows = [
        _row(name, dense.get(name, ()), pruned.get(name, ()), dense_ops.get(name), pruned_ops.get(name), machine)
        for name in _merged_order(list(dense), list(pruned))
    ]
    rows = [row if _belongs(row.name, modules) else _outside(row) for row in rows]
    return Waterfall(tuple(rows), profile.tile, dense_ms, pruned_ms, simulated)


def module_path(node: str) -> str:
    """The dotted module path in a runtime's layer name: `layer1.0.conv1` of `layer1.0.conv1/Conv+Relu_nchwc`.

    A node of no module is called by its operator: `ReorderOutput` of `ReorderOutput_token_12`.
    """
    path, slash, _ = node.partition("/")
    return path if slash else re.sub(r"(_nchwc|_token_\d+|_\d+)+$", "", node)


@dataclass(frozen=True)
class _Machine:
    """What the profiles show of the device: shortest node, best MACs and values moved in a ms, the tile."""

    floor_ms: float
    macs_per_ms: float
    values_per_ms: float
    tile: int

    @classmethod
    def of(cls, profile: LayerProfile, dense: Mapping[str, OpKey], pruned: Mapping[str, OpKey]) -> _Machine:
        times = [layer.latency_ms for layer in (*profile.dense, *profile.pruned) if layer.latency_ms > 0]
        floor = min(times, default=0.0)
        macs, moved = [0.0], [0.0]
        for layers, ops in ((profile.dense, dense), (profile.pruned, pruned)):
            for name, nodes in _by_module(layers).items():
                latency = sum(node.latency_ms for node in nodes)
                if name in ops and latency > NEAR_FLOOR * floor:
                    macs.append(ops[name].macs / latency)
                    moved.append(sum(_values(ops[name])) / latency)
        return cls(floor, max(macs), max(moved), profile.tile)

    def is_memory_bound(self, op: OpKey) -> bool:
        """Whether moving the layer's values takes at least as long as computing it, at the best rates seen here."""
        if not self.macs_per_ms or not self.values_per_ms:
            return False
        return sum(_values(op)) / self.values_per_ms >= op.macs / self.macs_per_ms


def _row(
    name: str,
    dense: Sequence[LayerTime],
    pruned: Sequence[LayerTime],
    dense_op: OpKey | None,
    pruned_op: OpKey | None,
    machine: _Machine,
) -> LayerRow:
    kind = (dense or pruned)[0].kind
    dense_ms = sum(node.latency_ms for node in dense) if dense else None
    pruned_ms = sum(node.latency_ms for node in pruned) if pruned else None
    if dense_ms is None or pruned_ms is None or dense_op is None or pruned_op is None:
        return LayerRow(name, kind, dense_ms, pruned_ms, note=_one_sided(kind, dense_ms, pruned_ms))
    promised = dense_ms * _work_ratio(pruned_op, dense_op)
    causes: tuple[Cause, ...] = ()
    if dense_op != pruned_op and pruned_ms - promised > RESOLVED * dense_ms:
        layer = _Layer(
            dense_op,
            pruned_op,
            _padded(dense_op, dense, machine.tile),
            _padded(pruned_op, pruned, machine.tile),
            dense_ms,
            _is_blocked(dense) and not _is_blocked(pruned),
        )
        causes = _split(pruned_ms - promised, layer, machine)
    return LayerRow(
        name,
        kind,
        dense_ms,
        pruned_ms,
        (dense_op.in_channels, dense_op.out_channels),
        (pruned_op.in_channels, pruned_op.out_channels),
        dense_op.macs,
        pruned_op.macs,
        promised,
        causes,
        note="" if dense_op != pruned_op else "not pruned",
    )


@dataclass(frozen=True)
class _Layer:
    """One layer on both sides, as the model says and as the runtime pads it."""

    dense_op: OpKey
    pruned_op: OpKey
    padded_dense: OpKey
    padded_pruned: OpKey
    dense_ms: float
    left_blocks: bool


def _split(lost_ms: float, layer: _Layer, machine: _Machine) -> tuple[Cause, ...]:
    """Causes that add up to `lost_ms`, each at most what it can explain, in the order in which they are certain."""
    left = lost_ms
    causes = []

    def take(name: str, at_most: float, text: str) -> None:
        nonlocal left
        cost = min(left, at_most)
        if cost > 0.01 * lost_ms:
            causes.append(Cause(name, cost, text))
            left -= cost

    work = _work_ratio(layer.pruned_op, layer.dense_op)
    padded = _work_ratio(layer.padded_pruned, layer.padded_dense)
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


def _one_sided(kind: str, dense_ms: float | None, pruned_ms: float | None) -> str:
    if dense_ms is not None and pruned_ms is not None:
        return ""
    if pruned_ms is None:
        return "only in the dense network: fused or gone"
    if kind.lower() in ELEMENTWISE:
        return "fusion lost: runs on its own in the pruned network"
    if kind.lower().startswith(("reorder", "transpose", "reformat")):
        return "layout conversion inserted by the runtime"
    return "only in the pruned network"


def _outside(row: LayerRow) -> LayerRow:
    return LayerRow(row.name, row.kind, row.dense_ms, row.pruned_ms, note=row.note, in_model=False)


def _belongs(name: str, modules: set[str]) -> bool:
    return name in modules or any(module.startswith(f"{name}.") for module in modules)


def _by_module(layers: Sequence[LayerTime]) -> dict[str, list[LayerTime]]:
    found: dict[str, list[LayerTime]] = {}
    for layer in layers:
        found.setdefault(module_path(layer.name), []).append(layer)
    return found


def _weighted(ops: Sequence[NamedOp]) -> dict[str, OpKey]:
    """The operator with weights of each module path; a module that runs twice counts once."""
    found: dict[str, OpKey] = {}
    for named in ops:
        if named.op.kind in WEIGHTED:
            found.setdefault(named.name, named.op)
    return found


def _merged_order(dense: Sequence[str], pruned: Sequence[str]) -> list[str]:
    """The dense order; what only the pruned network has stands behind its predecessor there."""
    order = list(dense)
    for position, name in enumerate(pruned):
        if name not in order:
            before = order.index(pruned[position - 1]) + 1 if position else 0
            order.insert(before, name)
    return order


def _padded(op: OpKey, layers: Sequence[LayerTime], tile: int) -> OpKey:
    """The operator with the channels the runtime really computes: its own shapes where it gives them, else the tile."""
    main = max(layers, key=lambda layer: layer.latency_ms)
    ins, outs = _shape_channels(main.in_shapes), _shape_channels(main.out_shapes)
    in_channels = max(op.in_channels, ins) if ins else _round_up(op.in_channels, tile)
    out_channels = max(op.out_channels, outs) if outs else _round_up(op.out_channels, tile)
    if op.groups > 1:
        in_channels = op.in_channels  # a grouped layer's work follows its output channels alone
    return replace(op, in_channels=in_channels, out_channels=out_channels)


def _shape_channels(shapes: Sequence[Sequence[int]]) -> int:
    if not shapes or len(shapes[0]) < 2:
        return 0
    return shapes[0][1] if len(shapes[0]) == 4 else shapes[0][-1]


def _round_up(channels: int, tile: int) -> int:
    return -(-channels // tile) * tile


def _work_ratio(after: OpKey, before: OpKey) -> float:
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
