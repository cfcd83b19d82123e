"""What a budget is, in ms: the dense and the smallest network, measured before anything is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hwprune.core.errors import BudgetInfeasible
from hwprune.core.events import Caution, Note
from hwprune.core.files import create_json, read_json, write_json
from hwprune.core.measurement import Measurement, Protocol
from hwprune.core.statistics import median
from hwprune.core.units import format_ms
from hwprune.core.widths import Statistic, Widths
from hwprune.devices import Anchor
from hwprune.latency.limited import tightest
from hwprune.methods._questions import predicted
from hwprune.search.anchor import AnchorWidths, uniform_widths
from hwprune.search.drift import DRIFT
from hwprune.search.workshop import Workshop

FILE = "baseline.json"  # in a run folder
ANCHORING = 3  # sessions that compare the anchor with the dense network: the median of them counts
REFINING = 2  # sessions before them that look for an anchor whose latency differs from the budget by less than NEAR
NEAR = 0.05


@dataclass(frozen=True)
class Baseline:
    """The dense and the smallest network, timed in turns; the budget in ms; the anchor where it is a share of dense."""

    dense: Measurement
    smallest: Measurement
    budget_ms: float
    anchor: AnchorWidths | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything, measurements with all their samples."""
        return {
            "dense": self.dense.to_json(),
            "smallest": self.smallest.to_json(),
            "budget_ms": self.budget_ms,
            "anchor": self.anchor and self.anchor.to_json(),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Baseline:
        """What `to_json` gave."""
        anchor = document.get("anchor")
        return cls(
            Measurement.from_json(document["dense"]),
            Measurement.from_json(document["smallest"]),
            float(document["budget_ms"]),
            AnchorWidths.from_json(anchor) if anchor else None,
        )

    @classmethod
    def of_run(cls, folder: Path) -> Baseline:
        """That of a run. Raises `UsageError` where it has none."""
        return cls.from_json(read_json(folder / FILE))

    def feasible(self, statistic: Statistic) -> bool:
        """Whether the smallest network may be within the budget."""
        return self.smallest.statistic(statistic)[1] <= self.budget_ms

    def check(self, statistic: Statistic) -> None:
        """Raise `BudgetInfeasible` when even the smallest network is measurably over the budget."""
        if not self.feasible(statistic):
            value = self.smallest.statistic(statistic)[0]
            raise BudgetInfeasible(
                f"no network of this space runs within {format_ms(self.budget_ms)}: the smallest allowed one"
                f" needs {format_ms(value)}, measured (dense: {format_ms(self.dense.statistic(statistic)[0])})",
                smallest_ms=value,
                hint="raise the budget, lower --min-keep, or use a smaller input",
            )


def measure_baseline(shop: Workshop, common: Path | None = None) -> Baseline:
    """Time the dense and the smallest network before anything is trained, and fix the budget in ms for the whole run.

    Fixed, since neighbours on the machine slow a large network more than a small one (they share the last cache): a
    budget that followed the dense network from session to session would move by a fifth where candidates move by 3 %.
    `common` is a folder in which runs with the same budgets share them, so that they all mean the same.
    """

    def work() -> Baseline:
        found = _shared(shop, common) if common is not None else _measured(shop)
        _tell(shop, found)
        write_json(shop.folder.path / FILE, found.to_json())
        return found

    baseline = shop.folder.stage("baseline", work, lambda: Baseline.of_run(shop.folder.path))
    shop.budget_ms, shop.anchor = baseline.budget_ms, baseline.anchor
    if baseline.anchor:
        pace = baseline.anchor.latency_ms / predicted(shop.report.model, baseline.anchor.widths)
        if abs(pace - 1) > DRIFT:  # else the profile's milliseconds are those of the run, and noise is no reason to fit
            shop.pace = pace
            shop.refit()
    return baseline


def _shared(shop: Workshop, common: Path) -> Baseline:
    """The baseline of this budget in `common`; of several runs that measure it at once, one's is taken."""
    budget = shop.settings.budget
    name = f"{budget.fraction:.6g}" if budget.fraction is not None else f"{budget.latency_ms:.6g}ms"
    path = common / f"baseline_{name}.json"
    if not path.exists():
        with contextlib.suppress(FileExistsError):
            create_json(path, _measured(shop).to_json())
    return Baseline.from_json(read_json(path))


def _measured(shop: Workshop) -> Baseline:
    settings = shop.settings
    models = {"dense": shop.template.dense, "smallest": shop.template.at_widths(shop.table.space.smallest())}
    timed = shop.measure(models, seed=settings.seed, decides=True)
    budget_ms = settings.budget.in_ms(timed["dense"].statistic(settings.statistic)[0])
    found = Baseline(timed["dense"], timed["smallest"], budget_ms)
    if settings.budget.fraction is None or not found.feasible(settings.statistic):
        return found  # milliseconds are those of the machine, whatever slows it
    return replace(found, anchor=_anchor(shop, found))


def _anchor(shop: Workshop, found: Baseline) -> AnchorWidths:
    """The anchor of the budget, in the milliseconds of the session in which that was fixed.

    Predictions are those of another hour, in which a network of this size may have taken another share of the dense
    one: the first that is measured says by how much, and the next is nearer to the budget.
    """
    share = found.budget_ms / found.dense.statistic(shop.settings.statistic)[0]
    widths = _near(shop, share * predicted(shop.latency, shop.table.space.dense()))
    for session in range(REFINING):
        measured_share = 1 / _dense_in(shop, shop.template.at_widths(widths), session=ANCHORING + session)
        if abs(measured_share / share - 1) <= NEAR:
            break
        nearer = _near(shop, predicted(shop.latency, widths) * share / measured_share)
        if nearer == widths:  # the grid has none nearer
            break
        widths = nearer
    network = shop.template.at_widths(widths)
    times = [_dense_in(shop, network, session=session) for session in range(ANCHORING)]
    return AnchorWidths(widths, found.dense.latency_ms / median(times))


def _near(shop: Workshop, predicted_ms: float) -> Widths:
    """The uniform network predicted nearest below that, or the smallest."""
    try:
        return uniform_widths(shop.table.space, shop.latency, predicted_ms)
    except BudgetInfeasible:  # predicted, where the measurement says that the smallest network may do
        return shop.table.space.smallest()


def _dense_in(shop: Workshop, network: bytes, *, session: int) -> float:
    """The median latency of the dense network in those of another."""
    timed = shop.board.measure(
        {"dense": shop.template.dense},
        protocol=Protocol.default(),
        seed=shop.settings.seed + 100 + session,
        anchor=Anchor(network, 1.0),
        on_event=shop.folder.emit,
    )
    return timed["dense"].latency_ms


def _tell(shop: Workshop, found: Baseline) -> None:
    """What the budget is in ms, what networks are compared with, and whether anything has to go."""
    budget, dense_ms = shop.settings.budget, found.dense.statistic(shop.settings.statistic)[0]
    if budget.fraction is not None:
        fixed = f"budget: {budget.fraction:.3g} of {format_ms(dense_ms)} is {format_ms(found.budget_ms)}"
        beside = f"; timed beside a network of {found.anchor.latency_ms / dense_ms:.3g}" if found.anchor else ""
        shop.folder.emit(Note(f"{fixed}{beside}"))
    limit = tightest(shop.graph, shop.table.space, budget.limits, shop.table.space.dense())
    if found.budget_ms >= dense_ms and (limit is None or limit[1] <= 1):
        met = f"the dense network takes {format_ms(dense_ms)}: nothing has to go for {format_ms(found.budget_ms)}"
        shop.folder.emit(Caution(met, hint="lower --latency-ms"))
