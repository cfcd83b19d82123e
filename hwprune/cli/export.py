"""`hwprune export`: write the ONNX file to ship, its output checked against torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._console import Outcome
from hwprune.cli._verb import Call, example_shape, register
from hwprune.core.units import format_bytes
from hwprune.search.run_folder import RUNS

EXAMPLE = "hwprune export last --output model.onnx"


def export(
    call: Call,
    subject: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder, `last`, or a model.")] = "last",
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")] = Path("model.onnx"),
    input: flags.Input = None,
    weights: flags.Weights = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="fp32, fp16 or int8: the types in the file; what the run was measured in."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="int8: images to find ranges with; a run's own by default.")
    ] = None,
) -> Outcome:
    """Write a network as ONNX, if its output is that of torch."""
    from hwprune import api

    exported = api.export(
        call.run(subject),
        example_shape(input),
        output,
        weights=weights,
        precision=precision,
        data=data,
        seed=call.common.seed,
    )
    verdict = "pass" if exported.max_difference <= exported.tolerance else "FAIL"
    done = "wrote" if verdict == "pass" else "did not write"
    text = (
        f"{done} {exported.path} ({format_bytes(exported.size_bytes)})\n"
        f"check   max |torch - onnx| = {exported.max_difference:.2g} (limit {exported.tolerance:.0e})   {verdict}"
    )
    document = {
        "path": str(exported.path),
        "size_bytes": exported.size_bytes,
        "max_difference": exported.max_difference,
        "tolerance": exported.tolerance,
        "verdict": verdict.lower(),
    }
    following = (shlex.join(("hwprune", "bench", str(exported.path))),) if verdict == "pass" else ()
    return Outcome(text, document, int(verdict == "FAIL"), following)


def names_model(flags: Mapping[str, Any]) -> bool:
    """Whether the subject is no run."""
    subject = flags["subject"]
    return subject != "last" and not any((folder / "run.toml").exists() for folder in (Path(subject), RUNS / subject))


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, export, example=EXAMPLE, is_new=names_model)
