"""The loop: resumed equals uninterrupted bit for bit, faults are survived or named, counts are right."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from hwprune.core.errors import Interrupted, RunError, TrainingDiverged, UsageError
from hwprune.core.events import Caution, EpochDone, Event, Note, Progress, never
from hwprune.testing.toys import toy_data, toy_network
from hwprune.training import AbstractTrainee, Classification, Data, ModelTrainee, TrainPlan, train

PLAN = TrainPlan(epochs=3, batch_size=16, lr=0.1, checkpoint_s=0)  # 6 steps an epoch, 18 in all


class Killed(Exception):
    """Stands for a process that ends between two steps without saving."""


def _state_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _run(data: Data, folder: Path | None = None, *, kill_at: int = 0, plan: TrainPlan = PLAN, **options: object) -> str:
    model = toy_network()
    calls = iter(range(1, 1000))

    def stop() -> bool:
        if next(calls) == kill_at:
            raise Killed
        return False

    train(ModelTrainee(model, Classification(), plan), data, plan=plan, checkpoint=folder, stop=stop, **options)
    return _state_hash(model)


@pytest.mark.parametrize("kills", [(1,), (2,), (6,), (7,), (17,), (18,), (3, 5, 1, 1, 4)])
def test_a_killed_training_ends_as_an_uninterrupted_one(data: Data, tmp_path: Path, kills: tuple[int, ...]) -> None:
    for kill_at in kills:
        with pytest.raises(Killed):
            _run(data, tmp_path, kill_at=kill_at)
    assert _run(data, tmp_path) == _run(data)


def test_an_interrupted_training_saves_and_goes_on(data: Data, tmp_path: Path) -> None:
    plan = replace(PLAN, checkpoint_s=1000.0)
    steps = iter(range(1, 100))
    trainee = ModelTrainee(toy_network(), Classification(), plan)
    with pytest.raises(Interrupted, match="stopped after step 4 of 18") as caught:
        train(trainee, data, plan=plan, checkpoint=tmp_path, stop=lambda: next(steps) == 4)
    assert caught.value.exit_code == 130
    model, events = toy_network(), []
    trainee = ModelTrainee(model, Classification(), plan)
    log = train(trainee, data, plan=plan, checkpoint=tmp_path, on_event=events.append)
    assert log.resumed_at == 4
    assert Note("train: going on after step 4 of 18") in events
    assert _state_hash(model) == _run(data)


def test_a_finished_training_is_not_repeated(data: Data, tmp_path: Path) -> None:
    expected = _run(data, tmp_path)
    assert _run(data, tmp_path, kill_at=1) == expected


SCRIPT = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from hwprune.testing.toys import toy_data, toy_network
from hwprune.training import Classification, ModelTrainee, TrainPlan, train
torch.set_num_threads(1)
plan = TrainPlan(epochs=int(sys.argv[3]), batch_size=16, lr=0.1, checkpoint_s=0)
model = toy_network()
def stop():
    print("step", flush=True)
    return False
train(ModelTrainee(model, Classification(), plan), toy_data(), plan=plan, checkpoint=Path(sys.argv[1]), stop=stop)
save_file(model.state_dict(), sys.argv[2])
"""


def _kill_after(command: list[str], steps: int, delay_s: float) -> None:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(steps):
        assert process.stdout.readline() == "step\n"
    time.sleep(delay_s)
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(("kills", "epochs"), [(1, 5), pytest.param(8, 50, marks=pytest.mark.slow)])
def test_kill_9_loses_at_most_the_step_in_flight(tmp_path: Path, kills: int, epochs: int) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), str(tmp_path / "w.safetensors"), str(epochs)]
    for kill in range(kills):
        _kill_after(command, 7 + 11 * kill % 17, 0.0013 * (kill * 7 % 5))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("step") <= 6 * epochs - 7 * kills + kills
    plan = TrainPlan(epochs=epochs, batch_size=16, lr=0.1)
    model = toy_network()
    train(ModelTrainee(model, Classification(), plan), toy_data(), plan=plan)
    resumed = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(value, resumed[key]) for key, value in model.state_dict().items())


