"""The two ordinary trainings: a dense network from scratch, and a pruned one after its dense teacher."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hwprune.core.events import OnEvent, Stop, ignore, never
from hwprune.training._best import BestState
from hwprune.training._plan import TrainLog, TrainPlan
from hwprune.training._trainee import ModelTrainee
from hwprune.training.data import Data
from hwprune.training.loop import train
from hwprune.training.tasks import Task, evaluate, task_for

# After surgery most of the knowledge is still there. A small rate that only falls guides the weights back; a warm-up to
# twice that rate forgets first: KL 0.31 instead of 0.13 after an epoch (EfficientNet-Lite0 at 45 %; the log of methods
# in benchmarks/).
# Without normalisation layers a step can throw the weights away; a norm of 5 hardly binds where there are some, and 1
# would (benchmarks/LOG.md).
FINETUNE = TrainPlan(epochs=2, batch_size=64, lr=0.01, schedule="cosine", weight_decay=1e-4, clip_norm=5.0)


def train_dense(
    model: nn.Module,
    data: Data,
    *,
    task: Task | None = None,
    plan: TrainPlan | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_event: OnEvent = ignore,
    stop: Stop = never,
) -> TrainLog:
    """Train `model` in place on the training split; the score on `val` is reported after every epoch.

    Where the last state is worse by it than a former one, beyond chance, the model ends in that one, with a `Caution`.
    """
    task, plan = task or task_for(data), plan or TrainPlan()
    trainee = ModelTrainee(model, task, plan)
    return train(
        trainee,
        data,
        plan=plan,
        seed=seed,
        checkpoint=checkpoint,
        on_event=on_event,
        stage="dense",
        stop=stop,
        best=_by_validation(model, data, task),
    )


def finetune(
    small: nn.Module,
    teacher: nn.Module | None,
    data: Data,
    *,
    task: Task | None = None,
    plan: TrainPlan = FINETUNE,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_event: OnEvent = ignore,
    stop: Stop = never,
) -> TrainLog:
    """Train `small` in place, distilling from the dense `teacher` (without one: on the targets alone).

    The teacher's forward passes are not counted as image passes. Where the last state is worse on `val` than a former
    one or the first, beyond chance, `small` ends in that one, with a `Caution`.
    """
    task = task or task_for(data)
    trainee = ModelTrainee(small, task, plan, teacher=teacher)
    return train(
        trainee,
        data,
        plan=plan,
        seed=seed,
        checkpoint=checkpoint,
        on_event=on_event,
        stage="finetune",
        stop=stop,
        best=_by_validation(small, data, task),
    )


def _by_validation(model: nn.Module, data: Data, task: Task) -> BestState:
    return BestState(lambda: evaluate(model, data, "val", task=task).scores)
