"""The report of a run: one HTML file, everything inline, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hwprune.core.config import to_toml
from hwprune.core.files import atomic_write_text, finite
from hwprune.core.units import format_bytes, format_count, format_duration, format_ms, percent
from hwprune.report import charts, text
from hwprune.report.run_data import RunData
from hwprune.report.score_text import change_text, is_share, score_text
from hwprune.report.waterfall import LayerRow, Waterfall, waterfall
from hwprune.report.waterfall_text import channels_text, further_lines, why_text

FILE = "report.html"
REFERENCE = "a reference kernel"
ANCHOR = "an anchor, the uniform network of about the budget's size, in ms of when the budget was fixed"


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder and return its path. Raises `RunError` when the run did not finish."""
    run = RunData.read(folder)
    path = run.folder / FILE
    atomic_write_text(path, render(run))
    return path


def render(run: RunData) -> str:
    """The whole page."""
    import jinja2

    name = run.result.score_name
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ms=format_ms,
        count=format_count,
        duration=format_duration,
        bytes=format_bytes,
        percent=percent,
        score=partial(score_text, name),
        change=partial(change_text, name),
    )
    return environment.get_template("report.html.j2").render(**_context(run), score_is_share=is_share(name))


def script_json(document: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or begin another."""
    body = json.dumps(finite(document), allow_nan=False)
    return body.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _context(run: RunData) -> dict[str, Any]:
    result = run.result
    layers = _waterfall(run)
    return {
        "run": run,
        "result": result,
        "verdict": text.verdict_sentence(result),
        "speed": text.speed_of(result),
        "fit": text.fit_sentence(result),
        "measured": (
            text.interval(result.measured_ms, result.measured_ci_ms)
            if result.measured_ms is not None and result.measured_ci_ms is not None
            else ""
        ),
        "scale_ms": max(result.dense_ms, result.budget_ms, result.measured_ms or 0.0),
        "environment": _environment(run),
        "accuracy": charts.accuracy_plot(result),
        "accuracy_kinds": {mark.kind for mark in charts.accuracy_marks(result)},
        "predictions": charts.prediction_plot(result),
        "prediction_kinds": {item.within_budget for item in result.predictions},
        "search": charts.search_plots(run),
        "samples": _samples(run),
        "gauge": ANCHOR if any(item.anchored for item in result.measurements.values()) else REFERENCE,
        "stages": charts.stage_shares(result.stages),
        "layers": layers,
        "further": further_lines(layers) if layers is not None else (),
        "removed": text.REMOVED,
        "cascade": charts.cascade_plot(layers) if layers is not None else "",
        "layer_rows": [_layer_line(row, layers) for row in layers.rows] if layers is not None else [],
        "warnings": _warnings(run),
        "cautions": _cautions(run),
        "config": to_toml(run.config) if run.config else "",
        "document": script_json(result.to_json()),
    }


def _waterfall(run: RunData) -> Waterfall | None:
    if run.layers is None:
        return None
    result = run.result
    return waterfall(run.layers, dense_ms=result.dense_ms, pruned_ms=result.measured_ms, simulated=result.simulated)


def _layer_line(row: LayerRow, layers: Waterfall) -> dict[str, Any]:
    longest = max((max(item.dense_ms or 0.0, item.pruned_ms or 0.0) for item in layers.rows), default=1.0) or 1.0
    return {
        "name": row.name,
        "dense": channels_text(row.dense_channels),
        "kept": channels_text(row.pruned_channels) if row.shrunk else "",
        "dense_ms": row.dense_ms,
        "pruned_ms": row.pruned_ms,
        "dense_share": (row.dense_ms or 0.0) / longest,
        "pruned_share": (row.pruned_ms or 0.0) / longest,
        "lost_ms": row.lost_ms,
        "why": why_text(row),
        "in_vain": row in layers.in_vain,
    }


def _environment(run: RunData) -> list[tuple[str, str]]:
    """Name and value: what the numbers are true for, then the versions the run noted."""
    facts: list[tuple[str, str]] = []
    for measurement in run.result.measurements.values():
        fingerprint = measurement.fingerprint
        facts += [
            ("device", fingerprint.device),
            ("processor", fingerprint.cpu_model),
            ("runtime", f"{fingerprint.runtime} {fingerprint.runtime_version}"),
            ("precision", fingerprint.precision),
            ("batch", str(fingerprint.batch)),
            ("threads", str(fingerprint.threads)),
            ("system", fingerprint.os),
            ("clock", measurement.clock.replace("_", " ")),
            *fingerprint.flags,
        ]
        break
    unique: dict[str, str] = {}
    for name, value in (*facts, *_flat(run.environment)):
        unique.setdefault(name.replace("_", " "), value)
    return list(unique.items()) or [("target", run.result.target.label())]


def _flat(document: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in document.items():
        if isinstance(value, Mapping) and not key.startswith("fingerprint"):
            found += _flat(value, f"{prefix}{key} ")
        elif value not in (None, "") and not key.startswith("fingerprint"):
            found.append((f"{prefix}{key}".replace("_", " "), _shown(value)))
    return found


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _samples(run: RunData) -> list[tuple[str, str, str]]:
    found = []
    for name, measurement in run.result.measurements.items():
        budget = run.result.budget_ms if name == "pruned" else None
        p99 = f", p99 {format_ms(measurement.p99_ms)}" if measurement.p99_ms is not None else ""
        void = sum(measurement.void_rounds.values())
        voided = f", {void} void {'round' if void == 1 else 'rounds'}" if void else ""
        latency = text.interval(measurement.latency_ms, measurement.ci_ms)
        caption = f"{latency}, p90 {format_ms(measurement.p90_ms)}{p99}{voided}"
        found.append((name, caption, charts.sample_plot(measurement, budget_ms=budget, kind=name)))
    return found


def _warnings(run: RunData) -> list[str]:
    found = text.measured_warnings(run.result)
    if run.damaged_records:
        found.append(f"{run.damaged_records} damaged line(s) of the journal were left out")
    return found


def _cautions(run: RunData) -> list[tuple[list[str], str]]:
    """(texts, hint): the run's cautions in order, those of one hint together."""
    by_hint: dict[str, list[str]] = {}
    for caution in run.cautions():
        by_hint.setdefault(caution.hint, []).append(caution.text)
    return [(texts, hint) for hint, texts in by_hint.items()]
