"""Latency tables and models: profile, fit, predict. One function a verb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from hwprune.core.errors import UsageError, did_you_mean
from hwprune.core.events import OnEvent, Stop, ignore, never
from hwprune.core.measurement import Prediction, Target
from hwprune.devices import resolve
from hwprune.devices.files import measured_as
from hwprune.graph import ChannelGraph, trace
from hwprune.latency.fit import KINDS, FitReport
from hwprune.latency.fit import fit as fit_table
from hwprune.latency.profile import profile as profile_table
from hwprune.latency.table import LatencyTable
from hwprune.search.settings import DEFAULTS, parse_tile
from hwprune.search.subjects import model_and_example, model_name
from hwprune.search.survey import survey, traced_and_exported
from hwprune.search.tables import find_table, store_model, stored_model


def profile(
    model: str | nn.Module | None = None,
    x: Tensor | tuple[int, ...] | None = None,
    *,
    data: str | None = None,
    device: str = "cpu",
    runtime: str | None = None,
    threads: int = 1,
    batch: int = 1,
    samples: int = 100,
    tables: str | Path = "latency_tables",
    min_keep: float | None = None,
    tile: int | str = "auto",
    depth: bool = False,
    protect: Sequence[str] | None = None,
    seed: int = 0,
    on_event: OnEvent = ignore,
    stop: Stop = never,
) -> LatencyTable:
    """Measure `samples` sub-networks of many widths on a device; the table goes on where it stopped.

    `x` is an example input or its shape; without it `data` or the named network says it. With `depth` sub-networks
    may lack whole residual branches; `protect`: layers whose channels all stay, as for `trace`.
    """
    network, example, name = model_and_example(model, x, data, batch, seed)
    with survey(
        network,
        example,
        name=name,
        target=resolve(Target(device, runtime or Target.runtime, batch=batch, threads=threads)),
        tables=Path(tables),
        min_keep=DEFAULTS.min_keep if min_keep is None else min_keep,
        tile=parse_tile(tile),
        depth=depth,
        protect=protect or (),
        seed=seed,
        on_event=on_event,
    ) as found:
        return profile_table(
            found.template,
            found.graph,
            found.space,
            found.board,
            table=found.table,
            samples=samples,
            seed=seed,
            on_event=on_event,
            stop=stop,
        )


def inspect(
    model: str | nn.Module | None = None,
    x: Tensor | tuple[int, ...] | None = None,
    *,
    data: str | None = None,
    protect: Sequence[str] | None = None,
    on_event: OnEvent = ignore,
) -> ChannelGraph:
    """The channel graph that a search works on: that of `trace`, without the groups that cannot be cut as ONNX.

    `x`, `data` and `protect` as for `profile`. Nothing is measured and no device is opened.
    """
    network, example, _ = model_and_example(model, x, data, 1, 0)
    return traced_and_exported(network, example, on_event, protect=protect or ())[0]


def fit(
    table: LatencyTable | str | Path | None = None,
    *,
    kinds: tuple[str, ...] = KINDS,
    seed: int = 0,
    tables: str | Path = "latency_tables",
    on_event: OnEvent = ignore,
) -> FitReport:
    """Fit and compare latency models on a table (a folder, a profiled model's name, or the newest table).

    The chosen model is stored beside the table as JSON.
    """
    name = None if table is None else str(table)
    found = table if isinstance(table, LatencyTable) else find_table(name, Path(tables), on_event=on_event)
    fitted = fit_table(found, kinds=kinds, seed=seed, on_event=on_event)
    store_model(found, fitted.model)
    return fitted


def predict(
    model: str | nn.Module | None = None,
    x: Tensor | tuple[int, ...] | None = None,
    *,
    widths: Mapping[str, int] | None = None,
    data: str | None = None,
    device: str = "cpu",
    runtime: str | None = None,
    threads: int = 1,
    batch: int = 1,
    tables: str | Path = "latency_tables",
    seed: int = 0,
) -> Prediction:
    """The predicted latency of a profiled network at some widths (groups left out stay dense).

    Nothing is measured. `runtime`, `threads` and `batch` say which of several tables is meant; so do `x` (an input or
    its shape) and `data` where a network was profiled at several image sizes or numbers of classes. Else it is the
    newest.
    """
    target = measured_as(Target(device, runtime or Target.runtime, batch=batch, threads=threads))
    graph = None
    if x is not None or data is not None:
        network, example, _ = model_and_example(model, x, data, batch, seed)
        graph = trace(network, example)
    found = find_table(model_name(model) or DEFAULTS.model, Path(tables), target=target, graph=graph)
    dense = found.space.dense()
    for group in widths or {}:
        if group not in dense:
            raise UsageError(f"no channel group '{group}' in the table.{did_you_mean(group, dense)}")
    return stored_model(found, seed).predict({**dense, **(widths or {})})
