"""Layer by layer from the dense to the pruned network: where channels were lost and no time, and why.

For a layer whose work shrinks, `promised_ms` is the time it would take if time followed the MACs. What the pruned
layer takes beyond that is lost, and is split among the causes of `hwprune.report.causes`. From the promise to the
pruned layers' sum nothing is left out: what is lost by cause, and what differs without one (`FURTHER`), close the gap.

Layer times are of one profiled session and carry its overhead: they explain, the measurement of the whole decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hwprune.core.measurement import LayerTime
from hwprune.core.ops import OpKey
from hwprune.report.causes import CAUSES, WEIGHTED, Cause, Machine, ShrunkLayer, split, work_ratio
from hwprune.report.run_data import LayerProfile, NamedOp

FURTHER = ("faster", "not pruned", "unresolved")
ELEMENTWISE = ("relu", "clip", "add", "sum", "mul", "sigmoid", "hardsigmoid", "hardswish", "batchnormalization", "silu")
RESOLVED = 0.05  # a difference below this share of the layer is not told from the noise of a profile
VISIBLE = 0.0005  # a sum below this share of the network is not written or drawn
WORTH_TELLING = 0.005  # a loss below this share of the network is not worth the reader's time


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
    def faster(self) -> bool:
        """Whether the layer lost channels and takes clearly less than the MACs promise."""
        if self.promised_ms is None or self.dense_ms is None or self.pruned_ms is None or not self.shrunk:
            return False
        return self.pruned_ms - self.promised_ms < -RESOLVED * self.dense_ms

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
        """The pruned network if every layer's time had followed its MACs, and no node had been added.

        Layers without MACs are promised what they take.
        """
        rows = [row for row in self.rows if row.dense_ms is not None]
        return sum(row.pruned_ms or 0.0 if row.promised_ms is None else row.promised_ms for row in rows)

    @property
    def unattributed_ms(self) -> float:
        """Time of the pruned network in nodes that belong to no module of the model."""
        return sum(row.pruned_ms or 0.0 for row in self.rows if not row.in_model)

    @property
    def in_vain(self) -> tuple[LayerRow, ...]:
        """The layers that lost channels and no time, where it costs the network enough to speak of it."""
        least = WORTH_TELLING * self.dense_sum_ms
        return tuple(row for row in self.rows if row.in_vain and row.lost_ms >= least)

    def lost_by_cause(self) -> dict[str, float]:
        """ms by cause, the largest first; causes that cost nothing are left out."""
        totals = {
            name: sum(cause.cost_ms for row in self.rows for cause in row.causes if cause.name == name)
            for name in CAUSES
        }
        totals["added nodes"] = sum(row.pruned_ms or 0.0 for row in self.rows if row.dense_ms is None)
        return dict(sorted(((k, v) for k, v in totals.items() if v > 0), key=lambda item: -item[1]))

    def is_visible(self, cost_ms: float) -> bool:
        """Whether a sum of ms is worth a word or a bar beside the dense layers' sum."""
        return abs(cost_ms) >= VISIBLE * self.dense_sum_ms

    def further(self) -> dict[str, float]:
        """ms by `FURTHER`, with their signs: what closes the gap between promise, losses and the pruned layers' sum.

        `faster`: layers that take less than the MACs promise; `not pruned`: layers of unchanged channels whose time
        changed; `unresolved`: all that is left, mostly differences too small to tell from the noise of a profile.
        """
        gap = self.pruned_sum_ms - self.promised_sum_ms - sum(self.lost_by_cause().values())
        told = [row for row in self.rows if row.promised_ms is not None]
        faster = sum((row.pruned_ms or 0.0) - (row.promised_ms or 0.0) for row in told if row.faster)
        same = sum(row.change_ms for row in told if not row.shrunk)
        return dict(zip(FURTHER, (faster, same, gap - faster - same), strict=True))

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
            "further_ms": self.further(),
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
    machine = Machine.of(((dense, dense_ops), (pruned, pruned_ops)), profile.tile)
    removed = {name for name, op in pruned_ops.items() if not op.macs}
    rows = []
    for name in _merged_order(list(dense), list(pruned)):
        row = _row(name, dense.get(name, ()), pruned.get(name, ()), dense_ops.get(name), pruned_ops.get(name), machine)
        if row.pruned_ms is None and _belongs(name, removed):
            row = _removed(row, dense_ops.get(name))
        rows.append(row if _belongs(name, modules) else _outside(row))
    return Waterfall(tuple(rows), profile.tile, dense_ms, pruned_ms, simulated)


def module_path(node: str) -> str:
    """The dotted module path in a runtime's layer name: `layer1.0.conv1` of `layer1.0.conv1/Conv+Relu_nchwc`.

    A node of no module is called by its operator: `ReorderOutput` of `ReorderOutput_token_12`.
    """
    path, slash, _ = node.partition("/")
    return path if slash else re.sub(r"(_nchwc|_token_\d+|_\d+)+$", "", node)


def _row(
    name: str,
    dense: Sequence[LayerTime],
    pruned: Sequence[LayerTime],
    dense_op: OpKey | None,
    pruned_op: OpKey | None,
    machine: Machine,
) -> LayerRow:
    kind = (dense or pruned)[0].kind
    dense_ms = sum(node.latency_ms for node in dense) if dense else None
    pruned_ms = sum(node.latency_ms for node in pruned) if pruned else None
    if dense_ms is None or pruned_ms is None or dense_op is None or pruned_op is None:
        return LayerRow(name, kind, dense_ms, pruned_ms, note=_one_sided(kind, dense_ms, pruned_ms))
    promised = dense_ms * work_ratio(pruned_op, dense_op)
    causes: tuple[Cause, ...] = ()
    if dense_op != pruned_op and pruned_ms - promised > RESOLVED * dense_ms:
        layer = ShrunkLayer.of((dense_op, pruned_op), dense, pruned, machine)
        causes = split(pruned_ms - promised, layer, machine)
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


def _removed(row: LayerRow, op: OpKey | None) -> LayerRow:
    row = replace(row, note="branch removed")
    return row if op is None else replace(row, dense_channels=(op.in_channels, op.out_channels), dense_macs=op.macs)


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
