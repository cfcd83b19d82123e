"""`hwprune fit`: train and compare latency models on a latency table."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._console import Outcome
from hwprune.cli._verb import Call, register
from hwprune.core.measurement import Fingerprint
from hwprune.core.units import percent
from hwprune.devices import devices
from hwprune.report.text import device_sentence, scores_text
from hwprune.search.settings import DEFAULTS

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
    """Fit latency models to a table, compare them on held-out networks and keep the best for `hwprune predict`.

    A search fits its own to the table: `lpnet`, whose gradient the methods follow.
    """
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
    following = (
        () if table is None or fingerprint is None else (_search_command(_model_of(table), fingerprint, tables),)
    )
    return Outcome(text, document, next=following)


def _model_of(table: str) -> str:
    """The network of a table that was named by its folder or its network; MODEL where it has no name of ours."""
    from hwprune.core.files import read_json
    from hwprune.models import model_names

    kept = Path(table) / "table.json"
    if not kept.exists():
        return table
    name = str(read_json(kept)["model"])
    return name if name.partition("?")[0] in model_names() else "MODEL"


def _search_command(model: str, fingerprint: Fingerprint, tables: Path) -> str:
    """The search on the target that the table was measured on; DEVICE where several devices filled it together."""
    words = ["hwprune", "search", model]
    if model != DEFAULTS.model:
        words += ["--data", "DATA"]
    precision = "" if fingerprint.precision == DEFAULTS.precision else f":{fingerprint.precision}"
    runtime = f"{fingerprint.runtime}{precision}"
    known = any(info.name == fingerprint.device for info in devices())
    given = {
        "device": (fingerprint.device if known else "DEVICE", DEFAULTS.device),
        "runtime": (runtime, DEFAULTS.runtime),
        "threads": (fingerprint.threads, DEFAULTS.threads),
        "batch": (fingerprint.batch, DEFAULTS.batch),
        "tables": (tables, Path("latency_tables")),
    }
    words += [word for name, (value, usual) in given.items() if value != usual for word in (f"--{name}", str(value))]
    return f"{shlex.join(words)} --latency 60%"


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, fit, example=EXAMPLE)
