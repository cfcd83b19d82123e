"""Small plots as inline SVG, without a library: the page stays one file of some tens of kilobytes and prints well.

Colours come from the page's CSS classes, so that one drawing serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]

# The classes of the report's page that a drawing outside of it uses.
STYLE = """
svg { background: #fff; font-family: system-ui, sans-serif; --ink: #1a2230; --soft: #5d6879; --line: #e3e7ed;
  --pruned: #1f7a6d; --budget: #c2541b; --bad: #b3261e; --band: rgba(31, 122, 109, .12) }
@media (prefers-color-scheme: dark) { svg { background: #1a2029; --ink: #e8ecf2; --soft: #9aa7b8; --line: #2a323e;
  --pruned: #4fc3b0; --budget: #f0854a; --bad: #f28b82; --band: rgba(79, 195, 176, .16) } }
.grid, .axis { stroke: var(--line) } .tick, .caption { fill: var(--soft); font-size: 12px }
.note { fill: var(--ink); font-size: 12px } polyline { fill: none } polygon.band { fill: var(--band) }
polyline.trace { stroke: var(--pruned); stroke-width: 1.5 }
polyline.budget { stroke: var(--budget); stroke-dasharray: 3 5; opacity: .6 }
circle.pruned { fill: var(--pruned) } circle.over { fill: var(--bad) }
"""


@dataclass(frozen=True)
class Axis:
    """A range of values with its caption; `low` < `high`."""

    low: float
    high: float
    caption: str = ""

    @classmethod
    def around(cls, values: Sequence[float], caption: str = "", *, margin: float = 0.08) -> Axis:
        """The range of the values, a margin on both sides."""
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        span = (high - low) or abs(high) * 0.2 or 1.0
        return cls(low - margin * span, high + margin * span, caption)

    def ticks(self) -> tuple[float, ...]:
        """About five round values inside the range: multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return tuple(index * step for index in range(first, last + 1))


@dataclass
class Plot:
    """One plot. Add marks in data coordinates, then take `svg()`; later marks lie on top."""

    x: Axis
    y: Axis
    width: int = 520
    height: int = 300
    label: str = ""
    percent_y: bool = False
    _marks: list[str] = field(default_factory=list)
    _dots: list[str] = field(default_factory=list)
    _captions: list[str] = field(default_factory=list)

    LEFT, RIGHT, TOP, BOTTOM = 72, 16, 26, 44

    def at(self, point: Point, *, inside: bool = False) -> Point:
        """Data coordinates to pixels; with `inside` what lies beyond the frame goes to its edge."""
        across = (point[0] - self.x.low) / (self.x.high - self.x.low)
        up = (point[1] - self.y.low) / (self.y.high - self.y.low)
        if inside:
            across, up = (min(max(share, 0.0), 1.0) for share in (across, up))
        inner_width = self.width - self.LEFT - self.RIGHT
        inner_height = self.height - self.TOP - self.BOTTOM
        return self.LEFT + across * inner_width, self.TOP + (1 - up) * inner_height

    def dot(self, point: Point, kind: str, title: str, *, radius: float = 5) -> None:
        """A circle with a tooltip; beyond the frame it sits on the edge."""
        px, py = self.at(point, inside=True)
        text = f"<title>{escape(title)}</title>"
        self._dots.append(f'<circle class="{kind}" cx="{px:.1f}" cy="{py:.1f}" r="{radius:g}">{text}</circle>')

    def line(self, points: Sequence[Point], kind: str) -> None:
        """A polyline."""
        pixels = " ".join("{:.1f},{:.1f}".format(*self.at(point)) for point in points)
        self._marks.append(f'<polyline class="{kind}" points="{pixels}"/>')

    def area(self, points: Sequence[Point], kind: str) -> None:
        """A filled polygon."""
        pixels = " ".join("{:.1f},{:.1f}".format(*self.at(point)) for point in points)
        self._marks.append(f'<polygon class="{kind}" points="{pixels}"/>')

    def bar(self, low: Point, high: Point, kind: str, title: str) -> None:
        """A filled rectangle between two corners, with a tooltip."""
        (left, bottom), (right, top) = self.at(low), self.at(high)
        size = f'width="{max(right - left, 1):.1f}" height="{max(bottom - top, 1):.1f}"'
        text = f"<title>{escape(title)}</title>"
        self._marks.append(f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" {size} rx="3">{text}</rect>')

    def across(self, value: float, kind: str) -> None:
        """A horizontal line through the whole frame."""
        self.line([(self.x.low, value), (self.x.high, value)], kind)

    def upright(self, value: float, kind: str) -> None:
        """A vertical line through the whole frame."""
        self.line([(value, self.y.low), (value, self.y.high)], kind)

    def note(
        self, point: Point, text: str, *, anchor: str = "start", dx: float = 0, dy: float = 0, kind: str = ""
    ) -> None:
        """A short text at a place."""
        px, py = self.at(point, inside=True)
        place = f'x="{px + dx:.1f}" y="{py + dy:.1f}" text-anchor="{anchor}"'
        self._captions.append(f'<text class="{" ".join(["note", kind]).strip()}" {place}>{escape(text)}</text>')

    def svg(self, *, x_ticks: bool = True) -> str:
        """The finished drawing."""
        parts = [
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.label, quote=True)}">',
            *self._grid(x_ticks),
            *self._clipped(),
            *self._dots,
            *self._captions,
            "</svg>",
        ]
        return "".join(parts)

    def _clipped(self) -> list[str]:
        """Lines and areas, cut off at the frame."""
        name = "clip-" + "".join(letter if letter.isalnum() else "-" for letter in self.label)
        size = f'width="{self.width - self.LEFT - self.RIGHT}" height="{self.height - self.TOP - self.BOTTOM}"'
        frame = f'<rect x="{self.LEFT}" y="{self.TOP}" {size}/>'
        return [f'<clipPath id="{name}">{frame}</clipPath><g clip-path="url(#{name})">', *self._marks, "</g>"]

    def _grid(self, x_ticks: bool) -> list[str]:
        bottom, right = self.height - self.BOTTOM, self.width - self.RIGHT
        parts = []
        for value in self.y.ticks():
            py = self.at((self.x.low, value))[1]
            text = f"{value * 100:g} %" if self.percent_y else number(value)
            parts.append(f'<line class="grid" x1="{self.LEFT}" x2="{right}" y1="{py:.1f}" y2="{py:.1f}"/>')
            parts.append(f'<text class="tick" x="{self.LEFT - 8}" y="{py + 4:.1f}" text-anchor="end">{text}</text>')
        for value in self.x.ticks() if x_ticks else ():
            px = self.at((value, self.y.low))[0]
            parts.append(
                f'<text class="tick" x="{px:.1f}" y="{bottom + 18}" text-anchor="middle">{number(value)}</text>'
            )
        parts.append(f'<line class="axis" x1="{self.LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        middle = (self.LEFT + right) / 2
        caption = escape(self.x.caption)
        parts.append(f'<text class="caption" x="{middle}" y="{self.height - 6}" text-anchor="middle">{caption}</text>')
        turned = f"translate(14 {(self.TOP + bottom) / 2:.0f}) rotate(-90)"
        parts.append(f'<text class="caption" transform="{turned}" text-anchor="middle">{escape(self.y.caption)}</text>')
        return parts


def standalone(svg: str, style: str = "") -> str:
    """A drawing as a file of its own: with the colours that a page would give it, light and dark, and its own style."""
    opening = svg.index(">") + 1
    head = svg[: opening - 1].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{head}><style>{STYLE}{style}</style>{svg[opening:]}\n"


def number(value: float) -> str:
    """A tick's text: at most four significant digits, no exponent for everyday values."""
    return f"{value:.4g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.1e}"
