"""Measurements as they would be on a slower machine."""

from __future__ import annotations

from dataclasses import replace

from hwprune.core.measurement import Measurement


def times(timed: Measurement, slower: float, *, gauge: float = 1.0) -> Measurement:
    """A measurement whose laps took so many times as long, and those of the gauge beside them."""
    rounds = [
        replace(
            item,
            laps_ms=tuple(slower * lap for lap in item.laps_ms),
            before_ms=tuple(gauge * level for level in item.before_ms),
            after_ms=tuple(gauge * level for level in item.after_ms),
        )
        for item in timed.rounds
    ]
    return replace(timed, rounds=tuple(rounds))
