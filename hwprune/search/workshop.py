"""What a run works on: the traced network, its search space, the open device, the table and the latency model."""

from __future__ import annotations

import contextlib
import copy
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hwprune.core.errors import UsageError
from hwprune.core.events import Caution, Note, OnEvent, Stop
from hwprune.core.files import read_json, write_json
from hwprune.core.measurement import Measurement, Protocol
from hwprune.core.units import percent
from hwprune.core.widths import Widths
from hwprune.devices import AbstractBoard, check, connect
from hwprune.graph import ChannelGraph, OnnxTemplate
from hwprune.latency.fit import FitReport, fit
from hwprune.latency.models._base import AbstractLatencyModel
from hwprune.latency.plan import PROFILED
from hwprune.latency.profile import profile
from hwprune.latency.table import LatencyTable, TableRow
from hwprune.search.anchor import AnchorWidths
from hwprune.search.drift import DRIFT
from hwprune.search.run_folder import RunFolder
from hwprune.search.settings import SearchSettings
from hwprune.search.subjects import example_of
from hwprune.search.survey import Survey, survey, traced_and_exported
from hwprune.search.tables import keep_model, table_name
from hwprune.training import FINETUNE, ArraySet, Classification, Data, Task, TrainPlan, predict, trainable

SESSIONS = 3
PROFILE_SEED = 0  # a table belongs to the device: runs with other seeds use the networks that are in it
PATIENCE_S = 30.0  # what a run may wait for a quiet machine, all in all; as long as it has worked, if that is more
STEADY = 0.02  # half the width of a 95 % interval, relative; undisturbed sessions stop at half of that
FIT_MAPE, FIT_WRONG_SIGN, FIT_COSINE = 0.05, 0.02, 0.9  # held out; what a latency model should reach to be steered by
QUIETER = "measure when the machine is quiet: hwprune doctor"


@dataclass(kw_only=True)
class Workbench:
    """A run's network, its data, and the open device: enough to finetune, export and measure.

    `budget_ms` is fixed once a run, when the dense network is measured for it; from then on the `anchor`, if there is
    one, is timed with every network, and latencies are in the milliseconds of that moment. `dense_score` is that of
    the test split, None before anyone needed it. `waited_s` went into sessions that repeated a disturbed one.
    """

    folder: RunFolder
    model: nn.Module
    data: Data
    task: Task
    graph: ChannelGraph
    template: OnnxTemplate
    board: AbstractBoard
    stop: Stop
    budget_ms: float = math.inf
    anchor: AnchorWidths | None = None
    dense_score: float | None = None
    waited_s: float = 0.0

    @property
    def settings(self) -> SearchSettings:
        """The options of the run."""
        return self.folder.settings

    def plan(self, epochs: float) -> TrainPlan:
        """How the search and the finetuning train, for so many epochs."""
        return training_plan(self.settings, epochs)

    def measure(
        self, models: dict[str, bytes], *, seed: int, decides: bool = False, beside: AnchorWidths | None = None
    ) -> dict[str, Measurement]:
        """Time networks in turns in one session; at length where that decides something for good.

        Others on the machine slow it for minutes and the interval shows it: a session in which one of the networks
        scatters is repeated as long as the run has `patience`. The steadiest is taken; with an anchor, which slows
        alike, all of them together. `beside` takes the place of the run's anchor.
        """
        anchor = beside or self.anchor
        protocol = Protocol.verdict() if decides else Protocol.default()
        best: dict[str, Measurement] = {}
        least = scatter = math.inf
        sessions = 0
        while least > STEADY and (sessions < SESSIONS or self.patience_s > 0):
            if sessions:
                self.folder.emit(Note(f"the interval is +-{percent(scatter)}: measuring again"))
            began_s = self.folder.elapsed_s
            timed = self._timed(models, protocol, seed + sessions, anchor)
            if anchor and best:
                timed = {name: best[name].joined(measured) for name, measured in timed.items()}
            scatter = max(found.scatter for found in timed.values())
            if sessions:
                self.waited_s += self.folder.elapsed_s - began_s
            sessions += 1
            if anchor or scatter < least:
                best, least = timed, scatter
        if least > STEADY:
            self.folder.emit(Caution(f"{sessions} sessions scattered by +-{percent(least)} and more", QUIETER))
        return best

    def in_turns(self, models: dict[str, bytes], protocol: Protocol, *, seed: int) -> dict[str, Measurement]:
        """One session, in the milliseconds of when the budget was fixed."""
        return self._timed(models, protocol, seed, self.anchor)

    def _timed(
        self, models: dict[str, bytes], protocol: Protocol, seed: int, anchor: AnchorWidths | None
    ) -> dict[str, Measurement]:
        unit = anchor.network(self.template) if anchor else None
        return self.board.measure(models, protocol=protocol, seed=seed, anchor=unit, on_event=self.folder.emit)

    @property
    def patience_s(self) -> float:
        """How much longer the run may repeat disturbed sessions; to finetune a network in vain costs more."""
        return max(PATIENCE_S, self.folder.elapsed_s - self.waited_s) - self.waited_s


