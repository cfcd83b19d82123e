"""`hwprune profile`: measure sub-networks on a device, write a latency table."""

from __future__ import annotations

from typing import Any

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._console import Outcome
from hwprune.cli._verb import Call, example_shape, register
from hwprune.core.units import format_ms
from hwprune.report.text import device_sentence, facts

EXAMPLE = "hwprune profile mobilenetv2 --device cpu --samples 100"


def profile(
    call: Call,
    model: flags.Model = None,
    data: flags.Data = None,
    input: flags.Input = None,
    **shared: Any,
) -> Outcome:
    """Measure networks of many widths on a device and write a latency table.

    Finds the tile of the target first. Rows are safe on the disk as they are measured; the same command goes on
    where it stopped.
    """
    from hwprune import api

    with call.job() as (on_event, stop):
        table = api.profile(
            model,
            example_shape(input),
            data=data,
            **shared,
            seed=call.common.seed,
            on_event=on_event,
            stop=stop,
        )
    latencies = [row.latency_ms for row in table.rows]
    sizes = f"{len(table.space.groups)} channel groups, {table.space.size:.3g} networks, tile {table.tile}"
    text = facts(
        [
            ("device", device_sentence(table.fingerprint)),
            ("model", table.model_name),
            ("space", sizes),
            ("measured", f"{len(latencies)} networks, {format_ms(min(latencies))} to {format_ms(max(latencies))}"),
            ("table", str(table.folder)),
        ]
    )
    document = {
        "table": str(table.folder),
        "model": table.model_name,
        "rows": len(latencies),
        "tile": table.tile,
        "groups": len(table.space.groups),
        "networks": table.space.size,
        "fastest_ms": min(latencies),
        "slowest_ms": max(latencies),
        "reference_ms": table.reference_ms,
        "simulated": table.fingerprint.runtime == "simulated",
        "fingerprint": table.fingerprint.to_json(),
        "damaged_lines": table.damaged_lines,
    }
    following = (f"hwprune fit {table.folder}", "hwprune search --latency 60%")
    return Outcome(text, document, next=following)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, profile, example=EXAMPLE, shared=flags.SPACE_FLAGS)
