"""`hwprune bench` of several runtimes as plain text: a line a network and runtime, with ratios and their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from hwprune.core.comparison import Comparison
from hwprune.core.errors import HwpruneError
from hwprune.core.measurement import Measurement, explain
from hwprune.core.units import format_duration, format_ms
from hwprune.report.text import interval, short_names, table


class PairLike(Protocol):
    """A network and the runtime it ran on."""

    @property
    def model(self) -> str: ...
    @property
    def runtime(self) -> str: ...


def judged(subjects: Iterable[str], pairs: Mapping[str, PairLike]) -> tuple[str, ...]:
    """The subjects that a latency limit is for: the first of several networks is a baseline, in every runtime."""
    names = tuple(subjects)
    first = names[:1] if not pairs else tuple(name for name in names if pairs[name].model == pairs[names[0]].model)
    return tuple(name for name in names if name not in first) or names


def runtimes_text(
    measurements: Mapping[str, Measurement],
    pairs: Mapping[str, PairLike],
    comparisons: Sequence[Comparison],
    *,
    failures: Mapping[str, HwpruneError],
    build_s: Mapping[str, float],
    limit_ms: float | None = None,
) -> str:
    """Machine and runtimes, the table, the limit, and why anything is missing or in doubt."""
    first = next(iter(measurements.values()))
    short = short_names(list(dict.fromkeys(pair.model for pair in pairs.values())))
    lines = [_machine(first), *_runtimes(measurements, pairs), ""]
    ratios = {(item.baseline, item.subject): item for item in comparisons}
    header: tuple[str, ...] = (
        "NETWORK",
        "RUNTIME",
        "LATENCY [95 %]",
        "/ FIRST RUNTIME",
        "/ FIRST NETWORK",
        "P90",
        "BUILD",
        "ROUNDS",
    )
    rows: list[tuple[str, ...]] = [
        (
            short[pairs[name].model],
            pairs[name].runtime,
            interval(item.latency_ms, item.ci_ms),
            _ratio(ratios, name, [other for other in pairs if pairs[other].model == pairs[name].model]),
            _ratio(ratios, name, [other for other in pairs if pairs[other].runtime == pairs[name].runtime]),
            format_ms(item.p90_ms),
            format_duration(build_s[name]),
            str(item.round_count),
        )
        for name, item in measurements.items()
    ]
    if len(short) == 1:  # nothing to compare with in that column
        header, *rows = [(*row[:4], *row[5:]) for row in (header, *rows)]
    lines += [table(header, rows, left=(0, 1)), ""]
    for name in judged(measurements, pairs) if limit_ms is not None else ():
        over = limit_ms is not None and measurements[name].ci_ms[1] > limit_ms
        lines.append(f"{name}: {'FAIL: not' if over else 'pass:'} under {format_ms(limit_ms or 0)}")
    lines += [f"FAIL: {name}: {error.message}{f' ({error.hint})' if error.hint else ''}" for name, error in
              failures.items()]  # fmt: skip
    for name, item in measurements.items():
        lines += [f"warning: {name}: {explain(warning)}" for warning in item.warnings]
    lines.append("ratios: 0.50x takes half as long; an interval that holds 1 shows no difference")
    return "\n".join(lines)


def _machine(item: Measurement) -> str:
    mark = item.fingerprint
    threads = "1 thread" if mark.threads == 1 else f"{mark.threads} threads"
    text = f"{mark.device}: {mark.cpu_model}, batch {mark.batch}, {threads}, clock {item.clock}"
    return f"SIMULATED {text}" if item.simulated else text


def _runtimes(measurements: Mapping[str, Measurement], pairs: Mapping[str, PairLike]) -> list[str]:
    found = {pairs[name].runtime: item.fingerprint for name, item in measurements.items()}
    return [f"  {label}: version {mark.runtime_version}, computes in {mark.precision}" for label, mark in found.items()]


def _ratio(ratios: Mapping[tuple[str, str], Comparison], name: str, line: Sequence[str]) -> str:
    """`0.66x [0.65, 0.67]` against the first of the line; `-` for the first itself."""
    found = ratios.get((line[0], name))
    return "-" if found is None else f"{found.ratio:.3f}x [{found.ci[0]:.3f}, {found.ci[1]:.3f}]"