@dataclass(kw_only=True)
class Workshop(Workbench):
    """Everything the stages of a search share. `latency` is replaced whenever a measurement teaches it something.

    `profiled_rows` is how many rows of the profile the table had when this run began to learn from it; `pace` how many
    times as long as in that profile the run's anchor takes.
    """

    table: LatencyTable
    profiled_rows: int
    latency: AbstractLatencyModel
    report: FitReport
    pace: float = 1.0

    def record(self, widths: Widths, measured: Measurement) -> None:
        """Add a measured network to the table, unless its engine ran in another way than the table's networks."""
        if measured.fingerprint == self.table.fingerprint:
            measured = replace(measured, reference_ms=measured.reference_ms / self.units)
            row = TableRow.of(widths.values_tuple(), measured, kind="search", session=self.session)
            self.table.append(row, fingerprint=measured.fingerprint)

    def learn(self, widths: Widths, measured: Measurement) -> None:
        """Add a measured network to the table and fit the latency model again."""
        self.record(widths, measured)
        self.refit()

    def refit(self) -> None:
        """Fit the latency model on the profile and on what this run has measured.

        Not on what other runs leave in the table: a run must not depend on which ones come before or beside it. The
        model speaks in the milliseconds of the run, which may not be the table's: the profile is of another hour.
        """
        samples = self.table.samples(kinds=PROFILED, first=self.profiled_rows).scaled(self.units * self.pace)
        if self.table.good_rows(kinds=(), session=self.session):
            samples = samples.joined(self.table.samples(kinds=(), session=self.session).scaled(self.units))
        self.latency = type(self.latency)(**self.latency.options()).fit(samples, seed=self.settings.seed)

    @property
    def units(self) -> float:
        """What a millisecond of the table is in those of the run."""
        return self.board.reference_ms / self.table.reference_ms

    @property
    def session(self) -> str:
        """The name of this run's own rows in the latency table."""
        return f"search-{self.folder.path.name}-{self.folder.run_id}"


def training_plan(settings: SearchSettings, epochs: float) -> TrainPlan:
    """The recipe of finetuning with the run's learning rate and batch size."""
    return replace(
        FINETUNE,
        epochs=epochs,
        lr=settings.lr,
        batch_size=settings.batch_size,
        precision=settings.train_precision,
    )


def example_input(data: Data, batch: int) -> Tensor:
    """A batch `(batch, C, H, W)` in the range of normalised images, the same every time."""
    return example_of(data.input_shape, batch)


def survey_of(
    settings: SearchSettings, model: nn.Module, data: Data, tables: Path, on_event: OnEvent
) -> contextlib.AbstractContextManager[Survey]:
    """The survey of a run's network on its target."""
    return survey(
        model,
        example_input(data, settings.batch),
        name=table_name(settings.model),
        target=settings.target,
        tables=tables,
        min_keep=settings.min_keep,
        depth=settings.depth,
        protect=settings.protect,
        tile=settings.tile,
        seed=settings.seed,
        on_event=on_event,
    )


@contextlib.contextmanager
def open_workshop(
    folder: RunFolder,
    *,
    model: nn.Module,
    data: Data,
    task: Task,
    tables: Path,
    stop: Stop,
    table_ms: bool = False,
) -> Iterator[Workshop]:
    """Trace, open the device, profile and fit; nothing is trained yet.

    `table_ms`: a budget in milliseconds is one in those of the latency table, not of today's machine. Raises
    `GraphError` for a model that cannot be traced, `DeviceError` for a device that cannot be measured.
    """
    with survey_of(folder.settings, model, data, tables, folder.emit) as found:
        check_outputs(model, data, task, folder.emit)
        check_training(model, data, folder.settings.batch_size)
        table = folder.stage("profile", lambda: _profiled(found, folder, stop))
        rows = _profiled_rows(folder, table)
        report = folder.stage("fit", lambda: _fitted(folder, table, rows))
        judge_fit(report, folder.emit)
        keep_model(table, report.model)
        found.board.reference_ms = _reference_ms(folder, found, table_ms=table_ms)
        write_environment(folder, found.board, data)
        shop = Workshop(
            folder=folder,
            model=model,
            data=data,
            task=task,
            graph=found.graph,
            template=found.template,
            board=found.board,
            stop=stop,
            table=table,
            profiled_rows=rows,
            latency=report.model,
            report=report,
        )
        if found.board.reference_ms != table.reference_ms:
            shop.refit()
        yield shop


@contextlib.contextmanager
def open_workbench(
    folder: RunFolder, *, model: nn.Module, data: Data, task: Task, reference_ms: float | None, stop: Stop
) -> Iterator[Workbench]:
    """Trace and open the device, its milliseconds those of `reference_ms`; no latency table is needed.

    Raises `GraphError` for a model that cannot be traced, `DeviceError` for a device that cannot be measured.
    """
    settings = folder.settings
    check(settings.target)
    example = example_input(data, settings.batch)
    graph, template = traced_and_exported(model, example, folder.emit, protect=settings.protect)
    with connect(settings.target, reference_ms=reference_ms) as board:
        yield Workbench(
            folder=folder, model=model, data=data, task=task, graph=graph, template=template, board=board, stop=stop
        )


