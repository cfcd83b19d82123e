"""From a latency table to a latency model: fit every kind, compare them on held-out networks, keep the best."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprune.core.errors import DeviceError, TableError, UsageError
from hwprune.core.events import OnEvent, Progress, ignore
from hwprune.latency.features import Array, IntArray
from hwprune.latency.models._base import LEAST_SAMPLES, AbstractLatencyModel, make_model
from hwprune.latency.plan import Kind
from hwprune.latency.samples import Samples
from hwprune.latency.scores import Scores, label_noise, one_group_pairs, score
from hwprune.latency.table import LatencyTable

KINDS = ("lpnet", "linear", "forest", "table_sum", "macs")
PREFERRED = "lpnet"


@dataclass(frozen=True)
class ModelScore:
    """A kind of model and its scores on the held-out networks, or why it could not be fitted."""

    kind: str
    scores: Scores | None
    reason: str = ""


@dataclass(frozen=True)
class FitReport:
    """The comparison of `fit`, and the chosen model, fitted on all networks.

    `label_noise` is the MAPE that a perfect model would show, None when no network was measured twice.
    """

    comparison: tuple[ModelScore, ...]
    chosen: str
    model: AbstractLatencyModel
    train_count: int
    held_out_count: int
    label_noise: float | None

    @property
    def scores(self) -> Scores:
        """The chosen model's held-out scores."""
        found = next(item.scores for item in self.comparison if item.kind == self.chosen)
        if found is None:
            raise AssertionError("a kind without scores is never chosen")
        return found

    def to_json(self) -> dict[str, Any]:
        """The comparison as a JSON document."""
        return {
            "chosen": self.chosen,
            "train_count": self.train_count,
            "held_out_count": self.held_out_count,
            "label_noise": self.label_noise,
            "models": [
                {"kind": item.kind, "reason": item.reason, **(item.scores.to_json() if item.scores else {})}
                for item in self.comparison
            ],
        }


def fit(
    table: LatencyTable,
    *,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    holdout: float = 0.25,
    rows: Collection[Kind] | None = None,
    first: int | None = None,
    on_event: OnEvent = ignore,
) -> FitReport:
    """Fit and compare latency models on a table, or on its `rows` of some kinds, or on those of the `first` rows it
    had once; `holdout` is the share of networks that the comparison keeps back.

    A sweep stays on one side of the split. LPNet is chosen unless another kind is better by more than the standard
    error of the difference of their errors; the chosen kind is then fitted again on every network. Raises
    `TableError` when the table is too small and `UsageError` for a wrong option.
    """
    if not 0 < holdout < 1:
        raise UsageError(f"holdout must lie between 0 and 1, not {holdout}", hint="0.25 keeps a quarter back")
    if not kinds:
        raise UsageError("no kind of latency model was named", hint=f"known: {', '.join(KINDS)}")
    samples = table.samples(kinds=rows, first=first)
    noise = label_noise((row.widths, row.latency_ms, row.session) for row in table.good_rows(kinds=rows, first=first))
    train, test = split(table, samples.merged(), holdout, seed)
    comparison, errors = compare(train, test, kinds=kinds, seed=seed, noise=noise, on_event=on_event)
    chosen = _choose(errors)
    model = make_model(chosen).fit(samples, seed=seed)
    return FitReport(comparison, chosen, model, len(train), len(test), noise)


def compare(
    train: Samples,
    test: Samples,
    *,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    noise: float | None = None,
    on_event: OnEvent = ignore,
) -> tuple[tuple[ModelScore, ...], dict[str, Array]]:
    """Scores of each kind on `test` after fitting on `train`, and the absolute relative errors `[N]` by kind.

    A kind that cannot be fitted on this data (no layer times, a missing package) is listed with the reason.
    """
    comparison: list[ModelScore] = []
    errors: dict[str, Array] = {}
    for number, kind in enumerate(kinds):
        on_event(Progress("fit", number, len(kinds), detail=kind))
        try:
            model = make_model(kind).fit(train, seed=seed)
        except (TableError, DeviceError) as error:
            comparison.append(ModelScore(kind, None, error.message))
            continue
        predicted = model.predict_batch(test.values)
        errors[kind] = np.abs(predicted / test.latency_ms - 1)
        stated = model.error_batch(test.values)
        found = score(predicted, test.latency_ms, test.values, noise=noise, error_ms=stated)
        comparison.append(ModelScore(kind, found))
    on_event(Progress("fit", len(kinds), len(kinds), 0.0))
    if not errors:
        raise TableError(f"no latency model could be fitted: {comparison[0].reason}")
    return tuple(comparison), errors


def split(table: LatencyTable, samples: Samples, holdout: float, seed: int) -> tuple[Samples, Samples]:
    """(train, test) parts of merged samples: sweeps stay whole, the dense and the smallest network are trained on."""
    sweeps = {row.widths for row in table.rows if row.kind == "sweep"}
    clusters = _clusters(samples.values, [tuple(row) in sweeps for row in samples.values.tolist()])
    fixed = {table.space.dense().values_tuple(), table.space.smallest().values_tuple()}
    wanted = round(holdout * len(samples))
    test: list[int] = []
    for place in np.random.default_rng(seed).permutation(len(clusters)):
        cluster = clusters[place]
        if len(test) + len(cluster) <= wanted and not any(tuple(samples.values[row]) in fixed for row in cluster):
            test += cluster
    if len(samples) - len(test) < LEAST_SAMPLES or len(test) < 2:
        raise TableError(
            f"{len(samples)} measured networks are too few to fit on one part and judge by the other",
            hint="100 is a good number: hwprune profile --samples 100"
            if table.space.size > 2 * LEAST_SAMPLES
            else f"the space has only {table.space.size} networks: choose a smaller --tile or --min-keep",
        )
    train = np.setdiff1d(np.arange(len(samples)), test)
    return samples.take(train), samples.take(sorted(test))


def _clusters(values: IntArray, swept: Sequence[bool]) -> list[list[int]]:
    """Row numbers in groups: rows of one sweep together, every other row alone."""
    rows = np.flatnonzero(swept)
    root = list(range(len(values)))
    for a, b in one_group_pairs(values[rows]):
        first, second = sorted((root[rows[a]], root[rows[b]]))
        root = [first if item == second else item for item in root]
    found: dict[int, list[int]] = {}
    for row, item in enumerate(root):
        found.setdefault(item, []).append(row)
    return list(found.values())


def _choose(errors: dict[str, Array]) -> str:
    """The kind with the least held-out error; the preferred one when that is within one standard error."""
    best = min(errors, key=lambda kind: float(errors[kind].mean()))
    if PREFERRED not in errors:
        return best
    gain = errors[PREFERRED] - errors[best]
    return best if gain.mean() > gain.std() / np.sqrt(len(gain)) else PREFERRED
