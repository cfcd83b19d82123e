"""The bench of several runtimes as one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hwprune.core.events import OnEvent, ignore
from hwprune.core.measurement import Protocol, Target
from hwprune.devices.together import measure_together
from hwprune.search.outcomes import BenchResult


def bench_runtimes(
    models: Mapping[str, bytes],
    targets: Sequence[Target],
    protocol: Protocol,
    *,
    fail_above_ms: float | None = None,
    seed: int = 0,
    on_event: OnEvent = ignore,
) -> BenchResult:
    """Time every network on every runtime in one interleaved run; raises only when nothing could be measured."""
    found = measure_together(models, targets, protocol=protocol, seed=seed, on_event=on_event)
    return BenchResult(
        {pair.subject: measured for pair, measured in found.measurements.items()},
        found.comparisons(),
        fail_above_ms,
        pairs={pair.subject: pair for pair in found.measurements},
        failures={pair.subject: error for pair, error in found.failures.items()},
        build_s={pair.subject: seconds for pair, seconds in found.build_s.items()},
    )
