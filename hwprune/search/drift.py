"""A machine that is not as fast as on the day of its latency table: it is told, and checked before rows are added.

A table's milliseconds are ratios to the reference kernel times what that took on the table's day, so that those of all
sessions agree. Where the machine has changed for good (another governor, another host), ratios mostly hold and
milliseconds do not.
"""

from __future__ import annotations

from hwprune.core.errors import TableError
from hwprune.core.events import Caution, Note, OnEvent, ignore
from hwprune.core.measurement import Protocol
from hwprune.core.statistics import median
from hwprune.core.units import format_ms, percent
from hwprune.devices import AbstractBoard
from hwprune.graph import OnnxTemplate
from hwprune.latency.row import TableRow
from hwprune.latency.table import LatencyTable

DRIFT = 0.03  # undisturbed sessions of one machine differ by less, relative
CHANGED = 0.10  # the machine is another one: its ratios are looked at, too
CANARIES = 3


def use_reference(
    board: AbstractBoard, table: LatencyTable, template: OnnxTemplate, *, seed: int = 0, on_event: OnEvent = ignore
) -> None:
    """Let a board speak in the milliseconds of a table; tell when these are no longer those of the machine.

    Above 10 % some of the table's networks are measured again. A reference kernel that alone is faster or slower says
    nothing against the table, and a busy minute moves it by that much: only networks whose ratios changed as well end
    it, with a `TableError`, for rows of two machines would be mixed.
    """
    board.reference_ms = table.reference_ms
    drift = board.reference_drift
    if abs(drift) <= DRIFT:
        return
    now, then = format_ms(board.session_reference_ms), format_ms(table.reference_ms)
    change = percent(drift, 0, signed=True)
    text = f"the reference kernel takes {now}, and {then} when the latency table was made ({change})"
    on_event(
        Caution(
            f"{text}: the table's milliseconds are those of that day",
            hint="hwprune bench says what a network takes now; --tables with another folder begins a new table",
        )
    )
    rows = _canaries(table)
    if abs(drift) <= CHANGED or len(rows) < CANARIES:
        return
    networks = {str(place): template.at_widths(table.space.make(row.widths)) for place, row in enumerate(rows)}
    timed = board.measure(networks, protocol=Protocol.sample(), seed=seed)
    off = median([timed[str(place)].latency_ms / row.latency_ms - 1 for place, row in enumerate(rows)])
    if abs(off) > CHANGED:
        raise TableError(
            f"{text}, and its networks take {percent(off, 0, signed=True)} in units of that:"
            " the table was made on another machine",
            hint="choose another folder for tables (--tables), or measure when this machine is as it was",
        )
    change = f"{percent(off, signed=True)} in units of the reference kernel"
    on_event(Note(f"{len(rows)} networks of the table, measured again, take {change}"))


def _canaries(table: LatencyTable) -> list[TableRow]:
    """The fastest, the median and the slowest of the table's networks."""
    ranked = sorted(table.good_rows(), key=lambda row: row.latency_ms)
    return [ranked[0], ranked[len(ranked) // 2], ranked[-1]] if len(ranked) >= CANARIES else []
