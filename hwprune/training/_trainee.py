"""What the loop drives: the contract, and the ordinary trainee (a model, a task, perhaps a teacher)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from hwprune.core.errors import UsageError
from hwprune.training._plan import TrainPlan
from hwprune.training.tasks import Task, eval_mode, one_tensor


class AbstractTrainee(ABC):
    """Something with parameters that the loop of `train` improves step by step.

    The loop calls `loss` (under autocast where the plan says so), backward, the optimizers, and `after_step`, in
    this order; `progress` runs from 0 to 1. It seeds torch's global generator before every step, so
    random draws inside these calls are resumed exactly. Everything else that must survive a resume is in `state`.
    """

    @abstractmethod
    def modules(self) -> Sequence[nn.Module]:
        """The modules to put into training mode; their buffers are restored when a step is skipped."""

    @abstractmethod
    def optimizers(self) -> Sequence[Optimizer]:
        """The optimizers, the same objects at every call.

        The loop multiplies the first `lr` of each parameter group by the plan's schedule, unless the group has
        `scheduled=False`.
        """

    @abstractmethod
    def loss(self, images: Tensor, targets: Tensor, progress: float) -> Tensor:
        """The scalar loss of a batch of normalised images `(N, C, H, W)`."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Every tensor that a step changes, by name, optimizer states excepted."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over, in place, what `state` gave."""

    def after_step(self, progress: float) -> Mapping[str, float]:
        """Called after the optimizers' step; the figures are averaged over the epoch and reported."""
        return {}


class ModelTrainee(AbstractTrainee):
    """A model trained on a task, with or without a teacher.

    With one, the loss is `mixed_loss`, and the teacher sees each augmented batch.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        plan: TrainPlan,
        *,
        teacher: nn.Module | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.plan = plan
        self.teacher = teacher
        self._optimizer = sgd(model, plan)

    def modules(self) -> Sequence[nn.Module]:
        """The model."""
        return (self.model,)

    def optimizers(self) -> Sequence[Optimizer]:
        """One SGD for the whole model."""
        return (self._optimizer,)

    def loss(self, images: Tensor, targets: Tensor, progress: float) -> Tensor:
        """The task's loss, mixed with the distance to the teacher."""
        outputs, plan = one_tensor(self.model(images)).float(), self.plan
        reference = self._reference(images)
        if reference is None:
            return self.task.loss(outputs, targets)
        return mixed_loss(self.task, outputs, targets, reference, plan.distill_alpha, plan.temperature)

    def _reference(self, images: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad(), eval_mode(self.teacher):
            return one_tensor(self.teacher(images)).float()

    def state(self) -> dict[str, Tensor]:
        """The model's state dict."""
        return dict(self.model.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the model's state dict."""
        self.model.load_state_dict(dict(state))


def mixed_loss(
    task: Task, outputs: Tensor, targets: Tensor, reference: Tensor, alpha: float, temperature: float
) -> Tensor:
    """`(1 - alpha) * task loss + alpha * distance to a teacher's outputs at the temperature` (Hinton et al. 2015)."""
    own = task.loss(outputs, targets)
    return (1 - alpha) * own + alpha * task.distance(outputs, reference, temperature).mean()


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, named without it: one part of a state."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen; `UsageError` where all are."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UsageError(
            "no parameter of the network can be trained: all are frozen", hint="network.requires_grad_(True) thaws them"
        )
    return parameters


def sgd(model: nn.Module, plan: TrainPlan) -> SGD:
    """SGD with Nesterov momentum; parameters of one dimension or none (biases, normalisation) are not decayed.

    Raises `UsageError` for a model of which every parameter is frozen.
    """
    parameters = trainable(model)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    return SGD(filled, lr=plan.lr, momentum=plan.momentum, nesterov=plan.momentum > 0)
