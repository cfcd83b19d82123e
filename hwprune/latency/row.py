"""A row of a latency table: what one measurement of one sub-network leaves there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from hwprune.core.errors import TableError
from hwprune.core.measurement import Measurement
from hwprune.latency.plan import Kind


@dataclass(frozen=True)
class TableRow:
    """One measured sub-network: widths in space order, latency with its 95 % interval, and every paired ratio.

    `ratios` are laps over the reference kernel timed beside them; `kind` says why the row was measured; `session`
    which opening of the device it belongs to. `disturbed`: other load on the machine voided every round. `wall_ms` is
    the median lap by the wall clock (on a GPU one request end to end), 0 where it was not kept; `facts` and `notes` are
    what the runtime knows of this engine, and what it warns of.
    """

    widths: tuple[int, ...]
    latency_ms: float
    ci_ms: tuple[float, float]
    ratios: tuple[float, ...]
    kind: Kind
    session: str
    disturbed: bool = False
    wall_ms: float = 0.0
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not math.isfinite(self.latency_ms) or self.latency_ms <= 0:
            raise TableError(f"a latency of {self.latency_ms} ms cannot stand in a table")
        if self.kind not in get_args(Kind):
            raise TableError(f"unknown kind of row '{self.kind}'", hint=f"known: {', '.join(get_args(Kind))}")

    @classmethod
    def of(cls, widths: Sequence[int], measurement: Measurement, *, kind: Kind, session: str) -> TableRow:
        """The row for a measurement of the sub-network with these widths."""
        ratios = tuple(float(f"{ratio:.6g}") for item in measurement.valid_rounds for ratio in item.ratios)
        disturbed = all(item.void for item in measurement.rounds)
        return cls(
            tuple(widths),
            measurement.latency_ms,
            measurement.ci_ms,
            ratios,
            kind,
            session,
            disturbed,
            measurement.wall_ms,
            measurement.facts,
            measurement.notes,
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TableRow:
        """The row that `asdict` wrote."""
        low, high = document["ci_ms"]
        return cls(
            tuple(int(width) for width in document["widths"]),
            float(document["latency_ms"]),
            (math.nan if low is None else float(low), math.nan if high is None else float(high)),
            tuple(float(ratio) for ratio in document["ratios"]),
            document["kind"],
            str(document["session"]),
            bool(document["disturbed"]),
            float(document.get("wall_ms", 0.0)),  # this and what follows is not in the first tables
            tuple((str(name), str(value)) for name, value in document.get("facts", ())),
            tuple(str(note) for note in document.get("notes", ())),
        )
