"""Fill a latency table: measure planned sub-networks on an open device, batch by batch, and some layer by layer.

No network is exported twice: the template cuts the dense ONNX graph to any widths in milliseconds. The networks of a
batch are interleaved in random order by the device, so a slow drift of the machine does not become a bias. Every row
is on the disk before the next batch begins; the same call continues a table that was interrupted.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from hwprune.core.errors import DeviceError, Interrupted, NetworkUnfit, TableError
from hwprune.core.events import Caution, OnEvent, Progress, Stop, ignore, never
from hwprune.core.files import lock
from hwprune.core.measurement import Measurement, explain
from hwprune.core.widths import SearchSpace, Widths
from hwprune.latency.crew import share_out
from hwprune.latency.deaths import FILE, Deaths
from hwprune.latency.features import restrict
from hwprune.latency.light import light
from hwprune.latency.plan import Kind, plan_widths
from hwprune.latency.samples import LayerSample
from hwprune.latency.table import LatencyTable, TableRow

if TYPE_CHECKING:
    from hwprune.devices import AbstractBoard
    from hwprune.graph import ChannelGraph, OnnxTemplate

BATCH = 5
LAYER_SAMPLES = 10
LAYER_RUNS = 30
REPEATS = 8
ONE_BY_ONE = "the same command goes on, with the networks in hand one at a time"

Planned = tuple[Widths, Kind]


def profile(
    template: OnnxTemplate,
    graph: ChannelGraph,
    space: SearchSpace,
    board: AbstractBoard,
    *,
    table: LatencyTable,
    others: Sequence[AbstractBoard] = (),
    samples: int = 100,
    seed: int = 0,
    on_event: OnEvent = ignore,
    stop: Stop = never,
) -> LatencyTable:
    """Measure what is missing of `samples` planned sub-networks and append it to the table, which is returned.

    After the rows come layer times of the first few networks, then a second measurement of some networks in a new
    session, which is what the label noise is known from. `stop` is asked between batches; when it says True, the
    table is complete up to there and `Interrupted` is raised. `others` are more devices of the same fingerprint: all
    take batches from one queue, and what a lost one had in hand goes to the next. When this process loses its GPU for
    good, or a library crashes, the same call in another process measures what was in hand one by one, and leaves out
    what does it twice. A
    network that ends the process which measures it, cannot be built, is not computed right or runs in another way than
    the device's fingerprint says is left out, with a `Caution`; so is told what an engine warns of, each kind once.
    Raises `TableError` for a table of another network, space or fingerprint, and `NetworkUnfit` when the first network
    cannot be measured either.
    """
    for device in (board, *others):
        table.check(device.fingerprint)
    if table.space.signature() != space.signature():
        hint = (
            "choose the tile and the smallest share of channels that it was measured with, or another folder (--tables)"
        )
        raise TableError(f"the table in {table.folder} was measured for another search space", hint=hint)
    if table.op_templates != restrict(graph.op_templates, space, graph.dense()):
        hint = f"remove {table.folder}, or choose another folder for tables (--tables)"
        raise TableError(f"the table in {table.folder} was measured for another network", hint=hint)
    with lock(table.folder):
        plan = plan_widths(space, samples, seed)
        _Profile(template, (board, *others), table, seed, on_event, stop).run(plan)
    return table


class _Profile:
    """One run of `profile`: what it works with, and the clock behind its estimate of the time left."""

    def __init__(
        self,
        template: OnnxTemplate,
        boards: Sequence[AbstractBoard],
        table: LatencyTable,
        seed: int,
        on_event: OnEvent,
        stop: Callable[[], bool],
    ) -> None:
        self.template = template
        self.boards = boards
        self.table = table
        self.seed = seed
        self.on_event = on_event
        self.stop = stop
        self.lock = threading.RLock()  # held for everything but the measuring itself
        self.told: set[str] = set()
        self.deaths = Deaths(table.folder)
        self.begin_s = time.monotonic()
        self.done = self.fresh = self.total = 0

    def run(self, plan: Sequence[Planned]) -> None:
        """Rows, layer times, repeats: whatever of each is missing."""
        if self.deaths.crash:
            self.on_event(Caution(f"a former process crashed while it measured ({self.deaths.crash})", ONE_BY_ONE))
        with self.deaths.watched():
            self._run(self._without_deadly(plan))

    def _run(self, plan: Sequence[Planned]) -> None:
        have, layered = self.table.measured(), {sample.values for sample in self.table.layer_rows}
        missing = [item for item in plan if item[0] not in have]
        layers = [widths for widths, _ in plan[:LAYER_SAMPLES] if widths.values_tuple() not in layered]
        repeats = self._missing_repeats(plan)
        profiled = len(plan[:LAYER_SAMPLES])
        self.total = len(plan) + profiled + len(repeats)
        self.done = len(plan) - len(missing) + profiled - len(layers)
        self.on_event(Progress("profile", self.done, self.total))
        self._measure(missing, _session("profile"))
        self._measure(self._disturbed(plan), _session("profile again"))
        share_out(layers, self.boards, self._profile_layers, self.on_event)
        self._measure(repeats, _session("repeat"))

    def _without_deadly(self, plan: Sequence[Planned]) -> list[Planned]:
        """The plan without the networks at which two processes ended."""
        kept = [item for item in plan if not self.deaths.deadly(item[0])]
        if len(kept) < len(plan):
            text = f"{len(plan) - len(kept)} networks are left out: two processes ended at each"
            self.on_event(Caution(text, f"to try again, remove {self.table.folder / FILE}"))
        return kept

    def _disturbed(self, plan: Sequence[Planned]) -> list[Planned]:
        """The planned networks without any undisturbed row: they get a second chance, once in every run."""
        good = {row.widths for row in self.table.rows if not row.disturbed}
        again = [item for item in plan if item[0].values_tuple() not in good]
        self.total += len(again)
        return again

    def _missing_repeats(self, plan: Sequence[Planned]) -> list[Planned]:
        """The networks to measure a second time: the first ones of the plan that have one session only."""
        sessions: dict[tuple[int, ...], set[str]] = {}
        for row in self.table.good_rows():
            sessions.setdefault(row.widths, set()).add(row.session)
        return [item for item in plan[:REPEATS] if len(sessions.get(item[0].values_tuple(), ())) < 2]

    def _profile_layers(self, board: AbstractBoard, widths: Widths) -> None:
        model = self._model(board, widths)
        try:
            with self._holding([widths]):
                times = board.layers(model, runs=LAYER_RUNS)
        except NetworkUnfit as error:
            self._leave_out(error)
            return
        except DeviceError as error:
            self._bury(error, [widths])
            raise
        with self.lock:
            if times:  # a runtime may have none
                self.table.append_layers(LayerSample(widths.values_tuple(), times), fingerprint=board.fingerprint)
            self._progress(1, "layers")

    def _measure(self, planned: Sequence[Planned], session: str) -> None:
        usual = [item for item in planned if not self.deaths.suspects(item[0])]
        alone = [[item] for item in planned if self.deaths.suspects(item[0])]
        batches = [*_batches(usual, BATCH), *alone]

        def work(board: AbstractBoard, batch: Sequence[Planned]) -> None:
            try:
                self._measure_batch(board, batch, session)
            except NetworkUnfit as error:
                if len(batch) == 1:
                    self._leave_out(error)
                    return
                for item in batch:
                    work(board, [item])
            except DeviceError as error:
                self._bury(error, [widths for widths, _ in batch])
                raise

        share_out(batches, self.boards, work, self.on_event)

    def _bury(self, error: DeviceError, in_hand: Sequence[Widths]) -> None:
        """Remember what was in hand when this process lost its device."""
        if error.ends_process:
            with self.lock:
                self.deaths.note(in_hand)
                self.on_event(Caution(ONE_BY_ONE))

    @contextlib.contextmanager
    def _holding(self, in_hand: Sequence[Widths]) -> Iterator[None]:
        """These networks are on a device now: should the process end with them, the next one knows."""
        with contextlib.ExitStack() as held:
            with self.lock:
                held.enter_context(self.deaths.holding(in_hand))
            yield

    def _measure_batch(self, board: AbstractBoard, batch: Sequence[Planned], session: str) -> None:
        models = {str(place): self._model(board, widths) for place, (widths, _) in enumerate(batch)}
        protocol = self.table.provenance.protocol
        with self._holding([widths for widths, _ in batch]):
            measured = board.measure(models, protocol=protocol, seed=self.seed + self.done)
        place = [id(item) for item in self.boards].index(id(board))
        label = session if len(self.boards) == 1 else f"{session} {place}"
        with self.lock:
            self._tell(note for item in measured.values() for note in item.notes)
            unlike = [item for item in measured.values() if board.fingerprint.differences(item.fingerprint)]
            for (widths, kind), found in zip(batch, measured.values(), strict=True):
                if found in unlike:
                    continue
                row = TableRow.of(widths.values_tuple(), found, kind=kind, session=label)
                self.table.append(row, fingerprint=found.fingerprint)
            for found in unlike:
                self._leave_out(_ran_otherwise(board, found))
            self._progress(len(batch) - len(unlike), f"{measured[str(len(batch) - 1)].latency_ms:.3g} ms")

    def _tell(self, notes: Iterable[str]) -> None:
        """Pass on what engines warn of, once a kind: most networks of a table have it in common."""
        for note in notes:
            name = note.partition(": ")[0]
            if name not in self.told:
                self.told.add(name)
                self.on_event(Caution(explain(note)))

    def _model(self, board: AbstractBoard, widths: Widths) -> bytes:
        """The network at these widths; small where it travels, since for a latency the weights do not matter."""
        with self.lock:
            self._check_stop()
            model = self.template.at_widths(widths)
        return light(model) if board.distant else model

    def _leave_out(self, error: NetworkUnfit) -> None:
        """Go on without one network; but where not even the dense one can be measured, none can."""
        if not self.table.rows:
            raise error
        with self.lock:
            self.on_event(Caution(f"a network is left out of the table: {error.message}"))
            self._progress(1, "left out")

    def _check_stop(self) -> None:
        if self.stop():
            raise Interrupted(
                f"stopped after {self.done} of {self.total} measurements; they are in {self.table.folder}",
                hint="the same command goes on from there",
            )

    def _progress(self, count: int, detail: str) -> None:
        self.done += count
        self.fresh += count
        each_s = (time.monotonic() - self.begin_s) / self.fresh
        self.on_event(Progress("profile", self.done, self.total, each_s * (self.total - self.done), detail))


def _batches(planned: Sequence[Planned], size: int) -> Iterator[Sequence[Planned]]:
    for begin in range(0, len(planned), size):
        yield planned[begin : begin + size]


def _ran_otherwise(board: AbstractBoard, found: Measurement) -> NetworkUnfit:
    """Why an engine that ran in another way than the others is not in their table."""
    differing = "; ".join(board.fingerprint.differences(found.fingerprint))
    hint = "choose options under which all networks run alike, such as graph = false for TensorRT"
    return NetworkUnfit(f"it ran in another way than the table's networks ({differing})", hint=hint)


def _session(name: str) -> str:
    """A label that no other session of this or another process has."""
    return f"{name} {datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='microseconds')}"