def _profiled(found: Survey, folder: RunFolder, stop: Stop) -> LatencyTable:
    settings = folder.settings
    return profile(
        found.template,
        found.graph,
        found.space,
        found.board,
        table=found.table,
        samples=settings.samples,
        seed=PROFILE_SEED,
        on_event=folder.emit,
        stop=stop,
    )


def _reference_ms(folder: RunFolder, found: Survey, *, table_ms: bool) -> float:
    """The reference kernel's time behind all milliseconds of a run, fixed when it begins.

    That of the table, so that runs agree: a budget that is a share of the dense network is measured by the same
    reference as what must meet it. A budget in milliseconds is one in those of today: where the machine has become
    slower for good, those of the table's day would pass a network that is over it.
    """
    path = folder.path / "environment.json"
    if path.exists():
        return float(read_json(path).get("reference_ms", found.table.reference_ms))
    if table_ms or folder.settings.latency_ms is None or abs(found.board.reference_drift) <= DRIFT:
        return found.table.reference_ms
    folder.emit(Note("the budget is one in milliseconds of today: so are all of this run"))
    return found.board.session_reference_ms


def _profiled_rows(folder: RunFolder, table: LatencyTable) -> int:
    """How many rows of the profile the table has; in a resumed run, had: another run may have profiled more since.

    Rows that other searches add do not count: on the disk they stand between those of the profile.
    """
    path = folder.path / "profiled.json"
    if not path.exists():
        write_json(path, {"rows": sum(row.kind in PROFILED for row in table.rows)})
    return int(read_json(path)["rows"])


def _fitted(folder: RunFolder, table: LatencyTable, rows: int) -> FitReport:
    seed = folder.settings.seed
    return fit(table, kinds=("lpnet",), seed=seed, rows=PROFILED, first=rows, on_event=folder.emit)


def judge_fit(report: FitReport, on_event: OnEvent) -> None:
    """Say when the latency model steers worse than a gradient search should be steered; measurements still decide."""
    found = report.scores
    wrong_sign = percent(found.wrong_sign, 0)
    doubts = {
        f"errs by {percent(found.mape)} on networks it has not seen": found.mape > FIT_MAPE,
        f"has the wrong sign in {wrong_sign} of the steps of one tile": found.wrong_sign > FIT_WRONG_SIGN,
        f"has slopes at a cosine of {found.cosine:.2f} to the measured ones": found.cosine < FIT_COSINE,
    }
    if any(doubts.values()):
        text = "; ".join(doubt for doubt, holds in doubts.items() if holds)
        on_event(Caution(f"the latency model {text}", hint="a quieter machine or more --samples make a better one"))


def check_outputs(model: nn.Module, data: Data, task: Task, on_event: OnEvent) -> None:
    """Raise `UsageError` for a network whose outputs the task cannot score, before anything is measured or trained."""
    targets = data.val.targets
    largest = int(targets.argmax()) if data.classes and targets.ndim == 1 else 0
    few = replace(data, val=ArraySet(data.val.images[[0, largest]], targets[[0, largest]]))
    outputs = predict(model, few, "val")
    task.check(outputs, few.val.targets)
    task.scores(outputs, few.val.targets)
    if isinstance(task, Classification) and outputs.shape[1] > data.classes:
        on_event(
            Caution(
                f"the network has {outputs.shape[1]} outputs for the {data.classes} classes of {data.name}",
                hint="a last layer for these classes is smaller; a FUNCTION with a parameter `classes` is told them",
            )
        )


def check_training(model: nn.Module, data: Data, batch_size: int) -> None:
    """Raise `UsageError` for a network that cannot be trained as it is, before anything is measured."""
    trainable(model)
    images = data.normalise(data.train.images[: min(2, batch_size)])
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            outputs = copy.deepcopy(model).train()(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            f"a batch of {len(images)} is too small for the network's batch norms",
            hint="use a larger --batch-size",
        ) from error
    if not isinstance(outputs, Tensor):
        raise UsageError(
            f"in training mode the network returns a {type(outputs).__name__}, not one tensor",
            hint="switch auxiliary outputs off (aux_logits=False in torchvision), in a FUNCTION that makes the network",
        )


def write_environment(folder: RunFolder, board: AbstractBoard, data: Data) -> None:
    """Keep on what the run's latencies were measured and what its network reads: `environment.json`."""
    from hwprune import __version__

    facts = {
        "hwprune": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "threads_training": torch.get_num_threads(),
        "reference_ms": board.reference_ms,
        "classes": data.classes,
        "input_shape": list(data.input_shape),
        **{f"fingerprint.{key}": value for key, value in board.fingerprint.to_json().items()},
    }
    write_json(folder.path / "environment.json", facts)
