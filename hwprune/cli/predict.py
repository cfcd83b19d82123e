"""`hwprune predict`: what a latency model expects of a network, without measuring it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._console import Outcome
from hwprune.cli._verb import Call, example_shape, parse_widths, register
from hwprune.core.units import format_ms, percent

EXAMPLE = "hwprune predict mobilenetv2 --widths features.2.conv.0.0=48"


def predict(
    call: Call,
    model: flags.Model = None,
    widths: Annotated[
        str | None, typer.Option(metavar="WIDTHS", help="GROUP=UNITS,... or a JSON file; groups left out stay dense.")
    ] = None,
    data: flags.Data = None,
    input: flags.Input = None,
    **shared: Any,
) -> Outcome:
    """Predict the latency of a network from the device's latency table: ms, error and coverage."""
    from hwprune import api

    prediction = api.predict(
        model,
        example_shape(input),
        widths=parse_widths(widths),
        data=data,
        **shared,
        seed=call.common.seed,
    )
    stamp = "SIMULATED " if prediction.simulated else ""
    text = (
        f"{stamp}{format_ms(prediction.latency_ms)} predicted, ± {format_ms(prediction.error_ms)} (one sigma)\n"
        f"coverage {percent(prediction.coverage)}: the share of the network inside what the table covers"
    )
    document = {
        "predicted_ms": prediction.latency_ms,
        "error_ms": prediction.error_ms,
        "coverage": prediction.coverage,
        "simulated": prediction.simulated,
    }
    return Outcome(text, document)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, predict, example=EXAMPLE, shared=flags.TABLE_FLAGS)
