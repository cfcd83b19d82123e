"""`hwprune report`: one offline HTML file of a run."""

from __future__ import annotations

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._console import Outcome
from hwprune.cli._verb import Call, register
from hwprune.core.units import format_bytes

EXAMPLE = "hwprune report last"


def report(call: Call, run: flags.Run = "last") -> Outcome:
    """Write a run's report: one HTML file that works without a network."""
    from hwprune import api

    path = api.report(call.run(run))
    size_bytes = path.stat().st_size
    text = f"wrote {path} ({format_bytes(size_bytes)}, one file, works offline)"
    return Outcome(text, {"path": str(path), "size_bytes": size_bytes})


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, report, example=EXAMPLE)
