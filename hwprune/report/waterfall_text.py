"""The waterfall as text: what `hwprune explain` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from hwprune.core.units import format_ms, percent
from hwprune.report.text import facts, table
from hwprune.report.waterfall import RESOLVED, LayerRow, Waterfall

FURTHER_TEXT = {
    "faster": "in layers faster than their MACs promise",
    "not pruned": "in layers that were not pruned",
    "unresolved": f"unresolved: differences below {percent(RESOLVED, 0)} of a layer, net",
}

WHY_WIDTH = 30
HEADER = ("LAYER", "DENSE", "KEPT", "MACS", "DENSE MS", "PRUNED MS", "CHANGE", "LOST MS", "WHY")


def waterfall_text(waterfall: Waterfall, *, limit: int = 30) -> str:
    """The sums, the layers that lost channels in vain, then the `limit` longest layers in order of execution."""
    parts = [facts(_sums(waterfall))]
    if waterfall.in_vain:
        parts.append(_in_vain(waterfall.in_vain))
    parts.append(_layers(waterfall, limit))
    parts.append(
        "Layer times, and so promise and losses, come from a profiled session and carry its overhead;\n"
        "the measured whole decides."
    )
    return "\n\n".join(parts)


def lost_sentence(waterfall: Waterfall) -> str:
    """`0.120 ms padding, 0.034 ms memory`: what each cause costs, the largest first."""
    losses = waterfall.lost_by_cause().items()
    return ", ".join(f"{format_ms(cost)} {name}" for name, cost in losses if waterfall.is_visible(cost))


def further_lines(waterfall: Waterfall) -> tuple[str, ...]:
    """`-0.0885 ms in layers faster than their MACs promise`: what besides the losses lies beyond the promise."""
    return tuple(
        f"{'-' if cost < 0 else '+'}{format_ms(abs(cost))} {FURTHER_TEXT[name]}"
        for name, cost in waterfall.further().items()
        if waterfall.is_visible(cost)
    )


def channels_text(channels: tuple[int, int] | None) -> str:
    """`64 -> 128`, or `-` for layers without weights."""
    return f"{channels[0]} -> {channels[1]}" if channels is not None else "-"


def why_text(row: LayerRow) -> str:
    """The reason in words; `as the MACs promise` where nothing was lost."""
    if row.why:
        return row.why
    if row.faster:
        return "faster than promised"
    return "as the MACs promise" if row.promised_ms is not None and row.shrunk else ""


def _sums(waterfall: Waterfall) -> list[tuple[str, str]]:
    stamp = [("SIMULATED", "no hardware was timed")] if waterfall.simulated else []
    lost = lost_sentence(waterfall)
    outside = waterfall.unattributed_ms
    share = percent(outside / waterfall.pruned_sum_ms) if waterfall.pruned_sum_ms else "-"
    return [
        *stamp,
        ("dense", _whole(waterfall.dense_ms, waterfall.dense_sum_ms)),
        ("pruned", _whole(waterfall.pruned_ms, waterfall.pruned_sum_ms)),
        ("promise", f"layers would add up to {format_ms(waterfall.promised_sum_ms)} if their times followed the MACs"),
        ("lost", lost or "nothing"),
        *(("further" if not number else "", line) for number, line in enumerate(further_lines(waterfall))),
        ("outside", f"{format_ms(outside)} ({share}) of the pruned layers' time belong to no module of the model"),
        ("tile", f"{waterfall.tile} channels"),
    ]


def _whole(measured_ms: float | None, sum_ms: float) -> str:
    measured = f"{format_ms(measured_ms)} measured, " if measured_ms is not None else ""
    return f"{measured}layers add up to {format_ms(sum_ms)}"


def _in_vain(rows: Sequence[LayerRow]) -> str:
    number = "1 layer" if len(rows) == 1 else f"{len(rows)} layers"
    lines = [f"{number} lost channels and less than 5 % of the time:"]
    width = max(len(row.name) for row in rows)
    return "\n".join([*lines, *(f"  {row.name:<{width}}  {row.why}" for row in rows)])


def _layers(waterfall: Waterfall, limit: int) -> str:
    def longest(row: LayerRow) -> float:
        return max(row.dense_ms or 0.0, row.pruned_ms or 0.0)

    listed = {id(row) for row in sorted(waterfall.rows, key=longest, reverse=True)[:limit]}
    rows = [line for row in waterfall.rows if id(row) in listed for line in _lines(row)]
    rest = [row for row in waterfall.rows if id(row) not in listed]
    if rest:
        dense, pruned = sum(row.dense_ms or 0 for row in rest), sum(row.pruned_ms or 0 for row in rest)
        name = f"({len(rest)} shorter ones)"
        rows.append((name, "", "", "", f"{dense:.4f}", f"{pruned:.4f}", _change(dense, pruned), "", ""))
    sums = waterfall.dense_sum_ms, waterfall.pruned_sum_ms
    rows.append(("sum", "", "", "", f"{sums[0]:.4f}", f"{sums[1]:.4f}", _change(*sums), "", ""))
    return table(HEADER, rows, left=(0, 8))


def _lines(row: LayerRow) -> list[tuple[str, ...]]:
    """The line of a layer, and as many more as its reason takes."""
    first, *more = textwrap.wrap(why_text(row), WHY_WIDTH) or [""]
    figures = _figures(row)
    return [(*figures, first), *((*[""] * len(figures), rest) for rest in more)]


def _figures(row: LayerRow) -> tuple[str, ...]:
    macs = percent(row.pruned_macs / row.dense_macs - 1, 0) if row.dense_macs else "-"
    return (
        row.name,
        channels_text(row.dense_channels),
        channels_text(row.pruned_channels) if row.shrunk else "same" if row.dense_channels else "-",
        macs,
        "-" if row.dense_ms is None else f"{row.dense_ms:.4f}",
        "-" if row.pruned_ms is None else f"{row.pruned_ms:.4f}",
        _change(row.dense_ms, row.pruned_ms),
        f"{row.lost_ms:.4f}" if row.lost_ms > 0 else "",
    )


def _change(dense_ms: float | None, pruned_ms: float | None) -> str:
    if not dense_ms or pruned_ms is None:
        return "new" if not dense_ms else "gone"
    return percent(pruned_ms / dense_ms - 1, 0, signed=True)
