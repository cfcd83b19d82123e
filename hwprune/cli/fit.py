"""`hwprune fit`: train and compare latency models on a latency table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._console import Outcome
from hwprune.cli._verb import Call, register
from hwprune.report.text import device_sentence, percent, scores_text

EXAMPLE = "hwprune fit mobilenetv2 --kinds lpnet,forest"


def fit(
    call: Call,
    table: Annotated[
        str | None, typer.Argument(metavar="TABLE|MODEL", help="Folder of a latency table, or a profiled model.")
    ] = None,
    kinds: Annotated[
        str, typer.Option(metavar="NAMES", help="Latency models to compare, separated by commas.")
    ] = "lpnet,linear,forest,table_sum,macs",
    tables: flags.Tables = Path("latency_tables"),
) -> Outcome:
    """Fit latency models to a table, compare them on held-out networks and keep the best."""
    from hwprune import api

    with call.watch() as on_event:
        report = api.fit(
            table,
            kinds=tuple(kind.strip() for kind in kinds.split(",") if kind.strip()),
            seed=call.common.seed,
            tables=tables,
            on_event=on_event,
        )
    rows = [(item.kind, item.scores.to_json() if item.scores else {}, item.reason) for item in report.comparison]
    noise = percent(report.label_noise) if report.label_noise is not None else "unknown: no network measured twice"
    counts = f"fitted on {report.train_count} networks, judged on {report.held_out_count} held-out ones"
    fingerprint = report.model.fitted.fingerprint
    device = "" if fingerprint is None else f"{device_sentence(fingerprint)}\n"
    text = f"{device}{counts}; label noise {noise}\n\n{scores_text(rows, report.chosen)}"
    document = {
        "simulated": fingerprint is not None and fingerprint.runtime == "simulated",
        "chosen": report.chosen,
        "train_count": report.train_count,
        "held_out_count": report.held_out_count,
        "label_noise": report.label_noise,
        "scores": {kind: scores or None for kind, scores, _ in rows},
        "reasons": {kind: reason for kind, _, reason in rows if reason},
    }
    return Outcome(text, document, next=("hwprune search --latency 60%",))


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, fit, example=EXAMPLE)
