"""Quantities are parsed strictly and printed with three significant digits."""

from __future__ import annotations

import pytest

from hwprune.core import units
from hwprune.core.errors import UsageError


@pytest.mark.parametrize(
    ("text", "latency_ms"), [("10", 10), ("10ms", 10), ("0.5s", 500), (" 250 us ", 0.25), ("1e-1ms", 0.1)]
)
def test_parse_latency(text: str, latency_ms: float) -> None:
    assert units.parse_latency_ms(text) == pytest.approx(latency_ms)


@pytest.mark.parametrize("text", ["", "ms", "-3ms", "0", "10 min", "nan", "1e999"])
def test_parse_latency_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="is not a latency"):
        units.parse_latency_ms(text)


def test_parse_fraction() -> None:
    assert units.parse_fraction("60%") == pytest.approx(0.6)
    assert units.parse_fraction("100 %") == 1.0
    for text in ("60", "0%", "101%", "-1%", "x%", "%"):
        with pytest.raises(UsageError, match="is not a percentage"):
            units.parse_fraction(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("2M", 2_000_000), ("1.5 M", 1_500_000), ("300k", 300_000), ("300K", 300_000), ("4G", 4 * 10**9), ("77", 77)],
)
def test_parse_count(text: str, count: int) -> None:
    assert units.parse_count(text) == count
    assert type(units.parse_count(text)) is int


@pytest.mark.parametrize("text", ["", "M", "0", "0.2", "-3M", "2m", "2MB", "nan", "1e999", "2 M parameters"])
def test_parse_count_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="is not a count above 0"):
        units.parse_count(text)


def test_parse_shape() -> None:
    assert units.parse_shape("1x3x96x96") == (1, 3, 96, 96)
    for text in ("", "1x", "ax3", "1x0", "-1x3"):
        with pytest.raises(UsageError, match="is not a shape"):
            units.parse_shape(text)


def test_formats() -> None:
    assert [units.format_ms(x) for x in (0.3868, 3.914, 41.23, 1240.4, 0)] == [
        "0.387 ms",
        "3.91 ms",
        "41.2 ms",
        "1240 ms",
        "0 ms",
    ]
    assert [units.format_count(x) for x in (4.09e9, 25.6e6, 831e3, 512)] == ["4.09 G", "25.6 M", "831 k", "512"]
    assert [units.format_bytes(x) for x in (61 << 20, 3 << 29, 17 << 10, 12)] == ["61 MiB", "1.5 GiB", "17 KiB", "12 B"]
    assert [units.format_duration(x) for x in (0.42, 42, 185, 3730)] == ["0.4 s", "42 s", "3:05", "1:02:10"]


def test_what_rounds_up_to_the_next_unit_is_in_it() -> None:
    assert [units.format_count(count) for count in (999, 999_499, 999_600, 999.6e6)] == [
        "999",
        "999 k",
        "1.00 M",
        "1.00 G",
    ]
    assert [units.format_duration(value) for value in (9.94, 9.96, 59.4, 59.6)] == ["9.9 s", "10 s", "59 s", "1:00"]
    assert [units.format_ms(value) for value in (9.996, 99.96, 1234.5, 0.387)] == [
        "10.0 ms",
        "100 ms",
        "1234 ms",
        "0.387 ms",
    ]
