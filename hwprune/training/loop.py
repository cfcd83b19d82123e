"""The one training loop. A batch is a function of (seed, step), so a resumed training repeats an uninterrupted one.

Checkpoints hold the trainee, its optimizers and a few counters; no generator's state is needed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.core.errors import Interrupted, RunError, TrainingDiverged
from hwprune.core.events import Caution, EpochDone, Note, OnEvent, Progress, Stop, ignore, never
from hwprune.training._best import BestState
from hwprune.training._checkpoint import (
    Checkpoint,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from hwprune.training._plan import TrainLog, TrainPlan
from hwprune.training._random import generator, mix
from hwprune.training._trainee import AbstractTrainee, below
from hwprune.training.data import Data

PROGRESS_S = 0.5
CHECKPOINT_SHARE = 0.05  # of the time, at most, goes into writing checkpoints


def train(
    trainee: AbstractTrainee,
    data: Data,
    *,
    plan: TrainPlan,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_event: OnEvent = ignore,
    stage: str = "train",
    stop: Stop = never,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    best: BestState | None = None,
) -> TrainLog:
    """Train in place until the plan is done; the result depends on trainee, data, plan and seed alone.

    With a `checkpoint` folder the same call continues where a killed one was, bit for bit. `stop` is asked after
    every step. `evaluate` is called at the end of every epoch, and its figures are reported. With `best` the trainee
    ends in the best state of the beginning and all epochs' ends, where the last one is worse beyond chance.
    Raises `Interrupted` after saving when `stop` says so, `TrainingDiverged` when loss or gradients stay non-finite
    and `RunError` when the checkpoint belongs to another training.
    """
    return _Loop(trainee, data, plan, seed, checkpoint, on_event, stage, stop, evaluate, best).run()


@dataclass
class _Counters:
    """What of a checkpoint is no tensor; all of it JSON."""

    step: int = 0
    image_passes: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    last_finite_loss: float | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    precision: str = ""
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def add(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if math.isfinite(value):
                self.sums[name] = self.sums.get(name, 0.0) + float(value)
                self.counts[name] = self.counts.get(name, 0) + 1

    def close_epoch(self, extra: Mapping[str, float]) -> dict[str, float]:
        figures = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.history.append({**figures, **{name: value for name, value in extra.items() if math.isfinite(value)}})
        self.sums, self.counts = {}, {}
        return self.history[-1]


class _Loop:
    def __init__(
        self,
        trainee: AbstractTrainee,
        data: Data,
        plan: TrainPlan,
        seed: int,
        folder: Path | None,
        on_event: OnEvent,
        stage: str,
        stop: Stop,
        evaluate: Callable[[], Mapping[str, float]] | None,
        best: BestState | None,
    ) -> None:
        self.trainee, self.data, self.plan, self.seed = trainee, data, plan, seed
        self.folder, self.on_event, self.stage, self.stop, self.evaluate = folder, on_event, stage, stop, evaluate
        self.best = best
        self.batch_size = min(plan.batch_size, len(data.train))
        self.epoch_steps = len(data.train) // self.batch_size
        self.total = max(1, round(plan.epochs * self.epoch_steps))
        self.counters = _Counters()
        groups = [group for optimizer in trainee.optimizers() for group in optimizer.param_groups]
        self.base_lr = [float(group["lr"]) for group in groups]
        self.parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        self.device = self.parameters[0].device
        self.order = (-1, torch.arange(0))
        self.resumed_at = 0
        self.started = self.ticked = self.saved = self.told = time.monotonic()
        self.cpu_ticked = time.process_time()
        self.save_s = 0.0

    def run(self) -> TrainLog:
        with torch.random.fork_rng(devices=[]), _prepared(self.trainee):
            self._resume()
            self._choose_precision()
            if self.best is not None and not self.best.begun:
                self.best.look(self.trainee, 0)
            self.started = self.saved = time.monotonic()
            while self.counters.step < self.total:
                self._step()
                self._keep_house()
            self._take_the_best()
        counters = self.counters
        return TrainLog(
            counters.step,
            counters.image_passes,
            counters.skipped,
            counters.seconds,
            counters.cpu_seconds,
            counters.precision,
            self.resumed_at,
            tuple(counters.history),
        )

    def _step(self) -> None:
        counters, progress = self.counters, self.counters.step / self.total
        torch.manual_seed(mix(self.seed, "step", counters.step))
        indices = self._indices(counters.step)
        random = generator(self.seed, "augment", counters.step) if self.plan.augment else None
        images, targets = self.data.batch("train", indices, random)
        self._set_lr(progress)
        for module in self.trainee.modules():
            module.train()
        buffers = [buffer for module in self.trainee.modules() for buffer in module.buffers()]
        before = [buffer.clone() for buffer in buffers]
        loss = self._backward(images.to(self.device), targets.to(self.device), progress, counters.precision)
        counters.image_passes += len(indices)
        if loss is None:
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
            self._skip()
        else:
            for optimizer in self.trainee.optimizers():
                optimizer.step()
            counters.bad_in_a_row, counters.last_finite_loss = 0, loss
            counters.add({"loss": loss, **self.trainee.after_step(progress)})
        counters.step += 1

    def _backward(self, images: Tensor, targets: Tensor, progress: float, precision: str) -> float | None:
        """Leave gradients behind and give the loss; None when loss or gradients are not finite."""
        for optimizer in self.trainee.optimizers():
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = self.trainee.loss(images, targets, progress)
        value = float(loss.detach())
        if not math.isfinite(value):
            return None
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(float(norm)):
            return None
        if self.plan.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.plan.clip_norm, norm)
        return value

    def _skip(self) -> None:
        counters = self.counters
        counters.skipped += 1
        counters.bad_in_a_row += 1
        if counters.bad_in_a_row == 1:
            self.on_event(Caution(f"step {counters.step + 1} of {self.stage} had a non-finite loss and was skipped"))
        if counters.bad_in_a_row > self.plan.max_bad_steps:
            last = "there was no finite loss before"
            if counters.last_finite_loss is not None:
                last = f"the last finite loss was {counters.last_finite_loss:.4g}"
            raise TrainingDiverged(
                f"{self.stage}: loss or gradients were not finite in {counters.bad_in_a_row} steps in a row, up to "
                f"step {counters.step + 1} of {self.total}; {last}",
                hint=self._calmer(),
            )

    def _calmer(self) -> str:
        """What can be changed from the command line, where the dense network's learning rate is fixed."""
        lower = f"lower --lr (now {self.plan.lr:g})"
        if self.stage == "dense":
            lower = "train the network yourself and give it with --weights"
        return lower if self.counters.precision == "fp32" else f"{lower}, or use --train-precision fp32"

    def _indices(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.epoch_steps)
        if self.order[0] != epoch:
            random = generator(self.seed, "order", epoch)
            self.order = (epoch, torch.randperm(len(self.data.train), generator=random))
        return self.order[1][position * self.batch_size : (position + 1) * self.batch_size]

    def _set_lr(self, progress: float) -> None:
        groups = [group for optimizer in self.trainee.optimizers() for group in optimizer.param_groups]
        for group, base in zip(groups, self.base_lr, strict=True):
            if group.get("scheduled", True):
                group["lr"] = base * self.plan.lr_factor(progress)

    def _keep_house(self) -> None:
        """After a step: end of an epoch, checkpoint, interruption, progress."""
        counters, last = self.counters, self.counters.step == self.total
        if last or counters.step % self.epoch_steps == 0:
            self._close_epoch()
        now, stopping = self._tick(), self.stop()
        if stopping or last or now - self.saved >= max(self.plan.checkpoint_s, self.save_s / CHECKPOINT_SHARE):
            self._save(now)
        if stopping and not last:
            raise Interrupted(
                f"{self.stage} was stopped after step {counters.step} of {self.total}",
                hint="the same command goes on from there" if self.folder else "",
            )
        if now - self.told >= PROGRESS_S or last:
            self.told = now
            pace = (now - self.started) / (counters.step - self.resumed_at)
            self.on_event(Progress(self.stage, counters.step, self.total, pace * (self.total - counters.step)))

    def _close_epoch(self) -> None:
        extra = dict(self.evaluate()) if self.evaluate is not None else {}
        if self.best is not None:
            extra["val_score"] = self.best.look(self.trainee, len(self.counters.history) + 1)
        lr = self.base_lr[0] * self.plan.lr_factor(self.counters.step / self.total)
        figures = self.counters.close_epoch({"lr": lr, **extra})
        epochs = math.ceil(self.total / self.epoch_steps)
        self.on_event(EpochDone(self.stage, len(self.counters.history), epochs, figures))

    def _take_the_best(self) -> None:
        best = self.best
        if best is None or not best.regretted:
            return
        self.trainee.load_state(best.tensors)
        where = f"after epoch {best.epoch}" if best.epoch else "before it"
        text = (
            f"{self.stage} ended with a validation score of {float(best.last.mean()):.4f}, worse than"
            f" {float(best.best.mean()):.4f} {where}: that state is kept"
        )
        self.on_event(Caution(text, hint=self._calmer()))

    def _identity(self) -> dict[str, Any]:
        plan = {key: value for key, value in asdict(self.plan).items() if key != "checkpoint_s"}
        return {"stage": self.stage, "seed": self.seed, "data": self.data.fingerprint, **plan}

    def _save(self, now: float) -> None:
        if self.folder is None:
            return
        tensors = {f"trainee/{name}": tensor for name, tensor in self.trainee.state().items()}
        documents = []
        for number, optimizer in enumerate(self.trainee.optimizers()):
            packed, document = pack_optimizer(optimizer)
            tensors.update({f"optimizer{number}/{name}": tensor for name, tensor in packed.items()})
            documents.append(document)
        if self.best is not None:
            tensors.update({f"best/{name}": tensor for name, tensor in self.best.state().items()})
        document = {
            "identity": self._identity(),
            "threads": torch.get_num_threads(),
            "counters": asdict(self.counters),
            "optimizers": documents,
        }
        save_checkpoint(self.folder, self.counters.step, Checkpoint(tensors, document))
        self.saved = time.monotonic()
        self.save_s = self.saved - now if self.plan.checkpoint_s > 0 else 0.0

    def _tick(self) -> float:
        now, cpu = time.monotonic(), time.process_time()
        self.counters.seconds += now - self.ticked
        self.counters.cpu_seconds += cpu - self.cpu_ticked
        self.ticked, self.cpu_ticked = now, cpu
        return now

    def _resume(self) -> None:
        if self.folder is None:
            return
        checkpoint, damaged = load_checkpoint(self.folder)
        for line in damaged:
            self.on_event(Caution(line))
        if checkpoint is None:
            return
        self._check_identity(checkpoint.document["identity"])
        self._compare_threads(checkpoint.document["threads"])
        self.counters = _Counters(**checkpoint.document["counters"])
        self.resumed_at = self.counters.step
        self.trainee.load_state(below("trainee/", checkpoint.tensors))
        for number, optimizer in enumerate(self.trainee.optimizers()):
            tensors = below(f"optimizer{number}/", checkpoint.tensors)
            unpack_optimizer(optimizer, tensors, checkpoint.document["optimizers"][number])
        if self.best is not None:
            self.best.load_state(below("best/", checkpoint.tensors))
        if self.resumed_at < self.total:
            self.on_event(Note(f"{self.stage}: going on after step {self.resumed_at} of {self.total}"))

    def _check_identity(self, found: Mapping[str, Any]) -> None:
        own = self._identity()
        differing = [f"{key}: {found.get(key)} there, {own[key]} now" for key in own if found.get(key) != own[key]]
        if differing:
            raise RunError(
                f"the checkpoint in {self.folder} belongs to another training: {'; '.join(differing)}",
                hint="go back to the old settings, or choose a new run folder",
            )

    def _compare_threads(self, before: int) -> None:
        now = torch.get_num_threads()
        if before != now:
            text = (
                f"{self.stage} began with {before} threads and goes on with {now}: sums may differ in their last bits"
            )
            self.on_event(Caution(text, hint=f"set OMP_NUM_THREADS={before} to repeat it exactly"))

    def _choose_precision(self) -> None:
        if self.counters.precision:
            return
        if self.plan.precision != "auto":
            self.counters.precision = self.plan.precision
            return
        step_s = {precision: self._time_steps(precision) for precision in ("fp32", "bf16")}
        self.counters.precision = min(step_s, key=step_s.__getitem__)
        times = ", ".join(f"{name} {duration * 1e3:.0f} ms" for name, duration in step_s.items())
        self.on_event(Note(f"{self.stage}: a step takes {times}; training in {self.counters.precision}"))

    def _time_steps(self, precision: str) -> float:
        """The shortest of 3 forward-backward passes after a warm-up, s; the trainee is put back afterwards."""
        state = {name: tensor.clone() for name, tensor in self.trainee.state().items()}
        torch.manual_seed(mix(self.seed, "timing"))
        indices = self._indices(0)
        images, targets = (tensor.to(self.device) for tensor in self.data.batch("train", indices))
        durations = []
        for module in self.trainee.modules():
            module.train()
        for _ in range(4):
            start = time.perf_counter()
            self._backward(images, targets, 0.0, precision)
            durations.append(time.perf_counter() - start)
        self.trainee.load_state(state)
        return min(durations[1:])


@contextmanager
def _prepared(trainee: AbstractTrainee) -> Iterator[None]:
    """Filters in channels-last layout, as the batches are; afterwards layouts and training modes as before."""
    modes = {module: module.training for root in trainee.modules() for module in root.modules()}
    for root in trainee.modules():
        _lay_out(root, torch.channels_last)
    try:
        yield
    finally:
        for root in trainee.modules():
            _lay_out(root, torch.contiguous_format)
        for module, training in modes.items():
            module.training = training


def _lay_out(root: nn.Module, memory_format: torch.memory_format) -> None:
    """What `Module.to` does for a layout, which refuses filters of three dimensions."""
    for tensor in (*root.parameters(), *root.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=memory_format)
