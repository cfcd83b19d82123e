"""`hwprune bench`: time networks in turns in one process, and compare them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._console import Outcome
from hwprune.cli._verb import Call, example_shape, register
from hwprune.core.errors import unknown_name
from hwprune.core.measurement import Measurement
from hwprune.core.units import parse_latency_ms
from hwprune.report.runtimes_text import runtimes_text
from hwprune.report.text import bench_text

if TYPE_CHECKING:
    from hwprune.search.outcomes import BenchResult

EXAMPLE = "hwprune bench dense.onnx model.onnx --runtime onnxruntime,openvino"
PROTOCOLS = ("quick", "default", "publish")


def bench(
    call: Call,
    subjects: Annotated[
        list[str], typer.Argument(metavar="SUBJECT", help="ONNX files, models or runs; the first is the baseline.")
    ],
    input: flags.Input = None,
    fail_above: Annotated[
        str | None, typer.Option(metavar="4ms", help="Exit with 1 when the upper bound of a latency is above 4ms, say.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(metavar="NAME", help=f"How long to measure: {', '.join(PROTOCOLS)}.")
    ] = "default",
    laps: Annotated[
        int | None, typer.Option(metavar="N", min=3, help="Timed runs a round, instead of the protocol's.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(metavar="N", min=1, help="Rounds, instead of the protocol's.")] = None,
    **shared: Any,
) -> Outcome:
    """Measure networks on a device, interleaved and paired with a reference kernel, and compare them.

    Their ratio to the first comes from a second session, in which each is timed a few laps at a time beside that: on
    a busy machine it may differ from the ratio of the milliseconds, which are those of undisturbed moments.

    Several runtimes, separated by commas, take turns in the same run; what one of them cannot do does not stop
    the others.
    """
    from hwprune import api

    if protocol not in PROTOCOLS:
        raise unknown_name("protocol", protocol, PROTOCOLS)
    limit_ms = None if fail_above is None else parse_latency_ms(fail_above)
    with call.watch() as on_event:
        result = api.bench(
            *subjects,
            x=example_shape(input),
            fail_above=limit_ms,
            protocol=protocol,
            laps=laps,
            rounds=rounds,
            seed=call.common.seed,
            **shared,
            on_event=on_event,
        )
    document = {
        "verdict": result.verdict,
        "fail_above_ms": limit_ms,
        "simulated": any(item.simulated for item in result.measurements.values()),
        "results": [_entry(name, item, result) for name, item in result.measurements.items()],
        "comparisons": [item.to_json() for item in result.comparisons],
        "failures": [
            {"subject": name, "error": error.message, "hint": error.hint} for name, error in result.failures.items()
        ],
    }
    return Outcome(_text(result, limit_ms), document, int(result.verdict == "fail"))


def _text(result: BenchResult, limit_ms: float | None) -> str:
    if not result.pairs:
        return bench_text(result.measurements, result.comparisons, limit_ms)
    return runtimes_text(
        result.measurements,
        result.pairs,
        result.comparisons,
        failures=result.failures,
        build_s=result.build_s,
        limit_ms=limit_ms,
    )


def _entry(name: str, item: Measurement, result: BenchResult) -> dict[str, object]:
    """The document of a measurement with its network, runtime and the seconds its building took, where known."""
    pair = result.pairs.get(name)
    print_ = item.fingerprint
    return {
        **measurement_document(name, item),
        "model": name if pair is None else pair.model,
        "runtime": print_.runtime,
        "precision": print_.precision,
        "build_s": result.build_s.get(name),
    }


def measurement_document(name: str, item: Measurement) -> dict[str, object]:
    """The statistics of a measurement and all that they follow from."""
    return {
        "subject": name,
        "latency_ms": item.latency_ms,
        "ci_ms": list(item.ci_ms),
        "p90_ms": item.p90_ms,
        "p99_ms": item.p99_ms,
        "mad_ms": item.mad_ms,
        "wall_ms": item.wall_ms,
        "laps": item.lap_count,
        "rounds": item.round_count,
        "void_rounds": item.void_rounds,
        "converged": item.converged,
        "bimodal": item.bimodal,
        "warnings": list(item.warnings),
        "measurement": item.to_json(),
    }


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, bench, example=EXAMPLE, shared=flags.TARGET_FLAGS)
