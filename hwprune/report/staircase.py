"""The latency of a convolution against its channels, as a drawing of its own: where the steps of a target are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hwprune.core.units import format_ms
from hwprune.report.svg import Axis, Plot, standalone


def staircase_drawing(
    curve: Sequence[tuple[int, float, float]],
    *,
    tile: int | None,
    slower: Mapping[int, int],
    label: str,
) -> str:
    """An SVG file. `curve`: (output channels, ms, relative half-width of the interval), ascending.

    A dashed line ends every tile, none where `tile` is None. `slower` maps a width that is slower than a wider one to
    that wider one; it is drawn red.
    """
    widest = max(width for width, _, _ in curve)
    highest = max(latency_ms * (1 + half) for _, latency_ms, half in curve)
    plot = Plot(
        Axis(0, widest + 2, "output channels of a convolution"),
        Axis(0, 1.12 * highest, "ms"),
        width=760,
        height=360,
        label=f"latency by channels, {label}",
    )
    for end in range(tile, widest + 1, tile) if tile is not None and tile > 1 else ():
        plot.upright(end, "budget")
    plot.area(
        [(width, latency_ms * (1 + half)) for width, latency_ms, half in curve]
        + [(width, latency_ms * (1 - half)) for width, latency_ms, half in reversed(curve)],
        "band",
    )
    plot.line([(width, latency_ms) for width, latency_ms, _ in curve], "trace")
    for width, latency_ms, half in curve:
        text = f"{width} channels: {format_ms(latency_ms)} ± {100 * half:.1f} %"
        text += f", slower than {slower[width]} channels" if width in slower else ""
        plot.dot((width, latency_ms), "over" if width in slower else "pruned", text, radius=3)
    found = f"steps of {tile} channels" if tile is not None else "no steps seen"
    ragged = f"; {len(slower)} widths slower than a wider one (red)" if slower else ""
    plot.note((0, 1.12 * highest), f"{label}: {found}{ragged}", dx=4, dy=-8)
    return standalone(plot.svg())
