"""`hwprune finetune`: go on training a run's pruned network."""

from __future__ import annotations

from typing import Annotated

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._console import Outcome
from hwprune.cli._verb import Call, register
from hwprune.cli.search import outcome_of

EXAMPLE = "hwprune finetune last --epochs 10"


def finetune(
    call: Call,
    run: flags.Run = "last",
    epochs: Annotated[float | None, flags.epochs_flag("finetuning; the run's own number, if it had one")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Images to train on; the run's own by default.")
    ] = None,
) -> Outcome:
    """Finetune a run's pruned network, taught by the dense one, and measure it again."""
    from hwprune import api

    with call.job() as (on_event, stop):
        done = api.finetune(
            call.run(run), epochs=epochs, data=data, seed=call.common.seed, on_event=on_event, stop=stop
        )
    return outcome_of(done.folder, done.result)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, finetune, example=EXAMPLE)
