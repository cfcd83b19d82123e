"""Which latency table is meant: a folder, or the newest one of a model on a device."""

from __future__ import annotations

from pathlib import Path

from hwprune.core.errors import TableError, UsageError
from hwprune.core.events import Caution, OnEvent, ignore
from hwprune.core.measurement import Target
from hwprune.graph import ChannelGraph
from hwprune.latency.features import restrict
from hwprune.latency.models._base import AbstractLatencyModel, load_model, make_model
from hwprune.latency.table import LatencyTable

MODEL_FILE = "latency_model.json"


def table_folders(root: Path) -> list[Path]:
    """The folder of every table under `root`, the newest first."""
    files = sorted(root.rglob("table.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent for path in files]


def table_name(spec: str) -> str:
    """The name under which a model's tables are kept: without folders and the source before the colon."""
    return Path(spec.split(":")[-1]).name


def find_table(
    name: str | None,
    root: Path,
    *,
    target: Target | None = None,
    graph: ChannelGraph | None = None,
    on_event: OnEvent = ignore,
) -> LatencyTable:
    """The table in the folder `name`; else the newest under `root` of the model `name` (None: of any model).

    `target` narrows it down, and so does the `graph` of the network, to tables of the same operators at the same image
    size. One that cannot be read, which may be another network's, is left out with a `Caution`. Raises `TableError`
    saying which tables there are when none fits.
    """
    if name is not None and (Path(name) / "table.json").exists():
        return LatencyTable.open(name)
    known = []
    for folder in table_folders(root):
        try:
            table = LatencyTable.open(folder)
        except UsageError as error:
            on_event(Caution(f"a latency table is left out: {error.message}", error.hint))
            known.append(f"{folder}, which cannot be read")
            continue
        of_target = target is None or table.fingerprint.target() == target
        of_network = graph is None or _is_of(table, graph)
        if (name is None or table.model_name == table_name(name)) and of_target and of_network:
            return table
        known.append(f"{table.model_name} ({table.fingerprint.target().label()})")
    there = f"; there are: {', '.join(dict.fromkeys(known))}" if known else ""
    wanted = f" of {name}" if name else ""
    on = f" for {target.label()}" if target else ""
    raise TableError(
        f"there is no latency table{wanted}{on} in {root}{there}",
        hint=f"hwprune profile {name or 'MODEL'} --device {target.device if target else 'cpu'}",
    )


def _is_of(table: LatencyTable, graph: ChannelGraph) -> bool:
    dense = graph.dense()
    if not set(table.space.names) <= set(dense):
        return False
    return restrict(graph.op_templates, table.space, dense) == table.op_templates


def store_model(table: LatencyTable, model: AbstractLatencyModel) -> None:
    """Keep a fitted latency model beside its table, as JSON."""
    model.save(table.folder / MODEL_FILE)


def keep_model(table: LatencyTable, model: AbstractLatencyModel) -> None:
    """Store a latency model unless the table has one, which may have been fitted on more networks."""
    if not (table.folder / MODEL_FILE).exists():
        store_model(table, model)


def stored_model(table: LatencyTable, seed: int = 0) -> AbstractLatencyModel:
    """The latency model kept beside a table; fitted now where there is none or the table says something else since.

    That the table has as many networks is not enough: what a busy machine measured is measured again in a quiet hour.
    """
    path = table.folder / MODEL_FILE
    samples = table.samples()
    if path.exists():
        model = load_model(path)
        if model.fitted.data == samples.digest():
            return model
    model = make_model("lpnet").fit(samples, seed=seed)
    store_model(table, model)
    return model
