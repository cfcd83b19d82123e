"""How to train (`TrainPlan`) and what came of it (`TrainLog`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hwprune.core.errors import UsageError

Schedule = Literal["onecycle", "cosine", "constant"]
Precision = Literal["fp32", "bf16", "auto"]
LAST_FACTOR = 1e-3  # of the peak learning rate, at the end of a decaying schedule
FIRST_FACTOR = 0.04


@dataclass(frozen=True)
class TrainPlan:
    """A training schedule. SGD with Nesterov momentum; weight decay spares biases and normalisation."""

    epochs: float = field(default=10.0, metadata={"help": "passes over the training data; a fraction is allowed"})
    batch_size: int = field(default=64, metadata={"help": "images a step"})
    lr: float = field(default=0.1, metadata={"help": "peak learning rate"})
    schedule: Schedule = field(default="onecycle", metadata={"help": "onecycle, cosine or constant"})
    warmup: float = field(default=0.3, metadata={"help": "share of the steps in which onecycle rises"})
    momentum: float = field(default=0.9, metadata={"help": "Nesterov momentum"})
    weight_decay: float = field(default=5e-4, metadata={"help": "L2 penalty of weight matrices and filters"})
    clip_norm: float = field(default=0.0, metadata={"help": "largest gradient norm; 0: no limit"})
    precision: Precision = field(
        default="fp32", metadata={"help": "fp32, bf16 autocast, or auto: time 3 steps of each"}
    )
    augment: bool = field(default=True, metadata={"help": "use the augmentation of the data"})
    distill_alpha: float = field(default=0.7, metadata={"help": "weight of the teacher's part of the loss"})
    temperature: float = field(default=2.0, metadata={"help": "of the distillation"})
    max_bad_steps: int = field(default=10, metadata={"help": "consecutive non-finite steps before giving up"})
    checkpoint_s: float = field(default=1.0, metadata={"help": "least time between checkpoints; 0: every step"})

    def __post_init__(self) -> None:
        positive = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "temperature": self.temperature,
        }
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise _wrong(name, f"{name}={value} of a training plan must be positive")
        shares = {"warmup": self.warmup, "distill_alpha": self.distill_alpha, "momentum": self.momentum}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise _wrong(name, f"{name}={value} of a training plan must be a share between 0 and 1")

    def lr_factor(self, progress: float) -> float:
        """The learning rate at `progress` (0..1) as a share of the peak."""
        if self.schedule == "constant":
            return 1.0
        warmup = self.warmup if self.schedule == "onecycle" else 0.0
        if progress < warmup:
            return FIRST_FACTOR + (1 - FIRST_FACTOR) * _half_cosine(progress / warmup)
        return 1 - (1 - LAST_FACTOR) * _half_cosine((progress - warmup) / max(1e-9, 1 - warmup))


def _wrong(name: str, message: str) -> UsageError:
    return UsageError(message, hint=f"the default is {name}={getattr(TrainPlan, name):g}")


def _half_cosine(share: float) -> float:
    return (1 - math.cos(math.pi * min(1.0, max(0.0, share)))) / 2


@dataclass(frozen=True)
class TrainLog:
    """What a training did. `image_passes` counts images that went forward and backward, over all resumes."""

    steps: int
    image_passes: int
    skipped_steps: int
    seconds: float
    cpu_seconds: float
    precision: str
    resumed_at: int
    history: tuple[Mapping[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON document with all fields."""
        return {**vars(self), "history": [dict(epoch) for epoch in self.history]}
