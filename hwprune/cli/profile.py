"""`hwprune profile`: measure sub-networks on a device, write a latency table."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._console import Outcome
from hwprune.cli._verb import Call, example_shape, register
from hwprune.core.units import format_ms
from hwprune.report.text import device_sentence, facts

if TYPE_CHECKING:
    from hwprune.latency.table import LatencyTable

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
    where it stopped. `--device a,b,c` measures on several devices at the same time, one table for each fingerprint.
    """
    from hwprune import api

    shape = example_shape(input)
    devices = [name for name in shared["device"].split(",") if name]
    if len(devices) > 1:
        chosen = {**shared, "devices": devices, "data": data, "seed": call.common.seed}
        del chosen["device"]
        with call.job() as (on_event, stop):
            tables = api.profile_devices(model, shape, **chosen, on_event=on_event, stop=stop)
        return _outcome(tables, model, data, shared)
    with call.job() as (on_event, stop):
        table = api.profile(
            model,
            shape,
            data=data,
            **shared,
            seed=call.common.seed,
            on_event=on_event,
            stop=stop,
        )
    return _outcome((table,), model, data, shared)


def _outcome(tables: Sequence[LatencyTable], model: str | None, data: str | None, shared: Mapping[str, Any]) -> Outcome:
    """One table, or one after the other."""
    text = "\n\n".join(map(_text, tables))
    documents = [_document(table) for table in tables]
    document = documents[0] if len(tables) == 1 else {"tables": documents}
    following = tuple(f"hwprune fit {table.folder}" for table in tables)
    return Outcome(text, document, next=(*following, _search_command(model, data, shared)))


def _search_command(model: str | None, data: str | None, shared: Mapping[str, Any]) -> str:
    """The search that uses what was just measured: with the flags that were given."""
    words = ["hwprune", "search"]
    if model is not None:
        words += [model, "--data", data or "DATA"]
    for name, _, default in flags.SPACE_FLAGS:
        given = shared[name]
        if given and given != default:
            flag = f"--{name.replace('_', '-')}"
            many = given if isinstance(given, list) else [str(given).split(",")[0]]
            words += [flag] if given is True else [word for value in many for word in (flag, value)]
    return f"{shlex.join(words)} --latency 60%"


def _text(table: LatencyTable) -> str:
    latencies = [row.latency_ms for row in table.rows]
    sizes = f"{len(table.space.groups)} channel groups, {table.space.size:.3g} networks, tile {table.tile}"
    return facts(
        [
            ("device", device_sentence(table.fingerprint)),
            ("model", table.model_name),
            ("space", sizes),
            *(("tile", sentence) for sentence in _tile_sentences(table)),
            ("measured", f"{len(latencies)} networks, {format_ms(min(latencies))} to {format_ms(max(latencies))}"),
            ("table", str(table.folder)),
        ]
    )


def _tile_sentences(table: LatencyTable) -> tuple[str, ...]:
    """What the probe of the target found and where its drawing lies; nothing where no probe was run."""
    from hwprune.search.tile import drawing_of, probe_of, probe_sentences

    probe = probe_of(table)
    if probe is None:
        return ()
    drawing = drawing_of(table.folder.parent, table.fingerprint.digest())
    return (*probe_sentences(probe), f"drawn in {drawing}")


def _document(table: LatencyTable) -> dict[str, object]:
    from hwprune.search.tile import probe_of

    probe = probe_of(table)
    latencies = [row.latency_ms for row in table.rows]
    return {
        "table": str(table.folder),
        "model": table.model_name,
        "rows": len(latencies),
        "tile": table.tile,
        "slower_than_wider": None if probe is None else [list(pair) for pair in probe.slower_than_wider],
        "groups": len(table.space.groups),
        "networks": table.space.size,
        "fastest_ms": min(latencies),
        "slowest_ms": max(latencies),
        "reference_ms": table.reference_ms,
        "simulated": table.fingerprint.runtime == "simulated",
        "fingerprint": table.fingerprint.to_json(),
        "damaged_lines": table.damaged_lines,
    }


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, profile, example=EXAMPLE, shared=flags.SPACE_FLAGS)
