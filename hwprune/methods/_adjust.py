"""Widths that meet a latency target while losing the least importance: shrink, fill, exchange.

The importance of a sub-network is the sum of the scores of its kept units, and each group keeps its best ones; the
latency is whatever the model predicts for the whole row of widths, so staircases and couplings between groups count.
The result is never predicted above the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from hwprune.core.errors import BudgetInfeasible
from hwprune.core.units import format_ms
from hwprune.core.widths import ChannelGroup, SearchSpace, Widths
from hwprune.latency.limited import SearchLatency

# A step that saves no time can be the way to one that does: look this many steps ahead, of the grid or, where that is
# finer, of the target.
_REACH = 3
_EXCHANGES_TRIED = 512
# Two groups' savings do not add exactly when they share a layer: try pairs whose sum is above the target by this much.
_COUPLING = 1.02
_TINY_MS = 1e-9


@dataclass(frozen=True)
class Fit:
    """Widths of the space and the latency the model predicts for them."""

    widths: Widths
    predicted_ms: float


def fastest(space: SearchSpace, latency: SearchLatency, within: Mapping[str, int] | None = None) -> Fit:
    """The least predicted latency found: from the smallest widths, the best single change until none helps.

    With a latency that rises with every width these are the smallest widths themselves. No group gets wider than it is
    in `within`.
    """
    best = Fit(space.smallest(), 0.0)
    best = Fit(best.widths, _predict(latency, [best.widths])[0])
    while True:
        rows = [
            best.widths.replace(group.name, width)
            for group, allowed in zip(space.groups, space.widths, strict=True)
            for width in allowed
            if within is None or width <= within[group.name]
        ]
        predicted = _predict(latency, rows)
        index = int(np.argmin(predicted))
        if predicted[index] >= best.predicted_ms - _TINY_MS:
            return best
        best = Fit(rows[index], predicted[index])


def check_feasible(space: SearchSpace, latency: SearchLatency, target_ms: float) -> Fit:
    """The fastest network; raises `BudgetInfeasible` when even that is predicted above `target_ms`."""
    least = fastest(space, latency)
    if least.predicted_ms > target_ms:
        raise BudgetInfeasible(
            f"no network of this space is predicted within {format_ms(target_ms)};"
            f" the fastest needs {format_ms(least.predicted_ms)}",
            smallest_ms=least.predicted_ms,
            hint="raise the budget, or allow smaller keep ratios",
        )
    return least


def fit_to_target(
    space: SearchSpace,
    latency: SearchLatency,
    scores: Mapping[str, np.ndarray],
    target_ms: float,
    *,
    start: Widths | None = None,
    floor: float = 0.0,
    exchange: bool = True,
    nested: bool = False,
) -> Fit:
    """From `start` (dense if None) to widths predicted within `target_ms` with the most importance kept.

    Shrinks by the step that loses the least importance a predicted ms (without `start` it also grows from the least
    widths), fills what is left by the step that gains the most a ms, then exchanges steps between groups while that
    gains. `scores`: group -> `(units,)`, additive. No group goes below the fraction `floor` of its units, and with
    `nested` none above its width in `start`, unless the target cannot be met otherwise. Raises `BudgetInfeasible`.
    """
    least = check_feasible(space, latency, target_ms)
    cap = start if nested else None
    walk = _Walk(space, latency, scores, floor, cap)
    position = walk.position(space.dense() if start is None else start)
    shrunk = walk.shrink(position, target_ms)
    if shrunk is None:
        walk = _Walk(space, latency, scores, 0.0, cap)
        shrunk = walk.shrink(position, target_ms)
    if shrunk is None:
        inside = fastest(space, latency, cap)
        shrunk = walk.position((inside if inside.predicted_ms <= target_ms else least).widths)
    # From above the walk can end in a corner that growing from below does not know, and the other way round.
    starts = [shrunk]
    if start is None and float(walk.predict(walk.lowest[None])[0]) <= target_ms:
        starts.append(walk.lowest)
    filled = [walk.fill(position, target_ms) for position in starts]
    if exchange:
        filled = [walk.exchange(position, target_ms) for position in filled]
    best = max(filled, key=walk.importance)
    return Fit(walk.widths(best), float(walk.predict(best[None])[0]))


def _finer(group: ChannelGroup, allowed: np.ndarray, step: int) -> int:
    """How many allowed widths of a group the target pads to the same channels, at most."""
    _, counts = np.unique(-(-allowed * group.unit_channels // step), return_counts=True)
    return int(counts.max())


def _predict(latency: SearchLatency, rows: list[Widths]) -> list[float]:
    values = np.array([row.values_tuple() for row in rows], dtype=np.int64)
    return [float(ms) for ms in latency.predict_batch(values)]


@dataclass
class _Moves:
    """Single-group changes of one position: the group, the new place in its list, the ms then, the importance won."""

    groups: np.ndarray
    places: np.ndarray
    latency_ms: np.ndarray
    gain: np.ndarray


@dataclass
class _Walk:
    """Positions `[G]` index each group's list of allowed widths; `values[g][i]` is the importance kept there.

    No step leads above the widths `cap` (dense if None).
    """

    space: SearchSpace
    latency: SearchLatency
    scores: Mapping[str, np.ndarray]
    floor: float
    cap: Mapping[str, int] | None = None
    allowed: list[np.ndarray] = field(init=False)
    values: list[np.ndarray] = field(init=False)
    lowest: np.ndarray = field(init=False)
    highest: np.ndarray = field(init=False)
    reach: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.allowed = [np.asarray(widths) for widths in self.space.widths]
        self.values = []
        self.reach = [_REACH * _finer(g, widths, self.latency.step) for g, widths in self._by_group()]
        for group, widths in zip(self.space.groups, self.allowed, strict=True):
            best_first = np.sort(np.asarray(self.scores[group.name], dtype=np.float64))[::-1]
            self.values.append(np.concatenate([[0.0], np.cumsum(best_first)])[widths])
        floors = [self.floor * group.units for group in self.space.groups]
        places = [int(np.searchsorted(w, bound)) for w, bound in zip(self.allowed, floors, strict=True)]
        self.highest = self.position(self.space.dense() if self.cap is None else self.cap)
        self.lowest = np.minimum(places, [len(widths) - 1 for widths in self.allowed])

    def _by_group(self) -> Iterator[tuple[ChannelGroup, np.ndarray]]:
        return zip(self.space.groups, self.allowed, strict=True)

    def position(self, widths: Mapping[str, int]) -> np.ndarray:
        """The places of `widths`, which are widths of the space: `[G]`."""
        self.space.check(widths)
        places = [np.searchsorted(a, widths[n]) for n, a in zip(self.space.names, self.allowed, strict=True)]
        return np.array(places, dtype=np.int64)

    def widths(self, position: np.ndarray) -> Widths:
        """The widths at a position."""
        return self.space.make([int(a[p]) for a, p in zip(self.allowed, position, strict=True)])

    def predict(self, positions: np.ndarray) -> np.ndarray:
        """`[B, G]` positions -> `[B]` ms."""
        columns = [allowed[positions[:, i]] for i, allowed in enumerate(self.allowed)]
        return np.asarray(self.latency.predict_batch(np.stack(columns, axis=1)), dtype=np.float64)

    def moves(self, position: np.ndarray, direction: int) -> _Moves:
        """All changes of one group by up to `reach` steps; `direction` is +1 (wider) or -1 (narrower)."""
        groups, places = [], []
        for i, place in enumerate(position):
            top, bottom = int(self.highest[i]), min(int(self.lowest[i]), int(place))
            for step in range(1, self.reach[i] + 1):
                new = int(place) + direction * step
                if bottom <= new <= top:
                    groups.append(i)
                    places.append(new)
        chosen, new_places = np.array(groups, dtype=np.int64), np.array(places, dtype=np.int64)
        rows = np.repeat(position[None], len(chosen), axis=0)
        rows[np.arange(len(chosen)), chosen] = new_places
        gain = [self.values[g][p] - self.values[g][position[g]] for g, p in zip(groups, places, strict=True)]
        latency_ms = self.predict(rows) if len(chosen) else np.zeros(0)
        return _Moves(chosen, new_places, latency_ms, np.array(gain, dtype=np.float64))

    def importance(self, position: np.ndarray) -> float:
        """What is kept at a position: the sum over the groups."""
        return float(sum(values[place] for values, place in zip(self.values, position, strict=True)))

    def shrink(self, position: np.ndarray, target_ms: float) -> np.ndarray | None:
        """Narrower until the target is met; None when every allowed step is used up or saves nothing."""
        position = position.copy()
        now = float(self.predict(position[None])[0])
        while now > target_ms:
            moves = self.moves(position, -1)
            saved = now - moves.latency_ms
            useful = saved > _TINY_MS
            if not useful.any():
                return None
            price = np.where(useful, -moves.gain / np.where(useful, saved, 1.0), np.inf)
            best = int(np.argmin(price))
            position[moves.groups[best]] = moves.places[best]
            now = float(moves.latency_ms[best])
        return position

    def fill(self, position: np.ndarray, target_ms: float) -> np.ndarray:
        """Wider while something fits, the most importance a ms first."""
        position = position.copy()
        now = float(self.predict(position[None])[0])
        while True:
            moves = self.moves(position, +1)
            fits = (moves.latency_ms <= target_ms) & (moves.gain >= 0)
            if not fits.any():
                return position
            worth = np.where(fits, moves.gain / np.maximum(moves.latency_ms - now, _TINY_MS), -np.inf)
            best = int(np.argmax(worth))
            position[moves.groups[best]] = moves.places[best]
            now = float(moves.latency_ms[best])

    def exchange(self, position: np.ndarray, target_ms: float) -> np.ndarray:
        """Some groups narrower and others wider, one pair at a time, while the importance grows within the target."""
        while True:
            better = self._best_exchange(position, target_ms)
            if better is None:
                return position
            position = self.fill(better, target_ms)

    def _best_exchange(self, position: np.ndarray, target_ms: float) -> np.ndarray | None:
        down, up = self.moves(position, -1), self.moves(position, +1)
        if not len(down.groups) or not len(up.groups):
            return None
        gain = down.gain[:, None] + up.gain[None, :]
        now = float(self.predict(position[None])[0])
        roughly_ms = down.latency_ms[:, None] + up.latency_ms[None, :] - now
        possible = (down.groups[:, None] != up.groups[None, :]) & (roughly_ms <= target_ms * _COUPLING)
        # Relative to what is kept: rounding of the sums must not look like a gain, or the walk would circle.
        least = 1e-9 * sum(float(np.abs(values[-1])) for values in self.values) + 1e-300
        first, second = np.nonzero(possible & (gain > least))
        order = np.argsort(-gain[first, second], kind="stable")[:_EXCHANGES_TRIED]
        if not len(order):
            return None
        rows = np.repeat(position[None], len(order), axis=0)
        index = np.arange(len(order))
        rows[index, down.groups[first[order]]] = down.places[first[order]]
        rows[index, up.groups[second[order]]] = up.places[second[order]]
        fits = np.nonzero(self.predict(rows) <= target_ms)[0]
        return rows[fits[0]] if len(fits) else None
