"""Quantities as people type and read them. Inside the project latency is in ms, the rest in s, bytes and counts."""

from __future__ import annotations

import math
import re

from hwprune.core.errors import UsageError

_LATENCY = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(us|µs|ms|s)?\s*$")
_FACTOR = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, None: 1.0}
_COUNT = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([kKMG])?\s*$")
_TIMES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, None: 1.0}


def parse_latency_ms(text: str) -> float:
    """Milliseconds from `10`, `10ms`, `0.5s` or `250us`; a bare number is in ms."""
    match = _LATENCY.match(text)
    value = float(match.group(1)) * _FACTOR[match.group(2)] if match else math.nan
    if not math.isfinite(value) or value <= 0:
        raise UsageError(f"'{text}' is not a latency", hint="write it as 10ms, 0.5s or 250us")
    return value


def parse_count(text: str) -> int:
    """2000000 from `2M`, `2000k` or `2000000`: parameters and MACs."""
    match = _COUNT.match(text)
    value = float(match.group(1)) * _TIMES[match.group(2)] if match else math.nan
    if not math.isfinite(value) or round(value) < 1:
        raise UsageError(f"'{text}' is not a count above 0", hint="write it as 2M, 500k or 1200000")
    return round(value)


def parse_fraction(text: str) -> float:
    """0.6 from `60%`; it must lie above 0 and at most at 100 %."""
    stripped = text.strip()
    try:
        value = float(stripped[:-1]) / 100 if stripped.endswith("%") else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise UsageError(f"'{text}' is not a percentage above 0 and up to 100", hint="write it as 60%")
    return value


def parse_shape(text: str) -> tuple[int, ...]:
    """(1, 3, 96, 96) from `1x3x96x96`."""
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"'{text}' is not a shape", hint="write it as 1x3x224x224")
    return tuple(int(part) for part in parts)


def format_ms(latency_ms: float) -> str:
    """`0.387 ms`, `3.91 ms`, `41.2 ms`, `1240 ms`: three significant digits."""
    return f"{_three_digits(latency_ms)} ms"


def percent(fraction: float | None, decimals: int = 1, *, signed: bool = False) -> str:
    """`98.3 %`, `+4.0 %` when signed, or `-` for what is not known."""
    if fraction is None or not math.isfinite(fraction):
        return "-"
    return f"{fraction * 100:{'+' if signed else ''}.{decimals}f} %"


def format_count(count: float) -> str:
    """`4.09 G`, `25.6 M`, `831 k`, `512`: MACs and parameters."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= 0.9995 * factor:  # 999.6 k is 1.00 M
            return f"{_three_digits(count / factor)} {letter}"
    return f"{count:.0f}"


def format_bytes(size_bytes: float) -> str:
    """`61 MiB`, `1.5 GiB`, `17 KiB`."""
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= factor:
            value = size_bytes / factor
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def format_duration(duration_s: float) -> str:
    """`0.4 s`, `42 s`, `3:05`, `1:02:10`."""
    if duration_s < 9.95:
        return f"{duration_s:.1f} s"
    if duration_s < 59.5:
        return f"{duration_s:.0f} s"
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _three_digits(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    rounded = float(f"{abs(value):.3g}")  # 9.996 is 10.0, not 10.00
    decimals = max(0, 2 - math.floor(math.log10(rounded) + 1e-12))
    return f"{value:.{min(decimals, 4)}f}"