def test_a_damaged_checkpoint_is_passed_over(data: Data, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        _run(data, tmp_path, kill_at=9)
    generations = sorted(tmp_path.glob("step-*"))
    assert [path.name for path in generations] == ["step-000000007.safetensors", "step-000000008.safetensors"]
    content = bytearray(generations[1].read_bytes())
    content[-3] ^= 1
    generations[1].write_bytes(bytes(content))
    events: list[Event] = []
    assert _run(data, tmp_path, on_event=events.append) == _run(data)
    assert Caution(f"{generations[1]} is damaged and was passed over") in events
    assert Note("train: going on after step 7 of 18") in events


def test_another_trainings_checkpoint_is_refused(data: Data, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        _run(data, tmp_path, kill_at=4)
    with pytest.raises(RunError, match=r"another training: lr: 0\.1 there, 0\.2 now"):
        _run(data, tmp_path, plan=replace(PLAN, lr=0.2))
    with pytest.raises(RunError, match="seed: 0 there, 1 now"):
        _run(data, tmp_path, seed=1)
    with pytest.raises(RunError, match="data: "):
        _run(toy_data(count=80), tmp_path)


def test_another_number_of_threads_is_said(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        _run(data, tmp_path, kill_at=4)
    events: list[Event] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    _run(data, tmp_path, on_event=events.append)
    cautions = [event for event in events if isinstance(event, Caution)]
    assert "began with 1 threads and goes on with 5" in cautions[0].text
    assert cautions[0].hint == "set OMP_NUM_THREADS=1 to repeat it exactly"


def test_the_seed_alone_decides(data: Data) -> None:
    torch.manual_seed(1)
    first = _run(data)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert _run(data) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert _run(data, seed=1) != first


class Faulty(AbstractTrainee):
    """An ordinary trainee whose loss is not finite at some steps."""

    def __init__(self, model: nn.Module, plan: TrainPlan, bad: set[int], value: float) -> None:
        self.inner = ModelTrainee(model, Classification(), plan)
        self.bad, self.value, self.calls = bad, value, 0
        self.after: list[str] = []

    def modules(self) -> tuple[nn.Module, ...]:
        return (self.inner.model,)

    def optimizers(self) -> tuple[Optimizer, ...]:
        return tuple(self.inner.optimizers())

    def loss(self, images: Tensor, targets: Tensor, progress: float) -> Tensor:
        self.calls += 1
        self.after.append(_state_hash(self.inner.model))
        bad = self.calls in self.bad
        loss = self.inner.loss(images * math.inf if bad else images, targets, progress)
        return loss * self.value if bad else loss

    def state(self) -> dict[str, Tensor]:
        return self.inner.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.inner.load_state(state)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_step_leaves_no_trace(data: Data, value: float) -> None:
    model, events = toy_network(), []
    trainee = Faulty(model, PLAN, {4, 5, 9}, value)
    log = train(trainee, data, plan=PLAN, on_event=events.append)
    assert log.skipped_steps == 3
    assert trainee.after[3] == trainee.after[4] == trainee.after[5]
    assert trainee.after[5] != trainee.after[6]
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert all(math.isfinite(epoch["loss"]) for epoch in log.history)
    cautions = [event.text for event in events if isinstance(event, Caution)]
    assert cautions == [f"step {step} of train had a non-finite loss and was skipped" for step in (4, 9)]


def test_a_diverged_training_says_what_to_do(data: Data) -> None:
    plan = replace(PLAN, max_bad_steps=3)
    trainee = Faulty(toy_network(), plan, set(range(5, 100)), math.nan)
    with pytest.raises(
        TrainingDiverged, match="not finite in 4 steps in a row, up to step 8 of 18; the last"
    ) as caught:
        train(trainee, data, plan=plan)
    assert "the last finite loss was " in caught.value.message
    assert caught.value.hint == "lower --lr (now 0.1)"


def test_an_absurd_learning_rate_diverges_cleanly(data: Data) -> None:
    plan = TrainPlan(epochs=20, batch_size=16, lr=1e30, schedule="constant", max_bad_steps=2)
    with pytest.raises(TrainingDiverged):
        train(ModelTrainee(toy_network(), Classification(), plan), data, plan=plan)


def test_image_passes_epochs_and_events(data: Data) -> None:
    plan = TrainPlan(epochs=2.5, batch_size=36)  # 2 steps an epoch (the last 24 of 96 images wait), 5 in all
    events: list[Event] = []
    model = toy_network()
    trainee = ModelTrainee(model, Classification(), plan)
    log = train(trainee, data, plan=plan, on_event=events.append, stage="dense", evaluate=lambda: {"val_score": 0.5})
    assert (log.steps, log.image_passes, len(log.history)) == (5, 180, 3)
    epochs = [event for event in events if isinstance(event, EpochDone)]
    assert [(event.epoch, event.epochs, event.metrics["val_score"]) for event in epochs] == [
        (i, 3, 0.5) for i in (1, 2, 3)
    ]
    final = [event for event in events if isinstance(event, Progress)][-1]
    assert (final.stage, final.done, final.total, final.remaining_s) == ("dense", 5, 5, 0.0)
    assert log.to_json()["history"][2]["loss"] == log.history[-1]["loss"]


def test_a_small_data_set_is_one_batch() -> None:
    plan = TrainPlan(epochs=2, batch_size=64)
    log = train(ModelTrainee(toy_network(), Classification(), plan), toy_data(count=10), plan=plan)
    assert (log.steps, log.image_passes) == (2, 20)


def test_training_learns(data: Data) -> None:
    plan = TrainPlan(epochs=20, batch_size=16, lr=0.1)
    log = train(ModelTrainee(toy_network(), Classification(), plan), data, plan=plan)
    assert log.history[0]["loss"] > 1.0
    assert log.history[-1]["loss"] < 0.6


def test_layout_and_modes_are_put_back(data: Data) -> None:
    model = toy_network().eval()
    model[5].train()
    train(ModelTrainee(model, Classification(), PLAN), data, plan=PLAN)
    assert [module.training for module in model] == [False] * 5 + [True, False]
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    save_file(model.state_dict(), os.devnull)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_schedules(schedule: str) -> None:
    plan = TrainPlan(schedule=schedule, warmup=0.25)  # type: ignore[arg-type]
    factors = [plan.lr_factor(step / 100) for step in range(101)]
    peak = {"onecycle": 25, "cosine": 0, "constant": 0}[schedule]
    assert factors[peak] == max(factors) == pytest.approx(1.0)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == (1.0 if schedule == "constant" else pytest.approx(1e-3))


class Recording(AbstractTrainee):
    """One scalar weight with its own AdamW; writes down the rates it was stepped with, and the sums of its images."""

    def __init__(self, plan: TrainPlan) -> None:
        self.net = nn.Linear(1, 1)
        self.own = nn.Parameter(torch.zeros(1))
        groups = [{"params": self.net.parameters()}, {"params": [self.own], "lr": 0.5, "scheduled": False}]
        self.optimizer = AdamW(groups, lr=plan.lr, betas=(0.5, 0.99))
        self.rates: list[tuple[float, ...]] = []
        self.seen: list[Tensor] = []

    def modules(self) -> tuple[nn.Module, ...]:
        return (self.net,)

    def optimizers(self) -> tuple[Optimizer, ...]:
        return (self.optimizer,)

    def loss(self, images: Tensor, targets: Tensor, progress: float) -> Tensor:
        self.seen.append(images.sum((1, 2, 3)))
        return (self.net(images.mean((1, 2, 3))[:, None])[:, 0] - targets).square().mean() + self.own.square().sum()

    def after_step(self, progress: float) -> Mapping[str, float]:
        self.rates.append(tuple(group["lr"] for group in self.optimizer.param_groups))
        return {"progress": progress}

    def state(self) -> dict[str, Tensor]:
        return {**self.net.state_dict(), "own": self.own.detach()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.net.load_state_dict({key: state[key] for key in ("weight", "bias")})
        with torch.no_grad():
            self.own.copy_(state["own"])


def test_a_group_may_keep_its_own_rate_and_adam_resumes(data: Data, tmp_path: Path) -> None:
    def run(folder: Path | None, stop_at: int) -> Recording:
        torch.manual_seed(0)
        trainee, steps = Recording(PLAN), iter(range(1, 100))
        try:
            train(trainee, data, plan=PLAN, checkpoint=folder, stop=lambda: next(steps) == stop_at)
        except Interrupted:
            return run(folder, 0)
        return trainee

    whole, resumed = run(None, 0), run(tmp_path, 5)
    assert len(resumed.rates) == 13
    assert whole.rates[5:] == resumed.rates
    assert {rates[1] for rates in whole.rates} == {0.5}
    assert [rates[0] for rates in whole.rates] == [0.1 * PLAN.lr_factor(step / 18) for step in range(18)]
    assert all(torch.equal(value, resumed.state()[key]) for key, value in whole.state().items())


def test_an_epoch_takes_every_image_once(data: Data) -> None:
    plan = replace(PLAN, epochs=1, augment=False)
    trainee = Recording(plan)
    train(trainee, data, plan=plan)
    images, _ = data.batch("train", torch.arange(96))
    assert torch.allclose(torch.cat(trainee.seen).sort().values, images.sum((1, 2, 3)).sort().values, atol=1e-4)


def test_auto_precision_times_without_a_trace(data: Data) -> None:
    plan, events = replace(PLAN, precision="auto"), []
    model = toy_network()
    log = train(ModelTrainee(model, Classification(), plan), data, plan=plan, on_event=events.append)
    assert log.precision in ("fp32", "bf16")
    assert _state_hash(model) == _run(data, plan=replace(PLAN, precision=log.precision))  # type: ignore[arg-type]
    assert any(isinstance(event, Note) and f"training in {log.precision}" in event.text for event in events)


def test_gradients_are_clipped(data: Data) -> None:
    plan = TrainPlan(
        epochs=1, batch_size=96, lr=1.0, schedule="constant", momentum=0.0, weight_decay=0.0, clip_norm=1e-3
    )
    model = toy_network()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    train(ModelTrainee(model, Classification(), plan), data, plan=plan)
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("lr", math.nan), ("batch_size", -1), ("warmup", 1.5)])
def test_a_plan_is_checked(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name}={value} of a training plan"):
        TrainPlan(**{name: value})  # type: ignore[arg-type]


def test_nobody_stops_by_default() -> None:
    assert never() is False


class _Volume(nn.Module):
    """Filters of three dimensions, and complex numbers among the buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.head = nn.Conv3d(1, 2, 3, padding=1), nn.Linear(2, 4)
        self.register_buffer("phases", torch.exp(1j * torch.linspace(0, 3, 6)).to(torch.complex64))

    def forward(self, images: Tensor) -> Tensor:
        features = self.filters(images[:, None]).mean((2, 3))
        logits: Tensor = self.head((features * self.phases).real.mean(-1))
        return logits


def test_filters_of_three_dimensions_and_complex_buffers(data: Data, tmp_path: Path) -> None:
    """Resumed as it would have ended."""

    def run(folder: Path | None, stop: Callable[[], bool] = never) -> nn.Module:
        torch.manual_seed(0)
        model = _Volume()
        train(ModelTrainee(model, Classification(), PLAN), data, plan=PLAN, checkpoint=folder, stop=stop)
        return model

    steps = iter(range(1, 100))
    with pytest.raises(Interrupted):
        run(tmp_path, lambda: next(steps) == 7)
    whole, resumed = run(None).state_dict(), run(tmp_path).state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
