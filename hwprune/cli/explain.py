"""`hwprune explain`: layer by layer, where pruning saved time and where it did not, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._console import Outcome
from hwprune.cli._verb import Call, register
from hwprune.report.waterfall_text import waterfall_text

EXAMPLE = "hwprune explain last"


def explain(
    call: Call,
    run: flags.Run = "last",
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="How many layers to list, the longest ones.")] = 30,
) -> Outcome:
    """Compare dense and pruned layer by layer, as the runtime executes them.

    Says which layers lost channels and no time, and why: padded to the tile, bound by memory, fusion lost,
    overhead of a node.
    """
    from hwprune import api

    waterfall = api.explain(call.run(run))
    return Outcome(waterfall_text(waterfall, limit=rows), waterfall.to_json())


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, explain, example=EXAMPLE)
