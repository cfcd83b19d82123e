"""Nested families of widths (one dial from the smallest to the dense network) and the widest member that fits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from hwprune.core.widths import SearchSpace, Widths
from hwprune.latency.limited import SearchLatency
from hwprune.methods._adjust import Fit, check_feasible
from hwprune.methods._questions import predicted


def widest_that_fits(space: SearchSpace, latency: SearchLatency, family: Sequence[Widths], target_ms: float) -> Fit:
    """The last of `family` (narrow to wide) that is predicted within `target_ms`; else the fastest network known.

    Where the family's next member is too slow, each group may still take its next step, in the family's order, as far
    as that fits: a family with large steps uses its budget too. Raises `BudgetInfeasible`.
    """
    least = check_feasible(space, latency, target_ms)
    distinct = list(dict.fromkeys(family))
    values = np.array([widths.values_tuple() for widths in distinct], dtype=np.int64)
    latencies_ms = np.asarray(latency.predict_batch(values))
    fitting = np.nonzero(latencies_ms <= target_ms)[0]
    if not len(fitting):
        return least
    base = distinct[fitting[-1]]
    fit = Fit(base, float(latencies_ms[fitting[-1]]))
    tried: set[str] = set()
    for wider in distinct[fitting[-1] + 1 :]:
        for name in base:
            if wider[name] > base[name] and name not in tried:
                tried.add(name)
                fit = _if_it_fits(latency, fit, fit.widths.replace(name, wider[name]), target_ms)
    return fit


def _if_it_fits(latency: SearchLatency, fit: Fit, widths: Widths, target_ms: float) -> Fit:
    predicted_ms = predicted(latency, widths)
    return Fit(widths, predicted_ms) if predicted_ms <= target_ms else fit


def uniform_family(space: SearchSpace) -> list[Widths]:
    """One keep ratio for all groups, each width the nearest allowed one, from the smallest ratio to 1.

    Where several groups step at the same ratio they step one after the other, the last of the network first (they
    are the widest, so the family is finest); the members in between differ from one ratio by one step at most.
    """
    steps = sorted(
        ((low + high) / 2 / group.units, -index, high)
        for index, (group, allowed) in enumerate(zip(space.groups, space.widths, strict=True))
        for low, high in itertools.pairwise(allowed)
    )
    values = [allowed[0] for allowed in space.widths]
    family = [space.make(values)]
    for _, negative_index, width in steps:
        values[-negative_index] = width
        family.append(space.make(values))
    return family


def ranked_family(space: SearchSpace, ranking: Sequence[np.ndarray]) -> list[Widths]:
    """Units enter in the order of their score over all groups; each width is the nearest allowed to the count.

    `ranking`: one `(units,)` array of scores a group, in space order; ties go to the earlier group and unit.
    """
    scores = np.concatenate(ranking)
    owners = np.concatenate([np.full(len(part), index) for index, part in enumerate(ranking)])
    counts = [0.0] * len(ranking)
    family = [space.smallest()]
    for unit in np.argsort(-scores, kind="stable"):
        counts[int(owners[unit])] += 1.0
        family.append(space.snap(counts))
    return family
