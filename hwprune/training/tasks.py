"""What a network is trained for: its loss, its score, and how it follows a teacher."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwprune.core.errors import DataError, UsageError
from hwprune.training.data import Data, Split

BATCH, BATCH_VALUES = 256, 256 * 3 * 96 * 96  # images, and input values, that are evaluated at once


class Task(ABC):
    """Loss and score of network outputs. Outputs are float32; a larger score is better."""

    score_name: ClassVar[str]

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean training loss of a batch, a scalar."""

    @abstractmethod
    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """One score an example, `(N,)`; their mean is the score of a split."""

    @abstractmethod
    def distance(self, outputs: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
        """How far outputs are from a teacher's, one number an example, `(N,)`, 0 when equal."""

    def check(self, outputs: Tensor, targets: Tensor) -> None:  # noqa: B027  (a task may do without)
        """Raise `UsageError` for outputs of a network that is not one for these targets."""

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The mean of `scores`."""
        return float(self.scores(outputs, targets).mean())


@dataclass(frozen=True)
class Classification(Task):
    """Cross-entropy and top-1 accuracy in 0..1; outputs are logits `(N, classes)`, targets labels `(N,)`."""

    score_name: ClassVar[str] = "top-1"
    label_smoothing: float = 0.0

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """One logit for each class, or more."""
        classes = int(targets.max()) + 1
        if outputs.ndim != 2 or outputs.shape[1] < classes:
            raise UsageError(
                f"the network's output has the shape {_shape(outputs)}; {classes} classes need (N, {classes})",
                hint="return the logits as one tensor; a FUNCTION with a parameter `classes` is told their number",
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats."""
        return functional.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1.0 where the largest logit is the label's."""
        return (outputs.argmax(1) == targets).float()

    def distance(self, outputs: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(reference || outputs) in nats at `temperature`, times its square (Hinton et al. 2015, section 2)."""
        student = functional.log_softmax(outputs / temperature, dim=1)
        teacher = functional.log_softmax(reference / temperature, dim=1)
        return (teacher.exp() * (teacher - student)).sum(1) * temperature**2


@dataclass(frozen=True)
class Denoising(Task):
    """Mean squared error and peak signal-to-noise ratio in dB; outputs and targets `(N, C, H, W)` on a scale 0..1."""

    score_name: ClassVar[str] = "PSNR (dB)"

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """An image of the targets' shape."""
        if outputs.shape != targets.shape:
            raise UsageError(
                f"the network's output has the shape {_shape(outputs)}, the clean images {_shape(targets)}",
                hint="return the image as one tensor of the input's size; other targets need task= in Python",
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error."""
        return functional.mse_loss(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """PSNR in dB, at most 100."""
        return -10 * torch.log10(self.distance(outputs, targets).clamp(min=1e-10))

    def distance(self, outputs: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
        """Mean squared difference; there is no temperature here."""
        return (outputs - reference).square().flatten(1).mean(1)


def task_for(data: Data) -> Task:
    """What a network is trained for on this data, unless its user says otherwise: classes, or clean images."""
    if data.classes:
        return Classification()
    if data.train.targets.shape[1:] != data.train.images.shape[1:]:
        raise DataError(
            f"targets of {data.name} are floating and of shape {tuple(data.train.targets.shape)}: neither classes nor"
            " clean images",
            hint="store the number of each image's class as an integer, from 0; in Python, pass task=",
        )
    least, most = (float(value) for value in data.val.targets.aminmax())
    if least < -1 or most > 2:
        raise DataError(
            f"targets of {data.name} reach from {least:g} to {most:g}; the score is that of images on a scale 0..1",
            hint="divide them by 255; in Python, pass task= for another score",
        )
    return Denoising()


def _shape(outputs: Tensor) -> str:
    return f"({', '.join(['N', *map(str, outputs.shape[1:])])})"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A network on one split. `kl` (nats) is the mean distance to reference outputs, None without them.

    `scores` `(N,)` allows paired comparisons of two networks on the same images.
    """

    score: float
    loss: float
    scores: Tensor
    kl: float | None = None


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, each module back in its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def predict(model: nn.Module, data: Data, split: Split = "val", *, batch_size: int | None = None) -> Tensor:
    """The outputs on a split in stored order, float32 `(N, ...)`, in evaluation mode, without augmentation.

    Batches of 256 by default, smaller ones of large images.
    """
    if batch_size is None:
        batch_size = max(1, min(BATCH, BATCH_VALUES // math.prod(data.input_shape)))
    device = next(model.parameters()).device
    with eval_mode(model):
        batches = data.batches(split, batch_size)
        return torch.cat([one_tensor(model(images.to(device))).float().cpu() for images, _ in batches])


def one_tensor(outputs: object) -> Tensor:
    """What a network returned, if it is one tensor; else `UsageError`."""
    if not isinstance(outputs, Tensor):
        raise UsageError(
            f"the network returns a {type(outputs).__name__}, not one tensor",
            hint="wrap it in a module whose forward returns the tensor that is to be scored",
        )
    return outputs


def evaluate(
    model: nn.Module,
    data: Data,
    split: Split = "val",
    *,
    task: Task | None = None,
    reference: Tensor | None = None,
    batch_size: int | None = None,
) -> Evaluation:
    """Score, loss and per-example scores on a split; with `reference` (outputs of another network) also the KL."""
    task = task or task_for(data)
    outputs = predict(model, data, split, batch_size=batch_size)
    targets = data.split(split).targets
    task.check(outputs, targets)
    scores = task.scores(outputs, targets)
    kl = None if reference is None else float(task.distance(outputs, reference).mean())
    return Evaluation(float(scores.mean()), float(task.loss(outputs, targets)), scores, kl)
