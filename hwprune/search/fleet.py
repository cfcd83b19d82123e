"""Several devices at once: each has a session of its own; those of one fingerprint fill one table together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from hwprune.core.errors import HwpruneError, UsageError
from hwprune.core.events import Caution, Event, Note, OnEvent, ignore
from hwprune.core.measurement import Target
from hwprune.devices import AbstractBoard, check, connect, resolve
from hwprune.graph import ChannelGraph, OnnxTemplate
from hwprune.latency.profile import profile
from hwprune.latency.table import LatencyTable
from hwprune.search.settings import DEFAULTS, parse_tile
from hwprune.search.subjects import model_and_example
from hwprune.search.survey import traced
from hwprune.search.tile import target_space

Stop = Callable[[], bool]


@dataclass(frozen=True)
class _Task:
    """What all devices profile."""

    graph: ChannelGraph
    template: OnnxTemplate
    name: str
    tables: Path
    min_keep: float
    tile: int
    depth: bool
    samples: int
    seed: int
    on_event: OnEvent
    stop: Stop


def profile_devices(
    model: str | nn.Module | None = None,
    x: Tensor | tuple[int, ...] | None = None,
    *,
    devices: Sequence[str],
    data: str | None = None,
    runtime: str | None = None,
    threads: int = 1,
    batch: int = 1,
    samples: int = 100,
    tables: str | Path = "latency_tables",
    min_keep: float | None = None,
    tile: int | str = "auto",
    depth: bool = False,
    seed: int = 0,
    on_event: OnEvent = ignore,
    stop: Stop = lambda: False,
) -> tuple[LatencyTable, ...]:
    """`profile` on several devices in parallel; one table for each fingerprint, in the order of the devices.

    Devices whose fingerprints agree take batches from one queue, and a device that is lost leaves its batch to them.
    When all devices of a table are lost, the others are finished before the error is raised.
    """
    chosen = [resolve(Target(device, runtime or Target.runtime, batch=batch, threads=threads)) for device in devices]
    names = [target.device for target in chosen]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"device '{twice[0]}' is named twice", hint="give each device once")
    for target in chosen:
        check(target)
    network, example, name = model_and_example(model, x, data, batch, seed)
    told = one_at_a_time(on_event)
    graph = traced(network, example, told)
    template = OnnxTemplate.export(network, graph)
    keep = DEFAULTS.min_keep if min_keep is None else min_keep
    task = _Task(graph, template, name, Path(tables), keep, parse_tile(tile), depth, samples, seed, told, stop)
    with opened(chosen) as boards:
        return _profiled(grouped(boards), task)


def one_at_a_time(on_event: OnEvent) -> OnEvent:
    """The same listener for several threads."""
    lock = threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            on_event(event)

    return tell


@contextlib.contextmanager
def opened(targets: Sequence[Target]) -> Iterator[list[AbstractBoard]]:
    """All boards, opened at the same time; when one cannot be, the others are closed and its error is raised."""
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(len(targets)) as pool:
            opening = [pool.submit(connect, target) for target in targets]
        failed = [done for done in opening if done.exception() is not None]
        boards = [stack.enter_context(done.result()) for done in opening if done not in failed]
        for done in failed:
            done.result()
        yield boards


def grouped(boards: Sequence[AbstractBoard]) -> list[list[AbstractBoard]]:
    """The boards by fingerprint, in order."""
    groups: dict[str, list[AbstractBoard]] = {}
    for board in boards:
        groups.setdefault(board.fingerprint.digest(), []).append(board)
    return list(groups.values())


def _profiled(groups: list[list[AbstractBoard]], task: _Task) -> tuple[LatencyTable, ...]:
    tables = [_table(group, task) for group in groups]
    with ThreadPoolExecutor(len(groups)) as pool:
        running = [pool.submit(_profile, group, table, task) for group, table in zip(groups, tables, strict=True)]
    errors = [done.exception() for done in running]
    known = [error for error in errors if isinstance(error, HwpruneError)]
    for error in known[1:]:
        task.on_event(Caution(error.message, error.hint))
    for done in running:
        done.result()
    return tuple(tables)


def _table(group: list[AbstractBoard], task: _Task) -> LatencyTable:
    """The table of one fingerprint, and its reference time for all of its boards."""
    first = group[0]
    space, tile = target_space(
        task.graph,
        first,
        task.tables,
        tile=task.tile,
        min_keep=task.min_keep,
        depth=task.depth,
        seed=task.seed,
        on_event=task.on_event,
    )
    table = LatencyTable.obtain(
        task.tables, model_name=task.name, graph=task.graph, space=space, board=first, tile=tile
    )
    for board in group:
        board.reference_ms = table.reference_ms
    count = f"{len(group)} devices" if len(group) > 1 else first.label()
    task.on_event(Note(f"{count} fill {table.folder}"))
    return table


def _profile(group: list[AbstractBoard], table: LatencyTable, task: _Task) -> None:
    profile(
        task.template,
        task.graph,
        table.space,
        group[0],
        others=group[1:],
        table=table,
        samples=task.samples,
        seed=task.seed,
        on_event=task.on_event,
        stop=task.stop,
    )
