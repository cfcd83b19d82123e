"""Several devices at once: each has a session of its own; those of one fingerprint fill one table together.

Devices of other machines are measured at the same time. Those of this one (processor, local GPU) would disturb each
other, so they are opened and measured one after the other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from hwprune.core.errors import HwpruneError, Interrupted, UsageError
from hwprune.core.events import Caution, Event, Note, OnEvent, Stop, ignore, never
from hwprune.core.measurement import Target
from hwprune.devices import AbstractBoard, check, connect, find_device, resolve
from hwprune.devices.files import measured_as
from hwprune.graph import ChannelGraph, OnnxTemplate
from hwprune.latency.profile import profile
from hwprune.latency.table import LatencyTable
from hwprune.search.drift import use_reference
from hwprune.search.settings import DEFAULTS, parse_tile
from hwprune.search.subjects import model_and_example
from hwprune.search.survey import traced_and_exported
from hwprune.search.tile import model_step, target_space

T = TypeVar("T")
U = TypeVar("U")


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
    probing: Mapping[str, threading.Lock]  # by device: what is known of its tile stands in one file


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
    protect: Sequence[str] | None = None,
    seed: int = 0,
    on_event: OnEvent = ignore,
    stop: Stop = never,
) -> tuple[LatencyTable, ...]:
    """`profile` on several devices in parallel; one table for each fingerprint, in the order of the devices.

    Devices whose fingerprints agree take batches from one queue, and a device that is lost leaves its batch to them.
    When all devices of a table are lost, the others are finished before the error is raised. Devices of this machine
    take turns; of several with one fingerprint, the first does all.
    """
    if not devices:
        raise UsageError("no device was named", hint="known devices: hwprune devices")
    chosen = [resolve(Target(device, runtime or Target.runtime, batch=batch, threads=threads)) for device in devices]
    names = [target.device for target in chosen]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"device '{twice[0]}' is named twice", hint="give each device once")
    for target in chosen:
        check(target)
    network, example, name = model_and_example(model, x, data, batch, seed)
    told = one_at_a_time(on_event)
    graph, template = traced_and_exported(network, example, told, protect=protect or ())
    keep = DEFAULTS.min_keep if min_keep is None else min_keep
    probing = {target.device: threading.Lock() for target in map(measured_as, chosen)}
    task = _Task(graph, template, name, Path(tables), keep, parse_tile(tile), depth, samples, seed, told, stop, probing)
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
    """All boards, in the order of the targets; when one cannot be opened, the others are closed, its error raised."""
    with contextlib.ExitStack() as stack:
        opening = in_turns(connect, targets, [_is_here(target) for target in targets])
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


def in_turns(work: Callable[[U], T], items: Sequence[U], here: Sequence[bool]) -> list[Future[T]]:
    """`work` done for every item, in threads: at the same time, except for those that are `here`, one after another."""
    with ThreadPoolExecutor(1) as turns, ThreadPoolExecutor(len(items)) as together:
        return [(turns if alone else together).submit(work, item) for item, alone in zip(items, here, strict=True)]


def _is_here(target: Target) -> bool:
    """Whether this machine's hardware is timed, which nothing else may use meanwhile."""
    return target.runtime != "simulated" and find_device(target.device).connection.kind == "local"


def _is_alone(board: AbstractBoard) -> bool:
    """`_is_here` of an open board."""
    return not board.simulated and not board.distant


def _profiled(groups: list[list[AbstractBoard]], task: _Task) -> tuple[LatencyTable, ...]:
    running = in_turns(lambda group: _filled(group, task), groups, [any(map(_is_alone, group)) for group in groups])
    errors = [done.exception() for done in running]
    known = [error for error in errors if isinstance(error, HwpruneError)]
    for error in known[1:]:
        task.on_event(Caution(error.message, error.hint))
    return tuple(done.result() for done in running)


def _filled(group: list[AbstractBoard], task: _Task) -> LatencyTable:
    """The table of one fingerprint, profiled."""
    if task.stop():
        raise Interrupted(f"stopped before {group[0].label()} was profiled", hint="the same command goes on from there")
    first, *rest = sorted(group, key=_is_alone, reverse=True)
    idle = [board for board in rest if _is_alone(board)]
    if idle:
        task.on_event(
            Caution(f"{len(idle) + 1} of the devices are this machine ({first.label()}): one measures for all")
        )
    serving = [board for board in group if all(board is not other for other in idle)]
    with task.probing[first.fingerprint.device]:
        table = _table(serving, task)
    _profile(serving, table, task)
    return table


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
    step = model_step(first, task.tables, tile, task.seed, task.on_event)
    table = LatencyTable.obtain(
        task.tables, model_name=task.name, graph=task.graph, space=space, board=first, tile=tile, step=step
    )
    for board in group:
        use_reference(board, table, task.template, seed=task.seed, on_event=task.on_event)
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
